/**
 * What the shadow records, so that a process killed at any point goes on where it was.
 *
 * On the destination: the phase, the copy's progress per table, the fingerprints of both sides, and the forward
 * stream's progress. On the source: the reverse stream's progress, and the replica identities that were changed.
 * A stream's progress is written in the transaction that holds the changes: neither can be there without the other.
 */
import type {
  CatalogFingerprint,
  Direction,
  Format,
  ShadowPhase,
  Side,
  StuckChange,
  TableName,
} from '../../core/ports.js';
import { quoteLiteral } from '../../core/postgres.js';
import { UnderstudyError } from '../../core/errors.js';
import { formatLsn, parseLsn } from '../../core/position.js';
import { isIdentity } from '../format/forms.js';
import { inTransaction, run, textOf, type Session, type TextRow } from './statement.js';
import type { AddedColumn, BuiltPlan } from './schema/evolve.js';
import { subsetsFrom, subsetsText, type Authority } from '../authority.js';
import type { Key } from './apply-table.js';

const CREATE_SQL = `
SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('understudy'));
CREATE SCHEMA IF NOT EXISTS understudy;
CREATE TABLE IF NOT EXISTS understudy.shadow_state (
  migration text PRIMARY KEY,
  phase text NOT NULL,
  reverse_prepared boolean NOT NULL DEFAULT false,
  copy_seconds double precision NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS understudy.table_copy (
  schema_name text NOT NULL,
  table_name text NOT NULL,
  border text[],
  rows_copied bigint NOT NULL DEFAULT 0,
  done boolean NOT NULL DEFAULT false,
  snapshot text,
  snapshot_until pg_lsn,
  PRIMARY KEY (schema_name, table_name)
);
CREATE TABLE IF NOT EXISTS understudy.pending_key (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  schema_name text NOT NULL,
  table_name text NOT NULL,
  key text[] NOT NULL
);
CREATE TABLE IF NOT EXISTS understudy.progress (
  direction text PRIMARY KEY,
  position pg_lsn NOT NULL,
  authoritative boolean NOT NULL,
  epoch bigint NOT NULL,
  subsets text,
  updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS understudy.mark_seen (
  direction text NOT NULL,
  mark text NOT NULL,
  position pg_lsn NOT NULL,
  PRIMARY KEY (direction, mark)
);
CREATE TABLE IF NOT EXISTS understudy.stream_origin (
  direction text PRIMARY KEY,
  system_id text NOT NULL,
  timeline bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS understudy.fingerprint (
  side text PRIMARY KEY,
  objects jsonb NOT NULL,
  taken_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS understudy.skipped_change (
  direction text NOT NULL,
  position pg_lsn NOT NULL,
  ordinal bigint NOT NULL,
  schema_and_table text NOT NULL,
  kind text NOT NULL,
  key_columns text[] NOT NULL,
  key_hash text,
  sql_state text NOT NULL,
  note text NOT NULL,
  decided_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (direction, position, ordinal)
);
CREATE TABLE IF NOT EXISTS understudy.repaired_row (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  repaired_at timestamptz NOT NULL DEFAULT now(),
  schema_name text NOT NULL,
  table_name text NOT NULL,
  key text[] NOT NULL,
  before jsonb,
  after jsonb
);
CREATE TABLE IF NOT EXISTS understudy.format (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  format text NOT NULL,
  named boolean NOT NULL DEFAULT false
);
CREATE TABLE IF NOT EXISTS understudy.source_plan (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  statements jsonb NOT NULL
);
CREATE TABLE IF NOT EXISTS understudy.added_column (
  schema_name text NOT NULL,
  table_name text NOT NULL,
  column_name text NOT NULL,
  missing text,
  PRIMARY KEY (schema_name, table_name, column_name)
);
CREATE TABLE IF NOT EXISTS understudy.identity_change (
  schema_name text NOT NULL,
  table_name text NOT NULL,
  before "char" NOT NULL,
  before_index text,
  PRIMARY KEY (schema_name, table_name)
);`;

/** Of a shadow that was built before there were subsets. No lock is taken where there is nothing to do. */
const ADD_SUBSETS_SQL = `
DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_catalog.pg_attribute
      WHERE attrelid = 'understudy.progress'::pg_catalog.regclass AND attname = 'subsets' AND NOT attisdropped) THEN
    ALTER TABLE understudy.progress ADD COLUMN subsets text;
  END IF;
END $$`;

