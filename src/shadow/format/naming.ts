/**
 * Gives the destination's tables their names, and takes them back.
 *
 * Until everything is built the destination has the source's names, as all that the source's server prints names its
 * objects by them; then they are renamed in one transaction while nothing is applied. PostgreSQL keeps what depends on a
 * table by its identity: keys, indexes, views and triggers follow. When the source's schema has changed, the names are
 * taken back in the transaction that carries the change over, and given again after it.
 *
 * Under a table's old name stands a view of it, by which statements that know the old names read and write: it is so
 * simple that the server writes through it. It asks the table's own privileges and row security of whoever uses it.
 */
import type { TableName } from '../../core/ports.js';
import type { Format } from '../../core/format-ports.js';
import { WHOLE_DATABASE } from '../../core/ports.js';
import { emitMessageSql, quoteIdent, quoteLiteral, quoteTable } from '../../core/postgres.js';
import { inTransaction, run, textOf, type Session } from '../postgres/statement.js';
import type { TableInfo } from '../postgres/table.js';
import { requiredForms } from './forms.js';
import { hasNames } from './names.js';

/** `security_invoker`, without which a view would lend its owner's privileges. */
export const VIEWS_SINCE = 150000;

interface Renamed {
  readonly source: TableInfo;
  readonly destination: TableInfo;
}

/** Whether the destination has the format's names now. */
export async function readNamed(destination: Session): Promise<boolean> {
  const { rows } = await run(
    destination,
    `SELECT pg_catalog.to_regclass('understudy.format') IS NOT NULL AS found`,
    { what: 'looking for the format' },
  );
  if (rows[0]?.['found'] !== 't') return false;
  const named = await run(destination, 'SELECT named FROM understudy.format', { what: 'reading the format' });
  return named.rows[0]?.['named'] === 't';
}

function renamedTables(format: Format | undefined, tables: readonly TableInfo[]): readonly Renamed[] {
  return [...requiredForms(format, tables, true).values()].filter(
    ({ source, destination }) =>
      source.schema !== destination.schema ||
      source.name !== destination.name ||
      source.columns.some(({ name }, index) => destination.columns[index]?.name !== name),
  );
}

/** Gives the names, in a transaction of its own. `tables` are the source's. Idempotent. */
export async function giveNames(
  destination: Session,
  format: Format | undefined,
  tables: readonly TableInfo[],
): Promise<void> {
  if (!hasNames(format) || (await readNamed(destination))) return;
  const renamed = renamedTables(format, tables);
  const statements = [
    ...(await newSchemas(destination, renamed)),
    ...renamed.flatMap((each) => columnRenames(each, 'give')),
    ...renamed.flatMap((each) => tableRenames(each.source, each.destination)),
    ...(format?.compatibility === 'none' ? [] : renamed.flatMap(viewStatements)),
    ...renamed.flatMap(({ source, destination: there }) => recordRenames(source, there)),
    'UPDATE understudy.format SET named = true',
  ];
  const what = 'naming the tables';
  await inTransaction(destination, what, async () => {
    await run(destination, emitMessageSql({ t: 'apply', lane: WHOLE_DATABASE, epoch: 0 }), { what });
    for (const statement of statements) await run(destination, statement, { what });
  });
}

/** Takes the names back, inside the caller's transaction; as {@link giveNames}. The tables may be more than were named. */
export async function takeNames(
  destination: Session,
  format: Format | undefined,
  tables: readonly TableInfo[],
): Promise<void> {
  if (!hasNames(format) || !(await readNamed(destination))) return;
  const { rows } = await run(
    destination,
    `SELECT n.nspname AS schema, c.relname AS name FROM pg_catalog.pg_class c
     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p')`,
    { what: 'reading the tables' },
  );
  const there = new Set(rows.map((row) => `${textOf(row, 'schema')}.${textOf(row, 'name')}`));
  const renamed = renamedTables(format, tables).filter(({ destination: { schema, name } }) =>
    there.has(`${schema}.${name}`),
  );
  const statements = [
    ...(format?.compatibility === 'none'
      ? []
      : renamed.map(({ source }) => `DROP VIEW IF EXISTS ${quoteTable(source)}`)),
    ...renamed.flatMap((each) => tableRenames(each.destination, each.source)),
    ...renamed.flatMap((each) => columnRenames(each, 'take')),
    ...renamed.flatMap(({ source, destination: named }) => recordRenames(named, source)),
    'UPDATE understudy.format SET named = false',
  ];
  for (const statement of statements) await run(destination, statement, { what: 'taking the names back' });
}

