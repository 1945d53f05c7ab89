/**
 * Tells a row that is merely in flight from one that really differs.
 *
 * One round: read the unit on the authoritative side (h1), settle (everything committed before is now on the
 * follower), read the follower (d), read the authoritative side again (h2).
 * - d = h2: the follower holds what the authoritative side holds. Equal.
 * - h1 = h2 ≠ d: it was at rest and the follower holds something else. A mismatch, once seen in two rounds.
 * - otherwise it was written meanwhile: again. So that rows written all the time end too, the authoritative side is
 *   sampled throughout the round; a follower that in two rounds held a value seen *in that round* is following. A
 *   value lost before the round can't be among them unless the row took it again. Without a key, where a sample is
 *   a scan, a number of copies between the least and the most seen in the round counts as seen.
 * What is neither after the last round is reported as still changing: not proven equal.
 */
import type { RowDifference } from '../../core/ports.js';

/** Names what is compared: a row by its key, or, in a table without key, a row's hash. */
export type UnitId = readonly string[];

/** Reads units on one side: a hash, or a number of copies; undefined where there is none. In the order of `ids`. */
export type ReadUnits = (ids: readonly UnitId[]) => Promise<readonly (string | undefined)[]>;

/** Reads units several times in a row, as densely as the server can: every value seen, per unit. */
export type SampleUnits = (ids: readonly UnitId[]) => Promise<readonly ReadonlySet<string | undefined>[]>;

export interface RecheckOptions {
  readonly readAuthoritative: ReadUnits;
  readonly readFollower: ReadUnits;
  /** null where a read is a scan: then what units hold is a number of copies. */
  readonly sampleAuthoritative: SampleUnits | null;
  readonly settle: () => Promise<void>;
  readonly roundsMax: number;
  readonly signal: AbortSignal;
}

export interface ConfirmedDifference {
  readonly id: UnitId;
  readonly difference: RowDifference;
  readonly authoritative: string | undefined;
  readonly follower: string | undefined;
}

const CONFIRMATIONS = 2;
/** More undecided units than this are not sampled; the first rounds thin them out. */
const SAMPLED_MAX = 100;
/** Between two bursts of samples, so that they leave the server room. */
const SAMPLE_PAUSE_MS = 1;

interface Unit {
  readonly id: UnitId;
  /** Rounds in which it was at rest and differed. */
  atRest: number;
  /** Rounds in which it was written and the follower held one of its values. */
  followed: number;
}

/** Returns the units that really differ. Rejects with the signal's reason, or as the reads and `settle` do. */
export async function recheck(
  ids: readonly UnitId[],
  options: RecheckOptions,
): Promise<readonly ConfirmedDifference[]> {
  const confirmed: ConfirmedDifference[] = [];
  let undecided: Unit[] = ids.map((id) => ({ id, atRest: 0, followed: 0 }));
  for (let round = 1; undecided.length > 0; round += 1) {
    const last = round >= options.roundsMax;
    const observed = await observe(undecided, options);
    const next: Unit[] = [];
    for (const [index, unit] of undecided.entries()) {
      const seen = observed[index];
      if (seen === undefined) continue;
      const verdict = judge(unit, seen, options.sampleAuthoritative === null);
      if (verdict === 'equal') continue;
      if (verdict === 'undecided' && !last) next.push(unit);
      else {
        confirmed.push({
          id: unit.id,
          difference: verdict === 'undecided' && unit.atRest === 0 ? 'still-changing' : differenceOf(seen),
          authoritative: seen.after,
          follower: seen.follower,
        });
      }
    }
    undecided = next;
  }
  return confirmed;
}

interface Observation {
  /** Every value read on the authoritative side in this round, the last one included. */
  readonly values: ReadonlySet<string | undefined>;
  readonly after: string | undefined;
  readonly follower: string | undefined;
}

async function observe(units: readonly Unit[], options: RecheckOptions): Promise<readonly Observation[]> {
  const ids = units.map((unit) => unit.id);
  const values = units.map(() => new Set<string | undefined>());
  const read = async (): Promise<readonly (string | undefined)[]> => {
    const hashes = await options.readAuthoritative(ids);
    hashes.forEach((hash, index) => values[index]?.add(hash));
    return hashes;
  };
  await read();
  const progress = { done: false };
  const readFollower = async (): Promise<readonly (string | undefined)[]> => {
    try {
      await options.settle();
      return await options.readFollower(ids);
    } finally {
      progress.done = true;
    }
  };
  const { sampleAuthoritative } = options;
  const sample = async (): Promise<void> => {
    if (sampleAuthoritative === null || ids.length > SAMPLED_MAX) return;
    while (!progress.done && !options.signal.aborted) {
      const samples = await sampleAuthoritative(ids);
      samples.forEach((seen, index) => seen.forEach((value) => values[index]?.add(value)));
      await new Promise((resolve) => setTimeout(resolve, SAMPLE_PAUSE_MS));
    }
  };
  const [follower] = await Promise.all([readFollower(), sample()]);
  options.signal.throwIfAborted();
  const after = await read();
  return units.map((_, index) => ({
    values: values[index] ?? new Set(),
    after: after[index],
    follower: follower[index],
  }));
}

function judge(unit: Unit, seen: Observation, copies: boolean): 'equal' | 'differs' | 'undecided' {
  if (seen.follower === seen.after) return 'equal';
  if (seen.values.size === 1) {
    unit.atRest += 1;
    return unit.atRest >= CONFIRMATIONS ? 'differs' : 'undecided';
  }
  if (copies ? withinSeen(seen) : seen.values.has(seen.follower)) {
    unit.followed += 1;
    return unit.followed >= CONFIRMATIONS ? 'equal' : 'undecided';
  }
  return 'undecided';
}

function withinSeen(seen: Observation): boolean {
  const counts = [...seen.values].map((value) => Number(value ?? 0));
  const count = Number(seen.follower ?? 0);
  return Math.min(...counts) <= count && count <= Math.max(...counts);
}

function differenceOf(seen: Observation): RowDifference {
  if (seen.follower === undefined) return 'missing';
  if (seen.after === undefined) return 'extra';
  return 'different';
}
