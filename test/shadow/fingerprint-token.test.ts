import { expect, test } from 'vitest';
import { TOKEN_SQL } from '../../src/shadow/postgres/fingerprint-token.js';
import { databasePair } from '../support/servers.js';

test('raising a fence leaves the token as it is; the application’s DDL does not', async () => {
  await using pair = await databasePair();
  const { onSource } = pair;
  const token = async (): Promise<string | undefined> => {
    const { rows } = await onSource
      .query<{ token: string }>(`SET search_path = pg_catalog; SELECT ${TOKEN_SQL} AS token`)
      .then((results) => (results as unknown as [unknown, { rows: { token: string }[] }])[1]);
    return rows[0]?.token;
  };
  const define = (name: string, message: string): Promise<unknown> =>
    onSource.query(`CREATE OR REPLACE FUNCTION ${name}() RETURNS trigger LANGUAGE plpgsql AS
      $$ BEGIN RAISE EXCEPTION '${message}'; END $$`);
  await onSource.query('CREATE SCHEMA understudy; CREATE TABLE public.kept (id int PRIMARY KEY)');
  await define('understudy.barrier', 'epoch 0');
  await define('public.own', 'first');
  await onSource.query(
    `CREATE TRIGGER understudy_barrier BEFORE INSERT ON public.kept EXECUTE FUNCTION understudy.barrier()`,
  );
  await onSource.query('ALTER TABLE public.kept DISABLE TRIGGER understudy_barrier');

  const before = await token();
  await define('understudy.barrier', 'epoch 1');
  await onSource.query('ALTER TABLE public.kept ENABLE ALWAYS TRIGGER understudy_barrier');
  expect(await token()).toBe(before);

  await define('public.own', 'second');
  expect(await token()).not.toBe(before);
});
