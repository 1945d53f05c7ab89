/**
 * Which of the source's standbys lag because of the copy. One that is delayed on purpose (`recovery_min_apply_delay`), or
 * whose replay is paused, lags whatever the copy does; the source can't see why.
 *
 * A standby: bounding ──as far behind as before, though the copy is held back as far as it can be──► passed over
 *            ──within the bound again──► bounding
 */
export interface StandbyLag {
  /** The same for as long as it is connected. */
  readonly name: string;
  readonly lagMs: number;
}

/** So long the copy rests as far as it can before a standby that stays behind is passed over. */
const HELD_MS = 20_000;
/** A standby that catches up by less than this share of the time that passes does not catch up. */
const CATCHING_UP_SHARE = 0.1;

export class Standbys {
  readonly #boundMs: number;
  /** Since the copy has been held back as far as it can be; by name. */
  readonly #held = new Map<string, { readonly sinceMs: number; readonly lagMs: number }>();
  readonly #passedOver = new Set<string>();

  constructor(boundMs: number) {
    this.#boundMs = boundMs;
  }

  /** Names of those that lag beyond the bound whatever the copy does. */
  get passedOver(): readonly string[] {
    return [...this.#passedOver];
  }

  /** The farthest that one is behind because of the copy, as far as can be told; null where none is. */
  observe(standbys: readonly StandbyLag[], atMinimum: boolean, nowMs: number): number | null {
    const there = new Set(standbys.map(({ name }) => name));
    for (const name of [...this.#held.keys(), ...this.#passedOver]) {
      if (there.has(name)) continue;
      this.#held.delete(name);
      this.#passedOver.delete(name);
    }
    for (const standby of standbys) this.#look(standby, atMinimum, nowMs);
    const counting = standbys.filter(({ name }) => !this.#passedOver.has(name));
    return counting.length === 0 ? null : Math.max(...counting.map(({ lagMs }) => lagMs));
  }

  #look({ name, lagMs }: StandbyLag, atMinimum: boolean, nowMs: number): void {
    if (lagMs <= this.#boundMs) {
      this.#held.delete(name);
      this.#passedOver.delete(name);
      return;
    }
    const held = this.#held.get(name);
    if (!atMinimum) this.#held.delete(name);
    else if (held === undefined) this.#held.set(name, { sinceMs: nowMs, lagMs });
    else if (nowMs - held.sinceMs >= HELD_MS) {
      const caughtUpMs = held.lagMs - lagMs;
      if (caughtUpMs < (nowMs - held.sinceMs) * CATCHING_UP_SHARE) this.#passedOver.add(name);
      this.#held.set(name, { sinceMs: nowMs, lagMs });
    }
  }
}
