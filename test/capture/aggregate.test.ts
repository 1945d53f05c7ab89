import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { CaptureAggregate, OTHER_TABLES, type Execution } from '../../src/capture/aggregate.js';
import { LatencyHistogram } from '../../src/capture/latency.js';
import { StatementCache } from '../../src/capture/statements.js';
import { TransactionCounter } from '../../src/capture/transactions.js';
import { footprintOf } from '../../src/capture/footprint.js';
import { tokenize } from '../../src/capture/sql-tokens.js';

const IDLE = 'I'.charCodeAt(0);

function execution(changed: Partial<Execution> = {}): Execution {
  return {
    sessionId: 1,
    durationMicros: 1_000,
    rows: 0,
    bytesToServer: 10,
    bytesToClient: 20,
    errorClass: null,
    transactionStatus: IDLE,
    cut: false,
    ...changed,
  };
}

function aggregated(tablesMax?: number): {
  aggregate: CaptureAggregate;
  add: (sql: string, changed?: Partial<Execution>) => void;
} {
  const aggregate = new CaptureAggregate(tablesMax);
  const statements = new StatementCache();
  return {
    aggregate,
    add: (sql, changed) => aggregate.add(statements.statement(sql), execution(changed)),
  };
}

describe('what was used', () => {
  test('statements, errors, rows, bytes and latency add up per kind and per table', () => {
    const { aggregate, add } = aggregated();
    add('SELECT * FROM a WHERE id = 1', { rows: 3, durationMicros: 1_000 });
    add('SELECT * FROM a WHERE id = 2', { rows: 4, durationMicros: 9_000 });
    add('UPDATE a SET x = 1', { rows: 7, errorClass: '23' });
    add('SELECT 1');
    const { kinds, tables, unparsed } = aggregate.snapshot();
    expect(unparsed).toBe(0);
    expect(kinds.map(({ kind, statements, errors, rows }) => [kind, statements, errors, rows])).toEqual([
      ['select', 3, 0, 7],
      ['update', 1, 1, 7],
    ]);
    expect(tables).toEqual([
      {
        table: 'a',
        kind: 'select',
        statements: 2,
        errors: 0,
        rows: 7,
        bytesToServer: 20,
        bytesToClient: 40,
        latencyMs: { count: 2, p50: expect.closeTo(1, 0) as number, p99: 9, max: 9 },
      },
      expect.objectContaining({ table: 'a', kind: 'update', statements: 1, errors: 1, rows: 7 }),
    ]);
  });

  test('rows inserted from another table are not rows read from it', () => {
    const { aggregate, add } = aggregated();
    add('INSERT INTO a SELECT * FROM b', { rows: 5 });
    expect(aggregate.snapshot().tables.map(({ table, kind, rows }) => [table, kind, rows])).toEqual([
      ['a', 'insert', 5],
      ['b', 'select', 0],
    ]);
  });

  test('what can’t be read, or was cut, is counted as such', () => {
    const { aggregate, add } = aggregated();
    add('DO $$ BEGIN END $$');
    add('');
    add('SELECT * FROM a', { cut: true });
    add('SELECT * FROM a');
    const { unparsed, tables } = aggregate.snapshot();
    expect(unparsed).toBe(3);
    expect(tables).toMatchObject([{ table: 'a', statements: 2 }]);
  });

  test('tables beyond the bound count together', () => {
    const { aggregate, add } = aggregated(3);
    for (let n = 0; n < 10; n += 1) add(`SELECT * FROM t${n}`);
    add('SELECT * FROM t0');
    const { tables } = aggregate.snapshot();
    expect(tables.map(({ table, statements }) => [table, statements])).toEqual([
      ['t0', 2],
      ['t1', 1],
      ['t2', 1],
      [OTHER_TABLES, 7],
    ]);
  });

  test('unqualified names resolve by the list: the only schema, or public', () => {
    const { aggregate, add } = aggregated();
    add('SELECT * FROM item');
    aggregate.setTables([
      { schema: 'shop', name: 'item' },
      { schema: 'crm', name: 'note' },
      { schema: 'public', name: 'note' },
      { schema: 'crm', name: 'twice' },
      { schema: 'shop', name: 'twice' },
    ]);
    for (const name of ['item', 'note', 'twice', 'unknown', 'crm.note']) add(`SELECT * FROM ${name}`);
    expect(aggregate.snapshot().tables.map(({ table }) => table)).toEqual([
      'item',
      'shop.item',
      'public.note',
      'twice',
      'unknown',
      'crm.note',
    ]);
  });
});

