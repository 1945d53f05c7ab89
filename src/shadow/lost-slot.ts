/**
 * A stream whose slot is gone, has lost its log, or tells another story since a failover (origin-history.ts), or whose
 * target has lost what was applied: it begins anew, and what it has missed is mended table by table.
 *
 * In this order, so that a process killed between any two goes on there; all records are kept where the stream writes:
 *   1. it is recorded that the stream begins anew and that no table that its origin leads is to be trusted;
 *   2. the slot is made;
 *   3. the stream's progress becomes the slot's position, and the record of 1 says only which tables are left;
 *   4. while the stream runs, each table is compared with the origin's and mended under watermarks, as `verify --repair`
 *      does; one that is equal is left alone from then on.
 * From the slot's position on every change streams, and everything before it is visible to the comparison, which begins
 * later: nothing falls in between. Until 4 is done the shadow is `repairing`, and no cutover and no rollback begins.
 *
 * Tables that the origin does not lead it has not written since it was fenced: there is nothing of them to mend. So the way
 * back is mended while the destination leads, and begins anew at once while the source does.
 *
 * A slot that is there but can't be read past a change which no server can send is given up in the same way.
 */
import type { Clock } from '../core/clock.js';
import { UnderstudyError } from '../core/errors.js';
import type { Log } from '../core/log.js';
import type { Direction, SubsetId, SubsetRules } from '../core/ports.js';
import { readSubsetTables, subsetIds } from '../core/subsets.js';
import { authorityOf, type Authority, type SubsetAuthority } from './authority.js';
import { readAuthority } from './follow/authority.js';
import { forgetHistory } from './postgres/origin-history.js';
import {
  forgetProgress,
  initialiseProgress,
  readProgress,
  type StreamProgress,
} from './postgres/stream-records.js';
import { createSlot, dropSlot, ensurePublication, readSlot, streamNames } from './postgres/slot.js';
import { inTransaction, run, textOf, type Session } from './postgres/statement.js';
import { tableKey, type TableInfo } from './postgres/table.js';
import { readTables } from './postgres/tables.js';

export interface LostSlotContext {
  readonly migrationId: string;
  readonly source: Session;
  readonly destination: Session;
  readonly subsets: readonly SubsetRules[];
  /** The source's that the forward stream carries: they are published. */
  readonly tables?: readonly TableInfo[];
  readonly clock: Clock;
  readonly log: Log;
}

const CREATE_SQL = `CREATE TABLE IF NOT EXISTS understudy.unmended (
  schema_name text NOT NULL, table_name text NOT NULL, PRIMARY KEY (schema_name, table_name))`;
/** Stands for the stream itself, until it has begun anew. */
const STREAM = '';

/** Tables, as `schema.name` on the source, of which the stream to `target` has missed something that is not mended yet. */
export async function readUnmended(target: Session): Promise<readonly string[]> {
  return (await readRecords(target)).filter((name) => name !== STREAM);
}

async function readRecords(target: Session): Promise<readonly string[]> {
  const what = 'reading which tables are to be mended';
  const { rows: found } = await run(
    target,
    `SELECT pg_catalog.to_regclass('understudy.unmended') IS NOT NULL AS found`,
    { what },
  );
  if (found[0]?.['found'] !== 't') return [];
  const { rows } = await run(
    target,
    'SELECT schema_name, table_name FROM understudy.unmended ORDER BY 1, 2',
    { what },
  );
  return rows.map((row) => {
    const schema = textOf(row, 'schema_name');
    return schema === STREAM ? STREAM : `${schema}.${textOf(row, 'table_name')}`;
  });
}

/** The table equals the origin's, as of a position behind the stream's new start. */
export async function recordMended(target: Session, table: TableInfo): Promise<void> {
  await run(
    target,
    {
      text: 'DELETE FROM understudy.unmended WHERE schema_name = $1 AND table_name = $2',
      values: [table.schema, table.name],
    },
    { what: 'recording a table as mended' },
  );
}

/** Nothing is left to be mended; what is on record still is of tables that are not there. */
export async function forgetUnmended(target: Session): Promise<void> {
  await run(target, CREATE_SQL, { what: 'forgetting what is mended' });
  await run(target, 'DELETE FROM understudy.unmended', { what: 'forgetting what is mended' });
}

/** The tables are to be compared and mended, in the caller's transaction where there is one. */
export async function recordUnmended(target: Session, tables: readonly TableInfo[]): Promise<void> {
  const what = 'recording which tables are to be mended';
  await run(target, CREATE_SQL, { what });
  for (const { schema, name } of tables) await recordOne(target, schema, name, what);
}

