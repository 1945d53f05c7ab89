/**
 * A cheap look at SQL text: could it change what the session holds beyond its transaction?
 *
 * Not a parser. It looks at the first word of each statement and at certain words anywhere, string literals and
 * comments included: what it can't rule out counts as a change, which costs one more question to the backend. What
 * it must never do is miss one, so it has no notion of quoting that a setting of the server could falsify.
 * Text in any client encoding: only ASCII letters matter, and no supported encoding hides one from a byte scan that
 * errs towards seeing more words, not fewer.
 */

/** What a text may do; a bit set. */
export const CLEAN = 0;
/** May change session state that outlives the transaction. */
export const CHANGES_STATE = 1;
/** Names custom settings, to be collected by {@link StatementText.settingNames}. */
export const NAMES_SETTINGS = 2;
/** May set a setting whose name the text doesn't tell. */
export const UNKNOWN_SETTING = 4;
/** Loads a library into the backend. */
export const LOADS_LIBRARY = 8;
/** With ENDS_TRANSACTION: by COMMIT or END, so that whoever sends it expects what was done to last. */
export const COMMITS = 16;
/** The text is one COMMIT, END, ROLLBACK or ABORT of the whole transaction, and nothing else. */
export const ENDS_TRANSACTION = 32;
/** May drop or close what pins the session. */
export const MAY_UNPIN = 64;

/** First words of statements that leave no trace in the session, unless a word of {@link TELLTALES} follows. */
// prettier-ignore
const CLEAN_VERBS = [
  'select', 'insert', 'update', 'delete', 'merge', 'with', 'values', 'table', 'begin', 'start', 'commit', 'end',
  'rollback', 'abort', 'savepoint', 'release', 'copy', 'fetch', 'move', 'truncate', 'explain', 'show', 'lock',
  'notify', 'analyze', 'vacuum', 'create', 'alter', 'drop', 'comment', 'grant', 'revoke', 'reindex', 'cluster',
  'refresh', 'checkpoint', 'import', 'security', 'reassign', 'declare', 'close',
];

/** Words that betray a change of session state wherever they stand. */
// prettier-ignore
const TELLTALES = [
  'set_config', 'temp', 'temporary', 'pg_temp', 'hold', 'pg_advisory_lock', 'pg_advisory_lock_shared',
  'pg_try_advisory_lock', 'pg_try_advisory_lock_shared', 'pg_advisory_unlock', 'pg_advisory_unlock_shared',
  'pg_advisory_unlock_all', 'dblink_connect', 'dblink_connect_u', 'dblink_disconnect',
];

/** Telltales that are ordinary column names too: they count only behind one of these words. */
const CONTEXT: ReadonlyMap<string, readonly string[]> = new Map([
  ['temp', ['create', 'replace', 'local', 'global', 'into']],
  ['temporary', ['create', 'replace', 'local', 'global', 'into']],
  ['hold', ['with']],
]);

const CUSTOM_NAME = /^[a-z_][a-z0-9_$]*(?:\.[a-z_][a-z0-9_$]*)+$/i;

/** Whether `name` can be a custom setting's name, and be quoted in SQL without care. */
export function isCustomSettingName(name: string): boolean {
  return name.length <= 200 && CUSTOM_NAME.test(name);
}

/**
 * Whether the text is one COMMIT PREPARED or ROLLBACK PREPARED and nothing else: it ends what another session began,
 * so it may pass a closed gate.
 */
export function endsPreparedTransaction(sql: string): boolean {
  return /^\s*(?:commit|rollback)\s+prepared\s+E?'[^';]*'\s*;?\s*$/i.test(sql);
}

export class StatementText {
  #stateful: ReadonlySet<string> = new Set(TELLTALES);
  #statefulSource: readonly string[] = [];
  readonly #verbs: ReadonlySet<string> = new Set(CLEAN_VERBS);
  /** Marks (length, first letter, last letter) of all words of interest, so that few words become strings. */
  #interesting = interestingMarks([...TELLTALES, 'execute']);

  /** Custom settings named by the last text that was NAMES_SETTINGS. */
  settingNames: string[] = [];

