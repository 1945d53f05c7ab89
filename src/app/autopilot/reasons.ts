/** Rules that hold for whatever is switched: the whole database, or one of several subsets. Pure. */
import type { SubsetId } from '../../core/ports.js';
import { HOUR_MS } from '../../predict/series.js';
import type { PlanReport, SubsetReport, WindowReport } from '../plan/plan-report.js';
import type { Attempt, AutopilotLimits, LastOperation, Reason, Situation, Verdict } from './situation.js';

/** Starting now may cost so much more than the best window: a fifth, or half a statement. */
const REGRET_SHARE = 0.2;
const REGRET_STATEMENTS = 0.5;

/** Nothing is left to switch. */
export function overReason({ leader, finalized }: Situation): Reason | undefined {
  if (!finalized && leader !== 'destination') return undefined;
  return [
    'destination-leads',
    finalized
      ? 'The migration is over: there is nothing to decide.'
      : 'The destination leads. Its shadow, the way back, is kept until `understudy finalize`.',
  ];
}

/** `of`: the subset, where there are several. */
export function attentionReason(operation: LastOperation | null, of?: SubsetId): Reason | undefined {
  if (operation?.state !== 'in-doubt' && operation?.state !== 'failed') return undefined;
  const { kind, state } = operation;
  return [
    'attention',
    `The last ${kind}${of === undefined ? '' : ` of ${of}`} is ${state}: a person must look.`,
  ];
}

export const OUTSIDE_HOURS: Reason = ['outside-hours', 'This hour is not among autopilot.allowedHours.'];

/** What stands against every switch, whatever of. */
export function unreadyReason(situation: Situation, limits: AutopilotLimits): Reason | undefined {
  const { leader, shadow, plan, nowMs } = situation;
  if (leader === undefined) return ['route-unknown', 'It is not known which side leads.'];
  if (situation.operationRunning) return ['busy', 'An operation is running.'];
  if (shadow.phase !== 'following') return ['not-ready', `The shadow is not ready: ${shadow.phase}.`];
  const lag = lagReason(shadow, limits);
  if (lag !== undefined) return lag;
  if (plan === undefined) return ['no-plan', 'No plan could be made yet.'];
  if (nowMs - Date.parse(plan.asOf) >= 2 * HOUR_MS) return ['no-plan', `The plan is of ${plan.asOf}.`];
  const hours = plan.observed?.hours ?? 0;
  if (hours < limits.observedHoursMin)
    return [
      'too-little-seen',
      `${hours < 1 ? 'Less than an hour' : `${Math.floor(hours)} hours`} watched of the ${limits.observedHoursMin} that a window takes.`,
    ];
  return undefined;
}

/**
 * By `log` within what a cutover allows, in bytes and in time. By the other methods a lag has no bytes, and between two rounds
 * it grows by the pause that the pace makes: what is beyond that counts. Preflight begins a round of its own.
 */
function lagReason(
  { method, lagMs, lagBytes, roundMs, exactMs }: Situation['shadow'],
  { lagMsMax, lagBytesMax }: AutopilotLimits,
): Reason | undefined {
  const bytes = method === 'log' ? lagBytes : 0;
  if (lagMs === null || bytes === null) return ['lag', 'The lag is not known.'];
  if (lagMs > lagMsMax + roundMs || bytes > lagBytesMax)
    return [
      'lag',
      `The shadow is ${Math.round(lagMs)} ms${method === 'log' ? ` and ${bytes} bytes` : ''} behind.`,
    ];
  // By the log preflight measures it.
  if (method !== 'log' && exactMs == null)
    return ['not-ready', 'What comparing everything takes, as behind the fence, is not known yet.'];
  return undefined;
}

