/**
 * What passes between the proxy and the capture, and from there to the series that forecasts are made of. No logic;
 * what else the parts meet in is in ports.ts.
 */
// ---------------------------------------------------------------------------------------------------------------
// Proxy → capture: the tap

/** Statement kinds, in the order of their wire code in the capture ring. */
export const STATEMENT_KINDS = [
  'select',
  'insert',
  'update',
  'delete',
  'merge',
  'copy',
  'truncate',
  'ddl',
  'transaction',
  'session',
  'utility',
  'unknown',
] as const;
export type StatementKind = (typeof STATEMENT_KINDS)[number];

/**
 * Receives one record per finished statement, on the data path: must not block, allocate much, or throw.
 * `offer` copies what it keeps before it returns, and returns false when its ring was full (the drop is counted).
 */
export interface StatementTap {
  offer(
    sessionId: number,
    /** SQL text, never parameters. Aliases the caller's buffer. May be cut at `textBytesMax`. */
    text: Buffer,
    durationMicros: number,
    /** From the CommandComplete tag; 0 where the tag carries none. */
    rows: number,
    bytesToServer: number,
    bytesToClient: number,
    failed: boolean,
    /** ReadyForQuery's status after the statement: I, T or E as its character code; 0 inside a pipeline. */
    transactionStatus: number,
    /** On the main thread's monotonic clock. */
    endedAtMs: number,
    /** Of the SQLSTATE of its error; 0 where it succeeded. */
    errorClass: ErrorClassCode,
    /** What followed the statement's name in its Bind, possibly cut; empty unless keys are captured. Aliases. */
    parameters: Buffer,
  ): boolean;
  /** A statement will pass that nothing is offered of: its pipeline is deeper than is followed. */
  skipped?(): void;
  /**
   * A statement that was sent, and of which it isn't known what became: its client is gone, or it was one too many to keep
   * (then its text is empty). Called only where a tap has it; as {@link offer}.
   */
  unanswered?(sessionId: number, text: Buffer, parameters: Buffer): void;
}

/** The first two characters of a SQLSTATE, the first in the lower byte; 0 for none. */
export type ErrorClassCode = number;

/**
 * Keeps what clients send, for a later replay. On the data path: must not block or throw, and copies what it keeps.
 * The bytes of one session come in order.
 */
export interface TrafficRecorder {
  /** `parameters` are those of the startup message, `user` and `database` among them. */
  opened(sessionId: number, parameters: ReadonlyMap<string, string>): void;
  /** A run of the client's messages, cut anywhere, on its way to the server. Sync points are counted up to its end. */
  sent(
    sessionId: number,
    bytes: Buffer,
    syncPointsSent: number,
    syncPointsAnswered: number,
    /** The last ReadyForQuery's status: I, T or E as its character code. */
    transactionStatus: number,
  ): void;
  closed(sessionId: number): void;
}

/** `null` tap: capture switched off. */
export interface CaptureSnapshot {
  readonly offered: number;
  /** Of these, not counted: the ring was full, or see `unrecorded`. */
  readonly dropped: number;
  /** Of the dropped: parts of pipelines deeper than a session is followed. */
  readonly unrecorded: number;
  readonly unparsed: number;
  readonly transactions: { readonly committed: number; readonly rolledBack: number };
  readonly tables: readonly TableUse[];
  readonly kinds: readonly KindUse[];
  /** The statements that took longest in all, since the capture thread started. */
  readonly statements: readonly StatementTotals[];
  /** Shapes of statements that PostgreSQL's parser could not take, and how often it had to be made anew. */
  readonly refusedShapes: number;
  readonly parserTraps: number;
  /** Records that could not be taken in, by a fault of the capture. */
  readonly faults: number;
  /** null: not kept. */
  readonly series: CaptureSeriesStatus | null;
}
export interface StatementTotals {
  /** 16 hexadecimal digits. */
  readonly fingerprint: string;
  readonly kind: StatementKind;
  /** Without literals. */
  readonly text: string;
  readonly executions: number;
  readonly errors: number;
  readonly rows: number;
  readonly durationMs: number;
}
/** What becomes of the series that are kept in the destination. */
export interface CaptureSeriesStatus {
  readonly batchesAppended: number;
  /** Given up because the destination's server would never have taken them. */
  readonly batchesRefused: number;
  readonly lastAppendedAt: string | null;
  /** A batch is taken and not appended yet. */
  readonly pending: boolean;
  /** Tables and views in the catalogs that names are resolved by; null before they were read. */
  readonly relations: number | null;
  /** Given up for want of memory: statements' figures, pairs of tables, accesses to keys. */
  readonly shed: { readonly statements: number; readonly pairs: number; readonly keys: number };
  /** Why the last attempt at the catalogs or at the destination failed; it is tried again. */
  readonly problem: { readonly code: string; readonly message: string } | null;
}
export interface KindUse {
  readonly kind: StatementKind;
  readonly statements: number;
  readonly errors: number;
  readonly rows: number;
  readonly bytesToServer: number;
  readonly bytesToClient: number;
  readonly latencyMs: LatencySummary;
}
export interface TableUse extends KindUse {
  readonly table: string;
}
export interface LatencySummary {
  readonly count: number;
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
}

