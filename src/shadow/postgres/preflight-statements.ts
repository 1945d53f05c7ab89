/**
 * The application's own statements, prepared on both sides: what the source understands and the destination doesn't would
 * fail after a switch. Only parsed and analysed, never run. They are known where the capture has kept them in the
 * destination.
 */
import { pg } from '../../core/pg.js';
import { quoteLiteral } from '../../core/postgres.js';
import { rowsOf } from './schema/catalog.js';
import type { FindingOf } from './preflight-server.js';

/** The most used ones of the last days: what an application says is little more. */
const STATEMENTS_MAX = 300;
const STATEMENTS_SQL = `SELECT text FROM understudy.series_statement
  WHERE kind IN ('select', 'insert', 'update', 'delete') AND last_seen > now() - interval '7 days'
  ORDER BY executions DESC, fingerprint LIMIT ${STATEMENTS_MAX}`;

/** An application's names are found by its search path: the database's own, or what is built in. */
const SEARCH_PATH_SQL = `SELECT COALESCE((SELECT substr(c, 13) FROM pg_db_role_setting s
    JOIN pg_database d ON d.oid = s.setdatabase AND d.datname = current_database() AND s.setrole = 0
    CROSS JOIN LATERAL unnest(s.setconfig) AS c WHERE c LIKE 'search_path=%'), '"$user", public') AS path`;

const PROBE = 'understudy_probe';
/** The analysis takes the locks that running it would: nobody is to wait behind ours. */
const LOCK_TIMEOUT_MS = 100;

/** What a statement that can't be understood is refused with: no such relation, column, function, type or schema; ambiguous. */
const NOT_UNDERSTOOD: ReadonlySet<string> = new Set([
  '42P01',
  '42703',
  '42883',
  '42704',
  '3F000',
  '42702',
  '42725',
  '42804',
  '42809',
]);

/** Findings about statements that only the source understands; none where no statements are kept. */
export async function inspectStatements(
  source: pg.Client,
  destination: pg.Client,
): Promise<readonly FindingOf[]> {
  const [kept] = await rowsOf<{ found: string }>(
    destination,
    'the captured statements',
    `SELECT to_regclass('understudy.series_statement') IS NOT NULL AS found`,
  );
  if (kept?.found !== 't') return [];
  const statements = await rowsOf<{ text: string }>(destination, 'the captured statements', STATEMENTS_SQL);
  const [setting] = await rowsOf<{ path: string }>(source, 'the search path', SEARCH_PATH_SQL);
  const findings: FindingOf[] = [];
  for (const { text } of statements) {
    // One statement alone can be prepared; what follows another would be run.
    if (text.includes(';')) continue;
    const there = await refusal(destination, text, setting?.path ?? '');
    if (there === null || (await refusal(source, text, setting?.path ?? '')) !== null) continue;
    findings.push({
      severity: 'warning',
      check: 'statement-not-understood',
      object: shortened(text),
      message: `The destination does not understand a statement of the application’s: ${there}.`,
      advice: 'Run it on both sides, and make on the destination what it misses, or change the statement.',
    });
  }
  return findings;
}

const SHOWN_MAX = 200;

function shortened(text: string): string {
  const line = text.replaceAll(/\s+/g, ' ').trim();
  return line.length > SHOWN_MAX ? `${line.slice(0, SHOWN_MAX)}…` : line;
}

/** What is kept has `?` for every value. An operator of that name makes both sides refuse the text, which tells nothing. */
function parameterised(text: string): string {
  let number = 0;
  return text.replaceAll(/"(?:[^"]|"")*"|\?/g, (found) => (found === '?' ? `$${++number}` : found));
}

/** The server's reason not to understand `text`, whose constants are parameters; null where it does, or can't tell. */
async function refusal(client: pg.Client, text: string, searchPath: string): Promise<string | null> {
  // One message: there may be hundreds of statements.
  const script = [
    'BEGIN READ ONLY',
    `SET LOCAL lock_timeout = ${LOCK_TIMEOUT_MS}`,
    `SELECT set_config('search_path', ${quoteLiteral(searchPath)}, true)`,
    `PREPARE ${PROBE} AS ${parameterised(text)}`,
    `DEALLOCATE ${PROBE}`,
    'ROLLBACK',
  ];
  try {
    await client.query(script.join(';\n'));
    return null;
  } catch (error) {
    if (!(error instanceof pg.DatabaseError)) throw error;
    await client.query('ROLLBACK');
    return NOT_UNDERSTOOD.has(error.code ?? '') ? error.message : null;
  }
}
