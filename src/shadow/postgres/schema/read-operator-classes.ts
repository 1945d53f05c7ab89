/**
 * Operator families and classes, and conversions.
 *
 * A family is made first and empty; a class brings the operators and functions that it can't do without, and the loose
 * members of the family (what ALTER OPERATOR FAMILY … ADD brought) come after all classes of the family, as in pg_dump.
 */
import { notOfExtension, type JsonList, parseList, rowsOf, userSchema, type Catalog } from './catalog.js';
import { RANK, type SchemaNode } from './graph.js';

/** `operator class s.c USING btree`: as in a fingerprint's key. Wants the catalog's row as `o`, its schema as `n`. */
export const OPERATOR_CLASS_NAME_SQL = `format('%I.%I USING %I', n.nspname, o.opcname,
  (SELECT am.amname FROM pg_am am WHERE am.oid = o.opcmethod))`;
export const OPERATOR_FAMILY_NAME_SQL = `format('%I.%I USING %I', n.nspname, o.opfname,
  (SELECT am.amname FROM pg_am am WHERE am.oid = o.opfmethod))`;

const MEMBER_JSON = `json_build_object('id', m.id, 'sql', m.sql)`;

/** Members that hang on a class, or with `owner` null on the family alone. Wants pg_opfamily's oid as `family`. */
function membersSql(family: string, owner: string | null, each = MEMBER_JSON): string {
  const of = (catalog: string, member: string): string => {
    const depends = (
      which: string,
    ): string => `EXISTS (SELECT FROM pg_depend md WHERE md.classid = '${catalog}'::regclass
      AND md.objid = ${member}.oid AND md.refclassid = 'pg_opclass'::regclass AND md.deptype = 'i'${which})`;
    return owner === null ? `NOT ${depends('')}` : depends(` AND md.refobjid = ${owner}`);
  };
  return `(SELECT json_agg(${each} ORDER BY m.kind, m.number, m.sql) FROM (
    SELECT 'pg_amop:' || ao.oid AS id, 1 AS kind, ao.amopstrategy AS number,
      format('OPERATOR %s %s', ao.amopstrategy, ao.amopopr::regoperator) || CASE WHEN ao.amopsortfamily <> 0 THEN
        (SELECT format(' FOR ORDER BY %I.%I', sn.nspname, sf.opfname) FROM pg_opfamily sf
          JOIN pg_namespace sn ON sn.oid = sf.opfnamespace WHERE sf.oid = ao.amopsortfamily) ELSE '' END AS sql
    FROM pg_amop ao WHERE ao.amopfamily = ${family} AND ${of('pg_amop', 'ao')}
    UNION ALL
    SELECT 'pg_amproc:' || ap.oid, 2, ap.amprocnum, format('FUNCTION %s (%s, %s) %s', ap.amprocnum,
      format_type(ap.amproclefttype, NULL), format_type(ap.amprocrighttype, NULL), ap.amproc::regprocedure)
    FROM pg_amproc ap WHERE ap.amprocfamily = ${family} AND ${of('pg_amproc', 'ap')}) m)`;
}

/** What a class consists of, in one text; for the fingerprint. Wants pg_opclass as `o`. */
export const OPERATOR_CLASS_DEFINITION_SQL = `concat_ws(' ', o.opcdefault, format_type(o.opcintype, NULL),
  NULLIF(o.opckeytype, 0)::regtype, ${membersSql('o.opcfamily', 'o.oid', 'm.sql')})`;
/** What a family holds beyond its classes. Wants pg_opfamily as `o`. */
export const OPERATOR_FAMILY_DEFINITION_SQL = `COALESCE(${membersSql('o.oid', null, 'm.sql')}::text, '')`;

interface Member {
  readonly id: string;
  readonly sql: string;
}

interface FamilyRow {
  readonly oid: string;
  readonly name: string;
  readonly members: JsonList<Member> | null;
}

function familyNodes(row: FamilyRow): readonly SchemaNode[] {
  const object = `operator family ${row.name}`;
  const family: SchemaNode = {
    id: `pg_opfamily:${row.oid}`,
    aliases: [],
    phase: 'before-copy',
    rank: RANK.operator,
    statements: [{ kind: 'operator', object, sql: `CREATE OPERATOR FAMILY ${row.name}` }],
    needs: [],
  };
  const members = parseList(row.members);
  if (members.length === 0) return [family];
  const loose: SchemaNode = {
    id: `opfamily-members:${row.oid}`,
    aliases: members.map((member) => member.id),
    phase: 'before-copy',
    rank: RANK.operatorMembers,
    statements: [
      {
        kind: 'operator',
        object,
        sql: `ALTER OPERATOR FAMILY ${row.name} ADD ${members.map((member) => member.sql).join(', ')}`,
      },
    ],
    needs: [family.id],
  };
  return [family, loose];
}

