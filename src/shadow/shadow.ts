/**
 * The shadow, by whatever way it follows: chooses the way once both servers can be asked, then is the engine of that way.
 *
 * States: idle → choosing → running | failed → stopped. While choosing, only `status` and `tables` have an answer.
 */
import { asUnderstudyError, UnderstudyError } from '../core/errors.js';
import type { Log } from '../core/log.js';
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
  ShadowTable,
  SubsetId,
  TouchedRows,
  VerifyOptions,
  VerifyProgress,
  VerifyReport,
} from '../core/ports.js';
import type { Position } from '../core/position.js';
import { Backoff } from './backoff.js';
import { ShadowEngine, type ShadowEngineContext } from './engine.js';
import { isIdentity } from './format/forms.js';
import { FollowEngine } from './follow/engine.js';
import { ensureFollowRecords, readMethod, writeMethod } from './follow/records.js';
import { chooseMethod, type MethodChoice } from './method.js';
import { streamNames } from './postgres/slot.js';
import { withSession } from './postgres/statement.js';
import { SHADOW_DEFAULTS, type ShadowOptions, type ShadowSettings } from './settings.js';

type Engine = ShadowEngine | FollowEngine;

export class Shadow implements ShadowControl {
  readonly #options: ShadowOptions;
  readonly #settings: ShadowSettings;
  readonly #context: ShadowEngineContext;
  readonly #log: Log;
  #choice: MethodChoice | undefined;
  #engine: Engine | undefined;
  #trouble: UnderstudyError | undefined;
  #failed = false;
  #stopping = new AbortController();
  #choosing: Promise<void> | undefined;

  constructor(options: ShadowOptions, context: ShadowEngineContext) {
    this.#options = options;
    this.#settings = { ...SHADOW_DEFAULTS, ...options };
    this.#context = context;
    this.#log = context.log.child({ part: 'shadow' });
  }

  /** Returns at once. Idempotent. */
  start(): void {
    if (this.#choosing !== undefined) return;
    this.#stopping = new AbortController();
    this.#choosing = this.#choose(this.#stopping.signal);
  }

  async stop(): Promise<void> {
    this.#stopping.abort(new UnderstudyError('cancelled', 'the shadow was stopped'));
    await this.#choosing;
    await this.#engine?.stop();
    this.#choosing = undefined;
  }

  async #choose(signal: AbortSignal): Promise<void> {
    const { retryFirstMs, retryMaxMs } = this.#settings;
    const random = this.#context.random ?? Math.random;
    const backoff = new Backoff({ firstMs: retryFirstMs, maxMs: retryMaxMs, random });
    while (!signal.aborted && this.#engine === undefined) {
      try {
        const choice = await this.#ask();
        this.#choice = choice;
        this.#trouble = undefined;
        this.#log.info({ ...choice }, 'the shadow’s method');
        this.#engine = this.#make(choice);
        if (!signal.aborted) this.#engine.start();
      } catch (thrown) {
        const error = asUnderstudyError(thrown, 'internal', 'choosing the shadow’s method');
        this.#trouble = error;
        if (!error.retryable) {
          this.#failed = true;
          this.#log.error({ code: error.code, reason: error.message }, 'the shadow failed');
          this.#context.onPhase?.('failed');
          return;
        }
        const pauseMs = backoff.next();
        this.#log.warn({ code: error.code, reason: error.message, pauseMs }, 'the shadow could not begin');
        await this.#context.clock.sleep(pauseMs, signal).catch(() => undefined);
      }
    }
  }

