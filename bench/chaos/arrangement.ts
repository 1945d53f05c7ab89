/** How a run's tables are divided into subsets: not at all, into two, or into three. */

/** Tables that are always in one subset together. */
export type Group = 'ledger' | 'register' | 'decoy' | 'bank';

export interface Arrangement {
  /** Of all subsets, `rest` last; `all` alone where none is configured. */
  readonly subsets: readonly string[];
  /** As they are configured; what is named nowhere is the rest. */
  readonly configured: Readonly<Record<string, readonly string[]>>;
  readonly of: Readonly<Record<Group, string>>;
}

export const SUBSET_COUNTS = [0, 2, 3] as const;
export type SubsetCount = (typeof SUBSET_COUNTS)[number];

/** Register and ledger are in different ones, and so are the two tables named register. */
export const ARRANGEMENTS: Readonly<Record<SubsetCount, Arrangement>> = {
  0: {
    subsets: ['all'],
    configured: {},
    of: { ledger: 'all', register: 'all', decoy: 'all', bank: 'all' },
  },
  2: {
    subsets: ['marks', 'rest'],
    configured: { marks: ['public.register'] },
    of: { ledger: 'rest', register: 'marks', decoy: 'rest', bank: 'rest' },
  },
  3: {
    subsets: ['books', 'bank', 'rest'],
    configured: { books: ['public.ledger', 'decoy.register'], bank: ['public.account', 'public.transfer'] },
    of: { ledger: 'books', register: 'rest', decoy: 'books', bank: 'bank' },
  },
};

/** The part of a configuration file that says so; empty where there is nothing to say. */
export function subsetsYaml({ configured }: Arrangement): readonly string[] {
  const rules = Object.entries(configured);
  if (rules.length === 0) return [];
  return ['subsets:', ...rules.map(([subset, tables]) => `  ${subset}: { tables: [${tables.join(', ')}] }`)];
}
