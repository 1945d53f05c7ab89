import { readFile, stat, writeFile, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { SeriesFileWriter, readSeriesFile } from '../../src/app/series-file.js';
import type { SeriesBatch } from '../../src/core/capture-ports.js';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'understudy-series-'));
});
afterAll(() => rm(folder, { recursive: true }));

const HEADER = { writer: 'log:1', createdAt: '2026-03-02T10:00:00.000Z', origin: 'test' };

function batch(id: string): SeriesBatch {
  return {
    id,
    writer: 'log:1',
    points: [],
    intervals: [],
    coAccess: [],
    transitions: [],
    statements: [],
    transactionDurations: [],
    hotKeys: [],
  };
}

async function read(path: string): Promise<readonly string[]> {
  const ids: string[] = [];
  for await (const { id } of readSeriesFile(path)) ids.push(id);
  return ids;
}

test('batches come back in order; the file has its name only when it is whole', async () => {
  const path = join(folder, 'whole.jsonl');
  const writer = await SeriesFileWriter.create(path, HEADER);
  await writer.append(batch('log:1/0'));
  await writer.append(batch('log:1/1'));
  await expect(stat(path)).rejects.toThrow();
  await writer.finish();
  expect(await read(path)).toEqual(['log:1/0', 'log:1/1']);
  expect((await stat(path)).mode & 0o777).toBe(0o600);
  // An earlier one is replaced; an abandoned one leaves it as it was.
  const again = await SeriesFileWriter.create(path, HEADER);
  await again.abandon();
  expect(await read(path)).toHaveLength(2);
});

test('anything else under that name is not touched', async () => {
  const path = join(folder, 'postgresql.log');
  await writeFile(path, 'precious');
  await expect(SeriesFileWriter.create(path, HEADER)).rejects.toMatchObject({ code: 'config-invalid' });
  expect(await readFile(path, 'utf8')).toBe('precious');
  await expect(read(path)).rejects.toMatchObject({ code: 'log-unreadable' });
});

test('a file that ends early, or was damaged, is an error', async () => {
  const path = join(folder, 'early.jsonl');
  const writer = await SeriesFileWriter.create(path, HEADER);
  await writer.append(batch('log:1/0'));
  await writer.finish();
  const lines = (await readFile(path, 'utf8')).split('\n');
  await writeFile(path, lines.slice(0, 2).join('\n'));
  await expect(read(path)).rejects.toThrow(/ends early/);
  await writeFile(path, `${lines[0] ?? ''}\n{"batch": {"id"\n`);
  await expect(read(path)).rejects.toThrow(/damaged/);
});
