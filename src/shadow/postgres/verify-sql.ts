/**
 * The statements of the verifier.
 *
 * A row's hash is the md5 of its text form: every column through its type's output function, quoted (`%L`), joined by
 * commas. NULL prints as a bare NULL and every value in quotes with quotes doubled, so that no two different rows
 * have one text. The server's own hash functions are never used: they differ between versions and collations.
 * A large value stands there by its own md5: printed and quoted it may exceed what the server can hold, 1 GB.
 */
import { quoteIdent, quoteLiteral } from '../../core/postgres.js';
import { onlyTable, type ColumnInfo, type TableInfo } from './table.js';

/** format() takes at most 100 arguments. */
const FORMAT_ARGUMENTS_MAX = 60;

/** How the rows of one table are found on one side. */
export interface KeyAccess {
  /** Key columns in the order of the unique index that serves them. */
  readonly columns: readonly string[];
  /** Equality of the index's operator class, per column, qualified: an extension's `=` is not on the search path. */
  readonly operators: readonly string[];
  /** Whether the whole index ascends, so that a row comparison walks it. */
  readonly ascending: boolean;
}

/** Differences of the servers that the statements must level. */
export interface HashOptions {
  /** Set where the databases' encodings differ: md5 sees the bytes of the server's encoding. */
  readonly toUtf8: boolean;
}

/** The column's value as the destination has it, so that both sides print the same. */
function compared({ name, converted }: ColumnInfo): string {
  const column = `t.${quoteIdent(name)}`;
  if (converted?.side !== 'source' || converted.conversion.sameText) return column;
  return converted.conversion.fromSource(column);
}

/** Bytes of a value that is printed, at most. */
const PRINTED_BYTES_MAX = 1024 * 1024;
const TEXTS = /^(text|character varying(\(\d+\))?|json)$/;

/** What of the column is printed. Both sides must come to the same, whichever of these types each has. */
function printed(column: ColumnInfo, options: HashOptions): string {
  const value = compared(column);
  const { type, converted } = column;
  if (converted !== undefined && !converted.conversion.sameText) return value;
  const isBytes = type === 'bytea';
  if (!isBytes && !TEXTS.test(type)) return value;
  // Of a value that lies out of line the length is known without reading it.
  const measured = type === 'json' ? `${value}::text` : value;
  const hash = isBytes ? `md5(${value})` : md5(`${value}::text`, options);
  return `CASE WHEN octet_length(${measured}) > ${PRINTED_BYTES_MAX} THEN ${hash} ELSE ${value}::text END`;
}

function formatted(columns: readonly ColumnInfo[], options: HashOptions): string {
  if (columns.length === 0) return `''`;
  const groups: string[] = [];
  for (let start = 0; start < columns.length; start += FORMAT_ARGUMENTS_MAX) {
    const group = columns.slice(start, start + FORMAT_ARGUMENTS_MAX);
    const pattern = group.map(() => '%L').join(',');
    groups.push(`format('${pattern}', ${group.map((column) => printed(column, options)).join(', ')})`);
  }
  return groups.join(` || ',' || `);
}

function md5(text: string, options: HashOptions): string {
  return options.toUtf8 ? `md5(convert_to(${text}, 'UTF8'))` : `md5(${text})`;
}

/** md5 of the whole row `t`, 32 hexadecimal digits. */
export function rowHash(table: TableInfo, options: HashOptions): string {
  return md5(formatted(table.columns, options), options);
}

/** The first 64 bits of an md5 as bigint, so that a sum of them (numeric) does not depend on the order. */
function prefix64(hash: string): string {
  return `('x' || left(${hash}, 16))::bit(64)::bigint`;
}

export function columnNamed(table: TableInfo, name: string): ColumnInfo {
  const column = table.columns.find((candidate) => candidate.name === name);
  if (column === undefined) throw new TypeError(`no column ${name} in ${table.schema}.${table.name}`);
  return column;
}

/** Types whose order is the same on every server, whatever its collations. Anything else is compared by buckets. */
const SAME_ORDER_EVERYWHERE =
  /^(smallint|integer|bigint|oid|uuid|date|numeric(\(.*\))?|timestamp(\(\d\))? with(out)? time zone)$/;

