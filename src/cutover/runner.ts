/**
 * Walks one cutover or rollback from `begin` to its report.
 *
 * Happy path, cutover (a rollback is the same with the sides exchanged, except where noted):
 *   1. preflight   checks, connections, plans; no client effect. A dry run ends after 2.
 *   2. prepare     sessions asked and warmed on the destination
 *   3. hold        in a quiet moment the gate closes, what is open ends
 *   4. fence       the source refuses writes; the mark is in the same transaction
 *   5. catch-up    the shadow reaches the mark; catalogs and sequences begin to be read (behind-fence.ts)
 *   6. verify      what changed of late is equal; meanwhile the destination's transaction is staged, its guard lowered
 *   7. commit      sequences set; operation and route swapped; COMMIT: the point of no return
 *   8. open        (rollback only) the source's staged transaction is committed: its fence is down
 *   9. switch      sessions take their warm connections
 *  10. release     the gate opens
 *  11. finish      report, journaled
 *
 * Invariants:
 * - A state is journaled before it is acted on: what only reads or waits, or is staged in a transaction that the commit
 *   ends, may begin meanwhile. Past the commit, where a successor does the same whichever state it finds, states are
 *   journaled once the gate is open: clients wait for the steps.
 * - A failure before COMMIT is sent: staged transactions discarded, then the abort journaled, only then the barrier
 *   lowered, only then the gate opened. If the destination is gone, a cutover may be undone without it, because COMMIT
 *   was not sent and nobody else has this attempt's nonce; the journal is put right when it returns.
 * - COMMIT sent and not acknowledged: in doubt, whatever the reason; see `in-doubt.ts`.
 * - After the commit nothing is undone, and aborting is not listened to: what fails is repeated until it succeeds.
 * - Undoing, too, is repeated until it succeeds, with the gate closed. When the process ends before, the next one
 *   finds the journal's word and the barrier, and does it.
 */
import type { Finding, OperationEvent, OperationReport, OperationState } from '../core/ports.js';
import type { StallReport } from '../core/traffic-ports.js';
import { UnderstudyError, asUnderstudyError } from '../core/errors.js';
import { commit } from './barrier.js';
import { IN_DOUBT_SQLSTATE, resolveDoubt } from './in-doubt.js';
import { abortMembers, finishOperation, moveOperation, storeReport } from './journal.js';
import { accepts, transition, type OperationInput } from './machine.js';
import { found, subsetsOf, type Operation } from './operation.js';
import type { Session } from './session.js';
import type { OperationOptions, StepName, StepPoint } from './settings.js';
import {
  STEPS_AFTER_COMMIT,
  STEPS_BEFORE_COMMIT,
  committingSession,
  discardStaged,
  insist,
  prepareCommit,
  type Step,
} from './steps.js';

const NO_STALL: StallReport = { held: 0, p50: 0, p99: 0, max: 0, histogram: [] };
/** cannot_connect_now: what held statements are told when undoing or opening takes too long. */
const UNAVAILABLE_SQLSTATE = '57P03';

/**
 * Nothing was undone, and nothing more is done: a fault test stopped the operation, or the process ends while it is in
 * doubt. The next process's recovery settles it.
 */
export class StoppedDead extends Error {
  override readonly name = 'StoppedDead';
}

export interface RunnerHooks {
  readonly onEvent: (event: OperationEvent) => void;
  readonly confirm: OperationOptions['confirm'];
  /** The hold's budget runs from `closed` to `committed`. */
  readonly onGate: (event: 'closing' | 'committed') => void;
  /** A cutover was undone while the journal could not be reached. */
  readonly onUnjournaledAbort: (reason: string) => void;
  /** A committed operation whose end could not be journaled. */
  readonly onUnjournaledEnd: (report: OperationReport) => void;
}

export class OperationRunner {
  readonly #operation: Operation;
  readonly #hooks: RunnerHooks;
  readonly #findings: Finding[] = [];
  readonly #timings: Record<string, number> = {};
  readonly #startedAt: string;
  readonly #startedMs: number;
  /** Steps that may have had an effect, in order. */
  readonly #begun: Step[] = [];
  #state: OperationState = 'idle';
  #step: StepName = 'preflight';
  #commitSent = false;

  constructor(operation: Operation, hooks: RunnerHooks) {
    this.#operation = operation;
    this.#hooks = hooks;
    this.#startedAt = operation.deps.clock.now().toISOString();
    this.#startedMs = operation.deps.clock.monotonicMs();
  }

