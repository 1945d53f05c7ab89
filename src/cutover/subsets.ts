/** What is said of a whole of several subsets, and whether they are still the ones by which the sides were parted. */
import type { SubsetId, SubsetRules } from '../core/ports.js';
import type { Route } from '../core/traffic-ports.js';
import { UnderstudyError } from '../core/errors.js';
import { quoteTable } from '../core/postgres.js';
import { readSubsetTables } from '../core/subsets.js';
import { readBarrier } from './barrier.js';
import type { Session } from './session.js';
import type { BarrierState, OperationRecord } from './settings.js';
import type { SidesStatus } from './status.js';

/** The one route of all; where they differ, the source's, which then still leads something. */
export function leadsWhole(parts: readonly { readonly route: Route }[]): Route {
  const leading = parts.filter(({ route }) => route.side === 'source');
  const [first, ...others] = (leading.length > 0 ? leading : parts).map(({ route }) => route);
  if (first === undefined) throw new UnderstudyError('internal', 'there is no subset');
  return others.reduce((route, other) => (other.epoch > route.epoch ? other : route), first);
}

/** The last operation of any of them, and the barriers where all are alike. */
export function wholeOf(parts: readonly SidesStatus[]): SidesStatus {
  const [first, ...others] = parts;
  if (first === undefined) throw new UnderstudyError('internal', 'there is no subset');
  return others.reduce(
    (whole, part) => ({
      barriers: {
        source: alike(whole.barriers.source, part.barriers.source),
        destination: alike(whole.barriers.destination, part.barriers.destination),
      },
      journal: whole.journal === 'reachable' ? part.journal : whole.journal,
      route: whole.route ?? part.route,
      last: later(whole.last, part.last),
    }),
    first,
  );
}

function alike(one: BarrierState, other: BarrierState): BarrierState {
  if (one === other || other === 'absent') return one;
  if (one === 'absent') return other;
  return one === 'unknown' || other === 'unknown' ? 'unknown' : 'partial';
}

function later(one: OperationRecord | null, other: OperationRecord | null): OperationRecord | null {
  if (one === null || other === null) return one ?? other;
  return other.startedAt > one.startedAt ? other : one;
}

/**
 * Throws `journal-conflict` where a table's barrier says another subset than the configuration: the sides were parted by
 * other borders than statements would be routed by.
 */
export async function assertSameMembers(source: Session, rules: readonly SubsetRules[]): Promise<void> {
  const built = new Map((await readBarrier(source)).map((each) => [quoteTable(each), each.subset]));
  for (const { subset, tables } of await readSubsetTables(source.client, rules)) {
    const moved = tables.find((table) => (built.get(quoteTable(table)) ?? subset) !== subset);
    if (moved !== undefined) throw parted(moved, built.get(quoteTable(moved)) ?? '', subset);
  }
}

function parted(
  table: { readonly schema: string; readonly name: string },
  was: SubsetId,
  is: SubsetId,
): UnderstudyError {
  return new UnderstudyError(
    'journal-conflict',
    `${table.schema}.${table.name} is in subset ${is} by the configuration, and was in ${was} when the sides were parted`,
    { advice: 'Put `subsets` back as they were until one side leads everything, then change them.' },
  );
}
