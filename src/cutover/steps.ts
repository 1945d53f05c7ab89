/**
 * The steps of a cutover and of a rollback: one table, read from top to bottom. `runner.ts` walks it.
 *
 * A step's `state` is journaled before the step acts; `done` is what the machine is told after. `undo` takes back what
 * the step may have done, also where it failed half-way; it is only called before the commit, after the abort has been
 * journaled, and must be safe to repeat.
 */
import type { OperationState, SubsetId } from '../core/ports.js';
import { UnderstudyError, asUnderstudyError, unreachable } from '../core/errors.js';
import { quoteTable } from '../core/postgres.js';
import { UNBOUND_SQL, commit, planBarrier } from './barrier.js';
import { catchUp, verifyAndStage } from './behind-fence.js';
import {
  lowerFence,
  lowerGuard,
  raiseFence,
  raiseGuard,
  readEpoch,
  reopenSource,
  type ChangeTarget,
  type FenceTarget,
} from './fence.js';
import { assertCommitted, commitSql, committedSql, type OperationMember } from './journal.js';
import type { OperationInput } from './machine.js';
import {
  alongOf,
  barrierLimits,
  found,
  leadingTarget,
  persist,
  timedPart,
  type Operation,
} from './operation.js';
import { prepareSessions } from './preflight-sessions.js';
import { preflight } from './preflight.js';
import { rehearse } from './rehearsal.js';
import { readSequenceDefinitions, setSequencesSql, type SequencePlan } from './sequences.js';
import type { Session } from './session.js';
import type { StepName } from './settings.js';

export interface Step {
  readonly name: StepName;
  readonly state: OperationState;
  readonly done?: OperationInput;
  /**
   * It may begin while its state is being journaled: it only reads, waits, or does what is undone with its connection
   * until `found.journaled` resolves. Else it is begun when the state has been written.
   */
  readonly early?: true;
  /** Waited for in front of it, with nothing closed yet; not part of its time. */
  readonly ready?: (operation: Operation) => Promise<void>;
  readonly run: (operation: Operation) => Promise<void>;
  readonly undo?: (operation: Operation) => Promise<void>;
}

/** Up to the commit; all of it can be undone. */
export const STEPS_BEFORE_COMMIT: readonly Step[] = [
  { name: 'preflight', state: 'preflight', run: preflight },
  { name: 'prepare', state: 'preflight', done: 'checked', run: prepare, undo: discardWarm },
  { name: 'hold', state: 'holding', done: 'held', ready: quietMoment, run: closeGate, undo: openGate },
  { name: 'fence', state: 'fencing', done: 'fenced', early: true, run: raise, undo: lower },
  { name: 'catch-up', state: 'catching-up', done: 'caught-up', early: true, run: catchUp },
  { name: 'verify', state: 'verifying', early: true, run: verifyAndStage },
];

/** From the commit on; each is repeated until it succeeds. */
export const STEPS_AFTER_COMMIT: readonly Step[] = [
  { name: 'open', state: 'committed', done: 'opened', run: open },
  { name: 'switch', state: 'switching', done: 'switched', run: switchSessions },
  { name: 'release', state: 'releasing', run: release },
];

async function prepare(operation: Operation): Promise<void> {
  await prepareSessions(operation);
  if (!operation.dryRun) await rehearse(operation);
}

async function discardWarm({ deps }: Operation): Promise<void> {
  deps.traffic.discardWarm(deps.subset);
  await Promise.resolve();
}

async function quietMoment(operation: Operation): Promise<void> {
  const { deps, signal } = operation;
  const { traffic, settings } = deps;
  if (settings.quietWaitMs === 0 || traffic.untilQuiet === undefined) return;
  await timedPart(operation, 'prepare.quiet', traffic.untilQuiet(settings.quietWaitMs, signal));
}

