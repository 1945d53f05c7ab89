/**
 * Steers the running shadow by the plan: how eager it is, and what it copies first. `tune.ts` says what to set and when.
 *
 * Invariants: nothing is set that was not recorded in the destination first, with the figures it was decided on; an operator's
 * intensity, and a paused copy, are left alone. Setting is idempotent, so that a failure is tried again, a while later.
 *
 * Failure cases: no record, then nothing is set. The shadow refuses, or its thread died in between: the record stays as
 * refused. A thread that was started anew has the intensity it starts with, and is tuned from there.
 */
import { asUnderstudyError } from '../../core/errors.js';
import type { AutopilotStatus } from '../../core/autopilot-ports.js';
import type { Log } from '../../core/log.js';
import type { ShadowCommand, ShadowPhase, ShadowStatus } from '../../core/ports.js';
import { flushIntervalMs } from '../../shadow/intensity.js';
import type { PlanReport } from '../plan/plan-report.js';
import type { Decisions } from './decisions.js';
import { tune, UNTUNED, wantedIntensity, type Tuning } from './tune.js';

export interface TunerDeps {
  readonly mode: string;
  readonly decisions: Pick<Decisions, 'record' | 'settle'>;
  readonly steer: (command: ShadowCommand) => Promise<unknown>;
  /** A change waits that long at intensity 1. */
  readonly eagerFlushIntervalMs: number;
  /** What a cutover allows. */
  readonly lagMsMax: number;
  readonly downAfterMs: number;
  readonly log: Log;
}

/** Phases in which there is a pace to set. */
const STEERED: readonly ShadowPhase[] = ['copying', 'indexing', 'analyzing', 'following'];
/** A change may wait for that share of the lag that a cutover allows: the rest is for the way. */
const WAIT_SHARE = 0.5;
/** After a refusal nothing is set for so long. */
const REFUSED_PAUSE_MS = 600_000;
const STEPS = 100;

export class Tuner {
  readonly #deps: TunerDeps;
  readonly #least: number;
  #tuning: Tuning = UNTUNED;
  #status: AutopilotStatus['tuning'] = null;
  #pausedUntilMs = 0;

  constructor(deps: TunerDeps) {
    this.#deps = deps;
    this.#least = leastIntensity(deps.eagerFlushIntervalMs, deps.lagMsMax * WAIT_SHARE);
  }

  get status(): AutopilotStatus['tuning'] {
    return this.#status;
  }

  /** `plan`: with divergence and intensities as of now. */
  async round(plan: PlanReport, { phase, steering }: ShadowStatus, nowMs: number): Promise<void> {
    if (steering === undefined || !STEERED.includes(phase) || nowMs < this.#pausedUntilMs) return;
    const wanted = wantedIntensity(plan, this.#least);
    if (wanted === undefined) return;
    const { tuning, set } = tune(this.#tuning, steering, wanted.value, nowMs, this.#deps.downAfterMs);
    if (set !== undefined) {
      const value = Math.round(set * STEPS) / STEPS;
      const done = await this.#set(
        { action: 'intensity', value },
        'intensity',
        `${wanted.subset}: from ${steering.intensity} to ${value}. ${wanted.reason}`,
        { intensity: value, was: steering.intensity, phase, ...wanted.figures },
      );
      if (!done) {
        this.#pausedUntilMs = nowMs + REFUSED_PAUSE_MS;
        return;
      }
      this.#tuning = { ...tuning, set: value };
      this.#status = { intensity: value, subset: wanted.subset, reason: wanted.reason, at: iso(nowMs) };
      return;
    }
    this.#tuning = tuning;
  }

  async #set(
    command: ShadowCommand,
    code: 'intensity',
    reason: string,
    figures: Readonly<Record<string, number | string | null>>,
  ): Promise<boolean> {
    const { decisions, mode, steer, log } = this.#deps;
    const number = await decisions.record(mode, { kind: 'tune', code, reason, figures });
    try {
      await steer(command);
      log.info({ code, reason }, 'autopilot');
      await decisions.settle(number, 'done', null, null);
      return true;
    } catch (error) {
      const { code: problem, message } = asUnderstudyError(error, 'internal', 'steering');
      await decisions.settle(number, 'refused', `${problem}: ${message}`, null);
      return false;
    }
  }
}

/** The least eager at which a change waits no longer than `waitMs`, 0…1. */
export function leastIntensity(eagerMs: number, waitMs: number): number {
  for (let step = 0; step < STEPS; step++)
    if (flushIntervalMs(step / STEPS, eagerMs) <= waitMs) return step / STEPS;
  return 1;
}

function iso(ms: number): string {
  return new Date(ms).toISOString();
}
