/** What the source holds that the log does not carry, that the fence does not stop, or that needs a decision. */
import type pg from 'pg';
import type { Finding } from '../../core/ports.js';
import { quoteTable } from '../../core/postgres.js';
import { ownNamePattern, type FindingOf, type InspectedServer } from './preflight-server.js';
import { readSessionHints } from './preflight-sessions.js';
import { notOfExtension, rowsOf, userSchema } from './schema/catalog.js';
import { tableKey, type TableInfo } from './table.js';
import { readTables } from './tables.js';

const LARGE_TABLE_BYTES = 100 * 2 ** 30;

/** Findings about each table: its key and identity, its kind, its size. */
function inspectTable(table: TableInfo): readonly FindingOf[] {
  const object = `table ${tableKey(table)}`;
  const sql = quoteTable(table);
  const findings: FindingOf[] = [];
  const identified = table.replicaIdentity === 'i' || table.replicaIdentity === 'f';
  if (table.kind !== 'partitioned' && table.key === null && !identified) {
    findings.push({
      severity: 'warning',
      check: 'table-without-key',
      object,
      message: `${object} has no usable key: Understudy sets its replica identity to FULL while it follows, and each update or delete there logs whole rows and searches the shadow for them.`,
      advice: `Add a primary key that is not deferrable, or let Understudy run ALTER TABLE ${sql} REPLICA IDENTITY FULL;`,
    });
  } else if (table.kind !== 'partitioned' && table.replicaIdentity === 'n') {
    findings.push({
      severity: 'warning',
      check: 'replica-identity-nothing',
      object,
      message: `${object} has the replica identity NOTHING: once it is published, the application’s UPDATE and DELETE would fail. Understudy sets it to DEFAULT while it follows.`,
      advice: `Run ALTER TABLE ${sql} REPLICA IDENTITY DEFAULT;`,
    });
  }
  if (table.unlogged && table.kind !== 'partitioned') {
    findings.push({
      severity: 'warning',
      check: 'unlogged-table',
      object,
      message: `${object} is unlogged: no log tells of its rows, so all of them (${Math.ceil(table.bytes / 2 ** 20)} MiB) come over while clients wait, at each switch.`,
      advice: `Run ALTER TABLE ${sql} SET LOGGED; where they are many, or TRUNCATE it before a switch where they don’t matter.`,
    });
  }
  if (table.bytes > LARGE_TABLE_BYTES) {
    findings.push({
      severity: 'info',
      check: 'large-table',
      object,
      message: `${object} is ${Math.round(table.bytes / 2 ** 30)} GiB: it decides how long the copy takes.`,
      advice: 'Start the shadow well before the planned cutover.',
    });
  }
  return findings;
}

/** Room in the lock table: the fence takes one lock a table, all in one transaction. */
async function inspectLocks(client: pg.Client, tables: number): Promise<readonly FindingOf[]> {
  const [row] = await rowsOf<{ per_transaction: string; capacity: string; relations: string }>(
    client,
    'lock settings',
    `SELECT current_setting('max_locks_per_transaction') AS per_transaction,
       current_setting('max_locks_per_transaction')::bigint
         * (current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint) AS capacity,
       (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'p', 'i', 'I', 'S') AND ${userSchema('n')}) AS relations`,
  );
  if (row === undefined) return [];
  const capacity = Number(row.capacity);
  // Building the schema locks every relation it makes in one transaction.
  const wanted = Math.max(tables * 2, Number(row.relations));
  if (wanted * 2 < capacity) return [];
  const advised = Math.ceil((Number(row.per_transaction) * wanted * 4) / capacity);
  return [
    {
      severity: wanted > capacity ? 'blocker' : 'warning',
      check: 'lock-table',
      object: 'max_locks_per_transaction',
      message: `The fence locks ${tables} tables, and building the schema ${row.relations} relations, in one transaction; there is room for ${capacity} locks of all sessions together.`,
      advice: `Run ALTER SYSTEM SET max_locks_per_transaction = ${advised}; and restart the server, on both sides.`,
    },
  ];
}

