import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { SUPERUSER } from '../../../src/app/demo/embedded-server.js';
import type { ProxySettings } from '../../../src/proxy/settings.js';
import type { CatalogFacts } from '../../../src/proxy/pool/catalog-facts.js';
import { Decision } from '../../../src/proxy/pool/decisions.js';
import { shapeOfRead } from '../../../src/proxy/pool/sql-shape.js';
import { POOL_DEFAULTS, type PoolSettings, type PoolStatus } from '../../../src/proxy/pool/pool-settings.js';
import { databasePair, until, type DatabasePair } from '../../support/servers.js';
import {
  RawClient,
  errorField,
  firstColumn,
  frame,
  recordingTap,
  send,
  sqlStates,
  startProxy,
  tags,
  type Message,
  type RunningProxy,
} from '../proxy-support.js';

let pair: DatabasePair;
let running: RunningProxy;
let tap: ReturnType<typeof recordingTap>;

beforeAll(async () => {
  pair = await databasePair();
  await pair.onSource.query(`
    CREATE TABLE public.item (id int PRIMARY KEY, name text);
    INSERT INTO public.item SELECT n, 'item ' || n FROM generate_series(1, 1000) n;
    CREATE TABLE public.counted (n int);
    INSERT INTO public.counted VALUES (0);
    CREATE SEQUENCE public.seq;
    CREATE TYPE public.mood AS ENUM ('sad');
    CREATE VIEW public.plain AS SELECT id, lower(name) AS name FROM public.item;
    CREATE VIEW public.counting AS SELECT nextval('public.seq') AS n;
    CREATE TABLE public.guarded (id int, owner text);
    ALTER TABLE public.guarded ENABLE ROW LEVEL SECURITY;
    CREATE FUNCTION public.bump() RETURNS int LANGUAGE sql VOLATILE
      AS 'UPDATE public.counted SET n = n + 1 RETURNING n';
    CREATE POLICY p ON public.guarded USING (public.bump() > 0);
    CREATE FUNCTION public.label(i public.item) RETURNS text LANGUAGE sql STABLE AS 'SELECT ''x''';
  `);
});

afterAll(async () => {
  await pair[Symbol.asyncDispose]();
});

async function start(over: Partial<PoolSettings> = {}, settings: Partial<ProxySettings> = {}): Promise<void> {
  await running?.[Symbol.asyncDispose]();
  tap = recordingTap();
  const pool = {
    ...POOL_DEFAULTS,
    poolMode: 'pipelined',
    poolSizeMax: 3,
    sharedConnections: 1,
    // So that a busy machine is not taken for a slow statement.
    sharedReadBoundMs: 20_000,
    ...over,
  } as const;
  running = await startProxy(pair, { pool, ...settings }, { tap });
  await using first = await raw();
  await sharing(first);
}

/** Until reads are shared. */
async function sharing(client: RawClient): Promise<void> {
  await until(async () => {
    const before = shared().statements;
    await client.column('SELECT 1 AS ready');
    return shared().statements > before;
  });
}

beforeEach(async () => {
  await start();
});

afterEach(async () => {
  await running[Symbol.asyncDispose]();
});

const raw = (): Promise<RawClient> => RawClient.connect(running.port, running.database);
const pool = (): PoolStatus => {
  const only = running.proxy.status().pools.find(({ mode }) => mode === 'pipelined');
  if (only === undefined) throw new Error('there is no pool');
  return only;
};
const shared = (): PoolStatus['shared'] => pool().shared;
/** How many of what `work` ran were shared. */
async function sharedBy(work: () => Promise<unknown>): Promise<number> {
  const before = shared().statements;
  await work();
  return shared().statements - before;
}
const batch = (sql: string, ...values: string[]): Buffer[] => [
  send.parse(sql),
  send.bind(values),
  send.describe('P'),
  send.execute(),
  send.sync(),
];
const NOTHING_HARMFUL: CatalogFacts = {
  fingerprint: '',
  harmlessFunctions: new Set(),
  otherFunctions: new Set(),
  unsafeWords: new Set(),
  unsafeRowTypes: new Set(),
  unsafeOperators: [],
  obstacle: null,
};
/** Runs texts once, so that how long they take is known: before that nothing is sent behind them. */
async function timed(...texts: string[]): Promise<void> {
  await using client = await raw();
  for (const sql of texts) await client.run([send.query(sql)]);
}
const letter = (n: number): string => String.fromCharCode(97 + (n % 26));
const rowsOf = (messages: readonly { type: string; payload: Buffer }[]): (string | null)[] =>
  messages.filter(({ type }) => type === 'D').map((message) => firstColumn(message));

