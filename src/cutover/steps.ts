/**
 * The steps of a cutover and of a rollback: one table, read from top to bottom. `runner.ts` walks it.
 *
 * A step's `state` is journaled before the step acts; `done` is what the machine is told after. `undo` takes back what
 * the step may have done, also where it failed half-way; it is only called before the commit, after the abort has been
 * journaled, and must be safe to repeat.
 */
import type { OperationState, RecentVerifyReport, SequenceState, SubsetId } from '../core/ports.js';
import { UnderstudyError, asUnderstudyError, unreachable } from '../core/errors.js';
import { quoteTable } from '../core/postgres.js';
import { subsetIds } from '../core/subsets.js';
import { UNBOUND_SQL, commit, planBarrier } from './barrier.js';
import { assertSameCatalog } from './catalog.js';
import {
  lowerFence,
  lowerGuard,
  raiseFence,
  raiseGuard,
  readEpoch,
  reopenSource,
  stageGuard,
  type ChangeTarget,
  type FenceTarget,
} from './fence.js';
import { assertCommitted, commitSql, committedSql, type OperationMember } from './journal.js';
import type { OperationInput } from './machine.js';
import {
  abortable,
  alongOf,
  barrierLimits,
  followingTarget,
  found,
  leadingTarget,
  persist,
  subsetsOf,
  timedPart,
  type Operation,
} from './operation.js';
import { prepareSessions } from './preflight-sessions.js';
import { preflight, readFingerprint } from './preflight.js';
import { rehearse } from './rehearsal.js';
import {
  carrySequences,
  observedRate,
  readSequenceDefinitions,
  readSequences,
  setSequencesSql,
  type SequencePlan,
} from './sequences.js';
import type { Session } from './session.js';
import type { StepName } from './settings.js';

export interface Step {
  readonly name: StepName;
  readonly state: OperationState;
  readonly done?: OperationInput;
  /**
   * It may begin while its state is being journaled: it only reads, or waits for `found.journaled` before it acts. Else it
   * is begun when the state has been written.
   */
  readonly early?: true;
  readonly run: (operation: Operation) => Promise<void>;
  readonly undo?: (operation: Operation) => Promise<void>;
}

