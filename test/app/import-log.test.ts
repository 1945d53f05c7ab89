/** The verb: what it prints, keeps in a file, keeps in the destination; with real servers. */
import { gzipSync } from 'node:zlib';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest';
import { runImportLog, type ImportVerb } from '../../src/app/cli/import-log.js';
import { Terminal } from '../../src/app/cli/terminal.js';
import { resolveConfig } from '../../src/app/config.js';
import { readSeriesFile } from '../../src/app/series-file.js';
import type { SeriesBatch } from '../../src/core/capture-ports.js';
import { databasePair } from '../support/servers.js';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'understudy-import-'));
});
afterAll(() => rm(folder, { recursive: true }));

let out = '';
let err = '';
beforeEach(() => {
  out = '';
  err = '';
  vi.spyOn(process.stdout, 'write').mockImplementation((text) => ((out += String(text)), true));
  vi.spyOn(process.stderr, 'write').mockImplementation((text) => ((err += String(text)), true));
});
afterEach(() => vi.restoreAllMocks());

const VERB: ImportVerb = {
  files: [],
  prefix: undefined,
  format: undefined,
  timezone: undefined,
  since: undefined,
  until: undefined,
  database: undefined,
  keys: false,
  dryRun: false,
  showLines: false,
  out: undefined,
  pgStatStatements: [],
};

function line(second: number, text: string, pid = 7, database = 'shop'): string {
  const at = new Date(Date.UTC(2026, 2, 2, 10, 0, second)).toISOString().replace('T', ' ').replace('Z', '');
  return `${at} UTC [${pid}] app@${database} LOG:  duration: 2.000 ms  statement: ${text}\n`;
}

async function written(name: string, text: string): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, name.endsWith('.gz') ? gzipSync(text) : text);
  return path;
}

/** Runs the verb with --json. */
async function run(
  verb: Partial<ImportVerb>,
  config: Parameters<typeof runImportLog>[2] = null,
): Promise<object> {
  await runImportLog(
    new Terminal({ json: true, verbose: false }),
    { ...VERB, dryRun: config === null && verb.out === undefined, ...verb },
    config,
  );
  const result = JSON.parse(out.trim().split('\n').at(-1) ?? '') as object;
  out = '';
  return result;
}

async function batchesOf(path: string): Promise<readonly SeriesBatch[]> {
  const batches: SeriesBatch[] = [];
  for await (const batch of readSeriesFile(path)) batches.push(batch);
  return batches;
}

const DAY = [
  line(0, 'BEGIN'),
  line(1, "UPDATE account SET balance = 0 WHERE id = 'secret-1'"),
  line(2, 'INSERT INTO entry VALUES (1)'),
  line(3, 'COMMIT'),
  line(70, 'SELECT * FROM account JOIN owner USING (id)'),
  line(71, 'SELECT * FROM account', 8, 'other'),
].join('');

test('tables by heat, sessions, minutes, transactions; a rotated set in whatever order it is named', async () => {
  const [first, second] = [DAY.slice(0, 200), DAY.slice(200)];
  const border = DAY.indexOf('\n', 200) + 1;
  expect(first.length + second.length).toBe(DAY.length);
  const files = [await written('b.log.gz', DAY.slice(border)), await written('a.log', DAY.slice(0, border))];
  const result = await run({ files });
  expect(result).toMatchObject({
    kept: null,
    span: { from: '2026-03-02T10:00:00.000Z', to: '2026-03-02T10:01:11.000Z' },
    lines: 6,
    statements: 6,
    sessions: 2,
    failed: 0,
    unparsed: 0,
    unreadable: { lines: 0 },
    transactions: { committed: 3, rolledBack: 0 },
    minutes: { count: 2, first: '2026-03-02T10:00:00.000Z', last: '2026-03-02T10:01:00.000Z' },
  });
  const { tables, files: read } = result as { tables: readonly object[]; files: readonly { path: string }[] };
  expect(read.map(({ path }) => path)).toEqual([files[1], files[0]]);
  expect(tables).toMatchObject([
    { table: 'account', reads: 2, writes: 1, heat: 5 },
    { table: 'entry', reads: 0, writes: 1, heat: 3 },
    { table: 'owner', reads: 1, writes: 0, heat: 1 },
  ]);
  expect(JSON.stringify(result) + err).not.toContain('secret-1');
});

test('range, database and a line that is none: counted, shown by place, by text only when asked', async () => {
  const file = await written('part.log', `${DAY}a 'geheim' that is no line\n`);
  const narrow = {
    files: [file],
    since: '2026-03-02 11:00:02',
    until: '2026-03-02 11:01:11',
    timezone: '+01:00',
  };
  expect(await run({ ...narrow, database: 'shop' })).toMatchObject({ statements: 3, filtered: 3 });
  const damaged = await written('damaged.log', `${DAY}2026-03-02 XX [9] LOG:  'geheim'\n`);
  expect(await run({ files: [damaged] })).toMatchObject({
    unreadable: {
      lines: 1,
      reasons: { 'prefix-differs': 1 },
      first: [{ line: 7, reason: 'prefix-differs' }],
    },
  });
  expect(err).not.toContain('geheim');
  await run({ files: [damaged], showLines: true });
  expect(err).toContain('geheim');
});

