import { describe, expect, test } from 'vitest';
import {
  copyOrder,
  retuned,
  tune,
  UNTUNED,
  wantedIntensity,
  type Tuning,
} from '../../../src/app/autopilot/tune.js';
import { leastIntensity, Tuner } from '../../../src/app/autopilot/tuner.js';
import type { Decision } from '../../../src/app/autopilot/decisions.js';
import { UnderstudyError } from '../../../src/core/errors.js';
import { silentLog } from '../../../src/core/log.js';
import type { ShadowCommand, ShadowStatus } from '../../../src/core/ports.js';
import { flushIntervalMs } from '../../../src/shadow/intensity.js';
import { judged, NOW_MS, plan, subset } from './plans.js';

const MINUTE_MS = 60_000;

describe('how eager', () => {
  const steady = { paused: false, intensity: 1 };
  const after = (
    before: Tuning,
    present: { paused: boolean; intensity: number },
    wanted: number,
    minutes: number,
  ): ReturnType<typeof tune> => tune(before, present, wanted, minutes * MINUTE_MS, 10 * MINUTE_MS);

  test('rises at once, and falls only when less was wanted for ten minutes, to the most of what was wanted since', () => {
    let step = after(UNTUNED, steady, 0.4, 0);
    expect(step.set).toBeUndefined();
    step = after(step.tuning, steady, 0.7, 5);
    step = after(step.tuning, steady, 0.5, 9);
    expect(step.set).toBeUndefined();
    step = after(step.tuning, steady, 0.5, 10);
    expect(step.set).toBe(0.7);
    const up = after(step.tuning, { paused: false, intensity: 0.7 }, 0.95, 11);
    expect(up.set).toBe(0.95);
  });

  test('does not follow what comes and goes', () => {
    let { tuning } = after(UNTUNED, steady, 0.4, 0);
    ({ tuning } = after(tuning, steady, 0.95, 9));
    expect(after(tuning, steady, 0.4, 11).set).toBeUndefined();
    const set: Tuning = { set: 0.6, less: undefined };
    expect(after(set, { paused: false, intensity: 0.6 }, 0.69, 20).set).toBeUndefined();
    expect(after(set, { paused: false, intensity: 0.6 }, 0.46, 20).tuning.less).toBeUndefined();
  });

  test('an operator’s intensity and a paused copy are left alone', () => {
    const set: Tuning = { set: 0.6, less: undefined };
    expect(after(set, { paused: false, intensity: 0.3 }, 0.9, 0)).toEqual({
      tuning: UNTUNED,
      set: undefined,
    });
    expect(after(UNTUNED, { paused: false, intensity: 0.3 }, 0.9, 5).set).toBeUndefined();
    expect(after(set, { paused: true, intensity: 0.6 }, 0.9, 0).set).toBeUndefined();
    // Back to 1, by hand or because its thread began anew, and it is the plan's again.
    expect(after(UNTUNED, steady, 0.4, 0).tuning.less).toBeDefined();
  });

  test('is what the most eager subset asks for, and never so little that its lag forbids a cutover', () => {
    const eager = subset({ subset: 'hot', intensity: judged(0.8), divergence: judged(0.8) });
    const lazy = subset({ subset: 'cold', intensity: judged(0.05), divergence: judged(0) });
    expect(wantedIntensity(plan(subset(), { subsets: [lazy, eager] }), 0.6)).toMatchObject({
      value: 0.8,
      subset: 'hot',
    });
    expect(wantedIntensity(plan(subset(), { subsets: [lazy] }), 0.6)).toMatchObject({ value: 0.6 });
    expect(wantedIntensity(plan(subset(), { subsets: [] }), 0.6)).toBeUndefined();
    expect(wantedIntensity(plan(subset(), { subsets: [subset()] }), 0.6)).toBeUndefined();
    const least = leastIntensity(20, 500);
    expect(flushIntervalMs(least, 20)).toBeLessThanOrEqual(500);
    expect(flushIntervalMs(least - 0.02, 20)).toBeGreaterThan(500);
    expect(leastIntensity(2000, 500)).toBe(1);
  });

  test('follows the lag of the moment, not that of the plan', () => {
    const basis = {
      changing: { rewritten: { value: 0, low: 0, high: 0 }, drift: 0 },
      rows: [{ table: 't', weight: 1, writesPerHour: [3600, 0] }],
    };
    const of = (lagMs: number | null, copied = 1): ReturnType<typeof judged> =>
      retuned(
        {
          plan: plan(subset(), { subsets: [subset({ subset: 's' })] }),
          bases: new Map([['s', basis]]),
          bytes: 0,
        },
        { copied: new Map([['t', copied]]), lagMs, allowanceMs: 1000 },
        0,
        NOW_MS,
      ).plan.subsets[0]?.divergence as ReturnType<typeof judged>;
    expect(of(900).terms['m']).toBe(0);
    expect(of(2000).terms['m']).toBeCloseTo((1 - Math.exp(-1)) / 2);
    expect(of(60_000).terms['m']).toBeCloseTo(0.5);
    expect(of(0, 0.25).terms['m']).toBeCloseTo(0.75);
    expect(of(null).terms['m']).toBeUndefined();
  });
});

