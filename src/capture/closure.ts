/**
 * Which tables belong together whatever the traffic does: by the catalogs of a database. Foreign keys are told apart from
 * what can't be parted: inheritance and partitions, views, rules, triggers, functions whose bodies can be read, sequences of
 * several tables. What can't be read (dynamic SQL, other languages) is named in `unknown`, never guessed.
 */
import type pg from 'pg';
import { loadModule } from 'libpg-query';
import { UNENFORCED_KEYS } from '../core/subsets.js';
import type { TableReference } from './access.js';
import { readAttached, type Attached } from './attached.js';
import { DEFAULT_PATH_SQL, pathOf } from './catalog-read.js';
import { OURS_SQL, SEQUENCE_USES_SQL, ofExtensionSql } from './catalog-sql.js';
import { PostgresParser } from './parser.js';
import { bodyOf, type Body, type Routine } from './routine-body.js';

export interface ClosureTable {
  /** `schema.name`. */
  readonly table: string;
  /** With indexes and out-of-line columns; 0 for the root of partitions. */
  readonly bytes: number;
  /** The planner's estimate; null where it has none. */
  readonly rows: number | null;
  /** Of a partition: the root of its tree. */
  readonly root: string | null;
}

export interface Tie {
  readonly a: string;
  readonly b: string;
  /** `view public.totals`, `trigger on public.orders`, … */
  readonly by: string;
}

export interface ForeignKey extends Tie {
  /** One of the tables is. */
  readonly partitioned?: true;
  /** What it does to referring rows: `ON DELETE CASCADE`; absent of one that only refuses. */
  readonly acts?: string;
}

export interface Closure {
  readonly tables: readonly ClosureTable[];
  readonly foreignKeys: readonly ForeignKey[];
  readonly bound: readonly Tie[];
  /** What may tie tables together and can't be read, one sentence each. */
  readonly unknown: readonly string[];
  /** Functions of these that triggers call, and on which tables. */
  readonly unreadTriggers?: readonly UnreadTrigger[];
  /** What runs with a table unnamed, as far as it is no tie; its ties are in `bound`. */
  readonly attached?: Omit<Attached, 'ties'>;
}

export interface UnreadTrigger {
  readonly name: string;
  readonly tables: readonly string[];
}

const TABLES_MAX = 20_000;
const ROUTINES_MAX = 2_000;
const BODY_CHARACTERS_MAX = 100_000;
/** Functions that call functions are followed that far. */
const DEPTH_MAX = 16;
/** Names in one sentence. */
const NAMED_MAX = 8;

const NAME = (relation: string): string => `(SELECT nn.nspname || '.' || cc.relname
  FROM pg_catalog.pg_class cc JOIN pg_catalog.pg_namespace nn ON nn.oid = cc.relnamespace WHERE cc.oid = ${relation})`;

const TABLES_SQL = `
  SELECT n.nspname || '.' || c.relname AS name, c.reltuples AS rows,
    pg_catalog.pg_total_relation_size(c.oid) AS bytes,
    CASE WHEN c.relispartition THEN ${NAME('pg_catalog.pg_partition_root(c.oid)')} END AS root
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't' AND ${OURS_SQL}
  ORDER BY c.relpages DESC, 1 LIMIT ${TABLES_MAX}`;

const ACTION = (letter: string): string =>
  `CASE ${letter} WHEN 'c' THEN 'CASCADE' WHEN 'n' THEN 'SET NULL' ELSE 'SET DEFAULT' END`;

const FOREIGN_KEYS_SQL = `
  SELECT ${NAME('k.conrelid')} AS a, ${NAME('k.confrelid')} AS b, 'foreign key ' || k.conname AS by,
    (SELECT pg_catalog.bool_or(c.relkind = 'p') FROM pg_catalog.pg_class c WHERE c.oid IN (k.conrelid, k.confrelid))
      AS partitioned,
    CASE WHEN k.confdeltype NOT IN ('a', 'r') THEN 'ON DELETE ' || ${ACTION('k.confdeltype')}
      WHEN k.confupdtype NOT IN ('a', 'r') THEN 'ON UPDATE ' || ${ACTION('k.confupdtype')} END AS acts
  FROM pg_catalog.pg_constraint k
  WHERE k.contype = 'f' AND k.conparentid = 0 AND k.conrelid <> k.confrelid`;

/** Those that are not in the catalogs while their subsets are on different sides. */
const LEFT_OUT_SQL = `
  SELECT u.schema_name || '.' || u.table_name AS a, u.references_schema || '.' || u.references_table AS b,
    'foreign key ' || u.constraint_name AS by
  FROM ${UNENFORCED_KEYS} u WHERE NOT EXISTS (
    SELECT FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE k.conname = u.constraint_name AND c.relname = u.table_name AND n.nspname = u.schema_name)`;

