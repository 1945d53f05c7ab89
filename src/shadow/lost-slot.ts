/**
 * A stream whose slot is gone, has lost its log, or tells another story since a failover (origin-history.ts): it begins anew, and what it has missed is mended table by table.
 *
 * In this order, so that a process killed between any two goes on there:
 *   1. on the destination it is recorded that the stream begins anew and that no table is to be trusted;
 *   2. the slot is made;
 *   3. the stream's progress becomes the slot's position, and the record of 1 says only which tables are left;
 *   4. while the stream runs, each table is compared with the source and mended under watermarks, as `verify --repair`
 *      does; one that is equal is left alone from then on.
 * From the slot's position on every change streams, and everything before it is visible to the comparison, which begins
 * later: nothing falls in between. Until 4 is done the shadow is `repairing`, and no cutover begins.
 *
 * Where the destination leads, the source has written nothing since it was fenced: there is nothing to mend. The way back
 * begins anew only while the source leads; while the destination does, what its log held is lost to the source, and that is
 * for a person to know: `slot-lost` is thrown.
 *
 * A slot that is there but can't be read past a change which no server can send is given up in the same way, but only where
 * nothing is lost by it: while each side leads some subsets, or the destination leads and it is the way back's, it is kept.
 */
import type { Clock } from '../core/clock.js';
import { UnderstudyError } from '../core/errors.js';
import type { Log } from '../core/log.js';
import type { SubsetId } from '../core/ports.js';
import { authorityOf, type Authority, type SubsetAuthority } from './authority.js';
import { forgetHistory } from './postgres/origin-history.js';
import { forgetProgress, initialiseProgress, readProgress } from './postgres/stream-records.js';
import { createSlot, dropSlot, ensurePublication, readSlot, streamNames } from './postgres/slot.js';
import { inTransaction, run, textOf, type Session } from './postgres/statement.js';
import type { TableInfo } from './postgres/table.js';

export interface LostSlotContext {
  readonly migrationId: string;
  readonly source: Session;
  readonly destination: Session;
  readonly tables: readonly TableInfo[];
  /** All there are. */
  readonly subsets: readonly SubsetId[];
  readonly clock: Clock;
  readonly log: Log;
}

const CREATE_SQL = `CREATE TABLE IF NOT EXISTS understudy.unmended (
  schema_name text NOT NULL, table_name text NOT NULL, PRIMARY KEY (schema_name, table_name))`;
/** Stands for the stream itself, until it has begun anew. */
const STREAM = '';

/** Tables, as `schema.name`, that are still to be compared with the source and mended. */
export async function readUnmended(destination: Session): Promise<readonly string[]> {
  return (await readRecords(destination)).filter((name) => name !== STREAM);
}

async function readRecords(destination: Session): Promise<readonly string[]> {
  const what = 'reading which tables are to be mended';
  const { rows: found } = await run(
    destination,
    `SELECT pg_catalog.to_regclass('understudy.unmended') IS NOT NULL AS found`,
    { what },
  );
  if (found[0]?.['found'] !== 't') return [];
  const { rows } = await run(
    destination,
    'SELECT schema_name, table_name FROM understudy.unmended ORDER BY 1, 2',
    { what },
  );
  return rows.map((row) => {
    const schema = textOf(row, 'schema_name');
    return schema === STREAM ? STREAM : `${schema}.${textOf(row, 'table_name')}`;
  });
}

/** The table equals the source's, as of a position behind the stream's new start. */
export async function recordMended(destination: Session, table: TableInfo): Promise<void> {
  await run(
    destination,
    {
      text: 'DELETE FROM understudy.unmended WHERE schema_name = $1 AND table_name = $2',
      values: [table.schema, table.name],
    },
    { what: 'recording a table as mended' },
  );
}

/**
 * Lets the forward stream begin anew where its slot is lost, or where `lost` says that it could not be read from. Returns
 * whether it does. Nothing where the stream has not begun yet. Only while the lane is stopped.
 */
