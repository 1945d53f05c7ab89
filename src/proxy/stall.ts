/** How long clients waited because of a hold. */
import type { StallReport } from '../core/traffic-ports.js';

/** Upper bounds in milliseconds, then one bucket without a bound for the rest. */
const BOUNDS_MS: readonly number[] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000];

export const NO_STALL: StallReport = { held: 0, p50: 0, p99: 0, max: 0, histogram: [] };

/** `waitsMs`: one sample per session that had something waiting. Percentiles by nearest rank. */
export function stallReport(waitsMs: readonly number[]): StallReport {
  if (waitsMs.length === 0) return NO_STALL;
  const sorted = waitsMs.toSorted((a, b) => a - b);
  const rank = (share: number): number => sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? 0;
  const max = sorted.at(-1) ?? 0;
  const histogram: { upToMs: number; count: number }[] = [];
  let below = 0;
  for (const upToMs of [...BOUNDS_MS.filter((bound) => bound < max), bucketFor(max)]) {
    const upTo = sorted.filter((wait) => wait <= upToMs).length;
    histogram.push({ upToMs, count: upTo - below });
    below = upTo;
  }
  return { held: sorted.length, p50: rank(0.5), p99: rank(0.99), max, histogram };
}

/** The bound of the bucket a wait falls into; past the last bound, the wait itself rounded up. */
function bucketFor(waitMs: number): number {
  return BOUNDS_MS.find((bound) => waitMs <= bound) ?? Math.ceil(waitMs);
}
