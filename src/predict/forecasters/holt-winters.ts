/**
 * Damped additive Holt–Winters on levels with an autoregressive error, in error-correction form:
 *
 *   e = y − (l + φb + s + ρe₋₁);  l ← l + φb + αe;  b ← φb + βe;  s ← s + γe
 *   ŷ(t+h) = l + (φ + … + φʰ)b + s(t+h) + ρʰe
 *
 * (Gardner & McKenzie 1985 for the damped trend; Taylor, Int. J. Forecasting 19, 2003, for ρ.) The season is a week once
 * three are known and a day before. Each horizon has parameters of its own, from a small grid, by the error at that
 * horizon over the second half of the past.
 */
import { add, at, clamp, meanOf } from '../numeric.js';
import type { Track } from '../track.js';
import type { Forecaster } from './forecaster.js';

const ALPHAS = [0.01, 0.05, 0.2] as const;
const GAMMAS = [0.03, 0.1, 0.25] as const;
const RHOS = [0, 0.6, 0.9] as const;
const BETA = 0.001;
const PHI = 0.98;
/** Errors beyond this many times the usual one count as this: an outage must not teach the season. */
const ERROR_MAX = 4;
const WEEKS_MAX = 26;

interface Parameters {
  readonly alpha: number;
  readonly gamma: number;
  readonly rho: number;
}

class Smoother {
  readonly #parameters: Parameters;
  readonly #season: Float64Array;
  #level: number;
  #trend = 0;
  #error = 0;
  #usual = 0.1;
  #next: number;

  /** Starts at `first`, with the seasonal pattern of the period that ends there. */
  constructor(track: Track, first: number, period: number, parameters: Parameters) {
    this.#parameters = parameters;
    const start = track.levels.slice(first - period, first);
    this.#level = meanOf(start);
    this.#season = new Float64Array(period);
    for (let index = 0; index < period; index++) {
      this.#season[(first + index) % period] = at(start, index) - this.#level;
    }
    this.#next = first;
  }

  catchUp(track: Track): void {
    while (this.#next < track.length) this.step(track);
  }

  step(track: Track): void {
    const { alpha, gamma, rho } = this.#parameters;
    const slot = this.#next % this.#season.length;
    const damped = PHI * this.#trend;
    const actual = at(track.levels, this.#next);
    const raw = actual - (this.#level + damped + at(this.#season, slot));
    const own = raw - rho * this.#error;
    const bounded = clamp(own, -ERROR_MAX * this.#usual, ERROR_MAX * this.#usual);
    this.#usual = Math.max(
      1e-3,
      this.#usual + 0.02 * (Math.min(Math.abs(own), 3 * this.#usual) - this.#usual),
    );
    this.#level += damped + alpha * bounded;
    this.#trend = damped + BETA * alpha * bounded;
    add(this.#season, slot, gamma * bounded);
    this.#error = raw;
    this.#next += 1;
  }

  forecast(horizon: number): number {
    const { rho } = this.#parameters;
    const slot = (this.#next - 1 + horizon) % this.#season.length;
    const trend = (this.#trend * PHI * (1 - PHI ** horizon)) / (1 - PHI);
    return Math.max(0, this.#level + trend + at(this.#season, slot) + rho ** horizon * this.#error);
  }
}

function search(
  track: Track,
  first: number,
  period: number,
  horizons: readonly number[],
): readonly Parameters[] {
  const best = horizons.map(() => ({ error: Number.POSITIVE_INFINITY, alpha: 0.05, gamma: 0.1, rho: 0.6 }));
  const judged = Math.floor((first + track.length) / 2);
  for (const alpha of ALPHAS) {
    for (const gamma of GAMMAS) {
      for (const rho of RHOS) {
        const errors = errorsOf(
          track,
          new Smoother(track, first, period, { alpha, gamma, rho }),
          first,
          judged,
          horizons,
        );
        for (const [index, own] of best.entries()) {
          const error = at(errors, index);
          if (error < own.error) best[index] = { error, alpha, gamma, rho };
        }
      }
    }
  }
  return best;
}

function errorsOf(
  track: Track,
  smoother: Smoother,
  first: number,
  judged: number,
  horizons: readonly number[],
): Float64Array {
  const errors = new Float64Array(horizons.length);
  for (let index = first; index < track.length; index++) {
    smoother.step(track);
    if (index < judged) continue;
    for (const [h, horizon] of horizons.entries()) {
      const target = index + horizon;
      if (target < track.length)
        add(errors, h, Math.abs(smoother.forecast(horizon) - at(track.levels, target)));
    }
  }
  return errors;
}

export const holtWinters: Forecaster = {
  name: 'holt-winters',
  stepsMin: (track) => track.perDay * 3,
  fit(track, horizons) {
    const period = track.length >= 3 * track.perWeek ? track.perWeek : track.perDay;
    const first = Math.max(0, track.length - WEEKS_MAX * track.perWeek) + period;
    const sorted = [...new Set(horizons)].sort((a, b) => a - b);
    const found = search(track, first, period, sorted);
    const anchors = sorted.map((horizon, index) => {
      const smoother = new Smoother(
        track,
        first,
        period,
        found[index] ?? { alpha: 0.05, gamma: 0.1, rho: 0.6 },
      );
      smoother.catchUp(track);
      return { horizon, smoother };
    });
    return {
      forecast(_known, asked, out) {
        for (const [index, horizon] of asked.entries()) {
          const anchor = anchors.find((one) => one.horizon >= horizon) ?? anchors.at(-1);
          out[index] = anchor?.smoother.forecast(horizon) ?? 0;
        }
      },
      update(known) {
        for (const { smoother } of anchors) smoother.catchUp(known);
      },
    };
  },
};
