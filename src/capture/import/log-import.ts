/**
 * Log files → finished statements, in the order of time.
 *
 * 1. each file's beginning is looked at: compression, format, prefix, time of the first entry;
 * 2. the files are put in order;
 * 3. each is read through its format's reader into one join, which goes on over the borders of files: a rotated set
 *    is one log.
 *
 * Memory does not grow with the files: readers bound a report's length, the join bounds its processes.
 */
import type { StatementSink } from '../../core/capture-ports.js';
import type { EntrySink, FormatName, LogEntry, Unreadable } from './entry.js';
import { openLogs, type LogFile } from './log-files.js';
import { LogTime } from './log-time.js';
import { StatementJoin, type JoinCounts, type JoinOptions } from './statement-join.js';

/** Unreadable lines that are kept for the user to look at. */
export const SHOWN_MAX = 10;
const SHOWN_CHARS_MAX = 200;

export interface ImportOptions extends JoinOptions {
  /** `log_line_prefix`; undefined: to be found out. */
  readonly prefix: string | undefined;
  /** undefined: to be found out, for each file. */
  readonly format: FormatName | undefined;
  readonly timezone: string | undefined;
  /** Keep the text of unreadable lines, which may hold values. */
  readonly showLines: boolean;
  readonly stdin: AsyncIterable<Buffer>;
  readonly signal?: AbortSignal;
}

export interface ImportProgress {
  readonly file: string;
  readonly filesDone: number;
  readonly files: number;
  /** As stored, of all files; the total is 0 where it is not known. */
  readonly bytesDone: number;
  readonly bytesTotal: number;
}

export interface FileReport {
  readonly path: string;
  readonly format: FormatName;
  /** Empty for formats without one. */
  readonly prefix: string;
  readonly bytes: number;
  readonly lines: number;
  readonly unreadable: number;
  /** Times of its first and last entries; null where it has none. */
  readonly firstMs: number | null;
  readonly lastMs: number | null;
}

export interface UnreadableLine {
  readonly file: string;
  readonly line: number;
  readonly reason: Unreadable;
  readonly text?: string;
}

export interface ImportReport {
  readonly files: readonly FileReport[];
  readonly bytes: number;
  readonly lines: number;
  readonly counts: Readonly<JoinCounts>;
  readonly unreadable: {
    readonly lines: number;
    readonly reasons: Readonly<Partial<Record<Unreadable, number>>>;
    readonly first: readonly UnreadableLine[];
  };
  /** Time zones that had to be guessed: abbreviation → reading. */
  readonly assumedZones: Readonly<Record<string, string>>;
}

/**
 * Reads the files and hands their statements to `sink`. `onProgress` is awaited after each piece of some 256 KiB, so
 * that its callee can write out what it gathered.
 * Throws `log-unreadable`, `config-invalid` (prefix, time zone), `cancelled`.
 */
export async function importLogs(
  paths: readonly string[],
  options: ImportOptions,
  sink: StatementSink,
  onProgress: (progress: ImportProgress) => Promise<void> = () => Promise.resolve(),
): Promise<ImportReport> {
  const files = await openLogs(paths, options);
  const bytesTotal = files.some((file) => file.bytesTotal === 0)
    ? 0
    : files.reduce((sum, file) => sum + file.bytesTotal, 0);
  const join = new StatementJoin(options, sink);
  const time = new LogTime(options.timezone);
  const problems = new Problems(options.showLines);
  const reports: FileReport[] = [];
  let bytesBefore = 0;
  for (const file of files) {
    let bytes = 0;
    const entries = problems.sinkFor(file.path, join);
    const reader = file.format.open({ prefix: file.prefix, time }, entries);
    for await (const text of file.text((read) => (bytes += read))) {
      options.signal?.throwIfAborted();
      reader.push(text);
      await onProgress({
        file: file.path,
        filesDone: reports.length,
        files: files.length,
        bytesDone: bytesBefore + bytes,
        bytesTotal,
      });
    }
    reader.end();
    bytesBefore += bytes;
    reports.push(reportOf(file, bytes, reader.lines, entries));
  }
  join.end();
  return {
    files: reports,
    bytes: bytesBefore,
    lines: reports.reduce((sum, file) => sum + file.lines, 0),
    counts: join.counts,
    unreadable: { lines: problems.lines, reasons: problems.reasons, first: problems.first },
    assumedZones: Object.fromEntries(time.assumptions),
  };
}

function reportOf(file: LogFile, bytes: number, lines: number, seen: FileSink): FileReport {
  const known = seen.firstMs <= seen.lastMs;
  return {
    path: file.path,
    format: file.format.name,
    prefix: file.prefix,
    bytes,
    lines,
    unreadable: seen.unreadableLines,
    firstMs: known ? seen.firstMs : null,
    lastMs: known ? seen.lastMs : null,
  };
}

/** What one file's reader hands over goes to the join and is counted on the way. */
class FileSink implements EntrySink {
  readonly #join: StatementJoin;
  readonly #note: (line: number, reason: Unreadable, text: string) => void;
  unreadableLines = 0;
  firstMs = Infinity;
  lastMs = -Infinity;

  constructor(join: StatementJoin, note: (line: number, reason: Unreadable, text: string) => void) {
    this.#join = join;
    this.#note = note;
  }

  entry(entry: LogEntry): void {
    if (entry.timeMs < this.firstMs) this.firstMs = entry.timeMs;
    if (entry.timeMs > this.lastMs) this.lastMs = entry.timeMs;
    this.#join.entry(entry);
  }

  unreadable(line: number, reason: Unreadable, text: string): void {
    this.unreadableLines += 1;
    this.#note(line, reason, text);
  }
}

class Problems {
  readonly #showLines: boolean;
  readonly first: UnreadableLine[] = [];
  readonly reasons: Partial<Record<Unreadable, number>> = {};
  lines = 0;

  constructor(showLines: boolean) {
    this.#showLines = showLines;
  }

  sinkFor(file: string, join: StatementJoin): FileSink {
    return new FileSink(join, (line, reason, text) => this.#note(file, line, reason, text));
  }

  #note(file: string, line: number, reason: Unreadable, text: string): void {
    this.lines += 1;
    this.reasons[reason] = (this.reasons[reason] ?? 0) + 1;
    if (this.first.length >= SHOWN_MAX) return;
    const shown = this.#showLines ? { text: text.slice(0, SHOWN_CHARS_MAX) } : {};
    this.first.push({ file, line, reason, ...shown });
  }
}
