/** Latencies in logarithmic buckets: constant memory, quantiles to within one bucket (10 %), exact maximum. */

const GROWTH = 1.1;
const SMALLEST_MS = 0.05;
const LOG_GROWTH = Math.log(GROWTH);
const BUCKETS = 160;

export interface LatencyFigures {
  readonly count: number;
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
}

export class LatencyRecord {
  readonly #buckets = new Uint32Array(BUCKETS);
  #count = 0;
  #max = 0;

  add(ms: number): void {
    const bucket = ms <= SMALLEST_MS ? 0 : Math.ceil(Math.log(ms / SMALLEST_MS) / LOG_GROWTH);
    const index = Math.min(bucket, BUCKETS - 1);
    this.#buckets[index] = (this.#buckets[index] ?? 0) + 1;
    this.#count += 1;
    if (ms > this.#max) this.#max = ms;
  }

  /** Milliseconds, rounded to 0.01. All zero where nothing was recorded. */
  figures(): LatencyFigures {
    return { count: this.#count, p50: this.#quantile(0.5), p99: this.#quantile(0.99), max: round(this.#max) };
  }

  #quantile(q: number): number {
    const rank = Math.ceil(q * this.#count);
    let seen = 0;
    for (let index = 0; index < BUCKETS; index++) {
      seen += this.#buckets[index] ?? 0;
      if (seen >= rank && seen > 0) return round(Math.min(SMALLEST_MS * GROWTH ** index, this.#max));
    }
    return 0;
  }
}

export function round(ms: number): number {
  return Math.round(ms * 100) / 100;
}
