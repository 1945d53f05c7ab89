/**
 * The data plane: listens, takes clients through their handshake, opens a backend for each on the side that serves,
 * and is the traffic control a cutover works with.
 *
 * States: new → listening → stopping → stopped.
 */
import { setMaxListeners } from 'node:events';
import type net from 'node:net';
import { UnderstudyError } from '../core/errors.js';
import { WHOLE_DATABASE, type Side, type SubsetId } from '../core/ports.js';
import type {
  HoldOptions,
  HoldReport,
  PrepareReport,
  Route,
  StallReport,
  SubsetRoute,
  SwitchReport,
} from '../core/traffic-ports.js';
import { FENCE_SQLSTATE, GUARD_SQLSTATE } from '../core/postgres.js';
import { StateCell } from '../core/state-machine.js';
import { StatementText } from '../wire/postgres/statement-text.js';
import { BinaryTypes } from './session/binary-types.js';
import { sendCancel, type Backend } from './backend/backend.js';
import { LeftConnections } from './backend/left-connections.js';
import { ClientEntry } from './login/client-entry.js';
import { ClientPlaces } from './login/client-places.js';
import { Clients } from './clients.js';
import { Gate } from './gate.js';
import { Listener } from './listener.js';
import { Decisions } from './pool/decisions.js';
import { Definitions } from './pool/definitions.js';
import { ParameterSets } from './pool/parameter-sets.js';
import { poolModesIn } from './pool/pool-settings.js';
import { Pools } from './pool/pools.js';
import type { Door, Proxy, ProxyDeps, ProxyState, ProxyStatus } from './proxy-interface.js';
import { NOT_NOW, STARTING } from './refusals.js';
import { Limiter } from './limiter.js';
import { Router } from './router.js';
import type { AdoptedClient, SessionContext, SessionInfo } from './session/session-context.js';
import type { SubsetRouting } from './subset/subset-routing.js';
import { SessionWatch } from './session/session-watch.js';
import type { ProxySettings, ReloadableSettings } from './settings.js';
import type { ClientTls } from './login/tls.js';
import { TypeOids } from './session/type-oids.js';

export function createProxy(settings: ProxySettings, deps: ProxyDeps): Proxy {
  return new PostgresProxy(settings, deps);
}

