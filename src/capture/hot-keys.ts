/**
 * The most used keys of each table, hour by hour, and decayed over the hours before.
 *
 * Per table one window, an hour long, counted by SpaceSaving. When a later hour begins, the window is handed out to be
 * kept and folded into the decayed weights: `weight = weight · ½^(1 h / half-life) + count`. An access of an hour that
 * is already over is left out, as is a table beyond {@link TABLES_MAX}.
 */
import type { HotKeys } from '../core/capture-ports.js';
import { SpaceSaving } from './space-saving.js';

const HOUR_MS = 3_600_000;
const TABLES_MAX = 500;

interface Window {
  startMs: number;
  readonly counts: SpaceSaving<string>;
  changed: boolean;
  /** Key → weight as of `startMs`. */
  past: Map<string, number>;
}

export interface HotKey {
  readonly key: string;
  /** Accesses, decayed. */
  readonly weight: number;
}

export class HotKeyCounters {
  readonly #keysMax: number;
  readonly #halfLifeMs: number;
  readonly #tables = new Map<string, Window>();
  #closed: HotKeys[] = [];
  #leftOut = 0;

  /** `keysMax` per table and hour. */
  constructor(keysMax: number, halfLifeMs: number) {
    this.#keysMax = keysMax;
    this.#halfLifeMs = halfLifeMs;
  }

  /** Accesses that could not be counted. */
  get leftOut(): number {
    return this.#leftOut;
  }

  add(table: string, key: string, writes: boolean, executions: number, atMs: number): void {
    const startMs = Math.floor(atMs / HOUR_MS) * HOUR_MS;
    let window = this.#tables.get(table);
    if (window === undefined) {
      if (this.#tables.size >= TABLES_MAX) {
        this.#leftOut += executions;
        return;
      }
      window = { startMs, counts: new SpaceSaving(this.#keysMax), changed: false, past: new Map() };
      this.#tables.set(table, window);
    }
    if (startMs < window.startMs) {
      this.#leftOut += executions;
      return;
    }
    if (startMs > window.startMs) this.#turn(table, window, startMs);
    window.counts.add(key, executions, writes ? executions : 0);
    window.changed = true;
  }

  /** What changed since the last call; the hour at hand as it stands so far. */
  take(): readonly HotKeys[] {
    const taken = this.#closed;
    this.#closed = [];
    for (const [table, window] of this.#tables) {
      if (!window.changed) continue;
      taken.push(hotKeysOf(table, window));
      window.changed = false;
    }
    return taken;
  }

  /** By decayed weight, descending. */
  hottest(table: string, limit: number): readonly HotKey[] {
    const window = this.#tables.get(table);
    if (window === undefined) return [];
    return [...weightsOf(window)]
      .map(([key, weight]) => ({ key, weight }))
      .sort((a, b) => b.weight - a.weight)
      .slice(0, limit);
  }

  get tables(): readonly string[] {
    return [...this.#tables.keys()];
  }

  #turn(table: string, window: Window, startMs: number): void {
    if (window.changed) this.#closed.push(hotKeysOf(table, window));
    const decay = 0.5 ** ((startMs - window.startMs) / this.#halfLifeMs);
    const weights = [...weightsOf(window)].sort((a, b) => b[1] - a[1]).slice(0, this.#keysMax);
    window.past = new Map(weights.map(([key, weight]) => [key, weight * decay]));
    window.startMs = startMs;
    window.counts.clear();
    window.changed = false;
  }
}

function weightsOf({ past, counts }: Window): Map<string, number> {
  const weights = new Map(past);
  for (const { key, count } of counts.top()) weights.set(key, (weights.get(key) ?? 0) + count);
  return weights;
}

function hotKeysOf(table: string, { startMs, counts }: Window): HotKeys {
  return {
    table,
    startMs,
    accesses: counts.total,
    keys: counts.top().map(({ key, count, error, marked }) => ({ key, count, writes: marked, error })),
  };
}
