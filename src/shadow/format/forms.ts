/**
 * The forms that a format gives to the source's tables: what each table looks like on either side.
 *
 * Both forms of a table have the same columns in the same order; a column whose type differs says in both how its values
 * are converted. A table that the format leaves as it is has one form for both sides: the very object that was given.
 */
import type { Finding, Side, TableName } from '../../core/ports.js';
import type { ColumnTypeFormat, Format, TableFormat } from '../../core/format-ports.js';
import { UnderstudyError } from '../../core/errors.js';
import type { ColumnInfo, TableInfo } from '../postgres/table.js';
import { tableKey } from '../postgres/table.js';
import { readApplyTables, withTargets, type ApplyTable } from '../postgres/apply-table.js';
import { run, textOf, type Session } from '../postgres/statement.js';
import { readTables } from '../postgres/tables.js';
import { conversionOf } from './conversion.js';
import { nameFindings, nameOn } from './names.js';
import { leavesOf, partitioningFindings } from './partitioning.js';

export type TableForms = Readonly<Record<Side, TableInfo>>;

/** By `schema.name` on the source. */
export type Forms = ReadonlyMap<string, TableForms>;

export interface FormatOutcome {
  readonly forms: Forms;
  /** What the format asks for and can't be had; a table they are about has its source's form. */
  readonly findings: readonly Finding[];
}

/** Nothing is mapped. */
export function isIdentity(format: Format | undefined): boolean {
  const empty = (map: object | undefined): boolean => Object.keys(map ?? {}).length === 0;
  return (
    empty(format?.schemas) &&
    Object.values(format?.tables ?? {}).every(
      ({ name, columns, types, partitioning }) =>
        name === undefined && empty(columns) && empty(types) && partitioning === undefined,
    )
  );
}

/** `tables` are the source's. Without `named` the destination still has the source's names. */
export function formsOf(
  format: Format | undefined,
  tables: readonly TableInfo[],
  named: boolean,
): FormatOutcome {
  const byName = new Map(tables.map((table) => [tableKey(table), table]));
  const findings: Finding[] = [];
  for (const [name, wanted] of Object.entries(format?.tables ?? {})) {
    const table = byName.get(name);
    if (table === undefined) {
      findings.push(
        finding(
          name,
          `shadow.format names ${name}, which is no table of the source`,
          'Name tables as schema.table.',
        ),
      );
      continue;
    }
    const [parent] = table.parents ?? [];
    if (parent !== undefined && Object.keys(wanted.types ?? {}).length > 0) {
      findings.push(
        finding(
          name,
          `${name} takes the types of its columns from ${parent}`,
          'Say it of the topmost table.',
        ),
      );
    }
    for (const column of [
      ...Object.keys({ ...wanted.types, ...wanted.columns }),
      ...(wanted.partitioning?.columns ?? []),
    ]) {
      if (table.columns.some((each) => each.name === column)) continue;
      findings.push(
        finding(
          `${name}.${column}`,
          `shadow.format names ${name}.${column}, which is no column of it`,
          `Its columns are ${table.columns.map((each) => each.name).join(', ')}.`,
        ),
      );
    }
  }
  const forms = new Map<string, TableForms>();
  for (const table of tables) {
    const wanted = wantedOf(format, table, byName);
    const typed = withPartitions(formsOfTable(table, wanted, findings), format);
    forms.set(tableKey(table), named ? withNames(typed, wanted, nameOn(format, table)) : typed);
    const { partitioning } = format?.tables?.[tableKey(table)] ?? {};
    if (partitioning === undefined) continue;
    const renamed =
      tableKey(nameOn(format, table)) !== tableKey(table) ||
      format?.tables?.[tableKey(table)]?.columns !== undefined;
    findings.push(...partitioningFindings(table, partitioning, { tables, renamed }));
  }
  findings.push(...nameFindings(format, tables));
  return { forms, findings: [...new Map(findings.map((each) => [each.object, each])).values()] };
}

/** The last forms of a list of tables; asked for with every comparison. */
const known = new WeakMap<
  readonly TableInfo[],
  { readonly format: Format | undefined; readonly named: boolean; readonly forms: Forms }
>();

/** As {@link formsOf}; throws `format-refused` where something can't be had. */
export function requiredForms(
  format: Format | undefined,
  tables: readonly TableInfo[],
  named: boolean,
): Forms {
  const last = known.get(tables);
  if (last !== undefined && last.format === format && last.named === named) return last.forms;
  const { forms, findings } = formsOf(format, tables, named);
  const [first] = findings;
  if (first === undefined) {
    known.set(tables, { format, named, forms });
    return forms;
  }
  throw new UnderstudyError('format-refused', first.message, {
    advice: first.advice,
    details: { findings: findings.slice(0, 20) },
  });
}

/** Whether the source has all that the format names. */
export async function isFormed(source: Session, format: Format | undefined): Promise<boolean> {
  return isIdentity(format) || formsOf(format, await readTables(source.client), true).findings.length === 0;
}

/** The table's form on `side`; the table itself where the format does not know it. */
export function formOn(forms: Forms, table: TableInfo, side: Side): TableInfo {
  return forms.get(tableKey(table))?.[side] ?? table;
}

/**
 * The tables of one side, as that side's lane reads them, by that side's names; the form on the other side is their
 * target. Whichever the side, a table calls itself by the source's name.
 */
