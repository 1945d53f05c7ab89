/**
 * A hash per catalog object, so that DDL on either side is noticed, and named, before or under a fence (trap 6).
 *
 * Two readings of one server are equal as long as nobody runs DDL. Left out on purpose, because it changes without
 * DDL of the application: statistics, sequences' values, storage parameters, whether a view is filled, an index still
 * being built; Understudy's own schema, triggers, publications and the replica identities it sets. A trigger's state is
 * only "fires for ordinary sessions" or not: triggers that the shadow keeps disabled get their state back at the switch.
 * Hashes of two servers of one version are comparable; between versions the deparsers' wording may differ.
 *
 * Some DDL changes rows that the log doesn't tell of and leaves the definition as it was: a table dropped and created
 * again, a column dropped and added again, `ALTER COLUMN … TYPE … USING`. So a table's oid, its columns' numbers, and the
 * rewrites that the event trigger has counted (see ddl-notice.ts) are entries of their own, `rows of …` and `column …`;
 * they say nothing between two servers.
 */
import type pg from 'pg';
import { asUnderstudyError } from '../../core/errors.js';
import { tellsOfRows } from '../../core/fingerprint-entries.js';
import type { CatalogFingerprint } from '../../core/ports.js';
import { UNENFORCED_KEYS } from '../../core/subsets.js';
import { TOKEN_SQL } from './fingerprint-token.js';
import { notOfExtension, userSchema } from './schema/catalog.js';
import { COMMENT_TARGETS_SQL } from './schema/read-access.js';
import {
  OPERATOR_CLASS_DEFINITION_SQL,
  OPERATOR_CLASS_NAME_SQL,
  OPERATOR_FAMILY_DEFINITION_SQL,
  OPERATOR_FAMILY_NAME_SQL,
} from './schema/read-operator-classes.js';
import {
  OPERATOR_OBJECT_SQL,
  OWN_CAST_SQL,
  OWN_ROUTINE_SQL,
  ROUTINE_OBJECT_SQL,
} from './schema/read-routines.js';

export interface FingerprintDifference {
  readonly object: string;
  readonly change: 'added' | 'removed' | 'changed';
}

/** Privileges and owner as text that does not depend on the order they were granted in. */
function accessSql(acl: string, owner: string): string {
  return `pg_get_userbyid(${owner}) || ' ' || CASE WHEN ${acl} IS NULL THEN '-' ELSE
    (SELECT string_agg(x::text, ',' ORDER BY x::text) FROM unnest(${acl}) x) END`;
}

const RELATION_KEYWORD = `CASE c.relkind WHEN 'S' THEN 'sequence' WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
  WHEN 'f' THEN 'foreign table' ELSE 'table' END`;

const RELATION = `pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace`;
const ON_RELATION = `${userSchema('n')} AND c.relpersistence <> 't' AND ${notOfExtension('pg_class', 'c.oid')}`;
const RELATION_OBJECT = `format('%s %I.%I', ${RELATION_KEYWORD}, n.nspname, c.relname)`;

const TABLES = `
SELECT ${RELATION_OBJECT} AS object, concat_ws(E'\\n', c.relkind, c.relpersistence, c.relrowsecurity, c.relforcerowsecurity,
  CASE WHEN c.relkind = 'p' THEN pg_get_partkeydef(c.oid) END, pg_get_expr(c.relpartbound, c.oid),
  (SELECT string_agg(format('%I.%I', pn.nspname, p.relname), ',' ORDER BY i.inhseqno)
    FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace pn ON pn.oid = p.relnamespace
    WHERE i.inhrelid = c.oid),
  (SELECT string_agg(concat_ws(' ', quote_ident(a.attname), format_type(a.atttypid, a.atttypmod), a.attnotnull,
      NULLIF(a.attgenerated, ''), CASE WHEN NOT c.relispartition THEN NULLIF(a.attidentity, '') END,
      CASE WHEN a.attcollation <> 0 THEN (SELECT format('%I.%I', cn.nspname, co.collname) FROM pg_collation co
        JOIN pg_namespace cn ON cn.oid = co.collnamespace WHERE co.oid = a.attcollation) END,
      pg_get_expr(d.adbin, d.adrelid)), E'\\n' ORDER BY a.attnum)
    FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)) AS definition
FROM ${RELATION} WHERE c.relkind IN ('r', 'p', 'f') AND ${ON_RELATION}`;

