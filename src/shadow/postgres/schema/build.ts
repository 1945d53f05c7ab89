/**
 * Runs a schema plan on the destination.
 *
 * before-copy: one transaction, all or nothing, on a destination that holds none of the tables; recorded in
 * `understudy.shadow_schema`, so that a second run finds its own work and does nothing.
 * after-copy: one transaction per statement, each together with its record in `understudy.schema_step`: a run that was
 * interrupted goes on where it stopped, and no index is built twice. Steps are known by their text, not their number:
 * a plan read again may have gained or lost a statement.
 *
 * Failing: a constraint that does not validate or a materialised view that does not refresh is a finding, and tried
 * again by the next run. So is an owner, privilege or setting that Understudy's account may not give or the destination
 * does not know. Anything else stops the build, naming the statement. A cancellation takes effect between statements.
 *
 * After the copy the stream applies changes to the same tables meanwhile. A foreign key locks two tables in its own
 * order, an applied transaction in the application's: they can deadlock. The builder is then the one to yield, and
 * tries that statement again: a server looks for a deadlock once in a wait, so a cycle that closes after the builder's
 * look would be found by the stream's; the builder gives up waiting before that.
 */
import { createHash } from 'node:crypto';
import type pg from 'pg';
import { UnderstudyError, type ErrorContext } from '../../../core/errors.js';
import type { Finding } from '../../../core/ports.js';
import { quoteLiteral } from '../../../core/postgres.js';
import type { SchemaStatement, SchemaStatementKind } from './plan.js';

export type BuildPhase = 'before-copy' | 'after-copy';

export interface BuildProgress {
  readonly done: number;
  readonly total: number;
  /** The statement about to run; undefined at the end. */
  readonly statement: SchemaStatement | undefined;
}

export interface BuildOptions {
  readonly phase: BuildPhase;
  readonly signal: AbortSignal;
  readonly onProgress?: (progress: BuildProgress) => void;
}

export interface BuildReport {
  /** Statements run now; the ones recorded as done by an earlier run are not among them. */
  readonly ran: number;
  /** Statements left out because the destination lacks a role they name. */
  readonly skipped: readonly SchemaStatement[];
  /** What failed without stopping the build: a constraint that does not validate, a view that does not refresh. */
  readonly findings: readonly Finding[];
}

const RECORDS_SQL = `
SELECT pg_advisory_xact_lock(hashtext('understudy'));
CREATE SCHEMA IF NOT EXISTS understudy;
CREATE TABLE IF NOT EXISTS understudy.shadow_schema (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  statements integer NOT NULL,
  built_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE IF NOT EXISTS understudy.schema_step (
  hash text PRIMARY KEY,
  ordinal integer NOT NULL,
  kind text NOT NULL,
  object text NOT NULL,
  done_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE IF NOT EXISTS understudy.deferred_trigger (
  enable_sql text PRIMARY KEY,
  disable_sql text NOT NULL,
  schema_name text NOT NULL,
  table_name text NOT NULL,
  name text NOT NULL,
  state text NOT NULL);`;

/** Bodies and defaults of the destination's own must not decide what is built. */
const BUILD_SETTINGS: Readonly<Record<string, string>> = {
  check_function_bodies: 'off',
  default_tablespace: '',
  default_table_access_method: 'heap',
  xmloption: 'content',
};

/** SQLSTATEs after which the same statement may well succeed: lock timeout, deadlock, serialization, cancel. */
const PASSING_STATES = new Set(['55P03', '40P01', '40001', '57014', '53300', '53200', '53100']);

/** Of these, the ones that another transaction's locks cause. */
const LOCK_STATES = new Set(['55P03', '40P01']);
const LOCK_ATTEMPTS_MAX = 50;
const LOCK_PAUSE_MS = 20;
/** Both well below the 1 s after which a server looks for a deadlock on the stream's behalf. */
const LOCK_TIMEOUT = '400ms';
const DEADLOCK_TIMEOUT = '20ms';

