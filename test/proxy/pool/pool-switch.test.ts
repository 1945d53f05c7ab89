import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { WHOLE_DATABASE, type Side } from '../../../src/core/ports.js';
import type { HoldOptions } from '../../../src/core/traffic-ports.js';
import { POOL_DEFAULTS, type PoolMode } from '../../../src/proxy/pool/pool-settings.js';
import { databasePair, until, type DatabasePair } from '../../support/servers.js';
import {
  RawClient,
  firstColumn,
  send,
  sqlStates,
  startProxy,
  statuses,
  type Message,
  type RunningProxy,
} from '../proxy-support.js';

let pair: DatabasePair;

beforeAll(async () => {
  pair = await databasePair();
  for (const client of [pair.onSource, pair.onDestination]) {
    await client.query('CREATE TABLE public.ledger (id bigint PRIMARY KEY, note text)');
  }
});

afterAll(async () => {
  await pair[Symbol.asyncDispose]();
});

const never = new AbortController().signal;
const options: HoldOptions = {
  drainTimeoutMs: 10_000,
  onDrainTimeout: 'abort',
  onPinned: 'refuse',
  signal: never,
};

const start = (poolMode: PoolMode): Promise<RunningProxy> =>
  startProxy(pair, { pool: { ...POOL_DEFAULTS, poolMode, poolSizeMax: 4, sharedReadBoundMs: 20_000 } });

const connect = (running: RunningProxy): Promise<RawClient> =>
  RawClient.connect(running.port, running.database);

async function move({ proxy }: RunningProxy, to: Side, over: Partial<HoldOptions> = {}): Promise<void> {
  await proxy.prepare(WHOLE_DATABASE, to, never);
  await proxy.hold(WHOLE_DATABASE, to, { ...options, ...over });
  const { epoch } = proxy.route(WHOLE_DATABASE);
  expect(await proxy.switchTo(WHOLE_DATABASE, { side: to, epoch: epoch + 1 })).toMatchObject({ closed: 0 });
  proxy.release(WHOLE_DATABASE);
}

const version = async (client: RawClient): Promise<string> =>
  (await client.column("SELECT current_setting('server_version_num')::int / 10000"))[0] ?? '';

const rows = (messages: readonly Message[]): (string | null)[] =>
  messages.filter(({ type }) => type === 'D').map((message) => firstColumn(message));

let nextId = 1;

/** Reads and writes until told to stop; every answer must be right. Returns the ids whose insert was acknowledged. */
async function work(client: RawClient, stop: () => boolean): Promise<number[]> {
  const acknowledged: number[] = [];
  await client.run([send.parse('INSERT INTO ledger VALUES ($1, $2)', 'put'), send.sync()]);
  await client.run([send.parse('SELECT $1::bigint * 2', 'double'), send.sync()]);
  while (!stop()) {
    const id = nextId++;
    const read = await client.run([send.bind([String(id)], 'double'), send.execute(), send.sync()]);
    expect(rows(read)).toEqual([String(id * 2)]);
    const write = await client.run([send.bind([String(id), 'a'], 'put'), send.execute(), send.sync()]);
    expect(sqlStates(write)).toEqual([]);
    acknowledged.push(id);
    const other = nextId++;
    const transaction = await client.run(
      [
        send.query('BEGIN'),
        send.query(`INSERT INTO ledger VALUES (${other}, 'b')`),
        send.parse('SELECT count(*) FROM ledger WHERE id = $1'),
        send.bind([String(other)]),
        send.execute(),
        send.sync(),
        send.query('COMMIT'),
      ],
      4,
    );
    expect(statuses(transaction)).toBe('TTTI');
    expect(rows(transaction)).toEqual(['1']);
    acknowledged.push(other);
    expect(rows(await client.run([send.query(`SELECT ${id} AS same`)]))).toEqual([String(id)]);
  }
  return acknowledged;
}

