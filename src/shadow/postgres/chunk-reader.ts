/**
 * Reads chunks on a stream's origin: `low` mark, a read under one snapshot, `high` mark.
 *
 * The marks are committed with `synchronous_commit = local`: they need not reach a standby, and must not wait for one
 * that is missing. No lock is taken but the read's own, and no snapshot outlives a chunk.
 */
import type { DatabaseEndpoint, LogMessage, Side } from '../../core/ports.js';
import { emitMessageSql, quoteIdent, quoteLiteral } from '../../core/postgres.js';
import {
  copyFormat,
  copyOptions,
  keyCompares,
  type Chunk,
  type ChunkRead,
  type CopyFormat,
} from './chunk.js';
import { columnAt, keyEquals, keyIndexes, readFor } from './apply-sql.js';
import type { ApplyTable, Key } from './apply-table.js';
import { openSession, run, textOf, type Session } from './statement.js';
import { copyOut } from './raw-copy.js';
import { parseSnapshot, type Snapshot } from './visibility.js';

/** A chunk is a range of the key's index, whatever the source's statistics say. */
const READER_SETTINGS = { synchronous_commit: 'local', enable_seqscan: 'off' };

export async function openReader(side: Side, endpoint: DatabaseEndpoint): Promise<Session> {
  return await openSession(side, endpoint, 'copy', READER_SETTINGS);
}

export async function emit(session: Session, message: LogMessage): Promise<void> {
  await run(session, emitMessageSql(message), { what: `writing a ${message.t} mark` });
}

/** Begins a read under one snapshot, and returns it. The caller ends the transaction. */
export async function beginRead(session: Session): Promise<{ readonly text: string; readonly at: Snapshot }> {
  const what = 'taking a snapshot';
  await run(session, 'BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY', { what });
  const { rows } = await run(session, 'SELECT pg_catalog.pg_current_snapshot()::text AS snapshot', { what });
  const text = textOf(rows[0], 'snapshot');
  return { text, at: parseSnapshot(text) };
}

/** The key of the `rows`th row above `lower`; null where there are not that many. */
async function upperBound(
  session: Session,
  table: ApplyTable,
  lower: Key | null,
  rows: number,
): Promise<Key | null> {
  const names = keyIndexes(table).map((index) => `t.${quoteIdent(columnAt(table, index).name)}`);
  const columns = names.map((name, index) => `${name}::pg_catalog.text AS k${index}`).join(', ');
  const where = lower === null ? '' : ` WHERE ${keyCompares(table, '>', lower)}`;
  const result = await run(
    session,
    `SELECT ${columns} FROM ONLY ${table.sql} AS t${where} ORDER BY ${names.join(', ')} OFFSET ${rows - 1} LIMIT 1`,
    { what: `finding a chunk of ${table.name}`, carriesRows: true },
  );
  const row = result.rows[0];
  return row === undefined ? null : names.map((_, index) => textOf(row, `k${index}`));
}

/** More than may be held was read, and let go. */
export interface TooLarge {
  /** Rows that would have fitted. */
  readonly within: number;
}

/**
 * Reads a chunk of at most `rows` rows. `acceptable` is asked whether the snapshot may be used; where not, the
 * transaction ends and null is returned. One row is never too large.
 */
export async function readChunk(
  session: Session,
  chunk: Chunk,
  rows: number,
  acceptable: (snapshot: Snapshot) => boolean,
  bytesMax = Infinity,
): Promise<ChunkRead | TooLarge | null> {
  const { table } = chunk;
  const what = `copying ${table.name}`;
  try {
    chunk.snapshot = 'taking';
    const { at } = await beginRead(session);
    chunk.snapshot = at;
    if (!acceptable(at)) return null;
    const single = chunk.pendingKeyId !== null;
    const upper =
      single || chunk.repairs !== null ? null : await upperBound(session, table, chunk.lower, rows);
    const format = copyFormat(table);
    const conditions =
      chunk.repairs !== null
        ? [anyOf(table, chunk.repairs)]
        : single
          ? [
              keyEquals(table, 't', (column) => {
                const position = keyIndexes(table).indexOf(column);
                return `${quoteLiteral(chunk.lower?.[position] ?? '')}::${columnAt(table, column).type}`;
              }),
            ]
          : [
              ...(chunk.lower === null ? [] : [keyCompares(table, '>', chunk.lower)]),
              ...(upper === null ? [] : [keyCompares(table, '<=', upper)]),
            ];
    const where = conditions.length === 0 ? '' : ` WHERE ${conditions.join(' AND ')}`;
    const copied = await copyOut(
      session,
      copyOutSql(table, where, format),
      what,
      rows === 1 ? Infinity : bytesMax,
    );
    if (copied.within !== null) return { within: copied.within };
    return { ...copied, format, upper };
  } finally {
    // Nothing was written; the end of the read only lets go of its snapshot.
    await session.client.query('ROLLBACK').catch(() => undefined);
  }
}

/** A chunk that is so many times larger than it aims at is read again, smaller. */
const EXCESS = 8;

/** As {@link readChunk}; of fewer rows where wide ones lie close together, of which the table's average says nothing. */
export async function readRange(
  session: Session,
  chunk: Chunk,
  rows: number,
  chunkBytes: number,
  acceptable: (snapshot: Snapshot) => boolean,
): Promise<ChunkRead | null> {
  for (let wanted = rows; ;) {
    const read = await readChunk(session, chunk, wanted, acceptable, EXCESS * chunkBytes);
    if (read === null || 'frames' in read) return read;
    wanted = Math.max(1, Math.min(read.within, Math.floor(wanted / 2)));
  }
}

function anyOf(table: ApplyTable, keys: readonly Key[]): string {
  const matches = keys.map((key) => {
    const equal = keyEquals(table, 't', (column) => {
      const value = key[keyIndexes(table).indexOf(column)] ?? '';
      return `${quoteLiteral(value)}::${columnAt(table, column).type}`;
    });
    return `(${equal})`;
  });
  return `(${matches.join(' OR ')})`;
}

function copyOutSql(table: ApplyTable, where: string, format: CopyFormat): string {
  const columns = table.columns.map((column) => readFor(column)).join(', ');
  return `COPY (SELECT ${columns} FROM ONLY ${table.sql} AS t${where}) TO STDOUT ${copyOptions(format)}`;
}

/** Reads the whole table. */
export function copyWholeSql(table: ApplyTable): string {
  return copyOutSql(table, '', copyFormat(table));
}
