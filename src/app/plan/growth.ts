/** What tables measured over time → how fast a subset grows. */
import { growthCurve } from '../../predict/curves.js';
import type { Judgement } from '../../predict/judgement.js';
import { isCount } from '../../predict/numeric.js';
import { DAY_MS } from '../../predict/series.js';

/** What each table measured at one time, bytes with indexes. */
export interface SizesAt {
  readonly atMs: number;
  readonly bytes: ReadonlyMap<string, number>;
}

/** Fewer say nothing of growth. */
const POINTS_MIN = 5;

/**
 * Bytes a day, by the line through what the tables together measured; undefined where too little was measured. Its ends are the
 * slopes that the spread around the line over the time that was measured leaves open.
 */
export function growthOf(
  sizes: readonly SizesAt[],
  tables: readonly string[],
  nowMs: number,
): Judgement | undefined {
  const points = sizes
    .filter(({ atMs, bytes }) => atMs <= nowMs && [atMs, ...bytes.values()].every(isCount))
    .map(({ atMs, bytes }) => ({
      x: atMs,
      y: tables.reduce((sum, table) => sum + (bytes.get(table) ?? 0), 0),
    }));
  const [first, last] = [points[0], points.at(-1)];
  if (first === undefined || last === undefined || points.length < POINTS_MIN || last.x <= first.x)
    return undefined;
  const curve = growthCurve(points);
  const days = (last.x - first.x) / DAY_MS;
  const [from, until] = [curve.at(first.x), curve.at(last.x)];
  const value = (until.value - from.value) / days;
  return {
    value,
    low: value - (until.value - until.low + (from.high - from.value)) / days,
    high: value + (until.high - until.value + (from.value - from.low)) / days,
    terms: { measurements: points.length, days },
    confidence: until.confidence,
    reason: `Bytes a day, by ${points.length} measurements over ${days < 2 ? `${(days * 24).toFixed(0)} h` : `${days.toFixed(0)} days`}.`,
  };
}
