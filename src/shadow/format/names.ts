/** The names that a format gives, and what stands against them: pure. */
import type { Finding, TableName } from '../../core/ports.js';
import type { Format } from '../../core/format-ports.js';
import { tableKey, type TableInfo } from '../postgres/table.js';

/** Bytes of a name, at most; the server cuts off what is longer. */
const NAME_BYTES_MAX = 63;

/** The name of the source's `table` on the destination. */
export function nameOn(format: Format | undefined, table: TableName): TableName {
  const schema = format?.schemas?.[table.schema] ?? table.schema;
  const name = format?.tables?.[tableKey(table)]?.name;
  if (name === undefined) return { schema, name: table.name };
  const dot = name.indexOf('.');
  return dot === -1 ? { schema, name } : { schema: name.slice(0, dot), name: name.slice(dot + 1) };
}

/** Whether some table or column has another name there. */
export function hasNames(format: Format | undefined): boolean {
  return (
    Object.keys(format?.schemas ?? {}).length > 0 ||
    Object.values(format?.tables ?? {}).some(
      ({ name, columns }) => name !== undefined || Object.keys(columns ?? {}).length > 0,
    )
  );
}

/** What of the names can't be had. `tables` are the source's. */
export function nameFindings(format: Format | undefined, tables: readonly TableInfo[]): readonly Finding[] {
  const findings: Finding[] = [];
  const refuse = (object: string, message: string, advice: string): void =>
    void findings.push({
      severity: 'blocker',
      check: 'format-refused',
      side: 'source',
      object,
      message,
      advice,
    });
  for (const schema of Object.keys(format?.schemas ?? {})) {
    if (tables.some((table) => table.schema === schema)) continue;
    refuse(
      schema,
      `shadow.format names schema ${schema}, in which the source has no table`,
      'Name a schema of tables.',
    );
  }
  const taken = new Map(tables.map((table) => [tableKey(table), tableKey(table)]));
  for (const table of tables) {
    const name = nameOn(format, table);
    const key = tableKey(table);
    const there = tableKey(name);
    if (there !== key) {
      const other = taken.get(there);
      if (other !== undefined) {
        refuse(key, `${key} would be ${there}, and so is ${other}`, 'Give each table a name of its own.');
      }
      taken.set(there, key);
      if (/^pg_|^information_schema$|^understudy$/.test(name.schema))
        refuse(
          key,
          `${key} would be in ${name.schema}, which is not an application’s`,
          'Take another schema.',
        );
    }
    for (const part of [name.schema, name.name, ...newColumns(format, table)]) {
      if (part === '' || Buffer.byteLength(part) > NAME_BYTES_MAX)
        refuse(
          key,
          `${key}: “${part}” is no name: it has 1 to ${NAME_BYTES_MAX} bytes`,
          'Take another name.',
        );
    }
    columnFindings(format, table, there !== key, refuse);
  }
  return findings;
}

function newColumns(format: Format | undefined, table: TableInfo): readonly string[] {
  return Object.values(format?.tables?.[tableKey(table)]?.columns ?? {});
}

function columnFindings(
  format: Format | undefined,
  table: TableInfo,
  renamed: boolean,
  refuse: (object: string, message: string, advice: string) => void,
): void {
  const key = tableKey(table);
  const names = newColumns(format, table);
  if (names.length === 0) return;
  if ((table.parents ?? []).length > 0) {
    refuse(
      key,
      `${key} takes the names of its columns from ${table.parents?.[0] ?? ''}`,
      'Say it of the topmost table.',
    );
  }
  const existing = table.columns.map(({ name }) => name);
  const clash = names.find((name, index) => existing.includes(name) || names.indexOf(name) !== index);
  if (clash !== undefined) {
    refuse(key, `${key} has, or would have twice, a column ${clash}`, 'Give each column a name of its own.');
  }
  if (!renamed && format?.compatibility !== 'none') {
    refuse(
      key,
      `${key} keeps its name, so no view with the old columns can stand beside it`,
      'Rename the table or move it to another schema too, or say `compatibility: none` where the application knows the new columns.',
    );
  }
}
