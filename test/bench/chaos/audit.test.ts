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
import {
  auditCrossings,
  auditSides,
  type Crossing,
  type Led,
  type SideRead,
} from '../../../bench/chaos/audit-sides.js';
import { verdictOf } from '../../../bench/chaos/tally.js';

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
    sides.map((side, index) => ({ subset: 'all', side, calledMs: index * 10, answeredMs: index * 10 + 5 }));

  test('one side, then the other', () => {
    expect(auditProbes(taken('source', 'source', 'destination', 'destination'))).toEqual([]);
    expect(auditProbes([])).toEqual([]);
  });

  test('both at a time', () => {
    expect(problems(auditProbes(taken('source', 'destination', 'source')))).toEqual(['both-writable']);
  });

  test('each subset for itself', () => {
    const other = taken('destination', 'destination').map((probe) => ({ ...probe, subset: 'other' }));
    const mixed = taken('source', 'source').flatMap((probe, index) => [
      probe,
      ...other.slice(index, index + 1),
    ]);
    expect(auditProbes(mixed)).toEqual([]);
  });
});

describe('sides', () => {
  const led: readonly Led[] = [
    { subset: 'a', side: 'source', fromMs: 0, toMs: 100 },
    { subset: 'a', side: 'destination', fromMs: 150, toMs: 200 },
    { subset: 'b', side: 'source', fromMs: 0, toMs: 200 },
  ];
  const read = (side: SideRead['side'], calledMs: number, answeredMs: number): SideRead => ({
    subset: 'a',
    side,
    how: 'a read',
    calledMs,
    answeredMs,
  });
  const crossed = (code: string | null, calledMs: number): Crossing => ({
    subsets: ['a', 'b'],
    code,
    calledMs,
    answeredMs: calledMs + 5,
  });

  test('an answer of a side that did not lead', () => {
    expect(auditSides([read('source', 1, 99), read('destination', 150, 160)], led)).toEqual([]);
    expect(auditSides([read('destination', 99, 101), read('source', 120, 160)], led)).toEqual([]);
    expect(problems(auditSides([read('destination', 1, 99)], led))).toEqual(['wrong-side']);
    expect(problems(auditSides([read('source', 150, 199)], led))).toEqual(['wrong-side']);
  });

  test('what spans subsets is refused while they are on different sides, and then alone', () => {
    expect(auditCrossings([crossed(null, 10), crossed('0A000', 160), crossed('08006', 10)], led)).toEqual([]);
    expect(auditCrossings([crossed(null, 120), crossed('0A000', 120), crossed('57P03', 160)], led)).toEqual(
      [],
    );
    expect(problems(auditCrossings([crossed('0A000', 10)], led))).toEqual(['crossing-refused']);
    expect(problems(auditCrossings([crossed(null, 160)], led))).toEqual(['crossing-served']);
  });
});

test('a run in which something took too long is not judged where the machine had no time; all else always counts', () => {
  const late = { problem: 'stuck', detail: '' };
  const lost = { problem: 'lost', detail: '' };
  expect(verdictOf([], 0.9)).toBe('ok');
  expect(verdictOf([late], 0.9)).toBe('starved');
  expect(verdictOf([late], 0.3)).toBe('found');
  expect(verdictOf([late], null)).toBe('found');
  expect(verdictOf([late, lost], 0.9)).toBe('found');
});
