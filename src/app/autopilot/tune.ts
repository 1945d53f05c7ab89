/**
 * How eagerly the shadow should be kept at this moment, and what it should copy first: the plan, with the divergence's third
 * term as it is measured now. Pure.
 *
 * One lane carries all subsets at present, so that the most eager of them sets the pace of all; which one it was is part of
 * every decision.
 *
 * Hysteresis: eagerness rises at once, by 0.1 and more; it falls by 0.15 and more, after the reason for more has been gone for
 * a while. Of two subsets, the order of copying changes when one outweighs the other by a fifth.
 *
 * An operator's intensity is left alone: one that is neither 1, from which a shadow starts, nor what was set from here.
 */
import type { ShadowSteering } from '../../core/ports.js';
import { divergenceScore } from '../../predict/divergence.js';
import { intensity, loadAboveLeast, type IntensityInput } from '../../predict/priority.js';
import { HOUR_MS } from '../../predict/series.js';
import { staleShare, type Freshness } from '../../predict/staleness.js';
import type { Planned } from '../plan/make.js';
import type { PlanReport, SubsetReport } from '../plan/plan-report.js';
import type { StaleBasis } from '../plan/subsets.js';

const RISE = 0.1;
const FALL = 0.15;
const OUTWEIGHS = 1.2;
/** Freshness of a shadow that nobody told to be less eager. */
const INTENSITY_AT_START = 1;

/** The plan's divergence and intensity as of this moment: lag and copied share are those of now. */
export function retuned(
  { plan, bases, bytes }: Planned,
  freshness: Freshness,
  logBudgetUsed: number,
  nowMs: number,
): Planned {
  const of = (subset: SubsetReport): SubsetReport => {
    const basis = bases.get(subset.subset);
    if (basis === undefined) return subset;
    const divergence = divergenceScore({ ...basis.changing, stale: staleShare(basis.rows, freshness) });
    const input = { divergence, ...situationOf(subset, nowMs), logBudgetUsed };
    return { ...subset, divergence, intensity: intensity(input) };
  };
  return { plan: { ...plan, whole: of(plan.whole), subsets: plan.subsets.map(of) }, bases, bytes };
}

/** Where no pattern is known, one hour is as good as another: none is near, and none has to be spared. */
function situationOf(
  { windows, heat, forecast }: SubsetReport,
  nowMs: number,
): Pick<IntensityInput, 'hoursToWindow' | 'sourceLoad'> {
  const { confidence } = heat.nextDay;
  if (confidence === 'none' || confidence === 'low') return { hoursToWindow: undefined, sourceLoad: 0 };
  const [window] = windows;
  const hour = forecast.findIndex(({ at }) => nowMs < Date.parse(at) + HOUR_MS);
  return {
    hoursToWindow: window === undefined ? undefined : (Date.parse(window.start) - nowMs) / HOUR_MS,
    sourceLoad: loadAboveLeast(
      forecast.map(({ median }) => median),
      Math.max(0, hour),
    ),
  };
}

export interface Wanted {
  readonly value: number;
  readonly subset: string;
  readonly reason: string;
  readonly figures: Readonly<Record<string, number | string | null>>;
}

/**
 * What the most eager subset asks for, but never less than it takes to stay within what a cutover allows: `least`. undefined:
 * no plan, nothing seen, or nothing known of how any subset changes.
 */
export function wantedIntensity(plan: PlanReport, least: number): Wanted | undefined {
  const known = plan.subsets.filter(({ divergence }) => divergence.confidence !== 'none');
  const [first] = [...known].sort((a, b) => b.intensity.value - a.intensity.value);
  if (first === undefined) return undefined;
  const { terms } = first.divergence;
  const value = Math.max(least, first.intensity.value);
  return {
    value,
    subset: first.subset,
    reason:
      value > first.intensity.value
        ? `${first.intensity.reason} No less, so that its lag stays within what a cutover allows.`
        : first.intensity.reason,
    figures: {
      subset: first.subset,
      divergence: first.divergence.value,
      c: terms['c'] ?? null,
      d: terms['d'] ?? null,
      m: terms['m'] ?? null,
      nearness: first.intensity.terms['nearness'] ?? null,
      headroom: first.intensity.terms['headroom'] ?? null,
      logBudget: first.intensity.terms['logBudget'] ?? null,
      planAsOf: plan.asOf,
    },
  };
}

export interface Tuning {
  /** What was set from here last; undefined: nothing since the shadow began. */
  readonly set: number | undefined;
  /** Since when less was wanted, and the most of what was wanted since; undefined: it isn't. */
  readonly less: { readonly sinceMs: number; readonly most: number } | undefined;
}

export const UNTUNED: Tuning = { set: undefined, less: undefined };

/** The intensity to set now, if any, and what to remember. */
export function tune(
  before: Tuning,
  present: Pick<ShadowSteering, 'paused' | 'intensity'>,
  wanted: number,
  nowMs: number,
  fallAfterMs: number,
): { readonly tuning: Tuning; readonly set: number | undefined } {
  const atStart = present.intensity === INTENSITY_AT_START;
  const own = before.set !== undefined && Math.abs(present.intensity - before.set) < 1e-9;
  const idle = { set: own ? before.set : undefined, less: undefined };
  if (present.paused || !(own || atStart)) return { tuning: idle, set: undefined };
  if (wanted - present.intensity >= RISE) return { tuning: { set: wanted, less: undefined }, set: wanted };
  if (present.intensity - wanted < FALL) return { tuning: idle, set: undefined };
  const less = {
    sinceMs: before.less?.sinceMs ?? nowMs,
    most: Math.max(before.less?.most ?? 0, wanted),
  };
  return nowMs - less.sinceMs < fallAfterMs
    ? { tuning: { ...idle, less }, set: undefined }
    : { tuning: { set: less.most, less: undefined }, set: less.most };
}

/**
 * Subsets in the order in which to copy them: as they were ordered before, but for those that outweigh one ahead of them by a
 * fifth. New ones stand where their priority puts them.
 */
export function copyOrder(plan: PlanReport, before: readonly string[]): readonly SubsetReport[] {
  const place = new Map(before.map((subset, index) => [subset, index]));
  const order: SubsetReport[] = [];
  const byPlace = [...plan.subsets].sort(
    (a, b) =>
      (place.get(a.subset) ?? Number.POSITIVE_INFINITY) - (place.get(b.subset) ?? Number.POSITIVE_INFINITY) ||
      b.priority.value - a.priority.value,
  );
  for (const subset of byPlace) {
    const known = place.has(subset.subset);
    let at = order.length;
    while (at > 0 && outweighs(subset, order[at - 1], known)) at -= 1;
    order.splice(at, 0, subset);
  }
  return order;
}

/** Tables of these subsets, the hottest of each first. */
export function tablesInOrder(
  order: readonly SubsetReport[],
  bases: ReadonlyMap<string, StaleBasis>,
): readonly string[] {
  return order.flatMap(({ subset, tables }) => {
    const weights = new Map(bases.get(subset)?.rows.map(({ table, weight }) => [table, weight]));
    return [...tables].sort((a, b) => (weights.get(b) ?? 0) - (weights.get(a) ?? 0));
  });
}

function outweighs(subset: SubsetReport, ahead: SubsetReport | undefined, bothKnown: boolean): boolean {
  if (ahead === undefined) return false;
  return subset.priority.value > ahead.priority.value * (bothKnown ? OUTWEIGHS : 1);
}
