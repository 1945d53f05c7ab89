/**
 * Reads a database's schema into the statements that rebuild it.
 *
 * Whatever the server can deparse, it deparses; the rest is put together from the catalogs as pg_dump does. Order comes
 * from pg_depend (graph.ts). Objects of extensions, of schema `understudy` and triggers named `understudy_…` are left
 * out.
 */
import type pg from 'pg';
import { quoteIdent, quoteLiteral, quoteTable } from '../../../core/postgres.js';
import { readVersionNum, rowsOf, type Catalog } from './catalog.js';
import { RANK, orderSchema, type DependencyEdge } from './graph.js';
import type { DeferredTrigger, SchemaPlan, SchemaStatement } from './plan.js';
import {
  readComments,
  readDatabase,
  readDefaultPrivileges,
  readOwners,
  readPrivileges,
} from './read-access.js';
import { readForeignKeys, readIndexes, readReplicaIdentities, readStatistics } from './read-constraints.js';
import { readConversions, readOperatorClasses } from './read-operator-classes.js';
import { readAggregates, readCasts, readOperators, readRoutines, readTextSearch } from './read-routines.js';
import { readSequences, readTableNodes } from './read-tables.js';
import { readCollations, readExtensions, readSchemas, readTypes } from './read-types.js';
import { readUnsupported } from './read-unsupported.js';
import { readPolicies, readRules, readTriggers, readViews } from './read-views.js';

export interface ReadSchemaOptions {
  /** `server_version_num` of the server the plan will run on; the source's own where absent. */
  readonly destinationVersionNum?: number;
}

/** A serial column's sequence depends on the column that owns it, but must be there before the column's default. */
const EDGES_SQL = `
SELECT DISTINCT d.classid::regclass || ':' || d.objid AS from, d.refclassid::regclass || ':' || d.refobjid AS to
FROM pg_depend d
LEFT JOIN pg_class s ON d.classid = 'pg_class'::regclass AND s.oid = d.objid AND s.relkind = 'S'
WHERE d.deptype <> 'e' AND d.objid >= 16384 AND d.classid <> 0
  AND NOT (s.oid IS NOT NULL AND d.deptype = 'a' AND d.refclassid = 'pg_class'::regclass)`;

async function readNodes(catalog: Catalog) {
  const triggers = await readTriggers(catalog);
  const rules = await readRules(catalog);
  const nodes = [
    ...(await readSchemas(catalog)),
    ...(await readExtensions(catalog)),
    ...(await readCollations(catalog)),
    ...(await readTypes(catalog)),
    ...(await readRoutines(catalog)),
    ...(await readAggregates(catalog)),
    ...(await readOperators(catalog)),
    ...(await readOperatorClasses(catalog)),
    ...(await readConversions(catalog)),
    ...(await readCasts(catalog)),
    ...(await readTextSearch(catalog)),
    ...(await readSequences(catalog)),
    ...(await readTableNodes(catalog)),
    ...(await readIndexes(catalog)),
    ...(await readForeignKeys(catalog)),
    ...(await readReplicaIdentities(catalog)),
    ...(await readStatistics(catalog)),
    ...(await readViews(catalog)),
    ...rules.nodes,
    ...triggers.nodes,
    ...(await readPolicies(catalog)),
  ];
  return { nodes, deferred: [...triggers.deferred, ...rules.deferred] };
}

/** So that whoever makes the destination lead finds it there, in whatever process. */
function recordDeferred(trigger: DeferredTrigger): SchemaStatement {
  const { table, name, state, sql, disableSql } = trigger;
  const values = [table.schema, table.name, name, state, sql, disableSql].map(quoteLiteral).join(', ');
  return {
    kind: 'trigger',
    object: `trigger ${quoteIdent(name)} on ${quoteTable(table)}`,
    sql: `INSERT INTO understudy.deferred_trigger (schema_name, table_name, name, state, enable_sql, disable_sql)
      VALUES (${values}) ON CONFLICT (enable_sql) DO NOTHING`,
    undo: `DELETE FROM understudy.deferred_trigger WHERE enable_sql = ${quoteLiteral(sql)}`,
  };
}

/**
 * The whole user schema of the database behind `client`, a control connection. Reads catalogs only, in about thirty
 * statements; takes no lock on tables. The plan is complete in itself: it can be built at any later time.
 * Throws `source-query-failed`.
 */
export async function readSchema(client: pg.Client, options: ReadSchemaOptions = {}): Promise<SchemaPlan> {
  const versionNum = await readVersionNum(client);
  const catalog: Catalog = {
    client,
    versionNum,
    destinationVersionNum: options.destinationVersionNum ?? versionNum,
  };
  const { nodes, deferred } = await readNodes(catalog);
  const edges = await rowsOf<DependencyEdge & pg.QueryResultRow>(client, 'dependencies', EDGES_SQL);
  const unsupported = await readUnsupported(catalog);
  const ordered = orderSchema(nodes, edges, unsupported.missing);
  // An extension sets the owners and comments of its members itself.
  const carried = new Set(
    nodes
      .filter((node) => node.rank !== RANK.extension)
      .flatMap((node) => [node.id, ...node.aliases])
      .filter((id) => !ordered.dropped.has(id)),
  );
  const last: SchemaStatement[] = [
    ...(await readOwners(catalog, carried)),
    ...(await readPrivileges(catalog, carried)),
    ...(await readDefaultPrivileges(catalog)),
    ...(await readComments(catalog, carried)),
    ...(await readDatabase(catalog)),
  ];
  const deferredTriggers = deferred.filter((one) => carried.has(one.id)).map((one) => one.trigger);
  const afterCopy = [...ordered.afterCopy, ...deferredTriggers.map(recordDeferred), ...last];
  const roles = [...ordered.beforeCopy, ...afterCopy].flatMap((statement) => statement.roles ?? []);
  return {
    beforeCopy: ordered.beforeCopy,
    afterCopy,
    deferredTriggers,
    roles: [...new Set(roles)].sort(),
    unsupported: [...unsupported.findings, ...ordered.findings],
  };
}
