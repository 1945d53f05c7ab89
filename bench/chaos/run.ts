/**
 * One run: fresh databases, a fresh Understudy, clients at work, then the plan's acts, and after each of them and at the
 * end what must hold.
 *
 *   1. databases, Understudy, the shadow follows, clients at work
 *   2. per act: points armed, operation begun, faults made when their points are reached, taken back when the operation
 *      has ended or they have lasted long enough; then at rest: one side writable, status true, every client goes on
 *   3. clients stopped; both sides come to hold the same rows; the books are audited
 *   4. `remove` or `finalize`, and nothing of Understudy is left
 */
import type { StatusReport } from '../../src/admin/control.js';
import type { OperationKind } from '../../src/core/ports.js';
import type { Route } from '../../src/core/traffic-ports.js';
import type { StepPoint } from '../../src/cutover/settings.js';
import { ARRANGEMENTS, type Arrangement, type Group } from './arrangement.js';
import { auditProbes } from './audit.js';
import { auditCrossings, auditSides, type Led } from './audit-sides.js';
import {
  auditBooks,
  checkConverged,
  checkSlots,
  checkStatus,
  comesTrue,
  finding,
  readTraces,
  writableSides,
  type Finding,
  type Writable,
} from './checks.js';
import { CROSSING, crewOf } from './crew.js';
import { Faults, asLinkFault } from './faults.js';
import { History } from './history.js';
import type { Act, Fault, Plan } from './plan.js';
import type { ServerSide, Stage } from './stage.js';
import type { Subject, OperationOutcome } from './subject.js';
import { Connection, type Worker } from './workers.js';

const FOLLOW_TIMEOUT_MS = 60_000;
const OPERATION_TIMEOUT_MS = 45_000;
const REST_TIMEOUT_MS = 30_000;
const PROGRESS_TIMEOUT_MS = 20_000;
const FOLLOW_AGAIN_MS = 10_000;
const CALM_OPERATION_TRIES = 3;

export interface ActReport {
  readonly kind: OperationKind;
  readonly subset?: string;
  readonly outcome: string;
  readonly faults: readonly string[];
  /** Faults whose point was never reached. */
  readonly missed: readonly string[];
  readonly stallMaxMs: number;
  readonly steps: Readonly<Record<string, number>>;
}

export class Run {
  readonly #stage: Stage;
  readonly #plan: Plan;
  readonly #database: string;
  readonly #subject: Subject;
  readonly #faults: Faults;
  readonly #arrangement: Arrangement;
  readonly #history: History;
  readonly #workers: readonly Worker[];
  readonly #findings: Finding[] = [];
  /** Who leads a subset on which nothing is under way, and who did when nothing was. */
  readonly #settled = new Map<string, { readonly side: ServerSide; readonly fromMs: number }>();
  readonly #led: Led[] = [];
  readonly acts: ActReport[] = [];
  readonly parts: Record<string, number> = {};

