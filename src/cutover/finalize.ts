/**
 * Takes away what Understudy left behind, once the destination leads for good.
 *
 * Order, each part repeatable, so that a call that was interrupted is simply made again:
 *   1. foreign keys that were left unenforced are put back and validated; those that rows violate stay NOT VALID and are named.
 *      The journal's route is finalized: no rollback can begin any more
 *   2. the source's record is retired: a tombstone. A restart with the same configuration finds it before anything else
 *      and never serves the source again, even where the journal can't be read
 *   3. the streams stop
 *   4. slots, then publications; replica identities as they were before
 *   5. the destination's guard; the shadow's own tables on both sides
 *   6. if asked: the source's fence, last of all
 * Kept: the journal, as the history of what was done, the rows that lost in conflicts and repairs, the series that capture goes on with, and the source's tombstone.
 */
import type { Side, SubsetId } from '../core/ports.js';
import { UnderstudyError } from '../core/errors.js';
import { subsetIds } from '../core/subsets.js';
import { removeBarrier } from './barrier.js';
import type { BarrierLimits } from './barrier-locks.js';
import {
  dropEventTriggers,
  dropOwnTables,
  dropPublication,
  dropSlot,
  restoreIdentities,
  streamName,
  type Cleanup,
} from './cleanup.js';
import { finalizeRoute, readRoute } from './journal.js';
import type { KeyKeeper } from './key-keeper.js';
import type { Connections, Session } from './session.js';
import type { CutoverDeps, FinalizeOptions, FinalizeReport } from './settings.js';

/**
 * Understudy's tables that outlive `finalize`: what tells who leads, what was decided and why, which rows lost to
 * others, and how the database is used.
 */
const KEPT: Readonly<Record<Side, RegExp>> = {
  source: /^epoch$/,
  destination: /^(route|operation|event|proxy|secret|decision|past_copy|conflict|repaired_row|series_.*)$/,
};

/** Throws `not-cut-over`, `busy`, `fence-timeout`, `…-unreachable`. */
export async function finalize(
  deps: CutoverDeps,
  connections: Connections,
  options: FinalizeOptions,
  keys: Pick<KeyKeeper, 'finish'>,
): Promise<FinalizeReport> {
  const { clock, settings, migrationId } = deps;
  const subsets = subsetIds(deps.subsets ?? []);
  const startedMs = clock.monotonicMs();
  const removed: string[] = [];
  const limits: BarrierLimits = {
    clock,
    signal: options.signal,
    lockTimeoutMs: settings.lockTimeoutMs,
    timeoutMs: settings.installTimeoutMs,
  };
  const cleanup: Cleanup = { limits, removed };
  const destination = await connections.open('destination', 'finalize');
  const source = options.sourceLost === true ? null : await connections.open('source', 'finalize');
  try {
    await assertAllLed(destination, subsets);
    const foreignKeys = await keys.finish(source === null ? ['destination'] : ['destination', 'source']);
    const epochs: number[] = [];
    for (const subset of subsets) epochs.push(await finalizeRoute(destination, subset));
    for (const [index, subset] of subsets.entries()) {
      if (source !== null) await retire(source, subset, epochs[index] ?? 0);
    }
    const epoch = Math.max(...epochs);
    await options.stopShadow();
    for (const session of [source, destination]) {
      if (session === null) continue;
      const name = streamName(migrationId, session.side);
      await dropSlot(cleanup, session, name);
      await dropPublication(cleanup, session, name);
      await dropEventTriggers(cleanup, session);
      await restoreIdentities(cleanup, session);
    }
    if ((await removeBarrier(destination, limits)) > 0) removed.push('destination: guard');
    if (source !== null && options.removeFence && (await removeBarrier(source, limits)) > 0) {
      removed.push('source: fence');
    }
    for (const session of [source, destination]) {
      if (session !== null) await dropOwnTables(cleanup, session, (table) => KEPT[session.side].test(table));
    }
    const fence = source === null ? 'source-lost' : options.removeFence ? 'removed' : 'kept';
    const seconds = (clock.monotonicMs() - startedMs) / 1000;
    return { epoch, removed, fence, ...(foreignKeys.length === 0 ? {} : { foreignKeys }), seconds };
  } finally {
    await Promise.all([destination.end(), source?.end()]);
  }
}

/** No part of the source is retired while it still leads another. */
async function assertAllLed(destination: Session, subsets: readonly SubsetId[]): Promise<void> {
  const left: SubsetId[] = [];
  for (const subset of subsets) {
    if ((await readRoute(destination, subset))?.side !== 'destination') left.push(subset);
  }
  const [first] = left;
  if (first === undefined || subsets.length === 1) return;
  throw new UnderstudyError('not-cut-over', `the source still leads ${left.join(', ')}`, {
    advice: `Switch what is left first: \`understudy cutover --subset ${first}\`.`,
  });
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
