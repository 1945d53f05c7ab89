/**
 * Finds out which `log_line_prefix` a log was written with: the well-known ones are tried; where none fits, one is
 * inferred from the shapes of the heads (times, process ids, `user=…`).
 */
import { HEAD_CHARS_MAX, LOOKS_LIKE_A_HEAD, compilePrefix, type LinePrefix } from './line-prefix.js';

/** Of PostgreSQL itself, distributions, managed services, and tools' manuals. */
export const KNOWN_PREFIXES: readonly string[] = [
  '%m [%p] ',
  '%m [%p] %q%u@%d ',
  '%t [%p] ',
  '%t [%p] %q%u@%d ',
  '%t:%r:%u@%d:[%p]:',
  '%m:%r:%u@%d:[%p]:%l:%e:%s:%v:%x:%c:%q%a:',
  '%t:%r:%u@%d:[%p]:%l:%e:%s:%v:%x:%c:%q%a:',
  '%t [%p]: [%l-1] user=%u,db=%d,app=%a,client=%h ',
  '%m [%p]: [%l-1] user=%u,db=%d,app=%a,client=%h ',
  '%t [%p]: [%l-1] db=%d,user=%u,app=%a,client=%h ',
  '%m [%p]: [%l-1] db=%d,user=%u,app=%a,client=%h ',
  '%t [%p]: user=%u,db=%d,app=%a,client=%h ',
  '%t [%p]: db=%d,user=%u,app=%a,client=%h ',
  '%m [%p]: [%l-1] db=%d,user=%u ',
  '%t [%p]: [%l-1] user=%u,db=%d ',
  '%t [%p]: [%l-1] db=%d,user=%u ',
  '%t [%p]: [%l-1] ',
  '%m [%p]: [%l-1] ',
  '%t [%p]: [%l] ',
  '%m [%p] %q[user=%u,db=%d,app=%a] ',
  '%m [%p] %q[%d:%u] ',
  'pid=%p,user=%u,db=%d,app=%a,client=%h ',
  '%t [%p]: [%l-1] %c %x %d %u %a %h ',
  '%m [%p] %u@%d ',
  '%t [%p] %u@%d ',
  '%m %u@%d [%p] ',
  '%t %u@%d [%p] ',
  '%t-%c-',
  '%m-%c-',
  '%t:%p:%u@%d ',
  '< %m > ',
  '< %t > ',
  '<%m>',
  '%m ',
  '%t ',
  '%n [%p] ',
  // Cloud SQL keeps the time outside of the line.
  '[%p]: [%l-1] db=%d,user=%u ',
  ' sql_error_code = %e time_ms = "%m" pid="%p" proc_start_time="%s" session_id="%c" vtid="%v" tid="%x" log_line="%l" database="%d" connection_source="%r" user="%u" application_name="%a" ',
];

/** Heads looked at. */
const HEADS_MAX = 400;
/** A prefix is taken where it matches at least this share of the heads: a log may begin with another one's lines. */
const SHARE_MIN = 0.8;

/** The best prefix for `sample`, or null where no line looks like a head, or no prefix fits them. */
export function detectPrefix(sample: string, needsTime: boolean): LinePrefix | null {
  const heads = headsOf(sample);
  if (heads.length === 0) return null;
  let best: LinePrefix | null = null;
  let bestScore = 0;
  for (const text of [...KNOWN_PREFIXES, ...inferred(heads)]) {
    const prefix = compilePrefix(text);
    if (needsTime && !prefix.carriesTime) continue;
    const score = scoreOf(prefix, heads);
    if (score > bestScore) {
      best = prefix;
      bestScore = score;
    }
  }
  return best;
}

function headsOf(sample: string): readonly string[] {
  const heads: string[] = [];
  for (const line of sample.split('\n')) {
    if (line.startsWith('\t')) continue;
    const head = line.slice(0, HEAD_CHARS_MAX);
    if (LOOKS_LIKE_A_HEAD.test(head)) heads.push(head);
    if (heads.length === HEADS_MAX) break;
  }
  return heads;
}

/** Share of the heads matched, then how much is learned from one. 0 where too few match. */
function scoreOf(prefix: LinePrefix, heads: readonly string[]): number {
  let matched = 0;
  let odd = 0;
  for (const head of heads) {
    const found = prefix.pattern.exec(head);
    if (found === null) continue;
    matched += 1;
    const user = prefix.groups.user === undefined ? '' : (found[prefix.groups.user] ?? '');
    const database = prefix.groups.database === undefined ? '' : (found[prefix.groups.database] ?? '');
    // A name that holds what separates fields is most likely two fields.
    if (/[\s,=:[\]()]/.test(user.replace('[unknown]', ''))) odd += 1;
    else if (/[\s,=:[\]()]/.test(database.replace('[unknown]', ''))) odd += 1;
  }
  const share = (matched - odd / 2) / heads.length;
  return share < SHARE_MIN ? 0 : share + Object.keys(prefix.groups).length / 1000;
}

