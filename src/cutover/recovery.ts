/**
 * At start, and when a client met the fence: who leads, and what did a former process leave half done?
 *
 * The source's fence decides first. Without one the source leads, and the destination isn't needed to serve: a fence
 * precedes every commit, and is lowered only after a journaled abort or a committed rollback. Where a fence stands, only
 * the journal can tell.
 *
 *   fence   journal                         →  leads        what is done
 *   down    nothing open, source            →  source       guard raised where it isn't, what is armed disarmed
 *   down    cutover before its commit       →  source       abort journaled; the operation disarmed on the source
 *   down    rollback past its commit        →  source       marked done
 *   down    unreachable or absent           →  source       nothing
 *   up      nothing open, destination       →  destination  guard lowered where it isn't (an abort half undone)
 *   up      nothing open, source, aborted   →  source       fence lowered (an abort half undone)
 *   up      cutover before its commit       →  source       abort journaled, then fence lowered
 *   up      cutover past its commit         →  destination  marked done
 *   up      rollback before its commit      →  destination  abort journaled, then guard lowered
 *   up      rollback past its commit        →  source       sequences carried, fence lowered, marked done
 *   up      unreachable                     →  route-unknown
 *   any     an operation of a live process  →  it is left alone: source where the fence is down, else route-unknown
 *   retired source                          →  destination  nothing
 *
 * All other pairs contradict one another: somebody changed one side by hand, or a server lost what it had committed.
 * They are refused with `journal-conflict`, except where the source's epoch is beyond the journal's: that is the recorded
 * human decision that the destination was lost, and a destination that returns is not trusted.
 */
import { WHOLE_DATABASE, type SubsetId } from '../core/ports.js';
import type { Route } from '../core/traffic-ports.js';
import { UnderstudyError, asUnderstudyError } from '../core/errors.js';
import { barrierState, planBarrier, readBarrier, type BarrierTrigger } from './barrier.js';
import {
  completeFence,
  coverDestination,
  disarmFence,
  lowerFence,
  lowerGuard,
  readEpoch,
  readUnknownFenced,
  reopenSource,
  type EpochRecord,
  type FenceTarget,
} from './fence.js';
import {
  abortOperation,
  finishOperation,
  readOpenOperation,
  readOperation,
  readRoute,
  readUnknownLed,
  type JournalOperation,
  type JournalRoute,
} from './journal.js';
import { AFTER_COMMIT, BEFORE_COMMIT } from './machine.js';
import { barrierLimits } from './operation.js';
import { readOtherProxies } from './registration.js';
import { carrySequences, readSequenceDefinitions, readSequences, setSequencesSql } from './sequences.js';
import type { Connections, Session } from './session.js';
import type { CutoverDeps, Recovery } from './settings.js';

const UNDONE = 'undone when Understudy started again: it had stopped before the commit';
const COMPLETED = 'completed when Understudy started again: it had stopped after the commit';

export interface RecoveryContext {
  readonly deps: CutoverDeps;
  readonly connections: Connections;
  readonly proxyId: string;
  /** All subsets there are. */
  readonly known: readonly SubsetId[];
  readonly signal: AbortSignal;
}

interface Seen {
  readonly source: Session;
  readonly fence: readonly BarrierTrigger[];
  readonly record: EpochRecord | null;
}

interface Journaled {
  readonly session: Session;
  readonly route: JournalRoute;
  readonly open: JournalOperation | null;
}

/** Throws `source-unreachable`, `route-unknown` (retry), `journal-conflict`. Repeatable at any moment. */
export async function recover(context: RecoveryContext): Promise<Recovery> {
  try {
    return await look(context);
  } catch (error) {
    // The two sides are read one after the other: what looks contradictory may have moved in between.
    if (!(error instanceof UnderstudyError) || error.code !== 'journal-conflict') throw error;
    return await look(context);
  }
}

async function look(context: RecoveryContext): Promise<Recovery> {
  const { deps } = context;
  let source: Session;
  try {
    source = await open(context, 'source');
  } catch (error) {
    return await recoverWithoutSource(context, error);
  }
  try {
    const foreign = await readUnknownFenced(source, context.known);
    if (foreign.length > 0) throw reconfigured(foreign);
    const seen = {
      source,
      fence: await readBarrier(source, deps.subset),
      record: await readEpoch(source, deps.subset),
    };
    if (seen.record?.retired === true) {
      return { route: { side: 'destination', epoch: seen.record.epoch }, action: 'none', finalized: true };
    }
    // A part of no tables has no trigger that could stand: the record alone says so.
    const empty = deps.subset !== WHOLE_DATABASE && seen.fence.length === 0;
    const standing = seen.fence.some((trigger) => trigger.raised) || (empty && seen.record?.fenced === true);
    return standing ? await recoverFenced(context, seen) : await recoverUnfenced(context, seen);
  } finally {
    await source.end();
  }
}

