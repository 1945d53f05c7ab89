/** Reads the series of the bench's data folder. Their times carry no zone; each is read as if it were UTC. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parse } from 'csv-parse/sync';
import { buildSeries, type Series } from '../../src/predict/series.js';

export function readSeries(folder: string, name: string, stepMs: number, combine: 'sum' | 'mean'): Series {
  const rows = parse<{ timestamp: string; value: string }>(
    readFileSync(join(folder, 'series', name), 'utf8'),
    {
      columns: true,
    },
  );
  const samples = rows.map(({ timestamp, value }) => ({
    atMs: Date.parse(`${timestamp.replace(' ', 'T')}Z`),
    value: Number(value),
  }));
  return buildSeries(samples, { stepMs, combine }).series;
}
