/**
 * Keeps what the live capture collects: appends it to the series store, reads the catalogs, fetches the secret,
 * deletes what is too old. Runs beside the draining of the ring, in the same thread, and never makes it wait.
 *
 * States of a batch: collected → pending (taken, being appended) → kept. One is pending at a time; until the store has
 * it, it is appended again with the same id, while the collector goes on within its own bounds. A batch that the store
 * itself refuses is given up and counted.
 * Each task (append, catalog, secret, prune) runs alone, when it is due, and is due again some time after its end; what
 * fails is due again after a growing pause. No failure leaves this file.
 */
import type pg from 'pg';
import { asUnderstudyError, type ErrorCode } from '../core/errors.js';
import { connectControl } from '../core/postgres.js';
import type { CaptureSeriesStatus, SeriesBatch } from '../core/capture-ports.js';
import type { DatabaseEndpoint, Side } from '../core/ports.js';
import { readCatalog } from './catalog-read.js';
import { COLLECTOR_DEFAULTS, SeriesCollector } from './collector.js';
import type { PostgresParser } from './parser.js';
import { PostgresSeriesStore, SERIES_CONNECTION, type SeriesStoreOptions } from './series-store.js';
import type { StatementCache } from './statements.js';

/** Crosses the thread's border, so: plain data. */
export interface SeriesSettings extends SeriesStoreOptions {
  readonly source: DatabaseEndpoint;
  readonly destination: DatabaseEndpoint;
  /** Who counts: another one for every run of a process. */
  readonly writer: string;
  readonly keys: boolean;
  readonly hotKeysMax: number;
  readonly flushIntervalMs: number;
  readonly catalogIntervalMs: number;
}

const RETRY_FIRST_MS = 1_000;
const RETRY_MOST_MS = 30_000;
const PRUNE_INTERVAL_MS = 3_600_000;
/** Between a statement that changes the catalog and reading it: its transaction has to end first. */
const AFTER_CHANGE_MS = 2_000;
const CONNECT_TIMEOUT_MS = 5_000;

interface Task {
  readonly run: () => Promise<void>;
  readonly intervalMs: number;
  dueMs: number;
  failures: number;
}

export class SeriesKeeper {
  readonly collector: SeriesCollector;
  readonly #settings: SeriesSettings;
  readonly #store: PostgresSeriesStore;
  readonly #tasks: readonly Task[];
  readonly #catalogTask: Task;
  readonly #appendTask: Task;
  #running: Promise<void> | undefined;
  #pending: SeriesBatch | null = null;
  #leader: Side = 'source';
  #appended = 0;
  #refused = 0;
  #lastAppendedMs: number | null = null;
  #relations: number | null = null;
  #problem: { readonly code: ErrorCode; readonly message: string } | null = null;
  #seenMs: number;

