/**
 * Roles belong to the server, so the destination must have them before owners and privileges can be given.
 *
 * A role that the destination lacks is created with the source's attributes and verifier: the proxy opens the
 * destination with what it learned from a client's proof against that very verifier (trap 23). A role that is there
 * already is somebody's: it is never altered, and what differs is a finding. A verifier is a secret: it is in no
 * message, and kept out of the destination's log where Understudy's account may do that.
 */
import type pg from 'pg';
import { asUnderstudyError } from '../../../core/errors.js';
import type { Finding } from '../../../core/ports.js';
import { quoteIdent, quoteLiteral } from '../../../core/postgres.js';
import { parseList, rowsOf, userSchema, type JsonList } from './catalog.js';
import { settingSql } from './read-access.js';

export interface RoleMembership {
  readonly role: string;
  readonly admin: boolean;
}

export interface RoleInfo {
  readonly name: string;
  readonly superuser: boolean;
  readonly inherit: boolean;
  readonly createRole: boolean;
  readonly createDatabase: boolean;
  readonly login: boolean;
  readonly replication: boolean;
  readonly bypassRowSecurity: boolean;
  /** -1: unlimited. */
  readonly connectionLimit: number;
  readonly validUntil: string | null;
  /** As stored by the server; null where there is none or it can't be read. A secret: never logged. */
  readonly verifier: string | null;
  readonly memberOf: readonly RoleMembership[];
  /** `name=value`, in every database. */
  readonly settings: readonly string[];
  /** `name=value`, in this database alone. */
  readonly databaseSettings: readonly string[];
  /** Owns, or is granted, something in this database, or owns the database. */
  readonly used: boolean;
  /** Has sessions in this database now, other than Understudy's own. */
  readonly connected: boolean;
}

export interface RoleSet {
  readonly roles: readonly RoleInfo[];
  /** Roles that may log in but have nothing to do with this database: not carried. */
  readonly otherLogins: readonly string[];
  /** Whether pg_authid could be read: false means every verifier is null for that reason. */
  readonly verifiersReadable: boolean;
}

export interface RoleReport {
  readonly created: readonly string[];
  readonly findings: readonly Finding[];
}

interface RoleRow {
  readonly rolname: string;
  readonly rolsuper: string;
  readonly rolinherit: string;
  readonly rolcreaterole: string;
  readonly rolcreatedb: string;
  readonly rolcanlogin: string;
  readonly rolreplication: string;
  readonly rolbypassrls: string;
  readonly rolconnlimit: string;
  readonly rolvaliduntil: string | null;
  readonly verifier: string | null;
  readonly member_of: JsonList<RoleMembership> | null;
  readonly settings: JsonList<string> | null;
  readonly database_settings: JsonList<string> | null;
  readonly used: string;
  readonly connected: string;
  readonly wanted: string;
}

async function canReadVerifiers(client: pg.Client): Promise<boolean> {
  const [row] = await rowsOf<{ readable: string }>(
    client,
    'privileges',
    `SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT') AS readable`,
  );
  return row?.readable === 't';
}