/** Up to the commit; all of it can be undone. */
export const STEPS_BEFORE_COMMIT: readonly Step[] = [
  { name: 'preflight', state: 'preflight', run: preflight },
  { name: 'prepare', state: 'preflight', done: 'checked', run: prepare, undo: discardWarm },
  { name: 'hold', state: 'holding', done: 'held', run: closeGate, undo: openGate },
  { name: 'fence', state: 'fencing', done: 'fenced', run: raise, undo: lower },
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

// ---------------------------------------------------------------------------------------------------------------
// The barrier

async function raise(operation: Operation): Promise<void> {
  const { kind, key, members, markId, from } = operation;
  const target = leadingTarget(operation);
  const raised = await (kind === 'cutover' ? raiseFence : raiseGuard)(target, members, markId);
  if (raised) return;
  throw new UnderstudyError(
    'journal-conflict',
    `the ${from}’s record forbids the barrier: another process acted at epoch ${key.epoch}`,
    { advice: 'Restart Understudy: it then reads the route anew.' },
  );
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

// ---------------------------------------------------------------------------------------------------------------
// Catching up and verifying

/** Behind the barrier nothing changes any more: wait for the mark, and meanwhile look whether all is as it was. */
async function catchUp(operation: Operation): Promise<void> {
  const { deps, direction, from, markId, signal } = operation;
  const sessions = found(operation, 'sessions');
  const timed = <T>(part: string, promise: Promise<T>): Promise<T> =>
    timedPart(operation, `catch-up.${part}`, promise);
  const marked = within(
    deps.settings.markTimeoutMs,
    'mark-timeout',
    `the ${direction} stream’s mark${operation.found.carriesUnlogged === true ? ', with the unlogged tables that are carried behind it,' : ''}`,
    signal,
    (limit) => deps.shadow.waitForMark(direction, markId, limit, subsetsOf(operation)),
  );
  // What was built is known since preflight: asking for it opens a connection, while clients wait.
  const built = found(operation, 'built');
  const catalogs = readFingerprint(operation, sessions.inspector).then((now) =>
    assertSameCatalog(from, built, now),
  );
  const definitions = found(operation, 'sequenceDefinitions');
  const states = Promise.all([
    readSequences(sessions.leading, definitions.leading),
    readSequences(sessions.following, definitions.following),
  ]);
  const [, , [onFrom, onTo]] = await abortable(
    Promise.all([timed('mark', marked), timed('catalog', catalogs), timed('sequences', states)]),
    signal,
  );

  const before = found(operation, 'sequences');
  const atMs = deps.clock.monotonicMs();
  const marginOf = (sequence: SequenceState): bigint => {
    const rate = observedRate(before, sequence, atMs);
    const least = BigInt(deps.settings.sequenceMargin);
    return rate > least ? rate : least;
  };
  operation.found.carried = carrySequences(onFrom, onTo, marginOf);
  for (const { schema, name, note } of operation.found.carried) {
    if (note === undefined) continue;
    operation.onFinding({
      severity: 'info',
      check: 'sequence-carried',
      side: operation.to,
      object: `${schema}.${name}`,
      message: note,
      advice: 'Nothing, unless clients take values from it past Understudy during a switch.',
    });
  }
}

async function within<T>(
  timeoutMs: number,
  code: 'mark-timeout',
  what: string,
  signal: AbortSignal,
  act: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const timeout = new AbortController();
  const reason = new UnderstudyError(code, `${what} was not reached within ${timeoutMs} ms`, {
    advice: 'Look at the stream’s lag in `understudy status`, and try again.',
  });
  const timer = setTimeout(() => timeout.abort(reason), timeoutMs);
  const limit = AbortSignal.any([signal, timeout.signal]);
  try {
    return await abortable(act(limit), limit);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Compares what changed since the last verification, and meanwhile takes the locks of the side that is to lead and
 * opens it in a transaction that is not committed yet. Only after the mark: applying needs those tables.
 */
async function verifyAndStage(operation: Operation): Promise<void> {
  const { deps, kind, key, members, signal, to } = operation;
  const verifying = verifyMembers(operation);
  const target = followingTarget(operation);
  const stage = async (): Promise<boolean> => {
    // Set first: whoever gives up meanwhile cuts the connection, and nothing is staged later.
    operation.found.staged = true;
    await operation.found.journaled;
    return await (kind === 'cutover'
      ? stageGuard(target, members)
      : reopenSource(target, members, 'stage', setSequencesSql(found(operation, 'carried'))));
  };
  const [report, staged] = await abortable(
    Promise.all([
      timedPart(operation, 'verify.compare', verifying),
      timedPart(operation, 'verify.stage', stage()),
    ]),
    signal,
  );
  deps.log.debug({ operation: key.id, keys: report.keys }, 'compared behind the gate');
  if (report.mismatches > 0) {
    const keys = report.differing.slice(0, 5).map((row) => `${row.table} ${row.key}`);
    throw new UnderstudyError(
      'verify-mismatch',
      `${report.mismatches} rows changed of late differ between the sides: ${keys.join(', ')}`,
      { advice: 'Run `understudy verify` for all of them.' },
    );
  }
  if (report.incomplete === true) {
    operation.onFinding({
      severity: 'info',
      check: 'verify-partial',
      side: to,
      object: subsetsOf(operation).join(', '),
      message: `${report.keys} rows changed of late were compared behind the gate; rows of tables without a key, or changes beyond what is remembered, were not`,
      advice: 'Run `understudy verify`, which compares every row beside live traffic.',
    });
  }
  if (!staged) {
    throw new UnderstudyError(
      'journal-conflict',
      `the ${to}’s record forbids opening it: another process acted`,
    );
  }
}

async function verifyMembers(operation: Operation): Promise<RecentVerifyReport> {
  const { deps, direction, members, signal } = operation;
  const everything = members.length === subsetIds(deps.subsets ?? []).length;
  const reports: RecentVerifyReport[] = [];
  // One pair of connections compares them.
  for (const subset of everything ? [undefined] : subsetsOf(operation))
    reports.push(await deps.shadow.verifyRecent(direction, signal, subset));
  return {
    keys: reports.reduce((sum, { keys }) => sum + keys, 0),
    mismatches: reports.reduce((sum, { mismatches }) => sum + mismatches, 0),
    differing: reports.flatMap(({ differing }) => differing),
    ...(reports.some(({ incomplete }) => incomplete === true) ? { incomplete: true } : {}),
  };
}

// ---------------------------------------------------------------------------------------------------------------
// The commit

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

// ---------------------------------------------------------------------------------------------------------------
// After the commit

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
    timedPart(operation, 'switch.foreign-keys', operation.settleKeys()),
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
