/**
 * Sees, from what the server counts for everybody to read, that something happened to a table: rows deleted, the file
 * exchanged (TRUNCATE, a rewrite), rows written at all. The counters come late, may be lost in a crash, and count what
 * was rolled back too: they only decide what is compared sooner.
 *
 * State, over all of a follower's connections: what was last counted of each table, and when it was last hinted at. A
 * table that is seen for the first time is suspected of nothing: it is compared then in any case.
 */
import type { ApplyTable } from '../postgres/apply-table.js';
import { run, textOf, type Session } from '../postgres/statement.js';
import type { ChangeHints } from './hints.js';

interface TableActivity {
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

const ACTIVITY_POLL_MS = 500;
/** A table that is hinted at may be counted as written a little later. */
const COUNTED_WITHIN_MS = 5000;

export class TableWatch {
  readonly #tables: ReadonlyMap<string, ApplyTable>;
  readonly #hints: Pick<ChangeHints, 'method' | 'look'>;
  readonly #activity = new Map<ApplyTable, TableActivity>();
  readonly #hintedAtMs = new Map<ApplyTable, number>();
  #dueMs = 0;

  /** `tables` by `schema.name`. */
  constructor(tables: ReadonlyMap<string, ApplyTable>, hints: Pick<ChangeHints, 'method' | 'look'>) {
    this.#tables = tables;
    this.#hints = hints;
  }

  /** What wrote to the table is known, or looked for, already. */
  hinted(table: ApplyTable, nowMs: number): void {
    this.#hintedAtMs.set(table, nowMs);
  }

  /** Reads the counters, unless that was done just now, and tells which tables are to be compared and why. */
  async look(
    source: Session,
    nowMs: number,
    suspect: (table: ApplyTable, why: string) => void,
  ): Promise<void> {
    if (nowMs < this.#dueMs) return;
    const now = await readActivity(source);
    this.#dueMs = nowMs + ACTIVITY_POLL_MS;
    for (const [name, activity] of now) {
      const table = this.#tables.get(name);
      if (table === undefined) continue;
      const before = this.#activity.get(table);
      this.#activity.set(table, activity);
      if (before === undefined) continue;
      const why = this.#suspicion(table, before, activity, nowMs);
      if (why !== null) suspect(table, why);
    }
  }

  #suspicion(table: ApplyTable, before: TableActivity, now: TableActivity, nowMs: number): string | null {
    if (before.file !== now.file) return 'its file was exchanged: TRUNCATE, or a rewrite';
    const written = before.written !== now.written;
    if (table.key === null) return written ? 'written, and it has no key' : null;
    if (this.#hints.method === 'poll') return before.deleted === now.deleted ? null : 'rows were deleted';
    const hinted = nowMs - (this.#hintedAtMs.get(table) ?? -Infinity) < COUNTED_WITHIN_MS;
    if (!written || hinted) return null;
    this.#hints.look?.(table);
    return before.deleted === now.deleted ? null : 'rows were deleted, and the proxy has not seen by whom';
  }
}

/** By `schema.name`. */
async function readActivity(source: Session): Promise<ReadonlyMap<string, TableActivity>> {
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
