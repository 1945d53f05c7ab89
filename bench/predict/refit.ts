/** What a full refit costs: 200 subsets with eight weeks of hours each, on one core. */
import { fitAll } from '../../src/predict/fit-all.js';
import { normal, seededRandom } from '../../src/predict/random.js';
import { Track } from '../../src/predict/track.js';

export const REFIT_AIM_SECONDS = 30;

export interface RefitResult {
  readonly subsets: number;
  readonly hours: number;
  readonly seconds: number;
  /** Processor time, which a busy machine doesn't stretch. */
  readonly cpuSeconds: number;
}

export function benchRefit(subsets: number): RefitResult {
  const hours = 8 * 168;
  const tracks = Array.from({ length: subsets }, (_, subset) => subsetTrack(subset, hours));
  const started = performance.now();
  const cpu = process.cpuUsage();
  const fitting = fitAll(tracks);
  while (fitting.next().done !== true);
  const used = process.cpuUsage(cpu);
  return {
    subsets,
    hours,
    seconds: (performance.now() - started) / 1000,
    cpuSeconds: (used.user + used.system) / 1e6,
  };
}

/** Busy ones, idle ones, nightly jobs: four kinds in turn. */
function subsetTrack(subset: number, hours: number): Track {
  const random = seededRandom(subset + 1);
  const track = Track.empty(24, 0);
  const peak = 10 ** (1 + 4 * random());
  let wander = 0;
  for (let index = 0; index < hours; index++) {
    wander = 0.9 * wander + 0.1 * normal(random);
    const hour = index % 24;
    const weekend = Math.floor(index / 24) % 7 >= 5 ? 0.5 : 1;
    const day = 1.1 + Math.sin(((hour - 6) / 12) * Math.PI);
    const rate = subset % 4 === 3 ? (hour === 2 ? peak : 0) : peak * weekend * day * Math.exp(wander);
    track.push(Math.max(0, Math.round(rate + Math.sqrt(rate) * normal(random))));
  }
  return track;
}
