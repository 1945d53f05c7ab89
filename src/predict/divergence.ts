/** How fast a subset's hot data changes and drifts from its shadow. */
import { confidenceOf, type Judgement } from './judgement.js';
import { clamp } from './numeric.js';
import type { StaleShare } from './staleness.js';

/** What each term is measured against: a term of this size alone gives a score of 1 − 1/e = 0.63. */
export const DIVERGENCE_UNITS = { rewritten: 0.5, drift: 0.5, stale: 0.2 } as const;

/** Counts per hot key. Keys missing from one side count zero there. */
export type KeyCounts<K> = ReadonlyMap<K, number>;

export interface DivergenceInput {
  /** c: predicted share of hot rows rewritten per refresh interval, with its interval. See {@link rewrittenShare}.
   *  undefined: keys are not captured. */
  readonly rewritten: { readonly value: number; readonly low: number; readonly high: number } | undefined;
  /** d: Jensen–Shannon distance per hour, corrected. See {@link keyDrift}. undefined: not known. */
  readonly drift: number | undefined;
  /** m: share of the hot rows whose shadow is stale beyond its allowance. undefined: not measured. */
  readonly stale: StaleShare | undefined;
}

/**
 * `1 − exp(−(c/c₀ + d/d₀ + m/m₀))`, 0…1. Terms: c, d, m as given and as parts of the exponent; a term that is not known
 * is absent from them, counts as zero in the value and as one in the upper end: unknown is not fresh. With no term known the
 * confidence is none.
 */
export function divergenceScore(
  input: DivergenceInput,
  units: { readonly rewritten: number; readonly drift: number; readonly stale: number } = DIVERGENCE_UNITS,
): Judgement {
  const { rewritten, drift, stale } = input;
  const m = stale?.value;
  const score = (c: number, d: number, staleShare: number): number =>
    1 - Math.exp(-(c / units.rewritten + d / units.drift + staleShare / units.stale));
  const parts = {
    c: (rewritten?.value ?? 0) / units.rewritten,
    d: (drift ?? 0) / units.drift,
    m: (m ?? 0) / units.stale,
  };
  const leading = parts.c >= parts.d && parts.c >= parts.m ? 'c' : parts.d >= parts.m ? 'd' : 'm';
  const reasons = {
    c: `${((rewritten?.value ?? 0) * 100).toFixed(1)} % of its hot rows are rewritten per refresh`,
    d: `its hot keys move by ${(drift ?? 0).toFixed(2)} per hour`,
    m: stale?.reason ?? '',
  };
  const value = score(rewritten?.value ?? 0, drift ?? 0, m ?? 0);
  const known = rewritten !== undefined || drift !== undefined || stale !== undefined;
  return {
    value,
    low: Math.min(value, score(rewritten?.low ?? 0, drift ?? 0, stale?.low ?? 0)),
    high: Math.max(value, score(rewritten?.high ?? 1, drift ?? 1, stale?.high ?? 1)),
    terms: {
      ...(rewritten === undefined ? {} : { c: rewritten.value, cPart: parts.c }),
      ...(drift === undefined ? {} : { d: drift, dPart: parts.d }),
      ...(m === undefined ? {} : { m, mPart: parts.m }),
    },
    confidence: known ? (stale === undefined ? 'low' : confidenceOf(Math.max(1, stale.samples))) : 'none',
    reason: !known
      ? 'Not known: keys are not captured, and there is no shadow to measure.'
      : value === 0
        ? nothingOf(input)
        : `Most by: ${reasons[leading]}.`,
  };
}

function nothingOf({ rewritten, stale }: DivergenceInput): string {
  if (stale === undefined) return 'Nothing changes; how stale its shadow is was not measured.';
  return rewritten === undefined
    ? 'No row of its shadow is staler than allowed; how its hot rows change is not known.'
    : 'Nothing changes, and no row of its shadow is staler than allowed.';
}

/**
 * c: the expected share of hot rows rewritten within one refresh interval, writes to each key taken as Poisson:
 * `mean(1 − exp(−λᵢ·Δ))`. `writesPerHour`: predicted, one per hot key. `spread`: factor between the predicted write rate
 * and its upper (and lower) end.
 */
export function rewrittenShare(
  writesPerHour: readonly number[],
  refreshSeconds: number,
  spread = 1,
): { readonly value: number; readonly low: number; readonly high: number } {
  const share = (factor: number): number => {
    if (writesPerHour.length === 0) return 0;
    const hours = (refreshSeconds / 3600) * factor;
    return writesPerHour.reduce((sum, rate) => sum + 1 - Math.exp(-rate * hours), 0) / writesPerHour.length;
  };
  return { value: share(1), low: share(1 / spread), high: share(spread) };
}

/**
 * Jensen–Shannon divergence in bits, 0…1 (Lin, IEEE Trans. Inf. Theory 37, 1991), less what two samples of the same
 * distribution would show: `(K − 1)/(8 ln 2) · (1/n₁ + 1/n₂)`, from the χ² approximation of both entropies' bias
 * (Miller 1955; Grosse et al., Phys. Rev. E 65, 2002). Returns its root, the distance. Counts must be raw, not decayed.
 */
export function keyDistance<K>(a: KeyCounts<K>, b: KeyCounts<K>): number {
  const totalA = sumOf(a);
  const totalB = sumOf(b);
  if (totalA === 0 || totalB === 0) return 0;
  const keys = new Set([...a.keys(), ...b.keys()]);
  let divergence = 0;
  for (const key of keys) {
    const p = (a.get(key) ?? 0) / totalA;
    const q = (b.get(key) ?? 0) / totalB;
    const mean = (p + q) / 2;
    if (p > 0) divergence += (p / 2) * Math.log2(p / mean);
    if (q > 0) divergence += (q / 2) * Math.log2(q / mean);
  }
  const noise = ((keys.size - 1) / (8 * Math.LN2)) * (1 / totalA + 1 / totalB);
  return Math.sqrt(clamp(divergence - noise, 0, 1));
}

/**
 * d: distance between the predicted hot-key distributions now and one interval ago, less the distance at the same hour
 * last week (a shift change that comes every Monday is no drift), per hour.
 */
export function keyDrift(now: number, sameHourLastWeek: number | undefined, intervalHours: number): number {
  return Math.max(0, now - (sameHourLastWeek ?? 0)) / intervalHours;
}

function sumOf<K>(counts: KeyCounts<K>): number {
  let sum = 0;
  for (const count of counts.values()) sum += count;
  return sum;
}
