/** Protocol versions and cancel keys, by a client that writes its packets itself. */
import { once } from 'node:events';
import net from 'node:net';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { SUPERUSER, SUPERUSER_PASSWORD } from '../../../src/app/demo/embedded-server.js';
import { WHOLE_DATABASE as ALL, type Side } from '../../../src/core/ports.js';
import { BackendRefused } from '../../../src/proxy/backend/backend-refused.js';
import { openBackend, type Backend, type BackendEndpoint } from '../../../src/proxy/backend/backend.js';
import { CancelKeys } from '../../../src/proxy/cancel-keys.js';
import { databasePair, until, type DatabasePair } from '../../support/servers.js';
import { firstColumn, frame, send, sqlStates, startProxy, type Message } from '../proxy-support.js';

let pair: DatabasePair;
beforeAll(async () => {
  pair = await databasePair();
});
afterAll(() => pair[Symbol.asyncDispose]());

function endpointOf(side: Side): BackendEndpoint {
  const { host, port, tls } = pair[side];
  return { side, host, port, tls };
}

const uint32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
};

/** A client of any version, with any options; gives passwords in the clear. */
class VersionedClient implements AsyncDisposable {
  readonly socket: net.Socket;
  readonly messages: Message[] = [];
  #rest = Buffer.alloc(0);
  #closed = false;
  readonly #port: number;