/** Creates Understudy's schema and the shadow's tables where they are missing. */
export async function ensureRecords(session: Session): Promise<void> {
  const what = `creating Understudy’s tables on the ${session.side}`;
  await inTransaction(session, what, async () => {
    await run(session, CREATE_SQL, { what });
    await run(session, ADD_SUBSETS_SQL, { what });
  });
}

// --- phase -----------------------------------------------------------------------------------------------------

export interface ShadowState {
  readonly phase: ShadowPhase;
  readonly reversePrepared: boolean;
  readonly copySeconds: number;
}

export async function readState(session: Session, migration: string): Promise<ShadowState | null> {
  const { rows } = await run(
    session,
    {
      text: 'SELECT phase, reverse_prepared, copy_seconds FROM understudy.shadow_state WHERE migration = $1',
      values: [migration],
    },
    { what: 'reading the shadow’s state' },
  );
  const row = rows[0];
  if (row === undefined) return null;
  return {
    phase: textOf(row, 'phase') as ShadowPhase,
    reversePrepared: row['reverse_prepared'] === 't',
    copySeconds: Number(textOf(row, 'copy_seconds')),
  };
}

export async function writePhase(session: Session, migration: string, phase: ShadowPhase): Promise<void> {
  await run(
    session,
    {
      text: `INSERT INTO understudy.shadow_state (migration, phase) VALUES ($1, $2)
        ON CONFLICT (migration) DO UPDATE SET phase = EXCLUDED.phase`,
      values: [migration, phase],
    },
    { what: 'recording the phase' },
  );
}

export async function addCopySeconds(session: Session, migration: string, seconds: number): Promise<void> {
  await run(
    session,
    {
      text: 'UPDATE understudy.shadow_state SET copy_seconds = copy_seconds + $2 WHERE migration = $1',
      values: [migration, String(seconds)],
    },
    { what: 'recording the copy’s duration' },
  );
}

export async function writeReversePrepared(session: Session, migration: string): Promise<void> {
  await run(
    session,
    {
      text: 'UPDATE understudy.shadow_state SET reverse_prepared = true WHERE migration = $1',
      values: [migration],
    },
    { what: 'recording the reverse stream' },
  );
}

// --- copy ------------------------------------------------------------------------------------------------------

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

// --- streams ---------------------------------------------------------------------------------------------------

export interface StreamProgress extends Authority {
  readonly position: bigint;
}

export async function readProgress(session: Session, direction: Direction): Promise<StreamProgress | null> {
  const { rows } = await run(
    session,
    {
      text: 'SELECT position, authoritative, epoch, subsets FROM understudy.progress WHERE direction = $1',
      values: [direction],
    },
    { what: 'reading the stream’s progress' },
  );
  const row = rows[0];
  if (row === undefined) return null;
  return {
    position: parseLsn(textOf(row, 'position')),
    authoritative: row['authoritative'] === 't',
    epoch: Number(textOf(row, 'epoch')),
    ...subsetsFrom(row['subsets']),
  };
}

/** Records where a new stream begins, unless one is recorded already. */
export async function initialiseProgress(
  session: Session,
  direction: Direction,
  progress: StreamProgress,
): Promise<void> {
  await run(
    session,
    {
      text: `INSERT INTO understudy.progress (direction, position, authoritative, epoch, subsets) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (direction) DO NOTHING`,
      values: [
        direction,
        formatLsn(progress.position),
        String(progress.authoritative),
        String(progress.epoch),
        subsetsText(progress),
      ],
    },
    { what: 'recording the stream’s start' },
  );
}

/** Forgets how far a stream had come, and the marks it has passed. */
export async function forgetProgress(session: Session, direction: Direction): Promise<void> {
  const what = 'forgetting a stream’s progress';
  await run(
    session,
    { text: 'DELETE FROM understudy.progress WHERE direction = $1', values: [direction] },
    { what },
  );
  await run(
    session,
    { text: 'DELETE FROM understudy.mark_seen WHERE direction = $1', values: [direction] },
    { what },
  );
}

