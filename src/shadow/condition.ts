/**
 * How a shadow is: its phase, what troubles it, what it warns of, and how long it has copied; and the loop that keeps it
 * going. One for every way of following.
 *
 * A shadow's life is a sequence of attempts, each of which ends by throwing:
 *   attempt ──retryable──► pause, growing with jitter ──► attempt        attempt ──any other──► failed, for good
 * `failed` is final for this process; what is recorded on the destination is kept. Troubles are by part, and go when the
 * part says so; warnings are by key. Each is bounded.
 */
import type { Clock } from '../core/clock.js';
import { asUnderstudyError, UnderstudyError } from '../core/errors.js';
import type { Log } from '../core/log.js';
import type { Finding, ShadowPhase, ShadowStatus, ShadowWarning } from '../core/ports.js';
import { Backoff } from './backoff.js';
import { addCopySeconds, writePhase } from './postgres/records.js';
import { closeSession, type Session } from './postgres/statement.js';

export interface ConditionContext {
  readonly log: Log;
  readonly clock: Clock;
  /** 0 ≤ x < 1, for jitter. */
  readonly random: () => number;
  readonly onPhase?: ((phase: ShadowPhase) => void) | undefined;
  /** The shadow has just failed: its parts end. */
  readonly onFailed: (error: UnderstudyError) => void;
}

export interface ConditionSettings {
  readonly migrationId: string;
  readonly retryFirstMs: number;
  readonly retryMaxMs: number;
}

const PHASE_ORDER: readonly ShadowPhase[] = [
  'building-schema',
  'copying',
  'indexing',
  'analyzing',
  'following',
];
const WARNINGS_MAX = 100;

export class Condition {
  readonly #settings: ConditionSettings;
  readonly #context: ConditionContext;
  readonly #troubles = new Map<string, UnderstudyError>();
  readonly #warnings = new Map<string, ShadowWarning>();
  #phase: ShadowPhase = 'idle';
  #failure: UnderstudyError | undefined;
  /** Of earlier attempts and processes. */
  #copySeconds = 0;
  #copyStartedMs: number | undefined;
  /** When this process began to build the shadow from nothing; undefined: it did not. */
  #builtFromMs: number | undefined;
  #readySeconds: number | undefined;

  constructor(settings: ConditionSettings, context: ConditionContext) {
    this.#settings = settings;
    this.#context = context;
  }

  get phase(): ShadowPhase {
    return this.#phase;
  }

  get failure(): UnderstudyError | undefined {
    return this.#failure;
  }

  enter(phase: ShadowPhase): void {
    if (this.#phase === phase) return;
    this.#phase = phase;
    this.#measure(phase);
    this.#context.log.info({ phase }, 'phase');
    this.#context.onPhase?.(phase);
  }

  /** How long the whole of it took; not where an earlier process, or a person's pause, has part in it. */
  #measure(phase: ShadowPhase): void {
    const nowMs = this.#context.clock.monotonicMs();
    if (phase === 'building-schema') this.#builtFromMs = nowMs;
    else if (phase === 'paused' || phase === 'connecting') this.#builtFromMs = undefined;
    else if (phase === 'following' && this.#builtFromMs !== undefined) {
      this.#readySeconds = (nowMs - this.#builtFromMs) / 1000;
      this.#builtFromMs = undefined;
    }
  }

