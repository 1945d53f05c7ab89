/** Which subsets are not to be parted, by the policies in the configuration: for the coordinator. */
import type pg from 'pg';
import { readForeignKeys } from '../capture/closure.js';
import { REST, type SubsetId, type SubsetRules, type SubsetTie, type TableName } from '../core/ports.js';
import { foreignKeyPolicy, readSubsetTables, subsetIds } from '../core/subsets.js';
import { crossingText, crossingsOf, readTablePairs } from './crossing.js';

type Members = readonly { readonly subset: SubsetId; readonly tables: readonly TableName[] }[];

/** Over control connections; throws what they throw. */
export async function readSubsetTies(
  source: pg.Client,
  destination: pg.Client,
  rules: readonly SubsetRules[],
): Promise<readonly SubsetTie[]> {
  if (rules.length === 0) return [];
  const members = await readSubsetTables(source, rules);
  const keys = foreignKeyTies(await readForeignKeys(source), members, rules);
  const follow = new Set(rules.filter(({ crossing }) => crossing === 'follow').map(({ subset }) => subset));
  if (follow.size === 0) return keys;
  const pairs = await readTablePairs(destination);
  if (pairs === null) return [...keys, ...unknownTies(subsetIds(rules), follow)];
  const crossings = crossingsOf(pairs, members).filter(
    ({ one, other }) => follow.has(one) || follow.has(other),
  );
  return [
    ...keys,
    ...crossings.map((crossing) => ({
      a: crossing.one,
      b: crossing.other,
      by: 'crossing' as const,
      detail: crossingText(crossing),
    })),
  ];
}

function foreignKeyTies(
  keys: readonly { readonly a: string; readonly b: string; readonly by: string }[],
  members: Members,
  rules: readonly SubsetRules[],
): readonly SubsetTie[] {
  const subsetOf = new Map<string, SubsetId>(
    members.flatMap(({ subset, tables }) =>
      tables.map(({ schema, name }) => [`${schema}.${name}`, subset] as const),
    ),
  );
  return keys.flatMap(({ a, b, by }) => {
    const [here, there] = [subsetOf.get(a) ?? REST, subsetOf.get(b) ?? REST];
    return here === there || foreignKeyPolicy(rules, here, there) === 'unenforced'
      ? []
      : [{ a: here, b: there, by: 'foreign-key' as const, detail: `${by}, from ${a} to ${b}` }];
  });
}

/** Of every two subsets of which one follows. */
function unknownTies(ids: readonly SubsetId[], follow: ReadonlySet<SubsetId>): readonly SubsetTie[] {
  return ids.flatMap((a, index) =>
    ids
      .slice(index + 1)
      .filter((b) => follow.has(a) || follow.has(b))
      .map((b) => ({ a, b, by: 'crossing-unknown' as const, detail: 'nothing was captured yet' })),
  );
}
