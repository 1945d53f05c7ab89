/** `understudy import-log FILE…`: how a database is used, from its logs alone. */
import { createHash, randomBytes } from 'node:crypto';
import { open } from 'node:fs/promises';
import type { FormatName } from '../../capture/import/entry.js';
import { STDIN } from '../../capture/import/log-files.js';
import { importLogs, type ImportProgress, type ImportReport } from '../../capture/import/log-import.js';
import { LogTime } from '../../capture/import/log-time.js';
import { UnderstudyError } from '../../core/errors.js';
import type { CatalogSnapshot } from '../../capture/catalog.js';
import type { ResolvedConfig } from '../config.js';
import { catalogOf, installationSecret, openStore } from '../import-log/destination.js';
import { ImportRun, type SeriesTarget } from '../import-log/import-run.js';
import type { HeatSummary } from '../import-log/heat.js';
import { readSnapshots, type SnapshotImport } from '../import-log/snapshots.js';
import { WHAT_TO_LOG } from '../plan/plan-text.js';
import { SERIES_FILE, SeriesFileWriter } from '../series-file.js';
import { EXIT, type ExitCode } from './exit-codes.js';
import { bar, formatBytes, formatCount, formatDuration, formatMs, table } from './format.js';
import type { Terminal } from './terminal.js';

export interface ImportVerb {
  readonly files: readonly string[];
  readonly prefix: string | undefined;
  readonly format: FormatName | undefined;
  readonly timezone: string | undefined;
  readonly since: string | undefined;
  readonly until: string | undefined;
  readonly database: string | undefined;
  /** Count which keys are used most. */
  readonly keys: boolean;
  readonly dryRun: boolean;
  readonly showLines: boolean;
  readonly out: string | undefined;
  readonly pgStatStatements: readonly string[];
}

const PROGRESS_EVERY_MS = 250;
/** Without a terminal a line now and then. */
const PROGRESS_LINE_EVERY_MS = 10_000;
const TABLES_SHOWN = 20;
const HASHED_BYTES = 65_536;

interface Target extends SeriesTarget {
  readonly name: string;
  finish(): Promise<void>;
  abandon(): Promise<void>;
}

export async function runImportLog(
  terminal: Terminal,
  verb: ImportVerb,
  config: ResolvedConfig | null,
): Promise<ExitCode> {
  if (verb.files.length === 0 && verb.pgStatStatements.length === 0)
    throw new UnderstudyError(
      'config-invalid',
      'name the logs to read: import-log FILE… (- for standard input)',
    );
  if (verb.files.length > 0 && verb.pgStatStatements.length > 0)
    throw new UnderstudyError('config-invalid', 'import logs or snapshots, one after the other', {
      advice: 'Together they would count the same statements twice.',
    });
  const range = rangeOf(verb);
  const snapshots = await readSnapshots(verb.pgStatStatements);
  const writer = await writerName(verb);
  // Totals of nobody knows when would stand in the series as a peak that never was.
  const totals = snapshots !== null && snapshots.spans.length === 0;
  const target = verb.dryRun || totals ? null : await openTarget(verb, writer, config);
  const startedMs = performance.now();
  try {
    const catalog = await catalogFor(terminal, config);
    const run = await ImportRun.start(writer, target, catalog, await secretFor(verb, config, catalog));
    const report = await readLogs(terminal, verb, range, run);
    for (const statement of snapshots?.statements ?? []) run.add(statement);
    const heat = await run.finish([...spansOf(report, range), ...(snapshots?.spans ?? [])]);
    await target?.finish();
    const seconds = (performance.now() - startedMs) / 1000;
    print(terminal, report, snapshots, heat, seconds);
    if (target !== null) {
      const plan = target.name === SERIES_FILE || config !== null ? '' : ` --series ${target.name}`;
      terminal.line(
        heat.tables.length === 0
          ? `kept in ${target.name}, but no use of any table was seen. ${WHAT_TO_LOG}`
          : `kept in ${target.name}; \`understudy plan${plan}\` says what it means`,
      );
    } else if (totals) terminal.line('totals are not kept: give a second snapshot');
    terminal.result(resultOf(verb, report, snapshots, heat, seconds, run.shed, target?.name ?? null));
    return EXIT.ok;
  } catch (error) {
    await target?.abandon().catch(() => undefined);
    throw error;
  }
}

