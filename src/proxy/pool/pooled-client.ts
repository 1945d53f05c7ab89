/**
 * One client that comes by server connections as it needs them.
 *
 * States:
 * - idle: it has none, and nothing of it is in flight. Behind a closed gate it is at rest here, its bytes kept.
 * - sharing: reads of it are under way on a shared connection (shared-line.ts).
 * - waiting: what it sent needs a connection of its own, for which it stands in the pool's queue.
 * - linking: it has one, which is being given the client's settings.
 * - linked: bytes pass. Goes on until nothing is in flight and no transaction is open.
 * - settling: at that boundary the connection is asked what the client's statements have left in it.
 * - answering: its statements are answered here (local-answers.ts).
 * - closed, pinned: final. Pinned: it left something that can't be carried from connection to connection, and has
 *   become a session, which keeps this one.
 *
 * While subsets are on different sides its statements are routed (client-routing.ts): each state is as above, but what
 * comes is held until it is decided on, and `linking` also serves questions that the routing has.
 *
 *   idle ⇄ sharing      idle → waiting → linking → linked ⇄ settling → idle | pinned      idle, waiting ⇄ answering
 *
 * Invariants:
 * - Bytes of a client are never reordered: while reads of it are shared nothing else of it is sent.
 * - A connection goes back to the pool only with nothing in flight, no transaction open, and its settings known.
 * - Behind a closed gate nothing leaves `idle`, and `waiting` goes back there, as nothing of it was sent yet.
 *
 * Failures: a protocol violation closes the client with 08P01. A lost connection closes it as PostgreSQL would, if
 * anything was in flight or a transaction open; otherwise it doesn't notice. A client that leaves takes a connection
 * that isn't idle with it.
 */
import type net from 'node:net';
import { UnderstudyError } from '../../core/errors.js';
import { StateCell } from '../../core/state-machine.js';
import { encodeErrorResponse, encodeReadyForQuery } from '../../wire/postgres/messages.js';
import { SessionBinaryTypes } from '../session/binary-types.js';
import type { AcceptedClient } from '../login/client-handshake.js';
import type { AnswerMode } from '../session/local-answers.js';
import { STATUS_IDLE, type ResponseTracker } from '../session/response-tracker.js';
import { QUERY_TIMED_OUT, ROLLED_BACK } from '../session/server-stream.js';
import type { SessionInfo } from '../session/session-context.js';
import type { SessionActivity, WatchedSession } from '../session/session-watch.js';
import type { StatementLog } from '../session/statement-log.js';
import { ClientAnswers, type AnswerOptions } from './client-answers.js';
import type { ClientInput } from './client-input.js';
import { ClientIntake, type IntakeHost } from './client-intake.js';
import type { ClientMessages } from './client-messages.js';
import { ClientRouting } from './client-routing.js';
import { BACKEND_FULL, INPUT_FULL, TOO_DEEP, type ClientSocket } from './client-socket.js';
import { PHASES, type PooledPhase } from './client-phase.js';
import { activityOf, infoOf, sessionPhaseOf } from './client-report.js';
import { rollBackLinked } from './client-rollback.js';
import { DEFAULT_STATE, type ClientState } from './client-state.js';
import { ClientWire } from './client-wire.js';
import { carryOver, pinnedSession, timeRead } from './leaving.js';
import type { ParameterSet } from './parameter-sets.js';
import type { Pool } from './pool.js';
import type { PooledBackend } from './pooled-backend.js';
import type { PoolPin } from './pool-settings.js';
import type { PoolContext } from './pool-context.js';
import { SharedReads } from './shared-reads.js';
import { StatementRefused, type RefusedStatement } from '../subset/reach.js';
import type { SubsetRouting } from '../subset/subset-routing.js';

/** Messages awaiting an answer beyond which a client is no longer read. */
const PIPELINE_DEPTH_MAX = 8192;

const READY = encodeReadyForQuery('I');
const LOST_CONNECTION = encodeErrorResponse({
  severity: 'FATAL',
  sqlState: '08006',
  message: 'server closed the connection unexpectedly',
});

