/**
 * A cache with a hard bound on its entries and on the characters they weigh.
 *
 * Two generations: what is used moves to the young one; when that is full, it becomes the old one and the old one is
 * forgotten. So what was used lately survives, and an entry costs no list to maintain.
 */
export class BoundedCache<V> {
  readonly #entriesMax: number;
  readonly #charactersMax: number;
  #young = new Map<string, V>();
  #old = new Map<string, V>();
  #characters = 0;

  /** Bounds hold for each of the two generations. */
  constructor(entriesMax: number, charactersMax: number) {
    this.#entriesMax = entriesMax;
    this.#charactersMax = charactersMax;
  }

  get size(): number {
    return this.#young.size + this.#old.size;
  }

  get(key: string): V | undefined {
    const young = this.#young.get(key);
    if (young !== undefined) return young;
    const old = this.#old.get(key);
    if (old === undefined) return undefined;
    this.#old.delete(key);
    this.set(key, old);
    return old;
  }

  set(key: string, value: V): void {
    if (this.#young.size >= this.#entriesMax || this.#characters + key.length > this.#charactersMax) {
      this.#old = this.#young;
      this.#young = new Map();
      this.#characters = 0;
    }
    this.#young.set(key, value);
    this.#characters += key.length;
  }
}
