/**
 * By which names a statement may come to run a routine that leaves state in its session: the routine's own, those of what
 * calls it, of tables whose triggers, rules, policies, defaults or checks do, of views over any of these, and so on.
 *
 * By name, without schema or signature: what bears the name of one that counts, counts. Texts are searched for words, not
 * parsed, so a word too many costs a question that finds nothing.
 */
import type pg from 'pg';
import { rowsOf, userSchema } from './schema/catalog.js';

/** Stands for all names: every statement may change what its session holds. */
export const EVERY_NAME = '*';
const NAMES_MAX = 2000;

/** What a name stands for, by a text out of the catalogs. */
export interface NamedText {
  readonly name: string;
  readonly text: string;
  /** A routine, which counts only where it seems to be called. */
  readonly routine: boolean;
  /** The text itself may leave state. */
  readonly stateful: boolean;
}

/** Whoever uses `name` runs `uses`. */
export interface Use {
  readonly name: string;
  readonly uses: string;
  readonly usesRoutine: boolean;
}

const DDL_VERBS = `('create'), ('alter'), ('drop'), ('comment'), ('grant'), ('revoke'), ('security'), ('import'), ('reindex'), ('refresh'), ('into')`;

/** Triggers, event triggers, aggregates, operators, casts; partitions, inheritance, cascades; columns of domains. */
const USES_SQL = `
SELECT c.relname::text AS name, p.proname::text AS uses, 't' AS routine FROM pg_trigger t
  JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_proc p ON p.oid = t.tgfoid WHERE NOT t.tgisinternal AND t.tgenabled <> 'D'
UNION
SELECT v.verb, p.proname::text, 't' FROM pg_event_trigger e JOIN pg_proc p ON p.oid = e.evtfoid, (VALUES ${DDL_VERBS}) v (verb)
 WHERE e.evtenabled <> 'D'
UNION
SELECT a.proname::text, p.proname::text, 't' FROM pg_aggregate g JOIN pg_proc a ON a.oid = g.aggfnoid
  JOIN pg_proc p ON p.oid IN (g.aggtransfn, g.aggfinalfn, g.aggmtransfn, g.aggminvtransfn, g.aggmfinalfn) WHERE p.oid >= 16384
UNION
SELECT '${EVERY_NAME}', p.proname::text, 't' FROM pg_operator o JOIN pg_proc p ON p.oid = o.oprcode
  JOIN pg_language l ON l.oid = p.prolang WHERE o.oid >= 16384 AND l.lanname NOT IN ('c', 'internal')
UNION
SELECT '${EVERY_NAME}', p.proname::text, 't' FROM pg_cast k JOIN pg_proc p ON p.oid = k.castfunc
  JOIN pg_language l ON l.oid = p.prolang WHERE k.oid >= 16384 AND l.lanname NOT IN ('c', 'internal')
UNION
SELECT p.relname::text, c.relname::text, 'f' FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent
  JOIN pg_class c ON c.oid = i.inhrelid WHERE c.relkind IN ('r', 'p', 'f')
UNION
SELECT p.relname::text, c.relname::text, 'f' FROM pg_constraint k JOIN pg_class p ON p.oid = k.confrelid
  JOIN pg_class c ON c.oid = k.conrelid
 WHERE k.contype = 'f' AND (k.confdeltype IN ('c', 'n', 'd') OR k.confupdtype IN ('c', 'n', 'd'))
UNION
SELECT c.relname::text, t.typname::text, 'f' FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_type t ON t.oid = a.atttypid
 WHERE t.typtype = 'd' AND a.attnum > 0 AND NOT a.attisdropped AND ${userSchema('n')}`;

/** Reads catalogs only. Throws `source-query-failed`. */
export async function readUses(client: pg.Client): Promise<readonly Use[]> {
  const rows = await rowsOf<{ name: string; uses: string; routine: string }>(
    client,
    'what runs routines',
    USES_SQL,
  );
  return rows.map(({ name, uses, routine }) => ({ name, uses, usesRoutine: routine === 't' }));
}

/**
 * Lower-case names, sorted; only {@link EVERY_NAME} where there are too many, or where something runs such a routine that no
 * name shows.
 */
export function statefulNames(texts: readonly NamedText[], uses: readonly Use[]): string[] {
  const found = new Set(texts.filter(({ stateful }) => stateful).map(({ name }) => name.toLowerCase()));
  if (found.size === 0) return [];
  const names = [...texts.map(({ name }) => name), ...uses.flatMap(({ name, uses: used }) => [name, used])];
  const known = new Set(names.map(markOf));
  /** Who uses a word at all, and who seems to call it. */
  const users = new Map<string, Set<string>>();
  const callers = new Map<string, Set<string>>();
  for (const { name, text } of texts) {
    for (const [, word = '', open] of text.toLowerCase().matchAll(WORDS)) {
      if (!known.has(word)) continue;
      add(users, word, name.toLowerCase());
      if (open !== undefined) add(callers, word, name.toLowerCase());
    }
  }
  for (const { name, uses: used, usesRoutine } of uses)
    add(usesRoutine ? callers : users, markOf(used), name.toLowerCase());
  const relations = new Set([
    ...texts.filter(({ routine }) => !routine).map(({ name }) => name.toLowerCase()),
    ...uses.map(({ name }) => name.toLowerCase()),
  ]);
  for (const name of found) {
    if (name === EVERY_NAME || found.size > NAMES_MAX) return [EVERY_NAME];
    for (const user of callers.get(markOf(name)) ?? []) found.add(user);
    if (!relations.has(name)) continue;
    for (const user of users.get(markOf(name)) ?? []) found.add(user);
  }
  return [...found].sort();
}

function add(all: Map<string, Set<string>>, key: string, name: string): void {
  const known = all.get(key);
  if (known === undefined) all.set(key, new Set([name]));
  else known.add(name);
}

/** A word, and the parenthesis that makes it a call. */
const WORDS = /([\p{L}_][\p{L}\p{N}_]*)"?(?:\s*(\())?/gu;

/** The longest word of a name: any text with the name in it has that too. */
function markOf(name: string): string {
  const [longest = name] = [...name.toLowerCase().matchAll(WORDS)]
    .map(([, word = '']) => word)
    .toSorted((one, other) => other.length - one.length);
  return longest;
}
