import { afterAll, beforeAll, expect, test } from 'vitest';
import type { FinalizeReport } from '../../src/cutover/settings.js';
import { Stage, TABLES_SQL } from './stage.js';

let stage: Stage;
let stopped = 0;
const NEVER = new AbortController().signal;

beforeAll(async () => {
  stage = await Stage.open(
    {},
    `${TABLES_SQL}; CREATE TABLE public.keyless (note text);
    CREATE TABLE public.silent (id int PRIMARY KEY)`,
  );
});
afterAll(async () => {
  await stage[Symbol.asyncDispose]();
});

function finalize(options: { removeFence?: boolean; sourceLost?: boolean } = {}): Promise<FinalizeReport> {
  return stage.coordinator.finalize({
    removeFence: false,
    ...options,
    stopShadow: () => {
      stopped++;
      return Promise.resolve();
    },
    signal: NEVER,
  });
}

/** What a shadow leaves behind, as its parts record it. */
async function leaveTraces(): Promise<void> {
  const id = stage.pair.source.database;
  for (const [client, name] of [
    [stage.pair.onSource, `understudy_${id}_fwd`],
    [stage.pair.onDestination, `understudy_${id}_rev`],
  ] as const) {
    await client.query(`CREATE PUBLICATION ${name} FOR TABLE public.plain`);
    await client.query(`SELECT pg_create_logical_replication_slot('${name}', 'pgoutput')`);
    await client.query('CREATE TABLE understudy.progress (direction text PRIMARY KEY)');
    await stage.pair.onDestination.query(
      'CREATE TABLE IF NOT EXISTS understudy.series_point (start timestamptz)',
    );
    for (const kept of ['decision', 'conflict', 'repaired_row']) {
      await stage.pair.onDestination.query(`CREATE TABLE IF NOT EXISTS understudy.${kept} (number bigint)`);
    }
  }
  await stage.pair.onSource.query(`
    CREATE TABLE understudy.identity_change
      (schema_name text, table_name text, before "char", before_index text, PRIMARY KEY (schema_name, table_name));
    INSERT INTO understudy.identity_change VALUES ('public', 'keyless', 'd', NULL), ('public', 'silent', 'n', NULL);
    ALTER TABLE public.keyless REPLICA IDENTITY FULL;`);
}

test('is refused while the source leads', async () => {
  await expect(finalize()).rejects.toMatchObject({ code: 'not-cut-over' });
  expect(stopped).toBe(0);
});

test('removes everything but the source’s fence, the tombstone and the journal; and may be repeated', async () => {
  await leaveTraces();
  await stage.operate('cutover');
  const report = await finalize();
  expect(report).toMatchObject({ epoch: 1, fence: 'kept' });
  const id = stage.pair.source.database;
  expect(report.removed).toEqual([
    `source: slot understudy_${id}_fwd`,
    `source: publication understudy_${id}_fwd`,
    'source: replica identity of public.keyless',
    'source: replica identity of public.silent',
    `destination: slot understudy_${id}_rev`,
    `destination: publication understudy_${id}_rev`,
    'destination: guard',
    'source: 2 tables of schema understudy',
    'destination: 1 tables of schema understudy',
  ]);
  expect(stopped).toBe(1);
  expect(await stage.writableAtRest()).toEqual(['destination']);
  // Why it was switched, and which rows lost to others, is asked long after.
  const kept = await stage.pair.onDestination.query(
    `SELECT relname FROM pg_class WHERE relnamespace = 'understudy'::regnamespace
       AND relname IN ('decision', 'conflict', 'repaired_row')`,
  );
  expect(kept.rowCount).toBe(3);
  const triggers = await stage.pair.onDestination.query(
    `SELECT FROM pg_trigger WHERE tgname LIKE 'understudy%'`,
  );
  expect(triggers.rowCount).toBe(0);
  for (const client of [stage.pair.onSource, stage.pair.onDestination]) {
    const left = await client.query<{ n: string }>(
      `SELECT (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_replication_slots
         WHERE database = current_database()) AS n`,
    );
    expect(left.rows[0]?.n).toBe('0');
  }
  const identity = await stage.pair.onSource.query(
    `SELECT relreplident FROM pg_class WHERE relname IN ('keyless', 'silent') ORDER BY relname`,
  );
  expect(identity.rows).toEqual([{ relreplident: 'd' }, { relreplident: 'n' }]);
  expect((await finalize()).removed).toEqual([]);
});

test('afterwards nothing rolls back, and a restart never serves the source again', async () => {
  await expect(stage.operate('rollback')).rejects.toMatchObject({ code: 'not-cut-over' });
  expect(await stage.restart()).toMatchObject({
    route: { side: 'destination', epoch: 1 },
    finalized: true,
    action: 'none',
  });
  await expect(stage.operate('rollback')).rejects.toMatchObject({ code: 'not-cut-over' });
  expect(await stage.coordinator.status()).toMatchObject({
    finalized: true,
    rollback: { possible: false, lossless: false },
    last: { kind: 'cutover', state: 'done' },
  });
});

test('the tombstone is enough where the journal can’t be read', async () => {
  stage.coordinator.destroy();
  const gone = { ...stage.pair.destination, port: 1 };
  await stage.startAnother({ destination: gone }).catch(() => undefined);
  expect(stage.recovery).toMatchObject({ route: { side: 'destination' }, finalized: true });
});

test('removing the fence leaves the tombstone', async () => {
  await stage.restart({});
  expect(await finalize({ removeFence: true })).toMatchObject({
    fence: 'removed',
    removed: ['source: fence'],
  });
  expect(await stage.writableAtRest()).toEqual(['source', 'destination']);
  expect(await stage.restart()).toMatchObject({ route: { side: 'destination' }, finalized: true });
});

test('remove takes the journal off the destination; the tombstone goes on telling who leads', async () => {
  const options = { destinationLost: false, stopWriters: () => Promise.resolve(), signal: NEVER };
  const left = async (side: 'onSource' | 'onDestination'): Promise<unknown> =>
    (await stage.pair[side].query(`SELECT tablename FROM pg_tables WHERE schemaname = 'understudy'`)).rows;
  expect((await stage.coordinator.remove(options)).removed).toEqual([
    expect.stringMatching(/^destination: \d+ tables of schema understudy$/),
  ]);
  expect(await left('onDestination')).toEqual([]);
  expect(await left('onSource')).toEqual([{ tablename: 'epoch' }]);
  expect((await stage.coordinator.remove(options)).removed).toEqual([]);
  expect(await left('onSource')).toEqual([{ tablename: 'epoch' }]);
  expect(await stage.restart()).toMatchObject({ route: { side: 'destination' }, finalized: true });
});
