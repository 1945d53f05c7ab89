/**
 * `log_destination = csvlog`. The columns are named by their place, and their number grew with the versions: 22 until
 * 8.4, 23 from 9.0 (application_name), 24 from 13 (backend_type), 26 from 14 (leader_pid, query_id).
 * https://www.postgresql.org/docs/current/runtime-config-logging.html#RUNTIME-CONFIG-LOGGING-CSVLOG
 *
 * A quote that is never closed would swallow the rest of the file: a record is bounded, and beyond the bound reading
 * begins anew at the next line that looks like a record's head.
 */
import { CsvRecords } from './csv-records.js';
import {
  emptyEntry,
  severityOf,
  type EntrySink,
  type LogFormat,
  type LogReader,
  type ReaderOptions,
} from './entry.js';

const COLUMN = {
  time: 0,
  user: 1,
  database: 2,
  pid: 3,
  session: 5,
  severity: 11,
  sqlState: 12,
  message: 13,
  detail: 14,
  query: 19,
} as const;
const COLUMNS_MIN = 22;
const COLUMNS_MAX = 40;

/** `2026-03-29 02:30:00.123 CEST,"user","db",123,` */
export const CSV_HEAD =
  /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [A-Za-z0-9<>+-]{1,10},(?:"(?:[^"]|"")*")?,(?:"(?:[^"]|"")*")?,\d*,/;

export const CSV_FORMAT: LogFormat = {
  name: 'csvlog',
  detect(sample) {
    const lines = sample.split('\n', 200);
    return lines.some((line) => CSV_HEAD.test(line)) ? { prefix: '' } : null;
  },
  open(options, sink) {
    return new CsvReader(options, sink);
  },
};

class CsvReader implements LogReader {
  readonly #options: ReaderOptions;
  readonly #sink: EntrySink;
  readonly #records: CsvRecords;

  constructor(options: ReaderOptions, sink: EntrySink) {
    this.#options = options;
    this.#sink = sink;
    this.#records = new CsvRecords({
      head: CSV_HEAD,
      record: (columns, line) => this.#record(columns, line),
      broken: (line, text) => sink.unreadable(line, 'quote-not-closed', text),
    });
  }

  get lines(): number {
    return this.#records.lines;
  }

  push(text: string): void {
    this.#records.push(text);
  }

  end(): void {
    this.#records.end();
  }

  #record(columns: readonly string[], line: number): void {
    const column = (at: number): string => columns[at] ?? '';
    if (columns.length < COLUMNS_MIN || columns.length > COLUMNS_MAX) {
      if (columns.length > 1 || column(0).trim() !== '')
        this.#sink.unreadable(line, 'columns-unknown', columns.join(','));
      return;
    }
    const severity = severityOf(column(COLUMN.severity));
    if (severity === null) {
      this.#sink.unreadable(line, 'columns-unknown', columns.join(','));
      return;
    }
    const timeMs = this.#options.time.parse(column(COLUMN.time));
    if (Number.isNaN(timeMs)) {
      this.#sink.unreadable(line, 'time-unreadable', columns.join(','));
      return;
    }
    const entry = emptyEntry();
    entry.timeMs = timeMs;
    entry.severity = severity;
    entry.message = column(COLUMN.message);
    entry.detail = column(COLUMN.detail);
    entry.statement = column(COLUMN.query);
    entry.process = column(COLUMN.session) || column(COLUMN.pid);
    entry.user = column(COLUMN.user);
    entry.database = column(COLUMN.database);
    entry.sqlState = column(COLUMN.sqlState);
    this.#sink.entry(entry);
  }
}
