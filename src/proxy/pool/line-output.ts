/**
 * What is to go down a shared connection: gathered in one buffer, and written once in each turn of the event loop.
 *
 * Invariant: bytes that were handed to the socket are never written over; a buffer that is full is left to it.
 */
import { FRAME_HEADER_BYTES, FRONTEND } from '../../wire/postgres/messages.js';

const OUT_BYTES = 65_536;

export class LineOutput {
  readonly #toServer: (bytes: Buffer) => void;
  #out = Buffer.allocUnsafe(OUT_BYTES);
  #start = 0;
  #end = 0;
  #flushing = false;

  constructor(toServer: (bytes: Buffer) => void) {
    this.#toServer = toServer;
  }

  write(bytes: Buffer, start: number, end: number): void {
    this.#makeRoom(end - start);
    bytes.copy(this.#out, this.#end, start, end);
    this.#end += end - start;
  }

  /** A Bind of the unnamed portal to the statement of that name; `bytes[start, end)` is what follows the names. */
  bind(serverName: Buffer, bytes: Buffer, start: number, end: number): void {
    const headBytes = FRAME_HEADER_BYTES + 1 + serverName.length;
    this.#makeRoom(headBytes + end - start);
    const out = this.#out;
    const at = this.#end;
    out[at] = FRONTEND.bind;
    out.writeInt32BE(headBytes - 1 + end - start, at + 1);
    out[at + FRAME_HEADER_BYTES] = 0;
    serverName.copy(out, at + FRAME_HEADER_BYTES + 1);
    bytes.copy(out, at + headBytes, start, end);
    this.#end = at + headBytes + end - start;
  }

  /** At the end of this turn. */
  flushSoon(): void {
    if (this.#flushing) return;
    this.#flushing = true;
    setImmediate(this.#flush);
  }

  readonly #flush = (): void => {
    this.#flushing = false;
    this.#push();
  };

  #makeRoom(length: number): void {
    if (this.#end + length <= this.#out.length) return;
    this.#push();
    // What was written may still be read from the old one.
    this.#out = Buffer.allocUnsafe(Math.max(OUT_BYTES, length));
    this.#start = 0;
    this.#end = 0;
  }

  #push(): void {
    if (this.#end === this.#start) return;
    this.#toServer(this.#out.subarray(this.#start, this.#end));
    this.#start = this.#end;
  }
}
