/**
 * Follows the source's schema after the shadow was built: what can be carried over is, and anything else pauses the
 * shadow until a person has decided.
 *
 * One step, from `same` to `same`:
 *   1. the source's catalog differs from what the shadow was last brought to; plan and fingerprint are read around each
 *      other, new tables' identities proven
 *   2. obstacles? nothing is changed; the outcome names them
 *   3. the stream stands (its slot keeps the log), so that nothing writes to the tables that are changed
 *   4. new tables are published, and every transaction that is older than that has ended
 *   5. one transaction on the destination: the statements, and with them the new plan, the fingerprint, the columns that
 *      were added and the phase `copying`. Killed before its commit, everything begins again; after it, the shadow is
 *      in the phase it would be in had it been built that way, with some tables not copied and some indexes not built
 * What is left to do (copy, indexes, constraints, comments, privileges) is the ordinary way from `copying` to `following`.
 *
 * Labels of enums are added before the transaction, as they can't be used in the one that adds them. Should it then fail,
 * they are there already, which does no harm.
 *
 * Invariant: a destination that leads is never changed. Whoever asks outside of a transaction may hear what is not so any
 * more when it acts; so each transaction that changes the destination first takes the record of who leads, and holds it
 * to its end: a cutover's commit waits for it, or is seen by it.
 */
import type { CatalogFingerprint, Side } from '../core/ports.js';
import { UnderstudyError } from '../core/errors.js';
import { emitMessageSql } from '../core/postgres.js';
import { WHOLE_DATABASE } from '../core/ports.js';
import { UNENFORCED_KEYS } from '../core/subsets.js';
import { readAuthority, type Authority } from './follow/authority.js';
import { formOn, requiredForms, type Forms } from './format/forms.js';
import { takeNames } from './format/naming.js';
import {
  diffFingerprints,
  readFingerprint,
  replacedRows,
  type FingerprintDifference,
} from './postgres/fingerprint.js';
import { forgetTableCopy, readTableCopies } from './postgres/copy-records.js';
import { writePhase } from './postgres/records.js';
import {
  readFingerprintRecord,
  readSourcePlan,
  recordAddedColumn,
  writeFingerprint,
  writeSourcePlan,
} from './postgres/schema-records.js';
import {
  applySettings,
  hashOf,
  lacksRole,
  resetSettings,
  rolesOf,
  yieldingToApply,
} from './postgres/schema/build.js';
import { evolve, type Evolution, type Obstacle } from './postgres/schema/evolve.js';
import type { SchemaPlan, SchemaStatement } from './postgres/schema/plan.js';
import { awaitOlderTransactions, ensurePublication, streamNames } from './postgres/slot.js';
import { inTransaction, run, type Session } from './postgres/statement.js';
import { onlyTable, tableKey, type TableInfo } from './postgres/table.js';
import { readTables } from './postgres/tables.js';
import { readSource, type StageContext } from './schema-stage.js';
import { assertTwin, isAmong, markDone, runOne, runUnlessDone, tableToCopy } from './schema-statements.js';

export type SchemaOutcome =
  | { readonly kind: 'same' }
  /** Nothing was changed: a cutover or a rollback is open, or the source does not lead any more. */
  | { readonly kind: 'later' }
  | { readonly kind: 'carried'; readonly tables: readonly TableInfo[] }
  | { readonly kind: 'obstructed'; readonly obstacles: readonly Obstacle[] };

const OBSTACLES_SHOWN = 3;

/** What a person reads: what happened on the side that leads, and what brings the other on. */
export function obstacleError(obstacles: readonly Obstacle[], leader: Side = 'source'): UnderstudyError {
  const shown = obstacles.slice(0, OBSTACLES_SHOWN).map(({ object, what }) => `${object} ${what}`);
  const more = obstacles.length > OBSTACLES_SHOWN ? `, and ${obstacles.length - OBSTACLES_SHOWN} more` : '';
  const statements = obstacles.flatMap(({ sql }) => (sql === null ? [] : [`${sql};`]));
  const same = statements.length === 0 ? '' : ` (${statements.slice(0, OBSTACLES_SHOWN).join(' ')})`;
  const other = leader === 'source' ? 'destination' : 'source';
  const waits = leader === 'source' ? 'the shadow waits' : 'there is no rollback until that is settled';
  return new UnderstudyError(
    'schema-paused',
    `the ${leader}’s schema changed and ${waits}: ${shown.join('; ')}${more}`,
    {
      advice:
        `Make the same change on the ${other}${same} and run \`understudy resume\`, with --recopy TABLE for each ` +
        `table whose rows it changed; or undo it on the ${leader}, and the shadow goes on by itself.`,
      details: { obstacles: obstacles.slice(0, 20) },
    },
  );
}

