/** One side of a comparison: its connection, and what must be known of the server before its hashes can be trusted. */
import type pg from 'pg';
import type { Side } from '../../core/ports.js';
import { UnderstudyError, invariant } from '../../core/errors.js';
import { PINNED_SETTINGS, quoteIdent, quoteTable } from '../../core/postgres.js';
import { isRetryable } from './statement.js';
import type { TableInfo } from './table.js';
import {
  OUTPUT_SETTINGS,
  OUTPUT_SETTINGS_SQL,
  SESSION_SQL,
  UNIQUE_INDEXES_SQL,
  type KeyAccess,
  type Statement,
} from './verify-sql.js';

/** The form of one of the source's tables on a side. */
export type TableForm = (table: TableInfo, side: Side) => TableInfo;

export type TextRow = readonly (string | null)[];

/** How each table's key is reached, per connection; only indexes found are kept, so that a later one is noticed. */
const keyAccessCache = new WeakMap<pg.Client, Map<string, readonly KeyAccess[]>>();

export class VerifySide {
  readonly #client: pg.Client;
  readonly #side: Side;

  readonly #form: TableForm;

  constructor(client: pg.Client, side: Side, form: TableForm = (table) => table) {
    this.#client = client;
    this.#side = side;
    this.#form = form;
  }

  /** The table as this side has it. */
  form(table: TableInfo): TableInfo {
    return this.#form(table, this.#side);
  }

  /** An access by the names of `table`, which is the source's, as one by the names of this side's form of it. */
  access<T extends KeyAccess | null>(table: TableInfo, access: T): T {
    const form = this.form(table);
    if (access === null || form === table) return access;
    const columns = access.columns.map((name) => renamed(table, form, name));
    return { ...access, columns };
  }

  /**
   * Runs one statement; values come as text. Throws `…-query-failed` where the server refused it, `…-unreachable`
   * where the connection was lost, and the signal's reason at once when it fires: the statement then still runs, so
   * the owner of the connection ends it.
   */
  async query(statement: Statement, signal?: AbortSignal): Promise<readonly TextRow[]> {
    signal?.throwIfAborted();
    const running = this.#client.query<(string | null)[]>({ ...statement, rowMode: 'array' });
    return (await this.#observed(running, signal)).rows;
  }

  /** Runs several statements as one simple query; their rows, statement by statement. Throws as {@link query}. */
  async script(text: string, signal?: AbortSignal): Promise<readonly (readonly TextRow[])[]> {
    signal?.throwIfAborted();
    const running = this.#client.query<(string | null)[]>({ text, rowMode: 'array' });
    // pg answers a query of several statements with an array, which its types don't say.
    const results: unknown = await this.#observed(running, signal);
    return (Array.isArray(results) ? results : [results]).map(
      (result: pg.QueryArrayResult<(string | null)[]>) => result.rows,
    );
  }

  async #observed<T>(running: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
    try {
      return await (signal === undefined ? running : abortable(running, signal));
    } catch (error) {
      if (signal?.aborted === true) throw signal.reason;
      throw this.#wrap(error);
    }
  }

  /** Makes the session's scans modest; for scans only, a look-up by keys needs none of it. */
  async restrain(signal?: AbortSignal): Promise<void> {
    for (const text of SESSION_SQL) {
      await this.query({ text, values: [] }, signal).catch((error: unknown) => {
        if (!(error instanceof UnderstudyError) || error.retryable) throw error;
      });
    }
  }

  /**
   * The database's encoding. Throws `internal` if the connection is not pinned as `connectControl` pins it: values
   * would print otherwise than on the other side.
   */
  async encoding(signal?: AbortSignal): Promise<string> {
    const [row = []] = await this.query({ text: OUTPUT_SETTINGS_SQL, values: [] }, signal);
    const [encoding, ...settings] = row;
    OUTPUT_SETTINGS.forEach((name, index) => {
      invariant(settings[index] === PINNED_SETTINGS[name], `${name} is pinned on ${this.#side}`);
    });
    return encoding ?? '';
  }

  /** The unique indexes whose columns are exactly the table's key, in the order the server lists them; by its names. */
  async keyAccess(table: TableInfo, signal?: AbortSignal): Promise<readonly KeyAccess[]> {
    const { key } = table;
    if (key === null) return [];
    const cache = keyAccessCache.get(this.#client) ?? new Map<string, readonly KeyAccess[]>();
    keyAccessCache.set(this.#client, cache);
    const form = this.form(table);
    const name = quoteTable(form);
    const known = cache.get(name);
    if (known !== undefined) return known;
    const rows = await this.query({ text: UNIQUE_INDEXES_SQL, values: [name] }, signal);
    const indexes = groupByIndex(rows).map((access) => ({
      ...access,
      columns: access.columns.map((column) => renamed(form, table, column)),
    }));
    const found = indexes.filter(
      (access) =>
        access.columns.length === key.length && key.every((column) => access.columns.includes(column)),
    );
    if (found.length > 0) cache.set(name, found);
    return found;
  }

  #wrap(error: unknown): UnderstudyError {
    const refused = hasSqlState(error);
    const reason = error instanceof Error ? error.message : String(error);
    return new UnderstudyError(
      refused ? `${this.#side}-query-failed` : `${this.#side}-unreachable`,
      `comparing rows on the ${this.#side}: ${reason}`,
      {
        cause: error,
        // A server that shuts down, or a connection that is ended for us, refuses in its last words.
        ...(refused ? { retryable: isRetryable(error.code), details: { sqlState: error.code } } : {}),
      },
    );
  }
}

/** The name in `to` of the column that `from` calls `name`: forms have the same columns in the same order. */
function renamed(from: TableInfo, to: TableInfo, name: string): string {
  return to.columns[from.columns.findIndex((column) => column.name === name)]?.name ?? name;
}

function hasSqlState(error: unknown): error is Error & { readonly code: string } {
  return error instanceof Error && 'severity' in error && 'code' in error && typeof error.code === 'string';
}

function groupByIndex(rows: readonly TextRow[]): readonly KeyAccess[] {
  const indexes = new Map<string, { columns: string[]; operators: string[]; ascending: boolean }>();
  for (const [index, column, descending, operatorSchema, operator] of rows) {
    const id = index ?? '';
    const access = indexes.get(id) ?? { columns: [], operators: [], ascending: true };
    indexes.set(id, access);
    access.columns.push(column ?? '');
    access.operators.push(`OPERATOR(${quoteIdent(operatorSchema ?? '')}.${operator ?? '='})`);
    if (descending !== '0') access.ascending = false;
  }
  return [...indexes.values()];
}

/** Rejects with the signal's reason as soon as it fires; the work itself goes on unobserved. */
export function abortable<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = (): void => reject(signal.reason as Error);
    if (signal.aborted) onAbort();
    else signal.addEventListener('abort', onAbort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
  });
}
