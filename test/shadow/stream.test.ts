import { expect, test } from 'vitest';
import { emitMessageSql } from '../../src/core/postgres.js';
import { databasePair, until } from '../support/servers.js';
import { EngineHarness, sql } from './engine-harness.js';

const TORTURE = `
  CREATE TYPE mood AS ENUM ('glad', 'sa,d', 'o"dd');
  CREATE TYPE pair AS (a int, b text);
  CREATE DOMAIN positive AS numeric CHECK (VALUE > 0);
  CREATE TABLE torture (
    id int PRIMARY KEY, b bool, i2 smallint, i8 bigint, f4 real, f8 double precision, n numeric, n2 numeric(30,10),
    t text, vc varchar(40), ch char(8), by bytea, d date, ts timestamp, tz timestamptz, tm time, ttz timetz, iv interval,
    u uuid, j json, jb jsonb, ia int[], ta text[], i2d int[][], m mood, ma mood[], p pair, pa pair[], dom positive,
    net inet, ci cidr, mac macaddr, r int4range, tr tstzrange, bits bit(5), vb varbit, pt point, bx box, x xml,
    mon money, lsn pg_lsn, tsv tsvector, tsq tsquery, nm name, ochar "char", rc regclass, ov oidvector,
    g int GENERATED ALWAYS AS (id * 2) STORED)`;

function tortureRow(id: number): string {
  const variants = [
    `${id}, true, -32768, 9223372036854775807, 'NaN', '-Infinity', 'NaN', 1.5, E'back\\\\slash "quote" ''q'' {b,r} \\t\\n', 'é漢字😀', 'pad',
     '\\x00ff5c', '4713-01-01 BC', 'infinity', '-infinity', '24:00:00', '23:59:59.999999-15:59', '-178000000 years',
     '00000000-0000-0000-0000-000000000000', '{"b":1, "a" : [ null ]}', '{"z":null,"a":[1.10,"\\u20ac"]}', '{1,NULL,3}',
     ARRAY['', 'NULL', NULL, 'a"b\\\\c', '{}'], '{{1,2},{3,4}}', 'o"dd', '{glad,"sa,d","o\\"dd"}', ROW(1,'x,"y')::pair,
     ARRAY[ROW(NULL,'')::pair, NULL], 0.10, '10.0.0.1/8', '10.0.0.0/8', '08:00:2b:01:02:03', '[1,5)', 'empty', '10101',
     '1', '(1.1,-0)', '((1,1),(0,0))', '<a>&amp;</a>', '12.34', '16/B374D848', 'a:1A b', 'a & b', 'some name', 'c',
     'public.torture', '1 2'`,
    `${id}, false, 0, -9223372036854775808, '-0', '1e-320', 1e-1000::numeric, 12345678901234567890.0123456789, '', '', '',
     '', 'infinity', '0044-03-15 12:00:00.000001 BC', '294276-12-31 23:59:59.999999+00', '00:00', '00:00+00', 'P1Y2M3DT4.000005S',
     'ffffffff-ffff-ffff-ffff-ffffffffffff', '"x"', '{}', '{}', '{}', '{}', 'glad', '{}', ROW(NULL,NULL)::pair, '{}', 1e100,
     '::1', '::/0', 'ff:ff:ff:ff:ff:ff', 'empty', '[2020-01-01,)', '00000', '', '(NaN,Infinity)', '((0,0),(0,0))',
     'plain', '-0.01', '0/0', '', 'a <-> b', '', '', NULL, ''`,
    `${id}${', NULL'.repeat(46)}`,
  ];
  return `(${variants[id % 3] ?? ''})`;
}

const TORTURE_COLUMNS =
  'id,b,i2,i8,f4,f8,n,n2,t,vc,ch,by,d,ts,tz,tm,ttz,iv,u,j,jb,ia,ta,i2d,m,ma,p,pa,dom,net,ci,mac,r,tr,bits,vb,pt,bx,x,mon,lsn,tsv,tsq,nm,ochar,rc,ov';

function insertTorture(ids: readonly number[]): string {
  return ids.map((id) => `INSERT INTO torture (${TORTURE_COLUMNS}) VALUES ${tortureRow(id)}`).join(';\n');
}

