import { expect, test } from 'vitest';
import type pg from 'pg';
import { SUPERUSER, SUPERUSER_PASSWORD } from '../../src/app/demo/embedded-server.js';
import type { DatabaseEndpoint } from '../../src/core/ports.js';
import { connectControl } from '../../src/core/postgres.js';
import { FAST_SETTINGS } from '../support/global-setup.js';
import { databasePair, until, type DatabasePair, ownServer } from '../support/servers.js';
import { EngineHarness, sql } from './engine-harness.js';

const LARGE = `(SELECT string_agg(md5(g::text || random()::text), '') FROM generate_series(1, 300) g)`;

/** Resolves once a reader of the copy has its snapshot and waits for a lock. */
async function readerWaits(client: pg.Client): Promise<void> {
  await until(
    async () => {
      const { rows } = await client.query(
        `SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'understudy copy'
           AND wait_event_type = 'Lock'`,
      );
      return rows.length > 0;
    },
    { what: 'the reader to wait for the lock' },
  );
}

/**
 * Copies `doc` with `changes` committed while a chunk is read: after its snapshot, which must not see them, and before
 * its `high` mark.
 */
async function copiedDuring(
  changes: string,
  options: { readonly setup?: string; readonly table?: string; readonly chunkRows?: number } = {},
  inspect: (pair: DatabasePair, harness: EngineHarness) => Promise<void> = async () => undefined,
): Promise<void> {
  await using pair = await databasePair();
  const table = options.table ?? 'doc';
  await sql(
    pair.onSource,
    options.setup ??
      `CREATE TABLE doc (id int PRIMARY KEY, body text, title text);
       INSERT INTO doc SELECT n, ${LARGE}, 't' || n FROM generate_series(1, 50) n`,
  );
  const writer = await connectControl('source', pair.source, { purpose: 'test writer' });
  try {
    await using harness = new EngineHarness(
      pair,
      { chunkRows: options.chunkRows ?? 20, copyConcurrency: 1 },
      async () => {
        await sql(writer, `BEGIN; LOCK TABLE ${table} IN ACCESS EXCLUSIVE MODE`);
      },
    ).start();
    await readerWaits(pair.onSource);
    await sql(writer, `${changes}; COMMIT`);
    await harness.reach('following');
    await harness.caughtUp();
    await harness.expectSame();
    await inspect(pair, harness);
  } finally {
    await writer.end();
  }
}

test('rows changed, deleted or made while their chunk is read are not undone by it', async () => {
  await copiedDuring(
    `UPDATE doc SET body = 'small', title = 'full' WHERE id = 1; DELETE FROM doc WHERE id = 2;
     INSERT INTO doc VALUES (-1, 'new', 'new'); DELETE FROM doc WHERE id = 3; INSERT INTO doc VALUES (3, 'again', 'again')`,
  );
});

test('a column left unchanged out of line while its chunk is read survives', async () => {
  await copiedDuring(
    `UPDATE doc SET title = 'partial' WHERE id IN (1, 2); UPDATE doc SET title = title || '!' WHERE id = 1;
     UPDATE doc SET body = 'small' WHERE id = 4; UPDATE doc SET title = 'late' WHERE id = 4;
     UPDATE doc SET title = 'gone' WHERE id = 5; DELETE FROM doc WHERE id = 5`,
  );
});

test('a row moved while its chunk is read is there once, with all its columns', async () => {
  await copiedDuring(
    `UPDATE doc SET id = 1000 WHERE id = 1; UPDATE doc SET id = 1 WHERE id = 2;
     UPDATE doc SET id = -5, body = 'full' WHERE id = 3; UPDATE doc SET id = -6 WHERE id = 50`,
  );
});

test('a truncation while a chunk is read empties it', async () => {
  await copiedDuring(`TRUNCATE doc; INSERT INTO doc VALUES (7, 'after', 'after')`);
});

