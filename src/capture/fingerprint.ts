/**
 * The shape of a statement: its tokens with every literal and parameter as `?`, lists of them as one, one space
 * between words, comments gone. Statements that differ only in values have one shape.
 */
import type { Token } from './sql-tokens.js';

const VALUE = '?';

export interface Shape {
  readonly text: string;
  /**
   * For each `?` of the shape, in order, which of the text's literals and parameters it stands for: one, or all of a
   * list's, or, after VALUES, one of each row.
   */
  readonly slots: readonly (readonly number[])[];
}

export function shapeOf(tokens: readonly Token[]): Shape {
  const { texts, slots } = foldLists(valuesMarked(tokens));
  return { text: write(texts), slots };
}

export function fingerprintOf(tokens: readonly Token[]): string {
  return shapeOf(tokens).text;
}

/** Texts of the tokens; for those that are values their number, else −1. */
interface Marked {
  readonly texts: string[];
  readonly values: number[];
}

/** Names quoted again, literals as `?` with their sign. */
function valuesMarked(tokens: readonly Token[]): Marked {
  const texts: string[] = [];
  const values: number[] = [];
  let number = 0;
  for (const token of tokens) {
    if (token.kind === 'literal' || token.kind === 'parameter') {
      if (isSign(texts)) {
        texts.pop();
        values.pop();
      }
      texts.push(VALUE);
      values.push(number++);
    } else {
      texts.push(token.kind === 'name' ? `"${token.text.replaceAll('"', '""')}"` : token.text);
      values.push(-1);
    }
  }
  while (texts.at(-1) === ';') {
    texts.pop();
    values.pop();
  }
  return { texts, values };
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
function foldLists({ texts, values }: Marked): { texts: string[]; slots: number[][] } {
  const out: string[] = [];
  const slots: number[][] = [];
  const emit = (index: number): void => {
    out.push(texts[index] ?? '');
    const value = values[index] ?? -1;
    if (value >= 0) slots.push([value]);
  };
  for (let at = 0; at < texts.length;) {
    const text = texts[at];
    emit(at);
    at += 1;
    if ((text === 'in' && texts[at] === '(') || (text === 'array' && texts[at] === '[')) {
      const end = endOfValueList(texts, at);
      if (end !== -1) {
        out.push(texts[at] ?? '', VALUE, texts[end] ?? '');
        slots.push(values.slice(at, end).filter((value) => value >= 0));
        at = end + 1;
      }
    } else if (text === 'values' && texts[at] === '(') {
      const end = closing(texts, at);
      const row = texts.slice(at, end + 1);
      const first = slots.length;
      for (; at <= end; at += 1) emit(at);
      while (texts[at] === ',' && sameAt(texts, at + 1, row)) {
        let slot = first;
        for (const value of values.slice(at + 1, at + 1 + row.length)) {
          if (value >= 0) slots[slot++]?.push(value);
        }
        at += 1 + row.length;
      }
    }
  }
  return { texts: out, slots };
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
