/**
 * Mends rows of a lane's target that were found to differ, while both sides are in use: the destination's while the source
 * leads them, the source's while the destination does.
 *
 * A repair is a chunk of the copy's kind that names its keys: `low`, a read of the origin, `high`; what the stream
 * changed between the two is left alone, and the rest is replaced in the flush that ends at `high`. So a repair is one
 * more event in the stream's order and can't undo a later change. What stood there and what took its place are
 * recorded in `understudy.repaired_row`, in the same transaction.
 *
 * A table without a key is copied anew, whole, as its first copy was.
 *
 * Failing: the lane's interruption discards the chunk, which is then read again, {@link ATTEMPTS_MAX} times.
 */
import type { Clock } from '../core/clock.js';
import type { DatabaseEndpoint } from '../core/ports.js';
import { emitMessageSql } from '../core/postgres.js';
import { WHOLE_DATABASE } from '../core/ports.js';
import { UnderstudyError } from '../core/errors.js';
import { heldFor } from './held.js';
import type { LaneState } from './lane-state.js';
import type { ApplyTable, Key } from './postgres/apply-table.js';
import { emit, openReader, readChunk } from './postgres/chunk-reader.js';
import type { Chunk, ChunkOutcome } from './postgres/chunk.js';
import { recordWholeCopy } from './postgres/copy-records.js';
import { closeSession, endOnAbort, inTransaction, run, type Session } from './postgres/statement.js';
import { copyWhole } from './postgres/whole-copy.js';

export interface RepairContext {
  readonly lane: LaneState;
  /** Of the lane. */
  readonly origin: DatabaseEndpoint;
  readonly clock: Clock;
  /** Unique to this repair, so that an earlier one's marks mean nothing. */
  readonly runId: string;
}

/** Rows replaced by one flush: few, as they are looked up one by one and the flush holds their locks. */
export const REPAIR_KEYS_MAX = 500;
/** Bytes of them that are held, unless it is one row. */
const REPAIR_BYTES_MAX = 64 * 1024 * 1024;
const ATTEMPTS_MAX = 50;
const PAUSE_MS = 50;

/** Mends the rows of `keys`, or, of a table without a key, all. Throws what the reads do, or `repair-failed`. */
export async function repairTable(
  context: RepairContext,
  table: ApplyTable,
  keys: readonly Key[],
  signal: AbortSignal,
): Promise<void> {
  if (table.key === null) await repairWhole(context, table, signal);
  else await repairRows(context, table, keys, signal);
}

/** Replaces the rows of `keys`, the origin's side of each winning. */
async function repairRows(
  context: RepairContext,
  table: ApplyTable,
  keys: readonly Key[],
  signal: AbortSignal,
): Promise<void> {
  await withReader(context, signal, async (session) => {
    for (let start = 0; start < keys.length; start += REPAIR_KEYS_MAX) {
      const batch = keys.slice(start, start + REPAIR_KEYS_MAX);
      await repairBatch(context, session, table, batch, `${context.runId}-${start}`, signal);
    }
  });
}

async function withReader(
  { lane, origin }: RepairContext,
  signal: AbortSignal,
  use: (session: Session) => Promise<void>,
): Promise<void> {
  const session = await openReader(lane.origin, origin);
  endOnAbort(session, signal, 0);
  try {
    await lane.observing(session, () => use(session));
  } finally {
    await closeSession(session);
  }
}

async function repairBatch(
  context: RepairContext,
  session: Session,
  table: ApplyTable,
  repairs: readonly Key[],
  id: string,
  signal: AbortSignal,
): Promise<void> {
  const { lane, clock } = context;
  for (let attempt = 1; attempt <= ATTEMPTS_MAX; attempt++) {
    signal.throwIfAborted();
    let settle: (outcome: ChunkOutcome) => void = () => undefined;
    const outcome = new Promise<ChunkOutcome>((resolve) => (settle = resolve));
    const chunk: Chunk = {
      id: `${id}-${attempt}`,
      table,
      lower: null,
      pendingKeyId: null,
      repairs,
      snapshot: 'untaken',
      read: null,
      settle,
    };
    lane.windows.register(chunk);
    try {
      await emit(session, { t: 'low', chunk: chunk.id });
      const read = await readChunk(
        session,
        chunk,
        repairs.length,
        (at) => lane.delivered.seenBy(at),
        REPAIR_BYTES_MAX,
      );
      if (read !== null && !('frames' in read)) {
        const half = Math.ceil(repairs.length / 2);
        lane.windows.discard(chunk);
        await repairBatch(context, session, table, repairs.slice(0, half), `${id}a`, signal);
        await repairBatch(context, session, table, repairs.slice(half), `${id}b`, signal);
        return;
      }
      chunk.read = read;
      if (read !== null) {
        await emit(session, { t: 'high', chunk: chunk.id });
        if ((await untilAborted(outcome, signal)) === 'written') return;
      }
    } finally {
      lane.windows.discard(chunk);
    }
    await clock.sleep(PAUSE_MS, signal);
  }
  throw new UnderstudyError('repair-failed', `${table.name}: its rows are written all the time`, {
    advice: 'Run `understudy verify --repair` again when there is less to do.',
  });
}

/** Copies a table without a key anew; the rows of both sides are not recorded. */
async function repairWhole(context: RepairContext, table: ApplyTable, signal: AbortSignal): Promise<void> {
  const { lane, clock } = context;
  await withReader(context, signal, async (session) => {
    for (let attempt = 1; attempt <= ATTEMPTS_MAX; attempt++) {
      const done = await copiedWhole(lane, session, table, signal);
      if (done) return;
      await clock.sleep(PAUSE_MS, signal);
    }
    throw new UnderstudyError('repair-failed', `${table.name}: no snapshot held all that was applied`, {
      advice: 'Run `understudy verify --repair` again.',
    });
  });
}

async function copiedWhole(
  lane: LaneState,
  origin: Session,
  table: ApplyTable,
  signal: AbortSignal,
): Promise<boolean> {
  const what = `copying ${table.name}`;
  let copied = false;
  await lane.exclusive(async (target) => {
    const result = await inTransaction(target, what, async () => {
      const tag = emitMessageSql({ t: 'apply', lane: WHOLE_DATABASE, epoch: lane.authority.epoch });
      await run(target, tag, { what });
      const subset = lane.subsetOf(table.name);
      if (!(await heldFor(target, new Set([subset]), lane.authority)).has(subset)) throw notLed(lane, table);
      const whole = await copyWhole(origin, target, table, lane.delivered);
      if (whole !== null) {
        const { rows, snapshotText: snapshot, until } = whole;
        await recordWholeCopy(target, table.info, { rows, snapshot, until });
      }
      return whole;
    });
    if (result === null) return;
    lane.wholeCopies.set(table.name, result);
    copied = true;
  }, signal);
  return copied;
}

function notLed({ origin }: LaneState, table: ApplyTable): UnderstudyError {
  return new UnderstudyError(
    'repair-failed',
    `${table.name}: the ${origin} does not lead it, or a switch is open`,
    { advice: 'Rows are taken from the side that leads: wait for the switch to end.' },
  );
}

function untilAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = (): void => reject(signal.reason as Error);
    if (signal.aborted) onAbort();
    else signal.addEventListener('abort', onAbort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
  });
}
