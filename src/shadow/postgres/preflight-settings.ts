/**
 * Defaults that a session begins with: what it would see differently on the destination (trap 18).
 *
 * Understudy's own connection pins some of them, so the defaults are not what it sees itself: they are put together
 * from the database's settings, the configuration files and what is built in. Settings of roles are compared with the
 * roles. The database's own settings are carried with the schema: before it is built the source's count for both.
 */
import type pg from 'pg';
import type { FindingOf } from './preflight-server.js';
import { parseList, rowsOf, type JsonList } from './schema/catalog.js';

/** They change what statements mean or return. */
const RESULT_SETTINGS = [
  'array_nulls',
  'backslash_quote',
  'bytea_output',
  'datestyle',
  'default_text_search_config',
  'default_transaction_deferrable',
  'default_transaction_isolation',
  'default_transaction_read_only',
  'extra_float_digits',
  'intervalstyle',
  'lc_messages',
  'lc_monetary',
  'lc_numeric',
  'lc_time',
  'lo_compat_privileges',
  'quote_all_identifiers',
  'row_security',
  'search_path',
  'session_replication_role',
  'standard_conforming_strings',
  'timezone',
  'timezone_abbreviations',
  'transform_null_equals',
  'xmlbinary',
  'xmloption',
];

/** They decide when a statement, a transaction or a session is ended. */
const TIME_SETTINGS = [
  'deadlock_timeout',
  'idle_in_transaction_session_timeout',
  'idle_session_timeout',
  'lock_timeout',
  'statement_timeout',
  'transaction_timeout',
  'synchronous_commit',
];

interface SettingRow {
  readonly name: string;
  readonly boot: string | null;
  readonly file: string | null;
  readonly own: string | null;
  readonly source: string;
  readonly context: string;
}

interface Settings {
  readonly rows: ReadonlyMap<string, SettingRow>;
  readonly database: ReadonlyMap<string, string>;
  /** Names that roles' or the database's stored settings use. */
  readonly stored: ReadonlySet<string>;
}

async function readSettings(client: pg.Client): Promise<Settings> {
  const [privileges] = await rowsOf<{ files: string }>(
    client,
    'privileges',
    `SELECT has_table_privilege('pg_catalog.pg_file_settings', 'SELECT') AND has_function_privilege('pg_catalog.pg_show_all_file_settings()', 'EXECUTE') AS files`,
  );
  const file =
    privileges?.files === 't'
      ? `(SELECT f.setting FROM pg_file_settings f WHERE lower(f.name) = lower(s.name) AND f.applied ORDER BY f.seqno DESC LIMIT 1)`
      : `NULL`;
  const rows = await rowsOf<SettingRow & pg.QueryResultRow>(
    client,
    'settings',
    `SELECT lower(s.name) AS name, s.boot_val AS boot, ${file} AS file, s.reset_val AS own, s.source, s.context
     FROM pg_settings s WHERE s.name NOT LIKE '%.%'`,
  );
  const [stored] = await rowsOf<{ database: JsonList<string> | null; names: JsonList<string> | null }>(
    client,
    'stored settings',
    `SELECT (SELECT to_json(s.setconfig) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase
         WHERE d.datname = current_database() AND s.setrole = 0) AS database,
       (SELECT json_agg(DISTINCT lower(split_part(setting, '=', 1))) FROM pg_db_role_setting s
         CROSS JOIN LATERAL unnest(s.setconfig) setting
         WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))) AS names`,
  );
  const database = parseList(stored?.database ?? null).map((setting): [string, string] => {
    const at = setting.indexOf('=');
    return [setting.slice(0, at).toLowerCase(), setting.slice(at + 1)];
  });
  return {
    rows: new Map(rows.map((row) => [row.name, row])),
    database: new Map(database),
    stored: new Set(parseList(stored?.names ?? null)),
  };
}

/** Where the value comes from something else than a file, role or client, what this session began with is the default. */
const SERVER_SOURCES = new Set([
  'default',
  'environment variable',
  'command line',
  'override',
  'configuration file',
]);

function defaultOf(settings: Settings, name: string, database: ReadonlyMap<string, string>): string | null {
  const row = settings.rows.get(name);
  if (row === undefined) return null;
  const stored = database.get(name);
  if (stored !== undefined) return stored;
  return row.file ?? (SERVER_SOURCES.has(row.source) ? row.own : row.boot);
}

/** Spelling that makes no difference. */
function normal(value: string | null): string {
  const lower = (value ?? '').toLowerCase().replaceAll(/\s*,\s*/g, ', ');
  if (['on', 'true', 'yes', '1', 't'].includes(lower)) return 'on';
  if (['off', 'false', 'no', 'f'].includes(lower)) return 'off';
  return lower.replace(/^(etc\/|)(utc|gmt|uct|zulu)$/, 'utc');
}

function changeAdvice(name: string, value: string | null): string {
  const quoted = `'${(value ?? '').replaceAll("'", "''")}'`;
  return `On the destination, run ALTER SYSTEM SET ${name} = ${quoted}; SELECT pg_reload_conf(); or set it for the database.`;
}

/** `built`: the shadow's schema, and with it the database's own settings, is on the destination. */
export async function inspectSettings(
  source: pg.Client,
  destination: pg.Client,
  built: boolean,
): Promise<readonly FindingOf[]> {
  const here = await readSettings(source);
  const there = await readSettings(destination);
  const findings: FindingOf[] = [];
  const compare = (names: readonly string[], severity: 'warning' | 'info', effect: string): void => {
    for (const name of names) {
      if (!here.rows.has(name) || !there.rows.has(name)) continue;
      const before = defaultOf(here, name, here.database);
      const after = defaultOf(there, name, built ? there.database : here.database);
      if (normal(before) === normal(after)) continue;
      findings.push({
        severity,
        check: 'setting-differs',
        object: name,
        message: `Sessions begin with ${name} = '${before ?? ''}' on the source and '${after ?? ''}' on the destination: ${effect}.`,
        advice: changeAdvice(name, before),
      });
    }
  };
  compare(RESULT_SETTINGS, 'warning', 'statements may mean or return something else');
  compare(TIME_SETTINGS, 'info', 'statements may be ended sooner or later, or commit with another promise');
  return [...findings, ...unknownSettings(here, there)];
}

/** Settings that the source has and the destination's version has not. */
function unknownSettings(here: Settings, there: Settings): readonly FindingOf[] {
  const findings: FindingOf[] = [];
  for (const name of here.stored) {
    if (name.includes('.') || there.rows.has(name)) continue;
    findings.push({
      severity: 'warning',
      check: 'setting-unknown',
      object: name,
      message: `A role or the database sets ${name} on the source, a setting that the destination does not know: it can’t be carried.`,
      advice: `On the source, run ALTER ROLE … RESET ${name}; or ALTER DATABASE … RESET ${name};`,
    });
  }
  const settable = new Set(['user', 'superuser']);
  const gone = [...here.rows.values()]
    .filter((row) => settable.has(row.context) && !there.rows.has(row.name))
    .map((row) => row.name)
    .sort();
  if (gone.length > 0) {
    findings.push({
      severity: 'info',
      check: 'settings-removed',
      object: gone.slice(0, 10).join(', '),
      message: `A session that sets one of these would fail on the destination, which does not know them: ${gone.join(', ')}.`,
      advice: 'See that the application and its drivers set none of them.',
    });
  }
  return findings;
}
