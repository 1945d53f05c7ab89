/**
 * The catalogs as far as it takes to say which subsets a statement touches. Unlike capture's (catalog.ts), which counts and
 * may err, nothing is guessed here: what is not found, or not under one name, is not known.
 */
import type pg from 'pg';
import type { SubsetId } from '../../core/ports.js';
import type { TableReference } from '../access.js';
import { readRoutineList } from '../closure.js';
import type { PostgresParser } from '../parser.js';
import { routineBody, unreadBody, type Body } from '../routine-body.js';

export interface ReachRelation {
  readonly name: string;
  readonly kind: string;
  readonly root: string | null;
  /** Of views: relations, and functions of the database's own, by `schema.name`. */
  readonly bases: readonly string[];
  readonly functions: readonly string[];
}

export interface ReachSnapshot {
  readonly relations: readonly ReachRelation[];
  readonly systemRelations: readonly string[];
  /** `schema.name` of sequences, each with the tables that own or use it. */
  readonly sequences: ReadonlyMap<string, readonly string[]>;
  /** Functions of the server's own: whether one of that name is volatile. */
  readonly builtin: ReadonlyMap<string, boolean>;
  /** `schema.name` → the extension it belongs to. */
  readonly ofExtensions: ReadonlyMap<string, string>;
  /** `schema.name` → the bodies of all of that name; absent: not read. */
  readonly routines: ReadonlyMap<string, readonly Body[]>;
}

const RELATIONS_MAX = 50_000;
const OURS = `n.nspname NOT IN ('pg_catalog', 'information_schema', 'understudy')
  AND n.nspname NOT LIKE 'pg\\_toast%' AND n.nspname NOT LIKE 'pg\\_temp%'`;

const RELATIONS_SQL = `
  WITH base AS (
    SELECT r.ev_class AS view,
      pg_catalog.json_agg(DISTINCT n.nspname || '.' || c.relname) FILTER (WHERE c.oid IS NOT NULL) AS bases,
      pg_catalog.json_agg(DISTINCT pn.nspname || '.' || p.proname) FILTER (WHERE p.oid IS NOT NULL) AS functions
    FROM pg_catalog.pg_rewrite r
    JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.objid = r.oid
      AND d.refobjid <> r.ev_class
    LEFT JOIN pg_catalog.pg_class c ON d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND c.oid = d.refobjid
      AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
    LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_catalog.pg_proc p ON d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND p.oid = d.refobjid
    LEFT JOIN pg_catalog.pg_namespace pn ON pn.oid = p.pronamespace
    GROUP BY r.ev_class)
  SELECT n.nspname || '.' || c.relname AS name, c.relkind AS kind, base.bases, base.functions,
    CASE WHEN c.relispartition THEN (SELECT rn.nspname || '.' || rc.relname FROM pg_catalog.pg_class rc
      JOIN pg_catalog.pg_namespace rn ON rn.oid = rc.relnamespace
      WHERE rc.oid = pg_catalog.pg_partition_root(c.oid)) END AS root
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN base ON base.view = c.oid AND c.relkind IN ('v', 'm')
  WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't' AND ${OURS} LIMIT ${RELATIONS_MAX + 1}`;

const SYSTEM_SQL = `
  SELECT c.relname AS name FROM pg_catalog.pg_class c
  WHERE c.relnamespace = 'pg_catalog'::pg_catalog.regnamespace AND c.relkind IN ('r', 'v')`;

const SEQUENCES_SQL = `
  SELECT n.nspname || '.' || s.relname AS name, pg_catalog.json_agg(DISTINCT tn.nspname || '.' || t.relname)
    FILTER (WHERE t.oid IS NOT NULL) AS tables
  FROM pg_catalog.pg_class s JOIN pg_catalog.pg_namespace n ON n.oid = s.relnamespace
  LEFT JOIN (
    SELECT d.refobjid AS seq, f.adrelid AS tab FROM pg_catalog.pg_depend d
    JOIN pg_catalog.pg_attrdef f ON d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND f.oid = d.objid
    WHERE d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
    UNION
    SELECT d.objid, d.refobjid FROM pg_catalog.pg_depend d
    WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
      AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.deptype IN ('a', 'i')) used ON used.seq = s.oid
  LEFT JOIN pg_catalog.pg_class t ON t.oid = used.tab AND t.relkind IN ('r', 'p', 'f')
  LEFT JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace
  WHERE s.relkind = 'S' AND ${OURS} GROUP BY 1`;

const BUILTIN_SQL = `
  SELECT p.proname AS name, pg_catalog.bool_or(p.provolatile = 'v') AS volatile FROM pg_catalog.pg_proc p
  WHERE p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace GROUP BY 1`;

