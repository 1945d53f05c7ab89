/**
 * The barrier: what makes a server itself refuse writes to the subset, whoever sends them. On the source it is called
 * the fence, on the destination the guard; they are the same thing on two sides.
 *
 * Statement triggers BEFORE INSERT, UPDATE, DELETE and TRUNCATE on every table, root, leaf and child, because a trigger
 * on a root or parent does not fire for a write to its leaf or child. Raised is `ENABLE ALWAYS`, because a plain trigger
 * is skipped under `session_replication_role = replica`; lowered is `DISABLE`. The state is DDL, taken under the table's
 * lock, and never a row's value: a REPEATABLE READ transaction would read that under its old snapshot.
 *
 * Where subsets are configured, each has a barrier of its own on either side. A trigger names its subset in its argument,
 * so that what it belongs to is read where its state is; the subset `all` is that of triggers without one.
 *
 * Invariants:
 * - All tables of a subset on a side change in one transaction, together with the record of why (source: `understudy.epoch`;
 *   destination: the journal). That record is locked first and compared; so of two processes only one acts, and a
 *   transaction that was sent by a process since overruled does nothing.
 * - Exempt is only a session in replica role *and* of the user registered for Understudy (its name is part of the
 *   function's body). A superuser who disables triggers is outside the guarantee.
 *
 * For how its locks are taken see `barrier-locks.ts`.
 */
import { WHOLE_DATABASE, type ShadowTable, type Side, type SubsetId, type TableName } from '../core/ports.js';
import { UnderstudyError } from '../core/errors.js';
import { FENCE_SQLSTATE, GUARD_SQLSTATE, quoteIdent, quoteLiteral, quoteTable } from '../core/postgres.js';
import {
  beginSql,
  inBarrierTransaction,
  readBounds,
  type BarrierLimits,
  type Bounds,
} from './barrier-locks.js';
import { BARRIER_TRIGGER, SUBSET_SQL, TRUNCATE_TRIGGER } from './barrier-names.js';
import { abortable } from './operation.js';
import type { Rows, Session } from './session.js';
import type { BarrierState } from './settings.js';

const FUNCTION = 'understudy.refuse_write';

/** Why a side refuses writes; shown to the client whose write is refused. */
export interface BarrierReason {
  readonly operation: string;
  readonly epoch: number;
}

/** What one trigger of the barrier is found to be. */
export interface BarrierTrigger extends TableName {
  readonly trigger: string;
  readonly subset: SubsetId;
  readonly raised: boolean;
}

// ---------------------------------------------------------------------------------------------------------------
// What it is made of

/** Schema and trigger function; on the source also the epoch's record. Idempotent. */
export async function createBarrierObjects(session: Session, subset: SubsetId): Promise<void> {
  const user = await sessionUser(session);
  const exists = await session.run(`SELECT pg_catalog.to_regproc('${FUNCTION}') IS NOT NULL AS found`);
  await session.batch([
    'BEGIN',
    `SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('understudy'))`,
    'CREATE SCHEMA IF NOT EXISTS understudy',
    // An existing function names the operation that raised the barrier, and is left as it is.
    ...(exists.rows[0]?.['found'] === 't' ? [] : [functionSql(session.side, user, null)]),
    ...(session.side === 'source' ? epochTableSql(subset) : []),
    'COMMIT',
  ]);
}

/**
 * epoch: under which the source's barrier stands as it does. operation: which raised it last. armed: the one operation
 * that may raise it now; whoever ends or finds an operation disarms it, so that one of its calls that comes late misses.
 * retired: finalized, the source is never to be served again.
 */
function epochTableSql(subset: SubsetId): readonly string[] {
  return [
    `CREATE TABLE IF NOT EXISTS understudy.epoch (
       subset text PRIMARY KEY,
       epoch bigint NOT NULL,
       fenced boolean NOT NULL,
       operation text,
       armed text,
       retired boolean NOT NULL DEFAULT false,
       note text,
       updated_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp())`,
    `INSERT INTO understudy.epoch (subset, epoch, fenced)
       VALUES (${quoteLiteral(subset)}, 0, false) ON CONFLICT DO NOTHING`,
  ];
}

