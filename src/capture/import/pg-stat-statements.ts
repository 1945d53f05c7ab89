/**
 * Snapshots of `pg_stat_statements`. One gives totals since its reset; the difference of two gives what ran between them.
 * https://www.postgresql.org/docs/current/pgstatstatements.html
 */
import { parse } from 'csv-parse/sync';
import { UnderstudyError } from '../../core/errors.js';
import type { CapturedStatement } from '../../core/capture-ports.js';

export interface StatementTotals {
  /** Tells rows apart within a snapshot: query id, user, database, level. */
  readonly key: string;
  readonly text: string;
  readonly calls: number;
  readonly durationMs: number;
  readonly rows: number;
}

export interface StatementSnapshot {
  readonly takenMs: number;
  readonly totals: readonly StatementTotals[];
  /** Rows without a readable text or counts. */
  readonly unreadable: number;
}

/** An interval is spread over its minutes; a longer one would say nothing about any of them. */
const INTERVAL_MS_MAX = 86_400_000;
const MINUTE_MS = 60_000;

export type SnapshotRow = Readonly<Record<string, string | null | undefined>>;

/**
 * CSV with a header, as `\copy (SELECT * FROM pg_stat_statements) TO 'file.csv' CSV HEADER` writes it. A column
 * `captured_at` tells when; `takenMs` otherwise. Throws `log-unreadable`.
 */
export function readSnapshotCsv(name: string, text: string, takenMs: number): StatementSnapshot {
  let rows: SnapshotRow[];
  try {
    rows = parse(text, { columns: true, bom: true, skip_empty_lines: true, relax_column_count: true });
  } catch (error) {
    throw new UnderstudyError('log-unreadable', `${name} is no CSV`, { cause: error });
  }
  const captured = Date.parse(rows[0]?.['captured_at'] ?? '');
  return snapshotOf(name, rows, Number.isNaN(captured) ? takenMs : captured);
}

/** Rows by column name: `query`, `calls`, `total_exec_time` (13 and later) or `total_time`, `rows`. */
export function snapshotOf(name: string, rows: readonly SnapshotRow[], takenMs: number): StatementSnapshot {
  const [first] = rows;
  const durationColumn = first !== undefined && 'total_exec_time' in first ? 'total_exec_time' : 'total_time';
  if (first !== undefined && !('query' in first && 'calls' in first && durationColumn in first))
    throw new UnderstudyError(
      'log-unreadable',
      `${name} lacks the columns query, calls and total_exec_time`,
      {
        advice:
          "Write it with: \\copy (SELECT *, now() AS captured_at FROM pg_stat_statements) TO 'file.csv' CSV HEADER",
      },
    );
  const totals: StatementTotals[] = [];
  let unreadable = 0;
  for (const row of rows) {
    const text = row['query'] ?? '';
    const [calls, durationMs, count] = ['calls', durationColumn, 'rows'].map((column) =>
      Number(row[column] ?? 0),
    );
    const hidden = text === '' || text === '<insufficient privilege>';
    if (hidden || !isCount(calls) || !isCount(durationMs) || !isCount(count)) {
      unreadable += 1;
      continue;
    }
    const key = [row['queryid'] ?? text, row['userid'], row['dbid'] ?? row['datname'], row['toplevel']].join(
      '/',
    );
    totals.push({ key, text, calls, durationMs, rows: count });
  }
  return { takenMs, totals, unreadable };
}

function isCount(value: number | undefined): value is number {
  return value !== undefined && Number.isFinite(value) && value >= 0;
}

/** What ran between two snapshots. A statement whose count fell was reset, and counts from zero. */
export function differenceOf(
  earlier: StatementSnapshot,
  later: StatementSnapshot,
): readonly StatementTotals[] {
  const before = new Map(earlier.totals.map((total) => [total.key, total]));
  return later.totals.flatMap((total) => {
    const base = before.get(total.key);
    if (base === undefined || base.calls > total.calls) return total.calls === 0 ? [] : [total];
    const calls = total.calls - base.calls;
    if (calls === 0) return [];
    return [
      {
        ...total,
        calls,
        durationMs: Math.max(0, total.durationMs - base.durationMs),
        rows: Math.max(0, total.rows - base.rows),
      },
    ];
  });
}

/** All at once, as of `atMs`: for totals of which nobody knows when they were. */
export function* atOnce(totals: readonly StatementTotals[], atMs: number): Generator<CapturedStatement> {
  for (const total of totals) yield captured(total, atMs, total.calls, 1);
}

/**
 * Spread evenly over the minutes of [fromMs, untilMs): the snapshots don't tell more. Whole executions, so that minutes add up
 * to the difference. Throws `request-invalid` where the interval is empty or longer than a day.
 */
export function* spread(
  totals: readonly StatementTotals[],
  fromMs: number,
  untilMs: number,
): Generator<CapturedStatement> {
  if (untilMs <= fromMs || untilMs - fromMs > INTERVAL_MS_MAX)
    throw new UnderstudyError(
      'request-invalid',
      'the two snapshots must be at most a day apart, and in order',
    );
  const minutes: number[] = [];
  for (let at = fromMs; at < untilMs; at = (Math.floor(at / MINUTE_MS) + 1) * MINUTE_MS) minutes.push(at);
  for (const [index, atMs] of minutes.entries()) {
    for (const total of totals) {
      const upTo = (part: number): number => Math.round((total.calls * part) / minutes.length);
      const calls = upTo(index + 1) - upTo(index);
      if (calls > 0) yield captured(total, atMs, calls, calls / total.calls);
    }
  }
}

function captured(
  total: StatementTotals,
  endedAtMs: number,
  executions: number,
  share: number,
): CapturedStatement {
  return {
    endedAtMs,
    // Who ran it is not known: one session each, so that nothing is taken for a transaction of several.
    sessionId: total.key,
    text: total.text,
    cut: false,
    durationMicros: Math.round(total.durationMs * 1000 * share),
    rows: Math.round(total.rows * share),
    bytesToServer: 0,
    bytesToClient: 0,
    errorClass: null,
    transactionStatus: -1,
    executions,
  };
}
