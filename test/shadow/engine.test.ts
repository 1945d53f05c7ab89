import { expect, test } from 'vitest';
import { databasePair } from '../support/servers.js';
import { EngineHarness, sql } from './engine-harness.js';

test('builds the shadow, copies it, follows it and finds both sides equal', async () => {
  await using pair = await databasePair();
  await sql(
    pair.onSource,
    `
    CREATE TABLE account (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, email text UNIQUE, balance numeric);
    CREATE TABLE transfer (id serial PRIMARY KEY, account bigint REFERENCES account, amount numeric(12,2));
    INSERT INTO account (email, balance) SELECT 'a' || n, n FROM generate_series(1, 5000) n;
    INSERT INTO transfer (account, amount) SELECT 1 + n % 5000, n FROM generate_series(1, 20000) n
  `,
  );
  await using harness = new EngineHarness(pair, { chunkRows: 1000 });
  await harness.start().reach('following');
  expect(harness.phases).toEqual([
    'connecting',
    'building-schema',
    'copying',
    'indexing',
    'analyzing',
    'following',
  ]);
  expect(harness.built).toEqual(['public.account', 'public.transfer']);
  await sql(
    pair.onSource,
    `
    UPDATE account SET balance = balance + 1 WHERE id % 10 = 0;
    DELETE FROM transfer WHERE id % 7 = 0;
    INSERT INTO account (email, balance) VALUES ('late', NULL)
  `,
  );
  await harness.caughtUp();
  expect(await harness.expectSame()).toBeGreaterThan(20_000);
  const report = await harness.engine.verify({ direction: 'forward' }, AbortSignal.timeout(20_000));
  expect(report.mismatches).toBe(0);
  const status = await harness.engine.status();
  expect(status.error).toBeNull();
  expect(status.copy.rows).toBe(25_000);
  expect(status.streams[0]).toMatchObject({ connected: true, authoritative: true });
});
