/** What every member of the ensemble is: fitted once on a known past, then updated with each closed bucket. */
import type { Track } from '../track.js';

export interface Forecaster {
  readonly name: string;
  /** Buckets of past it needs before it says anything, for these horizons. */
  stepsMin(track: Track, horizons: readonly number[]): number;
  /**
   * Reads `track` below its length and nothing else. `previous`: the model this one replaces, fitted to less of the
   * same track, for members that go on from where they were.
   */
  fit(track: Track, horizons: readonly number[], previous?: ForecastModel): ForecastModel;
}

export interface ForecastModel {
  /**
   * Writes the median level `horizons[i]` steps after the track's last known bucket to `out[i]` (1 = the next one).
   * Any horizon may be asked for; those of the fit are what it is good at. Always finite.
   */
  forecast(track: Track, horizons: readonly number[], out: Float64Array): void;
  /** To be called after each bucket that became known since the fit, in order. */
  update(track: Track): void;
}
