/**
 * What SPAR and ridge share: one linear model per horizon on a row of features, fitted robustly, the penalty chosen on
 * the last part of the fit's own past.
 */
import { LeastSquares } from '../least-squares.js';
import { at, clamp, medianOf } from '../numeric.js';
import type { Track } from '../track.js';
import { ageWeights } from './deviations.js';
import type { ForecastModel } from './forecaster.js';

/** The features of one linear model. */
export interface RowLayout {
  /** With the intercept, which is last. */
  readonly columns: number;
  /** The first target index whose row is complete, for this horizon. */
  first(horizon: number): number;
  /**
   * Writes the row of the bucket `horizon` steps after `last`, from buckets up to `last` alone, to `row` at `offset`.
   * Returns the base that the model's answer is added to.
   */
  write(track: Track, last: number, horizon: number, row: Float64Array, offset: number): number;
  update(track: Track): void;
}

export interface LinearOptions {
  /** Penalties to choose from; the first is used where there is too little to choose by. */
  readonly lambdas: readonly number[];
  /** Age at which a row counts half, in weeks. */
  readonly halfLifeWeeks: number;
  /** Rows per fit at most; the older ones are left out. */
  readonly rowsMax: number;
}

interface Anchor {
  readonly horizon: number;
  readonly coefficients: Float64Array;
}

/** A residual this many times the median one counts only in proportion: one blizzard must not bend a model. */
const OUTLIER = 6;
/** Levels by which a forecast may pass all that was seen: e times as much. */
const EXTRAPOLATION = 1;

export function fitLinear(
  track: Track,
  horizons: readonly number[],
  layout: RowLayout,
  options: LinearOptions,
): ForecastModel {
  const anchors = [...new Set(horizons)]
    .sort((a, b) => a - b)
    .map((horizon): Anchor => ({ horizon, coefficients: fitHorizon(track, horizon, layout, options) }));
  const row = new Float64Array(layout.columns);
  let top = 0;
  for (let index = 0; index < track.length; index++) top = Math.max(top, at(track.levels, index));
  return {
    forecast(known, asked, out) {
      const last = known.length - 1;
      for (const [index, horizon] of asked.entries()) {
        const anchor = anchors.find((one) => one.horizon >= horizon) ?? anchors.at(-1);
        const base = layout.write(known, last, horizon, row, 0);
        const moved = anchor === undefined ? 0 : product(row, 0, anchor.coefficients);
        out[index] = clamp(base + moved, 0, Math.max(top, at(known.levels, last)) + EXTRAPOLATION);
      }
    },
    update: (known) => layout.update(known),
  };
}

function product(row: Float64Array, offset: number, coefficients: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < coefficients.length; i++) sum += at(row, offset + i) * at(coefficients, i);
  return sum;
}

function fitHorizon(track: Track, horizon: number, layout: RowLayout, options: LinearOptions): Float64Array {
  const { columns } = layout;
  const first = Math.max(layout.first(horizon), track.length - options.rowsMax);
  const count = track.length - first;
  if (count < columns) return new Float64Array(columns);
  const rows = new Float64Array(count * columns);
  const targets = new Float64Array(count);
  const weights = ageWeights(count, options.halfLifeWeeks * track.perWeek);
  for (let index = 0; index < count; index++) {
    const target = first + index;
    const base = layout.write(track, target - horizon, horizon, rows, index * columns);
    targets[index] = at(track.levels, target) - base;
    if (track.observed[target] === 0) weights[index] = 0;
  }
  const plain = chooseAndSolve(rows, targets, weights, columns, options.lambdas);
  discountOutliers(rows, targets, weights, plain.coefficients);
  return solveAll(rows, targets, weights, columns, plain.lambda);
}

/** Picks the penalty by the absolute error on the last fifth, fitted on what is before it; then fits on everything. */
function chooseAndSolve(
  rows: Float64Array,
  targets: Float64Array,
  weights: Float64Array,
  columns: number,
  lambdas: readonly number[],
): { readonly coefficients: Float64Array; readonly lambda: number } {
  const count = targets.length;
  const head = Math.floor(count * 0.8);
  const system = new LeastSquares(columns);
  for (let index = 0; index < head; index++) {
    system.add(rows, index * columns, at(targets, index), at(weights, index));
  }
  let lambda = lambdas[0] ?? 0.01;
  if (head > columns * 4 && lambdas.length > 1) {
    let least = Number.POSITIVE_INFINITY;
    for (const candidate of lambdas) {
      const coefficients = system.solve(candidate);
      let error = 0;
      for (let index = head; index < count; index++) {
        if (at(weights, index) === 0) continue;
        error += Math.abs(at(targets, index) - product(rows, index * columns, coefficients));
      }
      if (error < least) {
        least = error;
        lambda = candidate;
      }
    }
  }
  for (let index = head; index < count; index++) {
    system.add(rows, index * columns, at(targets, index), at(weights, index));
  }
  return { coefficients: system.solve(lambda), lambda };
}

/** Huber weights against the median absolute residual: one step of iteratively reweighted least squares. */
function discountOutliers(
  rows: Float64Array,
  targets: Float64Array,
  weights: Float64Array,
  coefficients: Float64Array,
): void {
  const columns = coefficients.length;
  const residuals = new Float64Array(targets.length);
  for (let index = 0; index < targets.length; index++) {
    residuals[index] = Math.abs(at(targets, index) - product(rows, index * columns, coefficients));
  }
  const bound = OUTLIER * medianOf(residuals);
  if (bound <= 0) return;
  for (let index = 0; index < targets.length; index++) {
    const residual = at(residuals, index);
    if (residual > bound) weights[index] = (at(weights, index) * bound) / residual;
  }
}

function solveAll(
  rows: Float64Array,
  targets: Float64Array,
  weights: Float64Array,
  columns: number,
  lambda: number,
): Float64Array {
  const system = new LeastSquares(columns);
  for (let index = 0; index < targets.length; index++) {
    system.add(rows, index * columns, at(targets, index), at(weights, index));
  }
  return system.solve(lambda);
}
