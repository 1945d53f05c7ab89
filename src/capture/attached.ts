/**
 * What runs when a table is written or read without a statement naming it: triggers, row-security policies, defaults, CHECK
 * constraints, domains, index expressions, rules, and INSTEAD OF triggers of views. By the catalog's own dependencies and
 * the bodies of the functions they call, followed through what those call: the tables they touch, the sequences they draw
 * from, whether they notify. What can't be read of them is named, never passed over.
 */
import type pg from 'pg';
import type { TableReference } from './access.js';
import { OURS_SQL, SEQUENCE_USES_SQL, ofExtensionSql } from './catalog-sql.js';
import type { Body, Routine } from './routine-body.js';

/** As in closure.ts. */
interface Tie {
  readonly a: string;
  readonly b: string;
  readonly by: string;
}

/** A sequence that no column takes its default from, and that none owns. */
export interface LooseDraw {
  readonly sequence: string;
  readonly table: string;
  readonly by: string;
}

export interface AttachedProblem {
  readonly table: string;
  readonly by: string;
  readonly why: string;
}

export interface Attached {
  readonly ties: readonly Tie[];
  readonly looseDraws: readonly LooseDraw[];
  readonly notifies: readonly AttachedProblem[];
  readonly unread: readonly AttachedProblem[];
}

/** One row for each relation or function of the user's that an object of a table or view depends on. */
const ATTACHED_SQL = `
  WITH RECURSIVE domains AS (
    SELECT a.attrelid AS owner, t.oid AS domain, t.typbasetype AS base
    FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid AND t.typtype = 'd'
    WHERE a.attnum > 0 AND NOT a.attisdropped
    UNION
    SELECT d.owner, t.oid, t.typbasetype FROM domains d JOIN pg_catalog.pg_type t ON t.oid = d.base AND t.typtype = 'd'),
  objects AS (
    SELECT tgrelid AS owner, 'pg_catalog.pg_trigger'::pg_catalog.regclass AS class, oid AS object, 'trigger ' || tgname AS what
    FROM pg_catalog.pg_trigger WHERE NOT tgisinternal AND tgparentid = 0
    UNION ALL SELECT polrelid, 'pg_catalog.pg_policy'::pg_catalog.regclass, oid, 'policy ' || polname FROM pg_catalog.pg_policy
    UNION ALL SELECT adrelid, 'pg_catalog.pg_attrdef'::pg_catalog.regclass, oid, 'default' FROM pg_catalog.pg_attrdef
    UNION ALL SELECT conrelid, 'pg_catalog.pg_constraint'::pg_catalog.regclass, oid, 'constraint ' || conname
    FROM pg_catalog.pg_constraint WHERE contype IN ('c', 'x') AND conrelid <> 0
    UNION ALL SELECT indrelid, 'pg_catalog.pg_class'::pg_catalog.regclass, indexrelid, 'index'
    FROM pg_catalog.pg_index WHERE indexprs IS NOT NULL OR indpred IS NOT NULL
    UNION ALL SELECT w.ev_class, 'pg_catalog.pg_rewrite'::pg_catalog.regclass, w.oid, 'rule ' || w.rulename
    FROM pg_catalog.pg_rewrite w JOIN pg_catalog.pg_class o ON o.oid = w.ev_class AND o.relkind IN ('r', 'p', 'f')
    UNION ALL SELECT owner, 'pg_catalog.pg_type'::pg_catalog.regclass, domain, 'domain' FROM domains
    UNION ALL SELECT d.owner, 'pg_catalog.pg_constraint'::pg_catalog.regclass, k.oid, 'domain'
    FROM domains d JOIN pg_catalog.pg_constraint k ON k.contypid = d.domain),
  needed AS (
    SELECT o.owner, o.what, d.refclassid AS class, d.refobjid AS oid
    FROM objects o JOIN pg_catalog.pg_depend d ON d.classid = o.class AND d.objid = o.object
    UNION
    SELECT o.owner, o.what, 'pg_catalog.pg_proc'::pg_catalog.regclass, p.oprcode
    FROM objects o JOIN pg_catalog.pg_depend d ON d.classid = o.class AND d.objid = o.object
      AND d.refclassid = 'pg_catalog.pg_operator'::pg_catalog.regclass
    JOIN pg_catalog.pg_operator p ON p.oid = d.refobjid)
  SELECT n.nspname || '.' || c.relname AS owner, x.what, 'routine' AS kind, p.oid, pn.nspname || '.' || p.proname AS name
  FROM needed x JOIN pg_catalog.pg_class c ON c.oid = x.owner JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_proc p ON x.class = 'pg_catalog.pg_proc'::pg_catalog.regclass AND p.oid = x.oid
  JOIN pg_catalog.pg_namespace pn ON pn.oid = p.pronamespace
  WHERE ${OURS_SQL} AND pn.nspname NOT IN ('pg_catalog', 'information_schema', 'understudy') AND NOT ${ofExtensionSql('pg_proc', 'p.oid')}
  UNION
  SELECT n.nspname || '.' || c.relname, x.what, CASE WHEN r.relkind = 'S' THEN 'sequence' ELSE 'relation' END, r.oid,
    rn.nspname || '.' || r.relname
  FROM needed x JOIN pg_catalog.pg_class c ON c.oid = x.owner JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_class r ON x.class = 'pg_catalog.pg_class'::pg_catalog.regclass AND r.oid = x.oid
    AND r.oid <> c.oid AND r.relkind IN ('r', 'p', 'f', 'v', 'm', 'S')
  JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace
  WHERE ${OURS_SQL} AND x.what NOT LIKE 'rule %' AND rn.nspname NOT IN ('pg_catalog', 'information_schema', 'understudy')
  UNION
  SELECT n.nspname || '.' || c.relname, 'default', 'late', f.oid, 'nextval'
  FROM pg_catalog.pg_attrdef f JOIN pg_catalog.pg_class c ON c.oid = f.adrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE ${OURS_SQL} AND pg_catalog.pg_get_expr(f.adbin, f.adrelid) ~ '\\m(nextval|setval)\\M' AND NOT EXISTS (
    SELECT 1 FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_class s ON s.oid = d.refobjid AND s.relkind = 'S'
    WHERE d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND d.objid = f.oid
      AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass)
  ORDER BY 1, 2, 3, 5`;

