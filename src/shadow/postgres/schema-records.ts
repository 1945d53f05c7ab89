/** What the destination was built from: fingerprints, the plan, the format, columns that were added since. */
import type { CatalogFingerprint, Side } from '../../core/ports.js';
import type { Format } from '../../core/format-ports.js';
import { UnderstudyError } from '../../core/errors.js';
import { isIdentity } from '../format/forms.js';
import { run, textOf, type Session, type TextRow } from './statement.js';
import type { AddedColumn, BuiltPlan } from './schema/evolve.js';

export async function writeFingerprint(
  session: Session,
  side: Side,
  fingerprint: CatalogFingerprint,
): Promise<void> {
  await run(
    session,
    {
      text: `INSERT INTO understudy.fingerprint (side, objects) VALUES ($1, $2)
        ON CONFLICT (side) DO UPDATE SET objects = EXCLUDED.objects, taken_at = pg_catalog.now()`,
      values: [side, JSON.stringify(fingerprint)],
    },
    { what: 'recording a fingerprint' },
  );
}

export async function readFingerprintRecord(
  session: Session,
  side: Side,
): Promise<CatalogFingerprint | null> {
  const { rows } = await run(
    session,
    { text: 'SELECT objects FROM understudy.fingerprint WHERE side = $1', values: [side] },
    { what: 'reading a fingerprint' },
  );
  const row: TextRow | undefined = rows[0];
  return row === undefined ? null : (JSON.parse(textOf(row, 'objects')) as CatalogFingerprint);
}

/** What the destination was last brought to, as a plan of the source. */
export async function writeSourcePlan(session: Session, plan: BuiltPlan): Promise<void> {
  await writePlan(session, 'source_plan', plan);
}

/** What the source was last brought to, or is equal to, as a plan of the destination. */
export async function writeDestinationPlan(session: Session, plan: BuiltPlan): Promise<void> {
  await writePlan(session, 'destination_plan', plan);
}

async function writePlan(
  session: Session,
  table: 'source_plan' | 'destination_plan',
  { beforeCopy, afterCopy }: BuiltPlan,
): Promise<void> {
  await run(
    session,
    {
      text: `INSERT INTO understudy.${table} (statements) VALUES ($1)
        ON CONFLICT (one) DO UPDATE SET statements = EXCLUDED.statements`,
      values: [JSON.stringify({ beforeCopy, afterCopy })],
    },
    { what: 'recording the schema' },
  );
}

/** Null where it was built by a version that did not record it. */
export async function readSourcePlan(session: Session): Promise<BuiltPlan | null> {
  return await readPlan(session, 'source_plan');
}

/** Null where it was built by a version that did not record it, or in a format. */
export async function readDestinationPlan(session: Session): Promise<BuiltPlan | null> {
  return await readPlan(session, 'destination_plan');
}

async function readPlan(
  session: Session,
  table: 'source_plan' | 'destination_plan',
): Promise<BuiltPlan | null> {
  const { rows } = await run(session, `SELECT statements FROM understudy.${table}`, {
    what: 'reading the recorded schema',
  });
  return rows[0] === undefined ? null : (JSON.parse(textOf(rows[0], 'statements')) as BuiltPlan);
}

/** The format that the destination is built in. */
export async function writeFormat(session: Session, format: Format | undefined): Promise<void> {
  await run(
    session,
    {
      text: `INSERT INTO understudy.format (format) VALUES ($1) ON CONFLICT (one) DO UPDATE SET format = EXCLUDED.format`,
      values: [formatText(format)],
    },
    { what: 'recording the format' },
  );
}

/** Throws `format-refused` where the destination was built in another format than `format`. */
export async function assertFormat(session: Session, format: Format | undefined): Promise<void> {
  const { rows } = await run(session, 'SELECT format FROM understudy.format', { what: 'reading the format' });
  // One built before formats were recorded has none.
  if ((rows[0]?.['format'] ?? formatText(undefined)) === formatText(format)) return;
  throw new UnderstudyError(
    'format-refused',
    'the destination was built in another format than shadow.format',
    {
      advice:
        'Put shadow.format back as it was; or run `understudy remove`, empty the destination, and start again.',
    },
  );
}

/** One text for one format, whatever the order in which it was written. */
function formatText(format: Format | undefined): string {
  const ordered = (value: unknown): unknown =>
    typeof value === 'object' && value !== null
      ? Object.fromEntries(
          Object.entries(value)
            .filter(([, child]) => child !== undefined)
            .sort(([a], [b]) => (a < b ? -1 : 1))
            .map(([name, child]) => [name, ordered(child)]),
        )
      : value;
  return JSON.stringify(ordered(isIdentity(format) ? {} : format));
}

/** `column.table` and `column.column` are quoted; the table must have the column. */
export async function recordAddedColumn(session: Session, column: AddedColumn): Promise<void> {
  await run(
    session,
    {
      text: `INSERT INTO understudy.added_column (schema_name, table_name, column_name, missing)
        SELECT n.nspname, c.relname, a.attname, $3
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
        WHERE c.oid = $1::pg_catalog.regclass AND pg_catalog.quote_ident(a.attname) = $2
        ON CONFLICT (schema_name, table_name, column_name) DO UPDATE SET missing = EXCLUDED.missing`,
      values: [column.table, column.column, column.missing],
    },
    { what: 'recording an added column', carriesRows: true },
  );
}

/** What rows from before a column was added hold in it; by `schema.table`, then by column. */
export type AddedColumns = ReadonlyMap<string, ReadonlyMap<string, string | null>>;

export async function readAddedColumns(session: Session): Promise<AddedColumns> {
  const { rows } = await run(
    session,
    'SELECT schema_name, table_name, column_name, missing FROM understudy.added_column',
    { what: 'reading the added columns' },
  );
  const added = new Map<string, Map<string, string | null>>();
  for (const row of rows) {
    const table = `${textOf(row, 'schema_name')}.${textOf(row, 'table_name')}`;
    const columns = added.get(table) ?? new Map<string, string | null>();
    columns.set(textOf(row, 'column_name'), row['missing'] ?? null);
    added.set(table, columns);
  }
  return added;
}
