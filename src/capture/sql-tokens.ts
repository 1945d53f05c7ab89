/**
 * A PostgreSQL lexer good enough to find names and literals. Never throws: what it can't end is marked `cut`.
 * https://www.postgresql.org/docs/current/sql-syntax-lexical.html
 *
 * Assumes standard_conforming_strings = on, the default since 9.1.
 */

/** word: unquoted, folded to lower case. name: quoted, as written. mark: one character of punctuation or operator. */
export type TokenKind = 'word' | 'name' | 'literal' | 'parameter' | 'mark';

export interface Token {
  readonly kind: TokenKind;
  /** For words folded, for names unquoted, for marks the character; empty for literals and parameters. */
  readonly text: string;
}

export interface Tokens {
  readonly tokens: readonly Token[];
  /** The text ends inside a string, a quoted name or a comment. */
  readonly cut: boolean;
  /** Start and end in the text of each literal and parameter, in order: [start, end, start, end, …]. */
  readonly spans: readonly number[];
}

/** Classes of the characters below 128; all others are letters. This runs for every character: no patterns here. */
const SPACE = 1;
const LETTER = 2;
const DIGIT = 3;
const CLASSES = new Uint8Array(128);
for (const character of ' \t\n\r\f\v') CLASSES[character.charCodeAt(0)] = SPACE;
for (const character of '0123456789') CLASSES[character.charCodeAt(0)] = DIGIT;
for (let code = 0; code < 26; code += 1) {
  CLASSES[0x41 + code] = LETTER;
  CLASSES[0x61 + code] = LETTER;
}
CLASSES[0x5f] = LETTER;

const DOLLAR = 0x24;
const QUOTE = 0x27;
const DOUBLE_QUOTE = 0x22;
const DOT = 0x2e;

function classOf(code: number): number {
  return code < 128 ? (CLASSES[code] ?? 0) : LETTER;
}

const NUMBER =
  /(?:0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+|(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)(?:[eE][+-]?\d+)?)/y;
const PARAMETER = /\$\d+/y;
const DOLLAR_TAG = /\$(?:[A-Za-z_\u0080-\uffff][\w\u0080-\uffff]*)?\$/y;

/** A literal's and a parameter's only instances: their texts don't matter. */
const LITERAL: Token = { kind: 'literal', text: '' };
const PARAMETER_TOKEN: Token = { kind: 'parameter', text: '' };
const MARKS = new Map<string, Token>();

export function tokenize(sql: string): Tokens {
  const lexer = new Lexer(sql);
  lexer.run();
  return { tokens: lexer.tokens, cut: lexer.cut, spans: lexer.spans };
}

class Lexer {
  readonly #sql: string;
  #at = 0;
  readonly tokens: Token[] = [];
  readonly spans: number[] = [];
  cut = false;

  constructor(sql: string) {
    this.#sql = sql;
  }

  run(): void {
    while (this.#at < this.#sql.length) this.#next();
  }

  #next(): void {
    const sql = this.#sql;
    const code = sql.charCodeAt(this.#at);
    switch (classOf(code)) {
      case SPACE:
        this.#at += 1;
        return;
      case LETTER:
        this.#word();
        return;
      case DIGIT:
        this.#number();
        return;
      default:
    }
    const following = sql.charCodeAt(this.#at + 1);
    if (code === QUOTE) this.#string(this.#at, this.#at, false);
    else if (code === DOUBLE_QUOTE) this.#quotedName(this.#at);
    else if (code === DOLLAR) this.#dollar();
    else if (code === DOT && classOf(following) === DIGIT) this.#number();
    else if (code === 0x2d && following === 0x2d) this.#lineComment();
    else if (code === 0x2f && following === 0x2a) this.#blockComment();
    else this.#mark(sql.charAt(this.#at));
  }

  #number(): void {
    const start = this.#at;
    this.#match(NUMBER);
    this.#value(LITERAL, start);
  }

  #match(pattern: RegExp): string | null {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.#sql);
    if (found === null) return null;
    this.#at = pattern.lastIndex;
    return found[0];
  }

