/**
 * What a statement touches: its kind and the tables it names, read off its tokens without a full parser.
 *
 * Tables behind views, functions, triggers and rules are not seen. CTE names, functions in FROM, and the FROM of
 * EXTRACT, SUBSTRING, TRIM and IS DISTINCT FROM are told from tables. What can't be read is `parsed: false`, with
 * what was found so far; it is counted, never guessed at.
 */
import type { StatementKind } from '../core/capture-ports.js';
import type { Footprint, TableAccess, TableReference, TransactionEnd } from './access.js';
import type { Token, Tokens } from './sql-tokens.js';

export function footprintOf({ tokens, cut }: Tokens): Footprint {
  const found = new Footprinter();
  let kind: StatementKind | null = null;
  for (const statement of statements(tokens)) {
    const own = found.statement(statement);
    if (kind === null || kind === 'transaction') kind = own;
  }
  return {
    // Nothing but comments and semicolons: drivers ping so.
    kind: kind ?? (cut ? 'unknown' : 'utility'),
    accesses: found.accesses,
    parsed: found.parsed && !cut,
    begins: found.begins,
    ends: found.ends,
    chains: found.chains,
  };
}

/** The statements of a text: split at semicolons outside parentheses and of BEGIN ATOMIC … END bodies. */
function* statements(tokens: readonly Token[]): Generator<readonly Token[], void, undefined> {
  let start = 0;
  let depth = 0;
  let atomic = false;
  for (const [index, token] of tokens.entries()) {
    if (token.kind === 'word' && token.text === 'atomic') atomic = true;
    if (token.kind !== 'mark') continue;
    if (token.text === '(') depth += 1;
    if (token.text === ')') depth -= 1;
    if (token.text === ';' && depth <= 0 && !atomic) {
      if (index > start) yield tokens.slice(start, index);
      start = index + 1;
      depth = 0;
    }
  }
  if (start < tokens.length) yield tokens.slice(start);
}

const KIND_OF_VERB: Readonly<Record<string, StatementKind>> = {
  select: 'select',
  values: 'select',
  table: 'select',
  insert: 'insert',
  update: 'update',
  delete: 'delete',
  merge: 'merge',
  copy: 'copy',
  truncate: 'truncate',
  declare: 'select',
  create: 'ddl',
  alter: 'ddl',
  drop: 'ddl',
  comment: 'ddl',
  grant: 'ddl',
  revoke: 'ddl',
  security: 'ddl',
  reindex: 'ddl',
  refresh: 'ddl',
  import: 'ddl',
  reassign: 'ddl',
  begin: 'transaction',
  start: 'transaction',
  commit: 'transaction',
  end: 'transaction',
  rollback: 'transaction',
  abort: 'transaction',
  savepoint: 'transaction',
  release: 'transaction',
  set: 'session',
  reset: 'session',
  show: 'session',
  discard: 'session',
  listen: 'session',
  unlisten: 'session',
  notify: 'session',
  prepare: 'session',
  deallocate: 'session',
  load: 'session',
  close: 'session',
  execute: 'utility',
  fetch: 'utility',
  move: 'utility',
  explain: 'utility',
  analyze: 'utility',
  analyse: 'utility',
  vacuum: 'utility',
  cluster: 'utility',
  checkpoint: 'utility',
  lock: 'utility',
  call: 'utility',
  do: 'utility',
};

/** Run statements that their text does not hold. */
const OPAQUE = new Set(['execute', 'call', 'do']);
const QUERY_VERBS = new Set(['select', 'values', 'table', 'insert', 'update', 'delete', 'merge', 'with']);
/** End the list of tables that FROM began. */
const ENDS_FROM = new Set(
  'where group having order limit offset fetch for window union intersect except returning set select when values'.split(
    ' ',
  ),
);

type Ctes = ReadonlySet<string>;

class Footprinter {
  readonly accesses: TableAccess[] = [];
  parsed = true;
  begins = false;
  ends: TransactionEnd = null;
  chains = false;
  #tokens: readonly Token[] = [];
  /** For each opening bracket the index of its closing one. */
  #closing: readonly number[] = [];
  readonly #seen = new Set<string>();

