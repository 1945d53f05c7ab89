/**
 * Two subsets in the model of `model.ts`, searched whole: each is a world of its own, with its own fence, guard, epoch,
 * route and journal, and the process that works on them is one. It dies in both at once and starts in both at once, and
 * works on one at a time. What is looked for is what one subset's operation may do to the other.
 *
 * The two streams are of the server, not of the subset: where one of them carries a subset although its side does not
 * lead it, it brings back what the other side has changed since.
 */
import { FINAL } from '../../src/cutover/machine.js';
import { faultIn, keyOf, searchPairs, settles, successors, type Pair, type Search } from './model-search.js';
import type { Bounds, World } from './model.js';

/** One thing each that must not be done. */
export interface CrossMutation {
  /** The forward stream carries all subsets for as long as the source leads one. */
  readonly streamIgnoresLeader?: boolean;
  /** A cutover's commit lowers the guard of both. */
  readonly lowersBothGuards?: boolean;
  /** Undoing a cutover lowers both fences. */
  readonly lowersBothFences?: boolean;
  /** A commit moves the route of both. */
  readonly routesBoth?: boolean;
}

const other = (index: number): 0 | 1 => (index === 0 ? 1 : 0);

function replaced(pair: Pair, index: number, world: World): Pair {
  return index === 0 ? [world, pair[1]] : [pair[0], world];
}

function isOpen(world: World): boolean {
  return (
    world.journal.some(({ state }) => !FINAL.includes(state)) ||
    world.processes.some(({ at }) => at === 'operation')
  );
}

/** What of a move shows in the other subset: the process's life, and what a mistake does. */
function beside(now: World, before: World, after: World, label: string, mutation: CrossMutation): World {
  let beside = now;
  if (label.endsWith(' dies')) {
    beside = { ...beside, processes: beside.processes.map(() => ({ at: 'dead' })), deaths: after.deaths };
  } else if (label.endsWith(' starts')) {
    beside = { ...beside, processes: beside.processes.map(() => ({ at: 'recovery', seen: null })) };
  }
  const committed = before.side !== after.side;
  if (mutation.lowersBothGuards === true && committed && before.guard && !after.guard)
    beside = { ...beside, guard: false };
  if (mutation.lowersBothFences === true && before.fence && !after.fence && !committed)
    beside = { ...beside, fence: false };
  if (mutation.routesBoth === true && committed) beside = { ...beside, side: after.side };
  return beside;
}

function next(pair: Pair, mutation: CrossMutation, bounds: Bounds): readonly (readonly [string, Pair])[] {
  return pair.flatMap((world, index) => {
    const twin = pair[other(index)];
    const busy = isOpen(twin) || twin.processes.some(({ at }) => at !== 'idle');
    const moves = successors(world, {}, bounds).filter(([label]) => !(busy && label.includes(' begins ')));
    const found = moves.map(([label, after]): readonly [string, Pair] => [
      `${index === 0 ? 'A' : 'B'}: ${label}`,
      replaced(replaced(pair, other(index), beside(twin, world, after, label, mutation)), index, after),
    ]);
    const stray = !twin.fence && world.fence && world.onSource < world.onDestination;
    if (mutation.streamIgnoresLeader === true && stray) {
      const overwritten = { ...world, onDestination: world.onSource };
      found.push([
        `${index}: the forward stream carries what it should not`,
        replaced(pair, index, overwritten),
      ]);
    }
    return found;
  });
}

/** Most worlds come many times, beside another twin: `known` remembers what is wrong with each. */
function faultOf(pair: Pair, known: Map<string, string | null>): string | null {
  for (const [index, world] of pair.entries()) {
    const key = keyOf(world);
    let fault = known.get(key);
    if (fault === undefined) {
      fault = faultIn(world) ?? settles(world, {});
      known.set(key, fault);
    }
    if (fault !== null) return `${index === 0 ? 'A' : 'B'}: ${fault}`;
  }
  return null;
}

/** Every state of both within `bounds`, which are each subset's own; ends at the first fault. */
export function searchPair(mutation: CrossMutation, bounds: Bounds): Search {
  const known = new Map<string, string | null>();
  return searchPairs({
    next: (pair) => next(pair, mutation, bounds),
    faultOf: (pair) => faultOf(pair, known),
  });
}
