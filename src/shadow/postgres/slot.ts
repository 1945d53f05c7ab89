/** Publications and replication slots: made publication first, slot second; dropped in the opposite order. */
import { quoteIdent, quoteTable } from '../../core/postgres.js';
import { parseLsn } from '../../core/position.js';
import { UnderstudyError } from '../../core/errors.js';
import { run, sqlStateOf, textOf, type Session } from './statement.js';
import { tableKey, type TableInfo } from './table.js';
import type { Direction } from '../../core/ports.js';
import type { Clock } from '../../core/clock.js';

export interface StreamNames {
  readonly publication: string;
  readonly slot: string;
}

export function streamNames(migrationId: string, direction: Direction): StreamNames {
  const name = `understudy_${migrationId}_${direction === 'forward' ? 'fwd' : 'rev'}`;
  return { publication: name, slot: name };
}

/**
 * Publishes the tables by name; partitions come with their root, unlogged tables can't be published. The tables' identities must be proven before.
 * A publication of that name that is there already gets the tables it lacks. Returns how many of `tables` are new to it.
 */
export async function ensurePublication(
  session: Session,
  name: string,
  tables: readonly TableInfo[],
): Promise<number> {
  const what = `creating publication ${name} on the ${session.side}`;
  const { rows } = await run(
    session,
    { text: 'SELECT FROM pg_catalog.pg_publication WHERE pubname = $1', values: [name] },
    { what },
  );
  const wanted = tables.filter(
    (table) => table.kind === 'partitioned' || (table.kind === 'ordinary' && !table.unlogged),
  );
  if (rows.length > 0) return await extendPublication(session, name, wanted);
  const listed = wanted.map((table) => listedName(table));
  const list = listed.length === 0 ? '' : ` FOR TABLE ${listed.join(', ')}`;
  await run(
    session,
    `CREATE PUBLICATION ${quoteIdent(name)}${list} WITH ` +
      `(publish = 'insert, update, delete, truncate', publish_via_partition_root = false)`,
    { what },
  );
  return wanted.length;
}

/** One by one: each waits for the table's autovacuum alone. */
async function extendPublication(
  session: Session,
  name: string,
  wanted: readonly TableInfo[],
): Promise<number> {
  const what = `adding tables to publication ${name} on the ${session.side}`;
  const { rows } = await run(
    session,
    {
      text: `SELECT n.nspname AS schema, c.relname AS name
        FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid
        JOIN pg_catalog.pg_class c ON c.oid = r.prrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE p.pubname = $1`,
      values: [name],
    },
    { what },
  );
  const published = new Set(rows.map((row) => `${textOf(row, 'schema')}.${textOf(row, 'name')}`));
  const lacking = wanted.filter((table) => !published.has(tableKey(table)));
  for (const table of lacking) {
    await run(session, `ALTER PUBLICATION ${quoteIdent(name)} ADD TABLE ${listedName(table)}`, { what });
  }
  return lacking.length;
}

const OLDER_POLL_MS = 20;

/**
 * Waits until every transaction that runs now has ended: one that wrote to a table before it was published is in no
 * stream, and must be visible to the copy's first read. Takes no lock.
 */
export async function awaitOlderTransactions(
  session: Session,
  { clock, signal }: { readonly clock: Clock; readonly signal: AbortSignal },
): Promise<void> {
  const what = 'waiting for older transactions to end';
  const { rows } = await run(
    session,
    'SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()) AS border',
    { what },
  );
  const border = BigInt(textOf(rows[0], 'border'));
  for (;;) {
    const now = await run(
      session,
      'SELECT pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot()) AS oldest',
      { what },
    );
    if (BigInt(textOf(now.rows[0], 'oldest')) >= border) return;
    await clock.sleep(OLDER_POLL_MS, signal);
  }
}

/** Without ONLY a parent would bring children that are listed themselves; a root brings its partitions anyway. */
function listedName(table: TableInfo): string {
  return table.kind === 'partitioned' ? quoteTable(table) : `ONLY ${quoteTable(table)}`;
}

export interface SlotState {
  readonly confirmed: bigint;
  readonly active: boolean;
}

/** Says to whom a slot of that name belongs, where that is not this database. */
export const SLOT_ELSEWHERE = 'elsewhere';

/** Throws `slot-lost` where the slot is there but useless: another database's, invalidated, or its log removed. */
export async function readSlot(session: Session, slot: string): Promise<SlotState | null> {
  const what = `reading slot ${slot} on the ${session.side}`;
  const { rows } = await run(
    session,
    {
      text: `SELECT confirmed_flush_lsn, active, wal_status, database = pg_catalog.current_database() AS here
        FROM pg_catalog.pg_replication_slots WHERE slot_name = $1`,
      values: [slot],
    },
    { what },
  );
  const row = rows[0];
  if (row === undefined) return null;
  if (row['here'] !== 't') {
    throw new UnderstudyError(
      'slot-lost',
      `slot ${slot} on the ${session.side} belongs to another database`,
      {
        advice: 'Set another migration id in the configuration, or drop that slot.',
        details: { [SLOT_ELSEWHERE]: true },
      },
    );
  }
  if (row['wal_status'] === 'lost' || row['confirmed_flush_lsn'] == null) {
    throw new UnderstudyError('slot-lost', `slot ${slot} on the ${session.side} has lost its log`, {
      advice:
        'Raise max_slot_wal_keep_size; then `understudy remove`, empty the destination, and start again.',
    });
  }
  return { confirmed: parseLsn(row['confirmed_flush_lsn']), active: row['active'] === 't' };
}

/** From there on a standby can take a slot over; see `sync_replication_slots`. */
const FAILOVER_SLOTS_FROM = 170000;

/** Creates the slot; returns where its stream begins. Waits for the transactions that are running. */
export async function createSlot(session: Session, slot: string): Promise<bigint> {
  const what = `creating slot ${slot} on the ${session.side}`;
  const version = await run(session, 'SHOW server_version_num', { what });
  const failover = Number(textOf(version.rows[0], 'server_version_num')) >= FAILOVER_SLOTS_FROM;
  const { rows } = await run(
    session,
    {
      text: `SELECT lsn FROM pg_catalog.pg_create_logical_replication_slot($1, 'pgoutput'${failover ? ', failover => true' : ''})`,
      values: [slot],
    },
    { what },
  );
  return parseLsn(textOf(rows[0], 'lsn'));
}

/** object_in_use: its stream has not noticed yet that its client is gone. */
const IN_USE_SQLSTATE = '55006';
const DROP_ATTEMPTS_MAX = 50;
const DROP_PAUSE_MS = 100;

/** Drops the slot if it is there and this database's. Idempotent. */
export async function dropSlot(session: Session, slot: string, clock: Clock): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    try {
      await run(
        session,
        {
          text: `SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots
            WHERE slot_name = $1 AND database = pg_catalog.current_database()`,
          values: [slot],
        },
        { what: `dropping slot ${slot} on the ${session.side}` },
      );
      return;
    } catch (error) {
      if (sqlStateOf(error) !== IN_USE_SQLSTATE || attempt >= DROP_ATTEMPTS_MAX) throw error;
      await clock.sleep(DROP_PAUSE_MS);
    }
  }
}

export async function dropPublication(session: Session, name: string): Promise<void> {
  await run(session, `DROP PUBLICATION IF EXISTS ${quoteIdent(name)}`, {
    what: `dropping publication ${name} on the ${session.side}`,
  });
}
