/** What a session can be doing, and the legal ways from one to another; session.ts says what each means. */
import { StateCell } from '../../core/state-machine.js';

export type SessionPhase = 'serving' | 'draining' | 'held' | 'answering' | 'closed';

export function sessionPhase(): StateCell<SessionPhase> {
  return new StateCell<SessionPhase>(
    'session',
    {
      serving: ['draining', 'closed'],
      draining: ['serving', 'held', 'answering', 'closed'],
      held: ['serving', 'draining', 'answering', 'closed'],
      answering: ['serving', 'held', 'closed'],
      closed: [],
    },
    'serving',
  );
}

/**
 * Of the start-up parameter `replication`: a connection for the whole server's log or files, as pg_receivewal and
 * pg_basebackup make. The server takes no notice of the database it asks for.
 */
export function isPhysicalReplication(value: string | undefined): boolean {
  return value !== 'database' && isReplication(value);
}

/** Of the start-up parameter `replication`. */
export function isReplication(value: string | undefined): boolean {
  return value !== undefined && !['false', 'off', 'no', '0', 'f', 'n'].includes(value.toLowerCase());
}
