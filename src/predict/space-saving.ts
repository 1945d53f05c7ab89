/**
 * The heaviest keys of a stream in bounded memory, old accesses fading with a half-life: SpaceSaving (Metwally, Agrawal &
 * El Abbadi, ICDT 2005) with forward decay (Cormode, Shkapenyuk, Srivastava & Xu, ICDE 2009).
 *
 * Invariants: at most `capacity` keys; a binary heap by weight whose root is the next to be evicted; `weight − error` is
 * certain, `weight` is the most it can be. Weights grow by 2^(t/halfLife) and are scaled back before they overflow.
 */
import { add, at } from './numeric.js';

const SCALE_MAX = 1e100;

export interface HeavyKey<K> {
  readonly key: K;
  /** Decayed accesses, as of the last `offer`: an upper bound. */
  readonly weight: number;
  /** By how much `weight` may be too large. */
  readonly error: number;
}

export class SpaceSaving<K> {
  readonly #capacity: number;
  readonly #halfLife: number;
  readonly #places = new Map<K, number>();
  readonly #keys: K[] = [];
  readonly #weights: Float64Array;
  readonly #errors: Float64Array;
  #origin = 0;
  #now = 0;

  /** `halfLife` in the unit of `offer`'s time. */
  constructor(capacity: number, halfLife: number) {
    this.#capacity = capacity;
    this.#halfLife = halfLife;
    this.#weights = new Float64Array(capacity);
    this.#errors = new Float64Array(capacity);
  }

  get size(): number {
    return this.#keys.length;
  }

  /** Counts an access of `weight` at `time`; a time before the latest counts as the latest. */
  offer(key: K, time: number, weight = 1): void {
    this.#now = Math.max(this.#now, time);
    let scale = 2 ** ((this.#now - this.#origin) / this.#halfLife);
    if (scale > SCALE_MAX) {
      this.#rescale();
      scale = 1;
    }
    const place = this.#places.get(key);
    if (place !== undefined) {
      add(this.#weights, place, weight * scale);
      this.#sink(place);
    } else if (this.#keys.length < this.#capacity) {
      const last = this.#keys.length;
      this.#keys.push(key);
      this.#weights[last] = weight * scale;
      this.#errors[last] = 0;
      this.#places.set(key, last);
      this.#rise(last);
    } else {
      this.#places.delete(this.#keys[0] as K);
      this.#keys[0] = key;
      this.#places.set(key, 0);
      this.#errors[0] = at(this.#weights, 0);
      add(this.#weights, 0, weight * scale);
      this.#sink(0);
    }
  }

  /** The decayed weight of one key now; 0 where it is not kept. */
  weightOf(key: K): number {
    const place = this.#places.get(key);
    return place === undefined ? 0 : at(this.#weights, place) / this.#present();
  }

  /** Heaviest first. */
  top(count: number): readonly HeavyKey<K>[] {
    const present = this.#present();
    return Array.from(this.#keys.keys())
      .sort((a, b) => at(this.#weights, b) - at(this.#weights, a))
      .slice(0, count)
      .map((place) => ({
        key: this.#keys[place] as K,
        weight: at(this.#weights, place) / present,
        error: at(this.#errors, place) / present,
      }));
  }

  #present(): number {
    return 2 ** ((this.#now - this.#origin) / this.#halfLife);
  }

  /** A silence of many half-lives makes the divisor infinite, and old weights the zero they are. */
  #rescale(): void {
    const scale = this.#present();
    for (let place = 0; place < this.#keys.length; place++) {
      this.#weights[place] = at(this.#weights, place) / scale;
      this.#errors[place] = at(this.#errors, place) / scale;
    }
    this.#origin = this.#now;
  }

  #sink(from: number): void {
    let place = from;
    for (;;) {
      const left = 2 * place + 1;
      if (left >= this.#keys.length) return;
      const right = left + 1;
      const lighter =
        right < this.#keys.length && at(this.#weights, right) < at(this.#weights, left) ? right : left;
      if (at(this.#weights, lighter) >= at(this.#weights, place)) return;
      this.#swap(place, lighter);
      place = lighter;
    }
  }

  #rise(from: number): void {
    let place = from;
    while (place > 0) {
      const parent = (place - 1) >> 1;
      if (at(this.#weights, parent) <= at(this.#weights, place)) return;
      this.#swap(place, parent);
      place = parent;
    }
  }

  #swap(a: number, b: number): void {
    const keyA = this.#keys[a] as K;
    const keyB = this.#keys[b] as K;
    this.#keys[a] = keyB;
    this.#keys[b] = keyA;
    this.#places.set(keyA, b);
    this.#places.set(keyB, a);
    const weight = at(this.#weights, a);
    this.#weights[a] = at(this.#weights, b);
    this.#weights[b] = weight;
    const error = at(this.#errors, a);
    this.#errors[a] = at(this.#errors, b);
    this.#errors[b] = error;
  }
}
