/** Gathers the answer to one message group of the proxy's own, up to its ReadyForQuery. */
import { parseErrorFields } from '../../wire/postgres/messages.js';
import { parseRawRow } from '../../wire/postgres/raw-text.js';

export interface Reply {
  readonly rows: readonly (readonly (string | null)[])[];
  /** SQLSTATE of the first error; null where all went well. */
  readonly sqlState: string | null;
}

export class ReplyReader {
  readonly #bytesMax: number;
  #rows: (string | null)[][] = [];
  #rowBytes = 0;
  #sqlState: string | null = null;

  /** An answer with more bytes of rows than `bytesMax` counts as failed, with 54000. */
  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax;
  }

  /** SQLSTATE of the first error so far. */
  get sqlState(): string | null {
    return this.#sqlState;
  }

  /** `payload` is shorter than `payloadBytes` where the row was too long to be kept. */
  row(payload: Buffer, payloadBytes: number): void {
    this.#rowBytes += payloadBytes;
    if (payload.length < payloadBytes || this.#rowBytes > this.#bytesMax) this.#sqlState ??= '54000';
    else this.#rows.push(parseRawRow(payload));
  }

  /** As `row`. */
  error(payload: Buffer, payloadBytes: number): void {
    this.#sqlState ??= parseErrorFields(payload, payload.length < payloadBytes).sqlState;
  }

  /** The answer is complete; the next one begins. */
  take(): Reply {
    const reply: Reply = { rows: this.#rows, sqlState: this.#sqlState };
    this.#rows = [];
    this.#rowBytes = 0;
    this.#sqlState = null;
    return reply;
  }
}
