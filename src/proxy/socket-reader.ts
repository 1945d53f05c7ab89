/**
 * Reads exact byte counts from a socket during a handshake, without taking more out of it than was asked for: what
 * follows the handshake stays in the socket, in order, for whoever reads next.
 *
 * States: reading → failed (closed, ended or given up; final) or detached (final).
 * Invariants: at most one read is pending; after `detach` the socket is explicitly paused and carries no listener of
 * ours but a no-op for `error`, because an `error` with nobody listening would end the process.
 * Failure cases: end of stream within a read, a socket error, and `fail` all reject the pending read and every later
 * one with the same error.
 */
import type net from 'node:net';
import { invariant, UnderstudyError } from '../core/errors.js';

interface PendingRead {
  readonly bytes: number;
  readonly resolve: (bytes: Buffer) => void;
  readonly reject: (error: Error) => void;
}

const ignore = (): void => undefined;

/** The peer went away, as opposed to having said something wrong. */
export class PeerGone extends UnderstudyError {
  constructor(reason: string, cause?: Error) {
    super('protocol-violation', reason, cause === undefined ? {} : { cause });
  }
}

export class SocketReader {
  readonly #socket: net.Socket;
  #pending: PendingRead | undefined;
  #failure: Error | undefined;

  readonly #onReadable = (): void => this.#serve();
  readonly #onEnd = (): void => this.fail(new PeerGone('the connection was closed'));
  readonly #onError = (error: Error): void => this.fail(new PeerGone(error.message, error));
  readonly #onClose = (): void => this.fail(new PeerGone('the connection was closed'));

  constructor(socket: net.Socket) {
    this.#socket = socket;
    socket.on('error', ignore);
    socket.on('error', this.#onError);
    socket.on('end', this.#onEnd);
    socket.on('close', this.#onClose);
    socket.on('readable', this.#onReadable);
    if (socket.destroyed) this.#onClose();
  }

  /** Bytes that have come and nobody asked for yet. */
  get bufferedBytes(): number {
    return this.#socket.readableLength;
  }

  /** Exactly `bytes` > 0 bytes. Rejects with {@link PeerGone} or what `fail` was given. */
  read(bytes: number): Promise<Buffer> {
    invariant(this.#pending === undefined, 'one read at a time');
    invariant(bytes > 0, 'a read asks for something');
    return new Promise((resolve, reject) => {
      this.#pending = { bytes, resolve, reject };
      this.#serve();
    });
  }

  /** Rejects the pending read and all later ones with `error`. The first failure stays. */
  fail(error: Error): void {
    this.#failure ??= error;
    this.#serve();
  }

  #serve(): void {
    const pending = this.#pending;
    if (pending === undefined) return;
    // A socket that ended may still hold what came before its end, so bytes go before the failure.
    const bytes = this.#socket.destroyed ? null : (this.#socket.read(pending.bytes) as Buffer | null);
    if (bytes?.length === pending.bytes) {
      this.#pending = undefined;
      pending.resolve(bytes);
      return;
    }
    // Short only where the stream has ended: `read` gives what is left.
    if (bytes !== null) this.#failure = new PeerGone('the connection was closed');
    if (this.#failure !== undefined) {
      this.#pending = undefined;
      pending.reject(this.#failure);
    }
  }

  /** Lets go of the socket and leaves it paused. Must not be called while a read is pending. */
  async detach(): Promise<void> {
    invariant(this.#pending === undefined, 'no read is pending');
    this.release();
    // Node settles a stream's flow mode on the tick after its last `readable` listener went; pausing before that
    // would be undone.
    await new Promise((resolve) => setImmediate(resolve));
    this.#socket.pause();
  }

  /** Only takes the listeners off; for a socket that is wrapped or destroyed at once. */
  release(): void {
    this.#socket.off('readable', this.#onReadable);
    this.#socket.off('end', this.#onEnd);
    this.#socket.off('error', this.#onError);
    this.#socket.off('close', this.#onClose);
  }
}

/**
 * Sends `last` and closes, so that the peer gets to see it: what the peer still sends is read and thrown away (an
 * unread byte would turn the close into a reset, which discards `last` at the peer), and a peer that does not close
 * within `lingerMs` is cut off. No reader may be attached any more.
 */
export function closeWith(socket: net.Socket, last: Buffer | undefined, lingerMs = 1_000): void {
  socket.on('error', ignore);
  if (socket.destroyed) return;
  const timer = setTimeout(() => socket.destroy(), lingerMs);
  timer.unref();
  socket.once('close', () => clearTimeout(timer));
  socket.on('data', ignore);
  socket.resume();
  if (last === undefined) socket.end();
  else socket.end(last);
}
