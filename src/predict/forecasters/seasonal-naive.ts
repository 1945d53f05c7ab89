import { at } from '../numeric.js';
import type { Track } from '../track.js';
import type { ForecastModel, Forecaster } from './forecaster.js';

/**
 * The value one season ago: `ŷ(t) = y(t − kT)`, with the smallest k whose bucket is known. The baseline that every
 * other member must beat (Hyndman & Athanasopoulos, Forecasting: Principles and Practice, §5.2).
 */
export function seasonalNaive(season: 'day' | 'week'): Forecaster {
  const period = (track: Track): number => (season === 'day' ? track.perDay : track.perWeek);
  const model: ForecastModel = {
    forecast(track, horizons, out) {
      const last = track.length - 1;
      const steps = period(track);
      for (const [index, horizon] of horizons.entries()) {
        const from = last + horizon - Math.ceil(horizon / steps) * steps;
        out[index] = from >= 0 ? at(track.levels, from) : last >= 0 ? at(track.levels, last) : 0;
      }
    },
    update() {},
  };
  return {
    name: season === 'day' ? 'naive-day' : 'naive-week',
    stepsMin: (track) => period(track),
    fit: () => model,
  };
}
