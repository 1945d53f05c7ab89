/**
 * Counts per bucket on a regular UTC grid. A bucket without a sample is *missing*, which is not zero: capture may have
 * been off. Everything a clock, a gap or a bad value can do to the grid is settled here, and said in `notes`.
 */
import { UnderstudyError } from '../core/errors.js';

export const MINUTE_MS = 60_000;
export const HOUR_MS = 60 * MINUTE_MS;
export const DAY_MS = 24 * HOUR_MS;

export interface Series {
  /** UTC start of the first bucket. */
  readonly startMs: number;
  readonly stepMs: number;
  /** One value per bucket; 0 where missing. */
  readonly values: Float64Array;
  /** 1 where there was no sample. */
  readonly missing: Uint8Array;
}

export interface Sample {
  readonly atMs: number;
  readonly value: number;
}

export interface SeriesOptions {
  readonly stepMs: number;
  /** sum for counts; mean for gauges. Default: sum. */
  readonly combine?: 'sum' | 'mean';
  /** Samples later than this are from a clock that ran ahead: left out. */
  readonly nowMs?: number;
  /** A silence longer than this ends what came before it; default 28 days. */
  readonly gapMsMax?: number;
}

export interface SeriesBuild {
  readonly series: Series;
  /** What was left out or mended, one sentence each. Empty where nothing was. */
  readonly notes: readonly string[];
}

/**
 * Buckets samples of any order. Throws `series-invalid` on a negative or non-finite value or time, naming which sample,
 * and on a step that is not positive.
 */
export function buildSeries(samples: Iterable<Sample>, options: SeriesOptions): SeriesBuild {
  const { stepMs } = options;
  if (!(stepMs > 0) || !Number.isFinite(stepMs)) throw invalid(`a step of ${stepMs} ms`);
  const notes: string[] = [];
  const sorted = checkedSamples(samples, options, notes);
  const kept = afterLongestGap(sorted, options.gapMsMax ?? 28 * DAY_MS, notes);
  const first = kept[0];
  const last = kept.at(-1);
  if (first === undefined || last === undefined) return { series: emptySeries(stepMs), notes };
  const startMs = Math.floor(first.atMs / stepMs) * stepMs;
  const length = Math.floor((last.atMs - startMs) / stepMs) + 1;
  const values = new Float64Array(length);
  const counts = new Uint32Array(length);
  for (const { atMs, value } of kept) {
    const bucket = Math.floor((atMs - startMs) / stepMs);
    values[bucket] = (values[bucket] ?? 0) + value;
    counts[bucket] = (counts[bucket] ?? 0) + 1;
  }
  const missing = new Uint8Array(length);
  for (let bucket = 0; bucket < length; bucket++) {
    const count = counts[bucket] ?? 0;
    if (count === 0) missing[bucket] = 1;
    else if (options.combine === 'mean') values[bucket] = (values[bucket] ?? 0) / count;
  }
  return { series: { startMs, stepMs, values, missing }, notes };
}

function checkedSamples(samples: Iterable<Sample>, options: SeriesOptions, notes: string[]): Sample[] {
  const kept: Sample[] = [];
  let previous = Number.NEGATIVE_INFINITY;
  let backwards = 0;
  let ahead = 0;
  let index = 0;
  for (const sample of samples) {
    const { atMs, value } = sample;
    if (!Number.isFinite(atMs)) throw invalid(`sample ${index} has no time`);
    if (!Number.isFinite(value) || value < 0) throw invalid(`sample ${index} has the value ${value}`);
    index += 1;
    if (options.nowMs !== undefined && atMs > options.nowMs) {
      ahead += 1;
      continue;
    }
    if (atMs < previous - options.stepMs) backwards += 1;
    previous = atMs;
    kept.push(sample);
  }
  if (ahead > 0) notes.push(`${ahead} samples from the future were left out: a clock ran ahead.`);
  if (backwards > 0) notes.push(`The clock went back ${backwards} times; samples were put in order of time.`);
  return backwards === 0 ? kept : kept.sort((a, b) => a.atMs - b.atMs);
}

/** A grid over years of silence would be all gap, so a long silence (or one wild clock) cuts; the longer side stays. */
function afterLongestGap(sorted: Sample[], gapMsMax: number, notes: string[]): Sample[] {
  let best: Sample[] = [];
  let from = 0;
  let pieces = 0;
  for (let index = 1; index <= sorted.length; index++) {
    const gap = (sorted[index]?.atMs ?? Number.POSITIVE_INFINITY) - (sorted[index - 1]?.atMs ?? 0);
    if (gap <= gapMsMax) continue;
    pieces += 1;
    // Of equal pieces the later one: it is nearer to what is to be forecast.
    if (index - from >= best.length) best = sorted.slice(from, index);
    from = index;
  }
  if (pieces > 1) {
    const left = sorted.length - best.length;
    notes.push(
      `${left} ${left === 1 ? 'sample' : 'samples'} beyond a silence of more than ${Math.round(gapMsMax / DAY_MS)} days left out: what counts begins ${new Date(best[0]?.atMs ?? 0).toISOString()}.`,
    );
  }
  return best;
}

/**
 * Adds `factor` buckets up to one, aligned to the larger step in UTC. A larger bucket of which less than half is known
 * is missing; one that is partly known is scaled up to the whole.
 */
export function rollUp(series: Series, factor: number, combine: 'sum' | 'mean' = 'sum'): Series {
  const stepMs = series.stepMs * factor;
  const startMs = Math.floor(series.startMs / stepMs) * stepMs;
  const skip = Math.round((series.startMs - startMs) / series.stepMs);
  const length = Math.ceil((skip + series.values.length) / factor);
  const values = new Float64Array(length);
  const missing = new Uint8Array(length);
  for (let bucket = 0; bucket < length; bucket++) {
    let sum = 0;
    let known = 0;
    for (let part = bucket * factor - skip; part < (bucket + 1) * factor - skip; part++) {
      if (part < 0 || part >= series.values.length || series.missing[part] === 1) continue;
      sum += series.values[part] ?? 0;
      known += 1;
    }
    if (known * 2 < factor) missing[bucket] = 1;
    else values[bucket] = combine === 'mean' ? sum / known : (sum * factor) / known;
  }
  return { startMs, stepMs, values, missing };
}

export function emptySeries(stepMs: number): Series {
  return { startMs: 0, stepMs, values: new Float64Array(0), missing: new Uint8Array(0) };
}

function invalid(what: string): UnderstudyError {
  return new UnderstudyError('series-invalid', `A series of counts can’t hold this: ${what}.`, {
    advice: 'Correct the input: counts are finite and not negative.',
  });
}
