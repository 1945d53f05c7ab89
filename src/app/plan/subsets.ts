/**
 * Series and catalogs → the subsets of a plan: which tables go together, each subset's heat by the hour, its size, its hot
 * keys, what would cross. What can't be known is said in `unknown`.
 */
import { bordersOf } from '../../capture/border.js';
import type { Closure, Tie } from '../../capture/closure.js';
import { REST, WHOLE_DATABASE } from '../../core/ports.js';
import type { SubsetBorder } from '../../core/subset-ports.js';
import { WRITE_WEIGHT } from '../../predict/hot-set.js';
import { groupByPairs, type PairGrouping, type ShareEstimate } from '../../predict/pair-grouping.js';
import type { PlanSubset } from '../../predict/plan.js';
import { buildSeries, HOUR_MS, type Series } from '../../predict/series.js';
import type { DurationSample } from '../../predict/stall.js';
import { staleShare, type Freshness, type HotRows } from '../../predict/staleness.js';
import { growthOf, type SizesAt } from './growth.js';
import { hotOf, type ChangingKeys } from './hot-keys.js';
import { proposalsOf, UNUSED, type Proposal } from './proposals.js';
import type { PlanData } from './series-data.js';

/** A whole that is smaller than this is none: a shared grid of hours, most of them unknown, teaches nothing. */
const HALF_HOUR_MS = HOUR_MS / 2;
/** Transactions of an hour of the week that its own histogram takes. */
const HOURLY_WEIGHT_MIN = 200;
const NAMED_MAX = 5;

export interface SubsetCrossing {
  readonly with: string;
  readonly share: number;
}

export interface PlannedSubset {
  readonly input: PlanSubset;
  readonly staleness: StaleBasis;
  readonly crossing: ShareEstimate;
  /** By share of the smaller's transactions. */
  readonly crossings: readonly SubsetCrossing[];
  readonly ties: readonly Tie[];
  /** Configured subsets that one operation switches along with it: by a foreign key, or by following. Not in chains. */
  readonly together: readonly string[];
}

export interface Subsets {
  readonly subsets: readonly PlannedSubset[];
  /** The database as one; at present what a cutover moves. */
  readonly whole: PlannedSubset;
  readonly nowMs: number;
  /** First and last hour that count; null where there is none. */
  readonly observed: { readonly fromMs: number; readonly untilMs: number; readonly hours: number } | null;
  readonly durationsByHour: ReadonlyMap<number, readonly DurationSample[]>;
  readonly transactionsPerStatement: number;
  readonly unknown: readonly string[];
  /** What was mended or left out of the series. */
  readonly notes: readonly string[];
  readonly configured: boolean;
  readonly borders: readonly SubsetBorder[];
  /** What could be configured as subsets. */
  readonly proposals: readonly Proposal[];
}

export interface SubsetOptions {
  /** What a shadow holds already, and how late it is. */
  readonly freshness?: Freshness | undefined;
  /** As configured; where there are any, all other tables are {@link REST}. */
  readonly configured?: readonly ConfiguredSubset[];
  /** What tables measured, the oldest first. */
  readonly sizes?: readonly SizesAt[];
}

export interface ConfiguredSubset {
  readonly subset: string;
  readonly tables: readonly string[];
  /** follow: switched in one operation with those that its transactions touch too. */
  readonly crossing?: 'refuse' | 'follow';
  readonly foreignKeys?: 'together' | 'unenforced';
}

/** What its divergence is made of, but for how stale the shadow is at the moment that it is asked for. */
export interface StaleBasis {
  readonly changing: ChangingKeys;
  readonly rows: readonly HotRows[];
}

