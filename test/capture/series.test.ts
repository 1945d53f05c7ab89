/** From captured statements to series in a real destination, by a real source's catalogs. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { readCatalog, pathOf } from '../../src/capture/catalog-read.js';
import type { CatalogSnapshot } from '../../src/capture/catalog.js';
import { COLLECTOR_DEFAULTS, SeriesCollector, type CollectorOptions } from '../../src/capture/collector.js';
import { boundParameters } from '../../src/capture/key-plan.js';
import { PostgresParser } from '../../src/capture/parser.js';
import { PostgresSeriesStore, SERIES_CONNECTION } from '../../src/capture/series-store.js';
import { keyHash } from '../../src/core/key-hash.js';
import { connectControl } from '../../src/core/postgres.js';
import type { CapturedStatement } from '../../src/core/capture-ports.js';
import { databasePair, type DatabasePair } from '../support/servers.js';
import { captured, HOUR, IDLE, MINUTE, OPEN, SHOP_SQL, START, taken } from './statements.js';

const SECRET = Buffer.alloc(32, 7);

let pair: DatabasePair;
let parser: PostgresParser;
let catalog: CatalogSnapshot;
const stores: PostgresSeriesStore[] = [];

beforeAll(async () => {
  pair = await databasePair();
  parser = new PostgresParser();
  await parser.load();
  await pair.onSource.query(SHOP_SQL);
  await pair.onSource.query(`ALTER DATABASE ${pair.source.database} SET search_path = "$user", shop, public`);
  catalog = await readCatalog(pair.onSource);
});

afterAll(async () => {
  await Promise.all(stores.map((store) => store.close()));
  await pair[Symbol.asyncDispose]();
});

function collector(options: Partial<CollectorOptions> = {}): SeriesCollector {
  const made = new SeriesCollector({ ...COLLECTOR_DEFAULTS, writer: 'test', keys: true, ...options }, parser);
  made.setCatalog(catalog);
  made.setSecret(SECRET);
  return made;
}

function newStore(): PostgresSeriesStore {
  const store = new PostgresSeriesStore(() =>
    connectControl('destination', pair.destination, { ...SERIES_CONNECTION }),
  );
  stores.push(store);
  return store;
}

/** `table:reads/writes`, in order of names. */
function tablesOf(sql: string | readonly string[]): string {
  const own = collector();
  for (const text of typeof sql === 'string' ? [sql] : sql) own.add(captured(text));
  return taken(own)
    .points.map(({ table, reads, writes }) => `${table}:${reads}/${writes}`)
    .sort()
    .join(' ');
}

describe('names resolved through the catalogs', () => {
  test.each<[string | readonly string[], string]>([
    ['SELECT * FROM customer', 'shop.customer:1/0'],
    ['SELECT * FROM public.customer', 'public.customer:1/0'],
    ['SELECT * FROM only_here', 'other.only_here:1/0'],
    ['SELECT * FROM nowhere', 'nowhere:1/0'],
    ['SELECT * FROM shop.big_buyer JOIN totals ON true', 'shop.customer:1/0 shop.line:1/0 shop.totals:1/0'],
    ['UPDATE buyer SET number = 1', 'shop.customer:0/1 shop.line:0/1'],
    ['DROP VIEW shop.buyer', 'shop.buyer:0/1'],
    [`INSERT INTO event_2026_01 VALUES (NULL, NULL)`, 'shop.event:0/1 shop.event_2026_01:0/1'],
    ['SELECT * FROM event', 'shop.event:1/0'],
    ['INSERT INTO line SELECT 1, 2 FROM customer, line', 'shop.customer:1/0 shop.line:1/1'],
    ['SELECT lines(1)', 'shop.line:1/0'],
    ['SELECT note(1) FROM customer', 'shop.customer:1/0 shop.line:1/1'],
    ['SELECT opaque()', ''],
    ['SELECT * FROM pg_class, pg_catalog.pg_type, information_schema.tables, understudy.route', ''],
    ['VACUUM customer', ''],
    ['LOCK TABLE customer', ''],
    [['SET search_path = public', 'SELECT * FROM customer'], 'public.customer:1/0'],
    [['SET search_path = public', 'RESET search_path', 'SELECT * FROM customer'], 'shop.customer:1/0'],
    [['PREPARE p AS DELETE FROM line', 'EXECUTE p', 'EXECUTE p'], 'shop.line:0/2'],
  ])('%s', (sql, expected) => {
    expect(tablesOf(sql)).toBe(expected);
  });

  test('a search path is read as the server writes it', () => {
    expect(pathOf('"$user", public')).toEqual(['public']);
    expect(pathOf('A, "B ""c", "d,e"')).toEqual(['a', 'B "c', 'd,e']);
    expect(pathOf('')).toEqual([]);
  });

  test('an EXECUTE whose PREPARE was not seen is counted as not understood', () => {
    const own = collector();
    own.add(captured('EXECUTE p'));
    own.add(captured('DO $$ BEGIN END $$'));
    own.add(captured('SELECT 1'));
    expect(taken(own).intervals).toMatchObject([{ statements: 3, unparsed: 2 }]);
  });

  test('DDL is noticed, failed DDL is not', () => {
    const own = collector();
    own.add(captured('CREATE TABLE x (id int)', { errorClass: '42' }));
    expect(own.catalogChanged).toBe(false);
    own.add(captured('CREATE TABLE x (id int)'));
    expect(own.catalogChanged).toBe(true);
  });
});

