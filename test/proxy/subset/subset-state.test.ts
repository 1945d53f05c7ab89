/** What a session holds, and what it has begun, while subsets are on different sides. */
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Server } from 'node:net';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { DatabaseEndpoint } from '../../../src/core/ports.js';
import type { NameScope, StatementReach } from '../../../src/core/subset-ports.js';
import { databasePair, until, type DatabasePair } from '../../support/servers.js';
import { RawClient, errorField, firstColumn, send, startProxy, type RunningProxy } from '../proxy-support.js';
import { ReadHere, makeSides } from './subset-support.js';

/** Holds back what it reads of texts that contain `heldBack`, until it is let go. */
class Slowly extends ReadHere {
  heldBack: string | null = null;
  waiting: (() => void)[] = [];

  override async read(text: string, scope: NameScope): Promise<StatementReach> {
    const reach = await super.read(text, scope);
    if (this.heldBack !== null && text.includes(this.heldBack))
      await new Promise<void>((resolve) => this.waiting.push(resolve));
    return reach;
  }

  letGo(): void {
    this.heldBack = null;
    for (const resolve of this.waiting.splice(0)) resolve();
  }
}

/** Before a server: whoever comes while it is shut waits at it. */
class Door {
  readonly #server: Server;
  #waiting: (() => void)[] | null = null;

