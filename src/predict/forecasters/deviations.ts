import { at } from '../numeric.js';
import type { Track } from '../track.js';

/**
 * How far each bucket lies from what its season says: `dev(i) = y(i) − mean(y(i − T), …, y(i − nT))`, the Δ of SPAR
 * (Chen et al., NSDI 2008). Kept up to date bucket by bucket, with prefix sums so that the mean over any stretch is
 * two reads.
 */
export class Deviations {
  readonly period: number;
  readonly seasons: number;
  #values: Float64Array;
  /** sums[i] = Σ values below i. */
  #sums: Float64Array;
  #length = 0;

  constructor(track: Track, period: number, seasons: number) {
    this.period = period;
    this.seasons = seasons;
    this.#values = new Float64Array(Math.max(64, track.length));
    this.#sums = new Float64Array(this.#values.length + 1);
    this.update(track);
  }

  /** The first index that has all its seasons behind it. */
  get first(): number {
    return this.period * this.seasons;
  }

  update(track: Track): void {
    if (track.length > this.#values.length) this.#grow(track.length * 2);
    for (let index = this.#length; index < track.length; index++) {
      const value =
        index < this.first
          ? 0
          : at(track.levels, index) - seasonalMean(track, index, this.period, this.seasons);
      this.#values[index] = value;
      this.#sums[index + 1] = at(this.#sums, index) + value;
    }
    this.#length = track.length;
  }

  at(index: number): number {
    return index < this.first ? 0 : at(this.#values, index);
  }

  /** Mean deviation of the `steps` buckets that end with `index`. */
  mean(index: number, steps: number): number {
    const from = Math.max(this.first, index + 1 - steps);
    return from > index ? 0 : (at(this.#sums, index + 1) - at(this.#sums, from)) / (index + 1 - from);
  }

  #grow(length: number): void {
    const values = new Float64Array(length);
    values.set(this.#values);
    const sums = new Float64Array(length + 1);
    sums.set(this.#sums);
    this.#values = values;
    this.#sums = sums;
  }
}

/** Mean level of the `seasons` buckets that lie 1, 2, … periods before `index`. All must exist. */
export function seasonalMean(track: Track, index: number, period: number, seasons: number): number {
  let sum = 0;
  for (let season = 1; season <= seasons; season++) sum += at(track.levels, index - season * period);
  return sum / seasons;
}

/** How many seasons of `period` are known of the bucket `horizon` steps ahead before the first usable one. */
export function firstSeason(horizon: number, period: number): number {
  return Math.ceil(horizon / period);
}

/** Weights that halve with age, for the rows of a fit: row i of `length`. */
export function ageWeights(length: number, halfLife: number): Float64Array {
  const weights = new Float64Array(length);
  const decay = 0.5 ** (1 / halfLife);
  let weight = 1;
  for (let index = length - 1; index >= 0; index--) {
    weights[index] = weight;
    weight *= decay;
  }
  return weights;
}
