/**
 * The proxy's own questions on a client's backend, in the order sent; their answers come in the same order, between
 * the client's, and are never shown to it.
 */
import { UnderstudyError } from '../../core/errors.js';
import type { Reply } from '../backend/reply-reader.js';

interface Exchange {
  readonly rows: (string | null)[][];
  bytes: number;
  sqlState: string | null;
  readonly resolve: (reply: Reply) => void;
  readonly reject: (error: Error) => void;
}

export class OwnExchanges {
  readonly #open: Exchange[] = [];
  readonly #replyBytesMax: number;

  /** `replyBytesMax` bounds all rows of one answer together. */
  constructor(replyBytesMax: number) {
    this.#replyBytesMax = replyBytesMax;
  }

  get pending(): number {
    return this.#open.length;
  }

  /** Call right before the message is written. Rejects where the connection is lost. */
  expect(): Promise<Reply> {
    return new Promise((resolve, reject) => {
      this.#open.push({ rows: [], bytes: 0, sqlState: null, resolve, reject });
    });
  }

  row(row: (string | null)[]): void {
    const exchange = this.#open[0];
    if (exchange === undefined) return;
    for (const value of row) exchange.bytes += value?.length ?? 0;
    if (exchange.bytes > this.#replyBytesMax) exchange.sqlState ??= '54000';
    else exchange.rows.push(row);
  }

  failed(sqlState: string): void {
    const exchange = this.#open[0];
    if (exchange !== undefined) exchange.sqlState ??= sqlState;
  }

  ready(): void {
    const exchange = this.#open.shift();
    exchange?.resolve({ rows: exchange.rows, sqlState: exchange.sqlState });
  }

  lost(reason: string): void {
    for (const exchange of this.#open.splice(0)) {
      exchange.reject(new UnderstudyError('backend-refused', reason, { retryable: true }));
    }
  }
}
