/** When to switch: the start that stalls the fewest statements. */
import { confidenceOf, type Judgement } from './judgement.js';

/** One possible start. */
export interface Candidate {
  readonly startMs: number;
  /** Predicted statements per second at that time. */
  readonly statements: { readonly median: number; readonly low: number; readonly high: number };
  /** Predicted stall at that time, ms, with the term `abortProbability`. */
  readonly stall: Judgement;
}

export interface WindowChoice extends Judgement {
  readonly startMs: number;
  readonly endMs: number;
  /** Predicted statements stalled beyond those of the best window. */
  readonly regret: number;
  readonly stallMs: number;
  readonly stallLowMs: number;
  readonly stallHighMs: number;
  /** What the stall is made of, ms: the terms of {@link Candidate.stall} that are times. */
  readonly stallTerms: Readonly<Record<string, number>>;
}

export interface WindowOptions {
  readonly stepMs: number;
  readonly windowSteps: number;
  /** Windows wanted; each lies apart from those before it. */
  readonly count: number;
  /** The shadow is not ready before; earlier starts are left out. */
  readonly readyMs: number;
  readonly observations: number;
}

/** A switch that the drain deadline aborts has stalled its statements for nothing and must be tried again. */
function stalled(rate: number, stallMs: number, abortProbability: number): number {
  return (rate * (stallMs / 1000)) / Math.max(0.05, 1 - abortProbability);
}

/**
 * Ranks windows by the mean over their starts of predicted stalled statements, `rate(t)·stall(t) / (1 − P(abort))`, on
 * statement rate and transaction tail at each start. `value` is that number; `regret` against the best. Ties go to the
 * earlier. Empty where no candidate is ready. `candidates`: one per step, ascending.
 * (Low-load windows by forecast: Poppe et al., Seagull, VLDB 2020.)
 */
export function bestWindows(
  candidates: readonly Candidate[],
  options: WindowOptions,
): readonly WindowChoice[] {
  return rankWindows(candidates, options).windows;
}

/** {@link bestWindows}, and beside them the earliest start that is ready: what it costs not to wait. */
export function rankWindows(
  candidates: readonly Candidate[],
  options: WindowOptions,
): { readonly windows: readonly WindowChoice[]; readonly earliest: WindowChoice | undefined } {
  const ready = candidates.filter(({ startMs }) => startMs >= options.readyMs);
  const starts = ready.length - options.windowSteps + 1;
  const ranked: { readonly from: number; readonly cost: number }[] = [];
  const costs = ready.map(({ statements, stall }) =>
    stalled(statements.median, stall.value, stall.terms['abortProbability'] ?? 0),
  );
  for (let from = 0; from < starts; from++) {
    let cost = 0;
    for (let step = from; step < from + options.windowSteps; step++) cost += costs[step] ?? 0;
    ranked.push({ from, cost: cost / options.windowSteps });
  }
  ranked.sort((a, b) => a.cost - b.cost || a.from - b.from);
  const best = ranked[0]?.cost ?? 0;
  const chosen: { readonly from: number; readonly cost: number }[] = [];
  for (const one of ranked) {
    if (chosen.length >= options.count) break;
    if (chosen.every(({ from }) => Math.abs(from - one.from) >= options.windowSteps)) chosen.push(one);
  }
  const made = ({ from, cost }: { readonly from: number; readonly cost: number }): WindowChoice =>
    choice(ready.slice(from, from + options.windowSteps), cost, cost - best, options);
  const earliest = ranked.find(({ from }) => from === 0);
  return { windows: chosen.map(made), earliest: earliest === undefined ? undefined : made(earliest) };
}

function choice(
  within: readonly Candidate[],
  cost: number,
  regret: number,
  options: WindowOptions,
): WindowChoice {
  const mean = (pick: (one: Candidate) => number): number =>
    within.reduce((sum, one) => sum + pick(one), 0) / within.length;
  const abort = mean(({ stall }) => stall.terms['abortProbability'] ?? 0);
  const stallMs = mean(({ stall }) => stall.value);
  const startMs = within[0]?.startMs ?? 0;
  return {
    startMs,
    endMs: startMs + within.length * options.stepMs,
    regret,
    stallMs,
    stallLowMs: mean(({ stall }) => stall.low),
    stallHighMs: mean(({ stall }) => stall.high),
    stallTerms: Object.fromEntries(
      Object.keys(within[0]?.stall.terms ?? {})
        .filter((term) => term.endsWith('Ms'))
        .map((term) => [term, mean(({ stall }) => stall.terms[term] ?? 0)]),
    ),
    value: cost,
    low: Math.min(
      cost,
      mean(({ statements, stall }) => stalled(statements.low, stall.low, 0)),
    ),
    high: Math.max(
      cost,
      mean(({ statements, stall }) => stalled(statements.high, stall.high, abort)),
    ),
    terms: {
      statementsPerSecond: mean(({ statements }) => statements.median),
      stallMs,
      abortProbability: abort,
    },
    confidence: confidenceOf(options.observations),
    reason:
      regret === 0
        ? `The fewest stalled statements of all starts looked at: ${cost.toFixed(1)}.`
        : `${regret < 0.05 ? 'Less than 0.1' : regret.toFixed(1)} stalled statements more than the best window.`,
  };
}