/** `nowMs`: undefined takes the end of the data, for logs of a day gone by. */
export function subsetsOf(
  data: PlanData,
  closure: Closure | null,
  nowMs: number | undefined,
  { freshness, configured = [], sizes = [] }: SubsetOptions = {},
): Subsets {
  const copied: Freshness['copied'] = freshness?.copied ?? new Map<string, number>();
  const naming = closure === null ? withDefaultSchema(data) : data;
  const catalog = new Map((closure?.tables ?? []).map((table) => [table.table, table]));
  const roots = new Map(
    (closure?.tables ?? []).flatMap(({ table, root }) => (root === null ? [] : [[table, root] as const])),
  );
  const missing = closure === null ? [] : [...naming.tables.keys()].filter((table) => !catalog.has(table));
  const tables = closure === null ? [...naming.tables.keys()] : [...catalog.keys()];
  const given = configured.length === 0 ? undefined : ownersOf(tables, configured, roots);
  const pairs = (ties: readonly Tie[]): (readonly [string, string])[] => ties.map(({ a, b }) => [a, b]);
  const grouping = groupByPairs({
    tables,
    uses: naming.coAccess,
    ...(given === undefined
      ? { bound: pairs(closure?.bound ?? []), foreignKeys: pairs(closure?.foreignKeys ?? []) }
      : { bound: chained(given), foreignKeys: [], crossingMax: Number.POSITIVE_INFINITY }),
  });
  const grid = new Grid(naming, roots, nowMs);
  const durations = durationsOf(naming);
  const groups = namedGroups(grouping, grid, given);
  const make = (
    subset: string,
    members: readonly string[],
    crossing: ShareEstimate,
    notes: readonly string[],
  ): Pick<PlannedSubset, 'input' | 'staleness'> => {
    const bytesOf = (share: (table: string) => number): number | undefined =>
      closure === null
        ? undefined
        : Math.round(
            members.reduce((sum, table) => sum + (catalog.get(table)?.bytes ?? 0) * share(table), 0),
          );
    const own = members.filter((table) => !roots.has(table));
    const { hot, changing, writesPerHour } = hotOf(new Set(own), naming.hotKeys);
    const heats = new Map(own.map((table) => [table, grid.totalHeat(table)]));
    const staleness: StaleBasis = { changing, rows: hotRows(members, roots, catalog, heats, writesPerHour) };
    const input = {
      subset,
      tables: members,
      bytes: bytesOf(() => 1),
      bytesLeft: bytesOf((table) => 1 - (copied.get(table) ?? 0)),
      growth: growthOf(sizes, members, grid.nowMs),
      observedMs: grid.observedMs,
      ...grid.seriesOf(members),
      hot,
      divergence: {
        ...changing,
        stale: freshness === undefined ? undefined : staleShare(staleness.rows, freshness),
      },
      durationsMs: durations.all,
      crossingShare: crossing.value,
      notes,
    };
    return { input, staleness };
  };
  const nothing = { value: 0, low: 0, high: 0 };
  const tiesIn = (members: readonly string[]): readonly Tie[] => {
    const own = new Set(members);
    const inside = ({ a, b }: Tie): boolean => own.has(a) && own.has(b);
    return [...(closure?.bound ?? []), ...(closure?.foreignKeys ?? [])].filter(inside);
  };
  const borders = given === undefined || closure === null ? [] : bordersOf(closure, given, configured);
  const follows = new Set(configured.flatMap((one) => (one.crossing === 'follow' ? [one.subset] : [])));
  const together = (name: string, crossings: readonly SubsetCrossing[]): readonly string[] => {
    if (given === undefined) return [];
    const keys = borders
      .filter(({ ties }) => ties.some(({ policy }) => policy === 'together'))
      .map(({ subsets }) => subsets);
    const others = [
      ...keys.flatMap((ends) => (ends.includes(name) ? [...ends] : [])),
      ...crossings.flatMap((other) => (follows.has(name) || follows.has(other.with) ? [other.with] : [])),
    ];
    return [...new Set(others)]
      .flatMap((other) => (other === undefined || other === name ? [] : [other]))
      .sort();
  };
  return {
    subsets: groups.map(({ name, tables: members, crossing, crossings }) => ({
      ...make(name, members, crossing, []),
      crossing,
      crossings,
      ties: tiesIn(members),
      together: together(name, crossings),
    })),
    whole: {
      ...make(WHOLE_DATABASE, tables, nothing, []),
      crossing: nothing,
      crossings: [],
      ties: [],
      together: [],
    },
    nowMs: grid.nowMs,
    observed: grid.observed,
    durationsByHour: durations.byHour,
    transactionsPerStatement: grid.transactionsPerStatement,
    unknown: [...unknownOf(naming, closure, missing), ...(closure?.unknown ?? [])],
    notes: [...data.notes, ...grid.notes],
    configured: given !== undefined,
    borders,
    proposals: given === undefined ? proposalsOf(groups, closure?.foreignKeys ?? []) : [],
  };
}

