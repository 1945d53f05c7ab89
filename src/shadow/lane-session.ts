/**
 * A lane's life on one pair of connections: stream → parts → flushes → commits → acknowledgements.
 *
 *   stream ──sink──► assembler ──parts──► queue ──take──► flush ──commit──► position ──status──► slot
 *
 * The sink runs in the socket's handler and only queues; `run` is the one loop that writes. It ends by throwing what
 * ended it, after everything that had arrived complete was written.
 *
 * Invariants
 * - Rows, chunk, marks, authority and position of a flush commit in one transaction; in memory they move only after.
 * - A flush ends at a transaction's end. A transaction larger than the memory bound is written in parts inside one
 *   open transaction of the target, whose position moves with the last part.
 * - The slot is told a position only once everything before it is committed here. Where nothing waits, the position of
 *   the last keepalive counts.
 * - A chunk's rows are written directly behind the transaction before its `high`, before anything later.
 * - At the session's end every chunk in flight is read again: its window is incomplete.
 */
import type pg from 'pg';
import type { DatabaseEndpoint, SubsetRules } from '../core/ports.js';
import type { Format } from '../core/format-ports.js';
import { parseLsn } from '../core/position.js';
import { asUnderstudyError, UnderstudyError } from '../core/errors.js';
import type { ChunkEnd, Flush } from './flush.js';
import { FlushWriter, isWritable } from './flush-writer.js';
import { strayWrites } from './conflicts/strays.js';
import { LaneRelations, nameOf } from './lane-relations.js';
import type { LaneState, LaneTask } from './lane-state.js';
import { PartQueue } from './part-queue.js';
import { APPLY_SETTINGS } from './postgres/apply.js';
import { proveHistory, proveTarget } from './postgres/origin-history.js';
import { readTableCopies } from './postgres/copy-records.js';
import { readMarks, readProgress, readSkips } from './postgres/stream-records.js';
import { ReplicationStream } from './postgres/replication-stream.js';
import { closeSession, endOnAbort, openSession, run, textOf, type Session } from './postgres/statement.js';
import { TransactionAssembler, type Change, type TransactionPart } from './postgres/transactions.js';
import { parseSnapshot } from './postgres/visibility.js';
import { isCopied } from './postgres/whole-copy.js';
import type { RelationMessage } from '../wire/postgres/pgoutput.js';

export interface LaneSettings {
  readonly originEndpoint: DatabaseEndpoint;
  readonly targetEndpoint: DatabaseEndpoint;
  readonly slot: string;
  readonly publication: string;
  /** A change waits that long for others at intensity 1. */
  readonly flushIntervalMs: number;
  readonly flushChangesMax: number;
  readonly streamBytesMax: number;
  readonly statusIntervalMs: number;
  readonly headPollIntervalMs: number;
  readonly format: Format | undefined;
  readonly subsets: readonly SubsetRules[];
  /** Whether the stream can begin anew: then it is proven that both servers still hold what was applied. */
  readonly renewable: boolean;
}

/** A flush at hand may end in that time when the lane is stopped. */
const STOP_GRACE_MS = 1000;

export class LaneSession {
  readonly #state: LaneState;
  readonly #settings: LaneSettings;
  readonly #queue = new PartQueue();
  readonly #relations: LaneRelations;
  #skips: ReadonlyMap<bigint, ReadonlySet<number>> = new Map();
  #assembler: TransactionAssembler | undefined;
  #stream: ReplicationStream | undefined;
  #apply: Session | undefined;
  #origin: Session | undefined;
  #writer: FlushWriter | undefined;
  #flushing = false;
  /** When the last flush ended, and how long it took: by the intensity the lane rests in proportion. */
  #flushedAtMs = 0;
  #flushMs = 0;
  #inFlightBytes = 0;
  #paused = false;
  #failure: UnderstudyError | undefined;
  #notify: () => void = () => undefined;

  /** Also where what held the lane up no longer does. */
  readonly #onConnected: () => void;

