/**
 * Foreign keys between subsets that may be parted (`foreignKeys: unenforced`), on one side.
 *
 * While the two tables are led by different sides, neither side can say whether the key holds: the referenced rows, or
 * the referring ones, are a copy there that is a moment behind. What was just inserted over there would be refused here,
 * and what was just deleted be referred to. So the key is dropped on both sides. Its definition is kept in
 * `understudy.unenforced_key`, on the same side, by the same transaction.
 *
 *   enforced    no record                                    → unenforced, once its subsets are parted
 *   unenforced  a record; the constraint is not there        → restored, once they have met
 *   restored    a record; the constraint is there, NOT VALID: it holds for every row written from now on
 *                                                            → enforced, once no row violates it; else it stays so,
 *                                                              with how many do. Or unenforced again.
 *
 * A key that was NOT VALID before is enforced as soon as it is restored. Each step is one transaction, so that a process
 * that dies leaves one of these states, and the next one goes on from it by who leads what (key-keeper.ts).
 */
import type { SubsetId, SubsetRules, TableName } from '../core/ports.js';
import { UnderstudyError } from '../core/errors.js';
import { quoteIdent, quoteLiteral, quoteTable } from '../core/postgres.js';
import { UNENFORCED_KEYS, foreignKeyPolicy, readSubsetTables } from '../core/subsets.js';
import { inBarrierTransaction, readBounds, type BarrierLimits, type Bounds } from './barrier-locks.js';
import { sqlStateOf, type Row, type Session } from './session.js';

export type KeyState = 'enforced' | 'unenforced' | 'restored';

export interface CrossingKey {
  readonly name: string;
  readonly table: TableName;
  readonly references: TableName;
  /** Of the referring table, and of the one that is referred to. */
  readonly subsets: readonly [SubsetId, SubsetId];
  readonly state: KeyState;
  /** Where it is recorded; null where the side's own catalog says it all. */
  readonly record: KeyRecord | null;
}

export interface KeyRecord {
  /** As pg_get_constraintdef had it. */
  readonly definition: string;
  /** It was valid before, and is to be again. */
  readonly validated: boolean;
  readonly comment: string | null;
  readonly since: string;
  /** What the last look found; null before. */
  readonly violations: Violations | null;
}

export interface Violations {
  readonly rows: number;
  /** Different keys among them. */
  readonly keys: number;
}

export async function createKeyRecords(session: Session): Promise<void> {
  await session.run(
    `CREATE TABLE IF NOT EXISTS ${UNENFORCED_KEYS} (
       schema_name text NOT NULL,
       table_name text NOT NULL,
       constraint_name text NOT NULL,
       references_schema text NOT NULL,
       references_table text NOT NULL,
       definition text NOT NULL,
       validated boolean NOT NULL,
       comment text,
       violating_rows bigint,
       violating_keys bigint,
       since timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
       PRIMARY KEY (schema_name, table_name, constraint_name))`,
  );
}

/** Those that do nothing but refuse, between plain tables: of no other can half be left out; preflight refuses those. */
const KEYS_SQL = `
  SELECT n.nspname AS schema, c.relname AS table, k.conname AS name, pn.nspname AS parent_schema, p.relname AS parent,
    k.convalidated AS valid
  FROM pg_catalog.pg_constraint k
  JOIN pg_catalog.pg_class c ON c.oid = k.conrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_class p ON p.oid = k.confrelid JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace
  WHERE k.contype = 'f' AND k.conparentid = 0
    AND k.confdeltype IN ('a', 'r') AND k.confupdtype IN ('a', 'r') AND c.relkind = 'r' AND p.relkind = 'r'
    AND pg_catalog.to_jsonb(k) ->> 'conenforced' IS DISTINCT FROM 'false'
  ORDER BY 1, 2, 3`;

const RECORDS_SQL = `
  SELECT schema_name AS schema, table_name AS table, constraint_name AS name, references_schema AS parent_schema,
    references_table AS parent, definition, validated, comment, since, violating_rows, violating_keys
  FROM ${UNENFORCED_KEYS} ORDER BY 1, 2, 3`;

/**
 * The keys of this side that may be left unenforced, and those that are recorded here, whatever the policies say by now.
 * Throws what the connection throws.
 */
export async function readCrossingKeys(
  session: Session,
  rules: readonly SubsetRules[],
): Promise<readonly CrossingKey[]> {
  const recorded = await session.run(
    `SELECT pg_catalog.to_regclass('${UNENFORCED_KEYS}') IS NOT NULL AS found`,
  );
  const records = recorded.rows[0]?.['found'] === 't' ? (await session.run(RECORDS_SQL)).rows : [];
  if (records.length === 0 && !rules.some(({ foreignKeys }) => foreignKeys === 'unenforced')) return [];
  const subsetOf = new Map(
    (await readSubsetTables(session.client, rules)).flatMap(({ subset, tables }) =>
      tables.map((table) => [quoteTable(table), subset] as const),
    ),
  );
  const present = new Map((await session.run(KEYS_SQL)).rows.map((row) => [idOf(row), row]));
  const found = records.flatMap((row): CrossingKey | [] => {
    const key = keyFrom(row, subsetOf);
    if (key === null) return [];
    const there = present.get(idOf(row));
    present.delete(idOf(row));
    const state = there === undefined ? 'unenforced' : there['valid'] === 't' ? 'enforced' : 'restored';
    return { ...key, state, record: recordFrom(row) };
  });
  const others = [...present.values()].flatMap((row): CrossingKey | [] => {
    const key = keyFrom(row, subsetOf);
    if (key === null || foreignKeyPolicy(rules, ...key.subsets) !== 'unenforced') return [];
    return { ...key, state: 'enforced', record: null };
  });
  return [...found, ...others];
}

