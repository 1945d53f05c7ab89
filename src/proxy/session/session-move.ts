/**
 * The preparation of one session's move to the other side: what it holds, and a warm connection that holds the same.
 *
 * States: unasked · asked(state, at change n) · warm(connection holds state) · blocked(pins). `fresh` says whether
 * nothing that could matter has happened since.
 *
 * Invariant: a connection is taken over only if it holds exactly what the session held when it was last asked, and
 * the session has sent nothing since that could have changed it.
 */
import { UnderstudyError } from '../../core/errors.js';
import type { Side } from '../../core/ports.js';
import type { BlockerReason, SessionBlocker } from '../../core/traffic-ports.js';
import { BackendRefused } from '../backend/backend-refused.js';
import { openBackend, type BackendEndpoint } from '../backend/backend.js';
import type { SessionContext, StateAnswer } from './session-context.js';
import { detailQuery, pinsOf, readState, stateQuery, type Pin, type SessionState } from './session-state.js';
import type { Session } from './session.js';
import { replayChange, replayState } from '../backend/state-replay.js';
import { WarmConnection } from '../backend/warm-connection.js';

export interface MoveTarget {
  readonly side: Side;
  readonly endpoint: BackendEndpoint;
  readonly database: string;
}

type Slot = <T>(work: () => Promise<T>) => Promise<T>;

/** Bounds on what is done for all sessions at once. */
export interface MoveSlots {
  /** Questions to backends. */
  readonly ask: Slot;
  /** Connections being opened and filled on the new side. */
  readonly open: Slot;
}

export interface AskedState {
  readonly state: SessionState;
  readonly change: number;
}

export interface MoveDeps {
  readonly context: SessionContext;
  /** Names of custom settings known from elsewhere: function bodies, policies, role and database settings. */
  readonly settingNames: () => readonly string[];
  /** A session that listens stays: it would be deaf to the side that it leaves, which goes on being written to. */
  readonly listenersStay?: boolean;
}

export class SessionMove {
  readonly session: Session;
  readonly #to: MoveTarget;
  readonly #deps: MoveDeps;
  #state: SessionState | null = null;
  #askedAtChange = -1;
  #warm: WarmConnection | null = null;
  /** What the warm connection was given. */
  #given: SessionState | null = null;
  #pins: readonly Pin[] = [];
  #refreshing: Promise<void> | null = null;
  #abandoned = false;
  /** How many connections it has opened. */
  opened = 0;

  constructor(session: Session, to: MoveTarget, deps: MoveDeps) {
    this.session = session;
    this.#to = to;
    this.#deps = deps;
  }

  /** The session was asked, and has sent nothing since that could have changed the answer. */
  get current(): boolean {
    return this.session.replication || this.#askedAtChange === this.session.clientStream.changes;
  }

  /** Ready to be taken over as it is. */
  get warm(): boolean {
    return this.current && this.#warm?.alive === true && this.#given !== null && this.blockers.length === 0;
  }

