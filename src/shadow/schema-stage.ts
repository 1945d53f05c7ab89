/**
 * The stages of building the shadow that are about schemas, publications and slots, in the order they run.
 *
 * Every stage can be repeated: what an earlier run did is found by its record, or by its name in the catalogs.
 * 1. identities proven, then publication, on the source: an application's UPDATE must never meet a published table
 *    without identity;
 * 2. plan and fingerprint of the source, read around each other so that both describe the same schema;
 * 3. the schema on the destination, up to the tables' keys; roles first;
 * 4. the slot, after the publication it decodes by; its position is where the forward stream begins.
 */
import type { Clock } from '../core/clock.js';
import type { Log } from '../core/log.js';
import type { CatalogFingerprint, Direction, Finding } from '../core/ports.js';
import { UnderstudyError } from '../core/errors.js';
import type { ShadowSettings } from './settings.js';
import { isIdentity, requiredForms } from './format/forms.js';
import { inspectPartitioning } from './format/partitioning.js';
import { formattedPlan, readOwnedSequences } from './format/schema.js';
import { forgetUnmended } from './lost-slot.js';
import { diffFingerprints, readFingerprint } from './postgres/fingerprint.js';
import { ensureIdentities } from './postgres/identity.js';
import {
  assertFormat,
  readFingerprintRecord,
  readSourcePlan,
  writeFingerprint,
  writeFormat,
  writeSourcePlan,
} from './postgres/schema-records.js';
import { forgetProgress, initialiseProgress, readProgress } from './postgres/stream-records.js';
import { buildSchema, isBuiltByUs } from './postgres/schema/build.js';
import type { SchemaPlan } from './postgres/schema/plan.js';
import { readSchema } from './postgres/schema/read.js';
import { copyRoles } from './postgres/schema/roles.js';
import {
  createSlot,
  dropPublication,
  dropSlot,
  ensurePublication,
  readSlot,
  SLOT_ELSEWHERE,
  streamNames,
} from './postgres/slot.js';
import { forgetHistory } from './postgres/origin-history.js';
import { run, textOf, type Session } from './postgres/statement.js';
import type { TableInfo } from './postgres/table.js';
import { readTables } from './postgres/tables.js';

export interface StageContext {
  readonly settings: ShadowSettings;
  readonly source: Session;
  readonly destination: Session;
  readonly clock: Clock;
  readonly log: Log;
  readonly signal: AbortSignal;
  readonly onFindings: (findings: readonly Finding[]) => void;
  /** Nothing may be changed on the source, and its log is of no matter: no identities are set. */
  readonly sourceReadOnly?: boolean;
}

const READ_ATTEMPTS_MAX = 5;

/** What an earlier, unrecorded shadow of the same name left on the source. Its slot may begin before ours could. */
export async function dropLeftovers({ settings, source, clock }: StageContext): Promise<void> {
  const names = streamNames(settings.migrationId, 'forward');
  const slot = await readSlot(source, names.slot).catch((error: unknown) => {
    const lost = error instanceof UnderstudyError && error.code === 'slot-lost';
    if (lost && error.details[SLOT_ELSEWHERE] !== true) return { active: false };
    throw error;
  });
  if (slot?.active === true) {
    throw new UnderstudyError('busy', `slot ${names.slot} on the source is in use by another process`, {
      advice: 'Stop the other Understudy, or set another migration id.',
    });
  }
  await dropSlot(source, names.slot, clock);
  await dropPublication(source, names.publication);
  // How far the way back had come is kept on the source, and is nothing to a new destination.
  await forgetProgress(source, 'reverse');
  await forgetHistory(source, 'reverse');
  await forgetUnmended(source);
  await run(source, 'DELETE FROM understudy.table_copy', { what: 'forgetting what was repaired whole' });
}

/** Refuses what can't be shadowed; returns the source's tables, with their identities proven. */
async function proveTables(context: StageContext): Promise<readonly TableInfo[]> {
  const { source } = context;
  const encoding = textOf(
    (await run(source, 'SHOW server_encoding', { what: 'reading the encoding' })).rows[0],
    'server_encoding',
  );
  if (encoding === 'SQL_ASCII') {
    throw new UnderstudyError(
      'schema-unsupported',
      'the source’s encoding is SQL_ASCII: its bytes have no meaning',
      {
        advice: 'Move the data to a database with a real encoding first.',
      },
    );
  }
  const tables = await readTables(source.client);
  if (context.sourceReadOnly === true) return tables;
  const changed = await ensureIdentities(source, tables, context);
  return changed.length === 0 ? tables : await readTables(source.client);
}

/** Plan and fingerprint of one and the same schema. */
async function readPlan(
  context: StageContext,
): Promise<{ readonly plan: SchemaPlan; readonly fingerprint: CatalogFingerprint }> {
  const { source, destination } = context;
  const version = textOf(
    (await run(destination, 'SHOW server_version_num', { what: 'reading the version' })).rows[0],
    'server_version_num',
  );
  let before = await readFingerprint(source.client);
  for (let attempt = 1; ; attempt++) {
    const tables = await readTables(source.client);
    const forms = requiredForms(context.settings.format, tables, false);
    const plan = formattedPlan(
      await readSchema(source.client, { destinationVersionNum: Number(version) }),
      forms,
      isIdentity(context.settings.format) ? [] : await readOwnedSequences(source, tables, forms),
      { format: context.settings.format, destinationVersionNum: Number(version) },
    );
    const after = await readFingerprint(source.client);
    if (diffFingerprints(before, after).length === 0) return { plan, fingerprint: after };
    if (attempt >= READ_ATTEMPTS_MAX) throw changesTooFast();
    before = after;
  }
}

