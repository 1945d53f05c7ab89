/**
 * Keys, exclusion constraints, foreign keys, indexes, replica identities and extended statistics.
 *
 * As pg_dump does it, an index or key of a partitioned table is built on the root alone, on each leaf under the
 * leaf's own name, and then attached: names stay what they were, and each leaf's index is a step of its own.
 */
import { notOfExtension, type JsonList, parseList, rowsOf, userSchema, type Catalog } from './catalog.js';
import { RANK, type SchemaNode } from './graph.js';
import type { SchemaStatement } from './plan.js';

interface IndexRow {
  readonly oid: string;
  readonly name: string;
  readonly short_name: string;
  readonly table_name: string;
  readonly table_oid: string;
  readonly table_kind: string;
  readonly constraint_oid: string | null;
  readonly constraint_name: string | null;
  readonly constraint_type: 'p' | 'u' | 'x' | null;
  readonly definition: string;
  readonly clustered: string;
  readonly replica_identity: string;
  readonly parent_oid: string | null;
  readonly parent_name: string | null;
  readonly statistics: string | null;
  readonly options: JsonList<string> | null;
}

/** An index that is not valid is left out as pg_dump does: nothing uses it, and it may not be buildable. */
const INDEXES_SQL = `
SELECT c.oid, format('%I.%I', n.nspname, c.relname) AS name, quote_ident(c.relname) AS short_name,
  format('%I.%I', tn.nspname, t.relname) AS table_name,
  t.oid AS table_oid, t.relkind AS table_kind, k.oid AS constraint_oid, quote_ident(k.conname) AS constraint_name,
  k.contype AS constraint_type,
  CASE WHEN k.oid IS NULL THEN pg_get_indexdef(c.oid) ELSE pg_get_constraintdef(k.oid) END AS definition,
  i.indisclustered AS clustered, i.indisreplident AND t.relreplident = 'i' AS replica_identity,
  parent.oid AS parent_oid, quote_ident(pn.nspname) || '.' || quote_ident(parent.relname) AS parent_name,
  (SELECT string_agg(format('ALTER COLUMN %s SET STATISTICS %s', a.attnum, a.attstattarget), ', ' ORDER BY a.attnum)
    FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attstattarget >= 0) AS statistics,
  CASE WHEN k.oid IS NOT NULL THEN to_json(c.reloptions) END AS options
FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_class t ON t.oid = i.indrelid JOIN pg_namespace tn ON tn.oid = t.relnamespace
LEFT JOIN pg_constraint k ON k.conindid = c.oid AND k.conrelid = t.oid AND k.contype IN ('p', 'u', 'x')
LEFT JOIN pg_inherits h ON h.inhrelid = c.oid
LEFT JOIN pg_class parent ON parent.oid = h.inhparent LEFT JOIN pg_namespace pn ON pn.oid = parent.relnamespace
WHERE t.relkind IN ('r', 'p', 'm') AND t.relpersistence <> 't' AND (i.indisvalid OR t.relkind = 'p') AND i.indisready
  AND ${userSchema('tn')} AND ${notOfExtension('pg_class', 't.oid')}`;

function indexStatements(row: IndexRow): readonly SchemaStatement[] {
  const statements: SchemaStatement[] = [];
  if (row.constraint_name === null) {
    statements.push({
      kind: 'index',
      object: `index ${row.name}`,
      sql: row.definition,
      undo: `DROP INDEX ${row.name}`,
    });
  } else {
    statements.push({
      kind: row.constraint_type === 'p' ? 'primary-key' : 'constraint',
      object: `constraint ${row.constraint_name} on ${row.table_name}`,
      sql: `ALTER TABLE ONLY ${row.table_name} ADD CONSTRAINT ${row.constraint_name} ${row.definition}`,
      ...(row.constraint_type === 'p'
        ? {}
        : { undo: `ALTER TABLE ${row.table_name} DROP CONSTRAINT ${row.constraint_name}` }),
    });
  }
  const object = `index ${row.name}`;
  // A constraint's definition leaves its index's storage parameters out.
  const options = parseList(row.options);
  if (options.length > 0)
    statements.push({ kind: 'index', object, sql: `ALTER INDEX ${row.name} SET (${options.join(', ')})` });
  if (row.clustered === 't') {
    statements.push({
      kind: 'index',
      object,
      sql: `ALTER TABLE ${row.table_name} CLUSTER ON ${row.short_name}`,
    });
  }
  if (row.statistics !== null)
    statements.push({ kind: 'index', object, sql: `ALTER INDEX ${row.name} ${row.statistics}` });
  return statements;
}

