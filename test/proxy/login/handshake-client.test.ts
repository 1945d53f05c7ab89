/** What a client meets before it is anybody: first packets, TLS, bounds, garbage. No server is needed for it. */
import { once } from 'node:events';
import type { Socket } from 'node:net';
import tls from 'node:tls';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { UnderstudyError } from '../../../src/core/errors.js';
import { silentLog } from '../../../src/core/log.js';
import { Listener as PortListener } from '../../../src/proxy/listener.js';
import { clientTls, isLoopback } from '../../../src/proxy/login/tls.js';
import { parseUsersFile, type VerifierSource } from '../../../src/proxy/login/verifiers.js';
import { closeWith } from '../../../src/proxy/socket-reader.js';
import { encodeFrame, encodeQuery, FRONTEND } from '../../../src/wire/postgres/messages.js';
import {
  encodeCancelRequest,
  encodePassword,
  encodeSaslInitialResponse,
  encodeSslRequest,
  encodeStartup,
  parseAuthentication,
} from '../../../src/wire/postgres/startup.js';
import { until } from '../../support/servers.js';
import {
  listen,
  makeCertificate,
  RawClient,
  type Listener,
  type TestCertificate,
} from './handshake-listener.js';

const users = parseUsersFile('"alice" "wonderland"\n"bob" "md50e3b0d8f9a8a6c1f8e1f9e2d7e3f2c1a"');
const verifiers: VerifierSource = { lookup: (user) => Promise.resolve(users.get(user) ?? null) };
const GSSENC_REQUEST = Buffer.from('0000000804d21630', 'hex');
const startup = (user: string): Buffer => encodeStartup(user, 'db', []);

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

let plain: Listener;
let secure: Listener;
let certificate: TestCertificate;

beforeAll(async () => {
  certificate = makeCertificate();
  plain = await listen({ verifiers });
  secure = await listen({ verifiers, tls: clientTls(certificate) });
});
afterAll(async () => {
  await plain[Symbol.asyncDispose]();
  await secure[Symbol.asyncDispose]();
  certificate[Symbol.dispose]();
});

describe('garbage on the port', () => {
  test.each([
    ['an HTTP request', Buffer.from('GET / HTTP/1.1\r\nHost: x\r\n\r\n')],
    ['a length of 2 GB', uint32(0x7fffffff)],
    ['a length of 4 GB', uint32(0xffffffff)],
    ['a length of zero', uint32(0)],
    ['a length below the minimum', Buffer.concat([uint32(7), uint32(196608)])],
    ['a length just above PostgreSQL’s bound', uint32(10_005)],
    ['a TLS ClientHello', Buffer.from('16030100f8010000f40303', 'hex')],
    ['a Terminate', Buffer.from('5800000004', 'hex')],
  ])('%s is not answered, as by a server', async (_what, bytes) => {
    expect(await new RawClient(plain.port).say(bytes).rest()).toHaveLength(0);
  });

  test('a peer that ends within a packet is let go without a word', async () => {
    for (const cut of [1, 4, 5, 12]) {
      const client = new RawClient(plain.port);
      client.socket.end(startup('alice').subarray(0, cut));
      expect(await client.rest()).toHaveLength(0);
    }
  });

  test('a peer that connects and leaves is let go without a word', async () => {
    const before = plain.turnedAway();
    const client = new RawClient(plain.port);
    client.socket.end();
    expect(await client.rest()).toHaveLength(0);
    await until(() => plain.turnedAway() === before + 1);
  });

  test('a peer that resets its connection does no harm', async () => {
    const before = plain.turnedAway();
    const client = new RawClient(plain.port).say(startup('alice'));
    await client.take(5);
    client.socket.resetAndDestroy();
    await until(() => plain.turnedAway() === before + 1);
  });

  test('any bytes are survived', async () => {
    const before = plain.turnedAway();
    await fc.assert(
      fc.asyncProperty(
        fc.uint8Array({ minLength: 1, maxLength: 200 }),
        fc.boolean(),
        async (bytes, framed) => {
          const body = Buffer.from(bytes);
          const client = new RawClient(plain.port);
          client.socket.end(framed ? Buffer.concat([uint32(body.length + 4), body]) : body);
          await client.rest();
        },
      ),
      { numRuns: 60 },
    );
    await until(() => plain.turnedAway() === before + 60);
    const client = new RawClient(plain.port).say(startup('alice'));
    expect((await client.message()).type).toBe('R');
    client.socket.destroy();
  });
});

