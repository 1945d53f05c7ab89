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
/** In a log: the texts alone decide. */
export const NEVER_TOLD = -1;

/** Sessions remembered; the one heard of longest ago is forgotten, and starts as unknown again. */
const SESSIONS_MAX = 20_000;

export interface TransactionText {
  readonly begins: boolean;
  readonly ends: TransactionEnd;
  readonly chains: boolean;
}

export type TransactionOutcome = 'committed' | 'rolled-back';

export interface TransactionStep {
  /** The session's state now; undefined: not known. */
  readonly now: number | undefined;
  /** Of the transaction that the statement ended, if it ended one. */
  readonly outcome: TransactionOutcome | null;
}

/**
 * `status` after the statement: {@link IDLE}, {@link OPEN}, {@link FAILED_BLOCK}, 0 where it isn't known yet, or
 * {@link NEVER_TOLD}.
 */
export function transactionStep(
  before: number | undefined,
  status: number,
  text: TransactionText,
  failed: boolean,
): TransactionStep {
  if (status === NEVER_TOLD) {
    return transactionStep(before, afterText(before, text, failed) ?? IDLE, text, failed);
  }
  const now = status === 0 ? afterText(before, text, failed) : status;
  if (before === OPEN || before === FAILED_BLOCK)
    return { now, outcome: now === IDLE || text.chains ? blockEnded(before, text, failed) : null };
  // A first statement that ends a block must have been in one.
  if (before === undefined && text.ends !== null && !text.begins)
    return { now, outcome: blockEnded(OPEN, text, failed) };
  // In a pipeline the transaction ends with its Sync, whose status says so.
  return { now, outcome: now === IDLE && status === IDLE ? alone(text, failed) : null };
}

function blockEnded(before: number, text: TransactionText, failed: boolean): TransactionOutcome | null {
  if (text.ends === 'prepare' && !failed) return null;
  return before === FAILED_BLOCK || failed || text.ends === 'rollback' ? 'rolled-back' : 'committed';
}

/** From idle to idle: one statement, or a block begun and ended in one text. */
function alone(text: TransactionText, failed: boolean): TransactionOutcome | null {
  // COMMIT or ROLLBACK without a block only warns.
  if (text.ends !== null && !text.begins) return null;
  return failed || text.ends === 'rollback' ? 'rolled-back' : 'committed';
}

export class TransactionCounter {
  readonly #sessions = new Map<number | string, number>();
  committed = 0;
  rolledBack = 0;

  add(session: number | string, status: number, text: TransactionText, failed: boolean): void {
    const { now, outcome } = transactionStep(this.#sessions.get(session), status, text, failed);
    if (now === undefined) this.#sessions.delete(session);
    else this.#remember(session, now);
    if (outcome === 'committed') this.committed += 1;
    else if (outcome === 'rolled-back') this.rolledBack += 1;
  }

  #remember(session: number | string, state: number): void {
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
