/**
 * Tables with their columns, sequences, defaults, check constraints, inheritance and partitions.
 *
 * Partitions and their roots are built as tables of their own and attached, so that each keeps its column order and
 * the names of its constraints. Defaults are set afterwards, because they call functions that may need the table;
 * so are checks of tables outside any inheritance. Everything else about a column is part of CREATE TABLE.
 */
import { quoteLiteral } from '../../../core/postgres.js';
import { notOfExtension, type JsonList, parseList, rowsOf, userSchema, type Catalog } from './catalog.js';
import { RANK, type SchemaNode } from './graph.js';
import type { SchemaStatement, StatementShape } from './plan.js';
import { collationSql } from './read-types.js';

/** Options of a sequence as CREATE SEQUENCE and an identity column's parentheses take them. Wants pg_sequence `s`. */
const SEQUENCE_OPTIONS_SQL = `concat_ws(' ', 'START WITH ' || s.seqstart, 'INCREMENT BY ' || s.seqincrement,
  'MINVALUE ' || s.seqmin, 'MAXVALUE ' || s.seqmax, 'CACHE ' || s.seqcache, CASE WHEN s.seqcycle THEN 'CYCLE' END)`;

interface SequenceRow {
  readonly oid: string;
  readonly name: string;
  readonly type: string;
  readonly options: string;
  readonly unlogged: string;
  readonly owner_oid: string | null;
  readonly owned_by: string | null;
}

/** Sequences of their own, serial ones too; those of identity columns come with the column. */
export async function readSequences({ client, versionNum }: Catalog): Promise<readonly SchemaNode[]> {
  const rows = await rowsOf<SequenceRow>(
    client,
    'sequences',
    `SELECT c.oid, format('%I.%I', n.nspname, c.relname) AS name, format_type(s.seqtypid, NULL) AS type,
       ${SEQUENCE_OPTIONS_SQL} AS options, c.relpersistence = 'u' AS unlogged,
       d.refobjid AS owner_oid, quote_ident(tn.nspname) || '.' || quote_ident(t.relname) || '.' || quote_ident(a.attname) AS owned_by
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_sequence s ON s.seqrelid = c.oid
     LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid
       AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
     LEFT JOIN pg_class t ON t.oid = d.refobjid LEFT JOIN pg_namespace tn ON tn.oid = t.relnamespace
     LEFT JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
     WHERE ${userSchema('n')} AND ${notOfExtension('pg_class', 'c.oid')} AND d.deptype IS DISTINCT FROM 'i'
       AND c.relpersistence <> 't'`,
  );
  return rows.flatMap((row): readonly SchemaNode[] => {
    const object = `sequence ${row.name}`;
    const unlogged = row.unlogged === 't' && versionNum >= 150000 ? 'UNLOGGED ' : '';
    const sequence: SchemaNode = {
      id: `pg_class:${row.oid}`,
      aliases: [],
      phase: 'before-copy',
      rank: RANK.sequence,
      statements: [
        {
          kind: 'sequence',
          object,
          sql: `CREATE ${unlogged}SEQUENCE ${row.name} AS ${row.type} ${row.options}`,
        },
      ],
      needs: [],
    };
    if (row.owner_oid === null) return [sequence];
    const owner: SchemaNode = {
      id: `sequence-owner:${row.oid}`,
      aliases: [],
      phase: 'before-copy',
      rank: RANK.sequenceOwner,
      statements: [
        { kind: 'sequence', object, sql: `ALTER SEQUENCE ${row.name} OWNED BY ${row.owned_by ?? 'NONE'}` },
      ],
      needs: [sequence.id, `pg_class:${row.owner_oid}`],
    };
    return [sequence, owner];
  });
}

interface ColumnJson {
  readonly name: string;
  readonly type: string;
  readonly collation: string | null;
  readonly compression: string | null;
  readonly storage: string | null;
  readonly statistics: string | null;
  readonly options: string | null;
  readonly generated: '' | 's' | 'v';
  readonly expression: string | null;
  readonly expressionOid: string | null;
  readonly missing: string | null;
  readonly identity: '' | 'a' | 'd';
  readonly identityOid: string | null;
  readonly identityOptions: string | null;
  readonly notNull: boolean;
  readonly local: boolean;
}