function open(context: RecoveryContext, side: 'source' | 'destination'): Promise<Session> {
  const { settings } = context.deps;
  // Long enough for a commit that is still under way to end, or for the server to end it.
  const answerTimeoutMs = 2 * (settings.holdBudgetMs + settings.commitAnswerTimeoutMs);
  return context.connections.open(side, 'recovery', { answerTimeoutMs });
}

/** Null where the journal was never made. Throws `destination-unreachable`. */
async function withJournal<T>(
  context: RecoveryContext,
  act: (journal: Journaled | null) => Promise<T>,
): Promise<T> {
  const session = await open(context, 'destination');
  try {
    const route = await readRoute(session, context.deps.subset);
    if (route === null) return await act(null);
    return await act({ session, route, open: await readOpenOperation(session, context.deps.subset) });
  } finally {
    await session.end();
  }
}

/** Whether the operation's process lives, and isn't this one. */
async function livesElsewhere(context: RecoveryContext, journal: Journaled): Promise<boolean> {
  if (journal.open === null || journal.open.proxy === context.proxyId) return false;
  const others = await readOtherProxies(journal.session, context.proxyId);
  return others.some((proxy) => proxy.id === journal.open?.proxy);
}

// ---------------------------------------------------------------------------------------------------------------
// No fence

async function recoverUnfenced(context: RecoveryContext, seen: Seen): Promise<Recovery> {
  const { deps } = context;
  const epoch = seen.record?.epoch ?? 0;
  const route: Route = { side: 'source', epoch };
  try {
    return await withJournal(context, async (journal) => {
      if (journal === null || (await livesElsewhere(context, journal))) return nothing(route);
      const foreign = await readUnknownLed(journal.session, context.known);
      if (foreign.length > 0) {
        deps.log.error(
          { subsets: foreign },
          'the destination holds to lead what no fence confirms; it is not trusted',
        );
        return nothing(route);
      }
      return await settleUnfenced(context, seen, journal, route);
    });
  } catch (error) {
    const { code, message } = asUnderstudyError(error, 'internal', 'recovery');
    if (code !== 'destination-unreachable') throw error;
    deps.log.warn({ reason: message }, 'no fence stands, so the source leads; the journal can’t be read now');
    return { route, action: 'unreachable', finalized: false };
  }
}

async function settleUnfenced(
  context: RecoveryContext,
  seen: Seen,
  journal: Journaled,
  route: Route,
): Promise<Recovery> {
  const { deps } = context;
  const { open: operation } = journal;
  if (journal.route.epoch < route.epoch && journal.route.side === 'destination') {
    deps.log.error(
      { sourceEpoch: route.epoch, journalEpoch: journal.route.epoch },
      'the destination was declared lost and has returned; it is not trusted',
    );
    return nothing(route);
  }
  if (operation !== null && BEFORE_COMMIT.includes(operation.state)) {
    if (operation.kind === 'rollback') throw contradiction(seen, journal);
    const state = await abortOperation(journal.session, operation, UNDONE);
    if (state !== 'aborted') throw contradiction(seen, journal);
    // A fence of that operation may still be on its way; the record forbids it from now on.
    if (seen.record !== null) await lowerFence(await target(context, seen.source), operation);
    return acted('aborted', route, operation);
  }
  if (journal.route.side === 'destination') throw contradiction(seen, journal);
  const leads: Route = { side: 'source', epoch: await settleRecord(context, seen, journal) };
  if (operation !== null && AFTER_COMMIT.includes(operation.state)) {
    await finishOperation(journal.session, operation, { reason: COMPLETED });
    return acted('completed', leads, operation);
  }
  // Its abort may have been journaled by a process that died before it could disarm it.
  const armed = seen.record?.armed ?? null;
  if (armed !== null) await disarmFence(seen.source, deps.subset, armed);
  const guard = barrierState(await readBarrier(journal.session, context.deps.subset));
  if (guard === 'lowered' || guard === 'partial') {
    await coverDestination(await target(context, journal.session));
  }
  return nothing(leads);
}

