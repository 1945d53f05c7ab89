/**
 * One client and its one backend: relays both ways, and can be held, asked, moved and closed.
 *
 * States:
 * - serving: bytes pass as they come.
 * - draining: the gate is closing. The session goes on to its next boundary: everything sent is answered, no pipeline
 *   is half sent, no COPY and no transaction is open, no frame is half passed.
 * - held: at that boundary. What the client sends is kept, in order; past a bound its socket is no longer read.
 * - answering: statements are answered here instead of by the server (local-answers.ts): a cancelled one that was
 *   held, all of them while an outcome is in doubt, or those of a transaction the proxy rolled back.
 * - closed: final.
 *
 *   serving ⇄ draining → held → serving          held ⇄ answering → serving          any → closed
 *
 * Invariants:
 * - Bytes of one client are never reordered, and each goes to exactly one backend.
 * - A session is moved only at rest (held, or answering with an idle backend), so that nothing is forwarded to the
 *   old side after it, and no answer of the old side is cut.
 * - Writing to one peer never outruns it: a full socket stops the reading of the other.
 *
 * Failures: a peer's protocol violation closes this session alone, with 08P01. A lost backend closes it as PostgreSQL
 * would, except at rest, where the session may be about to leave that backend: then it is closed at the release.
 */
import { UnderstudyError } from '../../core/errors.js';
import type { Side } from '../../core/ports.js';
import { encodeErrorResponse } from '../../wire/postgres/messages.js';
import type { Backend } from '../backend/backend.js';
import type { AcceptedClient } from '../login/client-handshake.js';
import type { ClientStream } from './client-stream.js';
import type { AnswerMode } from './local-answers.js';
import type { Question } from './own-questions.js';
import { ROLLED_BACK } from './server-stream.js';
import { SessionAnswers, type Answered, type AnswerOptions } from './session-answers.js';
import { SessionBackend } from './session-backend.js';
import { SessionCancels } from './session-cancels.js';
import type { AdoptedClient, SessionContext, SessionInfo } from './session-context.js';
import { SessionInput } from './session-input.js';
import { isReplication, sessionPhase, type SessionPhase } from './session-phases.js';
import { SessionSockets } from './session-sockets.js';
import { SessionSubsets } from './session-subsets.js';
import type { SessionActivity } from './session-watch.js';
import { SessionWire } from './session-wire.js';
import { sideMoves } from '../subset/subset-moves.js';
import type { WarmConnection } from '../backend/warm-connection.js';

/** To whom a session reports. */
export interface SessionEvents {
  /** It has come to rest, or lost its backend there. */
  readonly onAtRest: (session: Session) => void;
  readonly onClosed: (session: Session) => void;
}

export class Session {
  readonly id: number;
  readonly accepted: AcceptedClient;
  /** A replication connection: its protocol is not that of statements, so it can't be held or moved. */
  readonly replication: boolean;
  readonly #context: SessionContext;
  readonly #events: SessionEvents;
  readonly #sockets: SessionSockets;
  readonly #wire: SessionWire;
  readonly #input: SessionInput;
  readonly #answers: SessionAnswers;
  readonly #cancels: SessionCancels;
  readonly #server: SessionBackend;
  readonly #subsets: SessionSubsets;
  readonly #phase = sessionPhase();
  #gateClosed = false;
  /** The proxy is rolling the client's transaction back. */
  #rollingBack = false;
  /** The client has closed its sending side. */
  #clientEnded = false;

