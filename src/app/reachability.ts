/**
 * Whether the server that leads can be reached, for the readiness check: a connection is opened and closed again, no
 * login. Asked only when readiness is, and an answer is kept for a moment, so that however often it is asked, the
 * server sees one connection a second at most.
 */
import type { Clock } from '../core/clock.js';
import type { DatabaseEndpoint, Side } from '../core/ports.js';
import { openServerSocket } from '../core/server-socket.js';

const KEPT_MS = 1000;
const TIMEOUT_MS = 2000;

export class Reachability {
  readonly #clock: Clock;
  #last: { readonly side: Side; readonly atMs: number; readonly answer: Promise<boolean> } | undefined;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Never throws; an answer that takes too long is false. */
  isReachable(side: Side, endpoint: DatabaseEndpoint): Promise<boolean> {
    const nowMs = this.#clock.monotonicMs();
    const last = this.#last;
    if (last !== undefined && last.side === side && nowMs - last.atMs < KEPT_MS) return last.answer;
    const answer = openServerSocket(side, endpoint, 'plain', AbortSignal.timeout(TIMEOUT_MS)).then(
      (socket) => {
        socket.on('error', () => undefined);
        socket.destroy();
        return true;
      },
      () => false,
    );
    this.#last = { side, atMs: nowMs, answer };
    return answer;
  }
}
