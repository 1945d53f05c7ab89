import { expect, test } from 'vitest';
import { databasePair, type DatabasePair } from '../support/servers.js';
import { EngineHarness, sql } from './engine-harness.js';

/** A shadow that follows a source made by `setup`, after which `change` is streamed; both sides must then be equal. */
async function follows(
  setup: string,
  changes: readonly string[],
  inspect: (pair: DatabasePair, harness: EngineHarness) => Promise<void> = async () => undefined,
): Promise<void> {
  await using pair = await databasePair();
  await sql(pair.onSource, setup);
  await using harness = await new EngineHarness(pair).start().reach('following');
  for (const change of changes) await sql(pair.onSource, change);
  await harness.caughtUp();
  await harness.expectSame();
  await inspect(pair, harness);
}

/** Ten kilobytes that don't compress, so that the value is stored out of line. */
const LARGE = `(SELECT string_agg(md5(g::text || random()::text), '') FROM generate_series(1, 300) g)`;

test('unchanged out-of-line columns are left alone, also when the key moves', async () => {
  await follows(
    `CREATE TABLE doc (id int PRIMARY KEY, body text, title text, other text);
     INSERT INTO doc SELECT n, ${LARGE}, 't' || n, ${LARGE} FROM generate_series(1, 20) n`,
    [
      `UPDATE doc SET title = 'changed' WHERE id <= 5`,
      `UPDATE doc SET id = id + 100 WHERE id BETWEEN 4 AND 8`,
      // Chains inside one flush: a full change after a partial one, a move of a moved row, a move into a freed key.
      `BEGIN; UPDATE doc SET title = 'x' WHERE id = 10; UPDATE doc SET body = 'small' WHERE id = 10;
       UPDATE doc SET title = 'y' WHERE id = 10; UPDATE doc SET id = 210 WHERE id = 10;
       UPDATE doc SET id = 310 WHERE id = 210; UPDATE doc SET title = 'z' WHERE id = 310; COMMIT`,
      `BEGIN; UPDATE doc SET id = 400 WHERE id = 11; UPDATE doc SET id = 11 WHERE id = 12;
       UPDATE doc SET id = 12 WHERE id = 400; COMMIT`,
      `BEGIN; DELETE FROM doc WHERE id = 13; INSERT INTO doc VALUES (13, 'new', 'new', NULL);
       UPDATE doc SET title = 'newer' WHERE id = 13; COMMIT`,
      `BEGIN; INSERT INTO doc VALUES (500, ${LARGE}, 'a', ${LARGE}); UPDATE doc SET title = 'b' WHERE id = 500;
       UPDATE doc SET id = 501 WHERE id = 500; COMMIT`,
    ],
  );
});

test('an identity of FULL or by index carries what the new row leaves out', async () => {
  await follows(
    `CREATE TABLE f (id int PRIMARY KEY, body text, title text); ALTER TABLE f REPLICA IDENTITY FULL;
     INSERT INTO f SELECT n, ${LARGE}, 't' FROM generate_series(1, 5) n;
     CREATE TABLE i (id int PRIMARY KEY, code text NOT NULL, part int NOT NULL, body text);
     CREATE UNIQUE INDEX i_code ON i (part, code); ALTER TABLE i REPLICA IDENTITY USING INDEX i_code;
     INSERT INTO i SELECT n, 'c' || n, n % 2, ${LARGE} FROM generate_series(1, 10) n`,
    [
      `UPDATE f SET title = 'u'; UPDATE f SET id = id + 10 WHERE id < 3; DELETE FROM f WHERE id = 5`,
      `UPDATE i SET id = id + 100; UPDATE i SET code = code || '!' WHERE part = 1; DELETE FROM i WHERE code = 'c2'`,
    ],
  );
});

test('rows of a table without a key are applied one by one, duplicates and all', async () => {
  await follows(
    `CREATE TABLE k (a int, b numeric, c jsonb, d json, e point, f bool, g char(5), h inet, body text);
     INSERT INTO k SELECT 1, 1.0, '{"a":1}', '{"a": 1}', '(1,2)', true, 'ab', '10.0.0.1', NULL
       FROM generate_series(1, 5);
     INSERT INTO k VALUES (NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, ${LARGE});
     CREATE TABLE empty (); INSERT INTO empty DEFAULT VALUES; INSERT INTO empty DEFAULT VALUES`,
    [
      `INSERT INTO k SELECT 1, 1.00, '{"a":1}', '{"a": 1}', '(1,2)', true, 'ab', '10.0.0.1', NULL
         FROM generate_series(1, 3)`,
      `DELETE FROM k WHERE ctid IN (SELECT ctid FROM k WHERE b::text = '1.00' LIMIT 1)`,
      `UPDATE k SET f = false WHERE ctid IN (SELECT ctid FROM k WHERE b::text = '1.0' LIMIT 2)`,
      `UPDATE k SET a = 7 WHERE a IS NULL`,
      `INSERT INTO empty DEFAULT VALUES`,
      `DELETE FROM empty WHERE ctid IN (SELECT ctid FROM empty LIMIT 1)`,
    ],
    async (pair) => {
      const { rows } = await pair.onDestination.query('SELECT count(*) AS n FROM public.empty');
      expect(rows).toEqual([{ n: '2' }]);
    },
  );
});

