import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { growthCurve, latencyCurve } from '../../src/predict/curves.js';
import { divergenceScore, keyDistance, keyDrift, rewrittenShare } from '../../src/predict/divergence.js';
import { groupTables } from '../../src/predict/grouping.js';
import type { Judgement } from '../../src/predict/judgement.js';
import { intensity, priority } from '../../src/predict/priority.js';
import { seededRandom } from '../../src/predict/random.js';
import { drainQuantile, predictStall, TransactionDurations } from '../../src/predict/stall.js';
import { timeline, type TimelineInput } from '../../src/predict/timeline.js';
import { bestWindows, type Candidate } from '../../src/predict/window.js';

const sure = (value: number, terms: Record<string, number> = {}): Judgement => ({
  value,
  low: value,
  high: value,
  terms,
  confidence: 'high',
  reason: '',
});

describe('the divergence score', () => {
  test('is 1 − exp(−(c/c₀ + d/d₀ + m/m₀)), with the three terms shown', () => {
    const score = divergenceScore({
      rewritten: { value: 0.1, low: 0.05, high: 0.2 },
      drift: 0.05,
      stale: { value: 0.02, low: 0.01, high: 0.05, samples: 100, reason: '' },
    });
    expect(score.value).toBeCloseTo(1 - Math.exp(-(0.1 / 0.5 + 0.05 / 0.5 + 0.02 / 0.2)));
    expect(score.terms).toMatchObject({ c: 0.1, d: 0.05, m: 0.02 });
    expect(score.low).toBeLessThan(score.value);
    expect(score.high).toBeGreaterThan(score.value);
    expect(score.reason).toContain('10.0 % of its hot rows');
  });

  test('with its staleness not measured says that it may be anything above', () => {
    const score = divergenceScore({
      rewritten: { value: 0, low: 0, high: 0 },
      drift: 0,
      stale: undefined,
    });
    expect(score).toMatchObject({ value: 0, confidence: 'low' });
    expect(score.high).toBeGreaterThan(0.99);
  });

  test('c counts each hot row once, however often it is written', () => {
    expect(rewrittenShare([3600, 0], 1).value).toBeCloseTo((1 - Math.exp(-1)) / 2);
    expect(rewrittenShare([1e9, 1e9], 60).value).toBeCloseTo(1);
    expect(rewrittenShare([], 60).value).toBe(0);
  });

  test('d sees drift and no sampling noise, nor what comes every week', () => {
    const random = seededRandom(8);
    const sample = (shift: number): Map<number, number> => {
      const counts = new Map<number, number>();
      for (let draw = 0; draw < 4000; draw++) {
        const key = shift + Math.floor(100 * random() ** 2);
        counts.set(key, (counts.get(key) ?? 0) + 1);
      }
      return counts;
    };
    expect(keyDistance(sample(0), sample(0))).toBeLessThan(0.05);
    const shifted = keyDistance(sample(0), sample(30));
    expect(shifted).toBeGreaterThan(0.3);
    expect(keyDistance(sample(0), sample(1000))).toBeGreaterThan(0.95);
    expect(keyDrift(shifted, shifted, 0.5)).toBe(0);
    expect(keyDrift(0.3, undefined, 0.5)).toBeCloseTo(0.6);
  });
});

