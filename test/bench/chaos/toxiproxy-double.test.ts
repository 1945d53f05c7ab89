/** The stand-in does what Toxiproxy does, asked through Toxiproxy's own client. */
import { once } from 'node:events';
import net from 'node:net';
import { Toxiproxy, type Proxy, type ToxicType } from 'toxiproxy-node-client';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { until } from '../../support/servers.js';
import { ToxiproxyDouble } from '../../support/toxiproxy-double.js';

let double: ToxiproxyDouble;
let echo: net.Server;
let toxiproxy: Toxiproxy;
let proxy: Proxy;

beforeAll(async () => {
  double = await ToxiproxyDouble.start();
  toxiproxy = new Toxiproxy(double.url);
  echo = net.createServer((socket) => void socket.on('error', () => undefined).pipe(socket));
  echo.listen(0, '127.0.0.1');
  await once(echo, 'listening');
  const { port } = echo.address() as net.AddressInfo;
  proxy = await toxiproxy.createProxy({ name: 'echo', listen: '127.0.0.1:0', upstream: `127.0.0.1:${port}` });
});

beforeEach(async () => {
  await toxiproxy.reset();
});

afterAll(async () => {
  await double[Symbol.asyncDispose]();
  echo.close();
});

class Client {
  readonly socket: net.Socket;
  answer = '';
  chunks = 0;
  closed = false;
  code: string | undefined;

  constructor() {
    this.socket = net.connect(Number(proxy.listen.split(':')[1]), '127.0.0.1');
    this.socket.on('data', (chunk: Buffer) => {
      this.answer += chunk.toString();
      this.chunks++;
    });
    this.socket.on('error', (error: NodeJS.ErrnoException) => (this.code = error.code));
    this.socket.on('close', () => (this.closed = true));
  }

  async says(text: string): Promise<void> {
    this.answer = '';
    this.socket.write(text);
    await until(() => this.answer === text, { what: `the echo of ${text}` });
  }
}

const toxic = (
  type: ToxicType,
  attributes: Record<string, number>,
  stream: 'upstream' | 'downstream' = 'downstream',
) => proxy.addToxic({ name: type, type, stream, toxicity: 1, attributes: attributes as never });

test('passes bytes both ways, and the end of them', async () => {
  const client = new Client();
  await client.says('hello');
  client.socket.end();
  await until(() => client.closed);
});

test('latency and bandwidth delay, slicer cuts; what comes is what was sent', async () => {
  const added = await toxic('latency', { latency: 15, jitter: 0 });
  const client = new Client();
  const startedMs = performance.now();
  await client.says('later');
  expect(performance.now() - startedMs).toBeGreaterThan(14);
  await added.remove();
  await toxic('slicer', { average_size: 2, size_variation: 0, delay: 2000 });
  await toxic('bandwidth', { rate: 100 }, 'upstream');
  client.chunks = 0;
  await client.says('in many pieces');
  expect(client.chunks).toBeGreaterThan(1);
  client.socket.destroy();
});

test('timeout swallows what comes, on connections that are open too, and cuts them when it goes', async () => {
  const client = new Client();
  await client.says('before');
  const added = await toxic('timeout', { timeout: 0 });
  client.answer = '';
  client.socket.write('into the void');
  await toxiproxy.getVersion();
  expect(client.answer).toBe('');
  await added.remove();
  await until(() => client.closed);
  await new Client().says('after');
});

test('reset_peer resets, limit_data ends after so many bytes', async () => {
  const added = await toxic('reset_peer', { timeout: 0 });
  const reset = new Client();
  reset.socket.write('x');
  await until(() => reset.closed);
  expect(reset.code).toBe('ECONNRESET');
  await added.remove();
  await toxic('limit_data', { bytes: 4 });
  const limited = new Client();
  limited.socket.write('123456');
  await until(() => limited.closed || limited.socket.readableEnded);
  expect(limited.answer).toBe('1234');
  limited.socket.destroy();
});

test('slow_close keeps the other end from knowing', async () => {
  const client = new Client();
  await client.says('x');
  await toxic('slow_close', { delay: 20 }, 'upstream');
  const startedMs = performance.now();
  client.socket.end();
  await until(() => client.closed);
  expect(performance.now() - startedMs).toBeGreaterThan(19);
});

test('down: nobody gets in, until it is up again on the same port', async () => {
  const client = new Client();
  await client.says('x');
  await proxy.update({ enabled: false, listen: proxy.listen, upstream: proxy.upstream });
  await until(() => client.closed);
  const refused = new Client();
  await until(() => refused.closed);
  expect(refused.code).toBe('ECONNREFUSED');
  await toxiproxy.reset();
  await new Client().says('x');
});

test('what it can’t do is an error, as from the server', async () => {
  await expect(toxic('nonsense' as never, {})).rejects.toThrow('400');
  await expect(toxiproxy.get('nobody')).rejects.toThrow('404');
  await toxic('latency', { latency: 1, jitter: 0 });
  await expect(toxic('latency', { latency: 1, jitter: 0 })).rejects.toThrow('409');
  await expect(proxy.getToxic('latency')).resolves.toMatchObject({ type: 'latency' });
  expect(Object.keys(await toxiproxy.getAll())).toEqual(['echo']);
});