test('--out keeps whole series without values; --dry-run keeps nothing', async () => {
  const file = await written('out.log', DAY);
  const kept = join(folder, 'series.jsonl');
  await run({ files: [file], out: kept, dryRun: true });
  await expect(batchesOf(kept)).rejects.toThrow();
  expect(await run({ files: [file], out: kept })).toMatchObject({ kept });
  const [batch, ...rest] = await batchesOf(kept);
  expect(rest).toEqual([]);
  expect(batch?.points.map(({ table, writes }) => [table, writes]).sort()).toEqual([
    ['account', 0],
    ['account', 1],
    ['entry', 1],
    ['owner', 0],
  ]);
  expect(batch?.intervals.reduce((sum, { observedMs }) => sum + observedMs, 0)).toBe(71_001);
  expect(batch?.coAccess).toContainEqual(
    expect.objectContaining({ a: 'account', b: 'entry', transactions: 1 }),
  );
  expect(JSON.stringify(batch)).not.toContain('secret-1');
});

test('in the destination: names by the source’s catalogs, and the same log a second time changes nothing', async () => {
  await using pair = await databasePair();
  await pair.onSource.query(
    'CREATE SCHEMA app; CREATE TABLE app.account (id text, balance int); CREATE TABLE public.entry (n int)',
  );
  const url = ({ user, password, port, database }: typeof pair.source): string =>
    `postgres://${user}:${password ?? ''}@127.0.0.1:${port}/${database}`;
  const config = resolveConfig({
    source: { url: url(pair.source) },
    destination: { url: url(pair.destination) },
  });
  const file = await written('kept.log', DAY);
  const figures = async (): Promise<unknown> =>
    (
      await pair.onDestination.query(
        `SELECT t.name, sum(p.reads)::int AS reads, sum(p.writes)::int AS writes FROM understudy.series_point p
           JOIN understudy.series_table t ON t.id = p.table_id WHERE p.resolution = 60000 OR p.resolution = 60
          GROUP BY 1 ORDER BY 1`,
      )
    ).rows;
  await run({ files: [file] }, config);
  const once = await figures();
  expect(once).toMatchObject([{ name: 'app.account' }, { name: 'owner' }, { name: 'public.entry' }]);
  await run({ files: [file] }, config);
  expect(await figures()).toEqual(once);

  // Keys, where they are asked for and the catalogs say what is one.
  await expect(run({ files: [file], keys: true })).rejects.toMatchObject({ code: 'config-invalid' });
  await pair.onSource.query('CREATE TABLE public.item (id int PRIMARY KEY, n int)');
  const named = await written(
    'keys.log',
    line(1, 'SELECT * FROM item WHERE id = 4711') +
      line(2, 'SELECT n FROM item WHERE id = 4711') +
      line(3, 'UPDATE item SET n = 1 WHERE id = 4712'),
  );
  const out = join(folder, 'keys.series');
  await run({ files: [named], keys: true, out }, config);
  const hot: SeriesBatch['hotKeys'][number][] = [];
  for await (const batch of readSeriesFile(out)) hot.push(...batch.hotKeys);
  expect(hot).toMatchObject([
    {
      table: 'public.item',
      accesses: 3,
      keys: [
        { count: 2, writes: 0 },
        { count: 1, writes: 1 },
      ],
    },
  ]);
  expect(JSON.stringify(hot)).not.toContain('471');
});

test('snapshots of pg_stat_statements: one gives totals, two what ran between them', async () => {
  const csv = (calls: number, at: string): string =>
    `queryid,query,calls,total_exec_time,rows,captured_at\n1,SELECT * FROM account WHERE id = $1,${calls},${calls * 2},${calls},${at}\n`;
  const early = await written('early.csv', csv(10, '2026-03-02 10:00:00Z'));
  const late = await written('late.csv', csv(70, '2026-03-02 11:00:00Z'));
  expect(await run({ pgStatStatements: [late] })).toMatchObject({
    pgStatStatements: { executions: 70, shapes: 1 },
    tables: [{ table: 'account', reads: 70 }],
    minutes: { count: 1 },
  });
  expect(await run({ pgStatStatements: [late, early] })).toMatchObject({
    pgStatStatements: { executions: 60, shapes: 1 },
    tables: [{ table: 'account', reads: 60, durationMs: 120 }],
    minutes: { count: 60 },
  });
});

test('what can’t be read is an error with what to do', async () => {
  await expect(run({})).rejects.toMatchObject({ code: 'config-invalid' });
  await expect(run({ files: [join(folder, 'absent')] })).rejects.toMatchObject({ code: 'log-unreadable' });
  const alien = await written('alien.log', 'nothing\nof a server\n');
  await expect(run({ files: [alien] })).rejects.toMatchObject({ code: 'log-unreadable' });
  await expect(run({ files: [alien], since: 'yesterday' })).rejects.toMatchObject({ code: 'config-invalid' });
});
