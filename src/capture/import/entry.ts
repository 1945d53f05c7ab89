/**
 * What every log format is read into. One file per format; each gives a {@link LogFormat}, and one suite of tests is
 * run by all of them.
 */
import type { LogTime } from './log-time.js';

export const SEVERITIES = ['DEBUG', 'INFO', 'NOTICE', 'LOG', 'WARNING', 'ERROR', 'FATAL', 'PANIC'] as const;
export type LogSeverity = (typeof SEVERITIES)[number];

/** One report of the server, with the parts that belong to it. Empty where the log does not carry a field. */
export interface LogEntry {
  /** Milliseconds since 1970-01-01 UTC. */
  timeMs: number;
  severity: LogSeverity;
  message: string;
  detail: string;
  /** The statement at hand when the report was made: the STATEMENT line, csvlog's `query`, jsonlog's `statement`. */
  statement: string;
  /** Tells server processes apart: the session id where the log carries it, else the process id. */
  process: string;
  user: string;
  database: string;
  sqlState: string;
  /** A part was longer than {@link ENTRY_CHARS_MAX} and has lost its end. */
  cut: boolean;
}

/** Beyond so many characters a part of an entry is cut. */
export const ENTRY_CHARS_MAX = 1 << 20;

/** Why a line was not understood. Stable: `--json` carries them. */
export type Unreadable =
  | 'prefix-differs'
  | 'not-a-log-line'
  | 'continuation-without-start'
  | 'time-unreadable'
  | 'columns-unknown'
  | 'quote-not-closed'
  | 'json-malformed'
  | 'fields-missing'
  | 'line-too-long';

export interface EntrySink {
  /** The entry is the reader's again once this returns. */
  entry(entry: LogEntry): void;
  /** `line` counts from 1 within the file. `text` may hold values: it is shown only where the user asks for it. */
  unreadable(line: number, reason: Unreadable, text: string): void;
}

/** Reads one file. Text comes in pieces of any size. */
export interface LogReader {
  push(text: string): void;
  /** The file ends; what was begun is handed over. */
  end(): void;
  /** Lines begun so far. */
  readonly lines: number;
}

export interface ReaderOptions {
  readonly time: LogTime;
  /** `log_line_prefix` of the server, for formats that have one. */
  readonly prefix: string;
}

export const FORMAT_NAMES = ['stderr', 'csvlog', 'jsonlog', 'cloud-json'] as const;
export type FormatName = (typeof FORMAT_NAMES)[number];

export interface LogFormat {
  readonly name: FormatName;
  /**
   * The settings with which a log that begins with `sample` can be read, or null where it is of another format.
   * `prefix` is what the user said; undefined where it is to be found out.
   */
  detect(sample: string, prefix: string | undefined): { readonly prefix: string } | null;
  open(options: ReaderOptions, sink: EntrySink): LogReader;
}

const KNOWN_SEVERITIES: ReadonlySet<string> = new Set(SEVERITIES);

/** `DEBUG1` … `DEBUG5` are all DEBUG. */
export function severityOf(text: string): LogSeverity | null {
  if (KNOWN_SEVERITIES.has(text)) return text as LogSeverity;
  return /^DEBUG[1-5]$/.test(text) ? 'DEBUG' : null;
}

export function emptyEntry(): LogEntry {
  return {
    timeMs: 0,
    severity: 'LOG',
    message: '',
    detail: '',
    statement: '',
    process: '',
    user: '',
    database: '',
    sqlState: '',
    cut: false,
  };
}

/** A name as the log prints it: `[unknown]` stands for none. */
export function nameOf(text: string | undefined): string {
  return text === undefined || text === '[unknown]' ? '' : text;
}
