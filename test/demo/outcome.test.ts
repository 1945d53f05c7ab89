import { expect, test } from 'vitest';
import { demoJson, faultsOf, type DemoMeasurements } from '../../src/app/demo/demo-outcome.js';
import { sparkline } from '../../src/app/demo/demo-report.js';
import { LatencyRecord } from '../../src/app/demo/latency.js';

const clean: DemoMeasurements = {
  seconds: 50.04,
  rowsLoaded: 1000,
  copy: { rows: 1000, seconds: 2.34 },
  switches: [
    {
      report: {
        id: 'one',
        kind: 'cutover',
        subset: 'all',
        outcome: 'done',
        epoch: 1,
        startedAt: '2025-01-01T00:00:00Z',
        totalMs: 400,
        steps: { preflight: 300, fence: 8 },
        parts: {},
        stall: { held: 20, p50: 10, p99: 30, max: 31, histogram: [] },
        moved: 21,
        closed: 0,
        findings: [],
      },
      window: { count: 500, p50: 1, p99: 20, max: 45, silenceMs: 40 },
      sessions: { sessions: 20, versions: { '18.4': 20 }, faults: [] },
    },
  ],
  load: {
    snapshot: {
      seconds: 10,
      connections: 21,
      transactions: 6000,
      statements: 15_000,
      failed: 0,
      failures: [],
      perSecond: [600, 600],
      notifications: { sent: 10, received: 10, missing: 0, repeated: 0 },
    },
    latency: { count: 15_000, p50: 1, p99: 10, max: 45 },
    writes: { clients: [], registers: [] },
  },
  audit: {
    writable: 'PostgreSQL 18',
    acknowledged: 100,
    found: 100,
    lost: 0,
    duplicated: 0,
    unanswered: { present: 0, absent: 0 },
    registers: { checked: 18, wrong: 0 },
    invariants: [],
    refusals: [],
    faults: [],
    clean: true,
  },
  verify: {
    startedAt: '2025-01-01T00:00:00Z',
    seconds: 1,
    position: '0/1',
    tables: 20,
    rows: 1000,
    mismatches: 0,
    verdicts: [],
  },
};

function withSnapshot(change: Partial<DemoMeasurements['load']['snapshot']>): DemoMeasurements {
  return { ...clean, load: { ...clean.load, snapshot: { ...clean.load.snapshot, ...change } } };
}

function withSwitch(
  change: (one: DemoMeasurements['switches'][number]) => DemoMeasurements['switches'][number],
) {
  return { ...clean, switches: clean.switches.map(change) };
}

test('the JSON has the documented form', () => {
  expect(demoJson(clean)).toMatchObject({
    ok: true,
    seconds: 50,
    copy: { rows: 1000, seconds: 2.3 },
    switches: [
      {
        direction: 'forward',
        stallMs: { p50: 10, p99: 30, max: 31 },
        held: 20,
        steps: { preflight: 300, fence: 8 },
      },
    ],
    statements: { total: 15_000, failed: 0 },
    transactions: { total: 6000, perSecond: 600 },
    audit: { acknowledged: 100, found: 100, lost: 0, duplicated: 0 },
    verify: { tables: 20, rows: 1000, mismatches: 0 },
    faults: [],
  });
});

test.each<[string, DemoMeasurements]>([
  ['a failed statement', withSnapshot({ failed: 1, failures: ['57P01 gone'] })],
  [
    'a missing notification',
    withSnapshot({ notifications: { sent: 1, received: 0, missing: 1, repeated: 0 } }),
  ],
  [
    'a repeated notification',
    withSnapshot({ notifications: { sent: 1, received: 1, missing: 0, repeated: 1 } }),
  ],
  ['an aborted switch', withSwitch((one) => ({ ...one, report: { ...one.report, outcome: 'aborted' } }))],
  ['a closed connection', withSwitch((one) => ({ ...one, report: { ...one.report, closed: 1 } }))],
  ['a lost setting', withSwitch((one) => ({ ...one, sessions: { ...one.sessions, faults: ['lost'] } }))],
  ['a lost write', { ...clean, audit: { ...clean.audit, lost: 1, faults: ['gone'], clean: false } }],
  ['an audit that is not clean for no listed reason', { ...clean, audit: { ...clean.audit, clean: false } }],
  ['a differing row', { ...clean, verify: { ...clean.verify, mismatches: 1 } }],
])('%s makes the demo fail', (_what, measured) => {
  expect(faultsOf(measured)).toHaveLength(1);
  expect(demoJson(measured).ok).toBe(false);
});

test('latencies keep their maximum exactly and their quantiles to within a bucket', () => {
  const record = new LatencyRecord();
  expect(record.figures()).toEqual({ count: 0, p50: 0, p99: 0, max: 0 });
  for (let ms = 1; ms <= 1000; ms++) record.add(ms);
  const { count, p50, p99, max } = record.figures();
  expect({ count, max }).toEqual({ count: 1000, max: 1000 });
  expect(p50 / 500).toBeCloseTo(1, 0);
  expect(Math.abs(p50 - 500)).toBeLessThan(51);
  expect(Math.abs(p99 - 990)).toBeLessThan(100);
});

test('a sparkline is as high as its largest value', () => {
  expect(sparkline([0, 50, 100])).toBe('▁▅█');
  expect(sparkline([])).toBe('');
});
