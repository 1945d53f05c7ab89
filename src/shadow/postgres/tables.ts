/** The user tables of a database, as copying, applying and comparing need them. Works from PostgreSQL 14. */
import type pg from 'pg';
import type { ColumnInfo, TableInfo, TableKind } from './table.js';
import { asUnderstudyError } from '../../core/errors.js';

interface TableRow {
  readonly schema: string;
  readonly name: string;
  readonly relkind: string;
  readonly is_partition: string;
  readonly relreplident: 'd' | 'n' | 'f' | 'i';
  readonly relpersistence: string;
  readonly rows_estimated: string;
  readonly bytes: string;
  readonly columns: string;
  readonly key: string | null;
  readonly parents: string | null;
}

/**
 * A deferrable key identifies rows for people but neither for the server's log nor for an upsert: it is no replica
 * identity, and ON CONFLICT refuses it. Such a table counts as having no key.
 */
const TABLES_SQL = `
WITH RECURSIVE base(oid, base, typtype) AS (
  SELECT t.oid, t.oid, t.typtype FROM pg_catalog.pg_type t
  UNION ALL
  SELECT b.oid, t.typbasetype, u.typtype
  FROM base b
  JOIN pg_catalog.pg_type t ON t.oid = b.base AND t.typtype = 'd'
  JOIN pg_catalog.pg_type u ON u.oid = t.typbasetype
), relation AS (
  SELECT c.oid, n.nspname, c.relname, c.relkind, c.relispartition, c.relreplident, c.relpersistence, c.reltuples
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind IN ('r', 'p')
    AND c.relpersistence <> 't'
    AND n.nspname NOT LIKE 'pg\\_%'
    AND n.nspname NOT IN ('information_schema', 'understudy')
    AND NOT EXISTS (
      SELECT FROM pg_catalog.pg_depend e
      WHERE e.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND e.objid = c.oid AND e.deptype = 'e')
)
SELECT r.nspname AS schema, r.relname AS name, r.relkind, r.relispartition AS is_partition, r.relreplident,
  r.relpersistence,
  pg_catalog.round(GREATEST(r.reltuples, 0)::pg_catalog.numeric) AS rows_estimated,
  CASE r.relkind WHEN 'r' THEN COALESCE(pg_catalog.pg_table_size(r.oid), 0) ELSE 0 END AS bytes,
  (SELECT COALESCE(pg_catalog.json_agg(pg_catalog.json_build_object(
      'name', a.attname,
      'type', pg_catalog.format_type(a.atttypid, a.atttypmod),
      'typeKind', (SELECT b.typtype FROM base b WHERE b.oid = a.atttypid AND b.typtype <> 'd'),
      'notNull', a.attnotnull,
      'generated', a.attgenerated <> '',
      'identity', CASE a.attidentity WHEN 'a' THEN 'always' WHEN 'd' THEN 'by-default' END,
      'collatable', a.attcollation <> 0) ORDER BY a.attnum), '[]'::pg_catalog.json)
    FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns,
  (SELECT pg_catalog.json_agg(a.attname ORDER BY k.ordinality)
    FROM (
      SELECT i.indkey, i.indnkeyatts FROM pg_catalog.pg_index i
      WHERE i.indrelid = r.oid AND i.indisvalid AND i.indimmediate
        AND (i.indisreplident AND r.relreplident = 'i' OR i.indisprimary)
      ORDER BY i.indisreplident AND r.relreplident = 'i' DESC LIMIT 1
    ) i
    CROSS JOIN LATERAL pg_catalog.unnest(i.indkey) WITH ORDINALITY AS k(attnum, ordinality)
    JOIN pg_catalog.pg_attribute a ON a.attrelid = r.oid AND a.attnum = k.attnum
    WHERE k.ordinality <= i.indnkeyatts) AS key,
  (SELECT pg_catalog.json_agg(n.nspname || '.' || c.relname ORDER BY h.inhseqno)
    FROM pg_catalog.pg_inherits h
    JOIN pg_catalog.pg_class c ON c.oid = h.inhparent
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE h.inhrelid = r.oid) AS parents
FROM relation r
ORDER BY r.nspname, r.relname`;

function tableKind(row: TableRow): TableKind {
  if (row.relkind === 'p') return 'partitioned';
  return row.is_partition === 't' ? 'partition' : 'ordinary';
}

/**
 * All user tables: ordinary ones, partition roots, leaves and inheritance children; not those of extensions, of
 * Understudy itself, temporary or foreign ones. Sorted by schema and name. A partition that is itself partitioned
 * counts as `partitioned`: it holds no rows. Expects a control connection (text values, empty search_path).
 */
export async function readTables(client: pg.Client): Promise<readonly TableInfo[]> {
  try {
    const { rows } = await client.query<TableRow>(TABLES_SQL);
    return rows.map((row) => ({
      schema: row.schema,
      name: row.name,
      kind: tableKind(row),
      columns: JSON.parse(row.columns) as ColumnInfo[],
      key: row.key === null ? null : (JSON.parse(row.key) as string[]),
      replicaIdentity: row.relreplident,
      unlogged: row.relpersistence === 'u',
      rowsEstimated: Number(row.rows_estimated),
      bytes: Number(row.bytes),
      ...(row.parents === null ? {} : { parents: JSON.parse(row.parents) as string[] }),
    }));
  } catch (error) {
    throw asUnderstudyError(error, 'source-query-failed', 'reading the tables from the catalogs');
  }
}
