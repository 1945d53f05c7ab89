/** The whole capture in its thread, from the built program: what outlives it, what is shed, and that nobody waits. */
import { Worker } from 'node:worker_threads';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { CaptureClient } from '../../src/capture/client.js';
import type { SeriesSettings } from '../../src/capture/keeper.js';
import {
  PostgresSeriesStore,
  SERIES_CONNECTION,
  SERIES_STORE_DEFAULTS,
} from '../../src/capture/series-store.js';
import { connectControl } from '../../src/core/postgres.js';
import type { CaptureSnapshot, SeriesInterval } from '../../src/core/capture-ports.js';
import { databasePair, until, type DatabasePair } from '../support/servers.js';

const ENTRY = new URL('../../dist/capture/worker.js', import.meta.url);
const IDLE = 'I'.charCodeAt(0);
const NONE = Buffer.alloc(0);

let pair: DatabasePair;
const workers: Worker[] = [];
const clients: CaptureClient[] = [];

beforeAll(async () => {
  pair = await databasePair();
  await pair.onSource.query('CREATE SCHEMA shop; CREATE TABLE shop.item (id int PRIMARY KEY, name text)');
});
afterEach(async () => {
  for (const client of clients.splice(0)) client.close();
  await Promise.all(workers.splice(0).map((worker) => worker.terminate()));
});
afterAll(async () => {
  await pair[Symbol.asyncDispose]();
});

function settings(changed: Partial<SeriesSettings> = {}): SeriesSettings {
  return {
    ...SERIES_STORE_DEFAULTS,
    source: pair.source,
    destination: pair.destination,
    writer: `test/${Math.random()}`,
    keys: true,
    hotKeysMax: 100,
    flushIntervalMs: 3_600_000,
    catalogIntervalMs: 3_600_000,
    ...changed,
  };
}

async function started(series: SeriesSettings, ringBytes = 1 << 20): Promise<CaptureClient> {
  const client = new CaptureClient({
    ringBytes,
    textBytesMax: 1024,
    series,
    monotonicMs: () => performance.now(),
  });
  clients.push(client);
  const worker = new Worker(ENTRY);
  workers.push(worker);
  await client.attach(worker);
  return client;
}

function offer(client: CaptureClient, sql: string, parameters = NONE): boolean {
  return client.tap.offer(
    7,
    Buffer.from(sql),
    1_500,
    2,
    100,
    200,
    false,
    IDLE,
    performance.now(),
    0,
    parameters,
  );
}

async function snapshotWhere(
  client: CaptureClient,
  condition: (series: NonNullable<CaptureSnapshot['series']>) => boolean,
  what: string,
): Promise<CaptureSnapshot> {
  let snapshot = await client.snapshot();
  await until(
    async () => {
      snapshot = await client.snapshot();
      return snapshot.series !== null && condition(snapshot.series);
    },
    { what: `${what}: ${JSON.stringify(snapshot.series)}` },
  );
  return snapshot;
}

async function stored<T>(
  read: (store: PostgresSeriesStore) => Promise<T>,
  on: DatabasePair = pair,
): Promise<T> {
  const store = new PostgresSeriesStore(() =>
    connectControl('destination', on.destination, { ...SERIES_CONNECTION }),
  );
  try {
    return await read(store);
  } finally {
    await store.close();
  }
}

const always = { fromMs: 0, untilMs: Date.now() + 86_400_000 };
const sum = (intervals: readonly SeriesInterval[], of: (interval: SeriesInterval) => number): number =>
  intervals.reduce((total, interval) => total + of(interval), 0);