  /** Enters a phase that is recorded. Throws the signal's reason, and what the destination does. */
  async begin(phase: ShadowPhase, destination: Session, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    await writePhase(destination, this.#settings.migrationId, phase);
    this.enter(phase);
  }

  fail(error: UnderstudyError): void {
    this.#failure ??= error;
    if (this.#phase === 'failed') return;
    this.#context.log.error({ code: error.code, reason: error.message }, 'the shadow failed');
    this.enter('failed');
    this.#context.onFailed(error);
  }

  /** Throws why it failed, where it did, and `shadow-not-ready` where it is not that far yet. */
  require(phase: ShadowPhase, what: string): void {
    if (this.#failure !== undefined) throw this.#failure;
    if (isBefore(this.#phase, phase)) throw notReady(what);
  }

  stopped(): void {
    if (this.#phase !== 'failed' && this.#phase !== 'idle') this.enter('stopped');
  }

  trouble(part: string, error: UnderstudyError | undefined): void {
    if (error === undefined) this.#troubles.delete(part);
    else this.#troubles.set(part, error);
  }

  /** null: no longer. */
  warn(key: string, warning: ShadowWarning | null): void {
    if (warning === null) this.#warnings.delete(key);
    else if (this.#warnings.has(key) || this.#warnings.size < WARNINGS_MAX) this.#warnings.set(key, warning);
  }

  note(findings: readonly Finding[]): void {
    for (const { severity, check, object, message } of findings) {
      if (severity !== 'info')
        this.warn(`${check} ${object}`, { code: check, message: `${object}: ${message}` });
    }
  }

  /** What was copied for before, from the records. */
  set copySeconds(seconds: number) {
    this.#copySeconds = seconds;
  }

  /** Runs the copy, and records how long it took, also where it is cut short. */
  async copying(destination: Session, copy: () => Promise<void>): Promise<void> {
    this.#copyStartedMs = this.#context.clock.monotonicMs();
    try {
      await copy();
    } finally {
      const seconds = this.#runningSeconds();
      this.#copyStartedMs = undefined;
      this.#copySeconds += seconds;
      await addCopySeconds(destination, this.#settings.migrationId, seconds).catch(() => undefined);
    }
  }

  #runningSeconds(): number {
    const startedMs = this.#copyStartedMs;
    return startedMs === undefined ? 0 : (this.#context.clock.monotonicMs() - startedMs) / 1000;
  }

  status(
    tables: ShadowStatus['tables'],
    more: readonly ShadowWarning[] = [],
  ): Pick<ShadowStatus, 'phase' | 'tables' | 'copy' | 'error'> & {
    readonly warnings: readonly ShadowWarning[];
  } {
    const error = this.#failure ?? [...this.#troubles.values()][0];
    return {
      phase: this.#phase,
      tables,
      copy: {
        rows: tables.reduce((sum, table) => sum + table.rowsCopied, 0),
        seconds: this.#copySeconds + this.#runningSeconds(),
        ...(this.#readySeconds === undefined ? {} : { readySeconds: this.#readySeconds }),
      },
      error: error === undefined ? null : described(error),
      warnings: [...this.#warnings.values(), ...more],
    };
  }

  /**
   * Attempts until the signal aborts or the shadow fails. The connections an attempt leaves in `sessions` are closed behind it;
   * `reached` says that it got somewhere, so that the pauses begin anew. `again`: whether it ended on purpose, for another.
   */
  async keepTrying(
    signal: AbortSignal,
    attempt: (sessions: Session[], reached: () => void) => Promise<void>,
    again: () => boolean = () => false,
  ): Promise<void> {
    const { clock, log, random } = this.#context;
    const { retryFirstMs, retryMaxMs } = this.#settings;
    const backoff = new Backoff({ firstMs: retryFirstMs, maxMs: retryMaxMs, random });
    const reached = (): void => {
      backoff.reset();
      this.trouble('engine', undefined);
    };
    while (!signal.aborted) {
      const sessions: Session[] = [];
      try {
        await attempt(sessions, reached);
      } catch (thrown) {
        if (signal.aborted) break;
        if (again()) continue;
        const error = this.#failure ?? asUnderstudyError(thrown, 'internal', 'the shadow');
        if (!error.retryable) {
          this.fail(error);
          break;
        }
        const pauseMs = backoff.next();
        this.trouble('engine', error);
        log.warn({ code: error.code, reason: error.message, pauseMs }, 'the shadow was interrupted');
        await clock.sleep(pauseMs, signal).catch(() => undefined);
      } finally {
        await Promise.all(sessions.map((session) => closeSession(session)));
      }
    }
  }
}

/** What `status` shows of an error. */
export function described(error: UnderstudyError): NonNullable<ShadowStatus['error']> {
  const { code, message, advice } = error;
  return { code, message, ...(advice === undefined ? {} : { advice }) };
}

/** Whether a shadow at `phase` has not come to `other` yet; null is before the first. */
export function isBefore(phase: ShadowPhase | null, other: ShadowPhase): boolean {
  return phase === null || PHASE_ORDER.indexOf(phase) < PHASE_ORDER.indexOf(other);
}

export function notReady(what: string): UnderstudyError {
  return new UnderstudyError('shadow-not-ready', `the ${what} is not ready yet`, {
    advice: 'Wait until `understudy status` shows the phase following.',
  });
}
