/** Frames made hostile: a seeded generator, a corpus, and mutations that a test can repeat by its seed. */
import { readFileSync } from 'node:fs';

/** xorshift32: fast, and the same everywhere. */
export class Chance {
  #state: number;

  constructor(seed: number) {
    this.#state = seed | 0 || 1;
  }

  /** A whole number in [0, below). */
  below(below: number): number {
    let x = this.#state;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.#state = x;
    return (x >>> 0) % below;
  }

  /** True once in `times`. */
  once(times: number): boolean {
    return this.below(times) === 0;
  }

  pick<T>(items: readonly T[]): T {
    const item = items[this.below(items.length)];
    if (item === undefined) throw new Error('nothing to pick from');
    return item;
  }
}

/** Whole frames. */
export function corpus(name: 'frontend' | 'backend'): readonly Buffer[] {
  return readFileSync(new URL(`../fixtures/frames/${name}.txt`, import.meta.url), 'utf8')
    .split('\n')
    .filter((line) => line !== '' && !line.startsWith('#'))
    .map((line) => Buffer.from(line.slice(2), 'hex'));
}

const LENGTHS = [0, 1, 3, 4, 5, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 65_536, 1_000_000];

/**
 * A frame changed in one way or another. `lies`: also in its length, so that what follows is read out of step.
 * Otherwise it stays one whole frame.
 */
export function mutate(frame: Buffer, chance: Chance, lies: boolean): Buffer {
  const bytes = Buffer.from(frame);
  switch (chance.below(lies ? 8 : 5)) {
    case 0:
      return bytes;
    case 1:
      bytes[0] = chance.below(256);
      return bytes;
    case 2:
      for (let flips = 1 + chance.below(4); flips > 0 && bytes.length > 5; flips--) {
        bytes[5 + chance.below(bytes.length - 5)] = chance.below(256);
      }
      return bytes;
    case 3:
      return withLength(bytes.subarray(0, 5 + chance.below(bytes.length - 4)));
    case 4:
      return withLength(Buffer.concat([bytes, Buffer.alloc(chance.below(40), chance.below(256))]));
    case 5:
      bytes.writeUInt32BE(chance.pick(LENGTHS), 1);
      return bytes;
    case 6:
      return bytes.subarray(0, chance.below(bytes.length));
    default:
      bytes.writeUInt32BE(Math.max(0, bytes.readUInt32BE(1) + chance.below(9) - 4), 1);
      return bytes;
  }
}

function withLength(bytes: Buffer): Buffer {
  const frame = Buffer.from(bytes);
  frame.writeUInt32BE(frame.length - 1, 1);
  return frame;
}

/** Cuts bytes into pieces of up to `most` bytes. */
export function* pieces(bytes: Buffer, chance: Chance, most: number): Generator<Buffer> {
  for (let at = 0; at < bytes.length;) {
    const length = 1 + chance.below(most);
    yield bytes.subarray(at, at + length);
    at += length;
  }
}