/** Views, with the tables below them; no row for the tables of one that has none. */
const VIEWS_SQL = `
  WITH RECURSIVE direct AS (
    SELECT DISTINCT r.ev_class AS owner, b.refobjid AS relation
    FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class v ON v.oid = r.ev_class AND v.relkind IN ('v', 'm')
    JOIN pg_catalog.pg_depend b ON b.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND b.objid = r.oid
      AND b.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND b.refobjid <> r.ev_class),
  reached AS (
    SELECT owner, relation FROM direct
    UNION SELECT r.owner, d.relation FROM reached r JOIN direct d ON d.owner = r.relation)
  SELECT n.nspname || '.' || v.relname AS view, tn.nspname || '.' || t.relname AS table
  FROM pg_catalog.pg_class v JOIN pg_catalog.pg_namespace n ON n.oid = v.relnamespace
  LEFT JOIN reached r ON r.owner = v.oid
  LEFT JOIN pg_catalog.pg_class t ON t.oid = r.relation AND t.relkind IN ('r', 'p', 'f')
  LEFT JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace
  WHERE v.relkind IN ('v', 'm') AND ${OURS_SQL}`;

/** Sequences, with the tables that they are switched with: as src/cutover/sequences.ts carries them. */
const SEQUENCES_SQL = `
  SELECT n.nspname || '.' || s.relname AS sequence, tn.nspname || '.' || t.relname AS table
  FROM pg_catalog.pg_class s JOIN pg_catalog.pg_namespace n ON n.oid = s.relnamespace
  LEFT JOIN (${SEQUENCE_USES_SQL}) u ON u.seq = s.oid
  LEFT JOIN pg_catalog.pg_class t ON t.oid = u.tab
  LEFT JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace
  WHERE s.relkind = 'S' AND ${OURS_SQL} ORDER BY 1, 2`;

