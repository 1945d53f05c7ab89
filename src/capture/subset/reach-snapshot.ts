/**
 * The catalogs as far as it takes to say which subsets a statement touches. Unlike capture's (catalog.ts), which counts and
 * may err, nothing is guessed here: what is not found, or not under one name, is not known.
 */
import type pg from 'pg';
import { OURS_SQL, SEQUENCE_USES_SQL, ofExtensionSql } from '../catalog-sql.js';
import { readRoutineList } from '../closure.js';
import type { PostgresParser } from '../parser.js';
import { routineBody, statementsOf, unreadBody, type Body } from '../routine-body.js';

export interface ReachRelation {
  readonly name: string;
  readonly kind: string;
  readonly root: string | null;
  /** Of views: relations, and functions of the database's own, by `schema.name`. */
  readonly bases: readonly string[];
  readonly functions: readonly string[];
  /** Of views: its query, for the server's own functions in it, on which nothing depends by the catalogs. */
  readonly query: Body | null;
  /** What its policies of row security read and call: relations, and functions of the database's own. */
  readonly policies: { readonly relations: readonly string[]; readonly functions: readonly string[] } | null;
}

export interface ReachSnapshot {
  readonly relations: readonly ReachRelation[];
  readonly systemRelations: readonly string[];
  /** `schema.name` of sequences, each with the tables that own or use it. */
  readonly sequences: ReadonlyMap<string, readonly string[]>;
  /** Functions of the server's own: whether one of that name is volatile. */
  readonly builtin: ReadonlyMap<string, boolean>;
  /** `schema.name` → what is of extensions under it. */
  readonly ofExtensions: ReadonlyMap<string, ExtensionFunction>;
  /** `schema.name` → the bodies of all of that name; absent: not read. */
  readonly routines: ReadonlyMap<string, readonly Body[]>;
  /** Functions that run without being called by name, by how they come to. */
  readonly implied: ImpliedFunctions;
}

export interface ExtensionFunction {
  readonly extension: string;
  /** All of that name are in C, or the server's own. */
  readonly compiled: boolean;
  /** All of that name are immutable: by their contract they read nothing. */
  readonly immutable: boolean;
}

/** `schema.name` of functions outside pg_catalog. */
export interface ImpliedFunctions {
  /** Implicit casts, checks of domains, support of operator classes: no text names them. None of extensions. */
  readonly always: readonly string[];
  /** By the operator's name, the type's, the function's own; each without a schema. */
  readonly operators: ReadonlyMap<string, readonly string[]>;
  readonly types: ReadonlyMap<string, readonly string[]>;
  readonly attributes: ReadonlyMap<string, readonly string[]>;
}

