/**
 * A model of cutover and rollback, small enough to be searched whole.
 *
 * What is in it: both servers' records as `fence.ts` and `journal.ts` change them, each change being one indivisible
 * compare-and-swap as it is there; the processes that walk the steps of `runner.ts` by the transitions of `machine.ts`,
 * and the recovery of `recovery.ts`; writers that bypass the proxy; and the two streams. Rows are counted, not named: as
 * long as at most one side is writable, what a side holds is a prefix of all that was acknowledged.
 *
 * What may happen between any two steps: a process dies; a call isn't executed, or is and its answer is lost, or is
 * executed at any later time, after its sender gave up or died; a second process starts and recovers although the first
 * one lives (it lost the lock that shows it); a step fails for a reason of its own.
 *
 * Recovery is in `model-recovery.ts`; what must hold, and the search, in `model-search.ts`.
 */
import type { OperationKind, OperationState, Side } from '../../src/core/ports.js';
import { AFTER_COMMIT, BEFORE_COMMIT, FINAL, accepts, transition } from '../../src/cutover/machine.js';

/** One thing each that the implementation must not do. All false: as it is built. */
export interface Mutation {
  /** COMMIT goes through whatever the journal says of the operation. */
  readonly blindCommit?: boolean;
  /** The fence is lowered first, and the abort journaled after. */
  readonly lowerBeforeAbort?: boolean;
  /** The same, by a process that finds another's operation at its start. */
  readonly recoverWithoutAbort?: boolean;
  /** The mark is written ahead of the fence. */
  readonly markBeforeFence?: boolean;
  /** The mark isn't waited for. */
  readonly skipCatchUp?: boolean;
  /** The guard is lowered while verifying, in a transaction of its own. */
  readonly guardLoweredEarly?: boolean;
  /** An unanswered COMMIT counts as not done, without asking. */
  readonly doubtMeansAborted?: boolean;
  /** An unanswered COMMIT counts as done, without asking. */
  readonly doubtMeansCommitted?: boolean;
  /** The fence is raised by whoever asks, armed or not. */
  readonly unarmedFence?: boolean;
  /** A rollback opens the source before its commit. */
  readonly openBeforeCommit?: boolean;
  /** A rollback's guard is lowered without asking the journal who leads. */
  readonly blindLowerGuard?: boolean;
  /** A rollback's guard is raised whatever the journal says of the operation. */
  readonly blindRaiseGuard?: boolean;
  /** An operation that was undone, or is found undone, stays armed. */
  readonly neverDisarm?: boolean;
}

export interface JournalEntry {
  readonly kind: OperationKind;
  readonly state: OperationState;
  readonly epoch: number;
}

/** Where a process is. `operation` counts from 0 in the journal's order. */
export type Process =
  | { readonly at: 'dead' }
  | { readonly at: 'idle'; readonly owes: number | null }
  | {
      readonly at: 'operation';
      readonly operation: number;
      readonly kind: OperationKind;
      readonly epoch: number;
      readonly state: OperationState;
      /** In `fencing`, `verifying` and `rolling-back`: what of it is done. */
      readonly part: Part;
      readonly mark: number;
      readonly fenceTried: boolean;
      readonly commitSent: boolean;
      readonly owes: boolean;
    }
  | { readonly at: 'recovery'; readonly seen: Seen | null };

type Part = 'act' | 'journal' | 'abort' | 'undo' | 'doubt' | 'stage';

export interface Seen {
  readonly fence: boolean;
  readonly epoch: number;
  readonly raisedBy: number | null;
  readonly armed: number | null;
}

/** A call that its sender doesn't wait for any more. */
export type Call =
  | { readonly to: 'arm'; readonly operation: number; readonly epoch: number }
  | { readonly to: 'disarm'; readonly operation: number }
  | { readonly to: 'fence'; readonly operation: number; readonly epoch: number }
  | { readonly to: 'unfence'; readonly operation: number; readonly epoch: number }
  | { readonly to: 'reopen'; readonly epoch: number }
  | { readonly to: 'guard'; readonly operation: number }
  | { readonly to: 'unguard' }
  | {
      readonly to: 'move';
      readonly operation: number;
      readonly from: OperationState;
      readonly state: OperationState;
    }
  | { readonly to: 'abort'; readonly operation: number }
  | { readonly to: 'commit'; readonly operation: number }
  | { readonly to: 'finish'; readonly operation: number };

