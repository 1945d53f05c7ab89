/** Never a bare number: what every decision returns. */

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
