/**
 * Which subset a table belongs to: as the configuration says, and where it says nothing, as its parent does. Read from
 * the source's catalogs by everyone who asks, so that router, streams and barriers draw the same border.
 */
import type pg from 'pg';
import { REST, WHOLE_DATABASE, type SubsetId, type SubsetRules, type SubsetTables } from './ports.js';
import { UnderstudyError } from './errors.js';

/** On either side: foreign keys that are not enforced while their subsets are parted. */
export const UNENFORCED_KEYS = 'understudy.unenforced_key';

/** As far as parents of parents are followed. */
const DEPTH_MAX = 32;

const TABLES_SQL = `
  SELECT n.nspname AS schema, c.relname AS name,
    (SELECT pg_catalog.json_agg(pn.nspname || '.' || pc.relname ORDER BY i.inhseqno)
       FROM pg_catalog.pg_inherits i
       JOIN pg_catalog.pg_class pc ON pc.oid = i.inhparent
       JOIN pg_catalog.pg_namespace pn ON pn.oid = pc.relnamespace
      WHERE i.inhrelid = c.oid) AS parents
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
   WHERE c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't'
     AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'understudy')
     AND n.nspname NOT LIKE 'pg\\_toast%' AND n.nspname NOT LIKE 'pg\\_temp%'
   ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"`;

type Row = Readonly<Record<string, string | null>>;

/**
 * The closed list of every configured subset and of `rest`, by the names of the database that `client` is connected to.
 * A partition or child that is named nowhere belongs to where its nearest named parent does. Without `rules` all of them
 * are the subset `all`. Tables that are configured and do not exist are left out.
 */
export async function readSubsetTables(
  client: pg.Client,
  rules: readonly SubsetRules[],
): Promise<readonly SubsetTables[]> {
  const tables = (await client.query<Row>(TABLES_SQL)).rows.map((row) => ({
    schema: row['schema'] ?? '',
    name: row['name'] ?? '',
    parents: JSON.parse(row['parents'] ?? '[]') as readonly string[],
  }));
  if (rules.length === 0)
    return [{ subset: WHOLE_DATABASE, tables: tables.map(({ schema, name }) => ({ schema, name })) }];
  const named = new Map(rules.flatMap(({ subset, tables: names }) => names.map((name) => [name, subset])));
  const parents = new Map(tables.map(({ schema, name, parents: above }) => [`${schema}.${name}`, above]));
  const subsetOf = (name: string, depth: number): SubsetId | undefined => {
    const own = named.get(name);
    if (own !== undefined || depth > DEPTH_MAX) return own;
    for (const parent of parents.get(name) ?? []) {
      const found = subsetOf(parent, depth + 1);
      if (found !== undefined) return found;
    }
    return undefined;
  };
  const found = new Map<SubsetId, { schema: string; name: string }[]>(
    subsetIds(rules).map((subset) => [subset, []]),
  );
  for (const { schema, name } of tables)
    found.get(subsetOf(`${schema}.${name}`, 0) ?? REST)?.push({ schema, name });
  return [...found].map(([subset, members]) => ({ subset, tables: members }));
}

/** Every subset there is under this configuration, `rest` last. */
export function subsetIds(rules: readonly SubsetRules[]): readonly SubsetId[] {
  return rules.length === 0 ? [WHOLE_DATABASE] : [...rules.map(({ subset }) => subset), REST];
}

/**
 * The subset that a request means. Throws `request-invalid` for one that there is not, and where there are several and
 * none was named.
 */
export function subsetAsked(known: readonly SubsetId[], asked: SubsetId | undefined): SubsetId {
  const [only] = known;
  if (asked === undefined) {
    if (only !== undefined && known.length === 1) return only;
    throw new UnderstudyError('request-invalid', `which subset? There are ${known.join(', ')}`, {
      advice: `Name one, as in --subset ${only ?? REST}; they are switched one after another.`,
    });
  }
  if (known.includes(asked)) return asked;
  throw new UnderstudyError('request-invalid', `there is no subset ${asked}: there are ${known.join(', ')}`, {
    advice: 'Name one of them, or add it to `subsets` in the configuration and restart Understudy.',
  });
}

/** Of a subset, or of one that may be configured. */
export type SubsetPolicies = Pick<SubsetRules, 'subset'> & {
  readonly [K in 'foreignKeys' | 'crossing']?: SubsetRules[K] | undefined;
};

/** What holds for a foreign key between two subsets: it is left unenforced where one of them says so. */
export function foreignKeyPolicy(
  policies: readonly SubsetPolicies[],
  one: SubsetId,
  other: SubsetId,
): SubsetRules['foreignKeys'] {
  const says = policies.some(
    ({ subset, foreignKeys }) => foreignKeys === 'unenforced' && (subset === one || subset === other),
  );
  return says && one !== other ? 'unenforced' : 'together';
}

/** What becomes of transactions that touch two subsets: they follow one another where one of them says so. */
export function crossingPolicy(
  policies: readonly SubsetPolicies[],
  one: SubsetId,
  other: SubsetId,
): SubsetRules['crossing'] {
  const says = policies.some(
    ({ subset, crossing }) => crossing === 'follow' && (subset === one || subset === other),
  );
  return says ? 'follow' : 'refuse';
}
