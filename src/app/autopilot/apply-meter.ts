/** How fast the lane writes when it has as much to write as it can: measured between two looks at a lane that is late. */
import type { ShadowStatus } from '../../core/ports.js';
import { medianOf } from '../../predict/numeric.js';
import type { Rate } from '../../predict/timeline.js';

/** Later than that, a lane has a backlog. */
const LATE_MS = 2_000;
/** A look too soon after another says little. */
const APART_MS = 1_000;
const SAMPLES_MAX = 20;

interface Look {
  readonly atMs: number;
  readonly changes: number;
}

export class ApplyMeter {
  #last: Look | undefined;
  readonly #samples: number[] = [];

  look({ streams }: Pick<ShadowStatus, 'streams'>, nowMs: number): void {
    const forward = streams.find(({ direction }) => direction === 'forward');
    if (forward === undefined || (forward.lagMs ?? 0) < LATE_MS) {
      this.#last = undefined;
      return;
    }
    const last = this.#last;
    if (last !== undefined && nowMs - last.atMs < APART_MS) return;
    this.#last = { atMs: nowMs, changes: forward.changesApplied };
    // A counter that fell is of a thread that began anew.
    const written = last === undefined ? 0 : forward.changesApplied - last.changes;
    if (last === undefined || written <= 0) return;
    this.#samples.push(written / ((nowMs - last.atMs) / 1000));
    if (this.#samples.length > SAMPLES_MAX) this.#samples.shift();
  }

  /** null: the lane never had a backlog. */
  get rate(): Rate | null {
    if (this.#samples.length === 0) return null;
    return {
      value: medianOf(this.#samples),
      low: Math.min(...this.#samples),
      high: Math.max(...this.#samples),
      samples: this.#samples.length,
    };
  }
}
