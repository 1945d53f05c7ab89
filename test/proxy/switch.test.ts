/** Sessions are moved to the other side, with what they hold. */
import pg from 'pg';
import postgres from 'postgres';
import { describe, expect, test } from 'vitest';
import { until } from '../support/servers.js';
import { RawClient, firstColumn, send, sqlStates, startProxy, statuses, tags } from './proxy-support.js';
import {
  ALL,
  closeGate,
  gate,
  move,
  never,
  options,
  pair,
  prepare,
  prepareBesideOpen,
  raw,
  running,
  switchOver,
  version,
  switchServers,
} from './switch-support.js';

switchServers();

describe('a switch', () => {
  test('finishes what is in flight, holds what comes, and runs it on the new side', async () => {
    await using busy = await raw();
    await using idle = await raw();
    await prepare();
    // What was pipelined before the gate closed was sent on already and is answered by the old side.
    await pair.onSource.query('SELECT pg_advisory_lock(1)');
    busy.write(send.query("SELECT pg_advisory_xact_lock(1), 'first'"), send.query("SELECT 'second'"));
    await until(() => running.proxy.status().clients.some((client) => client.busy));
    const held = closeGate();
    await until(() => gate() === 'closing');
    const ask = "SELECT current_setting('server_version_num')";
    busy.write(send.query(ask));
    idle.write(send.query(ask));
    await pair.onSource.query('SELECT pg_advisory_unlock(1)');
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
    expect((await prepareBesideOpen()).stale).toBe(1);
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
    client.take();
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
    await prepareBesideOpen();
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
