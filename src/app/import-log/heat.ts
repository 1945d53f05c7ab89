/** Batches of series added up for a person: which tables are hot, over what span, in which transactions. */
import type { SeriesBatch, StatementUse } from '../../core/capture-ports.js';

/** DESIGN's ω: a write counts as much as three reads. */
const WRITE_WEIGHT = 3;
const STATEMENTS_SHOWN = 10;

export interface TableHeat {
  readonly table: string;
  readonly reads: number;
  readonly writes: number;
  readonly errors: number;
  /** reads + 3 · writes. */
  readonly heat: number;
  /** Of all tables' heat, 0…1. */
  readonly share: number;
  readonly durationMs: number;
}

export interface HeatSummary {
  readonly tables: readonly TableHeat[];
  readonly transactions: { readonly committed: number; readonly rolledBack: number };
  /** Statements whose tables are not known for certain. */
  readonly unparsed: number;
  /** Minutes with statements; the first and the last, ISO 8601. */
  readonly minutes: { readonly count: number; readonly first: string | null; readonly last: string | null };
  /** Statements in the busiest minute. */
  readonly busiestMinute: { readonly start: string; readonly statements: number } | null;
  /** By total duration. */
  readonly shapes: readonly Pick<
    StatementUse,
    'fingerprint' | 'kind' | 'text' | 'executions' | 'errors' | 'durationMicros'
  >[];
}

type Sums = { reads: number; writes: number; errors: number; durationMicros: number };

export class Heat {
  readonly #tables = new Map<string, Sums>();
  readonly #minutes = new Map<number, number>();
  readonly #statements = new Map<string, StatementUse>();
  #committed = 0;
  #rolledBack = 0;
  #unparsed = 0;

  add(batch: SeriesBatch): void {
    for (const point of batch.points) {
      const sums = this.#sumsOf(point.table);
      sums.reads += point.reads;
      sums.writes += point.writes;
      sums.errors += point.errors;
      sums.durationMicros += point.durationMicros;
    }
    for (const interval of batch.intervals) {
      this.#committed += interval.committed;
      this.#rolledBack += interval.rolledBack;
      this.#unparsed += interval.unparsed;
      if (interval.statements > 0)
        this.#minutes.set(interval.startMs, (this.#minutes.get(interval.startMs) ?? 0) + interval.statements);
    }
    for (const use of batch.statements) {
      const known = this.#statements.get(use.fingerprint);
      this.#statements.set(use.fingerprint, known === undefined ? use : together(known, use));
    }
  }

  #sumsOf(table: string): Sums {
    let sums = this.#tables.get(table);
    if (sums === undefined) {
      sums = { reads: 0, writes: 0, errors: 0, durationMicros: 0 };
      this.#tables.set(table, sums);
    }
    return sums;
  }

  summary(): HeatSummary {
    const starts = [...this.#minutes.keys()].sort((a, b) => a - b);
    const busiest = [...this.#minutes].sort((one, other) => other[1] - one[1])[0];
    const iso = (ms: number | undefined): string | null =>
      ms === undefined ? null : new Date(ms).toISOString();
    return {
      tables: this.#hottest(),
      transactions: { committed: this.#committed, rolledBack: this.#rolledBack },
      unparsed: this.#unparsed,
      minutes: { count: starts.length, first: iso(starts[0]), last: iso(starts.at(-1)) },
      busiestMinute: busiest === undefined ? null : { start: iso(busiest[0]) ?? '', statements: busiest[1] },
      shapes: [...this.#statements.values()]
        .sort((one, other) => other.durationMicros - one.durationMicros)
        .slice(0, STATEMENTS_SHOWN)
        .map(({ fingerprint, kind, text, executions, errors, durationMicros }) => ({
          fingerprint,
          kind,
          text,
          executions,
          errors,
          durationMicros,
        })),
    };
  }

  #hottest(): readonly TableHeat[] {
    const heats = [...this.#tables].map(([table, { reads, writes, errors, durationMicros }]) => ({
      table,
      reads,
      writes,
      errors,
      heat: reads + WRITE_WEIGHT * writes,
      durationMs: durationMicros / 1000,
    }));
    const all = heats.reduce((sum, { heat }) => sum + heat, 0);
    return heats
      .map((each) => ({ ...each, share: all === 0 ? 0 : each.heat / all }))
      .sort((one, other) => other.heat - one.heat || one.table.localeCompare(other.table));
  }
}

function together(one: StatementUse, other: StatementUse): StatementUse {
  return {
    ...one,
    executions: one.executions + other.executions,
    errors: one.errors + other.errors,
    rows: one.rows + other.rows,
    durationMicros: one.durationMicros + other.durationMicros,
    firstSeenMs: Math.min(one.firstSeenMs, other.firstSeenMs),
    lastSeenMs: Math.max(one.lastSeenMs, other.lastSeenMs),
  };
}
