/** Groups of tables → subsets as they could be configured, to be switched one at a time. */
import type { Tie } from '../../capture/closure.js';
import { REST, WHOLE_DATABASE } from '../../core/ports.js';
import type { ShareEstimate } from '../../predict/pair-grouping.js';

export interface Proposal {
  /** As configuration takes it. */
  readonly name: string;
  readonly tables: readonly string[];
  /** Groups of the plan that it is made of: more than one where foreign keys hold them together. */
  readonly groups: readonly string[];
  /** Share of its transactions that touch what is outside; an upper bound where it is of several groups. */
  readonly crossing: number;
}

/** Tables that nobody was seen to use, and that nothing ties to others. */
export const UNUSED = '(unused)';

interface Group {
  readonly name: string;
  readonly tables: readonly string[];
  readonly crossing: ShareEstimate;
}

const NAME_LENGTH_MAX = 40;

/** Groups joined along foreign keys, which a switch by subset keeps together. Fewer than two: nothing can be parted. */
export function proposalsOf(groups: readonly Group[], foreignKeys: readonly Tie[]): readonly Proposal[] {
  const groupOf = new Map(groups.flatMap(({ tables }, index) => tables.map((table) => [table, index])));
  const roots = groups.map((_, index) => index);
  const rootOf = (index: number): number => {
    let root = index;
    while (roots[root] !== undefined && roots[root] !== root) root = roots[root] ?? root;
    return root;
  };
  for (const { a, b } of foreignKeys) {
    const [one, other] = [groupOf.get(a), groupOf.get(b)];
    if (one !== undefined && other !== undefined) roots[rootOf(other)] = rootOf(one);
  }
  const joined = new Map<number, Group[]>();
  for (const [index, group] of groups.entries()) {
    const root = rootOf(index);
    joined.set(root, [...(joined.get(root) ?? []), group]);
  }
  if (joined.size < 2) return [];
  const taken = new Set<string>([REST, WHOLE_DATABASE]);
  // What nobody uses is best left where it is named by nobody.
  const used = [...joined.values()].filter((members) => members.some(({ name }) => name !== UNUSED));
  return used.map((members) => ({
    name: nameOf(members[0]?.name ?? '', taken),
    tables: members.flatMap(({ tables }) => tables).sort(),
    groups: members.map(({ name }) => name),
    crossing: Math.max(...members.map(({ crossing }) => crossing.high)),
  }));
}

/** Of the table's own name: lower-case letters, digits and _, a letter first; each once. */
function nameOf(group: string, taken: Set<string>): string {
  const plain = group
    .slice(group.lastIndexOf('.') + 1)
    .toLowerCase()
    .replace(/[^a-z0-9_]+/g, '_')
    .replace(/^[^a-z]+|_+$/g, '')
    .slice(0, NAME_LENGTH_MAX - 4);
  const base = plain === '' ? 'subset' : plain;
  let name = base;
  for (let number = 2; taken.has(name); number++) name = `${base}_${number}`;
  taken.add(name);
  return name;
}
