/**
 * The changes of the barrier that operations and recoveries make, each with the claim that makes it safe.
 *
 * source, record `understudy.epoch` (locked first, so that processes act one after another):
 *   arm     not fenced, epoch N                         → armed for this operation, in its preflight
 *   fence   not fenced, epoch N, armed for it           → fenced, epoch N + 1, by this operation
 *   unfence fenced by this operation                    → not fenced, epoch N; it is disarmed before, so that a fence of
 *                                                         its own still on its way finds itself refused
 *   reopen  fenced, epoch N                             → not fenced, epoch N + 1; its log is told who leads
 * destination, record: the journal (the route's row locked first, then compared in a statement of its own, whose
 * snapshot is taken after the lock):
 *   guard   the operation is `fencing`
 *   unguard the destination leads and no operation is open
 *   cover   the source leads and no operation is open
 *
 * Of an operation on several subsets, raising and staging claim every one of its records, in one transaction: all of them
 * change or none does. What undoes or settles takes one subset at a time, as a recovery does, which may have been before it.
 */
import type { SubsetId } from '../core/ports.js';
import { UnderstudyError } from '../core/errors.js';
import { emitMessageSql, quoteLiteral } from '../core/postgres.js';
import {
  changeBarrier,
  readBarrier,
  type BarrierChange,
  type BarrierPlan,
  type BarrierReason,
} from './barrier.js';
import type { BarrierLimits } from './barrier-locks.js';
import type { OperationKey, OperationMember } from './journal.js';
import { FINAL } from './machine.js';
import type { Session } from './session.js';

/** The source's record of its own barrier. */
export interface EpochRecord {
  readonly epoch: number;
  readonly fenced: boolean;
  readonly operation: string | null;
  readonly armed: string | null;
  readonly retired: boolean;
}

/** Null where Understudy never was on this source. */
export async function readEpoch(session: Session, subset: SubsetId): Promise<EpochRecord | null> {
  const exists = await session.run(`SELECT pg_catalog.to_regclass('understudy.epoch') IS NOT NULL AS found`);
  if (exists.rows[0]?.['found'] !== 't') return null;
  const found = await session.run(
    'SELECT epoch, fenced, operation, armed, retired FROM understudy.epoch WHERE subset = $1',
    [subset],
  );
  const row = found.rows[0];
  if (row === undefined) return null;
  return {
    epoch: Number(row['epoch']),
    fenced: row['fenced'] === 't',
    operation: row['operation'] ?? null,
    armed: row['armed'] ?? null,
    retired: row['retired'] === 't',
  };
}

/** Subsets that are fenced and that are none of `known`: they were configured otherwise when they were switched. */
export async function readUnknownFenced(
  session: Session,
  known: readonly SubsetId[],
): Promise<readonly SubsetId[]> {
  const exists = await session.run(`SELECT pg_catalog.to_regclass('understudy.epoch') IS NOT NULL AS found`);
  if (exists.rows[0]?.['found'] !== 't') return [];
  const found = await session.run('SELECT subset FROM understudy.epoch WHERE fenced ORDER BY subset');
  return found.rows.map((row) => row['subset'] ?? '').filter((subset) => !known.includes(subset));
}

export interface ChangeTarget {
  readonly session: Session;
  readonly plan: BarrierPlan;
  readonly limits: BarrierLimits;
}

/** Of one subset. */
export interface FenceTarget extends ChangeTarget {
  readonly subset: SubsetId;
}

/**
 * Lets the operation, and it alone, raise the source's fence. Its answer must have come before a fence is sent: of an
 * operation's arming and its fence at most one can then be late, and neither does anything alone. False where the
 * record is not at the operation's epoch.
 */
export async function armFence(session: Session, subset: SubsetId, key: OperationKey): Promise<boolean> {
  const armed = await session.run(
    `UPDATE understudy.epoch SET armed = $1 WHERE subset = $2 AND epoch = $3 AND NOT fenced AND NOT retired`,
    [key.id, subset, key.epoch],
  );
  return armed.count === 1;
}

/** From its answer on, no fence of the operation can be raised. */
export async function disarmFence(session: Session, subset: SubsetId, operation: string): Promise<void> {
  await session.run(`UPDATE understudy.epoch SET armed = NULL WHERE subset = $1 AND armed = $2`, [
    subset,
    operation,
  ]);
}

/**
 * Raises the source's fence and emits the mark, in one transaction, committed once `mayCommit` resolves. False where a
 * record forbids it.
 */
export function raiseFence(
  { session, plan, limits }: ChangeTarget,
  members: readonly OperationMember[],
  markId: string,
  mayCommit?: Promise<unknown>,
): Promise<boolean> {
  const change = fenceChange(members, markId);
  return changeBarrier(session, plan, mayCommit === undefined ? change : { ...change, mayCommit }, limits);
}

