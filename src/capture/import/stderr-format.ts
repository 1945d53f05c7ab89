/**
 * The server's own text log: each report is a head line (prefix, severity, message) with further parts on lines of
 * the same prefix (DETAIL, STATEMENT …). A part's own line breaks are followed by a tab.
 *
 * Collectors sometimes lose the tabs: then a line that looks like no head goes on what stands before, provided that
 * this carries a statement.
 */
import {
  ENTRY_CHARS_MAX,
  emptyEntry,
  nameOf,
  severityOf,
  type EntrySink,
  type LogEntry,
  type LogFormat,
  type LogReader,
  type ReaderOptions,
} from './entry.js';
import { HEAD_CHARS_MAX, LOOKS_LIKE_A_HEAD, compilePrefix, type LinePrefix } from './line-prefix.js';
import { LineSplitter } from './line-splitter.js';
import { detectPrefix } from './prefix-detect.js';

/** The parts of a report that are read. */
type Part = 'message' | 'detail' | 'statement' | 'other';

const PARTS: Readonly<Record<string, Part>> = { DETAIL: 'detail', STATEMENT: 'statement' };
const CARRIES_STATEMENT = /^(?:duration: |statement: |execute )/;

export const STDERR_FORMAT: LogFormat = {
  name: 'stderr',
  detect(sample, prefix) {
    if (prefix !== undefined) return { prefix };
    const found = detectPrefix(sample, true);
    return found === null ? null : { prefix: found.text };
  },
  open(options, sink) {
    return new StderrReader(options, sink);
  },
};

export class StderrReader implements LogReader {
  readonly #lineReader: StderrLines;
  readonly #splitter: LineSplitter;
  lines = 0;

  constructor(options: ReaderOptions, sink: EntrySink) {
    this.#lineReader = new StderrLines(options, sink);
    this.#splitter = new LineSplitter((text, cut) => {
      this.lines += 1;
      this.#lineReader.line(text, this.lines, NaN, cut);
    }, ENTRY_CHARS_MAX + HEAD_CHARS_MAX);
  }

  push(text: string): void {
    this.#splitter.push(text);
  }

  end(): void {
    this.#splitter.end();
    this.#lineReader.flush();
  }
}

/** Lines → entries. Shared with the cloud formats, which wrap each line into an object of their own. */
export class StderrLines {
  readonly #options: ReaderOptions;
  readonly #prefix: LinePrefix;
  readonly #sink: EntrySink;
  #entry: LogEntry | null = null;
  #part: Part = 'other';

  constructor(options: ReaderOptions, sink: EntrySink) {
    this.#options = options;
    this.#prefix = compilePrefix(options.prefix);
    this.#sink = sink;
  }

  /** `outerMs`: the time that stands outside of the line, NaN where none does. `cut`: the line has lost its end. */
  line(text: string, lineNumber: number, outerMs: number, cut: boolean): void {
    if (text.charCodeAt(0) === 0x09) {
      if (this.#entry === null) this.#sink.unreadable(lineNumber, 'continuation-without-start', text);
      else this.#append(text.slice(1), cut);
      return;
    }
    const found = this.#prefix.pattern.exec(
      text.length > HEAD_CHARS_MAX ? text.slice(0, HEAD_CHARS_MAX) : text,
    );
    if (found === null) this.#withoutHead(text, lineNumber, cut);
    else this.#withHead(found, text, lineNumber, outerMs, cut);
  }

  #withoutHead(text: string, lineNumber: number, cut: boolean): void {
    if (text.trim() === '') return;
    const alien = LOOKS_LIKE_A_HEAD.test(text.slice(0, HEAD_CHARS_MAX));
    const entry = this.#entry;
    if (alien || entry === null || !this.#carriesStatement(entry)) {
      this.#sink.unreadable(lineNumber, alien ? 'prefix-differs' : 'not-a-log-line', text);
      return;
    }
    this.#append(text, cut);
  }

  #carriesStatement(entry: LogEntry): boolean {
    if (this.#part === 'statement') return true;
    return this.#part === 'message' && CARRIES_STATEMENT.test(entry.message);
  }

  #withHead(found: RegExpExecArray, text: string, lineNumber: number, outerMs: number, cut: boolean): void {
    const keyword = found[this.#prefix.severityGroup] ?? '';
    const rest = text.slice(found[0].length);
    const severity = severityOf(keyword);
    if (severity === null) {
      this.#part = PARTS[keyword] ?? 'other';
      const entry = this.#entry;
      if (entry === null) this.#sink.unreadable(lineNumber, 'continuation-without-start', text);
      else if (this.#part !== 'other') entry[this.#part] = rest;
      if (entry !== null && cut) entry.cut = true;
      return;
    }
    this.flush();
    const timeMs = this.#time(found, outerMs);
    if (Number.isNaN(timeMs)) {
      this.#sink.unreadable(lineNumber, 'time-unreadable', text);
      return;
    }
    const { groups } = this.#prefix;
    const entry = emptyEntry();
    entry.timeMs = timeMs;
    entry.severity = severity;
    entry.message = rest;
    entry.cut = cut;
    entry.process = field(found, groups.session) || field(found, groups.pid);
    entry.user = nameOf(field(found, groups.user));
    entry.database = nameOf(field(found, groups.database));
    entry.sqlState = field(found, groups.sqlState);
    this.#entry = entry;
    this.#part = 'message';
  }

  #time(found: RegExpExecArray, outerMs: number): number {
    const { groups } = this.#prefix;
    if (groups.time !== undefined) return this.#options.time.parse(field(found, groups.time));
    if (groups.epoch !== undefined) return Math.floor(Number(field(found, groups.epoch)) * 1000);
    return outerMs;
  }

  #append(text: string, cut: boolean): void {
    const entry = this.#entry;
    if (entry === null || this.#part === 'other') return;
    if (cut) entry.cut = true;
    if (entry[this.#part].length + text.length >= ENTRY_CHARS_MAX) entry.cut = true;
    else entry[this.#part] += `\n${text}`;
  }

  flush(): void {
    const entry = this.#entry;
    this.#entry = null;
    this.#part = 'other';
    if (entry !== null) this.#sink.entry(entry);
  }
}

function field(found: RegExpExecArray, group: number | undefined): string {
  return group === undefined ? '' : (found[group] ?? '');
}
