import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import type { ConflictRecord } from '../../src/core/ports.js';
import { decide, loadSettle, type Conflict } from '../../src/shadow/conflicts/rule.js';
import type { ShadowOptions } from '../../src/shadow/settings.js';
import { databasePair, until, type DatabasePair } from '../support/servers.js';
import { emitRoute, EngineHarness, sql } from './engine-harness.js';

const CONFLICT: Conflict = {
  table: 'public.t',
  key: ['1'],
  source: { id: 1, v: 'here' },
  destination: { id: 1, v: 'there' },
  sourceWrittenMs: 1000,
  destinationWrittenMs: 2000,
};

test('the later write wins, and the source where it is not known which that is', async () => {
  const rule = 'last-write-wins';
  expect((await decide(rule, CONFLICT, null)).winner).toBe('destination');
  expect((await decide(rule, { ...CONFLICT, sourceWrittenMs: 2000 }, null)).winner).toBe('source');
  expect((await decide(rule, { ...CONFLICT, sourceWrittenMs: null }, null)).winner).toBe('source');
  expect((await decide(rule, { ...CONFLICT, destinationWrittenMs: null }, null)).winner).toBe('source');
});

test('a module that throws or answers nonsense decides nothing, and tells no value', async () => {
  const failing = async (): Promise<never> => Promise.reject(new RangeError('there is here'));
  await expect(decide('module', CONFLICT, failing)).rejects.toMatchObject({
    code: 'conflict-undecided',
    message: expect.not.stringContaining('here') as string,
  });
  const nonsense = (() => 'both') as unknown as () => 'source';
  await expect(decide('module', CONFLICT, nonsense)).rejects.toMatchObject({ code: 'conflict-undecided' });
  await expect(loadSettle({ rule: 'module' })).rejects.toMatchObject({ code: 'config-invalid' });
  await expect(loadSettle({ rule: 'module', module: '/nowhere/at-all.mjs' })).rejects.toMatchObject({
    code: 'config-invalid',
  });
});

async function following(pair: DatabasePair, options: Partial<ShadowOptions>): Promise<EngineHarness> {
  const harness = await new EngineHarness(pair, options).start().reach('following');
  await harness.engine.prepareReverse(AbortSignal.timeout(60_000));
  await harness.caughtUp();
  return harness;
}

async function settled(harness: EngineHarness, count: number): Promise<readonly ConflictRecord[]> {
  await harness.caughtUp('reverse');
  await until(
    async () => {
      const { conflicts } = await harness.engine.status();
      return conflicts?.open === 0 && conflicts.settled + conflicts.unsettled === count;
    },
    { what: `${count} conflicts to be settled` },
  );
  await harness.caughtUp();
  return await harness.engine.conflicts(100);
}

const TABLE = `CREATE TABLE t (id int, part text, v text, at timestamptz, PRIMARY KEY (id, part));
  INSERT INTO t SELECT n, 'p', 'first', '2024-01-01Z' FROM generate_series(1, 50) n;
  CREATE TABLE k (v text); INSERT INTO k VALUES ('only')`;

test('writes past the guard are found, and the source’s rows put back; both are recorded', async () => {
  await using pair = await databasePair();
  const { onSource, onDestination } = pair;
  await sql(onSource, TABLE);
  await using harness = await following(pair, {});
  await harness.engine.verify({ direction: 'forward' }, AbortSignal.timeout(60_000));
  await sql(
    onDestination,
    `UPDATE t SET v = 'stray' WHERE id = 1; DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (99, 'p', 'stray');
     UPDATE t SET id = 77 WHERE id = 3; INSERT INTO k VALUES ('stray')`,
  );
  const records = await settled(harness, 6);
  expect(records.map(({ key, kind, state, winner }) => [key, kind, state, winner])).toEqual([
    [null, 'insert', 'unsettled', null],
    ['77,p', 'update', 'settled', 'source'],
    ['3,p', 'update', 'settled', 'source'],
    ['99,p', 'insert', 'settled', 'source'],
    ['2,p', 'delete', 'settled', 'source'],
    ['1,p', 'update', 'settled', 'source'],
  ]);
  const { rows } = await onDestination.query(
    `SELECT source_row->>'v' AS source, destination_row->>'v' AS destination FROM understudy.conflict WHERE key[1] IN ('1', '2') ORDER BY key`,
  );
  expect(rows).toEqual([
    { source: 'first', destination: 'stray' },
    { source: 'first', destination: null },
  ]);
  // A table without a key is for a person: its rows are not told apart, and no cutover trusts the comparison before.
  expect(await harness.engine.status()).toMatchObject({ lastVerify: null, unverified: true });
  const report = await harness.engine.verify(
    { direction: 'forward', repair: true },
    AbortSignal.timeout(60_000),
  );
  expect(report.verdicts.flatMap(({ table, mismatches }) => (mismatches === 0 ? [] : [table]))).toEqual([
    'public.k',
  ]);
  await harness.expectSame();

  // What is read only after a rollback has opened the source is left out, told, and mended; nothing fails.
  await sql(
    onSource,
    `CREATE TABLE IF NOT EXISTS understudy.epoch (subset text PRIMARY KEY, epoch bigint, fenced boolean, operation text);
     INSERT INTO understudy.epoch VALUES ('all', 2, false, 'rollback')`,
  );
  await emitRoute(onDestination, 'destination', 1);
  await sql(onDestination, `UPDATE t SET v = 'late' WHERE id = 5`);
  await emitRoute(onDestination, 'source', 2);
  await settled(harness, 7);
  expect((await harness.engine.status()).phase).toBe('following');
  await harness.expectSame();
});

