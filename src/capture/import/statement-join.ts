/**
 * Entries of a log → finished statements: joins what the server tells in several lines.
 *
 * Per server process one statement may be *pending*: it was logged when it began (`log_statement`), and its end has not
 * been seen. It ends
 * - with the process's next line `duration: … ms`, which gives its duration;
 * - with an ERROR of the process, which tells that it failed;
 * - without either, when the process's next statement begins, it disconnects, or the log ends.
 *
 * So nothing is counted twice where statements are logged at their beginning and again, with durations, at their end.
 * The durations of `parse` and `bind` are added to the execution that follows them.
 *
 * Memory: {@link PROCESSES_MAX} processes; the oldest is let go, its pending statement handed over.
 */
import type { CapturedStatement, StatementSink } from '../../core/capture-ports.js';
import type { LogEntry } from './entry.js';
import { readMessage, readParameters, type Said } from './messages.js';

const PROCESSES_MAX = 20_000;

export interface JoinOptions {
  /** Inclusive and exclusive; infinite where the user gave none. */
  readonly sinceMs: number;
  readonly untilMs: number;
  /** Empty: all. */
  readonly database: string;
  /** Hand the bound parameters on, to be hashed. */
  readonly keys: boolean;
}

export interface JoinCounts {
  entries: number;
  statements: number;
  failed: number;
  /** Outside of the range or database asked for. */
  filtered: number;
  /** Of the statements, those that were cut in the log or by a bound of reading. */
  cut: number;
  sessions: number;
  connections: number;
  disconnections: number;
  /** `parse` and `bind` lines, and further fetches of a portal: parts of a statement, no statements. */
  parts: number;
  /** Durations whose statements are not in the log (`log_duration` alone). */
  durationsAlone: number;
  autoExplain: number;
  /** Errors outside of any statement, or whose statement is not in the log. */
  errorsAlone: number;
  /** Everything else: checkpoints, vacuum, warnings. */
  other: number;
  /** Entries earlier than the one before by more than a second. */
  outOfOrder: number;
  firstMs: number;
  lastMs: number;
}

interface Pending {
  readonly text: string;
  readonly cut: boolean;
  readonly parameters: readonly (string | null)[] | null;
  readonly atMs: number;
  readonly prepareMicros: number;
}

interface Process {
  readonly sessionId: string;
  pending: Pending | null;
  prepareMicros: number;
  user: string;
  database: string;
  counted: boolean;
}

export class StatementJoin {
  readonly #options: JoinOptions;
  readonly #sink: StatementSink;
  readonly #processes = new Map<string, Process>();
  #sessions = 0;
  #latestMs = -Infinity;
  readonly counts: JoinCounts = {
    entries: 0,
    statements: 0,
    failed: 0,
    filtered: 0,
    cut: 0,
    sessions: 0,
    connections: 0,
    disconnections: 0,
    parts: 0,
    durationsAlone: 0,
    autoExplain: 0,
    errorsAlone: 0,
    other: 0,
    outOfOrder: 0,
    firstMs: Infinity,
    lastMs: -Infinity,
  };

  constructor(options: JoinOptions, sink: StatementSink) {
    this.#options = options;
    this.#sink = sink;
  }

  entry(entry: LogEntry): void {
    this.counts.entries += 1;
    if (entry.timeMs < this.#latestMs - 1000) this.counts.outOfOrder += 1;
    else if (entry.timeMs > this.#latestMs) this.#latestMs = entry.timeMs;
    const process = this.#processOf(entry);
    if (entry.user !== '') process.user = entry.user;
    if (entry.database !== '') process.database = entry.database;
    switch (entry.severity) {
      case 'ERROR':
      case 'FATAL':
      case 'PANIC':
        this.#error(process, entry);
        break;
      case 'LOG':
        this.#said(process, entry, readMessage(entry.message));
        break;
      default:
        this.counts.other += 1;
    }
    if (entry.process === '') this.#finish(process);
  }

  /** The log ends: what is pending is handed over. */
  end(): void {
    for (const process of this.#processes.values()) this.#finish(process);
    this.#processes.clear();
  }

  // ------------------------------------------------------------------------------------------------------ processes

  #processOf(entry: LogEntry): Process {
    // Without a process id nothing can be joined: each line stands for itself.
    if (entry.process === '') return this.#newProcess('');
    let process = this.#processes.get(entry.process);
    if (process === undefined) {
      process = this.#newProcess(entry.process);
      this.#processes.set(entry.process, process);
      if (this.#processes.size > PROCESSES_MAX) this.#letOldestGo();
    }
    return process;
  }

  #newProcess(name: string): Process {
    this.#sessions += 1;
    return {
      // A process id comes again in a long log, for another session.
      sessionId: `${name}#${this.#sessions}`,
      pending: null,
      prepareMicros: 0,
      user: '',
      database: '',
      // Without a process id sessions can't be told apart, and aren't counted.
      counted: name === '',
    };
  }

  #letOldestGo(): void {
    for (const [name, process] of this.#processes) {
      this.#finish(process);
      this.#processes.delete(name);
      return;
    }
  }

  // ------------------------------------------------------------------------------------------------------- messages

  #said(process: Process, entry: LogEntry, said: Said): void {
    switch (said.what) {
      case 'statement':
        this.#statement(process, entry, said.text, said.durationMicros);
        break;
      case 'execute':
        if (said.fetch) this.counts.parts += 1;
        else this.#statement(process, entry, said.text, said.durationMicros);
        break;
      case 'parse':
      case 'bind':
        this.counts.parts += 1;
        process.prepareMicros += said.durationMicros;
        break;
      case 'duration':
        this.#duration(process, entry, said.durationMicros);
        break;
      case 'plan':
        this.counts.autoExplain += 1;
        break;
      case 'connected':
        this.#connected(process, entry);
        break;
      case 'disconnected':
        this.counts.disconnections += 1;
        this.#finish(process);
        this.#processes.delete(entry.process);
        break;
      case 'other':
        this.counts.other += 1;
        break;
      default:
        said satisfies never;
    }
  }

