/** What is learned from statements that pass. */
import { z } from 'zod';
import { SERIES_STORE_DEFAULTS as SERIES } from '../../../capture/series-store.js';
import { bytes, count, flag, milliseconds } from '../leaf.js';

export const captureSection = z.strictObject({
  enabled: flag('Count statements per table and kind.', true),
  ringBytes: bytes(
    'Room between the proxy and the capture thread; what does not fit is dropped and counted.',
    4_194_304,
    {
      min: 65_536,
      max: 1_073_741_824,
    },
  ),
  textBytesMax: bytes('A statement’s text is cut there before it is parsed.', 4096, {
    min: 128,
    max: 65_536,
  }),
  keys: flag(
    'Count which keys are used most. Keys are kept as keyed hashes; values are never stored or logged.',
    false,
  ),
  parameterBytesMax: bytes(
    'Bound parameters of a statement are looked at up to there, and only where `capture.keys` is true.',
    512,
    { min: 16, max: 65_536 },
  ),
  hotKeysMax: count('Keys counted per table and hour, where `capture.keys` is true.', 1_000, {
    max: 100_000,
  }),
  series: flag('Keep what was captured in the destination, in schema `understudy`.', true),
  flushIntervalMs: milliseconds('How often it is written there.', 60_000, { max: 3_600_000 }),
  catalogIntervalMs: milliseconds(
    'How often the catalogs are read, by which names in statements are resolved; after DDL at once.',
    300_000,
    { max: 86_400_000 },
  ),
  minutesKeptDays: count('Days for which figures per minute are kept.', SERIES.minutesKeptDays, {
    max: 36_500,
  }),
  fiveMinutesKeptDays: count(
    'Days for which figures per five minutes, and hot keys, are kept.',
    SERIES.fiveMinutesKeptDays,
    { max: 36_500 },
  ),
  hoursKeptDays: count(
    'Days for which figures per hour, and statements not seen again, are kept.',
    SERIES.hoursKeptDays,
    { max: 36_500 },
  ),
});
