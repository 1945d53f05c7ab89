/** What the clients of one run did and were told, in the order in which it happened. */
import type { Attempt, Outcome, Probe } from './audit.js';
import type { RegisterOperation } from './linearizable.js';

export interface ClientError {
  readonly worker: string;
  readonly atMs: number;
  readonly doing: 'connect' | 'statement';
  /** SQLSTATE, or the network's code. */
  readonly code: string;
  readonly message: string;
}

export class History {
  readonly #startedMs = performance.now();
  #lastId = 0;
  readonly ledger = new Map<number, Outcome>();
  readonly transfers = new Map<number, Outcome>();
  readonly registers = new Map<number, RegisterOperation[]>();
  readonly sums: number[] = [];
  readonly errors: ClientError[] = [];
  readonly probes: Probe[] = [];
  /** By worker: when the last statement that succeeded had begun. */
  readonly lastSuccessMs = new Map<string, number>();
  statements = 0;

  /** Monotonic, since the run began. */
  nowMs(): number {
    return performance.now() - this.#startedMs;
  }

  /** Never twice in a run. */
  nextId(): number {
    return (this.#lastId += 1);
  }

  succeeded(worker: string, calledMs: number): void {
    this.statements++;
    this.lastSuccessMs.set(worker, calledMs);
  }

  register(key: number): RegisterOperation[] {
    const known = this.registers.get(key);
    if (known !== undefined) return known;
    const history: RegisterOperation[] = [];
    this.registers.set(key, history);
    return history;
  }
}

export const attemptsOf = (outcomes: ReadonlyMap<number, Outcome>): readonly Attempt[] =>
  [...outcomes].map(([id, outcome]) => ({ id, outcome }));
