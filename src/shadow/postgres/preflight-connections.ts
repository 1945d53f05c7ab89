/** Whether every session that is open on one side finds room on the other (trap 23). */
import type pg from 'pg';
import type { Side } from '../../core/ports.js';
import { quoteIdent } from '../../core/postgres.js';
import type { FindingOf } from './preflight-server.js';
import { rowsOf } from './schema/catalog.js';

interface SessionsRow {
  readonly role: string;
  readonly sessions: string;
}

interface RoomRow {
  readonly max: string;
  readonly reserved: string;
  readonly used: string;
  readonly database: string;
  readonly database_limit: string;
  readonly database_used: string;
}

interface RoleRoomRow {
  readonly role: string;
  readonly superuser: string;
  readonly role_limit: string;
  readonly used: string;
}

const CLIENTS = `backend_type = 'client backend'`;

const ROOM_SQL = `
SELECT current_setting('max_connections') AS max,
  current_setting('superuser_reserved_connections')::integer + COALESCE(current_setting('reserved_connections', true)::integer, 0) AS reserved,
  (SELECT count(*) FROM pg_stat_activity WHERE ${CLIENTS}) AS used,
  d.datname AS database, d.datconnlimit AS database_limit,
  (SELECT count(*) FROM pg_stat_activity WHERE ${CLIENTS} AND datid = d.oid) AS database_used
FROM pg_database d WHERE d.datname = current_database()`;

const ROLES_SQL = `
SELECT r.rolname AS role, r.rolsuper AS superuser, r.rolconnlimit AS role_limit,
  (SELECT count(*) FROM pg_stat_activity a WHERE a.${CLIENTS} AND a.usesysid = r.oid) AS used
FROM pg_roles r WHERE r.rolcanlogin`;

interface Headroom {
  readonly from: pg.Client;
  readonly to: pg.Client;
  readonly side: Side;
  readonly purpose: 'check' | 'cutover';
  /** Connections that must stay free beyond what the sessions take. */
  readonly reserve: number;
}

/** Findings about `to`, which must take the sessions that are on `from` now. */
export async function inspectHeadroom({
  from,
  to,
  side,
  purpose,
  reserve,
}: Headroom): Promise<readonly FindingOf[]> {
  const sessions = await rowsOf<SessionsRow & pg.QueryResultRow>(
    from,
    'sessions',
    `SELECT usename AS role, count(*) AS sessions FROM pg_stat_activity
     WHERE datname = current_database() AND ${CLIENTS} AND application_name NOT LIKE 'understudy %' GROUP BY 1`,
  );
  const [room] = await rowsOf<RoomRow & pg.QueryResultRow>(to, 'connection limits', ROOM_SQL);
  const roles = await rowsOf<RoleRoomRow & pg.QueryResultRow>(to, 'roles’ connection limits', ROLES_SQL);
  if (room === undefined || sessions.length === 0) return [];
  const total = sessions.reduce((sum, row) => sum + Number(row.sessions), 0);
  const severity = purpose === 'cutover' ? 'blocker' : 'warning';
  const findings: FindingOf[] = [];
  const free = Number(room.max) - Number(room.reserved) - Number(room.used);
  if (free < total + reserve) {
    findings.push({
      severity,
      check: 'connections',
      object: 'max_connections',
      message: `${total} sessions would move to the ${side}, which has ${Math.max(free, 0)} of its ${room.max} connections free; ${reserve} are to stay free.`,
      advice: `On the ${side}, run ALTER SYSTEM SET max_connections = ${Number(room.max) + total + reserve - free}; and restart the server.`,
    });
  }
  const superusers = new Set(roles.filter((row) => row.superuser === 't').map((row) => row.role));
  const ordinary = sessions.filter((row) => !superusers.has(row.role));
  const limited = ordinary.reduce((sum, row) => sum + Number(row.sessions), 0);
  const databaseLimit = Number(room.database_limit);
  if (databaseLimit >= 0 && databaseLimit - Number(room.database_used) < limited) {
    findings.push({
      severity,
      check: 'database-connection-limit',
      object: `database ${room.database}`,
      message: `${limited} sessions would move to a database that takes ${databaseLimit} connections on the ${side}, ${room.database_used} of them in use.`,
      advice: `On the ${side}, run ALTER DATABASE ${quoteIdent(room.database)} CONNECTION LIMIT ${limited + Number(room.database_used) + reserve};`,
    });
  }
  for (const row of ordinary) {
    const role = roles.find((one) => one.role === row.role);
    if (role === undefined || Number(role.role_limit) < 0) continue;
    if (Number(role.role_limit) - Number(role.used) >= Number(row.sessions)) continue;
    findings.push({
      severity,
      check: 'role-connection-limit',
      object: `role ${row.role}`,
      message: `${row.sessions} sessions of ${row.role} would move to the ${side}, where it may have ${role.role_limit}, ${role.used} of them in use.`,
      advice: `On the ${side}, run ALTER ROLE ${quoteIdent(row.role)} CONNECTION LIMIT ${Number(row.sessions) + Number(role.used)};`,
    });
  }
  return findings;
}
