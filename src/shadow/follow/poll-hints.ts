/**
 * Hints by polling: every table is asked for the rows written since its horizon.
 *
 * By `xmin`, the id of the transaction that wrote a row, for which any table can be asked, at the price of a scan.
 * - The horizon is the poll's snapshot's own xmin, the oldest transaction that was still running. Every row of a
 *   transaction that the snapshot did not see bears an id at or above it: its own, or a subtransaction's, which is larger
 *   than its parent's. So a late committer is found by the poll after its commit, however long it took.
 * - Ids are compared in a circle of 2³², as the server does. A row older than half of it may be taken for a new one,
 *   which costs a read. Where half of it went by since the last poll, nothing can be told, and the table is compared.
 * - What was read under a horizon that a long transaction keeps back is not read again while its xmin is the same.
 *
 * By a timestamp that configuration names, which an index may serve. The horizon is the start of the oldest transaction
 * that may be seen, or the poll itself, less an overlap: `now()` is when a transaction began. A session whose
 * transaction may not be looked at, a clock of the application's, an update that leaves the column alone: those the
 * comparison finds.
 *
 * Never seen by a poll: deletions, the old key of a row whose key changed, TRUNCATE. The follower's watch on the tables'
 * counters sees that there were some, and has the table compared.
 */
import { quoteIdent } from '../../core/postgres.js';
import { columnAt, keyIndexes } from '../postgres/apply-sql.js';
import { keyId, type ApplyTable, type Key } from '../postgres/apply-table.js';
import { beginRead } from '../postgres/chunk-reader.js';
import { run, statementError, textOf, type Session } from '../postgres/statement.js';
import type { ChangeHints, Hint, RoundOptions } from './hints.js';

export interface PollSettings {
  /** Pause between two polls. */
  readonly pollIntervalMs: number;
  /** `schema.table` → timestamp column that says when a row was written. */
  readonly versionColumns: Readonly<Record<string, string>> | undefined;
  /** Rows that one poll of a table names, at most; past it the table is compared. */
  readonly keysMax: number;
}

interface Watched {
  readonly table: ApplyTable;
  readonly column: string | null;
  horizon: string | null;
  /** Keys applied at or above the horizon → the xmin under which they were. */
  seen: ReadonlyMap<string, string>;
  /** Of the round under way. */
  seeing: ReadonlyMap<string, string>;
}

const XIDS = 1n << 32n;
/** How far the clocks of a transaction's start and of the poll may differ, and then some. */
const OVERLAP_SECONDS = 5;

export class PollHints implements ChangeHints {
  readonly method = 'poll';
  readonly intervalMs: number;
  wake: () => void = () => undefined;
  readonly #keysMax: number;
  readonly #tables: readonly Watched[];
  readonly #notes: { readonly table: string; readonly note: string }[] = [];

  constructor(tables: readonly ApplyTable[], settings: PollSettings) {
    this.intervalMs = settings.pollIntervalMs;
    this.#keysMax = settings.keysMax;
    this.#tables = tables
      .filter((table) => table.key !== null)
      .map((table) => ({
        table,
        column: this.#columnOf(table, settings.versionColumns ?? {}),
        horizon: null,
        seen: new Map(),
        seeing: new Map(),
      }));
    for (const table of tables) {
      if (table.key === null) {
        this.#notes.push({ table: table.name, note: 'no key: only comparing finds its changes' });
      }
    }
  }