export function fenceChange(members: readonly OperationMember[], markId: string): BarrierChange {
  return {
    raise: true,
    reason: reasonFor(members),
    claims: members.length,
    claimSql: members.map(
      ({ subset, key }) =>
        `UPDATE understudy.epoch SET fenced = true, epoch = ${key.epoch + 1}, operation = ${quoteLiteral(key.id)},
         updated_at = pg_catalog.clock_timestamp()
        WHERE subset = ${quoteLiteral(subset)} AND epoch = ${key.epoch} AND NOT fenced AND NOT retired
          AND armed = ${quoteLiteral(key.id)}`,
    ),
    alsoSql: [emitMessageSql({ t: 'mark', id: markId })],
    end: 'commit',
  };
}

/**
 * Lowers the fence if `key`'s operation raised it, and sees to it that it can't raise it later. Its abort must have been
 * journaled. False where no fence of that operation stood.
 */
export async function lowerFence(
  target: FenceTarget,
  key: Pick<OperationKey, 'id' | 'epoch'>,
): Promise<boolean> {
  const { session, plan, subset, limits } = target;
  await disarmFence(session, subset, key.id);
  return await changeBarrier(
    session,
    plan,
    {
      raise: false,
      reason: null,
      claimSql: [
        `UPDATE understudy.epoch SET fenced = false, epoch = ${key.epoch}, updated_at = pg_catalog.clock_timestamp()
          WHERE subset = ${quoteLiteral(subset)} AND fenced AND operation = ${quoteLiteral(key.id)}`,
      ],
      alsoSql: [],
      end: 'commit',
    },
    limits,
  );
}

/**
 * Lowers the source's fence for good, after a rollback whose commit stands in the journal, and tells the source's log
 * that it leads. `alsoSql` runs under the record's lock; staged, it must ask {@link reopenedSql} for what a rollback
 * doesn't undo. False where the source was open already.
 */
export function reopenSource(
  { session, plan, limits }: ChangeTarget,
  members: readonly OperationMember[],
  end: 'commit' | 'stage',
  alsoSql: readonly string[],
): Promise<boolean> {
  return changeBarrier(session, plan, reopenChange(members, end, alsoSql), limits);
}

export function reopenChange(
  members: readonly OperationMember[],
  end: 'commit' | 'stage',
  alsoSql: readonly string[],
): BarrierChange {
  return {
    raise: false,
    reason: null,
    claims: members.length,
    claimSql: members.map(
      ({ subset, key }) =>
        `UPDATE understudy.epoch SET fenced = false, epoch = ${key.epoch + 1}, operation = ${quoteLiteral(key.id)},
         updated_at = pg_catalog.clock_timestamp()
        WHERE subset = ${quoteLiteral(subset)} AND fenced AND epoch = ${key.epoch} AND NOT retired`,
    ),
    alsoSql: [
      ...alsoSql,
      ...members.map(({ subset, key }) =>
        emitMessageSql({ t: 'route', subset, epoch: key.epoch + 1, side: 'source' }),
      ),
    ],
    end,
  };
}

/** True within the transaction of {@link reopenSource} if every one of its records was changed. */
export function reopenedSql(members: readonly OperationMember[]): string {
  const records = members.map(
    ({ subset, key }) => `(${quoteLiteral(subset)}, ${key.epoch + 1}, ${quoteLiteral(key.id)})`,
  );
  return `${members.length} = (SELECT pg_catalog.count(*) FROM understudy.epoch
     WHERE (subset, epoch, operation) IN (${records.join(', ')}) AND NOT fenced)`;
}

/** Raises the destination's guard for a rollback and emits the mark. False where the operation isn't `fencing` any more. */
export function raiseGuard(
  { session, plan, limits }: ChangeTarget,
  members: readonly OperationMember[],
  markId: string,
): Promise<boolean> {
  return changeBarrier(session, plan, guardChange(members, markId), limits);
}

export function guardChange(members: readonly OperationMember[], markId: string): BarrierChange {
  return {
    raise: true,
    reason: reasonFor(members),
    claims: members.length,
    claimSql: [
      ...members.map(({ subset }) => lockRouteSql(subset)),
      ...members.map(
        ({ key }) =>
          `SELECT FROM understudy.operation WHERE id = ${quoteLiteral(key.id)} AND attempt = ${quoteLiteral(key.attempt)}
          AND epoch = ${key.epoch} AND state = 'fencing' FOR UPDATE`,
      ),
    ],
    alsoSql: [emitMessageSql({ t: 'mark', id: markId })],
    end: 'commit',
  };
}

/**
 * Lowers the destination's guard, if it is up, while the destination leads and nothing is going on. False where that
 * isn't so. A rollback's abort that is in the journal leaves no raising of its own under way: both lock its row.
 */
