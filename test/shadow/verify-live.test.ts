import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import type pg from 'pg';
import { connectControl } from '../../src/core/postgres.js';
import { verifyKeys } from '../../src/shadow/postgres/verify.js';
import { databasePair, until, type DatabasePair } from '../support/servers.js';
import { twoCopies, type TwoCopies } from './verify-support.js';

let pair: DatabasePair;
let copies: TwoCopies;
beforeAll(async () => {
  pair = await databasePair();
});
afterAll(async () => {
  await pair[Symbol.asyncDispose]();
});
beforeEach(async () => {
  copies = await twoCopies(pair);
});

/**
 * A follower as slow as a real one: writes go to the source and, in the same order and transaction by transaction,
 * to the destination a little later. `settle` waits until everything written before has arrived.
 */
class DelayedFollower {
  readonly #source: pg.Client;
  readonly #destination: pg.Client;
  readonly #schema: string;
  readonly #queue: string[] = [];
  readonly #work: Promise<void>[] = [];
  #running = true;
  #writing = true;
  written = 0;
  #applied = 0;

  constructor(source: pg.Client, destination: pg.Client, schema: string) {
    this.#source = source;
    this.#destination = destination;
    this.#schema = schema;
  }

  start(statement: (n: number) => string): void {
    this.#work.push(this.#write(statement), this.#apply());
  }

  async #write(statement: (n: number) => string): Promise<void> {
    while (this.#running) {
      const sql = statement(this.written).replaceAll('@', this.#schema);
      await this.#source.query(sql);
      this.#queue.push(sql);
      this.written += 1;
    }
    this.#writing = false;
  }

