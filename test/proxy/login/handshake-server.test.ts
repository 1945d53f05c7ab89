/** Opening a server connection when the other end does not behave as a PostgreSQL server does. */
import { once } from 'node:events';
import net from 'node:net';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { silentLog } from '../../../src/core/log.js';
import type { TlsMode } from '../../../src/core/ports.js';
import { BackendRefused } from '../../../src/proxy/backend/backend-refused.js';
import { openBackend, sendCancel, type Backend } from '../../../src/proxy/backend/backend.js';
import { authenticateClient } from '../../../src/proxy/login/client-authentication.js';
import type { BackendCredentials } from '../../../src/proxy/login/credentials.js';
import { clientTls, upgradeClient } from '../../../src/proxy/login/tls.js';
import { parseUsersFile, readStoredSecret } from '../../../src/proxy/login/verifiers.js';
import {
  encodeBackendKeyData,
  encodeErrorResponse,
  encodeFrame,
  encodeParameterStatus,
  encodeReadyForQuery,
  parseErrorFields,
} from '../../../src/wire/postgres/messages.js';
import { deriveScramKeys, ScramServerExchange } from '../../../src/wire/postgres/scram.js';
import {
  encodeAuthenticationOk,
  encodeAuthenticationSasl,
  encodeAuthenticationSaslContinue,
  encodeAuthenticationSaslFinal,
  encodePassword,
  parseAuthentication,
  parseSaslInitialResponse,
} from '../../../src/wire/postgres/startup.js';
import { until } from '../../support/servers.js';
import { makeCertificate, type TestCertificate } from './handshake-listener.js';

let certificate: TestCertificate;
beforeAll(() => {
  certificate = makeCertificate();
});
afterAll(() => certificate[Symbol.dispose]());

const STARTUP = { user: 'alice', database: 'shop', parameters: new Map<string, string>() };
const NONE: BackendCredentials = { kind: 'none' };
const READY = Buffer.concat([
  encodeAuthenticationOk(),
  encodeParameterStatus('server_version', '18'),
  encodeBackendKeyData(7, Buffer.from('wxyz')),
  encodeReadyForQuery('I'),
]);

type Script = (socket: net.Socket, next: () => Promise<Buffer>) => Promise<void> | void;

/** A peer that follows `script`; `next` gives what came since the last call, one chunk at least. */
async function impostor(
  script: Script,
): Promise<{ port: number; sockets: Set<net.Socket> } & AsyncDisposable> {
  const sockets = new Set<net.Socket>();
  const server = net.createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => undefined);
    socket.on('close', () => sockets.delete(socket));
    // Always reading: a socket nobody reads from does not notice that its peer has gone.
    const chunks: Buffer[] = [];
    socket.on('data', (chunk: Buffer) => chunks.push(chunk));
    const next = async (): Promise<Buffer> => {
      if (chunks.length === 0) await once(socket, 'data');
      return Buffer.concat(chunks.splice(0));
    };
    void Promise.resolve(script(socket, next)).catch(() => socket.destroy());
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    port: (server.address() as net.AddressInfo).port,
    sockets,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };
}

interface Attempt {
  readonly credentials?: BackendCredentials;
  readonly tls?: TlsMode;
  readonly connectTimeoutMs?: number;
  readonly signal?: AbortSignal;
}

/** Opens, and tells what it was refused with. The impostor's sockets must be closed again by then. */
async function refusal(script: Script, attempt: Attempt = {}): Promise<BackendRefused> {
  await using server = await impostor(script);
  const endpoint = {
    side: 'source',
    host: '127.0.0.1',
    port: server.port,
    tls: attempt.tls ?? 'disable',
  } as const;
  try {
    await openBackend(endpoint, STARTUP, attempt.credentials ?? NONE, {
      connectTimeoutMs: attempt.connectTimeoutMs ?? 10_000,
      ...(attempt.signal === undefined ? {} : { signal: attempt.signal }),
    });
  } catch (error) {
    await until(() => server.sockets.size === 0, { what: 'the connection to be let go' });
    if (!(error instanceof BackendRefused)) throw error;
    const { severity, sqlState } = parseErrorFields(error.response.subarray(5));
    expect({ severity, sqlState }).toEqual({ severity: 'FATAL', sqlState: error.sqlState });
    return error;
  }
  throw new Error('it was opened');
}

