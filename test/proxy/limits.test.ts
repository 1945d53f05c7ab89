/** Limits and timeouts as clients meet them. */
import { once } from 'node:events';
import net from 'node:net';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { POOL_DEFAULTS } from '../../src/proxy/pool/pool-settings.js';
import { canReusePort } from '../../src/proxy/listener.js';
import { systemClock } from '../../src/core/clock.js';
import { databasePair, until, untilActive, type DatabasePair } from '../support/servers.js';
import { SUPERUSER_PASSWORD } from '../../src/app/demo/embedded-server.js';
import { RawClient, errorField, send, sqlStates, startProxy, statuses, uniqueName } from './proxy-support.js';

let pair: DatabasePair;
beforeAll(async () => {
  pair = await databasePair();
});
afterAll(async () => {
  await pair[Symbol.asyncDispose]();
});

function messageOf(client: RawClient): string {
  const error = client.messages.find(({ type }) => type === 'E');
  return error === undefined ? '' : errorField(error, 'M');
}

test('one user’s clients are bounded apart from all others’, and a place is free again once its client left', async () => {
  const role = uniqueName('limited');
  await pair.onSource.query(`CREATE ROLE ${role} LOGIN SUPERUSER PASSWORD '${SUPERUSER_PASSWORD}'`);
  try {
    await using running = await startProxy(pair, { maxClientsPerUser: 1 });
    await using first = await RawClient.connect(running.port, running.database);
    await using other = await RawClient.connect(running.port, running.database, {}, role);
    await using refused = await RawClient.connect(running.port, running.database);
    expect([sqlStates(refused.messages), messageOf(refused)]).toEqual([
      ['53300'],
      'too many connections for role "postgres"',
    ]);
    expect(await other.column('SELECT current_user')).toEqual([role]);
    await first[Symbol.asyncDispose]();
    await until(() => running.proxy.status().sessions === 1);
    await using again = await RawClient.connect(running.port, running.database);
    expect(await again.column('SELECT 1')).toEqual(['1']);
  } finally {
    await pair.onSource.query(`DROP ROLE ${role}`);
  }
});

test('a database’s clients are bounded, and one that the server refuses leaves no place taken', async () => {
  await using running = await startProxy(pair, { maxClientsPerDatabase: 1 });
  for (let attempt = 0; attempt < 3; attempt++) {
    await using unknown = await RawClient.connect(running.port, 'no_such_database');
    expect(sqlStates(unknown.messages)).toEqual(['3D000']);
  }
  await using first = await RawClient.connect(running.port, running.database);
  await using refused = await RawClient.connect(running.port, running.database);
  expect([sqlStates(refused.messages), messageOf(refused)]).toEqual([
    ['53300'],
    `too many connections for database "${running.database}"`,
  ]);
  expect(await first.column('SELECT 1')).toEqual(['1']);
});

test('an idle client is told why it is closed; one at work and one in a transaction are not idle', async () => {
  await using running = await startProxy(pair);
  await using idle = await RawClient.connect(running.port, running.database);
  await using open = await RawClient.connect(running.port, running.database);
  await open.run([send.query('BEGIN')]);
  await using busy = await RawClient.connect(running.port, running.database);
  await pair.onSource.query('SELECT pg_advisory_lock(1)');
  const locked = busy.run([send.query('SELECT pg_advisory_xact_lock(1)')]);
  await until(() => running.proxy.status().clients.some((client) => client.busy));
  running.proxy.reconfigure({ clientIdleTimeoutMs: 150 });
  await until(() => idle.closed);
  expect(sqlStates(idle.messages)).toEqual(['57P05']);
  await pair.onSource.query('SELECT pg_advisory_unlock(1)');
  expect(statuses(await locked)).toBe('I');
  expect(await open.column('SELECT 1')).toEqual(['1']);
});

test('a transaction left open is rolled back, and its client told', async () => {
  await using running = await startProxy(pair, { idleInTransactionTimeoutMs: 150 });
  await using idle = await RawClient.connect(running.port, running.database);
  await using open = await RawClient.connect(running.port, running.database);
  open.write(send.query('BEGIN'), send.query('CREATE TABLE left_open (id int)'));
  await until(() => open.closed);
  expect(sqlStates(open.messages)).toEqual(['25P03']);
  expect(await idle.column("SELECT to_regclass('left_open')")).toEqual([null]);
});

