/**
 * How long statements take, counted as they pass, for the shadow's copy to be held back by. Apart from the capture, which
 * may be switched off: counting one statement is a few instructions on memory of fixed size.
 */
import type { StatementTap } from '../core/capture-ports.js';
import type { LatencyWindow } from '../core/ports.js';
import { LATENCY_BUCKETS, latencyBucket, latencyBucketUpTo } from './latency.js';
import { DURATION_MICROS } from './record.js';
import { LENGTH_BYTES, type CaptureBatch } from './relay.js';

export class LatencyProbe {
  readonly #counts = new Float64Array(LATENCY_BUCKETS);

  /** Counts, then hands the statement on. */
  tap(next: StatementTap | null): StatementTap {
    const counts = this.#counts;
    const followed = next?.unanswered !== undefined;
    return {
      ...(next?.skipped === undefined ? {} : { skipped: () => next.skipped?.() }),
      ...(!followed
        ? {}
        : {
            unanswered: (session: number, text: Buffer, parameters: Buffer) =>
              next?.unanswered?.(session, text, parameters),
          }),
      offer: (session, text, micros, rows, up, down, failed, status, ended, errorClass, parameters) => {
        const bucket = latencyBucket(micros);
        counts[bucket] = (counts[bucket] ?? 0) + 1;
        if (next === null) return true;
        return next.offer(
          session,
          text,
          micros,
          rows,
          up,
          down,
          failed,
          status,
          ended,
          errorClass,
          parameters,
        );
      },
    };
  }

  /** Counts what another process has seen pass. */
  receive({ records }: CaptureBatch): void {
    const bytes = Buffer.from(records.buffer, records.byteOffset, records.byteLength);
    for (let at = 0; at < bytes.length;) {
      const length = bytes.readUInt32LE(at);
      const bucket = latencyBucket(bytes.readDoubleLE(at + LENGTH_BYTES + 8 * DURATION_MICROS));
      this.#counts[bucket] = (this.#counts[bucket] ?? 0) + 1;
      at += LENGTH_BYTES + length;
    }
  }

  /** What was counted since the last time. */
  take(): LatencyWindow {
    const window: { upToMicros: number; count: number }[] = [];
    for (const [bucket, count] of this.#counts.entries()) {
      if (count > 0) window.push({ upToMicros: latencyBucketUpTo(bucket), count });
    }
    this.#counts.fill(0);
    return window;
  }
}
