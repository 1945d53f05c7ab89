/** Writes a chunk into the destination, inside the apply transaction that ends at its `high` mark. */
import type { ApplyTable, Key } from './apply-table.js';
import type { Applier } from './apply.js';
import { arrayParameters, columnList, conflictClause, keyEquals, keyIndexes } from './apply-sql.js';
import type { ClosedWindow } from './chunk-windows.js';
import { copyOptions, type ChunkRead } from './chunk.js';
import { copyIn } from './raw-copy.js';
import { run, sqlStateOf, UNIQUENESS_SQLSTATES, type Session } from './statement.js';

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

  /** `table` is the destination's form of the chunk's. Throws `destination-query-failed`. */
  async write(table: ApplyTable, window: ClosedWindow): Promise<void> {
    const { read, dropped, overlays } = window;
    if (read.rows > 0) {
      const direct = dropped.length === 0 && !this.#overlapping.has(table);
      if (!direct || !(await this.#direct(table, read))) await this.#staged(table, read, dropped);
    }
    if (overlays.length > 0) await this.#applier.overlay(table, overlays);
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
    if (dropped.length > 0) await this.#dropKeys(table, staging, dropped);
    if (!table.updatable) {
      const matches = keyEquals(table, 't', (column) => `s.${columnListOf(table, column)}`);
      await run(this.#session, `DELETE FROM ONLY ${table.sql} AS t USING ${staging} AS s WHERE ${matches}`, {
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

  async #dropKeys(table: ApplyTable, staging: string, dropped: readonly Key[]): Promise<void> {
    const key = keyIndexes(table);
    const arrays = key.map((_, index) => `$${index + 1}::pg_catalog.text[]`).join(', ');
    const aliases = key.map((column) => `c${column}`).join(', ');
    const matches = keyEquals(
      table,
      's',
      (column) => `u.c${column}::${table.columns[column]?.type ?? 'text'}`,
    );
    const rows = dropped.map((values) => {
      const row = table.columns.map((): string | null => null);
      key.forEach((column, position) => (row[column] = values[position] ?? null));
      return row;
    });
    await run(
      this.#session,
      {
        text: `DELETE FROM ${staging} AS s USING unnest(${arrays}) AS u(${aliases}) WHERE ${matches}`,
        values: arrayParameters(table, { columns: key }, rows),
      },
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
        `SELECT ${columnList(table)} FROM ONLY ${table.sql} WITH NO DATA`,
      { what: `making a staging table for ${table.name}` },
    );
    return staging;
  }

  async #copyIn(into: string, read: ChunkRead, what: string): Promise<void> {
    const sql = `COPY ${into} FROM STDIN ${copyOptions(read.format)}`;
    await copyIn(this.#session, sql, read.frames, what);
  }
}

function columnListOf(table: ApplyTable, column: number): string {
  return columnList({ ...table, columns: table.columns.slice(column, column + 1) });
}