/** For the end of an apply transaction, together with its COMMIT in one round trip. */
export function progressSql(direction: Direction, progress: StreamProgress): string {
  const subsets = subsetsText(progress);
  return (
    `UPDATE understudy.progress SET position = '${formatLsn(progress.position)}', ` +
    `authoritative = ${String(progress.authoritative)}, epoch = ${progress.epoch}, ` +
    `subsets = ${subsets === null ? 'NULL' : quoteLiteral(subsets)}, updated_at = pg_catalog.now() ` +
    `WHERE direction = ${quoteLiteral(direction)}`
  );
}

/** Marks kept: a waiter that asks after a restart finds the last ones. */
const MARKS_KEPT = 200;

export function markSql(direction: Direction, mark: string, position: bigint): string {
  return (
    `INSERT INTO understudy.mark_seen (direction, mark, position) ` +
    `VALUES (${quoteLiteral(direction)}, ${quoteLiteral(mark)}, '${formatLsn(position)}') ON CONFLICT DO NOTHING`
  );
}

/** The last marks the stream has passed, oldest first. */
export async function readMarks(
  session: Session,
  direction: Direction,
): Promise<ReadonlyMap<string, bigint>> {
  await run(
    session,
    {
      text: `DELETE FROM understudy.mark_seen WHERE direction = $1 AND position < (
        SELECT position FROM understudy.mark_seen WHERE direction = $1
        ORDER BY position DESC OFFSET $2 LIMIT 1)`,
      values: [direction, MARKS_KEPT],
    },
    { what: 'pruning the marks' },
  );
  const { rows } = await run(
    session,
    {
      text: 'SELECT mark, position FROM understudy.mark_seen WHERE direction = $1 ORDER BY position',
      values: [direction],
    },
    { what: 'reading the marks' },
  );
  return new Map(rows.map((row) => [textOf(row, 'mark'), parseLsn(textOf(row, 'position'))]));
}

// --- skipped changes -------------------------------------------------------------------------------------------

/** Records the decision to leave a change out. Idempotent. */
export async function writeSkip(session: Session, change: StuckChange, note: string): Promise<void> {
  await run(
    session,
    {
      text: `INSERT INTO understudy.skipped_change
          (direction, position, ordinal, schema_and_table, kind, key_columns, key_hash, sql_state, note)
        VALUES ($1, $2, $3, $4, $5, $6::text[], $7, $8, $9) ON CONFLICT DO NOTHING`,
      values: [
        change.direction,
        change.position,
        String(change.ordinal),
        change.table,
        change.kind,
        change.keyColumns,
        change.keyHash,
        change.sqlState,
        note,
      ],
    },
    { what: 'recording a skipped change' },
  );
}

/** The changes of a stream that are left out: places by their transaction's commit position, from `from` on. */
export async function readSkips(
  session: Session,
  direction: Direction,
  from: bigint,
): Promise<ReadonlyMap<bigint, ReadonlySet<number>>> {
  const { rows } = await run(
    session,
    {
      text: `SELECT position, ordinal FROM understudy.skipped_change WHERE direction = $1 AND position >= $2::pg_lsn`,
      values: [direction, formatLsn(from)],
    },
    { what: 'reading the skipped changes' },
  );
  const skips = new Map<bigint, Set<number>>();
  for (const row of rows) {
    const position = parseLsn(textOf(row, 'position'));
    skips.set(position, (skips.get(position) ?? new Set()).add(Number(textOf(row, 'ordinal'))));
  }
  return skips;
}

// --- fingerprints ----------------------------------------------------------------------------------------------

export async function writeFingerprint(
  session: Session,
  side: Side,
  fingerprint: CatalogFingerprint,
): Promise<void> {
  await run(
    session,
    {
      text: `INSERT INTO understudy.fingerprint (side, objects) VALUES ($1, $2)
        ON CONFLICT (side) DO UPDATE SET objects = EXCLUDED.objects, taken_at = pg_catalog.now()`,
      values: [side, JSON.stringify(fingerprint)],
    },
    { what: 'recording a fingerprint' },
  );
}