/** The source's epoch, after its record was made to say what its triggers say: somebody may have lowered them by hand. */
async function settleRecord(context: RecoveryContext, seen: Seen, journal: Journaled): Promise<number> {
  const { record, source } = seen;
  if (record?.fenced === true) {
    await source.run(
      `UPDATE understudy.epoch SET fenced = false, epoch = $1, updated_at = pg_catalog.clock_timestamp()
        WHERE subset = $2 AND fenced AND epoch = $3`,
      [journal.route.epoch, context.deps.subset, record.epoch],
    );
    return journal.route.epoch;
  }
  const epoch = record?.epoch ?? 0;
  // A journal ahead of an open source: the source lost what it had committed.
  if (journal.route.epoch > epoch) throw contradiction(seen, journal);
  return epoch;
}

// ---------------------------------------------------------------------------------------------------------------
// A fence stands

async function recoverFenced(context: RecoveryContext, seen: Seen): Promise<Recovery> {
  try {
    return await withJournal(context, async (journal) => {
      if (journal === null) {
        throw new UnderstudyError(
          'journal-conflict',
          'a fence stands on the source, and the destination holds no journal: it is not the one that was cut over to',
          { advice: 'Point destination.url at the database that holds the journal.' },
        );
      }
      if (await livesElsewhere(context, journal)) {
        throw new UnderstudyError(
          'route-unknown',
          `another live process is in the middle of ${journal.open?.id}`,
          {
            advice: 'Wait for it to end.',
          },
        );
      }
      return await settleFenced(context, seen, journal);
    });
  } catch (error) {
    const { code, message } = asUnderstudyError(error, 'internal', 'recovery');
    if (code !== 'destination-unreachable') throw error;
    throw new UnderstudyError(
      'route-unknown',
      `a fence stands on the source, and the journal that says who leads can’t be read: ${message}`,
      { cause: error, advice: 'Bring the destination back; it is tried again.' },
    );
  }
}

async function settleFenced(context: RecoveryContext, seen: Seen, journal: Journaled): Promise<Recovery> {
  const { open: operation } = journal;
  if (operation === null) return await settleResting(context, seen, journal);
  if (BEFORE_COMMIT.includes(operation.state)) {
    const state = await abortOperation(journal.session, operation, UNDONE);
    // It committed while we asked: everything is read anew.
    if (state !== 'aborted') return await look(context);
    if (operation.kind === 'cutover') {
      await lowerFence(await target(context, seen.source), operation);
      await assertOpen(context, seen, journal);
      return acted('aborted', { side: 'source', epoch: operation.epoch }, operation);
    }
    await openDestination(context, journal);
    return acted('aborted', { side: 'destination', epoch: operation.epoch }, operation);
  }
  if (operation.kind === 'cutover') {
    if (journal.route.side !== 'destination') throw contradiction(seen, journal);
    await finishOperation(journal.session, operation, { reason: COMPLETED });
    await openDestination(context, journal);
    return acted('completed', { side: 'destination', epoch: journal.route.epoch }, operation);
  }
  if (journal.route.side !== 'source') throw contradiction(seen, journal);
  await completeRollback(context, seen, journal, operation);
  return acted('completed', { side: 'source', epoch: journal.route.epoch }, operation);
}

/** Nothing is open, but an abort may have been journaled and not been acted on to its end. */
async function settleResting(context: RecoveryContext, seen: Seen, journal: Journaled): Promise<Recovery> {
  if (journal.route.side === 'destination') {
    if (!journal.route.finalized) await openDestination(context, journal);
    if (barrierState(seen.fence) === 'partial' && seen.record !== null) {
      context.deps.log.error({}, 'the source’s fence stood on some tables only; it is raised on all');
      await completeFence(await target(context, seen.source), seen.record.epoch);
    }
    const route: Route = { side: 'destination', epoch: journal.route.epoch };
    return { ...nothing(route), finalized: journal.route.finalized };
  }
  const raisedBy = seen.record?.operation ?? null;
  const operation = raisedBy === null ? null : await readOperation(journal.session, raisedBy);
  if (operation?.state !== 'aborted' || operation.kind !== 'cutover') throw contradiction(seen, journal);
  await lowerFence(await target(context, seen.source), operation);
  await assertOpen(context, seen, journal);
  return acted('aborted', { side: 'source', epoch: operation.epoch }, operation);
}

/** Lowers the guard if it isn't down; the journal must say that the destination leads, with nothing open. */
async function openDestination(context: RecoveryContext, journal: Journaled): Promise<void> {
  const state = barrierState(await readBarrier(journal.session, context.deps.subset));
  if (state === 'lowered' || state === 'absent') return;
  if (await lowerGuard(await target(context, journal.session))) return;
  throw new UnderstudyError('route-unknown', 'another process began an operation meanwhile');
}