test('a row that would break a foreign key on the source is not written there, and stays for a person', async () => {
  await using pair = await databasePair();
  const { onSource, onDestination } = pair;
  await sql(
    onSource,
    `CREATE TABLE p (id int PRIMARY KEY, code text UNIQUE); CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p ON DELETE CASCADE,
       code text REFERENCES p (code)); INSERT INTO p SELECT n, 'c' || n FROM generate_series(1, 9) n;
     INSERT INTO c VALUES (1, 1, NULL), (2, NULL, 'c2'), (3, 3, 'c3')`,
  );
  await using harness = await following(pair, { conflicts: { rule: 'destination-wins' } });
  await sql(
    onDestination,
    `SET LOCAL session_replication_role = replica;
     DELETE FROM p WHERE id = 1; UPDATE p SET code = 'other' WHERE id = 2; INSERT INTO c VALUES (4, 99, NULL);
     DELETE FROM p WHERE id = 3; DELETE FROM c WHERE id = 3;
     INSERT INTO c VALUES (5, 50, 'c9'); INSERT INTO p VALUES (50, 'c50'); UPDATE p SET code = 'free' WHERE id = 8`,
  );
  const records = await settled(harness, 8);
  expect(records.map(({ table, key, state }) => `${state} ${table} ${key}`).sort()).toEqual([
    'settled public.c 3',
    'settled public.c 5',
    'settled public.p 3',
    'settled public.p 50',
    'settled public.p 8',
    'unsettled public.c 4',
    'unsettled public.p 1',
    'unsettled public.p 2',
  ]);
  expect(records.find(({ key }) => key === '2')?.reason).toContain('c_code_fkey');
  const { rows } = await onSource.query(
    `SELECT (SELECT count(*) FROM public.c WHERE p IS NOT NULL AND p NOT IN (SELECT id FROM public.p)
      OR code IS NOT NULL AND code NOT IN (SELECT code FROM public.p)) AS orphans, (SELECT count(*) FROM public.c) AS children`,
  );
  expect(rows).toEqual([{ orphans: '0', children: '3' }]);
});

test('by rule the destination’s row, or the later one, is written to the source', async () => {
  await using pair = await databasePair();
  const { onSource, onDestination } = pair;
  await sql(onSource, TABLE);
  {
    await using harness = await following(pair, { conflicts: { rule: 'destination-wins' } });
    await sql(
      onDestination,
      `UPDATE t SET v = 'stray' WHERE id = 1; DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (99, 'p', 'stray')`,
    );
    const records = await settled(harness, 3);
    expect(records.map(({ winner }) => winner)).toEqual(['destination', 'destination', 'destination']);
    await harness.expectSame();
    expect((await onSource.query('SELECT v FROM public.t WHERE id IN (1, 2, 99) ORDER BY id')).rows).toEqual([
      { v: 'stray' },
      { v: 'stray' },
    ]);
  }
  {
    await using harness = await following(pair, {
      conflicts: { rule: 'last-write-wins' },
      versionColumns: { 'public.t': 'at' },
    });
    await sql(
      onDestination,
      `UPDATE t SET v = 'later', at = '2025-01-01Z' WHERE id = 10; UPDATE t SET v = 'earlier', at = '2023-01-01Z' WHERE id = 11`,
    );
    const records = await settled(harness, 5);
    expect(records.slice(0, 2).map(({ key, winner }) => [key, winner])).toEqual([
      ['11,p', 'source'],
      ['10,p', 'destination'],
    ]);
    await harness.expectSame();
  }
  const folder = await mkdtemp(join(tmpdir(), 'understudy-conflicts-'));
  try {
    const module = join(folder, 'settle.mjs');
    await writeFile(
      module,
      `export const settle = ({ source, destination }) => {
         if (destination.v === 'throw') throw new Error(destination.v);
         return destination.v > source.v ? 'destination' : 'source';
       };`,
    );
    await using harness = await following(pair, { conflicts: { rule: 'module', module } });
    await sql(
      onDestination,
      `UPDATE t SET v = 'zzz' WHERE id = 20; UPDATE t SET v = 'aaa' WHERE id = 21; UPDATE t SET v = 'throw' WHERE id = 22`,
    );
    const records = await settled(harness, 8);
    expect(records.slice(0, 3).map(({ key, state, winner }) => [key, state, winner])).toEqual([
      ['22,p', 'unsettled', null],
      ['21,p', 'settled', 'source'],
      ['20,p', 'settled', 'destination'],
    ]);
    const left = await harness.engine.verify(
      { direction: 'forward', repair: true },
      AbortSignal.timeout(60_000),
    );
    expect(left.mismatches).toBe(1);
    await harness.expectSame();
  } finally {
    await rm(folder, { recursive: true });
  }
});
