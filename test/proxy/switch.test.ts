/** What happens to sessions in every state when the gate closes and they are moved to the other side. */
import pg from 'pg';
import postgres from 'postgres';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import {
  WHOLE_DATABASE,
  type HoldOptions,
  type PrepareReport,
  type Side,
  type StallReport,
} from '../../src/core/ports.js';
import { databasePair, until, type DatabasePair } from '../support/servers.js';
import {
  RawClient,
  firstColumn,
  send,
  sqlStates,
  startProxy,
  statuses,
  tags,
  type RunningProxy,
} from './proxy-support.js';

const ALL = WHOLE_DATABASE;
const SCHEMA = `
  CREATE TYPE public.mood AS ENUM ('sad', 'fine');
  CREATE TABLE public.item (id int PRIMARY KEY, name text, mood public.mood);
  CREATE TABLE public.tenant_row (tenant text, value text);
  CREATE SCHEMA other;
  CREATE TABLE other.item (id int);
  CREATE FUNCTION public.enter_tenant(text) RETURNS void LANGUAGE sql AS
    $$ SELECT set_config('app.tenant', $1, false) $$`;

let pair: DatabasePair;
let running: RunningProxy;

beforeAll(async () => {
  pair = await databasePair();
  // So that types made below have other OIDs on the destination.
  await pair.onDestination.query('CREATE TYPE public.first AS ENUM (); DROP TYPE public.first');
  for (const client of [pair.onSource, pair.onDestination]) await client.query(SCHEMA);
});

beforeEach(async () => {
  for (const client of [pair.onSource, pair.onDestination]) {
    await client.query("TRUNCATE public.item; INSERT INTO public.item VALUES (1, 'one', 'fine')");
  }
  running = await startProxy(pair, {
    prepareTimeoutMs: 300,
    askTimeoutMs: 2000,
  });
});

afterEach(async () => {
  await running[Symbol.asyncDispose]();
});

afterAll(async () => {
  await pair[Symbol.asyncDispose]();
});

const raw = (parameters: Record<string, string> = {}): Promise<RawClient> =>
  RawClient.connect(running.port, running.database, parameters);

const never = new AbortController().signal;
const options: HoldOptions = {
  drainTimeoutMs: 5000,
  onDrainTimeout: 'abort',
  onPinned: 'refuse',
  signal: never,
};

const prepare = (to: Side = 'destination'): Promise<PrepareReport> => running.proxy.prepare(ALL, to, never);

async function closeGate(over: Partial<HoldOptions> = {}, to: Side = 'destination'): Promise<void> {
  await running.proxy.hold(ALL, to, { ...options, ...over });
}

async function switchOver(to: Side = 'destination'): Promise<StallReport> {
  const { epoch } = running.proxy.route(ALL);
  await running.proxy.switchTo(ALL, { side: to, epoch: epoch + 1 });
  return running.proxy.release(ALL);
}

/** The whole of it at once. */
async function move(to: Side = 'destination'): Promise<void> {
  await prepare(to);
  await closeGate({}, to);
  await switchOver(to);
}

async function version(client: RawClient): Promise<string> {
  const [text] = await client.column("SELECT current_setting('server_version_num')::int / 10000");
  return text ?? '';
}

const gate = (): string => running.proxy.status().gates[ALL]?.state ?? '';