/** NOT NULL became a named constraint in 18: the column's own flag says it. Partitions' clones go with the root's. */
const CONSTRAINTS = `
SELECT format('constraint %I on %I.%I', k.conname, n.nspname, c.relname), pg_get_constraintdef(k.oid)
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE k.contype IN ('c', 'p', 'u', 'x', 'f') AND (k.contype <> 'f' OR k.conparentid = 0) AND ${ON_RELATION}`;

/** One that Understudy keeps out while its subsets are parted is as it was recorded, so that this is no change. */
const CONSTRAINTS_RECORDED = `${CONSTRAINTS} AND NOT EXISTS (SELECT FROM ${UNENFORCED_KEYS} u
  WHERE u.schema_name = n.nspname AND u.table_name = c.relname AND u.constraint_name = k.conname)
UNION ALL
SELECT format('constraint %I on %I.%I', u.constraint_name, u.schema_name, u.table_name), u.definition
FROM ${UNENFORCED_KEYS} u`;

const INDEXES = `
SELECT format('index %I.%I', n.nspname, x.relname), pg_get_indexdef(i.indexrelid)
FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_class c ON c.oid = i.indrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'm') AND (i.indisvalid OR c.relkind = 'p') AND ${ON_RELATION}
  AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x'))`;

const SEQUENCES = `
SELECT ${RELATION_OBJECT}, concat_ws(' ', format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmin, s.seqmax,
  s.seqcache, s.seqcycle, (SELECT format('%I.%I.%I', tn.nspname, t.relname, a.attname) FROM pg_depend d
    JOIN pg_class t ON t.oid = d.refobjid JOIN pg_namespace tn ON tn.oid = t.relnamespace
    JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_class'::regclass
      AND d.deptype IN ('a', 'i')))
FROM ${RELATION} JOIN pg_sequence s ON s.seqrelid = c.oid WHERE ${ON_RELATION}`;

const VIEWS = `
SELECT ${RELATION_OBJECT}, concat_ws(E'\\n', (SELECT string_agg(o, ',' ORDER BY o) FROM unnest(c.reloptions) o),
  pg_get_viewdef(c.oid), (SELECT string_agg(concat_ws(' ', d.adnum, pg_get_expr(d.adbin, d.adrelid)), ',' ORDER BY d.adnum)
    FROM pg_attrdef d WHERE d.adrelid = c.oid))
FROM ${RELATION} WHERE c.relkind IN ('v', 'm') AND ${ON_RELATION}`;

const RULES = `
SELECT format('rule %I on %I.%I', r.rulename, n.nspname, c.relname),
  CASE r.ev_enabled WHEN 'O' THEN 'origin ' ELSE 'other ' END || pg_get_ruledef(r.oid)
FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE r.rulename <> '_RETURN' AND ${ON_RELATION}`;

/** A partition's clone of its root's trigger is internal before 15; the triggers behind constraints always are. */
const TRIGGERS = `
SELECT format('trigger %I on %I.%I', t.tgname, n.nspname, c.relname),
  CASE t.tgenabled WHEN 'O' THEN 'origin ' ELSE 'other ' END || pg_get_triggerdef(t.oid)
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_constraint k ON k.oid = t.tgconstraint AND k.contype <> 't'
WHERE (NOT t.tgisinternal OR t.tgparentid <> 0) AND k.oid IS NULL AND t.tgname NOT LIKE 'understudy\\_%'
  AND ${ON_RELATION}`;

const POLICIES = `
SELECT format('policy %I on %I.%I', p.polname, n.nspname, c.relname), concat_ws(E'\\n', p.polpermissive, p.polcmd,
  (SELECT string_agg(r.rolname, ',' ORDER BY r.rolname) FROM pg_roles r WHERE r.oid = ANY (p.polroles)),
  pg_get_expr(p.polqual, p.polrelid), 'check', pg_get_expr(p.polwithcheck, p.polrelid))
FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE ${ON_RELATION}`;

const ROUTINES = `
SELECT ${ROUTINE_OBJECT_SQL}, CASE p.prokind WHEN 'a' THEN concat_ws(' ', pg_get_function_arguments(p.oid),
    pg_get_function_result(p.oid), p.proparallel, a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.agginitval)
  ELSE pg_get_functiondef(p.oid) END
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace LEFT JOIN pg_aggregate a ON a.aggfnoid = p.oid
WHERE ${userSchema('n')} AND ${notOfExtension('pg_proc', 'p.oid')} AND ${OWN_ROUTINE_SQL}`;

