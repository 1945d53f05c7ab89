import type pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { logPressure, type LogPressure } from '../../src/shadow/log-budget.js';
import { type EmbeddedServer, SUPERUSER, SUPERUSER_PASSWORD } from '../../src/app/demo/embedded-server.js';
import type { DatabaseEndpoint, Side } from '../../src/core/ports.js';
import { connectControl } from '../../src/core/postgres.js';
import { FAST_SETTINGS } from '../support/global-setup.js';
import { until, ownServer } from '../support/servers.js';
import { EngineHarness, sql, type Sides } from './engine-harness.js';

const MIB = 1024 * 1024;

test('pressure rises at three quarters and at the whole, and falls only below a half', () => {
  const seen: LogPressure[] = [];
  let pressure: LogPressure = 'fine';
  for (const retained of [0, 74, 75, 74, 50, 49, 74, 99, 100, 0]) {
    pressure = logPressure(pressure, retained, 100);
    seen.push(pressure);
  }
  expect(seen).toEqual([
    'fine',
    'fine',
    'tight',
    'tight',
    'tight',
    'fine',
    'fine',
    'tight',
    'spent',
    'spent',
  ]);
  expect(logPressure('fine', 1e15, 0)).toBe('fine');
});

/** Servers of their own: on shared ones the log grows by other tests too. */
let servers: readonly EmbeddedServer[] = [];

beforeAll(async () => {
  servers = await Promise.all(
    ([14, 18] as const).map((version) => ownServer({ version, settings: FAST_SETTINGS })),
  );
});
afterAll(async () => {
  for (const server of servers) await server[Symbol.asyncDispose]();
});

async function openSide(side: Side, database: string): Promise<[DatabaseEndpoint, pg.Client]> {
  const server = servers[side === 'source' ? 0 : 1];
  if (server === undefined) throw new Error('two servers');
  const { host, port } = server;
  const endpoint = (name: string): DatabaseEndpoint => ({
    host,
    port,
    database: name,
    user: SUPERUSER,
    password: SUPERUSER_PASSWORD,
    tls: 'disable',
  });
  const maker = await connectControl(side, endpoint('postgres'), { purpose: 'test' });
  await maker.query(`CREATE DATABASE ${database}`);
  await maker.end();
  return [endpoint(database), await connectControl(side, endpoint(database), { purpose: 'test' })];
}

async function ownDatabases(database: string): Promise<Sides & AsyncDisposable> {
  const [source, onSource] = await openSide('source', database);
  const [destination, onDestination] = await openSide('destination', database);
  return {
    source,
    destination,
    onSource,
    onDestination,
    async [Symbol.asyncDispose]() {
      await Promise.all([onSource.end(), onDestination.end()]);
    },
  };
}

async function slots(pair: Sides): Promise<number> {
  let count = 0;
  for (const client of [pair.onSource, pair.onDestination]) {
    const { rowCount } = await client.query(
      'SELECT FROM pg_replication_slots WHERE database = current_database()',
    );
    count += rowCount ?? 0;
  }
  return count;
}

/** Fills the log of the source's server, in no table the shadow follows. */
async function writeLog(pair: Sides, bytes: number): Promise<void> {
  await pair.onSource.query(`SELECT pg_logical_emit_message(false, 'filler', repeat('x', ${bytes}))`);
}

test('a stream that can’t get on loses its shadow before the log fills the disk, and the application nothing', async () => {
  await using pair = await ownDatabases('one');
  await sql(pair.onSource, 'CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1)');
  await using harness = new EngineHarness(pair, {
    logBudgetBytes: 24 * MIB,
    logPollIntervalMs: 50,
  }).start();
  await harness.reach('following');
  await harness.engine.prepareReverse(AbortSignal.timeout(60_000));
  expect(await slots(pair)).toBe(2);
  // The apply waits for this lock, as it would for a destination that hangs.
  await pair.onDestination.query('BEGIN; LOCK TABLE public.t IN ACCESS EXCLUSIVE MODE');
  await sql(pair.onSource, `INSERT INTO t VALUES (2)`);
  await writeLog(pair, 20 * MIB);
  await until(
    async () => ((await harness.engine.status()).warnings ?? []).some(({ code }) => code === 'log-tight'),
    {
      what: 'the warning',
    },
  );
  expect((await harness.engine.status()).phase).toBe('following');
  await writeLog(pair, 8 * MIB);
  await until(async () => (await harness.engine.status()).phase === 'failed', { what: 'the drop' });
  await pair.onDestination.query('ROLLBACK');
  await until(async () => (await slots(pair)) === 0, { what: 'no slot to be left' });
  expect((await harness.engine.status()).error).toMatchObject({ code: 'log-budget-spent' });
  await sql(pair.onSource, `INSERT INTO t VALUES (3)`);
});

test('a shadow that is held up by a refused change is kept from filling the disk too', async () => {
  await using pair = await ownDatabases('other');
  await sql(pair.onSource, 'CREATE TABLE t (id int PRIMARY KEY)');
  await using harness = new EngineHarness(pair, {
    logBudgetBytes: 24 * MIB,
    logPollIntervalMs: 50,
  }).start();
  await harness.reach('following');
  await sql(pair.onDestination, 'ALTER TABLE t ADD CHECK (id < 0)');
  await sql(pair.onSource, 'INSERT INTO t VALUES (1)');
  await until(async () => (await harness.engine.status()).steering?.stuck.length === 1, {
    what: 'the change to be refused',
  });
  await writeLog(pair, 30 * MIB);
  await until(async () => (await slots(pair)) === 0, { what: 'no slot to be left' });
  const status = await harness.engine.status();
  expect(status.phase).toBe('failed');
  expect(status.error?.code).toBe('log-budget-spent');
  const never = new AbortController().signal;
  const spent = { code: 'log-budget-spent' };
  await expect(harness.engine.verify({ direction: 'forward' }, never)).rejects.toMatchObject(spent);
  await expect(harness.engine.steer({ action: 'pause' })).rejects.toMatchObject(spent);
});
