/**
 * One replication stream: a walsender's connection from START_REPLICATION to its end.
 *
 * States: opening → streaming → ended. `ended` settles exactly once, whatever ends it: our `close`, the server's
 * shutdown, a lost socket, a malformed message, or a sink that throws.
 *
 * Invariants
 * - The sink is called synchronously from the socket's data handler, so that no message outlives the parser's buffer.
 * - `flushed` only ever grows, and only the owner raises it: what it says is durable may be discarded by the server.
 * - The server is answered at least every `statusIntervalMs`, also while reading is paused, and at once when it asks
 *   (a server that shuts down waits for that answer).
 */
import { pg } from '../../core/pg.js';
import type { Clock } from '../../core/clock.js';
import type { DatabaseEndpoint, Side } from '../../core/ports.js';
import { connectControl, quoteLiteral } from '../../core/postgres.js';
import { formatLsn } from '../../core/position.js';
import { asUnderstudyError, UnderstudyError } from '../../core/errors.js';
import { CopyBothReader, type CopyBothHandlers } from './copy-both.js';
import { decodePgOutput, type PgOutputMessage } from '../../wire/postgres/pgoutput.js';
import {
  isXLogData,
  readReplicationFrame,
  writeStandbyStatus,
  XLOG_DATA_HEADER_BYTES,
} from '../../wire/postgres/replication.js';

export interface StreamSink {
  /** `bytes`: the message's size on the wire. */
  onMessage(message: PgOutputMessage, bytes: number): void;
  /** Everything committed before `walEnd` has been sent, unless a transaction is being received. */
  onKeepalive(walEnd: bigint): void;
}

export interface StreamOptions {
  readonly slot: string;
  readonly publication: string;
  /** The stream begins with the first transaction that commits at or after it. */
  readonly from: bigint;
  readonly statusIntervalMs: number;
  readonly clock: Clock;
  /** Looks at the server on the stream's connection before it streams; what it throws, `open` throws. */
  readonly prove?: (client: pg.Client) => Promise<void>;
}

/** The server's CopyData framing: type byte and a length that counts itself. */
function copyData(payload: Buffer): Buffer {
  const header = Buffer.alloc(5);
  header[0] = 0x64;
  header.writeInt32BE(payload.length + 4, 1);
  return Buffer.concat([header, payload]);
}

/** undefined_object: the slot or publication is gone. object_not_in_prerequisite_state: the slot was invalidated.
 *  undefined_file: its log was removed. */
const LOST_SQLSTATES: readonly string[] = ['42704', '55000', '58P01'];

/** internal_error, program_limit_exceeded: what a walsender says of a change whose text would exceed 1 GB. */
const UNSENDABLE_SQLSTATES: readonly string[] = ['XX000', '54000'];
/** In an error's details: the server could not send what its log holds next. Trying again may help, or never will. */
export const UNSENDABLE = 'unsendable';

function streamError(side: Side, slot: string, error: unknown): UnderstudyError {
  if (error instanceof UnderstudyError) return error;
  if (error instanceof pg.DatabaseError && LOST_SQLSTATES.includes(error.code ?? '')) {
    return new UnderstudyError('slot-lost', `replication slot ${slot} on the ${side}: ${error.message}`, {
      cause: error,
      advice: `The shadow can’t follow the ${side} any further: run \`understudy remove\`, empty the destination, and start again.`,
      details: { sqlState: error.code ?? '' },
    });
  }
  if (error instanceof pg.DatabaseError && UNSENDABLE_SQLSTATES.includes(error.code ?? '')) {
    const sqlState = error.code ?? '';
    return new UnderstudyError(
      'stream-broken',
      `the ${side} can’t send what its log holds next (SQLSTATE ${sqlState})`,
      {
        cause: error,
        retryable: true,
        advice: `A change whose text exceeds 1 GB, as a bytea of over 512 MB does, can’t be sent by any server: see “What rows may hold” in docs/shadow.md, and the ${side}’s own log.`,
        details: { sqlState, [UNSENDABLE]: true },
      },
    );
  }
  return asUnderstudyError(error, 'stream-broken', `the replication stream from the ${side}`);
}

/** Drives the CopyBoth exchange as pg's active query. */
class StreamQuery implements pg.Submittable {
  connection: pg.Connection | undefined;
  readonly #text: string;
  readonly #handlers: CopyBothHandlers;
  readonly #onEnd: (error: unknown) => void;
  /** pg overwrites it where a query timeout is configured. */
  callback = (): void => undefined;

  constructor(text: string, handlers: CopyBothHandlers, onEnd: (error: unknown) => void) {
    this.#text = text;
    this.#handlers = handlers;
    this.#onEnd = onEnd;
  }

