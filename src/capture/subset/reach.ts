/**
 * What a text touches, for sending it to its side: read by PostgreSQL's parser, resolved through the catalogs. What is not
 * known for certain is `unknown`, with the reason; nothing is guessed.
 */
import { createHash } from 'node:crypto';
import type { NameScope, StatementReach } from '../../core/subset-ports.js';
import { pathOf } from '../catalog-read.js';
import type { PostgresParser } from '../parser.js';
import { analyse } from '../tree-footprint.js';
import { impliedNames } from '../tree-implied.js';
import { asArray, asNode, asText, isNode, only, type Node } from '../tree-nodes.js';
import type { Found, ReachCatalog } from './reach-catalog.js';

export const REACH_CHARACTERS_MAX = 1_000_000;

type Redo = StatementReach['redo'];

/** Never throws. */
export function reachOf(
  text: string,
  { searchPath, user, prepared, unusable }: NameScope & { readonly unusable: ReadonlySet<string> },
  catalog: ReachCatalog,
  parser: PostgresParser,
): StatementReach {
  const parsed = text.length > REACH_CHARACTERS_MAX ? null : parser.parse(text);
  // Drivers ping so; nothing runs.
  if (text.trim() === '' || parsed?.statements.length === 0) return { ...NOTHING_RUN };
  if (parsed === null || parsed.fingerprint === '') {
    const fingerprint = createHash('sha256').update(text).digest('hex').slice(0, 16);
    return unread(fingerprint, 'PostgreSQL’s parser does not understand it');
  }
  const reader = new ReachReader(
    pathWith(searchPath, user).filter((schema) => !unusable.has(schema)),
    catalog,
    prepared === true,
  );
  try {
    for (const statement of parsed.statements) reader.statement(statement);
  } catch {
    return unread(parsed.fingerprint, 'it is nested too deep');
  }
  return reader.reach(parsed.fingerprint);
}

const NOTHING_RUN: StatementReach = {
  fingerprint: '0'.repeat(16),
  subsets: [],
  unknown: null,
  redo: 'skip',
  changesScope: false,
  scopeEnd: 'none',
  executes: [],
};

export function unread(fingerprint: string, why: string): StatementReach {
  return {
    fingerprint,
    subsets: [],
    unknown: why,
    redo: 'anchor',
    changesScope: true,
    scopeEnd: 'ends',
    executes: [],
  };
}

/** As {@link pathOf}, which leaves `"$user"` out. */
function pathWith(setting: string, user: string): readonly string[] {
  return pathOf(setting.replaceAll('"$user"', `"${user.replaceAll('"', '""')}"`));
}

/** What decides which table a name stands for, and how a text is read at all. */
const NAMING = new Set([
  'search_path',
  'role',
  'session_authorization',
  'SESSION AUTHORIZATION',
  'standard_conforming_strings',
  'client_encoding',
]);
const DATA = new Set([
  'SelectStmt',
  'InsertStmt',
  'UpdateStmt',
  'DeleteStmt',
  'MergeStmt',
  'CopyStmt',
  'TruncateStmt',
  'LockStmt',
  'DeclareCursorStmt',
]);
/** Without a table: neither read nor changed. */
const PLAIN: Readonly<Record<string, Redo>> = {
  VariableShowStmt: 'skip',
  UnlistenStmt: 'skip',
  // Prepared statements outlive their transaction, and are carried over with the session.
  DeallocateStmt: 'skip',
  ConstraintsSetStmt: 'repeat',
  DiscardStmt: 'anchor',
  FetchStmt: 'anchor',
  ClosePortalStmt: 'anchor',
};
const REFUSED: Readonly<Record<string, string>> = {
  ListenStmt: 'LISTEN would hear one side only',
  NotifyStmt: 'NOTIFY is heard on one side only',
  DoStmt: 'what DO runs can’t be known',
  LoadStmt: 'LOAD is for one side only',
  VacuumStmt: 'VACUUM and ANALYZE are for one side only',
  ClusterStmt: 'CLUSTER is for one side only',
  CheckPointStmt: 'CHECKPOINT is for one side only',
};

class ReachReader {
  readonly #path: readonly string[];
  readonly #catalog: ReachCatalog;
  readonly #prepared: boolean;
  readonly #found: Found = { subsets: new Set(), unknown: null, volatile: false };
  readonly #executes = new Set<string>();
  #redo: Redo = 'skip';
  #prepares = false;
  #changesScope = false;
  #scopeEnd: StatementReach['scopeEnd'] = 'none';

  constructor(path: readonly string[], catalog: ReachCatalog, prepared: boolean) {
    this.#path = path;
    this.#catalog = catalog;
    this.#prepared = prepared;
  }

  reach(fingerprint: string): StatementReach {
    return {
      fingerprint,
      subsets: [...this.#found.subsets].sort(),
      unknown: this.#found.unknown,
      redo: this.#found.volatile ? 'anchor' : this.#redo,
      changesScope: this.#changesScope,
      scopeEnd: this.#scopeEnd,
      executes: [...this.#executes],
    };
  }

  #refuse(why: string): void {
    this.#found.unknown ??= why;
  }

  #usesNames(): void {
    if (this.#scopeEnd === 'ends') this.#scopeEnd = 'used-behind';
  }

  /** Names mean something else from here on. */
  #renames(): void {
    this.#changesScope = true;
  }

