/**
 * One recorded session on a connection of its own: sends what the client sent, piece by piece, each not before its time and
 * not before the answers are here that the client had when it sent it.
 *
 * What comes back is followed by the same code that followed it while recording, so that outcomes are counted alike.
 *
 * States: connecting → replaying → ended. A connection that is refused or lost, or answers that don't come within the
 * time allowed, end this session alone, with the reason.
 */
import { asUnderstudyError, UnderstudyError } from '../../core/errors.js';
import type { StatementTap } from '../../core/capture-ports.js';
import type { DatabaseEndpoint } from '../../core/ports.js';
import { openBackend, type Backend, type BackendEndpoint } from '../../proxy/backend/backend.js';
import { ClientStream } from '../../proxy/session/client-stream.js';
import { OwnExchanges } from '../../proxy/session/own-exchanges.js';
import { ResponseTracker } from '../../proxy/session/response-tracker.js';
import { ServerStream } from '../../proxy/session/server-stream.js';
import { StatementLog } from '../../proxy/session/statement-log.js';
import { encodeTerminate } from '../../wire/postgres/messages.js';
import { StatementText } from '../../wire/postgres/statement-text.js';

const FRAME_BYTES_MAX = 1_073_741_824;
const TEXT_BYTES_MAX = 16_384;
const CONNECT_TIMEOUT_MS = 30_000;

/** Startup parameters that name who and where, which the replay decides itself. */
const NOT_REPLAYED: ReadonlySet<string> = new Set(['user', 'database', 'replication']);

export interface Piece {
  /** Microseconds since the recording began. */
  readonly micros: number;
  readonly inFlight: number;
  readonly bytes: Buffer;
}

export interface ReplaySessionOptions {
  readonly id: number;
  readonly endpoint: DatabaseEndpoint;
  readonly parameters: Readonly<Record<string, string>>;
  readonly tap: StatementTap;
  /** Resolves when a piece of that time may be sent. */
  readonly due: (micros: number) => Promise<void>;
  /** The session has taken a piece from what was read ahead. */
  readonly taken: (bytes: number) => void;
  /** Without an answer for that long, the session is given up. */
  readonly answerTimeoutMs: number;
  readonly signal: AbortSignal;
}

export class ReplaySession {
  readonly #options: ReplaySessionOptions;
  readonly #pieces: Piece[] = [];
  #wake: () => void = () => undefined;
  #noMore = false;
  #lost: UnderstudyError | null = null;

  constructor(options: ReplaySessionOptions) {
    this.#options = options;
  }

  get waiting(): number {
    return this.#pieces.length;
  }

  push(piece: Piece): void {
    this.#pieces.push(piece);
    this.#wake();
  }

  /** Nothing follows what was pushed. */
  finish(): void {
    this.#noMore = true;
    this.#wake();
  }

  /** Resolves when all was sent and answered; throws what ended it early. */
  async run(): Promise<void> {
    try {
      await this.#replay(await this.#connect());
    } finally {
      for (const piece of this.#pieces.splice(0)) this.#options.taken(piece.bytes.length);
    }
  }

  async #replay(backend: Backend): Promise<void> {
    const exchange = this.#exchange(backend);
    const { socket } = backend;
    const onAbort = (): void => this.#lose(new UnderstudyError('cancelled', 'the replay was stopped'));
    this.#options.signal.addEventListener('abort', onAbort);
    try {
      await this.#send(exchange);
      await this.#until(() => exchange.tracker.sent === exchange.tracker.answered || exchange.ended());
    } finally {
      this.#options.signal.removeEventListener('abort', onAbort);
      if (!exchange.client.terminated && !socket.destroyed) socket.end(encodeTerminate());
      socket.destroySoon();
    }
  }

  #connect(): Promise<Backend> {
    const { endpoint, parameters, signal } = this.#options;
    const wanted = Object.entries(parameters).filter(([name]) => !NOT_REPLAYED.has(name));
    const place: BackendEndpoint = { side: 'destination', ...endpoint };
    return openBackend(
      place,
      { user: endpoint.user, database: endpoint.database, parameters: new Map(wanted) },
      endpoint.password === undefined ? { kind: 'none' } : { kind: 'password', password: endpoint.password },
      { connectTimeoutMs: CONNECT_TIMEOUT_MS, signal },
    );
  }

  #exchange(backend: Backend): Exchange {
    const { socket } = backend;
    const { id, tap } = this.#options;
    const tracker = new ResponseTracker();
    const log = new StatementLog(tap, id, TEXT_BYTES_MAX, () => performance.now());
    const client = new ClientStream({
      tracker,
      log,
      text: new StatementText(),
      types: null,
      frameBytesMax: FRAME_BYTES_MAX,
      forward: (bytes) => void socket.write(bytes),
    });
    const server = new ServerStream({
      tracker,
      log,
      own: new OwnExchanges(TEXT_BYTES_MAX),
      frameBytesMax: FRAME_BYTES_MAX,
      replyBytesMax: TEXT_BYTES_MAX,
      oids: null,
      types: null,
      forward: () => undefined,
      onParameter: () => undefined,
      onError: () => undefined,
    });
    let ended = false;
    socket.on('data', (chunk: Buffer) => {
      try {
        server.walker.walk(chunk);
      } catch (error) {
        this.#lose(asUnderstudyError(error, 'protocol-violation', 'reading the server'));
      }
      this.#wake();
    });
    socket.on('drain', () => this.#wake());
    socket.on('error', () => undefined);
    socket.on('close', () => {
      ended = true;
      if (!client.terminated)
        this.#lose(new UnderstudyError('backend-refused', 'the server closed the connection'));
      this.#wake();
    });
    socket.resume();
    return { client, tracker, socket, ended: () => ended };
  }

  async #send({ client, tracker, socket }: Exchange): Promise<void> {
    for (;;) {
      if (this.#pieces.length === 0 && !this.#noMore) await this.#next();
      const piece = this.#pieces[0];
      if (piece === undefined) {
        if (this.#noMore) return;
        continue;
      }
      await this.#options.due(piece.micros);
      await this.#until(() => tracker.sent - tracker.answered <= piece.inFlight && !socket.writableNeedDrain);
      this.#pieces.shift();
      this.#options.taken(piece.bytes.length);
      client.walker.walk(piece.bytes);
    }
  }

  /** Waits for another piece, however long that takes. */
  async #next(): Promise<void> {
    while (this.#pieces.length === 0 && !this.#noMore) {
      if (this.#lost !== null) throw this.#lost;
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }

  /** Waits for the server; throws where it does not get on. */
  async #until(condition: () => boolean): Promise<void> {
    const { answerTimeoutMs } = this.#options;
    const deadline = setTimeout(
      () => this.#lose(new UnderstudyError('limit-reached', `no answer within ${answerTimeoutMs} ms`)),
      answerTimeoutMs,
    );
    try {
      while (!condition()) {
        if (this.#lost !== null) throw this.#lost;
        await new Promise<void>((resolve) => (this.#wake = resolve));
      }
    } finally {
      clearTimeout(deadline);
    }
  }

  #lose(error: UnderstudyError): void {
    this.#lost ??= error;
    this.#wake();
  }
}

interface Exchange {
  readonly client: ClientStream;
  readonly tracker: ResponseTracker;
  readonly socket: Backend['socket'];
  readonly ended: () => boolean;
}
