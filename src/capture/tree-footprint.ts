/**
 * What a statement touches, read off PostgreSQL's own parse tree: its kind, the tables it reads, writes and locks
 * through CTEs, sub-selects and joins, the functions it calls, and where keys are compared with values.
 *
 * The tree is walked by what its nodes are called; what is not known is searched through for what is. CTE names are
 * told from tables by scope. Tables behind views and functions are the catalog's business, see `catalog.ts`.
 */
import type { StatementKind } from '../core/capture-ports.js';
import {
  UNANALYSED,
  type Analysis,
  type InsertedRows,
  type KeyScope,
  type TableAccess,
  type TableReference,
  type TransactionEnd,
} from './access.js';
import { insertedRows, keyScope } from './tree-keys.js';
import { asArray, asNode, asText, isNode, only, reference, type Node } from './tree-nodes.js';

/** Kinds by the name of the statement's node. What is not here changes the catalog, as most statements there are do. */
const KIND_OF_NODE: Readonly<Record<string, StatementKind>> = {
  SelectStmt: 'select',
  InsertStmt: 'insert',
  UpdateStmt: 'update',
  DeleteStmt: 'delete',
  MergeStmt: 'merge',
  CopyStmt: 'copy',
  TruncateStmt: 'truncate',
  TransactionStmt: 'transaction',
  DeclareCursorStmt: 'select',
  VariableSetStmt: 'session',
  VariableShowStmt: 'session',
  DiscardStmt: 'session',
  ListenStmt: 'session',
  UnlistenStmt: 'session',
  NotifyStmt: 'session',
  PrepareStmt: 'session',
  DeallocateStmt: 'session',
  LoadStmt: 'session',
  ClosePortalStmt: 'session',
  ConstraintsSetStmt: 'session',
  ExecuteStmt: 'utility',
  FetchStmt: 'utility',
  ExplainStmt: 'utility',
  VacuumStmt: 'utility',
  ClusterStmt: 'utility',
  CheckPointStmt: 'utility',
  LockStmt: 'utility',
  CallStmt: 'utility',
  DoStmt: 'utility',
};
/** DDL that leaves names and columns as they were. */
const HARMLESS_DDL = new Set([
  'RefreshMatViewStmt',
  'ReindexStmt',
  'CommentStmt',
  'GrantStmt',
  'SecLabelStmt',
]);
const RELATION_TYPES = new Set(['OBJECT_TABLE', 'OBJECT_VIEW', 'OBJECT_MATVIEW', 'OBJECT_FOREIGN_TABLE']);
/** They hold no tables, and are most of a tree. */
const LEAVES = new Set(['A_Const', 'ColumnRef', 'ParamRef', 'TypeName', 'typeName', 'alias', 'String']);

type Ctes = ReadonlySet<string>;
const NO_CTES: Ctes = new Set();

/** Of a whole text. Throws RangeError where the tree is deeper than the stack. */
export function analyse(statements: readonly Node[]): Analysis {
  const reader = new TreeReader();
  let kind: StatementKind | null = null;
  for (const statement of statements) {
    const own = reader.statement(statement);
    if (kind === null || kind === 'transaction') kind = own;
  }
  return reader.analysis(kind ?? 'utility');
}

class TreeReader {
  readonly #accesses = new Map<string, TableAccess>();
  readonly #functions = new Map<string, TableReference>();
  readonly #scopes: KeyScope[] = [];
  readonly #inserts: InsertedRows[] = [];
  #parsed = true;
  #begins = false;
  #ends: TransactionEnd = null;
  #chains = false;
  #changesCatalog = false;
  #searchPath: Analysis['searchPath'] = null;
  #prepares: Analysis['prepares'] = null;
  #executes: string | null = null;

