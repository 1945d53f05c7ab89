/** Plans as `decide` and `tune` are given them. */
import type { AutopilotLimits, Situation } from '../../../src/app/autopilot/situation.js';
import type { PlanReport, SubsetReport, WindowReport } from '../../../src/app/plan/plan-report.js';

export const NOW_MS = Date.UTC(2026, 2, 2, 3, 20);
export const iso = (ms: number): string => new Date(ms).toISOString();

export function window(over: Partial<WindowReport> = {}): WindowReport {
  return {
    start: iso(NOW_MS - 20 * 60_000),
    end: iso(NOW_MS + 40 * 60_000),
    stallMs: { value: 60, low: 30, high: 200 },
    stallTerms: { drainMs: 10, applyMs: 20, verifyMs: 10, switchMs: 20 },
    stalledStatements: { value: 2, low: 1, high: 5 },
    regret: 0,
    abortProbability: 0,
    statementsPerSecond: 30,
    confidence: 'high',
    reason: '',
    ...over,
  };
}

export const judged = (value: number, confidence: 'none' | 'high' = 'high'): SubsetReport['divergence'] => ({
  value,
  low: value,
  high: value,
  terms: {},
  confidence,
  reason: 'By test.',
});

export function subset(over: Partial<SubsetReport> = {}): SubsetReport {
  return {
    subset: 'all',
    side: null,
    tables: ['t'],
    bytes: 0,
    bytesLeft: 0,
    growthPerDay: null,
    priority: judged(1),
    heat: { now: judged(1), nextHour: judged(1), nextDay: judged(1) },
    hot: null,
    divergence: judged(0, 'none'),
    intensity: judged(0),
    copySeconds: null,
    readySeconds: null,
    converges: true,
    windows: [window()],
    earliest: window(),
    crossing: { value: 0, low: 0, high: 0, with: [] },
    ties: [],
    together: [],
    forecast: [],
    history: [],
    historyStart: null,
    notes: [],
    ...over,
  };
}

export function plan(whole: SubsetReport = subset(), over: Partial<PlanReport> = {}): PlanReport {
  const rate = { value: 1, low: 1, high: 1, samples: 0 };
  return {
    version: 1,
    asOf: iso(NOW_MS - 60_000),
    zone: 'UTC',
    origin: 'test',
    borders: [],
    observed: { from: '', until: '', hours: 500 },
    subsets: [],
    whole,
    rates: { copyBytesPerSecond: rate, applyChangesPerSecond: rate },
    format: 'identity',
    shadow: 'following',
    configured: false,
    proposals: [],
    unknown: [],
    notes: [],
    ...over,
  };
}

export const LIMITS: AutopilotLimits = {
  mode: 'on',
  divergenceMax: 0.8,
  stallMsMax: 500,
  abortProbabilityMax: 0.2,
  observedHoursMin: 48,
  retryFirstMs: 60_000,
  retryMaxMs: 600_000,
  retireAfterMs: 0,
  lagMsMax: 1000,
  lagBytesMax: 1e6,
  crossingMax: 0.001,
  partingAccepted: true,
};

export const FOLLOWING: Situation['shadow'] = {
  phase: 'following',
  method: 'log',
  lagMs: 5,
  lagBytes: 100,
  roundMs: 0,
  exactMs: undefined,
};
/** As {@link FOLLOWING}, between two rounds, by which nothing has bytes. */
export const POLLING: Situation['shadow'] = {
  phase: 'following',
  method: 'poll',
  lagMs: 2400,
  lagBytes: null,
  roundMs: 1500,
  exactMs: 80,
};

export function situation(over: Partial<Situation> = {}): Situation {
  return {
    nowMs: NOW_MS,
    leader: 'source',
    parts: [],
    finalized: false,
    operationRunning: false,
    hourAllowed: true,
    shadow: FOLLOWING,
    plan: plan(),
    attempts: [],
    lastOperation: null,
    lastDone: over.lastOperation?.state === 'done' ? over.lastOperation : null,
    ...over,
  };
}