describe('keys', () => {
  /** `table=key key …` with keys as written here; those that were not expected as their hash. */
  function keysOf(text: string, parameters?: CapturedStatement['parameters']): string {
    const own = collector();
    own.add(captured(text, parameters === undefined ? {} : { parameters }));
    const names = new Map<string, string>();
    const name = (table: string, columns: string[], ...values: string[]): void => {
      names.set(keyHash(SECRET, table, columns, values), values.join('/'));
    };
    for (const value of ['1', '2', '-5', '42', '9007199254740993']) name('shop.customer', ['id'], value);
    for (const value of ['a@b', `o'x`, 'größe']) name('shop.customer', ['email'], value);
    for (const [a, b] of [['1', '2'], ['1', '3'], ['7', '8']] as const) name('shop.line', ['order_id', 'number'], a, b); // prettier-ignore
    name('shop.event', ['id', 'at'], 'a0eebc999c0b4ef8bb6d6bb9bd380a11', '2026-01-02');
    return taken(own)
      .hotKeys.map(
        ({ table, keys }) =>
          `${table}=${keys
            .map(({ key, writes }) => `${names.get(key) ?? key}${writes > 0 ? '!' : ''}`)
            .sort()
            .join(' ')}`,
      )
      .join('; ');
  }
  const uuid = 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11';
  const int4 = (value: number): Buffer => {
    const bytes = Buffer.alloc(4);
    bytes.writeInt32BE(value);
    return bytes;
  };

  test.each<[string, CapturedStatement['parameters'], string]>([
    ['SELECT * FROM customer WHERE id = 1', undefined, 'shop.customer=1'],
    ['SELECT * FROM customer c WHERE c.id = -5', undefined, 'shop.customer=-5'],
    [`SELECT * FROM customer WHERE '42'::bigint = id AND name = 'x'`, undefined, 'shop.customer=42'],
    ['SELECT * FROM customer WHERE id IN (1, 2) FOR UPDATE', undefined, 'shop.customer=1 2'],
    ['SELECT * FROM customer WHERE id = ANY (ARRAY[1, $1])', ['2'], 'shop.customer=1 2'],
    [
      'UPDATE customer SET name = $2 WHERE id = $1',
      ['9007199254740993', 'x'],
      'shop.customer=9007199254740993!',
    ],
    ['DELETE FROM customer WHERE id = $1', [int4(42)], 'shop.customer=42!'],
    ['DELETE FROM customer WHERE id = $2', ['1'], ''],
    ['DELETE FROM customer WHERE id = $1', [null], ''],
    ['SELECT * FROM customer WHERE id = $1 OR name = $2', ['1', 'x'], ''],
    ['SELECT * FROM customer WHERE id > 1 AND NOT id = 2', undefined, ''],
    [`SELECT * FROM customer WHERE email = 'o''x'`, undefined, `shop.customer=o'x`],
    [`SELECT 'größe', * FROM customer WHERE email = 'größe'`, undefined, 'shop.customer=größe'],
    ['SELECT * FROM customer WHERE email = $$a@b$$ AND id = 1', undefined, 'shop.customer=1'],
    ['SELECT * FROM line WHERE order_id = 1 AND number = $1', ['2'], 'shop.line=1/2'],
    ['SELECT * FROM line WHERE (order_id, number) = (7, 8)', undefined, 'shop.line=7/8'],
    ['SELECT * FROM line WHERE order_id = 1 AND number IN (2, 3)', undefined, 'shop.line=1/2 1/3'],
    ['SELECT * FROM line WHERE order_id = 1', undefined, ''],
    ['INSERT INTO line VALUES (1, 2, $1), (7, 8, $2)', ['x', 'y'], 'shop.line=1/2! 7/8!'],
    [
      `INSERT INTO line (note, number, order_id) VALUES ('x', 2, 1), (lower('y'), 8, 7)`,
      undefined,
      'shop.line=1/2! 7/8!',
    ],
    ['INSERT INTO customer (id) SELECT 1', undefined, ''],
    [
      'SELECT * FROM customer c JOIN line l ON l.order_id = c.id AND l.number = 2 WHERE l.order_id = 1 AND email = $1',
      ['a@b'],
      'shop.customer=a@b; shop.line=1/2',
    ],
    [
      'SELECT * FROM line WHERE order_id = 1 AND number = 2 AND EXISTS (SELECT 1 FROM customer WHERE id = 42)',
      undefined,
      'shop.customer=42; shop.line=1/2',
    ],
    [
      `SELECT * FROM event WHERE id = '${uuid}' AND at = '2026-01-02'`,
      undefined,
      'shop.event=a0eebc999c0b4ef8bb6d6bb9bd380a11/2026-01-02',
    ],
    [
      'DELETE FROM event_2026_01 WHERE id = $1 AND at = $2',
      [Buffer.from(uuid.replaceAll('-', ''), 'hex'), '2026-01-02'],
      'shop.event=a0eebc999c0b4ef8bb6d6bb9bd380a11/2026-01-02!',
    ],
    ['SELECT * FROM loose WHERE id = 1', undefined, ''],
    ['SELECT * FROM public.customer WHERE id = 1.5', undefined, ''],
  ])('%s', (text, parameters, expected) => {
    expect(keysOf(text, parameters)).toBe(expected);
  });

  test('every text of a shape gives its own values', () => {
    const own = collector();
    for (let id = 1; id <= 50; id += 1) {
      own.add(captured(`SELECT * FROM customer WHERE id = ${id % 5}`));
      own.add(
        captured(
          `SELECT * FROM customer WHERE id IN (${Array.from({ length: id % 4 }, () => 3).join(', ')}, 3)`.replace(
            '(, ',
            '(',
          ),
        ),
      );
    }
    const { keys, accesses } = taken(own).hotKeys[0] ?? { keys: [], accesses: 0 };
    expect(keys[0]?.key).toBe(keyHash(SECRET, 'shop.customer', ['id'], ['3']));
    expect(keys).toHaveLength(5);
    expect(keys.map(({ count }) => count).slice(1)).toEqual([10, 10, 10, 10]);
    expect(accesses).toBe(keys.reduce((sum, { count }) => sum + count, 0));
  });

  test('without a secret nothing is counted, and another installation’s hashes are others', () => {
    const none = new SeriesCollector({ ...COLLECTOR_DEFAULTS, writer: 'test', keys: true }, parser);
    none.setCatalog(catalog);
    none.add(captured('SELECT * FROM customer WHERE id = 1'));
    expect(taken(none).hotKeys).toEqual([]);
    const first = keyHash(SECRET, 't', ['id'], ['1']);
    expect(first).toMatch(/^[0-9a-f]{16}$/);
    expect(keyHash(Buffer.alloc(32, 8), 't', ['id'], ['1'])).not.toBe(first);
    expect(keyHash(SECRET, 't', ['id'], ['2'])).not.toBe(first);
    expect(keyHash(SECRET, 't', ['i', 'd'], ['1'])).not.toBe(first);
  });

  test('parameters are read off a Bind message as far as it goes', () => {
    const value = (bytes: Buffer | null): Buffer => {
      const length = Buffer.alloc(4);
      length.writeInt32BE(bytes === null ? -1 : bytes.length);
      return Buffer.concat([length, bytes ?? Buffer.alloc(0)]);
    };
    const body = Buffer.concat([
      Buffer.from([0, 3, 0, 0, 0, 1, 0, 0]),
      Buffer.from([0, 3]),
      value(Buffer.from('text')),
      value(int4(7)),
      value(null),
      Buffer.from([0, 0]),
    ]);
    const whole = ['text', int4(7), null];
    expect(boundParameters(body)).toEqual(whole);
    for (let length = 0; length < body.length; length += 1) {
      const part = boundParameters(body.subarray(0, length));
      expect(whole.slice(0, part.length)).toEqual(part);
    }
    // One format for all; none at all.
    expect(
      boundParameters(Buffer.concat([Buffer.from([0, 1, 0, 1, 0, 2]), value(int4(1)), value(int4(2))])),
    ).toEqual([int4(1), int4(2)]);
    expect(boundParameters(Buffer.concat([Buffer.from([0, 0, 0, 1]), value(Buffer.from('x'))]))).toEqual([
      'x',
    ]);
  });
});