describe.each(['transaction', 'pipelined'] as const)('%s pooling', (mode) => {
  test('goes there and back under load: nothing fails, is lost or comes twice', async () => {
    await using running = await start(mode);
    const clients = await Promise.all(Array.from({ length: 12 }, () => connect(running)));
    let stopped = false;
    const working = clients.map((client) => work(client, () => stopped));
    const served = async (side: Side): Promise<void> => {
      const begun = nextId;
      await until(() => nextId > begun + 100);
      expect(running.proxy.route(WHOLE_DATABASE).side).toBe(side);
    };
    await served('source');
    await move(running, 'destination');
    await served('destination');
    await move(running, 'source');
    await served('source');
    await move(running, 'destination');
    await served('destination');
    stopped = true;
    const acknowledged = (await Promise.all(working)).flat();
    const ids = new Set<number>();
    for (const side of [pair.onSource, pair.onDestination]) {
      const { rows: found } = await side.query<{ id: string }>('DELETE FROM public.ledger RETURNING id');
      expect(found.length).toBeGreaterThan(0);
      for (const { id } of found) {
        expect(ids.has(Number(id))).toBe(false);
        ids.add(Number(id));
      }
    }
    expect(ids).toEqual(new Set(acknowledged));
    for (const pool of running.proxy.status().pools) expect(pool.side).toBe('destination');
    await Promise.all(clients.map((client) => client[Symbol.asyncDispose]()));
  });

  test('holds what comes, lets what is open end, and tells clients of the new side', async () => {
    await using running = await start(mode);
    await using open = await connect(running);
    await using idle = await connect(running);
    await idle.run([send.query("SET work_mem = '7MB'")]);
    await open.run([send.query('BEGIN')]);
    await running.proxy.prepare(WHOLE_DATABASE, 'destination', never);
    const held = running.proxy.hold(WHOLE_DATABASE, 'destination', options);
    idle.write(send.query('SHOW work_mem'));
    expect(await version(open)).toBe('14');
    await open.run([send.query('COMMIT')]);
    await held;
    open.write(send.query('SELECT 1'));
    await until(() => running.proxy.status().clients.filter((client) => client.heldBytes > 0).length === 2);
    expect(idle.types).toBe('');
    await running.proxy.switchTo(WHOLE_DATABASE, { side: 'destination', epoch: 1 });
    expect(running.proxy.release(WHOLE_DATABASE).held).toBe(2);
    await Promise.all([idle.readies(1), open.readies(1)]);
    expect(idle.types).toMatch(/^S+TDCZ$/);
    expect(rows(idle.take())).toEqual(['7MB']);
    open.take();
    expect(await version(open)).toBe('18');
  });

  test('a failed hold leaves everything as it was', async () => {
    await using running = await start(mode);
    await using open = await connect(running);
    await using idle = await connect(running);
    await open.run([send.query('BEGIN')]);
    await running.proxy.prepare(WHOLE_DATABASE, 'destination', never);
    const failed = running.proxy.hold(WHOLE_DATABASE, 'destination', { ...options, drainTimeoutMs: 50 });
    idle.write(send.query('SELECT 3'));
    await expect(failed).rejects.toMatchObject({ code: 'drain-timeout' });
    await idle.readies(1);
    expect(rows(idle.take())).toEqual(['3']);
    await open.run([send.query('COMMIT')]);
    await move(running, 'destination');
    expect(await version(idle)).toBe('18');
  });

  test('the drain deadline rolls back what is open, and its client is told 40001', async () => {
    await using running = await start(mode);
    await using open = await connect(running);
    await using committing = await connect(running);
    await open.run([send.query('BEGIN'), send.query("INSERT INTO ledger VALUES (-1, 'gone')")], 2);
    await committing.run([send.query('BEGIN'), send.query("INSERT INTO ledger VALUES (-2, 'gone')")], 2);
    await move(running, 'destination', { drainTimeoutMs: 50, onDrainTimeout: 'cancel' });
    expect(sqlStates(await open.run([send.query('SELECT 1')]))).toEqual(['40001']);
    expect(sqlStates(await open.run([send.query('SELECT 1')]))).toEqual(['25P02']);
    expect(statuses(await open.run([send.query('ROLLBACK')]))).toBe('I');
    const lost = await committing.run([send.query('COMMIT')]);
    expect([sqlStates(lost), statuses(lost)]).toEqual([['40001'], 'I']);
    for (const client of [open, committing]) expect(await version(client)).toBe('18');
    expect((await pair.onSource.query('SELECT 1 FROM public.ledger WHERE id < 0')).rows).toEqual([]);
  });

  test('a pinned client moves as a session does; what can’t move blocks by name', async () => {
    await using running = await start(mode);
    await using listener = await connect(running);
    await listener.run([send.query('LISTEN news')]);
    await move(running, 'destination');
    expect(await version(listener)).toBe('18');
    await using locker = await connect(running);
    await locker.run([send.query('SELECT pg_advisory_lock(99)')]);
    const { blockers } = await running.proxy.prepare(WHOLE_DATABASE, 'source', never);
    expect(blockers).toMatchObject([{ reason: 'session-advisory-lock' }]);
    await expect(running.proxy.hold(WHOLE_DATABASE, 'source', options)).rejects.toMatchObject({
      code: 'session-pinned',
    });
    expect(await version(locker)).toBe('18');
  });

  test('settings the new side refuses block by name', async () => {
    await using running = await start(mode);
    await running.proxy.prepare(WHOLE_DATABASE, 'destination', never);
    await using client = await connect(running);
    // Gone in 16.
    expect(sqlStates(await client.run([send.query('SET force_parallel_mode = on')]))).toEqual([]);
    const { blockers } = await running.proxy.prepare(WHOLE_DATABASE, 'destination', never);
    expect(blockers).toMatchObject([{ reason: 'unknown-setting' }]);
    await client.run([send.query('RESET ALL')]);
    await move(running, 'destination');
    expect(await version(client)).toBe('18');
  });

  test('while it is not known which side serves, statements are refused with the reason', async () => {
    await using running = await start(mode);
    await using client = await connect(running);
    expect(await client.column('SELECT 1')).toEqual(['1']);
    running.proxy.setUnavailable(WHOLE_DATABASE, { sqlState: '57P03', message: 'not known' });
    expect(sqlStates(await client.run([send.query('SELECT 1')]))).toEqual(['57P03']);
    running.proxy.setUnavailable(WHOLE_DATABASE, null);
    expect(await client.column('SELECT 1')).toEqual(['1']);
  });
});
