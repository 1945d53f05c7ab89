/** Which sequences a parse tree draws from by name, and whether it notifies: neither is a table, both are of one side. */
import type { TableReference } from './access.js';
import { asArray, asNode, asText, isNode } from './tree-nodes.js';
import { writtenName } from './written-name.js';

const DRAWS = new Set(['nextval', 'setval', 'currval']);
const DEPTH_MAX = 400;

export interface Draws {
  /** Null for one that is no constant. */
  readonly draws: readonly (TableReference | null)[];
  readonly notifies: boolean;
}

/** Of all statements in the tree. */
export function drawsOf(tree: unknown): Draws {
  const found: { draws: (TableReference | null)[]; notifies: boolean } = { draws: [], notifies: false };
  walk(tree, found, 0);
  return found;
}

function walk(
  node: unknown,
  found: { draws: (TableReference | null)[]; notifies: boolean },
  depth: number,
): void {
  if (typeof node !== 'object' || node === null) return;
  if (depth > DEPTH_MAX) {
    // Deeper than is looked: something may be there.
    found.draws.push(null);
    return;
  }
  for (const [name, value] of Object.entries(node)) {
    if (name === 'NotifyStmt') found.notifies = true;
    if (name === 'FuncCall' || name === 'funccall') {
      const called = asText(asNode(asNode(asArray(asNode(value)['funcname']).at(-1))['String'])['sval']);
      if (called === 'pg_notify') found.notifies = true;
      if (DRAWS.has(called)) found.draws.push(constant(asArray(asNode(value)['args'])[0]));
    }
    walk(value, found, depth + 1);
  }
}

/** A text, perhaps cast: as PostgreSQL reads a name from it. */
function constant(argument: unknown): TableReference | null {
  let node = argument;
  while (isNode(node) && isNode(node['TypeCast'])) node = asNode(node['TypeCast'])['arg'];
  const text = asNode(asNode(asNode(node)['A_Const'])['sval'])['sval'];
  if (typeof text !== 'string') return null;
  return writtenName(text);
}