describe('what is kept', () => {
  test('a graceful end leaves nothing behind, and the next run adds to it', async () => {
    const before = Date.now();
    for (let run = 1; run <= 2; run += 1) {
      const client = await started(settings());
      await snapshotWhere(client, ({ relations }) => relations !== null, 'the catalogs');
      for (let n = 0; n < 10; n += 1) offer(client, `SELECT * FROM item WHERE id = ${n % 3}`);
      // Keys wait for the secret, which comes from the destination.
      await until(
        async () => {
          offer(client, 'SELECT * FROM shop.item WHERE id = 7');
          await client.flush();
          return (await stored((store) => store.hotKeys(always))).length > 0;
        },
        { what: 'keys in the destination' },
      );
      const { offered } = await client.snapshot();
      const [tables, intervals, hot] = await stored(
        async (store) =>
          [
            await store.tables('hour', always),
            await store.intervals('hour', always),
            await store.hotKeys(always),
          ] as const,
      );
      expect(tables.map(({ table }) => table)).toEqual(['shop.item']);
      expect(sum(intervals, ({ statements }) => statements)).toBeGreaterThanOrEqual(offered * run);
      const [first] = intervals;
      expect(first?.startMs).toBeGreaterThan(before - 2 * 3_600_000);
      expect(sum(intervals, ({ observedMs }) => observedMs)).toBeGreaterThan(0);
      // The same secret, so the same key: not one more by the second run.
      expect(new Set(hot.flatMap(({ keys }) => keys.map(({ key }) => key))).size).toBeLessThanOrEqual(4);
      client.close();
      await Promise.all(workers.splice(0).map((worker) => worker.terminate()));
    }
  });

  test('told to keep nothing more, it does not make its tables anew', async () => {
    await using own = await databasePair();
    const client = await started(
      settings({ source: own.source, destination: own.destination, flushIntervalMs: 10 }),
    );
    await snapshotWhere(client, ({ batchesAppended }) => batchesAppended > 0, 'the first batch');
    await client.stopKeeping();
    await own.onDestination.query('DROP SCHEMA understudy CASCADE');
    offer(client, 'SELECT 1');
    expect(await client.snapshot()).toMatchObject({ series: null, kinds: [{ statements: 1 }] });
    await client.flush();
    const found = await own.onDestination.query(`SELECT FROM pg_namespace WHERE nspname = 'understudy'`);
    expect(found.rows).toEqual([]);
  });

  test('a table made while it runs is known soon after', async () => {
    const client = await started(settings({ flushIntervalMs: 50 }));
    await snapshotWhere(client, ({ relations }) => relations !== null, 'the catalogs');
    await pair.onSource.query('CREATE TABLE shop.made_later (id int)');
    offer(client, 'CREATE TABLE shop.made_later (id int)');
    await snapshotWhere(client, ({ relations }) => relations === 2, 'the new table');
    offer(client, 'SELECT * FROM made_later');
    await until(
      async () =>
        (await stored((store) => store.tables('minute', always))).some(
          ({ table, points }) => table === 'shop.made_later' && points.some(({ reads }) => reads > 0),
        ),
      { what: 'its series' },
    );
  });

  test('while the destination is away the capture goes on, and hands over when it is back', async () => {
    await using own = await databasePair();
    const name = own.destination.database;
    const admin = await connectControl(
      'destination',
      { ...own.destination, database: 'postgres' },
      { purpose: 'test' },
    );
    try {
      await admin.query(`ALTER DATABASE ${name} ALLOW_CONNECTIONS false`);
      const client = await started(
        settings({ source: own.source, destination: own.destination, flushIntervalMs: 20 }),
      );
      offer(client, 'SELECT 1');
      const { series, unparsed } = await snapshotWhere(
        client,
        ({ problem, pending }) => problem !== null && pending,
        'the trouble',
      );
      expect(unparsed).toBe(0);
      expect(series).toMatchObject({ batchesAppended: 0, problem: { code: 'destination-unreachable' } });
      for (let n = 0; n < 100; n += 1) expect(offer(client, 'SELECT 1')).toBe(true);
      await admin.query(`ALTER DATABASE ${name} ALLOW_CONNECTIONS true`);
      await until(
        async () =>
          sum(
            await stored((store) => store.intervals('minute', always), own),
            ({ statements }) => statements,
          ) === 101,
        { what: 'all of them in the destination' },
      );
      expect((await client.snapshot()).dropped).toBe(0);
    } finally {
      await admin.end();
    }
  });
});

describe('shed before slow', () => {
  test('a capture that can’t keep up drops, says how much, and makes nobody wait', async () => {
    const client = await started(settings(), 1 << 16);
    // Each text is new to it and takes the parser a while: far more than it can take in the time this loop needs.
    const filler = Array.from({ length: 40 }, (_, n) => `column_${n} = ${n}`).join(' AND ');
    let taken = 0;
    let refused = 0;
    for (let n = 0; n < 20_000; n += 1) {
      if (offer(client, `SELECT ${n} AS c${n} FROM shop.item WHERE ${filler}`)) taken += 1;
      else refused += 1;
    }
    const snapshot = await client.snapshot();
    expect(refused).toBeGreaterThan(1_000);
    expect(snapshot).toMatchObject({ offered: 20_000, dropped: refused, faults: 0 });
    expect(snapshot.kinds).toMatchObject([{ kind: 'select', statements: taken }]);
    await client.flush();
    const intervals = await stored((store) => store.intervals('minute', always));
    expect(sum(intervals, ({ dropped }) => dropped)).toBe(refused);
    // It goes on from there.
    expect(offer(client, 'SELECT 1')).toBe(true);
  });

  test('a thread that hangs costs what it misses and nothing else', async () => {
    const client = new CaptureClient({
      ringBytes: 1 << 16,
      textBytesMax: 1024,
      series: null,
      monotonicMs: () => performance.now(),
    });
    clients.push(client);
    const hung = new Worker(
      'const { parentPort } = require("node:worker_threads"); parentPort.once("message", () => { for (;;); });',
      { eval: true },
    );
    workers.push(hung);
    void client.attach(hung).catch(() => undefined);
    let refused = 0;
    for (let n = 0; n < 50_000; n += 1) if (!offer(client, 'SELECT * FROM item')) refused += 1;
    expect(refused).toBeGreaterThan(40_000);
    await hung.terminate();
    workers.length = 0;
    const worker = new Worker(ENTRY);
    workers.push(worker);
    await client.attach(worker);
    expect(await client.snapshot()).toMatchObject({
      offered: 50_000,
      dropped: refused,
      kinds: [{ statements: 50_000 - refused }],
    });
  });
});
