/**
 * The model searched whole: what can happen next, what must hold in every state reached ({@link faultIn}), and of every state
 * if all processes die in it and one starts again ({@link settles}).
 */
import type { Side } from '../../src/core/ports.js';
import { FINAL, transition } from '../../src/cutover/machine.js';
import { look, recovering, recoveryCall } from './model-recovery.js';
import {
  IDLE,
  Moves,
  execute,
  operate,
  start,
  withProcess,
  type Bounds,
  type Mutation,
  type Next,
  type World,
} from './model.js';

/** Everything that can happen next. */
export function successors(world: World, mutation: Mutation, bounds: Bounds): readonly Next[] {
  const moves = new Moves(world, mutation, bounds);
  if (world.acknowledged < bounds.writes) {
    const acknowledged = world.acknowledged + 1;
    if (!world.fence)
      moves.add('write to the source', { ...world, acknowledged, onSource: world.onSource + 1 });
    if (!world.guard) {
      moves.add('write to the destination', {
        ...world,
        acknowledged,
        onDestination: world.onDestination + 1,
      });
    }
  }
  if (world.onDestination < world.onSource) moves.add('forward', { ...world, onDestination: world.onSource });
  if (world.onSource < world.onDestination) moves.add('reverse', { ...world, onSource: world.onDestination });
  world.late.forEach((call, at) => {
    const late = world.late.filter((_, other) => other !== at);
    moves.add(`late ${call.to}`, { ...execute(world, call, mutation).world, late });
  });
  world.processes.forEach((process, index) => {
    if (process.at !== 'dead' && world.deaths < bounds.deaths) {
      moves.add(`${index} dies`, { ...withProcess(world, index, { at: 'dead' }), deaths: world.deaths + 1 });
    }
    switch (process.at) {
      case 'dead':
        moves.add(`${index} starts`, withProcess(world, index, { at: 'recovery', seen: null }));
        return;
      case 'idle':
        begin(moves, world, index, bounds);
        if (process.owes !== null) {
          moves.call(index, { to: 'abort', operation: process.owes }, () => IDLE, null);
        }
        return;
      case 'recovery':
        recovering(moves, world, index, process.seen, mutation);
        return;
      case 'operation':
        operate(moves, world, index, process, mutation);
    }
  });
  return moves.found;
}

function begin(moves: Moves, world: World, index: number, bounds: Bounds): void {
  if (world.journal.length >= bounds.operations) return;
  if (world.journal.some(({ state }) => !FINAL.includes(state))) return;
  const kind = world.side === 'source' ? 'cutover' : 'rollback';
  const state = transition('idle', 'begin');
  const { epoch } = world;
  moves.add(
    `${index} begins a ${kind}`,
    withProcess({ ...world, journal: [...world.journal, { kind, state, epoch }] }, index, {
      at: 'operation',
      operation: world.journal.length,
      kind,
      epoch,
      state,
      part: 'act',
      mark: -1,
      fenceTried: false,
      commitSent: false,
      owes: false,
    }),
  );
}

/** Which of the guarantees the state breaks, if any. */
export function faultIn(world: World): string | null {
  if (!world.fence && !world.guard) return 'both sides are writable';
  if (!world.fence && world.onSource < world.acknowledged) return 'the source is writable and lacks a write';
  if (!world.guard && world.onDestination < world.acknowledged)
    return 'the destination is writable and lacks a write';
  const atRest = world.late.length === 0 && world.processes.every((process) => process.at === 'idle');
  if (atRest && world.fence && world.guard) return 'neither side is writable, and nobody is at work';
  return null;
}

/** All processes die, what was under way is lost, and one starts again: does it end with one writable side? */
export function settles(world: World, mutation: Mutation): string | null {
  return settled(world, mutation).fault;
}

/** The same, and the side that it serves then. */
export function settled(
  world: World,
  mutation: Mutation,
): { readonly fault: string | null; readonly side: Side | null } {
  const failed = (fault: string) => ({ fault, side: null });
  const caughtUp = Math.max(world.onSource, world.onDestination);
  let now: World = { ...world, late: [], processes: [], onSource: caughtUp, onDestination: caughtUp };
  for (let calls = 0; calls < 10; calls++) {
    const next = recoveryCall(now, look(now), mutation);
    if (next === null) return failed('a process that starts finds a contradiction');
    if (typeof next === 'string') {
      const writable = next === 'source' ? !now.fence : !now.guard;
      return writable
        ? { fault: faultIn(now), side: next }
        : failed(`a process that starts serves the ${next}, which refuses writes`);
    }
    now = execute(now, next, mutation).world;
  }
  return failed('a process that starts never ends recovering');
}

/** Equal for equal worlds; much cheaper than JSON, and the search makes little else. */
export function keyOf(world: World): string {
  const { fence, sourceEpoch, raisedBy, armed, onSource, guard, side, epoch, onDestination } = world;
  let key = `${fence}${sourceEpoch},${raisedBy},${armed},${onSource},${guard}${side}${epoch},${onDestination},${world.acknowledged},${world.deaths}`;
  for (const entry of world.journal) key += `|${entry.kind}${entry.state}${entry.epoch}`;
  for (const call of world.late) key += `!${Object.values(call).join()}`;
  for (const process of world.processes) {
    key += `;${process.at}`;
    if (process.at === 'idle') key += process.owes;
    else if (process.at === 'operation') key += Object.values(process).join();
    else if (process.at === 'recovery' && process.seen !== null) key += Object.values(process.seen).join();
  }
  return key;
}

export interface Search {
  readonly states: number;
  /** The first fault, and the shortest way to it. */
  readonly fault: string | null;
  readonly trace: readonly string[];
}

/** What is searched: where it begins, where it can go from each state, and what is wrong with one. */
export interface Space<S> {
  readonly first: S;
  /** Equal for equal states. */
  readonly keyOf: (state: S) => string;
  readonly next: (state: S) => readonly (readonly [label: string, state: S])[];
  readonly faultOf: (state: S) => string | null;
}

/** Breadth first through every state; ends at the first fault. */
export function searchSpace<S>({ first, keyOf: key, next, faultOf }: Space<S>): Search {
  const seen = new Set([key(first)]);
  const queue: { readonly state: S; readonly from: number; readonly label: string }[] = [
    { state: first, from: -1, label: '' },
  ];
  for (let at = 0; at < queue.length; at++) {
    const { state } = queue[at] ?? { state: first };
    const fault = faultOf(state);
    if (fault !== null) {
      const trace: string[] = [];
      for (let step = at; step > 0; step = queue[step]?.from ?? 0) trace.unshift(queue[step]?.label ?? '');
      return { states: seen.size, fault, trace };
    }
    for (const [label, after] of next(state)) {
      const known = key(after);
      if (seen.has(known)) continue;
      seen.add(known);
      queue.push({ state: after, from: at, label });
    }
  }
  return { states: seen.size, fault: null, trace: [] };
}

/** Every state of one subset within `bounds`. */
export function search(processes: number, mutation: Mutation, bounds: Bounds): Search {
  return searchSpace({
    first: start(processes),
    keyOf,
    next: (world) => successors(world, mutation, bounds),
    faultOf: (world) => faultIn(world) ?? settles(world, mutation),
  });
}

/** Two subsets, each a world of its own. */
export type Pair = readonly [World, World];

/** Every state of both, each with one process, from the beginning. */
export function searchPairs(rules: Pick<Space<Pair>, 'next' | 'faultOf'>): Search {
  return searchSpace({
    first: [start(1), start(1)],
    keyOf: ([a, b]) => `${keyOf(a)} ${keyOf(b)}`,
    ...rules,
  });
}
