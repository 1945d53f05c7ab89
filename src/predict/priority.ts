/** What to shadow first, and how eagerly. */
import type { Judgement, Confidence } from './judgement.js';
import { clamp } from './numeric.js';

export interface PriorityInput {
  /** Predicted heat over the next day, accesses per second. */
  readonly heat: { readonly value: number; readonly low: number; readonly high: number };
  /** undefined: not known; then heat alone ranks. */
  readonly copySeconds: { readonly value: number; readonly low: number; readonly high: number } | undefined;
  readonly confidence: Confidence;
}

/** Work that every subset costs beside its rows: schema, publication, verification. */
const OVERHEAD_SECONDS = 5;

/**
 * Heat per second of copying. Taking subsets in this order minimises Σ heat × time until shadowed (Smith's rule: W. E.
 * Smith, "Various optimizers for single-stage production", 1956). Terms: heat (1/s), copySeconds.
 */
export function priority({ heat, copySeconds, confidence }: PriorityInput): Judgement {
  const per = (accesses: number, seconds: number): number => accesses / (seconds + OVERHEAD_SECONDS);
  if (copySeconds === undefined) {
    return {
      value: per(heat.value, 0),
      low: 0,
      high: Math.max(per(heat.high, 0), per(heat.value, 0)),
      terms: { heat: heat.value },
      confidence: confidence === 'none' ? 'none' : 'low',
      reason: `${heat.value.toFixed(1)} accesses/s; how long its copy takes is not known.`,
    };
  }
  const value = per(heat.value, copySeconds.value);
  return {
    value,
    low: Math.min(value, per(heat.low, copySeconds.high)),
    high: Math.max(value, per(heat.high, copySeconds.low)),
    terms: { heat: heat.value, copySeconds: copySeconds.value },
    confidence,
    reason: Number.isFinite(copySeconds.value)
      ? `${heat.value.toFixed(1)} accesses/s for ${copySeconds.value.toFixed(0)} s of copying.`
      : `${heat.value.toFixed(1)} accesses/s, but at these rates its copy never ends.`,
  };
}

export interface IntensityInput {
  /** 0…1. */
  readonly divergence: Judgement;
  /** Hours until the subset's window; undefined where none is planned. */
  readonly hoursToWindow: number | undefined;
  /** Predicted load of the source now: {@link loadAboveLeast}. */
  readonly sourceLoad: number;
  /** Share of the log budget in use, 0…1: at its end the shadow must be drained whatever it costs. */
  readonly logBudgetUsed: number;
}

const NEARNESS_HOURS = 2;
const INTENSITY_MIN = 0.05;

/**
 * `max(max(divergence, exp(−hoursToWindow / 2)) · headroom, logBudgetUsed⁴)`, at least 0.05, with
 * `headroom = 1 − max(0, load − 0.7)/0.6`: near its usual peak the source is spared. Ours; the log budget's
 * share rises late and then wins over everything (DESIGN: raise intensity before copying is paused).
 */
export function intensity(input: IntensityInput): Judgement {
  const { divergence, hoursToWindow, sourceLoad, logBudgetUsed } = input;
  const nearness = hoursToWindow === undefined ? 0 : Math.exp(-Math.max(0, hoursToWindow) / NEARNESS_HOURS);
  const headroom = clamp(1 - Math.max(0, sourceLoad - 0.7) / 0.6, 0.25, 1);
  const budget = clamp(logBudgetUsed, 0, 1) ** 4;
  const of = (score: number): number =>
    clamp(Math.max(Math.max(score, nearness) * headroom, budget), INTENSITY_MIN, 1);
  const value = of(divergence.value);
  const reason =
    value === budget && budget > INTENSITY_MIN
      ? 'The retained log nears its limit.'
      : value === INTENSITY_MIN
        ? divergence.confidence === 'none'
          ? 'Not known to change; kept at the least.'
          : 'Little changes; kept at the least.'
        : nearness > divergence.value
          ? 'Its window is near.'
          : 'By its divergence.';
  return {
    value,
    low: of(divergence.low),
    high: of(divergence.high),
    terms: { divergence: divergence.value, nearness, headroom, logBudget: budget },
    confidence: divergence.confidence,
    reason,
  };
}

/**
 * How much of the peak ahead would be spared by waiting for the quietest hour, 0…1: `(load − least) / peak`. A load without
 * a rhythm has nothing to wait for: 0.
 */
export function loadAboveLeast(loads: readonly number[], index: number): number {
  const peak = Math.max(0, ...loads);
  return peak > 0 ? clamp(((loads[index] ?? 0) - Math.min(...loads)) / peak, 0, 1) : 0;
}
