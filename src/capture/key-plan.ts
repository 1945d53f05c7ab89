/**
 * Which keys a statement names: where its slots hold values of all columns of a table's primary key, or of a unique
 * index, in its WHERE, ON or VALUES. Planned once per statement and catalog; then read off each text and its
 * parameters.
 */
import { canonicalValue } from '../core/key-hash.js';
import type { Equality, KeyScope, TableReference } from './access.js';
import { tableKey, type CatalogRelation } from './catalog.js';
import type { Statement, TextValues } from './statements.js';

/** One key of one table. `slots[i]` are the shape's slots whose values are those of column i. */
export interface KeyPlan {
  /** The root, for a partition. */
  readonly table: string;
  readonly columns: readonly string[];
  readonly types: readonly string[];
  readonly slots: readonly (readonly number[])[];
  readonly writes: boolean;
}

/** Rows of one statement whose keys are counted; a longer list is bulk work. */
const ROWS_MAX = 100;

type Resolve = (reference: TableReference) => CatalogRelation | null;

export function planKeys(statement: Statement, resolve: Resolve): readonly KeyPlan[] {
  const plans: KeyPlan[] = [];
  for (const scope of statement.scopes) planScope(scope, resolve, plans);
  for (const { table, columns, rows } of statement.inserts) {
    const relation = resolve(table);
    if (relation === null) continue;
    const names = columns ?? relation.columns.map(({ name }) => name);
    for (const row of rows) {
      const slotsOf = new Map<string, readonly number[]>();
      for (const [index, name] of names.entries()) {
        const slot = row[index];
        if (slot !== null && slot !== undefined) slotsOf.set(name, [slot]);
      }
      addPlan(relation, slotsOf, true, plans);
    }
  }
  return plans;
}

function planScope({ tables, equalities }: KeyScope, resolve: Resolve, plans: KeyPlan[]): void {
  const relations = tables.map(({ table }) => resolve(table));
  for (const [index, { alias, writes }] of tables.entries()) {
    const relation = relations[index];
    if (relation === null || relation === undefined) continue;
    const slotsOf = new Map<string, readonly number[]>();
    for (const equality of equalities) {
      if (belongs(equality, alias, relation, relations)) slotsOf.set(equality.column, equality.values);
    }
    addPlan(relation, slotsOf, writes, plans);
  }
}

/** A column without its table in front is that of the only table that has it. */
function belongs(
  { qualifier, column }: Equality,
  alias: string,
  relation: CatalogRelation,
  relations: readonly (CatalogRelation | null)[],
): boolean {
  if (qualifier !== null) return qualifier === alias;
  if (relations.length === 1) return true;
  const has = (each: CatalogRelation | null): boolean =>
    each?.columns.some(({ name }) => name === column) === true;
  return has(relation) && relations.filter(has).length === 1;
}

function addPlan(
  relation: CatalogRelation,
  slotsOf: ReadonlyMap<string, readonly number[]>,
  writes: boolean,
  plans: KeyPlan[],
): void {
  const columns = relation.keys.find((key) => key.length > 0 && key.every((column) => slotsOf.has(column)));
  if (columns === undefined) return;
  plans.push({
    table: relation.root ?? tableKey(relation),
    columns,
    types: columns.map((column) => relation.columns.find(({ name }) => name === column)?.type ?? ''),
    slots: columns.map((column) => slotsOf.get(column) ?? []),
    writes,
  });
}

export type Parameters = readonly (string | Uint8Array | null)[];

/** Each key that the text names, as its columns' values in canonical form. Keys whose values can't be told are left out. */
export function keysIn(
  plan: KeyPlan,
  text: string,
  values: TextValues,
  parameters: Parameters | undefined,
): readonly (readonly string[])[] {
  const columns = plan.slots.map((slots) => slots.flatMap((slot) => values.slots[slot] ?? []));
  const rows = Math.max(...columns.map((column) => column.length));
  // Two lists of different lengths name no pairs.
  if (rows > ROWS_MAX || columns.some((column) => column.length !== 1 && column.length !== rows)) return [];
  const keys: (readonly string[])[] = [];
  for (let row = 0; row < rows; row += 1) {
    const key: string[] = [];
    for (const [index, column] of columns.entries()) {
      const raw = valueOf(column[column.length === 1 ? 0 : row] ?? -1, text, values, parameters);
      const canonical = raw === null ? null : canonicalValue(plan.types[index] ?? '', raw);
      if (canonical !== null) key.push(canonical);
    }
    if (key.length === columns.length) keys.push(key);
  }
  return keys;
}

/** Of the value with that number in the text: what it stands for; null where it is NULL or can't be told. */
function valueOf(
  number: number,
  text: string,
  { spans }: TextValues,
  parameters: Parameters | undefined,
): string | Uint8Array | null {
  const start = spans[2 * number];
  const end = spans[2 * number + 1];
  if (start === undefined || end === undefined) return null;
  const literal = text.slice(start, end);
  if (/^\$\d/.test(literal)) return parameters?.[Number(literal.slice(1)) - 1] ?? null;
  const first = literal.charCodeAt(0);
  if (first === 0x27) return literal.slice(1, -1).replaceAll("''", "'");
  if ((first >= 0x30 && first <= 0x39) || first === 0x2e) return signed(literal, text, start);
  if (first === 0x24) {
    const tag = literal.indexOf('$', 1) + 1;
    return literal.slice(tag, -tag);
  }
  // E'…' without an escape is as '…'; bit strings and Unicode escapes are no keys worth the trouble.
  if (/^[eE]'[^\\]*'$/.test(literal)) return literal.slice(2, -1).replaceAll("''", "'");
  return null;
}

/** The sign stands in front of the literal. In an equality or a list nothing is subtracted from. */
function signed(literal: string, text: string, start: number): string {
  let at = start - 1;
  while (at >= 0 && /\s/.test(text.charAt(at))) at -= 1;
  return text.charAt(at) === '-' ? `-${literal}` : literal;
}

/**
 * The parameters in a Bind message, from behind the statement's name on, as far as `bytes` holds them whole.
 * https://www.postgresql.org/docs/current/protocol-message-formats.html
 */
export function boundParameters(bytes: Buffer): Parameters {
  const values: (string | Uint8Array | null)[] = [];
  if (bytes.length < 2) return values;
  const formats = bytes.readUInt16BE(0);
  let at = 2 + 2 * formats;
  if (at + 2 > bytes.length) return values;
  const count = bytes.readUInt16BE(at);
  at += 2;
  for (let index = 0; index < count && at + 4 <= bytes.length; index += 1) {
    const length = bytes.readInt32BE(at);
    at += 4;
    if (length < 0) {
      values.push(null);
      continue;
    }
    if (at + length > bytes.length) return values;
    const binary =
      formats > 0 && bytes.readUInt16BE(2 + 2 * (formats === 1 ? 0 : Math.min(index, formats - 1))) === 1;
    values.push(binary ? bytes.subarray(at, at + length) : bytes.toString('utf8', at, at + length));
    at += length;
  }
  return values;
}
