/**
 * Keeps the log that the shadow's slots hold back from filling a server's disk: before that, the shadow is dropped.
 *
 * A slot keeps the log from the oldest position on that its stream may still ask for. What each of the two slots keeps
 * is measured against one budget:
 *
 *   fine ──¾──► tight ──1──► spent          tight ──below ½──► fine          spent is final
 *
 * - tight: the copy pauses, so that the stream, with which it shares the destination, catches up.
 * - spent: both streams stop for good, and both slots are dropped: without the one the other is of no use, and would go
 *   on keeping log.
 *
 * Invariants: only a measurement decides, so a side that can't be asked stays what it was; asking goes on. The budget is
 * watched from the moment the shadow starts, whether or not its streams are connected: a destination that is down for
 * long is what it is for. Where no process watches, the server's own max_slot_wal_keep_size is the only bound.
 */
import type { Clock } from '../core/clock.js';
import { UnderstudyError, asUnderstudyError } from '../core/errors.js';
import type { Log } from '../core/log.js';
import type { DatabaseEndpoint, Side } from '../core/ports.js';
import { dropSlot } from './postgres/slot.js';
import { closeSession, openSession, run, withSession, type Session } from './postgres/statement.js';

export type LogPressure = 'fine' | 'tight' | 'spent';

/** `retainedBytes` of a slot against the budget; 0 is no budget. */
export function logPressure(before: LogPressure, retainedBytes: number, budgetBytes: number): LogPressure {
  if (budgetBytes === 0) return 'fine';
  if (before === 'spent' || retainedBytes >= budgetBytes) return 'spent';
  const bound = before === 'tight' ? 0.5 : 0.75;
  return retainedBytes >= budgetBytes * bound ? 'tight' : 'fine';
}

export interface LogBudgetContext {
  readonly endpoints: Readonly<Record<Side, DatabaseEndpoint>>;
  readonly slots: Readonly<Record<Side, string>>;
  /** Of either server; 0 is no budget. */
  readonly budgetBytes: number;
  readonly pollIntervalMs: number;
  readonly clock: Clock;
  readonly log: Log;
  /** Stops the streams, then drops the slots. Never rejects. */
  readonly onSpent: (error: UnderstudyError) => Promise<void>;
}

const SIDES = ['source', 'destination'] as const;
const DROP_RETRY_MS = 1000;

export class LogBudget {
  readonly #context: LogBudgetContext;
  readonly #retained: Record<Side, number | null> = { source: null, destination: null };
  readonly #pressure: Record<Side, LogPressure> = { source: 'fine', destination: 'fine' };

  constructor(context: LogBudgetContext) {
    this.#context = context;
  }

  /** Some slot keeps more than it should: nothing may be done that slows the streams down. */
  get tight(): boolean {
    return SIDES.some((side) => this.#pressure[side] !== 'fine');
  }

  /** Bytes of log that this side's slot kept when last asked; null where that is not known, or there is no slot. */
  retainedBytes(side: Side): number | null {
    return this.#retained[side];
  }

  /** Measures until the signal aborts or the budget is spent. Never throws. */
  async watch(signal: AbortSignal): Promise<void> {
    await Promise.all(SIDES.map((side) => this.#watchSide(side, signal)));
  }

  async #watchSide(side: Side, signal: AbortSignal): Promise<void> {
    const { endpoints, pollIntervalMs, clock, log } = this.#context;
    let session: Session | undefined;
    while (!signal.aborted) {
      try {
        session ??= await openSession(side, endpoints[side], 'log budget');
        await this.#measured(side, await this.#measure(session));
      } catch (error) {
        this.#retained[side] = null;
        log.debug({ side, reason: asUnderstudyError(error, 'internal', 'log').message }, 'log not measured');
        if (session !== undefined) await closeSession(session);
        session = undefined;
      }
      await clock.sleep(pollIntervalMs, signal).catch(() => undefined);
    }
    if (session !== undefined) await closeSession(session);
  }

  /** Null where the slot is not there. */
  async #measure(session: Session): Promise<number | null> {
    const { rows } = await run(
      session,
      {
        text: `SELECT pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), restart_lsn) AS retained
          FROM pg_catalog.pg_replication_slots WHERE slot_name = $1 AND restart_lsn IS NOT NULL`,
        values: [this.#context.slots[session.side]],
      },
      { what: `measuring the log kept on the ${session.side}` },
    );
    return rows[0] === undefined ? null : Number(rows[0]['retained']);
  }

  async #measured(side: Side, retainedBytes: number | null): Promise<void> {
    const { budgetBytes, slots, log, onSpent } = this.#context;
    this.#retained[side] = retainedBytes;
    const before = this.#pressure[side];
    const now = logPressure(before, retainedBytes ?? 0, budgetBytes);
    if (now === before) return;
    this.#pressure[side] = now;
    log.warn(
      { side, slot: slots[side], retainedBytes, budgetBytes, pressure: now },
      'log kept by the shadow',
    );
    if (now !== 'spent') return;
    await onSpent(
      new UnderstudyError(
        'log-budget-spent',
        `slot ${slots[side]} kept ${retainedBytes} bytes of log on the ${side}, of ${budgetBytes} allowed: the shadow was dropped before the disk fills`,
        {
          details: { side, retainedBytes, budgetBytes },
          advice:
            'Find out what held its stream up, give shadow.logBudgetBytes what the disk can bear, and restart Understudy: the slot is made anew, and every table is compared and mended.',
        },
      ),
    );
  }

  /** Call once the streams have stopped. Drops both slots; a side that can't be asked is asked again until the signal aborts. Never throws. */
  async dropSlots(signal: AbortSignal): Promise<void> {
    await Promise.all(SIDES.map((side) => this.#dropSlot(side, signal)));
  }

  async #dropSlot(side: Side, signal: AbortSignal): Promise<void> {
    const { endpoints, slots, clock, log } = this.#context;
    while (!signal.aborted) {
      try {
        await withSession(side, endpoints[side], 'log budget', (session) =>
          dropSlot(session, slots[side], clock),
        );
        log.warn({ side, slot: slots[side] }, 'slot dropped');
        return;
      } catch (error) {
        const { code, message } = asUnderstudyError(error, 'internal', 'dropping a slot');
        log.error(
          { side, slot: slots[side], code, reason: message },
          'a slot that keeps log can’t be dropped yet',
        );
      }
      await clock.sleep(DROP_RETRY_MS, signal).catch(() => undefined);
    }
  }
}
