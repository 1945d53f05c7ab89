import { expect, test } from 'vitest';
import { LogTime } from '../../../src/capture/import/log-time.js';

const iso = (ms: number): string => new Date(ms).toISOString();

test('abbreviations, offsets and ISO times', () => {
  const time = new LogTime(undefined);
  for (const [text, utc] of [
    ['2026-01-15 12:00:00 UTC', '2026-01-15T12:00:00.000Z'],
    ['2026-01-15 12:00:00.120 CET', '2026-01-15T11:00:00.120Z'],
    ['2026-07-15 12:00:00.120 CEST', '2026-07-15T10:00:00.120Z'],
    ['2026-01-15 12:00:00.005 +0530', '2026-01-15T06:30:00.005Z'],
    ['2026-01-15 12:00:00 -03', '2026-01-15T15:00:00.000Z'],
    ['2026-01-15 12:00:00 EST', '2026-01-15T17:00:00.000Z'],
    ['2026-01-15T12:00:00.123456Z', '2026-01-15T12:00:00.123Z'],
    ['2026-01-15T12:00:00+02:00', '2026-01-15T10:00:00.000Z'],
  ] as const)
    expect([text, iso(time.parse(text))]).toEqual([text, utc]);
  expect(time.assumptions.size).toBe(0);
  expect(time.parse('yesterday')).toBeNaN();
  expect(time.parse('')).toBeNaN();
});

test('an abbreviation of several zones takes the one named, else the commonest, which is said', () => {
  const guessing = new LogTime(undefined);
  expect(iso(guessing.parse('2026-01-15 12:00:00 IST'))).toBe('2026-01-15T06:30:00.000Z');
  expect([...guessing.assumptions.keys()]).toEqual(['IST']);
  const told = new LogTime('Asia/Jerusalem');
  expect(iso(told.parse('2026-01-15 12:00:00 IST'))).toBe('2026-01-15T10:00:00.000Z');
  expect(told.assumptions.size).toBe(0);
  // A number in the text is never overruled.
  expect(iso(told.parse('2026-01-15 12:00:00 +01'))).toBe('2026-01-15T11:00:00.000Z');
});

test('an abbreviation that is not known is refused, with what to do, unless a zone is named', () => {
  expect(() => new LogTime(undefined).parse('2026-01-15 12:00:00 ZZT')).toThrow(/ZZT/);
  expect(iso(new LogTime('+03:00').parse('2026-01-15 12:00:00 ZZT'))).toBe('2026-01-15T09:00:00.000Z');
  expect(() => new LogTime('Mars/Olympus')).toThrow(/no time zone/);
});

test('daylight saving of a named zone: the hour that is missing, and the hour that comes twice', () => {
  const time = new LogTime('Europe/Dublin');
  expect(iso(time.parse('2026-03-29 00:59:59 GMT'))).toBe('2026-03-29T00:59:59.000Z');
  expect(iso(time.parse('2026-03-29 02:00:00 IST'))).toBe('2026-03-29T01:00:00.000Z');
  // In autumn 01:30 comes first as summer time, then again as winter time.
  const walls = ['01:10:00', '01:50:00', '01:10:00', '01:50:00', '02:10:00'];
  const read = walls.map((wall) => iso(time.parse(`2026-10-25 ${wall} XXT`)));
  expect(read).toEqual([
    '2026-10-25T00:10:00.000Z',
    '2026-10-25T00:50:00.000Z',
    '2026-10-25T01:10:00.000Z',
    '2026-10-25T01:50:00.000Z',
    '2026-10-25T02:10:00.000Z',
  ]);
});
