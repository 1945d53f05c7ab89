import type {
  CatalogFingerprint,
  DatabaseEndpoint,
  Finding,
  OperationEvent,
  OperationKind,
  OperationReport,
  OperationState,
  ShadowControl,
  Side,
  SubsetId,
  SubsetRules,
  SubsetTie,
} from '../core/ports.js';
import type { HoldOptions, Route, TrafficControl } from '../core/traffic-ports.js';
import type { Clock } from '../core/clock.js';
import type { UnderstudyError } from '../core/errors.js';
import type { Log } from '../core/log.js';
import type pg from 'pg';

/** Every wait and limit of an operation. Times in milliseconds. */
export interface CutoverSettings {
  /** Statements and transactions in flight may finish that long after the gate closed. */
  readonly drainTimeoutMs: number;
  readonly onDrainTimeout: HoldOptions['onDrainTimeout'];
  readonly onPinned: HoldOptions['onPinned'];
  /** At most how long a moment with little open is looked for before the gate closes. */
  readonly quietWaitMs: number;
  /** accept: a subset may be switched while others stay; see docs/subsets.md for what the operator accepts. */
  readonly parting: 'refuse' | 'accept';
  /** All attempts of one barrier change together. */
  readonly fenceTimeoutMs: number;
  /** One wait for one lock of a barrier change; kept below the server's deadlock_timeout, whatever stands here. */
  readonly lockTimeoutMs: number;
  /** Installing triggers, outside any hold: all attempts for one table together. */
  readonly installTimeoutMs: number;
  readonly markTimeoutMs: number;
  /** The whole time the gate may be closed before the commit; past it the operation aborts. */
  readonly holdBudgetMs: number;
  /** A COMMIT unanswered for that long counts as lost: the operation is in doubt. */
  readonly commitAnswerTimeoutMs: number;
  /** Held statements fail with 08007 when the journal hasn't told the outcome after that time. */
  readonly inDoubtTimeoutMs: number;
  readonly connectTimeoutMs: number;
  readonly lagBytesMax: number;
  readonly lagMsMax: number;
  /** Preflight waits that long for the lag to come below its limits. */
  readonly lagWaitMs: number;
  /** A clean verification older than that is done again in preflight. */
  readonly verifiedWithinMs: number;
  /** Sequences go forward by at least that many values. */
  readonly sequenceMargin: number;
  /** Rounds of asking and warming sessions before the gate closes. */
  readonly prepareRoundsMax: number;
  /** The share of sessions that may still have to be asked again behind the gate, 0…1. */
  readonly staleShareMax: number;
}

export const DEFAULT_CUTOVER_SETTINGS: CutoverSettings = {
  drainTimeoutMs: 5_000,
  onDrainTimeout: 'abort',
  onPinned: 'refuse',
  quietWaitMs: 300,
  parting: 'refuse',
  fenceTimeoutMs: 2_000,
  lockTimeoutMs: 20,
  installTimeoutMs: 60_000,
  markTimeoutMs: 5_000,
  holdBudgetMs: 10_000,
  commitAnswerTimeoutMs: 3_000,
  inDoubtTimeoutMs: 10_000,
  connectTimeoutMs: 3_000,
  lagBytesMax: 16 * 1024 * 1024,
  lagMsMax: 1_000,
  lagWaitMs: 10_000,
  verifiedWithinMs: 3_600_000,
  sequenceMargin: 32,
  prepareRoundsMax: 5,
  staleShareMax: 0.1,
};

/**
 * Everything an operation does that the world can see, in order. `before` and `after` each step, around the COMMIT
 * that is the point of no return, and around each act of undoing.
 */
export type StepName =
  | 'preflight'
  | 'prepare'
  | 'hold'
  | 'fence'
  | 'catch-up'
  | 'verify'
  | 'commit'
  | 'open'
  | 'switch'
  | 'release'
  | 'finish'
  | 'send-commit'
  | 'journal-abort'
  | 'undo-fence'
  | 'undo-hold';
export type StepPoint = `${'before' | 'after'}:${StepName}`;

export interface CutoverDeps {
  readonly source: DatabaseEndpoint;
  readonly destination: DatabaseEndpoint;
  /** The subset at hand; where several are configured, it is set for each operation. */
  readonly subset: SubsetId;
  /** Empty or absent: the whole database is one subset. */
  readonly subsets?: readonly SubsetRules[];
  /** Whether the proxy sends each statement to the side of its subset; without it no subset is switched alone. */
  readonly routesSubsets?: boolean;
  /** Names publications and slots: `understudy_<id>_fwd`, `understudy_<id>_rev`. */
  readonly migrationId: string;
  readonly traffic: TrafficControl;
  readonly shadow: ShadowControl;
  readonly log: Log;
  readonly clock: Clock;
  readonly settings: CutoverSettings;
  /** `bytes` random bytes in hexadecimal, for operation ids and nonces. */
  readonly random: (bytes: number) => string;
  /** Which subsets are not to be parted, as their policies say; asked where one of several is named. */
  readonly ties?: (signal: AbortSignal) => Promise<readonly SubsetTie[]>;
  /** What `check` finds on both sides; blockers stop an operation in preflight. */
  readonly inspect: (signal: AbortSignal) => Promise<readonly Finding[]>;
  readonly readFingerprint: (client: pg.Client) => Promise<CatalogFingerprint>;
  /** Called each time this process has made itself known as a live proxy: another may have switched before that. */
  readonly onRegistered?: () => void;
  /**
   * Called at every {@link StepPoint}. An error thrown from it stops the operation dead right there, with nothing
   * undone, as a killed process would: for fault tests.
   */
  readonly observe?: (point: StepPoint, kind: OperationKind) => void | Promise<void>;
}