interface ConstraintJson {
  readonly oid: string;
  readonly name: string;
  readonly definition: string;
  readonly validated: boolean;
  readonly local: boolean;
  readonly noInherit: boolean;
  /** The column of a named NOT NULL constraint (from 18); null for a check. */
  readonly column: string | null;
}

interface TableRow {
  readonly oid: string;
  readonly type_oid: string;
  readonly array_oid: string;
  readonly name: string;
  readonly kind: 'r' | 'p';
  readonly unlogged: string;
  readonly partition: string;
  readonly bound: string | null;
  readonly partition_key: string | null;
  readonly of_type: string | null;
  readonly access_method: string | null;
  readonly options: JsonList<string> | null;
  readonly toast_options: JsonList<string> | null;
  readonly parents: JsonList<{ oid: string; name: string }> | null;
  readonly has_children: string;
  readonly columns: JsonList<ColumnJson> | null;
  readonly checks: JsonList<ConstraintJson> | null;
}

/** Wants pg_attribute as `a`. */
export const STORAGE_SQL = `CASE a.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN' WHEN 'x' THEN 'EXTENDED' END`;

/** Statistics targets: -1 for "the default" became null in 17. */
const COLUMN_JSON = `json_build_object(
  'name', quote_ident(a.attname),
  'type', format_type(a.atttypid, a.atttypmod),
  'collation', ${collationSql('a.attcollation', 'ct.typcollation')},
  'compression', CASE a.attcompression WHEN 'p' THEN 'pglz' WHEN 'l' THEN 'lz4' END,
  'storage', CASE WHEN a.attstorage <> ct.typstorage THEN ${STORAGE_SQL} END,
  'statistics', CASE WHEN a.attstattarget >= 0 THEN a.attstattarget END,
  'options', array_to_string(a.attoptions, ', '),
  'generated', a.attgenerated,
  'expression', pg_get_expr(d.adbin, d.adrelid),
  'expressionOid', d.oid::text,
  'missing', CASE WHEN a.atthasmissing THEN (a.attmissingval::text::text[])[1] END,
  'identity', a.attidentity,
  'identityOid', i.seqrelid::text,
  'identityOptions', i.options,
  'notNull', a.attnotnull,
  'local', a.attislocal)`;

const TABLES_SQL = `
SELECT c.oid, c.reltype AS type_oid, y.typarray AS array_oid, format('%I.%I', n.nspname, c.relname) AS name,
  c.relkind AS kind, c.relpersistence = 'u' AS unlogged, c.relispartition AS partition,
  CASE WHEN c.relispartition THEN pg_get_expr(c.relpartbound, c.oid) END AS bound,
  CASE WHEN c.relkind = 'p' THEN pg_get_partkeydef(c.oid) END AS partition_key,
  (SELECT format('%I.%I', ofn.nspname, oft.typname) FROM pg_type oft JOIN pg_namespace ofn ON ofn.oid = oft.typnamespace
    WHERE oft.oid = c.reloftype AND c.reloftype <> 0) AS of_type,
  (SELECT quote_ident(am.amname) FROM pg_am am WHERE am.oid = c.relam AND am.amname <> 'heap') AS access_method,
  to_json(c.reloptions) AS options,
  (SELECT to_json(toast.reloptions) FROM pg_class toast WHERE toast.oid = c.reltoastrelid) AS toast_options,
  (SELECT json_agg(json_build_object('oid', i.inhparent::text, 'name', format('%I.%I', pn.nspname, p.relname))
      ORDER BY i.inhseqno)
    FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace pn ON pn.oid = p.relnamespace
    WHERE i.inhrelid = c.oid) AS parents,
  EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid) AS has_children,
  (SELECT json_agg(${COLUMN_JSON} ORDER BY a.attnum)
    FROM pg_attribute a JOIN pg_type ct ON ct.oid = a.atttypid
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    LEFT JOIN LATERAL (
      SELECT s.seqrelid, format('SEQUENCE NAME %I.%I ', sn.nspname, sc.relname) || ${SEQUENCE_OPTIONS_SQL} AS options
      FROM pg_depend sd JOIN pg_sequence s ON s.seqrelid = sd.objid
      JOIN pg_class sc ON sc.oid = s.seqrelid JOIN pg_namespace sn ON sn.oid = sc.relnamespace
      WHERE sd.classid = 'pg_class'::regclass AND sd.refclassid = 'pg_class'::regclass AND sd.refobjid = a.attrelid
        AND sd.refobjsubid = a.attnum AND sd.deptype = 'i' AND a.attidentity <> '') i ON true
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns,
  (SELECT json_agg(json_build_object('oid', k.oid::text, 'name', quote_ident(k.conname),
      'definition', pg_get_constraintdef(k.oid), 'validated', k.convalidated, 'local', k.conislocal,
      'noInherit', k.connoinherit, 'column', CASE k.contype WHEN 'n' THEN (
        SELECT quote_ident(ka.attname) FROM pg_attribute ka
        WHERE ka.attrelid = k.conrelid AND ka.attnum = k.conkey[1]) END) ORDER BY k.conname)
    FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype IN ('c', 'n')) AS checks
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_type y ON y.oid = c.reltype
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND ${userSchema('n')} AND ${notOfExtension('pg_class', 'c.oid')}`;

