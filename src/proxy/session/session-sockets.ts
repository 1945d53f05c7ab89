/**
 * The two sockets of a session and the pressure between them: a full one stops the reading of the other.
 *
 * The client is read unless a reason not to stands ({@link PauseReason}, a bit set); the backend, unless the client is
 * full. The backend can be exchanged; the client stays.
 */
import type net from 'node:net';
import { encodeTerminate } from '../../wire/postgres/messages.js';
import type { Backend } from '../backend/backend.js';
import { feedFrom, type SocketFeed } from '../socket-feed.js';
import { closeWith } from '../socket-reader.js';
import { writesOf, type SocketWrites } from '../socket-writes.js';

/** Why the client's socket is not being read. */
export const BACKEND_FULL = 1;
/** The bound on held bytes is reached. */
export const HELD_FULL = 2;
/** Too many messages await an answer. */
export const TOO_DEEP = 4;

export interface SessionSocketsDeps {
  /** Chunks are valid during the call only; what is sent on by the calls below may alias them. */
  readonly onClientData: (chunk: Buffer) => void;
  readonly onClientGone: () => void;
  /** It sends nothing more, and may still read. */
  readonly onClientEnd: () => void;
  readonly onBackendData: (chunk: Buffer) => void;
  readonly onBackendGone: () => void;
  /** A backend was left for another: nobody reads or writes it any more. */
  readonly onLeft: (left: net.Socket) => void;
}

/** For a server to finish what it runs and close. */
const LEAVE_TIMEOUT_MS = 60_000;
const CORKED_MS = 10;

export class SessionSockets {
  readonly #client: net.Socket;
  readonly #clientWrites: SocketWrites;
  #backend: Backend;
  #backendWrites: SocketWrites;
  readonly #deps: SessionSocketsDeps;
  #clientPaused = 0;
  #backendPaused = false;
  #closed = false;
  #corked = false;
  #clientFeed: SocketFeed | null = null;
  #backendFeed: SocketFeed | null = null;
  bytesFromClient = 0;
  bytesToClient = 0;

  constructor(client: net.Socket, backend: Backend, deps: SessionSocketsDeps) {
    this.#client = client;
    this.#clientWrites = writesOf(client);
    this.#backend = backend;
    this.#backendWrites = writesOf(backend.socket);
    this.#deps = deps;
  }

  get backend(): Backend {
    return this.#backend;
  }

