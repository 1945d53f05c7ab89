/** New connections that came to the closed gate: they wait, and are let in or turned away together. */
import type { Clock } from '../core/clock.js';
import { UnderstudyError, asUnderstudyError } from '../core/errors.js';

export interface Refusal {
  readonly sqlState: string;
  readonly message: string;
}

/** A connection that may not come in; `response` is what its client is told. */
export class NotAdmitted extends UnderstudyError {
  readonly sqlState: string;

  constructor({ sqlState, message }: Refusal) {
    super('route-unknown', message);
    this.sqlState = sqlState;
  }
}

interface Waiting {
  readonly sinceMs: number;
  readonly gone: AbortSignal;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

export class WaitingRoom {
  readonly #clock: Clock;
  #waiting: Waiting[] = [];

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  get size(): number {
    return this.#waiting.length;
  }

  /** Resolves once it is let in. Throws {@link NotAdmitted}; `cancelled` where the client leaves first. */
  async wait(gone: AbortSignal): Promise<void> {
    const onGone = (): void => {
      this.#waiting = this.#waiting.filter((waiting) => waiting.gone !== gone);
      reject(asUnderstudyError(gone.reason, 'cancelled', 'the client has left'));
    };
    let reject: (error: Error) => void = () => undefined;
    gone.addEventListener('abort', onGone, { once: true });
    try {
      await new Promise<void>((resolve, refuse) => {
        reject = refuse;
        this.#waiting.push({ sinceMs: this.#clock.monotonicMs(), gone, resolve, reject });
      });
    } finally {
      gone.removeEventListener('abort', onGone);
    }
  }

  /** Lets all in; returns how long each has waited, in milliseconds. */
  admit(): number[] {
    const nowMs = this.#clock.monotonicMs();
    return this.#waiting.splice(0).map(({ sinceMs, resolve }) => {
      resolve();
      return nowMs - sinceMs;
    });
  }

  refuse(refusal: Refusal): void {
    for (const waiting of this.#waiting.splice(0)) waiting.reject(new NotAdmitted(refusal));
  }
}
