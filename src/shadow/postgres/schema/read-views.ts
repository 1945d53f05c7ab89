/** Views, materialised views, rules, triggers, row security and policies. */
import { quoteLiteral } from '../../../core/postgres.js';
import { notOfExtension, type JsonList, parseList, rowsOf, userSchema, type Catalog } from './catalog.js';
import { RANK, refreshId, type SchemaNode } from './graph.js';
import type { DeferredTrigger, SchemaStatement } from './plan.js';
import { STORAGE_SQL } from './read-tables.js';

interface ViewRow {
  readonly oid: string;
  readonly type_oid: string;
  readonly array_oid: string;
  readonly rule_oid: string;
  readonly name: string;
  readonly kind: 'v' | 'm';
  readonly options: JsonList<string> | null;
  readonly access_method: string | null;
  readonly definition: string;
  readonly populated: string;
  readonly defaults: JsonList<ViewDefault> | null;
  /** What ALTER COLUMN says of a materialised view's columns. */
  readonly alterations: JsonList<string> | null;
}

interface ViewDefault {
  readonly oid: string;
  readonly column: string;
  readonly expression: string;
}

function optionList(options: JsonList<string> | null): string {
  const list = parseList(options).map((option) => {
    const at = option.indexOf('=');
    return at < 0 ? option : `${option.slice(0, at)} = ${quoteLiteral(option.slice(at + 1))}`;
  });
  return list.length === 0 ? '' : ` WITH (${list.join(', ')})`;
}

function viewNodes(row: ViewRow): readonly SchemaNode[] {
  const id = `pg_class:${row.oid}`;
  const aliases = [`pg_type:${row.type_oid}`, `pg_type:${row.array_oid}`, `pg_rewrite:${row.rule_oid}`];
  const body = row.definition.trim().replace(/;$/, '');
  if (row.kind === 'm') {
    const object = `materialized view ${row.name}`;
    const using = row.access_method === null ? '' : ` USING ${row.access_method}`;
    const sql = `CREATE MATERIALIZED VIEW ${row.name}${using}${optionList(row.options)} AS ${body} WITH NO DATA`;
    const view: SchemaNode = {
      id,
      aliases,
      phase: 'after-copy',
      rank: RANK.view,
      statements: [
        sql,
        ...parseList(row.alterations).map((action) => `ALTER TABLE ONLY ${row.name} ${action}`),
      ].map((one, index) => ({
        kind: 'materialized-view',
        object,
        sql: one,
        ...(index === 0 ? { undo: `DROP MATERIALIZED VIEW ${row.name}` } : {}),
      })),
      needs: [],
    };
    if (row.populated !== 't') return [view];
    const refresh: SchemaNode = {
      id: refreshId(id),
      aliases: [],
      phase: 'after-copy',
      rank: RANK.refresh,
      statements: [{ kind: 'refresh', object, sql: `REFRESH MATERIALIZED VIEW ${row.name}` }],
      needs: [id],
    };
    return [view, refresh];
  }
  const object = `view ${row.name}`;
  const view: SchemaNode = {
    id,
    aliases,
    phase: 'after-copy',
    rank: RANK.view,
    statements: [
      {
        kind: 'view',
        object,
        sql: `CREATE VIEW ${row.name}${optionList(row.options)} AS ${body}`,
        undo: `DROP VIEW ${row.name}`,
      },
    ],
    needs: [],
  };
  const defaults = parseList(row.defaults).map((one): SchemaNode => {
    const sql = `ALTER TABLE ${row.name} ALTER COLUMN ${one.column} SET DEFAULT ${one.expression}`;
    return {
      id: `pg_attrdef:${one.oid}`,
      aliases: [],
      phase: 'after-copy',
      rank: RANK.view,
      statements: [
        {
          kind: 'default',
          object,
          sql,
          undo: `ALTER TABLE ${row.name} ALTER COLUMN ${one.column} DROP DEFAULT`,
        },
      ],
      needs: [id],
    };
  });
  return [view, ...defaults];
}

