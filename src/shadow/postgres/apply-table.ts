/** A table as the stream writes it: the columns it carries, how a row is found, and how its values are cast. */
import type { ColumnInfo, TableInfo } from './table.js';
import { onlyTable, tableKey } from './table.js';
import { quoteIdent, quoteTable } from '../../core/postgres.js';
import { textOf, run, type Session } from './statement.js';
import { UnderstudyError } from '../../core/errors.js';
import type { RelationMessage, Tuple, TupleValue } from '../../wire/postgres/pgoutput.js';

/** A column's value as text, a large one in UTF-8; null is NULL, undefined an out-of-line value the change left as it was. */
export type Value = TupleValue;
/** Values in the order of {@link ApplyTable.columns}. */
export type Row = readonly Value[];
/** Values of the key, in the order of {@link ApplyTable.key}. */
export type Key = readonly string[];

export interface ApplyTable {
  readonly info: TableInfo;
  /** `schema.name`, for messages and as a map's key. */
  readonly name: string;
  /** Quoted, for SQL. */
  readonly sql: string;
  /** As `sql`, where only the table's own rows are meant. */
  readonly only: string;
  /** Partitions by which the log tells of it, by `schema.name`; with the condition of their rows, where that is known. */
  readonly leaves?: ReadonlyMap<string, string | null>;
  /** What the log carries: everything but generated columns. */
  readonly columns: readonly ColumnInfo[];
  /** Indexes into `columns`; null where rows can only be told apart by all their values. */
  readonly key: readonly number[] | null;
  /** Per key column, the schema of its type's comparison operators: an extension's are not on the search path. */
  readonly operatorSchemas: readonly string[];
  /** Quoted schema of the comparison operators where all key columns share it, as a row comparison needs. */
  readonly rowOperatorSchema: string | null;
  /**
   * Whether an existing row may be overwritten in place. Not where a column outside the key is GENERATED ALWAYS AS
   * IDENTITY: UPDATE may only reset it, so the row is replaced.
   */
  readonly updatable: boolean;
  /** The table as the other side has it, where a format makes that another form: what is written to it goes by this. */
  readonly target?: ApplyTable;
}

/** How the table is where its rows are written. Columns stand in the same order. */
export function targetOf(table: ApplyTable): ApplyTable {
  return table.target ?? table;
}

/**
 * Replica identity and upsert both need a key whose every column the log carries; a key over a generated column is
 * none.
 */
function usableKey(info: TableInfo, columns: readonly ColumnInfo[]): readonly number[] | null {
  if (info.key === null || info.key.length === 0) return null;
  const indexes = info.key.map((name) => columns.findIndex((column) => column.name === name));
  return indexes.includes(-1) ? null : indexes;
}

export function hasUsableKey(info: TableInfo): boolean {
  return (
    usableKey(
      info,
      info.columns.filter((column) => !column.generated),
    ) !== null
  );
}

export function applyTable(info: TableInfo, operatorSchemas: readonly string[]): ApplyTable {
  const columns = info.columns.filter((column) => !column.generated);
  const key = usableKey(info, columns);
  const schemas = key === null ? [] : operatorSchemas;
  const first = schemas[0];
  return {
    info,
    name: tableKey(info),
    sql: quoteTable(info),
    only: onlyTable(info),
    columns,
    key,
    operatorSchemas: schemas,
    rowOperatorSchema:
      first !== undefined && schemas.every((schema) => schema === first) ? quoteIdent(first) : null,
    updatable: columns.every(
      (column, index) => column.identity !== 'always' || key?.includes(index) === true,
    ),
  };
}

/** Schema of each key column's equality operator, by the operator class of an index over the key. */
const OPERATORS_SQL = `
  SELECT n.nspname AS schema, c.relname AS name, a.attname AS column, pg_catalog.min(o.nspname) AS operator_schema
  FROM pg_catalog.pg_index i
  JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  CROSS JOIN LATERAL unnest(i.indkey::int2[], i.indclass::oid[]) AS k(attnum, opclass)
  JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
  JOIN pg_catalog.pg_opclass oc ON oc.oid = k.opclass
  JOIN pg_catalog.pg_am am ON am.oid = oc.opcmethod AND am.amname = 'btree'
  JOIN pg_catalog.pg_amop ao ON ao.amopfamily = oc.opcfamily AND ao.amopstrategy = 3
    AND ao.amoplefttype = oc.opcintype AND ao.amoprighttype = oc.opcintype
  JOIN pg_catalog.pg_operator op ON op.oid = ao.amopopr
  JOIN pg_catalog.pg_namespace o ON o.oid = op.oprnamespace
  WHERE i.indisunique
  GROUP BY 1, 2, 3`;

/** The tables that hold rows, as the side of `session` defines them; by `schema.name`. */
export async function readApplyTables(
  session: Session,
  tables: readonly TableInfo[],
): Promise<ReadonlyMap<string, ApplyTable>> {
  const { rows } = await run(session, OPERATORS_SQL, { what: 'reading the key operators' });
  const schemas = new Map(
    rows.map((row) => [
      JSON.stringify([textOf(row, 'schema'), textOf(row, 'name'), textOf(row, 'column')]),
      textOf(row, 'operator_schema'),
    ]),
  );
  const result = new Map<string, ApplyTable>();
  for (const info of tables) {
    if (info.kind === 'partitioned' && info.partitions === undefined) continue;
    const operators = (info.key ?? []).map(
      (column) => schemas.get(JSON.stringify([info.schema, info.name, column])) ?? 'pg_catalog',
    );
    result.set(tableKey(info), applyTable(info, operators));
  }
  return result;
}