describe('harmless reads share', () => {
  test('a connection among many clients, each getting its own answers, byte for byte', async () => {
    const clients = await Promise.all(Array.from({ length: 16 }, raw));
    const rounds = 20;
    await timed('SELECT name FROM item WHERE id = 1');
    await clients[0]?.run(batch('SELECT name FROM item WHERE id = $1', '1'));
    const count = await sharedBy(() =>
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
    const count = await sharedBy(async () => {
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
    const used = (): number => running.proxy.status().binaryTypes.source.length;
    await timed(sql);
    await using client = await raw();
    const inBinary = [send.parse(sql), frame('B', BINARY), send.describe('P'), send.execute(), send.sync()];
    expect(await sharedBy(() => client.run(batch(sql)))).toBe(1);
    expect(used()).toBe(0);
    expect(await sharedBy(() => client.run(inBinary))).toBe(1);
    expect(used()).toBe(1);

    await using alone = await raw();
    await alone.column("SET application_name = 'has set something'");
    await alone.run([
      send.parse('SELECT $1::public.mood', 'named'),
      send.describe('S', 'named'),
      send.sync(),
    ]);
    expect(used()).toBe(1);
    expect(await sharedBy(() => alone.run(inBinary))).toBe(0);
    expect(used()).toBe(2);
  });

  test('the tap sees them', async () => {
    await using client = await raw();
    tap.offered.length = 0;
    await client.run(batch('SELECT name FROM item WHERE id < $1::int', '4'));
    await client.run([send.query('SELECT 1/0')]);
    await until(() => tap.offered.length === 2);
    expect(tap.offered).toMatchObject([
      { text: 'SELECT name FROM item WHERE id < $1::int', rows: 3, failed: false, status: 0x49 },
      { text: 'SELECT 1/0', failed: true },
    ]);
  });
});

test('a name of the database may have a mode of its own', async () => {
  const { database } = running;
  await start(
    { poolModes: { whole: 'session', each: 'transaction' } },
    { databases: { whole: database, each: database } },
  );
  const modes = (): string[] => running.proxy.status().pools.map(({ mode, clients }) => `${mode} ${clients}`);
  await using whole = await RawClient.connect(running.port, 'whole');
  const pids = new Set<string | null>();
  for (let round = 0; round < 3; round++)
    for (const pid of await whole.column('SELECT pg_backend_pid()')) pids.add(pid);
  expect(pids.size).toBe(1);
  expect(modes()).toEqual(['pipelined 0']);
  await using each = await RawClient.connect(running.port, 'each');
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
    const count = await sharedBy(async () => {
      await client.run([send.query(sql)]);
    });
    expect(count).toBe(0);
    if (sql.startsWith('SHOW')) expect(await client.column(sql)).toEqual(['off']);
  });

  test('plain views do share', async () => {
    await using client = await raw();
    expect(await sharedBy(() => client.column('SELECT name FROM plain WHERE id = 7'))).toBe(1);
  });

  test('a client that has set something, or is in a transaction, does not', async () => {
    await using client = await raw();
    await client.run([send.query("SET TimeZone = 'Asia/Tokyo'")]);
    expect(await sharedBy(() => client.column('SELECT now()'))).toBe(0);
    await client.run([send.query('RESET ALL')]);
    expect(await sharedBy(() => client.column('SELECT now()'))).toBe(1);
    await client.run([send.query('BEGIN')]);
    expect(await sharedBy(() => client.column('SELECT now()'))).toBe(0);
    await client.run([send.query('COMMIT')]);
  });

  test('a view made harmful later does not, whoever made it so', async () => {
    await using client = await raw();
    await client.run([send.query('CREATE VIEW shifting AS SELECT 1 AS n')]);
    await until(async () => (await sharedBy(() => client.column('SELECT n FROM shifting'))) === 1);
    await client.run([
      send.query("CREATE OR REPLACE VIEW shifting AS SELECT nextval('public.seq')::int AS n"),
    ]);
    for (let round = 0; round < 5; round++) {
      expect(await sharedBy(() => client.column('SELECT n FROM shifting'))).toBe(0);
    }
    await sharing(client);
    expect(await sharedBy(() => client.column('SELECT n FROM shifting'))).toBe(0);
    await client.run([send.query('DROP VIEW shifting')]);
  });

  test('a function that hides a builtin stops the reads that name it, for as long as it stands', async () => {
    await using client = await raw();
    const ran = (sql: string): Promise<number> => sharedBy(() => client.run(batch(sql)));
    for (let round = 0; round < 3; round++) expect(await ran("SELECT upper('a')")).toBe(1);
    await client.run([
      send.query("CREATE FUNCTION public.upper(int) RETURNS int LANGUAGE sql STABLE AS 'SELECT $1'"),
    ]);
    await sharing(client);
    expect(await ran("SELECT upper('a')")).toBe(0);
    await client.run([send.query('DROP FUNCTION public.upper(int)')]);
    await sharing(client);
    expect(await ran("SELECT upper('a')")).toBe(1);
  });

  test('what was misjudged and writes is refused there, and run once on a connection of its own', async () => {
    await start({ sharedCatalogIntervalMs: 3_600_000 });
    await using client = await raw();
    await client.run([send.parse('SELECT n FROM sly', 'later'), send.sync()]);
    // Behind the proxy’s back, after the catalogs were read: this is what the read-only connection is for.
    await pair.onSource.query('CREATE VIEW public.sly AS SELECT public.bump() AS n');
    const [before] = (await pair.onSource.query<{ n: string }>('SELECT n FROM public.counted')).rows;
    const expected = Number(before?.n) + 1;
    const messages = await client.run(batch('SELECT n FROM sly'));
    expect(messages.map(({ type }) => type).join('')).toBe('12TDCZ');
    expect(rowsOf(messages)).toEqual([String(expected)]);
    expect(shared().refused).toBe(1);
    expect(await sharedBy(() => client.run(batch('SELECT n FROM sly')))).toBe(0);
    expect((await pair.onSource.query('SELECT n FROM public.counted')).rows).toEqual([
      { n: String(expected + 1) },
    ]);
    await pair.onSource.query('DROP VIEW public.sly');
  });

  test('a refused read takes what was sent behind it along, in order', async () => {
    await start({ sharedCatalogIntervalMs: 3_600_000 });
    await using client = await raw();
    await pair.onSource.query('CREATE VIEW public.sly2 AS SELECT public.bump() AS n');
    const messages = await client.run(
      [...batch('SELECT 1::int'), ...batch('SELECT n * 0 + 2 FROM sly2'), ...batch('SELECT 3::int')],
      3,
    );
    expect(rowsOf(messages)).toEqual(['1', '2', '3']);
    expect(shared().refused).toBe(1);
    await pair.onSource.query('DROP VIEW public.sly2');
  });
});

describe('nobody waits for another', () => {
  test('a write that waits for a lock does not hold up the read its holder waits for', async () => {
    await using holder = await raw();
    await using writer = await raw();
    await using reader = await raw();
    await holder.run([send.query('BEGIN'), send.query('UPDATE item SET name = name WHERE id = 1')], 2);
    writer.write(send.query("UPDATE item SET name = 'written' WHERE id = 1"));
    await until(async () => {
      const { rows } = await pair.onSource.query(
        "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()",
      );
      return rows.length === 1;
    });
    expect(await sharedBy(() => reader.column('SELECT name FROM item WHERE id = 2'))).toBe(1);
    await holder.run([send.query('COMMIT')]);
    await writer.readies(1);
    expect(tags(writer.take())).toEqual(['UPDATE 1']);
  });

  const LONG = 'SELECT count(*) FROM generate_series(1, 4000000) a WHERE a <> 7';
  /** The same but for a literal. */
  const SHORT = LONG.replace('4000000', '10');

  test('what stands behind a long read is sent again elsewhere; the long one is alone from then on', async () => {
    await start({ sharedReadBoundMs: 100 });
    await using slow = await raw();
    await using quick = await raw();
    await timed(SHORT, 'SELECT name FROM item WHERE id = 3');
    slow.write(send.query(LONG));
    await until(() => shared().depth === 1);
    const answered: string[] = [];
    const long = slow.readies(1).then(() => answered.push('long'));
    expect(await quick.column('SELECT name FROM item WHERE id = 3')).toEqual(['item 3']);
    answered.push('quick');
    await long;
    expect(answered).toEqual(['quick', 'long']);
    expect(shared().sentAgain).toBeGreaterThan(0);
    expect(rowsOf(slow.take())).toEqual(['3999999']);
    const again = await sharedBy(() => slow.column(LONG.replace('7', '8')));
    expect(again).toBe(0);
    expect(await quick.column('SELECT 5')).toEqual(['5']);
  });

  test('a cancel hits its own statement and nobody else’s', async () => {
    await using slow = await raw();
    await using queued = await raw();
    await using other = await raw();
    await timed(SHORT, 'SELECT 4 AS four');
    slow.write(send.query(LONG));
    await until(() => shared().depth === 1);
    queued.write(send.query('SELECT 4 AS four'));
    other.write(send.query('SELECT 5 AS four'));
    await until(() => shared().depth === 3);
    await queued.cancel();
    await queued.readies(1);
    expect(sqlStates(queued.take())).toEqual(['57014']);
    await slow.cancel();
    await Promise.all([slow.readies(1), other.readies(1)]);
    expect(sqlStates(slow.take())).toEqual(['57014']);
    expect(rowsOf(other.take())).toEqual(['5']);
    await sharing(queued);
  });

  test('a lost connection gives its reads another chance', async () => {
    await using slow = await raw();
    await using other = await raw();
    await timed(SHORT, 'SELECT 6 AS six');
    slow.write(send.query(LONG));
    await until(() => shared().depth === 1);
    other.write(send.query('SELECT 6 AS six'));
    await until(() => shared().depth === 2);
    await pair.onSource.query(
      `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND state = 'active' AND pid <> pg_backend_pid()`,
    );
    await Promise.all([slow.readies(1), other.readies(1)]);
    expect(rowsOf(other.take())).toEqual(['6']);
    expect(rowsOf(slow.take())).toEqual(['3999999']);
    await sharing(other);
  });

  test('a client that does not read keeps its connection, and holds up nobody', async () => {
    await using lazy = await raw();
    await using other = await raw();
    lazy.socket.pause();
    lazy.write(send.query('SELECT repeat(chr(97 + n % 26), 100000) FROM generate_series(1, 500) n'));
    await until(() => shared().depth === 1);
    for (let round = 0; round < 5; round++) {
      expect(await other.column('SELECT name FROM item WHERE id = 9')).toEqual(['item 9']);
    }
    lazy.socket.resume();
    await lazy.readies(1);
    // What waited was not written over meanwhile.
    const rows = rowsOf(lazy.take());
    expect(rows.map((row) => row?.[0])).toEqual(Array.from({ length: 500 }, (_, n) => letter(n + 1)));
    expect(rows.every((row) => row === row?.[0]?.repeat(100_000))).toBe(true);
    await until(() => shared().depth === 0);
    await sharing(other);
  });

  test('a client that leaves in the middle takes nothing with it', async () => {
    const leaver = await raw();
    await using other = await raw();
    await timed(SHORT, 'SELECT 8 AS eight');
    leaver.write(send.query(LONG));
    await until(() => shared().depth === 1);
    other.write(send.query('SELECT 8 AS eight'));
    await leaver[Symbol.asyncDispose]();
    await other.readies(1);
    expect(rowsOf(other.take())).toEqual(['8']);
  });
});

describe('a text that comes again and again', () => {
  const TEXT = 'SELECT name, $1::int AS n FROM item WHERE id = $1';
  const again = (client: RawClient, value = '7'): Promise<Message[]> => client.run(batch(TEXT, value));
  /** Names the pool has given on the server, of connections in use by it. */
  const parsed = async (): Promise<number> => {
    const { rows } = await pair.onSource.query<{ n: string }>(
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
    await using direct = await RawClient.direct(pair.source);
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
    await start({ sharedCatalogIntervalMs: 20 });
    await using client = await raw();
    await using other = await raw();
    await pair.onSource.query('CREATE TABLE public.changing AS SELECT 1 AS a');
    const sql = 'SELECT * FROM changing WHERE a = $1';
    const types = async (): Promise<string> =>
      (await other.run(batch(sql, '1'))).map(({ type }) => type).join('');
    for (let round = 0; round < 4; round++) expect(await types()).toBe('12TDCZ');
    // Behind the proxy’s back: the plan is stale from here on, which a client that parses each time never hears of.
    await pair.onSource.query('ALTER TABLE public.changing ADD COLUMN b int');
    for (let round = 0; round < 4; round++) expect(await types()).toBe('12TDCZ');
    await pair.onSource.query('DROP TABLE public.changing');
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
      send.query(`ALTER ROLE ${SUPERUSER} IN DATABASE ${running.database} SET search_path = early, public`),
    ]);
    await client.run([send.query('CREATE SCHEMA early; CREATE TABLE public.masked AS SELECT 1 AS n')]);
    await start();
    await using late = await raw();
    const sql = 'SELECT n FROM masked WHERE n > $1';
    for (let round = 0; round < 4; round++) expect(rowsOf(await late.run(batch(sql, '0')))).toEqual(['1']);
    await late.run([send.query('CREATE TABLE early.masked AS SELECT 2 AS n')]);
    await sharing(late);
    for (let round = 0; round < 4; round++) expect(rowsOf(await late.run(batch(sql, '0')))).toEqual(['2']);
    await late.run([send.query('DROP SCHEMA early CASCADE')]);
    await late.run([send.query(`ALTER ROLE ${SUPERUSER} IN DATABASE ${running.database} RESET search_path`)]);
  });
});

