/**
 * What comes last, for every object that is built: its owner, its privileges, its comment; then default privileges and
 * the database's own settings. Last, because what an owner may not do any more Understudy may still have to.
 */
import { quoteIdent, quoteLiteral } from '../../../core/postgres.js';
import { type JsonList, parseList, rowsOf, userSchema, type Catalog } from './catalog.js';
import type { NodeId } from './graph.js';
import type { SchemaStatement, SchemaStatementKind } from './plan.js';
import { OPERATOR_CLASS_NAME_SQL, OPERATOR_FAMILY_NAME_SQL } from './read-operator-classes.js';
import { OPERATOR_OBJECT_SQL } from './read-routines.js';

const RELATION_KIND = `CASE c.relkind WHEN 'S' THEN 'SEQUENCE' WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW'
  WHEN 'i' THEN 'INDEX' WHEN 'I' THEN 'INDEX' WHEN 'c' THEN 'TYPE' ELSE 'TABLE' END`;

/** What belongs to a table's column follows the table's owner, and refuses one of its own. */
const OWNED_SEQUENCE = `EXISTS (SELECT FROM pg_depend sd WHERE sd.classid = 'pg_class'::regclass AND sd.objid = c.oid
  AND sd.refclassid = 'pg_class'::regclass AND sd.deptype IN ('a', 'i'))`;

/**
 * Every object with an owner or privileges: catalog entry, keyword and name as ALTER and GRANT take them, owner,
 * privileges, the letter acldefault() knows its kind by. `keyword` is null where there is nothing to own.
 */
const OBJECTS_SQL = `
SELECT 'pg_class:' || c.oid AS id, ${RELATION_KIND} AS keyword, format('%I.%I', n.nspname, c.relname) AS name,
  CASE WHEN c.relkind = 'S' AND ${OWNED_SEQUENCE} THEN NULL ELSE c.relowner END AS owner, c.relacl AS acl,
  CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END AS kind, CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS grant_on,
  c.relowner AS true_owner
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S') AND c.relpersistence <> 't' AND ${userSchema('n')}
UNION ALL
SELECT 'pg_namespace:' || n.oid, 'SCHEMA', quote_ident(n.nspname), n.nspowner, n.nspacl, 'n', 'SCHEMA', n.nspowner
FROM pg_namespace n WHERE ${userSchema('n')}
UNION ALL
SELECT 'pg_proc:' || p.oid, CASE p.prokind WHEN 'p' THEN 'PROCEDURE' WHEN 'a' THEN 'AGGREGATE' ELSE 'FUNCTION' END,
  format('%I.%I(%s)', n.nspname, p.proname,
    CASE WHEN p.prokind = 'a' AND p.pronargs = 0 THEN '*' ELSE pg_get_function_identity_arguments(p.oid) END),
  p.proowner, p.proacl, 'f', CASE p.prokind WHEN 'p' THEN 'PROCEDURE' ELSE 'FUNCTION' END, p.proowner
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE ${userSchema('n')}
UNION ALL
SELECT 'pg_type:' || t.oid, CASE t.typtype WHEN 'd' THEN 'DOMAIN' ELSE 'TYPE' END, format('%I.%I', n.nspname, t.typname),
  t.typowner, t.typacl, 'T', 'TYPE', t.typowner
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace LEFT JOIN pg_class c ON c.oid = t.typrelid
WHERE t.typtype IN ('e', 'c', 'd', 'r') AND (t.typtype <> 'c' OR c.relkind = 'c') AND ${userSchema('n')}
UNION ALL
SELECT 'pg_collation:' || c.oid, 'COLLATION', format('%I.%I', n.nspname, c.collname), c.collowner, NULL, NULL, NULL, c.collowner
FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace WHERE ${userSchema('n')}
UNION ALL
SELECT 'pg_statistic_ext:' || s.oid, 'STATISTICS', format('%I.%I', n.nspname, s.stxname), s.stxowner, NULL, NULL, NULL, s.stxowner
FROM pg_statistic_ext s JOIN pg_namespace n ON n.oid = s.stxnamespace WHERE ${userSchema('n')}
UNION ALL
SELECT 'pg_operator:' || o.oid, 'OPERATOR', substr(${OPERATOR_OBJECT_SQL}, 10), o.oprowner, NULL, NULL, NULL, o.oprowner
FROM pg_operator o JOIN pg_namespace n ON n.oid = o.oprnamespace WHERE ${userSchema('n')}
UNION ALL
SELECT 'pg_opclass:' || o.oid, 'OPERATOR CLASS', ${OPERATOR_CLASS_NAME_SQL}, o.opcowner, NULL, NULL, NULL, o.opcowner
FROM pg_opclass o JOIN pg_namespace n ON n.oid = o.opcnamespace WHERE ${userSchema('n')}
UNION ALL
SELECT 'pg_opfamily:' || o.oid, 'OPERATOR FAMILY', ${OPERATOR_FAMILY_NAME_SQL}, o.opfowner, NULL, NULL, NULL, o.opfowner
FROM pg_opfamily o JOIN pg_namespace n ON n.oid = o.opfnamespace WHERE ${userSchema('n')}
UNION ALL
SELECT 'pg_conversion:' || o.oid, 'CONVERSION', format('%I.%I', n.nspname, o.conname), o.conowner, NULL, NULL, NULL, o.conowner
FROM pg_conversion o JOIN pg_namespace n ON n.oid = o.connamespace WHERE ${userSchema('n')}
UNION ALL
SELECT 'pg_ts_dict:' || d.oid, 'TEXT SEARCH DICTIONARY', format('%I.%I', n.nspname, d.dictname), d.dictowner, NULL, NULL, NULL, d.dictowner
FROM pg_ts_dict d JOIN pg_namespace n ON n.oid = d.dictnamespace WHERE ${userSchema('n')}
UNION ALL
SELECT 'pg_ts_config:' || c.oid, 'TEXT SEARCH CONFIGURATION', format('%I.%I', n.nspname, c.cfgname), c.cfgowner, NULL, NULL, NULL, c.cfgowner
FROM pg_ts_config c JOIN pg_namespace n ON n.oid = c.cfgnamespace WHERE ${userSchema('n')}`;

