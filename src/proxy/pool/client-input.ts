/**
 * What a pooled client has sent and is not worked off yet: whole frames are looked at in place, long ones are passed
 * on by the piece once their head was seen.
 *
 * States: between frames · passing (the head of a frame was dealt with, `passing` bytes of it are still to come).
 * The bound on what is kept is the client's: it stops reading its socket.
 */
import { UnderstudyError } from '../../core/errors.js';
import { FRAME_HEADER_BYTES, FRONTEND } from '../../wire/postgres/messages.js';

/** Of a text, what is looked at. */
export const TEXT_HEAD_BYTES = 65_536;
/** Names at the head of a Bind, Describe, Execute or Close. */
const NAMES_BYTES_MAX = 8192;

export class ClientInput {
  readonly #frameBytesMax: number;
  /** A longer Parse of a named statement is not kept. */
  readonly #statementBytesMax: number;
  #chunks: Buffer[] = [];
  #length = 0;
  /** Bytes of the frame at hand that go the way its head went. */
  passing = 0;

  constructor(bounds: { readonly frameBytesMax: number; readonly statementBytesMax: number }) {
    this.#frameBytesMax = bounds.frameBytesMax;
    this.#statementBytesMax = bounds.statementBytesMax;
  }

  get length(): number {
    return this.#length;
  }

  push(chunk: Buffer): void {
    if (chunk.length === 0) return;
    this.#chunks.push(chunk);
    this.#length += chunk.length;
  }

  unshift(chunk: Buffer): void {
    if (chunk.length === 0) return;
    this.#chunks.unshift(chunk);
    this.#length += chunk.length;
  }

  /** Everything, in one piece; it stays here. */
  all(): Buffer {
    const [only] = this.#chunks;
    if (only === undefined) return EMPTY;
    if (this.#chunks.length === 1) return only;
    const joined = Buffer.concat(this.#chunks);
    this.#chunks = [joined];
    return joined;
  }

  /** The first piece as it came; it is taken out. */
  shift(): Buffer | undefined {
    const chunk = this.#chunks.shift();
    if (chunk !== undefined) this.#length -= chunk.length;
    return chunk;
  }

  /** Takes out the first `count` bytes of what `all` returned. */
  drop(count: number): void {
    if (count === 0) return;
    const all = this.all();
    this.#length = all.length - count;
    this.#chunks = this.#length === 0 ? [] : [all.subarray(count)];
  }

  clear(): void {
    this.#chunks = [];
    this.#length = 0;
  }

  /**
   * Whether enough of the frame at `at` is there to be worked on; 0: not yet, else how many of its bytes are.
   * Throws `protocol-violation`, `frame-too-large`.
   */
  readable(bytes: Buffer, at: number): number {
    const there = bytes.length - at;
    if (there < FRAME_HEADER_BYTES) return 0;
    const type = bytes[at] as number;
    const whole = bytes.readInt32BE(at + 1) + 1;
    if (whole < FRAME_HEADER_BYTES || whole - 1 > this.#frameBytesMax) throw badLength(type, whole - 1);
    if (there >= whole) return whole;
    switch (type) {
      case FRONTEND.query:
        return there >= TEXT_HEAD_BYTES + FRAME_HEADER_BYTES ? there : 0;
      case FRONTEND.parse:
        if (whole <= this.#statementBytesMax) return 0;
        return there >= TEXT_HEAD_BYTES + NAMES_BYTES_MAX ? there : 0;
      case FRONTEND.bind:
        return namesEnd(bytes, at) === -1 ? this.#unlessTooLong(there) : there;
      case FRONTEND.copyData:
      case FRONTEND.functionCall:
        return there;
      default:
        return this.#unlessTooLong(there);
    }
  }

  #unlessTooLong(there: number): number {
    if (there <= NAMES_BYTES_MAX) return 0;
    throw new UnderstudyError(
      'frame-too-large',
      `a name in a message is longer than ${NAMES_BYTES_MAX} bytes`,
    );
  }
}

/** End of the two names of a Bind at `at`, with their zero bytes; -1: not there yet. */
export function namesEnd(bytes: Buffer, at: number): number {
  const portal = bytes.indexOf(0, at + FRAME_HEADER_BYTES);
  if (portal === -1) return -1;
  const statement = bytes.indexOf(0, portal + 1);
  return statement === -1 ? -1 : statement + 1;
}

const EMPTY = Buffer.alloc(0);

function badLength(type: number, length: number): UnderstudyError {
  const name = type >= 0x20 && type < 0x7f ? `"${String.fromCharCode(type)}"` : `0x${type.toString(16)}`;
  return length > 0x4000_0000
    ? new UnderstudyError('frame-too-large', `a message of type ${name} declares ${length} bytes`)
    : new UnderstudyError('protocol-violation', `a message of type ${name} declares a length of ${length}`);
}
