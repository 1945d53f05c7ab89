/**
 * The shadow of one database: builds it, follows it, compares it, and keeps the way back open.
 *
 * Phases, each recorded on the destination when it begins, so that a process killed at any point goes on there:
 *   connecting → building-schema → copying → indexing → analyzing → following
 * A change of the source's schema takes the shadow back to `copying`, with what it changed still to do, or to `paused`,
 * which is not recorded: the next start finds the same change (schema-follow.ts). Each goes on by a new attempt.
 * `stopped` and `failed` are of this process alone. The forward lane runs from the slot's creation on; the reverse lane
 * from `prepareReverse` on, and after a restart from the start.
 *
 * Failing: a retryable error (a server away or restarting, a lost connection) is tried again for ever, with growing
 * pauses, and shows in `status().error`; lanes retry by themselves. Any other error ends in `failed`: everything stops,
 * and what is recorded is kept.
 */
import { randomUUID } from 'node:crypto';
import type { Clock } from '../core/clock.js';
import type { Log } from '../core/log.js';
import type {
  CatalogFingerprint,
  ConflictRecord,
  Direction,
  LatencyWindow,
  RecentVerifyReport,
  ShadowCommand,
  ResumeOptions,
  ShadowControl,
  ShadowPhase,
  ShadowStatus,
  ShadowSteering,
  ShadowWarning,
  Side,
  ShadowTable,
  SubsetId,
  VerifyOptions,
  VerifyProgress,
  VerifyReport,
} from '../core/ports.js';
import type { Position } from '../core/position.js';
import { asUnderstudyError, UnderstudyError } from '../core/errors.js';
import { readSubsetTables, subsetIds } from '../core/subsets.js';
import { Condition, isBefore, notReady } from './condition.js';
import { formOn, isFormed, readLaneTables, requiredForms, type Forms } from './format/forms.js';
import { hasNames } from './format/names.js';
import { giveNames, readNamed } from './format/naming.js';
import { Conflicts } from './conflicts/conflicts.js';
import { Copier } from './copier.js';
import { Lane } from './lane.js';
import { LogBudget } from './log-budget.js';
import { readUnmended, renewForward, renewReverse } from './lost-slot.js';
import { mendTables, REPAIRING } from './mending.js';
import { Pace } from './pace.js';
import { repairTable } from './repair.js';
import { RecentKeys } from './recent-keys.js';
import {
  buildAfterCopy,
  buildBeforeCopy,
  dropLeftovers,
  ensureStream,
  type StageContext,
} from './schema-stage.js';
import { Steering } from './steering.js';
import { Throttle } from './throttle/throttle.js';
import { SHADOW_DEFAULTS, type ShadowOptions, type ShadowSettings } from './settings.js';
import { isUnlogged, Unlogged } from './unlogged.js';
import { Verification } from './verification.js';
import { analyzeAll, analyzeStale, refreshMaterializedViews } from './postgres/analyze.js';
import type { Key } from './postgres/apply-table.js';
import { catalogDifferences, catalogWarning } from './catalog-watch.js';
import { laneCarrier, SchemaFollower, schemaMoved, sourceLeads } from './schema-follower.js';
import { installDdlNotice } from './postgres/ddl-notice.js';
import { readFingerprint } from './postgres/fingerprint.js';
import { ensureIdentities } from './postgres/identity.js';
import { ensureRecords, readState, writeReversePrepared } from './postgres/records.js';
import {
  assertFormat,
  readFingerprintRecord,
  readSourcePlan,
  writeFingerprint,
} from './postgres/schema-records.js';
import { endOnAbort, openSession, withSession, type Session } from './postgres/statement.js';
import { tableKey, type TableInfo } from './postgres/table.js';
import { ensurePublication, streamNames } from './postgres/slot.js';
import { readTables } from './postgres/tables.js';

export interface ShadowEngineContext {
  readonly log: Log;
  readonly clock: Clock;
  /** 0 ≤ x < 1, for jitter. */
  readonly random?: () => number;
  /** The destination's tables are there and still empty: the write guard goes up now, before any row is copied. */
  readonly afterSchemaBuilt: (tables: readonly ShadowTable[]) => Promise<void>;
  readonly onPhase?: (phase: ShadowPhase) => void;
}

