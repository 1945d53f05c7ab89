import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { Forecaster } from '../../src/predict/forecasters/forecaster.js';
import { MEMBERS } from '../../src/predict/members.js';
import { noisyWeekly, trackOf, weekly } from './patterns.js';

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
  test.skipIf(name === 'naive-day')('continues a weekly pattern it has seen eight times', () => {
    const length = 8 * 168 + 13;
    const got = forecastOf(member, length, weekly);
    for (const [index, horizon] of HORIZONS.entries()) {
      const actual = weekly(length - 1 + horizon);
      expect(Math.abs((got[index] ?? 0) - actual) / actual).toBeLessThan(0.08);
    }
  });

  test('says the constant of a constant series and zero of an idle one', () => {
    for (const constant of [0, 1, 5000]) {
      for (const value of forecastOf(member, 8 * 168, () => constant)) {
        expect(Math.abs(value - constant)).toBeLessThanOrEqual(0.02 * constant + 1e-6);
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
