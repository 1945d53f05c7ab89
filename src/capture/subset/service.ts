/**
 * What the reach thread does: keeps the source's catalogs, and says of a text which subsets it touches.
 *
 * States: unread → read ⇄ refreshing. A text that can't be told with catalogs older than {@link STALE_MS} is read once more
 * with new ones before it is called unknown; they are read again every {@link REFRESH_MS} besides. Where the source can't be
 * asked, those at hand stay, as the destination may serve without it: it tells what is missing, which is all where nothing
 * is at hand, else what users that come new may use.
 *
 * Bounds: one reading of the catalogs at a time; a statement waits for one at most.
 */
import type { MessagePort } from 'node:worker_threads';
import type pg from 'pg';
import { asUnderstudyError } from '../../core/errors.js';
import type { DatabaseEndpoint, Side, SubsetId, SubsetRules } from '../../core/ports.js';
import { connectControl } from '../../core/postgres.js';
import { readSubsetTables } from '../../core/subsets.js';
import type { NameScope, StatementReach, SubsetBorders } from '../../core/subset-ports.js';
import { serveThreadCalls } from '../../core/thread-call.js';
import { bordersOf } from '../border.js';
import { readClosure } from '../closure.js';
import { PostgresParser } from '../parser.js';
import { CATALOGS_CHANGED } from './messages.js';
import { ReachCatalog } from './reach-catalog.js';
import { readReachSnapshot } from './reach-snapshot.js';
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
const USERS_MAX = 500;
/** The server leaves schemas out of a search path that its user may not use. A role that there is not may use all. */
const UNUSABLE_SQL = `
  SELECT n.nspname AS name FROM pg_catalog.pg_namespace n, pg_catalog.pg_roles r
  WHERE r.rolname = $1 AND n.nspname NOT LIKE 'pg\\_%' AND NOT pg_catalog.has_schema_privilege(r.oid, n.oid, 'USAGE')`;

export class ReachService {
  readonly #data: ReachWorkerData;
  readonly #onChanged: () => void;
  readonly #parser = new PostgresParser();
  #catalog: ReachCatalog | undefined;
  #signature = '';
  #readAtMs = -Infinity;
  #reading: Promise<void> | undefined;
  /** By user, schemas that it may not use. */
  #unusable = new Map<string, ReadonlySet<string>>();
  #usersAsked = new Set<string>();

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
    // What is written after this instant may not be in what is read.
    const startedMs = performance.now();
    const source = await this.#connect('source').catch(() => null);
    const client = source ?? (await this.#connect('destination'));
    try {
      if (source === null && this.#catalog !== undefined) {
        for (const user of this.#users)
          if (!this.#unusable.has(user)) this.#unusable.set(user, await readUnusable(client, user));
        return;
      }
      const subsetOf = new Map<string, SubsetId>();
      for (const { subset, tables } of await readSubsetTables(client, this.#data.subsets))
        for (const { schema, name } of tables) subsetOf.set(`${schema}.${name}`, subset);
      const snapshot = await readReachSnapshot(client, this.#parser);
      const unusable = new Map<string, ReadonlySet<string>>();
      for (const user of this.#users) unusable.set(user, await readUnusable(client, user));
      this.#unusable = unusable;
      this.#readAtMs = startedMs;
      const signature = JSON.stringify([
        snapshot.relations,
        [...snapshot.sequences],
        [...snapshot.ofExtensions],
        [...snapshot.routines],
        [snapshot.implied.always, ...Object.values(snapshot.implied).map((each) => [...each])],
        [...subsetOf],
        [...unusable].map(([user, schemas]) => [user, ...schemas]),
      ]);
      if (signature === this.#signature) return;
      this.#signature = signature;
      this.#catalog = new ReachCatalog(snapshot, subsetOf);
      this.#onChanged();
    } finally {
      await client.end().catch(() => undefined);
    }
  }

  get #users(): readonly string[] {
    return [...this.#usersAsked].slice(-USERS_MAX);
  }

  #connect(side: Side): ReturnType<typeof connectControl> {
    return connectControl(side, this.#data[side], {
      purpose: 'statements’ subsets',
      connectTimeoutMs: CONNECT_TIMEOUT_MS,
      settings: { statement_timeout: '30000', lock_timeout: '5000' },
    });
  }

  /** Never throws. */
  async reach(question: ReachQuestion): Promise<StatementReach> {
    try {
      if (!this.#unusable.has(question.user)) {
        this.#usersAsked.delete(question.user);
        this.#usersAsked.add(question.user);
        // One that is under way may have begun before it knew of the user.
        await this.#reading;
        await this.refresh();
      }
      const first = this.#reach(question);
      const fresh = performance.now() - this.#readAtMs < STALE_MS;
      if (first !== null && (first.unknown === null || fresh)) return first;
      await this.refresh();
      return this.#reach(question) ?? unread('0'.repeat(16), 'the catalogs could not be read');
    } catch (error) {
      return unread('0'.repeat(16), asUnderstudyError(error, 'internal', 'reading a statement').message);
    }
  }

  /** What ties the subsets to one another, read anew. Throws what the connection throws. */
  async borders(): Promise<Pick<SubsetBorders, 'borders' | 'unknown'>> {
    const client = await this.#connect('source').catch(() => this.#connect('destination'));
    try {
      const closure = await readClosure(client);
      const subsetOf = new Map(
        (await readSubsetTables(client, this.#data.subsets)).flatMap(({ subset, tables }) =>
          tables.map(({ schema, name }) => [`${schema}.${name}`, subset] as const),
        ),
      );
      return { borders: bordersOf(closure, subsetOf, this.#data.subsets), unknown: closure.unknown };
    } finally {
      await client.end().catch(() => undefined);
    }
  }

  #reach(question: ReachQuestion): StatementReach | null {
    const unusable = this.#unusable.get(question.user);
    if (this.#catalog === undefined || unusable === undefined) return null;
    return reachOf(question.text, { ...question, unusable }, this.#catalog, this.#parser);
  }
}

async function readUnusable(client: pg.Client, user: string): Promise<ReadonlySet<string>> {
  const { rows } = await client.query<{ name: string }>(UNUSABLE_SQL, [user]);
  return new Set(rows.map(({ name }) => name));
}

/** Serves `port` until the thread ends. */
export function runReach(port: MessagePort, data: ReachWorkerData): void {
  const service = new ReachService(data, () => port.postMessage(CATALOGS_CHANGED));
  setInterval(() => void (service.due && service.refresh()), REFRESH_MS / 4).unref();
  void service.refresh();
  serveThreadCalls(port, {
    reach: (question: ReachQuestion) => service.reach(question),
    borders: () => service.borders(),
  });
}
