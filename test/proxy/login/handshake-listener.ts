/** A listener that does the handshakes and then only pipes, and peers to try it with. */
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { silentLog } from '../../../src/core/log.js';
import { BackendRefused } from '../../../src/proxy/backend/backend-refused.js';
import { openBackend, type Backend, type BackendEndpoint } from '../../../src/proxy/backend/backend.js';
import type { ClientAuthentication } from '../../../src/proxy/login/client-authentication.js';
import {
  acceptClient,
  type AcceptedClient,
  type ClientHandshakeDeps,
} from '../../../src/proxy/login/client-handshake.js';
import { closeWith } from '../../../src/proxy/socket-reader.js';
import type { ClientTls } from '../../../src/proxy/login/tls.js';
import type { VerifierSource } from '../../../src/proxy/login/verifiers.js';
import {
  encodeBackendKeyData,
  encodeParameterStatus,
  encodeReadyForQuery,
  parseErrorFields,
  type ParsedError,
} from '../../../src/wire/postgres/messages.js';

export interface ListenerOptions {
  readonly verifiers: VerifierSource;
  /** Where accepted clients are taken; without it they are kept in `accepted`. */
  readonly endpoint?: BackendEndpoint;
  readonly authentication?: ClientAuthentication;
  readonly tls?: ClientTls;
  readonly timeoutMs?: number;
  readonly onCancel?: ClientHandshakeDeps['onCancel'];
  readonly stopping?: AbortSignal;
  readonly startupGraceMs?: number;
}

export interface Listener extends AsyncDisposable {
  readonly port: number;
  readonly accepted: AcceptedClient[];
  readonly backends: Backend[];
  /** Handshakes that ended without a client. */
  readonly turnedAway: () => number;
}

