/**
 * One server connection that serves one client after another.
 *
 * States: idle (in the pool, or about to be given out) · linked (its bytes are a client's) · asking (a question of the
 * pool's own is open) · dead (lost or closed) · taken (its socket was handed on; final).
 *
 *   idle ⇄ linked ⇄ asking        idle ⇄ asking        any → dead        linked, asking → taken
 *
 * Invariants:
 * - It is paused only for the client it is linked to, and read again once that one has its answers.
 * - It is unlinked only where nothing is in flight, no transaction is open and no frame is half passed.
 * - A question is asked only where nothing is in flight; a transaction may be open.
 * - A cancel request that is under way when the connection comes back is waited for, with a round trip behind it, so
 *   that it can't hit the next client's statement.
 *
 * Listeners stay on the socket for its whole life: moving between clients changes a pointer.
 */
import { UnderstudyError } from '../../core/errors.js';
import {
  DROP,
  FrameWalker,
  PASS,
  PEEK,
  actionTable,
  type FrameVisitor,
} from '../../wire/postgres/frame-walker.js';
import {
  BACKEND,
  encodeErrorResponse,
  encodeFrame,
  encodeSync,
  encodeTerminate,
  parseErrorFields,
  parseParameterStatus,
  type ErrorResponseFields,
} from '../../wire/postgres/messages.js';
import { encodeRawQuery } from '../../wire/postgres/raw-text.js';
import { sendCancel, type Backend } from '../backend/backend.js';
import type { SessionBinaryTypes } from '../session/binary-types.js';
import type { NameScope } from '../../core/subset-ports.js';
import { STATUS_IDLE, type ResponseTracker } from '../session/response-tracker.js';
import { ReplyReader, type Reply } from '../backend/reply-reader.js';
import { WITH_PARAMETERS, rowsOfTag } from '../session/server-stream.js';
import { feedFrom, type SocketFeed } from '../socket-feed.js';
import { closeWith } from '../socket-reader.js';
import type { StatementLog } from '../session/statement-log.js';
import { AnswerPlan } from './answer-plan.js';
import { DEFAULT_STATE, type ClientState } from './client-state.js';
import { PreparedOnServer } from './definitions.js';
import type { ParameterSet, ParameterSets } from './parameter-sets.js';

/** The client a connection is linked to. */
export interface LinkUser {
  readonly tracker: ResponseTracker;
  readonly log: StatementLog;
  /** To be told which types come. */
  readonly types: SessionBinaryTypes;
  /** False: stop reading the server until `resume`. */
  toClient(bytes: Buffer): boolean;
  /** Some of what it was given has not gone out yet, and may alias what was given. */
  readonly unsent: boolean;
  /** SQLSTATE of an error its statement met; null of one that ends the connection. */
  onServerError(sqlState: string, fatal: Buffer | null): void;
  /** It runs something that may create a table under whatever tag. */
  readonly creates: boolean;
  /** A statement ended, and is none of those that say nothing of interest; its tag as it came. */
  onTag(tag: string): void;
  /** An error's fields with statements called as the client calls them. */
  inClientsWords(payload: Buffer): Buffer;
  onParameters(set: ParameterSet): void;
  /** What the client is told where the proxy has cancelled its statement, in place of the server's own words. */
  readonly cancelledAs: ErrorResponseFields | null;
  /** In whose words the next error is told; reset by that. */
  refusing: ErrorResponseFields | null;
  /** A chunk was worked off. */
  settle(): void;
  onBackendGone(): void;
  onBackendDrain(): void;
}

export interface PooledBackendDeps {
  readonly frameBytesMax: number;
  /** Bounds the rows of an answer to a question of the pool's own. */
  readonly replyBytesMax: number;
  readonly preparedMax: number;
  readonly connectTimeoutMs: number;
  readonly parameterSets: ParameterSets;
  readonly nowMs: number;
  /** It died while idle. */
  readonly onLost: (backend: PooledBackend) => void;
}

interface Exchange {
  readonly replies: Reply[];
  readonly wanted: number;
  readonly resolve: (replies: Reply[]) => void;
  readonly reject: (error: Error) => void;
}

const OWN = actionTable(PEEK | DROP);
/** A planned answer that is replaced by ParseComplete. */
const AS_PARSE = 64;
const PARSE_COMPLETE = encodeFrame(BACKEND.parseComplete, Buffer.alloc(0));
/** A longer error is none about a statement's name. */
const NAMING_ERROR_BYTES_MAX = 65_536;
const QUERY_CANCELED = '57014';
const LEAVE_TIMEOUT_MS = 60_000;