  constructor(to: DatabaseEndpoint) {
    this.#server = createServer((client) => {
      const enter = (): void => {
        const server = connect(to.port, to.host);
        for (const socket of [client, server]) socket.on('error', () => undefined);
        client.on('close', () => server.destroy()).pipe(server);
        server.on('close', () => client.destroy()).pipe(client);
      };
      if (this.#waiting === null) enter();
      else this.#waiting.push(enter);
    });
  }

  async listen(): Promise<Pick<DatabaseEndpoint, 'host' | 'port'>> {
    this.#server.listen(0, '127.0.0.1');
    await once(this.#server, 'listening');
    return { host: '127.0.0.1', port: (this.#server.address() as AddressInfo).port };
  }

  get waiting(): number {
    return this.#waiting?.length ?? 0;
  }

  shut(): void {
    this.#waiting = [];
  }

  open(): void {
    const waiting = this.#waiting ?? [];
    this.#waiting = null;
    for (const enter of waiting) enter();
  }

  close(): void {
    this.#server.close();
  }
}

let pair: DatabasePair;
let door: Door;
let running: RunningProxy;
let reaches: Slowly;

beforeAll(async () => {
  pair = await databasePair();
  await makeSides(pair);
  for (const client of [pair.onSource, pair.onDestination]) {
    await client.query(
      `DO $$ BEGIN CREATE ROLE subset_reader; EXCEPTION WHEN duplicate_object THEN NULL; END $$`,
    );
    await client.query('GRANT SELECT ON ALL TABLES IN SCHEMA public TO subset_reader');
  }
  reaches = new Slowly(pair);
  door = new Door(pair.destination);
  running = await startProxy(
    { ...pair, destination: { ...pair.destination, ...(await door.listen()) } },
    { askTimeoutMs: 5000 },
    {
      subsets: { ids: ['a', 'b', 'rest'], reaches },
    },
  );
  running.proxy.setRoute('a', { side: 'destination', epoch: 1 });
});
afterAll(async () => {
  await running[Symbol.asyncDispose]();
  door.close();
  await pair[Symbol.asyncDispose]();
});

const raw = (parameters: Record<string, string> = {}): Promise<RawClient> =>
  RawClient.connect(running.port, running.database, parameters);

/** Of each text: its rows, or its error's SQLSTATE. */
async function say(client: RawClient, ...texts: string[]): Promise<unknown[]> {
  const said: unknown[] = [];
  for (const text of texts) {
    const messages = await client.run([send.query(text)]);
    const error = messages.find(({ type }) => type === 'E');
    said.push(
      error === undefined
        ? messages
            .filter(({ type }) => type === 'D')
            .map(firstColumn)
            .join()
        : errorField(error, 'C'),
    );
  }
  return said;
}

const hold = (drainTimeoutMs: number, onDrainTimeout: 'abort' | 'cancel'): Promise<unknown> =>
  running.proxy.hold('b', 'destination', {
    drainTimeoutMs,
    onDrainTimeout,
    onPinned: 'refuse',
    signal: new AbortController().signal,
  });

test('what a transaction that was moved has set is there on the way back', async () => {
  await using client = await raw();
  expect(
    await say(
      client,
      'SELECT note FROM b1',
      'BEGIN',
      'SET ROLE subset_reader',
      "SET application_name = 'kept'",
      'SELECT note || current_user FROM a1',
      'COMMIT',
      'SELECT note || current_user FROM b1',
      'SHOW application_name',
      'SELECT note || current_user FROM a1',
    ),
  ).toEqual(
    ['source', '', '', '', 'destinationsubset_reader', '', 'sourcesubset_reader', 'kept'].concat(
      'destinationsubset_reader',
    ),
  );
});

test('what was read for a statement that was answered here is not applied to another', async () => {
  const { proxy } = running;
  await using client = await raw();
  expect(await say(client, 'SELECT note FROM b1')).toEqual(['source']);
  await proxy.prepare('b', 'destination', new AbortController().signal);
  reaches.heldBack = 'waits';
  client.write(send.query('SELECT note AS waits FROM a1'));
  await until(() => reaches.waiting.length === 1);
  await hold(20_000, 'abort');
  await client.cancel();
  await client.readies(1);
  expect(
    client
      .take()
      .filter(({ type }) => type === 'E')
      .map((each) => errorField(each, 'C')),
  ).toEqual(['57014']);
  client.write(send.query('SELECT note AS waits FROM b1'));
  proxy.release('b');
  await until(() => reaches.waiting.length === 2);
  reaches.letGo();
  await client.readies(1);
  expect(
    client
      .take()
      .filter(({ type }) => type === 'D')
      .map(firstColumn),
  ).toEqual(['source']);
  proxy.discardWarm('b');
});

test('a pipeline that was refused and then rolled back drops nothing of the next', async () => {
  const { proxy } = running;
  await using client = await raw();
  client.write(send.parse('SELECT a1.note FROM a1, b1'), send.bind(), send.execute(), send.flush());
  await until(() => client.types.endsWith('E'));
  client.take();
  await proxy.prepare('b', 'destination', new AbortController().signal);
  await hold(50, 'cancel');
  proxy.release('b');
  proxy.discardWarm('b');
  await client.run([send.sync()]);
  const messages = await client.run([
    send.parse('SELECT note FROM b1'),
    send.bind(),
    send.execute(),
    send.sync(),
  ]);
  expect(messages.filter(({ type }) => type === 'D').map(firstColumn)).toEqual(['source']);
});

test('a session that is between two sides when what is open is ended is closed, and nothing else is', async () => {
  const { proxy } = running;
  await using client = await raw();
  await using other = await raw();
  expect(await say(client, 'SELECT note FROM b1', 'BEGIN')).toEqual(['source', '']);
  door.shut();
  client.write(send.query('SELECT note FROM a1'));
  await until(() => door.waiting === 1);
  await proxy.prepare('b', 'destination', new AbortController().signal);
  await hold(50, 'cancel');
  await until(() => client.types.includes('E'));
  expect(client.take().flatMap((each) => (each.type === 'E' ? [errorField(each, 'C')] : []))).toEqual([
    '57P01',
  ]);
  proxy.release('b');
  proxy.discardWarm('b');
  door.open();
  expect(await say(other, 'SELECT note FROM a1', 'SELECT note FROM b1')).toEqual(['destination', 'source']);
});

test('a session that could not be routed at once is so as soon as it can be', async () => {
  const { proxy } = running;
  proxy.setRoute('a', { side: 'source', epoch: 2 });
  await using client = await raw();
  await using listener = await raw();
  await say(listener, 'LISTEN heard');
  await say(client, 'BEGIN', 'SELECT note FROM b1');
  proxy.setRoute('a', { side: 'destination', epoch: 3 });
  await proxy.prepare('b', 'destination', new AbortController().signal);
  await expect(hold(50, 'abort')).rejects.toMatchObject({ code: 'drain-timeout' });
  proxy.discardWarm('b');
  client.write(send.query('COMMIT'), send.query('SELECT note FROM a1'));
  await client.readies(2);
  expect(
    client
      .take()
      .filter(({ type }) => type === 'D')
      .map(firstColumn),
  ).toEqual(['destination']);
  // It stays where it hears what it listens to, until it ceases to.
  const refused = await listener.run([send.query('SELECT note FROM a1')]);
  expect(
    refused
      .filter(({ type }) => type === 'E')
      .map((each) => errorField(each, 'M'))
      .join(),
  ).toMatch(/it holds listening heard$/);
  expect(await say(listener, 'SELECT note FROM b1', 'UNLISTEN heard', 'SELECT note FROM a1')).toEqual([
    'source',
    '',
    'destination',
  ]);
});

const run = (text: string, statement = ''): Buffer[] => [
  ...(statement === '' ? [send.parse(text)] : []),
  send.bind([], statement),
  send.execute(),
];

test('a name stands for what the server has taken', async () => {
  await using client = await raw();
  const rows = async (...frames: Buffer[]): Promise<(string | null)[]> =>
    (await client.run([...frames, send.sync()])).filter(({ type }) => type === 'D').map(firstColumn);
  await rows(send.parse('SELECT note FROM b1', 'named'));
  expect(await rows(...run('', 'named'))).toEqual(['source']);
  // The name is taken, so this fails.
  await rows(send.parse('SELECT note FROM a1', 'named'));
  expect(await rows(...run('', 'named'))).toEqual(['source']);
  await rows(send.parse('SELECT note FROM a1', 'other'));
  await rows(send.bind([], 'nowhere'), send.execute(), send.parse('SELECT note FROM r1', 'other'));
  expect(await rows(...run('', 'other'))).toEqual(['destination']);
  await say(client, 'DEALLOCATE named', 'PREPARE named AS SELECT note FROM a1');
  expect(await rows(...run('', 'named'))).toEqual(['destination']);
  // The server has skipped the second of the unnamed ones.
  await rows(send.parse('SELECT note FROM b1'));
  await rows(send.bind([], 'nowhere'), send.parse('SELECT note FROM a1'));
  expect(await rows(send.bind(), send.execute())).toEqual([]);
  // Used at once, before it is known to have been taken.
  client.write(send.parse('SELECT note FROM a1', 'third'), send.flush(), ...run('', 'third'), send.sync());
  await client.readies(1);
  expect(
    client
      .take()
      .filter(({ type }) => type === 'D')
      .map(firstColumn),
  ).toEqual(['destination']);
});

test('what a transaction has set names to mean counts up to its end', async () => {
  await using client = await raw();
  await say(client, 'BEGIN', 'SET LOCAL search_path = moved', 'SELECT note FROM b1');
  expect(await say(client, 'COMMIT; SELECT note FROM b1', 'ROLLBACK', 'SELECT note FROM b1')).toEqual([
    '0A000',
    '',
    'source',
  ]);
  await say(client, 'BEGIN', 'SET LOCAL search_path = moved', 'SELECT note FROM b1');
  const messages = await client.run([...run('ROLLBACK'), ...run('SELECT note FROM b1'), send.sync()]);
  expect(messages.filter(({ type }) => type === 'E').map((each) => errorField(each, 'C'))).toEqual(['0A000']);
  expect(await say(client, 'ROLLBACK', 'BEGIN; COMMIT; SELECT note FROM b1')).toEqual(['', 'source']);
});

test('what can’t be taken to the other side keeps its transaction or pipeline where it is', async () => {
  await using client = await raw();
  const kept = [
    'BEGIN',
    'DECLARE k CURSOR FOR SELECT generate_series(1, 3)',
    'SELECT note FROM a1',
    'ROLLBACK',
  ];
  expect(await say(client, 'SELECT note FROM b1', ...kept)).toEqual(['source', '', '', '0A000', '']);
  const code = async (): Promise<string | undefined> => {
    await client.readies(1);
    const error = client.take().find(({ type }) => type === 'E');
    return error === undefined ? undefined : errorField(error, 'C');
  };
  // A portal.
  await say(client, 'BEGIN');
  await client.run([
    send.parse('SELECT generate_series(1, 3)'),
    send.bind([], '', 'portal'),
    send.execute('portal', 1),
    send.sync(),
  ]);
  client.write(...run('SELECT note FROM a1'), send.sync());
  expect(await code()).toBe('0A000');
  await say(client, 'ROLLBACK');
  // A setting for a pipeline that is no block.
  client.write(...run("SET LOCAL app.tenant = 'of this pipeline'"), send.flush());
  await until(() => client.types.endsWith('C'));
  client.write(...run("SELECT current_setting('app.tenant') FROM a1"), send.sync());
  expect(await code()).toBe('0A000');
  expect(await say(client, 'SELECT note FROM a1')).toEqual(['destination']);
});

test('a replication connection may send no SQL', async () => {
  await using client = await raw({ replication: 'database' });
  const messages = await client.run([send.query('IDENTIFY_SYSTEM')]);
  expect(messages.map(({ type }) => type).join('')).toMatch(/^TDCZ$/);
  client.write(send.query('SELECT note FROM a1'));
  await until(() => client.closed);
  expect(client.take().map(({ type }) => type)).toEqual(['E']);
});
