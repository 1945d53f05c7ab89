/**
 * Copies every table through the forward lane, in chunks that the stream orders.
 *
 * Readers work side by side, each on one table at a time, a few chunks ahead of the lane. A table's chunks are written
 * in key order: where one has to be read again, so have those behind it. What is written is recorded with its border,
 * so a restart goes on behind the last border; what was in flight is read again.
 *
 * A reader whose table is outranked by one that waits (see pace.ts) puts it back behind its last border and takes the
 * other: tables come in the order that is asked for, as soon as it is.
 *
 * Ends once every table is copied and no key is left that the stream could not complete.
 */
import type { Clock } from '../core/clock.js';
import type { Log } from '../core/log.js';
import type { DatabaseEndpoint, TableProgress } from '../core/ports.js';
import { asUnderstudyError, UnderstudyError } from '../core/errors.js';
import { readAuthority } from './follow/authority.js';
import type { LaneState } from './lane-state.js';
import { restAfter, untilMayCopy, type Pace } from './pace.js';
import type { ApplyTable, Key } from './postgres/apply-table.js';
import { emit, openReader, readRange } from './postgres/chunk-reader.js';
import type { Chunk, ChunkOutcome } from './postgres/chunk.js';
import {
  readPendingKeys,
  readTableCopies,
  recordWholeCopy,
  type PendingKey,
  type TableCopy,
} from './postgres/copy-records.js';
import {
  closeSession,
  endOnAbort,
  inTransaction,
  run,
  withSession,
  type Session,
} from './postgres/statement.js';
import { parseSnapshot, type Snapshot } from './postgres/visibility.js';
import { copyWhole } from './postgres/whole-copy.js';
import { emitMessageSql } from '../core/postgres.js';
import { WHOLE_DATABASE } from '../core/ports.js';

export interface CopierSettings {
  readonly source: DatabaseEndpoint;
  readonly destination: DatabaseEndpoint;
  /** Rows per chunk, at most. */
  readonly chunkRows: number;
  /** Bytes a chunk aims at; wide rows make chunks of fewer rows. */
  readonly chunkBytes: number;
  /** Tables read side by side. */
  readonly copyConcurrency: number;
  /** Unique to this process, so that the marks of an earlier one mean nothing. */
  readonly runId: string;
}

interface Progress {
  rows: number;
  done: boolean;
}

/** A table that is not copied to its end. */
interface Work {
  readonly table: ApplyTable;
  /** What is copied up to. */
  readonly border: Key | null;
}

interface InFlight {
  readonly chunk: Chunk;
  readonly outcome: Promise<ChunkOutcome>;
}

/** Chunks of one table that are read or waiting, at most. */
const CHUNKS_AHEAD = 3;
const STALE_PAUSE_MS = 20;

export class Copier {
  readonly #lane: LaneState;
  readonly #tables: readonly ApplyTable[];
  readonly #settings: CopierSettings;
  readonly #clock: Clock;
  readonly #log: Log;
  readonly #pace: Pace;
  readonly #progress = new Map<string, Progress>();
  #nextChunk = 1;

  constructor(
    lane: LaneState,
    tables: readonly ApplyTable[],
    settings: CopierSettings,
    context: {
      readonly clock: Clock;
      readonly log: Log;
      readonly pace: Pace;
    },
  ) {
    this.#lane = lane;
    this.#tables = tables;
    this.#settings = settings;
    this.#clock = context.clock;
    this.#log = context.log;
    this.#pace = context.pace;
    for (const table of tables) this.#progress.set(table.name, { rows: 0, done: false });
  }

