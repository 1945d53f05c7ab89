import { expect, test } from 'vitest';
import type { Clock } from '../../../src/core/clock.js';
import { silentLog } from '../../../src/core/log.js';
import { Pace } from '../../../src/shadow/pace.js';
import { ApplicationLatency } from '../../../src/shadow/throttle/latency.js';
import { pidStart, pidStep } from '../../../src/shadow/throttle/pid.js';
import { THROTTLE_DEFAULTS, type ThrottleSettings } from '../../../src/shadow/throttle/settings.js';
import { Standbys } from '../../../src/shadow/throttle/standbys.js';
import { PID, Throttle } from '../../../src/shadow/throttle/throttle.js';

/** Time that passes when the test says so. */
class PlayedClock implements Clock {
  #nowMs = 0;
  readonly #sleepers: { readonly atMs: number; readonly wake: () => void }[] = [];

  now(): Date {
    return new Date(this.#nowMs);
  }
  monotonicMs(): number {
    return this.#nowMs;
  }
  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const onAbort = (): void => reject(signal?.reason as Error);
      signal?.addEventListener('abort', onAbort, { once: true });
      const wake = (): void => {
        signal?.removeEventListener('abort', onAbort);
        resolve();
      };
      this.#sleepers.push({ atMs: this.#nowMs + ms, wake });
    });
  }
  async pass(ms: number): Promise<void> {
    const untilMs = this.#nowMs + ms;
    for (;;) {
      await new Promise((resolve) => setImmediate(resolve));
      this.#sleepers.sort((a, b) => a.atMs - b.atMs);
      const next = this.#sleepers[0];
      if (next === undefined || next.atMs > untilMs) break;
      this.#sleepers.shift();
      this.#nowMs = next.atMs;
      next.wake();
    }
    this.#nowMs = untilMs;
  }
}

/** An application whose p99 grows by `slope` times the share in which the copy reads. */
class Application {
  readonly pace = new Pace();
  readonly clock = new PlayedClock();
  readonly throttle: Throttle;
  perWindow = 300;
  baseMs = 20;
  slope = 4;
  copying = false;

  constructor(settings: Partial<ThrottleSettings> = {}, shadowLagMs: () => number | null = () => null) {
    this.throttle = new Throttle(
      { ...THROTTLE_DEFAULTS, standbyLagMs: 0, ...settings },
      {
        source: { host: 'unused', port: 1, database: 'unused', user: 'unused', tls: 'disable' },
        pace: this.pace,
        clock: this.clock,
        log: silentLog,
        shadowLagMs,
      },
    );
  }

  get p99Ms(): number {
    const reading = this.copying && !this.pace.copyWaits ? this.pace.copyShare : 0;
    return this.baseMs * (1 + this.slope * reading);
  }

  async live(seconds: number): Promise<readonly number[]> {
    const seen: number[] = [];
    for (let n = 0; n < seconds * 2; n++) {
      await this.clock.pass(500);
      seen.push(this.p99Ms);
      if (this.perWindow === 0) this.throttle.hear([]);
      else
        this.throttle.hear([
          { upToMicros: this.baseMs * 300, count: Math.round(this.perWindow * 0.97) },
          { upToMicros: this.p99Ms * 1000, count: Math.round(this.perWindow * 0.03) },
        ]);
    }
    return seen;
  }

  /** Runs `test` while a copy is under way. */
  async copy(test: () => Promise<void>): Promise<void> {
    let end = (): void => undefined;
    const copying = this.throttle.during(() => {
      this.copying = true;
      return new Promise((resolve) => (end = resolve));
    });
    await test();
    this.copying = false;
    end();
    await copying;
  }
}

const mean = (values: readonly number[]): number =>
  values.reduce((sum, value) => sum + value, 0) / values.length;

test('the output is bounded, and leaves a bound at once however long it was there', () => {
  let state = pidStart(1);
  for (let n = 0; n < 1000; n++) state = pidStep(state, 0.4, 1, PID);
  expect(state.output).toBe(1);
  state = pidStep(state, -1, 1, PID);
  expect(state.output).toBeLessThan(0.5);
  for (let n = 0; n < 1000; n++) state = pidStep(state, -5, 1, PID);
  expect(state.output).toBe(PID.outputMin);
  state = pidStep(state, 0.5, 1, PID);
  expect(state.output).toBeGreaterThan(PID.outputMin * 1.5);
});

test('without a measurement the output rises, and the next error begins anew', () => {
  const low = { output: 0.1, errors: [-1, -1] as const };
  const risen = pidStep(low, null, 1, PID);
  expect(risen.output).toBeCloseTo(0.1 * Math.exp(PID.ki * PID.errorMax));
  expect(risen.errors).toEqual([null, null]);
  // No jump by an error of before the gap.
  expect(pidStep(risen, -0.1, 1, PID).output).toBeCloseTo(risen.output * Math.exp(-0.1 * PID.ki));
});