/** The tables that hold rows; a partition has its share of what its root's heat and keys are. */
function hotRows(
  members: readonly string[],
  roots: ReadonlyMap<string, string>,
  catalog: ReadonlyMap<string, { readonly bytes: number }>,
  heats: ReadonlyMap<string, number>,
  writesPerHour: ReadonlyMap<string, readonly number[]>,
): readonly HotRows[] {
  const bytesOf = (table: string): number => Math.max(1, catalog.get(table)?.bytes ?? 0);
  const leaves = new Map<string, number>();
  for (const table of members) {
    const root = roots.get(table);
    if (root !== undefined) leaves.set(root, (leaves.get(root) ?? 0) + bytesOf(table));
  }
  return members
    .filter((table) => !leaves.has(table))
    .map((table) => {
      const root = roots.get(table) ?? table;
      const share = bytesOf(table) / (leaves.get(root) ?? bytesOf(table));
      return {
        table,
        weight: (heats.get(root) ?? 0) * share,
        writesPerHour: writesPerHour.get(root),
      };
    });
}

/**
 * Without catalogs, `orders` and `public.orders` are taken for one table, where no other schema has an `orders`.
 */
function withDefaultSchema(data: PlanData): PlanData {
  const schemasOf = new Map<string, string[]>();
  for (const table of data.tables.keys()) {
    const dot = table.indexOf('.');
    if (dot < 0) continue;
    const name = table.slice(dot + 1);
    schemasOf.set(name, [...(schemasOf.get(name) ?? []), table]);
  }
  const renamed = (table: string): string => {
    const candidates = table.includes('.') ? undefined : schemasOf.get(table);
    return candidates?.length === 1 ? (candidates[0] ?? table) : table;
  };
  const tables = new Map<string, Map<number, { reads: number; writes: number; rowsWritten: number }>>();
  for (const [table, hours] of data.tables) {
    const name = renamed(table);
    let into = tables.get(name);
    if (into === undefined) tables.set(name, (into = new Map()));
    for (const [hour, figures] of hours) {
      const known = into.get(hour) ?? { reads: 0, writes: 0, rowsWritten: 0 };
      into.set(hour, {
        reads: known.reads + figures.reads,
        writes: known.writes + figures.writes,
        rowsWritten: known.rowsWritten + figures.rowsWritten,
      });
    }
  }
  return {
    ...data,
    tables,
    coAccess: data.coAccess.map((use) => {
      const [a = '', b = ''] = [renamed(use.a), renamed(use.b)].sort();
      return { ...use, a, b };
    }),
    hotKeys: data.hotKeys.map((hot) => ({ ...hot, table: renamed(hot.table) })),
  };
}

/** The hours that were watched, and figures on them. */
class Grid {
  readonly nowMs: number;
  readonly notes: readonly string[];
  readonly observedMs: number;
  readonly observed: Subsets['observed'];
  readonly transactionsPerStatement: number;
  readonly #data: PlanData;
  readonly #roots: ReadonlyMap<string, string>;
  /** Start of each hour that counts → by what its figures are multiplied. */
  readonly #hours = new Map<number, number>();