describe('startup', () => {
  test('encryption requests are answered in any order, once each', async () => {
    const client = new RawClient(plain.port).say(GSSENC_REQUEST);
    expect((await client.take(1)).toString()).toBe('N');
    client.say(encodeSslRequest());
    expect((await client.take(1)).toString()).toBe('N');
    client.say(startup('alice'));
    expect((await client.message()).type).toBe('R');
    client.socket.destroy();

    const other = new RawClient(plain.port).say(encodeSslRequest());
    expect((await other.take(1)).toString()).toBe('N');
    other.say(encodeSslRequest());
    expect(await other.farewell()).toMatchObject({ sqlState: '0A000' });
  });

  test('other major versions are refused', async () => {
    for (const version of [0x00020000, 0x00040000]) {
      const client = new RawClient(plain.port).say(Buffer.concat([uint32(8), uint32(version)]));
      expect(await client.farewell()).toMatchObject({ severity: 'FATAL', sqlState: '0A000' });
    }
  });

  test('a newer minor version and unknown options are negotiated down', async () => {
    const body = Buffer.concat([uint32(0x00030002), Buffer.from('user\0alice\0_pq_.x\x001\0\0')]);
    const client = new RawClient(plain.port).say(Buffer.concat([uint32(body.length + 4), body]));
    expect(await client.message()).toEqual({
      type: 'v',
      payload: Buffer.concat([uint32(196608), uint32(1), Buffer.from('_pq_.x\0')]),
    });
    expect((await client.message()).type).toBe('R');
    client.socket.destroy();
  });

  test('a packet without a user, or without its end, is refused', async () => {
    const nobody = new RawClient(plain.port).say(encodeStartup('', 'db', []));
    expect(await nobody.farewell()).toMatchObject({ sqlState: '28000' });
    const body = Buffer.concat([uint32(196608), Buffer.from('user\0alice\0')]);
    const endless = new RawClient(plain.port).say(Buffer.concat([uint32(body.length + 4), body]));
    expect(await endless.farewell()).toMatchObject({ sqlState: '08P01' });
  });

  test('a cancel request is passed on, and the connection closed after it', async () => {
    const seen: [number, Buffer][] = [];
    await using listener = await listen({
      verifiers,
      onCancel: (processId, secretKey) => {
        seen.push([processId, secretKey]);
        throw new Error('nobody has that key');
      },
    });
    const client = new RawClient(listener.port).say(encodeCancelRequest(42, Buffer.from('wxyz')));
    expect(await client.rest()).toHaveLength(0);
    expect(seen).toEqual([[42, Buffer.from('wxyz')]]);
  });

  test('what a client sends behind its startup packet waits for the next reader, in order', async () => {
    await using listener = await listen({ verifiers, authentication: 'trust' });
    const early = encodeQuery('SELECT 1');
    new RawClient(listener.port).say(Buffer.concat([encodeStartup('alice', '', [['a', 'b']]), early]));
    await until(() => listener.accepted.length === 1);
    const [client] = listener.accepted;
    expect(client).toMatchObject({
      user: 'alice',
      database: 'alice',
      parameters: new Map([['a', 'b']]),
      credentials: { kind: 'password', password: 'wonderland' },
    });
    expect(client?.socket.isPaused()).toBe(true);
    expect(client?.socket.listenerCount('readable')).toBe(0);
    expect(client?.socket.listenerCount('data')).toBe(0);
    const read: Buffer[] = [];
    client?.socket.on('data', (chunk: Buffer) => read.push(chunk));
    client?.socket.resume();
    await until(() => Buffer.concat(read).equals(early));
  });
});