export class PooledClient implements WatchedSession, IntakeHost {
  readonly id: number;
  readonly accepted: AcceptedClient;
  pool: Pool;
  readonly reads: SharedReads;
  /** Of the side that serves it: after a switch it is told the new side's OIDs. */
  types: SessionBinaryTypes;
  readonly #context: PoolContext;
  readonly #wire: ClientWire;
  readonly #socket: ClientSocket;
  readonly #input: ClientInput;
  readonly #intake: ClientIntake;
  readonly #answers: ClientAnswers;
  #backend: PooledBackend | null = null;
  state: ClientState = DEFAULT_STATE;
  #gateClosed = false;
  #heldSinceMs: number | null = null;
  #rollingBack = false;
  #cancelWanted = false;
  #transactionSinceMs: number | null = null;
  #pumping = false;
  /** The chunk at hand is needed after it was looked at. */
  #keepsChunk = false;
  #linkedAtMs = 0;
  /** Null unless subsets are on different sides. */
  #routing: ClientRouting | null = null;
  /** To be so once it is at rest. */
  #routeWanted: boolean | null = null;
  /** Waits for a connection on which nothing of the client's is sent yet. */
  #reserving: Reserving | null = null;
  /** The connection is being asked something by the routing. */
  #asking = false;
  readonly #phase = new StateCell<PooledPhase>('pooled client', PHASES, 'idle');

  constructor(id: number, accepted: AcceptedClient, pool: Pool, told: ParameterSet, context: PoolContext) {
    this.id = id;
    this.accepted = accepted;
    this.pool = pool;
    this.#context = context;
    this.#wire = new ClientWire({
      id,
      accepted,
      told,
      context,
      settings: () => this.state.signature,
      types: () => this.types,
      onData: (chunk) => {
        this.#keepsChunk = false;
        if (this.#routing !== null && !this.#phase.is('answering')) this.#routing.held.keep(chunk);
        else if (!this.#intake.receive(chunk)) return this.#keepsChunk || this.#input.length > 0;
        this.#go();
        return this.#keepsChunk || this.#input.length > 0;
      },
      onDrain: () => {
        this.#backend?.resume();
        this.reads.drained();
      },
      onGone: () => this.#close(null),
      settle: () => this.settle(),
      backendGone: () => this.#backendGone(),
    });
    this.#socket = this.#wire.socket;
    this.#input = this.#wire.input;
    this.types = new SessionBinaryTypes(context.binaryTypes, pool.side);
    this.reads = new SharedReads(this, context);
    this.#intake = new ClientIntake(context, this, this.#wire);
    this.#answers = new ClientAnswers(context, this.#input, this.log, (frame) => void this.toClient(frame));
  }

  get tracker(): ResponseTracker {
    return this.#wire.tracker;
  }

  get log(): StatementLog {
    return this.#wire.log;
  }

  get messages(): ClientMessages {
    return this.#wire.messages;
  }

  get socket(): net.Socket {
    return this.#socket.socket;
  }

  get phase(): PooledPhase {
    return this.#phase.current;
  }

  /** Nothing of it is in flight, and nothing new will be before `release`. */
  get atRest(): boolean {
    if (!this.#gateClosed) return this.#phase.is('closed', 'pinned');
    if (this.#routing?.moving === true) return this.#phase.is('closed', 'pinned');
    return this.#phase.is('idle', 'closed', 'pinned') || (this.#phase.is('answering') && !this.#rollingBack);
  }

  get idle(): boolean {
    return this.#phase.is('idle') && this.#unworked === 0 && this.#routing?.moving !== true;
  }

  /** Of what it has sent, bytes that went nowhere yet. */
  get #unworked(): number {
    return this.#input.length + (this.#routing?.held.length ?? 0);
  }

  get linked(): boolean {
    return this.#backend !== null;
  }

  /** For the watch over what lasts too long. */
  get activity(): SessionActivity {
    return activityOf(this.#phase.current, this.tracker, {
      waits: this.#gateClosed || this.#unworked > 0,
      rollingBack: this.#rollingBack,
    });
  }

  get progress(): number {
    return this.#phase.is('linked') && this.tracker.awaitingReady
      ? this.tracker.answered
      : this.#socket.bytesFromClient;
  }

