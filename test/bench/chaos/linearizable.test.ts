/** The checker is itself checked: against broken histories by name, and against every order tried one by one. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { checkRegister, type RegisterOperation } from '../../../bench/chaos/linearizable.js';

type Short = readonly [
  client: number,
  kind: 'r' | 'w',
  value: number,
  calledMs: number,
  answeredMs: number | null,
];

const history = (...operations: readonly Short[]): readonly RegisterOperation[] =>
  operations.map(([client, kind, value, calledMs, answeredMs]) => ({
    client,
    kind: kind === 'r' ? 'read' : 'write',
    value,
    calledMs,
    answeredMs,
  }));

const fine = (...operations: readonly Short[]): boolean =>
  checkRegister(history(...operations), 0).linearizable;

describe('accepted', () => {
  test('one client after another', () => {
    expect(fine([1, 'r', 0, 0, 1], [1, 'w', 5, 2, 3], [2, 'r', 5, 4, 5])).toBe(true);
  });

  test('reads beside a write see either value, but not the old one after the new one', () => {
    expect(fine([1, 'w', 5, 0, 10], [2, 'r', 0, 1, 2], [2, 'r', 5, 3, 4])).toBe(true);
    expect(fine([1, 'w', 5, 0, 10], [2, 'r', 5, 1, 2], [3, 'r', 0, 3, 4])).toBe(false);
  });

  test('a write without an answer takes effect late, or never', () => {
    expect(fine([1, 'w', 5, 0, null], [2, 'r', 0, 10, 11], [2, 'r', 5, 20, 21])).toBe(true);
    expect(fine([1, 'w', 5, 0, null], [2, 'r', 0, 10, 11])).toBe(true);
  });

  test('what began at the moment another ended may be before it', () => {
    expect(fine([1, 'w', 5, 0, 10], [2, 'r', 0, 10, 11])).toBe(true);
  });
});

describe('refused', () => {
  test('a stale read after the switch: the old side was still asked', () => {
    expect(fine([1, 'w', 1, 0, 1], [1, 'w', 2, 5, 6], [2, 'r', 1, 7, 8])).toBe(false);
  });

  test('a lost write', () => {
    expect(fine([1, 'w', 1, 0, 1], [2, 'r', 0, 2, 3])).toBe(false);
  });

  test('a write that took effect twice, around another', () => {
    expect(fine([1, 'w', 1, 0, null], [2, 'r', 1, 5, 6], [2, 'w', 2, 7, 8], [3, 'r', 1, 9, 10])).toBe(false);
  });

  test('a value that nobody wrote', () => {
    expect(fine([1, 'w', 1, 0, 1], [2, 'r', 7, 2, 3])).toBe(false);
  });

  test('a write without an answer that was seen and then unseen', () => {
    expect(fine([1, 'w', 5, 0, null], [2, 'r', 5, 5, 6], [2, 'r', 0, 7, 8])).toBe(false);
  });

  test('names an operation', () => {
    const verdict = checkRegister(history([1, 'w', 1, 0, 1], [2, 'r', 0, 2, 3]), 0);
    expect(verdict).toMatchObject({ linearizable: false, stuckAt: { client: 2 } });
  });
});

/** Every order, one by one. */
function bruteForce(operations: readonly RegisterOperation[], value: number): boolean {
  if (operations.every(({ answeredMs }) => answeredMs === null)) return true;
  return operations.some((operation) => {
    const others = operations.filter((each) => each !== operation);
    if (others.some((each) => each.answeredMs !== null && each.answeredMs < operation.calledMs)) return false;
    if (operation.kind === 'read' && operation.answeredMs === null) return bruteForce(others, value);
    if (operation.kind === 'read') return operation.value === value && bruteForce(others, value);
    return bruteForce(others, operation.value);
  });
}

test('agrees with every order tried one by one', () => {
  const operation = fc
    .record({
      client: fc.constant(1),
      kind: fc.constantFrom('read' as const, 'write' as const),
      value: fc.integer({ min: 0, max: 2 }),
      calledMs: fc.integer({ min: 0, max: 12 }),
      lasted: fc.option(fc.integer({ min: 0, max: 6 })),
    })
    .map(({ lasted, ...rest }) => ({
      ...rest,
      answeredMs: lasted === null ? null : rest.calledMs + lasted,
    }));
  fc.assert(
    fc.property(fc.array(operation, { maxLength: 6 }), (operations) => {
      expect(checkRegister(operations, 0).linearizable).toBe(bruteForce(operations, 0));
    }),
    { numRuns: 600 },
  );
});

test('a long history of many clients is settled at once', () => {
  const operations: RegisterOperation[] = [];
  for (let round = 0; round < 150; round++) {
    const calledMs = round * 10;
    const value = round + 1;
    operations.push({
      client: 0,
      kind: 'write',
      value,
      calledMs,
      answeredMs: round % 9 === 0 ? null : calledMs + 8,
    });
    for (let client = 1; client < 5; client++) {
      operations.push({ client, kind: 'read', value, calledMs: calledMs + client, answeredMs: calledMs + 9 });
    }
  }
  expect(checkRegister(operations, 0).linearizable).toBe(true);
  operations.push({ client: 9, kind: 'read', value: 80, calledMs: 1600, answeredMs: 1601 });
  expect(checkRegister(operations, 0).linearizable).toBe(false);
});