const OF_EXTENSIONS_SQL = `
  SELECT DISTINCT n.nspname || '.' || p.proname AS name, e.extname AS extension
  FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
  JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.objid = p.oid
    AND d.deptype = 'e' AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass
  JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid`;

type Row = Readonly<Record<string, string | null>>;

/** Over a control connection. Throws what the connection throws. */
export async function readReachSnapshot(client: pg.Client, parser: PostgresParser): Promise<ReachSnapshot> {
  const rows = async (sql: string): Promise<readonly Row[]> => (await client.query<Row>(sql)).rows;
  const names = (json: string | null | undefined): readonly string[] =>
    JSON.parse(json ?? '[]') as readonly string[];
  const relations = (await rows(RELATIONS_SQL)).map((row): ReachRelation => ({
    name: row['name'] ?? '',
    kind: row['kind'] ?? '',
    root: row['root'] ?? null,
    bases: names(row['bases']),
    functions: names(row['functions']),
  }));
  const routines = new Map<string, Body[]>();
  for (const routine of await readRoutineList(client)) {
    const name = `${routine.schema}.${routine.name}`;
    routines.set(name, [...(routines.get(name) ?? []), await routineBody(routine, parser)]);
  }
  return {
    relations,
    systemRelations: (await rows(SYSTEM_SQL)).map((row) => row['name'] ?? ''),
    sequences: new Map(
      (await rows(SEQUENCES_SQL)).map((row) => [row['name'] ?? '', names(row['tables'])] as const),
    ),
    builtin: new Map(
      (await rows(BUILTIN_SQL)).map((row) => [row['name'] ?? '', row['volatile'] === 't'] as const),
    ),
    ofExtensions: new Map(
      (await rows(OF_EXTENSIONS_SQL)).map((row) => [row['name'] ?? '', row['extension'] ?? ''] as const),
    ),
    routines,
  };
}

/** Run SQL that they are given, or reach other servers. */
const EXTENSIONS_UNREAD = new Set(['dblink', 'tablefunc', 'xml2', 'postgres_fdw', 'file_fdw', 'pg_cron']);
const SYSTEM_SCHEMAS = new Set(['pg_catalog', 'information_schema']);
/** Views on views, and functions that call functions, are followed that far. */
const DEPTH_MAX = 16;

/** What is found; `unknown` names the first thing that could not be. */
export interface Found {
  readonly subsets: Set<SubsetId>;
  unknown: string | null;
  /** A function of the server's own whose answer differs each time, or with the transaction. */
  volatile: boolean;
}

export class ReachCatalog {
  readonly #relations = new Map<string, ReachRelation>();
  readonly #system: ReadonlySet<string>;
  readonly #snapshot: ReachSnapshot;
  readonly #subsetOf: ReadonlyMap<string, SubsetId>;

  /** `subsetOf`: by `schema.name` on the source, of every table. */
  constructor(snapshot: ReachSnapshot, subsetOf: ReadonlyMap<string, SubsetId>) {
    this.#snapshot = snapshot;
    this.#subsetOf = subsetOf;
    this.#system = new Set(snapshot.systemRelations);
    for (const relation of snapshot.relations) this.#relations.set(relation.name, relation);
  }

  relation(reference: TableReference, path: readonly string[], found: Found): void {
    const { schema, name } = reference;
    if (schema === null ? this.#system.has(name) : SYSTEM_SCHEMAS.has(schema)) return;
    const full = (schema === null ? path : [schema])
      .map((each) => `${each}.${name}`)
      .find((each) => this.#relations.has(each));
    if (full === undefined) {
      found.unknown ??= `the relation ${schema === null ? name : `${schema}.${name}`} is not known`;
      return;
    }
    this.#relation(full, path, found, 0);
  }

  #relation(name: string, path: readonly string[], found: Found, depth: number): void {
    const relation = this.#relations.get(name);
    const subset = this.#subsetOf.get(name) ?? this.#subsetOf.get(relation?.root ?? '');
    if (subset !== undefined) {
      found.subsets.add(subset);
      return;
    }
    if (relation?.kind !== 'v' || depth > DEPTH_MAX) {
      // The server's own, under a view.
      if (SYSTEM_SCHEMAS.has(name.slice(0, name.indexOf('.')))) return;
      found.unknown ??= `the relation ${name} belongs to no subset`;
      return;
    }
    for (const base of relation.bases) this.#relation(base, path, found, depth + 1);
    for (const routine of relation.functions) this.#called(routine, path, found, depth + 1);
  }

  /** `literal`: its first argument, where that is a string written out. */
  call(reference: TableReference, literal: string | null, path: readonly string[], found: Found): void {
    this.#call(reference, literal, path, found, 0);
  }

  #call(
    { schema, name }: TableReference,
    literal: string | null,
    path: readonly string[],
    found: Found,
    depth: number,
  ): void {
    if (depth > DEPTH_MAX) {
      found.unknown ??= `the function ${name} calls too deep`;
      return;
    }
    const { builtin, routines, ofExtensions } = this.#snapshot;
    const isBuiltin = (schema === null || schema === 'pg_catalog') && builtin.has(name);
    // Overloads can't be told apart without types: each on the path may be meant.
    const others = (schema === null ? path : [schema])
      .map((each) => `${each}.${name}`)
      .filter((each) => routines.has(each) || ofExtensions.has(each));
    if (isBuiltin) this.#builtin(name, literal, path, found);
    for (const other of others) this.#called(other, path, found, depth);
    if (!isBuiltin && others.length === 0) {
      found.unknown ??= `the function ${schema === null ? name : `${schema}.${name}`} is not known`;
    }
  }

