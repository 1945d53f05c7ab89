/**
 * Understudy's own connections to PostgreSQL: control, snapshot, apply, verify. Not the data path.
 *
 * Every such connection pins the settings that decide how values print and which rows are seen, so that two servers
 * with other defaults, or row security, can't make a copy or a comparison come out wrong.
 */
import pg from 'pg';
import type { DatabaseEndpoint, LogMessage, Side } from './ports.js';
import { LOG_MESSAGE_PREFIX } from './ports.js';
import { UnderstudyError } from './errors.js';

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
  synchronous_commit: 'on',
  default_transaction_isolation: 'read committed',
  default_transaction_read_only: 'off',
  default_transaction_deferrable: 'off',
};

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

function tlsOptions(endpoint: DatabaseEndpoint): pg.ClientConfig['ssl'] {
  switch (endpoint.tls) {
    case 'disable':
    case 'prefer':
      return false;
    case 'require':
      return { rejectUnauthorized: false };
    case 'verify-full':
      return endpoint.tlsCa === undefined
        ? { rejectUnauthorized: true }
        : { rejectUnauthorized: true, ca: endpoint.tlsCa };
  }
}

/**
 * Opens a control connection with {@link PINNED_SETTINGS}. All values come back as text: no type is parsed, so that
 * bigint, numeric and timestamps keep every digit.
 * Throws `source-unreachable` / `destination-unreachable`. The caller must `end()` it; a later loss of the
 * connection is reported through pg's own `error` event and by the next query failing, never as an uncaught error.
 */
export async function connectControl(
  side: Side,
  endpoint: DatabaseEndpoint,
  options: ControlConnectionOptions,
): Promise<pg.Client> {
  const config: pg.ClientConfig & { replication?: string } = {
    host: endpoint.host,
    port: endpoint.port,
    database: endpoint.database,
    user: endpoint.user,
    ssl: tlsOptions(endpoint) ?? false,
    application_name: `understudy ${options.purpose}`,
    connectionTimeoutMillis: options.connectTimeoutMs ?? 10_000,
    keepAlive: true,
    options: optionsParameter({ ...PINNED_SETTINGS, ...options.settings }),
    types: { getTypeParser: () => (value: unknown) => value },
  };
  if (endpoint.password !== undefined) config.password = endpoint.password;
  if (options.replication === true) config.replication = 'database';
  const client = new pg.Client(config);
  client.on('error', () => undefined);
  try {
    await client.connect();
  } catch (error) {
    await client.end().catch(() => undefined);
    const reason = error instanceof Error ? error.message : String(error);
    throw new UnderstudyError(
      side === 'source' ? 'source-unreachable' : 'destination-unreachable',
      `${side} ${endpoint.host}:${endpoint.port}/${endpoint.database} as ${endpoint.user}: ${reason}`,
      {
        cause: error,
        advice: `Check that the ${side} is up and that ${side}.url in the configuration is right.`,
      },
    );
  }
  return client;
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
