/**
 * Copies a table without a usable key: whole, under one snapshot, between two flushes of the stream.
 *
 * Everything the stream has applied so far must be visible to the snapshot, as the copy replaces it; a later change is
 * applied only if its transaction is not in the snapshot. A crash before the commit leaves the table as it was, and
 * it is copied again. Meanwhile the stream waits, unread: its bound is the copy's duration, its log stays on the
 * source.
 */
import { parseLsn } from '../../core/position.js';
import { targetOf, type ApplyTable } from './apply-table.js';
import { columnList, insertEmptySql } from './apply-sql.js';
import { copyFormat, copyOptions } from './chunk.js';
import { beginRead, copyWholeSql } from './chunk-reader.js';
import { copyAcross } from './raw-copy.js';
import { run, textOf, type Session } from './statement.js';
import { sees, type DeliveredTransactions, type Snapshot } from './visibility.js';

/** Which changes to a whole-copied table are in its copy already. */
export interface WholeCopy {
  readonly snapshot: Snapshot;
  /** A transaction that commits from here on is not in the snapshot. */
  readonly until: bigint;
}

/** Whether the transaction's changes are in the copy. */
export function isCopied(copy: WholeCopy, xid: number, commitLsn: bigint): boolean {
  return commitLsn < copy.until && sees(copy.snapshot, xid);
}

export interface WholeCopyResult extends WholeCopy {
  readonly snapshotText: string;
  readonly rows: number;
}

/**
 * Replaces the table's rows on the destination, in the transaction the caller began there. Returns what later changes
 * are to be held against, or null, with nothing written, where the snapshot misses something the stream has applied:
 * the caller lets the stream go on and tries again.
 */
export async function copyWhole(
  source: Session,
  destination: Session,
  table: ApplyTable,
  delivered: DeliveredTransactions,
): Promise<WholeCopyResult | null> {
  const what = `copying ${table.name}`;
  try {
    const { text, at } = await beginRead(source);
    if (!delivered.seenBy(at)) return null;
    const { rows: positions } = await run(
      source,
      'SELECT pg_catalog.pg_current_wal_insert_lsn() AS position',
      { what },
    );
    const until = parseLsn(textOf(positions[0], 'position'));
    await run(destination, `TRUNCATE ONLY ${targetOf(table).sql}`, { what });
    const rows = await copyRows(source, destination, table, what);
    return { snapshot: at, snapshotText: text, until, rows };
  } finally {
    await source.client.query('ROLLBACK').catch(() => undefined);
  }
}

/** All rows of the table, in the transactions that are open on both sides; resolves with how many. */
export async function copyRows(
  source: Session,
  destination: Session,
  table: ApplyTable,
  what: string,
): Promise<number> {
  if (table.columns.length === 0) {
    const { rows } = await run(source, `SELECT pg_catalog.count(*) AS n FROM ONLY ${table.sql}`, { what });
    const count = Number(textOf(rows[0], 'n'));
    if (count > 0) await run(destination, insertEmptySql(targetOf(table), count), { what });
    return count;
  }
  const target = targetOf(table);
  const options = copyOptions(copyFormat(table));
  const into = `COPY ${target.sql} (${columnList(target)}) FROM STDIN ${options}`;
  return await copyAcross(
    { session: source, sql: copyWholeSql(table) },
    { session: destination, sql: into },
    what,
  );
}
