/**
 * Grouping where only pairs of tables are known: how often each two were used in one transaction, and each one at all. The
 * rule is that of `grouping.ts`; what differs is that the size of a union has to be estimated from pairs.
 */
import type { Confidence } from './judgement.js';
import { confidenceOf } from './judgement.js';

/** `a` ≠ `b`: transactions that touched both. `a` = `b`: that touched it at all. */
export interface PairUse {
  readonly a: string;
  readonly b: string;
  readonly transactions: number;
}

export interface PairGroupingInput {
  readonly tables: readonly string[];
  readonly uses: readonly PairUse[];
  /** Pairs that can't be parted. */
  readonly bound: readonly (readonly [string, string])[];
  readonly foreignKeys: readonly (readonly [string, string])[];
  /** As in `groupTables`. */
  readonly crossingMax?: number;
  readonly foreignKeyPrior?: number;
}

/** A share of transactions that pairs alone leave open between two bounds. */
export interface ShareEstimate {
  readonly value: number;
  readonly low: number;
  readonly high: number;
}

export interface PairGroup {
  /** Ascending. */
  readonly tables: readonly string[];
  /** Estimated transactions that touch it. */
  readonly transactions: number;
  /** Of those, the share that touches another group too. */
  readonly crossing: ShareEstimate;
}

export interface PairGrouping {
  readonly groups: readonly PairGroup[];
  /** Of the smaller group's transactions, the share that touches both; the most first, by index in `groups`. */
  readonly crossings: readonly { readonly a: number; readonly b: number; readonly share: number }[];
  readonly confidence: Confidence;
}

interface Group {
  tables: string[];
  touched: number;
  /** By group number, transactions that touch both: the largest pair across, a lower bound of their union. */
  readonly together: Map<number, number>;
  readonly keys: Set<number>;
}

/**
 * Agglomerative: joins the two groups with the largest `tie = both / min(A, B) + prior·[foreign key]` until none reaches
 * `crossingMax`. `both` is the largest pair across the two; a joined group's size is `A + B − both`, which is Hunter's bound
 * on the probability of a union (D. Hunter, J. Appl. Prob. 13, 1976) along the tree of joins. A table that nobody was seen to
 * use stands with those its foreign keys name.
 */
export function groupByPairs(input: PairGroupingInput): PairGrouping {
  const { crossingMax = 0.02, foreignKeyPrior = 0.01 } = input;
  const tables = [...new Set(input.tables)].sort();
  const numbers = new Map(tables.map((table, number) => [table, number]));
  const groups = new Map<number, Group>(
    tables.map((table, number) => [
      number,
      { tables: [table], touched: 0, together: new Map(), keys: new Set() },
    ]),
  );
  const home = tables.map((_, number) => number);
  fill(groups, numbers, input);
  const join = (one: number, other: number): void => {
    const [into, from] = one < other ? [one, other] : [other, one];
    for (const table of merge(groups, into, from)) home[numbers.get(table) ?? 0] = into;
  };
  for (const [a, b] of numbered(input.bound, numbers)) {
    const [one, other] = [home[a] ?? a, home[b] ?? b];
    if (one !== other) join(one, other);
  }
  for (;;) {
    const best = strongest(groups, foreignKeyPrior);
    if (best === undefined || best.tie < crossingMax) break;
    join(best.a, best.b);
  }
  return report(groups, home, numbers, input.uses);
}

function fill(groups: Map<number, Group>, numbers: Map<string, number>, input: PairGroupingInput): void {
  for (const { a, b, transactions } of input.uses) {
    const [one, other] = [numbers.get(a), numbers.get(b)];
    if (one === undefined || other === undefined || !(transactions > 0)) continue;
    const [first, second] = [groups.get(one), groups.get(other)];
    if (first === undefined || second === undefined) continue;
    if (one === other) {
      first.touched += transactions;
      continue;
    }
    first.together.set(other, (first.together.get(other) ?? 0) + transactions);
    second.together.set(one, (second.together.get(one) ?? 0) + transactions);
  }
  for (const [a, b] of numbered(input.foreignKeys, numbers)) {
    groups.get(a)?.keys.add(b);
    groups.get(b)?.keys.add(a);
  }
}

