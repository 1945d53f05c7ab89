/**
 * The statements that rebuild the schema, in the destination's form.
 *
 * Column types stand in CREATE TABLE alone; everything else that the server prints (keys, indexes, checks, views) is
 * read against whatever type the column has by then, and where that fails, the build names the statement.
 */
import type { Format } from '../../core/format-ports.js';
import { PARTITIONED_NOT_VALID_SINCE } from '../postgres/schema/read-constraints.js';
import type { SchemaPlan, SchemaStatement, TableColumnShape } from '../postgres/schema/plan.js';
import { run, textOf, type Session } from '../postgres/statement.js';
import type { TableInfo } from '../postgres/table.js';
import { formOn, type Forms } from './forms.js';
import { partitionedStatements } from './partitioning.js';
import { unquoted, unquotedName } from './unquoted.js';

/** The plan in the destination's form. `sequences` as {@link readOwnedSequences} returns them. */
export function formattedPlan(
  plan: SchemaPlan,
  forms: Forms,
  sequences: readonly SchemaStatement[],
  {
    format,
    destinationVersionNum,
  }: { readonly format: Format | undefined; readonly destinationVersionNum: number },
): SchemaPlan {
  const byName = new Map<string, TableInfo>();
  for (const { source, destination } of forms.values()) {
    if (source !== destination) byName.set(`${source.schema}.${source.name}`, destination);
  }
  if (byName.size === 0) return plan;
  const partitioned = [...forms.values()].flatMap(({ source }) => {
    const wanted = format?.tables?.[`${source.schema}.${source.name}`]?.partitioning;
    return wanted === undefined ? [] : [{ table: source, wanted }];
  });
  const notValid = destinationVersionNum >= PARTITIONED_NOT_VALID_SINCE;
  const inParts = (statements: readonly SchemaStatement[]): readonly SchemaStatement[] =>
    partitioned.reduce<readonly SchemaStatement[]>(
      (all, { table, wanted }) =>
        all.flatMap((statement) => partitionedStatements(statement, table, wanted, notValid)),
      statements,
    );
  return {
    ...plan,
    beforeCopy: inParts([...plan.beforeCopy.map((statement) => formatted(statement, byName)), ...sequences]),
    afterCopy: inParts(plan.afterCopy),
  };
}

function formatted(statement: SchemaStatement, forms: ReadonlyMap<string, TableInfo>): SchemaStatement {
  const { shape } = statement;
  if (shape?.of === 'table') {
    const table = forms.get(unquotedName(shape.name));
    if (table === undefined) return statement;
    const columns = shape.columns.map((column) => formattedColumn(column, table));
    const before = shape.columns.map(({ sql }) => sql).join(', ');
    const after = columns.map(({ sql }) => sql).join(', ');
    return {
      ...statement,
      sql: statement.sql.replace(before, () => after),
      shape: { ...shape, columns },
    };
  }
  return statement.kind === 'default' ? formattedDefault(statement, forms) : statement;
}

function formattedColumn(column: TableColumnShape, table: TableInfo): TableColumnShape {
  const converted = table.columns.find(({ name }) => name === unquoted(column.name))?.converted;
  if (converted === undefined) return column;
  const { destinationType: type } = converted.conversion;
  const head = `${column.name} ${column.type}`;
  return { ...column, type, sql: `${column.name} ${type}${column.sql.slice(head.length)}` };
}

const SET_DEFAULT = /^(ALTER TABLE ONLY (.+?) ALTER COLUMN (.+?) SET DEFAULT )([\s\S]+)$/;

/** A local time's default is what the source would have stored, read by the zone's clock. */
function formattedDefault(
  statement: SchemaStatement,
  forms: ReadonlyMap<string, TableInfo>,
): SchemaStatement {
  const match = SET_DEFAULT.exec(statement.sql);
  if (match === null) return statement;
  const [, head = '', table = '', column = '', expression = ''] = match;
  const converted = forms
    .get(unquotedName(table))
    ?.columns.find(({ name }) => name === unquoted(column))?.converted;
  const { conversion } = converted ?? {};
  if (conversion?.sourceType.startsWith('timestamp') !== true) return statement;
  const local = `CAST((${expression}) AS ${conversion.sourceType})`;
  return { ...statement, sql: `${head}${conversion.fromSource(local)}` };
}

/** Serial's and identity's sequences, which must go as far as their column; of the source. */
const SEQUENCES_SQL = `
SELECT pg_catalog.format('%I.%I', sn.nspname, s.relname) AS sequence, tn.nspname AS schema, t.relname AS table,
  a.attname AS column, pg_catalog.format_type(q.seqtypid, NULL) AS type, d.deptype = 'i' AS identity, q.seqmax AS max
FROM pg_catalog.pg_depend d
JOIN pg_catalog.pg_sequence q ON q.seqrelid = d.objid
JOIN pg_catalog.pg_class s ON s.oid = q.seqrelid JOIN pg_catalog.pg_namespace sn ON sn.oid = s.relnamespace
JOIN pg_catalog.pg_class t ON t.oid = d.refobjid JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
  AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0
ORDER BY 1`;

const MAXIMA: Readonly<Record<string, string>> = {
  smallint: '32767',
  integer: '2147483647',
  bigint: '9223372036854775807',
};

/** What makes the sequences of widened columns as wide. A bound that somebody set is kept. */
export async function readOwnedSequences(
  source: Session,
  tables: readonly TableInfo[],
  forms: Forms,
): Promise<readonly SchemaStatement[]> {
  const { rows } = await run(source, SEQUENCES_SQL, { what: 'reading the sequences of columns' });
  return rows.flatMap((row): readonly SchemaStatement[] => {
    const table = tables.find(
      ({ schema, name }) => schema === textOf(row, 'schema') && name === textOf(row, 'table'),
    );
    if (table === undefined) return [];
    const column = formOn(forms, table, 'destination').columns.find(
      ({ name }) => name === textOf(row, 'column'),
    );
    if (column?.converted === undefined || MAXIMA[column.type] === undefined) return [];
    const sequence = textOf(row, 'sequence');
    const object = `sequence ${sequence}`;
    const bounded = textOf(row, 'max') !== MAXIMA[textOf(row, 'type')];
    if (row['identity'] === 't') {
      // Its type is its column's already; the bound was printed with it.
      if (bounded) return [];
      return [
        { kind: 'sequence', object, sql: `ALTER SEQUENCE ${sequence} MAXVALUE ${MAXIMA[column.type] ?? ''}` },
      ];
    }
    return [{ kind: 'sequence', object, sql: `ALTER SEQUENCE ${sequence} AS ${column.type}` }];
  });
}
