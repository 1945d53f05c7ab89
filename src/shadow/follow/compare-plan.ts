/**
 * Which table is compared next: the one of which most is known to be amiss, at a pace that leaves the servers to others.
 *
 *   unseen ──compared──► clean ──suspected──► suspected ──compared──► clean
 *
 * A table suspected again while it is being compared stays suspected. One that is suspected all the time, as a busy one
 * without a key is, is compared for at most a fifth of the time.
 */
import type { ApplyTable } from '../postgres/apply-table.js';

interface Entry {
  readonly table: ApplyTable;
  suspected: string | null;
  /** When the last comparison of it ended, and how long it took; null before the first of this process. */
  endedAtMs: number | null;
  durationMs: number;
}

/** The share of the time that comparing takes at most, at full intensity and at the least. */
const SHARE = 0.2;
const SHARE_MIN = 0.02;

export class ComparePlan {
  readonly #entries: ReadonlyMap<ApplyTable, Entry>;
  readonly #intervalMs: number;
  readonly #pace: { readonly intensity: number };

  /** `intervalMs`: after which a table is compared although nothing is known against it. */
  constructor(
    tables: readonly ApplyTable[],
    intervalMs: number,
    pace: { readonly intensity: number } = { intensity: 1 },
  ) {
    this.#intervalMs = intervalMs;
    this.#pace = pace;
    this.#entries = new Map(
      tables.map((table) => [table, { table, suspected: null, endedAtMs: null, durationMs: 0 }]),
    );
  }

  suspect(table: ApplyTable, why: string): void {
    const entry = this.#entries.get(table);
    if (entry !== undefined) entry.suspected ??= why;
  }

  /** Nothing that was found before counts any more. */
  suspectAll(why: string): void {
    for (const entry of this.#entries.values()) entry.suspected ??= why;
  }

  /** null where none is due. */
  next(nowMs: number): ApplyTable | null {
    let best: Entry | null = null;
    for (const entry of this.#entries.values()) {
      if (this.#dueAtMs(entry) > nowMs) continue;
      if (best === null || rank(entry) > rank(best) || (rank(entry) === rank(best) && older(entry, best)))
        best = entry;
    }
    return best?.table ?? null;
  }

  /** When the next table will be due. */
  nextAtMs(): number {
    let least = Infinity;
    for (const entry of this.#entries.values()) least = Math.min(least, this.#dueAtMs(entry));
    return least;
  }

  began(table: ApplyTable): void {
    const entry = this.#entries.get(table);
    if (entry !== undefined) entry.suspected = null;
  }

  ended(table: ApplyTable, nowMs: number, durationMs: number): void {
    const entry = this.#entries.get(table);
    if (entry === undefined) return;
    entry.endedAtMs = nowMs;
    entry.durationMs = durationMs;
  }

  get waiting(): number {
    return [...this.#entries.values()].filter((entry) => entry.suspected !== null).length;
  }

  get compared(): number {
    return [...this.#entries.values()].filter((entry) => entry.endedAtMs !== null).length;
  }

  /** What comparing every table took, summed over the last comparison of each; null while one is missing. */
  get wholeMs(): number | null {
    let total = 0;
    for (const entry of this.#entries.values()) {
      if (entry.endedAtMs === null) return null;
      total += entry.durationMs;
    }
    return total;
  }

  #dueAtMs(entry: Entry): number {
    if (entry.endedAtMs === null) return -Infinity;
    const share = Math.max(SHARE_MIN, SHARE * this.#pace.intensity);
    const pauseMs = (entry.durationMs * (1 - share)) / share;
    return entry.endedAtMs + (entry.suspected === null ? Math.max(this.#intervalMs, pauseMs) : pauseMs);
  }
}

function rank(entry: Entry): number {
  if (entry.suspected !== null) return 2;
  return entry.endedAtMs === null ? 1 : 0;
}

function older(a: Entry, b: Entry): boolean {
  return (a.endedAtMs ?? -Infinity) < (b.endedAtMs ?? -Infinity);
}
