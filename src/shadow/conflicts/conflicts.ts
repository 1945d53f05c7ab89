/**
 * Conflicts: rows of the destination that somebody wrote past the guard while the source led. The way back reads them in
 * the destination's log, where what Understudy writes is tagged and these are not; each is recorded before that
 * stream's position moves past it, so none is lost with a process.
 *
 *   open ──both rows the same──► settled          open ──rule──► settled (the loser replaced)
 *   open ──names no row, or the module decides nothing──► unsettled ──next start, if it names one──► open
 *
 * The source's row wins as any repair does: in the stream's order, under watermarks. The destination's is written to the
 * source, in replica role, while the source is not fenced and its row is still the one that was judged; it comes to the
 * destination again by the stream, where it is already. A row that would break a foreign key there is looked at again
 * behind the others, as its parent or its children may be among them, and is else left unsettled. Both rows are recorded
 * before either is replaced. Nothing is settled while the destination leads, or a switch is under way.
 *
 * Failing: what can't be settled now stays open and is tried again; nothing here ends the shadow.
 */
import type { Clock } from '../../core/clock.js';
import { asUnderstudyError, UnderstudyError } from '../../core/errors.js';
import type { Log } from '../../core/log.js';
import {
  type ConflictCounts,
  type ConflictRecord,
  type DatabaseEndpoint,
  type Side,
} from '../../core/ports.js';
import { readAuthority } from '../follow/authority.js';
import { readKeys } from '../follow/key-reader.js';
import { APPLY_SETTINGS, Applier } from '../postgres/apply.js';
import { columnAt, keyEquals, keyIndexes } from '../postgres/apply-sql.js';
import { keyId, targetOf, type ApplyTable, type Key } from '../postgres/apply-table.js';
import { quoteIdent } from '../../core/postgres.js';
import type { Step } from '../postgres/flush-plan.js';
import {
  closeSession,
  endOnAbort,
  inTransaction,
  openSession,
  run,
  sqlStateOf,
  withSession,
  type Session,
} from '../postgres/statement.js';
import {
  countConflicts,
  ensureConflicts,
  listConflicts,
  readOpen,
  recordRows,
  recordSettled,
  recordStrays,
  type OpenConflict,
  type StrayWrite,
} from './records.js';
import { brokenForeignKey, readReferenced } from './references.js';
import { decide, loadSettle, type ConflictSettings, type RowValue, type SettleFunction } from './rule.js';

export interface ConflictsContext {
  readonly endpoints: Readonly<Record<Side, DatabaseEndpoint>>;
  readonly clock: Clock;
  readonly log: Log;
  /** By its name on the destination, as the destination has it; its target is the source's form. */
  readonly table: (name: string) => ApplyTable | undefined;
  /** Whether the tables are known: not before the way back has connected, nor while it learns of new ones. */
  readonly ready: () => boolean;
  /** `schema.table` of the source → the column that says when a row was written. */
  readonly versionColumns: Readonly<Record<string, string>>;
  /** The row may differ: whoever compares what was changed lately is to look at it. */
  readonly onSuspect: (table: ApplyTable, key: Key) => void;
  /** Rows may differ that can't be named: what was verified before says nothing any more. */
  readonly onUnnamed: () => void;
  /** Replaces the destination's row by the source's. */
  readonly repair: (source: ApplyTable, key: Key, signal: AbortSignal) => Promise<void>;
}

interface Sides {
  readonly source: Session;
  readonly destination: Session;
  /** Writes to the source: one for its connection, whose prepared statements it names. */
  readonly applier: Applier;
}

const BATCH = 100;
/**
 * The application's row is waited for only so long: whoever waits holds the fence's record, and a wait that ends before
 * deadlock_timeout never costs the application its transaction.
 */
const SOURCE_SETTINGS = { ...APPLY_SETTINGS, lock_timeout: '300ms' };
const RETRY_MS = 2000;

interface Refused {
  readonly open: OpenConflict;
  readonly reason: string;
}

class BrokenReference extends Error {
  constructor(name: string) {
    super(`the destination’s row would break foreign key ${name} on the source`);
  }
}

export class Conflicts {
  readonly #settings: ConflictSettings;
  readonly #context: ConflictsContext;
  #counts: ConflictCounts = { open: 0, settled: 0, unsettled: 0 };
  #wake: () => void = () => undefined;

  constructor(settings: ConflictSettings, context: ConflictsContext) {
    this.#settings = settings;
    this.#context = context;
  }

  /** As of the last look. */
  get counts(): ConflictCounts {
    return this.#counts;
  }

