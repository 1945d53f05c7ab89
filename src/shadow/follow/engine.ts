/**
 * The shadow of a database whose log is not to be had: builds it, follows it by a {@link Follower}, compares it.
 *
 * Phases, recorded as those of the shadow by `log` are (`../engine.ts`), and in the same order:
 *   connecting → building-schema → copying → indexing → analyzing → following
 * The copy is of many moments. Before unique indexes are built, and foreign keys validated, everything is compared once,
 * so that what they would stumble over is gone; where a moving source still makes one fail, it is compared again.
 *
 * On the source nothing is changed but what a cutover needs: the barrier's triggers, if they may be made, and the
 * records of the way back, once it is prepared. The way back is a lane by the destination's log: what was written by
 * the follower is tagged, and the lane skips it.
 *
 * Failing: as the shadow by `log`.
 */
import type { Clock } from '../../core/clock.js';
import { asUnderstudyError, UnderstudyError } from '../../core/errors.js';
import type { Log } from '../../core/log.js';
import type {
  CatalogFingerprint,
  ConflictRecord,
  Direction,
  ExactRequest,
  LatencyWindow,
  RecentVerifyReport,
  ResumeOptions,
  ShadowCommand,
  ShadowControl,
  ShadowStatus,
  ShadowSteering,
  Side,
  SubsetId,
  TableName,
  TouchedRows,
  VerifyOptions,
  VerifyProgress,
  VerifyReport,
} from '../../core/ports.js';
import type { Position } from '../../core/position.js';
import { connectStage } from '../attempt.js';
import { catalogDifferences, catalogWarning, readBuiltFingerprint } from '../catalog-watch.js';
import { Condition, isBefore, notReady } from '../condition.js';
import type { ShadowEngineContext } from '../engine.js';
import type { MethodChoice } from '../method.js';
import { Pace } from '../pace.js';
import { analyzeAll, analyzeStale } from '../postgres/analyze.js';
import { readApplyTables, type ApplyTable } from '../postgres/apply-table.js';
import { readFingerprint } from '../postgres/fingerprint.js';
import { ensureIdentities } from '../postgres/identity.js';
import { readTableCopies } from '../postgres/copy-records.js';
import { ensureRecords, readState } from '../postgres/records.js';
import { readSourcePlan, writeFingerprint } from '../postgres/schema-records.js';
import { withSession, type Session } from '../postgres/statement.js';
import { tableKey, type TableInfo } from '../postgres/table.js';
import { readTables } from '../postgres/tables.js';
import { RecentKeys } from '../recent-keys.js';
import { SchemaFollower, schemaMoved } from '../schema-follower.js';
import { buildBeforeCopy, type StageContext } from '../schema-stage.js';
import type { ShadowSettings } from '../settings.js';
import { Steering } from '../steering.js';
import { Throttle } from '../throttle/throttle.js';
import { isUnlogged, Unlogged } from '../unlogged.js';
import { Verification } from '../verification.js';
import { closeFollowSessions, openFollowSessions } from './follow-sessions.js';
import { Follower } from './follower.js';
import type { ChangeHints } from './hints.js';
import { InitialCopy } from './initial-copy.js';
import { builtAfterCopy } from './build-after-copy.js';
import { MirrorHints } from './mirror-hints.js';
import { PollHints } from './poll-hints.js';
import { ensureFollowRecords } from './records.js';
import { WayBack } from './way-back.js';

/** How often indexes and constraints are tried that a moving source made fail. */
const BUILD_ATTEMPTS_MAX = 8;
/** Rows that one poll of a table names, at most. */
const POLLED_KEYS_MAX = 50_000;

