/** What clients did through a sidecar is done again on another database, and leaves the same rows. */
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { fileURLToPath } from 'node:url';
import pg from 'pg';
import { from as copyFrom } from 'pg-copy-streams';
import postgres from 'postgres';
import { UnderstudyProcess } from '../../../src/app/demo/understudy-process.js';
import { expect, test } from 'vitest';
import { databasePair, until, type DatabasePair } from '../../support/servers.js';
import { newRecorder, record, replay, scan, temporaryFolder, urlOf } from './support.js';

const SCHEMA = `
  CREATE TABLE account (id int PRIMARY KEY, owner text, balance int NOT NULL);
  CREATE TABLE entry (id bigserial PRIMARY KEY, account int, amount int, note text);
  CREATE TABLE bulk (id int PRIMARY KEY, payload text);
  INSERT INTO account SELECT n, 'owner ' || n, 100 FROM generate_series(1, 50) n;`;

async function withClient(url: string, work: (client: pg.Client) => Promise<void>): Promise<void> {
  const client = new pg.Client({ connectionString: url, application_name: 'replayed' });
  client.on('error', () => undefined);
  await client.connect();
  try {
    await work(client);
  } finally {
    await client.end().catch(() => undefined);
  }
}

/** Each session writes rows of its own, so that the result does not hang on the order between sessions. */
async function workload(url: string): Promise<void> {
  await Promise.all([
    withClient(url, simple),
    withClient(url, extended),
    withClient(url, bulk),
    withClient(url, abandoned),
    pipelined(url),
  ]);
}

async function simple(client: pg.Client): Promise<void> {
  await client.query('BEGIN; UPDATE account SET balance = balance - 10 WHERE id = 1; COMMIT');
  await client.query('BEGIN');
  await client.query("INSERT INTO account VALUES (101, 'new', 1)");
  await client.query('COMMIT');
  await expect(client.query("INSERT INTO account VALUES (101, 'again', 1)")).rejects.toMatchObject({
    code: '23505',
  });
  await client.query('SELECT * FROM account WHERE id <= 10');
  await client.query(`SET application_name = 'other'; SELECT 1`);
  // Where clients share connections, this one has its own from here on.
  await client.query('CREATE TEMPORARY TABLE basket (id int)');
  await client.query('INSERT INTO basket VALUES (1), (2)');
}

async function extended(client: pg.Client): Promise<void> {
  for (let id = 2; id < 12; id++) {
    await client.query('BEGIN');
    await client.query({
      name: 'take',
      text: 'UPDATE account SET balance = balance - $1 WHERE id = $2',
      values: [id, id],
    });
    await client.query('INSERT INTO account (id, owner, balance) VALUES ($1, $2, $3)', [
      200 + id,
      "it's ö",
      id,
    ]);
    await client.query(id % 3 === 0 ? 'ROLLBACK' : 'COMMIT');
  }
  await expect(client.query('SELECT $1::int / 0', [1])).rejects.toMatchObject({ code: '22012' });
}

async function bulk(client: pg.Client): Promise<void> {
  const rows = Array.from({ length: 5_000 }, (_, id) => `${id}\t${'x'.repeat(40)} ${id}\n`);
  const sink = client.query(copyFrom('COPY bulk FROM STDIN'));
  await pipeline(Readable.from([rows.join('')]), sink);
  const again = client.query(copyFrom('COPY bulk FROM STDIN'));
  await expect(pipeline(Readable.from(['1\tduplicate\n']), again)).rejects.toMatchObject({ code: '23505' });
  await client.query('DELETE FROM bulk WHERE id % 2 = 0');
}

/** Its transaction never ends: the connection is lost in the middle. */
async function abandoned(client: pg.Client): Promise<void> {
  await client.query('BEGIN');
  await client.query("UPDATE account SET owner = 'nobody' WHERE id = 40");
  (client as unknown as { connection: { stream: { destroy(): void } } }).connection.stream.destroy();
}

