/**
 * How many of the application's captured transactions touch two subsets, which they can't while the two are on different
 * sides. From what capture keeps of pairs of tables, in the destination.
 */
import type pg from 'pg';
import type { Finding, SubsetRules, TableName } from '../core/ports.js';
import { crossingPolicy, readSubsetTables } from '../core/subsets.js';

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
const ANY_SQL = 'SELECT FROM understudy.series_table LIMIT 1';
const FINDINGS_MAX = 20;
const UNDEFINED_TABLE = '42P01';
const UNDEFINED_SCHEMA = '3F000';

type Row = Readonly<Record<string, string | null>>;

/** What is known of the transactions that touch two subsets. */
export interface Crossing {
  readonly one: string;
  readonly other: string;
  /** Of a transaction with several such pairs of tables each is counted. */
  readonly total: number;
  readonly most: TablePair;
}

/**
 * Over a control connection to the destination. Null where nothing was captured yet; throws what the connection throws.
 */
export async function readTablePairs(destination: pg.Client): Promise<readonly TablePair[] | null> {
  try {
    const rows = (await destination.query<Row>(PAIRS_SQL)).rows;
    if (rows.length === 0 && (await destination.query(ANY_SQL)).rows.length === 0) return null;
    return rows.map((row) => ({
      a: row['a'] ?? '',
      b: row['b'] ?? '',
      transactions: Number(row['transactions']),
    }));
  } catch (error) {
    const code = typeof error === 'object' && error !== null && 'code' in error ? error.code : undefined;
    if (code === UNDEFINED_TABLE || code === UNDEFINED_SCHEMA) return null;
    throw error;
  }
}

/** Over control connections. Empty where no subsets are configured or nothing was captured; throws what they throw. */
export async function crossingFindings(
  source: pg.Client,
  destination: pg.Client,
  rules: readonly SubsetRules[],
): Promise<readonly Finding[]> {
  if (rules.length === 0) return [];
  const pairs = (await readTablePairs(destination)) ?? [];
  if (pairs.length === 0) return [];
  return crossingsOf(pairs, await readSubsetTables(source, rules)).map((crossing) =>
    findingOf(crossing, crossingPolicy(rules, crossing.one, crossing.other) === 'follow'),
  );
}

/** One for each two subsets that transactions touch together, those with the most transactions first. */
export function crossingsOf(
  pairs: readonly TablePair[],
  subsets: readonly { readonly subset: string; readonly tables: readonly TableName[] }[],
): readonly Crossing[] {
  const subsetOf = new Map<string, string>(
    subsets.flatMap(({ subset, tables }) =>
      tables.map(({ schema, name }) => [`${schema}.${name}`, subset] as const),
    ),
  );
  const crossings = new Map<string, Crossing>();
  for (const pair of pairs) {
    const [a, b] = [subsetOf.get(pair.a), subsetOf.get(pair.b)];
    if (a === undefined || b === undefined || a === b || pair.transactions < 1) continue;
    const [one, other] = a < b ? [a, b] : [b, a];
    const key = `${one} and ${other}`;
    const known = crossings.get(key);
    const most = known === undefined || pair.transactions > known.most.transactions ? pair : known.most;
    crossings.set(key, { one, other, total: (known?.total ?? 0) + pair.transactions, most });
  }
  return [...crossings.values()]
    .sort((a, b) => b.most.transactions - a.most.transactions)
    .slice(0, FINDINGS_MAX);
}

/** As one sentence without its end. */
export function crossingText({ most, total }: Crossing): string {
  return `between ${Math.round(most.transactions)} and ${Math.round(total)} captured transactions touched both; most often ${most.a} with ${most.b}`;
}

function findingOf(crossing: Crossing, follows: boolean): Finding {
  return {
    severity: follows ? 'info' : 'warning',
    check: 'crossing',
    side: 'proxy',
    object: `${crossing.one} and ${crossing.other}`,
    message: follows
      ? `${crossingText(crossing)}. They are switched together (crossing: follow)`
      : `${crossingText(crossing)}. While the two are on different sides, such transactions are refused`,
    advice: follows
      ? 'Nothing.'
      : 'Say crossing: follow to switch the two in one operation, or make them one subset in the configuration.',
  };
}
