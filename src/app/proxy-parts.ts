/** What the proxy is made of, from the configuration. */
import type { StatementTap, TrafficRecorder } from '../core/capture-ports.js';
import type { DatabaseEndpoint, Side } from '../core/ports.js';
import type { Clock } from '../core/clock.js';
import type { StatementReaches } from '../core/subset-ports.js';
import { subsetIds } from '../core/subsets.js';
import type { Log } from '../core/log.js';
import { UnderstudyError } from '../core/errors.js';
import { POOL_DEFAULTS } from '../proxy/pool/pool-settings.js';
import type { Fellowship, Proxy, ProxyControl, ProxyTarget } from '../proxy/proxy-interface.js';
import { createProxy } from '../proxy/proxy.js';
import { PROXY_DEFAULTS, type ProxySettings, type ReloadableSettings } from '../proxy/settings.js';
import { clientTls, type ClientTls } from '../proxy/login/tls.js';
import { QueryVerifiers, UsersFileVerifiers, type VerifierSource } from '../proxy/login/verifiers.js';
import type { SessionHints } from '../shadow/postgres/preflight-sessions.js';
import { EVERY_NAME } from '../shadow/postgres/stateful-names.js';
import { namedOids } from './control-side.js';
import type { ResolvedConfig } from './config.js';
import { shareOf } from './workers/shares.js';

export interface ProxyParts<P extends ProxyControl = ProxyControl> {
  readonly proxy: P;
  readonly closeVerifiers: () => Promise<void>;
  /** Takes over newly read hints. */
  readonly setHints: (hints: SessionHints) => void;
  /**
   * Shows clients that connect from now on the certificates of a configuration read anew (`loadConfig` reads the
   * files); those that are connected stay as they are. Throws `config-invalid` and changes nothing.
   */
  readonly reloadTls: (listen: ResolvedConfig['listen']) => void;
}

export interface ProxyPartsDeps {
  readonly config: ResolvedConfig;
  readonly tap: StatementTap | null;
  readonly recorder?: TrafficRecorder | undefined;
  readonly log: Log;
  readonly clock: Clock;
  /** The side that may be written at present; undefined while that is not known. */
  readonly leader: () => Side | undefined;
  readonly onFenceMet: () => void;
  /** A pooled client has changed the catalogs: the hints are to be read anew. */
  readonly onCatalogsChanged?: () => void;
  readonly onClientError: (sqlState: string) => void;
  readonly onStalls: (waitsMs: readonly number[]) => void;
  /** How many proxies share what is configured, this one among them; 1 where absent. */
  readonly workers?: number;
  readonly fellowship?: Fellowship;
  /** Only where subsets are configured. */
  readonly reaches?: StatementReaches | undefined;
}

/** Until they were read, any statement may change what its session holds. */
const UNREAD = [EVERY_NAME];

/** A proxy in this process. Throws `config-invalid`. */
export function makeProxy(deps: ProxyPartsDeps): ProxyParts<Proxy> {
  const { config } = deps;
  const { verifiers, sourceVerifiers, close } = verifierSources(deps);
  let hints: SessionHints = { dottedSettings: [], statefulFunctions: [], statefulNames: UNREAD };
  const proxy = createProxy(shareOf(proxySettings(config), deps.workers ?? 1), {
    ...(deps.fellowship === undefined ? {} : { fellowship: deps.fellowship }),
    ...(deps.reaches === undefined
      ? {}
      : { subsets: { ids: subsetIds(config.subsets), reaches: deps.reaches } }),
    source: target('source', config.source),
    destination: target('destination', config.destination),
    verifiers,
    sourceVerifiers,
    tap: deps.tap,
    recorder: deps.recorder,
    log: deps.log.child({ part: 'proxy' }),
    clock: deps.clock,
    customSettings: () => hints.dottedSettings,
    statefulFunctions: () => hints.statefulNames,
    namedOids: (side) => namedOids(config, side),
    onFenceMet: deps.onFenceMet,
    onCatalogsChanged: () => deps.onCatalogsChanged?.(),
    onClientError: deps.onClientError,
    onStalls: deps.onStalls,
  });
  return {
    proxy,
    closeVerifiers: close,
    reloadTls: (listen) => proxy.setTls(listenTls(listen)),
    setHints: (read) => {
      const changed = JSON.stringify(read) !== JSON.stringify(hints);
      // The proxy compiles the names once and tells by identity whether they changed.
      if (!changed) return;
      hints = read;
      proxy.statefulFunctionsChanged();
    },
  };
}

