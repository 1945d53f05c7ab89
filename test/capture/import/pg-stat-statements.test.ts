import { expect, test } from 'vitest';
import {
  atOnce,
  differenceOf,
  readSnapshotCsv,
  spread,
  type StatementSnapshot,
} from '../../../src/capture/import/pg-stat-statements.js';

const AT = Date.UTC(2026, 2, 2, 10, 0, 30);

function snapshot(rows: readonly string[], takenMs = AT): StatementSnapshot {
  return readSnapshotCsv(
    'test',
    ['userid,dbid,queryid,query,calls,total_exec_time,rows', ...rows].join('\n'),
    takenMs,
  );
}

test('a snapshot: texts with quotes and line breaks, hidden ones counted, older column names, its own time', () => {
  const read = snapshot([
    '10,5,1,"SELECT ""a"",\n  $1",7,1.5,7',
    '10,5,2,<insufficient privilege>,1,1,1',
    '10,5,3,,1,1,1',
  ]);
  expect(read.totals).toMatchObject([{ text: 'SELECT "a",\n  $1', calls: 7, durationMs: 1.5, rows: 7 }]);
  expect(read.unreadable).toBe(2);
  const old = readSnapshotCsv(
    'test',
    'query,calls,total_time,rows,captured_at\nSELECT 1,3,9,3,2026-03-02 10:00:00+00',
    0,
  );
  expect(old).toMatchObject({ takenMs: Date.UTC(2026, 2, 2, 10), totals: [{ calls: 3, durationMs: 9 }] });
  expect(() => readSnapshotCsv('test', 'a,b\n1,2', 0)).toThrow(/lacks the columns/);
});

test('two snapshots: what ran between them; a statement that is new or was reset counts from zero', () => {
  const earlier = snapshot(['1,1,1,SELECT 1,10,100,10', '1,1,2,SELECT 2,5,5,5', '1,1,3,SELECT 3,9,9,9']);
  const later = snapshot([
    '1,1,1,SELECT 1,25,130,40',
    '1,1,2,SELECT 2,5,5,5',
    '1,1,3,SELECT 3,2,1,2',
    '1,1,4,SELECT 4,1,1,1',
  ]);
  expect(
    differenceOf(earlier, later).map(({ text, calls, durationMs, rows }) => [text, calls, durationMs, rows]),
  ).toEqual([
    ['SELECT 1', 15, 30, 30],
    ['SELECT 3', 2, 1, 2],
    ['SELECT 4', 1, 1, 1],
  ]);
});

test('a difference is spread over its minutes in whole executions that add up', () => {
  const { totals } = snapshot(['1,1,1,SELECT 1,10,100,10', '1,1,2,SELECT 2,1,1,1']);
  const statements = [...spread(totals, AT, AT + 180_000)];
  const minutes = new Set(statements.map(({ endedAtMs }) => Math.floor(endedAtMs / 60_000)));
  expect(minutes.size).toBe(4);
  const executions = (text: string): number =>
    statements.filter((each) => each.text === text).reduce((sum, each) => sum + (each.executions ?? 1), 0);
  expect([executions('SELECT 1'), executions('SELECT 2')]).toEqual([10, 1]);
  expect(statements.reduce((sum, { durationMicros }) => sum + (durationMicros ?? 0), 0)).toBeCloseTo(
    101_000,
    -1,
  );
  expect(() => [...spread(totals, AT, AT)]).toThrow(/at most a day/);
  expect(() => [...spread(totals, AT, AT + 90_000_000)]).toThrow(/at most a day/);
});

test('one snapshot stands for all of its executions at once', () => {
  const { totals } = snapshot(['1,1,1,SELECT 1,10,100,10']);
  expect([...atOnce(totals, AT)]).toMatchObject([
    { endedAtMs: AT, executions: 10, durationMicros: 100_000, rows: 10 },
  ]);
});
