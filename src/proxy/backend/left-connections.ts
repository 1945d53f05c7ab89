/**
 * Connections that sessions have left, closed once those who waited have been served.
 *
 * A server process takes its time to end, about as long as a statement takes. Were all of them told goodbye while the
 * gate opens, the held statements would share the servers' processors with them.
 *
 * States of a connection: left → closing (told goodbye) → gone. Bounds: none is kept for more than some two seconds, and
 * at most {@link LEFT_MAX} are; the oldest is closed at once then.
 */
import type net from 'node:net';
import { encodeTerminate } from '../../wire/postgres/messages.js';
import { closeWith } from '../socket-reader.js';

/** For the first statements behind the gate. */
const QUIET_MS = 300;
/** Between two, where that many can be closed in {@link SPREAD_MS}. */
const GAP_MS = 10;
const SPREAD_MS = 1_500;
const LEFT_MAX = 1_000;
/** For a server to finish what it runs and close. */
const LEAVE_TIMEOUT_MS = 60_000;

export class LeftConnections {
  readonly #quietMs: number;
  readonly #left = new Set<net.Socket>();
  #timer: NodeJS.Timeout | undefined;
  #gapMs = GAP_MS;

  constructor(quietMs = QUIET_MS) {
    this.#quietMs = quietMs;
  }

  get size(): number {
    return this.#left.size;
  }

  /** Nobody reads or writes it any more, and it has nothing more to say. */
  add(socket: net.Socket): void {
    if (socket.destroyed) return;
    const [oldest] = this.#left;
    if (this.#left.size >= LEFT_MAX && oldest !== undefined) this.#close(oldest);
    this.#left.add(socket);
    socket.once('close', () => this.#left.delete(socket));
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#closeNext(), this.#quietMs);
    this.#timer.unref();
    this.#gapMs = Math.min(GAP_MS, SPREAD_MS / this.#left.size);
  }

  /** All that are left, at once. */
  end(): void {
    clearTimeout(this.#timer);
    for (const socket of this.#left) this.#close(socket);
  }

  #closeNext(): void {
    const [socket] = this.#left;
    if (socket === undefined) return;
    this.#close(socket);
    this.#timer = setTimeout(() => this.#closeNext(), this.#gapMs);
    this.#timer.unref();
  }

  #close(socket: net.Socket): void {
    this.#left.delete(socket);
    closeWith(socket, encodeTerminate(), LEAVE_TIMEOUT_MS);
  }
}
