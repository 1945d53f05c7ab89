/**
 * The capture's end in a process that serves clients for another: statements are copied into a ring as everywhere, and
 * sent on from there in batches.
 *
 * States: at rest ⇄ sending (one batch is on its way; what comes meanwhile waits in the ring) → closed.
 * Failure: a receiver that is slow lets the ring fill, which drops, and says how many with the next batch.
 */
import { ByteRingReader, ByteRingWriter, createByteRing } from '../core/byte-ring.js';
import type { StatementTap } from '../core/capture-ports.js';
import { RingTap } from './tap.js';

/** Records as they lie in the ring, each behind its length in four bytes, little-endian. */
export interface CaptureBatch {
  readonly records: Uint8Array;
  /** Since the batch before. */
  readonly dropped: number;
}

export interface TapRelayOptions {
  readonly ringBytes: number;
  readonly textBytesMax: number;
  /** Calls `sent` once the next batch may be handed over. */
  readonly send: (batch: CaptureBatch, sent: () => void) => void;
}

const INTERVAL_MS = 20;
const BATCH_BYTES = 256 * 1024;
export const LENGTH_BYTES = 4;

export class TapRelay {
  readonly tap: StatementTap;
  readonly #reader: ByteRingReader;
  readonly #send: TapRelayOptions['send'];
  readonly #timer: NodeJS.Timeout;
  readonly #batch: Buffer;
  #filled = 0;
  #state: 'at rest' | 'sending' | 'closed' = 'at rest';

  constructor(options: TapRelayOptions) {
    const memory = createByteRing(options.ringBytes);
    const writer = new ByteRingWriter(memory);
    this.tap = new RingTap(writer, options.textBytesMax);
    this.#reader = new ByteRingReader(memory);
    this.#send = options.send;
    this.#batch = Buffer.allocUnsafeSlow(BATCH_BYTES + writer.payloadBytesMax + LENGTH_BYTES);
    this.#timer = setInterval(() => this.drain(), INTERVAL_MS);
    this.#timer.unref();
  }

  readonly #take = (offset: number, length: number): void => {
    this.#batch.writeUInt32LE(length, this.#filled);
    this.#reader.bytes.copy(this.#batch, this.#filled + LENGTH_BYTES, offset, offset + length);
    this.#filled += LENGTH_BYTES + length;
  };

  /** Sends what there is; goes on by itself while there is more than one batch holds. */
  drain(): void {
    if (this.#state !== 'at rest') return;
    this.#filled = 0;
    while (this.#filled < BATCH_BYTES) {
      if (this.#reader.read(1, this.#take) === 0) break;
    }
    const bytes = this.#filled;
    const dropped = this.#reader.takeDropped();
    if (bytes === 0 && dropped === 0) return;
    const more = bytes >= BATCH_BYTES;
    this.#state = 'sending';
    this.#send({ records: Buffer.from(this.#batch.subarray(0, bytes)), dropped }, () => {
      if (this.#state !== 'sending') return;
      this.#state = 'at rest';
      if (more) this.drain();
    });
  }

  close(): void {
    clearInterval(this.#timer);
    this.drain();
    this.#state = 'closed';
  }
}

/** Puts a batch's records into the ring of this process. */
export function receiveBatch(batch: CaptureBatch, ring: ByteRingWriter): void {
  const { buffer, byteOffset, byteLength } = batch.records;
  const records = Buffer.from(buffer, byteOffset, byteLength);
  for (let at = 0; at < records.length;) {
    const length = records.readUInt32LE(at);
    ring.offer(records.subarray(at + LENGTH_BYTES, at + LENGTH_BYTES + length));
    at += LENGTH_BYTES + length;
  }
  if (batch.dropped > 0) ring.countDropped(batch.dropped);
}
