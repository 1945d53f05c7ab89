/** Schemas, extensions, collations and types. */
import { quoteLiteral } from '../../../core/postgres.js';
import { notOfExtension, type JsonList, parseList, rowsOf, userSchema, type Catalog } from './catalog.js';
import { RANK, type SchemaNode } from './graph.js';
import type { StatementShape } from './plan.js';

export async function readSchemas({ client }: Catalog): Promise<readonly SchemaNode[]> {
  const rows = await rowsOf<{ oid: string; name: string }>(
    client,
    'schemas',
    `SELECT n.oid, quote_ident(n.nspname) AS name FROM pg_namespace n
     WHERE ${userSchema('n')} AND ${notOfExtension('pg_namespace', 'n.oid')}`,
  );
  return rows.map(({ oid, name }) => ({
    id: `pg_namespace:${oid}`,
    aliases: [],
    phase: 'before-copy',
    rank: RANK.schema,
    // `public` exists in a new database, and an operator may have made others for their extensions.
    statements: [{ kind: 'schema', object: `schema ${name}`, sql: `CREATE SCHEMA IF NOT EXISTS ${name}` }],
    needs: [],
  }));
}

export async function readExtensions({ client }: Catalog): Promise<readonly SchemaNode[]> {
  const rows = await rowsOf<{ oid: string; name: string; schema: string; members: JsonList<string> | null }>(
    client,
    'extensions',
    `SELECT x.oid, quote_ident(x.extname) AS name, quote_ident(n.nspname) AS schema,
       (SELECT json_agg(d.classid::regclass || ':' || d.objid) FROM pg_depend d
        WHERE d.refclassid = 'pg_extension'::regclass AND d.refobjid = x.oid AND d.deptype = 'e') AS members
     FROM pg_extension x JOIN pg_namespace n ON n.oid = x.extnamespace
     WHERE x.extname <> 'plpgsql'`,
  );
  return rows.map(({ oid, name, schema, members }) => ({
    id: `pg_extension:${oid}`,
    aliases: parseList(members),
    phase: 'before-copy',
    rank: RANK.extension,
    statements: [
      {
        kind: 'extension',
        object: `extension ${name}`,
        sql: `CREATE EXTENSION IF NOT EXISTS ${name} WITH SCHEMA ${schema}`,
      },
    ],
    needs: [],
  }));
}

interface CollationRow {
  readonly oid: string;
  readonly name: string;
  readonly provider: string;
  readonly deterministic: string;
  readonly collate: string | null;
  readonly ctype: string | null;
  readonly locale: string | null;
  readonly rules: string | null;
}

const COLLATION_PROVIDERS: Readonly<Record<string, string>> = { c: 'libc', i: 'icu', b: 'builtin' };

/** The catalog's columns were renamed in 15 and in 17: they are looked up by name in the row's JSON. */
export async function readCollations({ client }: Catalog): Promise<readonly SchemaNode[]> {
  const rows = await rowsOf<CollationRow>(
    client,
    'collations',
    `SELECT c.oid, format('%I.%I', n.nspname, c.collname) AS name, c.collprovider AS provider,
       c.collisdeterministic AS deterministic, c.collcollate AS collate, c.collctype AS ctype,
       COALESCE(to_jsonb(c) ->> 'colllocale', to_jsonb(c) ->> 'colliculocale', c.collcollate) AS locale,
       to_jsonb(c) ->> 'collicurules' AS rules
     FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace
     WHERE ${userSchema('n')} AND ${notOfExtension('pg_collation', 'c.oid')}`,
  );
  return rows.map((row) => {
    const options: string[] = [];
    const provider = COLLATION_PROVIDERS[row.provider];
    if (provider !== undefined) options.push(`provider = ${provider}`);
    if (row.provider === 'c') {
      options.push(`lc_collate = ${quoteLiteral(row.collate ?? '')}`);
      options.push(`lc_ctype = ${quoteLiteral(row.ctype ?? '')}`);
    } else {
      options.push(`locale = ${quoteLiteral(row.locale ?? '')}`);
    }
    if (row.deterministic === 'f') options.push('deterministic = false');
    if (row.rules !== null) options.push(`rules = ${quoteLiteral(row.rules)}`);
    return {
      id: `pg_collation:${row.oid}`,
      aliases: [],
      phase: 'before-copy',
      rank: RANK.collation,
      statements: [
        {
          kind: 'collation',
          object: `collation ${row.name}`,
          sql: `CREATE COLLATION ${row.name} (${options.join(', ')})`,
        },
      ],
      needs: [],
    };
  });
}

