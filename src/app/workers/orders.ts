/**
 * What the workers are told, and what becomes of one that does not do it.
 *
 * Three ways: `tell` is no harm where it does not arrive; an `order` that is not acknowledged ends its worker, and is over only
 * when the system has confirmed that it is gone; `together` is done by all that have clients, or given up on all of them.
 */
import type { Clock } from '../../core/clock.js';
import { asUnderstudyError } from '../../core/errors.js';
import type { Log } from '../../core/log.js';
import type { WorkerCalls } from './messages.js';
import type { WorkerLink } from './worker-link.js';

export const START_TIMEOUT_MS = 30_000;
/** On top of what the work itself may take: for a message to come, be heard and be answered by a busy process. */
export const HEARING_MS = 2000;
const PING_EVERY_MS = 250;

export class Orders {
  readonly #links: ReadonlySet<WorkerLink>;
  readonly #deps: { readonly clock: Clock; readonly log: Log };

  /** `links`: all workers, as they come and go. */
  constructor(links: ReadonlySet<WorkerLink>, deps: { readonly clock: Clock; readonly log: Log }) {
    this.#links = links;
    this.#deps = deps;
  }

  /** What is no harm where it does not arrive. */
  tell<M extends keyof WorkerCalls>(link: WorkerLink, method: M, argument: WorkerCalls[M]): void {
    link.call(method, argument, START_TIMEOUT_MS).catch((error: unknown) => {
      this.#deps.log.debug({ worker: link.pid, method, error: String(error) }, 'a proxy worker');
    });
  }

  /** Undefined: it did not do as it was told, and is gone now. */
  async order<T, M extends keyof WorkerCalls = keyof WorkerCalls>(
    link: WorkerLink,
    method: M,
    argument: WorkerCalls[M],
    timeoutMs: number,
  ): Promise<T | undefined> {
    try {
      return await link.call<T, M>(method, argument, timeoutMs);
    } catch (error) {
      if (link.alive) {
        const { code, message } = asUnderstudyError(error, 'internal', method);
        this.#deps.log.error(
          { worker: link.pid, method, code, error: message },
          'a proxy worker did not do as it was told, and is ended',
        );
        link.kill();
      }
      await link.gone;
      return undefined;
    }
  }

  orderAll<M extends keyof WorkerCalls>(method: M, argument: WorkerCalls[M]): void {
    for (const link of this.#links) void this.order(link, method, argument, START_TIMEOUT_MS);
  }

  /** Those that take part in an operation: they have clients. */
  serving(): readonly WorkerLink[] {
    return [...this.#links].filter((link) => link.serving);
  }

  /** Has all serving workers do something; one that fails stops the others. One that dies has no part in it. */
  async together<T>(work: (link: WorkerLink, stop: AbortSignal) => Promise<T>): Promise<readonly T[]> {
    const failed = new AbortController();
    const results = await Promise.all(
      this.serving().map(async (link) => {
        const over = new AbortController();
        try {
          return await Promise.race([work(link, failed.signal), this.#silence(link, over.signal)]);
        } catch (error) {
          if (link.alive && !failed.signal.aborted) failed.abort(error);
          return undefined;
        } finally {
          over.abort();
        }
      }),
    );
    failed.signal.throwIfAborted();
    return results.filter((result) => result !== undefined);
  }

  /** Rejects once the worker no longer answers, however long its work may take. */
  async #silence(link: WorkerLink, over: AbortSignal): Promise<never> {
    for (;;) {
      await link.call('ping', null, HEARING_MS);
      await this.#deps.clock.sleep(PING_EVERY_MS, over);
    }
  }
}
