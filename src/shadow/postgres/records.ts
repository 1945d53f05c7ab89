/**
 * What the shadow records, so that a process killed at any point goes on where it was.
 *
 * On the destination: the phase, the copy's progress per table, the fingerprints of both sides, and the forward
 * stream's progress. On the source: the reverse stream's progress, and the replica identities that were changed.
 * A stream's progress is written in the transaction that holds the changes: neither can be there without the other.
 */
import type { ShadowPhase } from '../../core/ports.js';
import { inTransaction, run, textOf, type Session } from './statement.js';

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
CREATE TABLE IF NOT EXISTS understudy.destination_plan (
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
