/**
 * What the body of a function or procedure does, as far as that is certain: only data statements and CALL are understood;
 * whatever else stands in a body is a `problem`, or an `effect` where what it touches is known.
 */
import { loadModule, parsePlPgSQLSync } from 'libpg-query';
import type { TableReference } from './access.js';
import { pathOf } from './catalog-read.js';
import { drawsOf } from './draws.js';
import type { PostgresParser } from './parser.js';
import { analyse } from './tree-footprint.js';
import { impliedNames } from './tree-implied.js';
import { only } from './tree-nodes.js';

export interface Routine {
  readonly oid: string;
  readonly schema: string;
  readonly name: string;
  readonly language: string;
  readonly body: string;
  /** Of PL/pgSQL: the whole CREATE FUNCTION. */
  readonly definition: string | null;
  /** `name=value` of its own SET. */
  readonly settings: readonly string[];
  /** SECURITY DEFINER. */
  readonly definer: boolean;
  /** Of its parameters, by commas; all names in it have their schemas. */
  readonly defaults: string | null;
  /** That have a trigger which calls it. */
  readonly triggerTables: readonly string[];
}

/** What a function's body names, and why that may not be all. */
export interface Body {
  readonly tables: readonly TableReference[];
  readonly calls: readonly TableReference[];
  /** Sequences that it draws from by name; null for one that is no constant. */
  readonly draws: readonly (TableReference | null)[];
  readonly notifies: boolean;
  /** See ImpliedNames. */
  readonly operators: readonly string[];
  readonly attributes: readonly string[];
  readonly types: readonly string[];
  /** Its names are resolved by: the caller's search path, one of its own, or one that depends on roles. */
  readonly path: 'caller' | 'unknown' | readonly string[];
  /** Why what it touches can't be read in full. */
  readonly problem: string | null;
  /** What it does besides reading and changing tables. */
  readonly effect: string | null;
}

const NOTHING: Body = {
  tables: [],
  calls: [],
  draws: [],
  notifies: false,
  operators: [],
  attributes: [],
  types: [],
  path: 'caller',
  problem: null,
  effect: null,
};
const UNREADABLE = 'a body that can’t be read';

export function unreadBody(problem: string = UNREADABLE): Body {
  return { ...NOTHING, problem };
}

/** As far as it can be read. */
export async function routineBody(routine: Routine, parser: PostgresParser): Promise<Body> {
  await loadModule();
  return bodyOf(routine, parser);
}

/** As {@link routineBody}, once the module is loaded. */
export function bodyOf(routine: Routine, parser: PostgresParser): Body {
  const body = textsOf(routine, parser);
  const path = ownPath(routine);
  const problem = body.problem ?? settingProblem(routine);
  if (problem === null && path === 'unknown' && body.tables.some(({ schema }) => schema === null))
    return { ...body, path, problem: 'names that depend on the role' };
  return { ...body, path, problem };
}

function textsOf(routine: Routine, parser: PostgresParser): Body {
  // A caller that leaves a parameter out calls what its default calls.
  const defaults = routine.defaults === null ? [] : [`SELECT ${routine.defaults}`];
  if (routine.language === 'sql') {
    // An empty text: a body in the standard's own form, kept as a tree.
    return routine.body.trim() === '' ? unreadBody() : statementsOf([routine.body, ...defaults], parser);
  }
  if (routine.language !== 'plpgsql' || routine.definition === null) return unreadBody('another language');
  const found: Found = { texts: [], dynamic: false, tooDeep: false };
  try {
    collect(parsePlPgSQLSync(routine.definition), found, 0);
  } catch {
    return unreadBody();
  }
  const body = statementsOf([...found.texts, ...defaults], parser);
  if (found.dynamic) return { ...body, problem: 'dynamic SQL' };
  return found.tooDeep ? { ...body, problem: UNREADABLE } : body;
}

/** They change neither what names mean nor who asks; undone as the function returns. */
const HARMLESS_SETTINGS = new Set([
  'client_min_messages',
  'datestyle',
  'enable_seqscan',
  'extra_float_digits',
  'jit',
  'lock_timeout',
  'search_path',
  'statement_timeout',
  'timezone',
  'work_mem',
]);

function settingProblem({ settings }: Routine): string | null {
  for (const setting of settings) {
    const name = setting.slice(0, setting.indexOf('=')).toLowerCase();
    if (!HARMLESS_SETTINGS.has(name)) return `its own SET ${name}`;
  }
  return null;
}

