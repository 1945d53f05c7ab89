/** The section `subsets`, checked closely: what is not built yet is refused rather than taken for something else. */
import { REST, WHOLE_DATABASE, type SubsetRules } from '../../core/ports.js';
import type { ParsedConfig } from './schema.js';

type Report = (path: readonly string[], message: string) => undefined;

const NAME = /^[a-z][a-z0-9_]{0,39}$/;
const KEYS: readonly string[] = ['tables', 'foreignKeys', 'crossing'];
const SUBSETS_MAX = 100;

/** The subsets in the order of their names; empty where none are configured. Problems are reported, not thrown. */
export function resolveSubsets(parsed: ParsedConfig, problem: Report): readonly SubsetRules[] {
  const entries = Object.entries(parsed.subsets ?? {});
  if (entries.length === 0) return [];
  if (entries.length > SUBSETS_MAX) problem(['subsets'], `expected at most ${SUBSETS_MAX} subsets`);
  const owners = new Map<string, string>();
  const rules = entries.flatMap(([subset, value]) => {
    const path = ['subsets', subset];
    if (subset === WHOLE_DATABASE || subset === REST)
      problem(path, `"${subset}" is reserved: it names what is in no subset, or everything`);
    else if (!NAME.test(subset))
      problem(path, 'expected a name of lower-case letters, digits and _, at most 40, a letter first');
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
      problem(path, 'expected a mapping with `tables`');
      return [];
    }
    return [ruleOf(subset, value as Readonly<Record<string, unknown>>, owners, problem)];
  });
  checkBeside(parsed, problem);
  return rules.sort((a, b) => (a.subset < b.subset ? -1 : 1));
}

function ruleOf(
  subset: string,
  value: Readonly<Record<string, unknown>>,
  owners: Map<string, string>,
  problem: Report,
): SubsetRules {
  const path = ['subsets', subset];
  for (const key of Object.keys(value))
    if (!KEYS.includes(key)) problem([...path, key], `unknown key; expected ${KEYS.join(', ')}`);
  const given = value['tables'];
  const tables = Array.isArray(given) ? given.filter((name): name is string => typeof name === 'string') : [];
  const named = tables.every((name) => /^[^.]+\..+$/.test(name));
  if (!Array.isArray(given) || tables.length === 0 || tables.length !== given.length || !named)
    problem([...path, 'tables'], 'expected a list of tables as schema.table');
  for (const table of tables) {
    const owner = owners.get(table);
    if (owner !== undefined) problem([...path, 'tables'], `${table} is in subset ${owner} already`);
    owners.set(table, subset);
  }
  return {
    subset,
    tables,
    foreignKeys: policy(
      [...path, 'foreignKeys'],
      value['foreignKeys'],
      ['together', 'unenforced'],
      [],
      problem,
    ),
    crossing: policy([...path, 'crossing'], value['crossing'], ['refuse', 'follow'], ['link'], problem),
  };
}

/** The first of `built` is the default. */
function policy<P extends string>(
  path: readonly string[],
  value: unknown,
  built: readonly [P, ...P[]],
  planned: readonly string[],
  problem: Report,
): P {
  const [first] = built;
  const found = value === undefined ? first : built.find((each) => each === value);
  if (found !== undefined) return found;
  const known = built.join(' or ');
  if (typeof value === 'string' && planned.includes(value))
    problem(path, `${value} is not built; expected ${known}`);
  else problem(path, `expected ${known}`);
  return first;
}

/** What can't go together with subsets yet. */
function checkBeside({ shadow, proxy }: ParsedConfig, problem: Report): void {
  const { format } = shadow;
  if (format?.schemas !== undefined || format?.tables !== undefined)
    problem(['subsets'], 'subsets and shadow.format can’t be used together yet');
  if (shadow.method !== 'auto' && shadow.method !== 'log')
    problem(['subsets'], `subsets need shadow.method log, got ${shadow.method}`);
  if (proxy.workers > 1) problem(['subsets'], 'subsets can’t be used with proxy.workers above 1 yet');
}
