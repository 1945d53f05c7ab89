/**
 * The shape of a statement: its tokens with every literal and parameter as `?`, lists of them as one, one space
 * between words, comments gone. Statements that differ only in values have one fingerprint.
 */
import type { Token } from './sql-tokens.js';

const VALUE = '?';

export function fingerprintOf(tokens: readonly Token[]): string {
  return write(foldLists(valuesMarked(tokens)));
}

/** Texts of the tokens, names quoted again, literals as `?` with their sign. */
function valuesMarked(tokens: readonly Token[]): string[] {
  const out: string[] = [];
  for (const token of tokens) {
    if (token.kind === 'literal' || token.kind === 'parameter') {
      if (isSign(out)) out.pop();
      out.push(VALUE);
    } else out.push(token.kind === 'name' ? `"${token.text.replaceAll('"', '""')}"` : token.text);
  }
  while (out.at(-1) === ';') out.pop();
  return out;
}

/** After these a minus or plus belongs to the number, not between two operands. */
const BEFORE_OPERAND =
  /^(?:[(,=<>*/%+|-]|\[|select|where|and|or|not|in|between|then|else|when|case|values|limit|offset|return|returning|by|set|like|any|all|distinct)$/;

function isSign(out: readonly string[]): boolean {
  const sign = out.at(-1);
  if (sign !== '-' && sign !== '+') return false;
  const before = out.at(-2);
  return before === undefined || BEFORE_OPERAND.test(before);
}

/** `in (?, ?)` → `in (?)`, `array[?, ?]` → `array[?]`, `values (?, ?), (?, ?)` → `values (?, ?)`. */
function foldLists(texts: readonly string[]): string[] {
  const out: string[] = [];
  for (let at = 0; at < texts.length;) {
    const text = texts[at] ?? '';
    out.push(text);
    at += 1;
    if ((text === 'in' && texts[at] === '(') || (text === 'array' && texts[at] === '[')) {
      const end = endOfValueList(texts, at);
      if (end !== -1) {
        out.push(texts[at] ?? '', VALUE, texts[end] ?? '');
        at = end + 1;
      }
    } else if (text === 'values' && texts[at] === '(') {
      const end = closing(texts, at);
      const row = texts.slice(at, end + 1);
      out.push(...row);
      at = end + 1;
      while (texts[at] === ',' && sameAt(texts, at + 1, row)) at += 1 + row.length;
    }
  }
  return out;
}

/** Index of the bracket that ends `(?, ?, …)` opened at `at`; −1 if anything but values is in it. */
function endOfValueList(texts: readonly string[], at: number): number {
  const close = texts[at] === '(' ? ')' : ']';
  for (let next = at + 1; next < texts.length; next += 2) {
    if (texts[next] !== VALUE) return -1;
    if (texts[next + 1] === close) return next + 1;
    if (texts[next + 1] !== ',') return -1;
  }
  return -1;
}

/** Index of the parenthesis that closes the one at `at`, or of the last token. */
function closing(texts: readonly string[], at: number): number {
  let depth = 0;
  for (let next = at; next < texts.length; next += 1) {
    if (texts[next] === '(') depth += 1;
    if (texts[next] === ')') depth -= 1;
    if (depth === 0) return next;
  }
  return texts.length - 1;
}

function sameAt(texts: readonly string[], at: number, row: readonly string[]): boolean {
  return row.every((text, index) => texts[at + index] === text);
}

const NO_SPACE_AFTER = new Set(['(', '[', '.', ':']);
const NO_SPACE_BEFORE = new Set([')', ']', '[', '.', ',', ';', ':']);
const OPERATOR = /^[-+*/<>=~!@#%^&|`?]$/;
const WORD_END = /[\w"]$/;

function write(texts: readonly string[]): string {
  let out = '';
  let before = '';
  for (const text of texts) {
    const tight =
      out === '' ||
      NO_SPACE_AFTER.has(before) ||
      NO_SPACE_BEFORE.has(text) ||
      // An operator's characters stay together, and a call's parenthesis at its name.
      (OPERATOR.test(text) && OPERATOR.test(before) && text !== VALUE && before !== VALUE) ||
      (text === '(' && WORD_END.test(before) && !KEYWORDS_BEFORE_PARENTHESIS.has(before));
    out += tight ? text : ` ${text}`;
    before = text;
  }
  return out;
}

const KEYWORDS_BEFORE_PARENTHESIS = new Set([
  'in',
  'values',
  'as',
  'and',
  'or',
  'not',
  'on',
  'from',
  'where',
]);
