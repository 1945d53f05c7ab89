/**
 * `log_destination = jsonlog` (from PostgreSQL 15): one object a line.
 * https://www.postgresql.org/docs/current/runtime-config-logging.html#RUNTIME-CONFIG-LOGGING-JSONLOG
 */
import {
  ENTRY_CHARS_MAX,
  emptyEntry,
  severityOf,
  type EntrySink,
  type LogFormat,
  type LogReader,
  type ReaderOptions,
  type Unreadable,
} from './entry.js';
import { LineSplitter } from './line-splitter.js';

export type JsonObject = Readonly<Record<string, unknown>>;

export const JSON_FORMAT: LogFormat = {
  name: 'jsonlog',
  detect(sample) {
    const found = sample.split('\n', 50).some((line) => {
      const object = parseObject(line);
      return object !== null && 'error_severity' in object && 'timestamp' in object;
    });
    return found ? { prefix: '' } : null;
  },
  open(options, sink) {
    return new JsonReader(options, sink);
  },
};

class JsonReader implements LogReader {
  readonly #options: ReaderOptions;
  readonly #sink: EntrySink;
  readonly #splitter: LineSplitter;
  lines = 0;

  constructor(options: ReaderOptions, sink: EntrySink) {
    this.#options = options;
    this.#sink = sink;
    this.#splitter = new LineSplitter((text, cut) => this.#line(text, cut), 4 * ENTRY_CHARS_MAX);
  }

  push(text: string): void {
    this.#splitter.push(text);
  }

  end(): void {
    this.#splitter.end();
  }

  #line(text: string, cut: boolean): void {
    this.lines += 1;
    if (cut) {
      this.#sink.unreadable(this.lines, 'line-too-long', text);
      return;
    }
    if (text.trim() === '') return;
    const object = parseObject(text);
    const problem = object === null ? 'json-malformed' : deliver(object, this.#options, this.#sink);
    if (problem !== null) this.#sink.unreadable(this.lines, problem, text);
  }
}

/** One jsonlog object → an entry; or why not. */
export function deliver(object: JsonObject, options: ReaderOptions, sink: EntrySink): Unreadable | null {
  const severity = severityOf(textOf(object['error_severity']));
  if (severity === null) return 'fields-missing';
  const timeMs = options.time.parse(textOf(object['timestamp']));
  if (Number.isNaN(timeMs)) return 'time-unreadable';
  const entry = emptyEntry();
  entry.timeMs = timeMs;
  entry.severity = severity;
  entry.message = textOf(object['message']);
  entry.detail = textOf(object['detail']);
  entry.statement = textOf(object['statement']);
  entry.process = textOf(object['session_id']) || textOf(object['pid']);
  entry.user = textOf(object['user']);
  entry.database = textOf(object['dbname']);
  entry.sqlState = textOf(object['state_code']);
  sink.entry(entry);
  return null;
}

/** The object a line holds, or null. */
export function parseObject(text: string): JsonObject | null {
  const from = text.search(/\S/);
  if (from === -1 || text[from] !== '{') return null;
  try {
    return JSON.parse(text) as JsonObject;
  } catch {
    return null;
  }
}

export function textOf(value: unknown): string {
  if (typeof value === 'string') return value;
  return typeof value === 'number' ? String(value) : '';
}
