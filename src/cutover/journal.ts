/**
 * The journal: which side leads, and what each operation has come to. In schema `understudy` of the destination.
 *
 * Invariants:
 * - `route` changes only in the transaction in which its operation goes to `committed`, from epoch N to N + 1.
 * - Every change of an operation is a compare-and-swap on (operation, attempt nonce, epoch, state). So an abort that
 *   has committed makes the operation's commit impossible, also from a process that was stopped and wakes much later;
 *   and the other way round.
 * - At most one operation of a subset is open (a unique index says so). Of another subset, none is begun meanwhile: the
 *   process sees to it, and another process that lives is refused in preflight.
 * - An operation on several subsets has a row for each, and they commit in one transaction, which compares all of them. So
 *   one row that was aborted, by whoever, makes the commit of every other impossible, and a death leaves rows that can only
 *   be settled alike, each by itself.
 *
 * Durability: that an operation began, was aborted or committed is flushed before the answer; the states between are
 * not (`synchronous_commit = off`), because a recovery treats all of them alike, and a server that forgot one has also
 * cut the connection of whoever wrote it.
 */
import type { OperationKind, OperationReport, OperationState, Side, SubsetId } from '../core/ports.js';
import { UnderstudyError } from '../core/errors.js';
import { emitMessageSql, quoteLiteral } from '../core/postgres.js';
import { AFTER_COMMIT, BEFORE_COMMIT, FINAL } from './machine.js';
import { sqlStateOf, type Row, type Session } from './session.js';
import type { OperationRecord } from './settings.js';

export interface JournalRoute {
  readonly side: Side;
  readonly epoch: number;
  /** The operation that set it; null from the start. */
  readonly operation: string | null;
  readonly finalized: boolean;
}

/** What every change of an operation is compared with. */
export interface OperationKey {
  readonly id: string;
  /** Nonce of the process that began it. */
  readonly attempt: string;
  /** The route's epoch when it began. */
  readonly epoch: number;
}

/** One subset's part of an operation. */
export interface OperationMember {
  readonly subset: SubsetId;
  readonly key: OperationKey;
}

export interface JournalOperation extends OperationKey, OperationRecord {
  readonly proxy: string;
}

const SCHEMA_SQL = [
  `CREATE TABLE IF NOT EXISTS understudy.route (
     subset text PRIMARY KEY,
     side text NOT NULL CHECK (side IN ('source', 'destination')),
     epoch bigint NOT NULL CHECK (epoch >= 0),
     operation text,
     finalized_at timestamptz,
     updated_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp())`,
  `CREATE TABLE IF NOT EXISTS understudy.operation (
     id text PRIMARY KEY,
     subset text NOT NULL REFERENCES understudy.route (subset),
     kind text NOT NULL CHECK (kind IN ('cutover', 'rollback')),
     attempt text NOT NULL,
     epoch bigint NOT NULL,
     state text NOT NULL,
     proxy text NOT NULL,
     reason text,
     report text,
     started_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
     updated_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
     finished_at timestamptz)`,
  `CREATE UNIQUE INDEX IF NOT EXISTS operation_open ON understudy.operation (subset)
     WHERE state NOT IN (${list(FINAL)})`,
  `CREATE TABLE IF NOT EXISTS understudy.event (
     number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
     operation text NOT NULL REFERENCES understudy.operation (id),
     state text NOT NULL,
     note text,
     at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp())`,
  `CREATE TABLE IF NOT EXISTS understudy.proxy (
     id text PRIMARY KEY,
     lock integer GENERATED ALWAYS AS IDENTITY UNIQUE,
     host text NOT NULL,
     process integer NOT NULL,
     started_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp())`,
];

function list(states: readonly OperationState[]): string {
  return states.map((state) => quoteLiteral(state)).join(', ');
}

/**
 * Makes the journal's tables where they are missing, and the route's row: the source leads, at `epoch`.
 * Safe to run by several processes at once.
 */
export async function createJournal(session: Session, subset: SubsetId, epoch: number): Promise<void> {
  await session.batch([
    'BEGIN',
    `SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('understudy'))`,
    'CREATE SCHEMA IF NOT EXISTS understudy',
    ...SCHEMA_SQL,
    `INSERT INTO understudy.route (subset, side, epoch)
       VALUES (${quoteLiteral(subset)}, 'source', ${epoch}) ON CONFLICT DO NOTHING`,
    'COMMIT',
  ]);
}

