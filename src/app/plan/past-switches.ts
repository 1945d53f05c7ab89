/** What switches of the past took, for the next one's times. */
import type { OperationReport } from '../../core/ports.js';
import { levelOf } from '../../predict/experience.js';
import { counted, medianOf } from '../../predict/numeric.js';
import type { PlanContext } from '../../predict/plan.js';

/** Switches whose times are taken for the next one's. */
const SWITCHES_MAX = 20;
const FENCE_STEPS = ['fence', 'catch-up'] as const;
const SWITCH_STEPS = ['commit', 'open', 'switch', 'release'] as const;

export interface MeasuredSwitch {
  readonly fixedMs: PlanContext['stall']['fixedMs'];
  /** Factor between their sum and either end of where the next one's lies. */
  readonly spread: number;
  readonly drainsMs: readonly number[];
}

type SwitchReport = Pick<OperationReport, 'outcome' | 'steps' | 'parts' | 'stall'>;

/**
 * What a client waits at a switch beside the drain, as the level of those that were done lately, the newest first; undefined
 * where none was. How long open transactions take is predicted, and left out. Where clients were held, it is what the one that
 * waited longest waited; else what the steps took.
 */
export function measuredSwitch(reports: readonly (SwitchReport | null)[]): MeasuredSwitch | undefined {
  const done = reports
    .flatMap((report) => (report?.outcome === 'done' ? [report] : []))
    .slice(0, SWITCHES_MAX);
  if (done.length === 0) return undefined;
  const sum = ({ steps }: SwitchReport, names: readonly string[]): number =>
    names.reduce((total, name) => total + counted(steps[name]), 0);
  const median = (names: readonly string[]): number => medianOf(done.map((report) => sum(report, names)));
  const beside = done.map((report) =>
    Math.max(
      1,
      report.stall.held > 0
        ? counted(report.stall.max) - counted(report.parts['hold.drain'])
        : sum(report, [...FENCE_STEPS, 'verify', ...SWITCH_STEPS]),
    ),
  );
  // The oldest first.
  const { value: whole, factor: spread } = levelOf(beside.toReversed());
  const [verify, switched] = [median(['verify']), median(SWITCH_STEPS)];
  return {
    fixedMs: { fence: Math.max(0, whole - verify - switched), verify, switch: switched },
    drainsMs: done.map(({ parts }) => counted(parts['hold.drain'])),
    spread,
  };
}