test('the order of copying changes where one subset outweighs another by a fifth', () => {
  const of = (name: string, value: number): ReturnType<typeof subset> =>
    subset({ subset: name, priority: judged(value) });
  const names = (subsets: ReturnType<typeof of>[], before: string[]): string[] =>
    copyOrder(plan(subset(), { subsets }), before).map(({ subset: name }) => name);
  expect(names([of('a', 3), of('b', 2), of('c', 1)], [])).toEqual(['a', 'b', 'c']);
  expect(names([of('b', 2.2), of('a', 2), of('c', 1)], ['a', 'b', 'c'])).toEqual(['a', 'b', 'c']);
  expect(names([of('b', 2.5), of('a', 2), of('c', 1)], ['a', 'b', 'c'])).toEqual(['b', 'a', 'c']);
  expect(names([of('c', 9), of('b', 2.5), of('a', 2)], ['a', 'b', 'c'])).toEqual(['c', 'b', 'a']);
  expect(names([of('a', 3), of('new', 2.9), of('b', 2)], ['a', 'b'])).toEqual(['a', 'new', 'b']);
});

describe('steering', () => {
  function tuner(steer: (command: ShadowCommand) => Promise<unknown>): {
    readonly tuner: Tuner;
    readonly events: string[];
  } {
    const events: string[] = [];
    const made = new Tuner({
      mode: 'suggest',
      decisions: {
        record: (_mode: string, { code, figures }: Decision) => {
          events.push(`record ${code} ${figures['intensity']}`);
          return Promise.resolve(7);
        },
        settle: (number, outcome, reason) => {
          events.push(`settle ${number} ${outcome} ${reason ?? ''}`);
          return Promise.resolve();
        },
      },
      steer: (command) => {
        events.push(`steer ${JSON.stringify(command)}`);
        return steer(command);
      },
      eagerMs: { flushInterval: 20, pollInterval: 1000 },
      lagMsMax: 1000,
      downAfterMs: 0,
      log: silentLog,
    });
    return { tuner: made, events };
  }
  const status = (over: Partial<ShadowStatus>): ShadowStatus => ({
    phase: 'following',
    tables: [],
    copy: { rows: 0, seconds: 0 },
    streams: [],
    lastVerify: null,
    error: null,
    steering: { paused: false, intensity: 1, flushIntervalMs: 20, stuck: [] },
    ...over,
  });
  const quiet = plan(subset(), { subsets: [subset({ subset: 's', divergence: judged(0) })] });

  test('is recorded before it is done', async () => {
    const { tuner: made, events } = tuner(() => Promise.resolve());
    await made.round({ plan: quiet, bases: new Map() }, status({}), NOW_MS);
    expect(events).toEqual([
      'record intensity 0.6',
      'steer {"action":"intensity","value":0.6}',
      'settle 7 done ',
    ]);
    expect(made.status).toMatchObject({ intensity: 0.6, subset: 's' });
    await made.round(
      { plan: quiet, bases: new Map() },
      status({ steering: { paused: false, intensity: 0.6, flushIntervalMs: 492, stuck: [] } }),
      NOW_MS,
    );
    expect(events).toHaveLength(3);
  });

  test('refused, it is recorded as such, and tried again later', async () => {
    const { tuner: made, events } = tuner(() =>
      Promise.reject(new UnderstudyError('request-invalid', 'not now')),
    );
    await made.round({ plan: quiet, bases: new Map() }, status({}), NOW_MS);
    await made.round({ plan: quiet, bases: new Map() }, status({}), NOW_MS);
    expect(events.filter((event) => event.startsWith('settle'))).toEqual([
      'settle 7 refused request-invalid: not now',
    ]);
    await made.round({ plan: quiet, bases: new Map() }, status({}), NOW_MS + 11 * MINUTE_MS);
    expect(events.filter((event) => event.startsWith('settle'))).toHaveLength(2);
    expect(made.status).toBeNull();
  });

  test('what is left to copy comes in the order of priority, and an operator’s order stands', async () => {
    const { tuner: made, events } = tuner(() => Promise.resolve());
    const rows = (...tables: string[]): { changing: object; rows: object[] } => ({
      changing: { rewritten: undefined, drift: undefined },
      rows: tables.map((table, index) => ({ table, weight: index, writesPerHour: undefined })),
    });
    const hot = subset({ subset: 'hot', tables: ['a', 'b'], priority: judged(5) });
    const cold = subset({ subset: 'cold', tables: ['c', 'd'], priority: judged(1) });
    const planned = {
      plan: plan(subset(), { subsets: [hot, cold] }),
      bases: new Map([
        ['hot', rows('a', 'b')],
        ['cold', rows('c', 'd')],
      ]) as never,
    };
    const copying = (first: readonly string[]): ShadowStatus =>
      status({
        phase: 'copying',
        tables: ['c', 'a', 'b', 'd'].map((table) => ({
          table,
          rowsCopied: 0,
          rowsEstimated: 1,
          done: table === 'd',
        })),
        steering: { paused: false, intensity: 1, flushIntervalMs: 20, first, stuck: [] },
      });
    await made.round(planned, copying(['c']), NOW_MS);
    expect(events).toEqual([]);
    await made.round(planned, copying([]), NOW_MS);
    expect(events).toContain('steer {"action":"prioritise","tables":["b","a","c"]}');
    const { length } = events;
    await made.round(planned, copying(['b', 'a', 'c']), NOW_MS);
    expect(events).toHaveLength(length);
  });

  test('is left out where there is no pace to set', async () => {
    const { tuner: made, events } = tuner(() => Promise.resolve());
    await made.round({ plan: quiet, bases: new Map() }, status({ phase: 'failed' }), NOW_MS);
    const { steering: _, ...unsteered } = status({});
    await made.round({ plan: quiet, bases: new Map() }, unsteered, NOW_MS);
    expect(events).toEqual([]);
  });
});
