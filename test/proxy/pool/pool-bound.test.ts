/** The bound on all pools’ connections: kept, shared fairly, and never waited at for ever. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { WHOLE_DATABASE } from '../../../src/core/ports.js';
import { POOL_DEFAULTS, type PoolSettings } from '../../../src/proxy/pool/pool-settings.js';
import { databasePair, until, type DatabasePair } from '../../support/servers.js';
import { RawClient, errorField, send, sqlStates, startProxy, type RunningProxy } from '../proxy-support.js';

let pair: DatabasePair;
let running: RunningProxy | undefined;

beforeAll(async () => {
  pair = await databasePair();
  await pair.onSource.query('CREATE TABLE public.item (id int); INSERT INTO public.item VALUES (1)');
});
afterEach(async () => {
  await running?.[Symbol.asyncDispose]();
  running = undefined;
});
afterAll(async () => {
  await pair[Symbol.asyncDispose]();
});

async function start(over: Partial<PoolSettings>): Promise<RunningProxy> {
  running = await startProxy(pair, { pool: { ...POOL_DEFAULTS, poolMode: 'transaction', ...over } });
  return running;
}

/** Each name is a pool of its own. */
const client = ({ port, database }: RunningProxy, name: string): Promise<RawClient> =>
  RawClient.connect(port, database, { application_name: name });

const counted = ({ proxy }: RunningProxy): number =>
  proxy.status().pools.reduce((total, pool) => total + pool.counted, 0);

describe.each(['poolConnectionsMax', 'poolConnectionsPerUserMax'] as const)('%s', (bound) => {
  test('clients of more pools than connections are all served, and the bound is kept', async () => {
    const proxy = await start({ [bound]: 2 });
    const names = ['a', 'b', 'c', 'd'];
    const clients = await Promise.all(names.flatMap((name) => [client(proxy, name), client(proxy, name)]));
    let most = 0;
    await Promise.all(
      clients.map(async (one, index) => {
        for (let round = 0; round < 5; round++) {
          expect(await one.column(`SELECT ${index}`)).toEqual([String(index)]);
          most = Math.max(most, counted(proxy));
        }
      }),
    );
    expect(most).toBe(2);
    await Promise.all(clients.map((one) => one[Symbol.asyncDispose]()));
  });

  test('a pool that is never idle starves no other', async () => {
    const proxy = await start({ [bound]: 1 });
    await using busy = await client(proxy, 'busy');
    await using also = await client(proxy, 'busy');
    const done = new AbortController();
    let statements = 0;
    const load = async (one: RawClient): Promise<void> => {
      while (!done.signal.aborted) {
        await one.column('SELECT 1');
        statements += 1;
      }
    };
    const loads = Promise.all([load(busy), load(also)]);
    await until(() => statements > 10);
    const other = await client(proxy, 'other');
    expect(await other.column('SELECT 2')).toEqual(['2']);
    done.abort();
    await loads;
    await other[Symbol.asyncDispose]();
  });
});

test('a login and a statement that find no connection in time are refused by name', async () => {
  const proxy = await start({ poolConnectionsMax: 1, poolWaitTimeoutMs: 300 });
  await using holder = await client(proxy, 'holder');
  await holder.run([send.query('BEGIN')]);
  const refused = await client(proxy, 'late');
  const error = refused.messages.find(({ type }) => type === 'E');
  expect(error && errorField(error, 'C')).toBe('53300');
  expect(error && errorField(error, 'M')).toContain('proxy.poolConnectionsMax');
  await using waits = await client(proxy, 'holder');
  expect(sqlStates(await waits.run([send.query('SELECT 1')]))).toEqual(['53300']);
  await holder.run([send.query('COMMIT')]);
  expect(await waits.column('SELECT 4')).toEqual(['4']);
});

test('shared connections leave room for what can’t be shared', async () => {
  const proxy = await start({
    poolMode: 'pipelined', poolConnectionsMax: 2, sharedConnections: 2, sharedReadBoundMs: 20_000,
  }); // prettier-ignore
  await using reader = await client(proxy, 'pipelined');
  await using writer = await client(proxy, 'pipelined');
  await using other = await client(proxy, 'other');
  await until(async () => {
    await reader.column('SELECT id FROM item');
    return proxy.proxy.status().pools.some(({ shared }) => shared.statements > 0);
  });
  await Promise.all([
    reader.column('SELECT id FROM item'),
    writer.run([send.query('BEGIN'), send.query('UPDATE item SET id = 1'), send.query('COMMIT')], 3),
    other.run([send.query('UPDATE item SET id = 1')]),
  ]);
  expect(counted(proxy)).toBeLessThanOrEqual(2);
});

test('a pinned client’s connection counts until it leaves', async () => {
  const proxy = await start({ poolConnectionsMax: 1 });
  const listener = await client(proxy, 'a');
  await listener.run([send.query('LISTEN news')]);
  await until(() => proxy.proxy.status().pools.every(({ clients }) => clients === 0));
  expect(counted(proxy)).toBe(1);
  // The one it has moved to counts, too.
  const { signal } = new AbortController();
  await proxy.proxy.prepare(WHOLE_DATABASE, 'destination', signal);
  const how = { drainTimeoutMs: 60_000, onDrainTimeout: 'abort', onPinned: 'refuse', signal } as const;
  await proxy.proxy.hold(WHOLE_DATABASE, 'destination', how);
  const route = { side: 'destination', epoch: 1 } as const;
  expect(await proxy.proxy.switchTo(WHOLE_DATABASE, route)).toEqual({ moved: 1, closed: 0 });
  proxy.proxy.release(WHOLE_DATABASE);
  await until(() => counted(proxy) === 1);
  const waiting = client(proxy, 'b');
  await listener[Symbol.asyncDispose]();
  await using served = await waiting;
  expect(await served.column('SELECT 5')).toEqual(['5']);
});
