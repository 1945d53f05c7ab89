/**
 * What the reach thread does: keeps the source's catalogs, and says of a text which subsets it touches.
 *
 * States: unread → read ⇄ refreshing. A text that can't be told with catalogs older than {@link STALE_MS} is read once more
 * with new ones before it is called unknown; they are read again every {@link REFRESH_MS} besides. Where they can't be
 * read, those at hand stay: the source may be gone while the destination serves.
 *
 * Bounds: one reading of the catalogs at a time; a statement waits for one at most.
 */
import type { MessagePort } from 'node:worker_threads';
import { asUnderstudyError } from '../../core/errors.js';
import type { DatabaseEndpoint, Side, SubsetId, SubsetRules } from '../../core/ports.js';
import { connectControl } from '../../core/postgres.js';
import { readSubsetTables } from '../../core/subsets.js';
import type { NameScope, StatementReach } from '../../core/subset-ports.js';
import { serveThreadCalls } from '../../core/thread-call.js';
import { PostgresParser } from '../parser.js';
import { CATALOGS_CHANGED } from './messages.js';
import { ReachCatalog, readReachSnapshot } from './reach-catalog.js';
import { reachOf, unread } from './reach.js';

export interface ReachWorkerData {
  readonly source: DatabaseEndpoint;
  readonly destination: DatabaseEndpoint;
  readonly subsets: readonly SubsetRules[];
}
export interface ReachQuestion extends NameScope {
  readonly text: string;
}

const STALE_MS = 1_000;
const REFRESH_MS = 10_000;
const CONNECT_TIMEOUT_MS = 5_000;

export class ReachService {
  readonly #data: ReachWorkerData;
  readonly #onChanged: () => void;
  readonly #parser = new PostgresParser();
  #catalog: ReachCatalog | undefined;
  #signature = '';
  #readAtMs = -Infinity;
  #reading: Promise<void> | undefined;

  constructor(data: ReachWorkerData, onChanged: () => void) {
    this.#data = data;
    this.#onChanged = onChanged;
  }

  /** Reads the catalogs anew; one reading at a time is shared. Never throws. */
  refresh(): Promise<void> {
    this.#reading ??= this.#read()
      .catch(() => undefined)
      .finally(() => (this.#reading = undefined));
    return this.#reading;
  }

  get due(): boolean {
    return performance.now() - this.#readAtMs > REFRESH_MS;
  }

  async #read(): Promise<void> {
    await this.#parser.load();
    const connect = (side: Side): ReturnType<typeof connectControl> =>
      connectControl(side, this.#data[side], {
        purpose: 'statements’ subsets',
        connectTimeoutMs: CONNECT_TIMEOUT_MS,
        settings: { statement_timeout: '30000', lock_timeout: '5000' },
      });
    // What is written after this instant may not be in what is read.
    const startedMs = performance.now();
    const client = await connect('source').catch((error: unknown) => {
      if (this.#catalog !== undefined) throw error;
      return connect('destination');
    });
    try {
      const subsetOf = new Map<string, SubsetId>();
      for (const { subset, tables } of await readSubsetTables(client, this.#data.subsets))
        for (const { schema, name } of tables) subsetOf.set(`${schema}.${name}`, subset);
      const snapshot = await readReachSnapshot(client, this.#parser);
      this.#readAtMs = startedMs;
      const signature = JSON.stringify([
        snapshot.relations,
        [...snapshot.sequences],
        [...snapshot.ofExtensions],
        [...snapshot.routines],
        [snapshot.implied.always, ...Object.values(snapshot.implied).map((each) => [...each])],
        [...subsetOf],
      ]);
      if (signature === this.#signature) return;
      this.#signature = signature;
      this.#catalog = new ReachCatalog(snapshot, subsetOf);
      this.#onChanged();
    } finally {
      await client.end().catch(() => undefined);
    }
  }

  /** Never throws. */
  async reach(question: ReachQuestion): Promise<StatementReach> {
    try {
      const first = this.#reach(question);
      const fresh = performance.now() - this.#readAtMs < STALE_MS;
      if (first !== null && (first.unknown === null || fresh)) return first;
      await this.refresh();
      return this.#reach(question) ?? unread('0'.repeat(16), 'the catalogs could not be read');
    } catch (error) {
      return unread('0'.repeat(16), asUnderstudyError(error, 'internal', 'reading a statement').message);
    }
  }

  #reach(question: ReachQuestion): StatementReach | null {
    const { text } = question;
    return this.#catalog === undefined ? null : reachOf(text, question, this.#catalog, this.#parser);
  }
}

/** Serves `port` until the thread ends. */
export function runReach(port: MessagePort, data: ReachWorkerData): void {
  const service = new ReachService(data, () => port.postMessage(CATALOGS_CHANGED));
  setInterval(() => void (service.due && service.refresh()), REFRESH_MS / 4).unref();
  void service.refresh();
  serveThreadCalls(port, {
    reach: (question: ReachQuestion) => service.reach(question),
  });
}
