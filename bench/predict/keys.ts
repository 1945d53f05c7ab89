/** Hot keys of a real trace: how much of the next window's accesses the predicted keys cover, beside who knew them. */
import { createReadStream, existsSync } from 'node:fs';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import type { ReadableStream } from 'node:stream/web';
import xz from 'xz-decompress';
import { heaviest, HeatTracker, PARTS } from '../../src/predict/heat-tracker.js';

export const HOT_KEYS = 1000;
export const KEYS_AIM = 0.94;
/** Accesses per window: about six and twelve minutes of the trace's hour. */
export const WINDOWS = [500_000, 1_000_000] as const;

export interface KeysResult {
  readonly window: number;
  readonly origins: number;
  /** Accesses covered, in relation to the 1,000 keys that a clairvoyant would take. */
  readonly predicted: number;
  readonly persistence: number;
  /** By all accesses so far, as a plan takes those of a day. */
  readonly counted: number;
  /** Origins at which persistence covered more, and where it did by more than one in a hundred. */
  readonly below: number;
  readonly clearlyBelow: number;
}

async function readKeys(folder: string): Promise<Int32Array | undefined> {
  const file = join(folder, 'keys', 'orm-busy.trace.xz');
  if (!existsSync(file)) return undefined;
  const packed = Readable.toWeb(createReadStream(file)) as ReadableStream<Uint8Array>;
  const chunks: Uint8Array[] = [];
  for await (const chunk of new xz.XzReadableStream(packed)) chunks.push(chunk);
  const bytes = Buffer.concat(chunks);
  const keys = new Int32Array(bytes.length >> 2);
  for (let index = 0; index < keys.length; index++) keys[index] = bytes.readInt32BE(index * 4);
  return keys;
}

export async function benchKeys(folder: string, accessesMax: number): Promise<readonly KeysResult[]> {
  const keys = await readKeys(folder);
  if (keys === undefined) return [];
  const used = keys.subarray(0, Math.min(keys.length, accessesMax));
  return WINDOWS.filter((window) => used.length >= 3 * window).map((window) => run(used, window));
}

function run(keys: Int32Array, window: number): KeysResult {
  const part = window / PARTS;
  const tracker = new HeatTracker<number>(20_000, HOT_KEYS);
  const sums = { predicted: 0, persistence: 0, counted: 0, clairvoyant: 0 };
  let origins = 0;
  let below = 0;
  let clearlyBelow = 0;
  const past = new Map<number, number>();
  const all = new Map<number, number>();
  const next = new Map<number, number>();
  const move = (counts: Map<number, number>, from: number, by: 1 | -1): void => {
    for (const key of keys.subarray(from, from + part)) {
      const left = (counts.get(key) ?? 0) + by;
      if (left > 0) counts.set(key, left);
      else counts.delete(key);
    }
  };
  for (let index = 0; index < PARTS; index++) move(next, index * part, 1);
  for (let origin = part; origin + window <= keys.length; origin += part) {
    for (const key of keys.subarray(origin - part, origin)) tracker.offer(key);
    tracker.closePart();
    move(past, origin - part, 1);
    move(all, origin - part, 1);
    if (origin > window) move(past, origin - window - part, -1);
    move(next, origin - part, -1);
    move(next, origin + window - part, 1);
    if (origin < window) continue;
    const covers = (hot: Iterable<number>): number => {
      let sum = 0;
      for (const key of hot) sum += next.get(key) ?? 0;
      return sum;
    };
    const predicted = covers(tracker.predict().map(({ key }) => key));
    const persistence = covers(topOf(past));
    sums.predicted += predicted;
    sums.persistence += persistence;
    sums.counted += covers(topOf(all));
    sums.clairvoyant += covers(topOf(next));
    origins += 1;
    if (predicted < persistence) below += 1;
    if (predicted < 0.99 * persistence) clearlyBelow += 1;
  }
  return {
    window,
    origins,
    predicted: sums.predicted / sums.clairvoyant,
    persistence: sums.persistence / sums.clairvoyant,
    counted: sums.counted / sums.clairvoyant,
    below,
    clearlyBelow,
  };
}

function topOf(counts: ReadonlyMap<number, number>): number[] {
  return heaviest(counts, HOT_KEYS).map(([key]) => key);
}
