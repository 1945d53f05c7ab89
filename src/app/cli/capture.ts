/** `understudy capture`: what is captured, from the running process or from what the destination keeps. */
import { PostgresSeriesStore, SERIES_CONNECTION } from '../../capture/series-store.js';
import type { CaptureSnapshot, HotKeys, SeriesStore, StatementTotals } from '../../core/capture-ports.js';
import { UnderstudyError } from '../../core/errors.js';
import { connectControl } from '../../core/postgres.js';
import type { AdminClient } from '../admin-client.js';
import type { ResolvedConfig } from '../config.js';
import { endpointText } from '../config/endpoint.js';
import { EXIT, type ExitCode } from './exit-codes.js';
import { formatCount, formatMs, table } from './format.js';
import type { Terminal } from './terminal.js';

export interface CaptureVerb {
  /** From the destination, though a process may be running. */
  readonly kept: boolean;
  readonly by: 'time' | 'calls' | 'errors';
  readonly limit: number;
}

export interface CaptureReport {
  readonly from: 'process' | 'kept';
  /** The process's start; the beginning of what is looked at in the kept series. ISO 8601. */
  readonly since: string;
  /** Statements that passed, and of those: not counted; in too deep a pipeline to be; not understood. */
  readonly statements: {
    readonly seen: number;
    readonly dropped: number;
    /** null: only a running process knows. */
    readonly unrecorded: number | null;
    readonly unparsed: number;
  };
  readonly transactions: { readonly committed: number; readonly rolledBack: number };
  readonly top: readonly StatementTotals[];
  readonly tables: readonly {
    readonly table: string;
    readonly reads: number;
    readonly writes: number;
    readonly errors: number;
    readonly rows: number;
  }[];
  /** By table: hours in which keys were counted, accesses to any key, keys told apart. null: not asked for. */
  readonly hotKeys:
    | readonly {
        readonly table: string;
        readonly hours: number;
        readonly accesses: number;
        readonly keys: number;
      }[]
    | null;
  /** What hinders the keeping; null: nothing, or not known. */
  readonly problem: { readonly code: string; readonly message: string } | null;
}

const DAY_MS = 86_400_000;
const KEPT_DAYS = 7;
const STATEMENTS_READ = 2_000;
const TABLES_SHOWN = 20;
const TEXT_WIDTH = 90;
const LIMIT_MAX = 2_000;
/** Of the live counters: kinds that write. */
const WRITING = new Set(['insert', 'update', 'delete', 'merge', 'truncate', 'copy']);

/** Throws `config-invalid`, `admin-unreachable`, `destination-unreachable`. */
export async function runCapture(
  terminal: Terminal,
  verb: CaptureVerb,
  config: () => ResolvedConfig,
  admin: () => AdminClient,
): Promise<ExitCode> {
  if (!Number.isInteger(verb.limit) || verb.limit < 1 || verb.limit > LIMIT_MAX)
    throw new UnderstudyError('config-invalid', `--limit: expected a whole number from 1 to ${LIMIT_MAX}`);
  const report = verb.kept ? await keptReport(config(), verb) : await liveReport(admin(), verb);
  for (const line of captureReportLines(report, verb)) terminal.line(line);
  terminal.result(report);
  return EXIT.ok;
}

async function liveReport(admin: AdminClient, verb: CaptureVerb): Promise<CaptureReport> {
  const status = await admin.status();
  if (status.capture === null)
    throw new UnderstudyError('shadow-not-ready', 'the process captures nothing at present', {
      advice: 'Set capture.enabled, or wait a moment; --kept shows what the destination keeps.',
    });
  return fromSnapshot(status.capture, status.startedAt, verb);
}

export function fromSnapshot(snapshot: CaptureSnapshot, since: string, verb: CaptureVerb): CaptureReport {
  const { offered, dropped, unrecorded, unparsed, faults, transactions, series } = snapshot;
  const tables = new Map<
    string,
    { table: string; reads: number; writes: number; errors: number; rows: number }
  >();
  for (const use of snapshot.tables) {
    const sums = tables.get(use.table) ?? { table: use.table, reads: 0, writes: 0, errors: 0, rows: 0 };
    if (WRITING.has(use.kind)) sums.writes += use.statements;
    else sums.reads += use.statements;
    sums.errors += use.errors;
    sums.rows += use.rows;
    tables.set(use.table, sums);
  }
  return {
    from: 'process',
    since,
    statements: { seen: offered, dropped, unrecorded, unparsed: unparsed + faults },
    transactions,
    top: sorted(snapshot.statements, verb),
    tables: hottestFirst([...tables.values()]),
    hotKeys: null,
    problem: series?.problem ?? null,
  };
}

async function keptReport(config: ResolvedConfig, verb: CaptureVerb): Promise<CaptureReport> {
  const store = new PostgresSeriesStore(() =>
    connectControl('destination', config.destination, { ...SERIES_CONNECTION, connectTimeoutMs: 5_000 }),
  );
  try {
    return await readKept(store, Date.now(), verb);
  } catch (error) {
    if (error instanceof UnderstudyError && error.code === 'destination-unreachable')
      throw new UnderstudyError(error.code, error.message, {
        cause: error,
        advice: `What is kept is in ${endpointText(config.destination)}: see that it can be reached.`,
      });
    throw error;
  } finally {
    await store.close();
  }
}

