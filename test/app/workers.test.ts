/** Clients served by several processes behind one port, with one gate across them. */
import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { OperationReport } from '../../src/core/ports.js';
import { databasePair, until, untilActive, type DatabasePair } from '../support/servers.js';
import { Stack, type Status } from '../support/stack.js';

let pair: DatabasePair;
let stack: Stack;

beforeAll(async () => {
  pair = await databasePair();
  await pair.onSource.query(
    "CREATE TABLE public.item (id int PRIMARY KEY, note text); CREATE TYPE public.mood AS ENUM ('sad', 'happy')",
  );
  stack = await Stack.start({
    source: pair.source,
    destination: pair.destination,
    yaml: [
      'proxy: { workers: 2 }',
      'limits: { clientsPerUserMax: 40, switchTimeoutMs: 3000 }',
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

function clients(count: number): Promise<pg.Client[]> {
  return Promise.all(Array.from({ length: count }, () => connect()));
}

async function ended(all: readonly pg.Client[]): Promise<void> {
  await Promise.all(all.map((client) => client.end().catch(() => undefined)));
  await until(async () => (await stack.status()).proxy.sessions === 0, { what: 'no sessions' });
}

async function version(client: pg.Client): Promise<number> {
  const { rows } = await client.query<{ v: number }>(
    "SELECT current_setting('server_version_num')::int / 10000 AS v",
  );
  return rows[0]?.v ?? 0;
}

function workersOf({ proxy }: Status): readonly { pid: number; state: string; connections: number }[] {
  return proxy.workers ?? [];
}

const serving = async (): Promise<readonly number[]> =>
  workersOf(await stack.status())
    .filter((worker) => worker.state === 'serving')
    .map((worker) => worker.pid);

test('clients are dealt out evenly, and status shows all of them as one', async () => {
  const all = await clients(6);
  const status = await stack.status();
  expect(workersOf(status).map((worker) => worker.connections)).toEqual([3, 3]);
  expect(status.proxy.sessions).toBe(6);
  expect(status.proxy.bySide).toEqual({ source: 6, destination: 0 });
  expect(new Set(status.proxy.clients.map((client) => client.id)).size).toBe(6);
  await ended(all);
});

test('a cancel request finds the client whichever process it comes in at', async () => {
  const all = await clients(4);
  const cancelled = all.map(async (client, index) => {
    const text = `SELECT pg_sleep(60), ${index}`;
    const sleeping = client.query(text).catch((error: pg.DatabaseError) => error.code);
    const { processID, secretKey } = client as unknown as { processID: number; secretKey: number };
    await untilActive(pair.onSource, text);
    // The one without a connection of its own goes to either.
    await cancel(processID, secretKey);
    return await sleeping;
  });
  expect(await Promise.all(cancelled)).toEqual(['57014', '57014', '57014', '57014']);
  await ended(all);
});

async function cancel(processId: number, secret: number): Promise<void> {
  const { connect: open } = await import('node:net');
  const socket = open(stack.port, '127.0.0.1');
  const request = Buffer.alloc(16);
  request.writeInt32BE(16, 0);
  request.writeInt32BE(80877102, 4);
  request.writeInt32BE(processId, 8);
  request.writeInt32BE(secret, 12);
  socket.end(request);
  await new Promise((resolve) =>
    socket
      .on('error', () => undefined)
      .on('close', resolve)
      .resume(),
  );
}

test('the limit on a user’s clients counts those of all processes', async () => {
  const all = await clients(40);
  const refused: unknown = await connect().catch((error: unknown) => error);
  expect(refused).toMatchObject({ code: '53300' });
  await ended(all);
  await ended([await connect()]);
});

/** Writes on many connections until told to stop; every acknowledged id is remembered. */
class Writers {
  readonly acknowledged: number[] = [];
  readonly failures: unknown[] = [];
  #stopped = false;
  readonly #done: Promise<unknown>;

  constructor(all: readonly pg.Client[], first: number) {
    let id = first;
    this.#done = Promise.all(
      all.map(async (client) => {
        while (!this.#stopped) {
          const mine = id++;
          try {
            await client.query('INSERT INTO public.item VALUES ($1, $2)', [mine, 'x']);
            this.acknowledged.push(mine);
            // Six of them without a pause would take the cores from the processes under test.
            await new Promise((resolve) => setTimeout(resolve, 5));
          } catch (error) {
            this.failures.push(error);
            return;
          }
        }
      }),
    );
  }

  async more(count = 30): Promise<void> {
    const goal = this.acknowledged.length + count;
    await until(() => this.acknowledged.length >= goal, { what: 'writes' });
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#done;
  }
}

async function idsOn(client: pg.Client): Promise<number[]> {
  const { rows } = await client.query<{ id: string }>('SELECT id FROM public.item ORDER BY id');
  return rows.map((row) => Number(row.id));
}

test('a switch there and back moves the clients of all processes, and no write fails or is lost', async () => {
  const all = await clients(6);
  const writers = new Writers(all, 1);
  await writers.more();
  const report = await stack.operate('cutover');
  expect(report).toMatchObject({ outcome: 'done', closed: 0, moved: 6 });
  await writers.more();
  expect((await stack.status()).proxy.bySide).toEqual({ source: 0, destination: 6 });
  expect(await stack.operate('rollback')).toMatchObject({ outcome: 'done', closed: 0, moved: 6 });
  await writers.more();
  await writers.stop();
  expect(writers.failures).toEqual([]);
  expect(await idsOn(pair.onSource)).toEqual(writers.acknowledged.toSorted((a, b) => a - b));
  expect(await Promise.all(all.map((client) => version(client)))).toEqual([14, 14, 14, 14, 14, 14]);
  await ended(all);
});

test('a dry run names the types whose binary form would change, whichever process serves who uses them', async () => {
  const all = await clients(2);
  const named = async (): Promise<unknown> => {
    const report = await stack.operate<OperationReport>('cutover', { dryRun: true });
    expect(report).toMatchObject({ outcome: 'dry-run' });
    return report.findings.filter(({ check }) => check === 'binary-own-type').map(({ object }) => object);
  };
  for (const client of all)
    await client.query("SELECT 'sad'::public.mood AS one, ARRAY['sad']::public.mood[]");
  expect(await named()).toEqual([]);
  const query = { text: 'SELECT ARRAY[$1::public.mood] AS many', binary: true, values: ['sad'] };
  await all[1]?.query(query).catch(() => undefined);
  expect(await named()).toEqual(['public.mood[]']);
  await ended(all);
});

test('a process that is killed loses its own clients alone, and another takes its place', async () => {
  const all = await clients(4);
  const [victim = 0, other] = await serving();
  process.kill(victim, 'SIGKILL');
  await until(async () => {
    const now = await serving();
    return now.length === 2 && !now.includes(victim) && now.includes(other ?? 0);
  });
  const answers = await Promise.allSettled(all.map((client) => version(client)));
  expect(answers.filter((answer) => answer.status === 'fulfilled')).toHaveLength(2);
  // The places of those that are gone are free again.
  const more = await clients(38);
  expect(await version(more[0] ?? all[0] ?? (await connect()))).toBe(14);
  await ended([...all, ...more]);
});

test('one that hears nothing keeps a switch from beginning', async () => {
  const all = await clients(4);
  const [silent = 0] = await serving();
  process.kill(silent, 'SIGSTOP');
  const undone: { outcome: string } = await stack
    .operate('cutover')
    .catch((error: unknown) => ({ outcome: (error as { code: string }).code }));
  expect(undone.outcome).not.toBe('done');
  process.kill(silent, 'SIGCONT');
  await until(async () => (await serving()).includes(silent), { what: 'the worker to answer again' });
  expect(await Promise.all(all.map((client) => version(client)))).toEqual([14, 14, 14, 14]);
  await ended(all);
});

/** Resolves with what becomes of a cutover that waits for a transaction while `strike` happens. */
async function struckWhileClosing(
  holder: pg.Client | undefined,
  strike: () => void,
): Promise<{ outcome: string }> {
  await holder?.query('BEGIN');
  const cutover = stack.operate('cutover').catch((error: unknown) => ({
    outcome: (error as { code: string }).code,
  }));
  await until(async () => (await stack.status()).proxy.gates['all']?.state === 'closing', {
    what: 'the gate to close',
  });
  strike();
  await holder?.query('COMMIT').catch(() => undefined);
  return await cutover;
}

test('one that falls silent behind the closing gate has the hold undone, and is ended', async () => {
  const all = await clients(4);
  const [silent = 0] = await serving();
  const undone = await struckWhileClosing(all[0], () => process.kill(silent, 'SIGSTOP'));
  expect(undone.outcome).not.toBe('done');
  await until(async () => {
    const now = await serving();
    return now.length === 2 && !now.includes(silent);
  });
  const answers = await Promise.allSettled(all.map((client) => version(client)));
  expect(answers.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []))).toEqual([14, 14]);
  await ended(all);
});

test('one that dies behind the closing gate takes no part, and its successor serves the new side', async () => {
  const some = await clients(4);
  const [holder] = some;
  const [victim = 0] = await serving();
  expect(await struckWhileClosing(holder, () => process.kill(victim, 'SIGKILL'))).toMatchObject({
    outcome: 'done',
  });
  const after = await Promise.allSettled(some.map((client) => version(client)));
  expect(after.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []))).toEqual([18, 18]);
  await until(async () => (await serving()).length === 2);
  const fresh = await clients(4);
  expect(await Promise.all(fresh.map((client) => version(client)))).toEqual([18, 18, 18, 18]);
  await ended([...some, ...fresh]);
});

