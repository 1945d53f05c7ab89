/**
 * A plain table of the source that is partitioned on the destination: what is refused, and the statements that build it.
 *
 * The root has the table's name and takes every row, so all that copies, applies and compares there goes by the root. The
 * log tells of its partitions, one by one: the way back reads each as the table (see forms.ts).
 */
import type { Finding, TableName } from '../../core/ports.js';
import type { Format, Partitioning } from '../../core/format-ports.js';
import { quoteIdent, quoteTable } from '../../core/postgres.js';
import type { SchemaStatement } from '../postgres/schema/plan.js';
import type { TableInfo } from '../postgres/table.js';
import { tableKey } from '../postgres/table.js';
import { unquotedName } from './unquoted.js';
import { rowsOf } from '../postgres/schema/catalog.js';
import type pg from 'pg';

export interface Leaf extends TableName {
  /** As in `FOR VALUES …`; `DEFAULT`. */
  readonly bound: string;
}

const BOUNDS: Readonly<Record<Partitioning['by'], RegExp>> = {
  range: /^(?:FROM \([^;]*\) TO \([^;]*\)|DEFAULT)$/i,
  list: /^(?:IN \([^;]*\)|DEFAULT)$/i,
  hash: /^WITH \(MODULUS \d+, REMAINDER \d+\)$/i,
};
const BOUND_SHAPES: Readonly<Record<Partitioning['by'], string>> = {
  range: 'FROM (…) TO (…), or DEFAULT',
  list: 'IN (…), or DEFAULT',
  hash: 'WITH (MODULUS n, REMAINDER n); or say how many instead of naming them',
};
const NAME_BYTES_MAX = 63;
export const PARTITIONS_MAX = 1000;

/** The partitions, in the table's schema. */
export function leavesOf(table: TableName, { partitions }: Partitioning): readonly Leaf[] {
  const { schema, name } = table;
  if (typeof partitions !== 'number')
    return Object.entries(partitions).map(([leaf, bound]) => ({ schema, name: leaf, bound: bound.trim() }));
  return Array.from({ length: Math.min(partitions, PARTITIONS_MAX) }, (_, at) => ({
    schema,
    name: `${name}_p${at}`,
    bound: `WITH (MODULUS ${partitions}, REMAINDER ${at})`,
  }));
}

export function hasPartitioning(format: Format | undefined): boolean {
  return Object.values(format?.tables ?? {}).some(({ partitioning }) => partitioning !== undefined);
}

type Refuse = (message: string, advice: string) => void;

/** What of it can't be had, as far as the tables tell. `parents`: of whichever table, by name. */
export function partitioningFindings(
  table: TableInfo,
  wanted: Partitioning,
  { tables, renamed }: { readonly tables: readonly TableInfo[]; readonly renamed: boolean },
): readonly Finding[] {
  const name = tableKey(table);
  const findings: Finding[] = [];
  const refuse: Refuse = (message, advice) =>
    void findings.push({
      severity: 'blocker',
      check: 'format-refused',
      side: 'source',
      object: name,
      message: `${name}: ${message}`,
      advice,
    });
  const hasChildren = tables.some(({ parents }) => parents?.includes(name) === true);
  if (table.kind !== 'ordinary' || (table.parents ?? []).length > 0 || hasChildren)
    refuse(
      'only a plain table, without partitions, parents or children, can be partitioned',
      'Leave it as it is.',
    );
  if (renamed) refuse('a table that is partitioned keeps its name and its columns’', 'Do one of the two.');
  if (table.key === null)
    refuse('it has no key, by which its rows are found in the partitions', 'Give it a primary key.');
  const outside = wanted.columns.find((column) => table.key?.includes(column) !== true);
  if (table.key !== null && outside !== undefined)
    refuse(
      `${outside} is not a column of its key, which would not be unique across partitions`,
      'Partition by columns of the primary key, or add the column to it.',
    );
  if (table.replicaIdentity === 'i')
    refuse(
      'its replica identity is an index, which partitions would not share',
      'Take the primary key as replica identity.',
    );
  boundFindings(table, wanted, tables, refuse);
  return findings;
}

function boundFindings(
  table: TableInfo,
  wanted: Partitioning,
  tables: readonly TableInfo[],
  refuse: Refuse,
): void {
  const { by, partitions, columns } = wanted;
  if (typeof partitions === 'number' && by !== 'hash') {
    refuse(
      `how many partitions there are says enough only by hash, not by ${by}`,
      'Name each with its bounds.',
    );
    return;
  }
  if (by === 'list' && columns.length > 1) refuse('a list is of one column', 'Name one column.');
  const leaves = leavesOf(table, wanted);
  if (leaves.length === 0 || leaves.length > PARTITIONS_MAX)
    refuse(`it would have ${leaves.length} partitions`, `Have 1 to ${PARTITIONS_MAX}.`);
  const taken = new Set(tables.map((each) => tableKey(each)));
  for (const leaf of leaves) {
    if (taken.has(tableKey(leaf))) refuse(`there is a table ${tableKey(leaf)} already`, 'Take another name.');
    if (leaf.name === '' || Buffer.byteLength(leaf.name) > NAME_BYTES_MAX)
      refuse(`“${leaf.name}” is no name: it has 1 to ${NAME_BYTES_MAX} bytes`, 'Take another name.');
    if (!BOUNDS[by].test(leaf.bound))
      refuse(`partition ${leaf.name} by ${by} is not ${leaf.bound}`, `Say ${BOUND_SHAPES[by]}.`);
  }
}

