/** Recorded against replayed: rows, errors and latency, statement by statement. Values are not compared. */
import { LatencyHistogram } from '../../capture/latency.js';
import { StatementCache } from '../../capture/statements.js';
import type { Outcome } from '../../wire/recording.js';

/** Shapes told apart; further ones count together. */
const SHAPES_MAX = 1_000;
const OTHER_SHAPES = '(other)';
const DIFFERENCES_SHOWN_MAX = 10;
const SLOWEST_SHOWN = 10;
const SHAPE_CHARS_MAX = 200;

export type DifferenceKind = 'rows' | 'failed-now' | 'succeeded-now' | 'other-error';

export interface Latencies {
  readonly p50: number;
  readonly p90: number;
  readonly p99: number;
  readonly max: number;
}
export interface LatencyPair {
  readonly statements: number;
  readonly recordedMs: Latencies;
  readonly replayedMs: Latencies;
}
export interface Difference {
  readonly difference: DifferenceKind;
  readonly session: number;
  /** Counted from 1 within the session. */
  readonly statement: number;
  /** Without literals. */
  readonly shape: string;
  readonly recorded: { readonly rows: number; readonly errorClass: string | null };
  readonly replayed: { readonly rows: number; readonly errorClass: string | null };
}

export interface ComparisonReport {
  /** Compared one by one. */
  readonly statements: number;
  readonly differing: Readonly<Record<DifferenceKind, number>>;
  readonly first: readonly Difference[];
  /** Recorded and not replayed, or the other way round. */
  readonly onlyRecorded: number;
  readonly onlyReplayed: number;
  readonly all: LatencyPair;
  readonly kinds: readonly ({ readonly kind: string } & LatencyPair)[];
  /** By replayed p99, descending. */
  readonly slowest: readonly ({ readonly shape: string } & LatencyPair)[];
}

class PairOfHistograms {
  readonly #recorded = new LatencyHistogram();
  readonly #replayed = new LatencyHistogram();
  statements = 0;

  add(recordedMicros: number, replayedMicros: number): void {
    this.#recorded.add(recordedMicros);
    this.#replayed.add(replayedMicros);
    this.statements += 1;
  }

  summary(): LatencyPair {
    return {
      statements: this.statements,
      recordedMs: latencies(this.#recorded),
      replayedMs: latencies(this.#replayed),
    };
  }
}

function latencies(histogram: LatencyHistogram): Latencies {
  const { p50, p99, max } = histogram.summary();
  return { p50, p90: histogram.quantileMs(0.9), p99, max };
}

interface Queues {
  readonly recorded: Outcome[];
  readonly replayed: { readonly outcome: Outcome; readonly text: string }[];
  compared: number;
}

export class Comparison {
  readonly #statements = new StatementCache();
  readonly #queues = new Map<number, Queues>();
  readonly #all = new PairOfHistograms();
  readonly #kinds = new Map<string, PairOfHistograms>();
  readonly #shapes = new Map<string, PairOfHistograms>();
  readonly #differing: Record<DifferenceKind, number> = {
    rows: 0,
    'failed-now': 0,
    'succeeded-now': 0,
    'other-error': 0,
  };
  readonly #first: Difference[] = [];

  recorded(session: number, outcome: Outcome): void {
    const queues = this.#queuesOf(session);
    queues.recorded.push(outcome);
    this.#compare(session, queues);
  }

  replayed(session: number, outcome: Outcome, text: string): void {
    const queues = this.#queuesOf(session);
    queues.replayed.push({ outcome, text });
    this.#compare(session, queues);
  }

  #queuesOf(session: number): Queues {
    let queues = this.#queues.get(session);
    if (queues === undefined) {
      queues = { recorded: [], replayed: [], compared: 0 };
      this.#queues.set(session, queues);
    }
    return queues;
  }

  #compare(session: number, queues: Queues): void {
    const [recorded] = queues.recorded;
    const [replayed] = queues.replayed;
    if (recorded === undefined || replayed === undefined) return;
    queues.recorded.shift();
    queues.replayed.shift();
    queues.compared += 1;
    const { kind, shape: whole } = this.#statements.statement(replayed.text);
    const shape = whole.slice(0, SHAPE_CHARS_MAX);
    const micros = [recorded.durationMicros, replayed.outcome.durationMicros] as const;
    this.#all.add(...micros);
    pairIn(this.#kinds, kind).add(...micros);
    const known = this.#shapes.has(shape) || this.#shapes.size < SHAPES_MAX;
    pairIn(this.#shapes, known ? shape : OTHER_SHAPES).add(...micros);
    const difference = differenceOf(recorded, replayed.outcome);
    if (difference === null) return;
    this.#differing[difference] += 1;
    if (this.#first.length >= DIFFERENCES_SHOWN_MAX) return;
    this.#first.push({
      difference,
      session,
      statement: queues.compared,
      shape,
      recorded: told(recorded),
      replayed: told(replayed.outcome),
    });
  }

  report(): ComparisonReport {
    let onlyRecorded = 0;
    let onlyReplayed = 0;
    for (const queues of this.#queues.values()) {
      onlyRecorded += queues.recorded.length;
      onlyReplayed += queues.replayed.length;
    }
    const kinds = [...this.#kinds].map(([kind, pair]) => ({ kind, ...pair.summary() }));
    const shapes = [...this.#shapes].map(([shape, pair]) => ({ shape, ...pair.summary() }));
    return {
      statements: this.#all.statements,
      differing: this.#differing,
      first: this.#first,
      onlyRecorded,
      onlyReplayed,
      all: this.#all.summary(),
      kinds: kinds.sort((one, other) => other.statements - one.statements),
      slowest: shapes.sort((one, other) => other.replayedMs.p99 - one.replayedMs.p99).slice(0, SLOWEST_SHOWN),
    };
  }
}

function pairIn(pairs: Map<string, PairOfHistograms>, name: string): PairOfHistograms {
  let pair = pairs.get(name);
  if (pair === undefined) {
    pair = new PairOfHistograms();
    pairs.set(name, pair);
  }
  return pair;
}

function differenceOf(recorded: Outcome, replayed: Outcome): DifferenceKind | null {
  if (recorded.errorClass !== replayed.errorClass) {
    if (recorded.errorClass === 0) return 'failed-now';
    return replayed.errorClass === 0 ? 'succeeded-now' : 'other-error';
  }
  return recorded.rows === replayed.rows ? null : 'rows';
}

function told({ rows, errorClass }: Outcome): { readonly rows: number; readonly errorClass: string | null } {
  const text = errorClass === 0 ? null : String.fromCharCode(errorClass & 0xff, errorClass >>> 8);
  return { rows, errorClass: text };
}
