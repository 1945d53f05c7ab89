/**
 * Sparse periodic auto-regression: `ŷ(t+τ) = Σₖ aₖ·y(t+τ−kT) + Σⱼ bⱼ·Δy(t−j)`, with Δ the deviation from the mean of
 * the same slots of the last n periods (Chen et al., "Energy-aware server provisioning and load dispatching", NSDI
 * 2008, eq. 1; used for databases in P-Store, SIGMOD 2018). Here on levels, T a week once there are enough of them
 * and a day before.
 */
import { at } from '../numeric.js';
import type { Track } from '../track.js';
import { Deviations, firstSeason, seasonalMean } from './deviations.js';
import type { Forecaster } from './forecaster.js';
import { fitLinear, type RowLayout } from './linear.js';

const SEASONS = 3;
const RECENT = 6;

class SparLayout implements RowLayout {
  readonly columns = SEASONS + RECENT + 1;
  readonly #period: number;
  readonly #deviations: Deviations;

  constructor(track: Track, period: number) {
    this.#period = period;
    this.#deviations = new Deviations(track, period, SEASONS);
  }

  first(horizon: number): number {
    const before = firstSeason(horizon, this.#period) + SEASONS - 1;
    return Math.max(before * this.#period, this.#deviations.first + RECENT - 1 + horizon);
  }

  write(track: Track, last: number, horizon: number, row: Float64Array, offset: number): number {
    const nearest = last + horizon - firstSeason(horizon, this.#period) * this.#period;
    const base = seasonalMean(track, nearest + this.#period, this.#period, SEASONS);
    for (let season = 0; season < SEASONS; season++) {
      row[offset + season] = at(track.levels, nearest - season * this.#period) - base;
    }
    for (let back = 0; back < RECENT; back++) {
      row[offset + SEASONS + back] = this.#deviations.at(last - back);
    }
    row[offset + SEASONS + RECENT] = 1;
    return base;
  }

  update(track: Track): void {
    this.#deviations.update(track);
  }
}

/** Weeks need three behind the deviations, one to learn from, and what the horizon takes. */
function stepsFor(period: number, horizons: readonly number[]): number {
  const furthest = Math.max(...horizons);
  return (SEASONS + firstSeason(furthest, period) + 1) * period;
}

export const spar: Forecaster = {
  name: 'spar',
  stepsMin: (track, horizons) => stepsFor(track.perDay, horizons),
  fit(track, horizons) {
    const period = track.length >= stepsFor(track.perWeek, horizons) ? track.perWeek : track.perDay;
    return fitLinear(track, horizons, new SparLayout(track, period), {
      lambdas: [1e-3],
      halfLifeWeeks: 12,
      rowsMax: 26 * track.perWeek,
    });
  },
};
