/**
 * Times as PostgreSQL logs them, `2026-03-29 02:30:00.123 CEST`, to milliseconds since the epoch.
 *
 * The zone is a number, or the abbreviation that `log_timezone` has at that moment. Abbreviations are not unique: IST
 * is used in India, Israel and Ireland. Those take the zone that the user names; without one, the commonest is taken
 * and said ({@link LogTime.assumptions}).
 *
 * Where a named zone decides, the hour that comes twice in autumn is told apart by order: a time is taken as early as
 * it can be without going back behind the one before.
 */
import { UnderstudyError } from '../../core/errors.js';

/** Abbreviation → minutes east of UTC, of those that mean one thing. */
const ABBREVIATIONS: Readonly<Record<string, number>> = {
  UTC: 0,
  GMT: 0,
  Z: 0,
  UCT: 0,
  WET: 0,
  WEST: 60,
  CET: 60,
  CEST: 120,
  MET: 60,
  MEST: 120,
  EET: 120,
  EEST: 180,
  MSK: 180,
  PKT: 300,
  WIB: 420,
  WITA: 480,
  WIT: 540,
  HKT: 480,
  JST: 540,
  KST: 540,
  AWST: 480,
  ACST: 570,
  ACDT: 630,
  AEST: 600,
  AEDT: 660,
  NZST: 720,
  NZDT: 780,
  SAST: 120,
  CAT: 120,
  EAT: 180,
  WAT: 60,
  EST: -300,
  EDT: -240,
  CDT: -300,
  MST: -420,
  MDT: -360,
  PST: -480,
  PDT: -420,
  AKST: -540,
  AKDT: -480,
  HST: -600,
  NST: -210,
  NDT: -150,
  ADT: -180,
};

/** Abbreviations that mean several things: the commonest, and its name for the user. */
const AMBIGUOUS: Readonly<Record<string, readonly [minutes: number, name: string]>> = {
  IST: [330, 'India, +05:30'],
  CST: [-360, 'North America, -06:00'],
  BST: [60, 'Britain, +01:00'],
  AST: [-240, 'Atlantic, -04:00'],
  SST: [-660, 'Samoa, -11:00'],
};

const TIME = /^(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)$/;
const DAY_MS = 86_400_000;

export class LogTime {
  readonly #zone: ZoneOffsets | null;
  /** What had to be assumed, for the user: abbreviation → reading. */
  readonly assumptions = new Map<string, string>();
  #lastText = '';
  #lastZone = '';
  #lastMs = NaN;
  #latestMs = -Infinity;

  /** `timezone`: an IANA name or `+02:00`. Throws `config-invalid` where it is neither. */
  constructor(timezone: string | undefined) {
    this.#zone = timezone === undefined ? null : new ZoneOffsets(timezone);
  }

  /**
   * `2026-03-29 02:30:00.123 CEST`, `2026-03-29T00:30:00.123Z`. NaN where it can't be read.
   * Throws `config-invalid` for an abbreviation that is not known, as guessing would shift everything.
   */
  parse(text: string): number {
    const head = text.slice(0, 19);
    let at = 19;
    let fraction = 0;
    const mark = text.charCodeAt(19);
    if (mark === 0x2e || mark === 0x2c) {
      at = 20;
      let scale = 100;
      for (; at < text.length; at += 1) {
        const digit = text.charCodeAt(at) - 0x30;
        if (digit < 0 || digit > 9) break;
        fraction += digit * scale;
        scale /= 10;
      }
      fraction = Math.floor(fraction);
    }
    const zone = text.charCodeAt(at) === 0x20 ? text.slice(at + 1) : text.slice(at);
    if (head !== this.#lastText || zone !== this.#lastZone) {
      this.#lastMs = this.#seconds(head, zone);
      this.#lastText = head;
      this.#lastZone = zone;
    }
    return this.#lastMs + fraction;
  }

