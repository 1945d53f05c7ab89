/**
 * A short slice of `npm run chaos`, with plans of its own. The harness must find nothing; that it would find something is
 * the auditor's own tests' business.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, inject, test } from 'vitest';
import { FAULTS, POINTS, describePlan, drawPlan, type Fault, type Plan } from '../../../bench/chaos/plan.js';
import { playRun } from '../../../bench/chaos/play.js';
import { Stage } from '../../../bench/chaos/stage.js';

let stage: Stage;
let keepIn: string;

beforeAll(async () => {
  keepIn = await mkdtemp(join(tmpdir(), 'chaos-kept-'));
  stage = await Stage.open({ clusters: inject('clusters') });
});

afterAll(async () => {
  await stage?.[Symbol.asyncDispose]();
  await rm(keepIn, { recursive: true, force: true });
});

const act = (
  ...faults: readonly (readonly [name: Fault['name'], point: Fault['point'], delayMs?: number])[]
) => ({
  faults: faults.map(([name, point, delayMs = 0]) => ({ name, point, delayMs, variant: 1 })),
  abort: false,
  lastsMs: 400,
  restartAfterMs: 0,
  understudyFirst: true,
  subset: 0,
});

const base = {
  poolMode: 'session' as const,
  capture: false,
  leads: 'source' as const,
  subsets: 0 as const,
  workers: 1 as const,
};
const PLANS: readonly Plan[] = [
  { ...base, seed: 1, subsets: 2, acts: [act(['kill-understudy', 'after:send-commit'])] },
  { ...base, seed: 2, acts: [act(['destination-stalled', 'before:send-commit'])] },
];

test.each(
  PLANS.map(
    (plan) => [plan.acts.flatMap(({ faults }) => faults.map(({ name }) => name)).join(', '), plan] as const,
  ),
)(
  '%s: one side writable, nothing lost, nothing left',
  async (_what, plan) => {
    const report = await playRun(stage, plan, { keepIn });
    expect(report.findings).toEqual([]);
    expect(report.acts.flatMap(({ missed }) => missed)).toEqual([]);
  },
  170_000,
);

test('a seed always draws the same plan; all faults and all points come up, with subsets and without', () => {
  expect(drawPlan(70_042)).toEqual(drawPlan(70_042));
  for (const subsets of [0, 3] as const) {
    const plans = Array.from({ length: 2000 }, (_, index) => drawPlan(70_000 + index, { subsets }));
    const faults = plans.flatMap((plan) => plan.acts.flatMap((each) => each.faults));
    // Processes of the proxy beside the first are for a database that is not divided.
    expect(new Set(faults.map(({ name }) => name))).toEqual(
      new Set(FAULTS.filter((name) => subsets === 0 || name !== 'kill-worker')),
    );
    expect(new Set(faults.map(({ point }) => point))).toEqual(new Set(POINTS));
    expect(new Set(plans.map(({ workers }) => workers))).toEqual(new Set(subsets === 0 ? [1, 2] : [1]));
  }
  expect(new Set(Array.from({ length: 40 }, (_, seed) => drawPlan(seed).subsets))).toEqual(
    new Set([0, 2, 3]),
  );
  expect(drawPlan(1, { subsets: 3 }).acts.every(({ subset }) => subset < 3)).toBe(true);
  // The same but for what subsets add.
  expect(drawPlan(42, { subsets: 2 }).acts[0]?.faults).toEqual(drawPlan(42, { subsets: 0 }).acts[0]?.faults);
  // What an older seed drew it draws still, whatever faults have come since.
  expect(describePlan(drawPlan(50_010, { subsets: 3 }))).toBe(
    'books: kill-understudy@before:prepare+1ms, then rest: destination-reset@after:open+3ms (session, capture, 3 subsets)',
  );
  expect(drawPlan(1, { only: 'kill-' }).acts[0]?.faults[0]?.name).toMatch(/^kill-/);
  expect(drawPlan(1, { only: 'kill-w' })).toMatchObject({
    workers: 2,
    acts: [{ faults: [{ name: 'kill-worker' }] }],
  });
  expect(() => drawPlan(1, { only: 'nonsense' })).toThrow('no fault nonsense');
});
