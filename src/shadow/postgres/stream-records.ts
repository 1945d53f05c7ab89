/**
 * How far a stream has come, the marks that it has passed and the changes that it leaves out, recorded on the side that it
 * writes to: in the transaction that holds the changes, so that neither can be there without the other.
 */
import type { Direction, StuckChange } from '../../core/ports.js';
import { quoteLiteral } from '../../core/postgres.js';
import { formatLsn, parseLsn } from '../../core/position.js';
import { run, textOf, type Session } from './statement.js';
import { subsetsFrom, subsetsText, type Authority } from '../authority.js';

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