interface ObjectRow {
  readonly check: string;
  readonly severity: Finding['severity'];
  readonly object: string;
  readonly message: string;
  readonly advice: string;
}

const MATERIALIZED_VIEWS = `
SELECT 'materialized-view' AS check, 'info' AS severity, format('materialized view %I.%I', n.nspname, c.relname) AS object,
  'Its rows are not in the log: it is filled when the shadow is built, and refreshed in the preflight of every cutover.' AS message,
  format('Move the job that runs REFRESH MATERIALIZED VIEW %I.%I; to the destination.',
    n.nspname, c.relname) AS advice
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'm' AND ${userSchema('n')} AND ${notOfExtension('pg_class', 'c.oid')}`;

const LARGE_OBJECTS = `
SELECT 'large-objects', 'blocker', 'large objects',
  format('The database holds %s large objects, which the log does not carry.', count(*)),
  'Move them into a bytea column, or run SELECT lo_unlink(oid) FROM pg_largeobject_metadata; where they are orphans.'
FROM pg_largeobject_metadata HAVING count(*) > 0`;

/** A subscription's worker writes in replica role, row by row: the fence's statement triggers never see it. */
const SUBSCRIPTIONS = `
SELECT 'subscription', CASE WHEN s.subenabled THEN 'blocker' ELSE 'warning' END, format('subscription %I', s.subname),
  'The source takes changes from elsewhere by this subscription, whose writes no fence stops.',
  format('Run ALTER SUBSCRIPTION %I DISABLE; before the cutover, and make it anew on the destination.', s.subname)
FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid WHERE d.datname = current_database()`;

const REPLICA_TRIGGERS = `
SELECT 'trigger-in-replica-role', 'warning', format('trigger %I on %I.%I', t.tgname, n.nspname, c.relname),
  'It fires for replicated changes too: kept disabled on the shadow until the switch, but on the source it would act a second time on what comes back after the cutover.',
  format('Where that would be wrong, run ALTER TABLE %I.%I ENABLE TRIGGER %I; before the cutover.', n.nspname, c.relname, t.tgname)
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND t.tgenabled IN ('A', 'R') AND t.tgname NOT LIKE 'understudy\\_%' AND ${userSchema('n')}
UNION ALL
SELECT 'rule-in-replica-role', 'warning', format('rule %I on %I.%I', r.rulename, n.nspname, c.relname),
  'It rewrites replicated changes too: kept disabled on the shadow until the switch, but on the source it would act a second time on what comes back after the cutover.',
  format('Where that would be wrong, run ALTER TABLE %I.%I ENABLE RULE %I; before the cutover.', n.nspname, c.relname, r.rulename)
FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE r.rulename <> '_RETURN' AND r.ev_enabled IN ('A', 'R') AND c.relkind IN ('r', 'p') AND ${userSchema('n')}`;

const CYCLING_SEQUENCES = `
SELECT 'sequence-cycle', 'info', format('sequence %I.%I', n.nspname, c.relname),
  'It cycles: its value is copied exactly, without the margin that other sequences get.',
  'Make sure that nothing takes values from it past the proxy during the cutover.'
FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE s.seqcycle AND ${userSchema('n')} AND ${notOfExtension('pg_class', 'c.oid')}`;

const ROW_SECURITY = `
SELECT 'row-security', 'blocker', format('table %I.%I', n.nspname, c.relname),
  format('Row security of %I.%I applies to Understudy’s account %I: it would not see every row.', n.nspname, c.relname, session_user),
  format('Run ALTER ROLE %I BYPASSRLS; as a superuser.', session_user)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relrowsecurity AND row_security_active(c.oid) AND ${userSchema('n')}`;

const TABLESPACES = `
SELECT 'tablespace', 'info', format('%I.%I', n.nspname, c.relname),
  format('It is in tablespace %I; on the destination it is built in the default one.', t.spcname),
  format('To keep it apart there too, run ALTER %s %I.%I SET TABLESPACE %I; on the destination.',
    CASE WHEN c.relkind IN ('i', 'I') THEN 'INDEX' ELSE 'TABLE' END, n.nspname, c.relname, t.spcname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_tablespace t ON t.oid = c.reltablespace
WHERE ${userSchema('n')}`;

