/**
 * Writes flushes into the target: changes, chunk, marks, authority and position in one transaction each.
 *
 * `open` while a transaction holds the first parts of one of the origin's; the flush that brings its last part commits
 * it. An error while it is open can't be mended here: its earlier parts are gone with the transaction, and only a new
 * session brings them again.
 */
import { UnderstudyError } from '../core/errors.js';
import { WHOLE_DATABASE, type SubsetId } from '../core/ports.js';
import { emitMessageSql } from '../core/postgres.js';
import { authorityOf } from './authority.js';
import type { ChunkEnd, Flush, PassedMark } from './flush.js';
import { strayWrites } from './conflicts/strays.js';
import { heldFor } from './held.js';
import type { LaneState } from './lane-state.js';
import { Applier } from './postgres/apply.js';
import type { ApplyTable, Binding, Key } from './postgres/apply-table.js';
import { ChunkWriter } from './postgres/chunk-writer.js';
import type { ClosedWindow } from './postgres/chunk-windows.js';
import { FlushPlanner, type Step } from './postgres/flush-plan.js';
import { addPendingKey, advanceTableCopy, removePendingKey } from './postgres/copy-records.js';
import { markSql, progressSql } from './postgres/stream-records.js';
import {
  run,
  sqlStateOf,
  TRANSIENT_SQLSTATES,
  UNIQUENESS_SQLSTATES,
  type Session,
} from './postgres/statement.js';
import { isRefusal, stuckAt } from './stuck-change.js';
import type { Change } from './postgres/transactions.js';
import type { RelationMessage } from '../wire/postgres/pgoutput.js';

/** How often a flush that lost a deadlock is tried again before the session gives up. */
const TRANSIENT_ATTEMPTS_MAX = 6;
const TRANSIENT_PAUSE_MS = 10;

export class FlushWriter {
  readonly #state: LaneState;
  readonly #session: Session;
  readonly #tables: ReadonlyMap<string, ApplyTable>;
  readonly #bindingOf: (relation: RelationMessage) => Binding;
  readonly #applier: Applier;
  readonly #chunks: ChunkWriter;
  #open = false;
  #fenceRecorded: boolean | undefined;
  #chunkWritten = false;

  constructor(
    state: LaneState,
    session: Session,
    tables: ReadonlyMap<string, ApplyTable>,
    bindingOf: (relation: RelationMessage) => Binding,
  ) {
    this.#state = state;
    this.#session = session;
    this.#tables = tables;
    this.#bindingOf = bindingOf;
    this.#applier = new Applier(session);
    this.#chunks = new ChunkWriter(session, this.#applier);
  }

  get open(): boolean {
    return this.#open;
  }

  /** Whether the last flush wrote its chunk; one whose predecessor is not written is left out, to be read again. */
  get chunkWritten(): boolean {
    return this.#chunkWritten;
  }

