/**
 * The preparation of one session's move to the other side: what it holds, and a warm connection that holds the same.
 *
 * States: unasked · asked(state, at change n) · warm(connection holds state) · blocked(pins). `fresh` says whether
 * nothing that could matter has happened since.
 *
 * Invariant: a connection is taken over only if it holds exactly what the session held when it was last asked, and
 * the session has sent nothing since that could have changed it.
 */
import { UnderstudyError } from '../core/errors.js';
import type { BlockerReason, SessionBlocker, Side } from '../core/ports.js';
import { BackendRefused, openBackend, type BackendEndpoint } from './backend.js';
import type { SessionContext } from './session-context.js';
import { pinsOf, readState, stateQuery, type Pin, type SessionState } from './session-state.js';
import type { Session } from './session.js';
import { replayChange, replayState } from './state-replay.js';
import { WarmConnection } from './warm-connection.js';

export interface MoveTarget {
  readonly side: Side;
  readonly endpoint: BackendEndpoint;
  readonly database: string;
}

export interface MoveDeps {
  readonly context: SessionContext;
  /** Names of custom settings known from elsewhere: function bodies, policies, role and database settings. */
  readonly settingNames: () => readonly string[];
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
   * way is in `blockers` afterwards. `slot` limits the connections opened at once. Rejects only where `signal` fired
   * or the session was not quiet within `askWithinMs` (`cancelled`).
   */
  async refresh(
    askWithinMs: number,
    signal: AbortSignal,
    slot: <T>(work: () => Promise<T>) => Promise<T>,
  ): Promise<void> {
    if (this.session.replication || this.session.phase === 'closed') return;
    while (this.#refreshing !== null) await this.#refreshing.catch(() => undefined);
    if (this.warm) return;
    this.#refreshing = this.#refresh(askWithinMs, signal, slot);
    try {
      await this.#refreshing;
    } finally {
      this.#refreshing = null;
    }
  }

  async #refresh(
    askWithinMs: number,
    signal: AbortSignal,
    slot: <T>(work: () => Promise<T>) => Promise<T>,
  ): Promise<void> {
    if (!this.current || this.#state === null) await this.#ask(askWithinMs, signal);
    const state = this.#state;
    if (state === null || this.session.clientStream.pins.length > 0) return;
    const pins = pinsOf(state);
    if (pins.length > 0) {
      this.#pins = pins;
      return;
    }
    try {
      this.#pins = await slot(() => this.#give(state, signal));
    } catch (error) {
      if (signal.aborted) throw error;
      this.#pins = [refusal(error)];
    }
  }

  async #ask(withinMs: number, signal: AbortSignal): Promise<void> {
    const { clock } = this.#deps.context;
    const names = (): string =>
      stateQuery(new Set([...this.session.clientStream.settingNames, ...this.#deps.settingNames()]));
    const { answer, giveUp } = this.session.ask(names);
    const timer = new AbortController();
    clock.sleep(withinMs, AbortSignal.any([signal, timer.signal])).then(giveUp, giveUp);
    try {
      const { rows, sqlState, changes } = await answer;
      if (sqlState !== null) {
        this.#unreadable(`the question was answered with ${sqlState}`);
        return;
      }
      this.#state = readState(rows);
      this.#askedAtChange = changes;
      this.#pins = [];
      this.session.clientStream.pinnedWhenAsked = pinsOf(this.#state).length > 0;
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
          { user: accepted.user, database: this.#to.database, parameters: accepted.parameters },
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

function refusal(error: unknown): Pin {
  const reason: BlockerReason = 'destination-refuses';
  if (error instanceof BackendRefused) return { reason, detail: error.sqlState };
  return { reason, detail: error instanceof Error ? error.message : String(error) };
}

/** Names come undecoded; what isn't ASCII is shown by its bytes. */
function printable(raw: string): string {
  return raw.replaceAll(/[^\x20-\x7e]/g, (char) => `\\x${char.charCodeAt(0).toString(16).padStart(2, '0')}`);
}
