/**
 * A ring of records in shared memory: one thread writes, another reads, neither ever waits for the other.
 *
 *     │ written │ tail │ … records to read … │ head │ … free … │     positions grow without end, modulo 2³²
 *
 * A record is a length word, padding to 8 bytes, and the payload, contiguous and 8-byte aligned, so that a writer may
 * fill it through a Float64Array and a reader may read it in place. Where a record does not fit before the end of the
 * memory, a skip mark is left and it starts over at the beginning.
 *
 * Invariants: only the writer moves `head`, only the reader moves `tail`; `head − tail` is never more than the
 * capacity; bytes of a record are written before `head` passes them (Atomics.store publishes) and not read after
 * `tail` has passed them.
 * Failure: a full ring refuses the record and counts it as dropped. A writer that dies between `reserve` and
 * `commit` leaves nothing visible. A record whose reader throws counts as read.
 */
import { invariant } from './errors.js';

/** Int32 words before the records: head, tail, a signal that wakes the reader, and counts of what was dropped. */
const HEAD = 0;
const TAIL = 1;
const SIGNAL = 2;
/** How many records were dropped, modulo 2³², and up to which of them the reader knows. */
const DROPPED = 3;
const DROPS_TAKEN = 4;
const HEADER_BYTES = 64;
/** Before each payload: its length, and padding that keeps it aligned. */
const RECORD_HEADER_BYTES = 8;
const SKIP = 0xffffffff;

/** Allocates the memory of a ring. `capacityBytes` is rounded up to a power of two between 1 KiB and 1 GiB. */
export function createByteRing(capacityBytes: number): SharedArrayBuffer {
  const capacity = 2 ** Math.ceil(Math.log2(Math.min(2 ** 30, Math.max(1024, capacityBytes))));
  return new SharedArrayBuffer(HEADER_BYTES + capacity);
}

interface Views {
  readonly words: Int32Array;
  /** The records' memory as bytes and as 64-bit floats; `reserve` returns offsets into `bytes`. */
  readonly bytes: Buffer;
  readonly floats: Float64Array;
  readonly lengths: Uint32Array;
  readonly capacity: number;
}

function viewsOf(memory: SharedArrayBuffer): Views {
  const capacity = memory.byteLength - HEADER_BYTES;
  invariant(capacity >= 1024 && Number.isInteger(Math.log2(capacity)), 'a ring’s capacity is a power of two');
  return {
    words: new Int32Array(memory, 0, HEADER_BYTES / 4),
    bytes: Buffer.from(memory, HEADER_BYTES, capacity),
    floats: new Float64Array(memory, HEADER_BYTES, capacity / 8),
    lengths: new Uint32Array(memory, HEADER_BYTES, capacity / 4),
    capacity,
  };
}

function recordBytes(payloadBytes: number): number {
  return RECORD_HEADER_BYTES + ((payloadBytes + 7) & ~7);
}

export class ByteRingWriter {
  readonly #views: Views;
  readonly bytes: Buffer;
  readonly floats: Float64Array;
  /** Largest payload that can ever fit. */
  readonly payloadBytesMax: number;
  #head: number;
  /** Where the reader was when last looked at; it can only be further by now. */
  #tail: number;
  #nextHead: number;
  /** The reader was woken since the ring got half full; once is enough, and a call to the kernel. */
  #hurried = false;
  #offered = 0;
  #dropped = 0;

  constructor(memory: SharedArrayBuffer) {
    this.#views = viewsOf(memory);
    this.bytes = this.#views.bytes;
    this.floats = this.#views.floats;
    this.payloadBytesMax = this.#views.capacity / 2 - RECORD_HEADER_BYTES;
    this.#head = Atomics.load(this.#views.words, HEAD);
    this.#tail = Atomics.load(this.#views.words, TAIL);
    this.#nextHead = this.#head;
  }

  /** Records given to `reserve` or `offer`, dropped ones included. */
  get offered(): number {
    return this.#offered;
  }

  /** Records refused because the ring was full, or that are larger than {@link payloadBytesMax}. */
  get dropped(): number {
    return this.#dropped;
  }

