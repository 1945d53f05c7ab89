import { expect, test } from 'vitest';
import { strayWrites } from '../../src/shadow/conflicts/strays.js';
import { TransactionAssembler, type TransactionPart } from '../../src/shadow/postgres/transactions.js';
import type { PgOutputMessage } from '../../src/wire/postgres/pgoutput.js';

const RELATION: PgOutputMessage = {
  kind: 'relation',
  id: 1,
  schema: 'public',
  name: 't',
  replicaIdentity: 'd',
  columns: [{ name: 'id', identity: true, typeOid: 23, typeModifier: -1 }],
};

function assembler(partBytesMax: number): TransactionAssembler {
  return new TransactionAssembler('destination', {
    authority: { authoritative: false, epoch: 0 },
    wanted: () => true,
    partBytesMax,
    notesStrays: true,
  });
}

/** One transaction of so many rows, each of so many bytes. */
function transaction(of: TransactionAssembler, rows: number, bytes: number): TransactionPart | null {
  of.accept({ kind: 'begin', commitLsn: 10n, commitMicros: 0n, xid: 7 }, 20);
  of.accept(RELATION, 50);
  for (let id = 1; id <= rows; id++) of.accept({ kind: 'insert', relationId: 1, row: [String(id)] }, bytes);
  return of.accept({ kind: 'commit', commitLsn: 10n, endLsn: 20n, commitMicros: 0n }, 20);
}

test('what was written while the origin did not lead counts in the bytes that wait', () => {
  const part = transaction(assembler(1_000_000), 3, 1000);
  expect(part?.strays).toHaveLength(3);
  expect(part?.bytes).toBeGreaterThanOrEqual(3000);
});

test('of a transaction of wide rows no more is held than of any other', () => {
  const part = transaction(assembler(100_000), 900, 50_000);
  expect(part?.strays).toHaveLength(2);
  expect(part).toMatchObject({ straysCut: true });
});

test('a TRUNCATE of many tables names each, at a place of its own', () => {
  const of = assembler(1_000_000);
  of.accept({ kind: 'begin', commitLsn: 10n, commitMicros: 0n, xid: 7 }, 20);
  for (const id of [1, 2, 3, 4]) of.accept({ ...RELATION, id, name: `t${id}` }, 50);
  of.accept({ kind: 'truncate', relationIds: [1, 2, 3, 4], cascade: false, restartIdentity: false }, 50);
  of.accept({ kind: 'insert', relationId: 1, row: ['1'] }, 50);
  const part = of.accept({ kind: 'commit', commitLsn: 10n, endLsn: 20n, commitMicros: 0n }, 20);
  if (part === null) throw new Error('no part');
  const strays = strayWrites(part, part.strays.slice(0, 1), 0, true, () => {
    throw new Error('a TRUNCATE is bound to nothing');
  });
  expect(strays.map(({ table, kind }) => `${kind} ${table.name}`)).toEqual([
    'truncate t1',
    'truncate t2',
    'truncate t3',
    'truncate t4',
    'many t1',
  ]);
  expect(new Set(strays.map(({ ordinal }) => ordinal)).size).toBe(5);
});
