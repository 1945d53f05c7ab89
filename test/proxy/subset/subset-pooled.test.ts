/** Clients of a pool while subsets are on different sides: few connections of each side, taken as statements need them. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { databasePair, until, type DatabasePair } from '../../support/servers.js';
import { RawClient, firstColumn, send, sqlStates, statuses, type RunningProxy } from '../proxy-support.js';
import { makeSides, startRouted } from './subset-support.js';

let pair: DatabasePair;
let running: RunningProxy;

beforeAll(async () => {
  pair = await databasePair();
  await makeSides(pair);
  running = await startRouted(pair, undefined, { poolMode: 'transaction', poolSizeMax: 1 });
});
afterAll(async () => {
  await running[Symbol.asyncDispose]();
  await pair[Symbol.asyncDispose]();
});

const raw = (parameters: Record<string, string> = {}): Promise<RawClient> =>
  RawClient.connect(running.port, running.database, parameters);
const rows = (client: RawClient): (string | null)[] =>
  client
    .take()
    .filter(({ type }) => type === 'D')
    .map(firstColumn);

test('with one connection to each side, clients that need both by turns all get through', async () => {
  const clients = await Promise.all(Array.from({ length: 3 }, () => raw()));
  await Promise.all(
    clients.map(async (client, at) => {
      await client.run([send.query(`SET app.tenant = '${at}'`)]);
      for (const [table, side] of [
        ['a1', 'destination'],
        ['b1', 'source'],
      ] as const) {
        // All at once: what is begun on one side may have to go to the other, with nothing kept meanwhile.
        client.write(
          send.query('BEGIN'),
          send.query("SET LOCAL app.other = 'x'"),
          send.query(
            `SELECT note || current_setting('app.tenant') || current_setting('app.other') FROM ${table}`,
          ),
          send.query('COMMIT'),
          send.query('SELECT note FROM a1 WHERE id = 1'),
          send.query('SELECT note FROM b1 WHERE id = 1'),
        );
        await client.readies(6);
        expect(rows(client)).toEqual([`${side}${at}x`, 'destination', 'source']);
      }
    }),
  );
  for (const { active, idle, opening } of running.proxy.status().pools) {
    expect(active + idle + opening).toBeLessThanOrEqual(1);
  }
  for (const client of clients) await client[Symbol.asyncDispose]();
});

test('what a transaction sets before it goes to the other side is its client’s, there and afterwards, and nobody else’s', async () => {
  await using client = await raw();
  await using other = await raw();
  const tenants = (table: string): string =>
    `SELECT coalesce(current_setting('app.tenant', true), '') || ' ' || note FROM ${table}`;
  expect(await client.column('SELECT note FROM b1')).toEqual(['source']);
  await client.run([send.query('BEGIN')]);
  await client.run([send.query(`SET app.tenant = '7'`)]);
  await client.run([send.query(`SET LOCAL DateStyle = 'German'`)]);
  const moved = await client.run([send.query(tenants('a1'))]);
  expect(moved.filter(({ type }) => type === 'D').map(firstColumn)).toEqual(['7 destination']);
  // Told last of all before the rows, which are to be read by it.
  const told = moved.filter(({ type, payload }) => type === 'S' && payload.includes('DateStyle'));
  expect(told.at(-1)?.payload.toString()).toContain('German');
  await client.run([send.query('COMMIT')]);
  expect(await other.column(tenants('a1'))).toEqual([' destination']);
  expect(await other.column(tenants('b1'))).toEqual([' source']);
  expect(await client.column(tenants('b1'))).toEqual(['7 source']);
});

test('who finds too many waiting for one side is told so, and goes on with the other', async () => {
  await using own = await startRouted(pair, undefined, {
    poolMode: 'transaction',
    poolSizeMax: 1,
    poolWaitingMax: 1,
  });
  const connect = (): Promise<RawClient> => RawClient.connect(own.port, own.database);
  await using holder = await connect();
  await using waiter = await connect();
  await using client = await connect();
  await holder.run([send.query('BEGIN')]);
  expect(await holder.column('SELECT note FROM a1')).toEqual(['destination']);
  waiter.write(send.query('SELECT note FROM a1'));
  const waiting = (): boolean =>
    own.proxy.status().pools.some(({ side, waiting: some }) => side === 'destination' && some === 1);
  await until(waiting);
  expect(sqlStates(await client.run([send.query('SELECT note FROM a1')]))).toEqual(['53300']);
  expect(await client.column('SELECT note FROM b1')).toEqual(['source']);
  // In the middle of a transaction, which fails then.
  await client.run([send.query('BEGIN')]);
  const failed = await client.run([send.query('SELECT note FROM a1')]);
  expect([sqlStates(failed), statuses(failed)]).toEqual([['53300'], 'E']);
  await client.run([send.query('ROLLBACK')]);
  expect(await client.column('SELECT note FROM b1')).toEqual(['source']);
  await waiter.cancel();
  await waiter.readies(1);
  expect(sqlStates(waiter.take())).toEqual(['57014']);
  expect(await waiter.column('SELECT note FROM b1')).toEqual(['source']);
  await holder.run([send.query('COMMIT')]);
  expect(await waiter.column('SELECT note FROM a1')).toEqual(['destination']);
});

test('what names mean on a connection is made sure of before anything is sent on it', async () => {
  await using client = await raw();
  expect(await client.column('SELECT note FROM b1')).toEqual(['source']);
  const { database } = pair.source;
  await pair.onSource.query(`ALTER DATABASE ${database} SET search_path = public, moved`);
  try {
    // Only connections opened from now on see it so.
    await pair.onSource.query(
      'SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()',
    );
    await until(() =>
      running.proxy.status().pools.every(({ side, idle }) => side !== 'source' || idle === 0),
    );
    expect(await client.column('SELECT note FROM b1')).toEqual(['source']);
    client.write(send.query('SELECT note FROM a1'));
    await until(() => client.closed);
    expect(sqlStates(client.take())).toEqual(['57P01']);
  } finally {
    await pair.onSource.query(`ALTER DATABASE ${database} RESET search_path`);
  }
});