export async function renewForward(context: LostSlotContext, lost: boolean): Promise<boolean> {
  const { source, destination, tables, migrationId, clock, log, subsets } = context;
  const progress = await readProgress(destination, 'forward');
  if (progress === null) return false;
  const { slot, publication } = streamNames(migrationId, 'forward');
  const begun = (await readRecords(destination)).includes(STREAM);
  // Asked in any case: a slot of that name may be another database's by now, and is not ours to drop.
  const usable = await isUsable(source, slot);
  if (!lost && !begun && usable) return false;
  log.warn({ slot }, 'the slot is lost: another is made, and every table is compared and mended');
  const { leads, epoch } = await readLead(source, subsets);
  const what = 'recording that the stream begins anew';
  await inTransaction(destination, what, async () => {
    await run(destination, CREATE_SQL, { what });
    const names = [STREAM, ...(leads ? tables.filter(({ kind }) => kind !== 'partitioned') : [])];
    for (const table of names) {
      const values = typeof table === 'string' ? [table, table] : [table.schema, table.name];
      const text = 'INSERT INTO understudy.unmended VALUES ($1, $2) ON CONFLICT DO NOTHING';
      await run(destination, { text, values }, { what });
    }
  });
  await dropSlot(source, slot, clock);
  await ensurePublication(source, publication, tables);
  const position = await createSlot(source, slot);
  // It may have waited long for others' transactions; a rollback meanwhile is in no log that this slot has.
  const now = await readLead(source, subsets);
  if (now.leads !== leads || now.epoch !== epoch) {
    throw new UnderstudyError('busy', 'another side leads since the slot was asked for');
  }
  await inTransaction(destination, what, async () => {
    await forgetProgress(destination, 'forward');
    const whole = { authoritative: leads, epoch: Math.max(epoch ?? 0, progress.epoch) };
    await initialiseProgress(destination, 'forward', {
      ...beginning(subsets, now, whole, (sourceLeads) => sourceLeads),
      position,
    });
    await forgetHistory(destination, 'forward');
    // A snapshot of before says nothing about the transactions of another history.
    await run(destination, 'UPDATE understudy.table_copy SET snapshot = NULL, snapshot_until = NULL', {
      what,
    });
    await run(destination, `DELETE FROM understudy.unmended WHERE schema_name = ''`, { what });
  });
  return true;
}

/**
 * Lets the way back begin anew where its slot is lost and the source leads: it has carried nothing. Only while the lane is
 * stopped. Throws `slot-lost` where the destination leads.
 */
export async function renewReverse(context: Omit<LostSlotContext, 'tables'>): Promise<boolean> {
  const { source, destination, migrationId, subsets } = context;
  const { slot } = streamNames(migrationId, 'reverse');
  const progress = await readProgress(source, 'reverse');
  if (progress === null || (await isUsable(destination, slot))) return false;
  const lead = await readLead(source, subsets);
  if (!lead.leads || isHeld(progress, lead, subsets)) {
    throw new UnderstudyError('slot-lost', `slot ${slot} on the destination is lost while it leads`, {
      advice:
        'The source can’t be brought up to date any more: there is no way back without loss. Stay with the destination (`understudy finalize`), or restore the source from it.',
    });
  }
  await inTransaction(source, RENEWING_REVERSE, () => replaceReverse(context, progress, lead));
  return true;
}

/**
 * Puts a slot behind the change which the way back's can't be read past, while the source leads everything: it has carried
 * nothing. Returns whether it did. Only while the lane is at rest. A cutover's fence waits until it is done: behind it the
 * old slot would be the one that has what the destination takes.
 */
export async function passOverReverse(context: Omit<LostSlotContext, 'tables'>): Promise<boolean> {
  const { source, subsets } = context;
  return await inTransaction(source, RENEWING_REVERSE, async () => {
    const progress = await readProgress(source, 'reverse');
    if (progress === null || (await isParted(source, subsets))) return false;
    const lead = await readLead(source, subsets, true);
    if (!lead.leads || isHeld(progress, lead, subsets)) return false;
    await replaceReverse(context, progress, lead);
    return true;
  });
}

const RENEWING_REVERSE = 'recording that the way back begins anew';

/** A stream that has not read of the rollback yet still holds its own side for the one that leads. */
function isHeld(progress: Authority, lead: Lead, subsets: readonly SubsetId[]): boolean {
  return subsets.some((subset) => {
    const told = authorityOf(progress, subset);
    return told.authoritative && told.epoch >= (lead.records.get(subset)?.epoch ?? 0);
  });
}

