/**
 * One direction's way of learning of changes and bringing them over, as the engine and, through it, a cutover use it.
 * {@link Lane} is that of `log`; {@link Follower} those of `mirror` and `poll`.
 */
import type { StreamStatus } from '../../core/ports.js';
import type { Position } from '../../core/position.js';

export interface ChangeSource {
  /** Begins to follow. Idempotent. */
  start(): void;
  /** Ends at the next safe point. Idempotent. */
  stop(): Promise<void>;
  status(): StreamStatus;
  /**
   * Resolves once the other side has durably committed everything that its origin had committed when the mark was
   * written. By `log` that is read from the log. Otherwise it is what the method can know to have changed by then, which
   * may be less; only {@link CatchesUpExactly.settleExactly} is all of it.
   */
  waitForMark(mark: string, signal: AbortSignal): Promise<Position>;
}

/** Of a source that sees less than everything by itself. */
export interface CatchesUpExactly {
  /**
   * Compares every table and mends what differs. Both sides are equal when it resolves, if nobody writes meanwhile: for
   * behind a fence. Until the operation that asked for it is over, nothing more is written.
   */
  settleExactly(signal: AbortSignal): Promise<ExactReport>;
}

export interface ExactReport {
  readonly rows: number;
  /** Rows that differed, or might have. */
  readonly refreshed: number;
  readonly ms: number;
  /** Of the source's log, read after the call and before the comparison. */
  readonly position: Position;
}
