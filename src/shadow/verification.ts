/**
 * Compares the two sides for the engine: all rows, or those changed since the last clean comparison.
 *
 * While the shadow follows, the changed keys are trimmed: looked up on both sides a few at a time, and forgotten where
 * they are equal. A key that is changed again meanwhile stays (see RecentKeys), so that behind a fence only what was
 * changed in the last moments is left to compare.
 */
import { randomUUID } from 'node:crypto';
import type { Clock } from '../core/clock.js';
import type { Log } from '../core/log.js';
import type {
  Direction,
  RecentVerifyReport,
  Side,
  TableVerdict,
  VerifyOptions,
  VerifyProgress,
  VerifyReport,
} from '../core/ports.js';
import { emitMessageSql } from '../core/postgres.js';
import { formatLsn, type Position } from '../core/position.js';
import { UnderstudyError } from '../core/errors.js';
import { copyRestMs } from './intensity.js';
import type { RecentBatch, RecentKeys, RecentSnapshot } from './recent-keys.js';
import { closeSession, openSession, run, type Session } from './postgres/statement.js';
import { tableKey, type TableInfo } from './postgres/table.js';
import type { UnitId } from './postgres/verify-recheck.js';
import type { TableForm } from './postgres/verify-side.js';
import { verifyKeys, verifyTables, type KeyLookup } from './postgres/verify.js';
import type { DatabaseEndpoint } from '../core/ports.js';

export interface VerificationContext {
  readonly endpoints: Readonly<Record<Side, DatabaseEndpoint>>;
  readonly recent: RecentKeys;
  readonly clock: Clock;
  readonly log: Log;
  readonly tables: () => readonly TableInfo[];
  /** How a side has a table, where not as the source does. */
  readonly form?: TableForm;
  /** Mends rows of the direction's target: those of `keys`, or, of a table without a key, all. */
  readonly repair: (
    direction: Direction,
    table: TableInfo,
    keys: readonly (readonly string[])[],
    signal: AbortSignal,
  ) => Promise<void>;
  readonly waitForMark: (direction: Direction, mark: string, signal: AbortSignal) => Promise<Position>;
}

interface DifferingKey {
  readonly table: string;
  readonly key: string;
}

/** A comparison of all tables that did not come to its end. */
interface Interrupted {
  readonly direction: Direction;
  /** What was changed since it began is still to be compared behind a fence. */
  readonly snapshot: RecentSnapshot;
  /** Of tables that were equal. */
  readonly verdicts: readonly TableVerdict[];
}

interface Pair {
  readonly authoritative: Session;
  readonly follower: Session;
}

/** Looked up by one round of trimming; about what a busy source changes between two. */
const TRIM_KEYS_MAX = 5000;
/** Fewer than these are compared behind the fence in no time. */
const TRIM_KEYS_MIN = 100;
const WARM_KEYS_PER_TABLE = 20;
const DIFFERING_KEYS_MAX = 100;
/** Rows of one table repaired by one call: a table that differs in more is better copied anew. */
const REPAIRED_MAX = 100_000;
const MEND_ROUNDS_MAX = 100;
/** Times that a repair looks at its own work: by the second a unique value is free, unless the stream is in the way. */
const REPAIR_ROUNDS_MAX = 5;

export class Verification {
  readonly #context: VerificationContext;
  /** Connections kept for the comparison behind a fence, by direction. */
  readonly #warm = new Map<Direction, Pair>();
  #last: VerifyReport | null = null;
  #interrupted: Interrupted | null = null;
  #forgotten = false;

  constructor(context: VerificationContext) {
    this.#context = context;
  }

  /** What was verified is not what is there now: the tables or their columns changed. */
  forget(): void {
    this.#last = null;
    this.#interrupted = null;
    this.#forgotten = true;
  }

  /** Whether something was forgotten and nothing verified since. */
  get forgotten(): boolean {
    return this.#forgotten;
  }

  get last(): VerifyReport | null {
    return this.#last;
  }