interface Range {
  readonly sinceMs: number;
  readonly untilMs: number;
}

function rangeOf({ since, until, timezone }: ImportVerb): Range {
  const range = {
    sinceMs: since === undefined ? -Infinity : moment('--since', since, timezone),
    untilMs: until === undefined ? Infinity : moment('--until', until, timezone),
  };
  if (range.sinceMs >= range.untilMs)
    throw new UnderstudyError('config-invalid', '--since must lie before --until');
  return range;
}

const AGO_MS: Readonly<Record<string, number>> = { min: 60_000, h: 3_600_000, d: 86_400_000 };

/** `2026-03-02`, `2026-03-02 10:00`, ISO 8601, or `90min`, `24h`, `7d` ago. Without a zone: --timezone, else UTC. */
function moment(flag: string, text: string, timezone: string | undefined): number {
  const ago = /^(\d+)(min|h|d)$/.exec(text);
  if (ago !== null) return Date.now() - Number(ago[1]) * (AGO_MS[ago[2] ?? ''] ?? 0);
  const full = text
    .replace(/^(\d{4}-\d\d-\d\d)$/, '$1 00:00:00')
    .replace(/^(\d{4}-\d\d-\d\d[ T]\d\d:\d\d)(?!:)/, '$1:00');
  const ms = new LogTime(timezone).parse(full);
  if (!Number.isNaN(ms)) return ms;
  throw new UnderstudyError(
    'config-invalid',
    `${flag} ${text}: expected 2026-03-02, "2026-03-02 10:00" or 24h`,
  );
}

async function readLogs(
  terminal: Terminal,
  verb: ImportVerb,
  range: Range,
  run: ImportRun,
): Promise<ImportReport | null> {
  if (verb.files.length === 0) return null;
  const stop = new AbortController();
  const onSignal = (): void => stop.abort(new UnderstudyError('cancelled', 'the import was stopped'));
  process.on('SIGINT', onSignal);
  const progress = progressOn(terminal);
  try {
    return await importLogs(
      verb.files,
      {
        ...range,
        prefix: verb.prefix,
        format: verb.format,
        timezone: verb.timezone,
        database: verb.database ?? '',
        showLines: verb.showLines,
        keys: verb.keys,
        stdin: process.stdin,
        signal: stop.signal,
      },
      run,
      async (at) => {
        progress(at);
        await run.flush();
      },
    );
  } finally {
    process.off('SIGINT', onSignal);
  }
}

function progressOn(terminal: Terminal): (progress: ImportProgress) => void {
  const startedMs = performance.now();
  let shownMs = startedMs;
  return ({ file, filesDone, files, bytesDone, bytesTotal }) => {
    const nowMs = performance.now();
    if (nowMs - shownMs < (terminal.interactive ? PROGRESS_EVERY_MS : PROGRESS_LINE_EVERY_MS)) return;
    shownMs = nowMs;
    const rate = `${formatBytes(bytesDone / ((nowMs - startedMs) / 1000))}/s`;
    const of = bytesTotal === 0 ? '' : ` of ${formatBytes(bytesTotal)}`;
    const text = `${file} (${filesDone + 1} of ${files})  ${formatBytes(bytesDone)}${of}  ${rate}`;
    if (terminal.interactive) terminal.transient(text);
    else terminal.line(text);
  };
}

/** Of what time the logs tell: each file's own span, within what was asked for. */
function spansOf(
  report: ImportReport | null,
  { sinceMs, untilMs }: Range,
): readonly { readonly fromMs: number; readonly untilMs: number }[] {
  return (report?.files ?? []).flatMap(({ firstMs, lastMs }) => {
    if (firstMs === null || lastMs === null) return [];
    const span = { fromMs: Math.max(firstMs, sinceMs), untilMs: Math.min(lastMs + 1, untilMs) };
    return span.fromMs < span.untilMs ? [span] : [];
  });
}

