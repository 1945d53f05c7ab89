/** Hourly demand, forecast 1, 24 and 168 hours ahead from rolling origins; members and ablations on the same targets. */
import type { Forecaster } from '../../src/predict/forecasters/forecaster.js';
import { ENSEMBLE_DEFAULTS } from '../../src/predict/ensemble.js';
import { toLocal } from '../../src/predict/local-time.js';
import { MEMBERS } from '../../src/predict/members.js';
import { HOUR_MS, rollUp } from '../../src/predict/series.js';
import { rollOrigins, type RollingResult, type Score } from './rolling-origin.js';
import { readSeries } from './series-files.js';

export const HORIZONS = [1, 24, 168] as const;
/** Three weeks of weekly lags, the week between origin and target, and two to learn from. */
export const FIRST_ORIGIN_WEEKS = 6;
/** What to beat: the best single methods known, per horizon. */
export const AIMS = {
  wape: [0.053, 0.093, 0.102],
  logMse: [0.033, 0.108, 0.094],
  coverage: [0.87, 0.93],
} as const;

export interface TaxiResult {
  readonly result: RollingResult;
  /** name of what was left out → the ensemble's score without it. */
  readonly without: Readonly<Record<string, readonly Score[]>>;
  readonly seconds: number;
}

export function benchTaxi(folder: string, weeksMax: number, leaveOut: readonly string[]): TaxiResult {
  const hourly = rollUp(readSeries(folder, 'nyc_taxi.csv', HOUR_MS / 2, 'sum'), 2);
  const length = Math.min(hourly.values.length, weeksMax * 168);
  // The file's times carry no zone and no doubled or missing hour: they are taken as a wall clock.
  const series = toLocal(
    { ...hourly, values: hourly.values.slice(0, length), missing: hourly.missing.slice(0, length) },
    () => 0,
  );
  const run = (members: readonly Forecaster[]): RollingResult =>
    rollOrigins(series, FIRST_ORIGIN_WEEKS * 168, 168, { ...ENSEMBLE_DEFAULTS, horizons: HORIZONS, members });
  const started = performance.now();
  const result = run(MEMBERS);
  const seconds = (performance.now() - started) / 1000;
  const without: Record<string, readonly Score[]> = {};
  for (const name of leaveOut) {
    const rest = MEMBERS.filter((member) => member.name !== name);
    if (rest.length < MEMBERS.length) without[name] = run(rest).scores.get('ensemble') ?? [];
  }
  return { result, without, seconds };
}