const INVALID_INDEXES = `
SELECT 'invalid-index', 'info', format('index %I.%I', n.nspname, x.relname),
  'It is not valid, and so is not carried to the destination.',
  format('Run REINDEX INDEX CONCURRENTLY %I.%I; or DROP INDEX CONCURRENTLY %I.%I;', n.nspname, x.relname, n.nspname, x.relname)
FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_class c ON c.oid = i.indrelid
JOIN pg_namespace n ON n.oid = x.relnamespace
WHERE NOT i.indisvalid AND c.relkind <> 'p' AND ${userSchema('n')}`;

const UNVALIDATED = `
SELECT 'constraint-not-valid', 'info', format('constraint %I on %I.%I', k.conname, n.nspname, c.relname),
  'It is NOT VALID on the source, and stays so on the destination.',
  format('To have it checked, run ALTER TABLE %I.%I VALIDATE CONSTRAINT %I;', n.nspname, c.relname, k.conname)
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE NOT k.convalidated AND k.conparentid = 0 AND ${userSchema('n')}`;

/** Their library must be on the destination's server too, or the build stops there. */
const C_FUNCTIONS = `
SELECT 'c-function', 'warning', format('function %I.%I', n.nspname, min(p.proname)),
  format('%s functions are written in C, such as %I.%I: each needs its library (%s) on the destination’s server.',
    count(*), n.nspname, min(p.proname), string_agg(DISTINCT p.probin, ', ')),
  'Install the library there before the shadow is built, or drop the functions.'
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
WHERE l.lanname = 'c' AND ${userSchema('n')} AND ${notOfExtension('pg_proc', 'p.oid')}
GROUP BY n.nspname`;

/** They hold passwords: a person makes them anew. */
const USER_MAPPINGS = `
SELECT 'user-mapping', 'info', format('server %I', m.srvname),
  format('%s user mappings of foreign server %I are not carried to the destination: they hold passwords.', count(*), m.srvname),
  'Create them there by hand where the foreign server is used.'
FROM pg_user_mappings m GROUP BY m.srvname`;

const SECURITY_LABELS = `
SELECT 'security-label', 'warning', format('security labels of %s', s.provider),
  format('%s security labels of provider %s are not carried to the destination.', count(*), s.provider),
  'Load the provider there and set the labels by hand.'
FROM pg_seclabels s WHERE s.objtype NOT IN ('role', 'database', 'tablespace') GROUP BY s.provider`;

const OBJECTS_SQL = [
  MATERIALIZED_VIEWS,
  C_FUNCTIONS,
  USER_MAPPINGS,
  SECURITY_LABELS,
  LARGE_OBJECTS,
  SUBSCRIPTIONS,
  REPLICA_TRIGGERS,
  CYCLING_SEQUENCES,
  ROW_SECURITY,
  TABLESPACES,
  INVALID_INDEXES,
  UNVALIDATED,
].join('\nUNION ALL\n');

interface LogReaderRow {
  readonly kind: 'publication' | 'slot';
  readonly name: string;
  readonly all_tables: string;
}