export async function readLaneTables(
  origin: Session,
  forms: Forms,
  from: Side,
  to: Side,
): Promise<ReadonlyMap<string, ApplyTable>> {
  const tables = await readApplyTables(
    origin,
    [...forms.values()].map((each) => each[from]),
  );
  const targets = withTargets(
    tables,
    new Map([...forms.values()].map((each) => [tableKey(each[from]), each[to]])),
  );
  const names = new Map([...forms].map(([name, each]) => [tableKey(each[from]), name]));
  const named = new Map(
    [...targets].map(([key, table]) => [key, { ...table, name: names.get(key) ?? table.name }]),
  );
  if (from === 'source') return named;
  for (const [key, table] of named) {
    if (table.info.partitions === undefined) continue;
    const leaves = await readLeaves(origin, table);
    const rooted = { ...table, leaves };
    for (const name of [key, ...leaves.keys()]) named.set(name, rooted);
  }
  return named;
}

/** The partitions that the root has now, by `schema.name`, with what a row must be to be in each. */
async function readLeaves(session: Session, table: ApplyTable): Promise<ReadonlyMap<string, string | null>> {
  const { rows } = await run(
    session,
    {
      text: `SELECT n.nspname || '.' || c.relname AS name,
          CASE WHEN p.partstrat <> 'h' THEN pg_catalog.pg_get_partition_constraintdef(c.oid) END AS condition
        FROM pg_catalog.pg_partition_tree($1::text::pg_catalog.regclass) t JOIN pg_catalog.pg_class c ON c.oid = t.relid
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_catalog.pg_partitioned_table p ON p.partrelid = t.parentrelid
        WHERE t.isleaf`,
      values: [table.sql],
    },
    { what: `reading the partitions of ${table.name}` },
  );
  // Where a column is another type on the source, the condition may mean other rows there.
  const exact = table.columns.every(
    ({ converted }) => converted === undefined || converted.conversion.sameText,
  );
  return new Map(rows.map((row) => [textOf(row, 'name'), exact ? (row['condition'] ?? null) : null]));
}

function withPartitions(forms: TableForms, format: Format | undefined): TableForms {
  const { partitioning } = format?.tables?.[tableKey(forms.source)] ?? {};
  if (partitioning === undefined) return forms;
  const partitions = leavesOf(forms.source, partitioning).map(({ schema, name }) => ({ schema, name }));
  return { ...forms, destination: { ...forms.destination, kind: 'partitioned', partitions } };
}

/** What is said of the table itself wins over what is said of those above it. */
function wantedOf(
  format: Format | undefined,
  table: TableInfo,
  byName: ReadonlyMap<string, TableInfo>,
): TableFormat {
  const types: Record<string, ColumnTypeFormat> = {};
  const columns: Record<string, string> = {};
  const seen = new Set<string>();
  const visit = (name: string): void => {
    const at = byName.get(name);
    if (at === undefined || seen.has(name)) return;
    seen.add(name);
    for (const parent of at.parents ?? []) visit(parent);
    Object.assign(types, format?.tables?.[name]?.types);
    Object.assign(columns, format?.tables?.[name]?.columns);
  };
  visit(tableKey(table));
  return { types, columns };
}

/** The destination's form by its own names. The key's columns keep their order. */
function withNames({ source, destination }: TableForms, wanted: TableFormat, name: TableName): TableForms {
  const renamed = (column: string): string => wanted.columns?.[column] ?? column;
  const same =
    name.schema === source.schema &&
    name.name === source.name &&
    source.columns.every((column) => renamed(column.name) === column.name);
  if (same) return { source, destination };
  return {
    source,
    destination: {
      ...destination,
      ...name,
      columns: destination.columns.map((column) => ({ ...column, name: renamed(column.name) })),
      key: destination.key?.map((column) => renamed(column)) ?? null,
    },
  };
}

function formsOfTable(table: TableInfo, { types = {} }: TableFormat, findings: Finding[]): TableForms {
  const source: ColumnInfo[] = [];
  const destination: ColumnInfo[] = [];
  let mapped = false;
  for (const column of table.columns) {
    const wanted = types[column.name];
    const forms = wanted === undefined ? null : columnForms(table, column, wanted, findings);
    if (forms !== null) mapped = true;
    source.push(forms?.source ?? column);
    destination.push(forms?.destination ?? column);
  }
  if (!mapped) return { source: table, destination: table };
  return { source: { ...table, columns: source }, destination: { ...table, columns: destination } };
}

function columnForms(
  table: TableInfo,
  column: ColumnInfo,
  wanted: ColumnTypeFormat,
  findings: Finding[],
): Readonly<Record<Side, ColumnInfo>> | null {
  const name = `${tableKey(table)}.${column.name}`;
  const outcome = conversionOf(column.type, wanted);
  if (outcome.kind === 'same') return null;
  if (outcome.kind === 'refused') {
    findings.push(finding(name, `${name}: ${outcome.reason}`, outcome.advice));
    return null;
  }
  const { conversion } = outcome;
  if (table.key?.includes(column.name) === true && !conversion.sameText) {
    findings.push(
      finding(
        name,
        `${name}: ${column.type} to ${conversion.destinationType} changes how a key is written, by which rows are found on either side`,
        'Leave the columns of the primary key or replica identity as they are, or map them to a wider integer, text or varchar.',
      ),
    );
    return null;
  }
  const form = (side: Side, type: string): ColumnInfo => ({
    ...column,
    type,
    typeKind: 'b',
    collatable: side === 'source' ? column.collatable : /^(text|character)/.test(type),
    converted: { side, conversion },
  });
  return {
    source: form('source', column.type),
    destination: form('destination', conversion.destinationType),
  };
}

function finding(object: string, message: string, advice: string): Finding {
  return { severity: 'blocker', check: 'format-refused', side: 'source', object, message, advice };
}
