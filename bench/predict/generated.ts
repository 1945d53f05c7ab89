/** Decisions on the seeded generator, where the truth is known. */
import { divergenceScore, keyDistance, keyDrift, rewrittenShare } from '../../src/predict/divergence.js';
import { fitAll } from '../../src/predict/fit-all.js';
import { groupTables, type Grouping } from '../../src/predict/grouping.js';
import { heaviest, HeatTracker, PARTS } from '../../src/predict/heat-tracker.js';
import { hotSet, WRITE_WEIGHT } from '../../src/predict/hot-set.js';
import { seededRandom } from '../../src/predict/random.js';
import { Track } from '../../src/predict/track.js';
import { Application, countOf, MODULES, rateOf, truth, type Module } from './generator.js';

export interface GeneratedResult {
  readonly hotSet: {
    readonly recall: number;
    readonly heatShare: number;
    readonly clairvoyantShare: number;
    readonly hours: number;
    /** Of as many keys, those that the last day's accesses put first: what a plan takes. */
    readonly dayRecall: number;
    readonly dayHeatShare: number;
  };
  readonly priority: { readonly tau: number; readonly naiveTau: number; readonly origins: number };
  readonly divergence: {
    readonly trueAlarms: number;
    readonly missed: number;
    readonly falseAlarms: number;
    readonly subsetHours: number;
  };
  readonly grouping: Pick<Grouping, 'crossingShare' | 'crossingSharePerTable'> & {
    readonly groups: number;
    readonly asPlanted: boolean;
  };
}

/** c alone passes it when a third of the hot rows are rewritten per refresh. */
const ALARM = 0.5;
const FIRST_HOUR = 22 * 24;
const DAY_HOURS = 24;

export function benchGenerated(seed: number, days: number): GeneratedResult {
  return { ...keysAndTables(seed, days), priority: priorities(seed) };
}

interface ModuleState {
  readonly tracker: HeatTracker<number>;
  hot: ReadonlySet<number>;
  /** Heat by key of each of the last {@link DAY_HOURS}. */
  readonly day: ReadonlyMap<number, number>[];
  dayHot: ReadonlySet<number>;
  counts: Map<number, number>;
  writes: Map<number, number>;
  /** Distance between successive hours, by hour. */
  readonly distances: Map<number, number>;
}

interface Tally {
  recall: number;
  heat: number;
  dayRecall: number;
  dayHeat: number;
  best: number;
  hours: number;
  trueAlarms: number;
  missed: number;
  falseAlarms: number;
  judged: number;
}

/** Replays the last days of the fourth week key by key, the hot set predicted before each hour. */
function keysAndTables(seed: number, days: number): Omit<GeneratedResult, 'priority'> {
  const generator = new Application(seed);
  const states = new Map<Module, ModuleState>(
    MODULES.map((module) => [
      module,
      {
        tracker: new HeatTracker<number>(2000, 1000),
        hot: new Set(),
        day: [],
        dayHot: new Set(),
        counts: new Map(),
        writes: new Map(),
        distances: new Map(),
      },
    ]),
  );
  const sets = new Map<string, { tables: readonly string[]; weight: number }>();
  const tally: Tally = {
    recall: 0,
    heat: 0,
    dayRecall: 0,
    dayHeat: 0,
    best: 0,
    hours: 0,
    trueAlarms: 0,
    missed: 0,
    falseAlarms: 0,
    judged: 0,
  };
  for (let hour = FIRST_HOUR; hour < FIRST_HOUR + days * 24; hour++) {
    const transactions = [...generator.hour(hour)];
    for (const { tables } of transactions) {
      const name = tables.join(' ');
      const own = sets.get(name) ?? { tables, weight: 0 };
      own.weight += 1;
      sets.set(name, own);
    }
    for (const module of MODULES) {
      const state = states.get(module);
      if (state !== undefined)
        playHour(
          module,
          hour,
          transactions.filter((one) => one.module === module),
          state,
          tally,
        );
    }
  }
  const grouping = groupTables({
    tables: MODULES.flatMap((module) => [0, 1, 2].map((table) => `${module}_${table}`)),
    uses: [...sets.values()],
    bound: [],
    foreignKeys: [],
  });
  const { recall, heat, best, hours, trueAlarms, missed, falseAlarms, judged } = tally;
  return {
    hotSet: {
      recall: recall / hours,
      heatShare: heat / hours,
      clairvoyantShare: best / hours,
      hours,
      dayRecall: tally.dayRecall / hours,
      dayHeatShare: tally.dayHeat / hours,
    },
    divergence: { trueAlarms, missed, falseAlarms, subsetHours: judged },
    grouping: {
      groups: grouping.groups.length,
      asPlanted: grouping.groups.every(
        (group) => group.length === 3 && new Set(group.map((one) => one.split('_')[0])).size === 1,
      ),
      crossingShare: grouping.crossingShare,
      crossingSharePerTable: grouping.crossingSharePerTable,
    },
  };
}

type Played = readonly { readonly key: number; readonly write: boolean }[];

