/** Names in a parse tree that may stand for calls of functions without being written as such. */
import { asArray, asNode, asText, isNode, type Node } from './tree-nodes.js';

export interface ImpliedNames {
  /** Operators, without their schemas. */
  readonly operators: ReadonlySet<string>;
  /** `table.name` and `(row).name`: a column, or a function of the row. */
  readonly attributes: ReadonlySet<string>;
  /** That something is cast to, without their schemas. */
  readonly types: ReadonlySet<string>;
}

/** Of a statement, or any part of one. Throws RangeError where the tree is deeper than the stack. */
export function impliedNames(tree: unknown): ImpliedNames {
  const names = { operators: new Set<string>(), attributes: new Set<string>(), types: new Set<string>() };
  walk(tree, names);
  return names;
}

type Names = { readonly [kind in keyof ImpliedNames]: Set<string> };

function walk(value: unknown, names: Names): void {
  if (Array.isArray(value)) {
    for (const item of value) walk(item, names);
    return;
  }
  if (!isNode(value)) return;
  for (const field in value) {
    const inner = value[field];
    if (typeof inner !== 'object' || inner === null) continue;
    if (isNode(inner)) note(field, inner, names);
    walk(inner, names);
  }
}

function note(type: string, node: Node, { operators, attributes, types }: Names): void {
  switch (type) {
    case 'A_Expr':
      operators.add(lastOf(node['name']));
      if (/BETWEEN/.test(asText(node['kind'])))
        for (const name of ['>=', '<=', '>', '<']) operators.add(name);
      return;
    case 'CaseExpr':
      if (node['arg'] !== undefined) operators.add('=');
      return;
    case 'JoinExpr':
      if (node['usingClause'] !== undefined || node['isNatural'] === true) operators.add('=');
      return;
    case 'SubLink':
      operators.add(lastOf(node['operName']));
      return;
    case 'SortBy':
      operators.add(lastOf(node['useOp']));
      return;
    case 'ColumnRef':
      // The first is a table, or a column that nothing is taken from.
      for (const name of asArray(node['fields']).slice(1)) attributes.add(textOf(name));
      return;
    case 'A_Indirection':
      for (const name of asArray(node['indirection'])) attributes.add(textOf(name));
      return;
    case 'TypeCast':
      types.add(lastOf(asNode(node['typeName'])['names']));
      return;
    default:
  }
}

function lastOf(names: unknown): string {
  return textOf(asArray(names).at(-1));
}

function textOf(node: unknown): string {
  return asText(asNode(asNode(node)['String'])['sval']);
}
