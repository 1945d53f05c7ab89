/** Captured keys of a subset → its hot share, and the terms of its divergence. */
import type { HotKeys } from '../../core/capture-ports.js';
import { keyDistance, keyDrift, rewrittenShare, type DivergenceInput } from '../../predict/divergence.js';
import { HOT_SHARE, hotSet, WRITE_WEIGHT } from '../../predict/hot-set.js';
import { counted } from '../../predict/numeric.js';
import type { PlanSubset } from '../../predict/plan.js';
import { DAY_MS, HOUR_MS } from '../../predict/series.js';

/** Within which a hot row's change has to reach the shadow, for the divergence's c. */
export const REFRESH_SECONDS = 60;
/** The next hour's writes to a key are within this factor of the last day's mean, nine times of ten. */
const WRITES_SPREAD = 2;
const WEEK_HOURS = 168;

export type ChangingKeys = Pick<DivergenceInput, 'rewritten' | 'drift'>;

interface KeyUse {
  readonly table: string;
  heat: number;
  writes: number;
}

/** `hotKeys`: of any tables and hours; those of `tables` count. Nothing known where none is there. */
export function hotOf(
  tables: ReadonlySet<string>,
  hotKeys: readonly HotKeys[],
): {
  readonly hot: PlanSubset['hot'];
  /** Without m, which takes a shadow. */
  readonly changing: ChangingKeys;
  /** By table, writes per hour of each of its keys that are hot. */
  readonly writesPerHour: ReadonlyMap<string, readonly number[]>;
} {
  const own = hotKeys.filter(({ table }) => tables.has(table));
  const lastMs = own.reduce((last, { startMs }) => Math.max(last, startMs), -Infinity);
  if (!Number.isFinite(lastMs))
    return {
      hot: undefined,
      changing: { rewritten: undefined, drift: undefined },
      writesPerHour: new Map(),
    };
  const day = own.filter(({ startMs }) => startMs > lastMs - DAY_MS);
  const hours = new Set(day.map(({ startMs }) => startMs)).size;
  const { keys, heat } = added(day);
  const heats = [...keys.values()].map((key) => ({ key, heat: key.heat }));
  const accesses = day.reduce((total, hour) => total + counted(hour.accesses), 0);
  const { keys: hottest, ...judgement } = hotSet(heats, new Set<KeyUse>(), accesses, HOT_SHARE, heat);
  const held = [...hottest];
  const byTable = new Map<string, number[]>();
  for (const { table, writes } of held) {
    const rates = byTable.get(table);
    if (rates === undefined) byTable.set(table, [writes / hours]);
    else rates.push(writes / hours);
  }
  return {
    hot: { ...judgement, share: judgement.value, keys: held.length },
    changing: {
      rewritten: rewrittenShare(
        held.map(({ writes }) => writes / hours),
        REFRESH_SECONDS,
        WRITES_SPREAD,
      ),
      drift: driftOf(own, lastMs),
    },
    writesPerHour: byTable,
  };
}

/** `heat` counts accesses to any key; of keys that are not told apart, how many wrote is not known. */
function added(hours: readonly HotKeys[]): { readonly keys: Map<string, KeyUse>; readonly heat: number } {
  const keys = new Map<string, KeyUse>();
  let heat = 0;
  for (const { table, accesses, keys: counted } of hours) {
    heat += accesses;
    for (const { key, count, writes } of counted) {
      const name = `${table}\0${key}`;
      const use = keys.get(name) ?? { table, heat: 0, writes: 0 };
      use.heat += count + (WRITE_WEIGHT - 1) * writes;
      use.writes += writes;
      heat += (WRITE_WEIGHT - 1) * writes;
      keys.set(name, use);
    }
  }
  return { keys, heat };
}

/** undefined: only one hour is known. */
function driftOf(own: readonly HotKeys[], lastMs: number): number | undefined {
  const at = (hoursAgo: number): Map<string, number> | undefined => {
    const hour = own.filter(({ startMs }) => startMs === lastMs - hoursAgo * HOUR_MS);
    if (hour.length === 0) return undefined;
    const counts = new Map<string, number>();
    for (const { table, keys } of hour) {
      for (const { key, count } of keys) {
        const name = `${table}\0${key}`;
        counts.set(name, (counts.get(name) ?? 0) + count);
      }
    }
    return counts;
  };
  const between = (hoursAgo: number): number | undefined => {
    const [now, before] = [at(hoursAgo), at(hoursAgo + 1)];
    return now === undefined || before === undefined ? undefined : keyDistance(now, before);
  };
  const now = between(0);
  return now === undefined ? undefined : keyDrift(now, between(WEEK_HOURS), 1);
}