function rolesSql(verifiersReadable: boolean): string {
  return `
WITH RECURSIVE this AS (SELECT oid, datdba FROM pg_database WHERE datname = current_database()), ours AS (
  SELECT 'pg_class'::regclass AS classid, c.oid FROM pg_class c WHERE c.relnamespace = to_regnamespace('understudy')
  UNION ALL SELECT 'pg_proc'::regclass, p.oid FROM pg_proc p WHERE p.pronamespace = to_regnamespace('understudy')
  UNION ALL SELECT 'pg_type'::regclass, t.oid FROM pg_type t WHERE t.typnamespace = to_regnamespace('understudy')
  UNION ALL SELECT 'pg_namespace'::regclass, to_regnamespace('understudy')::oid
), used AS (
  SELECT d.refobjid AS oid FROM pg_shdepend d, this
  WHERE d.refclassid = 'pg_authid'::regclass
    AND (d.dbid = this.oid OR d.dbid = 0 AND d.classid = 'pg_database'::regclass AND d.objid = this.oid)
    AND NOT EXISTS (SELECT FROM ours WHERE ours.classid = d.classid AND ours.oid = d.objid)
  UNION SELECT this.datdba FROM this
  -- What the bootstrap superuser owns is not in pg_shdepend.
  UNION SELECT c.relowner FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE ${userSchema('n')}
  UNION SELECT p.proowner FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE ${userSchema('n')}
  UNION SELECT n.nspowner FROM pg_namespace n WHERE ${userSchema('n')}
), connected AS (
  SELECT DISTINCT a.usesysid AS oid FROM pg_stat_activity a
  WHERE a.datname = current_database() AND a.backend_type = 'client backend' AND a.application_name NOT LIKE 'understudy %'
), member AS (
  -- Whoever may act as a role that is used here, or as one of the server's that opens every database's data.
  SELECT oid FROM used
  UNION SELECT oid FROM pg_roles WHERE rolname IN ('pg_read_all_data', 'pg_write_all_data')
  UNION SELECT m.member FROM member w JOIN pg_auth_members m ON m.roleid = w.oid
), wanted AS (
  SELECT oid FROM member
  UNION SELECT oid FROM connected
  UNION SELECT s.setrole FROM pg_db_role_setting s, this WHERE s.setdatabase = this.oid
  UNION SELECT m.roleid FROM wanted w JOIN pg_auth_members m ON m.member = w.oid
)
SELECT r.rolname, r.rolsuper, r.rolinherit, r.rolcreaterole, r.rolcreatedb, r.rolcanlogin, r.rolreplication, r.rolbypassrls,
  r.rolconnlimit, r.rolvaliduntil, ${verifiersReadable ? `(SELECT a.rolpassword FROM pg_authid a WHERE a.oid = r.oid)` : 'NULL'} AS verifier,
  (SELECT json_agg(json_build_object('role', g.rolname, 'admin', m.admin_option) ORDER BY g.rolname)
    FROM (SELECT roleid, bool_or(admin_option) AS admin_option FROM pg_auth_members WHERE member = r.oid GROUP BY 1) m
    JOIN pg_roles g ON g.oid = m.roleid) AS member_of,
  (SELECT to_json(s.setconfig) FROM pg_db_role_setting s WHERE s.setrole = r.oid AND s.setdatabase = 0) AS settings,
  (SELECT to_json(s.setconfig) FROM pg_db_role_setting s, this
    WHERE s.setrole = r.oid AND s.setdatabase = this.oid) AS database_settings,
  r.oid IN (SELECT oid FROM used) AS used,
  r.oid IN (SELECT oid FROM connected) AS connected, r.oid IN (SELECT oid FROM wanted) AS wanted
FROM pg_roles r
WHERE r.rolname !~ '^pg_'
ORDER BY r.rolname`;
}

function roleOf(row: RoleRow): RoleInfo {
  return {
    name: row.rolname,
    superuser: row.rolsuper === 't',
    inherit: row.rolinherit === 't',
    createRole: row.rolcreaterole === 't',
    createDatabase: row.rolcreatedb === 't',
    login: row.rolcanlogin === 't',
    replication: row.rolreplication === 't',
    bypassRowSecurity: row.rolbypassrls === 't',
    connectionLimit: Number(row.rolconnlimit),
    validUntil: row.rolvaliduntil,
    verifier: row.verifier,
    memberOf: parseList(row.member_of),
    settings: parseList(row.settings),
    databaseSettings: parseList(row.database_settings),
    used: row.used === 't',
    connected: row.connected === 't',
  };
}

/**
 * Roles that matter to this database: they own or are granted something in it, may act as one that does, have settings
 * for it or sessions in it now; and the roles those belong to. The server's own (`pg_…`) are left out. A login that has
 * none of this is only named: on a server of many databases it is likely another's.
 * Throws `source-query-failed`.
 */
export async function readRoles(client: pg.Client): Promise<RoleSet> {
  const verifiersReadable = await canReadVerifiers(client);
  const rows = await rowsOf<RoleRow>(client, 'roles', rolesSql(verifiersReadable));
  const wanted = rows.filter((row) => row.wanted === 't');
  const others = rows.filter((row) => row.wanted === 'f' && row.rolcanlogin === 't');
  return { roles: wanted.map(roleOf), otherLogins: others.map((row) => row.rolname), verifiersReadable };
}

