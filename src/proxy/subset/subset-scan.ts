/**
 * What of a client's bytes can be sent on as one: up to a sync point or a Flush, and the texts that it would run. Reads
 * whole frames out of what is held, and moves nothing.
 *
 * A text is run by a Query, or by a Bind of a statement; a Parse runs nothing, so it has no side.
 */
import { FRONTEND } from '../../wire/postgres/messages.js';

/** A text to be run, or the name of a statement that was prepared before, whose text is to be looked up. */
export type Run =
  | { readonly text: string; readonly statement?: undefined }
  | { readonly statement: string; readonly text?: undefined };

export interface Segment {
  /** Of the held bytes, those that are decided on together; the last frame may not be there to its end. */
  readonly bytes: number;
  readonly runs: readonly Run[];
  /** Names and texts that it prepares, in order; and those that it closes. */
  readonly prepares: readonly { readonly name: string; readonly text: string | null }[];
  /** Calls a function by its OID. */
  readonly callsFunction: boolean;
  /** It begins with a Query. */
  readonly simple: boolean;
  /** Of a COPY's data, a goodbye, or of no known type: passed on as it is. */
  readonly plain: boolean;
  /** All of it is there. */
  readonly whole: boolean;
  /** It ends with a Sync. */
  readonly synced: boolean;
  /** It binds a portal that has a name. */
  readonly portal: boolean;
}

export type Scan =
  | { readonly kind: 'segment'; readonly segment: Segment }
  /** More has to come first. */
  | { readonly kind: 'more' }
  /** A text that is longer than what is looked through. */
  | { readonly kind: 'too-long'; readonly simple: boolean }
  /** A length that no message has; the frame walker refuses it. */
  | { readonly kind: 'malformed' };

const MORE: Scan = { kind: 'more' };
const HEADER = 5;

/** `head`: the first of what is held, from a frame's beginning on; `total`: how much is held; `bytesMax`: at most looked at. */
export function scan(head: Buffer, bytesMax: number): Scan {
  const runs: Run[] = [];
  const prepares: { name: string; text: string | null }[] = [];
  const parsedHere = new Map<string, string>();
  const simple = head[0] === FRONTEND.query;
  let portal = false;
  const segment = (bytes: number, more: Partial<Segment> = {}): Scan => ({
    kind: 'segment',
    segment: {
      bytes,
      runs,
      prepares,
      simple,
      portal,
      callsFunction: false,
      plain: false,
      whole: true,
      synced: false,
      ...more,
    },
  });
  /** Nothing hangs on it; one that could never be held is passed as it comes. */
  const cutName = (from: number, length: number): Scan => {
    if (length <= bytesMax) return moreOr(from, head, bytesMax, segment);
    return from > 0 ? segment(from) : segment(length, { plain: true, whole: false });
  };
  let at = 0;
  for (;;) {
    if (head.length - at < HEADER) break;
    const type = head[at] ?? 0;
    const length = head.readInt32BE(at + 1) + 1;
    if (length < HEADER) return at === 0 ? { kind: 'malformed' } : segment(at);
    const start = at + HEADER;
    const end = at + length;
    const there = Math.min(end, head.length);
    const whole = end <= head.length;
    switch (type) {
      case FRONTEND.query:
        if (at > 0) return segment(at);
        if (!whole) return length > bytesMax ? { kind: 'too-long', simple } : MORE;
        runs.push({ text: textOf(head, start, end) });
        return segment(end);
      case FRONTEND.functionCall:
        return at > 0 ? segment(at) : segment(end, { callsFunction: true, whole });
      case FRONTEND.parse: {
        if (!whole) {
          if (at > 0 && length > bytesMax) return segment(at);
          return length > bytesMax ? { kind: 'too-long', simple } : moreOr(at, head, bytesMax, segment);
        }
        const nameEnd = endOf(head, start, end);
        const name = head.toString('latin1', start, nameEnd);
        const text = textOf(head, Math.min(nameEnd + 1, end), end);
        prepares.push({ name, text });
        parsedHere.set(name, text);
        break;
      }
      case FRONTEND.bind: {
        const portalEnd = endOf(head, start, there);
        const nameEnd = endOf(head, portalEnd + 1, there);
        if (!whole && nameEnd >= there) {
          if (at > 0 && there - at >= NAMES_BYTES_MAX) return segment(at);
          return there - at >= NAMES_BYTES_MAX ? { kind: 'too-long', simple } : MORE;
        }
        const statement = head.toString('latin1', portalEnd + 1, nameEnd);
        if (portalEnd > start) portal = true;
        const text = parsedHere.get(statement);
        runs.push(text === undefined ? { statement } : { text });
        // The rest of it is data, which may be long.
        if (!whole) return segment(end, { whole: false });
        break;
      }
      case FRONTEND.close:
        if (!whole) return cutName(at, length);
        if (head[start] === STATEMENT) {
          const name = head.toString('latin1', start + 1, endOf(head, start + 1, end));
          prepares.push({ name, text: null });
          parsedHere.delete(name);
        }
        break;
      case FRONTEND.describe:
      case FRONTEND.execute:
        if (!whole) return cutName(at, length);
        break;
      case FRONTEND.sync:
      case FRONTEND.flush:
        return whole ? segment(end, { synced: type === FRONTEND.sync }) : MORE;
      default:
        return at > 0 ? segment(at) : segment(end, { plain: true, whole });
    }
    at = end;
  }
  return moreOr(at, head, bytesMax, segment);
}

/** What is there is decided on by itself only where waiting for more would need too much memory. */
function moreOr(at: number, head: Buffer, bytesMax: number, segment: (bytes: number) => Scan): Scan {
  return at > 0 && head.length >= bytesMax ? segment(at) : MORE;
}

const STATEMENT = 0x53;
/** Both names of a Bind. */
const NAMES_BYTES_MAX = 65_536;

function endOf(bytes: Buffer, from: number, end: number): number {
  const zero = bytes.indexOf(0, from);
  return zero === -1 || zero > end ? end : zero;
}

function textOf(bytes: Buffer, start: number, end: number): string {
  return bytes.toString('utf8', start, endOf(bytes, start, end));
}
