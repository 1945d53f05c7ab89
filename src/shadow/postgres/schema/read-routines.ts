/** Functions and procedures, aggregates, operators, casts, text search dictionaries and configurations. */
import { notOfExtension, type JsonList, parseList, rowsOf, userSchema, type Catalog } from './catalog.js';
import { RANK, type SchemaNode } from './graph.js';
import type { SchemaStatementKind } from './plan.js';

interface StatementRow {
  readonly oid: string;
  readonly object: string;
  readonly sql: string;
}

function nodesOf(
  rows: readonly StatementRow[],
  catalog: string,
  kind: SchemaStatementKind,
  rank: number,
): readonly SchemaNode[] {
  return rows.map((row) => ({
    id: `${catalog}:${row.oid}`,
    aliases: [],
    phase: 'before-copy',
    rank,
    statements: [{ kind, object: row.object, sql: row.sql }],
    needs: [],
  }));
}

/** `function s.f(integer)`: as in a fingerprint's key. Wants pg_proc as `p` and its schema as `n`. */
export const ROUTINE_OBJECT_SQL = `format('%s %I.%I(%s)',
  CASE p.prokind WHEN 'p' THEN 'procedure' WHEN 'a' THEN 'aggregate' ELSE 'function' END,
  n.nspname, p.proname, pg_get_function_identity_arguments(p.oid))`;

/** Range types make constructor functions of their own, which depend on them internally. */
export const OWN_ROUTINE_SQL = `NOT EXISTS (SELECT FROM pg_depend i
  WHERE i.classid = 'pg_proc'::regclass AND i.objid = p.oid AND i.deptype = 'i')`;

/** Bodies aren't checked when built: PL/pgSQL names tables that dependencies don't show. */
export async function readRoutines({ client }: Catalog): Promise<readonly SchemaNode[]> {
  const rows = await rowsOf<StatementRow>(
    client,
    'functions',
    `SELECT p.oid, ${ROUTINE_OBJECT_SQL} AS object, pg_get_functiondef(p.oid) AS sql
     FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
     WHERE ${userSchema('n')} AND p.prokind <> 'a' AND ${notOfExtension('pg_proc', 'p.oid')}
       AND ${OWN_ROUTINE_SQL}`,
  );
  return nodesOf(rows, 'pg_proc', 'function', RANK.routine);
}

/** Name of the routine `oid`, qualified also where it is the server's own; null for none. */
function routineName(oid: string): string {
  return `(SELECT format('%I.%I', fn.nspname, f.proname) FROM pg_proc f
    JOIN pg_namespace fn ON fn.oid = f.pronamespace WHERE f.oid = ${oid}::oid AND ${oid}::oid <> 0)`;
}

function operatorName(oid: string): string {
  return `(SELECT format('OPERATOR(%I.%s)', opn.nspname, op.oprname) FROM pg_operator op
    JOIN pg_namespace opn ON opn.oid = op.oprnamespace WHERE op.oid = ${oid} AND ${oid} <> 0)`;
}

const FINAL_MODIFY = `WHEN 'r' THEN 'READ_ONLY' WHEN 's' THEN 'SHAREABLE' WHEN 'w' THEN 'READ_WRITE'`;