function sqlStateOf(error: unknown): string | undefined {
  const code = (error as { code?: unknown } | null)?.code;
  return typeof code === 'string' && /^[0-9A-Z]{5}$/.test(code) ? code : undefined;
}

function connectionLost(state: string | undefined): boolean {
  return state === undefined || state.startsWith('08') || state.startsWith('57P');
}

const ADVICE: Readonly<Record<string, string>> = {
  '42501':
    'Give Understudy’s account on the destination the privilege, or let it be a superuser while it builds.',
  '58P01': 'Install the extension’s package on the destination’s server.',
  '0A000': 'The destination does not support this; drop or change the object on the source.',
  '42P07': 'Use an empty database as the destination, or drop the object there.',
  '42710': 'Use an empty database as the destination, or drop the object there.',
  '42723': 'Use an empty database as the destination, or drop the object there.',
  '23505':
    'Rows that the source holds apart are equal on the destination: compare the collations of both servers.',
};

export function failure(statement: SchemaStatement, error: unknown): UnderstudyError {
  const state = sqlStateOf(error);
  const reason = error instanceof Error ? error.message : String(error);
  const what = `${statement.kind} statement for ${statement.object}`;
  if (connectionLost(state))
    return new UnderstudyError('destination-unreachable', `connection lost during the ${what}: ${reason}`, {
      cause: error,
    });
  const context: ErrorContext = {
    cause: error,
    details: { kind: statement.kind, object: statement.object, sqlState: state },
    advice:
      ADVICE[state ?? ''] ??
      `Create ${statement.object} on the destination by hand to see what it lacks, or drop it on the source.`,
    ...(PASSING_STATES.has(state ?? '') ? { retryable: true } : {}),
  };
  return new UnderstudyError('schema-build-failed', `${what}: ${reason}`, context);
}

/** Kinds whose failure leaves the rest of the shadow as good as it was. */
const TOLERATED: Partial<Record<SchemaStatementKind, Omit<Finding, 'side' | 'object' | 'message'>>> = {
  validate: {
    severity: 'blocker',
    check: 'constraint-not-valid',
    advice:
      'Find and mend the rows that violate it on the source, then validate it there and let the shadow follow.',
  },
  refresh: {
    severity: 'blocker',
    check: 'materialized-view-not-refreshed',
    advice:
      'Let its functions name their tables with their schema (from 17 a refresh runs with search_path pg_catalog).',
  },
  owner: {
    severity: 'warning',
    check: 'owner-not-set',
    advice: 'Make Understudy’s account a member of the owning role on the destination.',
  },
  grant: {
    severity: 'warning',
    check: 'privilege-not-granted',
    advice: 'Run the statement on the destination as a superuser before the cutover.',
  },
  setting: {
    severity: 'warning',
    check: 'database-setting-not-set',
    advice: 'Set it on the destination as a superuser, or reset it on the source.',
  },
  comment: {
    severity: 'info',
    check: 'comment-not-set',
    advice: 'Set the comment by hand if something reads it.',
  },
};

function toleratedFailure(statement: SchemaStatement, error: unknown): Finding | undefined {
  const tolerated = TOLERATED[statement.kind];
  const state = sqlStateOf(error);
  if (tolerated === undefined || connectionLost(state) || PASSING_STATES.has(state ?? '')) return undefined;
  const reason = error instanceof Error ? error.message : String(error);
  // A setting's value may be a secret; owners and grants name nothing but roles.
  const showable = statement.kind === 'owner' || statement.kind === 'grant';
  const shown = showable ? ` Statement: ${statement.sql};` : '';
  return {
    ...tolerated,
    side: 'destination',
    object: statement.object,
    message: `The ${statement.kind} statement for ${statement.object} failed: ${reason}.${shown}`,
    advice: tolerated.advice,
  };
}

export function hashOf(statement: SchemaStatement): string {
  return createHash('sha256')
    .update(`${statement.kind}\0${statement.object}\0${statement.sql}`)
    .digest('hex');
}

