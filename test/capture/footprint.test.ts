import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { footprintOf } from '../../src/capture/footprint.js';
import { tokenize } from '../../src/capture/sql-tokens.js';
import { databasePair, type DatabasePair } from '../support/servers.js';

/** `kind: table=access, …`, with `?` where something could not be read. */
function footprint(sql: string): string {
  const { kind, accesses, parsed } = footprintOf(tokenize(sql));
  const tables = accesses
    .map(({ table, kind: access }) => {
      const name = table.schema === null ? table.name : `${table.schema}.${table.name}`;
      return access === kind ? name : `${name}=${access}`;
    })
    .join(' ');
  return `${kind}${tables === '' ? '' : `: ${tables}`}${parsed ? '' : ' ?'}`;
}

describe('statements and what they touch', () => {
  test.each([
    ['SELECT 1', 'select'],
    ['TABLE a', 'select: a'],
    ['VALUES (1), ((SELECT max(x) FROM a))', 'select: a'],
    ['SELECT * FROM a, b AS x JOIN c ON x.id = c.id, d WHERE a.x IN (SELECT y FROM e)', 'select: a b c d e'],
    ['SELECT * FROM "A b".“x', 'select: A b.“x'],
    ['INSERT INTO s.a (x, y) VALUES (1, 2) ON CONFLICT (x) DO UPDATE SET y = 3 RETURNING *', 'insert: s.a'],
    ['INSERT INTO a SELECT * FROM b JOIN a ON true', 'insert: a b=select a=select'],
    ['insert into a default values', 'insert: a'],
    [
      'UPDATE ONLY a x SET v = (SELECT 1 FROM b) FROM c, d WHERE x.id = c.id',
      'update: a b=select c=select d=select',
    ],
    ['UPDATE a SET v = 1 WHERE x IS DISTINCT FROM y AND z IS NOT DISTINCT FROM w', 'update: a'],
    ['DELETE FROM a', 'delete: a'],
    ['DELETE FROM ONLY a USING b JOIN c USING (id) WHERE a.id = b.id', 'delete: a b=select c=select'],
    [
      'MERGE INTO a t USING b JOIN c USING (id) ON t.id = b.id WHEN MATCHED THEN UPDATE SET x = 1 WHEN NOT MATCHED THEN INSERT VALUES (1)',
      'merge: a b=select c=select',
    ],
    ['MERGE INTO a USING (SELECT * FROM b) s ON true WHEN MATCHED THEN DELETE', 'merge: a b=select'],
    ['COPY a FROM STDIN', 'copy: a'],
    ['COPY s.a (x, y) TO STDOUT WITH (FORMAT csv)', 'copy: s.a'],
    ['COPY (SELECT * FROM a JOIN b ON true) TO STDOUT', 'copy: a=select b=select'],
    ['TRUNCATE TABLE ONLY a, s.b * RESTART IDENTITY CASCADE', 'truncate: a s.b'],
    ['truncate a', 'truncate: a'],
    [
      'WITH x AS (SELECT * FROM a), y (n) AS MATERIALIZED (SELECT * FROM x JOIN b ON true) SELECT * FROM y, x, c',
      'select: a b c',
    ],
    ['WITH a AS (SELECT * FROM a) SELECT * FROM a', 'select: a'],
    [
      'WITH RECURSIVE t AS (SELECT 1 UNION ALL SELECT * FROM t JOIN a ON true) SEARCH DEPTH FIRST BY id SET o CYCLE id SET c USING p SELECT * FROM t',
      'select: a',
    ],
    ['WITH x AS (SELECT 1) SELECT * FROM s.x', 'select: s.x'],
    ['WITH gone AS (DELETE FROM a RETURNING *) INSERT INTO b SELECT * FROM gone', 'insert: a=delete b'],
    ['SELECT (WITH x AS (SELECT * FROM a) SELECT count(*) FROM x), b.* FROM b', 'select: a b'],
    [
      'SELECT * FROM generate_series(1, (SELECT max(i) FROM a)) g, unnest(ARRAY[1]) u, LATERAL (SELECT * FROM b) l',
      'select: a b',
    ],
    ['SELECT * FROM ROWS FROM (f(1), g(2)) AS r, a', 'select: a'],
    ['SELECT * FROM ONLY (a) CROSS JOIN (b LEFT JOIN (c JOIN d ON true) ON true), e', 'select: a b c d e'],
    ['(SELECT * FROM a) UNION ALL (SELECT * FROM b) ORDER BY 1', 'select: a b'],
    ['((SELECT * FROM a) EXCEPT SELECT * FROM b)', 'select: a b'],
    [
      `SELECT EXTRACT(epoch FROM x), substring(y from 1 for 2), trim(both ' ' from z), overlay(a placing b from 1) FROM t`,
      'select: t',
    ],
    ['SELECT x AS from, y AS "into", t.from FROM t', 'select: t'],
    ['SELECT * FROM a TABLESAMPLE bernoulli (10) REPEATABLE (1), b x (c, d)', 'select: a b'],
    [
      'SELECT count(*) FILTER (WHERE x) OVER (PARTITION BY y ORDER BY z) FROM a WINDOW w AS (ORDER BY q)',
      'select: a',
    ],
    ['SELECT a, b FROM t ORDER BY a, b LIMIT 1', 'select: t'],
    ['SELECT * FROM t FOR UPDATE OF t SKIP LOCKED', 'select: t'],
    ['SELECT * INTO TEMP TABLE x FROM t', 'select: x=ddl t'],
    ['DECLARE c CURSOR WITH HOLD FOR SELECT * FROM t', 'select: t'],
    ['FETCH 10 FROM c', 'utility'],
    ['CREATE TABLE a (id int)', 'ddl'],
    ['CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END', 'ddl'],
    ['BEGIN; UPDATE a SET x = 1; COMMIT', 'update: a'],
    ['BEGIN ISOLATION LEVEL SERIALIZABLE', 'transaction'],
    ["PREPARE TRANSACTION 'x'", 'transaction'],
    ['PREPARE p AS SELECT * FROM a', 'session'],
    ['SET search_path = a', 'session'],
    ['EXPLAIN SELECT * FROM a', 'utility'],
    ['-- ping', 'utility'],
    [';', 'utility'],
    ['EXECUTE p(1)', 'utility ?'],
    ['DO $$ BEGIN DELETE FROM a; END $$', 'utility ?'],
    ['CALL f()', 'utility ?'],
    ['garbage here', 'unknown ?'],
    ['INSERT INTO', 'insert ?'],
    ['SELECT * FROM', 'select ?'],
    ["SELECT * FROM a WHERE x = 'cut her", 'select: a ?'],
    ["INSERT INTO a VALUES ('x", 'insert: a ?'],
    ["SELECT 'FROM b', $$ FROM c $$ /* FROM d */ FROM a -- FROM e", 'select: a'],
  ])('%s', (sql, expected) => {
    expect(footprint(sql)).toBe(expected);
  });

  test.each([
    ['BEGIN', true, null, false],
    ['START TRANSACTION READ ONLY', true, null, false],
    ['COMMIT', false, 'commit', false],
    ['END WORK', false, 'commit', false],
    ['ROLLBACK', false, 'rollback', false],
    ['ABORT', false, 'rollback', false],
    ['ROLLBACK TO SAVEPOINT a', false, null, false],
    ['COMMIT AND CHAIN', false, 'commit', true],
    ['ROLLBACK AND NO CHAIN', false, 'rollback', false],
    ["PREPARE TRANSACTION 'x'", false, 'prepare', false],
    ["COMMIT PREPARED 'x'", false, null, false],
    ['BEGIN; SELECT 1; ROLLBACK', true, 'rollback', false],
    ['SAVEPOINT a', false, null, false],
  ])('%s: begins %s, ends %s', (sql, begins, ends, chains) => {
    expect(footprintOf(tokenize(sql))).toMatchObject({ begins, ends, chains });
  });
});

