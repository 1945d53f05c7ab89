/**
 * Tells a lasting change from a bad hour. The Page–Hinkley test (Page, Biometrika 41, 1954) runs on the standardised
 * one-step errors, both ways; an alarm is raised when its sum passes {@link ALARM}, and the sums start anew.
 */
import { clamp } from './numeric.js';

/** Drift that is borne without suspicion, in standard errors per bucket. */
const SLACK = 0.75;
const ALARM = 15;
/** One error counts at most this much: a single wild bucket is no change. */
const ERROR_MAX = 4;

export interface Alarm {
  /** Index of the bucket at which the sum began to grow. */
  readonly since: number;
  readonly direction: 'up' | 'down';
}

interface Side {
  sum: number;
  since: number;
}

export class ChangeDetector {
  #up: Side = { sum: 0, since: 0 };
  #down: Side = { sum: 0, since: 0 };

  /** `error`: standardised (actual minus expected, over its usual size). Returns an alarm once, then starts anew. */
  add(error: number, index: number): Alarm | undefined {
    const bounded = clamp(Number.isFinite(error) ? error : 0, -ERROR_MAX, ERROR_MAX);
    if (step(this.#up, bounded, index)) return this.#raise('up', this.#up);
    if (step(this.#down, -bounded, index)) return this.#raise('down', this.#down);
    return undefined;
  }

  #raise(direction: 'up' | 'down', side: Side): Alarm {
    const { since } = side;
    this.#up = { sum: 0, since: 0 };
    this.#down = { sum: 0, since: 0 };
    return { since, direction };
  }
}

function step(side: Side, error: number, index: number): boolean {
  if (side.sum === 0) side.since = index;
  side.sum = Math.max(0, side.sum + error - SLACK);
  return side.sum > ALARM;
}
