/** What a client is told whose transaction was rolled back so that a switch could go on. */
import { describe, expect, test } from 'vitest';
import { LocalAnswers, type LocalAnswersDeps } from '../../../src/proxy/session/local-answers.js';
import { StatementText } from '../../../src/wire/postgres/statement-text.js';
import { send } from '../proxy-support.js';

const text = new StatementText();
const flags = (sql: string): number => text.classify(Buffer.from(sql), 0, sql.length, false);

/** Answers so far, in short: the types, with an error's SQLSTATE and a transaction's status behind theirs. */
function answering(more: Partial<LocalAnswersDeps> = {}): {
  readonly answers: LocalAnswers;
  readonly say: (...messages: Buffer[]) => string;
} {
  let told = '';
  const answers = new LocalAnswers({
    mode: 'transaction',
    sqlState: '40001',
    message: 'rolled back',
    frameBytesMax: 100_000,
    textBytesMax: 4096,
    send: (frame) => {
      const type = frame.toString('latin1', 0, 1);
      const state = /C([0-9A-Z]{5})\0/.exec(frame.toString('latin1', 5))?.[1] ?? '';
      const status = frame.toString('latin1', 5, 6);
      told +=
        { E: `E${state} `, Z: `Z${status} `, C: `C(${frame.toString('latin1', 5, frame.length - 1)}) ` }[
          type
        ] ?? type;
    },
    classify: (bytes, start, end, cut) => text.classify(bytes, start, end, cut),
    flagsOf: (name) => ({ commit: flags('COMMIT'), rollback: flags('ROLLBACK') })[name] ?? 0,
    ...more,
  });
  return {
    answers,
    say: (...messages) => {
      told = '';
      const all = Buffer.concat(messages);
      expect(answers.walk(all)).toBe(all.length);
      return told.trim();
    },
  };
}

const run = [send.bind(), send.execute(), send.sync()];

describe('a COMMIT before anything was told', () => {
  test.each(['COMMIT', 'end', 'COMMIT WORK;', '/* a */ COMMIT -- b', 'commit and no chain'])(
    'as a simple query is an error, and ends the transaction: %s',
    (sql) => {
      const { answers, say } = answering();
      expect(say(send.query(sql))).toBe('E40001 ZI');
      expect(answers.done).toBe(true);
    },
  );

  test('parsed, bound and executed likewise', () => {
    const { answers, say } = answering();
    expect(say(send.parse('COMMIT'), send.bind(), send.describe('P'), ...run.slice(1))).toBe('12nE40001 ZI');
    expect(answers.done).toBe(true);
  });

  test('prepared long ago likewise, and nothing behind it is run', () => {
    const { answers, say } = answering();
    const all = [send.bind([], 'commit'), send.execute(), send.parse('INSERT'), ...run];
    expect(say(...all)).toBe('2E40001 ZI');
    expect(answers.done).toBe(true);
  });

  test('parsed alone it ends nothing yet', () => {
    const { answers, say } = answering();
    expect(say(send.parse('COMMIT'), send.sync())).toBe('1ZE');
    expect(say(...run)).toBe('2E40001 ZI');
    expect(answers.done).toBe(true);
  });

  test('by a name that the server would not know later, it is not prepared either', () => {
    const { answers, say } = answering();
    expect(say(send.parse('COMMIT', 's1'), send.bind([], 's1'), ...run.slice(1))).toBe('E40001 ZI');
    expect(answers.done).toBe(true);
  });
});

test('once it was told, a COMMIT is answered as in any failed transaction', () => {
  const { answers, say } = answering();
  expect(say(send.query('SELECT 1'))).toBe('E40001 ZE');
  expect(say(send.query('SELECT 1'))).toBe('E25P02 ZE');
  expect(say(send.query('COMMIT'))).toBe('C(ROLLBACK) ZI');
  expect(answers.done).toBe(true);
  expect(answering({ told: true }).say(send.parse('COMMIT'), ...run)).toBe('12C(ROLLBACK) ZI');
});

test('a ROLLBACK is what has happened', () => {
  expect(answering().say(send.query('ROLLBACK'))).toBe('C(ROLLBACK) ZI');
  expect(answering().say(send.bind([], 'rollback'), send.execute(), send.sync())).toBe('2C(ROLLBACK) ZI');
});

test('what follows the end in its pipeline is not run, and is said not to be', () => {
  const { answers, say } = answering();
  expect(say(send.parse('ROLLBACK'), ...run.slice(0, 2), send.parse('BEGIN'), ...run)).toBe(
    '12C(ROLLBACK) E40001 ZI',
  );
  expect(answers.done).toBe(true);
});

test.each([
  'UPDATE t SET a = 1; COMMIT',
  'ROLLBACK; INSERT INTO t VALUES (1)',
  'DO $$ BEGIN PERFORM 1; END $$',
  "INSERT INTO log VALUES ('x; commit')",
  '/* COMMIT */ SELECT 1',
  "COMMIT PREPARED 'x'",
  'ROLLBACK TO a',
  'COMMIT AND CHAIN',
  'COMMIT /* ; */ x',
  'COMMITS',
])('is not the end of the transaction: %s', (sql) => {
  const { say } = answering();
  expect(say(send.query(sql))).toBe('E40001 ZE');
  expect(say(send.parse(sql), ...run)).toBe('E25P02 ZE');
});

test('a text that is not seen to its end is not taken for one either', () => {
  const long = `ROLLBACK${' '.repeat(200)}; INSERT INTO t VALUES (1)`;
  const { answers, say } = answering({ textBytesMax: 64 });
  const bytes = send.query(long);
  say(bytes.subarray(0, 20));
  expect(say(bytes.subarray(20))).toBe('E40001 ZE');
  expect(answers.done).toBe(false);
});