/** What is done there waits for the stream. */
const COPY_PHASES: ReadonlySet<ShadowPhase> = new Set(['copying', 'indexing', 'analyzing']);

/** While a lane is further behind, its changed keys are not compared: both servers have better things to do. */
const TRIM_LAG_MAX_MS = 1000;
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
  readonly #verification: Verification;
  readonly #budget: LogBudget;
  readonly #forward: Lane;
  readonly #reverse: Lane;
  readonly #schema: SchemaFollower;
  readonly #pace = new Pace();
  readonly #conflicts: Conflicts;
  readonly #throttle: Throttle;
  readonly #unlogged: Unlogged;
  readonly #steering: Steering;
  readonly #condition: Condition;
  readonly #built = new Map<Side, CatalogFingerprint>();
  #tables: readonly TableInfo[] = [];
  #copier: Copier | undefined;
  #reverseStarted = false;
  #stopping = new AbortController();
  /** Outlives a failure: a shadow that failed keeps log as one that follows does. */
  #ending = new AbortController();
  #budgeting: Promise<void> | undefined;
  #running: Promise<void> | undefined;
  /** Ends the attempt at hand, for another that looks at the source's schema first. */
  #attempt = new AbortController();
  /** Lanes that could not read from their slot, and rest. */
  readonly #slotLost = new Set<Direction>();
  /** Tables were added or their columns changed since the whole was built. */
  #grown = false;
  /** Whether the destination has the names that the format gives, and not the source's. */
  #named = false;

  constructor(options: ShadowOptions, context: ShadowEngineContext) {
    this.#settings = { ...SHADOW_DEFAULTS, ...options };
    if (!/^[a-z0-9_]{1,40}$/.test(this.#settings.migrationId)) {
      throw new UnderstudyError('config-invalid', 'the migration id must be 1–40 of a–z, 0–9 and _');
    }
    this.#context = context;
    this.#log = context.log.child({ part: 'shadow' });
    this.#recent = new RecentKeys(this.#settings.recentKeysMax);
    this.#condition = new Condition(this.#settings, {
      log: this.#log,
      clock: context.clock,
      random: context.random ?? Math.random,
      onPhase: context.onPhase,
      onFailed: (error) => {
        this.#forward.state.fail(error);
        this.#reverse.state.fail(error);
        this.#stopping.abort(error);
      },
    });
    this.#forward = this.#lane('forward');
    this.#schema = new SchemaFollower({
      carrier: laneCarrier(this.#forward),
      sourceLeads: ({ source: from }) => sourceLeads(from),
      clock: context.clock,
      log: this.#log,
      lookIntervalMs: this.#settings.fingerprintIntervalMs,
      adopt: (tables) => this.#adopt(tables),
      onTrouble: (error) => this.#condition.trouble('schema', error),
      onPaused: () => this.#condition.enter('paused'),
    });
    this.#forward.state.onSchemaNotice = () => {
      this.#schema.notice();
      // A stream that stands holds up the copy too; where everything is copied, the look is enough.
      if (this.#forward.state.haltedAt !== null && COPY_PHASES.has(this.#condition.phase))
        this.#attempt.abort(schemaMoved());
    };
    this.#reverse = this.#lane('reverse');
    const { source, destination, migrationId, logBudgetBytes, logPollIntervalMs } = this.#settings;
    this.#budget = new LogBudget({
      endpoints: { source, destination },
      slots: {
        source: streamNames(migrationId, 'forward').slot,
        destination: streamNames(migrationId, 'reverse').slot,
      },
      budgetBytes: logBudgetBytes,
      pollIntervalMs: logPollIntervalMs,
      clock: context.clock,
      log: this.#log,
      onSpent: (spent) => this.#logSpent(spent),
    });
    this.#pace.hurried = () => this.#budget.tight;
    this.#conflicts = new Conflicts(this.#settings.conflicts, {
      endpoints: { source, destination },
      clock: context.clock,
      log: this.#log,
      table: (name) => this.#reverse.state.tables?.get(name),
      ready: () => this.#reverse.state.tables !== undefined,
      versionColumns: this.#settings.versionColumns ?? {},
      onSuspect: (table, key) => this.#recent.noteKeys(table, [key]),
      onUnnamed: () => this.#verification.forget(),
      repair: (table, key, signal) => this.#repair(table.info, [key], signal),
    });
    this.#unlogged = new Unlogged({
      endpoints: { source, destination },
      clock: context.clock,
      log: this.#log,
    });
    this.#reverse.state.onStrays = (strays) => this.#conflicts.note(strays);
    this.#throttle = new Throttle(this.#settings.throttle, {
      source,
      pace: this.#pace,
      clock: context.clock,
      log: this.#log,
      shadowLagMs: () => this.#forward.status().lagMs,
    });
    this.#steering = new Steering({
      pace: this.#pace,
      throttle: this.#throttle,
      log: this.#log,
      eagerMs: this.#settings.flushIntervalMs,
      lanes: [this.#forward, this.#reverse],
      known: (name) => this.#tables.some((table) => tableKey(table) === name),
      onChange: () => {
        this.#forward.state.wake();
        this.#reverse.state.wake();
      },
    });
    this.#verification = new Verification({
      endpoints: { source: this.#settings.source, destination: this.#settings.destination },
      recent: this.#recent,
      clock: context.clock,
      log: this.#log,
      tables: () => this.#tables.filter((table) => !isUnlogged(table)),
      form: (table, side) => formOn(this.#forms(), table, side),
      repair: (table, keys, signal) => this.#repair(table, keys, signal),
      waitForMark: (direction, mark, signal) => this.#marked(direction, mark, signal),
    });
  }

  // --- life ----------------------------------------------------------------------------------------------------

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
    await Promise.all([this.#forward.stop(), this.#reverse.stop(), this.#verification.close()]);
    this.#condition.stopped();
    this.#running = undefined;
  }

  async #run(signal: AbortSignal): Promise<void> {
    await this.#condition.keepTrying(
      signal,
      (sessions, reached) => {
        this.#attempt = new AbortController();
        return this.#pipeline(AbortSignal.any([signal, this.#attempt.signal]), sessions, reached);
      },
      // A slot that is lost again and again is not made anew without a pause.
      () => this.#attempt.signal.aborted && this.#slotLost.size === 0,
    );
    if (this.#condition.failure !== undefined) await this.#stopLanes();
  }

  async #stopLanes(): Promise<void> {
    await Promise.all([this.#forward.stop(), this.#reverse.stop()]);
  }

  /** Also where the shadow failed before for another reason, which stays the one that is told. */
  async #logSpent(spent: UnderstudyError): Promise<void> {
    this.#condition.warn(spent.code, { code: spent.code, message: spent.message });
    this.#condition.fail(spent);
    await this.#stopLanes();
    await this.#budget.dropSlots(this.#ending.signal);
  }

  // --- the pipeline --------------------------------------------------------------------------------------------

  /** One attempt, from connecting to following; ends by throwing. `reached` says that an attempt got somewhere. */
  async #pipeline(signal: AbortSignal, sessions: Session[], reached: () => void): Promise<void> {
    const { settings, context } = { settings: this.#settings, context: this.#context };
    if (this.#condition.phase !== 'following') this.#condition.enter('connecting');
    const source = await openSession('source', settings.source, 'shadow');
    sessions.push(source);
    endOnAbort(source, signal, 0);
    const destination = await openSession('destination', settings.destination, 'shadow');
    sessions.push(destination);
    endOnAbort(destination, signal, 0);
    const stage: StageContext = {
      settings,
      source,
      destination,
      clock: context.clock,
      log: this.#log,
      signal,
      onFindings: (findings) => this.#condition.note(findings),
    };
    await ensureRecords(destination);
    await ensureRecords(source);
    if (!(await installDdlNotice(source)))
      this.#log.info({}, 'no event trigger may be made on the source: its catalogs are compared instead');
    let state = await readState(destination, settings.migrationId);
    if (!isBefore(state?.phase ?? null, 'copying')) await assertFormat(destination, settings.format);
    const { reversePrepared = false } = state ?? {};
    // What the format names may be gone: then the change is for a decision, not for the way back to fail at.
    if (reversePrepared && (await isFormed(source, settings.format))) await this.#resumeReverse(stage);
    if (!isBefore(state?.phase ?? null, 'copying') && (await this.#schema.follow(stage)))
      state = await readState(destination, settings.migrationId);
    if (reversePrepared) await this.#resumeReverse(stage);
    const recorded = state?.phase ?? null;
    this.#condition.copySeconds = state?.copySeconds ?? 0;
    if (recorded === null) await dropLeftovers(stage);
    if (isBefore(recorded, 'copying')) await this.#buildSchema(stage);
    else this.#tables = await readTables(source.client);
    this.#named = await readNamed(destination);
    reached();
    if (!isBefore(recorded, 'copying')) await this.#barrierAgain();
    this.#forward.state.copying = isBefore(recorded, 'indexing');
    await this.#prepareCopier(source);
    await this.#renew(stage);
    await ensureStream('forward', settings.migrationId, source, destination, this.#tables);
    const unmended = await readUnmended(destination);
    this.#forward.state.unmended.clear();
    for (const name of unmended) this.#forward.state.unmended.set(name, 0);
    this.#forward.start();

    if (isBefore(recorded, 'indexing')) await this.#copy(stage);
    await this.#mend(stage);
    if (isBefore(recorded, 'analyzing')) await this.#index(stage);
    if (isBefore(recorded, 'following')) await this.#analyze(stage);
    await this.#follow(stage);
  }

  /** Another slot in place of a lost one. */
  async #renew(stage: StageContext): Promise<void> {
    const lost = this.#slotLost.has('forward');
    if (lost) await this.#forward.stop();
    if (this.#forward.running) return;
    const { migrationId, subsets } = this.#settings;
    const context = { ...stage, migrationId, tables: this.#tables, subsets: subsetIds(subsets) };
    if (await renewForward(context, lost)) {
      this.#condition.enter('connecting');
      this.#verification.forget();
      this.#forward.state.forgetHistory();
    }
    this.#slotLost.delete('forward');
  }

  /** The way back, which runs from its preparation on. */
  async #resumeReverse(stage: StageContext): Promise<void> {
    if (this.#slotLost.has('reverse')) await this.#reverse.stop();
    if (this.#reverse.running) return;
    const { migrationId, subsets } = this.#settings;
    await renewReverse({ ...stage, migrationId, subsets: subsetIds(subsets) });
    this.#slotLost.delete('reverse');
    this.#startReverse();
  }

  /** What a lost slot has not told, found by comparing; see lost-slot.ts. */
  async #mend({ destination, clock, signal }: StageContext): Promise<void> {
    if (this.#forward.state.unmended.size === 0) return;
    this.#condition.enter('repairing');
    const context = {
      destination,
      clock,
      signal,
      pace: this.#pace,
      verification: this.#verification,
      throttle: this.#throttle,
      leftOut: this.#forward.state.unmended,
      onWarning: (warning: ShadowWarning | null) => this.#condition.warn(REPAIRING, warning),
    };
    await mendTables(context, this.#tables);
  }

  async #buildSchema(stage: StageContext): Promise<void> {
    await this.#condition.begin('building-schema', stage.destination, stage.signal);
    this.#tables = await buildBeforeCopy(stage);
    await ensureStream('forward', this.#settings.migrationId, stage.source, stage.destination, this.#tables);
    await this.#context.afterSchemaBuilt(this.#names());
  }

  /** Somebody may have dropped a trigger of the barrier meanwhile: no cutover would begin without it. */
  async #barrierAgain(): Promise<void> {
    try {
      await this.#context.afterSchemaBuilt(this.#names());
    } catch (error) {
      const { code, message } = asUnderstudyError(error, 'internal', 'the barrier');
      this.#log.warn(
        { code, reason: message },
        'the barrier could not be looked after; preflight will say what is missing',
      );
    }
  }

  // --- the source's schema changes -----------------------------------------------------------------------------

  /** The tables are others now: whoever remembers them forgets. The guard is up before the first row. */
  async #adopt(tables: readonly TableInfo[]): Promise<void> {
    this.#tables = tables;
    this.#named = false;
    this.#grown = true;
    this.#built.clear();
    this.#forward.state.forgetTables();
    this.#verification.forget();
    await this.#context.afterSchemaBuilt(this.#names());
  }

  async resume({ recopy }: ResumeOptions, signal: AbortSignal): Promise<void> {
    await this.#schema.resume(this.#condition.phase, recopy, signal);
  }

  async #prepareCopier(source: Session): Promise<void> {
    const { settings, context } = { settings: this.#settings, context: this.#context };
    const tables = await readLaneTables(source, this.#forms(), 'source', 'destination');
    this.#forward.state.tables ??= tables;
    this.#copier = new Copier(
      this.#forward.state,
      [...tables.values()].filter(({ info }) => !isUnlogged(info)),
      { ...settings, runId: randomUUID() },
      {
        clock: context.clock,
        log: this.#log,
        pace: this.#pace,
      },
    );
    await this.#copier.load();
  }

  async #copy(stage: StageContext): Promise<void> {
    await this.#condition.begin('copying', stage.destination, stage.signal);
    await this.#condition.copying(stage.destination, () =>
      this.#throttle.during(async () => this.#copier?.run(stage.signal)),
    );
    this.#forward.state.copying = false;
    this.#forward.state.delivered.clear();
  }

  async #index(stage: StageContext): Promise<void> {
    await this.#condition.begin('indexing', stage.destination, stage.signal);
    await buildAfterCopy(stage);
  }

  async #analyze(stage: StageContext): Promise<void> {
    await this.#condition.begin('analyzing', stage.destination, stage.signal);
    await this.#name(stage.destination);
    const analyze = this.#grown ? analyzeStale : analyzeAll;
    await analyze(stage.destination, this.#tablesOn('destination'), stage.signal);
    // What the destination looks like when it is complete: the way back's identities are part of it.
    const tables = await readTables(stage.destination.client);
    await ensureIdentities(stage.destination, tables, stage);
    if (this.#grown && this.#reverseStarted) await this.#growReverse(stage.destination, tables);
    await writeFingerprint(stage.destination, 'destination', await readFingerprint(stage.destination.client));
  }

  /** The destination's tables get the names that the format gives them, while nothing is applied. */
  async #name(destination: Session): Promise<void> {
    const { format } = this.#settings;
    if (!hasNames(format) || this.#named) return;
    await this.#forward.stop();
    // Before: the names may be given although the answer is lost.
    this.#forward.state.forgetTables();
    await giveNames(destination, format, this.#tables);
    this.#named = true;
    this.#forward.start();
  }

  #forms(): Forms {
    return requiredForms(this.#settings.format, this.#tables, this.#named);
  }

  #tablesOn(side: Side): readonly TableInfo[] {
    return this.#tables.map((table) => formOn(this.#forms(), table, side));
  }

  #names(): readonly ShadowTable[] {
    return this.#tables.map((table) => {
      const { schema, name } = table;
      const there = formOn(this.#forms(), table, 'destination');
      const same = there.schema === schema && there.name === name;
      return {
        schema,
        name,
        ...(same ? {} : { destination: { schema: there.schema, name: there.name } }),
        ...(there.partitions === undefined ? {} : { partitions: there.partitions }),
      };
    });
  }

  /** The way back learns of the new tables while nothing comes by it yet. */
  async #growReverse(destination: Session, tables: readonly TableInfo[]): Promise<void> {
    await ensurePublication(
      destination,
      streamNames(this.#settings.migrationId, 'reverse').publication,
      tables,
    );
    await this.#reverse.stop();
    this.#reverse.state.forgetTables();
    this.#reverse.start();
  }

  /** Everything is there. Looks at both catalogs now and then, and trims the recently changed keys, until stopped. */
  async #follow(stage: StageContext): Promise<void> {
    await this.#condition.begin('following', stage.destination, stage.signal);
    const { signal } = stage;
    const { trimIntervalMs } = this.#settings;
    const leading = (): Direction | null => {
      // A key that is found equal is equal whichever way it is looked at: with several subsets either will do.
      const backwards = this.#reverse.state.authority.epoch > this.#forward.state.authority.epoch;
      const { lagMs } = (backwards ? this.#reverse : this.#forward).status();
      if (lagMs === null || lagMs > TRIM_LAG_MAX_MS) return null;
      return backwards ? 'reverse' : 'forward';
    };
    const trimming = Promise.all([
      this.#verification.trim(leading, trimIntervalMs, signal),
      this.#conflicts.run(signal),
    ]);
    try {
      for (;;) {
        const moved = await this.#checkFingerprints(stage).catch((error: unknown) => {
          this.#log.debug({ reason: String(error) }, 'the catalogs could not be compared');
          return false;
        });
        if (moved || this.#forward.state.haltedAt !== null) this.#attempt.abort(schemaMoved());
        await this.#schema.lookAgain(signal);
      }
    } finally {
      await trimming;
    }
  }

  /** Whether the source's schema is another, and the shadow's can follow it. */
  async #checkFingerprints(stage: StageContext): Promise<boolean> {
    for (const side of ['source', 'destination'] as const) {
      const built = await this.builtFingerprint(side);
      const differences = await catalogDifferences(side, this.#settings[side], built);
      if (side === 'source' && differences.length > 0 && (await this.#canFollow(stage))) return true;
      const warning = catalogWarning(side, differences);
      this.#condition.warn(`catalog-changed ${side}`, warning);
    }
    return false;
  }

  async #canFollow({ source, destination }: StageContext): Promise<boolean> {
    return (await sourceLeads(source)) && (await readSourcePlan(destination)) !== null;
  }

  #lane(direction: Direction): Lane {
    const settings = this.#settings;
    const origin: Side = direction === 'forward' ? 'source' : 'destination';
    const target: Side = direction === 'forward' ? 'destination' : 'source';
    return new Lane(
      direction,
      {
        ...settings,
        ...streamNames(settings.migrationId, direction),
        originEndpoint: settings[origin],
        targetEndpoint: settings[target],
      },
      {
        log: this.#log,
        clock: this.#context.clock,
        random: this.#context.random ?? Math.random,
        recent: this.#recent,
        pace: this.#pace,
        retryFirstMs: settings.retryFirstMs,
        retryMaxMs: settings.retryMaxMs,
        onTrouble: (error) => this.#condition.trouble(direction, error),
        onSlotLost: (error) => this.#onSlotLost(direction, error),
        onFailed: (error) => this.#condition.fail(error),
      },
    );
  }

  #onSlotLost(direction: Direction, error: UnderstudyError): boolean {
    this.#slotLost.add(direction);
    this.#attempt.abort(new UnderstudyError(error.code, error.message, { retryable: true, cause: error }));
    return true;
  }

  #startReverse(): void {
    this.#reverseStarted = true;
    this.#reverse.start();
  }

  // --- ShadowControl -------------------------------------------------------------------------------------------

  async status(): Promise<ShadowStatus> {
    const ignored = [...this.#forward.state.ignored].map((table) => ({
      code: 'table-unknown',
      message: `${table} was made after the shadow and is not part of it`,
    }));
    const exact = this.#tables.some(isUnlogged) ? { exactMs: this.#unlogged.ms } : {};
    return Promise.resolve({
      ...this.#condition.status(this.#copier?.progress() ?? [], [
        ...ignored,
        ...(this.#budget.tight ? [LOG_TIGHT] : []),
      ]),
      streams: [
        { ...this.#forward.status(), logBytes: this.#budget.retainedBytes('source'), ...exact },
        ...(this.#reverseStarted
          ? [{ ...this.#reverse.status(), logBytes: this.#budget.retainedBytes('destination'), ...exact }]
          : []),
      ],
      lastVerify: this.#verification.last,
      steering: this.#steering.status(),
      conflicts: this.#conflicts.counts,
      ...(this.#verification.forgotten ? { unverified: true as const } : {}),
    });
  }

  /** Throws `shadow-not-ready` until the schema is built. */
  async tables(subset?: SubsetId): Promise<readonly ShadowTable[]> {
    if (this.#tables.length === 0) {
      await withSession('source', this.#settings.source, 'tables', async (session) => {
        this.#tables = await readTables(session.client);
      });
    }
    const { subsets } = this.#settings;
    if (subset === undefined || subsets.length === 0) return this.#names();
    const members = await withSession('source', this.#settings.source, 'subsets', async (session) =>
      (await readSubsetTables(session.client, subsets)).find((each) => each.subset === subset),
    );
    const named = new Set(members?.tables.map((table) => `${table.schema}.${table.name}`));
    return this.#names().filter((table) => named.has(`${table.schema}.${table.name}`));
  }

  /** Behind the fence: what no log tells comes over then. */
  async waitForMark(direction: Direction, markId: string, signal: AbortSignal): Promise<Position> {
    const position = await this.#marked(direction, markId, signal);
    await this.#unlogged.carry((direction === 'forward' ? this.#forward : this.#reverse).state, signal);
    return position;
  }

  #marked(direction: Direction, markId: string, signal: AbortSignal): Promise<Position> {
    if (direction === 'reverse' && !this.#reverseStarted) return Promise.reject(notReady('reverse'));
    return (direction === 'forward' ? this.#forward : this.#reverse).waitForMark(markId, signal);
  }

  async verify(
    options: VerifyOptions,
    signal: AbortSignal,
    onProgress?: (progress: VerifyProgress) => void,
  ): Promise<VerifyReport> {
    this.#condition.require('indexing', 'copy');
    return await this.#verification.verify(options, signal, onProgress);
  }

  async #repair(info: TableInfo, keys: readonly Key[], signal: AbortSignal): Promise<void> {
    const table = this.#forward.state.tables?.get(tableKey(info));
    if (this.#condition.phase !== 'repairing') this.#condition.require('following', 'shadow');
    if (table === undefined) throw notReady('shadow');
    const context = {
      lane: this.#forward.state,
      source: this.#settings.source,
      clock: this.#context.clock,
      runId: randomUUID(),
    };
    await repairTable(context, table, keys, signal);
  }

  async verifyRecent(
    direction: Direction,
    signal: AbortSignal,
    subset?: SubsetId,
  ): Promise<RecentVerifyReport> {
    const { state } = direction === 'forward' ? this.#forward : this.#reverse;
    const within =
      subset === undefined || state.subsets.length === 1
        ? undefined
        : (table: string): boolean => state.subsetOf(table) === subset;
    return await this.#verification.verifyRecent(direction, signal, within);
  }

  async builtFingerprint(side: Side): Promise<CatalogFingerprint> {
    const known = this.#built.get(side);
    if (known !== undefined) return known;
    const recorded = await withSession('destination', this.#settings.destination, 'fingerprint', (session) =>
      readFingerprintRecord(session, side),
    );
    if (recorded === null) throw notReady('schema');
    // Complete only now: before, a stage may still write it.
    if (this.#condition.phase === 'following') this.#built.set(side, recorded);
    return recorded;
  }

  /** Resolves once the reverse stream is connected and its lag known. */
  async prepareReverse(signal: AbortSignal): Promise<void> {
    this.#condition.require('following', 'shadow');
    const { settings } = { settings: this.#settings };
    if (!this.#reverseStarted) {
      await withSession('destination', settings.destination, 'prepare', (destination) =>
        withSession('source', settings.source, 'prepare', async (source) => {
          const tables = await readTables(destination.client);
          await ensureIdentities(destination, tables, { clock: this.#context.clock, signal });
          await ensureStream('reverse', settings.migrationId, destination, source, tables);
          await writeReversePrepared(destination, settings.migrationId);
        }),
      );
      this.#startReverse();
    }
    while (this.#reverse.status().lagBytes === null) {
      this.#condition.require('following', 'shadow');
      await this.#context.clock.sleep(10, signal);
    }
    // What they take behind the fence is known then.
    await this.#unlogged.carry(this.#forward.state, signal);
    await this.#verification.warm('forward');
    await this.#verification.warm('reverse');
  }

  async steer(command: ShadowCommand): Promise<ShadowSteering> {
    if (this.#condition.failure !== undefined) throw this.#condition.failure;
    return await this.#steering.steer(command);
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
      await analyzeStale(session, this.#tablesOn(side), signal);
      const failed = await refreshMaterializedViews(session, signal);
      const code = 'materialized-view-not-refreshed';
      const [first] = failed;
      const more = failed.length > 1 ? `, nor could ${failed.length - 1} more` : '';
      const message = `${side}: ${first?.view ?? ''} could not be refreshed (${first?.reason ?? ''})${more}`;
      this.#condition.warn(code, first === undefined ? null : { code, message });
    });
  }
}