export function ordersAlike(table: TableInfo, key: readonly string[]): boolean {
  return key.every((name) => SAME_ORDER_EVERYWHERE.test(columnNamed(table, name).type));
}

/** Rows after `after` up to and including `upTo`; an absent bound is open. */
export interface KeyRange {
  readonly after: readonly string[] | null;
  readonly upTo: readonly string[] | null;
}

export interface Statement {
  readonly text: string;
  readonly values: unknown[];
}

function rangeCondition(table: TableInfo, access: KeyAccess, range: KeyRange, values: unknown[]): string {
  const columns = access.columns.map((name) => `t.${quoteIdent(name)}`).join(', ');
  const bound = (key: readonly string[]): string =>
    access.columns
      .map((name, index) => {
        values.push(key[index]);
        return `$${values.length}::text::${columnNamed(table, name).type}`;
      })
      .join(', ');
  const conditions = [
    ...(range.after === null ? [] : [`(${columns}) > (${bound(range.after)})`]),
    ...(range.upTo === null ? [] : [`(${columns}) <= (${bound(range.upTo)})`]),
  ];
  return conditions.length === 0 ? 'true' : conditions.join(' AND ');
}

/** A range is digested in so many parts, so that one differing row does not cost hashing the whole range again. */
const PARTS = 16;
const INTEGER = /^(smallint|integer|bigint)$/;

/** Number of the part a row belongs to, from the low bits of its integer key columns; a single part without any. */
function partNumber(table: TableInfo, access: KeyAccess): string {
  const integers = access.columns
    .filter((name) => INTEGER.test(columnNamed(table, name).type))
    .map((name) => `t.${quoteIdent(name)}::bigint`);
  return integers.length === 0 ? '0' : `((${integers.join(' # ')}) & ${PARTS - 1})`;
}

/** → [part, count, sum of hashes] per part that holds rows. */
export function rangeDigestSql(
  table: TableInfo,
  access: KeyAccess,
  range: KeyRange,
  options: HashOptions,
): Statement {
  const values: unknown[] = [];
  const where = rangeCondition(table, access, range, values);
  const text = `SELECT ${partNumber(table, access)}, count(*), sum(${prefix64(rowHash(table, options))})
    FROM ${onlyTable(table)} AS t WHERE ${where} GROUP BY 1`;
  return { text, values };
}

/** → the key in the index's order, `rows` rows into the range; no row where the range is shorter. Served by the index alone. */
export function rangeBoundarySql(
  table: TableInfo,
  access: KeyAccess,
  range: KeyRange,
  rows: number,
): Statement {
  const values: unknown[] = [];
  const where = rangeCondition(table, access, range, values);
  const order = access.columns.map((name) => `t.${quoteIdent(name)}`).join(', ');
  const text = `SELECT ${keyTexts(access.columns)} FROM ${onlyTable(table)} AS t WHERE ${where}
    ORDER BY ${order} OFFSET ${rows - 1} LIMIT 1`;
  return { text, values };
}

/** → [...key in the table's order, hash] of every row of these parts of the range. */
export function rangeRowsSql(
  table: TableInfo,
  access: KeyAccess,
  range: KeyRange,
  parts: readonly string[],
  options: HashOptions,
): Statement {
  const values: unknown[] = [];
  const where = rangeCondition(table, access, range, values);
  values.push(parts);
  const text = `SELECT ${keyTexts(table.key ?? [])}, ${rowHash(table, options)}
    FROM ${onlyTable(table)} AS t
    WHERE ${where} AND ${partNumber(table, access)} = ANY ($${values.length}::integer[])`;
  return { text, values };
}

function keyTexts(columns: readonly string[]): string {
  return columns.map((name) => `t.${quoteIdent(name)}::text`).join(', ');
}

/**
 * Every row as `hash`, `spread` (what it is bucketed by: the key's hash, or nothing) and `k0`, `k1` … (the key's text).
 * OFFSET 0 keeps the planner from computing a hash at each place that names it.
 */