export async function rolesOf(destination: pg.Client): Promise<ReadonlySet<string>> {
  const { rows } = await destination.query<{ rolname: string }>('SELECT rolname FROM pg_roles');
  return new Set(rows.map((row) => row.rolname));
}

export function lacksRole(statement: SchemaStatement, roles: ReadonlySet<string>): boolean {
  return (statement.roles ?? []).some((role) => !roles.has(role));
}

export async function applySettings(destination: pg.Client): Promise<void> {
  const settings = Object.entries(BUILD_SETTINGS).map(
    ([name, value]) => `SET ${name} = ${quoteLiteral(value)}`,
  );
  await destination.query(settings.join('; '));
  await destination.query(`SET lock_timeout = '${LOCK_TIMEOUT}'`);
  // A privilege; without it a deadlock takes as long as the server's own setting says.
  await destination.query(`SET deadlock_timeout = '${DEADLOCK_TIMEOUT}'`).catch(() => undefined);
}

export async function resetSettings(destination: pg.Client): Promise<void> {
  const resets = Object.keys(BUILD_SETTINGS).map((name) => `RESET ${name}`);
  // After a lost connection there is nothing to reset, and the first error is the one to report.
  await destination.query(resets.join('; ')).catch(() => undefined);
  await destination.query('RESET lock_timeout').catch(() => undefined);
  await destination.query('RESET deadlock_timeout').catch(() => undefined);
}

/** Tables that the statements would create and that are there already, as `schema.name` quoted. */
export async function existingTables(
  destination: pg.Client,
  statements: readonly SchemaStatement[],
): Promise<readonly string[]> {
  const wanted = new Set(
    statements.filter((statement) => statement.kind === 'table').map((statement) => statement.object),
  );
  const { rows } = await destination.query<{ name: string }>(
    `SELECT format('%I.%I', n.nspname, c.relname) AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') ORDER BY 1`,
  );
  return rows.map((row) => row.name).filter((name) => wanted.has(`table ${name}`));
}

/** Whether an earlier run built the before-copy part on this destination. */
export async function isBuiltByUs(destination: pg.Client): Promise<boolean> {
  const { rows } = await destination.query<{ present: string }>(
    `SELECT to_regclass('understudy.shadow_schema') IS NOT NULL AS present`,
  );
  if (rows[0]?.present !== 't') return false;
  return (await destination.query('SELECT FROM understudy.shadow_schema')).rowCount === 1;
}

export function notEmptyFinding(tables: readonly string[]): Finding {
  const shown = tables.slice(0, 5).join(', ');
  return {
    severity: 'blocker',
    check: 'destination-not-empty',
    side: 'destination',
    object: tables[0] ?? '',
    message: `The destination already holds ${tables.length} of the source’s tables, which Understudy did not make: ${shown}${tables.length > 5 ? ', …' : ''}.`,
    advice: `Use an empty database as the destination, or drop them there: DROP TABLE ${shown}${tables.length > 5 ? ', …' : ''} CASCADE;`,
  };
}

async function refuseForeignTables(
  destination: pg.Client,
  statements: readonly SchemaStatement[],
): Promise<void> {
  const existing = await existingTables(destination, statements);
  if (existing.length === 0) return;
  const finding = notEmptyFinding(existing);
  throw new UnderstudyError('preflight-blocked', finding.message, {
    advice: finding.advice,
    details: { findings: [finding] },
  });
}

interface Run {
  readonly destination: pg.Client;
  readonly statements: readonly SchemaStatement[];
  readonly options: BuildOptions;
  readonly roles: ReadonlySet<string>;
}

