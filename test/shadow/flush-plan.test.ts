import fc from 'fast-check';
import { expect, test } from 'vitest';
import {
  applyTable,
  bind,
  keyId,
  relationDifference,
  type Binding,
  type Value,
} from '../../src/shadow/postgres/apply-table.js';
import { FlushPlanner, overlay, type Step } from '../../src/shadow/postgres/flush-plan.js';
import type { Change } from '../../src/shadow/postgres/transactions.js';
import { fullXid, parseSnapshot, sees } from '../../src/shadow/postgres/visibility.js';
import type { ColumnInfo, TableInfo } from '../../src/shadow/postgres/table.js';
import type { RelationMessage } from '../../src/wire/postgres/pgoutput.js';

const COLUMNS = ['id', 'big', 'small'];

function column(name: string): ColumnInfo {
  return {
    name,
    type: 'text',
    typeKind: 'b',
    notNull: false,
    generated: false,
    identity: null,
    collatable: true,
  };
}

const info: TableInfo = {
  schema: 'public',
  name: 't',
  kind: 'ordinary',
  columns: COLUMNS.map(column),
  key: ['id'],
  replicaIdentity: 'd',
  unlogged: false,
  rowsEstimated: 0,
  bytes: 0,
};
const table = applyTable(info, ['pg_catalog']);
const relation: RelationMessage = {
  kind: 'relation',
  id: 1,
  schema: 'public',
  name: 't',
  replicaIdentity: 'd',
  columns: COLUMNS.map((name) => ({ name, identity: name === 'id', typeOid: 25, typeModifier: -1 })),
};
const binding: Binding = bind(relation, table);

type Rows = Map<string, readonly Value[]>;

interface Command {
  readonly what: 'insert' | 'update' | 'touch' | 'delete' | 'move' | 'carry' | 'truncate';
  readonly key: number;
  readonly to: number;
  readonly value: string;
}

const commands = fc.array(
  fc.record({
    what: fc.constantFrom<Command['what'][]>(
      'insert',
      'update',
      'touch',
      'delete',
      'move',
      'carry',
      'truncate',
    ),
    key: fc.integer({ min: 0, max: 5 }),
    to: fc.integer({ min: 0, max: 5 }),
    value: fc.constantFrom('a', 'b', 'c'),
  }),
  { maxLength: 40 },
);

/** Runs a command on the origin's rows, and returns the change its log would carry; null where it does nothing. */
function originate(rows: Rows, { what, key, to, value }: Command): Change | null {
  const id = String(key);
  const row = rows.get(id);
  if (what === 'truncate') {
    rows.clear();
    return { kind: 'truncate', relations: [relation] };
  }
  if (what === 'insert') {
    if (row !== undefined) return null;
    const made = [id, `big ${value}`, value];
    rows.set(id, made);
    return { kind: 'insert', relation, row: made };
  }
  if (row === undefined) return null;
  const oldKey = { kind: 'key', row: [id, null, null] } as const;
  switch (what) {
    case 'delete':
      rows.delete(id);
      return { kind: 'delete', relation, old: oldKey };
    case 'update':
      rows.set(id, [id, `big ${value}`, value]);
      return { kind: 'update', relation, old: null, row: [id, `big ${value}`, value] };
    case 'touch':
      rows.set(id, [id, row[1], value]);
      return { kind: 'update', relation, old: null, row: [id, undefined, value] };
    case 'move':
    case 'carry': {
      const target = String(to);
      if (rows.has(target)) return null;
      rows.delete(id);
      const big = what === 'move' ? `big ${value}` : row[1];
      rows.set(target, [target, big, value]);
      return {
        kind: 'update',
        relation,
        old: oldKey,
        row: [target, what === 'move' ? big : undefined, value],
      };
    }
  }
}

/** What the steps do, by the words of their definition. */
function apply(rows: Rows, steps: readonly Step[]): void {
  for (const step of steps) {
    if (step.kind === 'truncate' || step.kind === 'truncate-part') {
      rows.clear();
    } else if (step.kind === 'move') {
      const row = rows.get(keyId(step.from));
      if (row === undefined) throw new Error('moved a row that is not there');
      rows.delete(keyId(step.from));
      const moved = overlay(row, step.row);
      rows.set(String(moved[0]), moved);
    } else {
      for (const { keyed } of step.tables) {
        for (const { key, row } of keyed.values()) if (row === null) rows.delete(keyId(key));
        for (const { key, row } of keyed.values()) {
          if (row === null) continue;
          const present = rows.get(keyId(key));
          if (!row.includes(undefined)) rows.set(keyId(key), [...row]);
          else if (present !== undefined) rows.set(keyId(key), overlay(present, row));
        }
      }
    }
  }
}

test.each([true, false])('any history ends in the origin’s rows (coalesced: %s)', (coalesce) => {
  fc.assert(
    fc.property(commands, fc.integer({ min: 1, max: 9 }), (history, flushLength) => {
      const origin: Rows = new Map();
      const target: Rows = new Map();
      for (let start = 0; start < history.length; start += flushLength) {
        const planner = new FlushPlanner(coalesce);
        for (const command of history.slice(start, start + flushLength)) {
          const change = originate(origin, command);
          if (change !== null) planner.add(change, () => binding);
        }
        apply(target, planner.finish());
        expect(target).toEqual(origin);
      }
    }),
    { numRuns: 500 },
  );
});

test('within a step each key is written once', () => {
  const planner = new FlushPlanner(true);
  for (let round = 0; round < 10; round++) {
    planner.add({ kind: 'update', relation, old: null, row: ['1', undefined, String(round)] }, () => binding);
  }
  planner.add({ kind: 'insert', relation, row: ['2', 'b', 's'] }, () => binding);
  planner.add({ kind: 'delete', relation, old: { kind: 'key', row: ['2', null, null] } }, () => binding);
  const steps = planner.finish();
  expect(steps).toHaveLength(1);
  const [step] = steps;
  expect(step?.kind === 'rows' && [...(step.tables[0]?.keyed.values() ?? [])]).toEqual([
    { key: ['1'], row: ['1', undefined, '9'], existed: true },
    { key: ['2'], row: null, existed: false },
  ]);
});

test('a relation whose columns are not the table’s is told by name', () => {
  const other = { ...relation, columns: relation.columns.slice(0, 2) };
  expect(relationDifference(other, table)).toEqual({ added: [], missing: ['small'] });
});

test('a snapshot tells which of the streamed transactions it sees, across the 32-bit turn', () => {
  const snapshot = parseSnapshot('4294967290:4294967300:4294967291,4294967298');
  expect(fullXid(2, snapshot.xmax)).toBe(4294967298n);
  expect(fullXid(4294967290, snapshot.xmax)).toBe(4294967290n);
  expect(sees(snapshot, 4294967289)).toBe(true);
  expect(sees(snapshot, 4294967291)).toBe(false);
  expect(sees(snapshot, 1)).toBe(true);
  expect(sees(snapshot, 2)).toBe(false);
  expect(sees(snapshot, 4)).toBe(false);
  expect(sees(parseSnapshot('10:10:'), 9)).toBe(true);
});
