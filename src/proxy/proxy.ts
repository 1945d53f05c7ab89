/**
 * The data plane: listens, takes clients through their handshake, opens a backend for each on the side that serves,
 * and is the traffic control a cutover works with.
 *
 * States: new → listening → stopping → stopped.
 *
 * A client's way in: handshake → room? → database known? → admission by the gate → backend opened on the route's side
 * → gate still open? (else that backend is given up and the client waits on) → session.
 *
 * Failures before there is a session are told the client as PostgreSQL tells them, by a FATAL ErrorResponse in place
 * of the first ParameterStatus.
 */
import { setMaxListeners } from 'node:events';
import type net from 'node:net';
import type { Clock } from '../core/clock.js';
import { UnderstudyError } from '../core/errors.js';
import type { Log } from '../core/log.js';
import {
  WHOLE_DATABASE,
  type HoldOptions,
  type HoldReport,
  type PrepareReport,
  type Route,
  type Side,
  type StallReport,
  type StatementTap,
  type TrafficRecorder,
  type SubsetId,
  type SwitchReport,
  type TrafficControl,
} from '../core/ports.js';
import { FENCE_SQLSTATE, GUARD_SQLSTATE } from '../core/postgres.js';
import { StateCell } from '../core/state-machine.js';
import {
  encodeBackendKeyData,
  encodeErrorResponse,
  encodeParameterStatus,
  encodeReadyForQuery,
  encodeTerminate,
} from '../wire/postgres/messages.js';
import { StatementText } from '../wire/postgres/statement-text.js';
import { BackendRefused } from './backend-refused.js';
import { openBackend, sendCancel, type Backend, type BackendEndpoint } from './backend.js';
import { CancelKeys } from './cancel-keys.js';
import { acceptClient, type AcceptedClient } from './client-handshake.js';
import { wipeCredentials } from './credentials.js';
import { Gate, NotAdmitted, type GateState } from './gate.js';
import { ClientPlaces } from './client-places.js';
import { Decisions } from './pool/decisions.js';
import { Definitions } from './pool/definitions.js';
import { ParameterSets } from './pool/parameter-sets.js';
import { Pools } from './pool/pools.js';
import type { Pool } from './pool/pool.js';
import type { PooledClient } from './pool/pooled-client.js';
import { blocksMove, type PoolPin, type PoolStatus } from './pool/pool-settings.js';
import { destine, type Destined } from './databases.js';
import { Listener } from './listener.js';
import { Router, known } from './router.js';
import type { SessionContext, SessionInfo } from './session-context.js';
import { SessionWatch } from './session-watch.js';
import { ServerProtocols } from './server-protocols.js';
import { Session, isReplication } from './session.js';
import type { ProxySettings, ReloadableSettings } from './settings.js';
import { closeWith } from './socket-reader.js';
import type { ClientTls } from './tls.js';
import { TypeOids, type NamedOids } from './type-oids.js';
import type { VerifierSource } from './verifiers.js';

/** One of the two databases, as clients' connections are opened on it. */
export interface ProxyTarget {
  readonly endpoint: BackendEndpoint;
  readonly database: string;
}

export interface ProxyDeps {
  readonly source: ProxyTarget;
  readonly destination: ProxyTarget;
  readonly verifiers: VerifierSource;
  /** For databases that stay on the source whichever side leads; `verifiers` where absent. */
  readonly sourceVerifiers?: VerifierSource;
  /** Null: capture is switched off. */
  readonly tap: StatementTap | null;
  /** Keeps what clients send, where that is asked for. */
  readonly recorder?: TrafficRecorder | undefined;
  readonly log: Log;
  readonly clock: Clock;
  /** Names of custom settings known from function bodies, policies, pg_db_role_setting and captured text. */
  readonly customSettings: () => readonly string[];
  /**
   * Names whose mention in a statement may change session state: of functions that set, listen, lock or make
   * temporary objects, and of tables and views behind which such functions stand. Unqualified, lower case. Return the
   * same array as long as nothing changed.
   */
  readonly statefulFunctions: () => readonly string[];
  /**
   * Asked of both sides each time sessions are prepared for a move; what it throws fails that. Without it, clients that
   * have moved are told the new side's OIDs.
   */
  readonly namedOids?: (side: Side) => Promise<NamedOids>;
  /** A client met the fence or the guard: the route may have changed elsewhere. */
  readonly onFenceMet?: (sqlState: string) => void;
  /** A client was told an error of the server's. */
  readonly onClientError?: (sqlState: string) => void;
  /** The gate opened: how long each client that had to wait has waited, in milliseconds. */
  readonly onStalls?: (waitsMs: readonly number[]) => void;
}

