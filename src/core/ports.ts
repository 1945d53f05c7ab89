/**
 * The interfaces through which the parts meet. No logic here: `proxy`, `capture`, `shadow`, `predict` and
 * `cutover` never import one another, they implement or use these, and `app` wires them.
 */
import type { Position } from './position.js';
import type { StallReport } from './traffic-ports.js';

export type Side = 'source' | 'destination';
/** forward: source → destination. reverse: destination → source, the way back. */
export type Direction = 'forward' | 'reverse';
/** What is shadowed and cut over as one. The whole database is the subset {@link WHOLE_DATABASE}. */
export type SubsetId = string;
export const WHOLE_DATABASE: SubsetId = 'all';
/** Where subsets are configured: the tables that none of them names. */
export const REST: SubsetId = 'rest';

/** A subset as it is configured. */
export interface SubsetRules {
  readonly subset: SubsetId;
  /** As `schema.table`. Partitions and children of these are meant too. */
  readonly tables: readonly string[];
  /** together: what a foreign key ties is switched in one operation. unenforced: it may be parted, and the key does not hold
   *  while it is. */
  readonly foreignKeys: 'together' | 'unenforced';
  /** refuse: statements and transactions that span sides are refused. follow: subsets that captured transactions touch
   *  together are switched in one operation. */
  readonly crossing: 'refuse' | 'follow';
}

/** Why two subsets are not to be parted. */
export interface SubsetTie {
  readonly a: SubsetId;
  readonly b: SubsetId;
  /** crossing-unknown: nothing was captured, so it can't be said whether transactions touch both. */
  readonly by: 'foreign-key' | 'crossing' | 'crossing-unknown';
  readonly detail: string;
}

/** The closed list of a subset's tables, by the source's names. */
export interface SubsetTables {
  readonly subset: SubsetId;
  readonly tables: readonly TableName[];
}

export interface TableName {
  readonly schema: string;
  readonly name: string;
}

/** A table by its name on the source, and on the destination where a format gives it another one there. */
export interface ShadowTable extends TableName {
  readonly destination?: TableName;
  /** Of a table that is partitioned there alone. */
  readonly partitions?: readonly TableName[];
}

/** Where one server listens, and how a connection to it is protected. Keep the object: what TLS needs is cached by its
 *  identity. */
export interface ServerAddress {
  /** A name or address; a folder, where it begins with `/`, that holds the server's unix socket. */
  readonly host: string;
  readonly port: number;
  readonly tls: TlsMode;
  /** PEM of the certificate authority that signs the server's certificate; the system's where absent. */
  readonly tlsCa?: string;
  /** PEM of the certificate, with its chain, and of its key, that are shown to a server which asks for one. */
  readonly tlsCert?: string;
  readonly tlsKey?: string;
  /** Files they came from, which are looked at again before each connection. */
  readonly tlsFiles?: { readonly tlsCa?: string; readonly tlsCert?: string; readonly tlsKey?: string };
  /** As libpq's sslnegotiation. `direct` begins with TLS at once, which servers from 17 on understand. */
  readonly tlsNegotiation?: TlsNegotiation;
  /** As libpq's channel_binding; `prefer` where absent. */
  readonly channelBinding?: ChannelBinding;
}
/** As libpq's sslmode; `verify-full` is the default for any host that is not this machine. */
export type TlsMode = (typeof TLS_MODES)[number];
export const TLS_MODES = ['disable', 'allow', 'prefer', 'require', 'verify-ca', 'verify-full'] as const;
export type TlsNegotiation = (typeof TLS_NEGOTIATIONS)[number];
export const TLS_NEGOTIATIONS = ['postgres', 'direct'] as const;
export type ChannelBinding = (typeof CHANNEL_BINDINGS)[number];
export const CHANNEL_BINDINGS = ['disable', 'prefer', 'require'] as const;

/** A server's database, and the account Understudy itself uses there. */
export interface DatabaseEndpoint extends ServerAddress {
  readonly database: string;
  readonly user: string;
  readonly password?: string;
}

