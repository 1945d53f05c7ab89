/** Bytes of one client that wait at the gate, in order. The bound is the session's: it stops reading the client. */
export class HeldBytes {
  #chunks: Buffer[] = [];
  #bytes = 0;

  get length(): number {
    return this.#bytes;
  }

  append(chunk: Buffer): void {
    if (chunk.length === 0) return;
    this.#chunks.push(chunk);
    this.#bytes += chunk.length;
  }

  /** Puts back what was taken and not used. */
  prepend(chunk: Buffer): void {
    if (chunk.length === 0) return;
    this.#chunks.unshift(chunk);
    this.#bytes += chunk.length;
  }

  shift(): Buffer | undefined {
    const chunk = this.#chunks.shift();
    if (chunk !== undefined) this.#bytes -= chunk.length;
    return chunk;
  }

  /** Takes the first `count` bytes at most, as far as they are in one piece. */
  take(count: number): Buffer | undefined {
    const first = this.#chunks[0];
    if (first === undefined || first.length <= count) return this.shift();
    this.#chunks[0] = first.subarray(count);
    this.#bytes -= count;
    return first.subarray(0, count);
  }

  /** The first `count` bytes in one piece, or fewer where there are no more. They stay held. */
  peek(count: number): Buffer {
    let first = this.#chunks[0];
    if (first === undefined) return EMPTY;
    if (first.length < count && this.#chunks.length > 1) {
      first = Buffer.concat(this.#chunks);
      this.#chunks = [first];
    }
    return first.subarray(0, count);
  }

  clear(): void {
    this.#chunks = [];
    this.#bytes = 0;
  }
}

const EMPTY = Buffer.alloc(0);
