/** What the steps of one operation share: who is who, the connections, and what the steps have found out so far. */
import type {
  CatalogFingerprint,
  Direction,
  Finding,
  OperationKind,
  Side,
  ShadowTable,
  SubsetId,
} from '../core/ports.js';
import type { StallReport } from '../core/traffic-ports.js';
import { UnderstudyError, asUnderstudyError } from '../core/errors.js';
import type { BarrierPlan } from './barrier.js';
import type { BarrierLimits } from './barrier-locks.js';
import type { ChangeTarget } from './fence.js';
import type { OperationKey, OperationMember } from './journal.js';
import type { SequenceDefinition, SequencePlan, SequenceSample } from './sequences.js';
import type { Connections, Session } from './session.js';
import type { CutoverDeps } from './settings.js';

/** Connections opened in preflight, so that nothing is connected behind the gate. */
export interface OperationSessions {
  /** On the destination: journals the transitions; commits a rollback. */
  readonly journal: Session;
  /** On the side that leads: raises its barrier. */
  readonly leading: Session;
  /** On the side that leads: reads its catalogs and sequences under the barrier. */
  readonly inspector: Session;
  /** On the side that is to lead: its transaction is staged behind the gate; commits a cutover. */
  readonly following: Session;
}

export interface Operation {
  readonly deps: CutoverDeps;
  readonly connections: Connections;
  readonly kind: OperationKind;
  /** Of the first member; its id is what the operation is called. */
  readonly key: OperationKey;
  /** What it is about, the subset of `deps` first: each subset with its own row in the journal and its own epoch. */
  readonly members: readonly OperationMember[];
  /** Found before it began, such as which subsets it takes along. */
  readonly announced: readonly Finding[];
  readonly proxyId: string;
  readonly from: Side;
  readonly to: Side;
  readonly direction: Direction;
  readonly markId: string;
  readonly dryRun: boolean;
  /** Aborts what is before the commit: the caller's signal, an abort asked for, the hold's budget. */
  readonly signal: AbortSignal;
  /** The process is about to end: waits without end are left, what is unfinished is the next process's. */
  readonly closing: AbortSignal;
  readonly onFinding: (finding: Finding) => void;
  /**
   * Foreign keys between subsets are made to be as the sides now want them; what is left of it. Never throws. Absent where
   * there is no such key.
   */
  readonly settleKeys: (() => Promise<readonly Finding[]>) | undefined;
  /** Found out and set up by the steps, in order. */
  /** Milliseconds of what the steps consist of, as `hold.drain`. */
  readonly parts: Record<string, number>;
  readonly found: {
    sessions?: OperationSessions;
    leadingPlan?: BarrierPlan;
    followingPlan?: BarrierPlan;
    tables?: readonly ShadowTable[];
    sequences?: SequenceSample;
    /** Of both sides, as of preflight: a change since would show in the catalogs that are compared behind the gate. */
    sequenceDefinitions?: Readonly<Record<'leading' | 'following', readonly SequenceDefinition[]>>;
    /** What the shadow was built from, on the side that leads. */
    built?: CatalogFingerprint;
    /** The state of the step under way is being written to the journal; see `Step.early`. */
    journaled?: Promise<void>;
    /** Begun behind the barrier, awaited before the commit: the catalogs are as they were built; `carried` is set. */
    besides?: {
      readonly unchanged: Promise<void>;
      readonly carrying: Promise<void>;
      readonly alone: Promise<void>;
    };
    carried?: readonly SequencePlan[];
    /** Behind the mark what no log tells comes over. */
    carriesUnlogged?: boolean;
    /** The following side's transaction is open, its barrier lowered in it. */
    staged?: boolean;
    stall?: StallReport;
    moved?: number;
    closed?: number;
  };
}

/** Takes down how long a part of a step took. */
export async function timedPart<T>(operation: Operation, part: string, promise: Promise<T>): Promise<T> {
  const { clock } = operation.deps;
  const startedMs = clock.monotonicMs();
  const value = await promise;
  operation.parts[part] = Math.round((clock.monotonicMs() - startedMs) * 1000) / 1000;
  return value;
}

/** The value a former step has set. */
export function found<K extends keyof Operation['found']>(
  operation: Operation,
  name: K,
): NonNullable<Operation['found'][K]> {
  const value = operation.found[name];
  if (value === undefined || value === null) throw new UnderstudyError('internal', `${name} is not set yet`);
  return value;
}

export function barrierLimits(deps: CutoverDeps, signal: AbortSignal): BarrierLimits {
  const { clock, settings } = deps;
  return { clock, signal, lockTimeoutMs: settings.lockTimeoutMs, timeoutMs: settings.fenceTimeoutMs };
}

export function subsetsOf({ members }: Operation): readonly SubsetId[] {
  return members.map(({ subset }) => subset);
}

/** The others that are switched with `deps.subset`. */
export function alongOf(operation: Operation): readonly SubsetId[] {
  return subsetsOf(operation).slice(1);
}

export function leadingTarget(operation: Operation): ChangeTarget {
  return {
    session: found(operation, 'sessions').leading,
    plan: found(operation, 'leadingPlan'),
    limits: barrierLimits(operation.deps, operation.signal),
  };
}

export function followingTarget(operation: Operation): ChangeTarget {
  return {
    session: found(operation, 'sessions').following,
    plan: found(operation, 'followingPlan'),
    limits: barrierLimits(operation.deps, operation.signal),
  };
}

/** `promise`, unless the signal aborts first; what the promise comes to then is nobody's business any more. */
export async function abortable<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  promise.catch(() => undefined);
  signal.throwIfAborted();
  let onAbort: (() => void) | undefined;
  const aborted = new Promise<never>((_resolve, reject) => {
    onAbort = () => reject(asUnderstudyError(signal.reason, 'cancelled', 'cancelled'));
    signal.addEventListener('abort', onAbort, { once: true });
  });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    if (onAbort !== undefined) signal.removeEventListener('abort', onAbort);
  }
}

const BACKOFF_MIN_MS = 20;
const BACKOFF_MAX_MS = 1_000;

/**
 * Does `act` until it succeeds, with backoff, for as long as the process lives: for what must happen before clients may
 * go on. `onWait` is told, again and again, how long it has been. Throws only once `closing` aborts.
 */
export async function persist<T>(
  deps: CutoverDeps,
  closing: AbortSignal,
  what: string,
  act: () => Promise<T>,
  onWait: (elapsedMs: number) => void,
): Promise<T> {
  const startedMs = deps.clock.monotonicMs();
  for (let waitMs = BACKOFF_MIN_MS; ; waitMs = Math.min(waitMs * 2, BACKOFF_MAX_MS)) {
    try {
      return await act();
    } catch (error) {
      closing.throwIfAborted();
      const { code, message } = asUnderstudyError(error, 'internal', what);
      deps.log.warn({ code, reason: message }, `${what} failed; it is tried again`);
    }
    onWait(deps.clock.monotonicMs() - startedMs);
    await deps.clock.sleep(waitMs, closing);
  }
}