interface Table {
  readonly row: TableRow;
  readonly object: string;
  readonly parents: readonly { readonly oid: string; readonly name: string }[];
  readonly columns: readonly ColumnJson[];
  readonly checks: readonly ConstraintJson[];
  /** Neither a parent nor a child: its checks can be added one by one. */
  readonly alone: boolean;
  readonly isPartition: boolean;
}

function tableOf(row: TableRow): Table {
  const parents = parseList(row.parents);
  return {
    row,
    object: `table ${row.name}`,
    parents,
    columns: parseList(row.columns),
    checks: parseList(row.checks),
    alone: parents.length === 0 && row.has_children === 'f' && row.kind === 'r',
    isPartition: row.partition === 't',
  };
}

/** Whether CREATE TABLE names the column or constraint, or it comes with INHERITS. */
function ownedHere(table: Table, part: { readonly local: boolean }): boolean {
  return part.local || table.isPartition || table.parents.length === 0;
}

/** A partition takes its identity from its root when it is attached (from 17), and must not have one before. */
function identityOf(table: Table, column: ColumnJson): string | null {
  if (column.identity === '' || table.isPartition) return null;
  const when = column.identity === 'a' ? 'ALWAYS' : 'BY DEFAULT';
  return `GENERATED ${when} AS IDENTITY (${column.identityOptions ?? ''})`;
}

function columnSql(table: Table, column: ColumnJson): string {
  const typed = table.row.of_type !== null;
  const parts = [column.name, typed ? 'WITH OPTIONS' : column.type];
  if (column.compression !== null && !typed) parts.push(`COMPRESSION ${column.compression}`);
  if (column.collation !== null && !typed) parts.push(`COLLATE ${column.collation}`);
  if (column.generated !== '')
    parts.push(
      `GENERATED ALWAYS AS (${column.expression ?? ''}) ${column.generated === 'v' ? 'VIRTUAL' : 'STORED'}`,
    );
  const identity = identityOf(table, column);
  if (identity !== null) parts.push(identity);
  const named = table.checks.find((check) => check.column === column.name);
  if (named === undefined) {
    if (column.notNull) parts.push('NOT NULL');
  } else if (named.validated && ownedHere(table, named)) {
    parts.push(`CONSTRAINT ${named.name} NOT NULL${named.noInherit ? ' NO INHERIT' : ''}`);
  }
  return parts.join(' ');
}

function storageOptions(row: TableRow): string {
  const list = [
    ...parseList(row.options),
    ...parseList(row.toast_options).map((option) => `toast.${option}`),
  ];
  if (list.length === 0) return '';
  const quoted = list.map((option) => {
    const at = option.indexOf('=');
    return at < 0 ? option : `${option.slice(0, at)} = ${quoteLiteral(option.slice(at + 1))}`;
  });
  return ` WITH (${quoted.join(', ')})`;
}

