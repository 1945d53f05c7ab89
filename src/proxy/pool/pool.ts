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
import { timingSafeEqual } from 'node:crypto';
import { UnderstudyError, asUnderstudyError } from '../../core/errors.js';
import type { Side } from '../../core/ports.js';
import { parseErrorFields } from '../../wire/postgres/messages.js';
import { BackendRefused } from '../backend/backend-refused.js';
import { openBackend, type Backend, type BackendEndpoint } from '../backend/backend.js';
import { wipeCredentials, type BackendCredentials } from '../login/credentials.js';
import type { CatalogFacts } from './catalog-facts.js';
import type { CatalogWatch } from './catalog-watch.js';
import { applyState, type ClientState } from './client-state.js';
import type { Claimant, ConnectionBound, Place } from './connection-bound.js';
import type { ParameterSet } from './parameter-sets.js';
import { PooledBackend } from './pooled-backend.js';
import type { PooledClient } from './pooled-client.js';
import type { PoolContext } from './pool-context.js';
import type { PoolMode, PoolStatus } from './pool-settings.js';
import type { SharedLine } from './shared-line.js';
import { SharedLines } from './shared-lines.js';

export interface PoolKey {
  readonly user: string;
  /** Start-up parameters, as the client sent them. */
  readonly parameters: ReadonlyMap<string, string>;
  /** As agreed with its clients. */
  readonly protocolMinor: number;
  readonly mode: PoolMode;
}

export interface PoolTarget {
  readonly side: Side;
  readonly endpoint: BackendEndpoint;
  readonly database: string;
}

interface Waiting {
  readonly client: PooledClient;
  readonly sinceMs: number;
}

