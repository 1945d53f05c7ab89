/**
 * What is known of a statement's text, computed once per shape: applications send few shapes with many values.
 *
 *   text ─ known? ─► statement
 *     └ tokens → shape ─ known? ─► statement
 *                  └ PostgreSQL's parser → footprint and fingerprint; where it refuses, what the tokens tell
 *
 * Bounds: entries and characters of both caches, the length of a text given to the parser.
 */
import { createHash } from 'node:crypto';
import { UNANALYSED, type Analysis, type InsertedRows, type KeyScope } from './access.js';
import { BoundedCache } from './bounded-cache.js';
import { shapeOf, type Shape } from './fingerprint.js';
import { footprintOf } from './footprint.js';
import type { ParsedText, PostgresParser } from './parser.js';
import { tokenize, type Tokens } from './sql-tokens.js';
import { analyse } from './tree-footprint.js';

/** Where it holds values, `scopes` and `inserts` give the shape's slots, not places in a text. */
export interface Statement extends Analysis {
  /** Different for every statement of a process. */
  readonly id: number;
  /** 16 hexadecimal digits: of PostgreSQL's parser, or of the shape where that refused the text. */
  readonly fingerprint: string;
  /** The text without values, cut at a bound. */
  readonly shape: string;
}

/** A text, and where its values are. */
export interface ReadText {
  readonly statement: Statement;
  readonly text: string;
  /** null where no key is compared with a value. */
  readonly values: TextValues | null;
}
export interface TextValues {
  /** See {@link Tokens}. */
  readonly spans: readonly number[];
  /** See {@link Shape}. */
  readonly slots: Shape['slots'];
}

const ENTRIES_MAX = 4_096;
const CHARACTERS_MAX = 8 * 2 ** 20;
/** Longer texts are bulk work, whose trees would cost megabytes; their tokens tell enough. */
const PARSED_CHARACTERS_MAX = 65_536;
const SHAPE_CHARACTERS_MAX = 2_000;

/** For a text that is not known or can't be read at all. */
export const UNREADABLE: Statement = {
  ...UNANALYSED,
  id: 0,
  fingerprint: '0'.repeat(16),
  shape: '',
  kind: 'unknown',
  accesses: [],
  parsed: false,
  begins: false,
  ends: null,
  chains: false,
};

export class StatementCache {
  readonly #parser: PostgresParser | null;
  /** Two ways to the same: exact texts, which prepared statements repeat, then shapes. */
  readonly #byText = new BoundedCache<ReadText>(ENTRIES_MAX, CHARACTERS_MAX);
  readonly #byShape = new BoundedCache<Statement>(ENTRIES_MAX, CHARACTERS_MAX);
  #nextId = 1;
  #refused = 0;

  /** null: what tokens tell has to do. */
  constructor(parser: PostgresParser | null = null) {
    this.#parser = parser;
  }

  /** Shapes that PostgreSQL's parser refused or was spared, and that were read by their tokens. */
  get refused(): number {
    return this.#refused;
  }

  statement(text: string): Statement {
    return this.read(text, false).statement;
  }

  /**
   * Never throws. Statements of one shape are one object, as long as it is cached. `cut`: the text is only a
   * beginning, which no parser could make sense of.
   */
  read(text: string, cut: boolean): ReadText {
    const known = this.#byText.get(text);
    if (known !== undefined) return known;
    // Asked before: a text that breaks the parser is kept, so as not to break it again.
    const coming = this.#parserComing;
    const read = this.#read(text, cut, coming);
    if (!coming) this.#byText.set(text, read);
    return read;
  }