test('a pipeline that is never synced counts as a transaction left open', async () => {
  await using running = await startProxy(pair, { idleInTransactionTimeoutMs: 150 });
  await using client = await RawClient.connect(running.port, running.database);
  client.write(send.parse('SELECT 1'), send.bind(), send.execute(), send.flush());
  await until(() => client.closed);
  expect(client.types).toBe('12DCE');
  expect(sqlStates(client.messages)).toEqual(['25P03']);
});

test.each([
  ['simple', [send.query('SELECT pg_sleep(60)')]],
  ['extended', [send.parse('SELECT pg_sleep(60)'), send.bind(), send.execute(), send.sync()]],
])(
  'a %s statement past its time is cancelled; the session goes on, and a later cancel is the client’s',
  async (_, frames) => {
    await using running = await startProxy(pair, { queryTimeoutMs: 150 });
    await using client = await RawClient.connect(running.port, running.database);
    const messages = await client.run(frames);
    const error = messages.find(({ type }) => type === 'E');
    expect(error && [errorField(error, 'C'), errorField(error, 'M')]).toEqual([
      '57014',
      'canceling statement due to query timeout',
    ]);
    expect(statuses(messages)).toBe('I');
    running.proxy.reconfigure({ queryTimeoutMs: 60_000 });
    expect(await client.column('SELECT 1')).toEqual(['1']);
    const cancelled = client.run([send.query('SELECT pg_sleep(60)')]);
    await untilActive(pair.onSource, 'pg_sleep(60)');
    await client.cancel();
    const own = (await cancelled).find(({ type }) => type === 'E');
    expect(own && errorField(own, 'M')).toBe('canceling statement due to user request');
  },
);

test('a statement that a cancel does not end takes its session along', async () => {
  await using running = await startProxy(pair, { queryTimeoutMs: 100, cancelTimeoutMs: 200 });
  await using client = await RawClient.connect(running.port, running.database);
  const stubborn = `DO $$ BEGIN LOOP
    BEGIN PERFORM pg_sleep(10); EXCEPTION WHEN query_canceled THEN NULL; END;
  END LOOP; END $$`;
  const [pid] = await client.column('SELECT pg_backend_pid()');
  client.write(send.query(stubborn));
  await until(() => client.closed);
  expect(sqlStates(client.messages)).toEqual(['57014']);
  await pair.onSource.query('SELECT pg_terminate_backend($1)', [pid]);
});

test.each(['session', 'transaction'] as const)(
  'a cancel that had no effect is sent again, with poolMode %s',
  async (poolMode) => {
    const pool = { ...POOL_DEFAULTS, poolMode };
    await using running = await startProxy(pair, { queryTimeoutMs: 100, cancelTimeoutMs: 60_000, pool });
    await using client = await RawClient.connect(running.port, running.database);
    const deafOnce = `DO $$ BEGIN
      BEGIN PERFORM pg_sleep(600); EXCEPTION WHEN query_canceled THEN NULL; END;
      PERFORM pg_sleep(600);
    END $$`;
    const messages = await client.run([send.query(deafOnce)]);
    expect([sqlStates(messages), statuses(messages)]).toEqual([['57014'], 'I']);
  },
);

test('behind the closed gate neither idle time nor a statement’s time adds up', async () => {
  let nowMs = 0;
  const limits = { clientIdleTimeoutMs: 200, queryTimeoutMs: 200 };
  await using running = await startProxy(pair, limits, {
    clock: { ...systemClock, monotonicMs: () => nowMs },
  });
  await using waiting = await RawClient.connect(running.port, running.database);
  await using idle = await RawClient.connect(running.port, running.database);
  await running.proxy.prepare('all', 'destination', new AbortController().signal);
  await running.proxy.hold('all', 'destination', {
    drainTimeoutMs: 1000,
    onDrainTimeout: 'abort',
    onPinned: 'refuse',
    signal: new AbortController().signal,
  });
  const answer = waiting.run([send.query('SELECT 1')]);
  await until(() => running.proxy.status().clients.some(({ heldBytes }) => heldBytes > 0));
  // Longer than both limits, by the clock that they are held against; the watch looks every 50 ms.
  nowMs = 1000;
  const looked = performance.now() + 200;
  await until(() => performance.now() > looked);
  expect([waiting.closed, idle.closed]).toEqual([false, false]);
  running.proxy.release('all');
  expect(sqlStates(await answer)).toEqual([]);
  await until(() => {
    nowMs += 50;
    return idle.closed;
  });
  expect(sqlStates(idle.messages)).toEqual(['57P05']);
});

