/**
 * Writes to a socket past the stream in front of it, where nothing waits in either.
 *
 * A stream makes an object for each write, walks through its state and schedules a tick to tell that it is done, though
 * the kernel has nearly always taken the bytes by the time the call returns. So the socket's handle is asked itself, in
 * the same way the stream asks it (docs/adr/0009-reads-into-one-buffer.md). Where the runtime lacks what that needs, over
 * TLS, and while something is corked, waits in the stream or is still being written, the stream writes as ever; what it
 * is given queues up behind what the handle has, so that bytes keep their order whichever way they go.
 *
 * States of a socket: open → (partly written → open)*. Partly written: the kernel took a part and the runtime writes the
 * rest as it can; the bytes must stay as they are until then, and `drain` is told at the end of it, as by a stream.
 *
 * Failures: an error of the call destroys the socket, as an error of the stream's write would.
 */
import net from 'node:net';
import tls from 'node:tls';
import { getSystemErrorName } from 'node:util';

export interface SocketWrites {
  /** As `socket.write`: false where the writer is to wait for the socket's `drain`. */
  write(bytes: Buffer): boolean;
  /** Some of what was written may still alias what was given. */
  readonly unsent: boolean;
  /** Whoever wants to write is to wait for `drain`. */
  readonly full: boolean;
}

/** Writes of `socket` from now on; what was written to the stream before goes out first. */
export function writesOf(socket: net.Socket): SocketWrites {
  return direct.get(socket) ?? DirectWrites.begin(socket) ?? new StreamWrites(socket);
}

class StreamWrites implements SocketWrites {
  readonly #socket: net.Socket;

  constructor(socket: net.Socket) {
    this.#socket = socket;
  }

  write(bytes: Buffer): boolean {
    return this.#socket.write(bytes);
  }

  get unsent(): boolean {
    return this.#socket.writableLength > 0;
  }

  get full(): boolean {
    return this.#socket.writableNeedDrain;
  }
}

/** What is given to the handle along with the bytes. The runtime forgets it where the kernel took all of them. */
interface WriteRequest {
  oncomplete?: (status: number) => void;
  handle?: WritableHandle;
  /** Keeps the bytes from being collected. */
  buffer?: Buffer | null;
}

interface WritableHandle {
  /** 0, or a negative errno. */
  writeBuffer: (request: object, bytes: Buffer) => number;
  /** Bytes the kernel has not taken. */
  readonly writeQueueSize: number;
}

const direct = new WeakMap<net.Socket, DirectWrites>();
/** The runtime's own class of requests, once one was seen. */
let Request: (new () => WriteRequest) | undefined;

class DirectWrites implements SocketWrites {
  readonly #socket: net.Socket;
  readonly #handle: WritableHandle;
  #partly = false;

  private constructor(socket: net.Socket, handle: WritableHandle) {
    this.#socket = socket;
    this.#handle = handle;
  }

  /** null: not with this socket, or not in this runtime. */
  static begin(socket: net.Socket): DirectWrites | null {
    const handle = handleOf(socket);
    if (handle === null) return null;
    const writes = new DirectWrites(socket, handle);
    direct.set(socket, writes);
    return writes;
  }

  write(bytes: Buffer): boolean {
    const socket = this.#socket;
    const mayPass = !this.#partly && socket.writable && socket.writableLength === 0;
    if (!mayPass || socket.writableCorked > 0 || bytes.length === 0) return socket.write(bytes);
    if (Request === undefined) {
      learnRequest(this.#handle);
      return socket.write(bytes);
    }
    // Never one that was used: where the kernel takes the rest at the runtime's second try, within the call, nothing tells
    // from here that the request is in use until the loop's next phase, and using it again then ends the process.
    const request = new Request();
    const status = this.#handle.writeBuffer(request, bytes);
    if (status !== 0) {
      socket.destroy(failed(status));
      return false;
    }
    if (this.#handle.writeQueueSize === 0) return true;
    this.#writesOn(request, bytes);
    return false;
  }

  #writesOn(request: WriteRequest, bytes: Buffer): void {
    this.#partly = true;
    request.handle = this.#handle;
    request.buffer = bytes;
    request.oncomplete = (status) => {
      this.#partly = false;
      const socket = this.#socket;
      if (socket.destroyed) return;
      if (status < 0) socket.destroy(failed(status));
      else if (!socket.writableNeedDrain) socket.emit('drain');
    };
  }

  get unsent(): boolean {
    return this.#partly || this.#socket.writableLength > 0;
  }

  get full(): boolean {
    return this.#partly || this.#socket.writableNeedDrain;
  }
}

/** Looks at the next write that the stream itself makes. */
function learnRequest(handle: WritableHandle): void {
  const { writeBuffer } = handle;
  handle.writeBuffer = (request, bytes) => {
    handle.writeBuffer = writeBuffer;
    if (request.constructor.name === 'WriteWrap') Request = request.constructor as new () => WriteRequest;
    return writeBuffer.call(handle, request, bytes);
  };
}

/** Of plain TCP and unix sockets only. */
function handleOf(socket: net.Socket): WritableHandle | null {
  if (socket instanceof tls.TLSSocket || socket.constructor !== net.Socket) return null;
  const handle: unknown = Reflect.get(socket, '_handle');
  if (typeof handle !== 'object' || handle === null) return null;
  const usable =
    typeof Reflect.get(handle, 'writeBuffer') === 'function' &&
    typeof Reflect.get(handle, 'writeQueueSize') === 'number';
  return usable ? (handle as WritableHandle) : null;
}

function failed(status: number): Error {
  const code = getSystemErrorName(status);
  return Object.assign(new Error(`write ${code}`), { code, syscall: 'write' });
}
