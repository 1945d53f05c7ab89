/**
 * Kernel regression for rare spikes (Nadaraya–Watson 1964; as QueryBot 5000, SIGMOD 2018, §6.2): what followed when a day
 * last looked like this one. The query is the shape of the last day in two-hour means, with what the season says of the
 * target; the candidates are the same slot of every earlier day. The bandwidth is the distance of the nearest few, so
 * that something is always near.
 */
import { at } from '../numeric.js';
import type { Track } from '../track.js';
import { firstSeason } from './deviations.js';
import type { Forecaster } from './forecaster.js';

const PARTS = 12;
const DIMENSIONS = PARTS + 2;
const NEIGHBOURS = 4;
const DAYS_MAX = 365;
/** How much the season's word on the target weighs against one part of the day. */
const SEASON_WEIGHT = 4;

class Prefix {
  #sums = new Float64Array(64);
  #length = 0;

  update(track: Track): void {
    if (track.length + 1 > this.#sums.length) {
      const sums = new Float64Array((track.length + 1) * 2);
      sums.set(this.#sums);
      this.#sums = sums;
    }
    for (; this.#length < track.length; this.#length++) {
      this.#sums[this.#length + 1] = at(this.#sums, this.#length) + at(track.levels, this.#length);
    }
  }

  mean(from: number, to: number): number {
    return (at(this.#sums, to) - at(this.#sums, from)) / Math.max(1, to - from);
  }
}

function describe(track: Track, sums: Prefix, last: number, horizon: number, out: Float64Array): void {
  const part = track.perDay / PARTS;
  for (let index = 0; index < PARTS; index++) {
    const from = Math.floor(last + 1 - track.perDay + index * part);
    out[index] = sums.mean(from, Math.max(from + 1, Math.floor(from + part)));
  }
  const target = last + horizon;
  const week = target - firstSeason(horizon, track.perWeek) * track.perWeek;
  const day = target - firstSeason(horizon, track.perDay) * track.perDay;
  out[PARTS] = at(track.levels, week >= 0 ? week : day);
  out[PARTS + 1] = at(track.levels, day);
}

function distance(a: Float64Array, b: Float64Array): number {
  let sum = 0;
  for (let index = 0; index < DIMENSIONS; index++) {
    const difference = at(a, index) - at(b, index);
    sum += (index < PARTS ? 1 : SEASON_WEIGHT) * difference * difference;
  }
  return sum;
}

/** Arrays that every forecast of a model uses anew. */
interface Scratch {
  readonly query: Float64Array;
  readonly other: Float64Array;
  readonly far: Float64Array;
  readonly levels: Float64Array;
  readonly nearest: Float64Array;
}

function regress(track: Track, sums: Prefix, horizon: number, scratch: Scratch): number {
  const { query, other, far, levels, nearest } = scratch;
  const last = track.length - 1;
  describe(track, sums, last, horizon, query);
  nearest.fill(Number.POSITIVE_INFINITY);
  let found = 0;
  const nearestDay = firstSeason(horizon, track.perDay);
  for (let day = nearestDay; day < nearestDay + DAYS_MAX; day++) {
    const end = last - day * track.perDay;
    if (end + 1 < track.perDay || end + horizon - nearestDay * track.perDay < 0) break;
    if (track.observed[end + horizon] === 0) continue;
    describe(track, sums, end, horizon, other);
    far[found] = distance(query, other);
    levels[found] = at(track.levels, end + horizon);
    keepNearest(nearest, at(far, found));
    found += 1;
  }
  if (found === 0) return at(query, PARTS + 1);
  const least = at(nearest, 0);
  const width = at(nearest, Math.min(NEIGHBOURS, found) - 1) - least + 1e-9;
  let weights = 0;
  let weighted = 0;
  for (let index = 0; index < found; index++) {
    const weight = Math.exp(-(at(far, index) - least) / width);
    weights += weight;
    weighted += weight * at(levels, index);
  }
  return weighted / weights;
}

/** `nearest` stays ascending. */
function keepNearest(nearest: Float64Array, value: number): void {
  let place = nearest.length;
  while (place > 0 && at(nearest, place - 1) > value) place -= 1;
  if (place === nearest.length) return;
  nearest.copyWithin(place + 1, place, nearest.length - 1);
  nearest[place] = value;
}

export const kernel: Forecaster = {
  name: 'kernel',
  stepsMin: (track, horizons) =>
    (firstSeason(Math.max(...horizons), track.perDay) * 2 + NEIGHBOURS) * track.perDay,
  fit(track) {
    const sums = new Prefix();
    sums.update(track);
    const scratch: Scratch = {
      query: new Float64Array(DIMENSIONS),
      other: new Float64Array(DIMENSIONS),
      far: new Float64Array(DAYS_MAX),
      levels: new Float64Array(DAYS_MAX),
      nearest: new Float64Array(NEIGHBOURS),
    };
    return {
      forecast(known, asked, out) {
        for (const [index, horizon] of asked.entries()) out[index] = regress(known, sums, horizon, scratch);
      },
      update: (known) => sums.update(known),
    };
  },
};
