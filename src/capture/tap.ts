/** The data path's end of the capture: copies one record per finished statement into the ring, or drops it. */
import type { ByteRingWriter } from '../core/byte-ring.js';
import type { StatementTap } from '../core/capture-ports.js';
import {
  BYTES_TO_CLIENT,
  BYTES_TO_SERVER,
  CUT,
  DURATION_MICROS,
  ENDED_AT,
  ERROR_CLASS_SHIFT,
  FAILED,
  FIXED_BYTES,
  FLAGS,
  PARAMETER_BYTES,
  ROWS,
  SESSION_ID,
  STATUS_SHIFT,
} from './record.js';

/** Never blocks, throws or allocates. A text of `textBytesMax` bytes or more is cut there and marked as cut. */
export class RingTap implements StatementTap {
  readonly #ring: ByteRingWriter;
  readonly #textBytesMax: number;
  #unrecorded = 0;

  constructor(ring: ByteRingWriter, textBytesMax: number) {
    this.#ring = ring;
    this.#textBytesMax = Math.min(textBytesMax, ring.payloadBytesMax - FIXED_BYTES);
  }

  get unrecorded(): number {
    return this.#unrecorded;
  }

  skipped(): void {
    this.#unrecorded += 1;
    this.#ring.skip();
  }

  offer(
    sessionId: number,
    text: Buffer,
    durationMicros: number,
    rows: number,
    bytesToServer: number,
    bytesToClient: number,
    failed: boolean,
    transactionStatus: number,
    endedAtMs: number,
    errorClass: number,
    parameters: Buffer,
  ): boolean {
    // A text that fills the bound exactly was most likely cut there by whoever offers it.
    const cut = text.length >= this.#textBytesMax;
    const textBytes = cut ? this.#textBytesMax : text.length;
    const parameterBytes = parameters.length;
    const offset = this.#ring.reserve(FIXED_BYTES + textBytes + parameterBytes);
    if (offset === -1) return false;
    const { floats, bytes } = this.#ring;
    const at = offset >>> 3;
    floats[at + SESSION_ID] = sessionId;
    floats[at + DURATION_MICROS] = durationMicros;
    floats[at + ROWS] = rows;
    floats[at + BYTES_TO_SERVER] = bytesToServer;
    floats[at + BYTES_TO_CLIENT] = bytesToClient;
    floats[at + FLAGS] =
      (failed ? FAILED : 0) |
      (cut ? CUT : 0) |
      (transactionStatus << STATUS_SHIFT) |
      (errorClass << ERROR_CLASS_SHIFT);
    floats[at + ENDED_AT] = endedAtMs;
    floats[at + PARAMETER_BYTES] = parameterBytes;
    text.copy(bytes, offset + FIXED_BYTES, 0, textBytes);
    if (parameterBytes > 0) parameters.copy(bytes, offset + FIXED_BYTES + textBytes);
    this.#ring.commit();
    return true;
  }
}
