/**
 * Reads keys on the source and makes the destination hold the same, one batch after another: the only way in which a
 * follower writes rows, but for the copy.
 *
 * Where a row outside of the batch is in the way of a unique value, it has changed on the source too: its key joins the
 * batch, which is read again as a whole. What can't be solved so (an index over expressions, an exclusion, too long a
 * chain) replaces the table whole, under one snapshot, in one transaction.
 */
import { emitMessageSql } from '../../core/postgres.js';
import { WHOLE_DATABASE } from '../../core/ports.js';
import { UnderstudyError } from '../../core/errors.js';
import { keyId, type ApplyTable, type Key } from '../postgres/apply-table.js';
import { inTransaction, run, type Session } from '../postgres/statement.js';
import { DeliveredTransactions } from '../postgres/visibility.js';
import { copyWhole } from '../postgres/whole-copy.js';
import { readAuthority } from './authority.js';
import { readKeys, type KeysRead } from './key-reader.js';
import { clashingKeys, writeRows, type WriteOutcome } from './row-writer.js';

export interface RefreshSessions {
  readonly source: Session;
  readonly destination: Session;
}

export type RefreshOutcome =
  | {
      readonly kind: 'done';
      readonly keys: readonly Key[];
      readonly upserted: number;
      readonly deleted: number;
    }
  /** Nothing was written: some key is not of its type. */
  | { readonly kind: 'unreadable' }
  /** Nothing was written: the destination must not be written now. */
  | { readonly kind: 'not-leading' }
  /** Nothing was written: only replacing the table whole can do it. */
  | { readonly kind: 'entangled' };

/** How often what is in the way is added to a batch. */
const ROUNDS_MAX = 8;
/** Keys that a batch may grow to by that. */
const BATCH_MAX = 20_000;

/** Throws `source-…`, `destination-…`. After an error nothing of the batch is written. */
export async function refreshKeys(
  sessions: RefreshSessions,
  table: ApplyTable,
  keys: readonly Key[],
): Promise<RefreshOutcome> {
  const wanted = new Map(keys.map((key) => [keyId(key), key]));
  for (let round = 1; round <= ROUNDS_MAX && wanted.size <= BATCH_MAX; round += 1) {
    const read = await readKeys(sessions.source, table, [...wanted.values()]);
    if (read === null) return { kind: 'unreadable' };
    const outcome = await write(sessions.destination, table, distinct(read));
    if (outcome === 'not-leading') return { kind: 'not-leading' };
    if (outcome.kind === 'written') {
      const { upserted, deleted } = outcome;
      return { kind: 'done', keys: read.rows.map(({ key }) => key), upserted, deleted };
    }
    const inTheWay = await clashingKeys(sessions.destination, table, outcome.index, outcome.rows);
    if (inTheWay === null) break;
    const before = wanted.size;
    for (const key of inTheWay) wanted.set(keyId(key), key);
    // They were all read: the source has changed meanwhile, or the clash is of another kind.
    if (wanted.size === before && round > 2) break;
  }
  return { kind: 'entangled' };
}

/** Two texts may name one key, as 7 and 07 do; one statement must not write a row twice. */
function distinct(read: KeysRead): KeysRead {
  const rows = new Map(read.rows.map((row) => [keyId(row.key), row]));
  return rows.size === read.rows.length ? read : { version: read.version, rows: [...rows.values()] };
}

async function write(
  destination: Session,
  table: ApplyTable,
  read: KeysRead,
): Promise<WriteOutcome | 'not-leading'> {
  const refused = new NotWritten();
  try {
    return await tagged(destination, `writing ${table.name}`, async () => {
      const outcome = await writeRows(destination, table, read);
      if (outcome.kind === 'clash') {
        refused.outcome = outcome;
        throw refused;
      }
      return outcome;
    });
  } catch (error) {
    if (error === refused && refused.outcome !== undefined) return refused.outcome;
    if (error instanceof NotLeading) return 'not-leading';
    throw error;
  }
}

/** Rolls a transaction back that came to an answer. */
class NotWritten extends Error {
  outcome: WriteOutcome | undefined;
}

/** Thrown inside of a transaction that may not write. */
export class NotLeading extends Error {}

/**
 * Runs `work` in a transaction that says what it is, so that a stream on its way back skips it, and only while the
 * source leads. Throws {@link NotLeading}.
 */
export async function tagged<T>(destination: Session, what: string, work: () => Promise<T>): Promise<T> {
  return await inTransaction(destination, what, async () => {
    const authority = await readAuthority(destination, true);
    if (authority.kind !== 'leads') throw new NotLeading();
    const tag = emitMessageSql({ t: 'apply', lane: WHOLE_DATABASE, epoch: authority.epoch });
    await run(destination, tag, { what });
    return await work();
  });
}

/** Replaces all rows of a table, under one snapshot of the source. Returns how many, or null where it may not write. */
export async function replaceTable(sessions: RefreshSessions, table: ApplyTable): Promise<number | null> {
  try {
    return await tagged(sessions.destination, `replacing ${table.name}`, async () => {
      const copied = await copyWhole(
        sessions.source,
        sessions.destination,
        table,
        new DeliveredTransactions(),
      );
      if (copied === null) throw new UnderstudyError('internal', `${table.name}: no snapshot to copy it by`);
      await run(
        sessions.destination,
        {
          text: 'DELETE FROM understudy.row_version WHERE schema_name = $1 AND table_name = $2',
          values: [table.info.schema, table.info.name],
        },
        { what: 'forgetting the rows’ versions' },
      );
      return copied.rows;
    });
  } catch (error) {
    if (error instanceof NotLeading) return null;
    throw error;
  }
}
