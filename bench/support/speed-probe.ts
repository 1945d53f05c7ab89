/** How fast the machine is at this moment: the same work again and again, by the clock. Other work shows as slowness. */
import { createHash } from 'node:crypto';
import { quantile } from './statistics.js';

const WORK_BYTES = 4 << 20;
const ROUNDS = 9;
const work = Buffer.alloc(WORK_BYTES, 7);

/** Milliseconds by the clock that a fixed piece of work takes, the mean of a few: some 20 ms each on a machine of today. */
export async function probeSpeed(): Promise<number> {
  let sum = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const startedAt = performance.now();
    createHash('sha256').update(work).digest();
    sum += performance.now() - startedAt;
    await new Promise((resolve) => setImmediate(resolve));
  }
  return sum / ROUNDS;
}

/** One line for a report; `probesMs` not empty. */
export function probeLine(probesMs: readonly number[]): string {
  const sorted = [...probesMs].sort((a, b) => a - b);
  const of = (q: number): string => quantile(sorted, q).toFixed(1);
  const least = sorted[0] ?? 0;
  const slowest = least > 0 ? (sorted.at(-1) ?? 0) / least : 0;
  return `machine  the same work took ${of(0)} ms at its fastest, ${of(0.5)} in the median, ${of(1)} at its slowest (${slowest.toFixed(1)} times)`;
}