describe('a switch', () => {
  test('finishes what is in flight, holds what comes, and runs it on the new side', async () => {
    await using busy = await raw();
    await using idle = await raw();
    await prepare();
    // What was pipelined before the gate closed was sent on already and is answered by the old side.
    busy.write(send.query("SELECT pg_sleep(0.2), 'first'"), send.query("SELECT 'second'"));
    await until(() => running.proxy.status().clients.some((client) => client.busy));
    const held = closeGate();
    await until(() => gate() === 'closing');
    const ask = "SELECT current_setting('server_version_num')";
    busy.write(send.query(ask));
    idle.write(send.query(ask));
    await held;
    expect(gate()).toBe('closed');
    await until(() => busy.types === 'TDCZTDCZ');
    expect(idle.types).toBe('');
    const stall = await switchOver();
    await Promise.all([busy.readies(3), idle.readies(1)]);
    // What clients follow is told before the new side's first answer.
    expect(idle.types).toMatch(/^S+TDCZ$/);
    expect(busy.types).toMatch(/^TDCZTDCZS+TDCZ$/);
    for (const client of [busy, idle]) {
      const last = client.messages.findLast(({ type }) => type === 'D');
      expect(last && firstColumn(last)).toMatch(/^18/);
    }
    expect(stall.held).toBe(2);
    expect(stall.histogram.reduce((sum, { count }) => sum + count, 0)).toBe(2);
    expect(stall.max).toBeGreaterThanOrEqual(stall.p50);
    expect(running.proxy.status().bySide).toEqual({ source: 0, destination: 2 });
    expect(running.proxy.release(ALL)).toMatchObject({ held: 0 });
  });

  test('goes there and back again', async () => {
    await using client = await raw();
    await client.run([send.query('SET application_name = wanderer')]);
    for (const [to, expected] of [
      ['destination', '18'],
      ['source', '14'],
      ['destination', '18'],
    ] as const) {
      await move(to);
      expect(await version(client)).toBe(expected);
      expect(await client.column('SHOW application_name')).toEqual(['wanderer']);
    }
    expect(running.proxy.route(ALL)).toEqual({ side: 'destination', epoch: 3 });
  });

  test('lets an open transaction end on the old side', async () => {
    await using client = await raw();
    await client.run([send.query('BEGIN'), send.query("INSERT INTO item VALUES (2, 'two')")], 2);
    expect((await prepare()).stale).toBe(1);
    const held = closeGate();
    await until(() => gate() === 'closing');
    expect(statuses(await client.run([send.query("INSERT INTO item VALUES (3, 'three')")]))).toBe('T');
    // The next transaction is pipelined behind the COMMIT: it begins on the new side.
    client.write(
      send.query('COMMIT'),
      send.query('BEGIN'),
      send.query("INSERT INTO item VALUES (4, 'four')"),
    );
    await held;
    await until(() => client.types === 'CZ');
    await switchOver();
    await client.readies(3);
    await client.run([send.query('COMMIT')]);
    const ids = async (which: pg.Client): Promise<unknown> =>
      (await which.query<{ id: string }>('SELECT id FROM public.item ORDER BY id')).rows.map(({ id }) => id);
    expect(await ids(pair.onSource)).toEqual(['1', '2', '3']);
    expect(await ids(pair.onDestination)).toEqual(['1', '4']);
  });

  test('lets a half-sent pipeline end on the old side', async () => {
    await using client = await raw();
    const insert = (id: number): Buffer[] => [
      send.parse(`INSERT INTO item VALUES (${id}, 'x')`),
      send.bind(),
      send.execute(),
    ];
    await prepare();
    client.write(...insert(2), send.flush());
    await until(() => client.types === '12C');
    const held = closeGate();
    await until(() => gate() === 'closing');
    client.write(...insert(3), send.sync(), ...insert(4), send.sync());
    await held;
    await until(() => client.types === '12C12CZ');
    await switchOver();
    await client.readies(2);
    const count = 'SELECT count(*) AS n FROM public.item';
    expect((await pair.onSource.query(count)).rows).toEqual([{ n: '3' }]);
    expect((await pair.onDestination.query(count)).rows).toEqual([{ n: '2' }]);
  });

  test('waits for a COPY in either form, and moves the session after it', async () => {
    await using simple = await raw();
    await using extended = await raw();
    await prepare();
    simple.write(send.query('COPY item (id) FROM STDIN'), send.copyData('10\n'));
    extended.write(send.parse('COPY item (id) FROM STDIN'), send.bind(), send.execute(), send.sync());
    await until(() => simple.types === 'G' && extended.types === '12G');
    const held = closeGate();
    await until(() => gate() === 'closing');
    simple.write(send.copyData('11\n'), send.copyDone());
    extended.write(send.copyData('12\n'), send.copyDone(), send.sync());
    await held;
    await until(() => simple.types === 'GCZ' && extended.types === '12GCZ');
    await switchOver();
    const count = await pair.onSource.query('SELECT count(*) AS n FROM public.item');
    expect(count.rows).toEqual([{ n: '4' }]);
    simple.take();
    extended.take();
    expect([await version(simple), await version(extended)]).toEqual(['18', '18']);
  });

  test('lets a cursor in its transaction be read to its end', async () => {
    await using client = await raw();
    await client.run(
      [send.query('BEGIN'), send.query('DECLARE c CURSOR FOR SELECT generate_series(1, 3)')],
      2,
    );
    await prepare();
    const held = closeGate();
    await until(() => gate() === 'closing');
    expect(await client.column('FETCH ALL FROM c')).toEqual(['1', '2', '3']);
    client.write(send.query('CLOSE c'));
    await client.readies(1);
    client.take();
    client.write(send.query('COMMIT'));
    await held;
    await switchOver();
    client.take();
    expect(await version(client)).toBe('18');
  });
});

