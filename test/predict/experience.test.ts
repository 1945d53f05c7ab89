import { describe, expect, test } from 'vitest';
import {
  durationBySize,
  levelOf,
  pastTimes,
  spreadFactor,
  type PastCopy,
} from '../../src/predict/experience.js';
import { normal, seededRandom } from '../../src/predict/random.js';
import { drainFactor, predictStall, TransactionDurations } from '../../src/predict/stall.js';
import { timeline } from '../../src/predict/timeline.js';

const copy = (bytes: number, copySeconds: number, readySeconds = copySeconds): PastCopy => ({
  bytes,
  copySeconds,
  readySeconds,
});

describe('what past copies say of the next', () => {
  test('nothing, where there was none, or where nothing is left to copy', () => {
    expect(pastTimes([], 1e6)).toEqual({});
    expect(pastTimes([copy(1e6, 1, 2)], 0)).toEqual({});
    expect(pastTimes([copy(0, 1, 2), copy(1e6, Number.NaN, 2)], 1e6)).toEqual({});
  });

  test('in proportion at first, then by a line that knows what every copy takes', () => {
    expect(durationBySize([{ x: 1e6, y: 2 }], 3e6, '')?.value).toBeCloseTo(6);
    const points = [1, 2, 3, 4, 6].map((x) => ({ x: x * 1e6, y: 4 + x }));
    expect(durationBySize(points, 10e6, '')?.value).toBeCloseTo(14);
    // One that was disturbed does not bend it.
    expect(durationBySize([...points, { x: 5e6, y: 90 }], 10e6, '')?.value).toBeCloseTo(14, 0);
  });

  test('a line that falls is none', () => {
    const points = [9, 7, 5, 3, 1].map((y, index) => ({ x: (index + 1) * 1e6, y }));
    expect(durationBySize(points, 20e6, '')?.value).toBeGreaterThan(10);
  });

  test('nine of ten lie in the interval, from few measurements as from many', () => {
    const random = seededRandom(5);
    for (const count of [4, 8, 30]) {
      let within = 0;
      for (let trial = 0; trial < 400; trial++) {
        const took = (bytes: number): number => bytes * 1e-6 * Math.exp(0.3 * normal(random));
        const sizes = Array.from({ length: count }, () => 1e6 * (1 + 9 * random()));
        const known = durationBySize(
          sizes.map((x) => ({ x, y: took(x) })),
          5e6,
          '',
        );
        const next = took(5e6);
        if (known !== undefined && next >= known.low && next <= known.high) within += 1;
      }
      expect(within / 400, `${count} measurements`).toBeGreaterThan(0.85);
      expect(within / 400, `${count} measurements`).toBeLessThan(0.96);
    }
    expect(spreadFactor([1], 1)).toBeLessThan(3);
    expect(spreadFactor([], 1)).toBeGreaterThan(1.5);
  });

  test('the times of a plan are those, whatever a rate would say', () => {
    const past = [1, 2, 3].map((x) => copy(x * 1e9, 10 * x, 25 * x));
    const line = timeline({
      bytes: 2e9,
      copyBytesPerSecond: { value: 1, low: 1, high: 1, samples: 0 },
      applyChangesPerSecond: { value: 1000, low: 500, high: 2000, samples: 0 },
      applyShareWhileCopying: 0.5,
      writes: [{ median: 10, low: 5, high: 20 }],
      stepSeconds: 3600,
      backlog: 0,
      limitSeconds: 86_400,
      ...pastTimes(past, 2e9),
    });
    expect(line.copySeconds.value).toBeCloseTo(20);
    expect(line.readySeconds.value).toBeCloseTo(50);
    expect(line.readySeconds.high).toBeGreaterThan(60);
    expect(line.copySeconds.reason).toContain('3 copies');
  });
});

test('what drains were measured to take corrects what is modelled of them', () => {
  const durations = new TransactionDurations([10, 20, 30]);
  expect(drainFactor([1, 1], durations, 100)).toBe(1);
  expect(drainFactor([1, 1, 1], new TransactionDurations([]), 100)).toBe(1);
  const input = {
    durations,
    transactionsPerSecond: 100,
    writesPerSecond: 0,
    lagMs: 0,
    applyChangesPerSecond: 1000,
    verifyRows: 0,
    verifyRowsPerSecond: 1000,
    fixedMs: { fence: 10, verify: 5, switch: 5 },
    drainTimeoutMs: 1000,
  };
  const drainFactorOf = drainFactor([5, 6, 7], durations, 100);
  expect(predictStall({ ...input, drainFactor: drainFactorOf }).value).toBeCloseTo(26);
});

describe('the level of what was measured', () => {
  test('is the median of all while they only vary, and follows a machine that changed', () => {
    const random = seededRandom(11);
    const noise = Array.from({ length: 30 }, () => Math.exp(0.3 * normal(random)));
    expect(levelOf(noise).value).toBeCloseTo(1, 0);
    // Twice as slow since ten measurements.
    const slower = noise.map((value, index) => (index < 20 ? value : value * 4));
    expect(levelOf(slower).value).toBeGreaterThan(2.5);
    expect(levelOf([2, 2, 2, 2, 2, 2]).value).toBeCloseTo(2);
    expect(levelOf([Number.NaN, 0, -1, Number.POSITIVE_INFINITY])).toMatchObject({ value: 0 });
    expect(levelOf([5]).value).toBeCloseTo(5);
  });

  test('holds nine of ten of a machine whose speed wanders', () => {
    const random = seededRandom(12);
    let within = 0;
    const trials = 300;
    for (let trial = 0; trial < trials; trial++) {
      let speed = 0;
      const next = (): number => Math.exp((speed += 0.3 * normal(random)) + 0.1 * normal(random));
      const { value, factor } = levelOf(Array.from({ length: 20 }, next));
      const came = next();
      if (came >= value / factor && came <= value * factor) within += 1;
    }
    expect(within / trials).toBeGreaterThan(0.84);
    expect(within / trials).toBeLessThan(0.97);
  });
});