const STAMP = /\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{3})? [A-Za-z0-9<>+-]{1,10}/;
const KEYS: Readonly<Record<string, string>> = {
  user: '%u',
  usr: '%u',
  username: '%u',
  db: '%d',
  dbname: '%d',
  database: '%d',
  app: '%a',
  application: '%a',
  application_name: '%a',
  appname: '%a',
  client: '%h',
  host: '%h',
  remote: '%r',
  remote_host: '%h',
  pid: '%p',
  session: '%c',
  sessionid: '%c',
  session_id: '%c',
  sid: '%c',
  line: '%l',
  vxid: '%v',
  vtid: '%v',
  txid: '%x',
  xid: '%x',
  tid: '%x',
  trx: '%x',
  state: '%e',
  sqlstate: '%e',
  code: '%e',
  err: '%e',
  tag: '%i',
  cmd: '%i',
  query_id: '%Q',
  qid: '%Q',
  backend: '%b',
  type: '%b',
};

/** Prefixes made from a few of the heads by the shapes of their parts. */
function inferred(heads: readonly string[]): readonly string[] {
  const guesses = new Set<string>();
  const step = Math.max(1, Math.floor(heads.length / 12));
  for (let at = 0; at < heads.length; at += step) {
    const head = heads[at] ?? '';
    const end = LOOKS_LIKE_A_HEAD.exec(head);
    if (end === null) continue;
    const before = head.slice(0, end.index + (/[A-Za-z]/.test(end[0].charAt(0)) ? 0 : 1));
    for (const guess of guessesFor(before)) guesses.add(guess);
  }
  return [...guesses];
}

function guessesFor(before: string): readonly string[] {
  const parts: string[] = [];
  let rest = before;
  let times = 0;
  while (rest !== '') {
    const { taken, escape } = nextPart(rest, times);
    if (escape === '%m' || escape === '%t') times += 1;
    parts.push(escape ?? rest.slice(0, taken).replaceAll('%', '%%'));
    rest = rest.slice(taken);
  }
  const whole = parts.join('');
  // After the process id, lines of the server's own processes often end: what follows may be optional.
  const afterPid = /^(.*?%p\]?:? )(.+)$/.exec(whole);
  return afterPid === null ? [whole] : [whole, `${afterPid[1] ?? ''}%q${afterPid[2] ?? ''}`];
}

const SHAPED: readonly (readonly [pattern: RegExp, escape: string])[] = [
  [/^[0-9a-f]{8,16}\.[0-9a-f]{1,8}(?![0-9a-f.])/, '%c'],
  [/^\d{10}\.\d{3}(?!\d)/, '%n'],
  [/^-?\d+\/\d+/, '%v'],
  [/^\[local\]/, '%r'],
  [/^\d{1,3}(?:\.\d{1,3}){3}\(\d+\)/, '%r'],
  [/^[0-9a-fA-F:]*:[0-9a-fA-F:]*:[0-9a-fA-F:.]*\(\d+\)/, '%r'],
  [/^\d{1,3}(?:\.\d{1,3}){3}/, '%h'],
  [
    /^(?:client backend|checkpointer|background writer|walwriter|autovacuum \w+|postmaster|logger|startup)/,
    '%b',
  ],
];

/** What the head's rest begins with: an escape, or text to be taken as it is. */
function nextPart(rest: string, times: number): { readonly taken: number; readonly escape?: string } {
  const stamp = STAMP.exec(rest);
  if (stamp?.index === 0) {
    const escape = times > 0 ? '%s' : stamp[1] === undefined ? '%t' : '%m';
    return { taken: stamp[0].length, escape };
  }
  const keyed = /^([A-Za-z_]+)(\s?[=:]\s?"?)/.exec(rest);
  if (keyed !== null && KEYS[(keyed[1] ?? '').toLowerCase()] !== undefined) {
    const key = keyed[1] ?? '';
    const after = rest.slice(keyed[0].length);
    const value = /^(?:\[[a-z]+\]|[^\s,;"|)\]]*)/.exec(after)?.[0] ?? '';
    return { taken: keyed[0].length + value.length, escape: `${keyed[0]}${KEYS[key.toLowerCase()] ?? ''}` };
  }
  for (const [pattern, escape] of SHAPED) {
    const found = pattern.exec(rest);
    if (found !== null) return { taken: found[0].length, escape };
  }
  const names = /^(\[unknown\]|[\w-]*)@(\[unknown\]|[\w-]*)/.exec(rest);
  if (names !== null && names[0] !== '') return { taken: names[0].length, escape: '%u@%d' };
  const lineNumber = /^\[(\d+)-1\]/.exec(rest);
  if (lineNumber !== null) return { taken: lineNumber[0].length, escape: '[%l-1]' };
  const number = /^\d+/.exec(rest);
  if (number !== null) return { taken: number[0].length, escape: '%p' };
  const text = /^[A-Za-z_]+|^[^A-Za-z_\d[]+|^./s.exec(rest);
  return { taken: Math.max(1, text?.[0].length ?? 1) };
}
