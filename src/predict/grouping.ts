/**
 * Which tables go together. Some must (they share a sequence, a trigger writes from one to the other, one inherits from
 * the other); the rest are joined by use.
 */
import { confidenceOf, type Confidence } from './judgement.js';

/** One set of tables as transactions used it. */
export interface TableSetUse {
  readonly tables: readonly string[];
  /** Transactions, decayed by age. */
  readonly weight: number;
}

export interface GroupingInput {
  readonly tables: readonly string[];
  readonly uses: readonly TableSetUse[];
  /** Pairs that can't be parted. */
  readonly bound: readonly (readonly [string, string])[];
  readonly foreignKeys: readonly (readonly [string, string])[];
  /** Two groups stay apart when transactions across them are less than this share of the smaller's. Default 0.02. */
  readonly crossingMax?: number;
  /** What a foreign key is worth beside use, as a share; decides where nothing was seen. Default 0.01. */
  readonly foreignKeyPrior?: number;
}

export interface Grouping {
  readonly groups: readonly (readonly string[])[];
  /** Share of transactions that touch more than one group, and that would if each table went alone. 0…1. */
  readonly crossingShare: number;
  readonly crossingSharePerTable: number;
  /** Pairs of groups with transactions across them, the most first, by index in `groups`. */
  readonly crossings: readonly { readonly a: number; readonly b: number; readonly share: number }[];
  readonly confidence: Confidence;
  readonly reason: string;
}

/**
 * Agglomerative grouping by use: from one group per table (bound pairs as one), join the pair with the largest tie until
 * none reaches the bound, with
 *
 *   tie(A, B) = transactions touching A and B / min(transactions touching A, transactions touching B) + prior·[a foreign key]
 *
 * the overlap coefficient (Szymkiewicz 1934; Simpson 1943) on groups rather than tables, so that after it no two groups
 * share more than that of the smaller's work. A table never seen stands with those its foreign keys name. Schism (Curino
 * et al., VLDB 2010) cuts the same graph into equal parts; equal parts are not wanted here.
 */
export function groupTables(input: GroupingInput): Grouping {
  const { crossingMax = 0.02, foreignKeyPrior = 0.01 } = input;
  const tables = [...new Set(input.tables)].sort();
  const index = new Map(tables.map((table, at) => [table, at]));
  const parent = tables.map((_, at) => at);
  const find = (at: number): number => {
    let root = at;
    while (parent[root] !== root) root = parent[root] ?? root;
    return root;
  };
  const join = (a: number, b: number): void => {
    const [low, high] = [find(a), find(b)].sort((x, y) => x - y) as [number, number];
    parent[high] = low;
  };
  const pairs = (list: readonly (readonly [string, string])[]): [number, number][] =>
    list.flatMap(([a, b]) => {
      const [first, second] = [index.get(a), index.get(b)];
      return first === undefined || second === undefined ? [] : [[first, second] as [number, number]];
    });
  for (const [a, b] of pairs(input.bound)) join(a, b);
  const uses = input.uses
    .map(({ tables: names, weight }) => ({
      weight,
      tables: [...new Set(names.flatMap((name) => index.get(name) ?? []))],
    }))
    .filter(({ tables: used, weight }) => used.length > 0 && weight > 0);
  const keys = pairs(input.foreignKeys);
  for (;;) {
    const best = strongestTie(uses, keys, find, foreignKeyPrior);
    if (best === undefined || best.tie < crossingMax) break;
    join(best.a, best.b);
  }
  return report(tables, uses, find);
}

interface IndexedUse {
  readonly weight: number;
  readonly tables: readonly number[];
}

function strongestTie(
  uses: readonly IndexedUse[],
  foreignKeys: readonly (readonly [number, number])[],
  find: (at: number) => number,
  prior: number,
): { readonly a: number; readonly b: number; readonly tie: number } | undefined {
  const touched = new Map<number, number>();
  const together = new Map<
    string,
    { readonly a: number; readonly b: number; weight: number; keys: number }
  >();
  const pair = (a: number, b: number): { weight: number; keys: number } => {
    const name = `${Math.min(a, b)} ${Math.max(a, b)}`;
    let entry = together.get(name);
    if (entry === undefined) {
      entry = { a: Math.min(a, b), b: Math.max(a, b), weight: 0, keys: 0 };
      together.set(name, entry);
    }
    return entry;
  };
  for (const { tables, weight } of uses) {
    const groups = [...new Set(tables.map(find))];
    for (const [at, a] of groups.entries()) {
      touched.set(a, (touched.get(a) ?? 0) + weight);
      for (const b of groups.slice(at + 1)) pair(a, b).weight += weight;
    }
  }
  for (const [a, b] of foreignKeys) if (find(a) !== find(b)) pair(find(a), find(b)).keys = 1;
  let best: { a: number; b: number; tie: number } | undefined;
  for (const { a, b, weight, keys } of together.values()) {
    const least = Math.min(touched.get(a) ?? 0, touched.get(b) ?? 0);
    // Of a table that nobody was seen to use, the foreign key is all that is known.
    const tie = least > 0 ? weight / least + prior * keys : keys;
    if (
      best === undefined ||
      tie > best.tie ||
      (tie === best.tie && (a < best.a || (a === best.a && b < best.b)))
    ) {
      best = { a, b, tie };
    }
  }
  return best;
}

function report(
  tables: readonly string[],
  uses: readonly IndexedUse[],
  find: (at: number) => number,
): Grouping {
  const roots = [...new Set(tables.map((_, at) => find(at)))].sort((a, b) => a - b);
  const groups = roots.map((root) => tables.filter((_, at) => find(at) === root));
  const place = new Map(roots.map((root, at) => [root, at]));
  const crossing = new Map<string, { a: number; b: number; weight: number }>();
  let total = 0;
  let across = 0;
  let acrossTables = 0;
  for (const { tables: used, weight } of uses) {
    total += weight;
    if (used.length > 1) acrossTables += weight;
    const touched = [...new Set(used.map((at) => place.get(find(at)) ?? 0))].sort((x, y) => x - y);
    if (touched.length > 1) across += weight;
    for (const [at, a] of touched.entries()) {
      for (const b of touched.slice(at + 1)) {
        const name = `${a} ${b}`;
        const own = crossing.get(name) ?? { a, b, weight: 0 };
        own.weight += weight;
        crossing.set(name, own);
      }
    }
  }
  const share = (weight: number): number => (total === 0 ? 0 : weight / total);
  return {
    groups,
    crossingShare: share(across),
    crossingSharePerTable: share(acrossTables),
    crossings: [...crossing.values()]
      .sort((x, y) => y.weight - x.weight)
      .map(({ a, b, weight }) => ({ a, b, share: share(weight) })),
    confidence: confidenceOf(total),
    reason:
      total === 0
        ? 'No transaction has been seen; only foreign keys and what is bound decide.'
        : `${(share(across) * 100).toFixed(1)} % of transactions touch more than one group, ` +
          `${(share(acrossTables) * 100).toFixed(1)} % more than one table.`,
  };
}
