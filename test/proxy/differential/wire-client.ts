/**
 * A client that speaks the protocol byte by byte, to a server or to the proxy alike, and keeps every message it is
 * sent from AuthenticationOk on; of a long one only its length and a digest.
 */
import { createHash, randomBytes, type Hash } from 'node:crypto';
import { once } from 'node:events';
import net from 'node:net';
import { SUPERUSER, SUPERUSER_PASSWORD } from '../../../src/app/demo/embedded-server.js';
import { ScramClientExchange, deriveScramKeys } from '../../../src/wire/postgres/scram.js';
import { frame } from '../proxy-support.js';

/** Payloads up to this length are kept. */
const KEPT_BYTES = 65_536;

export interface Received {
  readonly type: string;
  readonly bytes: number;
  /** Null where it was too long to be kept. */
  readonly payload: Buffer | null;
  readonly digest: string;
}

export interface Login {
  readonly user?: string;
  readonly password?: string;
  readonly database: string;
  readonly parameters?: Readonly<Record<string, string>>;
}

export class WireClient implements AsyncDisposable {
  readonly socket: net.Socket;
  readonly #port: number;
  readonly #login: Login;
  readonly messages: Received[] = [];
  closed = false;
  processId = 0;
  secret: Buffer = Buffer.alloc(0);
  /** How many of each type were waited for. */
  readonly #seen = new Map<string, number>();
  #authenticated = false;
  #scram: ScramClientExchange | null = null;
  #check: () => void = () => undefined;
  #header = Buffer.alloc(0);
  #type = '';
  #bytes = 0;
  #left = 0;
  #parts: Buffer[] = [];
  #hash: Hash | null = null;

  private constructor(socket: net.Socket, port: number, login: Login) {
    this.socket = socket;
    this.#port = port;
    this.#login = login;
    socket.on('data', (chunk: Buffer) => {
      this.#read(chunk);
      this.#check();
    });
    socket.on('error', () => undefined);
    socket.on('close', () => {
      this.closed = true;
      this.#check();
    });
  }

  /** Resolves once the server is ready for queries, or has closed. */
  static async connect(port: number, login: Login): Promise<WireClient> {
    const client = await WireClient.open(port, login);
    client.startUp();
    await client.until('Z');
    return client;
  }

  /** Only the connection; nothing is said. */
  static async open(port: number, login: Login): Promise<WireClient> {
    const socket = net.connect({ port, host: '127.0.0.1', noDelay: true });
    await once(socket, 'connect');
    return new WireClient(socket, port, login);
  }

  /** Sends the startup message; passwords are answered as they are asked for. */
  startUp(): void {
    const pairs = Object.entries({
      user: this.#login.user ?? SUPERUSER,
      database: this.#login.database,
      ...this.#login.parameters,
    });
    const body = Buffer.concat([
      Buffer.from([0, 3, 0, 0]),
      Buffer.from(`${pairs.map(([key, value]) => `${key}\0${value}\0`).join('')}\0`),
    ]);
    const length = Buffer.alloc(4);
    length.writeUInt32BE(body.length + 4);
    this.socket.write(Buffer.concat([length, body]));
  }

  /**
   * Waits until `times` messages of `type` have come beyond those of its type already waited for, or the peer has closed.
   * Returns false where neither happened in time.
   */
  async until(type: string, times = 1, timeoutMs = 60_000): Promise<boolean> {
    const wanted = (this.#seen.get(type) ?? 0) + times;
    this.#seen.set(type, wanted);
    return await this.#wait(
      () => this.closed || this.messages.filter((message) => message.type === type).length >= wanted,
      timeoutMs,
    );
  }

  async untilClosed(timeoutMs = 60_000): Promise<boolean> {
    return await this.#wait(() => this.closed, timeoutMs);
  }

