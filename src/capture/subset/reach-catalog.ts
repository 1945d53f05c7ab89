/**
 * The catalogs as far as it takes to say which subsets a statement touches. Unlike capture's (catalog.ts), which counts and
 * may err, nothing is guessed here: what is not found, or not under one name, is not known.
 */
import type pg from 'pg';
import type { SubsetId } from '../../core/ports.js';
import type { TableReference } from '../access.js';
import { readRoutineList } from '../closure.js';
import type { PostgresParser } from '../parser.js';
import type { ImpliedNames } from '../tree-implied.js';
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
    CASE WHEN c.relkind = 'v' THEN pg_catalog.pg_get_viewdef(c.oid) END AS query,
    CASE WHEN c.relispartition THEN (SELECT rn.nspname || '.' || rc.relname FROM pg_catalog.pg_class rc
      JOIN pg_catalog.pg_namespace rn ON rn.oid = rc.relnamespace
      WHERE rc.oid = pg_catalog.pg_partition_root(c.oid)) END AS root
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN base ON base.view = c.oid AND c.relkind IN ('v', 'm')
  WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't' AND ${OURS} LIMIT ${RELATIONS_MAX + 1}`;

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
  WHERE ${OURS} AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d
    WHERE d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.objid = p.oid AND d.deptype = 'e')
  GROUP BY 1`;

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
  WHERE ${OURS} AND NOT ((l.lanname IN ('c', 'internal') OR i.how = 'always') AND EXISTS (SELECT 1 FROM pg_catalog.pg_depend d
    WHERE d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.objid = p.oid AND d.deptype = 'e'))`;

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

/** Their compiled functions run SQL, read relations that they are given by name, or reach other servers. */
const EXTENSIONS_UNREAD = new Set(
  (
    'adminpack amcheck autoinc citus dblink file_fdw http insert_username lo moddatetime pageinspect pg_buffercache ' +
    'pg_cron pg_freespacemap pg_net pg_prewarm pg_visibility pgrowlocks pgstattuple pg_surgery pg_walinspect postgis ' +
    'postgres_fdw refint tablefunc tcn timescaledb xml2'
  ).split(' '),
);
function isRead({ extension, compiled, immutable }: ExtensionFunction): boolean {
  return compiled && (immutable || !EXTENSIONS_UNREAD.has(extension));
}

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

type Path = readonly string[] | null;

/** How deep a call is, and what has been followed on the way: none is twice, by name and path. */
class Chain {
  readonly depth: number;
  readonly #entered: Set<string>;

  constructor(depth = 0, entered = new Set<string>()) {
    this.depth = depth;
    this.#entered = entered;
  }

  next(): Chain {
    return new Chain(this.depth + 1, this.#entered);
  }

  /** False: it has been. */
  enter(full: string, path: Path): boolean {
    const key = JSON.stringify([full, path]);
    if (this.#entered.has(key)) return false;
    this.#entered.add(key);
    return true;
  }
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

  /** `path`: null where it is not known. */
  relation(reference: TableReference, path: Path, found: Found): void {
    this.#named(reference, path, found, new Chain());
  }

  /** One that is written to must be the database's own. */
  written({ schema, name }: TableReference, path: Path, found: Found): void {
    const full = schema === null ? (path ?? []).map((each) => `${each}.${name}`) : [`${schema}.${name}`];
    const view = full.map((each) => this.#relations.get(each)).find((each) => each !== undefined);
    if (
      (schema === null ? this.#system.has(name) : SYSTEM_SCHEMAS.has(schema)) ||
      view?.bases.some((base) => SYSTEM_SCHEMAS.has(base.slice(0, base.indexOf('.'))))
    )
      found.unknown ??= `${name} is of the server itself, and changing it is for one side only`;
  }

  #named({ schema, name }: TableReference, path: Path, found: Found, chain: Chain): void {
    // Where the path names it, the server's own come in its place; else before all others.
    const ahead = schema === null ? (path ?? []).slice(0, Math.max(0, path?.indexOf('pg_catalog') ?? 0)) : [];
    const hidden = ahead.some((each) => this.#relations.has(`${each}.${name}`));
    if (!hidden && (schema === null ? this.#system.has(name) : SYSTEM_SCHEMAS.has(schema))) {
      this.#ofTheServer(name, found);
      return;
    }
    const full = (schema === null ? (path ?? []) : [schema])
      .map((each) => `${each}.${name}`)
      .find((each) => this.#relations.has(each));
    if (full === undefined) {
      found.unknown ??= `the relation ${schema === null ? name : `${schema}.${name}`} is not known`;
      return;
    }
    this.#relation(full, path, found, chain);
  }

  #relation(name: string, path: Path, found: Found, chain: Chain): void {
    const relation = this.#relations.get(name);
    const subset = this.#subsetOf.get(name) ?? this.#subsetOf.get(relation?.root ?? '');
    if (subset !== undefined) {
      found.subsets.add(subset);
      const policies = relation?.policies ?? null;
      if (policies === null || !chain.enter(`policies of ${name}`, path)) return;
      for (const read of policies.relations) this.#relation(read, path, found, chain.next());
      for (const called of policies.functions) this.#called(called, path, found, chain.next());
      return;
    }
    if (relation?.kind !== 'v' || chain.depth > DEPTH_MAX) {
      // The server's own, under a view.
      const [schema = '', own = ''] = name.split('.');
      if (SYSTEM_SCHEMAS.has(schema)) {
        this.#ofTheServer(own, found);
        return;
      }
      found.unknown ??= `the relation ${name} belongs to no subset`;
      return;
    }
    for (const base of relation.bases) this.#relation(base, path, found, chain.next());
    for (const routine of relation.functions) this.#called(routine, path, found, chain.next());
    const { query } = relation;
    if (query === null) return;
    if (query.problem !== null || query.effect !== null)
      found.unknown ??= `what the view ${name} does can’t be known (${query.problem ?? query.effect})`;
    for (const call of query.calls)
      if (this.#snapshot.builtin.has(call.name)) this.#builtin(call.name, null, path, found);
    this.#implied(query, path, found, chain.next());
  }

  /** Most of it is alike on both sides, or about the server itself. */
  #ofTheServer(name: string, found: Found): void {
    if (HOLDS_DATA.has(name)) found.unknown ??= `${name} tells of whichever side the session is on`;
  }

  /** `literal`: its first argument, where that is a string written out. */
  call(reference: TableReference, literal: string | null, path: Path, found: Found): void {
    this.#call(reference, literal, path, found, new Chain());
  }

  /** What runs without being called by name, and what runs whatever a statement says. */
  implied(names: ImpliedNames, path: Path, found: Found): void {
    const chain = new Chain();
    this.#implied(names, path, found, chain);
    for (const full of this.#snapshot.implied.always) this.#called(full, path, found, chain);
  }

  #implied(
    names: { readonly [kind in keyof ImpliedNames]: Iterable<string> },
    path: Path,
    found: Found,
    chain: Chain,
  ): void {
    for (const kind of ['operators', 'types', 'attributes'] as const)
      for (const name of names[kind])
        for (const full of this.#snapshot.implied[kind].get(name) ?? [])
          this.#called(full, path, found, chain);
  }

  #call(
    { schema, name }: TableReference,
    literal: string | null,
    path: Path,
    found: Found,
    chain: Chain,
  ): void {
    const { builtin, routines, ofExtensions } = this.#snapshot;
    const isBuiltin = (schema === null || schema === 'pg_catalog') && builtin.has(name);
    const known = (full: string): boolean => routines.has(full) || ofExtensions.has(full);
    // Overloads can't be told apart without types: each on the path may be meant; without a path, each anywhere.
    const others =
      schema === null && path === null
        ? [...routines.keys(), ...ofExtensions.keys()].filter((each) => each.endsWith(`.${name}`))
        : (schema === null ? (path ?? []) : [schema]).map((each) => `${each}.${name}`).filter(known);
    if (isBuiltin) this.#builtin(name, literal, path, found);
    for (const other of others) this.#called(other, path, found, chain);
    if (!isBuiltin && others.length === 0) {
      found.unknown ??= `the function ${schema === null ? name : `${schema}.${name}`} is not known`;
    }
  }

  #called(full: string, path: Path, found: Found, chain: Chain): void {
    const { routines, ofExtensions } = this.#snapshot;
    if (full.startsWith('pg_catalog.')) {
      this.#builtin(full.slice('pg_catalog.'.length), null, path, found);
      return;
    }
    const extension = ofExtensions.get(full);
    if (extension !== undefined && !isRead(extension)) {
      found.unknown ??= `what the function ${full} of the extension ${extension.extension} touches can’t be known`;
      return;
    }
    const bodies = routines.get(full) ?? (extension === undefined ? [unreadBody()] : []);
    if (bodies.length === 0 || !chain.enter(full, path)) return;
    if (chain.depth > DEPTH_MAX) {
      found.unknown ??= `the function ${full} calls too deep`;
      return;
    }
    for (const body of bodies) this.#body(full, body, path, found, chain.next());
  }

  #body(full: string, body: Body, path: Path, found: Found, chain: Chain): void {
    if (body.problem !== null) {
      found.unknown ??= `what the function ${full} touches can’t be known (${body.problem})`;
      return;
    }
    if (body.effect !== null) {
      found.unknown ??= `the function ${full} changes ${body.effect}, on one side only`;
      return;
    }
    const own = body.path === 'caller' ? path : body.path === 'unknown' ? null : body.path;
    for (const table of body.tables) this.#named(table, own, found, chain);
    for (const call of body.calls) this.#call(call, null, own, found, chain);
    this.#implied(body, own, found, chain);
  }

  #builtin(name: string, literal: string | null, path: Path, found: Found): void {
    if (SEQUENCE_FUNCTIONS.has(name)) {
      this.#sequence(name, literal, path, found);
      return;
    }
    const why = REFUSED_FUNCTIONS.find(({ names }) => names.test(name))?.why;
    if (why !== undefined) found.unknown ??= `${name} ${why}`;
    if (OF_THE_TRANSACTION.has(name)) found.volatile = true;
    else if (this.#snapshot.builtin.get(name) === true && !HARMLESS_VOLATILE.has(name)) found.volatile = true;
  }

  #sequence(name: string, literal: string | null, path: Path, found: Found): void {
    if (literal === null) {
      found.unknown ??= `${name} is called on a sequence that the statement does not name`;
      return;
    }
    const parts = literal.match(/"(?:[^"]|"")*"|[^.]+/g) ?? [];
    const [last = '', schema] = parts
      .map((part) => (part.startsWith('"') ? part.slice(1, -1).replaceAll('""', '"') : part.toLowerCase()))
      .reverse();
    const full = (schema === undefined ? (path ?? []) : [schema])
      .map((each) => `${each}.${last}`)
      .find((each) => this.#snapshot.sequences.has(each));
    const tables = full === undefined ? [] : (this.#snapshot.sequences.get(full) ?? []);
    if (tables.length === 0) found.unknown ??= `the sequence ${literal} belongs to no known table`;
    for (const table of tables) this.#relation(table, path, found, new Chain());
  }
}

const SEQUENCE_FUNCTIONS = new Set(['nextval', 'currval', 'setval', 'pg_sequence_last_value']);
/** Relations of the server's own that tell what applications have stored. */
const HOLDS_DATA = new Set(['pg_sequences', 'pg_largeobject', 'pg_prepared_xacts']);
const OF_THE_TRANSACTION = new Set(['now', 'transaction_timestamp', 'statement_timestamp']);
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
  { names: /^lastval$/, why: 'answers for whichever side the session is on' },
  { names: /^pg_notify$/, why: 'is heard on one side only' },
  {
    names: /^(?:query|table|schema|database|cursor)_to_xml|^ts_stat$|^ts_rewrite$/,
    why: 'runs SQL that can’t be read beforehand',
  },
  { names: /^lo_|^loread$|^lowrite$/, why: 'is about large objects, which belong to no subset' },
  {
    names: /^pg_(?:logical_|replication_|create_.*slot|drop_.*slot|copy_.*slot)/,
    why: 'is of the side’s own log',
  },
  { names: /^pg_(?:cancel|terminate)_backend$/, why: 'is about another connection of one side' },
  { names: /^pg_export_snapshot$/, why: 'is of use on one side only' },
];