const RELATIONS_MAX = 50_000;

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
    CASE WHEN c.relkind = 'v' THEN pg_catalog.pg_get_viewdef(c.oid) END AS query,
    CASE WHEN c.relispartition THEN (SELECT rn.nspname || '.' || rc.relname FROM pg_catalog.pg_class rc
      JOIN pg_catalog.pg_namespace rn ON rn.oid = rc.relnamespace
      WHERE rc.oid = pg_catalog.pg_partition_root(c.oid)) END AS root
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN base ON base.view = c.oid AND c.relkind IN ('v', 'm')
  WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't' AND ${OURS_SQL} LIMIT ${RELATIONS_MAX + 1}`;

const POLICIES_SQL = `
  SELECT n.nspname || '.' || t.relname AS name,
    pg_catalog.json_agg(DISTINCT cn.nspname || '.' || c.relname) FILTER (WHERE c.oid IS NOT NULL) AS relations,
    pg_catalog.json_agg(DISTINCT fn.nspname || '.' || f.proname) FILTER (WHERE f.oid IS NOT NULL) AS functions
  FROM pg_catalog.pg_policy p
  JOIN pg_catalog.pg_class t ON t.oid = p.polrelid AND t.relrowsecurity
  JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
  JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass AND d.objid = p.oid
  LEFT JOIN pg_catalog.pg_class c ON d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND c.oid = d.refobjid
    AND c.oid <> t.oid AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
  LEFT JOIN pg_catalog.pg_namespace cn ON cn.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_proc f ON d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND f.oid = d.refobjid
  LEFT JOIN pg_catalog.pg_namespace fn ON fn.oid = f.pronamespace
  GROUP BY 1`;

const SYSTEM_SQL = `
  SELECT c.relname AS name FROM pg_catalog.pg_class c
  WHERE c.relnamespace = 'pg_catalog'::pg_catalog.regnamespace AND c.relkind IN ('r', 'v')`;

const SEQUENCES_SQL = `
  SELECT n.nspname || '.' || s.relname AS name, pg_catalog.json_agg(DISTINCT tn.nspname || '.' || t.relname)
    FILTER (WHERE t.oid IS NOT NULL) AS tables
  FROM pg_catalog.pg_class s JOIN pg_catalog.pg_namespace n ON n.oid = s.relnamespace
  LEFT JOIN (${SEQUENCE_USES_SQL}) used ON used.seq = s.oid
  LEFT JOIN pg_catalog.pg_class t ON t.oid = used.tab AND t.relkind IN ('r', 'p', 'f')
  LEFT JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace
  WHERE s.relkind = 'S' AND ${OURS_SQL} GROUP BY 1`;

const BUILTIN_SQL = `
  SELECT p.proname AS name, pg_catalog.bool_or(p.provolatile = 'v') AS volatile FROM pg_catalog.pg_proc p
  WHERE p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace GROUP BY 1`;

const OF_EXTENSIONS_SQL = `
  SELECT n.nspname || '.' || p.proname AS name, pg_catalog.min(e.extname) AS extension,
    pg_catalog.bool_and(l.lanname IN ('c', 'internal')) AS compiled,
    pg_catalog.bool_and(p.provolatile = 'i') AS immutable
  FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
  JOIN pg_catalog.pg_language l ON l.oid = p.prolang
  JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.objid = p.oid
    AND d.deptype = 'e' AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass
  JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid GROUP BY 1`;

/** All that is of nobody else, whether its body is read or not: aggregates, long ones, those beyond the limit. */
const COUNTS_SQL = `
  SELECT n.nspname || '.' || p.proname AS name, pg_catalog.count(*) AS count
  FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
  WHERE ${OURS_SQL} AND NOT ${ofExtensionSql('pg_proc', 'p.oid')} GROUP BY 1`;

const IMPLIED_SQL = `
  WITH implied AS (
    SELECT 'operators' AS how, o.oprname::text AS by, o.oprcode::pg_catalog.oid AS function FROM pg_catalog.pg_operator o
    UNION
    SELECT 'types', t.typname, c.castfunc FROM pg_catalog.pg_cast c JOIN pg_catalog.pg_type t ON t.oid = c.casttarget
    UNION
    SELECT 'always', '', c.castfunc FROM pg_catalog.pg_cast c WHERE c.castcontext <> 'e'
    UNION
    SELECT 'always', '', a.amproc::pg_catalog.oid FROM pg_catalog.pg_amproc a
    UNION
    SELECT 'always', '', o.oprcode::pg_catalog.oid FROM pg_catalog.pg_amop a
    JOIN pg_catalog.pg_operator o ON o.oid = a.amopopr
    UNION
    SELECT 'always', '', d.refobjid FROM pg_catalog.pg_constraint k
    JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass AND d.objid = k.oid
      AND d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass
    WHERE k.contypid <> 0
    UNION
    SELECT 'attributes', p.proname, p.oid FROM pg_catalog.pg_proc p
    JOIN pg_catalog.pg_type t ON t.oid = p.proargtypes[0] AND t.typtype IN ('c', 'd', 'p')
    WHERE p.pronargs >= 1 AND p.pronargs - p.pronargdefaults <= 1)
  SELECT DISTINCT i.how, i.by, n.nspname || '.' || p.proname AS name
  FROM implied i JOIN pg_catalog.pg_proc p ON p.oid = i.function
  JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
  JOIN pg_catalog.pg_language l ON l.oid = p.prolang
  WHERE ${OURS_SQL} AND NOT ((l.lanname IN ('c', 'internal') OR i.how = 'always')
    AND ${ofExtensionSql('pg_proc', 'p.oid')})`;

type Row = Readonly<Record<string, string | null>>;

/** Over a control connection. Throws what the connection throws. */
export async function readReachSnapshot(client: pg.Client, parser: PostgresParser): Promise<ReachSnapshot> {
  const rows = async (sql: string): Promise<readonly Row[]> => (await client.query<Row>(sql)).rows;
  const names = (json: string | null | undefined): readonly string[] =>
    JSON.parse(json ?? '[]') as readonly string[];
  const policies = new Map(
    (await rows(POLICIES_SQL)).map(
      (row) =>
        [
          row['name'] ?? '',
          { relations: names(row['relations']), functions: names(row['functions']) },
        ] as const,
    ),
  );
  const relations = (await rows(RELATIONS_SQL)).map((row): ReachRelation => ({
    name: row['name'] ?? '',
    kind: row['kind'] ?? '',
    root: row['root'] ?? null,
    bases: names(row['bases']),
    functions: names(row['functions']),
    policies: policies.get(row['name'] ?? '') ?? null,
    query: row['query'] == null ? null : statementsOf([row['query']], parser),
  }));
  const routines = new Map<string, Body[]>();
  for (const routine of await readRoutineList(client)) {
    const name = `${routine.schema}.${routine.name}`;
    routines.set(name, [...(routines.get(name) ?? []), await routineBody(routine, parser)]);
  }
  for (const { name = '', count } of await rows(COUNTS_SQL)) {
    const bodies = routines.get(name ?? '') ?? [];
    if (bodies.length !== Number(count)) routines.set(name ?? '', [...bodies, unreadBody()]);
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
      (await rows(OF_EXTENSIONS_SQL)).map(
        (row) =>
          [
            row['name'] ?? '',
            {
              extension: row['extension'] ?? '',
              compiled: row['compiled'] === 't',
              immutable: row['immutable'] === 't',
            },
          ] as const,
      ),
    ),
    routines,
    implied: impliedFrom(await rows(IMPLIED_SQL)),
  };
}

function impliedFrom(rows: readonly Row[]): ImpliedFunctions {
  const by = (how: string): ReadonlyMap<string, readonly string[]> => {
    const found = new Map<string, string[]>();
    for (const row of rows) {
      if (row['how'] !== how) continue;
      const name = row['by'] ?? '';
      found.set(name, [...(found.get(name) ?? []), row['name'] ?? '']);
    }
    return found;
  };
  return {
    always: by('always').get('') ?? [],
    operators: by('operators'),
    types: by('types'),
    attributes: by('attributes'),
  };
}
