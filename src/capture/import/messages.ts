/**
 * What a message of the server's log says, as far as statements and sessions go. English only: the server translates
 * its messages by `lc_messages`.
 *
 * Read by position, as this runs once per line of the log.
 */

export type Said =
  /** A statement of the simple protocol; `durationMicros` where the line carries it. */
  | { readonly what: 'statement'; readonly text: string; readonly durationMicros: number | null }
  /** A prepared statement was executed. `fetch`: more rows of a portal that was executed before. */
  | {
      readonly what: 'execute';
      readonly text: string;
      readonly durationMicros: number | null;
      readonly fetch: boolean;
    }
  | { readonly what: 'parse' | 'bind'; readonly durationMicros: number }
  /** The duration of what an earlier line told, or of what is not in the log. */
  | { readonly what: 'duration'; readonly durationMicros: number }
  | { readonly what: 'plan' }
  | { readonly what: 'connected' }
  | { readonly what: 'disconnected' }
  | { readonly what: 'other' };

const OTHER: Said = { what: 'other' };
const PLAN: Said = { what: 'plan' };

export function readMessage(message: string): Said {
  switch (message.charCodeAt(0)) {
    case 0x64: // d
      if (message.startsWith('duration: ')) return timed(message);
      return message.startsWith('disconnection: ') ? { what: 'disconnected' } : OTHER;
    case 0x73: // s
      return message.startsWith('statement: ')
        ? { what: 'statement', text: message.slice(11), durationMicros: null }
        : OTHER;
    case 0x65: // e
      return message.startsWith('execute ') ? executed(message, 8, null) : OTHER;
    case 0x63: // c
      return message.startsWith('connection authorized: ') ? { what: 'connected' } : OTHER;
    default:
      return OTHER;
  }
}

/** `duration: 12.345 ms`, alone or followed by two spaces and what took so long. */
function timed(message: string): Said {
  const unit = message.indexOf(' ms', 10);
  const ms = unit === -1 ? NaN : Number(message.slice(10, unit));
  if (Number.isNaN(ms)) return OTHER;
  const durationMicros = Math.round(ms * 1000);
  let at = unit + 3;
  while (message.charCodeAt(at) === 0x20) at += 1;
  if (at >= message.length) return { what: 'duration', durationMicros };
  if (message.startsWith('statement: ', at))
    return { what: 'statement', text: message.slice(at + 11), durationMicros };
  if (message.startsWith('execute ', at)) return executed(message, at + 8, durationMicros);
  if (message.startsWith('parse ', at)) return { what: 'parse', durationMicros };
  if (message.startsWith('bind ', at)) return { what: 'bind', durationMicros };
  return message.startsWith('plan:', at) ? PLAN : OTHER;
}

/** `<unnamed>: SELECT`, `name/portal: SELECT`, `fetch from name/portal: SELECT`. */
function executed(message: string, at: number, durationMicros: number | null): Said {
  const colon = message.indexOf(': ', at);
  if (colon === -1) return OTHER;
  return {
    what: 'execute',
    text: message.slice(colon + 2),
    durationMicros,
    fetch: message.startsWith('fetch from ', at),
  };
}

/**
 * The bound values of `parameters: $1 = '5', $2 = NULL, $3 = 'it''s'`. From 16 on it is `Parameters:`. A value that
 * `log_parameter_max_length` has shortened ends in `...` within its quotes, and is as good as unknown: null.
 */
export function readParameters(detail: string): readonly (string | null)[] | null {
  const begin = /^[Pp]arameters: /.exec(detail);
  if (begin === null) return null;
  const values: (string | null)[] = [];
  const item = /\$\d+ = (?:NULL|'((?:[^']|'')*?)(\.\.\.)?'(?=, \$|$))(?:, )?/y;
  item.lastIndex = begin[0].length;
  for (let found = item.exec(detail); found !== null; found = item.exec(detail)) {
    const [, value, shortened] = found;
    values.push(value === undefined || shortened !== undefined ? null : value.replaceAll("''", "'"));
    if (item.lastIndex >= detail.length) break;
  }
  return values;
}
