/** What the loop that plans may do, and when. */
import { z } from 'zod';
import { AUTOPILOT_MODES } from '../../../core/autopilot-ports.js';
import { choice, count, flag, fraction, milliseconds, optionalText, text } from '../leaf.js';

export const autopilotSection = z.strictObject({
  mode: choice(
    'Whether the loop (docs/autopilot.md) plans and says when to switch (`suggest`), or switches by itself too (`on`).',
    AUTOPILOT_MODES,
    'suggest',
  ),
  checkIntervalMs: milliseconds('How often it looks at the situation.', 30_000, { max: 3_600_000 }),
  steer: flag(
    'Whether the plan sets how eager the shadow is, and what it copies first. An intensity set by hand is left alone.',
    true,
  ),
  steerDownAfterMs: milliseconds(
    'It is made less eager only after the reason for more has been gone for that long; more eager at once.',
    600_000,
  ),
  allowedHours: optionalText(
    'Hours in which it may switch or suggest to: days, times or both, separated by commas.',
    {
      expected: 'spans such as Mon-Fri 01:00-05:00, Sun',
      example: 'Mon-Fri 01:00-05:00, Sun',
      defaultText: 'all',
    },
  ),
  timezone: text('The clock of these hours, and of people’s habits.', 'UTC', 'a name such as Europe/Dublin'),
  stallMaxMs: milliseconds('No switch while the upper end of the predicted stall is above it.', 1_000),
  abortProbabilityMax: fraction(
    'No switch while the chance that open transactions outlast `cutover.drainTimeoutMs` is above it.',
    0.2,
  ),
  divergenceMax: fraction(
    'A subset that diverges by that much is a reason to switch in any allowed hour.',
    0.8,
  ),
  crossingMax: fraction(
    'Where `subsets` are configured: no switch of one by itself while a larger share of its transactions was seen to touch what would be on the other side, and would fail.',
    0.001,
  ),
  observedHoursMin: count('Hours of traffic that must have been watched before a window is believed.', 48, {
    max: 10_000,
  }),
  retryFirstMs: milliseconds(
    'Pause after a switch by itself that was refused or aborted; doubled each time.',
    900_000,
    {
      max: 31 * 86_400_000,
    },
  ),
  retryMaxMs: milliseconds('The longest such pause.', 86_400_000, { max: 31 * 86_400_000 }),
  retireAfterMs: milliseconds(
    'When the destination has led for so long, the shadow, which is the way back, is retired by itself (`on`), or that is suggested. 0: never.',
    0,
    { min: 0, max: 31 * 86_400_000 },
  ),
});
