/** What differs between the two servers so that the schema, or the application, would not be the same. */
import type pg from 'pg';
import type { Finding } from '../../core/ports.js';
import { quoteIdent } from '../../core/postgres.js';
import { inspectHeadroom } from './preflight-connections.js';
import type { FindingOf } from './preflight-server.js';
import { inspectSettings } from './preflight-settings.js';
import { isBuiltByUs, notEmptyFinding } from './schema/build.js';
import { notOfExtension, readVersionNum, rowsOf, userSchema } from './schema/catalog.js';
import { readSchema } from './schema/read.js';
import { inspectRoles } from './schema/roles.js';

export interface InspectedPair {
  readonly source: pg.Client;
  readonly destination: pg.Client;
  readonly purpose: 'check' | 'cutover';
  readonly connectionReserve: number;
}

function onDestination(finding: FindingOf): Finding {
  return { ...finding, side: 'destination' };
}

interface IdentityRow {
  readonly started: string;
  readonly port: string | null;
  readonly oid: string;
}

/** One database given twice would be fenced against itself. */
async function inspectIdentity({ source, destination }: InspectedPair): Promise<readonly FindingOf[]> {
  const sql = `SELECT pg_postmaster_start_time() AS started, inet_server_port() AS port, d.oid
    FROM pg_database d WHERE d.datname = current_database()`;
  const [here] = await rowsOf<IdentityRow & pg.QueryResultRow>(source, 'the server', sql);
  const [there] = await rowsOf<IdentityRow & pg.QueryResultRow>(destination, 'the server', sql);
  if (here === undefined || there === undefined) return [];
  if (here.started !== there.started || here.port !== there.port || here.oid !== there.oid) return [];
  return [
    {
      severity: 'blocker',
      check: 'same-database',
      object: 'destination',
      message: 'Source and destination are one and the same database.',
      advice: 'Give destination.url the address of the new database.',
    },
  ];
}

async function inspectVersions({ source, destination }: InspectedPair): Promise<readonly FindingOf[]> {
  const here = Math.floor((await readVersionNum(source)) / 10000);
  const there = Math.floor((await readVersionNum(destination)) / 10000);
  if (there >= here) return [];
  return [
    {
      severity: 'blocker',
      check: 'version-order',
      object: `PostgreSQL ${there}`,
      message: `The destination is PostgreSQL ${there}, older than the source’s ${here}: what the source’s schema says may not exist there.`,
      advice: `Use PostgreSQL ${here} or later as the destination.`,
    },
  ];
}

const TABLE_NAMES_SQL = `SELECT format('%I.%I', n.nspname, c.relname) AS name FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't' AND ${userSchema('n')}
    AND ${notOfExtension('pg_class', 'c.oid')} ORDER BY 1`;

/** A sidecar may be building the schema at this very moment: its tables and the record of them appear at once. */
async function inspectEmptiness(
  { source, destination }: InspectedPair,
  built: boolean,
): Promise<readonly Finding[]> {
  if (built) return [];
  const names = await rowsOf<{ name: string }>(source, 'tables', TABLE_NAMES_SQL);
  const wanted = new Set(names.map((row) => row.name));
  const existing = (await rowsOf<{ name: string }>(destination, 'tables', TABLE_NAMES_SQL))
    .map((row) => row.name)
    .filter((name) => wanted.has(name));
  if (existing.length === 0 || (await isBuiltByUs(destination))) return [];
  return [notEmptyFinding(existing)];
}

async function inspectExtensions({ source, destination }: InspectedPair): Promise<readonly FindingOf[]> {
  const used = await rowsOf<{ name: string; version: string }>(
    source,
    'extensions',
    `SELECT extname AS name, extversion AS version FROM pg_extension WHERE extname <> 'plpgsql' ORDER BY 1`,
  );
  const available = await rowsOf<{ name: string; default_version: string; installed_version: string | null }>(
    destination,
    'extensions',
    'SELECT name, default_version, installed_version FROM pg_available_extensions',
  );
  return used.flatMap(({ name, version }): readonly FindingOf[] => {
    const there = available.find((extension) => extension.name === name);
    const object = `extension ${name}`;
    if (there === undefined) {
      return [
        {
          severity: 'blocker',
          check: 'extension-missing',
          object,
          message: `Extension ${name} ${version} of the source is not packaged on the destination’s server.`,
          advice: `Install its package there, or run DROP EXTENSION ${quoteIdent(name)}; on the source where nothing uses it.`,
        },
      ];
    }
    const theirs = there.installed_version ?? there.default_version;
    if (theirs === version) return [];
    return [
      {
        severity: 'warning',
        check: 'extension-version',
        object,
        message: `Extension ${name} is version ${version} on the source and ${theirs} on the destination.`,
        advice: `Read its release notes; to begin alike run ALTER EXTENSION ${quoteIdent(name)} UPDATE TO '${theirs}'; on the source where it is packaged.`,
      },
    ];
  });
}

interface LocaleRow {
  readonly name: string;
  readonly owner: string;
  readonly encoding: string;
  readonly collate: string;
  readonly ctype: string;
  readonly provider: string;
  readonly locale: string | null;
  readonly version: string | null;
}

/** Columns were added in 15 and renamed in 17: looked up in the row's JSON. */
const LOCALE_SQL = `
SELECT d.datname AS name, pg_get_userbyid(d.datdba) AS owner, pg_encoding_to_char(d.encoding) AS encoding,
  d.datcollate AS collate, d.datctype AS ctype, COALESCE(to_jsonb(d) ->> 'datlocprovider', 'c') AS provider,
  COALESCE(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale') AS locale,
  (SELECT pg_collation_actual_version(c.oid) FROM pg_collation c
    WHERE c.collprovider = 'c' AND c.collcollate = d.datcollate AND pg_collation_actual_version(c.oid) IS NOT NULL LIMIT 1) AS version
FROM pg_database d WHERE d.datname = current_database()`;

