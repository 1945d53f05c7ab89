/**
 * The gate in front of the database: holds its sessions at their boundaries, has them moved, and lets them go on. There is
 * one, whatever the subset that is switched: what an open transaction is yet to touch is not known.
 *
 * Where subsets are on different sides after a switch, no session is moved by it: each goes where its statements lead it
 * (session-routing.ts). Where they meet on one side, the sessions that are elsewhere are moved.
 *
 * States:
 * - open: sessions are served; new ones come in.
 * - closing: every session goes on to its next boundary; new connections wait.
 * - closed: all sessions are at rest and warm. Only in this state may the route change.
 * - switching: sessions take their warm connections.
 * - suspended: it is not known which side serves; statements and connections are refused with a reason.
 *
 *   open → closing → closed ⇄ switching          closing, closed → open (release, or any failure of the hold)
 *   open ⇄ suspended
 *
 * Invariants:
 * - While the gate is not open no session is added, so `closed` stays true for all there are.
 * - Nothing is forwarded to the old side once `switching` was entered.
 * - A hold that fails leaves the gate open and every client on its old side, its bytes forwarded in order.
 */
import { setMaxListeners } from 'node:events';
import { UnderstudyError, asUnderstudyError } from '../core/errors.js';
import { WHOLE_DATABASE, type Side, type SubsetId } from '../core/ports.js';
import type {
  HoldOptions,
  HoldReport,
  PrepareReport,
  Route,
  SessionBlocker,
  StallReport,
  SubsetRoute,
  SwitchReport,
} from '../core/traffic-ports.js';
import { StateCell } from '../core/state-machine.js';
import { Drain, holdAborted } from './drain.js';
import type { GateParty } from './gate-party.js';
import { Limiter } from './limiter.js';
import type { Router } from './router.js';
import type { SessionContext } from './session/session-context.js';
import { SessionMove, type MoveSlots, type MoveTarget } from './session/session-move.js';
import type { Session } from './session/session.js';
import { NO_STALL, stallReport } from './stall.js';
import { NotAdmitted, WaitingRoom, type Refusal } from './waiting-room.js';

export type GateState = 'open' | 'closing' | 'closed' | 'switching' | 'suspended';

export interface GateDeps {
  readonly context: SessionContext;
  readonly router: Router;
  readonly sessions: () => readonly Session[];
  readonly target: (side: Side) => MoveTarget;
  readonly settingNames: () => readonly string[];
  readonly statefulFunctions: () => readonly string[];
  /** Pooled clients, which are moved as a body. */
  readonly party: GateParty;
  /** Told the waits, in milliseconds, whenever the gate opens. */
  readonly onStalls?: (waitsMs: readonly number[]) => void;
}

/** While clients are served, the servers' time is theirs: connections are opened few at once, and with rests. */
const SERVED_OPEN_MAX = 2;
const REST_MAX_MS = 50;
/** Only to be told of: a session that is busy for longer is left out. */
const LOOK_WITHIN_MS = 1_000;

const PINNED_MESSAGE =
  'terminating connection because the database was switched over and this session holds what can’t be moved';

export class Gate {
  readonly #deps: GateDeps;
  readonly #moves = new Map<Session, SessionMove>();
  #movingTo: Side | null = null;
  /** While sessions are served, few are asked at once: a question stands in front of their next statement. Behind the
   *  gate, where they wait, what is left to do is done as fast as it can be. */
  readonly #servedSlots: MoveSlots;
  readonly #heldSlots: MoveSlots;
  readonly #waiting: WaitingRoom;
  #refusal: Refusal | null = null;
  readonly #drain: Drain;
  readonly #state: StateCell<GateState>;

