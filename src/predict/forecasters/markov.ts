/**
 * A Markov chain over load levels and the hour of the day, for sparse and bursty subsets: idle is a state of its own, the
 * rest are quantiles of what was seen; transitions per hour of day lean on the transitions of all hours where an hour has
 * seen little (Dirichlet prior). The forecast is the median of the distribution `h` steps on; for a subset that is mostly
 * idle that is zero, where every mean would promise a little load for ever.
 */
import { add, at, medianOf, quantileOfSorted } from '../numeric.js';
import type { Track } from '../track.js';
import type { ForecastModel, Forecaster } from './forecaster.js';

const STATES = 8;
const CELLS = STATES * STATES;
/** Transitions that the prior of one hour's row is worth. */
const PRIOR = 6;
/** A bucket this near to zero is idle. */
const IDLE = 1e-9;
const WEEKS_MAX = 26;

interface Chain {
  readonly hours: number;
  /** Upper border of each state but the last; state 0 is idle. */
  readonly borders: Float64Array;
  /** The level each state stands for. */
  readonly centres: Float64Array;
  /** hour → state → next state. */
  readonly steps: readonly Float64Array[];
}

function stateOf(level: number, borders: Float64Array): number {
  if (level <= IDLE) return 0;
  let state = 1;
  while (state < STATES - 1 && level > at(borders, state)) state += 1;
  return state;
}

function hourOf(track: Track, index: number, hours: number): number {
  return Math.floor(((track.slot(index) % track.perDay) * hours) / track.perDay);
}

function learn(track: Track): Chain {
  const hours = Math.min(24, track.perDay);
  const from = Math.max(0, track.length - WEEKS_MAX * track.perWeek);
  const busy = track.levels
    .slice(from, track.length)
    .filter((level) => level > IDLE)
    .sort();
  const borders = new Float64Array(STATES).fill(Number.POSITIVE_INFINITY);
  if (busy.length > 0) {
    for (let state = 1; state < STATES - 1; state++)
      borders[state] = quantileOfSorted(busy, state / (STATES - 1));
  }
  const members: number[][] = Array.from({ length: STATES }, () => []);
  for (const level of busy) members[stateOf(level, borders)]?.push(level);
  const centres = Float64Array.from(members, medianOf);
  const all = new Float64Array(CELLS).fill(0.05);
  const counts = Array.from({ length: hours }, () => new Float64Array(CELLS));
  let state = stateOf(at(track.levels, from), borders);
  for (let index = from + 1; index < track.length; index++) {
    const next = stateOf(at(track.levels, index), borders);
    if (track.observed[index] === 1 && track.observed[index - 1] === 1) {
      const cell = state * STATES + next;
      add(all, cell, 1);
      const own = counts[hourOf(track, index, hours)];
      if (own !== undefined) add(own, cell, 1);
    }
    state = next;
  }
  normalise(all);
  for (const own of counts) {
    for (let cell = 0; cell < CELLS; cell++) add(own, cell, PRIOR * at(all, cell));
    normalise(own);
  }
  return { hours, borders, centres, steps: counts };
}

function normalise(matrix: Float64Array): void {
  for (let row = 0; row < STATES; row++) {
    let sum = 0;
    for (let column = 0; column < STATES; column++) sum += at(matrix, row * STATES + column);
    for (let column = 0; column < STATES; column++) {
      matrix[row * STATES + column] = sum > 0 ? at(matrix, row * STATES + column) / sum : 1 / STATES;
    }
  }
}

/** Beyond a day the chain has forgotten where it began: more whole days change nothing but the time it takes. */
function boundedSteps(horizon: number, perDay: number): number {
  return horizon > 2 * perDay ? (horizon % perDay) + perDay : horizon;
}

function advance(chain: Chain, track: Track, last: number, horizon: number): Float64Array {
  let now = new Float64Array(STATES);
  let next = new Float64Array(STATES);
  now[stateOf(at(track.levels, last), chain.borders)] = 1;
  const steps = boundedSteps(horizon, track.perDay);
  for (let step = 1; step <= steps; step++) {
    const matrix = chain.steps[hourOf(track, last + step, chain.hours)];
    if (matrix === undefined) continue;
    next.fill(0);
    for (let from = 0; from < STATES; from++) {
      const share = at(now, from);
      if (share === 0) continue;
      for (let to = 0; to < STATES; to++) add(next, to, share * at(matrix, from * STATES + to));
    }
    [now, next] = [next, now];
  }
  return now;
}

/** The level at which half the probability is passed, between the centres of the states on both sides of it. */
function medianLevel(shares: Float64Array, centres: Float64Array): number {
  let passed = 0;
  for (let state = 0; state < STATES; state++) {
    const share = at(shares, state);
    if (passed + share >= 0.5) {
      if (state === 0) return 0;
      const within = share === 0 ? 0.5 : (0.5 - passed) / share;
      const low = state > 1 ? (at(centres, state - 1) + at(centres, state)) / 2 : at(centres, state);
      const high =
        state < STATES - 1 ? (at(centres, state + 1) + at(centres, state)) / 2 : at(centres, state);
      return low + within * (Math.max(low, high) - low);
    }
    passed += share;
  }
  return at(centres, STATES - 1);
}

export const markov: Forecaster = {
  name: 'markov',
  stepsMin: (track) => track.perDay * 2,
  fit(track): ForecastModel {
    const chain = learn(track);
    return {
      forecast(known, asked, out) {
        for (const [index, horizon] of asked.entries()) {
          out[index] = medianLevel(advance(chain, known, known.length - 1, horizon), chain.centres);
        }
      },
      update() {},
    };
  },
};
