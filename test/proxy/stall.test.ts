import { expect, test } from 'vitest';
import { stallReport } from '../../src/proxy/stall.js';

test('nothing held', () => {
  expect(stallReport([])).toEqual({ held: 0, p50: 0, p99: 0, max: 0, histogram: [] });
});

test('percentiles by nearest rank, and every sample in one bucket', () => {
  const report = stallReport([0.5, 3, 3, 40, 12_345.6]);
  expect(report).toMatchObject({ held: 5, p50: 3, p99: 12_345.6, max: 12_345.6 });
  expect(report.histogram.filter(({ count }) => count > 0)).toEqual([
    { upToMs: 1, count: 1 },
    { upToMs: 5, count: 2 },
    { upToMs: 50, count: 1 },
    { upToMs: 12_346, count: 1 },
  ]);
  expect(report.histogram.map(({ upToMs }) => upToMs)).toEqual(
    report.histogram.map(({ upToMs }) => upToMs).toSorted((a, b) => a - b),
  );
});

test('a wait on a bound belongs to that bound’s bucket', () => {
  expect(stallReport([10]).histogram.at(-1)).toEqual({ upToMs: 10, count: 1 });
});
