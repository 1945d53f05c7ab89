/** The routes of all subsets, as far as they can be found. */
import { WHOLE_DATABASE, type SubsetId } from '../core/ports.js';
import { UnderstudyError } from '../core/errors.js';
import { recover, type RecoveryContext } from './recovery.js';
import type { Recovery, SubsetRecovery } from './settings.js';
import { assertSameMembers, leadsWhole } from './subsets.js';

/** Why who leads a subset can't be found out, while the other server may tell of others. */
const UNASKED: ReadonlySet<string> = new Set(['route-unknown', 'source-unreachable']);

export interface RecoverAllContext extends RecoveryContext {
  /** Every subset's route has been found once by this process. */
  readonly recovered: boolean;
}

/**
 * Of each subset by itself, in the order of their names: what is found of one says nothing of another. So where a server
 * can't be asked, those that the other one alone decides on are found all the same: by the source, those that no fence
 * closes; by the journal, those that it gives to the destination.
 */
export async function recoverAll(context: RecoverAllContext): Promise<Recovery> {
  const { deps, known } = context;
  const found: (SubsetRecovery & Recovery)[] = [];
  const unknown: UnderstudyError[] = [];
  for (const subset of known) {
    try {
      found.push({ subset, ...(await recover({ ...context, deps: { ...deps, subset } })) });
    } catch (error) {
      if (!(error instanceof UnderstudyError) || !UNASKED.has(error.code)) throw error;
      deps.log.warn({ subset, reason: error.message }, 'who leads this subset can’t be asked now');
      unknown.push(error);
      found.push({ subset, ...unasked(context, subset, error), action: 'none', finalized: false });
    }
  }
  const [problem] = unknown;
  if (problem !== undefined && unknown.length === found.length) throw problem;
  const [first] = found;
  if (first === undefined) throw new UnderstudyError('internal', 'there is no subset');
  if (first.subset === WHOLE_DATABASE) {
    const { subset: _, ...whole } = first;
    return whole;
  }
  if (found.some(({ route }) => route.side === 'destination') || problem !== undefined)
    await assertMembers(context);
  const acted = found.find(({ action }) => action !== 'none') ?? first;
  const asked = found.filter((each) => each.unknown !== true);
  return {
    route: leadsWhole(asked),
    action: acted.action,
    ...(acted.operation === undefined ? {} : { operation: acted.operation }),
    subsets: found.map(({ subset, route, action, unknown: missing }) => ({
      subset,
      route,
      action,
      ...(missing === undefined ? {} : { unknown: missing }),
    })),
    ...(problem === undefined || asked.length === found.length ? {} : { missing: problem }),
    finalized: found.some(({ finalized }) => finalized),
  };
}

/** A route that was known stays in force, as it does where nothing can be asked at all. */
function unasked(
  { deps, recovered }: RecoverAllContext,
  subset: SubsetId,
  { code }: UnderstudyError,
): Pick<SubsetRecovery, 'route' | 'unknown'> {
  if (recovered) return { route: deps.traffic.route(subset) };
  return {
    route: { side: code === 'source-unreachable' ? 'source' : 'destination', epoch: 0 },
    unknown: true,
  };
}

/** Where the sides lead different tables, the configuration must be the one by which they were parted. */
async function assertMembers({ deps, connections }: RecoverAllContext): Promise<void> {
  // Barriers have the same names on both sides.
  const session = await connections
    .open('source', 'subsets')
    .catch(() => connections.open('destination', 'subsets'));
  try {
    await assertSameMembers(session, deps.subsets ?? []);
  } finally {
    await session.end();
  }
}