  #again(redo: Redo): void {
    if (redo === 'anchor' || (redo === 'repeat' && this.#redo === 'skip')) this.#redo = redo;
  }

  statement(wrapped: Node): void {
    const [name, node] = only(wrapped);
    if (DATA.has(name)) {
      this.#data(name, node, wrapped);
      return;
    }
    const refused = REFUSED[name];
    if (refused !== undefined) {
      this.#refuse(refused);
      return;
    }
    const plain = PLAIN[name];
    if (plain !== undefined) {
      this.#again(plain);
      if (name === 'DiscardStmt') this.#renames();
      return;
    }
    switch (name) {
      case 'TransactionStmt':
        this.#transaction(node);
        return;
      case 'VariableSetStmt':
        this.#again('repeat');
        if (node['kind'] === 'VAR_RESET_ALL' || NAMING.has(asText(node['name']))) this.#renames();
        if (node['name'] === 'TRANSACTION SNAPSHOT') this.#refuse('a snapshot is of use on one side only');
        return;
      case 'PrepareStmt':
        this.#prepares = true;
        if (this.#executes.size > 0) this.#refuse('it prepares and executes at once');
        if (this.#prepared) this.statement(asNode(node['query']));
        return;
      case 'ExecuteStmt':
        if (this.#prepares) this.#refuse('it prepares and executes at once');
        this.#usesNames();
        this.#executes.add(asText(node['name']));
        this.#runs(node);
        return;
      case 'ExplainStmt':
        this.statement(asNode(node['query']));
        return;
      case 'CallStmt':
        this.#runs({ FuncCall: node['funccall'] });
        return;
      default:
        this.#refuse('the schema must not be changed');
    }
  }

  #data(name: string, node: Node, wrapped: Node): void {
    const { accesses, changesCatalog } = analyse([wrapped]);
    if (changesCatalog) this.#refuse('the schema must not be changed');
    if (this.#changesScope && accesses.length > 0)
      this.#refuse('it sets what names mean and uses them at once');
    for (const { table, writes } of accesses) {
      this.#catalog.relation(table, this.#path, this.#found);
      if (writes) this.#catalog.written(table, this.#path, this.#found);
    }
    if (accesses.length > 0) this.#usesNames();
    // What is left of a cursor can't be had on the other side.
    if (name === 'LockStmt' || name === 'DeclareCursorStmt') this.#again('anchor');
    if (name === 'CopyStmt' && node['is_program'] === true) this.#refuse('COPY PROGRAM is for one side only');
    this.#runs(wrapped);
  }

  #transaction(node: Node): void {
    switch (node['kind']) {
      case 'TRANS_STMT_PREPARE':
      case 'TRANS_STMT_COMMIT_PREPARED':
      case 'TRANS_STMT_ROLLBACK_PREPARED':
        this.#refuse('prepared transactions belong to one side');
        return;
      case 'TRANS_STMT_COMMIT':
      case 'TRANS_STMT_ROLLBACK':
        this.#again(node['chain'] === true ? 'anchor' : 'skip');
        if (this.#scopeEnd === 'none') this.#scopeEnd = 'ends';
        return;
      case 'TRANS_STMT_ROLLBACK_TO':
        // What was set behind it is undone.
        this.#renames();
        this.#again('repeat');
        return;
      default:
        this.#again('repeat');
    }
  }

  #runs(tree: Node): void {
    this.#functions(tree);
    this.#catalog.implied(impliedNames(tree), this.#path, this.#found);
  }

  /** Calls anywhere in it, and what stands for one. */
  #functions(value: unknown): void {
    if (Array.isArray(value)) {
      for (const item of value) this.#functions(item);
      return;
    }
    if (!isNode(value)) return;
    for (const name in value) {
      const inner = value[name];
      if (typeof inner !== 'object' || inner === null) continue;
      if (name === 'FuncCall') this.#call(asNode(inner));
      else if (name === 'SQLValueFunction') this.#valueFunction(asNode(inner));
      this.#functions(inner);
    }
  }

  #call(node: Node): void {
    const names = asArray(node['funcname']).map((each) => asText(asNode(asNode(each)['String'])['sval']));
    const name = names.at(-1) ?? '';
    this.#usesNames();
    if (name === 'set_config') {
      this.#again('repeat');
      const setting = literalOf(asArray(node['args'])[0]);
      if (setting === null || NAMING.has(setting.toLowerCase())) this.#renames();
    }
    this.#catalog.call(
      { schema: names.at(-2) ?? null, name },
      literalOf(asArray(node['args'])[0]),
      this.#path,
      this.#found,
    );
  }

  #valueFunction(node: Node): void {
    if (/^SVFOP_(?:CURRENT_(?:DATE|TIME)|LOCALTIME)/.test(asText(node['op']))) this.#again('anchor');
  }
}

/** A string written out, perhaps with a cast. */
function literalOf(argument: unknown): string | null {
  const [name, node] = only(argument);
  if (name === 'TypeCast') return literalOf(node['arg']);
  if (name !== 'A_Const' || !isNode(node['sval'])) return null;
  return asText(node['sval']['sval']);
}
