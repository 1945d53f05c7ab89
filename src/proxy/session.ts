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
import type net from 'node:net';
import { UnderstudyError } from '../core/errors.js';
import type { Side } from '../core/ports.js';
import { FRONTEND, encodeErrorResponse, encodeParameterStatus } from '../wire/postgres/messages.js';
import type { Backend } from './backend.js';
import type { AcceptedClient } from './client-handshake.js';
import { SessionBinaryTypes } from './binary-types.js';
import { recordedParameters } from './client-recording.js';
import { CLASSIFY_BYTES_MAX, ClientStream } from './client-stream.js';
import { HeldInput } from './held-input.js';
import type { AnswerMode } from './local-answers.js';
import { ResponseTracker, STATUS_IDLE } from './response-tracker.js';
import { QUERY_TIMED_OUT, ROLLED_BACK, ServerStream } from './server-stream.js';
import type { Question } from './own-questions.js';
import type { SessionContext, SessionInfo } from './session-context.js';
import type { Pin } from './session-state.js';
import { rollBackSession } from './session-rollback.js';
import { SessionAnswers, type Answered, type AnswerOptions } from './session-answers.js';
import { SessionOwn } from './session-own.js';
import { isReplication, sessionPhase, type SessionPhase } from './session-phases.js';
import { SessionSockets, TOO_DEEP } from './session-sockets.js';
import type { SessionActivity } from './session-watch.js';
import { SessionRouting } from './session-routing.js';
import { StatementLog } from './statement-log.js';
import { SideMoves } from './subset-moves.js';
import type { SessionOids } from './type-oids.js';
import { WarmConnection } from './warm-connection.js';

/** What a client did before it became a session. */
export interface AdoptedClient {
  readonly prepared: readonly { readonly name: string; readonly text: Buffer; readonly flags: number }[];
  /** Payload of its unnamed statement's Parse. */
  readonly unnamed: Buffer | null;
  readonly settingNames: Iterable<string>;
  readonly pins: readonly Pin[];
  /** Of its bytes to come, the first so many are in the recording already. */
  readonly recordedBytes: number;
  /** Told of each connection that it moves to. */
  readonly onMoved: (side: Side, socket: net.Socket) => void;
}

export class Session {
  readonly id: number;
  readonly accepted: AcceptedClient;
  /** A replication connection: its protocol is not that of statements, so it can't be held or moved. */
  readonly replication: boolean;
  readonly #context: SessionContext;
  readonly #sockets: SessionSockets;
  #side: Side;
  /** The side whose OIDs the client knows. */
  readonly #began: Side;
  /** Null while the session sits on that side, or where nothing differs: then no OID is looked at. */
  #oids: SessionOids | null = null;
  readonly #tracker = new ResponseTracker();
  readonly #own: SessionOwn;
  readonly clientStream: ClientStream;
  #serverStream: ServerStream;
  readonly #log: StatementLog;
  readonly #held: HeldInput;
  readonly #answers: SessionAnswers;
  /** The proxy is rolling the client's transaction back. */
  #rollingBack = false;
  #recordedBytes = 0;
  #onMoved: AdoptedClient['onMoved'] | null = null;
  readonly #types: SessionBinaryTypes;
  #gateClosed = false;
  /** Where subsets are on different sides: what gives each of its statements one. */
  #routing: SessionRouting | null = null;
  /** It is to be made, or ended, at the next boundary. */
  #routingWanted: boolean | null = null;
  #cancelWanted = false;
  /** Requests underway. */
  #cancels = 0;
  /** What runs was cancelled for taking too long. */
  #late = false;
  #backendLost = false;
  /** The client has closed its sending side. */
  #clientEnded = false;
  #transactionSinceMs: number | null = null;
  readonly #parameters = new Map<string, string>();
  readonly #phase = sessionPhase();