export class FollowEngine implements ShadowControl {
  readonly #settings: ShadowSettings;
  readonly #choice: MethodChoice;
  readonly #context: ShadowEngineContext;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #recent: RecentKeys;
  readonly #verification: Verification;
  readonly #wayBack: WayBack;
  readonly #condition: Condition;
  readonly #pace = new Pace();
  readonly #throttle: Throttle;
  readonly #unlogged: Unlogged;
  readonly #steering: Steering;
  #tables: readonly TableInfo[] = [];
  #copy: InitialCopy | undefined;
  #follower: Follower | undefined;
  #mirror: MirrorHints | undefined;
  readonly #schema: SchemaFollower;
  #stopping = new AbortController();
  /** Ends the attempt at hand, for another that looks at the source's schema first. */
  #attempt = new AbortController();
  /** Tables were added or their columns changed since the whole was built. */
  #grown = false;
  #running: Promise<void> | undefined;

  constructor(settings: ShadowSettings, choice: MethodChoice, context: ShadowEngineContext) {
    this.#settings = settings;
    this.#choice = choice;
    this.#context = context;
    this.#clock = context.clock;
    this.#log = context.log.child({ part: 'shadow', method: choice.method });
    this.#recent = new RecentKeys(settings.recentKeysMax);
    const random = context.random ?? Math.random;
    const endpoints = { source: settings.source, destination: settings.destination };
    const shared = { endpoints, clock: context.clock, log: this.#log };
    this.#condition = new Condition(settings, {
      ...shared,
      random,
      onPhase: context.onPhase,
      onFailed: (error) => this.#stopping.abort(error),
    });
    this.#schema = new SchemaFollower({
      carrier: {
        stop: () => this.#standStill(),
        standStill: () => this.#standStill(),
        halted: () => false,
        passOn: () => undefined,
      },
      ...shared,
      lookIntervalMs: settings.fingerprintIntervalMs,
      adopt: (tables) => this.#adopt(tables),
      onTrouble: (error) => this.#condition.trouble('schema', error),
      onPaused: () => this.#condition.enter('paused'),
      onCarrying: () => this.#condition.enter('copying'),
    });
    this.#wayBack = new WayBack(settings, {
      ...shared,
      random,
      recent: this.#recent,
      pace: this.#pace,
      onTrouble: (error) => this.#condition.trouble('reverse', error),
      onFailed: (error) => this.#condition.trouble('reverse', error),
    });
    this.#unlogged = new Unlogged(shared);
    this.#throttle = new Throttle(settings.throttle, {
      ...shared,
      source: settings.source,
      pace: this.#pace,
      // Nothing is followed while the first copy is made.
      shadowLagMs: () => null,
    });
    this.#steering = new Steering({
      pace: this.#pace,
      throttle: this.#throttle,
      log: this.#log,
      eagerMs: settings.pollIntervalMs,
      lanes: [this.#wayBack.lane],
      known: (name) => this.#tables.some((table) => tableKey(table) === name),
      onChange: () => {
        this.#follower?.paceChanged();
        this.#wayBack.lane.state.wake();
      },
    });
    this.#verification = new Verification({
      ...shared,
      recent: this.#recent,
      // On the way back, which is by the log, no log tells of unlogged tables.
      tables: () =>
        this.#wayBack.lane.state.authority.authoritative
          ? this.#tables.filter((table) => !isUnlogged(table))
          : this.#tables,
      // What the follower finds to differ it mends by itself.
      repair: () =>
        Promise.reject(
          new UnderstudyError('request-invalid', `rows are not repaired on request by ${choice.method}`, {
            advice:
              'This method compares and mends all the time: run `understudy verify` again a little later.',
          }),
        ),
      waitForMark: (direction, mark, signal) =>
        direction === 'forward'
          ? this.#required().waitForMark(mark, signal)
          : this.#wayBack.waitForMark(mark, signal),
    });
  }

  start(): void {
    if (this.#running !== undefined) return;
    this.#stopping = new AbortController();
    this.#running = this.#run(this.#stopping.signal);
  }

  async stop(): Promise<void> {
    this.#stopping.abort(new UnderstudyError('cancelled', 'the shadow was stopped'));
    await this.#running;
    await Promise.all([this.#follower?.stop(), this.#wayBack.stop(), this.#verification.close()]);
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
      () => this.#attempt.signal.aborted,
    );
    if (this.#condition.failure !== undefined) {
      await Promise.all([this.#follower?.stop(), this.#wayBack.stop()]);
    }
  }

  async #pipeline(signal: AbortSignal, sessions: Session[], reached: () => void): Promise<void> {
    const context = { condition: this.#condition, clock: this.#clock, log: this.#log };
    const both = await connectStage(this.#settings, context, sessions, signal);
    const stage: StageContext = { ...both, sourceReadOnly: true };
    const { source, destination } = stage;
    const { migrationId } = this.#settings;
    await ensureRecords(destination);
    await ensureFollowRecords(destination);
    let state = await readState(destination, migrationId);
    if (!isBefore(state?.phase ?? null, 'copying') && (await this.#schema.follow(stage)))
      state = await readState(destination, migrationId);
    const recorded = state?.phase ?? null;
    this.#condition.copySeconds = state?.copySeconds ?? 0;
    if (isBefore(recorded, 'copying')) await this.#buildSchema(stage);
    else {
      this.#tables = await readTables(source.client);
      await this.#barriers();
    }
    reached();
    const tables = [...(await readApplyTables(source, this.#tables)).values()];
    this.#copy = new InitialCopy(tables, this.#settings, { pace: this.#pace, clock: this.#clock });
    this.#copy.load(await readTableCopies(destination));
    const hints = this.#hints(tables);
    if (state?.reversePrepared === true) this.#wayBack.start();

    if (isBefore(recorded, 'indexing')) await this.#copyTables(hints, stage);
    const follower = await this.#follow(hints, tables);
    if (isBefore(recorded, 'analyzing')) await this.#index(follower, stage);
    if (isBefore(recorded, 'following')) await this.#analyze(stage);
    await this.#watch(stage);
  }

  async #buildSchema(stage: StageContext): Promise<void> {
    await this.#condition.begin('building-schema', stage.destination, stage.signal);
    this.#tables = await buildBeforeCopy(stage);
    await this.#barriers();
  }

  /**
   * The destination's guard must stand before its first row. The source's fence may have to do without: then it can be
   * shadowed, and a cutover is another matter.
   */
  async #barriers(): Promise<void> {
    try {
      await this.#context.afterSchemaBuilt(this.#tables.map(({ schema, name }) => ({ schema, name })));
      this.#condition.warn('source-unfenced', null);
    } catch (thrown) {
      const error = asUnderstudyError(thrown, 'internal', 'the barrier');
      if (error.code !== 'source-query-failed' || error.retryable) throw error;
      this.#condition.warn('source-unfenced', {
        code: 'source-unfenced',
        message: `the source can be shadowed, but not fenced, and so not be cut over: ${error.message}`,
      });
    }
  }

  /** What it met is of no matter any more: the schema is. */
  async #standStill(): Promise<void> {
    await this.#follower?.stop();
    this.#condition.trouble('follower', undefined);
  }

  /** The tables are others now: whoever remembers them forgets. The guard is up before the first row. */
  async #adopt(tables: readonly TableInfo[]): Promise<void> {
    this.#tables = tables;
    this.#grown = true;
    this.#verification.forget();
    await this.#barriers();
  }

  #hints(tables: readonly ApplyTable[]): ChangeHints {
    const { pollIntervalMs, versionColumns } = this.#settings;
    const polls = new PollHints(tables, { pollIntervalMs, versionColumns, keysMax: POLLED_KEYS_MAX });
    if (this.#choice.method !== 'mirror') return polls;
    this.#mirror = new MirrorHints(tables, polls, pollIntervalMs);
    return this.#mirror;
  }

  async #copyTables(hints: ChangeHints, stage: StageContext): Promise<void> {
    await this.#condition.begin('copying', stage.destination, stage.signal);
    await this.#condition.copying(stage.destination, async () => {
      const sessions = await openFollowSessions(this.#settings, stage.signal);
      try {
        const pair = { source: sessions.read, destination: sessions.write };
        await this.#throttle.during(async () => this.#copy?.run(pair, hints, stage.signal));
      } finally {
        await closeFollowSessions(sessions);
      }
    });
  }

  async #follow(hints: ChangeHints, tables: readonly ApplyTable[]): Promise<Follower> {
    await this.#follower?.stop();
    const follower = new Follower(this.#settings, hints, tables, {
      log: this.#log,
      clock: this.#clock,
      random: this.#context.random ?? Math.random,
      pace: this.#pace,
      onTrouble: (error) => this.#condition.trouble('follower', error),
      onFailed: (error) => this.#condition.fail(error),
      schemaMoved: (signal) => this.#schemaMoved(signal),
      onRefreshed: (table, keys) => this.#recent.noteKeys(table, keys),
    });
    this.#follower = follower;
    follower.start();
    return follower;
  }

  async #index(follower: Follower, stage: StageContext): Promise<void> {
    await this.#condition.begin('indexing', stage.destination, stage.signal);
    for (let attempt = 1; ; attempt += 1) {
      await follower.compareAll(false, stage.signal);
      const last = attempt >= BUILD_ATTEMPTS_MAX;
      const failed = await builtAfterCopy(stage, last);
      if (!failed) return;
      this.#log.info({ attempt }, 'an index or a constraint failed while the source moved; compared again');
    }
  }

  async #analyze(stage: StageContext): Promise<void> {
    await this.#condition.begin('analyzing', stage.destination, stage.signal);
    const analyze = this.#grown ? analyzeStale : analyzeAll;
    await analyze(stage.destination, this.#tables, stage.signal);
    // What the destination looks like when it is complete: the way back's identities are part of it.
    const tables = await readTables(stage.destination.client);
    await ensureIdentities(stage.destination, tables, stage);
    if (this.#grown) await this.#wayBack.grow(stage.destination, tables);
    await writeFingerprint(stage.destination, 'destination', await readFingerprint(stage.destination.client));
  }

  /** Everything is there. Looks at both catalogs now and then, until stopped. */
  async #watch(stage: StageContext): Promise<void> {
    await this.#condition.begin('following', stage.destination, stage.signal);
    for (;;) {
      for (const side of ['source', 'destination'] as const) {
        const moved = await this.#checkFingerprint(side, stage).catch((error: unknown) => {
          this.#log.debug({ reason: String(error) }, 'the catalogs could not be compared');
          return false;
        });
        if (moved) this.#attempt.abort(schemaMoved());
      }
      await this.#schema.lookAgain(stage.signal);
    }
  }

  /** Whether the source's schema is another, and the shadow's can follow it. */
  async #checkFingerprint(side: Side, stage: StageContext): Promise<boolean> {
    const built = await this.builtFingerprint(side);
    const differences = await catalogDifferences(side, this.#settings[side], built);
    if (side === 'source' && differences.length > 0 && (await readSourcePlan(stage.destination)) !== null) {
      if (await this.#schema.leads(stage)) return true;
    }
    this.#condition.warn(`catalog-changed ${side}`, catalogWarning(side, differences));
    return false;
  }

  /** What was refused may be so as the source's schema is another by now: then that is for whoever follows it. */
  async #schemaMoved(signal: AbortSignal): Promise<boolean> {
    const built = await this.builtFingerprint('source');
    const differences = await catalogDifferences('source', this.#settings.source, built);
    // One that is being stopped is stopped by another attempt, which has looked already.
    if (differences.length > 0 && !signal.aborted) this.#attempt.abort(schemaMoved());
    return differences.length > 0;
  }

  status(): Promise<ShadowStatus> {
    const back = this.#wayBack.status();
    const exact = this.#tables.some(isUnlogged) ? { exactMs: this.#unlogged.ms } : {};
    const reverse = back === null ? null : { ...back, ...exact };
    const compared = this.#follower?.compared();
    return Promise.resolve({
      ...this.#condition.status(this.#copy?.progress() ?? []),
      streams: [
        ...(this.#follower === undefined ? [] : [this.#follower.status()]),
        ...(reverse === null ? [] : [reverse]),
      ],
      lastVerify: this.#verification.last,
      method: {
        ...this.#choice,
        tables: compared?.tables ?? [],
        compared: compared?.compared ?? {
          tables: 0,
          waiting: 0,
          lastAt: null,
          refreshed: 0,
          wholeMs: null,
        },
      },
      steering: this.#steering.status(),
    });
  }

  /** Throws `shadow-not-ready` where nothing follows by it: what was touched is then told as lost, later. */
  touched(rows: TouchedRows): void {
    if (this.#mirror === undefined) throw notReady('mirror');
    this.#mirror.touched(rows);
  }

  async tables(): Promise<readonly TableName[]> {
    if (this.#tables.length === 0) {
      await withSession('source', this.#settings.source, 'tables', async (session) => {
        this.#tables = await readTables(session.client);
      });
    }
    return this.#tables.map(({ schema, name }) => ({ schema, name }));
  }

  /** Forward, everything is compared and mended, and nothing is written after that until the operation is over. */
  async waitForMark(
    direction: Direction,
    markId: string,
    signal: AbortSignal,
    subsets?: readonly SubsetId[],
  ): Promise<Position> {
    if (direction === 'reverse') {
      const back = await this.#wayBack.waitForMark(markId, signal);
      await this.#unlogged.carry(this.#wayBack.lane.state, signal, subsets);
      return back;
    }
    const follower = this.#required();
    // Everything is compared now: what was noted before says nothing.
    this.#recent.settleAll(this.#recent.snapshot());
    const { position, ...report } = await follower.settleExactly(signal);
    this.#log.info({ ...report, mark: markId }, 'compared behind the fence');
    return position;
  }

  async verify(
    options: VerifyOptions,
    signal: AbortSignal,
    onProgress?: (progress: VerifyProgress) => void,
  ): Promise<VerifyReport> {
    this.#condition.require('indexing', 'copy');
    return await this.#verification.verify(options, signal, onProgress);
  }

  async verifyRecent(direction: Direction, signal: AbortSignal): Promise<RecentVerifyReport> {
    return await this.#verification.verifyRecent(direction, signal);
  }

  async builtFingerprint(side: Side): Promise<CatalogFingerprint> {
    return await readBuiltFingerprint(side, this.#settings.destination);
  }

  /** The way back, and the measure of what a comparison of everything takes. */
  async prepareReverse(signal: AbortSignal): Promise<void> {
    this.#condition.require('following', 'shadow');
    await this.#wayBack.prepare(signal);
    await this.#required().compareAll(false, signal);
    await this.#verification.warm('forward');
    await this.#verification.warm('reverse');
  }

  /** Forward, `prepareReverse` has compared everything. */
  async measureExact(request: ExactRequest, signal: AbortSignal): Promise<void> {
    this.#condition.require('following', 'shadow');
    if (request.direction === 'forward') return;
    await this.#unlogged.measure(this.#wayBack.lane.state, request, signal);
  }

  async steer(command: ShadowCommand): Promise<ShadowSteering> {
    if (this.#condition.failure !== undefined) throw this.#condition.failure;
    return await this.#steering.steer(command);
  }

  async resume({ recopy }: ResumeOptions, signal: AbortSignal): Promise<void> {
    await this.#schema.resume(this.#condition.phase, recopy, signal);
  }

  /** What is written past the guard is found by comparing, and mended as any other difference. */
  conflicts(): Promise<readonly ConflictRecord[]> {
    return Promise.reject(
      new UnderstudyError('request-invalid', `conflicts are not told apart by ${this.#choice.method}`, {
        advice: 'This method compares and mends all the time, the source’s rows winning.',
      }),
    );
  }

  latency(window: LatencyWindow): void {
    this.#throttle.hear(window);
  }

  async analyze(side: Side, signal: AbortSignal): Promise<void> {
    await withSession(side, this.#settings[side], 'analyze', (session) =>
      analyzeStale(session, this.#tables, signal),
    );
  }

  #required(): Follower {
    if (this.#follower === undefined) throw notReady('copy');
    return this.#follower;
  }
}