async function sessionUser(session: Session): Promise<string> {
  const found = await session.run('SELECT session_user::text AS name');
  return found.rows[0]?.['name'] ?? '';
}

/**
 * The message is part of the function, so that a refused client needs no privilege on Understudy's tables. Everything
 * is qualified: the function runs under the client's search_path.
 */
function functionSql(side: Side, user: string, reason: BarrierReason | null): string {
  const sqlState = side === 'source' ? FENCE_SQLSTATE : GUARD_SQLSTATE;
  const why =
    side === 'source'
      ? 'this database has handed its tables over'
      : 'this database is a shadow that does not lead';
  const act = reason === null ? '' : ` (operation ${reason.operation}, epoch ${reason.epoch})`;
  const body = `
BEGIN
  IF pg_catalog.current_setting('session_replication_role') OPERATOR(pg_catalog.=) 'replica'
     AND session_user OPERATOR(pg_catalog.=) ${quoteLiteral(user)}::pg_catalog.name THEN
    RETURN NULL;
  END IF;
  RAISE EXCEPTION USING
    ERRCODE = '${sqlState}',
    MESSAGE = pg_catalog.format('%s on %I.%I refused: ${why}${act}; connect through Understudy',
                                TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME),
    HINT = 'Connect through Understudy: it knows which side takes writes.';
END`;
  return `CREATE OR REPLACE FUNCTION ${FUNCTION}() RETURNS trigger LANGUAGE plpgsql AS ${quoteLiteral(body)}`;
}

/** Every trigger of the subsets' barriers on this side, or of all, with its state, in the order in which tables are locked. */
export async function readBarrier(
  session: Session,
  ...subsets: readonly SubsetId[]
): Promise<readonly BarrierTrigger[]> {
  const found = await session.run(
    `SELECT n.nspname AS schema, c.relname AS name, t.tgname AS trigger, t.tgenabled AS enabled, ${SUBSET_SQL} AS subset
       FROM pg_catalog.pg_trigger t
       JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
       JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      WHERE t.tgname IN ('${BARRIER_TRIGGER}', '${TRUNCATE_TRIGGER}')
      ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C", t.tgname COLLATE "C"`,
  );
  const triggers = found.rows.map((row) => ({
    schema: row['schema'] ?? '',
    name: row['name'] ?? '',
    trigger: row['trigger'] ?? '',
    subset: (row['subset'] ?? '').replace(/\\000$/, '') || WHOLE_DATABASE,
    raised: row['enabled'] !== 'D',
  }));
  return subsets.length === 0 ? triggers : triggers.filter((each) => subsets.includes(each.subset));
}

export function barrierState(triggers: readonly BarrierTrigger[]): BarrierState {
  if (triggers.length === 0) return 'absent';
  if (triggers.every((trigger) => trigger.raised)) return 'raised';
  return triggers.some((trigger) => trigger.raised) ? 'partial' : 'lowered';
}

/** The tables of which both triggers exist, in the order in which they are locked. */
export function barrierTables(triggers: readonly BarrierTrigger[]): readonly TableName[] {
  const truncate = new Set(
    triggers.filter((each) => each.trigger === TRUNCATE_TRIGGER).map((each) => quoteTable(each)),
  );
  return triggers
    .filter((each) => each.trigger === BARRIER_TRIGGER && truncate.has(quoteTable(each)))
    .map(({ schema, name }) => ({ schema, name }));
}

/** The tables by their names on `side`, with the partitions that only the destination has. */
export function tablesOn(side: Side, tables: readonly ShadowTable[]): readonly TableName[] {
  return tables.flatMap(({ destination, partitions = [], schema, name }) =>
    side === 'source' ? [{ schema, name }] : [destination ?? { schema, name }, ...partitions],
  );
}