function indexNodes(row: IndexRow): readonly SchemaNode[] {
  // The key that upserts and the way back identify rows by must be there before the first row.
  const early = row.constraint_type === 'p' || row.replica_identity === 't';
  const phase = early ? 'before-copy' : 'after-copy';
  const constraint = row.constraint_oid !== null;
  const nodes: SchemaNode[] = [
    {
      id: `pg_class:${row.oid}`,
      aliases: constraint ? [`pg_constraint:${row.constraint_oid}`] : [],
      phase,
      rank: early ? RANK.primaryKey : constraint ? RANK.constraint : RANK.index,
      statements: indexStatements(row),
      needs: [`pg_class:${row.table_oid}`],
    },
  ];
  if (row.parent_oid !== null) {
    nodes.push({
      id: `index-attach:${row.oid}`,
      aliases: [],
      phase,
      rank: early ? RANK.indexAttach : RANK.index,
      statements: [
        {
          kind: 'index',
          object: `index ${row.name}`,
          sql: `ALTER INDEX ${row.parent_name} ATTACH PARTITION ${row.name}`,
        },
      ],
      needs: [`pg_class:${row.oid}`, `pg_class:${row.parent_oid}`, `attach:${row.table_oid}`],
    });
  }
  return nodes;
}

export async function readIndexes({ client }: Catalog): Promise<readonly SchemaNode[]> {
  const rows = await rowsOf<IndexRow>(client, 'indexes', INDEXES_SQL);
  return rows.flatMap(indexNodes);
}

interface ForeignKeyRow {
  readonly oid: string;
  readonly name: string;
  readonly table_name: string;
  readonly partitioned: string;
  readonly validated: string;
  readonly enforced: string;
  readonly definition: string;
}

/** From 18 a foreign key of a partitioned table may be added NOT VALID too. */
export const PARTITIONED_NOT_VALID_SINCE = 180000;

/**
 * Added NOT VALID, which takes its locks for an instant only, and validated in a step of its own, which lets writes
 * go on. Where the destination can't do that (a partitioned table before 18), added and validated in one.
 */
export async function readForeignKeys({
  client,
  destinationVersionNum,
}: Catalog): Promise<readonly SchemaNode[]> {
  const rows = await rowsOf<ForeignKeyRow>(
    client,
    'foreign keys',
    `SELECT k.oid, quote_ident(k.conname) AS name, format('%I.%I', n.nspname, t.relname) AS table_name,
       t.relkind = 'p' AS partitioned, k.convalidated AS validated,
       COALESCE((to_jsonb(k) ->> 'conenforced')::boolean, true) AS enforced, pg_get_constraintdef(k.oid) AS definition
     FROM pg_constraint k JOIN pg_class t ON t.oid = k.conrelid JOIN pg_namespace n ON n.oid = t.relnamespace
     WHERE k.contype = 'f' AND k.conparentid = 0 AND t.relpersistence <> 't'
       AND ${userSchema('n')} AND ${notOfExtension('pg_class', 't.oid')}`,
  );
  return rows.flatMap((row): readonly SchemaNode[] => {
    const object = `constraint ${row.name} on ${row.table_name}`;
    const partitioned = row.partitioned === 't';
    const inTwoSteps =
      row.validated === 't' &&
      row.enforced === 't' &&
      (!partitioned || destinationVersionNum >= PARTITIONED_NOT_VALID_SINCE);
    // ONLY is refused for a partitioned table's foreign key.
    const table = partitioned ? row.table_name : `ONLY ${row.table_name}`;
    const definition = inTwoSteps ? `${row.definition} NOT VALID` : row.definition;
    const add: SchemaNode = {
      id: `pg_constraint:${row.oid}`,
      aliases: [],
      phase: 'after-copy',
      rank: RANK.foreignKey,
      statements: [
        {
          kind: 'foreign-key',
          object,
          sql: `ALTER TABLE ${table} ADD CONSTRAINT ${row.name} ${definition}`,
          undo: `ALTER TABLE ${row.table_name} DROP CONSTRAINT ${row.name}`,
        },
      ],
      needs: [],
    };
    if (!inTwoSteps) return [add];
    return [
      add,
      {
        id: `validate:${row.oid}`,
        aliases: [],
        phase: 'after-copy',
        rank: RANK.validate,
        statements: [
          { kind: 'validate', object, sql: `ALTER TABLE ${row.table_name} VALIDATE CONSTRAINT ${row.name}` },
        ],
        needs: [add.id],
      },
    ];
  });
}

