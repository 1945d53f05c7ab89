/**
 * What one statement may change, read off its text, its values and the catalogs. Errs on the side of too much: a row is
 * named by its key only where the statement can touch no other, in every other case the table is.
 *
 * By key: one command of one table, whose every row is fixed by values for the whole primary key. Beyond that
 *   inserted or updated rows that can't be named   → the table's rows
 *   deleted ones, a changed key, TRUNCATE, COPY, DDL → the table is to be compared
 *   cascades                                        → the tables they lead to are to be compared
 *   triggers, rules, functions, what can't be read   → not known
 */
import type { Catalog } from '../catalog.js';
import { keysIn, planKeys, type KeyPlan, type Parameters } from '../key-plan.js';
import type { ReadText, Statement } from '../statements.js';
import type { Reach, TableReach } from './reach.js';

export interface Touch {
  readonly keys: ReadonlyMap<string, readonly (readonly string[])[]>;
  readonly rows: ReadonlySet<string>;
  readonly compare: ReadonlySet<string>;
  readonly unknown: boolean;
}

/** How a statement is to be read, whatever its values; kept per statement and catalog. */
export interface TouchPlan {
  /** null: rows can't be named. */
  readonly byKey: {
    readonly plans: readonly KeyPlan[];
    readonly reach: TableReach;
    readonly pairs: boolean;
  } | null;
  readonly rows: ReadonlySet<string>;
  readonly compare: ReadonlySet<string>;
  readonly unknown: boolean;
  /** What it comes to where the values can't be told after all. */
  readonly otherwise: { readonly rows: ReadonlySet<string>; readonly compare: ReadonlySet<string> };
  readonly nothing: boolean;
}

const NONE: ReadonlySet<string> = new Set();
const NOTHING: TouchPlan = {
  byKey: null,
  rows: NONE,
  compare: NONE,
  unknown: false,
  otherwise: { rows: NONE, compare: NONE },
  nothing: true,
};
const UNKNOWN: TouchPlan = { ...NOTHING, unknown: true, nothing: false };
/** Statement texts are kept up to this many characters; a longer one may say more than is known. */
const SHAPE_WHOLE_BELOW = 2000;
const CASCADE_DEPTH_MAX = 32;

/** `path`: the session's search path where it set one. */
export function planTouch(
  statement: Statement,
  path: readonly string[] | null,
  catalog: Catalog,
  reach: Reach,
): TouchPlan {
  if (!statement.parsed) return UNKNOWN;
  const runsCode = statement.functions.some(({ name }) => reach.writingFunctions.has(name));
  const writes = catalog.accesses(statement, path).filter((access) => access.writes);
  if (writes.length === 0) return runsCode ? UNKNOWN : NOTHING;
  const rows = new Set<string>();
  const compare = new Set<string>();
  let unknown = runsCode;
  for (const { table, kind } of writes) {
    const found = reach.tables.get(table);
    if (found === undefined) {
      // Made meanwhile, temporary, a view with triggers of its own, or not found under any known path.
      unknown = true;
      continue;
    }
    unknown ||= found.runsCode;
    const gone = kind !== 'insert' && !(kind === 'update' && !setsKey(statement, found));
    for (const leaf of found.leaves) {
      if (kind !== 'delete' && kind !== 'truncate') rows.add(leaf);
      if (gone) compare.add(leaf);
    }
    if (gone) for (const each of cascaded(table, reach)) compare.add(each);
  }
  const byKey = keyed(statement, path, catalog, reach);
  if (byKey === null) return { ...NOTHING, rows, compare, unknown, nothing: false };
  const [write] = writes;
  const cascades = write?.kind === 'insert' ? NONE : new Set(cascaded(write?.table ?? '', reach));
  return {
    byKey,
    rows: NONE,
    compare: write?.kind === 'update' ? NONE : cascades,
    unknown,
    otherwise: { rows, compare },
    nothing: false,
  };
}

function cascaded(table: string, reach: Reach): readonly string[] {
  const found = new Set<string>();
  let level = [table];
  for (let depth = 0; depth < CASCADE_DEPTH_MAX && level.length > 0; depth += 1) {
    const next: string[] = [];
    for (const each of level) {
      for (const child of reach.tables.get(each)?.cascades ?? []) {
        if (found.has(child)) continue;
        found.add(child);
        next.push(child);
      }
    }
    level = next;
  }
  return [...found].flatMap((each) => reach.tables.get(each)?.leaves ?? []);
}