/** Those of `tables` that lack a trigger of the barrier. */
export function withoutBarrier(
  tables: readonly TableName[],
  triggers: readonly BarrierTrigger[],
): readonly TableName[] {
  const covered = new Set(barrierTables(triggers).map((table) => quoteTable(table)));
  return tables.filter((table) => !covered.has(quoteTable(table)));
}

/**
 * Creates the triggers where they are missing, raised or lowered as asked, one table per transaction so that no two
 * locks are held at once. Triggers that exist are left in their state; those of another subset become this one's where
 * their state is the one asked for. Throws `fence-timeout`, and `journal-conflict` for a table that another subset holds
 * in the other state.
 */
export async function installBarrier(
  session: Session,
  tables: readonly TableName[],
  raised: boolean,
  limits: BarrierLimits,
  subset: SubsetId = WHOLE_DATABASE,
): Promise<void> {
  const bounds = await readBounds(session, limits.lockTimeoutMs);
  const existing = new Map(
    (await readBarrier(session)).map((each) => [`${quoteTable(each)} ${each.trigger}`, each]),
  );
  for (const table of tables) {
    const name = quoteTable(table);
    const missing = [BARRIER_TRIGGER, TRUNCATE_TRIGGER].filter(
      (trigger) => existing.get(`${name} ${trigger}`)?.subset !== subset,
    );
    if (missing.length === 0) continue;
    const others = missing.flatMap((trigger) => existing.get(`${name} ${trigger}`) ?? []);
    const held = others.find((each) => each.raised !== raised);
    if (held !== undefined) throw heldBy(session.side, held, subset);
    await inBarrierTransaction(session, bounds, limits, async (begin) => {
      await session.batch([
        ...begin,
        `LOCK TABLE ONLY ${name} IN SHARE ROW EXCLUSIVE MODE`,
        ...others.map(({ trigger }) => `DROP TRIGGER ${trigger} ON ${name}`),
        ...missing.map((trigger) => createTriggerSql(table, trigger, subset)),
        `ALTER TABLE ONLY ${name} ${missing.map((trigger) => `${raised ? 'ENABLE ALWAYS' : 'DISABLE'} TRIGGER ${trigger}`).join(', ')}`,
        'COMMIT',
      ]);
    });
  }
}

function heldBy(side: Side, { schema, name, subset }: BarrierTrigger, wanted: SubsetId): UnderstudyError {
  return new UnderstudyError(
    'journal-conflict',
    `${side}: ${schema}.${name} is in subset ${wanted} now and was in ${subset}, which the other side leads`,
    { advice: 'Put `subsets` back as they were until one side leads everything, then change them.' },
  );
}

/** Drops the triggers and the function. Throws `fence-timeout`. */
export async function removeBarrier(session: Session, limits: BarrierLimits): Promise<number> {
  const bounds = await readBounds(session, limits.lockTimeoutMs);
  const triggers = await readBarrier(session);
  for (const each of triggers) {
    await inBarrierTransaction(session, bounds, limits, async (begin) => {
      await session.batch([
        ...begin,
        `DROP TRIGGER IF EXISTS ${quoteIdent(each.trigger)} ON ${quoteTable(each)}`,
        'COMMIT',
      ]);
    });
  }
  await session.run(`DROP FUNCTION IF EXISTS ${FUNCTION}()`);
  return triggers.length;
}

// ---------------------------------------------------------------------------------------------------------------
// Raising and lowering

/** What a change needs to know of its side; asked before the gate closes, so that the change is few round trips. */
export interface BarrierPlan extends Bounds {
  /** One or several, whose barriers change together. */
  readonly subsets: readonly SubsetId[];
  readonly tables: readonly TableName[];
  readonly user: string;
  /** What goes with it where this side follows or leads; see {@link readDeferred}. */
  readonly deferred: { readonly enable: readonly string[]; readonly disable: readonly string[] };
}

