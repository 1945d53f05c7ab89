/**
 * Mends what a stream has missed: each table that is on record (see lost-slot.ts) is compared with the side that leads
 * until both are equal, beside live traffic, as fast as the pace and the throttle let the copy be.
 */
import type { Clock } from '../core/clock.js';
import type { Direction, ShadowWarning } from '../core/ports.js';
import { forgetUnmended, readUnmended, recordMended } from './lost-slot.js';
import { pausing, type Pace } from './pace.js';
import type { Session } from './postgres/statement.js';
import { tableKey, type TableInfo } from './postgres/table.js';
import type { Throttle } from './throttle/throttle.js';
import { isUnlogged } from './unlogged.js';
import type { Verification } from './verification.js';

export interface MendingContext {
  readonly direction: Direction;
  /** Where the direction's stream writes. */
  readonly target: Session;
  readonly verification: Verification;
  readonly throttle: Throttle;
  readonly pace: Pace;
  readonly clock: Clock;
  readonly signal: AbortSignal;
  /** By table: how many changes the lane has left to the comparison. */
  readonly leftOut: Map<string, number>;
  readonly onWarning: (warning: ShadowWarning | null) => void;
}

export const REPAIRING = 'slot-renewed';

/** Throws what comparing and repairing do; what is mended is recorded, and calling again goes on. */
export async function mendTables(context: MendingContext, tables: readonly TableInfo[]): Promise<void> {
  const { direction, target, leftOut, throttle, onWarning } = context;
  const left = await readUnmended(target);
  if (left.length === 0) return;
  const open = tables.filter((table) => left.includes(tableKey(table)));
  await throttle.during(async () => {
    for (const [done, table] of open.entries()) {
      const leader = direction === 'forward' ? 'source' : 'destination';
      const message = `${done} of ${open.length} tables are compared with the ${leader} and mended`;
      onWarning({ code: REPAIRING, message });
      // What no log tells comes over whole at each switch.
      if (!isUnlogged(table)) await mendTable(context, table);
      leftOut.delete(tableKey(table));
      await recordMended(target, table);
    }
  });
  // Tables that are gone by now.
  await forgetUnmended(target);
  leftOut.clear();
  onWarning(null);
}

async function mendTable(context: MendingContext, table: TableInfo): Promise<void> {
  const { direction, verification, pace, clock, leftOut, signal } = context;
  let before: number | undefined;
  do {
    before = leftOut.get(tableKey(table));
    await verification.mend(direction, table, signal, pausing(pace, clock, signal));
  } while (leftOut.get(tableKey(table)) !== before);
}
