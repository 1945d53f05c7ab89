/**
 * What is done between the fence and the commit, while clients wait: the shadow reaches the mark, catalogs and sequences are
 * read, what changed of late is compared, and the side that is to lead is opened in a transaction that is not committed.
 *
 * What waits for what, each begun as soon as it may:
 *
 *   fence ─┬─ mark ─┬─ compare ─────────────────────────────┬─► commit
 *          │        └─ stage (a rollback's: sequences too) ─┤
 *          ├─ catalogs ─────────────────────────────────────┤
 *          ├─ sequences ────────────────────────────────────┤
 *          ├─ other proxies ────────────────────────────────┤
 *          └─ the journal: catching-up, verifying ──────────┘
 *
 * Invariants:
 * - Nothing of it can be seen from outside before the commit, but the sequences of a rollback's source, which is fenced.
 * - Staging comes after the mark: applying needs the tables it locks.
 * - A proxy that lives and isn't this one makes the operation end. It makes itself known first and then looks for a fence,
 *   and here the fence comes first: so either it is seen, or it sees the fence and asks until the operation has ended.
 * - All of it has ended well, and the journal says `verifying`, before the commit is begun.
 */
import type { RecentVerifyReport, SequenceState } from '../core/ports.js';
import { UnderstudyError } from '../core/errors.js';
import { subsetIds } from '../core/subsets.js';
import { assertSameCatalog } from './catalog.js';
import { reopenSource, reopenedSql, stageGuard } from './fence.js';
import { abortable, followingTarget, found, subsetsOf, timedPart, type Operation } from './operation.js';
import { assertAlone, readFingerprint } from './preflight.js';
import { readOtherProxies } from './registration.js';
import { carrySequences, observedRate, readSequences, setSequencesSql } from './sequences.js';

/** Waits for the mark; what else can be looked at behind the barrier is begun, and awaited by {@link verifyAndStage}. */
export async function catchUp(operation: Operation): Promise<void> {
  const { deps, direction, from, markId, signal } = operation;
  const sessions = found(operation, 'sessions');
  const timed = <T>(part: string, promise: Promise<T>): Promise<T> =>
    timedPart(operation, `catch-up.${part}`, promise);
  const marked = within(
    deps.settings.markTimeoutMs,
    'mark-timeout',
    `the ${direction} stream’s mark${operation.found.carriesUnlogged === true ? ', with the unlogged tables that are carried behind it,' : ''}`,
    signal,
    (limit) => deps.shadow.waitForMark(direction, markId, limit, subsetsOf(operation)),
  );
  // What was built is known since preflight: asking for it opens a connection, while clients wait.
  const built = found(operation, 'built');
  const unchanged = readFingerprint(operation, sessions.inspector).then((now) =>
    assertSameCatalog(from, built, now),
  );
  operation.found.besides = {
    unchanged: timed('catalog', unchanged),
    carrying: timed('sequences', carry(operation)),
    alone: readOtherProxies(sessions.journal, operation.proxyId).then((others) =>
      assertAlone(operation, others),
    ),
  };
  for (const each of Object.values(operation.found.besides)) each.catch(() => undefined);
  await timed('mark', marked);
}

async function carry(operation: Operation): Promise<void> {
  const { deps, to } = operation;
  const sessions = found(operation, 'sessions');
  const definitions = found(operation, 'sequenceDefinitions');
  const [onFrom, onTo] = await Promise.all([
    readSequences(sessions.leading, definitions.leading),
    readSequences(sessions.following, definitions.following),
  ]);
  const before = found(operation, 'sequences');
  const atMs = deps.clock.monotonicMs();
  const marginOf = (sequence: SequenceState): bigint => {
    const rate = observedRate(before, sequence, atMs);
    const least = BigInt(deps.settings.sequenceMargin);
    return rate > least ? rate : least;
  };
  operation.found.carried = carrySequences(onFrom, onTo, marginOf);
  for (const { schema, name, note } of operation.found.carried) {
    if (note === undefined) continue;
    operation.onFinding({
      severity: 'info',
      check: 'sequence-carried',
      side: to,
      object: `${schema}.${name}`,
      message: note,
      advice: 'Nothing, unless clients take values from it past Understudy during a switch.',
    });
  }
}

