/**
 * A pooled client's statements, each to its side, while subsets are on different sides: the routing that sessions have
 * (session-routing.ts), for a client that has a connection only while it needs one.
 *
 * What was decided on is in the client's input, and goes to a connection of the pool that the client is pointed at; what
 * was not is held here. Without a connection, another side is another pool, and no more than that. In the middle of a
 * transaction in which nothing has happened yet, the connection is given back first and one of the other side taken, so
 * that nobody waits for a second while it has one.
 *
 * Invariants:
 * - Input is worked off before more is decided on; behind a closed gate, and while the client is answered here, it is held.
 * - What names mean is taken from another connection of the pool where there is none at hand; whoever is given one makes
 *   sure (`agrees`) before anything is sent on it. Where it says otherwise, all is decided on anew.
 */
import type { Side } from '../../core/ports.js';
import type { NameScope } from '../../core/subset-ports.js';
import { BackendRefused } from '../backend/backend-refused.js';
import type { Reply } from '../backend/reply-reader.js';
import { mustFollowAnswers } from '../session/client-stream.js';
import { HeldInput } from '../session/held-input.js';
import { STATUS_IDLE, type OwnKind } from '../session/response-tracker.js';
import { sameScope, askScope } from '../subset/name-scope.js';
import { StatementRefused, type RefusedStatement } from '../subset/reach.js';
import type { NotMoved, RoutedMoves } from '../subset/routed-session.js';
import { SEGMENT_BYTES_MAX, SessionRouting } from '../subset/session-routing.js';
import type { SubsetRouting } from '../subset/subset-routing.js';
import type { ClientWire } from './client-wire.js';
import { HELD_FULL } from './client-socket.js';
import type { Pool } from './pool.js';
import type { PoolContext } from './pool-context.js';
import type { PooledBackend } from './pooled-backend.js';
import type { PooledClient } from './pooled-client.js';
import type { PoolPin } from './pool-settings.js';

export interface ClientRoutingHost {
  readonly backend: () => PooledBackend | null;
  /** Something new may be begun, or there is a transaction to end. */
  readonly mayBegin: () => boolean;
  /** A connection of the present pool, linked. Rejects with `StatementRefused` where there is none to be had. */
  readonly reserve: () => Promise<PooledBackend>;
  /** Gives the connection back; or returns what keeps the client on it. */
  readonly layDown: () => Promise<PoolPin | null>;
  readonly serveFrom: (pool: Pool) => void;
  /** The connection is being asked something: it must not be given back. */
  readonly busy: (asking: boolean) => void;
  /** Answers the statement at hand, which nothing was done about. */
  readonly answer: (error: RefusedStatement) => void;
  readonly terminate: (sqlState: string, message: string) => void;
  readonly settle: () => void;
}

export class ClientRouting {
  readonly #client: PooledClient;
  readonly #wire: ClientWire;
  readonly #context: PoolContext;
  readonly #host: ClientRoutingHost;
  readonly #routing: SessionRouting;
  /** What was not decided on yet. */
  readonly held: HeldInput;
  readonly #moves: RoutedMoves;
  /** Where the names were last known to mean what was read. */
  #readOn: Side | null = null;
  /** Where it was pointed at before, as long as it has had no connection since. */
  #before: Pool | null = null;
  #driving = false;
  #again = false;