test('a percentile is of the newest statements that are enough, and unknown of few or old ones', () => {
  const latency = new ApplicationLatency();
  expect(latency.p99Ms(0)).toBeNull();
  latency.hear([{ upToMicros: 90_000, count: 1000 }], 1000);
  latency.hear([{ upToMicros: 2000, count: 5 }], 6500);
  expect(latency.p99Ms(6600)).toBeNull();
  latency.hear([{ upToMicros: 3000, count: 195 }], 7000);
  expect(latency.p99Ms(7100)).toBe(3);
  expect(latency.since(0)).toEqual({ p99Ms: 90, enough: true });
  expect(latency.p99Ms(20_000)).toBeNull();
});

test.each([
  { what: 'many statements', perWindow: 300, slope: 4 },
  { what: 'few statements, whose percentile comes late', perWindow: 30, slope: 4 },
  { what: 'a copy that weighs heavily', perWindow: 300, slope: 8 },
])('the application’s p99 is kept near its baseline: $what', async ({ perWindow, slope }) => {
  const app = new Application({ latencyFloorMs: 0 });
  Object.assign(app, { perWindow, slope });
  await app.live(8);
  await app.copy(async () => {
    await app.live(60);
    const { throttle, pace } = app;
    expect(throttle.status()?.baselineP99Ms).toBeCloseTo(20, 1);
    expect(throttle.status()?.latencyTargetMs).toBeCloseTo(24, 1);
    const shares: number[] = [];
    const seen: number[] = [];
    for (let n = 0; n < 60; n++) {
      seen.push(...(await app.live(1)));
      if (!pace.held) shares.push(pace.throttle);
    }
    expect(mean(seen)).toBeLessThan(24 * 1.15);
    expect(mean(seen)).toBeGreaterThan(20.5);
    // It does not swing from one end to the other.
    expect(Math.max(...shares) / Math.min(...shares)).toBeLessThan(6);
    expect(throttle.status()?.by).toBe('latency');
  });
  expect(app.pace.throttle).toBe(1);
  expect(app.throttle.status()).toBeNull();
});

test('where nobody is hurt the copy goes at full speed, again once the application is at rest', async () => {
  const app = new Application({ latencyP99Ms: 30 });
  await app.copy(async () => {
    await app.live(30);
    expect(app.pace.throttle).toBeLessThan(0.5);
    app.perWindow = 0;
    await app.live(30);
    expect(app.pace.throttle).toBe(1);
    // A bound that can’t be met even without a copy doesn’t stop it for good.
    app.perWindow = 300;
    app.baseMs = 100;
    await app.live(60);
    expect(app.pace.throttle).toBe(PID.outputMin);
    expect(app.pace.copyWaits).toBe(false);
  });
});

test('a baseline that came with too few statements is listened for with the copy at rest', async () => {
  const app = new Application({ latencyFloorMs: 0 });
  app.perWindow = 0;
  await app.copy(async () => {
    await app.live(3);
    expect(app.pace.held).toBe(false);
    app.perWindow = 300;
    const held: boolean[] = [];
    for (let n = 0; n < 10; n++) {
      await app.live(0.5);
      held.push(app.pace.held);
    }
    expect(held).toContain(true);
    expect(held.at(-1)).toBe(false);
    expect(app.throttle.status()?.baselineP99Ms).toBeCloseTo(20, 1);
  });
});

test('the shadow’s own lag holds its copy back', async () => {
  let lagMs: number | null = 100_000;
  const app = new Application({ latencyP99Ms: 'off', shadowLagMs: 10_000 }, () => lagMs);
  await app.copy(async () => {
    await app.live(20);
    expect(app.throttle.status()).toMatchObject({ by: 'shadow-lag', share: PID.outputMin });
    lagMs = null;
    await app.live(40);
    expect(app.throttle.status()).toMatchObject({ by: null, share: 1 });
  });
});

test('a standby that stays behind whatever the copy does is passed over until it is within the bound again', () => {
  const standbys = new Standbys(10_000);
  const delayed = (lagMs: number): { name: string; lagMs: number } => ({ name: 'delayed', lagMs });
  const slow = (lagMs: number): { name: string; lagMs: number } => ({ name: 'slow', lagMs });
  expect(standbys.observe([delayed(3_600_000), slow(500_000)], false, 0)).toBe(3_600_000);
  expect(standbys.observe([delayed(3_600_000), slow(500_000)], true, 1000)).toBe(3_600_000);
  // One is as far behind as before, the other catches up.
  expect(standbys.observe([delayed(3_600_000), slow(450_000)], true, 21_000)).toBe(450_000);
  expect(standbys.passedOver).toEqual(['delayed']);
  // While it was not held back nothing is learned.
  expect(standbys.observe([slow(450_000)], false, 30_000)).toBe(450_000);
  expect(standbys.passedOver).toEqual([]);
  standbys.observe([delayed(20_000)], true, 100_000);
  expect(standbys.observe([delayed(40_000)], true, 120_000)).toBeNull();
  expect(standbys.observe([delayed(9000)], true, 130_000)).toBe(9000);
  expect(standbys.observe([delayed(20_000)], true, 131_000)).toBe(20_000);
});
