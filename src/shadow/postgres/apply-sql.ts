/**
 * The statements that write rows. Values travel as text, one array per column, and are cast to the column's type;
 * each statement is built once per table and set of columns, so that the server can keep its plan.
 */
import type { ApplyTable, Key, Row, Value } from './apply-table.js';
import { arrayOfOne, type Parameter } from './large-statement.js';
import type { ColumnInfo } from './table.js';
import { quoteIdent } from '../../core/postgres.js';
import { UnderstudyError } from '../../core/errors.js';

export interface BulkStatement {
  readonly text: string;
  /** For each parameter, the column whose values it holds. */
  readonly columns: readonly number[];
}

/** Their array form needs no quotes, and is read faster than text that is cast. */
const INTEGER_ARRAYS: ReadonlyMap<string, string> = new Map([
  ['smallint', 'pg_catalog.int2[]'],
  ['integer', 'pg_catalog.int4[]'],
  ['bigint', 'pg_catalog.int8[]'],
]);

/** One element per value; `{"a",NULL}`, of integers `{1,NULL}`. */
export function textArray(values: readonly Value[], integers = false): string {
  let nulls = false;
  for (const value of values) {
    if (value === null) nulls = true;
    else if (typeof value !== 'string') {
      throw new UnderstudyError(
        'internal',
        'a value that the log did not carry, or a large one among others',
      );
    }
  }
  // The usual batch needs no escape: joined natively, it costs a tenth of what a loop over its values does.
  if (!nulls && integers) return `{${values.join(',')}}`;
  if (!nulls) {
    const probe = values.join('');
    if (values.length > 0 && !probe.includes('"') && !probe.includes('\\'))
      return `{"${values.join('","')}"}`;
  }
  const elements = values.map((value) =>
    typeof value !== 'string' ? 'NULL' : `"${/["\\]/.test(value) ? escaped(value) : value}"`,
  );
  return `{${elements.join(',')}}`;
}

/** Whether it holds a value that must be written by itself. */
export function isLarge(row: Row): boolean {
  for (const value of row) if (typeof value === 'object' && value !== null) return true;
  return false;
}

/**
 * In pieces: V8 keeps a list of what it puts between the replaced, and one of a hundred million entries ends the process.
 * Splitting takes half the time that replacing does, where there is much to replace.
 */
const ESCAPED_AT_ONCE = 100_000;

