/** The loop with what this process has: series, catalogs, shadow, operations. */
import type { Clock } from '../../core/clock.js';
import { asUnderstudyError } from '../../core/errors.js';
import type { Log } from '../../core/log.js';
import type { ShadowControl } from '../../core/ports.js';
import type { ResolvedConfig } from '../config.js';
import type { Operations } from '../operations.js';
import { formatText } from '../plan/measurements.js';
import { Autopilot, type RouteAsKnown } from './autopilot.js';
import { Decisions } from './decisions.js';
import { AllowedHours } from './hours.js';
import { pastSizes, recordSizes } from './past-sizes.js';
import { Tuner } from './tuner.js';

/** Operations that are looked through for how long a switch takes. */
const PAST_SWITCHES = 30;

/** What makes a plan: much to load, which nobody who serves without one should. */
async function planning() {
  const [made, sources, switches] = await Promise.all([
    import('../plan/make.js'),
    import('../plan/sources.js'),
    import('../plan/past-switches.js'),
  ]);
  return { ...made, ...sources, ...switches };
}

export interface AutopilotParts {
  readonly config: ResolvedConfig;
  readonly log: Log;
  readonly clock: Clock;
  readonly shadow: Pick<ShadowControl, 'status' | 'steer'>;
  readonly operations: Operations;
  readonly route: () => RouteAsKnown;
}

export function makeAutopilot({ config, log, clock, shadow, operations, route }: AutopilotParts): Autopilot {
  const { autopilot, cutover } = config;
  const decisions = new Decisions(config.destination);
  // At the start, where it keeps no client waiting.
  let loaded = autopilot.mode === 'off' ? undefined : planning();
  loaded?.catch(() => undefined);
  return new Autopilot({
    limits: {
      mode: autopilot.mode,
      divergenceMax: autopilot.divergenceMax,
      stallMsMax: autopilot.stallMaxMs,
      abortProbabilityMax: autopilot.abortProbabilityMax,
      observedHoursMin: autopilot.observedHoursMin,
      retryFirstMs: autopilot.retryFirstMs,
      retryMaxMs: autopilot.retryMaxMs,
      retireAfterMs: autopilot.retireAfterMs,
      lagMsMax: cutover.lagMsMax,
      lagBytesMax: cutover.lagBytesMax,
      crossingMax: autopilot.crossingMax,
      partingAccepted: cutover.parting === 'accept',
    },
    checkIntervalMs: autopilot.checkIntervalMs,
    hours: AllowedHours.parse(autopilot.allowedHours ?? '', autopilot.timezone),
    decisions,
    plan: async (live, sides, nowMs, signal) => {
      const { closureOf, keptSeries, makePlanReport, measuredSwitch, PLAN_DAYS, PLAN_DEFAULTS } =
        await (loaded ??= planning());
      const data = await keptSeries(config, nowMs, PLAN_DAYS);
      const closure = await closureOf(config);
      const { operations: past } = await decisions.list(PAST_SWITCHES);
      const copies = await decisions.pastCopies();
      if (typeof closure !== 'string') {
        const bytes = new Map(closure.tables.map((table) => [table.table, table.bytes]));
        // A plan without this hour's sizes is a plan; one more hour will come.
        await recordSizes(config.destination, { atMs: nowMs, bytes }).catch((error: unknown) => {
          const { code, message } = asUnderstudyError(error, 'destination-unreachable', 'sizes');
          log.debug({ code, error: message }, 'sizes could not be kept');
        });
      }
      const switches = measuredSwitch(past.map(({ report }) => report));
      return makePlanReport(
        {
          ...(switches === undefined ? {} : { measuredSwitch: switches }),
          data,
          closure: typeof closure === 'string' ? null : closure,
          live,
          sides,
          past: copies,
          sizes: await pastSizes(config.destination),
          configured: config.subsets,
          format: formatText(config.shadow.format),
          staleAllowanceMs: cutover.lagMsMax,
          nowMs,
          zone: autopilot.timezone,
          drainTimeoutMs: cutover.drainTimeoutMs,
          logBudgetBytes: config.shadow.logBudgetBytes,
          ...PLAN_DEFAULTS,
        },
        signal,
      );
    },
    tuner: !autopilot.steer
      ? undefined
      : new Tuner({
          mode: autopilot.mode,
          decisions,
          steer: (command) => shadow.steer(command),
          eagerMs: {
            flushInterval: config.shadow.flushIntervalMs,
            pollInterval: config.shadow.pollIntervalMs,
          },
          lagMsMax: cutover.lagMsMax,
          downAfterMs: autopilot.steerDownAfterMs,
          log,
        }),
    logBudgetBytes: config.shadow.logBudgetBytes,
    route,
    shadow: () => shadow.status(),
    operationRunning: () => operations.running,
    operate: (operation, options, confirm) =>
      operations.operate(operation, options, () => undefined, confirm),
    log,
    clock,
  });
}