export type ShadowPhase =
  | 'idle'
  | 'connecting'
  | 'building-schema'
  | 'copying'
  | 'indexing'
  | 'analyzing'
  /** The log was lost for a while: every table is compared with the source and mended, while its changes stream. */
  | 'repairing'
  | 'following'
  /** The source’s schema changed in a way that a person has to decide on; nothing is applied meanwhile. */
  | 'paused'
  | 'failed'
  | 'stopped';

/** How a shadow learns of changes; see docs/shadow.md. */
export const SHADOW_METHODS = ['log', 'mirror', 'poll'] as const;
export type ShadowMethod = (typeof SHADOW_METHODS)[number];

/** Which way was taken, and how it is doing; only of ways that see less than everything by themselves. */
export interface ShadowMethodStatus {
  readonly method: ShadowMethod;
  readonly reason: string;
  /** How each table's changes are found. */
  readonly tables: readonly { readonly table: string; readonly note: string }[];
  readonly compared: {
    /** Tables that were compared since this process began, and those that wait for it because something is known. */
    readonly tables: number;
    readonly waiting: number;
    readonly lastAt: string | null;
    /** Rows that comparing found to differ, or to have changed meanwhile. */
    readonly refreshed: number;
    /** What comparing all tables took, the last time; null before. */
    readonly wholeMs: number | null;
  };
}

export interface TableProgress {
  readonly table: string;
  readonly rowsCopied: number;
  /** The planner's estimate; 0 where unknown. */
  readonly rowsEstimated: number;
  readonly done: boolean;
}

export interface StreamStatus {
  readonly direction: Direction;
  readonly connected: boolean;
  /** Last position whose changes the other side has durably committed; null before the first. */
  readonly committed: string | null;
  /** null = unknown, which forbids a cutover. */
  readonly lagBytes: number | null;
  readonly lagMs: number | null;
  readonly transactionsApplied: number;
  readonly changesApplied: number;
  /** Whether the stream carries changes at present, or only keeps its slot moving. */
  readonly authoritative: boolean;
  /** Where subsets are configured: those whose changes it carries. */
  readonly leads?: readonly SubsetId[];
  /** Log that the stream's slot keeps on its origin; null where that is not known. */
  readonly logBytes?: number | null;
  /** `log` where absent. By the others a lag has no bytes: `lagBytes` is null, and `lagMs` says all there is. */
  readonly method?: ShadowMethod;
  /**
   * What catching up exactly takes behind a fence beside the log: not by `log`, everything is compared, and by it unlogged
   * tables are carried whole; absent where there is none. null = unknown.
   */
  readonly exactMs?: number | null;
}

export interface ShadowStatus {
  readonly phase: ShadowPhase;
  readonly tables: readonly TableProgress[];
  readonly copy: {
    readonly rows: number;
    readonly seconds: number;
    /** From the schema's first statement until it followed, where this process did all of it at a stretch. */
    readonly readySeconds?: number;
  };
  readonly streams: readonly StreamStatus[];
  readonly lastVerify: VerifyReport | null;
  /** null or absent where the way is not known yet. */
  readonly method?: ShadowMethodStatus | null;
  /** What was verified before no longer counts: the schema changed since. */
  readonly unverified?: true;
  /** What stopped the shadow, or what it is waiting to be over. */
  readonly error: { readonly code: string; readonly message: string; readonly advice?: string } | null;
  readonly steering?: ShadowSteering;
  /** Absent by a way that does not see them. */
  readonly conflicts?: ConflictCounts;
  /** What does not stop the shadow, but may stop a cutover. */
  readonly warnings?: readonly ShadowWarning[];
}
/** A change that the other side refuses, again and again. Named without a value of its row. */
export interface StuckChange {
  readonly direction: Direction;
  readonly table: string;
  readonly kind: 'insert' | 'update' | 'delete' | 'truncate';
  readonly keyColumns: readonly string[];
  /** First 12 hexadecimal digits of the md5 of the key's text, its columns joined by commas; null where it has none. */
  readonly keyHash: string | null;
  /** Position of its transaction's commit record, and its place among that transaction's changes, from 0. */
  readonly position: string;
  readonly ordinal: number;
  readonly sqlState: string;
}

