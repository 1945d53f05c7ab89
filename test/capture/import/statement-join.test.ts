import { expect, test } from 'vitest';
import { emptyEntry, type LogEntry } from '../../../src/capture/import/entry.js';
import { readParameters } from '../../../src/capture/import/messages.js';
import { StatementJoin, type JoinOptions } from '../../../src/capture/import/statement-join.js';
import type { CapturedStatement } from '../../../src/core/capture-ports.js';

interface Joined {
  readonly statements: CapturedStatement[];
  readonly counts: StatementJoin['counts'];
}

const START = Date.UTC(2026, 2, 2);

function join(lines: readonly (string | Partial<LogEntry>)[], options: Partial<JoinOptions> = {}): Joined {
  const statements: CapturedStatement[] = [];
  const joiner = new StatementJoin(
    { sinceMs: -Infinity, untilMs: Infinity, database: '', keys: false, ...options },
    { add: (statement) => statements.push(statement) },
  );
  lines.forEach((line, at) =>
    joiner.entry({
      ...emptyEntry(),
      timeMs: START + at * 1000,
      process: '7',
      ...(typeof line === 'string' ? { message: line } : line),
    }),
  );
  joiner.end();
  return { statements, counts: joiner.counts };
}

const brief = ({ statements }: Joined): unknown =>
  statements.map(({ text, durationMicros, errorClass }) => [text, durationMicros, errorClass]);

test('log_min_duration_statement alone: duration and text in one line', () => {
  const joined = join(['duration: 1.5 ms  statement: SELECT 1', 'duration: 0.002 ms  statement: ']);
  expect(brief(joined)).toEqual([
    ['SELECT 1', 1500, null],
    ['', 2, null],
  ]);
  expect(joined.counts).toMatchObject({ statements: 2, sessions: 1, firstMs: START, lastMs: START + 1000 });
});

test('log_statement = all with durations: a statement and its duration are one, not two', () => {
  const joined = join([
    'statement: SELECT 1',
    'duration: 1.5 ms',
    'statement: SELECT 2',
    { message: 'statement: SELECT 3', process: '8' },
    'duration: 2.5 ms',
    { message: 'duration: 3.5 ms', process: '8' },
  ]);
  expect(brief(joined)).toEqual([
    ['SELECT 1', 1500, null],
    ['SELECT 2', 2500, null],
    ['SELECT 3', 3500, null],
  ]);
  expect(joined.counts).toMatchObject({ statements: 3, sessions: 2, durationsAlone: 0 });
});

test('log_statement = all without durations: each ends where the next begins', () => {
  const joined = join(['statement: SELECT 1', 'statement: SELECT 2']);
  expect(brief(joined)).toEqual([
    ['SELECT 1', null, null],
    ['SELECT 2', null, null],
  ]);
  expect(joined.statements.map(({ endedAtMs }) => endedAtMs)).toEqual([START, START + 1000]);
});

test('the extended protocol: parse and bind belong to the execution, a further fetch is none', () => {
  const joined = join([
    'duration: 0.100 ms  parse <unnamed>: SELECT $1',
    'duration: 0.200 ms  bind <unnamed>: SELECT $1',
    'duration: 0.300 ms  execute <unnamed>: SELECT $1',
    'duration: 0.200 ms  bind S_1/C_2: SELECT $1::text',
    'duration: 0.300 ms  execute S_1/C_2: SELECT $1::text',
    'duration: 0.400 ms  execute fetch from S_1/C_2: SELECT $1::text',
  ]);
  expect(brief(joined)).toEqual([
    ['SELECT $1', 600, null],
    ['SELECT $1::text', 500, null],
  ]);
  expect(joined.counts.parts).toBe(4);
});

test('log_statement = all and log_duration, extended: the durations of parse and bind are nobody’s', () => {
  const joined = join([
    'duration: 0.1 ms',
    'duration: 0.2 ms',
    'execute <unnamed>: SELECT $1',
    'duration: 0.3 ms',
  ]);
  expect(brief(joined)).toEqual([['SELECT $1', 300, null]]);
  expect(joined.counts.durationsAlone).toBe(2);
});

