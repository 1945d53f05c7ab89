/** One suite for every format: the same happenings, as each format writes them, read into the same entries. */
import { expect, test } from 'vitest';
import type { LogEntry, LogFormat, Unreadable } from '../../../src/capture/import/entry.js';
import { LOG_FORMATS } from '../../../src/capture/import/log-files.js';
import { LogTime } from '../../../src/capture/import/log-time.js';
import { WRITERS, type Happening } from './log-writers.js';

const HAPPENINGS: readonly Happening[] = [
  {
    at: '2026-03-02 10:00:00.250',
    pid: 4242,
    session: '69a56f80.1092',
    user: 'shop',
    database: 'shop_db',
    severity: 'LOG',
    sqlState: '00000',
    message: 'connection authorized: user=shop database=shop_db application_name=web',
  },
  {
    at: '2026-03-02 10:00:00.500',
    pid: 4242,
    session: '69a56f80.1092',
    user: 'shop',
    database: 'shop_db',
    severity: 'LOG',
    sqlState: '00000',
    message:
      "duration: 1.250 ms  statement: SELECT \"a,b\",\n\t'it''s'\n\nFROM t -- LOG:  no head\n  WHERE x = 1",
  },
  {
    at: '2026-03-02 10:00:01.000',
    pid: 4242,
    session: '69a56f80.1092',
    user: 'shop',
    database: 'shop_db',
    severity: 'LOG',
    sqlState: '00000',
    message: 'duration: 0.120 ms  execute S_1/C_2: UPDATE t SET v = $1 WHERE id = $2',
    detail: "parameters: $1 = 'ö\nü', $2 = '7'",
  },
  {
    at: '2026-03-02 10:00:02.000',
    pid: 4243,
    session: '69a56f80.1093',
    user: 'shop',
    database: 'shop_db',
    severity: 'ERROR',
    sqlState: '42P01',
    message: 'relation "nope" does not exist at character 15',
    statement: 'SELECT * FROM\n nope',
  },
  {
    at: '2026-03-02 10:00:03.000',
    pid: 12,
    session: '69a56f00.c',
    user: '',
    database: '',
    severity: 'LOG',
    sqlState: '00000',
    message: 'checkpoint starting: time',
  },
];

interface Read {
  readonly entries: readonly LogEntry[];
  readonly unreadable: readonly { readonly line: number; readonly reason: Unreadable }[];
  readonly lines: number;
}

function read(format: LogFormat, text: string, pieces: (text: string) => Iterable<string>): Read {
  const detected = format.detect(text, undefined);
  expect(detected).not.toBeNull();
  const entries: LogEntry[] = [];
  const unreadable: { line: number; reason: Unreadable }[] = [];
  const reader = format.open(
    { prefix: detected?.prefix ?? '', time: new LogTime(undefined) },
    {
      entry: (entry) => entries.push(entry),
      unreadable: (line, reason) => unreadable.push({ line, reason }),
    },
  );
  for (const piece of pieces(text)) reader.push(piece);
  reader.end();
  return { entries, unreadable, lines: reader.lines };
}

function* inPiecesOf(size: number, text: string): Iterable<string> {
  for (let at = 0; at < text.length; at += size) yield text.slice(at, at + size);
}

function formatNamed(name: string): LogFormat {
  const format = LOG_FORMATS.find((candidate) => candidate.name === name);
  if (format === undefined) throw new Error(`no format ${name}`);
  return format;
}

function expected(happening: Happening, lost: readonly string[]): Partial<LogEntry> {
  const wanted: Partial<LogEntry> = {
    timeMs: Date.parse(`${happening.at.replace(' ', 'T')}Z`),
    severity: happening.severity,
    message: happening.message,
    detail: happening.detail ?? '',
    statement: happening.statement ?? '',
    user: happening.user,
    database: happening.database,
    sqlState: happening.sqlState,
    cut: false,
  };
  for (const field of lost) delete wanted[field as keyof LogEntry];
  if (lost.includes('milliseconds')) wanted.timeMs = Math.floor((wanted.timeMs ?? 0) / 1000) * 1000;
  return wanted;
}

for (const writer of WRITERS) {
  const text = writer.write(HAPPENINGS);
  const format = formatNamed(writer.format);

  test(`${writer.name}: is told apart from the other formats`, () => {
    const first = LOG_FORMATS.find((candidate) => candidate.detect(text, undefined) !== null);
    expect(first?.name).toBe(writer.format);
  });

  test(`${writer.name}: every happening becomes one entry with all its parts`, () => {
    const { entries, unreadable } = read(format, text, (whole) => [whole]);
    expect(unreadable).toEqual([]);
    expect(entries).toHaveLength(HAPPENINGS.length);
    HAPPENINGS.forEach((happening, at) =>
      expect(entries[at]).toMatchObject(expected(happening, writer.lost)),
    );
    if (!writer.lost.includes('process')) {
      const processes = entries.map((entry) => entry.process);
      expect(processes[0]).toBe(processes[1]);
      expect(new Set(processes).size).toBe(3);
      expect(processes).not.toContain('');
    }
  });

  test(`${writer.name}: in pieces of any size, with either line end, the same`, () => {
    const whole = read(format, text, () => [text]);
    for (const size of [1, 2, 3, 7, 64]) {
      expect(read(format, text, () => inPiecesOf(size, text))).toEqual(whole);
    }
    const unended = text.replace(/\n$/, '');
    expect(read(format, unended, () => [unended]).entries).toEqual(whole.entries);
    if (writer.format !== 'csvlog') {
      const windows = text.replaceAll('\n', '\r\n');
      expect(read(format, windows, () => inPiecesOf(5, windows)).entries).toEqual(whole.entries);
    }
  });

  test(`${writer.name}: garbage between entries is counted, and reading goes on behind it`, () => {
    const [before, after] = [writer.write(HAPPENINGS.slice(0, 1)), writer.write(HAPPENINGS.slice(4))];
    const garbled = `${before}${writer.garbage}\n${after}`;
    const { entries, unreadable } = read(format, garbled, () => inPiecesOf(11, garbled));
    expect(entries.map((entry) => entry.message)).toEqual([HAPPENINGS[0]?.message, HAPPENINGS[4]?.message]);
    expect(unreadable).toHaveLength(1);
    expect(unreadable[0]?.line).toBe(before.split('\n').length);
  });

  test(`${writer.name}: cut anywhere, nothing throws and at most the last entry suffers`, () => {
    const prefix = format.detect(text, undefined)?.prefix ?? '';
    for (let end = 0; end < text.length; end += 13) {
      const entries: LogEntry[] = [];
      const reader = format.open(
        { prefix, time: new LogTime(undefined) },
        { entry: (entry) => entries.push(entry), unreadable: () => undefined },
      );
      reader.push(text.slice(0, end));
      reader.end();
      entries
        .slice(0, -1)
        .forEach((entry, at) =>
          expect(entry).toMatchObject(expected(HAPPENINGS[at] as Happening, writer.lost)),
        );
    }
  });
}