/** Reads the plan for changes on `session`, and shortens its deadlock_timeout where that is allowed. */
export async function planBarrier(
  session: Session,
  lockTimeoutMs: number,
  ...named: readonly SubsetId[]
): Promise<BarrierPlan> {
  const subsets = named.length === 0 ? [WHOLE_DATABASE] : named;
  const bounds = await readBounds(session, lockTimeoutMs);
  const tables = barrierTables(await readBarrier(session, ...subsets));
  return {
    subsets,
    tables,
    user: await sessionUser(session),
    deferred: await readDeferred(session, subsets.includes(WHOLE_DATABASE) ? null : tables),
    ...bounds,
  };
}

/**
 * Statements that give the application's ALWAYS and REPLICA triggers and rules their state back, and that take it away:
 * they would fire for the shadow's own writes, so on the destination they are disabled exactly while its guard is up. The
 * shadow recorded them when it built the schema.
 */
async function readDeferred(
  session: Session,
  of: readonly TableName[] | null,
): Promise<BarrierPlan['deferred']> {
  const recorded = await session.run(
    `SELECT pg_catalog.to_regclass('understudy.deferred_trigger') IS NOT NULL AS found`,
  );
  if (session.side === 'source' || recorded.rows[0]?.['found'] !== 't') return { enable: [], disable: [] };
  const found = await session.run(
    `SELECT enable_sql, disable_sql${of === null ? '' : ', schema_name AS schema, table_name AS name'}
       FROM understudy.deferred_trigger ORDER BY enable_sql`,
  );
  const wanted = of === null ? null : new Set(of.map((table) => quoteTable(table)));
  const rows = found.rows.filter(
    (row) => wanted?.has(quoteTable({ schema: row['schema'] ?? '', name: row['name'] ?? '' })) ?? true,
  );
  return {
    enable: rows.map((row) => row['enable_sql'] ?? ''),
    disable: rows.map((row) => row['disable_sql'] ?? ''),
  };
}

export interface BarrierChange {
  readonly raise: boolean;
  /** What refused clients are told; null says nothing of an operation. */
  readonly reason: BarrierReason | null;
  /**
   * Run first: locks the records that speak for the change and compares them. The last `claims` statements, one for each
   * subset, must each count one row, else nothing is changed and false is returned.
   */
  readonly claimSql: readonly string[];
  /** One where absent. */
  readonly claims?: number;
  /** Run last, in the same transaction. Where it raises or is staged, also where the claim did not hit. */
  readonly alsoSql: readonly string[];
  /** `stage` leaves the transaction open for the caller to COMMIT. */
  readonly end: 'commit' | 'stage';
  /** Awaited before the COMMIT; nothing is changed where it rejects. */
  readonly mayCommit?: Promise<unknown>;
}

/**
 * Raises or lowers the barrier on all tables that have one, in one transaction, and tries again while locks are taken.
 * Returns false where the claim did not hit. Throws `fence-timeout` past the deadline, naming who holds the locks;
 * `cancelled` or the signal's reason; what the connection throws.
 */
export async function changeBarrier(
  session: Session,
  plan: BarrierPlan,
  change: BarrierChange,
  limits: BarrierLimits,
): Promise<boolean> {
  const { tables, user, deferred } = plan;
  const reason = reasonOf(plan, change);
  const statements = [
    ...(tables.length === 0
      ? []
      : [
          `LOCK TABLE ${tables.map((table) => `ONLY ${quoteTable(table)}`).join(', ')} IN SHARE ROW EXCLUSIVE MODE`,
        ]),
    ...tables.map((table) => toggleSql(table, change.raise)),
    ...(change.raise ? deferred.disable : deferred.enable),
    ...(change.raise ? [functionSql(session.side, user, reason)] : []),
    ...change.alsoSql,
    // What follows in a staged transaction, its COMMIT above all, must not be cut short.
    ...(change.end === 'stage' ? [UNBOUND_SQL] : []),
  ];
  return await inBarrierTransaction(session, plan, limits, async (begin) => {
    // What a rollback undoes whole is sent in one message, and its claim judged after it: clients wait for raising and
    // staging. Lowering for good may find that there is nothing to lower, and must not ask for locks then.
    const claimed = [...begin, ...change.claimSql];
    const whole = change.raise || change.end === 'stage';
    const answers = await session.batch(whole ? [...claimed, ...statements] : claimed);
    const claims = answers.slice(claimed.length - (change.claims ?? 1), claimed.length);
    if (claims.some(({ count }) => count !== 1)) {
      await session.batch(['ROLLBACK']);
      return false;
    }
    if (!whole && statements.length > 0) await session.batch(statements);
    if (change.end === 'stage') return true;
    if (change.mayCommit !== undefined) await abortable(change.mayCommit, limits.signal);
    limits.signal.throwIfAborted();
    await commit(session);
    return true;
  });
}

