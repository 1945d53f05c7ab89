/** The shadow's thread: started again when it crashes, ended in order when it is to end. */
import type { Clock } from '../core/clock.js';
import { UnderstudyError } from '../core/errors.js';
import type { Log } from '../core/log.js';
import type { LatencyWindow, ShadowControl, ShadowPhase, ShadowTable, TouchedRows } from '../core/ports.js';
import { SHADOW_WORKER, ShadowClient } from '../shadow/client.js';
import type { ShadowWorkerData } from '../shadow/worker.js';
import type { ResolvedConfig } from './config.js';
import { SupervisedThread } from './supervised-thread.js';
import type { ShadowHolder } from './thread-shadow.js';

export interface ShadowThreadOptions {
  readonly config: ResolvedConfig;
  readonly log: Log;
  readonly clock: Clock;
  readonly afterSchemaBuilt: (tables: readonly ShadowTable[]) => Promise<void>;
  readonly onPhase: (phase: ShadowPhase) => void;
}

/** Closing connections in order takes no longer; what is cut off then is resumed by the next process. */
const STOP_TIMEOUT_MS = 5000;

export class ShadowThread implements ShadowHolder {
  readonly #thread: SupervisedThread<ShadowClient>;
  readonly #clock: Clock;
  readonly #log: Log;
  #state: 'idle' | 'started' | 'stopped' = 'idle';

  constructor({ config, log, clock, afterSchemaBuilt, onPhase }: ShadowThreadOptions) {
    this.#clock = clock;
    this.#log = log;
    const { enabled: _, mirrorRingBytes: _ring, ...settings } = config.shadow;
    const workerData: ShadowWorkerData = {
      options: {
        ...settings,
        source: config.source,
        destination: config.destination,
        migrationId: config.migration.id,
        subsets: config.subsets,
      },
      logLevel: config.log.level,
    };
    this.#thread = new SupervisedThread({
      name: 'shadow',
      entry: SHADOW_WORKER,
      workerData,
      attach: (worker) => new ShadowClient(worker, { afterSchemaBuilt, onPhase }),
      begin: (client) => client.start(),
      detach: (client, error) => client.close(error),
      log,
      clock,
    });
  }

  get current(): ShadowControl | undefined {
    return this.#thread.current;
  }

  /** Rejects where there is no thread, or it does not follow by what passes the proxy. */
  async touched(rows: TouchedRows): Promise<void> {
    const client = this.#thread.current;
    if (client === undefined) throw new UnderstudyError('shadow-not-ready', 'the shadow is not running');
    await client.touched(rows);
  }

  /** Lost where there is no thread: nothing is copied then. */
  latency(window: LatencyWindow): void {
    this.#thread.current?.latency(window).catch(() => undefined);
  }

  get lastError(): UnderstudyError | undefined {
    return this.#thread.lastError;
  }

  get idlePhase(): ShadowPhase {
    switch (this.#state) {
      case 'idle':
        return 'idle';
      case 'started':
        return 'connecting';
      case 'stopped':
        return 'stopped';
    }
  }

  start(): void {
    if (this.#state !== 'idle') return;
    this.#state = 'started';
    this.#thread.start();
  }

  /** Idempotent. */
  async stop(): Promise<void> {
    const client = this.#thread.current;
    this.#state = 'stopped';
    if (client !== undefined) {
      const inTime = new AbortController();
      await Promise.race([
        client.stop().catch((error: unknown) => {
          this.#log.warn({ error: String(error) }, 'the shadow did not stop in order');
        }),
        this.#clock.sleep(STOP_TIMEOUT_MS, inTime.signal).catch(() => undefined),
      ]);
      inTime.abort();
    }
    await this.#thread.stop();
  }
}
