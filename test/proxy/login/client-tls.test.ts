/** Towards clients: certificates, modes, channel binding and direct TLS, with real drivers and with hostile ones. */
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import net from 'node:net';
import tls from 'node:tls';
import { promisify } from 'node:util';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { endpointBinding } from '../../../src/core/certificate-hash.js';
import type { ClientAuthentication } from '../../../src/proxy/login/client-authentication.js';
import { clientTls, type ClientTlsOptions } from '../../../src/proxy/login/tls.js';
import { parseUsersFile } from '../../../src/proxy/login/verifiers.js';
import { ScramClientExchange, deriveScramKeys } from '../../../src/wire/postgres/scram.js';
import {
  encodeSaslInitialResponse,
  encodeSaslResponse,
  encodeStartup,
  parseAuthentication,
} from '../../../src/wire/postgres/startup.js';
import { SUPERUSER, SUPERUSER_PASSWORD } from '../../../src/app/demo/embedded-server.js';
import { Authority, opensslMissing, type Pem } from '../../support/certificates.js';
import { databasePair, type DatabasePair } from '../../support/servers.js';
import { RawClient } from './handshake-listener.js';
import { startProxy, type RunningProxy } from '../proxy-support.js';

const PSQL = '/usr/bin/psql';
let authority: Authority;
let stranger: Authority;
let shown: Pem;
let pair: DatabasePair;
beforeAll(async () => {
  if (opensslMissing) return;
  authority = new Authority();
  stranger = new Authority();
  shown = authority.issue('localhost', { names: 'DNS:localhost', digest: 'sha512' });
  pair = await databasePair();
});
afterAll(async () => {
  if (opensslMissing) return;
  authority[Symbol.dispose]();
  stranger[Symbol.dispose]();
  await pair[Symbol.asyncDispose]();
});

const users = parseUsersFile(`"${SUPERUSER}" "${SUPERUSER_PASSWORD}"`);

async function proxyWith(
  options: Partial<ClientTlsOptions> = {},
  authentication: ClientAuthentication = 'verifier',
): Promise<RunningProxy> {
  const verifiers = { lookup: (user: string) => Promise.resolve(users.get(user) ?? null) };
  return await startProxy(pair, { tls: clientTls({ ...shown, ...options }), authentication }, { verifiers });
}

interface Login {
  readonly ssl?: tls.ConnectionOptions;
  readonly direct?: boolean;
  readonly user?: string;
  readonly password?: string;
  readonly binding?: boolean;
}

/** Logs in with node-postgres; the SQLSTATE it was refused with, or what the driver said. */
async function login(proxy: RunningProxy, how: Login): Promise<string> {
  const client = new pg.Client({
    host: '127.0.0.1',
    port: proxy.port,
    database: proxy.database,
    user: how.user ?? SUPERUSER,
    password: how.password ?? SUPERUSER_PASSWORD,
    ssl: how.ssl === undefined ? false : { ca: authority.certPem, servername: 'localhost', ...how.ssl },
    sslnegotiation: how.direct === true ? 'direct' : 'postgres',
    enableChannelBinding: how.binding ?? false,
  });
  client.on('error', () => undefined);
  try {
    await client.connect();
    const { rows } = await client.query<{ ok: string }>("SELECT 'in' AS ok");
    return rows[0]?.ok ?? '';
  } catch (error) {
    return (error as pg.DatabaseError).code ?? String(error);
  } finally {
    await client.end().catch(() => undefined);
  }
}

