/**
 * Writes the steps of a flush into the database behind an apply connection, inside the caller's transaction.
 *
 * The connection runs with `session_replication_role = replica`: foreign keys and ordinary triggers stay silent, as
 * the source has checked and fired them already, and rows may arrive in any order.
 */
import { UnderstudyError } from '../../core/errors.js';
import { keyOf, targetOf, type ApplyTable, type Value } from './apply-table.js';
import {
  arrayParameters,
  deleteOneSql,
  deleteSql,
  insertEmptySql,
  insertSql,
  isLarge,
  keyIndexes,
  largeParameters,
  moveSql,
  updateSql,
  type BulkStatement,
  type SingleStatement,
} from './apply-sql.js';
import { isPartial, type KeyedRow, type KeylessWrite, type Step, type TableRows } from './flush-plan.js';
import { runLarge } from './large-statement.js';
import { run, sqlStateOf, type Session } from './statement.js';
import type { Row } from './apply-table.js';

/**
 * A prepared plan that reads the table through its key's index, whatever the statistics say, and never a scan: a
 * shadow that is being copied has none.
 */
export const APPLY_SETTINGS: Readonly<Record<string, string>> = {
  session_replication_role: 'replica',
  plan_cache_mode: 'force_generic_plan',
  enable_seqscan: 'off',
  enable_mergejoin: 'off',
  // A connection whose peer vanished without a word must not hold its locks for hours.
  tcp_keepalives_idle: '10',
  tcp_keepalives_interval: '5',
  tcp_keepalives_count: '3',
};

/** feature_not_supported: TRUNCATE of a table that another one references. */
const TRUNCATE_REFERENCED_SQLSTATE = '0A000';

/** Statements kept prepared per connection; partial updates can have any set of columns. */
const PREPARED_MAX = 2000;

export interface ApplyOutcome {
  /** Partial rows whose row was not there, by table. The row is then only on the origin. */
  readonly orphans: readonly { readonly table: ApplyTable; readonly key: readonly string[] }[];
}

interface TableStatements {
  readonly delete: BulkStatement;
  readonly insert: BulkStatement;
  readonly upsert: BulkStatement;
  readonly updates: Map<string, BulkStatement | null>;
}

export class Applier {
  readonly #session: Session;
  readonly #statements = new Map<ApplyTable, TableStatements>();
  readonly #names = new Map<string, string>();

  constructor(session: Session) {
    this.#session = session;
  }

  /**
   * Throws `…-query-failed`, whose details hold the SQLSTATE. `complete`: every row that the origin had is there, so
   * that what it updated need not be upserted, which costs a lock and its log record for each row.
   */
  async apply(steps: readonly Step[], options: { readonly complete: boolean }): Promise<ApplyOutcome> {
    const orphans: { table: ApplyTable; key: readonly string[] }[] = [];
    for (const step of steps) {
      switch (step.kind) {
        case 'rows':
          for (const rows of step.tables) await this.#rows(rows, options.complete);
          break;
        case 'move': {
          const target = targetOf(step.table);
          const moved = await this.#execute(moveSql(target, step.from, step.row), target);
          if (moved === 0) {
            orphans.push({ table: step.table, key: keyOf(step.table, step.row) });
          }
          break;
        }
        case 'truncate-part':
          await this.#truncatePart(targetOf(step.table), step.condition);
          break;
        case 'truncate':
          await this.#truncate(step.tables.map((table) => targetOf(table)));
          break;
      }
    }
    return { orphans };
  }

  /** Partial rows, laid over rows that were just written. */
  async overlay(table: ApplyTable, rows: readonly KeyedRow[]): Promise<void> {
    await this.#partial(targetOf(table), carriedRows(rows));
  }