  constructor(data: PlanData, roots: ReadonlyMap<string, string>, nowMs: number | undefined) {
    this.#data = data;
    this.#roots = roots;
    const watched = [...data.intervals.values()].filter(({ observedMs }) => observedMs > 0);
    const enough = watched.some(({ observedMs }) => observedMs >= HALF_HOUR_MS) ? HALF_HOUR_MS : 1;
    const inFull = watched.filter(
      ({ startMs, observedMs }) =>
        observedMs >= enough && (nowMs === undefined || startMs + HOUR_MS <= nowMs),
    );
    // In the first hour, what of it has passed says more than nothing.
    const running = inFull.length === 0 ? watched.filter(({ startMs }) => startMs <= (nowMs ?? 0)) : [];
    const counted = [...inFull, ...running].sort((a, b) => a.startMs - b.startMs);
    const kept = buildSeries(
      counted.map(({ startMs, observedMs }) => ({ atMs: startMs, value: observedMs })),
      { stepMs: HOUR_MS },
    );
    this.notes = [
      ...kept.notes,
      ...(running.length > 0
        ? ['No hour has been watched to its end: the running one counts, for what it is.']
        : []),
    ];
    const { series } = kept;
    const endMs = series.startMs + series.values.length * HOUR_MS;
    let observedMs = 0;
    for (const interval of counted) {
      if (interval.startMs < series.startMs || interval.startMs >= endMs) continue;
      this.#hours.set(interval.startMs, HOUR_MS / interval.observedMs);
      observedMs += interval.observedMs;
    }
    this.observedMs = observedMs;
    this.nowMs = nowMs ?? (series.values.length > 0 ? endMs : (data.untilMs ?? 0));
    this.observed =
      series.values.length === 0
        ? null
        : { fromMs: series.startMs, untilMs: endMs, hours: observedMs / HOUR_MS };
    const sum = (pick: (one: (typeof watched)[number]) => number): number =>
      watched.reduce((total, one) => total + pick(one), 0);
    const statements = sum((one) => one.statements);
    const transactions = sum((one) => one.committed + one.rolledBack);
    this.transactionsPerStatement = statements > 0 ? Math.min(1, transactions / statements) : 1;
  }

