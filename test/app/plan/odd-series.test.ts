/** Whatever capture, a clock or somebody's hand has left in the kept series: a plan holds numbers, in their order, or says why not. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import {
  freshnessOf,
  logBudgetUsed,
  ratesOf,
  stallSettings,
  type LiveShadow,
} from '../../../src/app/plan/measurements.js';
import { measuredSwitch } from '../../../src/app/plan/past-switches.js';
import { reportOf, type PlanReport } from '../../../src/app/plan/plan-report.js';
import { planSvg } from '../../../src/app/plan/plan-svg.js';
import { explainLines, planLines } from '../../../src/app/plan/plan-text.js';
import { yamlLines } from '../../../src/app/plan/plan-yaml.js';
import { PlanDataBuilder, type PlanData } from '../../../src/app/plan/series-data.js';
import { subsetsOf, type SubsetOptions } from '../../../src/app/plan/subsets.js';
import type { Closure } from '../../../src/capture/closure.js';
import { slotOfWeek, toLocal, zoneOffset } from '../../../src/predict/local-time.js';
import { makePlan } from '../../../src/predict/plan.js';
import { DAY_MS, HOUR_MS } from '../../../src/predict/series.js';
import { emptyBatch, interval, point } from './shop-series.js';

/** Clocks that change by an hour, by half of one, around noon UTC, and once by a whole day. */
const ZONES = [
  'UTC',
  'Europe/Berlin',
  'America/St_Johns',
  'Australia/Lord_Howe',
  'Africa/Casablanca',
  'Asia/Kathmandu',
  'Pacific/Apia',
] as const;
/** Around changes of these clocks, spring and autumn; and the day that Apia left out. */
const STARTS = [
  Date.UTC(2026, 2, 28),
  Date.UTC(2026, 9, 24),
  Date.UTC(2026, 3, 4),
  Date.UTC(2026, 10, 1),
  Date.UTC(2011, 11, 29),
  0,
];

interface Given extends SubsetOptions {
  readonly closure?: Closure | null;
  readonly nowMs?: number | undefined;
  readonly zone?: string;
  readonly live?: LiveShadow | undefined;
  readonly past?: readonly { bytes: number; copySeconds: number; readySeconds: number }[];
  readonly switches?: Parameters<typeof measuredSwitch>[0];
}

function planOf(data: PlanData, given: Given = {}): PlanReport {
  const { closure = null, live, zone = 'UTC', past = [], switches = [] } = given;
  const freshness = live === undefined ? undefined : freshnessOf(live, 1000);
  const subsets = subsetsOf(data, closure, given.nowMs, { ...given, freshness });
  const bytes = closure?.tables.reduce((sum, table) => sum + table.bytes, 0) ?? 0;
  const context = {
    nowMs: subsets.nowMs,
    zone,
    ...ratesOf(live, { bytes, rows: bytes / 100 }),
    past,
    stall: stallSettings(live, 5000, measuredSwitch(switches)),
    logBudgetUsed: logBudgetUsed(live, 1e9),
    durationsByHour: subsets.durationsByHour,
    transactionsPerStatement: subsets.transactionsPerStatement,
    hoursAhead: 48,
    windows: 3,
  };
  const inputs = [...subsets.subsets, subsets.whole].map(({ input }) => input);
  return reportOf(makePlan(inputs, context), subsets, context, 'test', live?.phase ?? null, null, new Map());
}

/** Paths of what no plan may hold. */
function strange(value: unknown, path = ''): string[] {
  if (typeof value === 'number') return Number.isFinite(value) ? [] : [`${path}=${value}`];
  if (typeof value === 'string') return /NaN|undefined|Infinity/.test(value) ? [`${path}=${value}`] : [];
  if (typeof value !== 'object' || value === null) return [];
  const { value: middle, low, high } = value as Readonly<Record<string, unknown>>;
  const isJudgement = typeof middle === 'number' && typeof low === 'number' && typeof high === 'number';
  const ordered = !isJudgement || (low <= middle * (1 + 1e-9) && middle <= high * (1 + 1e-9) && low >= 0);
  return [
    ...(ordered || path.endsWith('growthPerDay') ? [] : [`${path}: ${low} ${middle} ${high}`]),
    ...Object.entries(value).flatMap(([key, one]) => strange(one, `${path}.${key}`)),
  ];
}

