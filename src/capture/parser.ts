/**
 * PostgreSQL's own parser, compiled to WebAssembly. For the capture thread: a parse takes tenths of a millisecond.
 *
 * States: unloaded → ready ⇄ broken. A trap (the stack exhausted by a deeply nested text, memory that can't grow)
 * leaves the module's C stack where it was and its memory in doubt: it is thrown away, and a new one made in its place
 * while callers get `null`, which means "ask somebody simpler". A text that PostgreSQL refuses is no trap.
 *
 * The package's own entry point keeps one module for the life of the process, so the module's factory is used.
 */
import { createRequire } from 'node:module';
import { setFlagsFromString } from 'node:v8';
import { asUnderstudyError, type UnderstudyError } from '../core/errors.js';

/** What of the module is used. Layout of the results: https://github.com/pganalyze/libpg_query/blob/17-latest/pg_query.h */
interface ParserModule {
  _malloc(bytes: number): number;
  _free(pointer: number): void;
  _wasm_parse_query_raw(text: number): number;
  _wasm_free_parse_result(result: number): void;
  _wasm_fingerprint(text: number): number;
  _wasm_free_string(text: number): void;
  lengthBytesUTF8(text: string): number;
  stringToUTF8(text: string, pointer: number, bytesMax: number): void;
  UTF8ToString(pointer: number): string;
  getValue(pointer: number, type: 'i32'): number;
}
type Factory = () => Promise<ParserModule>;

/** PgQueryParseResult: the tree as JSON, what was written to stderr, the error. */
const TREE = 0;
const ERROR = 8;

/** A module that was made anew that often in one process is not tried again. */
const RELOADS_MAX = 1_000;

/** Nodes as libpg_query writes them: one property whose name is the node's type, or the fields of a known type. */
export type Tree = { readonly [field: string]: unknown };

export interface ParsedText {
  /** One for each statement of the text; `stmt_location` and `stmt_len` are in bytes. */
  readonly statements: readonly Tree[];
  /** 16 hexadecimal digits, the same for texts that differ in literals, spacing or aliases' case. */
  readonly fingerprint: string;
}

export class PostgresParser {
  readonly #factory: Factory;
  #module: ParserModule | undefined;
  #loading: Promise<void> | undefined;
  #reloads = 0;
  #traps = 0;
  #problem: UnderstudyError | undefined;

  /** `factory` is for tests. */
  constructor(factory: Factory = moduleFactory) {
    this.#factory = factory;
  }

  get ready(): boolean {
    return this.#module !== undefined;
  }

  /** How often the module had to be thrown away. */
  get traps(): number {
    return this.#traps;
  }

  /** Why it could not be loaded. */
  get problem(): UnderstudyError | undefined {
    return this.#problem;
  }

  /** Makes the module. Never throws: without it every text is for somebody simpler. */
  async load(): Promise<void> {
    this.#loading ??= this.#load().finally(() => (this.#loading = undefined));
    await this.#loading;
  }

  async #load(): Promise<void> {
    try {
      this.#module = await this.#factory();
      this.#problem = undefined;
    } catch (error) {
      this.#problem = asUnderstudyError(error, 'internal', 'loading the SQL parser');
    }
  }

  /** null: PostgreSQL refuses the text, or there is no parser at the moment. Never throws. */
  parse(text: string): ParsedText | null {
    const module = this.#module;
    if (module === undefined || text.includes('\0')) return null;
    let answer: Answer | null;
    try {
      answer = askModule(module, text);
    } catch {
      this.#broken();
      return null;
    }
    return answer === null ? null : readAnswer(answer);
  }

  #broken(): void {
    this.#module = undefined;
    this.#traps += 1;
    if (this.#reloads >= RELOADS_MAX) return;
    this.#reloads += 1;
    void this.load();
  }
}

interface Answer {
  readonly json: string;
  readonly fingerprint: string;
}

/** null: deeper than this thread's stack; the module is none the worse for it. */
function readAnswer({ json, fingerprint }: Answer): ParsedText | null {
  try {
    const tree = JSON.parse(json) as { stmts?: readonly { readonly stmt?: Tree }[] };
    return { statements: (tree.stmts ?? []).map(({ stmt }) => stmt ?? {}), fingerprint };
  } catch {
    return null;
  }
}

function askModule(module: ParserModule, text: string): Answer | null {
  const bytes = module.lengthBytesUTF8(text) + 1;
  const pointer = module._malloc(bytes);
  if (pointer === 0) throw new RangeError('the parser is out of memory');
  module.stringToUTF8(text, pointer, bytes);
  try {
    const json = treeText(module, pointer);
    return json === null ? null : { json, fingerprint: fingerprintOf(module, pointer) };
  } finally {
    module._free(pointer);
  }
}

function treeText(module: ParserModule, text: number): string | null {
  const result = module._wasm_parse_query_raw(text);
  if (result === 0) throw new RangeError('the parser is out of memory');
  try {
    if (module.getValue(result + ERROR, 'i32') !== 0) return null;
    return module.UTF8ToString(module.getValue(result + TREE, 'i32'));
  } finally {
    module._wasm_free_parse_result(result);
  }
}

/** Empty where there is none; it follows a successful parse. */
function fingerprintOf(module: ParserModule, text: number): string {
  const result = module._wasm_fingerprint(text);
  if (result === 0) return '';
  const fingerprint = module.UTF8ToString(result);
  module._wasm_free_string(result);
  return /^[0-9a-f]{16}$/.test(fingerprint) ? fingerprint : '';
}

/** Imported only when it is needed: whoever merely links to this file pays nothing. */
/**
 * Few texts are parsed, as their shapes are remembered. Optimising the module's code costs the machine's other cores
 * over a second, and 120 MB, in the first moments of traffic, to win microseconds: its first code is good enough.
 */
function moduleFactory(): Promise<ParserModule> {
  setFlagsFromString('--liftoff-only');
  const load = createRequire(import.meta.url);
  return (load('libpg-query/wasm/libpg-query.js') as Factory)();
}
