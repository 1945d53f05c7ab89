import fc from 'fast-check';
import { expect, test } from 'vitest';
import { decide } from '../../../src/app/autopilot/decide.js';
import type { Attempt, LastOperation, Part, Situation } from '../../../src/app/autopilot/situation.js';
import type { SubsetReport } from '../../../src/app/plan/plan-report.js';
import { HOUR_MS } from '../../../src/predict/series.js';
import { iso, judged, LIMITS, NOW_MS, plan, situation, subset, window } from './plans.js';

const HOUR_AGO_MS = NOW_MS - HOUR_MS;
const LATER: Partial<SubsetReport> = {
  windows: [window({ start: iso(NOW_MS + 5 * HOUR_MS), end: iso(NOW_MS + 6 * HOUR_MS) })],
  earliest: window({ regret: 7 }),
};

const part = (name: string, over: Partial<Part> = {}): Part => ({
  subset: name,
  side: 'source',
  lastOperation: null,
  lastDone: over.lastOperation?.state === 'done' ? over.lastOperation : null,
  ...over,
});
const ended = (over: Partial<LastOperation> = {}): LastOperation => ({
  kind: 'cutover',
  state: 'done',
  finishedAt: iso(HOUR_AGO_MS),
  ...over,
});
const named = (name: string, over: Partial<SubsetReport> = {}): SubsetReport =>
  subset({ subset: name, ...over });

/** `orders` has the priority; `rest` has no tables. */
function parted(over: Partial<Situation> = {}, rows: readonly SubsetReport[] = ROWS): Situation {
  return situation({
    parts: [part('orders'), part('stock'), part('rest')],
    plan: plan(subset(), { subsets: rows }),
    ...over,
  });
}
const ROWS = [named('orders', { priority: judged(9) }), named('stock', { priority: judged(4) })];

/** What is switched, one after another, while nothing else changes. */
function turns(begin: Situation, limits = LIMITS): readonly string[] {
  const order: string[] = [];
  for (let left = begin; ;) {
    const { kind, subset: next } = decide(left, limits);
    if (kind !== 'cutover' || next === undefined) return order;
    order.push(next);
    const parts = left.parts.map((each) =>
      each.subset === next ? part(next, { side: 'destination', lastOperation: ended() }) : each,
    );
    left = { ...left, parts };
  }
}

test('subsets are switched one at a time in the order of their priority; one without tables is the last', () => {
  expect(turns(parted())).toEqual(['orders', 'stock', 'rest']);
  expect(decide(parted(), LIMITS)).toMatchObject({
    code: 'window',
    figures: { subset: 'orders', priority: 9, left: 3, subsets: 3, alsoDue: 'stock', judgedBy: 'orders' },
  });
  // One that diverges too far is first, and does not wait for its window.
  const drifting = [
    named('orders', { priority: judged(9) }),
    named('stock', { ...LATER, divergence: judged(0.9) }),
  ];
  expect(turns(parted({}, drifting))).toEqual(['stock', 'orders', 'rest']);
  // One whose hour it isn't lets the others go first; what is empty waits for it.
  const later = [named('orders', { priority: judged(9), ...LATER }), named('stock')];
  expect(turns(parted({}, later))).toEqual(['stock']);
  expect(decide(parted({}, [named('orders', LATER), named('stock', LATER)]), LIMITS)).toMatchObject({
    kind: 'wait',
    code: 'not-now',
  });
});

test('the last one is judged by the whole database, since it moves every session', () => {
  const switched = part('stock', { side: 'destination', lastOperation: ended() });
  const parts = [part('orders'), switched];
  const slow = subset({ earliest: window({ stallMs: { value: 60, low: 1, high: 501 } }) });
  expect(decide(parted({ parts, plan: plan(slow, { subsets: ROWS }) }), LIMITS)).toMatchObject({
    kind: 'wait',
    code: 'stall-too-long',
    subset: 'orders',
  });
  expect(decide(parted({ parts }), { ...LIMITS, partingAccepted: false })).toMatchObject({
    kind: 'cutover',
    figures: { judgedBy: 'all', left: 1 },
  });
});

test('without consent to part, it says which one, and what to set; where it only suggests, the command too', () => {
  const refused = decide(parted(), { ...LIMITS, partingAccepted: false });
  expect(refused).toMatchObject({ kind: 'suggest', code: 'parting', subset: 'orders' });
  expect(refused.reason).toMatch(/stock, rest would stay on the source.*`cutover.parting: accept`/);
  const suggested = decide(parted(), { ...LIMITS, mode: 'suggest' });
  expect(suggested).toMatchObject({ kind: 'suggest', code: 'window', subset: 'orders' });
  expect(suggested.reason).toContain('`understudy cutover --subset orders`');
});

