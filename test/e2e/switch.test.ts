/**
 * One cutover with sessions in every state across it, then direct writers on either side. Each test says what happens
 * to one of them. The sessions are arranged before the switch; what they saw is asserted after it.
 */
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { OperationReport, VerifyReport } from '../../src/core/ports.js';
import { FENCE_SQLSTATE, GUARD_SQLSTATE } from '../../src/core/postgres.js';
import { connectControl } from '../../src/core/postgres.js';
import { databasePair, until, type DatabasePair } from '../support/servers.js';
import { Stack } from '../support/stack.js';

/** The part of pg's connection that sends single messages; pg offers it to objects given to `query`. */
interface MessageSender {
  parse(query: { text: string; name?: string }, more: boolean): void;
  bind(config: { values?: string[] }, more: boolean): void;
  execute(config: object, more: boolean): void;
  flush(): void;
  sync(): void;
}

/** A pipeline whose Sync is sent when the test says so. */
class HalfSentPipeline {
  readonly rows: (string | null)[][] = [];
  error: Error | undefined;
  ready = false;
  #connection: MessageSender | undefined;
  readonly #statements: readonly string[];

  constructor(statements: readonly string[]) {
    this.#statements = statements;
  }

  submit(connection: MessageSender): void {
    this.#connection = connection;
    for (const text of this.#statements) {
      connection.parse({ text }, true);
      connection.bind({ values: [] }, true);
      connection.execute({}, true);
    }
    connection.flush();
  }

  finish(): void {
    this.#connection?.sync();
  }

  handleRowDescription(): void {}
  handleCommandComplete(): void {}
  handlePortalSuspended(): void {}
  handleEmptyQuery(): void {}
  handleCopyInResponse(): void {}
  handleCopyData(): void {}
  handleDataRow(message: { fields: (Buffer | string | null)[] }): void {
    this.rows.push(message.fields.map((field) => field?.toString() ?? null));
  }
  handleError(error: Error): void {
    this.error = error;
  }
  handleReadyForQuery(): void {
    this.ready = true;
  }
}

let pair: DatabasePair;
let stack: Stack;
let report: OperationReport;
const clients: pg.Client[] = [];
const lost: Error[] = [];

async function session(): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: stack.url('postgres', 'understudy-local') });
  client.on('error', (error) => lost.push(error));
  await client.connect();
  clients.push(client);
  return client;
}

async function major(client: pg.Client): Promise<string> {
  const { rows } = await client.query<{ v: string }>("SELECT current_setting('server_version_num') AS v");
  return (rows[0]?.v ?? '').slice(0, 2);
}

async function one(client: pg.Client, sql: string): Promise<string> {
  const { rows } = await client.query<Record<string, string>>(sql);
  return Object.values(rows[0] ?? {}).join('|');
}

const seen = {
  inFlight: '',
  transaction: [] as string[],
  pipeline: [] as (string | null)[][],
  cursor: [] as string[],
  notifications: [] as string[],
  heldVersion: '',
};
let named: pg.Client;
let sqlPrepared: pg.Client;
let settings: pg.Client;
let listener: pg.Client;
let repeatableRead: pg.Client;
const NAMED = {
  name: 'find-item',
  text: "SELECT current_setting('server_version_num') AS v, name FROM public.item WHERE id = $1",
};

beforeAll(async () => {
  pair = await databasePair();
  await pair.onSource.query(`
    CREATE TABLE public.item (id bigint PRIMARY KEY, name text);
    INSERT INTO public.item SELECT n, 'item ' || n FROM generate_series(1, 500) n;
    CREATE TABLE public.parted (id bigint PRIMARY KEY, n int) PARTITION BY RANGE (id);
    CREATE TABLE public.parted_low PARTITION OF public.parted FOR VALUES FROM (0) TO (100);
    CREATE TABLE public.parted_high PARTITION OF public.parted FOR VALUES FROM (100) TO (1000);
  `);
  stack = await Stack.start({ ...pair, autopilot: true });
  await stack.following();
  await arrangeAndSwitch();
});

/** An operation that ends before it closes the gate says why. */
async function gateClosed(operation: Promise<OperationReport>): Promise<void> {
  const ended = operation.then((early) => {
    throw new Error(`ended before the gate closed: ${JSON.stringify(early.reason ?? early.outcome)}`);
  });
  const closed = until(async () => (await stack.status()).cutover.running?.step === 'hold', {
    what: 'the gate to close',
  });
  await Promise.race([closed, ended]);
}