/** Adds each table's form on the side that `tables`' rows are written to. Its key columns have built-in types. */
export function withTargets(
  tables: ReadonlyMap<string, ApplyTable>,
  targets: ReadonlyMap<string, TableInfo>,
): ReadonlyMap<string, ApplyTable> {
  return new Map(
    [...tables].map(([name, table]): [string, ApplyTable] => {
      const info = targets.get(name);
      if (info === undefined || info === table.info) return [name, table];
      return [name, { ...table, target: applyTable(info, table.operatorSchemas) }];
    }),
  );
}

/** How a relation of the log maps onto a table: for each of the table's columns, its place in the log's tuples. */
export interface Binding {
  readonly relation: RelationMessage;
  readonly table: ApplyTable;
  /** -1: the row is from before the column was added. */
  readonly places: readonly number[];
  /** The log's columns are the table's, in the same order. */
  readonly inPlace: boolean;
  /** What such a row holds in it; by column. */
  readonly fills: readonly (string | null)[];
}

/** What the log's columns and the table's own don't have in common. */
export function relationDifference(
  relation: RelationMessage,
  table: ApplyTable,
): { readonly added: readonly string[]; readonly missing: readonly string[] } {
  const theirs = new Set(relation.columns.map(({ name }) => name));
  const known = new Set(table.info.columns.map(({ name }) => name));
  return {
    added: [...theirs].filter((name) => !known.has(name)),
    missing: table.columns.map(({ name }) => name).filter((name) => !theirs.has(name)),
  };
}

/**
 * The log's columns that can't be written as they are: those that the table as known lacks, and those that it lacks
 * where it is written (`there`; undefined is not known). Those of the key must be among the log's.
 */
export function columnsApart(
  relation: RelationMessage,
  table: ApplyTable,
  there: ReadonlySet<string> | undefined,
): readonly string[] {
  const { added, missing } = relationDifference(relation, table);
  const target = targetOf(table);
  const lacking = table.columns.flatMap(({ name }, index) => {
    const written = target.columns[index]?.name ?? name;
    return !missing.includes(name) && there?.has(written) === false ? [written] : [];
  });
  return [...added, ...lacking, ...missing.filter((name) => table.info.key?.includes(name) === true)];
}

/**
 * The table without the columns that the log's relation does not have, but for those of which it is known what such a row
 * holds (`fills`): what is not carried is not written. The table itself where nothing is left out. Its key must be among
 * what is left.
 */
export function carriedBy(
  relation: RelationMessage,
  table: ApplyTable,
  fills: ReadonlyMap<string, string | null> = new Map(),
): ApplyTable {
  const theirs = new Set([...relation.columns.map(({ name }) => name), ...fills.keys()]);
  const kept = table.columns.flatMap(({ name }, index) => (theirs.has(name) ? [index] : []));
  return kept.length === table.columns.length ? table : onlyColumns(table, kept);
}

function onlyColumns(table: ApplyTable, kept: readonly number[]): ApplyTable {
  const { target, key } = table;
  return {
    ...table,
    columns: table.columns.filter((_, index) => kept.includes(index)),
    key: key === null ? null : key.map((index) => kept.indexOf(index)),
    ...(target === undefined ? {} : { target: onlyColumns(target, kept) }),
  };
}

/** `fills`: see {@link Binding}; by name, where it is not null. */
export function bind(
  relation: RelationMessage,
  table: ApplyTable,
  fills: ReadonlyMap<string, string | null> = new Map(),
): Binding {
  const places = table.columns.map((column) =>
    relation.columns.findIndex(({ name }) => name === column.name),
  );
  const inPlace =
    places.length === relation.columns.length && places.every((place, index) => place === index);
  return {
    relation,
    table,
    places,
    inPlace,
    fills: table.columns.map(({ name }) => fills.get(name) ?? null),
  };
}

/** The tuple in the table's column order. May be the tuple itself: it is not written to. */
export function bindRow(binding: Binding, tuple: Tuple): Row {
  return binding.inPlace
    ? tuple
    : binding.places.map((place, index) => (place === -1 ? binding.fills[index] : tuple[place]));
}

/** The key of a row. Throws `apply-failed` where the row does not hold it. */
export function keyOf(table: ApplyTable, row: Row): string[] {
  const key: string[] = [];
  for (const index of table.key ?? []) {
    const value = row[index];
    if (typeof value !== 'string') {
      throw new UnderstudyError('apply-failed', `${table.name}: a change does not name its row’s key`, {
        advice: `Check the table’s replica identity: it must cover the key.`,
      });
    }
    key.push(value);
  }
  return key;
}

/** One string per key, for maps. */
export function keyId(key: Key): string {
  return key.length === 1 && key[0] !== undefined ? key[0] : JSON.stringify(key);
}
