import { describe, expect, test } from 'vitest';
import { POOL_DEFAULTS } from '../../../src/proxy/pool/pool-settings.js';
import { PROXY_DEFAULTS } from '../../../src/proxy/settings.js';
import { until, untilActive } from '../../support/servers.js';
import {
  RawClient,
  errorField,
  firstColumn,
  send,
  sqlStates,
  startProxy,
  statuses,
  tags,
} from '../proxy-support.js';
import { letter, transactionStage } from './pool-stage.js';

const stage = transactionStage();
const { raw, pool } = stage;
const pid = async (client: RawClient): Promise<string> =>
  (await client.column('SELECT pg_backend_pid()'))[0] ?? '';

describe('a backend per transaction', () => {
  test('many clients share few backends, each getting its own answers', async () => {
    const clients = await Promise.all(Array.from({ length: 20 }, raw));
    await Promise.all(
      clients.map(async (client, index) => {
        for (let round = 0; round < 10; round++) {
          const id = index * 10 + round + 1;
          const [name] = await client.column(`SELECT name FROM item WHERE id = ${id}`);
          expect(name).toBe(`item ${id}`);
        }
      }),
    );
    const { active, idle, waiting } = pool();
    expect(active).toBe(0);
    expect(idle).toBeLessThanOrEqual(3);
    expect(waiting).toBe(0);
    expect(stage.running.proxy.status().sessions).toBe(20);
    await Promise.all(clients.map((client) => client[Symbol.asyncDispose]()));
    await until(() => stage.running.proxy.status().sessions === 0);
  });

  test('clients that come at once open one backend between them', async () => {
    const clients = await Promise.all(Array.from({ length: 10 }, raw));
    expect(pool().idle + pool().active).toBe(1);
    await Promise.all(clients.map((client) => client[Symbol.asyncDispose]()));
  });

  test('a transaction keeps its backend to its end, and is not seen by others before', async () => {
    await using one = await raw();
    await using other = await raw();
    await one.run([send.query('BEGIN')]);
    const mine = await pid(one);
    await one.run([send.query("INSERT INTO item VALUES (5000, 'new')")]);
    expect(await other.column('SELECT count(*) FROM item WHERE id = 5000')).toEqual(['0']);
    expect(await pid(other)).not.toBe(mine);
    expect(await pid(one)).toBe(mine);
    expect(statuses(await one.run([send.query('ROLLBACK')]))).toBe('I');
    expect(await other.column('SELECT count(*) FROM item WHERE id = 5000')).toEqual(['0']);
    expect(pool().active).toBe(0);
  });

  test('an error is only its own client’s; a failed transaction is left by ROLLBACK', async () => {
    await using one = await raw();
    await using other = await raw();
    expect(sqlStates(await one.run([send.query('SELECT 1/0')]))).toEqual(['22012']);
    await one.run([send.query('BEGIN')]);
    expect(statuses(await one.run([send.query('SELECT 1/0')]))).toBe('E');
    expect(await other.column('SELECT 7')).toEqual(['7']);
    expect(sqlStates(await one.run([send.query('SELECT 1')]))).toEqual(['25P02']);
    await one.run([send.query('ROLLBACK')]);
    expect(await one.column('SELECT 8')).toEqual(['8']);
  });

  test('an error longer than anything that is looked at passes whole, and ends nothing, nor its recording', async () => {
    const recorded: Buffer[] = [];
    const recorder = {
      opened: () => undefined,
      closed: () => undefined,
      sent: (_id: number, bytes: Buffer) => void recorded.push(Buffer.from(bytes)),
    };
    const pool = { ...POOL_DEFAULTS, poolMode: 'transaction' } as const;
    await using own = await startProxy(stage.pair, { pool }, { recorder });
    await using client = await RawClient.connect(own.port, own.database);
    for (const bytes of [100_000, PROXY_DEFAULTS.stateBytesMax + 100_000]) {
      const [error] = await client.run([send.query(`SELECT repeat('x', ${bytes})::int`)]);
      expect(error && errorField(error, 'C')).toBe('22P02');
      expect(error && errorField(error, 'M').length).toBeGreaterThan(bytes);
      await client.column(`SELECT ${bytes}`);
      expect(Buffer.concat(recorded.splice(0)).toString('latin1')).toContain(`SELECT ${bytes}\0`);
    }
  });

  test('waits in order, and is refused by name when the time is up', async () => {
    await stage.start({ poolSizeMax: 1, poolWaitTimeoutMs: 300 });
    await using holder = await raw();
    await using late = await raw();
    await holder.run([send.query('BEGIN')]);
    const [error] = await late.run([send.query('SELECT 1')]);
    expect(error && errorField(error, 'C')).toBe('53300');
    expect(error && errorField(error, 'M')).toContain('proxy.poolWaitTimeoutMs');
    const batch = [send.parse('SELECT 2'), send.bind(), send.execute(), send.sync()];
    const messages = await late.run(batch);
    expect(messages.map(({ type }) => type).join('')).toBe('EZ');
    await holder.run([send.query('COMMIT')]);
    expect(await late.column('SELECT 3')).toEqual(['3']);
  });

  test('the queue is bounded in length', async () => {
    await stage.start({ poolSizeMax: 1, poolWaitingMax: 1 });
    await using holder = await raw();
    await using first = await raw();
    await using second = await raw();
    await holder.run([send.query('BEGIN')]);
    first.write(send.query('SELECT 1'));
    await until(() => pool().waiting === 1);
    expect(sqlStates(await second.run([send.query('SELECT 1')]))).toEqual(['53300']);
    await holder.run([send.query('COMMIT')]);
    await first.readies(1);
    expect(first.types).toBe('TDCZ');
  });

  test('a reserve serves those who have waited', async () => {
    await stage.start({ poolSizeMax: 1, poolReserve: 1, poolReserveAfterMs: 1 });
    await using holder = await raw();
    await using late = await raw();
    await holder.run([send.query('BEGIN')]);
    expect(await late.column('SELECT 1')).toEqual(['1']);
    await holder.run([send.query('COMMIT')]);
    await until(() => pool().idle + pool().active === 1);
  });

  test('idle and old backends are closed', async () => {
    await stage.start({ poolIdleTimeoutMs: 1 });
    await using client = await raw();
    await client.column('SELECT 1');
    await until(() => pool().idle === 0);
    await stage.start({ poolAgeMaxMs: 1 });
    await using other = await raw();
    const before = await pid(other);
    await until(() => pool().idle === 0);
    expect(await pid(other)).not.toBe(before);
  });

  test('a backend whose last client does not read serves the next one', async () => {
    await stage.start({ poolSizeMax: 1 });
    await using slow = await raw();
    await using other = await raw();
    const told = (): number =>
      stage.running.proxy
        .status()
        .clients.reduce((most, { bytesToClient }) => Math.max(most, bytesToClient), 0);
    slow.socket.pause();
    // An answer that comes in one piece, so that its backend is never stopped in the middle: it is the end of one that
    // no longer fits into the client's socket. From then on the client is not read either.
    let sent = 0;
    for (let still = 0, before = -1; still < 5; sent++) {
      slow.write(send.query(`SELECT repeat('${letter(sent)}', 7000)`));
      expect(await other.column('SELECT 1')).toEqual(['1']);
      still = told() === before ? still + 1 : 0;
      before = told();
    }
    slow.socket.resume();
    await slow.readies(sent);
    // What waited was not written over meanwhile.
    const rows = slow.take().filter(({ type }) => type === 'D');
    expect(rows.map(firstColumn)).toEqual(Array.from({ length: sent }, (_, n) => letter(n).repeat(7000)));
  });

  test('a client that leaves in a transaction takes its backend with it', async () => {
    await stage.start({ poolSizeMax: 1 });
    const leaver = await raw();
    await using other = await raw();
    await leaver.run([send.query('BEGIN'), send.query("INSERT INTO item VALUES (6000, 'lost')")], 2);
    await leaver[Symbol.asyncDispose]();
    expect(await other.column('SELECT count(*) FROM item WHERE id = 6000')).toEqual(['0']);
  });

  test('a killed backend closes the client in whose transaction it was, and nobody else', async () => {
    await using one = await raw();
    await using other = await raw();
    await one.run([send.query('BEGIN')]);
    const mine = await pid(one);
    await stage.pair.onSource.query('SELECT pg_terminate_backend($1)', [mine]);
    await until(() => one.closed);
    expect(sqlStates(one.take())).toEqual(['57P01']);
    expect(await other.column('SELECT 1')).toEqual(['1']);
    const idle = await pid(other);
    await stage.pair.onSource.query('SELECT pg_terminate_backend($1)', [idle]);
    await until(() => pool().idle === 0);
    expect(await other.column('SELECT 2')).toEqual(['2']);
  });

  test('a cancel hits its own statement, running or waiting', async () => {
    await stage.start({ poolSizeMax: 1 });
    await using sleeper = await raw();
    await using waiter = await raw();
    sleeper.write(send.query('SELECT pg_sleep(60)'));
    await untilActive(stage.pair.onSource, 'pg_sleep(60)');
    waiter.write(send.query('SELECT 1'));
    await until(() => pool().waiting === 1);
    await waiter.cancel();
    await waiter.readies(1);
    expect(sqlStates(waiter.take())).toEqual(['57014']);
    await sleeper.cancel();
    await sleeper.readies(1);
    expect(sqlStates(sleeper.take())).toEqual(['57014']);
    for (let round = 0; round < 5; round++) expect(await waiter.column('SELECT 5')).toEqual(['5']);
  });

  test('COPY goes both ways', async () => {
    await using client = await raw();
    client.write(send.query('COPY item FROM STDIN'));
    await until(() => client.types === 'G');
    client.write(send.copyData('7001\tseven\n'), send.copyData('7002\teight\n'), send.copyDone());
    await client.readies(1);
    expect(tags(client.take())).toEqual(['COPY 2']);
    const out = await client.run([send.query('COPY (SELECT id FROM item WHERE id > 7000) TO STDOUT')]);
    expect(out.filter(({ type }) => type === 'd').map(({ payload }) => payload.toString())).toEqual([
      '7001\n',
      '7002\n',
    ]);
    expect(await client.column('DELETE FROM item WHERE id > 7000 RETURNING id')).toHaveLength(2);
    expect(pool().active).toBe(0);
  });

  test('what a server is slow to take is not overwritten by what its client sends next', async () => {
    await using client = await raw();
    const server = Number(await pid(client));
    client.write(send.query('COPY item FROM STDIN'));
    await until(() => client.types === 'G');
    const told = (): number => stage.running.proxy.status().clients[0]?.bytesFromClient ?? 0;
    process.kill(server, 'SIGSTOP');
    let rows = 0;
    try {
      // Piece by piece, each read alone, until the client is read no more: up to the mark at which a socket counts as
      // full some wait in the proxy.
      for (let still = 0; still < 50;) {
        const before = told();
        if (still === 0) client.write(send.copyData(`${8000 + rows}\t${letter(rows++).repeat(7000)}\n`));
        await new Promise((resolve) => setImmediate(resolve));
        still = told() === before ? still + 1 : 0;
      }
    } finally {
      process.kill(server, 'SIGCONT');
    }
    client.write(send.copyDone());
    await client.readies(1);
    expect(tags(client.take())).toEqual([`COPY ${rows}`]);
    const arrived = await client.column('DELETE FROM item WHERE id >= 8000 RETURNING name');
    expect(arrived.map((name, row) => name === letter(row).repeat(7000))).not.toContain(false);
  });

  test('the tap sees what pooled clients run', async () => {
    await using client = await raw();
    await client.run([send.query('SELECT name FROM item WHERE id < 3')]);
    await client.run([
      send.parse('SELECT $1::int', 'one'),
      send.bind(['4'], 'one'),
      send.execute(),
      send.sync(),
    ]);
    await client.run([send.query('SELECT 1/0')]);
    expect(stage.tap.offered).toMatchObject([
      { text: 'SELECT name FROM item WHERE id < 3', rows: 2, failed: false },
      { text: 'SELECT $1::int', rows: 1, failed: false },
      { text: 'SELECT 1/0', failed: true },
    ]);
  });
});