describe('latency', () => {
  test('percentiles are within an eighth above the exact ones, the maximum exact', () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 0, max: 2 ** 32 - 1 }), { minLength: 1 }), (micros) => {
        const histogram = new LatencyHistogram();
        for (const value of micros) histogram.add(value);
        const sorted = micros.toSorted((a, b) => a - b);
        const exact = (q: number): number => sorted[Math.ceil(sorted.length * q) - 1] ?? NaN;
        const { count, p50, p99, max } = histogram.summary();
        expect(count).toBe(micros.length);
        expect(max).toBe(exact(1) / 1000);
        for (const [found, q] of [
          [p50, 0.5],
          [p99, 0.99],
        ] as const) {
          expect(found).toBeGreaterThanOrEqual(exact(q) / 1000);
          expect(found).toBeLessThanOrEqual((exact(q) * 1.125) / 1000);
        }
      }),
    );
  });

  test('nothing measured is zero, and what is out of range is taken at the end of it', () => {
    expect(new LatencyHistogram().summary()).toEqual({ count: 0, p50: 0, p99: 0, max: 0 });
    const histogram = new LatencyHistogram();
    histogram.add(-5);
    histogram.add(2 ** 40);
    expect(histogram.summary()).toMatchObject({ count: 2, p50: 0, max: 2 ** 40 / 1000 });
  });
});

describe('transactions', () => {
  /** Each step is `text>status`, `!` for a failure, no status inside a pipeline. → [committed, rolled back] */
  function counted(...steps: string[]): [number, number] {
    const counter = new TransactionCounter();
    for (const step of steps) {
      const [text = '', status = ''] = step.replace('!', '').split('>');
      const code = status === '' ? 0 : status.charCodeAt(0);
      counter.add(1, code, footprintOf(tokenize(text)), step.endsWith('!'));
    }
    return [counter.committed, counter.rolledBack];
  }

  test.each([
    ['a statement by itself', ['SELECT 1>I', 'UPDATE a SET x = 1>I!'], [1, 1]],
    ['a block', ['BEGIN>T', 'SELECT 1>T', 'COMMIT>I'], [1, 0]],
    ['a block rolled back', ['BEGIN>T', 'ROLLBACK>I'], [0, 1]],
    ['COMMIT of a failed block is a rollback', ['BEGIN>T', 'SELECT 1>E!', 'COMMIT>I'], [0, 1]],
    ['a savepoint saves a block', ['BEGIN>T', 'SELECT 1>E!', 'ROLLBACK TO a>T', 'COMMIT>I'], [1, 0]],
    ['a failing COMMIT', ['BEGIN>T', 'COMMIT>I!'], [0, 1]],
    ['a chain', ['BEGIN>T', 'COMMIT AND CHAIN>T', 'ROLLBACK AND CHAIN>T', 'COMMIT>I'], [2, 1]],
    ['COMMIT without a block only warns', ['SELECT 1>I', 'COMMIT>I'], [1, 0]],
    ['all in one text', ['BEGIN; UPDATE a SET x = 1; COMMIT>I', 'BEGIN; ROLLBACK>I'], [1, 1]],
    [
      'two-phase commit counts when it is committed',
      ['BEGIN>T', "PREPARE TRANSACTION 'x'>I", "COMMIT PREPARED 'x'>I"],
      [1, 0],
    ],
    ['a block seen only from its end', ['COMMIT>I', 'SELECT 1>I'], [2, 0]],
    [
      'a pipeline outside a block ends with its Sync',
      ['INSERT INTO a VALUES (1)', 'INSERT INTO a VALUES (2)>I'],
      [1, 0],
    ],
    ['a pipeline that fails', ['INSERT INTO a VALUES (1)', 'INSERT INTO a VALUES (1)>I!'], [0, 1]],
    ['a block within a pipeline', ['BEGIN', 'UPDATE a SET x = 1', 'COMMIT>I'], [1, 0]],
    ['a block that ends within a pipeline', ['BEGIN>T', 'COMMIT', 'SELECT 1>I'], [2, 0]],
    ['a failing pipeline within a block', ['BEGIN>T', 'SELECT 1', 'SELECT 1!', 'ROLLBACK>I'], [0, 1]],
  ] as const)('%s', (_what, steps, expected) => {
    expect(counted(...steps)).toEqual(expected);
  });

  test('sessions are apart, and remembered only up to a bound', () => {
    const counter = new TransactionCounter();
    const text = (sql: string): ReturnType<typeof footprintOf> => footprintOf(tokenize(sql));
    counter.add(1, 'T'.charCodeAt(0), text('BEGIN'), false);
    counter.add(2, IDLE, text('SELECT 1'), false);
    expect(counter.committed).toBe(1);
    for (let session = 3; session < 30_000; session += 1)
      counter.add(session, IDLE, text('SET x = 1'), false);
    counter.add(1, IDLE, text('COMMIT'), false);
    expect(counter.committed).toBe(29_999);
  });
});
