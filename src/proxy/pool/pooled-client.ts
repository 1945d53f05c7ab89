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
import {
  FRAME_HEADER_BYTES,
  FRONTEND,
  encodeCommandComplete,
  encodeErrorResponse,
  encodeParameterStatus,
  encodeReadyForQuery,
  type ErrorResponseFields,
} from '../../wire/postgres/messages.js';
import { endsPreparedTransaction } from '../../wire/postgres/statement-text.js';
import type { AcceptedClient } from '../client-handshake.js';
import { LocalAnswers, type AnswerMode } from '../local-answers.js';
import { ResponseTracker, STATUS_FAILED, STATUS_IDLE, type OwnKind } from '../response-tracker.js';
import { QUERY_TIMED_OUT, ROLLED_BACK } from '../server-stream.js';
import type { SessionInfo } from '../session-context.js';
import { rollBackSession } from '../session-rollback.js';
import type { SessionActivity, WatchedSession } from '../session-watch.js';
import type { SessionPhase } from '../session.js';
import { closeWith } from '../socket-reader.js';
import { StatementLog } from '../statement-log.js';
import { ClientInput } from './client-input.js';
import { ClientMessages } from './client-messages.js';
import { SEQUENCE_STATE } from './decisions.js';
import { DEFAULT_STATE, applyState, type ClientState } from './client-state.js';
import { askState, pinnedSession } from './leaving.js';
import { parameterChanges, type ParameterSet } from './parameter-sets.js';
import type { Pool } from './pool.js';
import type { PooledBackend, LinkUser } from './pooled-backend.js';
import type { PoolPin } from './pool-settings.js';
import type { PoolContext } from './pool-context.js';
import { SharedReads } from './shared-reads.js';

export type PooledPhase =
  'idle' | 'sharing' | 'waiting' | 'linking' | 'linked' | 'settling' | 'answering' | 'closed' | 'pinned';

/** Why the client's socket is not being read. */
const BACKEND_FULL = 1;
const INPUT_FULL = 2;
const TOO_DEEP = 4;
const CLIENT_FULL = 8;

/** Messages awaiting an answer beyond which a client is no longer read. */
const PIPELINE_DEPTH_MAX = 8192;

const READY = encodeReadyForQuery('I');
/** A longer DEALLOCATE of one name can't be. */
const DEALLOCATE_BYTES_MAX = 300;
const LOST_CONNECTION = encodeErrorResponse({
  severity: 'FATAL',
  sqlState: '08006',
  message: 'server closed the connection unexpectedly',
});

