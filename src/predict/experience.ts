/**
 * What past copies, and past switches, say of the next: a curve through what they took, and how far the next may be off.
 *
 * Times are compared by their ratio, whose logarithm is taken as normal: the interval in which the next lies nine times of
 * ten is `exp(±t·s·√(1 + p/n))`, with t the 95 % quantile of Student's distribution at n − p degrees of freedom (Student,
 * Biometrika 6, 1908), and a prior of how much times vary worth three measurements.
 *
 * Machines change: what was measured lately may say more than what was measured ever. How much more is told by the past
 * itself ({@link levelOf}).
 */
import { confidenceOf, type Judgement } from './judgement.js';
import { linear, type Point } from './curves.js';
import { isCount, medianOf } from './numeric.js';
import type { TimelineInput } from './timeline.js';

export interface PastCopy {
  /** With indexes. */
  readonly bytes: number;
  readonly copySeconds: number;
  /** From the shadow's start until it followed closely: schema, copy, indexes, statistics, catching up. */
  readonly readySeconds: number;
}

/**
 * What is held of how logarithms vary before anything is measured, and how many measurements that belief is worth: a factor of
 * 1.3 (the conjugate prior of a normal variance: Gelman et al., Bayesian Data Analysis, 2013, 3.2).
 */
const PRIOR_SPREAD = 0.26;
const PRIOR_FREEDOM = 3;
const LINE_POINTS_MIN = 5;
/** Later ones say more of a machine that changes. */
const POINTS_MAX = 40;
/** Student's 95 % quantiles for 1, 2, … degrees of freedom (tables; beyond, by Cornish and Fisher). */
const STUDENT_95 = [6.314, 2.92, 2.353, 2.132, 2.015, 1.943, 1.895, 1.86, 1.833, 1.812] as const;

function student95(freedom: number): number {
  const z = 1.6449;
  return (
    STUDENT_95[freedom - 1] ??
    z + (z ** 3 + z) / (4 * freedom) + (5 * z ** 5 + 16 * z ** 3 + 3 * z) / (96 * freedom ** 2)
  );
}

/** `value · factor` and `value / factor` are the ends. `parameters` of the fit: 1 or 2. */
export function spreadFactor(ratios: readonly number[], parameters: number): number {
  const logs = ratios.filter((ratio) => ratio > 0 && Number.isFinite(ratio)).map(Math.log);
  const freedom = PRIOR_FREEDOM + Math.max(0, logs.length - parameters);
  const squares = logs.reduce((sum, log) => sum + log * log, PRIOR_FREEDOM * PRIOR_SPREAD ** 2);
  const spread = Math.sqrt(squares / freedom);
  return Math.exp(student95(freedom) * spread * Math.sqrt(1 + parameters / Math.max(1, logs.length)));
}

/** How far the level may follow each new measurement. */
const FOLLOWING = [0.25, 0.5, 0.75] as const;
const FOLLOWING_POINTS_MIN = 8;
/** Following also follows noise: the sum of its errors must be less than this share of what went before. */
const FOLLOWING_GAIN = 0.9;

export interface Level {
  readonly value: number;
  /** `value · factor` and `value / factor`: the next lies between them nine times of ten. */
  readonly factor: number;
}

/**
 * Where the next of these positive figures, the oldest first, will lie: the median of all, or their level by exponential
 * smoothing of logarithms (Brown, Statistical Forecasting for Inventory Control, 1959) where that would have predicted
 * each from those before it clearly better. `parameters` of the fit behind the median. 0 where there is none.
 */
export function levelOf(values: readonly number[], parameters = 1): Level {
  const known = values.filter((value) => value > 0 && Number.isFinite(value));
  if (known.length === 0) return { value: 0, factor: spreadFactor([], parameters) };
  const median = medianOf(known);
  const still = {
    value: median,
    factor: spreadFactor(
      known.map((value) => value / median),
      parameters,
    ),
  };
  const logs = known.map(Math.log);
  if (logs.length < FOLLOWING_POINTS_MIN) return still;
  const absolute = (errors: readonly number[]): number =>
    errors.reduce((sum, error) => sum + Math.abs(error), 0);
  let least = absolute(logs.slice(1).map((log, index) => log - medianOf(logs.slice(0, index + 1))));
  let best = still;
  for (const rate of FOLLOWING) {
    const { level, errors } = smoothed(logs, rate);
    const loss = absolute(errors);
    if (loss >= FOLLOWING_GAIN * least) continue;
    least = loss;
    best = { value: Math.exp(level), factor: spreadFactor(errors.map(Math.exp), 1) };
  }
  return best;
}

/** The level after all of them, and how far each was from the level before it. */
function smoothed(
  logs: readonly number[],
  rate: number,
): { readonly level: number; readonly errors: readonly number[] } {
  let level = logs[0] ?? 0;
  const errors: number[] = [];
  for (const log of logs.slice(1)) {
    errors.push(log - level);
    level += rate * (log - level);
  }
  return { level, errors };
}

/**
 * Seconds by size: a Theil–Sen line from five measurements of different sizes on, in proportion to the size before. Points are
 * the oldest first. undefined: there is none.
 */
export function durationBySize(points: readonly Point[], size: number, what: string): Judgement | undefined {
  const used = points
    .filter(({ x, y }) => x > 0 && y > 0 && Number.isFinite(x) && Number.isFinite(y))
    .slice(-POINTS_MAX);
  if (used.length === 0) return undefined;
  const line = used.length >= LINE_POINTS_MIN ? linear(used) : undefined;
  // A line that falls, or begins below zero, is no time by size.
  const sloped = line !== undefined && line(0) >= 0 && line(1) >= line(0) ? line : undefined;
  const rate = medianOf(used.map(({ x, y }) => y / x));
  const fitted = sloped ?? ((x: number): number => rate * x);
  const ratios = used.map(({ x, y }) => y / Math.max(1e-9, fitted(x)));
  const level = levelOf(ratios, sloped === undefined ? 1 : 2);
  const value = Math.max(0, fitted(size) * level.value);
  const { factor } = level;
  return {
    value,
    low: value / factor,
    high: value * factor,
    terms: { measurements: used.length, fixedSeconds: sloped?.(0) ?? 0, spreadFactor: factor },
    confidence: confidenceOf(used.length),
    reason: `${what}, by ${used.length} copies to this destination.`,
  };
}

/** What past copies to this destination say of one of that size; nothing where there was none. */
export function pastTimes(
  copies: readonly PastCopy[],
  bytes: number,
): Pick<TimelineInput, 'measuredCopy' | 'finishSeconds'> {
  const past = copies.filter((one) => [one.bytes, one.copySeconds, one.readySeconds].every(isCount));
  const points = (of: (one: PastCopy) => number): { x: number; y: number }[] =>
    past.map((one) => ({ x: one.bytes, y: of(one) }));
  const copy = durationBySize(
    points(({ copySeconds }) => copySeconds),
    bytes,
    `${bytes} bytes`,
  );
  const ready = durationBySize(
    points(({ readySeconds }) => readySeconds),
    bytes,
    `${bytes} bytes`,
  );
  if (copy === undefined || ready === undefined || bytes <= 0) return {};
  // Its ends are those of the whole time: what delays the copy, delays what follows.
  return {
    measuredCopy: copy,
    finishSeconds: {
      value: Math.max(0, ready.value - copy.value),
      low: Math.max(0, ready.low - copy.low),
      high: Math.max(0, ready.high - copy.high),
    },
  };
}
