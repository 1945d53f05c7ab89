/** What happens to sessions while the gate is closed, and what keeps one from being moved. */
import { describe, expect, test } from 'vitest';
import { until, untilActive } from '../support/servers.js';
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

  test('a client that has closed its sending side is answered after the release', async () => {
    await using asks = await raw();
    await using silent = await raw();
    await prepare();
    await closeGate();
    asks.socket.end(send.query("SELECT current_setting('server_version_num')"));
    silent.socket.end();
    await until(() => silent.closed && running.proxy.status().gates[ALL]?.held === 1);
    await switchOver();
    await until(() => asks.closed);
    const row = asks.messages.find(({ type }) => type === 'D');
    expect(row && firstColumn(row)).toMatch(/^18/);
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
    await prepareBesideOpen();
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
    await prepareBesideOpen();
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
    await using committing = await raw();
    await using working = await raw();
    await using copying = await raw();
    await using piping = await raw();
    await using unflushed = await raw();
    await using failed = await raw();
    await idle.run([send.query('BEGIN'), send.query("INSERT INTO item VALUES (2, 'x')")], 2);
    await working.run([send.query('BEGIN'), send.query("INSERT INTO item VALUES (3, 'x')")], 2);
    await committing.run([send.query('BEGIN'), send.query("INSERT INTO item VALUES (8, 'x')")], 2);
    await failed.run([send.query('BEGIN'), send.query('SELECT 1/0')], 2);
    working.write(send.query('SELECT pg_sleep(30)'));
    copying.write(send.query('COPY item (id) FROM STDIN'), send.copyData('4\n'));
    piping.write(send.parse("INSERT INTO item VALUES (5, 'x')"), send.bind(), send.execute(), send.flush());
    unflushed.write(send.parse("INSERT INTO item VALUES (7, 'x')"), send.bind(), send.execute());
    await until(() => copying.types === 'G' && piping.types === '12C');
    await untilActive(pair.onSource, 'pg_sleep(30)');
    await prepareBesideOpen();
    await closeGate({ drainTimeoutMs: 100, onDrainTimeout: 'cancel' });
    await switchOver();

    expect(sqlStates(await idle.run([send.query('SELECT 1')]))).toEqual(['40001']);
    const next = await idle.run([send.query('SELECT 1'), send.query('COMMIT')], 2);
    expect([sqlStates(next), tags(next), statuses(next)]).toEqual([['25P02'], ['ROLLBACK'], 'EI']);

    const lost = await committing.run([send.query('COMMIT')]);
    expect([sqlStates(lost), tags(lost), statuses(lost)]).toEqual([['40001'], [], 'I']);

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

    for (const client of [idle, committing, working, copying, piping, unflushed, failed]) {
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

test('a quiet moment to close the gate in is one with no statement or transaction open, whoever has it', async () => {
  await using client = await raw();
  await using other = await raw();
  await client.run([send.query('BEGIN')]);
  let quiet = false;
  const waiting = running.proxy.untilQuiet?.(600_000, never).then(() => (quiet = true));
  // What is idle, or begins and ends meanwhile, makes no difference.
  expect(await version(other)).toBe('14');
  await client.run([send.query('SELECT 1')]);
  expect(quiet).toBe(false);
  await client.run([send.query('COMMIT')]);
  await waiting;
  expect(gate()).toBe('open');
});
