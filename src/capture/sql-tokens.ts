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
}

const WORD_START = /[A-Za-z_\u0080-\uffff]/;
const WORD = /[A-Za-z_\u0080-\uffff][\w$\u0080-\uffff]*/y;
const NUMBER =
  /(?:0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+|(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)(?:[eE][+-]?\d+)?)/y;
const PARAMETER = /\$\d+/y;
const DOLLAR_TAG = /\$(?:[A-Za-z_\u0080-\uffff][\w\u0080-\uffff]*)?\$/y;
const SPACE = /\s+/y;

/** A literal's and a parameter's only instances: their texts don't matter. */
const LITERAL: Token = { kind: 'literal', text: '' };
const PARAMETER_TOKEN: Token = { kind: 'parameter', text: '' };
const MARKS = new Map<string, Token>();

export function tokenize(sql: string): Tokens {
  const lexer = new Lexer(sql);
  lexer.run();
  return { tokens: lexer.tokens, cut: lexer.cut };
}

class Lexer {
  readonly #sql: string;
  #at = 0;
  readonly tokens: Token[] = [];
  cut = false;

  constructor(sql: string) {
    this.#sql = sql;
  }

  run(): void {
    while (this.#at < this.#sql.length) this.#next();
  }

  #next(): void {
    const sql = this.#sql;
    const character = sql[this.#at] ?? '';
    const following = sql[this.#at + 1];
    if (this.#match(SPACE) !== null) return;
    if (character === '-' && following === '-') this.#lineComment();
    else if (character === '/' && following === '*') this.#blockComment();
    else if (character === `'`) this.#string(this.#at, false);
    else if (character === '"') this.#quotedName(this.#at);
    else if (character === '$') this.#dollar();
    else if (WORD_START.test(character)) this.#word();
    else if (/\d/.test(character) || (character === '.' && /\d/.test(following ?? ''))) {
      this.#match(NUMBER);
      this.tokens.push(LITERAL);
    } else this.#mark(character);
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
      // Only the few characters of the grammar are kept.
      if (character.charCodeAt(0) < 0x80) MARKS.set(character, token);
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

  /** `quote` is the position of the opening quote. */
  #string(quote: number, backslashes: boolean): void {
    this.tokens.push(LITERAL);
    for (let at = quote + 1; at < this.#sql.length; at += 1) {
      const character = this.#sql[at];
      if (character === '\\' && backslashes) at += 1;
      else if (character === `'`) {
        if (this.#sql[at + 1] === `'`) at += 1;
        else {
          this.#at = at + 1;
          return;
        }
      }
    }
    this.#end();
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
    if (this.#match(PARAMETER) !== null) {
      this.tokens.push(PARAMETER_TOKEN);
      return;
    }
    const tag = this.#match(DOLLAR_TAG);
    if (tag === null) {
      this.#mark('$');
      return;
    }
    this.tokens.push(LITERAL);
    const end = this.#sql.indexOf(tag, this.#at);
    if (end === -1) this.#end();
    else this.#at = end + tag.length;
  }

  #word(): void {
    const word = this.#match(WORD) ?? '';
    const next = this.#sql[this.#at];
    if (next === `'` && /^[eEbBxXnN]$/.test(word)) {
      this.#string(this.#at, word === 'e' || word === 'E');
      return;
    }
    if (next === '&' && /^[uU]$/.test(word)) {
      const quote = this.#sql[this.#at + 1];
      if (quote === `'`) return this.#string(this.#at + 1, false);
      if (quote === '"') return this.#quotedName(this.#at + 1);
    }
    this.tokens.push({ kind: 'word', text: foldCase(word) });
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
