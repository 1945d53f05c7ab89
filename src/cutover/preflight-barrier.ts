/** Whether the barriers are there and as they should be, and who would be in the way of changing them. */
import type { Finding, Side } from '../core/ports.js';
import { barrierState, readBarrier, tablesOn, withoutBarrier } from './barrier.js';
import { readLockHolders, type LockHolder } from './barrier-locks.js';
import { found, subsetsOf, type Operation } from './operation.js';
import type { Session } from './session.js';

const LOCK_POLL_MS = 20;
const LOCK_GRACE_MS = 500;

export async function barrierFindings(
  operation: Operation,
  side: Side,
  session: Session,
): Promise<readonly Finding[]> {
  const triggers = await readBarrier(session, ...subsetsOf(operation));
  const findings: Finding[] = withoutBarrier(tablesOn(side, found(operation, 'tables')), triggers).map(
    (table) => ({
      severity: 'blocker',
      check: 'barrier-missing',
      side,
      object: `${table.schema}.${table.name}`,
      message: 'has no barrier, so writes to it could not be refused',
      advice: 'Restart Understudy: it installs the barrier on every table it follows.',
    }),
  );
  const wanted = side === operation.from ? 'lowered' : 'raised';
  const state = barrierState(triggers);
  const none = found(operation, 'tables').length === 0 && state === 'absent';
  if (state !== wanted && findings.length === 0 && !none) {
    findings.push({
      severity: 'blocker',
      check: 'barrier-state',
      side,
      object: side === 'source' ? 'fence' : 'guard',
      message: `is ${state}, and should be ${wanted}`,
      advice: 'Restart Understudy: it puts the barriers right before it serves.',
    });
  }
  for (const holder of await lastingHolders(operation, session)) {
    // Plain autovacuum yields to the barrier; everything else here would be waited for.
    const yields = holder.kind === 'autovacuum worker';
    findings.push({
      severity: yields ? 'info' : 'blocker',
      check: 'lock-held',
      side,
      object: holder.table,
      message: `process ${holder.pid} (${holder.kind}) holds ${holder.mode}`,
      advice: yields
        ? 'Nothing: it yields.'
        : `Let process ${holder.pid} end: VACUUM, CREATE INDEX, ALTER TABLE.`,
    });
  }
  return findings;
}

/** Who holds more than a writer's lock, and still does after a moment; writers are waited for by the barrier itself. */
async function lastingHolders(operation: Operation, session: Session): Promise<readonly LockHolder[]> {
  const { clock } = operation.deps;
  const deadline = clock.monotonicMs() + LOCK_GRACE_MS;
  for (;;) {
    const holders = (await readLockHolders(session, ...subsetsOf(operation))).filter(
      (each) => each.mode !== 'RowExclusiveLock',
    );
    const waited = holders.every((each) => each.kind === 'autovacuum worker');
    if (waited || clock.monotonicMs() >= deadline) return holders;
    await clock.sleep(LOCK_POLL_MS, operation.signal);
  }
}

/** The barrier locks all tables in one transaction; the lock table must have room for that. */
export async function lockRoomFindings(operation: Operation, session: Session): Promise<readonly Finding[]> {
  const sized = await session.run(
    `SELECT pg_catalog.current_setting('max_locks_per_transaction')::bigint
          * (pg_catalog.current_setting('max_connections')::bigint
             + pg_catalog.current_setting('max_prepared_transactions')::bigint) AS room`,
  );
  const room = Number(sized.rows[0]?.['room'] ?? '0');
  const tables = found(operation, 'tables').length;
  if (tables * 4 < room) return [];
  return [
    {
      severity: 'blocker',
      check: 'lock-room',
      side: session.side,
      object: 'max_locks_per_transaction',
      message: `locking ${tables} tables at once could exhaust the lock table, which has room for ${room}`,
      advice: `Raise max_locks_per_transaction so that it holds ${tables * 4} locks, and restart the server.`,
    },
  ];
}
