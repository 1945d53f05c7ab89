/**
 * What a statement is made of, where it is a plain read whose parts can all be seen: a single SELECT, VALUES, TABLE,
 * WITH or SHOW. Everything else has no shape, and neither has anything this scanner is not sure to read as the server
 * does: it may say "no shape" of a harmless statement, and must never say "a read" of another.
 *
 * - A backslash anywhere: string syntax then depends on a setting of the server.
 * - E'…', U&'…', $tag$…$tag$, bytes above ASCII outside quotes: rare in reads, not worth an error.
 * - The words INSERT, UPDATE, DELETE, MERGE, INTO, also as a quoted name: a WITH may write, a SELECT may make a table.
 *
 * Whether the functions, relations and operators it names are harmless, catalog-facts.ts tells.
 */

export interface StatementShape {
  /** Keywords and names, in lower case, quoted ones too. */
  readonly words: ReadonlySet<string>;
  /** Words in front of a parenthesis that are no keywords of SQL: functions, as far as can be seen. */
  readonly calls: ReadonlySet<string>;
  /** Keywords in front of a parenthesis, some of which could also name a function of this database. */
  readonly keywordCalls: ReadonlySet<string>;
  readonly operators: ReadonlySet<string>;
  /** Words that may name the type that something is made into. */
  readonly typeWords: ReadonlySet<string>;
  /** The text with literals replaced, so that texts that differ by them alone are judged once. */
  readonly skeleton: string;
}

/** First words of statements that may be plain reads. */
const READS: ReadonlySet<string> = new Set(['select', 'values', 'table', 'with', 'show']);
/** Words by which a read writes, locks, or calls what can't be seen. */
const FORBIDDEN: ReadonlySet<string> = new Set([
  'insert',
  'update',
  'delete',
  'merge',
  'into',
  'operator',
  'tablesample',
]);
/** What may follow FOR in a locking clause; `update` is forbidden anyway. */
const LOCKING: ReadonlySet<string> = new Set(['update', 'no', 'share', 'key']);
/** Keywords that may stand in front of a parenthesis without calling a function the catalogs know by that name. */
// prettier-ignore
const BEFORE_PARENTHESIS: ReadonlySet<string> = new Set([
  'in', 'exists', 'any', 'all', 'some', 'and', 'or', 'not', 'as', 'values', 'on', 'using', 'by', 'over', 'filter',
  'within', 'group', 'cast', 'coalesce', 'nullif', 'greatest', 'least', 'extract', 'position', 'substring', 'overlay',
  'trim', 'row', 'array', 'grouping', 'sets', 'cube', 'rollup', 'lateral', 'from', 'select', 'where', 'when', 'then',
  'else', 'case', 'union', 'except', 'intersect', 'distinct', 'char', 'character', 'varchar', 'varying', 'numeric',
  'decimal', 'bit', 'time', 'timestamp', 'interval', 'float', 'limit', 'offset', 'having', 'join', 'is', 'like',
  'ilike', 'between', 'end', 'materialized', 'first', 'next', 'only', 'current_time', 'current_timestamp',
  'localtime', 'localtimestamp', 'window', 'with', 'recursive',
]);
/** Letters directly in front of a quote that change how the literal is read. */
const PREFIXES: ReadonlySet<string> = new Set(['e', 'b', 'x', 'n', 'u']);
/** Settings that a shared connection has otherwise than a client's own. */
const PRIVATE_SETTING = /read_only|plan_cache|^all$|^transaction|^session/i;
/** The literal is the whole argument. */
const END_OF_ARGUMENT = /^\s*(?:::\s*(?:pg_catalog\s*\.\s*)?text\s*)?[,)]/i;
const LITERAL_SETTING = /^[a-z_][a-z0-9_.]*$/i;

/** Expressions that name a type as an ordinary word. */
const TYPE_NAMING: readonly string[] = ['cast', 'treat', 'returning', 'xmltable', 'json_table', 'columns'];
const NUMBER = /^[\d._]+(?:e[+-]?\d+)?$/i;
/** The second colon, and what qualifies a name. */
const CONTINUES_TYPE = ':.';
const NAME_BYTES_MAX = 63;
const PRINTABLE = /^[\x20-\x7e]*$/;

/** Stands for a literal; no text with it in it has a shape. */
const PLACE = '\u0001';
const OPERATOR_CHARS = '+-*/<>=~!@#%^&|`?';

/** Null where the text is not, beyond doubt, a single plain read. `text` holds one byte per character. */
export function shapeOfRead(text: string): StatementShape | null {
  if (text.includes('\\')) return null;
  const scan = new Scan(text);
  return scan.run() ? scan.shape() : null;
}

