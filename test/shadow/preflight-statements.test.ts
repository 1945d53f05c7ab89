import { expect, test } from 'vitest';
import { inspectStatements } from '../../src/shadow/postgres/preflight-statements.js';
import { databasePair } from '../support/servers.js';

test('statements that the source understands and the destination doesn’t are named, and nothing is run', async () => {
  await using pair = await databasePair();
  expect(await inspectStatements(pair.onSource, pair.onDestination)).toEqual([]);
  await pair.onSource.query(`
    CREATE SCHEMA app; CREATE TABLE app.t (id int, note text); CREATE TABLE public.both (id int); INSERT INTO public.both VALUES (1);
    CREATE FUNCTION app.f(int) RETURNS int LANGUAGE sql AS 'SELECT 1';
    ALTER DATABASE ${pair.source.database} SET search_path = app, public`);
  await pair.onDestination.query(`
    CREATE SCHEMA app; CREATE TABLE app.t (id bigint); CREATE TABLE public.both (id int); INSERT INTO public.both VALUES (1);
    CREATE FUNCTION app.f(int) RETURNS int LANGUAGE sql AS 'SELECT 1';
    CREATE SCHEMA understudy;
    CREATE TABLE understudy.series_statement (fingerprint text, kind text, text text, executions bigint, last_seen timestamptz);
    INSERT INTO understudy.series_statement SELECT t, k, t, 1, now() FROM (VALUES
      ('select', 'select id from t where id in (?) limit ?'), ('select', 'SELECT note FROM t'), ('select', 'SELECT f(id) FROM t'),
      ('update', 'UPDATE t SET note = ? WHERE id = ?'), ('delete', 'DELETE FROM "both"'), ('select', 'SELECT * FROM nowhere'),
      ('select', 'SELECT interval ?'), ('delete', 'DELETE FROM "both"; DELETE FROM "both"'), ('select', 'SELECT ?, "a?b" FROM (SELECT 1 AS "a?b") x')) AS v (k, t)`);
  const findings = await inspectStatements(pair.onSource, pair.onDestination);
  expect(findings.map(({ object }) => object).sort()).toEqual([
    'SELECT f(id) FROM t',
    'SELECT note FROM t',
    'UPDATE t SET note = ? WHERE id = ?',
  ]);
  expect(findings.find(({ object }) => object === 'SELECT note FROM t')?.message).toContain('does not exist');
  for (const client of [pair.onSource, pair.onDestination]) {
    const { rows } = await client.query(
      'SELECT (SELECT count(*) FROM public.both) AS rows, (SELECT count(*) FROM pg_prepared_statements) AS prepared',
    );
    expect(rows).toEqual([{ rows: '1', prepared: '0' }]);
  }
});
