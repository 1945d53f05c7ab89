/** The whole of it in one process, on real servers: copy, follow, verify, cutover, write on 18, rollback, again. */
import { connect, createServer } from 'node:net';
import pg from 'pg';
import postgres from 'postgres';
import { expect, test } from 'vitest';
import { startUnderstudy, type Understudy, type UnderstudyConfig } from 'understudy';
import type { OperationReport, VerifyReport } from '../../src/core/ports.js';
import type { DatabaseEndpoint } from '../../src/core/ports.js';
import { AdminClient } from '../../src/app/admin-client.js';
import { clientFindings } from '../../src/app/client-findings.js';
import { freePort } from '../../src/app/demo/embedded-server.js';
import { databasePair, until } from '../support/servers.js';

function urlOf(endpoint: DatabaseEndpoint, port = endpoint.port): string {
  return `postgres://${endpoint.user}:${endpoint.password ?? ''}@127.0.0.1:${port}/${endpoint.database}`;
}

function start(config: UnderstudyConfig): Promise<Understudy> {
  return startUnderstudy({ listen: { port: 0 }, admin: { port: 0 }, log: { level: 'error' }, ...config });
}

async function following(understudy: Understudy): Promise<void> {
  await until(
    async () => {
      const { shadow } = await understudy.status();
      if (shadow.phase === 'failed') throw new Error(JSON.stringify(shadow.error));
      return shadow.phase === 'following';
    },
    { timeoutMs: 90_000, what: 'the shadow to follow' },
  );
}

/** One client that writes all the time, on one connection, and remembers what was acknowledged. */
class Writer {
  readonly written: number[] = [];
  readonly failures: unknown[] = [];
  readonly #write: (id: number) => Promise<unknown>;
  readonly #first: number;
  #stopped = false;
  readonly #done: Promise<void>;

  constructor(first: number, write: (id: number) => Promise<unknown>) {
    this.#first = first;
    this.#write = write;
    this.#done = this.#run();
  }

  async #run(): Promise<void> {
    for (let id = this.#first; !this.#stopped; id++) {
      try {
        await this.#write(id);
        this.written.push(id);
      } catch (error) {
        this.failures.push(error);
        return;
      }
    }
  }

  async more(count = 20): Promise<void> {
    const goal = this.written.length + count;
    await until(() => this.written.length >= goal || this.failures.length > 0, { what: 'writes' });
    expect(this.failures).toEqual([]);
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#done;
  }
}

