/**
 * The server's end of one session: the side it is on, whether its connection is lost, and its exchange for another.
 *
 * Invariant: whoever is exchanged for is told everything again that the client takes for granted there, and nothing that
 * was due from the one that is left is waited for.
 */
import type { Side } from '../../core/ports.js';
import { encodeErrorResponse } from '../../wire/postgres/messages.js';
import type { Backend } from '../backend/backend.js';
import type { AdoptedClient } from './session-context.js';
import type { SessionSockets } from './session-sockets.js';
import type { SessionWire } from './session-wire.js';
import type { ProxySettings } from '../settings.js';
import { WarmConnection } from '../backend/warm-connection.js';

export class SessionBackend {
  readonly #wire: SessionWire;
  readonly #sockets: SessionSockets;
  readonly #settings: ProxySettings;
  #side: Side;
  #lost = false;
  /** Told of each connection that the session moves to. */
  onMoved: AdoptedClient['onMoved'] | null = null;

  constructor(side: Side, wire: SessionWire, sockets: SessionSockets, settings: ProxySettings) {
    this.#side = side;
    this.#wire = wire;
    this.#sockets = sockets;
    this.#settings = settings;
  }

  get side(): Side {
    return this.#side;
  }

  get lost(): boolean {
    return this.#lost;
  }

  /** The connection is gone. */
  gone(): void {
    this.#lost = true;
    this.#wire.own.lost('the connection to the server was lost');
  }

  /** What its client is still to be told of the loss; null where the server's own words for it were passed on. */
  lastWords(atRest: boolean): Buffer | null {
    const { fatal } = this.#wire.serverStream;
    const seen = fatal !== null && !atRest;
    return seen ? null : (fatal ?? LOST_CONNECTION);
  }

  /** The session must be at rest. The connection it leaves is closed. */
  exchange(warm: WarmConnection, side: Side): void {
    this.#exchange(warm, side, (backend) => {
      this.#sockets.exchange(backend);
      return null;
    });
  }

  /** As `exchange`, in the middle of its client's work; the connection it leaves is returned, where it is of use. */
  exchangeAside(warm: WarmConnection, side: Side): WarmConnection | null {
    const { frameBytesMax, stateBytesMax } = this.#settings;
    const { walker } = this.#wire.serverStream;
    const cut = walker.insideFrame || walker.partialHeaderBytes > 0;
    const left = this.#exchange(warm, side, (backend) => this.#sockets.exchangeKeeping(backend));
    this.#wire.serverStream.whole = false;
    if (left === null) return null;
    // What is left of a message that it was saying can't be told from the next.
    if (cut) left.socket.destroy();
    if (left.socket.destroyed) return null;
    const bounds = { frameBytesMax, replyBytesMax: stateBytesMax };
    return new WarmConnection({ ...left, leftover: Buffer.alloc(0) }, bounds, true);
  }

  #exchange(
    warm: WarmConnection,
    side: Side,
    exchange: (backend: Backend) => Backend | null,
  ): Backend | null {
    const { own } = this.#wire;
    own.exchanges.lost('the session has moved');
    const notifications = warm.take();
    const left = exchange(warm.backend);
    this.#side = side;
    this.onMoved?.(side, warm.backend.socket);
    this.#lost = false;
    this.#wire.moved(warm.backend, side);
    for (const frame of notifications) this.#sockets.queueToClient(frame);
    this.#sockets.resumeBackend();
    const again = own.unnamedAgain();
    if (again.length > 0) this.#sockets.queueToServer(again);
    return left;
  }
}

const LOST_CONNECTION = encodeErrorResponse({
  severity: 'FATAL',
  sqlState: '08006',
  message: 'server closed the connection unexpectedly',
});
