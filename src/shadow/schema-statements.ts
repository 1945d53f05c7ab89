/** What carrying a change of the schema and taking one as it is have in common, in either direction. */
import { UnderstudyError } from '../core/errors.js';
import type { Side } from '../core/ports.js';
import { quoteTable } from '../core/postgres.js';
import { failure, hashOf } from './postgres/schema/build.js';
import type { SchemaStatement } from './postgres/schema/plan.js';
import { run, sqlStateOf, type Session } from './postgres/statement.js';
import { tableKey, type TableInfo } from './postgres/table.js';

/** Ends a transaction that waits for the lock of somebody who waits for us. */
const LOCK_STATES = new Set(['55P03', '40P01']);

/** `names`: quoted as the server would, or not at all. */
export function isAmong(names: readonly string[], table: TableInfo): boolean {
  const plain = (name: string): string => name.replaceAll('"', '');
  const wanted = plain(quoteTable(table));
  return names.some((name) => plain(name) === wanted);
}

export async function runOne(session: Session, statement: SchemaStatement): Promise<void> {
  try {
    await session.client.query(statement.sql);
  } catch (error) {
    if (LOCK_STATES.has(sqlStateOf(error) ?? '')) throw error;
    throw failure(statement, error);
  }
}

export function tableToCopy(tables: readonly TableInfo[], name: string): TableInfo {
  const table = tables.find((one) => tableKey(one) === name);
  if (table !== undefined && table.kind !== 'partitioned') return table;
  throw new UnderstudyError('request-invalid', `${name} is no table of the shadow that holds rows`, {
    advice: 'Give it as schema.table; of a partitioned table, its partitions.',
  });
}

/** duplicate_table, _column, _object, _function, _schema, invalid_table_definition (a second primary key). */
export const THERE_STATES: readonly string[] = ['42P07', '42701', '42710', '42723', '42P06', '42P16'];
/** And what is gone already: undefined_table, _column, _object, _function. */
export const DONE_STATES: readonly string[] = [...THERE_STATES, '42P01', '42703', '42704', '42883'];

/** In the caller's transaction; one that meets any of `done` has nothing left to do. Throws as {@link runOne}. */
export async function runUnlessDone(
  session: Session,
  statement: SchemaStatement,
  done: readonly string[] = DONE_STATES,
): Promise<void> {
  await run(session, 'SAVEPOINT statement', { what: 'beginning a statement' });
  try {
    await session.client.query(statement.sql);
  } catch (error) {
    const state = sqlStateOf(error) ?? '';
    if (LOCK_STATES.has(state)) throw error;
    if (!done.includes(state)) throw failure(statement, error);
    await run(session, 'ROLLBACK TO SAVEPOINT statement', { what: 'passing over a statement' });
  }
  await run(session, 'RELEASE SAVEPOINT statement', { what: 'ending a statement' });
}

export async function markDone(destination: Session, statement: SchemaStatement): Promise<void> {
  await run(
    destination,
    {
      name: 'mark_schema_step',
      text: `INSERT INTO understudy.schema_step (hash, ordinal, kind, object) VALUES ($1, 0, $2, $3)
        ON CONFLICT (hash) DO NOTHING`,
      values: [hashOf(statement), statement.kind, statement.object],
    },
    { what: 'recording a step of the schema' },
  );
}

/** `side`: the one that lacks it. Throws `catalog-changed`. */
export function assertTwin(ours: TableInfo, theirs: TableInfo | undefined, side: Side = 'destination'): void {
  const columns = (table: TableInfo): readonly string[] =>
    table.columns.map(({ name, type }) => `${name} ${type}`).sort();
  const differs = theirs === undefined || columns(ours).join('\n') !== columns(theirs).join('\n');
  if (!differs) return;
  const what =
    theirs === undefined
      ? `is missing on the ${side}`
      : `has other columns on the ${side}: ${columns(ours)
          .filter((column) => !columns(theirs).includes(column))
          .concat(columns(theirs).filter((column) => !columns(ours).includes(column)))
          .slice(0, 5)
          .join(', ')}`;
  throw new UnderstudyError('catalog-changed', `${tableKey(ours)} ${what}`, {
    advice: `Make the same change on the ${side} first, then run \`understudy resume\` again.`,
  });
}