async function within<T>(
  timeoutMs: number,
  code: 'mark-timeout',
  what: string,
  signal: AbortSignal,
  act: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const timeout = new AbortController();
  const reason = new UnderstudyError(code, `${what} was not reached within ${timeoutMs} ms`, {
    advice: 'Look at the stream’s lag in `understudy status`, and try again.',
  });
  const timer = setTimeout(() => timeout.abort(reason), timeoutMs);
  const limit = AbortSignal.any([signal, timeout.signal]);
  try {
    return await abortable(act(limit), limit);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Compares what changed since the last verification, and meanwhile takes the locks of the side that is to lead and
 * opens it in a transaction that is not committed yet.
 */
export async function verifyAndStage(operation: Operation): Promise<void> {
  const { deps, key, signal, to } = operation;
  const { unchanged, carrying, alone } = found(operation, 'besides');
  const [report, staged] = await abortable(
    Promise.all([
      timedPart(operation, 'verify.compare', verifyMembers(operation)),
      timedPart(operation, 'verify.stage', stage(operation)),
      unchanged,
      carrying,
      alone,
    ]),
    signal,
  );
  deps.log.debug({ operation: key.id, keys: report.keys }, 'compared behind the gate');
  assertEqual(operation, report);
  if (!staged) {
    throw new UnderstudyError(
      'journal-conflict',
      `the ${to}’s record forbids opening it: another process acted`,
    );
  }
}

async function stage(operation: Operation): Promise<boolean> {
  const { kind, members } = operation;
  // Set first: whoever gives up meanwhile cuts the connection, and nothing is staged later.
  operation.found.staged = true;
  if (kind === 'rollback') await found(operation, 'besides').carrying;
  const target = followingTarget(operation);
  return await (kind === 'cutover'
    ? stageGuard(target, members)
    : reopenSource(
        target,
        members,
        'stage',
        setSequencesSql(found(operation, 'carried'), reopenedSql(members)),
      ));
}

function assertEqual(operation: Operation, report: RecentVerifyReport): void {
  if (report.mismatches > 0) {
    const keys = report.differing.slice(0, 5).map((row) => `${row.table} ${row.key}`);
    throw new UnderstudyError(
      'verify-mismatch',
      `${report.mismatches} rows changed of late differ between the sides: ${keys.join(', ')}`,
      { advice: 'Run `understudy verify` for all of them.' },
    );
  }
  if (report.incomplete !== true) return;
  operation.onFinding({
    severity: 'info',
    check: 'verify-partial',
    side: operation.to,
    object: subsetsOf(operation).join(', '),
    message: `${report.keys} rows changed of late were compared behind the gate; rows of tables without a key, or changes beyond what is remembered, were not`,
    advice: 'Run `understudy verify`, which compares every row beside live traffic.',
  });
}

async function verifyMembers(operation: Operation): Promise<RecentVerifyReport> {
  const { deps, direction, members, signal } = operation;
  const everything = members.length === subsetIds(deps.subsets ?? []).length;
  const reports: RecentVerifyReport[] = [];
  // One pair of connections compares them.
  for (const subset of everything ? [undefined] : subsetsOf(operation))
    reports.push(await deps.shadow.verifyRecent(direction, signal, subset));
  return {
    keys: reports.reduce((sum, { keys }) => sum + keys, 0),
    mismatches: reports.reduce((sum, { mismatches }) => sum + mismatches, 0),
    differing: reports.flatMap(({ differing }) => differing),
    ...(reports.some(({ incomplete }) => incomplete === true) ? { incomplete: true } : {}),
  };
}