test('limits can be changed while clients are served, and count from then on', async () => {
  await using running = await startProxy(pair);
  await using first = await RawClient.connect(running.port, running.database);
  running.proxy.reconfigure({ maxClients: 1, clientIdleTimeoutMs: 100 });
  await using refused = await RawClient.connect(running.port, running.database);
  expect(sqlStates(refused.messages)).toEqual(['53300']);
  await until(() => first.closed);
  expect(sqlStates(first.messages)).toEqual(['57P05']);
});

test('a client that comes while the proxy stops is told to come later', async () => {
  const running = await startProxy(pair);
  await using open = await RawClient.connect(running.port, running.database);
  await open.run([send.query('BEGIN')]);
  running.proxy.setUnavailable('all', null);
  const hold = running.proxy.hold('all', 'destination', {
    drainTimeoutMs: 10_000,
    onDrainTimeout: 'abort',
    onPinned: 'refuse',
    signal: new AbortController().signal,
  });
  hold.catch(() => undefined);
  const late = new pg.Client({ connectionString: running.url });
  late.on('error', () => undefined);
  const refused = late.connect().then(
    () => 'connected',
    (error: { readonly code?: string }) => error.code,
  );
  await until(() => running.proxy.status().gates['all']?.waiting === 1);
  await running.proxy.stop({ drainTimeoutMs: 0 });
  expect(await refused).toBe('57P03');
  await until(() => open.closed);
  await late.end().catch(() => undefined);
});

test('a cancel reaches a statement of a pipeline that was only flushed', async () => {
  await using running = await startProxy(pair);
  await using client = await RawClient.connect(running.port, running.database);
  client.write(send.parse('SELECT pg_sleep(60)'), send.bind(), send.execute(), send.flush());
  await until(async () => {
    const { rows } = await pair.onSource.query(
      "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()",
    );
    return rows.length === 1;
  });
  await client.cancel();
  await until(() => client.types === '12E');
  expect(sqlStates(client.messages)).toEqual(['57014']);
  client.write(send.sync());
  await client.readies(1);
});

test('a client in the middle of its handshake is told, too, that the proxy stops', async () => {
  const running = await startProxy(pair);
  const socket = net.connect({ port: running.port, host: '127.0.0.1' });
  await once(socket, 'connect');
  await until(() => running.proxy.status().connections.handshaking === 1);
  const told = once(socket, 'data') as Promise<[Buffer]>;
  await running.proxy.stop({ drainTimeoutMs: 0 });
  const [answer] = await told;
  expect(answer.toString('latin1')).toMatch(/^E.*C57P03\0/s);
  socket.destroy();
});

test('which runtimes can share a port', () => {
  const versions = ['20.20.2', '22.11.0', '22.12.0', '22.22.3', '23.0.0', '23.1.0', '24.0.0', '26.3.1'];
  expect(versions.filter((version) => canReusePort(version))).toEqual([
    '22.12.0',
    '22.22.3',
    '23.1.0',
    '24.0.0',
    '26.3.1',
  ]);
});

test('two processes share a port where the runtime can, and are told where it can’t', async () => {
  const asked = startProxy(pair, { reusePort: true });
  if (!canReusePort()) {
    await expect(asked).rejects.toMatchObject({ code: 'config-invalid' });
    return;
  }
  const first = await asked;
  await using second = await startProxy(pair, { reusePort: true, port: first.port });
  await first[Symbol.asyncDispose]();
  await using client = await RawClient.connect(second.port, second.database);
  expect(await client.column('SELECT 1')).toEqual(['1']);
});