/** Checks that are part of CREATE TABLE: those that children inherit or that a partition must have when attached. */
function inlinedChecks(table: Table): readonly ConstraintJson[] {
  if (table.alone) return [];
  return table.checks.filter((check) => check.column === null && check.validated && ownedHere(table, check));
}

/** A NOT NULL of the child's own on a column that comes with INHERITS; named, from 18. */
function notNullOfInherited(table: Table): readonly string[] {
  const inherited = table.columns.filter((column) => !ownedHere(table, column));
  return table.checks
    .filter(
      (check) => check.validated && check.local && inherited.some((column) => column.name === check.column),
    )
    .map(
      (check) => `CONSTRAINT ${check.name} NOT NULL ${check.column}${check.noInherit ? ' NO INHERIT' : ''}`,
    );
}

function createTable(table: Table): string {
  const typed = table.row.of_type !== null;
  const columns = table.columns
    .filter((column) => ownedHere(table, column))
    .map((column) => columnSql(table, column))
    // A typed table's column is only named where something is added to the type's own.
    .filter((sql) => !typed || !sql.endsWith('WITH OPTIONS'));
  return tableSql(table, columns);
}

function tableShape(table: Table): StatementShape {
  return {
    of: 'table',
    name: table.row.name,
    isPartition: table.isPartition || table.row.of_type !== null,
    rest: tableSql(table, []),
    columns: table.columns
      .filter((column) => ownedHere(table, column))
      .map((column) => ({
        name: column.name,
        sql: columnSql(table, column),
        filled: (column.expression !== null && column.generated === '') || column.identity !== '',
        missing: column.missing,
        type: column.type,
      })),
  };
}

function tableSql(table: Table, columns: readonly string[]): string {
  const { row } = table;
  const typed = row.of_type !== null;
  const checks = inlinedChecks(table).map((check) => `CONSTRAINT ${check.name} ${check.definition}`);
  const elements = [...columns, ...notNullOfInherited(table), ...checks].join(', ');
  // A partitioned table holds no rows; 18 refuses one that says it is unlogged.
  const unlogged = row.unlogged === 't' && row.kind === 'r' ? 'UNLOGGED ' : '';
  const parts = [`CREATE ${unlogged}TABLE ${row.name}`];
  if (typed) parts.push(`OF ${row.of_type}${elements === '' ? '' : ` (${elements})`}`);
  else parts.push(`(${elements})`);
  if (table.parents.length > 0 && !table.isPartition)
    parts.push(`INHERITS (${table.parents.map((parent) => parent.name).join(', ')})`);
  if (row.partition_key !== null) parts.push(`PARTITION BY ${row.partition_key}`);
  if (row.access_method !== null) parts.push(`USING ${row.access_method}`);
  return parts.join(' ') + storageOptions(row);
}

/** What CREATE TABLE can't say of a column. */
function columnAlterations(table: Table): readonly SchemaStatement[] {
  const statements: SchemaStatement[] = [];
  for (const column of table.columns) {
    const alter = (action: string, undo?: string): void => {
      const sql = (what: string): string =>
        `ALTER TABLE ONLY ${table.row.name} ALTER COLUMN ${column.name} ${what}`;
      statements.push({
        kind: 'table',
        object: table.object,
        sql: sql(action),
        ...(undo === undefined ? {} : { undo: sql(undo) }),
      });
    };
    if (column.storage !== null) alter(`SET STORAGE ${column.storage}`);
    if (column.statistics !== null) alter(`SET STATISTICS ${column.statistics}`, 'SET STATISTICS -1');
    if (column.options !== null) alter(`SET (${column.options})`);
    const named = table.checks.some((check) => check.column === column.name);
    if (column.notNull && !named && !ownedHere(table, column)) alter('SET NOT NULL', 'DROP NOT NULL');
  }
  return statements;
}