describe('carried over', () => {
  test('settings of every kind, the role, and the time zone', async () => {
    const role = `role_${running.database}`;
    for (const client of [pair.onSource, pair.onDestination]) await client.query(`CREATE ROLE "${role}"`);
    try {
      await using client = await raw({ options: '-c work_mem=5MB' });
      const statements = [
        "SET search_path = other, public, 'odd; schema'",
        "SET app.tenant = 'it''s \\ours'",
        "SELECT set_config('app.Second', 'b', false)",
        "SET TIME ZONE 'Asia/Tokyo'",
        'SET standard_conforming_strings = off',
        'SET DateStyle = German',
        "SET statement_timeout = '7s'",
        "SET client_encoding = 'LATIN1'",
        `SET ROLE "${role}"`,
      ];
      for (const statement of statements)
        expect(sqlStates(await client.run([send.query(statement)]))).toEqual([]);
      const asked = [
        'SHOW search_path', 'SHOW app.tenant', 'SHOW app.second', 'SHOW TimeZone', 'SHOW work_mem',
        'SHOW standard_conforming_strings', 'SHOW DateStyle', 'SHOW statement_timeout', 'SHOW client_encoding',
        'SELECT current_user', 'SELECT session_user', 'SHOW role',
      ]; // prettier-ignore
      const answers = async (): Promise<unknown> => {
        const all: unknown[] = [];
        for (const sql of asked) all.push(await client.column(sql));
        return all;
      };
      const before = await answers();
      expect(before).toContainEqual(["it's \\ours"]);
      expect(before).toContainEqual([role]);
      await move();
      expect(await answers()).toEqual(before);
      await client.run([send.query('RESET ROLE')]);
      expect(await version(client)).toBe('18');
      await client.run([send.query('RESET work_mem')]);
      expect(await client.column('SHOW work_mem')).toEqual(['5MB']);
    } finally {
      for (const client of [pair.onSource, pair.onDestination]) await client.query(`DROP ROLE "${role}"`);
    }
  });

  test('a custom setting known from elsewhere, set inside a function', async () => {
    await using own = await startProxy(
      pair,
      {},
      { customSettings: () => ['app.tenant'], statefulFunctions: () => ['enter_tenant'] },
    );
    await using client = await RawClient.connect(own.port, own.database);
    await client.column("SELECT enter_tenant('a')");
    await own.proxy.prepare(ALL, 'destination', never);
    // After the survey: it is asked again behind the gate.
    await client.column("SELECT enter_tenant('b')");
    await own.proxy.hold(ALL, 'destination', options);
    await own.proxy.switchTo(ALL, { side: 'destination', epoch: 1 });
    own.proxy.release(ALL);
    expect(await client.column("SELECT current_setting('app.tenant')")).toEqual(['b']);
    expect(await version(client)).toBe('18');
  });

  test('prepared statements of both kinds, with types of the database’s own', async () => {
    await using client = await raw();
    await client.run([send.query('PREPARE by_sql (int) AS SELECT name FROM item WHERE id = $1')]);
    await client.run([
      send.parse('SELECT name FROM item WHERE mood = $1 AND id = $2', 'by message'),
      send.parse("SELECT 'a;b' || $1", 'closed'),
      send.close('S', 'closed'),
      send.sync(),
    ]);
    await move();
    expect(await client.column('EXECUTE by_sql(1)')).toEqual(['one']);
    const rows = await client.run([send.bind(['fine', '1'], 'by message'), send.execute(), send.sync()]);
    expect(rows.map(({ type }) => type).join('')).toBe('2DCZ');
    const gone = await client.run([send.bind(['x'], 'closed'), send.execute(), send.sync()]);
    expect(sqlStates(gone)).toEqual(['26000']);
    expect(await version(client)).toBe('18');
  });

  test('settings changed after the survey, one by one and all at once', async () => {
    await using client = await raw();
    await client.run([send.query("SET app.tenant = 'a'")]);
    await client.run([send.query("SET work_mem = '2MB'")]);
    for (const [change, expected] of [
      ["SET app.tenant = 'b'", ['b', '2MB', 'on']],
      ['SET enable_seqscan = off', ['b', '2MB', 'off']],
      ['RESET work_mem', ['b', '4MB', 'off']],
      ['RESET ALL', ['', '4MB', 'on']],
    ] as const) {
      const to = running.proxy.route(ALL).side === 'source' ? 'destination' : 'source';
      await prepare(to);
      await client.run([send.query(change)]);
      await closeGate({}, to);
      await switchOver(to);
      client.take();
      const seen = [];
      for (const name of ['app.tenant', 'work_mem', 'enable_seqscan'])
        seen.push(...(await client.column(`SHOW ${name}`)));
      expect(seen).toEqual(expected);
    }
  });

  test('a statement prepared after the survey', async () => {
    await using client = await raw();
    await client.run([send.parse('SELECT 1', 'first'), send.sync()]);
    expect(await prepare()).toMatchObject({ warm: 1, stale: 0 });
    await client.run([send.close('S', 'first'), send.parse('SELECT 2', 'second'), send.sync()]);
    await closeGate();
    await switchOver();
    expect(sqlStates(await client.run([send.bind([], 'first'), send.sync()]))).toEqual(['26000']);
    const second = await client.run([send.bind([], 'second'), send.execute(), send.sync()]);
    expect(tags(second)).toEqual(['SELECT 1']);
  });

  test('an unnamed statement that lives across a Sync, past a survey and past the switch', async () => {
    await using client = await raw();
    await client.run([send.parse("SELECT 'unnamed', current_setting('server_version_num')"), send.sync()]);
    await prepare();
    const bound = async (): Promise<string | null | undefined> => {
      const messages = await client.run([send.bind(), send.execute(), send.sync()]);
      const row = messages.find(({ type }) => type === 'D');
      return row && firstColumn(row);
    };
    expect(await bound()).toBe('unnamed');
    await closeGate();
    await switchOver();
    client.take();
    expect(await bound()).toBe('unnamed');
    expect(await version(client)).toBe('18');
  });

  test('LISTEN, without a notification lost or doubled', async () => {
    const client = new pg.Client(running.url);
    const heard: (string | undefined)[] = [];
    client.on('notification', ({ payload }) => heard.push(payload));
    await client.connect();
    await client.query('LISTEN "Odd channel"');
    await prepare();
    await closeGate();
    await pair.onSource.query("SELECT pg_notify('Odd channel', 'before')");
    await pair.onDestination.query("SELECT pg_notify('Odd channel', 'ahead')");
    await switchOver();
    await pair.onDestination.query("SELECT pg_notify('Odd channel', 'after')");
    await until(() => heard.includes('after'));
    expect(heard).toEqual(['before', 'ahead', 'after']);
    await client.end();
  });

  test('sessions of pg and postgres.js at work all the while', async () => {
    const sql = postgres(running.url, { max: 4 });
    const client = new pg.Client(running.url);
    await client.connect();
    const stop = new AbortController();
    let done = 0;
    const worker = async (work: () => Promise<unknown>): Promise<void> => {
      while (!stop.signal.aborted) {
        await work();
        done += 1;
      }
    };
    const workers = [
      ...[1, 2, 3, 4].map((id) => worker(() => sql`SELECT name FROM item WHERE id = ${id}`)),
      worker(() => client.query({ name: 'n', text: 'SELECT name FROM item WHERE id = $1', values: [1] })),
      worker(() =>
        sql.begin(async (tx) => {
          await tx`SELECT 1`;
          await tx`UPDATE item SET name = 'one' WHERE id = 1`;
        }),
      ),
    ];
    for (const to of ['destination', 'source', 'destination'] as const) {
      const before = done;
      await until(() => done > before + 50);
      await move(to);
    }
    const before = done;
    await until(() => done > before + 50);
    stop.abort();
    await Promise.all(workers);
    expect((await client.query('SHOW server_version')).rows[0]).toMatchObject({
      server_version: expect.stringMatching(/^18/),
    });
    await sql.end();
    await client.end();
  });
});

