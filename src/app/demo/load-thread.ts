/** The load on a thread of its own, so that drawing progress bars can't disturb what is measured. */
import { Worker } from 'node:worker_threads';
import { UnderstudyError } from '../../core/errors.js';
import { ThreadCaller } from '../../core/thread-call.js';
import type { LoadOptions, LoadResult, LoadSnapshot, SessionCheck, WindowFigures } from './load.js';

export class LoadThread implements AsyncDisposable {
  readonly #worker: Worker;
  readonly #calls: ThreadCaller;

  private constructor() {
    this.#worker = new Worker(new URL('./load-worker.js', import.meta.url));
    this.#calls = new ThreadCaller(this.#worker);
    this.#worker.on('error', (error) =>
      this.#calls.close(
        new UnderstudyError('internal', `the load stopped: ${error.message}`, { cause: error }),
      ),
    );
    this.#worker.on('exit', () => this.#calls.close(new UnderstudyError('cancelled', 'the load has ended')));
  }

  /** Resolves once every client is connected and at work. */
  static async start(options: LoadOptions): Promise<LoadThread> {
    const thread = new LoadThread();
    try {
      await thread.#calls.call('start', options);
      return thread;
    } catch (error) {
      await thread[Symbol.asyncDispose]();
      throw error;
    }
  }

  snapshot(): Promise<LoadSnapshot> {
    return this.#calls.call('snapshot', undefined);
  }

  openWindow(): Promise<void> {
    return this.#calls.call('openWindow', undefined);
  }

  closeWindow(): Promise<WindowFigures> {
    return this.#calls.call('closeWindow', undefined);
  }

  checkSessions(): Promise<SessionCheck> {
    return this.#calls.call('checkSessions', undefined);
  }

  stop(): Promise<LoadResult> {
    return this.#calls.call('stop', undefined);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#worker.terminate();
  }
}