  #columnOf(table: ApplyTable, columns: Readonly<Record<string, string>>): string | null {
    const name = columns[table.name];
    if (name === undefined) {
      this.#notes.push({ table: table.name, note: 'xmin: exact for inserts and updates, one scan per poll' });
      return null;
    }
    const column = table.columns.find((candidate) => candidate.name === name);
    if (column === undefined || !/^timestamp(\(\d\))? with(out)? time zone$/.test(column.type)) {
      const why = column === undefined ? 'there is no such column' : `it is of type ${column.type}`;
      this.#notes.push({
        table: table.name,
        note: `xmin, not ${name}, as shadow.versionColumns asks: ${why}`,
      });
      return null;
    }
    this.#notes.push({ table: table.name, note: `${name}, as shadow.versionColumns asks` });
    return name;
  }

  async begin(source: Session, table: ApplyTable): Promise<string | null> {
    const watched = this.#tables.find((candidate) => candidate.table === table);
    if (watched === undefined) return null;
    try {
      return await this.#horizon(source, watched);
    } finally {
      await source.client.query('ROLLBACK').catch(() => undefined);
    }
  }

  load(horizons: ReadonlyMap<string, string>): void {
    for (const watched of this.#tables) {
      watched.horizon = horizons.get(watched.table.name) ?? null;
      watched.seen = new Map();
    }
  }

  async *round(source: Session, { signal }: RoundOptions): AsyncGenerator<Hint, void, undefined> {
    for (const watched of this.#tables) {
      signal.throwIfAborted();
      yield await this.#poll(source, watched);
    }
  }

  /** One table's; null where it can't be polled. */
  async pollTable(source: Session, table: ApplyTable): Promise<Hint | null> {
    const watched = this.#tables.find((candidate) => candidate.table === table);
    return watched === undefined ? null : await this.#poll(source, watched);
  }

  applied({ table, horizon }: Hint): void {
    const watched = this.#tables.find((candidate) => candidate.table === table);
    if (watched === undefined || horizon === null) return;
    watched.horizon = horizon;
    watched.seen = watched.seeing;
  }

  notes(): readonly { readonly table: string; readonly note: string }[] {
    return this.#notes;
  }

  /** Begins the read that the horizon belongs to. */
  async #horizon(source: Session, { column }: Watched): Promise<string> {
    const { at } = await beginRead(source);
    if (column === null) return String(at.xmin);
    // A transaction that may not be looked at shows no start; one without an id may write yet.
    const { rows } = await run(
      source,
      `SELECT (LEAST(pg_catalog.now(), pg_catalog.min(a.xact_start), (SELECT pg_catalog.min(p.prepared) FROM pg_catalog.pg_prepared_xacts p))
          - pg_catalog.make_interval(secs => ${OVERLAP_SECONDS}))::text AS horizon
        FROM pg_catalog.pg_stat_activity a WHERE a.datname = pg_catalog.current_database()`,
      { what: 'looking for the oldest transaction' },
    );
    return textOf(rows[0], 'horizon');
  }

  async #poll(source: Session, watched: Watched): Promise<Hint> {
    const { table } = watched;
    try {
      const horizon = await this.#horizon(source, watched);
      if (watched.horizon === null) {
        return { table, keys: [], horizon, compare: 'it was not known how far it had been followed' };
      }
      if (watched.column === null) {
        const passed = BigInt(horizon) - BigInt(watched.horizon);
        if (passed < 0n || passed >= XIDS / 2n) {
          return {
            table,
            keys: [],
            horizon,
            compare: 'transaction ids wrapped around, or the source was set back',
          };
        }
      }
      const keys = await this.#changed(source, watched);
      if (keys === null) return { table, keys: [], horizon, compare: 'more rows changed than a poll names' };
      return { table, keys, horizon, compare: null };
    } finally {
      // Nothing was written; the end of the read only lets go of its snapshot.
      await source.client.query('ROLLBACK').catch(() => undefined);
    }
  }

  /** Keys written since the horizon and not applied yet; null where there are too many. */
  async #changed(source: Session, watched: Watched): Promise<readonly Key[] | null> {
    const { table, column, seen } = watched;
    const what = `polling ${table.name}`;
    const columns = keyIndexes(table).map((index) => quoteIdent(columnAt(table, index).name));
    const condition =
      column === null
        ? `((t.xmin::text::bigint - $1::bigint + ${XIDS}) % ${XIDS}) < ${XIDS / 2n}`
        : `(t.${quoteIdent(column)} >= $1::timestamptz OR t.${quoteIdent(column)} IS NULL)`;
    const horizon = watched.horizon ?? '0';
    const parameter = column === null ? String(BigInt(horizon) % XIDS) : horizon;
    const texts = columns.map((name) => `t.${name}::text`).join(', ');
    // The session's other reads are by keys, for which a scan is forbidden; this one may be nothing else.
    await run(source, 'SET LOCAL enable_seqscan = on', { what });
    let rows: readonly (string | null)[][];
    try {
      ({ rows } = await source.client.query<(string | null)[]>({
        text: `SELECT t.xmin::text, ${texts} FROM ONLY ${table.sql} AS t WHERE ${condition} LIMIT ${this.#keysMax + 1}`,
        values: [parameter],
        rowMode: 'array',
      }));
    } catch (error) {
      throw statementError('source', error, { what, carriesRows: true });
    }
    const seeing = new Map<string, string>();
    watched.seeing = seeing;
    if (rows.length > this.#keysMax) return null;
    const keys: Key[] = [];
    for (const [xmin, ...parts] of rows) {
      const key = parts.map((part) => part ?? '');
      const id = keyId(key);
      seeing.set(id, xmin ?? '');
      if (seen.get(id) !== xmin) keys.push(key);
    }
    return keys;
  }
}
