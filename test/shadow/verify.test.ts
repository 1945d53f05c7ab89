import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { UnderstudyError } from '../../src/core/errors.js';
import type { VerifyProgress } from '../../src/core/ports.js';
import { connectControl } from '../../src/core/postgres.js';
import { readTables } from '../../src/shadow/postgres/tables.js';
import { verifyTables } from '../../src/shadow/postgres/verify.js';
import { databasePair, type DatabasePair } from '../support/servers.js';
import { twoCopies, type TwoCopies } from './verify-support.js';

let pair: DatabasePair;
let copies: TwoCopies;
beforeAll(async () => {
  pair = await databasePair();
});
afterAll(async () => {
  await pair[Symbol.asyncDispose]();
});
beforeEach(async () => {
  copies = await twoCopies(pair);
});

/** 1,000 rows on both sides, ids 10, 20 … 10,000. */
async function numbered(): Promise<void> {
  await copies.onBoth(`CREATE TABLE @.item (id bigint PRIMARY KEY, label text);
    INSERT INTO @.item SELECT i * 10, 'item ' || i FROM generate_series(1, 1000) i`);
}

describe('a table with an ordered key', () => {
  test('equal copies have no mismatch, and every row is counted', async () => {
    await numbered();
    const result = await copies.verify({ bucketRows: 64 });
    expect(result).toMatchObject({ rows: 1000, mismatches: 0, position: '0/1' });
    expect(result.verdicts).toEqual([
      { table: `${copies.schema}.item`, rows: 1000, mismatches: 0, differingKeys: [] },
    ]);
  });

  test('changed, missing and extra rows are named, before the first key and beyond the last', async () => {
    await numbered();
    await copies.onDestination(`
      UPDATE @.item SET label = 'changed' WHERE id = 10;
      UPDATE @.item SET label = NULL WHERE id = 5120;
      DELETE FROM @.item WHERE id IN (20, 10000);
      INSERT INTO @.item VALUES (1, 'before'), (5125, 'between'), (10001, 'after')`);
    const { mismatches, verdicts } = await copies.verify({ bucketRows: 100 });
    expect(mismatches).toBe(7);
    const byKey = (a: { key: string }, b: { key: string }): number => Number(a.key) - Number(b.key);
    expect([...(verdicts[0]?.differingKeys ?? [])].sort(byKey)).toEqual([
      { key: '1', difference: 'extra' },
      { key: '10', difference: 'different' },
      { key: '20', difference: 'missing' },
      { key: '5120', difference: 'different' },
      { key: '5125', difference: 'extra' },
      { key: '10000', difference: 'missing' },
      { key: '10001', difference: 'extra' },
    ]);
  });

  test('two rows that swapped their values both differ', async () => {
    await numbered();
    await copies.onDestination(`UPDATE @.item SET label = CASE id WHEN 10 THEN 'item 2' ELSE 'item 1' END
      WHERE id IN (10, 20)`);
    expect(await copies.verify()).toMatchObject({ mismatches: 2 });
  });

  test('an empty follower lacks every row, a filled one behind an empty source has only extras', async () => {
    await numbered();
    await copies.onDestination('TRUNCATE @.item');
    expect(await copies.verify({ bucketRows: 128 })).toMatchObject({ mismatches: 1000 });
    await copies.onDestination('INSERT INTO @.item SELECT * FROM generate_series(1, 300)');
    await copies.onSource('TRUNCATE @.item');
    const { verdicts } = await copies.verify();
    expect(verdicts[0]).toMatchObject({ rows: 0, mismatches: 300 });
    expect(verdicts[0]?.differingKeys).toHaveLength(100);
  });

  test('a composite key is walked in the order of its index, whatever the order of its columns', async () => {
    await copies.onBoth(`CREATE TABLE @.stock (a int, b date, c uuid, n int, PRIMARY KEY (c, a, b));
      INSERT INTO @.stock SELECT i % 7, '2024-01-01'::date + i % 11, md5(i::text)::uuid, i FROM generate_series(1, 500) i`);
    expect(await copies.verify({ bucketRows: 33 })).toMatchObject({ rows: 500, mismatches: 0 });
    await copies.onDestination('DELETE FROM @.stock WHERE n = 250');
    const { verdicts } = await copies.verify({ bucketRows: 33 });
    expect(verdicts[0]).toMatchObject({ mismatches: 1 });
    expect(verdicts[0]?.differingKeys).toEqual([
      { key: '6c9882bb-ac1c-7093-bd25-041881277658,5,2024-01-09', difference: 'missing' },
    ]);
  });

  test('a table whose follower has no index yet is compared all the same', async () => {
    await copies.onSource('CREATE TABLE @.late (id int PRIMARY KEY, v int)');
    await copies.onDestination('CREATE TABLE @.late (id int NOT NULL, v int)');
    await copies.onBoth('INSERT INTO @.late SELECT i, i FROM generate_series(1, 200) i');
    expect(await copies.verify()).toMatchObject({ rows: 200, mismatches: 0 });
    await copies.onDestination('UPDATE @.late SET v = 0 WHERE id = 77');
    const { verdicts } = await copies.verify();
    expect(verdicts[0]?.differingKeys).toEqual([{ key: '77', difference: 'different' }]);
  });

  test('progress counts rows over all tables and ends with all of them done', async () => {
    await numbered();
    await copies.onBoth('CREATE TABLE @.other (id int PRIMARY KEY); INSERT INTO @.other VALUES (1)');
    const seen: VerifyProgress[] = [];
    await copies.verify({ bucketRows: 250, onProgress: (progress) => seen.push(progress) });
    expect(seen.map((progress) => progress.rows)).toEqual(
      seen.map((progress) => progress.rows).toSorted((a, b) => a - b),
    );
    expect(seen.length).toBeGreaterThan(6);
    expect(seen.at(-1)).toMatchObject({ tablesDone: 2, tablesTotal: 2, rows: 1001 });
  });
});

