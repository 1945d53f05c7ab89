import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { UnderstudyError } from '../../src/core/errors.js';
import { localIndex, slotOfWeek, toLocal, zoneOffset } from '../../src/predict/local-time.js';
import { buildSeries, DAY_MS, HOUR_MS, MINUTE_MS, rollUp } from '../../src/predict/series.js';
import { Track } from '../../src/predict/track.js';

const MONDAY = Date.UTC(2026, 2, 23);

describe('buckets', () => {
  test('add counts up, in any order of samples, and a bucket without one is missing rather than zero', () => {
    const { series, notes } = buildSeries(
      [
        { atMs: MONDAY + 150_000, value: 2 },
        { atMs: MONDAY, value: 1 },
        { atMs: MONDAY + 20_000, value: 4 },
      ],
      { stepMs: MINUTE_MS },
    );
    expect([...series.values]).toEqual([5, 0, 2]);
    expect([...series.missing]).toEqual([0, 1, 0]);
    expect(notes).toEqual(['The clock went back 1 times; samples were put in order of time.']);
  });

  test.each([-1, Number.NaN, Number.POSITIVE_INFINITY])('refuse the count %s by name', (value) => {
    const build = (): unknown => buildSeries([{ atMs: MONDAY, value }], { stepMs: MINUTE_MS });
    expect(build).toThrow(UnderstudyError);
    expect(build).toThrow(`sample 0 has the value ${value}`);
  });

  test('leave out what a wild clock wrote years away, and say so', () => {
    const near = Array.from({ length: 50 }, (_, index) => ({ atMs: MONDAY + index * HOUR_MS, value: 1 }));
    const { series, notes } = buildSeries([{ atMs: 0, value: 9 }, ...near], { stepMs: HOUR_MS });
    expect(series.values).toHaveLength(50);
    expect(notes.join()).toContain('1 sample beyond a silence');
  });

  test('leave out samples from the future', () => {
    const { series, notes } = buildSeries(
      [
        { atMs: MONDAY, value: 1 },
        { atMs: MONDAY + DAY_MS, value: 7 },
      ],
      { stepMs: HOUR_MS, nowMs: MONDAY + HOUR_MS },
    );
    expect([...series.values]).toEqual([1]);
    expect(notes.join()).toContain('a clock ran ahead');
  });

  test('of no samples are an empty series', () => {
    expect(buildSeries([], { stepMs: HOUR_MS }).series.values).toHaveLength(0);
  });

  test('rolled up, align to the larger step, scale up what is half known and keep the rest missing', () => {
    const { series } = buildSeries(
      [1, 3, 4, 5].map((minute) => ({ atMs: MONDAY + minute * MINUTE_MS, value: 10 })),
      { stepMs: MINUTE_MS },
    );
    const rolled = rollUp(series, 3);
    expect(rolled.startMs).toBe(MONDAY);
    expect([...rolled.missing]).toEqual([1, 0]);
    expect(rolled.values[1]).toBe(30);
  });
});

describe('the wall clock', () => {
  const berlin = zoneOffset('Europe/Berlin');

  test('of a zone that is not known is an error', () => {
    expect(() => zoneOffset('Europe/Atlantis')).toThrow('There is no time zone Europe/Atlantis.');
  });

  test('leaves an hour missing in spring and keeps every later day at 24 hours', () => {
    const startMs = Date.UTC(2026, 2, 27, 23);
    const counts = Array.from({ length: 72 }, (_, hour) => ({
      atMs: startMs + hour * HOUR_MS,
      value: hour + 1,
    }));
    const local = toLocal(buildSeries(counts, { stepMs: HOUR_MS }).series, berlin);
    expect(local.values).toHaveLength(73);
    expect([...local.missing].filter((one) => one === 1)).toHaveLength(1);
    expect(local.missing[26]).toBe(1);
    expect(localIndex(local, startMs + 71 * HOUR_MS)).toBe(72);
  });

  test('takes the mean of the hour that autumn repeats', () => {
    const startMs = Date.UTC(2026, 9, 24, 22);
    const counts = Array.from({ length: 48 }, (_, hour) => ({
      atMs: startMs + hour * HOUR_MS,
      value: 100 + hour,
    }));
    const local = toLocal(buildSeries(counts, { stepMs: HOUR_MS }).series, berlin);
    expect(local.values).toHaveLength(47);
    expect(local.values[2]).toBe(102.5);
    expect(local.values[3]).toBe(104);
  });

  test('begins the week on Monday', () => {
    expect(slotOfWeek(MONDAY, HOUR_MS)).toBe(0);
    expect(slotOfWeek(MONDAY - HOUR_MS, HOUR_MS)).toBe(167);
  });
});

test('a view of a track never shows more than was known, and gaps are filled from the past alone', () => {
  fc.assert(
    fc.property(
      fc.array(fc.option(fc.nat(1000), { nil: undefined }), { maxLength: 60 }),
      fc.nat(60),
      (counts, cut) => {
        const build = (upTo: number): Track => {
          const track = Track.empty(4, 0);
          for (const count of counts.slice(0, upTo)) track.push(count);
          return track;
        };
        const whole = build(counts.length).view(cut);
        const prefix = build(cut);
        expect([...whole.levels.subarray(0, whole.length)]).toEqual([
          ...prefix.levels.subarray(0, prefix.length),
        ]);
      },
    ),
  );
});
