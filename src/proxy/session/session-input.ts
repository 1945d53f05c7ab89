/**
 * What a session's client sends: on its way to the server, or held, in order, until it may go there. Session.ts decides
 * which.
 */
import { FRONTEND } from '../../wire/postgres/messages.js';
import { CLASSIFY_BYTES_MAX, type ClientStream } from './client-stream.js';
import { HeldInput } from './held-input.js';
import type { SessionContext } from './session-context.js';
import type { SessionSockets } from './session-sockets.js';

export interface SessionInputDeps {
  readonly context: SessionContext;
  readonly sockets: SessionSockets;
  readonly clientStream: ClientStream;
  /** The client has broken the protocol; or this is a bug. Closes the session. */
  readonly violated: (error: unknown) => void;
  readonly closed: () => boolean;
}

export class SessionInput {
  readonly #deps: SessionInputDeps;
  readonly held: HeldInput;

  constructor(deps: SessionInputDeps) {
    this.#deps = deps;
    const { context, sockets } = deps;
    this.held = new HeldInput({
      bytesMax: () => context.settings.heldBytesMax,
      nowMs: () => context.clock.monotonicMs(),
      pauseClient: (reason) => sockets.pauseClient(reason),
      resumeClient: (reason) => sockets.resumeClient(reason),
    });
  }

  /**
   * Sends it on. Returns false where it stopped in front of a frame that must wait; the rest is at the head of what is
   * held. `borrowed`: the chunk is valid during the call only.
   */
  walk(chunk: Buffer, borrowed: boolean): boolean {
    const { walker } = this.#deps.clientStream;
    let used: number;
    try {
      used = walker.walk(chunk);
    } catch (error) {
      this.#deps.violated(error);
      return false;
    }
    if (used === chunk.length) return true;
    const rest = chunk.subarray(used);
    this.held.putBack(borrowed ? Buffer.from(rest) : rest);
    this.holdPartialHeader();
    return false;
  }

  /** Sends on what was held, as far as it may go. */
  pump(): void {
    for (let chunk = this.held.shift(); chunk !== undefined; chunk = this.held.shift()) {
      if (!this.walk(chunk, false)) break;
    }
    if (!this.#deps.closed()) this.held.taken();
  }

  /** What came of the next message's header goes with the rest of it. */
  holdPartialHeader(): void {
    this.held.putBack(this.#deps.clientStream.walker.takePartialHeader());
  }

  /** The message at the head of what is held is the client's goodbye. */
  get saysGoodbye(): boolean {
    const header = this.held.peek(HEADER_BYTES);
    return header.length === HEADER_BYTES && header[0] === FRONTEND.terminate;
  }

  /** The message at the head of what is held ends a prepared transaction, which another session may wait for. */
  get endsPreparedTransaction(): boolean {
    const header = this.held.peek(HEADER_BYTES);
    if (header.length < HEADER_BYTES) return false;
    const type = header[0] ?? 0;
    if (type !== FRONTEND.query && type !== FRONTEND.parse) return false;
    const length = header.readInt32BE(1) + 1;
    if (length < HEADER_BYTES || length > CLASSIFY_BYTES_MAX || this.held.length < length) return false;
    return this.#deps.clientStream.endsPreparedTransaction(
      type,
      this.held.peek(length).subarray(HEADER_BYTES),
    );
  }
}

/** A type and a length. */
const HEADER_BYTES = 5;