/** Ends a transaction that may not change its side now. */
export class NotNow extends Error {
  readonly authority: Authority;

  constructor(authority: Authority) {
    super();
    this.authority = authority;
  }
}

/** While an operation is open, it decides who leads: what was changed meanwhile is for after it. */
function mayChange({ kind, operation }: Authority): boolean {
  return kind === 'leads' && !operation;
}

/** A transaction on the destination that holds, to its end, that the source leads. Throws {@link NotNow}. */
async function whileSourceLeads<T>(destination: Session, what: string, work: () => Promise<T>): Promise<T> {
  return await inTransaction(destination, what, async () => {
    const authority = await readAuthority(destination, true);
    if (!mayChange(authority)) throw new NotNow(authority);
    return await work();
  });
}

export interface StepHooks {
  /** Ends the forward stream before anything is changed. */
  readonly standStill: () => Promise<void>;
  /** From here on what is recorded may be a shadow that is not complete. */
  readonly onCarrying: () => void;
}

/** One step of following. */
export async function followSchema(context: StageContext, hooks: StepHooks): Promise<SchemaOutcome> {
  const { source, destination } = context;
  const built = await readFingerprintRecord(destination, 'source');
  const before = await readSourcePlan(destination);
  if (built === null || before === null) return { kind: 'same' };
  const differences = diffFingerprints(built, await readFingerprint(source.client));
  if (differences.length === 0) return { kind: 'same' };
  if (!mayChange(await readAuthority(destination, false))) return { kind: 'later' };
  const unenforced = await readUnenforced(source);
  if (unenforced.length > 0) return { kind: 'obstructed', obstacles: unenforced };
  const read = await readSource(context).catch((error: unknown) => {
    if (error instanceof UnderstudyError && ['schema-unsupported', 'format-refused'].includes(error.code))
      return error;
    throw error;
  });
  if (read instanceof UnderstudyError) return obstructedBy(read);
  const evolved = evolve(before, read.plan);
  const evolution = { ...evolved, recopied: [...evolved.recopied, ...replacedRows(built, read.fingerprint)] };
  if (evolution.obstacles.length > 0) return { kind: 'obstructed', obstacles: evolution.obstacles };
  const unexplained = unexplainedBy(evolution, before, read.plan, differences);
  if (unexplained.length > 0) return { kind: 'obstructed', obstacles: unexplained };
  context.onFindings(read.plan.unsupported);
  await hooks.standStill();
  await publishNew(context, read.tables);
  hooks.onCarrying();
  try {
    await carry(context, evolution, read);
  } catch (error) {
    if (error instanceof NotNow) return { kind: 'later' };
    if (!(error instanceof UnderstudyError) || error.code !== 'schema-build-failed' || error.retryable)
      throw error;
    const named = error.details['object'];
    const object = typeof named === 'string' ? named : '';
    return {
      kind: 'obstructed',
      obstacles: [{ object, what: `could not be carried over (${error.message})`, sql: null }],
    };
  }
  context.log.info(
    { objects: differences.slice(0, 20).map(({ object }) => object), recopied: evolution.recopied },
    'the source’s schema changed and was carried over',
  );
  return { kind: 'carried', tables: read.tables };
}

/** Foreign keys that subsets were parted without are not in the catalogs as they are meant to be on the destination. */
export async function readUnenforced(source: Session): Promise<readonly Obstacle[]> {
  const { rows: found } = await source.client.query<{ there: string }>(
    `SELECT pg_catalog.to_regclass('${UNENFORCED_KEYS}') IS NOT NULL AS there`,
  );
  if (found[0]?.there !== 't') return [];
  const { rows } = await source.client.query<{ object: string; sql: string }>(
    `SELECT pg_catalog.format('constraint %I on %I.%I', constraint_name, schema_name, table_name) AS object,
       pg_catalog.format('ALTER TABLE %I.%I VALIDATE CONSTRAINT %I', schema_name, table_name, constraint_name) AS sql
     FROM ${UNENFORCED_KEYS} ORDER BY 1`,
  );
  return rows.map(({ object, sql }) => ({
    object,
    what: 'is not validated yet, since its subsets were on different sides',
    sql,
  }));
}

