/** Rows arrive as they are: every type of the server's, both ways, copied in binary and in text; large ones; all kinds of commits. */
import { expect, test } from 'vitest';
import type pg from 'pg';
import { systemClock } from '../../src/core/clock.js';
import { silentLog } from '../../src/core/log.js';
import { quoteIdent } from '../../src/core/postgres.js';
import { copyFormat } from '../../src/shadow/postgres/chunk.js';
import { applyTable } from '../../src/shadow/postgres/apply-table.js';
import { readTables } from '../../src/shadow/postgres/tables.js';
import { Shadow } from '../../src/shadow/shadow.js';
import { databasePair, until } from '../support/servers.js';
import { contents, EngineHarness, emitRoute, sql } from './engine-harness.js';

/** Values of each type of the server's at its corners, as literals. */
const SAMPLES: Readonly<Record<string, readonly string[]>> = {
  bool: ['t', 'f'],
  bytea: ['', String.raw`\x00ff5c27`, String.raw`\x`],
  char: ['c', '', '"'],
  name: ['', 'a "name"'],
  int8: ['9223372036854775807', '-9223372036854775808', '0'],
  int2: ['32767', '-32768'],
  int4: ['2147483647', '-2147483648'],
  int2vector: ['', '1 -2'],
  oidvector: ['', '1 4294967295'],
  oid: ['0', '4294967295'],
  tid: ['(0,1)', '(4294967295,65535)'],
  xid: ['0', '4294967295'],
  cid: ['0', '4294967295'],
  xid8: ['0', '18446744073709551615'],
  text: ['', 'é漢字😀', 'back\\slash "quote" \'q\' {b,r}\t\r\n\b', String.raw`\N`, 'NULL'],
  varchar: ['', ' x '],
  bpchar: ['x', 'x  ', ''],
  json: ['{"b":1,  "a": [null], "a": 1.10}', '"\\u0000"', ' 1 '],
  jsonb: ['{"b": 1.10, "a": [null, "\\u20ac"]}', '1e400', '"\\\\"'],
  jsonpath: ['$.a[*] ? (@ > 1)', 'strict $'],
  xml: ['<a b="c">&amp;</a>', 'plain', ''],
  point: ['(1.1,-0)', '(NaN,Infinity)', '(1e-320,-Infinity)'],
  lseg: ['[(0,0),(1,-1)]'],
  path: ['((0,0),(1,1))', '[(0,0),(1,1)]'],
  box: ['(1,1),(0,0)', '(Infinity,0),(-Infinity,-0)'],
  polygon: ['((0,0),(1,1),(2,0))'],
  line: ['{1,-1,0}'],
  circle: ['<(0,0),1>', '<(1,1),Infinity>'],
  float4: ['NaN', 'Infinity', '-Infinity', '-0', '1e-45', '3.4028235e38', '0.1'],
  float8: ['NaN', 'Infinity', '-Infinity', '-0', '5e-324', '1.7976931348623157e308', '0.30000000000000004'],
  numeric: [
    'NaN',
    'Infinity',
    '-Infinity',
    '0',
    '0.000',
    '-1.10',
    '1e-1000',
    '1e1000',
    '12345678901234567890.0123456789',
  ],
  money: ['-0.01', '92233720368547758.07'],
  macaddr: ['08:00:2b:01:02:03'],
  macaddr8: ['ff:ff:ff:ff:ff:ff:ff:ff'],
  inet: ['10.0.0.1/8', '::1', '::ffff:1.2.3.4/97'],
  cidr: ['10.0.0.0/8', '::/0'],
  date: ['infinity', '-infinity', '4713-01-01 BC', '5874897-12-31', '0001-12-31 BC'],
  time: ['00:00', '24:00:00', '23:59:59.999999'],
  timetz: ['00:00+00', '24:00:00-15:59:59', '23:59:59.999999+15:59'],
  timestamp: [
    'infinity',
    '-infinity',
    '4713-01-01 00:00:00 BC',
    '294276-12-31 23:59:59.999999',
    '0044-03-15 12:00:00.000001 BC',
  ],
  timestamptz: ['infinity', '-infinity', '4713-01-01 00:00:00+00 BC', '294276-12-31 23:59:59.999999+00'],
  interval: ['-178000000 years', 'P1Y2M3DT4.000005S', '-1 mon +1 day -00:00:00.000001', '0'],
  bit: ['1', '0'],
  varbit: ['', '10101', '1'.repeat(70)],
  uuid: ['00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff'],
  pg_lsn: ['0/0', 'FFFFFFFF/FFFFFFFF'],
  tsvector: ['', "a:1A b 'c d':2,3B"],
  tsquery: ['', "a & !b | 'c d':A*", 'a <2> b'],
  refcursor: ['', 'portal 1'],
  regclass: ['pg_catalog.pg_class', '-', '4294967295'],
  regproc: ['pg_catalog.now', '-'],
  regprocedure: ['pg_catalog.abs(integer)', '-'],
  regoper: ['pg_catalog.||/', '0'],
  regoperator: ['pg_catalog.+(integer,integer)', '0'],
  regtype: ['pg_catalog.int4', 'timestamp with time zone', '-'],
  regrole: ['-', 'pg_monitor'],
  regnamespace: ['pg_catalog', '-'],
  regconfig: ['pg_catalog.simple'],
  regdictionary: ['pg_catalog.simple'],
  regcollation: ['pg_catalog."C"', '-'],
  aclitem: ['=r/pg_monitor'],
  txid_snapshot: ['10:20:10,14,15'],
  pg_snapshot: ['10:20:10,14,15'],
  int4range: ['empty', '[1,5)', '(,)', '[-2147483648,2147483647)'],
  int8range: ['empty', '(,9223372036854775807)'],
  numrange: ['empty', '[NaN,NaN]', '(-Infinity,1.10]'],
  tsrange: ['empty', '[-infinity,infinity)', '[4713-01-01 BC,)'],
  tstzrange: ['empty', '[2020-01-01,infinity]'],
  daterange: ['empty', '[0001-12-31 BC,infinity)'],
  int4multirange: ['{}', '{[1,2),[5,)}'],
  int8multirange: ['{}', '{(,)}'],
  nummultirange: ['{}', '{[1.0,2.00)}'],
  tsmultirange: ['{}', '{[2020-01-01,2020-01-02)}'],
  tstzmultirange: ['{}', '{(,2020-01-02)}'],
  datemultirange: ['{}', '{[2020-01-01,2020-01-02),[2021-01-01,)}'],
};

