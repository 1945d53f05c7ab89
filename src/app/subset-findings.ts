/** Whether the configured subsets part what belongs together: by the source's catalogs, see capture/closure.ts. */
import type pg from 'pg';
import type { AttachedProblem, LooseDraw } from '../capture/attached.js';
import { readClosure, type ForeignKey, type Tie } from '../capture/closure.js';
import { REST, type Finding, type SubsetId, type SubsetRules } from '../core/ports.js';
import { foreignKeyPolicy, readSubsetTables } from '../core/subsets.js';

/** Blockers for what can't be parted; warnings for what can't be known. Empty where no subsets are configured. */
export async function subsetFindings(
  source: pg.Client,
  rules: readonly SubsetRules[],
): Promise<readonly Finding[]> {
  if (rules.length === 0) return [];
  const members = new Map<string, SubsetId>(
    (await readSubsetTables(source, rules)).flatMap(({ subset, tables }) =>
      tables.map(({ schema, name }) => [`${schema}.${name}`, subset] as const),
    ),
  );
  const closure = await readClosure(source);
  return [
    ...rules.flatMap(({ tables }) => tables.filter((table) => !members.has(table)).map(missing)),
    ...cut(closure.bound, members).map(([tie, here, there]) => tied(tie, here, there)),
    ...cut(closure.foreignKeys, members).map(([key, here, there]) =>
      foreignKeyPolicy(rules, here, there) === 'together'
        ? keyed(key, here, there)
        : leftOut(key, here, there),
    ),
    ...(closure.unreadTriggers ?? []).map(({ name, tables }) => unread(name, tables)),
    ...(closure.attached?.looseDraws ?? [])
      .filter(({ table }) => (members.get(table) ?? REST) !== REST)
      .map((draw) => loose(draw, members.get(draw.table) ?? REST)),
    ...(closure.attached?.notifies ?? []).map(notifying),
    ...(closure.attached?.unread ?? [])
      .filter(
        ({ by }) => !(closure.unreadTriggers ?? []).some(({ name }) => by.endsWith(`, function ${name}`)),
      )
      .map(unreadAttached),
    ...closure.unknown.map(unknown),
  ];
}

/** The ties between tables of different subsets, with both. */
function cut<T extends Tie>(
  ties: readonly T[],
  members: ReadonlyMap<string, SubsetId>,
): readonly (readonly [T, SubsetId, SubsetId])[] {
  return ties.flatMap((tie) => {
    const here = members.get(tie.a) ?? REST;
    const there = members.get(tie.b) ?? REST;
    return here === there ? [] : [[tie, here, there] as const];
  });
}

const finding = (
  severity: Finding['severity'],
  check: string,
  object: string,
  message: string,
  advice: string,
): Finding => ({ severity, check, side: 'source', object, message, advice });

function missing(table: string): Finding {
  return finding(
    'blocker',
    'subset-table-missing',
    table,
    'is in a subset, and the source has no such table',
    'Name it as it is on the source, or take it out of `subsets`.',
  );
}

function tied({ a, b, by }: Tie, here: SubsetId, there: SubsetId): Finding {
  return finding(
    'blocker',
    'subset-tied',
    a,
    `is in subset ${here}, and ${b}, in ${there}, is tied to it (${by})`,
    'Put both into one subset.',
  );
}

function keyed({ a, b, by }: Tie, here: SubsetId, there: SubsetId): Finding {
  return finding(
    'info',
    'subset-foreign-key',
    a,
    `is in subset ${here} and refers to ${b}, in ${there} (${by}): the two are switched in one operation`,
    'Nothing.',
  );
}

/** Of one that acts, what it would have done would be done no more: nobody could tell afterwards which rows it concerned. */
function leftOut({ a, b, by, acts, partitioned }: ForeignKey, here: SubsetId, there: SubsetId): Finding {
  const what = `is in subset ${here} and refers to ${b}, in ${there} (${by})`;
  if (acts !== undefined)
    return finding(
      'blocker',
      'subset-foreign-key-acts',
      a,
      `${what}, and the key is not only to refuse: ${acts} would not be done while the two are on different sides`,
      'Say foreignKeys: together for both subsets, or let the application do what the key does, and drop it.',
    );
  if (partitioned === true)
    return finding(
      'blocker',
      'subset-foreign-key-partitioned',
      a,
      `${what}, and one of the two is partitioned: such a key can’t be put back without reading all rows under a lock`,
      'Say foreignKeys: together for both subsets.',
    );
  return finding(
    'warning',
    'subset-foreign-key-unenforced',
    a,
    `${what}: while the two are on different sides nothing refuses a row that refers to none, and the constraint is not in the catalogs`,
    'Nothing, if the application keeps to it by itself; it is validated once they have met. Else say foreignKeys: together.',
  );
}

function unread(name: string, tables: readonly string[]): Finding {
  return finding(
    'blocker',
    'subset-trigger-unread',
    name,
    `is called by a trigger on ${tables.join(', ')}, and what it touches can’t be known`,
    'Write its statements out instead of building them, or switch the whole database as one.',
  );
}

function loose({ sequence, table, by }: LooseDraw, subset: SubsetId): Finding {
  return finding(
    'blocker',
    'subset-tied',
    table,
    `is in subset ${subset}, and draws from sequence ${sequence} (${by}), which no table owns and which is left with the rest`,
    `Let a table of the subset own it: ALTER SEQUENCE ${sequence} OWNED BY ${table}.<column>.`,
  );
}

function notifying({ table, by }: AttachedProblem): Finding {
  return finding(
    'blocker',
    'subset-notify',
    table,
    `notifies (${by}), and what is sent on one side is not heard on the other`,
    'Switch the whole database as one, or take the notification out.',
  );
}

function unreadAttached({ table, by, why }: AttachedProblem): Finding {
  return finding(
    'blocker',
    'subset-unread',
    table,
    `has what may touch other tables or sequences, and can’t be known (${by}; ${why})`,
    'Write its statements out instead of building them, or switch the whole database as one.',
  );
}

function unknown(sentence: string): Finding {
  return finding(
    'warning',
    'subset-unknown',
    'functions',
    sentence,
    'Make sure that each touches tables of one subset only, or switch the whole database as one.',
  );
}
