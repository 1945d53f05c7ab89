/**
 * Names in statements resolved through the source's catalogs: by search path, views to the tables under them,
 * partitions to their root (both count), functions whose bodies are SQL to the tables those use.
 *
 * Without a snapshot, or for names that are not in it (temporary tables, tables made since), a name stays as it was
 * written. The server's own catalogs and Understudy's schema are left out.
 */
import type { StatementKind } from '../core/capture-ports.js';
import type { Analysis, TableAccess, TableReference } from './access.js';

export interface CatalogRelation {
  readonly schema: string;
  readonly name: string;
  readonly kind: 'table' | 'view';
  /** Of a partition: the root of its tree, as `schema.name`. */
  readonly root: string | null;
  /** Of a view: what it reads, as `schema.name`; may be views again. */
  readonly bases: readonly string[];
  /** Where there is a key: all columns in order, and the name of each one's base type. */
  readonly columns: readonly { readonly name: string; readonly type: string }[];
  /** Columns of the primary key, then of unique indexes without expressions or predicate. */
  readonly keys: readonly (readonly string[])[];
}
export interface CatalogFunction {
  readonly schema: string;
  readonly name: string;
  readonly body: string;
}
export interface CatalogSnapshot {
  /** Of sessions that set none; without `"$user"`, which is told apart by no one here. */
  readonly searchPath: readonly string[];
  readonly relations: readonly CatalogRelation[];
  readonly functions: readonly CatalogFunction[];
}

export interface ResolvedAccess {
  /** `schema.name`, or as written where it isn't known. */
  readonly table: string;
  readonly kind: StatementKind;
  readonly writes: boolean;
}

const SYSTEM_SCHEMAS = new Set(['pg_catalog', 'information_schema', 'pg_toast', 'understudy']);
/** Views on views, and functions that call functions, are followed that far. */
const DEPTH_MAX = 16;
const DEFAULT_PATH = ['public'];

export function tableKey({ schema, name }: { readonly schema: string; readonly name: string }): string {
  return `${schema}.${name}`;
}

export class Catalog {
  readonly #byKey = new Map<string, CatalogRelation>();
  /** Schemas that hold a relation of that name. */
  readonly #schemasOf = new Map<string, string[]>();
  readonly #functions = new Map<string, CatalogFunction[]>();
  readonly #analysed = new Map<CatalogFunction, Analysis | null>();
  readonly #searchPath: readonly string[];
  readonly #analyse: (sql: string) => Analysis | null;

  /** `analyse` reads the body of a function; null where it can't be read. */
  constructor(snapshot: CatalogSnapshot | null, analyse: (sql: string) => Analysis | null = () => null) {
    this.#searchPath = snapshot?.searchPath ?? DEFAULT_PATH;
    this.#analyse = analyse;
    for (const relation of snapshot?.relations ?? []) {
      this.#byKey.set(tableKey(relation), relation);
      const schemas = this.#schemasOf.get(relation.name);
      if (schemas === undefined) this.#schemasOf.set(relation.name, [relation.schema]);
      else schemas.push(relation.schema);
    }
    for (const routine of snapshot?.functions ?? []) {
      const same = this.#functions.get(routine.name);
      if (same === undefined) this.#functions.set(routine.name, [routine]);
      else same.push(routine);
    }
  }

  /** What the statement touches under that search path; null: the default. */
  accesses(statement: Analysis, path: readonly string[] | null): readonly ResolvedAccess[] {
    const found = new Map<string, ResolvedAccess>();
    this.#add(statement, path ?? this.#searchPath, found, 0);
    return [...found.values()];
  }

  /** null: not known, or of the system's. */
  relation(reference: TableReference, path: readonly string[] | null): CatalogRelation | null {
    const key = this.#keyOf(reference, path ?? this.#searchPath);
    return key === null ? null : (this.#byKey.get(key) ?? null);
  }

  #add(
    statement: Analysis,
    path: readonly string[],
    found: Map<string, ResolvedAccess>,
    depth: number,
  ): void {
    for (const access of statement.accesses) {
      const key = this.#keyOf(access.table, path);
      if (key !== null) this.#addTable(key, access, found, 0);
    }
    if (depth >= DEPTH_MAX) return;
    for (const reference of statement.functions) {
      const body = this.#bodyOf(reference);
      if (body !== null) this.#add(body, this.#searchPath, found, depth + 1);
    }
  }

  #addTable(key: string, access: TableAccess, found: Map<string, ResolvedAccess>, depth: number): void {
    const relation = this.#byKey.get(key);
    // Making, changing or dropping a view does nothing to what it reads.
    if (relation?.kind === 'view' && access.kind !== 'ddl') {
      if (depth < DEPTH_MAX)
        for (const base of relation.bases) this.#addTable(base, access, found, depth + 1);
      return;
    }
    const { kind, writes } = access;
    found.set(`${kind} ${key}`, { table: key, kind, writes });
    const root = relation?.root ?? null;
    if (root !== null) found.set(`${kind} ${root}`, { table: root, kind, writes });
  }

  #keyOf({ schema, name }: TableReference, path: readonly string[]): string | null {
    if (schema !== null) return SYSTEM_SCHEMAS.has(schema) ? null : `${schema}.${name}`;
    const schemas = this.#schemasOf.get(name);
    if (schemas === undefined) return name.startsWith('pg_') ? null : name;
    const first = path.find((candidate) => schemas.includes(candidate));
    // Not on the path as far as it is known: a role's own setting, perhaps. One schema alone leaves no doubt.
    const schemaFound = first ?? (schemas.length === 1 ? schemas[0] : undefined);
    return schemaFound === undefined ? name : `${schemaFound}.${name}`;
  }

  #bodyOf({ schema, name }: TableReference): Analysis | null {
    // Overloaded ones can't be told apart without types.
    const candidates = this.#functions.get(name)?.filter((each) => schema === null || each.schema === schema);
    const routine = candidates?.[0];
    if (routine === undefined || candidates?.length !== 1) return null;
    const known = this.#analysed.get(routine);
    if (known !== undefined) return known;
    const analysis = this.#analyse(routine.body);
    this.#analysed.set(routine, analysis);
    return analysis;
  }
}
