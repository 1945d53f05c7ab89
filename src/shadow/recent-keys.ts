/**
 * The keys that were applied since the last clean comparison, so that a cutover only has to compare those.
 *
 * Bounded: past `keysMax` in all, new keys are not kept, and `overflowed` says that the set is not complete until a
 * full comparison was clean. A key applied again while it is compared stays: it carries a newer generation.
 */
import type { ApplyTable, Key } from './postgres/apply-table.js';
import { keyId, keyOf } from './postgres/apply-table.js';
import type { Step } from './postgres/flush-plan.js';

interface RecentKey {
  readonly key: Key;
  generation: number;
}

export interface RecentBatch {
  readonly table: string;
  readonly keys: readonly Key[];
}

export interface RecentSnapshot {
  readonly generation: number;
  readonly batches: readonly RecentBatch[];
}

export class RecentKeys {
  readonly #keysMax: number;
  readonly #tables = new Map<string, Map<string, RecentKey>>();
  #generation = 0;
  #count = 0;
  /** The generation in which a key was last left out; null where the set is complete. What was applied before this
   *  process began is not known. */
  #overflowedIn: number | null = 0;

  constructor(keysMax: number) {
    this.#keysMax = keysMax;
  }

  get overflowed(): boolean {
    return this.#overflowedIn !== null;
  }

  get size(): number {
    return this.#count;
  }

  note(steps: readonly Step[]): void {
    for (const step of steps) {
      if (step.kind === 'rows') {
        for (const { table, keyed, keyless } of step.tables) {
          for (const { key } of keyed.values()) this.#add(table, key);
          // Rows without a key can only be compared whole.
          if (keyless.length > 0) this.#overflowedIn = this.#generation;
        }
      } else if (step.kind === 'move') {
        this.#add(step.table, step.from);
        this.#add(step.table, keyOf(step.table, step.row));
      }
      // A truncated table's rows are gone on both sides; what follows names its keys.
    }
  }

  noteKeys(table: ApplyTable, keys: readonly Key[]): void {
    for (const key of keys) this.#add(table, key);
  }

  /** Everything noted so far, up to `keysMax` keys, oldest first. Keys noted from now on belong to a later generation. */
  snapshot(keysMax = Infinity): RecentSnapshot {
    const generation = this.#generation;
    this.#generation += 1;
    const batches: RecentBatch[] = [];
    let left = keysMax;
    for (const [table, keys] of this.#tables) {
      if (left <= 0) break;
      const chosen: Key[] = [];
      for (const { key } of keys.values()) {
        if (chosen.length >= left) break;
        chosen.push(key);
      }
      left -= chosen.length;
      batches.push({ table, keys: chosen });
    }
    return { generation, batches };
  }

  /** Those keys were found equal, as of that generation or later. */
  settle({ generation, batches }: RecentSnapshot): void {
    for (const { table, keys } of batches) {
      const known = this.#tables.get(table);
      if (known === undefined) continue;
      for (const key of keys) {
        const id = keyId(key);
        const recent = known.get(id);
        if (recent === undefined || recent.generation > generation) continue;
        known.delete(id);
        this.#count -= 1;
      }
      if (known.size === 0) this.#tables.delete(table);
    }
  }

  /** Every row of every table was found equal, as of that generation or later. */
  settleAll(snapshot: RecentSnapshot): void {
    this.settle(snapshot);
    if (this.#overflowedIn !== null && this.#overflowedIn <= snapshot.generation) this.#overflowedIn = null;
  }

  #add(table: ApplyTable, key: Key): void {
    let keys = this.#tables.get(table.name);
    if (keys === undefined) {
      keys = new Map();
      this.#tables.set(table.name, keys);
    }
    const id = keyId(key);
    const known = keys.get(id);
    if (known !== undefined) {
      known.generation = this.#generation;
      // To the end: the oldest come first in a snapshot of some.
      keys.delete(id);
      keys.set(id, known);
    } else if (this.#count >= this.#keysMax) {
      this.#overflowedIn = this.#generation;
    } else {
      keys.set(id, { key, generation: this.#generation });
      this.#count += 1;
    }
  }
}