  /**
   * Names (of functions, or of tables and views behind which such functions stand) whose mention may change the
   * session's state. Unqualified, in lower case.
   */
  setStatefulNames(names: readonly string[]): void {
    if (names === this.#statefulSource) return;
    this.#statefulSource = names;
    const all = [...TELLTALES, ...names.map((name) => name.toLowerCase())];
    this.#stateful = new Set(all);
    this.#interesting = interestingMarks([...all, 'execute']);
  }

  /** Classifies `bytes[start, end)`. `cut`: the text went on, so anything may have followed. */
  classify(bytes: Buffer, start: number, end: number, cut: boolean): number {
    let flags = cut ? CHANGES_STATE : CLEAN;
    if (this.settingNames.length > 0) this.settingNames = [];
    let at = start;
    let atStatementStart = true;
    let statements = 0;
    let inDo = false;
    let wordBefore = start;
    let wordBeforeEnd = start;
    while (at < end) {
      const byte = bytes[at] as number;
      if (atStatementStart) {
        at = skipToWord(bytes, at, end);
        if (at >= end) break;
        if (!isWordStart(bytes[at] as number)) {
          // Neither a word nor an empty statement: `;` again, or something only the server understands.
          if (bytes[at] !== SEMICOLON) {
            flags |= CHANGES_STATE;
            atStatementStart = false;
          }
          at += 1;
          continue;
        }
        const wordEnd = endOfWord(bytes, at, end);
        const verb = bytes.toString('latin1', at, wordEnd).toLowerCase();
        atStatementStart = false;
        inDo ||= verb === 'do';
        flags |= this.#verb(verb, bytes, wordEnd, end);
        if (statements === 0 && !cut) flags |= endOfTransaction(verb, bytes, wordEnd, end);
        statements += 1;
        wordBefore = at;
        wordBeforeEnd = wordEnd;
        at = wordEnd;
        continue;
      }
      if (byte === SEMICOLON) {
        atStatementStart = true;
        at += 1;
      } else if (isWordStart(byte)) {
        const wordEnd = endOfWord(bytes, at, end);
        if (this.#interesting[mark(wordEnd - at, byte, bytes[wordEnd - 1] as number)] === 1) {
          const word = bytes.toString('latin1', at, wordEnd).toLowerCase();
          const context = CONTEXT.get(word);
          if (context === undefined) flags |= this.#word(word, bytes, start, wordEnd, end, inDo);
          else if (follows(context, bytes, wordBefore, wordBeforeEnd, at)) flags |= CHANGES_STATE;
        }
        wordBefore = at;
        wordBeforeEnd = wordEnd;
        at = wordEnd;
      } else if (isWordPart(byte)) {
        // A number: what follows its digits belongs to it.
        at = endOfWord(bytes, at, end);
      } else {
        at += 1;
      }
    }
    return flags;
  }

  #verb(verb: string, bytes: Buffer, from: number, end: number): number {
    switch (verb) {
      case 'set':
      case 'reset':
        return this.#set(bytes.toString('latin1', from, Math.min(end, from + 400)));
      case 'load':
        return CHANGES_STATE | LOADS_LIBRARY;
      case 'close':
      case 'drop':
        return MAY_UNPIN;
      default:
        return this.#verbs.has(verb) ? CLEAN : CHANGES_STATE;
    }
  }

  #word(word: string, bytes: Buffer, start: number, from: number, end: number, inDo: boolean): number {
    if (word === 'set_config') return this.#setConfig(bytes.toString('latin1', from, end));
    // Dynamic SQL in an anonymous block: what it sets can't be read off the text.
    if (word === 'execute') {
      return inDo && /\bset\b|set_config/i.test(bytes.toString('latin1', start, end))
        ? UNKNOWN_SETTING
        : CLEAN;
    }
    return this.#stateful.has(word) ? CHANGES_STATE : CLEAN;
  }

  /** `SET [SESSION | LOCAL] name …` and `RESET name`, from after the verb. */
  #set(rest: string): number {
    const match =
      /^(?:\s|\/\*[^]*?\*\/|--[^\n]*\n)+(?:(session|local)\s+)?("[^"]*"|[\w$]+)((?:\s*\.\s*(?:"[^"]*"|[\w$]+))*)/i.exec(
        rest,
      );
    if (match === null) return CHANGES_STATE;
    const scope = (match[1] ?? '').toLowerCase();
    const name = `${match[2] ?? ''}${match[3] ?? ''}`.replaceAll(/["\s]/g, '').toLowerCase();
    if (name === 'transaction' && scope !== 'session') return CLEAN;
    const flags = scope === 'local' ? CLEAN : CHANGES_STATE;
    if (!name.includes('.')) return flags;
    // A custom setting that was set locally once reads as the empty string ever after, no longer as unset.
    if (!isCustomSettingName(name)) return CHANGES_STATE | UNKNOWN_SETTING;
    this.settingNames.push(name);
    return flags | NAMES_SETTINGS;
  }

  /** The arguments of `set_config(name, value, is_local)`, from after the function's name. */
  #setConfig(rest: string): number {
    const parts = callArguments(rest);
    if (parts === null) return CHANGES_STATE | UNKNOWN_SETTING;
    const local = parts.length === 3 && /^\s*(?:true|'t'|'true'|'on')\s*$/i.test(parts[2] ?? '');
    const literal = /^\s*'([^'\\]*)'\s*(?:::\s*(?:pg_catalog\.)?(?:text|varchar)\s*)?$/i.exec(parts[0] ?? '');
    if (literal === null) return local ? CLEAN : CHANGES_STATE | UNKNOWN_SETTING;
    const name = (literal[1] ?? '').toLowerCase();
    const flags = local ? CLEAN : CHANGES_STATE;
    if (!name.includes('.')) return flags;
    if (!isCustomSettingName(name)) return CHANGES_STATE | UNKNOWN_SETTING;
    this.settingNames.push(name);
    return flags | NAMES_SETTINGS;
  }
}

