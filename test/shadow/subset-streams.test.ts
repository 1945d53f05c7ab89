import { expect, test } from 'vitest';
import type { SubsetRules } from '../../src/core/ports.js';
import { emitMessageSql } from '../../src/core/postgres.js';
import { afterMessages, authorityOf, subsetsFrom, subsetsText } from '../../src/shadow/authority.js';
import { databasePair, type DatabasePair } from '../support/servers.js';
import { EngineHarness, sql } from './engine-harness.js';

const SUBSETS: readonly SubsetRules[] = [
  { subset: 'orders', tables: ['public.orders'], foreignKeys: 'together', crossing: 'refuse' },
];

const route = (subset: string, side: 'source' | 'destination', epoch: number): string =>
  emitMessageSql({ t: 'route', subset, side, epoch });

/** Writes to orders on one side and to users on the other. */
async function write(pair: DatabasePair, orders: 'source' | 'destination', base: number): Promise<void> {
  const on = (side: 'source' | 'destination') => (side === 'source' ? pair.onSource : pair.onDestination);
  await sql(
    on(orders),
    `INSERT INTO orders SELECT n, '${orders}', n % 10 FROM generate_series(${base}, ${base + 30}) n;
     UPDATE orders SET v = 'updated' WHERE id % 5 = 0; DELETE FROM orders WHERE id % 7 = 0;
     UPDATE orders SET day = 9 - day WHERE id % 11 = 0`,
  );
  await sql(
    on('source'),
    `INSERT INTO users SELECT n, 'source' FROM generate_series(${base}, ${base + 30}) n;
     UPDATE users SET id = -id WHERE id % 6 = 0; TRUNCATE visits; INSERT INTO visits VALUES (${base})`,
  );
}

test('each stream carries the changes of the subsets that its side leads, over restarts and a rollback of one', async () => {
  await using pair = await databasePair();
  await sql(
    pair.onSource,
    `CREATE TABLE orders (id int, v text, day int, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
     CREATE TABLE orders_low PARTITION OF orders FOR VALUES FROM (0) TO (5);
     CREATE TABLE orders_high PARTITION OF orders FOR VALUES FROM (5) TO (10);
     CREATE TABLE users (id int PRIMARY KEY, v text); CREATE TABLE visits (id int PRIMARY KEY);
     INSERT INTO users VALUES (1, 'first')`,
  );
  const options = { subsets: SUBSETS };
  {
    await using harness = await new EngineHarness(pair, options).start().reach('following');
    await harness.engine.prepareReverse(AbortSignal.timeout(20_000));
    await write(pair, 'source', 100);
    await harness.caughtUp();
    const before = await harness.engine.status();
    expect(before.streams.map(({ leads }) => leads)).toEqual([['orders', 'rest'], []]);

    await sql(pair.onDestination, route('orders', 'destination', 1));
    await write(pair, 'destination', 200);
    // Past the guard: the destination does not lead users, and what is written there does not go back.
    await sql(pair.onDestination, `INSERT INTO users VALUES (777, 'astray')`);
    await harness.caughtUp('reverse');
    await harness.caughtUp();
    expect((await pair.onSource.query('SELECT FROM public.users WHERE id = 777')).rows).toEqual([]);
    await sql(pair.onDestination, 'DELETE FROM users WHERE id = 777');
    await harness.caughtUp('reverse');
    await harness.expectSame();
    const streams = (await harness.engine.status()).streams;
    expect(streams[1]?.leads).toEqual(['orders']);
    const tables = await harness.engine.tables('orders');
    expect(tables.map(({ name }) => name).sort()).toEqual(['orders', 'orders_high', 'orders_low']);
  }
  // Written while nobody follows.
  await write(pair, 'destination', 300);
  {
    await using harness = await new EngineHarness(pair, options).start().reach('following');
    await harness.caughtUp('reverse');
    await harness.caughtUp();
    await harness.expectSame();

    // The others stay as they are: an older message, and one about another subset, move nothing.
    await sql(pair.onDestination, `${route('rest', 'source', 0)}; ${route('orders', 'source', 0)}`);
    await write(pair, 'destination', 400);
    await harness.caughtUp('reverse');
    await harness.caughtUp();
    await harness.expectSame();

    await sql(pair.onDestination, route('orders', 'source', 2));
    await sql(pair.onSource, route('orders', 'source', 2));
    await write(pair, 'source', 500);
    await harness.caughtUp();
    await harness.caughtUp('reverse');
    await harness.expectSame();
    expect((await harness.engine.status()).streams.map(({ leads }) => leads)).toEqual([
      ['orders', 'rest'],
      [],
    ]);
    const recent = await harness.engine.verifyRecent('forward', AbortSignal.timeout(20_000), 'orders');
    expect(recent.mismatches).toBe(0);
  }
});

test('a subset that no message was about is led as the whole was; what is stored decides the same', () => {
  const whole = { authoritative: true, epoch: 4 };
  const told = afterMessages(whole, [{ t: 'route', subset: 'a', epoch: 1, side: 'destination' }], 'source');
  expect([authorityOf(told, 'a'), authorityOf(told, 'b'), authorityOf(told, 'all')]).toMatchObject([
    { authoritative: false, epoch: 1 },
    { authoritative: true, epoch: 0 },
    { authoritative: true, epoch: 4 },
  ]);
  expect(afterMessages(told, [{ t: 'route', subset: 'a', epoch: 0, side: 'source' }], 'source')).toBe(told);
  expect(subsetsFrom(subsetsText(told)).subsets).toEqual(told.subsets);
  expect(subsetsText(whole)).toBeNull();
});
