/**
 * Taking over another configuration while clients are served.
 *
 * Some keys count from the moment they are read again ({@link RELOADABLE}); the others stay as they are until the next
 * start, and are named. A key is either taken over whole or not at all, and what can't be taken over is reported again
 * at the next reload, as long as it differs.
 */
import type { DatabaseEndpoint, Side } from '../core/ports.js';
import type { ResolvedConfig } from './config.js';

const SIDES: readonly Side[] = ['source', 'destination'];
const PEMS = ['tlsCa', 'tlsCert', 'tlsKey'] as const;

export interface ReloadReport {
  /** Keys whose new values are in force. */
  readonly applied: readonly string[];
  /** Keys that differ from what runs, and will until the next start. */
  readonly needRestart: readonly string[];
}

const RELOADABLE: ReadonlySet<string> = new Set([
  'limits.clientsMax',
  'limits.clientsPerUserMax',
  'limits.clientsPerDatabaseMax',
  'limits.handshakesMax',
  'limits.handshakeTimeoutMs',
  'limits.clientIdleTimeoutMs',
  'limits.idleInTransactionTimeoutMs',
  'limits.queryTimeoutMs',
  'limits.connectTimeoutMs',
  'limits.heldBytesMax',
  'limits.warmAttempts',
  'limits.prepareTimeoutMs',
  'limits.askTimeoutMs',
  'limits.staleSessionsMax',
  'limits.cancelTimeoutMs',
  'limits.switchTimeoutMs',
  'limits.stopTimeoutMs',
  'log.level',
]);

const CERTIFICATE: ReadonlySet<string> = new Set([
  'listen.tls.cert',
  'listen.tls.key',
  'listen.tls.clientCa',
]);

/** Read again from the same file. */
const SERVER_CERTIFICATE: ReadonlySet<string> = new Set(
  SIDES.flatMap((side) => PEMS.map((pem) => `${side}.${pem}`)),
);

/** What differs, and the configuration that results: `running` with the reloadable keys of `wanted`. */
export function takeOver(
  running: ResolvedConfig,
  wanted: ResolvedConfig,
): { readonly config: ResolvedConfig; readonly report: ReloadReport } {
  const before = leavesOf(running);
  const after = leavesOf(wanted);
  const names = new Set([...before.keys(), ...after.keys()]);
  const changed = [...names].filter((name) => before.get(name) !== after.get(name)).sort();
  const exchanged = running.listen.tls !== undefined && wanted.listen.tls !== undefined;
  const applied = changed.filter(
    (name) =>
      RELOADABLE.has(name) ||
      (exchanged && CERTIFICATE.has(name)) ||
      (SERVER_CERTIFICATE.has(name) && !changed.includes(fileOf(name))),
  );
  const limits: Record<string, unknown> = { ...running.limits };
  for (const [name, value] of Object.entries(wanted.limits)) {
    if (RELOADABLE.has(`limits.${name}`)) limits[name] = value;
  }
  return {
    config: {
      ...running,
      source: endpointOf('source', running, wanted, applied),
      destination: endpointOf('destination', running, wanted, applied),
      limits: limits as ResolvedConfig['limits'],
      log: wanted.log,
      listen: listenOf(running, wanted),
    },
    report: { applied, needRestart: changed.filter((name) => !applied.includes(name)) },
  };
}

/** `source.tlsCa` → `source.tlsFiles.tlsCa`. */
function fileOf(name: string): string {
  return name.replace('.', '.tlsFiles.');
}

/** What runs has read the files itself; here they only stop being a difference. */
function endpointOf(
  side: Side,
  running: ResolvedConfig,
  wanted: ResolvedConfig,
  applied: readonly string[],
): DatabaseEndpoint {
  const pems = PEMS.filter((pem) => applied.includes(`${side}.${pem}`));
  return { ...running[side], ...Object.fromEntries(pems.map((pem) => [pem, wanted[side][pem]])) };
}

/** Certificates are exchanged; whether and how TLS is asked for hangs together with what else needs a restart. */
function listenOf(running: ResolvedConfig, wanted: ResolvedConfig): ResolvedConfig['listen'] {
  const { tls, ...address } = running.listen;
  if (tls === undefined || wanted.listen.tls === undefined) return running.listen;
  const { mode, minVersion } = tls;
  return { ...address, tls: { ...wanted.listen.tls, mode, minVersion } };
}

/** Every leaf by its dotted name. Values are compared only, never shown: there are secrets among them. */
function leavesOf(config: ResolvedConfig): ReadonlyMap<string, unknown> {
  const leaves = new Map<string, unknown>();
  const walk = (value: unknown, path: string): void => {
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) {
      for (const [name, child] of Object.entries(value)) walk(child, path === '' ? name : `${path}.${name}`);
    } else {
      leaves.set(path, Array.isArray(value) ? JSON.stringify(value) : value);
    }
  };
  walk(config, '');
  return leaves;
}
