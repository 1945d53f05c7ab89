/** Limits of a switch. */
import { z } from 'zod';
import { DEFAULT_CUTOVER_SETTINGS as CUTOVER } from '../../../cutover/settings.js';
import { bytes, choice, count, fraction, milliseconds } from '../leaf.js';

export const cutoverSection = z.strictObject({
  drainTimeoutMs: milliseconds(
    'Statements and transactions in flight may finish that long after the gate closed.',
    CUTOVER.drainTimeoutMs,
  ),
  onDrainTimeout: choice(
    'What happens to transactions open past it: `abort` the cutover, or `cancel` them (40001).',
    ['abort', 'cancel'],
    CUTOVER.onDrainTimeout,
  ),
  onPinned: choice(
    'What happens with a session that can’t be moved: `refuse` the cutover, or `close` the session (57P01).',
    ['refuse', 'close'],
    CUTOVER.onPinned,
  ),
  quietWaitMs: milliseconds(
    'At most how long a moment with little open is looked for before the gate closes; 0 closes it at once.',
    CUTOVER.quietWaitMs,
    { min: 0 },
  ),
  parting: choice(
    'May a subset be switched while others stay? `accept` says that you have read in docs/subsets.md what is not seen.',
    ['refuse', 'accept'],
    CUTOVER.parting,
  ),
  fenceTimeoutMs: milliseconds('All attempts to raise or lower the fence together.', CUTOVER.fenceTimeoutMs),
  lockTimeoutMs: milliseconds(
    'One wait for one lock of the fence; always kept below the server’s deadlock_timeout.',
    CUTOVER.lockTimeoutMs,
  ),
  installTimeoutMs: milliseconds(
    'All attempts to install the fence’s triggers on one table, outside any hold.',
    CUTOVER.installTimeoutMs,
  ),
  markTimeoutMs: milliseconds('The shadow has that long to reach the fence’s mark.', CUTOVER.markTimeoutMs),
  holdBudgetMs: milliseconds(
    'The longest the gate may be closed before the commit; past it the operation aborts.',
    CUTOVER.holdBudgetMs,
  ),
  commitAnswerTimeoutMs: milliseconds(
    'A COMMIT of the route unanswered for that long counts as lost: the operation is in doubt.',
    CUTOVER.commitAnswerTimeoutMs,
  ),
  inDoubtTimeoutMs: milliseconds(
    'Held statements fail with 08007 when an operation in doubt isn’t settled by then.',
    CUTOVER.inDoubtTimeoutMs,
  ),
  connectTimeoutMs: milliseconds('Opening one of the coordinator’s connections.', CUTOVER.connectTimeoutMs),
  lagBytesMax: bytes('A cutover is refused while the shadow is further behind.', CUTOVER.lagBytesMax),
  lagMsMax: milliseconds('A cutover is refused while the shadow is further behind.', CUTOVER.lagMsMax),
  lagWaitMs: milliseconds(
    'Preflight waits that long for the lag to come below its limits.',
    CUTOVER.lagWaitMs,
    {
      min: 0,
    },
  ),
  verifiedWithinMs: milliseconds(
    'A clean verification older than that is done again in preflight.',
    CUTOVER.verifiedWithinMs,
    { max: 31 * 86_400_000 },
  ),
  sequenceMargin: count('Sequences go forward by at least that many values.', CUTOVER.sequenceMargin, {
    min: 0,
  }),
  prepareRoundsMax: count(
    'Rounds of asking and warming sessions before the gate closes.',
    CUTOVER.prepareRoundsMax,
    { max: 100 },
  ),
  staleShareMax: fraction(
    'The share of sessions that may still have to be asked again behind the gate.',
    CUTOVER.staleShareMax,
  ),
});
