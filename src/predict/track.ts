/**
 * What the forecasters see: the known past of one series as *levels* (log1p of the count per bucket) on a grid with
 * whole days. Missing buckets are filled from the past alone (the same slot a week or a day before, else the bucket
 * before), so a view cut at any index shows exactly what was known then.
 *
 * A track and its views share their arrays; only `length` says how much of them may be read. A back-test walks a view
 * forward over what is already there (`advance`), a live series pushes new buckets (`push`): the models can't tell.
 */
import type { LocalSeries } from './local-time.js';
import { at } from './numeric.js';

interface Storage {
  levels: Float64Array;
  observed: Uint8Array;
  filled: number;
}

export class Track {
  readonly perDay: number;
  readonly perWeek: number;
  /** Slot of the week of index 0; Monday 00:00 is 0. */
  readonly firstSlot: number;
  readonly #storage: Storage;
  #length: number;

  private constructor(storage: Storage, length: number, perDay: number, firstSlot: number) {
    this.#storage = storage;
    this.#length = length;
    this.perDay = perDay;
    this.perWeek = perDay * 7;
    this.firstSlot = firstSlot;
  }

  static empty(perDay: number, firstSlot: number): Track {
    const storage = { levels: new Float64Array(64), observed: new Uint8Array(64), filled: 0 };
    return new Track(storage, 0, perDay, firstSlot);
  }

  static of(series: LocalSeries): Track {
    const track = Track.empty(series.perDay, series.firstSlot);
    for (let index = 0; index < series.values.length; index++) {
      track.push(series.missing[index] === 1 ? undefined : at(series.values, index));
    }
    return track;
  }

  /** Known buckets. */
  get length(): number {
    return this.#length;
  }

  /** Only indices below `length` may be read. */
  get levels(): Float64Array {
    return this.#storage.levels;
  }

  /** 1 where a count was seen, 0 where the level was filled in. */
  get observed(): Uint8Array {
    return this.#storage.observed;
  }

  slot(index: number): number {
    return (((this.firstSlot + index) % this.perWeek) + this.perWeek) % this.perWeek;
  }

  /** The same past, known up to `length` only. */
  view(length: number): Track {
    return new Track(this.#storage, Math.min(length, this.#length), this.perDay, this.firstSlot);
  }

  /** A copy of the last `steps` buckets, for a history shortened after a change. */
  tail(steps: number): Track {
    const from = Math.max(0, this.#length - steps);
    const storage = {
      levels: this.#storage.levels.slice(from, this.#length),
      observed: this.#storage.observed.slice(from, this.#length),
      filled: this.#length - from,
    };
    return new Track(storage, storage.filled, this.perDay, this.slot(from));
  }

  /** Makes the next stored bucket known. False where there is none. */
  advance(): boolean {
    if (this.#length >= this.#storage.filled) return false;
    this.#length += 1;
    return true;
  }

  /** Appends one closed bucket; undefined where it was not observed. Only on a track that shows all it holds. */
  push(count: number | undefined): void {
    const storage = this.#storage;
    const index = this.#length;
    if (index === storage.levels.length) grow(storage);
    storage.levels[index] = count === undefined ? this.#fill(index) : Math.log1p(count);
    storage.observed[index] = count === undefined ? 0 : 1;
    this.#length = index + 1;
    storage.filled = this.#length;
  }

  #fill(index: number): number {
    const { levels } = this.#storage;
    if (index >= this.perWeek) return at(levels, index - this.perWeek);
    if (index >= this.perDay) return at(levels, index - this.perDay);
    return index > 0 ? at(levels, index - 1) : 0;
  }
}

function grow(storage: Storage): void {
  const levels = new Float64Array(storage.levels.length * 2);
  levels.set(storage.levels);
  const observed = new Uint8Array(storage.observed.length * 2);
  observed.set(storage.observed);
  storage.levels = levels;
  storage.observed = observed;
}
