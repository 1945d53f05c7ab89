/**
 * What the stream changed while a chunk was read: between its `low` and `high` marks.
 *
 * A window is registered before `low` is emitted, opens when the stream reaches it, and closes at `high`. In between
 * - a key with a full image, or deleted, is dropped from the chunk, if it may lie in it: the stream has written it
 *   already. Most tables grow at their end, so this spares most chunks a detour over a staging table;
 * - a key with a partial image keeps the chunk's row, over which the merged partial image is laid again;
 * - a row moved to another key is dropped under both: the shadow's row was moved with all its columns, or, where it had
 *   none yet, the new key was recorded as pending and a chunk of one row will bring it;
 * - TRUNCATE or another definition of the table spoils the chunk.
 *
 * Invariant: everything that committed before `low` is in the chunk's snapshot, or the chunk is `stale`; everything
 * that committed between the marks is in the window; everything later is applied after the chunk is written.
 */
import type { Change } from './transactions.js';
import { bindRow, keyId, keyOf, type Binding, type Key } from './apply-table.js';
import { boundUpdate, isPartial, overlay, type KeyedRow } from './flush-plan.js';
import { liesOutside, type Chunk, type ChunkOutcome, type ChunkRead } from './chunk.js';
import { sees, type DeliveredTransactions, type Snapshot } from './visibility.js';
import type { RelationMessage } from '../../wire/postgres/pgoutput.js';
import { UnderstudyError } from '../../core/errors.js';

/** A key changed in the window; `row: null` means the chunk's row is dropped. */
interface Window {
  readonly chunk: Chunk;
  open: boolean;
  spoiled: boolean;
  readonly changed: Map<string, KeyedRow>;
  relation: RelationMessage | undefined;
  /** Delivered before `low`, and not known to be visible then. */
  mustSee: readonly number[];
}

export interface ClosedWindow {
  readonly chunk: Chunk;
  readonly read: ChunkRead;
  readonly dropped: readonly Key[];
  readonly overlays: readonly KeyedRow[];
}

/** Bound on what one window remembers; past it the chunk is read again. */
const WINDOW_KEYS_MAX = 200_000;

export class ChunkWindows {
  readonly #windows = new Map<string, Window>();
  /** Open windows by table. */
  readonly #open = new Map<string, Window[]>();

  register(chunk: Chunk): void {
    this.#windows.set(chunk.id, {
      chunk,
      open: false,
      spoiled: false,
      changed: new Map(),
      relation: undefined,
      mustSee: [],
    });
  }

  has(chunkId: string): boolean {
    return this.#windows.has(chunkId);
  }

  /** The chunk is not wanted any more; its marks mean nothing from here on. */
  discard(chunk: Chunk): void {
    this.#remove(chunk.id);
  }

  /** The stream was interrupted: what it said inside the open windows is lost. Every chunk is read again. */
  discardAll(): void {
    const chunks = [...this.#windows.values()].map(({ chunk }) => chunk);
    this.#windows.clear();
    this.#open.clear();
    for (const chunk of chunks) chunk.settle('discarded');
  }

  /** The stream reached `low`. Forgets delivered transactions that every snapshot still to be checked sees. */
  low(chunkId: string, delivered: DeliveredTransactions): void {
    const window = this.#windows.get(chunkId);
    if (window !== undefined) {
      window.open = true;
      window.mustSee = delivered.unseen;
      const { name } = window.chunk.table;
      this.#open.set(name, [...(this.#open.get(name) ?? []), window]);
    }
    this.#forgetSeen(delivered, window);
  }

  /**
   * What every snapshot still to be checked sees need not be remembered. A snapshot that is not taken yet will be
   * newer than those that are; one that is being taken may be older.
   */
  #forgetSeen(delivered: DeliveredTransactions, reached: Window | undefined): void {
    const waiting = [...this.#windows.values()].filter((window) => !window.open);
    const snapshots: Snapshot[] = [];
    for (const { chunk } of reached === undefined ? waiting : [...waiting, reached]) {
      if (chunk.snapshot === 'taking') return;
      if (chunk.snapshot !== 'untaken') snapshots.push(chunk.snapshot);
    }
    delivered.forget(snapshots);
  }

  observe(change: Change, bindingOf: (relation: RelationMessage) => Binding): void {
    if (this.#open.size === 0) return;
    if (change.kind === 'truncate') {
      for (const relation of change.relations) {
        for (const window of this.#openOn(bindingOf(relation))) window.spoiled = true;
      }
      return;
    }
    const binding = bindingOf(change.relation);
    for (const window of this.#openOn(binding)) {
      if (window.spoiled) continue;
      window.relation ??= change.relation;
      if (window.relation !== change.relation || window.changed.size > WINDOW_KEYS_MAX) window.spoiled = true;
      else note(window, change, binding);
    }
  }

  /** The stream reached `high`: how the chunk is to be written, or what became of it. null for an unknown chunk. */
  high(chunkId: string): ClosedWindow | { readonly chunk: Chunk; readonly outcome: ChunkOutcome } | null {
    const window = this.#windows.get(chunkId);
    if (window === undefined) return null;
    this.#remove(chunkId);
    const { chunk } = window;
    if (!window.open) throw new UnderstudyError('internal', `chunk ${chunkId} ended before it began`);
    if (window.spoiled) return { chunk, outcome: 'discarded' };
    const { read, snapshot } = chunk;
    if (read === null || typeof snapshot === 'string')
      throw new UnderstudyError('internal', `chunk ${chunkId} ended before it was read`);
    if (window.mustSee.some((xid) => !sees(snapshot, xid))) return { chunk, outcome: 'stale' };
    const changed = [...window.changed.values()];
    return {
      chunk,
      read,
      dropped: changed.flatMap(({ key, row }) =>
        row === null && !liesOutside(chunk, read, key) ? [key] : [],
      ),
      overlays: changed.filter(({ row }) => row !== null),
    };
  }

  #openOn(binding: Binding): readonly Window[] {
    return this.#open.get(binding.table.name) ?? [];
  }

  #remove(chunkId: string): void {
    const window = this.#windows.get(chunkId);
    if (window === undefined) return;
    this.#windows.delete(chunkId);
    const { name } = window.chunk.table;
    const rest = (this.#open.get(name) ?? []).filter((other) => other !== window);
    if (rest.length === 0) this.#open.delete(name);
    else this.#open.set(name, rest);
  }
}

function note(window: Window, change: Exclude<Change, { kind: 'truncate' }>, binding: Binding): void {
  const { table } = binding;
  const { changed } = window;
  const drop = (key: Key): void => void changed.set(keyId(key), { key, row: null, existed: true });
  if (change.kind === 'insert') {
    drop(keyOf(table, bindRow(binding, change.row)));
    return;
  }
  if (change.kind === 'delete') {
    drop(keyOf(table, bindRow(binding, change.old.row)));
    return;
  }
  const { row, oldKey, newKey } = boundUpdate(binding, change);
  const before = changed.get(keyId(oldKey));
  // Written in full inside the window: the shadow's row is complete, and the chunk's is dropped anyway.
  const complete = before?.row === null || !isPartial(row);
  if (keyId(oldKey) !== keyId(newKey)) {
    drop(oldKey);
    drop(newKey);
  } else if (complete) {
    drop(newKey);
  } else {
    const merged = before === undefined || before.row === null ? row : overlay(before.row, row);
    changed.set(keyId(newKey), { key: newKey, row: merged, existed: true });
  }
}
