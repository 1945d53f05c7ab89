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
import { UnderstudyError } from '../core/errors.js';
import type { Side } from '../core/ports.js';
import { StateCell } from '../core/state-machine.js';
import {
  FRAME_HEADER_BYTES,
  FRONTEND,
  encodeErrorResponse,
  encodeFrame,
  encodeParameterStatus,
  encodeSync,
} from '../wire/postgres/messages.js';
import { rewriteParse } from '../wire/postgres/oid-fields.js';
import { encodeRawQuery } from '../wire/postgres/raw-text.js';
import type { Backend } from './backend.js';
import type { AcceptedClient } from './client-handshake.js';
import { CLASSIFY_BYTES_MAX, ClientStream } from './client-stream.js';
import { HeldBytes } from './held-bytes.js';
import { LocalAnswers, type AnswerMode } from './local-answers.js';
import { OwnExchanges } from './own-exchanges.js';
import type { Reply } from './reply-reader.js';
import { ResponseTracker, STATUS_IDLE, type OwnKind } from './response-tracker.js';
import { QUERY_TIMED_OUT, ROLLED_BACK, ServerStream } from './server-stream.js';
import { OwnQuestions, type Question } from './own-questions.js';
import type { SessionContext, SessionInfo } from './session-context.js';
import type { Pin } from './session-state.js';
import { rollBackSession } from './session-rollback.js';
import { HELD_FULL, SessionSockets, TOO_DEEP } from './session-sockets.js';
import type { SessionActivity } from './session-watch.js';
import { StatementLog } from './statement-log.js';
import type { SessionOids } from './type-oids.js';
import type { WarmConnection } from './warm-connection.js';

export type SessionPhase = 'serving' | 'draining' | 'held' | 'answering' | 'closed';

