/** What a follower records on the destination, beside what every shadow does (`../postgres/records.ts`). */
import type { ShadowMethod, TableName } from '../../core/ports.js';
import { inTransaction, run, textOf, type Session } from '../postgres/statement.js';
import { readState } from '../postgres/records.js';
import { ROW_VERSION_SQL } from './row-version.js';

const CREATE_SQL = `
SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('understudy'));
CREATE SCHEMA IF NOT EXISTS understudy;
CREATE TABLE IF NOT EXISTS understudy.shadow_method (
  migration text PRIMARY KEY,
  method text NOT NULL,
  reason text NOT NULL,
  chosen_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);
CREATE TABLE IF NOT EXISTS understudy.follow_horizon (
  schema_name text NOT NULL,
  table_name text NOT NULL,
  horizon text NOT NULL,
  PRIMARY KEY (schema_name, table_name)
);
${ROW_VERSION_SQL}`;

export async function ensureFollowRecords(session: Session): Promise<void> {
  const what = 'creating Understudy’s tables on the destination';
  await inTransaction(session, what, async () => {
    await run(session, CREATE_SQL, { what });
  });
}

export interface MethodRecord {
  readonly method: ShadowMethod;
  readonly reason: string;
}

/**
 * Null before the first shadow of the migration. Works on a destination that never saw one. A shadow that has begun and
 * has no such record is of a version that knew no other way than the log.
 */
export async function readMethod(session: Session, migration: string): Promise<MethodRecord | null> {
  const what = 'reading the shadow’s method';
  const exists = await run(
    session,
    `SELECT pg_catalog.to_regclass('understudy.shadow_method') IS NOT NULL AS found,
      pg_catalog.to_regclass('understudy.shadow_state') IS NOT NULL AS begun`,
    { what },
  );
  if (exists.rows[0]?.['begun'] !== 't' && exists.rows[0]?.['found'] !== 't') return null;
  const recorded = exists.rows[0]['found'] === 't' ? await recordedMethod(session, migration) : null;
  if (recorded !== null) return recorded;
  const begun = exists.rows[0]['begun'] === 't' ? await readState(session, migration) : null;
  return begun === null ? null : { method: 'log', reason: 'the source’s log can be followed' };
}

async function recordedMethod(session: Session, migration: string): Promise<MethodRecord | null> {
  const what = 'reading the shadow’s method';
  const { rows } = await run(
    session,
    { text: 'SELECT method, reason FROM understudy.shadow_method WHERE migration = $1', values: [migration] },
    { what },
  );
  const [row] = rows;
  if (row === undefined) return null;
  return { method: textOf(row, 'method') as ShadowMethod, reason: textOf(row, 'reason') };
}

export async function writeMethod(
  session: Session,
  migration: string,
  { method, reason }: MethodRecord,
): Promise<void> {
  await run(
    session,
    {
      text: `INSERT INTO understudy.shadow_method (migration, method, reason) VALUES ($1, $2, $3)
        ON CONFLICT (migration) DO UPDATE SET method = EXCLUDED.method, reason = EXCLUDED.reason`,
      values: [migration, method, reason],
    },
    { what: 'recording the shadow’s method' },
  );
}

/** By `schema.name`. What a horizon means is the hints' own. */
export async function readHorizons(session: Session): Promise<ReadonlyMap<string, string>> {
  const { rows } = await run(
    session,
    'SELECT schema_name, table_name, horizon FROM understudy.follow_horizon',
    { what: 'reading the horizons' },
  );
  return new Map(
    rows.map((row) => [`${textOf(row, 'schema_name')}.${textOf(row, 'table_name')}`, textOf(row, 'horizon')]),
  );
}

/** Records what has been applied, in the caller's transaction or in one of its own. */
export async function writeHorizons(
  session: Session,
  horizons: readonly { readonly table: TableName; readonly horizon: string }[],
): Promise<void> {
  if (horizons.length === 0) return;
  await run(
    session,
    {
      name: 'write_horizons',
      text: `INSERT INTO understudy.follow_horizon (schema_name, table_name, horizon)
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[])
        ON CONFLICT (schema_name, table_name) DO UPDATE SET horizon = EXCLUDED.horizon`,
      values: [
        horizons.map(({ table }) => table.schema),
        horizons.map(({ table }) => table.name),
        horizons.map(({ horizon }) => horizon),
      ],
    },
    { what: 'recording the horizons' },
  );
}