/** Made by the server for its own catalogs: no value of theirs can be written. */
const UNWRITABLE = new Set([
  'pg_node_tree',
  'pg_ndistinct',
  'pg_dependencies',
  'pg_mcv_list',
  'pg_brin_bloom_summary',
  'pg_brin_minmax_multi_summary',
  'gtsvector',
]);

/** Binary alone; text, by a column that has no binary form of its own; what always travels as text. */
const TEXT_ONLY = /^(reg|aclitem|refcursor|txid_snapshot|pg_snapshot|tsquery|int2vector|oidvector)/;

function typeName(type: string): string {
  return `pg_catalog.${quoteIdent(type)}`;
}

function createTable(name: string, types: readonly string[], more = ''): string {
  const columns = types.map(
    (type) => `${quoteIdent(`v_${type}`)} ${typeName(type)}, ${quoteIdent(`a_${type}`)} ${typeName(type)}[]`,
  );
  return `CREATE TABLE ${name} (id int PRIMARY KEY, ${columns.join(', ')}${more})`;
}

/** Row `n` holds each type's nth sample, and an array of all its samples. */
function insertRows(name: string, types: readonly string[], first: number): readonly string[] {
  const rows = Math.max(...types.map((type) => SAMPLES[type]?.length ?? 0)) + 1;
  return Array.from({ length: rows }, (_, n) => {
    const values = types.flatMap((type) => {
      const samples = SAMPLES[type] ?? [];
      const sample = samples[n];
      const one = sample === undefined ? 'NULL' : `${literal(sample)}::${typeName(type)}`;
      const all = [...samples.map((each) => `${literal(each)}::${typeName(type)}`), 'NULL'].join(', ');
      return [one, n % 2 === 0 ? `ARRAY[${all}]::${typeName(type)}[]` : `'{}'`];
    });
    const columns = types.flatMap((type) => [quoteIdent(`v_${type}`), quoteIdent(`a_${type}`)]);
    return `INSERT INTO ${name} (id, ${columns.join(', ')}) VALUES (${first + n}, ${values.join(', ')})`;
  });
}

function literal(text: string): string {
  return `E'${text.replaceAll('\\', '\\\\').replaceAll("'", "''")}'`;
}

