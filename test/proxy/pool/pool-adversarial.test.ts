/**
 * Reads behind which somebody else's code stands, by every way PostgreSQL has of running it unasked: none of them may
 * go down a shared connection, where a setting it made, or a lock it took, would be another client's.
 */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { FACTS_QUERY, isHarmless, readFacts } from '../../../src/proxy/pool/catalog-facts.js';
import { POOL_DEFAULTS, type PoolStatus } from '../../../src/proxy/pool/pool-settings.js';
import { shapeOfRead } from '../../../src/proxy/pool/sql-shape.js';
import { databasePair, until, type DatabasePair } from '../../support/servers.js';
import { RawClient, frame, send, sqlStates, startProxy, type RunningProxy } from '../proxy-support.js';

const LONG = `long_${'x'.repeat(58)}`;

const SCHEMA = `
  SET search_path = public;
  CREATE FUNCTION leak(text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE
    AS $$ BEGIN PERFORM set_config('app.leaked', $1, false); RETURN true; END $$;
  CREATE FUNCTION steady() RETURNS int LANGUAGE sql STABLE AS 'SELECT 1';
  CREATE TYPE mood AS ENUM ('sad', 'happy');
  CREATE TYPE pair AS (a int, b int);
  CREATE DOMAIN checked AS text CHECK (leak(VALUE));
  CREATE DOMAIN short AS text CHECK (length(VALUE) < 9);
  CREATE TYPE outer_pair AS (c checked);
  CREATE TYPE deep AS (d outer_pair[]);
  CREATE DOMAIN paired AS pair;
  CREATE TABLE holds (id int, c checked);
  CREATE TABLE nests (id int, n deep);
  CREATE TABLE plain (id int DEFAULT floor(random() * 9)::int, m mood, s short, p pair, q paired);
  INSERT INTO plain VALUES (1, 'sad', 'x', (1, 2), (1, 2));
  CREATE FUNCTION to_mood(int) RETURNS mood LANGUAGE sql AS $$ SELECT CASE WHEN leak('cast') THEN 'sad'::mood END $$;
  CREATE CAST (int AS mood) WITH FUNCTION to_mood(int);
  CREATE FUNCTION mood_is(mood, text) RETURNS boolean LANGUAGE sql AS 'SELECT leak($2)';
  CREATE OPERATOR = (LEFTARG = mood, RIGHTARG = text, FUNCTION = mood_is);
  CREATE OPERATOR <= (LEFTARG = mood, RIGHTARG = text, FUNCTION = mood_is);
  CREATE OPERATOR >= (LEFTARG = mood, RIGHTARG = text, FUNCTION = mood_is);
  CREATE OPERATOR ~~ (LEFTARG = mood, RIGHTARG = text, FUNCTION = mood_is);
  CREATE FUNCTION whole(paired) RETURNS int LANGUAGE sql AS 'SELECT 1';
  CREATE FUNCTION first_of(VARIADIC pair[]) RETURNS int LANGUAGE sql AS 'SELECT 1';
  CREATE VIEW casting AS SELECT 1::mood AS m;
  CREATE VIEW arrays AS SELECT '{x}'::checked[] AS c;
  CREATE VIEW ${LONG} AS SELECT leak('long');
  CREATE VIEW "zähler" AS SELECT leak('letters');
  CREATE TABLE ruled (a boolean);
  CREATE RULE "_RETURN" AS ON SELECT TO ruled DO INSTEAD SELECT leak('rule') AS a;
  CREATE TABLE parent (id int);
  CREATE TABLE child (other int) INHERITS (parent);
  ALTER TABLE child ENABLE ROW LEVEL SECURITY;
  CREATE POLICY p ON child USING (leak('policy'));
  CREATE VIEW over_policy AS SELECT * FROM child;`;

let pair: DatabasePair;
let running: RunningProxy;

beforeAll(async () => {
  pair = await databasePair();
  await pair.onSource.query(SCHEMA);
  running = await startProxy(pair, {
    pool: { ...POOL_DEFAULTS, poolMode: 'pipelined', sharedConnections: 1, sharedReadBoundMs: 20_000 },
  });
  await using client = await raw();
  await sharing(client);
});

afterAll(async () => {
  await running[Symbol.asyncDispose]();
  await pair[Symbol.asyncDispose]();
});

const raw = (): Promise<RawClient> => RawClient.connect(running.port, running.database);
const shared = (): PoolStatus['shared'] => {
  const [only] = running.proxy.status().pools;
  if (only === undefined) throw new Error('there is no pool');
  return only.shared;
};

async function sharing(client: RawClient): Promise<void> {
  await until(async () => (await sharedBy(() => client.column('SELECT 1 AS ready'))) > 0);
}

async function sharedBy(work: () => Promise<unknown>): Promise<number> {
  const before = shared().statements;
  await work();
  return shared().statements - before;
}

