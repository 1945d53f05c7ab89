/** How an intensity of 0…1 bears on the shadow's pace. */

/** The longest a change waits, at intensity 0. */
const FLUSH_INTERVAL_MAX_MS = 60_000;
/** At the least, the copy reads this share of the time. */
const COPY_SHARE_MIN = 0.02;
/** At the least, a lane writes this share of the time: the log that it keeps must not grow without need. */
const APPLY_SHARE_MIN = 0.1;

/** Milliseconds a change may wait for others: `eagerMs` at 1, 60 s at 0, and evenly by factors in between. */
export function flushIntervalMs(intensity: number, eagerMs: number): number {
  const eager = Math.max(1, eagerMs);
  if (intensity >= 1 || eager >= FLUSH_INTERVAL_MAX_MS) return eagerMs;
  return Math.round(eager * (FLUSH_INTERVAL_MAX_MS / eager) ** (1 - intensity));
}

/** How long the copy rests after a chunk that took `busyMs`, so that it reads `intensity` of the time. */
export function copyRestMs(intensity: number, busyMs: number): number {
  return restMs(Math.max(COPY_SHARE_MIN, intensity), busyMs);
}

/** How long a lane with more to write rests after a flush that took `busyMs`. */
export function applyRestMs(intensity: number, busyMs: number): number {
  return restMs(Math.max(APPLY_SHARE_MIN, intensity), busyMs);
}

function restMs(share: number, busyMs: number): number {
  return (busyMs * (1 - Math.min(1, share))) / Math.min(1, share);
}
