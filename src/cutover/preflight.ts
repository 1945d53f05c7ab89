/**
 * What must hold before a gate may close. No effect a client could see.
 *
 * Slow things first (reverse stream, statistics, verification), then what may change at any moment, sessions last. What
 * can be asked again cheaply is asked again under the barrier: the catalogs, the rows changed since the verification.
 */
import {
  WHOLE_DATABASE,
  type CatalogFingerprint,
  type Finding,
  type SequenceState,
  type ShadowStatus,
  type Side,
  type StreamStatus,
  type SubsetId,
} from '../core/ports.js';
import { UnderstudyError } from '../core/errors.js';
import { quoteTable } from '../core/postgres.js';
import { subsetIds } from '../core/subsets.js';
import { planBarrier, tablesOn, type BarrierPlan } from './barrier.js';
import { assertSameCatalog } from './catalog.js';
import { armFence } from './fence.js';
import type { OperationMember } from './journal.js';
import { abortable, found, subsetsOf, type Operation, type OperationSessions } from './operation.js';
import { barrierFindings, lockRoomFindings } from './preflight-barrier.js';
import { readOtherProxies, type LiveProxy } from './registration.js';
import {
  carrySequences,
  readSequenceDefinitions,
  readSequences,
  sample,
  type SequenceDefinition,
} from './sequences.js';
import type { Session } from './session.js';

const LAG_POLL_MS = 20;
const OTHER_PROXY_GRACE_MS = 500;
/** Of the time that clients may wait at most; the rest is for everything else behind the gate. */
const EXACT_SHARE_MAX = 0.7;

/** Runs all checks, opens the connections, leaves plans and samples in `operation.found`. */
export async function preflight(operation: Operation): Promise<void> {
  const { deps, kind, direction, to, signal, dryRun } = operation;
  const { shadow } = deps;
  const findings = [
    ...operation.announced,
    ...routingFindings(operation),
    ...atStake(operation, await abortable(deps.inspect(signal), signal)),
  ];
  for (const finding of findings) operation.onFinding(finding);
  throwBlocked(findings);

  await streamStatus(operation);
  if (kind === 'cutover') await abortable(shadow.prepareReverse(signal), signal);
  const exact = { direction, subsets: subsetsOf(operation), limitMs: exactBudgetMs(operation) };
  await abortable(shadow.measureExact(exact, signal), signal);
  const both = await abortable(shadow.status(), signal);
  for (const each of kind === 'cutover' ? (['forward', 'reverse'] as const) : (['reverse'] as const)) {
    assertConnected(both, each);
  }
  await abortable(shadow.analyze(to, signal), signal);
  const members = subsetsOf(operation).map((subset) => shadow.tables(wholeOr(subset)));
  operation.found.tables = (await abortable(Promise.all(members), signal)).flat();
  await verified(operation, both);

  const sessions = await openSessions(operation);
  operation.found.sessions = sessions;
  const late = await lateFindings(operation, sessions);
  for (const finding of late) operation.onFinding(finding);
  throwBlocked(late);
  await assertCatalogs(operation, sessions);
  await planBoth(operation, sessions);
  await smallLag(operation);
  if (kind === 'cutover' && !dryRun) await arm(operation, sessions);
  deps.log.debug({ operation: operation.key.id, direction, dryRun }, 'preflight passed');
}

function wholeOr(subset: SubsetId): SubsetId | undefined {
  return subset === WHOLE_DATABASE ? undefined : subset;
}

/**
 * While the sides lead different subsets, every statement has to find its own, and is read for that. What a reader misses
 * no barrier catches where it only reads: that is for the operator to accept. The way back is never refused for it.
 */
function routingFindings(operation: Operation): readonly Finding[] {
  const { deps, kind, to } = operation;
  if (deps.subset === WHOLE_DATABASE) return [];
  const switched = subsetsOf(operation);
  if (deps.routesSubsets === true) {
    const others = subsetIds(deps.subsets ?? []).filter((each) => !switched.includes(each));
    const parts = kind === 'cutover' && others.some((each) => deps.traffic.route(each).side !== to);
    if (!parts || deps.settings.parting === 'accept') return [];
    return [
      {
        severity: 'blocker',
        check: 'subset-parting',
        side: 'proxy',
        object: switched.join(', '),
        message:
          'other subsets would stay on the source: each statement is then read to find its side, and what can’t be read off it would read the side that does not lead',
        advice:
          'Read docs/subsets.md, “What is not seen”, and say cutover.parting: accept; or take `subsets` out of the configuration to switch the whole database.',
      },
    ];
  }
  return [
    {
      severity: 'blocker',
      check: 'subset-routing-missing',
      side: 'proxy',
      object: deps.subset,
      message: 'statements can’t be routed to two sides yet, so no subset can be switched alone',
      advice: 'Take `subsets` out of the configuration to switch the whole database.',
    },
  ];
}