/** What this hour would cost, where that is too much, or not known. */
export function stallReason(row: SubsetReport, nowMs: number, limits: AutopilotLimits): Reason | undefined {
  const now = windowOfHour(row, nowMs);
  if (now === undefined)
    return row.converges === false
      ? ['not-ready', 'At these rates the shadow never catches up.']
      : ['no-plan', 'Nothing is predicted for this hour.'];
  if (now.stallMs.high > limits.stallMsMax)
    return [
      'stall-too-long',
      `Clients might wait ${Math.round(now.stallMs.high)} ms, more than autopilot.stallMaxMs.`,
    ];
  if (now.abortProbability > limits.abortProbabilityMax)
    return [
      'stall-too-long',
      `Transactions last so long that the drain deadline would abort ${Math.round(100 * now.abortProbability)} % of tries.`,
    ];
  return undefined;
}

/** The window that the present lies in, as of the plan; undefined where none was predicted for it. */
export function windowOfHour({ earliest }: SubsetReport, nowMs: number): WindowReport | undefined {
  if (earliest === null) return undefined;
  return nowMs >= Date.parse(earliest.start) && nowMs < Date.parse(earliest.end) ? earliest : undefined;
}

/** Since the last that was done; the newest first. */
export function failedInARow(attempts: readonly Attempt[]): readonly Attempt[] {
  const done = attempts.findIndex(({ outcome }) => outcome === 'done');
  return done < 0 ? attempts : attempts.slice(0, done);
}

/** Doubled with each try in a row that failed. */
export function backOffUntilMs(attempts: readonly Attempt[], limits: AutopilotLimits): number {
  const failed = failedInARow(attempts);
  const last = failed[0];
  if (last === undefined) return -Infinity;
  return last.atMs + Math.min(limits.retryMaxMs, limits.retryFirstMs * 2 ** Math.min(30, failed.length - 1));
}

export function backingOff(
  attempts: readonly Attempt[],
  nowMs: number,
  limits: AutopilotLimits,
): Reason | undefined {
  const untilMs = backOffUntilMs(attempts, limits);
  if (nowMs >= untilMs) return undefined;
  return ['backing-off', `The last try failed: not before ${new Date(untilMs).toISOString()}.`];
}

/** It diverges so far that it is a reason to switch. */
export function driftReason(
  { subset, divergence }: SubsetReport,
  limits: AutopilotLimits,
): Reason | undefined {
  if (divergence.confidence === 'none' || !(divergence.value >= limits.divergenceMax)) return undefined;
  return ['divergence', `${subset} diverges by ${divergence.value.toFixed(2)}: ${divergence.reason}`];
}

/** This hour is hardly worse than the best of those to come. */
export function windowReason(row: SubsetReport, nowMs: number): Reason | undefined {
  const now = windowOfHour(row, nowMs);
  const best = row.windows[0];
  if (now === undefined || best === undefined) return undefined;
  const bearable = Math.max(REGRET_STATEMENTS, REGRET_SHARE * best.stalledStatements.value);
  if (now.regret > bearable) return undefined;
  return [
    'window',
    `This hour would hold ${now.stalledStatements.value.toFixed(1)} statements for about ${Math.round(now.stallMs.value)} ms; the best of those to come ${best.stalledStatements.value.toFixed(1)}.`,
  ];
}

export function notNow(row: SubsetReport | undefined): string {
  const best = row?.windows[0];
  return best === undefined ? 'No window is in sight.' : `A better hour begins ${best.start}.`;
}

export function shadowFigures(shadow: Situation['shadow'], plan: PlanReport | undefined): Verdict['figures'] {
  return {
    lagMs: shadow.lagMs,
    lagBytes: shadow.lagBytes,
    ...(shadow.exactMs === undefined ? {} : { exactMs: shadow.exactMs }),
    planAsOf: plan?.asOf ?? null,
    observedHours: plan?.observed?.hours ?? null,
  };
}

export function windowFigures(row: SubsetReport | undefined, nowMs: number): Verdict['figures'] {
  const now = row === undefined ? undefined : windowOfHour(row, nowMs);
  const best = row?.windows[0];
  return {
    stallMs: now?.stallMs.value ?? null,
    stallHighMs: now?.stallMs.high ?? null,
    stalledStatements: now?.stalledStatements.value ?? null,
    regret: now?.regret ?? null,
    abortProbability: now?.abortProbability ?? null,
    bestWindow: best?.start ?? null,
    bestStallMs: best?.stallMs.value ?? null,
  };
}
