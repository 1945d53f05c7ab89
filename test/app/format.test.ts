import { expect, test } from 'vitest';
import {
  bar,
  findingLines,
  formatBytes,
  formatCount,
  formatDuration,
  formatMs,
  stallHistogram,
  table,
} from '../../src/app/cli/format.js';
import { errorText } from '../../src/app/cli/terminal.js';
import { exitCodeOf } from '../../src/app/cli/exit-codes.js';
import { ERROR_CODES, UnderstudyError, type ErrorCode } from '../../src/core/errors.js';

test('figures', () => {
  expect([0.123, 12.34, 12_340, 123_400].map(formatMs)).toEqual(['0.12 ms', '12.3 ms', '12.3 s', '2.1 min']);
  expect([999, 1500, 16_777_216].map(formatBytes)).toEqual(['999 B', '1.5 kB', '16.8 MB']);
  expect(formatCount(1_120_456)).toBe('1 120 456');
  expect([1.25, 90, 90_000].map(formatDuration)).toEqual(['1.3 s', '1 min', '1 d 1 h 0 min']);
  expect([bar(0, 4), bar(0.5, 4), bar(2, 4)]).toEqual(['░░░░', '██░░', '████']);
  expect(
    table(
      ['name', 'rows>'],
      [
        ['a', '1'],
        ['long', '12'],
      ],
    ),
  ).toEqual(['name  rows', 'a        1', 'long    12']);
});

test('the stall’s histogram leaves out empty ends and never hides a count', () => {
  const lines = stallHistogram({
    held: 101,
    p50: 8,
    p99: 19,
    max: 120,
    histogram: [
      { upToMs: 5, count: 0 },
      { upToMs: 10, count: 100 },
      { upToMs: 20, count: 0 },
      { upToMs: 200, count: 1 },
      { upToMs: 500, count: 0 },
    ],
  });
  expect(lines).toHaveLength(4);
  expect(lines[0]).toContain('101 sessions waited');
  expect(lines[3]).toMatch(/≤ 200 ms │█ +1$/);
  expect(stallHistogram({ held: 0, p50: 0, p99: 0, max: 0, histogram: [] })).toEqual([
    'no client had to wait',
  ]);
});

test('findings come by severity, each with what to do', () => {
  const finding = { check: 'c', side: 'source', object: 'o', message: 'm' } as const;
  const lines = findingLines([
    { ...finding, severity: 'info', advice: '' },
    { ...finding, severity: 'blocker', advice: 'Run ALTER SYSTEM.' },
  ]);
  expect(lines[0]).toContain('Blockers');
  expect(lines).toContain('    → Run ALTER SYSTEM.');
  expect(lines.findIndex((line) => line.startsWith('Good to know'))).toBeGreaterThan(3);
});

test('what is found of many objects is said once, with all of them named', () => {
  const keyless = (name: string) =>
    ({
      severity: 'warning',
      side: 'source',
      check: 'table-without-key',
      object: `table ${name}`,
      message: `table ${name} has no usable key.`,
      advice: `Run ALTER TABLE ${name}.`,
    }) as const;
  const other = { ...keyless('c'), check: 'unlogged', message: 'table c is unlogged.' };
  expect(findingLines([keyless('a'), other, keyless('b'), keyless('c')])).toEqual([
    'Warnings (4)',
    '  source table-without-key: table a',
    '    table a has no usable key.',
    '    → Run ALTER TABLE a.',
    '    The same of 2 more: table b, table c',
    '  source unlogged: table c',
    '    table c is unlogged.',
    '    → Run ALTER TABLE c.',
    '',
  ]);
});

test('an error says what happened, what was kept and what to do', () => {
  const error = new UnderstudyError('drain-timeout', 'three transactions were open', {
    advice: 'Try again.',
    details: { kept: 'everything is as before' },
  });
  expect(errorText(error.toJSON())).toBe(
    'error drain-timeout: three transactions were open\n  kept: everything is as before\n  what to do: Try again.\n',
  );
});

test('no error ends a command with 0', () => {
  for (const code of Object.keys(ERROR_CODES) as ErrorCode[]) expect(exitCodeOf(code)).toBeGreaterThan(0);
});