interface OwnerRow {
  readonly id: string;
  readonly keyword: string;
  readonly name: string;
  readonly owner: string;
}

function lower(keyword: string, name: string): string {
  return `${keyword.toLowerCase()} ${name}`;
}

/** `carried`: catalog entries that the plan builds. */
export async function readOwners(
  { client }: Catalog,
  carried: ReadonlySet<NodeId>,
): Promise<readonly SchemaStatement[]> {
  const rows = await rowsOf<OwnerRow>(
    client,
    'owners',
    `SELECT o.id, o.keyword, o.name, r.rolname AS owner FROM (${OBJECTS_SQL}) o JOIN pg_roles r ON r.oid = o.owner
     ORDER BY 2, 3`,
  );
  return rows
    .filter((row) => carried.has(row.id))
    .map((row) => ({
      kind: 'owner',
      object: lower(row.keyword, row.name),
      sql: `ALTER ${row.keyword} ${row.name} OWNER TO ${quoteIdent(row.owner)}`,
      roles: [row.owner],
    }));
}

interface PrivilegeRow {
  readonly id: string;
  readonly keyword: string;
  readonly name: string;
  readonly grant_on: string;
  /** Null: PUBLIC. */
  readonly grantee: string | null;
  readonly columns: string | null;
  readonly granted: string | null;
  readonly grantable: string | null;
  readonly revoked: string | null;
}

/**
 * Only what differs from what an object of its kind is born with, as the source's version sees it: a privilege that
 * the destination's version added since stays with the owner. `public` is born differently in different versions
 * (15 took CREATE from PUBLIC), so it is set from nothing.
 */
