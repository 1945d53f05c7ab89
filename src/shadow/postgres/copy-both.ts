/**
 * The frames of a CopyBoth exchange, whole, straight from the socket: pg's own parser would make two objects and an
 * event of each.
 *
 * From its statement on the socket's data is ours; the first message that belongs to no stream (its end, an error) and
 * everything behind it is pg's again. A frame that lies whole in one read is handed on in place, without a copy; one of
 * megabytes is put together once, in memory of its own size.
 *
 * No frame's memory is written to again: Node makes each read's anew. What keeps a piece of a frame keeps all of it.
 */
import type { Duplex } from 'node:stream';
import type pg from 'pg';
import { UnderstudyError } from '../../core/errors.js';

const COPY_DATA = 0x64; // d
const COPY_BOTH_RESPONSE = 0x57; // W
/** Notices, parameters, notifications: may come at any time, and are pg's. */
const ASYNCHRONOUS: ReadonlySet<number> = new Set([0x4e, 0x53, 0x41]);
const HEADER_BYTES = 5;
/** Frames beyond it are gathered where they will lie. */
const LARGE_FRAME_BYTES = 1024 * 1024;

type DataListener = (data: Buffer) => void;

export interface CopyBothHandlers {
  readonly onStart: () => void;
  /** A frame's content is `bytes` from `start` to `end`. */
  readonly onFrame: (bytes: Buffer, start: number, end: number) => void;
}

export class CopyBothReader {
  readonly #stream: Duplex;
  readonly #handlers: CopyBothHandlers;
  readonly #pgListener: DataListener;
  /** Of a frame that no read has completed yet. */
  #pieces: Buffer[] = [];
  #pieceBytes = 0;
  /** Its whole length with the header; 0 where the header itself is not whole. */
  #wanted = 0;
  /** A large frame, filled so far. */
  #large: Buffer | undefined;
  #filled = 0;
  #over = false;

  /** Takes the connection's data from here on. Throws `internal` where pg does not read it. */
  constructor(connection: pg.Connection, handlers: CopyBothHandlers) {
    const [listener] = connection.stream.listeners('data') as DataListener[];
    if (listener === undefined) throw new UnderstudyError('internal', 'the connection is not read by pg');
    this.#stream = connection.stream;
    this.#handlers = handlers;
    this.#pgListener = listener;
    this.#stream.on('data', this.#onData);
    this.#stream.removeListener('data', listener);
  }

  readonly #onData = (read: Buffer): void => {
    let bytes = read;
    if (this.#large !== undefined) {
      const step = read.copy(this.#large, this.#filled);
      this.#filled += step;
      if (this.#filled < this.#large.length) return;
      const frame = this.#large;
      this.#large = undefined;
      this.#walk(frame);
      if (step === read.length) return;
      bytes = read.subarray(step);
    } else if (this.#pieceBytes > 0) {
      this.#pieces.push(read);
      this.#pieceBytes += read.length;
      // Joined once, when it is whole.
      if (this.#pieceBytes < Math.max(this.#wanted, HEADER_BYTES)) return;
      bytes = Buffer.concat(this.#pieces);
      this.#pieces = [];
      this.#pieceBytes = 0;
    }
    this.#walk(bytes);
  };

  #walk(bytes: Buffer): void {
    let at = 0;
    this.#wanted = 0;
    while (at < bytes.length && !this.#over) {
      const type = bytes[at] ?? 0;
      if (!isOfStream(type)) {
        this.#release(bytes.subarray(at));
        return;
      }
      if (bytes.length - at < HEADER_BYTES) break;
      const length = bytes.readInt32BE(at + 1) + 1;
      if (length < HEADER_BYTES) {
        this.#over = true;
        this.#stream.destroy(new UnderstudyError('protocol-violation', 'a frame shorter than its header'));
        return;
      }
      if (bytes.length - at < length) {
        this.#wanted = length;
        break;
      }
      const end = at + length;
      if (type === COPY_DATA) this.#handlers.onFrame(bytes, at + HEADER_BYTES, end);
      else if (type === COPY_BOTH_RESPONSE) this.#handlers.onStart();
      else this.#pgListener(bytes.subarray(at, end));
      at = end;
    }
    if (at === bytes.length || this.#over) return;
    if (this.#wanted > LARGE_FRAME_BYTES) {
      this.#large = Buffer.allocUnsafeSlow(this.#wanted);
      this.#filled = bytes.copy(this.#large, 0, at);
    } else {
      this.#pieces = [bytes.subarray(at)];
      this.#pieceBytes = bytes.length - at;
    }
  }

  #release(rest: Buffer): void {
    this.#over = true;
    this.#stream.on('data', this.#pgListener);
    this.#stream.removeListener('data', this.#onData);
    this.#pgListener(rest);
  }
}

function isOfStream(type: number): boolean {
  return type === COPY_DATA || type === COPY_BOTH_RESPONSE || ASYNCHRONOUS.has(type);
}
