/**
 * Prediction intervals from past errors, per horizon: split-conformal quantiles of the latest errors, normalised by the
 * error that is usual in that slot of the day, times a factor per side that follows the coverage achieved: it grows with
 * each miss and shrinks with each hit, so that misses even out at the wanted share whatever the errors do (Gibbs &
 * Candès, "Adaptive conformal inference under distribution shift", NeurIPS 2021; on quantiles rather than levels:
 * Angelopoulos, Candès & Tibshirani, "Conformal PID control", NeurIPS 2023).
 * Each side has its own quantile, so a skewed error gives a skewed interval.
 *
 * Scores are of forecasts made before their target was known; a window of the latest {@link SCORES_MAX} is kept.
 */
import { at, clamp, quantileOfSorted } from './numeric.js';

export const SCORES_MAX = 1_024;
/** Step by which the log of a side's factor moves after each miss or hit. */
const STEP = 0.04;
const LOG_FACTOR_MIN = -0.3;
const LOG_FACTOR_MAX = 2;
/** Share by which a new error moves its slot's usual error. */
const SCALE_RATE = 0.08;
const SCALE_FLOOR = 0.01;

interface Tail {
  logFactor: number;
}

export class ConformalBand {
  readonly #slots: number;
  readonly #scales: Float64Array;
  readonly #scores = new Float64Array(SCORES_MAX);
  #count = 0;
  #overall = 0.1;
  /** Share of targets that may lie beyond each side. */
  readonly #miss: number;
  readonly #lower: Tail = { logFactor: 0 };
  readonly #upper: Tail = { logFactor: 0 };
  #ranked: readonly [number, number] | undefined;
  #inflation = 1;

  /** `coverage` in 0…1, e.g. 0.9. `perDay`: steps in a day; slots are of about an hour. */
  constructor(coverage: number, perDay: number) {
    this.#slots = Math.min(24, perDay);
    this.#scales = new Float64Array(this.#slots);
    this.#miss = (1 - coverage) / 2;
  }

  /** Errors behind the band. */
  get count(): number {
    return this.#count;
  }

  /**
   * Takes in the error (actual minus median, in levels) of a forecast whose target fell on `slotOfDay` of `perDay`, and
   * the offsets that were given out with it: what is adapted to is what was promised then, not what would be now.
   */
  add(error: number, promised: readonly [number, number], slotOfDay: number, perDay: number): void {
    const slot = this.#slotOf(slotOfDay, perDay);
    const scale = this.#scale(slot);
    if (this.#count >= 30) {
      this.#adapt(this.#lower, error < promised[0]);
      this.#adapt(this.#upper, error > promised[1]);
    }
    this.#scores[this.#count % SCORES_MAX] = error / scale;
    this.#count += 1;
    // A few scores more hardly move a quantile, and sorting is most of the work.
    if (this.#count < 64 || this.#count % 8 === 0) this.#ranked = undefined;
    // An error that bursts the band says little about its slot's usual size.
    const size = Math.min(Math.abs(error), 5 * scale);
    const rate = this.#count < 30 ? 1 / this.#count : SCALE_RATE;
    this.#overall += (size - this.#overall) * (this.#count < 30 ? rate : rate / 4);
    const own = at(this.#scales, slot);
    this.#scales[slot] = own === 0 ? size : own + SCALE_RATE * (size - own);
    this.#inflation = Math.max(1, this.#inflation * 0.99);
  }

  /** Lower and upper offset from the median, in levels. Wide while little is known. */
  offsets(slotOfDay: number, perDay: number): readonly [number, number] {
    const scale = this.#scale(this.#slotOf(slotOfDay, perDay)) * this.#inflation;
    if (this.#count === 0) return [-1, 1];
    const [low, high] = this.#quantiles();
    // With n scores the outermost rank still misses 2/(n+1) of the time: widen small samples.
    const small = 1 + 5 / this.#count;
    return [Math.min(0, low) * scale * small, Math.max(0, high) * scale * small];
  }

  /** After a change-point old errors say too little: widen, until new ones have come. */
  widen(factor: number): void {
    this.#inflation = Math.max(this.#inflation, factor);
  }

  #slotOf(slotOfDay: number, perDay: number): number {
    return Math.floor(((slotOfDay % perDay) * this.#slots) / perDay);
  }

  /** The slot's usual error, drawn half towards the usual error of all. */
  #scale(slot: number): number {
    const own = at(this.#scales, slot);
    const mixed = own === 0 ? this.#overall : 0.5 * own + 0.5 * this.#overall;
    return Math.max(SCALE_FLOOR, mixed);
  }

  #quantiles(): readonly [number, number] {
    const [low, high] = (this.#ranked ??= this.#rank());
    return [low * Math.exp(this.#lower.logFactor), high * Math.exp(this.#upper.logFactor)];
  }

  /** At the finite-sample rank of split-conformal prediction: ⌈(n + 1)(1 − α)⌉ of n. */
  #rank(): readonly [number, number] {
    const sorted = this.#scores.slice(0, Math.min(this.#count, SCORES_MAX)).sort();
    const rank = Math.min(1, ((1 - this.#miss) * (sorted.length + 1)) / sorted.length);
    return [quantileOfSorted(sorted, 1 - rank), quantileOfSorted(sorted, rank)];
  }

  #adapt(tail: Tail, missed: boolean): void {
    const moved = tail.logFactor + STEP * ((missed ? 1 : 0) - this.#miss);
    tail.logFactor = clamp(moved, LOG_FACTOR_MIN, LOG_FACTOR_MAX);
  }
}