  constructor(stage: Stage, plan: Plan, database: string, subject: Subject) {
    this.#stage = stage;
    this.#plan = plan;
    this.#database = database;
    this.#subject = subject;
    this.#faults = new Faults(stage, subject, database);
    this.#arrangement = ARRANGEMENTS[plan.subsets];
    this.#history = new History(this.#arrangement, (port) =>
      port === stage.servers.source.port ? 'source' : 'destination',
    );
    this.#workers = crewOf(plan, stage, database, this.#history);
  }

  #patient(ms: number): number {
    return ms * this.#stage.patience;
  }

  get findings(): readonly Finding[] {
    return this.#findings;
  }
  get history(): History {
    return this.#history;
  }

  #done(part: string): void {
    this.parts[part] = Math.round(this.#history.nowMs());
  }

  #found(...findings: readonly Finding[]): void {
    this.#findings.push(...findings);
  }

  async play(): Promise<void> {
    try {
      await this.#subject.start();
      this.#done('started');
      if (!(await this.#following())) return;
      this.#done('following');
      for (const worker of this.#workers) worker.start();
      if (!(await this.#progress('at the start'))) return;
      this.#done('progress');
      this.#settledSince(0, new Map(this.#arrangement.subsets.map((subset) => [subset, ['source']])));
      if (this.#plan.leads === 'destination')
        await this.#act({ ...QUIET, subset: this.#plan.acts[0]?.subset ?? 0 });
      if (this.#findings.length > 0) return;
      for (const [index, act] of this.#plan.acts.entries()) {
        await this.#act(act);
        this.#done(`act ${index + 1}`);
        if (this.#findings.length > 0) break;
      }
    } finally {
      await Promise.all(this.#workers.map((worker) => worker.stop()));
    }
    this.#unsettled(this.#arrangement.subsets);
    await this.#end();
  }

  async #following(): Promise<boolean> {
    let last: StatusReport | null = null;
    const follows = await comesTrue(async () => {
      last = await this.#subject.status();
      const shadow = last?.shadow;
      return shadow?.phase === 'following' && shadow.streams.every((stream) => stream.connected);
    }, this.#patient(FOLLOW_TIMEOUT_MS));
    if (!follows)
      this.#found(
        finding('shadow-does-not-follow', JSON.stringify((last as StatusReport | null)?.shadow ?? null)),
      );
    return follows;
  }

  /** Every client has done something it had begun after this moment, and so does one that comes now. */
  async #progress(when: string): Promise<boolean> {
    const sinceMs = this.#history.nowMs();
    const waiting = (): readonly string[] =>
      this.#workers
        .map(({ name }) => name)
        // Refused while the sides differ; it has an audit of its own.
        .filter((name) => name !== CROSSING)
        .filter((name) => (this.#history.lastSuccessMs.get(name) ?? -1) <= sinceMs);
    const newcomer = comesTrue(() => this.#newcomerServed(), this.#patient(PROGRESS_TIMEOUT_MS));
    const all = await comesTrue(() => waiting().length === 0, this.#patient(PROGRESS_TIMEOUT_MS));
    if (!(await newcomer)) this.#found(finding('stuck', `${when}: no new client is served`));
    if (!all) this.#found(finding('stuck', `${when}: ${waiting().join(', ')}`));
    return this.#findings.length === 0;
  }

  async #newcomerServed(): Promise<boolean> {
    try {
      const connection = await Connection.open(this.#stage.linkUrl('client', this.#database));
      const { rows } = await connection.query('SELECT count(*) AS n FROM account');
      connection.destroy();
      return rows.length === 1;
    } catch {
      return false;
    }
  }

  // -------------------------------------------------------------------------------------------------------------
  // An act

  async #act(act: Act): Promise<void> {
    // A shadow that has lost its connections is given the time to find them again: else the operation is just refused.
    await comesTrue(async () => {
      const shadow = (await this.#subject.status())?.shadow;
      return (
        shadow?.phase === 'failed' ||
        shadow?.streams.every(({ connected, lagMs }) => connected && lagMs !== null) === true
      );
    }, this.#patient(FOLLOW_AGAIN_MS));
    const before = await this.#subject.status();
    const subset = this.#arrangement.subsets[act.subset] ?? 'all';
    const from = this.#routeOf(before, subset)?.side ?? 'source';
    const kind: OperationKind = from === 'source' ? 'cutover' : 'rollback';
    const [errorsBefore, probesBefore] = [this.#history.errors.length, this.#history.probes.length];
    const others = this.#otherRoutes(before, subset);
    const destinationServes = this.#arrangement.subsets.some(
      (each) => this.#routeOf(before, each)?.side === 'destination',
    );
    this.#unsettled([subset]);
    const reached = this.#arm(act);
    const outcome: { value?: OperationOutcome } = {};
    const operation = this.#subject
      .operate(kind, this.#several ? { subset } : {})
      .then((value) => (outcome.value = value));
    await Promise.race([
      operation,
      new Promise((resolve) => setTimeout(resolve, this.#patient(OPERATION_TIMEOUT_MS))),
    ]);
    // A lost answer may come before its cause is known: the process has ended, or its point was about to be reached.
    await reached.settled();
    await this.#faults.heal(act.restartAfterMs, act.understudyFirst);
    this.#subject.disarm();
    if (!(await comesTrue(() => outcome.value !== undefined, this.#patient(OPERATION_TIMEOUT_MS)))) {
      this.#found(finding('operation-stuck', `${kind} has not ended`));
    }
    const value = outcome.value ?? { kind: 'lost' };
    this.acts.push({
      kind,
      ...(this.#several ? { subset } : {}),
      outcome: describeOutcome(value),
      faults: act.faults.map(({ name }) => name),
      missed: act.faults.filter((fault) => !reached.made.has(fault)).map(({ name }) => name),
      stallMaxMs: value.kind === 'report' ? value.report.stall.max : 0,
      steps: value.kind === 'report' ? value.report.steps : {},
    });
    this.#done(`operation ${this.acts.length}`);
    await this.#rest({ kind, subset, from, others }, value);
    if (
      act.faults.length === 0 &&
      !this.#faults.schemaChanged &&
      !(value.kind === 'report' && value.report.outcome === 'done')
    ) {
      this.#found(finding('refused-for-nothing', `${kind} ${describeOutcome(value)}`));
    }
    this.#found(...auditProbes(this.#history.probes.slice(probesBefore)));
    if (isPainless(act, value, destinationServes)) {
      for (const error of this.#history.errors.slice(errorsBefore)) {
        if (error.worker === CROSSING && error.code === '0A000') continue;
        this.#found(finding('client-hurt', `${error.worker} ${error.doing}: ${error.code} ${error.message}`));
      }
    }
  }

  /** Arms the points of an act's faults. Each is made when its point is reached; `lastsMs` later all are taken back. */
  #arm(act: Act): { readonly made: ReadonlySet<Fault>; readonly settled: () => Promise<void> } {
    const made = new Set<Fault>();
    const under: Promise<void>[] = [];
    const byPoint = new Map<StepPoint, Fault[]>();
    for (const fault of act.faults) byPoint.set(fault.point, [...(byPoint.get(fault.point) ?? []), fault]);
    const timers: NodeJS.Timeout[] = [];
    const over = (): void => {
      const heal = (): void => void under.push(this.#faults.heal(act.restartAfterMs, act.understudyFirst));
      timers.push(setTimeout(heal, act.lastsMs));
    };
    for (const [point, faults] of byPoint) {
      const hold = faults.some(({ delayMs }) => delayMs === 0);
      this.#subject.arm(point, { hold }, () => {
        under.push(
          this.#makeAll(faults, made).then(() => {
            this.#subject.go(point);
            over();
          }),
        );
      });
    }
    if (act.abort && !byPoint.has('before:commit')) {
      this.#subject.arm('before:commit', { hold: true }, () => {
        under.push(this.#subject.call('abort', {}).then(() => this.#subject.go('before:commit')));
      });
    }
    return {
      made,
      settled: async () => {
        for (let settled = 0; settled < under.length;) {
          settled = under.length;
          await Promise.allSettled(under);
        }
        for (const timer of timers) clearTimeout(timer);
      },
    };
  }

  async #makeAll(faults: readonly Fault[], made: Set<Fault>): Promise<void> {
    for (const fault of faults) {
      if (fault.delayMs > 0) await new Promise((resolve) => setTimeout(resolve, fault.delayMs));
      made.add(fault);
      await this.#faults.make(fault).catch((error: unknown) => {
        this.#found(finding('harness', `${fault.name}: ${String(error)}`));
      });
    }
  }

  /** Everything is as it should be again, by itself, soon after the faults are over. */
  async #rest({ kind, subset, from, others }: Operated, outcome: OperationOutcome): Promise<void> {
    if (!this.#subject.running) {
      this.#found(finding('understudy-ended', `with ${this.#subject.ending}`));
      return;
    }
    const status = await this.#atRest();
    if (status === null) return;
    const restMs = this.#history.nowMs();
    const writable = await writableSides(this.#stage, this.#database, this.#history);
    for (const [each, sides] of writable) {
      if (sides.length === 1) continue;
      this.#found(
        finding(
          sides.length === 0 ? 'none-writable' : 'both-writable',
          `${each}, after the ${kind} of ${subset}`,
        ),
      );
    }
    this.#settledSince(restMs, new Map([[subset, writable.get(subset) ?? []]]));
    await this.#progress(`after the ${kind}`);
    this.#found(...(await checkStatus(this.#stage, this.#database, status, writable)));
    this.#found(...checkSlots(await readTraces(this.#stage, this.#database)));
    if (this.#otherRoutes(status, subset) !== others) {
      this.#found(
        finding('others-changed', `${others}, and ${this.#otherRoutes(status, subset)} afterwards`),
      );
    }
    if (this.#several) await this.#crossingsAreKnown(writable);
    if (outcome.kind !== 'report') return;
    const { report } = outcome;
    const expected = report.outcome === 'done' ? (from === 'source' ? 'destination' : 'source') : from;
    const [leads] = writable.get(subset) ?? [];
    if (leads !== expected) {
      this.#found(finding('report-untrue', `${report.outcome}, but ${leads ?? 'no side'} takes writes`));
    }
    if (report.outcome === 'aborted' && (report.reason?.message ?? '') === '') {
      this.#found(finding('no-reason', `the ${kind} aborted and doesn’t say why`));
    }
  }

  get #several(): boolean {
    return this.#plan.subsets > 0;
  }

  #routeOf(status: StatusReport | null, subset: string): Route | null {
    if (!this.#several) return status?.route ?? null;
    return status?.cutover?.subsets?.find((each) => each.subset === subset)?.route ?? null;
  }

  /** The routes of the other subsets, which no operation on this one may change. */
  #otherRoutes(status: StatusReport | null, subset: string): string {
    const others = this.#arrangement.subsets.filter((each) => each !== subset);
    return JSON.stringify(others.map((each) => [each, this.#routeOf(status, each)]));
  }

  /** From then on, until an operation on them begins, these lead. */
  #settledSince(fromMs: number, leads: Writable): void {
    for (const [subset, [side]] of leads) {
      if (side !== undefined && !this.#settled.has(subset)) this.#settled.set(subset, { side, fromMs });
    }
  }

  #unsettled(subsets: readonly string[]): void {
    const toMs = this.#history.nowMs();
    for (const subset of subsets) {
      const since = this.#settled.get(subset);
      if (since !== undefined) this.#led.push({ subset, ...since, toMs });
      this.#settled.delete(subset);
    }
  }

  /** A client that comes now is refused what spans sides, and served what doesn't. */
  async #crossingsAreKnown(writable: Writable): Promise<void> {
    const { of } = this.#arrangement;
    const differ = writable.get(of.register)?.[0] !== writable.get(of.ledger)?.[0];
    const seen = new Set<string>();
    const asExpected = await comesTrue(async () => {
      const code = await this.#crossOnce();
      seen.add(code ?? 'served');
      return differ ? code === '0A000' : code === null;
    }, this.#patient(PROGRESS_TIMEOUT_MS));
    const wrong = seen.has(differ ? 'served' : '0A000');
    if (asExpected && !wrong) return;
    this.#found(finding('crossing', `sides ${differ ? 'differ' : 'are one'}: ${[...seen].join(', ')}`));
  }

  async #crossOnce(): Promise<string | null> {
    try {
      const connection = await Connection.open(this.#stage.linkUrl('client', this.#database));
      try {
        await connection.query('SELECT (SELECT count(*) FROM register), (SELECT max(seq) FROM ledger)');
        return null;
      } finally {
        connection.destroy();
      }
    } catch (error) {
      return (error as { code?: string }).code ?? 'unnamed';
    }
  }

  async #atRest(): Promise<StatusReport | null> {
    let last: StatusReport | null = null;
    const calm = await comesTrue(async () => {
      last = await this.#subject.status();
      return (
        last?.ready.ready === true &&
        last.cutover?.running === null &&
        last.cutover.journal === 'reachable' &&
        last.cutover.barriers.source !== 'unknown' &&
        last.cutover.barriers.destination !== 'unknown' &&
        SETTLED.has(last.cutover.last?.state ?? 'done')
      );
    }, this.#patient(REST_TIMEOUT_MS));
    if (calm) return last;
    const seen = last as StatusReport | null;
    this.#found(
      finding(
        'does-not-settle',
        JSON.stringify({ ready: seen?.ready, cutover: seen?.cutover, error: seen?.shadow.error }),
      ),
    );
    return null;
  }

  // -------------------------------------------------------------------------------------------------------------
  // The end

  async #end(): Promise<void> {
    const writable = await writableSides(this.#stage, this.#database, this.#history);
    if ([...writable.values()].some(({ length }) => length !== 1)) return;
    const leads = (group: Group): ServerSide => writable.get(this.#arrangement.of[group])?.[0] ?? 'source';
    this.#found(
      ...(await auditBooks(this.#stage, leads, this.#database, this.#history)),
      ...auditSides(this.#history.sideReads, this.#led),
      ...auditCrossings(this.#history.crossings, this.#led),
      ...this.#refusedNeedlessly(),
    );
    if (this.#findings.length > 0 || !this.#subject.running) return;
    if (!this.#faults.schemaChanged && (await this.#following())) {
      this.#found(...(await checkConverged(this.#stage, this.#database, this.#patient(REST_TIMEOUT_MS))));
    }
    this.#done('converged');
    const side = await this.#meet(writable);
    this.#done('met');
    if (side !== null) await this.#takeAway(side);
  }

  /** What touches one subset is never refused for spanning two. */
  #refusedNeedlessly(): readonly Finding[] {
    return this.#history.errors
      .filter(({ worker, code }) => code === '0A000' && worker !== CROSSING)
      .slice(0, 10)
      .map(({ worker, atMs, message }) =>
        finding('refused-needlessly', `${worker} at ${atMs.toFixed(0)} ms: ${message}`),
      );
  }

  /** Where subsets are on different sides nothing may be taken away; then all are brought to one. Null: they could not be. */
  async #meet(writable: Writable): Promise<ServerSide | null> {
    const sides = [...writable.values()].map(([side]) => side ?? 'source');
    const to: ServerSide = this.#plan.seed % 2 === 0 ? 'source' : 'destination';
    if (new Set(sides).size === 1) return sides[0] ?? null;
    for (const verb of ['finalize', 'remove'] as const) {
      const refused = await this.#subject.call(verb, {});
      if (refused?.error === undefined) {
        this.#found(finding('parted-and-removed', `${verb} was not refused: ${JSON.stringify(refused)}`));
        return null;
      }
    }
    for (const [subset, [side]] of writable) {
      if (side === to) continue;
      const kind: OperationKind = to === 'destination' ? 'cutover' : 'rollback';
      const ended: string[] = [];
      for (let attempt = 0; attempt < CALM_OPERATION_TRIES && ended.at(-1) !== 'done'; attempt++) {
        ended.push(describeOutcome(await this.#subject.operate(kind, { subset })));
      }
      if (ended.at(-1) === 'done') continue;
      if (!this.#faults.schemaChanged)
        this.#found(finding('does-not-meet', `${kind} of ${subset}: ${ended.join(', ')}`));
      return null;
    }
    const after = await writableSides(this.#stage, this.#database, this.#history);
    if ([...after.values()].some(({ length, 0: side }) => length !== 1 || side !== to))
      this.#found(finding('does-not-meet', `${JSON.stringify([...after])} instead of the ${to}`));
    const armed = (await this.#subject.status())?.proxy.armed;
    if (armed !== false) this.#found(finding('status-untrue', `armed ${armed} once all have met`));
    if (!this.#faults.schemaChanged)
      this.#found(...(await checkConverged(this.#stage, this.#database, this.#patient(REST_TIMEOUT_MS))));
    return to;
  }

  async #takeAway(leads: ServerSide): Promise<void> {
    const verb = leads === 'source' ? 'remove' : 'finalize';
    const ended = await this.#subject.call(verb, verb === 'finalize' ? { removeFence: true } : {});
    if (ended?.error !== undefined || ended === null) {
      this.#found(
        finding(
          'not-removed',
          `${verb}: ${ended?.error?.code ?? ''} ${ended?.error?.message ?? 'no answer'}`,
        ),
      );
      return;
    }
    // The source's epoch stays where there was a switch: nobody shall take an old journal for the present one.
    const left = (await readTraces(this.#stage, this.#database)).filter(
      (trace) =>
        trace !== 'source schema understudy with r epoch' &&
        (verb === 'remove' || !trace.includes(' schema ')),
    );
    this.#done('removed');
    if (left.length > 0) this.#found(finding('left-behind', `after ${verb}: ${left.join(', ')}`));
  }
}

interface Operated {
  readonly kind: OperationKind;
  readonly subset: string;
  readonly from: ServerSide;
  /** The other subsets' routes before. */
  readonly others: string;
}

/** Nothing befalls it, so it must succeed. */
const QUIET: Act = {
  faults: [],
  abort: false,
  lastsMs: 0,
  restartAfterMs: 0,
  understudyFirst: true,
  subset: 0,
};

const SETTLED: ReadonlySet<string> = new Set(['done', 'aborted']);

function describeOutcome(outcome: OperationOutcome): string {
  switch (outcome.kind) {
    case 'report':
      return outcome.report.reason === undefined
        ? outcome.report.outcome
        : `${outcome.report.outcome} (${outcome.report.reason.code})`;
    case 'refused':
      return `refused (${outcome.code})`;
    default:
      return outcome.kind;
  }
}

/** Faults that take nothing from a client but the time of the gate, whatever becomes of the operation. */
const PAINLESS: ReadonlySet<string> = new Set(['none', 'clock-jump', 'long-transaction', 'ddl']);

/** Whether the act may not have hurt any client: the fault is none of theirs, and the operation ended before its commit. */
function isPainless(act: Act, outcome: OperationOutcome, destinationServes: boolean): boolean {
  if (outcome.kind !== 'report') return false;
  const { report } = outcome;
  const aside = (fault: Fault): boolean =>
    PAINLESS.has(fault.name) ||
    (!destinationServes &&
      report.outcome === 'aborted' &&
      report.reason?.code !== 'in-doubt' &&
      (asLinkFault(fault.name)?.[0] === 'destination' || fault.name === 'disk-full'));
  return act.faults.every(aside);
}
