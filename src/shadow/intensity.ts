/** How an intensity of 0…1 bears on the shadow's pace. */

/** The longest a change waits, at intensity 0. */
const FLUSH_INTERVAL_MAX_MS = 60_000;
/** At the least, the copy reads this share of the time. */
const COPY_SHARE_MIN = 0.02;

/** Milliseconds a change may wait for others: `eagerMs` at 1, 60 s at 0, and evenly by factors in between. */
export function flushIntervalMs(intensity: number, eagerMs: number): number {
  const eager = Math.max(1, eagerMs);
  if (intensity >= 1) return eagerMs;
  return Math.round(eager * (FLUSH_INTERVAL_MAX_MS / eager) ** (1 - intensity));
}

/** How long the copy rests after a chunk that took `busyMs`, so that it reads `intensity` of the time. */
export function copyRestMs(intensity: number, busyMs: number): number {
  const share = Math.min(1, Math.max(COPY_SHARE_MIN, intensity));
  return (busyMs * (1 - share)) / share;
}