export interface GateStatus {
  readonly state: GateState;
  /** Sessions with something waiting. */
  readonly held: number;
  /** New connections that wait to be let in. */
  readonly waiting: number;
  /** Sessions whose connection on the other side is ready to be taken over. */
  readonly warm: number;
}

export interface ProxyStatus {
  readonly state: ProxyState;
  readonly host: string;
  readonly port: number;
  /** Null until a route is set. */
  readonly route: Route | null;
  /** Why clients are refused; null while they are served. */
  readonly unavailable: string | null;
  /** All of them. */
  readonly sessions: number;
  /** Those on databases that are not being migrated; they stay on the source. */
  readonly passedThrough: number;
  /** The others, which a switch moves. */
  readonly bySide: Readonly<Record<Side, number>>;
  readonly gates: Readonly<Record<SubsetId, GateStatus>>;
  readonly connections: { readonly accepted: number; readonly refused: number; readonly handshaking: number };
  readonly cancelRequests: number;
  readonly bytesFromClients: number;
  readonly bytesToClients: number;
  readonly clients: readonly ClientInfo[];
  readonly pools: readonly PoolStatus[];
}

export interface ClientInfo extends SessionInfo {
  /** As the client named it. */
  readonly database: string;
  readonly passedThrough: boolean;
}

export type ProxyState = 'new' | 'listening' | 'stopping' | 'stopped';

export interface Proxy extends TrafficControl {
  /** Listens. Throws `port-in-use`. Clients are refused with 57P03 until a route is set. */
  start(): Promise<{ readonly host: string; readonly port: number }>;
  /**
   * Takes no more clients, closes idle sessions with 57P01, and busy ones as soon as they come to rest; at the
   * deadline, those that are left.
   */
  stop(options: { readonly drainTimeoutMs: number }): Promise<void>;
  status(): ProxyStatus;
  /** Other limits and timeouts, which count from now on. Clients past a lowered limit stay. */
  reconfigure(settings: Partial<ReloadableSettings>): void;
  /** At startup, or after a recovery. Sessions on the other side are closed with 57P01: only `switchTo` moves. */
  setRoute(subset: SubsetId, route: Route): void;
  /**
   * While set, connections get FATAL and statements ERROR with this SQLSTATE and message. Null ends it. Throws `busy`
   * while a hold is on.
   */
  setUnavailable(
    subset: SubsetId,
    refusal: { readonly sqlState: string; readonly message: string } | null,
  ): void;
  /** For connections from now on, such as a renewed certificate. */
  setTls(tls: ClientTls | undefined): void;
}

export function createProxy(settings: ProxySettings, deps: ProxyDeps): Proxy {
  return new PostgresProxy(settings, deps);
}