const AGGREGATE_OPTIONS = `array_remove(ARRAY[
  'SFUNC = ' || ${routineName('a.aggtransfn')},
  'STYPE = ' || format_type(a.aggtranstype, NULL),
  CASE WHEN a.aggtransspace <> 0 THEN 'SSPACE = ' || a.aggtransspace END,
  'FINALFUNC = ' || ${routineName('a.aggfinalfn')},
  CASE WHEN a.aggfinalextra THEN 'FINALFUNC_EXTRA' END,
  CASE WHEN a.aggfinalfn <> 0 THEN 'FINALFUNC_MODIFY = ' || CASE a.aggfinalmodify ${FINAL_MODIFY} END END,
  'COMBINEFUNC = ' || ${routineName('a.aggcombinefn')},
  'SERIALFUNC = ' || ${routineName('a.aggserialfn')},
  'DESERIALFUNC = ' || ${routineName('a.aggdeserialfn')},
  'INITCOND = ' || quote_literal(a.agginitval),
  'MSFUNC = ' || ${routineName('a.aggmtransfn')},
  'MINVFUNC = ' || ${routineName('a.aggminvtransfn')},
  CASE WHEN a.aggmtranstype <> 0 THEN 'MSTYPE = ' || format_type(a.aggmtranstype, NULL) END,
  CASE WHEN a.aggmtransspace <> 0 THEN 'MSSPACE = ' || a.aggmtransspace END,
  'MFINALFUNC = ' || ${routineName('a.aggmfinalfn')},
  CASE WHEN a.aggmfinalextra THEN 'MFINALFUNC_EXTRA' END,
  CASE WHEN a.aggmfinalfn <> 0 THEN 'MFINALFUNC_MODIFY = ' || CASE a.aggmfinalmodify ${FINAL_MODIFY} END END,
  'MINITCOND = ' || quote_literal(a.aggminitval),
  'SORTOP = ' || ${operatorName('a.aggsortop')},
  CASE WHEN a.aggkind = 'h' THEN 'HYPOTHETICAL' END,
  CASE p.proparallel WHEN 's' THEN 'PARALLEL = SAFE' WHEN 'r' THEN 'PARALLEL = RESTRICTED' END], NULL)`;

export async function readAggregates({ client }: Catalog): Promise<readonly SchemaNode[]> {
  const rows = await rowsOf<StatementRow>(
    client,
    'aggregates',
    `SELECT p.oid, ${ROUTINE_OBJECT_SQL} AS object,
       format('CREATE AGGREGATE %I.%I(%s) (%s)', n.nspname, p.proname,
         COALESCE(NULLIF(pg_get_function_arguments(p.oid), ''), '*'),
         array_to_string(${AGGREGATE_OPTIONS}, ', ')) AS sql
     FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_aggregate a ON a.aggfnoid = p.oid
     WHERE ${userSchema('n')} AND ${notOfExtension('pg_proc', 'p.oid')}`,
  );
  return nodesOf(rows, 'pg_proc', 'aggregate', RANK.routine);
}

/** `operator s.+ (integer, integer)`. Wants pg_operator as `o` and its schema as `n`. */
export const OPERATOR_OBJECT_SQL = `format('operator %I.%s (%s, %s)', n.nspname, o.oprname,
  CASE WHEN o.oprleft = 0 THEN 'NONE' ELSE format_type(o.oprleft, NULL) END,
  CASE WHEN o.oprright = 0 THEN 'NONE' ELSE format_type(o.oprright, NULL) END)`;

/** An operator named as commutator or negator before it exists is made by the server as a shell, filled in later. */
export async function readOperators({ client }: Catalog): Promise<readonly SchemaNode[]> {
  const rows = await rowsOf<StatementRow>(
    client,
    'operators',
    `SELECT o.oid, ${OPERATOR_OBJECT_SQL} AS object,
       format('CREATE OPERATOR %I.%s (%s)', n.nspname, o.oprname, array_to_string(array_remove(ARRAY[
         'FUNCTION = ' || ${routineName('o.oprcode')},
         CASE WHEN o.oprleft <> 0 THEN 'LEFTARG = ' || format_type(o.oprleft, NULL) END,
         CASE WHEN o.oprright <> 0 THEN 'RIGHTARG = ' || format_type(o.oprright, NULL) END,
         'COMMUTATOR = ' || ${operatorName('o.oprcom')},
         'NEGATOR = ' || ${operatorName('o.oprnegate')},
         'RESTRICT = ' || ${routineName('o.oprrest')},
         'JOIN = ' || ${routineName('o.oprjoin')},
         CASE WHEN o.oprcanhash THEN 'HASHES' END,
         CASE WHEN o.oprcanmerge THEN 'MERGES' END], NULL), ', ')) AS sql
     FROM pg_operator o JOIN pg_namespace n ON n.oid = o.oprnamespace
     WHERE ${userSchema('n')} AND o.oprcode <> 0 AND ${notOfExtension('pg_operator', 'o.oid')}`,
  );
  return nodesOf(rows, 'pg_operator', 'operator', RANK.operator);
}

/** A range's cast to its multirange comes with the range. */
export const OWN_CAST_SQL = `c.oid >= 16384 AND NOT EXISTS (SELECT FROM pg_depend i
  WHERE i.classid = 'pg_cast'::regclass AND i.objid = c.oid AND i.deptype IN ('i', 'e'))`;

