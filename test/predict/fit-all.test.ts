import { expect, test } from 'vitest';
import { fitAll } from '../../src/predict/fit-all.js';
import { noisyWeekly, trackOf } from './patterns.js';

test('fits many subsets in steps, with one network trained on pasts that the ensembles then judge', () => {
  const counts = [1, 2].map((seed) => noisyWeekly(5 * 168, seed));
  const tracks = [
    ...counts.map((count) => trackOf(5 * 168, count)),
    trackOf(3, () => 7),
    trackOf(0, () => 0),
  ];
  const fitting = fitAll(tracks, { horizons: [1, 24], passes: 1, stepsMax: 200, seed: 1 });
  let steps = 0;
  let step = fitting.next();
  for (; step.done !== true; step = fitting.next()) steps += 1;
  expect(steps).toBeGreaterThan(tracks.length);
  const ensembles = step.value;
  for (const index of counts.keys()) {
    const [fan] = ensembles[index]?.forecast([24]) ?? [];
    expect(fan?.median).toBeGreaterThan(0);
    expect(Object.keys(ensembles[index]?.weights(0) ?? {})).toContain('lstm');
  }
  expect(ensembles[2]?.forecast([1])[0]?.median).toBeCloseTo(7);
  expect(ensembles[3]?.forecast([1])[0]).toMatchObject({ median: 0, low: 0 });
});