export interface World {
  /** Source: is the fence up, under which epoch, by whom, who alone may raise it, how many rows are there. */
  readonly fence: boolean;
  readonly sourceEpoch: number;
  readonly raisedBy: number | null;
  readonly armed: number | null;
  readonly onSource: number;
  /** Destination: the guard, the route, the operations, how many rows are there. */
  readonly guard: boolean;
  readonly side: Side;
  readonly epoch: number;
  readonly journal: readonly JournalEntry[];
  readonly onDestination: number;
  readonly acknowledged: number;
  readonly processes: readonly Process[];
  readonly late: readonly Call[];
  readonly deaths: number;
}

/** How far the search goes. */
export interface Bounds {
  readonly operations: number;
  readonly writes: number;
  readonly deaths: number;
  readonly late: number;
}

export function start(processes: number): World {
  return {
    fence: false,
    sourceEpoch: 0,
    raisedBy: null,
    armed: null,
    onSource: 0,
    guard: true,
    side: 'source',
    epoch: 0,
    journal: [],
    onDestination: 0,
    acknowledged: 0,
    processes: Array.from({ length: processes }, () => ({ at: 'idle', owes: null })),
    late: [],
    deaths: 0,
  };
}

// ---------------------------------------------------------------------------------------------------------------
// What the servers do with a call

interface Answer {
  readonly world: World;
  /** Whether its compare-and-swap hit. */
  readonly hit: boolean;
}

function withEntry(world: World, operation: number, state: OperationState): World {
  return {
    ...world,
    journal: world.journal.map((entry, index) => (index === operation ? { ...entry, state } : entry)),
  };
}

