/**
 * Walks the frames of one direction of a connection, in place, over chunks cut anywhere.
 *
 *   chunk:  …payload | 51 00 00 00 1c payload | 53 00 00 00 04 | 51 00 00      (the rest comes with the next chunk)
 *           └ remaining                                          └ partial header: kept back, never forwarded
 *
 * States: between frames (`#remaining` = 0, `#headerBytes` = 0) · inside a header that was cut (`#headerBytes` 1–4)
 * · inside a payload (`#remaining` > 0).
 *
 * Invariants:
 * - A frame's bytes are forwarded only after its whole header was shown to the visitor, so that the visitor decides
 *   about a frame before any of it has left.
 * - What is forwarded is, byte for byte and in order, what came in, less the frames the visitor dropped.
 * - Nothing is assembled, except the start of a peeked payload that was cut, up to `peekBytesMax`.
 *
 * Failure: a length outside [4, frameBytesMax] throws; what precedes it has been forwarded by then.
 */
import { UnderstudyError } from '../../core/errors.js';
import { FRAME_HEADER_BYTES } from './messages.js';

/** What to do with a frame; a bit set of PEEK or PEEK_HEAD, DROP, STOP. */
export const PASS = 0;
/** Show the payload to `peek` once it is complete. */
export const PEEK = 1;
/** As PEEK, but only the start of the payload is wanted where it came in pieces. */
export const PEEK_HEAD = 16;
/** Don't forward the frame. */
export const DROP = 2;
/** Stop in front of this frame; the caller keeps the bytes from there on. */
export const STOP = 4;
/** Only in an action table: ask the visitor's `begin`. */
export const ASK = 8;

export interface FrameVisitor {
  /** A header is complete and none of the frame has been forwarded. Returns a bit set. */
  begin(type: number, payloadBytes: number): number;
  /**
   * The payload of a frame to be peeked at, in `bytes[start, end)`; valid during the call only. It is
   * shorter than `payloadBytes` where it was cut at the peek bound.
   */
  peek(type: number, bytes: Buffer, start: number, end: number, payloadBytes: number): void;
  /** Bytes to send on; they alias the chunk. */
  forward(bytes: Buffer): void;
}

export interface FrameWalkerOptions {
  /** Bound on the length field. */
  readonly frameBytesMax: number;
  /** Bound on what is gathered of a peeked payload that came in pieces. */
  readonly peekBytesMax: number;
}

/** For each type byte what to do with it; ASK where the visitor must be asked. */
export type ActionTable = Uint8Array;

export function actionTable(
  fallback: number,
  exceptions: ReadonlyMap<number, number> = new Map(),
): ActionTable {
  const table = new Uint8Array(256).fill(fallback);
  for (const [type, action] of exceptions) table[type] = action;
  return table;
}

export const ASK_ALWAYS: ActionTable = actionTable(ASK);

export class FrameWalker {
  readonly #visitor: FrameVisitor;
  readonly #frameBytesMax: number;
  readonly #peekBytesMax: number;
  /** Made where one is cut for the first time: most connections never need it. */
  #header: Buffer = EMPTY;
  #headerBytes = 0;
  #remaining = 0;
  #type = 0;
  #payloadBytes = 0;
  /** What was decided about the frame being shown or gathered; bits above STOP, PEEK_HEAD are the visitor's own. */
  frameAction: number = PASS;
  /** During `begin`: the payload has come as a whole, and what `peek` will be shown is what will be forwarded. */
  frameWhole = false;
  #scratch: Buffer = EMPTY;
  #scratchBytes = 0;
  /** Bytes of all chunks walked before the present one. */
  #base = 0;
  /** Offset of the frame being shown, in the whole stream. */
  position = 0;
  /** Replaceable between frames only. */
  actions: ActionTable;

  constructor(visitor: FrameVisitor, options: FrameWalkerOptions, actions: ActionTable = ASK_ALWAYS) {
    this.#visitor = visitor;
    this.#frameBytesMax = options.frameBytesMax;
    this.#peekBytesMax = options.peekBytesMax;
    this.actions = actions;
  }

  /** Part of a frame's payload has been seen and the rest has not. */
  get insideFrame(): boolean {
    return this.#remaining > 0;
  }

  /** Part of the frame at hand has already been forwarded. */
  get insideForwardedFrame(): boolean {
    return this.#remaining > 0 && (this.frameAction & DROP) === 0;
  }

  /** Takes back the bytes of a header that is not complete yet; they have not been forwarded. */
  takePartialHeader(): Buffer {
    this.#base -= this.#headerBytes;
    return this.#cutHeader();
  }

  get partialHeaderBytes(): number {
    return this.#headerBytes;
  }

