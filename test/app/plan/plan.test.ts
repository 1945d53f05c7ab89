import { parse as loadYaml } from 'yaml';
import { describe, expect, test } from 'vitest';
import { planSvg } from '../../../src/app/plan/plan-svg.js';
import { reportOf, type PlanReport } from '../../../src/app/plan/plan-report.js';
import { explainLines, planLines } from '../../../src/app/plan/plan-text.js';
import { dataFromBatches, type PlanData } from '../../../src/app/plan/series-data.js';
import { subsetsOf, type ConfiguredSubset } from '../../../src/app/plan/subsets.js';
import type { SizesAt } from '../../../src/app/plan/growth.js';
import { yamlLines } from '../../../src/app/plan/plan-yaml.js';
import {
  freshnessOf,
  liveShadow,
  ratesOf,
  stallSettings,
  type LiveShadow,
} from '../../../src/app/plan/measurements.js';
import { measuredSwitch } from '../../../src/app/plan/past-switches.js';
import type { Closure } from '../../../src/capture/closure.js';
import type { SeriesBatch } from '../../../src/core/capture-ports.js';
import { makePlan, type PlanContext } from '../../../src/predict/plan.js';
import { DAY_MS, HOUR_MS } from '../../../src/predict/series.js';
import { emptyBatch, interval, point, shopBatch, START_MS } from './shop-series.js';

async function dataOf(...batches: readonly SeriesBatch[]): Promise<PlanData> {
  // eslint-disable-next-line @typescript-eslint/require-await
  async function* each(): AsyncGenerator<SeriesBatch> {
    yield* batches;
  }
  return dataFromBatches(each(), 'test');
}

function planOf(
  data: PlanData,
  options: {
    readonly closure?: Closure;
    readonly nowMs?: number;
    readonly zone?: string;
    readonly live?: LiveShadow;
    readonly configured?: readonly ConfiguredSubset[];
    readonly sizes?: readonly SizesAt[];
  } = {},
): PlanReport {
  const { live } = options;
  const freshness = live === undefined ? undefined : freshnessOf(live, 1000);
  const subsets = subsetsOf(data, options.closure ?? null, options.nowMs, {
    freshness,
    ...(options.configured === undefined ? {} : { configured: options.configured }),
    sizes: options.sizes ?? [],
  });
  const context: PlanContext = {
    nowMs: subsets.nowMs,
    zone: options.zone ?? 'UTC',
    ...ratesOf(undefined, undefined),
    stall: stallSettings(undefined, 5000),
    logBudgetUsed: 0,
    durationsByHour: subsets.durationsByHour,
    transactionsPerStatement: subsets.transactionsPerStatement,
    hoursAhead: 48,
    windows: 3,
  };
  const inputs = [...subsets.subsets, subsets.whole].map(({ input }) => input);
  const shadow = live?.phase ?? null;
  return reportOf(makePlan(inputs, context), subsets, context, data.origin, shadow, null, new Map());
}

/** Paths of numbers that a plan must not hold; text is looked at too. */
function strange(value: unknown, path = ''): string[] {
  if (typeof value === 'number') return Number.isFinite(value) ? [] : [path];
  if (typeof value === 'string') return /NaN|undefined|Infinity/.test(value) ? [path] : [];
  if (typeof value !== 'object' || value === null) return [];
  return Object.entries(value).flatMap(([key, one]) => strange(one, `${path}.${key}`));
}

function expectSound(plan: PlanReport): void {
  expect(strange(plan)).toEqual([]);
  expect(strange(planLines(plan))).toEqual([]);
  for (const subset of [plan.whole, ...plan.subsets]) expect(strange(explainLines(plan, subset))).toEqual([]);
  expect(planSvg(plan)).not.toMatch(/NaN|undefined|Infinity/);
}

function table(name: string, bytes: number, root: string | null = null): Closure['tables'][number] {
  return { table: name, bytes, rows: bytes / 100, root };
}
const SHOP: Closure = {
  tables: [
    table('public.orders', 1e9),
    table('public.lines', 4e9),
    table('public.articles', 2e8),
    table('public.audit', 5e10),
    table('public.prices', 1e6),
    table('public.old_a', 1e6),
    table('public.old_b', 1e6),
  ],
  foreignKeys: [{ a: 'public.lines', b: 'public.orders', by: 'foreign key lines_order' }],
  bound: [{ a: 'public.articles', b: 'public.prices', by: 'view public.offers' }],
  unknown: ['What this function touches can’t be known (dynamic SQL): public.sweep.'],
};

