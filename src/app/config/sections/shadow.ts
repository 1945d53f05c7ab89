/** How the shadow is built and kept. */
import { z } from 'zod';
import { SHADOW_METHODS } from '../../../core/ports.js';
import { CONFLICT_RULES } from '../../../shadow/conflicts/rule.js';
import { SHADOW_DEFAULTS as SHADOW } from '../../../shadow/settings.js';
import {
  bytes,
  choice,
  count,
  factor,
  flag,
  milliseconds,
  millisecondsOr,
  nameMap,
  optionalFile,
  tableFormats,
} from '../leaf.js';

export const shadowSection = z.strictObject({
  enabled: flag('Build and follow the shadow. False runs the proxy alone.', true),
  method: choice(
    'How changes are learned of: from the `log`, from the proxy’s own writes (`mirror`), by asking the tables (`poll`). `auto` takes the best that the source allows, see docs/shadow.md.',
    ['auto', ...SHADOW_METHODS],
    SHADOW.method,
  ),
  pollIntervalMs: milliseconds(
    'By `poll`: the pause between two polls of the source’s tables.',
    SHADOW.pollIntervalMs,
  ),
  mirrorRingBytes: bytes(
    'By `mirror`: memory between the proxy and the thread that reads its statements. When it is full, statements are dropped, and every table is compared.',
    16 * 1024 * 1024,
    { max: 1_073_741_824 },
  ),
  compareIntervalMs: milliseconds(
    'By `mirror` and `poll`: how often a table is compared although nothing is known against it.',
    SHADOW.compareIntervalMs,
  ),
  versionColumns: nameMap(
    'By `poll`: tables, and the timestamp column that says when each of their rows was written last. Other tables are asked by xmin.',
    'public.orders=updated_at',
  ),
  format: z
    .strictObject({
      schemas: nameMap(
        'Schemas whose tables are in another schema on the destination (docs/format.md).',
        'public=sales',
      ),
      compatibility: choice(
        'Whether a table under another name has a view under its old one, by which the application’s statements go on working.',
        ['views', 'none'],
        'views',
      ),
      tables: tableFormats(
        'What the destination has in another form than the source: by `schema.table`, its `name`, its `columns`’ names, their `types` and its `partitioning` there.',
        '{"public.orders": {"types": {"id": "bigint"}}}',
      ),
    })
    .optional(),
  copyRoles: flag('Create the source’s roles on the destination where they are missing.', SHADOW.copyRoles),
  chunkRows: count('Rows per chunk of the copy, at most.', SHADOW.chunkRows),
  chunkBytes: bytes('Bytes a chunk aims at; wide rows make chunks of fewer rows.', SHADOW.chunkBytes, {
    max: 1_073_741_824,
  }),
  copyConcurrency: count('Tables read side by side.', SHADOW.copyConcurrency, { max: 64 }),
  conflicts: z
    .strictObject({
      rule: choice(
        'Which row stands where somebody wrote to the destination past its guard. `module`: a function of yours says.',
        CONFLICT_RULES,
        SHADOW.conflicts.rule,
      ),
      module: optionalFile(
        'By `module`: a JavaScript module that exports `settle(conflict)`, see docs/shadow.md.',
        '/etc/understudy/conflicts.mjs',
      ),
    })
    .prefault({}),
  throttle: z
    .strictObject({
      latencyP99Ms: millisecondsOr(
        'The first copy is held back so that the application’s 99th percentile, as the proxy sees it, stays below that. `auto` is relative to what it is without a copy.',
        ['auto', 'off'],
        SHADOW.throttle.latencyP99Ms,
      ),
      latencyFactor: factor(
        'By `auto`: as a factor of what it is without a copy.',
        SHADOW.throttle.latencyFactor,
      ),
      latencyFloorMs: milliseconds(
        'By `auto`: a percentile below that is good in any case.',
        SHADOW.throttle.latencyFloorMs,
        { min: 0 },
      ),
      standbyLagMs: milliseconds(
        'The same for the lag of the source’s own standbys, where the account may see them; 0 is no bound.',
        SHADOW.throttle.standbyLagMs,
        { min: 0 },
      ),
      shadowLagMs: milliseconds(
        'The same for the lag of the shadow itself while it copies; 0 is no bound.',
        SHADOW.throttle.shadowLagMs,
        { min: 0 },
      ),
      activeMax: count(
        'The same for the number of client sessions that run a statement on the source; 0 is no bound.',
        SHADOW.throttle.activeMax,
        { min: 0, max: 100_000 },
      ),
    })
    .prefault({}),
  flushIntervalMs: milliseconds(
    'A change waits at most that long for others to be written with it.',
    SHADOW.flushIntervalMs,
    { max: 60_000 },
  ),
  flushChangesMax: count(
    'Changes written in one transaction, unless the source’s own is larger.',
    SHADOW.flushChangesMax,
  ),
  streamBytesMax: bytes(
    'Memory for changes received and not yet written, per stream; past it the log waits at the source.',
    SHADOW.streamBytesMax,
    { min: 1_048_576 },
  ),
  statusIntervalMs: milliseconds(
    'How often a server is told how far its log is done with.',
    SHADOW.statusIntervalMs,
    {
      max: 60_000,
    },
  ),
  headPollIntervalMs: milliseconds(
    'How often the head of the log is asked for, which lag is measured against.',
    SHADOW.headPollIntervalMs,
    { max: 60_000 },
  ),
  fingerprintIntervalMs: milliseconds(
    'How often both catalogs are compared with what the shadow was built from.',
    SHADOW.fingerprintIntervalMs,
  ),
  retryFirstMs: milliseconds(
    'Pause before the first new attempt after a passing error.',
    SHADOW.retryFirstMs,
  ),
  retryMaxMs: milliseconds('The longest such pause.', SHADOW.retryMaxMs),
  logBudgetBytes: bytes(
    'Log that a slot may keep on either server; past it the shadow is dropped, before the disk fills. 0: no bound.',
    SHADOW.logBudgetBytes,
    { min: 0 },
  ),
  logPollIntervalMs: milliseconds(
    'How often the log that the slots keep is measured.',
    SHADOW.logPollIntervalMs,
  ),
  recentKeysMax: count('Keys remembered as changed since the last clean comparison.', SHADOW.recentKeysMax, {
    max: 10_000_000,
  }),
  trimIntervalMs: milliseconds('How often some of them are compared and forgotten.', SHADOW.trimIntervalMs),
});
