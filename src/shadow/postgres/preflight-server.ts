/** What one server must offer: version, log level, slots, connections, privileges, and a moment of quiet. */
import type pg from 'pg';
import type { Finding, Side } from '../../core/ports.js';
import { rowsOf } from './schema/catalog.js';

export interface InspectedServer {
  readonly client: pg.Client;
  readonly side: Side;
  readonly migrationId: string;
  readonly purpose: 'check' | 'cutover';
}

export type FindingOf = Omit<Finding, 'side'>;

/** Oldest version whose log can carry messages of ours (trap 7). */
export const VERSION_NUM_MIN = 140000;

/** Slots and senders that a migration takes on each side, and one sender more for a base backup or a reconnection. */
const SLOTS_NEEDED = 1;

interface ServerRow {
  readonly version_num: string;
  readonly version: string;
  readonly wal_level: string;
  readonly recovery: string;
  readonly slots_max: string;
  readonly slots_used: string;
  readonly slots_ours: string;
  readonly senders_max: string;
  readonly senders_used: string;
  readonly senders_ours: string;
  readonly prepared: string | null;
  readonly read_only: string;
  readonly keep_size: string;
}

function serverSql(migrationId: string): string {
  const ours = `LIKE 'understudy\\_${migrationId.replaceAll('_', '\\_').replaceAll("'", "''")}\\_%'`;
  return `SELECT current_setting('server_version_num') AS version_num, current_setting('server_version') AS version,
    current_setting('wal_level') AS wal_level, pg_is_in_recovery() AS recovery,
    current_setting('max_replication_slots') AS slots_max,
    (SELECT count(*) FROM pg_replication_slots) AS slots_used,
    (SELECT count(*) FROM pg_replication_slots WHERE slot_name ${ours}) AS slots_ours,
    current_setting('max_wal_senders') AS senders_max,
    (SELECT count(*) FROM pg_stat_get_wal_senders()) AS senders_used,
    (SELECT count(*) FROM pg_replication_slots WHERE slot_name ${ours} AND active) AS senders_ours,
    (SELECT string_agg(quote_literal(gid), ', ' ORDER BY prepared) FROM pg_prepared_xacts
      WHERE database = current_database()) AS prepared,
    (SELECT setting FROM pg_settings WHERE name = 'transaction_read_only') AS read_only,
    current_setting('max_slot_wal_keep_size') AS keep_size`;
}

export async function inspectServer(server: InspectedServer): Promise<readonly FindingOf[]> {
  const [row] = await rowsOf<ServerRow>(server.client, 'the server', serverSql(server.migrationId));
  if (row === undefined) return [];
  return [
    ...inspectVersion(server, row),
    ...inspectLog(server, row),
    ...inspectPrepared(server, row),
    ...(await inspectPrivileges(server, Number(row.version_num))),
    ...(await inspectOthers(server)),
  ];
}

function inspectVersion({ side }: InspectedServer, row: ServerRow): readonly FindingOf[] {
  const findings: FindingOf[] = [];
  if (Number(row.version_num) < VERSION_NUM_MIN) {
    findings.push({
      severity: 'blocker',
      check: 'version',
      object: `PostgreSQL ${row.version}`,
      message: `PostgreSQL ${row.version} on the ${side} is older than 14, whose log can’t carry Understudy’s marks.`,
      advice: `Upgrade the ${side} to PostgreSQL 14 or later first.`,
    });
  }
  if (row.recovery === 't') {
    findings.push({
      severity: 'blocker',
      check: 'in-recovery',
      object: 'server',
      message: `The ${side} is a standby: it can be neither fenced nor written.`,
      advice: `Give Understudy the address of the ${side}’s primary.`,
    });
  }
  return findings;
}

function inspectLog({ side }: InspectedServer, row: ServerRow): readonly FindingOf[] {
  const findings: FindingOf[] = [];
  const why = side === 'source' ? 'its log can’t be followed' : 'there would be no way back';
  if (row.wal_level !== 'logical') {
    findings.push({
      severity: 'blocker',
      check: 'wal-level',
      object: 'wal_level',
      message: `wal_level is ${row.wal_level} on the ${side}: ${why}.`,
      advice: `On the ${side}, run ALTER SYSTEM SET wal_level = 'logical'; and restart the server.`,
    });
  }
  const slotsFree = Number(row.slots_max) - Number(row.slots_used) + Number(row.slots_ours);
  if (slotsFree < SLOTS_NEEDED) {
    findings.push({
      severity: 'blocker',
      check: 'replication-slots',
      object: 'max_replication_slots',
      message: `All ${row.slots_max} replication slots of the ${side} are taken: ${why}.`,
      advice: `Drop a slot that nobody reads (SELECT pg_drop_replication_slot('…');), or run ALTER SYSTEM SET max_replication_slots = ${Number(row.slots_max) + SLOTS_NEEDED}; and restart the ${side}.`,
    });
  }
  const sendersFree = Number(row.senders_max) - Number(row.senders_used) + Number(row.senders_ours);
  if (sendersFree < SLOTS_NEEDED) {
    findings.push({
      severity: 'blocker',
      check: 'wal-senders',
      object: 'max_wal_senders',
      message: `All ${row.senders_max} walsenders of the ${side} are taken: ${why}.`,
      advice: `On the ${side}, run ALTER SYSTEM SET max_wal_senders = ${Number(row.senders_max) + SLOTS_NEEDED + 1}; and restart the server.`,
    });
  }
  if (row.keep_size !== '-1') {
    findings.push({
      severity: 'info',
      check: 'slot-keep-size',
      object: 'max_slot_wal_keep_size',
      message: `The ${side} drops a slot that holds back more than ${row.keep_size} of log; the shadow would then start anew.`,
      advice: `Let it hold what is written while the shadow is built, or run ALTER SYSTEM SET max_slot_wal_keep_size = -1; SELECT pg_reload_conf();`,
    });
  }
  return findings;
}