describe('authentication messages', () => {
  test('another message in place of the proof is refused', async () => {
    const client = new RawClient(plain.port).say(startup('alice'));
    await client.message();
    expect(await client.say(encodeQuery('SELECT 1')).farewell()).toMatchObject({ sqlState: '08P01' });
  });

  test('lengths out of bounds are refused', async () => {
    for (const length of [0, 4, 70_000, 0x7fffffff, 0xffffffff]) {
      const client = new RawClient(plain.port).say(startup('alice'));
      await client.message();
      const answer = client.say(Buffer.concat([Buffer.from('p'), uint32(length)])).farewell();
      expect(await answer).toMatchObject({ severity: 'FATAL', sqlState: '08P01' });
    }
  });

  test('a mechanism that was not offered is refused', async () => {
    const client = new RawClient(plain.port).say(startup('alice'));
    const { payload } = await client.message();
    expect(parseAuthentication(payload)).toEqual({ kind: 'sasl', mechanisms: ['SCRAM-SHA-256'] });
    client.say(encodeSaslInitialResponse('SCRAM-SHA-256-PLUS', 'p=tls-server-end-point,,n=,r=abc'));
    expect(await client.farewell()).toMatchObject({ sqlState: '08P01' });
  });

  test('damaged SASL messages are refused', async () => {
    for (const frame of [
      encodeSaslInitialResponse('SCRAM-SHA-256', 'p=tls-server-end-point,,n=,r=abc'),
      encodeSaslInitialResponse('SCRAM-SHA-256', ''),
      encodeFrame(FRONTEND.password, Buffer.from('SCRAM-SHA-256')),
      encodePassword('wonderland'),
    ]) {
      const client = new RawClient(plain.port).say(startup('alice'));
      await client.message();
      expect(await client.say(frame).farewell()).toMatchObject({ severity: 'FATAL', sqlState: '08P01' });
    }
  });

  test('a wrong MD5 response is a failed password', async () => {
    const client = new RawClient(plain.port).say(startup('bob'));
    expect(parseAuthentication((await client.message()).payload).kind).toBe('md5');
    client.say(encodePassword(`md5${'0'.repeat(32)}`));
    expect(await client.farewell()).toMatchObject({
      severity: 'FATAL',
      sqlState: '28P01',
      message: 'password authentication failed for user "bob"',
    });
  });

  test('an unknown role meets the same exchange as a known one, with a salt of its own that stays', async () => {
    const salts: string[] = [];
    for (const user of ['mallory', 'mallory', 'trudy', 'alice', 'alice']) {
      const client = new RawClient(plain.port).say(startup(user));
      expect(parseAuthentication((await client.message()).payload).kind).toBe('sasl');
      client.say(encodeSaslInitialResponse('SCRAM-SHA-256', 'n,,n=,r=abc'));
      const challenge = parseAuthentication((await client.message()).payload);
      const data = 'data' in challenge ? challenge.data : '';
      salts.push(/s=([^,]+),i=4096$/.exec(data)?.[1] ?? '');
      const nonce = /^r=([^,]+)/.exec(data)?.[1] ?? '';
      const proof = Buffer.alloc(32).toString('base64');
      client.say(encodeFrame(FRONTEND.password, Buffer.from(`c=biws,r=${nonce},p=${proof}`)));
      expect(await client.farewell()).toMatchObject({
        severity: 'FATAL',
        sqlState: '28P01',
        message: `password authentication failed for user "${user}"`,
      });
    }
    const [mallory, again, trudy, alice, aliceAgain] = salts;
    expect(mallory).toBe(again);
    expect(alice).toBe(aliceAgain);
    expect(new Set([mallory, trudy, alice]).size).toBe(3);
    expect(mallory).toHaveLength(24);
  });
});

describe('deadlines', () => {
  test('a client that says nothing, or not enough, is told that its time is up', async () => {
    await using listener = await listen({ verifiers, timeoutMs: 50 });
    for (const bytes of [Buffer.alloc(0), startup('alice').subarray(0, 10), startup('alice')]) {
      const rest = await new RawClient(listener.port).say(bytes).rest();
      // What is asked of the client before its time is up may stand in front.
      expect(rest.toString('latin1')).toMatch(/E....SFATAL\0VFATAL\0C57014\0[^]*$/);
    }
  });

  test('so is one whose verifier can’t be read in time', async () => {
    await using listener = await listen({
      verifiers: { lookup: () => new Promise(() => undefined) },
      timeoutMs: 50,
    });
    const client = new RawClient(listener.port).say(startup('alice'));
    expect(await client.farewell()).toMatchObject({ sqlState: '57014' });
  });

  test('a TLS handshake that does not go on is cut off, without plain words in it', async () => {
    await using listener = await listen({ verifiers, timeoutMs: 500, tls: clientTls(certificate) });
    expect((await new RawClient(listener.port).say(encodeSslRequest()).rest()).toString()).toBe('S');
  });

  test('a verifier source that fails is reported as such', async () => {
    for (const [code, sqlState] of [
      ['source-unreachable', '08006'],
      ['limit-reached', '53300'],
      ['config-invalid', '57P03'],
      ['internal', 'XX000'],
    ] as const) {
      const failing = { lookup: () => Promise.reject(new UnderstudyError(code, 'secret detail')) };
      await using listener = await listen({ verifiers: failing });
      const answer = await new RawClient(listener.port).say(startup('alice')).farewell();
      expect(answer).toMatchObject({ severity: 'FATAL', sqlState });
      expect(answer.message).not.toContain('secret detail');
    }
  });
});

