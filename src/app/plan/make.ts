/** From series, catalogs and live figures to a plan: the one way for the command line and for the loop. */
import type { Closure } from '../../capture/closure.js';
import type { Side } from '../../core/ports.js';
import type { FitProgress } from '../../predict/fit-all.js';
import type { PastCopy } from '../../predict/experience.js';
import type { PlanContext } from '../../predict/plan.js';
import { freshnessOf, logBudgetUsed, ratesOf, stallSettings, type LiveShadow } from './measurements.js';
import type { MeasuredSwitch } from './past-switches.js';
import { planInThread } from './plan-thread.js';
import { reportOf, type PlanReport } from './plan-report.js';
import type { PlanData } from './series-data.js';
import type { SizesAt } from './growth.js';
import { subsetsOf, type ConfiguredSubset, type StaleBasis } from './subsets.js';

export interface PlanRequest {
  readonly data: PlanData;
  readonly closure: Closure | null;
  readonly live: LiveShadow | undefined;
  /** Older than that, a row of the shadow counts as stale. */
  readonly staleAllowanceMs: number;
  /** {@link formatText}; null where no configuration says. */
  readonly format: string | null;
  /** undefined: the data's end. */
  readonly nowMs: number | undefined;
  readonly zone: string;
  readonly drainTimeoutMs: number;
  /** 0: no budget. */
  readonly logBudgetBytes: number;
  readonly hoursAhead: number;
  readonly windows: number;
  readonly past?: readonly PastCopy[];
  /** What tables measured, the oldest first. */
  readonly sizes?: readonly SizesAt[];
  /** As configured; empty or absent: the plan says which there could be. */
  readonly configured?: readonly ConfiguredSubset[];
  /** By subset, which side leads it now. */
  readonly sides?: ReadonlyMap<string, Side>;
  /** What switches took, where there were any. */
  readonly measuredSwitch?: MeasuredSwitch;
}

const UNMEASURED =
  'What comes over whole behind the fence was not measured yet: predicted stalls are without it.';

export const PLAN_DEFAULTS = { hoursAhead: 168, windows: 3 } as const;

export interface Planned {
  readonly plan: PlanReport;
  /** Of all tables with indexes, copied or not; null where no catalog told. */
  readonly bytes: number | null;
  /** By subset: what its divergence can be judged anew on as the shadow's lag changes. */
  readonly bases: ReadonlyMap<string, StaleBasis>;
}

/** Throws `series-invalid`, `cancelled`. */
export async function makePlanReport(
  request: PlanRequest,
  signal: AbortSignal,
  onProgress?: (progress: FitProgress) => void,
): Promise<Planned> {
  const { data, closure, live } = request;
  const freshness = live === undefined ? undefined : freshnessOf(live, request.staleAllowanceMs);
  const { sizes: measured = [], configured = [] } = request;
  const subsets = subsetsOf(data, closure, request.nowMs, { freshness, configured, sizes: measured });
  const sizes = closure?.tables.reduce(
    (sum, { bytes, rows }) => ({ bytes: sum.bytes + bytes, rows: sum.rows + (rows ?? 0) }),
    { bytes: 0, rows: 0 },
  );
  const context: PlanContext = {
    nowMs: subsets.nowMs,
    zone: request.zone,
    ...ratesOf(live, sizes),
    past: request.past ?? [],
    stall: stallSettings(live, request.drainTimeoutMs, request.measuredSwitch),
    logBudgetUsed: logBudgetUsed(live, request.logBudgetBytes),
    durationsByHour: subsets.durationsByHour,
    transactionsPerStatement: subsets.transactionsPerStatement,
    hoursAhead: request.hoursAhead,
    windows: request.windows,
  };
  const inputs = [...subsets.subsets, subsets.whole].map(({ input }) => input);
  const rows = await planInThread({ subsets: inputs, context }, signal, onProgress);
  const unmeasured = live !== undefined && live.exactMs === null;
  return {
    plan: reportOf(
      rows,
      unmeasured ? { ...subsets, unknown: [...subsets.unknown, UNMEASURED] } : subsets,
      context,
      data.origin,
      live?.phase ?? null,
      request.format,
      request.sides ?? new Map<string, Side>(),
    ),
    bytes: sizes?.bytes ?? null,
    bases: new Map(
      [...subsets.subsets, subsets.whole].map(({ input, staleness }) => [input.subset, staleness]),
    ),
  };
}
