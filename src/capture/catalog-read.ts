/** The catalogs as far as capture needs them, in three questions over a control connection. */
import type pg from 'pg';
import type { CatalogFunction, CatalogRelation, CatalogSnapshot } from './catalog.js';

const RELATIONS_MAX = 50_000;
const FUNCTIONS_MAX = 2_000;
const BODY_CHARACTERS_MAX = 20_000;

/** A search path as it is written; `"$user"` left out. The control connection's own is pinned, so it is no help. */
export const DEFAULT_PATH_SQL = `
  SELECT pg_catalog.substr(setting, 13) AS path
  FROM pg_catalog.pg_db_role_setting AS s, pg_catalog.unnest(s.setconfig) AS setting
  WHERE setdatabase = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
    AND setrole = 0 AND setting LIKE 'search_path=%'`;

const RELATIONS_SQL = `
  WITH relation AS (
    SELECT c.oid, n.nspname, c.relname, c.relkind, c.relispartition
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't'
      AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'understudy')
      AND n.nspname NOT LIKE 'pg\\_toast%' AND n.nspname NOT LIKE 'pg\\_temp%'
    ORDER BY c.relpages DESC LIMIT ${RELATIONS_MAX}),
  base AS (
    SELECT r.ev_class AS view, pg_catalog.json_agg(DISTINCT n.nspname || '.' || c.relname) AS bases
    FROM pg_catalog.pg_rewrite r
    JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.objid = r.oid
      AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid <> r.ev_class
    JOIN pg_catalog.pg_class c ON c.oid = d.refobjid AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    GROUP BY r.ev_class),
  key AS (
    SELECT i.indrelid, pg_catalog.json_agg(
      (SELECT pg_catalog.json_agg(a.attname ORDER BY k.place)
       FROM pg_catalog.unnest(i.indkey::pg_catalog.int2[]) WITH ORDINALITY AS k (number, place)
       JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number
       WHERE k.place <= i.indnkeyatts)
      ORDER BY i.indisprimary DESC, i.indexrelid) AS keys
    FROM pg_catalog.pg_index i
    WHERE i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
    GROUP BY i.indrelid),
  col AS (
    SELECT a.attrelid, pg_catalog.json_agg(pg_catalog.json_build_object(
        'name', a.attname,
        'type', COALESCE((SELECT b.typname FROM pg_catalog.pg_type b WHERE b.oid = t.typbasetype), t.typname))
      ORDER BY a.attnum) AS columns
    FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
    WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attrelid IN (SELECT indrelid FROM key)
    GROUP BY a.attrelid)
  SELECT r.nspname AS schema, r.relname AS name, r.relkind AS kind,
    CASE WHEN r.relispartition THEN
      (SELECT n.nspname || '.' || c.relname FROM pg_catalog.pg_class c
       JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
       WHERE c.oid = pg_catalog.pg_partition_root(r.oid)) END AS root,
    base.bases, key.keys, col.columns
  FROM relation r
  LEFT JOIN base ON base.view = r.oid AND r.relkind = 'v'
  LEFT JOIN key ON key.indrelid = r.oid
  LEFT JOIN col ON col.attrelid = r.oid`;

const FUNCTIONS_SQL = `
  SELECT n.nspname AS schema, p.proname AS name, p.prosrc AS body
  FROM pg_catalog.pg_proc p
  JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
  JOIN pg_catalog.pg_language l ON l.oid = p.prolang
  WHERE l.lanname = 'sql' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'understudy')
    AND p.prosrc <> '' AND pg_catalog.length(p.prosrc) <= ${BODY_CHARACTERS_MAX}
  ORDER BY p.oid LIMIT ${FUNCTIONS_MAX}`;

type Row = Readonly<Record<string, string | null>>;

/** Throws what the connection throws. */
export async function readCatalog(client: pg.Client): Promise<CatalogSnapshot> {
  const path = await client.query<Row>(DEFAULT_PATH_SQL);
  const relations = await client.query<Row>(RELATIONS_SQL);
  const functions = await client.query<Row>(FUNCTIONS_SQL);
  return {
    searchPath: pathOf(path.rows[0]?.['path'] ?? 'public'),
    relations: relations.rows.map(relationFrom),
    functions: functions.rows.map((row): CatalogFunction => ({
      schema: row['schema'] ?? '',
      name: row['name'] ?? '',
      body: row['body'] ?? '',
    })),
  };
}

function relationFrom(row: Row): CatalogRelation {
  return {
    schema: row['schema'] ?? '',
    name: row['name'] ?? '',
    kind: row['kind'] === 'v' ? 'view' : 'table',
    root: row['root'] ?? null,
    bases: JSON.parse(row['bases'] ?? '[]') as readonly string[],
    keys: JSON.parse(row['keys'] ?? '[]') as CatalogRelation['keys'],
    columns: JSON.parse(row['columns'] ?? '[]') as CatalogRelation['columns'],
  };
}

/** `"$user", "A b", public` as names. */
export function pathOf(text: string): readonly string[] {
  const names = text.match(/"(?:[^"]|"")*"|[^,\s]+/g) ?? [];
  return names
    .map((name) => (name.startsWith('"') ? name.slice(1, -1).replaceAll('""', '"') : name.toLowerCase()))
    .filter((name) => name !== '$user');
}
