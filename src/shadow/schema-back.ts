/**
 * Follows the destination's schema while it leads, so that the way back stays open: what can be carried over to the source
 * is, and anything else is named, for a person to decide. The source's rows are never emptied and nothing of it is dropped
 * that holds rows.
 *
 * One step, from `same` to `same`:
 *   1. the destination's catalog differs from what the source was last brought to; new tables' identities proven
 *   2. obstacles? nothing is changed; the outcome names them
 *   3. new tables are published, and every older transaction has ended; then the way back stands (its slot keeps the log)
 *   4. one transaction on the source: the statements, the columns that were added, and on record as to be mended
 *      (lost-slot.ts) the tables that are new and those whose new column differs from row to row
 *   5. one transaction on the destination: what both sides' schemas are now. Killed between 4 and 5, everything begins
 *      again, and finds its statements done
 * The rows of the tables of 4 come over by comparing, from the next attempt on.
 *
 * Invariant: only the source of a destination that leads everything is changed: its transactions hold, to their end, the
 * source's fence (held.ts), which the end of a rollback lowers. No other is open when they begin.
 */
import type { CatalogFingerprint } from '../core/ports.js';
import { WHOLE_DATABASE } from '../core/ports.js';
import { emitMessageSql } from '../core/postgres.js';
import { asUnderstudyError, UnderstudyError } from '../core/errors.js';
import { readAuthority } from './follow/authority.js';
import { isIdentity } from './format/forms.js';
import { heldFor } from './held.js';
import type { LaneState } from './lane-state.js';
import { recordUnmended } from './lost-slot.js';
import { diffFingerprints, readFingerprint, replacedRows } from './postgres/fingerprint.js';
import { ensureIdentities } from './postgres/identity.js';
import {
  readDestinationPlan,
  readFingerprintRecord,
  readSourcePlan,
  recordAddedColumn,
  writeDestinationPlan,
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
import { evolve, type BuiltPlan, type Evolution, type Obstacle } from './postgres/schema/evolve.js';
import type { SchemaPlan, SchemaStatement } from './postgres/schema/plan.js';
import { readSchema } from './postgres/schema/read.js';
import { awaitOlderTransactions, ensurePublication, streamNames } from './postgres/slot.js';
import { inTransaction, run, textOf, type Session } from './postgres/statement.js';
import { tableKey, type TableInfo } from './postgres/table.js';
import { readTables } from './postgres/tables.js';
import {
  NotNow,
  notResumed,
  obstructedBy,
  readUnenforced,
  unexplainedBy,
  type SchemaOutcome,
} from './schema-follow.js';
import { readSource, type StageContext } from './schema-stage.js';
import {
  assertTwin,
  DONE_STATES,
  isAmong,
  markDone,
  runUnlessDone,
  tableToCopy,
  THERE_STATES,
} from './schema-statements.js';
import { isUnlogged } from './unlogged.js';

/** What the destination's schema is, in the words of the source's server. */
interface DestinationSchema {
  readonly tables: readonly TableInfo[];
  readonly plan: SchemaPlan;
  readonly fingerprint: CatalogFingerprint;
}

export interface BackContext extends StageContext {
  /** The way back's. */
  readonly lane: LaneState;
  /** Ends both streams, what was written before the change carried first, as far as that can be. */
  readonly standStill: () => Promise<void>;
  /** Lets both go on, where nothing came of it. */
  readonly goOn: () => void;
}

/** The destination as what is read, the source as what is brought on. */
function turned(context: StageContext): StageContext {
  const { source, destination, settings } = context;
  return {
    ...context,
    source: destination,
    destination: source,
    settings: { ...settings, format: undefined },
  };
}

/** The destination is complete, and not written to by anybody else: this is what the source is equal to. */
export async function recordDestinationPlan({
  source,
  destination,
  settings,
}: Pick<StageContext, 'source' | 'destination' | 'settings'>): Promise<void> {
  if (!isIdentity(settings.format)) return;
  const { rows } = await run(source, 'SHOW server_version_num', { what: 'reading the version' });
  const destinationVersionNum = Number(textOf(rows[0], 'server_version_num'));
  await writeDestinationPlan(destination, await readSchema(destination.client, { destinationVersionNum }));
}

async function mayBring({ destination, lane }: BackContext): Promise<boolean> {
  const { kind, operation } = await readAuthority(destination, false);
  return kind === 'follows' && !operation && lane.leads.length === lane.subsets.length;
}

/** One step of following. `same` too where it can't be followed at all. */
export async function followBack(context: BackContext): Promise<SchemaOutcome> {
  const { destination } = context;
  const built = await readFingerprintRecord(destination, 'destination');
  const before = await readDestinationPlan(destination);
  if (built === null || before === null) return { kind: 'same' };
  const differences = diffFingerprints(built, await readFingerprint(destination.client));
  if (differences.length === 0) return { kind: 'same' };
  if (!(await mayBring(context))) return { kind: 'later' };
  const unenforced = await readUnenforced(destination);
  if (unenforced.length > 0) return { kind: 'obstructed', obstacles: unenforced };
  const read = await readSource(turned(context)).catch((error: unknown) => {
    if (error instanceof UnderstudyError && error.code === 'schema-unsupported') return error;
    throw error;
  });
  if (read instanceof UnderstudyError) return obstructedBy(read);
  const [was, is] = await withoutDeferred(destination, before, read.plan);
  const evolved = evolve(was, is);
  const evolution = { ...evolved, recopied: [...evolved.recopied, ...replacedRows(built, read.fingerprint)] };
  const obstacles = [...evolution.obstacles, ...deferredObstacles(is, was)];
  if (obstacles.length > 0) return { kind: 'obstructed', obstacles };
  const unexplained = unexplainedBy(evolution, was, { ...read.plan, ...is }, differences);
  if (unexplained.length > 0) return { kind: 'obstructed', obstacles: unexplained };
  try {
    await bring(context, evolution, { read, was, is, chosen: [] });
  } catch (thrown) {
    if (thrown instanceof NotNow) return { kind: 'later' };
    const error = asUnderstudyError(thrown, 'internal', 'carrying the schema back');
    if (!['schema-build-failed', 'catalog-changed'].includes(error.code) || error.retryable) throw error;
    const object = error.details['object'];
    return {
      kind: 'obstructed',
      obstacles: [
        {
          object: typeof object === 'string' ? object : '',
          what: `could not be carried over (${error.message})`,
          sql: null,
        },
      ],
    };
  }
  context.log.info(
    { objects: differences.slice(0, 20).map(({ object }) => object) },
    'the destination’s schema changed and was carried over to the source',
  );
  return { kind: 'carried', tables: await readTables(context.source.client) };
}

/**
 * A person has made the change on the source, or says that it does not matter. As `resume` on the way forward: what can be
 * carried over still is. Throws as `acceptSchema` does.
 */
export async function acceptBack(
  context: BackContext,
  recopy: readonly string[],
): Promise<readonly TableInfo[]> {
  const { destination } = context;
  if (!(await mayBring(context))) throw notResumed({ kind: 'leads' });
  const before = (await readDestinationPlan(destination)) ?? { beforeCopy: [], afterCopy: [] };
  const read = await readSource(turned(context));
  const built = await readFingerprintRecord(destination, 'destination');
  const [was, is] = await withoutDeferred(destination, before, read.plan);
  const evolved = evolve(was, is);
  const rows = replacedRows(built ?? {}, read.fingerprint, true);
  const evolution = { ...evolved, recopied: [...evolved.recopied, ...rows] };
  const chosen = recopy.map((name) => tableToCopy(read.tables, name));
  try {
    await bring(context, evolution, { read, was, is, chosen });
  } catch (error) {
    throw error instanceof NotNow ? notResumed(error.authority) : error;
  }
  return await readTables(context.source.client);
}

/** Triggers that fire for replicated rows too get their state at each switch: they are not for here. */
async function withoutDeferred(
  destination: Session,
  before: BuiltPlan,
  after: BuiltPlan,
): Promise<readonly [BuiltPlan, BuiltPlan]> {
  const { rows } = await run(
    destination,
    `SELECT pg_catalog.format('%I on %I.%I', name, schema_name, table_name) AS object
      FROM understudy.deferred_trigger`,
    { what: 'reading the triggers that wait for a switch' },
  );
  const known = rows.flatMap(({ object }) => [`trigger ${object}`, `rule ${object}`]);
  const kept = (statements: readonly SchemaStatement[]): SchemaStatement[] =>
    statements.filter(({ object }) => !known.includes(object));
  const of = (plan: BuiltPlan): BuiltPlan => ({
    beforeCopy: kept(plan.beforeCopy),
    afterCopy: kept(plan.afterCopy),
  });
  return [of(before), of(after)];
}

const DEFERS = /^INSERT INTO understudy\.deferred_trigger/;

function deferredObstacles(is: BuiltPlan, was: BuiltPlan): readonly Obstacle[] {
  const known = new Set(was.afterCopy.map(hashOf));
  return is.afterCopy
    .filter((statement) => DEFERS.test(statement.sql) && !known.has(hashOf(statement)))
    .map(({ object }) => ({ object, what: 'would fire for what comes back, too', sql: null }));
}

interface Bringing {
  readonly read: DestinationSchema;
  readonly was: BuiltPlan;
  readonly is: BuiltPlan;
  /** Tables whose rows are compared and mended in any case. */
  readonly chosen: readonly TableInfo[];
}

async function bring(context: BackContext, evolution: Evolution, bringing: Bringing): Promise<void> {
  await publishNew(context, bringing.read.tables);
  await context.standStill();
  try {
    await bringStill(context, evolution, bringing);
  } catch (error) {
    context.goOn();
    throw error;
  }
}

/**
 * While the streams go on: what they pass over of a new table is compared later, and an older transaction may last. The
 * publication alone says what is published: the way back may have read of a new table already, and one that was dropped and
 * created again has a known name.
 */
async function publishNew(context: BackContext, tables: readonly TableInfo[]): Promise<void> {
  const { source, destination, settings } = context;
  const { publication } = streamNames(settings.migrationId, 'reverse');
  const added = await ensurePublication(destination, publication, tables);
  const there = new Set((await readTables(source.client)).map(tableKey));
  // An earlier attempt may have died in the waiting.
  if (added === 0 && tables.every((table) => there.has(tableKey(table)))) return;
  await awaitOlderTransactions(destination, context);
}

async function bringStill(context: BackContext, evolution: Evolution, bringing: Bringing): Promise<void> {
  const { source, signal } = context;
  const { read } = bringing;
  const known = new Set([...bringing.was.beforeCopy, ...bringing.was.afterCopy].map(hashOf));
  const replaced = new Set(evolution.done.map(hashOf));
  const late = bringing.is.afterCopy.filter(
    (statement) =>
      !known.has(hashOf(statement)) && !replaced.has(hashOf(statement)) && !DEFERS.test(statement.sql),
  );
  const there = new Set((await readTables(source.client)).map(tableKey));
  await applySettings(source.client);
  try {
    const roles = await rolesOf(source.client);
    const runnable = (statement: SchemaStatement): boolean => !lacksRole(statement, roles);
    for (const label of evolution.first.filter(runnable)) {
      await yieldingToApply(() => whileFenced(context, () => carried(source, label)), signal);
    }
    const once = (): Promise<void> =>
      whileFenced(context, async () => {
        for (const statement of [...evolution.statements, ...late].filter(runnable)) {
          await carried(source, statement);
        }
        await assertTwins(source, read.tables);
        for (const column of evolution.addedColumns) await recordAddedColumn(source, column);
        const mended = read.tables.filter(
          (table) =>
            !there.has(tableKey(table)) ||
            isAmong(evolution.recopied, table) ||
            bringing.chosen.includes(table),
        );
        const rows = mended.filter((table) => table.kind !== 'partitioned' && !isUnlogged(table));
        await recordUnmended(source, rows);
      });
    await yieldingToApply(once, signal);
  } finally {
    await resetSettings(source.client);
  }
  await ensureIdentities(source, await readTables(source.client), context);
  await recordBoth(context, read);
}

/** Of what an earlier, killed step has done nothing is left to do. */
async function carried(source: Session, statement: SchemaStatement): Promise<void> {
  const takesAway = /^DROP |^ALTER [^(]* DROP /.test(statement.sql);
  await runUnlessDone(source, statement, takesAway ? DONE_STATES : THERE_STATES);
}

/** A transaction on the source that holds, to its end, the fence under which the destination leads. Throws {@link NotNow}. */
async function whileFenced({ source, lane }: BackContext, work: () => Promise<void>): Promise<void> {
  await inTransaction(source, 'carrying the schema back', async () => {
    const all = new Set(lane.subsets);
    const held = await heldFor(source, all, lane.authority);
    if (held.size < all.size)
      throw new NotNow({ kind: 'leads', epoch: lane.authority.epoch, operation: true });
    const tag = emitMessageSql({ t: 'apply', lane: WHOLE_DATABASE, epoch: lane.authority.epoch });
    await run(source, tag, { what: 'tagging a transaction' });
    await work();
  });
}

async function assertTwins(source: Session, tables: readonly TableInfo[]): Promise<void> {
  const ours = new Map((await readTables(source.client)).map((table) => [tableKey(table), table]));
  for (const table of tables) assertTwin(table, ours.get(tableKey(table)), 'source');
}

/** So that neither direction finds anything left to carry. */
async function recordBoth(context: BackContext, read: DestinationSchema): Promise<void> {
  const { destination } = context;
  const now = await readSource(context);
  const before = (await readSourcePlan(destination)) ?? { beforeCopy: [], afterCopy: [] };
  const known = new Set([...before.beforeCopy, ...before.afterCopy].map(hashOf));
  const what = 'recording the schema of both sides';
  await inTransaction(destination, what, async () => {
    for (const statement of now.plan.afterCopy) {
      if (!known.has(hashOf(statement))) await markDone(destination, statement);
    }
    for (const { schema, name, kind } of read.tables) {
      if (kind === 'partitioned') continue;
      const text = `INSERT INTO understudy.table_copy (schema_name, table_name, done) VALUES ($1, $2, true)
        ON CONFLICT DO NOTHING`;
      await run(destination, { text, values: [schema, name] }, { what });
    }
    await writeSourcePlan(destination, now.plan);
    await writeFingerprint(destination, 'source', now.fingerprint);
    // As they were read: what was changed since is for the next step.
    await writeDestinationPlan(destination, read.plan);
    await writeFingerprint(destination, 'destination', read.fingerprint);
  });
}
