/**
 * What the capture thread does: drains the ring into the aggregate and answers the main thread's calls.
 *
 * The loop, forever: note the ring's signal, let queued messages be handled, drain; asleep on the ring only where
 * nothing was found and the signal has not moved since it was noted. A call bumps the signal after its message was
 * queued, so it is answered at once. Nothing here is waited for by the data path.
 */
import type { MessagePort } from 'node:worker_threads';
import { ByteRingReader } from '../core/byte-ring.js';
import type { TableName } from '../core/ports.js';
import { serveThreadCalls } from '../core/thread-call.js';
import { CaptureAggregate, type Execution } from './aggregate.js';
import type { StartArgument, WorkerSnapshot } from './client.js';
import {
  BYTES_TO_CLIENT,
  BYTES_TO_SERVER,
  CUT,
  DURATION_MICROS,
  FAILED,
  FIXED_BYTES,
  FLAGS,
  PARAMETER_BYTES,
  ROWS,
  SESSION_ID,
  STATUS_SHIFT,
} from './record.js';
import { PostgresParser } from './parser.js';
import { StatementCache } from './statements.js';

/** Records drained before messages are looked at again. */
const BATCH_RECORDS = 2_000;
/** The first nap after work, and the longest: short enough for the ring, long enough to cost nothing when idle. */
const NAP_FIRST_MS = 5;
const NAP_MOST_MS = 200;

export class CaptureService {
  readonly #aggregate = new CaptureAggregate();
  readonly #parser = new PostgresParser();
  readonly #statements = new StatementCache(this.#parser);
  #ring: ByteRingReader | undefined;

  /** Begins to drain `argument.ring`. */
  async start(argument: StartArgument): Promise<void> {
    await this.#parser.load();
    this.#aggregate.setTables(argument.tables);
    this.#ring = new ByteRingReader(argument.ring);
  }

  setTables(tables: readonly TableName[]): void {
    this.#aggregate.setTables(tables);
  }

  /** Counts everything that was in the ring when it was called. */
  snapshot(): WorkerSnapshot {
    // Bounded by the ring: at most so many of the smallest records fit into it.
    const most = (this.#ring?.bytes.length ?? 0) / FIXED_BYTES;
    this.drain(most);
    return this.#aggregate.snapshot();
  }

  /** Returns how many records were read, at most `recordsMax`. */
  drain(recordsMax: number): number {
    const ring = this.#ring;
    return ring?.read(recordsMax, (offset, length) => this.#record(ring, offset, length)) ?? 0;
  }

  /** Sleeps until woken since `seen` was noted. Blocks the thread. */
  nap(seen: number, ms: number): void {
    this.#ring?.wait(seen, ms);
  }

  signal(): number {
    return this.#ring?.signal() ?? 0;
  }

  get started(): boolean {
    return this.#ring !== undefined;
  }

  #record(ring: ByteRingReader, offset: number, length: number): void {
    const { floats, bytes } = ring;
    const at = offset >>> 3;
    const flags = floats[at + FLAGS] ?? 0;
    const execution: Execution = {
      sessionId: floats[at + SESSION_ID] ?? 0,
      durationMicros: floats[at + DURATION_MICROS] ?? 0,
      rows: floats[at + ROWS] ?? 0,
      bytesToServer: floats[at + BYTES_TO_SERVER] ?? 0,
      bytesToClient: floats[at + BYTES_TO_CLIENT] ?? 0,
      failed: (flags & FAILED) !== 0,
      cut: (flags & CUT) !== 0,
      transactionStatus: (flags >>> STATUS_SHIFT) & 0xff,
    };
    const textEnd = offset + length - (floats[at + PARAMETER_BYTES] ?? 0);
    const text = bytes.toString('utf8', offset + FIXED_BYTES, textEnd);
    this.#aggregate.add(this.#statements.read(text, execution.cut).statement, execution);
  }
}

/** Serves `start`, `setTables` and `snapshot` on the port, and drains the ring until the thread ends. */
export async function runCapture(port: MessagePort): Promise<never> {
  const service = new CaptureService();
  serveThreadCalls(port, {
    start: (argument: StartArgument) => service.start(argument),
    setTables: (tables: readonly TableName[]) => service.setTables(tables),
    snapshot: () => service.snapshot(),
  });
  let napMs = NAP_FIRST_MS;
  for (;;) {
    const seen = service.signal();
    await messagesHandled(service.started);
    if (service.drain(BATCH_RECORDS) > 0) {
      napMs = NAP_FIRST_MS;
      continue;
    }
    service.nap(seen, napMs);
    napMs = Math.min(NAP_MOST_MS, napMs * 2);
  }
}

/** One turn of the event loop, in which messages that were queued are handled; before `start`, a slow one. */
function messagesHandled(started: boolean): Promise<void> {
  return new Promise((resolve) => {
    if (started) setImmediate(resolve);
    else setTimeout(resolve, NAP_FIRST_MS);
  });
}
