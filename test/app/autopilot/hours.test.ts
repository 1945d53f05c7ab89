import { expect, test } from 'vitest';
import { AllowedHours } from '../../../src/app/autopilot/hours.js';

/** 2026-03-02 was a Monday. */
const at = (day: number, hour: number, minute = 0): number => Date.UTC(2026, 2, 1 + day, hour, minute);
const allows = (text: string, ms: number, zone = 'UTC'): boolean => AllowedHours.parse(text, zone).allows(ms);

test('no text allows all, days allow their hours, times allow theirs of every day', () => {
  expect(allows('', at(1, 12))).toBe(true);
  expect(allows(' , ', at(1, 12))).toBe(true);
  expect(allows('Sun', at(7, 23, 59))).toBe(true);
  expect(allows('Sun', at(1, 0))).toBe(false);
  expect(allows('01:00-05:00', at(3, 4, 59))).toBe(true);
  expect(allows('01:00-05:00', at(3, 5))).toBe(false);
});

test('ranges of days go over the week’s end, times over midnight', () => {
  expect(allows('Sat-Mon 02:00-03:00', at(1, 2))).toBe(true);
  expect(allows('Sat-Mon 02:00-03:00', at(2, 2))).toBe(false);
  // Friday's night reaches into Saturday.
  expect(allows('Mon-Fri 22:00-04:00', at(6, 3, 59))).toBe(true);
  expect(allows('Mon-Fri 22:00-04:00', at(1, 3))).toBe(false);
  expect(allows('Mon 00:00-24:00, friday', at(5, 7))).toBe(true);
});

test('hours are those of the zone', () => {
  expect(allows('Mon 00:00-01:00', Date.UTC(2026, 2, 1, 23, 30), 'Europe/Berlin')).toBe(true);
});

test('what can’t be read is refused by name', () => {
  for (const text of [
    'always',
    'Mon-',
    '25:00-26:00',
    '01:00',
    'Mon 1-2',
    'Xyz',
    '24:00-01:00',
    '01:99-02:00',
  ])
    expect(() => AllowedHours.parse(text, 'UTC'), text).toThrow('is no span of hours');
  expect(() => AllowedHours.parse('', 'Mars/Base')).toThrow('Mars/Base');
});
