/**
 * One import: statements, from logs or from snapshots, through the collector that live capture uses, batch by batch to where
 * series are kept.
 *
 * The writer's name is taken from what is imported and with which options, and batches are cut by count: importing the same
 * again gives the same batches with the same ids, which the store does not add twice.
 */
import type { CatalogSnapshot } from '../../capture/catalog.js';
import { COLLECTOR_DEFAULTS, SeriesCollector } from '../../capture/collector.js';
import { PostgresParser } from '../../capture/parser.js';
import type { CapturedStatement, SeriesBatch, StatementSink } from '../../core/capture-ports.js';
import { Heat, type HeatSummary } from './heat.js';

/** Few enough that a batch stays within the collector's bounds whatever its statements touch. */
const BATCH_STATEMENTS = 20_000;
/** Files further apart than this have a gap between them, of which nothing is known. */
const GAP_MS = 600_000;
/** A log may span years: its minutes are written out by the week. */
const OBSERVED_AT_ONCE_MS = 7 * 86_400_000;

/** Where batches go; null: nowhere, they are only added up. */
export interface SeriesTarget {
  append(batch: SeriesBatch): Promise<void>;
}

export interface Span {
  readonly fromMs: number;
  readonly untilMs: number;
}

export class ImportRun implements StatementSink {
  readonly #target: SeriesTarget | null;
  readonly #collector: SeriesCollector;
  readonly #heat = new Heat();
  readonly #ready: SeriesBatch[] = [];
  #statements = 0;

  private constructor(target: SeriesTarget | null, collector: SeriesCollector) {
    this.#target = target;
    this.#collector = collector;
  }

  /** `catalog`: by which names are resolved; null: they stay as they are written. `secret`: keys are counted, hashed with it; takes
   *  the catalog, which knows them. */
  static async start(
    writer: string,
    target: SeriesTarget | null,
    catalog: CatalogSnapshot | null,
    secret: Buffer | null = null,
  ): Promise<ImportRun> {
    const parser = new PostgresParser();
    // Without it, what the texts' tokens tell has to do.
    await parser.load();
    const collector = new SeriesCollector({ ...COLLECTOR_DEFAULTS, writer, keys: secret !== null }, parser);
    if (secret !== null) collector.setSecret(secret);
    if (catalog !== null) collector.setCatalog(catalog);
    return new ImportRun(target, collector);
  }

  add(statement: CapturedStatement): void {
    this.#collector.add(statement);
    this.#statements += 1;
    if (this.#statements % BATCH_STATEMENTS === 0) this.#take();
  }

  #take(): void {
    const batch = this.#collector.take();
    if (batch === null) return;
    this.#heat.add(batch);
    if (this.#target !== null) this.#ready.push(batch);
  }

  /** Writes out what is gathered; call it often. */
  async flush(): Promise<void> {
    for (let batch = this.#ready.shift(); batch !== undefined; batch = this.#ready.shift())
      await this.#target?.append(batch);
  }

  /** `spans`: when the logs were written, in order. */
  async finish(spans: readonly Span[]): Promise<HeatSummary> {
    for (const { fromMs, untilMs } of joined(spans)) {
      for (let at = fromMs; at < untilMs; at += OBSERVED_AT_ONCE_MS) {
        this.#collector.observed(at, Math.min(untilMs, at + OBSERVED_AT_ONCE_MS));
        this.#take();
        await this.flush();
      }
    }
    this.#take();
    await this.flush();
    return this.#heat.summary();
  }

  /** Statements that found no room in the collector. */
  get shed(): number {
    return this.#collector.shed.statements;
  }
}

/** Spans that overlap, or follow one another closely, are one. */
function joined(spans: readonly Span[]): readonly Span[] {
  const whole: { fromMs: number; untilMs: number }[] = [];
  for (const { fromMs, untilMs } of [...spans].sort((one, other) => one.fromMs - other.fromMs)) {
    const last = whole.at(-1);
    if (last !== undefined && fromMs - last.untilMs <= GAP_MS) last.untilMs = Math.max(last.untilMs, untilMs);
    else whole.push({ fromMs, untilMs });
  }
  return whole;
}
