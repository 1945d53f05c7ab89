/**
 * How fast a shadow goes, and what it does first: what the operator, the planner and the throttle ask of it, in one
 * place. Whoever does the work asks here each time, so that every change counts at once.
 */
import type { Clock } from '../core/clock.js';
import { UnderstudyError } from '../core/errors.js';
import { applyRestMs, copyRestMs, flushIntervalMs } from './intensity.js';

const CHUNK_SHARE_MIN = 1 / 16;

export class Pace {
  /** The first copy reads nothing while this is true. */
  paused = false;
  /** 0…1, as the operator or the planner asks. */
  #intensity = 1;
  /** 0…1, what the throttle leaves of it for the copy. */
  throttle = 1;
  /** The throttle listens to the application alone: the copy waits meanwhile. */
  held = false;
  /** The servers keep too much log for the shadow: what catches up goes at full speed, the copy waits. */
  hurried: () => boolean = () => false;
  #ranks: ReadonlyMap<string, number> = new Map();

  get intensity(): number {
    return this.#intensity;
  }

  set intensity(value: number) {
    this.#intensity = Math.min(1, Math.max(0, value));
  }

  get copyWaits(): boolean {
    return this.paused || this.held || this.hurried();
  }

  /** The share of its usual size that a chunk has: a copy that is held back works in small pieces. */
  get chunkShare(): number {
    return Math.max(CHUNK_SHARE_MIN, Math.min(1, 2 * this.copyShare));
  }

  /** The share of the time in which the copy reads. */
  get copyShare(): number {
    return this.#intensity * this.throttle;
  }

  /** How long the copy rests after a chunk that took `busyMs`. */
  copyRestMs(busyMs: number): number {
    return copyRestMs(this.copyShare, busyMs);
  }

  /** How long a lane rests after a flush that took `busyMs`. */
  applyRestMs(busyMs: number): number {
    return this.hurried() ? 0 : applyRestMs(this.#intensity, busyMs);
  }

  /** `eagerMs` at intensity 1, up to a minute at 0. */
  intervalMs(eagerMs: number): number {
    return this.hurried() ? eagerMs : flushIntervalMs(this.#intensity, eagerMs);
  }

  /** These tables are copied first, in this order; an earlier order is forgotten. Throws `request-invalid` for one that is not `known`. */
  prioritise(tables: readonly string[], known: (table: string) => boolean): void {
    const unknown = tables.find((table) => !known(table));
    if (unknown !== undefined) {
      throw new UnderstudyError('request-invalid', `there is no table ${unknown} to copy`, {
        advice: 'Name tables as schema.name, as `understudy status` shows them.',
      });
    }
    this.#ranks = new Map([...new Set(tables)].map((table, rank) => [table, rank]));
  }

  get first(): readonly string[] {
    return [...this.#ranks.keys()];
  }

  /** Its place in the order asked for; Infinity where nothing was asked. */
  rank(table: string): number {
    return this.#ranks.get(table) ?? Infinity;
  }

  /** Whether `a` is to be copied before `b`: as asked for, else the larger, which decides how long the whole takes. */
  compare(a: Ranked, b: Ranked): number {
    const [first, second] = [this.rank(a.name), this.rank(b.name)];
    if (first !== second) return first < second ? -1 : 1;
    return b.info.bytes - a.info.bytes;
  }
}

const PAUSED_POLL_MS = 100;

/** Resolves once the copy may read. Throws the signal's reason. */
export async function untilMayCopy(pace: Pace, clock: Clock, signal: AbortSignal): Promise<void> {
  while (pace.copyWaits) await clock.sleep(PAUSED_POLL_MS, signal);
}

/** Rests after a part of the copy that took `busyMs`, as long as the pace says, which may change meanwhile. */
export async function restAfter(
  pace: Pace,
  clock: Clock,
  busyMs: number,
  signal: AbortSignal,
): Promise<void> {
  const startedMs = clock.monotonicMs();
  for (;;) {
    const leftMs = startedMs + pace.copyRestMs(busyMs) - clock.monotonicMs();
    if (leftMs < 1) return;
    await clock.sleep(Math.min(leftMs, PAUSED_POLL_MS), signal);
  }
}

/** To be called behind each part of what goes at the copy's pace: rests in proportion to what came before, and waits. */
export function pausing(pace: Pace, clock: Clock, signal: AbortSignal): () => Promise<void> {
  let sinceMs = clock.monotonicMs();
  return async () => {
    await restAfter(pace, clock, clock.monotonicMs() - sinceMs, signal);
    await untilMayCopy(pace, clock, signal);
    sinceMs = clock.monotonicMs();
  };
}

export interface Ranked {
  readonly name: string;
  readonly info: { readonly bytes: number };
}