/** Null where the journal was never made, or holds nothing about the subset. */
export async function readRoute(session: Session, subset: SubsetId): Promise<JournalRoute | null> {
  const exists = await session.run(`SELECT pg_catalog.to_regclass('understudy.route') IS NOT NULL AS found`);
  if (exists.rows[0]?.['found'] !== 't') return null;
  const found = await session.run(
    'SELECT side, epoch, operation, finalized_at FROM understudy.route WHERE subset = $1',
    [subset],
  );
  const row = found.rows[0];
  if (row === undefined) return null;
  return {
    side: row['side'] === 'destination' ? 'destination' : 'source',
    epoch: Number(row['epoch']),
    operation: row['operation'] ?? null,
    finalized: row['finalized_at'] !== null,
  };
}

/** Throws `busy` where an operation on another subset is open. */
export async function assertNoOther(session: Session, members: readonly OperationMember[]): Promise<void> {
  const found = await session.run(
    `SELECT kind, subset FROM understudy.operation WHERE state NOT IN (${list(FINAL)})`,
  );
  const other = found.rows.find((row) => members.every(({ subset }) => subset !== row['subset']));
  if (other === undefined) return;
  throw new UnderstudyError(
    'busy',
    `a ${other['kind'] ?? ''} of ${other['subset'] ?? ''} is open in the journal`,
    {
      advice: 'Wait for it to end: `understudy status` shows it.',
    },
  );
}

/** Subsets that the destination leads and that are none of `known`: they were configured otherwise when they were switched. */
export async function readUnknownLed(
  session: Session,
  known: readonly SubsetId[],
): Promise<readonly SubsetId[]> {
  const exists = await session.run(`SELECT pg_catalog.to_regclass('understudy.route') IS NOT NULL AS found`);
  if (exists.rows[0]?.['found'] !== 't') return [];
  const found = await session.run(
    `SELECT subset FROM understudy.route WHERE side = 'destination' AND finalized_at IS NULL ORDER BY subset`,
  );
  return found.rows.map((row) => row['subset'] ?? '').filter((subset) => !known.includes(subset));
}

const OPERATION_COLUMNS = `id, subset, kind, attempt, epoch, state, proxy, reason, report,
  pg_catalog.to_char(started_at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS started_at,
  pg_catalog.to_char(finished_at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS finished_at`;

function operationFrom(row: Row): JournalOperation {
  return {
    id: row['id'] ?? '',
    subset: row['subset'] ?? '',
    kind: row['kind'] === 'rollback' ? 'rollback' : 'cutover',
    attempt: row['attempt'] ?? '',
    epoch: Number(row['epoch']),
    state: (row['state'] ?? 'failed') as OperationState,
    proxy: row['proxy'] ?? '',
    reason: row['reason'] ?? null,
    report:
      row['report'] === null || row['report'] === undefined
        ? null
        : (JSON.parse(row['report']) as OperationReport),
    startedAt: row['started_at'] ?? '',
    finishedAt: row['finished_at'] ?? null,
  };
}

export async function readOperation(session: Session, id: string): Promise<JournalOperation | null> {
  const found = await session.run(`SELECT ${OPERATION_COLUMNS} FROM understudy.operation WHERE id = $1`, [
    id,
  ]);
  return found.rows[0] === undefined ? null : operationFrom(found.rows[0]);
}

/** The subset's operation that is neither done nor aborted, if there is one. */
export async function readOpenOperation(
  session: Session,
  subset: SubsetId,
): Promise<JournalOperation | null> {
  const found = await session.run(
    `SELECT ${OPERATION_COLUMNS} FROM understudy.operation WHERE subset = $1 AND state NOT IN (${list(FINAL)})`,
    [subset],
  );
  return found.rows[0] === undefined ? null : operationFrom(found.rows[0]);
}

export async function readLastOperation(
  session: Session,
  subset: SubsetId,
): Promise<JournalOperation | null> {
  const found = await session.run(
    `SELECT ${OPERATION_COLUMNS} FROM understudy.operation WHERE subset = $1 ORDER BY started_at DESC LIMIT 1`,
    [subset],
  );
  return found.rows[0] === undefined ? null : operationFrom(found.rows[0]);
}

/**
 * Opens an operation in state `preflight`, on all of its subsets or on none. Throws `busy` where another is open,
 * `journal-conflict` where a route is not the one expected.
 */
export async function beginOperation(
  session: Session,
  members: readonly OperationMember[],
  operation: { readonly kind: OperationKind; readonly from: Side; readonly proxy: string },
): Promise<void> {
  await session.run('BEGIN');
  try {
    for (const { subset, key } of members) await beginMember(session, key, { ...operation, subset });
  } catch (error) {
    if (!session.dead) await session.run('ROLLBACK');
    throw error;
  }
  await session.run('COMMIT');
}