  constructor(
    id: number,
    accepted: AcceptedClient,
    backend: Backend,
    side: Side,
    context: SessionContext,
    events: SessionEvents,
  ) {
    this.id = id;
    this.accepted = accepted;
    const replication = isReplication(accepted.parameters.get('replication'));
    this.replication = replication;
    this.#context = context;
    this.#events = events;
    const sockets = new SessionSockets(accepted.socket, backend, {
      onClientData: (chunk) => this.#onClientData(chunk),
      onClientGone: () => this.#close(null),
      onClientEnd: () => this.#clientEnds(),
      onBackendData: (chunk) => this.#onBackendData(chunk),
      onBackendGone: () => this.#backendGone(),
      onLeft: (left) => context.left.add(left),
    });
    const askable = (): boolean => this.#askable();
    const wire = new SessionWire({ id, accepted, replication, began: side, context, sockets, askable });
    const { clientStream } = wire;
    const violated = (error: unknown): void => this.#violation(error);
    const closed = (): boolean => this.#phase.is('closed');
    const input = new SessionInput({ context, sockets, clientStream, violated, closed });
    this.#sockets = sockets;
    this.#wire = wire;
    this.#input = input;
    this.#server = new SessionBackend(side, wire, sockets, context.settings);
    this.#answers = new SessionAnswers({
      context,
      held: input.held,
      send: (frame) => sockets.toClient(frame),
      flagsOf: (statement) => wire.log.flagsOf(statement),
    });
    this.#cancels = new SessionCancels(wire, sockets, context);
    this.#subsets = new SessionSubsets({
      context,
      wire,
      sockets,
      held: input.held,
      moves: (routing) => sideMoves(this, context, routing),
      side: () => this.side,
      closed,
      mayBegin: () => this.#phase.is('serving') || (this.#phase.is('draining') && !wire.atBoundary),
      clientEnded: () => this.#clientEnded,
      pass: (chunk) => void input.walk(chunk, false),
      terminate: (sqlState, message) => this.terminate(sqlState, message),
      settle: () => this.#settle(),
    });
    if (context.routing?.router.armed === true) this.route(true);
  }

  get phase(): SessionPhase {
    return this.#phase.current;
  }

  get side(): Side {
    return this.#server.side;
  }

  get backend(): Backend {
    return this.#sockets.backend;
  }

  get clientStream(): ClientStream {
    return this.#wire.clientStream;
  }

  /** Nothing of it is in flight, and nothing new will be before `release`. */
  get atRest(): boolean {
    return this.#phase.is('held', 'closed') || (this.#phase.is('answering') && !this.#rollingBack);
  }

  get backendLost(): boolean {
    return this.#server.lost;
  }

  /** Outside a transaction with nothing in flight. */
  get idle(): boolean {
    return this.#mayRest();
  }

  /** What of it a closing gate would have to wait for: a transaction, or a statement. */
  get open(): 'transaction' | 'statement' | null {
    if (this.replication || this.#mayRest()) return null;
    return this.#wire.inTransactionMs === null ? 'statement' : 'transaction';
  }

  /** For the watch over what lasts too long (session-watch.ts). */
  get activity(): SessionActivity {
    const exempt = this.replication || !this.#phase.is('serving', 'draining');
    return exempt ? 'exempt' : this.#wire.activity;
  }

  /** As {@link activity}: while something runs, what was answered counts; else what the client has sent. */
  get progress(): number {
    const { tracker } = this.#wire;
    return tracker.awaitingReady ? tracker.answered : this.#sockets.bytesFromClient;
  }

  get info(): SessionInfo {
    const { tracker, inTransactionMs } = this.#wire;
    return {
      id: this.id,
      user: this.accepted.user,
      applicationName: this.accepted.parameters.get('application_name') ?? '',
      side: this.side,
      phase: this.#phase.current,
      transactionStatus: String.fromCharCode(tracker.status),
      busy: !tracker.settled,
      inTransactionMs,
      heldBytes: this.#input.held.length,
      backendLost: this.backendLost,
      bytesFromClient: this.#sockets.bytesFromClient,
      bytesToClient: this.#sockets.bytesToClient,
    };
  }

  /** Greets the client with `greeting` (up to ReadyForQuery) and begins to relay. */
  start(greeting: Buffer): void {
    this.#wire.knows(this.backend.parameters);
    this.#sockets.start(greeting, this.accepted.leftover);
  }

  /** The client was served from a pool before: takes over what it has prepared. Before `start`. */
  adopt(before: AdoptedClient): void {
    this.#wire.adopt(before);
    this.#server.onMoved = before.onMoved;
  }

  /** Ends the session with a FATAL error in the client's protocol. */
  terminate(sqlState: string, message: string): void {
    this.#close(encodeErrorResponse({ severity: 'FATAL', sqlState, message }));
  }

  #close(last: Buffer | null): void {
    if (this.#phase.is('closed')) return;
    this.#phase.move('closed');
    this.#wire.closed();
    this.#sockets.close(last, {
      cut: this.#wire.serverStream.walker.insideForwardedFrame,
      idle: this.#wire.atBoundary,
    });
    this.#input.held.clear();
    this.#answers.drop();
    this.#subsets.end();
    this.#wire.own.lost('the session was closed');
    this.#events.onClosed(this);
  }

  #onClientData(chunk: Buffer): void {
    switch (this.#phase.current) {
      case 'serving':
      case 'draining':
        // `#settle` sends on what is to be routed.
        if (this.#input.held.length > 0 || this.#subsets.routed) this.#input.held.keep(chunk);
        else this.#input.walk(chunk, true);
        break;
      case 'held':
        this.#input.held.keep(chunk);
        this.#lookAtHeld();
        break;
      case 'answering':
        this.#input.held.keep(chunk);
        this.#answerHeld();
        break;
      case 'closed':
        return;
    }
    this.#settle();
  }

  /** Some messages need not or must not wait: a goodbye, and the end of a prepared transaction. */
  #lookAtHeld(): void {
    if (this.#input.saysGoodbye) {
      this.#close(null);
      return;
    }
    if (this.#subsets.routed || !this.#input.endsPreparedTransaction || !this.#context.mayPassHeld()) return;
    this.#phase.move('draining');
    this.#wire.serverStream.whole = false;
    this.#input.pump();
  }

  #onBackendData(chunk: Buffer): void {
    try {
      this.#wire.serverStream.walker.walk(chunk);
    } catch (error) {
      this.#violation(error);
      return;
    }
    this.#settle();
  }

  #backendGone(): void {
    if (this.#phase.is('closed') || this.backendLost) return;
    this.#server.gone();
    if (this.atRest) this.#events.onAtRest(this);
    else this.#closeForLostBackend();
  }

  #closeForLostBackend(): void {
    const left = this.clientStream.terminated || this.#clientEnded;
    this.#close(left ? null : this.#server.lastWords(this.atRest));
  }

  #violation(error: unknown): void {
    const known = error instanceof UnderstudyError && error.code !== 'internal';
    this.#context.log.warn(
      { session: this.id, error: error instanceof Error ? error.message : String(error) },
      'a session was closed for a protocol violation',
    );
    this.terminate(known ? '08P01' : 'XX000', known ? error.message : 'internal error of the proxy');
  }

  #mayRest(): boolean {
    return this.#wire.atBoundary && !this.#subsets.midway;
  }

  /** After anything that may have settled something: goes on with what waited for that. */
  #settle(): void {
    if (this.#phase.is('closed')) return;
    if (this.#wire.followReady()) this.#cancels.ready();
    this.#cancels.settle();
    if (this.#phase.is('serving', 'draining')) this.#subsets.go();
    if (this.#phase.is('draining')) {
      const goesOn =
        !this.#subsets.routed && this.#input.held.length > 0 && !this.#wire.tracker.awaitingReady;
      if (goesOn && !this.#wire.atBoundary) this.#input.pump();
      if (this.#phase.is('draining') && this.#mayRest()) this.#rest();
    }
    this.#wire.own.questions.settle();
    if (this.#clientEnded && this.#phase.is('serving', 'draining') && this.#input.held.length === 0)
      this.#sockets.endServer();
    this.#wire.boundDepth();
  }

  /** As a server does, what was sent is answered before the connection is closed. */
  #clientEnds(): void {
    this.#clientEnded = true;
    if (this.#phase.is('held') && this.#input.held.length === 0) this.#close(null);
    else this.#settle();
  }

  #rest(): void {
    if (this.#clientEnded && this.#input.held.length === 0) {
      this.#close(null);
      return;
    }
    this.#phase.move('held');
    this.#wire.serverStream.whole = true;
    this.#input.holdPartialHeader();
    if (this.#subsets.setWanted() && !this.#gateClosed) {
      this.#serve();
      return;
    }
    this.#lookAtHeld();
    if (this.#phase.is('held')) this.#events.onAtRest(this);
  }

  /** Begins, or ceases, to give each of its statements a side; at once where it is at rest, else at its next boundary. */
  route(wanted: boolean): void {
    const present = this.#subsets.routed;
    this.#subsets.wanted = null;
    if (this.replication || wanted === present || this.#phase.is('closed')) return;
    const quiet = this.#mayRest() && this.#input.held.length === 0 && this.#subsets.atRest;
    if (this.atRest || quiet) {
      this.#input.holdPartialHeader();
      this.#subsets.set(wanted);
      return;
    }
    this.#subsets.wanted = wanted;
    if (!this.#phase.is('serving')) return;
    this.#phase.move('draining');
    this.clientStream.draining = true;
    this.#settle();
  }

  /** As `swap`, in the middle of its client's work; the connection it leaves is returned for the way back. */
  swapAside(warm: WarmConnection, side: Side): WarmConnection | null {
    return this.#server.exchangeAside(warm, side);
  }

  /** The gate closes: the session goes on to its next boundary. */
  hold(): void {
    this.#gateClosed = true;
    if (!this.#phase.is('serving')) return;
    this.#phase.move('draining');
    this.clientStream.draining = true;
    this.#settle();
  }

  /** The gate opens. Returns how long this client has waited, in milliseconds; null where nothing of it was held. */
  release(): number | null {
    this.#gateClosed = false;
    if (this.#phase.is('answering')) {
      if (this.#answers.finish()) this.#answersDone();
      return null;
    }
    if (!this.#phase.is('draining', 'held')) return null;
    const { waitedMs } = this.#input.held;
    this.#serve();
    return waitedMs;
  }

  #serve(): void {
    if (this.backendLost) {
      this.#closeForLostBackend();
      return;
    }
    this.clientStream.draining = false;
    this.#phase.move('serving');
    this.#wire.serverStream.whole = false;
    // The gate opened before it came to its boundary: nothing new is begun until it has.
    if (this.#subsets.wanted !== null) {
      this.route(this.#subsets.wanted);
      if (!this.#phase.is('serving')) return;
    }
    if (!this.#subsets.routed) this.#input.pump();
    this.#settle();
  }

  /** Moves the session, at rest, to a connection that holds what it held. */
  swap(warm: WarmConnection, side: Side): void {
    if (this.#phase.is('closed')) {
      warm.discard();
      return;
    }
    if (!this.atRest) throw new UnderstudyError('internal', `moving a session that is ${this.phase}`);
    this.#server.exchange(warm, side);
  }

  /** Answers what is held, and what comes, with this error; until `release`. */
  failHeld(sqlState: string, message: string): void {
    if (this.#phase.is('held')) this.#answer('all', sqlState, message);
  }

  /**
   * The client asked to cancel what it is running. A statement that waits at the gate is answered here; one that runs
   * is cancelled on the backend, unless the proxy's own question stands in front of it: then after that.
   */
  cancelStatement(): void {
    if (this.#phase.is('held')) {
      if (this.#input.held.length > 0)
        this.#answer('once', '57014', 'canceling statement due to user request');
      return;
    }
    this.#cancels.want(() => this.#settle());
  }

  /**
   * The statement that runs is taking too long: its client is told so by the error that ends it. Does nothing while a
   * request is underway.
   */
  cancelLate(): void {
    if (this.#rollingBack || this.#cancels.underway) return;
    this.#cancels.tellLate();
    this.cancelStatement();
  }

  #answer(mode: AnswerMode, sqlState: string, message: string, options: AnswerOptions = {}): void {
    this.#subsets.givenUp();
    this.#answers.begin(mode, sqlState, message, options);
    this.#phase.move('answering');
    this.#answerHeld();
  }

  #answerHeld(): void {
    let answered: Answered;
    try {
      answered = this.#answers.answerHeld();
    } catch (error) {
      this.#violation(error);
      return;
    }
    if (answered === 'terminated') this.#close(null);
    else if (answered === 'done') this.#answersDone();
  }

  #answersDone(): void {
    if (this.#rollingBack) return;
    this.#answers.end();
    if (this.#gateClosed) {
      this.#phase.move('held');
      this.#subsets.setWanted();
      this.#lookAtHeld();
    } else {
      this.#serve();
    }
  }

  /**
   * The drain deadline has passed: ends what the session has open, and tells its client (session-rollback.ts). Resolves
   * once the backend is idle.
   */
  async rollBack(): Promise<void> {
    if (this.atRest) return;
    await this.#cancels.rollBack({
      phase: () => this.phase,
      midway: () => this.clientStream.walker.insideFrame || this.#subsets.midway,
      terminate: (sqlState, message) => this.terminate(sqlState, message),
      answer: (how) => {
        this.#rollingBack = true;
        this.#answer('transaction', ROLLED_BACK.sqlState, ROLLED_BACK.message, how);
      },
    });
    if (!this.#rollingBack) return;
    this.#rollingBack = false;
    if (this.#phase.is('closed')) return;
    this.#wire.serverStream.whole = true;
    if (this.#answers.done) this.#answersDone();
    if (this.atRest) this.#events.onAtRest(this);
  }

  /**
   * Runs one simple query of the proxy's own on the client's backend, at the session's next quiescent moment, and
   * swallows its answer; null only waits for that moment. An unnamed prepared statement, which a simple query
   * destroys, is made again behind it.
   */
  ask(sql: (() => string) | null): Question {
    const question = this.#wire.own.ask(sql);
    if (this.#phase.is('closed') || this.backendLost) this.#wire.own.questions.lost();
    return question;
  }

  #askable(): boolean {
    const over = this.#phase.is('closed') || this.backendLost || this.#clientEnded;
    return !over && !this.#rollingBack && this.#wire.askable;
  }
}