  async #rows({ table: origin, keyed, keyless }: TableRows, complete: boolean): Promise<void> {
    const table = targetOf(origin);
    if (keyed.size > 0) {
      const gone: Row[] = [];
      const full: Row[] = [];
      const updated: Row[] = [];
      const partial: Row[] = [];
      const inPlace = complete && table.updatable;
      for (const { key, row, existed } of keyed.values()) {
        if (row === null) gone.push(keyRow(table, key));
        else if (isPartial(row)) partial.push(row);
        else if (existed && inPlace) updated.push(row);
        else full.push(row);
      }
      const statements = this.#of(table);
      // A row that can't be updated in place is replaced.
      const removed = table.updatable ? gone : [...gone, ...full];
      if (removed.length > 0) await this.#bulk(statements.delete, removed, table);
      await this.#partial(table, partial);
      await this.#updated(table, updated);
      if (full.length > 0) {
        await this.#bulk(table.updatable ? statements.upsert : statements.insert, full, table);
      }
    }
    for (let at = 0; at < keyless.length;) at = await this.#keyless(table, keyless, at);
  }

  /** Rows that the origin had before; one that is missing here is written all the same. */
  async #updated(table: ApplyTable, rows: readonly Row[]): Promise<void> {
    if (rows.length === 0) return;
    const statement = this.#update(table, '1'.repeat(table.columns.length));
    if (statement === null) {
      await this.#bulk(this.#of(table).upsert, rows, table);
      return;
    }
    const found = await this.#bulk(statement, rows, table);
    if (found < rows.length) await this.#bulk(this.#of(table).upsert, rows, table);
  }

  async #partial(table: ApplyTable, rows: readonly Row[]): Promise<void> {
    if (!table.updatable) {
      for (const row of rows) await this.#execute(moveSql(table, keyOf(table, row), row), table);
      return;
    }
    const byColumns = new Map<string, Row[]>();
    for (const row of rows) {
      const mask = row.map((value) => (value === undefined ? '0' : '1')).join('');
      const group = byColumns.get(mask);
      if (group === undefined) byColumns.set(mask, [row]);
      else group.push(row);
    }
    for (const [mask, group] of byColumns) {
      const statement = this.#update(table, mask);
      if (statement !== null) await this.#bulk(statement, group, table);
    }
  }

  #of(table: ApplyTable): TableStatements {
    let statements = this.#statements.get(table);
    if (statements === undefined) {
      statements = {
        delete: deleteSql(table),
        insert: insertSql(table, false),
        upsert: insertSql(table, true),
        updates: new Map(),
      };
      this.#statements.set(table, statements);
    }
    return statements;
  }

  #update(table: ApplyTable, mask: string): BulkStatement | null {
    const { updates } = this.#of(table);
    let statement = updates.get(mask);
    if (statement === undefined) {
      const carried = table.columns.map((_, index) => index).filter((index) => mask[index] === '1');
      statement = updateSql(table, carried);
      updates.set(mask, statement);
    }
    return statement;
  }

  /** Writes what starts at `at`, and returns where the next write starts: inserts in a row go together. */
  async #keyless(table: ApplyTable, writes: readonly KeylessWrite[], at: number): Promise<number> {
    const write = writes[at];
    if (write === undefined) return writes.length;
    if (write.kind === 'insert') {
      let end = at;
      const rows: Row[] = [];
      for (let next = writes[end]; next?.kind === 'insert'; next = writes[++end]) rows.push(next.row);
      await this.insertKeyless(table, rows);
      return end;
    }
    await this.#execute(deleteOneSql(table, write.old), table);
    if (write.kind === 'update') await this.insertKeyless(table, [write.row]);
    return at + 1;
  }

  async insertKeyless(table: ApplyTable, rows: readonly Row[]): Promise<void> {
    if (table.columns.length === 0) {
      await this.#execute({ text: insertEmptySql(table, rows.length), values: [] }, table);
    } else {
      await this.#bulk(insertSql(table, false), rows, table);
    }
  }

  /**
   * Every table of the message is listed, as the source truncated all of them together; a table that references one
   * of them only through its partition root still makes the server refuse, and is emptied row by row.
   */
  async #truncate(tables: readonly ApplyTable[]): Promise<void> {
    const { client, side } = this.#session;
    const names = tables.map((table) => table.only).join(', ');
    await run(this.#session, 'SAVEPOINT truncation', { what: 'truncating' });
    try {
      await run({ client, side }, `TRUNCATE ${names}`, { what: 'truncating' });
    } catch (error) {
      if (sqlStateOf(error) !== TRUNCATE_REFERENCED_SQLSTATE) throw error;
      await run(this.#session, 'ROLLBACK TO SAVEPOINT truncation', { what: 'truncating' });
      for (const table of tables) {
        await run(this.#session, `DELETE FROM ${table.only}`, { what: 'truncating' });
      }
    }
    await run(this.#session, 'RELEASE SAVEPOINT truncation', { what: 'truncating' });
  }

  async #truncatePart(table: ApplyTable, condition: string | null): Promise<void> {
    if (condition === null) {
      throw new UnderstudyError(
        'apply-failed',
        `${table.name}: which rows a partition held that was truncated is not known on the ${this.#session.side}`,
        { details: { sqlState: TRUNCATE_REFERENCED_SQLSTATE } },
      );
    }
    await this.#execute({ text: `DELETE FROM ${table.only} WHERE ${condition}`, values: [] }, table);
  }

  async #bulk(statement: BulkStatement, rows: readonly Row[], table: ApplyTable): Promise<number> {
    const purpose = { what: `writing to ${table.name}`, carriesRows: true };
    const large = rows.filter(isLarge);
    const others = large.length === 0 ? rows : rows.filter((row) => !isLarge(row));
    let written = 0;
    if (others.length > 0) {
      const values = arrayParameters(table, statement, others);
      const name = this.#name(statement.text);
      const text = name === undefined ? { text: statement.text } : { name, text: statement.text };
      written += (await run(this.#session, { ...text, values }, purpose)).rowCount ?? 0;
    }
    for (const row of large) {
      const values = largeParameters(table, statement, row);
      written += await runLarge(this.#session, { text: statement.text, values }, purpose);
    }
    return written;
  }

  /** Returns the number of rows written. */
  async #execute(statement: SingleStatement, table: ApplyTable): Promise<number> {
    const { text, values } = statement;
    const purpose = { what: `writing to ${table.name}`, carriesRows: true };
    const texts = values.filter((value) => typeof value === 'string');
    if (texts.length < values.length) return await runLarge(this.#session, statement, purpose);
    const result = await run(this.#session, { text, values: texts }, purpose);
    return result.rowCount ?? 0;
  }

  #name(text: string): string | undefined {
    let name = this.#names.get(text);
    if (name === undefined && this.#names.size < PREPARED_MAX) {
      name = `s${this.#names.size}`;
      this.#names.set(text, name);
    }
    return name;
  }
}

/** A row that holds nothing but its key. */
function keyRow(table: ApplyTable, key: readonly string[]): Row {
  const row: Value[] = table.columns.map(() => undefined);
  keyIndexes(table).forEach((column, position) => (row[column] = key[position]));
  return row;
}

function carriedRows(rows: readonly KeyedRow[]): Row[] {
  return rows.flatMap(({ row }) => (row === null ? [] : [row]));
}
