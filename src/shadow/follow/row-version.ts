/**
 * The version of what a follower writes: the snapshot that it was read by. Kept per row in `understudy.row_version` on
 * the destination, where a write wins only over an older one.
 *
 * Snapshots of one server are ordered. `xmax` is one above the newest transaction that has ended, and never goes back;
 * of two snapshots with the same `xmax` the later sees all that the earlier saw, so its list of transactions in progress
 * is shorter or the same (PostgreSQL, "Snapshots" in access/transam/README). A row that has no entry is as old as the
 * copy of its table, older than any.
 *
 * A deleted row keeps its entry, so that a read made before the deletion can't bring it back.
 */
import type { TableName } from '../../core/ports.js';
import { run, textOf, type Session } from '../postgres/statement.js';
import type { Snapshot } from '../postgres/visibility.js';

export interface RowVersion {
  readonly xmax: bigint;
  /** Transactions below `xmax` that had not ended. */
  readonly open: number;
}

export function versionOf(snapshot: Snapshot): RowVersion {
  return { xmax: snapshot.xmax, open: snapshot.inProgress.size };
}

/** Negative where `a` is older. */
export function compareVersions(a: RowVersion, b: RowVersion): number {
  if (a.xmax !== b.xmax) return a.xmax < b.xmax ? -1 : 1;
  return b.open - a.open;
}

export const ROW_VERSION_SQL = `
CREATE TABLE IF NOT EXISTS understudy.row_version (
  schema_name text NOT NULL,
  table_name text NOT NULL,
  row_key text NOT NULL,
  xmax_seen bigint NOT NULL,
  open_seen integer NOT NULL,
  deleted boolean NOT NULL,
  written_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
  PRIMARY KEY (schema_name, table_name, row_key)
);`;

export interface Claim {
  /** One text per key, see `keyId`. */
  readonly id: string;
  readonly deleted: boolean;
}

/**
 * Gives these rows this version, in the caller's transaction, and returns the ids of those that had no newer one: the
 * only ones that may be written.
 */
export async function claimVersions(
  session: Session,
  table: TableName,
  version: RowVersion,
  claims: readonly Claim[],
): Promise<ReadonlySet<string>> {
  const { rows } = await run(
    session,
    {
      name: 'claim_versions',
      text: `INSERT INTO understudy.row_version AS v
          (schema_name, table_name, row_key, xmax_seen, open_seen, deleted)
        SELECT $1, $2, u.k, $3::bigint, $4::integer, u.d
        FROM unnest($5::text[], $6::boolean[]) AS u(k, d)
        ON CONFLICT (schema_name, table_name, row_key) DO UPDATE
        SET xmax_seen = EXCLUDED.xmax_seen, open_seen = EXCLUDED.open_seen, deleted = EXCLUDED.deleted,
            written_at = EXCLUDED.written_at
        WHERE (v.xmax_seen, -v.open_seen) <= (EXCLUDED.xmax_seen, -EXCLUDED.open_seen)
        RETURNING row_key`,
      values: [
        table.schema,
        table.name,
        String(version.xmax),
        String(version.open),
        claims.map(({ id }) => id),
        claims.map(({ deleted }) => deleted),
      ],
    },
    { what: 'recording the rows’ versions', carriesRows: true },
  );
  return new Set(rows.map((row) => textOf(row, 'row_key')));
}

/** The newest version ever written; null where there is none. A source that is behind it was set back. */
export async function newestVersion(session: Session): Promise<RowVersion | null> {
  const { rows } = await run(
    session,
    'SELECT xmax_seen, open_seen FROM understudy.row_version ORDER BY xmax_seen DESC, open_seen LIMIT 1',
    { what: 'reading the newest version' },
  );
  const [row] = rows;
  if (row === undefined) return null;
  return { xmax: BigInt(textOf(row, 'xmax_seen')), open: Number(textOf(row, 'open_seen')) };
}

/**
 * Forgets the versions of rows written more than `keptSeconds` ago. None of the reads before that can still be under
 * way: the one writer's lock is held by us.
 */
export async function pruneVersions(session: Session, keptSeconds: number): Promise<void> {
  await run(
    session,
    {
      text: `DELETE FROM understudy.row_version
        WHERE written_at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1)`,
      values: [String(keptSeconds)],
    },
    { what: 'forgetting old versions' },
  );
}

/** The source was set back to an earlier state: its versions mean nothing any more. */
export async function forgetVersions(session: Session): Promise<void> {
  await run(session, 'TRUNCATE understudy.row_version', { what: 'forgetting all versions' });
}
