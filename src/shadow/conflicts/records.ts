/** Conflicts as they are recorded on the destination, with both rows. */
import type { ConflictRecord, ConflictCounts } from '../../core/ports.js';
import type { TableName } from '../../core/ports.js';
import { formatLsn } from '../../core/position.js';
import { run, textOf, type Session, type TextRow } from '../postgres/statement.js';
import type { Winner } from './rule.js';

/** Two that make it at once would clash in the catalogs. */
const CREATE_SQL = `SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('understudy'));
CREATE TABLE IF NOT EXISTS understudy.conflict (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  found_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
  position pg_lsn NOT NULL,
  ordinal bigint NOT NULL,
  schema_name text NOT NULL,
  table_name text NOT NULL,
  kind text NOT NULL,
  key text[],
  written_at timestamptz NOT NULL,
  state text NOT NULL DEFAULT 'open',
  rule text,
  winner text,
  reason text,
  source_row jsonb,
  destination_row jsonb,
  settled_at timestamptz,
  UNIQUE (position, ordinal))`;

/** A write that was made past the guard. */
export interface StrayWrite {
  /** Of its transaction's commit record; its place among that transaction's changes. */
  readonly position: bigint;
  readonly ordinal: number;
  readonly table: TableName;
  readonly kind: string;
  /** null where it names no row: a TRUNCATE, a table without a key, more of them than are told apart. */
  readonly key: readonly string[] | null;
  /** Seconds since 1970, with microseconds. */
  readonly writtenAt: number;
}

export interface OpenConflict {
  readonly id: string;
  /** As `schema.name`. */
  readonly table: string;
  readonly key: readonly string[];
  readonly writtenMs: number;
}

export async function ensureConflicts(session: Session): Promise<void> {
  await run(session, CREATE_SQL, { what: 'creating the table of conflicts' });
}

/** Records each once, however often it is told. */
export async function recordStrays(session: Session, strays: readonly StrayWrite[]): Promise<void> {
  for (const { position, ordinal, table, kind, key, writtenAt } of strays) {
    await run(
      session,
      {
        text: `INSERT INTO understudy.conflict (position, ordinal, schema_name, table_name, kind, key, written_at, state, reason)
          VALUES ($1, $2, $3, $4, $5, $6::text[], pg_catalog.to_timestamp($7), $8, $9) ON CONFLICT (position, ordinal) DO NOTHING`,
        values: [
          formatLsn(position),
          String(ordinal),
          table.schema,
          table.name,
          kind,
          key as string[] | null,
          String(writtenAt),
          key === null ? 'unsettled' : 'open',
          key === null ? 'it names no row: run `understudy verify --repair`' : null,
        ],
      },
      { what: 'recording a conflict', carriesRows: true },
    );
  }
}

export async function readOpen(session: Session, limit: number): Promise<readonly OpenConflict[]> {
  const { rows } = await run(
    session,
    `SELECT id, schema_name, table_name, pg_catalog.array_to_json(key) AS key,
        EXTRACT(epoch FROM written_at) * 1000 AS written_ms
      FROM understudy.conflict WHERE state = 'open' ORDER BY id LIMIT ${limit}`,
    { what: 'reading the open conflicts' },
  );
  return rows.map((row) => ({
    id: textOf(row, 'id'),
    table: `${textOf(row, 'schema_name')}.${textOf(row, 'table_name')}`,
    key: JSON.parse(textOf(row, 'key')) as string[],
    writtenMs: Number(textOf(row, 'written_ms')),
  }));
}

/** With both rows, before the one that loses is replaced. */
export async function recordRows(
  session: Session,
  id: string,
  rows: { readonly source: string | null; readonly destination: string | null },
): Promise<void> {
  await run(
    session,
    {
      text: 'UPDATE understudy.conflict SET source_row = $2, destination_row = $3 WHERE id = $1',
      values: [id, rows.source, rows.destination],
    },
    { what: 'recording both rows of a conflict', carriesRows: true },
  );
}

/** `winner`: null where both rows were the same, or nothing was decided. */
export async function recordSettled(
  session: Session,
  id: string,
  outcome: {
    readonly state: 'settled' | 'unsettled';
    readonly rule: string;
    readonly winner: Winner | null;
    readonly reason: string;
  },
): Promise<void> {
  await run(
    session,
    {
      text: `UPDATE understudy.conflict SET state = $2, rule = $3, winner = $4, reason = $5,
        settled_at = pg_catalog.clock_timestamp() WHERE id = $1`,
      values: [id, outcome.state, outcome.rule, outcome.winner, outcome.reason],
    },
    { what: 'recording how a conflict was settled' },
  );
}

/** The newest first. */
export async function listConflicts(session: Session, limit: number): Promise<readonly ConflictRecord[]> {
  const { rows } = await run(
    session,
    `SELECT id, pg_catalog.to_json(found_at) #>> '{}' AS found_at, position, schema_name, table_name, kind,
        pg_catalog.array_to_string(key, ',') AS key, state, rule, winner, reason
      FROM understudy.conflict ORDER BY id DESC LIMIT ${limit}`,
    { what: 'reading the conflicts' },
  );
  return rows.map((row) => recordOf(row));
}

function recordOf(row: TextRow): ConflictRecord {
  return {
    id: Number(textOf(row, 'id')),
    foundAt: textOf(row, 'found_at'),
    position: textOf(row, 'position'),
    table: `${textOf(row, 'schema_name')}.${textOf(row, 'table_name')}`,
    kind: textOf(row, 'kind'),
    key: row['key'] ?? null,
    state: textOf(row, 'state') as ConflictRecord['state'],
    rule: row['rule'] ?? null,
    winner: (row['winner'] as ConflictRecord['winner']) ?? null,
    reason: row['reason'] ?? null,
  };
}

export async function countConflicts(session: Session): Promise<ConflictCounts> {
  const { rows } = await run(
    session,
    'SELECT state, pg_catalog.count(*) AS n FROM understudy.conflict GROUP BY state',
    { what: 'counting the conflicts' },
  );
  const of = (state: string): number => Number(rows.find((row) => row['state'] === state)?.['n'] ?? '0');
  return { open: of('open'), settled: of('settled'), unsettled: of('unsettled') };
}
