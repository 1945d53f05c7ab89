import type { OperationReport, TableName } from '../core/ports.js';
import { UnderstudyError } from '../core/errors.js';
import type {
  CutoverDeps,
  CutoverStatus,
  FinalizeOptions,
  FinalizeReport,
  OperationOptions,
  Recovery,
} from './settings.js';

/** Cutover and rollback of one subset. See `runner.ts` for the order of things, `recovery.ts` for restarts. */
export class CutoverCoordinator {
  readonly #deps: CutoverDeps;

  constructor(deps: CutoverDeps) {
    this.#deps = deps;
  }

  /**
   * Decides the route from the source's fence and, only where one stands, the journal; finishes or undoes what a
   * former process left. Call before serving, and whenever a client met the fence's SQLSTATE. Repeatable.
   * Throws `route-unknown` (retry it) where a fence stands and the journal can't be read or another live process
   * is in the middle of an operation, `journal-conflict` where the two sides contradict one another,
   * `source-unreachable`.
   */
  recover(signal: AbortSignal): Promise<Recovery> {
    return this.#pending(signal);
  }

  /** Makes the journal's tables and registers this process as a live proxy. Idempotent. `destination-unreachable`. */
  ensureJournal(): Promise<void> {
    return this.#pending();
  }

  /**
   * Installs the barrier on all `tables` of both sides: lowered on the side that leads, raised on the other. After
   * `recover` and `ensureJournal`; on the destination before any row is copied. Idempotent; needs no quiet moment.
   */
  installBarriers(_tables: readonly TableName[]): Promise<void> {
    return this.#pending();
  }

  /**
   * Source → destination. Throws `already-cut-over`, `busy`; whatever goes wrong after that is the report's
   * `outcome: 'aborted'` with its reason, everything being as before.
   */
  cutover(_options: OperationOptions): Promise<OperationReport> {
    return this.#pending();
  }

  /** Destination → source. Throws `not-cut-over`, `busy`; else as {@link cutover}. */
  rollback(_options: OperationOptions): Promise<OperationReport> {
    return this.#pending();
  }

  /** Removes what Understudy left behind once the destination leads for good. Throws `not-cut-over`, `busy`. */
  finalize(_options: FinalizeOptions): Promise<FinalizeReport> {
    return this.#pending();
  }

  /** Asks the running operation to abort. False where none runs or it is past its point of no return. */
  abort(): boolean {
    return this.#deps === undefined;
  }

  status(): Promise<CutoverStatus> {
    return this.#pending();
  }

  /** Ends the journal's connections. A running operation is asked to abort and awaited first. */
  async close(): Promise<void> {
    await Promise.resolve();
  }

  #pending(_signal?: AbortSignal): Promise<never> {
    return Promise.reject(new UnderstudyError('internal', 'not built yet'));
  }
}
