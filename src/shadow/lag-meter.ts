/**
 * How far a lane is behind the head of its origin's log.
 *
 * The head is polled. Lag is null, unknown, unless the head was heard of lately: unknown is not zero.
 */
export interface Lag {
  readonly bytes: number | null;
  readonly ms: number | null;
}

export const UNKNOWN_LAG: Lag = { bytes: null, ms: null };

/** Heads remembered for the lag in time; at a poll every 250 ms, 2,000 cover more than eight minutes. */
const HEADS_MAX = 2000;

export class LagMeter {
  readonly #staleAfterMs: number;
  #heads: { readonly position: bigint; readonly atMs: number }[] = [];
  #heardAtMs: number | null = null;
  #head = 0n;

  constructor(staleAfterMs: number) {
    this.#staleAfterMs = staleAfterMs;
  }

  heard(head: bigint, nowMs: number): void {
    this.#heardAtMs = nowMs;
    if (head <= this.#head) return;
    this.#head = head;
    this.#heads.push({ position: head, atMs: nowMs });
    if (this.#heads.length > HEADS_MAX) this.#heads.splice(1, 1);
  }

  /** Nothing is known until the head is heard again. */
  forget(): void {
    this.#heardAtMs = null;
    this.#heads = [];
    this.#head = 0n;
  }

  lag(committed: bigint, nowMs: number): Lag {
    if (this.#heardAtMs === null || nowMs - this.#heardAtMs > this.#staleAfterMs) return UNKNOWN_LAG;
    while (this.#heads[0] !== undefined && this.#heads[0].position <= committed) this.#heads.shift();
    const oldest = this.#heads[0];
    if (oldest === undefined) return { bytes: 0, ms: 0 };
    return { bytes: Number(this.#head - committed), ms: Math.max(0, nowMs - oldest.atMs) };
  }
}
