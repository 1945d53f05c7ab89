/** What both ways of ending share: slots, publications, replica identities and Understudy's own tables go. */
import type { Side } from '../core/ports.js';
import { UnderstudyError } from '../core/errors.js';
import { quoteIdent } from '../core/postgres.js';
import { inBarrierTransaction, readBounds, type BarrierLimits } from './barrier-locks.js';
import { sqlStateOf, type Session } from './session.js';

/** A slot whose stream was stopped is free once its walsender has noticed. */
const SLOT_FREE_MS = 10_000;
const SLOT_POLL_MS = 20;

export interface Cleanup {
  readonly limits: BarrierLimits;
  /** What was removed, as sentences; grows. */
  readonly removed: string[];
}

/** Both streams of a migration: their slots and publications bear one name. */
export function streamName(migrationId: string, side: Side): string {
  return `understudy_${migrationId}_${side === 'source' ? 'fwd' : 'rev'}`;
}

export async function dropSlot(cleanup: Cleanup, session: Session, name: string): Promise<void> {
  const { clock } = cleanup.limits;
  const deadline = clock.monotonicMs() + SLOT_FREE_MS;
  for (;;) {
    const slot = await session.run(
      'SELECT active FROM pg_catalog.pg_replication_slots WHERE slot_name = $1',
      [name],
    );
    if (slot.rows.length === 0) return;
    try {
      await session.run('SELECT pg_catalog.pg_drop_replication_slot($1)', [name]);
      cleanup.removed.push(`${session.side}: slot ${name}`);
      return;
    } catch (error) {
      // object_in_use: its walsender has not ended yet.
      if (sqlStateOf(error) !== '55006') throw error;
      if (clock.monotonicMs() >= deadline) {
        throw new UnderstudyError('busy', `slot ${name} on the ${session.side} is still read by somebody`, {
          cause: error,
          advice: 'Stop every other Understudy process, then try again.',
        });
      }
    }
    await clock.sleep(SLOT_POLL_MS, cleanup.limits.signal);
  }
}

export async function dropPublication(cleanup: Cleanup, session: Session, name: string): Promise<void> {
  const found = await session.run('SELECT FROM pg_catalog.pg_publication WHERE pubname = $1', [name]);
  if (found.count === 0) return;
  await session.run(`DROP PUBLICATION IF EXISTS ${quoteIdent(name)}`);
  cleanup.removed.push(`${session.side}: publication ${name}`);
}

/** Where the shadow had to change a table's replica identity, it recorded what it was before. */
export async function restoreIdentities(cleanup: Cleanup, session: Session): Promise<void> {
  const recorded = await session.run(
    `SELECT pg_catalog.to_regclass('understudy.identity_change') IS NOT NULL AS found`,
  );
  if (recorded.rows[0]?.['found'] !== 't') return;
  const changes = await session.run(
    `SELECT c.oid::regclass::text AS name, i.before, i.before_index
       FROM understudy.identity_change i
       JOIN pg_catalog.pg_namespace n ON n.nspname = i.schema_name
       JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = i.table_name
      WHERE c.relreplident <> i.before ORDER BY 1`,
  );
  const bounds = await readBounds(session, cleanup.limits.lockTimeoutMs);
  for (const change of changes.rows) {
    const identity = identitySql(change['before'] ?? 'd', change['before_index'] ?? null);
    const name = change['name'] ?? '';
    await inBarrierTransaction(session, bounds, cleanup.limits, async (begin) => {
      await session.batch([...begin, `ALTER TABLE ONLY ${name} REPLICA IDENTITY ${identity}`, 'COMMIT']);
    });
    cleanup.removed.push(`${session.side}: replica identity of ${name}`);
  }
}

function identitySql(before: string, index: string | null): string {
  switch (before) {
    case 'n':
      return 'NOTHING';
    case 'f':
      return 'FULL';
    case 'i':
      return index === null ? 'DEFAULT' : `USING INDEX ${quoteIdent(index)}`;
    default:
      return 'DEFAULT';
  }
}

/** The event triggers that tell the shadow of changes to the source's schema. */
export async function dropEventTriggers(cleanup: Cleanup, session: Session): Promise<void> {
  const found = await session.run(
    `SELECT evtname AS name FROM pg_catalog.pg_event_trigger WHERE evtname IN ('understudy_ddl', 'understudy_drop', 'understudy_rewrite')`,
  );
  for (const row of found.rows) {
    await session.run(`DROP EVENT TRIGGER IF EXISTS ${quoteIdent(row['name'] ?? '')}`);
    cleanup.removed.push(`${session.side}: event trigger ${row['name'] ?? ''}`);
  }
  await session.run('DROP FUNCTION IF EXISTS understudy.note_ddl()');
}

/** Drops Understudy's tables but those that are `kept`, and its schema where nothing is left in it. */
export async function dropOwnTables(
  cleanup: Cleanup,
  session: Session,
  kept: (table: string) => boolean,
): Promise<void> {
  const tables = await session.run(
    `SELECT c.relname AS name FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      WHERE n.nspname = 'understudy' AND c.relkind IN ('r', 'p') ORDER BY c.relname`,
  );
  const names = tables.rows.map((row) => row['name'] ?? '').filter((name) => !kept(name));
  if (names.length > 0) {
    await session.run(`DROP TABLE ${names.map((name) => `understudy.${quoteIdent(name)}`).join(', ')}`);
    cleanup.removed.push(`${session.side}: ${names.length} tables of schema understudy`);
  }
  try {
    await session.run('DROP SCHEMA IF EXISTS understudy');
  } catch (error) {
    // dependent_objects_still_exist: somebody else keeps something in it.
    if (sqlStateOf(error) !== '2BP01') throw error;
  }
}