  progress(): readonly TableProgress[] {
    return this.#tables.map((table) => {
      const { rows, done } = this.#of(table);
      return { table: table.name, rowsCopied: rows, rowsEstimated: table.info.rowsEstimated, done };
    });
  }

  /** Reads from the destination what is copied already. */
  async load(): Promise<void> {
    const copies = await withSession('destination', this.#settings.destination, 'copy progress', (session) =>
      readTableCopies(session),
    );
    this.#load(copies);
  }

  /** Copies what is not copied yet. Throws what stopped it; calling again goes on. */
  async run(signal: AbortSignal): Promise<void> {
    const copies = await withSession('destination', this.#settings.destination, 'copy progress', (session) =>
      readTableCopies(session),
    );
    this.#load(copies);
    const open = this.#tables
      .filter((table) => !this.#of(table).done)
      .map((table): Work => ({ table, border: copies.get(table.name)?.border ?? null }));
    await this.#sideBySide(open, signal);
    await this.#pendingKeys(signal);
  }

  #load(copies: ReadonlyMap<string, TableCopy>): void {
    for (const table of this.#tables) {
      const copy = copies.get(table.name);
      if (copy === undefined) continue;
      this.#progress.set(table.name, { rows: copy.rows, done: copy.done });
      if (copy.snapshot !== null && copy.snapshotUntil !== null) {
        this.#lane.wholeCopies.set(table.name, {
          snapshot: parseSnapshot(copy.snapshot),
          until: copy.snapshotUntil,
        });
      }
    }
  }

  #of(table: ApplyTable): Progress {
    const progress = this.#progress.get(table.name);
    if (progress === undefined) throw new UnderstudyError('internal', `no progress of ${table.name}`);
    return progress;
  }

  async #sideBySide(open: Work[], signal: AbortSignal): Promise<void> {
    const failed = new AbortController();
    const either = AbortSignal.any([signal, failed.signal]);
    const reader = async (): Promise<void> => {
      for (let work = this.#next(open); work !== undefined; work = this.#next(open)) {
        const { table } = work;
        const session = await openReader('source', this.#settings.source);
        endOnAbort(session, either, 0);
        try {
          if (table.key === null) await this.#whole(session, table, either);
          else {
            const border = await this.#chunked(session, work, () => this.#outranked(table, open), either);
            if (!this.#of(table).done) open.push({ table, border });
          }
        } finally {
          await closeSession(session);
        }
      }
    };
    const readers = Array.from({ length: this.#settings.copyConcurrency }, async () => {
      try {
        await reader();
      } catch (error) {
        failed.abort(error);
        throw error;
      }
    });
    const outcomes = await Promise.allSettled(readers);
    signal.throwIfAborted();
    const failure = outcomes.find((outcome) => outcome.status === 'rejected');
    if (failure !== undefined) throw asUnderstudyError(failure.reason, 'copy-failed', 'copying');
  }

  #next(open: Work[]): Work | undefined {
    open.sort((a, b) => this.#pace.compare(a.table, b.table));
    return open.shift();
  }

  #outranked(table: ApplyTable, open: readonly Work[]): boolean {
    const rank = this.#pace.rank(table.name);
    return open.some((other) => this.#pace.rank(other.table.name) < rank);
  }

  /** Copies a table to its end, or until it is to yield; returns what it is copied up to. */
  async #chunked(
    session: Session,
    { table, border }: Work,
    yields: () => boolean,
    signal: AbortSignal,
  ): Promise<Key | null> {
    const inFlight: InFlight[] = [];
    const progress = this.#of(table);
    let written = border;
    let next: Key | null = border;
    let atEnd = false;
    let rows = this.#firstRows(table);
    try {
      for (;;) {
        while (!atEnd && inFlight.length < CHUNKS_AHEAD && !yields()) {
          signal.throwIfAborted();
          const flying = await this.#fly(session, table, { lower: next, pendingKeyId: null }, rows, signal);
          inFlight.push(flying);
          const { read } = flying.chunk;
          if (read === null || read.upper === null) atEnd = true;
          else next = read.upper;
          if (read !== null && read.rows > 0) {
            // Behind a run of wide rows there may be more of them.
            rows = Math.min(this.#nextRows(read.bytes, read.rows), 2 * read.rows);
          }
        }
        const first = inFlight[0];
        if (first === undefined) break;
        const outcome = await settled(first.outcome, signal);
        if (outcome === 'written') {
          inFlight.shift();
          progress.rows += first.chunk.read?.rows ?? 0;
          written = first.chunk.read?.upper ?? written;
          progress.done = first.chunk.read?.upper === null;
        } else {
          this.#log.debug({ table: table.name, outcome }, 'a chunk is read again');
          this.#forget(inFlight);
          next = written;
          atEnd = false;
          if (outcome === 'stale') await this.#clock.sleep(STALE_PAUSE_MS, signal);
        }
      }
    } finally {
      this.#forget(inFlight);
    }
    return written;
  }

  /** low, read, high; resolves once `high` is emitted. */
  async #fly(
    session: Session,
    table: ApplyTable,
    what: { readonly lower: Key | null; readonly pendingKeyId: string | null },
    rows: number,
    signal: AbortSignal,
  ): Promise<InFlight> {
    await untilMayCopy(this.#pace, this.#clock, signal);
    let settle: (outcome: ChunkOutcome) => void = () => undefined;
    const outcome = new Promise<ChunkOutcome>((resolve) => (settle = resolve));
    const startedMs = this.#clock.monotonicMs();
    const id = `${this.#settings.runId}-${this.#nextChunk++}`;
    const chunk: Chunk = { id, table, ...what, repairs: null, snapshot: 'untaken', read: null, settle };
    this.#lane.windows.register(chunk);
    try {
      await emit(session, { t: 'low', chunk: id });
      const acceptable = (at: Snapshot): boolean => this.#lane.delivered.seenBy(at);
      for (;;) {
        chunk.read = await readRange(session, chunk, rows, this.#settings.chunkBytes, acceptable);
        if (chunk.read !== null) break;
        await this.#clock.sleep(STALE_PAUSE_MS, signal);
      }
      await emit(session, { t: 'high', chunk: id });
      await restAfter(this.#pace, this.#clock, this.#clock.monotonicMs() - startedMs, signal);
    } catch (error) {
      this.#lane.windows.discard(chunk);
      throw error;
    }
    return { chunk, outcome };
  }

  #forget(inFlight: InFlight[]): void {
    for (const { chunk } of inFlight.splice(0)) this.#lane.windows.discard(chunk);
  }

  #firstRows(table: ApplyTable): number {
    const { bytes, rowsEstimated } = table.info;
    const width = rowsEstimated > 0 ? Math.max(1, bytes / rowsEstimated) : 200;
    return this.#clampRows((this.#settings.chunkBytes / width) * this.#pace.chunkShare);
  }

  #nextRows(bytes: number, rows: number): number {
    return this.#clampRows((this.#settings.chunkBytes / Math.max(1, bytes / rows)) * this.#pace.chunkShare);
  }

  #clampRows(rows: number): number {
    return Math.max(1, Math.min(this.#settings.chunkRows, Math.floor(rows)));
  }

  async #whole(source: Session, table: ApplyTable, signal: AbortSignal): Promise<void> {
    while (!this.#of(table).done) {
      await this.#lane.exclusive((destination) => this.#wholeOnce(source, destination, table), signal);
      if (!this.#of(table).done) await this.#clock.sleep(STALE_PAUSE_MS, signal);
    }
  }

  async #wholeOnce(source: Session, destination: Session, table: ApplyTable): Promise<void> {
    const what = `copying ${table.name}`;
    const result = await inTransaction(destination, what, async () => {
      const tag = emitMessageSql({ t: 'apply', lane: WHOLE_DATABASE, epoch: this.#lane.authority.epoch });
      await run(destination, tag, { what });
      // No cutover begins before the copy is complete; but what leads for any reason is not emptied.
      if ((await readAuthority(destination, false)).kind === 'follows')
        throw new UnderstudyError('copy-failed', `${what}: the destination leads`);
      const copied = await copyWhole(source, destination, table, this.#lane.delivered);
      if (copied !== null) {
        const { rows, snapshotText: snapshot, until } = copied;
        await recordWholeCopy(destination, table.info, { rows, snapshot, until });
      }
      return copied;
    });
    if (result === null) return;
    // Before the lane's next flush: what the copy holds must not be applied again.
    this.#lane.wholeCopies.set(table.name, result);
    this.#progress.set(table.name, { rows: result.rows, done: true });
  }

  /** Rows that moved behind the border without all their columns: a chunk of one row brings each. */
  async #pendingKeys(signal: AbortSignal): Promise<void> {
    const byName = new Map(this.#tables.map((table) => [table.name, table]));
    const pending = (): Promise<readonly PendingKey[]> =>
      withSession('destination', this.#settings.destination, 'copy progress', (session) =>
        readPendingKeys(session),
      );
    for (let keys = await pending(); keys.length > 0; keys = await pending()) {
      const session = await openReader('source', this.#settings.source);
      endOnAbort(session, signal, 0);
      try {
        for (const { id, table: name, key } of keys) {
          const table = byName.get(name);
          if (table === undefined) throw new UnderstudyError('internal', `no table ${name}`);
          await this.#single(session, table, key, id, signal);
        }
      } finally {
        await closeSession(session);
      }
    }
  }

  async #single(
    session: Session,
    table: ApplyTable,
    key: Key,
    pendingKeyId: string,
    signal: AbortSignal,
  ): Promise<void> {
    for (;;) {
      signal.throwIfAborted();
      const flying = await this.#fly(session, table, { lower: key, pendingKeyId }, 1, signal);
      const outcome = await settled(flying.outcome, signal);
      if (outcome === 'written') return;
      if (outcome === 'stale') await this.#clock.sleep(STALE_PAUSE_MS, signal);
    }
  }
}

function settled(outcome: Promise<ChunkOutcome>, signal: AbortSignal): Promise<ChunkOutcome> {
  return new Promise((resolve, reject) => {
    const onAbort = (): void => reject(signal.reason as Error);
    if (signal.aborted) {
      onAbort();
      return;
    }
    signal.addEventListener('abort', onAbort, { once: true });
    void outcome.then((value) => {
      signal.removeEventListener('abort', onAbort);
      resolve(value);
    });
  });
}