// ---------------------------------------------------------------------------------------------------------------
// Captured statements and what is kept of them: capture and log importers → the series store → predict

/** One finished statement, from the tap or from a log. Holds text and parameters: never stored or logged as it is. */
export interface CapturedStatement {
  /** Wall clock at its end, in ms since the epoch. May lie in the past; roughly in order within a session. */
  readonly endedAtMs: number;
  /** Tells sessions apart within one sink; a session's statements come in the order in which they ended. */
  readonly sessionId: number | string;
  readonly text: string;
  /** `text` is only the beginning. */
  readonly cut: boolean;
  /** null where it isn't known. */
  readonly durationMicros: number | null;
  /** From the CommandComplete tag; 0 where unknown. */
  readonly rows: number;
  readonly bytesToServer: number;
  readonly bytesToClient: number;
  /** First two characters of the SQLSTATE; null where it succeeded, `''` where it failed for reasons unknown. */
  readonly errorClass: string | null;
  /**
   * ReadyForQuery's status after it: I, T or E as its character code; 0 inside a pipeline, where a later statement
   * brings it; −1 where it is never told, as in a log: then the texts decide.
   */
  readonly transactionStatus: number;
  /** Stands for that many alike (pg_stat_statements); 1 where absent. Duration, rows and bytes are those of all. */
  readonly executions?: number;
  /** Bound parameters in order, only where keys are asked for: text form, or the bytes of binary form. */
  readonly parameters?: readonly (string | Uint8Array | null)[];
}

/** Where captured statements go. `add` never throws and never waits. */
export interface StatementSink {
  add(statement: CapturedStatement): void;
}

/** Minutes are what is measured; the others are sums of them, kept longer. */
export const SERIES_RESOLUTION_MS = { minute: 60_000, 'five-minutes': 300_000, hour: 3_600_000 } as const;
export type SeriesResolution = keyof typeof SERIES_RESOLUTION_MS;

/** What happened to one table in one bucket of time. A statement that reads and writes it counts as both. */
export interface SeriesFigures {
  /** Statements that read it, that wrote it, and of both those that failed. */
  readonly reads: number;
  readonly writes: number;
  readonly errors: number;
  /** Of the statement's own verb: rows selected to be inserted elsewhere are not known, and not counted. */
  readonly rowsRead: number;
  readonly rowsWritten: number;
  readonly bytesToServer: number;
  readonly bytesToClient: number;
  /** Sum over the statements; each of a statement's tables counts its whole duration. */
  readonly durationMicros: number;
}
export interface SeriesPoint extends SeriesFigures {
  /** Start of the bucket, ms since the epoch, a multiple of the resolution. */
  readonly startMs: number;
}
/** Sparse: a bucket that is observed (see {@link SeriesInterval}) and not among the points is one of zeros. */
export interface TableSeries {
  /** `schema.name`. Partitions count for themselves and for their root, views' base tables for themselves. */
  readonly table: string;
  readonly points: readonly SeriesPoint[];
}

/** What was observed of a bucket as a whole. A bucket without one is a gap, which is not zero. */
export interface SeriesInterval {
  readonly startMs: number;
  /** How much of the bucket was watched, all writers together; at most its length in a batch. */
  readonly observedMs: number;
  readonly statements: number;
  readonly errors: number;
  /** Statements that passed and are missing from every other figure. */
  readonly dropped: number;
  /** Counted, but their tables are not known for certain. */
  readonly unparsed: number;
  readonly committed: number;
  readonly rolledBack: number;
}

