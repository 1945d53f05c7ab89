/**
 * The plan: what is known of each subset turned into rows a person can act on, in the order in which to shadow them. Pure:
 * time, rates and measurements are given. What `understudy plan` shows is exactly this.
 */
import { UnderstudyError } from '../core/errors.js';
import type { SubsetId } from '../core/ports.js';
import { knowledgeOf } from './cold-start.js';
import { divergenceScore, type DivergenceInput } from './divergence.js';
import type { Ensemble, Fan } from './ensemble.js';
import { fitAll, FIT_ALL_DEFAULTS } from './fit-all.js';
import type { Confidence, Judgement } from './judgement.js';
import { localIndex, toLocal, zoneOffset, type LocalSeries } from './local-time.js';
import { intensity, priority } from './priority.js';
import { HOUR_MS, type Series } from './series.js';
import { predictStall, type StallInput, TransactionDurations } from './stall.js';
import { timeline, type Rate, type Timeline } from './timeline.js';
import { Track } from './track.js';
import { bestWindows, type WindowChoice } from './window.js';

export interface PlanSubset {
  readonly subset: SubsetId;
  readonly tables: readonly string[];
  readonly bytes: number;
  /** Per hour: reads plus writes weighted 3. */
  readonly heat: Series;
  /** Per hour: statements, and rows changed. Same grid as `heat`, or empty where not known. */
  readonly statements: Series;
  readonly changes: Series;
  /** Share of the heat that the hot keys hold, and how many they are; undefined where keys aren't captured. */
  readonly hot: { readonly share: number; readonly keys: number } | undefined;
  readonly divergence: DivergenceInput;
  /** Durations of its transactions, ms; a sample. */
  readonly durationsMs: readonly number[];
  /** Share of its transactions that touch other subsets too. */
  readonly crossingShare: number;
}

export interface PlanContext {
  readonly nowMs: number;
  /** IANA name: habits follow this clock. */
  readonly zone: string;
  readonly copyBytesPerSecond: Rate;
  readonly applyChangesPerSecond: Rate;
  readonly applyShareWhileCopying: number;
  readonly stall: Pick<StallInput, 'lagMs' | 'verifyRowsPerSecond' | 'fixedMs' | 'drainTimeoutMs'>;
  /** Retained log in relation to its budget, 0…1. */
  readonly logBudgetUsed: number;
  readonly hoursAhead: number;
  readonly windows: number;
}

export interface PlanRow {
  readonly subset: SubsetId;
  readonly tables: readonly string[];
  readonly bytes: number;
  /** Accesses per second, writes weighted 3. */
  readonly heatNow: Judgement;
  readonly heatNextHour: Judgement;
  readonly heatNextDay: Judgement;
  readonly hot: PlanSubset['hot'];
  readonly divergence: Judgement;
  readonly priority: Judgement;
  readonly intensity: Judgement;
  readonly timeline: Timeline;
  readonly windows: readonly WindowChoice[];
  readonly crossingShare: number;
  /** Heat per hour, for each hour ahead. */
  readonly fan: readonly Fan[];
  readonly notes: readonly string[];
}

/**
 * Rows by priority, the highest first. Throws `series-invalid` where two subsets have one name, or a series is not by the
 * hour. A subset whose series ends before `nowMs` (its tables were dropped, capture was off) is planned on what there was,
 * and says so.
 */
export function makePlan(subsets: readonly PlanSubset[], context: PlanContext): readonly PlanRow[] {
  const names = new Set<string>();
  for (const { subset, heat } of subsets) {
    if (names.has(subset)) throw new UnderstudyError('series-invalid', `Two subsets are named ${subset}.`);
    if (heat.stepMs !== HOUR_MS)
      throw new UnderstudyError('series-invalid', `The heat of ${subset} is not by the hour.`);
    names.add(subset);
  }
  const offset = zoneOffset(context.zone);
  const local = subsets.map(({ heat }) => toLocal(upToNow(heat, context.nowMs), offset));
  const tracks = local.map((series) => Track.of(series));
  const fitting = fitAll(tracks, FIT_ALL_DEFAULTS);
  let step = fitting.next();
  while (step.done !== true) step = fitting.next();
  const ensembles = step.value;
  return subsets
    .flatMap((subset, index) => {
      const [series, track, ensemble] = [local[index], tracks[index], ensembles[index]];
      if (series === undefined || track === undefined || ensemble === undefined) return [];
      return [planRow(subset, series, track, ensemble, context)];
    })
    .sort((a, b) => b.priority.value - a.priority.value || (a.subset < b.subset ? -1 : 1));
}

/** Extends a series that ended early with missing buckets, so that forecasts begin at the present. */
function upToNow(series: Series, nowMs: number): Series {
  if (series.values.length === 0) {
    const startMs = Math.floor(nowMs / series.stepMs) * series.stepMs;
    return { ...series, startMs, values: series.values, missing: series.missing };
  }
  const length = Math.max(series.values.length, Math.floor((nowMs - series.startMs) / series.stepMs));
  const values = new Float64Array(length);
  values.set(series.values);
  const missing = new Uint8Array(length).fill(1);
  missing.set(series.missing);
  return { ...series, values, missing };
}

