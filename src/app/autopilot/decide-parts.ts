/**
 * Which of several configured subsets is switched next, if any. Pure.
 *
 * A subset is, as seen from here:
 *   switched      the destination leads it
 *   a person's    the source leads it, and its newest operation that was done is a rollback: whoever brought it back switches
 *                 it again, and a try of theirs that was refused or aborted is none
 *   waiting       for its own pause after a try that failed, its hour, fewer transactions across the border, a shorter stall
 *   due           this hour is as good as any, or it diverges too far
 *
 *   1. while an operation on any of them is failed or in doubt, nothing is done: what one side holds of the others isn't sure
 *   2. what stands against every switch (route, lag, plan) stands against each of these
 *   3. after a switch that was aborted, or one that a person took back, nothing more is switched before the hour in which that
 *      happened has ended. What preflight refused has touched nobody: only that one subset pauses
 *   4. of those that are due, the one with the fewest tries failed in a row; then one that diverges; then by the plan's priority
 *   5. what is tied to it goes along, in one operation (`cutover/together.ts`), and is judged with it
 *   6. where other subsets would stay on the source, a person must have accepted that (`cutover.parting`); else it is only said
 *
 * Invariants: one operation at a time, so one verdict. `cutover` never is the verdict for a subset that the destination leads,
 * that a person has rolled back, whose transactions were seen to touch what would be on the other side by more than a share
 * that a person has set, or without consent to part. Nothing here ends a way back: `retire` takes the destination leading all
 * of them (`decide.ts`).
 *
 * Failure cases. Death between decision and switch: the decision has no outcome, which counts as aborted. Two due in one hour:
 * one after the other, each on the figures of its own moment. A person's cutover at the same time: `busy`, and what they
 * switched is seen as switched. Never due: the others don't wait for it. The last one makes one side lead everything and
 * moves every session: it is judged by the figures of the whole database, and parts nothing. One without tables comes last.
 */
import type { SubsetId } from '../../core/ports.js';
import { HOUR_MS } from '../../predict/series.js';
import type { PlanReport, SubsetReport } from '../plan/plan-report.js';
import {
  attentionReason,
  backingOff,
  driftReason,
  failedInARow,
  notNow,
  OUTSIDE_HOURS,
  overReason,
  shadowFigures,
  stallReason,
  unreadyReason,
  windowFigures,
  windowReason,
} from './reasons.js';
import type { AutopilotLimits, Part, Reason, Situation, Verdict } from './situation.js';

const NAMED_MAX = 5;

/** `situation.parts` is not empty. */
export function decideParts(situation: Situation, limits: AutopilotLimits): Verdict {
  const { parts, plan } = situation;
  const left = parts.filter(({ side }) => side === 'source');
  const figures = { ...shadowFigures(situation.shadow, plan), subsets: parts.length, left: left.length };
  const verdict = (kind: Verdict['kind'], [code, reason]: Reason): Verdict => ({
    kind,
    code,
    reason,
    figures,
  });
  const rest = restReason(situation, left);
  if (rest !== undefined) return verdict('rest', rest);
  const wait =
    unreadyReason(situation, limits) ??
    aftermathReason(situation) ??
    (situation.hourAllowed ? undefined : OUTSIDE_HOURS);
  if (wait !== undefined || plan === undefined)
    return verdict('wait', wait ?? ['no-plan', 'No plan could be made yet.']);

  const candidates = bundlesOf(left, plan)
    .filter((bundle) => !bundle.some(isPersons))
    .map((bundle) => candidateOf(bundle, left, plan, situation, limits))
    .sort(byTurn);
  const due = candidates.filter(({ trigger }) => trigger !== undefined);
  const next = due[0] ?? candidates[0];
  if (next === undefined) return verdict('wait', ['not-now', 'No subset is left.']);
  const { subset, along } = next;
  const own = {
    subset,
    bundle: [subset, ...along],
    figures: {
      ...figures,
      ...figuresOf(next, situation.nowMs),
      alsoDue: due.length > 1 ? named(due.slice(1).map((other) => other.subset)) : null,
    },
  };
  if (next.trigger === undefined) return { ...verdict('wait', next.wait), ...own };
  const staying = left.flatMap((part) =>
    part.subset === subset || along.includes(part.subset) ? [] : [part.subset],
  );
  return { ...actOn(subset, next.trigger, staying, limits), ...own };
}

