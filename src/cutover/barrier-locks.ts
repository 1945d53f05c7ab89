/**
 * How a barrier's locks are taken, so that it is always the barrier that backs off, and who is in its way.
 *
 * Locks (SHARE ROW EXCLUSIVE, in one fixed order): one wait lasts at most `lockTimeoutMs`, one attempt less than the
 * deadlock_timeout under which applications run. So where the barrier's locks and an application's form a cycle, it is
 * always the barrier that backs off, and tries again until its deadline. Where the server lets us, our own
 * deadlock_timeout is shorter still: it makes our side notice a cycle first, and makes autovacuum, which yields only
 * once a waiter's deadlock_timeout has passed, yield to us.
 */
import { WHOLE_DATABASE, type SubsetId } from '../core/ports.js';
import type { Clock } from '../core/clock.js';
import { UnderstudyError, asUnderstudyError } from '../core/errors.js';
import { quoteLiteral } from '../core/postgres.js';
import { BARRIER_TRIGGER, SUBSET_SQL } from './barrier-names.js';
import { sqlStateOf, type Session } from './session.js';

/** Errors after which an attempt is made again: lock_not_available, deadlock_detected, our own statement_timeout. */
const TRY_AGAIN = new Set(['55P03', '40P01', '57014']);
const PAUSE_MIN_MS = 2;
const PAUSE_MAX_MS = 50;

export interface BarrierLimits {
  readonly clock: Clock;
  readonly signal: AbortSignal;
  /** One wait for one lock. */
  readonly lockTimeoutMs: number;
  /** All attempts together. */
  readonly timeoutMs: number;
}

/**
 * Runs `attempt` until it succeeds, is refused for another reason than a lock, or the deadline passes. `attempt` sends
 * the statements it is given first: they begin the transaction and bound its waits.
 */
export async function inBarrierTransaction<T>(
  session: Session,
  bounds: Bounds,
  limits: BarrierLimits,
  attempt: (begin: readonly string[]) => Promise<T>,
): Promise<T> {
  const { clock, signal } = limits;
  const deadline = clock.monotonicMs() + limits.timeoutMs;
  for (let pauseMs = PAUSE_MIN_MS; ; pauseMs = Math.min(pauseMs * 2, PAUSE_MAX_MS)) {
    signal.throwIfAborted();
    const leftMs = Math.max(1, Math.ceil(deadline - clock.monotonicMs()));
    try {
      return await attempt(beginSql(bounds, leftMs));
    } catch (error) {
      if (session.dead) throw error;
      await session.batch(['ROLLBACK']);
      if (!TRY_AGAIN.has(sqlStateOf(error) ?? '')) throw error;
      if (clock.monotonicMs() + pauseMs >= deadline) throw await timedOut(session, limits.timeoutMs, error);
      await clock.sleep(pauseMs, signal);
    }
  }
}

export interface Bounds {
  readonly lockTimeoutMs: number;
  readonly attemptMs: number;
}

/** Bounds from the deadlock_timeout that applications have here; see the header. */
export async function readBounds(session: Session, lockTimeoutMs: number): Promise<Bounds> {
  const found = await session.run(
    `SELECT reset_val AS ms FROM pg_catalog.pg_settings WHERE name = 'deadlock_timeout'`,
  );
  const attemptMs = Math.max(1, Math.floor(Number(found.rows[0]?.['ms'] ?? '1000') * 0.8));
  const lockMs = Math.max(1, Math.min(lockTimeoutMs, Math.floor(attemptMs / 2)));
  try {
    await session.run(`SET deadlock_timeout = ${Math.max(1, Math.floor(lockMs / 2))}`);
  } catch (error) {
    // insufficient_privilege: the lock timeout alone has to do, and autovacuum does not yield to it.
    if (sqlStateOf(error) !== '42501') throw error;
  }
  return { lockTimeoutMs: lockMs, attemptMs };
}

export function beginSql(bounds: Bounds, leftMs: number): readonly string[] {
  return [
    'BEGIN',
    `SET LOCAL lock_timeout = ${bounds.lockTimeoutMs}`,
    `SET LOCAL statement_timeout = ${Math.min(bounds.attemptMs, leftMs)}`,
    'SET LOCAL synchronous_commit = on',
  ];
}

/** Names who held the locks, by process and kind, never their statements' text. */
async function timedOut(session: Session, timeoutMs: number, cause: unknown): Promise<UnderstudyError> {
  const holders = await readLockHolders(session).catch(() => []);
  const names = holders.map((holder) => `process ${holder.pid} (${holder.kind}) on ${holder.table}`);
  const held = names.length === 0 ? '' : `; held by ${names.slice(0, 5).join(', ')}`;
  const wrapped = asUnderstudyError(cause, 'fence-timeout', 'locks');
  return new UnderstudyError(
    'fence-timeout',
    `${session.side}: the tables’ locks could not be had within ${timeoutMs} ms${held}`,
    {
      cause: wrapped,
      advice: 'Let those transactions end, or raise cutover.fenceTimeoutMs, and try again.',
      details: { holders },
    },
  );
}

export interface LockHolder {
  readonly table: string;
  readonly pid: number;
  /** pg_stat_activity.backend_type, and whether it is an anti-wraparound vacuum. */
  readonly kind: string;
  readonly mode: string;
}

/** Who holds a lock that a change of the barrier has to wait for, at this moment, on this side. */
export async function readLockHolders(
  session: Session,
  ...subsets: readonly SubsetId[]
): Promise<readonly LockHolder[]> {
  const named = subsets.map((each) => quoteLiteral(each === WHOLE_DATABASE ? '' : `${each}\\000`));
  const found = await session.run(
    `SELECT DISTINCT c.oid::regclass::text AS name, l.pid, l.mode,
            COALESCE(a.backend_type, 'prepared transaction')
              || CASE WHEN a.backend_type = 'autovacuum worker' AND a.query LIKE '%wraparound%'
                      THEN ', anti-wraparound' ELSE '' END AS kind
       FROM pg_catalog.pg_locks l
       JOIN pg_catalog.pg_class c ON c.oid = l.relation
       JOIN pg_catalog.pg_trigger t ON t.tgrelid = c.oid AND t.tgname = '${BARRIER_TRIGGER}'
       LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
      WHERE l.granted AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
        AND l.mode NOT IN ('AccessShareLock', 'RowShareLock', 'SIReadLock')
        AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()${named.length === 0 ? '' : ` AND ${SUBSET_SQL} IN (${named.join(', ')})`}
      ORDER BY 1, 2`,
  );
  return found.rows.map((row) => ({
    table: row['name'] ?? '',
    pid: Number(row['pid'] ?? '0'),
    kind: row['kind'] ?? '',
    mode: row['mode'] ?? '',
  }));
}
