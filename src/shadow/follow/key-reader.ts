/** Reads the rows that the source holds under given keys, each call under one snapshot. */
import { pg } from '../../core/pg.js';
import { quoteIdent } from '../../core/postgres.js';
import { UnderstudyError } from '../../core/errors.js';
import { columnAt, keyEquals, keyIndexes, textArray } from '../postgres/apply-sql.js';
import type { ApplyTable, Key, Row } from '../postgres/apply-table.js';
import { beginRead } from '../postgres/chunk-reader.js';
import { statementError, type Session } from '../postgres/statement.js';
import { versionOf, type RowVersion } from './row-version.js';

export interface ReadRow {
  /** As the key's types print it, whatever form it was asked in. */
  readonly key: Key;
  /** null where the source holds no such row. */
  readonly row: Row | null;
}

export interface KeysRead {
  readonly version: RowVersion;
  /** In the order of the keys asked for. */
  readonly rows: readonly ReadRow[];
}

/** data_exception: a key that its type can't read. */
const DATA_EXCEPTION = '22';

/**
 * The rows of `table` with these keys. Throws `source-…`; null where a key is not of its type, as one that was read off a
 * statement may be.
 */
export async function readKeys(
  source: Session,
  table: ApplyTable,
  keys: readonly Key[],
): Promise<KeysRead | null> {
  try {
    const { at } = await beginRead(source);
    const { rows } = await source.client.query<(string | null)[]>({
      text: readSql(table),
      values: keyIndexes(table).map((_, part) => textArray(keys.map((key) => key[part] ?? ''))),
      rowMode: 'array',
    });
    return { version: versionOf(at), rows: rows.map((row) => readRow(table, row)) };
  } catch (error) {
    if (error instanceof pg.DatabaseError && error.code?.startsWith(DATA_EXCEPTION) === true) return null;
    throw statementError('source', error, { what: `reading rows of ${table.name}`, carriesRows: true });
  } finally {
    await source.client.query('ROLLBACK').catch(() => undefined);
  }
}

function readRow(table: ApplyTable, fields: readonly (string | null)[]): ReadRow {
  const key = keyIndexes(table).map((_, part) => fields[part] ?? '');
  const present = fields[key.length] === 't';
  const row = fields.slice(key.length + 1);
  if (row.length !== table.columns.length) {
    throw new UnderstudyError('internal', `${table.name}: a row of another shape`);
  }
  return { key, row: present ? row : null };
}

/** → key as text, whether there is such a row, its columns; one row per key asked for, in that order. */
function readSql(table: ApplyTable): string {
  const key = keyIndexes(table);
  const cast = (column: number): string => `u.c${column}::${columnAt(table, column).type}`;
  const arrays = key.map((_, part) => `$${part + 1}::pg_catalog.text[]`).join(', ');
  const names = key.map((column) => `c${column}`).join(', ');
  const texts = key.map((column) => `${cast(column)}::pg_catalog.text`).join(', ');
  const columns = table.columns.map((column, index) => `t.${quoteIdent(column.name)} AS v${index}`);
  const values = table.columns.map((_, index) => `, l.v${index}`).join('');
  return `SELECT ${texts}, l.present${values}
    FROM unnest(${arrays}) WITH ORDINALITY AS u(${names}, n)
    LEFT JOIN LATERAL (SELECT ${['true AS present', ...columns].join(', ')} FROM ${table.only} AS t
      WHERE ${keyEquals(table, 't', cast)} OFFSET 0) AS l ON true
    ORDER BY u.n`;
}
