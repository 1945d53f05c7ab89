/**
 * COMMIT was sent and its answer lost: the operation is committed or it is not, and only the journal knows.
 *
 * The gate stays closed and the barrier stands. Over fresh connections the abort is tried, as a compare-and-swap: it
 * waits for the row's lock while the lost commit is still running, and then either finds `verifying` and makes the
 * commit impossible for ever, or finds `committed`. Time decides nothing; it only ends the clients' waiting, with 08007.
 */
import { UnderstudyError } from '../core/errors.js';
import { abortMembers } from './journal.js';
import { AFTER_COMMIT, FINAL } from './machine.js';
import { persist, type Operation } from './operation.js';

/** transaction_resolution_unknown. */
export const IN_DOUBT_SQLSTATE = '08007';

/** Resolves with what the journal says. Rejects only when the process ends before it can be asked. */
export async function resolveDoubt(operation: Operation): Promise<'committed' | 'aborted'> {
  const { deps, closing, key } = operation;
  let failedAtMs = 0;
  return await persist(
    deps,
    closing,
    'asking the journal for the outcome',
    () => askJournal(operation),
    (elapsedMs) => {
      if (elapsedMs - failedAtMs < deps.settings.inDoubtTimeoutMs) return;
      failedAtMs = elapsedMs;
      deps.traffic.failHeld(
        deps.subset,
        IN_DOUBT_SQLSTATE,
        `the outcome of operation ${key.id} is not known: its journal can’t be reached`,
      );
    },
  );
}

async function askJournal(operation: Operation): Promise<'committed' | 'aborted'> {
  const { connections, deps, key, members, kind } = operation;
  const session = await connections.open('destination', `${kind} in-doubt`, {
    answerTimeoutMs: deps.settings.commitAnswerTimeoutMs,
  });
  try {
    const state = await abortMembers(
      session,
      members,
      'the answer to COMMIT was lost, and it had not committed',
    );
    if (state === 'aborted') return 'aborted';
    if (AFTER_COMMIT.includes(state) || FINAL.includes(state)) return 'committed';
    throw new UnderstudyError('journal-conflict', `the journal holds operation ${key.id} as ${state}`);
  } finally {
    await session.end();
  }
}
