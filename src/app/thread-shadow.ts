/**
 * The shadow as the rest sees it: on a thread that may be starting, crashed or gone. While there is none, calls fail
 * with `shadow-not-ready`, which a cutover's preflight and the admin port understand.
 */
import type {
  CatalogFingerprint,
  ConflictRecord,
  Direction,
  ExactRequest,
  RecentVerifyReport,
  ResumeOptions,
  ShadowCommand,
  ShadowControl,
  ShadowPhase,
  ShadowStatus,
  ShadowSteering,
  Side,
  ShadowTable,
  SubsetId,
  VerifyOptions,
  VerifyProgress,
  VerifyReport,
} from '../core/ports.js';
import type { Clock } from '../core/clock.js';
import type { Position } from '../core/position.js';
import { UnderstudyError } from '../core/errors.js';

export interface ShadowHolder {
  readonly current: ShadowControl | undefined;
  readonly lastError: UnderstudyError | undefined;
  /** What `status` says while there is no thread. */
  readonly idlePhase: ShadowPhase;
}

/** A thread that does not answer by then is reported as silent. */
const STATUS_TIMEOUT_MS = 5000;

export class ThreadShadow implements ShadowControl {
  readonly #holder: ShadowHolder;
  readonly #clock: Clock;
  readonly #timeoutMs: number;
  #lastVerify: VerifyReport | null = null;
  #lastStatus: ShadowStatus | undefined;

  constructor(holder: ShadowHolder, clock: Clock, timeoutMs = STATUS_TIMEOUT_MS) {
    this.#holder = holder;
    this.#clock = clock;
    this.#timeoutMs = timeoutMs;
  }

  #require(): ShadowControl {
    const { current, lastError } = this.#holder;
    if (current !== undefined) return current;
    throw new UnderstudyError('shadow-not-ready', 'the shadow is not running', {
      cause: lastError,
      advice: 'Wait until `understudy status` shows the phase following.',
    });
  }

  async status(): Promise<ShadowStatus> {
    const { current, lastError, idlePhase } = this.#holder;
    if (current !== undefined) {
      const status = await this.#inTime(current.status());
      if (status !== undefined) {
        this.#lastVerify = status.lastVerify ?? (status.unverified === true ? null : this.#lastVerify);
        this.#lastStatus = status;
        return status;
      }
      return this.#silent(idlePhase);
    }
    return {
      phase: idlePhase,
      tables: [],
      copy: { rows: 0, seconds: 0 },
      streams: [],
      lastVerify: this.#lastVerify,
      error:
        lastError === undefined
          ? null
          : {
              code: lastError.code,
              message: lastError.message,
              ...(lastError.advice === undefined ? {} : { advice: lastError.advice }),
            },
    };
  }

  /** undefined where the thread is too busy to answer, or ended meanwhile. */
  async #inTime(answer: Promise<ShadowStatus>): Promise<ShadowStatus | undefined> {
    const answered = new AbortController();
    try {
      return await Promise.race([
        answer.catch(() => undefined),
        this.#clock.sleep(this.#timeoutMs, answered.signal).then(
          () => undefined,
          () => undefined,
        ),
      ]);
    } finally {
      answered.abort();
    }
  }

  /** What was known last, with every lag unknown: unknown is not zero. */
  #silent(idlePhase: ShadowPhase): ShadowStatus {
    const last = this.#lastStatus;
    return {
      phase: last?.phase ?? idlePhase,
      tables: last?.tables ?? [],
      copy: last?.copy ?? { rows: 0, seconds: 0 },
      streams: (last?.streams ?? []).map((stream) => ({ ...stream, lagBytes: null, lagMs: null })),
      lastVerify: this.#lastVerify,
      error: {
        code: 'shadow-not-ready',
        message: `the shadow’s thread did not answer within ${this.#timeoutMs} ms`,
        advice: 'Ask again; where it stays, look at the log.',
      },
    };
  }

  async tables(subset?: SubsetId): Promise<readonly ShadowTable[]> {
    return this.#require().tables(subset);
  }

  async waitForMark(
    direction: Direction,
    markId: string,
    signal: AbortSignal,
    subsets?: readonly SubsetId[],
  ): Promise<Position> {
    return this.#require().waitForMark(direction, markId, signal, subsets);
  }

  async verify(
    options: VerifyOptions,
    signal: AbortSignal,
    onProgress?: (progress: VerifyProgress) => void,
  ): Promise<VerifyReport> {
    const report = await this.#require().verify(options, signal, onProgress);
    // Of some tables only, it says nothing of the others.
    if (options.tables === undefined) this.#lastVerify = report;
    return report;
  }

  async verifyRecent(
    direction: Direction,
    signal: AbortSignal,
    subset?: SubsetId,
  ): Promise<RecentVerifyReport> {
    return this.#require().verifyRecent(direction, signal, subset);
  }

  async builtFingerprint(side: Side): Promise<CatalogFingerprint> {
    return this.#require().builtFingerprint(side);
  }

  async prepareReverse(signal: AbortSignal): Promise<void> {
    return this.#require().prepareReverse(signal);
  }

  async measureExact(request: ExactRequest, signal: AbortSignal): Promise<void> {
    return this.#require().measureExact(request, signal);
  }

  async steer(command: ShadowCommand): Promise<ShadowSteering> {
    return this.#require().steer(command);
  }

  async conflicts(limit: number): Promise<readonly ConflictRecord[]> {
    return this.#require().conflicts(limit);
  }

  async analyze(side: Side, signal: AbortSignal): Promise<void> {
    return this.#require().analyze(side, signal);
  }

  async resume(options: ResumeOptions, signal: AbortSignal): Promise<void> {
    return this.#require().resume(options, signal);
  }
}