test('a database is cut over to 18, back to 14 and over again under writing clients, and no statement fails', async () => {
  await using pair = await databasePair();
  const role = `app_${pair.source.database}`;
  await using _roles = {
    async [Symbol.asyncDispose]() {
      for (const client of [pair.onSource, pair.onDestination]) {
        await client.query(`DROP OWNED BY ${role}`).catch(() => undefined);
        await client.query(`DROP ROLE IF EXISTS ${role}`);
      }
    },
  };
  await pair.onSource.query(`
    CREATE TABLE public.account (id bigint PRIMARY KEY, note text NOT NULL, at timestamptz NOT NULL DEFAULT now());
    CREATE TABLE public.entry (
      id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
      account bigint NOT NULL REFERENCES public.account
    );
    CREATE ROLE ${role} LOGIN PASSWORD 'app';
    GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA public TO ${role};
    INSERT INTO public.account SELECT n, 'before ' || n FROM generate_series(1, 2000) n;
    INSERT INTO public.entry (account) SELECT id FROM public.account;
  `);
  await using understudy = await start({
    source: { url: urlOf(pair.source) },
    destination: { url: urlOf(pair.destination) },
  });
  // The role is the source's; the shadow brought it, with its verifier, so that one proof opens both.
  const url = urlOf({ ...pair.source, user: role, password: 'app' }, understudy.port);

  const simple = new pg.Client({ connectionString: url });
  simple.on('error', () => undefined);
  await simple.connect();
  const extended = postgres(url, { max: 1, idle_timeout: 0, max_lifetime: null });
  const writers = [
    new Writer(1_000_000, (id) =>
      simple.query(
        `BEGIN; INSERT INTO public.account (id, note) VALUES (${id}, 'simple'); INSERT INTO public.entry (account) VALUES (${id}); COMMIT`,
      ),
    ),
    new Writer(2_000_000, (id) => extended`INSERT INTO public.account (id, note) VALUES (${id}, 'extended')`),
  ];
  const everyoneWrites = () => Promise.all(writers.map((writer) => writer.more()));

  await everyoneWrites();
  await following(understudy);
  await everyoneWrites();
  const verified = (await understudy.operate('verify', {}, () => undefined, never)) as VerifyReport;
  expect(verified).toMatchObject({ mismatches: 0, tables: 2 });

  const major = async () => (await extended`SHOW server_version`)[0]?.['server_version'] as string;
  const steps: string[] = [];
  for (const [kind, epoch, version] of [
    ['cutover', 1, '18'],
    ['rollback', 2, '14'],
    ['cutover', 3, '18'],
  ] as const) {
    const report = (await understudy.operate(
      kind,
      {},
      (line) => 'event' in line && line.event === 'step' && steps.push(line.step),
      never,
    )) as OperationReport;
    expect(report.reason).toBeUndefined();
    expect(report).toMatchObject({ outcome: 'done', epoch, closed: 0 });
    expect(report.moved).toBe(2);
    await everyoneWrites();
    expect(await major()).toMatch(new RegExp(`^${version}\\.`));
    expect((await understudy.status()).route).toEqual({
      side: version === '18' ? 'destination' : 'source',
      epoch,
    });
  }
  expect(steps).toContain('hold');

  for (const writer of writers) await writer.stop();
  const { rows } = await pair.onDestination.query<{ id: string }>(
    'SELECT id FROM public.account WHERE id >= 1000000 ORDER BY account.id',
  );
  const acknowledged = writers.flatMap((writer) => writer.written).toSorted((a, b) => a - b);
  expect(rows.map((row) => Number(row.id))).toEqual(acknowledged);
  await expect(pair.onSource.query("INSERT INTO public.account VALUES (1, 'stray')")).rejects.toMatchObject({
    code: 'UFENC',
  });
  const after = (await understudy.operate('verify', {}, () => undefined, never)) as VerifyReport;
  expect(after.mismatches).toBe(0);

  const status = await understudy.status();
  expect(status.capture?.dropped).toBe(0);
  expect(status.capture?.tables.map((use) => use.table)).toContain('public.account');
  await simple.end();
  await extended.end();
});

const never = new AbortController().signal;

test('no cutover behind another proxy’s back; a second operation gets busy while one runs', async () => {
  await using pair = await databasePair();
  await pair.onSource.query('CREATE TABLE public.t (id int PRIMARY KEY)');
  await using understudy = await start({
    source: { url: urlOf(pair.source) },
    destination: { url: urlOf(pair.destination) },
  });
  await following(understudy);
  const other = await start({
    source: { url: urlOf(pair.source) },
    destination: { url: urlOf(pair.destination) },
    shadow: { enabled: false },
  });
  await until(
    async () => (await pair.onDestination.query('SELECT FROM understudy.proxy')).rows.length === 2,
    { what: 'the second proxy to be registered' },
  );
  const refused = (await understudy.operate('cutover', {}, () => undefined, never)) as OperationReport;
  expect(refused).toMatchObject({ outcome: 'aborted', reason: { code: 'other-proxy-alive' } });
  await other.stop();
  const first = understudy.operate('cutover', {}, () => undefined, never);
  await expect(understudy.operate('verify', {}, () => undefined, never)).rejects.toMatchObject({
    code: 'busy',
  });
  expect(await first).toMatchObject({ outcome: 'done' });
});

