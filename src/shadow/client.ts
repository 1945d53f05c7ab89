/** The shadow as the main thread sees it: every call goes to the shadow's own thread. */
import type { MessagePort, Worker } from 'node:worker_threads';
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
  ShadowPhase,
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
import { serveThreadCalls, ThreadCaller } from '../core/thread-call.js';

/** The module that the worker of a {@link ShadowClient} runs. */
export const SHADOW_WORKER = new URL('worker.js', import.meta.url);

export interface ShadowHooks {
  /** The destination's tables are there and still empty: the write guard goes up now, before any row is copied. May be
   *  called again after a restart, as long as no row was copied. */
  readonly afterSchemaBuilt: (tables: readonly ShadowTable[]) => Promise<void>;
  readonly onPhase?: (phase: ShadowPhase) => void;
}

export class ShadowClient implements ShadowControl {
  readonly #caller: ThreadCaller;

  /** `port` leads to a worker that runs {@link SHADOW_WORKER} with `ShadowWorkerData`. */
  constructor(port: Worker | MessagePort, hooks: ShadowHooks) {
    this.#caller = new ThreadCaller(port);
    serveThreadCalls(port, {
      afterSchemaBuilt: (tables: readonly ShadowTable[]) => hooks.afterSchemaBuilt(tables),
      onPhase: (phase: ShadowPhase) => hooks.onPhase?.(phase),
    });
  }

  /** Sets the shadow going; resolves at once. */
  start(): Promise<void> {
    return this.#caller.call('start', null);
  }

  /** Resolves once everything is closed in order. */
  stop(): Promise<void> {
    return this.#caller.call('stop', null);
  }

  /** The thread is gone: fails every open call, and every later one. */
  close(error: Error): void {
    this.#caller.close(error);
  }

  status(): Promise<ShadowStatus> {
    return this.#caller.call('status', null);
  }

  /** What passed the proxy, for a shadow that follows by it. Rejects with `shadow-not-ready` before it does. */
  touched(rows: TouchedRows): Promise<void> {
    return this.#caller.call('touched', rows);
  }

  /** How long the application's statements took since the last time. */
  latency(window: LatencyWindow): Promise<void> {
    return this.#caller.call('latency', window);
  }

  tables(subset?: SubsetId): Promise<readonly ShadowTable[]> {
    return this.#caller.call('tables', subset);
  }

  waitForMark(
    direction: Direction,
    markId: string,
    signal: AbortSignal,
    subsets?: readonly SubsetId[],
  ): Promise<Position> {
    return this.#caller.call('waitForMark', { direction, markId, subsets }, { signal });
  }

  verify(
    options: VerifyOptions,
    signal: AbortSignal,
    onProgress?: (progress: VerifyProgress) => void,
  ): Promise<VerifyReport> {
    return this.#caller.call('verify', options, {
      signal,
      ...(onProgress === undefined
        ? {}
        : { onProgress: (value: unknown) => onProgress(value as VerifyProgress) }),
    });
  }

  verifyRecent(direction: Direction, signal: AbortSignal, subset?: SubsetId): Promise<RecentVerifyReport> {
    return this.#caller.call('verifyRecent', { direction, subset }, { signal });
  }

  builtFingerprint(side: Side): Promise<CatalogFingerprint> {
    return this.#caller.call('builtFingerprint', side);
  }

  prepareReverse(signal: AbortSignal): Promise<void> {
    return this.#caller.call('prepareReverse', null, { signal });
  }

  measureExact(request: ExactRequest, signal: AbortSignal): Promise<void> {
    return this.#caller.call('measureExact', request, { signal });
  }

  steer(command: ShadowCommand): Promise<ShadowSteering> {
    return this.#caller.call('steer', command);
  }

  conflicts(limit: number): Promise<readonly ConflictRecord[]> {
    return this.#caller.call('conflicts', limit);
  }

  analyze(side: Side, signal: AbortSignal): Promise<void> {
    return this.#caller.call('analyze', side, { signal });
  }

  resume(options: ResumeOptions, signal: AbortSignal): Promise<void> {
    return this.#caller.call('resume', options, { signal });
  }
}