/** What can't be parted, as far as it needs no body to be read. */
const BOUND_SQL = `
  WITH RECURSIVE direct AS (
    SELECT DISTINCT r.ev_class AS owner, b.refobjid AS relation
    FROM pg_catalog.pg_rewrite r
    JOIN pg_catalog.pg_depend b ON b.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND b.objid = r.oid
      AND b.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass),
  reached AS (
    SELECT owner, relation FROM direct
    UNION
    SELECT r.owner, d.relation FROM reached r JOIN direct d ON d.owner = r.relation AND d.owner <> r.owner
    JOIN pg_catalog.pg_class v ON v.oid = d.owner AND v.relkind IN ('v', 'm'))
  SELECT ${NAME('i.inhrelid')} AS a, ${NAME('i.inhparent')} AS b, 'inheritance' AS by
  FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid AND c.relkind IN ('r', 'p', 'f')
  UNION ALL
  SELECT ${NAME('d.one')}, ${NAME('d.other')},
    CASE WHEN c.relkind IN ('v', 'm') THEN 'view ' ELSE 'rule on ' END || n.nspname || '.' || c.relname
  FROM (
    SELECT r.owner, r.relation AS one, pg_catalog.min(r.relation) OVER (PARTITION BY r.owner) AS other
    FROM reached r JOIN pg_catalog.pg_class t ON t.oid = r.relation AND t.relkind IN ('r', 'p', 'f')) d
  JOIN pg_catalog.pg_class c ON c.oid = d.owner
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE d.one <> d.other AND ${OURS_SQL}
  UNION ALL
  SELECT ${NAME('u.one')}, ${NAME('u.other')}, 'sequence ' || n.nspname || '.' || s.relname
  FROM (
    SELECT seq, tab AS one, pg_catalog.min(tab) OVER (PARTITION BY seq) AS other FROM (${SEQUENCE_USES_SQL}) used
    WHERE EXISTS (SELECT 1 FROM pg_catalog.pg_class c WHERE c.oid = used.seq AND c.relkind = 'S')) u
  JOIN pg_catalog.pg_class s ON s.oid = u.seq JOIN pg_catalog.pg_namespace n ON n.oid = s.relnamespace
  WHERE u.one <> u.other AND ${OURS_SQL}`;

const ROUTINES_SQL = `
  SELECT p.oid, n.nspname AS schema, p.proname AS name, l.lanname AS language, p.prosrc AS body,
    CASE WHEN l.lanname = 'plpgsql' THEN pg_catalog.pg_get_functiondef(p.oid) END AS definition,
    p.prosecdef AS definer, pg_catalog.array_to_json(p.proconfig) AS settings,
    pg_catalog.pg_get_expr(p.proargdefaults, 0) AS defaults,
    (SELECT pg_catalog.json_agg(DISTINCT ${NAME('t.tgrelid')})
     FROM pg_catalog.pg_trigger t WHERE t.tgfoid = p.oid AND NOT t.tgisinternal AND t.tgparentid = 0) AS tables
  FROM pg_catalog.pg_proc p
  JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
  JOIN pg_catalog.pg_language l ON l.oid = p.prolang
  WHERE p.prokind IN ('f', 'p') AND ${OURS_SQL} AND pg_catalog.length(p.prosrc) <= ${BODY_CHARACTERS_MAX}
    AND NOT ${ofExtensionSql('pg_proc', 'p.oid')}
  ORDER BY p.oid LIMIT ${ROUTINES_MAX}`;

type Row = Readonly<Record<string, string | null>>;

/** Over a control connection. Throws what the connection throws. */
export async function readClosure(client: pg.Client): Promise<Closure> {
  const tables = (await client.query<Row>(TABLES_SQL)).rows.map((row): ClosureTable => {
    const rows = Number(row['rows']);
    return {
      table: row['name'] ?? '',
      bytes: Number(row['bytes']),
      rows: rows < 0 ? null : rows,
      root: row['root'] ?? null,
    };
  });
  const foreignKeys = await readForeignKeys(client);
  const bound = (await client.query<Row>(BOUND_SQL)).rows.map(tieFrom);
  const routines = await readRoutineList(client);
  const path = pathOf((await client.query<Row>(DEFAULT_PATH_SQL)).rows[0]?.['path'] ?? 'public');
  const known = new Set(tables.map(({ table }) => table));
  const bodies = await readBodies(routines);
  const read = tiesOfRoutines(routines, bodies, known, path);
  const { ties, ...attached } = await readAttached(client, bodies, known, path);
  const unknown = tables.length === TABLES_MAX ? [`Only the ${TABLES_MAX} largest tables were read.`] : [];
  return {
    tables,
    foreignKeys,
    bound: distinct([...bound, ...read.ties], ties),
    unknown: [...unknown, ...read.unknown],
    unreadTriggers: read.unreadTriggers,
    attached,
  };
}

/** From the table that refers to the one that is referred to, also those that are left out meanwhile; none of a table to itself. */
export async function readForeignKeys(client: pg.Client): Promise<readonly ForeignKey[]> {
  const { rows } = await client.query<Row>(
    `SELECT pg_catalog.to_regclass('${UNENFORCED_KEYS}') IS NOT NULL AS recorded`,
  );
  const recorded = rows[0]?.['recorded'] === 't' ? (await client.query<Row>(LEFT_OUT_SQL)).rows : [];
  return [...(await client.query<Row>(FOREIGN_KEYS_SQL)).rows, ...recorded].map((row) => ({
    ...tieFrom(row),
    ...(row['partitioned'] === 't' ? { partitioned: true } : {}),
    ...(row['acts'] == null ? {} : { acts: row['acts'] }),
  }));
}

