/**
 * Replica identities: what the log tells of a row that is updated or deleted.
 *
 * A table in a publication without one makes the application's own UPDATE fail, so every table's identity is proven
 * before it is published. What is changed here is recorded, and given back when the migration ends (`cutover/cleanup.ts`).
 */
import type { Clock } from '../../core/clock.js';
import { quoteTable } from '../../core/postgres.js';
import { UnderstudyError } from '../../core/errors.js';
import { hasUsableKey } from './apply-table.js';
import { inTransaction, run, sqlStateOf, textOf, TRANSIENT_SQLSTATES, type Session } from './statement.js';
import { tableKey, type TableInfo } from './table.js';

/** Shorter than the server's deadlock_timeout, so that a deadlock is ours to lose, and the wait no one's to notice. */
const LOCK_TIMEOUT_MS = 100;
const LOCK_PAUSE_MS = 50;
const LOCK_ATTEMPTS_MAX = 200;

/** Tables whose identity is an index that is gone: they have none. */
const BROKEN_IDENTITIES_SQL = `
  SELECT n.nspname AS schema, c.relname AS name
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind = 'r' AND c.relreplident = 'i' AND NOT EXISTS (
    SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisreplident AND i.indisvalid)`;

/** The identity the table needs and does not have; null where its own will do. */
export function neededIdentity(table: TableInfo, broken: boolean): 'DEFAULT' | 'FULL' | null {
  if (!hasUsableKey(table)) return table.replicaIdentity === 'f' ? null : 'FULL';
  return table.replicaIdentity === 'n' || broken ? 'DEFAULT' : null;
}

/**
 * Gives every table that holds rows an identity. Waits for each lock a moment only, again and again. Returns the
 * tables that were changed. Throws `…-query-failed`, retryable, where a lock could not be had.
 */
export async function ensureIdentities(
  session: Session,
  tables: readonly TableInfo[],
  context: { readonly clock: Clock; readonly signal: AbortSignal },
): Promise<readonly string[]> {
  const { rows } = await run(session, BROKEN_IDENTITIES_SQL, { what: 'reading the replica identities' });
  const broken = new Set(rows.map((row) => `${textOf(row, 'schema')}.${textOf(row, 'name')}`));
  const changed: string[] = [];
  for (const table of tables) {
    if (table.kind === 'partitioned' || table.unlogged) continue;
    const needed = neededIdentity(table, broken.has(tableKey(table)));
    if (needed === null) continue;
    await patiently(session, table, context, async () => {
      await run(
        session,
        {
          text: `INSERT INTO understudy.identity_change (schema_name, table_name, before, before_index)
            VALUES ($1, $2, $3, NULL) ON CONFLICT DO NOTHING`,
          values: [table.schema, table.name, table.replicaIdentity],
        },
        { what: 'recording a replica identity' },
      );
      await run(session, `ALTER TABLE ONLY ${quoteTable(table)} REPLICA IDENTITY ${needed}`, {
        what: `setting the replica identity of ${tableKey(table)}`,
      });
    });
    changed.push(tableKey(table));
  }
  return changed;
}

async function patiently(
  session: Session,
  table: { readonly schema: string; readonly name: string },
  { clock, signal }: { readonly clock: Clock; readonly signal: AbortSignal },
  change: () => Promise<void>,
): Promise<void> {
  const what = `changing the replica identity of ${tableKey(table)}`;
  for (let attempt = 1; ; attempt++) {
    signal.throwIfAborted();
    try {
      await inTransaction(session, what, async () => {
        await run(session, `SET LOCAL lock_timeout = ${LOCK_TIMEOUT_MS}`, { what });
        await change();
      });
      return;
    } catch (error) {
      if (!TRANSIENT_SQLSTATES.includes(sqlStateOf(error) ?? '')) throw error;
      if (attempt >= LOCK_ATTEMPTS_MAX) {
        const code = session.side === 'source' ? 'source-query-failed' : 'destination-query-failed';
        throw new UnderstudyError(code, `${what}: its lock could not be had`, {
          retryable: true,
          cause: error,
          advice: `End the long transaction or maintenance command on ${tableKey(table)}.`,
        });
      }
      await clock.sleep(LOCK_PAUSE_MS, signal);
    }
  }
}