describe.skipIf(opensslMissing)('modes', () => {
  test('allow takes both, require only TLS', async () => {
    await using both = await proxyWith();
    expect([await login(both, {}), await login(both, { ssl: {} })]).toEqual(['in', 'in']);
    await using only = await proxyWith({ mode: 'require' });
    expect([await login(only, {}), await login(only, { ssl: {} })]).toEqual(['28000', 'in']);
  });

  test('a client certificate is asked for, checked, and may have to carry the user’s name', async () => {
    const mine = authority.issue(SUPERUSER);
    const other = authority.issue('somebody');
    const forged = stranger.issue(SUPERUSER);
    const as = ({ certPem, keyPem }: Pem): Login => ({ ssl: { cert: certPem, key: keyPem } });
    const tried = async (mode: ClientTlsOptions['mode']): Promise<string[]> => {
      await using proxy = await proxyWith({ clientCaPem: authority.certPem, ...(mode ? { mode } : {}) });
      return [
        await login(proxy, as(mine)),
        await login(proxy, as(other)),
        await login(proxy, as(forged)),
        await login(proxy, { ssl: {} }),
        await login(proxy, {}),
      ];
    };
    expect(await tried('allow')).toEqual(['in', 'in', '28000', 'in', 'in']);
    expect(await tried('verify-ca')).toEqual(['in', 'in', '28000', '28000', '28000']);
    expect(await tried('verify-full')).toEqual(['in', '28000', '28000', '28000', '28000']);
  });

  test('by method certificate, the certificate is the proof', async () => {
    await using proxy = await proxyWith({ clientCaPem: authority.certPem }, 'certificate');
    const { certPem: cert, keyPem: key } = authority.issue(SUPERUSER);
    expect(await login(proxy, { ssl: { cert, key }, password: 'not asked for' })).toBe('in');
    expect(await login(proxy, { ssl: { cert, key }, user: 'somebody' })).toBe('28000');
    expect(await login(proxy, { ssl: {} })).toBe('28000');
    expect(await login(proxy, {})).toBe('28000');
  });

  test('an older TLS than the configured one is refused', async () => {
    await using proxy = await proxyWith({ minVersion: 'TLSv1.3' });
    expect(await login(proxy, { ssl: { maxVersion: 'TLSv1.2' } })).not.toBe('in');
    expect(await login(proxy, { ssl: {} })).toBe('in');
  });

  test('a mode that needs an authority is a configuration error without one', () => {
    expect(() => clientTls({ ...shown, mode: 'verify-ca' })).toThrow(/authority/);
  });

  test('a renewed certificate is shown to new clients, and connected ones stay', async () => {
    await using proxy = await proxyWith();
    const old = new pg.Client({
      connectionString: proxy.url,
      ssl: { ca: authority.certPem, servername: 'localhost' },
    });
    await old.connect();
    const renewed = stranger.issue('localhost', { names: 'DNS:localhost' });
    proxy.proxy.setTls(clientTls(renewed));
    expect(await login(proxy, { ssl: {} })).not.toBe('in');
    expect(await login(proxy, { ssl: { ca: stranger.certPem } })).toBe('in');
    expect(await login(proxy, { ssl: { ca: stranger.certPem }, binding: true })).toBe('in');
    expect((await old.query('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
    await old.end();
  });
});

describe.skipIf(opensslMissing)('resuming a TLS session', () => {
  test.each(['TLSv1.2', 'TLSv1.3'] as const)(
    'by %s comes to a whole new handshake, with certificates',
    async (maxVersion) => {
      await using proxy = await proxyWith({ clientCaPem: authority.certPem, mode: 'verify-full' });
      const { certPem: cert, keyPem: key } = authority.issue(SUPERUSER);
      const offer = async (session?: Buffer): Promise<{ offered: string; session: Buffer | undefined }> => {
        const client = tls.connect({
          port: proxy.port,
          host: '127.0.0.1',
          rejectUnauthorized: false,
          ALPNProtocols: ['postgresql'],
          maxVersion,
          cert,
          key,
          ...(session === undefined ? {} : { session }),
        });
        client.on('error', () => undefined);
        let ticket: Buffer | undefined;
        client.on('session', (given: Buffer) => (ticket = given));
        await once(client, 'secureConnect');
        client.write(encodeStartup(SUPERUSER, proxy.database, []));
        const [answer] = (await once(client, 'data')) as [Buffer];
        expect(client.isSessionReused()).toBe(false);
        const held = ticket ?? client.getSession();
        client.destroy();
        return { offered: parseAuthentication(answer.subarray(5)).kind, session: held };
      };
      const first = await offer();
      expect((await offer(first.session)).offered).toBe('sasl');
    },
  );
});

describe.skipIf(opensslMissing)('direct TLS', () => {
  test('is taken from clients that begin with it and name the protocol', async () => {
    await using proxy = await proxyWith({ mode: 'require' });
    expect(await login(proxy, { ssl: {}, direct: true })).toBe('in');
    expect(await login(proxy, { ssl: {}, direct: true, binding: true })).toBe('in');
  });

  test('is refused without the protocol’s name, or with another', async () => {
    await using proxy = await proxyWith();
    const connect = (ALPNProtocols?: string[]): tls.TLSSocket =>
      tls.connect({
        port: proxy.port,
        host: '127.0.0.1',
        rejectUnauthorized: false,
        ...(ALPNProtocols === undefined ? {} : { ALPNProtocols }),
      });
    const nameless = connect();
    nameless.on('error', () => undefined);
    const [answer] = (await once(nameless, 'data')) as [Buffer];
    expect(answer.toString('latin1')).toMatch(/^E.*C08P01.*ALPN/s);
    const http = connect(['http/1.1']);
    await expect(once(http, 'secureConnect')).rejects.toThrow(/ALPN|application protocol/i);
  });

  test('a direct connection can’t be encrypted again', async () => {
    await using proxy = await proxyWith();
    const encrypted = tls.connect({
      port: proxy.port,
      host: '127.0.0.1',
      rejectUnauthorized: false,
      ALPNProtocols: ['postgresql'],
    });
    encrypted.on('error', () => undefined);
    await once(encrypted, 'secureConnect');
    encrypted.write(Buffer.from('0000000804d2162f', 'hex'));
    const [answer] = (await once(encrypted, 'data')) as [Buffer];
    expect(answer.toString('latin1')).toMatch(/^E.*0A000/s);
  });

  test('a first byte of TLS after an answer, or where there is no TLS, is no startup packet', async () => {
    await using proxy = await proxyWith();
    const late = new RawClient(proxy.port).say(Buffer.from('0000000804d21630', 'hex'));
    expect((await late.take(1)).toString()).toBe('N');
    // It is not answered, as by a server.
    expect(await late.say(Buffer.from('160301000100', 'hex')).rest()).toHaveLength(0);
  });
});

/** A client that goes as far as the server's offer, over TLS. */
async function saslOffer(proxy: RunningProxy): Promise<{
  readonly mechanisms: readonly string[];
  readonly peerCertificate: Buffer;
  readonly say: (bytes: Buffer) => void;
  readonly next: () => Promise<{ type: string; payload: Buffer }>;
}> {
  const raw = net.connect({ port: proxy.port, host: '127.0.0.1' });
  raw.write(Buffer.from('0000000804d2162f', 'hex'));
  await once(raw, 'readable');
  expect((raw.read(1) as Buffer).toString()).toBe('S');
  const secured = tls.connect({ socket: raw, rejectUnauthorized: false });
  secured.on('error', () => undefined);
  await once(secured, 'secureConnect');
  let received = Buffer.alloc(0);
  secured.on('data', (chunk: Buffer) => (received = Buffer.concat([received, chunk])));
  const next = async (): Promise<{ type: string; payload: Buffer }> => {
    while (received.length < 5 || received.length < received.readUInt32BE(1) + 1) await once(secured, 'data');
    const length = received.readUInt32BE(1) + 1;
    const [type, payload] = [received.toString('latin1', 0, 1), received.subarray(5, length)];
    received = received.subarray(length);
    return { type, payload };
  };
  secured.write(encodeStartup(SUPERUSER, proxy.database, []));
  const offer = parseAuthentication((await next()).payload);
  return {
    mechanisms: 'mechanisms' in offer ? offer.mechanisms : [],
    peerCertificate: secured.getPeerCertificate().raw,
    say: (bytes) => void secured.write(bytes),
    next,
  };
}

describe.skipIf(opensslMissing)('channel binding', () => {
  test('is offered over TLS and used by drivers that know it', async () => {
    await using proxy = await proxyWith();
    expect((await saslOffer(proxy)).mechanisms).toEqual(['SCRAM-SHA-256-PLUS', 'SCRAM-SHA-256']);
    expect(await login(proxy, { ssl: {}, binding: true })).toBe('in');
    expect(await login(proxy, { ssl: {}, binding: true, password: 'wrong' })).toBe('28P01');
    expect(await login(proxy, { ssl: {} })).toBe('in');
  });

  test.skipIf(!existsSync(PSQL))('is used by psql, which can demand it (psql is needed)', async () => {
    await using proxy = await proxyWith();
    const run = async (more: string): Promise<string> => {
      const url = `host=localhost hostaddr=127.0.0.1 port=${proxy.port} user=${SUPERUSER} dbname=${proxy.database} sslrootcert=${authority.certPath} ${more}`;
      const environment = { ...process.env, PGPASSWORD: SUPERUSER_PASSWORD };
      return await promisify(execFile)(PSQL, ['-XAtw', url, '-c', "SELECT 'in'"], { env: environment }).then(
        ({ stdout }) => stdout.trim(),
        () => 'refused',
      );
    };
    expect(await run('sslmode=verify-full channel_binding=require')).toBe('in');
    expect(await run('sslmode=verify-full channel_binding=disable')).toBe('in');
    expect(await run('sslmode=disable channel_binding=require')).toBe('refused');
  });

  test('a client that was told that there is none is warned of whoever told it', async () => {
    await using proxy = await proxyWith();
    const client = await saslOffer(proxy);
    client.say(encodeSaslInitialResponse('SCRAM-SHA-256', 'y,,n=,r=abcdefgh'));
    const { type, payload } = await client.next();
    expect(type).toBe('E');
    expect(payload.toString('latin1')).toContain('C28000');
  });

  test('a proof for another connection is refused, and so is one that claims to bind and does not', async () => {
    await using proxy = await proxyWith();
    const attempt = async (binding: (certificate: Buffer) => Buffer): Promise<string> => {
      const client = await saslOffer(proxy);
      const exchange = new ScramClientExchange('abcdefgh', binding(client.peerCertificate));
      client.say(encodeSaslInitialResponse(exchange.mechanism, exchange.first()));
      const challenge = parseAuthentication((await client.next()).payload);
      const { salt, iterations } = exchange.readChallenge('data' in challenge ? challenge.data : '');
      client.say(
        encodeSaslResponse(exchange.prove(await deriveScramKeys(SUPERUSER_PASSWORD, salt, iterations))),
      );
      const { type, payload } = await client.next();
      return type === 'R' ? 'in' : (/C(\w{5})/.exec(payload.toString('latin1'))?.[1] ?? '');
    };
    expect(await attempt((certificate) => endpointBinding(certificate) ?? Buffer.alloc(0))).toBe('in');
    expect(await attempt(() => Buffer.alloc(64, 7))).toBe('28000');
    expect(await attempt(() => Buffer.alloc(0))).toBe('28000');
    for (const [mechanism, first] of [
      ['SCRAM-SHA-256-PLUS', 'n,,n=,r=abcdefgh'],
      ['SCRAM-SHA-256-PLUS', 'y,,n=,r=abcdefgh'],
      ['SCRAM-SHA-256-PLUS', 'p=tls-unique,,n=,r=abcdefgh'],
      ['SCRAM-SHA-256', 'p=tls-server-end-point,,n=,r=abcdefgh'],
    ] as const) {
      const client = await saslOffer(proxy);
      client.say(encodeSaslInitialResponse(mechanism, first));
      expect((await client.next()).payload.toString('latin1'), first).toContain('C08P01');
    }
  });
});