export async function readViews({ client }: Catalog): Promise<readonly SchemaNode[]> {
  const rows = await rowsOf<ViewRow>(
    client,
    'views',
    `SELECT c.oid, c.reltype AS type_oid, y.typarray AS array_oid, r.oid AS rule_oid,
       format('%I.%I', n.nspname, c.relname) AS name, c.relkind AS kind, to_json(c.reloptions) AS options,
       (SELECT quote_ident(am.amname) FROM pg_am am WHERE am.oid = c.relam AND am.amname <> 'heap') AS access_method,
       pg_get_viewdef(c.oid) AS definition, c.relispopulated AS populated,
       (SELECT json_agg(json_build_object('oid', d.oid::text, 'column', quote_ident(a.attname),
           'expression', pg_get_expr(d.adbin, d.adrelid)) ORDER BY a.attnum)
         FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
         WHERE d.adrelid = c.oid) AS defaults,
       CASE c.relkind WHEN 'm' THEN (SELECT json_agg(format('ALTER COLUMN %I SET %s', a.attname, x.what) ORDER BY a.attnum, x.what)
         FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
         CROSS JOIN LATERAL unnest(ARRAY[
           CASE WHEN a.attstattarget >= 0 THEN 'STATISTICS ' || a.attstattarget END,
           CASE WHEN a.attstorage <> t.typstorage THEN 'STORAGE ' || ${STORAGE_SQL} END,
           CASE a.attcompression WHEN 'p' THEN 'COMPRESSION pglz' WHEN 'l' THEN 'COMPRESSION lz4' END,
           '(' || array_to_string(a.attoptions, ', ') || ')']) AS x(what)
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND x.what IS NOT NULL) END AS alterations
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_type y ON y.oid = c.reltype
     JOIN pg_rewrite r ON r.ev_class = c.oid AND r.rulename = '_RETURN'
     WHERE c.relkind IN ('v', 'm') AND c.relpersistence <> 't'
       AND ${userSchema('n')} AND ${notOfExtension('pg_class', 'c.oid')}`,
  );
  return rows.flatMap(viewNodes);
}

export interface FiringObjects {
  readonly nodes: readonly SchemaNode[];
  readonly deferred: readonly { readonly id: string; readonly trigger: DeferredTrigger }[];
}

interface FiringRow {
  readonly oid: string;
  readonly schema: string;
  readonly table: string;
  readonly table_name: string;
  readonly name: string;
  readonly quoted: string;
  /** pg_trigger.tgenabled, pg_rewrite.ev_enabled: Origin, Disabled, Replica, Always. */
  readonly enabled: 'O' | 'D' | 'R' | 'A';
  readonly definition: string;
  readonly clones: JsonList<CloneJson> | null;
}

interface CloneJson {
  readonly table: string;
  readonly name: string;
  readonly enabled: 'O' | 'D' | 'R' | 'A';
}

const STATE_ACTION = { O: 'ENABLE', D: 'DISABLE', R: 'ENABLE REPLICA', A: 'ENABLE ALWAYS' } as const;

/**
 * What fires for ordinary sessions only is built as it is: the shadow writes in replica role. What fires for those
 * writes too would act a second time on what it already did on the source, so it is built disabled.
 */