/** Publications and slots that are not ours: their readers stay behind on the source. */
async function inspectLogReaders(
  { client, migrationId }: InspectedServer,
  tables: readonly TableInfo[],
): Promise<readonly FindingOf[]> {
  const rows = await rowsOf<LogReaderRow>(
    client,
    'publications and slots',
    `SELECT 'publication' AS kind, pubname AS name, puballtables AS all_tables FROM pg_publication
     UNION ALL SELECT 'slot', slot_name, false FROM pg_replication_slots WHERE database = current_database()`,
  );
  const own = ownNamePattern(migrationId);
  return rows
    .filter((row) => !own.test(row.name))
    .flatMap((row): readonly FindingOf[] => {
      if (row.kind === 'slot') {
        return [
          {
            severity: 'warning',
            check: 'foreign-slot',
            object: `replication slot ${row.name}`,
            message: `Something reads the source’s log by slot ${row.name}; after the cutover nothing new is in it but what the way back writes.`,
            advice: 'Plan how its reader goes on from the destination.',
          },
        ];
      }
      const keyless = tables.filter((table) => table.key === null && table.replicaIdentity === 'd');
      const failing = row.all_tables === 't' && keyless.length > 0;
      return [
        {
          severity: failing ? 'warning' : 'info',
          check: failing ? 'publication-all-tables' : 'publication',
          object: `publication ${row.name}`,
          message: failing
            ? `Publication ${row.name} holds all tables, also those without a key, where UPDATE and DELETE fail: ${keyless.map(tableKey).join(', ')}.`
            : `Publication ${row.name} is not carried to the destination: its subscribers must be pointed there.`,
          advice: failing
            ? 'Give each of them a primary key or REPLICA IDENTITY FULL, or publish the tables by name.'
            : 'Create it on the destination before the cutover, and its subscriptions anew after it.',
        },
      ];
    });
}

async function inspectSessionState(client: pg.Client): Promise<readonly FindingOf[]> {
  const { dottedSettings, statefulFunctions } = await readSessionHints(client);
  const findings: FindingOf[] = [];
  if (dottedSettings.length > 0) {
    findings.push({
      severity: 'info',
      check: 'dotted-settings',
      object: dottedSettings.slice(0, 10).join(', '),
      message: `Sessions may hold these settings, which no view shows; they are asked for by name and carried: ${dottedSettings.join(', ')}.`,
      advice:
        'A setting that only the application knows is carried where the catalogs name it: ALTER DATABASE … SET name = value does.',
    });
  }
  if (statefulFunctions.length > 0) {
    findings.push({
      severity: 'info',
      check: 'stateful-functions',
      object: statefulFunctions.slice(0, 10).join(', '),
      message: `These functions may leave state in a session that calls them: ${statefulFunctions.join(', ')}.`,
      advice: 'Prefer SET LOCAL and transaction-level locks, which end with the transaction.',
    });
  }
  return findings;
}

/** User-defined types are made anew, under new OIDs (trap 16). */
async function inspectTypes(client: pg.Client): Promise<readonly FindingOf[]> {
  const [row] = await rowsOf<{ names: string | null; count: string }>(
    client,
    'types',
    `SELECT count(*) AS count, string_agg(format('%I.%I', n.nspname, t.typname), ', ' ORDER BY 1) AS names
     FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace LEFT JOIN pg_class c ON c.oid = t.typrelid
     WHERE t.typtype IN ('e', 'c', 'd', 'r') AND (t.typtype <> 'c' OR c.relkind = 'c') AND ${userSchema('n')}`,
  );
  if (row === undefined || row.names === null) return [];
  const names = row.names.split(', ');
  return [
    {
      severity: 'info',
      check: 'type-oids',
      object: names.slice(0, 10).join(', '),
      message: `${row.count} types have other OIDs on the destination; a driver that remembers OIDs, or sends such types in binary, may trip over them after the switch.`,
      advice: 'Prefer drivers that look types up by name, or send these types as text.',
    },
  ];
}

/** Everything above, of the source alone. */
export async function inspectObjects(server: InspectedServer): Promise<readonly FindingOf[]> {
  const { client } = server;
  const tables = await readTables(client);
  const objects = await rowsOf<ObjectRow & pg.QueryResultRow>(client, 'objects', OBJECTS_SQL);
  return [
    ...tables.flatMap(inspectTable),
    ...(await inspectLocks(client, tables.length)),
    ...objects.map(({ check, severity, object, message, advice }) => ({
      check,
      severity,
      object,
      message: message.startsWith('Row security') ? message : withObject(object, message),
      advice,
    })),
    ...(await inspectLogReaders(server, tables)),
    ...(await inspectSessionState(client)),
    ...(await inspectTypes(client)),
  ];
}

/** Messages stand on their own, also where the object is not shown beside them. */
function withObject(object: string, message: string): string {
  return message.includes(object) || message.startsWith('The ') ? message : `${object}: ${message}`;
}