describe('a table whose key sorts differently on the two servers', () => {
  const words = `SELECT w || n, n FROM unnest(ARRAY['a', 'B', 'ä', 'Z', '_', '-', 'é']) w, generate_series(1, 100) n`;

  test('other collations of a text key make no mismatch, and real ones are still found', async () => {
    await copies.onSource('CREATE TABLE @.word (word text COLLATE "und-x-icu" PRIMARY KEY, n int)');
    await copies.onDestination('CREATE TABLE @.word (word text COLLATE "C" PRIMARY KEY, n int)');
    await copies.onBoth(`INSERT INTO @.word ${words}`);
    expect(await copies.verify({ bucketRows: 50 })).toMatchObject({ rows: 700, mismatches: 0 });
    await copies.onDestination(`UPDATE @.word SET n = 0 WHERE word = 'ä7';
      DELETE FROM @.word WHERE word = '_1'; INSERT INTO @.word VALUES ('~', 1)`);
    const { verdicts } = await copies.verify({ bucketRows: 50 });
    expect(new Map(verdicts[0]?.differingKeys.map(({ key, difference }) => [key, difference]))).toEqual(
      new Map([
        ['ä7', 'different'],
        ['_1', 'missing'],
        ['~', 'extra'],
      ]),
    );
  });

  test('an enum, a domain over text, a char(n) and a boolean can be keys', async () => {
    await copies.onBoth(`CREATE TYPE @.mood AS ENUM ('sad', 'ok');
      CREATE DOMAIN @.code AS text CHECK (length(VALUE) < 9);
      CREATE TABLE @.t (m @.mood, c @.code, f char(4), b bool, v int, PRIMARY KEY (m, c, f, b));
      INSERT INTO @.t SELECT m::@.mood, 'c' || i, 'f' || i % 3, i % 2 = 0, i
        FROM unnest(ARRAY['sad', 'ok']) m, generate_series(1, 50) i`);
    expect(await copies.verify()).toMatchObject({ rows: 100, mismatches: 0 });
    await copies.onDestination(`UPDATE @.t SET v = 0 WHERE c = 'c9' AND m = 'ok'`);
    const { verdicts } = await copies.verify();
    expect(verdicts[0]?.differingKeys).toEqual([{ key: 'ok,c9,f0,false', difference: 'different' }]);
  });

  test('names and keys full of quotes, commas and backslashes are handled', async () => {
    await copies.onBoth(`CREATE TABLE @."we""ird, 'table' %L" ("k""1" text, "K 2'" text, "v%s" text,
        PRIMARY KEY ("k""1", "K 2'"));
      INSERT INTO @."we""ird, 'table' %L" VALUES ('a,b', 'c', 'x'), ('a', 'b,c', 'x'), (E'q\\'\\\\', '"', E'\\n'), ('', '', '')`);
    expect(await copies.verify()).toMatchObject({ rows: 4, mismatches: 0 });
    await copies.onDestination(`UPDATE @."we""ird, 'table' %L" SET "v%s" = NULL WHERE "k""1" = ''`);
    expect(await copies.verify()).toMatchObject({ mismatches: 1 });
  });
});