/** Whether the word at `at` stands behind one of `context`; a comment between them counts as yes. */
function follows(
  context: readonly string[],
  bytes: Buffer,
  wordBefore: number,
  wordBeforeEnd: number,
  at: number,
): boolean {
  const between = bytes.toString('latin1', wordBeforeEnd, at);
  if (/[-/]/.test(between)) return true;
  return (
    between.trim() === '' &&
    context.includes(bytes.toString('latin1', wordBefore, wordBeforeEnd).toLowerCase())
  );
}

/** Longer texts are none: what stands behind the verb can be nothing but comments. */
const END_BYTES_MAX = 2048;
const COMMENT = /\/\*(?:(?!\/\*|\*\/)[^])*\*\/|--[^\n\r]*/g;
/** AND CHAIN is none of it: a transaction follows at once. */
const REST_OF_END =
  /^[ \t\n\r\f\v]*(?:\b(?:work|transaction)\b)?[ \t\n\r\f\v]*(?:\band[ \t\n\r\f\v]+no[ \t\n\r\f\v]+chain\b)?[ \t\n\r\f\v;\0]*$/i;

/** Whether the first statement's verb ends the transaction, and nothing stands behind it. */
function endOfTransaction(verb: string, bytes: Buffer, from: number, end: number): number {
  const commits = verb === 'commit' || verb === 'end';
  if (!commits && verb !== 'rollback' && verb !== 'abort') return CLEAN;
  if (end - from > END_BYTES_MAX) return CLEAN;
  const rest = bytes.toString('latin1', from, end).replace(COMMENT, ' ');
  if (!REST_OF_END.test(rest)) return CLEAN;
  return commits ? ENDS_TRANSACTION | COMMITS : ENDS_TRANSACTION;
}

/** Splits `( a, b, c )…` at its top-level commas; null where the parenthesis is not closed in the text. */
function callArguments(text: string): string[] | null {
  const open = /^\s*\(/.exec(text);
  if (open === null) return null;
  const parts: string[] = [];
  let depth = 0;
  let quoted = false;
  let from = open[0].length;
  for (let at = from; at < text.length; at++) {
    const char = text[at];
    if (char === "'") quoted = !quoted;
    else if (quoted) continue;
    else if (char === '(' || char === '[') depth += 1;
    else if (char === ')' && depth === 0) return [...parts, text.slice(from, at)];
    else if (char === ')' || char === ']') depth -= 1;
    else if (char === ',' && depth === 0) {
      parts.push(text.slice(from, at));
      from = at + 1;
    }
  }
  return null;
}

const SEMICOLON = 0x3b;

/** The next byte that is neither blank, nor in a comment, nor an opening parenthesis. */
function skipToWord(bytes: Buffer, from: number, end: number): number {
  let at = from;
  while (at < end) {
    const byte = bytes[at] as number;
    if (byte === 0x20 || (byte >= 0x09 && byte <= 0x0d) || byte === 0x28 || byte === 0) {
      at += 1;
    } else if (byte === 0x2d && bytes[at + 1] === 0x2d) {
      while (at < end && bytes[at] !== 0x0a && bytes[at] !== 0x0d) at += 1;
    } else if (byte === 0x2f && bytes[at + 1] === 0x2a) {
      at = skipBlockComment(bytes, at, end);
    } else {
      return at;
    }
  }
  return end;
}

/** Block comments nest. */
function skipBlockComment(bytes: Buffer, from: number, end: number): number {
  let depth = 0;
  let at = from;
  while (at < end) {
    if (bytes[at] === 0x2f && bytes[at + 1] === 0x2a) {
      depth += 1;
      at += 2;
    } else if (bytes[at] === 0x2a && bytes[at + 1] === 0x2f) {
      depth -= 1;
      at += 2;
      if (depth === 0) return at;
    } else {
      at += 1;
    }
  }
  return end;
}

function isWordStart(byte: number): boolean {
  return (byte >= 0x61 && byte <= 0x7a) || (byte >= 0x41 && byte <= 0x5a) || byte === 0x5f;
}

function isWordPart(byte: number): boolean {
  return isWordStart(byte) || (byte >= 0x30 && byte <= 0x39) || byte === 0x24;
}

function endOfWord(bytes: Buffer, from: number, end: number): number {
  let at = from;
  while (at < end && isWordPart(bytes[at] as number)) at += 1;
  return at;
}

function mark(length: number, first: number, last: number): number {
  return ((length & 31) << 10) | ((first & 31) << 5) | (last & 31);
}

function interestingMarks(words: readonly string[]): Uint8Array {
  const marks = new Uint8Array(32 * 32 * 32);
  for (const word of words) {
    if (word === '') continue;
    marks[mark(word.length, word.charCodeAt(0), word.charCodeAt(word.length - 1))] = 1;
  }
  return marks;
}
