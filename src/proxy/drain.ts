/**
 * The wait for what is open: before the gate closes, for a moment at which that is little; behind it, for the last of it.
 *
 * One drain is waited for at a time. What is open past the deadline is rolled back, or named in the error.
 */
import { UnderstudyError, asUnderstudyError } from '../core/errors.js';
import type { HoldOptions } from '../core/traffic-ports.js';
import type { GateParty } from './gate-party.js';
import { TRANSACTION_OPEN, untilQuiet } from './quiet-moment.js';
import type { SessionContext } from './session/session-context.js';
import type { Session } from './session/session.js';

export interface DrainDeps {
  readonly context: SessionContext;
  readonly sessions: () => readonly Session[];
  readonly party: GateParty;
}

/** Sessions that may be looked at in a millisecond of looking for a quiet moment. */
const LOOKS_PER_MS = 500;

export class Drain {
  readonly #deps: DrainDeps;
  #onProgress: () => void = () => undefined;

  constructor(deps: DrainDeps) {
    this.#deps = deps;
  }

  /** One of them has come to rest, or has gone. */
  progress(): void {
    this.#onProgress();
  }

  /** Before the gate closes; see quiet-moment.ts. Rejects with the signal's reason. */
  async untilQuiet(withinMs: number, signal: AbortSignal): Promise<void> {
    const { context, party, sessions } = this.#deps;
    const open = (): number => {
      let sum = party.open;
      for (const session of sessions()) {
        if (session.open !== null) sum += session.open === 'transaction' ? TRANSACTION_OPEN : 1;
      }
      return sum;
    };
    const lookEveryMs = Math.max(1, (sessions().length + party.size) / LOOKS_PER_MS);
    await untilQuiet(open, { withinMs, lookEveryMs }, context.clock, signal);
  }

  /** Behind the gate. Throws `drain-timeout`, or the signal's reason. */
  async drain(options: HoldOptions): Promise<void> {
    const { context, party, sessions } = this.#deps;
    if (await this.rested(options.drainTimeoutMs, options.signal)) return;
    if (options.onDrainTimeout === 'cancel') {
      await Promise.all([...this.#unrested().map((session) => session.rollBack()), party.rollBack()]);
      if (await this.rested(context.settings.cancelTimeoutMs, options.signal)) return;
    }
    const open = [...this.#unrested().map((session) => session.info), ...party.unrested()];
    const all = sessions().length + party.size;
    throw new UnderstudyError(
      'drain-timeout',
      `${open.length} of ${all} sessions had a statement or transaction open after ${options.drainTimeoutMs} ms`,
      {
        advice: 'Choose a quieter moment, a longer drain, or to cancel what is open then.',
        details: {
          sessions: open.map((info) => {
            const { id, user, applicationName, transactionStatus, busy, inTransactionMs } = info;
            return { id, user, applicationName, transactionStatus, busy, inTransactionMs };
          }),
        },
      },
    );
  }

  /** Whether all sessions came to rest within the time. Throws where `signal` fires. */
  async rested(withinMs: number, signal: AbortSignal): Promise<boolean> {
    if (!this.#restless) return true;
    const { clock } = this.#deps.context;
    const over = new AbortController();
    const timeUp = clock.sleep(withinMs, AbortSignal.any([signal, over.signal])).catch(() => undefined);
    const drained = new Promise<void>((resolve) => {
      this.#onProgress = () => {
        if (!this.#restless) resolve();
      };
    });
    await Promise.race([drained, timeUp]);
    over.abort();
    this.#onProgress = () => undefined;
    if (signal.aborted) throw holdAborted(signal);
    return !this.#restless;
  }

  #unrested(): Session[] {
    return this.#deps.sessions().filter((session) => !session.atRest && !session.replication);
  }

  get #restless(): boolean {
    return this.#deps.party.restless || this.#unrested().length > 0;
  }
}

export function holdAborted(signal: AbortSignal): UnderstudyError {
  return asUnderstudyError(signal.reason, 'cancelled', 'the hold was cancelled');
}