  statement(tokens: readonly Token[]): StatementKind {
    this.#tokens = tokens;
    this.#closing = matchBrackets(tokens);
    let start = 0;
    while (this.#isMark(start, '(')) start += 1;
    const verb = this.#word(start);
    if (verb === 'with') return this.#query(start, tokens.length, new Set());
    const kind = verb === null ? undefined : KIND_OF_VERB[verb];
    if (verb === null || kind === undefined) {
      this.parsed = false;
      return 'unknown';
    }
    if (OPAQUE.has(verb)) this.parsed = false;
    switch (kind) {
      case 'transaction':
        this.#transaction(verb);
        return kind;
      case 'session':
        if (verb === 'prepare' && this.#word(1) === 'transaction') {
          this.ends = 'prepare';
          return 'transaction';
        }
        return kind;
      case 'copy':
        this.#copy();
        return kind;
      case 'truncate':
        this.#truncate();
        return kind;
      case 'select':
        if (verb === 'declare') this.#declare();
        else this.#query(0, tokens.length, new Set());
        return kind;
      case 'insert':
      case 'update':
      case 'delete':
      case 'merge':
        return this.#query(start, tokens.length, new Set());
      default:
        return kind;
    }
  }

  // ------------------------------------------------------------------------------------------------ commands

  #transaction(verb: string): void {
    if (verb === 'begin' || verb === 'start') this.begins = true;
    const second = this.#word(1);
    // The prepared transaction was another one; ROLLBACK TO a savepoint ends none.
    if (second === 'prepared') return;
    const last = this.#tokens.length;
    const chains = this.#word(last - 1) === 'chain' && this.#word(last - 2) === 'and';
    if (verb === 'commit' || verb === 'end') {
      this.ends = 'commit';
      this.chains = chains;
    } else if ((verb === 'rollback' || verb === 'abort') && !this.#holdsWord('to')) {
      this.ends = 'rollback';
      this.chains = chains;
    }
  }

