/** The destination's form of the source's tables, as it is configured (docs/format.md). No logic here (ports.ts). */

/**
 * What the destination's form is to be where it differs from the source's; nothing named is `identity`. Kept in both
 * directions: what can't be turned back is refused (docs/format.md).
 */
export interface Format {
  /** By the source's schema: where its tables are on the destination. */
  readonly schemas?: Readonly<Record<string, string>> | undefined;
  /** `views`, the default: a table under another name has a view under its old one, by which old statements work. */
  readonly compatibility?: 'views' | 'none' | undefined;
  /** By `schema.table` on the source. What is said of a parent or partition root holds for its children too. */
  readonly tables?: Readonly<Record<string, TableFormat>> | undefined;
}

export interface TableFormat {
  /** `schema.table`, or `table` alone, on the destination. */
  readonly name?: string | undefined;
  /** By the source's column name: the destination's. */
  readonly columns?: Readonly<Record<string, string>> | undefined;
  /** By the source's column name: the column's type on the destination. */
  readonly types?: Readonly<Record<string, ColumnTypeFormat>> | undefined;
  /** Of a plain table: how it is partitioned on the destination. */
  readonly partitioning?: Partitioning | undefined;
}

export interface Partitioning {
  readonly by: 'range' | 'list' | 'hash';
  /** Of the table's key. */
  readonly columns: readonly string[];
  /** By name: the bounds, as in `FOR VALUES …`, or `DEFAULT`. By hash also how many, of even shares. */
  readonly partitions: Readonly<Record<string, string>> | number;
}

export interface ColumnTypeFormat {
  /** As in CREATE TABLE, e.g. `bigint`. */
  readonly type: string;
  /** For `timestamp` → `timestamptz`: the time zone whose clock the source's values show. */
  readonly zone?: string | undefined;
  /** `accept`: the zone's clock shows one hour of each year twice, and its rows may come back an hour off. */
  readonly repeatedHour?: 'refuse' | 'accept' | undefined;
}