function idOf(row: Row): string {
  return JSON.stringify([row['schema'], row['table'], row['name']]);
}

/** Null for one whose tables are not there any more. */
function keyFrom(
  row: Row,
  subsetOf: ReadonlyMap<string, SubsetId>,
): Pick<CrossingKey, 'name' | 'table' | 'references' | 'subsets'> | null {
  const table = { schema: row['schema'] ?? '', name: row['table'] ?? '' };
  const references = { schema: row['parent_schema'] ?? '', name: row['parent'] ?? '' };
  const [child, parent] = [subsetOf.get(quoteTable(table)), subsetOf.get(quoteTable(references))];
  if (child === undefined || parent === undefined) return null;
  return { name: row['name'] ?? '', table, references, subsets: [child, parent] };
}

function recordFrom(row: Row): KeyRecord {
  const [rows, keys] = [row['violating_rows'], row['violating_keys']];
  return {
    definition: row['definition'] ?? '',
    validated: row['validated'] === 't',
    comment: row['comment'] ?? null,
    since: row['since'] ?? '',
    violations: rows == null || keys == null ? null : { rows: Number(rows), keys: Number(keys) },
  };
}

function whereKey({ table, name }: CrossingKey): string {
  return `schema_name = ${quoteLiteral(table.schema)} AND table_name = ${quoteLiteral(table.name)}
    AND constraint_name = ${quoteLiteral(name)}`;
}

/** What acting on a side takes besides its keys; asked before the gate closes. */
export interface KeySide {
  readonly session: Session;
  readonly bounds: Bounds;
}

/**
 * Makes room for records, and does once, on a table of its own and taken back, what is to be done to the keys: a connection that
 * has done it has the catalogs at hand.
 */
export async function openKeySide(session: Session, lockTimeoutMs: number): Promise<KeySide> {
  await createKeyRecords(session);
  const table = 'understudy.key_rehearsal';
  try {
    await session.batch([
      'BEGIN',
      `CREATE TABLE ${table} (id integer PRIMARY KEY, up integer CONSTRAINT rehearsed REFERENCES ${table})`,
      `ALTER TABLE ONLY ${table} DROP CONSTRAINT rehearsed`,
      `ALTER TABLE ONLY ${table} ADD CONSTRAINT rehearsed FOREIGN KEY (up) REFERENCES ${table} NOT VALID`,
      'ROLLBACK',
    ]);
  } catch (error) {
    if (!session.dead) await session.batch(['ROLLBACK']);
    throw error;
  }
  return { session, bounds: await readBounds(session, lockTimeoutMs) };
}

async function atOnce(
  { session, bounds }: KeySide,
  limits: BarrierLimits,
  statements: readonly string[],
): Promise<void> {
  await inBarrierTransaction(session, bounds, limits, async (begin) => {
    await session.batch([...begin, ...statements, 'COMMIT']);
  });
}

/** Drops the constraint and records it. Throws `fence-timeout` where its two tables' locks can't be had. */
export async function dropKey(side: KeySide, key: CrossingKey, limits: BarrierLimits): Promise<void> {
  const { table, name } = key;
  await atOnce(side, limits, [
    // A second parting keeps what was recorded first: by now the constraint may only be NOT VALID.
    `INSERT INTO ${UNENFORCED_KEYS} (schema_name, table_name, constraint_name, references_schema, references_table, definition,
       validated, comment)
     SELECT n.nspname, c.relname, k.conname, pn.nspname, p.relname, pg_catalog.pg_get_constraintdef(k.oid), k.convalidated,
       pg_catalog.obj_description(k.oid, 'pg_constraint')
     FROM pg_catalog.pg_constraint k
     JOIN pg_catalog.pg_class c ON c.oid = k.conrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     JOIN pg_catalog.pg_class p ON p.oid = k.confrelid JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace
     WHERE k.contype = 'f' AND k.conrelid = ${quoteLiteral(quoteTable(table))}::pg_catalog.regclass
       AND k.conname = ${quoteLiteral(name)}
     ON CONFLICT (schema_name, table_name, constraint_name) DO UPDATE SET since = pg_catalog.clock_timestamp(),
       violating_rows = NULL, violating_keys = NULL`,
    `ALTER TABLE ONLY ${quoteTable(table)} DROP CONSTRAINT ${quoteIdent(name)}`,
  ]);
}

