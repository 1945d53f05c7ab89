/**
 * Adds captured statements up into what the series store keeps. The live capture and the log importers use the same.
 *
 *   statement → text cache → resolved by the catalog ─┬─► minutes: figures per table and statement
 *                                                     ├─► session: transaction (pairs, durations), transition
 *                                                     └─► hot keys, where there is a secret to hash them with
 *
 * `take` hands out everything since the last one and begins anew; nothing of it is kept, so whoever takes a batch must
 * append it, with its id, until the store has it. Memory is bounded in every part; what is given up is counted.
 */
import { keyHash } from '../core/key-hash.js';
import type {
  CapturedStatement,
  CoAccess,
  SeriesBatch,
  StatementSink,
  TransactionDurations,
  Transition,
} from '../core/capture-ports.js';
import { Catalog, type CatalogSnapshot } from './catalog.js';
import { HotKeyCounters, type HotKey } from './hot-keys.js';
import { keysIn } from './key-plan.js';
import { latencyBucket, latencyBucketUpTo } from './latency.js';
import { Minutes } from './minutes.js';
import type { PostgresParser } from './parser.js';
import { Resolver, TableNumbers, type ResolvedStatement } from './resolve.js';
import { advance, executed, remember, Sessions, type EndedTransaction } from './sessions.js';
import { SpaceSaving } from './space-saving.js';
import { StatementCache, type ReadText, type Statement } from './statements.js';
import { analyse } from './tree-footprint.js';

export interface CollectorOptions {
  /** Who counts; another one for every run. */
  readonly writer: string;
  /** Keys are counted. It takes a secret too, see {@link SeriesCollector.setSecret}. */
  readonly keys: boolean;
  readonly hotKeysMax: number;
  readonly hotKeysHalfLifeMs: number;
  readonly cellsMax: number;
}

export const COLLECTOR_DEFAULTS = {
  keys: false,
  hotKeysMax: 1_000,
  hotKeysHalfLifeMs: 3_600_000,
  cellsMax: 100_000,
} as const;

const TABLES_MAX = 10_000;
const PAIRS_MAX = 50_000;
const TRANSITIONS_MAX = 4_096;
/** Of the transitions counted since the last batch, so many go into it. */
const TRANSITIONS_TAKEN = 1_000;
/** Statements told apart by transitions between two batches; at more they are counted anew. */
const FINGERPRINTS_MAX = 50_000;
const HOURS_OF_WEEK = 168;
const HOUR_MS = 3_600_000;
/** 1970-01-01 was a Thursday: hours from the Monday before. */
const MONDAY_OFFSET_HOURS = 72;
/** Numbers of statements fit into half of a 53-bit integer. */
const STATEMENT_NUMBERS = 2 ** 26;

/** Keys are read off a text without parameters once. */
interface KeysOfText {
  readonly resolved: ResolvedStatement;
  readonly hashes: readonly KeyUse[];
}
interface KeyUse {
  readonly table: string;
  readonly hash: string;
  readonly writes: boolean;
}

export class SeriesCollector implements StatementSink {
  readonly #options: CollectorOptions;
  readonly #parser: PostgresParser | null;
  readonly #statements: StatementCache;
  readonly #numbers = new TableNumbers(TABLES_MAX);
  #resolver: Resolver;
  readonly #sessions = new Sessions();
  readonly #minutes: Minutes;
  readonly #hotKeys: HotKeyCounters;
  readonly #keysOfText = new WeakMap<ReadText, KeysOfText>();
  #secret: Buffer | null = null;
  /** lower table number · {@link TABLES_MAX} + higher one → transactions. */
  #pairs = new Map<number, number>();
  /** Transactions of one statement each, whose pairs are written out when they are taken. */
  #solo = new Map<ResolvedStatement, number>();
  readonly #transitions = new SpaceSaving<number>(TRANSITIONS_MAX);
  /** By number, the fingerprints that {@link SeriesCollector.#transitions} speaks of. */
  #fingerprints = new Map<number, string>();
  /** hour of week · 1000 + bucket → transactions. */
  #durations = new Map<number, number>();
  #lastMs = 0;
  #batches = 0;
  #pairsShed = 0;
  /** A statement was seen that changes names or columns. */
  catalogChanged = false;

