/** The barriers of all subsets on both sides, as the routes say. */
import { WHOLE_DATABASE, type ShadowTable, type Side, type SubsetId } from '../core/ports.js';
import { readSubsetTables } from '../core/subsets.js';
import { createBarrierObjects, installBarrier, tablesOn } from './barrier.js';
import type { BarrierLimits } from './barrier-locks.js';
import type { Connections, Session } from './session.js';
import type { CutoverDeps } from './settings.js';

/** As `installBarriers` of the coordinator. */
export async function installOnBoth(
  deps: CutoverDeps,
  connections: Connections,
  subsets: readonly SubsetId[],
  tables: readonly ShadowTable[],
  signal: AbortSignal,
): Promise<void> {
  const { settings, clock } = deps;
  const limits = {
    clock,
    signal,
    lockTimeoutMs: settings.lockTimeoutMs,
    timeoutMs: settings.installTimeoutMs,
  };
  for (const side of ['destination', 'source'] as const) {
    const session = await connections.open(side, 'install');
    try {
      for (const subset of subsets) await createBarrierObjects(session, subset);
      await installOn(deps, side, session, tables, limits);
    } finally {
      await session.end();
    }
  }
}

async function installOn(
  { traffic, subsets = [] }: CutoverDeps,
  side: Side,
  session: Session,
  tables: readonly ShadowTable[],
  limits: BarrierLimits,
): Promise<void> {
  const raised = (subset: SubsetId): boolean => traffic.route(subset).side !== side;
  if (subsets.length === 0) {
    await installBarrier(session, tablesOn(side, tables), raised(WHOLE_DATABASE), limits);
    return;
  }
  const followed = new Set(tables.map(({ schema, name }) => `${schema}.${name}`));
  for (const { subset, tables: members } of await readSubsetTables(session.client, subsets)) {
    const theirs = members.filter(({ schema, name }) => followed.has(`${schema}.${name}`));
    await installBarrier(session, theirs, raised(subset), limits, subset);
  }
}
