/**
 * Adds finished statements up: per kind, and per table and kind. Memory is bounded: tables beyond
 * {@link TABLES_MAX} count together under {@link OTHER_TABLES}.
 */
import type {
  CapturedStatement,
  KindUse,
  StatementKind,
  StatementTotals,
  TableUse,
} from '../core/capture-ports.js';
import type { TableName } from '../core/ports.js';
import type { WorkerSnapshot } from './client.js';
import type { TableAccess, TableReference } from './access.js';
import { LatencyHistogram } from './latency.js';
import type { Statement } from './statements.js';
import { TransactionCounter } from './transactions.js';

export const TABLES_MAX = 1_000;
export const OTHER_TABLES = '(other)';

/** What is asked of a captured statement here. */
export type Execution = Omit<CapturedStatement, 'text' | 'endedAtMs'>;

/** Fingerprints told apart; the others count together. */
const STATEMENTS_MAX = 2_000;
const OTHER_STATEMENTS = '(other)';
/** The most costly ones are shown. */
const STATEMENTS_SHOWN = 20;

type Totals = { -readonly [K in keyof StatementTotals]: StatementTotals[K] };

class Use {
  readonly kind: StatementKind;
  readonly #latency = new LatencyHistogram();
  #statements = 0;
  #errors = 0;
  #rows = 0;
  #bytesToServer = 0;
  #bytesToClient = 0;

  constructor(kind: StatementKind) {
    this.kind = kind;
  }

  add(execution: Execution, rows: number): void {
    this.#statements += 1;
    if (execution.errorClass !== null) this.#errors += 1;
    this.#rows += rows;
    this.#bytesToServer += execution.bytesToServer;
    this.#bytesToClient += execution.bytesToClient;
    if (execution.durationMicros !== null) this.#latency.add(execution.durationMicros);
  }

  summary(): KindUse {
    return {
      kind: this.kind,
      statements: this.#statements,
      errors: this.#errors,
      rows: this.#rows,
      bytesToServer: this.#bytesToServer,
      bytesToClient: this.#bytesToClient,
      latencyMs: this.#latency.summary(),
    };
  }
}

export class CaptureAggregate {
  readonly #tablesMax: number;
  readonly #kinds = new Map<StatementKind, Use>();
  /** table → kind → use. */
  readonly #tables = new Map<string, Map<StatementKind, Use>>();
  readonly #transactions = new TransactionCounter();
  /** Where a statement's accesses are counted; forgotten with the statement, or when names resolve anew. */
  #usesOf = new WeakMap<Statement, readonly Use[]>();
  #unparsed = 0;
  readonly #totals = new Map<string, Totals>();
  readonly #totalOf = new WeakMap<Statement, Totals>();
  /** Table name → its schema, for names that are in one schema, or in `public`. */
  #schemas: ReadonlyMap<string, string> = new Map();

  constructor(tablesMax: number = TABLES_MAX) {
    this.#tablesMax = tablesMax;
  }

  /** From now on unqualified names of these tables count with their schema. What was counted before stays. */
  setTables(tables: readonly TableName[]): void {
    const schemas = new Map<string, string>();
    const ambiguous = new Set<string>();
    for (const { schema, name } of tables) {
      if (schemas.has(name)) ambiguous.add(name);
      if (!schemas.has(name) || schema === 'public') schemas.set(name, schema);
    }
    // The session's search_path decides between several; `public` is the guess that is most often right.
    for (const name of ambiguous) if (schemas.get(name) !== 'public') schemas.delete(name);
    this.#schemas = schemas;
    this.#usesOf = new WeakMap();
  }

  add(statement: Statement, execution: Execution): void {
    if (!statement.parsed || execution.cut) this.#unparsed += 1;
    const failed = execution.errorClass !== null;
    this.#transactions.add(execution.sessionId, execution.transactionStatus, statement, failed);
    this.#total(statement, execution);
    this.#kindUse(statement.kind).add(execution, execution.rows);
    let uses = this.#usesOf.get(statement);
    if (uses === undefined) {
      uses = statement.accesses.map((access) => this.#tableUse(access));
      this.#usesOf.set(statement, uses);
    }
    // The tag counts what the main verb did: rows selected to be inserted are no rows read by the application.
    for (const use of uses) use.add(execution, use.kind === statement.kind ? execution.rows : 0);
  }

  snapshot(): Pick<WorkerSnapshot, 'unparsed' | 'transactions' | 'tables' | 'kinds' | 'statements'> {
    const tables: TableUse[] = [];
    for (const [table, kinds] of this.#tables) {
      for (const use of kinds.values()) tables.push({ table, ...use.summary() });
    }
    return {
      unparsed: this.#unparsed,
      transactions: {
        committed: this.#transactions.committed,
        rolledBack: this.#transactions.rolledBack,
      },
      tables,
      kinds: [...this.#kinds.values()].map((use) => use.summary()),
      statements: [...this.#totals.values()]
        .toSorted((a, b) => b.durationMs - a.durationMs)
        .slice(0, STATEMENTS_SHOWN)
        .map((totals) => ({ ...totals })),
    };
  }

  #total(statement: Statement, execution: Execution): void {
    let totals = this.#totalOf.get(statement);
    if (totals === undefined) {
      const { fingerprint, kind, shape } = statement;
      const full = this.#totals.size >= STATEMENTS_MAX && !this.#totals.has(fingerprint);
      const key = full ? OTHER_STATEMENTS : fingerprint;
      totals = this.#totals.get(key) ?? {
        fingerprint: full ? '0'.repeat(16) : fingerprint,
        kind: full ? 'unknown' : kind,
        text: full ? OTHER_STATEMENTS : shape,
        executions: 0,
        errors: 0,
        rows: 0,
        durationMs: 0,
      };
      this.#totals.set(key, totals);
      this.#totalOf.set(statement, totals);
    }
    totals.executions += 1;
    if (execution.errorClass !== null) totals.errors += 1;
    totals.rows += execution.rows;
    totals.durationMs += (execution.durationMicros ?? 0) / 1000;
  }

  #kindUse(kind: StatementKind): Use {
    let use = this.#kinds.get(kind);
    if (use === undefined) {
      use = new Use(kind);
      this.#kinds.set(kind, use);
    }
    return use;
  }

  #tableUse({ table, kind }: TableAccess): Use {
    const written = this.#resolve(table);
    const known = this.#tables.has(written);
    const name = known || this.#tables.size < this.#tablesMax ? written : OTHER_TABLES;
    let kinds = this.#tables.get(name);
    if (kinds === undefined) {
      kinds = new Map();
      this.#tables.set(name, kinds);
    }
    let use = kinds.get(kind);
    if (use === undefined) {
      use = new Use(kind);
      kinds.set(kind, use);
    }
    return use;
  }

  #resolve({ schema, name }: TableReference): string {
    const owner = schema ?? this.#schemas.get(name);
    return owner === undefined ? name : `${owner}.${name}`;
  }
}
