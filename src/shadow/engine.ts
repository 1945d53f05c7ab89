/**
 * The shadow of one database by its log: builds it, follows it, compares it, and keeps the way back open.
 *
 *   pipeline.ts        the attempts, one after the other, through the recorded phases up to following
 *   streams.ts         the forward and the reverse lane, and their slots
 *   shadow-tables.ts   what is shadowed, and how each side has it
 *   condition.ts       phase, troubles and warnings, and when to try again
 *
 * This file joins them, begins and ends their life, and answers for them (`ShadowControl`). `stopped` and `failed` are
 * of this process alone.
 *
 * Failing: a retryable error (a server away or restarting, a lost connection) is tried again for ever, with growing
 * pauses, and shows in `status().error`; lanes retry by themselves. Any other error ends in `failed`: everything stops,
 * and what is recorded is kept. The log that the slots keep is watched until `stop`, also by a shadow that failed.
 */
import { randomUUID } from 'node:crypto';
import type { Clock } from '../core/clock.js';
import type { Log } from '../core/log.js';
import type {
  CatalogFingerprint,
  ConflictRecord,
  DatabaseEndpoint,
  Direction,
  ExactRequest,
  LatencyWindow,
  RecentVerifyReport,
  ResumeOptions,
  ShadowCommand,
  ShadowControl,
  ShadowPhase,
  ShadowStatus,
  ShadowSteering,
  ShadowTable,
  ShadowWarning,
  Side,
  SubsetId,
  VerifyOptions,
  VerifyProgress,
  VerifyReport,
} from '../core/ports.js';
import type { Position } from '../core/position.js';
import { UnderstudyError } from '../core/errors.js';
import { Condition, notReady } from './condition.js';
import { Conflicts } from './conflicts/conflicts.js';
import { LogBudget } from './log-budget.js';
import { Pace } from './pace.js';
import { Pipeline } from './pipeline.js';
import { analyzeStale, refreshMaterializedViews } from './postgres/analyze.js';
import { targetOf, type ApplyTable, type Key } from './postgres/apply-table.js';
import { streamNames } from './postgres/slot.js';
import { endOnAbort, withSession } from './postgres/statement.js';
import { tableKey, type TableInfo } from './postgres/table.js';
import { RecentKeys } from './recent-keys.js';
import { repairTable } from './repair.js';
import { SHADOW_DEFAULTS, type ShadowOptions, type ShadowSettings } from './settings.js';
import { ShadowTables } from './shadow-tables.js';
import { Steering } from './steering.js';
import { Streams } from './streams.js';
import { Throttle } from './throttle/throttle.js';
import { Unlogged } from './unlogged.js';
import { Verification } from './verification.js';

export interface ShadowEngineContext {
  readonly log: Log;
  readonly clock: Clock;
  /** 0 ≤ x < 1, for jitter. */
  readonly random?: () => number;
  /** The destination's tables are there and still empty: the write guard goes up now, before any row is copied. */
  readonly afterSchemaBuilt: (tables: readonly ShadowTable[]) => Promise<void>;
  readonly onPhase?: (phase: ShadowPhase) => void;
}

/** What all parts are given. */
interface Shared {
  readonly endpoints: Readonly<Record<Side, DatabaseEndpoint>>;
  readonly clock: Clock;
  readonly log: Log;
}

const LOG_TIGHT: ShadowWarning = {
  code: 'log-tight',
  message:
    'a slot keeps over three quarters of shadow.logBudgetBytes; the copy is paused. At the whole the shadow is dropped',
};

export class ShadowEngine implements ShadowControl {
  readonly #settings: ShadowSettings;
  readonly #context: ShadowEngineContext;
  readonly #log: Log;
  readonly #recent: RecentKeys;
  readonly #pace = new Pace();
  readonly #tables: ShadowTables;
  readonly #condition: Condition;
  readonly #streams: Streams;
  readonly #budget: LogBudget;
  readonly #conflicts: Conflicts;
  readonly #unlogged: Unlogged;
  readonly #throttle: Throttle;
  readonly #steering: Steering;
  readonly #verification: Verification;
  readonly #pipeline: Pipeline;
  #stopping = new AbortController();
  /** Outlives a failure: a shadow that failed keeps log as one that follows does. */
  #ending = new AbortController();
  #budgeting: Promise<void> | undefined;
  #running: Promise<void> | undefined;

