/**
 * COPY between two connections without looking at a row: the frames that one server sends are those the other wants.
 * https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-COPY
 *
 * A read takes the socket's data over from pg from its statement on, and gives it back with the first message that is
 * no row's: pg's own parser would make an object of each row.
 *
 * States of a read: reading (ours) → ended (pg's again, which is told the rest). A connection lost or an error of the
 * server's reach the query through pg in either state.
 *
 * Invariant: buffers handed on are the socket's own, which Node makes anew for every read and never writes to again.
 */
import type { Duplex } from 'node:stream';
import type pg from 'pg';
import { UnderstudyError } from '../../core/errors.js';
import { statementError, type Session } from './statement.js';

const COPY_DATA = 0x64; // d
const COPY_OUT_RESPONSE = 0x48; // H
const NOTICE = 0x4e; // N
const PARAMETER_STATUS = 0x53; // S
const NOTIFICATION = 0x41; // A
const FRAME_HEADER_BYTES = 5;
/** The client's CopyDone: type and a length that counts itself. */
const COPY_DONE = Buffer.from([0x63, 0, 0, 0, 4]);
/** The client's CopyFail, with a reason for the server's log. */
const COPY_FAIL = Buffer.concat([Buffer.from([0x66, 0, 0, 0, 20]), Buffer.from('the read failed\0')]);

type DataListener = (data: Buffer) => void;

/** Takes CopyData frames, cut anywhere but whole in sum. False asks the reader to wait until `onDrain` is called. */
export interface FrameSink {
  write(frames: Buffer): boolean;
  onDrain(resume: () => void): void;
}

/** COPY … TO STDOUT as an active query of pg’s; exported for its test alone. */
export class CopyOut implements pg.Submittable {
  readonly done: Promise<number>;
  /** pg overwrites it where a query timeout is configured. */
  callback = (): void => undefined;
  readonly #text: string;
  readonly #sink: FrameSink;
  #resolve: (rows: number) => void = () => undefined;
  #reject: (error: unknown) => void = () => undefined;
  #stream: Duplex | undefined;
  #pgListener: DataListener | undefined;
  /** Of a header that is cut by the end of a read. */
  readonly #header = Buffer.alloc(FRAME_HEADER_BYTES);
  #headerBytes = 0;
  /** Of the frame at hand: what is still to come of its body. */
  #bodyLeft = 0;
  #type = 0;
  /** A message that is pg's, until it is whole. */
  #foreign: Buffer[] = [];
  #rows = 0;
  #begun = 0;

  constructor(text: string, sink: FrameSink) {
    this.#text = text;
    this.#sink = sink;
    this.done = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
  }

  /** Frames that began so far: one for each row, and one at the end. */
  get begun(): number {
    return this.#begun;
  }

