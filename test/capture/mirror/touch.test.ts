import { beforeAll, describe, expect, test } from 'vitest';
import { Catalog, type CatalogRelation } from '../../../src/capture/catalog.js';
import { PendingTouches } from '../../../src/capture/mirror/pending.js';
import type { Reach, TableReach } from '../../../src/capture/mirror/reach.js';
import { planTouch, touchOf, type Touch } from '../../../src/capture/mirror/touch.js';
import { PostgresParser } from '../../../src/capture/parser.js';
import { StatementCache } from '../../../src/capture/statements.js';

const relation = (
  name: string,
  columns: readonly string[],
  keys: readonly (readonly string[])[],
): CatalogRelation => ({
  schema: 'public',
  name,
  kind: 'table',
  root: null,
  bases: [],
  columns: columns.map((column) => ({ name: column, type: column === 'b' ? 'text' : 'int8' })),
  keys,
});
const reachOf = (name: string, more: Partial<TableReach> = {}): [string, TableReach] => [
  `public.${name}`,
  { leaves: [`public.${name}`], key: ['id'], runsCode: false, cascades: [], ...more },
];
const catalog = new Catalog({
  searchPath: ['public'],
  relations: [
    relation('account', ['id', 'owner', 'balance'], [['id'], ['owner']]),
    relation('child', ['id', 'account'], [['id']]),
    relation('pair', ['a', 'b', 'note'], [['a', 'b']]),
    relation('noisy', ['id', 'note'], [['id']]),
    relation('part', ['id', 'v'], [['id']]),
  ],
  functions: [],
});
const reach: Reach = {
  tables: new Map([
    reachOf('account', { cascades: ['public.child'] }),
    reachOf('child'),
    reachOf('pair', { key: ['a', 'b'] }),
    reachOf('noisy', { runsCode: true }),
    reachOf('part', { leaves: ['public.part_1', 'public.part_2'] }),
  ]),
  writingFunctions: new Set(['deposit']),
};

const parser = new PostgresParser();
const statements = new StatementCache(parser);
beforeAll(() => parser.load());

interface Shown {
  readonly keys: Readonly<Record<string, readonly string[]>>;
  readonly rows: readonly string[];
  readonly compare: readonly string[];
  readonly unknown: boolean;
}

function touch(text: string, parameters?: readonly (string | null)[]): Touch {
  const read = statements.read(text, false);
  return touchOf(planTouch(read.statement, null, catalog, reach), read, parameters);
}
function shown(text: string, parameters?: readonly (string | null)[]): Shown {
  const { keys, rows, compare, unknown } = touch(text, parameters);
  return {
    keys: Object.fromEntries(
      [...keys].map(([table, named]) => [table.slice(7), named.map((key) => key.join())]),
    ),
    rows: [...rows].map((table) => table.slice(7)),
    compare: [...compare].map((table) => table.slice(7)),
    unknown,
  };
}
const none = { keys: {}, rows: [], compare: [], unknown: false };

