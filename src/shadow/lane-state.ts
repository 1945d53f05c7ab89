/**
 * What a lane knows across the connections it lives through: its position, its marks and who waits for them, its
 * tasks, and the copy's bookkeeping. One object, changed by the lane's one running session alone.
 */
import {
  REST,
  WHOLE_DATABASE,
  type Direction,
  type Side,
  type StreamStatus,
  type StuckChange,
  type SubsetId,
} from '../core/ports.js';
import type { Log } from '../core/log.js';
import type { Clock } from '../core/clock.js';
import { formatLsn, lsn, type Position } from '../core/position.js';
import { authorityOf, type Authority } from './authority.js';
import { LagMeter, UNKNOWN_LAG, type Lag } from './lag-meter.js';
import type { StrayWrite } from './conflicts/records.js';
import type { Pace } from './pace.js';
import type { RecentKeys } from './recent-keys.js';
import type { ApplyTable } from './postgres/apply-table.js';
import type { AddedColumns } from './postgres/schema-records.js';
import { ChunkWindows } from './postgres/chunk-windows.js';
import { DeliveredTransactions } from './postgres/visibility.js';
import type { WholeCopy } from './postgres/whole-copy.js';
import { run, textOf, type Session } from './postgres/statement.js';

/** Runs on the apply connection between two flushes, outside of any transaction. */
export interface LaneTask {
  readonly work: (session: Session) => Promise<void>;
  readonly done: () => void;
  readonly failed: (error: unknown) => void;
}

interface MarkWaiter {
  readonly mark: string;
  readonly resolve: (position: Position) => void;
  readonly reject: (error: unknown) => void;
}

/** Far more than can be between their log record and their visibility without waiting for a standby. */
const LATELY_MAX = 2000;

/** Marks remembered for a waiter that asks late. */
const MARKS_MAX = 500;

/** A lag is unknown when the origin's head was not heard of for this long. */
const HEAD_STALE_AFTER_MS = 3000;

export class LaneState {
  readonly direction: Direction;
  readonly origin: Side;
  readonly target: Side;
  readonly log: Log;
  readonly clock: Clock;
  readonly windows = new ChunkWindows();
  readonly delivered = new DeliveredTransactions();
  /** Transactions that were streamed last: their commits may not be visible yet. */
  readonly #lately: number[] = [];
  #observers = 0;
  readonly wholeCopies = new Map<string, WholeCopy>();
  readonly recent: RecentKeys;
  readonly meter = new LagMeter(HEAD_STALE_AFTER_MS);
  /** Tables that the stream carries and the lane does not know, nor the origin any more. */
  readonly ignored = new Set<string>();
  /** Tables that the lane did not know, and has looked for once more: they may be new partitions of one that it knows. */
  readonly lookedFor = new Set<string>();
  /** The next session reads the origin's tables anew. */
  tablesMoved = false;
  /** The relation that was last not what both sides have, and whether it still was with the tables read again. */
  moved: { readonly table: string; readonly signature: string; readonly held: boolean } | null = null;
  /** The columns of the target's tables, by `schema.name`, on the way back, where nobody follows the schema. Read with `tables`. */
  columnsThere: ReadonlyMap<string, ReadonlySet<string>> = new Map();
  /** What rows from before a column was added hold in it. Read with `tables`. */
  addedColumns: AddedColumns = new Map();
  /** The relation of the log at which the lane stopped, as it is not what `tables` says; null while it is none. */
  haltedAt: string | null = null;
  /** Relations that differ from today's tables because the origin has changed them back since. */
  readonly settled = new Set<string>();
  readonly tasks: LaneTask[] = [];
  /**
   * Tables that are compared and mended as the stream has begun anew, and how many changes to each were left out
   * meanwhile: their unique values were still another row's.
   */
  readonly unmended = new Map<string, number>();
  /** The origin's tables by name. Read once: another definition met later has the shadow, or on the way back the lane, look again. */
  tables: ReadonlyMap<string, ApplyTable> | undefined;
  /** All there are. */
  readonly subsets: readonly SubsetId[];
  /** By the origin's table, as `schema.name`; what is not in it is the rest. Read with `tables`. */
  members: ReadonlyMap<string, SubsetId> = new Map();
  /** Whether chunks may be in flight, so that what the stream delivers must be remembered. */
  copying = false;
  connected = false;
  /** How eagerly changes are written. */
  readonly pace: Pace;
  /** The origin's server could not send what comes behind this position; null once the lane is past it. */
  unsentAt: bigint | null = null;
  /** The change that is refused again and again, while the lane waits for it to be let in or left out. */
  stuck: StuckChange | null = null;
  authority: Authority;
  committed: bigint | null = null;
  transactionsApplied = 0;
  changesApplied = 0;
  readonly #marks = new Map<string, bigint>();
  readonly #waiters = new Set<MarkWaiter>();
  #failure: unknown;
  /** The origin's schema may have changed: a message said so, or the lane stopped at it. */
  onSchemaNotice: () => void = () => undefined;
  /** Where set, told of writes that were made while the origin did not lead, before the position moves past them. */
  onStrays: ((strays: readonly StrayWrite[]) => Promise<void>) | null = null;
  /** Set by the running session: something changed that it should look at. */
  wake: () => void = () => undefined;

