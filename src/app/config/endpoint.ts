/**
 * A connection URL, as libpq reads it: `postgres://user:password@host:port/database?sslmode=…`.
 * https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS
 */
import {
  CHANNEL_BINDINGS,
  TLS_MODES,
  TLS_NEGOTIATIONS,
  type ChannelBinding,
  type DatabaseEndpoint,
  type TlsMode,
  type TlsNegotiation,
} from '../../core/ports.js';
import { isSocketFolder } from '../../core/server-socket.js';

export interface ParsedUrl {
  readonly endpoint: Pick<DatabaseEndpoint, 'host' | 'port' | 'database' | 'user' | 'password'>;
  readonly tls?: TlsMode;
  readonly tlsNegotiation?: TlsNegotiation;
  readonly channelBinding?: ChannelBinding;
  readonly tlsCaFile?: string;
  readonly tlsCertFile?: string;
  readonly tlsKeyFile?: string;
}

const UNREADABLE =
  'this is not a valid URL; characters such as @ : / # % in a password must be percent-encoded, ' +
  'or put the password into the `password` key beside the URL';

/** Returns what is wrong as text; never repeats the URL, which holds the password. */
export function parseDatabaseUrl(url: string): ParsedUrl | string {
  if (!/^postgres(ql)?:\/\//.test(url)) return 'expected a URL that begins with postgres:// or postgresql://';
  let parsed: URL;
  try {
    // A URL with a user and no host, as it names a socket's folder in `?host=`, is none to the standard's parser.
    parsed = new URL(url.replace(/^([a-z]+:\/\/(?:[^/@]*@)?)(?=[:/])/, `$1${NO_HOST}`));
  } catch {
    return UNREADABLE;
  }
  // An unencoded / in the password ends the host early, and the rest up to the true host lands here.
  if (parsed.pathname.includes('@')) return UNREADABLE;
  const user = decode(parsed.username);
  const password = decode(parsed.password);
  const database = decode(parsed.pathname.slice(1));
  const named = decode(parsed.hostname);
  if (user === undefined || password === undefined || database === undefined || named === undefined)
    return 'a % in the URL is not followed by two hexadecimal digits; write it as %25, or use the `password` key';
  const parameters = readParameters(parsed.searchParams);
  if (typeof parameters === 'string') return parameters;
  const { host: folder, port = parsed.port, ...rest } = parameters;
  const host = folder ?? (named === NO_HOST ? '' : named);
  if (host === '') return 'the URL names no host';
  if (user === '') return 'the URL names no user';
  if (database === '') return 'the URL names no database (…/database)';
  if (database.includes('/')) return 'the database name in the URL holds a /; write it as %2F';
  return {
    endpoint: {
      // IPv6 hosts stand in brackets in a URL only.
      host: host.replace(/^\[(.*)\]$/, '$1'),
      port: port === '' ? 5432 : Number(port),
      database,
      user,
      ...(password === '' ? {} : { password }),
    },
    ...rest,
  };
}

/** Stands for a host that is not there. */
const NO_HOST = 'none.invalid';

/** What stands behind the `?`, by libpq's names; what is wrong with it, as text. */
function readParameters(
  search: URLSearchParams,
): (Omit<ParsedUrl, 'endpoint'> & { readonly host?: string; readonly port?: string }) | string {
  const found: Record<string, string> = {};
  for (const [name, value] of search) {
    const parameter = PARAMETERS[name];
    if (parameter === undefined)
      return `the URL parameter ${JSON.stringify(name)} is not supported (${Object.keys(PARAMETERS).join(', ')} are)`;
    const [key, choices] = parameter;
    if (choices !== undefined && !choices.includes(value))
      return `${name} in the URL must be one of ${choices.join(', ')}`;
    if (name === 'host' && !isSocketFolder(value))
      return 'host= in the URL names the folder of a unix socket';
    if (name === 'port' && !(/^[1-9]\d{0,4}$/.test(value) && Number(value) < 65_536))
      return 'port= in the URL is no port';
    found[key] = value;
  }
  return found;
}

const PARAMETERS: Readonly<Record<string, readonly [key: string, choices?: readonly string[]]>> = {
  sslmode: ['tls', TLS_MODES],
  sslrootcert: ['tlsCaFile'],
  sslcert: ['tlsCertFile'],
  sslkey: ['tlsKeyFile'],
  sslnegotiation: ['tlsNegotiation', TLS_NEGOTIATIONS],
  channel_binding: ['channelBinding', CHANNEL_BINDINGS],
  host: ['host'],
  port: ['port'],
};

function decode(part: string): string | undefined {
  try {
    return decodeURIComponent(part);
  } catch {
    return undefined;
  }
}

/** Whether a host can only be reached from this machine. A name other than localhost is taken not to be. */
export function isLoopback(host: string): boolean {
  return (
    isSocketFolder(host) ||
    /^127\.\d{1,3}\.\d{1,3}\.\d{1,3}$/.test(host) ||
    host === '::1' ||
    host.toLowerCase() === 'localhost'
  );
}

/** `user@host:port/database`, for messages. */
export function endpointText(endpoint: DatabaseEndpoint): string {
  const host = endpoint.host.includes(':') ? `[${endpoint.host}]` : endpoint.host;
  return `${endpoint.user}@${host}:${endpoint.port}/${endpoint.database}`;
}
