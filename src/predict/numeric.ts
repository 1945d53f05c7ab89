/**
 * Plain arithmetic on Float64Array that the forecasters share. Indices are the caller's invariant: the hot loops of a
 * fit read millions of elements, so `at` and `add` don't check what a typed array would answer with undefined.
 */

export function at(array: Float64Array, index: number): number {
  return array[index] as number;
}

export function add(array: Float64Array, index: number, value: number): void {
  array[index] = (array[index] as number) + value;
}

/** The largest that a 64-bit column holds. */
const COUNT_MAX = 2 ** 63;

/** What can have been counted or measured: not negative, and finite with room to be summed and squared. */
export function isCount(value: number): boolean {
  return value >= 0 && value <= COUNT_MAX;
}

/** 0 for what was not measured, or can't have been. */
export function counted(value: number | null | undefined): number {
  return value != null && isCount(value) ? value : 0;
}

export function clamp(value: number, low: number, high: number): number {
  return value < low ? low : value > high ? high : value;
}

/** 0 where empty. */
export function meanOf(values: ArrayLike<number>): number {
  let sum = 0;
  for (let index = 0; index < values.length; index++) sum += values[index] as number;
  return values.length === 0 ? 0 : sum / values.length;
}

/** Linear interpolation between closest ranks. `sorted` ascending and not empty, `q` in 0…1. */
export function quantileOfSorted(sorted: ArrayLike<number>, q: number): number {
  const rank = clamp(q, 0, 1) * (sorted.length - 1);
  const lower = sorted[Math.floor(rank)] as number;
  const upper = sorted[Math.ceil(rank)] as number;
  return lower + (upper - lower) * (rank - Math.floor(rank));
}

/** 0 where empty. Few values are sorted by insertion, which for the handfuls of a forecast beats a sort. */
export function medianOf(values: ArrayLike<number>): number {
  if (values.length === 0) return 0;
  const sorted = Float64Array.from(values);
  if (sorted.length > 32) sorted.sort();
  else insertionSort(sorted);
  return quantileOfSorted(sorted, 0.5);
}

function insertionSort(values: Float64Array): void {
  for (let index = 1; index < values.length; index++) {
    const value = at(values, index);
    let place = index;
    for (; place > 0 && at(values, place - 1) > value; place--) values[place] = at(values, place - 1);
    values[place] = value;
  }
}

/**
 * The mean of what lies between two quantiles of the weight, e.g. the quarters: a trimmed mean (Tukey 1962), with a value that lies
 * across a quantile counted in part. For the handful of values of one forecast, made again and again: nothing is allocated.
 */
export class WeightedMiddle {
  readonly #values: Float64Array;
  readonly #weights: Float64Array;
  readonly #outer: number;
  #count = 0;
  #total = 0;

  /** `outer`: share of the weight at either end that is left out, below ½. */
  constructor(countMax: number, outer: number) {
    this.#values = new Float64Array(countMax);
    this.#weights = new Float64Array(countMax);
    this.#outer = outer;
  }

  clear(): void {
    this.#count = 0;
    this.#total = 0;
  }

  /** At most as often as was said. A weight that is not positive adds nothing. */
  add(value: number, weight: number): void {
    if (!(weight > 0)) return;
    let place = this.#count++;
    for (; place > 0 && at(this.#values, place - 1) > value; place--) {
      this.#values[place] = at(this.#values, place - 1);
      this.#weights[place] = at(this.#weights, place - 1);
    }
    this.#values[place] = value;
    this.#weights[place] = weight;
    this.#total += weight;
  }

  /** undefined where nothing has weight. */
  mean(): number | undefined {
    if (this.#count === 0) return undefined;
    const [from, to] = [this.#outer * this.#total, (1 - this.#outer) * this.#total];
    let before = 0;
    let sum = 0;
    let inside = 0;
    for (let index = 0; index < this.#count; index++) {
      const weight = at(this.#weights, index);
      const counts = Math.max(0, Math.min(to, before + weight) - Math.max(from, before));
      sum += counts * at(this.#values, index);
      inside += counts;
      before += weight;
    }
    return sum / inside;
  }
}
