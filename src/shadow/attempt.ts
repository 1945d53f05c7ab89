/** The connections of one attempt at a shadow, by whatever way it follows. */
import type { Clock } from '../core/clock.js';
import type { Log } from '../core/log.js';
import type { Condition } from './condition.js';
import { endOnAbort, openSession, type Session } from './postgres/statement.js';
import type { StageContext } from './schema-stage.js';
import type { ShadowSettings } from './settings.js';

export interface AttemptContext {
  readonly condition: Condition;
  readonly clock: Clock;
  readonly log: Log;
}

/**
 * Opens both, cut off once the signal aborts, and puts them into `sessions`, for whoever ends the attempt to close. Throws
 * `source-…` and `destination-unreachable`.
 */
export async function connectStage(
  settings: ShadowSettings,
  { condition, clock, log }: AttemptContext,
  sessions: Session[],
  signal: AbortSignal,
): Promise<StageContext> {
  if (condition.phase !== 'following') condition.enter('connecting');
  const open = async (side: Session['side']): Promise<Session> => {
    const session = await openSession(side, settings[side], 'shadow');
    sessions.push(session);
    endOnAbort(session, signal, 0);
    return session;
  };
  const source = await open('source');
  const destination = await open('destination');
  const onFindings: StageContext['onFindings'] = (findings) => condition.note(findings);
  return { settings, source, destination, clock, log, signal, onFindings };
}