  #seconds(head: string, zone: string): number {
    const found = TIME.exec(head);
    if (found === null) return NaN;
    const [year, month, day, hour, minute, second] = found.slice(1).map(Number) as [
      number,
      number,
      number,
      number,
      number,
      number,
    ];
    const local = Date.UTC(year, month - 1, day, hour, minute, second);
    const ms = this.#toUtc(local, zone);
    if (ms > this.#latestMs) this.#latestMs = ms;
    return ms;
  }

  #toUtc(local: number, zone: string): number {
    const fixed = numericOffset(zone) ?? ABBREVIATIONS[zone];
    if (fixed !== undefined) return local - fixed * 60_000;
    if (this.#zone !== null) return this.#zone.toUtc(local, this.#latestMs);
    if (zone === '') {
      this.assumptions.set('times without a zone', 'UTC');
      return local;
    }
    const guess = AMBIGUOUS[zone];
    if (guess === undefined) {
      throw new UnderstudyError('config-invalid', `the time zone abbreviation “${zone}” is not known`, {
        advice:
          'Name the zone of the server’s log_timezone: --timezone Continent/City, or --timezone +02:00.',
      });
    }
    this.assumptions.set(zone, guess[1]);
    return local - guess[0] * 60_000;
  }
}

/** `+02`, `-0330`, `+05:30` → minutes east of UTC. Undefined where it is no number. */
function numericOffset(zone: string): number | undefined {
  const found = /^([+-])(\d\d)(?::?(\d\d))?(?::?\d\d)?$/.exec(zone);
  if (found === null) return undefined;
  const minutes = Number(found[2]) * 60 + Number(found[3] ?? 0);
  return found[1] === '-' ? -minutes : minutes;
}

/** Offsets of one zone, by the rules that the runtime knows. */
class ZoneOffsets {
  readonly #fixedMs: number | null;
  readonly #format: Intl.DateTimeFormat | null;

  constructor(timezone: string) {
    const minutes = numericOffset(timezone) ?? (/^(UTC|GMT|Z)$/i.test(timezone) ? 0 : undefined);
    this.#fixedMs = minutes === undefined ? null : minutes * 60_000;
    try {
      this.#format =
        minutes !== undefined
          ? null
          : new Intl.DateTimeFormat('en-US', {
              timeZone: timezone,
              hourCycle: 'h23',
              year: 'numeric',
              month: 'numeric',
              day: 'numeric',
              hour: 'numeric',
              minute: 'numeric',
              second: 'numeric',
            });
    } catch (error) {
      throw new UnderstudyError('config-invalid', `“${timezone}” is no time zone`, {
        cause: error,
        advice: 'Give an IANA name such as Europe/Berlin, or an offset such as +02:00.',
      });
    }
  }

  /** `local` is the wall clock read as if it were UTC; `notBefore` tells the two passes of a repeated hour apart. */
  toUtc(local: number, notBefore: number): number {
    const before = local - this.#offsetMs(local - DAY_MS);
    const after = local - this.#offsetMs(local + DAY_MS);
    if (before === after) return before;
    const valid = [before, after]
      .filter((candidate) => candidate + this.#offsetMs(candidate) === local)
      .sort((a, b) => a - b);
    return valid.find((candidate) => candidate >= notBefore - 1000) ?? valid.at(-1) ?? before;
  }

  #offsetMs(utc: number): number {
    if (this.#fixedMs !== null) return this.#fixedMs;
    if (this.#format === null) return 0;
    const parts: Record<string, number> = {};
    for (const { type, value } of this.#format.formatToParts(utc)) parts[type] = Number(value);
    const wall = Date.UTC(
      parts['year'] ?? 0,
      (parts['month'] ?? 1) - 1,
      parts['day'] ?? 1,
      parts['hour'] ?? 0,
      parts['minute'] ?? 0,
      parts['second'] ?? 0,
    );
    return wall - Math.floor(utc / 1000) * 1000;
  }
}