async function recordOne(target: Session, schema: string, name: string, what: string): Promise<void> {
  const text = 'INSERT INTO understudy.unmended VALUES ($1, $2) ON CONFLICT DO NOTHING';
  await run(target, { text, values: [schema, name] }, { what });
}

/**
 * Lets a stream begin anew where its slot is lost, or where `lost` says that it could not be read from. Returns whether it
 * does. Nothing where the stream has not begun yet. Only while the lane is stopped. Throws `busy`, retryable, while a switch
 * is open, and `slot-lost` where nobody knows who leads.
 */
export async function renewStream(
  direction: Direction,
  context: LostSlotContext,
  lost: boolean,
): Promise<boolean> {
  const { source, migrationId, subsets } = context;
  const { origin, target } = ends(direction, context);
  const progress = await readProgress(target, direction);
  if (progress === null) return false;
  const { slot } = streamNames(migrationId, direction);
  const begun = (await readRecords(target)).includes(STREAM);
  // Asked in any case: a slot of that name may be another database's by now, and is not ours to drop.
  const usable = await isUsable(origin, slot);
  if (!lost && !begun && usable) return false;
  const lead = await readLead(source, subsets);
  if (direction === 'reverse' && lead.led === lead.of) {
    assertTold(progress, lead, subsets, slot);
    await inTransaction(source, RENEWING_REVERSE, () => replaceReverse(context, progress, lead));
    return true;
  }
  if (direction === 'reverse') await assertSettled(context);
  await beginAnew(direction, context, progress, lead);
  return true;
}

function ends(
  direction: Direction,
  { source, destination }: Pick<LostSlotContext, 'source' | 'destination'>,
): { readonly origin: Session; readonly target: Session } {
  return direction === 'forward'
    ? { origin: source, target: destination }
    : { origin: destination, target: source };
}

/** The source's fence alone does not say that the destination leads: a switch may be on its way there. */
async function assertSettled({ destination }: LostSlotContext): Promise<void> {
  const { kind, operation } = await readAuthority(destination, false);
  if (kind === 'follows' && !operation) return;
  throw new UnderstudyError('busy', 'a cutover or a rollback is open: the way back begins anew after it', {
    retryable: true,
  });
}

async function beginAnew(
  direction: Direction,
  context: LostSlotContext,
  progress: StreamProgress,
  lead: Lead,
): Promise<void> {
  const { source, migrationId, clock, log, subsets } = context;
  const tables = context.tables ?? (await readTables(source.client));
  const { origin, target } = ends(direction, context);
  const { slot, publication } = streamNames(migrationId, direction);
  log.warn({ slot }, 'the slot is lost: another is made, and every table is compared and mended');
  const what = 'recording that the stream begins anew';
  const missed = await ledTables(direction, context, tables, lead);
  await inTransaction(target, what, async () => {
    await recordUnmended(target, missed);
    await recordOne(target, STREAM, STREAM, what);
  });
  await dropSlot(origin, slot, clock);
  // What was made on the destination since it leads is not published: nothing of it is on the source.
  if (direction === 'forward') await ensurePublication(origin, publication, tables);
  const position = await createSlot(origin, slot);
  // It may have waited long for others' transactions; a switch meanwhile is in no log that this slot has.
  const now = await readLead(source, subsets);
  if (describeLead(now) !== describeLead(lead)) {
    throw new UnderstudyError('busy', 'another side leads since the slot was asked for');
  }
  await inTransaction(target, what, async () => {
    await forgetProgress(target, direction);
    // With several subsets it says nothing, and stays as it was made.
    const leads = now.of > 1 || now.led === now.of;
    const whole = {
      authoritative: leads === (direction === 'forward'),
      epoch: Math.max(now.epoch ?? 0, progress.epoch),
    };
    const begins = beginning(now, whole, (sourceLeads) => sourceLeads === (direction === 'forward'));
    await initialiseProgress(target, direction, { ...begins, position });
    await forgetHistory(target, direction);
    // A snapshot of before says nothing about the transactions of another history.
    await run(target, 'UPDATE understudy.table_copy SET snapshot = NULL, snapshot_until = NULL', { what });
    await run(target, `DELETE FROM understudy.unmended WHERE schema_name = ''`, { what });
  });
}

