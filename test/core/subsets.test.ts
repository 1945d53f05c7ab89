import { expect, test } from 'vitest';
import type { SubsetRules } from '../../src/core/ports.js';
import { readSubsetTables, subsetAsked, subsetIds } from '../../src/core/subsets.js';
import { databasePair } from '../support/servers.js';

const rules = (tables: Readonly<Record<string, readonly string[]>>): readonly SubsetRules[] =>
  Object.entries(tables).map(([subset, names]) => ({
    subset,
    tables: names,
    foreignKeys: 'together',
    crossing: 'refuse',
  }));

test('partitions and children go with their nearest named parent, what is named nowhere is the rest', async () => {
  await using pair = await databasePair();
  await pair.onSource.query(`SET search_path = public;
    CREATE TABLE orders (id int, day int) PARTITION BY RANGE (day);
    CREATE TABLE orders_1 PARTITION OF orders FOR VALUES FROM (0) TO (10) PARTITION BY LIST (id);
    CREATE TABLE orders_1_a PARTITION OF orders_1 FOR VALUES IN (1);
    CREATE TABLE base (id int);
    CREATE TABLE child () INHERITS (base);
    CREATE TABLE users (id int);`);
  const found = await readSubsetTables(
    pair.onSource,
    rules({ orders: ['public.orders'], base: ['public.base', 'public.gone'] }),
  );
  expect(found.map(({ subset, tables }) => [subset, tables.map(({ name }) => name)])).toEqual([
    ['orders', ['orders', 'orders_1', 'orders_1_a']],
    ['base', ['base', 'child']],
    ['rest', ['users']],
  ]);
  const [all, ...others] = await readSubsetTables(pair.onSource, []);
  expect([all?.subset, all?.tables.length, others]).toEqual(['all', 6, []]);
});

test('a subset is asked for by its name, which may be left out only where there is one', () => {
  const known = subsetIds(rules({ orders: ['public.orders'] }));
  expect(subsetAsked(known, 'rest')).toBe('rest');
  expect(subsetAsked(subsetIds([]), undefined)).toBe('all');
  expect(() => subsetAsked(known, undefined)).toThrow('which subset? There are orders, rest');
  expect(() => subsetAsked(known, 'order')).toThrow('there is no subset order: there are orders, rest');
});
