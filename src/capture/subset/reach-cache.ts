/**
 * What statements touch, by text, search path and user. One answer is kept for all texts that differ in numbers alone; so that
 * those that come again and again are not looked through each time, it is kept once more for each of the last texts as it came.
 * The fingerprint in it is that of the text that was read.
 */
import type { NameScope, StatementReach } from '../../core/subset-ports.js';
import { BoundedCache } from '../bounded-cache.js';
import { numberBlind } from '../number-blind.js';

const ENTRIES_MAX = 4_096;
const CHARACTERS_MAX = 8 * 2 ** 20;
/** Of texts as they came: most of those with numbers in them come once. */
const EXACT_ENTRIES_MAX = 1_024;
const EXACT_CHARACTERS_MAX = 2 ** 20;

export class ReachCache {
  readonly #reaches = new BoundedCache<StatementReach>(ENTRIES_MAX, CHARACTERS_MAX);
  readonly #exact = new BoundedCache<StatementReach>(EXACT_ENTRIES_MAX, EXACT_CHARACTERS_MAX);

  get(text: string, scope: NameScope): StatementReach | undefined {
    const exactly = keyOf(text, scope);
    const exact = this.#exact.get(exactly);
    if (exact !== undefined) return exact;
    const reach = this.#reaches.get(reachKey(text, scope));
    if (reach !== undefined) this.#exact.set(exactly, reach);
    return reach;
  }

  /** `key`: see {@link reachKey}. */
  set(key: string, reach: StatementReach): void {
    this.#reaches.set(key, reach);
  }
}

/** The same for all texts that touch the same for certain. */
export function reachKey(text: string, scope: NameScope): string {
  return keyOf(numberBlind(text), scope);
}

function keyOf(text: string, { searchPath, user, prepared }: NameScope): string {
  return `${user}\0${searchPath}\0${prepared === true ? 'p' : ''}\0${text}`;
}