async function opened(script: Script): Promise<Backend> {
  await using server = await impostor(script);
  const endpoint = { side: 'source', host: '127.0.0.1', port: server.port, tls: 'disable' } as const;
  const backend = await openBackend(endpoint, STARTUP, NONE, { connectTimeoutMs: 10_000 });
  backend.socket.destroy();
  return backend;
}

describe('a server that can’t be used', () => {
  test('does not answer in time', async () => {
    const error = await refusal(() => undefined, { connectTimeoutMs: 50 });
    expect(error).toMatchObject({ code: 'source-unreachable', sqlState: '08006', retryable: true });
    expect(error.message).toContain('50 ms');
  });

  test('closes, or breaks, the connection at any point', async () => {
    for (let length = 0; length < READY.length; length += 7) {
      const cut = await refusal((socket) => void socket.end(READY.subarray(0, length)));
      expect(cut).toMatchObject({ code: 'source-unreachable', sqlState: '08006' });
    }
    const reset = await refusal(async (socket, next) => {
      await next();
      socket.resetAndDestroy();
    });
    expect(reset.sqlState).toBe('08006');
  });

  test('says something else than the protocol', async () => {
    for (const bytes of [
      Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n'),
      Buffer.from('SSH-2.0-OpenSSH_9.2\r\n'),
      Buffer.from('5200000003', 'hex'),
      Buffer.from('527fffffff', 'hex'),
      encodeFrame(0x52, Buffer.alloc(0)),
      encodeReadyForQuery('I'),
      encodeAuthenticationSaslContinue('r='),
      Buffer.concat([encodeAuthenticationOk(), encodeAuthenticationOk()]),
      Buffer.concat([encodeAuthenticationOk(), encodeFrame(0x53, Buffer.from('no end'))]),
    ]) {
      const error = await refusal((socket) => void socket.write(bytes));
      expect(error).toMatchObject({ code: 'backend-refused', sqlState: '08P01' });
    }
  });

  test('sends notices without end', async () => {
    const notice = encodeFrame(0x4e, Buffer.alloc(100_000, 1));
    const error = await refusal((socket) => {
      for (let count = 0; count < 12; count++) socket.write(notice);
    });
    expect(error.sqlState).toBe('08P01');
  });

  test('refuses in its own words, which are kept byte for byte', async () => {
    const response = encodeErrorResponse({
      severity: 'FATAL',
      sqlState: '57P03',
      message: 'the database system is starting up',
      detail: 'soon',
    });
    const error = await refusal((socket) => void socket.write(response));
    expect(error).toMatchObject({ code: 'backend-refused', sqlState: '57P03', retryable: true });
    expect(error.response.equals(response)).toBe(true);
  });

  test('wants a proof that is not spoken here', async () => {
    for (const request of [
      encodeFrame(0x52, Buffer.from('00000007', 'hex')),
      encodeAuthenticationSasl(['OAUTHBEARER']),
    ]) {
      const error = await refusal((socket) => void socket.write(request));
      expect(error).toMatchObject({ code: 'backend-refused', sqlState: '28000' });
    }
  });

  test('is left when the caller gives up, and not tried when it had given up before', async () => {
    const controller = new AbortController();
    const during = refusal(() => controller.abort(), { signal: controller.signal });
    await expect(during).rejects.toMatchObject({ code: 'cancelled' });
    await expect(refusal(() => undefined, { signal: controller.signal })).rejects.toMatchObject({
      code: 'cancelled',
    });
  });

  test('never closes a cancel connection', async () => {
    await using server = await impostor(() => undefined);
    const endpoint = { side: 'source', host: '127.0.0.1', port: server.port, tls: 'disable' } as const;
    await expect(sendCancel(endpoint, 1, Buffer.alloc(4), 50)).rejects.toMatchObject({
      code: 'source-unreachable',
    });
    await until(() => server.sockets.size === 0);
  });
});