const PRIVILEGES_SQL = `
WITH object AS (${OBJECTS_SQL}), entry AS (
  SELECT o.id, o.keyword, o.name, o.grant_on, NULL::name AS column_name, a.grantee, a.privilege_type, a.is_grantable, true AS held
  FROM object o CROSS JOIN LATERAL aclexplode(o.acl) a
  UNION ALL
  SELECT o.id, o.keyword, o.name, o.grant_on, NULL, a.grantee, a.privilege_type, a.is_grantable, false
  FROM object o CROSS JOIN LATERAL aclexplode(acldefault(o.kind::"char", o.true_owner)) a
  WHERE o.acl IS NOT NULL AND NOT (o.keyword = 'SCHEMA' AND o.name = 'public')
  UNION ALL
  SELECT o.id, o.keyword, o.name, o.grant_on, att.attname, a.grantee, a.privilege_type, a.is_grantable, true
  FROM object o JOIN pg_attribute att ON 'pg_class:' || att.attrelid = o.id AND att.attnum > 0 AND NOT att.attisdropped
  CROSS JOIN LATERAL aclexplode(att.attacl) a
), privilege AS (
  SELECT id, keyword, name, grant_on, column_name, grantee, privilege_type,
    bool_or(held) AS held, bool_or(NOT held) AS born, bool_or(held AND is_grantable) AS grantable
  FROM entry GROUP BY 1, 2, 3, 4, 5, 6, 7
), difference AS (
  SELECT p.*, CASE WHEN held AND (NOT born OR grantable) THEN privilege_type END AS granted,
    CASE WHEN NOT held THEN privilege_type END AS revoked
  FROM privilege p WHERE held AND (NOT born OR grantable) OR NOT held
)
SELECT d.id, d.keyword, d.name, d.grant_on, r.rolname AS grantee, quote_ident(d.column_name) AS columns,
  string_agg(d.granted, ', ' ORDER BY d.granted) FILTER (WHERE NOT d.grantable) AS granted,
  string_agg(d.granted, ', ' ORDER BY d.granted) FILTER (WHERE d.grantable) AS grantable,
  string_agg(d.revoked, ', ' ORDER BY d.revoked) AS revoked
FROM difference d LEFT JOIN pg_roles r ON r.oid = d.grantee
WHERE d.grantee = 0 OR r.oid IS NOT NULL
GROUP BY d.id, d.keyword, d.name, d.grant_on, d.column_name, r.rolname
ORDER BY d.keyword, d.name, d.column_name NULLS FIRST, r.rolname NULLS FIRST`;

function onColumns(privileges: string, columns: string | null): string {
  if (columns === null) return privileges;
  return privileges
    .split(', ')
    .map((privilege) => `${privilege} (${columns})`)
    .join(', ');
}

function privilegeStatements(row: PrivilegeRow): readonly SchemaStatement[] {
  const grantee = row.grantee === null ? 'PUBLIC' : quoteIdent(row.grantee);
  // GRANT knows aggregates as functions, whose arguments are never a star.
  const name = row.keyword === 'AGGREGATE' ? row.name.replace(/\(\*\)$/, '()') : row.name;
  const on = `ON ${row.grant_on} ${name}`;
  const roles = row.grantee === null ? [] : [row.grantee];
  const statements: { sql: string; undo: string }[] = [];
  const privileges = (list: string): string => `${onColumns(list, row.columns)} ${on}`;
  if (row.revoked !== null) {
    const what = privileges(row.revoked);
    statements.push({ sql: `REVOKE ${what} FROM ${grantee}`, undo: `GRANT ${what} TO ${grantee}` });
  }
  if (row.granted !== null) {
    const what = privileges(row.granted);
    statements.push({ sql: `GRANT ${what} TO ${grantee}`, undo: `REVOKE ${what} FROM ${grantee}` });
  }
  if (row.grantable !== null) {
    const what = privileges(row.grantable);
    const sql = `GRANT ${what} TO ${grantee} WITH GRANT OPTION`;
    statements.push({ sql, undo: `REVOKE ${what} FROM ${grantee}` });
  }
  return statements.map((one) => ({ kind: 'grant', object: lower(row.keyword, row.name), ...one, roles }));
}

