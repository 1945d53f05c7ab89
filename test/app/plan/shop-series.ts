/** Batches of series as `import-log` and the live capture make them, of a shop whose week is known. */
import type { SeriesBatch, SeriesPoint } from '../../../src/core/capture-ports.js';
import { HOUR_MS } from '../../../src/predict/series.js';

/** A Monday. */
export const START_MS = Date.UTC(2026, 0, 5);

export function emptyBatch(id: string): SeriesBatch {
  return {
    id,
    writer: 'test',
    points: [],
    intervals: [],
    coAccess: [],
    transitions: [],
    statements: [],
    transactionDurations: [],
    hotKeys: [],
  };
}

export function point(
  table: string,
  startMs: number,
  reads: number,
  writes: number,
): SeriesPoint & { readonly table: string } {
  return {
    table,
    startMs,
    reads,
    writes,
    errors: 0,
    rowsRead: reads,
    rowsWritten: writes,
    bytesToServer: 0,
    bytesToClient: 0,
    durationMicros: 1000 * (reads + writes),
  };
}

export function interval(
  startMs: number,
  statements: number,
  observedMs = HOUR_MS,
): SeriesBatch['intervals'][number] {
  return {
    startMs,
    observedMs,
    statements,
    errors: 0,
    dropped: 0,
    unparsed: 0,
    committed: Math.round(statements / 2),
    rolledBack: 0,
  };
}

/** Busy from 8 to 20, quietest at 3; a weekend at a third. */
export function shopLoad(hour: number): number {
  const ofDay = hour % 24;
  const day = Math.floor(hour / 24) % 7;
  const daily = ofDay >= 8 && ofDay < 20 ? 1 : ofDay === 3 ? 0.02 : 0.1;
  return daily * (day >= 5 ? 0.33 : 1);
}

/** Orders and their lines are used together, the catalog beside them; audit on its own. */
export function shopBatch(hours: number): SeriesBatch {
  const points: (SeriesPoint & { readonly table: string })[] = [];
  const intervals: SeriesBatch['intervals'][number][] = [];
  for (let hour = 0; hour < hours; hour++) {
    const atMs = START_MS + hour * HOUR_MS;
    const load = shopLoad(hour);
    points.push(point('public.orders', atMs, Math.round(9000 * load), Math.round(3000 * load)));
    points.push(point('public.lines', atMs, Math.round(4000 * load), Math.round(6000 * load)));
    points.push(point('public.articles', atMs, Math.round(20_000 * load), 1));
    points.push(point('public.audit', atMs, 0, Math.round(500 * load)));
    intervals.push(interval(atMs, Math.round(42_500 * load)));
  }
  const asOfMs = START_MS + hours * HOUR_MS;
  const pair = (a: string, b: string, transactions: number): SeriesBatch['coAccess'][number] => ({
    a,
    b,
    transactions,
    weight: transactions,
    asOfMs,
  });
  return {
    ...emptyBatch('shop/0'),
    points,
    intervals,
    coAccess: [
      pair('public.lines', 'public.lines', 8000),
      pair('public.orders', 'public.orders', 10_000),
      pair('public.lines', 'public.orders', 7500),
      pair('public.articles', 'public.articles', 20_000),
      pair('public.articles', 'public.lines', 100),
      pair('public.audit', 'public.audit', 500),
    ],
    transactionDurations: [
      { hourOfWeek: 10, upToMicros: 4_000, weight: 900, asOfMs },
      { hourOfWeek: 10, upToMicros: 60_000, weight: 90, asOfMs },
      { hourOfWeek: 3, upToMicros: 900_000, weight: 10, asOfMs },
    ],
  };
}
