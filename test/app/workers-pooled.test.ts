/** Several processes, in each of which clients share server connections. */
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { PoolStatus } from '../../src/proxy/pool/pool-settings.js';
import { databasePair, until, type DatabasePair } from '../support/servers.js';
import { Stack } from '../support/stack.js';

let pair: DatabasePair;
let stack: Stack;

beforeAll(async () => {
  pair = await databasePair();
  await pair.onSource.query(`
    CREATE TABLE public.item (id int PRIMARY KEY, note text);
    CREATE VIEW public.shifting AS SELECT 1 AS n;
    CREATE SEQUENCE public.numbers`);
  stack = await Stack.start({
    source: pair.source,
    destination: pair.destination,
    yaml: [
      'proxy: { workers: 2, poolMode: pipelined, poolSizeMax: 4, sharedCatalogIntervalMs: 3600000, sharedReadBoundMs: 20000 }',
      'cutover: { drainTimeoutMs: 5000 }',
      'log: { level: error }',
    ].join('\n'),
  });
  await stack.following();
});

afterAll(async () => {
  await stack[Symbol.asyncDispose]();
  await pair[Symbol.asyncDispose]();
});

async function connect(): Promise<pg.Client> {
  const { user, password = '' } = pair.source;
  const client = new pg.Client({ connectionString: stack.url(user, password) });
  client.on('error', () => undefined);
  await client.connect();
  return client;
}

const clients = (count: number): Promise<pg.Client[]> =>
  Promise.all(Array.from({ length: count }, () => connect()));

async function ended(all: readonly pg.Client[]): Promise<void> {
  await Promise.all(all.map((client) => client.end().catch(() => undefined)));
  await until(async () => (await stack.status()).proxy.sessions === 0, { what: 'no sessions' });
}

async function pool(): Promise<PoolStatus> {
  const found = (await stack.status()).proxy.pools.find(({ clients: some }) => some > 0);
  if (found === undefined) throw new Error('there is no pool');
  return found;
}

async function value(client: pg.Client, sql: string): Promise<unknown> {
  return Object.values((await client.query<Record<string, unknown>>(sql)).rows[0] ?? {})[0];
}

/** Until reads of all of them are shared. */
async function sharing(all: readonly pg.Client[]): Promise<void> {
  await until(async () => {
    const before = (await pool()).shared.statements;
    await Promise.all(all.map((client) => value(client, 'SELECT 1 AS ready')));
    return (await pool()).shared.statements === before + all.length;
  });
}

test('pools of all processes are one in the status, and never open more than was configured', async () => {
  const all = await clients(12);
  let letGo: () => void = () => undefined;
  const held = new Promise<void>((resolve) => (letGo = resolve));
  const transactions = Promise.all(
    all.map(async (client) => {
      await client.query('BEGIN');
      await held;
      await client.query('COMMIT');
    }),
  );
  await until(async () => {
    const { active, waiting } = await pool();
    return active === 4 && waiting === 8;
  });
  const { clients: served, active, idle, opening } = await pool();
  expect({ served, connections: active + idle + opening }).toEqual({ served: 12, connections: 4 });
  letGo();
  await transactions;
  await ended(all);
});

test('a switch there and back moves the pooled clients of all processes, and no write is lost', async () => {
  const all = await clients(6);
  await sharing(all);
  const [kept] = all;
  await kept?.query("SET application_name = 'kept'");
  const acknowledged: number[] = [];
  const failures: unknown[] = [];
  const stop = new AbortController();
  let id = 0;
  const work = Promise.all(
    all.map(async (client) => {
      while (!stop.signal.aborted) {
        const mine = ++id;
        try {
          await client.query('INSERT INTO public.item VALUES ($1, $2)', [mine, 'x']);
          acknowledged.push(mine);
          expect(await value(client, 'SELECT 1 AS ready')).toBe(1);
          await new Promise((resolve) => setTimeout(resolve, 5));
        } catch (error) {
          failures.push(error);
          return;
        }
      }
    }),
  );
  const more = async (): Promise<void> => {
    const goal = acknowledged.length + 30;
    await until(() => acknowledged.length >= goal || failures.length > 0, { what: 'writes' });
  };
  await more();
  expect(await stack.operate('cutover')).toMatchObject({ outcome: 'done', closed: 0 });
  await more();
  expect((await stack.status()).proxy.bySide).toMatchObject({ source: 0 });
  expect(await stack.operate('rollback')).toMatchObject({ outcome: 'done', closed: 0 });
  await more();
  stop.abort();
  await work;
  expect(failures).toEqual([]);
  const { rows } = await pair.onSource.query<{ id: string }>('SELECT id FROM public.item ORDER BY id');
  expect(rows.map((row) => Number(row.id))).toEqual(acknowledged.toSorted((a, b) => a - b));
  expect(kept === undefined ? null : await value(kept, 'SHOW application_name')).toBe('kept');
  await ended(all);
});

test('what a client of one process changes in the catalogs, the others know', async () => {
  const all = await clients(4);
  await sharing(all);
  await Promise.all(all.map((client) => value(client, 'SELECT n FROM public.shifting')));
  const [one] = all;
  await one?.query("CREATE OR REPLACE VIEW public.shifting AS SELECT nextval('public.numbers')::int AS n");
  await sharing(all);
  const before = (await pool()).shared;
  await Promise.all(all.map((client) => value(client, 'SELECT n FROM public.shifting')));
  const after = (await pool()).shared;
  expect({ statements: after.statements, refused: after.refused }).toEqual({
    statements: before.statements,
    refused: before.refused,
  });
  await ended(all);
});

test('clients that keep their connections are counted over all processes', async () => {
  const all = await clients(4);
  const pinned = async (): Promise<number> => (await stack.status()).proxy.pinned['temporary-table'] ?? 0;
  const before = await pinned();
  await Promise.all(all.slice(0, 3).map((client) => client.query('CREATE TEMPORARY TABLE mine (id int)')));
  await until(async () => (await pinned()) === before + 3, { what: 'three that keep theirs' });
  expect((await stack.status()).proxy.sessions).toBe(4);
  await ended(all);
});
