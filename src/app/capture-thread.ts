/** The capture and its thread. While the thread is down, the tap drops and counts; traffic notices nothing. */
import type { Clock } from '../core/clock.js';
import type { Log } from '../core/log.js';
import type { CaptureSnapshot, StatementTap, TableName } from '../core/ports.js';
import { asUnderstudyError } from '../core/errors.js';
import { CaptureClient, type CaptureOptions } from '../capture/client.js';
import { SupervisedThread } from './supervised-thread.js';

const ENTRY = new URL('../capture/worker.js', import.meta.url);
/** A thread that does not answer by then is left out of `status`. */
const SNAPSHOT_TIMEOUT_MS = 2000;

export class CaptureThread {
  readonly #client: CaptureClient;
  readonly #thread: SupervisedThread<CaptureClient>;
  readonly #clock: Clock;
  readonly #log: Log;

  constructor(options: CaptureOptions, { log, clock }: { readonly log: Log; readonly clock: Clock }) {
    this.#client = new CaptureClient(options);
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

  start(): void {
    this.#thread.start();
  }

  /** Names by which unqualified tables are resolved. */
  setTables(tables: readonly TableName[]): void {
    this.#client.setTables(tables).catch((error: unknown) => this.#explain(error));
  }

  /** null where the thread is down or doesn't answer in time. */
  async snapshot(): Promise<CaptureSnapshot | null> {
    const timeout = new AbortController();
    try {
      return await Promise.race([
        this.#client.snapshot(),
        this.#clock.sleep(SNAPSHOT_TIMEOUT_MS, timeout.signal).then(
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
    this.#client.close();
    await this.#thread.stop();
  }

  #explain(error: unknown): void {
    this.#log.debug({ error: asUnderstudyError(error, 'internal', 'capture').message }, 'capture thread');
  }
}
