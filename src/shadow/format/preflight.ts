/** What stands against the format that is asked for, and what it changes for the application. */
import type pg from 'pg';
import type { Finding, ShadowMethod } from '../../core/ports.js';
import type { Format } from '../../core/format-ports.js';
import { readVersionNum, rowsOf, userSchema } from '../postgres/schema/catalog.js';
import { tableKey } from '../postgres/table.js';
import { readTables } from '../postgres/tables.js';
import { formsOf, isIdentity } from './forms.js';
import { hasNames, nameOn } from './names.js';
import { readNamed, VIEWS_SINCE } from './naming.js';
import { inspectPartitioning } from './partitioning.js';

export interface FormatPreflightSettings {
  /** The format that the destination is to have. */
  readonly format?: Format | undefined;
  /** How the shadow is to learn of changes. Default `log`. */
  readonly method?: ShadowMethod | 'auto';
}

const ZONES_SQL = 'SELECT name FROM pg_catalog.pg_timezone_names';

interface ForeignKeyRow extends pg.QueryResultRow {
  readonly name: string;
  readonly table: string;
  readonly column: string;
  readonly other_table: string;
  readonly other_column: string;
}

const FOREIGN_KEYS_SQL = `
SELECT k.conname AS name, n.nspname || '.' || t.relname AS table, a.attname AS column,
  fn.nspname || '.' || f.relname AS other_table, fa.attname AS other_column
FROM pg_catalog.pg_constraint k
CROSS JOIN LATERAL unnest(k.conkey, k.confkey) AS c(mine, theirs)
JOIN pg_catalog.pg_class t ON t.oid = k.conrelid JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
JOIN pg_catalog.pg_class f ON f.oid = k.confrelid JOIN pg_catalog.pg_namespace fn ON fn.oid = f.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid AND a.attnum = c.mine
JOIN pg_catalog.pg_attribute fa ON fa.attrelid = f.oid AND fa.attnum = c.theirs
WHERE k.contype = 'f' AND k.conparentid = 0`;

/** Findings about `settings.format`, for the source alone; none where nothing is mapped. */
export async function inspectFormat(
  source: pg.Client,
  { format, method }: FormatPreflightSettings,
): Promise<readonly Finding[]> {
  if (isIdentity(format)) return [];
  const tables = await readTables(source);
  const { forms, findings } = formsOf(format, tables, true);
  const result = [...findings, ...(await inspectPartitioning(source, tables, format))];
  const blocker = (object: string, message: string, advice: string): void =>
    void result.push({
      severity: 'blocker',
      check: 'format-refused',
      side: 'source',
      object,
      message,
      advice,
    });
  if (method === 'mirror' || method === 'poll') {
    blocker(
      'shadow.format',
      `A format is kept only by following the log, not by ${method}.`,
      'Set shadow.method to log, or take shadow.format out.',
    );
  }
  await inspectZones(source, format, blocker);
  const changed = new Map<string, string>();
  for (const { source: table, destination } of forms.values()) {
    for (const [index, column] of table.columns.entries()) {
      const type = destination.columns[index]?.type ?? column.type;
      if (column.converted === undefined) continue;
      changed.set(`${tableKey(table)}.${column.name}`, type);
      result.push(mappedFinding(`${tableKey(table)}.${column.name}`, column.type, type));
      const { zone, losesBlanks } = column.converted.conversion;
      if (losesBlanks === true) result.push(blanksFinding(`${tableKey(table)}.${column.name}`, type));
      if (zone !== undefined) result.push(zoneFinding(`${tableKey(table)}.${column.name}`, zone));
    }
  }
  return [...result, ...(await inspectForeignKeys(source, changed))];
}

/** What the destination has that stands against the names. */
export async function inspectNames(
  source: pg.Client,
  destination: pg.Client,
  format: Format | undefined,
): Promise<readonly Finding[]> {
  if (!hasNames(format) || (await readNamed({ side: 'destination', client: destination }))) return [];
  const findings: Finding[] = [];
  const blocker = (object: string, message: string, advice: string): void =>
    void findings.push({
      severity: 'blocker',
      check: 'format-refused',
      side: 'destination',
      object,
      message,
      advice,
    });
  if (format?.compatibility !== 'none' && (await readVersionNum(destination)) < VIEWS_SINCE) {
    blocker(
      'shadow.format.compatibility',
      'Views under the old names that ask the privileges of whoever uses them want a destination of PostgreSQL 15.',
      'Take a later destination, or say `compatibility: none` where the application knows the new names.',
    );
  }
  const rows = await rowsOf<{ name: string }>(
    destination,
    'the relations',
    `SELECT n.nspname || '.' || c.relname AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE ${userSchema('n')}`,
  );
  const there = new Set(rows.map(({ name }) => name));
  for (const table of await readTables(source)) {
    const name = tableKey(nameOn(format, table));
    if (name === tableKey(table) || !there.has(name)) continue;
    blocker(
      name,
      `${tableKey(table)} is to be ${name}, which the destination has already.`,
      `Drop ${name} there, or take another name.`,
    );
  }
  return findings;
}

