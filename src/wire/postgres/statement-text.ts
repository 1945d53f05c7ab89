/**
 * A cheap look at SQL text: could it change what the session holds beyond its transaction?
 *
 * Not a parser. It looks at the first word of each statement and at certain words anywhere, string literals and
 * comments included: what it can't rule out counts as a change, which costs one more question to the backend. What
 * it must never do is miss one, so it has no notion of quoting that a setting of the server could falsify: every `;`
 * may end a statement, and only a comment in front of the first statement is known to be one. Where one seems to begin
 * behind a `;`, that may be in a literal: the text counts as a change, all its words are looked at, and a statement may begin
 * behind every end of a line and of a comment.
 * Text in any client encoding: only ASCII letters matter, and no supported encoding hides one from a byte scan that
 * errs towards seeing more words, not fewer.
 */
import { isCustomSettingName, settingOfCall, settingOfSet, type NamedSetting } from './setting-names.js';

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
  // Of extensions, in C: no catalog tells what they do.
  'set_limit', 'set_user', 'reset_user',
  // They run the SQL they are given, which may come as a parameter.
  'query_to_xml', 'query_to_xml_and_xmlschema', 'ts_stat', 'crosstab',
];

/** Words looked at closer; among them this session's own temporary schema by its number. */
const BY_MORE_THAN_NAME = ['execute', 'pg_settings', ...temporarySchemas()];

/** Telltales that are ordinary column names too: they count only behind one of these words. */
const CONTEXT: ReadonlyMap<string, readonly string[]> = new Map([
  ['temp', ['create', 'replace', 'local', 'global', 'into']],
  ['temporary', ['create', 'replace', 'local', 'global', 'into']],
  ['hold', ['with']],
]);

/** Longer names the server cuts. */
const NAME_BYTES_MAX = 63;
/** How much of a SET is looked through for its name. */
const SET_BYTES_MAX = 2048;

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
  #interesting = interestingMarks([...TELLTALES, ...BY_MORE_THAN_NAME]);

  /** What every text may do, and what one with other letters than ASCII's may. */
  #always = CLEAN;
  #beyondAscii = CLEAN;

  /** Custom settings named by the last text that was NAMES_SETTINGS. */
  settingNames: string[] = [];

  /**
   * Names (of functions, or of tables and views behind which such functions stand) whose mention may change the
   * session's state. Unqualified. A name without a word in it, such as `*`, is mentioned by every text.
   */
  setStatefulNames(names: readonly string[]): void {
    if (names === this.#statefulSource) return;
    this.#statefulSource = names;
    const all = [...TELLTALES];
    this.#always = CLEAN;
    this.#beyondAscii = CLEAN;
    for (const name of names) {
      const word = longestWord(name.toLowerCase());
      // In which bytes other letters come, the client's encoding decides.
      if (/[^\0-\x7f]/.test(name)) this.#beyondAscii = CHANGES_STATE;
      else if (word === '') this.#always = CHANGES_STATE;
      else all.push(word);
    }
    this.#stateful = new Set(all);
    this.#interesting = interestingMarks([...all, ...BY_MORE_THAN_NAME]);
  }

  /** Classifies `bytes[start, end)`. `cut`: the text went on, so anything may have followed. */
  classify(bytes: Buffer, start: number, end: number, cut: boolean): number {
    let flags = cut ? CHANGES_STATE : this.#always;
    if (this.settingNames.length > 0) this.settingNames = [];
    let at = start;
    let atStatementStart = true;
    let statements = 0;
    /** A statement may begin wherever a comment could end. */
    let loose = false;
    let inDo = false;
    /** A comment seems to have begun: what stands in front of a word may be in it. */
    let commented = false;
    let wordBefore = start;
    let wordBeforeEnd = start;
    while (at < end) {
      if (atStatementStart) {
        at = statements === 0 ? skipToWord(bytes, at, end) : skipBlank(bytes, at, end);
        if (at >= end) break;
      }
      const byte = bytes[at] as number;
      if (isWordStart(byte)) {
        const wordEnd = endOfWord(bytes, at, end);
        const length = Math.min(wordEnd - at, NAME_BYTES_MAX);
        if (atStatementStart) {
          const verb = bytes.toString('latin1', at, wordEnd).toLowerCase();
          inDo ||= verb === 'do';
          flags |= this.#verb(verb, bytes, wordEnd, end);
          if (statements === 0 && !cut) flags |= endOfTransaction(verb, bytes, wordEnd, end);
          statements += 1;
        } else if (inDo && (length === 3 || length === 5)) {
          const word = bytes.toString('latin1', at, wordEnd).toLowerCase();
          if (word === 'set' || word === 'reset') flags |= this.#set(bytes, wordEnd, end);
        }
        if (this.#interesting[mark(length, byte, bytes[at + length - 1] as number)] === 1) {
          const word = bytes.toString('latin1', at, at + length).toLowerCase();
          const context = CONTEXT.get(word);
          if (context === undefined) flags |= this.#word(word, bytes, start, wordEnd, end, inDo);
          else if (commented || follows(context, bytes, wordBefore, wordBeforeEnd, at))
            flags |= CHANGES_STATE;
        }
        // A name in U&"…" can't be read without unescaping it.
        if (length === 1 && bytes[wordEnd] === AMPERSAND && bytes[wordEnd + 1] === QUOTE) {
          flags |= CHANGES_STATE | UNKNOWN_SETTING;
        }
        wordBefore = at;
        wordBeforeEnd = wordEnd;
        at = wordEnd;
        atStatementStart = false;
        continue;
      }
      if (byte > 0x7f) flags |= this.#beyondAscii;
      if (byte === DASH || byte === SLASH) commented ||= opensComment(bytes, at);
      if (byte === SEMICOLON) {
        atStatementStart = true;
      } else if (atStatementStart) {
        // Something only the server understands, a comment, or what follows a `;` inside of a literal.
        flags |= CHANGES_STATE;
        loose ||= opensComment(bytes, at);
        atStatementStart = false;
        statements += 1;
      }
      at += 1;
      if (loose && (byte === NEWLINE || byte === RETURN || (byte === SLASH && bytes[at - 2] === STAR))) {
        atStatementStart = true;
      }
    }
    return flags;
  }

  #verb(verb: string, bytes: Buffer, from: number, end: number): number {
    switch (verb) {
      case 'set':
      case 'reset':
        return this.#set(bytes, from, end);
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
    if (word === 'set_config') return this.#named(settingOfCall(bytes.toString('latin1', from, end)));
    if (word === 'execute') {
      // Dynamic SQL in an anonymous block: what it sets can't be read off the text. Else EXPLAIN or CREATE … EXECUTE.
      return inDo && /\bset\b|set_config/i.test(bytes.toString('latin1', start, end))
        ? CHANGES_STATE | UNKNOWN_SETTING
        : CHANGES_STATE;
    }
    // A view that can be written to.
    if (word === 'pg_settings')
      return /\bupdate\b/i.test(bytes.toString('latin1', start, from)) ? CHANGES_STATE : CLEAN;
    return this.#stateful.has(word) || /^pg_temp_\d+$/.test(word) ? CHANGES_STATE : CLEAN;
  }

  #set(bytes: Buffer, from: number, end: number): number {
    const setting = settingOfSet(bytes.toString('latin1', from, Math.min(end, from + SET_BYTES_MAX)));
    if (setting.name === 'transaction') return CLEAN;
    return this.#named(setting);
  }

  #named({ name, local }: NamedSetting): number {
    const flags = local ? CLEAN : CHANGES_STATE;
    if (name === null) return local ? CLEAN : CHANGES_STATE | UNKNOWN_SETTING;
    if (!name.includes('.')) return flags;
    // A custom setting that was set locally once reads as the empty string ever after, no longer as unset.
    if (!isCustomSettingName(name)) return CHANGES_STATE | UNKNOWN_SETTING;
    this.settingNames.push(name);
    return flags | NAMES_SETTINGS;
  }
}

