/** What the proxy is given, what it tells of itself, and what it can be told. */
import type net from 'node:net';
import type { Clock } from '../core/clock.js';
import type { Log } from '../core/log.js';
import type { StatementTap, TrafficRecorder } from '../core/capture-ports.js';
import type { Side, SubsetId } from '../core/ports.js';
import type { Route, TrafficControl, StallReport } from '../core/traffic-ports.js';
import type { StatementReaches } from '../core/subset-ports.js';
import type { BackendEndpoint } from './backend/backend.js';
import type { Places } from './login/client-places.js';
import type { GateState } from './gate.js';
import type { PoolStatus } from './pool/pool-settings.js';
import type { SessionInfo } from './session/session-context.js';
import type { ReloadableSettings } from './settings.js';
import type { ClientTls } from './login/tls.js';
import type { NamedOids } from './session/type-oids.js';
import type { VerifierSource } from './login/verifiers.js';

/** One of the two databases, as clients' connections are opened on it. */
export interface ProxyTarget {
  readonly endpoint: BackendEndpoint;
  readonly database: string;
}

export interface ListenAddress {
  readonly host: string;
  /** 0 takes a free one. */
  readonly port: number;
  /** Lets another process listen on the same port, for a hand-over. The unix socket is not shared. */
  readonly reusePort?: boolean;
  /** Absent: no unix socket. */
  readonly socketDir?: string;
  /** Permissions of the socket, as chmod takes them. */
  readonly socketMode: number;
}

/** How clients come in. */
export interface Door {
  /** Throws `port-in-use`; `config-invalid` where the address can't be listened on. */
  start(address: ListenAddress): Promise<void>;
  /** Undefined unless it listens. */
  readonly address: { readonly host: string; readonly port: number } | undefined;
  /** Takes no more connections. Resolves once the last of them has ended. */
  stop(): Promise<void>;
}

/** What a proxy is given that is one of several in front of the same database. */
export interface Fellowship {
  /** Makes where connections are handed in, instead of a listener of the proxy's own. */
  readonly door: (onConnection: (socket: net.Socket) => void) => Door;
  readonly places: Places;
  /** Its sessions are numbered from there on. */
  readonly firstSessionId: number;
  /** A cancel request whose key is not one of this proxy's. */
  readonly onForeignCancel: (processId: number, secret: Buffer) => void;
  /** A client of this proxy has changed the catalogs; the others are to be told by `catalogsChanged`. */
  readonly onCatalogsChanged: () => void;
}

export interface ProxyDeps {
  readonly fellowship?: Fellowship;
  /** Absent: the database is one subset. `ids`: all of them, `rest` the last. Sessions only: no pool can be routed. */
  readonly subsets?: { readonly ids: readonly SubsetId[]; readonly reaches: StatementReaches };
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
  /** A pooled client has changed the catalogs: other names may count. */
  readonly onCatalogsChanged?: () => void;
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
  /** Where subsets are configured: whether they are on different sides, so that each statement is given one. */
  readonly armed?: boolean;
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
  /** Clients that were pinned since the start, over all pools, by reason. */
  readonly pinned: Readonly<Record<string, number>>;
  /** OIDs, on each side, of the database's own types that clients have used in binary form. */
  readonly binaryTypes: Readonly<Record<Side, readonly number[]>>;
  /** The processes that serve clients; absent where this one does. */
  readonly workers?: readonly WorkerStatus[];
}

export interface WorkerStatus {
  readonly pid: number;
  /** standing-by: not given clients until the gate is open. silent: it did not answer just now. */
  readonly state: 'starting' | 'standing-by' | 'serving' | 'silent';
  /** Connections handed to it that have not ended. */
  readonly connections: number;
}

export interface ClientInfo extends SessionInfo {
  /** As the client named it. */
  readonly database: string;
  readonly passedThrough: boolean;
}

export type ProxyState = 'new' | 'listening' | 'stopping' | 'stopped';

/** One proxy in this process, or several in others. */
export interface ProxyControl extends TrafficControl {
  /** Listens. Throws `port-in-use`. Clients are refused with 57P03 until a route is set. */
  start(): Promise<{ readonly host: string; readonly port: number }>;
  /**
   * Takes no more clients, closes idle sessions with 57P01, and busy ones as soon as they come to rest; at the
   * deadline, those that are left.
   */
  stop(options: { readonly drainTimeoutMs: number }): Promise<void>;
  status(): ProxyStatus | Promise<ProxyStatus>;
  /** Other limits and timeouts, which count from now on. Clients past a lowered limit stay. */
  reconfigure(settings: Partial<ReloadableSettings>): void;
  /**
   * At startup, or after a recovery. Sessions on the other side are closed with 57P01: only `switchTo` moves. `unserved`:
   * of one of several subsets the route is presumed only, and its statements are refused with 57P03 and these words.
   */
  setRoute(subset: SubsetId, route: Route, unserved?: string): void;
  /**
   * While set, connections get FATAL and statements ERROR with this SQLSTATE and message. Null ends it. Throws `busy`
   * while a hold is on.
   */
  setUnavailable(
    subset: SubsetId,
    refusal: { readonly sqlState: string; readonly message: string } | null,
  ): void;
}

export interface Proxy extends ProxyControl {
  status(): ProxyStatus;
  release(subset: SubsetId): StallReport;
  /** For connections from now on, such as a renewed certificate. */
  setTls(tls: ClientTls | undefined): void;
  /** A client of another proxy has changed the catalogs. */
  catalogsChanged(): void;
  /** Those that `statefulFunctions` tells are others now. */
  statefulFunctionsChanged(): void;
  /** A cancel request that came in at another proxy. */
  cancel(processId: number, secret: Buffer): void;
}
