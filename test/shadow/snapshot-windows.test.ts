import { expect, test } from 'vitest';
import { applyTable, bind } from '../../src/shadow/postgres/apply-table.js';
import { ChunkWindows } from '../../src/shadow/postgres/chunk-windows.js';
import type { Chunk, ChunkOutcome } from '../../src/shadow/postgres/chunk.js';
import type { ColumnInfo } from '../../src/shadow/postgres/table.js';
import type { Change } from '../../src/shadow/postgres/transactions.js';
import { DeliveredTransactions, parseSnapshot } from '../../src/shadow/postgres/visibility.js';
import type { RelationMessage } from '../../src/wire/postgres/pgoutput.js';

const names = ['id', 'big', 'small'];
const table = applyTable(
  {
    schema: 'public',
    name: 't',
    kind: 'ordinary',
    columns: names.map((name): ColumnInfo => ({
      name,
      type: 'text',
      typeKind: 'b',
      notNull: false,
      generated: false,
      identity: null,
      collatable: true,
    })),
    key: ['id'],
    replicaIdentity: 'd',
    unlogged: false,
    rowsEstimated: 0,
    bytes: 0,
  },
  ['pg_catalog'],
);

function relationWith(typeOid: number): RelationMessage {
  return {
    kind: 'relation',
    id: 1,
    schema: 'public',
    name: 't',
    replicaIdentity: 'd',
    columns: names.map((name) => ({ name, identity: name === 'id', typeOid, typeModifier: -1 })),
  };
}
const relation = relationWith(25);

interface Flight {
  readonly windows: ChunkWindows;
  readonly delivered: DeliveredTransactions;
  readonly chunk: Chunk;
  readonly outcomes: ChunkOutcome[];
  readonly see: (...changes: readonly Change[]) => void;
}

/** A registered chunk whose snapshot is `snapshot`. */
function flight(snapshot = '100:100:', windows = new ChunkWindows(), id = 'c'): Flight {
  const outcomes: ChunkOutcome[] = [];
  const chunk: Chunk = {
    id,
    table,
    lower: null,
    pendingKeyId: null,
    repairs: null,
    snapshot: parseSnapshot(snapshot),
    read: { frames: [], bytes: 0, format: 'text', rows: 3, upper: null },
    settle: (outcome) => outcomes.push(outcome),
  };
  windows.register(chunk);
  return {
    windows,
    delivered: new DeliveredTransactions(),
    chunk,
    outcomes,
    see: (...changes) => {
      for (const change of changes) windows.observe(change, (seen) => bind(seen, table));
    },
  };
}

const insert = (id: string): Change => ({ kind: 'insert', relation, row: [id, 'b', 's'] });
const remove = (id: string): Change => ({
  kind: 'delete',
  relation,
  old: { kind: 'key', row: [id, null, null] },
});
const partial = (id: string, small: string): Change => ({
  kind: 'update',
  relation,
  old: null,
  row: [id, undefined, small],
});
const carry = (from: string, to: string): Change => ({
  kind: 'update',
  relation,
  old: { kind: 'key', row: [from, null, null] },
  row: [to, undefined, 's'],
});

test('only what lies between the marks counts', () => {
  const { windows, delivered, see } = flight();
  see(insert('before'));
  windows.low('c', delivered);
  see(
    insert('in'),
    remove('gone'),
    partial('p', '1'),
    partial('p', '2'),
    partial('in', 'x'),
    carry('a', 'z'),
  );
  expect(windows.high('c')).toMatchObject({
    dropped: [['in'], ['gone'], ['a'], ['z']],
    overlays: [{ key: ['p'], row: ['p', undefined, '2'] }],
  });
  see(insert('after'));
  expect(windows.high('c')).toBeNull();
});

test('a truncation or another definition between the marks spoils the chunk', () => {
  for (const change of [
    { kind: 'truncate', relations: [relation] } as const,
    { kind: 'insert', relation: relationWith(1043), row: ['1', 'b', 's'] } as const,
  ]) {
    const { windows, delivered, see, chunk } = flight();
    windows.low('c', delivered);
    see(insert('1'), change, insert('2'));
    expect(windows.high('c')).toEqual({ chunk, outcome: 'discarded' });
  }
});