test('errors: with and without the statement logged before, and outside of statements', () => {
  const error = { severity: 'ERROR', message: 'no', sqlState: '23505' } as const;
  const joined = join([
    'statement: INSERT 1',
    { ...error, statement: 'INSERT 1' },
    { ...error, statement: 'INSERT 2', sqlState: '' },
    { ...error, severity: 'FATAL', message: 'password authentication failed' },
    'statement: BEGIN',
    { ...error, statement: 'INSERT 3' },
  ]);
  expect(brief(joined)).toEqual([
    ['INSERT 1', null, '23'],
    ['INSERT 2', null, ''],
    ['BEGIN', null, null],
    ['INSERT 3', null, '23'],
  ]);
  expect(joined.counts).toMatchObject({ statements: 4, failed: 3, errorsAlone: 1 });
});

test('a report at another level than an error is no second execution of the statement it names', () => {
  const joined = join([
    { message: 'process 7 still waiting for ShareLock', statement: 'UPDATE t SET x = 1' },
    { severity: 'WARNING', message: 'there is no transaction in progress', statement: 'COMMIT' },
    'duration: 5 ms  statement: UPDATE t SET x = 1',
  ]);
  expect(brief(joined)).toEqual([['UPDATE t SET x = 1', 5000, null]]);
  expect(joined.counts.other).toBe(2);
});

test('auto_explain and lone durations are counted, not taken for statements', () => {
  const joined = join(['duration: 9 ms  plan:\nQuery Text: SELECT 1\nResult', 'duration: 1 ms']);
  expect(joined.statements).toEqual([]);
  expect(joined.counts).toMatchObject({ autoExplain: 1, durationsAlone: 1 });
});

test('sessions: a process id that comes again is another session', () => {
  const joined = join([
    'connection received: host=[local]',
    'connection authorized: user=a database=b',
    'statement: BEGIN',
    'disconnection: session time: 0:00:00.008 user=a database=b host=[local]',
    'connection authorized: user=a database=b',
    'statement: SELECT 1',
    'connection authorized: user=a database=b',
    'statement: SELECT 2',
  ]);
  expect(brief(joined)).toEqual([
    ['BEGIN', null, null],
    ['SELECT 1', null, null],
    ['SELECT 2', null, null],
  ]);
  expect(new Set(joined.statements.map(({ sessionId }) => sessionId)).size).toBe(3);
  expect(joined.counts).toMatchObject({ connections: 3, disconnections: 1, sessions: 3 });
});

test('without process ids nothing is joined, and sessions are not counted', () => {
  const lines = ['statement: SELECT 1', 'duration: 1 ms', 'statement: SELECT 2'];
  const joined = join(lines.map((message) => ({ message, process: '' })));
  expect(brief(joined)).toEqual([
    ['SELECT 1', null, null],
    ['SELECT 2', null, null],
  ]);
  expect(joined.counts).toMatchObject({ sessions: 0, durationsAlone: 1 });
});

test('range and database: what is outside is not handed on, and counted apart', () => {
  const at = (database: string, second: number): Partial<LogEntry> => ({
    message: 'duration: 1 ms  statement: SELECT 1',
    database,
    process: database,
    timeMs: START + second * 1000,
  });
  const joined = join([at('a', 0), at('a', 1), at('b', 1), at('a', 2)], {
    sinceMs: START + 1000,
    untilMs: START + 2000,
    database: 'a',
  });
  expect(joined.counts).toMatchObject({ statements: 1, filtered: 3, sessions: 1 });
});

test('parameters are handed on only where keys are asked for', () => {
  const line = {
    message: 'duration: 1 ms  execute a: SELECT $1, $2',
    detail: "parameters: $1 = '5', $2 = NULL",
  };
  expect(join([line]).statements[0]).not.toHaveProperty('parameters');
  expect(join([line], { keys: true }).statements[0]?.parameters).toEqual(['5', null]);
});

test('parameters with quotes, commas and what looks like the next one', () => {
  expect(readParameters("parameters: $1 = 'it''s', $2 = NULL, $3 = 'a'', $4 = ''b', $4 = ''")).toEqual([
    "it's",
    null,
    "a', $4 = 'b",
    '',
  ]);
  expect(readParameters("Parameters: $1 = 'abc...'")).toEqual([null]);
  expect(readParameters('Failing row contains (1).')).toBeNull();
});