test('the destination being down is no reason not to serve', async () => {
  await using pair = await databasePair();
  await using understudy = await start({
    source: { url: urlOf(pair.source) },
    destination: { url: urlOf(pair.destination, await freePort()) },
  });
  const client = new pg.Client({ connectionString: urlOf(pair.source, understudy.port) });
  await client.connect();
  await client.query('CREATE TABLE public.served (id int)');
  await client.query('INSERT INTO public.served VALUES (1)');
  await client.end();
  expect((await understudy.status()).route).toEqual({ side: 'source', epoch: 0 });
  const report = await understudy
    .operate('cutover', {}, () => undefined, never)
    .catch((error: unknown) => error);
  expect(report).not.toMatchObject({ outcome: 'done' });
});

test('the source being down: clients are told so, and served once it is there', async () => {
  await using pair = await databasePair();
  const port = await freePort();
  await using understudy = await start({
    source: { url: urlOf(pair.source, port) },
    destination: { url: urlOf(pair.destination) },
  });
  const client = new pg.Client({ connectionString: urlOf(pair.source, understudy.port) });
  client.on('error', () => undefined);
  await expect(client.connect()).rejects.toMatchObject({ code: '57P03' });
  const { ready, route } = await understudy.status();
  expect(ready).toMatchObject({ ready: false });
  expect(route).toBeNull();
  await expect(understudy.operate('cutover', {}, () => undefined, never)).rejects.toMatchObject({
    code: 'source-unreachable',
  });

  // The source comes up: behind its port now stands the way to it.
  const relay = createServer((from) => {
    const to = connect(pair.source.port, pair.source.host);
    from.pipe(to).pipe(from);
    for (const [one, other] of [
      [from, to],
      [to, from],
    ] as const)
      one.on('error', () => other.destroy()).on('close', () => other.destroy());
  });
  relay.listen(port, '127.0.0.1');
  try {
    await until(async () => (await understudy.status()).ready.ready, { what: 'readiness' });
    const served = new pg.Client({ connectionString: urlOf(pair.source, understudy.port) });
    await served.connect();
    await served.query('SELECT 1');
    await served.end();
  } finally {
    await understudy.stop();
    relay.close();
  }
});

test('without a shadow it is a proxy; it tells what its clients use, and a port that is taken is named', async () => {
  await using pair = await databasePair();
  await pair.onSource.query("CREATE TYPE public.mood AS ENUM ('sad')");
  const config: UnderstudyConfig = {
    source: { url: urlOf(pair.source) },
    destination: { url: urlOf(pair.destination) },
    shadow: { enabled: false },
    capture: { enabled: false },
    proxy: { poolMode: 'transaction' },
  };
  await using understudy = await start(config);
  const status = await understudy.status();
  expect(status.capture).toBeNull();
  expect(status.shadow.phase).toBe('idle');

  const client = new pg.Client({ connectionString: urlOf(pair.source, understudy.port) });
  await client.connect();
  const query = {
    text: "SELECT ARRAY['sad'::public.mood] WHERE $1::text IS NULL",
    values: [null],
    binary: true,
  };
  await client.query(query);
  await client.end();
  const admin = new AdminClient({ host: '127.0.0.1', port: understudy.adminPort });
  const connections = { source: pair.onSource, destination: undefined };
  expect(await clientFindings(admin, status.migration, connections)).toMatchObject([
    { severity: 'warning', check: 'binary-own-type', side: 'source', object: 'public.mood[]' },
  ]);
  expect(await clientFindings(admin, 'another', connections)).toEqual([]);
  const nobody = new AdminClient({ host: '127.0.0.1', port: await freePort() });
  expect(await clientFindings(nobody, status.migration, connections)).toEqual([]);
  await expect(start({ ...config, listen: { port: understudy.port } })).rejects.toMatchObject({
    code: 'port-in-use',
  });
  await expect(start({ ...config, admin: { port: understudy.adminPort } })).rejects.toMatchObject({
    code: 'port-in-use',
  });
});