  constructor(deps: GateDeps) {
    this.#deps = deps;
    this.#waiting = new WaitingRoom(deps.context.clock);
    this.#drain = new Drain(deps);
    deps.party.onProgress = () => this.#partyProgress();
    const { askConcurrency, warmConcurrency } = deps.context.settings;
    const gentle = { clock: deps.context.clock, restMaxMs: REST_MAX_MS };
    this.#servedSlots = {
      ask: new Limiter(askConcurrency, gentle).run,
      open: new Limiter(Math.min(SERVED_OPEN_MAX, warmConcurrency), gentle).run,
    };
    const ask = new Limiter(warmConcurrency).run;
    this.#heldSlots = { ask, open: new Limiter(warmConcurrency).run };
    this.#state = new StateCell<GateState>(
      'gate',
      {
        open: ['closing', 'suspended'],
        closing: ['closed', 'open'],
        closed: ['switching', 'open'],
        switching: ['closed'],
        suspended: ['open'],
      },
      'open',
      (from, to) => deps.context.log.debug({ from, to }, 'gate'),
    );
  }

  get state(): GateState {
    return this.#state.current;
  }

  get waiting(): number {
    return this.#waiting.size;
  }

  /** Sessions that could be moved as they are. */
  get warm(): number {
    return [...this.#moves.values()].filter((move) => move.warm).length;
  }

  /** Whether what ends a prepared transaction may still go to the present side. */
  get mayPassHeld(): boolean {
    return this.#state.is('closing', 'closed') && this.#refusal === null;
  }

  /** Resolves once a new connection may open its backend. Throws {@link NotAdmitted}; `cancelled`. */
  async admission(gone: AbortSignal): Promise<void> {
    if (this.#refusal !== null) throw new NotAdmitted(this.#refusal);
    if (!this.#state.is('open')) await this.#waiting.wait(gone);
  }

  /** A session came in through the open gate. One that comes between prepare and hold is warmed at once. */
  opened(session: Session): void {
    if (this.#movingTo === null || !this.#state.is('open')) return;
    const { prepareTimeoutMs } = this.#deps.context.settings;
    this.#moveOf(session, this.#movingTo)
      .refresh(prepareTimeoutMs, new AbortController().signal, this.#servedSlots)
      .catch(() => undefined);
  }

  closed(session: Session): void {
    this.#moves.get(session)?.discard();
    this.#moves.delete(session);
    this.#drain.progress();
  }

  #partyProgress(): void {
    if (this.#refusal !== null) this.#deps.party.failHeld(this.#refusal.sqlState, this.#refusal.message);
    this.#drain.progress();
  }

  atRest(session: Session): void {
    if (this.#refusal !== null) session.failHeld(this.#refusal.sqlState, this.#refusal.message);
    this.#drain.progress();
  }

  #moveOf(session: Session, to: Side): SessionMove {
    const known = this.#moves.get(session);
    if (known !== undefined) return known;
    const { context, settingNames, target } = this.#deps;
    const move = new SessionMove(session, target(to), { context, settingNames });
    this.#moves.set(session, move);
    return move;
  }

  /** Warm connections to one side are of no use for the other. */
  #aim(subsets: readonly SubsetId[], to: Side): void {
    if (subsets.some((subset) => this.#deps.router.route(subset).side === to)) {
      throw new UnderstudyError('already-cut-over', `sessions are on the ${to} already`);
    }
    if (this.#movingTo !== to) this.discardWarm();
    this.#movingTo = to;
    this.#deps.context.text.setStatefulNames(this.#deps.statefulFunctions());
  }

  async prepare(subsets: readonly SubsetId[], to: Side, signal: AbortSignal): Promise<PrepareReport> {
    if (!this.#state.is('open')) throw this.#busy();
    // Every session waits on it, and Node takes more than ten for a leak.
    setMaxListeners(0, signal);
    this.#aim(subsets, to);
    if (!this.#deps.router.united(subsets, to)) return this.#prepareParting(to, signal);
    await this.#deps.party.settled();
    if (!this.#state.is('open')) throw this.#busy();
    const { settings } = this.#deps.context;
    const sessions = this.#deps.sessions();
    const moves = sessions
      .filter((session) => session.side !== to)
      .map((session) => this.#moveOf(session, to));
    await Promise.all(
      moves.map(async (move) => {
        move.forget();
        await move.refresh(settings.prepareTimeoutMs, signal, this.#servedSlots).catch(() => undefined);
      }),
    );
    const pooled = await this.#deps.party.prepare(to, signal);
    if (signal.aborted) throw asUnderstudyError(signal.reason, 'cancelled', 'preparing the sessions');
    const present = moves.filter((move) => move.session.phase !== 'closed');
    const there = sessions.filter((session) => session.side === to && session.phase !== 'closed').length;
    return {
      sessions: present.length + there + pooled.sessions,
      warm: present.filter((move) => move.warm).length + there + pooled.warm,
      stale: present.filter((move) => !move.warm && move.blockers.length === 0).length + pooled.stale,
      blockers: [...present.flatMap((move) => move.blockers), ...pooled.blockers],
      binaryTypes: this.#deps.context.binaryTypes.of(to === 'source' ? 'destination' : 'source'),
    };
  }

  /** No session is moved by the switch, so nothing is to be made ready; but some can't go anywhere afterwards. */
  async #prepareParting(to: Side, signal: AbortSignal): Promise<PrepareReport> {
    this.#movingTo = null;
    const { context, settingNames, target, sessions } = this.#deps;
    const deps = { context, settingNames, listenersStay: true };
    const looks = sessions()
      .filter((session) => !session.replication)
      .map((session) => new SessionMove(session, target(to), deps));
    await Promise.all(
      looks.map((look) => look.look(LOOK_WITHIN_MS, signal, this.#servedSlots).catch(() => undefined)),
    );
    await this.#deps.party.prepareParting(to, signal);
    if (signal.aborted) throw asUnderstudyError(signal.reason, 'cancelled', 'asking the sessions');
    const present = looks.filter((look) => look.session.phase !== 'closed');
    return {
      sessions: present.length + this.#deps.party.size,
      warm: present.length + this.#deps.party.size,
      stale: 0,
      blockers: [],
      bound: present.flatMap((look) => look.blockers),
    };
  }

  discardWarm(): void {
    for (const move of this.#moves.values()) move.discard();
    this.#moves.clear();
    this.#movingTo = null;
    const { party, router } = this.#deps;
    if (!router.armed) party.discardWarm(router.get(WHOLE_DATABASE)?.side);
  }

  /** As `TrafficControl` says. */
  untilQuiet(withinMs: number, signal: AbortSignal): Promise<void> {
    return this.#drain.untilQuiet(withinMs, signal);
  }

  /**
   * 1. Refuse early what can't succeed: pinned sessions, too many to be asked again.
   * 2. Close: every session goes on to its boundary. Wait for the last, to the drain deadline.
   * 3. Ask again the sessions that changed since they were asked, and warm those that came late.
   * 4. Closed. Any failure on the way opens the gate again.
   */
  async hold(subsets: readonly SubsetId[], to: Side, options: HoldOptions): Promise<HoldReport> {
    if (!this.#state.is('open')) throw this.#busy();
    this.#aim(subsets, to);
    const parting = !this.#deps.router.united(subsets, to);
    if (parting) this.#movingTo = null;
    else this.#refuseEarly(to, options);
    const { clock } = this.#deps.context;
    const startedMs = clock.monotonicMs();
    this.#state.move('closing');
    try {
      for (const session of this.#deps.sessions()) session.hold();
      this.#deps.party.hold();
      await this.#drain.drain(options);
      const drainedMs = clock.monotonicMs();
      if (!parting) {
        const [pooled] = await Promise.all([
          this.#deps.party.refresh(to, options.signal),
          this.#refreshStale(to, options.signal),
        ]);
        this.#refuseUnready(to, options, pooled);
      }
      if (options.signal.aborted) throw holdAborted(options.signal);
      this.#state.move('closed');
      return {
        drainMs: drainedMs - startedMs,
        refreshMs: clock.monotonicMs() - drainedMs,
        sessions: this.#deps.sessions().length + this.#deps.party.size,
      };
    } catch (error) {
      this.#open();
      throw asUnderstudyError(error, 'internal', 'holding the sessions');
    }
  }

  #refuseEarly(to: Side, options: HoldOptions): void {
    if (options.signal.aborted) throw holdAborted(options.signal);
    const moves = this.#deps
      .sessions()
      .filter((session) => session.side !== to)
      .map((session) => this.#moveOf(session, to));
    const pinned = moves.filter((move) => move.current && move.blockers.length > 0);
    if (options.onPinned === 'refuse' && pinned.length > 0) {
      throw pinnedError(pinned.flatMap((move) => move.blockers));
    }
    this.#refuseTooMany(moves.filter((move) => !move.warm && !pinned.includes(move)).length);
  }

  #refuseTooMany(stale: number): void {
    const { staleSessionsMax } = this.#deps.context.settings;
    if (stale <= staleSessionsMax) return;
    throw new UnderstudyError(
      'warm-failed',
      `${stale} sessions would have to be prepared behind the closed gate; at most ${staleSessionsMax} may`,
      { details: { stale, staleSessionsMax }, advice: 'Prepare again, right before the hold.' },
    );
  }

  async #refreshStale(to: Side, signal: AbortSignal): Promise<void> {
    const { settings } = this.#deps.context;
    const moves = this.#deps
      .sessions()
      .filter((session) => session.side !== to)
      .map((session) => this.#moveOf(session, to))
      .filter((move) => !move.warm && !move.session.replication && !move.session.backendLost);
    this.#refuseTooMany(moves.length);
    await Promise.all(
      moves.map((move) =>
        move.refresh(settings.askTimeoutMs, signal, this.#heldSlots).catch(() => undefined),
      ),
    );
    if (signal.aborted) throw holdAborted(signal);
  }

  #refuseUnready(to: Side, options: HoldOptions, pooled: readonly SessionBlocker[]): void {
    const unready = [...this.#moves.values()].filter(
      (move) => !move.warm && move.session.phase !== 'closed' && move.session.side !== to,
    );
    if (unready.length + pooled.length === 0 || options.onPinned === 'close') return;
    const blockers = [...unready.flatMap((move) => move.blockers), ...pooled];
    const refused = blockers.some((blocker) => blocker.reason === 'destination-refuses');
    if (blockers.length > 0 && !refused) throw pinnedError(blockers);
    throw new UnderstudyError(
      'warm-failed',
      `${unready.length + pooled.length} sessions have no connection on the new side`,
      {
        details: { blockers, sessions: unready.map((move) => move.session.id) },
      },
    );
  }

  /**
   * Every session that is not on the route's side yet takes its warm connection; one that has none is closed. Where other
   * subsets stay on the other side, sessions stay where they are, and are routed from now on. `along` are of the same side.
   */
  async switchTo(subset: SubsetId, route: Route, along: readonly SubsetRoute[] = []): Promise<SwitchReport> {
    this.#state.move('switching');
    const { context, router } = this.#deps;
    const signal = AbortSignal.timeout(context.settings.switchTimeoutMs);
    setMaxListeners(0, signal);
    // One may still be ending a prepared transaction.
    await this.#drain.rested(context.settings.switchTimeoutMs, new AbortController().signal);
    for (const each of [{ subset, route }, ...along]) router.set(each.subset, each.route);
    if (router.armed) {
      this.#routeSessions(true);
      this.#state.move('closed');
      return { moved: 0, closed: 0 };
    }
    let moved = 0;
    let closed = 0;
    await Promise.all(
      this.#deps.sessions().map(async (session) => {
        if (session.side === route.side) return;
        const move = this.#moves.get(session);
        const warm = session.atRest && move !== undefined ? await this.#takeWarm(move, signal) : null;
        if (session.phase === 'closed') {
          warm?.discard();
        } else if (warm !== null && session.atRest) {
          session.swap(warm, route.side);
          moved += 1;
        } else {
          warm?.discard();
          session.terminate('57P01', PINNED_MESSAGE);
          closed += 1;
        }
      }),
    );
    this.#routeSessions(false);
    const pooled = this.#deps.party.switchTo(route.side);
    this.discardWarm();
    this.#state.move('closed');
    return { moved: moved + pooled.moved, closed: closed + pooled.closed };
  }

  /** Statements that name functions which change what a session holds must be known to do so, before any is looked at. */
  #routeSessions(wanted: boolean): void {
    if (wanted) this.#deps.context.text.setStatefulNames(this.#deps.statefulFunctions());
    for (const session of this.#deps.sessions()) session.route(wanted);
    this.#deps.party.route(wanted);
  }

  /** Functions that change what a session holds may have been called by statements that were not known to call one. */
  statefulFunctionsChanged(): void {
    if (!this.#deps.router.armed) return;
    this.#deps.context.text.setStatefulNames(this.#deps.statefulFunctions());
    for (const session of this.#deps.sessions()) session.clientStream.changes += 1;
    this.#deps.party.statesUnsure();
  }

  /** Routes were set without a switch. */
  routesChanged(): void {
    this.#routeSessions(this.#deps.router.armed);
  }

  async #takeWarm(move: SessionMove, signal: AbortSignal): ReturnType<SessionMove['take']> {
    // What the old side has notified arrives before the answer to one more question.
    if (move.listening && !move.session.backendLost) {
      const { answer, giveUp } = move.session.ask(() => 'SELECT 1');
      signal.addEventListener('abort', giveUp, { once: true });
      await answer.catch(() => undefined);
    }
    return await move.take(signal);
  }

  release(): StallReport {
    if (!this.#state.is('closing', 'closed')) return NO_STALL;
    return stallReport(this.#open());
  }

  #open(): number[] {
    this.#refusal = null;
    this.#state.move('open');
    const waits: number[] = [];
    for (const session of this.#deps.sessions()) {
      const wait = session.release();
      if (wait !== null) waits.push(wait);
    }
    waits.push(...this.#deps.party.release(), ...this.#waiting.admit());
    this.#deps.onStalls?.(waits);
    return waits;
  }

  /** Answers what is held with an error, and goes on doing so until the release. */
  failHeld(sqlState: string, message: string): void {
    if (!this.#state.is('closing', 'closed')) return;
    this.#refuse({ sqlState, message });
  }

  /** Which side serves is not known: statements and connections are refused until `resume`. */
  suspend(sqlState: string, message: string): void {
    if (this.#state.is('closing', 'closed', 'switching')) throw this.#busy();
    if (this.#state.is('open')) {
      this.#state.move('suspended');
      for (const session of this.#deps.sessions()) session.hold();
      this.#deps.party.hold();
    }
    this.#refuse({ sqlState, message });
  }

  resume(): void {
    if (this.#state.is('suspended')) this.#open();
  }

  #refuse(refusal: Refusal): void {
    this.#refusal = refusal;
    for (const session of this.#deps.sessions()) session.failHeld(refusal.sqlState, refusal.message);
    this.#deps.party.failHeld(refusal.sqlState, refusal.message);
    this.refuseWaiting(refusal);
  }

  /** Turns away the connections that wait to be let in. */
  refuseWaiting(refusal: Refusal): void {
    this.#waiting.refuse(refusal);
  }

  #busy(): UnderstudyError {
    return new UnderstudyError('busy', `the gate is ${this.#state.current}`);
  }
}

function pinnedError(blockers: readonly SessionBlocker[]): UnderstudyError {
  const named = blockers
    .slice(0, 5)
    .map((blocker) => `session ${blocker.sessionId}: ${blocker.reason} ${blocker.detail}`);
  return new UnderstudyError('session-pinned', `sessions hold what can’t be moved: ${named.join('; ')}`, {
    details: { blockers },
    advice: 'Have these clients let go of it, or let the switch close their sessions.',
  });
}
