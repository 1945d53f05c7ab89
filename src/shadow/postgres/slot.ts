/** Publications and replication slots: made publication first, slot second; dropped in the opposite order. */
import { quoteIdent, quoteTable } from '../../core/postgres.js';
import { parseLsn } from '../../core/position.js';
import { UnderstudyError } from '../../core/errors.js';
import { run, sqlStateOf, textOf, type Session } from './statement.js';
import type { TableInfo } from './table.js';
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
 * Publishes the tables by name; partitions come with their root. The tables' identities must be proven before.
 * A publication of that name that is there already is left as it is: it was made in one statement.
 */
export async function ensurePublication(
  session: Session,
  name: string,
  tables: readonly TableInfo[],
): Promise<void> {
  const what = `creating publication ${name} on the ${session.side}`;
  const { rows } = await run(
    session,
    { text: 'SELECT FROM pg_catalog.pg_publication WHERE pubname = $1', values: [name] },
    { what },
  );
  if (rows.length > 0) return;
  const listed = tables.filter((table) => table.kind !== 'partition').map((table) => listedName(table));
  const list = listed.length === 0 ? '' : ` FOR TABLE ${listed.join(', ')}`;
  await run(
    session,
    `CREATE PUBLICATION ${quoteIdent(name)}${list} WITH ` +
      `(publish = 'insert, update, delete, truncate', publish_via_partition_root = false)`,
    { what },
  );
}

/** Without ONLY a parent would bring children that are listed themselves; a root brings its partitions anyway. */
function listedName(table: TableInfo): string {
  return table.kind === 'partitioned' ? quoteTable(table) : `ONLY ${quoteTable(table)}`;
}

export interface SlotState {
  readonly confirmed: bigint;
  readonly active: boolean;
}

/** Throws `slot-lost` where the slot is there but useless: invalidated, or its log removed. */
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

/** Creates the slot; returns where its stream begins. Waits for the transactions that are running. */
export async function createSlot(session: Session, slot: string): Promise<bigint> {
  const { rows } = await run(
    session,
    {
      text: `SELECT lsn FROM pg_catalog.pg_create_logical_replication_slot($1, 'pgoutput')`,
      values: [slot],
    },
    { what: `creating slot ${slot} on the ${session.side}` },
  );
  return parseLsn(textOf(rows[0], 'lsn'));
}

/** object_in_use: its stream has not noticed yet that its client is gone. */
const IN_USE_SQLSTATE = '55006';
const DROP_ATTEMPTS_MAX = 50;
const DROP_PAUSE_MS = 100;

/** Drops the slot if it is there. Idempotent. */
export async function dropSlot(session: Session, slot: string, clock: Clock): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    try {
      await run(
        session,
        {
          text: `SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots
            WHERE slot_name = $1`,
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
