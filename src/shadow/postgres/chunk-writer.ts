/** Writes a chunk into the destination, inside the apply transaction that ends at its `high` mark. */
import { targetOf, type ApplyTable, type Key } from './apply-table.js';
import type { Applier } from './apply.js';
import { arrayParameters, columnList, conflictClause, keyEquals, keyIndexes } from './apply-sql.js';
import { quoteIdent } from '../../core/postgres.js';
import type { ClosedWindow } from './chunk-windows.js';
import { copyOptions, type ChunkRead } from './chunk.js';
import { copyIn } from './raw-copy.js';
import { run, sqlStateOf, textOf, UNIQUENESS_SQLSTATES, type Session } from './statement.js';

export class ChunkWriter {
  readonly #session: Session;
  readonly #applier: Applier;
  readonly #staging = new Map<ApplyTable, string>();
  /** Tables in which the stream has written ahead of the copy: rows of a chunk may be there already. */
  readonly #overlapping = new Set<ApplyTable>();

  constructor(session: Session, applier: Applier) {
    this.#session = session;
    this.#applier = applier;
  }

  /** Throws `destination-query-failed`. */
  async write(origin: ApplyTable, window: ClosedWindow): Promise<void> {
    const table = targetOf(origin);
    const { read, dropped, overlays } = window;
    if (read.rows > 0) {
      const direct = dropped.length === 0 && !this.#overlapping.has(table);
      if (!direct || !(await this.#direct(table, read))) await this.#staged(table, read, dropped);
    }
    if (overlays.length > 0) await this.#applier.overlay(table, overlays);
  }

  /**
   * Puts the rows that were read in the place of those with these keys, but for keys that the stream has changed since,
   * and records both. Throws as {@link write}.
   */
  async replace(origin: ApplyTable, window: ClosedWindow, keys: readonly Key[]): Promise<void> {
    const table = targetOf(origin);
    const { read, dropped, overlays } = window;
    const replaced = dropped.length === 0 ? keys : await this.#without(table, keys, dropped);
    if (replaced.length === 0) return;
    const recorded = await this.#recordBefore(table, replaced);
    await this.#deleteKeys(table, table.only, replaced);
    if (read.rows > 0) await this.#staged(table, read, dropped);
    if (overlays.length > 0) await this.#applier.overlay(table, overlays);
    await this.#recordAfter(table, recorded);
  }

  /**
   * In place of {@link replace} where another row, which differs too, still has a unique value of one of them: they are
   * taken away, and are to be found missing by the next comparison.
   */
  async remove(origin: ApplyTable, window: ClosedWindow, keys: readonly Key[]): Promise<void> {
    const table = targetOf(origin);
    const { dropped } = window;
    const removed = dropped.length === 0 ? keys : await this.#without(table, keys, dropped);
    if (removed.length === 0) return;
    await this.#recordBefore(table, removed);
    await this.#deleteKeys(table, table.only, removed);
  }

  /** The keys of which none is equal to one of `others`, as the server compares them: 1.0 is 1.00. */
  async #without(table: ApplyTable, keys: readonly Key[], others: readonly Key[]): Promise<readonly Key[]> {
    const columns = keyIndexes(table);
    const mine = keyParameters(table, keys, 1);
    const theirs = keyParameters(table, others, 1 + columns.length);
    const equal = columns.map((column, position) => {
      const schema = quoteIdent(table.operatorSchemas[position] ?? 'pg_catalog');
      const type = table.columns[column]?.type ?? 'text';
      return `u.c${column}::${type} OPERATOR(${schema}.=) d.c${column}::${type}`;
    });
    const names = columns.map((column) => `c${column}`).join(', ');
    const { rows } = await run(
      this.#session,
      {
        text:
          `SELECT u.n FROM unnest(${mine.arrays}) WITH ORDINALITY AS u(${names}, n) WHERE NOT EXISTS ` +
          `(SELECT FROM unnest(${theirs.arrays}) AS d(${names}) WHERE ${equal.join(' AND ')})`,
        values: [...mine.values, ...theirs.values],
      },
      { what: `repairing ${table.name}`, carriesRows: true },
    );
    const kept = new Set(rows.map((row) => Number(textOf(row, 'n')) - 1));
    return keys.filter((_, index) => kept.has(index));
  }

  async #recordBefore(table: ApplyTable, keys: readonly Key[]): Promise<readonly string[]> {
    const { unnest, values, matches } = keyParameters(table, keys, 3);
    const texts = keyIndexes(table).map((column) => `u.c${column}`);
    const { rows } = await run(
      this.#session,
      {
        text:
          `INSERT INTO understudy.repaired_row (schema_name, table_name, key, before) ` +
          `SELECT $1, $2, ARRAY[${texts.join(', ')}], ` +
          `(SELECT ${recorded(table)} FROM ${table.only} AS t WHERE ${matches('t')}) FROM ${unnest} RETURNING id`,
        values: [table.info.schema, table.info.name, ...values],
      },
      { what: `recording rows of ${table.name}`, carriesRows: true },
    );
    return rows.map((row) => textOf(row, 'id'));
  }