export async function readPrivileges(
  { client }: Catalog,
  carried: ReadonlySet<NodeId>,
): Promise<readonly SchemaStatement[]> {
  const rows = (await rowsOf<PrivilegeRow>(client, 'privileges', PRIVILEGES_SQL)).filter((row) =>
    carried.has(row.id),
  );
  const statements = rows.flatMap(privilegeStatements);
  if (!rows.some((row) => row.keyword === 'SCHEMA' && row.name === 'public')) return statements;
  return [
    {
      kind: 'grant',
      object: 'schema public',
      sql: 'REVOKE ALL ON SCHEMA public FROM PUBLIC',
    },
    ...statements,
  ];
}

const DEFAULT_ACL_KIND: Readonly<Record<string, string>> = {
  r: 'TABLES',
  S: 'SEQUENCES',
  f: 'FUNCTIONS',
  T: 'TYPES',
  n: 'SCHEMAS',
  L: 'LARGE OBJECTS',
};

interface DefaultPrivilegeRow {
  readonly owner: string;
  readonly schema: string | null;
  readonly kind: string;
  readonly grantee: string | null;
  readonly granted: string | null;
  readonly grantable: string | null;
  readonly revoked: string | null;
}

/** For a whole database they replace what is built in; in a schema they add to it. */
const DEFAULT_PRIVILEGES_SQL = `
WITH entry AS (
  SELECT d.oid, a.grantee, a.privilege_type, a.is_grantable, true AS held
  FROM pg_default_acl d CROSS JOIN LATERAL aclexplode(d.defaclacl) a
  UNION ALL
  SELECT d.oid, a.grantee, a.privilege_type, a.is_grantable, false
  FROM pg_default_acl d CROSS JOIN LATERAL aclexplode(acldefault(
    CASE d.defaclobjtype WHEN 'S' THEN 's'::"char" ELSE d.defaclobjtype END, d.defaclrole)) a
  WHERE d.defaclnamespace = 0
), privilege AS (
  SELECT oid, grantee, privilege_type, bool_or(held) AS held, bool_or(NOT held) AS born,
    bool_or(held AND is_grantable) AS grantable FROM entry GROUP BY 1, 2, 3
)
SELECT o.rolname AS owner, n.nspname AS schema, d.defaclobjtype AS kind, r.rolname AS grantee,
  string_agg(p.privilege_type, ', ' ORDER BY p.privilege_type) FILTER (WHERE p.held AND NOT p.born AND NOT p.grantable) AS granted,
  string_agg(p.privilege_type, ', ' ORDER BY p.privilege_type) FILTER (WHERE p.held AND p.grantable) AS grantable,
  string_agg(p.privilege_type, ', ' ORDER BY p.privilege_type) FILTER (WHERE NOT p.held) AS revoked
FROM privilege p JOIN pg_default_acl d ON d.oid = p.oid JOIN pg_roles o ON o.oid = d.defaclrole
LEFT JOIN pg_namespace n ON n.oid = d.defaclnamespace LEFT JOIN pg_roles r ON r.oid = p.grantee
WHERE (p.grantee = 0 OR r.oid IS NOT NULL) AND (n.oid IS NULL OR ${userSchema('n')})
GROUP BY 1, 2, 3, 4 ORDER BY 1, 2 NULLS FIRST, 3, 4 NULLS FIRST`;