/** What the stream's origin leads, as the source names it. */
async function ledTables(
  direction: Direction,
  { source, subsets }: LostSlotContext,
  tables: readonly TableInfo[],
  { records }: Lead,
): Promise<readonly TableInfo[]> {
  const members = await readSubsetTables(source.client, subsets);
  const led = new Set(
    members.flatMap(({ subset, tables: theirs }) => {
      const sourceLeads = records.get(subset)?.authoritative ?? true;
      return sourceLeads === (direction === 'forward') ? theirs.map(nameOf) : [];
    }),
  );
  return tables.filter((table) => table.kind !== 'partitioned' && led.has(tableKey(table)));
}

/**
 * Puts a slot behind the change which the way back's can't be read past, while the source leads everything: it has carried
 * nothing. Returns whether it did. Only while the lane is at rest. A cutover's fence waits until it is done: behind it the
 * old slot would be the one that has what the destination takes.
 */
export async function passOverReverse(context: LostSlotContext): Promise<boolean> {
  const { source, subsets } = context;
  return await inTransaction(source, RENEWING_REVERSE, async () => {
    const progress = await readProgress(source, 'reverse');
    const lead = await readLead(source, subsets, true);
    if (progress === null || lead.led < lead.of || isHeld(progress, lead, subsets)) return false;
    await replaceReverse(context, progress, lead);
    return true;
  });
}

const RENEWING_REVERSE = 'recording that the way back begins anew';

/** A stream that has not read of the rollback yet still holds its own side for the one that leads. */
function isHeld(progress: Authority, lead: Lead, subsets: readonly SubsetRules[]): boolean {
  return subsetIds(subsets).some((subset) => {
    const told = authorityOf(progress, subset);
    return told.authoritative && told.epoch >= (lead.records.get(subset)?.epoch ?? 0);
  });
}

function assertTold(progress: Authority, lead: Lead, subsets: readonly SubsetRules[], slot: string): void {
  if (!isHeld(progress, lead, subsets)) return;
  throw new UnderstudyError(
    'slot-lost',
    `slot ${slot} on the destination is lost, and who leads is not told`,
    {
      advice:
        'The source is not fenced, and the way back has not heard that it leads: see docs/runbook.md, and finalize on the side that is in use.',
    },
  );
}

/** In the caller's transaction on the source. */
async function replaceReverse(
  { source, destination, migrationId, clock, log }: LostSlotContext,
  progress: Authority,
  lead: Lead,
): Promise<void> {
  const { slot } = streamNames(migrationId, 'reverse');
  log.warn({ slot }, 'the way back’s slot is lost, or can’t be read any further: another is made');
  await dropSlot(destination, slot, clock);
  const position = await createSlot(destination, slot);
  await forgetProgress(source, 'reverse');
  const whole = { authoritative: false, epoch: Math.max(lead.epoch ?? 0, progress.epoch) };
  await initialiseProgress(source, 'reverse', { ...beginning(lead, whole, () => false), position });
  await forgetHistory(source, 'reverse');
  await forgetUnmended(source);
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
  /** How many subsets the source leads, of how many. */
  readonly led: number;
  readonly of: number;
  readonly epoch: number | null;
  /** Of each subset by name. */
  readonly records: ReadonlyMap<SubsetId, SubsetAuthority>;
}

/** By the source's own records; a shadow without a fence is led by the source. */
async function readLead(source: Session, subsets: readonly SubsetRules[], hold = false): Promise<Lead> {
  const records =
    (await readEpochs(source, subsetIds(subsets), hold)) ?? new Map<SubsetId, SubsetAuthority>();
  const all = [...records.values()];
  return {
    led: all.filter(({ authoritative }) => authoritative).length,
    of: all.length,
    epoch: all.length === 0 ? null : Math.max(...all.map((each) => each.epoch)),
    records,
  };
}

function nameOf({ schema, name }: { readonly schema: string; readonly name: string }): string {
  return `${schema}.${name}`;
}

function describeLead({ records }: Lead): string {
  return JSON.stringify(
    [...records].map(([subset, { authoritative, epoch }]) => [subset, authoritative, epoch]),
  );
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
  { records }: Lead,
  whole: SubsetAuthority,
  authoritative: (sourceLeads: boolean) => boolean,
): Authority {
  if (records.size <= 1) return whole;
  const parts = [...records].map(
    ([subset, record]) =>
      [subset, { epoch: record.epoch, authoritative: authoritative(record.authoritative) }] as const,
  );
  return { ...whole, subsets: Object.fromEntries(parts) };
}