describe('what can’t be moved is named', () => {
  const cases: [string, string[], { reason: string; detail: string }][] = [
    [
      'a temporary table',
      ['CREATE TEMP TABLE scratch (a int)'],
      { reason: 'temporary-table', detail: 'scratch' },
    ],
    [
      'a WITH HOLD cursor',
      ['DECLARE keep CURSOR WITH HOLD FOR SELECT 1'],
      { reason: 'cursor-with-hold', detail: 'keep' },
    ],
    ['an advisory lock', ['SELECT pg_advisory_lock(7)'], { reason: 'session-advisory-lock', detail: '0, 7' }],
    [
      'a setting the text doesn’t name',
      ["DO $$ BEGIN EXECUTE format('SET %s = 1', 'app.x'); END $$"],
      { reason: 'unknown-setting', detail: 'a setting whose name the statement does not tell' },
    ],
    ['a library', ["LOAD 'pgoutput'"], { reason: 'loaded-library', detail: 'a LOAD statement' }],
    [
      'a PREPARE among other statements',
      ['INSERT INTO item VALUES (9); PREPARE p AS SELECT 1'],
      {
        reason: 'state-unreadable',
        detail: 'prepared statement p was made among other statements of one query string',
      },
    ],
    [
      'a prepared statement the new side can’t parse',
      ['CREATE TABLE IF NOT EXISTS only_here (a int)', 'PREPARE q AS SELECT * FROM only_here'],
      { reason: 'destination-refuses', detail: 'prepared statement q: 42P01' },
    ],
  ];
  for (const [what, statements, { reason, detail }] of cases) {
    test(what, async () => {
      await using client = await raw({ application_name: 'holder' });
      await using other = await raw();
      for (const sql of statements) expect(sqlStates(await client.run([send.query(sql)]))).toEqual([]);
      const report = await prepare();
      expect(report).toMatchObject({ sessions: 2, warm: 1 });
      expect(report.blockers).toMatchObject([{ applicationName: 'holder', reason, detail }]);
      await expect(closeGate()).rejects.toMatchObject({ code: 'session-pinned' });
      expect(gate()).toBe('open');
      expect(await version(client)).toBe('14');
      // By consent it is closed, and the others move.
      await closeGate({ onPinned: 'close' });
      await switchOver();
      await until(() => client.closed);
      expect(sqlStates(client.messages)).toEqual(['57P01']);
      expect(await version(other)).toBe('18');
    });
  }

  test('a setting known to the old side alone', async () => {
    await using client = await raw();
    await client.run([send.query('SET vacuum_cost_page_miss = 3')]);
    // 14 knows force_parallel_mode, which 16 renamed.
    expect(sqlStates(await client.run([send.query('SET force_parallel_mode = on')]))).toEqual([]);
    expect((await prepare()).blockers).toMatchObject([
      { reason: 'unknown-setting', detail: 'force_parallel_mode is not known to the new side' },
    ]);
    await client.run([send.query('RESET force_parallel_mode')]);
    expect(await prepare()).toMatchObject({ warm: 1, blockers: [] });
  });

  test('and is no longer in the way once it is gone', async () => {
    await using client = await raw();
    await client.run([send.query('CREATE TEMP TABLE scratch (a int)')]);
    await client.run([send.query('SELECT pg_advisory_lock(7)')]);
    await client.run([send.query('DECLARE keep CURSOR WITH HOLD FOR SELECT 1')]);
    expect((await prepare()).blockers).toHaveLength(3);
    await client.run([send.query('DROP TABLE scratch')]);
    await client.run([send.query('SELECT pg_advisory_unlock(7)')]);
    await client.run([send.query('CLOSE keep')]);
    await closeGate();
    await switchOver();
    expect(await version(client)).toBe('18');
  });

  test('a temporary table made after the survey stops the hold, and the gate opens again', async () => {
    await using client = await raw();
    await prepare();
    await client.run([send.query('CREATE TEMP TABLE scratch (a int)')]);
    await expect(closeGate()).rejects.toMatchObject({ code: 'session-pinned' });
    expect(gate()).toBe('open');
    expect(await client.column('SELECT count(*) FROM scratch')).toEqual(['0']);
  });
});

