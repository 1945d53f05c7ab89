/** How long clients will wait at a switch: drain + final apply + verify + switch. */
import { confidenceOf, type Judgement } from './judgement.js';
import { clamp, medianOf } from './numeric.js';

/** A duration that stands for `weight` transactions. */
export interface WeightedDuration {
  readonly ms: number;
  readonly weight: number;
}
/** One transaction, or many alike. */
export type DurationSample = number | WeightedDuration;

/** Durations of past transactions, prepared for {@link drainQuantile}. */
export class TransactionDurations {
  readonly #sorted: Float64Array;
  /** Σ of weights, and of weight · duration, from i on. */
  readonly #weightAbove: Float64Array;
  readonly #above: Float64Array;

  /** Those that are negative or no number are left out. */
  constructor(durations: Iterable<DurationSample>) {
    const kept = [...durations]
      .map((one) => (typeof one === 'number' ? { ms: one, weight: 1 } : one))
      .filter(({ ms, weight }) => Number.isFinite(ms) && ms >= 0 && Number.isFinite(weight) && weight > 0)
      .sort((a, b) => a.ms - b.ms);
    this.#sorted = Float64Array.from(kept, ({ ms }) => ms);
    this.#weightAbove = new Float64Array(kept.length + 1);
    this.#above = new Float64Array(kept.length + 1);
    for (const [back, { ms, weight }] of kept.toReversed().entries()) {
      const index = kept.length - 1 - back;
      this.#weightAbove[index] = (this.#weightAbove[index + 1] as number) + weight;
      this.#above[index] = (this.#above[index + 1] as number) + weight * ms;
    }
  }

  /** Transactions behind it. */
  get count(): number {
    return this.#weightAbove[0] ?? 0;
  }

  get max(): number {
    return this.#sorted.at(-1) ?? 0;
  }

  /** E[(D − x)⁺] in ms. */
  excess(x: number): number {
    if (this.count === 0) return 0;
    let low = 0;
    let high = this.#sorted.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.#sorted[middle] as number) > x) high = middle;
      else low = middle + 1;
    }
    return ((this.#above[low] as number) - x * (this.#weightAbove[low] as number)) / this.count;
  }
}

/**
 * The q-quantile of the time until the last open transaction has ended, ms. Transactions begin as a Poisson stream of rate
 * λ and last as they did: those open at an instant are Poisson with mean λE[D] and residual lives of density (1 − F)/E[D],
 * so `P(drain ≤ x) = exp(−λ·E[(D − x)⁺])` (the M/G/∞ queue: Takács, Introduction to the Theory of Queues, 1962).
 */
export function drainQuantile(durations: TransactionDurations, perSecond: number, q: number): number {
  const lambda = perSecond / 1000;
  const holds = (x: number): boolean => Math.exp(-lambda * durations.excess(x)) >= q;
  if (holds(0)) return 0;
  let low = 0;
  let high = durations.max;
  for (let round = 0; round < 50; round++) {
    const middle = (low + high) / 2;
    if (holds(middle)) high = middle;
    else low = middle;
  }
  return high;
}

/** Probability that some transaction is still open after `ms`. */
export function drainMissProbability(durations: TransactionDurations, perSecond: number, ms: number): number {
  return 1 - Math.exp((-perSecond / 1000) * durations.excess(ms));
}

/** Drains are believed to differ from the model by that much at the most. */
const DRAIN_FACTOR_MAX = 10;
const DRAINS_MIN = 3;

/**
 * How long drains took in relation to what is modelled of one at the usual rate; 1 where fewer than three were measured.
 * `drainsMs`: of past switches.
 */
export function drainFactor(
  drainsMs: readonly number[],
  durations: TransactionDurations,
  transactionsPerSecond: number,
): number {
  const modelled = drainQuantile(durations, transactionsPerSecond, 0.5);
  if (drainsMs.length < DRAINS_MIN || modelled <= 0) return 1;
  return clamp(medianOf(drainsMs) / modelled, 1 / DRAIN_FACTOR_MAX, DRAIN_FACTOR_MAX);
}

export interface StallInput {
  readonly durations: TransactionDurations;
  /** Predicted transactions per second at the time of the switch. */
  readonly transactionsPerSecond: number;
  /** Predicted changes per second, and the lag in which they gather before the fence. */
  readonly writesPerSecond: number;
  readonly lagMs: number;
  readonly applyChangesPerSecond: number;
  /** Rows to compare behind the fence, and how fast. */
  readonly verifyRows: number;
  readonly verifyRowsPerSecond: number;
  /** Measured medians of the fixed parts: fence and mark, verify's own, commit and switch. */
  readonly fixedMs: { readonly fence: number; readonly verify: number; readonly switch: number };
  /** What comes over whole behind the fence, as measured beside live traffic; 0 where absent. */
  readonly exactMs?: number;
  readonly drainTimeoutMs: number;
  /** What drains were measured to take, in relation to what was modelled of them; 1 where absent. */
  readonly drainFactor?: number;
  /** Factor between what is not the drain and its 5 % and 95 % quantiles; 1 where absent. */
  readonly spread?: number;
}

/** Factor between what was measured beside live traffic and what it takes behind a fence, either way. */
const EXACT_SPREAD = 2;

/**
 * `stall = drain + final apply + verify + switch`, ms; to the final apply belongs what comes over whole, `exactMs`. value, low and
 * high take the 50 %, 5 % and 95 % quantile of the drain, of `exactMs` by a factor of two, and of the rest by `spread`; what each
 * adds to the ends is added as of independent parts, by squares. Terms in ms, and the probability that the drain deadline aborts
 * the switch.
 */
export function predictStall(input: StallInput): Judgement {
  const drain = (q: number): number =>
    Math.min(
      input.drainTimeoutMs,
      drainQuantile(input.durations, input.transactionsPerSecond, q) * (input.drainFactor ?? 1),
    );
  const waiting = input.writesPerSecond * (input.lagMs / 1000);
  const apply = input.fixedMs.fence + (1000 * waiting) / Math.max(1e-9, input.applyChangesPerSecond);
  const verify = input.fixedMs.verify + (1000 * input.verifyRows) / Math.max(1e-9, input.verifyRowsPerSecond);
  const rest = apply + verify + input.fixedMs.switch;
  const exact = input.exactMs ?? 0;
  const spread = input.spread ?? 1;
  const abort = drainMissProbability(input.durations, input.transactionsPerSecond, input.drainTimeoutMs);
  const drainMs = drain(0.5);
  const value = drainMs + rest + exact;
  return {
    value,
    low: value - Math.hypot(drainMs - drain(0.05), rest - rest / spread, exact - exact / EXACT_SPREAD),
    high: value + Math.hypot(drain(0.95) - drainMs, rest * spread - rest, exact * EXACT_SPREAD - exact),
    terms: {
      drainMs,
      applyMs: apply + exact,
      verifyMs: verify,
      switchMs: input.fixedMs.switch,
      abortProbability: abort,
    },
    confidence: confidenceOf(input.durations.count),
    reason:
      abort > 0.05
        ? `Transactions last so long that the drain deadline aborts ${(abort * 100).toFixed(0)} % of attempts.`
        : `Drain ${drainMs.toFixed(0)} ms, apply ${(apply + exact).toFixed(0)} ms, verify ${verify.toFixed(0)} ms.`,
  };
}
