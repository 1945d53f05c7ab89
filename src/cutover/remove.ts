/**
 * Takes Understudy away: while the source leads, because the migration is given up or begun anew; or after `finalize`,
 * because it is over.
 *
 * Order, each part repeatable, so that a call that was interrupted is simply made again:
 *   1. nothing is under way: no fence stands on the source; on a destination that can be asked, no operation is open and
 *      no other process lives
 *   2. foreign keys that were left unenforced are put back and validated; the streams stop, and whatever else writes into schema `understudy`
 *   3. on the source: slot, publication, replica identities as they were, barrier, own tables
 *   4. on the destination, unless it is gone: the same, and the journal
 * Kept: the tables and rows on the destination, which its guard no longer protects; and on a source that was switched
 * before, its epoch, so that a journal of an older switch, should it come back, is not believed.
 *
 * After `finalize` only the destination is left to clean, of the journal and the series that were kept. The retired
 * source is not even asked: it may be gone. Its tombstone stays, and tells a restart who leads.
 */
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
import { readEpoch, type EpochRecord } from './fence.js';
import { readOpenOperation, readRoute } from './journal.js';
import { readOtherProxies } from './registration.js';
import type { KeyKeeper } from './key-keeper.js';
import type { Connections, Session } from './session.js';
import type { CutoverDeps, RemoveOptions, RemoveReport } from './settings.js';

/** Throws `already-cut-over`, `busy`, `other-proxy-alive`, `fence-timeout`, `…-unreachable`. */
export async function remove(
  deps: CutoverDeps,
  connections: Connections,
  proxyId: string,
  options: RemoveOptions,
  keys: Pick<KeyKeeper, 'finish'>,
): Promise<RemoveReport> {
  const { clock, settings, migrationId } = deps;
  const subsets = subsetIds(deps.subsets ?? []);
  const startedMs = clock.monotonicMs();
  const limits: BarrierLimits = {
    clock,
    signal: options.signal,
    lockTimeoutMs: settings.lockTimeoutMs,
    timeoutMs: settings.installTimeoutMs,
  };
  const cleanup: Cleanup = { limits, removed: [] };
  let foreignKeys: readonly string[] = [];
  const report = (): RemoveReport => ({
    removed: cleanup.removed,
    ...(foreignKeys.length === 0 ? {} : { foreignKeys }),
    seconds: (clock.monotonicMs() - startedMs) / 1000,
  });
  if (options.destinationLost !== true && (await journalSaysFinalized(deps, connections, proxyId))) {
    await clearDestination(connections, options, cleanup);
    return report();
  }
  const source = await connections.open('source', 'remove');
  const sessions: Session[] = [source];
  try {
    const records: (EpochRecord | null)[] = [];
    for (const subset of subsets) records.push(await readEpoch(source, subset));
    if (records.some((record) => record?.retired === true)) {
      // Finalized, and the journal is gone already.
      if (options.destinationLost !== true) await clearDestination(connections, options, cleanup);
      return report();
    }
    if (records.some((record) => record?.fenced === true)) {
      throw new UnderstudyError('already-cut-over', 'the source’s fence stands: the destination leads', {
        advice: 'Roll back first, or end the migration with `understudy finalize`.',
      });
    }
    if (options.destinationLost !== true) {
      const destination = await connections.open('destination', 'remove');
      sessions.push(destination);
      for (const subset of subsets) await refuseWhileUsed(destination, subset, proxyId);
    }
    foreignKeys = await keys.finish(sessions.map(({ side }) => side));
    await options.stopWriters();
    for (const session of sessions) {
      const name = streamName(migrationId, session.side);
      await dropSlot(cleanup, session, name);
      await dropPublication(cleanup, session, name);
      await dropEventTriggers(cleanup, session);
      await restoreIdentities(cleanup, session);
      if ((await removeBarrier(session, limits)) > 0) cleanup.removed.push(`${session.side}: barrier`);
      const switchedBefore = session === source && records.some((record) => (record?.epoch ?? 0) > 0);
      await dropOwnTables(cleanup, session, (table) => switchedBefore && table === 'epoch');
    }
    return report();
  } finally {
    await Promise.all(sessions.map((session) => session.end()));
  }
}

/** Throws `other-proxy-alive` where it does, and another process still uses it. */
async function journalSaysFinalized(
  deps: CutoverDeps,
  connections: Connections,
  proxyId: string,
): Promise<boolean> {
  const destination = await connections.open('destination', 'remove');
  try {
    let finalized = true;
    for (const subset of subsetIds(deps.subsets ?? []))
      finalized &&= (await readRoute(destination, subset))?.finalized === true;
    if (finalized) await refuseOthers(destination, proxyId);
    return finalized;
  } finally {
    await destination.end();
  }
}

/** What is left on the destination after `finalize`. */
async function clearDestination(
  connections: Connections,
  options: RemoveOptions,
  cleanup: Cleanup,
): Promise<void> {
  const destination = await connections.open('destination', 'remove');
  try {
    await options.stopWriters();
    await dropOwnTables(cleanup, destination, () => false);
  } finally {
    await destination.end();
  }
}

async function refuseWhileUsed(destination: Session, subset: string, proxyId: string): Promise<void> {
  const route = await readRoute(destination, subset);
  if (route === null) return;
  if (route.side === 'destination') {
    throw new UnderstudyError('already-cut-over', 'the journal says that the destination leads', {
      advice: 'Look at `understudy status`; restart Understudy, which settles what a former process left.',
    });
  }
  const open = await readOpenOperation(destination, subset);
  if (open !== null) {
    throw new UnderstudyError('busy', `${open.kind} ${open.id} is still ${open.state}`, {
      advice: 'Wait for its end, or restart Understudy, which settles what a former process left.',
    });
  }
  await refuseOthers(destination, proxyId);
}

async function refuseOthers(destination: Session, proxyId: string): Promise<void> {
  const [other] = await readOtherProxies(destination, proxyId);
  if (other === undefined) return;
  throw new UnderstudyError(
    'other-proxy-alive',
    `process ${other.process} on ${other.host} is using this migration`,
    { advice: 'Stop every other Understudy process, then try again.' },
  );
}