describe('grouping', () => {
  test('finds the planted groups, through noise', () => {
    const groups = [
      ['a1', 'a2', 'a3'],
      ['b1', 'b2'],
      ['c1', 'c2', 'c3', 'c4'],
    ];
    const random = seededRandom(5);
    const tables = groups.flat();
    const uses = Array.from({ length: 3000 }, () => {
      const group = groups[Math.floor(random() * 3)] ?? [];
      const used = group.filter(() => random() < 0.6);
      if (random() < 0.005) used.push(tables[Math.floor(random() * tables.length)] ?? '');
      return { tables: used, weight: 1 };
    });
    const found = groupTables({ tables, uses, bound: [], foreignKeys: [] });
    expect(found.groups).toEqual(groups);
    expect(found.crossingShare).toBeLessThan(0.006);
    expect(found.crossingSharePerTable).toBeGreaterThan(0.4);
  });

  test('keeps together what is bound, and what a foreign key ties where no use was seen', () => {
    const { groups, confidence } = groupTables({
      tables: ['order', 'item', 'audit', 'log'],
      uses: [],
      bound: [['audit', 'log']],
      foreignKeys: [
        ['item', 'order'],
        ['item', 'gone'],
      ],
    });
    expect(groups).toEqual([
      ['audit', 'log'],
      ['item', 'order'],
    ]);
    expect(confidence).toBe('none');
  });

  test('lets use overrule a foreign key', () => {
    const { groups } = groupTables({
      tables: ['country', 'customer'],
      uses: [
        { tables: ['country'], weight: 500 },
        { tables: ['customer'], weight: 500 },
      ],
      bound: [],
      foreignKeys: [['customer', 'country']],
    });
    expect(groups).toEqual([['country'], ['customer']]);
  });

  test('leaves no pair of groups that shares more than its bound', () => {
    const table = fc.constantFrom('a', 'b', 'c', 'd', 'e', 'f');
    const use = fc.record({
      tables: fc.array(table, { minLength: 1, maxLength: 4 }),
      weight: fc.integer({ min: 1, max: 50 }),
    });
    fc.assert(
      fc.property(fc.array(use, { maxLength: 30 }), (uses) => {
        const { groups } = groupTables({
          tables: ['a', 'b', 'c', 'd', 'e', 'f'],
          uses,
          bound: [],
          foreignKeys: [],
        });
        const touch = (group: readonly string[], tables: readonly string[]): boolean =>
          tables.some((one) => group.includes(one));
        const weight = (test: (tables: readonly string[]) => boolean): number =>
          uses.filter(({ tables }) => test(tables)).reduce((sum, one) => sum + one.weight, 0);
        for (const a of groups) {
          for (const b of groups) {
            if (a === b) continue;
            const least = Math.min(
              weight((one) => touch(a, one)),
              weight((one) => touch(b, one)),
            );
            const both = weight((one) => touch(a, one) && touch(b, one));
            if (least > 0) expect(both / least).toBeLessThan(0.02);
          }
        }
      }),
    );
  });
});

describe('priority and intensity', () => {
  test('put the hottest per second of copying first, which Smith’s rule proves best', () => {
    const random = seededRandom(12);
    const jobs = Array.from({ length: 6 }, () => ({ heat: 1 + 99 * random(), seconds: 10 + 500 * random() }));
    const cost = (order: readonly (typeof jobs)[number][]): number => {
      let now = 0;
      let sum = 0;
      for (const { heat, seconds } of order) sum += heat * (now += seconds + 5);
      return sum;
    };
    const value = ({ heat, seconds }: (typeof jobs)[number]): number =>
      priority({
        heat: { value: heat, low: heat, high: heat },
        copySeconds: { value: seconds, low: seconds, high: seconds },
        confidence: 'high',
      }).value;
    const best = cost(jobs.toSorted((a, b) => value(b) - value(a)));
    const all = (rest: typeof jobs): (typeof jobs)[] =>
      rest.length === 0
        ? [[]]
        : rest.flatMap((one) => all(rest.filter((other) => other !== one)).map((tail) => [one, ...tail]));
    for (const order of all(jobs)) expect(cost(order)).toBeGreaterThanOrEqual(best - 1e-6);
  });

  test('intensity follows divergence and nearness, spares a busy source, and gives way to the log budget', () => {
    const base = { divergence: sure(0.4), hoursToWindow: undefined, sourceLoad: 0.3, logBudgetUsed: 0 };
    expect(intensity(base).value).toBeCloseTo(0.4);
    expect(intensity({ ...base, hoursToWindow: 0 }).value).toBe(1);
    expect(intensity({ ...base, sourceLoad: 1 }).value).toBeCloseTo(0.2);
    expect(intensity({ ...base, sourceLoad: 1, logBudgetUsed: 1 })).toMatchObject({ value: 1 });
    expect(intensity({ ...base, divergence: sure(0) }).value).toBe(0.05);
  });
});