interface ClassRow extends FamilyRow {
  readonly method: string;
  readonly is_default: string;
  readonly type: string;
  readonly storage: string | null;
  readonly family: string;
  readonly family_oid: string;
}

function classNode(row: ClassRow): SchemaNode {
  const members = parseList(row.members);
  const parts = [
    ...(row.storage === null ? [] : [`STORAGE ${row.storage}`]),
    ...members.map((member) => member.sql),
  ];
  // A class without members is written as storing its own type, which says nothing.
  if (parts.length === 0) parts.push(`STORAGE ${row.type}`);
  return {
    id: `pg_opclass:${row.oid}`,
    aliases: members.map((member) => member.id),
    phase: 'before-copy',
    rank: RANK.operator,
    statements: [
      {
        kind: 'operator',
        object: `operator class ${row.name} USING ${row.method}`,
        sql:
          `CREATE OPERATOR CLASS ${row.name}${row.is_default === 't' ? ' DEFAULT' : ''} FOR TYPE ${row.type} ` +
          `USING ${row.method} FAMILY ${row.family} AS ${parts.join(', ')}`,
      },
    ],
    needs: [`pg_opfamily:${row.family_oid}`],
  };
}

export async function readOperatorClasses({ client }: Catalog): Promise<readonly SchemaNode[]> {
  const families = await rowsOf<FamilyRow>(
    client,
    'operator families',
    `SELECT o.oid, ${OPERATOR_FAMILY_NAME_SQL} AS name, ${membersSql('o.oid', null)} AS members
     FROM pg_opfamily o JOIN pg_namespace n ON n.oid = o.opfnamespace
     WHERE ${userSchema('n')} AND ${notOfExtension('pg_opfamily', 'o.oid')}`,
  );
  const classes = await rowsOf<ClassRow>(
    client,
    'operator classes',
    `SELECT o.oid, format('%I.%I', n.nspname, o.opcname) AS name, quote_ident(am.amname) AS method,
       o.opcdefault AS is_default, format_type(o.opcintype, NULL) AS type,
       CASE WHEN o.opckeytype <> 0 THEN format_type(o.opckeytype, NULL) END AS storage,
       format('%I.%I', fn.nspname, f.opfname) AS family, f.oid AS family_oid, ${membersSql('o.opcfamily', 'o.oid')} AS members
     FROM pg_opclass o JOIN pg_namespace n ON n.oid = o.opcnamespace JOIN pg_am am ON am.oid = o.opcmethod
     JOIN pg_opfamily f ON f.oid = o.opcfamily JOIN pg_namespace fn ON fn.oid = f.opfnamespace
     WHERE ${userSchema('n')} AND ${notOfExtension('pg_opclass', 'o.oid')}`,
  );
  return [...families.flatMap(familyNodes), ...classes.map(classNode)];
}

export async function readConversions({ client }: Catalog): Promise<readonly SchemaNode[]> {
  const rows = await rowsOf<{ oid: string; name: string; sql: string }>(
    client,
    'conversions',
    `SELECT o.oid, format('%I.%I', n.nspname, o.conname) AS name, format('CREATE %sCONVERSION %I.%I FOR %L TO %L FROM %s',
       CASE WHEN o.condefault THEN 'DEFAULT ' ELSE '' END, n.nspname, o.conname,
       pg_encoding_to_char(o.conforencoding), pg_encoding_to_char(o.contoencoding), o.conproc) AS sql
     FROM pg_conversion o JOIN pg_namespace n ON n.oid = o.connamespace
     WHERE ${userSchema('n')} AND ${notOfExtension('pg_conversion', 'o.oid')}`,
  );
  return rows.map((row) => ({
    id: `pg_conversion:${row.oid}`,
    aliases: [],
    phase: 'before-copy',
    rank: RANK.operator,
    statements: [{ kind: 'operator', object: `conversion ${row.name}`, sql: row.sql }],
    needs: [],
  }));
}
