/** What the shadow knows of a table: the part of the catalogs that copying, applying and comparing need. */
import type { Side, TableName } from '../../core/ports.js';
import { quoteTable } from '../../core/postgres.js';
import type { ColumnConversion } from '../format/conversion.js';

export interface ColumnInfo {
  readonly name: string;
  /** As `format_type` prints it, schema-qualified where it is not in pg_catalog: usable in a cast. */
  readonly type: string;
  /** pg_type.typtype of the type, domains resolved: b, c, d, e, r, m, p. */
  readonly typeKind: string;
  readonly notNull: boolean;
  /** Stored generated columns are computed by each side and never written. */
  readonly generated: boolean;
  readonly identity: 'always' | 'by-default' | null;
  /** Whether the type compares by a collation, which may differ between servers. */
  readonly collatable: boolean;
  /** Where the two sides have it as different types; only in the forms that a format makes of a table. */
  readonly converted?: ConvertedColumn;
}

export interface ConvertedColumn {
  /** Whose form of the column this is. */
  readonly side: Side;
  readonly conversion: ColumnConversion;
}

export type TableKind = 'ordinary' | 'partitioned' | 'partition';

export interface TableInfo extends TableName {
  readonly kind: TableKind;
  /** A format partitions the source's table on this side: its root is read and written, as if the rows were its own. */
  readonly partitions?: readonly TableName[];
  /** In attribute order, dropped columns left out. */
  readonly columns: readonly ColumnInfo[];
  /** Columns of the replica identity or primary key that identify a row; null where there is none. */
  readonly key: readonly string[] | null;
  /** pg_class.relreplident: d default, n nothing, f full, i index. */
  readonly replicaIdentity: 'd' | 'n' | 'f' | 'i';
  readonly unlogged: boolean;
  readonly rowsEstimated: number;
  readonly bytes: number;
  /** `schema.name` of the partition root or the inheritance parents right above it. */
  readonly parents?: readonly string[];
}

/** For FROM, UPDATE and DELETE: the rows of this table alone, or of the root of what a format has partitioned. */
export function onlyTable(table: TableInfo): string {
  return table.partitions === undefined ? `ONLY ${quoteTable(table)}` : quoteTable(table);
}

/** `schema.name`, for messages, metrics and map keys; not quoted, so not for SQL. */
export function tableKey(table: TableName): string {
  return `${table.schema}.${table.name}`;
}
