/**
 * All pools of one database and their clients, and their part in a switch.
 *
 * A switch: `prepare` opens connections on the new side, as many as were in use on the old, and tries every client's
 * settings there; `hold` lets nothing new begin; once all clients are at rest no connection of the old side has
 * anything in flight. `switchTo` points the pools at the new side and closes the old; at the release what was held runs
 * there. Clients hold no connection at rest, so none is moved one by one. Those that were pinned are sessions.
 *
 * Invariants:
 * - Pools exist for the side that serves and, between `prepare` and the switch, for the other; while subsets are on
 *   different sides, for both.
 * - After `switchTo` no client is given a connection of the old side.
 */
import type net from 'node:net';
import { UnderstudyError, asUnderstudyError } from '../../core/errors.js';
import type { Side } from '../../core/ports.js';
import type { PrepareReport, SessionBlocker } from '../../core/traffic-ports.js';
import { BackendRefused } from '../backend/backend-refused.js';
import type { AcceptedClient } from '../login/client-handshake.js';
import type { GateParty } from '../gate-party.js';
import { Limiter } from '../limiter.js';
import type { SessionInfo } from '../session/session-context.js';
import { applyState, DEFAULT_STATE, type ClientState } from './client-state.js';
import { CatalogWatch } from './catalog-watch.js';
import { ConnectionBound } from './connection-bound.js';
import { Pool } from './pool.js';
import type { PoolKey, PoolTarget } from './pool-opening.js';
import { PooledClient } from './pooled-client.js';
import type { PoolContext } from './pool-context.js';
import { poolModeOf, type PinReason, type PoolMode, type PoolStatus } from './pool-settings.js';

export interface PoolsDeps {
  readonly context: Omit<PoolContext, 'onAtRest' | 'onClosed' | 'onPinned' | 'sequences' | 'beside'> &
    Pick<PoolContext, 'onPinned'>;
  readonly target: (side: Side) => PoolTarget;
  readonly onClosed: (client: PooledClient) => void;
  readonly onAtRest: (client: PooledClient) => void;
}

function keyOf(key: PoolKey): string {
  const parameters = [...key.parameters].toSorted(([a], [b]) => (a < b ? -1 : 1));
  return JSON.stringify([key.user, parameters, key.protocolMinor, key.mode]);
}

const SWEEP_MS = 100;
/** A pool without a client and without a connection is kept for so long. */
const FORGOTTEN_MS = 1000;
const SETTLING_LOOK_MS = 2;

export class Pools implements GateParty {
  readonly #deps: PoolsDeps;
  readonly #context: PoolContext;
  readonly #clients = new Set<PooledClient>();
  /** By side and key. */
  readonly #pools: Record<Side, Map<string, Pool>> = { source: new Map(), destination: new Map() };
  readonly #watches: Record<Side, CatalogWatch>;
  readonly #bounds: Record<Side, ConnectionBound>;
  readonly #warming: <T>(work: () => Promise<T>) => Promise<T>;
  #gateClosed = false;
  #onProgress: () => void = () => undefined;
  readonly #pinned = new Map<PinReason, number>();
  readonly #sweeper: NodeJS.Timeout;

