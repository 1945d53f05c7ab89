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
  type SessionBlocker,
  type ShadowStatus,
  type Side,
  type StreamStatus,
  type SubsetId,
} from '../core/ports.js';
import { UnderstudyError } from '../core/errors.js';
import { quoteTable } from '../core/postgres.js';
import { subsetIds } from '../core/subsets.js';
import {
  barrierState,
  planBarrier,
  readBarrier,
  readLockHolders,
  tablesOn,
  withoutBarrier,
  type BarrierPlan,
  type LockHolder,
} from './barrier.js';
import { binaryTypeFindings } from './binary-types.js';
import { assertSameCatalog } from './catalog.js';
import { armFence } from './fence.js';
import type { OperationMember } from './journal.js';
import { abortable, alongOf, found, subsetsOf, type Operation, type OperationSessions } from './operation.js';
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
const LOCK_GRACE_MS = 500;
/** Of the time that clients may wait at most; the rest is for everything else behind the gate. */
const EXACT_SHARE_MAX = 0.7;
/** So few stale sessions are always fine, whatever their share. */
const STALE_ALWAYS = 4;

/** Runs all checks, opens the connections, leaves plans and samples in `operation.found`. */
export async function preflight(operation: Operation): Promise<void> {
  const { deps, kind, direction, to, signal, dryRun } = operation;
  const { shadow } = deps;
  const findings = [
    ...operation.announced,
    ...routingFindings(operation),
    ...(await abortable(deps.inspect(signal), signal)),
  ];
  for (const finding of findings) operation.onFinding(finding);
  throwBlocked(findings);

  await streamStatus(operation);
  if (kind === 'cutover') await abortable(shadow.prepareReverse(signal), signal);
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

/**
 * What comes over behind the fence is refused where that can't end in time: without the log everything is compared then,
 * and by it unlogged tables are carried whole.
 */
function affordable(operation: Operation, { method, exactMs }: StreamStatus): void {
  if (byLog(method) && exactMs == null) return;
  const { markTimeoutMs, holdBudgetMs } = operation.deps.settings;
  const budgetMs = Math.min(markTimeoutMs, holdBudgetMs) * EXACT_SHARE_MAX;
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
  const others = await otherProxies(operation, sessions.journal);
  const [other] = others;
  if (other !== undefined) {
    throw new UnderstudyError(
      'other-proxy-alive',
      `another proxy is alive on ${other.host}, process ${other.process}: its clients would stay on the ${operation.from}`,
      { advice: 'Stop every other Understudy process that serves this database.', details: { others } },
    );
  }
  const [prepared, onFrom, onTo, roomFrom, roomTo] = await Promise.all([
    preparedFindings(operation, sessions.leading),
    barrierFindings(operation, operation.from, sessions.inspector),
    barrierFindings(operation, operation.to, sessions.following),
    lockRoomFindings(operation, sessions.leading),
    lockRoomFindings(operation, sessions.following),
  ]);
  return [...prepared, ...onFrom, ...onTo, ...roomFrom, ...roomTo];
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

async function barrierFindings(
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
    await clock.sleep(LAG_POLL_MS, operation.signal);
  }
}

/** The barrier locks all tables in one transaction; the lock table must have room for that. */
async function lockRoomFindings(operation: Operation, session: Session): Promise<readonly Finding[]> {
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

/** Through pg's own client, so not while the session runs something else. */
export function readFingerprint(operation: Operation, session: Session): Promise<CatalogFingerprint> {
  return operation.deps.readFingerprint(session.client);
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

// ---------------------------------------------------------------------------------------------------------------
// The sessions

/** Asks and warms every client's session, in rounds, until few are left to ask behind the gate. */
export async function prepareSessions(operation: Operation): Promise<void> {
  const { deps, to, signal } = operation;
  const { settings, traffic, subset } = deps;
  for (let round = 1; ; round++) {
    const report = await traffic.prepare(subset, to, signal, alongOf(operation));
    const last = round >= settings.prepareRoundsMax;
    const pinned = report.blockers.filter((blocker) => isPin(blocker));
    const refused = report.blockers.filter((blocker) => blocker.reason === 'destination-refuses');
    const staleMax = Math.max(STALE_ALWAYS, Math.floor(report.sessions * settings.staleShareMax));
    const mayGo =
      report.stale <= staleMax &&
      refused.length === 0 &&
      (pinned.length === 0 || settings.onPinned === 'close');
    if (!last && !mayGo) continue;
    for (const blocker of report.blockers) operation.onFinding(sessionFinding(operation, blocker));
    const { leading } = found(operation, 'sessions');
    const types = await binaryTypeFindings(leading, operation.from, report.binaryTypes ?? []);
    for (const finding of types) operation.onFinding(finding);
    if (mayGo) return;
    throw whyNot(operation, pinned, refused, report.stale, report.sessions);
  }
}

/** Reasons that end with the session's transaction or the next question are no pins. */
function isPin(blocker: SessionBlocker): boolean {
  switch (blocker.reason) {
    case 'in-transaction':
    case 'state-unreadable':
    case 'destination-refuses':
      return false;
    case 'temporary-table':
    case 'cursor-with-hold':
    case 'session-advisory-lock':
    case 'listening':
    case 'loaded-library':
    case 'unknown-setting':
    case 'replication':
      return true;
  }
}

function sessionFinding(operation: Operation, blocker: SessionBlocker): Finding {
  const refuses = blocker.reason === 'destination-refuses';
  const pinned = isPin(blocker) && operation.deps.settings.onPinned === 'refuse';
  return {
    severity: refuses || pinned ? 'blocker' : 'warning',
    check: `session-${blocker.reason}`,
    side: 'proxy',
    object: `session ${blocker.sessionId} (${blocker.user}, ${blocker.applicationName})`,
    message: blocker.detail,
    advice: pinned
      ? 'End that session or what it holds, or set cutover.onPinned to close.'
      : 'Nothing, unless it lasts.',
  };
}

function whyNot(
  operation: Operation,
  pinned: readonly SessionBlocker[],
  refused: readonly SessionBlocker[],
  stale: number,
  sessions: number,
): UnderstudyError {
  const [pin] = pinned;
  if (pin !== undefined && operation.deps.settings.onPinned === 'refuse') {
    return new UnderstudyError(
      'session-pinned',
      `${pinned.length} sessions can’t be moved, the first being ${pin.sessionId} of ${pin.user}: ${pin.reason}, ${pin.detail}`,
      {
        advice: 'End those sessions or what they hold, or set cutover.onPinned to close.',
        details: { pinned },
      },
    );
  }
  const [refusal] = refused;
  if (refusal !== undefined) {
    return new UnderstudyError(
      'warm-failed',
      `the ${operation.to} refuses connections for ${refused.length} sessions, the first being of ${refusal.user}: ${refusal.detail}`,
      { advice: `Make sure that the ${operation.to} lets the same users in.` },
    );
  }
  return new UnderstudyError(
    'warm-failed',
    `${stale} of ${sessions} sessions change their state faster than they can be asked`,
    { advice: 'Try again at a quieter moment, or raise cutover.staleShareMax.' },
  );
}
