/**
 * One text for all that differ in the values of numbers alone, for what a number can't change: which tables a statement
 * touches, and which functions it calls.
 */
import { tokenize } from './sql-tokens.js';

/** In the place of a number; no text of the protocol has a zero byte. */
const WHOLE = '\0i';
const DECIMAL = '\0n';
/** An int4 whatever its digits are, for the server chooses functions by types, too. */
const WHOLE_NUMBER = /^\d{1,9}$/;
const DECIMAL_NUMBER = /^\d+\.\d+$/;
/** Behind a number it may be a part of what the server, of some version, reads as one. */
const JOINED = /[\w$.\u0080-\uffff]/;
const DIGIT = /\d/;

/**
 * The text with each plain number in it replaced by its kind: whole ones of up to nine digits, and decimal ones. All else
 * stays, also what is in strings, names and comments; so do numbers that are written in any other way, and the precision of
 * FLOAT, which chooses between two types. Where two texts come out equal, PostgreSQL reads the same of both but for those
 * values.
 */
export function numberBlind(text: string): string {
  if (!DIGIT.test(text)) return text;
  const { tokens, spans, cut } = tokenize(text);
  if (cut) return text;
  let blind = '';
  let from = 0;
  let value = 0;
  for (const [index, { kind }] of tokens.entries()) {
    if (kind !== 'literal' && kind !== 'parameter') continue;
    const [start = 0, end = 0] = [spans[value], spans[value + 1]];
    value += 2;
    if (kind === 'parameter' || !standsAlone(text, start, end)) continue;
    if (tokens[index - 1]?.text === '(' && tokens[index - 2]?.text === 'float') continue;
    const written = text.slice(start, end);
    const placeholder = WHOLE_NUMBER.test(written) ? WHOLE : DECIMAL_NUMBER.test(written) ? DECIMAL : null;
    if (placeholder === null) continue;
    blind += text.slice(from, start) + placeholder;
    from = end;
  }
  return from === 0 ? text : blind + text.slice(from);
}

function standsAlone(text: string, start: number, end: number): boolean {
  return !JOINED.test(text.charAt(start - 1)) && !JOINED.test(text.charAt(end));
}
