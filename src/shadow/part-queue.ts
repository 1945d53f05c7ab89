/**
 * What the stream has delivered and the lane has not taken yet, in commit order.
 *
 * `position` is how far the stream is known to have come with nothing to write in between; it counts as committed
 * once everything queued before it is.
 */
import type { TransactionPart } from './postgres/transactions.js';

export class PartQueue {
  #parts: TransactionPart[] = [];
  #bytes = 0;
  #changes = 0;
  #urgent = 0;
  #oldestAtMs: number | null = null;
  #position = 0n;

  get length(): number {
    return this.#parts.length;
  }

  get bytes(): number {
    return this.#bytes;
  }

  get changes(): number {
    return this.#changes;
  }

  /** Whether a message waits that must be acted on at once. */
  get urgent(): boolean {
    return this.#urgent > 0;
  }

  /** When the oldest part arrived, on the monotonic clock. */
  get oldestAtMs(): number | null {
    return this.#oldestAtMs;
  }

  get position(): bigint {
    return this.#position;
  }

  push(part: TransactionPart, nowMs: number): void {
    this.#parts.push(part);
    this.#bytes += part.bytes;
    this.#changes += part.changes.length;
    if (part.messages.length > 0) this.#urgent += 1;
    this.#oldestAtMs ??= nowMs;
  }

  /** Everything before `position` has been delivered. */
  reach(position: bigint): void {
    if (position > this.#position) this.#position = position;
  }

  /**
   * Takes parts up to `changesMax` changes and `bytesMax` bytes, at least one; ends behind the first for which `ends`
   * holds.
   */
  take(changesMax: number, bytesMax: number, ends: (part: TransactionPart) => boolean): TransactionPart[] {
    let changes = 0;
    let bytes = 0;
    let count = 0;
    for (const part of this.#parts) {
      if (count > 0 && (changes + part.changes.length > changesMax || bytes + part.bytes > bytesMax)) break;
      count += 1;
      changes += part.changes.length;
      bytes += part.bytes;
      if (part.messages.length > 0) this.#urgent -= 1;
      if (ends(part)) break;
    }
    const taken = this.#parts.splice(0, count);
    this.#bytes -= bytes;
    this.#changes -= changes;
    if (this.#parts.length === 0) this.#oldestAtMs = null;
    return taken;
  }
}