async function arrangeAndSwitch(): Promise<void> {
  named = await session();
  await named.query(NAMED, [1]);
  sqlPrepared = await session();
  await sqlPrepared.query('PREPARE by_id (bigint) AS SELECT name FROM public.item WHERE id = $1');
  settings = await session();
  await settings.query("SET app.tenant = 'acme; O''Hara'");
  await settings.query("SET TIME ZONE 'Asia/Kathmandu'");
  await settings.query("SET work_mem = '7MB'");
  await settings.query('SET search_path = public, pg_catalog');
  await settings.query('SET ROLE pg_monitor');
  listener = await session();
  listener.on('notification', (message) => seen.notifications.push(message.payload ?? ''));
  await listener.query('LISTEN news');
  const notifier = await session();
  const cursor = await session();
  await cursor.query('BEGIN');
  await cursor.query('DECLARE c CURSOR FOR SELECT id FROM public.item ORDER BY id');
  seen.cursor.push(await one(cursor, 'FETCH 1 FROM c'));
  const transaction = await session();
  await transaction.query('BEGIN');
  await transaction.query("INSERT INTO public.item VALUES (1001, 'in the transaction')");
  const pipelined = await session();
  const pipeline = new HalfSentPipeline([
    "INSERT INTO public.item VALUES (1002, 'pipelined')",
    "SELECT left(current_setting('server_version_num'), 2)",
  ]);
  pipelined.query(pipeline as unknown as pg.Submittable);
  await until(() => pipeline.rows.length === 1, { what: 'the first half of the pipeline' });
  const slow = await session();
  const inFlight = one(slow, "SELECT left(current_setting('server_version_num'), 2) FROM pg_sleep(0.7)");
  const late = await session();
  repeatableRead = await connectControl('source', pair.source, { purpose: 'bypass' });
  await repeatableRead.query('BEGIN ISOLATION LEVEL REPEATABLE READ');
  await repeatableRead.query('SELECT count(*) FROM public.item');
  await notifier.query("NOTIFY news, 'before'");

  const operation = stack.operate('cutover');
  await gateClosed(operation);
  // Arrives while the gate is closed: it waits, and is answered by the new server.
  const held = major(late);
  seen.cursor.push(
    await one(cursor, 'FETCH 1 FROM c'),
    await one(cursor, "SELECT left(current_setting('server_version_num'), 2)"),
  );
  await cursor.query('COMMIT');
  seen.transaction.push(await one(transaction, "SELECT left(current_setting('server_version_num'), 2)"));
  await transaction.query('COMMIT');
  pipeline.finish();
  await until(() => pipeline.ready, { what: 'the pipeline to end' });
  if (pipeline.error !== undefined) throw pipeline.error;
  seen.pipeline = pipeline.rows;
  seen.inFlight = await inFlight;
  report = await operation;
  seen.heldVersion = await held;
  seen.transaction.push(await major(transaction));
  await notifier.query("NOTIFY news, 'after'");
}

afterAll(async () => {
  await Promise.all(clients.map((client) => client.end().catch(() => undefined)));
  await repeatableRead?.end();
  await stack?.[Symbol.asyncDispose]();
  await pair?.[Symbol.asyncDispose]();
});

test('the cutover completes, moves every session and loses none', () => {
  expect(report.reason).toBeUndefined();
  expect(report.outcome).toBe('done');
  expect(report.moved).toBe(clients.length);
  expect(report.closed).toBe(0);
  expect(lost).toEqual([]);
});

test('a statement in flight is finished by the old server', () => expect(seen.inFlight).toBe('14'));

test('a statement that arrives while the gate is closed waits for the new server', () => {
  expect(seen.heldVersion).toBe('18');
  expect(report.stall.held).toBeGreaterThan(0);
});

test('an open transaction ends on the old server, the next statement runs on the new one, with its rows', async () => {
  expect(seen.transaction).toEqual(['14', '18']);
  expect(await one(named, 'SELECT name FROM public.item WHERE id = 1001')).toBe('in the transaction');
});

test('a half-sent pipeline is finished by the old server', async () => {
  expect(seen.pipeline).toEqual([['14']]);
  expect(await one(named, 'SELECT name FROM public.item WHERE id = 1002')).toBe('pipelined');
});

test('a statement prepared by protocol before the switch is executed after it without being prepared again', async () => {
  const { rows } = await named.query<{ v: string; name: string }>(NAMED, [7]);
  expect(rows[0]?.v.slice(0, 2)).toBe('18');
  expect(rows[0]?.name).toBe('item 7');
});

test('a statement prepared by SQL survives', async () => {
  expect(await one(sqlPrepared, 'EXECUTE by_id(9)')).toBe('item 9');
  expect(await major(sqlPrepared)).toBe('18');
});

test('a cursor is read to the end of its transaction on the old server', () => {
  expect(seen.cursor).toEqual(['1', '2', '14']);
});

test('settings, dotted ones and the role survive', async () => {
  expect(await one(settings, "SELECT current_setting('app.tenant')")).toBe("acme; O'Hara");
  expect(await one(settings, 'SHOW TIME ZONE')).toBe('Asia/Kathmandu');
  expect(await one(settings, 'SHOW work_mem')).toBe('7MB');
  expect(await one(settings, 'SHOW search_path')).toBe('public, pg_catalog');
  expect(await one(settings, 'SELECT current_user')).toBe('pg_monitor');
});

test('a LISTENer hears what is notified before and after the switch, each once', async () => {
  await until(() => seen.notifications.includes('after'), { what: 'the notification' });
  expect(seen.notifications).toEqual(['before', 'after']);
});

