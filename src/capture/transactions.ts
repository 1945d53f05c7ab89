/**
 * Counts transactions from what the tap tells of each session: the status after each statement, and, inside a
 * pipeline where there is none, the text.
 *
 * A session's state is idle, open or failed, as ReadyForQuery's I, T and E; unknown before its first statement.
 * A statement by itself is a transaction; so is everything up to a Sync outside a block.
 */
import type { TransactionEnd } from './access.js';

export const IDLE = 0x49;
export const OPEN = 0x54;
export const FAILED_BLOCK = 0x45;

/** Sessions remembered; the one heard of longest ago is forgotten, and starts as unknown again. */
const SESSIONS_MAX = 20_000;

export interface TransactionText {
  readonly begins: boolean;
  readonly ends: TransactionEnd;
  readonly chains: boolean;
}

export class TransactionCounter {
  readonly #sessions = new Map<number, number>();
  committed = 0;
  rolledBack = 0;

  /** `status` after the statement: {@link IDLE}, {@link OPEN}, {@link FAILED_BLOCK}, or 0 where it isn't known yet. */
  add(session: number, status: number, text: TransactionText, failed: boolean): void {
    const before = this.#sessions.get(session);
    const now = status === 0 ? afterText(before, text, failed) : status;
    if (now === undefined) this.#sessions.delete(session);
    else this.#remember(session, now);
    this.#count(before, now, status, text, failed);
  }

  #count(
    before: number | undefined,
    now: number | undefined,
    status: number,
    text: TransactionText,
    failed: boolean,
  ): void {
    const inBlock = before === OPEN || before === FAILED_BLOCK;
    if (inBlock) {
      if (now === IDLE || text.chains) this.#blockEnded(before, text, failed);
      return;
    }
    // A first statement that ends a block must have been in one.
    const unseenBlock = before === undefined && text.ends !== null && !text.begins;
    if (unseenBlock) this.#blockEnded(OPEN, text, failed);
    // In a pipeline the transaction ends with its Sync, whose status says so.
    else if (now === IDLE && status === IDLE) this.#alone(text, failed);
  }

  #blockEnded(before: number, text: TransactionText, failed: boolean): void {
    if (text.ends === 'prepare' && !failed) return;
    if (before === FAILED_BLOCK || failed || text.ends === 'rollback') this.rolledBack += 1;
    else this.committed += 1;
  }

  /** From idle to idle: one statement, or a block begun and ended in one text. */
  #alone(text: TransactionText, failed: boolean): void {
    // COMMIT or ROLLBACK without a block only warns.
    if (text.ends !== null && !text.begins) return;
    if (failed || text.ends === 'rollback') this.rolledBack += 1;
    else this.committed += 1;
  }

  #remember(session: number, state: number): void {
    this.#sessions.delete(session);
    this.#sessions.set(session, state);
    if (this.#sessions.size <= SESSIONS_MAX) return;
    for (const oldest of this.#sessions.keys()) {
      this.#sessions.delete(oldest);
      return;
    }
  }
}

function afterText(before: number | undefined, text: TransactionText, failed: boolean): number | undefined {
  if (failed) return before === OPEN ? FAILED_BLOCK : before;
  if (text.ends !== null && !text.chains) return IDLE;
  return text.begins ? OPEN : before;
}