  constructor(port: number, version: number, parameters: readonly string[]) {
    this.#port = port;
    this.socket = net.connect({ port, host: '127.0.0.1', noDelay: true });
    this.socket.on('error', () => undefined);
    this.socket.on('close', () => (this.#closed = true));
    this.socket.on('data', (chunk: Buffer) => this.#read(chunk));
    const body = Buffer.concat([
      uint32(version),
      ...parameters.map((text) => Buffer.from(`${text}\0`)),
      Buffer.alloc(1),
    ]);
    this.socket.write(Buffer.concat([uint32(body.length + 4), body]));
  }

  static async login(
    port: number,
    version: number,
    options: readonly string[] = [],
  ): Promise<VersionedClient> {
    const { database } = pair.source;
    const client = new VersionedClient(port, version, ['user', SUPERUSER, 'database', database, ...options]);
    await client.ready(1);
    return client;
  }

  #read(chunk: Buffer): void {
    this.#rest = Buffer.concat([this.#rest, chunk]);
    while (this.#rest.length >= 5 && this.#rest.length > this.#rest.readUInt32BE(1)) {
      const end = this.#rest.readUInt32BE(1) + 1;
      const message = { type: this.#rest.toString('latin1', 0, 1), payload: this.#rest.subarray(5, end) };
      this.#rest = this.#rest.subarray(end);
      this.messages.push(message);
      if (message.type === 'R' && message.payload.readUInt32BE(0) === 3) {
        this.socket.write(frame('p', `${SUPERUSER_PASSWORD}\0`));
      }
    }
  }

  async ready(count: number): Promise<void> {
    await until(() => this.#closed || this.messages.filter(({ type }) => type === 'Z').length >= count);
  }

  async first(sql: string): Promise<string | null> {
    this.messages.length = 0;
    this.socket.write(send.query(sql));
    await this.ready(1);
    const row = this.messages.find(({ type }) => type === 'D');
    return row === undefined ? null : firstColumn(row);
  }

  payload(type: string): Buffer | undefined {
    return this.messages.find((message) => message.type === type)?.payload;
  }

  async cancel(key: Buffer): Promise<void> {
    const socket = net.connect({ port: this.#port, host: '127.0.0.1' });
    socket.on('error', () => undefined);
    socket.end(Buffer.concat([uint32(key.length + 8), uint32(80877102), key]));
    socket.resume();
    await once(socket, 'close');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.socket.destroy();
    await until(() => this.#closed);
  }
}

const V3_0 = 0x00030000;
const V3_2 = 0x00030002;

/** What a server of either version, or the proxy before it, says first. */
async function negotiation(port: number, version: number, options: readonly string[] = []) {
  const { database } = pair.source;
  const client = new VersionedClient(port, version, ['user', SUPERUSER, 'database', database, ...options]);
  await until(() => client.payload('R') !== undefined);
  const said = client.payload('v')?.toString('latin1') ?? null;
  await client[Symbol.asyncDispose]();
  return said;
}

describe.each(['source', 'destination'] as const)('the %s', (side) => {
  test('is spoken for as it would itself answer: version, and options it does not know', async () => {
    await using running = await startProxy(pair);
    running.proxy.setRoute(ALL, { side, epoch: 1 });
    const newest = side === 'source' ? 0 : 2;
    for (const [version, options] of [
      [V3_0, []],
      [V3_0, ['_pq_.x', '1']],
      [0x00030001, []],
      [V3_2, []],
      [V3_2, ['_pq_.one', '1', '_pq_.two', 'x']],
      [0x0003270f, ['_pq_.test_protocol_negotiation', '']],
    ] as const) {
      const direct = await negotiation(pair[side].port, version, options);
      expect(await negotiation(running.port, version, options), `${version}`).toBe(direct);
    }
    await using client = await VersionedClient.login(running.port, V3_2);
    expect(client.payload('K')).toHaveLength(newest === 2 ? 36 : 8);
    expect((await negotiation(running.port, V3_2))?.slice(0, 4) ?? null).toBe(
      newest === 2 ? null : '\0\x03\0\0',
    );
  });

  test('gives the proxy its own key, long where both speak 3.2, which cancels', async () => {
    const open = (protocolMinor: number): Promise<Backend> =>
      openBackend(
        endpointOf(side),
        { user: SUPERUSER, database: pair.source.database, parameters: new Map(), protocolMinor },
        { kind: 'password', password: SUPERUSER_PASSWORD },
        { connectTimeoutMs: 10_000 },
      );
    for (const asked of [0, 1, 2]) {
      const backend = await open(asked);
      const speaks = side === 'destination' ? asked : 0;
      expect(backend.protocolMinor).toBe(speaks);
      expect(backend.secretKey).toHaveLength(speaks === 2 ? 32 : 4);
      backend.socket.destroy();
    }
  });
});

test('a client keeps its version and its key over a move to a server that speaks less, and cancels there', async () => {
  await using running = await startProxy(pair);
  const { proxy, port } = running;
  proxy.setRoute(ALL, { side: 'destination', epoch: 1 });
  await using client = await VersionedClient.login(port, V3_2);
  const key = Buffer.from(client.payload('K') ?? []);
  expect(key).toHaveLength(36);
  const signal = new AbortController().signal;
  const cancelled = async (): Promise<void> => {
    client.messages.length = 0;
    client.socket.write(send.query('SELECT pg_sleep(60)'));
    await until(() => proxy.status().clients[0]?.busy === true);
    // A key that is wrong by a byte, or cut, cancels nothing.
    await client.cancel(Buffer.concat([key.subarray(0, 35), Buffer.from([(key[35] ?? 0) ^ 1])]));
    await client.cancel(key.subarray(0, 8));
    expect(proxy.status().clients[0]?.busy).toBe(true);
    await client.cancel(key);
    await client.ready(1);
    expect(sqlStates(client.messages)).toEqual(['57014']);
  };
  await cancelled();
  for (const [to, major] of [
    ['source', '14'],
    ['destination', '18'],
  ] as const) {
    await proxy.prepare(ALL, to, signal);
    await proxy.hold(ALL, to, { drainTimeoutMs: 5000, onDrainTimeout: 'abort', onPinned: 'refuse', signal });
    await proxy.switchTo(ALL, { side: to, epoch: to === 'source' ? 2 : 3 });
    proxy.release(ALL);
    expect(await client.first('SHOW server_version_num')).toMatch(new RegExp(`^${major}`));
    expect(client.messages.map(({ type }) => type)).not.toContain('K');
    await cancelled();
  }
});

describe('a server that misbehaves', () => {
  /** Answers any startup packet with these bytes. */
  async function refusal(...bytes: Buffer[]): Promise<string> {
    const server = net.createServer((socket) => {
      socket.on('error', () => undefined);
      socket.once('data', () => socket.write(Buffer.concat(bytes)));
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as net.AddressInfo;
    try {
      const backend = await openBackend(
        { side: 'source', host: '127.0.0.1', port, tls: 'disable' },
        { user: 'a', database: 'b', parameters: new Map(), protocolMinor: 2 },
        { kind: 'none' },
        { connectTimeoutMs: 10_000 },
      );
      backend.socket.destroy();
      return `3.${backend.protocolMinor}, ${backend.secretKey.length}`;
    } catch (error) {
      return error instanceof BackendRefused ? error.sqlState : String(error);
    } finally {
      server.close();
    }
  }
  const ok = frame('R', uint32(0));
  const ready = frame('Z', 'I');
  const key = (length: number): Buffer => frame('K', uint32(7), Buffer.alloc(length, 1));

  test('over its version or its key is refused', async () => {
    const negotiate = (version: number): Buffer => frame('v', uint32(version), uint32(0));
    expect(await refusal(ok, key(4), ready)).toBe('3.2, 4');
    expect(await refusal(ok, key(256), ready)).toBe('3.2, 256');
    expect(await refusal(ok, key(257), ready)).toBe('08P01');
    expect(await refusal(negotiate(V3_0), ok, key(4), ready)).toBe('3.0, 4');
    expect(await refusal(negotiate(1), ok, key(4), ready)).toBe('3.1, 4');
    expect(await refusal(negotiate(V3_2), ok, key(4), ready)).toBe('08P01');
    expect(await refusal(negotiate(0x00040000), ok, key(4), ready)).toBe('08P01');
    expect(await refusal(negotiate(V3_0), negotiate(V3_0), ok, key(4), ready)).toBe('08P01');
  });
});

test('keys are as long as the version asks, unlike one another, and gone with their holder', () => {
  const keys = new CancelKeys<object>();
  const [a, b] = [{}, {}];
  const short = keys.issue(a, 0);
  const long = keys.issue(b, 2);
  expect([short.secret.length, long.secret.length]).toEqual([4, 32]);
  expect(short.processId).not.toBe(long.processId);
  expect(short.processId).toBeLessThan(2 ** 31);
  expect(keys.find(short.processId, short.secret)).toBe(a);
  expect(keys.find(short.processId, long.secret)).toBeUndefined();
  expect(keys.find(long.processId, long.secret.subarray(0, 4))).toBeUndefined();
  keys.release(a);
  expect(keys.find(short.processId, short.secret)).toBeUndefined();
});