describe('a table without a key', () => {
  test('is compared as a multiset: copies count, order does not', async () => {
    await copies.onBoth('CREATE TABLE @.log (at timestamptz, line text)');
    const lines = `SELECT '2024-01-01Z'::timestamptz, 'line ' || i % 10 FROM generate_series(1, 200) i`;
    await copies.onSource(`INSERT INTO @.log ${lines}`);
    await copies.onDestination(`INSERT INTO @.log ${lines} ORDER BY i DESC`);
    expect(await copies.verify()).toMatchObject({ rows: 200, mismatches: 0 });
    await copies.onDestination(`
      DELETE FROM @.log WHERE ctid IN (SELECT ctid FROM @.log WHERE line = 'line 3' LIMIT 2);
      INSERT INTO @.log VALUES ('2024-01-01Z', 'line 4'), (NULL, 'new')`);
    const { verdicts } = await copies.verify();
    expect(verdicts[0]).toMatchObject({ rows: 200, mismatches: 4 });
    expect(verdicts[0]?.differingKeys.map(({ difference }) => difference).toSorted()).toEqual([
      'different',
      'different',
      'extra',
    ]);
    // Only a hash names such a row: its values must not leave the database.
    for (const { key } of verdicts[0]?.differingKeys ?? []) expect(key).toMatch(/^[0-9a-f]{32}$/);
  });

  test('NULL, the empty string, the word NULL and moved separators are all different', async () => {
    await copies.onBoth('CREATE TABLE @.pairs (a text, b text)');
    const rows = [`(NULL, '')`, `('', NULL)`, `('NULL', '')`, `('a,', 'b')`, `('a', ',b')`, `($$'$$, '')`];
    for (const here of rows) {
      for (const there of rows) {
        await copies.onSource(`TRUNCATE @.pairs; INSERT INTO @.pairs VALUES ${here}`);
        await copies.onDestination(`TRUNCATE @.pairs; INSERT INTO @.pairs VALUES ${there}`);
        const { mismatches } = await copies.verify({ recheckRoundsMax: 1 });
        expect(mismatches === 0, `${here} against ${there}`).toBe(here === there);
      }
    }
  });
});

