/**
 * Copies every table for a follower: chunk by chunk in key order, each with its progress in one transaction, so that a
 * restart goes on behind the last border. A table without a key is copied whole.
 *
 * Nothing is followed meanwhile. The horizon of a table is recorded before its first row is read: what changes from
 * then on is hinted at once the copy is over, and read again.
 */
import type { Clock } from '../../core/clock.js';
import type { TableProgress } from '../../core/ports.js';
import type { Pace } from '../pace.js';
import { UnderstudyError } from '../../core/errors.js';
import { Applier } from '../postgres/apply.js';
import type { ApplyTable, Key } from '../postgres/apply-table.js';
import { readRange } from '../postgres/chunk-reader.js';
import { ChunkWriter } from '../postgres/chunk-writer.js';
import type { Chunk } from '../postgres/chunk.js';
import {
  advanceTableCopy,
  readTableCopies,
  recordWholeCopy,
  type TableCopy,
} from '../postgres/copy-records.js';
import { DeliveredTransactions } from '../postgres/visibility.js';
import { copyWhole } from '../postgres/whole-copy.js';
import type { ChangeHints } from './hints.js';
import type { Session } from '../postgres/statement.js';
import { tagged, type RefreshSessions } from './key-refresh.js';
import { readHorizons, writeHorizons } from './records.js';

export interface InitialCopySettings {
  readonly chunkRows: number;
  readonly chunkBytes: number;
}

/** How long a copy that rests or waits goes without asking whether it still has to. */
const REST_POLL_MS = 100;

export class InitialCopy {
  readonly #tables: readonly ApplyTable[];
  readonly #settings: InitialCopySettings;
  readonly #pace: Pace;
  readonly #clock: Clock;
  readonly #progress = new Map<string, { rows: number; done: boolean }>();

  constructor(
    tables: readonly ApplyTable[],
    settings: InitialCopySettings,
    context: { readonly pace: Pace; readonly clock: Clock },
  ) {
    this.#tables = tables;
    this.#settings = settings;
    this.#pace = context.pace;
    this.#clock = context.clock;
    for (const { name } of tables) this.#progress.set(name, { rows: 0, done: false });
  }

