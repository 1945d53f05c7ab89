/** What passes through the proxy, and that nothing of it is changed. */
import { createHash } from 'node:crypto';
import net from 'node:net';
import { once } from 'node:events';
import pg from 'pg';
import postgres from 'postgres';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { PROXY_DEFAULTS } from '../../src/proxy/settings.js';
import { databasePair, until, untilActive, type DatabasePair } from '../support/servers.js';
import {
  RawClient,
  errorField,
  firstColumn,
  frame,
  recordingTap,
  send,
  sqlStates,
  startProxy,
  statuses,
  tags,
  type RunningProxy,
} from './proxy-support.js';

let pair: DatabasePair;
let running: RunningProxy;
const tap = recordingTap();

beforeAll(async () => {
  pair = await databasePair();
  running = await startProxy(pair, { frameBytesMax: 64 * 1024 * 1024 }, { tap });
  await pair.onSource.query('CREATE TABLE public.item (id int PRIMARY KEY, name text)');
  await pair.onSource.query("INSERT INTO public.item SELECT i, 'item ' || i FROM generate_series(1, 500) i");
});

afterAll(async () => {
  await running[Symbol.asyncDispose]();
  await pair[Symbol.asyncDispose]();
});

const raw = (parameters: Record<string, string> = {}): Promise<RawClient> =>
  RawClient.connect(running.port, running.database, parameters);

