/** A proxy in front of a pair of databases, and a client that speaks the protocol byte by byte. */
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import net from 'node:net';
import type { StatementTap } from '../../src/core/capture-ports.js';
import type { DatabaseEndpoint, Side } from '../../src/core/ports.js';
import { WHOLE_DATABASE } from '../../src/core/ports.js';
import { systemClock } from '../../src/core/clock.js';
import { silentLog } from '../../src/core/log.js';
import { openBackend } from '../../src/proxy/backend/backend.js';
import type { Proxy, ProxyDeps, ProxyTarget } from '../../src/proxy/proxy-interface.js';
import { createProxy } from '../../src/proxy/proxy.js';
import { PROXY_DEFAULTS, type ProxySettings } from '../../src/proxy/settings.js';
import { SUPERUSER, SUPERUSER_PASSWORD } from '../../src/app/demo/embedded-server.js';
import type { DatabasePair } from '../support/servers.js';

function targetOf(side: Side, endpoint: DatabaseEndpoint): ProxyTarget {
  const { host, port, tls, database } = endpoint;
  return { endpoint: { side, host, port, tls }, database };
}

export interface RunningProxy extends AsyncDisposable {
  readonly proxy: Proxy;
  readonly port: number;
  readonly url: string;
  readonly database: string;
}

/** Takes passwords in the clear over loopback, so that one password opens both servers. Serves the source. */
export async function startProxy(
  pair: Pick<DatabasePair, 'source' | 'destination'>,
  settings: Partial<ProxySettings> = {},
  deps: Partial<ProxyDeps> = {},
): Promise<RunningProxy> {
  const proxy = createProxy(
    { ...PROXY_DEFAULTS, port: 0, authentication: 'cleartext', ...settings },
    {
      source: targetOf('source', pair.source),
      destination: targetOf('destination', pair.destination),
      verifiers: { lookup: () => Promise.resolve({ kind: 'plain', password: SUPERUSER_PASSWORD }) },
      tap: null,
      log: silentLog,
      clock: systemClock,
      customSettings: () => [],
      statefulFunctions: () => [],
      ...deps,
    },
  );
  const { port } = await proxy.start();
  proxy.setRoute(WHOLE_DATABASE, { side: 'source', epoch: 0 });
  const { database } = pair.source;
  return {
    proxy,
    port,
    database,
    url: `postgres://${SUPERUSER}:${SUPERUSER_PASSWORD}@127.0.0.1:${port}/${database}`,
    async [Symbol.asyncDispose]() {
      await proxy.stop({ drainTimeoutMs: 0 });
    },
  };
}

export interface Message {
  readonly type: string;
  readonly payload: Buffer;
}

/** Independent of the encoders under test. */
export function frame(type: string, ...parts: (string | Buffer | number[])[]): Buffer {
  const payload = Buffer.concat(
    parts.map((part) =>
      typeof part === 'string' ? Buffer.from(part) : Array.isArray(part) ? Buffer.from(part) : part,
    ),
  );
  const header = Buffer.alloc(5);
  header.write(type, 0, 'latin1');
  header.writeUInt32BE(payload.length + 4, 1);
  return Buffer.concat([header, payload]);
}

export const send = {
  query: (sql: string) => frame('Q', `${sql}\0`),
  parse: (sql: string, name = '') => frame('P', `${name}\0${sql}\0`, [0, 0]),
  bind: (values: string[] = [], statement = '', portal = '') => {
    const encoded = values.map((value) => {
      const length = Buffer.alloc(4);
      length.writeInt32BE(Buffer.byteLength(value));
      return Buffer.concat([length, Buffer.from(value)]);
    });
    return frame(
      'B',
      `${portal}\0${statement}\0`,
      [0, 0, values.length >> 8, values.length & 255],
      ...encoded,
      [0, 0],
    );
  },
  describe: (kind: 'S' | 'P', name = '') => frame('D', `${kind}${name}\0`),
  execute: (portal = '', rows = 0) => frame('E', `${portal}\0`, [0, 0, rows >> 8, rows & 255]),
  close: (kind: 'S' | 'P', name: string) => frame('C', `${kind}${name}\0`),
  sync: () => frame('S'),
  flush: () => frame('H'),
  copyData: (data: string) => frame('d', data),
  copyDone: () => frame('c'),
  copyFail: (why: string) => frame('f', `${why}\0`),
  terminate: () => frame('X'),
};