test('every type of the server’s arrives with every digit, both ways, in binary and in text', async () => {
  await using pair = await databasePair();
  const { rows: known } = await pair.onSource.query<{ name: string }>(
    `SELECT typname AS name FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace
       AND typtype IN ('b', 'r', 'm') AND typcategory NOT IN ('A', 'P')
     UNION SELECT 'int2vector' UNION SELECT 'oidvector' ORDER BY 1`,
  );
  // A type that the matrix doesn't know must not be missed silently.
  expect(known.map(({ name }) => name).filter((name) => !UNWRITABLE.has(name))).toEqual(
    Object.keys(SAMPLES).sort(),
  );
  const all = Object.keys(SAMPLES);
  const binary = all.filter((type) => !TEXT_ONLY.test(type));
  const tables: readonly (readonly [string, readonly string[]])[] = [
    ['in_binary', binary],
    ['in_text', all],
  ];
  await sql(
    pair.onSource,
    `${createTable('in_binary', binary)}; CREATE TYPE of_ours AS (a int); ${createTable('in_text', all, ', ours of_ours')}`,
  );
  const infos = new Map((await readTables(pair.onSource)).map((table) => [table.name, table]));
  for (const [name, format] of [
    ['in_binary', 'binary'],
    ['in_text', 'text'],
  ] as const) {
    const info = infos.get(name);
    expect(info === undefined ? null : copyFormat(applyTable(info, ['pg_catalog']))).toBe(format);
  }
  const insert = (first: number): string =>
    tables.flatMap(([name, types]) => insertRows(name, types, first)).join(';\n');
  const unlogged = (first: number): string =>
    `INSERT INTO kept VALUES (${first}, NULL), (${first + 1}, ${first}); INSERT INTO bag VALUES ('a'), ('a')`;
  await sql(
    pair.onSource,
    `${insert(1)}; CREATE UNLOGGED TABLE kept (id int PRIMARY KEY, parent int REFERENCES kept);
     CREATE UNLOGGED TABLE bag (v text); ${unlogged(1)}`,
  );
  await using harness = await new EngineHarness(pair).start().reach('following');
  // Of unlogged tables no log tells: their rows come over where a switch waits for its mark.
  await harness.caughtUp();
  const copied = await harness.expectSame();
  expect(copied).toBeGreaterThan(22);
  await sql(pair.onSource, `UPDATE kept SET parent = 2 WHERE id = 1; DELETE FROM bag; ${unlogged(11)}`);
  expect(
    (await harness.engine.verify({ direction: 'forward' }, AbortSignal.timeout(60_000))).mismatches,
  ).toBe(0);
  await sql(
    pair.onSource,
    `${insert(101)}; UPDATE in_binary SET id = id + 1000 WHERE id < 4; UPDATE in_text SET v_text = 'x' WHERE id = 2`,
  );
  await harness.caughtUp();
  expect(await harness.expectSame()).toBe(2 * copied - 2);
  await harness.engine.prepareReverse(AbortSignal.timeout(60_000));
  const exactMs = async (limitMs: number): Promise<number> => {
    const request = { direction: 'forward', subsets: ['all'], limitMs } as const;
    await harness.engine.measureExact(request, AbortSignal.timeout(60_000));
    return (await harness.engine.status()).streams[1]?.exactMs ?? -1;
  };
  await pair.onDestination.query('BEGIN; LOCK public.bag IN ACCESS SHARE MODE');
  expect(await exactMs(100).catch(String)).toSatisfy(
    (took) => Number(took) > 100 || /lock timeout/.test(String(took)),
  );
  await pair.onDestination.query('COMMIT');
  expect(await exactMs(60_000)).toBeLessThan(60_000);
  // A copy that comes late must not overwrite what the other side has taken since: the records say who leads by now.
  await pair.onDestination.query(`CREATE TABLE understudy.operation (subset text, kind text, state text);
    CREATE TABLE understudy.route (subset text, side text); INSERT INTO understudy.route VALUES ('all', 'destination');
    DELETE FROM public.bag`);
  await expect(harness.caughtUp()).rejects.toThrow(/is unlogged and can’t be carried over/);
  const bag = async (client: pg.Client): Promise<number> =>
    (await client.query('SELECT FROM public.bag')).rowCount ?? -1;
  expect(await bag(pair.onDestination)).toBe(0);
  await pair.onDestination.query(`UPDATE understudy.route SET side = 'source'`);
  await harness.caughtUp();
  expect(await bag(pair.onDestination)).toBe(2);
  await emitRoute(pair.onSource, 'destination', 1);
  await emitRoute(pair.onDestination, 'destination', 1);
  await sql(
    pair.onDestination,
    `${insert(201)}; DELETE FROM in_text WHERE id = 3; ${unlogged(21)}; DELETE FROM kept WHERE id < 3`,
  );
  await pair.onSource
    .query(`CREATE TABLE understudy.epoch (subset text, fenced boolean, epoch bigint, operation uuid);
    INSERT INTO understudy.epoch VALUES ('all', true, 1, gen_random_uuid())`);
  await harness.caughtUp('reverse');
  expect(await harness.expectSame()).toBe(3 * copied - 5);
  const report = await harness.engine.verify({ direction: 'reverse' }, AbortSignal.timeout(60_000));
  expect(report.mismatches).toBe(0);
  await pair.onSource.query('UPDATE understudy.epoch SET fenced = false; DELETE FROM public.bag');
  await expect(harness.caughtUp('reverse')).rejects.toThrow(/is unlogged and can’t be carried over/);
  expect(await bag(pair.onSource)).toBe(0);
});

