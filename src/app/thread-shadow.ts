/**
 * The shadow as the rest sees it: on a thread that may be starting, crashed or gone. While there is none, calls fail
 * with `shadow-not-ready`, which a cutover's preflight and the admin port understand.
 */
import type {
  CatalogFingerprint,
  Direction,
  RecentVerifyReport,
  ShadowControl,
  ShadowPhase,
  ShadowStatus,
  Side,
  TableName,
  VerifyOptions,
  VerifyProgress,
  VerifyReport,
} from '../core/ports.js';
import type { Position } from '../core/position.js';
import { UnderstudyError } from '../core/errors.js';

export interface ShadowHolder {
  readonly current: ShadowControl | undefined;
  readonly lastError: UnderstudyError | undefined;
  /** What `status` says while there is no thread. */
  readonly idlePhase: ShadowPhase;
}

export class ThreadShadow implements ShadowControl {
  readonly #holder: ShadowHolder;
  #lastVerify: VerifyReport | null = null;

  constructor(holder: ShadowHolder) {
    this.#holder = holder;
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
      const status = await current.status();
      this.#lastVerify = status.lastVerify ?? this.#lastVerify;
      return status;
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

  async tables(): Promise<readonly TableName[]> {
    return this.#require().tables();
  }

  async waitForMark(direction: Direction, markId: string, signal: AbortSignal): Promise<Position> {
    return this.#require().waitForMark(direction, markId, signal);
  }

  async verify(
    options: VerifyOptions,
    signal: AbortSignal,
    onProgress?: (progress: VerifyProgress) => void,
  ): Promise<VerifyReport> {
    const report = await this.#require().verify(options, signal, onProgress);
    this.#lastVerify = report;
    return report;
  }

  async verifyRecent(direction: Direction, signal: AbortSignal): Promise<RecentVerifyReport> {
    return this.#require().verifyRecent(direction, signal);
  }

  async builtFingerprint(side: Side): Promise<CatalogFingerprint> {
    return this.#require().builtFingerprint(side);
  }

  async prepareReverse(signal: AbortSignal): Promise<void> {
    return this.#require().prepareReverse(signal);
  }

  async analyze(side: Side, signal: AbortSignal): Promise<void> {
    return this.#require().analyze(side, signal);
  }
}
