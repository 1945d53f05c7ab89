/**
 * A worker thread that is started again when it crashes. It never takes the process with it: traffic goes on while
 * a shadow or the capture is down.
 *
 * States: stopped → starting → running → (crashed → waiting → starting)* → stopped.
 * Invariants: at most one worker lives at a time; `current` is set only while the worker that it speaks to lives;
 * nothing is started after `stop`.
 */
import { Worker } from 'node:worker_threads';
import type { Clock } from '../core/clock.js';
import type { Log } from '../core/log.js';
import { UnderstudyError } from '../core/errors.js';
import { StateCell } from '../core/state-machine.js';

export interface ThreadOptions<T> {
  readonly name: string;
  readonly entry: URL;
  readonly workerData?: unknown;
  /** Makes what speaks to the new worker. */
  readonly attach: (worker: Worker) => T;
  /** Sets it going. A failure counts as a crash of the worker. */
  readonly begin: (client: T, worker: Worker) => Promise<void>;
  /** The worker is gone: its calls must be failed with `error`. */
  readonly detach: (client: T, error: UnderstudyError) => void;
  readonly log: Log;
  readonly clock: Clock;
  readonly backoffMs?: { readonly first: number; readonly most: number };
}

type State = 'stopped' | 'starting' | 'running' | 'waiting';

/**
 * Half-spaces of 4 MiB where V8 takes 16: a thread that works through a backlog fills whatever it is given, and
 * collecting more often cost it no time that could be measured.
 */
const RESOURCE_LIMITS = { maxYoungGenerationSizeMb: 12 };
/** A worker that lived that long starts again without the delay its forerunners earned. */
const HEALTHY_AFTER_MS = 60_000;

export class SupervisedThread<T> {
  readonly #options: ThreadOptions<T>;
  readonly #state = new StateCell<State>(
    'thread',
    {
      stopped: ['starting', 'stopped'],
      starting: ['running', 'waiting', 'stopped'],
      running: ['waiting', 'stopped'],
      waiting: ['starting', 'stopped'],
    },
    'stopped',
  );
  readonly #stopping = new AbortController();
  #worker: Worker | undefined;
  #client: T | undefined;
  #crashes = 0;
  #lastError: UnderstudyError | undefined;

  constructor(options: ThreadOptions<T>) {
    this.#options = options;
  }

  /** What speaks to the living worker; undefined while there is none. */
  get current(): T | undefined {
    return this.#client;
  }

  get lastError(): UnderstudyError | undefined {
    return this.#lastError;
  }

  get crashes(): number {
    return this.#crashes;
  }

  start(): void {
    if (this.#stopping.signal.aborted) return;
    this.#state.move('starting');
    const { name, entry, workerData, clock } = this.#options;
    const worker = new Worker(entry, { name, workerData, resourceLimits: RESOURCE_LIMITS });
    const startedAt = clock.monotonicMs();
    this.#worker = worker;
    this.#lastError = undefined;
    worker.on('error', (error) => (this.#lastError = this.#crash(error)));
    worker.once('exit', (code) => this.#onExit(worker, code, clock.monotonicMs() - startedAt));
    const client = this.#options.attach(worker);
    this.#client = client;
    this.#options.begin(client, worker).then(
      () => {
        if (this.#worker === worker && this.#state.is('starting')) this.#state.move('running');
      },
      (error: unknown) => {
        if (this.#worker !== worker) return;
        this.#lastError = this.#crash(error);
        void worker.terminate();
      },
    );
  }

  #crash(error: unknown): UnderstudyError {
    const reason = error instanceof Error ? error.message : String(error);
    return new UnderstudyError('internal', `the ${this.#options.name} thread ended: ${reason}`, {
      cause: error,
      advice: 'It is started again by itself; report it with the log if it keeps ending.',
    });
  }

  #onExit(worker: Worker, code: number, livedMs: number): void {
    if (this.#worker !== worker) return;
    this.#worker = undefined;
    const client = this.#client;
    this.#client = undefined;
    const error = this.#lastError ?? this.#crash(`exit code ${code}`);
    if (client !== undefined) this.#options.detach(client, error);
    if (this.#stopping.signal.aborted) return;
    this.#crashes = livedMs > HEALTHY_AFTER_MS ? 1 : this.#crashes + 1;
    this.#state.move('waiting');
    const { first, most } = this.#options.backoffMs ?? { first: 500, most: 30_000 };
    const delayMs = Math.min(most, first * 2 ** Math.min(20, this.#crashes - 1));
    this.#options.log.error(
      { thread: this.#options.name, error: error.message, restartInMs: delayMs },
      'a thread ended unexpectedly',
    );
    this.#options.clock.sleep(delayMs, this.#stopping.signal).then(
      () => this.start(),
      () => undefined,
    );
  }

  /** Ends the worker for good. Orderly closing of what it does is the caller's, before this. */
  async stop(): Promise<void> {
    if (this.#stopping.signal.aborted) return;
    this.#stopping.abort(new UnderstudyError('cancelled', 'stopping'));
    const worker = this.#worker;
    await worker?.terminate();
    this.#state.move('stopped');
  }
}
