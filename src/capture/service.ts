/**
 * What the capture thread does: drains the ring into the aggregate and the series, and answers the main thread's calls.
 *
 * The loop, forever: note the ring's signal, let queued messages be handled, drain; then asleep on the ring, unless more
 * is left in it or the signal has moved since it was noted. A call bumps the signal after its message was
 * queued, so it is answered at once. Nothing here is waited for by the data path.
 */
import type { MessagePort } from 'node:worker_threads';
import { ByteRingReader } from '../core/byte-ring.js';
import type { CapturedStatement } from '../core/capture-ports.js';
import type { Side, TableName } from '../core/ports.js';
import { serveThreadCalls } from '../core/thread-call.js';
import { CaptureAggregate } from './aggregate.js';
import type { StartArgument, WorkerSnapshot } from './client.js';
import type { SeriesKeeper } from './keeper.js';
import { boundParameters } from './key-plan.js';
import { PostgresParser } from './parser.js';
import {
  BYTES_TO_CLIENT,
  BYTES_TO_SERVER,
  CUT,
  DURATION_MICROS,
  ENDED_AT,
  ERROR_CLASS_SHIFT,
  FAILED,
  FIXED_BYTES,
  FLAGS,
  PARAMETER_BYTES,
  ROWS,
  SESSION_ID,
  STATUS_SHIFT,
} from './record.js';
import { StatementCache } from './statements.js';

/** Records drained before messages are looked at again. */
const BATCH_RECORDS = 2_000;
/**
 * The nap after work, and the longest where none was found. Statements are let gather between two looks, because waking
 * for each costs several times what counting it does; a ring that gets half full ends a nap.
 */
const NAP_FIRST_MS = 20;
const NAP_MOST_MS = 200;
/** Between two looks at whether `start` was called. */
const STARTING_MS = 5;
/** While a server's answer is awaited, which arrives between naps. */
const NAP_BUSY_MS = 2;

/** The two characters of a SQLSTATE's class by their code; there are a few dozen. */
const classes = new Map<number, string>([[0, '']]);

export class CaptureService {
  readonly #aggregate = new CaptureAggregate();
  readonly #parser = new PostgresParser();
  readonly #statements = new StatementCache(this.#parser);
  #ring: ByteRingReader | undefined;
  #keeper: SeriesKeeper | undefined;
  #faults = 0;
  /** A server's last answers are awaited. */
  #closing = false;
  /** Wall clock less the main thread's monotonic clock. */
  #wallOffsetMs = 0;
  /** Main thread's monotonic clock less this one's. */
  #clockOffsetMs = 0;

  /** Begins to drain `argument.ring`. */
  async start(argument: StartArgument): Promise<void> {
    this.#clockOffsetMs = argument.monotonicMs - performance.now();
    await this.#parser.load();
    this.#aggregate.setTables(argument.tables);
    if (argument.series !== null) {
      // A capture that keeps nothing needs no driver.
      const keeper = await import('./keeper.js');
      this.#keeper = new keeper.SeriesKeeper(argument.series, this.#parser, this.#statements, Date.now());
    }
    this.#setClock();
    this.#ring = new ByteRingReader(argument.ring);
  }

  setTables(tables: readonly TableName[]): void {
    this.#aggregate.setTables(tables);
  }

  setLeader(side: Side): void {
    this.#keeper?.setLeader(side);
  }

  /** Counts everything that was in the ring when it was called. */
  snapshot(): WorkerSnapshot {
    this.#drainAll();
    return {
      ...this.#aggregate.snapshot(),
      refusedShapes: this.#statements.refused,
      parserTraps: this.#parser.traps,
      faults: this.#faults,
      series: this.#keeper?.status() ?? null,
    };
  }

  /** Hands what was collected to the destination, as far as it can be reached. */
  async flush(): Promise<void> {
    this.#drainAll();
    await this.#keeper?.flush();
  }

  /** Goes on counting, and keeps nothing any more. Resolves once nothing is on its way to the destination. */
  async stopKeeping(): Promise<void> {
    const keeper = this.#keeper;
    this.#keeper = undefined;
    this.#closing = true;
    await keeper?.close();
    this.#closing = false;
  }