  constructor(options: CollectorOptions, parser: PostgresParser | null, statements?: StatementCache) {
    this.#options = options;
    this.#parser = parser;
    this.#statements = statements ?? new StatementCache(parser);
    this.#resolver = new Resolver(new Catalog(null), this.#numbers, false);
    this.#minutes = new Minutes(options.cellsMax);
    this.#hotKeys = new HotKeyCounters(options.hotKeysMax, options.hotKeysHalfLifeMs);
  }

  /** Statements whose figures were given up for want of room, and what else was. */
  get shed(): { readonly statements: number; readonly pairs: number; readonly keys: number } {
    return { statements: this.#minutes.shed, pairs: this.#pairsShed, keys: this.#hotKeys.leftOut };
  }

  /** Names are resolved by it from now on. */
  setCatalog(snapshot: CatalogSnapshot): void {
    const catalog = new Catalog(snapshot, (sql) => this.#analysed(sql));
    this.#resolver = new Resolver(catalog, this.#numbers, this.#options.keys);
    this.catalogChanged = false;
  }

  /** The installation's own; keys are counted from then on. */
  setSecret(secret: Buffer): void {
    this.#secret = secret;
  }

  #analysed(sql: string): ReturnType<typeof analyse> | null {
    const parsed = this.#parser?.parse(sql);
    if (parsed === undefined || parsed === null) return null;
    try {
      return analyse(parsed.statements);
    } catch {
      return null;
    }
  }

  add(captured: CapturedStatement): void {
    this.addRead(this.#statements.read(captured.text, captured.cut), captured);
  }

  /** The same, for a text that was read already. Returns what it comes down to. */
  addRead(read: ReadText, captured: CapturedStatement): ResolvedStatement {
    const session = this.#sessions.get(captured.sessionId);
    const run = executed(session, read.statement);
    const resolved = this.#resolver.resolve(run ?? read.statement, session.searchPath);
    const executions = captured.executions ?? 1;
    const failed = captured.errorClass !== null;
    if (captured.endedAtMs > this.#lastMs) this.#lastMs = captured.endedAtMs;
    this.#minutes.add(resolved, captured, run === null || !run.parsed || captured.cut);
    if (session.before !== null) this.#transition(session.before, read.statement, executions);
    const ended = advance(session, captured, resolved);
    if (ended !== null) this.#transaction(ended, captured);
    if (read.statement.changesCatalog && !failed) this.catalogChanged = true;
    remember(session, read.statement, failed);
    if (resolved.keys.length > 0 && this.#secret !== null)
      this.#countKeys(read, captured, resolved, this.#secret);
    return resolved;
  }

  observed(fromMs: number, untilMs: number): void {
    this.#minutes.observed(fromMs, untilMs);
  }

  /** Statements that passed by unseen. */
  dropped(count: number, atMs: number): void {
    this.#minutes.minute(atMs).dropped += count;
  }

  hottest(table: string, limit: number): readonly HotKey[] {
    return this.#hotKeys.hottest(table, limit);
  }

  /** null: nothing happened. */
  take(): SeriesBatch | null {
    const { points, intervals, statements } = this.#minutes.take();
    const hotKeys = this.#hotKeys.take();
    if (intervals.length === 0 && hotKeys.length === 0) return null;
    const batch: SeriesBatch = {
      id: `${this.#options.writer}/${this.#batches++}`,
      writer: this.#options.writer,
      points,
      intervals,
      statements,
      hotKeys,
      coAccess: this.#takePairs(),
      transitions: this.#takeTransitions(),
      transactionDurations: this.#takeDurations(),
    };
    return batch;
  }

  // ------------------------------------------------------------------------------------------ transactions

  #transaction(ended: EndedTransaction, { endedAtMs, executions = 1 }: CapturedStatement): void {
    const minute = this.#minutes.minute(endedAtMs);
    if (ended.outcome === 'committed') minute.committed += executions;
    else minute.rolledBack += executions;
    const hour = Math.floor((endedAtMs - ended.durationMs) / HOUR_MS) + MONDAY_OFFSET_HOURS;
    const slot = (hour % HOURS_OF_WEEK) * 1_000 + latencyBucket(ended.durationMs * 1_000);
    this.#durations.set(slot, (this.#durations.get(slot) ?? 0) + executions);
    if (this.#solo.size >= PAIRS_MAX) this.#pairSolo();
    if (ended.only !== null) this.#solo.set(ended.only, (this.#solo.get(ended.only) ?? 0) + executions);
    else if (ended.tables.size > 0)
      this.#pair(
        [...ended.tables].sort((a, b) => a - b),
        executions,
      );
  }

  #pair(tables: readonly number[], transactions: number): void {
    for (const [index, low] of tables.entries()) {
      for (const high of tables.slice(index)) {
        const pair = low * TABLES_MAX + high;
        const count = this.#pairs.get(pair);
        if (count === undefined && this.#pairs.size >= PAIRS_MAX) this.#pairsShed += transactions;
        else this.#pairs.set(pair, (count ?? 0) + transactions);
      }
    }
  }

  #takePairs(): readonly CoAccess[] {
    this.#pairSolo();
    const taken = [...this.#pairs].map(([pair, transactions]): CoAccess => {
      const names = [
        this.#numbers.name(Math.floor(pair / TABLES_MAX)),
        this.#numbers.name(pair % TABLES_MAX),
      ];
      const [a = '', b = ''] = names.sort();
      return { a, b, transactions, weight: transactions, asOfMs: this.#lastMs };
    });
    this.#pairs = new Map();
    return taken;
  }

  #pairSolo(): void {
    for (const [{ tableNumbers }, transactions] of this.#solo) this.#pair(tableNumbers, transactions);
    this.#solo = new Map();
  }

  #takeDurations(): readonly TransactionDurations[] {
    const taken = [...this.#durations].map(([slot, weight]) => ({
      hourOfWeek: Math.floor(slot / 1_000),
      upToMicros: latencyBucketUpTo(slot % 1_000),
      weight,
      asOfMs: this.#lastMs,
    }));
    this.#durations = new Map();
    return taken;
  }

  // ------------------------------------------------------------------------------------------- transitions

  #transition(from: Statement, to: Statement, executions: number): void {
    if (this.#fingerprints.size >= FINGERPRINTS_MAX) {
      this.#transitions.clear();
      this.#fingerprints = new Map();
    }
    const a = from.id % STATEMENT_NUMBERS;
    const b = to.id % STATEMENT_NUMBERS;
    if (!this.#fingerprints.has(a)) this.#fingerprints.set(a, from.fingerprint);
    if (!this.#fingerprints.has(b)) this.#fingerprints.set(b, to.fingerprint);
    this.#transitions.add(a * STATEMENT_NUMBERS + b, executions);
  }

  #takeTransitions(): readonly Transition[] {
    const weights = new Map<string, { from: string; to: string; weight: number }>();
    for (const { key, count, error } of this.#transitions.top(TRANSITIONS_TAKEN)) {
      const from = this.#fingerprints.get(Math.floor(key / STATEMENT_NUMBERS));
      const to = this.#fingerprints.get(key % STATEMENT_NUMBERS);
      if (from === undefined || to === undefined || count <= error) continue;
      // Several shapes may have one fingerprint.
      const pair = `${from} ${to}`;
      const known = weights.get(pair);
      if (known === undefined) weights.set(pair, { from, to, weight: count - error });
      else known.weight += count - error;
    }
    this.#transitions.clear();
    this.#fingerprints = new Map();
    return [...weights.values()].map((each) => ({ ...each, asOfMs: this.#lastMs }));
  }

  // -------------------------------------------------------------------------------------------------- keys

  #countKeys(read: ReadText, captured: CapturedStatement, resolved: ResolvedStatement, secret: Buffer): void {
    const { parameters, executions = 1, endedAtMs } = captured;
    let uses: readonly KeyUse[];
    if (parameters === undefined || parameters.length === 0) {
      let known = this.#keysOfText.get(read);
      if (known === undefined || known.resolved !== resolved) {
        known = { resolved, hashes: keyUses(read, captured, resolved, secret) };
        this.#keysOfText.set(read, known);
      }
      uses = known.hashes;
    } else uses = keyUses(read, captured, resolved, secret);
    for (const { table, hash, writes } of uses) this.#hotKeys.add(table, hash, writes, executions, endedAtMs);
  }
}

function keyUses(
  { text, values }: ReadText,
  { parameters }: CapturedStatement,
  { keys }: ResolvedStatement,
  secret: Buffer,
): readonly KeyUse[] {
  if (values === null) return [];
  const uses: KeyUse[] = [];
  for (const plan of keys) {
    for (const key of keysIn(plan, text, values, parameters)) {
      uses.push({
        table: plan.table,
        hash: keyHash(secret, plan.table, plan.columns, key),
        writes: plan.writes,
      });
    }
  }
  return uses;
}
