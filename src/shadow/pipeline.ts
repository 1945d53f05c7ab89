/**
 * How a shadow by `log` comes to be and goes on: one attempt after the other, each from connecting to following.
 *
 * Phases, each recorded on the destination when it begins, so that a process killed at any point goes on there:
 *   connecting → building-schema → copying → indexing → analyzing → following
 * `repairing`, between the copy's end and what is next, is on record table by table (lost-slot.ts). A change of the
 * source's schema takes the shadow back to `copying`, with what it changed still to do, or to `paused`, which is not
 * recorded: the next start finds the same change (schema-follower.ts).
 *
 * An attempt ends by throwing, and everything it held but the lanes with it: for another at once, where it was ended on
 * purpose (`interrupt`: the schema moved, or a slot is lost); behind a pause, where the error is retryable; for good
 * else (condition.ts).
 *
 * Invariants
 * - The write guard is up before the first row of a table is copied, also of one that is new.
 * - The destination's tables get other names, or other columns, only while the forward lane is at rest.
 * - The forward lane starts only once its copier, its slot and what is still to be mended are known.
 */
import { randomUUID } from 'node:crypto';
import type { Clock } from '../core/clock.js';
import type { Log } from '../core/log.js';
import type {
  CatalogFingerprint,
  Direction,
  ResumeOptions,
  ShadowPhase,
  ShadowStatus,
  ShadowTable,
  ShadowWarning,
  Side,
} from '../core/ports.js';
import { asUnderstudyError, type UnderstudyError } from '../core/errors.js';
import { connectStage } from './attempt.js';
import { catalogDifferences, catalogWarning, readBuiltFingerprint } from './catalog-watch.js';
import { isBefore, type Condition } from './condition.js';
import type { Conflicts } from './conflicts/conflicts.js';
import { Copier } from './copier.js';
import { isFormed, readLaneTables } from './format/forms.js';
import { hasNames } from './format/names.js';
import { giveNames, readNamed } from './format/naming.js';
import { mendTables, REPAIRING } from './mending.js';
import type { Pace } from './pace.js';
import { analyzeAll, analyzeStale } from './postgres/analyze.js';
import { installDdlNotice, noNotice } from './postgres/ddl-notice.js';
import { readFingerprint, type FingerprintDifference } from './postgres/fingerprint.js';
import { ensureIdentities } from './postgres/identity.js';
import { ensureRecords, readState } from './postgres/records.js';
import {
  assertFormat,
  readDestinationPlan,
  readSourcePlan,
  writeFingerprint,
} from './postgres/schema-records.js';
import type { Session } from './postgres/statement.js';
import type { TableInfo } from './postgres/table.js';
import { readTables } from './postgres/tables.js';
import { recordDestinationPlan } from './schema-back.js';
import { laneCarrier, SchemaFollower, schemaMoved, sourceLeads } from './schema-follower.js';
import {
  buildAfterCopy,
  buildBeforeCopy,
  dropLeftovers,
  ensureStream,
  type StageContext,
} from './schema-stage.js';
import type { ShadowSettings } from './settings.js';
import type { ShadowTables } from './shadow-tables.js';
import type { Streams } from './streams.js';
import type { Throttle } from './throttle/throttle.js';
import { isUnlogged } from './unlogged.js';
import type { Verification } from './verification.js';

export interface PipelineContext {
  readonly log: Log;
  readonly clock: Clock;
  readonly condition: Condition;
  readonly tables: ShadowTables;
  readonly streams: Streams;
  readonly pace: Pace;
  readonly throttle: Throttle;
  readonly conflicts: Conflicts;
  readonly verification: Verification;
  /** The destination's tables are there and still empty: the write guard goes up now, before any row is copied. */
  readonly afterSchemaBuilt: (tables: readonly ShadowTable[]) => Promise<void>;
}

/** What is done there waits for the stream. */
const COPY_PHASES: ReadonlySet<ShadowPhase> = new Set(['copying', 'indexing', 'analyzing']);

/** While a lane is further behind, its changed keys are not compared: both servers have better things to do. */
const TRIM_LAG_MAX_MS = 1000;