/** Puts the constraint back: it holds for what is written from now on. Throws as {@link dropKey}. */
export async function restoreKey(
  side: KeySide,
  key: CrossingKey,
  record: KeyRecord,
  limits: BarrierLimits,
): Promise<void> {
  const [table, name] = [quoteTable(key.table), quoteIdent(key.name)];
  const { definition, validated, comment } = record;
  await atOnce(side, limits, [
    `ALTER TABLE ONLY ${table} ADD CONSTRAINT ${name} ${definition}${validated ? ' NOT VALID' : ''}`,
    ...(comment === null ? [] : [`COMMENT ON CONSTRAINT ${name} ON ${table} IS ${quoteLiteral(comment)}`]),
    validated
      ? `UPDATE ${UNENFORCED_KEYS} SET violating_rows = NULL, violating_keys = NULL WHERE ${whereKey(key)}`
      : `DELETE FROM ${UNENFORCED_KEYS} WHERE ${whereKey(key)}`,
  ]);
}

/** One that somebody made valid is as it was. */
export async function forgetKey(session: Session, key: CrossingKey): Promise<void> {
  await session.run(`DELETE FROM ${UNENFORCED_KEYS} WHERE ${whereKey(key)}`);
}

/**
 * Reads the whole of the referring table, and where no row violates the key, has the server validate it, which reads it
 * again and lets writes go on. Returns what violates it, which is recorded; null where it is enforced as before.
 */
export async function validateKey(session: Session, key: CrossingKey): Promise<Violations | null> {
  const before = await countViolations(session, key);
  if (before.rows === 0 && (await validated(session, key))) return null;
  const violations = before.rows === 0 ? await countViolations(session, key) : before;
  await session.run(
    `UPDATE ${UNENFORCED_KEYS} SET violating_rows = $1, violating_keys = $2 WHERE ${whereKey(key)}`,
    [violations.rows, violations.keys],
  );
  return violations;
}

export function validateSql({ table, name }: CrossingKey): string {
  return `ALTER TABLE ${quoteTable(table)} VALIDATE CONSTRAINT ${quoteIdent(name)}`;
}

async function validated(session: Session, key: CrossingKey): Promise<boolean> {
  try {
    await session.batch([
      'BEGIN',
      validateSql(key),
      `DELETE FROM ${UNENFORCED_KEYS} WHERE ${whereKey(key)}`,
      'COMMIT',
    ]);
    return true;
  } catch (error) {
    if (!session.dead) await session.batch(['ROLLBACK']);
    // foreign_key_violation, of a row that came between the two readings. Its detail holds values: it is left behind.
    if (sqlStateOf(error) === '23503') return false;
    throw error;
  }
}

async function countViolations(session: Session, key: CrossingKey): Promise<Violations> {
  const columns = await session.run(
    `SELECT k.confmatchtype AS match, pg_catalog.quote_ident(a.attname) AS child, pg_catalog.quote_ident(b.attname) AS parent,
       pg_catalog.format('OPERATOR(%I.%s)', n.nspname, o.oprname) AS equals
     FROM pg_catalog.pg_constraint k
     CROSS JOIN LATERAL ROWS FROM (pg_catalog.unnest(k.conkey), pg_catalog.unnest(k.confkey), pg_catalog.unnest(k.conpfeqop))
       AS u (child, parent, operator)
     JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.child
     JOIN pg_catalog.pg_attribute b ON b.attrelid = k.confrelid AND b.attnum = u.parent
     JOIN pg_catalog.pg_operator o ON o.oid = u.operator JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
     WHERE k.contype = 'f' AND k.conrelid = $1::pg_catalog.regclass AND k.conname = $2`,
    [quoteTable(key.table), key.name],
  );
  const pairs = columns.rows.map((row) => ({
    child: row['child'] ?? '',
    parent: row['parent'] ?? '',
    equals: row['equals'] ?? '',
  }));
  if (pairs.length === 0)
    throw new UnderstudyError('internal', `${session.side}: constraint ${key.name} is not there`);
  // MATCH FULL refuses keys that are null in part; the default takes them for no reference.
  const any = columns.rows[0]?.['match'] === 'f' ? ' OR ' : ' AND ';
  const refers = pairs.map(({ child }) => `c.${child} IS NOT NULL`).join(any);
  const equal = pairs.map(({ child, parent, equals }) => `p.${parent} ${equals} c.${child}`).join(' AND ');
  const counted = await session.run(
    `SELECT pg_catalog.count(*) AS rows,
       pg_catalog.count(DISTINCT ROW(${pairs.map(({ child }) => `c.${child}`).join(', ')})::text) AS keys
     FROM ONLY ${quoteTable(key.table)} c
     WHERE (${refers}) AND NOT EXISTS (SELECT FROM ONLY ${quoteTable(key.references)} p WHERE ${equal})`,
  );
  const [row] = counted.rows;
  return { rows: Number(row?.['rows'] ?? '0'), keys: Number(row?.['keys'] ?? '0') };
}