/** What a client did before it became a session. */
export interface AdoptedClient {
  readonly prepared: readonly { readonly name: string; readonly text: Buffer; readonly flags: number }[];
  /** Payload of its unnamed statement's Parse. */
  readonly unnamed: Buffer | null;
  readonly settingNames: Iterable<string>;
  readonly pins: readonly Pin[];
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
  readonly #own: OwnExchanges;
  readonly clientStream: ClientStream;
  #serverStream: ServerStream;
  readonly #log: StatementLog;
  readonly #held = new HeldBytes();
  /** When the first of the held bytes came. */
  #heldSinceMs: number | null = null;
  #answers: LocalAnswers | null = null;
  /** The proxy is rolling the client's transaction back. */
  #rollingBack = false;
  #gateClosed = false;
  readonly #questions: OwnQuestions;
  #cancelWanted = false;
  /** What runs was cancelled for taking too long. */
  #late = false;
  #backendLost = false;
  #transactionSinceMs: number | null = null;
  readonly #parameters = new Map<string, string>();
  readonly #phase = new StateCell<SessionPhase>(
    'session',
    {
      serving: ['draining', 'closed'],
      draining: ['serving', 'held', 'answering', 'closed'],
      held: ['serving', 'draining', 'answering', 'closed'],
      answering: ['serving', 'held', 'closed'],
      closed: [],
    },
    'serving',
  );

  constructor(id: number, accepted: AcceptedClient, backend: Backend, side: Side, context: SessionContext) {
    this.id = id;
    this.accepted = accepted;
    this.#context = context;
    this.#side = side;
    this.#began = side;
    this.#sockets = new SessionSockets(accepted.socket, backend, {
      onClientData: (chunk) => this.#onClientData(chunk),
      onClientGone: () => this.#close(null),
      onBackendData: (chunk) => this.#onBackendData(chunk),
      onBackendGone: () => this.#backendGone(),
    });
    this.replication = isReplication(accepted.parameters.get('replication'));
    const { settings } = context;
    this.#own = new OwnExchanges(settings.stateBytesMax);
    this.#log = new StatementLog(
      context.tap,
      id,
      settings.textBytesMax,
      () => context.clock.monotonicMs(),
      settings.parameterBytesMax,
    );
    this.clientStream = new ClientStream({
      tracker: this.#tracker,
      log: this.#log,
      text: context.text,
      frameBytesMax: settings.frameBytesMax,
      forward: this.#forwarder(),
    });
    this.#serverStream = this.#newServerStream();
    this.#questions = new OwnQuestions({
      askable: () => this.#askable(),
      send: (sql) => this.#sendQuestion(sql),
      changes: () => this.clientStream.changes,
    });
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
    return this.#atBoundary();
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
    const { user, database, parameters } = this.accepted;
    recorder.opened(this.id, new Map([...parameters, ['user', user], ['database', database]]));
    const tracker = this.#tracker;
    return (bytes) => {
      recorder.sent(this.id, bytes, tracker.sent, tracker.answered, tracker.status);
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
    this.#sockets.close(last, {
      cut: this.#serverStream.walker.insideForwardedFrame,
      idle: this.#atBoundary(),
    });
    this.#held.clear();
    this.#answers = null;
    this.#own.lost('the session was closed');
    this.#questions.lost();
    this.#context.onClosed(this);
  }

  // ----------------------------------------------------------------------------------------------- client → server

  #onClientData(chunk: Buffer): void {
    switch (this.#phase.current) {
      case 'serving':
      case 'draining':
        if (this.#held.length > 0) this.#keep(chunk);
        else this.#walkClient(chunk);
        break;
      case 'held':
        this.#keep(chunk);
        this.#lookAtHeld();
        break;
      case 'answering':
        this.#keep(chunk);
        this.#answerHeld();
        break;
      case 'closed':
        return;
    }
    this.#settle();
  }

  /** Returns false where it stopped in front of a frame that must wait; the rest is at the head of what is held. */
  #walkClient(chunk: Buffer): boolean {
    const { walker } = this.clientStream;
    let used: number;
    try {
      used = walker.walk(chunk);
    } catch (error) {
      this.#violation(error);
      return false;
    }
    if (used === chunk.length) return true;
    this.#putBack(chunk.subarray(used));
    this.#putBack(walker.takePartialHeader());
    return false;
  }

  #keep(chunk: Buffer): void {
    this.#heldSinceMs ??= this.#context.clock.monotonicMs();
    this.#held.append(chunk);
    if (this.#held.length > this.#context.settings.heldBytesMax) this.#sockets.pauseClient(HELD_FULL);
  }

  #putBack(chunk: Buffer): void {
    if (chunk.length === 0) return;
    this.#heldSinceMs ??= this.#context.clock.monotonicMs();
    this.#held.prepend(chunk);
  }

  /** Sends on what was held, as far as it may go. */
  #pump(): void {
    for (let chunk = this.#held.shift(); chunk !== undefined; chunk = this.#held.shift()) {
      if (!this.#walkClient(chunk)) break;
    }
    if (this.#phase.is('closed')) return;
    if (this.#held.length === 0) this.#heldSinceMs = null;
    if (this.#held.length <= this.#context.settings.heldBytesMax) this.#sockets.resumeClient(HELD_FULL);
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
      own: this.#own,
      frameBytesMax: settings.frameBytesMax,
      replyBytesMax: settings.stateBytesMax,
      oids: this.#oids?.toClient ?? null,
      forward: (bytes) => this.#sockets.toClient(bytes),
      onParameter: (name, value) => this.#parameters.set(name, value),
      onError: this.#context.onError,
    });
  }

  #backendGone(): void {
    if (this.#phase.is('closed') || this.#backendLost) return;
    this.#backendLost = true;
    this.#own.lost('the connection to the server was lost');
    this.#questions.lost();
    if (this.atRest) this.#context.onAtRest(this);
    else this.#closeForLostBackend();
  }

  #closeForLostBackend(): void {
    if (this.clientStream.terminated) {
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

  /** After anything that may have settled something: goes on with what waited for that. */
  #settle(): void {
    if (this.#phase.is('closed')) return;
    this.#followTransaction();
    if (this.#cancelWanted && !this.#tracker.ownAtHead) {
      this.#cancelWanted = false;
      if (this.#tracker.awaitingReady || this.#tracker.owesExtended)
        this.#context.cancelBackend(this.backend);
    }
    if (this.#phase.is('draining')) {
      if (this.#held.length > 0 && !this.#tracker.awaitingReady && !this.#atBoundary()) this.#pump();
      if (this.#phase.is('draining') && this.#atBoundary()) this.#rest();
    }
    this.#questions.settle();
    if (this.#tracker.depth > PIPELINE_DEPTH_MAX) this.#sockets.pauseClient(TOO_DEEP);
    else if (this.#tracker.depth < PIPELINE_DEPTH_MAX / 4) this.#sockets.resumeClient(TOO_DEEP);
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
    this.#phase.move('held');
    this.#serverStream.whole = true;
    this.#putBack(this.clientStream.walker.takePartialHeader());
    this.#lookAtHeld();
    if (this.#phase.is('held')) this.#context.onAtRest(this);
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
    const since = this.#heldSinceMs;
    const waited = since === null ? null : this.#context.clock.monotonicMs() - since;
    switch (this.#phase.current) {
      case 'draining':
      case 'held':
        this.#serve();
        break;
      case 'answering':
        if (this.#answers?.finish() === true) this.#answersDone();
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
    this.#pump();
    this.#settle();
  }

  /** Moves the session, at rest, to a connection that holds what it held. */
  swap(warm: WarmConnection, side: Side): void {
    if (this.#phase.is('closed')) {
      warm.discard();
      return;
    }
    if (!this.atRest) throw new UnderstudyError('internal', `moving a session that is ${this.phase}`);
    this.#own.lost('the session has moved');
    const notifications = warm.take();
    this.#sockets.exchange(warm.backend);
    this.#side = side;
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
    const again = this.#unnamedAgain();
    if (again.length > 0) this.#sockets.queueToServer(again);
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

  /** The statement that runs is taking too long: its client is told so by the error that ends it. */
  cancelLate(): void {
    if (this.#rollingBack) return;
    this.#late = true;
    this.#serverStream.cancelled = QUERY_TIMED_OUT;
    this.cancelStatement();
  }

  // --------------------------------------------------------------------------------------------- local answers

  #answer(
    mode: AnswerMode,
    sqlState: string,
    message: string,
    more: { readonly skipping?: boolean; readonly told?: boolean; readonly untilSync?: boolean } = {},
  ): void {
    const { settings, text } = this.#context;
    this.#answers = new LocalAnswers({
      mode,
      sqlState,
      message,
      ...more,
      frameBytesMax: settings.frameBytesMax,
      textBytesMax: settings.textBytesMax,
      send: (frame) => this.#sockets.toClient(frame),
      classify: (bytes, start, end) => text.classify(bytes, start, end, false),
      flagsOf: (statement) => this.#log.flagsOf(statement),
    });
    this.#phase.move('answering');
    this.#answerHeld();
  }

  #answerHeld(): void {
    const answers = this.#answers;
    if (answers === null) return;
    for (let chunk = this.#held.shift(); chunk !== undefined; chunk = this.#held.shift()) {
      let used: number;
      try {
        used = answers.walk(chunk);
      } catch (error) {
        this.#violation(error);
        return;
      }
      if (answers.terminated) {
        this.#close(null);
        return;
      }
      if (used === chunk.length) continue;
      this.#held.prepend(chunk.subarray(used));
      break;
    }
    this.#sockets.resumeClient(HELD_FULL);
    if (this.#held.length === 0) this.#heldSinceMs = null;
    if (answers.done) this.#answersDone();
  }

  #answersDone(): void {
    if (this.#rollingBack) return;
    const answers = this.#answers;
    this.#answers = null;
    if (answers !== null) this.#held.prepend(answers.takePartialHeader());
    if (this.#gateClosed) {
      this.#phase.move('held');
      this.#lookAtHeld();
    } else {
      this.#serve();
    }
  }

  // ---------------------------------------------------------------------------------------------------- roll back

  /**
   * The drain deadline has passed: ends what the session has open, and tells its client 40001. Resolves once the
   * backend is idle. A client in the middle of a message is closed with 57P01, as nothing can be said in between.
   */
  async rollBack(): Promise<void> {
    if (this.atRest) return;
    await rollBackSession({
      tracker: this.#tracker,
      phase: () => this.phase,
      insideClientMessage: () => this.clientStream.walker.insideFrame,
      terminate: (sqlState, message) => this.terminate(sqlState, message),
      toServer: (bytes) => this.#sockets.toServer(bytes),
      toClient: (bytes) => this.#sockets.toClient(bytes),
      cancelBackend: () => this.#context.cancelBackend(this.backend),
      setCancelling: (cancelling) => {
        this.#late = false;
        this.#serverStream.cancelled = cancelling ? ROLLED_BACK : null;
      },
      answer: (how) => {
        this.#rollingBack = true;
        this.#answer('transaction', ROLLED_BACK.sqlState, ROLLED_BACK.message, how);
      },
      sendOwn: (messages, kind) => this.#sendOwn(messages, kind),
      sleep: (ms) => this.#context.clock.sleep(ms),
      nowMs: () => this.#context.clock.monotonicMs(),
      cancelTimeoutMs: this.#context.settings.cancelTimeoutMs,
    });
    if (!this.#rollingBack) return;
    this.#rollingBack = false;
    if (this.#phase.is('closed')) return;
    this.#serverStream.whole = true;
    if (this.#answers?.done === true) this.#answersDone();
    if (this.atRest) this.#context.onAtRest(this);
  }

  #sendOwn(messages: Buffer, kind: OwnKind): Promise<Reply> {
    const reply = this.#expectOwn(kind);
    this.#sockets.toServer(messages);
    return reply;
  }

  /** Call right before the message is written. */
  #expectOwn(kind: OwnKind): Promise<Reply> {
    const reply = this.#own.expect();
    this.#tracker.sentOwn(kind);
    this.#serverStream.ownSent();
    return reply;
  }

  // -------------------------------------------------------------------------------------------------- own questions

  /**
   * Runs one simple query of the proxy's own on the client's backend, at the session's next quiescent moment, and
   * swallows its answer; null only waits for that moment. An unnamed prepared statement, which a simple query
   * destroys, is made again behind it.
   */
  ask(sql: (() => string) | null): Question {
    const question = this.#questions.ask(sql);
    if (this.#phase.is('closed') || this.#backendLost) this.#questions.lost();
    return question;
  }

  #askable(): boolean {
    return (
      this.#atBoundary() &&
      !this.#phase.is('closed') &&
      !this.#rollingBack &&
      !this.#backendLost &&
      !this.clientStream.terminated &&
      !this.clientStream.unnamedIrreplaceable
    );
  }

  #sendQuestion(sql: string): Promise<Reply> {
    const reply = this.#expectOwn('own-query');
    this.#sockets.toServer(Buffer.concat([encodeRawQuery(sql), this.#unnamedAgain()]));
    return reply;
  }

  /** What makes the unnamed prepared statement again, to be written next; empty where there is none. */
  #unnamedAgain(): Buffer {
    const payload = this.clientStream.unnamedParse;
    if (payload === null) return NOTHING;
    // It was accepted before; where it no longer is, its client learns of it from its Bind.
    this.#expectOwn('own-sync').catch(() => undefined);
    const frame = encodeFrame(FRONTEND.parse, payload);
    if (this.#oids !== null) rewriteParse(frame, FRAME_HEADER_BYTES, frame.length, this.#oids.toServer.types);
    return Buffer.concat([frame, encodeSync()]);
  }
}

const NOTHING = Buffer.alloc(0);
/** Messages awaiting an answer beyond which a client is no longer read. */
const PIPELINE_DEPTH_MAX = 8192;

const LOST_CONNECTION = encodeErrorResponse({
  severity: 'FATAL',
  sqlState: '08006',
  message: 'server closed the connection unexpectedly',
});

/** Of the start-up parameter `replication`. */
export function isReplication(value: string | undefined): boolean {
  return value !== undefined && !['false', 'off', 'no', '0', 'f', 'n'].includes(value.toLowerCase());
}