test('a row that moves behind the copied border without its columns is fetched', async () => {
  await using pair = await databasePair();
  await sql(
    pair.onSource,
    `CREATE TABLE doc (id int PRIMARY KEY, body text, title text);
     INSERT INTO doc SELECT n, ${LARGE}, 't' || n FROM generate_series(1, 60) n;
     CREATE TABLE stopper (id int PRIMARY KEY); INSERT INTO stopper VALUES (1)`,
  );
  const writer = await connectControl('source', pair.source, { purpose: 'test writer' });
  const locker = await connectControl('destination', pair.destination, { purpose: 'test locker' });
  try {
    // Chunks are read three ahead while the lane stands still: the row moves when they are read and none is written.
    await using harness = new EngineHarness(pair, { chunkRows: 5, copyConcurrency: 1 }, async () => {
      await sql(locker, 'BEGIN; LOCK TABLE doc IN ACCESS EXCLUSIVE MODE');
    }).start();
    await until(
      async () => {
        const { rows } = await pair.onSource.query(
          `SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'understudy copy'
             AND state = 'idle' AND query LIKE '%"high"%-3"%'`,
        );
        return rows.length === 1;
      },
      { what: 'three chunks to be read' },
    );
    await sql(
      writer,
      'UPDATE doc SET id = -1 WHERE id = 60; UPDATE doc SET id = -2, title = title || 1 WHERE id = 59',
    );
    await locker.query('ROLLBACK');
    await harness.reach('following');
    await harness.caughtUp();
    await harness.expectSame();
  } finally {
    await writer.end();
    await locker.end();
  }
});

test('a table without a key is copied whole, and changed meanwhile', async () => {
  await copiedDuring(
    `INSERT INTO k SELECT 5, 'during' FROM generate_series(1, 5); DELETE FROM k WHERE ctid IN (SELECT ctid FROM k WHERE a = 1 LIMIT 3);
     UPDATE k SET b = 'moved' WHERE a = 2`,
    {
      table: 'k',
      setup: `CREATE TABLE k (a int, b text);
        INSERT INTO k SELECT n % 3, 'x' FROM generate_series(1, 30) n`,
    },
  );
});

test('a change that a whole copy holds already is not applied again', async () => {
  await using pair = await databasePair();
  await sql(pair.onSource, `CREATE TABLE k (v text); INSERT INTO k VALUES ('copied')`);
  {
    await using first = await new EngineHarness(pair).start().reach('following');
    await first.caughtUp();
  }
  // As if the table were copied now, with the stream still before the next change.
  await sql(pair.onSource, `INSERT INTO k VALUES ('seen by the copy'); DELETE FROM k WHERE v = 'copied'`);
  const { rows } = await pair.onSource.query<{ snapshot: string; until: string }>(
    `SELECT pg_current_snapshot() AS snapshot, pg_current_wal_insert_lsn() AS until`,
  );
  await pair.onDestination.query(
    `UPDATE understudy.table_copy SET snapshot = '${rows[0]?.snapshot}', snapshot_until = '${rows[0]?.until}'`,
  );
  await sql(pair.onDestination, `UPDATE k SET v = 'seen by the copy'`);
  await sql(pair.onSource, `INSERT INTO k VALUES ('later')`);
  await using second = await new EngineHarness(pair).start().reach('following');
  await second.caughtUp();
  expect(await second.expectSame()).toBe(2);
});