/** What an operator, or the planner, asks of a running shadow. */
export type ShadowCommand =
  /** Reading the source for the first copy pauses; following goes on. */
  | { readonly action: 'pause' | 'resume' }
  /** 0…1, how eagerly the shadow is kept fresh. Holds until the process ends. */
  | { readonly action: 'intensity'; readonly value: number }
  /** What is still to be copied comes in this order, before all other tables; an order asked for before is forgotten. The
   *  copy turns to it after the chunk at hand. Tables are `schema.name`; none of them is every table in its usual order. */
  | { readonly action: 'prioritise'; readonly tables: readonly string[] }
  /** Leave the change out at which a lane is stuck; the decision is recorded beside the stream's progress. */
  | { readonly action: 'skip'; readonly note: string };

export interface ShadowSteering {
  readonly paused: boolean;
  readonly intensity: number;
  /** A change waits for at most that long for others to be written with it. */
  readonly flushIntervalMs: number;
  /** Tables that are copied before all others, in this order. */
  readonly first?: readonly string[];
  readonly stuck: readonly StuckChange[];
  /** null or absent while nothing is copied. */
  readonly throttle?: ThrottleStatus | null;
  /** What `skip` left out. */
  readonly skipped?: StuckChange;
}
/** How many of the application's statements took how long, over a short while: by upper bounds, without empty ones. */
export type LatencyWindow = readonly { readonly upToMicros: number; readonly count: number }[];

/** What holds the first copy back, and by how much. */
export interface ThrottleStatus {
  /** 0…1, the share of its time in which the copy may read, of what the intensity leaves it. */
  readonly share: number;
  /** What decides at present; null where nothing does. `baseline`: the copy waits for the latency without it. */
  readonly by: 'latency' | 'active' | 'standby-lag' | 'shadow-lag' | 'baseline' | null;
  /** The application's 99th percentile as the proxy sees it, what it is to be kept below, and what it is without a copy;
   *  null where unknown. */
  readonly latencyP99Ms: number | null;
  readonly latencyTargetMs: number | null;
  readonly baselineP99Ms: number | null;
}
export interface ShadowWarning {
  readonly code: string;
  readonly message: string;
}

/** A row of the destination that somebody wrote past its guard while the source led. Both rows are in the destination, in
 *  `understudy.conflict`, under this id; no value but the key is told here. */
export interface ConflictRecord {
  readonly id: number;
  readonly foundAt: string;
  /** Of the destination's log. */
  readonly position: string;
  readonly table: string;
  readonly kind: string;
  /** Its columns joined by commas; null where the write names no row. */
  readonly key: string | null;
  /** unsettled: a person has to look. */
  readonly state: 'open' | 'settled' | 'unsettled';
  readonly rule: string | null;
  /** null where nothing was decided, or both rows were the same. */
  readonly winner: Side | null;
  readonly reason: string | null;
}
export interface ConflictCounts {
  readonly open: number;
  readonly settled: number;
  readonly unsettled: number;
}

export interface VerifyOptions {
  /** Which side is authoritative: forward compares the destination with the source. */
  readonly direction: Direction;
  readonly tables?: readonly string[];
  /** Mend what differs, the authoritative side's rows winning. */
  readonly repair?: boolean;
  /** 0…1, the share of the time in which rows are compared; all of it where absent. */
  readonly intensity?: number;
  /** Tables that an interrupted comparison of everything has found equal are not compared again. */
  readonly resume?: boolean;
}
/** missing, extra: on the follower. still-changing: written too often to be caught at rest, so not proven equal. */
export type RowDifference = 'missing' | 'extra' | 'different' | 'still-changing';
export interface TableVerdict {
  readonly table: string;
  readonly rows: number;
  readonly mismatches: number;
  /** Up to a bounded number of differing keys, as text; never other column values. Without a key, the row's hash. */
  readonly differingKeys: readonly {
    readonly key: string;
    readonly difference: RowDifference;
  }[];
}
export interface VerifyReport {
  readonly startedAt: string;
  readonly seconds: number;
  /** Equal, or differing, as of this position of the authoritative side's log. */
  readonly position: string;
  readonly tables: number;
  readonly rows: number;
  readonly mismatches: number;
  readonly verdicts: readonly TableVerdict[];
  /** Where a repair was asked for: rows replaced (of a table without a key, all), and what differs after it. */
  readonly repair?: { readonly rows: number; readonly tables: number; readonly remaining: number };
}