export interface Recovery {
  readonly route: Route;
  /**
   * none: nothing was open. aborted: an operation was undone. completed: one past its point of no return was carried
   * to its end. unreachable: no fence stands, so the source leads; the journal couldn't be read and is put right later.
   */
  readonly action: 'none' | 'aborted' | 'completed' | 'unreachable';
  readonly operation?: { readonly id: string; readonly kind: OperationKind };
  /** Where subsets are configured: what was found of each. */
  readonly subsets?: readonly SubsetRecovery[];
  /** Why not of all: a server could not be asked. Those that are found may be served; ask again for the others. */
  readonly missing?: UnderstudyError;
  /** `finalize` has run: the source is retired, nothing shadows it any more, and it is never served again. */
  readonly finalized: boolean;
}

export interface SubsetRecovery {
  readonly subset: SubsetId;
  readonly route: Route;
  readonly action: Recovery['action'];
  /** Who leads it could not be found out; the route is where it probably is. */
  readonly unknown?: true;
}

/** What `status` tells of one subset. */
export interface SubsetStatus {
  readonly subset: SubsetId;
  readonly route: Route;
  readonly barriers: Readonly<Record<Side, BarrierState>>;
  readonly last: OperationRecord | null;
  /** Who leads it is not known since the start; nothing of it is served. */
  readonly unknown?: true;
}

/** A foreign key between subsets that may be parted; where it is not enforced, `since` when. */
export interface ForeignKeyStatus {
  readonly name: string;
  /** The referring table and the one that is referred to, as `schema.table`, and the subset of each. */
  readonly table: string;
  readonly references: string;
  readonly subsets: readonly [SubsetId, SubsetId];
  readonly source: ForeignKeySideStatus;
  readonly destination: ForeignKeySideStatus;
}

/**
 * unenforced: the constraint is not there while its subsets are on different sides. restored: it is there again, NOT VALID:
 * what is written from now on is checked. absent: neither it nor a record of it is there. unknown: the side can't be asked.
 */
export interface ForeignKeySideStatus {
  readonly state: 'enforced' | 'unenforced' | 'restored' | 'absent' | 'unknown';
  readonly since?: string;
  /** How many rows refer to what is not there, and to how many different keys; absent before they were counted. */
  readonly violations?: { readonly rows: number; readonly keys: number };
  /** The statement that has it validated, once those rows are mended. */
  readonly validate?: string;
}

/** absent: no trigger there. partial: not the same on all tables. unknown: the side can't be asked. */
export type BarrierState = 'absent' | 'lowered' | 'raised' | 'partial' | 'unknown';

export interface OperationRecord {
  readonly id: string;
  readonly subset: SubsetId;
  readonly kind: OperationKind;
  readonly state: OperationState;
  readonly startedAt: string;
  readonly finishedAt: string | null;
  /** Why it was aborted, or that it was recovered after a crash. */
  readonly reason: string | null;
  readonly report: OperationReport | null;
}

export interface CutoverStatus {
  readonly route: Route;
  /** Where subsets are configured. */
  readonly subsets?: readonly SubsetStatus[];
  readonly finalized: boolean;
  readonly running: {
    readonly id: string;
    readonly kind: OperationKind;
    /** Where it is about several. */
    readonly subsets?: readonly SubsetId[];
    readonly state: OperationState;
    readonly step: StepName;
    readonly startedAt: string;
  } | null;
  readonly last: OperationRecord | null;
  readonly barriers: Readonly<Record<Side, BarrierState>>;
  readonly rollback: { readonly possible: boolean; readonly lossless: boolean; readonly reason?: string };
  readonly journal: 'reachable' | 'unreachable' | 'absent';
  /** Those of `foreignKeys: unenforced`. */
  readonly foreignKeys?: readonly ForeignKeyStatus[];
}

export interface OperationOptions {
  /** And what is not to be parted from it. Where none is named, all that are on the side that is to be left. */
  readonly subset?: SubsetId;
  /** Stop after preflight: nothing a client could see. */
  readonly dryRun?: boolean;
  /** Aborts the operation while it is before its point of no return; ignored after. */
  readonly signal: AbortSignal;
  readonly onEvent: (event: OperationEvent) => void;
  /** Asked after preflight, before the first client waits, with all that would be switched. What it throws aborts. */
  readonly confirm?: ((subsets: readonly SubsetId[]) => Promise<void>) | undefined;
}

export interface FinalizeOptions {
  /** Also lowers and removes the fence of the retired source: it becomes writable, and nobody follows it. */
  readonly removeFence: boolean;
  /** Stops both streams, so that their slots can be dropped; called once the source is recorded as retired. */
  readonly stopShadow: () => Promise<void>;
  /** The old server is gone: nothing is undone on it, and it must never be served again. */
  readonly sourceLost?: boolean;
  readonly signal: AbortSignal;
}

export interface RemoveOptions {
  /** Stops both streams, so that their slots can be dropped, and capture, which keeps its series in the destination. */
  readonly stopWriters: () => Promise<void>;
  /** The destination is gone: nothing is undone on it. */
  readonly destinationLost?: boolean;
  readonly signal: AbortSignal;
}

export interface RemoveReport {
  /** What was removed, as sentences: `source: slot understudy_shop_fwd`. */
  readonly removed: readonly string[];
  /** As of {@link FinalizeReport}. */
  readonly foreignKeys?: readonly string[];
  readonly seconds: number;
}

export interface FinalizeReport {
  readonly epoch: number;
  /** What was removed, as sentences: `source: slot understudy_shop_fwd`. */
  readonly removed: readonly string[];
  readonly fence: 'kept' | 'removed' | 'source-lost';
  /** Foreign keys that were left unenforced and that rows violate, as sentences. */
  readonly foreignKeys?: readonly string[];
  readonly seconds: number;
}
