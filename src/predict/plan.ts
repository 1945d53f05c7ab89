/**
 * The plan: what is known of each subset turned into rows a person can act on, in the order in which to shadow them. Pure:
 * time, rates and measurements are given. What `understudy plan` shows is exactly this.
 */
import { UnderstudyError } from '../core/errors.js';
import type { SubsetId } from '../core/ports.js';
import { knowledgeOf, type Knowledge } from './cold-start.js';
import { divergenceScore, type DivergenceInput } from './divergence.js';
import type { Ensemble, Fan } from './ensemble.js';
import type { HotShare } from './hot-set.js';
import { fitAll, FIT_ALL_DEFAULTS, type FitProgress } from './fit-all.js';
import { pastTimes, type PastCopy } from './experience.js';
import type { Confidence, Judgement } from './judgement.js';
import { localIndex, slotOfWeek, toLocal, zoneOffset, type LocalSeries } from './local-time.js';
import { intensity, loadAboveLeast, priority } from './priority.js';
import { DAY_MS, emptySeries, HOUR_MS, type Series } from './series.js';
import {
  drainFactor,
  predictStall,
  TransactionDurations,
  type DurationSample,
  type StallInput,
} from './stall.js';
import { timeline, type Rate, type Timeline } from './timeline.js';
import { Track } from './track.js';
import { rankWindows, type WindowChoice } from './window.js';

export interface PlanSubset {
  readonly subset: SubsetId;
  readonly tables: readonly string[];
  /** With indexes; undefined where no catalog told. */
  readonly bytes: number | undefined;
  /** Of them, still to copy; all where absent. */
  readonly bytesLeft?: number | undefined;
  /** Bytes a day; undefined where its size was not watched. */
  readonly growth?: Judgement | undefined;
  /** How much of the past was watched; undefined where whole hours were. */
  readonly observedMs?: number;
  /** Per hour: reads plus writes weighted 3. */
  readonly heat: Series;
  /** Per hour: statements, and rows changed. Same grid as `heat`, or empty where not known. */
  readonly statements: Series;
  readonly changes: Series;
  /** Share of the heat that the hot keys hold, and how many they are; undefined where keys aren't captured. */
  readonly hot: HotShare | undefined;
  readonly divergence: DivergenceInput;
  /** Durations of its transactions, ms; a sample. */
  readonly durationsMs: readonly DurationSample[];
  /** Share of its transactions that touch other subsets too. */
  readonly crossingShare: number;
  /** What else is to be said of it. */
  readonly notes?: readonly string[];
}

export interface PlanContext {
  readonly nowMs: number;
  /** IANA name: habits follow this clock. */
  readonly zone: string;
  readonly copyBytesPerSecond: Rate;
  readonly applyChangesPerSecond: Rate;
  readonly applyShareWhileCopying: number;
  /** Copies to this destination that were done, the oldest first. */
  readonly past?: readonly PastCopy[];
  readonly stall: Pick<
    StallInput,
    'lagMs' | 'verifyRowsPerSecond' | 'fixedMs' | 'exactMs' | 'drainTimeoutMs' | 'spread'
  > & {
    /** Of past switches. */
    readonly drainsMs?: readonly number[];
  };
  /** Retained log in relation to its budget, 0…1. */
  readonly logBudgetUsed: number;
  /** Durations (ms) of transactions begun in that hour of the week (UTC, Monday 00:00 is 0), where enough were seen. */
  readonly durationsByHour?: ReadonlyMap<number, readonly DurationSample[]>;
  /** Transactions per statement; 1 where nothing is known. */
  readonly transactionsPerStatement?: number;
  /** At least 25. */
  readonly hoursAhead: number;
  readonly windows: number;
}