function localeOf(row: LocaleRow): string {
  const own = row.locale === null || row.provider === 'c' ? '' : ` ${row.locale}`;
  return `${row.provider === 'i' ? 'icu' : row.provider === 'b' ? 'builtin' : 'libc'}${own} ${row.collate}/${row.ctype}`;
}

function inspectLocale(here: LocaleRow, there: LocaleRow): readonly FindingOf[] {
  const findings: FindingOf[] = [];
  if (here.encoding !== there.encoding) {
    findings.push({
      severity: there.encoding === 'UTF8' ? 'warning' : 'blocker',
      check: 'encoding-differs',
      object: 'encoding',
      message: `The source is in ${here.encoding}, the destination in ${there.encoding}${there.encoding === 'UTF8' ? ': text may take more bytes there' : ', which may not hold every character'}.`,
      advice: `Create the destination’s database with ENCODING '${here.encoding}' TEMPLATE template0.`,
    });
  }
  if (localeOf(here) !== localeOf(there)) {
    findings.push({
      severity: 'warning',
      check: 'locale-differs',
      object: 'locale',
      message: `The source sorts and compares text by ${localeOf(here)}, the destination by ${localeOf(there)}: orders, ranges and unique keys of text may come out differently.`,
      advice: `Create the destination’s database with LC_COLLATE '${here.collate}' LC_CTYPE '${here.ctype}' TEMPLATE template0.`,
    });
  } else if (here.version !== null && there.version !== null && here.version !== there.version) {
    findings.push({
      severity: 'warning',
      check: 'collation-version',
      object: here.collate,
      message: `Collation ${here.collate} is version ${here.version} on the source and ${there.version} on the destination: text may sort differently. Verification compares by key, not by order.`,
      advice: 'Check what relies on the order of text: ranges of text keys, unique indexes, partitions.',
    });
  }
  return findings;
}

/** Collations that columns name, of the same name on both sides but of another version. */
async function inspectCollations({ source, destination }: InspectedPair): Promise<readonly FindingOf[]> {
  const sql = (only: string): string => `
    SELECT format('%I.%I', n.nspname, c.collname) AS name, pg_collation_actual_version(c.oid) AS version
    FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace
    WHERE pg_collation_actual_version(c.oid) IS NOT NULL AND ${only}`;
  const used = await rowsOf<{ name: string; version: string }>(
    source,
    'collations',
    sql(`EXISTS (SELECT FROM pg_attribute a JOIN pg_class r ON r.oid = a.attrelid JOIN pg_namespace rn ON rn.oid = r.relnamespace
      WHERE a.attcollation = c.oid AND r.relkind IN ('r', 'p', 'm') AND ${userSchema('rn')})`),
  );
  if (used.length === 0) return [];
  const there = await rowsOf<{ name: string; version: string }>(destination, 'collations', sql('true'));
  return used.flatMap(({ name, version }): readonly FindingOf[] => {
    const other = there.find((collation) => collation.name === name);
    if (other === undefined || other.version === version) return [];
    return [
      {
        severity: 'warning',
        check: 'collation-version',
        object: `collation ${name}`,
        message: `Collation ${name} is version ${version} on the source and ${other.version} on the destination: text may sort differently.`,
        advice: 'Check what relies on the order of text: ranges of text keys, unique indexes, partitions.',
      },
    ];
  });
}

async function inspectDatabases(pair: InspectedPair): Promise<readonly FindingOf[]> {
  const [here] = await rowsOf<LocaleRow & pg.QueryResultRow>(pair.source, 'the database', LOCALE_SQL);
  const [there] = await rowsOf<LocaleRow & pg.QueryResultRow>(pair.destination, 'the database', LOCALE_SQL);
  if (here === undefined || there === undefined) return [];
  const findings = [...inspectLocale(here, there), ...(await inspectCollations(pair))];
  if (here.owner !== there.owner) {
    findings.push({
      severity: 'info',
      check: 'database-owner-differs',
      object: `database ${there.name}`,
      message: `The database belongs to ${here.owner} on the source and to ${there.owner} on the destination: an owner may create schemas and drop the database.`,
      advice: `On the destination, run ALTER DATABASE ${quoteIdent(there.name)} OWNER TO ${quoteIdent(here.owner)};`,
    });
  }
  return findings;
}

/** Everything about the two together. Findings of the schema that can't be carried only before it is built. */
export async function inspectDifferences(pair: InspectedPair): Promise<readonly Finding[]> {
  const { source, destination, purpose, connectionReserve: reserve } = pair;
  const same = await inspectIdentity(pair);
  if (same.length > 0) return same.map(onDestination);
  const built = await isBuiltByUs(destination);
  const unsupported = built ? [] : (await readSchema(source)).unsupported;
  const toDestination = { from: source, to: destination, side: 'destination', purpose, reserve } as const;
  const toSource = { from: destination, to: source, side: 'source', purpose, reserve } as const;
  return [
    ...(await inspectVersions(pair)).map(onDestination),
    ...(await inspectEmptiness(pair, built)),
    ...unsupported,
    ...(await inspectExtensions(pair)).map(onDestination),
    ...(await inspectDatabases(pair)).map(onDestination),
    ...(await inspectSettings(source, destination, built)).map(onDestination),
    ...(await inspectRoles(source, destination, !built)),
    ...(await inspectHeadroom(toDestination)).map(onDestination),
    ...(await inspectHeadroom(toSource)).map((finding): Finding => ({ ...finding, side: 'source' })),
  ];
}