/** Those ties of `more` that no other says already. */
function distinct(ties: readonly Tie[], more: readonly Tie[]): readonly Tie[] {
  const key = ({ a, b }: Tie): string => (a < b ? `${a}\0${b}` : `${b}\0${a}`);
  const told = new Set(ties.map(key));
  return [...ties, ...more.filter((tie) => tie.a !== tie.b && !told.has(key(tie)))];
}

/** Each as far as it can be read. */
async function readBodies(routines: readonly Routine[]): Promise<ReadonlyMap<Routine, Body>> {
  if (routines.length === 0) return new Map();
  const parser = new PostgresParser();
  // The parser first: it says how WebAssembly is to be compiled.
  await parser.load();
  await loadModule();
  return new Map(routines.map((routine) => [routine, bodyOf(routine, parser)]));
}

/** The database's own functions and procedures, without those of extensions; at most {@link ROUTINES_MAX}. */
export async function readRoutineList(client: pg.Client): Promise<readonly Routine[]> {
  return (await client.query<Row>(ROUTINES_SQL)).rows.map(routineFrom);
}

function tieFrom(row: Row): Tie {
  return { a: row['a'] ?? '', b: row['b'] ?? '', by: row['by'] ?? '' };
}

function routineFrom(row: Row): Routine {
  return {
    oid: row['oid'] ?? '',
    schema: row['schema'] ?? '',
    name: row['name'] ?? '',
    language: row['language'] ?? '',
    body: row['body'] ?? '',
    definition: row['definition'] ?? null,
    settings: JSON.parse(row['settings'] ?? '[]') as readonly string[],
    definer: row['definer'] === 't',
    defaults: row['defaults'] ?? null,
    triggerTables: JSON.parse(row['tables'] ?? '[]') as readonly string[],
  };
}

/** Ties by what routines touch, themselves and through those that they call. */
function tiesOfRoutines(
  routines: readonly Routine[],
  bodies: ReadonlyMap<Routine, Body>,
  known: ReadonlySet<string>,
  path: readonly string[],
): Required<Pick<Closure, 'unknown' | 'unreadTriggers'>> & { readonly ties: readonly Tie[] } {
  const ids = new Map(routines.map((routine, at) => [routine, at]));
  const byName = new Map<string, Routine[]>();
  for (const routine of routines) byName.set(routine.name, [...(byName.get(routine.name) ?? []), routine]);
  const tableOf = ({ schema, name }: TableReference, within: readonly string[]): string | undefined =>
    (schema === null ? within : [schema]).map((each) => `${each}.${name}`).find((table) => known.has(table));
  /** Into `into`; returns the first reason why that is not all. */
  const touched = (
    routine: Routine,
    within: readonly string[],
    depth: number,
    into: Set<string>,
    seen: Set<string>,
  ): string | null => {
    const body = bodies.get(routine);
    if (body === undefined) return null;
    const own = typeof body.path === 'string' ? within : body.path;
    const key = JSON.stringify([ids.get(routine), own]);
    if (seen.has(key)) return null;
    if (depth > DEPTH_MAX) return 'calls too deep to follow';
    seen.add(key);
    let problem = body.problem;
    for (const reference of body.tables) {
      const table = tableOf(reference, own);
      if (table !== undefined) into.add(table);
    }
    for (const { schema, name } of body.calls) {
      // Overloaded ones can't be told apart without types: each may be meant.
      for (const called of byName.get(name) ?? [])
        if (schema === null || called.schema === schema)
          problem = touched(called, own, depth + 1, into, seen) ?? problem;
    }
    return problem;
  };
  const ties: Tie[] = [];
  const problems = new Map<string, string[]>();
  const unreadTriggers: UnreadTrigger[] = [];
  for (const routine of routines) {
    const tables = new Set(routine.triggerTables.filter((table) => known.has(table)));
    const whole = touched(routine, path, 0, tables, new Set());
    const name = `${routine.schema}.${routine.name}`;
    const by = routine.triggerTables.length > 0 ? `trigger function ${name}` : `function ${name}`;
    const [first, ...others] = tables;
    if (first !== undefined) for (const other of others) ties.push({ a: first, b: other, by });
    if (whole !== null && routine.triggerTables.length > 0)
      unreadTriggers.push({ name, tables: routine.triggerTables });
    const problem = bodies.get(routine)?.problem;
    if (problem != null) problems.set(problem, [...(problems.get(problem) ?? []), name]);
  }
  const unknown = [...problems].map(
    ([problem, names]) =>
      `What ${names.length === 1 ? 'this function touches' : `these ${names.length} functions touch`} can’t be known ` +
      `(${problem}): ${names.slice(0, NAMED_MAX).join(', ')}${names.length > NAMED_MAX ? ', …' : ''}.`,
  );
  return { ties, unknown, unreadTriggers };
}