/** What is said of keys that can't be left out stops nobody who brings all subsets to one side. */
const OF_PARTED_KEYS = new Set(['subset-foreign-key-acts', 'subset-foreign-key-partitioned']);

function atStake(operation: Operation, findings: readonly Finding[]): readonly Finding[] {
  const { deps, to } = operation;
  const switched = subsetsOf(operation);
  const whole = subsetIds(deps.subsets ?? []).every(
    (each) => switched.includes(each) || deps.traffic.route(each).side === to,
  );
  if (!whole) return findings;
  return findings.map((each) => (OF_PARTED_KEYS.has(each.check) ? { ...each, severity: 'warning' } : each));
}

async function arm({ members, from }: Operation, sessions: OperationSessions): Promise<void> {
  for (const member of members) await armMember(member, from, sessions);
}

async function armMember(
  { subset, key }: OperationMember,
  from: Side,
  sessions: OperationSessions,
): Promise<void> {
  if (await armFence(sessions.leading, subset, key)) return;
  throw new UnderstudyError('journal-conflict', `the ${from}’s record is not at epoch ${key.epoch}`, {
    advice: 'Restart Understudy: it then reads the route anew.',
  });
}

function throwBlocked(findings: readonly Finding[]): void {
  const blockers = findings.filter((finding) => finding.severity === 'blocker');
  const [first] = blockers;
  if (first === undefined) return;
  const more = blockers.length > 1 ? ` (and ${blockers.length - 1} more)` : '';
  throw new UnderstudyError('preflight-blocked', `${first.object}: ${first.message}${more}`, {
    advice: first.advice,
    details: { checks: blockers.map((blocker) => blocker.check) },
  });
}

// ---------------------------------------------------------------------------------------------------------------
// The shadow

/** The stream that a switch would wait for; throws `shadow-not-ready` unless the shadow follows by it. */
async function streamStatus(operation: Operation): Promise<StreamStatus> {
  const { deps, direction, signal } = operation;
  const status = await abortable(deps.shadow.status(), signal);
  if (status.phase !== 'following') {
    throw new UnderstudyError('shadow-not-ready', `the shadow is ${status.phase}, not following`, {
      ...(status.error === null ? {} : { details: { error: status.error } }),
      advice: 'Wait until `understudy status` shows it following.',
    });
  }
  const stream = assertConnected(status, direction);
  const carried = subsetsOf(operation).every((each) => stream.leads?.includes(each) ?? stream.authoritative);
  if (!carried) {
    throw new UnderstudyError('shadow-not-ready', `the ${direction} stream doesn’t carry changes`, {
      advice: 'Wait until `understudy status` shows it authoritative.',
    });
  }
  return stream;
}

function assertConnected(status: ShadowStatus, direction: StreamStatus['direction']): StreamStatus {
  const stream = status.streams.find((each) => each.direction === direction);
  if (stream?.connected === true) return stream;
  throw new UnderstudyError('shadow-not-ready', `the ${direction} stream is not connected`, {
    advice: 'Look at `understudy status` for what stops it.',
  });
}

/** Waits until the lag is known and small. Unknown is not zero. */
async function smallLag(operation: Operation): Promise<void> {
  const { deps, direction, signal } = operation;
  const { settings, clock } = deps;
  const deadline = clock.monotonicMs() + settings.lagWaitMs;
  for (;;) {
    const { lagBytes, lagMs, method } = await streamStatus(operation);
    // Without the log a lag has no bytes.
    const bytes = byLog(method) ? lagBytes : 0;
    if (bytes !== null && lagMs !== null && bytes <= settings.lagBytesMax && lagMs <= settings.lagMsMax)
      return;
    if (clock.monotonicMs() >= deadline) {
      const lag = bytes === null || lagMs === null ? 'unknown' : `${bytes} bytes, ${Math.round(lagMs)} ms`;
      throw new UnderstudyError('shadow-not-ready', `the ${direction} stream’s lag is ${lag}`, {
        advice: 'Let it catch up, or raise cutover.lagBytesMax and cutover.lagMsMax.',
      });
    }
    await clock.sleep(LAG_POLL_MS, signal);
  }
}

