/**
 * The most frequent of many keys in fixed memory: SpaceSaving (Metwally, Agrawal, El Abbadi 2005). A key that is not
 * among the `capacity` counted takes the place, and the count, of the least frequent one: counts are never too low,
 * and too high by at most `error`.
 *
 * Invariants: `#heap` is a min-heap by count; each counter knows its place in it; `#counters` holds exactly the heap's.
 */
export interface Counted<K> {
  readonly key: K;
  readonly count: number;
  readonly error: number;
  /** Of the count, how much was added as marked: for keys, writes. */
  readonly marked: number;
}

interface Counter<K> {
  key: K;
  count: number;
  error: number;
  marked: number;
  place: number;
}

export class SpaceSaving<K> {
  readonly #capacity: number;
  readonly #counters = new Map<K, Counter<K>>();
  readonly #heap: Counter<K>[] = [];
  #total = 0;

  constructor(capacity: number) {
    this.#capacity = capacity;
  }

  /** Everything that was added, whether its key is still counted or not. */
  get total(): number {
    return this.#total;
  }

  get size(): number {
    return this.#heap.length;
  }

  add(key: K, amount = 1, marked = 0): void {
    this.#total += amount;
    const known = this.#counters.get(key);
    if (known !== undefined) {
      known.count += amount;
      known.marked += marked;
      this.#sink(known);
      return;
    }
    if (this.#heap.length < this.#capacity) {
      const counter: Counter<K> = { key, count: amount, error: 0, marked, place: this.#heap.length };
      this.#counters.set(key, counter);
      this.#heap.push(counter);
      this.#rise(counter);
      return;
    }
    const least = this.#heap[0];
    if (least === undefined) return;
    this.#counters.delete(least.key);
    least.key = key;
    least.error = least.count;
    least.count += amount;
    least.marked = marked;
    this.#counters.set(key, least);
    this.#sink(least);
  }

  /** Descending by count. */
  top(limit: number = this.#heap.length): readonly Counted<K>[] {
    return this.#heap
      .toSorted((a, b) => b.count - a.count)
      .slice(0, limit)
      .map(({ key, count, error, marked }) => ({ key, count, error, marked }));
  }

  clear(): void {
    this.#counters.clear();
    this.#heap.length = 0;
    this.#total = 0;
  }

  #rise(counter: Counter<K>): void {
    while (counter.place > 0) {
      const parent = this.#heap[(counter.place - 1) >>> 1];
      if (parent === undefined || parent.count <= counter.count) return;
      this.#swap(parent, counter);
    }
  }

  #sink(counter: Counter<K>): void {
    for (;;) {
      const left = this.#heap[2 * counter.place + 1];
      if (left === undefined) return;
      const right = this.#heap[2 * counter.place + 2];
      const smaller = right !== undefined && right.count < left.count ? right : left;
      if (smaller.count >= counter.count) return;
      this.#swap(counter, smaller);
    }
  }

  #swap(upper: Counter<K>, lower: Counter<K>): void {
    const { place } = upper;
    upper.place = lower.place;
    lower.place = place;
    this.#heap[upper.place] = upper;
    this.#heap[lower.place] = lower;
  }
}