/** One hash per catalog object, so that a difference can name the object. */
export type CatalogFingerprint = Readonly<Record<string, string>>;

export interface SequenceState {
  readonly schema: string;
  readonly name: string;
  readonly lastValue: bigint;
  readonly isCalled: boolean;
  readonly increment: bigint;
  readonly minValue: bigint;
  readonly maxValue: bigint;
  readonly cache: bigint;
  readonly cycle: boolean;
}

/**
 * What writes that passed the proxy may have changed, once their transactions were over. Naming too much does no harm;
 * tables are `schema.name` of those that hold rows.
 */
export interface TouchedRows {
  /** Rows by their key, as text, in the key's order. */
  readonly keys: readonly { readonly table: string; readonly keys: readonly (readonly string[])[] }[];
  /** Rows were inserted or updated that can't be named. */
  readonly rows: readonly string[];
  /** Rows may be gone, or have another key, that can't be named. */
  readonly compare: readonly string[];
  /** Something wrote that can't be read off its statement: any table that is counted as written. */
  readonly unknown: boolean;
  /** Why any table at all may have changed; null where nothing was lost. */
  readonly lost: string | null;
}

export interface ExactRequest {
  readonly direction: Direction;
  readonly subsets: readonly SubsetId[];
  readonly limitMs: number;
}

/** What a cutover needs of the shadow. Everything is asynchronous: the shadow runs on a thread of its own. */
export interface ShadowControl {
  status(): Promise<ShadowStatus>;
  /** The tables of the subset, or all, as they exist on both sides: ordinary tables, partition roots, leaves and children. */
  tables(subset?: SubsetId): Promise<readonly ShadowTable[]>;
  /** Resolves with the mark's position once the side the stream leads to has durably committed everything up to it.
   *  The mark is a transactional logical message, prefix `understudy`, content {@link markContent}. Behind a fence what no log
   *  tells of `subsets`, or of all that the stream carries, comes over then. Throws `journal-conflict` where another side leads. */
  waitForMark(
    direction: Direction,
    markId: string,
    signal: AbortSignal,
    subsets?: readonly SubsetId[],
  ): Promise<Position>;
  verify(
    options: VerifyOptions,
    signal: AbortSignal,
    onProgress?: (progress: VerifyProgress) => void,
  ): Promise<VerifyReport>;
  /** Compares the rows changed since they were last found equal, in the subset's tables or all. Behind a fence nothing of
   *  them is in flight; before it, what is found equal need not be compared behind it. */
  verifyRecent(direction: Direction, signal: AbortSignal, subset?: SubsetId): Promise<RecentVerifyReport>;
  /** The fingerprint of `side` taken when the shadow's schema was complete, which a later one must equal. */
  builtFingerprint(side: Side): Promise<CatalogFingerprint>;
  /** Makes publication and slot on the destination and starts the reverse stream, not yet authoritative. Idempotent. */
  prepareReverse(signal: AbortSignal): Promise<void>;
  /** Finds out beside live traffic what `StreamStatus.exactMs` says of unlogged tables. Resolves at the limit too. */
  measureExact(request: ExactRequest, signal: AbortSignal): Promise<void>;
  /** Takes effect at once. Throws `request-invalid` where there is nothing to do it to. */
  steer(command: ShadowCommand): Promise<ShadowSteering>;
  /** The newest conflicts first, at most `limit`. Throws `request-invalid` by a way that does not see them. */
  conflicts(limit: number): Promise<readonly ConflictRecord[]>;
  /** Fresh planner statistics on `side` where they are missing or old; materialised views filled anew. */
  analyze(side: Side, signal: AbortSignal): Promise<void>;
  /**
   * Ends the phase `paused`: both schemas count as they are now. `recopy` names tables to be copied anew. Throws
   * `request-invalid` in any other phase, and what keeps the schemas from being taken as they are; the shadow stays paused then.
   */
  resume(options: ResumeOptions, signal: AbortSignal): Promise<void>;
}
export interface ResumeOptions {
  /** As `schema.table`. */
  readonly recopy: readonly string[];
}
export interface VerifyProgress {
  readonly table: string;
  readonly tablesDone: number;
  readonly tablesTotal: number;
  readonly rows: number;
}
export interface RecentVerifyReport {
  readonly keys: number;
  /** More was changed than is remembered, or rows without a key were: only a full verification covers those. */
  readonly incomplete?: boolean;
  readonly mismatches: number;
  readonly differing: readonly { readonly table: string; readonly key: string }[];
}