function byLog(method: StreamStatus['method']): boolean {
  return method === undefined || method === 'log';
}

/** What may be left for it of the time that clients wait. */
function exactBudgetMs({ deps }: Operation): number {
  const { markTimeoutMs, holdBudgetMs } = deps.settings;
  return Math.min(markTimeoutMs, holdBudgetMs) * EXACT_SHARE_MAX;
}

/**
 * What comes over behind the fence is refused where that can't end in time: without the log everything is compared then,
 * and by it unlogged tables are carried whole.
 */
function affordable(operation: Operation, { method, exactMs }: StreamStatus): void {
  if (byLog(method) && exactMs === undefined) return;
  operation.found.carriesUnlogged = byLog(method) && exactMs !== 0;
  const budgetMs = exactBudgetMs(operation);
  if (exactMs != null && exactMs <= budgetMs) return;
  const took = exactMs == null ? 'is not known' : `was ${Math.round(exactMs)} ms`;
  if (byLog(method)) {
    throw new UnderstudyError(
      'preflight-blocked',
      `unlogged tables come over whole while clients wait; that ${took}, and at most ${Math.round(budgetMs)} ms are left for it`,
      {
        advice:
          'Make them logged (ALTER TABLE … SET LOGGED) or empty them (TRUNCATE), or raise cutover.markTimeoutMs and cutover.holdBudgetMs if clients may wait that long.',
        details: { exactMs: exactMs ?? null, budgetMs },
      },
    );
  }
  throw new UnderstudyError(
    'preflight-blocked',
    `following by ${method}, a cutover compares every row while clients wait; what that takes ${took}, and at most ${Math.round(budgetMs)} ms are left for it`,
    {
      advice:
        'Follow by the log (shadow.method: log), or raise cutover.markTimeoutMs and cutover.holdBudgetMs if clients may wait that long.',
      details: { exactMs: exactMs ?? null, budgetMs },
    },
  );
}

/** A clean verification that isn't old, or one made now. Without the log every row is compared behind the fence. */
async function verified(operation: Operation, status: ShadowStatus): Promise<void> {
  const { deps, direction, signal } = operation;
  const stream = status.streams.find((each) => each.direction === direction);
  if (stream !== undefined) affordable(operation, stream);
  if (stream !== undefined && !byLog(stream.method)) return;
  const last = status.lastVerify;
  const ageMs = last === null ? Infinity : deps.clock.now().getTime() - Date.parse(last.startedAt);
  const fresh = last !== null && last.mismatches === 0 && ageMs <= deps.settings.verifiedWithinMs;
  if (fresh) return;
  // Of the others, rows may be on their way in the other direction.
  const tables = found(operation, 'tables').map((table) => `${table.schema}.${table.name}`);
  const within = deps.subset === WHOLE_DATABASE ? {} : { tables };
  const report = await abortable(deps.shadow.verify({ direction, ...within }, signal), signal);
  if (report.mismatches === 0) return;
  const differing = report.verdicts
    .filter((verdict) => verdict.mismatches > 0)
    .map((verdict) => verdict.table);
  throw new UnderstudyError(
    'verify-mismatch',
    `${report.mismatches} rows differ between the sides, in ${differing.join(', ')}`,
    { advice: 'Run `understudy verify` for their keys.', details: { tables: differing } },
  );
}

// ---------------------------------------------------------------------------------------------------------------
// The databases

async function openSessions(operation: Operation): Promise<OperationSessions> {
  const { connections, deps, from, to, signal, kind } = operation;
  const { settings } = deps;
  // A process that was stopped in the middle must not hold the staged locks for ever.
  const staged = {
    idle_in_transaction_session_timeout: String(settings.holdBudgetMs + settings.commitAnswerTimeoutMs),
  };
  const answerTimeoutMs = Math.max(settings.holdBudgetMs, settings.fenceTimeoutMs * 2);
  const open = (side: Side, purpose: string, set: Readonly<Record<string, string>> = {}): Promise<Session> =>
    connections.open(side, `${kind} ${purpose}`, { settings: set, answerTimeoutMs });
  const opened = Promise.all([
    open('destination', 'journal', staged),
    open(from, 'barrier'),
    open(from, 'inspector'),
    open(to, 'stage', staged),
  ]);
  const [journal, leading, inspector, following] = await abortable(opened, signal);
  return { journal, leading, inspector, following };
}