function playHour(
  module: Module,
  hour: number,
  transactions: Played,
  state: ModuleState,
  tally: Tally,
): void {
  const counts = new Map<number, number>();
  const writes = new Map<number, number>();
  const heat = new Map<number, number>();
  for (const { key, write } of transactions) {
    counts.set(key, (counts.get(key) ?? 0) + 1);
    heat.set(key, (heat.get(key) ?? 0) + (write ? WRITE_WEIGHT : 1));
    if (write) writes.set(key, (writes.get(key) ?? 0) + 1);
  }
  if (hour >= FIRST_HOUR + 6 && transactions.length >= 100) scoreHotSet(state, heat, tally);
  const distance = keyDistance(state.counts, counts);
  state.distances.set(hour, distance);
  state.counts = counts;
  state.writes = writes;
  const part = Math.max(1, Math.ceil(transactions.length / PARTS));
  for (const [index, { key, write }] of transactions.entries()) {
    state.tracker.offer(key, write);
    if (index % part === part - 1) state.tracker.closePart();
  }
  state.hot = hotSet(state.tracker.predict(), state.hot, transactions.length).keys;
  state.day.push(heat);
  if (state.day.length > DAY_HOURS) state.day.shift();
  state.dayHot = hottestOfDay(state.day, state.hot.size);
  if (hour >= FIRST_HOUR + 30) scoreAlarm(module, hour, distance, writes, state, tally);
}

function hottestOfDay(hours: readonly ReadonlyMap<number, number>[], count: number): ReadonlySet<number> {
  const sums = new Map<number, number>();
  for (const hour of hours) for (const [key, heat] of hour) sums.set(key, (sums.get(key) ?? 0) + heat);
  return new Set(heaviest(sums, count).map(([key]) => key));
}

function scoreHotSet(
  { hot, dayHot }: Pick<ModuleState, 'hot' | 'dayHot'>,
  heat: ReadonlyMap<number, number>,
  tally: Tally,
): void {
  const keys = [...heat].map(([key, value]) => ({ key, heat: value }));
  const clairvoyant = hotSet(keys, new Set<number>(), keys.length);
  let total = 0;
  let covered = 0;
  let dayCovered = 0;
  for (const { key, heat: value } of keys) {
    total += value;
    if (hot.has(key)) covered += value;
    if (dayHot.has(key)) dayCovered += value;
  }
  const found = (predicted: ReadonlySet<number>): number =>
    [...clairvoyant.keys].filter((key) => predicted.has(key)).length / clairvoyant.keys.size;
  tally.recall += found(hot);
  tally.dayRecall += found(dayHot);
  tally.heat += covered / total;
  tally.dayHeat += dayCovered / total;
  tally.best += clairvoyant.value;
  tally.hours += 1;
}

/** The score at the end of the hour, with a refresh every ten minutes. The baseline is the same hour a day before. */
function scoreAlarm(
  module: Module,
  hour: number,
  distance: number,
  writes: ReadonlyMap<number, number>,
  state: ModuleState,
  tally: Tally,
): void {
  const rates = [...state.hot].map((key) => writes.get(key) ?? 0);
  const drift = keyDrift(distance, state.distances.get(hour - 24), 1);
  const score = divergenceScore({ rewritten: rewrittenShare(rates, 600), drift, stale: undefined });
  const alarm = score.value > ALARM;
  const expected = truth.diverges(module, hour);
  tally.judged += 1;
  if (alarm && expected) tally.trueAlarms += 1;
  else if (alarm) tally.falseAlarms += 1;
  else if (expected) tally.missed += 1;
}

/** Subsets by predicted heat of the next day, against the order by the heat that came. */
function priorities(seed: number): GeneratedResult['priority'] {
  const random = seededRandom(seed);
  const hours = 28 * 24;
  const counts = MODULES.map((module) =>
    Array.from({ length: hours }, (_, hour) => countOf(random, rateOf(module, hour))),
  );
  let tau = 0;
  let naiveTau = 0;
  let origins = 0;
  for (let day = 16; day < 28; day += 2) {
    const tracks = counts.map((own) => {
      const track = Track.empty(24, 0);
      for (const count of own.slice(0, day * 24)) track.push(count);
      return track;
    });
    const fitting = fitAll(tracks, { horizons: [1, 24], passes: 1, stepsMax: 336, seed });
    let step = fitting.next();
    while (step.done !== true) step = fitting.next();
    const path = Array.from({ length: 24 }, (_, hour) => hour + 1);
    const predicted = step.value.map((ensemble) =>
      ensemble.forecast(path).reduce((sum, fan) => sum + fan.median, 0),
    );
    const actual = counts.map((own) => own.slice(day * 24, day * 24 + 24).reduce((sum, one) => sum + one, 0));
    const before = counts.map((own) => own.slice(day * 24 - 24, day * 24).reduce((sum, one) => sum + one, 0));
    tau += kendall(predicted, actual);
    naiveTau += kendall(before, actual);
    origins += 1;
  }
  return { tau: tau / origins, naiveTau: naiveTau / origins, origins };
}

/** Kendall's τ: 1 where all pairs are in the same order, −1 where none is. */
function kendall(a: readonly number[], b: readonly number[]): number {
  let agree = 0;
  let pairs = 0;
  for (let i = 0; i < a.length; i++) {
    for (let j = i + 1; j < a.length; j++) {
      agree += Math.sign((a[i] ?? 0) - (a[j] ?? 0)) * Math.sign((b[i] ?? 0) - (b[j] ?? 0));
      pairs += 1;
    }
  }
  return agree / pairs;
}