class Scan {
  readonly #text: string;
  readonly #words = new Set<string>();
  readonly #calls = new Set<string>();
  readonly #keywordCalls = new Set<string>();
  readonly #operators = new Set<string>();
  readonly #typeWords = new Set<string>();
  /** Behind `::`, up to what can't belong to a type's name. */
  #typeNext = false;
  #at = 0;
  #skeleton = '';
  /** Start of what is not in the skeleton yet. */
  #from = 0;
  /** The last token where it was a word, and the word in front of it where that stood next to it. */
  #word = '';
  #wordBefore = '';
  #quoted = false;
  #first = '';
  #tokens = 0;
  #depth = 0;
  #ended = false;
  /** The argument of current_setting comes next and must be a literal. */
  #settingNext = false;
  /** A literal matters: the text must not share its verdict with others. */
  #exact = false;

  constructor(text: string) {
    this.#text = text;
  }

  shape(): StatementShape {
    const rest = this.#text.slice(this.#from);
    return {
      words: this.#words,
      calls: this.#calls,
      keywordCalls: this.#keywordCalls,
      operators: this.#operators,
      typeWords: this.#namesTypes() ? this.#words : this.#typeWords,
      skeleton: this.#exact ? this.#text : this.#skeleton + rest,
    };
  }

  /** A type may stand where it can't be told from other names. */
  #namesTypes(): boolean {
    return TYPE_NAMING.some((word) => this.#words.has(word));
  }

