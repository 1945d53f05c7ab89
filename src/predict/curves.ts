/** Curves through measurements: growth of size, latency by load. By `ml-regression`; a constant where there is too little. */
import { PolynomialRegression, TheilSenRegression } from 'ml-regression';
import { confidenceOf, type Judgement } from './judgement.js';
import { meanOf, quantileOfSorted } from './numeric.js';

export interface Point {
  readonly x: number;
  readonly y: number;
}

export interface Curve {
  /** The value at `x`, not negative, with the spread of past residuals around it. */
  at(x: number): Judgement;
}

/** Points that a slope, and a bend, need before they are believed. */
const POINTS_MIN = 5;
const BEND_POINTS_MIN = 12;

/**
 * Size by time (bytes by ms): a Theil–Sen line (Theil 1950; Sen, JASA 63, 1968), which a bulk load or a purge does not
 * bend. Non-finite points are left out.
 */
export function growthCurve(points: readonly Point[]): Curve {
  return curveOf(points, POINTS_MIN, (x, y) => {
    const line = new TheilSenRegression([...x], [...y]);
    return (at) => line.predict(at);
  });
}

/** The Theil–Sen line through points as a function; undefined where they have fewer than three different x. */
export function linear(points: readonly Point[]): ((x: number) => number) | undefined {
  if (new Set(points.map(({ x }) => x)).size < 3) return undefined;
  const scale = Math.max(...points.map(({ x }) => Math.abs(x))) || 1;
  const line = new TheilSenRegression(
    points.map(({ x }) => x / scale),
    points.map(({ y }) => y),
  );
  return (x) => line.predict(x / scale);
}

/**
 * Latency by rate (ms by statements per second): a parabola where enough was seen, never below the least latency seen and
 * never falling beyond the busiest time seen.
 */
export function latencyCurve(points: readonly Point[]): Curve {
  return curveOf(points, BEND_POINTS_MIN, (x, y) => {
    const parabola = new PolynomialRegression([...x], [...y], 2);
    const least = Math.min(...y);
    const busiest = Math.max(...x);
    const atBusiest = Math.max(least, parabola.predict(busiest));
    return (at) => {
      const value = Math.max(least, parabola.predict(at));
      return at > busiest ? Math.max(atBusiest, value) : value;
    };
  });
}

type Fit = (x: readonly number[], y: readonly number[]) => (at: number) => number;

function curveOf(points: readonly Point[], pointsMin: number, fit: Fit): Curve {
  const finite = points.filter(({ x, y }) => Number.isFinite(x) && Number.isFinite(y));
  const xs = finite.map(({ x }) => x);
  const ys = finite.map(({ y }) => y);
  const constant = meanOf(ys);
  const enough = finite.length >= pointsMin && new Set(xs).size >= 3;
  // Times in ms are large: shifted and scaled, the normal equations keep their digits.
  const from = Math.min(...xs);
  const width = Math.max(...xs) - from || 1;
  const scaled = (x: number): number => (x - from) / width;
  const fitted = enough ? fit(xs.map(scaled), ys) : (): number => constant;
  const predict = (x: number): number => {
    const value = fitted(enough ? scaled(x) : 0);
    return Number.isFinite(value) ? value : constant;
  };
  const residuals = Float64Array.from(finite, ({ x, y }) => y - predict(x)).sort();
  return {
    at(x) {
      const value = Math.max(0, predict(x));
      const low = residuals.length === 0 ? 0 : quantileOfSorted(residuals, 0.05);
      const high = residuals.length === 0 ? 0 : quantileOfSorted(residuals, 0.95);
      return {
        value,
        low: Math.max(0, Math.min(value, value + low)),
        high: Math.max(value, value + high),
        terms: { points: finite.length, constant },
        confidence: confidenceOf(finite.length),
        reason: enough
          ? `By ${finite.length} measurements.`
          : `The mean of ${finite.length} measurements: too few for a curve.`,
      };
    },
  };
}