test('what would fail on two sides is not parted by itself beyond the share that was allowed', () => {
  const crossing = (name: string, other: string, share: number): SubsetReport =>
    named(name, { crossing: { value: share, low: 0, high: share, with: [{ with: other, share }] } });
  const rows = [crossing('orders', 'stock', 0.02), crossing('stock', 'orders', 0.02)];
  expect(decide(parted({}, rows), LIMITS)).toMatchObject({ kind: 'wait', code: 'crossing' });
  expect(turns(parted({}, rows), { ...LIMITS, crossingMax: 0.05 })).toEqual(['orders', 'stock', 'rest']);
  // Where a person has switched one of the two, switching the other ends it.
  const parts = [
    part('orders', { side: 'destination', lastOperation: ended() }),
    part('stock'),
    part('rest'),
  ];
  expect(turns(parted({ parts }, rows))).toEqual(['stock', 'rest']);
});

test('what is tied goes along in one operation, and is judged with it', () => {
  const slow = window({
    stallMs: { value: 60, low: 1, high: 501 },
    stalledStatements: { value: 9, low: 1, high: 20 },
  });
  const tied = (over: Partial<SubsetReport>): readonly SubsetReport[] => [
    named('orders', { priority: judged(9), together: ['stock'] }),
    named('stock', { priority: judged(4), ...over }),
    named('rest', { priority: judged(1) }),
  ];
  expect(decide(parted({}, tied({})), LIMITS)).toMatchObject({
    kind: 'cutover',
    subset: 'orders',
    figures: { along: 'stock', alsoDue: 'rest' },
  });
  expect(decide(parted({}, tied({ earliest: slow, together: ['rest'] })), LIMITS).figures).toMatchObject({
    along: 'stock, rest',
    judgedBy: 'all',
  });
  expect(decide(parted({}, tied({ earliest: slow })), LIMITS).subset).toBe('rest');
  // What a person brought back holds what is tied to it.
  const lastOperation = ended({ kind: 'rollback' });
  const parts = [part('orders'), part('stock', { lastOperation }), part('rest')];
  expect(turns(parted({ parts }, tied({})))).toEqual(['rest']);
});

const attempt = (outcome: Attempt['outcome'], over: Partial<Attempt> = {}): Attempt => ({
  atMs: HOUR_AGO_MS,
  subset: 'orders',
  outcome,
  ...over,
});

test('a try that preflight refused pauses its own subset; one that failed, or whose end is unknown, all of them for the hour', () => {
  const lately = { atMs: NOW_MS - 10_000 };
  expect(turns(parted({ attempts: [attempt('refused', lately)] }))).toEqual(['stock']);
  for (const outcome of ['aborted', null] as const) {
    const verdict = decide(parted({ attempts: [attempt(outcome, lately)] }), LIMITS);
    expect(verdict).toMatchObject({ kind: 'wait', code: 'next-window' });
    expect(verdict.reason).toContain('orders');
    // In the next hour it has its turn again, behind those that did not fail.
    expect(turns(parted({ attempts: [attempt(outcome)] }))).toEqual(['stock', 'orders', 'rest']);
  }
});

test('what a person took back is a person’s to switch again; the others go on in the next hour', () => {
  const back = (finishedAt: string): Situation => {
    const lastOperation = ended({ kind: 'rollback', finishedAt });
    return parted({ parts: [part('orders', { lastOperation }), part('stock'), part('rest')], lastOperation });
  };
  expect(decide(back(iso(NOW_MS - 60_000)), LIMITS).code).toBe('next-window');
  expect(turns(back(iso(HOUR_AGO_MS)))).toEqual(['stock']);
  // A try of theirs that came to nothing is no switch.
  for (const rolledBack of [iso(HOUR_AGO_MS - 1), iso(HOUR_AGO_MS - 50 * HOUR_MS)]) {
    const tried = {
      lastOperation: ended({ state: 'aborted' }),
      lastDone: ended({ kind: 'rollback', finishedAt: rolledBack }),
    };
    expect(turns(parted({ parts: [part('orders', tried), part('stock'), part('rest')] }))).toEqual(['stock']);
    expect(decide(situation(tried), LIMITS)).toMatchObject({ kind: 'rest', code: 'rolled-back' });
    const failed = { ...tried, lastOperation: ended({ state: 'failed' }) };
    expect(decide(situation(failed), LIMITS).code).toBe('attention');
    expect(decide(parted({ parts: [part('orders', failed), part('stock')] }), LIMITS).code).toBe('attention');
  }
  // Nor does a switch of another subset since end the hour.
  const since = back(iso(NOW_MS - 60_000));
  expect(decide({ ...since, lastOperation: ended({ finishedAt: iso(NOW_MS) }) }, LIMITS).code).toBe(
    'next-window',
  );
  const alone = parted({
    parts: [
      part('orders', { lastOperation: ended({ kind: 'rollback' }) }),
      part('stock', { side: 'destination', lastOperation: ended() }),
    ],
  });
  expect(decide(alone, LIMITS)).toMatchObject({ kind: 'rest', code: 'rolled-back' });
  // By a clock that was days ahead.
  expect(turns(back(iso(NOW_MS + 50 * HOUR_MS)))).toEqual(['stock']);
  const aborted = parted({ lastOperation: ended({ state: 'aborted', finishedAt: iso(NOW_MS - 60_000) }) });
  expect(decide(aborted, LIMITS).code).toBe('next-window');
});

