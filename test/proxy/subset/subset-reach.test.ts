/** What a statement's side is: what is not certain is not let through. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { StatementReach } from '../../../src/core/subset-ports.js';
import { databasePair, type DatabasePair } from '../../support/servers.js';
import { ReadHere, SUBSET_SCHEMA } from './subset-support.js';

const SCHEMA = `
  SET search_path = public;
  CREATE FUNCTION public.queried() RETURNS SETOF bigint LANGUAGE plpgsql AS
    'BEGIN RETURN QUERY EXECUTE $x$SELECT id::bigint FROM public.b1$x$; END';
  CREATE FUNCTION public.b_rows() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM public.b1';
  CREATE FUNCTION public.opened() RETURNS int LANGUAGE plpgsql AS
    'DECLARE c refcursor; n int; BEGIN OPEN c FOR EXECUTE $x$SELECT 1$x$; FETCH c INTO n; RETURN n; END';
  CREATE FUNCTION public.set_tenant(t text) RETURNS void LANGUAGE plpgsql AS
    $$ BEGIN PERFORM set_config('app.tenant', $1, true); END $$;
  CREATE FUNCTION public.set_outer() RETURNS void LANGUAGE sql AS $$ SELECT public.set_tenant('x') $$;
  CREATE FUNCTION public.sets() RETURNS void LANGUAGE sql AS 'SET LOCAL app.tenant = 1';
  CREATE FUNCTION public.alters() RETURNS void LANGUAGE plpgsql AS 'BEGIN CREATE TABLE public.more (id int); END';
  CREATE FUNCTION public.notifies() RETURNS void LANGUAGE plpgsql AS 'BEGIN NOTIFY x; END';
  CREATE FUNCTION public.set_by_catalog() RETURNS void LANGUAGE sql AS
    $$ UPDATE pg_catalog.pg_settings SET setting = 'x' WHERE name = 'search_path' $$;
  CREATE FUNCTION public.subscripts() RETURNS int LANGUAGE plpgsql AS
    'DECLARE n int[]; BEGIN n[public.b_count()::int] := 1; RETURN 1; END';
  CREATE FUNCTION public.own_path() RETURNS text LANGUAGE sql SET search_path = moved AS 'SELECT note FROM b1';
  CREATE FUNCTION public.own_role() RETURNS int LANGUAGE sql SET role = none AS 'SELECT 1';
  CREATE FUNCTION public.definer() RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT note FROM a1';
  CREATE FUNCTION public.definer_calls() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT b_count() + abs(1)';
  CREATE FUNCTION public.definer_named() RETURNS text LANGUAGE sql SECURITY DEFINER AS
    'SELECT max(note) FROM public.a1';
  CREATE FUNCTION public.defaulted(n bigint DEFAULT public.b_count()) RETURNS bigint LANGUAGE sql AS 'SELECT n';
  CREATE FUNCTION moved.b_count() RETURNS bigint LANGUAGE sql AS 'SELECT public.b_count()';
  CREATE FUNCTION public.around(n int) RETURNS int LANGUAGE plpgsql AS
    'BEGIN RETURN CASE WHEN n > 0 THEN public.around(n - 1) ELSE (SELECT max(id) FROM public.a1) END; END';
  CREATE FUNCTION public.total(bigint) RETURNS bigint LANGUAGE sql AS 'SELECT 1';
  CREATE AGGREGATE public.total(int) (SFUNC = int4pl, STYPE = int);
  CREATE FUNCTION public.b_of(public.a1) RETURNS text LANGUAGE sql AS 'SELECT max(note) FROM public.b1';
  CREATE FUNCTION public.likeness(text, text) RETURNS boolean LANGUAGE sql AS
    'SELECT $1 = max(note) FROM public.b1';
  CREATE OPERATOR public.=== (LEFTARG = text, RIGHTARG = text, FUNCTION = public.likeness);
  CREATE FUNCTION public.uses_operator() RETURNS boolean LANGUAGE sql AS
    $$ SELECT 'a' OPERATOR(public.===) 'b' $$;
  CREATE TYPE public.wrapped AS (note text);
  CREATE FUNCTION public.wrap(int) RETURNS public.wrapped LANGUAGE sql AS
    'SELECT ROW(max(note))::public.wrapped FROM public.b1';
  CREATE CAST (int AS public.wrapped) WITH FUNCTION public.wrap(int);
  CREATE VIEW public.setting_view AS SELECT set_config('app.tenant', note, true) FROM public.a1;
  CREATE VIEW public.telling AS SELECT note, now() FROM public.a1;
  CREATE TABLE public.guarded (id int);
  ALTER TABLE public.guarded ENABLE ROW LEVEL SECURITY;
  CREATE POLICY p ON public.guarded USING (id IN (SELECT id FROM public.a1) AND b_rows() > 0);
  CREATE EXTENSION earthdistance CASCADE;
  CREATE FUNCTION public.cube(public.a1, text) RETURNS text LANGUAGE sql AS 'SELECT max(note) FROM public.b1';
  ${[...Array(20).keys()]
    .map(
      (n) =>
        `CREATE FUNCTION public.deep${n}() RETURNS bigint LANGUAGE sql AS
           'SELECT ${n === 0 ? 'count(*) FROM public.b1' : `public.deep${n - 1}()`}';`,
    )
    .join('\n')}`;

let pair: DatabasePair;
let here: ReadHere;

beforeAll(async () => {
  pair = await databasePair();
  await pair.onSource.query(`${SUBSET_SCHEMA};${SCHEMA}`);
  here = new ReadHere(pair);
});
afterAll(() => pair[Symbol.asyncDispose]());

const read = (sql: string, reads = here): Promise<StatementReach> =>
  reads.read(sql, { searchPath: '"$user", public', user: 'app' });

test.each([
  ['SELECT * FROM queried()', /public\.queried touches can’t be known \(dynamic SQL\)/],
  ['SELECT opened()', /dynamic SQL/],
  ["SELECT set_tenant('x')", /public\.set_tenant changes settings/],
  ['SELECT set_outer()', /public\.set_tenant changes settings/],
  ['SELECT sets()', /public\.sets changes settings/],
  ['SELECT alters()', /public\.alters touches can’t be known \(statements that/],
  ['SELECT notifies()', /changes notifications/],
  ['SELECT set_by_catalog()', /changes the server’s own catalogs/],
  ['SELECT own_role()', /its own SET role/],
  ['SELECT definer()', /names that depend on the role/],
  ['SELECT deep19()', /calls too deep/],
  ['SELECT total(1)', /public\.total touches can’t be known/],
  ['SELECT note FROM setting_view', /the view public\.setting_view .*settings/],
  ['SELECT earth_distance(ll_to_earth(1, 1), ll_to_earth(1, 2))', /of the extension earthdistance/],
  ['SELECT lastval()', /lastval answers for whichever side/],
  [
    "UPDATE pg_settings SET setting = 'moved' WHERE name = 'search_path'",
    /pg_settings is of the server itself/,
  ],
  ["UPDATE pg_catalog.pg_settings SET setting = 'moved'", /is of the server itself/],
  ['SELECT last_value FROM pg_sequences', /pg_sequences tells of whichever side/],
  ['SELECT data FROM pg_catalog.pg_largeobject', /pg_largeobject tells of whichever side/],
  ["SELECT pg_logical_slot_peek_changes('x', NULL, NULL)", /of the side’s own log/],
  ['SELECT pg_cancel_backend(1)', /another connection of one side/],
])('%s is refused', async (sql, why) => {
  expect((await read(sql)).unknown).toMatch(why);
});

test.each([
  ['SELECT own_path()', ['a']],
  ['SELECT subscripts()', ['b']],
  ['SELECT id FROM guarded', ['a', 'b', 'rest']],
  ['SELECT definer_calls()', ['b']],
  ['SELECT defaulted()', ['b']],
  ['SELECT definer_named()', ['a']],
  ['SELECT moved.b_count()', ['b']],
  ['SELECT around(1)', ['a']],
  ['SELECT deep9()', ['b']],
  ['SELECT a1.b_of FROM a1', ['a', 'b']],
  ['SELECT (a1).b_of FROM a1', ['a', 'b']],
  ["SELECT note OPERATOR(public.===) 'x' FROM a1", ['a', 'b']],
  ['SELECT uses_operator()', ['b']],
  ['SELECT 1::wrapped', ['b']],
  ['SELECT cube(1), note FROM a1', ['a', 'b']],
  ['SELECT note FROM telling', ['a']],
  ["SELECT a1.note || 'x', id::text FROM a1 WHERE id IN (1, 2) ORDER BY id", ['a']],
])('%s touches %j', async (sql, subsets) => {
  expect(await read(sql)).toMatchObject({ unknown: null, subsets });
});

test('a schema that its user may not use is not on its path; one in front of the server’s own hides them', async () => {
  const user = `reach_${pair.source.database}`;
  await pair.onSource.query(`CREATE ROLE ${user}; CREATE TABLE public.pg_class (id int)`);
  const fresh = new ReadHere(pair);
  const asked = async (sql: string, searchPath: string, as: string): Promise<readonly string[]> =>
    (await fresh.read(sql, { searchPath, user: as })).subsets;
  try {
    expect(await asked('SELECT id FROM b1', 'moved, public', 'postgres')).toEqual(['a']);
    expect(await asked('SELECT id FROM b1', 'moved, public', user)).toEqual(['b']);
    expect(await asked('SELECT id FROM pg_class', 'public, pg_catalog', user)).toEqual(['rest']);
    expect(await asked('SELECT relname FROM pg_class', 'public', user)).toEqual([]);
  } finally {
    await pair.onSource.query(`DROP ROLE ${user}; DROP TABLE public.pg_class`);
  }
});

test('while the source is away, what is known or the destination tells is enough, also for users that come new', async () => {
  await pair.onDestination.query('CREATE TABLE public.a1 (id int)');
  const away = new ReadHere({ source: { ...pair.source, port: 1 }, destination: pair.destination });
  // With the catalogs of the destination at hand, and then one user more each time.
  for (const user of ['postgres', 'first', 'second'])
    expect(await away.read('SELECT id FROM a1', { searchPath: 'public', user })).toMatchObject({
      unknown: null,
      subsets: ['a'],
    });
});

test('what runs unasked counts for every statement', async () => {
  await pair.onSource.query(`
    CREATE FUNCTION public.wrap_long(bigint) RETURNS public.wrapped LANGUAGE sql AS
      'SELECT ROW(max(note))::public.wrapped FROM public.b1';
    CREATE CAST (bigint AS public.wrapped) WITH FUNCTION public.wrap_long(bigint) AS IMPLICIT`);
  expect((await read('SELECT note FROM a1', new ReadHere(pair))).subsets).toEqual(['a', 'b']);
});

test('operators that are not written as such', async () => {
  await pair.onSource.query(`
    DROP CAST (bigint AS public.wrapped);
    CREATE FUNCTION public.beyond(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT $1 > max(note) FROM public.b1';
    CREATE OPERATOR public.>= (LEFTARG = text, RIGHTARG = text, FUNCTION = public.beyond);
    CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = public.beyond)`);
  const fresh = new ReadHere(pair);
  expect((await read('SELECT note FROM a1', fresh)).subsets).toEqual(['a']);
  for (const sql of [
    "SELECT note FROM a1 WHERE note BETWEEN 'a' AND 'b'",
    "SELECT CASE note WHEN 'a' THEN 1 END FROM a1",
    'SELECT x.id FROM a1 x JOIN a1 y USING (note)',
    'SELECT x.id FROM a1 x NATURAL JOIN a1 y',
  ])
    expect((await read(sql, fresh)).subsets, sql).toEqual(['a', 'b']);
});

test('the destination’s catalogs are read where the source is gone', async () => {
  const gone = new ReadHere({ ...pair, source: { ...pair.source, port: 1 } });
  expect(await read('SELECT abs(1)', gone)).toMatchObject({ unknown: null, subsets: [] });
});