  analysis(kind: StatementKind): Analysis {
    return {
      ...UNANALYSED,
      kind,
      accesses: [...this.#accesses.values()],
      parsed: this.#parsed,
      begins: this.#begins,
      ends: this.#ends,
      chains: this.#chains,
      functions: [...this.#functions.values()],
      changesCatalog: this.#changesCatalog,
      searchPath: this.#searchPath,
      prepares: this.#prepares,
      executes: this.#executes,
      scopes: this.#scopes,
      inserts: this.#inserts,
    };
  }

  /** One statement, as `{SelectStmt: {…}}`. */
  statement(wrapped: Node): StatementKind {
    const [name, node] = only(wrapped);
    const kind = KIND_OF_NODE[name] ?? 'ddl';
    switch (name) {
      case 'TransactionStmt':
        return this.#transaction(node);
      case 'CopyStmt':
        if (isNode(node['relation'])) this.#access(node['relation'], 'copy', node['is_from'] === true);
        this.#walk(node['query'], NO_CTES);
        return kind;
      case 'TruncateStmt':
        for (const relation of asArray(node['relations'])) this.#access(only(relation)[1], 'truncate', true);
        return kind;
      case 'LockStmt':
        for (const relation of asArray(node['relations']))
          this.#access(only(relation)[1], 'utility', false, true);
        return kind;
      case 'ExplainStmt':
        if (isAnalyze(node)) this.#walk(node['query'], NO_CTES);
        return kind;
      case 'PrepareStmt':
        this.#prepares = { name: asText(node['name']), body: analyse([asNode(node['query'])]) };
        return kind;
      case 'ExecuteStmt':
        this.#executes = asText(node['name']);
        return kind;
      case 'DoStmt':
        this.#parsed = false;
        return kind;
      case 'CallStmt':
        this.#parsed = false;
        this.#walk({ FuncCall: node['funccall'] }, NO_CTES);
        return kind;
      case 'VariableSetStmt':
        this.#setting(node);
        return kind;
      case 'DiscardStmt':
        if (node['target'] === 'DISCARD_ALL') this.#searchPath = 'default';
        return kind;
      default:
    }
    if (kind === 'ddl') this.#definition(name, node);
    else if (kind !== 'session' && kind !== 'utility') this.#walk(wrapped, NO_CTES);
    return kind;
  }

  // ----------------------------------------------------------------------------------------- commands

  #transaction(node: Node): StatementKind {
    const chain = node['chain'] === true;
    switch (node['kind']) {
      case 'TRANS_STMT_BEGIN':
      case 'TRANS_STMT_START':
        this.#begins = true;
        break;
      case 'TRANS_STMT_COMMIT':
        this.#ends = 'commit';
        this.#chains = chain;
        break;
      case 'TRANS_STMT_ROLLBACK':
        this.#ends = 'rollback';
        this.#chains = chain;
        break;
      case 'TRANS_STMT_PREPARE':
        this.#ends = 'prepare';
        break;
      default:
    }
    return 'transaction';
  }

  #setting(node: Node): void {
    if (node['kind'] === 'VAR_RESET_ALL') this.#searchPath = 'default';
    // One for the transaction alone is gone soon; whether it is rolled back can't be foreseen.
    if (node['name'] !== 'search_path' || node['is_local'] === true) return;
    if (node['kind'] !== 'VAR_SET_VALUE') {
      this.#searchPath = 'default';
      return;
    }
    this.#searchPath = asArray(node['args']).map((argument) =>
      asText(asNode(asNode(asNode(argument)['A_Const'])['sval'])['sval']),
    );
  }

  /** Everything that makes, changes or drops objects. Queries in definitions don't run. */
  #definition(name: string, node: Node): void {
    if (!HARMLESS_DDL.has(name)) this.#changesCatalog = true;
    switch (name) {
      case 'CreateTableAsStmt': {
        const query = asNode(node['query']);
        if (isNode(query['ExecuteStmt'])) this.#executes = asText(query['ExecuteStmt']['name']);
        else this.#walk(query, NO_CTES);
        this.#access(asNode(asNode(node['into'])['rel']), 'ddl', true);
        return;
      }
      case 'ViewStmt':
        this.#access(asNode(node['view']), 'ddl', true);
        return;
      case 'DropStmt':
        if (!RELATION_TYPES.has(asText(node['removeType']))) return;
        for (const object of asArray(node['objects'])) {
          const names = asArray(asNode(asNode(object)['List'])['items']).map(nameOf);
          const table = names.at(-1);
          if (table !== undefined)
            this.#add({ schema: names.at(-2) ?? null, name: table }, 'ddl', true, false);
        }
        return;
      default:
        if (isNode(node['relation'])) this.#access(node['relation'], 'ddl', true);
    }
  }

  // ------------------------------------------------------------------------------------------ queries

  #walk(value: unknown, ctes: Ctes): void {
    if (Array.isArray(value)) {
      for (const item of value) this.#walk(item, ctes);
      return;
    }
    if (!isNode(value)) return;
    for (const name in value) {
      const inner = value[name];
      if (typeof inner !== 'object' || inner === null || LEAVES.has(name)) continue;
      if (isNode(inner)) this.#node(name, inner, ctes);
      else this.#walk(inner, ctes);
    }
  }

  #node(name: string, node: Node, ctes: Ctes): void {
    switch (name) {
      case 'SelectStmt':
        this.#select(node, ctes);
        return;
      case 'InsertStmt':
        this.#modify(node, 'insert', ctes);
        return;
      case 'UpdateStmt':
        this.#modify(node, 'update', ctes);
        return;
      case 'DeleteStmt':
        this.#modify(node, 'delete', ctes);
        return;
      case 'MergeStmt':
        this.#modify(node, 'merge', ctes);
        return;
      case 'RangeVar':
        if (!isCte(node, ctes)) this.#access(node, 'select', false);
        return;
      case 'FuncCall':
        this.#function(node);
        break;
      default:
    }
    this.#walk(node, ctes);
  }

  #select(node: Node, outer: Ctes): void {
    const ctes = this.#with(node['withClause'], outer);
    if (isNode(node['larg'])) this.#select(node['larg'], ctes);
    if (isNode(node['rarg'])) this.#select(node['rarg'], ctes);
    const into = asNode(node['intoClause'])['rel'];
    if (isNode(into)) {
      this.#changesCatalog = true;
      this.#access(into, 'ddl', true);
    }
    if (node['lockingClause'] !== undefined) this.#locked(node, ctes);
    const {
      withClause: _with,
      larg: _left,
      rarg: _right,
      intoClause: _into,
      lockingClause: _lock,
      ...rest
    } = node;
    this.#walk(rest, ctes);
    this.#scope(node, null, ctes);
  }

  /** FOR UPDATE locks all tables of its level, or those it names by table or alias. */
  #locked(node: Node, ctes: Ctes): void {
    const named = new Set<string>();
    let all = false;
    for (const clause of asArray(node['lockingClause'])) {
      const relations = asArray(asNode(asNode(clause)['LockingClause'])['lockedRels']);
      if (relations.length === 0) all = true;
      for (const relation of relations) named.add(asText(only(relation)[1]['relname']));
    }
    for (const { table, alias } of keyScope(node, null, (range) => isCte(range, ctes)).tables) {
      if (all || named.has(alias)) this.#add(table, 'select', false, true);
    }
  }

  #modify(node: Node, kind: StatementKind, outer: Ctes): void {
    const ctes = this.#with(node['withClause'], outer);
    const relation = asNode(node['relation']);
    this.#access(relation, kind, true);
    const { withClause: _with, relation: _relation, ...rest } = node;
    this.#walk(rest, ctes);
    if (kind === 'insert') {
      const rows = insertedRows(node);
      if (rows !== null) this.#inserts.push(rows);
    } else this.#scope(node, relation, ctes);
  }

  #scope(node: Node, target: Node | null, ctes: Ctes): void {
    const scope = keyScope(node, target, (range) => isCte(range, ctes));
    if (scope.tables.length > 0 && scope.equalities.length > 0) this.#scopes.push(scope);
  }

  /** The CTEs of a WITH are walked; returns the names visible after it. */
  #with(clause: unknown, outer: Ctes): Ctes {
    if (!isNode(clause)) return outer;
    const recursive = clause['recursive'] === true;
    const visible = new Set(outer);
    const ctes = asArray(clause['ctes']).map((cte) => asNode(asNode(cte)['CommonTableExpr']));
    if (recursive) for (const cte of ctes) visible.add(asText(cte['ctename']));
    for (const cte of ctes) {
      this.#walk(cte['ctequery'], visible);
      visible.add(asText(cte['ctename']));
    }
    return visible;
  }

  #function(node: Node): void {
    const names = asArray(node['funcname']).map(nameOf);
    const name = names.at(-1);
    if (name === undefined) return;
    const schema = names.at(-2) ?? null;
    this.#functions.set(`${schema ?? ''}\0${name}`, { schema, name });
  }

  // ------------------------------------------------------------------------------------------- tables

  #access(range: Node, kind: StatementKind, writes: boolean, locks = false): void {
    this.#add(reference(range), kind, writes, locks);
  }

  #add(table: TableReference, kind: StatementKind, writes: boolean, locks: boolean): void {
    if (table.name === '') return;
    const key = `${kind}\0${table.schema ?? ''}\0${table.name}`;
    const known = this.#accesses.get(key);
    if (known === undefined || (locks && !known.locks))
      this.#accesses.set(key, { table, kind, writes, locks });
  }
}

function isCte(range: Node, ctes: Ctes): boolean {
  return range['schemaname'] === undefined && ctes.has(asText(range['relname']));
}

function nameOf(node: unknown): string {
  return asText(asNode(asNode(node)['String'])['sval']);
}

/** EXPLAIN (ANALYZE), unless it is switched off again. */
function isAnalyze(node: Node): boolean {
  return asArray(node['options']).some((option) => {
    const element = asNode(asNode(option)['DefElem']);
    if (element['defname'] !== 'analyze') return false;
    const value = JSON.stringify(element['arg'] ?? 'on').toLowerCase();
    return !/"(?:off|false|no|0)"|"ival":\{\}|"boolval":\{\}/.test(value);
  });
}