function firingObject(row: FiringRow, what: 'trigger' | 'rule'): FiringObjects {
  const object = `${what} ${row.quoted} on ${row.table_name}`;
  const keyword = what.toUpperCase();
  const kind = what;
  const node: SchemaStatement[] = [
    {
      kind,
      object,
      sql: row.definition.replace(/;$/, ''),
      undo: `DROP ${keyword} ${row.quoted} ON ${row.table_name}`,
    },
  ];
  const deferred: FiringObjects['deferred'][number][] = [];
  const id = `${what === 'trigger' ? 'pg_trigger' : 'pg_rewrite'}:${row.oid}`;
  const setState = (
    table: string,
    name: string,
    enabled: FiringRow['enabled'],
    original: FiringRow['enabled'] | 'unknown',
  ): void => {
    const late = enabled === 'A' || enabled === 'R';
    const now = late ? 'D' : enabled;
    const sql = (state: FiringRow['enabled']): string =>
      `ALTER TABLE ${table} ${STATE_ACTION[state]} ${keyword} ${name}`;
    if (now !== original) node.push({ kind, object, sql: sql(now), undo: sql('O') });
    if (late)
      deferred.push({
        id,
        trigger: {
          table: { schema: row.schema, name: row.table },
          name: row.name,
          state: enabled === 'A' ? 'always' : 'replica',
          sql: sql(enabled),
          disableSql: sql('D'),
        },
      });
  };
  setState(row.table_name, row.quoted, row.enabled, 'O');
  // A root's trigger is cloned to its partitions, and what is set on the root goes to them with it.
  for (const clone of parseList(row.clones)) {
    if (clone.enabled !== row.enabled) setState(clone.table, clone.name, clone.enabled, 'unknown');
  }
  return {
    nodes: [
      {
        id,
        aliases: [],
        phase: 'after-copy',
        rank: what === 'trigger' ? RANK.trigger : RANK.rule,
        statements: node,
        needs: [],
      },
    ],
    deferred,
  };
}

function merge(parts: readonly FiringObjects[]): FiringObjects {
  return {
    nodes: parts.flatMap((part) => part.nodes),
    deferred: parts.flatMap((part) => part.deferred),
  };
}

export async function readTriggers({ client }: Catalog): Promise<FiringObjects> {
  const rows = await rowsOf<FiringRow>(
    client,
    'triggers',
    `SELECT t.oid, n.nspname AS schema, c.relname AS table, format('%I.%I', n.nspname, c.relname) AS table_name,
       t.tgname AS name, quote_ident(t.tgname) AS quoted, t.tgenabled AS enabled, pg_get_triggerdef(t.oid) AS definition,
       (WITH RECURSIVE clone AS (
           SELECT k.oid, k.tgrelid, k.tgname, k.tgenabled FROM pg_trigger k WHERE k.tgparentid = t.oid
           UNION ALL
           SELECT k.oid, k.tgrelid, k.tgname, k.tgenabled FROM pg_trigger k JOIN clone ON k.tgparentid = clone.oid)
         SELECT json_agg(json_build_object('table', format('%I.%I', cn.nspname, cc.relname),
           'name', quote_ident(clone.tgname), 'enabled', clone.tgenabled) ORDER BY clone.oid)
         FROM clone JOIN pg_class cc ON cc.oid = clone.tgrelid JOIN pg_namespace cn ON cn.oid = cc.relnamespace) AS clones
     FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND t.tgname NOT LIKE 'understudy\\_%' AND c.relpersistence <> 't'
       AND ${userSchema('n')} AND ${notOfExtension('pg_class', 'c.oid')} AND ${notOfExtension('pg_trigger', 't.oid')}`,
  );
  return merge(rows.map((row) => firingObject(row, 'trigger')));
}

export async function readRules({ client }: Catalog): Promise<FiringObjects> {
  const rows = await rowsOf<FiringRow>(
    client,
    'rules',
    `SELECT r.oid, n.nspname AS schema, c.relname AS table, format('%I.%I', n.nspname, c.relname) AS table_name,
       r.rulename AS name, quote_ident(r.rulename) AS quoted, r.ev_enabled AS enabled,
       pg_get_ruledef(r.oid) AS definition, NULL AS clones
     FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE r.rulename <> '_RETURN' AND c.relpersistence <> 't'
       AND ${userSchema('n')} AND ${notOfExtension('pg_class', 'c.oid')} AND ${notOfExtension('pg_rewrite', 'r.oid')}`,
  );
  return merge(rows.map((row) => firingObject(row, 'rule')));
}

