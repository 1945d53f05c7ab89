/**
 * What the loop does next, from what it knows. Pure; every rule that keeps a switch from happening by itself is here.
 *
 * A verdict is, in this order of questions:
 *   rest     nothing is left to decide: the destination leads, a person rolled back, an operation is in doubt
 *   wait     not yet: no route, an operation under way, no plan, shadow not ready, too little seen, backing off, outside of
 *            the allowed hours, the stall too long, no reason to switch now
 *   suggest  a person should switch now
 *   cutover  the same with autopilot `on`
 *   retire   the destination has led for so long that the way back may end (`suggest` where autopilot is not `on`)
 *
 * Invariants: `cutover` is never the verdict unless the source leads, the shadow follows with a known and small lag, no
 * operation runs, the hour is allowed, the stall's upper end is within its limit, and no back-off is running. `retire` never is
 * unless the newest operation is a cutover that was done, and a person has set a time for it. What is not known counts against
 * either.
 */
import type { OperationKind, OperationState, ShadowPhase, Side } from '../../core/ports.js';
import { HOUR_MS } from '../../predict/series.js';
import type { AutopilotMode, VerdictKind } from '../../core/autopilot-ports.js';
import type { PlanReport, SubsetReport, WindowReport } from '../plan/plan-report.js';

export interface AutopilotLimits {
  readonly mode: AutopilotMode;
  /** A subset whose divergence reaches it is a reason to switch. */
  readonly divergenceMax: number;
  /** The upper end of the predicted stall. */
  readonly stallMsMax: number;
  /** Chance that the drain deadline aborts the switch. */
  readonly abortProbabilityMax: number;
  /** Hours that must have been watched before a window is believed. */
  readonly observedHoursMin: number;
  readonly retryFirstMs: number;
  readonly retryMaxMs: number;
  /** After so long a time on the destination the shadow is retired; 0: never by itself. */
  readonly retireAfterMs: number;
  readonly lagMsMax: number;
  readonly lagBytesMax: number;
}

export interface Attempt {
  readonly atMs: number;
  /** null: it is not known how it ended, as after a crash. */
  readonly outcome: 'done' | 'refused' | 'aborted' | null;
}

export interface Situation {
  readonly nowMs: number;
  /** undefined: not known. */
  readonly leader: Side | undefined;
  readonly finalized: boolean;
  readonly operationRunning: boolean;
  readonly hourAllowed: boolean;
  readonly shadow: {
    readonly phase: ShadowPhase;
    readonly lagMs: number | null;
    readonly lagBytes: number | null;
  };
  readonly plan: PlanReport | undefined;
  /** The loop's own tries, the newest first. */
  readonly attempts: readonly Attempt[];
  /** The newest operation in the journal; null: none. */
  readonly lastOperation: {
    readonly kind: OperationKind;
    readonly state: OperationState;
    /** ISO 8601; null: it has not ended. */
    readonly finishedAt: string | null;
  } | null;
}

export type VerdictCode =
  | 'destination-leads'
  | 'rolled-back'
  | 'attention'
  | 'route-unknown'
  | 'busy'
  | 'no-plan'
  | 'not-ready'
  | 'lag'
  | 'too-little-seen'
  | 'backing-off'
  | 'outside-hours'
  | 'stall-too-long'
  | 'not-now'
  | 'window'
  | 'divergence'
  | 'proven';

export interface Verdict {
  readonly kind: VerdictKind;
  readonly code: VerdictCode;
  readonly reason: string;
  /** What it was decided on. */
  readonly figures: Readonly<Record<string, number | string | null>>;
}

/** Starting now may cost so much more than the best window: a fifth, or half a statement. */
const REGRET_SHARE = 0.2;
const REGRET_STATEMENTS = 0.5;

export function decide(situation: Situation, limits: AutopilotLimits): Verdict {
  const figures = figuresOf(situation);
  const verdict = (kind: Verdict['kind'], code: VerdictCode, reason: string): Verdict => ({
    kind,
    code,
    reason,
    figures,
  });
  const proven = provenReason(situation, limits);
  if (proven !== undefined) return verdict(limits.mode === 'on' ? 'retire' : 'suggest', ...proven);
  const rest = restReason(situation);
  if (rest !== undefined) return verdict('rest', ...rest);
  const wait = waitReason(situation, limits);
  if (wait !== undefined) return verdict('wait', ...wait);
  const trigger = triggerOf(situation, limits);
  if (trigger === undefined) return verdict('wait', 'not-now', notNow(situation.plan));
  return verdict(limits.mode === 'on' ? 'cutover' : 'suggest', ...trigger);
}

type Reason = readonly [VerdictCode, string];

/** Why the shadow behind a switch may end, and the way back with it. */
function provenReason(situation: Situation, limits: AutopilotLimits): Reason | undefined {
  const { leader, finalized, lastOperation, nowMs, attempts } = situation;
  if (leader !== 'destination' || finalized || limits.retireAfterMs === 0) return undefined;
  if (lastOperation?.kind !== 'cutover' || lastOperation.state !== 'done') return undefined;
  const sinceMs = Date.parse(lastOperation.finishedAt ?? '');
  if (Number.isNaN(sinceMs) || nowMs - sinceMs < limits.retireAfterMs) return undefined;
  if (situation.operationRunning || !situation.hourAllowed || nowMs < backOffUntilMs(attempts, limits))
    return undefined;
  return [
    'proven',
    `The destination has led since ${lastOperation.finishedAt}: its shadow, the way back, can be retired (\`understudy finalize\`).`,
  ];
}

