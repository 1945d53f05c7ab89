/**
 * Unlogged tables: no log tells of their rows, so they are carried whole at each switch, behind the fence, when nothing
 * writes to them any more, and once before it, beside live traffic, to know what that takes.
 *
 * One transaction for all of them, on the lane's own connection between two flushes: what is there is taken away and what
 * the leading side holds, under one snapshot, takes its place. Killed at any point, nothing has happened; repeated, the
 * same comes out.
 *
 * Invariant: a copy that comes late must not overwrite what the other side has taken since. So the transaction holds,
 * to its end, the record that says who leads: forward the route, which a cutover's commit changes; on the way back the
 * source's fence, which the end of a rollback lowers. Neither can pass while it runs.
 */
import type { Clock } from '../core/clock.js';
import type { Log } from '../core/log.js';
import type { DatabaseEndpoint, ExactRequest, Side, SubsetId } from '../core/ports.js';
import { WHOLE_DATABASE } from '../core/ports.js';
import { emitMessageSql } from '../core/postgres.js';
import { UnderstudyError } from '../core/errors.js';
import { authorityOf } from './authority.js';
import { heldFor } from './held.js';
import type { LaneState } from './lane-state.js';
import { Applier } from './postgres/apply.js';
import type { ApplyTable } from './postgres/apply-table.js';
import { beginRead } from './postgres/chunk-reader.js';
import {
  closeSession,
  endOnAbort,
  inTransaction,
  openSession,
  run,
  type Session,
} from './postgres/statement.js';
import type { TableInfo } from './postgres/table.js';
import { copyRows } from './postgres/whole-copy.js';

export interface UnloggedContext {
  readonly endpoints: Readonly<Record<Side, DatabaseEndpoint>>;
  readonly clock: Clock;
  readonly log: Log;
}

/** The truncation waits that long for whoever reads what is there. */
const LOCK_WAIT_MAX_MS = 10_000;

/** Whether its rows are in no log. A partitioned table has none of its own. */
export function isUnlogged(table: TableInfo): boolean {
  return table.unlogged && table.kind !== 'partitioned';
}

export class Unlogged {
  readonly #context: UnloggedContext;
  #ms: number | null = null;

  constructor(context: UnloggedContext) {
    this.#context = context;
  }

  /** What carrying them took last; null where that is not known. */
  get ms(): number | null {
    return this.#ms;
  }

  /**
   * Makes the lane's target hold what its origin does in the unlogged tables of `subsets`, or of all that the lane carries.
   * Throws what the copy does, and `journal-conflict` where the target is not to be written over by now.
   */
  async carry(lane: LaneState, signal: AbortSignal, subsets?: readonly SubsetId[]): Promise<void> {
    await this.#carry(lane, signal, subsets, LOCK_WAIT_MAX_MS);
  }

  /** As `carry`, beside live traffic, to know what it takes: given up at the limit, and `ms` is over that then. */
  async measure(lane: LaneState, { subsets, limitMs }: ExactRequest, signal: AbortSignal): Promise<void> {
    const { clock, log } = this.#context;
    const startedMs = clock.monotonicMs();
    const limit = AbortSignal.timeout(Math.ceil(limitMs));
    try {
      await this.#carry(lane, AbortSignal.any([signal, limit]), subsets, Math.ceil(limitMs));
    } catch (error) {
      if (!limit.aborted || signal.aborted) throw error;
      this.#ms = Math.max(limitMs + 1, clock.monotonicMs() - startedMs);
      log.warn({ limitMs }, 'carrying unlogged tables over takes longer than clients may wait');
    }
  }

  async #carry(
    lane: LaneState,
    signal: AbortSignal,
    subsets: readonly SubsetId[] | undefined,
    lockWaitMs: number,
  ): Promise<void> {
    const known = lane.tables;
    if (known === undefined) {
      throw new UnderstudyError('shadow-not-ready', 'the stream is not connected yet', { retryable: true });
    }
    const within = (subset: SubsetId): boolean =>
      subsets === undefined ? authorityOf(lane.authority, subset).authoritative : subsets.includes(subset);
    const tables = [...known.values()].filter(
      ({ info, name }) => isUnlogged(info) && within(lane.subsetOf(name)),
    );
    if (tables.length === 0) {
      this.#ms = 0;
      return;
    }
    const { clock, endpoints, log } = this.#context;
    const startedMs = clock.monotonicMs();
    const origin = await openSession(lane.origin, endpoints[lane.origin], 'unlogged');
    // Its end ends the copy on the lane's connection too, whose only other wait, for locks, is bounded.
    endOnAbort(origin, signal, 0);
    try {
      let rows = 0;
      const failures: unknown[] = [];
      await lane.exclusive(async (target) => {
        try {
          rows = await carryAll(origin, target, lane, tables, lockWaitMs);
        } catch (error) {
          // The switch fails by it, but not the lane, unless its connection is gone too.
          await run(target, 'ROLLBACK', { what: 'giving up carrying unlogged tables over' });
          failures.push(error);
        }
      }, signal);
      if (failures.length > 0) throw failures[0];
      this.#ms = clock.monotonicMs() - startedMs;
      log.info(
        { tables: tables.length, rows, ms: Math.round(this.#ms) },
        'unlogged tables were carried over',
      );
    } finally {
      await closeSession(origin);
    }
  }
}

async function carryAll(
  origin: Session,
  target: Session,
  lane: LaneState,
  tables: readonly ApplyTable[],
  lockWaitMs: number,
): Promise<number> {
  const what = 'carrying unlogged tables over';
  try {
    await beginRead(origin);
    return await inTransaction(target, what, async () => {
      await run(target, `SET LOCAL lock_timeout = ${lockWaitMs}`, { what });
      const tag = emitMessageSql({ t: 'apply', lane: WHOLE_DATABASE, epoch: lane.authority.epoch });
      await run(target, tag, { what });
      const subsets = new Set(tables.map(({ name }) => lane.subsetOf(name)));
      const writable = await heldFor(target, subsets);
      const settled = tables.find(({ name }) => !writable.has(lane.subsetOf(name)));
      if (settled !== undefined) {
        const message = `${settled.name} is unlogged and can’t be carried over: the ${target.side} is not the one that follows by now`;
        throw new UnderstudyError('journal-conflict', message, {
          advice: 'Look with `understudy status` which side leads.',
        });
      }
      await new Applier(target).apply([{ kind: 'truncate', tables }], { complete: true });
      let rows = 0;
      for (const table of tables) rows += await copyRows(origin, target, table, what);
      return rows;
    });
  } finally {
    await origin.client.query('ROLLBACK').catch(() => undefined);
  }
}