/** Speaks protocol 3.0 and keeps every message it is sent. */
export class RawClient implements AsyncDisposable {
  readonly socket: net.Socket;
  readonly messages: Message[] = [];
  /** Everything received since the last `bytes()`. */
  #received: Buffer[] = [];
  processId = 0;
  secret: Buffer = Buffer.alloc(0);
  closed = false;
  #check: () => void = () => undefined;
  #buffer = Buffer.alloc(0);
  readonly #port: number;

  private constructor(socket: net.Socket, port: number) {
    this.socket = socket;
    this.#port = port;
    socket.on('data', (chunk: Buffer) => this.#read(chunk));
    socket.on('error', () => undefined);
    socket.on('close', () => {
      this.closed = true;
      this.#check();
    });
  }

  /** Resolves once the server is ready, or has closed. */
  static async connect(
    port: number,
    database: string,
    parameters: Readonly<Record<string, string>> = {},
    user = SUPERUSER,
  ): Promise<RawClient> {
    const socket = net.connect({ port, host: '127.0.0.1', noDelay: true });
    await once(socket, 'connect');
    const client = new RawClient(socket, port);
    const pairs = Object.entries({ user, database, ...parameters }).map(
      ([key, value]) => `${key}\0${value}\0`,
    );
    const body = Buffer.concat([Buffer.from([0, 3, 0, 0]), Buffer.from(`${pairs.join('')}\0`)]);
    const length = Buffer.alloc(4);
    length.writeUInt32BE(body.length + 4);
    socket.write(Buffer.concat([length, body]));
    await client.readies(1);
    for (const { type, payload } of client.messages) {
      if (type !== 'K') continue;
      client.processId = payload.readUInt32BE(0);
      client.secret = Buffer.from(payload.subarray(4));
    }
    if (!client.closed) client.messages.length = 0;
    client.bytes();
    return client;
  }

  /** Straight to a server, past the proxy. */
  static async direct(target: DatabaseEndpoint): Promise<RawClient> {
    const backend = await openBackend(
      { side: 'source', host: target.host, port: target.port, tls: 'disable' },
      { user: SUPERUSER, database: target.database, parameters: new Map() },
      { kind: 'password', password: SUPERUSER_PASSWORD },
      { connectTimeoutMs: 10_000 },
    );
    const client = new RawClient(backend.socket, target.port);
    backend.socket.resume();
    return client;
  }

  /** What was received since the last call. */
  bytes(): Buffer {
    return Buffer.concat(this.#received.splice(0));
  }

  #read(chunk: Buffer): void {
    this.#received.push(chunk);
    this.#buffer = Buffer.concat([this.#buffer, chunk]);
    this.#split();
    this.#check();
  }

  #split(): void {
    while (this.#buffer.length >= 5) {
      const length = this.#buffer.readUInt32BE(1);
      if (this.#buffer.length < length + 1) return;
      const type = String.fromCharCode(this.#buffer[0] ?? 0);
      const payload = this.#buffer.subarray(5, length + 1);
      this.#buffer = this.#buffer.subarray(length + 1);
      if (type === 'R' && payload.readUInt32BE(0) === 3) {
        this.socket.write(frame('p', `${SUPERUSER_PASSWORD}\0`));
      } else {
        this.messages.push({ type, payload });
      }
    }
  }

  write(...frames: Buffer[]): void {
    this.socket.write(Buffer.concat(frames));
  }

  /** Waits until `count` ReadyForQuery have come in all since the connection or the last `take`. */
  async readies(count: number): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    await new Promise<void>((resolve, reject) => {
      this.#check = () => {
        if (this.closed || this.messages.filter(({ type }) => type === 'Z').length >= count) resolve();
      };
      timer = setTimeout(
        () => reject(new Error(`waiting for ${count} ReadyForQuery, got ${this.types}`)),
        60_000,
      );
      this.#check();
    }).finally(() => clearTimeout(timer));
  }