const COMMANDS = /\b(?:insert|update|delete|merge|truncate|copy|call|do|execute)\b/gi;

/** null where the statement may touch rows beside those whose keys it names. */
function keyed(
  statement: Statement,
  path: readonly string[] | null,
  catalog: Catalog,
  reach: Reach,
): TouchPlan['byKey'] {
  const { shape } = statement;
  if (shape.length >= SHAPE_WHOLE_BELOW || (shape.match(COMMANDS)?.length ?? 0) !== 1) return null;
  const written = statement.accesses.filter((access) => access.writes);
  const [write] = written;
  if (write === undefined || written.length !== 1) return null;
  if (write.kind !== 'insert' && write.kind !== 'update' && write.kind !== 'delete') return null;
  const relation = catalog.relation(write.table, path);
  if (relation === null || relation.kind !== 'table') return null;
  const found = reach.tables.get(`${relation.schema}.${relation.name}`);
  if (found === undefined || found.key.length === 0) return null;
  if (write.kind === 'update' && setsKey(statement, found)) return null;
  const root = relation.root ?? `${relation.schema}.${relation.name}`;
  const plans = planKeys(statement, (reference) => catalog.relation(reference, path)).filter(
    (plan) => plan.writes && plan.table === root && sameColumns(plan.columns, found.key),
  );
  // An INSERT has one for each form of its rows; the others fix the rows by one alone.
  const needed =
    write.kind === 'insert' ? statement.inserts.reduce((sum, { rows }) => sum + rows.length, 0) : 1;
  if (needed === 0 || plans.length !== needed) return null;
  return { plans, reach: found, pairs: write.kind === 'insert' };
}

function sameColumns(a: readonly string[], b: readonly string[]): boolean {
  return a.length === b.length && a.every((column) => b.includes(column));
}

/** Whether an UPDATE's SET names a column of the key; also where it can't be told. */
function setsKey({ shape }: Statement, { key }: TableReach): boolean {
  if (shape.length >= SHAPE_WHOLE_BELOW) return true;
  const set = /\bset\b(.*?)(?:\bwhere\b|\bfrom\b|\breturning\b|$)/is.exec(shape)?.[1];
  if (set === undefined) return true;
  const lower = set.toLowerCase();
  return key.length === 0 || key.some((column) => lower.includes(column.toLowerCase()));
}

/** What the statement touches with these values. */
export function touchOf(plan: TouchPlan, read: ReadText, parameters: Parameters | undefined): Touch {
  const none = new Map<string, readonly (readonly string[])[]>();
  if (plan.byKey === null)
    return { keys: none, rows: plan.rows, compare: plan.compare, unknown: plan.unknown };
  const keys = namedKeys(plan.byKey, read, parameters);
  if (keys === null) return { keys: none, ...plan.otherwise, unknown: plan.unknown };
  return {
    keys: new Map(plan.byKey.reach.leaves.map((leaf) => [leaf, keys])),
    rows: plan.rows,
    compare: plan.compare,
    unknown: plan.unknown,
  };
}

/** Every key, in the order of the primary key's columns; null where one can't be told. */
function namedKeys(
  { plans, reach, pairs }: NonNullable<TouchPlan['byKey']>,
  { text, values }: ReadText,
  parameters: Parameters | undefined,
): readonly (readonly string[])[] | null {
  if (values === null) return null;
  const all: (readonly string[])[] = [];
  for (const plan of plans) {
    const counts = plan.slots.map((slots) => slots.flatMap((slot) => values.slots[slot] ?? []).length);
    const rows = Math.max(...counts);
    // Lists for several columns name every pair of them, but in VALUES.
    if (rows === 0 || (!pairs && rows > 1 && plan.columns.length > 1)) return null;
    const keys = keysIn(plan, text, values, parameters);
    if (keys.length !== rows) return null;
    const order = reach.key.map((column) => plan.columns.indexOf(column));
    for (const key of keys) all.push(order.map((place) => key[place] ?? ''));
  }
  return all;
}
