/** What is known of a statement's text, computed once per shape: applications send few shapes with many values. */
import type { StatementKind } from '../core/ports.js';
import { BoundedCache } from './bounded-cache.js';
import { fingerprintOf } from './fingerprint.js';
import { footprintOf, type Footprint } from './footprint.js';
import { tokenize } from './sql-tokens.js';

export interface Statement extends Footprint {
  /** The shape; statements that differ only in values have one. */
  readonly fingerprint: string;
}

/** For a text that is not known or can't be read at all. */
export const UNREADABLE: Statement = {
  fingerprint: '',
  kind: 'unknown' satisfies StatementKind,
  accesses: [],
  parsed: false,
  begins: false,
  ends: null,
  chains: false,
};

const ENTRIES_MAX = 4_096;
const CHARACTERS_MAX = 8 * 2 ** 20;

export class StatementCache {
  /** Two ways to the same: exact texts, which prepared statements repeat, then shapes. */
  readonly #byText = new BoundedCache<Statement>(ENTRIES_MAX, CHARACTERS_MAX);
  readonly #byFingerprint = new BoundedCache<Statement>(ENTRIES_MAX, CHARACTERS_MAX);

  /** Never throws. Statements of one shape are one object, as long as it is cached. */
  statement(text: string): Statement {
    const known = this.#byText.get(text);
    if (known !== undefined) return known;
    const statement = this.#read(text);
    this.#byText.set(text, statement);
    return statement;
  }

  #read(text: string): Statement {
    if (text === '') return UNREADABLE;
    try {
      const tokens = tokenize(text);
      const shape = fingerprintOf(tokens.tokens);
      // A cut text of the same shape may lack what came after.
      const fingerprint = tokens.cut ? `${shape} …` : shape;
      const known = this.#byFingerprint.get(fingerprint);
      if (known !== undefined) return known;
      const statement = { fingerprint, ...footprintOf(tokens) };
      this.#byFingerprint.set(fingerprint, statement);
      return statement;
    } catch {
      // Parentheses nested beyond the stack: nothing that an application means to send.
      return UNREADABLE;
    }
  }
}
