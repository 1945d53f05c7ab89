/**
 * What past copies, and past switches, say of the next: a curve through what they took, and how far the next may be off.
 *
 * Times are compared by their ratio, whose logarithm is taken as normal: the interval in which the next lies nine times of
 * ten is `exp(±t·s·√(1 + p/n))`, with t the 95 % quantile of Student's distribution at n − p degrees of freedom (Student,
 * Biometrika 6, 1908), and a prior of how much times vary worth three measurements.
 */
import { confidenceOf, type Judgement } from './judgement.js';
import { linear, type Point } from './curves.js';
import { medianOf } from './numeric.js';
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
  const centre = medianOf(ratios);
  const value = Math.max(0, fitted(size) * centre);
  const factor = spreadFactor(
    ratios.map((ratio) => ratio / centre),
    sloped === undefined ? 1 : 2,
  );
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
  past: readonly PastCopy[],
  bytes: number,
): Pick<TimelineInput, 'measuredCopy' | 'finishSeconds'> {
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