/** What only these connections can tell. */
async function lateFindings(operation: Operation, sessions: OperationSessions): Promise<readonly Finding[]> {
  assertAlone(operation, await otherProxies(operation, sessions.journal));
  const [prepared, onFrom, onTo, roomFrom, roomTo] = await Promise.all([
    preparedFindings(operation, sessions.leading),
    barrierFindings(operation, operation.from, sessions.inspector),
    barrierFindings(operation, operation.to, sessions.following),
    lockRoomFindings(operation, sessions.leading),
    lockRoomFindings(operation, sessions.following),
  ]);
  return [...prepared, ...onFrom, ...onTo, ...roomFrom, ...roomTo];
}

/** Throws `other-proxy-alive`. */
export function assertAlone(operation: Operation, others: readonly LiveProxy[]): void {
  const [other] = others;
  if (other === undefined) return;
  throw new UnderstudyError(
    'other-proxy-alive',
    `another proxy is alive on ${other.host}, process ${other.process}: its clients would stay on the ${operation.from}`,
    { advice: 'Stop every other Understudy process that serves this database.', details: { others } },
  );
}

/** A process that was just killed is given a moment: its server may not have noticed yet. */
async function otherProxies(operation: Operation, journal: Session): Promise<readonly LiveProxy[]> {
  const { clock } = operation.deps;
  const deadline = clock.monotonicMs() + OTHER_PROXY_GRACE_MS;
  for (;;) {
    const others = await readOtherProxies(journal, operation.proxyId);
    if (others.length === 0 || clock.monotonicMs() >= deadline) return others;
    await clock.sleep(LAG_POLL_MS, operation.signal);
  }
}

async function preparedFindings(operation: Operation, leading: Session): Promise<readonly Finding[]> {
  const held = await leading.run(
    'SELECT gid FROM pg_catalog.pg_prepared_xacts WHERE database = pg_catalog.current_database() ORDER BY gid',
  );
  return held.rows.map((row) => ({
    severity: 'blocker',
    check: 'prepared-transaction',
    side: operation.from,
    object: row['gid'] ?? '',
    message: 'a prepared transaction holds its locks until it is ended, and can’t move to the other side',
    advice: 'Run COMMIT PREPARED or ROLLBACK PREPARED for it.',
  }));
}

async function assertCatalogs(operation: Operation, sessions: OperationSessions): Promise<void> {
  const { deps, from, to, signal } = operation;
  const check = async (side: Side, session: Session): Promise<void> => {
    const [built, now] = await Promise.all([
      deps.shadow.builtFingerprint(side),
      readFingerprint(operation, session),
    ]);
    assertSameCatalog(side, built, now);
    if (side === from) operation.found.built = built;
  };
  await abortable(Promise.all([check(from, sessions.inspector), check(to, sessions.following)]), signal);
}

/** Not while the session runs something else. */
export function readFingerprint(operation: Operation, session: Session): Promise<CatalogFingerprint> {
  return session.lend((client) => operation.deps.readFingerprint(client));
}

async function planBoth(operation: Operation, sessions: OperationSessions): Promise<void> {
  const { deps, signal } = operation;
  const { lockTimeoutMs } = deps.settings;
  const plan = async (
    session: Session,
  ): Promise<readonly [BarrierPlan, readonly SequenceDefinition[], readonly SequenceState[]]> => {
    const barrier = await planBarrier(session, lockTimeoutMs, ...subsetsOf(operation));
    const definitions = await readSequenceDefinitions(session, ...subsetsOf(operation));
    return [barrier, definitions, await readSequences(session, definitions)];
  };
  const [[leadingPlan, leading, sequences], [followingPlan, following, others]] = await abortable(
    Promise.all([plan(sessions.leading), plan(sessions.following)]),
    signal,
  );
  operation.found.sequenceDefinitions = { leading, following };
  // Behind the gate it would be too late to find that one has no twin.
  carrySequences(sequences, others, () => 0n);
  operation.found.leadingPlan = leadingPlan;
  operation.found.followingPlan = followingPlan;
  operation.found.sequences = sample(deps.clock.monotonicMs(), sequences);
  const planned = new Set(leadingPlan.tables.map((table) => quoteTable(table)));
  const missing = tablesOn(operation.from, found(operation, 'tables')).find(
    (table) => !planned.has(quoteTable(table)),
  );
  if (missing !== undefined)
    throw new UnderstudyError('internal', `no barrier planned for ${quoteTable(missing)}`);
}
