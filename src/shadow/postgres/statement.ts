/** Runs the shadow's own statements and turns what goes wrong into errors that say whether trying again can help. */
import { pg } from '../../core/pg.js';
import type { DatabaseEndpoint, Side } from '../../core/ports.js';
import { connectControl } from '../../core/postgres.js';
import { UnderstudyError } from '../../core/errors.js';

/** A connection of Understudy's own, and the side it leads to. */
export interface Session {
  readonly side: Side;
  readonly client: pg.Client;
}

/** A row as control connections return it: every value as text. */
export type TextRow = Readonly<Record<string, string | null>>;

/**
 * What a statement is about, for its error. With `carriesRows` the server's message is left out: it may quote a
 * value of the application's.
 */
export interface StatementPurpose {
  readonly what: string;
  readonly carriesRows?: boolean;
}

/** unique_violation, exclusion_violation: may be transient inside a coalesced flush. */
export const UNIQUENESS_SQLSTATES: readonly string[] = ['23505', '23P01'];
/** serialization_failure, deadlock_detected, lock_not_available: the same transaction may pass a moment later. */
export const TRANSIENT_SQLSTATES: readonly string[] = ['40001', '40P01', '55P03'];

const PASSING_SQLSTATES: readonly string[] = ['25P03', '25006', '55006'];

/**
 * Whole classes: connection exceptions, insufficient resources, operator intervention (shutdown, cancel), system
 * errors. 25P03: an idle transaction was ended for us. 25006: the server takes no writes, as one that is still a standby.
 * 55006: the object, such as a slot, is still in use.
 */
export function isRetryable(sqlState: string): boolean {
  const inClass = ['08', '53', '57', '58'].includes(sqlState.slice(0, 2));
  return inClass || TRANSIENT_SQLSTATES.includes(sqlState) || PASSING_SQLSTATES.includes(sqlState);
}

/** The server's SQLSTATE behind an error of this module, or undefined. */
export function sqlStateOf(error: unknown): string | undefined {
  if (error instanceof pg.DatabaseError) return error.code;
  if (error instanceof UnderstudyError && typeof error.details['sqlState'] === 'string') {
    return error.details['sqlState'];
  }
  return undefined;
}

/** A server's answer, or the loss of the connection, as the product's error. Names objects, never values. */
export function statementError(side: Side, error: unknown, purpose: StatementPurpose): UnderstudyError {
  if (error instanceof UnderstudyError) return error;
  if (!(error instanceof pg.DatabaseError)) {
    const reason = error instanceof Error ? error.message : String(error);
    const code = side === 'source' ? 'source-unreachable' : 'destination-unreachable';
    return new UnderstudyError(code, `${purpose.what}: the connection to the ${side} was lost (${reason})`, {
      cause: error,
    });
  }
  const sqlState = error.code ?? 'unknown';
  const object = [error.schema, error.table, error.column ?? error.constraint].filter(
    (part) => part !== undefined,
  );
  const where = object.length === 0 ? '' : ` at ${object.join('.')}`;
  const reason = purpose.carriesRows === true ? `SQLSTATE ${sqlState}${where}` : error.message;
  const code = side === 'source' ? 'source-query-failed' : 'destination-query-failed';
  return new UnderstudyError(code, `${purpose.what}: ${reason}`, {
    retryable: isRetryable(sqlState),
    details: { sqlState, ...(object.length === 0 ? {} : { object: object.join('.') }) },
    ...(purpose.carriesRows === true ? {} : { cause: error }),
  });
}

/** Runs one statement. Throws `source-…` / `destination-query-failed` or `…-unreachable`. */
export async function run(
  session: Session,
  statement: string | pg.QueryConfig,
  purpose: StatementPurpose,
): Promise<pg.QueryResult<TextRow>> {
  try {
    return await session.client.query<TextRow>(statement);
  } catch (error) {
    throw statementError(session.side, error, purpose);
  }
}

/** The value of a column that the statement always returns. */
export function textOf(row: TextRow | undefined, column: string): string {
  const value = row?.[column];
  if (typeof value !== 'string') throw new UnderstudyError('internal', `no value for ${column}`);
  return value;
}

/**
 * Beyond the pinned settings: money prints by lc_monetary, and a compiled plan costs more than any statement here.
 */
const SHADOW_SETTINGS = { lc_monetary: 'C', jit: 'off' };

/** Opens a control connection for the shadow. The caller ends it. */
export async function openSession(
  side: Side,
  endpoint: DatabaseEndpoint,
  purpose: string,
  settings: Readonly<Record<string, string>> = {},
): Promise<Session> {
  const client = await connectControl(side, endpoint, {
    purpose,
    settings: { ...SHADOW_SETTINGS, ...settings },
  });
  return { side, client };
}

/** Ends a connection whatever state it is in; never throws. */
export async function closeSession(session: Session | undefined): Promise<void> {
  await session?.client.end().catch(() => undefined);
}

/**
 * Cuts the connection off `graceMs` after the signal aborts, so that a statement that waits for a lock can't keep us
 * from stopping. The server rolls back what was open.
 */
export function endOnAbort(session: Session, signal: AbortSignal, graceMs: number): void {
  let timer: NodeJS.Timeout | undefined;
  const onAbort = (): void => {
    timer = setTimeout(() => void closeSession(session), graceMs);
  };
  if (signal.aborted) onAbort();
  else signal.addEventListener('abort', onAbort, { once: true });
  session.client.once('end', () => {
    clearTimeout(timer);
    signal.removeEventListener('abort', onAbort);
  });
}

/** Opens a connection, hands it to `use`, and ends it. */
export async function withSession<T>(
  side: Side,
  endpoint: DatabaseEndpoint,
  purpose: string,
  use: (session: Session) => Promise<T>,
): Promise<T> {
  const session = await openSession(side, endpoint, purpose);
  try {
    return await use(session);
  } finally {
    await closeSession(session);
  }
}

/** Runs `work` in one transaction, rolled back if it throws. */
export async function inTransaction<T>(session: Session, what: string, work: () => Promise<T>): Promise<T> {
  await run(session, 'BEGIN', { what });
  try {
    const result = await work();
    await run(session, 'COMMIT', { what });
    return result;
  } catch (error) {
    await session.client.query('ROLLBACK').catch(() => undefined);
    throw error;
  }
}