async function beginMember(
  session: Session,
  key: OperationKey,
  operation: {
    readonly subset: SubsetId;
    readonly kind: OperationKind;
    readonly from: Side;
    readonly proxy: string;
  },
): Promise<void> {
  try {
    const begun = await session.run(
      `WITH begun AS (
         INSERT INTO understudy.operation (id, subset, kind, attempt, epoch, state, proxy)
         SELECT $1::text, subset, $2, $3, epoch, 'preflight', $4 FROM understudy.route
          WHERE subset = $5 AND side = $6 AND epoch = $7::bigint AND finalized_at IS NULL FOR SHARE
         RETURNING id)
       INSERT INTO understudy.event (operation, state) SELECT id, 'preflight' FROM begun`,
      [key.id, operation.kind, key.attempt, operation.proxy, operation.subset, operation.from, key.epoch],
    );
    if (begun.count === 1) return;
  } catch (error) {
    if (sqlStateOf(error) !== '23505') throw error;
    throw new UnderstudyError('busy', 'another cutover or rollback is open in the journal', {
      cause: error,
      advice: 'Wait for it to end: `understudy status` shows it.',
    });
  }
  throw new UnderstudyError(
    'journal-conflict',
    `the journal does not say that the ${operation.from} leads at epoch ${key.epoch}`,
    { advice: 'Restart Understudy: it then reads the route anew.' },
  );
}

function keyCondition(key: OperationKey): string {
  return `id = ${quoteLiteral(key.id)} AND attempt = ${quoteLiteral(key.attempt)} AND epoch = ${key.epoch}`;
}

/** A statement that moves the operation if it still is in one of `from`, and writes the event; counts 1 if it did. */
function swapSql(
  key: OperationKey,
  from: readonly OperationState[],
  to: OperationState,
  note: string | null,
  set = '',
): string {
  return `WITH moved AS (
      UPDATE understudy.operation SET state = ${quoteLiteral(to)}, updated_at = pg_catalog.clock_timestamp()${set}
       WHERE ${keyCondition(key)} AND state IN (${list(from)}) RETURNING id)
    INSERT INTO understudy.event (operation, state, note)
      SELECT id, ${quoteLiteral(to)}, ${note === null ? 'NULL' : quoteLiteral(note)} FROM moved`;
}

/**
 * Journals a transition that needs no flush of its own. Throws `journal-conflict` where one of them is elsewhere; the others
 * have moved then, which changes nothing before the commit.
 */
export async function moveOperation(
  session: Session,
  members: readonly OperationMember[],
  from: OperationState,
  to: OperationState,
): Promise<void> {
  const answers = await session.batch([
    'BEGIN',
    'SET LOCAL synchronous_commit = off',
    ...members.map(({ key }) => swapSql(key, [from], to, null)),
    'COMMIT',
  ]);
  for (const [index, { key }] of members.entries())
    if (answers[index + 2]?.count !== 1) throw conflict(key, `is not ${from} any more`);
}

/**
 * Journals the abort, durably, unless the operation is past its commit or was ended by somebody else; returns the
 * state that the journal holds then. Waits for a commit that is under way, and so tells its outcome.
 */
export async function abortOperation(
  session: Session,
  key: OperationKey,
  reason: string,
): Promise<OperationState> {
  const aborted = await session.run(
    swapSql(
      key,
      BEFORE_COMMIT,
      'aborted',
      reason,
      `, finished_at = pg_catalog.clock_timestamp(), reason = ${quoteLiteral(reason)}`,
    ),
  );
  if (aborted.count === 1) return 'aborted';
  const now = await readOperation(session, key.id);
  if (now === null || now.attempt !== key.attempt) throw conflict(key, 'is not in the journal');
  return now.state;
}

/** Of all its subsets, as {@link abortOperation}: what becomes of the first becomes of all. */
export async function abortMembers(
  session: Session,
  members: readonly OperationMember[],
  reason: string,
): Promise<OperationState> {
  let outcome: OperationState | undefined;
  for (const { key } of members) {
    const state = await abortOperation(session, key, reason);
    if (state !== 'aborted' && outcome === 'aborted')
      throw conflict(key, `is ${state}, while its other subsets were aborted`);
    outcome ??= state;
    if (outcome !== 'aborted') break;
  }
  return outcome ?? 'failed';
}

/**
 * The statements of the point of no return, for one transaction on the destination: the operation from `verifying` to
 * `committed`, the routes to `to` at epoch + 1, and the messages that tell the destination's log who leads from there on.
 * {@link assertCommitted} says whether they hit.
 */
