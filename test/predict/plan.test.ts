import fc from 'fast-check';
import { expect, test } from 'vitest';
import { makePlan, type PlanContext, type PlanSubset } from '../../src/predict/plan.js';
import { DAY_MS, HOUR_MS, type Series } from '../../src/predict/series.js';
import { weekly } from './patterns.js';

const MONDAY = Date.UTC(2026, 2, 2);

const HOT = { value: 0.8, low: 0.7, high: 0.9, terms: {}, confidence: 'high', reason: '' } as const;

function series(values: readonly (number | undefined)[]): Series {
  return {
    startMs: MONDAY,
    stepMs: HOUR_MS,
    values: Float64Array.from(values, (value) => value ?? 0),
    missing: Uint8Array.from(values, (value) => (value === undefined ? 1 : 0)),
  };
}

function subset(
  name: string,
  values: readonly (number | undefined)[],
  over: Partial<PlanSubset> = {},
): PlanSubset {
  const heat = series(values);
  return {
    subset: name,
    tables: ['public.orders'],
    bytes: 1e9,
    heat,
    statements: heat,
    changes: { ...heat, values: heat.values.map((value) => value / 10) },
    hot: { share: 0.8, keys: 100, ...HOT },
    divergence: {
      rewritten: { value: 0.05, low: 0.02, high: 0.1 },
      drift: 0.01,
      stale: { value: 0.01, low: 0, high: 0.02, samples: 100, reason: '' },
    },
    durationsMs: [1, 2, 3, 5, 8, 40],
    crossingShare: 0,
    ...over,
  };
}

const rate = (value: number): PlanContext['copyBytesPerSecond'] => ({
  value,
  low: value * 0.8,
  high: value * 1.2,
  samples: 50,
});

function contextAt(hours: number): PlanContext {
  return {
    nowMs: MONDAY + hours * HOUR_MS,
    zone: 'UTC',
    copyBytesPerSecond: rate(1e7),
    applyChangesPerSecond: rate(2000),
    applyShareWhileCopying: 0.5,
    stall: {
      lagMs: 50,
      verifyRowsPerSecond: 20_000,
      fixedMs: { fence: 10, verify: 20, switch: 5 },
      drainTimeoutMs: 2000,
    },
    logBudgetUsed: 0,
    hoursAhead: 48,
    windows: 3,
  };
}

/** Paths of numbers that are NaN. */
function notANumber(value: unknown, path = ''): string[] {
  if (typeof value === 'number') return Number.isNaN(value) ? [path] : [];
  if (typeof value !== 'object' || value === null) return [];
  return Object.entries(value).flatMap(([key, one]) => notANumber(one, `${path}.${key}`));
}

test('the plan puts the hot small subset first and its window into the quietest hour', () => {
  const hours = 6 * 168 + 10;
  const busy = Array.from({ length: hours }, (_, index) => 100 * weekly(index));
  const rows = makePlan(
    [
      subset(
        'archive',
        busy.map((value) => value / 50),
        { bytes: 5e10 },
      ),
      subset('shop', busy),
    ],
    contextAt(hours),
  );
  expect(rows.map((row) => row.subset)).toEqual(['shop', 'archive']);
  const [shop] = rows;
  const window = shop?.windows[0];
  const least = Math.min(...Array.from({ length: 48 }, (_, hour) => weekly(hours + hour)));
  expect(weekly(((window?.startMs ?? 0) - MONDAY) / HOUR_MS)).toBeCloseTo(least);
  expect(shop?.heatNextHour.value).toBeCloseTo((100 * weekly(hours)) / 3600, 0);
  expect(shop?.timeline?.copySeconds.value).toBe(100);
  expect(shop?.notes).toEqual(['42 days observed.']);
});

test('two subsets of one name are refused, one that vanished is planned on what there was', () => {
  const values = Array.from({ length: 200 }, (_, index) => weekly(index));
  expect(() => makePlan([subset('a', values), subset('a', values)], contextAt(200))).toThrow(
    'Two subsets are named a.',
  );
  const [row] = makePlan([subset('gone', values, { tables: [] })], contextAt(230));
  expect(row?.notes).toContain('Not seen for 30 hours: dropped, or capture was off.');
  expect(row?.notes).toContain('No table is left in it.');
});

test('habits follow the wall clock across daylight saving', () => {
  // Berlin: busy from 9 to 17 local time; clocks went forward on 29 March 2026.
  const startMs = Date.UTC(2026, 1, 2) - HOUR_MS;
  const hours = 60 * 24;
  const springMs = Date.UTC(2026, 2, 29, 1);
  const busy = Array.from({ length: hours }, (_, index) => {
    const at = startMs + index * HOUR_MS;
    const local = ((at + (at >= springMs ? 2 : 1) * HOUR_MS) % DAY_MS) / HOUR_MS;
    return local >= 9 && local < 17 ? 900 : 60;
  });
  const heat = { ...series(busy), startMs };
  const now = springMs - 2 * HOUR_MS;
  const cut = Math.floor((now - startMs) / HOUR_MS);
  const known = { ...heat, values: heat.values.slice(0, cut), missing: heat.missing.slice(0, cut) };
  const [row] = makePlan([subset('shop', [], { heat: known, statements: known, changes: known })], {
    ...contextAt(0),
    nowMs: now,
    zone: 'Europe/Berlin',
  });
  const errors = row?.fan.map((one, hour) => Math.abs(one.median - (busy[cut + hour] ?? 0))) ?? [];
  expect(Math.max(...errors)).toBeLessThan(150);
});

test('no plan holds NaN, whatever the series: empty, single, constant, idle, gappy', () => {
  const count = fc.option(fc.oneof(fc.constant(0), fc.nat(5), fc.nat(1_000_000)), { nil: undefined });
  fc.assert(
    fc.property(
      fc.array(count, { maxLength: 60 }),
      fc.integer({ min: 0, max: 5 }),
      fc.nat(1000),
      (values, repeats, bytes) => {
        const all = Array.from({ length: repeats }, () => values).flat();
        const rows = makePlan(
          [
            subset('s', all, { bytes, durationsMs: [], hot: undefined }),
            subset('t', [], {
              divergence: { rewritten: { value: 0, low: 0, high: 0 }, drift: 0, stale: undefined },
            }),
          ],
          contextAt(all.length),
        );
        expect(rows).toHaveLength(2);
        expect(notANumber(rows)).toEqual([]);
      },
    ),
    { numRuns: 12 },
  );
});
