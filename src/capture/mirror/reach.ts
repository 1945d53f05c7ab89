/** What a write to a table may reach beside the row it names: partitions, triggers, rules, cascades, functions. */
import type pg from 'pg';

export interface TableReach {
  /** Tables that hold the rows: itself, partitions, children. */
  readonly leaves: readonly string[];
  /** Columns of the primary key; none where there is none. */
  readonly key: readonly string[];
  /** Triggers or rules run: what they write isn't known. */
  readonly runsCode: boolean;
  /** Tables whose rows go, or change, with rows here. */
  readonly cascades: readonly string[];
}

export interface Reach {
  readonly tables: ReadonlyMap<string, TableReach>;
  /** Names, without schema, of functions that are not the system's and may write. */
  readonly writingFunctions: ReadonlySet<string>;
}

const TABLES_SQL = `
WITH RECURSIVE relation AS (
  SELECT c.oid, n.nspname || '.' || c.relname AS name, c.relkind
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_'
    AND n.nspname NOT IN ('information_schema', 'understudy')
), descendant AS (
  SELECT oid AS root, oid FROM relation
  UNION SELECT d.root, i.inhrelid FROM descendant d JOIN pg_catalog.pg_inherits i ON i.inhparent = d.oid
)
SELECT r.name,
  (SELECT pg_catalog.json_agg(l.name) FROM descendant d JOIN relation l ON l.oid = d.oid
    WHERE d.root = r.oid AND l.relkind = 'r') AS leaves,
  (SELECT pg_catalog.json_agg(a.attname ORDER BY k.n)
    FROM pg_catalog.pg_index i CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, n)
    JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    WHERE i.indrelid = r.oid AND i.indisprimary AND k.n <= i.indnkeyatts) AS key,
  EXISTS (SELECT FROM descendant d JOIN pg_catalog.pg_trigger t ON t.tgrelid = d.oid
    WHERE d.root = r.oid AND NOT t.tgisinternal AND t.tgenabled <> 'D' AND t.tgname NOT LIKE 'understudy\\_%')
  OR EXISTS (SELECT FROM pg_catalog.pg_rewrite w WHERE w.ev_class = r.oid AND w.ev_type <> '1') AS runs_code,
  (SELECT pg_catalog.json_agg(DISTINCT f.name) FROM pg_catalog.pg_constraint c JOIN relation f ON f.oid = c.conrelid
    WHERE c.confrelid = r.oid AND c.contype = 'f'
      AND (c.confdeltype IN ('c', 'n', 'd') OR c.confupdtype IN ('c', 'n', 'd'))) AS cascades
FROM relation r`;

const FUNCTIONS_SQL = `
SELECT DISTINCT p.proname AS name
FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE p.provolatile = 'v' AND n.nspname NOT IN ('pg_catalog', 'information_schema')`;

type Row = Readonly<Record<string, string | null>>;

/** Throws what the connection throws. */
export async function readReach(client: pg.Client): Promise<Reach> {
  const tables = await client.query<Row>(TABLES_SQL);
  const functions = await client.query<Row>(FUNCTIONS_SQL);
  const names = (text: string | null | undefined): readonly string[] =>
    text == null ? [] : (JSON.parse(text) as readonly string[]);
  return {
    tables: new Map(
      tables.rows.map((row) => [
        row['name'] ?? '',
        {
          leaves: names(row['leaves']),
          key: names(row['key']),
          runsCode: row['runs_code'] === 't',
          cascades: names(row['cascades']),
        },
      ]),
    ),
    writingFunctions: new Set(functions.rows.map((row) => row['name'] ?? '')),
  };
}