test('the capture sees what all of them serve', async () => {
  const all = await clients(2);
  const before = (await stack.status()).capture?.offered ?? 0;
  await Promise.all(all.map((client) => client.query('SELECT count(*) FROM public.item')));
  await until(async () => ((await stack.status()).capture?.offered ?? 0) >= before + 2, {
    what: 'two statements',
  });
  await ended(all);
});

test('SIGTERM lets what runs end, and no process stays behind', async () => {
  const all = await clients(2);
  const pids = await serving();
  // The destination leads by now.
  await pair.onDestination.query('SELECT pg_advisory_lock(7)');
  const running = all.map((client) => client.query('SELECT pg_advisory_xact_lock_shared(7), 7 AS seven'));
  await untilActive(pair.onDestination, 'AS seven', 2);
  const over = stack.kill('SIGTERM');
  const refused = (): Promise<boolean> =>
    connect().then(
      (client) => client.end().then(() => false),
      () => true,
    );
  await until(refused, { what: 'new clients to be refused' });
  await pair.onDestination.query('SELECT pg_advisory_unlock(7)');
  await over;
  const answers = await Promise.all(running);
  expect(answers.map(({ rows }) => (rows[0] as { seven: number }).seven)).toEqual([7, 7]);
  for (const pid of pids) expect(() => process.kill(pid, 0)).toThrow();
});
