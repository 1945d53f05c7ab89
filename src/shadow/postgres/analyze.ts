/** Planner statistics: a database without them answers its first minutes with sequential scans. */
import { quoteTable } from '../../core/postgres.js';
import { run, textOf, type Session } from './statement.js';
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
