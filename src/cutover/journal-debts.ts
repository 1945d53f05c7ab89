/**
 * What the journal could not be told when it happened: an abort, or the end of an operation past its commit.
 *
 * Invariants:
 * - As long as anything is owed it is tried again, with backoff, until the process ends: not only when another operation
 *   begins, as until then `status` would show the old state and the journal an operation that nobody runs. The
 *   connections that could tell of the destination's return may have lived through what lost this one.
 * - Debts are paid in the order in which they were incurred. Paying twice does no harm: both are compare-and-swaps.
 * - A debt of an operation that the journal doesn't know is given up: the destination was built anew.
 */
import type { OperationReport } from '../core/ports.js';
import type { Clock } from '../core/clock.js';
import { asUnderstudyError } from '../core/errors.js';
import type { Log } from '../core/log.js';
import { abortOperation, finishOperation, type OperationKey } from './journal.js';
import type { Connections, Session } from './session.js';

const BACKOFF_MIN_MS = 100;
const BACKOFF_MAX_MS = 5_000;

export type Debt =
  | { readonly kind: 'abort'; readonly key: OperationKey; readonly reason: string }
  | { readonly kind: 'end'; readonly key: OperationKey; readonly report: OperationReport };

export interface JournalDebtsDeps {
  readonly connections: Connections;
  readonly clock: Clock;
  readonly log: Log;
  readonly closing: AbortSignal;
  readonly answerTimeoutMs: number;
}

export class JournalDebts {
  readonly #deps: JournalDebtsDeps;
  #owed: readonly Debt[] = [];
  #paying: Promise<void> | undefined;
  #collecting = false;

  constructor(deps: JournalDebtsDeps) {
    this.#deps = deps;
  }

  owe(debt: Debt): void {
    this.#owed = [...this.#owed, debt];
    if (this.#collecting) return;
    this.#collecting = true;
    void this.#collect().finally(() => (this.#collecting = false));
  }

  /** Resolves once nothing is owed. Throws `destination-unreachable`, and what the journal refuses with. */
  async pay(): Promise<void> {
    if (this.#owed.length === 0) return;
    this.#paying ??= this.#pay().finally(() => (this.#paying = undefined));
    await this.#paying;
  }

  /** The journal is gone for good. */
  forget(): void {
    this.#owed = [];
  }

  async #collect(): Promise<void> {
    const { clock, log, closing } = this.#deps;
    for (let waitMs = BACKOFF_MIN_MS; this.#owed.length > 0; waitMs = Math.min(waitMs * 2, BACKOFF_MAX_MS)) {
      try {
        await clock.sleep(waitMs, closing);
      } catch {
        return;
      }
      try {
        await this.pay();
      } catch (error) {
        const { code, message } = asUnderstudyError(error, 'internal', 'journal');
        log.debug({ code, reason: message }, 'the journal is still owed an operation’s end');
      }
    }
  }

  async #pay(): Promise<void> {
    const { connections, answerTimeoutMs } = this.#deps;
    const session = await connections.open('destination', 'journal', { answerTimeoutMs });
    try {
      for (let debt = this.#owed[0]; debt !== undefined; debt = this.#owed[0]) {
        await this.#settle(session, debt);
        this.#owed = this.#owed.slice(1);
      }
    } finally {
      await session.end();
    }
  }

  async #settle(session: Session, debt: Debt): Promise<void> {
    const { log } = this.#deps;
    const { id } = debt.key;
    try {
      if (debt.kind === 'abort') await abortOperation(session, debt.key, debt.reason);
      else await finishOperation(session, debt.key, { report: debt.report });
      log.info({ operation: id }, 'the journal was told how the operation ended');
    } catch (error) {
      if (asUnderstudyError(error, 'internal', 'journal').code !== 'journal-conflict') throw error;
      log.warn({ operation: id }, 'the journal doesn’t know the operation whose end it was owed');
    }
  }
}