export class PooledBackend implements FrameVisitor {
  readonly backend: Backend;
  readonly prepared: PreparedOnServer;
  readonly plan = new AnswerPlan();
  readonly openedAtMs: number;
  idleSinceMs: number;
  /** What its session holds of settings. */
  held: ClientState = DEFAULT_STATE;
  parameters: ParameterSet;
  readonly #deps: PooledBackendDeps;
  readonly #walker: FrameWalker;
  #state: 'idle' | 'linked' | 'asking' | 'dead' | 'taken' = 'idle';
  #user: LinkUser | null = null;
  #exchange: Exchange | null = null;
  readonly #reply: ReplyReader;
  readonly #feed: SocketFeed;
  #cancels: Promise<void> | null = null;
  /** Offset in the server's bytes at which the present link began. */
  #linkedAt = 0;
  /** As the last answer to a question of the pool's own told: I, T or E. */
  status: number = STATUS_IDLE;
  /** What names mean to a client that has set what `signature` stands for; null: it was not asked yet. */
  names: { readonly signature: string; readonly scope: NameScope } | null = null;
  /** Id of the client that was linked last; 0: none yet. */
  lastClient = 0;
  /** Its link ran something that may have changed the catalogs. */
  ranDdl = false;

  constructor(backend: Backend, deps: PooledBackendDeps) {
    this.backend = backend;
    this.#deps = deps;
    this.#reply = new ReplyReader(deps.replyBytesMax);
    this.openedAtMs = deps.nowMs;
    this.idleSinceMs = deps.nowMs;
    this.prepared = new PreparedOnServer(deps.preparedMax);
    this.parameters = deps.parameterSets.intern(backend.parameters);
    this.#walker = new FrameWalker(
      this,
      { frameBytesMax: deps.frameBytesMax, peekBytesMax: deps.replyBytesMax },
      OWN,
    );
    const { socket } = backend;
    socket.on('drain', this.#onDrain);
    socket.on('error', ignore);
    socket.on('close', this.#onGone);
    this.#feed = feedFrom(socket, this.#onData);
    if (socket.destroyed) this.#onGone();
    else socket.resume();
  }

  get alive(): boolean {
    return this.#state !== 'dead' && this.#state !== 'taken';
  }

  /** No frame from the server is half passed on. */
  get betweenFrames(): boolean {
    return !this.#walker.insideFrame && this.#walker.partialHeaderBytes === 0;
  }

  get insideForwardedFrame(): boolean {
    return this.#walker.insideForwardedFrame;
  }

  get cancelling(): Promise<void> | null {
    return this.#cancels;
  }

  link(user: LinkUser): void {
    this.#expect('idle');
    this.#state = 'linked';
    this.#user = user;
    this.#linkedAt = this.#walker.position;
    this.plan.reset();
    this.ranDdl = false;
    this.#walker.actions = WITH_PARAMETERS;
  }

  unlink(): void {
    this.#expect('linked');
    this.#state = 'idle';
    this.#user = null;
    this.#walker.actions = OWN;
    this.resume();
  }

  /** Hands the socket over, paused and without listeners. */
  take(): Backend {
    this.#expect('linked');
    this.#state = 'taken';
    this.#user = null;
    this.backend.socket.pause();
    this.#detach();
    return this.backend;
  }

  /** Some of what was written has not gone out yet, and may alias what was given. */
  get unsent(): boolean {
    return this.backend.socket.writableLength > 0;
  }

  /** False: it is full; `onBackendDrain` follows. */
  write(bytes: Buffer): boolean {
    return this.backend.socket.write(bytes);
  }

  pause(): void {
    this.backend.socket.pause();
  }

  resume(): void {
    if (this.alive) this.backend.socket.resume();
  }

  /** `idle`: it waits for nothing and is told goodbye; otherwise it may finish what it has been sent. */
  close(idle: boolean): void {
    if (!this.alive) return;
    this.#end('the connection was given up');
    closeWith(this.backend.socket, idle ? encodeTerminate() : undefined, LEAVE_TIMEOUT_MS);
  }

  /** Asks the server to cancel what runs. Never rejects. */
  cancel(): void {
    const { endpoint, processId, secretKey } = this.backend;
    const before = this.#cancels ?? Promise.resolve();
    const sent = before
      .then(() => sendCancel(endpoint, processId, secretKey, this.#deps.connectTimeoutMs))
      .catch(() => undefined)
      .finally(() => {
        if (this.#cancels === sent) this.#cancels = null;
      });
    this.#cancels = sent;
  }

  /** One simple query of the pool's own. Rejects with `backend-refused` where the connection is lost. */
  async query(sql: string): Promise<Reply> {
    const [reply] = await this.exchange([encodeRawQuery(sql)], 1);
    if (reply === undefined) throw new UnderstudyError('internal', 'an exchange ended without a reply');
    return reply;
  }

  /** Groups of extended messages, each followed by a Sync. */
  extended(groups: readonly (readonly Buffer[])[]): Promise<Reply[]> {
    if (groups.length === 0) return Promise.resolve([]);
    const sync = encodeSync();
    return this.exchange(
      groups.flatMap((group) => [...group, sync]),
      groups.length,
    );
  }

  exchange(messages: readonly Buffer[], wanted: number): Promise<Reply[]> {
    const state = this.#state;
    if (state !== 'idle' && state !== 'linked') {
      return Promise.reject(new UnderstudyError('backend-refused', `the connection is ${state}`));
    }
    this.#state = 'asking';
    this.#walker.actions = OWN;
    this.resume();
    return new Promise((resolve, reject) => {
      this.#exchange = { replies: [], wanted, resolve, reject };
      this.backend.socket.write(Buffer.concat(messages));
    });
  }

  readonly #onData = (chunk: Buffer): void => {
    try {
      this.#walker.walk(chunk);
    } catch {
      this.backend.socket.destroy();
      return;
    }
    this.#user?.settle();
  };

  readonly #onDrain = (): void => this.#user?.onBackendDrain();

  readonly #onGone = (): void => {
    if (!this.alive) return;
    const user = this.#user;
    this.#end('the connection to the server was lost');
    this.#deps.onLost(this);
    user?.onBackendGone();
  };

  #end(reason: string): void {
    this.#state = 'dead';
    this.#user = null;
    this.#detach();
    const exchange = this.#exchange;
    this.#exchange = null;
    exchange?.reject(new UnderstudyError('backend-refused', reason, { retryable: true }));
  }

  #detach(): void {
    const { socket } = this.backend;
    this.#feed.stop();
    socket.off('drain', this.#onDrain);
    socket.off('close', this.#onGone);
  }

  #expect(state: 'idle' | 'linked'): void {
    if (this.#state !== state) {
      throw new UnderstudyError('internal', `a pooled connection is ${this.#state}, not ${state}`);
    }
  }

  begin(type: number, payloadBytes: number): number {
    const user = this.#user;
    if (user === null) return PEEK | DROP;
    const { tracker, log } = user;
    switch (type) {
      case BACKEND.errorResponse:
        // Looked at first: it may name a statement as the pool calls it.
        // One that is too long to be kept passes as it comes.
        return payloadBytes <= (user.cancelledAs === null ? NAMING_ERROR_BYTES_MAX : this.#deps.replyBytesMax)
          ? PEEK | DROP
          : PEEK;
      case BACKEND.copyInResponse:
        tracker.gotCopyIn();
        return PASS;
      case BACKEND.copyOutResponse:
        tracker.gotCopyOut();
        return PASS;
      case BACKEND.copyBothResponse:
        tracker.gotCopyBoth();
        return PASS;
      case BACKEND.parameterDescription:
        return this.#described(user);
      case BACKEND.emptyQueryResponse:
      case BACKEND.portalSuspended:
        log.completed(0, this.#position);
        break;
      default:
    }
    const planned = this.plan.received(tracker.answered);
    tracker.gotResponse();
    if (planned === 'hide') return PEEK | DROP;
    if (planned === 'as-parse') return PEEK | DROP | AS_PARSE;
    return type === BACKEND.rowDescription ? this.#described(user) : PASS;
  }

  #described(user: LinkUser): number {
    return user.types.wanted && this.#walker.frameWhole ? PEEK : PASS;
  }

  peek(type: number, bytes: Buffer, start: number, end: number, payloadBytes: number): void {
    const user = this.#user;
    if (user === null || this.#exchange !== null) {
      this.#ownFrame(type, bytes.subarray(start, end), payloadBytes);
      return;
    }
    const { tracker, log } = user;
    switch (type) {
      case BACKEND.readyForQuery: {
        const segment = tracker.answered;
        tracker.gotReady(bytes[start] ?? 0);
        this.plan.ready(segment);
        log.ready(segment, tracker.status, this.#position);
        return;
      }
      case BACKEND.commandComplete: {
        tracker.gotStatementEnd();
        log.completed(rowsOfTag(bytes, start, end), this.#position);
        this.plan.received(tracker.answered);
        tracker.gotResponse();
        if (user.creates || !isCommon(bytes[start] ?? 0, bytes[start + 2] ?? 0)) {
          user.onTag(bytes.toString('latin1', start, Math.max(start, end - 1)));
        }
        return;
      }
      case BACKEND.errorResponse:
        this.#error(user, Buffer.from(bytes.subarray(start, end)), payloadBytes);
        return;
      case BACKEND.parameterStatus:
        this.#parameter(bytes.subarray(start, end));
        user.onParameters(this.parameters);
        return;
      case BACKEND.rowDescription:
        user.types.rows(bytes, start, end);
        return;
      case BACKEND.parameterDescription:
        user.types.parameters(bytes, start, end);
        return;
      default:
        if ((this.#walker.frameAction & AS_PARSE) !== 0) this.forward(PARSE_COMPLETE);
    }
  }

  forward(bytes: Buffer): void {
    const user = this.#user;
    if (user === null) return;
    if (!user.toClient(bytes)) this.backend.socket.pause();
    if (user.unsent) this.#feed.keep();
  }

  get #position(): number {
    return this.#walker.position - this.#linkedAt;
  }

  #error(user: LinkUser, payload: Buffer, payloadBytes: number): void {
    const { tracker, log } = user;
    const error = parseErrorFields(payload, payload.length < payloadBytes);
    const { cancelledAs, refusing } = user;
    if (refusing !== null) user.refusing = null;
    const instead = refusing ?? (error.sqlState === QUERY_CANCELED ? cancelledAs : null);
    const kept = (this.#walker.frameAction & DROP) !== 0;
    const frame = encodeFrame(BACKEND.errorResponse, kept ? user.inClientsWords(payload) : payload);
    if (error.severity === 'FATAL' || error.severity === 'PANIC') {
      if (kept) this.forward(frame);
      user.onServerError(error.sqlState, frame);
      return;
    }
    const told = refusing?.sqlState ?? error.sqlState;
    log.failed(tracker.answered, this.#position, told);
    if (tracker.gotError()) this.plan.failed(tracker.answered);
    if (refusing === null) user.onServerError(told, null);
    if (kept) this.forward(instead === null ? frame : encodeErrorResponse(instead));
  }

  #parameter(payload: Buffer): void {
    const { name, value } = parseParameterStatus(payload);
    this.backend.parameters.set(name, value);
    this.parameters = this.#deps.parameterSets.intern(this.backend.parameters);
  }

  #ownFrame(type: number, payload: Buffer, payloadBytes: number): void {
    switch (type) {
      case BACKEND.dataRow:
        this.#reply.row(payload, payloadBytes);
        return;
      case BACKEND.errorResponse:
        this.#reply.error(payload, payloadBytes);
        return;
      case BACKEND.parameterStatus:
        this.#parameter(payload);
        return;
      case BACKEND.notificationResponse:
        // Of a client that has begun to listen, while its connection is being asked what it holds.
        if (this.#user !== null) this.forward(encodeFrame(type, payload));
        return;
      case BACKEND.readyForQuery:
        this.status = payload[0] ?? STATUS_IDLE;
        this.#answered();
        return;
      default:
    }
  }

  #answered(): void {
    const exchange = this.#exchange;
    if (exchange === null) {
      // It answers what it was not asked: nothing it says can be trusted any more.
      this.backend.socket.destroy();
      return;
    }
    exchange.replies.push(this.#reply.take());
    if (exchange.replies.length < exchange.wanted) return;
    this.#exchange = null;
    this.#state = this.#user === null ? 'idle' : 'linked';
    if (this.#user !== null) this.#walker.actions = WITH_PARAMETERS;
    exchange.resolve(exchange.replies);
  }
}

/** By its first and third letter: SELECT, SET, SHOW, INSERT, UPDATE, FETCH. */
function isCommon(first: number, third: number): boolean {
  switch (first) {
    case 0x53:
      return third === 0x4c || third === 0x54 || third === 0x4f;
    case 0x49:
      return third === 0x53;
    default:
      return first === 0x55 || first === 0x46;
  }
}

function ignore(): void {
  // The close that follows an error is what is acted on.
}