describe('the timeline', () => {
  const rate = (value: number): { value: number; low: number; high: number; samples: number } => ({
    value,
    low: value * 0.8,
    high: value * 1.2,
    samples: 40,
  });
  const input = (writes: readonly number[]): TimelineInput => ({
    bytes: 1e9,
    copyBytesPerSecond: rate(1e7),
    applyChangesPerSecond: rate(1000),
    writes: writes.map((one) => ({ median: one, low: one * 0.9, high: one * 1.1 })),
    stepSeconds: 60,
    applyShareWhileCopying: 0.5,
    backlog: 0,
    limitSeconds: 36_000,
  });

  test('is copy time plus the time to work off what gathered meanwhile', () => {
    const { copySeconds, readySeconds } = timeline(input([700]));
    expect(copySeconds.value).toBe(100);
    // 200 changes/s gather for 100 s; afterwards 300/s of headroom.
    expect(readySeconds.value).toBeCloseTo(100 + 20_000 / 300);
    expect(readySeconds.low).toBeLessThan(readySeconds.value);
    expect(readySeconds.high).toBeGreaterThan(readySeconds.value);
  });

  test('waits for the quiet hours when there is no headroom before', () => {
    const { readySeconds, converges } = timeline(input([...Array<number>(60).fill(1200), 100]));
    expect(converges).toBe(true);
    expect(readySeconds.value).toBeGreaterThan(3600);
  });

  test('says so when it never converges, and when only the upper end does not', () => {
    const never = timeline(input([2000]));
    expect(never.converges).toBe(false);
    expect(never.readySeconds.reason).toContain('Does not converge within 10.0 h');
    const perhaps = timeline(input([850]));
    expect(perhaps.converges).toBe(true);
    expect(perhaps.readySeconds.high).toBe(Number.POSITIVE_INFINITY);
  });

  test('of nothing to copy is ready at once', () => {
    expect(timeline({ ...input([0]), bytes: 0 }).readySeconds.value).toBe(0);
  });
});

describe('the stall', () => {
  test('drain quantiles agree with a simulation of open transactions', () => {
    const random = seededRandom(21);
    const draw = (): number => (random() < 0.1 ? 400 : 10) * -Math.log(1 - random());
    const durations = new TransactionDurations(Array.from({ length: 5000 }, draw));
    const perSecond = 40;
    const drains: number[] = [];
    for (let trial = 0; trial < 1500; trial++) {
      // Everything that began in the last 6 s and is still open at its end.
      let longest = 0;
      for (let start = 0; ;) {
        start += (-Math.log(1 - random()) * 1000) / perSecond;
        if (start > 6000) break;
        longest = Math.max(longest, draw() - start);
      }
      drains.push(longest);
    }
    drains.sort((a, b) => a - b);
    for (const q of [0.5, 0.9]) {
      const simulated = drains[Math.floor(q * drains.length)] ?? 0;
      expect(Math.abs(drainQuantile(durations, perSecond, q) / simulated - 1)).toBeLessThan(0.15);
    }
  });

  test('adds its parts, and names the chance that the drain deadline aborts', () => {
    const stall = predictStall({
      durations: new TransactionDurations([60_000]),
      transactionsPerSecond: 1,
      writesPerSecond: 100,
      lagMs: 50,
      applyChangesPerSecond: 1000,
      verifyRows: 100,
      verifyRowsPerSecond: 10_000,
      fixedMs: { fence: 10, verify: 20, switch: 5 },
      drainTimeoutMs: 2000,
    });
    expect(stall.value).toBeCloseTo(2000 + 10 + 5 + 20 + 10 + 5);
    expect(stall.terms['abortProbability']).toBeGreaterThan(0.99);
    expect(stall.reason).toContain('aborts 100 % of attempts');
  });

  test('has what comes over whole behind the fence in it, by itself within a factor of two', () => {
    const quiet = {
      durations: new TransactionDurations([]),
      transactionsPerSecond: 0,
      writesPerSecond: 0,
      lagMs: 0,
      applyChangesPerSecond: 1000,
      verifyRows: 0,
      verifyRowsPerSecond: 1000,
      fixedMs: { fence: 10, verify: 0, switch: 0 },
      drainTimeoutMs: 2000,
      spread: 4,
    };
    const [without, stall] = [predictStall(quiet), predictStall({ ...quiet, exactMs: 400 })];
    expect(stall).toMatchObject({ value: 410, terms: { applyMs: 410 } });
    expect(stall.high).toBeCloseTo(410 + Math.hypot(30, 400));
    expect(stall.low).toBeCloseTo(410 - Math.hypot(7.5, 200));
    expect(without).toMatchObject({ value: 10, low: 2.5, high: 40 });
  });

  test('of a database that was never seen busy has no drain and no NaN', () => {
    const durations = new TransactionDurations([]);
    expect(drainQuantile(durations, 100, 0.9)).toBe(0);
    expect(durations.excess(3)).toBe(0);
  });
});

