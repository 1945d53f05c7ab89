/**
 * Logs of managed services as they are exported: objects in JSON around the server's own lines or fields.
 *
 * - Google Cloud SQL: `textPayload` is one line of the text log, without its time; `timestamp` beside it.
 * - Azure Database for PostgreSQL: `properties` with `errorLevel`, `message`, `processId`, `sqlerrcode`; the message may
 *   begin with the text log's head.
 * - Amazon CloudWatch: `message` is a report of the text log, `timestamp` in milliseconds; in `events` of an answer of
 *   `get-log-events`.
 * - CloudNativePG: `record` holds csvlog's columns by name.
 * - Container logs: `log` is a line of the text log.
 *
 * Objects may stand one a line, one after another over several lines, or in an array.
 */
import {
  emptyEntry,
  nameOf,
  severityOf,
  type EntrySink,
  type LogFormat,
  type LogReader,
  type ReaderOptions,
  type Unreadable,
} from './entry.js';
import { JsonObjects } from './json-objects.js';
import { deliver, textOf, type JsonObject } from './json-format.js';
import { LOOKS_LIKE_A_HEAD } from './line-prefix.js';
import { detectPrefix } from './prefix-detect.js';
import { StderrLines } from './stderr-format.js';

/** Objects of the sample that are looked at. */
const SAMPLE_OBJECTS_MAX = 500;

export const CLOUD_FORMAT: LogFormat = {
  name: 'cloud-json',
  detect(sample, prefix) {
    if (!/^\s*[[{]/.test(sample)) return null;
    const lines: string[] = [];
    let structured = 0;
    let seen = 0;
    const objects = new JsonObjects({
      object: (object) => {
        for (const inner of unwrapped(object)) {
          seen += 1;
          if (seen > SAMPLE_OBJECTS_MAX) return;
          if (structuredOf(inner) !== null) structured += 1;
          const payload = payloadOf(inner);
          if (payload !== null) lines.push(payload.text);
        }
      },
      malformed: () => undefined,
    });
    objects.push(sample);
    objects.end();
    if (seen === 0) lines.push(...payloadsWithin(sample));
    if (lines.length === 0 && structured === 0) return null;
    if (prefix !== undefined) return { prefix };
    const found = detectPrefix(lines.join('\n'), false);
    if (found !== null) return { prefix: found.text };
    return structured > 0 ? { prefix: '' } : null;
  },
  open(options, sink) {
    return new CloudReader(options, sink);
  },
};

/** The lines of one object so large that the sample holds only its beginning. */
function payloadsWithin(sample: string): readonly string[] {
  const payload = /"(?:textPayload|message|log)"\s*:\s*("(?:[^"\\]|\\.)*")/g;
  return [...sample.matchAll(payload)].map(([, text]) => JSON.parse(text ?? '""') as string);
}

class CloudReader implements LogReader {
  readonly #options: ReaderOptions;
  readonly #sink: EntrySink;
  readonly #lineReader: StderrLines;
  readonly #objects: JsonObjects;

  constructor(options: ReaderOptions, sink: EntrySink) {
    this.#options = options;
    this.#sink = sink;
    this.#lineReader = new StderrLines(options, sink);
    this.#objects = new JsonObjects({
      object: (object, line, text) => this.#object(object, line, text),
      malformed: (line, text) => sink.unreadable(line, 'json-malformed', text),
    });
  }

  get lines(): number {
    return this.#objects.lines;
  }

  push(text: string): void {
    this.#objects.push(text);
  }

  end(): void {
    this.#objects.end();
    this.#lineReader.flush();
  }

  #object(object: JsonObject, line: number, text: string): void {
    for (const inner of unwrapped(object)) {
      const problem = this.#inner(inner, line);
      if (problem !== null) this.#sink.unreadable(line, problem, text);
    }
  }

  #inner(object: JsonObject, line: number): Unreadable | null {
    const structured = structuredOf(object);
    if (structured !== null) {
      this.#lineReader.flush();
      return structured(this.#options, this.#sink);
    }
    const payload = payloadOf(object);
    if (payload === null) return 'fields-missing';
    const outerMs = payload.timeMs ?? this.#options.time.parse(payload.time);
    for (const text of payload.text.replace(/\r?\n$/, '').split('\n'))
      this.#lineReader.line(text, line, outerMs, false);
    return null;
  }
}

/** An answer of CloudWatch or a diagnostic export holds many events in one object. */
function unwrapped(object: JsonObject): readonly JsonObject[] {
  const many = object['events'] ?? object['records'] ?? object['entries'];
  return Array.isArray(many) ? many.filter(isObject) : [object];
}

interface Payload {
  readonly text: string;
  readonly time: string;
  readonly timeMs?: number;
}

/** A line of the text log, and the time that stands beside it. */
function payloadOf(object: JsonObject): Payload | null {
  const text = object['textPayload'] ?? object['log'] ?? object['message'];
  if (typeof text !== 'string') return null;
  const time = object['timestamp'] ?? object['time'];
  if (typeof time === 'number') return { text, time: '', timeMs: time };
  return { text, time: textOf(time) };
}

type Delivery = (options: ReaderOptions, sink: EntrySink) => Unreadable | null;

/** How to deliver an object that carries the server's fields by name; null where it carries a line of text. */
function structuredOf(object: JsonObject): Delivery | null {
  if ('error_severity' in object && 'timestamp' in object)
    return (options, sink) => deliver(object, options, sink);
  const record = object['record'];
  if (isObject(record) && 'error_severity' in record)
    return (options, sink) => deliver(fromColumns(record), options, sink);
  const properties = object['properties'];
  if (isObject(properties) && 'errorLevel' in properties && 'message' in properties)
    return (options, sink) => deliverAzure(object, properties, options, sink);
  return null;
}

/** csvlog's columns by name → jsonlog's. */
function fromColumns(record: JsonObject): JsonObject {
  return {
    ...record,
    timestamp: record['log_time'],
    user: record['user_name'],
    dbname: record['database_name'],
    pid: record['process_id'],
    state_code: record['sql_state_code'],
    statement: record['query'],
  };
}

function deliverAzure(
  object: JsonObject,
  properties: JsonObject,
  options: ReaderOptions,
  sink: EntrySink,
): Unreadable | null {
  const severity = severityOf(textOf(properties['errorLevel']).toUpperCase());
  if (severity === null) return 'fields-missing';
  const timeMs = options.time.parse(textOf(object['time']) || textOf(properties['timestamp']));
  if (Number.isNaN(timeMs)) return 'time-unreadable';
  const entry = emptyEntry();
  entry.timeMs = timeMs;
  entry.severity = severity;
  const message = textOf(properties['message']);
  const head = LOOKS_LIKE_A_HEAD.exec(message.slice(0, 400));
  entry.message = head === null ? message : message.slice(head.index + head[0].length);
  entry.detail = textOf(properties['detail']);
  entry.statement = textOf(properties['statement']);
  const session = head === null ? null : /[0-9a-f]{8,16}\.[0-9a-f]+/.exec(message.slice(0, head.index + 1));
  entry.process = session?.[0] ?? textOf(properties['processId']);
  entry.user = nameOf(textOf(properties['user']));
  entry.database = nameOf(textOf(properties['database']) || textOf(properties['dbname']));
  entry.sqlState = textOf(properties['sqlerrcode']);
  sink.entry(entry);
  return null;
}

function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