  async #apply(): Promise<void> {
    // The last statement is queued after the writer was told to stop.
    while (this.#writing || this.#queue.length > 0) {
      await new Promise((resolve) => setTimeout(resolve, 10));
      const batch = this.#queue.splice(0);
      if (batch.length === 0) continue;
      await this.#destination.query(`BEGIN; ${batch.join(';')}; COMMIT`);
      this.#applied += batch.length;
    }
  }

  async settle(): Promise<string> {
    // The statement under way may be committed without being queued yet: one more covers it.
    const goal = this.written + 1;
    await until(() => this.#applied >= goal, { what: 'the follower to catch up' });
    return String(goal);
  }

  async stop(): Promise<void> {
    this.#running = false;
    await Promise.all(this.#work);
  }
}

async function withTraffic(
  statement: (n: number) => string,
  run: (follower: DelayedFollower) => Promise<void>,
): Promise<void> {
  const source = await connectControl('source', pair.source, { purpose: 'app' });
  const destination = await connectControl('destination', pair.destination, { purpose: 'apply' });
  const follower = new DelayedFollower(source, destination, copies.schema);
  try {
    follower.start(statement);
    await until(() => follower.written > 20);
    await run(follower);
  } finally {
    await follower.stop();
    await Promise.all([source.end(), destination.end()]);
  }
}

/** Changes 5,000 rows here and there, inserts, deletes, and one row (id 1) with every statement. */
function mixedTraffic(n: number): string {
  const id = ((n * 7919) % 5000) + 2;
  return `UPDATE @.acct SET v = v + 1 WHERE id IN (1, ${id});
    INSERT INTO @.acct VALUES (${10_000 + n}, ${n}); DELETE FROM @.acct WHERE id = ${10_000 + n - 5};
    INSERT INTO @.log VALUES (${n % 20}, 'x'); UPDATE @.word SET v = v + 1 WHERE w = 'w${id % 500}'`;
}

async function mixedTables(): Promise<void> {
  await copies.onBoth(`CREATE TABLE @.acct (id int PRIMARY KEY, v int);
    INSERT INTO @.acct SELECT i, 0 FROM generate_series(1, 6000) i;
    CREATE TABLE @.log (n int, line text); INSERT INTO @.log SELECT i % 20, 'x' FROM generate_series(1, 500) i;
    CREATE TABLE @.word (w text PRIMARY KEY, v int); INSERT INTO @.word SELECT 'w' || i, 0 FROM generate_series(0, 999) i`);
}

test('rows in flight, and a row written all the time, are no mismatch', async () => {
  await mixedTables();
  await withTraffic(mixedTraffic, async (follower) => {
    for (let round = 0; round < 3; round += 1) {
      const { verdicts } = await copies.verify({ settle: () => follower.settle(), bucketRows: 500 });
      expect(verdicts.flatMap((verdict) => verdict.differingKeys)).toEqual([]);
    }
  });
  expect(await copies.verify()).toMatchObject({ mismatches: 0 });
});

test('a row that really differs is found among them', async () => {
  await mixedTables();
  await copies.onDestination(`UPDATE @.acct SET v = -1 WHERE id = 5500; DELETE FROM @.acct WHERE id = 5600;
    INSERT INTO @.acct VALUES (9000, 1); UPDATE @.word SET v = -1 WHERE w = 'w777'; INSERT INTO @.log VALUES (99, 'y')`);
  await withTraffic(mixedTraffic, async (follower) => {
    const { verdicts } = await copies.verify({ settle: () => follower.settle(), bucketRows: 500 });
    const found = verdicts.flatMap(({ table, differingKeys }) =>
      differingKeys.map(({ key, difference }) => [
        table.split('.')[1],
        table.endsWith('log') ? '' : key,
        difference,
      ]),
    );
    expect(found).toEqual([
      ['acct', '5500', 'different'],
      ['acct', '5600', 'missing'],
      ['acct', '9000', 'extra'],
      ['log', '', 'extra'],
      ['word', 'w777', 'different'],
    ]);
  });
});

test('a row written all the time whose follower never takes its values is reported', async () => {
  await copies.onBoth(
    'CREATE TABLE @.acct (id int PRIMARY KEY, v int); INSERT INTO @.acct VALUES (1, 0), (2, 0)',
  );
  // The follower runs the same statements, but this row's values are its own.
  await copies.onDestination(`CREATE FUNCTION @.own() RETURNS trigger LANGUAGE plpgsql AS
      'BEGIN NEW.v := -NEW.v - 1; RETURN NEW; END';
    CREATE TRIGGER own BEFORE UPDATE ON @.acct FOR EACH ROW EXECUTE FUNCTION @.own()`);
  await withTraffic(
    (n) => `UPDATE @.acct SET v = ${n} WHERE id = 1`,
    async (follower) => {
      const { verdicts } = await copies.verify({ settle: () => follower.settle(), recheckRoundsMax: 4 });
      expect(verdicts[0]).toMatchObject({ mismatches: 1 });
      expect(verdicts[0]?.differingKeys[0]).toMatchObject({ key: '1' });
    },
  );
});

test('named keys are compared in one go, whatever their types', async () => {
  await copies.onBoth(`CREATE TABLE @.k (a int, b text, c numeric, d char(3), v text, PRIMARY KEY (a, b, c, d));
    INSERT INTO @.k SELECT i, 'b''' || i, i / 4.0, 'x', 'v' FROM generate_series(1, 2500) i;
    CREATE TYPE @.mood AS ENUM ('sad', 'ok'); CREATE TABLE @.e (m @.mood PRIMARY KEY, v int);
    INSERT INTO @.e VALUES ('sad', 1), ('ok', 1)`);
  await copies.onDestination(`UPDATE @.k SET v = NULL WHERE a = 7; DELETE FROM @.k WHERE a = 2400;
    INSERT INTO @.k VALUES (5000, 'new', 1, 'y', ''); UPDATE @.e SET v = 2 WHERE m = 'ok'`);
  const sides = { authoritative: pair.onSource, follower: pair.onDestination };
  const { rows } = await copies.onSource('SELECT a, b, c, d FROM @.k ORDER BY a');
  const keys = [
    ...(rows as Record<string, string>[]).map((row) => [
      row['a'] ?? '',
      row['b'] ?? '',
      row['c'] ?? '',
      row['d'] ?? '',
    ]),
    ['5000', 'new', '1', 'y'],
    ['6000', 'on neither side', '1', 'z'],
  ];
  const [k, e] = [await copies.table('k'), await copies.table('e')];
  const lookups = [
    { table: k, keys },
    { table: e, keys: [] },
    { table: e, keys: [['sad'], ['ok']] },
    ...Array.from({ length: 8 }, () => ({ table: k, keys: keys.slice(0, 1200) })),
  ];
  const [inK, inE] = [`${k.schema}.k`, `${e.schema}.e`];
  const seven = { table: inK, key: `7,b'7,1.7500000000000000,x  ` };
  expect(await verifyKeys(sides, lookups)).toEqual([
    seven,
    { table: inK, key: `2400,b'2400,600.0000000000000000,x  ` },
    { table: inK, key: '5000,new,1,y' },
    { table: inE, key: 'ok' },
    ...Array.from({ length: 8 }, () => seven),
  ]);
  expect(await verifyKeys(sides, [])).toEqual([]);
});

test('a key whose type comes from an extension is compared by that type’s own equality and index', async () => {
  await copies.onBoth(`CREATE EXTENSION citext SCHEMA @; CREATE TABLE @.login (name @.citext PRIMARY KEY, n int);
    INSERT INTO @.login SELECT 'User' || i, i FROM generate_series(1, 3000) i`);
  await copies.onDestination(`UPDATE @.login SET n = 0 WHERE name = 'User7'`);
  const sides = { authoritative: pair.onSource, follower: pair.onDestination };
  const table = await copies.table('login');
  const scans = async (): Promise<unknown> =>
    (
      await copies.onDestination(
        `SELECT seq_scan FROM pg_stat_xact_user_tables WHERE relid = '@.login'::regclass`,
      )
    ).rows;
  await copies.onDestination('BEGIN');
  const before = await scans();
  const differing = await verifyKeys(sides, [{ table, keys: [['user6'], ['USER7'], ['nobody']] }]);
  expect(differing.map(({ key }) => key)).toEqual(['USER7']);
  expect(await scans()).toEqual(before);
  await copies.onDestination('ROLLBACK');
  const { verdicts } = await copies.verify();
  expect(verdicts[0]?.differingKeys).toEqual([{ key: 'User7', difference: 'different' }]);
});

test('keys are found through the index, on a table that was never analysed too', async () => {
  await copies.onBoth(`CREATE TABLE @.big (id bigint PRIMARY KEY, v text);
    INSERT INTO @.big SELECT i, 'v' || i FROM generate_series(1, 100000) i`);
  const sides = { authoritative: pair.onSource, follower: pair.onDestination };
  const keys = Array.from({ length: 500 }, (_, index) => [String(index * 200 + 1)]);
  const scans = async (): Promise<unknown> =>
    (
      await copies.onDestination(
        `SELECT seq_scan FROM pg_stat_xact_user_tables WHERE relid = '@.big'::regclass`,
      )
    ).rows;
  await copies.onDestination('BEGIN');
  const before = await scans();
  await verifyKeys(sides, [{ table: await copies.table('big'), keys }]);
  expect(await scans()).toEqual(before);
  await copies.onDestination('ROLLBACK');
});
