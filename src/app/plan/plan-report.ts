/**
 * The plan as it is handed out: by `understudy plan --json`, by the admin port, and in the journal of decisions. Stable: fields
 * are added, never renamed. A number that is not known, or never comes, is null; nothing is NaN.
 */
import type { Tie } from '../../capture/closure.js';
import type { Side } from '../../core/ports.js';
import type { HotShare } from '../../predict/hot-set.js';
import type { SubsetBorder } from '../../core/subset-ports.js';
import type { Judgement } from '../../predict/judgement.js';
import type { PlanContext, PlanRow } from '../../predict/plan.js';
import { HOUR_MS } from '../../predict/series.js';
import type { WindowChoice } from '../../predict/window.js';
import type { Proposal } from './proposals.js';
import type { PlannedSubset, SubsetCrossing, Subsets } from './subsets.js';

export const PLAN_VERSION = 1;

export interface WindowReport {
  readonly start: string;
  readonly end: string;
  readonly stallMs: { readonly value: number; readonly low: number; readonly high: number };
  /** drainMs, applyMs (with fence and mark), verifyMs, switchMs: they sum to it. */
  readonly stallTerms: Readonly<Record<string, number>>;
  readonly stalledStatements: { readonly value: number; readonly low: number; readonly high: number };
  /** Stalled statements beyond those of the best window. */
  readonly regret: number;
  /** That the drain deadline aborts it, 0…1. */
  readonly abortProbability: number;
  readonly statementsPerSecond: number;
  readonly confidence: Judgement['confidence'];
  readonly reason: string;
}

/** A judgement in seconds; null: never, as far as is looked ahead. */
export type Duration = Omit<Judgement, 'value' | 'low' | 'high'> & {
  readonly [K in 'value' | 'low' | 'high']: number | null;
};

export interface SubsetReport {
  readonly subset: string;
  /** Which side leads it; null where no process said. */
  readonly side: Side | null;
  readonly tables: readonly string[];
  /** With indexes. */
  readonly bytes: number | null;
  /** Of them, what a running shadow has not copied yet; all where none runs. */
  readonly bytesLeft: number | null;
  /** In bytes; null where its size was not watched for long enough. */
  readonly growthPerDay: Judgement | null;
  readonly priority: Judgement;
  /** Accesses per second, writes weighted 3. */
  readonly heat: { readonly now: Judgement; readonly nextHour: Judgement; readonly nextDay: Judgement };
  readonly hot: HotShare | null;
  readonly divergence: Judgement;
  readonly intensity: Judgement;
  readonly copySeconds: Duration | null;
  readonly readySeconds: Duration | null;
  /** null: not known. False: at these rates the shadow never catches up. */
  readonly converges: boolean | null;
  readonly windows: readonly WindowReport[];
  /** The earliest hour in which its shadow is ready; null where it never is. */
  readonly earliest: WindowReport | null;
  readonly crossing: {
    readonly value: number;
    readonly low: number;
    readonly high: number;
    readonly with: readonly SubsetCrossing[];
  };
  readonly ties: readonly Tie[];
  /** Configured subsets that one operation switches along with it; not in chains. */
  readonly together: readonly string[];
  readonly forecast: readonly {
    readonly at: string;
    readonly median: number;
    readonly low: number;
    readonly high: number;
  }[];
  /** Heat per second by the hour, of the last weeks; null where it was not watched. From `historyStart`. */
  readonly history: readonly (number | null)[];
  readonly historyStart: string | null;
  readonly notes: readonly string[];
}

export interface PlanReport {
  readonly version: typeof PLAN_VERSION;
  readonly asOf: string;
  readonly zone: string;
  readonly origin: string;
  readonly observed: { readonly from: string; readonly until: string; readonly hours: number } | null;
  /** By priority, the highest first. */
  readonly subsets: readonly SubsetReport[];
  /** The database as one: what a cutover moves where no subsets are configured. */
  readonly whole: SubsetReport;
  readonly rates: Pick<PlanContext, 'copyBytesPerSecond' | 'applyChangesPerSecond'>;
  /** Of the destination: `identity`, or what differs from the source; null where no configuration says. */
  readonly format: string | null;
  /** The shadow's phase, where a process is running. */
  readonly shadow: string | null;
  readonly unknown: readonly string[];
  readonly notes: readonly string[];
  /** Whether `subsets` are those of a configuration, switched one at a time; else they are groups by use. */
  readonly configured: boolean;
  /** What ties each two configured subsets, and what its policies make of it; empty where none are configured. */
  readonly borders: readonly SubsetBorder[];
  /** What could be configured as `subsets`; empty where some are, or where nothing can be parted. */
  readonly proposals: readonly Proposal[];
}