describe('while the proxy stops', () => {
  test('a client is told so behind its startup packet, one that says nothing before long, and one being asked at once', async () => {
    const stop = new AbortController();
    await using listener = await listen({ verifiers, stopping: stop.signal });
    const early = new RawClient(listener.port);
    await using impatient = await listen({ verifiers, stopping: stop.signal, startupGraceMs: 10 });
    const silent = new RawClient(impatient.port);
    const asked = new RawClient(listener.port).say(startup('alice'));
    expect((await asked.message()).type).toBe('R');
    stop.abort();
    const late = new RawClient(listener.port);
    for (const client of [early, late]) {
      client.say(encodeSslRequest());
      // A word of the proxy's in front of this one would be taken for a server that can't do TLS.
      expect((await client.take(1)).toString()).toBe('N');
      client.say(startup('alice'));
    }
    for (const client of [early, late, silent, asked])
      expect(await client.farewell()).toMatchObject({ severity: 'FATAL', sqlState: '57P03' });
  });

  test('who had come before the port closes is let in', async () => {
    const greeted: Socket[] = [];
    const listener = new PortListener((socket) => {
      greeted.push(socket);
      closeWith(socket, Buffer.from('late'));
    }, silentLog);
    await listener.start({ host: '127.0.0.1', port: 0, socketMode: 0o700 });
    const clients = Array.from({ length: 20 }, () => new RawClient(listener.address?.port ?? 0));
    for (const client of clients) client.say('anybody?');
    // They are connected for the kernel by then, and the event loop has not looked.
    await new Promise((resolve) => process.nextTick(resolve));
    await listener.stop();
    expect(greeted).toHaveLength(clients.length);
    for (const client of clients) expect((await client.rest()).toString()).toBe('late');
  });
});

describe('TLS', () => {
  test('bytes sent before the answer to SSLRequest are refused', async () => {
    const client = new RawClient(secure.port).say(Buffer.concat([encodeSslRequest(), startup('alice')]));
    expect(await client.farewell()).toMatchObject({
      sqlState: '08P01',
      message: 'received unencrypted data after SSL request',
    });
  });

  test('plain bytes in place of a TLS handshake end the connection', async () => {
    const before = secure.turnedAway();
    const client = new RawClient(secure.port).say(encodeSslRequest());
    await client.take(1);
    await client.say(startup('alice')).rest();
    await until(() => secure.turnedAway() === before + 1);
  });

  test('an encrypted connection can’t be encrypted again', async () => {
    for (const request of [encodeSslRequest(), GSSENC_REQUEST]) {
      const client = new RawClient(secure.port).say(encodeSslRequest());
      await client.take(1);
      client.socket.removeAllListeners('data');
      const encrypted = tls.connect({
        socket: client.socket,
        ca: certificate.certPem,
        servername: 'localhost',
      });
      encrypted.on('error', () => undefined);
      await once(encrypted, 'secureConnect');
      encrypted.write(request);
      const [answer] = (await once(encrypted, 'data')) as [Buffer];
      expect(answer.toString('latin1')).toMatch(/^E.*0A000/s);
      encrypted.destroy();
    }
  });

  test('versions before TLS 1.2 are refused', async () => {
    const client = new RawClient(secure.port).say(encodeSslRequest());
    await client.take(1);
    client.socket.removeAllListeners('data');
    const encrypted = tls.connect({
      socket: client.socket,
      rejectUnauthorized: false,
      minVersion: 'TLSv1',
      maxVersion: 'TLSv1.1',
      ciphers: 'DEFAULT:@SECLEVEL=0',
    });
    await expect(once(encrypted, 'secureConnect')).rejects.toThrow(/alert|closed|reset|EPIPE|disconnected/i);
    encrypted.destroy();
  });

  test('a key that is none is a configuration error', () => {
    expect(() => clientTls({ keyPem: 'x', certPem: certificate.certPem })).toThrow(UnderstudyError);
  });

  test('loopback is told from other addresses', () => {
    const addresses = [
      '127.0.0.1',
      '127.8.8.8',
      '::1',
      '::ffff:127.0.0.1',
      '10.0.0.1',
      '::ffff:10.0.0.1',
      '127.x',
    ];
    expect(addresses.filter((address) => isLoopback(address))).toEqual(addresses.slice(0, 4));
    expect(isLoopback(undefined)).toBe(false);
  });
});