export class PooledClient implements LinkUser, WatchedSession {
  readonly id: number;
  readonly accepted: AcceptedClient;
  pool: Pool;
  readonly tracker = new ResponseTracker();
  readonly log: StatementLog;
  readonly messages: ClientMessages;
  readonly reads: SharedReads;
  readonly socket: net.Socket;
  readonly #context: PoolContext;
  readonly #input: ClientInput;
  #need = 0;
  #backend: PooledBackend | null = null;
  state: ClientState = DEFAULT_STATE;
  /** What the client was told of the server's settings. */
  told: ParameterSet;
  #answers: LocalAnswers | null = null;
  #gateClosed = false;
  #heldSinceMs: number | null = null;
  #rollingBack = false;
  #cancelledAs: ErrorResponseFields | null = null;
  #fatal: Buffer | null = null;
  #paused = 0;
  #terminated = false;
  #cancelWanted = false;
  #transactionSinceMs: number | null = null;
  #bytesFromClient = 0;
  #bytesToClient = 0;
  readonly #phase = new StateCell<PooledPhase>(
    'pooled client',
    {
      idle: ['sharing', 'waiting', 'answering', 'closed'],
      sharing: ['idle', 'closed'],
      waiting: ['idle', 'linking', 'closed'],
      linking: ['linked', 'idle', 'closed'],
      linked: ['settling', 'answering', 'idle', 'closed'],
      settling: ['idle', 'pinned', 'closed'],
      answering: ['idle', 'linked', 'closed'],
      closed: [],
      pinned: [],
    },
    'idle',
  );

  constructor(id: number, accepted: AcceptedClient, pool: Pool, told: ParameterSet, context: PoolContext) {
    this.id = id;
    this.accepted = accepted;
    this.socket = accepted.socket;
    this.pool = pool;
    this.told = told;
    this.#context = context;
    const { settings, clock } = context;
    this.log = new StatementLog(
      context.tap,
      id,
      settings.textBytesMax,
      () => clock.monotonicMs(),
      settings.parameterBytesMax,
    );
    this.#input = new ClientInput({
      frameBytesMax: settings.frameBytesMax,
      statementBytesMax: settings.stateBytesMax,
    });
    this.messages = new ClientMessages({
      tracker: this.tracker,
      log: this.log,
      decisions: context.decisions,
      sequences: context.sequences,
      definitions: context.definitions,
      statementBytesMax: settings.stateBytesMax,
      settings: () => this.state.signature,
    });
    this.reads = new SharedReads(this, context);
  }

  get phase(): PooledPhase {
    return this.#phase.current;
  }

  /** Nothing of it is in flight, and nothing new will be before `release`. */
  get atRest(): boolean {
    if (!this.#gateClosed) return this.#phase.is('closed', 'pinned');
    return this.#phase.is('idle', 'closed', 'pinned') || (this.#phase.is('answering') && !this.#rollingBack);
  }

  get idle(): boolean {
    return this.#phase.is('idle') && this.#input.length === 0;
  }

  get linked(): boolean {
    return this.#backend !== null;
  }

  /** For the watch over what lasts too long. */
  get activity(): SessionActivity {
    if (this.#phase.is('idle')) return this.#gateClosed || this.#input.length > 0 ? 'exempt' : 'idle';
    if (this.#phase.is('sharing')) return 'running';
    if (!this.#phase.is('linked') || this.#rollingBack) return 'exempt';
    const { tracker } = this;
    return tracker.awaitingReady || tracker.owesExtended || tracker.copy !== 'none'
      ? 'running'
      : 'idle-in-transaction';
  }

  get progress(): number {
    return this.#phase.is('linked') && this.tracker.awaitingReady
      ? this.tracker.answered
      : this.#bytesFromClient;
  }

  cancelLate(): void {
    if (this.#phase.is('linked')) this.#cancelledAs = QUERY_TIMED_OUT;
    this.cancelStatement();
  }

  get info(): SessionInfo {
    const since = this.#transactionSinceMs;
    const busy = !this.#phase.is('idle', 'waiting', 'answering', 'closed');
    return {
      id: this.id,
      user: this.accepted.user,
      applicationName: this.accepted.parameters.get('application_name') ?? '',
      side: this.pool.side,
      phase: this.#sessionPhase(),
      transactionStatus: String.fromCharCode(this.tracker.status),
      busy: busy && !(this.#phase.is('linked') && this.tracker.settled),
      inTransactionMs: since === null ? null : Math.round(this.#context.clock.monotonicMs() - since),
      heldBytes: this.#heldSinceMs === null ? 0 : this.#input.length,
      backendLost: false,
      bytesFromClient: this.#bytesFromClient,
      bytesToClient: this.#bytesToClient,
    };
  }

  #sessionPhase(): SessionPhase {
    if (this.#phase.is('closed', 'pinned')) return 'closed';
    if (this.#phase.is('answering')) return 'answering';
    if (!this.#gateClosed) return 'serving';
    return this.#phase.is('idle') ? 'held' : 'draining';
  }

  // ------------------------------------------------------------------------------------------------------ life

  /** Greets the client, with the key by which it may cancel among it, and begins to serve it. */
  start(keyData: Buffer): void {
    const { socket } = this;
    socket.on('data', this.#onData);
    socket.on('drain', this.#onDrain);
    socket.on('error', ignore);
    socket.on('close', this.#onGone);
    const parameters = [...this.told.values].map(([name, value]) => encodeParameterStatus(name, value));
    this.toClient(Buffer.concat([...parameters, keyData, READY]));
    if (socket.destroyed) {
      this.#onGone();
      return;
    }
    if (this.accepted.leftover.length > 0) this.#onData(this.accepted.leftover);
    if (this.#paused === 0) socket.resume();
  }

  readonly #onGone = (): void => this.#close(null);

  terminate(sqlState: string, message: string): void {
    this.#close(encodeErrorResponse({ severity: 'FATAL', sqlState, message }));
  }

  #close(last: Buffer | null): void {
    if (this.#phase.is('closed', 'pinned')) return;
    const before = this.#phase.current;
    if (before === 'waiting') this.pool.leaveQueue(this);
    if (before === 'sharing') this.reads.abandon();
    this.#phase.move('closed');
    const backend = this.#backend;
    this.#backend = null;
    const cut = backend?.insideForwardedFrame === true || this.reads.insideAnswer;
    if (backend !== null) this.pool.drop(backend, before === 'linked' && this.tracker.quiescent);
    this.#detach();
    if (cut) this.socket.destroy();
    else closeWith(this.socket, last ?? undefined);
    this.#input.clear();
    this.#answers = null;
    this.#context.onClosed(this);
  }

  #detach(): void {
    this.socket.off('data', this.#onData);
    this.socket.off('drain', this.#onDrain);
    this.socket.off('close', this.#onGone);
  }

  #violation(error: unknown): void {
    const known = error instanceof UnderstudyError && error.code !== 'internal';
    this.#context.log.warn(
      { session: this.id, error: error instanceof Error ? error.message : String(error) },
      'a pooled client was closed for a protocol violation',
    );
    this.terminate(known ? '08P01' : 'XX000', known ? error.message : 'internal error of the proxy');
  }

  // -------------------------------------------------------------------------------------------------- the socket

  readonly #onData = (chunk: Buffer): void => {
    this.#bytesFromClient += chunk.length;
    const input = this.#input;
    let rest = chunk;
    if (input.length === 0 && this.#mayShare()) {
      const used = this.reads.leading(chunk);
      if (used === chunk.length) return;
      if (used > 0) rest = chunk.subarray(used);
    }
    input.push(rest);
    if (input.length < this.#need) return;
    this.#go();
  };

  readonly #onDrain = (): void => {
    this.#resume(CLIENT_FULL);
    this.#backend?.resume();
    this.reads.drained();
  };

  /** LinkUser. False: the server is not to be read until the client has. */
  toClient(bytes: Buffer): boolean {
    this.#bytesToClient += bytes.length;
    if (this.socket.write(bytes)) return true;
    this.#pause(CLIENT_FULL);
    return false;
  }

  #pause(reason: number): void {
    if (this.#paused === 0) this.socket.pause();
    this.#paused |= reason;
  }

  #resume(reason: number): void {
    if ((this.#paused & reason) === 0) return;
    this.#paused &= ~reason;
    if (this.#paused === 0 && !this.#phase.is('closed', 'pinned')) this.socket.resume();
  }

  // ----------------------------------------------------------------------------------------------- what was sent

  /** Goes on with what the client has sent, as far as it may. */
  #go(): void {
    this.#need = 0;
    try {
      switch (this.#phase.current) {
        case 'idle':
        case 'sharing':
          this.#begin();
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
    const { length } = this.#input;
    if (length > this.#context.settings.heldBytesMax) this.#pause(INPUT_FULL);
    else this.#resume(INPUT_FULL);
    if (length === 0) this.#heldSinceMs = null;
    else if (this.#gateClosed && this.#phase.is('idle')) {
      this.#heldSinceMs ??= this.#context.clock.monotonicMs();
    }
  }

  #mayShare(): boolean {
    if (!this.pool.shares || this.#gateClosed) return false;
    return this.#phase.is('idle', 'sharing') && this.state === DEFAULT_STATE && !this.#terminated;
  }

  /** Without a connection: what comes first decides where it goes. */
  #begin(): void {
    const input = this.#input;
    while (this.#phase.is('idle', 'sharing') && input.length > 0) {
      if (this.#mayShare()) {
        const used = this.reads.leading(input.all());
        if (used > 0) {
          input.drop(used);
          continue;
        }
      }
      const bytes = input.all();
      const have = input.readable(bytes, 0);
      if (have === 0) {
        this.#need = input.length + 1;
        return;
      }
      if (!this.#phase.is('idle')) return;
      const type = bytes[0] as number;
      if (type === FRONTEND.terminate) {
        this.#close(null);
        return;
      }
      if (this.#gateClosed && !this.#mayPassGate(type, bytes, have)) return;
      if (type === FRONTEND.sync) {
        input.drop(have);
        this.toClient(READY);
        continue;
      }
      if (type === FRONTEND.flush) {
        input.drop(have);
        continue;
      }
      const gone = this.#deallocated(type, bytes, 0, have);
      if (gone !== null) {
        input.drop(have);
        this.#deallocate(gone);
        continue;
      }
      this.#lookForSequences(type, bytes, have);
      this.#phase.move('waiting');
      this.#heldSinceMs = null;
      this.pool.acquire(this);
      return;
    }
  }

  /** Before a connection is given: whoever asks for it must not be told what sequences gave another client. */
  #lookForSequences(type: number, bytes: Buffer, have: number): void {
    const { sequences } = this.#context;
    if (sequences.asked || (type !== FRONTEND.query && type !== FRONTEND.parse)) return;
    sequences.asked = SEQUENCE_STATE.test(bytes.toString('latin1', FRAME_HEADER_BYTES, have));
  }

  /** The end of a prepared transaction, which others may wait for. */
  #mayPassGate(type: number, bytes: Buffer, have: number): boolean {
    if (type !== FRONTEND.query || !this.#context.mayPassHeld()) return false;
    return endsPreparedTransaction(bytes.toString('latin1', FRAME_HEADER_BYTES, have - 1));
  }

  /** Linked: frame by frame, as far as they are there and may go. */
  #pump(): void {
    const backend = this.#backend;
    const input = this.#input;
    if (backend === null) return;
    const bytes = input.all();
    let at = 0;
    if (input.passing > 0) {
      at = Math.min(input.passing, bytes.length);
      this.messages.pass(bytes, 0, at);
      input.passing -= at;
    }
    while (at < bytes.length && input.passing === 0) {
      const have = input.readable(bytes, at);
      if (have === 0) {
        this.#need = bytes.length - at + 1;
        break;
      }
      const type = bytes[at] as number;
      if (type === FRONTEND.terminate) {
        this.#terminated = true;
        break;
      }
      if (this.#mustWait(type)) break;
      const gone = this.#deallocated(type, bytes, at, have);
      if (gone !== null) {
        this.#waitsForAnswers = !this.tracker.settled;
        if (this.#waitsForAnswers) break;
        this.#deallocate(gone);
        at += have;
        continue;
      }
      const whole = bytes.readInt32BE(at + 1) + 1;
      this.messages.frame(bytes, at, at + have, backend);
      input.passing = whole - have;
      at += have;
    }
    input.drop(at);
    const out = this.messages.take();
    if (out !== null && !backend.write(out)) this.#pause(BACKEND_FULL);
    if (this.tracker.depth > PIPELINE_DEPTH_MAX) this.#pause(TOO_DEEP);
    this.settle();
  }

  /** The statement that is to be deallocated by a name the server doesn't know; null where the frame is not that. */
  #deallocated(type: number, bytes: Buffer, at: number, have: number): string | null {
    if (type !== FRONTEND.query || have > DEALLOCATE_BYTES_MAX || this.messages.names.size === 0) return null;
    if (this.tracker.status === STATUS_FAILED) return null;
    const text = bytes.toString('latin1', at + FRAME_HEADER_BYTES, at + have - 1);
    const match = /^\s*deallocate\s+(?:prepare\s+)?(?:"([^"]+)"|([a-z_][\w$]*))\s*;?\s*$/i.exec(text);
    const name = match?.[1] ?? match?.[2]?.toLowerCase();
    return name !== undefined && this.messages.names.has(name) ? name : null;
  }

  /** Answers it here: nothing else is due. */
  #deallocate(name: string): void {
    this.messages.names.delete(name);
    this.log.closeStatement(name);
    const status = this.tracker.status === STATUS_IDLE ? 'I' : 'T';
    this.toClient(Buffer.concat([encodeCommandComplete('DEALLOCATE'), encodeReadyForQuery(status)]));
  }

  /** While the gate closes, nothing follows a sync point before its ReadyForQuery. */
  #mustWait(type: number): boolean {
    const { tracker } = this;
    if (!this.#gateClosed || !tracker.awaitingReady) return false;
    switch (type) {
      case FRONTEND.copyData:
      case FRONTEND.copyDone:
      case FRONTEND.copyFail:
        return false;
      case FRONTEND.sync:
      case FRONTEND.flush:
        return tracker.copy !== 'in';
      default:
        return true;
    }
  }

  // ------------------------------------------------------------------------------------------------------ linking

  /** The pool: here is a connection. */
  give(backend: PooledBackend): void {
    this.#phase.move('linking');
    this.#backend = backend;
    const wantsNothing =
      backend.held.signature === this.state.signature && !this.pool.forgetsSequences(backend, this);
    if (wantsNothing) {
      this.#link(backend);
      return;
    }
    this.#makeReady(backend).catch((error: unknown) => {
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
        this.#go();
        return;
      }
      this.terminate(
        '57P01',
        'terminating connection because its settings could not be carried to another connection',
      );
    });
  }

  async #makeReady(backend: PooledBackend): Promise<void> {
    if (this.pool.forgetsSequences(backend, this)) await backend.query('DISCARD SEQUENCES');
    const pins = await applyState(backend, backend.held, this.state);
    const [refused] = pins;
    if (refused !== undefined)
      throw new UnderstudyError('backend-refused', `${refused.reason}: ${refused.detail}`);
    backend.held = this.state;
    if (this.#backend === backend && this.#phase.is('linking')) this.#link(backend);
  }

  #link(backend: PooledBackend): void {
    this.#phase.move('linked');
    backend.lastClient = this.id;
    backend.link(this);
    this.tracker.reset();
    this.log.moved();
    this.messages.linked();
    this.tell(backend.parameters);
    this.#go();
  }

  /** Tells the client what differs from what it was told. */
  tell(parameters: ParameterSet): void {
    if (this.told === parameters) return;
    const changes = parameterChanges(this.told, parameters);
    this.told = parameters;
    if (changes.length > 0) this.toClient(changes);
  }

  /** The pool: there is none for you. */
  refuse(sqlState: string, message: string): void {
    if (!this.#phase.is('waiting')) return;
    this.#phase.move('idle');
    this.#answer('once', sqlState, message);
  }

  // ----------------------------------------------------------------------------------------------------- LinkUser

  get cancelledAs(): ErrorResponseFields | null {
    return this.#cancelledAs;
  }

  onServerError(sqlState: string, fatal: Buffer | null): void {
    if (fatal !== null) {
      this.#fatal = fatal;
      return;
    }
    this.#context.onError(sqlState);
    if (sqlState === STALE_PLAN || sqlState === UNKNOWN_STATEMENT) this.#renewPlans();
  }

  /** "cached plan must not change result type", or statements were deallocated unseen: the statements at hand are prepared anew when next needed. */
  #renewPlans(): void {
    for (const definition of this.messages.names.values()) this.#context.definitions.renew(definition);
  }

  onTag(tag: string): void {
    const backend = this.#backend;
    if (backend === null) return;
    switch (tag) {
      case 'DISCARD ALL':
      case 'DEALLOCATE ALL':
        backend.prepared.clear();
        this.messages.names.clear();
        break;
      default:
        if (DDL.test(tag)) backend.ranDdl = true;
    }
  }

  onParameters(set: ParameterSet): void {
    this.told = set;
  }

  onBackendDrain(): void {
    this.#resume(BACKEND_FULL);
  }

  onBackendGone(): void {
    if (this.#phase.is('closed', 'pinned')) return;
    this.#backend = null;
    this.#close(this.#fatal === null ? LOST_CONNECTION : null);
  }

  /** After anything that may have settled something. */
  settle(): void {
    if (!this.#phase.is('linked')) return;
    const { tracker } = this;
    const backend = this.#backend;
    if (backend === null) return;
    if (tracker.status === STATUS_IDLE) this.#transactionSinceMs = null;
    else this.#transactionSinceMs ??= this.#context.clock.monotonicMs();
    if (this.#cancelledAs === QUERY_TIMED_OUT && tracker.settled) this.#cancelledAs = null;
    if (this.#cancelWanted) {
      this.#cancelWanted = false;
      if (!tracker.settled) backend.cancel();
    }
    if (tracker.depth < PIPELINE_DEPTH_MAX / 4) this.#resume(TOO_DEEP);
    if (this.#atBoundary(backend)) {
      this.#leave(backend);
      return;
    }
    if (this.#terminated) {
      this.#close(null);
      return;
    }
    if (
      (this.#gateClosed || this.#waitsForAnswers) &&
      this.#input.length > 0 &&
      !tracker.awaitingReady &&
      !this.#pumping
    ) {
      this.#pumping = true;
      this.#go();
      this.#pumping = false;
    }
  }

  #pumping = false;
  /** What comes next is answered here, and not before what was sent is. */
  #waitsForAnswers = false;

  #atBoundary(backend: PooledBackend): boolean {
    return this.tracker.quiescent && this.#input.passing === 0 && backend.betweenFrames && !this.#rollingBack;
  }

  // ------------------------------------------------------------------------------------------------------ leaving

  #leave(backend: PooledBackend): void {
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
    let pin: PoolPin | null = this.messages.pin;
    if (pin === null) {
      const names = new Set([...this.messages.settingNames, ...this.#context.customSettings()]);
      const asked = await askState(backend, names, this.accepted.user);
      pin = asked.pin;
      this.state = asked.state;
      backend.held = asked.state;
      this.messages.dirty = false;
    }
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
    this.#detach();
    const leftover = this.#input.all();
    this.#input.clear();
    this.#context.onPinned(this, pinned, pin, leftover);
  }

  #unlink(backend: PooledBackend): void {
    this.#backend = null;
    this.#phase.move('idle');
    backend.unlink();
    this.pool.giveBack(backend);
    this.#resume(BACKEND_FULL);
    if (this.#terminated) {
      this.#close(null);
      return;
    }
    this.#cameToRest();
    this.#go();
  }

  #cameToRest(): void {
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

  // ------------------------------------------------------------------------------------------------- gate's orders

  hold(): void {
    this.#gateClosed = true;
    if (this.#phase.is('waiting')) {
      this.pool.leaveQueue(this);
      this.#phase.move('idle');
    }
    if (this.#phase.is('idle') && this.#input.length > 0)
      this.#heldSinceMs ??= this.#context.clock.monotonicMs();
    this.settle();
  }

  /** Returns how long what it sent has waited, in milliseconds; null where nothing did. */
  release(): number | null {
    this.#gateClosed = false;
    const since = this.#heldSinceMs;
    this.#heldSinceMs = null;
    if (this.#phase.is('answering')) {
      if (this.#answers?.finish() === true) this.#answersDone();
      return null;
    }
    this.#go();
    return since === null ? null : this.#context.clock.monotonicMs() - since;
  }

  /** At rest: the other side serves it from now on. */
  moveTo(pool: Pool, parameters: ParameterSet): void {
    this.pool = pool;
    this.tell(parameters);
  }

  failHeld(sqlState: string, message: string): void {
    if (this.#phase.is('idle') && this.#gateClosed) this.#answer('all', sqlState, message);
  }

  cancelStatement(): void {
    switch (this.#phase.current) {
      case 'waiting':
        this.pool.leaveQueue(this);
        this.#phase.move('idle');
        this.#answer('once', CANCELED.sqlState, CANCELED.message);
        return;
      case 'idle':
        if (this.#input.length > 0) this.#answer('once', CANCELED.sqlState, CANCELED.message);
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
      send: (frame) => void this.toClient(frame),
      classify: (bytes, start, end) => text.classify(bytes, start, end, false),
      flagsOf: (statement) => this.log.flagsOf(statement),
    });
    this.#phase.move('answering');
    this.#go();
  }

  #answerInput(): void {
    const answers = this.#answers;
    if (answers === null) return;
    const input = this.#input;
    for (let chunk = input.shift(); chunk !== undefined; chunk = input.shift()) {
      const used = answers.walk(chunk);
      if (answers.terminated) {
        this.#close(null);
        return;
      }
      if (used === chunk.length) continue;
      input.unshift(chunk.subarray(used));
      break;
    }
    if (answers.done) this.#answersDone();
  }

  #answersDone(): void {
    if (this.#rollingBack) return;
    const answers = this.#answers;
    this.#answers = null;
    if (answers !== null) this.#input.unshift(answers.takePartialHeader());
    this.#phase.move('idle');
    if (this.#gateClosed) this.#cameToRest();
    this.#go();
  }

  // ---------------------------------------------------------------------------------------------------- roll back

  /** The drain deadline has passed: what is open is ended, and the client told 40001. */
  async rollBack(): Promise<void> {
    const backend = this.#backend;
    if (this.atRest || backend === null || !this.#phase.is('linked')) return;
    let last: Promise<unknown> = Promise.resolve();
    await rollBackSession({
      tracker: this.tracker,
      phase: () => (this.#phase.is('linked') ? 'draining' : this.#sessionPhase()),
      insideClientMessage: () => this.#input.passing > 0,
      terminate: (sqlState, message) => this.terminate(sqlState, message),
      toServer: (bytes) => void backend.write(bytes),
      toClient: (bytes) => void this.toClient(bytes),
      cancelBackend: () => backend.cancel(),
      setCancelling: (cancelling) => (this.#cancelledAs = cancelling ? ROLLED_BACK : null),
      answer: (how) => {
        this.#rollingBack = true;
        this.#answer('transaction', ROLLED_BACK.sqlState, ROLLED_BACK.message, how);
      },
      sendOwn: (messages: Buffer, _kind: OwnKind) => {
        last = last.then(() => backend.exchange([messages], 1));
        return last;
      },
      sleep: (ms) => this.#context.clock.sleep(ms),
      nowMs: () => this.#context.clock.monotonicMs(),
      cancelTimeoutMs: this.#context.settings.cancelTimeoutMs,
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
    if (this.#answers?.done === true) this.#answersDone();
    this.#cameToRest();
  }
}

const CANCELED = { sqlState: '57014', message: 'canceling statement due to user request' };
/** feature_not_supported, as which a changed result type of a plan is reported. */
const STALE_PLAN = '0A000';
const UNKNOWN_STATEMENT = '26000';
const DDL = /^(?:CREATE|ALTER|DROP|IMPORT|DO|CALL|SECURITY|REASSIGN)\b/;

function ignore(): void {
  // The close that follows an error is what is acted on.
}
