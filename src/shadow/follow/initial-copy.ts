/**
 * Copies every table for a follower: chunk by chunk in key order, each with its progress in one transaction, so that a
 * restart goes on behind the last border. A table without a key is copied whole.
 *
 * Nothing is followed meanwhile. The horizon of a table is recorded before its first row is read: what changes from
 * then on is hinted at once the copy is over, and read again.
 */
import type { TableProgress } from '../../core/ports.js';
import { UnderstudyError } from '../../core/errors.js';
import { Applier } from '../postgres/apply.js';
import type { ApplyTable, Key } from '../postgres/apply-table.js';
import { readChunk } from '../postgres/chunk-reader.js';
import { ChunkWriter } from '../postgres/chunk-writer.js';
import type { Chunk } from '../postgres/chunk.js';
import { advanceTableCopy, readTableCopies, recordWholeCopy, type TableCopy } from '../postgres/records.js';
import { DeliveredTransactions } from '../postgres/visibility.js';
import { copyWhole } from '../postgres/whole-copy.js';
import type { ChangeHints } from './hints.js';
import { tagged, type RefreshSessions } from './key-refresh.js';
import { readHorizons, writeHorizons } from './records.js';

export interface InitialCopySettings {
  readonly chunkRows: number;
  readonly chunkBytes: number;
}

export class InitialCopy {
  readonly #tables: readonly ApplyTable[];
  readonly #settings: InitialCopySettings;
  readonly #progress = new Map<string, { rows: number; done: boolean }>();

  constructor(tables: readonly ApplyTable[], settings: InitialCopySettings) {
    this.#tables = tables;
    this.#settings = settings;
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
    const horizons = await readHorizons(sessions.destination);
    const open = this.#tables.filter(({ name }) => copies.get(name)?.done !== true);
    open.sort((a, b) => b.info.bytes - a.info.bytes);
    for (const table of open) {
      if (!horizons.has(table.name)) {
        const horizon = await hints.begin(sessions.source, table);
        if (horizon !== null) await writeHorizons(sessions.destination, [{ table: table.info, horizon }]);
      }
      if (table.key === null) await this.#whole(sessions, table);
      else await this.#chunked(sessions, table, copies.get(table.name)?.border ?? null, signal);
    }
  }

  async #chunked(
    sessions: RefreshSessions,
    table: ApplyTable,
    border: Key | null,
    signal: AbortSignal,
  ): Promise<void> {
    const writer = new ChunkWriter(sessions.destination, new Applier(sessions.destination));
    const rows = this.#chunkRows(table);
    const read = (lower: Key | null): Promise<Chunk> => readOne(sessions, table, lower, rows);
    let ahead: Promise<Chunk> | undefined = read(border);
    while (ahead !== undefined) {
      signal.throwIfAborted();
      const chunk: Chunk = await ahead;
      const found = chunk.read;
      if (found === null) throw new UnderstudyError('internal', `${table.name}: a chunk without its read`);
      // The next is read while this one is written; only the last has no upper end.
      ahead = found.upper === null ? undefined : read(found.upper);
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
      const progress = this.#progress.get(table.name);
      if (progress !== undefined) {
        progress.rows += found.rows;
        progress.done = found.upper === null;
      }
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
  { source }: RefreshSessions,
  table: ApplyTable,
  lower: Key | null,
  rows: number,
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
  chunk.read = await readChunk(source, chunk, rows, () => true);
  return chunk;
}
