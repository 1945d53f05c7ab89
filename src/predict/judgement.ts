/** Never a bare number: what every decision returns. */
import { clamp } from './numeric.js';

export type Confidence = 'none' | 'low' | 'medium' | 'high';

export interface Judgement {
  readonly value: number;
  /** Where the value lies nine times of ten, as far as is known. low ≤ value ≤ high. */
  readonly low: number;
  readonly high: number;
  /** What the value was computed from, in the units that the function's docstring names. */
  readonly terms: Readonly<Record<string, number>>;
  readonly confidence: Confidence;
  /** One sentence a person can check. */
  readonly reason: string;
}

/** By how many independent observations stand behind a figure. */
export function confidenceOf(observations: number): Confidence {
  if (observations <= 0) return 'none';
  if (observations < 30) return 'low';
  return observations < 300 ? 'medium' : 'high';
}

/** Wilson's score interval of a share (Wilson, JASA 22, 1927) at 90 %. `trials` > 0. */
export function wilson(hits: number, trials: number): { readonly low: number; readonly high: number } {
  const z = 1.645;
  const share = hits / trials;
  const spread = (z * z) / trials;
  const centre = share + spread / 2;
  const half = z * Math.sqrt((share * (1 - share)) / trials + spread / (4 * trials));
  return {
    low: clamp((centre - half) / (1 + spread), 0, 1),
    high: clamp((centre + half) / (1 + spread), 0, 1),
  };
}
