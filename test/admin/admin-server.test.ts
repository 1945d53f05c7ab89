import { request, type IncomingHttpHeaders } from 'node:http';
import { connect } from 'node:net';
import { afterEach, expect, test } from 'vitest';
import { AdminServer, type AdminSettings } from '../../src/admin/server.js';
import type { AdminControl, OperationLine, StatusReport } from '../../src/admin/control.js';
import { AdminClient } from '../../src/app/admin-client.js';
import { UnderstudyError } from '../../src/core/errors.js';
import { silentLog } from '../../src/core/log.js';

const TOKEN = 'a-token-of-good-length';
const servers: AdminServer[] = [];
afterEach(async () => {
  for (const server of servers.splice(0)) await server.stop();
});

class Control implements AdminControl {
  readonly asked: { operation: string; options: object }[] = [];
  ready = true;
  behave: (emit: (line: OperationLine) => void) => Promise<unknown> = async () => ({ fine: true });

  async readiness() {
    return this.ready ? { ready: true } : { ready: false, reason: 'secret reason' };
  }

  readonly metrics = { contentType: 'text/plain', text: async () => 'one 1\n' };

  async status(): Promise<StatusReport> {
    return { version: '1', shadow: { lsn: 12n } } as unknown as StatusReport;
  }

  async operate(operation: string, options: object, emit: (line: OperationLine) => void): Promise<unknown> {
    this.asked.push({ operation, options });
    return this.behave(emit);
  }
}

async function serve(settings: Partial<AdminSettings> = {}) {
  const control = new Control();
  const server = new AdminServer({ host: '127.0.0.1', port: 0, ...settings }, control, silentLog);
  await server.start();
  servers.push(server);
  return { control, server, client: new AdminClient({ host: '127.0.0.1', port: server.port, token: TOKEN }) };
}

interface Answer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly text: string;
}

function ask(
  server: AdminServer,
  path: string,
  options: { method?: string; headers?: Record<string, string>; body?: string } = {},
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const sent = request(
      {
        host: '127.0.0.1',
        port: server.port,
        path,
        method: options.method ?? 'GET',
        headers: options.headers ?? {},
        agent: false,
      },
      (response) => {
        let text = '';
        response.on('data', (chunk: Buffer) => (text += chunk.toString()));
        response.on('end', () =>
          resolve({ status: response.statusCode ?? 0, headers: response.headers, text }),
        );
      },
    );
    sent.on('error', reject);
    sent.end(options.body);
  });
}

test('health is open to all and tells nothing but yes or no', async () => {
  const { server, control } = await serve({ token: TOKEN });
  expect((await ask(server, '/livez')).status).toBe(200);
  expect(await ask(server, '/readyz')).toMatchObject({ status: 200, text: '{"ready":true}\n' });
  control.ready = false;
  expect(await ask(server, '/readyz')).toMatchObject({ status: 503, text: '{"ready":false}\n' });
  // A cluster's probe comes by the address of the day.
  expect((await ask(server, '/livez', { headers: { host: '10.1.2.3:6433' } })).status).toBe(200);
});

test('the token is required where there is one', async () => {
  const { server, client } = await serve({ token: TOKEN });
  expect(await ask(server, '/api/status')).toMatchObject({ status: 401 });
  const wrong = await ask(server, '/api/status', { headers: { authorization: 'Bearer wrong' } });
  expect(wrong.status).toBe(401);
  expect(wrong.headers['www-authenticate']).toBe('Bearer');
  expect(JSON.parse(wrong.text)).toMatchObject({ error: { code: 'admin-unauthorized' } });
  expect(await client.status()).toMatchObject({ version: '1', shadow: { lsn: '12' } });
  const stranger = new AdminClient({ host: '127.0.0.1', port: server.port });
  await expect(stranger.status()).rejects.toMatchObject({ code: 'admin-unauthorized' });
  await expect(stranger.operate('cutover', {}, () => undefined)).rejects.toMatchObject({
    code: 'admin-unauthorized',
  });
});

test('metrics want the token where there is one, and no other method than GET', async () => {
  const { server } = await serve({ token: TOKEN });
  expect(await ask(server, '/metrics')).toMatchObject({ status: 401 });
  const headers = { authorization: `Bearer ${TOKEN}` };
  expect(await ask(server, '/metrics', { headers })).toMatchObject({ status: 200, text: 'one 1\n' });
  expect(await ask(server, '/metrics', { headers, method: 'POST' })).toMatchObject({ status: 405 });
  const { server: open } = await serve();
  expect(await ask(open, '/metrics')).toMatchObject({ status: 200 });
  expect(await ask(open, '/metrics', { headers: { host: 'evil.example' } })).toMatchObject({ status: 400 });
});

