/**
 * What the loop does next, from what it knows. Pure; every rule that keeps a switch from happening by itself is here, in
 * `decide-parts.ts` (one of several subsets) and in `reasons.ts` (what holds for either).
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
import { decideParts } from './decide-parts.js';
import {
  attentionReason,
  backingOff,
  driftReason,
  notNow,
  OUTSIDE_HOURS,
  overReason,
  shadowFigures,
  stallReason,
  unreadyReason,
  windowFigures,
  windowReason,
} from './reasons.js';
import type { Attempt, AutopilotLimits, Reason, Situation, Verdict, VerdictCode } from './situation.js';

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
  if (situation.parts.length > 0) return decideParts(situation, limits);
  const rest = restReason(situation);
  if (rest !== undefined) return verdict('rest', ...rest);
  const wait = waitReason(situation, limits);
  if (wait !== undefined) return verdict('wait', ...wait);
  const trigger = triggerOf(situation, limits);
  if (trigger === undefined) return verdict('wait', 'not-now', notNow(situation.plan?.whole));
  return verdict(limits.mode === 'on' ? 'cutover' : 'suggest', ...trigger);
}

/** Why the shadow behind a switch may end, and the way back with it. */
function provenReason(situation: Situation, limits: AutopilotLimits): Reason | undefined {
  const { leader, finalized, lastOperation, nowMs } = situation;
  if (leader !== 'destination' || finalized || limits.retireAfterMs === 0) return undefined;
  if (lastOperation?.kind !== 'cutover' || lastOperation.state !== 'done') return undefined;
  const sinceMs = Date.parse(lastOperation.finishedAt ?? '');
  if (Number.isNaN(sinceMs) || nowMs - sinceMs < limits.retireAfterMs) return undefined;
  if (situation.operationRunning || !situation.hourAllowed) return undefined;
  if (backingOff(wholeAttempts(situation), nowMs, limits) !== undefined) return undefined;
  return [
    'proven',
    `The destination has led since ${lastOperation.finishedAt}: its shadow, the way back, can be retired (\`understudy finalize\`).`,
  ];
}

function restReason(situation: Situation): Reason | undefined {
  const { lastOperation, lastDone } = situation;
  const stopped = overReason(situation) ?? attentionReason(lastOperation);
  if (stopped !== undefined) return stopped;
  if (lastDone?.kind === 'rollback')
    return ['rolled-back', 'A person rolled back: the next cutover is a person’s too.'];
  return undefined;
}

function waitReason(situation: Situation, limits: AutopilotLimits): Reason | undefined {
  const against =
    unreadyReason(situation, limits) ??
    backingOff(wholeAttempts(situation), situation.nowMs, limits) ??
    (situation.hourAllowed ? undefined : OUTSIDE_HOURS);
  if (against !== undefined) return against;
  return situation.plan === undefined
    ? undefined
    : stallReason(situation.plan.whole, situation.nowMs, limits);
}

function triggerOf({ plan, nowMs }: Situation, limits: AutopilotLimits): Reason | undefined {
  if (plan === undefined) return undefined;
  for (const row of [plan.whole, ...plan.subsets]) {
    const drifting = driftReason(row, limits);
    if (drifting !== undefined) return drifting;
  }
  return windowReason(plan.whole, nowMs);
}

/** Those of the whole database, and to retire. */
function wholeAttempts({ attempts }: Situation): readonly Attempt[] {
  return attempts.filter(({ subset }) => subset === undefined);
}

function figuresOf(situation: Situation): Verdict['figures'] {
  const { nowMs, shadow, plan } = situation;
  return {
    ...shadowFigures(shadow, plan),
    heatNow: plan?.whole.heat.now.value ?? null,
    divergenceMost:
      plan === undefined
        ? null
        : Math.max(...[plan.whole, ...plan.subsets].map(({ divergence }) => divergence.value)),
    ...windowFigures(plan?.whole, nowMs),
    tries: wholeAttempts(situation).length,
  };
}