test('every type arrives with every digit, copied or streamed', async () => {
  await using pair = await databasePair();
  await sql(pair.onSource, `${TORTURE}; ${insertTorture([0, 1, 2])}`);
  // A table of the server's own types travels in binary, one with a user's in text.
  await sql(
    pair.onSource,
    `CREATE TABLE own AS SELECT id, b, f4, f8, n, by, d, ts, tz, iv, jb, ia, m, ttz, net, bits, r FROM torture;
     ALTER TABLE own ADD PRIMARY KEY (id)`,
  );
  await using harness = await new EngineHarness(pair).start().reach('following');
  await harness.expectSame();
  await sql(
    pair.onSource,
    `${insertTorture([3, 4, 5])};
     INSERT INTO own SELECT id + 100, b, f4, f8, n, by, d, ts, tz, iv, jb, ia, m, ttz, net, bits, r FROM torture;
     UPDATE own SET f8 = '-0', n = 1.10 WHERE id = 0; UPDATE torture SET t = NULL, m = 'sa,d' WHERE id IN (0, 4)`,
  );
  await harness.caughtUp();
  expect(await harness.expectSame()).toBe(6 + 3 + 6);
});

test('a mark passes an idle lane at once, and lag of an idle stream is zero', async () => {
  await using pair = await databasePair();
  await sql(pair.onSource, 'CREATE TABLE t (id int PRIMARY KEY)');
  await using harness = await new EngineHarness(pair, { flushIntervalMs: 10_000 }).start().reach('following');
  await harness.caughtUp();
  await until(async () => (await harness.engine.status()).streams[0]?.lagBytes === 0, { what: 'no lag' });
  // Log of another database moves the head; keepalives let the idle lane follow it, and the slot with it.
  const before = await confirmed(pair.onSource);
  await pair.onSource.query(`SELECT pg_catalog.pg_logical_emit_message(true, 'other', repeat('x', 100000))`);
  await until(async () => (await confirmed(pair.onSource)) > before + 100_000n, { what: 'acknowledgement' });
  await until(async () => (await harness.engine.status()).streams[0]?.lagBytes === 0, { what: 'no lag' });
  expect((await harness.engine.status()).streams[0]).toMatchObject({ lagMs: 0, changesApplied: 0 });
});

async function confirmed(client: { query(text: string): Promise<{ rows: unknown[] }> }): Promise<bigint> {
  const { rows } = await client.query(
    `SELECT confirmed_flush_lsn - '0/0' AS at FROM pg_replication_slots WHERE database = current_database()`,
  );
  return BigInt((rows[0] as { at: string }).at);
}

test('a mark that was passed before anyone waited is found, also by the next process', async () => {
  await using pair = await databasePair();
  await sql(pair.onSource, 'CREATE TABLE t (id int PRIMARY KEY)');
  {
    await using first = await new EngineHarness(pair).start().reach('following');
    await pair.onSource.query(emitMessageSql({ t: 'mark', id: 'early' }));
    await first.caughtUp();
    await first.engine.waitForMark('forward', 'early', AbortSignal.timeout(60_000));
  }
  await using second = await new EngineHarness(pair).start().reach('following');
  await until(async () => (await second.engine.status()).streams[0]?.connected === true);
  await second.engine.waitForMark('forward', 'early', AbortSignal.timeout(60_000));
  await expect(second.engine.waitForMark('forward', 'never', AbortSignal.timeout(50))).rejects.toThrow();
});

test('a transaction far beyond the memory bound is applied whole', async () => {
  await using pair = await databasePair();
  await sql(pair.onSource, 'CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE k (v text)');
  await using harness = await new EngineHarness(pair, { streamBytesMax: 256 * 1024 })
    .start()
    .reach('following');
  await sql(
    pair.onSource,
    `BEGIN; INSERT INTO t SELECT n, repeat('x', 100) FROM generate_series(1, 20000) n;
     INSERT INTO k SELECT v FROM t LIMIT 2000; UPDATE t SET id = -id WHERE id % 3 = 0; DELETE FROM t WHERE id % 5 = 0;
     COMMIT; INSERT INTO t VALUES (5, 'again')`,
  );
  await harness.caughtUp();
  await harness.expectSame();
});

test('the lag grows while the destination can’t keep up, and is unknown while the stream is down', async () => {
  await using pair = await databasePair();
  await sql(pair.onSource, 'CREATE TABLE t (id int PRIMARY KEY)');
  await using harness = await new EngineHarness(pair).start().reach('following');
  await sql(pair.onDestination, 'BEGIN; LOCK TABLE public.t IN ACCESS EXCLUSIVE MODE');
  await sql(pair.onSource, 'INSERT INTO t SELECT generate_series(1, 1000)');
  await until(async () => ((await harness.engine.status()).streams[0]?.lagBytes ?? 0) > 1000, {
    what: 'lag',
  });
  await until(async () => ((await harness.engine.status()).streams[0]?.lagMs ?? 0) > 0, {
    what: 'lag in time',
  });
  await pair.onDestination.query('ROLLBACK');
  await harness.caughtUp();
  await harness.engine.stop();
  expect((await harness.engine.status()).streams[0]).toMatchObject({
    connected: false,
    lagBytes: null,
    lagMs: null,
  });
});