export interface PlanRow {
  readonly subset: SubsetId;
  readonly tables: readonly string[];
  readonly bytes: number | undefined;
  /** Still to copy. */
  readonly bytesLeft: number | undefined;
  readonly growth: Judgement | undefined;
  /** Accesses per second, writes weighted 3. */
  readonly heatNow: Judgement;
  readonly heatNextHour: Judgement;
  readonly heatNextDay: Judgement;
  readonly hot: PlanSubset['hot'];
  readonly divergence: Judgement;
  readonly priority: Judgement;
  readonly intensity: Judgement;
  /** undefined: the size is not known, and with it neither time. */
  readonly timeline: Timeline | undefined;
  readonly windows: readonly WindowChoice[];
  /** The earliest start at which its shadow is ready: what it costs not to wait. */
  readonly earliest: WindowChoice | undefined;
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
  const steps = planSteps(subsets, context);
  let step = steps.next();
  while (step.done !== true) step = steps.next();
  return step.value;
}

/** {@link makePlan} in steps of some 10 to 200 ms, for a caller that shows how far it has come. */
export function* planSteps(
  subsets: readonly PlanSubset[],
  context: PlanContext,
): Generator<FitProgress, readonly PlanRow[]> {
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
  const ensembles = yield* fitAll(tracks, FIT_ALL_DEFAULTS);
  return (
    subsets
      .flatMap((subset, index) => {
        const [series, track, ensemble] = [local[index], tracks[index], ensembles[index]];
        if (series === undefined || track === undefined || ensemble === undefined) return [];
        return [planRow(subset, series, track, ensemble, context)];
      })
      // Of equals, the order in which they were given.
      .sort((a, b) => b.priority.value - a.priority.value)
  );
}

/** As for a silence within: what lies before a longer one says nothing of the present. */
const SILENCE_MS_MAX = 28 * DAY_MS;

function endMsOf({ startMs, stepMs, values }: Series): number {
  return startMs + values.length * stepMs;
}

