/**
 * The quietest moment of the next few hundred milliseconds, for a gate to close at: what is open then has to end before a
 * switch goes on, and clients wait for the last of it.
 *
 * How much is open is looked at again and again. For a third of the time it is only learned how little that can be; from
 * then on the first moment is taken at which it is as little as at the best of those, later as at the better half of them.
 * Nothing open is taken at once. So a long transaction that stays open all the time costs no more than the time.
 */
import type { Clock } from '../core/clock.js';

/** What a transaction counts for where a statement counts one: its end waits for its client too. */
export const TRANSACTION_OPEN = 3;

const LEARNING_SHARE = 1 / 3;
const TAKEN_SHARE_MAX = 1 / 2;

/**
 * Resolves within `withinMs`, in the very turn of the event loop in which `open` was as little as told above. Looks every
 * `lookEveryMs`. Rejects with the signal's reason.
 */
export async function untilQuiet(
  open: () => number,
  { withinMs, lookEveryMs }: { readonly withinMs: number; readonly lookEveryMs: number },
  clock: Clock,
  signal: AbortSignal,
): Promise<void> {
  const startedMs = clock.monotonicMs();
  const learned: number[] = [];
  for (;;) {
    const now = open();
    const spent = (clock.monotonicMs() - startedMs) / withinMs;
    if (now === 0 || !(spent < 1)) return;
    if (spent < LEARNING_SHARE) insert(learned, now);
    else if (now <= acceptable(learned, (spent - LEARNING_SHARE) / (1 - LEARNING_SHARE))) return;
    await clock.sleep(lookEveryMs, signal);
  }
}

/** `waited`: how much of the time to choose in is over, 0…1. */
function acceptable(learned: readonly number[], waited: number): number {
  return learned[Math.floor(waited * waited * TAKEN_SHARE_MAX * learned.length)] ?? Infinity;
}

/** Keeps them sorted. */
function insert(learned: number[], value: number): void {
  const at = learned.findIndex((each) => each > value);
  learned.splice(at < 0 ? learned.length : at, 0, value);
}