  #holdsWord(text: string): boolean {
    return this.#tokens.some((token) => token.kind === 'word' && token.text === text);
  }

  #declare(): void {
    const query = this.#tokens.findIndex((token) => token.kind === 'word' && token.text === 'for');
    if (query === -1) this.parsed = false;
    else this.#query(query + 1, this.#tokens.length, new Set());
  }

  /** COPY [BINARY] name [(columns)] FROM | TO …, COPY (query) TO … */
  #copy(): void {
    let at = 1;
    if (this.#isMark(at, '(')) {
      this.#query(at + 1, this.#close(at), new Set());
      return;
    }
    if (this.#word(at) === 'binary') at += 1;
    const end = this.#nameEnd(at);
    if (end === -1) {
      this.parsed = false;
      return;
    }
    const direction = this.#isMark(end, '(') ? this.#close(end) + 1 : end;
    this.#add(this.#reference(at, end), 'copy', this.#word(direction) === 'from');
  }

  /** TRUNCATE [TABLE] [ONLY] name [*] [, …] */
  #truncate(): void {
    let at = this.#word(1) === 'table' ? 2 : 1;
    for (;;) {
      if (this.#word(at) === 'only') at += 1;
      at = this.#table(at, 'truncate');
      if (at === -1) {
        this.parsed = false;
        return;
      }
      if (this.#isMark(at, '*')) at += 1;
      if (!this.#isMark(at, ',')) return;
      at += 1;
    }
  }

  // ------------------------------------------------------------------------------------------------- queries

  /** A query in [start, end), with the CTEs that its surroundings define. Returns the kind of its main verb. */
  #query(start: number, end: number, outer: Ctes): StatementKind {
    let at = start;
    let ctes = outer;
    if (this.#word(at) === 'with') [at, ctes] = this.#withClause(at + 1, end, outer);
    while (at < end && this.#isMark(at, '(')) {
      // Parenthesised members of a set operation; what follows them is scanned below.
      const close = Math.min(this.#close(at), end);
      this.#group(at + 1, close, ctes);
      at = close + 1;
    }
    const verb = this.#word(at);
    const kind = (verb === null ? undefined : KIND_OF_VERB[verb]) ?? 'select';
    const first = this.#mainTable(at, verb, kind);
    this.#clauses(first, end, ctes, kind);
    return kind;
  }

  /** The table a verb acts on, if it names one. Returns where to go on. */
  #mainTable(at: number, verb: string | null, kind: StatementKind): number {
    let name: number;
    switch (verb) {
      case 'insert':
      case 'merge':
        name = this.#word(at + 1) === 'into' ? at + 2 : -1;
        break;
      case 'delete':
        name = this.#word(at + 1) === 'from' ? at + 2 : -1;
        break;
      case 'update':
      case 'table':
        name = at + 1;
        break;
      default:
        return at + (verb === null ? 0 : 1);
    }
    if (name !== -1 && this.#word(name) === 'only') name += 1;
    // ONLY (name) is the same as ONLY name.
    if (name !== -1 && this.#isMark(name, '(') && verb !== 'insert') name += 1;
    const after = name === -1 ? -1 : this.#table(name, kind);
    if (after !== -1) return after;
    this.parsed = false;
    return at + 1;
  }

  /** WITH [RECURSIVE] name [(columns)] AS [[NOT] MATERIALIZED] (query) [SEARCH …] [CYCLE …] [, …] */
  #withClause(start: number, end: number, outer: Ctes): [number, Ctes] {
    let at = start;
    const recursive = this.#word(at) === 'recursive';
    if (recursive) at += 1;
    const ctes = new Set(outer);
    while (at < end) {
      const name = this.#identifier(at);
      if (name === null) break;
      at += 1;
      if (this.#isMark(at, '(')) at = this.#close(at) + 1;
      while (this.#word(at) === 'as' || this.#word(at) === 'not' || this.#word(at) === 'materialized')
        at += 1;
      if (!this.#isMark(at, '(')) break;
      const close = this.#close(at);
      const visible = new Set(ctes);
      if (recursive) visible.add(name);
      this.#query(at + 1, close, visible);
      ctes.add(name);
      at = close + 1;
      // SEARCH and CYCLE hold no parentheses at this level that could hide a verb.
      while (at < end && !this.#isMark(at, ',') && !this.#isMark(at, '(') && !this.#isVerb(at)) at += 1;
      if (!this.#isMark(at, ',')) return [at, ctes];
      at += 1;
    }
    this.parsed = false;
    return [at, ctes];
  }

  /** Everything after the verb: finds FROM, JOIN, USING, INTO and what is in parentheses. */
  #clauses(start: number, end: number, ctes: Ctes, kind: StatementKind): void {
    let inFrom = false;
    for (let at = start; at < end;) {
      const token = this.#tokens[at];
      if (token === undefined) return;
      if (token.kind === 'mark') {
        if (token.text === '(') {
          this.#parenthesis(at, Math.min(this.#close(at), end), ctes);
          at = Math.min(this.#close(at), end) + 1;
        } else if (token.text === ',' && inFrom) at = this.#fromItem(at + 1, ctes);
        else at += 1;
        continue;
      }
      // After a dot or AS even a reserved word is a name.
      const isName = token.kind === 'name' || this.#isMark(at - 1, '.') || this.#word(at - 1) === 'as';
      const word = isName ? '' : token.text;
      if (ENDS_FROM.has(word)) inFrom = false;
      if (
        (word === 'from' && !this.#isDistinctFrom(at)) ||
        (word === 'using' && !inFrom && (kind === 'merge' || kind === 'delete'))
      ) {
        inFrom = true;
        at = this.#fromItem(at + 1, ctes);
      } else if (word === 'join') {
        at = this.#fromItem(at + 1, ctes);
      } else if (word === 'into' && kind === 'select') {
        at = this.#selectInto(at + 1);
      } else at += 1;
    }
  }

  #isDistinctFrom(at: number): boolean {
    if (this.#word(at - 1) !== 'distinct') return false;
    const before = this.#word(at - 2);
    return before === 'is' || before === 'not';
  }

  /** SELECT … INTO [TEMP | UNLOGGED] [TABLE] name */
  #selectInto(start: number): number {
    let at = start;
    while (['temp', 'temporary', 'local', 'global', 'unlogged', 'table'].includes(this.#word(at) ?? ''))
      at += 1;
    const after = this.#table(at, 'ddl');
    return after === -1 ? at : after;
  }

  /**
   * What is in parentheses within an expression or after a name. FROM counts only where the parentheses begin with a
   * verb: in EXTRACT (… FROM …), SUBSTRING and TRIM it only separates arguments.
   */
  #parenthesis(open: number, close: number, ctes: Ctes): void {
    const start = open + 1;
    if (this.#isVerb(start)) {
      this.#query(start, close, ctes);
      return;
    }
    // An expression: only deeper parentheses can hold a query.
    for (let at = start; at < close;) {
      if (this.#isMark(at, '(')) {
        const inner = Math.min(this.#close(at), close);
        this.#parenthesis(at, inner, ctes);
        at = inner + 1;
      } else at += 1;
    }
  }

  /** Either a query in parentheses or a parenthesised join. */
  #group(start: number, end: number, ctes: Ctes): void {
    let inner = start;
    while (this.#isMark(inner, '(')) inner += 1;
    if (this.#isVerb(inner)) this.#query(start, end, ctes);
    else this.#clauses(this.#fromItem(start, ctes), end, ctes, 'select');
  }

  /** One item of FROM, of JOIN or of USING, up to its alias. Returns where to go on. */
  #fromItem(start: number, ctes: Ctes): number {
    let at = start;
    while (this.#word(at) === 'only' || this.#word(at) === 'lateral') at += 1;
    if (this.#isMark(at, '(')) {
      const close = this.#close(at);
      this.#group(at + 1, close, ctes);
      return close + 1;
    }
    // ROWS FROM (f(…), g(…)) holds functions only.
    if (this.#word(at) === 'rows' && this.#word(at + 1) === 'from' && this.#isMark(at + 2, '(')) {
      this.#parenthesis(at + 2, this.#close(at + 2), ctes);
      return this.#close(at + 2) + 1;
    }
    const after = this.#nameEnd(at);
    if (after === -1) {
      this.parsed = false;
      return at;
    }
    if (this.#isMark(after, '(')) {
      this.#parenthesis(after, this.#close(after), ctes);
      return this.#close(after) + 1;
    }
    const table = this.#reference(at, after);
    if (table.schema !== null || !ctes.has(table.name)) this.#add(table, 'select');
    return after;
  }

  // --------------------------------------------------------------------------------------------------- names

  /** Records the table named at `at`. Returns the index after the name, −1 if there is none. */
  #table(at: number, kind: StatementKind): number {
    const after = this.#nameEnd(at);
    if (after === -1) return -1;
    this.#add(this.#reference(at, after), kind);
    return after;
  }

  /** a, a.b or a.b.c (database, schema, name). */
  #nameEnd(at: number): number {
    if (this.#identifier(at) === null) return -1;
    let after = at + 1;
    while (this.#isMark(after, '.') && this.#identifier(after + 1) !== null) after += 2;
    return after;
  }

  #reference(at: number, after: number): TableReference {
    const name = this.#tokens[after - 1]?.text ?? '';
    return { schema: after - at >= 3 ? (this.#tokens[after - 3]?.text ?? null) : null, name };
  }

  #add(table: TableReference, kind: StatementKind, writes = kind !== 'select'): void {
    const key = `${kind}\0${table.schema ?? ''}\0${table.name}`;
    if (this.#seen.has(key)) return;
    this.#seen.add(key);
    this.accesses.push({ table, kind, writes, locks: false });
  }

  #identifier(at: number): string | null {
    const token = this.#tokens[at];
    return token?.kind === 'word' || token?.kind === 'name' ? token.text : null;
  }

  #word(at: number): string | null {
    const token = this.#tokens[at];
    return token?.kind === 'word' ? token.text : null;
  }

  #isVerb(at: number): boolean {
    const word = this.#word(at);
    return word !== null && QUERY_VERBS.has(word);
  }

  #isMark(at: number, text: string): boolean {
    const token = this.#tokens[at];
    return token?.kind === 'mark' && token.text === text;
  }

  /** The end of the parenthesis opened at `at`; past the last token where it is never closed. */
  #close(at: number): number {
    return this.#closing[at] ?? this.#tokens.length;
  }
}

function matchBrackets(tokens: readonly Token[]): readonly number[] {
  const closing: number[] = [];
  const open: number[] = [];
  for (const [index, token] of tokens.entries()) {
    if (token.kind !== 'mark') continue;
    if (token.text === '(') open.push(index);
    else if (token.text === ')') {
      const at = open.pop();
      if (at !== undefined) closing[at] = index;
    }
  }
  return closing;
}
