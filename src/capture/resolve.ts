/** A statement under one catalog and one search path: the tables it really touches, and the keys it names. */
import type { StatementKind } from '../core/capture-ports.js';
import type { Catalog } from './catalog.js';
import { planKeys, type KeyPlan } from './key-plan.js';
import type { Statement } from './statements.js';

export interface TouchedTable {
  readonly table: string;
  /** What a session does with rows; what a DBA does with tables (VACUUM, LOCK) is neither. */
  readonly reads: boolean;
  readonly writes: boolean;
  readonly kinds: readonly StatementKind[];
}

export interface ResolvedStatement {
  readonly statement: Statement;
  readonly tables: readonly TouchedTable[];
  readonly keys: readonly KeyPlan[];
  /** Numbers of the tables, ascending, for counting pairs. */
  readonly tableNumbers: readonly number[];
}

/** Search paths kept apart for one statement; more share the default. */
const PATHS_MAX = 16;

/** Tables by number, so that pairs of them are cheap to count. */
export class TableNumbers {
  readonly #max: number;
  readonly #numbers = new Map<string, number>();
  readonly #names: string[] = [];

  constructor(max: number) {
    this.#max = max;
  }

  /** −1 for a table too many. */
  of(table: string): number {
    const known = this.#numbers.get(table);
    if (known !== undefined) return known;
    if (this.#names.length >= this.#max) return -1;
    const number = this.#names.length;
    this.#numbers.set(table, number);
    this.#names.push(table);
    return number;
  }

  name(number: number): string {
    return this.#names[number] ?? '';
  }
}

export class Resolver {
  readonly #catalog: Catalog;
  readonly #numbers: TableNumbers;
  readonly #keys: boolean;
  readonly #default = new WeakMap<Statement, ResolvedStatement>();
  readonly #byPath = new WeakMap<Statement, Map<string, ResolvedStatement>>();

  constructor(catalog: Catalog, numbers: TableNumbers, keys: boolean) {
    this.#catalog = catalog;
    this.#numbers = numbers;
    this.#keys = keys;
  }

  /** `path`: of the session, where it set one. */
  resolve(statement: Statement, path: readonly string[] | null): ResolvedStatement {
    if (path !== null) return this.#underPath(statement, path);
    let resolved = this.#default.get(statement);
    if (resolved === undefined) {
      resolved = this.#resolve(statement, null);
      this.#default.set(statement, resolved);
    }
    return resolved;
  }

  #underPath(statement: Statement, path: readonly string[]): ResolvedStatement {
    const key = JSON.stringify(path);
    let paths = this.#byPath.get(statement);
    if (paths === undefined) {
      paths = new Map();
      this.#byPath.set(statement, paths);
    }
    let resolved = paths.get(key);
    if (resolved === undefined) {
      if (paths.size >= PATHS_MAX) return this.resolve(statement, null);
      resolved = this.#resolve(statement, path);
      paths.set(key, resolved);
    }
    return resolved;
  }

  #resolve(statement: Statement, path: readonly string[] | null): ResolvedStatement {
    const tables = new Map<
      string,
      { table: string; reads: boolean; writes: boolean; kinds: StatementKind[] }
    >();
    for (const { table, kind, writes } of this.#catalog.accesses(statement, path)) {
      let touched = tables.get(table);
      if (touched === undefined) {
        touched = { table, reads: false, writes: false, kinds: [] };
        tables.set(table, touched);
      }
      if (writes) touched.writes = true;
      else if (kind !== 'utility') touched.reads = true;
      touched.kinds.push(kind);
    }
    return {
      statement,
      tables: [...tables.values()],
      keys: this.#keys ? planKeys(statement, (reference) => this.#catalog.relation(reference, path)) : [],
      tableNumbers: [...tables.keys()]
        .map((table) => this.#numbers.of(table))
        .filter((number) => number >= 0)
        .sort((a, b) => a - b),
    };
  }
}