function changesTooFast(): UnderstudyError {
  return new UnderstudyError('catalog-changed', 'the source’s schema changes faster than it can be read', {
    retryable: true,
    advice: 'Wait until the migration of the schema that runs there is over.',
  });
}

/**
 * Tables, plan and fingerprint of one and the same schema: a table made between two of these readings would be in the
 * plan and the fingerprint, and never be copied.
 */
export async function readSource(context: StageContext): Promise<{
  readonly tables: readonly TableInfo[];
  readonly plan: SchemaPlan;
  readonly fingerprint: CatalogFingerprint;
}> {
  for (let attempt = 1; ; attempt++) {
    const before = await readFingerprint(context.source.client);
    const tables = await proveTables(context);
    const read = await readPlan(context);
    if (diffFingerprints(before, read.fingerprint).length === 0) return { tables, ...read };
    if (attempt >= READ_ATTEMPTS_MAX) throw changesTooFast();
  }
}

/**
 * Builds the destination up to the tables' keys, and records what the source looked like then. Returns the source's
 * tables, with their identities proven.
 */
export async function buildBeforeCopy(context: StageContext): Promise<readonly TableInfo[]> {
  const { source, destination, settings, signal, onFindings } = context;
  const { tables, plan, fingerprint } = await readSource(context);
  const unfit = (await inspectPartitioning(source.client, tables, settings.format)).find(
    ({ severity }) => severity === 'blocker',
  );
  if (unfit !== undefined)
    throw new UnderstudyError('format-refused', unfit.message, { advice: unfit.advice });
  const blocker = plan.unsupported.find((finding) => finding.severity === 'blocker');
  if (blocker !== undefined) {
    throw new UnderstudyError('schema-unsupported', `${blocker.object}: ${blocker.message}`, {
      advice: blocker.advice,
      details: { findings: plan.unsupported },
    });
  }
  onFindings(plan.unsupported);
  if (await isBuiltByUs(destination.client)) {
    await assertFormat(destination, settings.format);
    await assertUnchanged(context, fingerprint);
  } else {
    await writeFingerprint(destination, 'source', fingerprint);
    await writeSourcePlan(destination, plan);
    await writeFormat(destination, settings.format);
  }
  if (settings.copyRoles) onFindings((await copyRoles(source.client, destination.client)).findings);
  const report = await buildSchema(destination.client, plan.beforeCopy, { phase: 'before-copy', signal });
  onFindings(report.findings);
  return tables;
}

/** Indexes, foreign keys and the rest. Goes on where an earlier run stopped. */
export async function buildAfterCopy(context: StageContext): Promise<void> {
  const { destination, signal, onFindings, log } = context;
  const { plan, fingerprint } = await readPlan(context);
  await assertUnchanged(context, fingerprint);
  const report = await buildSchema(destination.client, plan.afterCopy, { phase: 'after-copy', signal });
  onFindings(report.findings);
  for (const statement of report.skipped) {
    log.warn({ object: statement.object }, 'left out: the destination lacks a role it names');
  }
  if (context.sourceReadOnly !== true) await carryIdentityChanges(context);
}

async function assertUnchanged(context: StageContext, now: CatalogFingerprint): Promise<void> {
  const built = await readFingerprintRecord(context.destination, 'source');
  if (built === null) {
    await writeFingerprint(context.destination, 'source', now);
    return;
  }
  const differences = diffFingerprints(built, now);
  const [first] = differences;
  if (first === undefined) return;
  throw new UnderstudyError(
    'catalog-changed',
    `the source’s schema changed while the shadow was built: ${first.object} was ${first.change}` +
      (differences.length > 1 ? `, and ${differences.length - 1} more` : ''),
    {
      advice:
        'Undo the change on the source, or run `understudy remove`, empty the destination, and start again.',
      details: { differences: differences.slice(0, 20) },
      // Where it is known what was built, the next attempt carries the change over, or waits for a decision.
      ...((await readSourcePlan(context.destination)) === null ? {} : { retryable: true }),
    },
  );
}

/** The destination's identities follow the source's; so does what has to be given back in the end. */
async function carryIdentityChanges({ source, destination }: StageContext): Promise<void> {
  const { rows } = await run(
    source,
    'SELECT schema_name, table_name, before FROM understudy.identity_change',
    { what: 'reading the changed replica identities' },
  );
  for (const row of rows) {
    await run(
      destination,
      {
        text: `INSERT INTO understudy.identity_change (schema_name, table_name, before) VALUES ($1, $2, $3)
          ON CONFLICT DO NOTHING`,
        values: [row['schema_name'], row['table_name'], row['before']],
      },
      { what: 'recording a replica identity' },
    );
  }
}

/**
 * Publication, slot and recorded start of one direction. `origin` is where the changes come from, `target` where the
 * progress is kept. Throws `slot-lost` where a stream that had begun has no slot any more.
 */
export async function ensureStream(
  direction: Direction,
  migrationId: string,
  origin: Session,
  target: Session,
  tables: readonly TableInfo[],
): Promise<void> {
  const names = streamNames(migrationId, direction);
  await ensurePublication(origin, names.publication, tables);
  const progress = await readProgress(target, direction);
  const slot = await readSlot(origin, names.slot);
  if (progress !== null) {
    if (slot !== null) return;
    throw new UnderstudyError('slot-lost', `slot ${names.slot} on the ${origin.side} is gone`, {
      advice: 'Run `understudy remove`, empty the destination, and start again.',
    });
  }
  const position = slot === null ? await createSlot(origin, names.slot) : slot.confirmed;
  await initialiseProgress(target, direction, { position, authoritative: direction === 'forward', epoch: 0 });
}