/** Extends a series that ended early with missing buckets, so that forecasts begin at the present. */
function upToNow(series: Series, nowMs: number): Series {
  if (series.values.length === 0 || nowMs - endMsOf(series) > SILENCE_MS_MAX)
    return { ...emptySeries(series.stepMs), startMs: Math.floor(nowMs / series.stepMs) * series.stepMs };
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
  const known = knowledgeOf(track, subset.observedMs);
  const starts = Array.from({ length: context.hoursAhead }, (_, hour) =>
    hourAfter(series, context.nowMs, hour),
  );
  const fan = ensemble.forecast(starts.map(({ horizon }) => horizon));
  const heatOf = (fans: readonly Fan[], what: string): Judgement =>
    heatJudgement(fans, known.confidence, `${what}; ${known.says}`);
  const heatNextDay = heatOf(fan.slice(0, 24), 'Mean of the next 24 hours');
  const changes = shareOfHeat(subset.changes, subset.heat);
  const statements = shareOfHeat(subset.statements, subset.heat);
  const bytesLeft = subset.bytesLeft ?? subset.bytes;
  const ready =
    bytesLeft === undefined
      ? undefined
      : timeline({
          bytes: bytesLeft,
          growthBytesPerSecond: Math.max(0, subset.growth?.value ?? 0) / 86_400,
          copyBytesPerSecond: context.copyBytesPerSecond,
          applyChangesPerSecond: context.applyChangesPerSecond,
          writes: fan.map((one) => scaled(one, changes / 3600)),
          stepSeconds: 3600,
          applyShareWhileCopying: context.applyShareWhileCopying,
          backlog: 0,
          limitSeconds: context.hoursAhead * 3600,
          // What this very copy is measured to do says more than those before it.
          ...(context.copyBytesPerSecond.samples > 0 ? {} : pastTimes(context.past ?? [], bytesLeft)),
        });
  const divergence = divergenceScore(subset.divergence);
  const { windows, earliest } = windowsOf(subset, context, fan, starts, ready, { changes, statements });
  const firstWindow = windows[0];
  const noPattern = known.confidence === 'none' || known.confidence === 'low';
  return {
    subset: subset.subset,
    tables: subset.tables,
    bytes: subset.bytes,
    bytesLeft,
    growth: subset.growth,
    heatNow: heatOf([lastSeen(track)], 'The last closed hour'),
    heatNextHour: heatOf(fan.slice(0, 1), 'The next hour'),
    heatNextDay,
    hot: subset.hot,
    divergence,
    priority: priority({ heat: heatNextDay, copySeconds: ready?.copySeconds, confidence: known.confidence }),
    intensity: intensity({
      divergence,
      // Where no pattern is known, one hour is as good as another, and none is near.
      hoursToWindow:
        firstWindow === undefined || noPattern ? undefined : (firstWindow.startMs - context.nowMs) / HOUR_MS,
      sourceLoad: noPattern
        ? 0
        : loadAboveLeast(
            fan.map(({ median }) => median),
            0,
          ),
      logBudgetUsed: context.logBudgetUsed,
    }),
    timeline: ready,
    windows,
    earliest,
    crossingShare: subset.crossingShare,
    fan,
    notes: notesOf(subset, track, known),
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

/** The last closed hour; filled in, where it was not watched, with as much doubt as the filling deserves. */
function lastSeen(track: Track): Fan {
  const index = track.length - 1;
  const median = index < 0 ? 0 : Math.expm1(track.levels[index] ?? 0);
  return index >= 0 && track.observed[index] === 1
    ? { median, low: median, high: median }
    : { median, low: 0, high: Math.expm1(Math.log1p(median) + 1) };
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
  ready: Timeline | undefined,
  perHeat: { readonly changes: number; readonly statements: number },
): ReturnType<typeof rankWindows> {
  if (ready?.converges === false || subset.tables.length === 0) return { windows: [], earliest: undefined };
  const always = new TransactionDurations(subset.durationsMs);
  const byHour = new Map<number, TransactionDurations>();
  for (const [hour, sample] of context.durationsByHour ?? [])
    byHour.set(hour, new TransactionDurations(sample));
  const perSecond = (heat: number): number =>
    (heat * perHeat.statements * (context.transactionsPerStatement ?? 1)) / 3600;
  const usual = fan.reduce((sum, { median }) => sum + median, 0) / Math.max(1, fan.length);
  const factor = drainFactor(context.stall.drainsMs ?? [], always, perSecond(usual));
  const candidates = starts.map(({ startMs }, hour) => {
    const heat = fan[hour] ?? { median: 0, low: 0, high: 0 };
    const writesPerSecond = (heat.median * perHeat.changes) / 3600;
    const stall = predictStall({
      ...context.stall,
      durations: byHour.get(slotOfWeek(startMs, HOUR_MS)) ?? always,
      drainFactor: factor,
      transactionsPerSecond: perSecond(heat.median),
      writesPerSecond,
      applyChangesPerSecond: context.applyChangesPerSecond.value,
      // What changed since the last clean verify: a minute's writes.
      verifyRows: writesPerSecond * 60,
    });
    return { startMs, statements: scaled(heat, perHeat.statements / 3600), stall };
  });
  return rankWindows(candidates, {
    stepMs: HOUR_MS,
    windowSteps: 1,
    count: context.windows,
    // The hour in which it becomes ready counts: what is left of it can be used.
    readyMs: Math.floor((context.nowMs + (ready?.readySeconds.value ?? 0) * 1000) / HOUR_MS) * HOUR_MS,
    observations: always.count,
  });
}

function notesOf(subset: PlanSubset, track: Track, { says, confidence }: Knowledge): readonly string[] {
  const notes = [says];
  let silent = 0;
  while (silent < track.length && track.observed[track.length - 1 - silent] === 0) silent += 1;
  if (silent > 1 && confidence !== 'none')
    notes.push(`Not seen for ${silent} hours: dropped, or capture was off.`);
  if (track.length === 0 && subset.heat.values.length > 0)
    notes.push(
      `Not seen since ${new Date(endMsOf(subset.heat)).toISOString()}: too long ago to say anything.`,
    );
  if (subset.tables.length === 0) notes.push('No table is left in it.');
  if (subset.bytes === undefined)
    notes.push('Its size is not known, so neither is its copy; windows are as if its shadow were ready.');
  if (subset.hot === undefined) notes.push('Keys are not captured: no hot set, and drift is unknown.');
  if (subset.durationsMs.length === 0) notes.push('No transaction was timed: the drain is taken as zero.');
  return [...notes, ...(subset.notes ?? [])];
}