/** The last week of what is kept. */
export async function readKept(store: SeriesStore, nowMs: number, verb: CaptureVerb): Promise<CaptureReport> {
  const range = { fromMs: nowMs - KEPT_DAYS * DAY_MS, untilMs: nowMs };
  const intervals = await store.intervals('hour', range);
  const series = await store.tables('hour', range);
  const sum = (pick: (one: (typeof intervals)[number]) => number): number =>
    intervals.reduce((total, one) => total + pick(one), 0);
  const dropped = sum((one) => one.dropped);
  return {
    from: 'kept',
    since: new Date(intervals[0]?.startMs ?? range.fromMs).toISOString(),
    statements: {
      seen: sum((one) => one.statements) + dropped,
      dropped,
      unrecorded: null,
      unparsed: sum((one) => one.unparsed),
    },
    transactions: {
      committed: sum((one) => one.committed),
      rolledBack: sum((one) => one.rolledBack),
    },
    top: sorted(
      (await store.statements(STATEMENTS_READ)).map((use) => ({
        fingerprint: use.fingerprint,
        kind: use.kind,
        text: use.text,
        executions: use.executions,
        errors: use.errors,
        rows: use.rows,
        durationMs: use.durationMicros / 1000,
      })),
      verb,
    ),
    tables: hottestFirst(
      series.map(({ table: name, points }) => {
        const of = (pick: (point: (typeof points)[number]) => number): number =>
          points.reduce((total, point) => total + pick(point), 0);
        return {
          table: name,
          reads: of((point) => point.reads),
          writes: of((point) => point.writes),
          errors: of((point) => point.errors),
          rows: of((point) => point.rowsRead + point.rowsWritten),
        };
      }),
    ),
    hotKeys: keysOf(await store.hotKeys({ fromMs: nowMs - DAY_MS, untilMs: nowMs })),
    problem: null,
  };
}

function keysOf(hotKeys: readonly HotKeys[]): NonNullable<CaptureReport['hotKeys']> {
  const tables = new Map<string, { hours: number; accesses: number; keys: Set<string> }>();
  for (const { table: name, accesses, keys } of hotKeys) {
    const sums = tables.get(name) ?? { hours: 0, accesses: 0, keys: new Set<string>() };
    sums.hours += 1;
    sums.accesses += accesses;
    for (const { key } of keys) sums.keys.add(key);
    tables.set(name, sums);
  }
  return [...tables]
    .map(([name, { hours, accesses, keys }]) => ({ table: name, hours, accesses, keys: keys.size }))
    .sort((a, b) => b.accesses - a.accesses);
}

function sorted(
  statements: readonly StatementTotals[],
  { by, limit }: CaptureVerb,
): readonly StatementTotals[] {
  const figure = { time: 'durationMs', calls: 'executions', errors: 'errors' } as const;
  return statements.toSorted((a, b) => b[figure[by]] - a[figure[by]]).slice(0, limit);
}

function hottestFirst(tables: CaptureReport['tables'] & object): CaptureReport['tables'] {
  return [...tables].sort((a, b) => b.reads + 3 * b.writes - (a.reads + 3 * a.writes));
}

function captureReportLines(report: CaptureReport, verb: CaptureVerb): readonly string[] {
  const { statements, transactions, hotKeys, problem } = report;
  const where = report.from === 'process' ? 'by the running process' : 'as kept in the destination';
  const missing = [
    `${formatCount(statements.dropped)} not counted`,
    ...(statements.unrecorded === null || statements.unrecorded === 0
      ? []
      : [`of these ${formatCount(statements.unrecorded)} in pipelines deeper than is followed`]),
    `${formatCount(statements.unparsed)} not understood`,
  ];
  return [
    `${formatCount(statements.seen)} statements since ${report.since}, ${where}: ${missing.join(', ')}`,
    `${formatCount(transactions.committed)} transactions committed, ${formatCount(transactions.rolledBack)} rolled back`,
    ...(problem === null ? [] : [`${problem.code}: ${problem.message}`]),
    '',
    `Statements by ${verb.by}`,
    ...table(
      ['calls>', 'errors>', 'rows>', 'time>', 'mean>', 'statement'],
      report.top.map(({ executions, errors, rows, durationMs, text }) => [
        formatCount(executions),
        formatCount(errors),
        formatCount(rows),
        formatMs(durationMs),
        executions > 0 ? formatMs(durationMs / executions) : '',
        oneLine(text),
      ]),
    ),
    '',
    'Tables by heat',
    ...table(
      ['table', 'reads>', 'writes>', 'errors>', 'rows>'],
      report.tables
        .slice(0, TABLES_SHOWN)
        .map(({ table: name, reads, writes, errors, rows }) => [
          name,
          formatCount(reads),
          formatCount(writes),
          formatCount(errors),
          formatCount(rows),
        ]),
    ),
    ...(hotKeys === null || hotKeys.length === 0
      ? []
      : [
          '',
          'Keys of the last day, kept as hashes',
          ...table(
            ['table', 'accesses>', 'keys told apart>', 'hours>'],
            hotKeys.map(({ table: name, accesses, keys, hours }) => [
              name,
              formatCount(accesses),
              formatCount(keys),
              formatCount(hours),
            ]),
          ),
        ]),
  ];
}

function oneLine(text: string): string {
  const line = text.replace(/\s+/g, ' ');
  return line.length > TEXT_WIDTH ? `${line.slice(0, TEXT_WIDTH - 1)}…` : line;
}