describe('while the gate is closed', () => {
  test('a cancelled statement is answered 57014, and what follows it runs on the new side', async () => {
    await using simple = await raw();
    await using extended = await raw();
    await using partial = await raw();
    await prepare();
    await closeGate();
    const ask = "SELECT current_setting('server_version_num')";
    simple.write(send.query("INSERT INTO item VALUES (2, 'never')"), send.query(ask));
    extended.write(
      send.parse("INSERT INTO item VALUES (3, 'never')"), send.bind(), send.execute(), send.sync(),
      send.parse(ask), send.bind(), send.execute(), send.sync(),
    ); // prettier-ignore
    partial.write(send.parse("INSERT INTO item VALUES (4, 'never')"), send.bind());
    await until(() => running.proxy.status().clients.every(({ heldBytes }) => heldBytes > 0));
    for (const client of [simple, extended, partial]) await client.cancel();
    await until(() => [simple, extended].every((client) => client.types === 'EZ') && partial.types === 'E');
    partial.write(send.execute(), send.sync(), send.query(ask));
    await partial.readies(1);
    await switchOver();
    for (const client of [simple, extended, partial]) {
      await client.readies(2);
      expect(sqlStates(client.messages)).toEqual(['57014']);
      expect(statuses(client.messages)).toBe('II');
      const row = client.messages.find(({ type }) => type === 'D');
      expect(row && firstColumn(row)).toMatch(/^18/);
    }
    for (const which of [pair.onSource, pair.onDestination]) {
      expect((await which.query('SELECT count(*) AS n FROM public.item')).rows).toEqual([{ n: '1' }]);
    }
  });

  test('a goodbye frees its place, as does a client that vanishes', async () => {
    await using polite = await raw();
    const rude = await raw();
    await using stays = await raw();
    await prepare();
    await closeGate();
    polite.write(send.terminate());
    await rude[Symbol.asyncDispose]();
    await until(() => running.proxy.status().sessions === 1);
    await switchOver();
    expect(await version(stays)).toBe('18');
  });

  test('new connections wait, and open on the new side', async () => {
    await using present = await raw();
    await prepare();
    await closeGate();
    const coming = raw();
    const leaving = RawClient.connect(running.port, running.database);
    await until(() => running.proxy.status().gates[ALL]?.waiting === 2);
    await switchOver();
    await using client = await coming;
    await using other = await leaving;
    expect([await version(client), await version(present), await version(other)]).toEqual(['18', '18', '18']);
  });

  test('a client that sends more than the bound is no longer read, and loses nothing', async () => {
    await using client = await raw();
    await prepare();
    await closeGate();
    const long = `SELECT length('${'z'.repeat(200_000)}')`;
    client.write(...Array.from({ length: 40 }, () => send.query(long)));
    await until(() => (running.proxy.status().clients[0]?.heldBytes ?? 0) > 1024 * 1024);
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(running.proxy.status().clients[0]?.heldBytes).toBeLessThan(2 * 1024 * 1024);
    await switchOver();
    await client.readies(40);
    expect(
      client
        .take()
        .filter(({ type }) => type === 'D')
        .map(firstColumn),
    ).toEqual(Array(40).fill('200000'));
  });

  test('COMMIT PREPARED of another session’s transaction passes', async () => {
    await using server = await startProxy(pair);
    await using client = await RawClient.connect(server.port, server.database);
    await server.proxy.prepare(ALL, 'destination', never);
    await server.proxy.hold(ALL, 'destination', options);
    // Prepared transactions are off on the shared servers: that the server answers so shows that it was asked.
    const answered = await client.run([send.query("ROLLBACK PREPARED 'x'")]);
    expect(sqlStates(answered)).toEqual(['42704']);
    client.write(send.query('SELECT 1'));
    await until(() => (server.proxy.status().clients[0]?.heldBytes ?? 0) > 0);
    await server.proxy.switchTo(ALL, { side: 'destination', epoch: 1 });
    server.proxy.release(ALL);
    await client.readies(1);
  });

  test('in doubt, held and new statements and connections fail until the release', async () => {
    await using client = await raw();
    await using later = await raw();
    await prepare();
    await closeGate();
    client.write(send.query("INSERT INTO item VALUES (2, 'x')"));
    await until(() => running.proxy.status().clients.some(({ heldBytes }) => heldBytes > 0));
    running.proxy.failHeld(ALL, '08007', 'the outcome is in doubt');
    await client.readies(1);
    expect(sqlStates(client.take())).toEqual(['08007']);
    const batch = await later.run([send.parse('SELECT 1'), send.bind(), send.execute(), send.sync()]);
    expect(batch.map(({ type }) => type).join('')).toBe('EZ');
    await using refused = await raw();
    expect(sqlStates(refused.messages)).toEqual(['08007']);
    await switchOver();
    client.take();
    later.take();
    expect([await version(client), await version(later)]).toEqual(['18', '18']);
  });

  test('a lost warm connection is opened again at the switch', async () => {
    await using client = await raw();
    await client.run([send.query("SET app.tenant = 'a'")]);
    await prepare();
    await closeGate();
    await pair.onDestination.query(
      'SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()',
    );
    await until(() => running.proxy.status().gates[ALL]?.warm === 0);
    await switchOver();
    client.take();
    expect(await client.column('SHOW app.tenant')).toEqual(['a']);
    expect(await version(client)).toBe('18');
  });

  test('a lost old connection does no harm to a session that moves, and closes one that stays', async () => {
    await using client = await raw();
    await prepare();
    const kill = (): Promise<unknown> =>
      pair.onSource.query(
        'SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()',
      );
    await closeGate();
    await kill();
    await until(() => running.proxy.status().clients[0]?.backendLost === true);
    await switchOver();
    client.take();
    expect(await version(client)).toBe('18');
    await move('source');
    await prepare();
    await closeGate();
    await kill();
    await until(() => running.proxy.status().clients[0]?.backendLost === true);
    running.proxy.release(ALL);
    await until(() => client.closed);
    expect(sqlStates(client.messages)).toEqual(['57P01']);
  });
});

