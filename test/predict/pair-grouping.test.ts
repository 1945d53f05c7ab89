import fc from 'fast-check';
import { expect, test } from 'vitest';
import { groupByPairs, type PairUse } from '../../src/predict/pair-grouping.js';

const use = (a: string, b: string, transactions: number): PairUse => ({ a, b, transactions });

test('tables used together become one group, at its size by the pairs', () => {
  const { groups, crossings } = groupByPairs({
    tables: ['a', 'b', 'c', 'd'],
    uses: [use('a', 'a', 100), use('b', 'b', 50), use('a', 'b', 50), use('c', 'c', 200), use('a', 'c', 1)],
    bound: [],
    foreignKeys: [['c', 'd']],
  });
  expect(groups.map(({ tables }) => tables)).toEqual([
    ['a', 'b'],
    ['c', 'd'],
  ]);
  expect(groups[0]).toMatchObject({ transactions: 100, crossing: { value: 0.01, low: 0.01, high: 0.01 } });
  expect(crossings).toEqual([{ a: 0, b: 1, share: 0.01 }]);
});

test('what is bound is together whatever the use, foreign keys decide only where nothing was seen', () => {
  const { groups } = groupByPairs({
    tables: ['a', 'b', 'c'],
    uses: [use('a', 'a', 10), use('b', 'b', 10), use('c', 'c', 10)],
    bound: [['a', 'c']],
    foreignKeys: [['a', 'b']],
  });
  expect(groups.map(({ tables }) => tables)).toEqual([['a', 'c'], ['b']]);
});

test('every table is in exactly one group, and shares are shares', () => {
  const name = fc.constantFrom('a', 'b', 'c', 'd', 'e', 'f', 'unknown');
  fc.assert(
    fc.property(
      fc.array(fc.tuple(name, name, fc.nat(1000)), { maxLength: 40 }),
      fc.array(fc.tuple(name, name), { maxLength: 4 }),
      (uses, bound) => {
        const { groups } = groupByPairs({
          tables: ['a', 'b', 'c', 'd', 'e', 'f'],
          uses: uses.map(([a, b, transactions]) => use(a, b, transactions)),
          bound,
          foreignKeys: bound,
        });
        expect(groups.flatMap(({ tables }) => tables).sort()).toEqual(['a', 'b', 'c', 'd', 'e', 'f']);
        for (const { crossing } of groups) {
          expect(crossing.low).toBeLessThanOrEqual(crossing.value);
          expect(crossing.value).toBeLessThanOrEqual(Math.max(crossing.high, crossing.value));
          for (const share of Object.values(crossing)) expect(share >= 0 && share <= 1).toBe(true);
        }
        for (const [a, b] of bound) {
          const home = groups.find(({ tables }) => tables.includes(a));
          if (a !== 'unknown' && b !== 'unknown') expect(home?.tables).toContain(b);
        }
      },
    ),
  );
});