const TYPES = `
SELECT format('type %I.%I', n.nspname, t.typname), concat_ws(E'\\n', t.typtype,
  (SELECT string_agg(quote_literal(e.enumlabel), ',' ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid),
  (SELECT string_agg(concat_ws(' ', quote_ident(a.attname), format_type(a.atttypid, a.atttypmod)), ',' ORDER BY a.attnum)
    FROM pg_attribute a WHERE a.attrelid = t.typrelid AND t.typrelid <> 0 AND a.attnum > 0 AND NOT a.attisdropped),
  CASE WHEN t.typtype = 'd' THEN concat_ws(' ', format_type(t.typbasetype, t.typtypmod), t.typnotnull,
    pg_get_expr(t.typdefaultbin, 0)) END,
  (SELECT string_agg(concat_ws(' ', quote_ident(k.conname), pg_get_constraintdef(k.oid)), ',' ORDER BY k.conname)
    FROM pg_constraint k WHERE k.contypid = t.oid AND k.contype = 'c'),
  (SELECT format_type(r.rngsubtype, NULL) FROM pg_range r WHERE r.rngtypid = t.oid))
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace LEFT JOIN pg_class c ON c.oid = t.typrelid
WHERE t.typtype IN ('e', 'c', 'd', 'r') AND (t.typtype <> 'c' OR c.relkind = 'c')
  AND ${userSchema('n')} AND ${notOfExtension('pg_type', 't.oid')}`;

const OTHERS = `
SELECT format('schema %I', n.nspname), '' FROM pg_namespace n WHERE ${userSchema('n')}
UNION ALL
SELECT format('extension %I', x.extname), x.extversion FROM pg_extension x
UNION ALL
SELECT format('collation %I.%I', n.nspname, c.collname), concat_ws(' ', c.collprovider, c.collisdeterministic, c.collcollate,
  c.collctype, to_jsonb(c) ->> 'colllocale', to_jsonb(c) ->> 'colliculocale', to_jsonb(c) ->> 'collicurules')
FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace
WHERE ${userSchema('n')} AND ${notOfExtension('pg_collation', 'c.oid')}
UNION ALL
SELECT ${OPERATOR_OBJECT_SQL}, o.oprcode::text FROM pg_operator o JOIN pg_namespace n ON n.oid = o.oprnamespace
WHERE ${userSchema('n')} AND ${notOfExtension('pg_operator', 'o.oid')}
UNION ALL
SELECT 'operator class ' || ${OPERATOR_CLASS_NAME_SQL}, ${OPERATOR_CLASS_DEFINITION_SQL}
FROM pg_opclass o JOIN pg_namespace n ON n.oid = o.opcnamespace
WHERE ${userSchema('n')} AND ${notOfExtension('pg_opclass', 'o.oid')}
UNION ALL
SELECT 'operator family ' || ${OPERATOR_FAMILY_NAME_SQL}, ${OPERATOR_FAMILY_DEFINITION_SQL}
FROM pg_opfamily o JOIN pg_namespace n ON n.oid = o.opfnamespace
WHERE ${userSchema('n')} AND ${notOfExtension('pg_opfamily', 'o.oid')}
UNION ALL
SELECT format('conversion %I.%I', n.nspname, o.conname), concat_ws(' ', o.condefault, o.conforencoding, o.contoencoding, o.conproc)
FROM pg_conversion o JOIN pg_namespace n ON n.oid = o.connamespace
WHERE ${userSchema('n')} AND ${notOfExtension('pg_conversion', 'o.oid')}
UNION ALL
SELECT format('cast (%s AS %s)', format_type(c.castsource, NULL), format_type(c.casttarget, NULL)),
  concat_ws(' ', c.castmethod, c.castcontext, NULLIF(c.castfunc, 0)::regprocedure)
FROM pg_cast c WHERE ${OWN_CAST_SQL}
UNION ALL
SELECT format('statistics %I.%I', n.nspname, s.stxname), pg_get_statisticsobjdef(s.oid)
FROM pg_statistic_ext s JOIN pg_namespace n ON n.oid = s.stxnamespace
WHERE ${userSchema('n')} AND ${notOfExtension('pg_statistic_ext', 's.oid')}
UNION ALL
SELECT format('text search dictionary %I.%I', n.nspname, d.dictname), concat_ws(' ', t.tmplname, d.dictinitoption)
FROM pg_ts_dict d JOIN pg_namespace n ON n.oid = d.dictnamespace JOIN pg_ts_template t ON t.oid = d.dicttemplate
WHERE ${userSchema('n')} AND ${notOfExtension('pg_ts_dict', 'd.oid')}
UNION ALL
SELECT format('text search configuration %I.%I', n.nspname, c.cfgname),
  (SELECT string_agg(concat_ws(' ', m.maptokentype, m.mapseqno, d.dictname), ',' ORDER BY m.maptokentype, m.mapseqno)
    FROM pg_ts_config_map m JOIN pg_ts_dict d ON d.oid = m.mapdict WHERE m.mapcfg = c.oid)
FROM pg_ts_config c JOIN pg_namespace n ON n.oid = c.cfgnamespace
WHERE ${userSchema('n')} AND ${notOfExtension('pg_ts_config', 'c.oid')}`;

