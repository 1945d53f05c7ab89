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
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { StatusReport } from '../../src/admin/control.js';
import type { OperationKind } from '../../src/core/ports.js';
import type { StepPoint } from '../../src/cutover/settings.js';
import { auditProbes } from './audit.js';
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
} from './checks.js';
import { Faults, asLinkFault } from './faults.js';
import { History } from './history.js';
import { describePlan, type Act, type Fault, type Plan } from './plan.js';
import type { ServerSide, Stage } from './stage.js';
import { Subject, type OperationOutcome } from './subject.js';
import {
  Connection,
  DirectWorker,
  LedgerWorker,
  RegisterWorker,
  SumWorker,
  TransactionLedgerWorker,
  TransferWorker,
  type Worker,
} from './workers.js';

const FOLLOW_TIMEOUT_MS = 60_000;
const OPERATION_TIMEOUT_MS = 45_000;
const REST_TIMEOUT_MS = 30_000;
const PROGRESS_TIMEOUT_MS = 20_000;
const FOLLOW_AGAIN_MS = 10_000;
const RUN_TIMEOUT_MS = 150_000;
const HOLD_BUDGET_MS = 2_500;

export interface RunReport {
  readonly seed: number;
  readonly plan: string;
  readonly seconds: number;
  readonly statements: number;
  readonly errors: number;
  /** Per act: kind, outcome, and whether its faults' points were reached. */
  readonly acts: readonly ActReport[];
  readonly findings: readonly Finding[];
  /** Where Understudy's output was kept, where there are findings. */
  readonly kept?: string;
  /** Milliseconds since the run began at which each of its parts was done. */
  readonly parts: Readonly<Record<string, number>>;
}
export interface ActReport {
  readonly kind: OperationKind;
  readonly outcome: string;
  readonly faults: readonly string[];
  /** Faults whose point was never reached. */
  readonly missed: readonly string[];
  readonly stallMaxMs: number;
  readonly steps: Readonly<Record<string, number>>;
}

class Run {
  readonly #stage: Stage;
  readonly #plan: Plan;
  readonly #database: string;
  readonly #subject: Subject;
  readonly #faults: Faults;
  readonly #history = new History();
  readonly #workers: readonly Worker[];
  readonly #findings: Finding[] = [];
  readonly acts: ActReport[] = [];
  readonly parts: Record<string, number> = {};