/** In the caller's transaction on the source. */
async function replaceReverse(
  { source, destination, migrationId, clock, log, subsets }: Omit<LostSlotContext, 'tables'>,
  progress: Authority,
  lead: Lead,
): Promise<void> {
  const { slot } = streamNames(migrationId, 'reverse');
  log.warn({ slot }, 'the way back’s slot is lost, or can’t be read any further: another is made');
  await dropSlot(destination, slot, clock);
  const position = await createSlot(destination, slot);
  await forgetProgress(source, 'reverse');
  const whole = { authoritative: false, epoch: Math.max(lead.epoch ?? 0, progress.epoch) };
  await initialiseProgress(source, 'reverse', { ...beginning(subsets, lead, whole, () => false), position });
}

/** Throws `slot-lost` for one of another database alone. */
async function isUsable(origin: Session, slot: string): Promise<boolean> {
  const { rows } = await run(
    origin,
    {
      text: `SELECT wal_status, confirmed_flush_lsn FROM pg_catalog.pg_replication_slots
        WHERE slot_name = $1 AND database = pg_catalog.current_database()`,
      values: [slot],
    },
    { what: `reading slot ${slot} on the ${origin.side}` },
  );
  const [row] = rows;
  if (row === undefined) return (await readSlot(origin, slot)) !== null;
  return row['wal_status'] !== 'lost' && row['confirmed_flush_lsn'] != null;
}

interface Lead {
  readonly leads: boolean;
  readonly epoch: number | null;
  /** Of each subset by name, where there are several. */
  readonly records: ReadonlyMap<SubsetId, SubsetAuthority>;
}

/**
 * By the source's own record; a shadow without a fence is led by the source. Throws `slot-lost` where it leads some
 * subsets and not others.
 */
async function readLead(source: Session, subsets: readonly SubsetId[], hold = false): Promise<Lead> {
  const records = await readEpochs(source, subsets, hold);
  if (records === null) return { leads: true, epoch: null, records: new Map() };
  const led = ledOf(records);
  if (led > 0 && led < records.size) {
    throw new UnderstudyError('slot-lost', 'a slot is lost while the sides lead different subsets', {
      advice:
        'What it has not told is not known. Restore the side that lacks it from the other; see the runbook.',
    });
  }
  const epoch = records.size === 0 ? null : Math.max(...[...records.values()].map((each) => each.epoch));
  return { leads: led === records.size, epoch, records };
}

/** Whether the source leads some subsets and not others. */
export async function isParted(source: Session, subsets: readonly SubsetId[]): Promise<boolean> {
  const records = await readEpochs(source, subsets, false);
  const led = records === null ? 0 : ledOf(records);
  return led > 0 && led < (records?.size ?? 0);
}

function ledOf(records: Lead['records']): number {
  return [...records.values()].filter(({ authoritative }) => authoritative).length;
}

/** The source's records of its fences, in the caller's transaction held to its end where `hold`; null without any. */
async function readEpochs(
  source: Session,
  subsets: readonly SubsetId[],
  hold: boolean,
): Promise<Lead['records'] | null> {
  const what = 'asking whether the source is fenced';
  const { rows: found } = await run(
    source,
    `SELECT pg_catalog.to_regclass('understudy.epoch') IS NOT NULL AS found`,
    { what },
  );
  if (found[0]?.['found'] !== 't') return null;
  const { rows } = await run(
    source,
    {
      text: `SELECT subset, fenced, epoch FROM understudy.epoch WHERE subset = ANY ($1::text[])
        ORDER BY subset${hold ? ' FOR SHARE' : ''}`,
      values: [subsets],
    },
    { what },
  );
  return new Map(
    rows.map((row) => [
      textOf(row, 'subset'),
      { authoritative: row['fenced'] !== 't', epoch: Number(textOf(row, 'epoch')) },
    ]),
  );
}

/** The authority of a stream that begins anew. */
function beginning(
  subsets: readonly SubsetId[],
  { records }: Lead,
  whole: SubsetAuthority,
  authoritative: (sourceLeads: boolean) => boolean,
): Authority {
  if (subsets.length === 1) return whole;
  const parts = [...records].map(
    ([subset, record]) =>
      [subset, { epoch: record.epoch, authoritative: authoritative(record.authoritative) }] as const,
  );
  return { ...whole, subsets: Object.fromEntries(parts) };
}