export async function listen(options: ListenerOptions): Promise<Listener> {
  const accepted: AcceptedClient[] = [];
  const backends: Backend[] = [];
  let turnedAway = 0;
  const sockets = new Set<net.Socket>();
  const deps: ClientHandshakeDeps = {
    verifiers: options.verifiers,
    authentication: options.authentication ?? 'verifier',
    timeoutMs: options.timeoutMs ?? 60_000,
    onCancel: options.onCancel ?? (() => undefined),
    log: silentLog,
    ...(options.tls === undefined ? {} : { tls: options.tls }),
    ...(options.stopping === undefined ? {} : { stopping: options.stopping }),
    startupGraceMs: options.startupGraceMs ?? 60_000,
  };
  const serve = async (socket: net.Socket): Promise<void> => {
    const client = await acceptClient(socket, deps);
    if (client === null) {
      turnedAway += 1;
      return;
    }
    accepted.push(client);
    if (options.endpoint === undefined) return;
    try {
      const { user, database, parameters, credentials } = client;
      const startup = { user, database, parameters };
      const backend = await openBackend(options.endpoint, startup, credentials, { connectTimeoutMs: 10_000 });
      backends.push(backend);
      connectBoth(client, backend);
    } catch (error) {
      closeWith(client.socket, error instanceof BackendRefused ? error.response : undefined);
    }
  };
  const server = net.createServer((socket) => {
    sockets.add(socket);
    socket.once('close', () => sockets.delete(socket));
    void serve(socket);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    port: (server.address() as net.AddressInfo).port,
    accepted,
    backends,
    turnedAway: () => turnedAway,
    async [Symbol.asyncDispose]() {
      for (const backend of backends) backend.socket.destroy();
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };
}

function connectBoth(client: AcceptedClient, backend: Backend): void {
  for (const [name, value] of backend.parameters) client.socket.write(encodeParameterStatus(name, value));
  client.socket.write(encodeBackendKeyData(backend.processId, backend.secretKey));
  client.socket.write(backend.notices);
  client.socket.write(encodeReadyForQuery('I'));
  client.socket.on('close', () => backend.socket.destroy());
  backend.socket.on('close', () => client.socket.destroy());
  client.socket.pipe(backend.socket);
  backend.socket.pipe(client.socket);
}

/** Passes bytes on one at a time, both ways: every message arrives split at every byte. */
export async function drip(port: number): Promise<{ readonly port: number } & AsyncDisposable> {
  const sockets = new Set<net.Socket>();
  const pass = (from: net.Socket, to: net.Socket): void => {
    const waiting: number[] = [];
    let running = false;
    const next = (): void => {
      const byte = waiting.shift();
      running = byte !== undefined;
      if (byte === undefined || to.destroyed) return;
      to.write(Buffer.from([byte]), () => setImmediate(next));
    };
    from.on('data', (chunk: Buffer) => {
      for (const byte of chunk) waiting.push(byte);
      if (!running) next();
    });
    from.on('error', () => undefined);
    from.on('close', () => to.destroy());
  };
  const server = net.createServer((near) => {
    const far = net.connect({ port, host: '127.0.0.1', noDelay: true });
    near.setNoDelay(true);
    for (const socket of [near, far]) sockets.add(socket);
    pass(near, far);
    pass(far, near);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    port: (server.address() as net.AddressInfo).port,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };
}

/** A client that says bytes and collects the answer. */
export class RawClient {
  readonly socket: net.Socket;
  #received = Buffer.alloc(0);

  constructor(port: number) {
    this.socket = net.connect({ port, host: '127.0.0.1', noDelay: true });
    this.socket.on('data', (chunk: Buffer) => (this.#received = Buffer.concat([this.#received, chunk])));
    this.socket.on('error', () => undefined);
  }

  get received(): Buffer {
    return this.#received;
  }

  say(bytes: Buffer | string): this {
    this.socket.write(bytes);
    return this;
  }

  /** Waits until at least `count` bytes came, and takes them. */
  async take(count: number): Promise<Buffer> {
    while (this.#received.length < count) {
      if (this.socket.destroyed || this.socket.readableEnded)
        throw new Error('the proxy closed the connection');
      await Promise.race([once(this.socket, 'data'), once(this.socket, 'close'), once(this.socket, 'end')]);
    }
    const taken = this.#received.subarray(0, count);
    this.#received = this.#received.subarray(count);
    return taken;
  }

  /** One whole typed message. */
  async message(): Promise<{ readonly type: string; readonly payload: Buffer }> {
    const header = await this.take(5);
    const payload = await this.take(header.readInt32BE(1) - 4);
    return { type: header.toString('latin1', 0, 1), payload };
  }

  /** Everything until the proxy closed. */
  async rest(): Promise<Buffer> {
    if (!this.socket.destroyed) await once(this.socket, 'close');
    return this.#received;
  }

  /** The ErrorResponse with which the proxy ends, after whatever was taken before. */
  async farewell(): Promise<ParsedError> {
    const rest = await this.rest();
    if (rest.toString('latin1', 0, 1) !== 'E')
      throw new Error(`no ErrorResponse but ${rest.toString('hex')}`);
    return parseErrorFields(rest.subarray(5));
  }
}

export interface TestCertificate extends Disposable {
  readonly keyPem: string;
  readonly certPem: string;
  readonly certPath: string;
}

/** Self-signed for `localhost` alone, so that a client that checks the name of 127.0.0.1 must refuse it. */
export function makeCertificate(): TestCertificate {
  const folder = mkdtempSync(join(tmpdir(), 'understudy-tls-'));
  const keyPath = join(folder, 'key.pem');
  const certPath = join(folder, 'cert.pem');
  const request =
    'req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost';
  const names = ['-addext', 'subjectAltName=DNS:localhost', '-keyout', keyPath, '-out', certPath];
  execFileSync('openssl', [...request.split(' '), ...names], { stdio: 'ignore' });
  return {
    keyPem: readFileSync(keyPath, 'utf8'),
    certPem: readFileSync(certPath, 'utf8'),
    certPath,
    [Symbol.dispose]: () => rmSync(folder, { recursive: true, force: true }),
  };
}