describe('values', () => {
  test('every type prints alike on both servers, whatever their defaults', async () => {
    await pair.onSource.query(`ALTER DATABASE ${pair.source.database} SET DateStyle = 'German'`);
    await pair.onDestination.query(`ALTER DATABASE ${pair.source.database} SET TimeZone = 'Asia/Tokyo'`);
    await pair.onDestination.query(`ALTER DATABASE ${pair.source.database} SET IntervalStyle = 'iso_8601'`);
    await pair.onDestination.query(`ALTER DATABASE ${pair.source.database} SET bytea_output = 'escape'`);
    await pair.onDestination.query(`ALTER DATABASE ${pair.source.database} SET extra_float_digits = -5`);
    await copies.onBoth(`CREATE TYPE @.point3 AS (x float8, y numeric, label text);
      CREATE TABLE @.zoo (id int PRIMARY KEY, f4 float4, f8 float8, n numeric, ts timestamp, tz timestamptz,
        d date, t time, i interval, j json, jb jsonb, by bytea, a int[], ta text[], p @.point3, u uuid, ip inet,
        r int4range, b bit(3), m money, x xml, ch "char", nm name, g point, ts2 tsvector, o oid, c char(5),
        rg regclass, bo bool, gen int GENERATED ALWAYS AS (id * 2) STORED);
      INSERT INTO @.zoo VALUES
        (1, 'NaN', '-0', 'NaN', 'infinity', '-infinity', '0044-03-15 BC', '24:00', '1 mon -2 days 03:04:05.6',
         '{"a" :1, "a":2}', '{"b":1.00,"a":[]}', '\\x00ff27', '{NULL,1}', ARRAY['NULL', NULL, '', '"'],
         ROW('-Infinity', 1.10, NULL), '00000000-0000-0000-0000-00000000000a', '10.0.0.0/8', 'empty', '101', 12.34,
         '<a>&lt;</a>', 'x', 'n', '(1.1,-0)', 'fat cats', 4294967295, 'ab', 'pg_catalog.pg_class', true),
        (2, 1e-40, 0.1, 1.100, '2024-02-29 12:34:56.789012', '2024-06-01 00:00:00+02', 'infinity', '00:00:00.000001',
         '-1 year', '[1, 2]', 'null', '', '{}', '{{a,b},{c,d}}', NULL, NULL, '::1', '[1,5)', '000', -0.01,
         NULL, '', '', '(NaN,Infinity)', '', 0, '', NULL, false)`);
    const [source, destination] = await Promise.all([
      connectControl('source', pair.source, { purpose: 'verify' }),
      connectControl('destination', pair.destination, { purpose: 'verify' }),
    ]);
    try {
      const tables = (await readTables(source)).filter((table) => table.schema === copies.schema);
      const verify = async (): Promise<number> =>
        (
          await verifyTables({ authoritative: source, follower: destination }, tables, {
            settle: () => Promise.resolve(''),
            signal: new AbortController().signal,
          })
        ).mismatches;
      expect(await verify()).toBe(0);
      const changes = [
        'f8 = 0 WHERE id = 1',
        'n = 1.1 WHERE id = 2',
        "ts = '2024-02-29 12:34:56.789013' WHERE id = 2",
        `j = '{"a":1, "a":2}' WHERE id = 1`,
        `jb = NULL WHERE id = 2`,
        `by = NULL WHERE id = 2`,
        `a = NULL WHERE id = 2`,
        `c = 'abc' WHERE id = 1`,
        `m = -0.02 WHERE id = 2`,
        `p.label = '' WHERE id = 1`,
      ];
      for (const change of changes) {
        await destination.query(`BEGIN; UPDATE ${copies.schema}.zoo SET ${change}`);
        expect(await verify(), change).toBe(1);
        await destination.query('ROLLBACK');
      }
    } finally {
      await Promise.all([source.end(), destination.end()]);
    }
  });

  test('databases of different encodings compare equal, letter by letter', async () => {
    const latin = `${pair.source.database}_latin1`;
    await pair.onSource.query(
      `CREATE DATABASE ${latin} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0`,
    );
    const source = await connectControl('source', { ...pair.source, database: latin }, { purpose: 'verify' });
    try {
      const create = `CREATE SCHEMA IF NOT EXISTS ${copies.schema};
        CREATE TABLE ${copies.schema}.word (w text PRIMARY KEY, v text);
        INSERT INTO ${copies.schema}.word VALUES ('für', 'Ärger'), ('naïve', 'à')`;
      await source.query(create);
      await pair.onDestination.query(create);
      const tables = await readTables(source);
      const verify = (): ReturnType<typeof verifyTables> =>
        verifyTables({ authoritative: source, follower: pair.onDestination }, tables, {
          settle: () => Promise.resolve(''),
          signal: new AbortController().signal,
        });
      expect(await verify()).toMatchObject({ rows: 2, mismatches: 0 });
      await copies.onDestination(`UPDATE @.word SET v = 'Arger' WHERE w = 'für'`);
      expect((await verify()).verdicts[0]?.differingKeys).toEqual([{ key: 'für', difference: 'different' }]);
    } finally {
      await source.end();
      await pair.onSource.query(`DROP DATABASE ${latin} WITH (FORCE)`);
    }
  });

  test('columns in another order, dropped ones and computed ones compare by name', async () => {
    await copies.onSource(`CREATE TABLE @.t (gone int, id int PRIMARY KEY, a text, b int GENERATED ALWAYS AS (id + 1) STORED);
      ALTER TABLE @.t DROP gone; INSERT INTO @.t SELECT i, 'a' || i FROM generate_series(1, 20) i`);
    await copies.onDestination(`CREATE TABLE @.t (a text, b int, id int PRIMARY KEY);
      INSERT INTO @.t SELECT 'a' || i, i + 1, i FROM generate_series(1, 20) i`);
    expect(await copies.verify()).toMatchObject({ rows: 20, mismatches: 0 });
    await copies.onDestination('UPDATE @.t SET b = 0 WHERE id = 3');
    expect(await copies.verify()).toMatchObject({ mismatches: 1 });
  });

  test('a hundred and fifty columns are within what one statement can hash', async () => {
    const columns = Array.from({ length: 150 }, (_, index) => `c${index} int DEFAULT ${index}`).join(', ');
    await copies.onBoth(
      `CREATE TABLE @.wide (id int PRIMARY KEY, ${columns}); INSERT INTO @.wide VALUES (1), (2)`,
    );
    expect(await copies.verify()).toMatchObject({ rows: 2, mismatches: 0 });
    await copies.onDestination('UPDATE @.wide SET c149 = NULL WHERE id = 2');
    expect(await copies.verify()).toMatchObject({ mismatches: 1 });
  });
});