  /**
   * Makes room for a payload and returns its offset in `bytes`, a multiple of 8; −1 if there is no room, which counts
   * as a drop. The payload becomes visible with `commit`; another `reserve` before it takes this one back.
   */
  reserve(payloadBytes: number): number {
    this.#offered += 1;
    const { capacity, lengths } = this.#views;
    if (payloadBytes > this.payloadBytesMax) return this.#drop();
    const needed = recordBytes(payloadBytes);
    const at = this.#head & (capacity - 1);
    const skipped = at + needed > capacity ? capacity - at : 0;
    if (!this.#hasRoom(skipped + needed)) return this.#drop();
    if (skipped > 0) lengths[at >>> 2] = SKIP;
    const start = skipped > 0 ? 0 : at;
    lengths[start >>> 2] = payloadBytes;
    this.#nextHead = (this.#head + skipped + needed) | 0;
    return start + RECORD_HEADER_BYTES;
  }

  /** Counts a record that was never offered as dropped, so that the reader knows that something is missing. */
  skip(): void {
    this.#offered += 1;
    this.#drop();
  }

  /** Publishes what `reserve` made room for, and wakes a waiting reader once when the ring gets half full. */
  commit(): void {
    const { words, capacity } = this.#views;
    this.#head = this.#nextHead;
    Atomics.store(words, HEAD, this.#head);
    let half = (this.#head - this.#tail) >>> 0 > capacity / 2;
    if (half) {
      this.#tail = Atomics.load(words, TAIL);
      half = (this.#head - this.#tail) >>> 0 > capacity / 2;
      if (half && !this.#hurried) this.wake();
    }
    this.#hurried = half;
  }

  /** Copies a payload into the ring. Returns false, and counts a drop, if it was full. Never blocks. */
  offer(payload: Uint8Array): boolean {
    const offset = this.reserve(payload.length);
    if (offset === -1) return false;
    this.bytes.set(payload, offset);
    this.commit();
    return true;
  }

  /** Counts records that were dropped on their way here. */
  countDropped(records: number): void {
    this.#offered += records;
    this.#dropped += records;
    Atomics.add(this.#views.words, DROPPED, records);
  }

  /** Ends the reader's present or next `wait`. */
  wake(): void {
    Atomics.add(this.#views.words, SIGNAL, 1);
    Atomics.notify(this.#views.words, SIGNAL);
  }

  #hasRoom(bytes: number): boolean {
    const { capacity, words } = this.#views;
    if (((this.#head - this.#tail) >>> 0) + bytes <= capacity) return true;
    this.#tail = Atomics.load(words, TAIL);
    return ((this.#head - this.#tail) >>> 0) + bytes <= capacity;
  }

  #drop(): -1 {
    this.#dropped += 1;
    Atomics.add(this.#views.words, DROPPED, 1);
    return -1;
  }
}

export class ByteRingReader {
  readonly #views: Views;
  readonly bytes: Buffer;
  readonly floats: Float64Array;
  #tail: number;

  constructor(memory: SharedArrayBuffer) {
    this.#views = viewsOf(memory);
    this.bytes = this.#views.bytes;
    this.floats = this.#views.floats;
    this.#tail = Atomics.load(this.#views.words, TAIL);
  }

  /**
   * Hands up to `recordsMax` payloads, oldest first, to `consume` as offset (a multiple of 8) and length in `bytes`:
   * valid until it returns. Returns how many were read. What `consume` throws is thrown on; that record is gone.
   */
  read(recordsMax: number, consume: (offset: number, length: number) => void): number {
    const { words, lengths, capacity } = this.#views;
    let read = 0;
    let head = Atomics.load(words, HEAD);
    while (read < recordsMax) {
      if (this.#tail === head) {
        head = Atomics.load(words, HEAD);
        if (this.#tail === head) break;
      }
      const at = this.#tail & (capacity - 1);
      const length = lengths[at >>> 2] ?? 0;
      if (length === SKIP) {
        this.#advance(capacity - at);
        continue;
      }
      try {
        consume(at + RECORD_HEADER_BYTES, length);
      } finally {
        this.#advance(recordBytes(length));
      }
      read += 1;
    }
    return read;
  }

  /** How many records were dropped since the last call, by this reader or one before it. */
  takeDropped(): number {
    const { words } = this.#views;
    const dropped = Atomics.load(words, DROPPED);
    const taken = Atomics.exchange(words, DROPS_TAKEN, dropped);
    return (dropped - taken) >>> 0;
  }

  /** A number to hand to `wait`; taken before looking for work, so that no `wake` in between is missed. */
  signal(): number {
    return Atomics.load(this.#views.words, SIGNAL);
  }

  /** Blocks the thread until woken since `seen` was taken, at most `timeoutMs`. Not for the main thread. */
  wait(seen: number, timeoutMs: number): void {
    Atomics.wait(this.#views.words, SIGNAL, seen, timeoutMs);
  }

  #advance(bytes: number): void {
    this.#tail = (this.#tail + bytes) | 0;
    Atomics.store(this.#views.words, TAIL, this.#tail);
  }
}