  #mark(character: string): void {
    let token = MARKS.get(character);
    if (token === undefined) {
      token = { kind: 'mark', text: character };
      MARKS.set(character, token);
    }
    this.tokens.push(token);
    this.#at += 1;
  }

  #lineComment(): void {
    const end = this.#sql.indexOf('\n', this.#at);
    this.#at = end === -1 ? this.#sql.length : end + 1;
  }

  /** Block comments nest. */
  #blockComment(): void {
    let depth = 0;
    const mark = /\/\*|\*\//g;
    mark.lastIndex = this.#at;
    for (let found = mark.exec(this.#sql); found !== null; found = mark.exec(this.#sql)) {
      depth += found[0] === '/*' ? 1 : -1;
      if (depth === 0) {
        this.#at = mark.lastIndex;
        return;
      }
    }
    this.#end();
  }

  /** A literal or parameter from `start` to where the lexer is now. */
  #value(token: Token, start: number): void {
    this.tokens.push(token);
    this.spans.push(start, this.#at);
  }

  /** `start` is where the literal begins, `quote` the position of its opening quote. */
  #string(start: number, quote: number, backslashes: boolean): void {
    for (let at = quote + 1; at < this.#sql.length; at += 1) {
      const code = this.#sql.charCodeAt(at);
      if (code === 0x5c && backslashes) at += 1;
      else if (code === QUOTE) {
        if (this.#sql.charCodeAt(at + 1) === QUOTE) at += 1;
        else {
          this.#at = at + 1;
          this.#value(LITERAL, start);
          return;
        }
      }
    }
    this.#end();
    this.#value(LITERAL, start);
  }

  #quotedName(quote: number): void {
    for (let at = quote + 1; at < this.#sql.length; at += 1) {
      if (this.#sql[at] !== '"') continue;
      if (this.#sql[at + 1] === '"') at += 1;
      else {
        const text = this.#sql.slice(quote + 1, at).replaceAll('""', '"');
        this.tokens.push({ kind: 'name', text });
        this.#at = at + 1;
        return;
      }
    }
    this.#end();
  }

  #dollar(): void {
    const start = this.#at;
    if (this.#match(PARAMETER) !== null) {
      this.#value(PARAMETER_TOKEN, start);
      return;
    }
    const tag = this.#match(DOLLAR_TAG);
    if (tag === null) {
      this.#mark('$');
      return;
    }
    const end = this.#sql.indexOf(tag, this.#at);
    if (end === -1) this.#end();
    else this.#at = end + tag.length;
    this.#value(LITERAL, start);
  }

  #word(): void {
    const sql = this.#sql;
    const start = this.#at;
    let at = start;
    let upper = false;
    for (; at < sql.length; at += 1) {
      const code = sql.charCodeAt(at);
      if (code >= 0x41 && code <= 0x5a) upper = true;
      else if (classOf(code) < LETTER && code !== DOLLAR) break;
    }
    this.#at = at;
    if (at - start === 1 && this.#prefixed(sql.charAt(start))) return;
    const word = sql.slice(start, at);
    this.tokens.push({ kind: 'word', text: upper ? foldCase(word) : word });
  }

  /** E'…', B'…', X'…', N'…', U&'…' and U&"…": whether the letter just passed begins one, which is then read. */
  #prefixed(letter: string): boolean {
    const next = this.#sql.charCodeAt(this.#at);
    if (next === QUOTE && /[eEbBxXnN]/.test(letter)) {
      this.#string(this.#at - 1, this.#at, letter === 'e' || letter === 'E');
      return true;
    }
    if (next !== 0x26 || !/[uU]/.test(letter)) return false;
    const quote = this.#sql.charCodeAt(this.#at + 1);
    if (quote === QUOTE) this.#string(this.#at - 1, this.#at + 1, false);
    else if (quote === DOUBLE_QUOTE) this.#quotedName(this.#at + 1);
    else return false;
    return true;
  }

  #end(): void {
    this.cut = true;
    this.#at = this.#sql.length;
  }
}

/** As the server folds names: ASCII always; other letters stay as they are in a multi-byte encoding. */
function foldCase(word: string): string {
  return word.replace(/[A-Z]+/g, (letters) => letters.toLowerCase());
}
