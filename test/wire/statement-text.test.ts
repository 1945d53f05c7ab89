import { describe, expect, test } from 'vitest';
import {
  CHANGES_STATE,
  COMMITS,
  ENDS_TRANSACTION,
  LOADS_LIBRARY,
  MAY_UNPIN,
  NAMES_SETTINGS,
  StatementText,
  UNKNOWN_SETTING,
  endsPreparedTransaction,
} from '../../src/wire/postgres/statement-text.js';

const text = new StatementText();

function flagsOf(sql: string, cut = false): number {
  // In the middle of a buffer, so that no one reads past its ends unnoticed.
  const bytes = Buffer.from(`SET x;${sql}; SET x`);
  return text.classify(bytes, 6, bytes.length - 7, cut);
}

test.each([
  'SELECT 1',
  'select * from "set" where temp > 3 and hold = true',
  'INSERT INTO t VALUES (1) ON CONFLICT DO UPDATE SET a = 1',
  'UPDATE t SET a = 1, temporary = 2',
  'WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x',
  '(SELECT 1) UNION (SELECT 2)',
  '-- SET a\nSELECT 1',
  '/* SET /* nested */ a */ SELECT 1',
  ';;  ; SELECT 1 ;',
  'BEGIN ISOLATION LEVEL SERIALIZABLE',
  'SET TRANSACTION READ ONLY',
  "SET LOCAL work_mem = '1MB'",
  "SELECT set_config('work_mem', '1MB', true)",
  "SELECT set_config(k, v, true) FROM json_each_text('{}') AS s(k, v)",
  'ROLLBACK TO SAVEPOINT a',
  'DECLARE c CURSOR FOR SELECT 1',
  'SELECT pg_advisory_xact_lock(1)',
  'CREATE TABLE t (temp int)',
  'COPY t FROM STDIN',
  'SELECT 1e5, 1temp',
  "SELECT setting FROM pg_settings WHERE name = 'work_mem'",
])('leaves no trace: %s', (sql) => {
  // CREATE may be followed by TEMP only right behind it.
  expect(flagsOf(sql) & ~MAY_UNPIN).toBe(0);
});

test.each([
  'SET a = 1',
  'set\ta to 1',
  '/**/SET a=1',
  'SELECT 1; SET a = 1',
  'SELECT 1;/* c */ (\n) RESET ALL',
  'RESET a',
  'SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY',
  'SET SESSION AUTHORIZATION x',
  'SET ROLE x',
  'DISCARD ALL',
  'PREPARE a AS SELECT 1',
  'EXECUTE a',
  'DEALLOCATE a',
  'LISTEN a',
  'UNLISTEN *',
  'DECLARE c CURSOR WITH HOLD FOR SELECT 1',
  'CREATE TEMP TABLE t ()',
  'CREATE OR REPLACE TEMPORARY VIEW v AS SELECT 1',
  'CREATE /* c */ TEMP TABLE t ()',
  'SELECT 1 INTO TEMP t',
  'EXPLAIN ANALYZE CREATE TEMP TABLE t AS SELECT 1',
  'CREATE TABLE pg_temp.t ()',
  'SELECT pg_try_advisory_lock(1)',
  'SELECT "pg_advisory_unlock"(1)',
  "SELECT set_config('work_mem', '1MB', false)",
  'DO $$ BEGIN END $$',
  'CALL p()',
  'WIBBLE',
  '\\unknown',
  'select dblink_connect($1)',
])('may change state: %s', (sql) => {
  expect(flagsOf(sql) & CHANGES_STATE).toBe(CHANGES_STATE);
});