async function catalogFor(
  terminal: Terminal,
  config: ResolvedConfig | null,
): Promise<CatalogSnapshot | null> {
  if (config === null) return null;
  const catalog = await catalogOf(config);
  if (typeof catalog !== 'string') return catalog;
  terminal.line(terminal.paint('yellow', `names of tables stay as they are written: ${catalog}`));
  return null;
}

/** The installation's own, so that keys are the same as in the live capture. null: keys aren't counted. */
async function secretFor(
  verb: ImportVerb,
  config: ResolvedConfig | null,
  catalog: CatalogSnapshot | null,
): Promise<Buffer | null> {
  if (!verb.keys) return null;
  if (config === null || catalog === null)
    throw new UnderstudyError(
      'config-invalid',
      '--keys needs the source’s catalogs, which say what is a key',
      {
        advice: 'Give a configuration whose source can be reached, or leave --keys out.',
      },
    );
  return installationSecret(config);
}

async function openTarget(verb: ImportVerb, writer: string, config: ResolvedConfig | null): Promise<Target> {
  if (verb.out === undefined && config !== null) {
    const store = await openStore(config);
    return {
      name: store.name,
      append: (batch) => store.append(batch),
      finish: () => store.close(),
      abandon: () => store.close(),
    };
  }
  const path = verb.out ?? SERIES_FILE;
  const file = await SeriesFileWriter.create(path, {
    writer,
    createdAt: new Date().toISOString(),
    origin: verb.files.length > 0 ? 'import-log' : 'pg-stat-statements',
  });
  return {
    name: path,
    append: (batch) => file.append(batch),
    finish: () => file.finish(),
    abandon: () => file.abandon(),
  };
}

/** The same for the same files read in the same way; see import-run.ts. */
async function writerName(verb: ImportVerb): Promise<string> {
  const hash = createHash('sha256');
  const { prefix, format, timezone, since, until, database, keys } = verb;
  hash.update(
    JSON.stringify({ prefix, format, timezone, since, until, database, ...(keys ? { keys } : {}) }),
  );
  for (const path of [...verb.files, ...verb.pgStatStatements]) {
    hash.update((path === STDIN ? null : await beginningOf(path)) ?? randomBytes(16));
  }
  return `log:${hash.digest('hex').slice(0, 16)}`;
}

/** Size and first bytes of a file; null where it is none. */
async function beginningOf(path: string): Promise<Buffer | null> {
  const handle = await open(path, 'r').catch(() => null);
  if (handle === null) return null;
  try {
    const { size } = await handle.stat();
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(HASHED_BYTES), 0, HASHED_BYTES, 0);
    return Buffer.concat([Buffer.from(`${size} `), buffer.subarray(0, bytesRead)]);
  } catch {
    return null;
  } finally {
    await handle.close();
  }
}

function print(
  terminal: Terminal,
  report: ImportReport | null,
  snapshots: SnapshotImport | null,
  heat: HeatSummary,
  seconds: number,
): void {
  if (report !== null) printLogs(terminal, report, seconds);
  if (snapshots !== null)
    terminal.line(
      `pg_stat_statements: ${formatCount(snapshots.executions)} executions of ${formatCount(snapshots.shapes)} statements ${snapshots.meaning}`,
    );
  const rows = heat.tables
    .slice(0, TABLES_SHOWN)
    .map(({ table: name, reads, writes, errors, share, durationMs }) => [
      name,
      formatCount(reads),
      formatCount(writes),
      formatCount(errors),
      formatMs(durationMs),
      `${bar(share, 20)} ${(share * 100).toFixed(1)} %`,
    ]);
  if (rows.length > 0) {
    terminal.line();
    for (const line of table(['table', 'reads>', 'writes>', 'errors>', 'time>', 'heat'], rows))
      terminal.line(line);
    if (heat.tables.length > TABLES_SHOWN) terminal.line(`and ${heat.tables.length - TABLES_SHOWN} more`);
  }
  if (heat.busiestMinute !== null)
    terminal.line(
      `${counted(heat.minutes.count, 'minute')} with statements; the busiest, ${heat.busiestMinute.start}, had ${formatCount(heat.busiestMinute.statements)}`,
    );
}

