import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { ChangeDetector } from '../../src/predict/change-point.js';
import { ConformalBand } from '../../src/predict/conformal.js';
import { Ensemble, ENSEMBLE_DEFAULTS, type EnsembleOptions } from '../../src/predict/ensemble.js';
import type { Forecaster } from '../../src/predict/forecasters/forecaster.js';
import { WeightedMiddle } from '../../src/predict/numeric.js';
import { normal, seededRandom } from '../../src/predict/random.js';
import { LINEAR_MEMBERS as MEMBERS, noisyWeekly, trackOf } from './patterns.js';

const OPTIONS: EnsembleOptions = { ...ENSEMBLE_DEFAULTS, horizons: [1, 24], members: MEMBERS };

/** Says a tenth of what it should. */
const bad: Forecaster = {
  name: 'bad',
  stepsMin: () => 1,
  fit: () => ({
    forecast(track, horizons, out) {
      for (const index of horizons.keys()) out[index] = (track.levels[track.length - 1] ?? 0) - 2.3;
    },
    update() {},
  }),
};

test('the middle of weighted values leaves the outer quarters out, whatever the order', () => {
  const middle = (pairs: readonly (readonly [number, number])[]): number | undefined => {
    const made = new WeightedMiddle(pairs.length, 0.25);
    for (const [value, weight] of pairs) made.add(value, weight);
    return made.mean();
  };
  expect(middle([])).toBeUndefined();
  expect(middle([[3, 0]])).toBeUndefined();
  expect(middle([[3, 0.1]])).toBe(3);
  expect(
    middle([
      [1e9, 0.25],
      [2, 0.5],
      [-1e9, 0.25],
    ]),
  ).toBe(2);
  // Half of what the first has lies outside.
  expect(
    middle([
      [9, 0.5],
      [1, 0.5],
    ]),
  ).toBe(5);
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.integer({ min: -99, max: 99 }), fc.integer({ min: 1, max: 9 })), {
        minLength: 1,
        maxLength: 9,
      }),
      (pairs) => {
        // As if each value stood as often as it weighs, four times over so that quarters are whole.
        const all = pairs
          .flatMap(([value, weight]) => Array.from({ length: 4 * weight }, () => value))
          .sort((a, b) => a - b);
        const inner = all.slice(all.length / 4, (3 * all.length) / 4);
        expect(middle(pairs)).toBeCloseTo(inner.reduce((sum, value) => sum + value, 0) / inner.length);
      },
    ),
  );
});

describe('the ensemble', () => {
  test('gives no weight to a member that does not beat the better seasonal naive', () => {
    const ensemble = new Ensemble(trackOf(8 * 168, noisyWeekly(8 * 168, 1)), {
      ...OPTIONS,
      members: [...MEMBERS, bad],
    });
    const weights = ensemble.weights(0);
    expect(weights['bad']).toBe(0);
    expect(weights['naive-day']).toBe(0);
    expect((weights['ridge'] ?? 0) + (weights['spar'] ?? 0)).toBeGreaterThan(0.5);
    expect(Object.values(weights).reduce((sum, one) => sum + one, 0)).toBeCloseTo(1);
  });

  test('holds nine of ten targets in its 90 % interval, on series it has not seen', () => {
    let inside = 0;
    let targets = 0;
    for (const seed of [11, 12]) {
      const length = 11 * 168;
      const count = noisyWeekly(length, seed, 0.3);
      const track = trackOf(length, count).view(8 * 168);
      const ensemble = new Ensemble(track, OPTIONS);
      do {
        const [fan] = ensemble.forecast([1]);
        const target = track.length;
        if (target >= length || fan === undefined) break;
        if (count(target) >= fan.low && count(target) <= fan.high) inside += 1;
        targets += 1;
        track.advance();
        ensemble.observe();
      } while (track.length < length);
    }
    expect(inside / targets).toBeGreaterThan(0.86);
    expect(inside / targets).toBeLessThan(0.94);
  });

  test('raises an alarm when the load doubles for good, and widens its interval', () => {
    const length = 10 * 168;
    const count = noisyWeekly(length, 5);
    const track = trackOf(length, (index) => count(index) * (index >= 9 * 168 ? 3 : 1)).view(9 * 168);
    const ensemble = new Ensemble(track, OPTIONS);
    const before = ensemble.alarms.length;
    const width = (): number => {
      const [fan] = ensemble.forecast([24]);
      return fan === undefined ? 0 : Math.log((fan.high + 1) / (fan.low + 1));
    };
    const calm = width();
    for (let step = 0; step < 30 && track.advance(); step++) ensemble.observe();
    expect(ensemble.alarms.length).toBeGreaterThan(before);
    expect(ensemble.alarms.at(-1)).toMatchObject({ direction: 'up' });
    expect(width()).toBeGreaterThan(calm);
  });

  test('never says NaN: of an empty, single-point, short, flat, gappy or wild series', () => {
    fc.assert(
      fc.property(
        fc.array(
          fc.option(fc.oneof(fc.constant(0), fc.constant(7), fc.nat(1_000_000_000)), { nil: undefined }),
          {
            maxLength: 80,
          },
        ),
        fc.integer({ min: 1, max: 12 }),
        (counts, repeats) => {
          const all = Array.from({ length: repeats }, () => counts).flat();
          const track = trackOf(all.length, (index) => all[index]);
          const ensemble = new Ensemble(track, OPTIONS);
          track.push(3);
          ensemble.observe();
          for (const fan of ensemble.forecast([1, 2, 24, 100])) {
            for (const value of [fan.low, fan.median, fan.high]) expect(Number.isFinite(value)).toBe(true);
            expect(fan.low).toBeGreaterThanOrEqual(0);
            expect(fan.low).toBeLessThanOrEqual(fan.median);
            expect(fan.median).toBeLessThanOrEqual(fan.high);
          }
        },
      ),
      { numRuns: 40 },
    );
  });
});

test('a conformal band finds its coverage again after errors have trebled', () => {
  const random = seededRandom(2);
  const band = new ConformalBand(0.9, 24);
  let hits = 0;
  for (let index = 0; index < 3000; index++) {
    const error = (index < 1000 ? 1 : 3) * 0.1 * normal(random);
    const offsets = band.offsets(index % 24, 24);
    if (index >= 1200 && error >= offsets[0] && error <= offsets[1]) hits += 1;
    band.add(error, offsets, index % 24, 24);
  }
  expect(hits / 1800).toBeGreaterThan(0.87);
  expect(hits / 1800).toBeLessThan(0.93);
});

test('the change detector stays calm on noise and on one wild bucket, and names the bucket a shift began', () => {
  const random = seededRandom(4);
  const detector = new ChangeDetector();
  for (let index = 0; index < 2000; index++) {
    expect(detector.add(index === 700 ? 50 : normal(random), index)).toBeUndefined();
  }
  let alarm;
  for (let index = 2000; alarm === undefined && index < 2100; index++)
    alarm = detector.add(2 + normal(random), index);
  expect(alarm?.direction).toBe('up');
  expect(Math.abs((alarm?.since ?? 0) - 2000)).toBeLessThan(8);
});
