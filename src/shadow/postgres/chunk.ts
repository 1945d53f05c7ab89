/** A piece of a table on its way from the source to the destination. */
import { keyId, type ApplyTable, type Key } from './apply-table.js';
import { columnAt, keyIndexes } from './apply-sql.js';
import { quoteIdent, quoteLiteral } from '../../core/postgres.js';
import type { CopiedFrames } from './raw-copy.js';
import type { Snapshot } from './visibility.js';

export type CopyFormat = 'binary' | 'text';

export type ChunkOutcome =
  | 'written'
  /** Its window saw a TRUNCATE or another definition of the table, or the stream was interrupted. Read it again. */
  | 'discarded'
  /** Its snapshot missed a commit that had been streamed before. Read it again, a little later. */
  | 'stale';

/** What the reader found between the marks. */
export interface ChunkRead extends CopiedFrames {
  readonly format: CopyFormat;
  /** The last key of the chunk; null where it reaches the table's end. */
  readonly upper: Key | null;
}

export interface Chunk {
  readonly id: string;
  readonly table: ApplyTable;
  /** Rows above this key; null from the beginning. */
  readonly lower: Key | null;
  /** The record that asked for this one row, where the chunk repairs a key. */
  readonly pendingKeyId: string | null;
  /** The keys whose rows it replaces, where it repairs; null where it copies. */
  readonly repairs: readonly Key[] | null;
  /** `taking` from before the server is asked for it until its answer is here. */
  snapshot: Snapshot | 'untaken' | 'taking';
  /** Set before `high` is emitted. */
  read: ChunkRead | null;
  /** Called once. */
  readonly settle: (outcome: ChunkOutcome) => void;
}

/**
 * Types whose binary form is not the same bytes on both servers, or that have none; and those of which the server does
 * not read what it has sent where the value is empty.
 */
const TEXT_ONLY_TYPES =
  /^(reg[a-z]+|aclitem|gtsvector|pg_snapshot|txid_snapshot|refcursor|tsquery|int2vector|oidvector)(\[\])*$/;

/**
 * Binary where every column's type is the server's own, or an enum, whose binary form is its label. Arrays,
 * composites, ranges and domains of a user's types embed OIDs or may come from an extension; reg* are OIDs themselves.
 */
export function copyFormat(table: ApplyTable): CopyFormat {
  const binary = table.columns.every((column) => {
    if (column.typeKind === 'e') return !column.type.endsWith('[]');
    return !column.type.includes('.') && !TEXT_ONLY_TYPES.test(column.type);
  });
  return binary ? 'binary' : 'text';
}

export function copyOptions(format: CopyFormat): string {
  return format === 'binary' ? '(FORMAT binary)' : "(FORMAT text, ENCODING 'UTF8')";
}

/** `key > bound`, or `<=`, in the order of the key's index. */
export function keyCompares(table: ApplyTable, operator: '>' | '<=', bound: Key): string {
  const columns = keyIndexes(table).map((index) => columnAt(table, index));
  const values = columns.map((column, position) => `${quoteLiteral(bound[position] ?? '')}::${column.type}`);
  if (table.rowOperatorSchema !== null) {
    const left = columns.map((column) => `t.${quoteIdent(column.name)}`).join(', ');
    return `ROW(${left}) OPERATOR(${table.rowOperatorSchema}.${operator}) ROW(${values.join(', ')})`;
  }
  return lexicographic(table, operator, 0, values);
}

/** A row comparison spelled out, for columns whose operators live in different schemas. */
function lexicographic(
  table: ApplyTable,
  operator: '>' | '<=',
  position: number,
  values: readonly string[],
): string {
  const key = keyIndexes(table);
  const column = key[position];
  if (column === undefined) return operator === '<=' ? 'true' : 'false';
  const name = `t.${quoteIdent(columnAt(table, column).name)}`;
  const schema = quoteIdent(table.operatorSchemas[position] ?? 'pg_catalog');
  const strict = operator === '>' ? '>' : '<';
  const rest = lexicographic(table, operator, position + 1, values);
  const value = values[position] ?? 'NULL';
  return (
    `(${name} OPERATOR(${schema}.${strict}) ${value} OR ` +
    `(${name} OPERATOR(${schema}.=) ${value} AND ${rest}))`
  );
}

/** Types of which no two texts are equal values, so that keys can be told apart here as the server does. */
const EXACT_TYPES = /^(smallint|integer|bigint|uuid|boolean|date|timestamp(\(\d\))? with(out)? time zone)$/;

/** Whether a key in the stream is certainly another row than one of another text. */
function hasExactKey(table: ApplyTable): boolean {
  return keyIndexes(table).every((index) => EXACT_TYPES.test(columnAt(table, index).type));
}

const INTEGER_TYPES: ReadonlySet<string> = new Set(['smallint', 'integer', 'bigint']);

/**
 * Whether a key certainly lies outside what the chunk was read from. Only integers in the key's first column are
 * compared here; any other order is the server's alone to say, and then the answer is false.
 */
export function liesOutside(chunk: Chunk, read: ChunkRead, key: Key): boolean {
  const [first] = keyIndexes(chunk.table);
  const [value] = key;
  // A chunk that repairs one key has no range.
  if (first === undefined || value === undefined || chunk.pendingKeyId !== null) return false;
  if (chunk.repairs !== null) {
    return hasExactKey(chunk.table) && !chunk.repairs.some((repaired) => keyId(repaired) === keyId(key));
  }
  if (!INTEGER_TYPES.has(columnAt(chunk.table, first).type)) return false;
  const at = BigInt(value);
  const lower = chunk.lower?.[0];
  const upper = read.upper?.[0];
  // At a border's own value the further columns decide.
  return (lower !== undefined && at < BigInt(lower)) || (upper !== undefined && at > BigInt(upper));
}
