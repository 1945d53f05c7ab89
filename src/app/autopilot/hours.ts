/** Hours in which a switch may happen by itself, as people write them: `Mon-Fri 01:00-05:00, Sun`. */
import { UnderstudyError } from '../../core/errors.js';
import { zoneOffset, type ZoneOffset } from '../../predict/local-time.js';
import { DAY_MS, MINUTE_MS } from '../../predict/series.js';

const DAYS = ['mon', 'tue', 'wed', 'thu', 'fri', 'sat', 'sun'];
const MINUTES_OF_DAY = 1440;
const EXAMPLE = 'Mon-Fri 01:00-05:00, Sun';

interface Span {
  /** 0 is Monday. */
  readonly days: readonly number[];
  /** Minutes of the day; `until` past midnight goes on into the next. */
  readonly from: number;
  readonly until: number;
}

export class AllowedHours {
  readonly #spans: readonly Span[];
  readonly #offset: ZoneOffset;

  private constructor(spans: readonly Span[], offset: ZoneOffset) {
    this.#spans = spans;
    this.#offset = offset;
  }

  /**
   * Spans separated by commas, each days, times or both; an empty text allows all. Days are English and may be a range, which may
   * go over the week's end; times `HH:MM-HH:MM` may go over midnight. Throws `config-invalid`; `series-invalid` for an unknown
   * `zone`.
   */
  static parse(text: string, zone: string): AllowedHours {
    const parts = text
      .split(',')
      .map((part) => part.trim())
      .filter((part) => part !== '');
    return new AllowedHours(parts.map(spanOf), zoneOffset(zone));
  }

  allows(atMs: number): boolean {
    if (this.#spans.length === 0) return true;
    const wallMs = atMs + this.#offset(atMs);
    const minute = Math.floor((((wallMs % DAY_MS) + DAY_MS) % DAY_MS) / MINUTE_MS);
    // 1970-01-01 was a Thursday.
    const day = (((Math.floor(wallMs / DAY_MS) + 3) % 7) + 7) % 7;
    const before = (day + 6) % 7;
    return this.#spans.some(
      ({ days, from, until }) =>
        (days.includes(day) && minute >= from && minute < until) ||
        (days.includes(before) && minute + MINUTES_OF_DAY < until),
    );
  }
}

function spanOf(part: string): Span {
  const found =
    /^(?:([a-z]{3})[a-z]*(?:\s*-\s*([a-z]{3})[a-z]*)?)?\s*(?:(\d\d?):(\d\d)\s*-\s*(\d\d?):(\d\d))?$/i.exec(
      part,
    );
  const [, first, last, ...times] = found ?? [];
  const [fromHour, fromMinute, untilHour, untilMinute] = times.map(Number);
  if (found === null) throw unreadable(part);
  const days = first === undefined ? [0, 1, 2, 3, 4, 5, 6] : daysOf(part, first, last ?? first);
  if (times[0] === undefined) return { days, from: 0, until: MINUTES_OF_DAY };
  const from = minutesOf(part, fromHour, fromMinute);
  const until = minutesOf(part, untilHour, untilMinute);
  if (from >= MINUTES_OF_DAY) throw unreadable(part);
  return { days, from, until: until > from ? until : until + MINUTES_OF_DAY };
}

function minutesOf(part: string, hour = 0, minute = 0): number {
  if (hour > 24 || minute > 59 || (hour === 24 && minute > 0)) throw unreadable(part);
  return hour * 60 + minute;
}

function daysOf(part: string, first: string, last: string): readonly number[] {
  const [from, until] = [DAYS.indexOf(first.toLowerCase()), DAYS.indexOf(last.toLowerCase())];
  if (from < 0 || until < 0) throw unreadable(part);
  const days: number[] = [];
  for (let day = from; ; day = (day + 1) % 7) {
    days.push(day);
    if (day === until) return days;
  }
}

function unreadable(part: string): UnderstudyError {
  return new UnderstudyError('config-invalid', `“${part}” is no span of hours, such as ${EXAMPLE}`);
}
