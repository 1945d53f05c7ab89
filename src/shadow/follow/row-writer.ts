/**
 * Makes the destination hold, under given keys, what was read from the source: inside the caller's transaction, and only
 * where no newer version stands.
 *
 * Rows of one read may take unique values from each other, or from rows that were not part of it:
 *   upsert in place → clash: all keys of the read go, then its rows come → clash with a row outside of the read
 * The last is a row of which the source holds another version by now, or none: it is named, by its key, for the caller to
 * read it together with the others.
 */
import { pg } from '../../core/pg.js';
import { quoteIdent, quoteTable } from '../../core/postgres.js';
import {
  arrayParameters,
  columnAt,
  deleteSql,
  insertSql,
  keyIndexes,
  textArray,
} from '../postgres/apply-sql.js';
import { keyId, type ApplyTable, type Key, type Row, type Value } from '../postgres/apply-table.js';
import { run, statementError, textOf, UNIQUENESS_SQLSTATES, type Session } from '../postgres/statement.js';
import { claimVersions } from './row-version.js';
import type { KeysRead, ReadRow } from './key-reader.js';

export type WriteOutcome =
  | { readonly kind: 'written'; readonly upserted: number; readonly deleted: number }
  /** Nothing of the read is written, and the transaction is to be rolled back. */
  | { readonly kind: 'clash'; readonly index: string; readonly rows: readonly Row[] };

/** Throws `destination-query-failed`, which names the table and never a value. */
export async function writeRows(
  destination: Session,
  table: ApplyTable,
  read: KeysRead,
): Promise<WriteOutcome> {
  const mine = await claimVersions(
    destination,
    table.info,
    read.version,
    read.rows.map(({ key, row }) => ({ id: keyId(key), deleted: row === null })),
  );
  const claimed = read.rows.filter(({ key }) => mine.has(keyId(key)));
  const gone = claimed.filter(({ row }) => row === null);
  const present = claimed.flatMap(({ row }) => (row === null ? [] : [row]));
  const deleted = await remove(destination, table, table.updatable ? gone : claimed);
  if (present.length === 0) return { kind: 'written', upserted: 0, deleted };
  const what = `writing rows of ${table.name}`;
  await run(destination, 'SAVEPOINT follow', { what });
  if ((await insert(destination, table, present, table.updatable)) !== null) {
    await run(destination, 'ROLLBACK TO SAVEPOINT follow', { what });
    await remove(destination, table, claimed);
    const index = await insert(destination, table, present, false);
    if (index !== null) return { kind: 'clash', index, rows: present };
  }
  await run(destination, 'RELEASE SAVEPOINT follow', { what });
  return { kind: 'written', upserted: present.length, deleted: gone.length };
}

async function remove(destination: Session, table: ApplyTable, rows: readonly ReadRow[]): Promise<number> {
  if (rows.length === 0) return 0;
  const statement = deleteSql(table);
  const result = await run(
    destination,
    {
      text: statement.text,
      values: arrayParameters(
        table,
        statement,
        rows.map(({ key }) => keyRow(table, key)),
      ),
    },
    { what: `deleting rows of ${table.name}`, carriesRows: true },
  );
  return result.rowCount ?? 0;
}

/** The index in whose way a row was, or null where all were written. */
async function insert(
  destination: Session,
  table: ApplyTable,
  rows: readonly Row[],
  upsert: boolean,
): Promise<string | null> {
  const statement = insertSql(table, upsert);
  try {
    await destination.client.query(statement.text, arrayParameters(table, statement, rows));
    return null;
  } catch (error) {
    if (error instanceof pg.DatabaseError && UNIQUENESS_SQLSTATES.includes(error.code ?? '')) {
      return error.constraint ?? '';
    }
    throw statementError('destination', error, { what: `writing rows of ${table.name}`, carriesRows: true });
  }
}

function keyRow(table: ApplyTable, key: Key): Row {
  const row = table.columns.map((): Value => null);
  keyIndexes(table).forEach((column, part) => (row[column] = key[part] ?? null));
  return row;
}

/** Columns of a unique index by its name; none where it is over expressions, or excludes by another operator. */
const INDEX_COLUMNS_SQL = `
  SELECT a.attname AS column
  FROM pg_catalog.pg_index i
  JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
  CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, n)
  LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum AND k.attnum > 0
  WHERE i.indrelid = $1::text::regclass AND c.relname = $2 AND i.indisunique AND k.n <= i.indnkeyatts
    AND i.indexprs IS NULL
  ORDER BY k.n`;

/**
 * Keys of the destination's rows that hold, in `index`, the values of one of `rows`. Null where that can't be told: the
 * index is over expressions, excludes by another operator, or compares by an extension's.
 */
export async function clashingKeys(
  destination: Session,
  table: ApplyTable,
  index: string,
  rows: readonly Row[],
): Promise<readonly Key[] | null> {
  const what = `looking for what is in the way in ${table.name}`;
  const found = await run(
    destination,
    { text: INDEX_COLUMNS_SQL, values: [quoteTable(table.info), index] },
    { what },
  );
  const columns = found.rows.map((row) =>
    table.columns.findIndex(({ name }) => name === textOf(row, 'column')),
  );
  const builtIn = columns.every((column) => column >= 0 && !columnAt(table, column).type.includes('.'));
  if (columns.length === 0 || !builtIn) return null;
  const key = keyIndexes(table).map((column) => quoteIdent(columnAt(table, column).name));
  const arrays = columns.map((_, part) => `$${part + 1}::pg_catalog.text[]`).join(', ');
  const matches = columns.map((column, part) => {
    const { name, type } = columnAt(table, column);
    return `t.${quoteIdent(name)} = u.c${part}::${type}`;
  });
  const result = await run(
    destination,
    {
      text: `SELECT DISTINCT ${key.map((name, part) => `t.${name}::pg_catalog.text AS k${part}`).join(', ')}
        FROM ONLY ${table.sql} AS t
        JOIN unnest(${arrays}) AS u(${columns.map((_, part) => `c${part}`).join(', ')}) ON ${matches.join(' AND ')}`,
      values: columns.map((column) => textArray(rows.map((row) => row[column] ?? null))),
    },
    { what, carriesRows: true },
  );
  return result.rows.map((row) => key.map((_, part) => textOf(row, `k${part}`)));
}
