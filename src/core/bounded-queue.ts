import { UnderstudyError } from './errors.js';

/** FIFO with a hard bound on its length. `push` throws `limit-reached` when full; nothing is dropped silently. */
export class BoundedQueue<T> {
  readonly #name: string;
  readonly #limit: number;
  #items: (T | undefined)[] = [];
  #head = 0;

  constructor(name: string, limit: number) {
    this.#name = name;
    this.#limit = limit;
  }

  get length(): number {
    return this.#items.length - this.#head;
  }

  push(item: T): void {
    if (this.length >= this.#limit) {
      throw new UnderstudyError('limit-reached', `${this.#name} is full (${this.#limit})`);
    }
    this.#items.push(item);
  }

  peek(): T | undefined {
    return this.#items[this.#head];
  }

  shift(): T | undefined {
    if (this.length === 0) return undefined;
    const item = this.#items[this.#head];
    this.#items[this.#head] = undefined;
    this.#head += 1;
    // Compact once the dead prefix dominates, so that shifting stays O(1) amortised.
    if (this.#head > 64 && this.#head * 2 > this.#items.length) {
      this.#items = this.#items.slice(this.#head);
      this.#head = 0;
    }
    return item;
  }

  clear(): void {
    this.#items = [];
    this.#head = 0;
  }
}
