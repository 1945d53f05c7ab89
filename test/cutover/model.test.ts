import { expect, test } from 'vitest';
import { searchPair, type CrossMutation } from './model-subsets.js';
import { search } from './model-search.js';
import { searchTogether, type TogetherMutation } from './model-together.js';
import type { Bounds, Mutation } from './model.js';

const ONE: Bounds = { operations: 2, writes: 1, deaths: 1, late: 1 };

test.each<[string, number, Bounds]>([
  ['one process, its death and its calls that come late', 1, ONE],
  ['two processes that take one another for dead', 2, { operations: 2, writes: 1, deaths: 0, late: 0 }],
])('no state that can be reached breaks a guarantee: %s', (_, processes, bounds) => {
  const { states, fault, trace } = search(processes, {}, bounds);
  expect({ fault, trace }).toEqual({ fault: null, trace: [] });
  expect(states).toBeGreaterThan(1_000);
});

/** A checker that finds nothing proves nothing: each of these must be found, in the world where it matters. */
const MUTATIONS: readonly (keyof Mutation)[] = [
  'blindCommit',
  'lowerBeforeAbort',
  'recoverWithoutAbort',
  'markBeforeFence',
  'skipCatchUp',
  'guardLoweredEarly',
  'doubtMeansAborted',
  'doubtMeansCommitted',
  'unarmedFence',
  'neverDisarm',
  'openBeforeCommit',
  'blindLowerGuard',
  'blindRaiseGuard',
];

test.each(MUTATIONS)('the search finds what is wrong with %s', (mutation) => {
  // Two rollbacks, the lowering of the first coming late into the second.
  const operations = mutation === 'blindLowerGuard' ? 3 : ONE.operations;
  expect(search(1, { [mutation]: true }, { ...ONE, operations }).fault).not.toBeNull();
});

const PAIR: Bounds = { operations: 1, writes: 1, deaths: 1, late: 0 };

test('two subsets, one after the other: none breaks a guarantee of the other', () => {
  const { states, fault, trace } = searchPair({}, PAIR);
  expect({ fault, trace }).toEqual({ fault: null, trace: [] });
  expect(states).toBeGreaterThan(1_000);
});

const CROSSING: readonly (keyof CrossMutation)[] = [
  'streamIgnoresLeader',
  'lowersBothGuards',
  'lowersBothFences',
  'routesBoth',
];

test.each(CROSSING)('the search finds what is wrong between two subsets with %s', (mutation) => {
  expect(searchPair({ [mutation]: true }, PAIR).fault).not.toBeNull();
});

/** With a write besides it was searched once: 130,788 states, and nothing found. */
const TOGETHER: Bounds = { operations: 1, writes: 0, deaths: 1, late: 1 };

test.each<[string, Bounds]>([
  ['there, with calls that come late', TOGETHER],
  ['there and back', { operations: 2, writes: 0, deaths: 1, late: 0 }],
])('two subsets in one operation, %s: whatever happens, both end on the same side', (_, bounds) => {
  const { states, fault, trace } = searchTogether({}, bounds);
  expect({ fault, trace }).toEqual({ fault: null, trace: [] });
  expect(states).toBeGreaterThan(1_000);
});

const APART: readonly (keyof TogetherMutation)[] = ['commitsApart', 'comparesOne', 'believesApart'];

test.each(APART)('the search finds what is wrong with one operation on two subsets with %s', (mutation) => {
  expect(searchTogether({ [mutation]: true }, TOGETHER).fault).not.toBeNull();
});