/** `"$user"` is somebody else in a SECURITY DEFINER function. */
function ownPath({ settings, definer }: Routine): Body['path'] {
  const own = settings.find((setting) => /^search_path=/i.test(setting))?.slice('search_path='.length);
  if (own === undefined) return definer ? 'unknown' : 'caller';
  return own.includes('$user') ? 'unknown' : pathOf(own);
}

interface Found {
  readonly texts: string[];
  dynamic: boolean;
  tooDeep: boolean;
}

/** The texts in a tree of PL/pgSQL, each made into a statement. Node names: PostgreSQL's plpgsql.h, RawParseMode. */
function collect(node: unknown, found: Found, depth: number): void {
  if (typeof node !== 'object' || node === null) return;
  if (depth > 200) {
    found.tooDeep = true;
    return;
  }
  for (const [name, value] of Object.entries(node)) {
    // RETURN QUERY EXECUTE and OPEN … FOR EXECUTE are nodes of other names, with the text in this field.
    if (name.startsWith('PLpgSQL_stmt_dyn') || name === 'dynquery') found.dynamic = true;
    if (name === 'PLpgSQL_expr') {
      const { query, parseMode } = value as { readonly query?: string; readonly parseMode?: number };
      if (query !== undefined) found.texts.push(asStatement(query, parseMode ?? 0));
    } else collect(value, found, depth + 1);
  }
}

const MODE_STATEMENT = 0;
const MODE_EXPRESSION = 2;

function asStatement(text: string, mode: number): string {
  if (mode === MODE_STATEMENT) return text;
  if (mode === MODE_EXPRESSION) return `SELECT ${text}`;
  // An assignment: a name, perhaps with subscripts, then := or =.
  const [, target = '', value = ''] = /^([^=]*?):?=([^]*)$/.exec(text) ?? [];
  return target.includes('[') ? `SELECT ${target}, (${value})` : `SELECT ${value}`;
}

const DATA = new Set([
  'SelectStmt',
  'InsertStmt',
  'UpdateStmt',
  'DeleteStmt',
  'MergeStmt',
  'TruncateStmt',
  'LockStmt',
  'CallStmt',
]);
const EFFECTS: Readonly<Record<string, string>> = {
  VariableSetStmt: 'settings',
  NotifyStmt: 'notifications',
  ConstraintsSetStmt: 'when constraints are checked',
};
const SYSTEM_SCHEMAS = new Set(['pg_catalog', 'information_schema']);

/** Of texts that are run as they stand. */
export function statementsOf(texts: readonly string[], parser: PostgresParser): Body {
  const tables: TableReference[] = [];
  const calls: TableReference[] = [];
  const draws: (TableReference | null)[] = [];
  let notifies = false;
  const implied = { operators: new Set<string>(), attributes: new Set<string>(), types: new Set<string>() };
  let problem: string | null = null;
  let effect: string | null = null;
  for (const text of texts) {
    const parsed = parser.parse(text);
    if (parsed === null || (parsed.fingerprint === '' && parsed.statements.length > 0)) {
      problem ??= UNREADABLE;
      continue;
    }
    for (const statement of parsed.statements) {
      const [name] = only(statement);
      effect ??= EFFECTS[name] ?? null;
      if (!DATA.has(name) && EFFECTS[name] === undefined)
        problem ??= 'statements that are no data statements';
    }
    try {
      const analysis = analyse(parsed.statements);
      if (analysis.changesCatalog) problem ??= 'changes of the schema';
      for (const { table, writes } of analysis.accesses) {
        tables.push(table);
        if (writes && isSystem(table)) effect ??= 'the server’s own catalogs';
      }
      calls.push(...analysis.functions);
      const drawn = drawsOf(parsed.statements);
      draws.push(...drawn.draws);
      notifies ||= drawn.notifies;
      const names = impliedNames(parsed.statements);
      for (const each of ['operators', 'attributes', 'types'] as const)
        for (const name of names[each]) implied[each].add(name);
    } catch {
      problem ??= UNREADABLE;
    }
  }
  if (calls.some(({ name }) => name === 'set_config')) effect ??= 'settings';
  return {
    ...NOTHING,
    tables,
    calls,
    draws,
    notifies,
    operators: [...implied.operators],
    attributes: [...implied.attributes],
    types: [...implied.types],
    problem,
    effect,
  };
}

/** By its name alone: one of that prefix may be a table of the database's own, which is no loss. */
function isSystem({ schema, name }: TableReference): boolean {
  return schema === null ? name.startsWith('pg_') : SYSTEM_SCHEMAS.has(schema);
}
