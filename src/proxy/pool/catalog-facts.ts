/**
 * What a database's catalogs say of the names a statement may use: which can neither write, lock, wait nor touch
 * session state, whatever stands behind them.
 *
 * By name, not by signature or schema: a name is harmless only if everything that bears it is. So neither search_path
 * nor overload resolution matters.
 *
 * - functions: harmless are those of pg_catalog that are IMMUTABLE or STABLE and read nothing private to a session.
 * - words that must not occur at all: functions that `row.name` could call, system views and information_schema,
 *   foreign tables and what inherits from them, every view or table under row security whose definition or policies
 *   don't pass the same test, and types that run something when a value is made into them: domains whose checks don't
 *   pass it, targets of casts, and what contains such a type. A table's row type counts only where it is used as a type.
 * - operators: those behind which other than C functions, or volatile ones, stand; and the words that run them unseen.
 * - a cast or an operator class that runs such a function unasked forbids sharing altogether.
 */
import { shapeOfRead, type StatementShape } from './sql-shape.js';

export interface CatalogFacts {
  /** Of the objects read; equal: nothing changed. */
  readonly fingerprint: string;
  readonly harmlessFunctions: ReadonlySet<string>;
  readonly otherFunctions: ReadonlySet<string>;
  readonly unsafeWords: ReadonlySet<string>;
  /** Tables whose row type runs something when a value is made into it. */
  readonly unsafeRowTypes: ReadonlySet<string>;
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

/** Which types columns have matters only where making a value of one may run something. */
const MEMBERS = `CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE contypid >= 16384)
                        OR EXISTS (SELECT FROM pg_catalog.pg_cast WHERE oid >= 16384) THEN
      (SELECT coalesce(pg_catalog.sum(pg_catalog.hashtext(o.attrelid::text || ':' || o.attnum::text || ':' || o.atttypid::text)::bigint), 0)::text
         FROM pg_catalog.pg_attribute o WHERE o.atttypid >= 16384 AND o.attnum > 0) ELSE '' END`;

const FAR_CHILDREN = `CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_class WHERE relkind = 'f') THEN
      (SELECT coalesce(pg_catalog.sum(pg_catalog.hashtext(o.inhrelid::text || ':' || o.inhparent::text)::bigint), 0)::text
         FROM pg_catalog.pg_inherits o) ELSE '' END`;

export const FINGERPRINT_QUERY = `SELECT ${[
  NAMES,
  sumOf('pg_proc'),
  sumOf('pg_class', "AND (o.relkind IN ('v', 'f') OR o.relrowsecurity)"),
  sumOf('pg_rewrite'),
  sumOf('pg_policy'),
  sumOf('pg_operator'),
  sumOf('pg_type', "AND o.typtype <> 'c'"),
  sumOf('pg_cast'),
  sumOf('pg_constraint', 'AND o.contypid <> 0'),
  sumOf('pg_amproc'),
  sumOf('pg_amop'),
  MEMBERS,
  FAR_CHILDREN,
].join(" || ' ' || ")}`;

/** Functions of pg_catalog that are stable and yet tell or touch what belongs to one connection, or run given SQL. */
const PRIVATE_FUNCTIONS =
  '^(pg_backend_pid|pg_prepared_.*|pg_cursor.*|pg_listening_channels|pg_my_temp_schema|pg_is_other_temp_schema' +
  '|pg_trigger_depth|.*current_xact.*|txid_current.*|pg_safe_snapshot.*|pg_stat_get_.*|inet_.*|.*_to_xml.*' +
  '|pg_show_all_settings|show_all.*|pg_terminate.*|pg_cancel.*|pg_sleep.*|lo_.*|pg_get_backend.*|ts_rewrite|ts_stat|pg_input_.*|jsonb?_populate_record.*|jsonb?_to_record.*)$';

export const FACTS_QUERY = `
WITH RECURSIVE fn AS (
  SELECT pg_catalog.lower(p.proname::text) AS name,
         p.oid < 16384 AND p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace AND p.provolatile <> 'v'
           AND p.proname::text !~ '${PRIVATE_FUNCTIONS}' AS harmless,
         p.pronargs >= 1 AND p.pronargs - p.pronargdefaults <= 1
           AND (a.typtype IN ('c', 'p') OR p.provariadic <> 0 OR a.typtype = 'd' AND a.typbasetype >= 16384) AS of_a_row
    FROM pg_catalog.pg_proc p LEFT JOIN pg_catalog.pg_type a ON a.oid = p.proargtypes[0]
   WHERE p.prorettype NOT IN ('pg_catalog.trigger'::pg_catalog.regtype, 'pg_catalog.event_trigger'::pg_catalog.regtype)
), far AS (
  SELECT c.oid, c.relname FROM pg_catalog.pg_class c WHERE c.relkind = 'f'
  UNION
  SELECT c.oid, c.relname FROM far f JOIN pg_catalog.pg_inherits i ON i.inhrelid = f.oid
    JOIN pg_catalog.pg_class c ON c.oid = i.inhparent
), foreign_code AS (
  SELECT p.oid FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang
   WHERE p.oid >= 16384 AND (p.provolatile = 'v' OR l.lanname NOT IN ('internal', 'c'))
), inside AS (
  SELECT t.oid, v.within FROM pg_catalog.pg_type t, LATERAL (VALUES (t.typelem), (t.typbasetype)) v (within)
   WHERE v.within >= 16384
  UNION ALL
  SELECT r.rngtypid, r.rngsubtype FROM pg_catalog.pg_range r WHERE r.rngsubtype >= 16384
  UNION ALL
  SELECT c.reltype, a.atttypid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
   WHERE c.reltype <> 0 AND a.attnum > 0 AND NOT a.attisdropped AND a.atttypid >= 16384
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
SELECT DISTINCT 'operator', o.oprname::text, NULL FROM pg_catalog.pg_operator o JOIN foreign_code n ON n.oid = o.oprcode
UNION ALL
SELECT 'word', pg_catalog.lower(t.typname::text), NULL FROM pg_catalog.pg_type t
  LEFT JOIN pg_catalog.pg_proc i ON i.oid = t.typinput
 WHERE t.oid >= 16384 AND (t.typtype = 'm' OR t.typtype = 'b' AND t.typelem = 0 AND i.provolatile = 'v')
UNION ALL
SELECT 'word', pg_catalog.lower(t.typname::text), NULL FROM pg_catalog.pg_type t
  JOIN pg_catalog.pg_range r ON r.rngtypid = t.oid JOIN foreign_code n ON n.oid = r.rngcanonical
UNION ALL
SELECT 'domain', pg_catalog.lower(t.typname::text), pg_catalog.pg_get_expr(k.conbin, 0)
  FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_type t ON t.oid = k.contypid WHERE k.contype = 'c'
UNION ALL
SELECT DISTINCT CASE WHEN c.relkind IN ('r', 'p', 'f', 'v', 'm') THEN 'row' ELSE 'type' END,
       pg_catalog.lower(t.typname::text), pg_catalog.lower(i.typname::text)
  FROM inside n JOIN pg_catalog.pg_type t ON t.oid = n.oid JOIN pg_catalog.pg_type i ON i.oid = n.within
  LEFT JOIN pg_catalog.pg_class c ON c.oid = t.typrelid
UNION ALL
SELECT DISTINCT 'word', pg_catalog.lower(t.typname::text), NULL FROM pg_catalog.pg_cast k
  JOIN foreign_code n ON n.oid = k.castfunc JOIN pg_catalog.pg_type t ON t.oid = k.casttarget
UNION ALL
SELECT 'by-itself', 'the operator class ' || f.opfname::text, NULL FROM pg_catalog.pg_amproc s
  JOIN foreign_code n ON n.oid = s.amproc JOIN pg_catalog.pg_opfamily f ON f.oid = s.amprocfamily
UNION ALL
SELECT 'by-itself', 'the operator class ' || f.opfname::text, NULL FROM pg_catalog.pg_amop s
  JOIN pg_catalog.pg_operator o ON o.oid = s.amopopr JOIN foreign_code n ON n.oid = o.oprcode
  JOIN pg_catalog.pg_opfamily f ON f.oid = s.amopfamily
UNION ALL
SELECT 'by-itself', 'the cast ' || pg_catalog.format_type(k.castsource, NULL) || ' to ' || pg_catalog.format_type(k.casttarget, NULL), NULL
  FROM pg_catalog.pg_cast k JOIN foreign_code n ON n.oid = k.castfunc
 WHERE k.castcontext <> 'e' OR k.casttarget < 16384`;

type Row = readonly (string | null)[];

interface Defined {
  readonly name: string;
  /** Null: it has none that could be judged. */
  readonly shape: StatementShape | null;
  /** What it is made of, where it is a type. */
  readonly within?: string;
  /** A table's: it counts only where the name stands for its row type. */
  readonly row?: true;
}

/** Words that run an operator without its name. */
const HIDDEN_OPERATORS: Readonly<Record<string, readonly string[]>> = {
  in: ['=', '<>'],
  nullif: ['='],
  case: ['='],
  using: ['='],
  natural: ['='],
  distinct: ['='],
  between: ['<', '>', '<=', '>='],
  like: ['~~', '!~~'],
  ilike: ['~~*', '!~~*'],
  similar: ['~', '!~'],
};

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
      case 'domain':
        defined.push({ name, shape: shapeOfRead(`SELECT ${text ?? ''}`) });
        break;
      case 'type':
        defined.push({ name, shape: null, within: text ?? '' });
        break;
      case 'row':
        defined.push({ name, shape: null, within: text ?? '', row: true });
        break;
      case 'by-itself':
        obstacle ??= `${name} runs a function by itself`;
        break;
      default:
        unsafeWords.add(name);
    }
  }
  for (const [word, operators] of Object.entries(HIDDEN_OPERATORS)) {
    if (operators.some((operator) => unsafeOperators.includes(operator))) unsafeWords.add(word);
  }
  const unsafeRowTypes = new Set<string>();
  const facts = {
    fingerprint,
    harmlessFunctions,
    otherFunctions,
    unsafeWords,
    unsafeRowTypes,
    unsafeOperators,
    obstacle,
  };
  condemn(defined, facts);
  return facts;
}

/** A view over an unsafe view is unsafe itself, and a type made of an unsafe one, to any depth. */
function condemn(
  defined: readonly Defined[],
  facts: CatalogFacts & { readonly unsafeWords: Set<string>; readonly unsafeRowTypes: Set<string> },
): void {
  const { unsafeWords, unsafeRowTypes } = facts;
  for (let changed = true; changed;) {
    changed = false;
    for (const { name, shape, within, row } of defined) {
      const unsafe = row === true ? unsafeRowTypes : unsafeWords;
      if (unsafe.has(name)) continue;
      const harmless =
        within === undefined
          ? shape !== null && namesOnlyHarmless(shape, facts)
          : !unsafeWords.has(within) && !unsafeRowTypes.has(within);
      if (harmless) continue;
      unsafe.add(name);
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
  for (const word of shape.typeWords) if (facts.unsafeRowTypes.has(word)) return false;
  for (const operator of shape.operators) {
    // What is scanned as one may be several: `=-`.
    if (facts.unsafeOperators.some((unsafe) => operator.includes(unsafe))) return false;
  }
  return true;
}
