/** What the loop does between a decision and the switch: no servers, a clock of its own. */
import pino from 'pino';
import { expect, test } from 'vitest';
import type { OperationOptions } from '../../../src/admin/control.js';
import { Autopilot, type RouteAsKnown } from '../../../src/app/autopilot/autopilot.js';
import type { OperationSummary } from '../../../src/app/autopilot/decisions.js';
import { AllowedHours } from '../../../src/app/autopilot/hours.js';
import type { Confirm } from '../../../src/app/operations.js';
import type { PlanReport } from '../../../src/app/plan/plan-report.js';
import { UnderstudyError } from '../../../src/core/errors.js';
import type { OperationReport, ShadowStatus } from '../../../src/core/ports.js';
import { HOUR_MS } from '../../../src/predict/series.js';
import { iso, judged, LIMITS, NOW_MS, plan, subset, window } from './plans.js';

const FOLLOWING: ShadowStatus = {
  phase: 'following',
  tables: [],
  copy: { rows: 0, seconds: 0 },
  streams: [
    {
      direction: 'forward',
      connected: true,
      authoritative: true,
      committed: '0/0',
      lagBytes: 0,
      lagMs: 5,
      changesApplied: 0,
      transactionsApplied: 0,
    },
  ],
  lastVerify: null,
  error: null,
};

interface World {
  nowMs: number;
  shadow: ShadowStatus;
  plan: PlanReport;
  /** What an operation on `orders` would switch. */
  switched: readonly string[];
  operations: OperationSummary[];
  readonly settled: unknown[][];
  readonly switches: string[];
  plans: number;
  /** While preflight runs, alone or as part of the cutover. */
  during: (dryRun: boolean) => void;
}

/** The windows of every hour that a test comes to are as good. */
function hourly(nowMs: number, rows: readonly string[] = []): PlanReport {
  const start = Math.floor(nowMs / HOUR_MS) * HOUR_MS;
  const now = window({ start: iso(start), end: iso(start + HOUR_MS) });
  const row = { windows: [now], earliest: now };
  return plan(subset(row), {
    asOf: iso(nowMs),
    subsets: rows.map((name, at) => subset({ ...row, subset: name, priority: judged(9 - at) })),
  });
}

function world(subsets: readonly string[] = []): { readonly of: World; readonly autopilot: Autopilot } {
  const of: World = {
    nowMs: NOW_MS,
    shadow: FOLLOWING,
    plan: hourly(NOW_MS, subsets),
    switched: subsets.slice(0, 1),
    operations: [],
    settled: [],
    switches: [],
    plans: 0,
    during: () => undefined,
  };
  const report = (outcome: OperationReport['outcome'], over: Partial<OperationReport>): OperationReport => ({
    id: 'cutover-1',
    kind: 'cutover',
    subset: of.switched[0] ?? 'all',
    ...(of.switched.length > 1 ? { subsets: of.switched } : {}),
    outcome,
    epoch: 0,
    startedAt: iso(of.nowMs),
    totalMs: 0,
    steps: {},
    parts: {},
    stall: { held: 0, p50: 0, p99: 0, max: 0, histogram: [] },
    moved: 0,
    closed: 0,
    findings: [],
    ...over,
  });
  let [running, recorded] = [false, false];
  const cutover = async (
    { dryRun = false, subset: named }: OperationOptions,
    confirm?: Confirm,
  ): Promise<OperationReport> => {
    of.during(dryRun);
    if (dryRun) return report('dry-run', {});
    try {
      await confirm?.(of.switched);
    } catch (error) {
      if (!(error instanceof UnderstudyError)) throw error;
      return report('aborted', { reason: { code: error.code, message: error.message } });
    }
    of.switches.push(named ?? 'all');
    return report('done', {});
  };
  const autopilot = new Autopilot({
    limits: LIMITS,
    checkIntervalMs: 1,
    hours: AllowedHours.parse('01:00-05:00', 'UTC'),
    decisions: {
      record: async () => {
        recorded = true;
        return Promise.resolve(1);
      },
      settle: async (number, outcome, reason) => {
        of.settled.push([number, outcome, reason]);
        return Promise.resolve();
      },
      past: async (without) =>
        Promise.resolve({
          attempts: recorded && without !== 1 ? [{ atMs: of.nowMs, outcome: null }] : [],
          operations: of.operations,
        }),
      settleLeft: async () => Promise.resolve(true),
      recordCopy: async () => Promise.resolve(),
    },
    plan: async (_live, _sides, nowMs) => {
      of.plans += 1;
      return Promise.resolve({
        plan: nowMs === NOW_MS ? of.plan : hourly(nowMs, subsets),
        bases: new Map(),
        bytes: null,
      });
    },
    tuner: undefined,
    logBudgetBytes: 0,
    route: (): RouteAsKnown => ({
      leader: 'source',
      finalized: false,
      subsets: subsets.map((name) => ({ subset: name, side: 'source' })),
    }),
    shadow: async () => Promise.resolve(of.shadow),
    operationRunning: () => running,
    operate: async (_operation, options, confirm) => {
      running = true;
      return await cutover(options, confirm).finally(() => {
        running = false;
      });
    },
    log: pino({ level: 'silent' }),
    clock: {
      now: () => new Date(of.nowMs),
      monotonicMs: () => of.nowMs,
      sleep: async (_ms, signal) =>
        new Promise((_resolve, reject) => {
          signal?.addEventListener('abort', () => reject(new Error('stopped')));
        }),
    },
  });
  autopilot.start();
  return { of, autopilot };
}