describe('the drain deadline', () => {
  test('abort: the gate opens, everybody carries on on the old side, in order', async () => {
    await using open = await raw();
    await using other = await raw();
    await open.run([send.query('BEGIN'), send.query("INSERT INTO item VALUES (2, 'two')")], 2);
    await prepare();
    const held = closeGate({ drainTimeoutMs: 150 });
    await until(() => gate() === 'closing');
    other.write(send.query('SELECT 1'), send.query("SELECT current_setting('server_version_num')"));
    const error = await held.catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({
      code: 'drain-timeout',
      details: { sessions: [{ transactionStatus: 'T', busy: false }] },
    });
    await other.readies(2);
    expect(other.types).toBe('TDCZTDCZ');
    await open.run([send.query('COMMIT')]);
    expect(await version(open)).toBe('14');
    // And a second attempt succeeds.
    await move();
    expect(await version(open)).toBe('18');
  });

  test('the signal: likewise', async () => {
    await using client = await raw();
    await client.run([send.query('BEGIN')]);
    await prepare();
    const controller = new AbortController();
    const held = closeGate({ signal: controller.signal });
    await until(() => gate() === 'closing');
    controller.abort();
    await expect(held).rejects.toMatchObject({ code: 'cancelled' });
    expect(gate()).toBe('open');
    expect(statuses(await client.run([send.query('SELECT 1')]))).toBe('T');
  });

  test('cancel: open transactions are rolled back, and their clients told 40001, then 25P02', async () => {
    await using idle = await raw();
    await using working = await raw();
    await using copying = await raw();
    await using piping = await raw();
    await using unflushed = await raw();
    await using failed = await raw();
    await idle.run([send.query('BEGIN'), send.query("INSERT INTO item VALUES (2, 'x')")], 2);
    await working.run([send.query('BEGIN'), send.query("INSERT INTO item VALUES (3, 'x')")], 2);
    await failed.run([send.query('BEGIN'), send.query('SELECT 1/0')], 2);
    working.write(send.query('SELECT pg_sleep(30)'));
    copying.write(send.query('COPY item (id) FROM STDIN'), send.copyData('4\n'));
    piping.write(send.parse("INSERT INTO item VALUES (5, 'x')"), send.bind(), send.execute(), send.flush());
    unflushed.write(send.parse("INSERT INTO item VALUES (7, 'x')"), send.bind(), send.execute());
    await until(() => copying.types === 'G' && piping.types === '12C');
    await prepare();
    await closeGate({ drainTimeoutMs: 100, onDrainTimeout: 'cancel' });
    await switchOver();

    expect(sqlStates(await idle.run([send.query('SELECT 1')]))).toEqual(['40001']);
    const next = await idle.run([send.query('SELECT 1'), send.query('COMMIT')], 2);
    expect([sqlStates(next), tags(next), statuses(next)]).toEqual([['25P02'], ['ROLLBACK'], 'EI']);

    await working.readies(1);
    const told = working.take();
    expect([sqlStates(told), statuses(told)]).toEqual([['40001'], 'E']);
    const ended = await working.run([
      send.parse('ROLLBACK'), send.bind(), send.describe('P'), send.execute(), send.sync(),
    ]); // prettier-ignore
    expect(ended.map(({ type }) => type).join('')).toMatch(/^S*12nCZ$/);

    await copying.readies(1);
    expect(sqlStates(copying.take())).toEqual(['40001']);
    copying.write(send.copyData('6\n'), send.copyDone());

    expect(sqlStates(piping.take())).toEqual(['40001']);
    expect(statuses(await piping.run([send.parse('SELECT 1'), send.sync()]))).toBe('I');

    unflushed.write(send.sync());
    await unflushed.readies(1);
    expect(unflushed.types).toMatch(/^12CES+Z$/);
    expect(sqlStates(unflushed.messages)).toEqual(['40001']);

    expect(sqlStates(await failed.run([send.query('SELECT 1')]))).toEqual(['25P02']);
    await failed.run([send.query('ROLLBACK')]);

    for (const client of [idle, working, copying, piping, unflushed, failed]) {
      client.take();
      expect(await version(client)).toBe('18');
    }
    const { rows } = await pair.onSource.query('SELECT count(*) AS n FROM public.item');
    expect(rows).toEqual([{ n: '1' }]);
  });
});