describe('runs what it does not name', () => {
  test.each([
    ['a stable function of one’s own, which may become volatile', 'SELECT steady()'],
    ['a domain by its array type’s name', "SELECT '{x}'::_checked"],
    ['a domain inside a composite type', "SELECT '(x)'::outer_pair"],
    ['a domain inside an array inside a composite type', `SELECT '("{(x)}")'::deep`],
    ['a domain inside a table’s row type', "SELECT '(1,x)'::holds"],
    ['the same as a typed literal', "SELECT holds '(1,x)'"],
    ['the same from JSON', `SELECT * FROM json_populate_record(NULL::holds, '{"c": "x"}')`],
    ['an explicit cast', 'SELECT 1::mood'],
    ['an explicit cast as a function', 'SELECT CAST(1 AS mood)'],
    ['an explicit cast to an array', 'SELECT ARRAY[1]::mood[]'],
    ['an explicit cast to an array by its name', 'SELECT ARRAY[1]::_mood'],
    ['an explicit cast in a view', 'SELECT m FROM casting'],
    ['a domain’s array in a view', 'SELECT c FROM arrays'],
    ['an operator behind IN', "SELECT m IN ('x'::text) FROM plain"],
    ['an operator behind NULLIF', "SELECT NULLIF(m, 'x'::text) FROM plain"],
    ['an operator behind CASE', "SELECT CASE m WHEN 'x'::text THEN 1 END FROM plain"],
    ['an operator behind BETWEEN', "SELECT m BETWEEN 'x'::text AND 'y'::text FROM plain"],
    ['an operator behind LIKE', "SELECT m LIKE 'x'::text FROM plain"],
    ['an operator behind IS DISTINCT FROM', "SELECT m IS DISTINCT FROM 'x'::text FROM plain"],
    ['an operator behind USING', "SELECT 1 FROM plain JOIN (SELECT 'x'::text AS m) o USING (m)"],
    ['an operator behind NATURAL', "SELECT 1 FROM plain NATURAL JOIN (SELECT 'x'::text AS m) o"],
    ['an attribute that is a function of a domain', 'SELECT (q).whole FROM plain'],
    ['an attribute that is a function of any number of rows', 'SELECT (p).first_of FROM plain'],
    ['a view by a name that is cut', `SELECT * FROM ${LONG}_and_more`],
    ['a view by a quoted name that is cut', `SELECT * FROM "${LONG}_and_more"`],
    ['a view whose name has other letters', 'SELECT * FROM "zähler"'],
    ['a rule', 'SELECT * FROM ruled'],
    ['a policy', 'SELECT * FROM child'],
    ['a policy behind a view', 'SELECT * FROM over_policy'],
  ])('%s', async (_what, sql) => {
    await using client = await raw();
    expect(await sharedBy(() => client.run([send.query(sql)]))).toBe(0);
    expect(
      await sharedBy(() =>
        client.run([send.parse(sql), send.bind(), send.describe('P'), send.execute(), send.sync()]),
      ),
    ).toBe(0);
  });

  test('a parameter that is declared to be of a domain', async () => {
    await using client = await raw();
    const [oid = '0'] = await client.column("SELECT 'checked'::regtype::oid");
    const type = Buffer.alloc(4);
    type.writeUInt32BE(Number(oid));
    const parse = (name: string): Buffer => frame('P', `${name}\0SELECT $1 IS NULL\0`, [0, 1], type);
    expect(await sharedBy(() => client.run([parse(''), send.bind(['x']), send.execute(), send.sync()]))).toBe(
      0,
    );
    await client.run([parse('declared'), send.sync()]);
    expect(
      await sharedBy(() => client.run([send.bind(['x'], 'declared'), send.execute(), send.sync()])),
    ).toBe(0);
  });
});

describe('is harmless', () => {
  test.each([
    ['a column’s volatile default, which a read does not run', 'SELECT id FROM plain'],
    ['a domain whose check is harmless', "SELECT 'x'::short"],
    [
      'a table with columns of any type, as long as they are only read',
      'SELECT m, s, p, q FROM plain WHERE id > 0',
    ],
    ['a parent whose children have policies: only the parent’s count', 'SELECT * FROM parent'],
  ])('%s', async (_what, sql) => {
    await using client = await raw();
    expect(await sharedBy(() => client.run([send.query(sql)]))).toBe(1);
  });

  test('a Describe alone runs nothing, whatever it describes', async () => {
    await using client = await raw();
    const before = await client.column("SELECT current_setting('app.leaked', true)");
    for (const sql of ["SELECT leak('described')", 'SELECT * FROM child', "SELECT nextval('nothing')"]) {
      const ran = (): Promise<unknown> => client.run([send.parse(sql), send.describe('S'), send.sync()]);
      expect(await sharedBy(ran)).toBe(0);
    }
    expect(await client.column("SELECT current_setting('app.leaked', true)")).toEqual(before);
  });
});