  constructor(deps: PoolsDeps) {
    this.#deps = deps;
    this.#context = {
      ...deps.context,
      sequences: { asked: false },
      onAtRest: (client) => {
        deps.onAtRest(client);
        this.#onProgress();
      },
      beside: (client, side) => this.#beside(client, side),
      onClosed: (client) => this.#closed(client),
      onPinned: (client, backend, pin, leftover) => {
        this.#pinned.set(pin.reason, (this.#pinned.get(pin.reason) ?? 0) + 1);
        this.#clients.delete(client);
        deps.context.onPinned(client, backend, pin, leftover);
        this.#onProgress();
      },
    };
    this.#watches = { source: new CatalogWatch(this.#context), destination: new CatalogWatch(this.#context) };
    const { poolConnectionsMax, poolConnectionsPerUserMax } = deps.context.bounds;
    const bound = (): ConnectionBound => new ConnectionBound(poolConnectionsMax, poolConnectionsPerUserMax);
    this.#bounds = { source: bound(), destination: bound() };
    this.#warming = new Limiter(deps.context.settings.warmConcurrency).run;
    this.#sweeper = setInterval(() => this.#sweep(), SWEEP_MS);
    this.#sweeper.unref();
  }

  get clients(): ReadonlySet<PooledClient> {
    return this.#clients;
  }

  /**
   * The pool of a client that has logged in. Its first connection is opened here, and one for each password that only
   * the server can prove right. Throws `BackendRefused` with what the client is told.
   */
  async poolFor(client: AcceptedClient, side: Side): Promise<Pool> {
    const pool = this.#pool(client, side);
    pool.usedAtMs = this.#context.clock.monotonicMs();
    if (!pool.proves(client.credentials)) pool.giveBack(await pool.openInTurn(client.credentials));
    else if (pool.parameters === null) await pool.first(client.credentials);
    pool.use(client.credentials);
    return pool;
  }

  #beside(client: AcceptedClient, side: Side): Pool | Promise<Pool> {
    const pool = this.#pool(client, side);
    if (pool.parameters !== null && pool.proves(client.credentials)) return pool;
    return this.poolFor(client, side);
  }

  #pool(client: AcceptedClient, side: Side): Pool {
    const { user, parameters, protocolMinor } = client;
    return this.#poolOf({ user, parameters, protocolMinor, mode: this.#modeOf(client) }, side);
  }

  /** A client that was pinned has moved to this connection, which counts until it has closed. */
  count(key: PoolKey, side: Side, socket: net.Socket): void {
    this.#poolOf(key, side).count(socket);
  }

  #poolOf(of: PoolKey, side: Side): Pool {
    const key = keyOf(of);
    const known = this.#pools[side].get(key);
    if (known !== undefined) return known;
    const made = new Pool(
      of,
      this.#deps.target(side),
      { watch: this.#watches[side], bound: this.#bounds[side] },
      this.#context,
    );
    this.#pools[side].set(key, made);
    return made;
  }

  #modeOf(client: AcceptedClient): PoolMode {
    return poolModeOf(this.#context.bounds, client.database);
  }

  /** Makes the accepted client one of the pool's, to be started by the caller. */
  accept(id: number, accepted: AcceptedClient, pool: Pool): PooledClient {
    const { parameters } = pool;
    if (parameters === null) throw new UnderstudyError('internal', 'a pool without a connection');
    const client = new PooledClient(id, accepted, pool, parameters, this.#context);
    this.#clients.add(client);
    if (this.#armed) client.route(true);
    if (this.#gateClosed) client.hold();
    return client;
  }

  #closed(client: PooledClient): void {
    client.pool.usedAtMs = this.#context.clock.monotonicMs();
    this.#clients.delete(client);
    this.#deps.onClosed(client);
    this.#onProgress();
  }

  #sweep(): void {
    const nowMs = this.#context.clock.monotonicMs();
    const { poolIdleTimeoutMs } = this.#context.bounds;
    const forsaken = this.#forsaken(nowMs);
    for (const pool of this.#all()) pool.sweep(nowMs, forsaken.has(pool) ? 0 : poolIdleTimeoutMs);
    for (const bound of Object.values(this.#bounds)) bound.look();
  }

  /**
   * Pools that nobody uses and that must not keep connections for who may come again: there is one for each user and
   * set of start-up parameters, and many a client gives itself a name of its own. All such pools of the side that
   * serves keep `poolSizeMax` connections together, those used last; one without any is forgotten.
   */
  #forsaken(nowMs: number): ReadonlySet<Pool> {
    const forsaken = new Set<Pool>();
    if (this.#pools.source.size + this.#pools.destination.size < 2) return forsaken;
    if (this.#gateClosed || this.#clients.size === 0) return forsaken;
    const used = this.#used();
    for (const side of ['source', 'destination'] as const) {
      const pools = [...this.#pools[side].values()];
      // Where nobody is yet, connections may have been made ready for a switch.
      if (pools.length === 0 || !pools.some((pool) => used.has(pool))) continue;
      let room = this.#context.bounds.poolSizeMax;
      for (const [key, pool] of this.#pools[side]) {
        const over = !used.has(pool) && pool.empty && nowMs - pool.usedAtMs >= FORGOTTEN_MS;
        if (!over) continue;
        pool.retire();
        this.#pools[side].delete(key);
      }
      const unused = pools.filter((pool) => !used.has(pool)).toSorted((a, b) => b.usedAtMs - a.usedAtMs);
      for (const pool of unused) {
        room -= pool.spare;
        if (room < 0) forsaken.add(pool);
      }
    }
    return forsaken;
  }

  /** Those of clients; while subsets are on different sides, a client is on either by turns. */
  #used(): ReadonlySet<Pool> {
    const used = new Set<Pool>();
    for (const { pool } of this.#clients) {
      used.add(pool);
      if (!this.#armed) continue;
      const key = keyOf(pool.key);
      for (const pools of Object.values(this.#pools)) {
        const twin = pools.get(key);
        if (twin !== undefined) used.add(twin);
      }
    }
    return used;
  }

  get #armed(): boolean {
    return this.#context.routing?.router.armed === true;
  }

  /** Each client's statements are given a side from now on, or no more. */
  route(wanted: boolean): void {
    for (const client of this.#clients) client.route(wanted);
  }

  /** What a client holds may have been changed by statements that were not known to do so. */
  statesUnsure(): void {
    for (const { messages } of this.#clients) messages.changes += 1;
  }

  /** Subsets are about to be on different sides: connections that clients will need on that one are opened. */
  async prepareParting(to: Side, signal: AbortSignal): Promise<void> {
    for (const [from, [first]] of this.#byPool()) {
      if (from.side === to || first === undefined || signal.aborted) continue;
      const pool = this.#pool(first.accepted, to);
      pool.use(first.accepted.credentials);
      // Where that fails its clients are told when they need one.
      await pool.fill(1, signal, this.#warming).catch(() => undefined);
    }
  }

  #all(): Pool[] {
    return [...this.#pools.source.values(), ...this.#pools.destination.values()];
  }

  set onProgress(listener: () => void) {
    this.#onProgress = listener;
  }

  unrested(): readonly SessionInfo[] {
    return [...this.#clients].filter((client) => !client.atRest).map((client) => client.info);
  }

  get size(): number {
    return this.#clients.size;
  }

  get restless(): boolean {
    for (const client of this.#clients) if (!client.atRest) return true;
    return false;
  }

  get open(): number {
    let open = 0;
    for (const client of this.#clients) if (!client.idle) open += 1;
    return open;
  }

  hold(): void {
    this.#gateClosed = true;
    for (const client of this.#clients) client.hold();
  }

  release(): number[] {
    this.#gateClosed = false;
    const waits: number[] = [];
    for (const client of this.#clients) {
      const waited = client.release();
      if (waited !== null) waits.push(waited);
    }
    return waits;
  }

  failHeld(sqlState: string, message: string): void {
    for (const client of this.#clients) client.failHeld(sqlState, message);
  }

  async rollBack(): Promise<void> {
    await Promise.all([...this.#clients].map((client) => client.rollBack()));
  }

  async settled(): Promise<void> {
    const { clock, settings } = this.#context;
    const deadline = clock.monotonicMs() + settings.askTimeoutMs;
    const settling = (): boolean => [...this.#clients].some((client) => client.phase === 'settling');
    while (settling() && clock.monotonicMs() < deadline) await clock.sleep(SETTLING_LOOK_MS);
  }

  async prepare(to: Side, signal: AbortSignal): Promise<PrepareReport> {
    const blockers: SessionBlocker[] = [];
    for (const [from, clients] of this.#byPool()) {
      if (from.side === to) continue;
      const [first] = clients;
      if (first === undefined) continue;
      const pool = this.#pool(first.accepted, to);
      pool.use(first.accepted.credentials);
      const { active, idle } = from.counts;
      try {
        await pool.fill(Math.max(1, active + idle), signal, this.#warming);
        await pool.warmShared(from, signal);
        blockers.push(...(await this.#tryStates(pool, clients)));
      } catch (error) {
        if (signal.aborted) throw asUnderstudyError(error, 'cancelled', 'preparing the pools');
        blockers.push(...clients.map((client) => blockerOf(client, 'destination-refuses', detailOf(error))));
      }
    }
    const sessions = this.#clients.size;
    return { sessions, warm: sessions - blockers.length, stale: 0, blockers };
  }

  /** Every distinct state of the clients' settings is tried on the new side. */
  async #tryStates(pool: Pool, clients: readonly PooledClient[]): Promise<SessionBlocker[]> {
    const states = new Map<string, ClientState>();
    for (const { state } of clients) if (state !== DEFAULT_STATE) states.set(state.signature, state);
    if (states.size === 0) return [];
    const blockers: SessionBlocker[] = [];
    for (const signature of pool.takenStates) states.delete(signature);
    if (states.size === 0) return [];
    const backend = await pool.openBeyond();
    try {
      for (const [signature, state] of states) {
        const pins = await applyState(backend, backend.held, state);
        backend.held = state;
        if (pins.length === 0) pool.takenStates.add(signature);
        for (const client of clients) {
          if (client.state.signature !== signature) continue;
          blockers.push(...pins.map((pin) => blockerOf(client, pin.reason, pin.detail)));
        }
      }
    } finally {
      pool.drop(backend, true);
    }
    return blockers;
  }

  #byPool(): Map<Pool, PooledClient[]> {
    const byPool = new Map<Pool, PooledClient[]>();
    for (const client of this.#clients) {
      const clients = byPool.get(client.pool);
      if (clients === undefined) byPool.set(client.pool, [client]);
      else clients.push(client);
    }
    return byPool;
  }

  /** Behind the closed gate: clients that came since, settings that were set since. */
  async refresh(to: Side, signal: AbortSignal): Promise<readonly SessionBlocker[]> {
    const { blockers } = await this.prepare(to, signal);
    return blockers;
  }

  switchTo(to: Side): { readonly moved: number; readonly closed: number } {
    const from: Side = to === 'source' ? 'destination' : 'source';
    let moved = 0;
    let closed = 0;
    for (const client of this.#clients) {
      if (client.pool.side === to) continue;
      const pool = this.#pools[to].get(keyOf(client.pool.key));
      if (client.atRest && pool !== undefined && pool.parameters !== null) {
        client.moveTo(pool, pool.parameters);
        moved += 1;
      } else {
        client.terminate('57P01', 'terminating connection because the database was switched over');
        closed += 1;
      }
    }
    this.#retire(from);
    return { moved, closed };
  }

  /** At the start, or after a recovery: clients of the other side are closed. */
  serve(side: Side): void {
    const other: Side = side === 'source' ? 'destination' : 'source';
    for (const client of this.#clients) {
      if (client.pool.side === other) client.terminate('57P01', `the ${side} serves this database now`);
    }
    this.#retire(other);
  }

  #retire(side: Side): void {
    for (const pool of this.#pools[side].values()) pool.retire();
    this.#pools[side].clear();
    this.#watches[side].stop();
  }

  /** Somebody has changed the catalogs: what is known of them is read anew. */
  catalogsChanged(): void {
    for (const watch of Object.values(this.#watches)) watch.changed();
  }

  discardWarm(serving: Side | undefined): void {
    if (serving !== undefined) this.#retire(serving === 'source' ? 'destination' : 'source');
  }

  stop(): void {
    clearInterval(this.#sweeper);
    this.#retire('source');
    this.#retire('destination');
  }

  /** Clients that left something which kept their connection theirs, by reason; as long as the process lives. */
  get pinned(): Readonly<Record<string, number>> {
    return Object.fromEntries(this.#pinned);
  }

  status(): readonly PoolStatus[] {
    const byPool = this.#byPool();
    return this.#all().map((pool) => ({
      mode: pool.key.mode,
      side: pool.side,
      database: pool.target.database,
      user: pool.key.user,
      clients: byPool.get(pool)?.length ?? 0,
      ...pool.counts,
      shared: pool.sharedStatus,
    }));
  }
}

function blockerOf(client: PooledClient, reason: SessionBlocker['reason'], detail: string): SessionBlocker {
  const { id, user, applicationName } = client.info;
  return { sessionId: id, user, applicationName, reason, detail };
}

function detailOf(error: unknown): string {
  if (error instanceof BackendRefused) return error.sqlState;
  return error instanceof Error ? error.message : String(error);
}