/** Types whose binary form is that of the type they came from. */
const SAME_BINARY = /^(text|character varying|timestamp)/;

function mappedFinding(object: string, from: string, to: string): Finding {
  const seen = `${object} is ${from} on the source and will be ${to}: after a switch clients are told the new type, and drivers may hand out another kind of value.`;
  if (SAME_BINARY.test(to)) {
    return {
      severity: 'info',
      check: 'format-mapped',
      side: 'destination',
      object,
      message: seen,
      advice: 'Look at what the application does with it; docs/format.md says what changes.',
    };
  }
  return {
    severity: 'warning',
    check: 'format-mapped',
    side: 'destination',
    object,
    message: `${seen} A client that has prepared a statement before the switch and exchanges the column in PostgreSQL’s binary format still takes it for ${from}.`,
    advice:
      'Let clients that use the binary format connect anew right after the switch, or use the text format; docs/format.md says more.',
  };
}

function blanksFinding(object: string, type: string): Finding {
  return {
    severity: 'warning',
    check: 'format-blanks',
    side: 'destination',
    object,
    message: `${object}: blanks at the end of a text count as ${type}, and are padding on the source: a text written after a switch that ends in blanks comes back without them.`,
    advice: 'Let the application write no blanks at the end, or leave the column as it is.',
  };
}

/** The application's texts name no zone: what the source took as it was is read by the session's clock there. */
function zoneFinding(object: string, zone: string): Finding {
  return {
    severity: 'warning',
    check: 'format-time-zone',
    side: 'destination',
    object,
    message: `${object}: after a switch a time that is written without a zone is read by the clock of the session’s TimeZone, and shown by it. That is the same moment only where it is ${zone}.`,
    advice: `Let every client’s sessions run with TimeZone ${zone}, e.g. by ALTER DATABASE … SET timezone = '${zone}'; on both sides.`,
  };
}

async function inspectZones(
  source: pg.Client,
  format: Format | undefined,
  blocker: (object: string, message: string, advice: string) => void,
): Promise<void> {
  const wanted = Object.entries(format?.tables ?? {}).flatMap(([table, { types }]) =>
    Object.entries(types ?? {}).flatMap(([column, { zone }]) =>
      zone === undefined ? [] : [{ object: `${table}.${column}`, zone }],
    ),
  );
  if (wanted.length === 0) return;
  const rows = await rowsOf<{ name: string }>(source, 'the time zones', ZONES_SQL);
  const names = new Set(rows.map(({ name }) => name.toLowerCase()));
  for (const { object, zone } of wanted) {
    if (names.has(zone.toLowerCase())) continue;
    blocker(
      object,
      `The source knows no time zone ${zone}.`,
      'Take a name from pg_timezone_names, such as UTC.',
    );
  }
}

/** Both ends of a foreign key had one type; a join between two is slower, and a wider key can't be referred to. */
async function inspectForeignKeys(
  source: pg.Client,
  changed: ReadonlyMap<string, string>,
): Promise<readonly Finding[]> {
  const rows = await rowsOf<ForeignKeyRow>(source, 'the foreign keys', FOREIGN_KEYS_SQL);
  return rows.flatMap((row): readonly Finding[] => {
    const mine = `${row.table}.${row.column}`;
    const theirs = `${row.other_table}.${row.other_column}`;
    if (changed.get(mine) === changed.get(theirs)) return [];
    const [mapped, other] = changed.has(mine) ? [mine, theirs] : [theirs, mine];
    return [
      {
        severity: 'warning',
        check: 'format-foreign-key',
        side: 'source',
        object: `constraint ${row.name} on ${row.table}`,
        message: `${mapped} will be ${changed.get(mapped) ?? ''}, and ${other}, at the other end of foreign key ${row.name}, keeps its type.`,
        advice: `Map ${other} to ${changed.get(mapped) ?? ''} too.`,
      },
    ];
  });
}
