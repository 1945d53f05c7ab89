/**
 * Understudy's own connections to PostgreSQL: control, snapshot, apply, verify. Not the data path.
 *
 * Every such connection pins the settings that decide how values print and which rows are seen, so that two servers
 * with other defaults, or row security, can't make a copy or a comparison come out wrong.
 */
import type net from 'node:net';
import tls from 'node:tls';
import { pg } from './pg.js';
import { endpointBinding } from './certificate-hash.js';
import type { ChannelBinding, DatabaseEndpoint, LogMessage, Side } from './ports.js';
import { LOG_MESSAGE_PREFIX } from './ports.js';
import { UnderstudyError } from './errors.js';
import { openServerSocket, overEachWay, reasonOf, SocketRefused, type Way } from './server-socket.js';

/** Pinned on every connection of Understudy's own. `search_path` is empty: everything is schema-qualified. */
export const PINNED_SETTINGS: Readonly<Record<string, string>> = {
  row_security: 'off',
  client_encoding: 'UTF8',
  DateStyle: 'ISO, MDY',
  IntervalStyle: 'postgres',
  extra_float_digits: '3',
  bytea_output: 'hex',
  TimeZone: 'UTC',
  // Decides the digits of `money`, and whether reg* types print their names quoted.
  lc_monetary: 'C',
  quote_all_identifiers: 'off',
  search_path: '',
  statement_timeout: '0',
  lock_timeout: '0',
  idle_in_transaction_session_timeout: '0',
  idle_session_timeout: '0',
  synchronous_commit: 'on',
  default_transaction_isolation: 'read committed',
  default_transaction_read_only: 'off',
  default_transaction_deferrable: 'off',
};

/** Known from 17 on: a server that doesn't know a setting refuses the login that names it. */
const PIN_TRANSACTION_TIMEOUT_SQL = `SELECT pg_catalog.set_config('transaction_timeout', '0', false)
 WHERE pg_catalog.current_setting('server_version_num')::pg_catalog.int4 >= 170000`;

export interface ControlConnectionOptions {
  /** Shows as `understudy <purpose>` in pg_stat_activity. */
  readonly purpose: string;
  readonly connectTimeoutMs?: number;
  readonly settings?: Readonly<Record<string, string>>;
  /** Opens a walsender on the database instead of an ordinary backend. */
  readonly replication?: boolean;
}

/** libpq's escaping inside the `options` startup parameter: backslash before space and backslash. */
function optionsParameter(settings: Readonly<Record<string, string>>): string {
  return Object.entries(settings)
    .map(([name, value]) => `-c ${name}=${value.replace(/[\\ ]/g, '\\$&')}`)
    .join(' ');
}

/**
 * Opens a control connection with {@link PINNED_SETTINGS}. All values come back as text: no type is parsed, so that
 * bigint, numeric and timestamps keep every digit. Encryption is as the endpoint's mode asks, see server-socket.ts.
 * Throws `source-unreachable` / `destination-unreachable`. The caller must `end()` it; a later loss of the
 * connection is reported through pg's own `error` event and by the next query failing, never as an uncaught error.
 */
export async function connectControl(
  side: Side,
  endpoint: DatabaseEndpoint,
  options: ControlConnectionOptions,
): Promise<pg.Client> {
  const timeoutMs = options.connectTimeoutMs ?? 10_000;
  try {
    return await overEachWay(
      endpoint,
      (way) => connectOver(side, endpoint, options, way, timeoutMs),
      serverSqlState,
    );
  } catch (error) {
    const reason = error instanceof SocketRefused ? error.reason : reasonOf(error);
    throw new UnderstudyError(
      side === 'source' ? 'source-unreachable' : 'destination-unreachable',
      `${side} ${endpoint.host}:${endpoint.port}/${endpoint.database} as ${endpoint.user}: ${reason}`,
      {
        cause: error,
        advice: `Check that the ${side} is up and that ${side}.url in the configuration is right.`,
      },
    );
  }
}

