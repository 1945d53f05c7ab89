/** What a session keeps of its client's bytes at the gate; past the bound its socket is no longer read. */
import { HeldBytes } from './held-bytes.js';
import { HELD_FULL } from './session-sockets.js';

export interface HeldInputDeps {
  readonly bytesMax: () => number;
  readonly nowMs: () => number;
  readonly pauseClient: (reason: number) => void;
  readonly resumeClient: (reason: number) => void;
}

export class HeldInput {
  readonly #deps: HeldInputDeps;
  readonly #bytes = new HeldBytes();
  #sinceMs: number | null = null;
  #wholeBytes = 0;

  constructor(deps: HeldInputDeps) {
    this.#deps = deps;
  }

  /** Who takes it waits until so many bytes are there: the client is read at least up to that, whatever the bound. */
  waitsFor(bytes: number): void {
    this.#wholeBytes = bytes;
    this.taken();
  }

  get #bytesMax(): number {
    return Math.max(this.#deps.bytesMax(), this.#wholeBytes);
  }

  get length(): number {
    return this.#bytes.length;
  }

  /** How long the oldest of it has waited, in milliseconds; null where there is nothing. */
  get waitedMs(): number | null {
    return this.#sinceMs === null ? null : this.#deps.nowMs() - this.#sinceMs;
  }

  /** Keeps a copy. */
  keep(chunk: Buffer): void {
    this.#sinceMs ??= this.#deps.nowMs();
    this.#bytes.append(Buffer.from(chunk));
    if (this.#bytes.length > this.#bytesMax) this.#deps.pauseClient(HELD_FULL);
  }

  /** To the front: what was taken and not used. */
  putBack(chunk: Buffer): void {
    if (chunk.length === 0) return;
    this.#sinceMs ??= this.#deps.nowMs();
    this.#bytes.prepend(chunk);
  }

  shift(): Buffer | undefined {
    return this.#bytes.shift();
  }

  /** As {@link HeldBytes.take}. */
  take(count: number): Buffer | undefined {
    return this.#bytes.take(count);
  }

  /** Nothing more is kept: the client is not read. */
  get full(): boolean {
    return this.#bytes.length > this.#bytesMax;
  }

  /** The first `count` bytes in one piece, or fewer where there are no more. They stay held. */
  peek(count: number): Buffer {
    return this.#bytes.peek(count);
  }

  /** As much was taken as could be. */
  taken(): void {
    if (this.#bytes.length === 0) this.#sinceMs = null;
    if (this.#bytes.length <= this.#bytesMax) this.#deps.resumeClient(HELD_FULL);
  }

  clear(): void {
    this.#bytes.clear();
  }
}