/** Of unique indexes and exclusion constraints: what a table that is to be partitioned by `columns` may not have. */
const UNIQUES_SQL = `
SELECT i.indexrelid::pg_catalog.regclass::text AS index, i.indisexclusion AS exclusion,
  pg_catalog.to_json(ARRAY(SELECT a.attname FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, n)
    JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum WHERE k.n <= i.indnkeyatts)) AS columns
FROM pg_catalog.pg_index i WHERE i.indrelid = $1::text::pg_catalog.regclass AND (i.indisunique OR i.indisexclusion)`;

/** What the source's indexes say against it, and which rows may find no partition. */
export async function inspectPartitioning(
  source: pg.Client,
  tables: readonly TableInfo[],
  format: Format | undefined,
): Promise<readonly Finding[]> {
  const findings: Finding[] = [];
  for (const table of tables) {
    const name = tableKey(table);
    const wanted = format?.tables?.[name]?.partitioning;
    if (wanted === undefined) continue;
    const rows = await rowsOf<{ index: string; exclusion: string; columns: string }>(
      source,
      'the unique indexes',
      UNIQUES_SQL.replace('$1', () => `'${quoteTable(table).replaceAll("'", "''")}'`),
    );
    for (const { index, exclusion, columns } of rows) {
      const held = JSON.parse(columns) as string[];
      if (exclusion === 'f' && wanted.columns.every((column) => held.includes(column))) continue;
      findings.push({
        severity: 'blocker',
        check: 'format-refused',
        side: 'source',
        object: name,
        message: `${name}: ${index} can’t hold across partitions: it does not have all of ${wanted.columns.join(', ')}`,
        advice: 'Partition by columns that every unique index has, or drop it.',
      });
    }
    const open =
      wanted.by !== 'hash' && !leavesOf(table, wanted).some(({ bound }) => /^default$/i.test(bound));
    if (open) {
      findings.push({
        severity: 'warning',
        check: 'format-partitions',
        side: 'destination',
        object: name,
        message: `${name} will have no DEFAULT partition: a row that fits none stops the shadow, and after a switch is refused.`,
        advice: 'Add a partition with DEFAULT, or make sure that the partitions cover all rows to come.',
      });
    }
  }
  return findings;
}

/** CREATE TABLE up to what only a table with rows of its own may have, which the partitions get. */
const CREATE_TABLE = /^(CREATE TABLE [\s\S]*?\))((?: USING [^\s()]+)?(?: WITH \([^()]*\))?)$/;

const ALTER_TABLE =
  /^ALTER TABLE (?:ONLY )?((?:"(?:[^"]|"")+"|[^\s".]+)\.(?:"(?:[^"]|"")+"|[^\s".]+)) ([\s\S]*)$/;

/** What an ALTER TABLE does to the table; null for another statement. */
function actionOn(sql: string, table: TableName): string | null {
  const [, name = '', action = ''] = ALTER_TABLE.exec(sql) ?? [];
  return unquotedName(name) === tableKey(table) ? action : null;
}

/** The statements in place of one of the source's table `name`, quoted. `notValid`: whether the server takes a NOT VALID foreign key. */
export function partitionedStatements(
  statement: SchemaStatement,
  table: TableName,
  wanted: Partitioning,
  notValid: boolean,
): readonly SchemaStatement[] {
  const root = quoteTable(table);
  const leaves = leavesOf(table, wanted);
  const { shape } = statement;
  if (shape?.of === 'table') {
    if (unquotedName(shape.name) !== tableKey(table)) return [statement];
    const [, head = statement.sql, tail = ''] = CREATE_TABLE.exec(statement.sql) ?? [];
    const by = `PARTITION BY ${wanted.by.toUpperCase()} (${wanted.columns.map((column) => quoteIdent(column)).join(', ')})`;
    return [
      { ...statement, sql: `${head} ${by}`, shape: { ...shape, rest: `${shape.rest} ${by}` } },
      ...leaves.map((leaf): SchemaStatement => ({
        kind: 'table',
        object: `table ${quoteTable(leaf)}`,
        sql: `CREATE TABLE ${quoteTable(leaf)} PARTITION OF ${root} ${/^default$/i.test(leaf.bound) ? 'DEFAULT' : `FOR VALUES ${leaf.bound}`}${tail}`,
      })),
    ];
  }
  if (actionOn(statement.sql, table)?.startsWith('CLUSTER ON ') === true) return [];
  const whole = (text: string): string => {
    const action = actionOn(text, table);
    return action === null ? text : `ALTER TABLE ${root} ${action}`;
  };
  const mine = whole(statement.sql);
  const sql =
    statement.kind === 'foreign-key' && actionOn(mine, table) !== null && !notValid
      ? mine.replace(/ NOT VALID$/, '')
      : mine;
  const changed = {
    ...statement,
    sql,
    ...(statement.undo === undefined ? {} : { undo: whole(statement.undo) }),
  };
  if (actionOn(sql, table)?.startsWith('OWNER TO ') !== true) return [changed];
  const owned = leaves.map((leaf): SchemaStatement => ({
    ...changed,
    object: `table ${quoteTable(leaf)}`,
    sql: sql.replace(`ALTER TABLE ${root} `, () => `ALTER TABLE ${quoteTable(leaf)} `),
  }));
  return [changed, ...owned];
}