describe('transactions, transitions and figures', () => {
  test('tables used in one transaction, its duration, and what follows what', () => {
    const own = collector();
    let at = START;
    const step = (text: string, transactionStatus: number, sessionId = 1): void => {
      at += 1_000;
      own.add(captured(text, { endedAtMs: at, transactionStatus, sessionId }));
    };
    for (let round = 0; round < 3; round += 1) {
      step('BEGIN', OPEN);
      step('SELECT * FROM customer WHERE id = 1', OPEN);
      step('SELECT * FROM line', OPEN, 2);
      step('UPDATE line SET note = $1 WHERE order_id = 1', OPEN);
      step('COMMIT', IDLE);
    }
    step('SELECT * FROM customer', IDLE);
    step('ROLLBACK', IDLE, 2);
    const batch = taken(own);
    expect(batch.coAccess.map(({ a, b, transactions }) => `${a} ${b} ${transactions}`).sort()).toEqual([
      'shop.customer shop.customer 4',
      'shop.customer shop.line 3',
      'shop.line shop.line 4',
    ]);
    // Four seconds and the first statement's millisecond, known to an eighth.
    expect(
      batch.transactionDurations.filter(({ upToMicros }) => upToMicros > 1e6 && upToMicros < 1e7),
    ).toMatchObject([
      { hourOfWeek: 2 * 24 + 10, weight: 3, upToMicros: expect.closeTo(4_001_000, -6) as number },
    ]);
    expect(batch.intervals).toMatchObject([{ committed: 4, rolledBack: 1, statements: 17 }]);
    const text = new Map(batch.statements.map(({ fingerprint, text: shape }) => [fingerprint, shape]));
    const follows = batch.transitions.map(
      ({ from, to, weight }) => `${text.get(from)} → ${text.get(to)}: ${weight}`,
    );
    expect(follows).toContain('begin → select * from customer where id = ?: 3');
    expect(follows).toContain('commit → begin: 2');
    expect(batch.statements.map(({ text: shape }) => shape).join()).not.toMatch(/[1-9]/);
  });

  test('texts decide where a log tells no status', () => {
    const own = collector();
    const log = (text: string, errorClass: string | null = null): void =>
      own.add(captured(text, { transactionStatus: -1, sessionId: 'log/7', errorClass }));
    for (const text of [
      'SELECT * FROM line',
      'BEGIN',
      'SELECT * FROM line',
      'SELECT * FROM customer',
      'COMMIT',
    ])
      log(text);
    log('BEGIN');
    log('SELECT * FROM line', '22');
    log('COMMIT');
    log('INSERT INTO line VALUES (1, 2)', '23');
    const batch = taken(own);
    expect(batch.intervals).toMatchObject([{ committed: 2, rolledBack: 2, errors: 2 }]);
    expect(batch.coAccess.find(({ a, b }) => a !== b)).toMatchObject({ transactions: 1 });
  });

  test('a statement that stands for many counts as many', () => {
    const own = collector();
    own.add(captured('SELECT * FROM line', { executions: 40, rows: 80, durationMicros: 5_000 }));
    expect(taken(own).points).toMatchObject([
      { table: 'shop.line', reads: 40, rowsRead: 80, durationMicros: 5_000 },
    ]);
  });

  test('what nobody takes is bounded: the oldest minutes are given up, and counted', () => {
    const own = collector({ cellsMax: 100 });
    for (let minute = 0; minute < 1_000; minute += 1)
      own.add(captured('SELECT * FROM line', { endedAtMs: START + minute * MINUTE }));
    const kept = taken(own);
    expect(kept.intervals.length).toBeLessThanOrEqual(50);
    expect(kept.intervals.at(-1)?.startMs).toBe(START + 999 * MINUTE);
    expect(own.shed.statements + kept.intervals.length).toBe(1_000);
  });
});

