/** How long to wait before the next attempt: exponential with full jitter, so that many don't return at once. */
export interface BackoffOptions {
  readonly firstMs: number;
  readonly maxMs: number;
  /** 0 ≤ x < 1. */
  readonly random: () => number;
}

export class Backoff {
  readonly #options: BackoffOptions;
  #attempts = 0;

  constructor(options: BackoffOptions) {
    this.#options = options;
  }

  /** Milliseconds, at least half of the present step. */
  next(): number {
    const { firstMs, maxMs, random } = this.#options;
    const step = Math.min(maxMs, firstMs * 2 ** Math.min(this.#attempts, 30));
    this.#attempts += 1;
    return step / 2 + (step / 2) * random();
  }

  reset(): void {
    this.#attempts = 0;
  }
}