class PostgresProxy implements Proxy {
  /** Shared with the sessions; {@link reconfigure} changes it in place. */
  readonly #settings: ProxySettings;
  readonly #watch: SessionWatch;
  readonly #deps: ProxyDeps;
  readonly #door: Door;
  readonly #router: Router;
  readonly #oids = new TypeOids();
  readonly #gate: Gate;
  readonly #context: SessionContext;
  readonly #clients: Clients;
  readonly #entry: ClientEntry;
  readonly #pools: Pools;
  readonly #stop = new AbortController();
  #unavailable: string | null = null;
  #cancelRequests = 0;
  readonly #state = new StateCell<ProxyState>(
    'proxy',
    { new: ['listening', 'stopped'], listening: ['stopping'], stopping: ['stopped'], stopped: [] },
    'new',
  );

  constructor(settings: ProxySettings, deps: ProxyDeps) {
    this.#settings = { ...settings };
    // Every handshake and every connection being opened listens to it.
    setMaxListeners(0, this.#stop.signal);
    this.#deps = deps;
    this.#router = new Router(deps.subsets?.ids);
    const { log, clock, fellowship } = deps;
    const places = fellowship?.places ?? new ClientPlaces();
    this.#clients = new Clients({
      places,
      firstId: fellowship?.firstSessionId ?? 1,
      gate: () => this.#gate,
      pools: () => this.#pools,
      log,
      clock,
    });
    this.#watch = new SessionWatch(
      () => this.#clients.all(),
      () => this.#settings,
      clock,
    );
    this.#context = this.#makeContext();
    this.#pools = this.#makePools();
    this.#gate = new Gate({
      party: this.#pools,
      context: this.#context,
      router: this.#router,
      sessions: () => this.#clients.managedSessions(),
      target: (side) => ({ side, ...deps[side] }),
      settingNames: deps.customSettings,
      statefulFunctions: deps.statefulFunctions,
      ...(deps.onStalls === undefined ? {} : { onStalls: deps.onStalls }),
    });
    this.#entry = new ClientEntry({
      settings: this.#settings,
      proxy: deps,
      router: this.#router,
      gate: this.#gate,
      pools: this.#pools,
      places,
      clients: this.#clients,
      context: this.#context,
      passedContext: {
        ...this.#context,
        tap: null,
        mayPassHeld: () => false,
        routing: null,
        onError: () => undefined,
        // OIDs of another database mean other types.
        binaryTypes: new BinaryTypes(),
      },
      onCancel: (processId, secret) => {
        this.#cancelRequests += 1;
        if (!this.#clients.cancel(processId, secret)) fellowship?.onForeignCancel(processId, secret);
      },
      stopping: this.#stop.signal,
    });
    const onConnection = (socket: net.Socket): void => this.#entry.accept(socket);
    this.#door = fellowship?.door(onConnection) ?? new Listener(onConnection, log);
  }

  #makeContext(): SessionContext {
    const { tap, recorder, clock, log, onClientError, onFenceMet } = this.#deps;
    return {
      settings: this.#settings,
      tap,
      recorder: recorder ?? null,
      text: new StatementText(),
      binaryTypes: new BinaryTypes(),
      clock,
      log,
      mayPassHeld: () => this.#gate.mayPassHeld,
      routing: this.#makeRouting(),
      oids: (began, present) => this.#oids.for(began, present),
      onError: (sqlState) => {
        onClientError?.(sqlState);
        if (sqlState === FENCE_SQLSTATE || sqlState === GUARD_SQLSTATE) onFenceMet?.(sqlState);
      },
      cancelBackend: (backend) => this.#cancelBackend(backend),
      left: new LeftConnections(),
    };
  }

  #makeRouting(): SubsetRouting | null {
    const { subsets, customSettings } = this.#deps;
    if (subsets === undefined) return null;
    const { askConcurrency, warmConcurrency } = this.#settings;
    return {
      router: this.#router,
      reaches: subsets.reaches,
      target: (side) => ({ side, ...this.#deps[side] }),
      settingNames: customSettings,
      slots: { ask: new Limiter(askConcurrency).run, open: new Limiter(warmConcurrency).run },
    };
  }

  #makePools(): Pools {
    const { settings, tap, recorder, binaryTypes, clock, log, onError, mayPassHeld } = this.#context;
    const text = new StatementText();
    return new Pools({
      context: {
        settings,
        bounds: settings.pool,
        routing: this.#context.routing,
        tap,
        recorder,
        text,
        binaryTypes,
        clock,
        log,
        onError,
        mayPassHeld,
        decisions: new Decisions(
          text,
          this.#deps.statefulFunctions,
          poolModesIn(settings.pool).has('pipelined'),
        ),
        definitions: new Definitions(),
        parameterSets: new ParameterSets(),
        customSettings: this.#deps.customSettings,
        onCatalogsChanged: () => {
          this.#deps.fellowship?.onCatalogsChanged();
          this.#deps.onCatalogsChanged?.();
        },
        onPinned: (client, backend, pin, leftover) => {
          const { key } = client.pool;
          const onMoved: AdoptedClient['onMoved'] = (side, socket) => this.#pools.count(key, side, socket);
          this.#clients.pinned(client, backend, pin, leftover, onMoved, this.#context);
        },
      },
      target: (side) => ({ side, ...this.#deps[side] }),
      onClosed: (client) => this.#clients.pooledClosed(client),
      onAtRest: (client) => this.#clients.pooledAtRest(client),
    });
  }

  // ----------------------------------------------------------------------------------------------------------- life

  async start(): Promise<{ readonly host: string; readonly port: number }> {
    if (this.#router.get(WHOLE_DATABASE) === undefined && this.#unavailable === null) {
      this.setUnavailable(WHOLE_DATABASE, STARTING);
    }
    await this.#door.start(this.#settings);
    this.#state.move('listening');
    this.#watch.restart();
    return this.#address();
  }

  #address(): { readonly host: string; readonly port: number } {
    return this.#door.address ?? this.#settings;
  }

  reconfigure(settings: Partial<ReloadableSettings>): void {
    Object.assign(this.#settings, settings);
    if (this.#state.is('listening')) this.#watch.restart();
  }

  setTls(tls: ClientTls | undefined): void {
    this.#entry.tls = tls;
  }

  async stop(options: { readonly drainTimeoutMs: number }): Promise<void> {
    if (this.#state.is('stopping', 'stopped')) return;
    if (this.#state.is('new')) {
      this.#state.move('stopped');
      return;
    }
    this.#state.move('stopping');
    this.#watch.stop();
    this.#stop.abort(new UnderstudyError('cancelled', 'the proxy is stopping'));
    const closed = this.#door.stop();
    this.#gate.refuseWaiting(NOT_NOW);
    await this.#clients.leave(options.drainTimeoutMs);
    this.#clients.end((backend) => void this.#cancelBackend(backend));
    this.#pools.stop();
    this.#context.left.end();
    await closed;
    this.#gate.discardWarm();
    this.#state.move('stopped');
  }

  catalogsChanged(): void {
    this.#pools.catalogsChanged();
  }

  statefulFunctionsChanged(): void {
    this.#gate.statefulFunctionsChanged();
  }

  cancel(processId: number, secret: Buffer): void {
    this.#clients.cancel(processId, secret);
  }

  #cancelBackend(backend: Backend): Promise<void> {
    const { endpoint, processId, secretKey } = backend;
    return sendCancel(endpoint, processId, secretKey, this.#settings.connectTimeoutMs).catch(
      (error: unknown) => {
        this.#deps.log.warn(
          { side: endpoint.side, error: String(error) },
          'a cancel request did not get through',
        );
      },
    );
  }

  // ----------------------------------------------------------------------------------------------- traffic control

  route(subset: SubsetId): Route {
    return this.#router.route(subset);
  }

  setRoute(subset: SubsetId, route: Route, unserved?: string): void {
    if (this.#gate.state !== 'open' && this.#gate.state !== 'suspended') {
      throw new UnderstudyError('busy', `the gate is ${this.#gate.state}`);
    }
    this.#router.set(subset, route, unserved);
    const home = this.#router.get(WHOLE_DATABASE);
    if (home === undefined) return;
    if (!this.#router.armed) {
      for (const session of this.#clients.managedSessions()) {
        if (session.side !== home.side)
          session.terminate('57P01', `the ${home.side} serves this database now`);
      }
    }
    this.#gate.routesChanged();
    if (!this.#router.armed) this.#pools.serve(home.side);
    if (this.#unavailable === STARTING.message) this.setUnavailable(subset, null);
  }

  setUnavailable(
    subset: SubsetId,
    refusal: { readonly sqlState: string; readonly message: string } | null,
  ): void {
    this.#known(subset);
    if (refusal === null) this.#gate.resume();
    else this.#gate.suspend(refusal.sqlState, refusal.message);
    this.#unavailable = refusal?.message ?? null;
  }

  async prepare(
    subset: SubsetId,
    to: Side,
    signal: AbortSignal,
    along: readonly SubsetId[] = [],
  ): Promise<PrepareReport> {
    this.#known(subset);
    const { namedOids } = this.#deps;
    if (namedOids !== undefined) {
      this.#oids.update(...(await Promise.all([namedOids('source'), namedOids('destination')])));
    }
    return await this.#gate.prepare([subset, ...along], to, signal);
  }

  untilQuiet(withinMs: number, signal: AbortSignal): Promise<void> {
    return this.#gate.untilQuiet(withinMs, signal);
  }

  hold(
    subset: SubsetId,
    to: Side,
    options: HoldOptions,
    along: readonly SubsetId[] = [],
  ): Promise<HoldReport> {
    this.#known(subset);
    return this.#gate.hold([subset, ...along], to, options);
  }

  switchTo(subset: SubsetId, route: Route, along: readonly SubsetRoute[] = []): Promise<SwitchReport> {
    this.#known(subset);
    return this.#gate.switchTo(subset, route, along);
  }

  release(subset: SubsetId): StallReport {
    this.#known(subset);
    return this.#gate.release();
  }

  failHeld(subset: SubsetId, sqlState: string, message: string): void {
    this.#known(subset);
    this.#gate.failHeld(sqlState, message);
  }

  discardWarm(subset: SubsetId): void {
    this.#known(subset);
    this.#gate.discardWarm();
  }

  /** One gate stands in front of all. Throws `internal` for a subset that there is not. */
  #known(subset: SubsetId): void {
    if (subset !== WHOLE_DATABASE && !this.#router.has(subset))
      throw new UnderstudyError('internal', `there is no subset ${subset}`);
  }

  // ------------------------------------------------------------------------------------------------------- status

  status(): ProxyStatus {
    const clients = this.#clients.infos();
    const managed = clients.filter((info) => !info.passedThrough);
    const { fromClients, toClients } = this.#clients.closedBytes;
    const sum = (pick: (info: SessionInfo) => number): number =>
      clients.reduce((total, info) => total + pick(info), 0);
    return {
      state: this.#state.current,
      ...this.#address(),
      route: this.#router.get(WHOLE_DATABASE) ?? null,
      ...(this.#router.subsets.length > 1 ? { armed: this.#router.armed } : {}),
      unavailable: this.#unavailable,
      sessions: clients.length,
      passedThrough: clients.length - managed.length,
      bySide: {
        source: managed.filter((info) => info.side === 'source').length,
        destination: managed.filter((info) => info.side === 'destination').length,
      },
      gates: {
        [WHOLE_DATABASE]: {
          state: this.#gate.state,
          held: clients.filter((info) => info.heldBytes > 0).length,
          waiting: this.#gate.waiting,
          warm: this.#gate.warm,
        },
      },
      connections: {
        accepted: this.#clients.accepted,
        refused: this.#entry.refused,
        handshaking: this.#entry.handshaking,
      },
      cancelRequests: this.#cancelRequests,
      bytesFromClients: fromClients + sum((info) => info.bytesFromClient),
      bytesToClients: toClients + sum((info) => info.bytesToClient),
      clients,
      pools: this.#pools.status(),
      pinned: this.#pools.pinned,
      binaryTypes: this.#context.binaryTypes.all,
    };
  }
}
