/** Series whose law is known, for forecasters to recover. */
import { lstm, LSTM_DEFAULTS } from '../../src/predict/forecasters/lstm.js';
import { MEMBERS } from '../../src/predict/members.js';
import { normal, seededRandom } from '../../src/predict/random.js';
import { Track } from '../../src/predict/track.js';

export const PER_DAY = 24;

/** The product's members with an LSTM that trains in no time. */
export const QUICK_MEMBERS = MEMBERS.map((member) =>
  member.name === 'lstm' ? lstm({ ...LSTM_DEFAULTS, hidden: 4, epochs: 3, stepsMax: 500 }) : member,
);
/** Those that cost nothing. */
export const LINEAR_MEMBERS = MEMBERS.filter((member) => /naive|ridge|spar|markov/.test(member.name));

/** A day with two humps, weekends at half, as counts. */
export function weekly(index: number): number {
  const hour = index % PER_DAY;
  const weekend = Math.floor(index / PER_DAY) % 7 >= 5 ? 0.5 : 1;
  return (
    weekend * (200 + 150 * Math.sin((hour / 24) * 2 * Math.PI) + 60 * Math.sin((hour / 12) * 2 * Math.PI))
  );
}

export function trackOf(length: number, count: (index: number) => number | undefined): Track {
  const track = Track.empty(PER_DAY, 0);
  for (let index = 0; index < length; index++) track.push(count(index));
  return track;
}

/** The weekly pattern times a slowly wandering factor (AR(1), ρ = 0.9) and a little noise. */
export function noisyWeekly(length: number, seed: number, size = 0.1): (index: number) => number {
  const random = seededRandom(seed);
  const counts = new Float64Array(length);
  let wander = 0;
  for (let index = 0; index < length; index++) {
    wander = 0.9 * wander + size * Math.sqrt(1 - 0.81) * normal(random);
    counts[index] = weekly(index) * Math.exp(wander + 0.2 * size * normal(random));
  }
  return (index) => counts[index] ?? 0;
}
