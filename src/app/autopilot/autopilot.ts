/**
 * The loop of the product: predict → plan → steer the shadow → watch → suggest, or switch.
 *
 * States: stopped → watching ⇄ planning, watching ⇄ switching; from each back to stopped. Off is a loop that is never started.
 *
 *   1. every `checkIntervalMs`, and more often while the shadow is being built: the situation is gathered, and `decide` gives a verdict
 *   2. the plan is made anew when an hour has closed, in a thread of its own
 *   3. divergence is judged anew by the shadow's lag at this moment, and the shadow is steered by it (`tuner.ts`)
 *   4. a verdict that differs from the last is recorded in the destination with its figures
 *   5. a verdict to cut over is recorded *first*; one that can't be recorded is not acted on. Then preflight alone, and
 *      only if nothing stands in the way the cutover, which does its own preflight again. Either may compare every row, for hours:
 *      after each the situation is gathered and judged anew, and only the same verdict, on just what would be switched, goes on.
 *      Of several subsets one, whose turn it is (`decide-parts.ts`); the next round looks at the others anew
 *   6. after `retireAfterMs` on the destination its shadow is retired, if a person has set that time
 *   7. how it ended is recorded; a failure is followed by a growing pause, over restarts too
 *
 * Failure cases: series, catalogs or destination out of reach: no plan or no record, so nothing is done, and it is tried again
 * at the next tick. The process dies while switching: recovery settles the operation; the decision has no outcome, which counts
 * as failed, until the next process's loop reads from the journal what became of it. A person's operation comes first: theirs
 * is `busy` for the loop, and the loop's for them.
 */
import type { OperationOptions, Operation } from '../../admin/control.js';
import type { Clock } from '../../core/clock.js';
import type { AutopilotStatus } from '../../core/autopilot-ports.js';
import { asUnderstudyError, UnderstudyError } from '../../core/errors.js';
import type { Log } from '../../core/log.js';
import type { OperationReport, ShadowStatus, Side, SubsetId } from '../../core/ports.js';
import { StateCell } from '../../core/state-machine.js';
import { HOUR_MS } from '../../predict/series.js';
import type { Confirm } from '../operations.js';
import type { Planned } from '../plan/make.js';
import { freshnessOf, liveShadow, logBudgetUsed, type LiveShadow } from '../plan/measurements.js';
import { ApplyMeter } from './apply-meter.js';
import { decide } from './decide.js';
import {
  shadowAsSeen,
  type AutopilotLimits,
  type Part,
  type ShadowAsSeen,
  type Verdict,
} from './situation.js';
import type { Decisions } from './decisions.js';
import type { AllowedHours } from './hours.js';
import { retuned } from './tune.js';
import type { Tuner } from './tuner.js';

export interface RouteAsKnown {
  readonly leader: Side | undefined;
  readonly finalized: boolean;
  /** Empty where the whole database moves as one. */
  readonly subsets: readonly { readonly subset: SubsetId; readonly side: Side }[];
}

export interface AutopilotDeps {
  readonly limits: AutopilotLimits;
  readonly checkIntervalMs: number;
  readonly hours: AllowedHours;
  readonly decisions: Pick<Decisions, 'record' | 'settle' | 'settleLeft' | 'past' | 'recordCopy'>;
  /** Throws where series or destination can't be reached. */
  readonly plan: (
    live: LiveShadow,
    sides: ReadonlyMap<string, Side>,
    nowMs: number,
    signal: AbortSignal,
  ) => Promise<Planned>;
  /** undefined: the shadow is not steered by the plan. */
  readonly tuner: Pick<Tuner, 'round' | 'status'> | undefined;
  /** 0: none. */
  readonly logBudgetBytes: number;
  readonly route: () => RouteAsKnown;
  readonly shadow: () => Promise<ShadowStatus>;
  readonly operationRunning: () => boolean;
  readonly operate: (operation: Operation, options: OperationOptions, confirm?: Confirm) => Promise<unknown>;
  readonly log: Log;
  readonly clock: Clock;
}

type State = AutopilotStatus['state'];
const TRANSITIONS = {
  stopped: ['watching'],
  watching: ['planning', 'switching', 'stopped'],
  planning: ['watching', 'stopped'],
  switching: ['watching', 'stopped'],
} as const;

/** While a shadow is being built, what is to be copied first can't wait for long. */
const BUILDING: readonly ShadowStatus['phase'][] = ['connecting', 'building-schema', 'copying'];
const BUILDING_INTERVAL_MS = 3_000;