describe('a server that is somebody else', () => {
  const salt = Buffer.from('0123456789abcdef');

  /** A server that knows the verifier's StoredKey, or claims to, and answers with `final`. */
  function scramServer(final: (right: string) => Buffer): Script {
    return async (socket, next) => {
      const keys = await deriveScramKeys('pencil', salt, 1);
      const exchange = new ScramServerExchange({ ...keys, salt, iterations: 1 }, 'server-nonce');
      await next();
      socket.write(encodeAuthenticationSasl(['SCRAM-SHA-256-PLUS', 'SCRAM-SHA-256']));
      const { data } = parseSaslInitialResponse((await next()).subarray(5));
      socket.write(encodeAuthenticationSaslContinue(exchange.challenge(data ?? '')));
      const proven = exchange.finish((await next()).toString('utf8', 5));
      socket.write(final(proven?.serverFinal ?? ''));
    };
  }
  const credentials: BackendCredentials = { kind: 'password', password: 'pencil' };

  test('can’t pass by a wrong signature, or by leaving it out', async () => {
    const wrong = encodeAuthenticationSaslFinal(`v=${Buffer.alloc(32).toString('base64')}`);
    for (const final of [wrong, encodeAuthenticationOk(), encodeAuthenticationSaslFinal('e=other-error')]) {
      const error = await refusal(
        scramServer(() => Buffer.concat([final, READY])),
        { credentials },
      );
      expect(error).toMatchObject({ code: 'backend-refused', sqlState: '28000' });
    }
    const right = scramServer((text) => Buffer.concat([encodeAuthenticationSaslFinal(text), READY]));
    await using server = await impostor(right);
    const endpoint = { side: 'source', host: '127.0.0.1', port: server.port, tls: 'disable' } as const;
    const backend = await openBackend(endpoint, STARTUP, credentials, { connectTimeoutMs: 10_000 });
    expect(backend.processId).toBe(7);
    backend.socket.destroy();
  });

  test('can’t have more work asked of us than a bound', async () => {
    const error = await refusal(
      async (socket, next) => {
        await next();
        socket.write(encodeAuthenticationSasl(['SCRAM-SHA-256']));
        const { data } = parseSaslInitialResponse((await next()).subarray(5));
        const nonce = data?.split('r=')[1] ?? '';
        socket.write(encodeAuthenticationSaslContinue(`r=${nonce}x,s=AAAA,i=2147483647`));
      },
      { credentials },
    );
    expect(error.sqlState).toBe('08P01');
  });

  test('can’t put plain words in front of an encrypted connection', async () => {
    const early = await refusal(
      async (socket, next) => {
        await next();
        socket.write(Buffer.concat([Buffer.from('S'), READY]));
      },
      { tls: 'require' },
    );
    expect(early).toMatchObject({ code: 'source-unreachable' });
    expect(early.message).toContain('unencrypted data');
  });

  test('can’t answer the request for TLS with an error of its choice, nor talk us out of TLS', async () => {
    const answers: [Buffer, TlsMode, string][] = [
      [encodeErrorResponse({ severity: 'FATAL', sqlState: '28P01', message: 'phish' }), 'prefer', '08006'],
      [Buffer.from('N'), 'require', '08001'],
      [Buffer.from('N'), 'verify-full', '08001'],
    ];
    for (const [answer, tls, sqlState] of answers) {
      const script: Script = async (socket, next) => {
        await next();
        socket.write(answer);
      };
      const error = await refusal(script, { tls });
      expect(error.sqlState).toBe(sqlState);
      expect(error.response.toString()).not.toContain('phish');
    }
  });

  test('fails the TLS handshake or leaves within it', async () => {
    for (const bytes of [Buffer.from('no TLS record'), Buffer.alloc(0)]) {
      const script: Script = async (socket, next) => {
        await next();
        socket.write('S');
        await next();
        socket.end(bytes);
      };
      expect((await refusal(script, { tls: 'require' })).sqlState).toBe('08006');
    }
  });
});