const BYPASS: readonly (readonly [string, string])[] = [
  ['to a table', "INSERT INTO public.item VALUES (5001, 'x')"],
  ['an update that touches nothing', "UPDATE public.item SET name = 'x' WHERE false"],
  ['to the root of partitions', 'INSERT INTO public.parted VALUES (1, 1)'],
  ['to a leaf', 'INSERT INTO public.parted_low VALUES (2, 1)'],
  ['by TRUNCATE', 'TRUNCATE public.parted_high'],
  ['by DELETE', 'DELETE FROM public.parted'],
];

for (const [name, sql] of BYPASS) {
  test(`a direct write to the source after the switch (${name}) gets the fence's error`, async () => {
    await expect(pair.onSource.query(sql)).rejects.toMatchObject({ code: FENCE_SQLSTATE });
  });
}

test('COPY straight to the source after the switch gets the fence’s error', async () => {
  await expect(pair.onSource.query("COPY public.item FROM PROGRAM 'echo 6001'")).rejects.toMatchObject({
    code: FENCE_SQLSTATE,
  });
});

test('a REPEATABLE READ transaction begun before the fence can’t write after it', async () => {
  await expect(
    repeatableRead.query("UPDATE public.item SET name = 'late' WHERE id = 1"),
  ).rejects.toMatchObject({
    code: FENCE_SQLSTATE,
  });
  await repeatableRead.query('ROLLBACK');
});

test('what the application adds to the schema after the switch, and its rows, are on the source before a rollback', async () => {
  await named.query(`ALTER TABLE public.item ADD COLUMN extra integer DEFAULT 5, ADD COLUMN dice float8 DEFAULT random();
    CREATE TABLE public.added (id integer PRIMARY KEY, item bigint REFERENCES public.item);
    INSERT INTO public.added VALUES (1, 1), (2, NULL); UPDATE public.item SET extra = 6 WHERE id = 1`);
  const both = [pair.onSource, pair.onDestination];
  const digest = `SELECT md5(string_agg(i::text, ',' ORDER BY id)) AS items, (SELECT count(*) FROM public.added) AS added
    FROM public.item i`;
  await until(
    async () => {
      const [ours, theirs] = await Promise.all(both.map((side) => one(side, digest).catch(() => side)));
      return ours === theirs && (await stack.status()).shadow.phase === 'following';
    },
    { what: 'the schema and its rows to come back', timeoutMs: 60_000 },
  );
  await expect(pair.onSource.query('DELETE FROM public.added')).rejects.toMatchObject({
    code: FENCE_SQLSTATE,
  });
});

test('after a rollback, direct writes to the destination get the guard’s error and the source takes them', async () => {
  const back = await stack.operate('rollback');
  expect(back.reason).toBeUndefined();
  expect(back.outcome).toBe('done');
  for (const [, sql] of BYPASS) {
    await expect(pair.onDestination.query(sql)).rejects.toMatchObject({ code: GUARD_SQLSTATE });
  }
  await expect(pair.onDestination.query('DELETE FROM public.added')).rejects.toMatchObject({
    code: GUARD_SQLSTATE,
  });
  expect(await one(named, 'SELECT count(*) FROM public.added')).toBe('2');
  await pair.onSource.query("INSERT INTO public.item VALUES (7001, 'direct, on the side that leads')");
  await until(
    async () =>
      (await pair.onDestination.query('SELECT 1 FROM public.item WHERE id = 7001')).rows.length === 1,
    { what: 'the direct write to be shadowed' },
  );
  expect(await one(settings, "SELECT current_setting('app.tenant')")).toBe("acme; O'Hara");
  expect(await major(settings)).toBe('14');
  expect(lost).toEqual([]);
});

test('after a rollback, a row written past the guard is found by verify, mended, and harms nothing', async () => {
  const past = await connectControl('destination', pair.destination, {
    purpose: 'test',
    settings: { session_replication_role: 'replica' },
  });
  try {
    await past.query("UPDATE public.item SET name = 'past the guard' WHERE id = 7001");
    const head = await past.query('SELECT pg_catalog.pg_current_wal_lsn() AS lsn');
    await until(
      async () => {
        const { shadow } = await stack.status();
        expect(shadow.error).toBeNull();
        const back = shadow.streams.find(({ direction }) => direction === 'reverse');
        const passed = await past.query(
          `SELECT '${back?.committed ?? '0/0'}'::pg_catalog.pg_lsn >= '${head.rows[0]?.['lsn']}' AS passed`,
        );
        return passed.rows[0]?.['passed'] === 't';
      },
      { what: 'the way back to have passed the row' },
    );
  } finally {
    await past.end();
  }
  expect(await one(pair.onSource, 'SELECT name FROM public.item WHERE id = 7001')).toBe(
    'direct, on the side that leads',
  );
  await stack.operate('verify', { repair: true });
  expect(await one(pair.onDestination, 'SELECT name FROM public.item WHERE id = 7001')).toBe(
    'direct, on the side that leads',
  );
  const again = await stack.operate<VerifyReport>('verify');
  expect(again.mismatches).toBe(0);
});