  /** Records them durably. Throws `destination-…`. */
  async note(strays: readonly StrayWrite[]): Promise<void> {
    const { log, table: tableOf, onSuspect, onUnnamed } = this.#context;
    await this.#onDestination(async (session) => {
      await recordStrays(session, strays);
      this.#counts = await countConflicts(session);
    });
    const tables = new Set(strays.map(({ table }) => `${table.schema}.${table.name}`));
    log.warn({ writes: strays.length, tables: [...tables] }, 'the destination was written to past its guard');
    for (const { table, key } of strays) {
      const known = tableOf(`${table.schema}.${table.name}`);
      if (known === undefined || key === null) onUnnamed();
      else onSuspect(targetOf(known), key);
    }
    this.#wake();
  }

  async list(limit: number): Promise<readonly ConflictRecord[]> {
    return await this.#onDestination((session) => listConflicts(session, limit));
  }

  async #onDestination<T>(use: (session: Session) => Promise<T>): Promise<T> {
    return await withSession(
      'destination',
      this.#context.endpoints.destination,
      'conflicts',
      async (session) => {
        await ensureConflicts(session);
        return await use(session);
      },
    );
  }

  /** Settles what is open until the signal aborts. Never throws. */
  async run(signal: AbortSignal): Promise<void> {
    const { clock, log } = this.#context;
    let settle: SettleFunction | null | undefined;
    while (!signal.aborted) {
      try {
        if (settle === undefined) {
          settle = await loadSettle(this.#settings);
          await this.#reopen();
        }
        if (this.#counts.open > 0) await this.#settleOpen(settle, signal);
      } catch (error) {
        const { code, message } = asUnderstudyError(error, 'internal', 'settling conflicts');
        if (!signal.aborted) log.warn({ code, reason: message }, 'conflicts could not be settled yet');
      }
      const woken = new AbortController();
      this.#wake = () => woken.abort();
      const waitMs = this.#counts.open > 0 || settle === undefined ? RETRY_MS : 3_600_000;
      await clock.sleep(waitMs, AbortSignal.any([signal, woken.signal])).catch(() => undefined);
      this.#wake = () => undefined;
    }
  }

  async #reopen(): Promise<void> {
    await this.#onDestination(async (session) => {
      await run(
        session,
        `UPDATE understudy.conflict SET state = 'open' WHERE state = 'unsettled' AND key IS NOT NULL`,
        { what: 'opening conflicts again' },
      );
      this.#counts = await countConflicts(session);
    });
  }

  async #settleOpen(settle: SettleFunction | null, signal: AbortSignal): Promise<void> {
    const { endpoints } = this.#context;
    const destination = await openSession('destination', endpoints.destination, 'conflicts');
    let source: Session | undefined;
    try {
      endOnAbort(destination, signal, 0);
      if (!this.#context.ready() || (await readAuthority(destination, false)).kind !== 'leads') return;
      source = await openSession('source', endpoints.source, 'conflicts', SOURCE_SETTINGS);
      endOnAbort(source, signal, 0);
      const sides = { source, destination, applier: new Applier(source) };
      const all = await readOpen(destination, BATCH);
      let turn: readonly Refused[] = all.map((open) => ({ open, reason: '' }));
      for (let before = Infinity; turn.length > 0 && turn.length < before;) {
        before = turn.length;
        turn = await this.#turn(sides, turn, settle, signal);
      }
      // What the rest waits for may be among those that were not read yet.
      const wait = all.length === BATCH && turn.length < BATCH;
      for (const { open, reason } of wait ? [] : turn) {
        const { rule } = this.#settings;
        await recordSettled(destination, open.id, { state: 'unsettled', rule, winner: null, reason });
      }
      this.#counts = await countConflicts(destination);
    } finally {
      await closeSession(destination);
      await closeSession(source);
    }
  }

  /** Settles what can be; returns what would break a foreign key. */
  async #turn(
    sides: Sides,
    turn: readonly Refused[],
    settle: SettleFunction | null,
    signal: AbortSignal,
  ): Promise<readonly Refused[]> {
    const { rule } = this.#settings;
    const refused: Refused[] = [];
    for (const { open } of turn) {
      signal.throwIfAborted();
      try {
        await this.#settleOne(sides, open, settle, signal);
      } catch (error) {
        const sqlState = sqlStateOf(error) ?? '';
        if (error instanceof BrokenReference) {
          refused.push({ open, reason: error.message });
          continue;
        }
        if (signal.aborted || !/^(22|23|40|42|55P03)/.test(sqlState)) throw error;
        this.#context.log.warn({ conflict: open.id, sqlState }, 'a conflict could not be settled');
        if (!/^(22|23|42)/.test(sqlState)) continue;
        const reason = `the row is refused with SQLSTATE ${sqlState}`;
        await recordSettled(sides.destination, open.id, { state: 'unsettled', rule, winner: null, reason });
      }
    }
    return refused;
  }

  async #settleOne(
    sides: Sides,
    open: OpenConflict,
    settle: SettleFunction | null,
    signal: AbortSignal,
  ): Promise<void> {
    const { rule } = this.#settings;
    const { destination } = sides;
    const there = this.#context.table(open.table);
    const unsettled = (reason: string): Promise<void> =>
      recordSettled(destination, open.id, { state: 'unsettled', rule, winner: null, reason });
    if (there?.key == null) return await unsettled('the table is not one of the shadow’s any more');
    const here = targetOf(there);
    const ours = await this.#read(sides.source, here, here, open.key);
    const theirs = await this.#read(destination, there, here, open.key);
    await recordRows(destination, open.id, { source: ours.json, destination: theirs.json });
    if (ours.json === theirs.json) {
      const reason = 'both rows are the same';
      return await recordSettled(destination, open.id, { state: 'settled', rule, winner: null, reason });
    }
    try {
      const { winner, reason } = await decide(
        rule,
        {
          table: open.table,
          key: open.key,
          source: parsed(ours.json),
          destination: parsed(theirs.json),
          sourceWrittenMs: ours.writtenMs,
          destinationWrittenMs: this.#versionColumn(here) === undefined ? open.writtenMs : theirs.writtenMs,
        },
        settle,
      );
      if (winner === 'source') await this.#context.repair(here, open.key, signal);
      else if (!(await writeToSource(sides, there, open.key, ours.json))) return;
      await recordSettled(destination, open.id, { state: 'settled', rule, winner, reason });
    } catch (error) {
      if (!(error instanceof UnderstudyError) || error.code !== 'conflict-undecided') throw error;
      await unsettled(error.message);
    }
  }

  #versionColumn(here: ApplyTable): number | undefined {
    const name = this.#context.versionColumns[here.name];
    const index = here.columns.findIndex((column) => column.name === name);
    return index === -1 ? undefined : index;
  }

  /** The row as JSON text, and when it was written, as far as that is known. */
  async #read(
    session: Session,
    table: ApplyTable,
    here: ApplyTable,
    key: Key,
  ): Promise<{ readonly json: string | null; readonly writtenMs: number | null }> {
    const version = this.#versionColumn(here);
    const written =
      version === undefined
        ? `CASE WHEN pg_catalog.current_setting('track_commit_timestamp') = 'on'
             THEN pg_catalog.pg_xact_commit_timestamp(t.xmin) END`
        : `t.${quoteIdent(columnAt(table, version).name)}`;
    const { where, values } = byKey(table, key);
    const { rows } = await run(
      session,
      {
        text: `SELECT pg_catalog.to_jsonb(t.*)::text AS json, EXTRACT(epoch FROM ${written}) * 1000 AS written_ms
          FROM ${table.only} AS t WHERE ${where}`,
        values,
      },
      { what: `reading a row of ${table.name}`, carriesRows: true },
    );
    const [row] = rows;
    const ms = row?.['written_ms'];
    return { json: row?.['json'] ?? null, writtenMs: ms == null ? null : Number(ms) };
  }
}