/** Hours of comparing rows, before the switch or within it. */
test.each([true, false])('a switch that preflight held up is judged anew (dry run: %s)', async (within) => {
  const outcome = within ? 'refused' : 'aborted';
  const cases: readonly (readonly [RegExp, (of: World) => void])[] = [
    [/outside-hours/, (of) => (of.nowMs += 2 * HOUR_MS)],
    [/lag: /, (of) => (of.shadow = { ...FOLLOWING, streams: [] })],
    [/not-ready/, (of) => (of.shadow = { ...FOLLOWING, phase: 'copying' })],
  ];
  for (const [reason, happens] of cases) {
    const { of, autopilot } = world();
    of.during = (dryRun) => {
      if (dryRun === within) happens(of);
    };
    expect((await autopilot.round()).kind).toBe('cutover');
    expect(of.switches).toEqual([]);
    expect(of.settled).toMatchObject([[1, outcome, expect.stringMatching(reason)]]);
    await autopilot.stop();
  }
});

test('it goes on where all is as it was, by a new plan in the next hour', async () => {
  for (const hours of [0, 1]) {
    const { of, autopilot } = world();
    of.during = (dryRun) => {
      if (dryRun) of.nowMs += hours * HOUR_MS;
    };
    await autopilot.round();
    expect(of.switches).toEqual(['all']);
    expect(of.settled).toMatchObject([[1, 'done', null]]);
    expect(autopilot.status().verdict).not.toHaveProperty('bundle');
    await autopilot.stop();
  }
});

test('nothing goes along that was not decided on', async () => {
  const names = ['orders', 'stock', 'rest'];
  const untouched = world(names);
  await untouched.autopilot.round();
  expect(untouched.of.switches).toEqual(['orders']);
  await untouched.autopilot.stop();
  for (const within of [true, false]) {
    const { of, autopilot } = world(names);
    of.during = (dryRun) => {
      if (dryRun === within) of.switched = ['orders', 'stock'];
    };
    await autopilot.round();
    expect(of.switches).toEqual([]);
    expect(of.settled).toMatchObject([
      [
        1,
        within ? 'refused' : 'aborted',
        expect.stringContaining('on orders; the operation would switch orders, stock'),
      ],
    ]);
    await autopilot.stop();
  }
});

test('a plan stands until what comes over behind the fence is known to take another time', async () => {
  const { of, autopilot } = world();
  const plans: number[] = [];
  for (const exactMs of [null, 100, 140, 160, 90, null, 300]) {
    of.shadow = { ...FOLLOWING, streams: FOLLOWING.streams.map((stream) => ({ ...stream, exactMs })) };
    of.switches.length = 0;
    await autopilot.round();
    plans.push(of.plans);
  }
  expect(plans).toEqual([1, 2, 2, 3, 3, 3, 4]);
  await autopilot.stop();
});
