import { describe, expect, test } from 'vitest';
import { isHarmless, readFacts, type CatalogFacts } from '../../../src/proxy/pool/catalog-facts.js';
import { shapeOfRead } from '../../../src/proxy/pool/sql-shape.js';

const facts: CatalogFacts = readFacts('', [
  ...['count', 'now', 'lower', 'sum', 'generate_series', 'current_setting', 'coalesce', 'position'].map(
    (name) => ['function', name, null],
  ),
  ...['nextval', 'set_config', 'pg_sleep', 'mine', 'full_name', 'cube'].map((name) => ['other', name, null]),
  ['word', 'full_name', null],
  ['word', 'pg_settings', null],
  ['word', 'checked', null],
  ['operator', '~~~', null],
  ['view', 'good', ' SELECT item.id,\n    lower(item.name) AS name\n   FROM item;'],
  ['view', 'counting', " SELECT nextval('s'::regclass) AS n;"],
  ['view', 'over_counting', ' SELECT counting.n\n   FROM counting;'],
  ['view', 'locking', ' SELECT item.id\n   FROM item\n FOR UPDATE;'],
  ['policy', 'guarded', '(mine() = 1)'],
  ['policy', 'tenants', "(tenant = current_setting('app.tenant'::text))"],
]);

const shares = (sql: string): boolean => {
  const shape = shapeOfRead(sql);
  return shape !== null && isHarmless(shape, facts);
};

describe('may share a connection', () => {
  test.each([
    'SELECT 1',
    'select abalance from pgbench_accounts where aid = $1;',
    '  SELECT 1 ; ',
    '/* route: /items */ SELECT name FROM item -- by id\n WHERE id = $1',
    "SELECT * FROM item WHERE name = 'it''s; DELETE' AND id IN (1, 2) ORDER BY 1 LIMIT 5",
    'SELECT count(*), sum(a) FILTER (WHERE b > 0) FROM item GROUP BY c HAVING count(*) > 1',
    'VALUES (1), (2)',
    'TABLE item',
    '(SELECT 1) UNION ALL (SELECT 2)',
    'WITH t AS (SELECT 1 AS a) SELECT a FROM t',
    'WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 9) SELECT n FROM t',
    'SELECT x FROM generate_series(1, 3) AS t (x)',
    "SELECT CASE WHEN now() > date '2020-01-01' THEN 1e-5 ELSE coalesce(a, .5) END FROM item",
    "SELECT current_setting('app.tenant')",
    'SHOW server_version',
    'SELECT * FROM good',
    'SELECT * FROM tenants',
    'SELECT "Name" FROM "Item"',
    "SELECT extract(year FROM now()), position('a' IN b), cast(a AS numeric(3, 1)), b::varchar(3) FROM item",
    'SELECT a FROM item WHERE id = ANY ($1) AND EXISTS (SELECT 1 FROM other o WHERE o.id = item.id)',
  ])('%s', (sql) => expect(shares(sql)).toBe(true));
});