  /** Throws `source-…`, `destination-…` errors, the signal's reason, or `request-invalid` for an unknown table. */
  async verify(
    options: VerifyOptions,
    signal: AbortSignal,
    onProgress?: (progress: VerifyProgress) => void,
    /** Called behind each part, in place of the options' intensity. */
    resting?: () => Promise<void>,
  ): Promise<VerifyReport> {
    const { clock, recent } = this.#context;
    const { direction } = options;
    const whole = options.tables === undefined;
    const before = whole && options.resume === true ? this.#resumable(direction) : null;
    const equal = [...(before?.verdicts ?? [])];
    const equalRows = equal.reduce((sum, { rows }) => sum + rows, 0);
    const done = new Set(equal.map(({ table }) => table));
    const tables = this.#chosen(options.tables).filter((table) => !done.has(tableKey(table)));
    const differing = new Map<TableInfo, UnitId[]>();
    const startedAt = clock.now().toISOString();
    const startedMs = clock.monotonicMs();
    const snapshot = before?.snapshot ?? recent.snapshot();
    if (whole) this.#interrupted = { direction, snapshot, verdicts: equal };
    const rest = resting ?? this.#rests(options.intensity ?? 1, signal);
    const pair = await this.#open(direction, 'verify');
    const marker = await this.#session(direction, 'verify marks');
    try {
      const result = await verifyTables(
        { authoritative: pair.authoritative.client, follower: pair.follower.client },
        tables,
        {
          settle: (limit) => this.#settle(marker, direction, limit),
          signal,
          authoritativeSide: origin(direction),
          ...this.#form(),
          onConfirmed: (table, ids) => collect(differing, table, ids),
          onVerdict: (verdict) => {
            if (verdict.mismatches === 0) equal.push(verdict);
          },
          rest,
          ...(onProgress === undefined ? {} : { onProgress }),
        },
      );
      const repair =
        options.repair === true
          ? await this.#repair(direction, pair, marker, differing, {
              signal,
              rest,
              mismatches: result.mismatches,
            })
          : undefined;
      const report: VerifyReport = {
        startedAt,
        seconds: (clock.monotonicMs() - startedMs) / 1000,
        position: result.position,
        tables: done.size + result.verdicts.length,
        rows: result.rows + equalRows,
        mismatches: result.mismatches,
        verdicts: [...(before?.verdicts ?? []), ...result.verdicts],
        ...(repair === undefined ? {} : { repair }),
      };
      if (options.tables === undefined) {
        const mismatches = repair?.remaining ?? report.mismatches;
        this.#last = { ...report, mismatches };
        if (mismatches === 0) recent.settleAll(snapshot);
        this.#forgotten = false;
        this.#interrupted = null;
      }
      return report;
    } finally {
      await Promise.all([closePair(pair), closeSession(marker)]);
    }
  }

  /** Undefined where there is no need to rest. */
  #rests(intensity: number, signal: AbortSignal): (() => Promise<void>) | undefined {
    if (intensity >= 1) return undefined;
    const { clock } = this.#context;
    let startedMs = clock.monotonicMs();
    return async () => {
      await clock.sleep(copyRestMs(intensity, clock.monotonicMs() - startedMs), signal);
      startedMs = clock.monotonicMs();
    };
  }

  #resumable(direction: Direction): Interrupted | null {
    return this.#interrupted?.direction === direction ? this.#interrupted : null;
  }

  #form(): { readonly form?: TableForm } {
    return this.#context.form === undefined ? {} : { form: this.#context.form };
  }

  /**
   * Compares one table with the side that leads and mends it until both are equal, as fast as `rest` lets it. Throws as
   * `verify`, and `repair-failed`.
   */
  async mend(
    direction: Direction,
    table: TableInfo,
    signal: AbortSignal,
    rest: () => Promise<void>,
  ): Promise<void> {
    for (let round = 1; round <= MEND_ROUNDS_MAX; round++) {
      const report = await this.verify(
        { direction, tables: [tableKey(table)], repair: true },
        signal,
        undefined,
        rest,
      );
      if ((report.repair?.remaining ?? report.mismatches) === 0) return;
    }
    throw new UnderstudyError(
      'repair-failed',
      `${tableKey(table)}: it still differs from the ${origin(direction)}`,
      {
        retryable: true,
        advice: 'It is tried again.',
      },
    );
  }

  /**
   * Mends what was found, then compares those tables again; a row that could not be put back as another one still had its
   * unique value is found by that, and its turn comes once the other is mended.
   */
  async #repair(
    direction: Direction,
    pair: Pair,
    marker: Session,
    found: ReadonlyMap<TableInfo, readonly UnitId[]>,
    options: {
      readonly mismatches: number;
      readonly signal: AbortSignal;
      readonly rest: (() => Promise<void>) | undefined;
    },
  ): Promise<NonNullable<VerifyReport['repair']>> {
    let rows = 0;
    const { signal, rest } = options;
    let remaining = options.mismatches;
    let differing = found;
    for (let round = 1; round <= REPAIR_ROUNDS_MAX && differing.size > 0; round++) {
      for (const [table, ids] of differing) {
        const name = tableKey(table);
        this.#context.log.warn({ table: name, rows: ids.length, round }, 'rows are repaired');
        await this.#context.repair(direction, table, ids, signal);
        if (round === 1) rows += ids.length;
      }
      const left = new Map<TableInfo, UnitId[]>();
      const again = await verifyTables(
        { authoritative: pair.authoritative.client, follower: pair.follower.client },
        [...differing.keys()],
        {
          settle: (limit) => this.#settle(marker, direction, limit),
          signal,
          authoritativeSide: origin(direction),
          ...this.#form(),
          onConfirmed: (table, ids) => collect(left, table, ids),
          rest,
        },
      );
      remaining = again.mismatches;
      differing = left;
    }
    return { rows, tables: found.size, remaining };
  }

  /**
   * Compares what was changed since it was last found equal, of the tables `within`. Behind their fence nothing is in
   * flight; before it, what differs may only be on its way.
   */
  async verifyRecent(
    direction: Direction,
    signal: AbortSignal,
    within: (table: string) => boolean = () => true,
  ): Promise<RecentVerifyReport> {
    const { recent } = this.#context;
    const { generation, batches } = recent.snapshot();
    const snapshot = { generation, batches: batches.filter(({ table }) => within(table)) };
    const differing = await this.#compareWarm(direction, snapshot, signal, true);
    const keys = snapshot.batches.reduce((sum, batch) => sum + batch.keys.length, 0);
    recent.settle(equalOf(snapshot, differing));
    return {
      keys,
      mismatches: differing.length,
      differing: differing.slice(0, DIFFERING_KEYS_MAX),
      ...(recent.overflowed ? { incomplete: true } : {}),
    };
  }

  /** A warm connection may have died unnoticed: one new pair is tried. */
  async #compareWarm(
    direction: Direction,
    snapshot: RecentSnapshot,
    signal: AbortSignal,
    mayRetry: boolean,
  ): Promise<readonly DifferingKey[]> {
    const pair = await this.#warmPair(direction);
    try {
      return await this.#compare(direction, pair, snapshot, signal);
    } catch (error) {
      this.#warm.delete(direction);
      await closePair(pair);
      if (!mayRetry || signal.aborted || !(error instanceof UnderstudyError) || !error.retryable) throw error;
      return await this.#compareWarm(direction, snapshot, signal, false);
    }
  }

  /** Opens the connections that `verifyRecent` will need, and compares a few rows on them: the first take longest. */
  async warm(direction: Direction): Promise<void> {
    const { generation, batches } = this.#context.recent.snapshot();
    const some = batches.map(({ table, keys }) => ({ table, keys: keys.slice(0, WARM_KEYS_PER_TABLE) }));
    await this.#compareWarm(direction, { generation, batches: some }, new AbortController().signal, true);
  }

  /**
   * Trims the recently changed keys until the signal aborts, but for the times at which `direction` is null, as where the
   * follower is far behind: what is not there yet can't be equal. Never throws.
   */
  async trim(direction: () => Direction | null, intervalMs: number, signal: AbortSignal): Promise<void> {
    const { clock, recent, log } = this.#context;
    let pair: Pair | undefined;
    let pairOf: Direction | undefined;
    while (!signal.aborted) {
      await clock.sleep(intervalMs, signal).catch(() => undefined);
      if (signal.aborted || recent.size < TRIM_KEYS_MIN) continue;
      try {
        const wanted = direction();
        if (wanted === null) continue;
        if (pair === undefined || pairOf !== wanted) {
          await closePair(pair);
          pair = await this.#open(wanted, 'trim');
          pairOf = wanted;
        }
        await this.#trimOnce(wanted, pair, signal);
      } catch (error) {
        log.debug(
          { reason: error instanceof Error ? error.message : String(error) },
          'trimming was interrupted',
        );
        await closePair(pair);
        pair = undefined;
      }
    }
    await closePair(pair);
  }

  async close(): Promise<void> {
    const pairs = [...this.#warm.values()];
    this.#warm.clear();
    await Promise.all(pairs.map((pair) => closePair(pair)));
  }

  async #trimOnce(direction: Direction, pair: Pair, signal: AbortSignal): Promise<void> {
    const snapshot = this.#context.recent.snapshot(TRIM_KEYS_MAX);
    const differing = await this.#compare(direction, pair, snapshot, signal);
    this.#context.recent.settle(equalOf(snapshot, differing));
  }

  async #compare(
    direction: Direction,
    pair: Pair,
    snapshot: RecentSnapshot,
    signal: AbortSignal,
  ): Promise<readonly DifferingKey[]> {
    const byName = new Map(this.#context.tables().map((table) => [tableKey(table), table]));
    const lookups = snapshot.batches.flatMap(({ table: name, keys }): KeyLookup[] => {
      const table = byName.get(name);
      return table === undefined || table.key === null ? [] : [{ table, keys }];
    });
    signal.throwIfAborted();
    const sides = { authoritative: pair.authoritative.client, follower: pair.follower.client };
    return await verifyKeys(sides, lookups, origin(direction), this.#context.form);
  }

  #chosen(names: readonly string[] | undefined): readonly TableInfo[] {
    const tables = this.#context.tables();
    if (names === undefined) return tables;
    const unknown = names.find((name) => !tables.some((table) => tableKey(table) === name));
    if (unknown !== undefined) {
      throw new UnderstudyError('request-invalid', `there is no table ${unknown}`, {
        advice: 'Name tables as schema.name.',
      });
    }
    return tables.filter((table) => names.includes(tableKey(table)));
  }

  async #settle(marker: Session, direction: Direction, signal: AbortSignal): Promise<string> {
    const mark = `verify-${randomUUID()}`;
    await run(marker, emitMessageSql({ t: 'mark', id: mark }), { what: 'writing a mark' });
    const position = await this.#context.waitForMark(direction, mark, signal);
    return formatLsn(position.value);
  }

  async #session(direction: Direction, purpose: string): Promise<Session> {
    const side = origin(direction);
    return await openSession(side, this.#context.endpoints[side], purpose);
  }

  async #open(direction: Direction, purpose: string): Promise<Pair> {
    const followerSide: Side = direction === 'forward' ? 'destination' : 'source';
    const authoritative = await this.#session(direction, purpose);
    try {
      const follower = await openSession(followerSide, this.#context.endpoints[followerSide], purpose);
      return { authoritative, follower };
    } catch (error) {
      await closeSession(authoritative);
      throw error;
    }
  }

  async #warmPair(direction: Direction): Promise<Pair> {
    const known = this.#warm.get(direction);
    if (known !== undefined) return known;
    const pair = await this.#open(direction, 'verify recent');
    this.#warm.set(direction, pair);
    const forget = (): void => {
      if (this.#warm.get(direction) === pair) this.#warm.delete(direction);
    };
    pair.authoritative.client.on('end', forget);
    pair.follower.client.on('end', forget);
    return pair;
  }
}

function collect(found: Map<TableInfo, UnitId[]>, table: TableInfo, ids: readonly UnitId[]): void {
  found.set(table, [...(found.get(table) ?? []), ...ids].slice(0, REPAIRED_MAX));
}

function origin(direction: Direction): Side {
  return direction === 'forward' ? 'source' : 'destination';
}

async function closePair(pair: Pair | undefined): Promise<void> {
  if (pair === undefined) return;
  await Promise.all([closeSession(pair.authoritative), closeSession(pair.follower)]);
}

/** The snapshot without the keys that were found to differ. */
function equalOf(
  { generation, batches }: RecentSnapshot,
  differing: readonly DifferingKey[],
): RecentSnapshot {
  if (differing.length === 0) return { generation, batches };
  const unequal = new Set(differing.map(({ table, key }) => JSON.stringify([table, key])));
  const equal = batches.map(({ table, keys }): RecentBatch => ({
    table,
    keys: keys.filter((key) => !unequal.has(JSON.stringify([table, key.join(',')]))),
  }));
  return { generation, batches: equal };
}
