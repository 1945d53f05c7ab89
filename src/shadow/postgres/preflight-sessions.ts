/**
 * Where sessions of this database may hold state that `pg_settings` does not show (traps 18 and 20).
 *
 * Names of dotted settings are read from whatever text the catalogs hold: they can't be listed by the server, only asked
 * for by name. A body is searched, not parsed: a name too many costs one question that answers null; a function whose
 * settings are computed at run time is named as stateful instead.
 */
import type pg from 'pg';
import { notOfExtension, rowsOf, userSchema } from './schema/catalog.js';

export interface SessionHints {
  /** Dotted settings, lower-case, that function bodies, policies, views, defaults or stored settings name. */
  readonly dottedSettings: string[];
  /** Functions, as `schema.name(arguments)`, whose bodies may leave state in a session. */
  readonly statefulFunctions: string[];
}

/** `text` is a routine's body where `routine` is its name, else an expression or a stored setting. */
const TEXTS_SQL = `
SELECT format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)) AS routine,
  COALESCE(pg_get_function_sqlbody(p.oid), p.prosrc) AS text
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
WHERE l.lanname NOT IN ('c', 'internal') AND p.prokind <> 'a' AND ${userSchema('n')} AND ${notOfExtension('pg_proc', 'p.oid')}
UNION ALL
SELECT NULL, 'SET ' || replace(setting, '=', ' = ') FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
CROSS JOIN LATERAL unnest(p.proconfig) setting WHERE ${userSchema('n')}
UNION ALL
SELECT NULL, 'SET ' || replace(setting, '=', ' = ') FROM pg_db_role_setting s CROSS JOIN LATERAL unnest(s.setconfig) setting
WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
UNION ALL
SELECT NULL, concat_ws(' ', pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)) FROM pg_policy p
UNION ALL
SELECT NULL, pg_get_viewdef(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('v', 'm') AND ${userSchema('n')} AND ${notOfExtension('pg_class', 'c.oid')}
UNION ALL
SELECT NULL, pg_get_ruledef(r.oid) FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class
JOIN pg_namespace n ON n.oid = c.relnamespace WHERE r.rulename <> '_RETURN' AND ${userSchema('n')}
UNION ALL
SELECT NULL, pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef d JOIN pg_class c ON c.oid = d.adrelid
JOIN pg_namespace n ON n.oid = c.relnamespace WHERE ${userSchema('n')}
UNION ALL
SELECT NULL, pg_get_constraintdef(k.oid) FROM pg_constraint k JOIN pg_namespace n ON n.oid = k.connamespace
WHERE k.contype = 'c' AND ${userSchema('n')}
UNION ALL
SELECT NULL, pg_get_triggerdef(t.oid) FROM pg_trigger t WHERE NOT t.tgisinternal AND t.tgqual IS NOT NULL`;

const DOTTED = String.raw`([a-z_][\w$]*(?:\.[a-z_][\w$]*)+)`;
/** Quotes are doubled inside a string that a body executes. */
const NAME_PATTERNS: readonly RegExp[] = [
  new RegExp(String.raw`\b(?:set_config|current_setting)\s*\(\s*e?'{1,2}${DOTTED}'`, 'gi'),
  new RegExp(
    String.raw`\bset\s+(?:local\s+|session\s+)?"?([a-z_][\w$]*"?(?:\."?[a-z_][\w$]*)+)"?\s*(?:=|to\b)`,
    'gi',
  ),
  new RegExp(String.raw`\b(?:reset|show)\s+${DOTTED}`, 'gi'),
];

/** Statements that leave something in the session: temporary objects, subscriptions, locks, plans, cursors. */
const STATEFUL_PATTERNS: readonly RegExp[] = [
  /\bcreate\s+(?:(?:local|global)\s+)?temp(?:orary)?\b/i,
  /\binto\s+temp(?:orary)?\b/i,
  /\bpg_temp\s*\./i,
  /(?:^|[;'"]|\b(?:begin|then|else|loop|execute))\s*(?:un)?listen\s+["\w]/i,
  /\bpg_(?:try_)?advisory_lock(?:_shared)?\s*\(/i,
  /\bpg_advisory_unlock\w*\s*\(/i,
  /\bdblink_connect\w*\s*\(/i,
  /\bwith\s+hold\b/i,
  /(?:^|[;'"]|\b(?:begin|then|else|loop))\s*(?:prepare|load|discard|deallocate)\s+["'\w]/i,
  /(?:^|[;'"]|\b(?:begin|then|else|loop))\s*reset\s+["\w]/i,
  // Not SET LOCAL, SET TRANSACTION or SET CONSTRAINTS, which end with the transaction.
  /(?:^|[;'"]|\b(?:begin|then|else|loop))\s*set\s+(?!local\b|transaction\b|constraints\b)["\w]/i,
];

/** Comments are blanked, so that what they talk about doesn't count. Not exact inside strings, which only adds names. */
function withoutComments(text: string): string {
  return text.replace(/\/\*[\s\S]*?\*\//g, ' ').replace(/--[^\n]*/g, ' ');
}

/** Arguments of the call whose opening parenthesis is at `open`, or what there is of them. */
function callArguments(text: string, open: number): readonly string[] {
  const parts: string[] = [];
  let depth = 0;
  let quoted = false;
  let start = open + 1;
  for (let at = open; at < text.length; at++) {
    const char = text[at];
    if (char === "'") quoted = !quoted;
    if (quoted) continue;
    if (char === '(') depth += 1;
    if (char === ')') depth -= 1;
    if (depth === 0 || (depth === 1 && char === ',')) {
      parts.push(text.slice(start, at).trim());
      start = at + 1;
    }
    if (depth === 0) break;
  }
  return parts;
}

/** set_config(…, true) lasts for the transaction, under a known name; anything else may outlive it. */
function setsForSession(text: string): boolean {
  for (const match of text.matchAll(/\bset_config\s*\(/gi)) {
    const parts = callArguments(text, match.index + match[0].length - 1);
    if (!/^'?(?:true|t)'?(?:::\w+)?$/i.test(parts[2] ?? '')) return true;
  }
  return false;
}

function dottedNames(text: string): readonly string[] {
  return NAME_PATTERNS.flatMap((pattern) =>
    [...text.matchAll(pattern)].map((match) => (match[1] ?? '').replaceAll('"', '').toLowerCase()),
  ).filter((name) => name.includes('.'));
}

/** Reads catalogs only. Sorted, each name once. Throws `source-query-failed`. */
export async function readSessionHints(client: pg.Client): Promise<SessionHints> {
  const rows = await rowsOf<{ routine: string | null; text: string | null }>(
    client,
    'session state',
    TEXTS_SQL,
  );
  const dotted = new Set<string>();
  const stateful = new Set<string>();
  for (const row of rows) {
    const text = withoutComments(row.text ?? '');
    for (const name of dottedNames(text)) dotted.add(name);
    if (row.routine === null) continue;
    if (setsForSession(text) || STATEFUL_PATTERNS.some((pattern) => pattern.test(text)))
      stateful.add(row.routine);
  }
  return { dottedSettings: [...dotted].sort(), statefulFunctions: [...stateful].sort() };
}
