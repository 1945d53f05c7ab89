/** The auditor catches what it is there for. */
import { describe, expect, test } from 'vitest';
import {
  auditBank,
  auditLedger,
  auditProbes,
  auditRegisters,
  type Attempt,
  type Probe,
} from '../../../bench/chaos/audit.js';

const problems = (findings: readonly { readonly problem: string }[]): readonly string[] =>
  findings.map(({ problem }) => problem);

describe('ledger', () => {
  const attempts: readonly Attempt[] = [
    { id: 1, outcome: 'acknowledged' },
    { id: 2, outcome: 'unknown' },
    { id: 3, outcome: 'failed' },
  ];

  test('an unknown outcome may be either', () => {
    expect(auditLedger('row', attempts, [1])).toEqual([]);
    expect(auditLedger('row', attempts, [1, 2])).toEqual([]);
  });

  test('lost, duplicated, refused and yet written, from nowhere', () => {
    expect(problems(auditLedger('row', attempts, []))).toEqual(['lost']);
    expect(problems(auditLedger('row', attempts, [1, 1]))).toEqual(['duplicated']);
    expect(problems(auditLedger('row', attempts, [1, 2, 2]))).toEqual(['duplicated']);
    expect(problems(auditLedger('row', attempts, [1, 3]))).toEqual(['refused-but-written']);
    expect(problems(auditLedger('row', attempts, [1, 4]))).toEqual(['from-nowhere']);
  });
});

test('registers: what the writable side holds in the end counts as a read', () => {
  const history = [{ client: 1, kind: 'write' as const, value: 4, calledMs: 0, answeredMs: 1 }];
  const histories = new Map([[1, history]]);
  expect(auditRegisters(histories, 0, new Map([[1, 4]]), 10)).toEqual([]);
  expect(problems(auditRegisters(histories, 0, new Map([[1, 0]]), 10))).toEqual(['not-linearizable']);
  expect(problems(auditRegisters(histories, 0, new Map(), 10))).toEqual(['lost']);
});

describe('bank', () => {
  const bank = { accounts: 2, initial: 100 };
  const attempts: readonly Attempt[] = [{ id: 1, outcome: 'acknowledged' }];
  const transfer = { id: 1, from: 1, to: 2, amount: 30 };
  const balances = new Map([
    [1, 70],
    [2, 130],
  ]);

  test('balances are what the transfers say', () => {
    expect(auditBank(bank, [200, 200], attempts, [transfer], balances)).toEqual([]);
  });

  test('a sum that changed, half a transfer, a transfer that was lost whole', () => {
    expect(problems(auditBank(bank, [200, 170], attempts, [transfer], balances))).toEqual(['sum-changed']);
    const half = new Map([
      [1, 70],
      [2, 100],
    ]);
    expect(problems(auditBank(bank, [], attempts, [transfer], half))).toEqual(['books-do-not-balance']);
    const before = new Map([
      [1, 100],
      [2, 100],
    ]);
    expect(problems(auditBank(bank, [], attempts, [], before))).toEqual(['lost']);
  });
});

describe('probes', () => {
  const taken = (...sides: readonly Probe['side'][]): readonly Probe[] =>
    sides.map((side, index) => ({ side, calledMs: index * 10, answeredMs: index * 10 + 5 }));

  test('one side, then the other', () => {
    expect(auditProbes(taken('source', 'source', 'destination', 'destination'))).toEqual([]);
    expect(auditProbes([])).toEqual([]);
  });

  test('both at a time', () => {
    expect(problems(auditProbes(taken('source', 'destination', 'source')))).toEqual(['both-writable']);
  });
});