/** How often two tables were used in one transaction. `a` ≤ `b`; with itself: how often a table was used at all. */
export interface CoAccess {
  readonly a: string;
  readonly b: string;
  readonly transactions: number;
  /** The same decayed, as of `asOfMs`; see the store's half-life. */
  readonly weight: number;
  readonly asOfMs: number;
}

/** Statement `to` came next after `from` in one session. The most frequent ones only. */
export interface Transition {
  readonly from: string;
  readonly to: string;
  readonly weight: number;
  readonly asOfMs: number;
}

export interface StatementShape {
  /** 16 hexadecimal digits. */
  readonly fingerprint: string;
  readonly kind: StatementKind;
  /** Without literals, cut at a bound. */
  readonly text: string;
  readonly reads: readonly string[];
  readonly writes: readonly string[];
}
export interface StatementUse extends StatementShape {
  readonly executions: number;
  readonly errors: number;
  readonly rows: number;
  readonly durationMicros: number;
  readonly firstSeenMs: number;
  readonly lastSeenMs: number;
}

/** Transactions that lasted at most `upToMicros` and more than the bucket below, begun in that hour of the week. */
export interface TransactionDurations {
  /** UTC; 0 is Monday 00:00 to 01:00. */
  readonly hourOfWeek: number;
  readonly upToMicros: number;
  readonly weight: number;
  readonly asOfMs: number;
}

/** The most used keys of one table in one hour. Keys are keyed hashes of 64 bits, as 16 hexadecimal digits. */
export interface HotKeys {
  readonly table: string;
  readonly startMs: number;
  /** Accesses to any key, those that did not make it into `keys` included. */
  readonly accesses: number;
  /** Descending. `count` exceeds the truth by at most `error` (SpaceSaving); `writes` is part of `count`. */
  readonly keys: readonly {
    readonly key: string;
    readonly count: number;
    readonly writes: number;
    readonly error: number;
  }[];
}

/** What was added since the last batch. Times may lie in the past, and a bucket may be added to many times. */
export interface SeriesBatch {
  /** A batch whose id was appended before is not added again, so that a lost answer may be followed by a retry. */
  readonly id: string;
  /** Who counted: the same after a restart, another for every process that counts beside it. */
  readonly writer: string;
  /** Minutes. */
  readonly points: readonly (SeriesPoint & { readonly table: string })[];
  /** Minutes. */
  readonly intervals: readonly SeriesInterval[];
  readonly coAccess: readonly CoAccess[];
  readonly transitions: readonly Transition[];
  readonly statements: readonly StatementUse[];
  readonly transactionDurations: readonly TransactionDurations[];
  /** Not added but put in the place of what this writer said of the same table and hour. */
  readonly hotKeys: readonly HotKeys[];
}

export interface SeriesRange {
  readonly fromMs: number;
  /** Exclusive. */
  readonly untilMs: number;
}

/** The series in the destination's schema `understudy`. Every method throws `destination-unreachable` when it is. */
export interface SeriesStore {
  /** All of it, durably, or nothing. */
  append(batch: SeriesBatch, signal?: AbortSignal): Promise<void>;
  /** Tables with anything in the range, each with its points in order. */
  tables(
    resolution: SeriesResolution,
    range: SeriesRange,
    tables?: readonly string[],
  ): Promise<readonly TableSeries[]>;
  intervals(resolution: SeriesResolution, range: SeriesRange): Promise<readonly SeriesInterval[]>;
  /** Weights as of `asOfMs`, descending. */
  coAccess(asOfMs: number): Promise<readonly CoAccess[]>;
  transitions(asOfMs: number): Promise<readonly Transition[]>;
  transactionDurations(asOfMs: number): Promise<readonly TransactionDurations[]>;
  /** By total duration, descending. */
  statements(limit: number): Promise<readonly StatementUse[]>;
  /** All writers' together, by table and hour in order. */
  hotKeys(range: SeriesRange, tables?: readonly string[]): Promise<readonly HotKeys[]>;
  /** Deletes what is past its retention as of `nowMs`. */
  prune(nowMs: number): Promise<void>;
  close(): Promise<void>;
}