describe('at the edges', () => {
  test('cancel: a client in the middle of a message is closed, as nothing can be said to it', async () => {
    await using client = await raw();
    await prepare();
    // The header and a part of the text have been passed on.
    client.socket.write(send.query("INSERT INTO item VALUES (2, 'x')").subarray(0, 12));
    await until(() => (running.proxy.status().clients[0]?.bytesFromClient ?? 0) >= 12);
    await closeGate({ drainTimeoutMs: 50, onDrainTimeout: 'cancel' });
    await until(() => client.closed);
    expect(sqlStates(client.messages)).toEqual(['57P01']);
    await switchOver();
    const { rows } = await pair.onSource.query('SELECT count(*) AS n FROM public.item');
    expect(rows).toEqual([{ n: '1' }]);
  });

  test('a message of which only the header’s start came is held with it', async () => {
    await using client = await raw();
    await prepare();
    const ask = send.query("SELECT current_setting('server_version_num')");
    client.socket.write(ask.subarray(0, 3));
    await until(() => running.proxy.status().clients[0]?.bytesFromClient === 3);
    await closeGate();
    client.socket.write(ask.subarray(3));
    await until(() => running.proxy.status().clients[0]?.heldBytes === ask.length);
    await switchOver();
    await client.readies(1);
    const row = client.messages.find(({ type }) => type === 'D');
    expect(row && firstColumn(row)).toMatch(/^18/);
  });

  test('a stop while the gate is closed ends held sessions and waiting connections', async () => {
    const own = await startProxy(pair);
    await using client = await RawClient.connect(own.port, own.database);
    await own.proxy.prepare(ALL, 'destination', never);
    await own.proxy.hold(ALL, 'destination', options);
    client.write(send.query('SELECT 1'));
    const coming = RawClient.connect(own.port, own.database);
    await until(() => own.proxy.status().gates[ALL]?.waiting === 1);
    await own.proxy.stop({ drainTimeoutMs: 1000 });
    await using waiting = await coming;
    await until(() => client.closed && waiting.closed);
    expect([sqlStates(client.messages), sqlStates(waiting.messages)]).toEqual([['57P01'], ['57P03']]);
  });
});