describe('a plan of two weeks', () => {
  const hours = 2 * 168;

  test('from logs alone: by use in the same transactions; sizes are unknown, not zero', async () => {
    const plan = planOf(await dataOf(shopBatch(hours)));
    expect(plan.subsets.map(({ subset, tables }) => [subset, tables])).toEqual([
      ['public.lines', ['public.lines', 'public.orders']],
      ['public.articles', ['public.articles']],
      ['public.audit', ['public.audit']],
    ]);
    const [orders] = plan.subsets;
    expect(orders).toMatchObject({
      bytes: null,
      copySeconds: null,
      readySeconds: null,
      converges: null,
      hot: null,
    });
    // 100 of 8,000 transactions with lines touch the articles too.
    expect(orders?.crossing.with).toEqual([
      { with: 'public.articles', share: expect.closeTo(0.0095, 3) as number },
    ]);
    expect(plan.unknown[0]).toContain('No database was read');
    expect(orders?.divergence).toMatchObject({ confidence: 'none', low: 0 });
    // The quietest hour of those to come is three in the morning.
    expect(new Date(plan.whole.windows[0]?.start ?? 0).getUTCHours()).toBe(3);
    expect(plan.asOf).toBe(new Date(START_MS + hours * HOUR_MS).toISOString());
    expectSound(plan);
  });

  test('with catalogs: sizes, ties, what is unused last, what is not known said', async () => {
    const plan = planOf(await dataOf(shopBatch(hours)), { closure: SHOP });
    expect(plan.subsets.map(({ subset }) => subset)).toEqual([
      'public.articles',
      'public.lines',
      'public.audit',
      '(unused)',
    ]);
    const [articles, lines, audit, unused] = plan.subsets;
    expect(articles?.tables).toEqual(['public.articles', 'public.prices']);
    expect(articles?.ties.map(({ by }) => by)).toEqual(['view public.offers']);
    expect(lines).toMatchObject({ bytes: 5e9, converges: true });
    expect(lines?.copySeconds?.value).toBeCloseTo(125);
    expect(audit?.copySeconds?.reason).toContain('a guess');
    expect(unused?.tables).toEqual(['public.old_a', 'public.old_b']);
    expect(plan.whole.bytes).toBe(5.5203e10 - 0);
    expect(plan.unknown).toEqual(SHOP.unknown);
    expectSound(plan);
    expect(explainLines(plan, articles ?? plan.whole).join('\n')).toContain('view public.offers');
    expect(planSvg(plan)).toContain('prefers-color-scheme: dark');
  });

  test('what a running shadow has copied is not copied again, and its rate is measured', async () => {
    const live = liveShadow({
      phase: 'copying',
      tables: [
        { table: 'public.orders', rowsCopied: 50, rowsEstimated: 100, done: false },
        { table: 'public.audit', rowsCopied: 9, rowsEstimated: 9, done: true },
      ],
      copy: { rows: 1_000_000, seconds: 10 },
      streams: [],
      lastVerify: null,
      error: null,
    });
    expect([...live.copied]).toEqual([
      ['public.orders', 0.5],
      ['public.audit', 1],
    ]);
    expect(ratesOf(live, { bytes: 1e9, rows: 1e7 }).copyBytesPerSecond.value).toBeCloseTo(1e7);
    expect(ratesOf(undefined, undefined).copyBytesPerSecond.samples).toBe(0);
    // The size stays what it is; what is left to copy stands beside it.
    const plan = planOf(await dataOf(shopBatch(hours)), { closure: SHOP, live });
    const of = (name: string): PlanReport['whole'] =>
      plan.subsets.find(({ subset }) => subset === name) ?? plan.whole;
    expect(of('public.lines')).toMatchObject({ bytes: 5e9, bytesLeft: 4.5e9 });
    expect(of('public.audit')).toMatchObject({ bytes: 5e10, bytesLeft: 0 });
    const lines = planLines(plan);
    expect(lines.find((line) => line.includes('public.lines'))).toMatch(/5\.0 GB\s+4\.5 GB/);
    expect(lines.findLast((line) => line.includes('public.audit'))).toMatch(/done\s+copying/);
    expect(explainLines(plan, of('public.audit')).join('\n')).toContain('50.0 GB, all of it copied');
    expectSound(plan);
  });
});