  progress(): readonly TableProgress[] {
    return this.#tables.map(({ name, info }) => {
      const { rows, done } = this.#progress.get(name) ?? { rows: 0, done: false };
      return { table: name, rowsCopied: rows, rowsEstimated: info.rowsEstimated, done };
    });
  }

  /** What is copied already, from the records. */
  load(copies: ReadonlyMap<string, TableCopy>): void {
    for (const { name } of this.#tables) {
      const copy = copies.get(name);
      if (copy !== undefined) this.#progress.set(name, { rows: copy.rows, done: copy.done });
    }
  }

  /** Copies what is not copied yet. Throws what stopped it; calling again goes on. */
  async run(sessions: RefreshSessions, hints: ChangeHints, signal: AbortSignal): Promise<void> {
    const copies = await readTableCopies(sessions.destination);
    this.load(copies);
    const horizons = new Map(await readHorizons(sessions.destination));
    const open = this.#tables
      .filter(({ name }) => copies.get(name)?.done !== true)
      .map((table) => ({ table, border: copies.get(table.name)?.border ?? null }));
    for (;;) {
      open.sort((a, b) => this.#pace.compare(a.table, b.table));
      const work = open.shift();
      if (work === undefined) return;
      const { table } = work;
      if (!horizons.has(table.name)) {
        const horizon = await hints.begin(sessions.source, table);
        if (horizon !== null) await writeHorizons(sessions.destination, [{ table: table.info, horizon }]);
        horizons.set(table.name, horizon ?? '');
      }
      await this.#mayRead(signal);
      if (table.key === null) await this.#whole(sessions, table);
      else {
        const rank = this.#pace.rank(table.name);
        const yields = (): boolean => open.some((other) => this.#pace.rank(other.table.name) < rank);
        const border = await this.#chunked(sessions, work, yields, signal);
        if (this.#progress.get(table.name)?.done !== true) open.push({ table, border });
      }
    }
  }

  /** Copies a table to its end, or until it is to yield to another; returns what it is copied up to. */
  async #chunked(
    sessions: RefreshSessions,
    { table, border }: { readonly table: ApplyTable; readonly border: Key | null },
    yields: () => boolean,
    signal: AbortSignal,
  ): Promise<Key | null> {
    const writer = new ChunkWriter(sessions.destination, new Applier(sessions.destination));
    const rowsMax = this.#chunkRows(table);
    let rows = rowsMax;
    const progress = this.#progress.get(table.name);
    const read = (lower: Key | null): Promise<Chunk> => this.#read(sessions, table, lower, rows, signal);
    let ahead: Promise<Chunk> | undefined = read(border);
    let written = border;
    while (ahead !== undefined) {
      signal.throwIfAborted();
      const chunk: Chunk = await ahead;
      const found = chunk.read;
      if (found === null) throw new UnderstudyError('internal', `${table.name}: a chunk without its read`);
      // Behind a run of wide rows there may be more of them.
      rows = Math.min(rowsMax, 2 * Math.max(1, found.rows));
      // The next is read while this one is written; only the last has no upper end.
      ahead = found.upper === null || yields() ? undefined : read(found.upper);
      ahead?.catch(() => undefined);
      await tagged(sessions.destination, `copying ${table.name}`, async () => {
        await writer.write(table, { chunk, read: found, dropped: [], overlays: [] });
        const step = {
          lower: chunk.lower,
          border: found.upper,
          rows: found.rows,
          done: found.upper === null,
        };
        if (!(await advanceTableCopy(sessions.destination, table.info, step))) {
          throw new UnderstudyError('internal', `${table.name}: its copy was moved by another process`);
        }
      });
      written = found.upper ?? written;
      if (progress !== undefined) {
        progress.rows += found.rows;
        progress.done = found.upper === null;
      }
    }
    return written;
  }

  async #mayRead(signal: AbortSignal): Promise<void> {
    while (this.#pace.copyWaits) await this.#clock.sleep(REST_POLL_MS, signal);
  }

  /** Reads once it may, and rests behind it as the pace says. */
  async #read(
    { source }: RefreshSessions,
    table: ApplyTable,
    lower: Key | null,
    rows: number,
    signal: AbortSignal,
  ): Promise<Chunk> {
    await this.#mayRead(signal);
    const startedMs = this.#clock.monotonicMs();
    const chunk = await readOne(source, table, lower, rows, this.#settings.chunkBytes);
    const endedMs = this.#clock.monotonicMs();
    for (;;) {
      const leftMs = endedMs + this.#pace.copyRestMs(endedMs - startedMs) - this.#clock.monotonicMs();
      if (leftMs < 1) return chunk;
      await this.#clock.sleep(Math.min(leftMs, REST_POLL_MS), signal);
    }
  }

  #chunkRows({ info }: ApplyTable): number {
    const width = info.rowsEstimated > 0 ? Math.max(1, info.bytes / info.rowsEstimated) : 200;
    return Math.max(1, Math.min(this.#settings.chunkRows, Math.floor(this.#settings.chunkBytes / width)));
  }

  async #whole(sessions: RefreshSessions, table: ApplyTable): Promise<void> {
    const rows = await tagged(sessions.destination, `copying ${table.name}`, async () => {
      const copied = await copyWhole(
        sessions.source,
        sessions.destination,
        table,
        new DeliveredTransactions(),
      );
      if (copied === null) throw new UnderstudyError('internal', `${table.name}: no snapshot to copy it by`);
      const { rows: count, snapshotText: snapshot, until } = copied;
      await recordWholeCopy(sessions.destination, table.info, { rows: count, snapshot, until });
      return count;
    });
    this.#progress.set(table.name, { rows, done: true });
  }
}

async function readOne(
  source: Session,
  table: ApplyTable,
  lower: Key | null,
  rows: number,
  chunkBytes: number,
): Promise<Chunk> {
  const chunk: Chunk = {
    id: '',
    table,
    lower,
    pendingKeyId: null,
    repairs: null,
    snapshot: 'untaken',
    read: null,
    settle: () => undefined,
  };
  chunk.read = await readRange(source, chunk, rows, chunkBytes, () => true);
  return chunk;
}