function printLogs(terminal: Terminal, report: ImportReport, seconds: number): void {
  const { counts, unreadable } = report;
  for (const { path, format, prefix, lines } of report.files)
    terminal.line(
      `${path}: ${format}${prefix === '' ? '' : ` with prefix “${prefix}”`}, ${formatCount(lines)} lines`,
    );
  const span =
    counts.firstMs > counts.lastMs
      ? ''
      : `, ${new Date(counts.firstMs).toISOString()} to ${new Date(counts.lastMs).toISOString()}`;
  terminal.line(
    `${counted(counts.statements, 'statement')} of ${counted(counts.sessions, 'session')}${span}; ${formatCount(counts.failed)} failed`,
  );
  const asides: readonly (readonly [count: number, what: string])[] = [
    [counts.filtered, `${formatCount(counts.filtered)} outside of the range or database asked for`],
    [counts.cut, `${counted(counts.cut, 'statement')} cut in the log`],
    [
      counts.durationsAlone,
      `${counted(counts.durationsAlone, 'duration')} of what is not in the log: log_min_duration_statement = 0 has both`,
    ],
    [counts.autoExplain, `${counted(counts.autoExplain, 'plan')} of auto_explain, left out`],
    [counts.errorsAlone, `${counted(counts.errorsAlone, 'error')} without a statement`],
    [counts.outOfOrder, `${formatCount(counts.outOfOrder)} out of order`],
  ];
  for (const [count, text] of asides) if (count > 0) terminal.line(`  ${text}`);
  for (const [zone, reading] of Object.entries(report.assumedZones))
    terminal.line(terminal.paint('yellow', `  ${zone} was taken for ${reading}: --timezone says otherwise`));
  if (unreadable.lines > 0) {
    terminal.line(terminal.paint('yellow', `  ${counted(unreadable.lines, 'line')} not understood`));
    for (const { file, line, reason, text } of unreadable.first)
      terminal.line(`    ${file}:${line} ${reason}${text === undefined ? '' : `  ${text}`}`);
    if (unreadable.first.some(({ text }) => text === undefined))
      terminal.line('    --show-lines shows them; they may hold values');
  }
  terminal.line(
    `read ${formatBytes(report.bytes)} in ${formatDuration(seconds)}, ${formatBytes(report.bytes / seconds)}/s`,
  );
}

function resultOf(
  verb: ImportVerb,
  report: ImportReport | null,
  snapshots: SnapshotImport | null,
  heat: HeatSummary,
  seconds: number,
  shed: number,
  kept: string | null,
): object {
  const counts = report?.counts;
  const known = counts !== undefined && counts.firstMs <= counts.lastMs;
  const { firstMs: _first, lastMs: _last, ...figures } = counts ?? { firstMs: 0, lastMs: 0 };
  return {
    dryRun: verb.dryRun,
    kept,
    span: known
      ? { from: new Date(counts.firstMs).toISOString(), to: new Date(counts.lastMs).toISOString() }
      : null,
    files: report?.files ?? [],
    bytes: report?.bytes ?? 0,
    lines: report?.lines ?? 0,
    seconds,
    ...figures,
    shed,
    unreadable: report?.unreadable ?? { lines: 0, reasons: {}, first: [] },
    assumedZones: report?.assumedZones ?? {},
    ...(snapshots === null
      ? {}
      : {
          pgStatStatements: {
            executions: snapshots.executions,
            shapes: snapshots.shapes,
            unreadable: snapshots.unreadable,
            meaning: snapshots.meaning,
          },
        }),
    ...heat,
  };
}

function counted(count: number, what: string): string {
  return `${formatCount(count)} ${what}${count === 1 ? '' : 's'}`;
}