  constructor(options: ShadowOptions, context: ShadowEngineContext) {
    this.#settings = { ...SHADOW_DEFAULTS, ...options };
    if (!/^[a-z0-9_]{1,40}$/.test(this.#settings.migrationId)) {
      throw new UnderstudyError('config-invalid', 'the migration id must be 1–40 of a–z, 0–9 and _');
    }
    this.#context = context;
    this.#log = context.log.child({ part: 'shadow' });
    this.#recent = new RecentKeys(this.#settings.recentKeysMax);
    this.#tables = new ShadowTables(this.#settings);
    const { source, destination } = this.#settings;
    const shared = { endpoints: { source, destination }, clock: context.clock, log: this.#log };
    const random = context.random ?? Math.random;
    this.#condition = new Condition(this.#settings, {
      ...shared,
      random,
      onPhase: context.onPhase,
      onFailed: (error) => {
        this.#streams.fail(error);
        this.#stopping.abort(error);
      },
    });
    this.#streams = new Streams(this.#settings, {
      ...shared,
      random,
      recent: this.#recent,
      pace: this.#pace,
      onTrouble: (direction, error) => this.#condition.trouble(direction, error),
      onSlotLost: (error) => this.#pipeline.interrupt(error),
      onFailed: (error) => this.#condition.fail(error),
    });
    this.#budget = this.#watchedLog(shared);
    this.#conflicts = this.#settledConflicts(shared);
    this.#unlogged = new Unlogged(shared);
    this.#throttle = new Throttle(this.#settings.throttle, {
      ...shared,
      source,
      pace: this.#pace,
      shadowLagMs: () => this.#streams.forward.status().lagMs,
    });
    this.#steering = new Steering({
      pace: this.#pace,
      throttle: this.#throttle,
      log: this.#log,
      eagerMs: this.#settings.flushIntervalMs,
      lanes: [this.#streams.forward, this.#streams.reverse],
      known: (name) => this.#tables.has(name),
      onChange: () => this.#streams.wake(),
    });
    this.#verification = new Verification({
      ...shared,
      recent: this.#recent,
      tables: () => this.#tables.logged,
      form: (table, side) => this.#tables.formOn(table, side),
      repair: (direction, table, keys, signal) => this.#repair(direction, table, keys, signal),
      waitForMark: (direction, mark, signal) => this.#streams.waitForMark(direction, mark, signal),
    });
    this.#pipeline = this.#attempts(shared);
  }

  #watchedLog(shared: Shared): LogBudget {
    const { migrationId, logBudgetBytes, logPollIntervalMs } = this.#settings;
    const budget = new LogBudget({
      ...shared,
      slots: {
        source: streamNames(migrationId, 'forward').slot,
        destination: streamNames(migrationId, 'reverse').slot,
      },
      budgetBytes: logBudgetBytes,
      pollIntervalMs: logPollIntervalMs,
      onSpent: (spent) => this.#logSpent(spent),
    });
    this.#pace.hurried = () => budget.tight;
    return budget;
  }

  /** The way back meets what was written past the guard. */
  #settledConflicts(shared: Shared): Conflicts {
    const { state } = this.#streams.reverse;
    const conflicts = new Conflicts(this.#settings.conflicts, {
      ...shared,
      table: (name) => state.tables?.get(name),
      ready: () => state.tables !== undefined,
      versionColumns: this.#settings.versionColumns ?? {},
      onSuspect: (table, key) => this.#recent.noteKeys(table, [key]),
      onUnnamed: () => this.#verification.forget(),
      repair: (table, key, signal) => this.#repair('forward', table.info, [key], signal),
    });
    state.onStrays = (strays) => conflicts.note(strays);
    return conflicts;
  }

  #attempts(shared: Shared): Pipeline {
    return new Pipeline(this.#settings, {
      ...shared,
      condition: this.#condition,
      tables: this.#tables,
      streams: this.#streams,
      pace: this.#pace,
      throttle: this.#throttle,
      conflicts: this.#conflicts,
      verification: this.#verification,
      afterSchemaBuilt: this.#context.afterSchemaBuilt,
    });
  }

  /** Sets the shadow going, from wherever its records say it is. Idempotent; returns at once. */
  start(): void {
    if (this.#running !== undefined) return;
    this.#stopping = new AbortController();
    this.#ending = new AbortController();
    this.#running = this.#run(this.#stopping.signal);
    this.#budgeting = this.#budget.watch(this.#ending.signal);
  }

  /** Ends at the next safe point. What is recorded stays. Idempotent. */
  async stop(): Promise<void> {
    const stopped = new UnderstudyError('cancelled', 'the shadow was stopped');
    this.#stopping.abort(stopped);
    this.#ending.abort(stopped);
    await Promise.all([this.#running, this.#budgeting]);
    await Promise.all([this.#streams.stop(), this.#verification.close()]);
    this.#condition.stopped();
    this.#running = undefined;
  }

  async #run(signal: AbortSignal): Promise<void> {
    await this.#pipeline.run(signal);
    if (this.#condition.failure !== undefined) await this.#streams.stop();
  }

  /** Also where the shadow failed before for another reason, which stays the one that is told. */
  async #logSpent(spent: UnderstudyError): Promise<void> {
    this.#condition.warn(spent.code, { code: spent.code, message: spent.message });
    this.#condition.fail(spent);
    await this.#streams.stop();
    await this.#budget.dropSlots(this.#ending.signal);
  }

  async status(): Promise<ShadowStatus> {
    const { forward, reverse, reverseBegun } = this.#streams;
    const ignored = [...forward.state.ignored].map((table) => ({
      code: 'table-unknown',
      message: `${table} was made after the shadow and is not part of it`,
    }));
    const exact = this.#tables.someUnlogged ? { exactMs: this.#unlogged.ms } : {};
    return Promise.resolve({
      ...this.#condition.status(this.#pipeline.progress(), [
        ...ignored,
        ...(this.#budget.tight ? [LOG_TIGHT] : []),
      ]),
      streams: [
        { ...forward.status(), logBytes: this.#budget.retainedBytes('source'), ...exact },
        ...(reverseBegun
          ? [{ ...reverse.status(), logBytes: this.#budget.retainedBytes('destination'), ...exact }]
          : []),
      ],
      lastVerify: this.#verification.last,
      steering: this.#steering.status(),
      conflicts: this.#conflicts.counts,
      ...(this.#verification.forgotten ? { unverified: true as const } : {}),
    });
  }

  async tables(subset?: SubsetId): Promise<readonly ShadowTable[]> {
    return await this.#tables.list(subset);
  }

  /** Behind the fence: what no log tells comes over then. */
  async waitForMark(
    direction: Direction,
    markId: string,
    signal: AbortSignal,
    subsets?: readonly SubsetId[],
  ): Promise<Position> {
    const position = await this.#streams.waitForMark(direction, markId, signal);
    if (direction === 'forward') await this.#streams.assertWayBack(signal);
    else if (this.#streams.reverse.state.unmended.size > 0) throw notReady('reverse');
    await this.#unlogged.carry(this.#streams.of(direction).state, signal, subsets);
    return position;
  }

  async measureExact(request: ExactRequest, signal: AbortSignal): Promise<void> {
    this.#condition.require('following', 'shadow');
    await this.#unlogged.measure(this.#streams.of(request.direction).state, request, signal);
  }

  async verify(
    options: VerifyOptions,
    signal: AbortSignal,
    onProgress?: (progress: VerifyProgress) => void,
  ): Promise<VerifyReport> {
    this.#condition.require('indexing', 'copy');
    const { leads, subsets } = this.#streams.of(options.direction).state;
    if (options.repair === true && leads.length < subsets.length) {
      throw new UnderstudyError('request-invalid', 'rows are mended only from the side that leads', {
        advice: 'Leave --direction out, or run `understudy verify` without --repair.',
      });
    }
    return await this.#verification.verify(options, signal, onProgress);
  }

  /** `info`: as the source has it. */
  async #repair(
    direction: Direction,
    info: TableInfo,
    keys: readonly Key[],
    signal: AbortSignal,
  ): Promise<void> {
    const { state: lane } = this.#streams.of(direction);
    if (this.#condition.phase !== 'repairing') this.#condition.require('following', 'shadow');
    const tables = [...(lane.tables?.values() ?? [])];
    const named = (table: ApplyTable): TableInfo => (direction === 'forward' ? table : targetOf(table)).info;
    const [table, another] = tables.filter((each) => tableKey(named(each)) === tableKey(info));
    if (table === undefined) throw notReady('shadow');
    // ONLY the root would be read, and it has no rows.
    if (another !== undefined || table.info.kind === 'partitioned') throw partitionedThere(info);
    const origin = this.#settings[lane.origin];
    const context = { lane, origin, clock: this.#context.clock, runId: randomUUID() };
    await repairTable(context, table, keys, signal);
  }

  async verifyRecent(
    direction: Direction,
    signal: AbortSignal,
    subset?: SubsetId,
  ): Promise<RecentVerifyReport> {
    const { state } = this.#streams.of(direction);
    const within =
      subset === undefined || state.subsets.length === 1
        ? undefined
        : (table: string): boolean => state.subsetOf(table) === subset;
    return await this.#verification.verifyRecent(direction, signal, within);
  }

  async builtFingerprint(side: Side): Promise<CatalogFingerprint> {
    return await this.#pipeline.builtFingerprint(side);
  }

  /** Resolves once the reverse stream is connected and its lag known. */
  async prepareReverse(signal: AbortSignal): Promise<void> {
    this.#condition.require('following', 'shadow');
    await this.#streams.prepareReverse(signal);
    while (this.#streams.reverse.status().lagBytes === null) {
      this.#condition.require('following', 'shadow');
      await this.#context.clock.sleep(10, signal);
    }
    await this.#verification.warm('forward');
    await this.#verification.warm('reverse');
  }

  async steer(command: ShadowCommand): Promise<ShadowSteering> {
    if (this.#condition.failure !== undefined) throw this.#condition.failure;
    return await this.#steering.steer(command);
  }

  async resume(options: ResumeOptions, signal: AbortSignal): Promise<void> {
    await this.#pipeline.resume(options, signal);
  }

  conflicts(limit: number): Promise<readonly ConflictRecord[]> {
    return this.#conflicts.list(limit);
  }

  /** How long the application's statements took, for the copy to be held back by. */
  latency(window: LatencyWindow): void {
    this.#throttle.hear(window);
  }

  async analyze(side: Side, signal: AbortSignal): Promise<void> {
    await withSession(side, this.#settings[side], 'analyze', async (session) => {
      endOnAbort(session, signal, 0);
      await analyzeStale(session, this.#tables.on(side), signal);
      const failed = await refreshMaterializedViews(session, signal);
      const code = 'materialized-view-not-refreshed';
      const [first] = failed;
      const more = failed.length > 1 ? `, nor could ${failed.length - 1} more` : '';
      const message = `${side}: ${first?.view ?? ''} could not be refreshed (${first?.reason ?? ''})${more}`;
      this.#condition.warn(code, first === undefined ? null : { code, message });
    });
  }
}

function partitionedThere(info: TableInfo): UnderstudyError {
  return new UnderstudyError(
    'repair-failed',
    `${tableKey(info)} is partitioned on the destination alone: its rows on the source are not repaired from there`,
    { advice: 'Stay with the destination (`understudy finalize`), or restore the source’s table from it.' },
  );
}