test('every type of the server’s arrives by polling too', async () => {
  await using pair = await databasePair();
  const all = Object.keys(SAMPLES);
  await sql(pair.onSource, createTable('t', all));
  const shadow = new Shadow(
    {
      source: pair.source,
      destination: pair.destination,
      migrationId: pair.source.database.slice(0, 40),
      copyRoles: false,
      method: 'poll',
      pollIntervalMs: 20,
    },
    { log: silentLog, clock: systemClock, afterSchemaBuilt: () => Promise.resolve() },
  );
  shadow.start();
  try {
    await until(async () => (await shadow.status()).phase === 'following', { timeoutMs: 90_000 });
    await sql(pair.onSource, insertRows('t', all, 1).join(';\n'));
    await until(
      async () => {
        const [ours, theirs] = await Promise.all([contents(pair.onSource), contents(pair.onDestination)]);
        return JSON.stringify(ours) === JSON.stringify(theirs);
      },
      { what: 'both sides to be the same' },
    ).catch(async (error: unknown) => {
      expect(await contents(pair.onDestination)).toEqual(await contents(pair.onSource));
      throw new Error(`${String(error)}; ${JSON.stringify(await shadow.status())}`);
    });
  } finally {
    await shadow.stop();
  }
});

test('every kind of commit arrives once, whole and in order', async () => {
  await using pair = await databasePair();
  await sql(
    pair.onSource,
    `CREATE TABLE parent (id serial PRIMARY KEY, v text);
     CREATE TABLE child (id serial PRIMARY KEY, parent int REFERENCES parent DEFERRABLE INITIALLY DEFERRED, v text);
     CREATE TABLE chain (a int PRIMARY KEY, next int UNIQUE DEFERRABLE INITIALLY DEFERRED, REFERENCES_self int);
     ALTER TABLE chain ADD FOREIGN KEY (references_self) REFERENCES chain DEFERRABLE INITIALLY DEFERRED;
     INSERT INTO parent (v) SELECT 'p' FROM generate_series(1, 10); INSERT INTO child (parent) SELECT n FROM generate_series(1, 10) n;
     INSERT INTO chain SELECT n, n + 1, NULL FROM generate_series(1, 10) n`,
  );
  await using harness = await new EngineHarness(pair).start().reach('following');
  const steps = [
    // Two phases: what is prepared arrives with its COMMIT PREPARED, behind what was committed before that.
    `BEGIN; INSERT INTO parent VALUES (100, 'prepared'); UPDATE parent SET v = 'first' WHERE id = 1; PREPARE TRANSACTION 'kept_${pair.source.database}'`,
    `BEGIN; DELETE FROM child; PREPARE TRANSACTION 'lost_${pair.source.database}'`,
    `INSERT INTO parent VALUES (101, 'before')`,
    `COMMIT PREPARED 'kept_${pair.source.database}'`,
    `ROLLBACK PREPARED 'lost_${pair.source.database}'`,
    `UPDATE parent SET v = v || '!' WHERE id IN (1, 100)`,
    // More subtransactions than a backend keeps in its own place, some of them rolled back.
    `DO $$ BEGIN FOR n IN 1..200 LOOP
       BEGIN INSERT INTO parent VALUES (1000 + n, 's'); UPDATE parent SET v = 's' || n WHERE id = 2;
         IF n % 3 = 0 THEN RAISE 'no'; END IF; EXCEPTION WHEN raise_exception THEN INSERT INTO child (id, v) VALUES (1000 + n, 'caught'); END;
     END LOOP; END $$`,
    `BEGIN; INSERT INTO child (id, parent) VALUES (5000, 5000); INSERT INTO parent VALUES (5000, 'late'); COMMIT`,
    `BEGIN; UPDATE chain SET next = 11 + 1 - next + 1, references_self = 11 - a; INSERT INTO chain VALUES (11, 50, 12);
     INSERT INTO chain VALUES (12, 51, 11); COMMIT`,
    `BEGIN; UPDATE chain SET a = a + 100 WHERE references_self IS NULL; SAVEPOINT s; DELETE FROM chain; ROLLBACK TO s; COMMIT`,
    `BEGIN; TRUNCATE parent RESTART IDENTITY CASCADE; INSERT INTO parent (v) VALUES ('anew'); INSERT INTO child (parent) VALUES (1); COMMIT`,
    `TRUNCATE chain; INSERT INTO chain VALUES (1, 1, 1)`,
  ];
  // The search path goes with each statement, as PREPARE TRANSACTION ends its own batch.
  await pair.onSource.query('SET search_path = public');
  for (const step of steps) {
    for (const statement of step.startsWith('DO') ? [step] : step.split(';'))
      await pair.onSource.query(statement);
  }
  await pair.onSource.query(`SET search_path = ''`);
  await harness.caughtUp();
  expect(await harness.expectSame()).toBe(3);
});