export function execute(world: World, call: Call, mutation: Mutation): Answer {
  const miss: Answer = { world, hit: false };
  const hit = (change: Partial<World>): Answer => ({ world: { ...world, ...change }, hit: true });
  switch (call.to) {
    case 'arm':
      if (world.fence || world.sourceEpoch !== call.epoch) return miss;
      return hit({ armed: call.operation });
    case 'disarm':
      return world.armed === call.operation ? hit({ armed: null }) : miss;
    case 'fence': {
      if (world.fence) return miss;
      if (world.sourceEpoch !== call.epoch) return miss;
      if (world.armed !== call.operation && mutation.unarmedFence !== true) return miss;
      return hit({ fence: true, sourceEpoch: call.epoch + 1, raisedBy: call.operation });
    }
    case 'unfence': {
      const disarm: Call = { to: 'disarm', operation: call.operation };
      const disarmed = mutation.neverDisarm === true ? world : execute(world, disarm, mutation).world;
      if (!world.fence || world.raisedBy !== call.operation) return { world: disarmed, hit: false };
      return { world: { ...disarmed, fence: false, sourceEpoch: call.epoch }, hit: true };
    }
    case 'reopen':
      if (!world.fence || world.sourceEpoch !== call.epoch) return miss;
      return hit({ fence: false, sourceEpoch: call.epoch + 1 });
    case 'guard':
      if (world.journal[call.operation]?.state !== 'fencing' && mutation.blindRaiseGuard !== true)
        return miss;
      return hit({ guard: true });
    case 'unguard': {
      const open = world.journal.some(({ state }) => !FINAL.includes(state));
      if ((world.side !== 'destination' || open) && mutation.blindLowerGuard !== true) return miss;
      return hit({ guard: false });
    }
    case 'move':
      if (world.journal[call.operation]?.state !== call.from) return miss;
      return { world: withEntry(world, call.operation, call.state), hit: true };
    case 'abort': {
      const entry = world.journal[call.operation];
      if (entry === undefined || !BEFORE_COMMIT.includes(entry.state)) return miss;
      return { world: withEntry(world, call.operation, 'aborted'), hit: true };
    }
    case 'commit': {
      const entry = world.journal[call.operation];
      if (entry === undefined) return miss;
      const expected = entry.state === 'verifying' && world.epoch === entry.epoch;
      if (!expected && mutation.blindCommit !== true) return miss;
      const side = entry.kind === 'cutover' ? 'destination' : 'source';
      const moved = {
        ...withEntry(world, call.operation, 'committed'),
        side,
        epoch: entry.epoch + 1,
      } as const;
      return { world: side === 'destination' ? { ...moved, guard: false } : moved, hit: true };
    }
    case 'finish': {
      const entry = world.journal[call.operation];
      if (entry === undefined || !AFTER_COMMIT.includes(entry.state)) return miss;
      return { world: withEntry(world, call.operation, 'done'), hit: true };
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------
// What a process does with an answer

export function withProcess(world: World, index: number, process: Process): World {
  return { ...world, processes: world.processes.map((old, at) => (at === index ? process : old)) };
}

export type Next = readonly [label: string, world: World];

export class Moves {
  readonly found: Next[] = [];
  readonly #world: World;
  readonly #mutation: Mutation;
  readonly #bounds: Bounds;

  constructor(world: World, mutation: Mutation, bounds: Bounds) {
    this.#world = world;
    this.#mutation = mutation;
    this.#bounds = bounds;
  }

  add(label: string, world: World): void {
    this.found.push([label, world]);
  }

  /** A call of process `index`: answered, or failed in each of the three ways, after which the process is `failed`. */
  call(
    index: number,
    call: Call,
    answered: (hit: boolean, world: World) => Process,
    failed: Process | null,
  ): void {
    const label = `${index} ${call.to}`;
    const { world, hit } = execute(this.#world, call, this.#mutation);
    this.add(label, withProcess(world, index, answered(hit, world)));
    if (failed === null) return;
    this.add(`${label}: not sent`, withProcess(this.#world, index, failed));
    this.add(`${label}: answer lost`, withProcess(world, index, failed));
    if (this.#world.late.length >= this.#bounds.late) return;
    const late = { ...this.#world, late: [...this.#world.late, call] };
    this.add(`${label}: late`, withProcess(late, index, failed));
  }
}

type Operating = Extract<Process, { at: 'operation' }>;

function failing(process: Operating): Operating {
  return { ...process, state: transition(process.state, 'fail'), part: 'abort' };
}

export const IDLE: Process = { at: 'idle', owes: null };

export function operate(
  moves: Moves,
  world: World,
  index: number,
  process: Operating,
  mutation: Mutation,
): void {
  const { operation, kind, state, epoch, part } = process;
  const fails = accepts(state, 'fail') && !process.commitSent ? failing(process) : null;
  if (fails !== null) moves.add(`${index} fails in ${state}`, withProcess(world, index, fails));
  const journal = (input: Parameters<typeof transition>[1], then: Part = 'act') => {
    const to = transition(state, input);
    moves.call(
      index,
      { to: 'move', operation, from: state, state: to },
      (hit) => (hit ? { ...process, state: to, part: then } : failing(process)),
      fails,
    );
  };
  switch (state) {
    case 'preflight':
      if (kind === 'rollback' || part === 'journal') {
        journal('checked');
        return;
      }
      moves.call(
        index,
        { to: 'arm', operation, epoch },
        (hit) => (hit ? { ...process, part: 'journal' } : failing(process)),
        failing(process),
      );
      return;
    case 'holding':
      journal('held');
      return;
    case 'fencing': {
      if (part === 'journal') {
        journal('fenced');
        return;
      }
      const tried: Operating = { ...process, fenceTried: true };
      const call: Call = kind === 'cutover' ? { to: 'fence', operation, epoch } : { to: 'guard', operation };
      const marked = (after: World) => {
        const from = mutation.markBeforeFence === true ? world : after;
        return kind === 'cutover' ? from.onSource : from.onDestination;
      };
      if (mutation.markBeforeFence === true && process.mark < 0) {
        const mark = kind === 'cutover' ? world.onSource : world.onDestination;
        moves.add(`${index} marks`, withProcess(world, index, { ...process, mark }));
        return;
      }
      moves.call(
        index,
        call,
        (hit, after) =>
          hit
            ? { ...tried, part: 'journal', mark: process.mark < 0 ? marked(after) : process.mark }
            : failing(tried),
        failing(tried),
      );
      return;
    }
    case 'catching-up': {
      const reached = kind === 'cutover' ? world.onDestination : world.onSource;
      if (reached < process.mark && mutation.skipCatchUp !== true) return;
      journal('caught-up', mutation.guardLoweredEarly === true && kind === 'cutover' ? 'stage' : 'act');
      return;
    }
    case 'verifying': {
      if (part === 'stage') {
        moves.add(
          `${index} lowers the guard`,
          withProcess({ ...world, guard: false }, index, { ...process, part: 'act' }),
        );
        return;
      }
      if (mutation.openBeforeCommit === true && kind === 'rollback' && world.fence) {
        moves.add(`${index} opens`, { ...world, fence: false, sourceEpoch: epoch + 1 });
        return;
      }
      const doubtful: Operating = {
        ...process,
        state: transition(state, 'answer-lost'),
        part: 'doubt',
        commitSent: true,
      };
      moves.call(
        index,
        { to: 'commit', operation },
        // A swap that misses is seen before COMMIT is sent.
        (hit) =>
          hit ? { ...process, commitSent: true, state: transition(state, 'committed') } : failing(process),
        doubtful,
      );
      return;
    }
    case 'in-doubt': {
      const aborted: Operating = { ...process, state: transition(state, 'fail'), part: 'undo' };
      const committed: Operating = { ...process, state: transition(state, 'committed') };
      if (mutation.doubtMeansAborted === true) {
        moves.add(`${index} gives up`, withProcess(world, index, aborted));
      } else if (mutation.doubtMeansCommitted === true) {
        moves.add(`${index} believes`, withProcess(world, index, committed));
      } else {
        moves.call(
          index,
          { to: 'abort', operation },
          (hit, after) => (hit || after.journal[operation]?.state === 'aborted' ? aborted : committed),
          process,
        );
      }
      return;
    }
    case 'rolling-back':
      undo(moves, world, index, process, mutation);
      return;
    case 'committed':
      if (kind === 'cutover')
        moves.add(`${index} opened`, withProcess(world, index, { ...process, state: 'switching' }));
      else {
        moves.call(
          index,
          { to: 'reopen', epoch },
          () => ({ ...process, state: transition(state, 'opened') }),
          process,
        );
      }
      return;
    case 'switching':
    case 'releasing':
      moves.call(index, { to: 'finish', operation }, () => IDLE, IDLE);
      return;
    default:
      throw new Error(`a process can’t be ${state}`);
  }
}

/** The abort is journaled, or owed where no COMMIT was sent; then the barrier is lowered if it was tried. */
function undo(moves: Moves, world: World, index: number, process: Operating, mutation: Mutation): void {
  const { operation, kind, epoch } = process;
  const lower = (then: Process) => {
    const call: Call = kind === 'cutover' ? { to: 'unfence', operation, epoch } : { to: 'unguard' };
    moves.call(index, call, () => then, process);
  };
  const idle: Process = { at: 'idle', owes: process.owes ? operation : null };
  if (process.part === 'abort') {
    if (mutation.lowerBeforeAbort === true && process.fenceTried) {
      lower({ ...process, fenceTried: false });
      return;
    }
    const undoing: Operating = { ...process, part: 'undo' };
    const owed = kind === 'cutover' && !process.commitSent;
    moves.call(
      index,
      { to: 'abort', operation },
      // Somebody else ended it otherwise: a person must look. The process serves no more of it.
      (hit, after) => (hit || after.journal[operation]?.state === 'aborted' ? undoing : { at: 'dead' }),
      owed ? { ...undoing, owes: true } : process,
    );
    return;
  }
  if (!process.fenceTried) {
    moves.add(`${index} undone`, withProcess(world, index, idle));
    return;
  }
  lower(idle);
}