describe('beside PostgreSQL’s own parser', () => {
  let pair: DatabasePair;
  beforeAll(async () => {
    pair = await databasePair();
    await pair.onDestination
      .query(`CREATE TABLE public.a (id int, x int); CREATE TABLE public.b (id int, y int);
      CREATE TABLE public.c (id int, z int); CREATE SCHEMA other; CREATE TABLE other.a (id int, w int);
      CREATE FUNCTION public.f(int) RETURNS SETOF int LANGUAGE sql AS 'SELECT $1'; SET search_path = public`);
  });
  afterAll(async () => {
    await pair[Symbol.asyncDispose]();
  });

  // The tables a view depends on are those its query reads: the server says so itself.
  test.each([
    'SELECT a.id FROM a',
    'SELECT a.id FROM other.a, b WHERE a.id = b.id',
    'SELECT 1 AS one FROM a JOIN b USING (id) LEFT JOIN c ON c.id = b.id',
    'SELECT 1 AS one FROM a NATURAL JOIN (b CROSS JOIN (SELECT z FROM c) s)',
    'WITH a AS (SELECT id FROM b) SELECT id FROM a',
    'WITH a AS (SELECT id FROM a), b AS (SELECT * FROM a) SELECT * FROM b',
    'WITH RECURSIVE t(n) AS (SELECT id FROM a UNION SELECT n + 1 FROM t, b WHERE n < b.y) SELECT n FROM t',
    'WITH q AS (WITH r AS (SELECT id FROM c) SELECT id FROM r) SELECT q.id FROM q JOIN LATERAL (SELECT y FROM b WHERE b.id = q.id) l ON true',
    'SELECT f.f FROM f((SELECT max(id) FROM a)) WITH ORDINALITY f (f, n)',
    'SELECT EXTRACT(day FROM now() - now()) AS d, (SELECT count(*) FROM b WHERE b.y IS NOT DISTINCT FROM a.x) FROM a',
    'SELECT x FROM a WHERE EXISTS (SELECT FROM b WHERE b.id = a.id AND b.y IN (SELECT z FROM c))',
    '(SELECT id FROM a UNION ALL SELECT id FROM b) INTERSECT (SELECT id FROM c) ORDER BY 1',
    'SELECT CASE WHEN EXISTS (TABLE b) THEN 1 END AS k, ARRAY(SELECT z FROM c) AS l FROM ONLY a TABLESAMPLE system (50)',
    'SELECT * FROM (VALUES (1, (SELECT max(x) FROM a))) v (n, m), ROWS FROM (f(1), f(2)) r (p, q)',
    'SELECT sum(x) FILTER (WHERE x > (SELECT min(y) FROM b)) OVER w AS s FROM a WINDOW w AS (PARTITION BY (SELECT 1 FROM c))',
    'SELECT a.id AS "from" FROM a AS "from"("select"), a',
    `SELECT 'FROM b' AS t, id FROM /* b, */ a -- , c`,
    "SELECT * FROM JSON_TABLE('[1]', '$[*]' COLUMNS (n int PATH '$')) j, a",
    `SELECT * FROM XMLTABLE('/a' PASSING XMLPARSE(DOCUMENT '<a/>') COLUMNS n FOR ORDINALITY) x, b`,
    'SELECT GROUPING(id) AS g FROM a GROUP BY ROLLUP (id, (x)) HAVING count(*) > (SELECT count(*) FROM b) OFFSET 1 FETCH FIRST 2 ROWS ONLY',
  ])('%s', async (query) => {
    await pair.onDestination.query(`BEGIN; CREATE VIEW public.v AS ${query}\n`);
    const { rows } = await pair.onDestination.query<{ name: string }>(`
      SELECT DISTINCT n.nspname || '.' || c.relname AS name
      FROM pg_rewrite r JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
      JOIN pg_class c ON d.refclassid = 'pg_class'::regclass AND c.oid = d.refobjid AND c.relkind = 'r'
      JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE r.ev_class = 'public.v'::regclass ORDER BY 1`);
    await pair.onDestination.query('ROLLBACK');
    const { accesses, parsed } = footprintOf(tokenize(query));
    expect(accesses.map(({ table }) => `${table.schema ?? 'public'}.${table.name}`).toSorted()).toEqual(
      rows.map((row) => row.name),
    );
    expect(parsed).toBe(true);
  });
});