  async #ask(): Promise<MethodChoice> {
    const { source, destination, migrationId, method } = this.#settings;
    return await withSession('destination', destination, 'method', async (there) => {
      const recorded = await readMethod(there, migrationId);
      return await withSession('source', source, 'method', async (here) => {
        const choice = await chooseMethod(here.client, {
          asked: method,
          slot: streamNames(migrationId, 'forward').slot,
          recorded: recorded?.method ?? null,
        });
        if (choice.method !== 'log' && !isIdentity(this.#settings.format)) throw formatByLog(choice);
        if (choice.method !== 'log' && this.#settings.subsets.length > 0) throw subsetsByLog(choice);
        if (recorded === null) {
          await ensureFollowRecords(there);
          await writeMethod(there, migrationId, choice);
        }
        return { method: choice.method, reason: recorded?.reason ?? choice.reason };
      });
    });
  }

  #make(choice: MethodChoice): Engine {
    if (choice.method === 'log') return new ShadowEngine(this.#options, this.#context);
    return new FollowEngine(this.#settings, choice, this.#context);
  }

  #required(): Engine {
    if (this.#engine !== undefined) return this.#engine;
    throw new UnderstudyError('shadow-not-ready', 'the shadow is not ready yet', {
      ...(this.#trouble === undefined ? {} : { cause: this.#trouble }),
      advice: 'Wait until `understudy status` shows the phase following.',
    });
  }

  async status(): Promise<ShadowStatus> {
    const method =
      this.#choice === undefined ? null : { ...this.#choice, tables: [], compared: NOT_COMPARED };
    if (this.#engine !== undefined) return { method, ...(await this.#engine.status()) };
    const trouble = this.#trouble;
    return {
      phase: this.#failed ? 'failed' : 'connecting',
      tables: [],
      copy: { rows: 0, seconds: 0 },
      streams: [],
      lastVerify: null,
      method,
      error:
        trouble === undefined
          ? null
          : {
              code: trouble.code,
              message: trouble.message,
              ...(trouble.advice === undefined ? {} : { advice: trouble.advice }),
            },
    };
  }

  /** Throws `shadow-not-ready` where it doesn't follow by the proxy's writes, or not yet. */
  touched(rows: TouchedRows): void {
    const engine = this.#required();
    if (engine instanceof FollowEngine) engine.touched(rows);
  }

  /** How long the application's statements took lately; of no use before it is known how the shadow follows. */
  latency(window: LatencyWindow): void {
    this.#engine?.latency(window);
  }

  async tables(subset?: SubsetId): Promise<readonly ShadowTable[]> {
    return await this.#required().tables(subset);
  }

  async waitForMark(
    direction: Direction,
    markId: string,
    signal: AbortSignal,
    subsets?: readonly SubsetId[],
  ): Promise<Position> {
    return await this.#required().waitForMark(direction, markId, signal, subsets);
  }

  async verify(
    options: VerifyOptions,
    signal: AbortSignal,
    onProgress?: (progress: VerifyProgress) => void,
  ): Promise<VerifyReport> {
    return await this.#required().verify(options, signal, onProgress);
  }

  async verifyRecent(
    direction: Direction,
    signal: AbortSignal,
    subset?: SubsetId,
  ): Promise<RecentVerifyReport> {
    return await this.#required().verifyRecent(direction, signal, subset);
  }

  async builtFingerprint(side: Side): Promise<CatalogFingerprint> {
    return await this.#required().builtFingerprint(side);
  }

  async prepareReverse(signal: AbortSignal): Promise<void> {
    await this.#required().prepareReverse(signal);
  }

  async measureExact(request: ExactRequest, signal: AbortSignal): Promise<void> {
    await this.#required().measureExact(request, signal);
  }

  async steer(command: ShadowCommand): Promise<ShadowSteering> {
    return await this.#required().steer(command);
  }

  async resume(options: ResumeOptions, signal: AbortSignal): Promise<void> {
    return this.#required().resume(options, signal);
  }

  async conflicts(limit: number): Promise<readonly ConflictRecord[]> {
    return await this.#required().conflicts(limit);
  }

  async analyze(side: Side, signal: AbortSignal): Promise<void> {
    await this.#required().analyze(side, signal);
  }
}

function formatByLog({ method, reason }: MethodChoice): UnderstudyError {
  return new UnderstudyError(
    'format-refused',
    `a format is kept only by following the log, and this shadow would follow by ${method} (${reason})`,
    { advice: 'Let the source be followed by its log (see docs/shadow.md), or take shadow.format out.' },
  );
}

function subsetsByLog({ method, reason }: MethodChoice): UnderstudyError {
  return new UnderstudyError(
    'config-invalid',
    `subsets need the source’s log, and this shadow would follow by ${method} (${reason})`,
    { advice: 'Let the source be followed by its log (see docs/shadow.md), or take `subsets` out.' },
  );
}

const NOT_COMPARED = { tables: 0, waiting: 0, lastAt: null, refreshed: 0, wholeMs: null };