  #statement(process: Process, entry: LogEntry, text: string, durationMicros: number | null): void {
    this.#finish(process);
    const pending: Pending = {
      text,
      cut: entry.cut,
      parameters: this.#options.keys ? readParameters(entry.detail) : null,
      atMs: entry.timeMs,
      prepareMicros: process.prepareMicros,
    };
    process.prepareMicros = 0;
    if (durationMicros === null) process.pending = pending;
    else this.#emit(process, pending, entry.timeMs, durationMicros, null);
  }

  #duration(process: Process, entry: LogEntry, durationMicros: number): void {
    const { pending } = process;
    process.pending = null;
    if (pending === null) this.counts.durationsAlone += 1;
    else this.#emit(process, pending, entry.timeMs, durationMicros, null);
  }

  #error(process: Process, entry: LogEntry): void {
    const { pending } = process;
    const errorClass = entry.sqlState.slice(0, 2);
    if (pending !== null && (entry.statement === '' || entry.statement === pending.text)) {
      process.pending = null;
      this.#emit(process, pending, entry.timeMs, null, errorClass);
      return;
    }
    this.#finish(process);
    process.prepareMicros = 0;
    if (entry.statement === '') {
      this.counts.errorsAlone += 1;
      return;
    }
    const failed: Pending = {
      text: entry.statement,
      cut: entry.cut,
      parameters: null,
      atMs: entry.timeMs,
      prepareMicros: 0,
    };
    this.#emit(process, failed, entry.timeMs, null, errorClass);
  }

  #connected(process: Process, entry: LogEntry): void {
    this.counts.connections += 1;
    if (process.counted || process.pending !== null) {
      // The process id comes again, and the end of its former session is not in the log.
      this.#finish(process);
      this.#processes.delete(entry.process);
      const next = this.#processOf(entry);
      next.user = process.user;
      next.database = process.database;
      this.#countSession(next);
      return;
    }
    this.#countSession(process);
  }

  #countSession(process: Process): void {
    if (process.counted) return;
    process.counted = true;
    this.counts.sessions += 1;
  }

  // ------------------------------------------------------------------------------------------------------ statements

  #finish(process: Process): void {
    const { pending } = process;
    if (pending === null) return;
    process.pending = null;
    this.#emit(process, pending, pending.atMs, null, null);
  }

  #emit(
    process: Process,
    pending: Pending,
    endedAtMs: number,
    durationMicros: number | null,
    errorClass: string | null,
  ): void {
    const { counts } = this;
    const { sinceMs, untilMs, database } = this.#options;
    const elsewhere = database !== '' && process.database !== database;
    if (endedAtMs < sinceMs || endedAtMs >= untilMs || elsewhere) {
      counts.filtered += 1;
      return;
    }
    this.#countSession(process);
    counts.statements += 1;
    if (errorClass !== null) counts.failed += 1;
    if (pending.cut) counts.cut += 1;
    if (endedAtMs < counts.firstMs) counts.firstMs = endedAtMs;
    if (endedAtMs > counts.lastMs) counts.lastMs = endedAtMs;
    const statement: CapturedStatement = {
      endedAtMs,
      sessionId: process.sessionId,
      text: pending.text,
      cut: pending.cut,
      durationMicros: durationMicros === null ? null : durationMicros + pending.prepareMicros,
      rows: 0,
      bytesToServer: 0,
      bytesToClient: 0,
      errorClass,
      // The log does not tell it; BEGIN and COMMIT do.
      transactionStatus: -1,
      ...(pending.parameters === null ? {} : { parameters: pending.parameters }),
    };
    this.#sink.add(statement);
  }
}
