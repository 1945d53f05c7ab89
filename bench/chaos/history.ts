/** What the clients of one run did and were told, in the order in which it happened. */
import type { Attempt, Outcome, Probe } from './audit.js';
import type { Arrangement, Group } from './arrangement.js';
import type { Crossing, SideRead } from './audit-sides.js';
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
  readonly arrangement: Arrangement;
  readonly #sideOfPort: (port: number) => SideRead['side'];
  readonly ledger = new Map<number, Outcome>();
  readonly transfers = new Map<number, Outcome>();
  readonly registers = new Map<number, RegisterOperation[]>();
  readonly sums: number[] = [];
  readonly errors: ClientError[] = [];
  /** Rows that were acknowledged, and then not found. */
  readonly notFound: number[] = [];
  readonly probes: Probe[] = [];
  /** Answers that told which server gave them. */
  readonly sideReads: SideRead[] = [];
  readonly crossings: Crossing[] = [];
  /** By worker: when the last statement that succeeded had begun. */
  readonly lastSuccessMs = new Map<string, number>();
  statements = 0;

  constructor(arrangement: Arrangement, sideOfPort: (port: number) => SideRead['side']) {
    this.arrangement = arrangement;
    this.#sideOfPort = sideOfPort;
  }

  /** An answer about a group's tables told from which server it came. */
  told(group: Group, port: number, how: string, span: Pick<SideRead, 'calledMs' | 'answeredMs'>): void {
    const side = this.#sideOfPort(port);
    this.sideReads.push({ subset: this.arrangement.of[group], side, how, ...span });
  }

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