test('text, composite and foreign key types order and page as the source has them', async () => {
  await using pair = await databasePair();
  await sql(
    pair.onSource,
    `CREATE EXTENSION citext SCHEMA public;
     CREATE TABLE a (x text, y int, z uuid, v text, PRIMARY KEY (x, y, z));
     INSERT INTO a SELECT chr(97 + n % 7) || CASE WHEN n % 2 = 0 THEN ' "\\{' ELSE '''' END, n % 11,
       md5(n::text)::uuid, 'v' FROM generate_series(1, 500) n;
     CREATE TABLE c (k citext, n numeric, v text, PRIMARY KEY (k, n));
     INSERT INTO c SELECT CASE n % 2 WHEN 0 THEN 'Key' ELSE 'kEy' END || n % 50, n / 3.0, 'v' FROM generate_series(1, 300) n;
     CREATE TYPE mood AS ENUM ('z', 'a', 'm'); CREATE TABLE e (m mood, b bool, i inet, PRIMARY KEY (m, b, i));
     INSERT INTO e SELECT m, b, ('10.0.0.' || n)::inet FROM unnest(enum_range(NULL::mood)) m, (VALUES (true), (false)) b(b),
       generate_series(1, 20) n;
     CREATE TABLE "we""ird" ("a""b" int, "c d" bytea, PRIMARY KEY ("c d"));
     INSERT INTO "we""ird" SELECT n, decode(md5(n::text), 'hex') FROM generate_series(1, 100) n`,
  );
  await using harness = await new EngineHarness(pair, { chunkRows: 17 }).start().reach('following');
  await sql(
    pair.onSource,
    `UPDATE c SET v = 'w' WHERE n < 10; DELETE FROM c WHERE n > 90; UPDATE c SET k = upper(k::text) WHERE n BETWEEN 20 AND 30;
     DELETE FROM "we""ird" WHERE "a""b" < 10; UPDATE e SET b = NOT b WHERE m = 'z' AND i < '10.0.0.0'; DELETE FROM e WHERE m = 'a'`,
  );
  await harness.caughtUp();
  expect(await harness.expectSame()).toBeGreaterThan(700);
});

test('a commit that was streamed but is not visible yet holds the copy up, also after a restart', async () => {
  await using server = await ownServer({ version: 14, settings: FAST_SETTINGS });
  await using pair = await databasePair();
  const source: DatabaseEndpoint = {
    host: server.host,
    port: server.port,
    database: 'postgres',
    user: SUPERUSER,
    password: SUPERUSER_PASSWORD,
    tls: 'disable',
  };
  const onSource = await connectControl('source', source, { purpose: 'test' });
  const writer = await connectControl('source', source, { purpose: 'test writer' });
  const keyless = await connectControl('source', source, { purpose: 'test writer' });
  const sides = { ...pair, source, onSource };
  try {
    await sql(
      onSource,
      `CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT n, 'old' FROM generate_series(1, 10) n;
       CREATE TABLE k (v text); INSERT INTO k VALUES ('old')`,
    );
    const held: Promise<unknown>[] = [];
    {
      await using first = new EngineHarness(sides, {}, async () => {
        await onSource.query(`ALTER SYSTEM SET synchronous_standby_names = 'missing'`);
        await onSource.query('SELECT pg_reload_conf()');
        held.push(...(await holdCommit(writer, `UPDATE public.t SET v = v || '+' WHERE id = 5`, onSource)));
        held.push(...(await holdCommit(keyless, `UPDATE public.k SET v = v || '+'`, onSource)));
      }).start();
      await until(async () => ((await first.engine.status()).streams[0]?.changesApplied ?? 0) >= 2, {
        what: 'the held commits to be applied',
      });
      await stays(first);
    }
    await using second = new EngineHarness(sides).start();
    await until(async () => (await second.engine.status()).streams[0]?.connected === true);
    await stays(second);
    await onSource.query('ALTER SYSTEM RESET synchronous_standby_names');
    await onSource.query('SELECT pg_reload_conf()');
    await Promise.all(held);
    await second.reach('following');
    await second.caughtUp();
    await second.expectSame();
  } finally {
    await Promise.all([onSource.end(), writer.end(), keyless.end()]);
  }
});

/** Runs the statement until its commit is held; the server takes the setting on a moment after it says so. */
async function holdCommit(client: pg.Client, text: string, look: pg.Client): Promise<Promise<unknown>[]> {
  const before = await heldCommits(look);
  for (;;) {
    let over = false;
    const done = client.query(text).then(
      () => (over = true),
      () => (over = true),
    );
    await until(async () => over || (await heldCommits(look)) > before, { what: 'the commit to be held' });
    // In an array, so that awaiting this function does not await the commit.
    if (!over) return [done];
  }
}

async function heldCommits(client: pg.Client): Promise<number> {
  const { rows } = await client.query(
    `SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name = 'understudy test writer'`,
  );
  return rows.length;
}

/** The copy has asked for several snapshots, and none would do. */
async function stays(harness: EngineHarness): Promise<void> {
  for (let look = 0; look < 20; look++) {
    const status = await harness.engine.status();
    expect(status.phase).not.toBe('indexing');
    expect(status.copy.rows).toBe(0);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