  /** The types of the messages so far, in order, as one string. */
  get types(): string {
    return this.messages.map(({ type }) => type).join('');
  }

  /** The messages so far, which are forgotten. */
  take(): Message[] {
    return this.messages.splice(0);
  }

  /**
   * Sends and waits for `count` ReadyForQuery; returns what came. Rejects where answers to something else are still
   * untaken: they would be counted as answers to this.
   */
  async run(frames: Buffer[], count = 1): Promise<Message[]> {
    if (this.types.includes('Z')) throw new Error(`untaken answers: ${this.types}`);
    this.write(...frames);
    await this.readies(count);
    return this.take();
  }

  /** First column of each row of a simple query. */
  async column(sql: string): Promise<(string | null)[]> {
    const messages = await this.run([send.query(sql)]);
    const error = messages.find(({ type }) => type === 'E');
    if (error !== undefined) throw new Error(errorField(error, 'M'));
    return messages.filter(({ type }) => type === 'D').map(firstColumn);
  }

  async cancel(): Promise<void> {
    const socket = net.connect({ port: this.#port, host: '127.0.0.1' });
    await once(socket, 'connect');
    const body = Buffer.alloc(16);
    body.writeUInt32BE(16, 0);
    body.writeUInt32BE(80877102, 4);
    body.writeUInt32BE(this.processId, 8);
    this.secret.copy(body, 12);
    socket.end(body);
    socket.resume();
    await once(socket, 'close');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.closed) return;
    this.socket.destroy();
    await once(this.socket, 'close').catch(() => undefined);
  }
}

export function firstColumn({ payload }: Message): string | null {
  const length = payload.readInt32BE(2);
  return length === -1 ? null : payload.toString('utf8', 6, 6 + length);
}

/** A field of an ErrorResponse: C for the SQLSTATE, M for the message. */
export function errorField({ payload }: Message, code: string): string {
  for (let at = 0; at < payload.length && payload[at] !== 0;) {
    const end = payload.indexOf(0, at);
    if (payload[at] === code.charCodeAt(0)) return payload.toString('utf8', at + 1, end);
    at = end + 1;
  }
  return '';
}

/** SQLSTATEs of the errors among some messages. */
export function sqlStates(messages: readonly Message[]): string[] {
  return messages.filter(({ type }) => type === 'E').map((message) => errorField(message, 'C'));
}

export function tags(messages: readonly Message[]): string[] {
  return messages
    .filter(({ type }) => type === 'C')
    .map(({ payload }) => payload.toString('utf8', 0, payload.length - 1));
}

/** Transaction status of each ReadyForQuery. */
export function statuses(messages: readonly Message[]): string {
  return messages
    .filter(({ type }) => type === 'Z')
    .map(({ payload }) => payload.toString('latin1'))
    .join('');
}

export function uniqueName(prefix: string): string {
  return `${prefix}_${randomBytes(4).toString('hex')}`;
}

export interface Offered {
  readonly text: string;
  readonly rows: number;
  readonly failed: boolean;
  readonly status: number;
  readonly bytesToServer: number;
  readonly bytesToClient: number;
  readonly endedAtMs: number;
  /** SQLSTATE class, as text. */
  readonly errorClass: string;
  readonly parameters: string;
}

export function recordingTap(): StatementTap & { readonly offered: Offered[] } {
  const offered: Offered[] = [];
  return {
    offered,
    offer(
      _id,
      text,
      _micros,
      rows,
      bytesToServer,
      bytesToClient,
      failed,
      status,
      endedAtMs,
      code,
      parameters,
    ) {
      offered.push({
        text: text.toString(),
        rows,
        failed,
        status,
        bytesToServer,
        bytesToClient,
        endedAtMs,
        errorClass: code === 0 ? '' : String.fromCharCode(code & 0xff, code >>> 8),
        parameters: parameters.toString('latin1'),
      });
      return true;
    },
  };
}
