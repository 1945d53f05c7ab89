/**
 * Sees, from what the server counts for everybody to read, that something happened to a table: rows deleted, the file
 * exchanged (TRUNCATE, a rewrite), rows written at all. The counters come late, may be lost in a crash, and count what
 * was rolled back too: they only decide what is compared sooner.
 */
import { run, textOf, type Session } from '../postgres/statement.js';

export interface TableActivity {
  readonly file: string;
  readonly written: bigint;
  readonly deleted: bigint;
}

const ACTIVITY_SQL = `
SELECT n.nspname AS schema, c.relname AS name, c.relfilenode AS file,
  pg_catalog.pg_stat_get_tuples_inserted(c.oid) + pg_catalog.pg_stat_get_tuples_updated(c.oid)
    + pg_catalog.pg_stat_get_tuples_deleted(c.oid) AS written,
  pg_catalog.pg_stat_get_tuples_deleted(c.oid) AS deleted
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'`;

/** By `schema.name`. */
export async function readActivity(source: Session): Promise<ReadonlyMap<string, TableActivity>> {
  const { rows } = await run(source, ACTIVITY_SQL, { what: 'reading the tables’ counters' });
  return new Map(
    rows.map((row) => [
      `${textOf(row, 'schema')}.${textOf(row, 'name')}`,
      {
        file: textOf(row, 'file'),
        written: BigInt(row['written'] ?? '0'),
        deleted: BigInt(row['deleted'] ?? '0'),
      },
    ]),
  );
}