  submit(connection: pg.Connection): void {
    this.connection = connection;
    // Reads by itself from here on; what is not the stream's comes back through the handlers below.
    void new CopyBothReader(connection, this.#handlers);
    connection.query(this.#text);
  }

  handleError(error: unknown): void {
    this.#onEnd(error);
  }

  handleCommandComplete(): void {
    this.#onEnd(new UnderstudyError('stream-broken', 'the server ended the replication stream'));
  }

  handleReadyForQuery(): void {
    this.#onEnd(new UnderstudyError('stream-broken', 'the server ended the replication stream'));
  }
}

export class ReplicationStream {
  /** Resolves with the reason once the stream is over; never rejects. */
  readonly ended: Promise<UnderstudyError>;
  readonly #side: Side;
  readonly #client: pg.Client;
  readonly #options: StreamOptions;
  readonly #sink: StreamSink;
  readonly #query: StreamQuery;
  #settleEnded: (reason: UnderstudyError) => void = () => undefined;
  #over = false;
  #received: bigint;
  #flushed: bigint;
  #timer: NodeJS.Timeout | undefined;

  private constructor(
    side: Side,
    client: pg.Client,
    options: StreamOptions,
    sink: StreamSink,
    onStart: () => void,
  ) {
    this.#side = side;
    this.#client = client;
    this.#options = options;
    this.#sink = sink;
    this.#received = options.from;
    this.#flushed = options.from;
    this.ended = new Promise((resolve) => (this.#settleEnded = resolve));
    const publications = quoteLiteral(`"${options.publication}"`);
    this.#query = new StreamQuery(
      `START_REPLICATION SLOT "${options.slot}" LOGICAL ${formatLsn(options.from)} ` +
        `(proto_version '1', publication_names ${publications}, messages 'true')`,
      { onStart, onFrame: (bytes, start, end) => this.#onFrame(bytes, start, end) },
      (error) => this.#end(error),
    );
  }

  /** Resolves once the server streams. Throws `slot-lost`, `stream-broken` or `…-unreachable`. */
  static async open(
    side: Side,
    endpoint: DatabaseEndpoint,
    options: StreamOptions,
    sink: StreamSink,
  ): Promise<ReplicationStream> {
    const client = await connectControl(side, endpoint, { purpose: 'stream', replication: true });
    let started = (): void => undefined;
    const start = new Promise<void>((resolve) => (started = resolve));
    const stream = new ReplicationStream(side, client, options, sink, () => started());
    client.on('error', (error) => stream.#end(error));
    client.on('end', () => stream.#end(new UnderstudyError('stream-broken', 'the connection was closed')));
    try {
      await options.prove?.(client);
    } catch (error) {
      stream.#end(error);
      throw error;
    }
    client.query(stream.#query);
    const failure = await Promise.race([start, stream.ended]);
    if (failure !== undefined) throw failure;
    stream.#timer = setInterval(() => stream.#sendStatus(), options.statusIntervalMs);
    return stream;
  }

  /** Up to where the log has arrived. */
  get received(): bigint {
    return this.#received;
  }

  /** Everything before `flushed` is durable on the other side. Told to the server with the next status. */
  acknowledge(flushed: bigint): void {
    if (flushed > this.#flushed) this.#flushed = flushed;
    if (flushed > this.#received) this.#received = flushed;
  }

  /** Stops reading the socket; the server then waits. Status messages go on. */
  pause(): void {
    this.#query.connection?.stream.pause();
  }

  resume(): void {
    this.#query.connection?.stream.resume();
  }

  /** Tells the server the last position and leaves. Idempotent. */
  async close(): Promise<void> {
    if (!this.#over) {
      this.#sendStatus();
      const { connection } = this.#query;
      const gone = new Promise<void>((resolve) => this.#client.once('end', () => resolve()));
      connection?.stream.resume();
      connection?.end();
      const impatience = new AbortController();
      await Promise.race([
        gone,
        this.#options.clock.sleep(1000, impatience.signal).catch(() => undefined),
      ]).finally(() => impatience.abort());
      this.#end(new UnderstudyError('stream-broken', 'the stream was closed'));
    }
    await this.#client.end().catch(() => undefined);
  }

  #onFrame(bytes: Buffer, start: number, end: number): void {
    if (this.#over) return;
    try {
      if (isXLogData(bytes, start, end)) {
        this.#sink.onMessage(decodePgOutput(bytes, start + XLOG_DATA_HEADER_BYTES, end), end - start);
        return;
      }
      const content = readReplicationFrame(bytes.subarray(start, end));
      if (content.kind === 'keepalive') {
        if (content.walEnd > this.#received) this.#received = content.walEnd;
        this.#sink.onKeepalive(content.walEnd);
        if (content.replyRequested) this.#sendStatus();
      } else {
        this.#sink.onMessage(decodePgOutput(content.data), end - start);
      }
    } catch (error) {
      this.#end(asUnderstudyError(error, 'internal', 'reading the replication stream'));
    }
  }

  #sendStatus(): void {
    const stream = this.#query.connection?.stream;
    if (this.#over || stream === undefined || !stream.writable) return;
    const at = this.#options.clock.now();
    stream.write(copyData(writeStandbyStatus({ received: this.#received, flushed: this.#flushed, at })));
  }

  #end(reason: unknown): void {
    if (this.#over) return;
    this.#over = true;
    clearInterval(this.#timer);
    this.#settleEnded(streamError(this.#side, this.#options.slot, reason));
    // Destroys the socket: the server's side of the exchange can't be ended in order any more.
    void this.#client.end().catch(() => undefined);
  }
}