function numbered(
  pairs: readonly (readonly [string, string])[],
  numbers: Map<string, number>,
): readonly (readonly [number, number])[] {
  return pairs.flatMap(([a, b]) => {
    const [one, other] = [numbers.get(a), numbers.get(b)];
    return one === undefined || other === undefined || one === other ? [] : [[one, other] as const];
  });
}

/** Returns the tables that moved. */
function merge(groups: Map<number, Group>, into: number, from: number): readonly string[] {
  const [kept, gone] = [groups.get(into), groups.get(from)];
  if (kept === undefined || gone === undefined) return [];
  const both = kept.together.get(from) ?? 0;
  kept.touched = Math.max(kept.touched, gone.touched, kept.touched + gone.touched - both);
  for (const [neighbour, weight] of gone.together) {
    const its = groups.get(neighbour);
    its?.together.delete(from);
    if (neighbour === into) continue;
    const largest = Math.max(weight, kept.together.get(neighbour) ?? 0);
    kept.together.set(neighbour, largest);
    its?.together.set(into, largest);
  }
  for (const neighbour of gone.keys) {
    const its = groups.get(neighbour);
    its?.keys.delete(from);
    if (neighbour === into) continue;
    kept.keys.add(neighbour);
    its?.keys.add(into);
  }
  kept.tables.push(...gone.tables);
  groups.delete(from);
  return gone.tables;
}

function strongest(
  groups: Map<number, Group>,
  prior: number,
): { readonly a: number; readonly b: number; readonly tie: number } | undefined {
  let best: { a: number; b: number; tie: number } | undefined;
  const offer = (a: number, b: number, both: number, one: Group, other: Group): void => {
    const least = Math.min(one.touched, other.touched);
    const key = one.keys.has(b) ? 1 : 0;
    // Of a table that nobody was seen to use, the foreign key is all that is known.
    const tie = least > 0 ? Math.min(1, both / least) + prior * key : key;
    if (best === undefined || tie > best.tie) best = { a, b, tie };
  };
  for (const [a, group] of groups) {
    for (const [b, both] of group.together) {
      const other = groups.get(b);
      if (b > a && other !== undefined) offer(a, b, both, group, other);
    }
    for (const b of group.keys) {
      const other = groups.get(b);
      if (b > a && other !== undefined && !group.together.has(b)) offer(a, b, 0, group, other);
    }
  }
  return best;
}

function report(
  groups: Map<number, Group>,
  home: readonly number[],
  numbers: Map<string, number>,
  uses: readonly PairUse[],
): PairGrouping {
  const order = [...groups.keys()];
  const place = new Map(order.map((number, at) => [number, at]));
  const across = new Map<number, number>();
  for (const { a, b, transactions } of uses) {
    const [one, other] = [home[numbers.get(a) ?? -1], home[numbers.get(b) ?? -1]];
    if (one === undefined || other === undefined || one === other) continue;
    across.set(one, (across.get(one) ?? 0) + transactions);
    across.set(other, (across.get(other) ?? 0) + transactions);
  }
  const crossings: { a: number; b: number; share: number }[] = [];
  const reported = order.map((number): PairGroup => {
    const group = groups.get(number);
    const touched = group?.touched ?? 0;
    let largest = 0;
    let sum = 0;
    for (const [neighbour, weight] of group?.together ?? []) {
      largest = Math.max(largest, weight);
      sum += weight;
      const other = groups.get(neighbour);
      const [a, b] = [place.get(number), place.get(neighbour)];
      const least = Math.min(touched, other?.touched ?? 0);
      if (a !== undefined && b !== undefined && a < b && least > 0)
        crossings.push({ a, b, share: Math.min(1, weight / least) });
    }
    const share = (weight: number): number => (touched > 0 ? Math.min(1, weight / touched) : 0);
    return {
      tables: [...(group?.tables ?? [])].sort(),
      transactions: touched,
      crossing: { value: share(sum), low: share(largest), high: share(across.get(number) ?? 0) },
    };
  });
  return {
    groups: reported,
    crossings: crossings.sort((x, y) => y.share - x.share || x.a - y.a || x.b - y.b),
    confidence: confidenceOf(reported.reduce((total, { transactions }) => total + transactions, 0)),
  };
}