function hashedRows(table: TableInfo, options: HashOptions): string {
  const key = table.key ?? [];
  const spread =
    table.key === null
      ? `''`
      : md5(
          formatted(
            key.map((name) => columnNamed(table, name)),
            options,
          ),
          options,
        );
  const texts = key.map((name, index) => `, t.${quoteIdent(name)}::text AS k${index}`).join('');
  return `(SELECT ${rowHash(table, options)} AS hash, ${spread} AS spread${texts}
    FROM ${onlyTable(table)} AS t OFFSET 0)`;
}

/** Number of the bucket, below `buckets`, a power of two up to {@link BUCKETS_MAX}. */
function bucketNumber(table: TableInfo, buckets: number): string {
  // Without a key the bucket comes from digits that the digest's 64 bits don't cover.
  const digits = table.key === null ? 'right(r.hash, 4)' : 'left(r.spread, 4)';
  return `(('x' || ${digits})::bit(16)::integer & ${buckets - 1})`;
}

export const BUCKETS_MAX = 65_536;

/** → [bucket, count, sum of hashes], one scan. */
export function bucketDigestsSql(table: TableInfo, buckets: number, options: HashOptions): Statement {
  const text = `SELECT ${bucketNumber(table, buckets)}, count(*), sum(${prefix64('r.hash')})
    FROM ${hashedRows(table, options)} AS r GROUP BY 1`;
  return { text, values: [] };
}

/** → [...key, hash] of every row in these buckets, or without key [hash, number of copies]. One scan. */
export function bucketRowsSql(
  table: TableInfo,
  buckets: number,
  wanted: readonly string[],
  options: HashOptions,
): Statement {
  const from = `FROM ${hashedRows(table, options)} AS r
    WHERE ${bucketNumber(table, buckets)} = ANY ($1::integer[])`;
  const text =
    table.key === null
      ? `SELECT r.hash, count(*) ${from} GROUP BY 1`
      : `SELECT ${table.key.map((_, index) => `r.k${index}`).join(', ')}, r.hash ${from}`;
  return { text, values: [wanted] };
}

/**
 * → [number of the key in the list, hash] of the rows with these keys. Values arrive as one text array per column.
 * With an index each key is one probe (LATERAL with OFFSET 0 leaves the planner no other plan); without one it is a
 * single join on the keys' text.
 */
export function rowsByKeySql(
  table: TableInfo,
  access: KeyAccess | null,
  keys: readonly (readonly string[])[],
  options: HashOptions,
): Statement {
  const values = keyArrays(table, keys);
  const parameters = values.map((_, index) => `$${index + 1}`);
  const text =
    access === null
      ? joinByKeyText(table, parameters, options)
      : probeByKey(table, access, parameters, options);
  return { text, values };
}

/** As {@link rowsByKeySql}, with the keys as literals, to go with others in one simple query. */
export function rowsByKeyScript(
  table: TableInfo,
  access: KeyAccess | null,
  keys: readonly (readonly string[])[],
  options: HashOptions,
): string {
  const literals = keyLiterals(table, keys);
  return access === null
    ? joinByKeyText(table, literals, options)
    : probeByKey(table, access, literals, options);
}

function keyArrays(table: TableInfo, keys: readonly (readonly string[])[]): string[][] {
  return (table.key ?? []).map((_, index) => keys.map((parts) => parts[index] ?? ''));
}

/** `u`: the wanted keys as k0, k1 … and their number n. `arrays` are SQL expressions, one per key column. */
function wantedKeys(arrays: readonly string[]): string {
  const names = arrays.map((_, index) => `k${index}`).join(', ');
  return `unnest(${arrays.map((array) => `${array}::text[]`).join(', ')}) WITH ORDINALITY AS u(${names}, n)`;
}

function joinByKeyText(table: TableInfo, arrays: readonly string[], options: HashOptions): string {
  const on = (table.key ?? [])
    .map((name, index) => `t.${quoteIdent(name)}::text = u.k${index}`)
    .join(' AND ');
  return `SELECT u.n, ${rowHash(table, options)} FROM ${wantedKeys(arrays)}
    JOIN ${onlyTable(table)} AS t ON ${on}`;
}

