/**
 * What happened in each minute, per statement as resolved: adding one execution costs the same however many tables it
 * touches; tables are written out when the minute is taken.
 *
 * Bound: so many (minute, statement) cells in all. Past it the oldest minute is given up, and counted, so that a
 * destination that stays away costs memory no more than that.
 */
import type {
  CapturedStatement,
  SeriesFigures,
  SeriesInterval,
  SeriesPoint,
  StatementUse,
} from '../core/capture-ports.js';
import { SERIES_RESOLUTION_MS } from '../core/capture-ports.js';
import type { ResolvedStatement } from './resolve.js';

const MINUTE_MS = SERIES_RESOLUTION_MS.minute;

type Writable<T> = { -readonly [K in keyof T]: T[K] };

class Cell {
  executions = 0;
  errors = 0;
  rows = 0;
  bytesToServer = 0;
  bytesToClient = 0;
  durationMicros = 0;
  firstMs = Infinity;
  lastMs = 0;
}

class Minute {
  readonly startMs: number;
  readonly cells = new Map<ResolvedStatement, Cell>();
  observedMs = 0;
  statements = 0;
  errors = 0;
  dropped = 0;
  unparsed = 0;
  committed = 0;
  rolledBack = 0;

  constructor(startMs: number) {
    this.startMs = startMs;
  }
}

export interface TakenMinutes {
  readonly points: readonly (SeriesPoint & { readonly table: string })[];
  readonly intervals: readonly SeriesInterval[];
  readonly statements: readonly StatementUse[];
}

export class Minutes {
  readonly #cellsMax: number;
  readonly #minutes = new Map<number, Minute>();
  /** The one used last, which is the one used next. */
  #last: Minute = new Minute(-1);
  #cells = 0;
  #shed = 0;

  constructor(cellsMax: number) {
    this.#cellsMax = cellsMax;
  }

  /** Statements given up because nobody took them. */
  get shed(): number {
    return this.#shed;
  }

  get size(): number {
    return this.#cells;
  }

  add(statement: ResolvedStatement, captured: CapturedStatement, unparsed: boolean): void {
    const minute = this.minute(captured.endedAtMs);
    const executions = captured.executions ?? 1;
    let cell = minute.cells.get(statement);
    if (cell === undefined) {
      cell = new Cell();
      minute.cells.set(statement, cell);
      this.#cells += 1;
      if (this.#cells > this.#cellsMax) this.#giveUpOldest();
    }
    const failed = captured.errorClass !== null;
    cell.executions += executions;
    cell.rows += captured.rows;
    cell.bytesToServer += captured.bytesToServer;
    cell.bytesToClient += captured.bytesToClient;
    cell.durationMicros += captured.durationMicros ?? 0;
    if (captured.endedAtMs < cell.firstMs) cell.firstMs = captured.endedAtMs;
    if (captured.endedAtMs > cell.lastMs) cell.lastMs = captured.endedAtMs;
    minute.statements += executions;
    if (unparsed) minute.unparsed += executions;
    if (failed) {
      cell.errors += executions;
      minute.errors += executions;
    }
  }

  minute(atMs: number): Minute {
    const startMs = Math.floor(atMs / MINUTE_MS) * MINUTE_MS;
    if (this.#last.startMs === startMs) return this.#last;
    let minute = this.#minutes.get(startMs);
    if (minute === undefined) {
      minute = new Minute(startMs);
      this.#minutes.set(startMs, minute);
      this.#cells += 1;
      if (this.#cells > this.#cellsMax) this.#giveUpOldest();
    }
    this.#last = minute;
    return minute;
  }

  /** That stretch of time was watched. Bounded by what the cells are bounded by. */
  observed(fromMs: number, untilMs: number): void {
    for (let at = fromMs; at < untilMs;) {
      const end = Math.min(untilMs, (Math.floor(at / MINUTE_MS) + 1) * MINUTE_MS);
      this.minute(at).observedMs += end - at;
      at = end;
    }
  }

  /** Everything, and begins anew. */
  take(): TakenMinutes {
    const minutes = [...this.#minutes.values()].sort((a, b) => a.startMs - b.startMs);
    this.#minutes.clear();
    this.#last = new Minute(-1);
    this.#cells = 0;
    return {
      points: minutes.flatMap(pointsOf),
      intervals: minutes.map(({ cells: _cells, observedMs, ...interval }) => ({
        ...interval,
        observedMs: Math.min(MINUTE_MS, Math.round(observedMs)),
      })),
      statements: statementsOf(minutes),
    };
  }

  #giveUpOldest(): void {
    let oldest: Minute | undefined;
    for (const minute of this.#minutes.values()) {
      if (oldest === undefined || minute.startMs < oldest.startMs) oldest = minute;
    }
    if (oldest === undefined) return;
    this.#minutes.delete(oldest.startMs);
    this.#cells -= oldest.cells.size + 1;
    this.#shed += oldest.statements;
    if (this.#last === oldest) this.#last = new Minute(-1);
  }
}

function pointsOf(minute: Minute): readonly (SeriesPoint & { readonly table: string })[] {
  const tables = new Map<string, Writable<SeriesFigures>>();
  for (const [{ statement, tables: touched }, cell] of minute.cells) {
    for (const { table, reads, writes, kinds } of touched) {
      if (!reads && !writes) continue;
      let figures = tables.get(table);
      if (figures === undefined) {
        figures = {
          reads: 0,
          writes: 0,
          errors: 0,
          rowsRead: 0,
          rowsWritten: 0,
          bytesToServer: 0,
          bytesToClient: 0,
          durationMicros: 0,
        };
        tables.set(table, figures);
      }
      if (reads) figures.reads += cell.executions;
      if (writes) figures.writes += cell.executions;
      figures.errors += cell.errors;
      if (kinds.includes(statement.kind)) {
        if (writes) figures.rowsWritten += cell.rows;
        else figures.rowsRead += cell.rows;
      }
      figures.bytesToServer += cell.bytesToServer;
      figures.bytesToClient += cell.bytesToClient;
      figures.durationMicros += cell.durationMicros;
    }
  }
  return [...tables].map(([table, figures]) => ({ table, startMs: minute.startMs, ...figures }));
}

function statementsOf(minutes: readonly Minute[]): readonly StatementUse[] {
  const uses = new Map<string, Writable<StatementUse>>();
  for (const { cells } of minutes) {
    for (const [{ statement, tables }, cell] of cells) {
      let use = uses.get(statement.fingerprint);
      if (use === undefined) {
        use = {
          fingerprint: statement.fingerprint,
          kind: statement.kind,
          text: statement.shape,
          reads: tables.filter(({ reads }) => reads).map(({ table }) => table),
          writes: tables.filter(({ writes }) => writes).map(({ table }) => table),
          executions: 0,
          errors: 0,
          rows: 0,
          durationMicros: 0,
          firstSeenMs: Infinity,
          lastSeenMs: 0,
        };
        uses.set(statement.fingerprint, use);
      }
      use.executions += cell.executions;
      use.errors += cell.errors;
      use.rows += cell.rows;
      use.durationMicros += cell.durationMicros;
      use.firstSeenMs = Math.min(use.firstSeenMs, cell.firstMs);
      use.lastSeenMs = Math.max(use.lastSeenMs, cell.lastMs);
    }
  }
  return [...uses.values()];
}