  /** Bounded by the ring: at most so many of the smallest records fit into it. */
  #drainAll(): void {
    this.drain((this.#ring?.bytes.length ?? 0) / FIXED_BYTES);
  }

  /** Returns how many records were read, at most `recordsMax`. */
  drain(recordsMax: number): number {
    const ring = this.#ring;
    if (ring === undefined) return 0;
    this.#setClock();
    const now = Date.now();
    const dropped = ring.takeDropped();
    if (dropped > 0) this.#keeper?.collector.dropped(dropped, now);
    const read = ring.read(recordsMax, (offset, length) => this.#record(ring, offset, length));
    this.#keeper?.tick(now);
    return read;
  }

  /** Sleeps until woken since `seen` was noted. Blocks the thread. */
  nap(seen: number, ms: number): void {
    this.#ring?.wait(seen, this.#keeper?.busy === true || this.#closing ? Math.min(ms, NAP_BUSY_MS) : ms);
  }

  signal(): number {
    return this.#ring?.signal() ?? 0;
  }

  get started(): boolean {
    return this.#ring !== undefined;
  }

  /** Taken anew all the time: the wall clock may be set, the monotonic one drifts from it. */
  #setClock(): void {
    this.#wallOffsetMs = Date.now() - (performance.now() + this.#clockOffsetMs);
  }

  #record(ring: ByteRingReader, offset: number, length: number): void {
    const { floats, bytes } = ring;
    const at = offset >>> 3;
    const flags = floats[at + FLAGS] ?? 0;
    const end = offset + length;
    const parameterBytes = floats[at + PARAMETER_BYTES] ?? 0;
    const text = bytes.toString('utf8', offset + FIXED_BYTES, end - parameterBytes);
    const captured: CapturedStatement = {
      endedAtMs: (floats[at + ENDED_AT] ?? 0) + this.#wallOffsetMs,
      sessionId: floats[at + SESSION_ID] ?? 0,
      text,
      cut: (flags & CUT) !== 0,
      durationMicros: floats[at + DURATION_MICROS] ?? 0,
      rows: floats[at + ROWS] ?? 0,
      bytesToServer: floats[at + BYTES_TO_SERVER] ?? 0,
      bytesToClient: floats[at + BYTES_TO_CLIENT] ?? 0,
      errorClass: (flags & FAILED) === 0 ? null : errorClassOf(flags >>> ERROR_CLASS_SHIFT),
      transactionStatus: (flags >>> STATUS_SHIFT) & 0xff,
      ...(parameterBytes === 0
        ? {}
        : { parameters: boundParameters(bytes.subarray(end - parameterBytes, end)) }),
    };
    try {
      const read = this.#statements.read(text, captured.cut);
      this.#aggregate.add(read.statement, captured);
      this.#keeper?.collector.addRead(read, captured);
    } catch {
      // One statement that nobody thought of must not cost all the others.
      this.#faults += 1;
    }
  }
}

function errorClassOf(code: number): string {
  let known = classes.get(code);
  if (known === undefined) {
    known = String.fromCharCode(code & 0xff, code >>> 8);
    // Servers make up no more; a client that could would not make this grow.
    if (classes.size < 1_000) classes.set(code, known);
  }
  return known;
}

/** Serves the calls of `CaptureClient` on the port, and drains the ring until the thread ends. */
export async function runCapture(port: MessagePort): Promise<never> {
  const service = new CaptureService();
  serveThreadCalls(port, {
    start: (argument: StartArgument) => service.start(argument),
    setTables: (tables: readonly TableName[]) => service.setTables(tables),
    setLeader: (side: Side) => service.setLeader(side),
    snapshot: () => service.snapshot(),
    flush: () => service.flush(),
    stopKeeping: () => service.stopKeeping(),
  });
  let napMs = NAP_FIRST_MS;
  for (;;) {
    const seen = service.signal();
    await messagesHandled(service.started);
    const read = service.drain(BATCH_RECORDS);
    if (read === BATCH_RECORDS) continue;
    napMs = read > 0 ? NAP_FIRST_MS : Math.min(NAP_MOST_MS, napMs * 2);
    service.nap(seen, napMs);
  }
}

/** One turn of the event loop, in which messages that were queued are handled; before `start`, a slow one. */
function messagesHandled(started: boolean): Promise<void> {
  return new Promise((resolve) => {
    if (started) setImmediate(resolve);
    else setTimeout(resolve, STARTING_MS);
  });
}
