/**
 * The drain deadline has passed: ends what one session has open, and has its client told 40001.
 *
 * 1. A client in the middle of a message is closed: nothing can be said to either end in between. So is one that is
 *    between two sides, or gets there meanwhile: it has no transaction that could be ended.
 * 2. What runs is cancelled, a COPY is failed, and its error is told as 40001.
 * 3. What is left open, a transaction block or a pipeline without its Sync, is rolled back on the backend by the
 *    proxy's own ROLLBACK. From then on the client is answered here: its next statement gets 40001, further ones
 *    25P02, until it ends the transaction it believes to be in.
 *
 * ROLLBACK comes as a simple query, also behind a half-sent pipeline: a Sync would commit what was sent of it.
 */
import { FRONTEND, encodeErrorResponse, encodeFrame, encodeSync } from '../../wire/postgres/messages.js';
import { encodeRawQuery } from '../../wire/postgres/raw-text.js';
import { STATUS_FAILED, STATUS_IDLE, type OwnKind, type ResponseTracker } from './response-tracker.js';
import { ROLLED_BACK } from './server-stream.js';
import type { SessionPhase } from './session-phases.js';

export interface RollbackSubject {
  readonly tracker: ResponseTracker;
  readonly phase: () => SessionPhase;
  /** The client has sent part of a message, or the session is between two sides. */
  readonly midway: () => boolean;
  readonly terminate: (sqlState: string, message: string) => void;
  readonly toServer: (bytes: Buffer) => void;
  readonly toClient: (bytes: Buffer) => void;
  readonly cancelBackend: () => void;
  /** While set, an error of a cancelled statement is told as 40001. */
  readonly setCancelling: (cancelling: boolean) => void;
  /** From now on the client's statements are answered here. */
  readonly answer: (how: { skipping: boolean; told: boolean; untilSync: boolean }) => void;
  readonly sendOwn: (messages: Buffer, kind: OwnKind) => Promise<unknown>;
  readonly sleep: (ms: number) => Promise<void>;
  readonly nowMs: () => number;
  readonly cancelTimeoutMs: number;
}

/** Resolves once the backend is idle, or the session closed, or what runs did not end within the bound. */
export async function rollBackSession(subject: RollbackSubject): Promise<void> {
  const { tracker, phase } = subject;
  if (closedMidway(subject)) return;
  if (busy(tracker)) await cancelRunning(subject);
  if (phase() !== 'draining' || closedMidway(subject) || busy(tracker)) return;
  await endTransaction(subject);
}

function closedMidway({ midway, terminate }: RollbackSubject): boolean {
  if (!midway()) return false;
  terminate('57P01', 'terminating connection because the database is being switched over');
  return true;
}

function busy(tracker: ResponseTracker): boolean {
  return tracker.awaitingReady || tracker.owesExtended || tracker.copy !== 'none';
}

async function cancelRunning(subject: RollbackSubject): Promise<void> {
  const { tracker, phase } = subject;
  subject.setCancelling(true);
  if (tracker.copy === 'in') {
    // A server that reads COPY data hears no cancel request.
    subject.toServer(encodeFrame(FRONTEND.copyFail, Buffer.from(`${ROLLED_BACK.message}\0`)));
    tracker.sentCopyEnd();
  } else {
    // Without a Flush the server may keep back what it has answered to a half-sent pipeline.
    if (!tracker.awaitingReady) subject.toServer(encodeFrame(FRONTEND.flush, Buffer.alloc(0)));
    subject.cancelBackend();
  }
  const deadline = subject.nowMs() + subject.cancelTimeoutMs;
  while (phase() === 'draining' && busy(tracker) && subject.nowMs() < deadline) await subject.sleep(2);
  subject.setCancelling(false);
}

async function endTransaction(subject: RollbackSubject): Promise<void> {
  const { tracker } = subject;
  const { unsynced, skipping } = tracker;
  if (unsynced && !skipping) subject.toClient(encodeErrorResponse(ROLLED_BACK));
  subject.answer({
    skipping: unsynced,
    told: unsynced || tracker.status === STATUS_FAILED,
    untilSync: tracker.status === STATUS_IDLE,
  });
  // A server that skips to the next Sync would skip the ROLLBACK too; what it skips has failed already.
  const ended = skipping ? [subject.sendOwn(encodeSync(), 'own-sync')] : [];
  ended.push(subject.sendOwn(encodeRawQuery('ROLLBACK'), 'own-query'));
  await Promise.allSettled(ended);
}