function target(side: Side, endpoint: DatabaseEndpoint): ProxyTarget {
  const { database, user: _user, password: _password, ...address } = endpoint;
  return { endpoint: { side, ...address }, database };
}

function verifierSources({ config, leader }: ProxyPartsDeps): {
  readonly verifiers: VerifierSource;
  /** Of databases that stay on the source. */
  readonly sourceVerifiers: VerifierSource;
  readonly close: () => Promise<void>;
} {
  if (config.auth.usersFile !== undefined) {
    const verifiers = new UsersFileVerifiers(config.auth.usersFile);
    return { verifiers, sourceVerifiers: verifiers, close: () => Promise.resolve() };
  }
  const { connectTimeoutMs, clientsMax } = config.limits;
  const readFrom = (side: () => Side | undefined): QueryVerifiers =>
    new QueryVerifiers({
      current: () => {
        const current = side();
        if (current === undefined) {
          throw new UnderstudyError('route-unknown', 'which side leads is not known yet');
        }
        return { side: current, endpoint: config[current] };
      },
      connectTimeoutMs,
      queryTimeoutMs: connectTimeoutMs,
      waitingMax: clientsMax,
    });
  const verifiers = readFrom(leader);
  const sourceVerifiers = readFrom(() => 'source');
  return {
    verifiers,
    sourceVerifiers,
    close: async () => {
      await verifiers.close();
      await sourceVerifiers.close();
    },
  };
}

/** Throws `config-invalid`. */
export function listenTls({ tls }: ResolvedConfig['listen']): ClientTls | undefined {
  if (tls === undefined) return undefined;
  const { cert, key, clientCa, mode, minVersion } = tls;
  return clientTls({
    certPem: cert,
    keyPem: key,
    mode,
    minVersion,
    ...(clientCa === undefined ? {} : { clientCaPem: clientCa }),
  });
}

export function proxySettings({
  listen,
  auth,
  limits,
  capture,
  proxy,
  shadow,
}: ResolvedConfig): ProxySettings {
  const tls = listenTls(listen);
  return {
    ...PROXY_DEFAULTS,
    ...reloadableSettings(limits),
    host: listen.host,
    port: listen.port,
    reusePort: listen.reusePort,
    ...(listen.socketDir === undefined ? {} : { socketDir: listen.socketDir }),
    socketMode: listen.socketMode,
    databases: listen.databases,
    authentication: auth.method,
    ...(tls === undefined ? {} : { tls }),
    frameBytesMax: limits.frameBytesMax,
    textBytesMax: capture.textBytesMax,
    parameterBytesMax: capture.keys || shadow.method === 'mirror' ? capture.parameterBytesMax : 0,
    stateBytesMax: limits.stateBytesMax,
    warmConcurrency: limits.warmConcurrency,
    pool: { ...POOL_DEFAULTS, ...proxy, poolModes: proxy.poolModes ?? {} },
  };
}

/** What of the configuration the proxy takes while it runs. */
export function reloadableSettings(limits: ResolvedConfig['limits']): ReloadableSettings {
  return {
    maxClients: limits.clientsMax,
    maxClientsPerUser: limits.clientsPerUserMax,
    maxClientsPerDatabase: limits.clientsPerDatabaseMax,
    maxHandshakes: limits.handshakesMax,
    handshakeTimeoutMs: limits.handshakeTimeoutMs,
    clientIdleTimeoutMs: limits.clientIdleTimeoutMs,
    idleInTransactionTimeoutMs: limits.idleInTransactionTimeoutMs,
    queryTimeoutMs: limits.queryTimeoutMs,
    connectTimeoutMs: limits.connectTimeoutMs,
    heldBytesMax: limits.heldBytesMax,
    warmAttempts: limits.warmAttempts,
    prepareTimeoutMs: limits.prepareTimeoutMs,
    askTimeoutMs: limits.askTimeoutMs,
    staleSessionsMax: limits.staleSessionsMax,
    cancelTimeoutMs: limits.cancelTimeoutMs,
    switchTimeoutMs: limits.switchTimeoutMs,
  };
}
