/** The model's recovery: what `recovery.ts` does, call by call. */
import type { Side } from '../../src/core/ports.js';
import { BEFORE_COMMIT, FINAL } from '../../src/cutover/machine.js';
import {
  IDLE,
  withProcess,
  type Call,
  type Moves,
  type Mutation,
  type Process,
  type Seen,
  type World,
} from './model.js';

/**
 * One call of the recovery of a process that has read the source: what `recovery.ts` does next, or the route if there is
 * nothing left to do. Null where it refuses: the two sides contradict one another.
 */
export function recoveryCall(world: World, seen: Seen, mutation: Mutation): Call | Side | null {
  const index = world.journal.findIndex(({ state }) => !FINAL.includes(state));
  const open = world.journal[index];
  if (open !== undefined && BEFORE_COMMIT.includes(open.state)) {
    if (open.kind === 'rollback' && !seen.fence) return null;
    if (mutation.recoverWithoutAbort === true && open.kind === 'cutover' && world.fence) {
      return { to: 'unfence', operation: index, epoch: open.epoch };
    }
    return { to: 'abort', operation: index };
  }
  if (!seen.fence) {
    if (world.side === 'destination' || world.epoch > seen.epoch) return null;
    if (open !== undefined) return { to: 'finish', operation: index };
    return seen.armed === null || mutation.neverDisarm === true
      ? 'source'
      : { to: 'disarm', operation: seen.armed };
  }
  if (open === undefined) {
    if (world.side === 'destination') return world.guard ? { to: 'unguard' } : 'destination';
    const raiser = seen.raisedBy === null ? undefined : world.journal[seen.raisedBy];
    if (seen.raisedBy === null || raiser?.state !== 'aborted' || raiser.kind !== 'cutover') return null;
    return { to: 'unfence', operation: seen.raisedBy, epoch: raiser.epoch };
  }
  if (open.kind === 'cutover') {
    return world.side === 'destination' ? { to: 'finish', operation: index } : null;
  }
  if (world.side !== 'source') return null;
  return { to: 'reopen', epoch: open.epoch };
}

export function look(world: World): Seen {
  return { fence: world.fence, epoch: world.sourceEpoch, raisedBy: world.raisedBy, armed: world.armed };
}

/** After a call it looks anew: each of them is repeatable, and nothing is kept but what the servers say. */
export function recovering(
  moves: Moves,
  world: World,
  index: number,
  seen: Seen | null,
  mutation: Mutation,
): void {
  if (seen === null) {
    moves.add(`${index} reads the source`, withProcess(world, index, { at: 'recovery', seen: look(world) }));
    return;
  }
  const next = recoveryCall(world, seen, mutation);
  const again: Process = { at: 'recovery', seen: null };
  // A contradiction may be one between two readings: it is tried again while the servers are moving.
  if (next === null) moves.add(`${index} reads again`, withProcess(world, index, again));
  else if (typeof next === 'string') moves.add(`${index} serves`, withProcess(world, index, IDLE));
  else moves.call(index, next, () => again, again);
}
