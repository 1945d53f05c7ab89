/**
 * Hands on what a socket receives, chunk by chunk, and where it can, in memory that the next chunk is read into again.
 *
 * A relay lives on small reads. Node allocates 64 KiB for each, cuts it down to what came, wraps it, takes it through a
 * stream's queue and schedules a tick to look for more: a third of what a bare pipe costs. `net.connect` can be given a
 * buffer of the caller's own (`onread`) and then does none of that; accepted sockets, and those whose handshake is to
 * be read first, can't. So the fields that `onread` sets are set here, on a socket that is already open
 * (docs/adr/0009-reads-into-one-buffer.md). Where the runtime lacks them, and over TLS, chunks come by `data`.
 *
 * States of a socket: streaming → fed (once and for good; a later feed only changes who is told).
 *
 * Invariants:
 * - A chunk is valid until the consumer returns, unless `keep` was called by then: its memory is then left to whoever
 *   holds it, and the next chunk is read behind it or elsewhere. So many small chunks that wait for a slow reader hold
 *   hardly more memory than their own bytes.
 * - What the stream had read before is handed on first.
 * - Pausing and resuming are the socket's own; a paused socket hands on nothing.
 */
import net from 'node:net';
import tls from 'node:tls';

/** The buffer grows where reads fill it, and shrinks where for a while none did: an idle client holds little. */
const SIZES = [1024, 8192, 65_536] as const;
/** Reads in a row that would have fitted into the size below. */
const QUIET_READS = 64;

export interface SocketFeed {
  /** The chunk at hand is needed after the consumer returns. */
  keep(): void;
  /** Nothing is handed on any more; what comes is thrown away, or stays in a paused socket. */
  stop(): void;
}

/**
 * Begins to hand on what `socket` receives. It must be paused, or have nothing unread; it is left as it is, so resume
 * it to begin. What the stream has read already is handed on before this returns.
 */
export function feedFrom(socket: net.Socket, onChunk: (chunk: Buffer) => void): SocketFeed {
  const reads = fed.get(socket) ?? ReusedReads.begin(socket);
  if (reads !== null) return reads.feed(onChunk);
  socket.on('data', onChunk);
  return { keep: () => undefined, stop: () => void socket.off('data', onChunk) };
}

const fed = new WeakMap<net.Socket, ReusedReads>();

class ReusedReads {
  readonly #socket: net.Socket;
  #onChunk: (chunk: Buffer) => void = ignore;
  #buffer: Buffer = bufferOf(SIZES[0]);
  #size = 0;
  #quiet = 0;
  #kept = false;
  /** Of the last read. */
  #bytes = 0;

  private constructor(socket: net.Socket) {
    this.#socket = socket;
  }

  /** null: not with this socket, or not in this runtime. */
  static begin(socket: net.Socket): ReusedReads | null {
    const handle = handleOf(socket);
    if (FIELDS === null || handle === null) return null;
    const reads = new ReusedReads(socket);
    Object.assign(socket, {
      [FIELDS.buffer]: reads.#buffer,
      [FIELDS.callback]: (bytes: number, buffer: Buffer): boolean => reads.#read(bytes, buffer),
      [FIELDS.generator]: (): Buffer | undefined => reads.#next(),
    });
    handle.useUserBuffer(reads.#buffer);
    fed.set(socket, reads);
    return reads;
  }

  feed(onChunk: (chunk: Buffer) => void): SocketFeed {
    this.#onChunk = onChunk;
    const socket = this.#socket;
    const paused = socket.isPaused();
    if (paused) socket.pause();
    while (socket.readableLength > 0) {
      const chunk = socket.read() as Buffer;
      // Reading from the stream set the socket going. What the consumer does to it, such as close it, stands.
      if (paused) socket.pause();
      onChunk(chunk);
    }
    return {
      keep: () => {
        this.#kept = true;
      },
      stop: () => {
        if (this.#onChunk === onChunk) this.#onChunk = ignore;
      },
    };
  }

  #read(bytes: number, buffer: Buffer): boolean {
    this.#bytes = bytes;
    this.#onChunk(bytes === buffer.length ? buffer : buffer.subarray(0, bytes));
    this.#fit(bytes);
    return true;
  }

  #fit(bytes: number): void {
    if (bytes === this.#buffer.length && this.#size < SIZES.length - 1) {
      this.#size += 1;
      this.#quiet = 0;
    } else if (this.#size > 0) {
      const below = SIZES[this.#size - 1] ?? 0;
      this.#quiet = bytes < below ? this.#quiet + 1 : 0;
      if (this.#quiet < QUIET_READS) return;
      this.#size -= 1;
      this.#quiet = 0;
    }
  }

  /** The runtime asks after each read; undefined: the same again. */
  #next(): Buffer | undefined {
    const size = SIZES[this.#size] ?? SIZES[0];
    if (!this.#kept && this.#buffer.length === size) return undefined;
    const left = this.#kept ? this.#buffer.length - this.#bytes : 0;
    this.#kept = false;
    this.#buffer = left >= SIZES[0] ? this.#buffer.subarray(this.#bytes) : bufferOf(size);
    return this.#buffer;
  }
}

interface UserBufferHandle {
  readonly useUserBuffer: (buffer: Uint8Array) => void;
}

/** Of plain TCP and unix sockets only. */
function handleOf(socket: net.Socket): UserBufferHandle | null {
  if (socket instanceof tls.TLSSocket || socket.constructor !== net.Socket) return null;
  const handle: unknown = Reflect.get(socket, '_handle');
  if (typeof handle !== 'object' || handle === null) return null;
  return typeof Reflect.get(handle, 'useUserBuffer') === 'function' ? (handle as UserBufferHandle) : null;
}

/** The fields of a socket behind `onread`; null where this runtime has others. */
const FIELDS = ((): {
  readonly buffer: symbol;
  readonly callback: symbol;
  readonly generator: symbol;
} | null => {
  const own = Object.getOwnPropertySymbols(new net.Socket());
  const named = (name: string): symbol | undefined => own.find(({ description }) => description === name);
  const buffer = named('kBuffer');
  const callback = named('kBufferCb');
  const generator = named('kBufferGen');
  if (buffer === undefined || callback === undefined || generator === undefined) return null;
  return { buffer, callback, generator };
})();

/** Memory of its own: a piece of Node's pool would hold the other seven kilobytes of it for as long as it lives. */
function bufferOf(bytes: number): Buffer {
  return Buffer.allocUnsafeSlow(bytes);
}

function ignore(): void {
  // Nobody is there to be told.
}