describe('prepared statements', () => {
  const use = (name: string, value: string): Buffer[] => [
    send.bind([value], name),
    send.execute(),
    send.sync(),
  ];

  test('live on whatever backend comes, each client under its own names', async () => {
    const clients = await Promise.all(Array.from({ length: 8 }, raw));
    await Promise.all(
      clients.map((client, index) =>
        client.run([send.parse(`SELECT $1::int + ${index % 2}`, 'plus'), send.sync()]),
      ),
    );
    for (let round = 0; round < 5; round++) {
      await Promise.all(
        clients.map(async (client, index) => {
          const messages = await client.run([send.describe('S', 'plus'), ...use('plus', String(round))]);
          expect(messages.map(({ type }) => type).join('')).toBe('tT2DCZ');
          const [row] = messages.filter(({ type }) => type === 'D');
          expect(row && firstColumn(row)).toBe(String(round + (index % 2)));
        }),
      );
    }
    await Promise.all(clients.map((client) => client[Symbol.asyncDispose]()));
  });

  test('are refused twice, closed, unknown and failed as a server would', async () => {
    await using client = await raw();
    const types = async (...frames: Buffer[]): Promise<string> =>
      (await client.run([...frames, send.sync()])).map(({ type }) => type).join('');
    expect(await types(send.parse('SELECT 1', 'a'))).toBe('1Z');
    const again = await client.run([send.parse('SELECT 2', 'a'), send.sync()]);
    expect(sqlStates(again)).toEqual(['42P05']);
    expect(await types(send.bind([], 'a'), send.execute())).toBe('2DCZ');
    expect(await types(send.close('S', 'a'))).toBe('3Z');
    const gone = await client.run([send.bind([], 'a'), send.execute(), send.sync()]);
    expect(sqlStates(gone)).toEqual(['26000']);
    // The second is skipped by the server, so it does not exist.
    expect(await types(send.parse('SELEKT', 'bad'), send.parse('SELECT 3', 'skipped'))).toBe('EZ');
    for (const name of ['bad', 'skipped']) {
      expect(sqlStates(await client.run([send.bind([], name), send.sync()]))).toEqual(['26000']);
      expect(await types(send.parse('SELECT 3', name))).toBe('1Z');
    }
    // The same text under another name needs no Parse at the server; the answers are as if it did.
    expect(await types(send.parse('SELECT 3', 'same'), send.bind([], 'same'), send.execute())).toBe('12DCZ');
  });

  test('the unnamed one survives between transactions', async () => {
    await using client = await raw();
    await client.run([send.parse('SELECT $1::text'), send.sync()]);
    const mine = await raw();
    await mine.run([send.query('BEGIN')]);
    const messages = await client.run([send.describe('S'), send.bind(['kept']), send.execute(), send.sync()]);
    expect(messages.map(({ type }) => type).join('')).toBe('tT2DCZ');
    await mine[Symbol.asyncDispose]();
  });

  test('more of them than a backend keeps', async () => {
    await stage.start({ preparedStatementsMax: 3, poolSizeMax: 1 });
    await using client = await raw();
    for (let n = 0; n < 10; n++) await client.run([send.parse(`SELECT ${n}, $1::int`, `s${n}`), send.sync()]);
    for (let n = 0; n < 10; n++) {
      const [row] = (await client.run(use(`s${n}`, '1'))).filter(({ type }) => type === 'D');
      expect(row && firstColumn(row)).toBe(String(n));
    }
    expect(
      Number((await client.column('SELECT count(*) FROM pg_prepared_statements'))[0]),
    ).toBeLessThanOrEqual(3);
  });

  test('DEALLOCATE ALL and DISCARD ALL forget them', async () => {
    for (const forget of ['DEALLOCATE ALL', 'DISCARD ALL']) {
      await using client = await raw();
      await client.run([send.parse('SELECT 1', 'a'), send.sync()]);
      await client.run([send.query(forget)]);
      expect(sqlStates(await client.run(use('a', '1')))).toEqual(['26000']);
      expect((await client.run([send.parse('SELECT 1', 'a'), send.sync()])).map(({ type }) => type)).toEqual([
        '1',
        'Z',
      ]);
      expect((await client.run([send.bind([], 'a'), send.execute(), send.sync()]))[1]?.type).toBe('D');
    }
  });

  test('DEALLOCATE in SQL knows them, in a transaction too', async () => {
    await using client = await raw();
    const prepare = [send.parse('SELECT 1', 'Aa'), send.sync(), send.parse('SELECT 2', 'b'), send.sync()];
    await client.run(prepare, 2);
    expect(tags(await client.run([send.query('DEALLOCATE PREPARE "Aa"')]))).toEqual(['DEALLOCATE']);
    const messages = await client.run(
      [send.query('BEGIN'), send.query('deallocate B;'), send.query('END')],
      3,
    );
    expect(tags(messages)).toEqual(['BEGIN', 'DEALLOCATE', 'COMMIT']);
    expect(statuses(messages)).toBe('TTI');
    for (const name of ['Aa', 'b']) {
      expect(sqlStates(await client.run(use(name, '1')))).toEqual(['26000']);
      expect(sqlStates(await client.run([send.query(`DEALLOCATE "${name}"`)]))).toEqual(['26000']);
    }
  });

  test('a changed table is told once, as a server tells it, and not for ever', async () => {
    await stage.start({ poolSizeMax: 1 });
    await using client = await raw();
    await client.run([send.query('CREATE TABLE changing (a int)')]);
    await client.run([send.parse('SELECT * FROM changing', 'a'), send.sync()]);
    await client.run([send.bind([], 'a'), send.execute(), send.sync()]);
    await client.run([send.query('ALTER TABLE changing ADD b int')]);
    expect(sqlStates(await client.run([send.bind([], 'a'), send.execute(), send.sync()]))).toEqual(['0A000']);
    expect(sqlStates(await client.run([send.bind([], 'a'), send.execute(), send.sync()]))).toEqual([]);
    await client.run([send.query('DROP TABLE changing')]);
  });
});

test('clients that each give themselves a name of their own leave few connections behind', async () => {
  await stage.start();
  const left = async (): Promise<number> => {
    const { rows } = await stage.pair.onSource.query<{ n: string }>(
      "SELECT count(*) AS n FROM pg_stat_activity WHERE application_name LIKE 'named-%' AND datname = current_database()",
    );
    return Number(rows[0]?.n);
  };
  const connect = (n: number): Promise<RawClient> =>
    RawClient.connect(stage.running.port, stage.running.database, { application_name: `named-${n}` });
  await using stays = await connect(0);
  expect(await stays.column('SELECT 1')).toEqual(['1']);
  for (let n = 1; n <= 8; n++) {
    await using client = await connect(n);
    expect(await client.column('SELECT 1')).toEqual(['1']);
  }
  // Its own, and of the others as many as a pool may have.
  await until(async () => (await left()) <= 4, { what: 'the connections nobody needs to be closed' });
  await until(() => stage.running.proxy.status().pools.length <= 4, {
    what: 'the pools nobody needs to be forgotten',
  });
  await using again = await connect(8);
  expect(await again.column('SHOW application_name')).toEqual(['named-8']);
  expect(await stays.column('SELECT 2')).toEqual(['2']);
});