test('a name rebound to this address, and a web page, are refused', async () => {
  const { server, control } = await serve();
  for (const host of ['evil.example', 'evil.example:6433', '127.0.0.1.evil.example']) {
    expect(await ask(server, '/api/status', { headers: { host } })).toMatchObject({ status: 400 });
  }
  const page = { origin: 'http://localhost:8080', 'content-type': 'application/json' };
  const posted = await ask(server, '/api/cutover', { method: 'POST', headers: page, body: '{}' });
  expect(posted.status).toBe(400);
  expect(posted.headers['access-control-allow-origin']).toBeUndefined();
  expect(control.asked).toEqual([]);
  for (const host of ['localhost:1', '127.0.0.1', '[::1]:6433'])
    expect(await ask(server, '/api/status', { headers: { host } })).toMatchObject({ status: 200 });
});

test('a body that is too large, no JSON, of another type or with unknown options is refused', async () => {
  const { server, control } = await serve({ bodyBytesMax: 1000 });
  const post = (body: string, type = 'application/json') =>
    ask(server, '/api/cutover', { method: 'POST', headers: { 'content-type': type }, body });
  expect(await post(JSON.stringify({ pad: 'x'.repeat(2000) }))).toMatchObject({ status: 413 });
  expect(await post('{')).toMatchObject({ status: 400 });
  expect(await post('{}', 'text/plain')).toMatchObject({ status: 400 });
  expect(await post('{"dryRnu":true}')).toMatchObject({ status: 400 });
  expect(await post('{"dryRun":"yes"}')).toMatchObject({ status: 400 });
  expect(control.asked).toEqual([]);
  expect(await post('{"dryRun":true}')).toMatchObject({ status: 200 });
  expect(control.asked).toEqual([{ operation: 'cutover', options: { dryRun: true } }]);
});

test('unknown paths and methods', async () => {
  const { server } = await serve();
  expect((await ask(server, '/')).status).toBe(404);
  expect((await ask(server, '/api/explode', { method: 'POST' })).status).toBe(404);
  const got = await ask(server, '/api/cutover');
  expect([got.status, got.headers.allow]).toEqual([405, 'POST']);
});

test('progress arrives as it happens, the result last', async () => {
  const { client, control } = await serve();
  const arrived: OperationLine[] = [];
  let goOn = (): void => undefined;
  const first = new Promise<void>((resolve) => (goOn = resolve));
  control.behave = async (emit) => {
    emit({ event: 'log', message: 'one' });
    await first;
    emit({ event: 'log', message: 'two' });
    return { epoch: 1 };
  };
  const result = await client.operate('cutover', {}, (line) => {
    arrived.push(line);
    goOn();
  });
  expect(result).toEqual({ epoch: 1 });
  expect(arrived).toEqual([
    { event: 'log', message: 'one' },
    { event: 'log', message: 'two' },
  ]);
});

test('a refusal has a status of its own, a failure on the way is the last line', async () => {
  const { server, client, control } = await serve();
  control.behave = () =>
    Promise.reject(new UnderstudyError('busy', 'verify is running', { advice: 'Wait.' }));
  expect(await ask(server, '/api/cutover', { method: 'POST' })).toMatchObject({ status: 409 });
  await expect(client.operate('cutover', {}, () => undefined)).rejects.toMatchObject({
    code: 'busy',
    advice: 'Wait.',
  });
  control.behave = (emit) => {
    emit({ event: 'log', message: 'begun' });
    return Promise.reject(new UnderstudyError('in-doubt', 'nobody knows'));
  };
  const late = await ask(server, '/api/cutover', { method: 'POST' });
  expect(late.status).toBe(200);
  expect(JSON.parse(late.text.trim().split('\n').at(-1) ?? '')).toMatchObject({
    error: { code: 'in-doubt' },
  });
});

test('a process that dies under an operation is told apart from a refusal', async () => {
  const { server, client, control } = await serve();
  let begun = (): void => undefined;
  const started = new Promise<void>((resolve) => (begun = resolve));
  control.behave = (emit) => {
    emit({ event: 'log', message: 'begun' });
    return new Promise(() => undefined);
  };
  const operation = client.operate('cutover', {}, () => begun());
  operation.catch(() => undefined);
  await started;
  await server.stop();
  await expect(operation).rejects.toMatchObject({ code: 'admin-unreachable' });
});

test('nobody there: the error says how to start', async () => {
  const { server, client } = await serve();
  await server.stop();
  await expect(client.status()).rejects.toMatchObject({ code: 'admin-unreachable' });
  await expect(client.status()).rejects.toThrow(/nothing answers on http:\/\/127\.0\.0\.1/);
});

test('a port that is taken is named', async () => {
  const { server } = await serve();
  const second = new AdminServer({ host: '127.0.0.1', port: server.port }, new Control(), silentLog);
  await expect(second.start()).rejects.toMatchObject({ code: 'port-in-use' });
});

test('a request that is never finished is cut off', async () => {
  const { server } = await serve({ requestTimeoutMs: 200 });
  const socket = connect(server.port, '127.0.0.1');
  socket.write('POST /api/cutover HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{');
  const closed = new Promise<void>((resolve) => socket.on('close', () => resolve()));
  socket.on('error', () => undefined);
  socket.resume();
  await closed;
});
