/**
 * Accepted connections on their way to a worker: each goes to the one that serves the fewest.
 *
 * Bounds: as many wait for a worker, or to be taken by it, as may be in their handshake at once; more are closed
 * unanswered. One that has waited as long as a handshake may take is closed.
 */
import type net from 'node:net';
import type { ProxySettings } from '../../proxy/settings.js';
import type { WorkerLink } from './worker-link.js';

export interface EntranceHallDeps {
  readonly settings: ProxySettings;
  readonly links: () => ReadonlySet<WorkerLink>;
}

export class EntranceHall {
  readonly #deps: EntranceHallDeps;
  readonly #waiting = new Map<net.Socket, NodeJS.Timeout>();
  #refused = 0;
  #closed = false;

  constructor(deps: EntranceHallDeps) {
    this.#deps = deps;
  }

  get waiting(): number {
    return this.#waiting.size;
  }

  get refused(): number {
    return this.#refused;
  }

  enter(socket: net.Socket): void {
    socket.on('error', () => undefined);
    const { maxHandshakes, handshakeTimeoutMs } = this.#deps.settings;
    let underWay = this.#waiting.size;
    let least: WorkerLink | undefined;
    for (const link of this.#deps.links()) {
      underWay += link.underWay;
      if (link.serving && (least === undefined || link.connections < least.connections)) least = link;
    }
    if (this.#closed || underWay >= maxHandshakes) {
      this.#refused += 1;
      socket.destroy();
    } else if (least === undefined) {
      const tooLate = setTimeout(() => {
        this.#waiting.delete(socket);
        this.#refused += 1;
        socket.destroy();
      }, handshakeTimeoutMs);
      this.#waiting.set(socket, tooLate);
    } else {
      least.hand(socket);
    }
  }

  /** There is a worker now. */
  served(): void {
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const [socket, timer] of waiting) {
      clearTimeout(timer);
      this.enter(socket);
    }
  }

  close(): void {
    this.#closed = true;
    this.served();
  }
}
