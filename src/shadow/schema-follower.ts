/**
 * Keeps the shadow's schema the source's, by whatever way it follows: at the beginning of each of the engine's attempts, and between two looks at the
 * catalogs while it follows.
 *
 * States: at rest → carrying (the forward stream stands) → at rest, the engine's phase being `copying` again; or
 * → paused (the forward stream stands, its slot keeps the log) → at rest, by a decision, because the change was undone, or
 * because the destination leads by now.
 * Nothing of this is recorded but what schema-follow.ts records: a new process finds the same differences.
 *
 * A stream that met a relation it does not know stops there. Where the schemas turn out to be the same all the same, the
 * change was undone since, and the stream passes that relation from then on.
 *
 * A change that comes beside a cutover or a rollback waits until that is over, with the streams as they are: it may need
 * them. Who leads then decides whether there is anything to follow; schema-follow.ts asks once more, where it acts.
 */
import { randomUUID } from 'node:crypto';
import type { Clock } from '../core/clock.js';
import { UnderstudyError } from '../core/errors.js';
import type { Log } from '../core/log.js';
import type { ShadowPhase } from '../core/ports.js';
import { emitMessageSql } from '../core/postgres.js';
import type { Lane } from './lane.js';
import { readAuthority } from './follow/authority.js';
import { acceptBack, followBack, type BackContext } from './schema-back.js';
import { acceptSchema, followSchema, notResumed, obstacleError } from './schema-follow.js';
import type { StageContext } from './schema-stage.js';
import { readProgress } from './postgres/stream-records.js';
import { run, type Session } from './postgres/statement.js';
import type { TableInfo } from './postgres/table.js';

/** The stream has that long to apply what came before a change of the schema. */
const STAND_STILL_MS = 10_000;
/** How often it is asked whether an open cutover or rollback is over. */
const OPERATION_LOOK_MS = 200;

/** What carries rows to the destination, and must not while its tables are changed. */
export interface Carrier {
  /** Ends what runs; whoever comes behind the schema starts it again. Idempotent. */
  readonly stop: () => Promise<void>;
  /** As `stop`; what was written before the change of the schema is carried first, as far as that can be. */
  readonly standStill: (source: Session) => Promise<void>;
  /** It met something that it does not know, and stands there. */
  readonly halted: () => boolean;
  /** Both schemas are the same: what it met is nothing that they have. */
  readonly passOn: () => void;
}

export interface SchemaFollowerContext {
  readonly carrier: Carrier;
  /** Asked beside the journal. */
  readonly sourceLeads?: (stage: StageContext) => Promise<boolean>;
  readonly clock: Clock;
  readonly log: Log;
  readonly lookIntervalMs: number;
  /** The shadow's tables are these now; nothing is written to them yet. */
  readonly adopt: (tables: readonly TableInfo[]) => Promise<void>;
  /** Why the shadow is paused; undefined once it is not. */
  readonly onTrouble: (error: UnderstudyError | undefined) => void;
  readonly onPaused: () => void;
  /** The shadow is about to be changed; until it follows again, no cutover may begin. */
  readonly onCarrying: () => void;
}

interface Decision {
  readonly recopy: readonly string[];
  readonly done: () => void;
  readonly failed: (error: unknown) => void;
}

/** As far as the way back has read. While the destination leads anything, the source's schema is nobody's model. */
export async function sourceLeads(source: Session): Promise<boolean> {
  const progress = await readProgress(source, 'reverse');
  if (progress === null) return true;
  const parts = Object.values(progress.subsets ?? {});
  return !progress.authoritative && parts.every(({ authoritative }) => !authoritative);
}

export class SchemaFollower {
  readonly #context: SchemaFollowerContext;
  /** Wakes whoever waits between two looks at the catalogs. */
  #wake: () => void = () => undefined;
  /** Something was noticed that no look has followed yet. */
  #noticed = false;
  #decision: Decision | undefined;
  #pausedFor: string | undefined;

  constructor(context: SchemaFollowerContext) {
    this.#context = context;
  }

  /** A message said that the schema changed, or the stream met a table it does not know. */
  notice(): void {
    this.#noticed = true;
    this.#wake();
  }