export class Pool implements Claimant {
  readonly key: PoolKey;
  readonly target: PoolTarget;
  readonly #context: PoolContext;
  /** A copy of what the client that came last has proven: they all have logged in as the same user. */
  #credentials: BackendCredentials = { kind: 'none' };
  readonly #watch: CatalogWatch;
  readonly #bound: ConnectionBound;
  readonly #places = new WeakMap<Backend, Place>();
  /** The bound on all pools has kept it from opening a connection. */
  #bounded = false;
  #counted = 0;
  /** Clients that log in and wait for its first connection. */
  #entering = 0;
  readonly #lines: SharedLines | null;
  #idle: PooledBackend[] = [];
  /** When a client last came or left. */
  usedAtMs = 0;
  readonly #active = new Set<PooledBackend>();
  #opening = 0;
  #first: Promise<void> | null = null;
  #waiting: Waiting[] = [];
  #retired = false;
  /** Signatures of client settings that this side is known to take. */
  readonly takenStates = new Set<string>();
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
      const backend = await this.open(this.#credentials, null);
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
      opening: this.#opening,
      waiting: this.#waiting.length,
      counted: this.#counted,
    };
  }

  /** No connection of it is left, not even a pinned client's, and nobody waits for its first. */
  get empty(): boolean {
    return this.size + this.spare + this.#counted + this.#entering === 0;
  }

  get size(): number {
    return this.#active.size + this.#idle.length + this.#opening;
  }

  /** Whether a client with these needs no connection of its own to be believed. */
  proves(credentials: BackendCredentials): boolean {
    if (credentials.kind !== 'given-password' || credentials.proven) return true;
    const ours = this.#credentials;
    if (
      ours.kind !== 'given-password' ||
      !ours.proven ||
      ours.password.length !== credentials.password.length
    ) {
      return false;
    }
    return timingSafeEqual(ours.password, credentials.password);
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
    // The one before may be in use for a connection being opened: it is left to the runtime.
    this.#credentials = copyOf(credentials);
    if (this.#lines !== null && !this.#retired) this.#watchCatalogs();
  }

  // --------------------------------------------------------------------------------------------------- giving out

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

  // ------------------------------------------------------------------------------------------------------ opening

  #openMore(): void {
    if (this.#retired) return;
    const { bounds, clock } = this.#context;
    const [first] = this.#waiting;
    if (first === undefined) return;
    const late = clock.monotonicMs() - first.sinceMs >= bounds.poolReserveAfterMs;
    const most = bounds.poolSizeMax + (late ? bounds.poolReserve : 0);
    this.#bounded = false;
    while (this.#opening < this.#waiting.length && this.size < most) {
      const place = this.#bound.take(this.key.user, 'own');
      if (place === null) {
        this.#bounded = true;
        this.#bound.look();
        return;
      }
      this.open(this.#credentials, place).then(
        (backend) => this.giveBack(backend),
        (error: unknown) => this.#notOpened(error),
      );
    }
  }

  /** A new connection as soon as the bound on all pools has room for it; counts as in use. */
  async openInTurn(credentials: BackendCredentials): Promise<PooledBackend> {
    const { bounds, clock } = this.#context;
    this.#entering += 1;
    try {
      const place = await this.#bound.wait(this.key.user, {
        nowMs: clock.monotonicMs(),
        timeoutMs: bounds.poolWaitTimeoutMs,
        waitingMax: bounds.poolWaitingMax,
      });
      return await this.open(credentials, place);
    } finally {
      this.#entering -= 1;
    }
  }

  /** A new connection beside those that serve, for a switch; counts as in use. */
  openBeyond(): Promise<PooledBackend> {
    return this.open(this.#credentials, this.#bound.take(this.key.user, 'beyond'));
  }

  /** A new connection, which counts as in use, in this place; null: in none. */
  async open(credentials: BackendCredentials, place: Place | null): Promise<PooledBackend> {
    this.#opening += 1;
    try {
      const { settings } = this.#context;
      const backend = await this.#opened(
        place,
        openBackend(this.target.endpoint, { ...this.key, database: this.target.database }, credentials, {
          connectTimeoutMs: settings.connectTimeoutMs,
        }),
      );
      const pooled = new PooledBackend(backend, {
        frameBytesMax: settings.frameBytesMax,
        replyBytesMax: settings.stateBytesMax,
        preparedMax: this.#context.bounds.preparedStatementsMax,
        connectTimeoutMs: settings.connectTimeoutMs,
        parameterSets: this.#context.parameterSets,
        nowMs: this.#context.clock.monotonicMs(),
        onLost: (lost) => this.#lost(lost),
      });
      this.parameters = pooled.parameters;
      this.#active.add(pooled);
      return pooled;
    } finally {
      this.#opening -= 1;
    }
  }

  /** The place is the connection's from now on. */
  async #opened(place: Place | null, opening: Promise<Backend>): Promise<Backend> {
    if (place === null) return await opening;
    this.#counted += 1;
    try {
      const backend = await opening;
      this.#places.set(backend, place);
      place.follow(backend.socket, () => (this.#counted -= 1));
      return backend;
    } catch (error) {
      this.#counted -= 1;
      place.give();
      throw error;
    }
  }

  /** A client that was pinned to a connection of the other side has moved to this one. */
  count(socket: net.Socket): void {
    const place = this.#bound.take(this.key.user, 'beyond');
    if (place === null) return;
    this.#counted += 1;
    place.follow(socket, () => (this.#counted -= 1));
  }

  /**
   * A connection whose transactions can't write, whatever a statement may try. null: there is no room for one, which
   * doesn't matter `beyond` the bound.
   */
  #openReadOnly(beyond: boolean): Promise<Backend> | null {
    const place = this.#bound.take(this.key.user, beyond ? 'beyond' : 'shared');
    if (place === null) {
      if (this.#lines?.count === 0) this.#bound.clearForShared(this.key.user);
      return null;
    }
    const parameters = new Map([...this.key.parameters, ['default_transaction_read_only', 'on']]);
    return this.#opened(
      place,
      openBackend(
        this.target.endpoint,
        { ...this.key, parameters, database: this.target.database },
        this.#credentials,
        { connectTimeoutMs: this.#context.settings.connectTimeoutMs },
      ),
    );
  }

  // ----------------------------------------------------------------------------------------------------- Claimant

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
    else this.#lines?.giveUpIdle((line) => this.#places.get(line)?.leave());
  }

  #giveUp(backend: PooledBackend): void {
    this.#places.get(backend.backend)?.leave();
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

  // ------------------------------------------------------------------------------------------------------ by time

  /** Call now and then. */
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
    wipeCredentials(this.#credentials);
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
const NOTHING_SHARED = { connections: 0, depth: 0, statements: 0, sentAgain: 0, refused: 0 };

/** The client's own are wiped when it leaves. */
function copyOf(credentials: BackendCredentials): BackendCredentials {
  switch (credentials.kind) {
    case 'given-password':
      return { ...credentials, password: Buffer.from(credentials.password), proven: true };
    case 'scram-keys':
      return { ...credentials, clientKey: Buffer.from(credentials.clientKey) };
    case 'md5':
    case 'password':
    case 'none':
      return credentials;
  }
}