  #called(full: string, path: readonly string[], found: Found, depth: number): void {
    const { routines, ofExtensions } = this.#snapshot;
    if (full.startsWith('pg_catalog.')) {
      this.#builtin(full.slice('pg_catalog.'.length), null, path, found);
      return;
    }
    const extension = ofExtensions.get(full);
    if (extension !== undefined) {
      if (EXTENSIONS_UNREAD.has(extension)) {
        found.unknown ??= `what the function ${full} of the extension ${extension} touches can’t be known`;
      }
      return;
    }
    for (const body of routines.get(full) ?? [unreadBody()]) {
      if (body.problem !== null) {
        found.unknown ??= `what the function ${full} touches can’t be known (${body.problem})`;
        return;
      }
      if (depth > DEPTH_MAX) continue;
      for (const table of body.tables) this.relation(table, path, found);
      for (const call of body.calls) {
        // One that calls itself adds nothing.
        if (call.name !== full.slice(full.indexOf('.') + 1)) this.#call(call, null, path, found, depth + 1);
      }
    }
  }

  #builtin(name: string, literal: string | null, path: readonly string[], found: Found): void {
    if (SEQUENCE_FUNCTIONS.has(name)) {
      this.#sequence(name, literal, path, found);
      return;
    }
    const why = REFUSED_FUNCTIONS.find(({ names }) => names.test(name))?.why;
    if (why !== undefined) found.unknown ??= `${name} ${why}`;
    if (OF_THE_TRANSACTION.has(name)) found.volatile = true;
    else if (this.#snapshot.builtin.get(name) === true && !HARMLESS_VOLATILE.has(name)) found.volatile = true;
  }

  #sequence(name: string, literal: string | null, path: readonly string[], found: Found): void {
    if (literal === null) {
      found.unknown ??= `${name} is called on a sequence that the statement does not name`;
      return;
    }
    const parts = literal.match(/"(?:[^"]|"")*"|[^.]+/g) ?? [];
    const [last = '', schema] = parts
      .map((part) => (part.startsWith('"') ? part.slice(1, -1).replaceAll('""', '"') : part.toLowerCase()))
      .reverse();
    const full = (schema === undefined ? path : [schema])
      .map((each) => `${each}.${last}`)
      .find((each) => this.#snapshot.sequences.has(each));
    const tables = full === undefined ? [] : (this.#snapshot.sequences.get(full) ?? []);
    if (tables.length === 0) found.unknown ??= `the sequence ${literal} belongs to no known table`;
    for (const table of tables) this.#relation(table, path, found, 0);
  }
}

const SEQUENCE_FUNCTIONS = new Set(['nextval', 'currval', 'setval', 'pg_sequence_last_value']);
const OF_THE_TRANSACTION = new Set(['now', 'transaction_timestamp', 'statement_timestamp', 'lastval']);
/** Another answer each time, of which none is a side's. */
const HARMLESS_VOLATILE = new Set([
  'random',
  'random_normal',
  'gen_random_uuid',
  'uuidv4',
  'uuidv7',
  'clock_timestamp',
  'timeofday',
  'pg_sleep',
  'pg_sleep_for',
  'pg_sleep_until',
  'set_config',
]);
const REFUSED_FUNCTIONS: readonly { readonly names: RegExp; readonly why: string }[] = [
  { names: /^pg_(?:try_)?advisory_/, why: 'locks on one side only' },
  { names: /^pg_notify$/, why: 'is heard on one side only' },
  {
    names: /^(?:query|table|schema|database|cursor)_to_xml|^ts_stat$|^ts_rewrite$/,
    why: 'runs SQL that can’t be read beforehand',
  },
  { names: /^lo_|^loread$|^lowrite$/, why: 'is about large objects, which belong to no subset' },
  { names: /^pg_export_snapshot$/, why: 'is of use on one side only' },
];