export function obstructedBy(error: UnderstudyError): SchemaOutcome {
  return { kind: 'obstructed', obstacles: [{ object: error.message, what: '', sql: null }] };
}

/** Differences of the catalog that the plans don't show, such as an object that can't be carried at all. */
export function unexplainedBy(
  evolution: Evolution,
  before: Pick<SchemaPlan, 'beforeCopy' | 'afterCopy'>,
  after: SchemaPlan,
  differences: readonly FingerprintDifference[],
): readonly Obstacle[] {
  const { statements, first, forgotten, done } = evolution;
  const known = new Set([...before.beforeCopy, ...before.afterCopy].map(hashOf));
  const added = [...after.beforeCopy, ...after.afterCopy].some((statement) => !known.has(hashOf(statement)));
  if (added || statements.length + first.length + forgotten.length + done.length > 0) return [];
  // Of what is not carried, nothing of the shadow depends: it is named among the findings, and by check.
  const foreign = differences.filter(
    ({ object }) => !/^(foreign table|privileges of|extension|comments|rows of |column )/.test(object),
  );
  return foreign.map(({ object, change }) => ({ object, what: `was ${change}`, sql: null }));
}

async function publishNew(context: StageContext, tables: readonly TableInfo[]): Promise<void> {
  // Without the log nothing is published, and what an older transaction still writes is found by comparing.
  if (context.sourceReadOnly === true) return;
  const { source, settings } = context;
  await ensurePublication(source, streamNames(settings.migrationId, 'forward').publication, tables);
  await awaitOlderTransactions(source, context);
}

async function carry(
  context: StageContext,
  evolution: Evolution,
  read: {
    readonly plan: SchemaPlan;
    readonly tables: readonly TableInfo[];
    readonly fingerprint: CatalogFingerprint;
  },
): Promise<void> {
  const { destination, signal, settings } = context;
  const forms = requiredForms(settings.format, read.tables, false);
  const roles = await rolesOf(destination.client);
  const runnable = (statement: SchemaStatement): boolean => !lacksRole(statement, roles);
  await applySettings(destination.client);
  try {
    await addFirst(destination, evolution.first.filter(runnable), signal);
    const once = (): Promise<void> =>
      whileSourceLeads(destination, 'carrying the schema over', async () => {
        const tag = emitMessageSql({ t: 'apply', lane: WHOLE_DATABASE, epoch: 0 });
        await run(destination, tag, { what: 'tagging a transaction' });
        await takeNames(destination, settings.format, read.tables);
        for (const statement of evolution.statements.filter(runnable)) await runOne(destination, statement);
        await recordSteps(destination, evolution, read.plan);
        for (const column of evolution.addedColumns) await recordAddedColumn(destination, column);
        for (const table of read.tables) {
          if (isAmong(evolution.recopied, table)) await emptyForCopy(destination, table, forms);
        }
        await writeSourcePlan(destination, read.plan);
        await writeFingerprint(destination, 'source', read.fingerprint);
        await writePhase(destination, settings.migrationId, 'copying');
      });
    await yieldingToApply(once, signal);
  } finally {
    await resetSettings(destination.client);
  }
}

/** Each in a transaction of its own. */
async function addFirst(
  destination: Session,
  statements: readonly SchemaStatement[],
  signal: AbortSignal,
): Promise<void> {
  for (const statement of statements) {
    const once = (): Promise<void> =>
      whileSourceLeads(destination, 'adding a label', () => runOne(destination, statement));
    await yieldingToApply(once, signal);
  }
}

/** So that the build after the copy neither repeats what was carried over nor leaves out what must be made again. */
async function recordSteps(destination: Session, evolution: Evolution, plan: SchemaPlan): Promise<void> {
  const what = 'recording what was carried over';
  const forgotten = evolution.forgotten.map(hashOf);
  await run(
    destination,
    { text: 'DELETE FROM understudy.schema_step WHERE hash = ANY ($1::text[])', values: [forgotten] },
    { what },
  );
  const late = new Set(plan.afterCopy);
  for (const statement of evolution.done) {
    if (!late.has(statement)) continue;
    await run(
      destination,
      {
        text: `INSERT INTO understudy.schema_step (hash, ordinal, kind, object) VALUES ($1, 0, $2, $3)
          ON CONFLICT (hash) DO NOTHING`,
        values: [hashOf(statement), statement.kind, statement.object],
      },
      { what },
    );
  }
}