function inspectPrepared({ side, purpose }: InspectedServer, row: ServerRow): readonly FindingOf[] {
  if (row.prepared === null) return [];
  return [
    {
      severity: purpose === 'cutover' ? 'blocker' : 'warning',
      check: 'prepared-transactions',
      object: row.prepared,
      message: `Prepared transactions on the ${side} hold their locks, and stay there when the application moves: ${row.prepared}.`,
      advice: `On the ${side}, run COMMIT PREPARED or ROLLBACK PREPARED for each: ${row.prepared}.`,
    },
  ];
}

interface PrivilegeRow {
  readonly account: string;
  readonly superuser: string;
  readonly replication: string;
  readonly bypass_rls: string;
  readonly create_role: string;
  readonly replica_role: string;
  readonly create_schema: string;
  readonly database: string;
  readonly foreign_tables: string | null;
  readonly read_activity: string;
}

/** Managed services hand replication out as membership of a role of their own. */
function privilegesSql(versionNum: number): string {
  const parameter =
    versionNum >= 150000 ? `has_parameter_privilege('session_replication_role', 'SET')` : 'r.rolsuper';
  return `SELECT quote_ident(session_user) AS account, r.rolsuper AS superuser,
    r.rolreplication OR EXISTS (SELECT FROM pg_roles m WHERE m.rolname IN ('rds_replication', 'rds_superuser', 'cloudsqlsuperuser', 'azure_pg_admin')
      AND pg_has_role(m.oid, 'MEMBER')) AS replication,
    r.rolbypassrls AS bypass_rls, r.rolcreaterole AS create_role, ${parameter} OR r.rolsuper
      OR EXISTS (SELECT FROM pg_roles m WHERE m.rolname = 'rds_superuser' AND pg_has_role(m.oid, 'MEMBER')) AS replica_role,
    has_database_privilege(current_database(), 'CREATE') AS create_schema, quote_ident(current_database()) AS database,
    (SELECT string_agg(format('%I.%I', n.nspname, c.relname), ', ' ORDER BY 1) FROM pg_class c
      JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
        AND NOT pg_has_role(c.relowner, 'USAGE')) AS foreign_tables,
    pg_has_role('pg_read_all_stats', 'USAGE') AS read_activity
  FROM pg_roles r WHERE r.rolname = session_user`;
}

async function inspectPrivileges(server: InspectedServer, versionNum: number): Promise<readonly FindingOf[]> {
  const [row] = await rowsOf<PrivilegeRow>(server.client, 'privileges', privilegesSql(versionNum));
  if (row === undefined || row.superuser === 't') return [];
  const { side } = server;
  return [...missingPrivileges(side, row, versionNum), ...missingConveniences(side, row)];
}

/** Without these the migration, or its way back, can't be done. */
function missingPrivileges(side: Side, row: PrivilegeRow, versionNum: number): readonly FindingOf[] {
  const { account } = row;
  const who = `Understudy’s account ${account} on the ${side}`;
  const forward = side === 'destination';
  const findings: FindingOf[] = [];
  if (row.replication !== 't') {
    findings.push({
      severity: 'blocker',
      check: 'privilege-replication',
      object: account,
      message: `${who} may not read the log: ${forward ? 'there would be no way back' : 'its log can’t be followed'}.`,
      advice: `On the ${side}, run ALTER ROLE ${account} REPLICATION; as a superuser.`,
    });
  }
  if (row.replica_role !== 't') {
    findings.push({
      severity: forward ? 'blocker' : 'warning',
      check: 'privilege-replica-role',
      object: account,
      message: `${who} may not set session_replication_role: ${forward ? 'triggers and foreign keys would act on the shadow’s writes a second time' : 'a rollback could not apply what was written after the cutover'}.`,
      advice:
        versionNum >= 150000
          ? `On the ${side}, run GRANT SET ON PARAMETER session_replication_role TO ${account}; as a superuser.`
          : `On the ${side}, run ALTER ROLE ${account} SUPERUSER; (before 15 nothing less gives it).`,
    });
  }
  if (row.create_schema !== 't') {
    findings.push({
      severity: 'blocker',
      check: 'privilege-create',
      object: row.database,
      message: `${who} may not create its own schema or a publication.`,
      advice: `On the ${side}, run GRANT CREATE ON DATABASE ${row.database} TO ${account};`,
    });
  }
  if (row.foreign_tables !== null) {
    findings.push({
      severity: 'blocker',
      check: 'privilege-ownership',
      object: row.foreign_tables.split(', ')[0] ?? '',
      message: `${who} neither owns nor may act as the owner of ${row.foreign_tables}: these can’t be fenced.`,
      advice: `On the ${side}, run GRANT <owner> TO ${account}; for each owner of these tables.`,
    });
  }
  return findings;
}