test('windows are the cheapest by brute force, apart from one another, after the shadow is ready', () => {
  const step = 60_000;
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.integer({ min: 0, max: 500 }), fc.integer({ min: 1, max: 3000 })), {
        minLength: 8,
        maxLength: 40,
      }),
      fc.integer({ min: 1, max: 4 }),
      fc.integer({ min: 0, max: 3 }),
      (load, windowSteps, skip) => {
        const candidates = load.map(([rate, stallMs], index): Candidate => ({
          startMs: index * step,
          statements: { median: rate, low: rate * 0.5, high: rate * 2 },
          stall: sure(stallMs, { abortProbability: 0 }),
        }));
        const windows = bestWindows(candidates, {
          stepMs: step,
          windowSteps,
          count: 3,
          readyMs: skip * step,
          observations: 100,
        });
        const cost = (from: number): number => {
          let sum = 0;
          for (let at = from; at < from + windowSteps; at++) {
            const [rate, stallMs] = load[at] ?? [0, 0];
            sum += (rate * stallMs) / 1000;
          }
          return sum / windowSteps;
        };
        let least = Number.POSITIVE_INFINITY;
        for (let from = skip; from + windowSteps <= load.length; from++) least = Math.min(least, cost(from));
        expect(windows[0]?.value).toBeCloseTo(least);
        expect(windows[0]?.regret).toBe(0);
        for (const [index, one] of windows.entries()) {
          expect(one.value - one.regret).toBeCloseTo(least);
          for (const other of windows.slice(index + 1)) {
            expect(Math.abs(other.startMs - one.startMs)).toBeGreaterThanOrEqual(windowSteps * step);
          }
        }
      },
    ),
    { numRuns: 50 },
  );
});

describe('curves', () => {
  test('growth is a line that one bulk load does not bend', () => {
    const points = Array.from({ length: 30 }, (_, day) => ({
      x: 1.7e12 + day * 86_400_000,
      y: 1e9 + day * 1e7,
    }));
    points[12] = { x: points[12]?.x ?? 0, y: 9e9 };
    expect(growthCurve(points).at(1.7e12 + 40 * 86_400_000).value / 1.4e9).toBeCloseTo(1, 2);
  });

  test('latency rises with load and never falls beyond what was seen', () => {
    const points = Array.from({ length: 40 }, (_, index) => ({ x: index * 25, y: 2 + (index / 20) ** 2 }));
    const curve = latencyCurve(points);
    expect(curve.at(500).value).toBeCloseTo(3, 1);
    expect(curve.at(5000).value).toBeGreaterThanOrEqual(curve.at(975).value);
  });

  test('of nothing, one point or wild points are finite', () => {
    const point = fc.record({ x: fc.double(), y: fc.double() });
    fc.assert(
      fc.property(
        fc.array(point, { maxLength: 20 }),
        fc.double({ noNaN: true, min: -1e6, max: 1e6 }),
        (points, x) => {
          const bounded = points.filter((one) => !(Math.abs(one.x) > 1e12 || Math.abs(one.y) > 1e12));
          for (const curve of [growthCurve(bounded), latencyCurve(bounded)]) {
            const { value, low, high } = curve.at(x);
            expect([value, low, high].every(Number.isFinite)).toBe(true);
          }
        },
      ),
    );
  });
});
