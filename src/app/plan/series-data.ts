/**
 * What a plan is made from, wherever it was kept: the destination's schema, or files of `import-log --out`. Figures by the
 * hour; several sources are added up.
 */
import type {
  CoAccess,
  HotKeys,
  SeriesBatch,
  SeriesInterval,
  SeriesStore,
  TransactionDurations,
} from '../../core/capture-ports.js';
import { UnderstudyError } from '../../core/errors.js';
import { SERIES_RESOLUTION_MS } from '../../core/capture-ports.js';
import { isCount } from '../../predict/numeric.js';

const HOUR_MS = SERIES_RESOLUTION_MS.hour;
/** Hot keys are looked at for so long: today, and the same hour a week ago. */
const HOT_KEYS_MS = 8 * 24 * HOUR_MS;

/** One table in one hour. */
export interface HourFigures {
  reads: number;
  writes: number;
  rowsWritten: number;
}

export interface PlanData {
  /** By table, by the start of the hour. */
  readonly tables: ReadonlyMap<string, ReadonlyMap<number, HourFigures>>;
  /** What was observed of each hour, by its start. */
  readonly intervals: ReadonlyMap<number, SeriesInterval>;
  readonly coAccess: readonly CoAccess[];
  readonly durations: readonly TransactionDurations[];
  readonly hotKeys: readonly HotKeys[];
  /** Where it comes from, for people. */
  readonly origin: string;
  /** When the last thing was observed; null where nothing was. To the minute. */
  readonly untilMs: number | null;
  /** What was left out of it, one sentence each. */
  readonly notes: readonly string[];
}

/** What could no clock have said. */
const LAST_MS = Date.UTC(10_000, 0);
const WEEK_HOURS = 168;

/** Whether all its figures are counts, and all its times times. */
function isSound(entry: object): boolean {
  return Object.entries(entry).every(
    ([name, value]) =>
      value !== null &&
      (typeof value !== 'number' || (isCount(value) && !(name.endsWith('Ms') && value >= LAST_MS))),
  );
}

export class PlanDataBuilder {
  readonly #tables = new Map<string, Map<number, HourFigures>>();
  readonly #intervals = new Map<number, SeriesInterval>();
  readonly #coAccess = new Map<string, CoAccess>();
  readonly #durations = new Map<string, TransactionDurations>();
  readonly #hotKeys = new Map<string, HotKeys>();
  #untilMs: number | null = null;
  #unsound = 0;

  /**
   * Adds minutes, hours or anything between: each counts for the hour it lies in. What is no count (somebody else's hand in
   * the kept series) is left out, and said.
   */
  add(
    batch: Omit<SeriesBatch, 'id' | 'writer' | 'transitions' | 'statements'> & { readonly writer?: string },
  ): void {
    for (const { table, startMs, reads, writes, rowsWritten } of this.#sound(batch.points)) {
      const figures = this.#figures(table, hourOf(startMs));
      figures.reads += reads;
      figures.writes += writes;
      figures.rowsWritten += rowsWritten;
    }
    for (const interval of this.#sound(batch.intervals)) this.#interval(interval);
    for (const use of this.#sound(batch.coAccess)) {
      const key = `${use.a}\0${use.b}`;
      const known = this.#coAccess.get(key);
      this.#coAccess.set(
        key,
        known === undefined
          ? use
          : {
              ...use,
              transactions: use.transactions + known.transactions,
              weight: use.weight + known.weight,
            },
      );
    }
    for (const one of this.#sound(batch.transactionDurations)) {
      if (one.hourOfWeek >= WEEK_HOURS) continue;
      const key = `${one.hourOfWeek} ${one.upToMicros}`;
      const known = this.#durations.get(key);
      this.#durations.set(key, known === undefined ? one : { ...one, weight: one.weight + known.weight });
    }
    // A writer’s later word on a table and hour takes the place of the earlier one.
    for (const hot of this.#sound(batch.hotKeys)) {
      const keys = this.#sound(hot.keys);
      this.#hotKeys.set(`${batch.writer ?? ''}\0${hot.table}\0${hot.startMs}`, { ...hot, keys });
    }
  }