class PostgresProxy implements Proxy {
  /** Shared with the sessions; {@link reconfigure} changes it in place. */
  readonly #settings: ProxySettings;
  readonly #watch: SessionWatch;
  readonly #places = new ClientPlaces();
  readonly #deps: ProxyDeps;
  readonly #listener: Listener;
  readonly #router = new Router();
  readonly #oids = new TypeOids();
  readonly #gate: Gate;
  readonly #context: SessionContext;
  /** Of sessions that are passed through: nothing of what they do is the migration's. */
  readonly #passedContext: SessionContext;
  readonly #sessions = new Set<Session>();
  /** Those of them that are passed through to other databases. */
  readonly #passed = new Set<Session>();
  readonly #keys = new CancelKeys<Session | PooledClient>();
  readonly #protocols: ServerProtocols;
  #tls: ClientTls | undefined;
  readonly #pools: Pools;
  /** Accepted clients that have no session yet. */
  readonly #entering = new Set<net.Socket>();
  readonly #handshaking = new Set<net.Socket>();
  readonly #stop = new AbortController();
  #unavailable: string | null = null;
  #nextSessionId = 1;
  #accepted = 0;
  #refused = 0;
  #cancelRequests = 0;
  #closedBytesFrom = 0;
  #closedBytesTo = 0;
  #onSessionEnd: () => void = () => undefined;
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
    this.#watch = new SessionWatch(
      () => [...this.#sessions, ...this.#pools.clients],
      () => this.#settings,
      deps.clock,
    );
    this.#tls = settings.tls;
    this.#protocols = new ServerProtocols(deps.clock, settings.connectTimeoutMs);
    this.#context = {
      settings: this.#settings,
      tap: deps.tap,
      recorder: deps.recorder ?? null,
      text: new StatementText(),
      clock: deps.clock,
      log: deps.log,
      mayPassHeld: () => this.#gate.mayPassHeld,
      oids: (began, present) => this.#oids.for(began, present),
      onAtRest: (session) => this.#atRest(session),
      onClosed: (session) => this.#sessionClosed(session),
      onError: (sqlState) => {
        deps.onClientError?.(sqlState);
        if (sqlState === FENCE_SQLSTATE || sqlState === GUARD_SQLSTATE) deps.onFenceMet?.(sqlState);
      },
      cancelBackend: (backend) => this.#cancelBackend(backend),
    };
    this.#pools = this.#makePools();
    this.#gate = new Gate({
      party: this.#pools,
      subset: WHOLE_DATABASE,
      context: this.#context,
      router: this.#router,
      sessions: () => this.#managed(),
      target: (side) => ({ side, ...deps[side] }),
      settingNames: deps.customSettings,
      statefulFunctions: deps.statefulFunctions,
      ...(deps.onStalls === undefined ? {} : { onStalls: deps.onStalls }),
    });
    this.#passedContext = { ...this.#context, tap: null, mayPassHeld: () => false, onError: () => undefined };
    this.#listener = new Listener((socket) => this.#onConnection(socket), deps.log);
  }

  #makePools(): Pools {
    const { settings, tap, clock, log, onError, mayPassHeld } = this.#context;
    const text = new StatementText();
    const { poolMode } = settings.pool;
    return new Pools({
      context: {
        settings,
        bounds: settings.pool,
        tap,
        text,
        clock,
        log,
        onError,
        mayPassHeld,
        decisions: new Decisions(text, this.#deps.statefulFunctions, poolMode === 'pipelined'),
        definitions: new Definitions(),
        parameterSets: new ParameterSets(),
        customSettings: this.#deps.customSettings,
        onPinned: (client, backend, pin, leftover) => this.#pinned(client, backend, pin, leftover),
      },
      target: (side) => ({ side, ...this.#deps[side] }),
      onClosed: (client) => this.#pooledClosed(client),
      onAtRest: (client) => {
        if (this.#state.is('stopping')) client.terminate(SHUTTING_DOWN.sqlState, SHUTTING_DOWN.message);
      },
    });
  }

  // ---------------------------------------------------------------------------------------------------- listening

  async start(): Promise<{ readonly host: string; readonly port: number }> {
    if (this.#router.get(WHOLE_DATABASE) === undefined && this.#unavailable === null) {
      this.setUnavailable(WHOLE_DATABASE, STARTING);
    }
    await this.#listener.start(this.#settings);
    this.#state.move('listening');
    this.#watch.restart();
    return this.#address();
  }

  #address(): { readonly host: string; readonly port: number } {
    return this.#listener.address ?? this.#settings;
  }

  reconfigure(settings: Partial<ReloadableSettings>): void {
    Object.assign(this.#settings, settings);
    if (this.#state.is('listening')) this.#watch.restart();
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
    const closed = this.#listener.stop();
    this.#gate.refuseWaiting(NOT_NOW);
    for (const session of this.#sessions) {
      if (session.idle) session.terminate(SHUTTING_DOWN.sqlState, SHUTTING_DOWN.message);
      else session.hold();
    }
    for (const client of this.#pools.clients) {
      if (client.idle) client.terminate(SHUTTING_DOWN.sqlState, SHUTTING_DOWN.message);
      else client.hold();
    }
    await this.#sessionsEnded(options.drainTimeoutMs);
    for (const session of this.#sessions) {
      this.#cancelBackend(session.backend);
      session.terminate(SHUTTING_DOWN.sqlState, SHUTTING_DOWN.message);
    }
    for (const client of this.#pools.clients) {
      client.cancelStatement();
      client.terminate(SHUTTING_DOWN.sqlState, SHUTTING_DOWN.message);
    }
    this.#pools.stop();
    await closed;
    this.#gate.discardWarm();
    this.#state.move('stopped');
  }

  /** Clients that have been let in. */
  get #served(): number {
    return this.#sessions.size + this.#pools.clients.size;
  }

  async #sessionsEnded(withinMs: number): Promise<void> {
    if (this.#served === 0) return;
    const over = new AbortController();
    const timeUp = this.#deps.clock.sleep(withinMs, over.signal).catch(() => undefined);
    const ended = new Promise<void>((resolve) => {
      this.#onSessionEnd = () => {
        if (this.#served === 0) resolve();
      };
    });
    await Promise.race([ended, timeUp]);
    over.abort();
  }

  // -------------------------------------------------------------------------------------------------- a client's way in

  #onConnection(socket: net.Socket): void {
    socket.on('error', () => undefined);
    if (this.#handshaking.size >= this.#settings.maxHandshakes) {
      this.#refused += 1;
      socket.destroy();
      return;
    }
    this.#handshaking.add(socket);
    this.#serve(socket).catch((error: unknown) => {
      this.#deps.log.error({ error: String(error) }, 'a connection failed');
      socket.destroy();
    });
  }

  async #serve(socket: net.Socket): Promise<void> {
    const { authentication, handshakeTimeoutMs } = this.#settings;
    const tls = this.#tls;
    let client: AcceptedClient | null;
    try {
      client = await acceptClient(socket, {
        verifiers: { lookup: (user, database) => this.#verifiersFor(database).lookup(user, database) },
        authentication,
        timeoutMs: handshakeTimeoutMs,
        stopping: this.#stop.signal,
        ...(tls === undefined ? {} : { tls }),
        serverProtocolMinor: (user, database) => this.#serverProtocolMinor(user, database),
        onCancel: (processId, secret) => this.#onCancel(processId, secret),
        log: this.#deps.log,
      });
    } finally {
      this.#handshaking.delete(socket);
    }
    if (client === null) return;
    const entered = client.socket;
    this.#entering.add(entered);
    // A client that leaves while it waits frees its place.
    const gone = new AbortController();
    const onGone = (): void => gone.abort(new UnderstudyError('cancelled', 'the client has left'));
    entered.once('close', onGone);
    try {
      const refusal = await this.#enter(client, gone.signal);
      if (refusal === null) return;
      this.#refused += 1;
      wipeCredentials(client.credentials);
      closeWith(entered, refusal);
    } finally {
      entered.off('close', onGone);
      this.#entering.delete(entered);
    }
  }

  /** Makes it a session, or returns the FATAL it is to be told. */
  async #enter(client: AcceptedClient, gone: AbortSignal): Promise<Buffer | null> {
    if (!this.#state.is('listening')) return fatal(NOT_NOW);
    const full = this.#places.take(client, this.#settings);
    if (full !== null) return fatal({ sqlState: '53300', message: full });
    let refusal: Buffer | null = EMPTY;
    try {
      refusal = await this.#admit(client, gone);
      return refusal;
    } finally {
      // Where it became a session, the place is that session's.
      if (refusal !== null) this.#places.free(client);
    }
  }

  async #admit(client: AcceptedClient, gone: AbortSignal): Promise<Buffer | null> {
    try {
      const destined = this.#destine(client.database);
      if (destined.kind === 'unserved') return await this.#refuseDatabase(client, gone);
      if (destined.kind === 'passed-through') return await this.#passThrough(client, destined.database, gone);
      for (;;) {
        await this.#gate.admission(gone);
        if (gone.aborted) return EMPTY;
        const { side } = this.#router.route(WHOLE_DATABASE);
        if (this.#isPooled(client)) {
          if (await this.#enterPool(client, side)) return null;
          continue;
        }
        const target = this.#deps[side];
        const backend = await this.#open(client, target.endpoint, target.database, gone);
        // The gate may have closed, and the side changed, while the server answered.
        const present = this.#gate.state === 'open' && this.#router.route(WHOLE_DATABASE).side === side;
        if (present && this.#state.is('listening')) {
          const session = this.#begin(client, backend, side, this.#context);
          if (session.phase !== 'closed') this.#gate.opened(session);
          return null;
        }
        closeWith(backend.socket, encodeTerminate());
        if (!this.#state.is('listening')) return fatal(NOT_NOW);
      }
    } catch (error) {
      if (error instanceof BackendRefused) return error.response;
      if (error instanceof NotAdmitted) return fatal(error);
      if (error instanceof UnderstudyError && error.code === 'cancelled') {
        return gone.aborted ? EMPTY : fatal(NOT_NOW);
      }
      if (error instanceof UnderstudyError && error.code === 'route-unknown') return fatal(STARTING);
      this.#deps.log.error({ error: String(error) }, 'opening a session failed');
      return fatal({ sqlState: 'XX000', message: 'internal error of the proxy' });
    }
  }

  #isPooled(client: AcceptedClient): boolean {
    return this.#settings.pool.poolMode !== 'session' && !isReplication(client.parameters.get('replication'));
  }

  /** False: the gate has closed, or the side changed, meanwhile. */
  async #enterPool(client: AcceptedClient, side: Side): Promise<boolean> {
    const pool = await this.#pools.poolFor(client, side);
    const present = this.#gate.state === 'open' && this.#router.route(WHOLE_DATABASE).side === side;
    if (!this.#state.is('listening')) throw new UnderstudyError('cancelled', 'the proxy is stopping');
    if (present) this.#beginPooled(client, pool);
    return present;
  }

  async #open(
    client: AcceptedClient,
    endpoint: BackendEndpoint,
    database: string,
    gone: AbortSignal,
  ): Promise<Backend> {
    return await openBackend(
      endpoint,
      {
        user: client.user,
        database,
        parameters: client.parameters,
        protocolMinor: client.protocolMinor,
      },
      client.credentials,
      {
        connectTimeoutMs: this.#settings.connectTimeoutMs,
        signal: AbortSignal.any([gone, this.#stop.signal]),
      },
    );
  }

  #destine(database: string | undefined): Destined {
    const { source } = this.#deps;
    return destine(database ?? source.database, source.database, this.#settings.databases);
  }

  /** Other databases are on the source alone, and so are the passwords that open them. */
  #verifiersFor(database: string | undefined): VerifierSource {
    const { verifiers, sourceVerifiers } = this.#deps;
    return this.#destine(database).kind === 'managed' ? verifiers : (sourceVerifiers ?? verifiers);
  }

  /** Another database of the source's: no gate stands in front of it. */
  async #passThrough(client: AcceptedClient, database: string, gone: AbortSignal): Promise<Buffer | null> {
    const backend = await this.#open(client, this.#deps.source.endpoint, database, gone);
    if (!this.#state.is('listening')) {
      closeWith(backend.socket, encodeTerminate());
      return fatal(NOT_NOW);
    }
    const session = this.#begin(client, backend, 'source', this.#passedContext);
    if (session.phase !== 'closed') this.#passed.add(session);
    return null;
  }

  #managed(): Session[] {
    return [...this.#sessions].filter((session) => !this.#passed.has(session));
  }

  /** For a database that is not served the server's own refusal is relayed, and its consent refused. */
  async #refuseDatabase(client: AcceptedClient, gone: AbortSignal): Promise<Buffer> {
    const backend = await this.#open(client, this.#deps.source.endpoint, client.database, gone);
    closeWith(backend.socket, encodeTerminate());
    return fatal({
      sqlState: '3D000',
      message: `database "${client.database}" is not served by this Understudy, which serves "${this.#deps.source.database}"`,
    });
  }

  #begin(client: AcceptedClient, backend: Backend, side: Side, context: SessionContext): Session {
    const session = new Session(this.#nextSessionId++, client, backend, side, context);
    const { processId, secret } = this.#keys.issue(session, client.protocolMinor);
    this.#sessions.add(session);
    this.#accepted += 1;
    const parameters = [...backend.parameters].map(([name, value]) => encodeParameterStatus(name, value));
    session.start(
      Buffer.concat([
        client.greeting,
        backend.notices,
        ...parameters,
        encodeBackendKeyData(processId, secret),
        encodeReadyForQuery('I'),
      ]),
    );
    return session;
  }

  #beginPooled(accepted: AcceptedClient, pool: Pool): void {
    this.#accepted += 1;
    const id = this.#nextSessionId++;
    const client = this.#pools.accept(id, accepted, pool);
    const { processId, secret } = this.#keys.issue(client, accepted.protocolMinor);
    if (accepted.greeting.length > 0) accepted.socket.write(accepted.greeting);
    client.start(encodeBackendKeyData(processId, secret));
  }

  /** A pooled client keeps its connection from now on: it goes on as a session. */
  #pinned(client: PooledClient, backend: Backend, pin: PoolPin, leftover: Buffer): void {
    const accepted = { ...client.accepted, leftover };
    const session = new Session(client.id, accepted, backend, client.pool.side, this.#context);
    this.#deps.log.debug(
      { session: client.id, reason: pin.reason, detail: pin.detail },
      'a pooled client was pinned',
    );
    const { messages } = client;
    session.adopt({
      prepared: [...messages.names].map(([name, { body, textBytes, decision }]) => ({
        name,
        text: body.subarray(0, textBytes),
        flags: decision.flags,
      })),
      unnamed: messages.unnamed,
      settingNames: messages.settingNames,
      pins: blocksMove(pin.reason) ? [{ reason: pin.reason, detail: pin.detail }] : [],
    });
    this.#keys.hand(client, session);
    this.#sessions.add(session);
    session.start(EMPTY);
    if (session.phase === 'closed') return;
    if (this.#gate.state === 'open' && !this.#state.is('stopping')) this.#gate.opened(session);
    else session.hold();
  }

  #pooledClosed(client: PooledClient): void {
    this.#keys.release(client);
    wipeCredentials(client.accepted.credentials);
    this.#places.free(client.accepted);
    this.#closedBytesFrom += client.info.bytesFromClient;
    this.#closedBytesTo += client.info.bytesToClient;
    this.#onSessionEnd();
  }

  #sessionClosed(session: Session): void {
    this.#keys.release(session);
    wipeCredentials(session.accepted.credentials);
    this.#sessions.delete(session);
    this.#passed.delete(session);
    this.#places.free(session.accepted);
    const { bytesFromClient, bytesToClient } = session.info;
    this.#closedBytesFrom += bytesFromClient;
    this.#closedBytesTo += bytesToClient;
    this.#gate.closed(session);
    this.#onSessionEnd();
  }

  #atRest(session: Session): void {
    if (this.#state.is('stopping')) session.terminate(SHUTTING_DOWN.sqlState, SHUTTING_DOWN.message);
    else this.#gate.atRest(session);
  }

  // ------------------------------------------------------------------------------------------------------- cancel

  #onCancel(processId: number, secret: Buffer): void {
    this.#cancelRequests += 1;
    this.#keys.find(processId, secret)?.cancelStatement();
  }

  #cancelBackend(backend: Backend): void {
    const { endpoint, processId, secretKey } = backend;
    sendCancel(endpoint, processId, secretKey, this.#settings.connectTimeoutMs).catch((error: unknown) => {
      this.#deps.log.warn(
        { side: endpoint.side, error: String(error) },
        'a cancel request did not get through',
      );
    });
  }

  /** What the server would agree to that the client will be connected to. */
  #serverProtocolMinor(user: string, database: string): Promise<number> {
    const managed = this.#destine(database).kind === 'managed';
    const side = managed ? (this.#router.get(WHOLE_DATABASE)?.side ?? 'source') : 'source';
    return this.#protocols.minorOf(this.#deps[side].endpoint, { user, database });
  }

  setTls(tls: ClientTls | undefined): void {
    this.#tls = tls;
  }

  // ----------------------------------------------------------------------------------------------- traffic control

  route(subset: SubsetId): Route {
    return this.#router.route(subset);
  }

  setRoute(subset: SubsetId, route: Route): void {
    if (this.#gate.state !== 'open' && this.#gate.state !== 'suspended') {
      throw new UnderstudyError('busy', `the gate is ${this.#gate.state}`);
    }
    this.#router.set(subset, route);
    for (const session of this.#managed()) {
      if (session.side !== route.side)
        session.terminate('57P01', `the ${route.side} serves this database now`);
    }
    this.#pools.serve(route.side);
    if (this.#unavailable === STARTING.message) this.setUnavailable(subset, null);
  }

  setUnavailable(
    subset: SubsetId,
    refusal: { readonly sqlState: string; readonly message: string } | null,
  ): void {
    known(subset);
    if (refusal === null) this.#gate.resume();
    else this.#gate.suspend(refusal.sqlState, refusal.message);
    this.#unavailable = refusal?.message ?? null;
  }

  async prepare(subset: SubsetId, to: Side, signal: AbortSignal): Promise<PrepareReport> {
    const gate = this.#gateOf(subset);
    const { namedOids } = this.#deps;
    if (namedOids !== undefined) {
      this.#oids.update(...(await Promise.all([namedOids('source'), namedOids('destination')])));
    }
    return await gate.prepare(to, signal);
  }

  hold(subset: SubsetId, to: Side, options: HoldOptions): Promise<HoldReport> {
    return this.#gateOf(subset).hold(to, options);
  }

  switchTo(subset: SubsetId, route: Route): Promise<SwitchReport> {
    return this.#gateOf(subset).switchTo(route);
  }

  release(subset: SubsetId): StallReport {
    return this.#gateOf(subset).release();
  }

  failHeld(subset: SubsetId, sqlState: string, message: string): void {
    this.#gateOf(subset).failHeld(sqlState, message);
  }

  discardWarm(subset: SubsetId): void {
    this.#gateOf(subset).discardWarm();
  }

  #gateOf(subset: SubsetId): Gate {
    known(subset);
    return this.#gate;
  }

  // ------------------------------------------------------------------------------------------------------- status

  status(): ProxyStatus {
    const sessions = [...this.#sessions].map((session) => ({
      ...session.info,
      database: session.accepted.database,
      passedThrough: this.#passed.has(session),
    }));
    const pooled = [...this.#pools.clients].map((client) => ({
      ...client.info,
      database: client.accepted.database,
      passedThrough: false,
    }));
    const clients = [...sessions, ...pooled];
    const managed = clients.filter((info) => !info.passedThrough);
    const sum = (pick: (info: SessionInfo) => number): number =>
      clients.reduce((total, info) => total + pick(info), 0);
    return {
      state: this.#state.current,
      ...this.#address(),
      route: this.#router.get(WHOLE_DATABASE) ?? null,
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
        accepted: this.#accepted,
        refused: this.#refused,
        handshaking: this.#handshaking.size,
      },
      cancelRequests: this.#cancelRequests,
      bytesFromClients: this.#closedBytesFrom + sum((info) => info.bytesFromClient),
      bytesToClients: this.#closedBytesTo + sum((info) => info.bytesToClient),
      clients,
      pools: this.#pools.status(),
    };
  }
}

const EMPTY = Buffer.alloc(0);
const STARTING = { sqlState: '57P03', message: 'Understudy is starting: which side serves is not known yet' };
/** To one that is not served yet. */
const NOT_NOW = { sqlState: '57P03', message: 'the proxy is shutting down' };
const SHUTTING_DOWN = {
  sqlState: '57P01',
  message: 'terminating connection because the proxy is shutting down',
};

function fatal(refusal: { readonly sqlState: string; readonly message: string }): Buffer {
  const { sqlState, message } = refusal;
  return encodeErrorResponse({ severity: 'FATAL', sqlState, message });
}
