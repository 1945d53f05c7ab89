/** How many captured transactions touch two subsets, and which of them are not to be parted for it. */
import { expect, test } from 'vitest';
import { crossingsOf } from '../../src/app/crossing.js';
import { readSubsetTies } from '../../src/app/subset-ties.js';
import type { SubsetRules } from '../../src/core/ports.js';
import { databasePair } from '../support/servers.js';

test('pairs of tables in different subsets are counted by subsets, the most frequent first', () => {
  const table = (name: string): { schema: string; name: string } => ({ schema: 'public', name });
  const crossings = crossingsOf(
    [
      { a: 'public.a1', b: 'public.a2', transactions: 900 },
      { a: 'public.a1', b: 'public.b1', transactions: 10 },
      { a: 'public.a2', b: 'public.b1', transactions: 7 },
      { a: 'public.b1', b: 'public.r1', transactions: 40 },
      { a: 'public.b1', b: 'public.gone', transactions: 99 },
    ],
    [
      { subset: 'b', tables: [table('b1')] },
      { subset: 'a', tables: [table('a1'), table('a2')] },
      { subset: 'rest', tables: [table('r1')] },
    ],
  );
  expect(crossings).toEqual([
    { one: 'b', other: 'rest', total: 40, most: { a: 'public.b1', b: 'public.r1', transactions: 40 } },
    { one: 'a', other: 'b', total: 17, most: { a: 'public.a1', b: 'public.b1', transactions: 10 } },
  ]);
});

test('foreign keys tie subsets, and captured transactions those that follow', async () => {
  await using pair = await databasePair();
  await pair.onSource.query(`
    CREATE TABLE public.a (id int PRIMARY KEY); CREATE TABLE public.b (id int REFERENCES public.a);
    CREATE TABLE public.c (id int); CREATE TABLE public.d (id int)`);
  const rules = (crossing: SubsetRules['crossing']): readonly SubsetRules[] =>
    ['a', 'b', 'c'].map((name) => ({
      subset: name,
      tables: [`public.${name}`],
      foreignKeys: 'together',
      crossing: name === 'c' ? crossing : 'refuse',
    }));
  const ties = async (crossing: SubsetRules['crossing']): Promise<readonly string[]> =>
    (await readSubsetTies(pair.onSource, pair.onDestination, rules(crossing))).map(
      ({ a, b, by, detail }) => `${a} ${b} ${by} ${detail}`,
    );
  const key = 'b a foreign-key foreign key b_id_fkey, from public.b to public.a';
  expect(await ties('refuse')).toEqual([key]);
  const unknown = ['a c', 'b c', 'c rest'].map((two) => `${two} crossing-unknown nothing was captured yet`);
  expect(await ties('follow')).toEqual([key, ...unknown]);
  await pair.onDestination.query(`
    CREATE SCHEMA understudy;
    CREATE TABLE understudy.series_table (id int, name text);
    CREATE TABLE understudy.series_co_access (a int, b int, transactions float8);
    INSERT INTO understudy.series_table VALUES (1, 'public.c'), (2, 'public.d'), (3, 'public.a')`);
  // Something was captured, and nothing of it touched two tables.
  expect(await ties('follow')).toEqual([key]);
  await pair.onDestination.query('INSERT INTO understudy.series_co_access VALUES (1, 2, 12), (2, 3, 5)');
  expect(await ties('follow')).toEqual([key, expect.stringMatching(/^c rest crossing between 12 and 12 /)]);
});
