/** Bounds of the proxy, all from configuration. */
import type { ClientAuthentication } from './login/client-authentication.js';
import type { DatabaseNames } from './login/databases.js';
import type { ClientTls } from './login/tls.js';
import { POOL_DEFAULTS, type PoolSettings } from './pool/pool-settings.js';

export interface ProxySettings {
  readonly host: string;
  /** 0 takes a free one. */
  readonly port: number;
  /** Lets another process listen on it too. */
  readonly reusePort?: boolean;
  /** A folder in which a unix socket is opened too. */
  readonly socketDir?: string;
  /** Its permissions, as chmod takes them. */
  readonly socketMode: number;
  /** Databases clients may ask for beside the one that is migrated. */
  readonly databases: DatabaseNames;
  readonly authentication: ClientAuthentication;
  /** Answers SSLRequest with S where present; see `Proxy.setTls` for a renewed certificate. */
  readonly tls?: ClientTls;
  /** Clients served at once; more get 53300. */
  readonly maxClients: number;
  /** Of one user; 0 is no limit but `maxClients`. */
  readonly maxClientsPerUser: number;
  /** Of one database; 0 is no limit but `maxClients`. */
  readonly maxClientsPerDatabase: number;
  /** Connections in their handshake at once; more are closed unanswered. */
  readonly maxHandshakes: number;
  readonly handshakeTimeoutMs: number;
  /** A client outside a transaction that does nothing is closed after it; 0 is never. */
  readonly clientIdleTimeoutMs: number;
  /** A client that leaves a transaction open is closed after it; 0 is never. */
  readonly idleInTransactionTimeoutMs: number;
  /** A statement that runs longer is cancelled; 0 is never. */
  readonly queryTimeoutMs: number;
  /** For opening one server connection. */
  readonly connectTimeoutMs: number;
  /** Bound on a message's length field; PostgreSQL's own is about 1 GiB. */
  readonly frameBytesMax: number;
  /** Statement text is cut there for the tap. */
  readonly textBytesMax: number;
  /** Bound parameters are copied up to there for the tap; 0: not looked at. */
  readonly parameterBytesMax: number;
  /** Bytes kept for one session at the gate before its socket is no longer read. */
  readonly heldBytesMax: number;
  /** Bound on what a session may hold (settings, prepared statements) to be carried over. */
  readonly stateBytesMax: number;
  /** Sessions asked at once what they hold while they are being served. */
  readonly askConcurrency: number;
  /** Connections opened on the new side at once; also, sessions asked at once behind the gate. */
  readonly warmConcurrency: number;
  /** Tries to open one connection on the new side. */
  readonly warmAttempts: number;
  /** How long `prepare` waits for a session's next quiet moment. */
  readonly prepareTimeoutMs: number;
  /** How long a session's own backend may take to say what it holds. */
  readonly askTimeoutMs: number;
  /** Sessions that may be asked again or warmed behind the gate; more is a reason not to close it. */
  readonly staleSessionsMax: number;
  /** For a cancelled statement or COPY to end. */
  readonly cancelTimeoutMs: number;
  /** For a listening session's last notifications, and for reopening a lost warm connection, at the switch. */
  readonly switchTimeoutMs: number;
  /** How clients come by server connections. */
  readonly pool: PoolSettings;
}

export const PROXY_DEFAULTS = {
  host: '127.0.0.1',
  port: 6432,
  socketMode: 0o777,
  databases: {},
  authentication: 'verifier',
  maxClients: 1000,
  maxClientsPerUser: 0,
  maxClientsPerDatabase: 0,
  maxHandshakes: 1000,
  handshakeTimeoutMs: 60_000,
  clientIdleTimeoutMs: 0,
  idleInTransactionTimeoutMs: 0,
  queryTimeoutMs: 0,
  connectTimeoutMs: 10_000,
  frameBytesMax: 0x4000_0000 + 0x10_0000,
  textBytesMax: 4096,
  parameterBytesMax: 0,
  heldBytesMax: 1024 * 1024,
  stateBytesMax: 4 * 1024 * 1024,
  askConcurrency: 3,
  warmConcurrency: 8,
  warmAttempts: 2,
  prepareTimeoutMs: 5000,
  askTimeoutMs: 5000,
  staleSessionsMax: 64,
  cancelTimeoutMs: 2000,
  switchTimeoutMs: 2000,
  pool: POOL_DEFAULTS,
} as const satisfies ProxySettings;

/** What can be changed while clients are served: everything that is looked up when it is needed. */
export type ReloadableSettings = Pick<
  ProxySettings,
  | 'maxClients'
  | 'maxClientsPerUser'
  | 'maxClientsPerDatabase'
  | 'maxHandshakes'
  | 'handshakeTimeoutMs'
  | 'clientIdleTimeoutMs'
  | 'idleInTransactionTimeoutMs'
  | 'queryTimeoutMs'
  | 'connectTimeoutMs'
  | 'heldBytesMax'
  | 'warmAttempts'
  | 'prepareTimeoutMs'
  | 'askTimeoutMs'
  | 'staleSessionsMax'
  | 'cancelTimeoutMs'
  | 'switchTimeoutMs'
>;
