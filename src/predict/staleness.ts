/**
 * m: which share of a subset's hot rows its shadow holds older than is allowed.
 *
 * No row is read for it. A lane's committed position is the version of all its rows (DESIGN §5), and keys are captured as
 * hashes, which can't be looked up; so what is measured is the lane's lag, what of each table is copied, and how often each
 * hot key is written. A copied row is stale if it was written longer ago than is allowed, but not before the time that the
 * lane has reached; a row that isn't copied yet is stale.
 */
import { clamp } from './numeric.js';

export interface StaleShare {
  /** 0…1. */
  readonly value: number;
  readonly low: number;
  readonly high: number;
  /** Hot keys that were looked at; tables, where keys aren't captured. */
  readonly samples: number;
  /** Ends “Most by: ”. */
  readonly reason: string;
}

/** What a subset's hot rows are, as far as their staleness goes. */
export interface HotRows {
  readonly table: string;
  /** Of the subset's heat; or of anything else that the tables of one subset are weighed by. */
  readonly weight: number;
  /** By hot key, the hottest first; undefined where keys aren't captured. */
  readonly writesPerHour: readonly number[] | undefined;
}

export interface Freshness {
  /** By table, the share of it that is copied, 0…1. */
  readonly copied: ReadonlyMap<string, number>;
  /** null: not known. */
  readonly lagMs: number | null;
  readonly allowanceMs: number;
}

/**
 * `Σ weightₜ · ((1 − copiedₜ) + copiedₜ · mean(1 − exp(−λᵢ · (lag − allowance)⁺)))`, with λᵢ the writes to key i, taken as
 * Poisson. Where keys aren't captured, rows of a lane that is late may all be stale, or none. undefined: there is no shadow to
 * speak of, nothing hot, or its lag isn't known.
 */
export function staleShare(rows: readonly HotRows[], freshness: Freshness): StaleShare | undefined {
  const { copied, lagMs, allowanceMs } = freshness;
  const known = rows.filter(({ table }) => copied.has(table));
  const even = known.every(({ weight }) => weight <= 0);
  const weightOf = ({ weight }: HotRows): number => (even ? 1 : Math.max(0, weight));
  const total = known.reduce((sum, one) => sum + weightOf(one), 0);
  if (total <= 0) return undefined;
  const lateHours = Math.max(0, (lagMs ?? 0) - allowanceMs) / 3_600_000;
  const sums = { value: 0, low: 0, high: 0, notCopied: 0 };
  // Partitions share their root's keys: these are counted once.
  const seen = new Set<readonly number[]>();
  let samples = 0;
  for (const one of known) {
    const share = weightOf(one) / total;
    const done = clamp(copied.get(one.table) ?? 0, 0, 1);
    if (done > 0 && lagMs === null) return undefined;
    const late = lateOf(one.writesPerHour, lateHours);
    sums.notCopied += share * (1 - done);
    sums.value += share * (1 - done + done * late.value);
    sums.low += share * (1 - done + done * late.low);
    sums.high += share * (1 - done + done * late.high);
    if (one.writesPerHour === undefined) samples += 1;
    else if (!seen.has(one.writesPerHour)) {
      seen.add(one.writesPerHour);
      samples += one.writesPerHour.length;
    }
  }
  const { value, low, high, notCopied } = sums;
  return {
    value: clamp(value, 0, 1),
    low: clamp(low, 0, 1),
    high: clamp(high, 0, 1),
    samples,
    reason:
      notCopied >= value / 2 && notCopied > 0
        ? `${(100 * notCopied).toFixed(0)} % of its hot rows are not copied yet`
        : `${(100 * value).toFixed(1)} % of its hot rows are staler than ${allowanceMs} ms`,
  };
}

/** Of copied rows. The next moments' writes are within a factor of two of the last day's mean, as for the term c. */
function lateOf(
  writesPerHour: readonly number[] | undefined,
  lateHours: number,
): { readonly value: number; readonly low: number; readonly high: number } {
  if (lateHours <= 0) return { value: 0, low: 0, high: 0 };
  if (writesPerHour === undefined) return { value: 1, low: 0, high: 1 };
  const share = (factor: number): number =>
    writesPerHour.length === 0
      ? 0
      : writesPerHour.reduce((sum, rate) => sum + 1 - Math.exp(-rate * factor * lateHours), 0) /
        writesPerHour.length;
  return { value: share(1), low: share(1 / 2), high: share(2) };
}
