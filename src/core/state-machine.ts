import { UnderstudyError } from './errors.js';

/**
 * A table of legal transitions: state → the states it may move to.
 * Every stateful thing moves through one `StateCell`, so that an illegal move stops it instead of corrupting data.
 */
export type TransitionTable<S extends string> = { readonly [from in S]: readonly S[] };

export class StateCell<S extends string> {
  readonly #name: string;
  readonly #table: TransitionTable<S>;
  readonly #onChange: ((from: S, to: S) => void) | undefined;
  #state: S;

  constructor(name: string, table: TransitionTable<S>, initial: S, onChange?: (from: S, to: S) => void) {
    this.#name = name;
    this.#table = table;
    this.#state = initial;
    this.#onChange = onChange;
  }

  get current(): S {
    return this.#state;
  }

  is(...states: readonly S[]): boolean {
    return states.includes(this.#state);
  }

  /** Throws `internal` if the table does not allow the move. */
  move(to: S): void {
    const from = this.#state;
    if (!this.#table[from].includes(to)) {
      throw new UnderstudyError('internal', `${this.#name}: illegal transition ${from} → ${to}`);
    }
    this.#state = to;
    this.#onChange?.(from, to);
  }
}