  async #recordAfter(table: ApplyTable, ids: readonly string[]): Promise<void> {
    const matches = keyEquals(table, 't', (column) => {
      const position = keyIndexes(table).indexOf(column) + 1;
      return `r.key[${position}]::${table.columns[column]?.type ?? 'text'}`;
    });
    await run(
      this.#session,
      {
        text:
          `UPDATE understudy.repaired_row AS r SET after = ` +
          `(SELECT ${recorded(table)} FROM ${table.only} AS t WHERE ${matches}) WHERE r.id = ANY ($1::bigint[])`,
        values: [`{${ids.join(',')}}`],
      },
      { what: `recording rows of ${table.name}`, carriesRows: true },
    );
  }

  /** COPY straight into the table; false, with nothing written, where a row was there already. */
  async #direct(table: ApplyTable, read: ChunkRead): Promise<boolean> {
    const what = `copying into ${table.name}`;
    await run(this.#session, 'SAVEPOINT chunk', { what });
    try {
      await this.#copyIn(`${table.sql} (${columnList(table)})`, read, what);
    } catch (error) {
      if (!UNIQUENESS_SQLSTATES.includes(sqlStateOf(error) ?? '')) throw error;
      this.#overlapping.add(table);
      await run(this.#session, 'ROLLBACK TO SAVEPOINT chunk', { what });
      return false;
    }
    await run(this.#session, 'RELEASE SAVEPOINT chunk', { what });
    return true;
  }

  async #staged(table: ApplyTable, read: ChunkRead, dropped: readonly Key[]): Promise<void> {
    const what = `copying into ${table.name}`;
    const staging = await this.#stagingOf(table);
    await this.#copyIn(`${staging} (${columnList(table)})`, read, what);
    if (dropped.length > 0) await this.#deleteKeys(table, staging, dropped);
    if (!table.updatable) {
      const matches = keyEquals(table, 't', (column) => `s.${columnListOf(table, column)}`);
      await run(this.#session, `DELETE FROM ${table.only} AS t USING ${staging} AS s WHERE ${matches}`, {
        what,
        carriesRows: true,
      });
    }
    await run(
      this.#session,
      `INSERT INTO ${table.sql} (${columnList(table)}) OVERRIDING SYSTEM VALUE ` +
        `SELECT ${columnList(table)} FROM ${staging} ${table.updatable ? conflictClause(table) : ''}`,
      { what, carriesRows: true },
    );
  }

  async #deleteKeys(table: ApplyTable, from: string, keys: readonly Key[]): Promise<void> {
    const { unnest, values, matches } = keyParameters(table, keys, 1);
    await run(
      this.#session,
      { text: `DELETE FROM ${from} AS s USING ${unnest} WHERE ${matches('s')}`, values: [...values] },
      { what: `copying into ${table.name}`, carriesRows: true },
    );
  }

  /** A temporary table of the same columns, emptied at each commit. */
  async #stagingOf(table: ApplyTable): Promise<string> {
    let staging = this.#staging.get(table);
    if (staging === undefined) {
      staging = `pg_temp.understudy_stage_${this.#staging.size}`;
      this.#staging.set(table, staging);
    }
    await run(
      this.#session,
      `CREATE TEMPORARY TABLE IF NOT EXISTS ${staging.slice('pg_temp.'.length)} ON COMMIT DELETE ROWS AS ` +
        `SELECT ${columnList(table)} FROM ${table.sql} WITH NO DATA`,
      { what: `making a staging table for ${table.name}` },
    );
    return staging;
  }

  async #copyIn(into: string, read: ChunkRead, what: string): Promise<void> {
    const sql = `COPY ${into} FROM STDIN ${copyOptions(read.format)}`;
    await copyIn(this.#session, sql, read.frames, what);
  }
}

/** A row whose texts together are larger is not kept: no JSON holds a text beyond 256 MB. */
const RECORDED_BYTES_MAX = 64 * 1024 * 1024;

/** The row `t` as it is recorded. */
function recorded(table: ApplyTable): string {
  const sizes = table.columns
    .filter(({ type }) => /^(text|bytea|character varying(\(\d+\))?)$/.test(type))
    .map(({ name }) => `COALESCE(pg_catalog.octet_length(t.${quoteIdent(name)})::bigint, 0)`);
  const whole = 'pg_catalog.to_jsonb(t.*)';
  if (sizes.length === 0) return whole;
  return (
    `CASE WHEN ${sizes.join(' + ')} > ${RECORDED_BYTES_MAX} ` +
    `THEN pg_catalog.jsonb_build_object('understudy', 'too large to be kept') ELSE ${whole} END`
  );
}

/** The keys as `unnest(…) AS u(c0, …)` of text arrays from parameter `first` on, and how they match a row. */
function keyParameters(
  table: ApplyTable,
  keys: readonly Key[],
  first: number,
): {
  readonly arrays: string;
  readonly unnest: string;
  readonly values: readonly string[];
  readonly matches: (row: string) => string;
} {
  const key = keyIndexes(table);
  const arrays = key.map((_, index) => `$${first + index}::pg_catalog.text[]`).join(', ');
  const aliases = key.map((column) => `c${column}`).join(', ');
  const rows = keys.map((values) => {
    const row = table.columns.map((): string | null => null);
    key.forEach((column, position) => (row[column] = values[position] ?? null));
    return row;
  });
  return {
    arrays,
    unnest: `unnest(${arrays}) AS u(${aliases})`,
    values: arrayParameters(table, { columns: key }, rows),
    matches: (row) =>
      keyEquals(table, row, (column) => `u.c${column}::${table.columns[column]?.type ?? 'text'}`),
  };
}

function columnListOf(table: ApplyTable, column: number): string {
  return columnList({ ...table, columns: table.columns.slice(column, column + 1) });
}