/** False where the source is fenced, or its row is another by now: it is tried again. */
async function writeToSource(
  { source, destination, applier }: Sides,
  there: ApplyTable,
  key: Key,
  judged: string | null,
): Promise<boolean> {
  const read = await readKeys(destination, there, [key]);
  const row = read?.rows[0]?.row ?? null;
  const here = targetOf(there);
  const what = `writing a row of ${here.name}`;
  return await inTransaction(source, what, async () => {
    if (await isFenced(source)) return false;
    const { where, values } = byKey(here, key);
    const now = await run(
      source,
      {
        text: `SELECT pg_catalog.to_jsonb(t.*)::text AS json FROM ${here.only} AS t WHERE ${where} FOR UPDATE`,
        values,
      },
      { what, carriesRows: true },
    );
    if ((now.rows[0]?.['json'] ?? null) !== judged) return false;
    const referenced = await readReferenced(source, here, key);
    const keyed = new Map([[keyId(key), { key, row, existed: judged !== null }]]);
    const steps: readonly Step[] = [{ kind: 'rows', tables: [{ table: there, keyed, keyless: [] }] }];
    await applier.apply(steps, { complete: false });
    const broken = await brokenForeignKey(source, here, key, referenced);
    if (broken !== null) throw new BrokenReference(broken);
    return true;
  });
}

/** Whether any subset is; holds off a fence until the transaction's end. */
async function isFenced(source: Session): Promise<boolean> {
  const what = 'asking whether the source is fenced';
  const { rows: found } = await run(
    source,
    `SELECT pg_catalog.to_regclass('understudy.epoch') IS NOT NULL AS found`,
    { what },
  );
  if (found[0]?.['found'] !== 't') return false;
  const { rows } = await run(source, 'SELECT fenced FROM understudy.epoch ORDER BY subset FOR SHARE', {
    what,
  });
  return rows.some((row) => row['fenced'] === 't');
}

function byKey(table: ApplyTable, key: Key): { readonly where: string; readonly values: string[] } {
  const indexes = keyIndexes(table);
  const where = keyEquals(
    table,
    't',
    (column) => `$${indexes.indexOf(column) + 1}::${columnAt(table, column).type}`,
  );
  return { where, values: [...key] };
}

function parsed(json: string | null): RowValue {
  return json === null ? null : (JSON.parse(json) as RowValue);
}