export async function readDefaultPrivileges({ client }: Catalog): Promise<readonly SchemaStatement[]> {
  const rows = await rowsOf<DefaultPrivilegeRow>(client, 'default privileges', DEFAULT_PRIVILEGES_SQL);
  return rows.flatMap((row) => {
    const grantee = row.grantee === null ? 'PUBLIC' : quoteIdent(row.grantee);
    const inSchema = row.schema === null ? '' : ` IN SCHEMA ${quoteIdent(row.schema)}`;
    const prefix = `ALTER DEFAULT PRIVILEGES FOR ROLE ${quoteIdent(row.owner)}${inSchema}`;
    const on = `ON ${DEFAULT_ACL_KIND[row.kind] ?? 'TABLES'}`;
    const actions: string[] = [];
    if (row.revoked !== null) actions.push(`REVOKE ${row.revoked} ${on} FROM ${grantee}`);
    if (row.granted !== null) actions.push(`GRANT ${row.granted} ${on} TO ${grantee}`);
    if (row.grantable !== null) actions.push(`GRANT ${row.grantable} ${on} TO ${grantee} WITH GRANT OPTION`);
    return actions.map((action): SchemaStatement => ({
      kind: 'grant',
      object: `default privileges of ${quoteIdent(row.owner)}${row.schema === null ? '' : ` in schema ${quoteIdent(row.schema)}`}`,
      sql: `${prefix} ${action}`,
      roles: row.grantee === null ? [row.owner] : [row.owner, row.grantee],
    }));
  });
}

