/**
 * Two subsets in one operation, in the model of `model.ts`, searched whole: each is a world of its own, with its own fence,
 * guard, epoch, route and journal row, as in `model-subsets.ts`, and one process walks both at once.
 *
 * What claims the records of both is one transaction: the fence, the guard, the commit, the opening of the source, and each
 * state's journaling. It is carried out for both or for neither, now or late. What undoes, settles or recovers takes one at a
 * time, in any order, and may die between the two. So of every state reached it must hold beside what holds of each: were
 * everybody to die, a process that starts would serve both by the same side.
 */
import { FINAL } from '../../src/cutover/machine.js';
import { faultIn, searchPairs, settled, successors, type Pair, type Search } from './model-search.js';
import type { Bounds, Next, Process, World } from './model.js';

/** One thing each that must not be done. */
export interface TogetherMutation {
  /** Each subset is committed in a transaction of its own. */
  readonly commitsApart?: boolean;
  /** The commit compares the second subset's row alone. */
  readonly comparesOne?: boolean;
  /** An unanswered COMMIT counts as done for the second subset, without asking. */
  readonly believesApart?: boolean;
}

type Move = readonly [label: string, pair: Pair];

/** By the label of a call, what of it is one transaction on both. */
const TOGETHER =
  /^(?:0 (?:begins|move|fence|guard|commit|reopen|dies|starts|fails)|late (?:fence|guard|commit|reopen|move))/;
/** It compares the records of both. */
const CLAIMS = /(?:fence|guard|commit)/;

function serverPart(world: World): string {
  return JSON.stringify({ ...world, processes: [], late: [], deaths: 0 });
}

function operating(world: World): Extract<Process, { at: 'operation' }> | null {
  const [process] = world.processes;
  return process?.at === 'operation' ? process : null;
}

function hit(before: World, after: World): boolean {
  return serverPart(before) !== serverPart(after);
}

/** Of a world whose claim may not count, as the other's record forbade it: the servers as before. */
function missed(before: World, label: string, bounds: Bounds, after: World): World {
  if (label.startsWith('late ')) return { ...before, late: after.late };
  const lost = label.endsWith(': answer lost');
  if (lost) return { ...before, processes: after.processes };
  return successors(before, {}, bounds).find(([each]) => each.startsWith('0 fails'))?.[1] ?? before;
}

function both(pair: Pair, label: string, after: Pair, mutation: TogetherMutation, bounds: Bounds): Pair {
  const [a, b] = [hit(pair[0], after[0]), hit(pair[1], after[1])];
  if (a === b || !CLAIMS.test(label) || /: (?:not sent|late)$/.test(label)) return after;
  if (mutation.comparesOne === true && label.includes('commit') && b) return after;
  return [missed(pair[0], label, bounds, after[0]), missed(pair[1], label, bounds, after[1])];
}

function isOpen(world: World): boolean {
  return world.journal.some(({ state }) => !FINAL.includes(state));
}

function next(pair: Pair, mutation: TogetherMutation, bounds: Bounds): readonly Move[] {
  const moves: [readonly Next[], readonly Next[]] = [
    successors(pair[0], {}, bounds),
    successors(pair[1], {}, bounds),
  ];
  const together = (label: string): boolean =>
    TOGETHER.test(label) && !(mutation.commitsApart === true && label.includes('commit'));
  const found: Move[] = [];
  const idle = pair.every((world) => world.processes[0]?.at === 'idle' && !isOpen(world));
  for (const [label, a] of moves[0].filter(([each]) => together(each))) {
    if (label.includes('begins') && (!idle || pair[0].side !== pair[1].side)) continue;
    // Only where the other is at the same point of it; a rollback's undoing, say, is not waited for.
    const twin = moves[1].find(([each]) => each === label);
    if (twin !== undefined) found.push([label, both(pair, label, [a, twin[1]], mutation, bounds)]);
  }
  for (const index of [0, 1] as const) {
    const lone = moves[index].filter(([label]) => !together(label) || goesAlone(label, pair, index));
    for (const [label, after] of lone) {
      const name = index === 0 ? 'A' : 'B';
      found.push([`${name}: ${label}`, index === 0 ? [after, pair[1]] : [pair[0], after]]);
    }
    const process = operating(pair[index]);
    if (mutation.believesApart === true && index === 1 && process?.state === 'in-doubt') {
      const believing = { ...pair[1], processes: [{ ...process, state: 'committed' as const }] };
      found.push(['B: believes', [pair[0], believing]]);
    }
  }
  return found;
}

/** Past the commit the opening of the source is done for each, where a recovery was before. */
function goesAlone(label: string, pair: Pair, index: 0 | 1): boolean {
  if (!label.includes('reopen') && !label.startsWith('late ')) return false;
  const twin = pair[index === 0 ? 1 : 0];
  if (label.startsWith('late ')) return !twin.late.some(({ to }) => `late ${to}` === label);
  return operating(twin)?.state !== operating(pair[index])?.state;
}

function faultOf(pair: Pair): string | null {
  const found = pair.map((world) => settled(world, {}));
  for (const [index, world] of pair.entries()) {
    const fault = faultIn(world) ?? found[index]?.fault ?? null;
    if (fault !== null) return `${index === 0 ? 'A' : 'B'}: ${fault}`;
  }
  return found[0]?.side === found[1]?.side ? null : 'a process that starts finds them on different sides';
}

/** Every state of both within `bounds`, which are each subset's own; ends at the first fault. */
export function searchTogether(mutation: TogetherMutation, bounds: Bounds): Search {
  return searchPairs({ next: (pair) => next(pair, mutation, bounds), faultOf });
}
