/** What a forecast can rest on, said before it is believed. */
import type { Confidence } from './judgement.js';
import type { Track } from './track.js';

export interface Knowledge {
  readonly confidence: Confidence;
  /** Observed days, with a fraction. */
  readonly days: number;
  /** One sentence: what is known, and what is not yet. */
  readonly says: string;
}

/**
 * By how much of the past was observed: a day is known after two, a week after three, errors after a month.
 * `observedMs`: of all hours together, where they were not watched whole.
 */
export function knowledgeOf(track: Track, observedMs = Number.POSITIVE_INFINITY): Knowledge {
  let observed = 0;
  for (let index = 0; index < track.length; index++) if (track.observed[index] === 1) observed += 1;
  const days = Math.min(observed / track.perDay, observedMs / 86_400_000);
  const seen = spanText(days);
  if (observed === 0)
    return { confidence: 'none', days, says: 'Nothing has been observed; zero is a guess.' };
  if (days < 2)
    return { confidence: 'low', days, says: `Only ${seen} observed: the recent mean, no daily pattern yet.` };
  if (days < 21)
    return { confidence: 'low', days, says: `${seen} observed: a daily pattern, no sure weekly one.` };
  if (days < 42) return { confidence: 'medium', days, says: `${seen} observed: daily and weekly patterns.` };
  return { confidence: 'high', days, says: `${seen} observed.` };
}

function spanText(days: number): string {
  if (days >= 1) return `${Math.floor(days)} ${Math.floor(days) === 1 ? 'day' : 'days'}`;
  const minutes = Math.max(1, Math.round(days * 1440));
  if (minutes < 120) return minutes === 1 ? '1 minute' : `${minutes} minutes`;
  return `${Math.round(minutes / 60)} hours`;
}
