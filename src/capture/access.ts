/** What is known of a statement from its text alone. */
import type { StatementKind } from '../core/capture-ports.js';

/** A table as the statement names it. */
export interface TableReference {
  readonly schema: string | null;
  readonly name: string;
}

export interface TableAccess {
  readonly table: TableReference;
  /** What is done to this table: an INSERT … SELECT inserts into one and selects from another. */
  readonly kind: StatementKind;
  /** COPY goes both ways. */
  readonly writes: boolean;
  /** Rows are locked (FOR UPDATE and its like), or the whole table is. */
  readonly locks: boolean;
}

/** How a text ends the transaction it runs in, by its last such command. `chain` begins the next at once. */
export type TransactionEnd = 'commit' | 'rollback' | 'prepare' | null;

export interface Footprint {
  /** Of the first statement that is not transaction control; a text may hold several. */
  readonly kind: StatementKind;
  readonly accesses: readonly TableAccess[];
  /** False: it could not be read, or runs what its text does not tell (DO, CALL). */
  readonly parsed: boolean;
  readonly begins: boolean;
  readonly ends: TransactionEnd;
  /** COMMIT AND CHAIN, ROLLBACK AND CHAIN. */
  readonly chains: boolean;
}

/** A column that must equal one of some values for a row to be touched. */
export interface Equality {
  /** The table's name or alias in front of the column; null where there is none. */
  readonly qualifier: string | null;
  readonly column: string;
  /** Where in the text, in bytes, each of the values begins: a literal or a parameter. */
  readonly values: readonly number[];
}

/** Tables of one level of a query, and what WHERE and ON demand of their columns. */
export interface KeyScope {
  readonly tables: readonly {
    readonly table: TableReference;
    readonly alias: string;
    readonly writes: boolean;
  }[];
  readonly equalities: readonly Equality[];
}

/** Rows written out in an INSERT: for each column where its value begins, or null where it is an expression. */
export interface InsertedRows {
  readonly table: TableReference;
  /** null: all columns, in the table's order. */
  readonly columns: readonly string[] | null;
  readonly rows: readonly (readonly (number | null)[])[];
}

/** What only a parser sees. */
export interface Analysis extends Footprint {
  /** Names of functions called, as written. */
  readonly functions: readonly TableReference[];
  /** Tables, views or columns may be other ones afterwards. */
  readonly changesCatalog: boolean;
  /** The search path that is in force afterwards: as set, or `default` after a RESET; null: not touched. */
  readonly searchPath: readonly string[] | 'default' | null;
  /** PREPARE: the name, and what running it will do. */
  readonly prepares: { readonly name: string; readonly body: Analysis } | null;
  /** EXECUTE: the name of what it runs. */
  readonly executes: string | null;
  readonly scopes: readonly KeyScope[];
  readonly inserts: readonly InsertedRows[];
}

/** What a parser would have added, where there was none. */
export const UNANALYSED = {
  functions: [],
  changesCatalog: false,
  searchPath: null,
  prepares: null,
  executes: null,
  scopes: [],
  inserts: [],
} as const satisfies Omit<Analysis, keyof Footprint>;