  constructor(settings: SeriesSettings, parser: PostgresParser, statements: StatementCache, nowMs: number) {
    this.#settings = settings;
    this.#seenMs = nowMs;
    this.collector = new SeriesCollector({ ...COLLECTOR_DEFAULTS, ...settings }, parser, statements);
    this.#store = new PostgresSeriesStore(
      () =>
        connectControl('destination', settings.destination, {
          ...SERIES_CONNECTION,
          connectTimeoutMs: CONNECT_TIMEOUT_MS,
        }),
      settings,
    );
    const task = (run: () => Promise<void>, intervalMs: number, dueMs: number): Task => ({
      run,
      intervalMs,
      dueMs,
      failures: 0,
    });
    this.#catalogTask = task(() => this.#readCatalog(), settings.catalogIntervalMs, nowMs);
    this.#appendTask = task(() => this.#append(), settings.flushIntervalMs, nowMs + settings.flushIntervalMs);
    this.#tasks = [
      this.#catalogTask,
      ...(settings.keys ? [task(() => this.#fetchSecret(), Infinity, nowMs)] : []),
      this.#appendTask,
      task(() => this.#store.prune(Date.now()), PRUNE_INTERVAL_MS, nowMs + 2 * settings.flushIntervalMs),
    ];
  }

  /** Something is being waited for: the thread must not sleep long. */
  get busy(): boolean {
    return this.#running !== undefined;
  }

  setLeader(side: Side): void {
    if (side !== this.#leader) this.#catalogTask.dueMs = 0;
    this.#leader = side;
  }

  /** Call often: notes that time was watched, and starts what is due. Never throws, never waits. */
  tick(nowMs: number): void {
    if (nowMs > this.#seenMs) this.collector.observed(this.#seenMs, nowMs);
    // A clock that was set back counts nothing twice.
    this.#seenMs = nowMs;
    if (this.collector.catalogChanged) {
      this.collector.catalogChanged = false;
      this.#catalogTask.dueMs = Math.min(this.#catalogTask.dueMs, nowMs + AFTER_CHANGE_MS);
    }
    if (this.#running !== undefined) return;
    const due = this.#tasks.find((task) => task.dueMs <= nowMs);
    if (due !== undefined) void this.#start(due);
  }

  /** Appends all that was collected. Resolves also where that was not possible: `status` tells. */
  async flush(): Promise<void> {
    await this.#running;
    if (this.#pending !== null) await this.#start(this.#appendTask);
    if (this.#pending === null) await this.#start(this.#appendTask);
  }

  /** Not one statement goes to the destination after this has resolved. */
  async close(): Promise<void> {
    await this.#running;
    await this.#store.close();
  }

  status(): CaptureSeriesStatus {
    return {
      batchesAppended: this.#appended,
      batchesRefused: this.#refused,
      lastAppendedAt: this.#lastAppendedMs === null ? null : new Date(this.#lastAppendedMs).toISOString(),
      pending: this.#pending !== null,
      relations: this.#relations,
      shed: this.collector.shed,
      problem: this.#problem,
    };
  }

  #start(task: Task): Promise<void> {
    // What makes it due again while it runs must not be forgotten at its end.
    task.dueMs = Infinity;
    this.#running = task
      .run()
      .then(
        () => {
          task.failures = 0;
          this.#problem = null;
          task.dueMs = Math.min(task.dueMs, Date.now() + task.intervalMs);
        },
        (error: unknown) => {
          const { code, message } = asUnderstudyError(error, 'internal', 'series');
          this.#problem = { code, message };
          task.dueMs =
            Date.now() + Math.min(RETRY_MOST_MS, RETRY_FIRST_MS * 2 ** Math.min(10, task.failures));
          task.failures += 1;
        },
      )
      .finally(() => (this.#running = undefined));
    return this.#running;
  }

  async #append(): Promise<void> {
    this.#pending ??= this.collector.take();
    if (this.#pending === null) return;
    try {
      await this.#store.append(this.#pending);
    } catch (error) {
      if (!isRefusal(error)) throw error;
      this.#refused += 1;
      this.#pending = null;
      throw error;
    }
    this.#pending = null;
    this.#appended += 1;
    this.#lastAppendedMs = Date.now();
  }

  async #fetchSecret(): Promise<void> {
    this.collector.setSecret(await this.#store.secret());
  }

  async #readCatalog(): Promise<void> {
    const client = await this.#connectLeader();
    try {
      const catalog = await readCatalog(client);
      this.collector.setCatalog(catalog);
      this.#relations = catalog.relations.length;
    } finally {
      await client.end().catch(() => undefined);
    }
  }

  /** Either side has the tables; the leader has those made today. */
  async #connectLeader(): Promise<pg.Client> {
    const other = this.#leader === 'source' ? 'destination' : 'source';
    const connect = (side: Side): Promise<pg.Client> =>
      connectControl(side, this.#settings[side], {
        purpose: 'capture catalog',
        connectTimeoutMs: CONNECT_TIMEOUT_MS,
        settings: { statement_timeout: '30000', lock_timeout: '5000' },
      });
    return connect(this.#leader).catch(() => connect(other));
  }
}

/** The server read the batch and will never take it: data, syntax, or constraint, classes 22, 23 and 42. */
function isRefusal(error: unknown): boolean {
  const cause = error instanceof Error ? error.cause : undefined;
  const code = typeof cause === 'object' && cause !== null && 'code' in cause ? cause.code : undefined;
  return typeof code === 'string' && /^(?:22|23|42)...$/.test(code) && code !== '42501';
}
