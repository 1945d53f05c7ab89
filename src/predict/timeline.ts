/** When a shadow will be complete: copying at a measured rate, then catching up against the predicted writes. */
import { confidenceOf, type Judgement } from './judgement.js';

export interface Rate {
  /** Per second. */
  readonly value: number;
  readonly low: number;
  readonly high: number;
  /** Measurements behind it. */
  readonly samples: number;
}

export interface TimelineInput {
  readonly bytes: number;
  /** What is to be copied grows by so much while it is copied; 0 where absent. */
  readonly growthBytesPerSecond?: number;
  readonly copyBytesPerSecond: Rate;
  readonly applyChangesPerSecond: Rate;
  /** Predicted changes per second for each step from now on; its last value holds beyond. */
  readonly writes: readonly { readonly median: number; readonly low: number; readonly high: number }[];
  readonly stepSeconds: number;
  /** Share of apply that is left while copying goes on, 0…1. */
  readonly applyShareWhileCopying: number;
  /** Changes already waiting. */
  readonly backlog: number;
  /** What past copies of that size took, in place of `bytes / rate`; undefined: there were none. */
  readonly measuredCopy?: Judgement | undefined;
  /** From the last row until it follows closely, beside catching up: indexes, statistics. 0 where absent. */
  readonly finishSeconds?:
    { readonly value: number; readonly low: number; readonly high: number } | undefined;
  /** How far ahead to look. */
  readonly limitSeconds: number;
}

export interface Timeline {
  readonly copySeconds: Judgement;
  /** Infinity where it does not converge; `high` may be infinite where only the upper end does not. */
  readonly readySeconds: Judgement;
  readonly converges: boolean;
}

/**
 * `copy = bytes / (rate − growth)`. Then, step by step, `backlog ← max(0, backlog + (writes − apply)·Δ)`; ready is when the copy has
 * ended and the backlog is gone (a fluid queue: Newell, Applications of Queueing Theory, 1982). The lower end takes the
 * fast rates with the low writes, the upper end the slow rates with the high writes.
 * Terms of ready: copySeconds, catchUpSeconds, headroom = apply − writes per second after the copy.
 */
export function timeline(input: TimelineInput): Timeline {
  const { bytes, copyBytesPerSecond: copy, applyChangesPerSecond: apply } = input;
  const growth = input.growthBytesPerSecond ?? 0;
  const seconds = (rate: number): number =>
    bytes <= 0 ? 0 : rate > growth ? bytes / (rate - growth) : Number.POSITIVE_INFINITY;
  const copySeconds: Judgement = input.measuredCopy ?? {
    value: seconds(copy.value),
    low: seconds(copy.high),
    high: seconds(copy.low),
    terms: { bytes, bytesPerSecond: copy.value, growthBytesPerSecond: growth },
    confidence: confidenceOf(copy.samples),
    reason: `${bytes} bytes at ${Math.round(copy.value)} bytes/s${copy.samples === 0 ? ', a guess: none was measured' : ''}.`,
  };
  const finish = input.finishSeconds ?? { value: 0, low: 0, high: 0 };
  const value = simulate(input, copySeconds.value + finish.value, apply.value, 'median');
  const low = simulate(input, copySeconds.low + finish.low, apply.high, 'low');
  const high = simulate(input, copySeconds.high + finish.high, apply.low, 'high');
  const converges = Number.isFinite(value);
  const after = writesAt(input, copySeconds.value, 'median');
  return {
    copySeconds,
    converges,
    readySeconds: {
      value,
      low: Math.min(low, value),
      high: Math.max(high, value),
      terms: {
        copySeconds: copySeconds.value,
        catchUpSeconds: converges ? value - copySeconds.value : Number.POSITIVE_INFINITY,
        headroom: apply.value - after,
      },
      confidence: input.measuredCopy?.confidence ?? confidenceOf(Math.min(copy.samples, apply.samples)),
      reason: converges
        ? `Copied after ${copySeconds.value.toFixed(0)} s, caught up ${(value - copySeconds.value).toFixed(0)} s later.`
        : `Does not converge within ${(input.limitSeconds / 3600).toFixed(1)} h: ${after.toFixed(0)} changes/s come, ${apply.value.toFixed(0)} are applied.`,
    },
  };
}

type End = 'median' | 'low' | 'high';

function writesAt(input: TimelineInput, second: number, end: End): number {
  const step = Math.min(input.writes.length - 1, Math.floor(second / input.stepSeconds));
  return input.writes[Math.max(0, Number.isFinite(step) ? step : input.writes.length - 1)]?.[end] ?? 0;
}

function simulate(input: TimelineInput, copySeconds: number, apply: number, end: End): number {
  if (copySeconds > input.limitSeconds) return Number.POSITIVE_INFINITY;
  let backlog = input.backlog;
  let now = 0;
  while (now < input.limitSeconds) {
    const copying = now < copySeconds;
    if (!copying && backlog <= 0) return now;
    const stepEnd = (Math.floor(now / input.stepSeconds + 1e-9) + 1) * input.stepSeconds;
    const until = Math.min(stepEnd, copying ? copySeconds : Number.POSITIVE_INFINITY);
    const net = writesAt(input, now + 1e-9, end) - apply * (copying ? input.applyShareWhileCopying : 1);
    if (!copying && net < 0 && backlog / -net <= until - now) return now + backlog / -net;
    backlog = Math.max(0, backlog + net * (until - now));
    now = until;
  }
  return Number.POSITIVE_INFINITY;
}