/** In replica role, which the guard lets pass: the shadow's own rows give way to a new copy of them. */
async function emptyForCopy(destination: Session, table: TableInfo, forms: Forms): Promise<void> {
  const what = `emptying ${tableKey(table)}`;
  await run(destination, `SET LOCAL session_replication_role = replica`, { what });
  await run(destination, emitMessageSql({ t: 'apply', lane: WHOLE_DATABASE, epoch: 0 }), { what });
  await run(destination, `DELETE FROM ${onlyTable(formOn(forms, table, 'destination'))}`, { what });
  await forgetTableCopy(destination, table);
}

/**
 * A person has made the change on the destination, or says that it does not matter: both schemas count as they are now.
 * What can be carried over still is, where the destination has not got it already.
 * `recopy`: tables, as `schema.table`, that are emptied and copied anew. Throws `catalog-changed` where a table of the
 * source lacks a twin with the same columns, `request-invalid` for one of `recopy` that is not there,
 * `already-cut-over` where the source does not lead, `busy` while a cutover or a rollback is open, and
 * `schema-build-failed`; nothing is changed then.
 */
export async function acceptSchema(
  context: StageContext,
  recopy: readonly string[],
): Promise<readonly TableInfo[]> {
  try {
    return await accept(context, recopy);
  } catch (error) {
    throw error instanceof NotNow ? notResumed(error.authority) : error;
  }
}

/** Why a decision comes to nothing. */
export function notResumed({ kind }: Pick<Authority, 'kind'>): UnderstudyError {
  if (kind === 'follows') {
    return new UnderstudyError(
      'already-cut-over',
      'the destination leads: nothing of it is changed to follow the source’s schema',
      { advice: 'Roll back first, where the source’s schema is to count; else there is nothing to resume.' },
    );
  }
  return new UnderstudyError('busy', 'a cutover or a rollback is open', {
    advice: 'Wait for it to end, then look at `understudy status`.',
  });
}

async function accept(context: StageContext, recopy: readonly string[]): Promise<readonly TableInfo[]> {
  const { destination, settings, signal } = context;
  const authority = await readAuthority(destination, false);
  if (!mayChange(authority)) throw new NotNow(authority);
  const read = await readSource(context);
  const before = (await readSourcePlan(destination)) ?? { beforeCopy: [], afterCopy: [] };
  const evolution = evolve(before, read.plan);
  const built = await readFingerprintRecord(destination, 'source');
  const recopied = [...evolution.recopied, ...replacedRows(built ?? {}, read.fingerprint, true)];
  const chosen = recopy.map((name) => tableToCopy(read.tables, name));
  await publishNew(context, read.tables);
  const known = new Set([...before.beforeCopy, ...before.afterCopy].map(hashOf));
  const late = read.plan.afterCopy.filter((statement) => !known.has(hashOf(statement)));
  const replaced = new Set(evolution.done.map(hashOf));
  await applySettings(destination.client);
  try {
    await addFirst(destination, evolution.first, signal);
    const once = (): Promise<void> =>
      whileSourceLeads(destination, 'taking both schemas as they are', async () => {
        await takeNames(destination, settings.format, read.tables);
        for (const statement of evolution.statements) await runUnlessDone(destination, statement);
        const theirs = new Map(
          (await readTables(destination.client)).map((table) => [tableKey(table), table]),
        );
        const forms = requiredForms(settings.format, read.tables, false);
        for (const table of read.tables) {
          const form = formOn(forms, table, 'destination');
          assertTwin(form, theirs.get(tableKey(form)));
        }
        for (const statement of late) {
          if (!replaced.has(hashOf(statement))) await runUnlessDone(destination, statement);
        }
        await recordSteps(destination, evolution, read.plan);
        for (const statement of late) await markDone(destination, statement);
        for (const column of evolution.addedColumns) await recordAddedColumn(destination, column);
        const copied = await readTableCopies(destination);
        for (const table of read.tables) {
          // One that was unlogged before holds rows that no copy has on record.
          const unrecorded = table.kind !== 'partitioned' && !table.unlogged && !copied.has(tableKey(table));
          if (unrecorded || chosen.includes(table) || isAmong(recopied, table))
            await emptyForCopy(destination, table, forms);
        }
        await writeSourcePlan(destination, read.plan);
        await writeFingerprint(destination, 'source', read.fingerprint);
        await writePhase(destination, settings.migrationId, 'copying');
      });
    await yieldingToApply(once, signal);
  } finally {
    await resetSettings(destination.client);
  }
  return read.tables;
}
