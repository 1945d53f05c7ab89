/**
 * One client connection of the load, over either of two drivers that differ in how they use the protocol:
 * `pg` sends one statement at a time, `postgres` pipelines and describes its statements first.
 *
 * A session never reconnects: a lost connection is what the demo is there to rule out, so it is reported as a failure
 * and stays one. All values come back as the drivers give them; callers convert.
 */
import { pg } from '../../core/pg.js';
import type postgres from 'postgres';
import { UnderstudyError } from '../../core/errors.js';

export type DriverName = 'pg' | 'postgres';
export type Row = Readonly<Record<string, unknown>>;
export type Value = string | number;

export interface LoadSession {
  readonly driver: DriverName;
  /** One or more statements as one simple-protocol message. Rows of the last. */
  simple(text: string): Promise<readonly Row[]>;
  /** The extended protocol's unnamed statement. */
  extended(text: string, values: readonly Value[]): Promise<readonly Row[]>;
  /** A named prepared statement: parsed once for each connection, then only bound. */
  prepared(name: string, text: string, values: readonly Value[]): Promise<readonly Row[]>;
  /** Sent without waiting for answers where the driver can; one after the other where it can't. */
  pipeline(
    statements: readonly { readonly text: string; readonly values: readonly Value[] }[],
  ): Promise<void>;
  close(): Promise<void>;
}

export interface SessionOptions {
  readonly url: string;
  readonly applicationName: string;
  /** The connection was lost while it should stand. */
  readonly onLost: (reason: string) => void;
  readonly onNotification?: (channel: string, payload: string) => void;
}

export async function openPgSession(options: SessionOptions): Promise<LoadSession> {
  const client = new pg.Client({
    connectionString: options.url,
    application_name: options.applicationName,
  });
  let closing = false;
  client.on('error', (error) => options.onLost(error.message));
  client.on('end', () => {
    if (!closing) options.onLost('the connection was closed');
  });
  client.on('notification', ({ channel, payload }) => options.onNotification?.(channel, payload ?? ''));
  await client.connect();
  const extended = async (text: string, values: readonly Value[]): Promise<readonly Row[]> =>
    (await client.query<Row>(text, [...values])).rows;
  return {
    driver: 'pg',
    extended,
    async simple(text) {
      const result = (await client.query<Row>(text)) as pg.QueryResult<Row> | pg.QueryResult<Row>[];
      return Array.isArray(result) ? (result.at(-1)?.rows ?? []) : result.rows;
    },
    async prepared(name, text, values) {
      return (await client.query<Row>({ name, text, values: [...values] })).rows;
    },
    async pipeline(statements) {
      for (const { text, values } of statements) await extended(text, values);
    },
    async close() {
      closing = true;
      await client.end().catch(() => undefined);
    },
  };
}

export async function openPostgresSession(options: SessionOptions): Promise<LoadSession> {
  const driver = await importPostgres();
  let closing = false;
  const pool = driver(options.url, {
    max: 1,
    idle_timeout: 0,
    max_lifetime: null,
    connection: { application_name: options.applicationName },
    onnotice: () => undefined,
    onclose: () => {
      if (!closing) options.onLost('the connection was closed');
    },
  });
  // A pool reconnects silently; a reserved connection does not change underneath its user.
  const session = await pool.reserve();
  const run = async (text: string, values: readonly Value[], prepare: boolean): Promise<readonly Row[]> => {
    // `simple` is set by hand: without it, a statement that takes no parameters is sent as a simple query.
    const query = { prepare, simple: false } as postgres.UnsafeQueryOptions;
    return await session.unsafe<Row[]>(text, [...values], query);
  };
  return {
    driver: 'postgres',
    extended: (text, values) => run(text, values, false),
    async simple(text) {
      const result = await session.unsafe<Row[]>(text);
      const last: unknown = result.at(-1);
      return Array.isArray(last) ? (last as Row[]) : result;
    },
    prepared: (_name, text, values) => run(text, values, true),
    async pipeline(statements) {
      await Promise.all(statements.map(({ text, values }) => run(text, values, true)));
    },
    async close() {
      closing = true;
      session.release();
      await pool.end({ timeout: 1 }).catch(() => undefined);
    },
  };
}

async function importPostgres(): Promise<typeof postgres> {
  try {
    return (await import('postgres')).default;
  } catch (error) {
    throw new UnderstudyError('internal', 'The npm package `postgres` is not installed.', {
      cause: error,
      advice: 'Run `npm ci` with development dependencies in a checkout of Understudy.',
    });
  }
}
