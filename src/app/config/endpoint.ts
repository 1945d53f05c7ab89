/**
 * A connection URL, as libpq reads it: `postgres://user:password@host:port/database?sslmode=…`.
 * https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS
 */
import type { DatabaseEndpoint, TlsMode } from '../../core/ports.js';

export const TLS_MODES: readonly TlsMode[] = ['disable', 'prefer', 'require', 'verify-full'];

export interface ParsedUrl {
  readonly endpoint: Omit<DatabaseEndpoint, 'tls' | 'tlsCa'>;
  readonly tls: TlsMode | undefined;
  readonly tlsCaFile: string | undefined;
}

const UNREADABLE =
  'this is not a valid URL; characters such as @ : / # % in a password must be percent-encoded, ' +
  'or put the password into the `password` key beside the URL';

/** Returns what is wrong as text; never repeats the URL, which holds the password. */
export function parseDatabaseUrl(url: string): ParsedUrl | string {
  if (!/^postgres(ql)?:\/\//.test(url)) return 'expected a URL that begins with postgres:// or postgresql://';
  let parsed: URL;
  try {
    parsed = new URL(url);
  } catch {
    return UNREADABLE;
  }
  // An unencoded / in the password ends the host early, and the rest up to the true host lands here.
  if (parsed.pathname.includes('@')) return UNREADABLE;
  const user = decode(parsed.username);
  const password = decode(parsed.password);
  const database = decode(parsed.pathname.slice(1));
  if (user === undefined || password === undefined || database === undefined)
    return 'a % in the URL is not followed by two hexadecimal digits; write it as %25, or use the `password` key';
  if (parsed.hostname === '') return 'the URL names no host';
  if (user === '') return 'the URL names no user';
  if (database === '') return 'the URL names no database (…/database)';
  if (database.includes('/')) return 'the database name in the URL holds a /; write it as %2F';
  let tls: TlsMode | undefined;
  let tlsCaFile: string | undefined;
  for (const [name, value] of parsed.searchParams) {
    if (name === 'sslmode') {
      const mode = TLS_MODES.find((candidate) => candidate === value);
      if (mode === undefined) return `sslmode in the URL must be one of ${TLS_MODES.join(', ')}`;
      tls = mode;
    } else if (name === 'sslrootcert') tlsCaFile = value;
    else return `the URL parameter ${JSON.stringify(name)} is not supported (sslmode and sslrootcert are)`;
  }
  return {
    endpoint: {
      // IPv6 hosts stand in brackets in a URL only.
      host: parsed.hostname.replace(/^\[(.*)\]$/, '$1'),
      port: parsed.port === '' ? 5432 : Number(parsed.port),
      database,
      user,
      ...(password === '' ? {} : { password }),
    },
    tls,
    tlsCaFile,
  };
}

function decode(part: string): string | undefined {
  try {
    return decodeURIComponent(part);
  } catch {
    return undefined;
  }
}

/** Whether an address can only be reached from this machine. A name other than localhost is taken not to be. */
export function isLoopback(host: string): boolean {
  return (
    /^127\.\d{1,3}\.\d{1,3}\.\d{1,3}$/.test(host) || host === '::1' || host.toLowerCase() === 'localhost'
  );
}

/** `user@host:port/database`, for messages. */
export function endpointText(endpoint: DatabaseEndpoint): string {
  const host = endpoint.host.includes(':') ? `[${endpoint.host}]` : endpoint.host;
  return `${endpoint.user}@${host}:${endpoint.port}/${endpoint.database}`;
}
