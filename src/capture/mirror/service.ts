/**
 * The mirror's thread: reads every statement that passed the proxy off a ring of its own, and says what it may have
 * changed. Its ring is not the capture's: what is dropped from this one is not a figure that is a little wrong, but a
 * change unseen, and is told as such.
 *
 * States: starting → reading. While the catalogs aren't known, as at the start, or are in doubt after a DDL statement,
 * every statement that may write counts as not known.
 *
 * Invariant: of each statement in the ring, either what it touches is told, once its transaction has ended, or that
 * something was lost. One call to the main thread is under way at a time; what comes meanwhile is collected, bounded.
 */
import type { MessagePort } from 'node:worker_threads';
import { setTimeout as sleep } from 'node:timers/promises';
import { ByteRingReader } from '../../core/byte-ring.js';
import { connectControl } from '../../core/postgres.js';
import type { DatabaseEndpoint } from '../../core/ports.js';
import { ThreadCaller } from '../../core/thread-call.js';
import { readCatalog } from '../catalog-read.js';
import { Catalog } from '../catalog.js';
import { boundParameters, type Parameters } from '../key-plan.js';
import { PostgresParser } from '../parser.js';
import { CUT, FIXED_BYTES, FLAGS, PARAMETER_BYTES, SESSION_ID, STATUS_SHIFT } from '../record.js';
import { Sessions, executed, remember } from '../sessions.js';
import { StatementCache, type ReadText, type Statement } from '../statements.js';
import { PendingTouches } from './pending.js';
import { readReach, type Reach } from './reach.js';
import { planTouch, touchOf, type Touch, type TouchPlan } from './touch.js';

export interface MirrorWorkerData {
  readonly ring: SharedArrayBuffer;
  readonly source: DatabaseEndpoint;
}

const BATCH_RECORDS = 2_000;
const NAP_FIRST_MS = 4;
const NAP_MOST_MS = 25;
const CATALOG_EVERY_MS = 30_000;
const CATALOG_RETRY_MS = 1_000;
const IDLE = 'I'.charCodeAt(0);
const COMMIT_PREPARED = /^\s*(?:commit|rollback)\s+prepared\b/i;
const ANYTHING: Touch = { keys: new Map(), rows: new Set(), compare: new Set(), unknown: true };

interface Known {
  readonly catalog: Catalog;
  readonly reach: Reach;
  readonly plans: WeakMap<Statement, Map<string, TouchPlan>>;
}

export class MirrorService {
  readonly #ring: ByteRingReader;
  readonly #source: DatabaseEndpoint;
  readonly #parser = new PostgresParser();
  readonly #statements = new StatementCache(this.#parser);
  readonly #sessions = new Sessions();
  readonly pending = new PendingTouches();
  #known: Known | null = null;
  #catalogDueMs = 0;
  #reading = false;
  /** Counts the statements that changed the catalogs. */
  #changes = 0;

  constructor({ ring, source }: MirrorWorkerData) {
    this.#ring = new ByteRingReader(ring);
    this.#source = source;
  }

  async load(): Promise<void> {
    await this.#parser.load();
  }

