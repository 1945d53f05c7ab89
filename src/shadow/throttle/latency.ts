/**
 * The application's latency, from the windows that the proxy reports: the 99th percentile now, and what it is while
 * nothing is copied, the baseline.
 *
 * A percentile is of the newest windows that hold enough statements together, within a bound of time; of fewer statements
 * it is not known. Memory: {@link WINDOWS_MAX} windows.
 */
import type { LatencyWindow } from '../../core/ports.js';

interface Heard {
  readonly atMs: number;
  readonly window: LatencyWindow;
  readonly count: number;
}

const WINDOWS_MAX = 64;
/** Statements that a percentile is taken of, where there are as many, and at the least. */
const COUNT_WANTED = 200;
const COUNT_MIN = 20;
/** Older than that says nothing about now. */
const AGE_MAX_MS = 5000;

export class ApplicationLatency {
  #heard: Heard[] = [];

  hear(window: LatencyWindow, atMs: number): void {
    const count = window.reduce((sum, bucket) => sum + bucket.count, 0);
    this.#heard.push({ atMs, window, count });
    if (this.#heard.length > WINDOWS_MAX) this.#heard.shift();
  }

  /** Whether statements pass at all. */
  busySince(fromMs: number): boolean {
    return this.#heard.some(({ atMs, count }) => atMs > fromMs && count > 0);
  }

  /** Milliseconds; null where too few statements passed lately. */
  p99Ms(nowMs: number): number | null {
    return percentile(this.#newest(nowMs - AGE_MAX_MS, COUNT_WANTED), 0.99);
  }

  /** Of the statements heard of since `fromMs`; null where they are too few. `enough`: more would add little. */
  since(fromMs: number): { readonly p99Ms: number | null; readonly enough: boolean } {
    const windows = this.#newest(fromMs, Infinity);
    const count = windows.reduce((sum, heard) => sum + heard.count, 0);
    return { p99Ms: percentile(windows, 0.99), enough: count >= 2 * COUNT_WANTED };
  }

  #newest(fromMs: number, wanted: number): readonly Heard[] {
    const chosen: Heard[] = [];
    let count = 0;
    for (const heard of this.#heard.toReversed()) {
      if (heard.atMs <= fromMs || count >= wanted) break;
      chosen.push(heard);
      count += heard.count;
    }
    return chosen;
  }
}

function percentile(windows: readonly Heard[], q: number): number | null {
  const counts = new Map<number, number>();
  let total = 0;
  for (const { window } of windows) {
    for (const { upToMicros, count } of window) {
      counts.set(upToMicros, (counts.get(upToMicros) ?? 0) + count);
      total += count;
    }
  }
  if (total < COUNT_MIN) return null;
  const rank = Math.ceil(total * q);
  let seen = 0;
  for (const upToMicros of [...counts.keys()].sort((a, b) => a - b)) {
    seen += counts.get(upToMicros) ?? 0;
    if (seen >= rank) return upToMicros / 1000;
  }
  return null;
}
