/** The verb as a user runs it, from files alone and beside a database. */
import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { PlanReport } from '../../../src/app/plan/plan-report.js';
import { SeriesFileWriter } from '../../../src/app/series-file.js';
import { recordSizes } from '../../../src/app/autopilot/past-sizes.js';
import { PostgresSeriesStore, SERIES_CONNECTION } from '../../../src/capture/series-store.js';
import { connectControl } from '../../../src/core/postgres.js';
import { HOUR_MS } from '../../../src/predict/series.js';
import { databasePair } from '../../support/servers.js';
import { emptyBatch, interval, point, shopBatch } from './shop-series.js';

const MAIN = new URL('../../../dist/app/main.js', import.meta.url).pathname;
const run = promisify(execFile);

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'understudy-plan-'));
});
afterAll(() => rm(folder, { recursive: true }));

function plan(...args: readonly string[]): Promise<{ readonly stdout: string; readonly stderr: string }> {
  return run(process.execPath, [MAIN, 'plan', ...args], { cwd: folder });
}

function jsonOf({ stdout }: { readonly stdout: string }): PlanReport {
  return JSON.parse(stdout.trim().split('\n').at(-1) ?? '') as PlanReport;
}

test('from files of series alone: table, picture, explanation, JSON', async () => {
  const path = join(folder, 'shop.series');
  const file = await SeriesFileWriter.create(path, { writer: 'test', createdAt: '', origin: 'test' });
  await file.append(shopBatch(60));
  await file.finish();

  const svg = join(folder, 'plan.svg');
  // The same file twice counts once.
  const { stdout } = await plan('--series', path, '--series', path, '--svg', svg);
  expect(stdout).toContain('public.lines');
  expect(stdout).toContain('No database was read');
  expect(await readFile(svg, 'utf8')).toMatch(/^<svg [\s\S]*The whole database[\s\S]*<\/svg>\n$/);

  const explained = jsonOf(await plan('--series', path, '--explain', 'orders', '--json'));
  expect(explained.subsets.map(({ subset }) => subset)).toEqual(['public.lines']);
  expect(explained.observed?.hours).toBe(60);
  expect(explained.version).toBe(1);

  const missing = await plan('--series', path, '--explain', 'nowhere').catch((error: unknown) => error);
  expect(missing).toMatchObject({ code: 2, stderr: expect.stringContaining('One of: all, ') as string });
});

test('without series or configuration it says what to do', async () => {
  const refused = await plan().catch((error: unknown) => error);
  expect(refused).toMatchObject({ code: 2, stderr: expect.stringContaining('import-log FILE') as string });

  // A log in this folder, and nothing but: the two verbs find one another.
  const at = (second: number): string => `2026-03-02 10:00:${String(second).padStart(2, '0')}.000 UTC`;
  const lines = [0, 20, 40].map(
    (second) => `${at(second)} [7] app@shop LOG:  duration: 2.000 ms  statement: SELECT * FROM orders\n`,
  );
  await writeFile(join(folder, 'day.log'), lines.join(''));
  const imported = await run(process.execPath, [MAIN, 'import-log', 'day.log'], { cwd: folder });
  expect(imported.stdout).toContain('kept in understudy.series');
  const { stdout } = await plan();
  expect(stdout).toContain('orders');
  expect(stdout).toContain('Too little was seen to tell one hour from another');
  await rm(join(folder, 'understudy.series'));
});

test('from what the destination keeps, with the source’s catalogs', async () => {
  await using pair = await databasePair();
  await pair.onSource.query(
    `CREATE TABLE public.orders (id int PRIMARY KEY);
     CREATE TABLE public.lines (id int PRIMARY KEY, orders int REFERENCES public.orders);
     INSERT INTO public.orders SELECT generate_series(1, 5000)`,
  );
  const store = new PostgresSeriesStore(() =>
    connectControl('destination', pair.destination, SERIES_CONNECTION),
  );
  const hourMs = Math.floor(Date.now() / HOUR_MS) * HOUR_MS - 2 * HOUR_MS;
  await store.append({
    ...emptyBatch('kept/0'),
    points: [point('public.orders', hourMs, 3600, 0), point('public.dropped', hourMs, 10, 0)],
    intervals: [interval(hourMs, 3610, 60_000)],
  });
  await store.close();
  // Measured hour by hour, 24 MB a day; a second word on an hour does not count.
  for (const hoursAgo of [5, 4, 3, 2, 1, 1])
    await recordSizes(pair.destination, {
      atMs: Date.now() - hoursAgo * HOUR_MS,
      bytes: new Map([['public.orders', 1e8 - hoursAgo * 1e6]]),
    });
  const url = ({ host, port, user, password, database }: typeof pair.source): string =>
    `postgres://${user}:${password ?? ''}@${host}:${port}/${database}`;
  const report = jsonOf(
    await plan(
      '--json',
      '--source-url',
      url(pair.source),
      '--destination-url',
      url(pair.destination),
      // Nobody listens there: a plan needs no running process.
      '--set',
      'admin.port=1',
    ),
  );
  const [orders] = report.subsets;
  expect(orders?.tables).toEqual(['public.lines', 'public.orders']);
  expect(orders?.bytes).toBeGreaterThan(100_000);
  expect(orders?.ties.map(({ by }) => by)).toEqual(['foreign key lines_orders_fkey']);
  expect(orders?.growthPerDay?.value).toBeCloseTo(24e6, -3);
  expect(orders?.growthPerDay?.terms).toMatchObject({ measurements: 5 });
  expect(report.shadow).toBeNull();
  expect(report.unknown.join()).toContain('public.dropped');

  // What it was made from.
  const { stdout } = await run(
    process.execPath,
    [
      MAIN,
      'capture',
      '--kept',
      '--json',
      '--source-url',
      url(pair.source),
      '--destination-url',
      url(pair.destination),
    ],
    { cwd: folder },
  );
  expect(JSON.parse(stdout.trim().split('\n').at(-1) ?? '')).toMatchObject({
    from: 'kept',
    statements: { seen: 3610, dropped: 0, unrecorded: null, unparsed: 0 },
    tables: [
      { table: 'public.orders', reads: 3600 },
      { table: 'public.dropped', reads: 10 },
    ],
    hotKeys: [],
  });
});