test('all switched, nothing is left but to retire, where a person has set a time', () => {
  const parts = ['orders', 'rest'].map((name) =>
    part(name, { side: 'destination', lastOperation: ended({ finishedAt: iso(0) }) }),
  );
  const over = { parts, leader: 'destination', lastOperation: ended({ finishedAt: iso(0) }) } as const;
  expect(decide(parted(over), LIMITS)).toMatchObject({ kind: 'rest', code: 'destination-leads' });
  expect(decide(parted(over), { ...LIMITS, retireAfterMs: 60_000 })).toMatchObject({ kind: 'retire' });
});

test('whatever the journal, the tries and the plan say, nothing is switched against its rules', () => {
  const operations = fc.option(
    fc.record({
      kind: fc.constantFrom('cutover' as const, 'rollback' as const),
      state: fc.constantFrom('done' as const, 'aborted' as const, 'failed' as const, 'in-doubt' as const),
      finishedAt: fc.constantFrom(iso(NOW_MS - 1000), iso(HOUR_AGO_MS), null),
    }),
  );
  const parts = fc.tuple(
    ...['orders', 'stock', 'rest'].map((name) =>
      fc.record({
        subset: fc.constant(name),
        side: fc.constantFrom('source' as const, 'destination' as const),
        lastOperation: operations,
        lastDone: fc.option(
          fc.record({
            kind: fc.constantFrom('cutover' as const, 'rollback' as const),
            state: fc.constant('done' as const),
            finishedAt: fc.constant(iso(HOUR_AGO_MS)),
          }),
        ),
      }),
    ),
  );
  const attempts = fc.array(
    fc.record({
      atMs: fc.constantFrom(NOW_MS - 1000, HOUR_AGO_MS),
      subset: fc.constantFrom('orders', 'stock', undefined),
      outcome: fc.constantFrom('done' as const, 'refused' as const, 'aborted' as const, null),
    }),
    { maxLength: 4 },
  );
  const rows = fc.subarray([...ROWS, named('gone'), named('orders', { earliest: null, windows: [] })]);
  fc.assert(
    fc.property(
      parts,
      attempts,
      rows,
      fc.boolean(),
      fc.boolean(),
      (some, tries, of, accepted, hourAllowed) => {
        const leader = some.every(({ side }) => side === 'destination') ? 'destination' : 'source';
        const [first] = some;
        const verdict = decide(
          parted(
            {
              parts: some,
              attempts: tries,
              leader,
              hourAllowed,
              lastOperation: first?.lastOperation ?? null,
            },
            of,
          ),
          { ...LIMITS, partingAccepted: accepted },
        );
        for (const figure of Object.values(verdict.figures))
          expect(figure === null || typeof figure === 'string' || Number.isFinite(figure)).toBe(true);
        if (verdict.kind !== 'cutover') return;
        const own = some.find((each) => each.subset === verdict.subset);
        expect(own?.side).toBe('source');
        expect(own?.lastDone?.kind).not.toBe('rollback');
        expect(hourAllowed).toBe(true);
        expect(
          some.some(({ lastOperation }) => ['failed', 'in-doubt'].includes(lastOperation?.state ?? '')),
        ).toBe(false);
        if (!accepted) expect(some.filter(({ side }) => side === 'source')).toHaveLength(1);
        const broken = tries.some(
          ({ atMs, subset: of, outcome }) =>
            atMs > HOUR_AGO_MS && of !== undefined && (outcome === 'aborted' || outcome === null),
        );
        expect(broken).toBe(false);
      },
    ),
  );
});
