/**
 * Ends what lasts too long: clients that do nothing, transactions left open, statements that run on.
 *
 * One coarse timer looks at all sessions; the data path keeps no stamp and no timer for it. What a session is at, and a
 * number that changes whenever it gets on, are compared with what they were at the last look: while neither changes,
 * time adds up from the look that saw it first. So nothing ends too early, and at most two looks too late.
 *
 * - idle: nothing is in flight, no transaction open. Closed with 57P05, as by idle_session_timeout.
 * - idle-in-transaction: a transaction or a pipeline is open and the server owes nothing. Closed with 25P03.
 * - running: the server owes an answer; a COPY counts. First the statement is cancelled, and its client told 57014; again
 *   at each look, as a backend that had not read the statement yet has ignored the request. What does not end by that
 *   within `cancelTimeoutMs` is closed.
 * - exempt: behind the gate, or replication. Time does not add up.
 */
import type { Clock } from '../../core/clock.js';

export type SessionActivity = 'idle' | 'idle-in-transaction' | 'running' | 'exempt';

export interface WatchedSession {
  readonly activity: SessionActivity;
  /** Differs from what it was once a statement was answered or the client sent something. */
  readonly progress: number;
  /** Cancels what is running, and tells its client that it took too long. Does nothing while the last request is underway. */
  cancelLate(): void;
  terminate(sqlState: string, message: string): void;
}

/** Milliseconds; 0 is no limit. */
export interface WatchLimits {
  readonly clientIdleTimeoutMs: number;
  readonly idleInTransactionTimeoutMs: number;
  readonly queryTimeoutMs: number;
  /** For a cancelled statement to end. */
  readonly cancelTimeoutMs: number;
}

interface Seen {
  activity: SessionActivity;
  progress: number;
  sinceMs: number;
  /** When what runs was first cancelled. */
  cancelledMs: number | null;
}

const LOOK_LEAST_MS = 20;
const LOOK_MOST_MS = 1000;
const LOOKS_PER_TIMEOUT = 4;

export class SessionWatch {
  readonly #sessions: () => Iterable<WatchedSession>;
  readonly #limits: () => WatchLimits;
  readonly #clock: Clock;
  readonly #seen = new WeakMap<WatchedSession, Seen>();
  #timer: NodeJS.Timeout | undefined;

  /** `limits` is asked at every look, so a change of theirs counts at once; `restart` fits the pace to it. */
  constructor(sessions: () => Iterable<WatchedSession>, limits: () => WatchLimits, clock: Clock) {
    this.#sessions = sessions;
    this.#limits = limits;
    this.#clock = clock;
  }

  /** Begins to look, or begins anew; with no limit set there is no timer. */
  restart(): void {
    this.stop();
    const { clientIdleTimeoutMs, idleInTransactionTimeoutMs, queryTimeoutMs } = this.#limits();
    const set = [clientIdleTimeoutMs, idleInTransactionTimeoutMs, queryTimeoutMs].filter((ms) => ms > 0);
    if (set.length === 0) return;
    const paceMs = Math.min(LOOK_MOST_MS, Math.max(LOOK_LEAST_MS, Math.min(...set) / LOOKS_PER_TIMEOUT));
    this.#timer = setInterval(() => this.look(), paceMs);
    this.#timer.unref();
  }

  stop(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  /** One look at all sessions. */
  look(): void {
    const nowMs = this.#clock.monotonicMs();
    const limits = this.#limits();
    for (const session of this.#sessions()) this.#lookAt(session, limits, nowMs);
  }

  #lookAt(session: WatchedSession, limits: WatchLimits, nowMs: number): void {
    const { activity, progress } = session;
    const seen = this.#seen.get(session);
    if (seen === undefined) {
      this.#seen.set(session, { activity, progress, sinceMs: nowMs, cancelledMs: null });
      return;
    }
    if (activity === 'exempt' || seen.activity !== activity || seen.progress !== progress) {
      seen.activity = activity;
      seen.progress = progress;
      seen.sinceMs = nowMs;
      seen.cancelledMs = null;
      return;
    }
    const limitMs = limitOf(activity, limits);
    if (limitMs === 0 || nowMs - seen.sinceMs < limitMs) return;
    if (activity !== 'running') {
      const { sqlState, message } = ENDED[activity];
      session.terminate(sqlState, message);
    } else if (seen.cancelledMs !== null && nowMs - seen.cancelledMs >= limits.cancelTimeoutMs) {
      session.terminate('57014', 'terminating connection due to query timeout');
    } else {
      seen.cancelledMs ??= nowMs;
      session.cancelLate();
    }
  }
}

const ENDED = {
  idle: { sqlState: '57P05', message: 'terminating connection due to idle-session timeout' },
  'idle-in-transaction': {
    sqlState: '25P03',
    message: 'terminating connection due to idle-in-transaction timeout',
  },
} as const;

function limitOf(activity: Exclude<SessionActivity, 'exempt'>, limits: WatchLimits): number {
  switch (activity) {
    case 'idle':
      return limits.clientIdleTimeoutMs;
    case 'idle-in-transaction':
      return limits.idleInTransactionTimeoutMs;
    case 'running':
      return limits.queryTimeoutMs;
  }
}