  constructor(state: LaneState, settings: LaneSettings, onConnected: () => void) {
    this.#state = state;
    this.#settings = settings;
    this.#onConnected = onConnected;
    this.#relations = new LaneRelations(state, {
      format: settings.format,
      subsets: settings.subsets,
      onApart: (error) => this.#fail(error),
      onTogether: onConnected,
      failed: () => this.#failure !== undefined,
    });
  }

  /** Never resolves but by `signal`; throws what ended the session. */
  async run(signal: AbortSignal): Promise<void> {
    const state = this.#state;
    const onAbort = (): void => this.#wake();
    signal.addEventListener('abort', onAbort);
    try {
      await this.#connect(signal);
      state.wake = () => this.#wake();
      state.connected = true;
      this.#onConnected();
      void this.#pollHead(signal);
      await this.#loop(signal);
    } finally {
      signal.removeEventListener('abort', onAbort);
      state.wake = () => undefined;
      state.connected = false;
      state.meter.forget();
      state.windows.discardAll();
      await this.#stream?.close();
      await closeSession(this.#apply);
      await closeSession(this.#origin);
    }
  }

  async #connect(signal: AbortSignal): Promise<void> {
    const { origin, target, direction } = this.#state;
    const { originEndpoint, targetEndpoint } = this.#settings;
    this.#origin = await openSession(origin, originEndpoint, `${direction} head`);
    endOnAbort(this.#origin, signal, STOP_GRACE_MS);
    this.#apply = await openSession(target, targetEndpoint, `${direction} apply`, APPLY_SETTINGS);
    endOnAbort(this.#apply, signal, STOP_GRACE_MS);
    await this.#relations.read(this.#origin, this.#apply);
    const { tables, bindingOf } = this.#relations;
    this.#writer = new FlushWriter(this.#state, this.#apply, tables, bindingOf);
    await this.#awaitFormerWriter(this.#apply);
    if (this.#settings.renewable) await proveTarget(this.#apply, direction);
    const progress = await readProgress(this.#apply, direction);
    if (progress === null) {
      throw new UnderstudyError('internal', `the ${direction} stream has no recorded start`);
    }
    for (const [mark, position] of await readMarks(this.#apply, direction)) {
      this.#state.passed(mark, position);
    }
    await this.#readWholeCopies(this.#apply);
    const { position: _, ...authority } = progress;
    this.#state.authority = authority;
    this.#state.committed = progress.position;
    this.#skips = await readSkips(this.#apply, direction, progress.position);
    this.#assembler = new TransactionAssembler(origin, {
      authority: this.#state.authority,
      wanted: (relation, led) => this.#relations.wanted(relation, led),
      subsetOf: (relation) => this.#state.subsetOf(nameOf(relation)),
      notesStrays: this.#state.onStrays !== null,
      partBytesMax: Math.max(65_536, Math.floor(this.#settings.streamBytesMax / 4)),
    });
    if (this.#state.copying) await this.#state.noteHeldCommits(this.#origin);
    this.#stream = await ReplicationStream.open(
      origin,
      originEndpoint,
      {
        slot: this.#settings.slot,
        publication: this.#settings.publication,
        from: progress.position,
        statusIntervalMs: this.#settings.statusIntervalMs,
        clock: this.#state.clock,
        ...this.#proof(this.#apply, progress.position),
      },
      {
        onMessage: (message, bytes) => {
          // What comes behind a relation that is not understood must not be taken for all there is.
          if (this.#failure !== undefined) return;
          const part = this.#assembler?.accept(message, bytes);
          if (part != null) this.#accept(part);
        },
        onKeepalive: (walEnd) => {
          if (this.#assembler?.inTransaction === true || this.#failure !== undefined) return;
          this.#queue.reach(walEnd);
          this.#idle();
        },
      },
    );
    void this.#stream.ended.then((reason) => this.#fail(reason));
    const code = target === 'source' ? 'source-unreachable' : 'destination-unreachable';
    this.#apply.client.on('end', () =>
      this.#fail(new UnderstudyError(code, `the ${target} ended the apply connection`)),
    );
  }

  #proof(target: Session, position: bigint): { readonly prove?: (client: pg.Client) => Promise<void> } {
    const { direction, origin: side } = this.#state;
    const { slot, renewable } = this.#settings;
    if (!renewable) return {};
    return { prove: (client) => proveHistory(client, { target, side, direction, slot, position }) };
  }

  /**
   * A flush whose COMMIT was sent may be committed long after its client was lost. Progress read before that would bring
   * the same changes again: so each apply connection holds a lock for as long as it lives, and waits for its
   * predecessor's. The server ends a connection whose peer is gone (see APPLY_SETTINGS).
   */
  async #awaitFormerWriter(apply: Session): Promise<void> {
    await run(
      apply,
      {
        text: `SELECT pg_catalog.pg_advisory_lock(pg_catalog.hashtext('understudy apply'), pg_catalog.hashtext($1))`,
        values: [`${this.#state.direction} ${this.#settings.slot}`],
      },
      { what: 'waiting for the former apply connection to end' },
    );
  }

  /** A whole copy whose commit was not answered may stand: what its snapshot holds must not be applied again. */
  async #readWholeCopies(apply: Session): Promise<void> {
    for (const [table, { snapshot, snapshotUntil }] of await readTableCopies(apply)) {
      if (snapshot === null || snapshotUntil === null) continue;
      this.#state.wholeCopies.set(table, { snapshot: parseSnapshot(snapshot), until: snapshotUntil });
    }
  }

  #accept(part: TransactionPart): void {
    const { authority } = this.#state;
    const routeMoved = part.authority !== authority;
    // Nothing of it has to be written: like a keepalive, it only says how far the stream has come.
    const nothing =
      part.last &&
      part.changes.length === 0 &&
      part.messages.length === 0 &&
      part.strays.length === 0 &&
      !routeMoved;
    if (nothing && this.#queue.length === 0 && !this.#flushing && !this.#isOpen) {
      this.#queue.reach(part.endLsn);
      this.#idle();
      return;
    }
    this.#queue.push(part, this.#state.clock.monotonicMs());
    const held = this.#queue.bytes + this.#inFlightBytes;
    if (held > this.#settings.streamBytesMax && !this.#paused) {
      this.#paused = true;
      this.#stream?.pause();
    }
    this.#wake();
  }

  /** Nothing waits and nothing is being written: the stream's position is the lane's. */
  #idle(): void {
    if (this.#queue.length > 0 || this.#flushing || this.#isOpen) return;
    this.#advance(this.#queue.position);
  }

  #advance(position: bigint): void {
    const state = this.#state;
    if (state.committed === null || position > state.committed) {
      state.committed = position;
      if (state.unsentAt !== null && position > state.unsentAt) this.#onConnected();
    }
    if (state.stuck !== null && position > parseLsn(state.stuck.position)) state.stuck = null;
    this.#stream?.acknowledge(state.committed);
  }

  #fail(reason: UnderstudyError): void {
    this.#failure ??= reason;
    this.#wake();
  }

  #wake(): void {
    this.#notify();
  }

  async #loop(signal: AbortSignal): Promise<void> {
    for (;;) {
      await this.#ready(signal);
      if (signal.aborted) return;
      const task = this.#isOpen || this.#failure !== undefined ? undefined : this.#state.tasks.shift();
      if (task !== undefined) {
        await this.#task(task);
      } else if (this.#queue.length > 0) {
        await this.#flushNext();
      } else if (this.#failure !== undefined) {
        throw this.#failure;
      }
    }
  }

  /** Resolves once there is something to do. */
  async #ready(signal: AbortSignal): Promise<void> {
    for (;;) {
      const waitMs = this.#dueInMs(signal);
      if (waitMs <= 0) return;
      const impatience = new AbortController();
      const woken = new Promise<void>((resolve) => (this.#notify = resolve));
      const late =
        waitMs === Infinity
          ? new Promise<never>(() => undefined)
          : this.#state.clock.sleep(waitMs, impatience.signal).catch(() => undefined);
      await Promise.race([woken, late]);
      impatience.abort();
      this.#notify = () => undefined;
    }
  }

  #dueInMs(signal: AbortSignal): number {
    if (signal.aborted || this.#failure !== undefined) return 0;
    if (this.#state.tasks.length > 0 && !this.#isOpen) return 0;
    const oldest = this.#queue.oldestAtMs;
    if (oldest === null) return Infinity;
    if (this.#queue.urgent || this.#isOpen) return 0;
    const { flushChangesMax, flushIntervalMs } = this.#settings;
    const nowMs = this.#state.clock.monotonicMs();
    const restMs = this.#flushedAtMs + this.#state.pace.applyRestMs(this.#flushMs) - nowMs;
    if (this.#paused || this.#queue.changes >= flushChangesMax) return restMs;
    return Math.max(restMs, oldest + this.#state.pace.intervalMs(flushIntervalMs) - nowMs);
  }

  async #task(task: LaneTask): Promise<void> {
    try {
      if (this.#apply === undefined) throw new UnderstudyError('internal', 'the lane is not connected');
      await task.work(this.#apply);
      task.done();
    } catch (error) {
      task.failed(error);
      // Whatever state the task left the connection in, a new one has none of it.
      throw asUnderstudyError(error, 'internal', 'a task of the lane');
    }
  }

  async #flushNext(): Promise<void> {
    const { clock } = this.#state;
    const startedMs = clock.monotonicMs();
    this.#flushing = true;
    try {
      const flush = this.#take();
      if (flush !== null) await this.#flush(flush);
      this.#flushedAtMs = clock.monotonicMs();
      this.#flushMs = this.#flushedAtMs - startedMs;
    } finally {
      this.#flushing = false;
      this.#inFlightBytes = 0;
    }
    if (this.#paused && this.#queue.bytes <= this.#settings.streamBytesMax / 2) {
      this.#paused = false;
      this.#stream?.resume();
    }
    this.#idle();
  }

  #take(): Flush | null {
    const { windows, delivered } = this.#state;
    const parts = this.#queue.take(
      this.#settings.flushChangesMax,
      this.#settings.streamBytesMax / 2,
      (part) => part.messages.some((message) => message.t === 'mark' || isKnownHigh(message, windows)),
    );
    const last = parts.at(-1);
    if (last === undefined) return null;
    this.#inFlightBytes = parts.reduce((sum, part) => sum + part.bytes, 0);
    let chunkEnd: ChunkEnd | null = null;
    const changes: Change[] = [];
    for (const part of parts) {
      const skipped = this.#skips.get(part.commitLsn);
      for (const [index, change] of part.changes.entries()) {
        if (skipped?.has(part.firstChange + index) === true) continue;
        windows.observe(change, this.#relations.bindingOf);
        const kept = this.#withoutCopied(change, part);
        if (kept !== null) changes.push(kept);
      }
      if (!part.last) continue;
      this.#state.noteDelivered(part.xid);
      for (const message of part.messages) {
        if (message.t === 'low') windows.low(message.chunk, delivered);
        else if (message.t === 'high') chunkEnd = windows.high(message.chunk) ?? chunkEnd;
      }
    }
    return { parts, changes, last, chunkEnd };
  }

  /** A change without what the whole copy of its table holds already; null where nothing of it is left. */
  #withoutCopied(change: Change, part: TransactionPart): Change | null {
    const { wholeCopies } = this.#state;
    if (wholeCopies.size === 0) return change;
    const isDone = (relation: RelationMessage): boolean => {
      const copy = wholeCopies.get(nameOf(relation));
      return copy !== undefined && isCopied(copy, part.xid, part.commitLsn);
    };
    if (change.kind !== 'truncate') return isDone(change.relation) ? null : change;
    const relations = change.relations.filter((relation) => !isDone(relation));
    return relations.length === 0 ? null : { kind: 'truncate', relations };
  }

  async #flush(flush: Flush): Promise<void> {
    const marks = flush.parts.flatMap((part) =>
      part.messages.flatMap((message) => (message.t === 'mark' ? [{ id: message.id, at: part.endLsn }] : [])),
    );
    const { authority } = this.#state;
    const routeMoved = flush.last.last && flush.last.authority !== authority;
    const writes =
      this.#isOpen ||
      flush.changes.length > 0 ||
      marks.length > 0 ||
      routeMoved ||
      isWritable(flush.chunkEnd);
    const { chunkEnd } = flush;
    try {
      await this.#tellStrays(flush);
      if (writes) await this.#writer?.write(flush, marks);
    } catch (error) {
      chunkEnd?.chunk.settle('discarded');
      throw error;
    }
    if (this.#isOpen) return;
    this.#state.authority = flush.last.authority;
    this.#state.transactionsApplied += flush.parts.filter(
      (part) => part.last && part.changes.length > 0,
    ).length;
    this.#advance(flush.last.endLsn);
    for (const mark of marks) this.#state.passed(mark.id, mark.at);
    if (flush.parts.some((part) => part.messages.some((message) => message.t === 'ddl')))
      this.#state.onSchemaNotice();
    if (chunkEnd === null) return;
    const written = this.#writer?.chunkWritten === true ? 'written' : 'discarded';
    chunkEnd.chunk.settle('outcome' in chunkEnd ? chunkEnd.outcome : written);
  }

  async #tellStrays({ parts }: Flush): Promise<void> {
    const { onStrays } = this.#state;
    if (onStrays === null || parts.every(({ strays }) => strays.length === 0)) return;
    await onStrays(
      parts.flatMap((part) => strayWrites(part, part.strays, 0, part.straysCut, this.#relations.bindingOf)),
    );
  }

  /** Whether a transaction of the target holds the first parts of one of the origin's. */
  get #isOpen(): boolean {
    return this.#writer?.open === true;
  }

  async #pollHead(signal: AbortSignal): Promise<void> {
    try {
      while (!signal.aborted && this.#failure === undefined && this.#origin !== undefined) {
        const { rows } = await run(this.#origin, 'SELECT pg_catalog.pg_current_wal_flush_lsn() AS head', {
          what: 'asking for the head of the log',
        });
        this.#state.meter.heard(parseLsn(textOf(rows[0], 'head')), this.#state.clock.monotonicMs());
        await this.#state.clock.sleep(this.#settings.headPollIntervalMs, signal);
      }
    } catch (error) {
      if (!signal.aborted) this.#fail(asUnderstudyError(error, 'internal', 'asking for the head of the log'));
    }
  }
}

function isKnownHigh(message: TransactionPart['messages'][number], windows: LaneState['windows']): boolean {
  return message.t === 'high' && windows.has(message.chunk);
}
