import { expect, test } from 'vitest';
import type { Clock } from '../../src/core/clock.js';
import { Limiter } from '../../src/proxy/limiter.js';

/** Time stands still but for what is told; sleeps end when they are let. */
class ToldClock implements Clock {
  nowMs = 0;
  readonly sleeps: { ms: number; end: () => void }[] = [];
  now(): Date {
    return new Date(this.nowMs);
  }
  monotonicMs(): number {
    return this.nowMs;
  }
  sleep(ms: number): Promise<void> {
    return new Promise((resolve) => this.sleeps.push({ ms, end: resolve }));
  }
}

async function settled(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve));
}

test('no more than the limit runs at once, in order, also where one fails', async () => {
  const limiter = new Limiter(2);
  const begun: number[] = [];
  const ends: ((error?: Error) => void)[] = [];
  const runs = [0, 1, 2, 3].map((n) =>
    limiter.run(
      () =>
        new Promise<number>((resolve, reject) => {
          begun.push(n);
          ends[n] = (error) => (error === undefined ? resolve(n) : reject(error));
        }),
    ),
  );
  await settled();
  expect(begun).toEqual([0, 1]);
  ends[1]?.(new Error('failed'));
  await expect(runs[1]).rejects.toThrow('failed');
  await settled();
  expect(begun).toEqual([0, 1, 2]);
  ends[0]?.();
  ends[2]?.();
  await settled();
  ends[3]?.();
  expect(await Promise.all([runs[0], runs[2], runs[3]])).toEqual([0, 2, 3]);
});

test('a gentle one rests as long as the work took, bounded, but gives the result at once', async () => {
  const clock = new ToldClock();
  const limiter = new Limiter(1, { clock, restMaxMs: 50 });
  const work = (tookMs: number) => () => {
    clock.nowMs += tookMs;
    return Promise.resolve(tookMs);
  };
  expect(await limiter.run(work(20))).toBe(20);
  let second: number | undefined;
  void limiter.run(work(400)).then((value) => (second = value));
  await settled();
  expect(second).toBeUndefined();
  expect(clock.sleeps.map(({ ms }) => ms)).toEqual([20]);
  clock.sleeps[0]?.end();
  await settled();
  expect(second).toBe(400);
  expect(clock.sleeps.map(({ ms }) => ms)).toEqual([20, 50]);
});
