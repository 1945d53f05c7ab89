/**
 * People's habits follow the clock on the wall, so the models see buckets in local time: the hour that spring leaves
 * out is missing, the hour that autumn repeats is the mean of both. Forecasts are read back by UTC time.
 */
import { UnderstudyError } from '../core/errors.js';
import { DAY_MS, type Series } from './series.js';

/** Gives a zone's offset from UTC in ms, east positive, at a UTC time. */
export type ZoneOffset = (utcMs: number) => number;

/** `zone`: an IANA name. Throws `series-invalid` where the zone is not known. */
export function zoneOffset(zone: string): ZoneOffset {
  if (zone === 'UTC') return () => 0;
  let format: Intl.DateTimeFormat;
  try {
    format = new Intl.DateTimeFormat('en-US', {
      timeZone: zone,
      hourCycle: 'h23',
      year: 'numeric',
      month: '2-digit',
      day: '2-digit',
      hour: '2-digit',
      minute: '2-digit',
      second: '2-digit',
    });
  } catch (error) {
    throw new UnderstudyError('series-invalid', `There is no time zone ${zone}.`, {
      cause: error,
      advice: 'Give a name of the IANA database, such as Europe/Berlin, or UTC.',
    });
  }
  // Offsets change on quarter hours at most, and reading one costs microseconds.
  const known = new Map<number, number>();
  const ask = (quarter: number): number => {
    const cached = known.get(quarter);
    if (cached !== undefined) return cached;
    const utcMs = quarter * 900_000;
    const parts: Record<string, number> = {};
    for (const { type, value } of format.formatToParts(utcMs)) parts[type] = Number(value);
    const { year = 0, month = 1, day = 1, hour = 0, minute = 0, second = 0 } = parts;
    const offset = Date.UTC(year, month - 1, day, hour, minute, second) - utcMs;
    known.set(quarter, offset);
    return offset;
  };
  return (utcMs) => {
    // Where both ends of a UTC day agree, so does all between: no zone changes twice in a day.
    const day = Math.floor(utcMs / DAY_MS) * 96;
    const atStart = ask(day);
    return atStart === ask(day + 96) ? atStart : ask(Math.floor(utcMs / 900_000));
  };
}

/** A series on the wall clock's grid. Wall times are written as if they were UTC. */
export interface LocalSeries extends Series {
  readonly offset: ZoneOffset;
  /** Steps in a day; the grid's period. */
  readonly perDay: number;
  /** Which step of the week bucket 0 is; the week begins on Monday 00:00. */
  readonly firstSlot: number;
}

/** Throws `series-invalid` where a day is not a whole number of steps. */
export function toLocal(series: Series, offset: ZoneOffset): LocalSeries {
  const { stepMs } = series;
  const perDay = DAY_MS / stepMs;
  if (!Number.isInteger(perDay)) {
    throw new UnderstudyError('series-invalid', `A day is not a whole number of steps of ${stepMs} ms.`);
  }
  const count = series.values.length;
  const startMs = series.startMs + offset(series.startMs);
  const indices = new Int32Array(count);
  let length = 0;
  for (let bucket = 0; bucket < count; bucket++) {
    const utcMs = series.startMs + bucket * stepMs;
    const index = Math.max(0, Math.round((utcMs + offset(utcMs) - startMs) / stepMs));
    indices[bucket] = index;
    if (index + 1 > length) length = index + 1;
  }
  const values = new Float64Array(length);
  const counts = new Uint8Array(length);
  for (let bucket = 0; bucket < count; bucket++) {
    if (series.missing[bucket] === 1) continue;
    const index = indices[bucket] ?? 0;
    values[index] = (values[index] ?? 0) + (series.values[bucket] ?? 0);
    counts[index] = (counts[index] ?? 0) + 1;
  }
  const missing = new Uint8Array(length);
  for (let index = 0; index < length; index++) {
    const parts = counts[index] ?? 0;
    if (parts === 0) missing[index] = 1;
    else values[index] = (values[index] ?? 0) / parts;
  }
  return { startMs, stepMs, values, missing, offset, perDay, firstSlot: slotOfWeek(startMs, stepMs) };
}

/** The step of the week (from Monday 00:00) in which a wall time lies. */
export function slotOfWeek(wallMs: number, stepMs: number): number {
  const WEEK_MS = 7 * DAY_MS;
  // 1970-01-01 was a Thursday.
  const sinceMonday = (((wallMs + 3 * DAY_MS) % WEEK_MS) + WEEK_MS) % WEEK_MS;
  return Math.floor(sinceMonday / stepMs);
}

/** The index on the local grid of a UTC time; may lie beyond either end. */
export function localIndex(series: LocalSeries, utcMs: number): number {
  return Math.round((utcMs + series.offset(utcMs) - series.startMs) / series.stepMs);
}
