/**
 * Hints by the writes that pass the proxy. What is told by key is read by key. Rows of a table that can't be named are
 * asked for as `poll` does, by their xmin: the table alone, once, after the write. What may be gone is compared.
 *
 * What is told is of transactions whose end was answered, so a read made now sees it. A horizon of a table is `poll`'s:
 * from where its rows have not been asked for. A round that must be complete asks every table.
 *
 * Bounds: keys that wait, past which their tables are asked and compared as a whole.
 */
import type { TouchedRows } from '../../core/ports.js';
import { keyId, type ApplyTable, type Key } from '../postgres/apply-table.js';
import type { Session } from '../postgres/statement.js';
import type { ChangeHints, Hint, RoundOptions } from './hints.js';
import type { PollHints } from './poll-hints.js';

const KEYS_MAX = 200_000;

export class MirrorHints implements ChangeHints {
  readonly method = 'mirror';
  readonly intervalMs: number;
  wake: () => void = () => undefined;
  readonly #polls: PollHints;
  readonly #tables: ReadonlyMap<string, ApplyTable>;
  #keys = new Map<ApplyTable, Map<string, Key>>();
  #count = 0;
  #ask = new Set<ApplyTable>();
  #compare = new Map<ApplyTable, string>();

  constructor(tables: readonly ApplyTable[], polls: PollHints, intervalMs: number) {
    this.#tables = new Map(tables.map((table) => [table.name, table]));
    this.#polls = polls;
    this.intervalMs = intervalMs;
  }

  /** From the proxy. Never waits. */
  touched({ keys, rows, compare, unknown, lost }: TouchedRows): void {
    for (const { table: name, keys: named } of keys) {
      const table = this.#tables.get(name);
      if (table !== undefined) this.#addKeys(table, named);
    }
    for (const name of rows) this.#ifKnown(name, (table) => this.look(table));
    for (const name of compare) {
      this.#ifKnown(name, (table) => this.#compare.set(table, 'rows may be gone that no statement named'));
    }
    const anywhere = lost ?? (unknown ? 'something wrote that could not be read off its statement' : null);
    if (anywhere !== null) {
      for (const table of this.#tables.values()) {
        this.look(table);
        this.#compare.set(table, anywhere);
      }
    }
    this.wake();
  }

  /** Something wrote to the table: its rows are asked for. */
  look(table: ApplyTable): void {
    if (table.key === null) this.#compare.set(table, 'written, and it has no key');
    else this.#ask.add(table);
  }

  #ifKnown(name: string, act: (table: ApplyTable) => void): void {
    const table = this.#tables.get(name);
    if (table !== undefined) act(table);
  }

  #addKeys(table: ApplyTable, keys: readonly Key[]): void {
    if (table.key === null) {
      this.look(table);
      return;
    }
    if (this.#count + keys.length > KEYS_MAX) {
      this.look(table);
      this.#compare.set(table, 'more keys were touched than are kept');
      return;
    }
    let named = this.#keys.get(table);
    if (named === undefined) {
      named = new Map();
      this.#keys.set(table, named);
    }
    const before = named.size;
    for (const key of keys) named.set(keyId(key), key);
    this.#count += named.size - before;
  }

  begin(source: Session, table: ApplyTable): Promise<string | null> {
    return this.#polls.begin(source, table);
  }

  /** After a lost connection too, what had been taken for a round may not be applied: every table is asked. */
  load(horizons: ReadonlyMap<string, string>): void {
    this.#polls.load(horizons);
    for (const table of this.#tables.values()) this.look(table);
  }

  async *round(source: Session, { full, signal }: RoundOptions): AsyncGenerator<Hint, void, undefined> {
    const keys = this.#keys;
    const ask = full ? new Set(this.#tables.values()) : this.#ask;
    const compare = this.#compare;
    this.#keys = new Map();
    this.#count = 0;
    this.#ask = new Set();
    this.#compare = new Map();
    for (const [table, why] of compare) yield { table, keys: [], compare: why, horizon: null };
    for (const [table, named] of keys) {
      signal.throwIfAborted();
      yield { table, keys: [...named.values()], compare: null, horizon: null };
    }
    for (const table of ask) {
      signal.throwIfAborted();
      const hint = await this.#polls.pollTable(source, table);
      if (hint !== null) yield hint;
    }
  }

  applied(hint: Hint): void {
    this.#polls.applied(hint);
  }

  notes(): readonly { readonly table: string; readonly note: string }[] {
    return [...this.#tables.values()].map((table) => ({
      table: table.name,
      note:
        table.key === null
          ? 'no key: only comparing finds its changes'
          : 'by key where the statement names it, else by xmin',
    }));
  }
}
