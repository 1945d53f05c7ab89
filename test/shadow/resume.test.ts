import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { appendFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { Worker } from 'node:worker_threads';
import { expect, test } from 'vitest';
import type pg from 'pg';
import { type EmbeddedServer, SUPERUSER, SUPERUSER_PASSWORD } from '../../src/app/demo/embedded-server.js';
import type { DatabaseEndpoint, TableName } from '../../src/core/ports.js';
import { connectControl } from '../../src/core/postgres.js';
import { ShadowClient } from '../../src/shadow/client.js';
import { FAST_SETTINGS } from '../support/global-setup.js';
import { databasePair, until, type DatabasePair, ownServer } from '../support/servers.js';
import { contents, emitRoute, EngineHarness, JOURNAL, sql } from './engine-harness.js';

const BUILT_WORKER = new URL('../../dist/shadow/worker.js', import.meta.url);

function startWorker(
  pair: DatabasePair,
  onBuilt: (tables: readonly TableName[]) => void,
): {
  readonly worker: Worker;
  readonly client: ShadowClient;
} {
  const { source, destination } = pair;
  const options = { source, destination, migrationId: source.database, copyRoles: false, chunkRows: 200 };
  const worker = new Worker(BUILT_WORKER, { workerData: { options, logLevel: 'silent' } });
  const client = new ShadowClient(worker, {
    afterSchemaBuilt: async (tables) => {
      onBuilt(tables);
      await Promise.resolve();
    },
  });
  return { worker, client };
}

async function copied(client: pg.Client): Promise<number> {
  const { rows } = await client
    .query<{ n: string }>('SELECT coalesce(sum(rows_copied), 0) AS n FROM understudy.table_copy')
    .catch(() => ({ rows: [{ n: '0' }] }));
  return Number(rows[0]?.n);
}

test.skipIf(!existsSync(BUILT_WORKER))('a thread killed again and again goes on where it was', async () => {
  await using pair = await databasePair();
  await sql(
    pair.onSource,
    `CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a, v text UNIQUE);
     INSERT INTO a SELECT n, 'v' FROM generate_series(1, 12000) n; INSERT INTO b SELECT n, n, 'b' || n FROM generate_series(1, 12000) n`,
  );
  const built: (readonly TableName[])[] = [];
  let kept = 0;
  for (const stopAt of [1, 4000, 12000, 20000]) {
    const { worker, client } = startWorker(pair, (tables) => built.push(tables));
    await client.start();
    await until(async () => (await copied(pair.onDestination)) >= stopAt, { what: `${stopAt} rows` });
    await worker.terminate();
    const now = await copied(pair.onDestination);
    expect(now).toBeGreaterThanOrEqual(kept);
    kept = now;
    await sql(
      pair.onSource,
      `UPDATE a SET v = v || '.' WHERE id % 100 = 0; DELETE FROM b WHERE id = ${stopAt} / 2 + 1`,
    );
  }
  const { worker, client } = startWorker(pair, (tables) => built.push(tables));
  await client.start();
  await until(async () => (await client.status()).phase === 'following', { what: 'following' });
  // Each time the barrier is looked after, also where the schema was there already.
  expect(built.map((tables) => tables.map(({ name }) => name))).toEqual(
    Array.from({ length: 5 }, () => ['a', 'b']),
  );
  const { copy } = await client.status();
  // Rows deleted before their chunk was read are not copied; none is copied twice.
  expect(copy.rows).toBeLessThanOrEqual(24_000);
  expect(copy.rows).toBeGreaterThanOrEqual(23_996);
  const report = await client.verify({ direction: 'forward' }, AbortSignal.timeout(60_000));
  expect(report).toMatchObject({ mismatches: 0, tables: 2, rows: 23_996 });
  await client.stop();
  await worker.terminate();
  expect(await contents(pair.onDestination)).toEqual(await contents(pair.onSource));
});

function endpoint(server: EmbeddedServer): DatabaseEndpoint {
  const { host, port } = server;
  return { host, port, database: 'postgres', user: SUPERUSER, password: SUPERUSER_PASSWORD, tls: 'disable' };
}

test('a server that crashes, or fails over to a standby that lost writes, costs nothing but time', async () => {
  await using sourceServer = await ownServer({ version: 14, settings: FAST_SETTINGS });
  await using destinationServer = await ownServer({ version: 18, settings: FAST_SETTINGS });
  const source = endpoint(sourceServer);
  const destination = endpoint(destinationServer);
  let onSource = await connectControl('source', source, { purpose: 'test' });
  let onDestination = await connectControl('destination', destination, { purpose: 'test' });
  await sql(
    onSource,
    `CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT n, 'v' FROM generate_series(1, 3000) n`,
  );
  const crash = async (server: EmbeddedServer, isUp: () => Promise<void>): Promise<void> => {
    await server.stop('SIGQUIT');
    await isUp();
    await server.start();
  };
  await using harness = new EngineHarness(
    { source, destination, onSource, onDestination },
    { chunkRows: 100 },
  );
  harness.start();
  await until(async () => (await harness.engine.status()).copy.rows > 0, { what: 'the first chunk' });
  await crash(destinationServer, async () => {
    await until(async () => (await harness.engine.status()).error !== null, { what: 'the trouble to show' });
    await sql(onSource, `UPDATE t SET v = 'while down' WHERE id % 3 = 0`);
  });
  await onDestination.end().catch(() => undefined);
  onDestination = await connectControl('destination', destination, { purpose: 'test' });
  await harness.reach('following');
  await crash(sourceServer, async () => {
    await until(async () => (await harness.engine.status()).streams[0]?.connected === false, {
      what: 'the cut',
    });
    expect((await harness.engine.status()).streams[0]?.lagBytes).toBeNull();
  });
  await onSource.end().catch(() => undefined);
  onSource = await connectControl('source', source, { purpose: 'test' });
  await sql(onSource, `INSERT INTO t VALUES (-1, 'after'); DELETE FROM t WHERE id = 5`);
  await until(async () => {
    const { rows } = await onDestination.query('SELECT FROM public.t WHERE id = -1');
    return rows.length === 1;
  });
  await until(async () => (await harness.engine.status()).error === null, { what: 'the trouble to be over' });
  expect((await harness.engine.status()).phase).toBe('following');
  expect((await harness.engine.status()).copy.rows).toBe(3000);
  expect(await contents(onDestination)).toEqual(await contents(onSource));

  // A failover to a standby that lacks what was applied here, and takes other writes in its place.
  await onSource.end();
  await sourceServer.stop();
  const data = join(sourceServer.folder, 'data');
  await promisify(execFile)('cp', ['-a', data, `${data}.standby`]);
  await sourceServer.start();
  const old = await connectControl('source', source, { purpose: 'test' });
  await sql(
    old,
    `UPDATE t SET v = 'lost' WHERE id < 100; DELETE FROM t WHERE id = 200; INSERT INTO t VALUES (-2, 'lost')`,
  );
  await until(async () => {
    const { rows } = await onDestination.query('SELECT FROM public.t WHERE id = -2');
    return rows.length === 1;
  });
  await old.end();
  await sourceServer.stop('SIGQUIT');
  await rm(data, { recursive: true });
  await rename(`${data}.standby`, data);
  await appendFile(join(data, 'postgresql.auto.conf'), "restore_command = 'false'\n");
  await promisify(execFile)('cp', ['-a', join(data, 'PG_VERSION'), join(data, 'recovery.signal')]);
  await sourceServer.start();
  onSource = await connectControl('source', source, { purpose: 'test' });
  await sql(onSource, `INSERT INTO t VALUES (-3, 'instead')`);
  await until(async () => {
    const { rows } = await onDestination.query('SELECT FROM public.t WHERE id = -3');
    return rows.length === 1 && (await harness.engine.status()).phase === 'following';
  });
  expect(harness.phases).toContain('repairing');
  expect(await contents(onDestination)).toEqual(await contents(onSource));
  await Promise.all([onSource.end(), onDestination.end()]);
});

test('a slot that is lost is made anew, and what it has missed is mended, not copied', async () => {
  await using pair = await databasePair();
  const { onSource, onDestination } = pair;
  await sql(
    onSource,
    `CREATE TABLE t (id int PRIMARY KEY, v text, n int UNIQUE);
     INSERT INTO t SELECT n, 'first', n FROM generate_series(1, 2000) n;
     CREATE TABLE keyless (v text); INSERT INTO keyless SELECT 'same' FROM generate_series(1, 20);
     CREATE TABLE still (id int PRIMARY KEY); INSERT INTO still SELECT generate_series(1, 100)`,
  );
  const settled = async (harness: EngineHarness): Promise<void> => {
    await harness.reach('following');
    await harness.caughtUp();
    await harness.expectSame();
    // The way back may still be connecting anew.
    await until(async () => (await harness.engine.status()).error === null, { what: 'both streams' });
    expect((await harness.engine.status()).warnings).toEqual([]);
  };
  {
    await using first = await new EngineHarness(pair).start().reach('following');
    await first.engine.prepareReverse(AbortSignal.timeout(60_000));
    await first.caughtUp();
  }
  await until(async () => (await onSource.query(`SELECT ${SLOTS} AND active`)).rowCount === 0);

  // While nobody runs: two rows swap a unique value, one moves, one goes, one comes.
  await onSource.query(`SELECT pg_drop_replication_slot(slot_name) ${SLOTS}`);
  await sql(
    onSource,
    `BEGIN; UPDATE t SET n = -1 WHERE id = 1; UPDATE t SET n = 1 WHERE id = 2; UPDATE t SET n = 2 WHERE id = 1; COMMIT;
     UPDATE t SET id = 9000 WHERE id = 3; DELETE FROM t WHERE id = 4; INSERT INTO t VALUES (9001, 'new', 9001);
     DELETE FROM keyless WHERE ctid IN (SELECT ctid FROM keyless LIMIT 3)`,
  );
  {
    await using second = new EngineHarness(pair).start();
    await settled(second);
    expect(second.phases).toContain('repairing');
    expect(second.phases).not.toContain('copying');
    const { rows } = await onDestination.query('SELECT DISTINCT table_name FROM understudy.repaired_row');
    expect(rows).toEqual([{ table_name: 't' }]);

    // While it runs, on either side, and while the source is written to.
    const writing = new AbortController();
    const writer = (async () => {
      for (let n = 0; !writing.signal.aborted; n++) {
        await onSource.query('UPDATE public.t SET v = $1 WHERE id % 50 = $2', [`live ${n}`, n % 50]);
      }
    })();
    try {
      const before = second.phases.length;
      const other = await connectControl('source', pair.source, { purpose: 'test' });
      try {
        await dropWhileUsed(other);
      } finally {
        await other.end();
      }
      await until(() => second.phases.slice(before).includes('repairing'), { what: 'the repair' });
      await second.reach('following');
      await dropWhileUsed(onDestination);
      await until(async () => (await onDestination.query(`SELECT ${SLOTS} AND active`)).rowCount === 1, {
        what: 'the way back to have a slot again',
      });
    } finally {
      writing.abort();
      await writer;
    }
    await settled(second);
    await second.caughtUp('reverse');
  }

  // A process that was killed after it had made the slot, and before it had recorded where it begins.
  await until(async () => (await onSource.query(`SELECT ${SLOTS} AND active`)).rowCount === 0);
  await sql(onSource, 'UPDATE t SET v = $$missed$$ WHERE id < 20');
  await onSource.query(
    `SELECT pg_catalog.pg_replication_slot_advance(slot_name, pg_catalog.pg_current_wal_lsn()) ${SLOTS}`,
  );
  await onDestination.query(`INSERT INTO understudy.unmended VALUES ('', '')`);
  {
    await using third = new EngineHarness(pair).start();
    await settled(third);
    expect(third.phases).not.toContain('copying');
    expect((await onDestination.query('SELECT FROM understudy.unmended')).rowCount).toBe(0);

    // A switch: from here on the way back is what must not be lost.
    await sql(
      onSource,
      `CREATE TABLE understudy.epoch (subset text, fenced bool, epoch bigint, operation uuid);
       INSERT INTO understudy.epoch VALUES ('all', true, 2, gen_random_uuid())`,
    );
    await sql(onDestination, `${JOURNAL}; UPDATE understudy.route SET side = 'destination', epoch = 2`);
    await emitRoute(onDestination, 'destination', 2);
    await sql(onDestination, `UPDATE t SET v = 'led' WHERE id < 50`);
    await third.caughtUp('reverse');
    await third.expectSame();
  }
  await until(async () => (await onDestination.query(`SELECT ${SLOTS} AND active`)).rowCount === 0);
  await onDestination.query(`SELECT pg_drop_replication_slot(slot_name) ${SLOTS}`);
  await sql(
    onDestination,
    `BEGIN; UPDATE t SET n = -1 WHERE id = 1; UPDATE t SET n = 2 WHERE id = 2; UPDATE t SET n = 1 WHERE id = 1; COMMIT;
     DELETE FROM t WHERE id = 5; INSERT INTO t VALUES (9002, 'led', 9002); INSERT INTO keyless VALUES ('led')`,
  );
  const back = async (harness: EngineHarness, phases: number): Promise<void> => {
    await until(() => harness.phases.slice(phases).includes('repairing'), { what: 'the repair' });
    await settled(harness);
    await harness.caughtUp('reverse');
    await harness.expectSame();
    expect((await onSource.query('SELECT FROM understudy.unmended')).rowCount).toBe(0);
  };
  {
    await using fourth = new EngineHarness(pair).start();
    await back(fourth, 0);
    expect(fourth.phases).not.toContain('copying');
    const before = fourth.phases.length;
    await sql(onDestination, `UPDATE t SET v = 'led on' WHERE id < 500`);
    await dropWhileUsed(onDestination);
    await sql(onDestination, `UPDATE t SET v = 'led further' WHERE id < 100; DELETE FROM keyless`);
    await back(fourth, before);
  }
  // A source that has failed over to a standby which lacked what had come back last, and how far that was.
  await sql(
    onSource,
    `UPDATE understudy.stream_origin SET timeline = 99 WHERE direction = 'reverse target';
     SET session_replication_role = replica; DELETE FROM t WHERE id < 10; RESET session_replication_role`,
  );
  await using fifth = new EngineHarness(pair).start();
  await back(fifth, 0);
  const mended = await fifth.engine.verify(
    { direction: 'reverse', repair: true },
    AbortSignal.timeout(60_000),
  );
  expect(mended).toMatchObject({ mismatches: 0, repair: { rows: 0, remaining: 0 } });
});

const SLOTS = 'FROM pg_catalog.pg_replication_slots WHERE database = pg_catalog.current_database()';

/** Takes the slot away from the stream that reads from it. */
async function dropWhileUsed(client: pg.Client): Promise<void> {
  const dropped = async (): Promise<boolean> => {
    await client.query(`SELECT pg_catalog.pg_terminate_backend(active_pid) ${SLOTS} AND active`);
    const { rowCount } = await client.query(
      `SELECT pg_catalog.pg_drop_replication_slot(slot_name) ${SLOTS} AND NOT active`,
    );
    return rowCount === 1;
  };
  await until(() => dropped().catch(() => false), { what: 'the slot to be dropped' });
}