  #sound<T extends object>(entries: readonly T[]): readonly T[] {
    const sound = entries.filter(isSound);
    this.#unsound += entries.length - sound.length;
    return sound;
  }

  #figures(table: string, hour: number): HourFigures {
    let hours = this.#tables.get(table);
    if (hours === undefined) this.#tables.set(table, (hours = new Map()));
    let figures = hours.get(hour);
    if (figures === undefined) hours.set(hour, (figures = { reads: 0, writes: 0, rowsWritten: 0 }));
    return figures;
  }

  #interval(interval: SeriesInterval): void {
    const startMs = hourOf(interval.startMs);
    const known = this.#intervals.get(startMs);
    const plus = (pick: (one: SeriesInterval) => number): number =>
      pick(interval) + (known === undefined ? 0 : pick(known));
    this.#intervals.set(startMs, {
      startMs,
      observedMs: Math.min(
        HOUR_MS,
        plus((one) => one.observedMs),
      ),
      statements: plus((one) => one.statements),
      errors: plus((one) => one.errors),
      dropped: plus((one) => one.dropped),
      unparsed: plus((one) => one.unparsed),
      committed: plus((one) => one.committed),
      rolledBack: plus((one) => one.rolledBack),
    });
    const end = interval.startMs + Math.max(1, interval.observedMs);
    this.#untilMs = Math.max(this.#untilMs ?? end, end);
  }

  build(origin: string): PlanData {
    return {
      tables: this.#tables,
      intervals: this.#intervals,
      coAccess: [...this.#coAccess.values()],
      durations: [...this.#durations.values()],
      hotKeys: [...this.#hotKeys.values()].sort((a, b) => a.startMs - b.startMs),
      origin,
      untilMs: this.#untilMs,
      notes:
        this.#unsound === 0
          ? []
          : [`${this.#unsound} kept figures are no counts, or of no time, and were left out.`],
    };
  }
}

function hourOf(ms: number): number {
  return Math.floor(ms / HOUR_MS) * HOUR_MS;
}

/**
 * Batches of files of series. A batch that is in two of them counts once. Throws `series-invalid` where a figure is negative or
 * no number: a file that somebody edited.
 */
export async function dataFromBatches(
  batches: AsyncIterable<SeriesBatch>,
  origin: string,
): Promise<PlanData> {
  const builder = new PlanDataBuilder();
  const seen = new Set<string>();
  for await (const batch of batches) {
    if (seen.has(batch.id)) continue;
    seen.add(batch.id);
    assertFigures(batch);
    builder.add(batch);
  }
  return builder.build(origin);
}

function assertFigures(batch: SeriesBatch): void {
  const lists = [
    batch.points,
    batch.intervals,
    batch.coAccess,
    batch.transactionDurations,
    batch.hotKeys,
  ] as readonly unknown[];
  const wrong = (): UnderstudyError =>
    new UnderstudyError('series-invalid', `Batch ${batch.id} holds a figure that is no count.`, {
      advice: 'Make the file anew with `understudy import-log --out`.',
    });
  for (const list of lists) {
    if (!Array.isArray(list)) throw wrong();
    for (const entry of list as readonly unknown[])
      if (typeof entry !== 'object' || entry === null || !isSound(entry)) throw wrong();
  }
}

/** The kept series of the last `days`. Throws `destination-unreachable`. */
export async function dataFromStore(
  store: SeriesStore,
  nowMs: number,
  days: number,
  origin: string,
): Promise<PlanData> {
  const range = { fromMs: nowMs - days * 24 * HOUR_MS, untilMs: nowMs };
  const [tables, intervals, coAccess, transactionDurations, hotKeys] = [
    await store.tables('hour', range),
    await store.intervals('hour', range),
    await store.coAccess(nowMs),
    await store.transactionDurations(nowMs),
    await store.hotKeys({ fromMs: nowMs - HOT_KEYS_MS, untilMs: nowMs }),
  ];
  const builder = new PlanDataBuilder();
  builder.add({
    points: tables.flatMap(({ table, points }) => points.map((point) => ({ ...point, table }))),
    intervals,
    coAccess,
    transactionDurations,
    hotKeys,
  });
  return builder.build(origin);
}
