/**
 * One direction of one connection of the {@link ToxiproxyDouble}, and what toxics do to the bytes that go through it.
 *
 * A chunk is read, goes through the toxics of its direction in the order in which they were added, is written, and only
 * then is the next one read: nothing is kept but one chunk. Toxics count from the chunk after their adding, and stop to
 * count from the chunk after their removal; one that swallowed bytes closes the connection when it is removed, as what
 * follows would make no sense to anybody.
 */
import { once } from 'node:events';
import type { Socket } from 'node:net';

export type Stream = 'upstream' | 'downstream';

/** As its JSON: https://github.com/Shopify/toxiproxy#toxics. Times in ms, except the slicer's delay, which is in µs. */
export interface ToxicSpec {
  readonly name: string;
  readonly type: string;
  readonly stream: Stream;
  readonly toxicity: number;
  readonly attributes: Readonly<Record<string, number>>;
}

export const TOXIC_TYPES = [
  'latency',
  'bandwidth',
  'slow_close',
  'timeout',
  'reset_peer',
  'slicer',
  'limit_data',
] as const;
export type ToxicType = (typeof TOXIC_TYPES)[number];

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

export class ToxicPipe {
  readonly #from: Socket;
  readonly #to: Socket;
  readonly #toxics: () => readonly ToxicSpec[];
  readonly #chance: () => number;
  /** Toxics whose toxicity was drawn for this connection. */
  readonly #drawn = new Map<ToxicSpec, boolean>();
  /** Bytes that passed since a `limit_data` began to count. */
  readonly #passed = new Map<ToxicSpec, number>();
  /** Of `timeout` toxics that swallow what comes. */
  readonly #swallowing = new Set<ToxicSpec>();
  #closed = false;

  constructor(from: Socket, to: Socket, toxics: () => readonly ToxicSpec[], chance: () => number) {
    this.#from = from;
    this.#to = to;
    this.#toxics = toxics;
    this.#chance = chance;
    void this.#run();
  }

  /** To be called whenever the list of toxics has changed. */
  changed(): void {
    const now = new Set(this.#active());
    for (const toxic of this.#swallowing) if (!now.has(toxic)) this.#close();
    for (const toxic of now) if (toxic.type === 'timeout') this.#swallow(toxic);
  }

  #active(): readonly ToxicSpec[] {
    return this.#toxics().filter((toxic) => {
      const known = this.#drawn.get(toxic);
      if (known !== undefined) return known;
      const affected = toxic.toxicity >= 1 || this.#chance() < toxic.toxicity;
      this.#drawn.set(toxic, affected);
      return affected;
    });
  }

  #swallow(toxic: ToxicSpec): void {
    if (this.#swallowing.has(toxic)) return;
    this.#swallowing.add(toxic);
    const ms = toxic.attributes['timeout'] ?? 0;
    if (ms > 0) setTimeout(() => this.#close(), ms).unref();
  }

  async #run(): Promise<void> {
    try {
      this.changed();
      // Left alone at the end: the other direction may have more to say.
      const chunks = this.#from.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>;
      for await (const chunk of chunks) {
        if (!(await this.#pass(chunk)) || this.#closed) break;
      }
      this.#from.resume();
      if (this.#swallowing.size > 0) return;
      for (const toxic of this.#active()) {
        if (toxic.type === 'slow_close') await sleep(toxic.attributes['delay'] ?? 0);
      }
      this.#to.end();
    } catch {
      this.#close();
    }
  }

  /** False where the direction is over. */
  async #pass(chunk: Buffer): Promise<boolean> {
    let pieces: readonly Buffer[] = [chunk];
    let pauseMs = 0;
    let last = false;
    for (const toxic of this.#active()) {
      const attribute = (name: string, otherwise = 0): number => toxic.attributes[name] ?? otherwise;
      switch (toxic.type as ToxicType) {
        case 'timeout':
          this.#swallow(toxic);
          return true;
        case 'latency':
          await sleep(Math.max(0, attribute('latency') + (this.#chance() * 2 - 1) * attribute('jitter')));
          break;
        case 'bandwidth':
          await sleep(chunk.length / Math.max(1, attribute('rate')));
          break;
        case 'reset_peer':
          await sleep(attribute('timeout'));
          this.#from.resetAndDestroy();
          this.#to.resetAndDestroy();
          return false;
        case 'slicer':
          pieces = slices(pieces, attribute('average_size', 1), attribute('size_variation'), this.#chance);
          pauseMs = attribute('delay') / 1000;
          break;
        case 'limit_data': {
          const before = this.#passed.get(toxic) ?? 0;
          const left = attribute('bytes') - before;
          this.#passed.set(toxic, before + chunk.length);
          if (left > chunk.length) break;
          pieces = cut(pieces, Math.max(0, left));
          last = true;
          break;
        }
        case 'slow_close':
          break;
        default:
          throw new Error(`unknown toxic ${toxic.type}`);
      }
    }
    for (const piece of pieces) {
      if (this.#to.destroyed) return false;
      if (!this.#to.write(piece)) await once(this.#to, 'drain');
      if (pauseMs > 0) await sleep(pauseMs);
    }
    return !last;
  }

  #close(): void {
    this.#closed = true;
    this.#from.destroy();
    this.#to.destroy();
  }
}

function slices(
  pieces: readonly Buffer[],
  average: number,
  variation: number,
  chance: () => number,
): readonly Buffer[] {
  const out: Buffer[] = [];
  for (const piece of pieces) {
    for (let at = 0; at < piece.length;) {
      const length = Math.max(1, Math.round(average + (chance() * 2 - 1) * variation));
      out.push(piece.subarray(at, at + length));
      at += length;
    }
  }
  return out;
}

function cut(pieces: readonly Buffer[], bytes: number): readonly Buffer[] {
  return bytes === 0 ? [] : [Buffer.concat(pieces).subarray(0, bytes)];
}