describe('what changes while reads are shared', () => {
  /** Changes by DDL past the proxy are found at the next look; by a client of the proxy at once. */
  test.each([
    ['a domain’s check', "SELECT 'x'::short", 'ALTER DOMAIN short ADD CHECK (leak(VALUE))'],
    ['a type’s attribute', "SELECT '(1,2)'::pair", 'ALTER TYPE pair ADD ATTRIBUTE c checked CASCADE'],
    ['a cast', "SELECT 'x'::point", 'CREATE CAST (text AS mood) WITH FUNCTION text_mood(text) AS IMPLICIT'],
    [
      'an operator class',
      'SELECT 1 AS ordered',
      'CREATE OPERATOR CLASS pairs DEFAULT FOR TYPE pair USING hash AS FUNCTION 1 pair_hash(pair)',
    ],
  ])('%s', async (_what, sql, change) => {
    await pair.onSource.query(`
      SET search_path = public;
      CREATE OR REPLACE FUNCTION text_mood(text) RETURNS mood LANGUAGE sql AS $$ SELECT 'sad'::mood $$;
      CREATE OR REPLACE FUNCTION pair_hash(pair) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 1'`);
    await using client = await raw();
    await until(async () => (await sharedBy(() => client.run([send.query(sql)]))) === 1);
    await client.run([send.query('BEGIN'), send.query(change), send.query('COMMIT')], 3);
    for (let round = 0; round < 3; round++) {
      expect(await sharedBy(() => client.run([send.query(sql)]))).toBe(0);
    }
    await until(() => shared().obstacle === null || shared().obstacle?.includes('by itself') === true);
    expect(await sharedBy(() => client.run([send.query(sql)]))).toBe(0);
    await client.run(
      [
        send.query('DROP CAST IF EXISTS (text AS mood)'),
        send.query('DROP OPERATOR CLASS IF EXISTS pairs USING hash'),
      ],
      2,
    );
  });
});

test('catalogs changed by a client that keeps its connection are known to have changed', async () => {
  await using client = await raw();
  await using pinned = await raw();
  await client.run([send.query('CREATE VIEW turning AS SELECT 1 AS n')]);
  await until(async () => (await sharedBy(() => client.column('SELECT n FROM turning'))) > 0);
  const { listening = 0 } = running.proxy.status().pinned;
  await pinned.run([
    send.query("CREATE OR REPLACE VIEW turning AS SELECT leak('turned')::int AS n; LISTEN anything"),
  ]);
  await until(() => (running.proxy.status().pinned['listening'] ?? 0) > listening);
  expect(await sharedBy(() => client.column('SELECT n FROM turning'))).toBe(0);
  await client.run([send.query('DROP VIEW turning')]);
});

test('a cast to a type of PostgreSQL’s own, which has several names, is one that happens by itself', async () => {
  const { onDestination } = pair;
  await onDestination.query('BEGIN');
  try {
    await onDestination.query(`
      CREATE TYPE public.size AS ENUM ('small');
      CREATE FUNCTION public.size_of(public.size) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END';
      CREATE CAST (public.size AS int) WITH FUNCTION public.size_of(public.size)`);
    const { rows } = await onDestination.query<(string | null)[]>({ text: FACTS_QUERY, rowMode: 'array' });
    const shape = shapeOfRead('SELECT s::integer FROM sizes');
    expect(shape !== null && isHarmless(shape, readFacts('', rows))).toBe(false);
  } finally {
    await onDestination.query('ROLLBACK');
  }
});

test('functions that take a type’s name as a value are none of the harmless', async () => {
  const { rows } = await pair.onDestination.query<(string | null)[]>({ text: FACTS_QUERY, rowMode: 'array' });
  const { harmlessFunctions } = readFacts('', rows);
  expect(harmlessFunctions.has('lower')).toBe(true);
  for (const name of [
    'pg_input_is_valid',
    'pg_input_error_info',
    'jsonb_populate_record',
    'json_to_recordset',
  ])
    expect(harmlessFunctions.has(name)).toBe(false);
});

test('a Sync or Flush that is malformed is refused by the server, though it asks for nothing', async () => {
  await using client = await raw();
  expect(sqlStates(await client.run([frame('S', 'x')]))).toEqual(['08P01']);
  expect(sqlStates(await client.run([frame('H', 'x'), send.sync()]))).toEqual(['08P01']);
});

test('a connection that skips up to a Sync, after a malformed Flush alone, is not given to another', async () => {
  await using one = await startProxy(pair, {
    pool: { ...POOL_DEFAULTS, poolMode: 'transaction', poolSizeMax: 1, poolReserve: 0 },
  });
  await using client = await RawClient.connect(one.port, one.database);
  await using other = await RawClient.connect(one.port, one.database);
  client.write(frame('H', 'x'));
  await until(() => one.proxy.status().bytesFromClients > 0);
  const answer = other.column('SELECT 1');
  await until(() => client.types === 'E');
  await client.run([send.sync()]);
  expect(await answer).toEqual(['1']);
});