async function closeGate(operation: Operation): Promise<void> {
  const { deps, to, signal } = operation;
  const { drainTimeoutMs, onDrainTimeout, onPinned } = deps.settings;
  const options = { drainTimeoutMs, onDrainTimeout, onPinned, signal };
  const { drainMs, refreshMs } = await deps.traffic.hold(deps.subset, to, options, alongOf(operation));
  Object.assign(operation.parts, { 'hold.drain': drainMs, 'hold.ask': refreshMs });
}

async function openGate(operation: Operation): Promise<void> {
  const { deps } = operation;
  operation.found.stall = await deps.traffic.release(deps.subset);
}

async function raise(operation: Operation): Promise<void> {
  const { kind, key, members, markId, from } = operation;
  // The guard asks its own server's journal.
  if (kind === 'rollback') await operation.found.journaled;
  const raised =
    kind === 'cutover'
      ? await raiseJournaled(operation, found(operation, 'journaled'))
      : await raiseGuard(leadingTarget(operation), members, markId);
  if (raised) return;
  throw new UnderstudyError(
    'journal-conflict',
    `the ${from}’s record forbids the barrier: another process acted at epoch ${key.epoch}`,
    { advice: 'Restart Understudy: it then reads the route anew.' },
  );
}

/** Locks the tables while its state is on its way to the journal, and commits once it is there. */
async function raiseJournaled(operation: Operation, journaled: Promise<void>): Promise<boolean> {
  const target = leadingTarget(operation);
  // It must not be tried again either.
  const refused = new AbortController();
  journaled.catch((error: unknown) => refused.abort(error));
  const limits = { ...target.limits, signal: AbortSignal.any([target.limits.signal, refused.signal]) };
  return await raiseFence({ ...target, limits }, operation.members, operation.markId, journaled);
}

/** On the connection that raised it, whose statements come after those of the raising; on a new one where it is dead. */
async function lower(operation: Operation): Promise<void> {
  const { deps, connections, kind, from, members, closing, found: known } = operation;
  const own = known.sessions?.leading;
  const reusable = own !== undefined && !own.dead;
  const session = reusable
    ? own
    : await connections.open(from, `${kind} undo`, { answerTimeoutMs: deps.settings.fenceTimeoutMs * 2 });
  try {
    // One at a time: another process may have undone some of them.
    for (const { subset, key } of members) {
      const plan =
        (reusable && members.length === 1 ? known.leadingPlan : undefined) ??
        (await planBarrier(session, deps.settings.lockTimeoutMs, subset));
      const target: FenceTarget = { session, plan, subset, limits: barrierLimits(deps, closing) };
      await (kind === 'cutover' ? lowerFence(target, key) : lowerGuard(target));
    }
  } finally {
    if (!reusable) await session.end();
  }
}

/** The session whose COMMIT is the point of no return. */
export function committingSession(operation: Operation): Session {
  const sessions = found(operation, 'sessions');
  return operation.kind === 'cutover' ? sessions.following : sessions.journal;
}

/**
 * Everything of the commit but COMMIT itself. The compare-and-swap takes the operation's row: from here on an abort
 * waits, and so a sequence is never set by a process that was overruled.
 */
export async function prepareCommit(operation: Operation): Promise<void> {
  const { kind, members, to } = operation;
  const sequences =
    kind === 'cutover' ? setSequencesSql(found(operation, 'carried'), committedSql(members)) : [];
  const begin = kind === 'cutover' ? [UNBOUND_SQL] : ['BEGIN', 'SET LOCAL synchronous_commit = on'];
  const answers = await committingSession(operation).batch([
    ...begin,
    ...commitSql(members, to),
    ...sequences,
  ]);
  const counts = answers.slice(begin.length).map((answer) => answer.count);
  assertCommitted(members, counts);
}

/** Takes back the transactions that were not committed, whatever state their connections are in. */
export async function discardStaged(operation: Operation): Promise<void> {
  const { sessions, staged } = operation.found;
  if (sessions === undefined) return;
  if (staged === true) sessions.following.destroy();
  // May hold the operation's row, for which the abort would wait.
  if (operation.kind === 'rollback') sessions.journal.destroy();
  await Promise.resolve();
}

