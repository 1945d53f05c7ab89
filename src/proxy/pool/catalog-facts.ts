/**
 * What a database's catalogs say of the names a statement may use: which can neither write, lock, wait nor touch
 * session state, whatever stands behind them.
 *
 * By name, not by signature or schema: a name is harmless only if everything that bears it is. So neither search_path
 * nor overload resolution matters.
 *
 * - functions: harmless are those of pg_catalog that are IMMUTABLE or STABLE and read nothing private to a session.
 * - words that must not occur at all: functions that `row.name` could call, system views and information_schema,
 *   foreign tables and what inherits from them, domains and types whose input may run anything, and every view or
 *   table under row security whose definition or policies don't pass the same test.
 * - operators: those behind which other than C functions, or volatile ones, stand.
 * - a cast that happens unasked and runs such a function forbids sharing altogether.
 */
import { shapeOfRead, type StatementShape } from './sql-shape.js';

export interface CatalogFacts {
  /** Of the objects read; equal: nothing changed. */
  readonly fingerprint: string;
  readonly harmlessFunctions: ReadonlySet<string>;
  readonly otherFunctions: ReadonlySet<string>;
  readonly unsafeWords: ReadonlySet<string>;
  readonly unsafeOperators: readonly string[];
  /** Why nothing may be shared; null where reads may be. */
  readonly obstacle: string | null;
}

const sumOf = (table: string, more = ''): string =>
  `(SELECT pg_catalog.count(*)::text || '/' || coalesce(pg_catalog.sum(pg_catalog.hashtext(o.oid::text || ':' || o.xmin::text)::bigint), 0)::text
      FROM pg_catalog.${table} o WHERE o.oid >= 16384 ${more})`;

/** A table that comes to hide another of its name is no change of either to the server's prepared statements. */
const NAMES = `(SELECT coalesce(pg_catalog.sum(pg_catalog.hashtext(o.oid::text || ':' || o.relnamespace::text || ':' || o.relname)::bigint), 0)::text
      FROM pg_catalog.pg_class o WHERE o.oid >= 16384 AND o.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND o.relpersistence <> 't')`;

export const FINGERPRINT_QUERY = `SELECT ${[
  NAMES,
  sumOf('pg_proc'),
  sumOf('pg_class', "AND (o.relkind IN ('v', 'f') OR o.relrowsecurity)"),
  sumOf('pg_rewrite'),
  sumOf('pg_policy'),
  sumOf('pg_operator'),
  sumOf('pg_type', "AND o.typtype <> 'c'"),
  sumOf('pg_cast'),
].join(" || ' ' || ")}`;

/** Functions of pg_catalog that are stable and yet tell or touch what belongs to one connection, or run given SQL. */
const PRIVATE_FUNCTIONS =
  '^(pg_backend_pid|pg_prepared_.*|pg_cursor.*|pg_listening_channels|pg_my_temp_schema|pg_is_other_temp_schema' +
  '|pg_trigger_depth|.*current_xact.*|txid_current.*|pg_safe_snapshot.*|pg_stat_get_.*|inet_.*|.*_to_xml.*' +
  '|pg_show_all_settings|show_all.*|pg_terminate.*|pg_cancel.*|pg_sleep.*|lo_.*|pg_get_backend.*|ts_rewrite|ts_stat)$';