async function connectOver(
  side: Side,
  endpoint: DatabaseEndpoint,
  options: ControlConnectionOptions,
  way: Way,
  timeoutMs: number,
): Promise<pg.Client> {
  const deadline = AbortSignal.timeout(timeoutMs);
  const socket = await openServerSocket(side, endpoint, way, deadline).catch((error: unknown) => {
    throw deadline.aborted
      ? new SocketRefused(side, endpoint, 'unreachable', `no answer within ${timeoutMs} ms`)
      : error;
  });
  const binding = channelBindingOver(socket, endpoint);
  const config: pg.ClientConfig & { replication?: string } = {
    host: endpoint.host,
    port: endpoint.port,
    database: endpoint.database,
    user: endpoint.user,
    // The socket is encrypted already where it is to be.
    stream: () => alreadyConnected(socket),
    ssl: false,
    sslnegotiation: 'postgres',
    enableChannelBinding: binding !== 'disable',
    application_name: `understudy ${options.purpose}`,
    connectionTimeoutMillis: timeoutMs,
    keepAlive: true,
    options: optionsParameter({ ...PINNED_SETTINGS, ...options.settings }),
    types: { getTypeParser: () => (value: unknown) => value },
  };
  if (endpoint.password !== undefined) config.password = endpoint.password;
  if (options.replication === true) config.replication = 'database';
  const client = new pg.Client(config);
  client.on('error', () => undefined);
  const bound = binding === 'require' ? refuseUnbound(client, socket) : undefined;
  try {
    await client.connect();
    // A server that asks for nothing may be ready in the same breath.
    if (bound?.() === false) throw new Error(UNBOUND);
    await client.query(PIN_TRANSACTION_TIMEOUT_SQL);
    return client;
  } catch (error) {
    await client.end().catch(() => undefined);
    socket.destroy();
    throw error;
  }
}

/** pg connects the stream it is given; this one is connected. */
function alreadyConnected(socket: net.Socket): net.Socket {
  return Object.assign(socket, {
    connect: (): net.Socket => {
      process.nextTick(() => socket.emit('connect'));
      return socket;
    },
  });
}

/** What can be done about channel binding on this very connection; require stays require. */
function channelBindingOver(socket: net.Socket, endpoint: DatabaseEndpoint): ChannelBinding {
  const wanted = endpoint.channelBinding ?? 'prefer';
  if (wanted === 'require') return 'require';
  const bindable =
    socket instanceof tls.TLSSocket && endpointBinding(socket.getPeerCertificate().raw) !== null;
  return bindable ? wanted : 'disable';
}

const UNBOUND = 'channel binding is required, and the server does not offer it';

/**
 * Ends the connection before any secret is given to a server that does not prove itself by channel binding. What is
 * returned tells whether it has.
 */
function refuseUnbound(client: pg.Client, socket: net.Socket): () => boolean {
  let proven = false;
  const refuse = (): void => void socket.destroy(new Error(UNBOUND));
  const { connection } = client;
  connection.prependListener('authenticationSASL', (message: { readonly mechanisms: readonly string[] }) => {
    if (!message.mechanisms.includes('SCRAM-SHA-256-PLUS')) refuse();
  });
  connection.prependListener('authenticationSASLFinal', () => (proven = true));
  for (const event of ['authenticationCleartextPassword', 'authenticationMD5Password'])
    connection.prependListener(event, refuse);
  return () => proven;
}

function serverSqlState(error: unknown): string | undefined {
  return error instanceof pg.DatabaseError ? error.code : undefined;
}

/** `"a""b"`. Names are never interpolated without it. */
export function quoteIdent(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

export function quoteTable(table: { readonly schema: string; readonly name: string }): string {
  return `${quoteIdent(table.schema)}.${quoteIdent(table.name)}`;
}

/** A string literal, safe under either setting of standard_conforming_strings. */
export function quoteLiteral(value: string): string {
  const quoted = `'${value.replaceAll("'", "''")}'`;
  return value.includes('\\') ? `E${quoted.replaceAll('\\', '\\\\')}` : quoted;
}

/** SQL that writes `message` into the change log as a transactional message; part of the caller's transaction. */
export function emitMessageSql(message: LogMessage): string {
  return `SELECT pg_catalog.pg_logical_emit_message(true, '${LOG_MESSAGE_PREFIX}', ${quoteLiteral(JSON.stringify(message))})`;
}

/** SQLSTATE raised by the fence on a side that has handed its subset over. */
export const FENCE_SQLSTATE = 'UFENC';
/** SQLSTATE raised by the guard on a shadow that does not lead yet. */
export const GUARD_SQLSTATE = 'UGARD';
