/** What can't be carried: named with a finding, and what needs it is left out with it. */
import type { Finding } from '../../../core/ports.js';
import { notOfExtension, rowsOf, userSchema, type Catalog } from './catalog.js';
import type { NodeId } from './graph.js';

interface UnsupportedRow {
  readonly id: string;
  readonly object: string;
  readonly why: string;
  readonly advice: string;
}

const BY_HAND = `'Create it on the destination by hand before the cutover.'`;

const UNSUPPORTED_SQL = `
SELECT 'pg_class:' || c.oid AS id, format('foreign table %I.%I', n.nspname, c.relname) AS object,
  'its rows live on another server, and its server and user mappings may not be reachable from the destination' AS why,
  'Create its server, user mapping and foreign table on the destination by hand before the cutover.' AS advice
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'f' AND ${userSchema('n')} AND ${notOfExtension('pg_class', 'c.oid')}
UNION ALL
SELECT 'pg_type:' || t.oid, format('type %I.%I', n.nspname, t.typname),
  CASE t.typtype WHEN 'r' THEN 'a range type with a canonical function needs C code'
    ELSE 'a base type needs C code on the destination' END, ${BY_HAND}
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace LEFT JOIN pg_range r ON r.rngtypid = t.oid
WHERE (t.typtype = 'b' AND NOT EXISTS (SELECT FROM pg_type e WHERE e.typarray = t.oid)
    OR t.typtype = 'p' OR COALESCE(r.rngcanonical, 0) <> 0)
  AND ${userSchema('n')} AND ${notOfExtension('pg_type', 't.oid')}
UNION ALL
SELECT 'pg_ts_parser:' || o.oid, format('text search parser %I.%I', n.nspname, o.prsname), 'it needs C code', ${BY_HAND}
FROM pg_ts_parser o JOIN pg_namespace n ON n.oid = o.prsnamespace
WHERE ${userSchema('n')} AND ${notOfExtension('pg_ts_parser', 'o.oid')}
UNION ALL
SELECT 'pg_ts_template:' || o.oid, format('text search template %I.%I', n.nspname, o.tmplname), 'it needs C code', ${BY_HAND}
FROM pg_ts_template o JOIN pg_namespace n ON n.oid = o.tmplnamespace
WHERE ${userSchema('n')} AND ${notOfExtension('pg_ts_template', 'o.oid')}
UNION ALL
SELECT 'pg_event_trigger:' || o.oid, format('event trigger %I', o.evtname),
  'it would act on Understudy’s own statements on the destination', ${BY_HAND}
FROM pg_event_trigger o WHERE ${notOfExtension('pg_event_trigger', 'o.oid')} AND o.evtname NOT LIKE 'understudy\\_%'
UNION ALL
SELECT 'pg_language:' || o.oid, format('language %I', o.lanname), 'procedural languages come with their extension',
  format('Run CREATE EXTENSION %I on the destination, if it is packaged there.', o.lanname)
FROM pg_language o WHERE o.oid >= 16384 AND ${notOfExtension('pg_language', 'o.oid')}
UNION ALL
SELECT 'pg_foreign_server:' || o.oid, format('foreign server %I', o.srvname),
  'it may not be reachable from the destination, and its user mappings hold passwords', ${BY_HAND}
FROM pg_foreign_server o WHERE ${notOfExtension('pg_foreign_server', 'o.oid')}
UNION ALL
SELECT 'pg_am:' || o.oid, format('access method %I', o.amname), 'it needs C code', ${BY_HAND}
FROM pg_am o WHERE o.oid >= 16384 AND ${notOfExtension('pg_am', 'o.oid')}
UNION ALL
SELECT 'pg_transform:' || o.oid, format('transform for %s', format_type(o.trftype, NULL)), 'transforms are not rebuilt', ${BY_HAND}
FROM pg_transform o WHERE o.oid >= 16384 AND ${notOfExtension('pg_transform', 'o.oid')}`;

/**
 * The shadow upserts by key, which the server refuses for a table with an UPDATE rule, even one that is disabled or
 * doesn't fire for replicated changes. Found on both ways: the source takes upserts after the cutover.
 */
const UPDATE_RULES_SQL = `
SELECT format('rule %I on %I.%I', r.rulename, n.nspname, c.relname) AS object,
  format('DROP RULE %I ON %I.%I;', r.rulename, n.nspname, c.relname) AS drop
FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE r.ev_type = '2' AND c.relkind = 'r' AND ${userSchema('n')} AND ${notOfExtension('pg_class', 'c.oid')}
  AND EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indimmediate AND (i.indisprimary OR i.indisreplident))`;

async function readUpdateRules({ client }: Catalog): Promise<readonly Finding[]> {
  const rows = await rowsOf<{ object: string; drop: string }>(client, 'update rules', UPDATE_RULES_SQL);
  return rows.map((row) => ({
    severity: 'blocker',
    check: 'update-rule',
    side: 'source',
    object: row.object,
    message: `${row.object} rewrites updates, and PostgreSQL refuses INSERT … ON CONFLICT, by which the shadow writes, for a table with such a rule.`,
    advice: `Do the rule’s work in a trigger and run ${row.drop}`,
  }));
}

export interface Unsupported {
  readonly missing: ReadonlyMap<NodeId, string>;
  readonly findings: readonly Finding[];
}

export async function readUnsupported(catalog: Catalog): Promise<Unsupported> {
  const rows = await rowsOf<UnsupportedRow>(catalog.client, 'objects that can’t be carried', UNSUPPORTED_SQL);
  const findings = rows.map((row): Finding => ({
    severity: 'warning',
    check: 'schema-unsupported',
    side: 'source',
    object: row.object,
    message: `${row.object} is not carried to the destination: ${row.why}.`,
    advice: row.advice,
  }));
  return {
    missing: new Map(rows.map((row) => [row.id, row.object])),
    findings: [...(await readUpdateRules(catalog)), ...findings],
  };
}
