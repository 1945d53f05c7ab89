/**
 * The judge of forecasts. From the first origin on: at every bucket a forecast for each horizon, made from what was
 * known then; members fitted anew every `refitSteps`, on buckets before the origin alone; each forecast is scored when
 * its target has come. Every method is scored on the same targets.
 */
import { Ensemble, type EnsembleOptions } from '../../src/predict/ensemble.js';
import type { LocalSeries } from '../../src/predict/local-time.js';
import { at } from '../../src/predict/numeric.js';
import { Track } from '../../src/predict/track.js';

export interface Score {
  /** Σ|forecast − actual| / Σ actual. */
  readonly wape: number;
  /** Mean squared error of log1p. */
  readonly logMse: number;
  readonly targets: number;
}

export interface RollingResult {
  readonly origins: number;
  readonly horizons: readonly number[];
  /** method → one score per horizon. `ensemble` is the product's. */
  readonly scores: ReadonlyMap<string, readonly Score[]>;
  /** Share of targets inside the ensemble's interval, per horizon. */
  readonly coverage: readonly number[];
  /** Mean weight over the origins, per horizon. */
  readonly weights: readonly Readonly<Record<string, number>>[];
  readonly alarms: number;
}

interface Sums {
  absolute: number;
  actual: number;
  squared: number;
  targets: number;
}

export function rollOrigins(
  series: LocalSeries,
  firstOrigin: number,
  refitSteps: number,
  options: EnsembleOptions,
): RollingResult {
  const { horizons } = options;
  const full = Track.of(series);
  const track = full.view(firstOrigin);
  const ensemble = new Ensemble(track, options);
  const sums = new Map<string, Sums[]>();
  const inside = horizons.map(() => 0);
  const weights = horizons.map((): Record<string, number> => ({}));
  const score = (method: string, index: number, level: number, target: number): void => {
    let own = sums.get(method);
    if (own === undefined) {
      own = horizons.map(() => ({ absolute: 0, actual: 0, squared: 0, targets: 0 }));
      sums.set(method, own);
    }
    const into = own[index];
    if (into === undefined) return;
    const actual = at(series.values, target);
    into.absolute += Math.abs(Math.expm1(level) - actual);
    into.actual += actual;
    into.squared += (level - Math.log1p(actual)) ** 2;
    into.targets += 1;
  };
  let origins = 1;
  do {
    const fans = ensemble.forecast(horizons);
    const members = ensemble.memberLevels(horizons);
    for (const [index, horizon] of horizons.entries()) {
      const target = track.length - 1 + horizon;
      if (target >= full.length || series.missing[target] === 1) continue;
      const fan = fans[index];
      if (fan === undefined) continue;
      score('ensemble', index, Math.log1p(fan.median), target);
      const actual = at(series.values, target);
      if (actual >= fan.low && actual <= fan.high) inside[index] = (inside[index] ?? 0) + 1;
      for (const [name, levels] of members) score(name, index, at(levels, index), target);
    }
    if ((track.length - firstOrigin) % refitSteps === 0) noteWeights(ensemble, weights);
    if (!track.advance()) break;
    ensemble.observe();
    if ((track.length - firstOrigin) % refitSteps === 0) {
      ensemble.refit();
      origins += 1;
    }
  } while (track.length < full.length);
  const scores = new Map(
    [...sums].map(([method, own]) => [
      method,
      own.map(({ absolute, actual, squared, targets }) => ({
        wape: absolute / actual,
        logMse: squared / targets,
        targets,
      })),
    ]),
  );
  const coverage = inside.map((hits, index) => hits / (scores.get('ensemble')?.[index]?.targets ?? 0));
  for (const own of weights) for (const name of Object.keys(own)) own[name] = (own[name] ?? 0) / origins;
  return { origins, horizons, scores, coverage, weights, alarms: ensemble.alarms.length };
}

function noteWeights(ensemble: Ensemble, weights: Record<string, number>[]): void {
  for (const [index, own] of weights.entries()) {
    for (const [name, share] of Object.entries(ensemble.weights(index))) own[name] = (own[name] ?? 0) + share;
  }
}