async function pipelined(url: string): Promise<void> {
  // Its question for types would see the other session's temporary table, or not.
  const sql = postgres(url, { max: 1, fetch_types: false, onnotice: () => undefined });
  await Promise.all(
    Array.from({ length: 60 }, (_, at) => sql`INSERT INTO account VALUES (${300 + at}, ${`p${at}`}, ${at})`),
  );
  await sql.begin(async (transaction) => {
    await transaction`UPDATE account SET balance = 0 WHERE id >= 300`;
  });
  // Sent ahead of the answer to what gives the client a connection of its own.
  await Promise.all([
    sql`LISTEN news`,
    ...Array.from({ length: 8 }, (_, at) => sql`INSERT INTO account VALUES (${400 + at}, 'late', ${at})`),
  ]);
  await sql.end();
}

async function contents(client: pg.Client): Promise<unknown> {
  const of = async (query: string): Promise<unknown> => (await client.query(query)).rows;
  return {
    account: await of('SELECT * FROM account ORDER BY id'),
    bulk: await of('SELECT count(*), sum(id), md5(string_agg(payload, $$,$$ ORDER BY id)) FROM bulk'),
  };
}

/** Records into `file` what the workload does through a process of its own, as a user starts it. */
async function recordByWorkers(pair: DatabasePair, folder: string, file: string): Promise<void> {
  await using running = await UnderstudyProcess.start({
    folder,
    sourceUrl: urlOf(pair.source),
    destinationUrl: urlOf(pair.destination),
    config: { shadow: { enabled: false }, proxy: { workers: 2, poolMode: 'transaction' } },
    program: fileURLToPath(new URL('../../../dist/app/main.js', import.meta.url)),
    args: ['--record', file],
  });
  await workload(urlOf(pair.source, running.port));
  await running.stop();
  expect(await running.logTail()).toMatch(/recorded [\d.]+ MB: 5 sessions$/);
}

for (const [mode, speed] of [
  ['session', 'max'],
  ['session', 50],
  ['transaction', 'max'],
  ['pipelined', 'max'],
  ['workers', 'max'],
] as const) {
  test(`sessions of all kinds, in mode ${mode}, replayed at speed ${speed}, leave the same rows and the same results`, async () => {
    await using source = await databasePair();
    await using copy = await databasePair();
    await using folder = await temporaryFolder();
    for (const client of [source.onSource, copy.onSource]) {
      await client.query('SET search_path = public');
      await client.query(SCHEMA);
    }
    const file = join(folder.path, 'day.rec');
    if (mode === 'workers') await recordByWorkers(source, folder.path, file);
    else await record(source, await newRecorder(file), workload, { poolMode: mode });
    expect((await stat(file)).mode & 0o777).toBe(0o600);

    const scanned = await scan(file);
    expect(scanned).toMatchObject({ incompleteSessions: 0, tornBytes: 0, ended: true });
    expect(scanned.sessions.size).toBe(5);
    const report = await replay(file, copy.source, { speed });
    expect(report.failures).toEqual([]);
    expect(report.comparison.first).toEqual([]);
    expect(report.comparison).toMatchObject({
      statements: scanned.statements,
      differing: { rows: 0, 'failed-now': 0, 'succeeded-now': 0, 'other-error': 0 },
      onlyRecorded: 0,
      onlyReplayed: 0,
    });
    expect(scanned.errors).toBe(3);
    expect(report.comparison.kinds.find(({ kind }) => kind === 'copy')?.statements).toBe(2);
    // The abandoned transaction's rollback comes with the end of its connection.
    await until(
      async () =>
        JSON.stringify(await contents(copy.onSource)) === JSON.stringify(await contents(source.onSource)),
      {
        what: 'the same rows',
      },
    );
  });
}

test('nothing of a handshake is recorded: neither password nor proof', async () => {
  await using pair = await databasePair();
  await using folder = await temporaryFolder();
  const file = join(folder.path, 'secret.rec');
  await record(pair, await newRecorder(file), (url) =>
    withClient(url, async (client) => {
      await client.query("SELECT 'a value that is recorded'");
    }),
  );
  const bytes = await import('node:fs/promises').then(({ readFile }) => readFile(file));
  expect(bytes.includes('a value that is recorded')).toBe(true);
  expect(bytes.includes(pair.source.password ?? '?')).toBe(false);
  expect(bytes.includes('SCRAM')).toBe(false);
});