  constructor(id: number, accepted: AcceptedClient, backend: Backend, side: Side, context: SessionContext) {
    this.id = id;
    this.accepted = accepted;
    this.#context = context;
    this.#side = side;
    this.#began = side;
    this.#sockets = new SessionSockets(accepted.socket, backend, {
      onClientData: (chunk) => this.#onClientData(chunk),
      onClientGone: () => this.#close(null),
      onClientEnd: () => this.#clientEnds(),
      onBackendData: (chunk) => this.#onBackendData(chunk),
      onBackendGone: () => this.#backendGone(),
    });
    this.replication = isReplication(accepted.parameters.get('replication'));
    const { settings } = context;
    this.#types = new SessionBinaryTypes(context.binaryTypes, side);
    this.#own = new SessionOwn({
      tracker: this.#tracker,
      clientStream: () => this.clientStream,
      serverStream: () => this.#serverStream,
      oids: () => this.#oids,
      toServer: (bytes) => this.#sockets.toServer(bytes),
      askable: () => this.#askable(),
      replyBytesMax: settings.stateBytesMax,
    });
    this.#log = new StatementLog(
      context.tap,
      id,
      settings.textBytesMax,
      () => context.clock.monotonicMs(),
      settings.parameterBytesMax,
    );
    this.#held = new HeldInput({
      bytesMax: () => settings.heldBytesMax,
      nowMs: () => context.clock.monotonicMs(),
      pauseClient: (reason) => this.#sockets.pauseClient(reason),
      resumeClient: (reason) => this.#sockets.resumeClient(reason),
    });
    this.#answers = new SessionAnswers({
      context,
      held: this.#held,
      send: (frame) => this.#sockets.toClient(frame),
      flagsOf: (statement) => this.#log.flagsOf(statement),
    });
    this.clientStream = new ClientStream({
      tracker: this.#tracker,
      log: this.#log,
      text: context.text,
      types: this.#types,
      frameBytesMax: settings.frameBytesMax,
      forward: this.#forwarder(),
      ...(this.replication ? { commandsOnly: () => context.routing?.router.armed === true } : {}),
    });
    this.#serverStream = this.#newServerStream();
    if (context.routing?.router.armed === true) this.route(true);
  }

  get phase(): SessionPhase {
    return this.#phase.current;
  }

  get side(): Side {
    return this.#side;
  }

  get backend(): Backend {
    return this.#sockets.backend;
  }

  /** Nothing of it is in flight, and nothing new will be before `release`. */
  get atRest(): boolean {
    return this.#phase.is('held', 'closed') || (this.#phase.is('answering') && !this.#rollingBack);
  }

  get backendLost(): boolean {
    return this.#backendLost;
  }

  /** Outside a transaction with nothing in flight. */
  get idle(): boolean {
    return this.#mayRest();
  }

  /** For the watch over what lasts too long (session-watch.ts). */
  get activity(): SessionActivity {
    if (this.replication || !this.#phase.is('serving', 'draining') || this.#tracker.ownAtHead)
      return 'exempt';
    if (this.#tracker.settled) return this.#tracker.status === STATUS_IDLE ? 'idle' : 'idle-in-transaction';
    const waitsForClient = !this.#tracker.awaitingReady && !this.#tracker.owesExtended;
    return waitsForClient && this.#tracker.copy === 'none' ? 'idle-in-transaction' : 'running';
  }

  /** As {@link activity}: while something runs, what was answered counts; else what the client has sent. */
  get progress(): number {
    return this.#tracker.awaitingReady ? this.#tracker.answered : this.#sockets.bytesFromClient;
  }

  get info(): SessionInfo {
    const since = this.#transactionSinceMs;
    return {
      id: this.id,
      user: this.accepted.user,
      applicationName: this.accepted.parameters.get('application_name') ?? '',
      side: this.#side,
      phase: this.#phase.current,
      transactionStatus: String.fromCharCode(this.#tracker.status),
      busy: !this.#tracker.settled,
      inTransactionMs: since === null ? null : Math.round(this.#context.clock.monotonicMs() - since),
      heldBytes: this.#held.length,
      backendLost: this.#backendLost,
      bytesFromClient: this.#sockets.bytesFromClient,
      bytesToClient: this.#sockets.bytesToClient,
    };
  }

  // ------------------------------------------------------------------------------------------------------ life

  /** How the client's bytes go to the server: recorded on the way, where that is asked for. */
  #forwarder(): (bytes: Buffer) => void {
    const { recorder } = this.#context;
    if (recorder === null || this.replication) return (bytes) => this.#sockets.toServer(bytes);
    recorder.opened(this.id, recordedParameters(this.accepted));
    const tracker = this.#tracker;
    return (bytes) => {
      const known = Math.min(this.#recordedBytes, bytes.length);
      this.#recordedBytes -= known;
      const fresh = known === 0 ? bytes : bytes.subarray(known);
      recorder.sent(this.id, fresh, tracker.sent, tracker.answered, tracker.status);
      this.#sockets.toServer(bytes);
    };
  }

  /** Greets the client with `greeting` (up to ReadyForQuery) and begins to relay. */
  start(greeting: Buffer): void {
    for (const [name, value] of this.backend.parameters) this.#parameters.set(name, value);
    this.#sockets.start(greeting, this.accepted.leftover);
  }

  /** The client was served from a pool before: takes over what it has prepared. Before `start`. */
  adopt(before: AdoptedClient): void {
    for (const { name, text, flags } of before.prepared) this.#log.parse(name, text, 0, text.length, flags);
    this.#recordedBytes = before.recordedBytes;
    this.#onMoved = before.onMoved;
    this.clientStream.adopt(before);
  }

  /** Ends the session with a FATAL error in the client's protocol. */
  terminate(sqlState: string, message: string): void {
    this.#close(encodeErrorResponse({ severity: 'FATAL', sqlState, message }));
  }

  #close(last: Buffer | null): void {
    if (this.#phase.is('closed')) return;
    this.#phase.move('closed');
    this.#context.recorder?.closed(this.id);
    this.#log.closed();
    this.#sockets.close(last, {
      cut: this.#serverStream.walker.insideForwardedFrame,
      idle: this.#atBoundary(),
    });
    this.#held.clear();
    this.#answers.drop();
    this.#routing?.end();
    this.#own.lost('the session was closed');
    this.#context.onClosed(this);
  }

  // ----------------------------------------------------------------------------------------------- client → server

  #onClientData(chunk: Buffer): void {
    switch (this.#phase.current) {
      case 'serving':
      case 'draining':
        // `#settle` sends on what is to be routed.
        if (this.#held.length > 0 || this.#routing !== null) this.#held.keep(chunk);
        else this.#walkClient(chunk, true);
        break;
      case 'held':
        this.#held.keep(chunk);
        this.#lookAtHeld();
        break;
      case 'answering':
        this.#held.keep(chunk);
        this.#answerHeld();
        break;
      case 'closed':
        return;
    }
    this.#settle();
  }

  /**
   * Returns false where it stopped in front of a frame that must wait; the rest is at the head of what is held.
   * `borrowed`: the chunk is valid during the call only.
   */
  #walkClient(chunk: Buffer, borrowed: boolean): boolean {
    const { walker } = this.clientStream;
    let used: number;
    try {
      used = walker.walk(chunk);
    } catch (error) {
      this.#violation(error);
      return false;
    }
    if (used === chunk.length) return true;
    const rest = chunk.subarray(used);
    this.#held.putBack(borrowed ? Buffer.from(rest) : rest);
    this.#held.putBack(walker.takePartialHeader());
    return false;
  }

  /** Sends on what was held, as far as it may go. */
  #pump(): void {
    for (let chunk = this.#held.shift(); chunk !== undefined; chunk = this.#held.shift()) {
      if (!this.#walkClient(chunk, false)) break;
    }
    if (this.#phase.is('closed')) return;
    this.#held.taken();
  }

  /** Some messages need not or must not wait: a goodbye, and the end of a prepared transaction. */
  #lookAtHeld(): void {
    const header = this.#held.peek(5);
    if (header.length < 5) return;
    const type = header[0] ?? 0;
    if (type === FRONTEND.terminate) {
      this.#close(null);
      return;
    }
    if (this.#routing !== null) return;
    if (type !== FRONTEND.query && type !== FRONTEND.parse) return;
    const length = header.readInt32BE(1) + 1;
    if (length < 5 || length > CLASSIFY_BYTES_MAX || this.#held.length < length) return;
    if (!this.clientStream.endsPreparedTransaction(type, this.#held.peek(length).subarray(5))) return;
    if (!this.#context.mayPassHeld()) return;
    this.#phase.move('draining');
    this.#serverStream.whole = false;
    this.#pump();
  }

  // ----------------------------------------------------------------------------------------------- server → client

  #onBackendData(chunk: Buffer): void {
    try {
      this.#serverStream.walker.walk(chunk);
    } catch (error) {
      this.#violation(error);
      return;
    }
    this.#settle();
  }

  #newServerStream(): ServerStream {
    const { settings } = this.#context;
    return new ServerStream({
      tracker: this.#tracker,
      log: this.#log,
      own: this.#own.exchanges,
      frameBytesMax: settings.frameBytesMax,
      replyBytesMax: settings.stateBytesMax,
      oids: this.#oids?.toClient ?? null,
      types: this.#types,
      forward: (bytes) => this.#sockets.toClient(bytes),
      onParameter: (name, value) => this.#parameters.set(name, value),
      onError: this.#context.onError,
    });
  }

  #backendGone(): void {
    if (this.#phase.is('closed') || this.#backendLost) return;
    this.#backendLost = true;
    this.#own.lost('the connection to the server was lost');
    if (this.atRest) this.#context.onAtRest(this);
    else this.#closeForLostBackend();
  }

  #closeForLostBackend(): void {
    if (this.clientStream.terminated || this.#clientEnded) {
      this.#close(null);
      return;
    }
    const { fatal } = this.#serverStream;
    const seen = fatal !== null && !this.atRest;
    this.#close(seen ? null : (fatal ?? LOST_CONNECTION));
  }

  #violation(error: unknown): void {
    const known = error instanceof UnderstudyError && error.code !== 'internal';
    this.#context.log.warn(
      { session: this.id, error: error instanceof Error ? error.message : String(error) },
      'a session was closed for a protocol violation',
    );
    this.terminate(known ? '08P01' : 'XX000', known ? error.message : 'internal error of the proxy');
  }

  // ------------------------------------------------------------------------------------------------- at boundaries

  #atBoundary(): boolean {
    return (
      this.#tracker.quiescent &&
      !this.clientStream.walker.insideFrame &&
      !this.#serverStream.walker.insideForwardedFrame
    );
  }

  #mayRest(): boolean {
    return this.#atBoundary() && this.#routing?.midway !== true;
  }

  /** After anything that may have settled something: goes on with what waited for that. */
  #settle(): void {
    if (this.#phase.is('closed')) return;
    this.#followTransaction();
    if (this.#cancelWanted && !this.#tracker.ownAtHead) {
      this.#cancelWanted = false;
      if (this.#tracker.awaitingReady || this.#tracker.owesExtended) this.#cancelBackend();
    }
    if (this.#routing !== null && this.#phase.is('serving', 'draining')) this.#routing.go();
    if (this.#phase.is('draining')) {
      const goesOn = this.#routing === null && this.#held.length > 0 && !this.#tracker.awaitingReady;
      if (goesOn && !this.#atBoundary()) this.#pump();
      if (this.#phase.is('draining') && this.#mayRest()) this.#rest();
    }
    this.#own.questions.settle();
    if (this.#clientEnded && this.#phase.is('serving', 'draining') && this.#held.length === 0)
      this.#sockets.endServer();
    if (this.#tracker.depth > PIPELINE_DEPTH_MAX) this.#sockets.pauseClient(TOO_DEEP);
    else if (this.#tracker.depth < PIPELINE_DEPTH_MAX / 4) this.#sockets.resumeClient(TOO_DEEP);
  }

  #cancelBackend(): void {
    this.#cancels += 1;
    void this.#context.cancelBackend(this.backend).finally(() => (this.#cancels -= 1));
  }

  /** As a server does, what was sent is answered before the connection is closed. */
  #clientEnds(): void {
    this.#clientEnded = true;
    if (this.#phase.is('held') && this.#held.length === 0) this.#close(null);
    else this.#settle();
  }

  #followTransaction(): void {
    if (!this.#serverStream.sawReady) return;
    this.#serverStream.sawReady = false;
    if (this.#late) {
      this.#late = false;
      this.#serverStream.cancelled = null;
    }
    if (this.#tracker.status === STATUS_IDLE) this.#transactionSinceMs = null;
    else this.#transactionSinceMs ??= this.#context.clock.monotonicMs();
  }

  #rest(): void {
    if (this.#clientEnded && this.#held.length === 0) {
      this.#close(null);
      return;
    }
    this.#phase.move('held');
    this.#serverStream.whole = true;
    this.#held.putBack(this.clientStream.walker.takePartialHeader());
    if (this.#routingWanted !== null) {
      this.#setRouting(this.#routingWanted);
      if (!this.#gateClosed) {
        this.#serve();
        return;
      }
    }
    this.#lookAtHeld();
    if (this.#phase.is('held')) this.#context.onAtRest(this);
  }

  // ------------------------------------------------------------------------------------------------------ subsets

  /** Begins, or ceases, to give each of its statements a side; at once where it is at rest, else at its next boundary. */
  route(wanted: boolean): void {
    const present = this.#routing !== null;
    this.#routingWanted = null;
    if (this.replication || wanted === present || this.#phase.is('closed')) return;
    const quiet = this.#mayRest() && this.#held.length === 0 && this.#routing?.atRest !== false;
    if (this.atRest || quiet) {
      this.#held.putBack(this.clientStream.walker.takePartialHeader());
      this.#setRouting(wanted);
      return;
    }
    this.#routingWanted = wanted;
    if (!this.#phase.is('serving')) return;
    this.#phase.move('draining');
    this.clientStream.draining = true;
    this.#settle();
  }

  #setRouting(wanted: boolean): void {
    this.#routingWanted = null;
    this.#routing?.end();
    this.#routing = null;
    const { routing } = this.#context;
    if (!wanted || routing === null) return;
    const { slots, target, settingNames } = routing;
    this.#routing = new SessionRouting(routing, {
      tracker: this.#tracker,
      held: this.#held,
      clientStream: this.clientStream,
      moves: new SideMoves(this, {
        context: this.#context,
        settingNames,
        listenersStay: true,
        target,
        slots,
      }),
      side: () => this.#side,
      closed: () => this.#phase.is('closed'),
      mayBegin: () => this.#phase.is('serving') || (this.#phase.is('draining') && !this.#atBoundary()),
      clientEnded: () => this.#clientEnded,
      pass: (chunk) => void this.#walkClient(chunk, false),
      toServer: (bytes) => this.#sockets.toServer(bytes),
      ask: (sql) => this.#own.askAnyway(sql),
      again: (messages, kind) => this.#own.send(messages, kind),
      unnamedAgain: () => {
        const again = this.#own.unnamedAgain();
        if (again.length > 0) this.#sockets.toServer(again);
      },
      refusing: (error) => {
        this.#context.onError(error.sqlState);
        this.#serverStream.refusing = error;
      },
      parameter: (name) => this.#parameters.get(name),
      terminate: (sqlState, message) => this.terminate(sqlState, message),
      settle: () => this.#settle(),
    });
  }

  /** As `swap`, in the middle of its client's work; the connection it leaves is returned for the way back. */
  swapAside(warm: WarmConnection, side: Side): WarmConnection | null {
    const { settings } = this.#context;
    const { walker } = this.#serverStream;
    const cut = walker.insideFrame || walker.partialHeaderBytes > 0;
    const left = this.#exchange(warm, side, (backend) => this.#sockets.exchangeKeeping(backend));
    this.#serverStream.whole = false;
    if (left === null) return null;
    // What is left of a message that it was saying can't be told from the next.
    if (cut) left.socket.destroy();
    if (left.socket.destroyed) return null;
    return new WarmConnection(
      { ...left, leftover: Buffer.alloc(0) },
      { frameBytesMax: settings.frameBytesMax, replyBytesMax: settings.stateBytesMax },
      true,
    );
  }

  // ------------------------------------------------------------------------------------------------- gate's orders

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
    const waited = this.#held.waitedMs;
    switch (this.#phase.current) {
      case 'draining':
      case 'held':
        this.#serve();
        break;
      case 'answering':
        if (this.#answers.finish()) this.#answersDone();
        return null;
      default:
        return null;
    }
    return waited;
  }

  #serve(): void {
    if (this.#backendLost) {
      this.#closeForLostBackend();
      return;
    }
    this.clientStream.draining = false;
    this.#phase.move('serving');
    this.#serverStream.whole = false;
    // The gate opened before it came to its boundary: nothing new is begun until it has.
    if (this.#routingWanted !== null) {
      this.route(this.#routingWanted);
      if (!this.#phase.is('serving')) return;
    }
    if (this.#routing === null) this.#pump();
    this.#settle();
  }

  /** Moves the session, at rest, to a connection that holds what it held. */
  swap(warm: WarmConnection, side: Side): void {
    if (this.#phase.is('closed')) {
      warm.discard();
      return;
    }
    if (!this.atRest) throw new UnderstudyError('internal', `moving a session that is ${this.phase}`);
    this.#exchange(warm, side, (backend) => {
      this.#sockets.exchange(backend);
      return null;
    });
  }

  #exchange(
    warm: WarmConnection,
    side: Side,
    exchange: (backend: Backend) => Backend | null,
  ): Backend | null {
    this.#own.exchanges.lost('the session has moved');
    const notifications = warm.take();
    const left = exchange(warm.backend);
    this.#side = side;
    this.#onMoved?.(side, warm.backend.socket);
    this.#backendLost = false;
    this.#tracker.reset();
    this.#log.moved();
    this.#oids = this.#context.oids(this.#began, side);
    this.clientStream.oids = this.#oids?.toServer ?? null;
    this.#serverStream = this.#newServerStream();
    this.#serverStream.whole = true;
    for (const [name, value] of warm.backend.parameters) {
      if (this.#parameters.get(name) === value) continue;
      this.#parameters.set(name, value);
      this.#sockets.queueToClient(encodeParameterStatus(name, value));
    }
    for (const frame of notifications) this.#sockets.queueToClient(frame);
    this.#sockets.resumeBackend();
    const again = this.#own.unnamedAgain();
    if (again.length > 0) this.#sockets.queueToServer(again);
    return left;
  }

  /** Answers what is held, and what comes, with this error; until `release`. */
  failHeld(sqlState: string, message: string): void {
    if (!this.#phase.is('held')) return;
    this.#answer('all', sqlState, message);
  }

  /**
   * The client asked to cancel what it is running. A statement that waits at the gate is answered here; one that runs
   * is cancelled on the backend, unless the proxy's own question stands in front of it: then after that.
   */
  cancelStatement(): void {
    if (this.#phase.is('held')) {
      if (this.#held.length > 0) this.#answer('once', '57014', 'canceling statement due to user request');
      return;
    }
    this.#cancelWanted = true;
    this.#settle();
    this.#cancelWanted &&= this.#tracker.ownAtHead;
  }

  /**
   * The statement that runs is taking too long: its client is told so by the error that ends it. One request at a time:
   * each more that is underway might meet the next statement instead.
   */
  cancelLate(): void {
    if (this.#rollingBack || this.#cancels > 0) return;
    this.#late = true;
    this.#serverStream.cancelled = QUERY_TIMED_OUT;
    this.cancelStatement();
  }

  // --------------------------------------------------------------------------------------------- local answers

  #answer(mode: AnswerMode, sqlState: string, message: string, options: AnswerOptions = {}): void {
    this.#routing?.givenUp();
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
      if (this.#routingWanted !== null) this.#setRouting(this.#routingWanted);
      this.#lookAtHeld();
    } else {
      this.#serve();
    }
  }

  // ---------------------------------------------------------------------------------------------------- roll back

  /**
   * The drain deadline has passed: ends what the session has open, and tells its client 40001. Resolves once the
   * backend is idle. A client in the middle of a message, or between sides, is closed with 57P01, as nothing can be said
   * in between.
   */
  async rollBack(): Promise<void> {
    if (this.atRest) return;
    await rollBackSession({
      tracker: this.#tracker,
      phase: () => this.phase,
      midway: () => this.clientStream.walker.insideFrame || this.#routing?.midway === true,
      terminate: (sqlState, message) => this.terminate(sqlState, message),
      toServer: (bytes) => this.#sockets.toServer(bytes),
      toClient: (bytes) => this.#sockets.toClient(bytes),
      cancelBackend: () => this.#cancelBackend(),
      setCancelling: (cancelling) => {
        this.#late = false;
        this.#serverStream.cancelled = cancelling ? ROLLED_BACK : null;
      },
      answer: (how) => {
        this.#rollingBack = true;
        this.#answer('transaction', ROLLED_BACK.sqlState, ROLLED_BACK.message, how);
      },
      sendOwn: (messages, kind) => this.#own.send(messages, kind),
      sleep: (ms) => this.#context.clock.sleep(ms),
      nowMs: () => this.#context.clock.monotonicMs(),
      cancelTimeoutMs: this.#context.settings.cancelTimeoutMs,
    });
    if (!this.#rollingBack) return;
    this.#rollingBack = false;
    if (this.#phase.is('closed')) return;
    this.#serverStream.whole = true;
    if (this.#answers.done) this.#answersDone();
    if (this.atRest) this.#context.onAtRest(this);
  }

  // -------------------------------------------------------------------------------------------------- own questions

  /**
   * Runs one simple query of the proxy's own on the client's backend, at the session's next quiescent moment, and
   * swallows its answer; null only waits for that moment. An unnamed prepared statement, which a simple query
   * destroys, is made again behind it.
   */
  ask(sql: (() => string) | null): Question {
    const question = this.#own.ask(sql);
    if (this.#phase.is('closed') || this.#backendLost) this.#own.questions.lost();
    return question;
  }

  #askable(): boolean {
    return (
      this.#atBoundary() &&
      !this.#phase.is('closed') &&
      !this.#rollingBack &&
      !this.#backendLost &&
      !this.#clientEnded &&
      !this.clientStream.terminated &&
      !this.clientStream.unnamedIrreplaceable
    );
  }
}

/** Messages awaiting an answer beyond which a client is no longer read. */
const PIPELINE_DEPTH_MAX = 8192;

const LOST_CONNECTION = encodeErrorResponse({
  severity: 'FATAL',
  sqlState: '08006',
  message: 'server closed the connection unexpectedly',
});
