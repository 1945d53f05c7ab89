/**
 * Says of statements which subsets they touch, by a thread that parses them. On the main thread only answers are kept,
 * and forgotten whenever the catalogs change.
 *
 * Where the thread is down or late, `read` throws, and the statement is not sent: which side it belongs to is not known.
 */
import { CATALOGS_CHANGED } from '../capture/subset/messages.js';
import { ReachCache, reachKey } from '../capture/subset/reach-cache.js';
import type { ReachWorkerData } from '../capture/subset/service.js';
import type { Clock } from '../core/clock.js';
import { UnderstudyError } from '../core/errors.js';
import type { Log } from '../core/log.js';
import type { NameScope, StatementReach, StatementReaches, SubsetBorders } from '../core/subset-ports.js';
import { ThreadCaller } from '../core/thread-call.js';
import { SupervisedThread } from './supervised-thread.js';

const ENTRY = new URL('../capture/subset/worker.js', import.meta.url);
/** A first text may wait for the catalogs to be read. */
const READ_TIMEOUT_MS = 10_000;
/** Waiting at once; a text more is refused. */
const READS_MAX = 10_000;

export interface ReachThreadOptions extends ReachWorkerData {
  readonly log: Log;
  readonly clock: Clock;
}

export class ReachThread implements StatementReaches {
  readonly #thread: SupervisedThread<ThreadCaller>;
  readonly #clock: Clock;
  #cache = new ReachCache();
  readonly #reading = new Map<string, Promise<StatementReach>>();
  /** Answers to questions asked before this changed are not kept. */
  #generation = 0;

  constructor({ source, destination, subsets, log, clock }: ReachThreadOptions) {
    this.#clock = clock;
    this.#thread = new SupervisedThread({
      name: 'reach',
      entry: ENTRY,
      workerData: { source, destination, subsets } satisfies ReachWorkerData,
      attach: (worker) => {
        const caller = new ThreadCaller(worker);
        worker.on('message', (message: unknown) => {
          if (isChange(message)) this.#forget();
        });
        return caller;
      },
      begin: () => Promise.resolve(),
      detach: (caller, error) => {
        this.#forget();
        caller.close(error);
      },
      log,
      clock,
    });
  }

  start(): void {
    this.#thread.start();
  }

  stop(): Promise<void> {
    return this.#thread.stop();
  }

  #forget(): void {
    this.#generation += 1;
    this.#cache = new ReachCache();
  }

  known(text: string, scope: NameScope): StatementReach | undefined {
    return this.#cache.get(text, scope);
  }

  /** What ties the subsets, as `borders` of the service. Throws `route-unknown` while the thread is down. */
  async borders(): Promise<Pick<SubsetBorders, 'borders' | 'unknown'>> {
    const caller = this.#thread.current;
    if (caller === undefined)
      throw new UnderstudyError('route-unknown', 'the catalogs can’t be read at the moment');
    return await caller.call('borders', null);
  }

  read(text: string, scope: NameScope): Promise<StatementReach> {
    const key = reachKey(text, scope);
    const reading = this.#reading.get(key);
    if (reading !== undefined) return reading;
    if (this.#reading.size >= READS_MAX) {
      return Promise.reject(new UnderstudyError('limit-reached', 'too many statements wait to be read'));
    }
    const asked = this.#ask(key, text, scope).finally(() => this.#reading.delete(key));
    this.#reading.set(key, asked);
    return asked;
  }

  async #ask(key: string, text: string, scope: NameScope): Promise<StatementReach> {
    const caller = this.#thread.current;
    if (caller === undefined) {
      throw new UnderstudyError('route-unknown', 'statements can’t be read at the moment');
    }
    const generation = this.#generation;
    const over = new AbortController();
    const late = this.#clock.sleep(READ_TIMEOUT_MS, over.signal).then(
      () => {
        throw new UnderstudyError('route-unknown', `a statement was not read in ${READ_TIMEOUT_MS} ms`);
      },
      () => new Promise<never>(() => undefined),
    );
    try {
      const reach = await Promise.race([caller.call<StatementReach>('reach', { text, ...scope }), late]);
      if (generation === this.#generation && reach.unknown === null) this.#cache.set(key, reach);
      return reach;
    } finally {
      over.abort();
    }
  }
}

function isChange(message: unknown): boolean {
  return (
    typeof message === 'object' &&
    message !== null &&
    'catalogs' in message &&
    message.catalogs === CATALOGS_CHANGED.catalogs
  );
}
