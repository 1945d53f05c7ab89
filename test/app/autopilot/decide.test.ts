import fc from 'fast-check';
import { expect, test } from 'vitest';
import { decide } from '../../../src/app/autopilot/decide.js';
import { backOffUntilMs } from '../../../src/app/autopilot/reasons.js';
import type { AutopilotLimits, Situation } from '../../../src/app/autopilot/situation.js';
import { HOUR_MS } from '../../../src/predict/series.js';
import { FOLLOWING, iso, judged, LIMITS, NOW_MS, plan, POLLING, situation, subset, window } from './plans.js';

test('in its window it switches, or suggests to', () => {
  for (const shadow of [FOLLOWING, POLLING])
    expect(decide(situation({ shadow }), LIMITS)).toMatchObject({ kind: 'cutover', code: 'window' });
  expect(decide(situation(), { ...LIMITS, mode: 'suggest' })).toMatchObject({
    kind: 'suggest',
    code: 'window',
  });
});

test('outside of its window it waits, unless something diverges too far', () => {
  const best = window({ start: iso(NOW_MS + 5 * HOUR_MS), end: iso(NOW_MS + 6 * HOUR_MS) });
  const later = { windows: [best], earliest: window({ regret: 7 }) };
  expect(decide(situation({ plan: plan(subset(later)) }), LIMITS)).toMatchObject({
    kind: 'wait',
    code: 'not-now',
  });
  const drifting = plan(subset(later), { subsets: [subset({ subset: 'orders', divergence: judged(0.9) })] });
  expect(decide(situation({ plan: drifting }), LIMITS)).toMatchObject({
    kind: 'cutover',
    code: 'divergence',
  });
  const guessed = plan(subset({ ...later, divergence: judged(0.9, 'none') }));
  expect(decide(situation({ plan: guessed }), LIMITS).kind).toBe('wait');
});

const NEVER: readonly (readonly [string, string, Partial<Situation>])[] = [
  ['the destination leads', 'destination-leads', { leader: 'destination' }],
  ['the source is retired', 'destination-leads', { finalized: true }],
  [
    'a person rolled back',
    'rolled-back',
    { lastOperation: { kind: 'rollback', state: 'done', finishedAt: null } },
  ],
  [
    'an operation is in doubt',
    'attention',
    { lastOperation: { kind: 'cutover', state: 'in-doubt', finishedAt: null } },
  ],
  ['the route is unknown', 'route-unknown', { leader: undefined }],
  ['somebody is at it', 'busy', { operationRunning: true }],
  ['the shadow copies', 'not-ready', { shadow: { ...FOLLOWING, phase: 'copying' } }],
  ['the lag is unknown', 'lag', { shadow: { ...FOLLOWING, lagMs: null } }],
  ['the lag is large', 'lag', { shadow: { ...FOLLOWING, lagBytes: 2e6 } }],
  ['the lag has no bytes, by the log', 'lag', { shadow: { ...FOLLOWING, lagBytes: null } }],
  ['the last poll is long ago', 'lag', { shadow: { ...POLLING, lagMs: 2600 } }],
  ['no poll has ended', 'lag', { shadow: { ...POLLING, lagMs: null } }],
  ['it is not known what comparing takes', 'not-ready', { shadow: { ...POLLING, exactMs: null } }],
  ['there is no plan', 'no-plan', { plan: undefined }],
  ['the plan is old', 'no-plan', { plan: plan(subset(), { asOf: iso(NOW_MS - 3 * HOUR_MS) }) }],
  [
    'too little was seen',
    'too-little-seen',
    { plan: plan(subset(), { observed: { from: '', until: '', hours: 40 } }) },
  ],
  ['the last try failed', 'backing-off', { attempts: [{ atMs: NOW_MS - 10_000, outcome: 'aborted' }] }],
  ['the last try’s end is unknown', 'backing-off', { attempts: [{ atMs: NOW_MS - 10_000, outcome: null }] }],
  ['the hour is not allowed', 'outside-hours', { hourAllowed: false }],
  ['nothing is predicted for it', 'no-plan', { plan: plan(subset({ earliest: null })) }],
  [
    'the stall may be too long',
    'stall-too-long',
    { plan: plan(subset({ earliest: window({ stallMs: { value: 60, low: 1, high: 501 } }) })) },
  ],
  [
    'the drain would time out',
    'stall-too-long',
    { plan: plan(subset({ earliest: window({ abortProbability: 0.3 }) })) },
  ],
];

test.each(NEVER)('nothing switches while %s', (_what, code, over) => {
  const verdict = decide(situation(over), LIMITS);
  expect(verdict.code).toBe(code);
  expect(['wait', 'rest']).toContain(verdict.kind);
});

test('each reason against a switch counts, whatever else is said for it', () => {
  const all = NEVER.map(([, , over]) => over);
  fc.assert(
    fc.property(fc.subarray(all), (some) => {
      const { kind } = decide(situation(Object.assign({}, ...some) as Partial<Situation>), LIMITS);
      // Two may cancel out where they say different things of one field; a lone one never does.
      if (some.length === 1) expect(kind).not.toBe('cutover');
      if (some.length === 0) expect(kind).toBe('cutover');
    }),
  );
});

test('pauses double with each failure in a row, up to their bound, and end with a success', () => {
  const failed = (count: number): Situation['attempts'] =>
    Array.from({ length: count }, () => ({ atMs: NOW_MS, outcome: 'refused' as const }));
  expect(backOffUntilMs([], LIMITS)).toBe(-Infinity);
  expect(backOffUntilMs(failed(1), LIMITS) - NOW_MS).toBe(60_000);
  expect(backOffUntilMs(failed(3), LIMITS) - NOW_MS).toBe(240_000);
  expect(backOffUntilMs(failed(500), LIMITS) - NOW_MS).toBe(600_000);
  expect(backOffUntilMs([{ atMs: NOW_MS, outcome: 'done' }, ...failed(3)], LIMITS)).toBe(-Infinity);
  expect(backOffUntilMs([...failed(1), { atMs: 0, outcome: 'done' }, ...failed(3)], LIMITS) - NOW_MS).toBe(
    60_000,
  );
});

test('what a switch left behind is retired when it has proven itself for as long as a person has set, and not before', () => {
  const led = (minutes: number, over: Partial<Situation> = {}): Situation =>
    situation({
      leader: 'destination',
      lastOperation: { kind: 'cutover', state: 'done', finishedAt: iso(NOW_MS - minutes * 60_000) },
      ...over,
    });
  const limits = { ...LIMITS, retireAfterMs: 3_600_000 };
  expect(decide(led(61), limits)).toMatchObject({ kind: 'retire', code: 'proven' });
  expect(decide(led(61), { ...limits, mode: 'suggest' })).toMatchObject({ kind: 'suggest', code: 'proven' });
  const rests: readonly (readonly [Situation, AutopilotLimits])[] = [
    [led(59), limits],
    [led(61), LIMITS],
    [led(61, { finalized: true }), limits],
    [led(61, { operationRunning: true }), limits],
    [led(61, { hourAllowed: false }), limits],
    [led(61, { attempts: [{ atMs: NOW_MS - 1000, outcome: 'aborted' }] }), limits],
    [led(61, { lastOperation: { kind: 'rollback', state: 'done', finishedAt: iso(0) } }), limits],
    [led(61, { lastOperation: { kind: 'cutover', state: 'done', finishedAt: null } }), limits],
  ];
  for (const [one, of] of rests) expect(decide(one, of).kind).toBe('rest');
});
