/**
 * `log_line_prefix` as a pattern.
 * https://www.postgresql.org/docs/current/runtime-config-logging.html#GUC-LOG-LINE-PREFIX
 */
import { UnderstudyError } from '../../core/errors.js';

/** Names and application names are at most 63 bytes; the bound also keeps the pattern's work small. */
const NAME = '.{0,64}?';
const HOST = '(?:\\[local\\]|[^\\s()]{0,255}?)';
const STAMP = '\\d{4}-\\d\\d-\\d\\d \\d\\d:\\d\\d:\\d\\d';
const ZONE = ' [A-Za-z0-9<>+-]{1,10}';

/** Escape → what it looks like. */
const SHAPES: Readonly<Record<string, string>> = {
  a: NAME,
  u: NAME,
  d: NAME,
  r: '(?:\\[local\\]|[^\\s()]{0,255}?(?:\\(\\d+\\))?)',
  h: HOST,
  L: HOST,
  b: '[A-Za-z _-]{0,64}?',
  p: '\\d*',
  P: '\\d*',
  t: `${STAMP}${ZONE}`,
  m: `${STAMP}\\.\\d{3}${ZONE}`,
  n: '\\d{9,11}(?:\\.\\d{3})?',
  i: '[A-Za-z _]{0,64}?',
  e: '[0-9A-Z]{5}',
  c: '[0-9a-f]{1,16}\\.[0-9a-f]{1,8}',
  l: '\\d*',
  s: `(?:${STAMP}${ZONE})?`,
  v: '(?:-?\\d+/\\d+)?',
  x: '\\d*',
  Q: '-?\\d*',
};

export const PRIMARY = 'DEBUG[1-5]?|INFO|NOTICE|LOG|WARNING|ERROR|FATAL|PANIC';
export const SECONDARY = 'DETAIL|HINT|QUERY|CONTEXT|STATEMENT|LOCATION|BACKTRACE';
/** Something that looks like the head of a log line, whatever stands before it. */
export const LOOKS_LIKE_A_HEAD = new RegExp(`(?:^|[^A-Za-z])(?:${PRIMARY}|${SECONDARY}):  `);
/** A line's head is looked for within so many characters. */
export const HEAD_CHARS_MAX = 1_200;

/** The fields that are read from a prefix. */
export type PrefixField = 'time' | 'epoch' | 'pid' | 'session' | 'user' | 'database' | 'sqlState';

const FIELDS: Readonly<Record<string, PrefixField>> = {
  t: 'time',
  m: 'time',
  n: 'epoch',
  p: 'pid',
  c: 'session',
  u: 'user',
  d: 'database',
  e: 'sqlState',
};

export interface LinePrefix {
  readonly text: string;
  /** Matches a whole head up to the message; the last group is the severity. */
  readonly pattern: RegExp;
  /** The group of each field; absent where the prefix does not carry it. */
  readonly groups: Readonly<Partial<Record<PrefixField, number>>>;
  readonly severityGroup: number;
  readonly carriesTime: boolean;
}

/** Throws `config-invalid` for an escape that PostgreSQL does not know. */
export function compilePrefix(text: string): LinePrefix {
  const groups: Partial<Record<PrefixField, number>> = {};
  let pattern = '^';
  let group = 0;
  let optional = false;
  const piece = /%(-?\d*)([A-Za-z%])|%|[^%]+/g;
  for (const [whole, padding, escape] of text.matchAll(piece)) {
    if (escape === undefined) {
      if (whole === '%') throw badEscape(text, '%');
      pattern += literal(whole);
    } else if (escape === '%') {
      pattern += '%';
    } else if (escape === 'q') {
      if (!optional) pattern += '(?:';
      optional = true;
    } else {
      const shape = SHAPES[escape];
      if (shape === undefined) throw badEscape(text, `%${escape}`);
      group += 1;
      pattern += padded(`(${shape})`, padding ?? '');
      const field = FIELDS[escape];
      // The first wins; only the ones that tell the same twice can come twice.
      if (field !== undefined) groups[field] ??= group;
    }
  }
  if (optional) pattern += ')?';
  return {
    text,
    pattern: new RegExp(`${pattern}\\s*(${PRIMARY}|${SECONDARY}):\\s+`),
    groups,
    severityGroup: group + 1,
    carriesTime: groups.time !== undefined || groups.epoch !== undefined,
  };
}

function badEscape(prefix: string, escape: string): UnderstudyError {
  return new UnderstudyError('config-invalid', `the prefix “${prefix}” has an unknown escape ${escape}`, {
    advice: 'Give the server’s log_line_prefix as SHOW log_line_prefix prints it.',
  });
}

/** `%10u` is filled with spaces on the left, `%-10u` on the right. */
function padded(shape: string, padding: string): string {
  if (padding === '') return shape;
  return padding.startsWith('-') ? `${shape} *` : ` *${shape}`;
}

function literal(text: string): string {
  return text.replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&');
}