  get state(): OperationState {
    return this.#state;
  }
  get step(): StepName {
    return this.#step;
  }
  get startedAt(): string {
    return this.#startedAt;
  }
  /** Whether an abort would still be listened to. */
  get undoable(): boolean {
    return !this.#commitSent && (this.#state === 'idle' || accepts(this.#state, 'fail'));
  }
  get operation(): Operation {
    return this.#operation;
  }

  addFinding(finding: Finding): void {
    this.#findings.push(finding);
    this.#hooks.onEvent({ event: 'finding', finding });
  }

  /**
   * Runs the operation, which the journal already holds as `preflight` unless it is a dry run. Resolves with its report
   * in every case but two: {@link StoppedDead}, and the process ending while the outcome or the undoing is pending.
   */
  async run(): Promise<OperationReport> {
    this.#input('begin');
    try {
      const rehearsed = await this.#beforeCommit();
      if (rehearsed) return await this.#rehearsed();
      await this.#commit();
    } catch (error) {
      if (error instanceof StoppedDead) throw error;
      return await this.#abort(asUnderstudyError(error, 'internal', this.#operation.kind));
    }
    this.#hooks.onGate('committed');
    return await this.#afterCommit();
  }

  /** Returns true where a dry run is over. */
  async #beforeCommit(): Promise<boolean> {
    let journaled = Promise.resolve();
    for (const step of STEPS_BEFORE_COMMIT) {
      if (step.name === 'hold') {
        if (this.#operation.dryRun) return true;
        // Preflight may have taken hours.
        await this.#hooks.confirm?.(subsetsOf(this.#operation));
        await step.ready?.(this.#operation);
        this.#hooks.onGate('closing');
      }
      this.#operation.signal.throwIfAborted();
      await this.#at(`before:${step.name}`);
      this.#begun.push(step);
      await this.#timed(step.name, () => this.#run(step, journaled));
      await this.#at(`after:${step.name}`);
      // A dry run stays in preflight, and writes nothing down.
      if (step.done === undefined || this.#operation.dryRun) continue;
      journaled = this.#journaled(step.done);
      journaled.catch(() => undefined);
      this.#operation.found.journaled = journaled;
      const next = STEPS_BEFORE_COMMIT[STEPS_BEFORE_COMMIT.indexOf(step) + 1];
      if (next?.early !== true) await journaled;
    }
    return false;
  }

  /** Whatever comes of the step, its state has been written or refused when this returns. */
  async #run(step: Step, journaled: Promise<void>): Promise<void> {
    try {
      await Promise.all([journaled, step.run(this.#operation)]);
    } finally {
      await journaled.catch(() => undefined);
    }
  }

  async #commit(): Promise<void> {
    const { signal } = this.#operation;
    await this.#at('before:commit');
    await this.#timed('commit', async () => {
      await prepareCommit(this.#operation);
      signal.throwIfAborted();
      await this.#at('before:send-commit');
      this.#commitSent = true;
      const { commitAnswerTimeoutMs } = this.#operation.deps.settings;
      try {
        await commit(committingSession(this.#operation), commitAnswerTimeoutMs);
      } catch (error) {
        await this.#inDoubt(asUnderstudyError(error, 'in-doubt', 'COMMIT'));
        return;
      }
      await this.#at('after:send-commit');
      this.#input('committed');
    });
    await this.#at('after:commit');
  }

  /** Returns where the journal says committed, throws where it says aborted. */
  async #inDoubt(cause: UnderstudyError): Promise<void> {
    this.#input('answer-lost');
    this.#operation.deps.log.error(
      { operation: this.#operation.key.id, code: cause.code, reason: cause.message },
      'the answer to COMMIT was lost; the journal is asked',
    );
    committingSession(this.#operation).destroy();
    let outcome: 'committed' | 'aborted';
    try {
      outcome = await resolveDoubt(this.#operation);
    } catch (error) {
      throw new StoppedDead('the process ends while the outcome is in doubt', { cause: error });
    }
    if (outcome === 'committed') {
      this.#input('committed');
      return;
    }
    throw new UnderstudyError(
      'in-doubt',
      'the answer to COMMIT was lost, and the journal says that it had not committed',
      {
        cause,
        advice: 'Look after the connection to the destination, and try again.',
      },
    );
  }

  async #afterCommit(): Promise<OperationReport> {
    const { key } = this.#operation;
    const passed: { readonly from: OperationState; readonly to: OperationState }[] = [];
    for (const step of STEPS_AFTER_COMMIT) {
      await this.#at(`before:${step.name}`);
      await this.#timed(step.name, () =>
        insist(
          this.#operation,
          step.name,
          {
            sqlState: UNAVAILABLE_SQLSTATE,
            message: `operation ${key.id} is waiting for the ${this.#operation.to}`,
          },
          () => step.run(this.#operation),
        ),
      );
      await this.#at(`after:${step.name}`);
      if (step.done === undefined) continue;
      const from = this.#state;
      this.#input(step.done);
      passed.push({ from, to: this.#state });
    }
    for (const { from, to } of passed) await this.#journaledIfPossible(from, to);
    await this.#at('before:finish');
    this.#input('released');
    const report = this.#report('done');
    await this.#finish(report);
    await this.#at('after:finish');
    this.#hooks.onEvent({ event: 'report', report });
    return report;
  }

  async #finish(report: OperationReport): Promise<void> {
    try {
      for (const { key } of this.#operation.members)
        await this.#withJournal((session) => finishOperation(session, key, { report }));
    } catch (error) {
      this.#complain(error, 'the operation is done; its end could not be journaled yet');
      this.#hooks.onUnjournaledEnd(report);
    }
  }

  async #rehearsed(): Promise<OperationReport> {
    const { deps } = this.#operation;
    deps.traffic.discardWarm(deps.subset);
    this.#input('rehearsed');
    const report = this.#report('dry-run');
    this.#hooks.onEvent({ event: 'report', report });
    return await Promise.resolve(report);
  }

  async #abort(error: UnderstudyError): Promise<OperationReport> {
    const { deps, dryRun, key, kind } = this.#operation;
    if (!accepts(this.#state, 'fail')) throw error;
    const found = this.#state === 'in-doubt';
    this.#input('fail');
    deps.log.warn({ operation: key.id, code: error.code, reason: error.message }, `${kind} aborts`);
    try {
      await discardStaged(this.#operation);
      if (!dryRun && !found) await this.#journalAbort(error);
      await this.#undo();
    } catch (undoing) {
      if (!(undoing instanceof StoppedDead)) this.#input('undo-failed');
      throw undoing;
    }
    this.#input('undone');
    const report = this.#report(dryRun ? 'dry-run' : 'aborted', error);
    if (!dryRun) await this.#store(report);
    this.#hooks.onEvent({ event: 'report', report });
    return report;
  }

  /** The abort stands in the journal before anything is lowered; see the header for when it may be owed. */
  async #journalAbort(error: UnderstudyError): Promise<void> {
    const { kind } = this.#operation;
    const reason = `${error.code}: ${error.message}`;
    await this.#at('before:journal-abort');
    if (kind === 'cutover' && !this.#commitSent) await this.#journalAbortOrOwe(reason);
    else
      await insist(this.#operation, 'journaling the abort', this.#undoing(), () =>
        this.#swapToAborted(reason),
      );
    await this.#at('after:journal-abort');
  }

  async #journalAbortOrOwe(reason: string): Promise<void> {
    try {
      await this.#swapToAborted(reason);
    } catch (error) {
      if (asUnderstudyError(error, 'internal', 'journal').code === 'journal-conflict') throw error;
      this.#complain(
        error,
        'the abort can’t be journaled now; COMMIT was not sent, so it is undone all the same',
      );
      this.#hooks.onUnjournaledAbort(reason);
    }
  }

  async #swapToAborted(reason: string): Promise<void> {
    const { key, members } = this.#operation;
    const state = await this.#withJournal((session) => abortMembers(session, members, reason));
    if (state === 'aborted') return;
    throw new UnderstudyError('journal-conflict', `the journal holds operation ${key.id} as ${state}`);
  }

  async #store(report: OperationReport): Promise<void> {
    try {
      for (const { key } of this.#operation.members)
        await this.#withJournal((session) => storeReport(session, key, report));
    } catch (error) {
      this.#complain(error, 'the report could not be stored');
    }
  }

  async #undo(): Promise<void> {
    for (const step of [...this.#begun].reverse()) {
      const { undo } = step;
      if (undo === undefined) continue;
      const point = step.name === 'fence' ? 'undo-fence' : step.name === 'hold' ? 'undo-hold' : undefined;
      if (point !== undefined) await this.#at(`before:${point}`);
      await insist(this.#operation, `undoing ${step.name}`, this.#undoing(), () => undo(this.#operation));
      if (point !== undefined) await this.#at(`after:${point}`);
    }
  }

  #undoing(): { readonly sqlState: string; readonly message: string } {
    const { key, from } = this.#operation;
    return this.#commitSent
      ? { sqlState: IN_DOUBT_SQLSTATE, message: `the outcome of operation ${key.id} is not settled yet` }
      : { sqlState: UNAVAILABLE_SQLSTATE, message: `operation ${key.id} is being undone on the ${from}` };
  }

  #input(input: OperationInput): void {
    this.#state = transition(this.#state, input);
  }

  /** The machine's next state, written down before the next step acts on it. */
  async #journaled(input: OperationInput): Promise<void> {
    const from = this.#state;
    this.#input(input);
    const { journal } = found(this.#operation, 'sessions');
    await moveOperation(journal, this.#operation.members, from, this.#state);
  }

  /** Past the commit the journal already says where things go: a state it can't take is no reason to stop. */
  async #journaledIfPossible(from: OperationState, to: OperationState): Promise<void> {
    const { journal } = found(this.#operation, 'sessions');
    if (journal.dead) return;
    await moveOperation(journal, this.#operation.members, from, to).catch((error: unknown) =>
      this.#complain(error, `${to} could not be journaled`),
    );
  }

  async #withJournal<T>(act: (session: Session) => Promise<T>): Promise<T> {
    const { connections, deps } = this.#operation;
    const open = this.#operation.found.sessions?.journal;
    if (open !== undefined && !open.dead) {
      try {
        return await act(open);
      } catch (error) {
        if (asUnderstudyError(error, 'internal', 'journal').code === 'journal-conflict') throw error;
        // What failed may have left a transaction open on it: whatever is journaled next needs another connection.
        open.destroy();
      }
    }
    const fresh = await connections.open('destination', 'journal', {
      answerTimeoutMs: deps.settings.connectTimeoutMs,
    });
    try {
      return await act(fresh);
    } finally {
      await fresh.end();
    }
  }

  async #timed(step: StepName, act: () => Promise<void>): Promise<void> {
    const { clock } = this.#operation.deps;
    this.#step = step;
    const state = this.#state;
    this.#hooks.onEvent({ event: 'step', step, state, phase: 'start' });
    const startedMs = clock.monotonicMs();
    try {
      await act();
    } finally {
      const ms = Math.round((clock.monotonicMs() - startedMs) * 1000) / 1000;
      this.#timings[step] = ms;
      this.#hooks.onEvent({ event: 'step', step, state, phase: 'end', ms });
    }
  }

  async #at(point: StepPoint): Promise<void> {
    const { deps, kind } = this.#operation;
    if (deps.observe === undefined) return;
    try {
      await deps.observe(point, kind);
    } catch (error) {
      throw new StoppedDead(`stopped at ${point}`, { cause: error });
    }
  }

  #complain(error: unknown, message: string): void {
    const { code, message: reason } = asUnderstudyError(error, 'internal', 'cutover');
    this.#operation.deps.log.warn({ operation: this.#operation.key.id, code, reason }, message);
  }

  #report(outcome: OperationReport['outcome'], error?: UnderstudyError): OperationReport {
    const { deps, key, members, kind } = this.#operation;
    const { stall, moved, closed } = this.#operation.found;
    const epoch = Math.max(...members.map((member) => member.key.epoch));
    return {
      id: key.id,
      kind,
      subset: deps.subset,
      ...(members.length > 1 ? { subsets: subsetsOf(this.#operation) } : {}),
      outcome,
      epoch: outcome === 'done' ? epoch + 1 : epoch,
      startedAt: this.#startedAt,
      totalMs: Math.round((deps.clock.monotonicMs() - this.#startedMs) * 1000) / 1000,
      steps: { ...this.#timings },
      parts: { ...this.#operation.parts },
      stall: stall ?? NO_STALL,
      moved: moved ?? 0,
      closed: closed ?? 0,
      findings: [...this.#findings],
      ...(error === undefined
        ? {}
        : {
            reason: {
              code: error.code,
              message: error.message,
              ...(error.advice === undefined ? {} : { advice: error.advice }),
            },
          }),
    };
  }
}
