/** What is told of a pooled client. */
import type { ResponseTracker } from '../session/response-tracker.js';
import type { SessionInfo } from '../session/session-context.js';
import type { SessionPhase } from '../session/session-phases.js';
import type { SessionActivity } from '../session/session-watch.js';
import type { PooledPhase } from './client-phase.js';
import type { ClientSocket } from './client-socket.js';
import type { PooledClient } from './pooled-client.js';

/** `waits`: what it has sent is not begun yet, or may not be. */
export function activityOf(
  phase: PooledPhase,
  tracker: ResponseTracker,
  { waits, rollingBack }: { readonly waits: boolean; readonly rollingBack: boolean },
): SessionActivity {
  if (phase === 'idle') return waits ? 'exempt' : 'idle';
  if (phase === 'sharing') return 'running';
  if (phase !== 'linked' || rollingBack) return 'exempt';
  const running = tracker.awaitingReady || tracker.owesExtended || tracker.copy !== 'none';
  return running ? 'running' : 'idle-in-transaction';
}

export function sessionPhaseOf(phase: PooledPhase, gateClosed: boolean): SessionPhase {
  if (phase === 'closed' || phase === 'pinned') return 'closed';
  if (phase === 'answering') return 'answering';
  if (!gateClosed) return 'serving';
  return phase === 'idle' ? 'held' : 'draining';
}

const AT_REST: ReadonlySet<PooledPhase> = new Set<PooledPhase>(['idle', 'waiting', 'answering', 'closed']);

export function infoOf(
  { id, accepted, pool, phase, tracker }: PooledClient,
  { bytesFromClient, bytesToClient }: ClientSocket,
  {
    gateClosed,
    inTransactionMs,
    heldBytes,
  }: {
    readonly gateClosed: boolean;
    readonly inTransactionMs: number | null;
    readonly heldBytes: number;
  },
): SessionInfo {
  return {
    id,
    user: accepted.user,
    applicationName: accepted.parameters.get('application_name') ?? '',
    side: pool.side,
    phase: sessionPhaseOf(phase, gateClosed),
    transactionStatus: String.fromCharCode(tracker.status),
    busy: !AT_REST.has(phase) && !(phase === 'linked' && tracker.settled),
    inTransactionMs,
    heldBytes,
    backendLost: false,
    bytesFromClient,
    bytesToClient,
  };
}