function tableNode(table: Table): SchemaNode {
  const { row } = table;
  const generated = table.columns.flatMap((column) =>
    column.generated !== '' && column.expressionOid !== null ? [`pg_attrdef:${column.expressionOid}`] : [],
  );
  const identities = table.columns.flatMap((column) =>
    column.identityOid === null ? [] : [`pg_class:${column.identityOid}`],
  );
  const inlined = inlinedChecks(table).map((check) => `pg_constraint:${check.oid}`);
  const inherited = table.checks
    .filter((check) => check.column !== null || !ownedHere(table, check))
    .map((check) => `pg_constraint:${check.oid}`);
  return {
    id: `pg_class:${row.oid}`,
    aliases: [
      `pg_type:${row.type_oid}`,
      `pg_type:${row.array_oid}`,
      ...generated,
      ...identities,
      ...inlined,
      ...inherited,
    ],
    phase: 'before-copy',
    rank: RANK.table,
    statements: [
      { kind: 'table', object: table.object, sql: createTable(table), shape: tableShape(table) },
      ...columnAlterations(table),
    ],
    needs: [],
  };
}

function attachNode(table: Table): readonly SchemaNode[] {
  const root = table.parents[0];
  if (!table.isPartition || root === undefined || table.row.bound === null) return [];
  return [
    {
      id: `attach:${table.row.oid}`,
      aliases: [],
      phase: 'before-copy',
      rank: RANK.attach,
      statements: [
        {
          kind: 'partition',
          object: table.object,
          sql: `ALTER TABLE ONLY ${root.name} ATTACH PARTITION ${table.row.name} ${table.row.bound}`,
          undo: `ALTER TABLE ${root.name} DETACH PARTITION ${table.row.name}`,
        },
      ],
      needs: [`pg_class:${table.row.oid}`, `pg_class:${root.oid}`],
    },
  ];
}

function checkNodes(table: Table): readonly SchemaNode[] {
  const { row } = table;
  const inlined = new Set(inlinedChecks(table));
  return table.checks.flatMap((check): readonly SchemaNode[] => {
    if (inlined.has(check) || (check.column !== null && check.validated)) return [];
    // One not yet validated goes to the children with the parent's: rows that it forbids may be there to copy.
    if (!table.alone && !check.local) return [];
    const only = table.alone || check.noInherit ? 'ONLY ' : '';
    return [
      {
        id: `pg_constraint:${check.oid}`,
        aliases: [],
        phase: check.validated ? 'before-copy' : 'after-copy',
        rank: check.validated ? RANK.check : RANK.lateCheck,
        statements: [
          {
            kind: 'check',
            object: `constraint ${check.name} on ${row.name}`,
            sql: `ALTER TABLE ${only}${row.name} ADD CONSTRAINT ${check.name} ${check.definition}`,
            undo: `ALTER TABLE ${row.name} DROP CONSTRAINT ${check.name}`,
          },
        ],
        needs: [`pg_class:${row.oid}`],
      },
    ];
  });
}

/** ONLY: a child's default is its own, whatever its parent's. */
function defaultNodes(table: Table): readonly SchemaNode[] {
  const { row } = table;
  return table.columns.flatMap((column): readonly SchemaNode[] => {
    if (column.generated !== '' || column.expressionOid === null || column.expression === null) return [];
    return [
      {
        id: `pg_attrdef:${column.expressionOid}`,
        aliases: [],
        phase: 'before-copy',
        rank: RANK.default,
        statements: [
          {
            kind: 'default',
            object: table.object,
            sql: `ALTER TABLE ONLY ${row.name} ALTER COLUMN ${column.name} SET DEFAULT ${column.expression}`,
            undo: `ALTER TABLE ONLY ${row.name} ALTER COLUMN ${column.name} DROP DEFAULT`,
          },
        ],
        needs: [`pg_class:${row.oid}`],
      },
    ];
  });
}

export async function readTableNodes({ client }: Catalog): Promise<readonly SchemaNode[]> {
  const rows = await rowsOf<TableRow>(client, 'tables', TABLES_SQL);
  return rows
    .map(tableOf)
    .flatMap((table) => [
      tableNode(table),
      ...attachNode(table),
      ...checkNodes(table),
      ...defaultNodes(table),
    ]);
}