const ACCESS = `
SELECT 'privileges of ' || ${RELATION_OBJECT}, concat_ws(E'\\n', ${accessSql('c.relacl', 'c.relowner')},
  granted.columns)
FROM ${RELATION} LEFT JOIN (
  SELECT a.attrelid, string_agg(a.attname || ' ' || (SELECT string_agg(x::text, ',' ORDER BY x::text) FROM unnest(a.attacl) x), ';'
    ORDER BY a.attnum) AS columns
  FROM pg_attribute a WHERE a.attacl IS NOT NULL AND NOT a.attisdropped AND a.attrelid >= 16384 GROUP BY 1) granted ON granted.attrelid = c.oid
WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm', 'S') AND ${ON_RELATION}
UNION ALL
SELECT format('privileges of schema %I', n.nspname), ${accessSql('n.nspacl', 'n.nspowner')} FROM pg_namespace n WHERE ${userSchema('n')}
UNION ALL
SELECT 'privileges of ' || ${ROUTINE_OBJECT_SQL}, ${accessSql('p.proacl', 'p.proowner')}
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE ${userSchema('n')} AND ${notOfExtension('pg_proc', 'p.oid')} AND ${OWN_ROUTINE_SQL}
UNION ALL
SELECT format('privileges of type %I.%I', n.nspname, t.typname), ${accessSql('t.typacl', 't.typowner')}
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace LEFT JOIN pg_class c ON c.oid = t.typrelid
WHERE t.typtype IN ('e', 'c', 'd', 'r') AND (t.typtype <> 'c' OR c.relkind = 'c')
  AND ${userSchema('n')} AND ${notOfExtension('pg_type', 't.oid')}
UNION ALL
SELECT format('default privileges of %I on %s%s', pg_get_userbyid(d.defaclrole), d.defaclobjtype,
  (SELECT format(' in schema %I', n.nspname) FROM pg_namespace n WHERE n.oid = d.defaclnamespace)),
  (SELECT string_agg(x::text, ',' ORDER BY x::text) FROM unnest(d.defaclacl) x)
FROM pg_default_acl d
UNION ALL
SELECT 'settings of the database', array_to_string(s.setconfig, E'\\n')
FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase
WHERE d.datname = current_database() AND s.setrole = 0`;

/** Without the event trigger there is nothing that counts. */
function rowsSql(counted: boolean): string {
  const rewrites = counted ? '(SELECT count(*) FROM understudy.rewrite w WHERE w.relation = c.oid)' : '0';
  return `
SELECT format('rows of %I.%I', n.nspname, c.relname), concat_ws(' ', c.oid, ${rewrites})
FROM ${RELATION} WHERE c.relkind = 'r' AND ${ON_RELATION}
UNION ALL
SELECT format('column %I of %I.%I', a.attname, n.nspname, c.relname), a.attnum::text
FROM ${RELATION} JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relkind = 'r' AND ${ON_RELATION}`;
}

/** One entry for all: a comment is carried over and never a reason of its own to name an object. */
function commentsSql(targets: string): string {
  return `
SELECT 'comments', string_agg(target.object || ' ' || target.comment, E'\\n' ORDER BY target.object)
FROM (${targets}) target WHERE target.object IS NOT NULL`;
}

const COMMENTS_RECORDED = `SELECT object, comment FROM (${COMMENT_TARGETS_SQL}) present
UNION
SELECT format('CONSTRAINT %I ON %I.%I', u.constraint_name, u.schema_name, u.table_name), u.comment
FROM ${UNENFORCED_KEYS} u WHERE u.comment IS NOT NULL`;

/** The token comes as a row of its own, of the same snapshot. */
function fingerprintSql(constraints: string, comments: string, counted: boolean): string {
  const parts = [
    TABLES,
    constraints,
    INDEXES,
    SEQUENCES,
    VIEWS,
    RULES,
    TRIGGERS,
    POLICIES,
    ROUTINES,
    TYPES,
    OTHERS,
    ACCESS,
    commentsSql(comments),
    rowsSql(counted),
  ];
  return `SELECT object, md5(COALESCE(definition, '')) AS hash FROM (${parts.join('\nUNION ALL\n')}) entry UNION ALL SELECT '', ${TOKEN_SQL}`;
}