test.each([
  "SELECT ';--'; SET ROLE admin",
  "SELECT ';--', set_config('work_mem','7MB',false)",
  'SELECT 1 /* a; -- b */; SET search_path = x',
  "SELECT 'x;/*'; CREATE TEMP TABLE t (a int)",
  'SELECT 1INTO TEMP t',
  'SELECT $1INTO TEMP t',
  'SELECT $$a$$INTO TEMP t',
  'EXPLAIN ANALYZE EXECUTE p',
  'SELECT U&"\\0073et_config"($1, $2, false)',
  "SELECT set_config('work_mem', E'\\', true) --', false)",
  "SELECT set_config('work_mem', $a$', true) --$a$, false)",
  'CREATE TABLE t AS EXECUTE p',
  "UPDATE pg_settings SET setting = '7MB' WHERE name = 'work_mem'",
  'WITH x AS (UPDATE ONLY pg_catalog . "pg_settings" SET setting = \'7\' RETURNING 1) SELECT 1',
  'SELECT set_limit(0.5)',
  "SELECT set_user('postgres')",
  'SELECT query_to_xml($1, true, true, $2)',
  'CREATE TABLE pg_temp_3.t (a int)',
])('is not hidden by what stands in front of it: %s', (sql) => {
  expect(flagsOf(sql) & CHANGES_STATE).toBe(CHANGES_STATE);
});

test('a text that was cut may have gone on with anything', () => {
  expect(flagsOf('SELECT 1', true)).toBe(CHANGES_STATE);
});

describe('custom settings', () => {
  test.each([
    ['SET app.tenant = 1', 'app.tenant', CHANGES_STATE],
    ['SET "app"."Tenant" TO 1', 'app.tenant', CHANGES_STATE],
    ['SET LOCAL app.tenant = 1', 'app.tenant', 0],
    ['RESET app.tenant', 'app.tenant', CHANGES_STATE],
    ['SET SESSION app . a.b = 1', 'app.a.b', CHANGES_STATE],
    ["SELECT pg_catalog.set_config('app.tenant', $1, false)", 'app.tenant', CHANGES_STATE],
    ["SELECT set_config('app.tenant', f(1, '(x,'), true)", 'app.tenant', 0],
    ["SELECT set_config ( 'app.tenant'::text , ',' , 'f' )", 'app.tenant', CHANGES_STATE],
  ])('named: %s', (sql, name, changes) => {
    expect(flagsOf(sql)).toBe(NAMES_SETTINGS | changes);
    expect(text.settingNames).toEqual([name]);
  });

  test.each([
    "INSERT INTO n VALUES ('a;--'), ('b'); SET app.tenant = '7'",
    "SELECT 1; -- why\nSET app.tenant = '7'",
    "SELECT 1; /* why /* */ */ -- so\r SET app.tenant = '7'",
    "SET /* a /* b */ c */ app.tenant = '7'",
    "SET SESSION/**/app /**/ . -- x\n tenant = '7'",
    `SET /* ${'long '.repeat(100)} */ app.tenant = '7'`,
    'SET"app"."tenant" TO 7',
    "DO $$BEGIN SET app.tenant = '7'; END$$",
    'DO $$BEGIN IF true THEN RESET app.tenant; END IF; END$$',
    "SELECT --;\nset_config('app.tenant', '7', false)",
    "SELECT set_config('app.tenant', E'\\'', true)",
  ])('named behind noise: %s', (sql) => {
    expect(flagsOf(sql) & (CHANGES_STATE | NAMES_SETTINGS)).toBe(CHANGES_STATE | NAMES_SETTINGS);
    expect(text.settingNames).toEqual(['app.tenant']);
  });

  test('several in one text', () => {
    flagsOf("SET app.a = 1; SELECT set_config('app.b', '', true), set_config('app.c', '', false)");
    expect(text.settingNames).toEqual(['app.a', 'app.b', 'app.c']);
  });

  test.each([
    'SELECT set_config($1, $2, false)',
    'SELECT set_config($1, $2, $3)',
    "SELECT set_config('app.' || x, 'a', false)",
    "SELECT set_config(E'app.\\x41', 'a', false)",
    "SELECT set_config('app.x'",
    'SET "app.ü" = 1',
    'SET app.ü = 1',
    'SET U&"app"."x" = 1',
    `SET /* ${'long '.repeat(1000)} */ app.tenant = 1`,
    "DO $$ BEGIN EXECUTE format('SET %I.x = 1', a); END $$",
    "DO $$ BEGIN EXECUTE 'SELECT set_con' || 'fig(...)', set_config; END $$",
  ])('not to be named: %s', (sql) => {
    expect(flagsOf(sql) & UNKNOWN_SETTING).toBe(UNKNOWN_SETTING);
  });

  test('dynamic SQL that sets nothing pins nothing', () => {
    expect(flagsOf("DO $$ BEGIN EXECUTE 'CREATE TABLE x ()'; END $$") & UNKNOWN_SETTING).toBe(0);
  });
});

