/** Planner statistics: a database without them answers its first minutes with sequential scans. */
import { quoteTable } from '../../core/postgres.js';
import { notOfExtension, userSchema } from './schema/catalog.js';
import { run, sqlStateOf, textOf, type Session } from './statement.js';
import { tableKey, type TableInfo } from './table.js';

async function analyze(session: Session, tables: readonly TableInfo[], signal: AbortSignal): Promise<void> {
  for (const table of tables) {
    signal.throwIfAborted();
    await run(session, `ANALYZE ${quoteTable(table)}`, { what: `analyzing ${tableKey(table)}` });
  }
}

/** Every table. A root's statistics are its own, never gathered by autovacuum; its partitions' come with them. */
export async function analyzeAll(
  session: Session,
  tables: readonly TableInfo[],
  signal: AbortSignal,
): Promise<void> {
  await analyze(
    session,
    tables.filter((table) => table.kind !== 'partition'),
    signal,
  );
}

/** Filled materialised views, those that others read first. Views may form a loop that only their use would reveal. */
const MATERIALIZED_VIEWS_SQL = `
  WITH RECURSIVE uses AS (
    SELECT DISTINCT r.ev_class AS reader, d.refobjid AS used
    FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid
    WHERE d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
      AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid <> r.ev_class
  ), level AS (
    SELECT c.oid, 0 AS depth FROM pg_catalog.pg_class c WHERE c.relkind = 'm'
    UNION
    SELECT u.reader, l.depth + 1 FROM level l JOIN uses u ON u.used = l.oid WHERE l.depth < 50
  )
  SELECT n.nspname AS schema, c.relname AS name
  FROM level l JOIN pg_catalog.pg_class c ON c.oid = l.oid AND c.relkind = 'm' AND c.relispopulated
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE ${userSchema('n')} AND ${notOfExtension('pg_catalog.pg_class', 'c.oid')}
  GROUP BY 1, 2 ORDER BY pg_catalog.max(l.depth), 1, 2`;

/**
 * Fills the materialised views anew from what their tables hold now: their rows are not in the log. Returns the ones
 * that could not be refreshed, with the reason; throws `…-unreachable` where the connection was lost.
 */
export async function refreshMaterializedViews(
  session: Session,
  signal: AbortSignal,
): Promise<readonly { readonly view: string; readonly reason: string }[]> {
  const { rows } = await run(session, MATERIALIZED_VIEWS_SQL, { what: 'looking for materialised views' });
  const failed: { view: string; reason: string }[] = [];
  for (const row of rows) {
    signal.throwIfAborted();
    const name = { schema: textOf(row, 'schema'), name: textOf(row, 'name') };
    const what = `refreshing ${tableKey(name)}`;
    try {
      // The messages of a failure may quote rows: only the SQLSTATE is told.
      await run(session, `REFRESH MATERIALIZED VIEW ${quoteTable(name)}`, { what, carriesRows: true });
    } catch (error) {
      if (sqlStateOf(error) === undefined) throw error;
      failed.push({ view: tableKey(name), reason: `SQLSTATE ${sqlStateOf(error)}` });
    }
  }
  return failed;
}

/** Tables never analyzed, or changed since by more than a tenth of their rows and a handful. */
const STALE_SQL = `
  SELECT n.nspname AS schema, c.relname AS name
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_stat_all_tables s ON s.relid = c.oid
  WHERE c.relkind IN ('r', 'p') AND (
    CASE c.relkind
      WHEN 'p' THEN NOT EXISTS (SELECT FROM pg_catalog.pg_statistic t WHERE t.starelid = c.oid)
      ELSE COALESCE(s.last_analyze, s.last_autoanalyze) IS NULL AND c.reltuples < 1
        OR s.n_mod_since_analyze > 1000 + c.reltuples / 10
    END)`;

export async function analyzeStale(
  session: Session,
  tables: readonly TableInfo[],
  signal: AbortSignal,
): Promise<void> {
  const { rows } = await run(session, STALE_SQL, { what: 'looking for old statistics' });
  const stale = new Set(rows.map((row) => `${textOf(row, 'schema')}.${textOf(row, 'name')}`));
  await analyze(
    session,
    tables.filter((table) => stale.has(tableKey(table))),
    signal,
  );
}
