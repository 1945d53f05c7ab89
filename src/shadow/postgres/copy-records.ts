/** How far the first copy has come, recorded on the destination in the transactions that hold its rows. */
import type { TableName } from '../../core/ports.js';
import { formatLsn, parseLsn } from '../../core/position.js';
import { run, textOf, type Session } from './statement.js';
import type { Key } from './apply-table.js';

export interface TableCopy {
  /** The key up to which rows are copied; null before the first chunk. */
  readonly border: readonly string[] | null;
  readonly rows: number;
  readonly done: boolean;
  /** Of a table copied whole: its snapshot, and the position from which on every transaction is newer than it. */
  readonly snapshot: string | null;
  readonly snapshotUntil: bigint | null;
}

export async function readTableCopies(session: Session): Promise<ReadonlyMap<string, TableCopy>> {
  const { rows } = await run(
    session,
    `SELECT schema_name, table_name, pg_catalog.to_json(border) AS border, rows_copied, done, snapshot, snapshot_until
     FROM understudy.table_copy`,
    { what: 'reading the copy’s progress' },
  );
  return new Map(
    rows.map((row): [string, TableCopy] => [
      `${textOf(row, 'schema_name')}.${textOf(row, 'table_name')}`,
      {
        border: row['border'] == null ? null : (JSON.parse(row['border']) as string[]),
        rows: Number(textOf(row, 'rows_copied')),
        done: row['done'] === 't',
        snapshot: row['snapshot'] ?? null,
        snapshotUntil: row['snapshot_until'] == null ? null : parseLsn(row['snapshot_until']),
      },
    ]),
  );
}

/**
 * Moves a table's border; in the transaction that holds the rows. False, and nothing moved, where the border is not
 * the chunk's lower end: the chunk before it is not written, and a border beyond it would leave that one out.
 */
export async function advanceTableCopy(
  session: Session,
  table: TableName,
  step: {
    readonly lower: Key | null;
    readonly border: Key | null;
    readonly rows: number;
    readonly done: boolean;
  },
): Promise<boolean> {
  const result = await run(
    session,
    {
      name: 'advance_table_copy',
      text: `INSERT INTO understudy.table_copy AS c (schema_name, table_name, border, rows_copied, done)
        SELECT $1, $2, $3::text[], $4::bigint, $5::boolean
        WHERE $6::text[] IS NULL
          OR EXISTS (SELECT FROM understudy.table_copy WHERE schema_name = $1 AND table_name = $2)
        ON CONFLICT (schema_name, table_name) DO UPDATE
        SET border = COALESCE(EXCLUDED.border, c.border), rows_copied = c.rows_copied + EXCLUDED.rows_copied,
            done = EXCLUDED.done
        WHERE c.border IS NOT DISTINCT FROM $6::text[] AND NOT c.done`,
      values: [table.schema, table.name, step.border, String(step.rows), step.done, step.lower],
    },
    { what: 'recording the copy’s progress', carriesRows: true },
  );
  return result.rowCount === 1;
}

/** Records that a table was copied whole; in the transaction that holds the rows. */
export async function recordWholeCopy(
  session: Session,
  table: TableName,
  copy: { readonly rows: number; readonly snapshot: string; readonly until: bigint },
): Promise<void> {
  await run(
    session,
    {
      text: `INSERT INTO understudy.table_copy AS c
          (schema_name, table_name, rows_copied, done, snapshot, snapshot_until)
        VALUES ($1, $2, $3, true, $4, $5)
        ON CONFLICT (schema_name, table_name) DO UPDATE
        SET rows_copied = EXCLUDED.rows_copied, done = true, snapshot = EXCLUDED.snapshot,
            snapshot_until = EXCLUDED.snapshot_until`,
      values: [table.schema, table.name, String(copy.rows), copy.snapshot, formatLsn(copy.until)],
    },
    { what: 'recording a table’s copy' },
  );
}

export interface PendingKey {
  readonly id: string;
  readonly table: string;
  readonly key: Key;
}

/** Keys whose rows the stream could not complete and that a chunk of one row must bring. */
export async function readPendingKeys(session: Session): Promise<readonly PendingKey[]> {
  const { rows } = await run(
    session,
    `SELECT id, schema_name, table_name, pg_catalog.to_json(key) AS key FROM understudy.pending_key ORDER BY id`,
    { what: 'reading the pending keys' },
  );
  return rows.map((row) => ({
    id: textOf(row, 'id'),
    table: `${textOf(row, 'schema_name')}.${textOf(row, 'table_name')}`,
    key: JSON.parse(textOf(row, 'key')) as string[],
  }));
}

export async function addPendingKey(session: Session, table: TableName, key: Key): Promise<void> {
  await run(
    session,
    {
      text: 'INSERT INTO understudy.pending_key (schema_name, table_name, key) VALUES ($1, $2, $3::text[])',
      values: [table.schema, table.name, key],
    },
    { what: 'recording a pending key', carriesRows: true },
  );
}

export async function removePendingKey(session: Session, id: string): Promise<void> {
  await run(
    session,
    { text: 'DELETE FROM understudy.pending_key WHERE id = $1', values: [id] },
    { what: 'removing a pending key' },
  );
}

/** Forgets how far the table's copy had come: it is copied anew. */
export async function forgetTableCopy(session: Session, table: TableName): Promise<void> {
  await run(
    session,
    {
      text: 'DELETE FROM understudy.table_copy WHERE schema_name = $1 AND table_name = $2',
      values: [table.schema, table.name],
    },
    { what: 'forgetting a table’s copy' },
  );
}