export async function readFingerprintRecord(
  session: Session,
  side: Side,
): Promise<CatalogFingerprint | null> {
  const { rows } = await run(
    session,
    { text: 'SELECT objects FROM understudy.fingerprint WHERE side = $1', values: [side] },
    { what: 'reading a fingerprint' },
  );
  const row: TextRow | undefined = rows[0];
  return row === undefined ? null : (JSON.parse(textOf(row, 'objects')) as CatalogFingerprint);
}

// --- the schema the shadow was brought to ------------------------------------------------------------------------

export async function writeSourcePlan(session: Session, plan: BuiltPlan): Promise<void> {
  const { beforeCopy, afterCopy } = plan;
  await run(
    session,
    {
      text: `INSERT INTO understudy.source_plan (statements) VALUES ($1)
        ON CONFLICT (one) DO UPDATE SET statements = EXCLUDED.statements`,
      values: [JSON.stringify({ beforeCopy, afterCopy })],
    },
    { what: 'recording the schema' },
  );
}

/** Null where it was built by a version that did not record it. */
export async function readSourcePlan(session: Session): Promise<BuiltPlan | null> {
  const { rows } = await run(session, 'SELECT statements FROM understudy.source_plan', {
    what: 'reading the recorded schema',
  });
  return rows[0] === undefined ? null : (JSON.parse(textOf(rows[0], 'statements')) as BuiltPlan);
}

/** The format that the destination is built in. */
export async function writeFormat(session: Session, format: Format | undefined): Promise<void> {
  await run(
    session,
    {
      text: `INSERT INTO understudy.format (format) VALUES ($1) ON CONFLICT (one) DO UPDATE SET format = EXCLUDED.format`,
      values: [formatText(format)],
    },
    { what: 'recording the format' },
  );
}

/** Throws `format-refused` where the destination was built in another format than `format`. */
export async function assertFormat(session: Session, format: Format | undefined): Promise<void> {
  const { rows } = await run(session, 'SELECT format FROM understudy.format', { what: 'reading the format' });
  // One built before formats were recorded has none.
  if ((rows[0]?.['format'] ?? formatText(undefined)) === formatText(format)) return;
  throw new UnderstudyError(
    'format-refused',
    'the destination was built in another format than shadow.format',
    {
      advice:
        'Put shadow.format back as it was; or run `understudy remove`, empty the destination, and start again.',
    },
  );
}

/** One text for one format, whatever the order in which it was written. */
function formatText(format: Format | undefined): string {
  const ordered = (value: unknown): unknown =>
    typeof value === 'object' && value !== null
      ? Object.fromEntries(
          Object.entries(value)
            .filter(([, child]) => child !== undefined)
            .sort(([a], [b]) => (a < b ? -1 : 1))
            .map(([name, child]) => [name, ordered(child)]),
        )
      : value;
  return JSON.stringify(ordered(isIdentity(format) ? {} : format));
}

/** `column.table` and `column.column` are quoted; the table must have the column. */
export async function recordAddedColumn(session: Session, column: AddedColumn): Promise<void> {
  await run(
    session,
    {
      text: `INSERT INTO understudy.added_column (schema_name, table_name, column_name, missing)
        SELECT n.nspname, c.relname, a.attname, $3
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
        WHERE c.oid = $1::pg_catalog.regclass AND pg_catalog.quote_ident(a.attname) = $2
        ON CONFLICT (schema_name, table_name, column_name) DO UPDATE SET missing = EXCLUDED.missing`,
      values: [column.table, column.column, column.missing],
    },
    { what: 'recording an added column', carriesRows: true },
  );
}

/** What rows from before a column was added hold in it; by `schema.table`, then by column. */
export type AddedColumns = ReadonlyMap<string, ReadonlyMap<string, string | null>>;

export async function readAddedColumns(session: Session): Promise<AddedColumns> {
  const { rows } = await run(
    session,
    'SELECT schema_name, table_name, column_name, missing FROM understudy.added_column',
    { what: 'reading the added columns' },
  );
  const added = new Map<string, Map<string, string | null>>();
  for (const row of rows) {
    const table = `${textOf(row, 'schema_name')}.${textOf(row, 'table_name')}`;
    const columns = added.get(table) ?? new Map<string, string | null>();
    columns.set(textOf(row, 'column_name'), row['missing'] ?? null);
    added.set(table, columns);
  }
  return added;
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