  run(): boolean {
    const text = this.#text;
    while (this.#at < text.length) {
      const code = text.charCodeAt(this.#at);
      if (code === 0x20 || (code >= 0x09 && code <= 0x0d)) {
        this.#at += 1;
        continue;
      }
      if (this.#skipComment(code)) continue;
      if (this.#ended) return false;
      if (!this.#token(code)) return false;
    }
    return this.#depth === 0 && !this.#settingNext && this.#readsOnly();
  }

  #readsOnly(): boolean {
    if (!READS.has(this.#first)) return false;
    if (this.#first !== 'show') return true;
    return this.#tokens === 2 && this.#word !== '' && !PRIVATE_SETTING.test(this.#word);
  }

  #skipComment(code: number): boolean {
    const text = this.#text;
    const next = text.charCodeAt(this.#at + 1);
    if (code === 0x2d && next === 0x2d) {
      while (this.#at < text.length && text[this.#at] !== '\n' && text[this.#at] !== '\r') this.#at += 1;
      return true;
    }
    if (code !== 0x2f || next !== 0x2a) return false;
    let depth = 0;
    while (this.#at < text.length) {
      if (text.startsWith('/*', this.#at)) {
        depth += 1;
        this.#at += 2;
      } else if (text.startsWith('*/', this.#at)) {
        depth -= 1;
        this.#at += 2;
        if (depth === 0) return true;
      } else {
        this.#at += 1;
      }
    }
    // Never closed: an error at the server; no read for us.
    this.#ended = true;
    this.#depth = -1;
    return true;
  }

  /** Returns false where the text is given up. */
  #token(code: number): boolean {
    if (code !== 0x3b) this.#tokens += 1;
    if (this.#settingNext && code !== 0x27) return false;
    if (isLetter(code)) return this.#name();
    if (isDigit(code)) return this.#number();
    switch (code) {
      case 0x27:
        return this.#literal();
      case 0x22:
        return this.#quotedName();
      case 0x24:
        return this.#parameter();
      case 0x28:
        return this.#open();
      case 0x29:
        this.#depth -= 1;
        this.#punctuation();
        return this.#depth >= 0;
      case 0x3b:
        this.#ended = true;
        this.#at += 1;
        return this.#depth === 0;
      case 0x2c:
      case 0x2e:
      case 0x3a:
      case 0x5b:
      case 0x5d:
        this.#punctuation();
        return true;
      default:
        return this.#operator();
    }
  }

  #punctuation(): void {
    if (this.#text.startsWith('::', this.#at)) this.#typeNext = true;
    else if (!CONTINUES_TYPE.includes(this.#text.charAt(this.#at))) this.#typeNext = false;
    this.#at += 1;
    this.#wordBefore = '';
    this.#word = '';
  }

  #name(): boolean {
    const text = this.#text;
    const start = this.#at;
    let at = start + 1;
    while (at < text.length && isNamePart(text.charCodeAt(at))) at += 1;
    this.#at = at;
    const word = text.slice(start, at).toLowerCase();
    if (text.charCodeAt(at) === 0x27 && PREFIXES.has(word)) return false;
    if (word === 'u' && text.charCodeAt(at) === 0x26) return false;
    return this.#took(word, false);
  }

  #took(word: string, quoted: boolean): boolean {
    if (this.#first === '') this.#first = word;
    this.#quoted = quoted;
    // The server cuts it, to what may be the name of something else.
    if (word.length > NAME_BYTES_MAX) return false;
    if (this.#typeNext) this.#typeWords.add(word);
    if (FORBIDDEN.has(word)) return false;
    if (this.#word === 'for' && LOCKING.has(word)) return false;
    this.#words.add(word);
    this.#wordBefore = this.#word;
    this.#word = word;
    return true;
  }

  #quotedName(): boolean {
    const text = this.#text;
    let at = this.#at + 1;
    for (;;) {
      at = text.indexOf('"', at);
      if (at === -1) return false;
      if (text[at + 1] !== '"') break;
      at += 2;
    }
    const inside = text.slice(this.#at + 1, at);
    // Other letters come here in the client's encoding, and the catalogs in ours.
    if (!PRINTABLE.test(inside)) return false;
    const name = inside.replaceAll('""', '"').toLowerCase();
    this.#at = at + 1;
    return this.#first !== '' && this.#took(name, true);
  }

  #number(): boolean {
    const text = this.#text;
    const start = this.#at;
    let at = start + 1;
    while (at < text.length) {
      const code = text.charCodeAt(at);
      if (isDigit(code) || isLetter(code) || code === 0x2e) at += 1;
      else if ((code === 0x2b || code === 0x2d) && isExponent(text, at - 1)) at += 1;
      else break;
    }
    this.#at = at;
    this.#replace(start, at);
    // A word may follow at once, to servers before 15.
    return NUMBER.test(text.slice(start, at));
  }

  #literal(): boolean {
    const text = this.#text;
    const start = this.#at;
    let at = start + 1;
    for (;;) {
      at = text.indexOf("'", at);
      if (at === -1) return false;
      if (text[at + 1] !== "'") break;
      at += 2;
    }
    this.#at = at + 1;
    // `type 'literal'`.
    if (this.#word !== '') this.#typeWords.add(this.#word);
    if (this.#settingNext) {
      const name = text.slice(start + 1, at);
      if (!LITERAL_SETTING.test(name) || PRIVATE_SETTING.test(name)) return false;
      if (!END_OF_ARGUMENT.test(text.slice(at + 1, at + 60))) return false;
      this.#settingNext = false;
      this.#exact = true;
    }
    this.#replace(start, at + 1);
    return true;
  }

  #replace(start: number, end: number): void {
    this.#skeleton += `${this.#text.slice(this.#from, start)}${PLACE}`;
    this.#from = end;
    this.#wordBefore = '';
    this.#word = '';
  }

  #parameter(): boolean {
    const text = this.#text;
    let at = this.#at + 1;
    while (at < text.length && isDigit(text.charCodeAt(at))) at += 1;
    if (at === this.#at + 1 || (at < text.length && isNamePart(text.charCodeAt(at)))) return false;
    this.#at = at;
    this.#wordBefore = '';
    this.#word = '';
    return true;
  }

  #open(): boolean {
    const word = this.#word;
    if (word === 'current_setting') this.#settingNext = true;
    // `AS t (a, b)`, `WITH t (a)` name columns.
    const named = ['as', 'with', 'recursive'].includes(this.#wordBefore);
    if (word !== '') {
      const keyword = named || (!this.#quoted && BEFORE_PARENTHESIS.has(word));
      (keyword ? this.#keywordCalls : this.#calls).add(word);
    }
    this.#depth += 1;
    this.#punctuation();
    return true;
  }

  #operator(): boolean {
    const text = this.#text;
    const start = this.#at;
    let at = start;
    while (at < text.length && OPERATOR_CHARS.includes(text.charAt(at))) {
      if (at > start && (text.startsWith('--', at) || text.startsWith('/*', at))) break;
      at += 1;
    }
    if (at === start) return false;
    this.#operators.add(text.slice(start, at));
    this.#at = at;
    this.#wordBefore = '';
    this.#word = '';
    return true;
  }
}

function isExponent(text: string, at: number): boolean {
  const char = text[at];
  return (char === 'e' || char === 'E') && isDigit(text.charCodeAt(at - 1));
}

function isDigit(code: number): boolean {
  return code >= 0x30 && code <= 0x39;
}

function isLetter(code: number): boolean {
  return (code >= 0x61 && code <= 0x7a) || (code >= 0x41 && code <= 0x5a) || code === 0x5f;
}

function isNamePart(code: number): boolean {
  return isLetter(code) || isDigit(code) || code === 0x24;
}