function escaped(value: string): string {
  if (value.length <= ESCAPED_AT_ONCE) return value.replace(/["\\]/g, String.raw`\$&`);
  const pieces: string[] = [];
  for (let at = 0; at < value.length; at += ESCAPED_AT_ONCE) {
    const piece = value.slice(at, at + ESCAPED_AT_ONCE);
    pieces.push(
      piece
        .split('\\')
        .join(String.raw`\\`)
        .split('"')
        .join(String.raw`\"`),
    );
  }
  return pieces.join('');
}

/** The values of `columns`, one array parameter each. */
export function arrayParameters(
  table: ApplyTable,
  statement: { readonly columns: readonly number[] },
  rows: readonly Row[],
): string[] {
  return statement.columns.map((column) =>
    textArray(
      rows.map((row) => row[column]),
      INTEGER_ARRAYS.has(columnAt(table, column).type),
    ),
  );
}

/** As {@link arrayParameters}, of one row that may hold large values. */
export function largeParameters(
  table: ApplyTable,
  statement: { readonly columns: readonly number[] },
  row: Row,
): Parameter[] {
  return statement.columns.map((column) => {
    const value = row[column];
    if (typeof value === 'object' && value !== null) return arrayOfOne(value);
    return textArray([value], INTEGER_ARRAYS.has(columnAt(table, column).type));
  });
}

function single(value: string | Buffer): Parameter {
  return typeof value === 'string' ? value : [value];
}

export function columnList(table: ApplyTable): string {
  return table.columns.map((column) => quoteIdent(column.name)).join(', ');
}

/** `unnest($1::int4[], $2::text[], …) AS u(c0, …)` */
function unnest(table: ApplyTable, columns: readonly number[]): string {
  const arrays = columns.map((column, index) => {
    const type = INTEGER_ARRAYS.get(columnAt(table, column).type) ?? 'pg_catalog.text[]';
    return `$${index + 1}::${type}`;
  });
  return `unnest(${arrays.join(', ')}) AS u(${columns.map((column) => `c${column}`).join(', ')})`;
}

function cast(table: ApplyTable, index: number): string {
  const column = columnAt(table, index);
  return INTEGER_ARRAYS.has(column.type) ? `u.c${index}` : written(column, `u.c${index}`);
}

/** A value of the column from `text`, the other side's output of it as text. */
function written({ type, converted }: ColumnInfo, text: string): string {
  // Its cast from text looks a relation up, and knows neither `-` nor the number of one that is gone.
  if (type === 'regclass') return `pg_catalog.regclassin(${text}::pg_catalog.cstring)`;
  if (converted === undefined) return `${text}::${type}`;
  const { side, conversion } = converted;
  return side === 'destination' ? conversion.toDestination(text) : conversion.toSource(text);
}

/** What the other side has for the column of `t`: its own value where both have the same type. */
export function readFor({ name, converted }: ColumnInfo): string {
  const column = `t.${quoteIdent(name)}`;
  return converted?.side === 'source' ? converted.conversion.fromSource(column) : column;
}

export function columnAt(table: ApplyTable, index: number): ApplyTable['columns'][number] {
  const column = table.columns[index];
  if (column === undefined) throw new UnderstudyError('internal', `${table.name} has no column ${index}`);
  return column;
}

export function keyIndexes(table: ApplyTable): readonly number[] {
  if (table.key === null) throw new UnderstudyError('internal', `${table.name} has no key`);
  return table.key;
}

/** `t.key = u.key AND …`, by the key types' own operators. `right(column)` is the other side of each comparison. */
export function keyEquals(table: ApplyTable, left: string, right: (column: number) => string): string {
  return keyIndexes(table)
    .map((column, position) => {
      const schema = quoteIdent(table.operatorSchemas[position] ?? 'pg_catalog');
      const name = quoteIdent(columnAt(table, column).name);
      return `${left}.${name} OPERATOR(${schema}.=) ${right(column)}`;
    })
    .join(' AND ');
}

export function deleteSql(table: ApplyTable): BulkStatement {
  const columns = keyIndexes(table);
  const matches = keyEquals(table, 't', (column) => cast(table, column));
  return {
    text: `DELETE FROM ${table.only} AS t USING ${unnest(table, columns)} WHERE ${matches}`,
    columns,
  };
}

function allColumns(table: ApplyTable): readonly number[] {
  return table.columns.map((_, index) => index);
}

/** What an upsert does to a row that is there already. */
export function conflictClause(table: ApplyTable): string {
  const key = keyIndexes(table);
  const set = allColumns(table)
    .filter((index) => !key.includes(index))
    .map((index) => quoteIdent(columnAt(table, index).name))
    .map((name) => `${name} = EXCLUDED.${name}`);
  const target = key.map((index) => quoteIdent(columnAt(table, index).name)).join(', ');
  const action = set.length === 0 ? 'DO NOTHING' : `DO UPDATE SET ${set.join(', ')}`;
  return `ON CONFLICT (${target}) ${action}`;
}

export function insertSql(table: ApplyTable, upsert: boolean): BulkStatement {
  const columns = allColumns(table);
  const values = columns.map((column) => cast(table, column)).join(', ');
  return {
    text:
      `INSERT INTO ${table.sql} (${columnList(table)}) OVERRIDING SYSTEM VALUE ` +
      `SELECT ${values} FROM ${unnest(table, columns)}${upsert ? ` ${conflictClause(table)}` : ''}`,
    columns,
  };
}

/** Sets the `carried` columns outside of the key; null where there is none to set. */
export function updateSql(table: ApplyTable, carried: readonly number[]): BulkStatement | null {
  const key = keyIndexes(table);
  const set = carried.filter((index) => !key.includes(index));
  if (set.length === 0) return null;
  const columns = [...key, ...set];
  const assignments = set.map(
    (index) => `${quoteIdent(columnAt(table, index).name)} = ${cast(table, index)}`,
  );
  return {
    text:
      `UPDATE ${table.only} AS t SET ${assignments.join(', ')} FROM ${unnest(table, columns)} ` +
      `WHERE ${keyEquals(table, 't', (column) => cast(table, column))}`,
    columns,
  };
}

export interface SingleStatement {
  readonly text: string;
  readonly values: Parameter[];
}

/**
 * Replaces one row, found by its old key, by one whose columns are the carried values and, for the rest, what the old
 * row held. One statement: the old row's columns never leave the server.
 */
export function moveSql(table: ApplyTable, from: Key, row: Row): SingleStatement {
  const values: Parameter[] = [];
  const parameter = (value: string | Buffer, column: ColumnInfo): string => {
    values.push(single(value));
    return written(column, `$${values.length}::pg_catalog.text`);
  };
  const key = keyIndexes(table);
  const found = keyEquals(table, 't', (column) =>
    parameter(from[key.indexOf(column)] ?? '', columnAt(table, column)),
  );
  const selected = table.columns.map((column, index) => {
    const value = row[index];
    if (value === undefined) return `o.${quoteIdent(column.name)}`;
    return value === null ? `NULL::${column.type}` : parameter(value, column);
  });
  return {
    text:
      `WITH o AS (DELETE FROM ${table.only} AS t WHERE ${found} RETURNING t.*) ` +
      `INSERT INTO ${table.sql} (${columnList(table)}) OVERRIDING SYSTEM VALUE SELECT ${selected.join(', ')} FROM o`,
    values,
  };
}

/** Types whose `=` under an empty search_path is exact or wider than the text's, and can use an index. */
const PREFILTERED_TYPES =
  /^(smallint|integer|bigint|uuid|date|boolean|text|character varying(\(\d+\))?|numeric(\(.*\))?|timestamp(\(\d\))? with(out)? time zone)$/;

/**
 * Deletes exactly one row equal to `old` in the text of all its columns. Equality of types is not exact (1.0 = 1.00,
 * 0 = -0), so it only narrows the search; `format` prints a value as the log does, which a cast to text does not.
 */
export function deleteOneSql(table: ApplyTable, old: Row): SingleStatement {
  const values: Parameter[] = [];
  const conditions = table.columns.map((column, index) => {
    const name = `t.${quoteIdent(column.name)}`;
    const value = old[index];
    if (value === undefined) {
      throw new UnderstudyError('apply-failed', `${table.name}: a change without key lacks a column`);
    }
    // A composite of nulls IS NULL too: format tells it from NULL, as only NULL prints as nothing at all.
    if (value === null) return `pg_catalog.num_nulls(${name}) = 1`;
    values.push(single(value));
    const parameter = `$${values.length}::pg_catalog.text`;
    if (column.converted?.conversion.sameText === false) {
      return `pg_catalog.num_nulls(${name}) = 0 AND ${equalOnDestination(column, parameter)}`;
    }
    const exact = `pg_catalog.num_nulls(${name}) = 0 AND pg_catalog.format('%s', ${name}) = ${parameter}`;
    return PREFILTERED_TYPES.test(column.type)
      ? `${name} = ${parameter}::${column.type} AND ${exact}`
      : exact;
  });
  const where = conditions.length === 0 ? 'true' : conditions.join(' AND ');
  return {
    text: `DELETE FROM ${table.only} WHERE ctid = (SELECT t.ctid FROM ${table.only} AS t WHERE ${where} LIMIT 1)`,
    values,
  };
}

/** Whether the column of `t` and the other side's text are one value on the destination: its form knows no other. */
function equalOnDestination(column: ColumnInfo, text: string): string {
  const printed = (value: string): string => `pg_catalog.format('%s', ${value})`;
  const { converted } = column;
  if (converted?.side === 'source') return `${printed(readFor(column))} = ${text}`;
  return `${printed(`t.${quoteIdent(column.name)}`)} = ${printed(written(column, text))}`;
}

/** `count` rows of a table that has no column to write. */
export function insertEmptySql(table: ApplyTable, count: number): string {
  return `INSERT INTO ${table.sql} SELECT FROM pg_catalog.generate_series(1, ${count})`;
}
