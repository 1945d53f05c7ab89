/** What the loop that plans and switches says of itself: app → admin, CLI. */
import type { ErrorCode } from './errors.js';

/** off: no loop. suggest: it plans and says when to switch. on: it switches by itself. */
export const AUTOPILOT_MODES = ['off', 'suggest', 'on'] as const;
export type AutopilotMode = (typeof AUTOPILOT_MODES)[number];

/** rest: nothing is left to decide. wait: not yet. suggest: a person should switch now. cutover: it switches. retire: it
 *  ends the shadow behind a switch that has proven itself. */
export type VerdictKind = 'rest' | 'wait' | 'suggest' | 'cutover' | 'retire';
/** What is recorded. tune: the shadow is steered. */
export type DecisionKind = VerdictKind | 'tune';

export interface AutopilotStatus {
  readonly mode: AutopilotMode;
  readonly state: 'stopped' | 'watching' | 'planning' | 'switching';
  /** null before the first. `at`: when it was first come to. */
  readonly verdict: {
    readonly kind: VerdictKind;
    /** Stable, kebab-case. */
    readonly code: string;
    /** null: the whole database, or no single one. */
    readonly subset: string | null;
    readonly reason: string;
    /** What it was decided on. */
    readonly figures: Readonly<Record<string, number | string | null>>;
    readonly at: string;
  } | null;
  readonly plan: {
    readonly asOf: string;
    readonly subsets: number;
    /** The best for the whole database, the best first. */
    readonly windows: readonly {
      readonly start: string;
      readonly end: string;
      readonly stallMs: { readonly value: number; readonly low: number; readonly high: number };
    }[];
  } | null;
  /** How the shadow was steered last; null: it was not. */
  readonly tuning: {
    readonly intensity: number;
    /** The most eager subset, which sets the pace. */
    readonly subset: string;
    readonly reason: string;
    readonly at: string;
  } | null;
  /** What the lane was seen to write while it had a backlog; null: it had none. */
  readonly applyChangesPerSecond: {
    readonly value: number;
    readonly low: number;
    readonly high: number;
    readonly samples: number;
  } | null;
  /** Why the last round failed. */
  readonly problem: { readonly code: ErrorCode; readonly message: string } | null;
}
