import { expect, test } from 'vitest';
import type { Clock } from '../../src/core/clock.js';
import { untilQuiet } from '../../src/proxy/quiet-moment.js';

/** Time passes by sleeping alone. */
class SleepingClock implements Clock {
  nowMs = 0;
  now(): Date {
    return new Date(this.nowMs);
  }
  monotonicMs(): number {
    return this.nowMs;
  }
  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    if (signal?.aborted === true) return Promise.reject(signal.reason as Error);
    this.nowMs += ms;
    return Promise.resolve();
  }
}

const never = new AbortController().signal;

/** When it is taken, where so much is open as `openAt` says. */
async function takenAt(openAt: (ms: number) => number, withinMs = 300): Promise<number> {
  const clock = new SleepingClock();
  await untilQuiet(() => openAt(clock.nowMs), { withinMs, lookEveryMs: 1 }, clock, never);
  return clock.nowMs;
}

test('a moment at which nothing is open is taken at once', async () => {
  expect(await takenAt(() => 0)).toBe(0);
  expect(await takenAt((ms) => (ms === 40 ? 0 : 9))).toBe(40);
});

test('after the time to learn, the first moment that is as good as the best is taken', async () => {
  // The best come at 10, 60, 110 …: the first two are learned from.
  expect(await takenAt((ms) => (ms % 50 === 10 ? 1 : 8))).toBe(110);
  // What never changes is as good as ever.
  expect(await takenAt(() => 3)).toBe(100);
});

test('the longer it lasts, the less is asked for; never more than the better half, and never more time', async () => {
  // 1 … 10 in turn while it learns, and never again the three best.
  const at = await takenAt((ms) => (ms < 100 ? 1 + (ms % 10) : 4 + (ms % 7)));
  expect(at).toBeGreaterThan(200);
  expect(at).toBeLessThan(300);
  expect(at % 7).toBe(0);
  expect(await takenAt((ms) => (ms < 100 ? 2 : 5))).toBe(300);
  expect(await takenAt(() => 5, 1)).toBeLessThanOrEqual(1);
});

test('a signal ends the wait', async () => {
  const stop = new AbortController();
  const clock = new SleepingClock();
  const waiting = untilQuiet(
    () => {
      if (clock.nowMs === 20) stop.abort(new Error('enough'));
      return 5;
    },
    { withinMs: 300, lookEveryMs: 1 },
    clock,
    stop.signal,
  );
  await expect(waiting).rejects.toThrow('enough');
});