  cancelLate(): void {
    if (this.#backend?.cancelling != null) return;
    if (this.#phase.is('linked')) this.#wire.link.cancelledAs = QUERY_TIMED_OUT;
    this.cancelStatement();
  }

  get info(): SessionInfo {
    const since = this.#transactionSinceMs;
    return infoOf(this, this.#socket, {
      gateClosed: this.#gateClosed,
      inTransactionMs: since === null ? null : Math.round(this.#context.clock.monotonicMs() - since),
      heldBytes: this.#heldSinceMs === null ? 0 : this.#unworked,
    });
  }

  /** Greets the client, with the key by which it may cancel among it, and begins to serve it. */
  start(keyData: Buffer): void {
    this.#socket.start(Buffer.concat([keyData, READY]), this.accepted.leftover);
  }

  terminate(sqlState: string, message: string): void {
    this.#close(encodeErrorResponse({ severity: 'FATAL', sqlState, message }));
  }

  #close(last: Buffer | null): void {
    if (this.#phase.is('closed', 'pinned')) return;
    const before = this.#phase.current;
    if (before === 'waiting') this.pool.leaveQueue(this);
    if (before === 'sharing') this.reads.abandon();
    this.#phase.move('closed');
    // The log tells of a last outcome, which the recording takes as long as it is open.
    this.log.closed();
    this.#socket.recording?.closed();
    const backend = this.#backend;
    this.#backend = null;
    const cut = backend?.insideForwardedFrame === true || this.reads.insideAnswer;
    if (backend !== null) this.pool.drop(backend, before === 'linked' && this.tracker.quiescent);
    this.#socket.close(last, cut);
    this.#input.clear();
    this.#answers.clear();
    this.#routing?.end();
    this.#notReserved({ sqlState: '57P01', message: 'the client has left' });
    this.#context.onClosed(this);
  }

  #violation(error: unknown): void {
    const known = error instanceof UnderstudyError && error.code !== 'internal';
    this.#context.log.warn(
      { session: this.id, error: error instanceof Error ? error.message : String(error) },
      'a pooled client was closed for a protocol violation',
    );
    this.terminate(known ? '08P01' : 'XX000', known ? error.message : 'internal error of the proxy');
  }

  /** False: the server is not to be read until the client has. */
  toClient(bytes: Buffer): boolean {
    return this.#socket.write(bytes);
  }

  /** Goes on with what the client has sent, as far as it may. */
  #go(): void {
    const routing = this.#routing;
    if (routing === null) {
      this.#work();
      return;
    }
    try {
      routing.drive(() => this.#work());
    } catch (error) {
      this.#violation(error);
    }
    this.#noteHeld();
  }

  #work(): void {
    this.#intake.looking();
    try {
      switch (this.#phase.current) {
        case 'idle':
        case 'sharing':
          this.#intake.begin();
          break;
        case 'linked':
          this.#pump();
          break;
        case 'answering':
          this.#answerInput();
          break;
        case 'waiting':
        case 'linking':
        case 'settling':
        case 'closed':
        case 'pinned':
          break;
      }
    } catch (error) {
      this.#violation(error);
      return;
    }
    if (this.#input.length > this.#context.settings.heldBytesMax) this.#socket.pause(INPUT_FULL);
    else this.#socket.resume(INPUT_FULL);
    this.#noteHeld();
  }

  #noteHeld(): void {
    if (this.#unworked === 0) this.#heldSinceMs = null;
    else if (this.#gateClosed && this.#phase.is('idle')) {
      this.#heldSinceMs ??= this.#context.clock.monotonicMs();
    }
  }

  #mayShare(): boolean {
    if (!this.pool.shares || this.gateClosed || this.#routing !== null) return false;
    return this.#phase.is('idle', 'sharing') && this.state === DEFAULT_STATE && !this.#intake.terminated;
  }

  get isIdle(): boolean {
    return this.#phase.is('idle');
  }

  get gateClosed(): boolean {
    return this.#gateClosed || this.#routeWanted !== null;
  }