  /**
   * Throws `…-query-failed`, `…-unreachable`, `catalog-changed`, `apply-failed`, or `journal-conflict` where the
   * source no longer stands fenced for the destination whose changes these are; nothing is then written.
   */
  async write(flush: Flush, marks: readonly PassedMark[]): Promise<void> {
    const wasOpen = this.#open;
    for (let attempt = 1; ; attempt++) {
      try {
        await this.#writeOnce(flush, marks);
        this.#state.changesApplied += flush.changes.length;
        return;
      } catch (error) {
        const transient = TRANSIENT_SQLSTATES.includes(sqlStateOf(error) ?? '');
        // Earlier parts of an open transaction are gone with it: only a new session can bring them again.
        if (!transient || wasOpen || attempt >= TRANSIENT_ATTEMPTS_MAX) throw error;
        this.#open = false;
        await run(this.#session, 'ROLLBACK', { what: 'rolling a flush back' });
        await this.#state.clock.sleep(TRANSIENT_PAUSE_MS * attempt);
      }
    }
  }

  async #writeOnce(received: Flush, marks: readonly PassedMark[]): Promise<void> {
    const partial = this.#open || !received.last.last;
    if (!this.#open) await this.#begin();
    const flush = await this.#carried(received);
    if (partial) await run(this.#session, 'SAVEPOINT part', { what: 'beginning a part' });
    const steps = await this.#applyChanges(flush, partial);
    if (partial) await run(this.#session, 'RELEASE SAVEPOINT part', { what: 'ending a part' });
    this.#state.recent.note(steps);
    if (!flush.last.last) {
      this.#open = true;
      return;
    }
    this.#chunkWritten = isWritable(flush.chunkEnd) && (await this.#writeChunk(flush.chunkEnd));
    const { direction } = this.#state;
    const closing = [
      ...marks.map((mark) => markSql(direction, mark.id, mark.at)),
      progressSql(direction, { ...flush.last.authority, position: flush.last.endLsn }),
      'COMMIT',
    ];
    await run(this.#session, closing.join('; '), { what: 'committing a flush' });
    this.#open = false;
  }

  /** The flush without what must not go over to the target. */
  async #carried(flush: Flush): Promise<Flush> {
    if (this.#state.direction === 'forward' || flush.changes.length === 0) return flush;
    let { changes } = flush;
    for (const subset of this.#state.subsets) {
      const theirs = (change: Change): Change | null => this.#onlyOf(subset, change, true);
      // The flush may end with the transaction that takes the lead away: what counts is who led when the changes were made.
      const made = flush.parts.findLast((part) => part.changes.some((change) => theirs(change) !== null));
      if (made === undefined) continue;
      const { epoch } = authorityOf(made.authority, subset);
      if (await this.#isFenced(subset, epoch)) continue;
      this.#state.log.warn(
        { changes: changes.length, subset, epoch },
        'changes were written past the destination’s guard before the rollback: they are left out',
      );
      await this.#state.onStrays?.(
        flush.parts.flatMap((part) =>
          part.changes.flatMap((change, index) => {
            const stray = theirs(change);
            const place = part.firstChange + index;
            return stray === null ? [] : strayWrites(part, [stray], place, false, this.#bindingOf);
          }),
        ),
      );
      changes = changes.flatMap((change) => this.#onlyOf(subset, change, false) ?? []);
    }
    return { ...flush, changes };
  }

  /** What of a change is of the subset, or is not; null where that is nothing. */
  #onlyOf(subset: SubsetId, change: Change, within: boolean): Change | null {
    const fits = ({ schema, name }: RelationMessage): boolean =>
      (this.#state.subsetOf(`${schema}.${name}`) === subset) === within;
    if (change.kind !== 'truncate') return fits(change.relation) ? change : null;
    const relations = change.relations.filter(fits);
    return relations.length === 0 ? null : { kind: 'truncate', relations };
  }

  async #begin(): Promise<void> {
    const tag = emitMessageSql({ t: 'apply', lane: WHOLE_DATABASE, epoch: this.#state.authority.epoch });
    await run(this.#session, `BEGIN; ${tag}; SET CONSTRAINTS ALL DEFERRED`, {
      what: 'beginning a flush',
    });
  }

  /**
   * The destination's changes are the source's only while the source is fenced at the epoch under which the destination
   * leads. False where a rollback has opened the source since: all that the clients wrote was carried over before, so
   * these were written past the destination's guard, and stay there for a verification to find. Where an operator has
   * declared the destination lost, a later epoch stands there without an operation: what a returning destination still
   * has to tell must not overwrite what the source has taken since. A shadow without a fence of its own (no record) has
   * nothing to compare.
   */
  async #isFenced(subset: SubsetId, epoch: number): Promise<boolean> {
    const what = 'comparing the fence’s epoch';
    this.#fenceRecorded ??=
      (
        await run(this.#session, `SELECT pg_catalog.to_regclass('understudy.epoch') IS NOT NULL AS found`, {
          what,
        })
      ).rows[0]?.['found'] === 't';
    if (!this.#fenceRecorded) return true;
    const { rows } = await run(
      this.#session,
      {
        text: 'SELECT fenced, epoch, operation IS NOT NULL AS switched FROM understudy.epoch WHERE subset = $1 FOR SHARE',
        values: [subset],
      },
      { what },
    );
    const [record] = rows;
    const recorded = Number(record?.['epoch'] ?? '-1');
    if (record?.['fenced'] === 't' && recorded === epoch) return true;
    if (record?.['fenced'] === 'f' && record['switched'] === 't' && recorded > epoch) return false;
    throw new UnderstudyError(
      'journal-conflict',
      `the source is not fenced at epoch ${epoch} any more: what the destination wrote is not carried to it`,
      {
        advice:
          'The destination was declared lost, or its fence was lowered by hand. Build a new destination; look in the old one for what is missing.',
      },
    );
  }

  /** Coalesced; where that makes two rows clash on the way, one by one in the origin's order. */
  async #applyChanges(flush: Flush, partial: boolean): Promise<readonly Step[]> {
    const { changes } = flush;
    if (changes.length === 0) return [];
    const planner = new FlushPlanner(true);
    for (const change of changes) planner.add(change, this.#bindingOf);
    let steps = planner.finish();
    try {
      await this.#applySteps(steps);
    } catch (error) {
      if (!isRefusal(error)) throw error;
      this.#state.log.debug(
        { changes: changes.length },
        'a coalesced flush was refused; replaying it row by row',
      );
      if (partial) {
        await run(this.#session, 'ROLLBACK TO SAVEPOINT part', { what: 'replaying a part' });
      } else {
        await run(this.#session, 'ROLLBACK', { what: 'replaying a flush' });
        await this.#begin();
      }
      steps = await this.#oneByOne(flush);
    }
    return steps;
  }

  /** Throws `apply-failed` with the {@link StuckChange} where one is refused by itself. */
  async #oneByOne(flush: Flush): Promise<readonly Step[]> {
    const all: Step[] = [];
    for (const change of flush.changes) {
      const lenient = this.#state.unmended.size > 0;
      try {
        if (lenient) await run(this.#session, 'SAVEPOINT change', { what: 'applying a change' });
        const planner = new FlushPlanner(false);
        planner.add(change, this.#bindingOf);
        const steps = planner.finish();
        await this.#applySteps(steps);
        all.push(...steps);
        if (lenient) await run(this.#session, 'RELEASE SAVEPOINT change', { what: 'applying a change' });
      } catch (error) {
        if (lenient && this.#leftToMend(change, error)) {
          await run(this.#session, 'ROLLBACK TO SAVEPOINT change', { what: 'leaving a change to be mended' });
          continue;
        }
        throw isRefusal(error)
          ? stuckAt(this.#state.direction, flush, change, this.#bindingOf, error)
          : error;
      }
    }
    return all;
  }

  /** A row that the stream has not told of, and that is still to be mended, may have the unique value of one that it tells. */
  #leftToMend(change: Change, error: unknown): boolean {
    if (change.kind === 'truncate' || !UNIQUENESS_SQLSTATES.includes(sqlStateOf(error) ?? '')) return false;
    const { unmended } = this.#state;
    const { name } = this.#bindingOf(change.relation).table;
    const left = unmended.get(name);
    if (left === undefined) return false;
    unmended.set(name, left + 1);
    return true;
  }

  async #applySteps(steps: readonly Step[]): Promise<void> {
    const { orphans } = await this.#applier.apply(steps, { complete: !this.#state.copying });
    for (const { table, key } of orphans) {
      if (this.#state.copying) {
        await addPendingKey(this.#session, table.info, key);
      } else {
        this.#state.log.warn({ table: table.name }, 'a row that moved to another key was not there');
      }
    }
  }

  async #writeChunk(end: ClosedWindow): Promise<boolean> {
    const { chunk, read } = end;
    const table = this.#tables.get(chunk.table.name) ?? chunk.table;
    if (chunk.repairs !== null) {
      const subset = this.#state.subsetOf(chunk.table.name);
      const held = await heldFor(this.#session, new Set([subset]), this.#state.authority);
      if (!held.has(subset)) return false;
      await this.#repair(table, end, chunk.repairs);
      return true;
    }
    if (chunk.pendingKeyId !== null) {
      await removePendingKey(this.#session, chunk.pendingKeyId);
    } else {
      const { upper, rows } = read;
      const step = { lower: chunk.lower, border: upper, rows, done: upper === null };
      if (!(await advanceTableCopy(this.#session, table.info, step))) return false;
    }
    await this.#chunks.write(table, end);
    return true;
  }

  async #repair(table: ApplyTable, window: ClosedWindow, keys: readonly Key[]): Promise<void> {
    const what = 'repairing rows';
    await run(this.#session, 'SAVEPOINT repair', { what });
    try {
      await this.#chunks.replace(table, window, keys);
    } catch (error) {
      if (!UNIQUENESS_SQLSTATES.includes(sqlStateOf(error) ?? '')) throw error;
      await run(this.#session, 'ROLLBACK TO SAVEPOINT repair', { what });
      await this.#chunks.remove(table, window, keys);
    }
    await run(this.#session, 'RELEASE SAVEPOINT repair', { what });
  }
}

export function isWritable(end: ChunkEnd | null): end is ClosedWindow {
  return end !== null && 'read' in end;
}