async function completeRollback(
  context: RecoveryContext,
  seen: Seen,
  journal: Journaled,
  operation: JournalOperation,
): Promise<void> {
  const { deps } = context;
  const guard = barrierState(await readBarrier(journal.session, context.deps.subset));
  if (guard !== 'raised' && guard !== 'absent') throw contradiction(seen, journal);
  // The sequences set before the commit may not have been flushed when the source stopped.
  const [onDestination, onSource] = await Promise.all([
    readSequences(journal.session, await readSequenceDefinitions(journal.session, deps.subset)),
    readSequences(seen.source, await readSequenceDefinitions(seen.source, deps.subset)),
  ]);
  const carried = carrySequences(onDestination, onSource, () => BigInt(deps.settings.sequenceMargin));
  await reopenSource(
    await target(context, seen.source),
    [{ subset: deps.subset, key: operation }],
    'commit',
    setSequencesSql(carried),
  );
  await assertOpen(context, seen, journal);
  await finishOperation(journal.session, operation, { reason: COMPLETED });
}

async function assertOpen(context: RecoveryContext, seen: Seen, journal: Journaled): Promise<void> {
  const now = await readBarrier(seen.source, context.deps.subset);
  if (!now.some((trigger) => trigger.raised)) return;
  const record = await readEpoch(seen.source, context.deps.subset);
  throw contradiction({ ...seen, record, fence: now }, journal);
}

// ---------------------------------------------------------------------------------------------------------------
// No source

/**
 * The old server is often switched off before `finalize`. The journal alone is enough where it says that the destination
 * leads: its commit came after the fence, and the way back would have begun in the journal too.
 */
async function recoverWithoutSource(context: RecoveryContext, failure: unknown): Promise<Recovery> {
  try {
    return await withJournal(context, async (journal) => {
      if (journal?.route.side !== 'destination' || (await livesElsewhere(context, journal))) throw failure;
      const { open: operation, route } = journal;
      const leads: Route = { side: 'destination', epoch: route.epoch };
      if (operation === null) {
        if (!route.finalized) await openDestination(context, journal);
        return { ...nothing(leads), finalized: route.finalized };
      }
      if (BEFORE_COMMIT.includes(operation.state)) {
        const state = await abortOperation(journal.session, operation, UNDONE);
        if (operation.kind === 'cutover' || state !== 'aborted') throw failure;
        await openDestination(context, journal);
        return acted('aborted', leads, operation);
      }
      await finishOperation(journal.session, operation, { reason: COMPLETED });
      await openDestination(context, journal);
      return acted('completed', leads, operation);
    });
  } catch (error) {
    const { code } = asUnderstudyError(error, 'internal', 'recovery');
    throw code === 'destination-unreachable' ? failure : error;
  }
}

// ---------------------------------------------------------------------------------------------------------------
// Small things

async function target(context: RecoveryContext, session: Session): Promise<FenceTarget> {
  const { deps, signal } = context;
  return {
    session,
    plan: await planBarrier(session, deps.settings.lockTimeoutMs, deps.subset),
    subset: deps.subset,
    limits: { ...barrierLimits(deps, signal), timeoutMs: deps.settings.installTimeoutMs },
  };
}

function nothing(route: Route): Recovery {
  return { route, action: 'none', finalized: false };
}

function acted(action: 'aborted' | 'completed', route: Route, operation: JournalOperation): Recovery {
  return { route, action, operation: { id: operation.id, kind: operation.kind }, finalized: false };
}

export function reconfigured(subsets: readonly SubsetId[]): UnderstudyError {
  return new UnderstudyError(
    'journal-conflict',
    `the destination leads ${subsets.join(', ')}, which the configuration does not know`,
    { advice: 'Put `subsets` back as they were until one side leads everything, then change them.' },
  );
}

function contradiction(seen: Seen, journal: Journaled): UnderstudyError {
  const fence = barrierState(seen.fence);
  const { open: operation, route } = journal;
  const during =
    operation === null ? 'nothing is open' : `${operation.kind} ${operation.id} is ${operation.state}`;
  return new UnderstudyError(
    'journal-conflict',
    `source and journal contradict one another: the fence is ${fence} at epoch ${seen.record?.epoch ?? 0}, the journal says ${route.side} at epoch ${route.epoch} and ${during}`,
    {
      advice: 'Find out which side took the last writes (see the runbook) before anything is served.',
      details: { fence, route },
    },
  );
}