  get listening(): boolean {
    return (this.#state?.listening.length ?? 0) > 0;
  }

  get blockers(): readonly SessionBlocker[] {
    const pins: Pin[] = [...this.session.clientStream.pins, ...this.#pins];
    if (this.session.replication) pins.push({ reason: 'replication', detail: 'a replication connection' });
    const { user } = this.session.accepted;
    const { applicationName } = this.session.info;
    return pins.map(({ reason, detail }) => ({
      sessionId: this.session.id,
      user,
      applicationName,
      reason,
      detail: printable(detail),
    }));
  }

  /**
   * Asks the session what it holds, unless that is known, and makes the warm connection hold it. What stands in the
   * way is in `blockers` afterwards.  Rejects only where `signal` fired
   * or the session was not quiet within `askWithinMs` (`cancelled`).
   */
  async refresh(askWithinMs: number, signal: AbortSignal, slots: MoveSlots): Promise<void> {
    if (this.session.replication || this.session.phase === 'closed') return;
    while (this.#refreshing !== null) await this.#refreshing.catch(() => undefined);
    if (this.warm) return;
    this.#refreshing = this.#refresh(askWithinMs, signal, slots);
    try {
      await this.#refreshing;
    } finally {
      this.#refreshing = null;
    }
  }

  /** Asks the session what it holds, and opens nothing; what would keep it here is in `blockers` afterwards. As `refresh`. */
  async look(askWithinMs: number, signal: AbortSignal, slots: MoveSlots): Promise<void> {
    if (this.session.replication || this.session.phase === 'closed') return;
    await this.#ask(askWithinMs, signal, slots);
    if (this.#state !== null) this.#pins = this.#pinsOf(this.#state);
  }

  #pinsOf(state: SessionState): readonly Pin[] {
    const listening = this.#deps.listenersStay === true ? state.listening : [];
    return [...pinsOf(state), ...listening.map((detail): Pin => ({ reason: 'listening', detail }))];
  }

  async #refresh(askWithinMs: number, signal: AbortSignal, slots: MoveSlots): Promise<void> {
    if (!this.current || this.#state === null) await this.#ask(askWithinMs, signal, slots);
    const state = this.#state;
    if (state === null || this.session.clientStream.pins.length > 0) return;
    const pins = this.#pinsOf(state);
    if (pins.length > 0) {
      this.#pins = pins;
      return;
    }
    try {
      this.#pins = await slots.open(() => this.#give(state, signal));
    } catch (error) {
      if (signal.aborted) throw error;
      this.#pins = [refusal(error)];
    }
  }

  /** Waits for a quiet moment without a slot, as a transaction may take its time; asks with one. */
  async #ask(withinMs: number, signal: AbortSignal, slots: MoveSlots): Promise<void> {
    const { clock } = this.#deps.context;
    const deadline = clock.monotonicMs() + withinMs;
    for (let attempt = 1; ; attempt++) {
      const left = (): number => Math.max(1, deadline - clock.monotonicMs());
      await this.#answered(null, left(), signal);
      const refused = await slots.ask(() => this.#askOnce(left(), signal));
      if (refused === null) return;
      // Busy again when its turn came; or a cancel meant for the client's last statement came late.
      const again = refused === BUSY || (refused === QUERY_CANCELED && attempt === 1);
      if (!again) {
        this.#unreadable(`the question was answered with ${refused}`);
        return;
      }
    }
  }

  /** Returns null where the question was answered, else the SQLSTATE it was refused with, or BUSY. */
  async #askOnce(withinMs: number, signal: AbortSignal): Promise<string | null> {
    const names = (): string =>
      stateQuery(new Set([...this.session.clientStream.settingNames, ...this.#deps.settingNames()]));
    try {
      // A session that has just been quiet is so again soon, or is in a transaction.
      await this.#answered(null, Math.min(withinMs, QUIET_WITHIN_MS), signal);
    } catch (error) {
      if (signal.aborted || withinMs <= QUIET_WITHIN_MS) throw error;
      return BUSY;
    }
    const first = await this.#answered(names, withinMs, signal);
    if (first.sqlState !== null) return first.sqlState;
    const state = readState(first.rows);
    const details = detailQuery(state);
    const second = details === null ? null : await this.#answered(() => details, withinMs, signal);
    if (second !== null && second.sqlState !== null) return second.sqlState;
    if (second !== null && second.changes !== first.changes) return BUSY;
    this.#state = second === null ? state : readState([...first.rows, ...second.rows]);
    this.#askedAtChange = first.changes;
    this.#pins = [];
    this.session.clientStream.pinnedWhenAsked = pinsOf(this.#state).length > 0;
    return null;
  }

  /** Rejects with `cancelled` where the time is up or the signal fires. */
  async #answered(sql: (() => string) | null, withinMs: number, signal: AbortSignal): Promise<StateAnswer> {
    const { answer, giveUp } = this.session.ask(sql);
    const timer = new AbortController();
    this.#deps.context.clock.sleep(withinMs, AbortSignal.any([signal, timer.signal])).then(giveUp, giveUp);
    try {
      return await answer;
    } finally {
      timer.abort();
    }
  }

  #unreadable(detail: string): void {
    this.#state = null;
    this.#askedAtChange = -1;
    this.#pins = [{ reason: 'state-unreadable', detail }];
  }

  /** Opens the connection where there is none, and gives it the state. */
  async #give(state: SessionState, signal: AbortSignal): Promise<Pin[]> {
    if (this.#warm?.alive === true && this.#given !== null) {
      const from = this.#given;
      this.#given = null;
      try {
        const pins = await replayChange(this.#warm, from, state);
        if (pins.length === 0) this.#given = state;
        return pins;
      } catch (error) {
        if (signal.aborted) throw error;
        // Lost meanwhile: open another.
      }
    }
    this.#dropWarm();
    const warm = await this.#open(signal);
    if (this.#abandoned) {
      warm.discard();
      throw new UnderstudyError('cancelled', 'the move was given up');
    }
    this.opened += 1;
    this.#warm = warm;
    const pins = await replayState(warm, state);
    if (pins.length === 0) this.#given = state;
    return pins;
  }

  async #open(signal: AbortSignal): Promise<WarmConnection> {
    const { settings } = this.#deps.context;
    const { accepted } = this.session;
    for (let attempt = 1; ; attempt++) {
      try {
        const backend = await openBackend(
          this.#to.endpoint,
          {
            user: accepted.user,
            database: this.#to.database,
            parameters: accepted.parameters,
            protocolMinor: accepted.protocolMinor,
          },
          accepted.credentials,
          { connectTimeoutMs: settings.connectTimeoutMs, signal },
        );
        return new WarmConnection(backend, {
          frameBytesMax: settings.frameBytesMax,
          replyBytesMax: settings.stateBytesMax,
        });
      } catch (error) {
        const again =
          error instanceof UnderstudyError &&
          error.retryable &&
          attempt < settings.warmAttempts &&
          !signal.aborted;
        if (!again) throw error;
      }
    }
  }

  /** The connection to take over; opened again from the known state where it was lost. Null where that failed. */
  async take(signal: AbortSignal): Promise<WarmConnection | null> {
    if (!this.current || this.#state === null || this.blockers.length > 0) return null;
    if (!this.warm) {
      try {
        const pins = await this.#give(this.#state, signal);
        if (pins.length > 0) return null;
      } catch {
        return null;
      }
    }
    const warm = this.#warm;
    this.#warm = null;
    this.#given = null;
    return warm?.alive === true ? warm : null;
  }

  /** Has the session asked again by the next `refresh`; a warm connection is kept and brought up to date then. */
  forget(): void {
    this.#state = null;
    this.#askedAtChange = -1;
    this.#pins = [];
  }

  /** What the session held when it was asked, and at which of its changes; null where it was not. */
  get asked(): AskedState | null {
    return this.#state === null ? null : { state: this.#state, change: this.#askedAtChange };
  }

  /** The session has just left this connection, which holds what it was asked for: for the way back. */
  keep(left: WarmConnection, asked: AskedState): void {
    this.#dropWarm();
    this.#warm = left;
    this.#given = asked.state;
    this.#state = asked.state;
    this.#askedAtChange = asked.change;
    this.#pins = [];
  }

  /** Final. */
  discard(): void {
    this.#abandoned = true;
    this.#dropWarm();
    this.forget();
  }

  #dropWarm(): void {
    this.#warm?.discard();
    this.#warm = null;
    this.#given = null;
  }
}

const QUERY_CANCELED = '57014';
const BUSY = 'busy';
const QUIET_WITHIN_MS = 50;

function refusal(error: unknown): Pin {
  const reason: BlockerReason = 'destination-refuses';
  if (error instanceof BackendRefused) return { reason, detail: error.sqlState };
  return { reason, detail: error instanceof Error ? error.message : String(error) };
}

/** Names come undecoded; what isn't ASCII is shown by its bytes. */
function printable(raw: string): string {
  return raw.replaceAll(/[^\x20-\x7e]/g, (char) => `\\x${char.charCodeAt(0).toString(16).padStart(2, '0')}`);
}
