/** The clients' sessions before the gate closes: asked and warmed, and what keeps some from being moved. */
import type { Finding } from '../core/ports.js';
import type { SessionBlocker } from '../core/traffic-ports.js';
import { UnderstudyError } from '../core/errors.js';
import { binaryTypeFindings } from './binary-types.js';
import { alongOf, found, type Operation } from './operation.js';

/** So few stale sessions are always fine, whatever their share. */
const STALE_ALWAYS = 4;
const BOUND_NAMED_MAX = 10;

/** Asks and warms every client's session, in rounds, until few are left to ask behind the gate. */
export async function prepareSessions(operation: Operation): Promise<void> {
  const { deps, to, signal } = operation;
  const { settings, traffic, subset } = deps;
  for (let round = 1; ; round++) {
    const report = await traffic.prepare(subset, to, signal, alongOf(operation));
    const last = round >= settings.prepareRoundsMax;
    const pinned = report.blockers.filter((blocker) => isPin(blocker));
    const refused = report.blockers.filter((blocker) => blocker.reason === 'destination-refuses');
    const staleMax = Math.max(STALE_ALWAYS, Math.floor(report.sessions * settings.staleShareMax));
    const mayGo =
      report.stale <= staleMax &&
      refused.length === 0 &&
      (pinned.length === 0 || settings.onPinned === 'close');
    if (!last && !mayGo) continue;
    for (const blocker of report.blockers) operation.onFinding(sessionFinding(operation, blocker));
    for (const finding of boundFindings(operation, report.bound ?? [])) operation.onFinding(finding);
    const { leading } = found(operation, 'sessions');
    const types = await binaryTypeFindings(leading, operation.from, report.binaryTypes ?? []);
    for (const finding of types) operation.onFinding(finding);
    if (mayGo) return;
    throw whyNot(operation, pinned, refused, report.stale, report.sessions);
  }
}

/** Reasons that end with the session's transaction or the next question are no pins. */
function isPin(blocker: SessionBlocker): boolean {
  switch (blocker.reason) {
    case 'in-transaction':
    case 'state-unreadable':
    case 'destination-refuses':
      return false;
    case 'temporary-table':
    case 'cursor-with-hold':
    case 'session-advisory-lock':
    case 'listening':
    case 'loaded-library':
    case 'unknown-setting':
    case 'replication':
      return true;
  }
}

function sessionFinding(operation: Operation, blocker: SessionBlocker): Finding {
  const refuses = blocker.reason === 'destination-refuses';
  const pinned = isPin(blocker) && operation.deps.settings.onPinned === 'refuse';
  return {
    severity: refuses || pinned ? 'blocker' : 'warning',
    check: `session-${blocker.reason}`,
    side: 'proxy',
    object: `session ${blocker.sessionId} (${blocker.user}, ${blocker.applicationName})`,
    message: blocker.detail,
    advice: pinned
      ? 'End that session or what it holds, or set cutover.onPinned to close.'
      : 'Nothing, unless it lasts.',
  };
}

/** They are served where they are, and refused what is on the other side then. */
function boundFindings({ to }: Operation, bound: readonly SessionBlocker[]): readonly Finding[] {
  const pinned = bound.filter((blocker) => isPin(blocker));
  const [first] = pinned;
  if (first === undefined) return [];
  const named = pinned
    .slice(0, BOUND_NAMED_MAX)
    .map((pin) => `${pin.sessionId} (${pin.user}): ${pin.reason}, ${pin.detail}`);
  const sessions = new Set(pinned.map(({ sessionId }) => sessionId)).size;
  return [
    {
      severity: 'warning',
      check: 'session-bound',
      side: 'proxy',
      object: `${sessions} sessions`,
      message: `hold what can’t be moved, and are refused what only the other side than theirs serves: ${named.join('; ')}`,
      advice: `End those that need what goes to the ${to}, or what they hold.`,
    },
  ];
}

function whyNot(
  operation: Operation,
  pinned: readonly SessionBlocker[],
  refused: readonly SessionBlocker[],
  stale: number,
  sessions: number,
): UnderstudyError {
  const [pin] = pinned;
  if (pin !== undefined && operation.deps.settings.onPinned === 'refuse') {
    return new UnderstudyError(
      'session-pinned',
      `${pinned.length} sessions can’t be moved, the first being ${pin.sessionId} of ${pin.user}: ${pin.reason}, ${pin.detail}`,
      {
        advice: 'End those sessions or what they hold, or set cutover.onPinned to close.',
        details: { pinned },
      },
    );
  }
  const [refusal] = refused;
  if (refusal !== undefined) {
    return new UnderstudyError(
      'warm-failed',
      `the ${operation.to} refuses connections for ${refused.length} sessions, the first being of ${refusal.user}: ${refusal.detail}`,
      { advice: `Make sure that the ${operation.to} lets the same users in.` },
    );
  }
  return new UnderstudyError(
    'warm-failed',
    `${stale} of ${sessions} sessions change their state faster than they can be asked`,
    { advice: 'Try again at a quieter moment, or raise cutover.staleShareMax.' },
  );
}
