/**
 * The robust week: the median of the same slot over up to {@link WEEKS} weeks, moved by how far the last day and the
 * last week lay from it, as far as such moves proved to last at that horizon. A holiday or an outage in one week leaves
 * it alone, where the seasonal naive repeats it.
 */
import { at, clamp, medianOf } from '../numeric.js';
import type { Track } from '../track.js';
import { firstSeason } from './deviations.js';
import type { Forecaster } from './forecaster.js';

const WEEKS = 5;
/** Targets that the persistence of a move is estimated on, at most. */
const SAMPLES_MAX = 250;

/** Median level of the slot of `target` over the weeks known at `last`; the nearest day's where there is no week. */
function typical(track: Track, last: number, target: number): number {
  const scratch: number[] = [];
  const period =
    target - track.perWeek * firstSeason(target - last, track.perWeek) >= 0 ? track.perWeek : track.perDay;
  let index = target - firstSeason(Math.max(1, target - last), period) * period;
  for (let season = 0; season < WEEKS && index >= 0; season++, index -= period)
    scratch.push(at(track.levels, index));
  return medianOf(scratch);
}

/** How far each bucket lay from what was typical of it before; kept, for a move reads a day of them. */
class Distances {
  #values = new Float64Array(64);
  #length = 0;

  update(track: Track): void {
    if (track.length > this.#values.length) {
      const values = new Float64Array(track.length * 2);
      values.set(this.#values);
      this.#values = values;
    }
    for (; this.#length < track.length; this.#length++) {
      const index = this.#length;
      this.#values[index] =
        index < track.perDay ? 0 : at(track.levels, index) - typical(track, index - 1, index);
    }
  }

  /** Median over the `steps` buckets that end with `last`. */
  move(last: number, steps: number): number {
    const stride = Math.max(1, Math.floor(steps / 24));
    const moves: number[] = [];
    for (let index = last; index > last - steps && index >= 0; index -= stride)
      moves.push(at(this.#values, index));
    return medianOf(moves);
  }
}

/** Share of a move that was still there `horizon` steps later: least squares through zero, kept in 0…1. */
function persistence(track: Track, distances: Distances, horizon: number, steps: number): number {
  const from = Math.max(track.perWeek + steps, 2 * track.perDay);
  const count = track.length - horizon - from;
  if (count < 24) return 0;
  const stride = Math.max(1, Math.floor(count / SAMPLES_MAX)) | 1;
  let together = 1e-9;
  let own = 1e-6;
  for (let last = from; last + horizon < track.length; last += stride) {
    const moved = clamp(distances.move(last, steps), -1, 1);
    const after = clamp(at(track.levels, last + horizon) - typical(track, last, last + horizon), -1, 1);
    together += moved * after;
    own += moved * moved;
  }
  return clamp(together / own, 0, 1);
}

export const profile: Forecaster = {
  name: 'profile',
  stepsMin: (track) => track.perWeek + track.perDay,
  fit(track, horizons) {
    const distances = new Distances();
    distances.update(track);
    const anchors = [...new Set(horizons)]
      .sort((a, b) => a - b)
      .map((horizon) => ({ horizon, share: persistence(track, distances, horizon, track.perDay) }));
    return {
      forecast(known, asked, out) {
        const last = known.length - 1;
        const moved = distances.move(last, known.perDay);
        for (const [index, horizon] of asked.entries()) {
          const share = (anchors.find((one) => one.horizon >= horizon) ?? anchors.at(-1))?.share ?? 0;
          out[index] = Math.max(0, typical(known, last, last + horizon) + share * moved);
        }
      },
      update: (known) => distances.update(known),
    };
  },
};
