/**
 * How many of the application's captured transactions touch two subsets, which they can't while the two are on different
 * sides. From what capture keeps of pairs of tables, in the destination.
 */
import type pg from 'pg';
import type { Finding, SubsetRules, TableName } from '../core/ports.js';
import { readSubsetTables } from '../core/subsets.js';

/** Transactions in which both tables were used, by `schema.name`. */
export interface TablePair {
  readonly a: string;
  readonly b: string;
  readonly transactions: number;
}

const PAIRS_SQL = `
  SELECT a.name AS a, b.name AS b, c.transactions
  FROM understudy.series_co_access c
  JOIN understudy.series_table a ON a.id = c.a JOIN understudy.series_table b ON b.id = c.b`;
const FINDINGS_MAX = 20;
const UNDEFINED_TABLE = '42P01';
const UNDEFINED_SCHEMA = '3F000';

type Row = Readonly<Record<string, string | null>>;

/** Over control connections. Empty where no subsets are configured or nothing was captured; throws what they throw. */
export async function crossingFindings(
  source: pg.Client,
  destination: pg.Client,
  rules: readonly SubsetRules[],
): Promise<readonly Finding[]> {
  if (rules.length === 0) return [];
  let rows: readonly Row[];
  try {
    rows = (await destination.query<Row>(PAIRS_SQL)).rows;
  } catch (error) {
    const code = typeof error === 'object' && error !== null && 'code' in error ? error.code : undefined;
    if (code === UNDEFINED_TABLE || code === UNDEFINED_SCHEMA) return [];
    throw error;
  }
  const pairs = rows.map((row) => ({
    a: row['a'] ?? '',
    b: row['b'] ?? '',
    transactions: Number(row['transactions']),
  }));
  return crossingsOf(pairs, await readSubsetTables(source, rules));
}

/** One warning for each two subsets, those with the most transactions first. */
export function crossingsOf(
  pairs: readonly TablePair[],
  subsets: readonly { readonly subset: string; readonly tables: readonly TableName[] }[],
): readonly Finding[] {
  const subsetOf = new Map<string, string>(
    subsets.flatMap(({ subset, tables }) =>
      tables.map(({ schema, name }) => [`${schema}.${name}`, subset] as const),
    ),
  );
  const crossings = new Map<string, { total: number; most: TablePair }>();
  for (const pair of pairs) {
    const one = subsetOf.get(pair.a);
    const other = subsetOf.get(pair.b);
    if (one === undefined || other === undefined || one === other || pair.transactions < 1) continue;
    const key = [one, other].sort().join(' and ');
    const known = crossings.get(key);
    const most = known === undefined || pair.transactions > known.most.transactions ? pair : known.most;
    crossings.set(key, { total: (known?.total ?? 0) + pair.transactions, most });
  }
  return [...crossings]
    .sort(([, one], [, other]) => other.most.transactions - one.most.transactions)
    .slice(0, FINDINGS_MAX)
    .map(([object, { total, most }]): Finding => ({
      severity: 'warning',
      check: 'crossing',
      side: 'proxy',
      object,
      // Of a transaction with several such pairs each is counted.
      message:
        `between ${Math.round(most.transactions)} and ${Math.round(total)} captured transactions touched both; most ` +
        `often ${most.a} with ${most.b}. While the two are on different sides, such transactions are refused`,
      advice: 'Switch the two right after one another, or make them one subset in the configuration.',
    }));
}
