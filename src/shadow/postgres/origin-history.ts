/**
 * Whether a stream's servers are still those that it has read from and written to.
 *
 * Its origin's log may not be the one that it has read: after a failover to a standby that lacked some of it, or where another cluster took the server's place, positions mean something else, and what was streamed from behind that
 * point never happened there.
 *
 * The server's system identifier and timeline are recorded with the first stream; where either is another one later, the
 * server's own history says at which position the recorded timeline was left
 * (https://www.postgresql.org/docs/current/protocol-replication.html, IDENTIFY_SYSTEM and TIMELINE_HISTORY).
 */
import type pg from 'pg';
import type { Direction, Side } from '../../core/ports.js';
import { UnderstudyError } from '../../core/errors.js';
import { formatLsn, parseLsn } from '../../core/position.js';
import { run, statementError, textOf, type Session, type TextRow } from './statement.js';

/** Where the recorded timeline was left; null where the history, one line per timeline, does not tell of it. */
export function leftAt(history: string, timeline: number): bigint | null {
  for (const line of history.split('\n')) {
    const match = /^\s*(\d+)\s+([0-9A-Fa-f]+\/[0-9A-Fa-f]+)/.exec(line);
    if (match !== null && Number(match[1]) === timeline) return parseLsn(match[2] ?? '');
  }
  return null;
}

export interface HistoryContext {
  /** Where the stream's progress is kept. */
  readonly target: Session;
  readonly side: Side;
  readonly direction: Direction;
  readonly slot: string;
  /** Up to where the stream was applied. */
  readonly position: bigint;
}

/**
 * Records where the stream is read from. `client`: a replication connection that streams nothing yet. Throws `slot-lost`
 * where what was applied is not in the server's log any more.
 */
export async function proveHistory(client: pg.Client, context: HistoryContext): Promise<void> {
  const { target, side, direction, slot, position } = context;
  const what = 'comparing the server’s timeline';
  const ask = async (text: string): Promise<TextRow | undefined> => {
    try {
      return (await client.query<TextRow>(text)).rows[0];
    } catch (error) {
      throw statementError(side, error, { what });
    }
  };
  const now = await ask('IDENTIFY_SYSTEM');
  const system = textOf(now, 'systemid');
  const timeline = Number(textOf(now, 'timeline'));
  const { rows } = await run(
    target,
    {
      text: 'SELECT system_id, timeline FROM understudy.stream_origin WHERE direction = $1',
      values: [direction],
    },
    { what },
  );
  const [known] = rows;
  if (known?.['system_id'] === system && Number(known['timeline']) === timeline) return;
  if (known !== undefined) {
    const before = Number(known['timeline']);
    const history = known['system_id'] === system ? await ask(`TIMELINE_HISTORY ${timeline}`) : undefined;
    const left = history === undefined ? null : leftAt(textOf(history, 'content'), before);
    if (left === null || left < position) {
      const was =
        left === null
          ? 'it is another cluster, or its history does not know the one that was followed'
          : `it left timeline ${before} at ${formatLsn(left)}, and ${formatLsn(position)} was applied`;
      throw new UnderstudyError(
        'slot-lost',
        `slot ${slot} on the ${side} tells another story since a failover: ${was}`,
        { advice: 'Nothing: another slot is made, and every table compared with the source and mended.' },
      );
    }
  }
  await run(
    target,
    {
      text: `INSERT INTO understudy.stream_origin (direction, system_id, timeline) VALUES ($1, $2, $3)
        ON CONFLICT (direction) DO UPDATE SET system_id = EXCLUDED.system_id, timeline = EXCLUDED.timeline`,
      values: [direction, system, String(timeline)],
    },
    { what },
  );
}

/**
 * Proves that the stream's target is the server that it was, and records which that is. One that took its place may lack what
 * was applied and acknowledged last, and with it the progress that would tell. Throws `slot-lost` then, and a retryable error
 * of a standby that is not promoted yet.
 */
export async function proveTarget(target: Session, direction: Direction): Promise<void> {
  const { side } = target;
  const what = `asking the ${side} for its timeline`;
  const { rows: now } = await run(
    target,
    `SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN NULL ELSE
       pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8) END AS timeline`,
    { what },
  );
  const timeline = now[0]?.['timeline'];
  if (timeline == null) {
    const code = side === 'source' ? 'source-unreachable' : 'destination-unreachable';
    throw new UnderstudyError(code, `the ${side} is a standby still: nothing can be written`, {
      retryable: true,
    });
  }
  const values = [targetKey(direction), String(Number.parseInt(timeline, 16))];
  const { rows } = await run(
    target,
    {
      text: `INSERT INTO understudy.stream_origin (direction, system_id, timeline) VALUES ($1, '', $2)
        ON CONFLICT (direction) DO UPDATE SET direction = EXCLUDED.direction
        RETURNING timeline`,
      values,
    },
    { what },
  );
  if (rows[0]?.['timeline'] === values[1]) return;
  throw new UnderstudyError(
    'slot-lost',
    `the ${side} is on timeline ${values[1]} since a failover: what was applied last may be gone`,
    { advice: 'Nothing: another slot is made, and every table compared and mended.' },
  );
}

function targetKey(direction: Direction): string {
  return `${direction} target`;
}

/** The stream begins anew, wherever it is read from then, and whoever is written to. */
export async function forgetHistory(target: Session, direction: Direction): Promise<void> {
  await run(
    target,
    {
      text: 'DELETE FROM understudy.stream_origin WHERE direction IN ($1, $2)',
      values: [direction, targetKey(direction)],
    },
    { what: 'forgetting where a stream was read from' },
  );
}
