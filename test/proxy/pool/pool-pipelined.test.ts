import { describe, expect, test } from 'vitest';
import { SUPERUSER } from '../../../src/app/demo/embedded-server.js';
import { until } from '../../support/servers.js';
import { RawClient, errorField, frame, send, sqlStates, type Message } from '../proxy-support.js';
import { batch, pipelinedStage, rowsOf } from './pool-stage.js';

const stage = pipelinedStage();
const { raw, pool, shared } = stage;

describe('harmless reads share', () => {
  test('a connection among many clients, each getting its own answers, byte for byte', async () => {
    const clients = await Promise.all(Array.from({ length: 16 }, raw));
    const rounds = 20;
    await stage.timed('SELECT name FROM item WHERE id = 1');
    await clients[0]?.run(batch('SELECT name FROM item WHERE id = $1', '1'));
    const count = await stage.sharedBy(() =>
      Promise.all(
        clients.map(async (client, index) => {
          for (let round = 0; round < rounds; round++) {
            const id = index * 20 + round + 1;
            const messages = await client.run(batch('SELECT name FROM item WHERE id = $1', String(id)));
            expect(messages.map(({ type }) => type).join('')).toBe('12TDCZ');
            expect(rowsOf(messages)).toEqual([`item ${id}`]);
            expect(await client.column(`SELECT name FROM item WHERE id = ${id}`)).toEqual([`item ${id}`]);
          }
        }),
      ),
    );
    expect(count).toBe(16 * rounds * 2);
    expect(pool().active).toBe(0);
    await Promise.all(clients.map((client) => client[Symbol.asyncDispose]()));
  });

  test('prepared statements go by their names, whoever prepared them first', async () => {
    const clients = await Promise.all(Array.from({ length: 4 }, raw));
    await Promise.all(
      clients.map((client, index) =>
        client.run([send.parse(`SELECT $1::int + ${index % 2}`, 'plus'), send.sync()]),
      ),
    );
    for (const client of clients.slice(0, 2))
      await client.run([send.bind(['5'], 'plus'), send.execute(), send.sync()]);
    const forms = [
      [send.bind(['5'], 'plus'), send.execute()],
      [send.bind(['5'], 'plus'), send.describe('P'), send.execute()],
      [send.describe('S', 'plus'), send.bind(['5'], 'plus'), send.execute()],
    ];
    const types = ['2DCZ', '2TDCZ', 'tT2DCZ'];
    const count = await stage.sharedBy(async () => {
      for (const [form, frames] of forms.entries()) {
        await Promise.all(
          clients.map(async (client, index) => {
            const messages = await client.run([...frames, send.sync()]);
            expect(messages.map(({ type }) => type).join('')).toBe(types[form]);
            expect(rowsOf(messages)).toEqual([String(5 + (index % 2))]);
          }),
        );
      }
    });
    expect(count).toBe(12);
    await Promise.all(clients.map((client) => client[Symbol.asyncDispose]()));
  });

  test('a pipeline of reads and writes is answered in order', async () => {
    await using client = await raw();
    const frames: Buffer[] = [];
    for (let n = 1; n <= 20; n++) {
      frames.push(...batch('SELECT name FROM item WHERE id = $1', String(n)));
      if (n % 5 === 0) frames.push(send.query(`UPDATE item SET name = name WHERE id = ${n} RETURNING id`));
    }
    const messages = await client.run(frames, 24);
    const expected: string[] = [];
    for (let n = 1; n <= 20; n++) {
      expected.push(`item ${n}`);
      if (n % 5 === 0) expected.push(String(n));
    }
    expect(rowsOf(messages)).toEqual(expected);
  });

  test('a batch that comes byte by byte is answered all the same', async () => {
    await using client = await raw();
    const bytes = Buffer.concat(batch('SELECT $1::text', 'slow'));
    for (const byte of bytes) {
      client.socket.write(Buffer.from([byte]));
      await new Promise((resolve) => setImmediate(resolve));
    }
    await client.readies(1);
    expect(rowsOf(client.take())).toEqual(['slow']);
  });

  test('an error is its own client’s alone', async () => {
    const clients = await Promise.all(Array.from({ length: 6 }, raw));
    await Promise.all(
      clients.map(async (client, index) => {
        for (let round = 0; round < 20; round++) {
          const messages = await client.run(batch('SELECT 10 / $1::int', index === 0 ? '0' : '5'));
          if (index === 0) expect(sqlStates(messages)).toEqual(['22012']);
          else expect(rowsOf(messages)).toEqual(['2']);
        }
      }),
    );
    await Promise.all(clients.map((client) => client[Symbol.asyncDispose]()));
  });

  test('a large answer comes whole', async () => {
    await using client = await raw();
    const messages = await client.run(
      batch("SELECT lpad('', 3000, 'x') || n FROM generate_series(1, 500) n"),
    );
    expect(rowsOf(messages)).toHaveLength(500);
    expect(rowsOf(messages).at(-1)).toMatch(/x500$/);
  });

  test('types of the database’s own that come in binary are noted, shared or not', async () => {
    const sql = "SELECT ARRAY['sad'::public.mood] FROM item WHERE id = 1";
    const BINARY = Buffer.from('\0\0\0\0\0\0\0\x01\0\x01', 'latin1');
    const used = (): number => stage.running.proxy.status().binaryTypes.source.length;
    await stage.timed(sql);
    await using client = await raw();
    const inBinary = [send.parse(sql), frame('B', BINARY), send.describe('P'), send.execute(), send.sync()];
    expect(await stage.sharedBy(() => client.run(batch(sql)))).toBe(1);
    expect(used()).toBe(0);
    expect(await stage.sharedBy(() => client.run(inBinary))).toBe(1);
    expect(used()).toBe(1);

    await using alone = await raw();
    await alone.column("SET application_name = 'has set something'");
    await alone.run([
      send.parse('SELECT $1::public.mood', 'named'),
      send.describe('S', 'named'),
      send.sync(),
    ]);
    expect(used()).toBe(1);
    expect(await stage.sharedBy(() => alone.run(inBinary))).toBe(0);
    expect(used()).toBe(2);
  });

  test('the tap sees them', async () => {
    await using client = await raw();
    stage.tap.offered.length = 0;
    await client.run(batch('SELECT name FROM item WHERE id < $1::int', '4'));
    await client.run([send.query('SELECT 1/0')]);
    await until(() => stage.tap.offered.length === 2);
    expect(stage.tap.offered).toMatchObject([
      { text: 'SELECT name FROM item WHERE id < $1::int', rows: 3, failed: false, status: 0x49 },
      { text: 'SELECT 1/0', failed: true },
    ]);
  });
});