function probeByKey(
  table: TableInfo,
  access: KeyAccess,
  arrays: readonly string[],
  options: HashOptions,
): string {
  const on = (table.key ?? [])
    .map((name, index) => {
      const operator = access.operators[access.columns.indexOf(name)] ?? '=';
      return `t.${quoteIdent(name)} ${operator} u.k${index}::${columnNamed(table, name).type}`;
    })
    .join(' AND ');
  return `SELECT u.n, l.hash FROM ${wantedKeys(arrays)} CROSS JOIN LATERAL
    (SELECT ${rowHash(table, options)} AS hash FROM ${onlyTable(table)} AS t WHERE ${on} OFFSET 0) AS l`;
}

/**
 * The statement `times` over as one simple query: each statement takes a snapshot of its own (READ COMMITTED, pinned),
 * and no round trip lies between them.
 */
export function sampleScript(
  table: TableInfo,
  access: KeyAccess,
  keys: readonly (readonly string[])[],
  options: HashOptions,
  times: number,
): string {
  const text = probeByKey(table, access, keyLiterals(table, keys), options);
  return Array.from({ length: times }, () => text).join(';');
}

function keyLiterals(table: TableInfo, keys: readonly (readonly string[])[]): string[] {
  return keyArrays(table, keys).map((values) => quoteLiteral(textArray(values)));
}

/** The server's literal of a one-dimensional text array. */
function textArray(values: readonly string[]): string {
  return `{${values.map((value) => `"${value.replace(/["\\]/g, '\\$&')}"`).join(',')}}`;
}

/** → [hash, number of copies] for these row hashes. One scan. */
export function copiesByHashSql(
  table: TableInfo,
  hashes: readonly string[],
  options: HashOptions,
): Statement {
  const text = `SELECT r.hash, count(*) FROM ${hashedRows(table, options)} AS r
    WHERE r.hash = ANY ($1::text[]) GROUP BY 1`;
  return { text, values: [hashes] };
}

/** → [index, column, descending, equality operator's schema, its name], by index and position. $1: quoted table. */
export const UNIQUE_INDEXES_SQL = `
  SELECT i.indexrelid, a.attname, k.option & 1, n.nspname, op.oprname
  FROM pg_index i
  JOIN pg_class c ON c.oid = i.indexrelid
  JOIN pg_am am ON am.oid = c.relam AND am.amname = 'btree'
  CROSS JOIN LATERAL unnest(i.indkey::int2[], i.indclass::oid[], i.indoption::int2[])
    WITH ORDINALITY AS k(attnum, opclass, option, n)
  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
  JOIN pg_opclass oc ON oc.oid = k.opclass
  JOIN pg_amop ao ON ao.amopfamily = oc.opcfamily AND ao.amopstrategy = 3
    AND ao.amoplefttype = oc.opcintype AND ao.amoprighttype = oc.opcintype
  JOIN pg_operator op ON op.oid = ao.amopopr
  JOIN pg_namespace n ON n.oid = op.oprnamespace
  WHERE i.indrelid = $1::text::regclass AND i.indisunique AND i.indisvalid
    AND i.indpred IS NULL AND i.indexprs IS NULL AND k.n <= i.indnkeyatts
  ORDER BY i.indexrelid, k.n`;

/** A scan takes one core of the server, leaving the rest to the application. */
export const SESSION_SQL = [
  `SELECT set_config('max_parallel_workers_per_gather', '0', false), set_config('jit', 'off', false)`,
  // Ends an abandoned scan with its client. Not known before 14 nor on every platform: a refusal does no harm.
  `SELECT set_config('client_connection_check_interval', '1s', false)`,
] as const;

/** Settings that decide how values print or which rows are seen; they must be as `connectControl` pins them. */
export const OUTPUT_SETTINGS = [
  'row_security',
  'client_encoding',
  'DateStyle',
  'IntervalStyle',
  'extra_float_digits',
  'bytea_output',
  'TimeZone',
  'search_path',
  'lc_monetary',
  'quote_all_identifiers',
] as const;

/** → [encoding of the database, ...{@link OUTPUT_SETTINGS}]. */
export const OUTPUT_SETTINGS_SQL = `SELECT getdatabaseencoding(), ${OUTPUT_SETTINGS.map(
  (name) => `current_setting(${quoteLiteral(name)})`,
).join(', ')}`;