export class Pipeline {
  readonly #settings: ShadowSettings;
  readonly #context: PipelineContext;
  readonly #schema: SchemaFollower;
  readonly #built = new Map<Side, CatalogFingerprint>();
  #copier: Copier | undefined;
  /** Tables were added or their columns changed since the whole was built. */
  #grown = false;
  #attempt = new AbortController();

  constructor(settings: ShadowSettings, context: PipelineContext) {
    this.#settings = settings;
    this.#context = context;
    const { clock, log, condition, streams } = context;
    this.#schema = new SchemaFollower({
      carrier: laneCarrier(streams.forward),
      sourceLeads: ({ source: from }) => sourceLeads(from),
      clock,
      log,
      lookIntervalMs: settings.fingerprintIntervalMs,
      adopt: (tables) => this.#adopt(tables),
      onTrouble: (error) => condition.trouble('schema', error),
      onPaused: () => condition.enter('paused'),
      onCarrying: () => condition.enter('copying'),
    });
    const { state } = streams.forward;
    streams.reverse.state.onSchemaNotice = () => this.#schema.notice();
    state.onSchemaNotice = () => {
      this.#schema.notice();
      // A stream that stands holds up the copy too; where everything is copied, the look is enough.
      if (state.haltedAt !== null && COPY_PHASES.has(condition.phase)) this.interrupt(schemaMoved());
    };
  }

  /** Attempts until the signal aborts or the shadow fails. */
  async run(signal: AbortSignal): Promise<void> {
    const { condition, streams } = this.#context;
    await condition.keepTrying(
      signal,
      (sessions, reached) => {
        this.#attempt = new AbortController();
        return this.#once(AbortSignal.any([signal, this.#attempt.signal]), sessions, reached);
      },
      // A slot that is lost again and again is not made anew without a pause.
      () => this.#attempt.signal.aborted && !streams.slotLost,
    );
  }

  /** Ends the attempt at hand, for another that looks at the slots and the source's schema first. */
  interrupt(reason: UnderstudyError): void {
    this.#attempt.abort(reason);
  }

  /** See `ShadowControl.resume`. */
  async resume({ recopy }: ResumeOptions, signal: AbortSignal): Promise<void> {
    await this.#schema.resume(this.#context.condition.phase, recopy, signal);
  }

  progress(): ShadowStatus['tables'] {
    return this.#copier?.progress() ?? [];
  }

  /** What the schema of `side` was when the shadow was built. Throws `shadow-not-ready` before that. */
  async builtFingerprint(side: Side): Promise<CatalogFingerprint> {
    const known = this.#built.get(side);
    if (known !== undefined) return known;
    const recorded = await readBuiltFingerprint(side, this.#settings.destination);
    // Complete only now: before, a stage may still write it.
    if (this.#context.condition.phase === 'following') this.#built.set(side, recorded);
    return recorded;
  }

  /** From connecting to following; ends by throwing. `reached` says that an attempt got somewhere. */
  async #once(signal: AbortSignal, sessions: Session[], reached: () => void): Promise<void> {
    const { settings, context } = { settings: this.#settings, context: this.#context };
    const { condition, streams, tables } = context;
    const stage = await this.#connect(signal, sessions);
    const { source, destination } = stage;
    let state = await readState(destination, settings.migrationId);
    if (!isBefore(state?.phase ?? null, 'copying')) await assertFormat(destination, settings.format);
    const { reversePrepared = false } = state ?? {};
    // What the format names may be gone: then the change is for a decision, not for the way back to fail at.
    if (reversePrepared && (await isFormed(source, settings.format))) await streams.resumeReverse(stage);
    if (!isBefore(state?.phase ?? null, 'copying') && (await this.#schema.follow(stage)))
      state = await readState(destination, settings.migrationId);
    if (reversePrepared) await streams.resumeReverse(stage);
    const recorded = state?.phase ?? null;
    condition.copySeconds = state?.copySeconds ?? 0;
    if (recorded === null) await dropLeftovers(stage);
    if (isBefore(recorded, 'copying')) await this.#buildSchema(stage);
    else tables.all = await readTables(source.client);
    tables.named = await readNamed(destination);
    reached();
    if (!isBefore(recorded, 'copying')) await this.#barrierAgain();
    streams.forward.state.copying = isBefore(recorded, 'indexing');
    await this.#prepareCopier(source);
    await this.#startForward(stage);

    if (isBefore(recorded, 'indexing')) await this.#copy(stage);
    await this.#mend(stage);
    if (isBefore(recorded, 'analyzing')) await this.#index(stage);
    if (isBefore(recorded, 'following')) await this.#analyze(stage);
    await this.#follow(stage);
  }

  async #connect(signal: AbortSignal, sessions: Session[]): Promise<StageContext> {
    const stage = await connectStage(this.#settings, this.#context, sessions, signal);
    await ensureRecords(stage.destination);
    await ensureRecords(stage.source);
    if (!(await installDdlNotice(stage.source))) stage.log.warn({}, noNotice('source'));
    return stage;
  }

  async #buildSchema(stage: StageContext): Promise<void> {
    const { condition, tables, afterSchemaBuilt } = this.#context;
    await condition.begin('building-schema', stage.destination, stage.signal);
    tables.all = await buildBeforeCopy(stage);
    await ensureStream('forward', this.#settings.migrationId, stage.source, stage.destination, tables.all);
    await afterSchemaBuilt(tables.names());
  }

  /** Somebody may have dropped a trigger of the barrier meanwhile: no cutover would begin without it. */
  async #barrierAgain(): Promise<void> {
    const { log, tables, afterSchemaBuilt } = this.#context;
    try {
      await afterSchemaBuilt(tables.names());
    } catch (error) {
      const { code, message } = asUnderstudyError(error, 'internal', 'the barrier');
      log.warn(
        { code, reason: message },
        'the barrier could not be looked after; preflight will say what is missing',
      );
    }
  }

  /** The source's schema changed, and so did the tables: whoever remembers them forgets. */
  async #adopt(adopted: readonly TableInfo[]): Promise<void> {
    const { tables, streams, verification, afterSchemaBuilt } = this.#context;
    tables.all = adopted;
    tables.named = false;
    this.#grown = true;
    this.#built.clear();
    streams.forward.state.forgetTables();
    if (!streams.reverse.running) streams.reverse.state.forgetTables();
    verification.forget();
    await afterSchemaBuilt(tables.names());
  }

  async #prepareCopier(source: Session): Promise<void> {
    const { clock, log, pace, streams, tables } = this.#context;
    const { state } = streams.forward;
    const read = await readLaneTables(source, tables.forms(), 'source', 'destination');
    state.tables ??= read;
    this.#copier = new Copier(
      state,
      [...read.values()].filter(({ info }) => !isUnlogged(info)),
      { ...this.#settings, runId: randomUUID() },
      { clock, log, pace },
    );
    await this.#copier.load();
  }

  /** The stream, from a slot that is there; with what a lost one has not told still to be mended. */
  async #startForward(stage: StageContext): Promise<void> {
    const { condition, streams, tables, verification } = this.#context;
    const { source, destination } = stage;
    if (await streams.renew('forward', stage, tables.all)) {
      condition.enter('connecting');
      verification.forget();
    }
    await ensureStream('forward', this.#settings.migrationId, source, destination, tables.all);
    if (!streams.forward.running) await streams.noteUnmended('forward', destination);
    streams.forward.start();
  }

  async #copy(stage: StageContext): Promise<void> {
    const { condition, throttle, streams } = this.#context;
    await condition.begin('copying', stage.destination, stage.signal);
    await condition.copying(stage.destination, () =>
      throttle.during(async () => this.#copier?.run(stage.signal)),
    );
    streams.forward.state.copying = false;
    streams.forward.state.delivered.clear();
  }

  /** What a lost slot has not told, found by comparing; see lost-slot.ts. */
  async #mend({ source, destination, signal }: StageContext): Promise<void> {
    const { condition, streams, tables } = this.#context;
    for (const direction of ['forward', 'reverse'] as const) {
      const { unmended: leftOut } = streams.of(direction).state;
      if (leftOut.size === 0) continue;
      condition.enter('repairing');
      const target = direction === 'forward' ? destination : source;
      const onWarning = (warning: ShadowWarning | null): void => condition.warn(REPAIRING, warning);
      await mendTables({ ...this.#context, direction, target, signal, leftOut, onWarning }, tables.all);
    }
  }

  async #index(stage: StageContext): Promise<void> {
    await this.#context.condition.begin('indexing', stage.destination, stage.signal);
    await buildAfterCopy(stage);
  }

  async #analyze(stage: StageContext): Promise<void> {
    const { condition, streams, tables } = this.#context;
    const { destination, signal } = stage;
    await condition.begin('analyzing', destination, signal);
    await this.#name(destination);
    const analyze = this.#grown ? analyzeStale : analyzeAll;
    await analyze(destination, tables.on('destination'), signal);
    // What the destination looks like when it is complete: the way back's identities are part of it.
    const there = await readTables(destination.client);
    await ensureIdentities(destination, there, stage);
    if (this.#grown) await streams.growReverse(destination, there);
    if ((await readDestinationPlan(destination)) !== null) await recordDestinationPlan(stage);
    await writeFingerprint(destination, 'destination', await readFingerprint(destination.client));
  }

  /** The destination's tables get the names that the format gives them, while nothing is applied. */
  async #name(destination: Session): Promise<void> {
    const { format } = this.#settings;
    const { tables, streams } = this.#context;
    if (!hasNames(format) || tables.named) return;
    await streams.forward.stop();
    // Before: the names may be given although the answer is lost.
    streams.forward.state.forgetTables();
    await giveNames(destination, format, tables.all);
    tables.named = true;
    streams.forward.start();
  }

  /** Everything is there. Looks at both catalogs now and then, and trims the recently changed keys, until stopped. */
  async #follow(stage: StageContext): Promise<void> {
    const { condition, log, streams, verification, conflicts } = this.#context;
    await condition.begin('following', stage.destination, stage.signal);
    const { signal } = stage;
    const trimming = Promise.all([
      verification.trim(() => this.#trimmable(), this.#settings.trimIntervalMs, signal),
      conflicts.run(signal),
    ]);
    try {
      for (;;) {
        const moved = await this.#checkFingerprints(stage).catch((error: unknown) => {
          log.debug({ reason: String(error) }, 'the catalogs could not be compared');
          return false;
        });
        const halted = streams.forward.state.haltedAt !== null;
        if (moved || (halted && (await this.#schema.leads(stage)))) this.interrupt(schemaMoved());
        await this.#schema.lookAgain(signal);
      }
    } finally {
      await trimming;
    }
  }

  /** A key that is found equal is equal whichever way it is looked at: with several subsets either will do. */
  #trimmable(): Direction | null {
    const { streams } = this.#context;
    const direction = streams.leading;
    const { lagMs } = streams.of(direction).status();
    return lagMs === null || lagMs > TRIM_LAG_MAX_MS ? null : direction;
  }

  /** Whether the destination's schema was another while it leads, and the source's is brought to it. */
  async #followBack(stage: StageContext, differences: readonly FingerprintDifference[]): Promise<boolean> {
    const { streams } = this.#context;
    if (differences.length === 0) {
      // Its way back was prepared before this was recorded.
      if (streams.reverseBegun && (await readDestinationPlan(stage.destination)) === null)
        await recordDestinationPlan(stage);
      return false;
    }
    const standStill = async (): Promise<void> => {
      await laneCarrier(streams.reverse).standStill(stage.destination);
      await streams.forward.stop();
    };
    const goOn = (): void => {
      streams.forward.start();
      streams.reverse.start();
    };
    return await this.#schema.followBack({ ...stage, lane: streams.reverse.state, standStill, goOn });
  }

  /** Whether either side's schema is another, and the other's follows it. */
  async #checkFingerprints(stage: StageContext): Promise<boolean> {
    for (const side of ['source', 'destination'] as const) {
      const built = await this.builtFingerprint(side);
      const differences = await catalogDifferences(side, this.#settings[side], built);
      if (side === 'source' && differences.length > 0) {
        if ((await this.#schema.leads(stage)) && (await readSourcePlan(stage.destination)) !== null)
          return true;
      }
      if (side === 'destination' && (await this.#followBack(stage, differences))) return true;
      this.#context.condition.warn(`catalog-changed ${side}`, catalogWarning(side, differences));
    }
    return false;
  }
}