/** The user's own by name: what is called and not among those that were read can't be known. */
const NAMES_SQL = `
  SELECT p.oid, p.proname AS name FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
  WHERE ${OURS_SQL} AND NOT ${ofExtensionSql('pg_proc', 'p.oid')}`;

type Row = Readonly<Record<string, string | null>>;

interface Catalogs {
  readonly attached: readonly Row[];
  readonly tables: ReadonlySet<string>;
  readonly views: ReadonlyMap<string, readonly string[]>;
  readonly sequences: ReadonlyMap<string, readonly string[]>;
  /** Of functions that are not among `routines`. */
  readonly unlisted: ReadonlySet<string>;
  readonly routines: ReadonlyMap<string, Routine>;
  readonly bodies: ReadonlyMap<Routine, Body>;
  readonly path: readonly string[];
}

/** Over a control connection, whose search path is empty. Throws what the connection throws. */
export async function readAttached(
  client: pg.Client,
  bodies: ReadonlyMap<Routine, Body>,
  tables: ReadonlySet<string>,
  path: readonly string[],
): Promise<Attached> {
  const query = async (sql: string): Promise<readonly Row[]> => (await client.query<Row>(sql)).rows;
  const byOid = new Map([...bodies.keys()].map((routine) => [routine.oid, routine]));
  const catalogs: Catalogs = {
    attached: await query(ATTACHED_SQL),
    tables,
    views: grouped(await query(VIEWS_SQL), 'view'),
    sequences: grouped(await query(SEQUENCES_SQL), 'sequence'),
    unlisted: new Set(
      (await query(NAMES_SQL)).flatMap(({ oid, name }) => (byOid.has(oid ?? '') ? [] : [name ?? ''])),
    ),
    routines: byOid,
    bodies,
    path,
  };
  return new Follower(catalogs).follow();
}

function grouped(rows: readonly Row[], key: string): ReadonlyMap<string, readonly string[]> {
  const found = new Map<string, string[]>();
  for (const row of rows) {
    const tables = found.get(row[key] ?? '') ?? [];
    if (row['table'] != null) tables.push(row['table']);
    found.set(row[key] ?? '', tables);
  }
  return found;
}

/** What one object of a table comes to touch. */
class Touched {
  readonly tables = new Set<string>();
  readonly sequences = new Set<string>();
  readonly problems = new Set<string>();
  readonly seen = new Set<string>();
  notifies = false;
}

class Follower {
  readonly #catalogs: Catalogs;
  readonly #routinesByName = new Map<string, Routine[]>();
  readonly #relationsByName = new Map<string, string[]>();
  /** Of views: the functions of their INSTEAD OF triggers. */
  readonly #insteadOf = new Map<string, string[]>();