export const LOG_MESSAGE_PREFIX = 'understudy';

/**
 * Contents of the logical messages Understudy writes (JSON, transactional, prefix {@link LOG_MESSAGE_PREFIX}).
 * ddl: the schema changed in this transaction; written by the source’s event trigger.
 * apply: first thing in a transaction that applies the other side's changes; streams skip such a transaction (loops).
 * low, high: the watermarks around a chunk's read. mark: a point to wait for.
 * route: in the transaction that changes the route; a stream whose origin is `side` is authoritative from here on.
 */
export type LogMessage =
  | { readonly t: 'ddl' }
  | { readonly t: 'apply'; readonly lane: SubsetId; readonly epoch: number }
  | { readonly t: 'low' | 'high'; readonly chunk: string }
  | { readonly t: 'mark'; readonly id: string }
  | { readonly t: 'route'; readonly subset: SubsetId; readonly epoch: number; readonly side: Side };

export interface Finding {
  readonly severity: 'blocker' | 'warning' | 'info';
  /** Stable kebab-case id, e.g. `wal-level`. */
  readonly check: string;
  readonly side: Side | 'proxy';
  /** What it is about: an object's name, or the setting. */
  readonly object: string;
  readonly message: string;
  /** What to do, as one imperative sentence with the exact statement where there is one. */
  readonly advice: string;
}

export type OperationKind = 'cutover' | 'rollback';
export type OperationState =
  | 'idle'
  | 'preflight'
  | 'holding'
  | 'fencing'
  | 'catching-up'
  | 'verifying'
  | 'committed'
  | 'switching'
  | 'releasing'
  | 'done'
  | 'in-doubt'
  | 'rolling-back'
  | 'aborted'
  | 'failed';

export interface OperationReport {
  readonly id: string;
  readonly kind: OperationKind;
  readonly subset: SubsetId;
  /** Where it was about several, all of them. */
  readonly subsets?: readonly SubsetId[];
  readonly outcome: 'done' | 'aborted' | 'dry-run';
  /** Of several subsets, the highest. */
  readonly epoch: number;
  readonly startedAt: string;
  readonly totalMs: number;
  /** Milliseconds per step, in order. */
  readonly steps: Readonly<Record<string, number>>;
  /** Milliseconds of what a step consists of, as `hold.drain`; parts of one step may run side by side. */
  readonly parts: Readonly<Record<string, number>>;
  readonly stall: StallReport;
  readonly moved: number;
  readonly closed: number;
  readonly findings: readonly Finding[];
  /** Why it was aborted, and what was kept. */
  readonly reason?: { readonly code: string; readonly message: string; readonly advice?: string };
}

/** Progress of an operation, in order; the admin port streams them as NDJSON. */
export type OperationEvent =
  | {
      readonly event: 'step';
      readonly step: string;
      readonly state: OperationState;
      readonly phase: 'start' | 'end';
      readonly ms?: number;
    }
  | { readonly event: 'finding'; readonly finding: Finding }
  | { readonly event: 'report'; readonly report: OperationReport };