function createRoleSql(role: RoleInfo): string {
  const attributes = [
    role.superuser ? 'SUPERUSER' : 'NOSUPERUSER',
    role.inherit ? 'INHERIT' : 'NOINHERIT',
    role.createRole ? 'CREATEROLE' : 'NOCREATEROLE',
    role.createDatabase ? 'CREATEDB' : 'NOCREATEDB',
    role.login ? 'LOGIN' : 'NOLOGIN',
    role.replication ? 'REPLICATION' : 'NOREPLICATION',
    role.bypassRowSecurity ? 'BYPASSRLS' : 'NOBYPASSRLS',
    `CONNECTION LIMIT ${role.connectionLimit}`,
  ];
  if (role.validUntil !== null) attributes.push(`VALID UNTIL ${quoteLiteral(role.validUntil)}`);
  // A verifier is stored as it is given: the server recognises one and doesn't hash it again.
  if (role.verifier !== null) attributes.push(`PASSWORD ${quoteLiteral(role.verifier)}`);
  return `CREATE ROLE ${quoteIdent(role.name)} WITH ${attributes.join(' ')}`;
}

/** The same without a secret, for a person to type. */
function createRoleAdvice(role: RoleInfo): string {
  const shown = createRoleSql({ ...role, verifier: null });
  return role.verifier === null && !role.login
    ? `${shown};`
    : `${shown}; ALTER ROLE ${quoteIdent(role.name)} PASSWORD '…'; with the verifier that SELECT rolpassword FROM pg_authid WHERE rolname = ${quoteLiteral(role.name)} shows on the source.`;
}

function finding(
  severity: Finding['severity'],
  check: string,
  role: string,
  message: string,
  advice: string,
): Finding {
  return { severity, check, side: 'destination', object: `role ${role}`, message, advice };
}

const ATTRIBUTES: readonly (readonly [keyof RoleInfo, string])[] = [
  ['superuser', 'SUPERUSER'],
  ['inherit', 'INHERIT'],
  ['createRole', 'CREATEROLE'],
  ['createDatabase', 'CREATEDB'],
  ['login', 'LOGIN'],
  ['replication', 'REPLICATION'],
  ['bypassRowSecurity', 'BYPASSRLS'],
];

function attributeDifferences(source: RoleInfo, destination: RoleInfo): readonly string[] {
  const words: string[] = [];
  for (const [key, word] of ATTRIBUTES) {
    if (source[key] !== destination[key]) words.push(source[key] === true ? word : `NO${word}`);
  }
  if (source.connectionLimit !== destination.connectionLimit)
    words.push(`CONNECTION LIMIT ${source.connectionLimit}`);
  if (source.validUntil !== destination.validUntil)
    words.push(`VALID UNTIL ${quoteLiteral(source.validUntil ?? 'infinity')}`);
  return words;
}

/** What differs between a role on the source and the one of its name on the destination. */
function compareRole(source: RoleInfo, destination: RoleInfo): readonly Finding[] {
  const { name } = source;
  const quoted = quoteIdent(name);
  const findings: Finding[] = [];
  if (source.login && source.verifier !== destination.verifier) {
    findings.push(
      finding(
        source.connected ? 'blocker' : 'warning',
        'role-verifier-differs',
        name,
        `Role ${name} has another password verifier on the destination: its sessions can’t be moved there.`,
        `On the destination, run ALTER ROLE ${quoted} PASSWORD '…'; with the verifier that SELECT rolpassword FROM pg_authid WHERE rolname = ${quoteLiteral(name)} shows on the source.`,
      ),
    );
  }
  const attributes = attributeDifferences(source, destination);
  if (attributes.length > 0) {
    findings.push(
      finding(
        'warning',
        'role-attributes-differ',
        name,
        `Role ${name} has other attributes on the destination (source: ${attributes.join(' ')}).`,
        `On the destination, run ALTER ROLE ${quoted} ${attributes.join(' ')};`,
      ),
    );
  }
  const missing = source.memberOf.filter(
    (one) => !destination.memberOf.some((other) => other.role === one.role),
  );
  for (const one of missing) {
    findings.push(
      finding(
        'warning',
        'role-membership-missing',
        name,
        `Role ${name} is a member of ${one.role} on the source and not on the destination.`,
        `On the destination, run GRANT ${quoteIdent(one.role)} TO ${quoted}${one.admin ? ' WITH ADMIN OPTION' : ''};`,
      ),
    );
  }
  findings.push(...compareSettings(source, destination));
  return findings;
}

function settingName(setting: string): string {
  return setting.slice(0, setting.indexOf('='));
}