/** Those that one operation switches: each with what it is tied to, in chains; by priority within. */
function bundlesOf(left: readonly Part[], plan: PlanReport): readonly (readonly Part[])[] {
  const rows = new Map(plan.subsets.map((row) => [row.subset, row]));
  const priority = ({ subset }: Part): number => rows.get(subset)?.priority.value ?? -1;
  const tied = (a: Part, b: Part): boolean =>
    rows.get(a.subset)?.together.includes(b.subset) === true ||
    rows.get(b.subset)?.together.includes(a.subset) === true;
  const bundles: Part[][] = [];
  for (const part of left) {
    const own = bundles.filter((bundle) => bundle.some((other) => tied(part, other)));
    for (const bundle of own) bundles.splice(bundles.indexOf(bundle), 1);
    bundles.push([part, ...own.flat()].sort((a, b) => priority(b) - priority(a)));
  }
  return bundles;
}

function actOn(
  subset: string,
  [code, reason]: Reason,
  staying: readonly string[],
  { mode, partingAccepted }: AutopilotLimits,
): Pick<Verdict, 'kind' | 'code' | 'reason'> {
  const command = `\`understudy cutover --subset ${subset}\``;
  if (staying.length > 0 && !partingAccepted)
    return {
      kind: 'suggest',
      code: 'parting',
      reason:
        `${reason} It waits for a person: ${named(staying)} would stay on the source, which takes consent. Read docs/subsets.md, ` +
        `say \`cutover.parting: accept\` and restart${mode === 'on' ? '' : `; then ${command}`}. Or switch all at once: \`understudy cutover\`.`,
    };
  return mode === 'on'
    ? { kind: 'cutover', code, reason }
    : { kind: 'suggest', code, reason: `${reason} To switch it: ${command}.` };
}

interface Candidate {
  /** The one of the highest priority; `along`: what its operation switches with it. */
  readonly subset: SubsetId;
  readonly along: readonly SubsetId[];
  /** undefined: it has no tables. */
  readonly row: SubsetReport | undefined;
  /** By whose figures its hour is judged. */
  readonly judged: SubsetReport;
  /** Most of its transactions with any subset that would be on the other side, 0…1. */
  readonly crossing: number;
  /** Own tries that failed, in a row. */
  readonly failed: number;
  /** undefined: it is not due, for the reason of `wait`. */
  readonly trigger: Reason | undefined;
  readonly wait: Reason;
}

function candidateOf(
  bundle: readonly Part[],
  left: readonly Part[],
  plan: PlanReport,
  { attempts, nowMs }: Situation,
  limits: AutopilotLimits,
): Candidate {
  const members = new Set(bundle.map(({ subset }) => subset));
  const rows = plan.subsets.filter((row) => members.has(row.subset));
  const stalls = ({ earliest }: SubsetReport): number =>
    earliest?.stalledStatements.value ?? Number.MAX_VALUE;
  const [busiest = plan.whole] = [...rows].sort((a, b) => stalls(b) - stalls(a));
  const judged = bundle.length === left.length ? plan.whole : busiest;
  const own = attempts.filter(({ subset }) => subset !== undefined && members.has(subset));
  const staying = new Set(left.flatMap(({ subset }) => (members.has(subset) ? [] : [subset])));
  const crossing = Math.max(
    0,
    ...rows.flatMap((row) => row.crossing.with.map((other) => (staying.has(other.with) ? other.share : 0))),
  );
  const against =
    backingOff(own, nowMs, limits) ?? crossingReason(crossing, limits) ?? stallReason(judged, nowMs, limits);
  // Without tables there is nothing to gain by it before the others are gone.
  const hasTurn =
    rows.length > 0 || left.every((part) => plan.subsets.every(({ subset }) => subset !== part.subset));
  const drifting = rows.map((row) => driftReason(row, limits)).find((reason) => reason !== undefined);
  const reason = drifting ?? windowReason(judged, nowMs);
  const [first, ...others] = bundle.map(({ subset }) => subset);
  return {
    subset: first ?? '',
    along: others,
    row: rows.find((row) => row.subset === first),
    judged,
    crossing,
    failed: failedInARow(own).length,
    trigger: against === undefined && hasTurn ? reason : undefined,
    wait: against ?? ['not-now', hasTurn ? notNow(judged) : 'It has no tables: it comes after all others.'],
  };
}