  /** Reads plus weighted writes over all hours that count. */
  totalHeat(table: string): number {
    let heat = 0;
    for (const [hour, { reads, writes }] of this.#data.tables.get(table) ?? [])
      if (this.#hours.has(hour)) heat += reads + WRITE_WEIGHT * writes;
    return heat;
  }

  seriesOf(tables: readonly string[]): Pick<PlanSubset, 'heat' | 'statements' | 'changes'> {
    // A partition's use counts for its root already.
    const own = tables.filter((table) => !this.#roots.has(table));
    const rowsKnown = own.some((table) =>
      [...(this.#data.tables.get(table)?.values() ?? [])].some(({ rowsWritten }) => rowsWritten > 0),
    );
    const series = (
      of: (figures: { reads: number; writes: number; rowsWritten: number }) => number,
    ): Series =>
      buildSeries(
        [...this.#hours].map(([hour, factor]) => ({
          atMs: hour,
          value:
            factor *
            own.reduce((sum, table) => {
              const figures = this.#data.tables.get(table)?.get(hour);
              return figures === undefined ? sum : sum + of(figures);
            }, 0),
        })),
        { stepMs: HOUR_MS },
      ).series;
    return {
      heat: series(({ reads, writes }) => reads + WRITE_WEIGHT * writes),
      statements: series(({ reads, writes }) => reads + writes),
      // Logs don't tell how many rows a statement wrote: one, at the least.
      changes: series(({ writes, rowsWritten }) => (rowsKnown ? rowsWritten : writes)),
    };
  }
}

/** By table, the configured subset that it is in; a partition goes with its root. */
function ownersOf(
  tables: readonly string[],
  configured: readonly ConfiguredSubset[],
  roots: ReadonlyMap<string, string>,
): ReadonlyMap<string, string> {
  const named = new Map(configured.flatMap(({ subset, tables: own }) => own.map((table) => [table, subset])));
  return new Map(
    tables.map((table) => [table, named.get(table) ?? named.get(roots.get(table) ?? '') ?? REST]),
  );
}

/** Pairs that keep each subset's tables together. */
function chained(owners: ReadonlyMap<string, string>): readonly (readonly [string, string])[] {
  const last = new Map<string, string>();
  const pairs: (readonly [string, string])[] = [];
  for (const [table, owner] of owners) {
    const before = last.get(owner);
    if (before !== undefined) pairs.push([before, table]);
    last.set(owner, table);
  }
  return pairs;
}

interface NamedGroup {
  readonly name: string;
  readonly tables: readonly string[];
  readonly crossing: ShareEstimate;
  readonly crossings: readonly SubsetCrossing[];
}

/** Each named by its hottest table. Tables without use or tie are one group, to be shadowed last. */
function namedGroups(
  grouping: PairGrouping,
  grid: Grid,
  given: ReadonlyMap<string, string> | undefined,
): readonly NamedGroup[] {
  const taken = new Set<string>([WHOLE_DATABASE, UNUSED]);
  const heats = grouping.groups.map(({ tables }) => {
    const heat = tables.map((table) => grid.totalHeat(table));
    const most = Math.max(...heat);
    const hottest = tables[heat.indexOf(most)] ?? '';
    // A table that is called like the whole database would be taken for it.
    let name = given?.get(hottest) ?? hottest;
    while (taken.has(name)) name = `"${name}"`;
    taken.add(name);
    return { name, total: heat.reduce((sum, one) => sum + one, 0) };
  });
  const crossings = grouping.groups.map((): SubsetCrossing[] => []);
  for (const { a, b, share } of grouping.crossings) {
    crossings[a]?.push({ with: heats[b]?.name ?? '', share });
    crossings[b]?.push({ with: heats[a]?.name ?? '', share });
  }
  const named = grouping.groups.map((group, at) => ({
    name: heats[at]?.name ?? '',
    tables: group.tables,
    crossing: group.crossing,
    crossings: crossings[at] ?? [],
    heat: heats[at]?.total ?? 0,
  }));
  const idle = named.filter(({ heat, tables }) => heat === 0 && tables.length === 1);
  if (idle.length < 2 || given !== undefined) return named;
  return [
    ...named.filter((group) => !idle.includes(group)),
    {
      name: UNUSED,
      tables: idle.flatMap(({ tables }) => tables).sort(),
      crossing: { value: 0, low: 0, high: 0 },
      crossings: [],
    },
  ];
}

function durationsOf(data: PlanData): {
  readonly all: readonly DurationSample[];
  readonly byHour: ReadonlyMap<number, readonly DurationSample[]>;
} {
  const all = new Map<number, number>();
  const hours = new Map<number, { ms: number; weight: number }[]>();
  for (const { hourOfWeek, upToMicros, weight } of data.durations) {
    all.set(upToMicros, (all.get(upToMicros) ?? 0) + weight);
    const hour = hours.get(hourOfWeek);
    const sample = { ms: upToMicros / 1000, weight };
    if (hour === undefined) hours.set(hourOfWeek, [sample]);
    else hour.push(sample);
  }
  const heavy = [...hours].filter(
    ([, samples]) => samples.reduce((sum, { weight }) => sum + weight, 0) >= HOURLY_WEIGHT_MIN,
  );
  return {
    all: [...all].map(([micros, weight]) => ({ ms: micros / 1000, weight })),
    byHour: new Map(heavy),
  };
}

function unknownOf(data: PlanData, closure: Closure | null, missing: readonly string[]): readonly string[] {
  const unknown: string[] = [];
  if (closure === null)
    unknown.push(
      'No database was read: sizes, foreign keys, triggers, views and functions are not known; subsets are by use in the same transactions alone.',
    );
  const intervals = [...data.intervals.values()];
  const sum = (pick: (one: (typeof intervals)[number]) => number): number =>
    intervals.reduce((total, one) => total + pick(one), 0);
  const statements = sum((one) => one.statements);
  const unparsed = sum((one) => one.unparsed);
  const dropped = sum((one) => one.dropped);
  const percent = (part: number): string => {
    const share = (100 * part) / Math.max(1, statements + dropped);
    return share < 0.1 ? 'less than 0.1 %' : `${share.toFixed(1)} %`;
  };
  if (unparsed > 0)
    unknown.push(
      `${percent(unparsed)} of statements could not be read in full: which tables they use is not certain.`,
    );
  if (dropped > 0) unknown.push(`${percent(dropped)} of statements passed by uncounted.`);
  if (data.coAccess.length === 0) unknown.push('Which tables are used together was not seen.');
  if (missing.length > 0) {
    const more = missing.length > NAMED_MAX ? ` and ${missing.length - NAMED_MAX} more` : '';
    unknown.push(
      `Used, but not in the catalogs (dropped, temporary, or named otherwise): ${missing.slice(0, NAMED_MAX).join(', ')}${more}.`,
    );
  }
  return unknown;
}