test('a difference is told: other row counts, errors that were none, and the other way round', async () => {
  await using source = await databasePair();
  await using copy = await databasePair();
  await using folder = await temporaryFolder();
  for (const client of [source.onSource, copy.onSource]) {
    await client.query('SET search_path = public');
    await client.query(SCHEMA);
  }
  await copy.onSource.query(
    'DELETE FROM account WHERE id > 40; INSERT INTO account VALUES (500, $$there$$, 0)',
  );
  const file = join(folder.path, 'other.rec');
  await record(source, await newRecorder(file), (url) =>
    withClient(url, async (client) => {
      await client.query('SELECT * FROM account');
      await client.query('INSERT INTO account VALUES (500, $1, 0)', ['secret value']);
      await client.query('SELECT * FROM missing').catch(() => undefined);
      await client.query('SELECT 1');
    }),
  );
  await copy.onSource.query('CREATE TABLE missing ()');
  const { comparison } = await replay(file, copy.source);
  expect(comparison.differing).toEqual({ rows: 1, 'failed-now': 1, 'succeeded-now': 1, 'other-error': 0 });
  expect(comparison.first).toMatchObject([
    { difference: 'rows', recorded: { rows: 50 }, replayed: { rows: 41 } },
    { difference: 'failed-now', recorded: { errorClass: null }, replayed: { errorClass: '23' } },
    { difference: 'succeeded-now', recorded: { errorClass: '42' }, replayed: { errorClass: null } },
  ]);
  expect(JSON.stringify(comparison)).not.toContain('secret value');
});

test('fewer connections than sessions: they take turns', async () => {
  await using pair = await databasePair();
  await using folder = await temporaryFolder();
  const file = join(folder.path, 'many.rec');
  await record(pair, await newRecorder(file), async (url) => {
    await Promise.all(
      Array.from({ length: 6 }, () =>
        withClient(url, async (client) => void (await client.query('SELECT 1'))),
      ),
    );
  });
  const report = await replay(file, pair.source, { sessionsMax: 2 });
  expect(report.sessions).toMatchObject({ replayed: 6, failed: 0 });
});

test('a server that refuses is told session by session', async () => {
  await using pair = await databasePair();
  await using folder = await temporaryFolder();
  const file = join(folder.path, 'refused.rec');
  await record(pair, await newRecorder(file), (url) =>
    withClient(url, async (client) => void (await client.query('SELECT 1'))),
  );
  const report = await replay(file, { ...pair.source, password: 'wrong' });
  expect(report.sessions).toMatchObject({ replayed: 0, failed: 1 });
  expect(report.failures[0]?.error.code).toBe('backend-refused');
  expect(report.comparison.onlyRecorded).toBe(1);
});

test('a statement whose client leaves between its error and what follows is recorded with its outcome', async () => {
  await using pair = await databasePair();
  await using folder = await temporaryFolder();
  for (const poolMode of ['session', 'transaction'] as const) {
    const file = join(folder.path, `${poolMode}.rec`);
    await record(pair, await newRecorder(file), (url) => withClient(url, failAndLeave), { poolMode });
    expect(await scan(file), poolMode).toMatchObject({ statements: 1, errors: 1, incompleteSessions: 0 });
  }
});

/** Asks for no ReadyForQuery, so that none can come before the end of the connection. */
async function failAndLeave(client: pg.Client): Promise<void> {
  const { connection } = client as unknown as {
    connection: NodeJS.EventEmitter & {
      parse(message: { text: string; name: string; types: readonly number[] }): void;
      bind(message: { portal: string; statement: string; values: readonly unknown[] }): void;
      execute(message: { portal: string; rows: number }): void;
      flush(): void;
    };
  };
  client.on('error', () => undefined);
  const failed = new Promise((resolve) => connection.once('errorMessage', resolve));
  connection.parse({ text: 'SELECT 1 / 0', name: '', types: [] });
  connection.bind({ portal: '', statement: '', values: [] });
  connection.execute({ portal: '', rows: 0 });
  connection.flush();
  await failed;
}