  /** It is being loaded: what is read meanwhile is read again later. */
  get #parserComing(): boolean {
    return this.#parser !== null && !this.#parser.ready && this.#parser.problem === undefined;
  }

  #read(text: string, cut: boolean, coming: boolean): ReadText {
    if (text === '') return { statement: UNREADABLE, text, values: null };
    try {
      const tokens = tokenize(text);
      const shape = shapeOf(tokens.tokens);
      const statement = this.#ofShape(text, cut || tokens.cut, tokens, shape, coming);
      const keyed = statement.scopes.length > 0 || statement.inserts.length > 0;
      return { statement, text, values: keyed ? { spans: tokens.spans, slots: shape.slots } : null };
    } catch {
      // Parentheses nested beyond the stack: nothing that an application means to send.
      return { statement: UNREADABLE, text, values: null };
    }
  }

  #ofShape(text: string, cut: boolean, tokens: Tokens, shape: Shape, coming: boolean): Statement {
    // A cut text of the same shape may lack what came after.
    const key = cut ? `${shape.text} …` : shape.text;
    const known = this.#byShape.get(key);
    if (known !== undefined) return known;
    const statement = this.#analyse(text, cut, tokens, shape, key);
    if (!coming) this.#byShape.set(key, statement);
    return statement;
  }

  #analyse(text: string, cut: boolean, tokens: Tokens, shape: Shape, key: string): Statement {
    const id = this.#nextId++;
    const shown = flat(key.slice(0, SHAPE_CHARACTERS_MAX));
    const parsed = cut || text.length > PARSED_CHARACTERS_MAX ? null : (this.#parser?.parse(text) ?? null);
    const analysis = parsed === null || parsed.fingerprint === '' ? null : analyseWithinStack(parsed);
    if (parsed !== null && analysis !== null) {
      const sites = slotted(analysis, text, tokens, shape);
      return { ...analysis, ...sites, id, fingerprint: parsed.fingerprint, shape: shown };
    }
    if (this.#parser !== null) this.#refused += 1;
    const footprint = footprintOf(tokens);
    // Where PostgreSQL sees no statement, what looks like a name may be a value.
    const offered = this.#parser !== null && !cut && text.length <= PARSED_CHARACTERS_MAX;
    return {
      ...UNANALYSED,
      ...footprint,
      // What PostgreSQL's own parser refuses is not understood, whatever its tokens look like.
      parsed: footprint.parsed && this.#parser === null,
      changesCatalog: footprint.kind === 'ddl',
      id,
      fingerprint: createHash('sha256').update(key).digest('hex').slice(0, 16),
      shape: offered ? '(not understood)' : shown,
    };
  }
}

/** null: the tree is deeper than the stack. */
function analyseWithinStack({ statements }: ParsedText): Analysis | null {
  try {
    return analyse(statements);
  } catch {
    return null;
  }
}

/** A copy of its own, as a slice would keep the whole text in memory; without what no database can store. */
function flat(text: string): string {
  return Buffer.from(text.replaceAll('\0', ' '), 'utf8').toString('utf8');
}

/** Places in the text turned into slots of the shape, which hold for every text of it. */
function slotted(
  { scopes, inserts }: Analysis,
  text: string,
  { spans }: Tokens,
  { slots }: Shape,
): { readonly scopes: readonly KeyScope[]; readonly inserts: readonly InsertedRows[] } {
  if (scopes.length === 0 && inserts.length === 0) return { scopes, inserts };
  const slotOfValue: number[] = [];
  for (const [slot, values] of slots.entries()) for (const value of values) slotOfValue[value] = slot;
  const toIndex = byteToIndex(text);
  const slotAt = (byte: number): number => slotOfValue[valueFrom(text, spans, toIndex(byte))] ?? -1;
  return {
    scopes: scopes.map(({ tables, equalities }) => ({
      tables,
      equalities: equalities.flatMap(({ values, ...rest }) => {
        const found = [...new Set(values.map(slotAt))];
        return found.includes(-1) ? [] : [{ ...rest, values: found }];
      }),
    })),
    inserts: inserts.map(({ rows, ...rest }) => {
      const distinct = new Map<string, readonly (number | null)[]>();
      for (const row of rows) {
        const of = row
          .map((byte) => (byte === null ? null : slotAt(byte)))
          .map((slot) => (slot === -1 ? null : slot));
        distinct.set(of.join(), of);
      }
      return { ...rest, rows: [...distinct.values()] };
    }),
  };
}

/** The parser counts bytes of UTF-8, a string UTF-16 units. */
function byteToIndex(text: string): (byte: number) => number {
  const bytes = Buffer.from(text, 'utf8');
  if (bytes.length === text.length) return (byte) => byte;
  return (byte) => bytes.toString('utf8', 0, byte).length;
}

/** Number of the value that begins at `index`, or after a sign there; −1 where none does. */
function valueFrom(text: string, spans: readonly number[], index: number): number {
  let at = index;
  while (/[-+\s]/.test(text.charAt(at))) at += 1;
  for (let span = 0; span < spans.length; span += 2) if (spans[span] === at) return span / 2;
  return -1;
}