describe('may not', () => {
  test.each([
    '',
    ';',
    'SELECT 1; SELECT 2',
    'SELECT a FROM item WHERE a = 1FOR SHARE',
    'SELECT 1INTO t',
    'SELECT 1;; ',
    'INSERT INTO item VALUES (1)',
    'UPDATE item SET a = 1',
    'BEGIN',
    'SET work_mem = 1',
    'EXPLAIN ANALYZE DELETE FROM item',
    'COPY item TO STDOUT',
    'LISTEN a',
    'DECLARE c CURSOR FOR SELECT 1',
    'FETCH 1 FROM c',
    'EXECUTE p',
    'CALL p()',
    'SELECT * FROM item FOR UPDATE',
    'SELECT * FROM item for\tno key update',
    'SELECT * FROM item FOR /* x */ SHARE OF item SKIP LOCKED',
    'SELECT * FROM item FOR KEY SHARE',
    'SELECT * INTO copy FROM item',
    'SELECT * INTO TEMP copy FROM item',
    'WITH gone AS (DELETE FROM item RETURNING *) SELECT * FROM gone',
    'WITH a AS (SELECT 1), b AS (INSERT INTO item SELECT 1 RETURNING id) SELECT * FROM a, b',
    'WITH m AS (MERGE INTO item USING x ON true WHEN MATCHED THEN DELETE RETURNING 1) SELECT 1 FROM m',
    "SELECT nextval('s')",
    "SELECT NextVal ('s')",
    "SELECT pg_catalog.nextval('s')",
    'SELECT "nextval"(\'s\')',
    "SELECT pg_catalog . /* x */ nextval /* y */ ('s')",
    "SELECT set_config('a.b', 'c', false)",
    "SELECT currval('s')",
    'SELECT lastval()',
    'SELECT pg_sleep(1)',
    'SELECT pg_advisory_lock(1)',
    "SELECT pg_notify('a', 'b')",
    "SELECT dblink_exec('…')",
    'SELECT lo_create(0)',
    'SELECT txid_current()',
    'SELECT unknown_function(1)',
    'SELECT mine()',
    'SELECT p.full_name FROM person p',
    'SELECT (p).full_name FROM person p',
    'SELECT "Full_Name" FROM person',
    "SELECT 'x'::checked",
    "SELECT checked 'x'",
    'SELECT cube(1)',
    'SELECT "row"(1)',
    "SELECT current_setting('a'::text || '_read_only')",
    'SELECT a ~~~ b FROM item',
    'SELECT a OPERATOR(public.~~~) b FROM item',
    'SELECT * FROM item TABLESAMPLE mine (1)',
    'SELECT * FROM counting',
    'SELECT * FROM over_counting',
    'SELECT * FROM locking',
    'SELECT * FROM guarded',
    'SELECT * FROM information_schema.tables',
    "SELECT setting FROM pg_settings WHERE name = 'x'",
    'SELECT current_setting($1)',
    "SELECT current_setting('transaction_read_only')",
    "SELECT current_setting('a' || 'b')",
    "SELECT current_setting('default_transaction' || '_read_only')",
    'SHOW transaction_read_only',
    'SHOW default_transaction_read_only',
    'SHOW ALL',
    'SHOW TRANSACTION ISOLATION LEVEL',
    "SELECT E'\\''; DELETE FROM item; --'",
    "SELECT 'a\\' , nextval('s') --'",
    "SELECT U&'d!0061t' UESCAPE '!'",
    'SELECT U&"n!0065xtval" UESCAPE \'!\' (1)',
    "SELECT $$a$$, nextval('s')",
    'SELECT $x$ $x$',
    'SELECT nächst(1)',
    'SELECT (1',
    "SELECT 'open",
    'SELECT "open',
    'SELECT 1 /* open',
    'SELECT 1 /* /* */ DELETE',
    'SELECT a \u0001 b',
    'DO $$ BEGIN END $$',
    'VACUUM',
    'SELECT 1)',
  ])('%s', (sql) => expect(shares(sql)).toBe(false));
});

test('a comment is a comment, nested or not, and nothing hides behind one', () => {
  expect(shares('SELECT 1 /* /* nested */ FOR UPDATE */')).toBe(true);
  expect(shares('SELECT 1 /* a */ /* b */ FOR /* c */ UPDATE')).toBe(false);
  expect(shares('SELECT 1 -- FOR UPDATE')).toBe(true);
  expect(shares('SELECT 1 -- \n FOR UPDATE')).toBe(false);
});

test('texts that differ by literals have one skeleton; a literal that matters is part of it', () => {
  const skeleton = (sql: string): string | undefined => shapeOfRead(sql)?.skeleton;
  expect(skeleton('SELECT a FROM t WHERE b = 1')).toBe(skeleton('SELECT a FROM t WHERE b = 123'));
  expect(skeleton("SELECT a FROM t WHERE b = 'x'")).toBe(skeleton("SELECT a FROM t WHERE b = 'y''z'"));
  expect(skeleton('SELECT a FROM t WHERE b = 1')).not.toBe(skeleton('SELECT a FROM t WHERE c = 1'));
  expect(skeleton("SELECT current_setting('a.b')")).not.toBe(skeleton("SELECT current_setting('a.c')"));
});

test('every word that writes, in PostgreSQL’s own keyword order, is no read at the start of a text', () => {
  const verbs = [
    'alter',
    'analyze',
    'checkpoint',
    'close',
    'cluster',
    'comment',
    'commit',
    'create',
    'deallocate',
  ];
  for (const verb of [
    ...verbs,
    'drop',
    'grant',
    'lock',
    'notify',
    'prepare',
    'reindex',
    'reset',
    'truncate',
  ]) {
    expect(shapeOfRead(`${verb} x`), verb).toBeNull();
  }
});