test('a name of the database may have a mode of its own', async () => {
  const { database } = stage.running;
  await stage.start(
    { poolModes: { whole: 'session', each: 'transaction' } },
    { databases: { whole: database, each: database } },
  );
  const modes = (): string[] =>
    stage.running.proxy.status().pools.map(({ mode, clients }) => `${mode} ${clients}`);
  await using whole = await RawClient.connect(stage.running.port, 'whole');
  const pids = new Set<string | null>();
  for (let round = 0; round < 3; round++)
    for (const pid of await whole.column('SELECT pg_backend_pid()')) pids.add(pid);
  expect(pids.size).toBe(1);
  expect(modes()).toEqual(['pipelined 0']);
  await using each = await RawClient.connect(stage.running.port, 'each');
  const before = shared().statements;
  expect(await each.column('SELECT 5 AS five')).toEqual(['5']);
  expect(shared().statements).toBe(before);
  await using both = await raw();
  expect(await both.column('SELECT current_database()')).toEqual([database]);
  expect(new Set(modes())).toEqual(new Set(['pipelined 1', 'transaction 1']));
});

describe('everything else has a connection of its own', () => {
  test.each([
    "SELECT nextval('public.seq')",
    'SELECT * FROM counting',
    'SELECT * FROM guarded',
    'SELECT bump()',
    'SELECT i.label FROM item i WHERE id = 1',
    'SELECT pg_sleep(0)',
    'SELECT pg_backend_pid()',
    "SELECT set_config('work_mem', '1MB', true)",
    'SELECT * FROM item WHERE id = 1 FOR UPDATE',
    'SHOW transaction_read_only',
    "SELECT setting FROM pg_settings WHERE name = 'work_mem'",
    'SELECT random()',
    'UPDATE item SET name = name WHERE id = 1',
    'SELECT 1; SELECT 2',
  ])('%s', async (sql) => {
    await using client = await raw();
    const count = await stage.sharedBy(async () => {
      await client.run([send.query(sql)]);
    });
    expect(count).toBe(0);
    if (sql.startsWith('SHOW')) expect(await client.column(sql)).toEqual(['off']);
  });

  test('plain views do share', async () => {
    await using client = await raw();
    expect(await stage.sharedBy(() => client.column('SELECT name FROM plain WHERE id = 7'))).toBe(1);
  });

  test('a client that has set something, or is in a transaction, does not', async () => {
    await using client = await raw();
    await client.run([send.query("SET TimeZone = 'Asia/Tokyo'")]);
    expect(await stage.sharedBy(() => client.column('SELECT now()'))).toBe(0);
    await client.run([send.query('RESET ALL')]);
    expect(await stage.sharedBy(() => client.column('SELECT now()'))).toBe(1);
    await client.run([send.query('BEGIN')]);
    expect(await stage.sharedBy(() => client.column('SELECT now()'))).toBe(0);
    await client.run([send.query('COMMIT')]);
  });

  test('a view made harmful later does not, whoever made it so', async () => {
    await using client = await raw();
    await client.run([send.query('CREATE VIEW shifting AS SELECT 1 AS n')]);
    await until(async () => (await stage.sharedBy(() => client.column('SELECT n FROM shifting'))) === 1);
    await client.run([
      send.query("CREATE OR REPLACE VIEW shifting AS SELECT nextval('public.seq')::int AS n"),
    ]);
    for (let round = 0; round < 5; round++) {
      expect(await stage.sharedBy(() => client.column('SELECT n FROM shifting'))).toBe(0);
    }
    await stage.sharing(client);
    expect(await stage.sharedBy(() => client.column('SELECT n FROM shifting'))).toBe(0);
    await client.run([send.query('DROP VIEW shifting')]);
  });

  test('a function that hides a builtin stops the reads that name it, for as long as it stands', async () => {
    await using client = await raw();
    const ran = (sql: string): Promise<number> => stage.sharedBy(() => client.run(batch(sql)));
    for (let round = 0; round < 3; round++) expect(await ran("SELECT upper('a')")).toBe(1);
    await client.run([
      send.query("CREATE FUNCTION public.upper(int) RETURNS int LANGUAGE sql STABLE AS 'SELECT $1'"),
    ]);
    await stage.sharing(client);
    expect(await ran("SELECT upper('a')")).toBe(0);
    await client.run([send.query('DROP FUNCTION public.upper(int)')]);
    await stage.sharing(client);
    expect(await ran("SELECT upper('a')")).toBe(1);
  });

  test('what was misjudged and writes is refused there, and run once on a connection of its own', async () => {
    await stage.start({ sharedCatalogIntervalMs: 3_600_000 });
    await using client = await raw();
    await client.run([send.parse('SELECT n FROM sly', 'later'), send.sync()]);
    // Behind the proxy’s back, after the catalogs were read: this is what the read-only connection is for.
    await stage.pair.onSource.query('CREATE VIEW public.sly AS SELECT public.bump() AS n');
    const [before] = (await stage.pair.onSource.query<{ n: string }>('SELECT n FROM public.counted')).rows;
    const expected = Number(before?.n) + 1;
    const messages = await client.run(batch('SELECT n FROM sly'));
    expect(messages.map(({ type }) => type).join('')).toBe('12TDCZ');
    expect(rowsOf(messages)).toEqual([String(expected)]);
    expect(shared().refused).toBe(1);
    expect(await stage.sharedBy(() => client.run(batch('SELECT n FROM sly')))).toBe(0);
    expect((await stage.pair.onSource.query('SELECT n FROM public.counted')).rows).toEqual([
      { n: String(expected + 1) },
    ]);
    await stage.pair.onSource.query('DROP VIEW public.sly');
  });

  test('a refused read takes what was sent behind it along, in order', async () => {
    await stage.start({ sharedCatalogIntervalMs: 3_600_000 });
    await using client = await raw();
    await stage.pair.onSource.query('CREATE VIEW public.sly2 AS SELECT public.bump() AS n');
    const messages = await client.run(
      [...batch('SELECT 1::int'), ...batch('SELECT n * 0 + 2 FROM sly2'), ...batch('SELECT 3::int')],
      3,
    );
    expect(rowsOf(messages)).toEqual(['1', '2', '3']);
    expect(shared().refused).toBe(1);
    await stage.pair.onSource.query('DROP VIEW public.sly2');
  });
});

