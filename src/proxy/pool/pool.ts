/**
 * The connections of one user with one set of start-up parameters to one side's database, and the clients that wait
 * for one.
 *
 * States: serving · retired (the other side serves now; connections are closed as they come back; final).
 *
 * Invariants:
 * - Connections in use, idle and being opened are together at most `poolSizeMax`, plus `poolReserve` while a client has
 *   waited for longer than `poolReserveAfterMs`.
 * - With those of all other pools they are within connection-bound.ts's bounds.
 * - Clients are served in the order they came. The queue is bounded in count and in time: 53300 beyond.
 * - A connection is idle only with nothing in flight, no transaction open, and what it holds known.
 * - A connection that was cancelled is given out only after the cancel request has had its effect.
 *
 * Failures: a connection can't be opened: where there are others, the clients wait on for those; where there are none,
 * the first in the queue is told the server's own error. An idle connection that is lost is forgotten.
 */
import type net from 'node:net';
import { UnderstudyError, asUnderstudyError } from '../../core/errors.js';
import type { Side } from '../../core/ports.js';
import type { NameScope } from '../../core/subset-ports.js';
import { parseErrorFields } from '../../wire/postgres/messages.js';
import { BackendRefused } from '../backend/backend-refused.js';
import type { Backend } from '../backend/backend.js';
import type { BackendCredentials } from '../login/credentials.js';
import { askScope } from '../subset/name-scope.js';
import type { CatalogFacts } from './catalog-facts.js';
import type { CatalogWatch } from './catalog-watch.js';
import { applyState, type ClientState } from './client-state.js';
import type { Claimant, ConnectionBound } from './connection-bound.js';
import type { ParameterSet } from './parameter-sets.js';
import { PoolOpening, type PoolKey, type PoolTarget } from './pool-opening.js';
import type { PooledBackend } from './pooled-backend.js';
import type { PooledClient } from './pooled-client.js';
import type { PoolContext } from './pool-context.js';
import type { PoolStatus } from './pool-settings.js';
import type { SharedLine } from './shared-line.js';
import { SharedLines } from './shared-lines.js';

interface Waiting {
  readonly client: PooledClient;
  readonly sinceMs: number;
}

export class Pool implements Claimant {
  readonly key: PoolKey;
  readonly target: PoolTarget;
  readonly #context: PoolContext;
  readonly #doors: PoolOpening;
  readonly #watch: CatalogWatch;
  readonly #bound: ConnectionBound;
  /** The bound on all pools has kept it from opening a connection. */
  #bounded = false;
  readonly #lines: SharedLines | null;
  #idle: PooledBackend[] = [];
  /** When a client last came or left. */
  usedAtMs = 0;
  readonly #active = new Set<PooledBackend>();
  #first: Promise<void> | null = null;
  #waiting: Waiting[] = [];
  #retired = false;
  /** Signatures of client settings that this side is known to take. */
  readonly takenStates = new Set<string>();
  /** What names meant on the connection that was asked last, by the signature of what its client has set. */
  readonly #names = new Map<string, NameScope>();
  /** What a fresh connection tells of its settings; null before the first. */
  parameters: ParameterSet | null = null;

