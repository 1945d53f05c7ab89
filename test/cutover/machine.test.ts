import { expect, test } from 'vitest';
import type { OperationState } from '../../src/core/ports.js';
import {
  AFTER_COMMIT,
  BEFORE_COMMIT,
  FINAL,
  OPERATION_INPUTS,
  OPERATION_STATES,
  accepts,
  transition,
  type OperationInput,
} from '../../src/cutover/machine.js';

/** Written down a second time, on purpose: every state × event that is not here must throw. */
const LEGAL: readonly (readonly [OperationState, OperationInput, OperationState])[] = [
  ['idle', 'begin', 'preflight'],
  ['preflight', 'checked', 'holding'],
  ['preflight', 'rehearsed', 'idle'],
  ['preflight', 'fail', 'rolling-back'],
  ['holding', 'held', 'fencing'],
  ['holding', 'fail', 'rolling-back'],
  ['fencing', 'fenced', 'catching-up'],
  ['fencing', 'fail', 'rolling-back'],
  ['catching-up', 'caught-up', 'verifying'],
  ['catching-up', 'fail', 'rolling-back'],
  ['verifying', 'committed', 'committed'],
  ['verifying', 'answer-lost', 'in-doubt'],
  ['verifying', 'fail', 'rolling-back'],
  ['in-doubt', 'committed', 'committed'],
  ['in-doubt', 'fail', 'rolling-back'],
  ['committed', 'opened', 'switching'],
  ['switching', 'switched', 'releasing'],
  ['releasing', 'released', 'done'],
  ['rolling-back', 'undone', 'aborted'],
  ['rolling-back', 'undo-failed', 'failed'],
  ['failed', 'undone', 'aborted'],
];

const STATES: readonly OperationState[] = [
  'idle',
  'preflight',
  'holding',
  'fencing',
  'catching-up',
  'verifying',
  'committed',
  'switching',
  'releasing',
  'done',
  'in-doubt',
  'rolling-back',
  'aborted',
  'failed',
];

test('the machine knows every state of the port, and no other', () => {
  expect([...OPERATION_STATES].sort()).toEqual([...STATES].sort());
});

test.each(STATES.flatMap((state) => OPERATION_INPUTS.map((input) => [state, input] as const)))(
  '%s × %s',
  (state, input) => {
    const legal = LEGAL.find(([from, by]) => from === state && by === input);
    expect(accepts(state, input)).toBe(legal !== undefined);
    if (legal === undefined) {
      expect(() => transition(state, input)).toThrow(expect.objectContaining({ code: 'internal' }));
    } else {
      expect(transition(state, input)).toBe(legal[2]);
    }
  },
);

test('every state before the commit can fail, none after it can', () => {
  for (const state of BEFORE_COMMIT) expect(accepts(state, 'fail')).toBe(true);
  for (const state of [...AFTER_COMMIT, ...FINAL]) expect(accepts(state, 'fail')).toBe(false);
});

test('only verifying and in-doubt lead to committed', () => {
  expect(STATES.filter((state) => accepts(state, 'committed'))).toEqual(['verifying', 'in-doubt']);
});