function compareSettings(source: RoleInfo, destination: RoleInfo): readonly Finding[] {
  const differing = (here: readonly string[], there: readonly string[]): readonly string[] =>
    [...here.filter((one) => !there.includes(one)), ...there.filter((one) => !here.includes(one))].map(
      settingName,
    );
  const names = new Set([
    ...differing(source.settings, destination.settings),
    ...differing(source.databaseSettings, destination.databaseSettings),
  ]);
  return [...names].sort().map((name) =>
    finding(
      'warning',
      'role-setting-differs',
      source.name,
      // A setting's value may be a secret: only its name is shown.
      `Role ${source.name} starts its sessions with another value of ${name} on the destination.`,
      `Compare SELECT * FROM pg_db_role_setting; on both sides and run ALTER ROLE ${quoteIdent(source.name)} SET ${name} TO …; on the destination.`,
    ),
  );
}

function missingRole(role: RoleInfo, isCreated: boolean): Finding {
  if (isCreated)
    return finding(
      'info',
      'role-missing',
      role.name,
      `Role ${role.name} does not exist on the destination yet; Understudy creates it there.`,
      `Unless shadow.copyRoles is switched off: then run on the destination ${createRoleAdvice(role)}`,
    );
  return finding(
    role.connected ? 'blocker' : 'warning',
    'role-missing',
    role.name,
    `Role ${role.name} does not exist on the destination${role.used ? ', and what it owns or was granted is not its own there' : ''}.`,
    `Run on the destination: ${createRoleAdvice(role)}`,
  );
}

/**
 * What the destination's roles lack. `account`: Understudy's own on the source, which needs no twin unless objects of
 * the application are its own, and need not be alike. What can't be logged in with is a blocker where sessions would
 * have to be moved now. `missingAreCreated`: the shadow is still to be built, and its roles with it.
 */
export function compareRoles(
  source: RoleSet,
  destination: RoleSet,
  account: string,
  missingAreCreated: boolean,
): readonly Finding[] {
  const there = new Map(destination.roles.map((role) => [role.name, role]));
  const findings: Finding[] = [];
  if (!source.verifiersReadable || !destination.verifiersReadable) {
    const side = source.verifiersReadable ? 'destination' : 'source';
    findings.push({
      severity: 'warning',
      check: 'verifiers-unreadable',
      side,
      object: 'pg_authid',
      message: `Understudy’s account can’t read pg_authid on the ${side}: password verifiers can’t be compared or copied.`,
      advice: `On the ${side}, run GRANT SELECT ON pg_catalog.pg_authid TO <understudy’s account>; as a superuser, or keep the verifiers in a file.`,
    });
  }
  const absent = source.otherLogins.filter((name) => !there.has(name) && name !== account);
  if (absent.length > 0) {
    findings.push({
      severity: 'info',
      check: 'role-not-carried',
      side: 'source',
      object: `role ${absent[0] ?? ''}`,
      message: `${absent.length} roles may log in on the source but have nothing in this database, and are not created on the destination: ${absent.slice(0, 10).join(', ')}${absent.length > 10 ? ', …' : ''}.`,
      advice: 'Create those that will use the database on the destination by hand.',
    });
  }
  for (const role of source.roles) {
    const other = there.get(role.name);
    if (role.name === account && (other !== undefined || !role.used)) continue;
    if (other === undefined) {
      findings.push(missingRole(role, missingAreCreated));
      continue;
    }
    const readable = source.verifiersReadable && destination.verifiersReadable;
    findings.push(...compareRole(readable ? role : { ...role, verifier: other.verifier }, other));
  }
  return findings;
}

/** All roles of the server, of use here or not: what a role of the source is compared with. */
async function readAllRoles(client: pg.Client): Promise<RoleSet> {
  const verifiersReadable = await canReadVerifiers(client);
  const rows = await rowsOf<RoleRow>(client, 'roles', rolesSql(verifiersReadable));
  return { roles: rows.map(roleOf), otherLogins: [], verifiersReadable };
}

async function accountOf(client: pg.Client): Promise<string> {
  const [row] = await rowsOf<{ name: string }>(client, 'the session', 'SELECT session_user::text AS name');
  return row?.name ?? '';
}

/** Findings about roles of both sides, without changing anything. */
export async function inspectRoles(
  source: pg.Client,
  destination: pg.Client,
  missingAreCreated = false,
): Promise<readonly Finding[]> {
  const here = await readRoles(source);
  const there = await readAllRoles(destination);
  return compareRoles(here, there, await accountOf(source), missingAreCreated);
}