  constructor(stage: Stage, plan: Plan, database: string, subject: Subject) {
    this.#stage = stage;
    this.#plan = plan;
    this.#database = database;
    this.#subject = subject;
    this.#faults = new Faults(stage, subject, database);
    const url = stage.linkUrl('client', database);
    const { seed } = plan;
    const history = this.#history;
    this.#workers = [
      new LedgerWorker('ledger', url, history, seed + 1, 25),
      new TransactionLedgerWorker('transactions', url, history, seed + 2, 40),
      ...[1, 2, 3].map((n) => new RegisterWorker(`register ${n}`, url, history, seed + 2 + n, 25)),
      new TransferWorker('transfer', url, history, seed + 6, 30),
      new SumWorker('sum', url, history, seed + 7, 40),
      new DirectWorker(
        [
          ['source', stage.directUrl('source', database)],
          ['destination', stage.directUrl('destination', database)],
        ],
        history,
        seed + 8,
        60,
      ),
    ];
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
      if (this.#plan.leads === 'destination') await this.#act(QUIET);
      if (this.#findings.length > 0) return;
      for (const [index, act] of this.#plan.acts.entries()) {
        await this.#act(act);
        this.#done(`act ${index + 1}`);
        if (this.#findings.length > 0) break;
      }
    } finally {
      await Promise.all(this.#workers.map((worker) => worker.stop()));
    }
    await this.#end();
  }

  async #following(): Promise<boolean> {
    let last: StatusReport | null = null;
    const follows = await comesTrue(async () => {
      last = await this.#subject.status();
      const shadow = last?.shadow;
      return shadow?.phase === 'following' && shadow.streams.every((stream) => stream.connected);
    }, FOLLOW_TIMEOUT_MS);
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
        .filter((name) => (this.#history.lastSuccessMs.get(name) ?? -1) <= sinceMs);
    const newcomer = comesTrue(() => this.#newcomerServed(), PROGRESS_TIMEOUT_MS);
    const all = await comesTrue(() => waiting().length === 0, PROGRESS_TIMEOUT_MS);
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
    }, FOLLOW_AGAIN_MS);
    const before = await this.#subject.status();
    const from: ServerSide = before?.route?.side ?? 'source';
    const kind: OperationKind = from === 'source' ? 'cutover' : 'rollback';
    const [errorsBefore, probesBefore] = [this.#history.errors.length, this.#history.probes.length];
    const reached = this.#arm(act);
    const outcome: { value?: OperationOutcome } = {};
    const operation = this.#subject.operate(kind).then((value) => (outcome.value = value));
    await Promise.race([operation, new Promise((resolve) => setTimeout(resolve, OPERATION_TIMEOUT_MS))]);
    // A lost answer may come before its cause is known: the process has ended, or its point was about to be reached.
    await reached.settled();
    await this.#faults.heal(act.restartAfterMs, act.understudyFirst);
    this.#subject.disarm();
    if (!(await comesTrue(() => outcome.value !== undefined, OPERATION_TIMEOUT_MS))) {
      this.#found(finding('operation-stuck', `${kind} has not ended`));
    }
    const value = outcome.value ?? { kind: 'lost' };
    this.acts.push({
      kind,
      outcome: describeOutcome(value),
      faults: act.faults.map(({ name }) => name),
      missed: act.faults.filter((fault) => !reached.made.has(fault)).map(({ name }) => name),
      stallMaxMs: value.kind === 'report' ? value.report.stall.max : 0,
      steps: value.kind === 'report' ? value.report.steps : {},
    });
    this.#done(`operation ${this.acts.length}`);
    await this.#rest(kind, from, value);
    if (act === QUIET && !(value.kind === 'report' && value.report.outcome === 'done')) {
      this.#found(finding('refused-for-nothing', `${kind} ${describeOutcome(value)}`));
    }
    this.#found(...auditProbes(this.#history.probes.slice(probesBefore)));
    if (isPainless(act, value)) {
      for (const error of this.#history.errors.slice(errorsBefore)) {
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
  async #rest(kind: OperationKind, from: ServerSide, outcome: OperationOutcome): Promise<void> {
    if (!this.#subject.running) {
      this.#found(finding('understudy-ended', `with ${this.#subject.ending}`));
      return;
    }
    const status = await this.#atRest();
    if (status === null) return;
    await this.#progress(`after the ${kind}`);
    const writable = await writableSides(this.#stage, this.#database, this.#history);
    if (writable.length !== 1) {
      this.#found(finding(writable.length === 0 ? 'none-writable' : 'both-writable', `after the ${kind}`));
    }
    this.#found(...(await checkStatus(this.#stage, this.#database, status, writable)));
    this.#found(...checkSlots(await readTraces(this.#stage, this.#database)));
    if (outcome.kind !== 'report') return;
    const { report } = outcome;
    const expected = report.outcome === 'done' ? (from === 'source' ? 'destination' : 'source') : from;
    if (writable[0] !== expected) {
      this.#found(
        finding('report-untrue', `${report.outcome}, but ${writable[0] ?? 'no side'} takes writes`),
      );
    }
    if (report.outcome === 'aborted' && (report.reason?.message ?? '') === '') {
      this.#found(finding('no-reason', `the ${kind} aborted and doesn’t say why`));
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
    }, REST_TIMEOUT_MS);
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
    const [leads] = writable;
    if (leads === undefined) return;
    this.#found(...(await auditBooks(this.#stage, leads, this.#database, this.#history)));
    if (this.#findings.length > 0 || !this.#subject.running) return;
    if (!this.#faults.schemaChanged && (await this.#following())) {
      this.#found(...(await checkConverged(this.#stage, this.#database, REST_TIMEOUT_MS)));
    }
    this.#done('converged');
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

/** Nothing befalls it, so it must succeed. */
const QUIET: Act = { faults: [], abort: false, lastsMs: 0, restartAfterMs: 0, understudyFirst: true };

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
function isPainless(act: Act, outcome: OperationOutcome): boolean {
  if (outcome.kind !== 'report') return false;
  const { report } = outcome;
  const aside = (fault: Fault): boolean =>
    PAINLESS.has(fault.name) ||
    (report.kind === 'cutover' &&
      report.outcome === 'aborted' &&
      report.reason?.code !== 'in-doubt' &&
      (asLinkFault(fault.name)?.[0] === 'destination' || fault.name === 'disk-full'));
  return act.faults.every(aside);
}

function configuration(stage: Stage, database: string, plan: Plan): string {
  return [
    `migration: { id: chaos }`,
    `listen: { host: 127.0.0.1, port: ${stage.listenPort} }`,
    `admin: { host: 127.0.0.1, port: ${stage.adminPort} }`,
    `source: { url: '${stage.linkUrl('source', database)}' }`,
    `destination: { url: '${stage.linkUrl('destination', database)}' }`,
    `proxy: { poolMode: ${plan.poolMode} }`,
    `capture: { enabled: ${plan.capture}, flushIntervalMs: 300 }`,
    'shadow: { retryFirstMs: 50, retryMaxMs: 400, statusIntervalMs: 200, fingerprintIntervalMs: 4000 }',
    'cutover:',
    '  drainTimeoutMs: 800',
    '  fenceTimeoutMs: 600',
    '  markTimeoutMs: 1500',
    `  holdBudgetMs: ${HOLD_BUDGET_MS}`,
    '  commitAnswerTimeoutMs: 800',
    '  inDoubtTimeoutMs: 1500',
    '  connectTimeoutMs: 800',
    '  lagWaitMs: 2000',
    'limits: { connectTimeoutMs: 1500, prepareTimeoutMs: 1500, askTimeoutMs: 1500 }',
    '',
  ].join('\n');
}

export interface RunOptions {
  /** Where the output of a run with findings is kept. */
  readonly keepIn: string;
}

/** Plays one plan. Never throws for what the product does; what the harness itself can't do is a finding named so. */
export async function playRun(stage: Stage, plan: Plan, options: RunOptions): Promise<RunReport> {
  const startedMs = performance.now();
  const database = `chaos_${plan.seed}_${process.pid}`;
  const folder = await mkdtemp(join(tmpdir(), 'chaos-'));
  const yaml = configuration(stage, database, plan);
  const subject = await Subject.configure(folder, yaml, stage.adminPort);
  const run = new Run(stage, plan, database, subject);
  const findings: Finding[] = [];
  try {
    await stage.createDatabases(database);
    const late = new Promise<'late'>((resolve) => setTimeout(() => resolve('late'), RUN_TIMEOUT_MS).unref());
    if ((await Promise.race([run.play(), late])) === 'late') {
      findings.push(
        finding('harness', `the run was not over after ${RUN_TIMEOUT_MS} ms: ${JSON.stringify(run.parts)}`),
      );
    }
  } catch (error) {
    findings.push(
      finding('harness', error instanceof Error ? (error.stack ?? error.message) : String(error)),
    );
  }
  await subject.kill();
  await stage.calm();
  stage.disk?.free();
  for (const server of Object.values(stage.servers)) await server.start();
  findings.unshift(...run.findings);
  const kept = findings.length === 0 ? undefined : join(options.keepIn, `chaos-${plan.seed}.log`);
  if (kept !== undefined) {
    const { errors } = run.history;
    const told = errors.map(
      (error) => `${error.atMs.toFixed(0)} ms ${error.worker} ${error.doing} ${error.code} ${error.message}`,
    );
    const parts = [
      describePlan(plan),
      JSON.stringify(run.acts),
      JSON.stringify(findings, undefined, 1),
      ...told,
      yaml,
      subject.output,
    ];
    await writeFile(kept, parts.join('\n'));
  }
  await stage.dropDatabases(database).catch((error: unknown) => {
    findings.push(finding('harness', `databases were not dropped: ${String(error)}`));
  });
  await rm(folder, { recursive: true, force: true });
  return {
    seed: plan.seed,
    plan: describePlan(plan),
    seconds: (performance.now() - startedMs) / 1000,
    statements: run.history.statements,
    errors: run.history.errors.length,
    acts: run.acts,
    parts: run.parts,
    findings,
    ...(kept === undefined ? {} : { kept }),
  };
}