export async function readCasts({ client }: Catalog): Promise<readonly SchemaNode[]> {
  const rows = await rowsOf<StatementRow>(
    client,
    'casts',
    `SELECT c.oid, format('cast (%s AS %s)', format_type(c.castsource, NULL), format_type(c.casttarget, NULL)) AS object,
       concat_ws(' ', format('CREATE CAST (%s AS %s)', format_type(c.castsource, NULL), format_type(c.casttarget, NULL)),
         CASE c.castmethod WHEN 'f' THEN 'WITH FUNCTION ' || c.castfunc::regprocedure WHEN 'i' THEN 'WITH INOUT'
           ELSE 'WITHOUT FUNCTION' END,
         CASE c.castcontext WHEN 'a' THEN 'AS ASSIGNMENT' WHEN 'i' THEN 'AS IMPLICIT' END) AS sql
     FROM pg_cast c WHERE ${OWN_CAST_SQL}`,
  );
  return nodesOf(rows, 'pg_cast', 'cast', RANK.operator);
}

interface ConfigurationRow extends StatementRow {
  readonly mappings: JsonList<string> | null;
}

/** Dictionaries and configurations; parsers and templates are C code and named as unsupported. */
export async function readTextSearch({ client }: Catalog): Promise<readonly SchemaNode[]> {
  const dictionaries = await rowsOf<StatementRow>(
    client,
    'text search dictionaries',
    `SELECT d.oid, format('text search dictionary %I.%I', n.nspname, d.dictname) AS object,
       format('CREATE TEXT SEARCH DICTIONARY %I.%I (%s)', n.nspname, d.dictname,
         concat_ws(', ', format('TEMPLATE = %I.%I', tn.nspname, t.tmplname), d.dictinitoption)) AS sql
     FROM pg_ts_dict d JOIN pg_namespace n ON n.oid = d.dictnamespace
     JOIN pg_ts_template t ON t.oid = d.dicttemplate JOIN pg_namespace tn ON tn.oid = t.tmplnamespace
     WHERE ${userSchema('n')} AND ${notOfExtension('pg_ts_dict', 'd.oid')}`,
  );
  const configurations = await rowsOf<ConfigurationRow>(
    client,
    'text search configurations',
    `SELECT c.oid, format('text search configuration %I.%I', n.nspname, c.cfgname) AS object,
       format('CREATE TEXT SEARCH CONFIGURATION %I.%I (PARSER = %I.%I)',
         n.nspname, c.cfgname, pn.nspname, p.prsname) AS sql,
       (SELECT json_agg(format('ALTER TEXT SEARCH CONFIGURATION %I.%I ADD MAPPING FOR %I WITH %s',
            n.nspname, c.cfgname, m.alias, m.dictionaries) ORDER BY m.alias)
        FROM (
          SELECT tt.alias, string_agg(format('%I.%I', dn.nspname, d.dictname), ', ' ORDER BY cm.mapseqno) AS dictionaries
          FROM pg_ts_config_map cm
          JOIN ts_token_type(c.cfgparser) tt ON tt.tokid = cm.maptokentype
          JOIN pg_ts_dict d ON d.oid = cm.mapdict JOIN pg_namespace dn ON dn.oid = d.dictnamespace
          WHERE cm.mapcfg = c.oid GROUP BY tt.alias) m) AS mappings
     FROM pg_ts_config c JOIN pg_namespace n ON n.oid = c.cfgnamespace
     JOIN pg_ts_parser p ON p.oid = c.cfgparser JOIN pg_namespace pn ON pn.oid = p.prsnamespace
     WHERE ${userSchema('n')} AND ${notOfExtension('pg_ts_config', 'c.oid')}`,
  );
  return [
    ...nodesOf(dictionaries, 'pg_ts_dict', 'text-search', RANK.textSearch),
    ...configurations.map((row): SchemaNode => ({
      id: `pg_ts_config:${row.oid}`,
      aliases: [],
      phase: 'before-copy',
      rank: RANK.textSearch,
      statements: [row.sql, ...parseList(row.mappings)].map((sql) => ({
        kind: 'text-search',
        object: row.object,
        sql,
      })),
      needs: [],
    })),
  ];
}