/** Whether the word at `at` stands behind one of `context`. */
function follows(
  context: readonly string[],
  bytes: Buffer,
  wordBefore: number,
  wordBeforeEnd: number,
  at: number,
): boolean {
  return (
    bytes.toString('latin1', wordBeforeEnd, at).trim() === '' &&
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

const SEMICOLON = 0x3b;
const AMPERSAND = 0x26;
const QUOTE = 0x22;
const NEWLINE = 0x0a;
const RETURN = 0x0d;
const SLASH = 0x2f;
const STAR = 0x2a;
const DASH = 0x2d;

function opensComment(bytes: Buffer, at: number): boolean {
  const next = bytes[at + 1];
  return (bytes[at] === DASH && next === DASH) || (bytes[at] === SLASH && next === STAR);
}

/** The next byte that is neither blank nor an opening parenthesis. */
function skipBlank(bytes: Buffer, from: number, end: number): number {
  let at = from;
  while (at < end) {
    const byte = bytes[at] as number;
    if (byte !== 0x20 && (byte < 0x09 || byte > 0x0d) && byte !== 0x28 && byte !== 0) break;
    at += 1;
  }
  return at;
}

/** The next byte that is neither blank, nor in a comment, nor an opening parenthesis, where none can be in a literal. */
function skipToWord(bytes: Buffer, from: number, end: number): number {
  let at = from;
  while (at < end) {
    at = skipBlank(bytes, at, end);
    if (at >= end) break;
    const byte = bytes[at] as number;
    if (byte === 0x2d && bytes[at + 1] === 0x2d) {
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

/** A dollar sign may belong to a name, but also to a quote: what stands on both sides counts. */
function isWordPart(byte: number): boolean {
  return isWordStart(byte) || (byte >= 0x30 && byte <= 0x39);
}

function endOfWord(bytes: Buffer, from: number, end: number): number {
  let at = from;
  while (at < end && isWordPart(bytes[at] as number)) at += 1;
  return at;
}

/** By which a name is known; any text with the name in it has that word. */
function longestWord(name: string): string {
  const words = (name.match(/[a-z_][a-z0-9_]*/g) ?? []).map((word) => word.slice(0, NAME_BYTES_MAX));
  return words.reduce((longest, word) => (word.length > longest.length ? word : longest), '');
}

/** For every length and last digit one. */
function temporarySchemas(): string[] {
  return ['', '1', '11', '111', '1111'].flatMap((before) =>
    Array.from({ length: 10 }, (_, digit) => `pg_temp_${before}${digit}`),
  );
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