/** Beyond what is held as a string, what the verifier prints, and what a frame is gathered in pieces of. */
test('large values are copied, streamed, left alone, moved, told apart, compared and mended', async () => {
  await using pair = await databasePair();
  const size = 1_280_000;
  await sql(
    pair.onSource,
    `CREATE TABLE large (id int PRIMARY KEY, body text, bytes bytea, note text);
     CREATE TABLE keyless (body text, doc json, note varchar(20)); ALTER TABLE keyless REPLICA IDENTITY FULL;
     ALTER TABLE large ALTER body SET STORAGE EXTERNAL, ALTER bytes SET STORAGE EXTERNAL;
     ALTER TABLE keyless ALTER body SET STORAGE EXTERNAL, ALTER doc SET STORAGE EXTERNAL;
     INSERT INTO large SELECT n, CASE WHEN n > 2996 THEN repeat('x', ${size}) END, NULL, 'copied' FROM generate_series(1, 3000) n;
     ANALYZE large; INSERT INTO keyless VALUES ('a', '1', 'a')`,
  );
  await using harness = await new EngineHarness(pair, { chunkBytes: 256 * 1024 }).start().reach('following');
  const insert = (n: number): string =>
    `(${n}, repeat(repeat('é', 14) || '\\" ', ${size / 32}), decode(repeat('5c', ${size / 2}), 'hex'), 'streamed')`;
  const keyless = (text: string): string =>
    `(repeat('${text}', ${size}), to_json(repeat('"', ${size})), '${text}')`;
  await sql(
    pair.onSource,
    `UPDATE large SET note = 'left alone' WHERE id = 3000;
     INSERT INTO large VALUES ${insert(4001)}, (4002, 'small', NULL, 'beside it'), ${insert(4003)};
     UPDATE large SET id = 5000 WHERE id = 2999;
     INSERT INTO keyless VALUES ${keyless('b')}, ${keyless('c')}, ${keyless('d')}`,
  );
  await sql(
    pair.onSource,
    `UPDATE large SET body = body || 'more' WHERE id IN (1, 2997, 4001);
     UPDATE keyless SET note = 'e' WHERE note = 'b'; DELETE FROM keyless WHERE note = 'c';
     UPDATE keyless SET body = 'small' WHERE note = 'd'`,
  );
  await harness.caughtUp();
  const read = `SELECT id, md5(body) AS body, length(body) AS length, md5(bytes) AS bytes, note FROM public.large
    UNION ALL SELECT NULL, md5(body), length(body), md5(doc::text), note FROM public.keyless ORDER BY id, note`;
  const [ours, theirs] = await Promise.all([pair.onSource.query(read), pair.onDestination.query(read)]);
  expect(theirs.rows).toEqual(ours.rows);
  expect(ours.rows).toHaveLength(3006);
  const verified = (repair = false) =>
    harness.engine.verify({ direction: 'forward', repair }, AbortSignal.timeout(60_000));
  expect((await verified()).mismatches).toBe(0);
  await pair.onDestination.query(`SET session_replication_role = replica`);
  await sql(
    pair.onDestination,
    `UPDATE large SET body = overlay(body placing '!' from ${size / 2}) WHERE id IN (2998, 4001); DELETE FROM large WHERE id = 2997`,
  );
  expect((await verified()).mismatches).toBe(3);
  await verified(true);
  const after = await pair.onDestination.query(read);
  expect(after.rows).toEqual(ours.rows);
  expect((await verified()).mismatches).toBe(0);
});