function expectSound(plan: PlanReport): void {
  expect(strange(plan)).toEqual([]);
  expect(strange([planLines(plan), yamlLines(plan)])).toEqual([]);
  for (const subset of [plan.whole, ...plan.subsets]) expect(strange(explainLines(plan, subset))).toEqual([]);
  expect(planSvg(plan)).not.toMatch(/NaN|undefined|Infinity/);
}

const NAMES = ['public.a', 'public.b', 'a', 'all', '"all"', 'rest', '(unused)', 'public.p', 'public.p_1'];
const name = fc.constantFrom(...NAMES);
const sane = fc.oneof(fc.nat(1000), fc.constantFrom(0, 1, 1e9, 9.2e18));
const odd = fc.oneof(
  { weight: 4, arbitrary: sane },
  { weight: 1, arbitrary: fc.constantFrom(Number.NaN, Infinity, -Infinity, -1, 1e308) },
);
const kept = fc.record({
  startMs: fc.constantFrom(...STARTS),
  hours: fc.nat(50),
  gap: fc.constantFrom(0, 2, 24),
  jumpMs: fc.constantFrom(0, 0, -400 * HOUR_MS, 30 * DAY_MS, 20_000 * DAY_MS, -HOUR_MS, 9e15),
  jumpAt: fc.nat(50),
  figures: fc.array(fc.tuple(odd, odd, odd), { minLength: 1, maxLength: 8 }),
  observedMs: fc.oneof(fc.constant(HOUR_MS), odd),
  tables: fc.uniqueArray(name, { maxLength: 4 }),
  uses: fc.array(fc.record({ a: name, b: name, transactions: odd, weight: odd, asOfMs: fc.constant(0) }), {
    maxLength: 5,
  }),
  durations: fc.array(fc.record({ hourOfWeek: odd, upToMicros: odd, weight: odd, asOfMs: fc.constant(0) }), {
    maxLength: 4,
  }),
  keys: fc.array(
    fc.record({
      table: name,
      startMs: fc.constantFrom(...STARTS),
      accesses: odd,
      keys: fc.array(
        fc.record({ key: fc.constantFrom('k', 'l'), count: odd, writes: odd, error: fc.nat(3) }),
        {
          maxLength: 3,
        },
      ),
    }),
    { maxLength: 4 },
  ),
});

/** As a store would give it: nothing was checked. */
function dataOf(one: typeof kept extends fc.Arbitrary<infer T> ? T : never): PlanData {
  const builder = new PlanDataBuilder();
  const hours = Array.from({ length: one.hours }, (_, hour) => hour).filter(
    (hour) => one.gap === 0 || hour % one.gap !== 1,
  );
  const atMs = (hour: number): number => one.startMs + hour * HOUR_MS + (hour > one.jumpAt ? one.jumpMs : 0);
  const figures = (index: number): readonly [number, number, number] =>
    one.figures[index % one.figures.length] ?? [0, 0, 0];
  builder.add({
    ...emptyBatch('kept'),
    points: hours.flatMap((hour) =>
      // The first is dropped half-way.
      one.tables.slice(hour > one.hours / 2 ? 1 : 0).map((table, index) => {
        const [reads, writes, rowsWritten] = figures(hour + index);
        return { ...point(table, atMs(hour), reads, writes), rowsWritten };
      }),
    ),
    intervals: hours.map((hour) => interval(atMs(hour), figures(hour)[0], one.observedMs)),
    coAccess: one.uses,
    transactionDurations: one.durations,
    hotKeys: one.keys,
  });
  return builder.build('test');
}