/** Weeks of history that are handed out. */
const HISTORY_HOURS = 5 * 168;

export function reportOf(
  rows: readonly PlanRow[],
  subsets: Subsets,
  context: PlanContext,
  origin: string,
  shadow: string | null,
  format: string | null,
  sides: ReadonlyMap<string, Side>,
): PlanReport {
  const planned = new Map([...subsets.subsets, subsets.whole].map((one) => [one.input.subset, one]));
  const reports = rows.flatMap((row) => {
    const own = planned.get(row.subset);
    return own === undefined ? [] : [subsetReport(row, own, context.nowMs, sides.get(row.subset) ?? null)];
  });
  const whole = reports.find(({ subset }) => subset === subsets.whole.input.subset);
  if (whole === undefined) throw new Error('a plan without the whole database');
  const { observed } = subsets;
  return finite({
    version: PLAN_VERSION,
    asOf: iso(context.nowMs),
    zone: context.zone,
    origin,
    observed:
      observed === null
        ? null
        : { from: iso(observed.fromMs), until: iso(observed.untilMs), hours: observed.hours },
    subsets: reports.filter((report) => report !== whole),
    whole,
    rates: {
      copyBytesPerSecond: context.copyBytesPerSecond,
      applyChangesPerSecond: context.applyChangesPerSecond,
    },
    format,
    shadow,
    unknown: subsets.unknown,
    notes: subsets.notes,
    configured: subsets.configured,
    borders: subsets.borders,
    proposals: subsets.proposals,
  });
}

function subsetReport(row: PlanRow, planned: PlannedSubset, nowMs: number, side: Side | null): SubsetReport {
  const firstMs = Math.floor(nowMs / HOUR_MS) * HOUR_MS;
  const { heat } = planned.input;
  const from = Math.max(0, heat.values.length - HISTORY_HOURS);
  return {
    subset: row.subset,
    side,
    tables: row.tables,
    bytes: row.bytes ?? null,
    bytesLeft: row.bytesLeft ?? null,
    growthPerDay: row.growth ?? null,
    priority: row.priority,
    heat: { now: row.heatNow, nextHour: row.heatNextHour, nextDay: row.heatNextDay },
    hot: row.hot ?? null,
    divergence: row.divergence,
    intensity: row.intensity,
    copySeconds: row.timeline?.copySeconds ?? null,
    readySeconds: row.timeline?.readySeconds ?? null,
    converges: row.timeline?.converges ?? null,
    windows: row.windows.map(windowReport),
    earliest: row.earliest === undefined ? null : windowReport(row.earliest),
    crossing: { ...planned.crossing, with: planned.crossings },
    ties: planned.ties,
    together: planned.together,
    forecast: row.fan.map(({ median, low, high }, hour) => ({
      at: iso(firstMs + hour * HOUR_MS),
      median: median / 3600,
      low: low / 3600,
      high: high / 3600,
    })),
    history: Array.from(heat.values.slice(from), (value, at) =>
      heat.missing[from + at] === 1 ? null : value / 3600,
    ),
    historyStart: heat.values.length === 0 ? null : iso(heat.startMs + from * HOUR_MS),
    notes: row.notes,
  };
}

function windowReport(window: WindowChoice): WindowReport {
  return {
    start: iso(window.startMs),
    end: iso(window.endMs),
    stallMs: { value: window.stallMs, low: window.stallLowMs, high: window.stallHighMs },
    stallTerms: window.stallTerms,
    stalledStatements: { value: window.value, low: window.low, high: window.high },
    regret: window.regret,
    abortProbability: window.terms['abortProbability'] ?? 0,
    statementsPerSecond: window.terms['statementsPerSecond'] ?? 0,
    confidence: window.confidence,
    reason: window.reason,
  };
}

function iso(ms: number): string {
  return new Date(ms).toISOString();
}

/** Infinity is said as null, as JSON would. */
function finite<T>(value: T): T {
  if (typeof value === 'number') return (Number.isFinite(value) ? value : null) as T;
  if (Array.isArray(value)) return value.map(finite) as T;
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, finite(one) as unknown])) as T;
}