interface TypeRow {
  readonly oid: string;
  readonly array_oid: string;
  readonly name: string;
  readonly typtype: 'e' | 'c' | 'd' | 'r';
  readonly relation_oid: string;
  readonly labels: JsonList<string> | null;
  readonly attributes: JsonList<string> | null;
  readonly domain: string | null;
  readonly range: string | null;
}

interface DomainJson {
  readonly base: string;
  readonly collation: string | null;
  readonly default: string | null;
  readonly notNull: boolean;
  readonly constraints: readonly {
    readonly oid: string;
    readonly name: string;
    readonly definition: string;
    readonly validated: boolean;
  }[];
}

interface RangeJson {
  readonly multirangeOid: string | null;
  readonly multirangeArrayOid: string | null;
  readonly options: readonly string[];
}

/** A column's or domain's own collation, where it isn't the type's default: qualified and quoted, or null. */
export function collationSql(own: string, typeDefault: string): string {
  return `(SELECT format('%I.%I', cn.nspname, co.collname) FROM pg_collation co
    JOIN pg_namespace cn ON cn.oid = co.collnamespace
    WHERE co.oid = ${own} AND ${own} <> 0 AND ${own} <> ${typeDefault})`;
}

const TYPES_SQL = `
SELECT t.oid, t.typarray AS array_oid, format('%I.%I', n.nspname, t.typname) AS name, t.typtype,
  t.typrelid AS relation_oid,
  CASE t.typtype WHEN 'e' THEN (
    SELECT json_agg(e.enumlabel ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid) END AS labels,
  CASE t.typtype WHEN 'c' THEN (
    SELECT json_agg(concat_ws(' ', quote_ident(a.attname), format_type(a.atttypid, a.atttypmod),
        'COLLATE ' || ${collationSql('a.attcollation', 'at.typcollation')}) ORDER BY a.attnum)
    FROM pg_attribute a JOIN pg_type at ON at.oid = a.atttypid
    WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) END AS attributes,
  CASE t.typtype WHEN 'd' THEN json_build_object(
    'base', format_type(t.typbasetype, t.typtypmod),
    'collation', ${collationSql('t.typcollation', 'b.typcollation')},
    'default', pg_get_expr(t.typdefaultbin, 0),
    'notNull', t.typnotnull,
    'constraints', (SELECT COALESCE(json_agg(json_build_object('oid', c.oid::text, 'name', quote_ident(c.conname),
        'definition', pg_get_constraintdef(c.oid), 'validated', c.convalidated) ORDER BY c.conname), '[]')
      FROM pg_constraint c WHERE c.contypid = t.oid AND c.contype = 'c')) END AS domain,
  CASE t.typtype WHEN 'r' THEN json_build_object(
    'multirangeOid', m.oid::text,
    'multirangeArrayOid', m.typarray::text,
    'options', array_remove(ARRAY[
      'subtype = ' || format_type(r.rngsubtype, NULL),
      (SELECT format('subtype_opclass = %I.%I', on_.nspname, o.opcname) FROM pg_opclass o
        JOIN pg_namespace on_ ON on_.oid = o.opcnamespace WHERE o.oid = r.rngsubopc AND NOT o.opcdefault),
      'collation = ' || ${collationSql('r.rngcollation', 'rs.typcollation')},
      CASE WHEN r.rngcanonical <> 0 THEN 'canonical = ' || r.rngcanonical END,
      CASE WHEN r.rngsubdiff <> 0 THEN 'subtype_diff = ' || (
        SELECT format('%I.%I', pn.nspname, p.proname) FROM pg_proc p
        JOIN pg_namespace pn ON pn.oid = p.pronamespace WHERE p.oid = r.rngsubdiff) END,
      format('multirange_type_name = %I.%I', mn.nspname, m.typname)], NULL)) END AS range
FROM pg_type t
JOIN pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_class c ON c.oid = t.typrelid
LEFT JOIN pg_type b ON b.oid = t.typbasetype
LEFT JOIN pg_range r ON r.rngtypid = t.oid
LEFT JOIN pg_type rs ON rs.oid = r.rngsubtype
LEFT JOIN pg_type m ON m.oid = r.rngmultitypid
LEFT JOIN pg_namespace mn ON mn.oid = m.typnamespace
WHERE ${userSchema('n')} AND ${notOfExtension('pg_type', 't.oid')}
  AND t.typtype IN ('e', 'c', 'd', 'r') AND (t.typtype <> 'c' OR c.relkind = 'c')
  AND COALESCE(r.rngcanonical, 0) = 0`;