/** Exists only within the transaction of a rehearsal. */
const REHEARSAL: TableName = { schema: 'understudy', name: 'rehearsal' };

/**
 * Does what {@link changeBarrier} would, on a table of its own, and takes it back: a connection that has done it once
 * has the catalogs at hand and does it in a part of the time. Of the real tables it takes the weakest lock, which holds
 * up no writer. It is one message that ends with ROLLBACK, so that nothing of it can stay, whenever it is carried out.
 * `alsoSql` is left out: setting a sequence is not undone by a rollback.
 */
export async function rehearseChange(
  session: Session,
  plan: BarrierPlan,
  change: BarrierChange,
): Promise<void> {
  const { tables, user } = plan;
  try {
    await session.batch([
      ...beginSql(plan, plan.attemptMs),
      ...change.claimSql,
      ...(tables.length === 0
        ? []
        : [
            `LOCK TABLE ${tables.map((table) => `ONLY ${quoteTable(table)}`).join(', ')} IN ACCESS SHARE MODE`,
          ]),
      `CREATE TABLE ${quoteTable(REHEARSAL)} ()`,
      ...[BARRIER_TRIGGER, TRUNCATE_TRIGGER].map((trigger) =>
        createTriggerSql(REHEARSAL, trigger, plan.subsets[0] ?? WHOLE_DATABASE),
      ),
      toggleSql(REHEARSAL, change.raise),
      ...(change.raise ? [functionSql(session.side, user, reasonOf(plan, change))] : []),
      'ROLLBACK',
    ]);
  } catch (error) {
    if (!session.dead) await session.batch(['ROLLBACK']);
    throw error;
  }
}

/** The function is the side's, and the barriers of several subsets may stand for several reasons. */
function reasonOf({ subsets }: BarrierPlan, { reason }: BarrierChange): BarrierReason | null {
  return subsets.includes(WHOLE_DATABASE) ? reason : null;
}

function createTriggerSql(table: TableName, trigger: string, subset: SubsetId): string {
  const argument = subset === WHOLE_DATABASE ? '' : quoteLiteral(subset);
  const events = trigger === TRUNCATE_TRIGGER ? 'TRUNCATE' : 'INSERT OR UPDATE OR DELETE';
  return `CREATE TRIGGER ${trigger} BEFORE ${events} ON ${quoteTable(table)} FOR EACH STATEMENT EXECUTE FUNCTION ${FUNCTION}(${argument})`;
}

function toggleSql(table: TableName, raise: boolean): string {
  const how = raise ? 'ENABLE ALWAYS' : 'DISABLE';
  return `ALTER TABLE ONLY ${quoteTable(table)} ${how} TRIGGER ${BARRIER_TRIGGER}, ${how} TRIGGER ${TRUNCATE_TRIGGER}`;
}

/** Lifts the statement timeout for the rest of the transaction. */
export const UNBOUND_SQL = 'SET LOCAL statement_timeout = 0';

/** A COMMIT that the server answers with ROLLBACK did not commit: the transaction had failed before. */
export async function commit(session: Session, answerTimeoutMs?: number): Promise<void> {
  const answers: readonly Rows[] = await session.batch(['COMMIT'], answerTimeoutMs);
  if (answers[0]?.command !== 'COMMIT') {
    throw new UnderstudyError(
      session.side === 'source' ? 'source-query-failed' : 'destination-query-failed',
      `${session.side}: COMMIT was answered ${answers[0]?.command ?? 'with nothing'}`,
    );
  }
}