  share(bytes: Buffer): number {
    if (!this.#mayShare()) return 0;
    const shared = this.reads.leading(bytes);
    // They may come back, and go elsewhere.
    if (shared > 0) this.#keepsChunk = true;
    return shared;
  }

  acquire(): void {
    this.#phase.move('waiting');
    this.#heldSinceMs = null;
    this.pool.acquire(this);
  }

  leave(): void {
    this.#close(null);
  }

  #pump(): void {
    const backend = this.#backend;
    if (backend === null) return;
    if (!this.#intake.pump(backend)) this.#socket.pause(BACKEND_FULL);
    if (backend.unsent) this.#keepsChunk = true;
    if (this.tracker.depth > PIPELINE_DEPTH_MAX) this.#socket.pause(TOO_DEEP);
    this.settle();
  }

  /** The pool: here is a connection. */
  give(backend: PooledBackend): void {
    this.#phase.move('linking');
    this.#backend = backend;
    const ready = this.#ready(backend);
    if (ready === null) {
      this.#link(backend);
      return;
    }
    ready
      .then(() => {
        if (this.#backend === backend && this.#phase.is('linking')) this.#link(backend);
      })
      .catch((error: unknown) => {
        this.#context.log.warn(
          { session: this.id, error: String(error) },
          'a connection could not take a client’s settings',
        );
        if (this.#backend !== backend) return;
        this.#backend = null;
        const lost = !backend.alive;
        this.pool.drop(backend, false);
        if (lost) {
          // Nothing of the client was sent: another connection will do.
          this.#phase.move('idle');
          if (this.#reserving !== null) this.acquire();
          else if (this.gateClosed) this.#cameToRest();
          else this.#go();
          return;
        }
        this.terminate(
          '57P01',
          'terminating connection because its settings could not be carried to another connection',
        );
      });
  }

  /** Null: the connection holds what its client has set, and names mean there what they were read as. */
  #ready(backend: PooledBackend): Promise<unknown> | null {
    const ready = this.pool.makeReady(backend, this);
    const routing = this.#reserving === null ? this.#routing : null;
    if (routing === null) return ready;
    return ready === null ? routing.sure(backend) : ready.then(() => routing.sure(backend));
  }

  #link(backend: PooledBackend): void {
    if (this.#reserving === null && this.#routing?.agrees(backend) === false) {
      this.#disagrees(backend);
      return;
    }
    this.#phase.move('linked');
    this.#linkedAtMs = this.#context.clock.monotonicMs();
    backend.lastClient = this.id;
    this.#wire.link.to(backend);
    this.tracker.reset();
    this.log.moved();
    this.messages.linked();
    this.#socket.tell(backend.parameters);
    const reserving = this.#reserving;
    this.#reserving = null;
    if (reserving === null) this.#go();
    else reserving.resolve(backend);
  }

  /** Names mean something else on it than what was decided by; nothing was sent. */
  #disagrees(backend: PooledBackend): void {
    if (this.#phase.is('closed')) return;
    this.#backend = null;
    this.#phase.move('idle');
    this.pool.giveBack(backend);
    this.#routing?.takeBack();
    this.#cameToRest();
    this.#go();
  }

  /** A connection of the present pool, for what is not the client's own to send. Rejects with `StatementRefused`. */
  #reserve(): Promise<PooledBackend> {
    const backend = this.#backend;
    if (backend !== null && this.#phase.is('linked')) return Promise.resolve(backend);
    if (!this.#phase.is('idle')) return Promise.reject(new StatementRefused(CANCELED));
    return new Promise((resolve, reject) => {
      this.#reserving = { resolve, reject };
      this.acquire();
    });
  }

  #notReserved(refusal: RefusedStatement): boolean {
    const reserving = this.#reserving;
    this.#reserving = null;
    reserving?.reject(new StatementRefused(refusal));
    return reserving !== null;
  }

  /** Gives the connection back in the middle of the client's work, or returns what keeps it there. */
  async #layDown(): Promise<PoolPin | null> {
    const backend = this.#backend;
    if (backend === null) return null;
    const { messages } = this;
    if (messages.pin === null && messages.dirty) {
      messages.pin = await this.#whileAsking(() => carryOver(this, backend, this.#context));
    }
    if (messages.pin !== null || this.#backend !== backend) return messages.pin;
    this.#backend = null;
    this.#phase.move('idle');
    backend.unlink();
    this.pool.giveBack(backend);
    this.#socket.resume(BACKEND_FULL);
    return null;
  }

  async #whileAsking<T>(question: () => Promise<T>): Promise<T> {
    this.#asking = true;
    try {
      return await question();
    } finally {
      this.#asking = false;
    }
  }

