/** The recorded human decision that the destination is gone for good, for one subset or several. */
import type { SubsetId } from '../core/ports.js';
import { UnderstudyError } from '../core/errors.js';
import { planBarrier } from './barrier.js';
import { abandonDestination, readEpoch } from './fence.js';
import type { Connections, Session } from './session.js';
import type { CutoverDeps } from './settings.js';

/** Returns the new epoch, the highest of several. Throws as `abandonDestination`. */
export async function abandonSubsets(
  { settings, clock }: CutoverDeps,
  connections: Connections,
  subsets: readonly SubsetId[],
  note: string,
  signal: AbortSignal,
): Promise<number> {
  const session = await connections.open('source', 'abandon');
  try {
    const limits = {
      clock,
      signal,
      lockTimeoutMs: settings.lockTimeoutMs,
      timeoutMs: settings.installTimeoutMs,
    };
    const epochs: number[] = [];
    for (const [index, subset] of subsets.entries()) {
      // Of several, those that the source leads are as they should be; one at least was lost.
      const last = index === subsets.length - 1 && epochs.length === 0;
      if (!last && subsets.length > 1 && (await readEpoch(session, subset))?.fenced !== true) continue;
      const plan = await planBarrier(session, settings.lockTimeoutMs, subset);
      epochs.push(await abandonDestination({ session, plan, subset, limits }, note));
    }
    return Math.max(...epochs);
  } finally {
    await session.end();
  }
}

/** Throws `request-invalid` where it answers: its journal would be trusted no more, and what else it leads be lost. */
export async function assertDestinationSilent(connections: Connections): Promise<void> {
  let destination: Session;
  try {
    destination = await connections.open('destination', 'abandon');
  } catch (error) {
    if (error instanceof UnderstudyError && error.code === 'destination-unreachable') return;
    throw error;
  }
  await destination.end();
  throw new UnderstudyError(
    'request-invalid',
    'the destination answers, and can’t be given up for one subset',
    {
      advice:
        'Roll the subset back without --destination-lost; or leave --subset out to give up all it leads.',
    },
  );
}
