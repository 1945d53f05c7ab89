/** What a plan takes from a running process, and what it assumes where nothing was measured. */
import type { ResolvedConfig } from '../config.js';
import type { ShadowStatus, StreamStatus } from '../../core/ports.js';
import { counted, isCount } from '../../predict/numeric.js';
import type { PlanContext } from '../../predict/plan.js';
import type { Freshness } from '../../predict/staleness.js';
import type { Rate } from '../../predict/timeline.js';
import type { MeasuredSwitch } from './past-switches.js';

/** Guesses of a copy between two machines of today, over a network; `samples: 0` says that they are. */
const COPY_GUESS: Rate = { value: 40e6, low: 8e6, high: 120e6, samples: 0 };
const APPLY_GUESS: Rate = { value: 10_000, low: 2_000, high: 40_000, samples: 0 };
/** Of switches measured by `npm run bench:cutover`: fence and mark, comparison, commit and switch. */
const FIXED_GUESS_MS = { fence: 25, verify: 15, switch: 25 } as const;
/** The fixed parts vary by so much between machines. */
const SPREAD_GUESSED = 4;
const LAG_GUESS_MS = 50;
const VERIFY_ROWS_PER_SECOND = 20_000;
const APPLY_SHARE_WHILE_COPYING = 0.5;
/** Too few rows say nothing of a rate. */
const RATE_ROWS_MIN = 10_000;

/** From the shadow of a running process. */
export interface LiveShadow {
  readonly phase: ShadowStatus['phase'];
  /** By `schema.name`, the share that is copied, 0…1. */
  readonly copied: ReadonlyMap<string, number>;
  readonly lagMs: number | null;
  /** What comes over whole behind the fence was measured to take; null: not known. undefined: nothing does. */
  readonly exactMs?: number | null | undefined;
  /** Rows copied in all, and the seconds it took. */
  readonly copy: { readonly rows: number; readonly seconds: number };
  readonly logBytes: number | null;
  /** Changes a second that a lane with a backlog was seen to write; null: none had one. */
  readonly apply: Rate | null;
}

/** Phases in which every row has been copied. */
const COPIED_PHASES: readonly ShadowStatus['phase'][] = ['indexing', 'analyzing', 'following'];

export function liveShadow(status: ShadowStatus, apply: Rate | null = null): LiveShadow {
  const forward = status.streams.find(({ direction }: StreamStatus) => direction === 'forward');
  const whole = COPIED_PHASES.includes(status.phase);
  return {
    phase: status.phase,
    copied: new Map(
      status.tables.map(({ table, rowsCopied, rowsEstimated, done }) => [
        table,
        whole || done ? 1 : rowsEstimated > 0 ? Math.min(0.99, rowsCopied / rowsEstimated) : 0,
      ]),
    ),
    lagMs: forward?.lagMs ?? null,
    exactMs: forward?.exactMs,
    copy: status.copy,
    logBytes: forward?.logBytes ?? null,
    apply,
  };
}

/** What the shadow holds of each table and how late it is, for the divergence's term m. */
export function freshnessOf({ copied, lagMs }: LiveShadow, allowanceMs: number): Freshness {
  return { copied, lagMs, allowanceMs };
}

/** Retained log in relation to its budget, 0…1; a budget of 0 is none. */
export function logBudgetUsed(live: LiveShadow | undefined, budgetBytes: number): number {
  return budgetBytes > 0 ? Math.min(1, counted(live?.logBytes) / budgetBytes) : 0;
}

export interface MeasuredSizes {
  readonly bytes: number;
  readonly rows: number;
}

/** Rates of a plan, and how each was come by. */
export function ratesOf(
  live: LiveShadow | undefined,
  sizes: MeasuredSizes | undefined,
): Pick<PlanContext, 'copyBytesPerSecond' | 'applyChangesPerSecond' | 'applyShareWhileCopying'> {
  return {
    copyBytesPerSecond: measuredCopy(live, sizes) ?? COPY_GUESS,
    applyChangesPerSecond: measuredApply(live) ?? APPLY_GUESS,
    applyShareWhileCopying: APPLY_SHARE_WHILE_COPYING,
  };
}

function measuredApply(live: LiveShadow | undefined): Rate | undefined {
  const apply = live?.apply ?? undefined;
  return apply !== undefined && [apply.low, apply.value, apply.high].every(isCount) ? apply : undefined;
}

/** Rows were counted, bytes are estimated from the mean row's. */
function measuredCopy(live: LiveShadow | undefined, sizes: MeasuredSizes | undefined): Rate | undefined {
  if (live === undefined || sizes === undefined) return undefined;
  const { rows, seconds } = live.copy;
  if (!isCount(rows) || !isCount(seconds) || rows < RATE_ROWS_MIN || seconds <= 0 || sizes.rows <= 0)
    return undefined;
  const value = (rows / seconds) * (sizes.bytes / sizes.rows);
  return {
    value,
    low: value * 0.6,
    high: value * 1.5,
    samples: Math.max(1, Math.floor(rows / RATE_ROWS_MIN)),
  };
}

export function stallSettings(
  live: LiveShadow | undefined,
  drainTimeoutMs: number,
  measured?: MeasuredSwitch,
): PlanContext['stall'] {
  const exactMs = counted(live?.exactMs);
  return {
    lagMs: isCount(live?.lagMs ?? Number.NaN) ? counted(live?.lagMs) : LAG_GUESS_MS,
    verifyRowsPerSecond: VERIFY_ROWS_PER_SECOND,
    // Past switches waited for it too, between fence and mark.
    fixedMs:
      measured === undefined
        ? FIXED_GUESS_MS
        : { ...measured.fixedMs, fence: Math.max(0, measured.fixedMs.fence - exactMs) },
    exactMs,
    spread: measured?.spread ?? SPREAD_GUESSED,
    drainsMs: measured?.drainsMs ?? [],
    drainTimeoutMs,
  };
}

/** The form in which the destination holds what the source holds (docs/format.md). */
export function formatText(format: ResolvedConfig['shadow']['format']): string {
  const named = (count: number, one: string): string => `${count} ${one}${count === 1 ? '' : 's'}`;
  const [others, changed] = [Object.keys(format?.schemas ?? {}), Object.keys(format?.tables ?? {})];
  if (others.length + changed.length === 0) return 'identity';
  return [
    ...(others.length > 0 ? [`${named(others.length, 'schema')} under another name`] : []),
    ...(changed.length > 0 ? [`${named(changed.length, 'table')} in another form`] : []),
  ].join(', ');
}