/** A plan stands while what takes its time behind the fence has moved by less than the larger of these. */
const MOVED_MS = 50;
const MOVED_SHARE = 0.5;

export class Autopilot {
  readonly #deps: AutopilotDeps;
  readonly #state = new StateCell<State>('autopilot', TRANSITIONS, 'stopped');
  readonly #stopping = new AbortController();
  #running: Promise<void> | undefined;
  #planned: Planned | undefined;
  /** The shadow that the plan was made of. */
  #plannedOf: ShadowAsSeen | undefined;
  #verdict: (Verdict & { readonly at: string }) | undefined;
  #problem: AutopilotStatus['problem'] = null;
  readonly #apply = new ApplyMeter();
  #copyRecorded = false;
  #building = true;
  /** Decisions of processes before this one have an outcome. */
  #leftSettled = false;
  readonly #startedMs: number;

  constructor(deps: AutopilotDeps) {
    this.#deps = deps;
    this.#startedMs = deps.clock.monotonicMs();
  }

  start(): void {
    if (this.#deps.limits.mode === 'off' || this.#running !== undefined || this.#stopping.signal.aborted)
      return;
    this.#state.move('watching');
    this.#running = this.#loop().finally(() => this.#state.move('stopped'));
  }

  /** Ends the loop; an operation that it began is its owner's to end. */
  async stop(): Promise<void> {
    this.#stopping.abort();
    await this.#running;
  }

  status(): AutopilotStatus {
    const plan = this.#planned?.plan;
    return {
      mode: this.#deps.limits.mode,
      state: this.#state.current,
      verdict: this.#verdict === undefined ? null : shown(this.#verdict),
      plan:
        plan === undefined
          ? null
          : { asOf: plan.asOf, subsets: plan.subsets.length, windows: plan.whole.windows },
      tuning: this.#deps.tuner?.status ?? null,
      applyChangesPerSecond: this.#apply.rate,
      problem: this.#problem,
    };
  }

  async #loop(): Promise<void> {
    const { clock, checkIntervalMs } = this.#deps;
    const { signal } = this.#stopping;
    for (;;) {
      try {
        await clock.sleep(
          this.#building ? Math.min(checkIntervalMs, BUILDING_INTERVAL_MS) : checkIntervalMs,
          signal,
        );
      } catch {
        return;
      }
      try {
        await this.round();
        this.#problem = null;
      } catch (error) {
        if (signal.aborted) return;
        const { code, message } = asUnderstudyError(error, 'internal', 'autopilot');
        this.#problem = { code, message };
        this.#deps.log.debug({ code, error: message }, 'autopilot round failed');
        if (this.#state.is('planning', 'switching')) this.#state.move('watching');
      }
    }
  }

  /** One round; public for tests, which own the clock. */
  async round(): Promise<Verdict> {
    const deps = this.#deps;
    const status = await this.#withPlan();
    const { leader, finalized, subsets } = deps.route();
    const nowMs = deps.clock.now().getTime();
    this.#apply.look(status, nowMs);
    await this.#recordCopy(status);
    if (!this.#leftSettled && !deps.operationRunning())
      this.#leftSettled = await deps.decisions.settleLeft(deps.clock.monotonicMs() - this.#startedMs);
    const planned = this.#asOfNow(status, nowMs);
    if (planned !== undefined && leader === 'source' && !finalized && !deps.operationRunning())
      await deps.tuner?.round(stillShadowed(planned, subsets), status, nowMs);
    const verdict = await this.#judge();
    await this.#act(verdict);
    return verdict;
  }

  /** The shadow as of now, after the plan was made anew where that was due. */
  async #withPlan(): Promise<ShadowStatus> {
    const { shadow, route, clock } = this.#deps;
    const status = await shadow();
    this.#building = BUILDING.includes(status.phase);
    const { leader, finalized } = route();
    const nowMs = clock.now().getTime();
    if (leader !== 'source' || finalized || !this.#planIsOld(nowMs, shadowAsSeen(status))) return status;
    await this.#replan(status, nowMs);
    return await shadow();
  }

  /** By what holds at this moment: nothing is waited for after the time and the routes were read. */
  async #judge(underWay?: number, own = false): Promise<Verdict> {
    const deps = this.#deps;
    const { attempts, operations } = await deps.decisions.past(underWay);
    const status = await deps.shadow();
    const { leader, finalized, subsets } = deps.route();
    const nowMs = deps.clock.now().getTime();
    const done = operations.filter(({ state }) => state === 'done');
    return decide(
      {
        nowMs,
        leader,
        finalized,
        operationRunning: !own && deps.operationRunning(),
        hourAllowed: deps.hours.allows(nowMs),
        shadow: shadowAsSeen(status),
        plan: this.#asOfNow(status, nowMs)?.plan,
        attempts,
        parts: subsets.map(({ subset, side }): Part => ({
          subset,
          side,
          lastOperation: operations.find((operation) => operation.subset === subset) ?? null,
          lastDone: done.find((operation) => operation.subset === subset) ?? null,
        })),
        lastOperation: operations[0] ?? null,
        lastDone: done[0] ?? null,
      },
      deps.limits,
    );
  }

  /**
   * An hour has closed since; or the shadow has come to follow: then nothing is left to copy; or what comes over behind the fence
   * takes another time than was planned with.
   */
  #planIsOld(nowMs: number, { phase, exactMs }: ShadowAsSeen): boolean {
    const hour = (ms: number): number => Math.floor(ms / HOUR_MS);
    return (
      this.#planned === undefined ||
      hour(Date.parse(this.#planned.plan.asOf)) !== hour(nowMs) ||
      (phase === 'following' && this.#plannedOf?.phase !== 'following') ||
      hasMoved(this.#plannedOf?.exactMs ?? null, exactMs ?? null)
    );
  }

  /** The plan of this hour, with what its shadow lags at this moment. */
  #asOfNow(status: ShadowStatus, nowMs: number): Planned | undefined {
    if (this.#planned === undefined) return undefined;
    const live = liveShadow(status);
    const freshness = freshnessOf(live, this.#deps.limits.lagMsMax);
    return retuned(this.#planned, freshness, logBudgetUsed(live, this.#deps.logBudgetBytes), nowMs);
  }

  /** Once in a process's life: the next plan for this destination need not guess. */
  async #recordCopy({ copy: { seconds, readySeconds } }: ShadowStatus): Promise<void> {
    const bytes = this.#planned?.bytes ?? null;
    if (readySeconds === undefined || bytes === null || bytes === 0 || this.#copyRecorded) return;
    await this.#deps.decisions.recordCopy({ bytes, copySeconds: seconds, readySeconds });
    this.#copyRecorded = true;
  }

  async #replan(status: ShadowStatus, nowMs: number): Promise<void> {
    // What is switched is judged anew, by a new plan if need be.
    const idle = this.#state.is('watching');
    if (idle) this.#state.move('planning');
    const { subsets } = this.#deps.route();
    const sides = new Map(subsets.map(({ subset, side }) => [subset, side]));
    const live = liveShadow(status, this.#apply.rate);
    this.#planned = await this.#deps.plan(live, sides, nowMs, this.#stopping.signal);
    this.#plannedOf = shadowAsSeen(status);
    if (idle) this.#state.move('watching');
  }

  async #act(verdict: Verdict): Promise<void> {
    const { decisions, limits, log } = this.#deps;
    const known = this.#verdict;
    const news =
      known === undefined ||
      known.kind !== verdict.kind ||
      known.code !== verdict.code ||
      known.subset !== verdict.subset;
    const acts = verdict.kind === 'cutover' || verdict.kind === 'retire';
    if (news || acts) {
      const number = await decisions.record(limits.mode, verdict);
      const { kind, code, subset, reason } = verdict;
      if (kind === 'suggest' || acts) log.info({ kind, code, subset, reason }, 'autopilot');
      this.#verdict = { ...verdict, at: this.#deps.clock.now().toISOString() };
      if (kind === 'cutover') await this.#cutover(number, verdict);
      if (kind === 'retire') await this.#retire(number);
      return;
    }
    this.#verdict = { ...verdict, at: known.at };
  }

  /** What preflight alone says against a switch, or what has changed while it ran; undefined: nothing. */
  async #obstacle(number: number, decided: Verdict, what: OperationOptions): Promise<string | undefined> {
    try {
      const report = (await this.#deps.operate('cutover', { ...what, dryRun: true })) as OperationReport;
      if (report.reason !== undefined) return `${report.reason.code}: ${report.reason.message}`;
      const blocker = report.findings.find(({ severity }) => severity === 'blocker');
      if (blocker !== undefined) return `${blocker.check}: ${blocker.object}: ${blocker.message}`;
      return await this.#changed(number, decided, report.subsets ?? [report.subset], false);
    } catch (error) {
      const { code, message } = asUnderstudyError(error, 'internal', 'preflight');
      return `${code}: ${message}`;
    }
  }

  /**
   * Whether the decision still stands, after what may have taken hours, for just these subsets; if it doesn't, why. `own`: the
   * operation itself asks, so that it runs is nothing against it.
   */
  async #changed(
    number: number,
    decided: Verdict,
    switched: readonly SubsetId[],
    own: boolean,
  ): Promise<string | undefined> {
    await this.#withPlan();
    const now = await this.#judge(number, own);
    if (this.#stopping.signal.aborted) return 'the process was stopped';
    if (now.kind !== decided.kind) return `while preflight ran it became ${now.code}: ${now.reason}`;
    if (now.subset !== decided.subset)
      return `while preflight ran it became the turn of ${now.subset ?? 'the whole database'}: ${now.reason}`;
    const { bundle } = decided;
    if (bundle === undefined || (sameMembers(bundle, switched) && sameMembers(bundle, now.bundle ?? [])))
      return undefined;
    return `decided was on ${bundle.join(', ')}; the operation would switch ${switched.join(', ')}`;
  }

  /** Slots, publications and triggers go; the fence stays, so that nobody writes to a source that is not followed any more. */
  async #retire(number: number): Promise<void> {
    const { decisions, operate, log } = this.#deps;
    this.#state.move('switching');
    try {
      await operate('finalize', {});
      log.info({}, 'autopilot: the shadow is retired');
      // The decisions may be gone with all else that the migration kept.
      await decisions.settle(number, 'done', null, null).catch(() => undefined);
    } catch (error) {
      const { code, message } = asUnderstudyError(error, 'internal', 'finalize');
      log.warn({ code, error: message }, 'autopilot: the shadow could not be retired');
      await decisions.settle(number, 'aborted', `${code}: ${message}`, null);
    }
    this.#state.move('watching');
  }

  /** Throws `cancelled` where the decision stands no more. */
  async #confirm(number: number, decided: Verdict, switched: readonly SubsetId[]): Promise<void> {
    const changed = await this.#changed(number, decided, switched, true);
    if (changed !== undefined) throw new UnderstudyError('cancelled', changed);
  }

  /** Whatever happens, the decision gets its outcome, unless the destination can't be told. */
  async #cutover(number: number, decided: Verdict): Promise<void> {
    const { decisions, operate, log } = this.#deps;
    const { subset } = decided;
    this.#state.move('switching');
    const what = subset === undefined ? {} : { subset };
    const obstacle = await this.#obstacle(number, decided, what);
    if (obstacle !== undefined) {
      log.warn({ subset, obstacle }, 'autopilot: preflight refused the cutover');
      await decisions.settle(number, 'refused', obstacle, null);
      this.#state.move('watching');
      return;
    }
    try {
      const report = (await operate('cutover', what, (switched) =>
        this.#confirm(number, decided, switched),
      )) as OperationReport;
      const done = report.outcome === 'done';
      const why = report.reason === undefined ? null : `${report.reason.code}: ${report.reason.message}`;
      log[done ? 'info' : 'warn'](
        { operation: report.id, subset, outcome: report.outcome },
        'autopilot: cutover ended',
      );
      await decisions.settle(number, done ? 'done' : 'aborted', why, report.id);
    } catch (error) {
      const { code, message } = asUnderstudyError(error, 'internal', 'cutover');
      log.warn({ subset, code, error: message }, 'autopilot: cutover failed');
      // A person was first: nothing has been tried.
      const refused = code === 'busy' || code === 'already-cut-over';
      await decisions.settle(number, refused ? 'refused' : 'aborted', `${code}: ${message}`, null);
    }
    this.#state.move('watching');
  }
}

function shown({
  bundle: _bundle,
  ...verdict
}: Verdict & { readonly at: string }): NonNullable<AutopilotStatus['verdict']> {
  return { ...verdict, subset: verdict.subset ?? null };
}

/** By more than measures of the same work differ; or it is known now. */
function hasMoved(plannedMs: number | null, nowMs: number | null): boolean {
  if (nowMs === null) return false;
  if (plannedMs === null) return true;
  return Math.abs(nowMs - plannedMs) > Math.max(MOVED_MS, MOVED_SHARE * plannedMs);
}

function sameMembers(some: readonly SubsetId[], others: readonly SubsetId[]): boolean {
  return some.length === others.length && some.every((subset) => others.includes(subset));
}

/** Without the subsets that were switched: how they change is not the forward stream's to keep up with. */
function stillShadowed(planned: Planned, routes: RouteAsKnown['subsets']): Planned {
  const switched = new Set(routes.flatMap(({ subset, side }) => (side === 'destination' ? [subset] : [])));
  if (switched.size === 0) return planned;
  const subsets = planned.plan.subsets.filter(({ subset }) => !switched.has(subset));
  return { ...planned, plan: { ...planned.plan, subsets } };
}