describe('the store', () => {
  const range = { fromMs: START - HOUR, untilMs: START + 24 * HOUR };

  test('figures come back per minute, five minutes and hour; a batch is added once only', async () => {
    const store = newStore();
    const own = collector({ writer: 'figures' });
    for (let minute = 0; minute < 10; minute += 1) {
      own.observed(START + minute * MINUTE, START + (minute + 1) * MINUTE);
      own.add(captured('SELECT * FROM line', { endedAtMs: START + minute * MINUTE + 5, rows: 3 }));
      own.add(
        captured('DELETE FROM line', { endedAtMs: START + minute * MINUTE + 6, rows: 2, errorClass: '40' }),
      );
    }
    own.dropped(7, START);
    const batch = taken(own);
    await store.append(batch);
    await store.append(batch);
    const line = async (resolution: 'minute' | 'five-minutes' | 'hour') =>
      (await store.tables(resolution, range, ['shop.line']))[0]?.points ?? [];
    expect(await line('minute')).toHaveLength(10);
    expect(
      (await line('five-minutes')).map(({ startMs, reads, writes }) => [startMs, reads, writes]),
    ).toEqual([
      [START, 5, 5],
      [START + 5 * MINUTE, 5, 5],
    ]);
    expect(await line('hour')).toEqual([
      {
        startMs: START, reads: 10, writes: 10, errors: 10, rowsRead: 30, rowsWritten: 20,
        bytesToServer: 200, bytesToClient: 2_000, durationMicros: 20_000,
      },
    ]); // prettier-ignore
    const [hour] = await store.intervals('hour', range);
    expect(hour).toMatchObject({ observedMs: 10 * MINUTE, statements: 20, errors: 10, dropped: 7 });
    expect(await store.tables('minute', { fromMs: START, untilMs: START })).toEqual([]);
    const [statement] = await store.statements(1);
    expect(statement).toMatchObject({
      executions: 10,
      lastSeenMs: START + 9 * MINUTE + 6 - (statement?.kind === 'select' ? 1 : 0),
    });
  });

  test('weights of different times add up as if all had been counted at once, in any order', async () => {
    const weights: number[] = [];
    for (const order of [
      [0, 1],
      [1, 0],
    ] as const) {
      const store = newStore();
      for (const index of order) {
        const own = collector({ writer: `weights ${order.join('')} ${index}` });
        own.add(captured('SELECT * FROM only_here', { endedAtMs: START + index * 7 * 24 * HOUR }));
        own.add(captured('SELECT 1', { endedAtMs: START + index * 7 * 24 * HOUR }));
        await store.append(taken(own));
      }
      const pairOf = (await store.coAccess(START + 7 * 24 * HOUR)).find(({ a }) => a === 'other.only_here');
      weights.push(pairOf?.weight ?? 0);
    }
    // A week is the half-life: 1 and ½, then the same once more.
    expect(weights[0]).toBeCloseTo(1.5, 6);
    expect(weights[1]).toBeCloseTo(3, 6);
    const store = newStore();
    expect((await store.transitions(START + 7 * 24 * HOUR))[0]?.weight).toBeGreaterThan(1);
    expect(
      (await store.transactionDurations(START + 7 * 24 * HOUR)).some(({ hourOfWeek }) => hourOfWeek === 58),
    ).toBe(true);
  });

  test('hot keys of several writers come back as one, and a writer’s own word replaces its last', async () => {
    const store = newStore();
    const first = collector({ writer: 'one' });
    const second = collector({ writer: 'two' });
    const read = (own: SeriesCollector, id: number, times: number): void => {
      for (let n = 0; n < times; n += 1) own.add(captured(`SELECT * FROM public.customer WHERE id = ${id}`));
    };
    read(first, 1, 3);
    await store.append(taken(first));
    read(first, 1, 2);
    read(first, 2, 1);
    await store.append(taken(first));
    read(second, 2, 9);
    await store.append(taken(second));
    const [hour] = await store.hotKeys(range, ['public.customer']);
    const key = (id: string): string => keyHash(SECRET, 'public.customer', ['id'], [id]);
    expect(hour).toEqual({
      table: 'public.customer',
      startMs: START,
      accesses: 15,
      keys: [
        { key: key('2'), count: 10, writes: 0, error: 0 },
        { key: key('1'), count: 5, writes: 0, error: 0 },
      ],
    });
  });

  test('what is past its time is deleted, each resolution by its own', async () => {
    const store = newStore();
    const now = Date.UTC(2025, 5, 1);
    const own = collector({ writer: 'prune' });
    for (const days of [500, 100, 10, 1])
      own.add(captured('SELECT * FROM shop.loose', { endedAtMs: now - days * 24 * HOUR }));
    await store.append(taken(own));
    await store.prune(now);
    const all = { fromMs: 0, untilMs: now };
    const left = async (resolution: 'minute' | 'five-minutes' | 'hour') =>
      ((await store.tables(resolution, all, ['shop.loose']))[0]?.points ?? []).length;
    expect([await left('minute'), await left('five-minutes'), await left('hour')]).toEqual([1, 2, 3]);
    expect(await store.intervals('minute', all)).toHaveLength(1);
  });

  test('the secret is made once for an installation, and is another in another', async () => {
    const [first, again] = await Promise.all([newStore().secret(), newStore().secret()]);
    expect(first).toHaveLength(32);
    expect(again.equals(first)).toBe(true);
    await using elsewhere = await databasePair();
    const other = new PostgresSeriesStore(() =>
      connectControl('destination', elsewhere.destination, { ...SERIES_CONNECTION }),
    );
    try {
      expect((await other.secret()).equals(first)).toBe(false);
    } finally {
      await other.close();
    }
  });

  test('nothing of a value is in what is stored', async () => {
    const store = newStore();
    const own = collector({ writer: 'values' });
    const marker = 'Zanzibar';
    own.add(captured(`SELECT * FROM customer WHERE email = '${marker}'`));
    own.add(captured('UPDATE customer SET name = $1 WHERE email = $2', { parameters: [marker, marker] }));
    own.add(captured(`SELEKT '${marker}'`));
    own.add(captured(`SELEKT ${marker}`));
    own.add(captured(`INSERT INTO customer VALUES (1, '${marker}`, { cut: true }));
    const batch = taken(own);
    expect(JSON.stringify(batch)).not.toContain(marker);
    await store.append(batch);
    const dump = await pair.onDestination.query<{ text: string }>(
      `SELECT string_agg(query_to_xml(format('SELECT * FROM understudy.%I', relname), true, false, '')::text, '') AS text
       FROM pg_class WHERE relnamespace = 'understudy'::regnamespace AND relkind = 'r'`,
    );
    expect(dump.rows[0]?.text).toContain('shop.customer');
    expect(dump.rows[0]?.text).not.toContain(marker);
  });
});