interface Creation {
  readonly destination: pg.Client;
  readonly report: { created: string[]; findings: Finding[] };
}

async function run(
  { destination, report }: Creation,
  sql: string,
  onFailure: (reason: string) => Finding,
): Promise<boolean> {
  try {
    await destination.query(sql);
    return true;
  } catch (error) {
    const state = (error as { code?: unknown }).code;
    if (typeof state !== 'string' || state.startsWith('08') || state.startsWith('57P'))
      throw asUnderstudyError(error, 'destination-unreachable', 'creating roles');
    report.findings.push(onFailure((error as Error).message));
    return false;
  }
}

/** Keeps verifiers out of the destination's log, as far as the account may. */
async function withoutLogging<T>(destination: pg.Client, work: () => Promise<T>): Promise<T> {
  const names = ['log_statement', 'log_min_error_statement', 'log_min_duration_statement'];
  const quiet = `SET log_statement = 'none'; SET log_min_error_statement = 'panic'; SET log_min_duration_statement = -1`;
  await destination.query(quiet).catch(() => undefined);
  try {
    return await work();
  } finally {
    await destination.query(names.map((name) => `RESET ${name}`).join('; ')).catch(() => undefined);
  }
}

async function createRole(creation: Creation, role: RoleInfo): Promise<void> {
  const created = await run(creation, createRoleSql(role), (reason) =>
    finding(
      role.connected ? 'blocker' : 'warning',
      'role-missing',
      role.name,
      `Role ${role.name} does not exist on the destination and could not be created: ${reason}.`,
      `On the destination, run as a superuser: ${createRoleAdvice(role)}`,
    ),
  );
  if (created) creation.report.created.push(role.name);
}

async function completeRole(creation: Creation, role: RoleInfo): Promise<void> {
  const quoted = quoteIdent(role.name);
  for (const one of role.memberOf) {
    const sql = `GRANT ${quoteIdent(one.role)} TO ${quoted}${one.admin ? ' WITH ADMIN OPTION' : ''}`;
    await run(creation, sql, (reason) =>
      finding(
        'warning',
        'role-membership-missing',
        role.name,
        `Role ${role.name} could not be made a member of ${one.role} on the destination: ${reason}.`,
        `On the destination, run ${sql};`,
      ),
    );
  }
  const [row] = await rowsOf<{ name: string }>(
    creation.destination,
    'the database',
    'SELECT quote_ident(current_database()) AS name',
  );
  const settings = [
    ...role.settings.map((setting) => ({ setting, where: '' })),
    ...role.databaseSettings.map((setting) => ({ setting, where: ` IN DATABASE ${row?.name ?? ''}` })),
  ];
  for (const { setting, where } of settings) {
    await run(creation, `ALTER ROLE ${quoted}${where} SET ${settingSql(setting)}`, (reason) =>
      finding(
        'warning',
        'role-setting-differs',
        role.name,
        `Role ${role.name}’s setting ${settingName(setting)} could not be carried to the destination: ${reason}.`,
        `Run ALTER ROLE ${quoted}${where} SET ${settingName(setting)} TO …; on the destination, or reset it on the source.`,
      ),
    );
  }
}

/**
 * Creates the roles missing on the destination, with attributes, verifier, memberships and settings, as far as
 * Understudy's account there may. Existing ones are never altered: what differs is a finding. Repeatable.
 * Throws `source-query-failed`, `destination-unreachable`.
 */
export async function copyRoles(source: pg.Client, destination: pg.Client): Promise<RoleReport> {
  const here = await readRoles(source);
  const there = await readAllRoles(destination);
  const account = await accountOf(source);
  const existing = new Set(there.roles.map((role) => role.name));
  const missing = here.roles.filter(
    (role) => !existing.has(role.name) && (role.used || role.name !== account),
  );
  const report = { created: [] as string[], findings: [] as Finding[] };
  const creation: Creation = { destination, report };
  await withoutLogging(destination, async () => {
    for (const role of missing) await createRole(creation, role);
  });
  for (const role of missing) {
    if (report.created.includes(role.name)) await completeRole(creation, role);
  }
  const present = { ...here, roles: here.roles.filter((role) => existing.has(role.name)) };
  report.findings.push(...compareRoles(present, there, account, false));
  return report;
}