/** Without these something is left to a person, or to luck. */
function missingConveniences(side: Side, row: PrivilegeRow): readonly FindingOf[] {
  const { account } = row;
  const who = `Understudy’s account ${account} on the ${side}`;
  const findings: FindingOf[] = [];
  if (row.create_role !== 't' && side === 'destination') {
    findings.push({
      severity: 'warning',
      check: 'privilege-create-role',
      object: account,
      message: `${who} may not create roles: those that are missing must be made by hand.`,
      advice: `On the destination, run ALTER ROLE ${account} CREATEROLE; as a superuser.`,
    });
  }
  if (row.read_activity !== 't') {
    findings.push({
      severity: 'warning',
      check: 'privilege-activity',
      object: account,
      message: `${who} sees only its own sessions’ statements: long transactions and index builds can’t be named.`,
      advice: `On the ${side}, run GRANT pg_monitor TO ${account};`,
    });
  }
  return findings;
}

interface ActivityRow {
  readonly kind: 'vacuum' | 'index' | 'transaction';
  readonly pid: string;
  readonly object: string | null;
  readonly seconds: string;
}

/** A plain autovacuum gives way to the fence; these don't (trap 5). Statements' texts are not shown. */
const ACTIVITY_SQL = `
SELECT 'vacuum' AS kind, a.pid, p.relid::regclass::text AS object, round(extract(epoch FROM now() - a.xact_start)) AS seconds
FROM pg_stat_progress_vacuum p JOIN pg_stat_activity a ON a.pid = p.pid
WHERE p.datname = current_database()
  AND (a.backend_type = 'client backend' OR a.query LIKE '%(to prevent wraparound)%')
UNION ALL
SELECT 'index', a.pid, p.relid::regclass::text, round(extract(epoch FROM now() - a.query_start))
FROM pg_stat_progress_create_index p JOIN pg_stat_activity a ON a.pid = p.pid
WHERE p.datname = current_database() AND p.command LIKE '%CONCURRENTLY%'
UNION ALL
SELECT 'transaction', a.pid, a.application_name, round(extract(epoch FROM now() - a.xact_start))
FROM pg_stat_activity a
WHERE a.datname = current_database() AND a.backend_type = 'client backend' AND a.pid <> pg_backend_pid()
  AND a.application_name NOT LIKE 'understudy %' AND a.xact_start < now() - interval '60 seconds'`;

async function inspectOthers({ client, side, purpose }: InspectedServer): Promise<readonly FindingOf[]> {
  const rows = await rowsOf<ActivityRow>(client, 'running statements', ACTIVITY_SQL);
  return rows.map((row): FindingOf => {
    const stop = `Wait for it, or run SELECT pg_cancel_backend(${row.pid}); on the ${side}.`;
    switch (row.kind) {
      case 'vacuum':
        return {
          severity: purpose === 'cutover' ? 'blocker' : 'info',
          check: 'running-vacuum',
          object: row.object ?? '',
          message: `A VACUUM of ${row.object ?? 'a table'} that doesn’t give way has run on the ${side} for ${row.seconds} s: the fence would wait for it.`,
          advice: stop,
        };
      case 'index':
        return {
          severity: purpose === 'cutover' ? 'blocker' : 'info',
          check: 'running-index-build',
          object: row.object ?? '',
          message: `An index of ${row.object ?? 'a table'} has been built concurrently on the ${side} for ${row.seconds} s: the fence would wait for it.`,
          advice: stop,
        };
      case 'transaction':
        return {
          severity: 'warning',
          check: 'long-transaction',
          object: row.object ?? '',
          message: `A transaction of ${row.object ?? 'a session'} (pid ${row.pid}) has been open on the ${side} for ${row.seconds} s: a slot can’t be made, and a gate not closed, before it ends.`,
          advice: `End it, or run SELECT pg_terminate_backend(${row.pid}); on the ${side}.`,
        };
    }
  });
}

/** `understudy_<id>_…`, as slots and publications of a migration are named. */
export function ownNamePattern(migrationId: string): RegExp {
  return new RegExp(`^understudy_${migrationId.replace(/\W/g, '\\$&')}_`);
}