  constructor(catalogs: Catalogs) {
    this.#catalogs = catalogs;
    const { routines, tables, views, sequences, attached } = catalogs;
    for (const routine of routines.values()) append(this.#routinesByName, routine.name, routine);
    for (const name of [...tables, ...views.keys(), ...sequences.keys()])
      append(this.#relationsByName, name.slice(name.indexOf('.') + 1), name);
    for (const { owner, kind, oid } of attached)
      if (kind === 'routine' && views.has(owner ?? '')) append(this.#insteadOf, owner ?? '', oid ?? '');
  }

  follow(): Attached {
    const { attached, views, tables, sequences } = this.#catalogs;
    const ties: Tie[] = [];
    const looseDraws: LooseDraw[] = [];
    const notifies: AttachedProblem[] = [];
    const unread: AttachedProblem[] = [];
    for (const row of attached) {
      const owner = row['owner'] ?? '';
      const own = tables.has(owner) ? [owner] : (views.get(owner) ?? []);
      const touched = new Touched();
      if (row['kind'] === 'routine') this.#routine(row['oid'] ?? '', row['name'] ?? '', touched);
      else if (row['kind'] === 'late') touched.problems.add('nextval of what is only looked up when it runs');
      else this.#relation(row['name'] ?? '', touched);
      const by = `${row['what'] ?? ''} on ${owner}${row['kind'] === 'routine' ? `, function ${row['name'] ?? ''}` : ''}`;
      // A view over nothing still has a problem to be named.
      const table = own[0] ?? owner;
      for (const why of touched.problems) unread.push({ table, by, why });
      if (touched.notifies) notifies.push({ table, by, why: 'notifies' });
      for (const sequence of touched.sequences) {
        const [first] = sequences.get(sequence) ?? [];
        if (first === undefined) looseDraws.push({ sequence, table, by });
        else ties.push({ a: table, b: first, by: `sequence ${sequence}, ${by}` });
      }
      const [first, ...others] = new Set([...own, ...touched.tables]);
      if (first !== undefined) for (const other of others) ties.push({ a: first, b: other, by });
    }
    return { ties, looseDraws, notifies, unread };
  }

  #relation(name: string, into: Touched): void {
    const { tables, views, sequences } = this.#catalogs;
    if (tables.has(name)) into.tables.add(name);
    if (sequences.has(name)) into.sequences.add(name);
    if (into.seen.has(name)) return;
    into.seen.add(name);
    for (const table of views.get(name) ?? []) into.tables.add(table);
    for (const oid of this.#insteadOf.get(name) ?? []) this.#routine(oid, name, into);
  }

  #routine(oid: string, name: string, into: Touched, within = this.#catalogs.path): void {
    const routine = this.#catalogs.routines.get(oid);
    const body = routine === undefined ? undefined : this.#catalogs.bodies.get(routine);
    if (routine === undefined || body === undefined) {
      into.problems.add(`${name} is too long, or of a kind that can’t be read`);
      return;
    }
    const path = typeof body.path === 'string' ? within : body.path;
    const key = JSON.stringify([oid, path]);
    if (into.seen.has(key)) return;
    into.seen.add(key);
    if (body.problem !== null) into.problems.add(`${routine.schema}.${routine.name}: ${body.problem}`);
    if (body.notifies) into.notifies = true;
    for (const reference of body.tables)
      for (const each of this.#resolve(reference, path)) this.#relation(each, into);
    for (const draw of body.draws) {
      const found = draw === null ? [] : this.#resolve(draw, path);
      if (found.length === 0)
        into.problems.add(`${routine.schema}.${routine.name}: nextval of what is only known when it runs`);
      for (const each of found) this.#relation(each, into);
    }
    for (const called of body.calls) this.#call(called, into, path);
  }

  /** Overloaded ones can't be told apart without types: each may be meant. */
  #call({ schema, name }: TableReference, into: Touched, path: readonly string[]): void {
    if (schema === 'pg_catalog') return;
    if (this.#catalogs.unlisted.has(name)) into.problems.add(`${name}, which it calls, can’t be read`);
    for (const called of this.#routinesByName.get(name) ?? [])
      if (schema === null || called.schema === schema) this.#routine(called.oid, name, into, path);
  }

  /** Without a schema: by the path, else whatever has the name, since a caller may have another. */
  #resolve({ schema, name }: TableReference, path: readonly string[]): readonly string[] {
    const all = this.#relationsByName.get(name) ?? [];
    if (schema !== null) return all.filter((each) => each === `${schema}.${name}`);
    const byPath = path.map((each) => `${each}.${name}`).find((each) => all.includes(each));
    return byPath === undefined ? all : [byPath];
  }
}

function append<T>(map: Map<string, T[]>, key: string, value: T): void {
  const known = map.get(key);
  if (known === undefined) map.set(key, [value]);
  else known.push(value);
}