interface IdentityRow {
  readonly oid: string;
  readonly name: string;
  readonly identity: 'f' | 'i';
  readonly index_oid: string | null;
  readonly index_name: string | null;
}

/**
 * Carried for the way back. NOTHING is not: on the destination it would make the application's UPDATE fail once the
 * reverse publication stands, and preflight refuses it on the source.
 */
export async function readReplicaIdentities({ client }: Catalog): Promise<readonly SchemaNode[]> {
  const rows = await rowsOf<IdentityRow>(
    client,
    'replica identities',
    `SELECT c.oid, format('%I.%I', n.nspname, c.relname) AS name, c.relreplident AS identity,
       i.indexrelid AS index_oid, quote_ident(ic.relname) AS index_name
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisreplident AND i.indisvalid AND c.relreplident = 'i'
     LEFT JOIN pg_class ic ON ic.oid = i.indexrelid
     WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND c.relreplident IN ('f', 'i')
       AND (c.relreplident = 'f' OR i.indexrelid IS NOT NULL)
       AND ${userSchema('n')} AND ${notOfExtension('pg_class', 'c.oid')}`,
  );
  return rows.map((row) => ({
    id: `replica-identity:${row.oid}`,
    aliases: [],
    phase: 'before-copy',
    rank: RANK.replicaIdentity,
    statements: [
      {
        kind: 'replica-identity',
        object: `table ${row.name}`,
        sql: `ALTER TABLE ONLY ${row.name} REPLICA IDENTITY ${row.identity === 'f' ? 'FULL' : `USING INDEX ${row.index_name}`}`,
      },
    ],
    needs: [`pg_class:${row.oid}`, ...(row.index_oid === null ? [] : [`pg_class:${row.index_oid}`])],
  }));
}

export async function readStatistics({ client }: Catalog): Promise<readonly SchemaNode[]> {
  const rows = await rowsOf<{ oid: string; name: string; definition: string; target: string | null }>(
    client,
    'extended statistics',
    `SELECT s.oid, format('%I.%I', n.nspname, s.stxname) AS name, pg_get_statisticsobjdef(s.oid) AS definition,
       CASE WHEN s.stxstattarget >= 0 THEN s.stxstattarget END AS target
     FROM pg_statistic_ext s JOIN pg_namespace n ON n.oid = s.stxnamespace JOIN pg_class t ON t.oid = s.stxrelid
     WHERE ${userSchema('n')} AND ${notOfExtension('pg_statistic_ext', 's.oid')} AND t.relpersistence <> 't'`,
  );
  return rows.map((row) => {
    const object = `statistics ${row.name}`;
    const target = row.target === null ? [] : [`ALTER STATISTICS ${row.name} SET STATISTICS ${row.target}`];
    return {
      id: `pg_statistic_ext:${row.oid}`,
      aliases: [],
      phase: 'after-copy',
      rank: RANK.statistics,
      statements: [row.definition, ...target].map((sql, index) => ({
        kind: 'statistics',
        object,
        sql,
        undo: index === 0 ? `DROP STATISTICS ${row.name}` : `ALTER STATISTICS ${row.name} SET STATISTICS -1`,
      })),
      needs: [],
    };
  });
}
