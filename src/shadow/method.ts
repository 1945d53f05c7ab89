/**
 * Chooses how the shadow learns of changes: the best way that the source allows, with the reason why not a better one.
 * A shadow that has begun stays with its way: by another, what happened meanwhile would be missing.
 */
import type pg from 'pg';
import { UnderstudyError } from '../core/errors.js';
import type { ShadowMethod } from '../core/ports.js';

export interface MethodChoice {
  readonly method: ShadowMethod;
  /** For people: why this one, and what kept a better one away. */
  readonly reason: string;
}

interface SourceRow {
  readonly version_num: string;
  readonly recovery: string;
  readonly wal_level: string;
  readonly slots_free: string;
  readonly senders_free: string;
  readonly replication: string;
  readonly create_allowed: string;
  readonly foreign_tables: string;
}

const VERSION_NUM_MIN = 140_000;

/** Managed services hand replication out as membership of a role of their own. */
const SOURCE_SQL = `
SELECT pg_catalog.current_setting('server_version_num') AS version_num,
  pg_catalog.pg_is_in_recovery() AS recovery,
  pg_catalog.current_setting('wal_level') AS wal_level,
  pg_catalog.current_setting('max_replication_slots')::integer
    - (SELECT pg_catalog.count(*) FROM pg_catalog.pg_replication_slots WHERE slot_name <> $1) AS slots_free,
  pg_catalog.current_setting('max_wal_senders')::integer
    - (SELECT pg_catalog.count(*) FROM pg_catalog.pg_replication_slots WHERE slot_name <> $1 AND active) AS senders_free,
  r.rolsuper OR r.rolreplication OR EXISTS (SELECT FROM pg_catalog.pg_roles m
    WHERE m.rolname IN ('rds_replication', 'rds_superuser', 'cloudsqlsuperuser', 'azure_pg_admin')
      AND pg_catalog.pg_has_role(m.oid, 'MEMBER')) AS replication,
  pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') AS create_allowed,
  (SELECT pg_catalog.count(*) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
      AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'understudy')
      AND NOT r.rolsuper AND NOT pg_catalog.pg_has_role(c.relowner, 'USAGE')) AS foreign_tables
FROM pg_catalog.pg_roles r WHERE r.rolname = session_user`;

/** What keeps the log from being followed; empty where nothing does. `slot` is the one a shadow may have already. */
export async function whyNotByLog(source: pg.Client, slot: string): Promise<readonly string[]> {
  const { rows } = await source.query<SourceRow>(SOURCE_SQL, [slot]);
  const [row] = rows;
  if (row === undefined) return [];
  const reasons: string[] = [];
  if (Number(row.version_num) < VERSION_NUM_MIN) reasons.push('PostgreSQL is older than 14');
  if (row.recovery === 't') reasons.push('it is a standby');
  if (row.wal_level !== 'logical') reasons.push(`wal_level is ${row.wal_level}, not logical`);
  if (Number(row.slots_free) < 1) reasons.push('all replication slots are taken');
  if (Number(row.senders_free) < 1) reasons.push('all walsenders are taken');
  if (row.replication !== 't') reasons.push('the account may not read the log (REPLICATION)');
  if (row.create_allowed !== 't')
    reasons.push('the account may not create a publication (CREATE on the database)');
  if (row.foreign_tables !== '0') {
    reasons.push(`the account doesn’t own ${row.foreign_tables} tables, which it would have to publish`);
  }
  return reasons;
}

export interface MethodQuestion {
  readonly asked: ShadowMethod | 'auto';
  /** The slot that a shadow by `log` of this migration has. */
  readonly slot: string;
  /** What a shadow that has begun follows by. */
  readonly recorded: ShadowMethod | null;
}

/**
 * Throws `config-invalid` where configuration asks for another way than the one by which the shadow began, or the
 * server's error.
 */
export async function chooseMethod(source: pg.Client, question: MethodQuestion): Promise<MethodChoice> {
  const { asked, recorded, slot } = question;
  if (recorded !== null) {
    if (asked === 'auto' || asked === recorded) {
      return { method: recorded, reason: 'the shadow was begun by it' };
    }
    throw new UnderstudyError(
      'config-invalid',
      `shadow.method is ${asked}, and the shadow was begun by ${recorded}`,
      {
        advice: `Set shadow.method to ${recorded}, or give the shadow up with \`understudy remove\`, empty the destination, and start again.`,
      },
    );
  }
  if (asked !== 'auto') return { method: asked, reason: 'shadow.method asks for it' };
  const reasons = await whyNotByLog(source, slot);
  if (reasons.length === 0) return { method: 'log', reason: 'the source’s log can be followed' };
  return { method: 'poll', reason: `the source’s log can’t be followed: ${reasons.join('; ')}` };
}
