/** Reading JSON of which nothing is promised: what is absent reads as empty. */
import type { TableReference } from './access.js';

export type Node = { readonly [field: string]: unknown };

const EMPTY: Node = {};

export function isNode(value: unknown): value is Node {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

export function asNode(value: unknown): Node {
  return isNode(value) ? value : EMPTY;
}

export function asArray(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [];
}

export function asText(value: unknown): string {
  return typeof value === 'string' ? value : '';
}

/** Name and fields of a wrapped node: `{RangeVar: {…}}`. */
export function only(value: unknown): readonly [string, Node] {
  for (const name in asNode(value)) return [name, asNode(asNode(value)[name])];
  return ['', EMPTY];
}

/** Of a RangeVar's fields. */
export function reference(range: Node): TableReference {
  const schema = range['schemaname'];
  return { schema: typeof schema === 'string' ? schema : null, name: asText(range['relname']) };
}
