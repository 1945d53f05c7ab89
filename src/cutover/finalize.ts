/**
 * Takes away what Understudy left behind, once the destination leads for good.
 *
 * Order, each part repeatable, so that a call that was interrupted is simply made again:
 *   1. the journal's route is finalized: no rollback can begin any more
 *   2. the source's record is retired: a tombstone. A restart with the same configuration finds it before anything else
 *      and never serves the source again, even where the journal can't be read
 *   3. the streams stop
 *   4. slots, then publications; replica identities as they were before
 *   5. the destination's guard; the shadow's own tables on both sides
 *   6. if asked: the source's fence, last of all
 * Kept: the journal, as the history of what was done, and the source's tombstone.
 */
import type { Side } from '../core/ports.js';
import { UnderstudyError } from '../core/errors.js';
import { quoteIdent } from '../core/postgres.js';
import { inBarrierTransaction, readBounds, removeBarrier, type BarrierLimits } from './barrier.js';
import { finalizeRoute } from './journal.js';
import { sqlStateOf, type Connections, type Session } from './session.js';
import type { CutoverDeps, FinalizeOptions, FinalizeReport } from './settings.js';

/** A slot whose stream was stopped is free once its walsender has noticed. */
const SLOT_FREE_MS = 10_000;
const SLOT_POLL_MS = 20;

/** Understudy's tables that outlive `finalize`. */
const KEPT: Readonly<Record<Side, readonly string[]>> = {
  source: ['epoch'],
  destination: ['route', 'operation', 'event', 'proxy'],
};

interface Finalizing {
  readonly deps: CutoverDeps;
  readonly options: FinalizeOptions;
  readonly limits: BarrierLimits;
  readonly removed: string[];
}

/** Throws `not-cut-over`, `busy`, `fence-timeout`, `…-unreachable`. */
export async function finalize(
  deps: CutoverDeps,
  connections: Connections,
  options: FinalizeOptions,
): Promise<FinalizeReport> {
  const { clock, settings, subset, migrationId } = deps;
  const startedMs = clock.monotonicMs();
  const removed: string[] = [];
  const limits: BarrierLimits = {
    clock,
    signal: options.signal,
    lockTimeoutMs: settings.lockTimeoutMs,
    timeoutMs: settings.installTimeoutMs,
  };
  const finalizing: Finalizing = { deps, options, limits, removed };
  const destination = await connections.open('destination', 'finalize');
  const source = options.sourceLost === true ? null : await connections.open('source', 'finalize');
  try {
    const epoch = await finalizeRoute(destination, subset);
    if (source !== null) await retire(source, subset, epoch);
    await options.stopShadow();
    for (const session of [source, destination]) {
      if (session === null) continue;
      const name = `understudy_${migrationId}_${session.side === 'source' ? 'fwd' : 'rev'}`;
      await dropSlot(finalizing, session, name);
      await dropPublication(finalizing, session, name);
      await restoreIdentities(finalizing, session);
    }
    if ((await removeBarrier(destination, limits)) > 0) removed.push('destination: guard');
    if (source !== null && options.removeFence && (await removeBarrier(source, limits)) > 0) {
      removed.push('source: fence');
    }
    for (const session of [source, destination]) {
      if (session !== null) await dropOwnTables(finalizing, session);
    }
    const fence = source === null ? 'source-lost' : options.removeFence ? 'removed' : 'kept';
    return { epoch, removed, fence, seconds: (clock.monotonicMs() - startedMs) / 1000 };
  } finally {
    await Promise.all([destination.end(), source?.end()]);
  }
}

async function retire(source: Session, subset: string, epoch: number): Promise<void> {
  const retired = await source.run(
    `UPDATE understudy.epoch SET retired = true, updated_at = pg_catalog.clock_timestamp()
      WHERE subset = $1 AND fenced AND epoch = $2`,
    [subset, epoch],
  );
  if (retired.count === 1) return;
  throw new UnderstudyError('journal-conflict', `no fence of epoch ${epoch} stands on the source`, {
    advice: 'Find out who lowered it before the source is given up: the runbook says how.',
  });
}

async function dropSlot(finalizing: Finalizing, session: Session, name: string): Promise<void> {
  const { clock } = finalizing.deps;
  const deadline = clock.monotonicMs() + SLOT_FREE_MS;
  for (;;) {
    const slot = await session.run(
      'SELECT active FROM pg_catalog.pg_replication_slots WHERE slot_name = $1',
      [name],
    );
    if (slot.rows.length === 0) return;
    try {
      await session.run('SELECT pg_catalog.pg_drop_replication_slot($1)', [name]);
      finalizing.removed.push(`${session.side}: slot ${name}`);
      return;
    } catch (error) {
      // object_in_use: its walsender has not ended yet.
      if (sqlStateOf(error) !== '55006') throw error;
      if (clock.monotonicMs() >= deadline) {
        throw new UnderstudyError('busy', `slot ${name} on the ${session.side} is still read by somebody`, {
          cause: error,
          advice: 'Stop every other Understudy process, then finalize again.',
        });
      }
    }
    await clock.sleep(SLOT_POLL_MS, finalizing.options.signal);
  }
}

async function dropPublication(finalizing: Finalizing, session: Session, name: string): Promise<void> {
  const found = await session.run('SELECT FROM pg_catalog.pg_publication WHERE pubname = $1', [name]);
  if (found.count === 0) return;
  await session.run(`DROP PUBLICATION IF EXISTS ${quoteIdent(name)}`);
  finalizing.removed.push(`${session.side}: publication ${name}`);
}

/** Where the shadow had to change a table's replica identity, it recorded what it was before. */
async function restoreIdentities(finalizing: Finalizing, session: Session): Promise<void> {
  const recorded = await session.run(
    `SELECT pg_catalog.to_regclass('understudy.identity_change') IS NOT NULL AS found`,
  );
  if (recorded.rows[0]?.['found'] !== 't') return;
  const changes = await session.run(
    `SELECT c.oid::regclass::text AS name, i.before, i.before_index
       FROM understudy.identity_change i
       JOIN pg_catalog.pg_namespace n ON n.nspname = i.schema_name
       JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = i.table_name
      WHERE c.relreplident = 'f' ORDER BY 1`,
  );
  const bounds = await readBounds(session, finalizing.limits.lockTimeoutMs);
  for (const change of changes.rows) {
    const identity = identitySql(change['before'] ?? 'd', change['before_index'] ?? null);
    const name = change['name'] ?? '';
    await inBarrierTransaction(session, bounds, finalizing.limits, async (begin) => {
      await session.batch([...begin, `ALTER TABLE ONLY ${name} REPLICA IDENTITY ${identity}`, 'COMMIT']);
    });
    finalizing.removed.push(`${session.side}: replica identity FULL of ${name}`);
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

async function dropOwnTables(finalizing: Finalizing, session: Session): Promise<void> {
  const tables = await session.run(
    `SELECT c.relname AS name FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      WHERE n.nspname = 'understudy' AND c.relkind IN ('r', 'p') ORDER BY c.relname`,
  );
  const names = tables.rows
    .map((row) => row['name'] ?? '')
    .filter((name) => !KEPT[session.side].includes(name));
  if (names.length === 0) return;
  await session.run(`DROP TABLE ${names.map((name) => `understudy.${quoteIdent(name)}`).join(', ')}`);
  finalizing.removed.push(`${session.side}: ${names.length} tables of schema understudy`);
}