const ROWS_OBJECT = /^(?<kind>rows|column)(?: (?:"(?:[^"]|"")*"|[^" ]+))? of (?<table>.*)$/s;

/** Readings by token, the latest last: a process reads two databases, over and over. */
const readings = new Map<string, CatalogFingerprint>();
const READINGS_MAX = 8;

function remember(token: string, fingerprint: CatalogFingerprint): void {
  readings.delete(token);
  readings.set(token, fingerprint);
  for (const oldest of readings.keys()) {
    if (readings.size <= READINGS_MAX) break;
    readings.delete(oldest);
  }
}

interface Glance {
  readonly token: string;
  /** 't': foreign keys may be recorded as unenforced. */
  readonly recorded: string;
  /** 't': rewrites are counted. */
  readonly counted: string;
}

/** Statements are prepared: planning them takes as long as running them, and only a session's first pays for it. */
async function glance(client: pg.Client): Promise<Glance> {
  const { rows } = await client.query<Glance>({
    name: 'understudy_fingerprint_token',
    text: `SELECT ${TOKEN_SQL} AS token, to_regclass('${UNENFORCED_KEYS}') IS NOT NULL AS recorded,
      to_regclass('understudy.rewrite') IS NOT NULL AS counted`,
  });
  return rows[0] ?? { token: '', recorded: 'f', counted: 'f' };
}

/**
 * One hash per object of the database behind `client`, a control connection, keyed `table public.orders`,
 * `function public.f(integer)`, `constraint c on public.orders`, `privileges of table public.orders`; names quoted
 * where SQL would have to. One round trip where nothing changed since this process last read, else two. Takes no lock on
 * tables, except that deparsing a view takes the weakest one on what it reads, which no fence holds off.
 * Throws `source-query-failed`.
 */
export async function readFingerprint(client: pg.Client): Promise<CatalogFingerprint> {
  try {
    const seen = await glance(client);
    const known = readings.get(seen.token);
    if (known !== undefined) return known;
    const counted = seen.counted === 't';
    const suffix = counted ? '_counted' : '';
    const { rows } = await client.query<{ object: string; hash: string }>(
      seen.recorded === 't'
        ? {
            name: `understudy_fingerprint_recorded${suffix}`,
            text: fingerprintSql(CONSTRAINTS_RECORDED, COMMENTS_RECORDED, counted),
          }
        : {
            name: `understudy_fingerprint${suffix}`,
            text: fingerprintSql(CONSTRAINTS, COMMENT_TARGETS_SQL, counted),
          },
    );
    const token = rows.find((row) => row.object === '')?.hash ?? '';
    const entries = rows.filter((row) => row.object !== '').map((row) => [row.object, row.hash] as const);
    const fingerprint = Object.freeze(Object.fromEntries(entries));
    remember(token, fingerprint);
    return fingerprint;
  } catch (error) {
    throw asUnderstudyError(error, 'source-query-failed', 'reading the catalog fingerprint');
  }
}

/**
 * Tables, quoted and qualified, whose rows are other ones than `built` knew although the log doesn't say so. `unseen`:
 * without those whose definition changed with their rows, as another type of a column does.
 */
export function replacedRows(
  built: CatalogFingerprint,
  now: CatalogFingerprint,
  unseen = false,
): readonly string[] {
  const differences = diffFingerprints(built, now);
  const changed = new Set(differences.map(({ object }) => object));
  const tables = differences.flatMap(({ object }) => {
    const { kind, table } = ROWS_OBJECT.exec(object)?.groups ?? {};
    if (table === undefined || (unseen && kind === 'rows' && changed.has(`table ${table}`))) return [];
    return [table];
  });
  return [...new Set(tables)];
}

/** What differs, by name. `built` is the earlier one: `added` is in `now` alone. */
export function diffFingerprints(
  built: CatalogFingerprint,
  now: CatalogFingerprint,
): readonly FingerprintDifference[] {
  const objects = [...new Set([...Object.keys(built), ...Object.keys(now)])].sort();
  return objects.flatMap((object): readonly FingerprintDifference[] => {
    const before = built[object];
    const after = now[object];
    if (before === after) return [];
    // A table or column that came or went is an entry's change of its own, and an older version recorded none of these.
    if ((before === undefined || after === undefined) && tellsOfRows(object)) return [];
    const change = before === undefined ? 'added' : after === undefined ? 'removed' : 'changed';
    return [{ object, change }];
  });
}
