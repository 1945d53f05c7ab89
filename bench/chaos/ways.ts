/**
 * The many ways in which an application reads and writes a register: what has to find its side while subsets are on
 * different ones. Each answer tells which server gave it.
 */
import { pipeline } from 'node:stream/promises';
import { to as copyTo } from 'pg-copy-streams';
import { PORT } from './schema.js';
import type { Connection } from './workers.js';

export interface RegisterAt {
  readonly schema: string;
  readonly key: number;
}
export interface Answer {
  readonly value: number;
  readonly port: number;
}
type Row = Readonly<Record<string, unknown>>;
type Read = (connection: Connection, at: RegisterAt) => Promise<Row | undefined>;
type Write = (connection: Connection, at: RegisterAt, value: number) => Promise<void>;

const VALUE = `SELECT value, ${PORT} AS port`;

/** Runs `act` between BEGIN and COMMIT; where it throws, the transaction is rolled back. */
export async function inTransaction<T>(
  connection: Connection,
  begin: string,
  act: () => Promise<T>,
): Promise<T> {
  try {
    await connection.query(begin);
    const result = await act();
    const { command } = await connection.query('COMMIT');
    if (command !== 'COMMIT') throw new RolledBack();
    return result;
  } catch (error) {
    if (!connection.broken) await connection.query('ROLLBACK').catch(() => connection.destroy());
    throw error;
  }
}

/** What a COMMIT of a failed transaction tells. */
class RolledBack extends Error {
  readonly severity = 'ERROR';
  readonly code = '25P02';
}

/** Which statements a connection has prepared by SQL. */
const prepared = new WeakMap<Connection, Set<string>>();

async function execute(
  connection: Connection,
  name: string,
  prepare: string,
  values: string,
): Promise<Row | undefined> {
  const known = prepared.get(connection) ?? new Set();
  prepared.set(connection, known);
  if (!known.has(name)) {
    await connection.query(`PREPARE ${name} ${prepare}`);
    known.add(name);
  }
  return (await connection.query(`EXECUTE ${name}(${values})`)).rows[0];
}

/** What the last of several statements in one text gave. */
async function lastOf(connection: Connection, text: string): Promise<Row | undefined> {
  const results = (await connection.query(text)) as unknown as readonly { readonly rows: readonly Row[] }[];
  return results.at(-1)?.rows[0];
}

const first =
  (text: (at: RegisterAt) => string): Read =>
  async (connection, at) =>
    (await connection.query(text(at), [at.key])).rows[0];

