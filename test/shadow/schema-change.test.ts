import { expect, test } from 'vitest';
import type pg from 'pg';
import { connectControl } from '../../src/core/postgres.js';
import { databasePair, until, type DatabasePair } from '../support/servers.js';
import { emitRoute, EngineHarness, JOURNAL, sql } from './engine-harness.js';

/** Writes into `account` until it is stopped, by statements that outlive the changes of the schema. */
async function liveWriter(pair: DatabasePair): Promise<{ stop: () => Promise<number> }> {
  const client = await connectControl('source', pair.source, { purpose: 'test writer' });
  await client.query(`SET search_path = public; SET application_name = 'writer'`);
  const stopping = new AbortController();
  let written = 0;
  const loop = (async (): Promise<void> => {
    while (!stopping.signal.aborted) {
      await client.query(
        `BEGIN; INSERT INTO account (email) VALUES ('w' || ${written});
         UPDATE account SET balance = balance + 1 WHERE id % 50 = ${written % 50};
         DELETE FROM account WHERE id = ${1 + (written % 900)}; COMMIT`,
      );
      written += 1;
      // At a pace that the shadow keeps up with on a busy machine.
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  })();
  return {
    stop: async () => {
      stopping.abort();
      await loop;
      await client.end();
      return written;
    },
  };
}

/** Commits a cutover while somebody waits to hear who leads. */
async function leadFrom(pair: DatabasePair, beforeCommit: () => Promise<void>): Promise<void> {
  const journal = await connectControl('destination', pair.destination, { purpose: 'test journal' });
  try {
    const me = (await oneRow(journal, 'SELECT pg_backend_pid() AS pid'))['pid'];
    await journal.query(`BEGIN; UPDATE understudy.route SET side = 'destination', epoch = epoch + 1`);
    await beforeCommit();
    const waiting = `SELECT FROM pg_stat_activity WHERE ${me} = ANY (pg_blocking_pids(pid))`;
    await until(async () => (await pair.onDestination.query(waiting)).rowCount !== 0, {
      what: 'somebody to ask who leads',
    });
    await journal.query('COMMIT');
  } finally {
    await journal.end();
  }
}

/** As the end of a switch leaves both sides. */
async function lead(pair: DatabasePair, side: 'source' | 'destination', epoch: number): Promise<void> {
  const fenced = String(side === 'destination');
  if (epoch === 2) {
    await sql(
      pair.onSource,
      `CREATE TABLE understudy.epoch (subset text, fenced bool, epoch bigint, operation uuid);
       INSERT INTO understudy.epoch VALUES ('all', false, 1)`,
    );
    await sql(pair.onDestination, JOURNAL);
  }
  await sql(
    pair.onSource,
    `UPDATE understudy.epoch SET fenced = ${fenced}, epoch = ${epoch}, operation = gen_random_uuid()`,
  );
  await sql(pair.onDestination, `UPDATE understudy.route SET side = '${side}', epoch = ${epoch}`);
  await emitRoute(pair.onDestination, side, epoch);
  if (side === 'source') await emitRoute(pair.onSource, side, epoch);
}

/** The application's DDL: not as Understudy's own connections, which are not listened to. */
async function ddl(client: pg.Client, text: string): Promise<void> {
  await sql(client, `SET application_name = 'migrations'; ${text}; RESET application_name`);
}

async function oneRow(client: pg.Client, query: string): Promise<Record<string, string>> {
  return (await client.query<Record<string, string>>(query)).rows[0] ?? {};
}

const ACCOUNTS = `
  CREATE TYPE mood AS ENUM ('sad', 'happy');
  CREATE TABLE account (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, email text, balance numeric DEFAULT 0, mood mood);
  CREATE TABLE event (id integer, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
  CREATE TABLE event_24 PARTITION OF event FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
  CREATE TABLE keyless_parts (k integer, v text) PARTITION BY LIST (k);
  CREATE TABLE keyless_1 PARTITION OF keyless_parts FOR VALUES IN (1);
  CREATE VIEW emails AS SELECT email FROM account;
  CREATE FUNCTION twice(n integer) RETURNS integer LANGUAGE sql AS 'SELECT n * 2';
  INSERT INTO account (email) SELECT 'a' || n FROM generate_series(1, 1000) n;`;

test('carries over what is added while the application writes', async () => {
  await using pair = await databasePair();
  await sql(pair.onSource, ACCOUNTS);
  // The catalogs are looked at once an hour: the event trigger and the stream have to tell.
  await using harness = new EngineHarness(pair, { fingerprintIntervalMs: 3_600_000 });
  await harness.start().reach('following');
  await harness.engine.prepareReverse(AbortSignal.timeout(60_000));
  const writer = await liveWriter(pair);
  await ddl(
    pair.onSource,
    `ALTER TABLE account ADD COLUMN level integer DEFAULT 7, ADD COLUMN note text, ADD COLUMN dice float8 DEFAULT random();
     CREATE TABLE invoice (id serial PRIMARY KEY, account bigint REFERENCES account ON DELETE CASCADE, amount numeric);
     CREATE TABLE log (what text, at timestamptz DEFAULT now());
     INSERT INTO invoice (account, amount) SELECT id, id FROM account;
     INSERT INTO log (what) SELECT email FROM account LIMIT 50`,
  );
  await ddl(
    pair.onSource,
    `CREATE INDEX account_level ON account (level) WHERE note IS NOT NULL;
     ALTER TABLE account ALTER COLUMN balance SET NOT NULL, ALTER COLUMN balance SET DEFAULT 5, ADD CHECK (balance > -1);
     ALTER TYPE mood ADD VALUE 'meh' BEFORE 'happy';
     COMMENT ON TABLE account IS 'who';
     GRANT SELECT ON account TO PUBLIC;
     CREATE OR REPLACE VIEW emails AS SELECT email, level FROM account;
     CREATE OR REPLACE FUNCTION twice(n integer) RETURNS integer LANGUAGE sql AS 'SELECT n + n';
     CREATE MATERIALIZED VIEW totals AS SELECT count(*) AS n FROM invoice`,
  );
  await ddl(
    pair.onSource,
    `CREATE TABLE event_25 PARTITION OF event FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
     CREATE TABLE keyless_2 PARTITION OF keyless_parts FOR VALUES IN (2);
     INSERT INTO event VALUES (1, '2025-05-05'), (2, '2024-05-05');
     INSERT INTO keyless_parts VALUES (2, 'a'), (2, 'a'), (1, 'b')`,
  );
  // Without an identity of its own this would fail: the partition is published with its root.
  await sql(pair.onSource, `UPDATE keyless_parts SET v = 'c' WHERE k = 2`);
  await sql(pair.onSource, `UPDATE account SET mood = 'meh', note = 'x' WHERE id % 7 = 0; DROP VIEW emails`);
  const settled = async (): Promise<boolean> => {
    const found = await pair.onDestination.query(
      `SELECT to_regclass('public.keyless_2') IS NOT NULL AND to_regclass('public.totals') IS NOT NULL AS there`,
    );
    return (await harness.engine.status()).phase === 'following' && found.rows[0]?.there === 't';
  };
  await until(settled, { timeoutMs: 120_000, what: 'the schema to be carried over' });
  expect(await writer.stop()).toBeGreaterThan(0);
  await harness.reach('following');
  await harness.caughtUp();
  expect(await harness.expectSame()).toBeGreaterThan(1000);
  expect(
    (await harness.engine.verify({ direction: 'forward' }, AbortSignal.timeout(60_000))).mismatches,
  ).toBe(0);
  expect(
    await oneRow(
      pair.onDestination,
      `SELECT obj_description('public.account'::regclass) AS comment, public.twice(2) AS twice,
         to_regclass('public.account_level') IS NOT NULL AS index, to_regclass('public.emails') AS view,
         has_table_privilege('pg_monitor', 'public.account', 'SELECT') AS granted,
         (SELECT attnotnull FROM pg_attribute WHERE attrelid = 'public.account'::regclass AND attname = 'balance') AS strict,
         (SELECT string_agg(enumlabel, ' ' ORDER BY enumsortorder) FROM pg_enum) AS labels,
         (SELECT count(*) FROM pg_publication_tables WHERE tablename IN ('invoice', 'log', 'event_25')) AS published,
         (SELECT convalidated FROM pg_constraint WHERE conname = 'invoice_account_fkey') AS foreign_key`,
    ),
  ).toEqual({
    comment: 'who',
    twice: '4',
    index: 't',
    view: null,
    granted: 't',
    strict: 't',
    labels: 'sad meh happy',
    published: '3',
    foreign_key: 't',
  });
  expect(harness.built).toContain('public.invoice');
  // Rows that the log doesn't tell of, under a definition that is as it was.
  await ddl(
    pair.onSource,
    `ALTER TABLE account ALTER COLUMN email TYPE text USING upper(email);
     ALTER TABLE account DROP COLUMN dice, ADD COLUMN dice float8 DEFAULT 1;
     ALTER TABLE account ALTER COLUMN dice SET DEFAULT random();
     DROP TABLE log; CREATE TABLE log (what text, at timestamptz DEFAULT now()); INSERT INTO log (what) VALUES ('anew')`,
  );
  const replaced = async (): Promise<boolean> => {
    const { rows } = await pair.onDestination.query(
      `SELECT (SELECT bool_and(email = upper(email) AND dice = 1) FROM public.account)
         AND (SELECT string_agg(what, ' ') FROM public.log) IS NOT DISTINCT FROM 'anew' AS done`,
    );
    return (await harness.engine.status()).phase === 'following' && rows[0]?.done === 't';
  };
  await until(replaced, { timeoutMs: 120_000, what: 'the replaced rows to be carried over' });
  await sql(
    pair.onSource,
    `INSERT INTO log (what) VALUES ('streamed'); UPDATE account SET email = 'low' WHERE id = 3`,
  );
  await harness.caughtUp();
  expect(await harness.expectSame()).toBeGreaterThan(1000);
  // The way back brings the new table too.
  const status = await harness.engine.status();
  expect(status.error).toBeNull();
  expect(status.streams.map((stream) => stream.connected)).toEqual([true, true]);

  // A switch. What the destination gets from here on the source gets too.
  await harness.caughtUp();
  await lead(pair, 'destination', 2);
  await ddl(
    pair.onDestination,
    `ALTER TYPE mood ADD VALUE 'so-so';
     ALTER TABLE account ADD COLUMN back integer DEFAULT 3, ADD COLUMN luck float8 DEFAULT random();
     CREATE TABLE later (id integer PRIMARY KEY, account bigint REFERENCES account);
     CREATE TABLE later_log (what text);
     CREATE INDEX account_back ON account (back);
     INSERT INTO later SELECT n, min(id) FROM account, generate_series(1, 20) n GROUP BY n;
     INSERT INTO later_log VALUES ('twice'), ('twice')`,
  );
  await sql(
    pair.onDestination,
    `UPDATE account SET back = 4 WHERE id % 3 = 0; DELETE FROM later WHERE id = 7`,
  );
  // The new tables' rows, and a column's that differ from row to row, come over by comparing.
  await until(() => harness.phases.includes('repairing'), { what: 'the schema to be carried back' });
  await harness.reach('following');
  // Also where the way back has read of them before they were published: a row with the new column has it read anew.
  const published = `SELECT count(*) AS n FROM pg_publication_tables
    WHERE pubname LIKE '%\\_rev' AND tablename IN ('later', 'later_log')`;
  expect((await oneRow(pair.onDestination, published))['n']).toBe('2');
  await sql(
    pair.onDestination,
    `UPDATE later SET id = -id WHERE id < 5; DELETE FROM later_log WHERE ctid = '(0,1)'; UPDATE account SET mood = 'so-so' WHERE id % 5 = 0`,
  );
  await harness.caughtUp('reverse');
  await harness.expectSame();
  const index = await oneRow(pair.onSource, `SELECT to_regclass('public.account_back') AS made`);
  expect(index).toEqual({ made: 'public.account_back' });
  expect((await harness.engine.status()).error).toBeNull();
  await harness.engine.stop();

  // What may lose rows is named, and nothing is held up by it.
  await using again = new EngineHarness(pair, { fingerprintIntervalMs: 100 });
  await again.start().reach('following');
  await ddl(pair.onDestination, 'ALTER TABLE account DROP COLUMN note');
  await again.reach('paused');
  const { error } = await again.engine.status();
  expect(`${error?.code}: ${error?.message} ${error?.advice}`).toMatch(
    /^schema-paused: the destination.* lost its column note .* on the source .*ALTER TABLE public.account DROP COLUMN note/,
  );
  await sql(pair.onDestination, `UPDATE account SET email = 'on' WHERE id % 2 = 0`);
  await expect(again.engine.resume({ recopy: [] }, AbortSignal.timeout(60_000))).rejects.toMatchObject({
    code: 'catalog-changed',
  });
  await until(
    async () =>
      (await oneRow(pair.onSource, `SELECT count(*) AS n FROM public.account WHERE email = 'on'`))['n'] !==
      '0',
    { what: 'rows to come back meanwhile' },
  );
  await ddl(pair.onSource, 'ALTER TABLE account DROP COLUMN note');
  await again.engine.resume({ recopy: ['public.later'] }, AbortSignal.timeout(60_000));
  await again.reach('following');
  await again.caughtUp('reverse');
  await again.expectSame();

  // A rollback: the source's schema is the model again, and nothing is left to be carried.
  const before = again.phases.length;
  await lead(pair, 'source', 3);
  await sql(pair.onSource, `INSERT INTO later VALUES (500, NULL)`);
  await again.caughtUp();
  await again.expectSame();
  await ddl(pair.onSource, 'CREATE INDEX later_account ON later (account)');
  await until(
    async () =>
      (await oneRow(pair.onDestination, `SELECT to_regclass('public.later_account') AS i`))['i'] !== null,
  );
  await again.reach('following');
  expect(again.phases.slice(before)).not.toContain('paused');
  await again.caughtUp();
  await again.expectSame();
});

test('a column added in the middle of a transaction, with no event trigger to tell', async () => {
  await using pair = await databasePair();
  await sql(pair.onSource, ACCOUNTS);
  await using harness = new EngineHarness(pair, { fingerprintIntervalMs: 3_600_000 });
  await harness.start().reach('following');
  await pair.onSource.query('ALTER EVENT TRIGGER understudy_ddl DISABLE');
  await sql(
    pair.onSource,
    `BEGIN; INSERT INTO account (email) VALUES ('before');
     ALTER TABLE account ADD COLUMN tags text[] NOT NULL DEFAULT '{a,"b c"}';
     UPDATE account SET email = 'between' WHERE id < 10;
     INSERT INTO account (email, tags) VALUES ('after', '{}'); COMMIT;
     ALTER TABLE account ALTER COLUMN tags DROP DEFAULT;
     UPDATE account SET tags = '{x}' WHERE id = 20`,
  );
  await harness.caughtUp();
  await harness.expectSame();
  // Gone before anybody looked: the rows between speak of a column that nobody has.
  await pair.onSource.query('ALTER EVENT TRIGGER understudy_drop DISABLE');
  await sql(
    pair.onSource,
    `BEGIN; ALTER TABLE account ADD COLUMN passing integer DEFAULT 1; UPDATE account SET passing = id WHERE id < 5;
     ALTER TABLE account DROP COLUMN passing; UPDATE account SET email = 'later' WHERE id < 3; COMMIT`,
  );
  await harness.caughtUp();
  await harness.expectSame();
  await harness.reach('following');
});

test('waits for a decision where a change may lose rows, and goes on with it', async () => {
  await using pair = await databasePair();
  await sql(pair.onSource, ACCOUNTS);
  await using harness = new EngineHarness(pair, { fingerprintIntervalMs: 100 });
  await harness.start().reach('following');
  const signal = AbortSignal.timeout(60_000);
  // Undone: the shadow goes on by itself.
  await ddl(pair.onSource, `ALTER TABLE account RENAME COLUMN email TO mail`);
  await harness.reach('paused');
  await ddl(
    pair.onSource,
    `ALTER TABLE account RENAME COLUMN mail TO email; UPDATE account SET email = 'r' WHERE id = 1`,
  );
  await harness.reach('following');
  await harness.caughtUp();
  // Decided on: the same change is made on the destination, and what else was made comes along.
  await ddl(
    pair.onSource,
    `DROP VIEW emails; ALTER TABLE account DROP COLUMN balance, ALTER COLUMN email TYPE varchar(99);
     CREATE INDEX by_email ON account (email);
     CREATE TABLE later (id integer PRIMARY KEY); INSERT INTO later VALUES (1)`,
  );
  await harness.reach('paused');
  const { error } = await harness.engine.status();
  expect(error?.code).toBe('schema-paused');
  expect(error?.message).toContain('table public.account lost its column balance');
  expect(error?.advice).toContain('ALTER TABLE public.account DROP COLUMN balance;');
  await sql(
    pair.onSource,
    `INSERT INTO account (email) VALUES ('while paused'); INSERT INTO later VALUES (2)`,
  );
  await expect(harness.engine.resume({ recopy: [] }, signal)).rejects.toMatchObject({
    code: 'catalog-changed',
  });
  await expect(harness.engine.resume({ recopy: ['public.no'] }, signal)).rejects.toMatchObject({
    code: 'request-invalid',
  });
  await sql(
    pair.onDestination,
    `DROP VIEW emails; ALTER TABLE account DROP COLUMN balance, ALTER COLUMN email TYPE varchar(99)`,
  );
  await harness.engine.resume({ recopy: ['public.account'] }, signal);
  await harness.reach('following');
  await harness.caughtUp();
  expect(await harness.expectSame()).toBeGreaterThan(1000);
  const { rows } = await pair.onDestination.query(
    `SELECT to_regclass('public.by_email') IS NOT NULL AS there`,
  );
  expect(rows).toEqual([{ there: 't' }]);
  expect((await harness.engine.status()).error).toBeNull();

  // A change that is noticed before a cutover commits, and would be carried over behind it: what leads keeps its rows.
  const { onDestination } = pair;
  await sql(onDestination, JOURNAL);
  const accounts = 'SELECT count(*) AS n, to_json(min(a)) AS first FROM public.account AS a';
  const before = await oneRow(onDestination, accounts);
  await leadFrom(pair, () =>
    ddl(pair.onSource, 'ALTER TABLE account ADD COLUMN dice float8 DEFAULT random()'),
  );
  await harness.reach('following');
  expect(await oneRow(onDestination, accounts)).toEqual(before);
  // The source leads again: now it is, and what needs a decision is waited for, but not decided beside a switch.
  await sql(onDestination, `UPDATE understudy.route SET side = 'source', epoch = epoch + 1`);
  const carried = `SELECT FROM pg_attribute WHERE attrelid = 'public.account'::regclass AND attname = 'dice'`;
  await until(async () => (await onDestination.query(carried)).rowCount === 1, { what: 'the column' });
  await harness.reach('following');
  await harness.caughtUp();
  await harness.expectSame();
  await ddl(pair.onSource, `ALTER TABLE account DROP COLUMN dice`);
  await harness.reach('paused');
  const recopy = { recopy: ['public.account'] };
  let resumed: Promise<void> | undefined;
  await sql(onDestination, `INSERT INTO understudy.operation VALUES ('all', 'cutover', 'verifying')`);
  await expect(harness.engine.resume(recopy, signal)).rejects.toMatchObject({ code: 'busy' });
  await sql(
    onDestination,
    `UPDATE understudy.operation SET state = 'done'; ALTER TABLE account DROP COLUMN dice`,
  );
  const kept = await oneRow(onDestination, accounts);
  await leadFrom(pair, () => {
    const refused = expect(harness.engine.resume(recopy, signal)).rejects;
    resumed = refused.toMatchObject({ code: 'already-cut-over' });
    return Promise.resolve();
  });
  await resumed;
  // Not paused any more, so that it may be rolled back.
  await harness.reach('following');
  expect(await oneRow(onDestination, accounts)).toEqual(kept);
  expect((await harness.engine.status()).error).toBeNull();
});

test('without the log, what is added is carried over too, and what needs a decision is waited for', async () => {
  await using pair = await databasePair();
  const { onSource, onDestination } = pair;
  await sql(onSource, ACCOUNTS);
  await using harness = new EngineHarness(pair, {
    method: 'poll',
    pollIntervalMs: 20,
    fingerprintIntervalMs: 100,
  });
  await harness.start().reach('following');
  await harness.engine.prepareReverse(AbortSignal.timeout(60_000));
  const addition = `ALTER TABLE account ADD COLUMN IF NOT EXISTS level integer DEFAULT 7, ADD COLUMN dice float8 DEFAULT random();
    CREATE TABLE IF NOT EXISTS invoice (id serial PRIMARY KEY, account bigint REFERENCES account ON DELETE CASCADE);
    CREATE INDEX IF NOT EXISTS account_level ON account (level); ALTER TYPE mood ADD VALUE 'meh' BEFORE 'happy';
    INSERT INTO invoice (account) SELECT id FROM account`;
  await sql(onSource, addition);
  const built = async (object: string): Promise<boolean> =>
    (await oneRow(onDestination, `SELECT to_regclass('public.${object}') AS found`))['found'] !== null;
  await until(async () => (await built('account_level')) && (await built('invoice')), {
    what: 'the additions',
  });
  // A second time it changes nothing: the catalogs are the same, and nothing is waited for.
  await sql(onSource, addition.split(';').slice(1, 3).join(';'));
  await harness.reach('following');
  await sql(
    onSource,
    `UPDATE account SET level = 8, mood = 'meh' WHERE id < 10; DELETE FROM account WHERE id = 5`,
  );
  await harness.caughtUp();
  expect(await harness.expectSame()).toBe(1998);
  expect(harness.built).toContain('public.invoice');

  await sql(onSource, 'ALTER TABLE account DROP COLUMN dice; UPDATE account SET level = 9 WHERE id = 1');
  await harness.reach('paused');
  const { error } = await harness.engine.status();
  expect(error).toMatchObject({ code: 'schema-paused' });
  expect(error?.advice).toContain('ALTER TABLE public.account DROP COLUMN dice');
  await sql(onDestination, 'ALTER TABLE account DROP COLUMN dice');
  await harness.engine.resume({ recopy: [] }, AbortSignal.timeout(60_000));
  await harness.reach('following');
  await harness.caughtUp();
  expect(await harness.expectSame()).toBe(1998);
  expect((await harness.engine.status()).warnings).toEqual([]);

  await emitRoute(onDestination, 'destination', 1);
  await sql(
    onDestination,
    'INSERT INTO invoice (id, account) VALUES (5000, 7); DELETE FROM account WHERE id = 8',
  );
  await harness.caughtUp('reverse');
  await harness.expectSame();
  expect((await oneRow(onSource, 'SELECT count(*) AS n FROM public.invoice WHERE id = 5000'))['n']).toBe('1');
});