const rate = fc.record({ value: odd, low: odd, high: odd, samples: fc.nat(5) }).map((one) => {
  const [low = 0, value = 0, high = 0] = [one.low, one.value, one.high].sort((a, b) => a - b);
  return { ...one, low, value, high };
});
const given = fc.record({
  zone: fc.constantFrom(...ZONES),
  now: fc.constantFrom('data', 'before', 'within', 'after', 'long after'),
  closure: fc.option(
    fc.record({
      tables: fc.uniqueArray(
        fc.record({
          table: name,
          bytes: sane,
          rows: fc.option(sane),
          root: fc.option(fc.constantFrom('public.p', 'nowhere')),
        }),
        { selector: ({ table }) => table, maxLength: 6 },
      ),
      foreignKeys: fc.array(fc.record({ a: name, b: name, by: fc.constant('a key') }), { maxLength: 2 }),
      bound: fc.array(fc.record({ a: name, b: name, by: fc.constant('a view') }), { maxLength: 2 }),
      unknown: fc.constant([]),
    }),
  ),
  // Renamed, or named anew, since the last start.
  configured: fc.constantFrom(
    [],
    [
      { subset: 'one', tables: ['public.a', 'gone.t'] },
      { subset: 'two', tables: ['nowhere.t'] },
    ],
  ),
  live: fc.option(
    fc.record({
      phase: fc.constantFrom('copying' as const, 'following' as const, 'failed' as const),
      copied: fc.array(fc.tuple(name, fc.constantFrom(0, 0.5, 1))).map((entries) => new Map(entries)),
      lagMs: fc.option(odd),
      exactMs: fc.oneof(fc.option(odd), fc.constant(undefined)),
      copy: fc.record({ rows: odd, seconds: odd }),
      logBytes: fc.option(odd),
      apply: fc.option(rate),
    }),
    { nil: undefined },
  ),
  past: fc.array(fc.record({ bytes: odd, copySeconds: odd, readySeconds: odd }), { maxLength: 6 }),
  sizes: fc.array(
    fc.record({
      atMs: fc.oneof(odd, fc.constantFrom(...STARTS)),
      bytes: fc.array(fc.tuple(name, odd)).map((entries) => new Map(entries)),
    }),
    { maxLength: 7 },
  ),
});

test('no plan, table, explanation or picture holds what is no number, or an interval upside down', () => {
  fc.assert(
    fc.property(kept, given, (one, { now, ...rest }) => {
      const data = dataOf(one);
      const endMs = data.untilMs ?? one.startMs;
      const nowMs = {
        data: undefined,
        before: one.startMs - 5 * DAY_MS,
        within: one.startMs + 10 * HOUR_MS,
        after: endMs + 30 * HOUR_MS,
        'long after': endMs + 60 * DAY_MS,
      }[now];
      expectSound(planOf(data, { ...rest, nowMs }));
    }),
    { numRuns: 12 },
  );
});

test('kept figures that are no counts are left out, and said', () => {
  const builder = new PlanDataBuilder();
  builder.add({
    ...emptyBatch('kept'),
    points: [
      point('t', STARTS[0] ?? 0, 3600, 0),
      point('t', STARTS[0] ?? 0, Number.NaN, 0),
      point('t', Number.POSITIVE_INFINITY, 5, 0),
    ],
    intervals: [interval(STARTS[0] ?? 0, 3600)],
    transactionDurations: [{ hourOfWeek: 3, upToMicros: 1, weight: -1, asOfMs: 0 }],
  });
  const plan = planOf(builder.build('test'));
  expect(plan.whole.heat.now.value).toBeCloseTo(1);
  expect(plan.notes).toContain('3 kept figures are no counts, or of no time, and were left out.');
});

test('what was not seen for more than four weeks says nothing of the present', () => {
  const builder = new PlanDataBuilder();
  const startMs = STARTS[0] ?? 0;
  builder.add({
    ...emptyBatch('kept'),
    points: [point('t', startMs, 9, 0)],
    intervals: [interval(startMs, 9)],
  });
  const [row] = planOf(builder.build('test'), { nowMs: startMs + 20_000 * DAY_MS }).subsets;
  expect(row?.heat.nextDay.confidence).toBe('none');
  expect(row?.notes.join()).toMatch(/Not seen since 2026-03-28T01:00/);
});

test('on every clock, each known hour of the wall keeps its figure over its changes', () => {
  fc.assert(
    fc.property(
      fc.constantFrom(...ZONES),
      fc.constantFrom(...STARTS),
      fc.nat(200),
      (zone, startMs, hours) => {
        const offset = zoneOffset(zone);
        const slotAt = (utcMs: number): number => slotOfWeek(utcMs + offset(utcMs), HOUR_MS);
        const values = Float64Array.from({ length: hours }, (_, hour) => slotAt(startMs + hour * HOUR_MS));
        const series = { startMs, stepMs: HOUR_MS, values, missing: new Uint8Array(hours) };
        const local = toLocal(series, offset);
        // A clock that changes by half an hour moves what lies between two hours to the nearer.
        const tolerance = zone === 'Australia/Lord_Howe' ? 1 : 0;
        for (const [index, value] of local.values.entries()) {
          if (local.missing[index] === 1) continue;
          const apart = Math.abs(value - ((local.firstSlot + index) % 168));
          expect(Math.min(apart, 168 - apart)).toBeLessThanOrEqual(tolerance);
        }
      },
    ),
    { numRuns: 60 },
  );
});