  /** Begins to listen on both; the client is greeted first. Both sockets are paused until then. */
  start(greeting: Buffer, leftover: Buffer): void {
    const client = this.#client;
    client.on('drain', this.#onClientDrain);
    client.on('error', ignore);
    client.on('close', this.#deps.onClientGone);
    client.allowHalfOpen = true;
    client.on('end', this.#deps.onClientEnd);
    this.toClient(greeting);
    this.#attach();
    if (client.readableEnded) this.#deps.onClientEnd();
    if (client.destroyed) {
      this.#deps.onClientGone();
      return;
    }
    if (leftover.length > 0) this.#onClientData(leftover);
    if (this.#closed) return;
    this.#clientFeed = feedFrom(client, this.#onClientData);
    if (this.#closed) this.#clientFeed.stop();
    else if (this.#clientPaused === 0) client.resume();
  }

  toServer(bytes: Buffer): void {
    this.queueToServer(bytes);
    if (this.#corked) this.uncork();
  }

  toClient(bytes: Buffer): void {
    this.queueToClient(bytes);
    if (this.#corked) this.uncork();
  }

  /** After `exchange`: goes out with what follows, or after a moment. */
  queueToServer(bytes: Buffer): void {
    if (!this.#backendWrites.write(bytes)) this.pauseClient(BACKEND_FULL);
    if (this.#backendWrites.unsent) this.#keepChunks();
  }

  /** As `queueToServer`. */
  queueToClient(bytes: Buffer): void {
    this.bytesToClient += bytes.length;
    const full = !this.#clientWrites.write(bytes);
    if (this.#clientWrites.unsent) this.#keepChunks();
    if (!full || this.#backendPaused) return;
    this.#backendPaused = true;
    this.#backend.socket.pause();
  }

  /** What was written has not gone out yet, and may alias the chunk at hand. */
  #keepChunks(): void {
    this.#clientFeed?.keep();
    this.#backendFeed?.keep();
  }

  /** Tells the server that nothing more comes: it answers what it was sent, and closes. */
  endServer(): void {
    this.uncork();
    if (!this.#backend.socket.writableEnded) this.#backend.socket.end();
  }

  pauseClient(reason: number): void {
    if (this.#clientPaused === 0) this.#client.pause();
    this.#clientPaused |= reason;
  }

  resumeClient(reason: number): void {
    if ((this.#clientPaused & reason) === 0) return;
    this.#clientPaused &= ~reason;
    if (this.#clientPaused === 0 && !this.#closed) this.#client.resume();
  }

  /**
   * Leaves the present backend, which has nothing more to say, and goes on with another. Many sessions do so at once
   * while clients wait, and each system call counts: what is written to either end is kept for a moment, to go out
   * together with what follows, and the old connection is closed later.
   */
  exchange(backend: Backend): void {
    const old = this.#leave(backend).socket;
    this.#client.cork();
    backend.socket.cork();
    this.#corked = true;
    setTimeout(() => this.uncork(), CORKED_MS);
    this.#deps.onLeft(old);
  }

  /** As `exchange`, at once; the old connection, which nobody reads now, is the caller's. */
  exchangeKeeping(backend: Backend): Backend {
    return this.#leave(backend);
  }

  #leave(backend: Backend): Backend {
    this.#detach();
    this.uncork();
    const old = this.#backend;
    this.#backend = backend;
    this.#backendWrites = writesOf(backend.socket);
    return old;
  }

  /** Sends what is kept since `exchange`. */
  uncork(): void {
    if (!this.#corked) return;
    this.#corked = false;
    this.#backend.socket.uncork();
    this.#client.uncork();
  }

  /** After `exchange`: begins to listen on the new backend. */
  resumeBackend(): void {
    this.#attach();
  }

  /**
   * Closes both. `last` is said to the client, unless it stands in the middle of a message (`cut`), where nothing can
   * be said. The server may finish what it has been sent, and is told goodbye where it waits for nothing (`idle`).
   */
  close(last: Buffer | null, state: { readonly cut: boolean; readonly idle: boolean }): void {
    this.#closed = true;
    this.uncork();
    this.#detach();
    closeWith(this.#backend.socket, state.idle ? encodeTerminate() : undefined, LEAVE_TIMEOUT_MS);
    this.#clientFeed?.stop();
    this.#client.off('drain', this.#onClientDrain);
    if (state.cut) this.#client.destroy();
    else closeWith(this.#client, last ?? undefined);
  }

  #attach(): void {
    const { socket, leftover } = this.#backend;
    socket.on('drain', this.#onBackendDrain);
    // It may have been here before.
    socket.off('error', ignore);
    socket.on('error', ignore);
    socket.on('close', this.#deps.onBackendGone);
    this.#backendPaused = this.#clientWrites.full;
    if (socket.destroyed) {
      this.#deps.onBackendGone();
      return;
    }
    if (leftover.length > 0) this.#deps.onBackendData(leftover);
    if (this.#closed) return;
    this.#backendFeed = feedFrom(socket, this.#deps.onBackendData);
    if (this.#closed) this.#backendFeed.stop();
    else if (!this.#backendPaused) socket.resume();
  }

  #detach(): void {
    const { socket } = this.#backend;
    this.#backendFeed?.stop();
    this.#backendFeed = null;
    socket.off('drain', this.#onBackendDrain);
    socket.off('close', this.#deps.onBackendGone);
    this.resumeClient(BACKEND_FULL);
  }

  readonly #onClientData = (chunk: Buffer): void => {
    this.bytesFromClient += chunk.length;
    this.#deps.onClientData(chunk);
  };
  readonly #onClientDrain = (): void => {
    if (!this.#backendPaused) return;
    this.#backendPaused = false;
    this.#backend.socket.resume();
  };
  readonly #onBackendDrain = (): void => this.resumeClient(BACKEND_FULL);
}

function ignore(): void {
  // The close that follows an error is what is acted on.
}
