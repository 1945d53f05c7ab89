/** What ties each two configured subsets, and what its policies make of that: for `status` and `plan`. */
import { REST, type SubsetId } from '../core/ports.js';
import type { BorderTie, SubsetBorder } from '../core/subset-ports.js';
import { crossingPolicy, foreignKeyPolicy, type SubsetPolicies } from '../core/subsets.js';
import type { Closure } from './closure.js';

/**
 * A border for each two subsets that anything ties, in the order of their names. `subsetOf`: by `schema.table`; what is not in
 * it is of the rest.
 */
export function bordersOf(
  closure: Pick<Closure, 'bound' | 'foreignKeys' | 'attached'>,
  subsetOf: ReadonlyMap<string, SubsetId>,
  policies: readonly SubsetPolicies[],
): readonly SubsetBorder[] {
  const borders = new Map<
    string,
    { readonly subsets: SubsetBorder['subsets']; readonly ties: BorderTie[] }
  >();
  const add = (one: SubsetId, other: SubsetId, tie: BorderTie): void => {
    if (one === other) return;
    const subsets = one < other ? ([one, other] as const) : ([other, one] as const);
    const key = subsets.join(' ');
    const known = borders.get(key);
    if (known === undefined) borders.set(key, { subsets, ties: [tie] });
    else known.ties.push(tie);
  };
  const of = (table: string): SubsetId => subsetOf.get(table) ?? REST;
  for (const { a, b, by } of closure.foreignKeys)
    add(of(a), of(b), { a, b, by, policy: foreignKeyPolicy(policies, of(a), of(b)) });
  for (const { a, b, by } of closure.bound) add(of(a), of(b), { a, b, by, policy: 'refused' });
  for (const { table, sequence, by } of closure.attached?.looseDraws ?? [])
    add(of(table), REST, { a: table, b: sequence, by: `sequence ${sequence}, ${by}`, policy: 'refused' });
  return [...borders.entries()]
    .sort(([one], [other]) => (one < other ? -1 : 1))
    .map(([, { subsets, ties }]) => ({ subsets, ties, crossing: crossingPolicy(policies, ...subsets) }));
}
