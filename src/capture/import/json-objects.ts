/**
 * JSON text in pieces → its objects, whether they stand one a line, spread over lines one after another, or in one
 * array. An object is bounded; one that is not JSON is given up at its line's end.
 *
 * States: line (a line that holds whole objects is parsed as it stands) · object (an object spread over lines: its
 * lines are kept until it parses).
 */
import { LineSplitter } from './line-splitter.js';
import type { JsonObject } from './json-format.js';

const OBJECT_CHARS_MAX = 8 << 20;

export interface JsonObjectsOptions {
  object(object: JsonObject, line: number, text: string): void;
  malformed(line: number, text: string): void;
}

export class JsonObjects {
  readonly #options: JsonObjectsOptions;
  readonly #splitter: LineSplitter;
  /** Lines of the object at hand. */
  #kept: string[] = [];
  #keptChars = 0;
  #keptFrom = 0;
  #depth = 0;
  lines = 0;

  constructor(options: JsonObjectsOptions) {
    this.#options = options;
    this.#splitter = new LineSplitter((text, cut) => this.#line(text, cut), OBJECT_CHARS_MAX);
  }

  push(text: string): void {
    this.#splitter.push(text);
  }

  end(): void {
    this.#splitter.end();
    this.#giveUp();
  }

  #line(text: string, cut: boolean): void {
    this.lines += 1;
    if (cut) {
      this.#giveUp();
      this.#options.malformed(this.lines, text);
      return;
    }
    if (this.#depth > 0) this.#keep(text);
    else this.#fresh(text);
  }

  /** A line outside of any object: a whole one, the beginning of one, or the brackets and commas of an array. */
  #fresh(text: string): void {
    const bare = text
      .trim()
      .replace(/^[[,\s]+/, '')
      .replace(/(?<=\})[\],\s]+$/, '');
    if (bare === '' || /^[\][,]*$/.test(bare)) return;
    if (!bare.startsWith('{')) {
      this.#options.malformed(this.lines, text);
      return;
    }
    if (bare.endsWith('}')) {
      const values = parseAll(bare);
      if (values !== null) {
        for (const value of values) this.#options.object(value, this.lines, text);
        return;
      }
    }
    this.#keptFrom = this.lines;
    this.#keep(bare);
  }

  #keep(text: string): void {
    this.#depth += depthChange(text);
    this.#kept.push(text);
    this.#keptChars += text.length;
    if (this.#depth <= 0) {
      const values = parseAll(
        this.#kept
          .join('\n')
          .trim()
          .replace(/[\],\s]+$/, ''),
      );
      if (values === null) this.#giveUp();
      else {
        for (const value of values) this.#options.object(value, this.#keptFrom, this.#kept[0] ?? '');
        this.#forget();
      }
    } else if (this.#keptChars > OBJECT_CHARS_MAX) {
      this.#giveUp();
    }
  }

  #giveUp(): void {
    if (this.#kept.length > 0) this.#options.malformed(this.#keptFrom, this.#kept[0] ?? '');
    this.#forget();
  }

  #forget(): void {
    this.#kept = [];
    this.#keptChars = 0;
    this.#depth = 0;
  }
}

/** One object, several behind one another with commas, or the members of an array; null where it is no JSON. */
function parseAll(text: string): readonly JsonObject[] | null {
  try {
    return [JSON.parse(text) as JsonObject];
  } catch {
    try {
      return JSON.parse(`[${text.replace(/\}\s*\{/g, '},{')}]`) as JsonObject[];
    } catch {
      return null;
    }
  }
}

/** Braces opened less braces closed, outside of strings. A string does not go over a line's end in JSON. */
function depthChange(text: string): number {
  let change = 0;
  for (const [mark] of text.matchAll(/"(?:[^"\\]|\\.)*"|[{}]/g)) {
    if (mark === '{') change += 1;
    else if (mark === '}') change -= 1;
  }
  return change;
}