test.each([
  ['COMMIT', ENDS_TRANSACTION | COMMITS],
  ['END WORK', ENDS_TRANSACTION | COMMITS],
  ['ROLLBACK', ENDS_TRANSACTION],
  ['abort', ENDS_TRANSACTION],
  ['ROLLBACK AND CHAIN', 0],
  ['SELECT 1; COMMIT', 0],
  ['COMMIT; SELECT 1', 0],
  ['COMMIT AND NO CHAIN', ENDS_TRANSACTION | COMMITS],
  ['ROLLBACK WORK TO a', 0],
  ["COMMIT PREPARED 'x'", 0],
  ["LOAD 'x'", LOADS_LIBRARY | CHANGES_STATE],
  ['CLOSE c', MAY_UNPIN],
  ['DROP TABLE t', MAY_UNPIN],
])('%s', (sql, flags) => {
  expect(flagsOf(sql)).toBe(flags);
});

test.each([
  ["COMMIT PREPARED 'x'", true],
  [" rollback\nprepared E'x' ; ", true],
  ["INSERT INTO t VALUES (1); COMMIT PREPARED 'x'", false],
  ["COMMIT PREPARED 'x'; INSERT INTO t VALUES (1)", false],
  ['COMMIT', false],
])('ends a prepared transaction and does nothing else: %s', (sql, expected) => {
  expect(endsPreparedTransaction(sql)).toBe(expected);
});

test('names from elsewhere count wherever they stand', () => {
  const own = new StatementText();
  const of = (sql: string): number => own.classify(Buffer.from(sql), 0, sql.length, false);
  expect(of('SELECT app.enter_tenant(1)')).toBe(0);
  own.setStatefulNames(['Enter_Tenant', 'audited']);
  expect(of('SELECT app.ENTER_tenant(1)')).toBe(CHANGES_STATE);
  expect(of('INSERT INTO audited VALUES (1)')).toBe(CHANGES_STATE);
  expect(of('SELECT enter_tenants(1)')).toBe(0);
});

test('names from elsewhere are known whatever letters they have, and however many there are', () => {
  const own = new StatementText();
  const of = (sql: string): number => own.classify(Buffer.from(sql), 0, Buffer.byteLength(sql), false);
  const long = 'enter_' + 'tenant_'.repeat(9);
  own.setStatefulNames(['set-tenant', long.slice(0, 63), 'a$enter$b']);
  expect(of('SELECT "Set-Tenant"(1)')).toBe(CHANGES_STATE);
  expect(of(`SELECT ${long}(1)`)).toBe(CHANGES_STATE);
  expect(of('SELECT a$enter$b(1)')).toBe(CHANGES_STATE);
  expect(of('SELECT "größe"')).toBe(0);
  own.setStatefulNames(['größe']);
  expect(of('SELECT "größe"(1)')).toBe(CHANGES_STATE);
  expect(of('SELECT 1')).toBe(0);
  own.setStatefulNames(['*']);
  expect(of('SELECT 1')).toBe(CHANGES_STATE);
});
