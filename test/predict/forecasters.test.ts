import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { Forecaster } from '../../src/predict/forecasters/forecaster.js';
import { holtWinters } from '../../src/predict/forecasters/holt-winters.js';
import { kernel } from '../../src/predict/forecasters/kernel.js';
import { markov } from '../../src/predict/forecasters/markov.js';
import { noisyWeekly, QUICK_MEMBERS as MEMBERS, trackOf, weekly } from './patterns.js';

const HORIZONS = [1, 24, 168];

function forecastOf(
  member: Forecaster,
  length: number,
  count: (index: number) => number | undefined,
): number[] {
  const track = trackOf(length, count);
  const model = member.fit(track, HORIZONS);
  const out = new Float64Array(HORIZONS.length);
  model.forecast(track, HORIZONS, out);
  return [...out].map((level) => Math.expm1(level));
}

describe.each(MEMBERS.map((member) => [member.name, member] as const))('%s', (name, member) => {
  // A day's naive has no week; the chain knows a few levels and the hour, and is for loads that have no better law.
  test.skipIf(name === 'naive-day' || name === 'markov')(
    'continues a weekly pattern it has seen eight times',
    () => {
      const length = 8 * 168 + 13;
      const got = forecastOf(member, length, weekly);
      for (const [index, horizon] of HORIZONS.entries()) {
        const actual = weekly(length - 1 + horizon);
        expect(Math.abs((got[index] ?? 0) - actual) / actual).toBeLessThan(0.08);
      }
    },
  );

  test('says the constant of a constant series and zero of an idle one', () => {
    for (const constant of [0, 1, 5000]) {
      for (const value of forecastOf(member, 8 * 168, () => constant)) {
        expect(Math.abs(value - constant)).toBeLessThanOrEqual(0.02 * constant + 1e-3);
      }
    }
  });

  test('is fitted to nothing after the track it is given', () => {
    const count = noisyWeekly(1600, 3);
    const whole = trackOf(1600, count).view(1344);
    const prefix = trackOf(1344, count);
    const say = (track: typeof whole): number[] => {
      const out = new Float64Array(3);
      member.fit(track, HORIZONS).forecast(track, HORIZONS, out);
      return [...out];
    };
    expect(say(whole)).toEqual(say(prefix));
  });

  test('updated bucket by bucket, stays finite on whatever comes', () => {
    fc.assert(
      fc.property(
        fc.array(fc.option(fc.oneof(fc.nat(3), fc.nat(2_000_000_000)), { nil: undefined }), {
          maxLength: 30,
        }),
        fc.integer({ min: 0, max: 900 }),
        (later, extra) => {
          const track = trackOf(
            member.stepsMin(
              trackOf(0, () => 0),
              [1, 24],
            ) + extra,
            (index) => (index % 7 === 3 ? undefined : weekly(index)),
          );
          const model = member.fit(track, [1, 24]);
          const out = new Float64Array(4);
          for (const count of later) {
            track.push(count);
            model.update(track);
            model.forecast(track, [1, 5, 24, 200], out);
            for (const level of out) {
              expect(Number.isFinite(level)).toBe(true);
              expect(level).toBeGreaterThanOrEqual(0);
            }
          }
        },
      ),
      { numRuns: 12 },
    );
  });
});

test('ridge and SPAR follow a wandering level where the seasonal naive repeats last week', () => {
  const length = 12 * 168;
  const count = noisyWeekly(length, 7, 0.3);
  const errors = new Map<string, number>();
  for (const member of MEMBERS) {
    const track = trackOf(length, count).view(9 * 168);
    const model = member.fit(track, [1]);
    const out = new Float64Array(1);
    let error = 0;
    while (track.length < length) {
      model.forecast(track, [1], out);
      track.advance();
      model.update(track);
      error += Math.abs((out[0] ?? 0) - (track.levels[track.length - 1] ?? 0));
    }
    errors.set(member.name, error);
  }
  const naive = errors.get('naive-week') ?? 0;
  expect(errors.get('ridge')).toBeLessThan(0.6 * naive);
  expect(errors.get('spar')).toBeLessThan(0.6 * naive);
});

describe('members with a purpose of their own', () => {
  test('Holt–Winters follows a growing series and damps the growth', () => {
    const length = 8 * 168;
    const growing = (index: number): number => weekly(index) * Math.exp(0.0008 * index);
    const [near = 0] = forecastOf(holtWinters, length, growing);
    expect(near / growing(length)).toBeGreaterThan(0.9);
    expect(near / growing(length)).toBeLessThan(1.07);
  });

  test('kernel regression knows the spike that follows a rare kind of day', () => {
    // Every tenth day has a morning three times as busy, and its evening spikes to twenty times.
    const rare = (index: number): number => {
      const special = Math.floor(index / 24) % 10 === 9;
      const hour = index % 24;
      if (special && hour === 20) return 2000;
      return special && hour < 12 ? 300 : 100;
    };
    const at19 = (day: number): number => day * 24 + 20;
    const spike = forecastOf(kernel, at19(59), rare)[0] ?? 0;
    const calm = forecastOf(kernel, at19(58), rare)[0] ?? 0;
    expect(spike).toBeGreaterThan(1500);
    expect(calm).toBeLessThan(200);
  });

  test('the Markov chain says zero of a subset that is mostly idle, and the burst while it lasts', () => {
    // A batch job: busy at 2 and 3 in the morning on one day of three.
    const batch = (index: number): number =>
      Math.floor(index / 24) % 3 === 0 && (index % 24 === 2 || index % 24 === 3) ? 900 : 0;
    const idle = forecastOf(markov, 61 * 24 + 12, batch);
    expect(idle).toEqual([0, 0, 0]);
    const during = forecastOf(markov, 60 * 24 + 3, batch)[0] ?? 0;
    expect(during).toBeGreaterThan(400);
  });
});