describe('how long a text takes', () => {
  test('a text that takes longer than the bound has a connection of its own from its second run on', async () => {
    await start({ sharedReadBoundMs: 10 });
    await using client = await raw();
    const slow = 'SELECT count(*) FROM generate_series(1, 1000000) a WHERE a <> $1';
    await client.run(batch(slow, '1'));
    await sharing(client);
    for (let round = 0; round < 3; round++)
      expect(await sharedBy(() => client.run(batch(slow, '1')))).toBe(0);
  });

  test('one that mostly takes a good part of it has too, and comes back once it is short', () => {
    const decision = new Decision(0, [], null, false, shapeOfRead('SELECT 1'));
    const facts = { ...NOTHING_HARMFUL };
    const shared = (tookMs: number, nowMs: number): void => decision.ranShared(tookMs, 5, nowMs, 1000);
    expect(decision.timed).toBe(false);
    for (const tookMs of [9, 1, 9, 9]) shared(tookMs, 0);
    expect(decision.mayShare(facts, 0)).toBe(true);
    shared(9, 0);
    expect(decision.mayShare(facts, 999)).toBe(false);
    decision.ranAlone(50, 5);
    expect(decision.mayShare(facts, 999)).toBe(false);
    decision.ranAlone(1, 5);
    decision.ranAlone(1, 5);
    expect(decision.mayShare(facts, 999)).toBe(true);
    for (let run = 0; run < 3; run++) shared(9, 0);
    expect(decision.mayShare(facts, 999)).toBe(false);
    // Tried again after its time, as if never seen.
    expect(decision.mayShare(facts, 1000)).toBe(true);
    expect(decision.timed).toBe(false);
  });

  test('nothing is sent behind a text that was never timed', async () => {
    await using client = await raw();
    await using other = await raw();
    await timed('SELECT 3 AS three');
    client.write(send.query('SELECT count(*) FROM generate_series(1, 3000000) never WHERE never <> 7'));
    await until(() => shared().depth === 1);
    expect(await other.column('SELECT 3 AS three')).toEqual(['3']);
    expect(shared().sentAgain).toBe(0);
    await client.readies(1);
  });
});