/** Every comment on an object of the application’s: entry, text and the object as COMMENT ON names it, or null. */
export const COMMENT_TARGETS_SQL = `
SELECT d.classoid::regclass || ':' || d.objoid AS id, d.description AS comment, CASE d.classoid
  WHEN 'pg_class'::regclass THEN (
    SELECT CASE WHEN d.objsubid = 0 THEN format('%s %I.%I', ${RELATION_KIND}, n.nspname, c.relname)
      ELSE format('COLUMN %I.%I.%I', n.nspname, c.relname, a.attname) END
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.objsubid
    WHERE c.oid = d.objoid AND NOT c.relkind = 'f' AND ${userSchema('n')})
  WHEN 'pg_namespace'::regclass THEN (
    SELECT format('SCHEMA %I', n.nspname) FROM pg_namespace n WHERE n.oid = d.objoid AND ${userSchema('n')}
      AND NOT (n.nspname = 'public' AND d.description = 'standard public schema'))
  WHEN 'pg_proc'::regclass THEN (
    SELECT format('%s %I.%I(%s)', CASE p.prokind WHEN 'p' THEN 'PROCEDURE' WHEN 'a' THEN 'AGGREGATE' ELSE 'FUNCTION' END,
      n.nspname, p.proname,
      CASE WHEN p.prokind = 'a' AND p.pronargs = 0 THEN '*' ELSE pg_get_function_identity_arguments(p.oid) END)
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE p.oid = d.objoid AND ${userSchema('n')})
  WHEN 'pg_type'::regclass THEN (
    SELECT format('%s %I.%I', CASE t.typtype WHEN 'd' THEN 'DOMAIN' ELSE 'TYPE' END, n.nspname, t.typname)
    FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.oid = d.objoid AND ${userSchema('n')})
  WHEN 'pg_constraint'::regclass THEN (
    SELECT format('CONSTRAINT %I ON %s%I.%I', k.conname, CASE WHEN k.contypid <> 0 THEN 'DOMAIN ' ELSE '' END, n.nspname,
      COALESCE(c.relname, t.typname))
    FROM pg_constraint k JOIN pg_namespace n ON n.oid = k.connamespace LEFT JOIN pg_class c ON c.oid = k.conrelid
    LEFT JOIN pg_type t ON t.oid = k.contypid WHERE k.oid = d.objoid AND ${userSchema('n')})
  WHEN 'pg_trigger'::regclass THEN (
    SELECT format('TRIGGER %I ON %I.%I', t.tgname, n.nspname, c.relname) FROM pg_trigger t
    JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE t.oid = d.objoid)
  WHEN 'pg_policy'::regclass THEN (
    SELECT format('POLICY %I ON %I.%I', p.polname, n.nspname, c.relname) FROM pg_policy p
    JOIN pg_class c ON c.oid = p.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.oid = d.objoid)
  WHEN 'pg_rewrite'::regclass THEN (
    SELECT format('RULE %I ON %I.%I', r.rulename, n.nspname, c.relname) FROM pg_rewrite r
    JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE r.oid = d.objoid AND r.rulename <> '_RETURN')
  WHEN 'pg_statistic_ext'::regclass THEN (
    SELECT format('STATISTICS %I.%I', n.nspname, s.stxname) FROM pg_statistic_ext s
    JOIN pg_namespace n ON n.oid = s.stxnamespace WHERE s.oid = d.objoid)
  WHEN 'pg_collation'::regclass THEN (
    SELECT format('COLLATION %I.%I', n.nspname, c.collname) FROM pg_collation c
    JOIN pg_namespace n ON n.oid = c.collnamespace WHERE c.oid = d.objoid AND ${userSchema('n')})
  WHEN 'pg_operator'::regclass THEN (
    SELECT 'OPERATOR' || substr(${OPERATOR_OBJECT_SQL}, 9) FROM pg_operator o
    JOIN pg_namespace n ON n.oid = o.oprnamespace WHERE o.oid = d.objoid AND ${userSchema('n')})
  WHEN 'pg_opclass'::regclass THEN (
    SELECT 'OPERATOR CLASS ' || ${OPERATOR_CLASS_NAME_SQL} FROM pg_opclass o
    JOIN pg_namespace n ON n.oid = o.opcnamespace WHERE o.oid = d.objoid AND ${userSchema('n')})
  WHEN 'pg_opfamily'::regclass THEN (
    SELECT 'OPERATOR FAMILY ' || ${OPERATOR_FAMILY_NAME_SQL} FROM pg_opfamily o
    JOIN pg_namespace n ON n.oid = o.opfnamespace WHERE o.oid = d.objoid AND ${userSchema('n')})
  WHEN 'pg_conversion'::regclass THEN (
    SELECT format('CONVERSION %I.%I', n.nspname, o.conname) FROM pg_conversion o
    JOIN pg_namespace n ON n.oid = o.connamespace WHERE o.oid = d.objoid AND ${userSchema('n')})
  WHEN 'pg_extension'::regclass THEN (
    SELECT format('EXTENSION %I', x.extname) FROM pg_extension x WHERE x.oid = d.objoid AND x.extname <> 'plpgsql'
      AND d.description IS DISTINCT FROM (SELECT a.comment FROM pg_available_extensions a WHERE a.name = x.extname))
  WHEN 'pg_cast'::regclass THEN (
    SELECT format('CAST (%s AS %s)', format_type(c.castsource, NULL), format_type(c.casttarget, NULL))
    FROM pg_cast c WHERE c.oid = d.objoid)
  WHEN 'pg_ts_dict'::regclass THEN (
    SELECT format('TEXT SEARCH DICTIONARY %I.%I', n.nspname, s.dictname) FROM pg_ts_dict s
    JOIN pg_namespace n ON n.oid = s.dictnamespace WHERE s.oid = d.objoid AND ${userSchema('n')})
  WHEN 'pg_ts_config'::regclass THEN (
    SELECT format('TEXT SEARCH CONFIGURATION %I.%I', n.nspname, s.cfgname) FROM pg_ts_config s
    JOIN pg_namespace n ON n.oid = s.cfgnamespace WHERE s.oid = d.objoid AND ${userSchema('n')})
  END AS object
FROM pg_description d
WHERE d.objoid >= 16384 OR d.classoid = 'pg_namespace'::regclass`;

export async function readComments(
  { client }: Catalog,
  carried: ReadonlySet<NodeId>,
): Promise<readonly SchemaStatement[]> {
  const rows = await rowsOf<{ id: string; object: string; comment: string }>(
    client,
    'comments',
    `SELECT id, object, comment FROM (${COMMENT_TARGETS_SQL}) target WHERE object IS NOT NULL ORDER BY object`,
  );
  const kind: SchemaStatementKind = 'comment';
  return (
    rows
      // An extension's own comment is not the extension's member: it is carried where it was given by hand.
      .filter((row) => carried.has(row.id) || row.object.startsWith('EXTENSION '))
      .map((row) => ({
        kind,
        object: row.object,
        sql: `COMMENT ON ${row.object} IS ${quoteLiteral(row.comment)}`,
        undo: `COMMENT ON ${row.object} IS NULL`,
      }))
  );
}