  /**
   * Walks one chunk. Returns how much of it was consumed: all, or up to the frame in front of which the visitor said
   * STOP. Where that frame's header began in an earlier chunk, its bytes are still to be had by
   * {@link takePartialHeader} and 0 is returned.
   * Throws `protocol-violation` or `frame-too-large`.
   */
  walk(chunk: Buffer): number {
    const end = chunk.length;
    let at = 0;
    /** Start of the bytes of this chunk that are to be forwarded and have not been; -1: none. */
    let run = -1;
    while (at < end) {
      if (this.#remaining > 0) {
        const take = Math.min(this.#remaining, end - at);
        if ((this.frameAction & DROP) === 0 && run === -1) run = at;
        if ((this.frameAction & PEEKS) !== 0) this.#gather(chunk, at, at + take);
        at += take;
        this.#remaining -= take;
        if (this.#remaining === 0 && (this.frameAction & PEEKS) !== 0) this.#showGathered();
        continue;
      }
      const start = at;
      let type: number;
      let length: number;
      let payloadStart: number;
      if (this.#headerBytes === 0 && end - at >= FRAME_HEADER_BYTES) {
        type = chunk[at] as number;
        length = chunk.readInt32BE(at + 1);
        payloadStart = at + FRAME_HEADER_BYTES;
      } else {
        const take = Math.min(FRAME_HEADER_BYTES - this.#headerBytes, end - at);
        if (this.#header === EMPTY) this.#header = Buffer.alloc(FRAME_HEADER_BYTES);
        chunk.copy(this.#header, this.#headerBytes, at, at + take);
        if (this.#headerBytes + take < FRAME_HEADER_BYTES) {
          this.#headerBytes += take;
          this.#flush(chunk, run, at);
          this.#base += end;
          return end;
        }
        type = this.#header[0] as number;
        length = this.#header.readInt32BE(1);
        payloadStart = at + take;
      }
      if (length < 4 || length > this.#frameBytesMax) {
        this.#flush(chunk, run, start);
        throw badLength(type, length, this.#frameBytesMax);
      }
      const payloadBytes = length - 4;
      this.position = this.#base + start - this.#headerBytes;
      let action = this.actions[type] as number;
      if (action === ASK) {
        this.frameWhole = payloadBytes <= end - payloadStart;
        action = this.#visitor.begin(type, payloadBytes);
      }
      if ((action & STOP) !== 0) {
        this.#flush(chunk, run, start);
        this.#base += start;
        return start;
      }
      if ((action & DROP) !== 0) {
        this.#flush(chunk, run, start);
        run = -1;
        this.#headerBytes = 0;
      } else if (this.#headerBytes > 0) {
        this.#visitor.forward(this.#cutHeader());
        run = start;
      } else if (run === -1) {
        run = start;
      }
      this.frameAction = action;
      const available = end - payloadStart;
      if (payloadBytes <= available) {
        if ((action & PEEKS) !== 0) {
          this.#visitor.peek(type, chunk, payloadStart, payloadStart + payloadBytes, payloadBytes);
        }
        at = payloadStart + payloadBytes;
        continue;
      }
      this.#type = type;
      this.#payloadBytes = payloadBytes;
      this.#remaining = payloadBytes;
      this.#scratchBytes = 0;
      at = payloadStart;
    }
    this.#flush(chunk, run, end);
    this.#base += end;
    return end;
  }

  #cutHeader(): Buffer {
    const bytes = Buffer.from(this.#header.subarray(0, this.#headerBytes));
    this.#headerBytes = 0;
    return bytes;
  }

  #flush(chunk: Buffer, from: number, to: number): void {
    if (from === -1 || from === to) return;
    this.#visitor.forward(from === 0 && to === chunk.length ? chunk : chunk.subarray(from, to));
  }

  #gather(chunk: Buffer, from: number, to: number): void {
    const limit = (this.frameAction & PEEK) === 0 ? HEAD_BYTES : this.#peekBytesMax;
    const room = Math.min(limit, this.#payloadBytes);
    if (this.#scratch.length < room) this.#scratch = Buffer.allocUnsafe(Math.max(room, 256));
    this.#scratchBytes += chunk.copy(
      this.#scratch,
      this.#scratchBytes,
      from,
      Math.min(to, from + room - this.#scratchBytes),
    );
  }

  #showGathered(): void {
    const bytes = this.#scratchBytes;
    this.#scratchBytes = 0;
    this.#visitor.peek(this.#type, this.#scratch, 0, bytes, this.#payloadBytes);
    // One huge statement must not cost its session a large buffer for ever.
    if (this.#scratch.length > SCRATCH_KEPT_BYTES) this.#scratch = EMPTY;
  }
}

const EMPTY = Buffer.alloc(0);
const SCRATCH_KEPT_BYTES = 8192;
/** Holds the names at the start of a Bind with room to spare. */
const HEAD_BYTES = 512;
const PEEKS = PEEK | PEEK_HEAD;

function badLength(type: number, length: number, frameBytesMax: number): UnderstudyError {
  const name = type >= 0x20 && type < 0x7f ? `"${String.fromCharCode(type)}"` : `0x${type.toString(16)}`;
  return length >= 0 && length > frameBytesMax
    ? new UnderstudyError(
        'frame-too-large',
        `a message of type ${name} declares ${length} bytes; the bound is ${frameBytesMax}`,
      )
    : new UnderstudyError('protocol-violation', `a message of type ${name} declares a length of ${length}`);
}