test('a chunk whose snapshot misses a commit from before its low mark is stale', () => {
  const { windows, delivered, chunk } = flight('100:110:105');
  for (const xid of [99, 105]) delivered.delivered(xid);
  windows.low('c', delivered);
  delivered.delivered(108);
  expect(windows.high('c')).toEqual({ chunk, outcome: 'stale' });
});

test('a commit is remembered until every chunk under way has been checked for it', () => {
  const older = flight('100:110:105', new ChunkWindows(), 'older');
  const { windows, delivered } = older;
  flight('106:120:', windows, 'newer');
  delivered.delivered(105);
  windows.low('newer', delivered);
  // The newer snapshot sees it; the older chunk's low mark is still to come.
  windows.low('older', delivered);
  expect(windows.high('newer')).toHaveProperty('read');
  expect(windows.high('older')).toMatchObject({ outcome: 'stale' });

  const taking = flight('106:120:', new ChunkWindows(), 'taking');
  taking.chunk.snapshot = 'taking';
  flight('106:120:', taking.windows, 'other');
  taking.delivered.delivered(105);
  taking.windows.low('other', taking.delivered);
  expect(taking.delivered.unseen).toEqual([105]);
  taking.windows.discard(taking.chunk);
  taking.windows.low('unknown', taking.delivered);
  flight('106:120:', taking.windows, 'last');
  taking.windows.low('last', taking.delivered);
  expect(taking.delivered.unseen).toEqual([]);
});

test('an interruption discards every chunk, once', () => {
  const { windows, delivered, outcomes } = flight();
  windows.low('c', delivered);
  windows.discardAll();
  windows.discardAll();
  expect(outcomes).toEqual(['discarded']);
  expect(windows.high('c')).toBeNull();
});

test('a key that certainly lies outside the chunk is not dropped from it', () => {
  const info = table.info;
  const integers = applyTable(
    { ...info, columns: info.columns.map((column) => ({ ...column, type: 'bigint' })), key: ['id', 'small'] },
    ['pg_catalog', 'pg_catalog'],
  );
  const keysLeft = (
    of: typeof table,
    range: { lower: string[] | null; upper: string[] | null; pendingKeyId?: string },
  ): unknown => {
    const windows = new ChunkWindows();
    const chunk: Chunk = {
      id: 'c',
      table: of,
      lower: range.lower,
      pendingKeyId: range.pendingKeyId ?? null,
      repairs: null,
      snapshot: parseSnapshot('100:100:'),
      read: { frames: [], bytes: 0, format: 'text', rows: 3, upper: range.upper },
      settle: () => undefined,
    };
    windows.register(chunk);
    windows.low('c', new DeliveredTransactions());
    for (const id of ['-3', '9', '10', '11', '20', '21', '9007199254740993'])
      windows.observe({ kind: 'insert', relation, row: [id, '0', '0'] }, (seen) => bind(seen, of));
    const closed = windows.high('c');
    return closed !== null && 'dropped' in closed ? closed.dropped.map(([id]) => id) : closed;
  };
  // At a border the second column decides, so both borders stay.
  expect(keysLeft(integers, { lower: ['10', '5'], upper: ['20', '5'] })).toEqual(['10', '11', '20']);
  expect(keysLeft(integers, { lower: null, upper: ['9', '0'] })).toEqual(['-3', '9']);
  expect(keysLeft(integers, { lower: ['20', '0'], upper: null })).toEqual(['20', '21', '9007199254740993']);
  expect(keysLeft(integers, { lower: ['9007199254740992', '0'], upper: null })).toEqual(['9007199254740993']);
  // The order of texts is the server's to say, and a repaired key has no range.
  expect(keysLeft(table, { lower: ['10'], upper: ['20'] })).toHaveLength(7);
  expect(keysLeft(integers, { lower: ['9', '0'], upper: null, pendingKeyId: '1' })).toHaveLength(7);
});