describe('a text that comes again and again', () => {
  const TEXT = 'SELECT name, $1::int AS n FROM item WHERE id = $1';
  const again = (client: RawClient, value = '7'): Promise<Message[]> => client.run(batch(TEXT, value));
  /** Names the pool has given on the server, of connections in use by it. */
  const parsed = async (): Promise<number> => {
    const { rows } = await stage.pair.onSource.query<{ n: string }>(
      `SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database() AND query = '${TEXT}'`,
    );
    return Number(rows[0]?.n);
  };

  test('is parsed once, and nobody can tell', async () => {
    await using client = await raw();
    await using other = await raw();
    const first = await again(client);
    expect(first.map(({ type }) => type).join('')).toBe('12TDCZ');
    for (let round = 0; round < 8; round++) expect(await again(other)).toEqual(first);
    const pipeline = await client.run([...batch(TEXT, '7'), ...batch(TEXT, 'x'), ...batch(TEXT, '7')], 3);
    expect(pipeline.map(({ type }) => type).join('')).toBe('12TDCZ1EZ12TDCZ');
    expect(sqlStates(pipeline)).toEqual(['22P02']);
    expect(await parsed()).toBeGreaterThan(0);
  });

  test('its errors are those of a statement without a name', async () => {
    await using client = await raw();
    await using direct = await RawClient.direct(stage.pair.source);
    for (let round = 0; round < 3; round++) {
      for (const frames of [
        [send.parse(TEXT), send.bind(['x']), send.execute(), send.sync()],
        [send.parse(TEXT), send.bind(['1', '2']), send.execute(), send.sync()],
        [send.parse('SELECT 1 / $1::int'), send.bind(['0']), send.execute(), send.sync()],
        [send.parse('SELECT missing FROM item WHERE id = $1'), send.bind(['1']), send.execute(), send.sync()],
      ]) {
        expect(await client.run(frames)).toEqual(await direct.run(frames));
      }
    }
  });

  test('follows what happens to its tables, as one parsed anew', async () => {
    await stage.start({ sharedCatalogIntervalMs: 20 });
    await using client = await raw();
    await using other = await raw();
    await stage.pair.onSource.query('CREATE TABLE public.changing AS SELECT 1 AS a');
    const sql = 'SELECT * FROM changing WHERE a = $1';
    const types = async (): Promise<string> =>
      (await other.run(batch(sql, '1'))).map(({ type }) => type).join('');
    for (let round = 0; round < 4; round++) expect(await types()).toBe('12TDCZ');
    // Behind the proxy’s back: the plan is stale from here on, which a client that parses each time never hears of.
    await stage.pair.onSource.query('ALTER TABLE public.changing ADD COLUMN b int');
    for (let round = 0; round < 4; round++) expect(await types()).toBe('12TDCZ');
    await stage.pair.onSource.query('DROP TABLE public.changing');
    const [error] = await other.run(batch(sql, '1'));
    expect(error?.type).toBe('E');
    expect(errorField(error as Message, 'C')).toBe('42P01');
    expect(errorField(error as Message, 'P')).toBe('15');
    await client.run([send.query('CREATE TABLE public.changing AS SELECT 1 AS a, 2 AS b')]);
    expect(await types()).toBe('12TDCZ');
    await client.run([send.query('DROP TABLE public.changing')]);
  });

  test('means another table once one hides the first', async () => {
    await using client = await raw();
    await client.run([
      send.query(
        `ALTER ROLE ${SUPERUSER} IN DATABASE ${stage.running.database} SET search_path = early, public`,
      ),
    ]);
    await client.run([send.query('CREATE SCHEMA early; CREATE TABLE public.masked AS SELECT 1 AS n')]);
    await stage.start();
    await using late = await raw();
    const sql = 'SELECT n FROM masked WHERE n > $1';
    for (let round = 0; round < 4; round++) expect(rowsOf(await late.run(batch(sql, '0')))).toEqual(['1']);
    await late.run([send.query('CREATE TABLE early.masked AS SELECT 2 AS n')]);
    await stage.sharing(late);
    for (let round = 0; round < 4; round++) expect(rowsOf(await late.run(batch(sql, '0')))).toEqual(['2']);
    await late.run([send.query('DROP SCHEMA early CASCADE')]);
    await late.run([
      send.query(`ALTER ROLE ${SUPERUSER} IN DATABASE ${stage.running.database} RESET search_path`),
    ]);
  });
});
