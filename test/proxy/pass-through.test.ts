/** Passwords handed on in the clear: the server judges them, and nothing is let in that nobody has judged. */
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { WHOLE_DATABASE as ALL } from '../../src/core/ports.js';
import { connectControl } from '../../src/core/postgres.js';
import type { ClientAuthentication } from '../../src/proxy/login/client-authentication.js';
import { wipeCredentials, type BackendCredentials } from '../../src/proxy/login/credentials.js';
import { PROXY_DEFAULTS, type ProxySettings } from '../../src/proxy/settings.js';
import { decodeText, encodeText } from '../../src/wire/postgres/messages.js';
import { opensslMissing } from '../support/certificates.js';
import { databasePair, until, type DatabasePair } from '../support/servers.js';
import { RawClient as BareClient } from './login/handshake-listener.js';
import { frame, RawClient, send, startProxy, type RunningProxy } from './proxy-support.js';
import { PASSWORD, startTlsServer, type TlsServer } from './login/tls-server.js';

let world: TlsServer;
let pair: DatabasePair;
beforeAll(async () => {
  pair = await databasePair();
  if (!opensslMissing) world = await startTlsServer();
});
afterAll(async () => {
  await pair[Symbol.asyncDispose]();
  if (!opensslMissing) await world[Symbol.asyncDispose]();
});

/** Nobody's password is known here. */
const verifiers = { lookup: () => Promise.resolve(null) };

function proxyFor(
  authentication: ClientAuthentication,
  settings: Partial<ProxySettings> = {},
): Promise<RunningProxy> {
  const both = { source: world.endpoint, destination: world.endpoint };
  return startProxy(both, { authentication, databases: { '*': '*' }, ...settings }, { verifiers });
}

/** `in`, or the server's or proxy's refusal. */
async function login(port: number, user: string, password = PASSWORD): Promise<string> {
  const client = new pg.Client({ host: '127.0.0.1', port, user, password, database: 'postgres' });
  client.on('error', () => undefined);
  try {
    await client.connect();
    await client.query('SELECT 1');
    return 'in';
  } catch (error) {
    const { code, message } = error as pg.DatabaseError;
    return `${code}: ${message}`;
  } finally {
    await client.end().catch(() => undefined);
  }
}

describe.skipIf(opensslMissing)('the server judges', () => {
  test('a password, whichever way it asks for it, and its refusal is the client’s', async () => {
    await using proxy = await proxyFor('pass-through');
    for (const user of ['alice', 'md5_user', 'clear_user']) {
      expect(await login(proxy.port, user), user).toBe('in');
      const direct = await login(world.server.port, user, 'wrong');
      expect(await login(proxy.port, user, 'wrong')).toBe(direct);
      expect(direct).toMatch(/^28P01: /);
    }
    expect(await login(proxy.port, 'nobody')).toBe(await login(world.server.port, 'nobody'));
  });

  test('a server that asks for nothing has judged nothing: its trust is not passed on', async () => {
    await using proxy = await proxyFor('pass-through');
    expect(await login(world.server.port, 'trusted', 'anything')).toBe('in');
    for (const password of [PASSWORD, 'anything']) {
      expect(await login(proxy.port, 'trusted', password)).toMatch(/^28000: .*nobody would check it/);
    }
    await using named = await proxyFor('trust');
    expect(await login(named.port, 'trusted')).toBe('in');
    // By trust the proxy holds nothing it could show to a server that asks.
    expect(await login(named.port, 'alice')).toMatch(/^28000: /);
  });

  test('pooled clients are each judged', async () => {
    await using proxy = await proxyFor('pass-through', {
      pool: { ...PROXY_DEFAULTS.pool, poolMode: 'transaction' },
    });
    expect(await login(proxy.port, 'alice')).toBe('in');
    expect(await login(proxy.port, 'alice', 'wrong')).toMatch(/^28P01: /);
    expect(await login(proxy.port, 'alice')).toBe('in');
    expect(await login(proxy.port, 'trusted', 'anything')).toMatch(/^28000: /);
  });

  test('names and passwords pass in the client’s own encoding', async () => {
    await world.control.query(
      `CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'`,
    );
    const inside = await connectControl(
      'source',
      { ...world.endpoint, database: 'latin' },
      { purpose: 'test' },
    );
    await inside.query(`CREATE ROLE "jürgen" LOGIN PASSWORD 'x'`);
    await inside.end();
    await using proxy = await proxyFor('pass-through');
    const names = Buffer.concat([
      Buffer.from('\0\x03\0\0user\0', 'latin1'),
      Buffer.from('jürgen\0', 'latin1'),
      Buffer.from('database\0latin\0options\0-c work_mem=7MB\0\0'),
    ]);
    const length = Buffer.alloc(4);
    length.writeUInt32BE(names.length + 4);
    const client = new BareClient(proxy.port).say(Buffer.concat([length, names]));
    expect((await client.message()).payload.readUInt32BE(0)).toBe(3);
    client.say(frame('p', 'x\0'));
    let message = await client.message();
    while (message.type !== 'Z') message = await client.message();
    client.say(send.query("SELECT current_user || current_setting('work_mem')"));
    do message = await client.message();
    while (message.type !== 'D');
    expect(message.payload.toString('latin1', 6)).toBe('jürgen7MB');
    client.socket.destroy();
    // And so does a refusal that names it.
    const wrong = new BareClient(proxy.port).say(Buffer.concat([length, names]));
    await wrong.message();
    wrong.say(frame('p', 'wrong\0'));
    expect((await wrong.rest()).toString('latin1')).toContain('"jürgen"');
  });
});

test('the password opens the other side too, at a move', async () => {
  await using running = await startProxy(pair, { authentication: 'pass-through' }, { verifiers });
  await using client = await RawClient.connect(running.port, running.database);
  expect(await client.column('SELECT 1')).toEqual(['1']);
  const { signal } = new AbortController();
  const { proxy } = running;
  expect(await proxy.prepare(ALL, 'destination', signal)).toMatchObject({ warm: 1, blockers: [] });
  await proxy.hold(ALL, 'destination', {
    drainTimeoutMs: 5000,
    onDrainTimeout: 'abort',
    onPinned: 'refuse',
    signal,
  });
  await proxy.switchTo(ALL, { side: 'destination', epoch: 1 });
  proxy.release(ALL);
  expect(await client.column('SHOW server_version_num')).toEqual([expect.stringMatching(/^18/)]);
  client.write(send.terminate());
  await until(() => client.closed);
});

test('what a session held is overwritten when it ends', () => {
  const given: BackendCredentials = { kind: 'given-password', password: Buffer.from('secret'), proven: true };
  wipeCredentials(given);
  expect(given.password).toEqual(Buffer.alloc(6));
});

test('bytes that are no UTF-8 survive being text, beside text that is', () => {
  for (const hex of ['', '61', 'c3bc', 'fc', '6afc72', 'f0908080', 'eda080', 'ff00fe', 'edb280']) {
    const bytes = Buffer.from(hex, 'hex');
    expect(encodeText(decodeText(bytes)).toString('hex')).toBe(hex);
  }
  expect(encodeText(`can’t: ${decodeText(Buffer.from('fc', 'hex'))}`)).toEqual(
    Buffer.concat([Buffer.from('can’t: '), Buffer.from('fc', 'hex')]),
  );
});