/** Cutover: the commit itself opened the destination. Rollback: the source is on another server, and opens now. */
async function open(operation: Operation): Promise<void> {
  switch (operation.kind) {
    case 'cutover':
      return;
    case 'rollback':
      await openSource(operation);
      return;
    default:
      unreachable(operation.kind);
  }
}

async function openSource(operation: Operation): Promise<void> {
  const { deps, connections, members, closing, kind } = operation;
  const { following } = found(operation, 'sessions');
  try {
    if (!following.dead) {
      await commit(following);
      return;
    }
  } catch (error) {
    const { code, message } = asUnderstudyError(error, 'internal', 'opening the source');
    deps.log.warn({ code, reason: message }, 'the staged transaction was lost; the source is opened anew');
    following.destroy();
  }
  const session = await connections.open('source', `${kind} open`, {
    answerTimeoutMs: deps.settings.fenceTimeoutMs * 2,
  });
  try {
    // One at a time: a recovery may have opened some of them.
    for (const member of members) await reopen(operation, session, member, closing);
  } finally {
    await session.end();
  }
}

async function reopen(
  operation: Operation,
  session: Session,
  member: OperationMember,
  closing: AbortSignal,
): Promise<void> {
  const { deps, members } = operation;
  const { subset, key } = member;
  const plan = await planBarrier(session, deps.settings.lockTimeoutMs, subset);
  const target: ChangeTarget = { session, plan, limits: barrierLimits(deps, closing) };
  const carried = found(operation, 'carried');
  const own = members.length === 1 ? carried : await sequencesOf(session, subset, carried);
  if (await reopenSource(target, [member], 'commit', setSequencesSql(own))) return;
  const record = await readEpoch(session, subset);
  if (record?.fenced === false && record.epoch === key.epoch + 1) return;
  throw new UnderstudyError('journal-conflict', `the source’s fence is not the one of epoch ${key.epoch}`);
}

/** What was carried to the subset's own sequences: those of one that is open may have gone on. */
async function sequencesOf(
  session: Session,
  subset: SubsetId,
  carried: readonly SequencePlan[],
): Promise<readonly SequencePlan[]> {
  const own = new Set((await readSequenceDefinitions(session, subset)).map((each) => quoteTable(each)));
  return carried.filter((plan) => own.has(quoteTable(plan)));
}

async function switchSessions(operation: Operation): Promise<void> {
  const { deps, to, key, members } = operation;
  const [, ...along] = members.map((member) => ({
    subset: member.subset,
    route: { side: to, epoch: member.key.epoch + 1 },
  }));
  const [report, left] = await Promise.all([
    deps.traffic.switchTo(deps.subset, { side: to, epoch: key.epoch + 1 }, along),
    operation.settleKeys === undefined
      ? []
      : timedPart(operation, 'switch.foreign-keys', operation.settleKeys()),
  ]);
  for (const finding of left) operation.onFinding(finding);
  operation.found.moved = report.moved;
  operation.found.closed = report.closed;
}

async function release(operation: Operation): Promise<void> {
  const { deps } = operation;
  operation.found.stall = await deps.traffic.release(deps.subset);
}

/** Repeats a step that must succeed, and answers the clients that wait for it once it takes too long. */
export function insist(
  operation: Operation,
  what: string,
  failHeld: { readonly sqlState: string; readonly message: string },
  act: () => Promise<void>,
): Promise<void> {
  const { deps, closing } = operation;
  let failedAtMs = 0;
  return persist(deps, closing, what, act, (elapsedMs) => {
    if (elapsedMs - failedAtMs < deps.settings.inDoubtTimeoutMs) return;
    failedAtMs = elapsedMs;
    deps.traffic.failHeld(deps.subset, failHeld.sqlState, failHeld.message);
  });
}