function restReason({ leader, finalized, lastOperation }: Situation): Reason | undefined {
  if (finalized || leader === 'destination')
    return [
      'destination-leads',
      finalized
        ? 'The migration is over: there is nothing to decide.'
        : 'The destination leads. Its shadow, the way back, is kept until `understudy finalize`.',
    ];
  if (lastOperation?.state === 'in-doubt' || lastOperation?.state === 'failed')
    return ['attention', `The last ${lastOperation.kind} is ${lastOperation.state}: a person must look.`];
  if (lastOperation?.kind === 'rollback' && lastOperation.state === 'done')
    return ['rolled-back', 'A person rolled back: the next cutover is a person’s too.'];
  return undefined;
}

function waitReason(situation: Situation, limits: AutopilotLimits): Reason | undefined {
  const { leader, shadow, plan, nowMs } = situation;
  if (leader === undefined) return ['route-unknown', 'It is not known which side leads.'];
  if (situation.operationRunning) return ['busy', 'An operation is running.'];
  if (shadow.phase !== 'following') return ['not-ready', `The shadow is not ready: ${shadow.phase}.`];
  if (shadow.lagMs === null || shadow.lagBytes === null) return ['lag', 'The lag is not known.'];
  if (shadow.lagMs > limits.lagMsMax || shadow.lagBytes > limits.lagBytesMax)
    return ['lag', `The shadow is ${Math.round(shadow.lagMs)} ms and ${shadow.lagBytes} bytes behind.`];
  if (plan === undefined) return ['no-plan', 'No plan could be made yet.'];
  if (nowMs - Date.parse(plan.asOf) >= 2 * HOUR_MS) return ['no-plan', `The plan is of ${plan.asOf}.`];
  const hours = plan.observed?.hours ?? 0;
  if (hours < limits.observedHoursMin)
    return [
      'too-little-seen',
      `${hours < 1 ? 'Less than an hour' : `${Math.floor(hours)} hours`} watched of the ${limits.observedHoursMin} that a window takes.`,
    ];
  const until = backOffUntilMs(situation.attempts, limits);
  if (nowMs < until)
    return ['backing-off', `The last try failed: not before ${new Date(until).toISOString()}.`];
  if (!situation.hourAllowed) return ['outside-hours', 'This hour is not among autopilot.allowedHours.'];
  const now = windowOfHour(plan.whole, nowMs);
  if (now === undefined)
    return plan.whole.converges === false
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
function windowOfHour({ earliest }: SubsetReport, nowMs: number): WindowReport | undefined {
  if (earliest === null) return undefined;
  return nowMs >= Date.parse(earliest.start) && nowMs < Date.parse(earliest.end) ? earliest : undefined;
}

/** Doubled with each try in a row that failed. */
export function backOffUntilMs(attempts: readonly Attempt[], limits: AutopilotLimits): number {
  const done = attempts.findIndex(({ outcome }) => outcome === 'done');
  const failed = done < 0 ? attempts : attempts.slice(0, done);
  const last = failed[0];
  if (last === undefined) return -Infinity;
  return last.atMs + Math.min(limits.retryMaxMs, limits.retryFirstMs * 2 ** Math.min(30, failed.length - 1));
}

function triggerOf({ plan, nowMs }: Situation, limits: AutopilotLimits): Reason | undefined {
  if (plan === undefined) return undefined;
  const drifting = [plan.whole, ...plan.subsets].find(
    ({ divergence }) => divergence.confidence !== 'none' && divergence.value >= limits.divergenceMax,
  );
  if (drifting !== undefined)
    return [
      'divergence',
      `${drifting.subset} diverges by ${drifting.divergence.value.toFixed(2)}: ${drifting.divergence.reason}`,
    ];
  const now = windowOfHour(plan.whole, nowMs);
  const best = plan.whole.windows[0];
  if (now === undefined || best === undefined) return undefined;
  const bearable = Math.max(REGRET_STATEMENTS, REGRET_SHARE * best.stalledStatements.value);
  if (now.regret > bearable) return undefined;
  return [
    'window',
    `This hour would hold ${now.stalledStatements.value.toFixed(1)} statements for about ${Math.round(now.stallMs.value)} ms; the best of those to come ${best.stalledStatements.value.toFixed(1)}.`,
  ];
}

function notNow(plan: PlanReport | undefined): string {
  const best = plan?.whole.windows[0];
  return best === undefined ? 'No window is in sight.' : `A better hour begins ${best.start}.`;
}

function figuresOf({ nowMs, shadow, plan, attempts }: Situation): Verdict['figures'] {
  const now = plan === undefined ? undefined : windowOfHour(plan.whole, nowMs);
  const best = plan?.whole.windows[0];
  return {
    lagMs: shadow.lagMs,
    lagBytes: shadow.lagBytes,
    planAsOf: plan?.asOf ?? null,
    observedHours: plan?.observed?.hours ?? null,
    heatNow: plan?.whole.heat.now.value ?? null,
    divergenceMost:
      plan === undefined
        ? null
        : Math.max(...[plan.whole, ...plan.subsets].map(({ divergence }) => divergence.value)),
    stallMs: now?.stallMs.value ?? null,
    stallHighMs: now?.stallMs.high ?? null,
    stalledStatements: now?.stalledStatements.value ?? null,
    regret: now?.regret ?? null,
    abortProbability: now?.abortProbability ?? null,
    bestWindow: best?.start ?? null,
    bestStallMs: best?.stallMs.value ?? null,
    tries: attempts.length,
  };
}