export const FACTS_QUERY = `
WITH RECURSIVE fn AS (
  SELECT pg_catalog.lower(p.proname::text) AS name,
         p.oid < 16384 AND p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace AND p.provolatile <> 'v'
           AND p.proname::text !~ '${PRIVATE_FUNCTIONS}' AS harmless,
         p.pronargs >= 1 AND p.pronargs - p.pronargdefaults <= 1 AND a.typtype IN ('c', 'p') AS of_a_row
    FROM pg_catalog.pg_proc p LEFT JOIN pg_catalog.pg_type a ON a.oid = p.proargtypes[0]
   WHERE p.prorettype NOT IN ('pg_catalog.trigger'::pg_catalog.regtype, 'pg_catalog.event_trigger'::pg_catalog.regtype)
), far AS (
  SELECT c.oid, c.relname FROM pg_catalog.pg_class c WHERE c.relkind = 'f'
  UNION
  SELECT c.oid, c.relname FROM far f JOIN pg_catalog.pg_inherits i ON i.inhrelid = f.oid
    JOIN pg_catalog.pg_class c ON c.oid = i.inhparent
)
SELECT CASE WHEN pg_catalog.bool_and(harmless) THEN 'function' ELSE 'other' END, name, NULL::text FROM fn GROUP BY name
UNION ALL
SELECT DISTINCT 'word', name, NULL FROM fn WHERE NOT harmless AND of_a_row
UNION ALL
SELECT DISTINCT 'word', pg_catalog.lower(c.relname::text), NULL FROM pg_catalog.pg_class c
 WHERE c.relkind = 'v' AND c.oid < 16384 AND c.relnamespace = 'pg_catalog'::pg_catalog.regnamespace
UNION ALL
SELECT 'word', pg_catalog.lower(relname::text), NULL FROM far
UNION ALL
SELECT 'view', pg_catalog.lower(c.relname::text), pg_catalog.pg_get_viewdef(c.oid) FROM pg_catalog.pg_class c
 WHERE c.relkind = 'v' AND c.oid >= 16384
UNION ALL
SELECT 'policy', pg_catalog.lower(c.relname::text), pg_catalog.pg_get_expr(y.polqual, y.polrelid)
  FROM pg_catalog.pg_policy y JOIN pg_catalog.pg_class c ON c.oid = y.polrelid WHERE y.polqual IS NOT NULL
UNION ALL
SELECT DISTINCT 'operator', o.oprname::text, NULL FROM pg_catalog.pg_operator o
  JOIN pg_catalog.pg_proc p ON p.oid = o.oprcode JOIN pg_catalog.pg_language l ON l.oid = p.prolang
 WHERE o.oid >= 16384 AND (p.provolatile = 'v' OR l.lanname NOT IN ('internal', 'c'))
UNION ALL
SELECT 'word', pg_catalog.lower(t.typname::text), NULL FROM pg_catalog.pg_type t
  LEFT JOIN pg_catalog.pg_proc i ON i.oid = t.typinput
  LEFT JOIN pg_catalog.pg_class c ON c.oid = t.typrelid
 WHERE t.oid >= 16384
   AND (t.typtype IN ('d', 'r', 'm') OR t.typtype = 'b' AND t.typelem = 0 AND i.provolatile = 'v' OR c.relkind = 'c')
UNION ALL
SELECT 'cast', pg_catalog.format_type(k.castsource, NULL) || ' to ' || pg_catalog.format_type(k.casttarget, NULL), NULL
  FROM pg_catalog.pg_cast k JOIN pg_catalog.pg_proc p ON p.oid = k.castfunc
  JOIN pg_catalog.pg_language l ON l.oid = p.prolang
 WHERE k.oid >= 16384 AND k.castcontext <> 'e' AND (p.provolatile = 'v' OR l.lanname NOT IN ('internal', 'c'))`;

type Row = readonly (string | null)[];

interface Defined {
  readonly name: string;
  /** Null: it has none that could be judged. */
  readonly shape: StatementShape | null;
}

/** Reads the answer to {@link FACTS_QUERY}. */
export function readFacts(fingerprint: string, rows: readonly Row[]): CatalogFacts {
  const harmlessFunctions = new Set<string>();
  const otherFunctions = new Set<string>();
  const unsafeWords = new Set<string>(['information_schema', 'pg_toast', 'pg_temp']);
  const unsafeOperators: string[] = [];
  const defined: Defined[] = [];
  let obstacle: string | null = null;
  for (const [kind, name, text] of rows) {
    if (typeof name !== 'string') continue;
    switch (kind) {
      case 'function':
        harmlessFunctions.add(name);
        break;
      case 'other':
        otherFunctions.add(name);
        break;
      case 'operator':
        unsafeOperators.push(name);
        break;
      case 'view':
        defined.push({ name, shape: shapeOfRead((text ?? '').trim()) });
        break;
      case 'policy':
        defined.push({ name, shape: shapeOfRead(`SELECT ${text ?? ''}`) });
        break;
      case 'cast':
        obstacle ??= `the cast ${name} runs a function by itself`;
        break;
      default:
        unsafeWords.add(name);
    }
  }
  const facts = { fingerprint, harmlessFunctions, otherFunctions, unsafeWords, unsafeOperators, obstacle };
  condemn(defined, facts);
  return facts;
}

/** A view over an unsafe view is unsafe itself, to any depth. */
function condemn(
  defined: readonly Defined[],
  facts: CatalogFacts & { readonly unsafeWords: Set<string> },
): void {
  for (let changed = true; changed;) {
    changed = false;
    for (const { name, shape } of defined) {
      if (facts.unsafeWords.has(name) || (shape !== null && namesOnlyHarmless(shape, facts))) continue;
      facts.unsafeWords.add(name);
      changed = true;
    }
  }
}

/** Whether a read of this shape can neither write, lock, wait nor touch session state. */
export function isHarmless(shape: StatementShape, facts: CatalogFacts): boolean {
  return facts.obstacle === null && namesOnlyHarmless(shape, facts);
}

function namesOnlyHarmless(shape: StatementShape, facts: CatalogFacts): boolean {
  for (const call of shape.calls) if (!facts.harmlessFunctions.has(call)) return false;
  for (const word of shape.keywordCalls) if (facts.otherFunctions.has(word)) return false;
  for (const word of shape.words) if (facts.unsafeWords.has(word)) return false;
  for (const operator of shape.operators) {
    // What is scanned as one may be several: `=-`.
    if (facts.unsafeOperators.some((unsafe) => operator.includes(unsafe))) return false;
  }
  return true;
}
