/**
 * Steers the running shadow by the plan: how eager it is, and what it copies first. `tune.ts` says what to set and when.
 *
 * Invariants: nothing is set that was not recorded in the destination first, with the figures it was decided on; an operator's
 * intensity and order, and a paused copy, are left alone. Setting is idempotent, so that a failure is tried again, a while later.
 *
 * Failure cases: no record, then nothing is set. The shadow refuses, or its thread died in between: the record stays as
 * refused. A thread that was started anew has the intensity it starts with, and is tuned from there.
 */
import { asUnderstudyError } from '../../core/errors.js';
import type { AutopilotStatus } from '../../core/autopilot-ports.js';
import type { Log } from '../../core/log.js';
import type { ShadowCommand, ShadowPhase, ShadowStatus, ShadowSteering } from '../../core/ports.js';
import { flushIntervalMs } from '../../shadow/intensity.js';
import type { Planned } from '../plan/make.js';
import type { PlanReport } from '../plan/plan-report.js';
import type { Decisions, SteeringCode } from './decisions.js';
import { copyOrder, tablesInOrder, tune, UNTUNED, wantedIntensity, type Tuning } from './tune.js';

export interface TunerDeps {
  readonly mode: string;
  readonly decisions: Pick<Decisions, 'record' | 'settle'>;
  readonly steer: (command: ShadowCommand) => Promise<unknown>;
  /** At intensity 1 a change waits that long by the log; and so long is the pause between two rounds without it. */
  readonly eagerMs: { readonly flushInterval: number; readonly pollInterval: number };
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
const NAMED_MAX = 5;
const STEPS = 100;

export class Tuner {
  readonly #deps: TunerDeps;
  #tuning: Tuning = UNTUNED;
  #status: AutopilotStatus['tuning'] = null;
  #pausedUntilMs = 0;
  /** Subsets as they were ordered last. */
  #order: readonly string[] = [];
  #first: readonly string[] = [];

  constructor(deps: TunerDeps) {
    this.#deps = deps;
  }

  get status(): AutopilotStatus['tuning'] {
    return this.#status;
  }

  /** `planned`: with divergence and intensities as of now. */
  async round(
    { plan, bases }: Pick<Planned, 'plan' | 'bases'>,
    status: ShadowStatus,
    nowMs: number,
  ): Promise<void> {
    const { phase, steering } = status;
    if (steering === undefined || !STEERED.includes(phase) || nowMs < this.#pausedUntilMs) return;
    await this.#intensity(plan, status, steering, nowMs);
    if (phase === 'copying') await this.#copyOrder({ plan, bases }, status, steering, nowMs);
  }

  async #intensity(
    plan: PlanReport,
    { phase, method }: ShadowStatus,
    steering: ShadowSteering,
    nowMs: number,
  ): Promise<void> {
    const { eagerMs, lagMsMax } = this.#deps;
    const eager = (method?.method ?? 'log') === 'log' ? eagerMs.flushInterval : eagerMs.pollInterval;
    const wanted = wantedIntensity(plan, leastIntensity(eager, lagMsMax * WAIT_SHARE));
    if (wanted === undefined) return;
    const { tuning, set } = tune(this.#tuning, steering, wanted.value, nowMs, this.#deps.downAfterMs);
    this.#tuning = set === undefined ? tuning : this.#tuning;
    if (set === undefined) return;
    const value = Math.round(set * STEPS) / STEPS;
    const done = await this.#set(
      { action: 'intensity', value },
      'intensity',
      `${wanted.subset}: from ${steering.intensity} to ${value}. ${wanted.reason}`,
      { intensity: value, was: steering.intensity, phase, ...wanted.figures },
      nowMs,
    );
    if (!done) return;
    this.#tuning = { ...tuning, set: value };
    this.#status = { intensity: value, subset: wanted.subset, reason: wanted.reason, at: iso(nowMs) };
  }

  /** What is left to copy, the hottest first. An order that a person asked for stands. */
  async #copyOrder(
    { plan, bases }: Pick<Planned, 'plan' | 'bases'>,
    { tables }: ShadowStatus,
    { first = [] }: ShadowSteering,
    nowMs: number,
  ): Promise<void> {
    if (plan.observed === null || (first.length > 0 && !same(first, this.#first))) return;
    const order = copyOrder(plan, this.#order);
    const left = new Set(tables.flatMap(({ table, done }) => (done ? [] : [table])));
    const wanted = tablesInOrder(order, bases).filter((table) => left.has(table));
    const [hottest] = order;
    if (wanted.length < 2 || hottest === undefined) return;
    if (
      same(
        first.filter((table) => left.has(table)),
        wanted,
      )
    )
      return;
    const done = await this.#set(
      { action: 'prioritise', tables: wanted },
      'copy-order',
      `The hottest for the time that their copies take come first: ${wanted.slice(0, NAMED_MAX).join(', ')}${wanted.length > NAMED_MAX ? ', …' : ''}.`,
      {
        ...Object.fromEntries(
          order.slice(0, NAMED_MAX).map(({ subset, priority }) => [subset, priority.value]),
        ),
        tables: wanted.length,
        planAsOf: plan.asOf,
      },
      nowMs,
    );
    if (!done) return;
    this.#order = order.map(({ subset }) => subset);
    this.#first = wanted;
  }

  async #set(
    command: ShadowCommand,
    code: SteeringCode,
    reason: string,
    figures: Readonly<Record<string, number | string | null>>,
    nowMs: number,
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
      this.#pausedUntilMs = nowMs + REFUSED_PAUSE_MS;
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

function same(a: readonly string[], b: readonly string[]): boolean {
  return a.length === b.length && a.every((one, index) => one === b[index]);
}

function iso(ms: number): string {
  return new Date(ms).toISOString();
}