/** Batches that leave the database as it was, each with the number of ReadyForQuery it is owed. */
const conversations: Record<string, { readonly frames: Buffer[]; readonly readies: number }> = {
  simple: { frames: [send.query("SELECT 1; SELECT 2; SELECT repeat('x', 300)")], readies: 1 },
  extended: {
    frames: [
      send.parse('SELECT $1::int + 1', 'named'),
      send.describe('S', 'named'),
      send.bind(['41'], 'named', 'portal'),
      send.describe('P', 'portal'),
      send.execute('portal'),
      send.close('P', 'portal'),
      send.close('S', 'named'),
      send.sync(),
    ],
    readies: 1,
  },
  'a pipeline of several batches, one failing in its middle': {
    frames: [
      send.parse('SELECT 1'), send.bind(), send.execute(), send.sync(),
      send.parse('SELECT 1/0'), send.bind(), send.execute(),
      send.parse('SELECT 2'), send.bind(), send.execute(), send.sync(),
      send.query('SELECT 3'),
      send.parse('SELECT'), send.bind(), send.execute(), send.sync(),
    ], // prettier-ignore
    readies: 4,
  },
  'a transaction with an error': {
    frames: [
      send.query('BEGIN'),
      send.query("INSERT INTO item VALUES (1000, 'new')"),
      send.query("INSERT INTO item VALUES (1000, 'again')"),
      send.query('SELECT 1'),
      send.query('ROLLBACK'),
    ],
    readies: 5,
  },
  'copy out': { frames: [send.query('COPY (SELECT * FROM item WHERE id < 20) TO STDOUT')], readies: 1 },
  'copy in by a simple query': {
    frames: [
      send.query('BEGIN'),
      send.query('COPY item FROM STDIN'),
      send.copyData('2000\ta\n'), send.copyData('2001\tb\n'), send.copyDone(),
      send.query('ROLLBACK'),
    ], // prettier-ignore
    readies: 3,
  },
  'copy in as libpq sends it, with Sync in front of the data': {
    frames: [
      send.query('BEGIN'),
      send.parse('COPY item FROM STDIN'), send.bind(), send.execute(), send.sync(),
      send.copyData('2000\ta\n'), send.copyDone(), send.sync(),
      send.query('ROLLBACK'),
    ], // prettier-ignore
    readies: 3,
  },
  'copy in that the client gives up': {
    frames: [send.query('COPY item FROM STDIN'), send.copyData('2000\ta\n'), send.copyFail('no')],
    readies: 1,
  },
  'copy in that the server refuses': {
    frames: [
      send.parse('COPY item FROM STDIN'), send.bind(), send.execute(), send.flush(),
      send.copyData('not a number\ta\n'), send.copyData('2001\tb\n'), send.copyDone(), send.sync(),
      send.query('SELECT 1'),
    ], // prettier-ignore
    readies: 2,
  },
  'a query behind a failed extended message, which the server skips': {
    frames: [
      send.parse('SELECT nonsense'), send.query('SELECT 1'), send.sync(),
      send.parse('SELECT 1/0'), send.bind(), send.execute(), send.copyDone(), send.flush(), send.query('SELECT 2'),
      send.bind(), send.sync(), send.query('SELECT 3'),
    ], // prettier-ignore
    readies: 3,
  },
  'a query behind extended messages without a Sync': {
    frames: [send.parse('SELECT 1'), send.bind(), send.execute(), send.query('SELECT 2')],
    readies: 1,
  },
  'copy in, all of it sent ahead': {
    frames: [
      send.query('BEGIN'),
      send.parse('COPY item FROM STDIN'), send.bind(), send.execute(), send.sync(),
      send.copyData('2000\ta\n'), send.sync(), send.copyDone(), send.sync(),
      send.parse('COPY item FROM STDIN'), send.bind(), send.execute(), send.sync(),
      send.copyData('2001\ta\n'), send.copyFail('no'), send.sync(),
      send.query('ROLLBACK'), send.query('SELECT 1'),
    ], // prettier-ignore
    readies: 5,
  },
  'copy in that fails before it begins': {
    frames: [
      send.query('COPY nonsense FROM STDIN'), send.copyData('2000\ta\n'), send.copyDone(),
      send.parse('COPY item (nonsense) FROM STDIN'), send.bind(), send.execute(), send.sync(),
      send.copyData('2000\ta\n'), send.copyDone(), send.sync(),
      send.query('SELECT 1'),
    ], // prettier-ignore
    readies: 4,
  },
  'a function call, and one that fails': {
    frames: [
      // int4abs(int4), its argument and result as text.
      frame('F', [0, 0, 4, 227, 0, 0, 0, 1, 0, 0, 0, 2], '-5', [0, 0]),
      frame('F', [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
    ],
    readies: 2,
  },
  'an empty query, a notice and a suspended portal': {
    frames: [
      send.query(''),
      send.query("DO $$ BEGIN RAISE NOTICE 'hello'; END $$"),
      send.parse('SELECT * FROM item'), send.bind(), send.execute('', 2), send.execute('', 3), send.sync(),
    ], // prettier-ignore
    readies: 3,
  },
};

/** Timings, cut plans and source lines apart, a server says the same to the same bytes. */
async function directAnswer(frames: Buffer[], readies: number): Promise<string> {
  await using client = await RawClient.direct(pair.source);
  await client.run(frames, readies);
  return client.bytes().toString('latin1');
}

describe('every conversation, cut at every byte, is answered as without the proxy', () => {
  for (const [name, { frames, readies }] of Object.entries(conversations)) {
    test(name, async () => {
      const expected = await directAnswer(frames, readies);
      const bytes = Buffer.concat(frames);
      await using client = await raw();
      for (let cut = 1; cut <= bytes.length; cut++) {
        client.socket.write(bytes.subarray(0, cut));
        // A turn of the loop of both ends, so that the proxy sees two pieces.
        await new Promise((resolve) => setImmediate(resolve));
        client.socket.write(bytes.subarray(cut));
        await client.readies(readies);
        client.take();
        expect(client.bytes().toString('latin1')).toBe(expected);
      }
      expect(running.proxy.status().clients.at(-1)).toMatchObject({ busy: false, transactionStatus: 'I' });
    });
  }
});

test('pg: parameters, named statements, transactions, errors, notices', async () => {
  const client = new pg.Client(running.url);
  const notices: string[] = [];
  client.on('notice', (notice) => notices.push(notice.message ?? ''));
  await client.connect();
  for (let round = 0; round < 3; round++) {
    const { rows } = await client.query<{ name: string }>({
      name: 'by-id',
      text: 'SELECT name FROM item WHERE id = $1',
      values: [7],
    });
    expect(rows).toEqual([{ name: 'item 7' }]);
  }
  await expect(client.query('SELECT nonsense')).rejects.toMatchObject({ code: '42703' });
  await client.query("DO $$ BEGIN RAISE NOTICE 'to all'; END $$");
  expect(notices).toEqual(['to all']);
  await client.query('BEGIN');
  await client.query('UPDATE item SET name = $1 WHERE id = 1', ['changed']);
  await client.query('ROLLBACK');
  expect((await client.query('SELECT name FROM item WHERE id = 1')).rows).toEqual([{ name: 'item 1' }]);
  await client.end();
});

test('postgres.js: pipelining, prepared statements, cursors, COPY both ways', async () => {
  const sql = postgres(running.url, { max: 3, onnotice: () => undefined });
  const results = await Promise.all(
    Array.from(
      { length: 60 },
      (_, index) => sql<{ id: number }[]>`SELECT id FROM item WHERE id = ${index + 1}`,
    ),
  );
  expect(results.map(([row]) => row?.id)).toEqual(Array.from({ length: 60 }, (_, index) => index + 1));
  let seen = 0;
  await sql`SELECT * FROM item`.cursor(50, (rows) => {
    seen += rows.length;
  });
  expect(seen).toBe(500);
  await sql.begin(async (tx) => {
    await tx`CREATE TEMP TABLE incoming (a int, b text) ON COMMIT DROP`;
    const writable = await tx`COPY incoming FROM STDIN`.writable();
    for (let index = 0; index < 1000; index++) writable.write(`${index}\tvalue ${index}\n`);
    writable.end();
    await once(writable, 'finish');
    expect(await tx`SELECT count(*)::int AS n FROM incoming`).toMatchObject([{ n: 1000 }]);
    const readable = await tx`COPY incoming TO STDOUT`.readable();
    let bytes = 0;
    for await (const chunk of readable) bytes += (chunk as Buffer).length;
    expect(bytes).toBeGreaterThan(10_000);
  });
  await sql.end();
});

test('notifications arrive while the session is idle', async () => {
  const client = new pg.Client(running.url);
  const heard: (string | undefined)[] = [];
  client.on('notification', ({ payload }) => heard.push(payload));
  await client.connect();
  await client.query('LISTEN news');
  await pair.onSource.query("SELECT pg_notify('news', 'one')");
  await until(() => heard.length === 1);
  expect(heard).toEqual(['one']);
  await client.end();
});

test('a cancel request stops what its client runs, and no other key does', async () => {
  await using client = await raw();
  await using other = await raw();
  client.write(send.query('SELECT pg_sleep(30)'));
  await untilActive(pair.onSource, 'pg_sleep(30)');
  other.processId = client.processId;
  await other.cancel();
  expect(client.messages).toEqual([]);
  await client.cancel();
  await client.readies(1);
  expect(sqlStates(client.take())).toEqual(['57014']);
  expect(await client.column('SELECT 1')).toEqual(['1']);
});

test('a reader that does not read stops the server, not the memory', async () => {
  await using client = await raw();
  client.socket.pause();
  const before = process.memoryUsage().arrayBuffers + process.memoryUsage().external;
  client.write(send.query('SELECT repeat(md5(i::text), 3125) FROM generate_series(1, 600) i'));
  const sent = (): number => running.proxy.status().bytesToClients;
  // What passed stops growing well below the result's 60 MB: sockets' buffers are full.
  let last = -1;
  await until(
    async () => {
      const now = sent();
      await new Promise((resolve) => setTimeout(resolve, 60));
      const still = now === last && now === sent();
      last = now;
      return still;
    },
    { what: 'the relay to stand still' },
  );
  const grown = process.memoryUsage().arrayBuffers + process.memoryUsage().external - before;
  expect(grown).toBeLessThan(25 * 1024 * 1024);
  client.socket.resume();
  await client.readies(1);
  const rows = client.take().filter(({ type }) => type === 'D');
  expect(rows).toHaveLength(600);
  for (const [index, { payload }] of rows.entries()) {
    const expected = createHash('md5')
      .update(String(index + 1))
      .digest('hex')
      .repeat(3125);
    expect(payload.toString('latin1', 6) === expected, `row ${index}`).toBe(true);
  }
});

test('a server that does not read stops the client', async () => {
  await using client = await raw();
  // The backend waits for a lock before it reads the data that is sent to it.
  await pair.onSource.query('BEGIN');
  await pair.onSource.query('LOCK TABLE public.item IN ACCESS EXCLUSIVE MODE');
  client.write(send.query('SELECT count(*) FROM item'));
  const letter = (index: number): string => String.fromCharCode(97 + (index % 26));
  let flowing = true;
  let written = 0;
  while (written < 60 && flowing) {
    flowing = client.socket.write(frame('Q', `SELECT '${letter(written).repeat(1_000_000)}'\0`));
    written += 1;
    await new Promise((resolve) => setImmediate(resolve));
    if (!flowing) {
      flowing = await Promise.race([
        once(client.socket, 'drain').then(() => true),
        new Promise<boolean>((resolve) => setTimeout(() => resolve(false), 200)),
      ]);
    }
  }
  expect(written).toBeLessThan(60);
  await pair.onSource.query('ROLLBACK');
  await client.readies(1 + written);
  const rows = client.take().filter(({ type }) => type === 'D');
  for (const [index, { payload }] of rows.slice(1).entries()) {
    expect(payload.toString('latin1', 6) === letter(index).repeat(1_000_000), `row ${index}`).toBe(true);
  }
});

test('a length out of bounds is told in the protocol, and closes that connection alone', async () => {
  await using bystander = await raw();
  for (const length of [3, 0, 0x8000_0000, 0x7fff_ffff]) {
    await using client = await raw();
    const bad = Buffer.alloc(5);
    bad.write('Q', 0, 'latin1');
    bad.writeUInt32BE(length, 1);
    client.socket.write(Buffer.concat([send.query('SELECT 1').subarray(0, 0), bad]));
    await until(() => client.closed);
    const error = client.messages.find(({ type }) => type === 'E');
    expect(error && errorField(error, 'S')).toBe('FATAL');
    expect(sqlStates(client.messages)).toEqual(['08P01']);
  }
  expect(await bystander.column('SELECT 1')).toEqual(['1']);
});

test('a backend that is terminated is told as PostgreSQL tells it', async () => {
  await using client = await raw();
  const [pid] = await client.column('SELECT pg_backend_pid()');
  await pair.onSource.query('SELECT pg_terminate_backend($1)', [pid]);
  await until(() => client.closed);
  expect(sqlStates(client.messages)).toEqual(['57P01']);
});

test('a client that leaves takes its backend along', async () => {
  const client = await raw();
  const [pid] = await client.column('SELECT pg_backend_pid()');
  await client[Symbol.asyncDispose]();
  await until(async () => {
    const { rows } = await pair.onSource.query('SELECT 1 FROM pg_stat_activity WHERE pid = $1', [pid]);
    return rows.length === 0;
  });
});

test('the last statement of a client that leaves at once is still run', async () => {
  const client = await raw();
  client.write(send.query("INSERT INTO item VALUES (5000, 'last words')"), send.terminate());
  client.socket.end();
  await until(async () => {
    const { rows } = await pair.onSource.query('SELECT 1 FROM public.item WHERE id = 5000');
    return rows.length === 1;
  });
  await pair.onSource.query('DELETE FROM public.item WHERE id = 5000');
});

test('a client that closes its sending side is answered first, as by a server', async () => {
  const conversations = [
    [send.query("SELECT 'slow', pg_sleep(0.1)"), send.query('SELECT 2')],
    [send.parse('SELECT 3'), send.bind(), send.execute(), send.sync()],
    [send.query('BEGIN'), send.query('SELECT 4')],
    // Without a Sync it is not answered, and a half message is not one.
    [send.parse('SELECT 5'), send.bind(), send.execute()],
    [send.query('SELECT 6'), send.query('SELECT 7').subarray(0, 9)],
    [],
  ];
  const answers = async (client: RawClient, frames: readonly Buffer[]): Promise<string> => {
    client.socket.end(Buffer.concat(frames));
    await until(() => client.closed, { what: 'the connection to be closed' });
    return client.types;
  };
  for (const frames of conversations) {
    const direct = await RawClient.direct(pair.source);
    const through = await raw();
    expect(await answers(through, frames)).toBe(await answers(direct, frames));
  }
  await until(() => running.proxy.status().sessions === 0, { what: 'no session to be left' });
});

test('an unknown database is refused by the server, an unmanaged one by the proxy', async () => {
  await using unknown = await RawClient.connect(running.port, 'no_such_database');
  expect(sqlStates(unknown.messages)).toEqual(['3D000']);
  const error = unknown.messages.find(({ type }) => type === 'E');
  expect(error && errorField(error, 'M')).toBe('database "no_such_database" does not exist');
  await using unmanaged = await RawClient.connect(running.port, 'postgres');
  expect(sqlStates(unmanaged.messages)).toEqual(['3D000']);
  expect(unmanaged.types).not.toContain('Z');
});

test('more clients than configured get 53300', async () => {
  await using small = await startProxy(pair, { maxClients: 1 });
  await using first = await RawClient.connect(small.port, small.database);
  await using second = await RawClient.connect(small.port, small.database);
  expect(sqlStates(second.messages)).toEqual(['53300']);
  expect(await first.column('SELECT 1')).toEqual(['1']);
  expect(small.proxy.status().connections).toMatchObject({ accepted: 1, refused: 1 });
});

test('until a route is set, and while there is none, clients are told so', async () => {
  await using other = await startProxy(pair);
  other.proxy.setUnavailable('all', { sqlState: '57P03', message: 'the journal can’t be read' });
  await using early = await RawClient.connect(other.port, other.database);
  expect(sqlStates(early.messages)).toEqual(['57P03']);
  other.proxy.setUnavailable('all', null);
  await using client = await RawClient.connect(other.port, other.database);
  expect(await client.column('SELECT 1')).toEqual(['1']);
  other.proxy.setUnavailable('all', { sqlState: '57P03', message: 'the journal can’t be read' });
  const refused = await client.run([send.query('SELECT 1')]);
  expect([sqlStates(refused), statuses(refused)]).toEqual([['57P03'], 'I']);
  other.proxy.setUnavailable('all', null);
  expect(await client.column('SELECT 1')).toEqual(['1']);
});

test('a port that is taken is named', async () => {
  const server = net.createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as net.AddressInfo;
  await expect(startProxy(pair, { port })).rejects.toMatchObject({ code: 'port-in-use' });
  server.close();
});

test('a stop closes idle sessions, lets busy ones finish, and cuts off the rest', async () => {
  const own = await startProxy(pair);
  await using idle = await RawClient.connect(own.port, own.database);
  await using busy = await RawClient.connect(own.port, own.database);
  await using open = await RawClient.connect(own.port, own.database);
  await open.run([send.query('BEGIN')]);
  await pair.onSource.query('SELECT pg_advisory_lock(1)');
  busy.write(send.query('SELECT pg_advisory_xact_lock(1), 42'));
  await until(() => own.proxy.status().clients.some(({ busy: working }) => working));
  const stopped = own.proxy.stop({ drainTimeoutMs: 2000 });
  await until(() => idle.closed);
  await pair.onSource.query('SELECT pg_advisory_unlock(1)');
  await stopped;
  await until(() => idle.closed && busy.closed && open.closed);
  expect([idle.types, busy.types, open.types]).toEqual(['E', 'TDCZE', 'E']);
  for (const client of [idle, busy, open]) expect(sqlStates(client.messages)).toEqual(['57P01']);
  expect(own.proxy.status()).toMatchObject({ state: 'stopped', sessions: 0 });
});

test('a pipeline deeper than any bound is answered in order', async () => {
  await using client = await raw();
  const count = 20_000;
  client.write(...Array.from({ length: count }, (_, index) => send.query(`SELECT ${index}`)));
  await client.readies(count);
  const rows = client
    .take()
    .filter(({ type }) => type === 'D')
    .map(firstColumn);
  expect(rows).toEqual(Array.from({ length: count }, (_, index) => String(index)));
});

test('a tap that throws harms nobody', async () => {
  const offer = (): never => {
    throw new Error('the ring is on fire');
  };
  await using own = await startProxy(pair, {}, { tap: { offer } });
  await using client = await RawClient.connect(own.port, own.database);
  expect(await client.column('SELECT 1')).toEqual(['1']);
  expect(await client.column('SELECT 2')).toEqual(['2']);
});

test('an error longer than anything that is looked at passes whole, and ends nothing', async () => {
  await using client = await raw();
  const bytes = PROXY_DEFAULTS.stateBytesMax + 100_000;
  const [error] = await client.run([send.query(`SELECT repeat('x', ${bytes})::int`)]);
  expect(error && errorField(error, 'C')).toBe('22P02');
  expect(error && errorField(error, 'M').length).toBeGreaterThan(bytes);
  expect(await client.column('SELECT 1')).toEqual(['1']);
});

test('a replication connection passes, and is named as what can’t be moved', async () => {
  await using client = await raw({ replication: 'database' });
  const row = (await client.run([send.query('IDENTIFY_SYSTEM')])).find(({ type }) => type === 'D');
  expect(row).toBeDefined();
  // pg_receivewal and pg_basebackup ask for a database that doesn't exist, which is no matter to a server.
  await using physical = await RawClient.connect(running.port, 'replication', { replication: 'true' });
  expect(tags(await physical.run([send.query('IDENTIFY_SYSTEM')]))).toEqual(['IDENTIFY_SYSTEM']);
  const { blockers } = await running.proxy.prepare('all', 'destination', new AbortController().signal);
  expect(blockers).toMatchObject([{ reason: 'replication' }, { reason: 'replication' }]);
  running.proxy.discardWarm('all');
});

test('the tap is told of every statement, its rows and whether it failed', async () => {
  await using client = await raw();
  tap.offered.length = 0;
  await client.run([send.query('SELECT * FROM item WHERE id <= 3')]);
  await client.run([
    send.parse('SELECT * FROM item WHERE id <= 4', 's'), send.bind([], 's'), send.execute(),
    send.parse('SELECT 1/0'), send.bind(), send.execute(), send.sync(),
  ]); // prettier-ignore
  await client.run([send.bind([], 's'), send.execute(), send.sync()]);
  await client.run([send.query('BEGIN')]);
  await client.run([send.query('ROLLBACK')]);
  expect(
    tap.offered.map(({ text, rows, failed, errorClass, status }) => [
      text,
      rows,
      failed ? errorClass : '',
      String.fromCharCode(status),
    ]),
  ).toEqual([
    ['SELECT * FROM item WHERE id <= 3', 3, '', 'I'],
    ['SELECT * FROM item WHERE id <= 4', 4, '', '\0'],
    ['SELECT 1/0', 0, '22', 'I'],
    ['SELECT * FROM item WHERE id <= 4', 4, '', 'I'],
    ['BEGIN', 0, '', 'T'],
    ['ROLLBACK', 0, '', 'I'],
  ]);
  let before = 0;
  for (const { bytesToServer, bytesToClient, endedAtMs, parameters } of tap.offered) {
    expect(bytesToServer).toBeGreaterThan(10);
    expect(bytesToClient).toBeGreaterThanOrEqual(0);
    expect(endedAtMs).toBeGreaterThanOrEqual(before);
    expect(parameters).toBe('');
    before = endedAtMs;
  }
  expect(tags(await client.run([send.query('SELECT 1')]))).toEqual(['SELECT 1']);
});

test('the tap sees what a statement was bound to only where it is asked for, and only up to the bound', async () => {
  const keyed = recordingTap();
  await using proxy = await startProxy(pair, { parameterBytesMax: 24 }, { tap: keyed });
  await using client = await RawClient.connect(proxy.port, proxy.database, {});
  await client.run([
    send.parse('SELECT $1::text', 's'), send.bind(['one'], 's'), send.execute(),
    send.bind(['two'], 's', 'p'), send.bind(['x'.repeat(1000)], 's'), send.execute('p'), send.execute(),
    send.parse('SELECT 1'), send.bind(), send.execute(), send.sync(),
  ]); // prettier-ignore
  await client.run([send.query('SELECT 2')]);
  const bound = (text: string): string => boundTo(text).toString('latin1');
  expect(keyed.offered.map(({ parameters }) => parameters)).toEqual([
    bound('one'),
    bound('two'),
    bound('x'.repeat(1000)).slice(0, 24),
    boundTo().toString('latin1'),
    '',
  ]);
});

/** The part of Bind after the names: no formats, the parameters, no result formats. */
function boundTo(...values: readonly string[]): Buffer {
  const parts = [Buffer.from([0, 0, 0, values.length])];
  for (const value of values) {
    const length = Buffer.alloc(4);
    length.writeInt32BE(value.length);
    parts.push(length, Buffer.from(value));
  }
  return Buffer.concat([...parts, Buffer.from([0, 0])]);
}