  async #wait(done: () => boolean, timeoutMs: number): Promise<boolean> {
    if (done()) return true;
    let timer: NodeJS.Timeout | undefined;
    const found = await new Promise<boolean>((resolve) => {
      this.#check = () => {
        if (done()) resolve(true);
      };
      timer = setTimeout(() => resolve(false), timeoutMs);
    });
    clearTimeout(timer);
    this.#check = () => undefined;
    return found;
  }

  /** First value of the first row of a query that is left out of the messages. */
  async aside(sql: string): Promise<string> {
    const before = this.messages.length;
    this.socket.write(frame('Q', `${sql}\0`));
    await this.until('Z');
    this.#seen.set('Z', (this.#seen.get('Z') ?? 1) - 1);
    const [, row] = this.messages.splice(before);
    return row?.payload?.toString('latin1', 6) ?? '';
  }

  /** Forgets the messages so far. */
  forget(): void {
    this.messages.length = 0;
    this.#seen.clear();
  }

  async cancel(): Promise<void> {
    const socket = net.connect({ port: this.#port, host: '127.0.0.1' });
    await once(socket, 'connect');
    const body = Buffer.alloc(12 + this.secret.length);
    body.writeUInt32BE(body.length, 0);
    body.writeUInt32BE(80877102, 4);
    body.writeUInt32BE(this.processId, 8);
    this.secret.copy(body, 12);
    socket.end(body);
    socket.resume();
    await once(socket, 'close');
  }

  #read(chunk: Buffer): void {
    let at = 0;
    while (at < chunk.length) {
      if (this.#left === 0) {
        const take = Math.min(5 - this.#header.length, chunk.length - at);
        this.#header = Buffer.concat([this.#header, chunk.subarray(at, at + take)]);
        at += take;
        if (this.#header.length < 5) return;
        this.#type = String.fromCharCode(this.#header[0] ?? 0);
        this.#bytes = this.#header.readUInt32BE(1) - 4;
        this.#left = this.#bytes;
        this.#header = Buffer.alloc(0);
        this.#parts = [];
        this.#hash = this.#bytes > KEPT_BYTES ? createHash('md5') : null;
        if (this.#left === 0) this.#message();
        continue;
      }
      const piece = chunk.subarray(at, at + this.#left);
      if (this.#hash === null) this.#parts.push(Buffer.from(piece));
      else this.#hash.update(piece);
      at += piece.length;
      this.#left -= piece.length;
      if (this.#left === 0) this.#message();
    }
  }

  #message(): void {
    const type = this.#type;
    const payload = this.#hash === null ? Buffer.concat(this.#parts) : null;
    if (!this.#authenticated && type === 'R' && payload !== null) {
      if (payload.readUInt32BE(0) !== 0) {
        void this.#authenticate(payload);
        return;
      }
      this.#authenticated = true;
    }
    if (type === 'K' && payload !== null) {
      this.processId = payload.readUInt32BE(0);
      this.secret = payload.subarray(4);
    }
    this.messages.push({ type, bytes: this.#bytes, payload, digest: this.#hash?.digest('hex') ?? '' });
  }

  async #authenticate(payload: Buffer): Promise<void> {
    const password = this.#login.password ?? SUPERUSER_PASSWORD;
    const data = payload.toString('latin1', 4);
    switch (payload.readUInt32BE(0)) {
      case 3:
        this.socket.write(frame('p', `${password}\0`));
        return;
      case 10: {
        this.#scram = new ScramClientExchange(randomBytes(18).toString('base64'));
        const first = this.#scram.first();
        this.socket.write(frame('p', 'SCRAM-SHA-256\0', [0, 0, 0, first.length], first));
        return;
      }
      case 11: {
        if (this.#scram === null) return;
        const { salt, iterations } = this.#scram.readChallenge(data);
        const keys = await deriveScramKeys(password, salt, iterations);
        this.socket.write(frame('p', this.#scram.prove(keys)));
        return;
      }
      default:
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.closed) return;
    this.socket.destroy();
    await this.untilClosed();
  }
}
