/**
 * Ridge regression on log lags, direct per horizon: the target's deviation from the mean of its weekly lags, explained
 * by the latest buckets' deviations, the same slot's deviations on the days before, the single weekly lags, and the
 * mean deviation of the last hours, day and week. With fewer than {@link WEEKS} weeks the season is a day.
 * (Direct strategy: Ben Taieb et al., Expert Systems with Applications 39, 2012. Log lags for query arrival rates: Ma et
 * al., QueryBot 5000, SIGMOD 2018.)
 */
import { at } from '../numeric.js';
import type { Track } from '../track.js';
import { Deviations, firstSeason, seasonalMean } from './deviations.js';
import type { Forecaster } from './forecaster.js';
import { fitLinear, type RowLayout } from './linear.js';

const WEEKS = 3;
const RECENT = 6;
const DAYS = 7;

class RidgeLayout implements RowLayout {
  readonly columns: number;
  readonly #period: number;
  readonly #perDay: number;
  readonly #days: number;
  readonly #deviations: Deviations;

  constructor(track: Track, period: number) {
    this.#period = period;
    this.#perDay = track.perDay;
    this.#days = period > track.perDay ? DAYS : 0;
    this.#deviations = new Deviations(track, period, WEEKS);
    this.columns = RECENT + this.#days + WEEKS + 4 + 1;
  }

  first(horizon: number): number {
    const seasons = firstSeason(horizon, this.#period) + WEEKS - 1;
    const days = firstSeason(horizon, this.#perDay) + this.#days;
    return Math.max(
      seasons * this.#period,
      this.#deviations.first + RECENT + horizon,
      this.#deviations.first + days * this.#perDay,
    );
  }

  write(track: Track, last: number, horizon: number, row: Float64Array, offset: number): number {
    const target = last + horizon;
    const deviations = this.#deviations;
    const nearest = target - firstSeason(horizon, this.#period) * this.#period;
    const base = seasonalMean(track, nearest + this.#period, this.#period, WEEKS);
    let column = offset;
    for (let back = 0; back < RECENT; back++) row[column++] = deviations.at(last - back);
    const yesterday = target - firstSeason(horizon, this.#perDay) * this.#perDay;
    for (let day = 0; day < this.#days; day++) row[column++] = deviations.at(yesterday - day * this.#perDay);
    for (let week = 0; week < WEEKS; week++) {
      row[column++] = at(track.levels, nearest - week * this.#period) - base;
    }
    row[column++] = deviations.mean(last, Math.max(1, this.#perDay >> 2));
    row[column++] = deviations.mean(last, this.#perDay);
    row[column++] = deviations.mean(last, this.#perDay * 7);
    row[column++] = deviations.mean(yesterday, Math.max(1, this.#perDay >> 3));
    row[column] = 1;
    return base;
  }

  update(track: Track): void {
    this.#deviations.update(track);
  }
}

function stepsFor(track: Track, period: number, horizons: readonly number[]): number {
  const furthest = Math.max(...horizons);
  return (WEEKS + firstSeason(furthest, period) + 1) * period + track.perDay;
}

export const ridge: Forecaster = {
  name: 'ridge',
  stepsMin: (track, horizons) => stepsFor(track, track.perDay, horizons),
  fit(track, horizons) {
    const weekly = track.length >= stepsFor(track, track.perWeek, horizons) + track.perWeek;
    const layout = new RidgeLayout(track, weekly ? track.perWeek : track.perDay);
    return fitLinear(track, horizons, layout, {
      lambdas: [0.03, 0.003, 0.3, 3],
      halfLifeWeeks: 12,
      rowsMax: 26 * track.perWeek,
    });
  },
};