function planRow(
  subset: PlanSubset,
  series: LocalSeries,
  track: Track,
  ensemble: Ensemble,
  context: PlanContext,
): PlanRow {
  const known = knowledgeOf(track);
  const starts = Array.from({ length: context.hoursAhead }, (_, hour) =>
    hourAfter(series, context.nowMs, hour),
  );
  const fan = ensemble.forecast(starts.map(({ horizon }) => horizon));
  const heatOf = (fans: readonly Fan[], what: string): Judgement =>
    heatJudgement(fans, known.confidence, `${what}; ${known.says}`);
  const last = track.length > 0 ? Math.expm1(track.levels[track.length - 1] ?? 0) : 0;
  const heatNextDay = heatOf(fan.slice(0, 24), 'Mean of the next 24 hours');
  const changes = shareOfHeat(subset.changes, subset.heat);
  const statements = shareOfHeat(subset.statements, subset.heat);
  const ready = timeline({
    bytes: subset.bytes,
    copyBytesPerSecond: context.copyBytesPerSecond,
    applyChangesPerSecond: context.applyChangesPerSecond,
    writes: fan.map((one) => scaled(one, changes / 3600)),
    stepSeconds: 3600,
    applyShareWhileCopying: context.applyShareWhileCopying,
    backlog: 0,
    limitSeconds: context.hoursAhead * 3600,
  });
  const divergence = divergenceScore(subset.divergence);
  const windows = windowsOf(subset, context, fan, starts, ready, { changes, statements });
  const firstWindow = windows[0];
  const peak = Math.max(...fan.map(({ median }) => median), 1e-9);
  return {
    subset: subset.subset,
    tables: subset.tables,
    bytes: subset.bytes,
    heatNow: heatOf([{ median: last, low: last, high: last }], 'The last closed hour'),
    heatNextHour: heatOf(fan.slice(0, 1), 'The next hour'),
    heatNextDay,
    hot: subset.hot,
    divergence,
    priority: priority({ heat: heatNextDay, copySeconds: ready.copySeconds, confidence: known.confidence }),
    intensity: intensity({
      divergence,
      hoursToWindow: firstWindow === undefined ? undefined : (firstWindow.startMs - context.nowMs) / HOUR_MS,
      sourceLoad: (fan[0]?.median ?? 0) / peak,
      logBudgetUsed: context.logBudgetUsed,
    }),
    timeline: ready,
    windows,
    crossingShare: subset.crossingShare,
    fan,
    notes: notesOf(subset, track, known.says),
  };
}

interface Start {
  readonly startMs: number;
  readonly horizon: number;
}

/** The hour that runs now (`hour` 0) and those after it, with how many local buckets ahead of the last closed one each lies. */
function hourAfter(series: LocalSeries, nowMs: number, hour: number): Start {
  const startMs = (Math.floor(nowMs / HOUR_MS) + hour) * HOUR_MS;
  return { startMs, horizon: Math.max(1, localIndex(series, startMs) - (series.values.length - 1)) };
}

function heatJudgement(fans: readonly Fan[], confidence: Confidence, reason: string): Judgement {
  const mean = (pick: (fan: Fan) => number): number =>
    fans.length === 0 ? 0 : fans.reduce((sum, fan) => sum + pick(fan), 0) / fans.length / 3600;
  return {
    value: mean(({ median }) => median),
    low: mean(({ low }) => low),
    high: mean(({ high }) => high),
    terms: { hours: fans.length },
    confidence,
    reason,
  };
}

/** How many of `part` come with one unit of heat, over the last four weeks. */
function shareOfHeat(part: Series, heat: Series): number {
  const sum = ({ values }: Series): number =>
    values.slice(-24 * 28).reduce((total, value) => total + value, 0);
  const total = sum(heat);
  return total > 0 ? sum(part) / total : 0;
}

function scaled(fan: Fan, factor: number): Fan {
  return { median: fan.median * factor, low: fan.low * factor, high: fan.high * factor };
}

function windowsOf(
  subset: PlanSubset,
  context: PlanContext,
  fan: readonly Fan[],
  starts: readonly Start[],
  ready: Timeline,
  perHeat: { readonly changes: number; readonly statements: number },
): readonly WindowChoice[] {
  if (!ready.converges) return [];
  const durations = new TransactionDurations(subset.durationsMs);
  const candidates = starts.map(({ startMs }, hour) => {
    const heat = fan[hour] ?? { median: 0, low: 0, high: 0 };
    const writesPerSecond = (heat.median * perHeat.changes) / 3600;
    const stall = predictStall({
      ...context.stall,
      durations,
      transactionsPerSecond: (heat.median * perHeat.statements) / 3600,
      writesPerSecond,
      applyChangesPerSecond: context.applyChangesPerSecond.value,
      // What changed since the last clean verify: a minute's writes.
      verifyRows: writesPerSecond * 60,
    });
    return { startMs, statements: scaled(heat, perHeat.statements / 3600), stall };
  });
  return bestWindows(candidates, {
    stepMs: HOUR_MS,
    windowSteps: 1,
    count: context.windows,
    readyMs: context.nowMs + ready.readySeconds.value * 1000,
    observations: durations.count,
  });
}

function notesOf(subset: PlanSubset, track: Track, says: string): readonly string[] {
  const notes = [says];
  let silent = 0;
  while (silent < track.length && track.observed[track.length - 1 - silent] === 0) silent += 1;
  if (silent > 1) notes.push(`Not seen for ${silent} hours: dropped, or capture was off.`);
  if (subset.tables.length === 0) notes.push('No table is left in it.');
  if (subset.hot === undefined) notes.push('Keys are not captured: no hot set, and drift is unknown.');
  if (subset.durationsMs.length === 0) notes.push('No transaction was timed: the drain is taken as zero.');
  return notes;
}