export function commitSql(members: readonly OperationMember[], to: Side): readonly string[] {
  const from: Side = to === 'source' ? 'destination' : 'source';
  return members.flatMap(({ subset, key }) => [
    swapSql(key, ['verifying'], 'committed', `epoch ${key.epoch + 1}`),
    `UPDATE understudy.route SET side = '${to}', epoch = ${key.epoch + 1}, operation = ${quoteLiteral(key.id)},
       updated_at = pg_catalog.clock_timestamp()
      WHERE subset = ${quoteLiteral(subset)} AND side = '${from}' AND epoch = ${key.epoch}`,
    emitMessageSql({ t: 'route', subset, epoch: key.epoch + 1, side: to }),
  ]);
}

/** Statements of {@link commitSql} for each subset. */
const COMMIT_STATEMENTS = 3;

/** True within the transaction of {@link commitSql} if every one of its operations was moved. */
export function committedSql(members: readonly OperationMember[]): string {
  const keys = members.map(({ key }) => `(${quoteLiteral(key.id)}, ${quoteLiteral(key.attempt)})`);
  return `${members.length} = (SELECT pg_catalog.count(*) FROM understudy.operation
     WHERE (id, attempt) IN (${keys.join(', ')}) AND state = 'committed')`;
}

/** Throws `journal-conflict` unless every compare-and-swap of {@link commitSql} hit. Before COMMIT is sent. */
export function assertCommitted(members: readonly OperationMember[], counts: readonly number[]): void {
  for (const [index, { key }] of members.entries()) {
    const at = index * COMMIT_STATEMENTS;
    if (counts[at] !== 1) throw conflict(key, 'is not verifying any more');
    if (counts[at + 1] !== 1) throw conflict(key, 'began at another epoch than the route has now');
  }
}

/** Ends an operation that is past its commit. Returns whether this call did it. */
export async function finishOperation(
  session: Session,
  key: OperationKey,
  result: { readonly report?: OperationReport; readonly reason?: string },
): Promise<boolean> {
  const note = result.reason === undefined ? '' : `, reason = ${quoteLiteral(result.reason)}`;
  const finished = await session.run(
    swapSql(
      key,
      AFTER_COMMIT,
      'done',
      result.reason ?? null,
      `, finished_at = pg_catalog.clock_timestamp()${note}`,
    ),
  );
  if (result.report !== undefined) await storeReport(session, key, result.report);
  return finished.count === 1;
}

/** Keeps the report of an operation that has ended. */
export async function storeReport(
  session: Session,
  key: OperationKey,
  report: OperationReport,
): Promise<void> {
  await session.run('UPDATE understudy.operation SET report = $1 WHERE id = $2 AND attempt = $3', [
    JSON.stringify(report),
    key.id,
    key.attempt,
  ]);
}

/**
 * Records that nothing can be rolled back any more; repeatable. Throws `not-cut-over` unless the destination leads, `busy`
 * where an operation is open. Returns the epoch.
 */
export async function finalizeRoute(session: Session, subset: SubsetId): Promise<number> {
  // Locked first and compared in a statement of its own, whose snapshot is taken after the lock: see `fence.ts`.
  const id = quoteLiteral(subset);
  const [, , opened, finalized] = await session.batch([
    'BEGIN',
    `SELECT FROM understudy.route WHERE subset = ${id} FOR UPDATE`,
    `SELECT FROM understudy.operation WHERE subset = ${id} AND state NOT IN (${list(FINAL)})`,
    `UPDATE understudy.route SET finalized_at = COALESCE(finalized_at, pg_catalog.clock_timestamp())
      WHERE subset = ${id} AND side = 'destination' AND NOT EXISTS (
        SELECT FROM understudy.operation WHERE subset = ${id} AND state NOT IN (${list(FINAL)}))
      RETURNING epoch`,
    'COMMIT',
  ]);
  if (opened !== undefined && opened.count > 0) {
    throw new UnderstudyError('busy', 'a cutover or rollback of this subset is open in the journal');
  }
  if (finalized?.count !== 1) {
    throw new UnderstudyError('not-cut-over', 'the destination does not lead: there is nothing to finalize');
  }
  return Number(finalized.rows[0]?.['epoch']);
}

function conflict(key: OperationKey, what: string): UnderstudyError {
  return new UnderstudyError('journal-conflict', `operation ${key.id} ${what}`, {
    advice: 'Another process acted on it: `understudy status` shows what the journal holds.',
  });
}