async function buildBeforeCopy({ destination, statements, options, roles }: Run): Promise<BuildReport> {
  const skipped: SchemaStatement[] = [];
  await destination.query('BEGIN');
  try {
    await destination.query(RECORDS_SQL);
    if (await isBuiltByUs(destination)) {
      await destination.query('COMMIT');
      return { ran: 0, skipped, findings: [] };
    }
    await refuseForeignTables(destination, statements);
    for (const [index, statement] of statements.entries()) {
      options.signal.throwIfAborted();
      options.onProgress?.({ done: index, total: statements.length, statement });
      if (lacksRole(statement, roles)) {
        skipped.push(statement);
        continue;
      }
      try {
        await destination.query(statement.sql);
      } catch (error) {
        throw failure(statement, error);
      }
    }
    await destination.query(
      `INSERT INTO understudy.shadow_schema (statements) VALUES (${statements.length})`,
    );
    await destination.query('COMMIT');
  } catch (error) {
    await destination.query('ROLLBACK').catch(() => undefined);
    throw error;
  }
  options.onProgress?.({ done: statements.length, total: statements.length, statement: undefined });
  return { ran: statements.length - skipped.length, skipped, findings: [] };
}

async function buildAfterCopy({ destination, statements, options, roles }: Run): Promise<BuildReport> {
  await destination.query(`BEGIN; ${RECORDS_SQL} COMMIT`);
  const { rows } = await destination.query<{ hash: string }>('SELECT hash FROM understudy.schema_step');
  const done = new Set(rows.map((row) => row.hash));
  const skipped: SchemaStatement[] = [];
  const findings: Finding[] = [];
  let ran = 0;
  for (const [index, statement] of statements.entries()) {
    options.signal.throwIfAborted();
    options.onProgress?.({ done: index, total: statements.length, statement });
    const hash = hashOf(statement);
    if (done.has(hash)) continue;
    if (lacksRole(statement, roles)) {
      skipped.push(statement);
      continue;
    }
    const record = `INSERT INTO understudy.schema_step (hash, ordinal, kind, object)
      VALUES ('${hash}', ${index}, ${quoteLiteral(statement.kind)}, ${quoteLiteral(statement.object)})`;
    try {
      // One message of two statements is one transaction: the step and its record stand or fall together.
      await yieldingToApply(() => destination.query(`${statement.sql};\n${record}`), options.signal);
      done.add(hash);
      ran += 1;
    } catch (error) {
      const finding = toleratedFailure(statement, error);
      if (finding === undefined) throw failure(statement, error);
      findings.push(finding);
    }
  }
  options.onProgress?.({ done: statements.length, total: statements.length, statement: undefined });
  return { ran, skipped, findings };
}

/** Repeats `work` after a lost deadlock or a lock timeout, {@link LOCK_ATTEMPTS_MAX} times at most. */
export async function yieldingToApply<T>(work: () => Promise<T>, signal: AbortSignal): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await work();
    } catch (error) {
      if (!LOCK_STATES.has(sqlStateOf(error) ?? '') || attempt >= LOCK_ATTEMPTS_MAX) throw error;
      signal.throwIfAborted();
      await new Promise((resolve) => setTimeout(resolve, LOCK_PAUSE_MS));
    }
  }
}

/**
 * Runs one phase of a plan on `destination`, a control connection outside a transaction and used by nobody else
 * meanwhile. Safe to repeat: see the header. Throws `preflight-blocked` (details.findings) where the destination holds
 * tables of the plan that Understudy did not make, `schema-build-failed` naming kind and object, and
 * `destination-unreachable` where the connection was lost. The signal's reason is thrown when it aborts.
 */
export async function buildSchema(
  destination: pg.Client,
  statements: readonly SchemaStatement[],
  options: BuildOptions,
): Promise<BuildReport> {
  options.signal.throwIfAborted();
  try {
    await applySettings(destination);
    const run: Run = { destination, statements, options, roles: await rolesOf(destination) };
    return await (options.phase === 'before-copy' ? buildBeforeCopy(run) : buildAfterCopy(run));
  } catch (error) {
    if (error instanceof UnderstudyError || options.signal.aborted) throw error;
    const code = connectionLost(sqlStateOf(error)) ? 'destination-unreachable' : 'destination-query-failed';
    throw new UnderstudyError(code, `building the schema: ${(error as Error).message}`, { cause: error });
  } finally {
    await resetSettings(destination);
  }
}
