/**
 * The main thread's side of the capture. It owns the ring, which outlives the worker: while none is attached, or one
 * has crashed, statements pile up in the ring and are then dropped, and counted, without troubling traffic.
 *
 * States: detached ⇄ attached → closed. Counts of what was aggregated live in the worker and start over with a new
 * one; what was offered and dropped is counted here.
 */
import type { Worker } from 'node:worker_threads';
import { ByteRingWriter, createByteRing } from '../core/byte-ring.js';
import { UnderstudyError } from '../core/errors.js';
import type { CaptureSnapshot } from '../core/capture-ports.js';
import type { Side, TableName } from '../core/ports.js';
import type { SeriesSettings } from './keeper.js';
import { ThreadCaller } from '../core/thread-call.js';
import { receiveBatch, type CaptureBatch } from './relay.js';
import { RingTap } from './tap.js';

export interface CaptureOptions {
  /** Size of the ring, rounded up to a power of two. */
  readonly ringBytes: number;
  /** A statement's text is cut there. */
  readonly textBytesMax: number;
  /** null: nothing is kept in the destination. */
  readonly series: SeriesSettings | null;
  /** The clock that `endedAtMs` of what is offered is on. */
  readonly monotonicMs: () => number;
}

/** What the worker's thread calls carry; see `worker.ts`. */
export interface StartArgument {
  readonly ring: SharedArrayBuffer;
  readonly tables: readonly TableName[];
  readonly series: SeriesSettings | null;
  /** The main thread's monotonic clock, at the call. */
  readonly monotonicMs: number;
}
export type WorkerSnapshot = Omit<CaptureSnapshot, 'offered' | 'dropped' | 'unrecorded'>;

export class CaptureClient {
  readonly tap: RingTap;
  readonly #memory: SharedArrayBuffer;
  readonly #ring: ByteRingWriter;
  #options: CaptureOptions;
  #caller: ThreadCaller | undefined;
  #tables: readonly TableName[] = [];
  #closed = false;

  constructor(options: CaptureOptions) {
    this.#options = options;
    this.#memory = createByteRing(options.ringBytes);
    this.#ring = new ByteRingWriter(this.#memory);
    this.tap = new RingTap(this.#ring, options.textBytesMax);
  }

  /**
   * Hands the ring to a worker running `capture/worker.js`, which the caller started and ends. One at a time: the one
   * before must have ended. Resolves once it reads the ring.
   */
  async attach(worker: Pick<Worker, 'postMessage' | 'on'>): Promise<void> {
    if (this.#closed) throw closedError();
    this.detach(new UnderstudyError('internal', 'another capture worker was attached'));
    this.#caller = new ThreadCaller(worker);
    const { series, monotonicMs } = this.#options;
    const argument: StartArgument = {
      ring: this.#memory,
      tables: this.#tables,
      series,
      monotonicMs: monotonicMs(),
    };
    await this.#call('start', argument);
  }

  /** Statements that another process has served. */
  receive(batch: CaptureBatch): void {
    receiveBatch(batch, this.#ring);
  }

  /** The worker is gone: calls fail with `error` until another is attached. */
  detach(error: UnderstudyError): void {
    this.#caller?.close(error);
    this.#caller = undefined;
  }

  /** Names by which unqualified tables in statements are resolved; kept for workers attached later. */
  async setTables(tables: readonly TableName[]): Promise<void> {
    this.#tables = tables;
    if (this.#caller !== undefined) await this.#call('setTables', tables);
  }

  /** Which side's catalogs are read first. */
  async setLeader(side: Side): Promise<void> {
    if (this.#caller !== undefined) await this.#call('setLeader', side);
  }

  /** Keeps nothing in the destination from now on, and says when nothing is on its way there any more. */
  async stopKeeping(): Promise<void> {
    this.#options = { ...this.#options, series: null };
    if (this.#caller !== undefined) await this.#call('stopKeeping', null);
  }

  /** Hands what was collected to the destination, as far as it can be reached. */
  async flush(): Promise<void> {
    if (this.#caller !== undefined) await this.#call('flush', null);
  }

  /** Counts since the worker started, everything offered before the call included. Throws `internal` without one. */
  async snapshot(): Promise<CaptureSnapshot> {
    const counted = await this.#call<WorkerSnapshot>('snapshot', null);
    return {
      ...counted,
      offered: this.#ring.offered,
      dropped: this.#ring.dropped,
      unrecorded: this.tap.unrecorded,
    };
  }

  /** No more calls. The tap goes on accepting, so that whoever holds it needs no order of shutting down. */
  close(): void {
    this.#closed = true;
    this.detach(closedError());
  }

  async #call<T>(method: string, argument: unknown): Promise<T> {
    if (this.#caller === undefined) {
      throw this.#closed ? closedError() : new UnderstudyError('internal', 'no capture worker is running');
    }
    const answer = this.#caller.call<T>(method, argument);
    // The worker may be asleep on the ring; the message is queued already, so it is found on waking.
    this.#ring.wake();
    return await answer;
  }
}

function closedError(): UnderstudyError {
  return new UnderstudyError('cancelled', 'the capture is closed');
}
