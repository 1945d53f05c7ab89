/** The capture and its thread. While the thread is down, the tap drops and counts; traffic notices nothing. */
import { randomBytes } from 'node:crypto';
import { hostname } from 'node:os';
import type { Clock } from '../core/clock.js';
import type { Log } from '../core/log.js';
import type { CaptureSnapshot, StatementTap } from '../core/capture-ports.js';
import type { Side, TableName } from '../core/ports.js';
import { asUnderstudyError } from '../core/errors.js';
import { CaptureClient } from '../capture/client.js';
import type { CaptureBatch } from '../capture/relay.js';
import type { SeriesSettings } from '../capture/keeper.js';
import type { ResolvedConfig } from './config.js';
import { SupervisedThread } from './supervised-thread.js';

const ENTRY = new URL('../capture/worker.js', import.meta.url);
/** A thread that does not answer by then is left out of `status`. */
const SNAPSHOT_TIMEOUT_MS = 2000;
/** For handing over what was collected when the process ends. */
const FLUSH_TIMEOUT_MS = 5000;

export class CaptureThread {
  readonly #client: CaptureClient;
  readonly #thread: SupervisedThread<CaptureClient>;
  readonly #clock: Clock;
  readonly #log: Log;

  constructor({
    config,
    log,
    clock,
  }: {
    readonly config: ResolvedConfig;
    readonly log: Log;
    readonly clock: Clock;
  }) {
    const { ringBytes, textBytesMax } = config.capture;
    this.#client = new CaptureClient({
      ringBytes,
      textBytesMax,
      series: seriesSettings(config),
      monotonicMs: () => clock.monotonicMs(),
    });
    this.#clock = clock;
    this.#log = log;
    this.#thread = new SupervisedThread({
      name: 'capture',
      entry: ENTRY,
      attach: () => this.#client,
      begin: (client, worker) => client.attach(worker),
      detach: (client, error) => client.detach(error),
      log,
      clock,
    });
  }

  get tap(): StatementTap {
    return this.#client.tap;
  }

  /** What a proxy worker has captured. */
  receive(batch: CaptureBatch): void {
    this.#client.receive(batch);
  }

  start(): void {
    this.#thread.start();
  }

  /** Names by which unqualified tables are resolved. */
  setTables(tables: readonly TableName[]): void {
    this.#client.setTables(tables).catch((error: unknown) => this.#explain(error));
  }

  /** Which side's catalogs are read first. */
  setLeader(side: Side): void {
    this.#client.setLeader(side).catch((error: unknown) => this.#explain(error));
  }

  /** Understudy's tables are about to go: nothing may make them anew. */
  async stopKeeping(): Promise<void> {
    await this.#within(FLUSH_TIMEOUT_MS, this.#client.stopKeeping());
  }

  /** null where the thread is down or doesn't answer in time. */
  async snapshot(): Promise<CaptureSnapshot | null> {
    return await this.#within(SNAPSHOT_TIMEOUT_MS, this.#client.snapshot());
  }

  /** null: it failed, or did not come in time. */
  async #within<T>(timeoutMs: number, answer: Promise<T>): Promise<T | null> {
    const timeout = new AbortController();
    try {
      return await Promise.race([
        answer,
        this.#clock.sleep(timeoutMs, timeout.signal).then(
          () => null,
          () => null,
        ),
      ]);
    } catch (error) {
      this.#explain(error);
      return null;
    } finally {
      timeout.abort();
    }
  }

  async stop(): Promise<void> {
    await this.#within(
      FLUSH_TIMEOUT_MS,
      this.#client.flush().then(() => this.#client.stopKeeping()),
    );
    this.#client.close();
    await this.#thread.stop();
  }

  #explain(error: unknown): void {
    this.#log.debug({ error: asUnderstudyError(error, 'internal', 'capture').message }, 'capture thread');
  }
}

function seriesSettings({ capture, source, destination, listen }: ResolvedConfig): SeriesSettings | null {
  if (!capture.series) return null;
  return {
    source,
    destination,
    writer: `${hostname()}:${listen.port}/${randomBytes(6).toString('hex')}`,
    keys: capture.keys,
    hotKeysMax: capture.hotKeysMax,
    flushIntervalMs: capture.flushIntervalMs,
    catalogIntervalMs: capture.catalogIntervalMs,
    minutesKeptDays: capture.minutesKeptDays,
    fiveMinutesKeptDays: capture.fiveMinutesKeptDays,
    hoursKeptDays: capture.hoursKeptDays,
  };
}