test('a server that goes right after it is ready leaves a socket that says so', async () => {
  const backend = await opened((socket) => void socket.end(READY));
  expect(backend.parameters).toEqual(new Map([['server_version', '18']]));
  expect(backend).toMatchObject({ processId: 7, secretKey: Buffer.from('wxyz') });
});

test('a server’s half of TLS gives up with the connection', async () => {
  await using server = await impostor(async (socket) => {
    socket.removeAllListeners('data');
    await expect(upgradeClient(socket, clientTls(certificate))).rejects.toThrow(Error);
  });
  const socket = net.connect({ port: server.port, host: '127.0.0.1' });
  socket.end('GET / HTTP/1.1\r\n\r\n');
  socket.resume();
  await once(socket, 'close');
});

describe('where the peer is decides what is enough', () => {
  const users = parseUsersFile('"alice" "wonderland"\n"bob" "md5900150983cd24fb0d6963f7d28e17f72"');
  const login = async (
    authentication: 'trust' | 'cleartext' | 'pass-through',
    place: { readonly loopback: boolean; readonly encrypted: boolean },
  ): Promise<{ asked: string[]; outcome: string }> => {
    const asked: string[] = [];
    const channel = {
      ...place,
      endpointBinding: null,
      certificate: { kind: 'none' } as const,
      send: (frame: Buffer) => void asked.push(parseAuthentication(frame.subarray(5)).kind),
      sendWithNext: (frame: Buffer) => void asked.push(parseAuthentication(frame.subarray(5)).kind),
      receive: () => Promise.resolve(encodePassword('wonderland').subarray(5)),
    };
    const deps = {
      verifiers: { lookup: (user: string) => Promise.resolve(users.get(user) ?? null) },
      authentication,
      mockSecret: Buffer.alloc(32),
      log: silentLog,
    };
    const outcome = await authenticateClient(channel, 'alice', deps).then(
      ({ kind }) => kind,
      (error: unknown) => (error as { code: string }).code,
    );
    return { asked, outcome };
  };

  test('trust is for loopback; others must show a proof', async () => {
    expect(await login('trust', { loopback: true, encrypted: false })).toEqual({
      asked: [],
      outcome: 'password',
    });
    expect((await login('trust', { loopback: false, encrypted: true })).asked).toEqual(['sasl']);
  });

  test('cleartext is for loopback and TLS; others are refused before they give their password away', async () => {
    for (const place of [
      { loopback: true, encrypted: false },
      { loopback: false, encrypted: true },
    ]) {
      expect(await login('cleartext', place)).toEqual({ asked: ['cleartext'], outcome: 'given-password' });
    }
    expect(await login('cleartext', { loopback: false, encrypted: false })).toEqual({
      asked: [],
      outcome: 'auth-failed',
    });
    expect(await login('pass-through', { loopback: false, encrypted: false })).toEqual({
      asked: [],
      outcome: 'auth-failed',
    });
  });
});

describe('users file', () => {
  test('reads PgBouncer’s format', () => {
    const users = parseUsersFile(
      '; comment\n\n"a ""quoted""" "p""w" ""\r\n"m" "md5900150983cd24fb0d6963f7d28e17f72"\n"none" ""\nanything',
    );
    expect([...users]).toEqual([
      ['a "quoted"', { kind: 'plain', password: 'p"w' }],
      ['m', { kind: 'md5', hash: 'md5900150983cd24fb0d6963f7d28e17f72' }],
    ]);
  });

  test('names the line of a mistake and keeps its content to itself', () => {
    for (const line of [
      '"user" secret',
      '"user"',
      '"user" "secret',
      '"" "secret"',
      '"user" "SCRAM-SHA-256$x"',
    ]) {
      try {
        parseUsersFile(`"ok" "ok"\n${line}`);
        expect.unreachable();
      } catch (error) {
        expect(error).toMatchObject({ code: 'config-invalid' });
        expect((error as Error).message).toContain('line 2');
        expect((error as Error).message).not.toMatch(/secret[^"]|SCRAM-SHA-256/);
      }
    }
    expect(readStoredSecret('SCRAM-SHA-256$4096:x')).toBeNull();
  });
});