test('unique values may be swapped and passed on inside one flush', async () => {
  await follows(
    `CREATE TABLE u (id int PRIMARY KEY, email text UNIQUE, rank int, body text,
       UNIQUE (rank) DEFERRABLE INITIALLY DEFERRED, EXCLUDE USING gist (circle(point(id, 0), 0.1) WITH &&));
     INSERT INTO u SELECT n, 'e' || n, n, ${LARGE} FROM generate_series(1, 10) n`,
    [
      `BEGIN; UPDATE u SET email = 'tmp' WHERE id = 1; UPDATE u SET email = 'e1' WHERE id = 2;
       UPDATE u SET email = 'e2' WHERE id = 1; COMMIT`,
      `BEGIN; UPDATE u SET rank = 11 - rank; COMMIT`,
      `BEGIN; DELETE FROM u WHERE id = 5; INSERT INTO u VALUES (15, 'e5', 15, 'x');
       UPDATE u SET email = 'e6x' WHERE id = 6; INSERT INTO u VALUES (16, 'e6', 16, 'x'); COMMIT`,
      `BEGIN; UPDATE u SET id = 100 WHERE id = 7; UPDATE u SET id = 7 WHERE id = 8; UPDATE u SET id = 8 WHERE id = 100; COMMIT`,
    ],
  );
});

test('truncation, partitions, children and identity columns', async () => {
  await follows(
    `CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (extra text) INHERITS (parent);
     ALTER TABLE child ADD PRIMARY KEY (id);
     CREATE TABLE part (id int, region text, body text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
     CREATE TABLE part_a PARTITION OF part FOR VALUES IN ('a');
     CREATE TABLE part_b PARTITION OF part FOR VALUES IN ('b') PARTITION BY RANGE (id);
     CREATE TABLE part_b1 PARTITION OF part_b FOR VALUES FROM (0) TO (100);
     CREATE TABLE part_b2 PARTITION OF part_b DEFAULT;
     CREATE TABLE line (id int PRIMARY KEY, part_id int, region text, FOREIGN KEY (part_id, region) REFERENCES part);
     CREATE TABLE ident (id int PRIMARY KEY, n bigint GENERATED ALWAYS AS IDENTITY, v text, body text,
       doubled int GENERATED ALWAYS AS (id * 2) STORED);
     CREATE TABLE always (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text);
     INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1, 'c');
     INSERT INTO part SELECT n, CASE n % 2 WHEN 0 THEN 'a' ELSE 'b' END, ${LARGE} FROM generate_series(1, 300) n;
     INSERT INTO line SELECT id, id, region FROM part;
     INSERT INTO ident (id, v, body) SELECT n, 'v', ${LARGE} FROM generate_series(1, 5) n;
     INSERT INTO always (v) VALUES ('a'), ('b')`,
    [
      `UPDATE part SET region = 'b' WHERE id = 2 AND NOT EXISTS (SELECT FROM line WHERE part_id = 2 AND line.id < 0)
         AND false; DELETE FROM line WHERE id = 2; UPDATE part SET region = 'b' WHERE id = 2;
       UPDATE parent SET id = 2 WHERE id = 1`,
      `UPDATE ident SET v = 'w' WHERE id < 3; UPDATE ident SET id = id + 10 WHERE id = 3;
       UPDATE ident SET n = DEFAULT WHERE id = 4; INSERT INTO ident (id, v) VALUES (20, 'x')`,
      `UPDATE always SET v = 'c' WHERE id = 1; INSERT INTO always (v) VALUES ('z');
       INSERT INTO always (id, v) OVERRIDING SYSTEM VALUE VALUES (100, 'forced')`,
      `BEGIN; INSERT INTO line VALUES (1000, 1, 'b'); TRUNCATE part, line; INSERT INTO part VALUES (1, 'a', 'after'); COMMIT`,
      `TRUNCATE parent; INSERT INTO part VALUES (7, 'b', 'x'); TRUNCATE part_b CASCADE`,
      `INSERT INTO child VALUES (9, 'd'); TRUNCATE ONLY parent`,
    ],
  );
});

test('row security does not shrink the shadow', async () => {
  await follows(
    `CREATE TABLE tenant (id int PRIMARY KEY, owner text);
     ALTER TABLE tenant ENABLE ROW LEVEL SECURITY; ALTER TABLE tenant FORCE ROW LEVEL SECURITY;
     CREATE POLICY mine ON tenant USING (owner = current_setting('app.owner', true));
     INSERT INTO tenant SELECT n, 'o' || n % 3 FROM generate_series(1, 50) n`,
    [`INSERT INTO tenant VALUES (51, 'other')`],
    async (pair, harness) => {
      expect((await harness.engine.status()).copy.rows).toBe(50);
      const { rows } = await pair.onDestination.query('SELECT count(*) AS n FROM public.tenant');
      expect(rows).toEqual([{ n: '51' }]);
    },
  );
});

test('the application can update a table without a key from the first moment on', async () => {
  await using pair = await databasePair();
  await sql(
    pair.onSource,
    'CREATE TABLE k (v text); INSERT INTO k VALUES (1), (2); CREATE TABLE n (id int PRIMARY KEY); ALTER TABLE n REPLICA IDENTITY NOTHING',
  );
  await using harness = new EngineHarness(pair).start();
  for (let round = 0; round < 50; round++) {
    // Published without an identity, this very statement would fail.
    await sql(pair.onSource, `UPDATE k SET v = v || '.'`);
    await new Promise((resolve) => setImmediate(resolve));
  }
  await harness.reach('following');
  await sql(pair.onSource, `UPDATE k SET v = v || '!'; INSERT INTO n VALUES (1); UPDATE n SET id = 2`);
  await harness.caughtUp();
  await harness.expectSame();
  // What it was before is recorded, for when the migration ends.
  const { rows } = await pair.onSource.query(
    'SELECT table_name, before FROM understudy.identity_change ORDER BY table_name',
  );
  expect(rows).toEqual([
    { table_name: 'k', before: 'd' },
    { table_name: 'n', before: 'n' },
  ]);
});