/** Whoever could use the old schema can use the new one: the privileges on the tables are theirs still. */
async function newSchemas(destination: Session, renamed: readonly Renamed[]): Promise<readonly string[]> {
  const moves = new Map<string, Set<string>>();
  for (const { source, destination: there } of renamed) {
    if (source.schema === there.schema) continue;
    moves.set(there.schema, (moves.get(there.schema) ?? new Set()).add(source.schema));
  }
  const statements: string[] = [];
  for (const [schema, from] of moves) {
    statements.push(`CREATE SCHEMA IF NOT EXISTS ${quoteIdent(schema)}`);
    const { rows } = await run(
      destination,
      {
        text: `SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END AS grantee
          FROM pg_catalog.pg_namespace n
          CROSS JOIN LATERAL pg_catalog.aclexplode(COALESCE(n.nspacl, pg_catalog.acldefault('n', n.nspowner))) AS a
          WHERE n.nspname = ANY ($1::text[]) AND a.privilege_type = 'USAGE' ORDER BY 1`,
        values: [[...from]],
      },
      { what: 'reading the privileges of schemas' },
    );
    for (const row of rows) {
      statements.push(`GRANT USAGE ON SCHEMA ${quoteIdent(schema)} TO ${textOf(row, 'grantee')}`);
    }
  }
  return statements;
}

/** A column goes to children and partitions with its parent's. */
function columnRenames({ source, destination }: Renamed, what: 'give' | 'take'): readonly string[] {
  if ((source.parents ?? []).length > 0) return [];
  return source.columns.flatMap(({ name }, index) => {
    const there = destination.columns[index]?.name ?? name;
    if (there === name) return [];
    const [from, to] = what === 'give' ? [name, there] : [there, name];
    return [`ALTER TABLE ${quoteTable(source)} RENAME COLUMN ${quoteIdent(from)} TO ${quoteIdent(to)}`];
  });
}

/** On its way to another schema a table bears a name of its own: its old or its new one may be taken in either. */
function tableRenames(from: TableInfo, to: TableInfo): readonly string[] {
  const rename = (table: TableName, name: string): string =>
    `ALTER TABLE ${quoteTable(table)} RENAME TO ${quoteIdent(name)}`;
  if (from.schema === to.schema) return from.name === to.name ? [] : [rename(from, to.name)];
  const name = 'understudy_moving';
  return [
    rename(from, name),
    `ALTER TABLE ${quoteTable({ schema: from.schema, name })} SET SCHEMA ${quoteIdent(to.schema)}`,
    rename({ schema: to.schema, name }, to.name),
  ];
}

function viewStatements({ source, destination }: Renamed): readonly string[] {
  if (source.schema === destination.schema && source.name === destination.name) return [];
  const columns = source.columns.map(({ name }, index) => {
    const there = destination.columns[index]?.name ?? name;
    return there === name ? quoteIdent(name) : `${quoteIdent(there)} AS ${quoteIdent(name)}`;
  });
  const view = quoteTable(source);
  const table = `${destination.schema}.${destination.name}`;
  return [
    `CREATE VIEW ${view} WITH (security_invoker = true) AS SELECT ${columns.join(', ')} FROM ${quoteTable(destination)}`,
    `GRANT SELECT, INSERT, UPDATE, DELETE ON ${view} TO PUBLIC`,
    `COMMENT ON VIEW ${view} IS ${quoteLiteral(`Understudy: the old name of ${table}`)}`,
  ];
}

/** What is recorded on the destination by a table's name, to be undone or done later. */
function recordRenames(from: TableInfo, to: TableInfo): readonly string[] {
  const [schema, name] = [quoteLiteral(to.schema), quoteLiteral(to.name)];
  const where = `schema_name = ${quoteLiteral(from.schema)} AND table_name = ${quoteLiteral(from.name)}`;
  const quoted = (table: TableInfo): string =>
    `pg_catalog.format('%I.%I', ${quoteLiteral(table.schema)}, ${quoteLiteral(table.name)})`;
  const replaced = (column: string): string =>
    `${column} = pg_catalog.replace(${column}, ${quoted(from)}, ${quoted(to)})`;
  return [
    `UPDATE understudy.identity_change SET schema_name = ${schema}, table_name = ${name} WHERE ${where}`,
    `UPDATE understudy.deferred_trigger SET schema_name = ${schema}, table_name = ${name},
       ${replaced('enable_sql')}, ${replaced('disable_sql')} WHERE ${where}`,
  ];
}
