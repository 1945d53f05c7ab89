/**
 * Where a statement names rows by value: `column = value`, `column IN (values)`, `(a, b) = (1, 2)`, joined by AND, in
 * WHERE and ON, and the rows of an INSERT. Which of the columns are keys is for the catalog to say.
 */
import type { Equality, InsertedRows, KeyScope } from './access.js';
import { asArray, asNode, asText, isNode, only, reference, type Node } from './tree-nodes.js';

/** Values looked at in one list or INSERT; longer ones are bulk work, where no key is hot. */
const VALUES_MAX = 100;

type IsCte = (range: Node) => boolean;

/** The tables and equalities of one level. `target`: the table that is written, of UPDATE, DELETE and MERGE. */
export function keyScope(node: Node, target: Node | null, isCte: IsCte): KeyScope {
  const tables: { table: ReturnType<typeof reference>; alias: string; writes: boolean }[] = [];
  const equalities: Equality[] = [];
  const addTable = (range: Node, writes: boolean): void => {
    const table = reference(range);
    const alias = asText(asNode(range['alias'])['aliasname']);
    tables.push({ table, alias: alias === '' ? table.name : alias, writes });
  };
  const addFrom = (item: unknown): void => {
    const [name, fields] = only(item);
    if (name === 'RangeVar' && !isCte(fields)) addTable(fields, false);
    if (name !== 'JoinExpr') return;
    addFrom(fields['larg']);
    addFrom(fields['rarg']);
    addCondition(fields['quals'], equalities);
  };
  if (target !== null) addTable(target, true);
  for (const item of asArray(node['fromClause'])) addFrom(item);
  for (const item of asArray(node['usingClause'])) addFrom(item);
  addCondition(node['whereClause'], equalities);
  return { tables, equalities };
}

function addCondition(condition: unknown, equalities: Equality[]): void {
  const [name, fields] = only(condition);
  if (name === 'BoolExpr' && fields['boolop'] === 'AND_EXPR') {
    for (const argument of asArray(fields['args'])) addCondition(argument, equalities);
    return;
  }
  if (name !== 'A_Expr' || !isEquals(fields)) return;
  const { lexpr, rexpr, kind } = fields;
  if (kind === 'AEXPR_OP') {
    if (!addEquality(lexpr, [rexpr], equalities)) addEquality(rexpr, [lexpr], equalities);
    addRow(lexpr, rexpr, equalities);
  } else if (kind === 'AEXPR_IN') {
    addEquality(lexpr, asArray(asNode(asNode(rexpr)['List'])['items']), equalities);
  } else if (kind === 'AEXPR_OP_ANY') {
    addEquality(lexpr, asArray(asNode(asNode(rexpr)['A_ArrayExpr'])['elements']), equalities);
  }
}

/** (a, b) = (1, 2) */
function addRow(left: unknown, right: unknown, equalities: Equality[]): void {
  const columns = asArray(asNode(asNode(left)['RowExpr'])['args']);
  const values = asArray(asNode(asNode(right)['RowExpr'])['args']);
  if (columns.length !== values.length) return;
  for (const [index, column] of columns.entries()) addEquality(column, [values[index]], equalities);
}

function addEquality(column: unknown, values: readonly unknown[], equalities: Equality[]): boolean {
  const names = asArray(asNode(asNode(column)['ColumnRef'])['fields']).map((field) =>
    asText(asNode(asNode(field)['String'])['sval']),
  );
  const name = names.at(-1);
  if (name === undefined || name === '' || values.length === 0 || values.length > VALUES_MAX) return false;
  const at = values.map(valueAt);
  if (at.some((position) => position === null)) return false;
  equalities.push({
    qualifier: names.at(-2) ?? null,
    column: name,
    values: at.filter((position) => position !== null),
  });
  return true;
}

function isEquals(fields: Node): boolean {
  const names = asArray(fields['name']);
  return asNode(asNode(names.at(-1))['String'])['sval'] === '=';
}

/** Where a literal or parameter begins, through casts; null for anything else. */
function valueAt(expression: unknown): number | null {
  const [name, fields] = only(expression);
  if (name === 'TypeCast') return valueAt(fields['arg']);
  if (name !== 'A_Const' && name !== 'ParamRef') return null;
  if (fields['isnull'] === true || fields['boolval'] !== undefined) return null;
  const { location } = fields;
  return typeof location === 'number' ? location : 0;
}

/** null: nothing is written out, or too much. */
export function insertedRows(node: Node): InsertedRows | null {
  const lists = asArray(asNode(asNode(node['selectStmt'])['SelectStmt'])['valuesLists']);
  if (lists.length === 0 || lists.length > VALUES_MAX) return null;
  const columns = asArray(node['cols']).map((column) => asText(asNode(asNode(column)['ResTarget'])['name']));
  return {
    table: reference(asNode(node['relation'])),
    columns: columns.length === 0 ? null : columns,
    rows: lists.map((list) => {
      const items = asNode(list)['List'];
      return asArray(isNode(items) ? items['items'] : undefined).map(valueAt);
    }),
  };
}
