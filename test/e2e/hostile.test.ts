/** Bad input and failing servers: a clear error in the client's protocol, the process lives, nothing is lost. */
import { connect } from 'node:net';
import { once } from 'node:events';
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type EmbeddedServer, SUPERUSER, SUPERUSER_PASSWORD } from '../../src/app/demo/embedded-server.js';
import type { DatabaseEndpoint } from '../../src/core/ports.js';
import { connectControl } from '../../src/core/postgres.js';
import { FAST_SETTINGS } from '../support/global-setup.js';
import { until, ownServer } from '../support/servers.js';
import { Stack } from '../support/stack.js';

let source: EmbeddedServer;
let destination: EmbeddedServer;
let stack: Stack;

function endpoint(server: EmbeddedServer): DatabaseEndpoint {
  return {
    host: server.host,
    port: server.port,
    database: 'postgres',
    user: SUPERUSER,
    password: SUPERUSER_PASSWORD,
    tls: 'disable',
  };
}

beforeAll(async () => {
  source = await ownServer({ version: 14, settings: FAST_SETTINGS });
  destination = await ownServer({
    version: 18,
    settings: { ...FAST_SETTINGS, max_connections: '30', superuser_reserved_connections: '0' },
  });
  const client = await connectControl('source', endpoint(source), { purpose: 'test' });
  await client.query(`
    CREATE TABLE public.item (id bigint PRIMARY KEY, name text);
    INSERT INTO public.item SELECT n, 'item ' || n FROM generate_series(1, 1000) n;
    CREATE ROLE plain LOGIN PASSWORD 'right';
    GRANT ALL ON public.item TO plain;
  `);
  await client.end();
  stack = await Stack.start({ source: endpoint(source), destination: endpoint(destination) });
  await stack.following();
});

afterAll(async () => {
  await stack?.[Symbol.asyncDispose]();
  await source?.[Symbol.asyncDispose]();
  await destination?.[Symbol.asyncDispose]();
});

async function connectionError(url: string): Promise<pg.DatabaseError> {
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 10_000 });
  client.on('error', () => undefined);
  try {
    await client.connect();
  } catch (error) {
    return error as pg.DatabaseError;
  } finally {
    await client.end().catch(() => undefined);
  }
  throw new Error('connected, though it should have been refused');
}

async function connected(): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: stack.url('plain', 'right') });
  client.on('error', () => undefined);
  await client.connect();
  return client;
}

async function expectAlive(): Promise<void> {
  const client = await connected();
  const { rows } = await client.query<{ n: string }>('SELECT count(*) AS n FROM public.item');
  expect(Number(rows[0]?.n)).toBeGreaterThanOrEqual(1000);
  await client.end();
}

test('a wrong password gets the error PostgreSQL gives', async () => {
  expect(await connectionError(stack.url('plain', 'wrong'))).toMatchObject({ code: '28P01' });
  await expectAlive();
});

test('an unknown user gets the same error as a wrong password', async () => {
  expect(await connectionError(stack.url('nobody_here', 'x'))).toMatchObject({ code: '28P01' });
});

test('an unknown database gets the server’s own error', async () => {
  const url = stack.url('plain', 'right').replace(/[^/]+$/, 'no_such_database');
  const error = await connectionError(url);
  expect(error).toMatchObject({ code: '3D000', severity: 'FATAL' });
  expect(error.message).toContain('database "no_such_database" does not exist');
});

async function serves(): Promise<boolean> {
  try {
    await expectAlive();
    return true;
  } catch {
    return false;
  }
}

/** Sends bytes as a client that never read the protocol, and returns what came back before the connection closed. */
async function sendRaw(bytes: Buffer): Promise<Buffer> {
  const socket = connect(stack.port, '127.0.0.1');
  await once(socket, 'connect');
  const answer: Buffer[] = [];
  socket.on('data', (chunk: Buffer) => answer.push(chunk));
  socket.on('error', () => undefined);
  socket.write(bytes);
  await once(socket, 'close');
  return Buffer.concat(answer);
}

test('garbage on the port is answered and closed', async () => {
  for (const garbage of [
    'GET / HTTP/1.1\r\nHost: x\r\n\r\n',
    '\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03',
    '\0'.repeat(64),
  ]) {
    const answer = await sendRaw(Buffer.from(garbage, 'latin1'));
    expect(answer.length === 0 || answer[0] === 'E'.charCodeAt(0)).toBe(true);
  }
  await expectAlive();
});

test('a startup packet that claims 2 GB is refused without being waited for', async () => {
  const packet = Buffer.alloc(16);
  packet.writeInt32BE(0x7fffffff, 0);
  packet.writeInt32BE(196_608, 4);
  const answer = await sendRaw(packet);
  expect(answer.length === 0 || answer[0] === 'E'.charCodeAt(0)).toBe(true);
  await expectAlive();
});

for (const [name, length] of [
  ['2 GB', 0x7fffffff],
  ['negative', -1],
  ['3, below its own size', 3],
] as const) {
  test(`a message whose length is ${name} ends that connection with a protocol error`, async () => {
    const client = new pg.Client({ connectionString: stack.url('plain', 'right') });
    const errors: pg.DatabaseError[] = [];
    client.on('error', (error) => errors.push(error as pg.DatabaseError));
    await client.connect();
    const { stream } = (client as unknown as { connection: { stream: NodeJS.WritableStream } }).connection;
    const message = Buffer.alloc(5);
    message.write('Q', 0, 'latin1');
    message.writeInt32BE(length, 1);
    stream.write(message);
    await until(() => errors.length > 0, { what: 'the protocol error' });
    expect(errors.map((error) => error.code)).toContain('08P01');
    await client.end().catch(() => undefined);
    await expectAlive();
  });
}

test('a destination without a free connection makes a cutover refuse, and no client notices', async () => {
  const client = await connected();
  const hogs: pg.Client[] = [];
  for (;;) {
    try {
      hogs.push(await connectControl('destination', endpoint(destination), { purpose: 'hog' }));
    } catch {
      break;
    }
  }
  await expect(stack.operate('cutover')).rejects.toMatchObject({ code: 'destination-unreachable' });
  await client.query("UPDATE public.item SET name = 'still here' WHERE id = 1");
  expect((await stack.status()).route?.side).toBe('source');
  await Promise.all(hogs.map((hog) => hog.end()));
  await client.end();
});

test('the destination’s death leaves the application alone, and the shadow goes on where it was', async () => {
  const client = await connected();
  await destination.stop('SIGKILL');
  await client.query("INSERT INTO public.item VALUES (2001, 'while the destination is down')");
  await expectAlive();
  await destination.start();
  await stack.following();
  await client.end();
  const onDestination = await connectControl('destination', endpoint(destination), { purpose: 'test' });
  await until(
    async () => (await onDestination.query('SELECT 1 FROM public.item WHERE id = 2001')).rows.length === 1,
    { what: 'the row written meanwhile' },
  );
  await onDestination.end();
});

test('a source that is down gives a clear error, and is served again once it is up', async () => {
  await source.stop('SIGKILL');
  const error = await connectionError(stack.url('plain', 'right'));
  expect(['08006', '08001', '57P03', '57P01']).toContain(error.code);
  expect(error.message).toMatch(/source/i);
  await source.start();
  await until(() => serves(), { what: 'service again' });
  await stack.following();
});

test('after all that, both sides hold the same rows', async () => {
  const report = await stack.operate<{ mismatches: number }>('verify');
  expect(report.mismatches).toBe(0);
});
