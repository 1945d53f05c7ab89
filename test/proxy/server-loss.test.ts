/** A source that crashes, goes and comes back, with clients on it. */
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type EmbeddedServer, SUPERUSER, SUPERUSER_PASSWORD } from '../../src/app/demo/embedded-server.js';
import type { DatabaseEndpoint } from '../../src/core/ports.js';
import { FAST_SETTINGS } from '../support/global-setup.js';
import { until, ownServer } from '../support/servers.js';
import { RawClient, send, sqlStates, startProxy, type RunningProxy } from './proxy-support.js';

let server: EmbeddedServer;
let running: RunningProxy;

beforeAll(async () => {
  server = await ownServer({ version: 14, settings: FAST_SETTINGS });
  const endpoint: DatabaseEndpoint = {
    host: server.host,
    port: server.port,
    database: 'postgres',
    user: SUPERUSER,
    password: SUPERUSER_PASSWORD,
    tls: 'disable',
  };
  // The destination is not needed to serve.
  running = await startProxy(
    { source: endpoint, destination: { ...endpoint, port: 1 } },
    { connectTimeoutMs: 2000 },
  );
});

afterAll(async () => {
  await running[Symbol.asyncDispose]();
  await server[Symbol.asyncDispose]();
});

const raw = (): Promise<RawClient> => RawClient.connect(running.port, running.database);

test('a backend that dies without a word is told as a lost connection', async () => {
  await using busy = await raw();
  await using idle = await raw();
  const [pid] = await busy.column('SELECT pg_backend_pid()');
  busy.write(send.query('SELECT pg_sleep(30)'));
  await until(() => running.proxy.status().clients.some((client) => client.busy));
  process.kill(Number(pid), 'SIGKILL');
  // The server restarts after a crash: its other connections get a warning and are closed.
  await until(() => busy.closed && idle.closed);
  expect(sqlStates(busy.messages)).toEqual(['08006']);
  expect(idle.types).toBe('NE');
  expect(sqlStates(idle.messages)).toEqual(['08006']);
  expect(running.proxy.status().sessions).toBe(0);
});

test('a source that is down refuses clients clearly, and serves them once it is back', async () => {
  await server.stop('SIGINT');
  await using refused = await raw();
  expect(refused.closed).toBe(true);
  expect(sqlStates(refused.messages)).toHaveLength(1);
  await server.start();
  await using client = await raw();
  expect(await client.column('SELECT 1')).toEqual(['1']);
});

test('a destination that is down blocks the move and nothing else', async () => {
  const client = new pg.Client(running.url);
  await client.connect();
  const report = await running.proxy.prepare('all', 'destination', new AbortController().signal);
  expect(report).toMatchObject({ sessions: 1, warm: 0, blockers: [{ reason: 'destination-refuses' }] });
  expect((await client.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
  await client.end();
});