  /** Whether the source's schema is the model: the source leads everything, as far as anybody says. */
  async leads(stage: StageContext): Promise<boolean> {
    if ((await readAuthority(stage.destination, false)).kind === 'follows') return false;
    return (await this.#context.sourceLeads?.(stage)) ?? true;
  }

  /**
   * Brings the destination to the source's schema, or waits until somebody has, or until the destination leads. Whether
   * anything was changed.
   */
  async follow(stage: StageContext): Promise<boolean> {
    const { source, signal } = stage;
    const { carrier, onTrouble, onCarrying, adopt } = this.#context;
    const hooks = { standStill: () => carrier.standStill(source), onCarrying };
    for (;;) {
      signal.throwIfAborted();
      if (!(await this.leads(stage))) {
        this.#leavePause();
        return false;
      }
      // It would only stop at the same place again.
      if (carrier.halted()) await carrier.stop();
      const outcome = await followSchema(stage, hooks);
      if (outcome.kind === 'later') {
        if (this.#pausedFor === undefined) await this.#operationOver(stage);
        else if (await this.#decided(stage.signal, (recopy) => acceptSchema(stage, recopy))) return true;
        continue;
      }
      if (outcome.kind === 'obstructed') {
        await carrier.stop();
        this.#pause(obstacleError(outcome.obstacles));
        if (await this.#decided(stage.signal, (recopy) => acceptSchema(stage, recopy))) return true;
        continue;
      }
      this.#pausedFor = undefined;
      onTrouble(undefined);
      if (outcome.kind === 'carried') {
        await adopt(outcome.tables);
        return true;
      }
      carrier.passOn();
      return false;
    }
  }

  /**
   * Brings the source to the schema of a destination that leads; or waits, with both streams as they are, until somebody
   * has, or the change was undone. Whether anything is another now, for the next attempt.
   */
  async followBack(stage: BackContext): Promise<boolean> {
    for (;;) {
      stage.signal.throwIfAborted();
      const outcome = await followBack(stage);
      if (outcome.kind === 'carried') {
        await this.#context.adopt(outcome.tables);
        return true;
      }
      if (outcome.kind === 'obstructed') {
        this.#pause(obstacleError(outcome.obstacles, 'destination'));
        if (await this.#decided(stage.signal, (recopy) => acceptBack(stage, recopy))) return true;
        continue;
      }
      const paused = this.#pausedFor !== undefined;
      this.#pausedFor = undefined;
      if (paused) this.#context.onTrouble(undefined);
      return paused;
    }
  }

  /** Resolves once the next look at the catalogs is due, or something was noticed. Throws the signal's reason. */
  async lookAgain(signal: AbortSignal): Promise<void> {
    this.#decision?.failed(notPaused('going on'));
    this.#decision = undefined;
    await this.#look(signal);
  }

  async #look(signal: AbortSignal): Promise<void> {
    if (!this.#noticed && this.#decision === undefined) {
      const early = new AbortController();
      this.#wake = () => early.abort();
      const either = AbortSignal.any([signal, early.signal]);
      await this.#context.clock.sleep(this.#context.lookIntervalMs, either).catch(() => undefined);
      this.#wake = () => undefined;
    }
    this.#noticed = false;
    signal.throwIfAborted();
  }

  /** See `ShadowControl.resume`. Throws `request-invalid` in another phase than `paused`. */
  async resume(phase: ShadowPhase, recopy: readonly string[], signal: AbortSignal): Promise<void> {
    if (phase !== 'paused') throw notPaused(phase);
    if (this.#decision !== undefined)
      throw new UnderstudyError('busy', 'the shadow is being resumed already', { advice: 'Wait for it.' });
    let decision: Decision | undefined;
    try {
      await new Promise<void>((done, failed) => {
        decision = { recopy, done, failed };
        this.#decision = decision;
        signal.addEventListener('abort', () => failed(signal.reason as Error), { once: true });
        this.#wake();
      });
    } finally {
      if (this.#decision === decision) this.#decision = undefined;
    }
  }

  #pause(reason: UnderstudyError): void {
    const { log, onTrouble, onPaused } = this.#context;
    if (this.#pausedFor !== reason.message)
      log.warn({ reason: reason.message, advice: reason.advice }, 'the shadow is paused');
    this.#pausedFor = reason.message;
    onTrouble(reason);
    onPaused();
  }

  /** The source's schema counts for nothing now. */
  #leavePause(): void {
    this.#decision?.failed(notResumed({ kind: 'follows' }));
    this.#decision = undefined;
    if (this.#pausedFor === undefined) return;
    this.#pausedFor = undefined;
    this.#context.onTrouble(undefined);
    this.#context.log.info({}, 'the destination leads: the source’s schema is not followed');
  }

  /** Resolves once no cutover or rollback is open, or the destination leads. */
  async #operationOver({ destination, signal }: StageContext): Promise<void> {
    for (;;) {
      const { kind, operation } = await readAuthority(destination, false);
      if (kind === 'follows' || !operation) return;
      await this.#context.clock.sleep(OPERATION_LOOK_MS, signal);
    }
  }

  /** Resolves after a while, or once somebody decided; true where that brought the shadow on. */
  async #decided(
    signal: AbortSignal,
    accept: (recopy: readonly string[]) => Promise<readonly TableInfo[]>,
  ): Promise<boolean> {
    await this.#look(signal);
    const decision = this.#decision;
    if (decision === undefined) return false;
    try {
      await this.#context.adopt(await accept(decision.recopy));
      this.#pausedFor = undefined;
      this.#context.onTrouble(undefined);
      decision.done();
      return true;
    } catch (error) {
      decision.failed(error);
      return false;
    } finally {
      this.#decision = undefined;
    }
  }
}

/** A lane: everything that was written before the change is applied first, where the stream still goes. */
export function laneCarrier(forward: Lane): Carrier {
  const { state } = forward;
  return {
    stop: () => forward.stop(),
    halted: () => state.haltedAt !== null,
    passOn: () => {
      if (state.haltedAt !== null) state.settled.add(state.haltedAt);
      state.haltedAt = null;
    },
    standStill: async (source) => {
      if (state.connected && state.haltedAt === null) {
        const mark = randomUUID();
        await run(source, emitMessageSql({ t: 'mark', id: mark }), { what: 'marking the log' });
        await forward.waitForMark(mark, AbortSignal.timeout(STAND_STILL_MS)).catch(() => undefined);
      }
      await forward.stop();
    },
  };
}

function notPaused(phase: string): UnderstudyError {
  return new UnderstudyError('request-invalid', `the shadow is ${phase}, not paused`, {
    advice: 'Look at `understudy status`.',
  });
}

/** Ends an attempt, for another that looks at the source's schema first. */
export function schemaMoved(): UnderstudyError {
  return new UnderstudyError('catalog-changed', 'the source’s schema changed', { retryable: true });
}