test('subsets: proposed where foreign keys let them be parted, taken as configured, and seen to grow', async () => {
  const data = await dataOf(shopBatch(24));
  const sizes = Array.from({ length: 10 }, (_, hour) => ({
    atMs: START_MS + hour * HOUR_MS,
    bytes: new Map([
      ['public.orders', 1e9 + hour * 1e6],
      ['public.lines', 4e9],
    ]),
  }));
  const plan = planOf(data, { closure: SHOP, sizes });
  expect(plan.proposals.map(({ name, tables }) => [name, tables])).toEqual([
    ['articles', ['public.articles', 'public.prices']],
    ['audit', ['public.audit']],
    ['lines', ['public.lines', 'public.orders']],
  ]);
  const written = loadYaml(yamlLines(plan).join('\n')) as { readonly subsets: Record<string, unknown> };
  expect(written.subsets['lines']).toEqual({ tables: ['public.lines', 'public.orders'] });
  expect(yamlLines(plan).filter((line) => line.includes('foreign keys'))).toEqual([]);
  // From logs alone no foreign key is known, and what is pasted says so; no name of a table ends a comment.
  const blind = planOf(data);
  const unsafe = { ...blind, unknown: [...blind.unknown, 'a table\nsubsets: {}'] };
  expect(yamlLines(blind)).toContainEqual(expect.stringMatching(/^# Not known: .*foreign keys/));
  expect(Object.keys(loadYaml(yamlLines(unsafe).join('\n')) ?? {})).not.toContain('a table');
  expect(yamlLines(unsafe).every((line) => !line.includes('\n'))).toBe(true);
  const grown = plan.subsets.find(({ subset }) => subset === 'public.lines') ?? plan.whole;
  expect(grown.growthPerDay?.value).toBeCloseTo(24e6, -3);
  expect(explainLines(plan, grown).join('\n')).toContain('by 24.0 MB a day');
  expect(plan.subsets.find(({ subset }) => subset === 'public.audit')?.growthPerDay?.value).toBe(0);
  expectSound(plan);
  // A foreign key across holds two groups together; one of all is no proposal.
  const tied = { ...SHOP, foreignKeys: [{ a: 'public.lines', b: 'public.articles', by: 'foreign key' }] };
  expect(planOf(data, { closure: tied }).proposals.find(({ groups }) => groups.length > 1)?.tables).toEqual(
    expect.arrayContaining(['public.lines', 'public.articles']),
  );
  // As configured: those, and the rest; what ties them is said.
  const configured = [{ subset: 'sales', tables: ['public.orders'] }];
  const given = planOf(data, { closure: SHOP, configured });
  const tiesOf = ({ subsets }: PlanReport): Record<string, readonly string[]> =>
    Object.fromEntries(subsets.map(({ subset, together }) => [subset, together]));
  expect(tiesOf(given)).toEqual({ rest: ['sales'], sales: ['rest'] });
  const books = { subset: 'books', tables: ['public.audit'] };
  const follows = { subset: 'goods', tables: ['public.articles'], crossing: 'follow' } as const;
  expect(tiesOf(planOf(data, { configured: [books, follows] }))).toEqual({
    books: [],
    goods: ['rest'],
    rest: ['goods'],
  });
  expect(given.proposals).toEqual([]);
  expect(given.borders).toEqual([
    {
      subsets: ['rest', 'sales'],
      ties: [{ a: 'public.lines', b: 'public.orders', by: 'foreign key lines_order', policy: 'together' }],
      crossing: 'refuse',
    },
  ]);
  expect(planLines(given)).toContain(
    '    public.lines – public.orders: foreign key lines_order (switched in one operation)',
  );
  const apart = planOf(data, {
    closure: SHOP,
    configured: [{ subset: 'sales', tables: ['public.orders', 'public.prices'], foreignKeys: 'unenforced' }],
  });
  expect(tiesOf(apart)).toEqual({ rest: [], sales: [] });
  expect(apart.borders[0]?.ties.map(({ by, policy }) => [by, policy])).toEqual([
    ['foreign key lines_order', 'unenforced'],
    ['view public.offers', 'refused'],
  ]);
  expect(yamlLines(given).every((line) => line.startsWith('#'))).toBe(true);
  expectSound(given);
});

test('how long a switch takes is the median of those that were done', () => {
  const report = (
    outcome: 'done' | 'aborted',
    fence: number,
    held = 0,
  ): Parameters<typeof measuredSwitch>[0][number] => ({
    outcome,
    steps: { hold: 999, fence, 'catch-up': 5, verify: 7, commit: 4, switch: 1, release: 2 },
    parts: { 'hold.drain': 30 },
    stall: { held, p50: 0, p99: 0, max: held === 0 ? 0 : 80, histogram: [] },
  });
  expect(measuredSwitch([null, report('aborted', 1000)])).toBeUndefined();
  expect(
    measuredSwitch([report('done', 10), report('aborted', 1000), report('done', 30), report('done', 20)]),
  ).toMatchObject({ fixedMs: { fence: 25, verify: 7, switch: 7 } });
  // What clients waited says more than the steps, and the drain is predicted.
  const held = measuredSwitch([report('done', 10, 3), report('done', 10, 3)]);
  expect(held?.fixedMs).toEqual({ fence: 36, verify: 7, switch: 7 });
  expect(held?.spread).toBeGreaterThan(1);
  expect(held?.spread).toBeLessThan(2);
});

describe('strange series', () => {
  const lone = (batch: Partial<SeriesBatch>): SeriesBatch => ({ ...emptyBatch('lone/0'), ...batch });
  const flat = (hours: number, reads: number, skip: (hour: number) => boolean = () => false): SeriesBatch =>
    lone({
      points: Array.from({ length: hours }, (_, hour) => hour)
        .filter((hour) => !skip(hour) && reads > 0)
        .map((hour) => point('t', START_MS + hour * HOUR_MS, reads, 0)),
      intervals: Array.from({ length: hours }, (_, hour) => hour)
        .filter((hour) => !skip(hour))
        .map((hour) => interval(START_MS + hour * HOUR_MS, reads)),
    });

  test('nothing at all: says so', async () => {
    const plan = planOf(await dataOf(emptyBatch('e/0')));
    expect(plan.subsets).toEqual([]);
    expect(plan.whole.windows).toEqual([]);
    expect(planLines(plan).join('\n')).toContain('there is nothing to plan');
    expectSound(plan);
  });

  test('the first hour, before it has passed: what was seen of it', async () => {
    const batch = lone({
      points: [point('t', START_MS, 120, 0)],
      intervals: [interval(START_MS, 120, 60_000)],
    });
    const plan = planOf(await dataOf(batch), { nowMs: START_MS + 90_000 });
    expect(plan.subsets[0]?.heat.now.value).toBeCloseTo(2);
    expect(plan.subsets[0]?.heat.now.confidence).toBe('low');
    expect(plan.notes).toContain(
      'No hour has been watched to its end: the running one counts, for what it is.',
    );
    // Once an hour has closed, the running one waits for its end.
    const later = lone({
      points: [point('t', START_MS, 3600, 0), point('t', START_MS + HOUR_MS, 7200, 0)],
      intervals: [interval(START_MS, 3600), interval(START_MS + HOUR_MS, 7200, 60_000)],
    });
    const next = planOf(await dataOf(later), { nowMs: START_MS + HOUR_MS + 90_000 });
    expect(next.subsets[0]?.heat.now.value).toBeCloseTo(1);
    expect(next.notes).toEqual([]);
    expectSound(plan);
  });

  test('one minute: a rate, no pattern, little confidence', async () => {
    const plan = planOf(
      await dataOf(
        lone({ points: [point('t', START_MS, 120, 0)], intervals: [interval(START_MS, 120, 60_000)] }),
      ),
    );
    expect(plan.subsets[0]?.heat.now.value).toBeCloseTo(2);
    expect(plan.subsets[0]?.heat.now.confidence).toBe('low');
    expect(plan.subsets[0]?.notes[0]).toBe('Only 1 minute observed: the recent mean, no daily pattern yet.');
    expectSound(plan);
  });

  test('constant: the same ahead, with little doubt', async () => {
    const plan = planOf(await dataOf(flat(14 * 24, 3600)));
    const day = plan.subsets[0]?.heat.nextDay;
    expect(day?.value).toBeCloseTo(1, 1);
    expect((day?.high ?? 9) - (day?.low ?? 0)).toBeLessThan(0.2);
    expectSound(plan);
  });

  test('idle though watched: zero, which is known', async () => {
    const batch = flat(100, 0);
    const plan = planOf(await dataOf({ ...batch, points: [point('t', START_MS, 1, 0)] }));
    expect(plan.subsets[0]?.heat.nextDay.value).toBeLessThan(0.001);
    expectSound(plan);
  });

  test('negative or broken figures are refused, with what to do', async () => {
    for (const reads of [-1, Number.NaN])
      await expect(dataOf(lone({ points: [point('t', START_MS, reads, 0)] }))).rejects.toMatchObject({
        code: 'series-invalid',
      });
  });

  test('gaps are unknown, not idle', async () => {
    const plan = planOf(await dataOf(flat(14 * 24, 7200, (hour) => hour % 7 < 3)));
    expect(plan.subsets[0]?.heat.nextDay.value).toBeCloseTo(2, 0);
    expectSound(plan);
  });

  test('a clock that jumped decades ahead for a moment does not become the present', async () => {
    const wild = Date.UTC(2058, 0, 1);
    const sane = flat(10 * 24, 3600);
    const plan = planOf(
      await dataOf({
        ...sane,
        points: [...sane.points, point('t', wild, 5, 0)],
        intervals: [...sane.intervals, interval(wild, 5)],
      }),
    );
    expect(plan.asOf).toBe(new Date(START_MS + 10 * DAY_MS).toISOString());
    expect(plan.notes.join()).toContain('left out');
    expectSound(plan);
  });

  test('daylight saving: the quiet hour stays at three on the wall', async () => {
    // Berlin goes an hour forward on 29 March 2026.
    const springMs = Date.UTC(2026, 2, 29, 1);
    const startMs = springMs - 14 * DAY_MS - 2 * HOUR_MS;
    const hours = 14 * 24;
    const local = (hour: number): number => (hour % 24 === 3 ? 0.02 : 1);
    const plan = planOf(
      await dataOf(
        lone({
          // The first hour is midnight in Berlin.
          points: Array.from({ length: hours }, (_, hour) =>
            point('t', startMs + hour * HOUR_MS, Math.round(9000 * local(hour)), 0),
          ),
          intervals: Array.from({ length: hours }, (_, hour) => interval(startMs + hour * HOUR_MS, 1)),
        }),
      ),
      { zone: 'Europe/Berlin' },
    );
    // From the 29th on 03:00 in Berlin is 01:00 UTC.
    expect(plan.whole.windows.slice(0, 2).map(({ start }) => start)).toEqual([
      new Date(springMs).toISOString(),
      new Date(springMs + DAY_MS).toISOString(),
    ]);
    expectSound(plan);
  });

  test('a table of two spellings is one; two schemas’ tables of one name stay two', async () => {
    const spelt = await dataOf(
      lone({
        points: [
          point('orders', START_MS, 60, 0),
          point('public.orders', START_MS, 60, 0),
          point('a.log', START_MS, 5, 0),
          point('b.log', START_MS, 5, 0),
          point('log', START_MS, 5, 0),
        ],
        intervals: [interval(START_MS, 135)],
      }),
    );
    const plan = planOf(spelt);
    expect(plan.subsets.map(({ subset }) => subset).sort()).toEqual([
      'a.log',
      'b.log',
      'log',
      'public.orders',
    ]);
    const named = await dataOf(
      lone({ points: [point('all', START_MS, 1, 0)], intervals: [interval(START_MS, 1)] }),
    );
    expect(planOf(named).subsets[0]?.subset).toBe('"all"');
  });

  test('a table dropped mid-way is named, and not planned', async () => {
    const plan = planOf(
      await dataOf({
        ...shopBatch(200),
        points: [...shopBatch(200).points, point('public.gone', START_MS, 50, 50)],
      }),
      { closure: SHOP },
    );
    expect(plan.subsets.flatMap(({ tables }) => tables)).not.toContain('public.gone');
    expect(plan.unknown.join()).toContain('public.gone');
    expectSound(plan);
  });

  test('a partition’s use counts once', async () => {
    const plan = planOf(
      await dataOf(
        lone({
          points: [point('public.p', START_MS, 3600, 0), point('public.p_1', START_MS, 3600, 0)],
          intervals: [interval(START_MS, 3600)],
        }),
      ),
      {
        closure: {
          tables: [table('public.p', 0), table('public.p_1', 100, 'public.p')],
          foreignKeys: [],
          bound: [{ a: 'public.p', b: 'public.p_1', by: 'inheritance' }],
          unknown: [],
        },
      },
    );
    expect(plan.subsets[0]?.heat.now.value).toBeCloseTo(1);
  });
});