  /** The pool: there is none for you. */
  refuse(sqlState: string, message: string): void {
    if (!this.#phase.is('waiting')) return;
    this.#phase.move('idle');
    if (this.#notReserved({ sqlState, message })) return;
    this.#answer('once', sqlState, message);
  }

  #backendGone(): void {
    if (this.#phase.is('closed', 'pinned')) return;
    this.#backend = null;
    this.#close(this.#wire.link.fatal === null ? LOST_CONNECTION : null);
  }

  /** After anything that may have settled something. */
  settle(): void {
    if (!this.#phase.is('linked')) return;
    const { tracker } = this;
    const backend = this.#backend;
    if (backend === null) return;
    if (tracker.status === STATUS_IDLE) this.#transactionSinceMs = null;
    else this.#transactionSinceMs ??= this.#context.clock.monotonicMs();
    if (this.#wire.link.cancelledAs === QUERY_TIMED_OUT && tracker.settled)
      this.#wire.link.cancelledAs = null;
    if (this.#cancelWanted) {
      this.#cancelWanted = false;
      if (!tracker.settled) backend.cancel();
    }
    if (tracker.depth < PIPELINE_DEPTH_MAX / 4) this.#socket.resume(TOO_DEEP);
    if (this.#atBoundary(backend)) {
      this.#leave(backend);
      return;
    }
    if (this.#intake.terminated) {
      this.#close(null);
      return;
    }
    if (
      (this.#gateClosed || this.#intake.waitsForAnswers || this.#routing !== null) &&
      this.#unworked > 0 &&
      !tracker.awaitingReady &&
      !this.#pumping
    ) {
      this.#pumping = true;
      this.#go();
      this.#pumping = false;
    }
  }

  #atBoundary(backend: PooledBackend): boolean {
    if (this.#asking || this.#routing?.midway === true) return false;
    return this.tracker.quiescent && this.#input.passing === 0 && backend.betweenFrames && !this.#rollingBack;
  }

  #leave(backend: PooledBackend): void {
    timeRead(this, this.#context, this.#linkedAtMs);
    if (this.messages.pin !== null || this.messages.dirty) {
      this.#phase.move('settling');
      this.#settleState(backend).catch((error: unknown) => {
        this.#context.log.warn(
          { session: this.id, error: String(error) },
          'a connection could not be asked what it holds',
        );
        if (!this.#phase.is('settling')) return;
        this.#close(LOST_CONNECTION);
      });
      return;
    }
    this.#unlink(backend);
  }

  /** Asks the connection what the client has left in it, and lets go of it where all of that can be carried. */
  async #settleState(backend: PooledBackend): Promise<void> {
    const pin = this.messages.pin ?? (await carryOver(this, backend, this.#context));
    if (!this.#phase.is('settling')) return;
    if (pin === null) {
      this.#unlink(backend);
      return;
    }
    this.messages.pin = pin;
    const pinned = await pinnedSession(this, backend);
    if (!this.#phase.is('settling')) return;
    this.#phase.move('pinned');
    this.#backend = null;
    this.pool.forget(backend);
    this.socket.pause();
    this.#socket.detach();
    this.#routing?.giveUp();
    this.#routing?.end();
    const leftover = this.#input.all();
    this.#input.clear();
    const unrecorded = this.#socket.recording?.handOn() ?? 0;
    const recorded = Math.max(0, leftover.length - unrecorded);
    this.#context.onPinned(this, pinned, pin, { bytes: leftover, recorded });
  }

  #unlink(backend: PooledBackend): void {
    this.#backend = null;
    this.#phase.move('idle');
    backend.unlink();
    this.pool.giveBack(backend);
    this.#socket.resume(BACKEND_FULL);
    if (this.#intake.terminated) {
      this.#close(null);
      return;
    }
    this.#cameToRest();
    this.#go();
  }

  #cameToRest(): void {
    // What was decided on was so by who led then.
    if (this.#gateClosed && this.#phase.is('idle')) this.#routing?.takeBack();
    if (this.#routeWanted !== null) this.route(this.#routeWanted);
    if (this.#gateClosed) this.#context.onAtRest(this);
  }

  /** Its shared reads are all answered. */
  readsDone(): void {
    if (!this.#phase.is('sharing')) return;
    this.#phase.move('idle');
    if (this.#input.length > 0) this.#go();
    if (this.#phase.is('idle')) this.#cameToRest();
  }

  /** A read of it goes down a shared connection. */
  readsBegun(): void {
    if (this.#phase.is('idle')) this.#phase.move('sharing');
  }

  /** Reads that were not answered are to be run on a connection of its own; they stand in front of what came later. */
  readsBack(bytes: Buffer): void {
    this.#input.unshift(bytes);
  }

  /** A shared connection was lost in the middle of an answer. */
  readLost(): void {
    this.#close(LOST_CONNECTION);
  }

  hold(): void {
    this.#gateClosed = true;
    this.#giveUpWaiting();
    if (this.#phase.is('idle') && this.#unworked > 0) this.#heldSinceMs ??= this.#context.clock.monotonicMs();
    this.settle();
  }

  /** Nothing of what it waits to send may be begun; but what is between sides goes on. */
  #giveUpWaiting(): void {
    if (this.#routing?.moving === true) return;
    if (this.#phase.is('waiting')) {
      this.pool.leaveQueue(this);
      this.#phase.move('idle');
      this.#notReserved(CANCELED);
    }
    if (this.#phase.is('idle')) this.#routing?.takeBack();
  }

  /** Begins, or ceases, to give each of its statements a side: now where it is at rest, else once it is. */
  route(wanted: boolean): void {
    this.#routeWanted = null;
    if (wanted === (this.#routing !== null) || this.#phase.is('closed', 'pinned')) return;
    if (!this.#phase.is('idle') || this.#routing?.moving === true) {
      this.#routeWanted = wanted;
      this.#giveUpWaiting();
      this.settle();
      if (!this.#phase.is('idle') || this.#routing?.moving === true || this.#routeWanted === null) return;
      this.#routeWanted = null;
    }
    const { routing } = this.#context;
    if (wanted && routing !== null) {
      this.#routing = this.#newRouting(routing);
      this.#routing.takeBack();
    } else {
      this.#routing?.giveUp();
      this.#routing?.end();
      this.#routing = null;
    }
    if (!this.#gateClosed) this.#go();
  }

  #newRouting(routing: SubsetRouting): ClientRouting {
    return new ClientRouting(routing, this, this.#wire, this.#context, {
      backend: () => (this.#phase.is('linked') ? this.#backend : null),
      mayBegin: () => this.#mayBegin(),
      reserve: () => this.#reserve(),
      layDown: () => this.#layDown(),
      serveFrom: (pool) => this.#serveFrom(pool),
      busy: (asking) => {
        this.#asking = asking;
        if (!asking) this.settle();
      },
      answer: ({ sqlState, message, hint }) =>
        this.#answer('once', sqlState, message, hint === undefined ? {} : { hint }),
      terminate: (sqlState, message) => this.terminate(sqlState, message),
      settle: () => {
        this.settle();
        this.#go();
        if (this.#phase.is('idle') && this.#routing?.moving !== true) this.#cameToRest();
      },
    });
  }

  /** While its statements are routed: whether another may be begun. */
  #mayBegin(): boolean {
    if (this.#phase.is('idle')) return !this.gateClosed;
    const backend = this.#backend;
    if (!this.#phase.is('linked') || backend === null) return false;
    return !this.gateClosed || !this.tracker.quiescent;
  }

  #serveFrom(pool: Pool): void {
    if (this.pool === pool) return;
    this.pool = pool;
    this.types = new SessionBinaryTypes(this.#context.binaryTypes, pool.side);
  }

  /** Returns how long what it sent has waited, in milliseconds; null where nothing did. */
  release(): number | null {
    this.#gateClosed = false;
    const since = this.#heldSinceMs;
    this.#heldSinceMs = null;
    if (this.#phase.is('answering')) {
      if (this.#answers.finish()) this.#answersDone();
      return null;
    }
    this.#go();
    return since === null ? null : this.#context.clock.monotonicMs() - since;
  }

  /** At rest: the other side serves it from now on. */
  moveTo(pool: Pool, parameters: ParameterSet): void {
    this.#serveFrom(pool);
    this.#socket.tell(parameters);
  }

  failHeld(sqlState: string, message: string): void {
    if (this.#phase.is('idle') && this.#gateClosed) this.#answer('all', sqlState, message);
  }

  cancelStatement(): void {
    switch (this.#phase.current) {
      case 'waiting':
        if (this.#routing?.moving === true) return;
        this.pool.leaveQueue(this);
        this.#phase.move('idle');
        this.#answer('once', CANCELED.sqlState, CANCELED.message);
        this.#notReserved(CANCELED);
        return;
      case 'idle':
        if (this.#unworked > 0 && this.#routing?.moving !== true)
          this.#answer('once', CANCELED.sqlState, CANCELED.message);
        return;
      case 'sharing':
        this.reads.cancel(CANCELED);
        return;
      case 'linked':
        this.#cancelWanted = true;
        this.settle();
        return;
      default:
    }
  }

  #answer(mode: AnswerMode, sqlState: string, message: string, options: AnswerOptions = {}): void {
    this.#routing?.giveUp();
    this.#answers.begin(mode, sqlState, message, options);
    this.#phase.move('answering');
    this.#go();
  }

  #answerInput(): void {
    switch (this.#answers.work()) {
      case 'terminated':
        this.#close(null);
        return;
      case 'done':
        this.#answersDone();
        return;
      case 'going-on':
    }
  }

  #answersDone(): void {
    if (this.#rollingBack) return;
    this.#answers.end();
    this.#phase.move('idle');
    this.#routing?.takeBack();
    if (this.gateClosed) this.#cameToRest();
    this.#go();
  }

  /** The drain deadline has passed: what is open is ended, and the client told 40001. */
  async rollBack(): Promise<void> {
    const backend = this.#backend;
    if (this.atRest || backend === null || !this.#phase.is('linked')) return;
    await rollBackLinked(backend, this.#context, {
      tracker: this.tracker,
      phase: () =>
        this.#phase.is('linked') ? 'draining' : sessionPhaseOf(this.#phase.current, this.#gateClosed),
      midway: () =>
        this.#input.passing > 0 || (this.#routing !== null && (this.#routing.midway || this.#asking)),
      terminate: (sqlState, message) => this.terminate(sqlState, message),
      toClient: (bytes) => void this.toClient(bytes),
      setCancelling: (cancelling) => (this.#wire.link.cancelledAs = cancelling ? ROLLED_BACK : null),
      answer: (how) => {
        this.#rollingBack = true;
        this.#answer('transaction', ROLLED_BACK.sqlState, ROLLED_BACK.message, how);
      },
    });
    if (!this.#rollingBack) return;
    this.#rollingBack = false;
    if (this.#phase.is('closed', 'pinned')) return;
    this.#rolledBack(backend);
  }

  /** The connection is idle again, and may be left where its state is known; the client is answered here meanwhile. */
  #rolledBack(backend: PooledBackend): void {
    this.tracker.reset();
    this.#transactionSinceMs = null;
    this.#backend = null;
    backend.unlink();
    // What a rolled back transaction has left is not worth a question.
    if (this.messages.dirty || this.messages.pin !== null) this.pool.drop(backend, true);
    else this.pool.giveBack(backend);
    this.messages.dirty = false;
    if (this.#answers.done) this.#answersDone();
    this.#cameToRest();
  }
}

/** Somebody waits for a connection. */
interface Reserving {
  readonly resolve: (backend: PooledBackend) => void;
  readonly reject: (error: Error) => void;
}

const CANCELED = { sqlState: '57014', message: 'canceling statement due to user request' };
