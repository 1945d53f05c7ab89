/** Clients that others wrote, against the proxy and beside a direct connection. Programs that are absent are skipped. */
import { spawn, spawnSync } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text as readText } from 'node:stream/consumers';
import pg from 'pg';
import postgres from 'postgres';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { SUPERUSER, SUPERUSER_PASSWORD } from '../../src/app/demo/embedded-server.js';
import { databasePair, untilActive, type DatabasePair } from '../support/servers.js';
import { startProxy, type RunningProxy } from './proxy-support.js';

const has = (command: string, ...args: string[]): boolean => spawnSync(command, args).status === 0;
const hasPsql = has('psql', '--version');
const hasPgbench = has('pgbench', '--version');
/** Debian's own; another interpreter may stand in front of it on PATH. */
const PYTHON = ['/usr/bin/python3', 'python3'].find((python) => has(python, '-c', 'import psycopg'));

let pair: DatabasePair;
let running: RunningProxy;
let folder: string;

beforeAll(async () => {
  pair = await databasePair();
  running = await startProxy(pair);
  folder = await mkdtemp(join(tmpdir(), 'understudy-clients-'));
  await pair.onSource.query(`
    SET search_path = public;
    CREATE TYPE mood AS ENUM ('sad', 'happy');
    CREATE TABLE item (id int PRIMARY KEY, name text, mood mood);
    INSERT INTO item SELECT i, 'item ' || i, 'happy' FROM generate_series(1, 1000) i`);
});

afterAll(async () => {
  await running[Symbol.asyncDispose]();
  await pair[Symbol.asyncDispose]();
  await rm(folder, { recursive: true, force: true });
});

interface Outcome {
  readonly code: number | null;
  readonly output: string;
}

/** Runs a program that finds its server by libpq's environment. */
async function run(port: number, command: string, args: readonly string[], input = ''): Promise<Outcome> {
  const child = spawn(command, args, {
    cwd: folder,
    env: {
      ...process.env,
      PGHOST: '127.0.0.1',
      PGPORT: String(port),
      PGUSER: SUPERUSER,
      PGPASSWORD: SUPERUSER_PASSWORD,
      PGDATABASE: running.database,
      PGSSLMODE: 'disable',
      LC_ALL: 'C',
    },
  });
  child.stdin.end(input);
  const closed = new Promise<number | null>((resolve) => child.once('close', resolve));
  const [out, errors, code] = await Promise.all([readText(child.stdout), readText(child.stderr), closed]);
  const said = `${out}\n--\n${errors}`;
  return { code, output: said.replaceAll(/(port|PID) \d+/g, '$1 …') };
}

/** What it says, direct and through the proxy, must be the same. */
async function same(command: string, args: readonly string[], input = ''): Promise<Outcome> {
  const direct = await run(pair.source.port, command, args, input);
  const proxied = await run(running.port, command, args, input);
  expect(proxied).toEqual(direct);
  return proxied;
}

describe.skipIf(!hasPsql)('psql', () => {
  test('queries, errors, notices, variables, several statements', async () => {
    const { output } = await same('psql', ['-X', '-a', '-v', 'x=7'], [
      'SELECT :x AS x;',
      'SELECT 1 \\; SELECT 2;',
      'SELECT nonsense;',
      "DO $$ BEGIN RAISE NOTICE 'to all'; END $$;",
      '\\set FETCH_COUNT 100',
      'SELECT count(*), max(name) FROM item; SELECT id FROM item ORDER BY id;',
      '\\unset FETCH_COUNT',
      'SELECT * FROM item WHERE id < 3 \\gx',
      "SELECT 'SELECT ' || i FROM generate_series(1, 3) i \\gexec",
      "SELECT 5 AS five \\gset",
      '\\echo :five',
      'SELECT id, name, mood FROM item WHERE id = 5 \\gdesc',
      'BEGIN; SAVEPOINT a; SELECT 1/0; ROLLBACK TO a; SELECT 2; COMMIT;',
      '\\set ON_ERROR_ROLLBACK on',
      'BEGIN; SELECT 1/0; SELECT 3; ROLLBACK;',
      '\\d item',
      '\\dT+ mood',
      '\\l template*',
      '\\encoding LATIN1',
      "SELECT U&'caf\\00e9';",
      'LISTEN news; NOTIFY news;',
      '\\errverbose',
    ].join('\n')); // prettier-ignore
    expect(output).toContain('to all');
  });

  test('\\copy in and out, and COPY by pipe', async () => {
    await writeFile(join(folder, 'rows.csv'), '2001,"a ""b""",sad\n2002,,\n');
    await same('psql', ['-X', '-a'], [
      'BEGIN;',
      '\\copy item from rows.csv csv',
      '\\copy (SELECT * FROM item WHERE id > 1999 ORDER BY id) to out.csv csv header',
      '\\copy item from nothing.csv csv',
      'COPY item FROM STDIN;\n3001\tx\tsad\n\\.',
      'COPY item FROM STDIN;\nx\ty\tz\n\\.',
      'ROLLBACK;',
      '\\copy (SELECT * FROM item) to pstdout',
    ].join('\n')); // prettier-ignore
    expect(await readFile(join(folder, 'out.csv'), 'utf8')).toContain('2001,"a ""b""",sad');
  });

  test('\\c, -1 and -c', async () => {
    await same('psql', ['-X', '-q', '-1', '-c', 'SELECT 1', '-c', "SELECT 'two'; SELECT 'three'"]);
    await same('psql', ['-X', '-c', 'SELECT 1/0', '-c', 'SELECT 2']);
    await same(
      'psql',
      ['-X'],
      '\\c\nSELECT 1;\n\\c no_such_database\nSELECT 2;\n'.replaceAll('\\c\n', '\\c -\n'),
    );
  });
});