function domainStatement(name: string, domain: DomainJson): string {
  const parts = [`CREATE DOMAIN ${name} AS ${domain.base}`];
  if (domain.collation !== null) parts.push(`COLLATE ${domain.collation}`);
  if (domain.default !== null) parts.push(`DEFAULT ${domain.default}`);
  if (domain.notNull) parts.push('NOT NULL');
  for (const constraint of domain.constraints) {
    if (constraint.validated) parts.push(`CONSTRAINT ${constraint.name} ${constraint.definition}`);
  }
  return parts.join(' ');
}

function domainNodes(row: TypeRow, domain: DomainJson): readonly SchemaNode[] {
  const object = `type ${row.name}`;
  const inlined = domain.constraints.filter((constraint) => constraint.validated);
  const late = domain.constraints.filter((constraint) => !constraint.validated);
  return [
    {
      id: `pg_type:${row.oid}`,
      aliases: [
        `pg_type:${row.array_oid}`,
        ...inlined.map((constraint) => `pg_constraint:${constraint.oid}`),
      ],
      phase: 'before-copy',
      rank: RANK.type,
      statements: [{ kind: 'type', object, sql: domainStatement(row.name, domain) }],
      needs: [],
    },
    // The rows that a constraint not yet validated forbids may be there, and must be copied.
    ...late.map((constraint): SchemaNode => {
      return {
        id: `pg_constraint:${constraint.oid}`,
        aliases: [],
        phase: 'after-copy',
        rank: RANK.lateCheck,
        statements: [
          {
            kind: 'check',
            object: `constraint ${constraint.name} on ${row.name}`,
            sql: `ALTER DOMAIN ${row.name} ADD CONSTRAINT ${constraint.name} ${constraint.definition}`,
          },
        ],
        needs: [`pg_type:${row.oid}`],
      };
    }),
  ];
}

function typeNode(row: TypeRow, sql: string, aliases: readonly string[] = []): SchemaNode {
  return {
    id: `pg_type:${row.oid}`,
    aliases: [`pg_type:${row.array_oid}`, ...aliases],
    phase: 'before-copy',
    rank: RANK.type,
    statements: [{ kind: 'type', object: `type ${row.name}`, sql }],
    needs: [],
  };
}

/** Enums, composites, domains and ranges (a range with a canonical function is named by the unsupported list). */
export async function readTypes({ client }: Catalog): Promise<readonly SchemaNode[]> {
  const rows = await rowsOf<TypeRow>(client, 'types', TYPES_SQL);
  return rows.flatMap((row): readonly SchemaNode[] => {
    switch (row.typtype) {
      case 'e': {
        const labels = parseList(row.labels).map(quoteLiteral);
        const node = typeNode(row, `CREATE TYPE ${row.name} AS ENUM (${labels.join(', ')})`);
        const shape: StatementShape = { of: 'enum', name: row.name, labels: parseList(row.labels) };
        return [{ ...node, statements: node.statements.map((statement) => ({ ...statement, shape })) }];
      }
      case 'c': {
        const attributes = parseList(row.attributes);
        const sql = `CREATE TYPE ${row.name} AS (${attributes.join(', ')})`;
        return [typeNode(row, sql, [`pg_class:${row.relation_oid}`])];
      }
      case 'r': {
        const range = JSON.parse(row.range ?? '{}') as RangeJson;
        const sql = `CREATE TYPE ${row.name} AS RANGE (${range.options.join(', ')})`;
        return [
          typeNode(row, sql, [`pg_type:${range.multirangeOid}`, `pg_type:${range.multirangeArrayOid}`]),
        ];
      }
      case 'd':
        return domainNodes(row, JSON.parse(row.domain ?? '{}') as DomainJson);
    }
  });
}
