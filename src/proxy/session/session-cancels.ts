/**
 * The cancelling of what one session runs on its backend: for its client, for the watch over what takes too long, or for
 * the roll back at the drain deadline. The statement's error is told in the words of whoever ended it.
 *
 * A client's cancel waits (`wanted`) while the proxy's own question stands in front of the client's statement, as it would
 * meet that instead.
 */
import { QUERY_TIMED_OUT, ROLLED_BACK } from './server-stream.js';
import type { SessionContext } from './session-context.js';
import { rollBackSession, type RollbackSubject } from './session-rollback.js';
import type { SessionSockets } from './session-sockets.js';
import type { SessionWire } from './session-wire.js';

export class SessionCancels {
  readonly #wire: SessionWire;
  readonly #sockets: SessionSockets;
  readonly #context: SessionContext;
  #wanted = false;
  #underway = 0;
  /** What runs was cancelled for taking too long. */
  #late = false;

  constructor(wire: SessionWire, sockets: SessionSockets, context: SessionContext) {
    this.#wire = wire;
    this.#sockets = sockets;
    this.#context = context;
  }

  /** A request meets whatever runs when it arrives: while one is underway, another might meet the next statement. */
  get underway(): boolean {
    return this.#underway > 0;
  }

  #send(): void {
    this.#underway += 1;
    void this.#context.cancelBackend(this.#sockets.backend).finally(() => (this.#underway -= 1));
  }

  /** What runs is to be cancelled as soon as it may. `settle` is the session's, and calls this object's. */
  want(settle: () => void): void {
    this.#wanted = true;
    settle();
    this.#wanted &&= this.#wire.tracker.ownAtHead;
  }

  /** Call after anything that may have settled something. */
  settle(): void {
    const { tracker } = this.#wire;
    if (!this.#wanted || tracker.ownAtHead) return;
    this.#wanted = false;
    if (tracker.awaitingReady || tracker.owesExtended) this.#send();
  }

  /** What runs has taken too long: its client is told so by the error that ends it. */
  tellLate(): void {
    this.#late = true;
    this.#wire.serverStream.cancelled = QUERY_TIMED_OUT;
  }

  /** The server has become ready: what ran, and may have been cancelled for being late, has ended. */
  ready(): void {
    if (!this.#late) return;
    this.#late = false;
    this.#wire.serverStream.cancelled = null;
  }

  /** As {@link rollBackSession}. */
  rollBack(session: Pick<RollbackSubject, 'phase' | 'midway' | 'terminate' | 'answer'>): Promise<void> {
    const { clock, settings } = this.#context;
    return rollBackSession({
      ...session,
      tracker: this.#wire.tracker,
      toServer: (bytes) => this.#sockets.toServer(bytes),
      toClient: (bytes) => this.#sockets.toClient(bytes),
      cancelBackend: () => this.#send(),
      setCancelling: (cancelling) => {
        this.#late = false;
        this.#wire.serverStream.cancelled = cancelling ? ROLLED_BACK : null;
      },
      sendOwn: (messages, kind) => this.#wire.own.send(messages, kind),
      sleep: (ms) => clock.sleep(ms),
      nowMs: () => clock.monotonicMs(),
      cancelTimeoutMs: settings.cancelTimeoutMs,
    });
  }
}