interface PolicyRow {
  readonly oid: string;
  readonly name: string;
  readonly table_name: string;
  readonly permissive: string;
  readonly command: string;
  readonly roles: JsonList<{ name: string; quoted: string }> | null;
  readonly using: string | null;
  readonly with_check: string | null;
}

const POLICY_COMMAND: Readonly<Record<string, string>> = {
  '*': 'ALL',
  r: 'SELECT',
  a: 'INSERT',
  w: 'UPDATE',
  d: 'DELETE',
};

function policyNode(row: PolicyRow): SchemaNode {
  const roles = parseList(row.roles);
  const parts = [`CREATE POLICY ${row.name} ON ${row.table_name}`];
  parts.push(row.permissive === 't' ? 'AS PERMISSIVE' : 'AS RESTRICTIVE');
  parts.push(`FOR ${POLICY_COMMAND[row.command] ?? 'ALL'}`);
  parts.push(`TO ${roles.length === 0 ? 'PUBLIC' : roles.map((role) => role.quoted).join(', ')}`);
  if (row.using !== null) parts.push(`USING (${row.using})`);
  if (row.with_check !== null) parts.push(`WITH CHECK (${row.with_check})`);
  return {
    id: `pg_policy:${row.oid}`,
    aliases: [],
    phase: 'after-copy',
    rank: RANK.policy,
    statements: [
      {
        kind: 'policy',
        object: `policy ${row.name} on ${row.table_name}`,
        sql: parts.join(' '),
        undo: `DROP POLICY ${row.name} ON ${row.table_name}`,
        roles: roles.map((role) => role.name),
      },
    ],
    needs: [],
  };
}

export async function readPolicies({ client }: Catalog): Promise<readonly SchemaNode[]> {
  const policies = await rowsOf<PolicyRow>(
    client,
    'policies',
    `SELECT p.oid, quote_ident(p.polname) AS name, format('%I.%I', n.nspname, c.relname) AS table_name,
       p.polpermissive AS permissive, p.polcmd AS command,
       (SELECT json_agg(json_build_object('name', r.rolname, 'quoted', quote_ident(r.rolname)) ORDER BY r.rolname)
         FROM pg_roles r WHERE r.oid = ANY (p.polroles)) AS roles,
       pg_get_expr(p.polqual, p.polrelid) AS using, pg_get_expr(p.polwithcheck, p.polrelid) AS with_check
     FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE ${userSchema('n')} AND ${notOfExtension('pg_class', 'c.oid')} AND ${notOfExtension('pg_policy', 'p.oid')}`,
  );
  const tables = await rowsOf<{ oid: string; name: string; enabled: string; forced: string }>(
    client,
    'row security',
    `SELECT c.oid, format('%I.%I', n.nspname, c.relname) AS name, c.relrowsecurity AS enabled,
       c.relforcerowsecurity AS forced
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE (c.relrowsecurity OR c.relforcerowsecurity) AND c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
       AND ${userSchema('n')} AND ${notOfExtension('pg_class', 'c.oid')}`,
  );
  const switches = tables.map((row): SchemaNode => {
    const actions = [
      ...(row.enabled === 't' ? [['ENABLE', 'DISABLE'] as const] : []),
      ...(row.forced === 't' ? [['FORCE', 'NO FORCE'] as const] : []),
    ];
    return {
      id: `row-security:${row.oid}`,
      aliases: [],
      phase: 'after-copy',
      rank: RANK.policy,
      statements: actions.map(([on, off]) => ({
        kind: 'policy',
        object: `table ${row.name}`,
        sql: `ALTER TABLE ONLY ${row.name} ${on} ROW LEVEL SECURITY`,
        undo: `ALTER TABLE ONLY ${row.name} ${off} ROW LEVEL SECURITY`,
      })),
      needs: [`pg_class:${row.oid}`],
    };
  });
  return [...policies.map(policyNode), ...switches];
}