export const READS: Readonly<Record<string, Read>> = {
  'by parameter': first(({ schema }) => `${VALUE} FROM ${schema}.register WHERE key = $1`),
  'by name': async (connection, { schema, key }) => {
    const query = { name: `read ${schema}`, text: `${VALUE} FROM ${schema}.register WHERE key = $1` };
    return (await connection.query(query, [key])).rows[0];
  },
  'through a view': first(({ schema }) => `${VALUE} FROM ${schema}.register_view WHERE key = $1`),
  'by a function': first(({ schema }) => `SELECT ${schema}.register_value($1) AS value, ${PORT} AS port`),
  'by a named function call': async (connection, { schema, key }) => {
    const text = `SELECT ${schema}.register_told($1) AS value, ${PORT} AS port`;
    return (await connection.query({ name: `told ${schema}`, text }, [key])).rows[0];
  },
  'in a CTE': first(
    ({ schema }) =>
      `WITH found AS MATERIALIZED (SELECT * FROM ${schema}.register WHERE key = $1) ${VALUE} FROM found`,
  ),
  'by a sub-select': first(
    ({ schema }) => `SELECT (SELECT value FROM ${schema}.register WHERE key = $1) AS value, ${PORT} AS port`,
  ),
  'as one of two statements': (connection, { schema, key }) =>
    lastOf(connection, `SELECT 1; ${VALUE} FROM ${schema}.register WHERE key = ${key}`),
  'in a transaction': (connection, at) =>
    inTransaction(connection, 'BEGIN', async () => {
      await connection.query('SAVEPOINT before');
      await connection.query("SET LOCAL statement_timeout = '8s'");
      await connection.query("SELECT set_config('chaos.tenant', $1, true)", [String(at.key)]);
      const row = (await connection.query(`${VALUE} FROM ${at.schema}.register WHERE key = $1`, [at.key]))
        .rows[0];
      await connection.query('RELEASE before');
      return row;
    }),
  'in one snapshot': (connection, at) =>
    inTransaction(connection, 'BEGIN ISOLATION LEVEL REPEATABLE READ', async () => {
      const text = `${VALUE} FROM ${at.schema}.register WHERE key = $1`;
      const row = (await connection.query(text, [at.key])).rows[0];
      await connection.query(text, [at.key]);
      return row;
    }),
  'by search_path': async (connection, { schema, key }) => {
    await connection.query(`SET search_path = ${schema}, pg_temp`);
    const row = (await connection.query(`${VALUE} FROM register WHERE key = $1`, [key])).rows[0];
    await connection.query('RESET search_path');
    return row;
  },
  'by a name prepared under a search_path': (connection, { schema, key }) =>
    inTransaction(connection, 'BEGIN', async () => {
      await connection.query(`SET LOCAL search_path = ${schema}`);
      const query = { name: 'read', text: `${VALUE} FROM register WHERE key = $1` };
      return (await connection.query(query, [key])).rows[0];
    }),
  'by EXECUTE': (connection, { schema, key }) =>
    execute(
      connection,
      `read_${schema}`,
      `(int) AS ${VALUE} FROM ${schema}.register WHERE key = $1`,
      String(key),
    ),
  'from a cursor': (connection, { schema, key }) =>
    inTransaction(connection, 'BEGIN', async () => {
      await connection.query(`DECLARE found CURSOR FOR ${VALUE} FROM ${schema}.register WHERE key = ${key}`);
      return (await connection.query('FETCH 1 FROM found')).rows[0];
    }),
  'under a lock': (connection, { schema, key }) =>
    inTransaction(
      connection,
      'BEGIN',
      async () =>
        (await connection.query(`${VALUE} FROM ${schema}.register WHERE key = $1 FOR SHARE`, [key])).rows[0],
    ),
  'by COPY': async (connection, { schema, key }) => {
    const chunks: Buffer[] = [];
    const rows = connection.stream(
      copyTo(`COPY (${VALUE} FROM ${schema}.register WHERE key = ${key}) TO STDOUT`),
    );
    await pipeline(rows, async (stream: AsyncIterable<Buffer>) => {
      for await (const chunk of stream) chunks.push(chunk);
    });
    const [value, port] = Buffer.concat(chunks).toString().trim().split('\t');
    return { value, port };
  },
};

const update = (schema: string): string => `UPDATE ${schema}.register SET value = $1 WHERE key = $2`;

export const WRITES: Readonly<Record<string, Write>> = {
  'by parameter': async (connection, { schema, key }, value) =>
    void (await connection.query(update(schema), [value, key])),
  'by name': async (connection, { schema, key }, value) =>
    void (await connection.query({ name: `write ${schema}`, text: update(schema) }, [value, key])),
  'through a view': async (connection, { schema, key }, value) =>
    void (await connection.query(`UPDATE ${schema}.register_view SET value = $1 WHERE key = $2`, [
      value,
      key,
    ])),
  'by a function': async (connection, { schema, key }, value) =>
    void (await connection.query(`SELECT ${schema}.register_set($1, $2)`, [key, value])),
  'by an upsert': async (connection, { schema, key }, value) =>
    void (await connection.query(
      `INSERT INTO ${schema}.register VALUES ($2, $1) ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value`,
      [value, key],
    )),
  'in a CTE': async (connection, { schema, key }, value) =>
    void (await connection.query(`WITH done AS (${update(schema)} RETURNING 1) SELECT count(*) FROM done`, [
      value,
      key,
    ])),
  'behind a savepoint': (connection, { schema, key }, value) =>
    inTransaction(connection, 'BEGIN', async () => {
      await connection.query('SAVEPOINT before');
      await connection.query(update(schema), [-value, key]);
      await connection.query('ROLLBACK TO before');
      await connection.query(update(schema), [value, key]);
    }),
  'as one of two statements': async (connection, { schema, key }, value) =>
    void (await connection.query(
      `SELECT 1; UPDATE ${schema}.register SET value = ${value} WHERE key = ${key}`,
    )),
  'by EXECUTE': async (connection, { schema, key }, value) =>
    void (await execute(
      connection,
      `write_${schema}`,
      `(bigint, int) AS ${update(schema)}`,
      `${value}, ${key}`,
    )),
  'in a long transaction': (connection, { schema, key }, value) =>
    inTransaction(connection, 'BEGIN', async () => {
      await connection.query(update(schema), [value, key]);
      await new Promise((resolve) => setTimeout(resolve, 60 + (value % 150)));
    }),
};

export function answerOf(row: Row | undefined): Answer {
  if (row === undefined) throw new Error('a register has no row');
  return { value: Number(row['value']), port: Number(row['port']) };
}
