import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { BoundedCache } from '../../src/capture/bounded-cache.js';
import { fingerprintOf } from '../../src/capture/fingerprint.js';
import { tokenize } from '../../src/capture/sql-tokens.js';
import { StatementCache } from '../../src/capture/statements.js';
import { ReachCache, reachKey } from '../../src/capture/subset/reach-cache.js';
import type { StatementReach } from '../../src/core/subset-ports.js';

function fingerprint(sql: string): string {
  return fingerprintOf(tokenize(sql).tokens);
}

describe('fingerprint', () => {
  test.each([
    ['SELECT * FROM Shop.Item WHERE id = 42;', 'select * from shop.item where id = ?'],
    ['select *\n  from shop . item -- all\n where id=$1', 'select * from shop.item where id = ?'],
    [`UPDATE "Item" SET a = 'x', b = -1.5, c = a - 1`, 'update "Item" set a = ?, b = ?, c = a - ?'],
    ['SELECT count(*) FROM t WHERE id IN (1, 2,3)', 'select count(*) from t where id in (?)'],
    ['SELECT 1 FROM t WHERE id in ($1)', 'select ? from t where id in (?)'],
    ['SELECT 1 FROM t WHERE id IN (SELECT 1)', 'select ? from t where id in (select ?)'],
    ['SELECT f(1, 2)', 'select f(?, ?)'],
    [`INSERT INTO t (a, b) VALUES (1, 'x'), (2, 'y'), (3, 'z')`, 'insert into t(a, b) values (?, ?)'],
    ['INSERT INTO t VALUES (1, now()), (2, now())', 'insert into t values (?, now())'],
    ['INSERT INTO t VALUES (1), (DEFAULT)', 'insert into t values (?), (default)'],
    ['SELECT ARRAY[1,2,3] || a[1]', 'select array[?] || a[?]'],
    [`SELECT a->>'b', c::text, d != 1`, 'select a ->> ?, c::text, d != ?'],
    ['/* app:shop */ BEGIN', 'begin'],
    ['', ''],
  ])('%s', (sql, expected) => {
    expect(fingerprint(sql)).toBe(expected);
  });

  test('it does not change with values, spaces, comments or the case of words', () => {
    const value = fc.oneof(
      fc.integer().map(String),
      fc.double({ noNaN: true, noDefaultInfinity: true }).map((n) => n.toString()),
      fc.string().map((text) => `'${text.replaceAll("'", "''")}'`),
      fc.constantFrom('$1', '$$text$$', "E'\\n'", "x'ff'"),
    );
    const gap = fc.constantFrom(' ', '\n', ' /* c */ ', ' -- c\n', '\t');
    fc.assert(
      fc.property(value, fc.array(value, { minLength: 1, maxLength: 5 }), gap, (one, many, space) => {
        const sql = [
          'Select',
          'a.b',
          'From',
          'A',
          'wHERE',
          'c',
          '=',
          one,
          'AND d IN',
          `(${many.join(',')})`,
          'LIMIT',
          one,
        ];
        expect(fingerprint(sql.join(space))).toBe('select a.b from a where c = ? and d in (?) limit ?');
      }),
    );
  });
});

describe('statements', () => {
  test('texts that differ only in values are one statement', () => {
    const cache = new StatementCache();
    const first = cache.statement('SELECT * FROM item WHERE id = 1');
    expect(first).toMatchObject({ kind: 'select', accesses: [{ table: { schema: null, name: 'item' } }] });
    expect(cache.statement('select * from item where id = 222')).toBe(first);
    expect(cache.statement('SELECT * FROM item WHERE name = 1')).not.toBe(first);
  });

  test('a cut text is not taken for a whole one of the same shape', () => {
    const cache = new StatementCache();
    expect(cache.statement(`SELECT * FROM item WHERE name = 'x'`).parsed).toBe(true);
    expect(cache.statement(`SELECT * FROM item WHERE name = 'x`).parsed).toBe(false);
  });

  test('nesting beyond the stack is unreadable, not fatal', () => {
    const cache = new StatementCache();
    expect(cache.statement(`SELECT ${'('.repeat(60_000)}`)).toMatchObject({ kind: 'unknown', parsed: false });
    expect(cache.statement('')).toMatchObject({ kind: 'unknown', parsed: false });
  });

  test('the cache forgets what was not used, and never grows beyond its bounds', () => {
    const cache = new BoundedCache<number>(10, 1_000);
    cache.set('kept', 0);
    for (let n = 1; n < 1_000; n += 1) {
      cache.set(`entry ${n}`, n);
      expect(cache.get('kept')).toBe(0);
      expect(cache.size).toBeLessThanOrEqual(20);
    }
    expect(cache.get('entry 1')).toBeUndefined();
    expect(cache.get('entry 999')).toBe(999);
    const heavy = new BoundedCache<number>(1_000, 100);
    for (let n = 0; n < 50; n += 1) heavy.set(String(n).padStart(60, '0'), n);
    expect(heavy.size).toBeLessThanOrEqual(2);
  });
});

test('what a statement touches is known for others that differ in numbers alone, under the same names', () => {
  const cache = new ReachCache();
  const scope = { searchPath: 'public', user: 'app' };
  const reach: StatementReach = {
    fingerprint: '0',
    subsets: ['a'],
    unknown: null,
    redo: 'skip',
    changesScope: false,
    scopeEnd: 'none',
    executes: [],
  };
  cache.set(reachKey('SELECT * FROM t WHERE id = 1', scope), reach);
  for (const id of [1, 2, 2]) expect(cache.get(`SELECT * FROM t WHERE id = ${id}`, scope)).toBe(reach);
  expect(cache.get('SELECT * FROM t2 WHERE id = 1', scope)).toBeUndefined();
  expect(cache.get('SELECT * FROM t WHERE id = 1', { ...scope, user: 'other' })).toBeUndefined();
  expect(cache.get('SELECT * FROM t WHERE id = 1', { ...scope, prepared: true })).toBeUndefined();
  expect(cache.get('SELECT * FROM t WHERE id = 1', { ...scope, searchPath: 'a' })).toBeUndefined();
});