  constructor(
    shared: SubsetRouting,
    client: PooledClient,
    wire: ClientWire,
    context: PoolContext,
    host: ClientRoutingHost,
  ) {
    this.#client = client;
    this.#wire = wire;
    this.#context = context;
    this.#host = host;
    const { socket, tracker, messages, input, link } = wire;
    this.held = new HeldInput({
      bytesMax: () => context.settings.heldBytesMax,
      nowMs: () => context.clock.monotonicMs(),
      pauseClient: () => socket.pause(HELD_FULL),
      resumeClient: () => socket.resume(HELD_FULL),
    });
    this.held.waitsFor(SEGMENT_BYTES_MAX);
    this.#moves = {
      toNew: false,
      to: (side) => this.#to(side),
      end: () => undefined,
    };
    this.#routing = new SessionRouting(shared, {
      tracker,
      held: this.held,
      clientStream: {
        mustWait: (type) => mustFollowAnswers(tracker, type),
        get changes() {
          return messages.changes;
        },
        set changes(changes) {
          messages.changes = changes;
          // What was set is set again on a connection that nobody has asked: it must not go to the next client as it is.
          messages.dirty = true;
        },
        preparing: 0,
        get unnamedParse() {
          return messages.unnamed;
        },
        get unnamedIrreplaceable() {
          return messages.unnamedLost;
        },
        refusedQuery: () => messages.refusedQuery(this.#connection()),
        refusedExtended: () => messages.refusedExtended(this.#connection()),
      },
      moves: this.#moves,
      side: () => client.pool.side,
      closed: () => client.phase === 'closed' || client.phase === 'pinned',
      mayBegin: host.mayBegin,
      clientEnded: () => false,
      unsent: () => input.length > 0,
      pass: (chunk) => input.push(chunk),
      toServer: (bytes) => void this.#connection().write(bytes),
      answerHere: (error) => this.#answerHere(error),
      scope: () => this.#scope(),
      preparedText: (name) => messages.names.get(name)?.text.toString('utf8'),
      ask: (sql) => this.#ask(sql),
      again: (bytes, kind) => this.#runAgain(bytes, kind),
      unnamedAgain: () => messages.unnamedGone(),
      refusing: (error) => {
        context.onError(error.sqlState);
        link.refusing = error;
      },
      parameter: (name) => socket.told.values.get(name),
      terminate: host.terminate,
      settle: host.settle,
    });
  }

  /** The client is between sides: it must not be held, nor its connection be given back. */
  get moving(): boolean {
    return this.#routing.moving;
  }

  /** In the middle of a message, or between sides. */
  get midway(): boolean {
    return this.#routing.midway;
  }

  /** Decides on what is held, and has `work` do what follows from it, as far as either goes. Throws what they throw. */
  drive(work: () => void): void {
    if (this.#driving) {
      this.#again = true;
      return;
    }
    const { input } = this.#wire;
    this.#driving = true;
    try {
      do {
        this.#again = false;
        const before = this.held.length + input.length;
        this.#routing.go();
        if (input.length > 0 || this.#client.phase === 'answering') work();
        this.#again ||= input.length === 0 && this.held.length > 0 && this.held.length < before;
      } while (this.#again);
    } finally {
      this.#driving = false;
    }
  }

  /** What was decided on and not sent is held again; it is decided on anew. */
  takeBack(): void {
    const { input } = this.#wire;
    if (input.length > 0) this.held.putBack(input.all());
    input.clear();
    this.#routing.takenBack();
  }

  /** What is held is to be answered here: it becomes input, undecided. */
  giveUp(): void {
    const { input } = this.#wire;
    this.#routing.takenBack();
    // There may be no connection to be had where it was pointed at last.
    const before = this.#before;
    this.#before = null;
    if (before !== null && this.#client.phase === 'idle') this.#host.serveFrom(before);
    input.push(this.held.peek(this.held.length));
    this.held.clear();
    this.held.taken();
  }

  /** Final. */
  end(): void {
    this.#routing.end();
    this.held.clear();
  }

  #connection(): PooledBackend {
    const backend = this.#host.backend();
    if (backend === null) throw new StatementRefused(GONE);
    return backend;
  }

  #answerHere(error: RefusedStatement): boolean {
    if (this.#client.phase !== 'idle') return false;
    this.#context.onError(error.sqlState);
    this.#host.answer(error);
    return true;
  }

  async #ask(sql: string): Promise<Reply> {
    const backend = await this.#host.reserve();
    return await this.#asking(() => backend.query(sql));
  }

  async #asking<T>(question: () => Promise<T>): Promise<T> {
    this.#host.busy(true);
    try {
      return await question();
    } finally {
      this.#wire.messages.unnamedGone();
      this.#host.busy(false);
    }
  }

  async #runAgain(bytes: Buffer, kind: OwnKind): Promise<Reply> {
    const backend = this.#connection();
    const { tracker, messages, socket } = this.#wire;
    const [reply] = await this.#asking(() => {
      tracker.sentOwn(kind);
      return backend.exchange([messages.inServersNames(bytes, backend)], 1);
    });
    tracker.gotReady(backend.status);
    // What was set again may be what the client has to read its rows by, and what the next text is read by.
    socket.tell(backend.parameters);
    backend.plan.reset();
    if (reply === undefined) throw new StatementRefused(GONE);
    return reply;
  }

  async #scope(): Promise<NameScope | null> {
    const { pool, state } = this.#client;
    const { tracker, messages } = this.#wire;
    this.#readOn = pool.side;
    const known = this.#host.backend() === null ? pool.namesUnder(state.signature) : null;
    if (known !== null) return known;
    const backend = await this.#host.reserve();
    if (tracker.status !== STATUS_IDLE || messages.dirty)
      return await this.#asking(() => askScope((sql) => backend.query(sql)));
    return await this.#asking(() => pool.askNames(backend, state.signature));
  }

  /** Null where a connection that is about to be linked is known to hold what the texts were read under, or nothing was. */
  sure(backend: PooledBackend): Promise<unknown> | null {
    const { pool, state } = this.#client;
    if (this.#routing.scope === null || backend.names?.signature === state.signature) return null;
    return pool.askNames(backend, state.signature);
  }

  /** After `sure`. False: names mean something else on it, so that all has to be decided on anew, or can't be. */
  agrees(backend: PooledBackend): boolean {
    this.#before = null;
    const { scope } = this.#routing;
    const { names } = backend;
    const { pool } = this.#client;
    const { side } = pool;
    if (scope === null || names === null || sameScope(scope, names.scope)) {
      this.#readOn = side;
      return true;
    }
    // Else the next decision would be made by what another connection said, and meet this one again.
    pool.learnNames(names);
    if (this.#readOn !== side) {
      const message = `names mean something else on the ${side}: its search_path or role differs by default`;
      this.#host.terminate('57P01', message);
    }
    return false;
  }

  /** As {@link RoutedMoves.to}. Rejects where the client is left without a connection it needs. */
  async #to(side: Side): Promise<NotMoved | null> {
    const from = this.#client.pool;
    this.#moves.toNew = false;
    if (from.side === side) return null;
    let pool: Pool;
    try {
      pool = await this.#context.beside(this.#client.accepted, side);
    } catch (error) {
      return notReached(side, error);
    }
    if (this.#host.backend() !== null) {
      const pin = await this.#host.layDown();
      if (pin !== null) return held(side, pin);
      return await this.#take(side, pool, from);
    }
    this.#before ??= from;
    this.#host.serveFrom(pool);
    return null;
  }

  async #take(side: Side, pool: Pool, from: Pool): Promise<NotMoved | null> {
    this.#host.serveFrom(pool);
    try {
      await this.#host.reserve();
      this.#moves.toNew = true;
      return null;
    } catch (error) {
      this.#host.serveFrom(from);
      await this.#host.reserve();
      return notReached(side, error);
    }
  }
}

const GONE: RefusedStatement = { sqlState: '08006', message: 'there is no connection to the server' };
const TOO_MANY = '53300';

function held(side: Side, { reason, detail }: PoolPin): NotMoved {
  return {
    sqlState: '0A000',
    message: `this session can't go to the ${side}, which serves what it asks for: it holds ${reason} ${detail}`,
  };
}

function notReached(side: Side, error: unknown): NotMoved {
  if (error instanceof StatementRefused && error.refusal.sqlState === TOO_MANY) return error.refusal;
  const why =
    error instanceof StatementRefused
      ? error.refusal.message
      : error instanceof BackendRefused
        ? error.sqlState
        : error instanceof Error
          ? error.message
          : String(error);
  return {
    sqlState: '57P03',
    message: `the ${side}, which serves what is asked for, can't be reached (${why})`,
  };
}