  submit(connection: pg.Connection): void {
    const { stream } = connection;
    const [listener] = stream.listeners('data') as DataListener[];
    if (listener === undefined) {
      this.#reject(new UnderstudyError('internal', 'the connection is not read by pg'));
      return;
    }
    this.#stream = stream;
    this.#pgListener = listener;
    stream.on('data', this.#onData);
    stream.removeListener('data', listener);
    connection.query(this.#text);
  }

  readonly #onData = (data: Buffer): void => {
    let at = 0;
    /** Where the run of frames begins that goes on as it is. */
    let from = 0;
    const flush = (until: number): void => {
      if (until > from) this.#hand(data.subarray(from, until));
    };
    while (at < data.length) {
      if (this.#bodyLeft > 0) {
        const step = Math.min(this.#bodyLeft, data.length - at);
        if (this.#type !== COPY_DATA) this.#foreign.push(data.subarray(at, at + step));
        at += step;
        this.#bodyLeft -= step;
        if (this.#type !== COPY_DATA) {
          from = at;
          if (this.#bodyLeft === 0) this.#toPg();
        }
        continue;
      }
      if (this.#headerBytes === 0 && data[at] === COPY_DATA && data.length - at >= FRAME_HEADER_BYTES) {
        // The common case, without a copy: a header that lies whole in this read.
        this.#begin(COPY_DATA, data.readInt32BE(at + 1));
        at += FRAME_HEADER_BYTES;
        continue;
      }
      if (this.#headerBytes === 0) {
        flush(at);
        from = at;
        const type = data[at] ?? 0;
        if (!isBetween(type)) {
          this.#end(data.subarray(at));
          return;
        }
      }
      const step = Math.min(FRAME_HEADER_BYTES - this.#headerBytes, data.length - at);
      data.copy(this.#header, this.#headerBytes, at, at + step);
      this.#headerBytes += step;
      at += step;
      from = at;
      if (this.#headerBytes < FRAME_HEADER_BYTES) continue;
      this.#headerBytes = 0;
      this.#begin(this.#header[0] ?? 0, this.#header.readInt32BE(1));
      const header = Buffer.from(this.#header);
      if (this.#type === COPY_DATA) this.#hand(header);
      else this.#foreign.push(header);
      if (this.#type !== COPY_DATA && this.#bodyLeft === 0) this.#toPg();
    }
    flush(data.length);
  };

  #begin(type: number, length: number): void {
    if (length < 4) {
      this.#stream?.destroy(new UnderstudyError('protocol-violation', 'a frame with a length below its own'));
      return;
    }
    this.#type = type;
    this.#bodyLeft = length - 4;
    if (type === COPY_DATA) this.#begun += 1;
  }

  #hand(frames: Buffer): void {
    if (this.#sink.write(frames)) return;
    const stream = this.#stream;
    stream?.pause();
    this.#sink.onDrain(() => stream?.resume());
  }

  /** A message between the rows that is none of the copy's: its answer's beginning, a notice. */
  #toPg(): void {
    const message = Buffer.concat(this.#foreign);
    this.#foreign = [];
    if (this.#type !== COPY_OUT_RESPONSE) this.#pgListener?.(message);
  }

  #end(rest: Buffer): void {
    const { stream, listener } = { stream: this.#stream, listener: this.#pgListener };
    if (stream === undefined || listener === undefined) return;
    stream.on('data', listener);
    stream.removeListener('data', this.#onData);
    listener(rest);
  }

  handleCommandComplete(message: { readonly text: string }): void {
    this.#rows = rowsOf(message.text);
  }

  handleReadyForQuery(): void {
    this.#resolve(this.#rows);
  }

  handleError(error: unknown): void {
    this.#reject(error);
  }
}

function isBetween(type: number): boolean {
  return (
    type === COPY_DATA ||
    type === COPY_OUT_RESPONSE ||
    type === NOTICE ||
    type === PARAMETER_STATUS ||
    type === NOTIFICATION
  );
}

/** `COPY 5` */
function rowsOf(tag: string): number {
  return Number(/^COPY (\d+)$/.exec(tag)?.[1] ?? 0);
}

/** COPY … FROM STDIN; `feed` is called once the server wants data, and ends by `CopyDone`. */
class CopyIn implements pg.Submittable {
  readonly done: Promise<number>;
  callback = (): void => undefined;
  readonly #text: string;
  readonly #feed: (stream: Duplex) => void;
  #resolve: (rows: number) => void = () => undefined;
  #reject: (error: unknown) => void = () => undefined;
  #rows = 0;

  constructor(text: string, feed: (stream: Duplex) => void) {
    this.#text = text;
    this.#feed = feed;
    this.done = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
  }

  submit(connection: pg.Connection): void {
    connection.query(this.#text);
  }

  handleCopyInResponse(connection: pg.Connection): void {
    this.#feed(connection.stream);
  }

  handleCommandComplete(message: { readonly text: string }): void {
    this.#rows = rowsOf(message.text);
  }

  handleReadyForQuery(): void {
    this.#resolve(this.#rows);
  }

  handleError(error: unknown): void {
    this.#reject(error);
  }
}

export interface CopiedFrames {
  readonly frames: readonly Buffer[];
  readonly bytes: number;
  readonly rows: number;
}

export interface BoundedFrames extends CopiedFrames {
  /** Rows that lay within the bound, where there were too many bytes to be held; null where all are held. */
  readonly within: number | null;
}

/**
 * Collects the frames of a `COPY … TO STDOUT`. Past `bytesMax` they are let go, and the result holds none. Throws `…-query-failed` or `…-unreachable`.
 */
export async function copyOut(
  session: Session,
  sql: string,
  what: string,
  bytesMax = Infinity,
): Promise<BoundedFrames> {
  const frames: Buffer[] = [];
  let bytes = 0;
  let within: number | null = null;
  const query: CopyOut = new CopyOut(sql, {
    write: (data) => {
      bytes += data.length;
      if (bytes <= bytesMax) {
        frames.push(data);
      } else {
        within ??= Math.max(0, query.begun - 1);
        frames.length = 0;
      }
      return true;
    },
    onDrain: (resume) => resume(),
  });
  session.client.query(query);
  try {
    const rows = await query.done;
    return { frames, bytes, rows, within };
  } catch (error) {
    throw statementError(session.side, error, { what, carriesRows: true });
  }
}

/** Feeds frames to a `COPY … FROM STDIN`; resolves with the rows written. Throws as {@link copyOut}. */
export async function copyIn(
  session: Session,
  sql: string,
  frames: readonly Buffer[],
  what: string,
): Promise<number> {
  const query = new CopyIn(sql, (stream) => {
    stream.cork();
    for (const frame of frames) stream.write(frame);
    stream.write(COPY_DONE);
    stream.uncork();
  });
  session.client.query(query);
  try {
    return await query.done;
  } catch (error) {
    throw statementError(session.side, error, { what, carriesRows: true });
  }
}

/**
 * Copies from one connection to another at the pace of the slower one; resolves with the rows written. Throws as
 * {@link copyOut}, by the side that failed. A read whose rows nobody takes is cut off with its connection.
 */
export async function copyAcross(
  from: { readonly session: Session; readonly sql: string },
  to: { readonly session: Session; readonly sql: string },
  what: string,
): Promise<number> {
  const source = from.session.client;
  let began: (read: Promise<number>) => void = () => undefined;
  const begun = new Promise<Promise<number>>((resolve) => (began = resolve));
  const into = new CopyIn(to.sql, (stream) => {
    const query = new CopyOut(from.sql, {
      write: (frames) => stream.write(frames),
      onDrain: (resume) => stream.once('drain', resume),
    });
    source.query(query);
    const read = query.done;
    // What was half read must not be taken for whole.
    read.then(
      () => stream.write(COPY_DONE),
      () => stream.write(COPY_FAIL),
    );
    began(read);
  });
  to.session.client.query(into);
  const reading = begun
    .then((read) => read)
    .catch((error: unknown) => {
      throw statementError(from.session.side, error, { what, carriesRows: true });
    });
  const writing = into.done.catch((error: unknown) => {
    source.connection.stream.destroy();
    throw statementError(to.session.side, error, { what, carriesRows: true });
  });
  const [, rows] = await Promise.all([reading, writing]);
  return rows;
}
