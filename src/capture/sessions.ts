/**
 * What must be remembered of each session between its statements: whether a transaction is open, since when and with
 * which tables; the statement before; what PREPARE and SET search_path said.
 *
 * Bounds: sessions (the one heard of longest ago is forgotten), tables of one transaction, prepared names.
 */
import type { CapturedStatement } from '../core/capture-ports.js';
import type { Analysis } from './access.js';
import type { ResolvedStatement } from './resolve.js';
import { IDLE, transactionStep, type TransactionOutcome } from './transactions.js';
import type { Statement } from './statements.js';

const SESSIONS_MAX = 20_000;
const PREPARED_MAX = 64;
/** A transaction that touches more is a migration, not a pattern. */
export const TRANSACTION_TABLES_MAX = 32;

export interface Session {
  state: number | undefined;
  /** 0: no transaction. */
  begunMs: number;
  /** The only statement with tables so far; most transactions have no other. */
  only: ResolvedStatement | null;
  readonly tables: Set<number>;
  before: Statement | null;
  searchPath: readonly string[] | null;
  prepared: Map<string, Statement> | null;
}

/** A transaction that has ended. Valid until the session's next statement. */
export interface EndedTransaction {
  readonly outcome: TransactionOutcome;
  readonly durationMs: number;
  /** Where one statement was all: it; else null, and `tables` counts. */
  readonly only: ResolvedStatement | null;
  readonly tables: ReadonlySet<number>;
}

export class Sessions {
  readonly #sessions = new Map<number | string, Session>();

  get(id: number | string): Session {
    let session = this.#sessions.get(id);
    if (session === undefined) {
      session = {
        state: undefined,
        begunMs: 0,
        only: null,
        tables: new Set(),
        before: null,
        searchPath: null,
        prepared: null,
      };
      if (this.#sessions.size >= SESSIONS_MAX) this.#forgetOne();
    } else this.#sessions.delete(id);
    this.#sessions.set(id, session);
    return session;
  }

  #forgetOne(): void {
    for (const oldest of this.#sessions.keys()) {
      this.#sessions.delete(oldest);
      return;
    }
  }
}

/** The statement that EXECUTE runs, where its PREPARE was seen; null where it wasn't. Any other is itself. */
export function executed(session: Session, statement: Statement): Statement | null {
  if (statement.executes === null) return statement;
  return session.prepared?.get(statement.executes) ?? null;
}

/** What the statement changes for those after it. */
export function remember(session: Session, statement: Statement, failed: boolean): void {
  session.before = statement;
  if (failed) return;
  if (statement.searchPath !== null)
    session.searchPath = statement.searchPath === 'default' ? null : statement.searchPath;
  if (statement.prepares === null) return;
  session.prepared ??= new Map();
  if (session.prepared.size >= PREPARED_MAX) session.prepared.clear();
  session.prepared.set(statement.prepares.name, preparedStatement(statement, statement.prepares.body));
}

const preparedOnes = new WeakMap<Statement, Statement>();

/** Its values come with each EXECUTE, so no keys can be read off it. One object for each text of a PREPARE. */
function preparedStatement(statement: Statement, body: Analysis): Statement {
  let prepared = preparedOnes.get(statement);
  if (prepared === undefined) {
    const { id, fingerprint, shape } = statement;
    prepared = { ...body, scopes: [], inserts: [], id, fingerprint, shape };
    preparedOnes.set(statement, prepared);
  }
  return prepared;
}

/** Adds a statement to the session's transaction; returns that transaction where it ended with it. */
export function advance(
  session: Session,
  captured: CapturedStatement,
  resolved: ResolvedStatement,
): EndedTransaction | null {
  const { statement } = resolved;
  if (session.begunMs === 0) {
    session.begunMs = captured.endedAtMs - (captured.durationMicros ?? 0) / 1000;
    session.only = null;
    session.tables.clear();
  }
  if (resolved.tableNumbers.length > 0) touch(session, resolved);
  const failed = captured.errorClass !== null;
  const { now, outcome } = transactionStep(session.state, captured.transactionStatus, statement, failed);
  session.state = now;
  if (outcome === null) {
    // Outside of any transaction: a COMMIT without one, or a prepared one that somebody else ends.
    if (now === IDLE && captured.transactionStatus !== 0) session.begunMs = 0;
    return null;
  }
  const durationMs = captured.endedAtMs - session.begunMs;
  session.begunMs = 0;
  return { outcome, durationMs, only: session.only, tables: session.tables };
}

function touch(session: Session, resolved: ResolvedStatement): void {
  if (session.only === resolved) return;
  if (session.only === null && session.tables.size === 0) {
    session.only = resolved;
    return;
  }
  if (session.only !== null) addTables(session.tables, session.only.tableNumbers);
  session.only = null;
  addTables(session.tables, resolved.tableNumbers);
}

function addTables(tables: Set<number>, numbers: readonly number[]): void {
  for (const number of numbers) if (tables.size < TRANSACTION_TABLES_MAX) tables.add(number);
}