  constructor(
    direction: Direction,
    context: { log: Log; clock: Clock; recent: RecentKeys; pace: Pace; subsets: readonly SubsetId[] },
  ) {
    this.direction = direction;
    this.origin = direction === 'forward' ? 'source' : 'destination';
    this.target = direction === 'forward' ? 'destination' : 'source';
    this.authority = { authoritative: direction === 'forward', epoch: 0 };
    this.log = context.log;
    this.subsets = context.subsets;
    this.clock = context.clock;
    this.recent = context.recent;
    this.pace = context.pace;
  }

  /** Which one a table of the origin's, as `schema.name`, belongs to. */
  subsetOf(table: string): SubsetId {
    return this.subsets.length === 1 ? WHOLE_DATABASE : (this.members.get(table) ?? REST);
  }

  /** The subsets whose changes the stream carries. */
  get leads(): readonly SubsetId[] {
    return this.subsets.filter((subset) => authorityOf(this.authority, subset).authoritative);
  }

  /** Whether reads of the origin are to be ordered with the stream, so that what it delivers must be remembered. */
  get observed(): boolean {
    return this.copying || this.#observers > 0;
  }

  /** The stream has delivered a transaction. */
  noteDelivered(xid: number): void {
    this.#lately.push(xid);
    if (this.#lately.length > LATELY_MAX) this.#lately.splice(0, LATELY_MAX / 2);
    if (this.observed) this.delivered.delivered(xid);
  }

  /** Runs `use`, whose reads of the origin over `session` are ordered with the stream by chunk windows. */
  async observing(session: Session, use: () => Promise<void>): Promise<void> {
    if (!this.observed) for (const xid of this.#lately) this.delivered.delivered(xid);
    this.#observers += 1;
    try {
      await this.noteHeldCommits(session);
      await use();
    } finally {
      this.#observers -= 1;
      if (!this.observed) this.delivered.clear();
    }
  }

  /**
   * A commit may be held between its log record and its visibility by a missing standby. One that was streamed before
   * anybody looked is not remembered: every commit held now counts as delivered.
   */
  async noteHeldCommits(origin: Session): Promise<void> {
    const { rows } = await run(
      origin,
      `SELECT a.backend_xid::pg_catalog.text AS xid FROM pg_catalog.pg_stat_activity a
       WHERE a.wait_event = 'SyncRep' AND a.backend_xid IS NOT NULL
       UNION
       SELECT p.transaction::pg_catalog.text FROM pg_catalog.pg_prepared_xacts p
       WHERE EXISTS (SELECT FROM pg_catalog.pg_stat_activity a
                     WHERE a.wait_event = 'SyncRep' AND a.backend_xid IS NULL)`,
      { what: 'looking for held commits' },
    );
    for (const row of rows) this.delivered.delivered(Number(textOf(row, 'xid')));
  }

  /** The stream has durably passed this mark. */
  passed(mark: string, position: bigint): void {
    this.#marks.set(mark, position);
    if (this.#marks.size > MARKS_MAX) {
      const oldest = this.#marks.keys().next();
      if (oldest.done !== true) this.#marks.delete(oldest.value);
    }
    for (const waiter of this.#waiters) if (waiter.mark === mark) waiter.resolve(lsn(position));
  }

  /** Resolves once the mark is durably passed; at once where it was passed lately. */
  waitForMark(mark: string, signal: AbortSignal): Promise<Position> {
    const known = this.#marks.get(mark);
    if (known !== undefined) return Promise.resolve(lsn(known));
    if (signal.aborted) return Promise.reject(signal.reason as Error);
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    return new Promise((resolve, reject) => {
      const settle = (): void => {
        this.#waiters.delete(waiter);
        signal.removeEventListener('abort', onAbort);
      };
      const onAbort = (): void => waiter.reject(signal.reason);
      const waiter: MarkWaiter = {
        mark,
        resolve: (position) => {
          settle();
          resolve(position);
        },
        reject: (error) => {
          settle();
          reject(error);
        },
      };
      this.#waiters.add(waiter);
      signal.addEventListener('abort', onAbort, { once: true });
    });
  }

  /** The origin's log tells another story: what its transactions were called before means nothing. Only while stopped. */
  forgetHistory(): void {
    this.wholeCopies.clear();
    this.delivered.clear();
    this.#lately.length = 0;
    this.unsentAt = null;
  }

  /** The origin's tables are read anew by the next session. Only while no session runs. */
  forgetTables(): void {
    this.tables = undefined;
    this.haltedAt = null;
    this.moved = null;
  }

  /** The lane will not go on: nobody waits in vain. */
  fail(error: unknown): void {
    this.#failure = error;
    for (const waiter of this.#waiters) waiter.reject(error);
    for (const task of this.tasks.splice(0)) task.failed(error);
    this.windows.discardAll();
  }

  /**
   * Runs `work` on the apply connection between two flushes. Rejects if the connection is lost meanwhile, or with the
   * signal's reason if it aborts before the work began.
   */
  exclusive(work: (session: Session) => Promise<void>, signal: AbortSignal): Promise<void> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    if (signal.aborted) return Promise.reject(signal.reason as Error);
    return new Promise((resolve, reject) => {
      const settle = (): void => signal.removeEventListener('abort', onAbort);
      const task: LaneTask = {
        work,
        done: () => {
          settle();
          resolve();
        },
        failed: (error) => {
          settle();
          reject(error);
        },
      };
      const onAbort = (): void => {
        const place = this.tasks.indexOf(task);
        if (place === -1) return;
        this.tasks.splice(place, 1);
        reject(signal.reason);
      };
      signal.addEventListener('abort', onAbort, { once: true });
      this.tasks.push(task);
      this.wake();
    });
  }

  status(): StreamStatus {
    const lag: Lag =
      this.connected && this.committed !== null
        ? this.meter.lag(this.committed, this.clock.monotonicMs())
        : UNKNOWN_LAG;
    return {
      direction: this.direction,
      connected: this.connected,
      committed: this.committed === null ? null : formatLsn(this.committed),
      lagBytes: lag.bytes,
      lagMs: lag.ms,
      transactionsApplied: this.transactionsApplied,
      changesApplied: this.changesApplied,
      authoritative: this.leads.length > 0,
      ...(this.subsets.length === 1 ? {} : { leads: this.leads }),
    };
  }
}