describe('what is compared', () => {
  test('partition leaves and inheritance parents are compared each for themselves', async () => {
    await copies.onBoth(`
      CREATE TABLE @.sale (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
      CREATE TABLE @.sale_23 PARTITION OF @.sale FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
      CREATE TABLE @.sale_24 PARTITION OF @.sale FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
      INSERT INTO @.sale SELECT i, '2023-12-25'::date + i FROM generate_series(1, 20) i;
      CREATE TABLE @.parent (id int PRIMARY KEY); CREATE TABLE @.child (PRIMARY KEY (id)) INHERITS (@.parent);
      INSERT INTO @.parent VALUES (1); INSERT INTO @.child VALUES (1), (2)`);
    const { verdicts, rows } = await copies.verify();
    expect(rows).toBe(23);
    expect(
      verdicts.map((verdict) => [verdict.table.split('.')[1], verdict.rows, verdict.mismatches]),
    ).toEqual([
      ['child', 2, 0],
      ['parent', 1, 0],
      ['sale_23', 6, 0],
      ['sale_24', 14, 0],
    ]);
  });

  test('row security never shrinks the comparison: a role it binds is refused, not half-answered', async () => {
    await copies.onBoth(`CREATE TABLE @.tenant (id int PRIMARY KEY, who text); INSERT INTO @.tenant
        SELECT i, CASE i % 2 WHEN 0 THEN 'us' ELSE 'them' END FROM generate_series(1, 10) i;
      ALTER TABLE @.tenant ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
      CREATE POLICY ours ON @.tenant USING (who = 'us')`);
    // As superuser every row counts, hidden ones too.
    await copies.onDestination(`DELETE FROM @.tenant WHERE id = 1`);
    expect(await copies.verify()).toMatchObject({ rows: 10, mismatches: 1 });
    const role = `bound_${copies.schema}`;
    await copies.onSource(`CREATE ROLE ${role} LOGIN PASSWORD 'pw'; GRANT USAGE ON SCHEMA @ TO ${role};
      GRANT SELECT ON @.tenant TO ${role}`);
    const bound = await connectControl(
      'source',
      { ...pair.source, user: role, password: 'pw' },
      { purpose: 'verify' },
    );
    try {
      const verifying = verifyTables(
        { authoritative: bound, follower: pair.onDestination },
        await copies.tables(),
        { settle: () => Promise.resolve(''), signal: new AbortController().signal },
      );
      await expect(verifying).rejects.toMatchObject({
        code: 'source-query-failed',
        details: { sqlState: '42501' },
      });
    } finally {
      await bound.end();
      await copies.onSource(`DROP OWNED BY ${role}; DROP ROLE ${role}`);
    }
  });

  test('a connection whose output is not pinned is refused', async () => {
    await numbered();
    await pair.onDestination.query(`SET TimeZone = 'Asia/Tokyo'`);
    try {
      await expect(copies.verify()).rejects.toMatchObject({ code: 'internal' });
    } finally {
      await pair.onDestination.query(`SET TimeZone = 'UTC'`);
    }
  });

  test('a table missing on the follower is an error that names the side', async () => {
    await copies.onSource('CREATE TABLE @.only (id int PRIMARY KEY)');
    await expect(copies.verify()).rejects.toMatchObject({
      code: 'destination-query-failed',
      details: { sqlState: '42P01' },
    });
  });

  test('cancelling stops at once, in the middle of a scan too', async () => {
    await copies.onBoth('CREATE TABLE @.slow (id int PRIMARY KEY); INSERT INTO @.slow VALUES (1)');
    const [source, destination] = await Promise.all([
      connectControl('source', pair.source, { purpose: 'verify' }),
      connectControl('destination', pair.destination, { purpose: 'verify' }),
    ]);
    const tables = await copies.tables();
    await pair.onDestination.query(`BEGIN; LOCK TABLE ${copies.schema}.slow IN ACCESS EXCLUSIVE MODE`);
    const controller = new AbortController();
    try {
      const verifying = verifyTables({ authoritative: source, follower: destination }, tables, {
        settle: () => Promise.resolve(''),
        signal: controller.signal,
        onProgress: () => setImmediate(() => controller.abort(new UnderstudyError('cancelled', 'enough'))),
      });
      await expect(verifying).rejects.toMatchObject({ code: 'cancelled' });
    } finally {
      await pair.onDestination.query('ROLLBACK');
      await Promise.all([source.end(), destination.end()]);
    }
  });
});