describe.skipIf(!hasPgbench)('pgbench', () => {
  beforeAll(async () => {
    const { code, output } = await run(running.port, 'pgbench', ['-i', '-q', '-I', 'dtGvp']);
    expect(code, output).toBe(0);
  });

  test.each(['simple', 'extended', 'prepared'])(
    '-M %s, a connection kept and one for each transaction',
    async (mode) => {
      for (const more of [
        ['-t', '60'],
        ['-t', '10', '-C'],
        ['-S', '-t', '150'],
      ]) {
        const args = ['-n', '-M', mode, '-c', '4', '-j', '2', ...more];
        const { code, output } = await run(running.port, 'pgbench', args);
        expect(code, output).toBe(0);
        expect(output).toMatch(/number of transactions actually processed: (240\/240|40\/40|600\/600)/);
        expect(output).not.toMatch(/aborted|[1-9]\d* \(.*failed/);
      }
    },
  );

  test('a pipeline', async () => {
    const lines = [
      '\\startpipeline',
      ...Array.from({ length: 20 }, (_, i) => `SELECT ${i};`),
      '\\endpipeline',
    ];
    await writeFile(join(folder, 'pipeline.sql'), `${lines.join('\n')}\n`);
    for (const mode of ['extended', 'prepared']) {
      const args = ['-n', '-M', mode, '-c', '2', '-j', '2', '-t', '50', '-f', 'pipeline.sql'];
      const { code, output } = await run(running.port, 'pgbench', args);
      expect(code, output).toBe(0);
    }
  });
});

describe.skipIf(PYTHON === undefined)('psycopg', () => {
  const script = `
import psycopg, sys
from psycopg import errors
def show(*args): print(*args)
with psycopg.connect("", autocommit=True) as conn:
    show(conn.info.server_version, conn.info.encoding, conn.info.transaction_status)
    # libpq's pipeline mode: successes, an error, what it aborts, and what follows its Sync.
    with conn.pipeline() as p:
        curs = [conn.execute("SELECT %s::int", [i]) for i in range(300)]
        p.sync()
        show(sum(c.fetchone()[0] for c in curs))
    try:
        with conn.pipeline() as p:
            a = conn.execute("SELECT 1")
            b = conn.execute("SELECT 1/0")
            c = conn.execute("SELECT 2")
            p.sync()
            d = conn.execute("SELECT 3")
            show(a.fetchall())
            b.fetchall()
    except errors.DivisionByZero as e:
        show(type(e).__name__, e.sqlstate)
    show(conn.info.transaction_status, conn.execute("SELECT 'after'").fetchall())
    with conn.pipeline():
        with conn.transaction():
            conn.execute("INSERT INTO item VALUES (5001, 'p', 'sad')")
            conn.execute("DELETE FROM item WHERE id = 5001")
    # prepared by itself, after five times
    for i in range(12):
        show(conn.execute("SELECT name, mood FROM item WHERE id = %s", [i + 1]).fetchone())
    show(conn.execute("SELECT %b::int8, %b::bytea, %b::float8[]", [2**40, b"\\x00\\xff", [1.5]]).fetchone())
    with conn.cursor(binary=True) as cur:
        cur.execute("SELECT 1.5::numeric, now() > now(), '{1,2}'::int[], 'happy'::mood, row(1, 'x')")
        show(cur.fetchone())
        cur.executemany("UPDATE item SET name = name WHERE id = %s", [(i,) for i in range(100)])
        show(cur.rowcount)
    with conn.transaction():
        with conn.cursor(name="server side") as cur:
            cur.itersize = 70
            cur.execute("SELECT id FROM item ORDER BY id")
            show(sum(row[0] for row in cur))
        try:
            with conn.transaction():
                conn.execute("SELECT nonsense")
        except errors.UndefinedColumn as e:
            show(e.diag.message_primary, e.diag.statement_position)
    with conn.cursor() as cur:
        cur.execute("CREATE TEMP TABLE t (a int, b text)")
        with cur.copy("COPY t FROM STDIN") as copy:
            for i in range(2000):
                copy.write_row((i, "v%d" % i))
        with cur.copy("COPY t FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(["int4", "text"])
            for i in range(50):
                copy.write_row((i, None))
        try:
            with cur.copy("COPY t FROM STDIN") as copy:
                copy.write("x\\ty\\n")
        except errors.DataError as e:
            show(type(e).__name__, e.diag.context)
        try:
            with cur.copy("COPY t FROM STDIN") as copy:
                raise KeyError("given up")
        except (KeyError, errors.QueryCanceled) as e:
            show(type(e).__name__, conn.info.transaction_status)
        with cur.copy("COPY (SELECT * FROM t ORDER BY a LIMIT 9) TO STDOUT (FORMAT binary)") as copy:
            copy.set_types(["int4", "text"])
            show(list(copy.rows()))
        total = 0
        with cur.copy("COPY t TO STDOUT") as copy:
            for block in copy: total += len(block)
        show(total)
    conn.add_notice_handler(lambda diag: show("notice", diag.severity, diag.message_primary))
    conn.execute("DO $$ BEGIN RAISE WARNING 'careful'; END $$")
    conn.execute("LISTEN news")
    conn.add_notify_handler(lambda note: show(note.channel, note.payload))
    conn.execute("NOTIFY news, 'hello'")
    conn.execute("SELECT 'heard'")
    conn.cancel()
    show(conn.execute("SELECT 'still here'").fetchone())
`;

  test('pipeline mode, prepared statements, server-side cursors, COPY, notifications, cancel', async () => {
    // What psycopg warns of while it closes a failed pipeline depends on how much of the answer had come.
    const quiet = `import logging; logging.disable(logging.CRITICAL)${script}`;
    const { code, output } = await same(PYTHON ?? '', ['-c', quiet]);
    expect(code, output).toBe(0);
    expect(output).toContain('DivisionByZero 22012');
  });
});

test('pg: many queries in flight, some failing; types; a pool', async () => {
  const client = new pg.Client(running.url);
  await client.connect();
  const answers = await Promise.all(
    Array.from({ length: 200 }, (_, index) =>
      client
        .query(index % 10 === 3 ? 'SELECT 1/0' : 'SELECT $1::int AS n', index % 10 === 3 ? [] : [index])
        .then(({ rows }) => (rows as { n: number }[])[0]?.n)
        .catch((error: pg.DatabaseError) => error.code),
    ),
  );
  expect(answers).toEqual(Array.from({ length: 200 }, (_, index) => (index % 10 === 3 ? '22012' : index)));
  const types = await client.query({
    text: "SELECT 1::int8 AS a, 1.5::numeric AS b, now() AS c, '{1,2}'::int[] AS d, '{\"x\":1}'::jsonb AS e, '\\x01'::bytea AS f",
  });
  expect(types.rows[0]).toMatchObject({ a: '1', b: '1.5', d: [1, 2], e: { x: 1 }, f: Buffer.from([1]) });
  await client.end();
  const pool = new pg.Pool({ connectionString: running.url, max: 5 });
  const sums = await Promise.all(
    Array.from({ length: 60 }, async (_, index) => {
      const { rows: [row] } = await pool.query<{ n: string }>('SELECT sum(id) AS n FROM item WHERE id <= $1', [index]); // prettier-ignore
      return Number(row?.n ?? 0);
    }),
  );
  expect(sums).toEqual(Array.from({ length: 60 }, (_, index) => (index * (index + 1)) / 2));
  await pool.end();
});

test('postgres.js: types fetched at the start, pipelined transactions, savepoints, listen, large parameters, cancel', async () => {
  const sql = postgres(running.url, { max: 4, onnotice: () => undefined });
  const moods = await sql<{ mood: string; all: string[] }[]>`
    SELECT mood, ARRAY['sad', 'happy']::mood[] AS all FROM item WHERE id = 1`;
  expect(moods[0]).toEqual({ mood: 'happy', all: ['sad', 'happy'] });
  const heard: string[] = [];
  const listening = await sql.listen('news', (payload) => heard.push(payload));
  await sql.notify('news', 'first');
  await sql.begin(async (tx) => {
    await tx.savepoint(async (inner) => {
      await inner`SELECT 1/0`;
    }).catch(() => undefined); // prettier-ignore
    const big = 'v'.repeat(1_000_000);
    const [row] = await tx<{ n: number }[]>`SELECT length(${big}) AS n`;
    expect(row?.n).toBe(1_000_000);
    await Promise.all(Array.from({ length: 50 }, (_, index) => tx`SELECT ${index}::int`));
  });
  await expect(sql`SELECT nonsense`).rejects.toMatchObject({ code: '42703' });
  await expect.poll(() => heard).toEqual(['first']);
  await listening.unlisten();
  const slow = sql`SELECT pg_sleep(30)`;
  const cancelled = expect(slow).rejects.toMatchObject({ code: '57014' });
  await untilActive(pair.onSource, 'pg_sleep(30)');
  slow.cancel();
  await cancelled;
  await sql.end();
});