  constructor(
    key: PoolKey,
    target: PoolTarget,
    deps: { readonly watch: CatalogWatch; readonly bound: ConnectionBound },
    context: PoolContext,
  ) {
    this.key = key;
    this.target = target;
    this.#watch = deps.watch;
    this.#bound = deps.bound;
    this.#bound.join(this);
    this.#context = context;
    this.#doors = new PoolOpening({
      key,
      target,
      bound: deps.bound,
      context,
      onOpened: (backend) => {
        this.parameters = backend.parameters;
        this.#active.add(backend);
      },
      onLost: (backend) => this.#lost(backend),
    });
    this.#lines =
      key.mode === 'pipelined' ? new SharedLines(context, (beyond) => this.#openReadOnly(beyond)) : null;
  }

  get side(): Side {
    return this.target.side;
  }

  /** Reads of its clients may go down shared connections. */
  get shares(): boolean {
    return this.#lines !== null && !this.#retired;
  }

  /** What is known of the catalogs; null: nothing may be shared at present. */
  get facts(): CatalogFacts | null {
    return this.#watch.facts;
  }

  /** A shared connection that takes a read; null where there is none at present. `empty`: with nothing under way. */
  line(empty: boolean): SharedLine | null {
    return this.#lines?.pick(empty) ?? null;
  }

  get sharedStatus(): PoolStatus['shared'] {
    if (this.#lines === null) return { ...NOTHING_SHARED, obstacle: `its mode is ${this.key.mode}` };
    return this.#lines.status(this.#watch.obstacle);
  }

  /** Opens as many shared connections as `from` has, and has the catalogs read. */
  async warmShared(from: Pool, signal: AbortSignal): Promise<void> {
    const lines = this.#lines;
    if (lines === null) return;
    this.#watchCatalogs();
    const missing = (from.#lines?.count ?? 0) - lines.count;
    for (let opened = 0; opened < missing && !signal.aborted; opened++) await lines.warm();
  }

  #watchCatalogs(): void {
    this.#watch.start(async () => {
      // Understudy's own, which counts against no bound.
      const backend = await this.#doors.open(this.#doors.credentials, null);
      this.#active.delete(backend);
      return backend;
    });
  }

  /** Server connections that wait for work. */
  get spare(): number {
    return this.#idle.length + (this.#lines?.count ?? 0);
  }

  get counts(): {
    readonly active: number;
    readonly idle: number;
    readonly opening: number;
    readonly waiting: number;
    readonly counted: number;
  } {
    return {
      active: this.#active.size,
      idle: this.#idle.length,
      opening: this.#doors.opening,
      waiting: this.#waiting.length,
      counted: this.#doors.counted,
    };
  }

  /** No connection of it is left, not even a pinned client's, and nobody waits for its first. */
  get empty(): boolean {
    return this.size + this.spare + this.#doors.counted + this.#doors.entering === 0;
  }

  get size(): number {
    return this.#active.size + this.#idle.length + this.#doors.opening;
  }

  /** As {@link PoolOpening.proves}. */
  proves(credentials: BackendCredentials): boolean {
    return this.#doors.proves(credentials);
  }

  /** Opens the first connection, once for all who come meanwhile. */
  first(credentials: BackendCredentials): Promise<void> {
    this.#first ??= this.openInTurn(credentials)
      .then((backend) => this.giveBack(backend))
      .finally(() => {
        this.#first = null;
      });
    return this.#first;
  }

  /** Opens further connections with a copy of these. */
  use(credentials: BackendCredentials): void {
    this.#doors.use(credentials);
    if (this.#lines !== null && !this.#retired) this.#watchCatalogs();
  }

  /** Gives the client a connection, now or as soon as there is one, or refuses it. */
  acquire(client: PooledClient): void {
    if (this.#waiting.length === 0) {
      const backend = this.#takeIdle(client);
      if (backend !== null) {
        this.#active.add(backend);
        client.give(backend);
        return;
      }
    }
    const { bounds, clock } = this.#context;
    if (this.#waiting.length >= bounds.poolWaitingMax) {
      queueMicrotask(() =>
        client.refuse(
          TOO_MANY,
          `more than ${bounds.poolWaitingMax} clients wait for a connection (proxy.poolWaitingMax)`,
        ),
      );
      return;
    }
    this.#waiting.push({ client, sinceMs: clock.monotonicMs() });
    this.#openMore();
  }

  leaveQueue(client: PooledClient): void {
    this.#waiting = this.#waiting.filter((waiting) => waiting.client !== client);
    if (this.#waiting.length === 0) this.#bounded = false;
  }

  /** One that holds the client's settings already, where there is one; else the one used last. */
  #takeIdle(client: PooledClient): PooledBackend | null {
    const { signature } = client.state;
    let at = this.#idle.length - 1;
    while (at >= 0 && this.#idle[at]?.held.signature !== signature) at -= 1;
    const [taken] = at >= 0 ? this.#idle.splice(at, 1) : this.#idle.splice(-1, 1);
    return taken ?? null;
  }

  /** Makes the connection hold what the client has set; null: it does. Rejects where that fails. */
  makeReady(backend: PooledBackend, client: PooledClient): Promise<void> | null {
    const forgets = this.#context.sequences.asked && backend.lastClient !== client.id;
    if (!forgets && backend.held.signature === client.state.signature) return null;
    return carry(backend, client.state, forgets);
  }

  /** Null where no connection was asked; another one may say otherwise. */
  namesUnder(signature: string): NameScope | null {
    return this.#names.get(signature) ?? null;
  }

  /**
   * What names mean on a connection that holds what `signature` stands for, and on which no transaction is open. Rejects
   * where it is lost or does not say.
   */
  async askNames(backend: PooledBackend, signature: string): Promise<NameScope> {
    if (backend.names?.signature === signature) return backend.names.scope;
    const scope = await askScope((sql) => backend.query(sql));
    if (scope === null) throw new UnderstudyError('backend-refused', 'what names mean was not told');
    backend.names = { signature, scope };
    this.learnNames(backend.names);
    return scope;
  }

  /** What is told to those who ask from now on. */
  learnNames({ signature, scope }: NonNullable<PooledBackend['names']>): void {
    if (this.#names.size >= NAMES_MAX) this.#names.clear();
    this.#names.set(signature, scope);
  }

  /** A client is done with it; nothing is in flight, and it was unlinked. */
  giveBack(backend: PooledBackend): void {
    this.#followDdl(backend);
    const { cancelling } = backend;
    if (cancelling !== null) {
      cancelling
        .then(() => backend.query('SELECT 1'))
        .then(
          () => this.giveBack(backend),
          () => this.drop(backend, true),
        );
      return;
    }
    this.#active.delete(backend);
    if (!backend.alive) {
      this.#openMore();
      return;
    }
    const nowMs = this.#context.clock.monotonicMs();
    const { poolAgeMaxMs, poolSizeMax } = this.#context.bounds;
    const old = nowMs - backend.openedAtMs > poolAgeMaxMs;
    const ofReserve = this.size >= poolSizeMax && this.#waiting.length === 0;
    if (this.#retired || old || ofReserve) {
      backend.close(true);
      this.#openMore();
      return;
    }
    if (this.#bound.isOwed(this.key.user, this.#waiting[0]?.sinceMs ?? null, nowMs)) {
      this.#giveUp(backend);
      this.#openMore();
      return;
    }
    const next = this.#waiting.shift();
    if (next !== undefined) {
      this.#active.add(backend);
      next.client.give(backend);
      return;
    }
    backend.idleSinceMs = nowMs;
    this.#idle.push(backend);
  }

  /** It is of no use any more. `idle`: it waits for nothing. */
  drop(backend: PooledBackend, idle: boolean): void {
    this.#followDdl(backend);
    this.#active.delete(backend);
    backend.close(idle);
    this.#openMore();
  }

  #followDdl(backend: PooledBackend): void {
    if (!backend.ranDdl) return;
    backend.ranDdl = false;
    this.#watch.changed();
    this.#context.onCatalogsChanged();
  }

  /** A client keeps it: it is none of the pool's from now on. */
  forget(backend: PooledBackend): void {
    this.#followDdl(backend);
    this.#active.delete(backend);
    this.#openMore();
  }

  #openMore(): void {
    if (this.#retired) return;
    const { bounds, clock } = this.#context;
    const [first] = this.#waiting;
    if (first === undefined) return;
    const late = clock.monotonicMs() - first.sinceMs >= bounds.poolReserveAfterMs;
    const most = bounds.poolSizeMax + (late ? bounds.poolReserve : 0);
    this.#bounded = false;
    while (this.#doors.opening < this.#waiting.length && this.size < most) {
      const place = this.#bound.take(this.key.user, 'own');
      if (place === null) {
        this.#bounded = true;
        this.#bound.look();
        return;
      }
      this.#doors.open(this.#doors.credentials, place).then(
        (backend) => this.giveBack(backend),
        (error: unknown) => this.#notOpened(error),
      );
    }
  }

  /** As {@link PoolOpening.openInTurn}. */
  openInTurn(credentials: BackendCredentials): Promise<PooledBackend> {
    return this.#doors.openInTurn(credentials);
  }

  /** As {@link PoolOpening.openBeyond}. */
  openBeyond(): Promise<PooledBackend> {
    return this.#doors.openBeyond();
  }

  /** As {@link PoolOpening.count}. */
  count(socket: net.Socket): void {
    this.#doors.count(socket);
  }

  /** null: there is no room for one at present. */
  #openReadOnly(beyond: boolean): Promise<Backend> | null {
    const opened = this.#doors.openReadOnly(beyond);
    if (opened === null && this.#lines?.count === 0) this.#bound.clearForShared(this.key.user);
    return opened;
  }

  get user(): string {
    return this.key.user;
  }

  get claimsSinceMs(): number | null {
    return this.#bounded ? (this.#waiting[0]?.sinceMs ?? null) : null;
  }

  get idleSinceMs(): number | null {
    return this.#idle[0]?.idleSinceMs ?? this.#lines?.idleSinceMs ?? null;
  }

  tryAgain(): void {
    this.#openMore();
  }

  giveUpIdle(): void {
    const backend = this.#idle.shift();
    if (backend !== undefined) this.#giveUp(backend);
    else this.#lines?.giveUpIdle((line) => this.#doors.leave(line));
  }

  #giveUp(backend: PooledBackend): void {
    this.#doors.leave(backend.backend);
    backend.close(true);
  }

  #notOpened(error: unknown): void {
    this.#context.log.warn(
      {
        side: this.side,
        user: this.key.user,
        error: asUnderstudyError(error, 'internal', 'opening').message,
      },
      'a pooled connection could not be opened',
    );
    if (this.size > 0) return;
    // Nobody's coming back will serve those who wait.
    const next = this.#waiting.shift();
    if (next === undefined) return;
    if (error instanceof BackendRefused) {
      next.client.refuse(error.sqlState, parseErrorFields(error.response.subarray(5)).message);
    } else {
      next.client.refuse('08006', 'the server could not be reached');
    }
    this.#openMore();
  }

  #lost(backend: PooledBackend): void {
    this.#active.delete(backend);
    this.#idle = this.#idle.filter((idle) => idle !== backend);
    this.#openMore();
  }

  /** Call now and then. `idleMaxMs`: connections unused for that long are closed. */
  sweep(nowMs: number, idleMaxMs: number): void {
    const { bounds } = this.#context;
    for (const { client, sinceMs } of this.#waiting) {
      if (nowMs - sinceMs < bounds.poolWaitTimeoutMs) break;
      this.leaveQueue(client);
      client.refuse(
        TOO_MANY,
        `no connection came free within ${bounds.poolWaitTimeoutMs} ms (proxy.poolWaitTimeoutMs; at most ${bounds.poolSizeMax}, proxy.poolSizeMax)`,
      );
    }
    this.#openMore();
    this.#lines?.sweep(nowMs, idleMaxMs);
    this.#idle = this.#idle.filter((backend) => {
      const keep =
        nowMs - backend.idleSinceMs < idleMaxMs && nowMs - backend.openedAtMs < bounds.poolAgeMaxMs;
      if (!keep) backend.close(true);
      return keep;
    });
  }

  /** No more clients come. Those in use are closed as they come back. */
  retire(): void {
    this.#retired = true;
    this.#bound.quit(this);
    this.#doors.wipe();
    this.#lines?.retire();
    for (const backend of this.#idle.splice(0)) backend.close(true);
    for (const { client } of this.#waiting.splice(0)) {
      client.refuse('57P01', 'the database was switched over');
    }
  }

  /** Opens connections until `count` are idle. Rejects where one can't be opened. */
  async fill(
    count: number,
    signal: AbortSignal,
    slot: <T>(work: () => Promise<T>) => Promise<T>,
  ): Promise<void> {
    const missing = count - this.#idle.length;
    if (missing <= 0) return;
    await Promise.all(
      Array.from({ length: missing }, () =>
        slot(async () => {
          if (signal.aborted) throw new UnderstudyError('cancelled', 'preparing the pools');
          this.giveBack(await this.openBeyond());
        }),
      ),
    );
  }
}

async function carry(backend: PooledBackend, state: ClientState, forgets: boolean): Promise<void> {
  if (forgets) await backend.query('DISCARD SEQUENCES');
  const [refused] = await applyState(backend, backend.held, state);
  if (refused !== undefined)
    throw new UnderstudyError('backend-refused', `${refused.reason}: ${refused.detail}`);
  backend.held = state;
}

const TOO_MANY = '53300';
/** Settings of so many kinds are told apart. */
const NAMES_MAX = 1_000;
const NOTHING_SHARED = { connections: 0, depth: 0, statements: 0, sentAgain: 0, refused: 0 };