  /** Returns how many records were read. */
  drain(nowMs: number): number {
    if (nowMs >= this.#catalogDueMs && !this.#reading) this.#readCatalog(nowMs);
    if (this.#ring.takeDropped() > 0) this.pending.lose('statements came faster than they could be read');
    return this.#ring.read(BATCH_RECORDS, (offset, length) => this.#record(offset, length, nowMs));
  }

  #readCatalog(nowMs: number): void {
    this.#catalogDueMs = nowMs + CATALOG_EVERY_MS;
    this.#reading = true;
    this.#catalogs()
      .catch(() => {
        this.#catalogDueMs = nowMs + CATALOG_RETRY_MS;
      })
      .finally(() => (this.#reading = false));
  }

  async #catalogs(): Promise<void> {
    const client = await connectControl('source', this.#source, {
      purpose: 'mirror catalog',
      settings: { statement_timeout: '30000', lock_timeout: '5000' },
    });
    const changes = this.#changes;
    try {
      const snapshot = await readCatalog(client);
      const reach = await readReach(client);
      const catalog = new Catalog(snapshot, (sql) => this.#statements.statement(sql));
      // Changed while they were read: they are due again already.
      if (changes === this.#changes) this.#known = { catalog, reach, plans: new WeakMap() };
    } finally {
      await client.end().catch(() => undefined);
    }
  }

  #record(offset: number, length: number, nowMs: number): void {
    const { floats, bytes } = this.#ring;
    const at = offset >>> 3;
    const flags = floats[at + FLAGS] ?? 0;
    const end = offset + length;
    const parameterBytes = floats[at + PARAMETER_BYTES] ?? 0;
    const text = bytes.toString('utf8', offset + FIXED_BYTES, end - parameterBytes);
    const parameters =
      parameterBytes === 0 ? undefined : boundParameters(bytes.subarray(end - parameterBytes, end));
    const open = ((flags >>> STATUS_SHIFT) & 0xff) !== IDLE;
    const id = floats[at + SESSION_ID] ?? 0;
    try {
      this.#statement(id, text, (flags & CUT) !== 0, parameters, open, nowMs);
    } catch {
      this.pending.lose('a statement could not be read');
    }
  }

  #statement(
    id: number,
    text: string,
    cut: boolean,
    parameters: Parameters | undefined,
    open: boolean,
    nowMs: number,
  ): void {
    const session = this.#sessions.get(id);
    const read = this.#statements.read(text, cut);
    const statement = executed(session, read.statement);
    const touch =
      statement === null ? ANYTHING : this.#touch(statement, read, session.searchPath, parameters);
    // Whether it failed isn't asked: what it set may not hold, and is then too much at most.
    remember(session, read.statement, false);
    if (read.statement.changesCatalog) {
      this.#known = null;
      this.#changes += 1;
      this.#catalogDueMs = 0;
    }
    if (read.statement.ends === 'prepare') {
      this.pending.add(id, touch, true, nowMs);
      this.pending.prepared(id);
      return;
    }
    if (COMMIT_PREPARED.test(text)) this.pending.preparedEnded();
    this.pending.add(id, touch, open, nowMs);
  }

  /** null: nothing. */
  #touch(
    statement: Statement,
    read: ReadText,
    path: readonly string[] | null,
    parameters: Parameters | undefined,
  ): Touch | null {
    const known = this.#known;
    if (known === null) {
      const writes = !statement.parsed || statement.accesses.some((access) => access.writes);
      return writes || statement.functions.length > 0 ? ANYTHING : null;
    }
    const plan = planOf(known, statement, path);
    if (plan.nothing) return null;
    return touchOf(plan, read, parameters);
  }
}

function planOf(known: Known, statement: Statement, path: readonly string[] | null): TouchPlan {
  let plans = known.plans.get(statement);
  if (plans === undefined) {
    plans = new Map();
    known.plans.set(statement, plans);
  }
  const key = path === null ? '' : JSON.stringify(path);
  let plan = plans.get(key);
  if (plan === undefined) {
    plan = planTouch(statement, path, known.catalog, known.reach);
    plans.set(key, plan);
  }
  return plan;
}

/** Reads the ring until the thread ends; what was touched goes to the main thread's `touched`. */
export async function runMirror(port: MessagePort, data: MirrorWorkerData): Promise<never> {
  const service = new MirrorService(data);
  const main = new ThreadCaller(port);
  await service.load();
  // What passed before this thread lived, or while the one before it lay dead, was not all seen.
  service.pending.lose('the mirror began anew');
  let telling = false;
  let napMs = NAP_FIRST_MS;
  for (;;) {
    const read = service.drain(performance.now());
    if (!telling) {
      const touched = service.pending.take(performance.now());
      if (touched !== null) {
        telling = true;
        main
          .call<void>('touched', touched)
          .catch(() => service.pending.lose('the shadow was away'))
          .finally(() => (telling = false));
      }
    }
    napMs = read > 0 ? NAP_FIRST_MS : Math.min(NAP_MOST_MS, napMs * 2);
    await sleep(read >= BATCH_RECORDS ? 0 : napMs);
  }
}