describe('what a statement may change', () => {
  test.each<[string, readonly (string | null)[] | undefined, Partial<Shown>]>([
    ['SELECT * FROM account WHERE id = 1', undefined, {}],
    ['SELECT * FROM account WHERE id = 1 FOR UPDATE', undefined, {}],
    ['UPDATE account SET balance = 2 WHERE id = 1', undefined, { keys: { account: ['1'] } }],
    ['UPDATE account SET balance = $1 WHERE id = $2', ['9', '41'], { keys: { account: ['41'] } }],
    [
      'UPDATE account SET balance = 1 WHERE id IN (1, 2, 3)',
      undefined,
      { keys: { account: ['1', '2', '3'] } },
    ],
    // Cascades are told though the row is.
    ['DELETE FROM account WHERE id = 5', undefined, { keys: { account: ['5'] }, compare: ['child'] }],
    ["INSERT INTO account VALUES (1, 'a', 2), (2, 'b', 3)", undefined, { keys: { account: ['1', '2'] } }],
    ["INSERT INTO pair (note, b, a) VALUES ('n', 'x', 3)", undefined, { keys: { pair: ['3,x'] } }],
    ["UPDATE pair SET note = 'n' WHERE b = 'x' AND a = 3", undefined, { keys: { pair: ['3,x'] } }],
    ['UPDATE part SET v = 1 WHERE id = 4', undefined, { keys: { part_1: ['4'], part_2: ['4'] } }],
  ])('%s', (text, parameters, expected) => {
    expect(shown(text, parameters)).toEqual({ ...none, ...expected });
  });

  test.each<[string, readonly (string | null)[] | undefined, Partial<Shown>]>([
    // The key is made by the server.
    ["INSERT INTO account (owner) VALUES ('a')", undefined, { rows: ['account'] }],
    ["INSERT INTO account VALUES (1, 'a', 2), (DEFAULT, 'b', 3)", undefined, { rows: ['account'] }],
    ['INSERT INTO account SELECT * FROM child', undefined, { rows: ['account'] }],
    // Another row than the one named may be the one that is updated.
    [
      "INSERT INTO account (id, owner) VALUES (1, 'a') ON CONFLICT (owner) DO UPDATE SET balance = 1",
      undefined,
      { rows: ['account'] },
    ],
    ['UPDATE account SET balance = 0 WHERE balance < 0', undefined, { rows: ['account'] }],
    ["UPDATE account SET balance = 0 WHERE owner = 'a'", undefined, { rows: ['account'] }],
    ['UPDATE account SET balance = 0 WHERE id = 1 OR balance = 2', undefined, { rows: ['account'] }],
    // A parameter that was cut off, or is NULL.
    ['UPDATE account SET balance = $1 WHERE id = $2', ['9'], { rows: ['account'] }],
    ['DELETE FROM child WHERE account = 1', undefined, { compare: ['child'] }],
    ['DELETE FROM child WHERE id = ANY($1)', ['{1,2}'], { compare: ['child'] }],
    // The new key is not among the values that fix the old one.
    [
      'UPDATE account SET id = 9 WHERE id = 1',
      undefined,
      { rows: ['account'], compare: ['account', 'child'] },
    ],
    ['TRUNCATE child', undefined, { compare: ['child'] }],
    // Every pair, not only 1 with x and 2 with y.
    ["DELETE FROM pair WHERE a IN (1, 2) AND b IN ('x', 'y')", undefined, { compare: ['pair'] }],
    // Two commands that look like one.
    [
      'UPDATE account SET balance = 1 WHERE id = 1; UPDATE account SET balance = 2 WHERE balance = 3',
      undefined,
      { rows: ['account'] },
    ],
    [
      'WITH x AS (UPDATE account SET balance = 2 WHERE balance = 3) UPDATE account SET balance = 1 WHERE id = 1',
      undefined,
      { rows: ['account'] },
    ],
    [
      'WITH gone AS (DELETE FROM child WHERE id = 1 RETURNING *) INSERT INTO account SELECT * FROM gone',
      undefined,
      { rows: ['account'], compare: ['child'] },
    ],
  ])('%s names no key', (text, parameters, expected) => {
    expect(shown(text, parameters)).toEqual({ ...none, ...expected });
  });

  test.each<[string, Partial<Shown>]>([
    ['SELECT deposit(1, 2)', {}],
    ['DO $$ BEGIN PERFORM 1; END $$', {}],
    ['CALL anything()', {}],
    ['this is no SQL', {}],
    ['UPDATE unheard_of SET a = 1 WHERE id = 1', {}],
    ['UPDATE noisy SET note = 1 WHERE id = 3', { keys: { noisy: ['3'] } }],
    ['UPDATE account SET balance = deposit(1, 2) WHERE id = 3', { keys: { account: ['3'] } }],
  ])('%s may do more than can be told', (text, expected) => {
    expect(shown(text)).toEqual({ ...none, unknown: true, ...expected });
  });
});

describe('transactions', () => {
  const one = (): Touch => touch('UPDATE account SET balance = 2 WHERE id = 1');

  test('give out what they touched once their end was answered', () => {
    const pending = new PendingTouches();
    pending.add(1, one(), true, 0);
    expect(pending.take(1)).toBeNull();
    pending.add(1, null, false, 2);
    expect(pending.take(3)?.keys).toEqual([{ table: 'public.account', keys: [['1']] }]);
    expect(pending.take(4)).toBeNull();
  });

  test('that are heard of no more are looked at again and again, and in the end their tables are compared', () => {
    const pending = new PendingTouches();
    pending.add(1, one(), true, 0);
    for (const at of [2_500, 5_000]) expect(pending.take(at)?.keys).toHaveLength(1);
    expect(pending.take(700_000)?.compare).toEqual(['public.account']);
    expect(pending.take(800_000)).toBeNull();
  });

  test('that are prepared are looked at when any is ended', () => {
    const pending = new PendingTouches();
    pending.add(1, one(), true, 0);
    pending.prepared(1);
    expect(pending.take(10_000)).toBeNull();
    pending.preparedEnded();
    expect(pending.take(10_001)?.keys).toHaveLength(1);
  });

  test('that touch too many keys count as their tables', () => {
    const pending = new PendingTouches();
    for (let id = 0; id < 6_000; id += 1) {
      pending.add(1, touch('UPDATE account SET balance = $1 WHERE id = $2', ['1', String(id)]), true, 0);
    }
    pending.add(1, null, false, 1);
    const taken = pending.take(2);
    expect(taken?.keys[0]?.keys).toHaveLength(5_000);
    expect(taken?.rows).toEqual(['public.account']);
    expect(taken?.compare).toEqual(['public.account']);
  });
});
