/**
 * The quietest window of tomorrow, chosen at midnight. Correct (as in Seagull, VLDB 2020): the load that was in it lies
 * within 10 % of the day's peak of the load in the quietest window there was. Windows start at any step of the day.
 */
import { Ensemble, ENSEMBLE_DEFAULTS } from '../../src/predict/ensemble.js';
import { toLocal, type LocalSeries } from '../../src/predict/local-time.js';
import { MEMBERS } from '../../src/predict/members.js';
import { at } from '../../src/predict/numeric.js';
import { rollUp, type Series } from '../../src/predict/series.js';
import { Track } from '../../src/predict/track.js';

export interface LowWindowResult {
  readonly name: string;
  readonly days: number;
  /** method → days with a correct window. */
  readonly correct: Readonly<Record<string, number>>;
}

/** How far above the day's best a window may lie, as a share of the day's peak. */
const TOLERANCE = 0.1;

export function benchLowWindow(
  name: string,
  series: Series,
  windowSteps: number,
  /** Steps of `series` that one forecast bucket holds. */
  bucketSteps: number,
  firstDay: number,
  daysMax: number,
): LowWindowResult {
  const fine = toLocal(series, () => 0);
  const coarse = toLocal(rollUp(series, bucketSteps), () => 0);
  const { perDay } = coarse;
  // Both grids, from the first midnight.
  const midnight = (perDay - (coarse.firstSlot % perDay)) % perDay;
  const fineMidnight = Math.round((midnight * coarse.stepMs + coarse.startMs - fine.startMs) / fine.stepMs);
  const track = Track.of(coarse).view(midnight + firstDay * perDay);
  const horizons = [1, perDay >> 2, perDay >> 1, perDay];
  const ensemble = new Ensemble(track, { ...ENSEMBLE_DEFAULTS, horizons, members: MEMBERS });
  const path = Array.from({ length: perDay }, (_, index) => index + 1);
  const correct: Record<string, number> = {};
  let days = 0;
  for (let day = firstDay; day - firstDay < daysMax; day++) {
    const from = fineMidnight + day * fine.perDay;
    if (from + fine.perDay > fine.values.length) break;
    const paths = new Map<string, Float64Array>(ensemble.memberLevels(path));
    paths.set('ensemble', ensemble.levels(path));
    if (known(fine, from)) {
      days += 1;
      for (const [method, levels] of paths) {
        const start = quietest(expand(levels, bucketSteps), windowSteps);
        if (isCorrect(fine, from, start, windowSteps)) correct[method] = (correct[method] ?? 0) + 1;
        else correct[method] ??= 0;
      }
    }
    for (let step = 0; step < perDay && track.advance(); step++) ensemble.observe();
    if ((day - firstDay) % 7 === 6) ensemble.refit();
  }
  return { name, days, correct };
}

/** Forecasts of buckets on the grid of steps, as counts per step. */
function expand(levels: Float64Array, bucketSteps: number): Float64Array {
  return Float64Array.from(
    { length: levels.length * bucketSteps },
    (_, step) => Math.expm1(at(levels, Math.floor(step / bucketSteps))) / bucketSteps,
  );
}

function quietest(values: Float64Array, steps: number): number {
  let best = 0;
  let least = Number.POSITIVE_INFINITY;
  for (let start = 0; start + steps <= values.length; start++) {
    const sum = values.subarray(start, start + steps).reduce((total, value) => total + value, 0);
    if (sum < least - 1e-9) {
      least = sum;
      best = start;
    }
  }
  return best;
}

function known(series: LocalSeries, from: number): boolean {
  return !series.missing.subarray(from, from + series.perDay).includes(1);
}

function isCorrect(series: LocalSeries, from: number, start: number, steps: number): boolean {
  const day = series.values.subarray(from, from + series.perDay);
  const mean = (first: number): number =>
    day.subarray(first, first + steps).reduce((sum, one) => sum + one, 0) / steps;
  const peak = day.reduce((most, value) => Math.max(most, value), 0);
  return mean(start) <= mean(quietest(day, steps)) + TOLERANCE * peak;
}
