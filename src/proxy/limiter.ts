/** Runs at most `limit` pieces of work at once; the rest wait in order. */
import type { Clock } from '../core/clock.js';

/** A piece of work is followed by a rest as long as itself, at most so many milliseconds, before the next begins. */
export interface Gentle {
  readonly clock: Clock;
  readonly restMaxMs: number;
}

export class Limiter {
  readonly #limit: number;
  readonly #gentle: Gentle | null;
  #running = 0;
  readonly #waiting: (() => void)[] = [];

  constructor(limit: number, gentle: Gentle | null = null) {
    this.#limit = limit;
    this.#gentle = gentle;
  }

  readonly run = async <T>(work: () => Promise<T>): Promise<T> => {
    if (this.#running >= this.#limit) {
      // The one that ends hands its place over.
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    } else {
      this.#running += 1;
    }
    const startedMs = this.#gentle?.clock.monotonicMs() ?? 0;
    try {
      return await work();
    } finally {
      void this.#rested(startedMs).then(() => this.#free());
    }
  };

  async #rested(startedMs: number): Promise<void> {
    if (this.#gentle === null) return;
    const { clock, restMaxMs } = this.#gentle;
    await clock.sleep(Math.min(restMaxMs, clock.monotonicMs() - startedMs));
  }

  #free(): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#running -= 1;
    else next();
  }
}