function crossingReason(share: number, { crossingMax }: AutopilotLimits): Reason | undefined {
  if (share <= crossingMax) return undefined;
  return [
    'crossing',
    `${(100 * share).toFixed(1)} % of its transactions touch what would be on the other side, and would fail: more than autopilot.crossingMax. \`crossing: follow\` switches them together.`,
  ];
}

function byTurn(a: Candidate, b: Candidate): number {
  const drifts = ({ trigger }: Candidate): number => (trigger?.[0] === 'divergence' ? 1 : 0);
  const priority = ({ row }: Candidate): number => row?.priority.value ?? -1;
  return (
    a.failed - b.failed ||
    drifts(b) - drifts(a) ||
    priority(b) - priority(a) ||
    (a.subset < b.subset ? -1 : 1)
  );
}

function figuresOf(candidate: Candidate, nowMs: number): Verdict['figures'] {
  const { subset, along, row, judged, crossing, failed } = candidate;
  return {
    subset,
    along: along.length > 0 ? named(along) : null,
    priority: row?.priority.value ?? null,
    heatNow: row?.heat.now.value ?? null,
    divergence: row?.divergence.value ?? null,
    crossing,
    judgedBy: judged.subset,
    ...windowFigures(judged, nowMs),
    tries: failed,
  };
}

/** The source leads it because somebody brought it back. */
function isPersons({ lastDone }: Part): boolean {
  return lastDone?.kind === 'rollback';
}

function restReason(situation: Situation, left: readonly Part[]): Reason | undefined {
  const over = overReason(situation);
  if (over !== undefined) return over;
  for (const { subset, lastOperation } of situation.parts) {
    const attention = attentionReason(lastOperation, subset);
    if (attention !== undefined) return attention;
  }
  if (left.length > 0 && left.every(isPersons))
    return [
      'rolled-back',
      `A person rolled back ${named(left.map(({ subset }) => subset))}: the next cutover is a person’s too.`,
    ];
  return undefined;
}

/** What went wrong, or was taken back, in this hour: whoever looks into it has until its end. */
function aftermathReason({ nowMs, attempts, parts, lastOperation }: Situation): Reason | undefined {
  const hour = Math.floor(nowMs / HOUR_MS);
  // A little ahead is a server's clock; far ahead is one that was wrong, which is to hold up nothing.
  const inThisHour = (ms: number): boolean => Math.floor(ms / HOUR_MS) >= hour && ms - nowMs < HOUR_MS;
  const broken = attempts.find(
    ({ subset, outcome, atMs }) =>
      subset !== undefined && (outcome === 'aborted' || outcome === null) && inThisHour(atMs),
  );
  const next = iso((hour + 1) * HOUR_MS);
  if (broken !== undefined)
    return ['next-window', `The try to switch ${broken.subset} failed: nothing more before ${next}.`];
  // Of each subset too: a switch of another one since doesn't make it good.
  const all = [lastOperation, ...parts.flatMap((part) => [part.lastOperation, part.lastDone])];
  for (const operation of all) {
    if (operation === null || operation.finishedAt === null) continue;
    const { kind, state, finishedAt } = operation;
    const undone = state === 'aborted' || (kind === 'rollback' && state === 'done');
    if (undone && inThisHour(Date.parse(finishedAt)))
      return [
        'next-window',
        `${state === 'aborted' ? `A ${kind} was aborted` : 'A person rolled back'} at ${finishedAt}: nothing more before ${next}.`,
      ];
  }
  return undefined;
}

function named(subsets: readonly string[]): string {
  return subsets.length <= NAMED_MAX
    ? subsets.join(', ')
    : `${subsets.slice(0, NAMED_MAX).join(', ')} and ${subsets.length - NAMED_MAX} more`;
}

function iso(ms: number): string {
  return new Date(ms).toISOString();
}
