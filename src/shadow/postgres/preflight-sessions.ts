/**
 * Where sessions of this database may hold state that `pg_settings` does not show (traps 18 and 20).
 *
 * Names of dotted settings are read from whatever text the catalogs hold: they can't be listed by the server, only asked
 * for by name. A body is searched, not parsed: a name too many costs one question that answers null; a function whose
 * settings are computed at run time is named as stateful instead.
 */
import type pg from 'pg';
import { notOfExtension, rowsOf, userSchema } from './schema/catalog.js';
import { readUses, statefulNames } from './stateful-names.js';

export interface SessionHints {
  /** Dotted settings, lower-case, that function bodies, policies, views, defaults or stored settings name. */
  readonly dottedSettings: string[];
  /** Functions, as `schema.name(arguments)`, whose bodies may leave state in a session. */
  readonly statefulFunctions: string[];
  /** All names by which a statement may come to run one of them (stateful-names.ts). */
  readonly statefulNames: string[];
}

/**
 * `text` is a routine's body where `routine` is its name, else an expression or a stored setting; `name` is what a statement
 * names to run it. Where `own` is false, an extension has made it.
 */
const TEXTS_SQL = `
SELECT format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)) AS routine,
  COALESCE(pg_get_function_sqlbody(p.oid), p.prosrc) AS text, p.proname::text AS name,
  ${notOfExtension('pg_proc', 'p.oid')} AS own
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
WHERE l.lanname NOT IN ('c', 'internal') AND p.prokind <> 'a' AND ${userSchema('n')}
UNION ALL
SELECT NULL, 'SET ' || replace(setting, '=', ' = '), NULL, true FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
CROSS JOIN LATERAL unnest(p.proconfig) setting WHERE ${userSchema('n')}
UNION ALL
SELECT NULL, 'SET ' || replace(setting, '=', ' = '), NULL, true FROM pg_db_role_setting s CROSS JOIN LATERAL unnest(s.setconfig) setting
WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
UNION ALL
SELECT NULL, concat_ws(' ', pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)), c.relname::text, true
FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid
UNION ALL
SELECT NULL, pg_get_viewdef(c.oid), c.relname::text, true FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('v', 'm') AND ${userSchema('n')} AND ${notOfExtension('pg_class', 'c.oid')}
UNION ALL
SELECT NULL, pg_get_ruledef(r.oid), c.relname::text, true FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class
JOIN pg_namespace n ON n.oid = c.relnamespace WHERE r.rulename <> '_RETURN' AND ${userSchema('n')}
UNION ALL
SELECT NULL, pg_get_expr(d.adbin, d.adrelid), c.relname::text, true FROM pg_attrdef d JOIN pg_class c ON c.oid = d.adrelid
JOIN pg_namespace n ON n.oid = c.relnamespace WHERE ${userSchema('n')}
UNION ALL
SELECT NULL, pg_get_constraintdef(k.oid), COALESCE(c.relname, t.typname)::text, true FROM pg_constraint k
JOIN pg_namespace n ON n.oid = k.connamespace LEFT JOIN pg_class c ON c.oid = k.conrelid LEFT JOIN pg_type t ON t.oid = k.contypid
WHERE k.contype = 'c' AND ${userSchema('n')}
UNION ALL
SELECT NULL, pg_get_expr(t.typdefaultbin, 0), t.typname::text, true FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
WHERE t.typtype = 'd' AND t.typdefaultbin IS NOT NULL AND ${userSchema('n')}
UNION ALL
SELECT NULL, pg_get_triggerdef(t.oid), c.relname::text, true FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid WHERE NOT t.tgisinternal AND t.tgqual IS NOT NULL`;

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
  /(?:^|[;'"$]|\b(?:begin|then|else|loop))\s*set\s+(?!local\b|transaction\b|constraints\b)["\w%'$]/i,
  /\bupdate\s+(?:only\s+)?(?:pg_catalog\s*\.\s*)?"?pg_settings\b/i,
  /\b(?:set_limit|set_user|reset_user)\s*\(/i,
  // SQL that is not there to be read: it may do anything. A literal, alone or as a format, shows at least what it does.
  /\bexecute\s+(?!function\b|procedure\b|on\b|(?:pg_catalog\s*\.\s*)?format\s*\(\s*(?:e?'|\$)|e?'|\$\w*\$)["\w$(]/i,
  /\bexecute\b[^;]*['$\s.]%(?:\d+\$)?[sI]\s*\(/i,
  /\b(?:plpy\.(?:execute|prepare|cursor)|spi_(?:exec|query|prepare)\w*|plv8\.(?:execute|prepare))\s*\(\s*(?!["'\x60])/i,
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

interface TextRow {
  readonly routine: string | null;
  readonly text: string | null;
  readonly name: string | null;
  readonly own: string;
}

/** Reads catalogs only. Sorted, each name once. Throws `source-query-failed`. */
export async function readSessionHints(client: pg.Client): Promise<SessionHints> {
  const rows = await rowsOf<TextRow>(client, 'session state', TEXTS_SQL);
  const uses = await readUses(client);
  const dotted = new Set<string>();
  const reported = new Set<string>();
  const texts = [];
  for (const { routine, text: written, name, own } of rows) {
    const text = withoutComments(written ?? '');
    for (const each of dottedNames(text)) dotted.add(each);
    const stateful =
      setsForSession(text) || (routine !== null && STATEFUL_PATTERNS.some((pattern) => pattern.test(text)));
    if (name !== null) texts.push({ name, text, routine: routine !== null, stateful });
    if (routine !== null && stateful && own === 't') reported.add(routine);
  }
  return {
    dottedSettings: [...dotted].sort(),
    statefulFunctions: [...reported].sort(),
    statefulNames: statefulNames(texts, uses),
  };
}