/** The database is not named: it may have another name on the destination. */
function onThisDatabase(statement: string): string {
  return `DO $database$ BEGIN EXECUTE pg_catalog.format(${quoteLiteral(statement)}, pg_catalog.current_database()); END $database$`;
}

/** Percent signs are format()'s own. */
function escapeFormat(text: string): string {
  return text.replaceAll('%', '%%');
}

/** Settings that take a list of names: each is quoted by itself, as GUC_LIST_QUOTE has it. */
const LIST_SETTINGS = new Set([
  'local_preload_libraries',
  'search_path',
  'session_preload_libraries',
  'shared_preload_libraries',
  'temp_tablespaces',
  'unix_socket_directories',
]);

/** `name=value` of pg_db_role_setting → `name TO value` as ALTER … SET takes it. */
export function settingSql(stored: string): string {
  const at = stored.indexOf('=');
  const name = stored.slice(0, at);
  const value = stored.slice(at + 1);
  const quotedName = name.split('.').map(quoteIdent).join('.');
  // The stored form of a list is already quoted name by name.
  if (LIST_SETTINGS.has(name.toLowerCase()) && value !== '') return `${quotedName} TO ${value}`;
  return `${quotedName} TO ${quoteLiteral(value)}`;
}

interface DatabaseRow {
  readonly settings: JsonList<string> | null;
  readonly privileges: JsonList<{ privilege: string; role: string | null; held: boolean }> | null;
}

/** ALTER DATABASE … SET, and privileges on the database beyond those a database is born with. */
export async function readDatabase({ client }: Catalog): Promise<readonly SchemaStatement[]> {
  const rows = await rowsOf<DatabaseRow>(
    client,
    'the database’s settings',
    `SELECT (SELECT to_json(s.setconfig) FROM pg_db_role_setting s WHERE s.setdatabase = d.oid AND s.setrole = 0) AS settings,
       (SELECT json_agg(json_build_object('privilege', privilege_type, 'role', rolname, 'held', held) ORDER BY held, rolname, privilege_type)
         FROM (SELECT a.privilege_type, r.rolname, a.grantee, bool_or(held) AS held, bool_or(NOT held) AS born
           FROM (SELECT x.*, true AS held FROM aclexplode(d.datacl) x UNION ALL
             SELECT x.*, false FROM aclexplode(acldefault('d', d.datdba)) x WHERE d.datacl IS NOT NULL) a
           LEFT JOIN pg_roles r ON r.oid = a.grantee
           WHERE a.grantee <> d.datdba AND (a.grantee = 0 OR r.oid IS NOT NULL)
           GROUP BY 1, 2, 3) p
         WHERE held <> born) AS privileges
     FROM pg_database d WHERE d.datname = current_database()`,
  );
  const row = rows[0];
  const object = 'database';
  const settings = parseList(row?.settings ?? null).map((setting): SchemaStatement => ({
    kind: 'setting',
    object,
    sql: onThisDatabase(`ALTER DATABASE %I SET ${escapeFormat(settingSql(setting))}`),
  }));
  const privileges = parseList(row?.privileges ?? null).map((entry): SchemaStatement => {
    const grantee = entry.role === null ? 'PUBLIC' : escapeFormat(quoteIdent(entry.role));
    const statement = entry.held
      ? `GRANT ${entry.privilege} ON DATABASE %I TO ${grantee}`
      : `REVOKE ${entry.privilege} ON DATABASE %I FROM ${grantee}`;
    return {
      kind: 'grant',
      object,
      sql: onThisDatabase(statement),
      roles: entry.role === null ? [] : [entry.role],
    };
  });
  return [...settings, ...privileges];
}
