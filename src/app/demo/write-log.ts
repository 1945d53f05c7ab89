/**
 * The auditor's memory: what every client was told about every write, and nothing of what Understudy thinks.
 *
 * Each write carries a *token*, a number that is unique over the run and is stored in the row. A token is in one
 * state, moved only by what the client itself saw:
 *
 *   issued ──► acknowledged ──► erasing ──► erased
 *      └─────► refused              └─ (no answer: stays, either outcome is right)
 *
 * issued        sent, no answer yet. If it ends here its outcome is unknown: present or absent are both right.
 * acknowledged  the commit was answered: must be found exactly once.
 * refused       the server said no: must not be found.
 * erasing       the delete of an acknowledged row was sent.
 * erased        that delete was answered: must not be found.
 *
 * One byte per token, in one growing array per client; a run of an hour at 2,000 writes a second takes 7 MB.
 */

export const TOKEN_STATES = ['none', 'issued', 'acknowledged', 'refused', 'erasing', 'erased'] as const;
export type TokenState = (typeof TOKEN_STATES)[number];

const NEXT: Readonly<Record<TokenState, readonly TokenState[]>> = {
  none: ['issued'],
  issued: ['acknowledged', 'refused'],
  acknowledged: ['erasing'],
  refused: [],
  erasing: ['erased', 'acknowledged'],
  erased: [],
};

/** token = client × 2^40 + sequence: exact in a double for up to 8,192 clients. */
const TOKENS_PER_CLIENT = 2 ** 40;

/** A register is one row that one client overwrites with ever larger numbers; `issued` ≥ `acknowledged`. */
export interface RegisterState {
  readonly issued: number;
  readonly acknowledged: number;
}

/** Can be posted between threads. */
export interface WriteLogSnapshot {
  readonly clients: readonly { readonly client: number; readonly states: Uint8Array }[];
  readonly registers: readonly (RegisterState & { readonly client: number })[];
}

export class WriteLog {
  readonly #states = new Map<number, { bytes: Uint8Array; length: number }>();
  readonly #registers = new Map<number, RegisterState>();

  /** A fresh token for `client`, in state `issued`. */
  issue(client: number): number {
    let own = this.#states.get(client);
    if (own === undefined) {
      own = { bytes: new Uint8Array(1024), length: 0 };
      this.#states.set(client, own);
    }
    if (own.length === own.bytes.length) {
      const grown = new Uint8Array(own.bytes.length * 2);
      grown.set(own.bytes);
      own.bytes = grown;
    }
    const token = client * TOKENS_PER_CLIENT + own.length;
    own.bytes[own.length] = TOKEN_STATES.indexOf('issued');
    own.length += 1;
    return token;
  }

  /** Throws where the table above does not allow the move: then the load itself is wrong. */
  move(token: number, to: TokenState): void {
    const { client, sequence } = splitToken(token);
    const own = this.#states.get(client);
    const from = TOKEN_STATES[own?.bytes[sequence] ?? 0] ?? 'none';
    if (own === undefined || !NEXT[from].includes(to)) {
      throw new RangeError(`token ${token}: ${from} can’t become ${to}`);
    }
    own.bytes[sequence] = TOKEN_STATES.indexOf(to);
  }

  registerIssued(client: number, value: number): void {
    this.#registers.set(client, {
      issued: value,
      acknowledged: this.#registers.get(client)?.acknowledged ?? 0,
    });
  }

  registerAcknowledged(client: number, value: number): void {
    this.#registers.set(client, { issued: value, acknowledged: value });
  }

  snapshot(): WriteLogSnapshot {
    return {
      clients: [...this.#states].map(([client, own]) => ({ client, states: own.bytes.slice(0, own.length) })),
      registers: [...this.#registers].map(([client, register]) => ({ client, ...register })),
    };
  }
}

export function splitToken(token: number): { client: number; sequence: number } {
  const client = Math.floor(token / TOKENS_PER_CLIENT);
  return { client, sequence: token - client * TOKENS_PER_CLIENT };
}