export async function lowerGuard(target: FenceTarget): Promise<boolean> {
  // A guard that never rose, because somebody held a table, must not have to wait for that table to be lowered.
  const triggers = await readBarrier(target.session, target.subset);
  if (!triggers.some((trigger) => trigger.raised)) return true;
  return await settleGuard(target, 'destination');
}

/** Raises the destination's guard while the source leads and nothing is going on. False where that isn't so. */
export function coverDestination(target: FenceTarget): Promise<boolean> {
  return settleGuard(target, 'source');
}

function settleGuard(target: FenceTarget, leader: 'source' | 'destination'): Promise<boolean> {
  const { session, plan, subset, limits } = target;
  const open = FINAL.map((state) => quoteLiteral(state)).join(', ');
  return changeBarrier(
    session,
    plan,
    {
      raise: leader === 'source',
      reason: null,
      claimSql: [
        lockRouteSql(subset),
        `SELECT FROM understudy.route r WHERE subset = ${quoteLiteral(subset)} AND side = '${leader}'
            AND NOT EXISTS (SELECT FROM understudy.operation o WHERE o.subset = r.subset AND o.state NOT IN (${open}))`,
      ],
      alsoSql: [],
      end: 'commit',
    },
    limits,
  );
}

/** Raises what is missing of a fence that stands on some tables only. False where the record says that none stands. */
export function completeFence(target: FenceTarget, epoch: number): Promise<boolean> {
  const { session, plan, subset, limits } = target;
  return changeBarrier(
    session,
    plan,
    {
      raise: true,
      reason: { operation: 'of a former cutover', epoch },
      claimSql: [
        `SELECT FROM understudy.epoch WHERE subset = ${quoteLiteral(subset)} AND fenced AND epoch = ${epoch} FOR UPDATE`,
      ],
      alsoSql: [],
      end: 'commit',
    },
    limits,
  );
}

/**
 * The recorded human decision that the destination is gone for good: the source leads again, at an epoch that no journal
 * of that destination can have reached. Returns the epoch. What was written to the destination alone is lost.
 */
export async function abandonDestination(target: FenceTarget, note: string): Promise<number> {
  const { session, plan, subset, limits } = target;
  const record = await readEpoch(session, subset);
  if (record === null || record.retired) {
    throw new UnderstudyError('not-cut-over', 'the source has no fence that could be lifted');
  }
  // The journal is at most one beyond the fence: a rollback that had committed and not yet reopened the source.
  const epoch = record.epoch + 2;
  const lowered = await changeBarrier(
    session,
    plan,
    {
      raise: false,
      reason: null,
      claimSql: [
        `UPDATE understudy.epoch SET fenced = false, epoch = ${epoch}, operation = NULL, note = ${quoteLiteral(note)},
           updated_at = pg_catalog.clock_timestamp()
          WHERE subset = ${quoteLiteral(subset)} AND fenced AND NOT retired AND epoch = ${record.epoch}`,
      ],
      alsoSql: [emitMessageSql({ t: 'route', subset, epoch, side: 'source' })],
      end: 'commit',
    },
    limits,
  );
  if (!lowered) throw new UnderstudyError('not-cut-over', 'the source has no fence that could be lifted');
  return epoch;
}

/** Said where there is one for all that the barrier covers. */
function reasonFor(members: readonly OperationMember[]): BarrierReason | null {
  const [only, other] = members;
  if (only === undefined || other !== undefined) return null;
  return { operation: only.key.id, epoch: only.key.epoch + 1 };
}

function lockRouteSql(subset: SubsetId): string {
  return `SELECT FROM understudy.route WHERE subset = ${quoteLiteral(subset)} FOR UPDATE`;
}

/**
 * Lowers the guard in the transaction that is to commit a cutover, and leaves it open for the commit's statements; takes
 * the tables' locks, so that nothing is left to wait for at the commit. Its state may still be on its way to `verifying`,
 * which the commit asks for. False where the operation was ended.
 */
export function stageGuard(
  { session, plan, limits }: ChangeTarget,
  members: readonly OperationMember[],
): Promise<boolean> {
  return changeBarrier(session, plan, stageChange(members), limits);
}

export function stageChange(members: readonly OperationMember[]): BarrierChange {
  return {
    raise: false,
    reason: null,
    claims: members.length,
    // Not locked here: an abort must be able to overtake until the commit itself.
    claimSql: members.map(
      ({ key }) =>
        `SELECT FROM understudy.operation WHERE id = ${quoteLiteral(key.id)} AND attempt = ${quoteLiteral(key.attempt)}
          AND epoch = ${key.epoch} AND state IN ('catching-up', 'verifying')`,
    ),
    alsoSql: [],
    end: 'stage',
  };
}
