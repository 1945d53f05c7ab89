import type { LatencySummary } from '../core/capture-ports.js';

/** Sub-buckets per power of two: a value is known to within an eighth. */
const STEPS = 8;
const STEP_BITS = 3;
/** Up to 2³² µs, 71 minutes; longer counts as that. */
const MICROS_MAX = 2 ** 32 - 1;
export const LATENCY_BUCKETS = (32 - STEP_BITS + 1) * STEPS;

/** Counts of durations in logarithmic buckets: fixed memory, percentiles to within 12.5 %, the maximum exact. */
export class LatencyHistogram {
  readonly #counts = new Float64Array(LATENCY_BUCKETS);
  #count = 0;
  #maxMicros = 0;

  add(micros: number): void {
    this.#counts[latencyBucket(micros)] = (this.#counts[latencyBucket(micros)] ?? 0) + 1;
    this.#count += 1;
    if (micros > this.#maxMicros) this.#maxMicros = micros;
  }

  summary(): LatencySummary {
    return {
      count: this.#count,
      p50: this.#quantile(0.5) / 1000,
      p99: this.#quantile(0.99) / 1000,
      max: this.#maxMicros / 1000,
    };
  }

  /** To within an eighth above; 0 where nothing was added. */
  quantileMs(q: number): number {
    return this.#quantile(q) / 1000;
  }

  /** Upper bound, in µs, of the bucket that holds the q-th of the values in order; never above the maximum. */
  #quantile(q: number): number {
    const rank = Math.max(1, Math.ceil(this.#count * q));
    let seen = 0;
    for (const [bucket, count] of this.#counts.entries()) {
      seen += count;
      if (count > 0 && seen >= rank) return Math.min(this.#maxMicros, latencyBucketUpTo(bucket));
    }
    return 0;
  }
}

/** The bucket, a small number, that a duration in µs falls into. */
export function latencyBucket(micros: number): number {
  const value = Math.min(MICROS_MAX, Math.max(0, Math.floor(micros)));
  if (value < STEPS) return value;
  const exponent = 31 - Math.clz32(value);
  return (exponent - STEP_BITS + 1) * STEPS + ((value >>> (exponent - STEP_BITS)) & (STEPS - 1));
}

/** The largest whole value that falls into the bucket. */
export function latencyBucketUpTo(bucket: number): number {
  if (bucket < STEPS) return bucket;
  const shift = Math.floor(bucket / STEPS) - 1;
  return (STEPS + (bucket % STEPS) + 1) * 2 ** shift - 1;
}