describe('sessions that come or change late', () => {
  test('one that came after the survey is warmed at once', async () => {
    await prepare();
    await using client = await raw();
    await client.column('SELECT 1');
    await closeGate();
    await switchOver();
    expect(await version(client)).toBe('18');
  });

  test('too many to be asked behind the gate are a reason not to close it', async () => {
    await using own = await startProxy(pair, { staleSessionsMax: 1 });
    await using first = await RawClient.connect(own.port, own.database);
    await using second = await RawClient.connect(own.port, own.database);
    await own.proxy.prepare(ALL, 'destination', never);
    for (const client of [first, second]) await client.run([send.query('SET work_mem = 2048')]);
    await expect(own.proxy.hold(ALL, 'destination', options)).rejects.toMatchObject({ code: 'warm-failed' });
    expect(await first.column('SELECT 1')).toEqual(['1']);
  });

  test('ordinary statements do not make a session stale', async () => {
    await using own = await startProxy(pair, { staleSessionsMax: 0 });
    await using client = await RawClient.connect(own.port, own.database);
    await own.proxy.prepare(ALL, 'destination', never);
    for (const sql of [
      'SELECT * FROM item',
      "INSERT INTO item VALUES (2, 'set temp') ON CONFLICT (id) DO UPDATE SET name = 'x'",
      "UPDATE item SET name = 'y' WHERE id = 2",
      'BEGIN',
      "SET LOCAL work_mem = '1MB'",
      'DECLARE c CURSOR FOR SELECT 1',
      'FETCH c',
      'CLOSE c',
      'COMMIT',
      'SELECT pg_advisory_xact_lock(1)',
    ]) {
      expect(sqlStates(await client.run([send.query(sql)]))).toEqual([]);
    }
    await client.run([send.parse('SELECT $1::int'), send.bind(['1']), send.execute(), send.sync()]);
    await own.proxy.hold(ALL, 'destination', options);
    await own.proxy.switchTo(ALL, { side: 'destination', epoch: 1 });
    own.proxy.release(ALL);
    expect(await version(client)).toBe('18');
  });

  test('a destination that refuses is told by its SQLSTATE, and the hold is not entered', async () => {
    await using client = await raw();
    await pair.onDestination.query(
      'UPDATE pg_database SET datallowconn = false WHERE datname = current_database()',
    );
    const report = await prepare();
    expect(report.blockers).toMatchObject([{ reason: 'destination-refuses', detail: '55000' }]);
    await expect(closeGate()).rejects.toMatchObject({ code: 'session-pinned' });
    await pair.onDestination.query(
      'UPDATE pg_database SET datallowconn = true WHERE datname = current_database()',
    );
    await move();
    expect(await version(client)).toBe('18');
  });
});
