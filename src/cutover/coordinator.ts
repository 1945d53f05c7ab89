/**
 * Cutover and rollback, of one subset or of several in one operation. See `runner.ts` for the order of things, `recovery.ts` for restarts.
 *
 * Invariants:
 * - One operation at a time in this process (across processes the journal sees to it). Recovery, finalize and operations
 *   exclude one another, so that a route read by a recovery is never older than a switch.
 * - What the journal is owed (an abort or an end that could not be written) is paid before anything else is begun.
 */
import type { OperationKind, OperationReport, ShadowTable, Side, SubsetId } from '../core/ports.js';
import type { Route } from '../core/traffic-ports.js';
import { UnderstudyError } from '../core/errors.js';
import { subsetAsked, subsetIds } from '../core/subsets.js';
import { abandonSubsets, assertDestinationSilent } from './abandon.js';
import { readEpoch } from './fence.js';
import { finalize } from './finalize.js';
import { installOnBoth } from './install.js';
import { remove } from './remove.js';
import {
  assertNoOther,
  beginOperation,
  createJournal,
  readRoute,
  readUnknownLed,
  type OperationMember,
} from './journal.js';
import { JournalDebts } from './journal-debts.js';
import { KeyKeeper } from './key-keeper.js';
import { abortable, type Operation } from './operation.js';
import { recoverAll } from './recover-all.js';
import { reconfigured } from './recovery.js';
import { Registration } from './registration.js';
import { OperationRunner, StoppedDead } from './runner.js';
import { Connections, type Session } from './session.js';
import {
  StatusReader,
  readRollbackStatus,
  recordOfReport,
  runningStatus,
  type SidesStatus,
} from './status.js';
import { leadsWhole, wholeOf } from './subsets.js';
import { taken, type Chosen } from './together.js';
import type {
  CutoverDeps,
  CutoverStatus,
  FinalizeOptions,
  FinalizeReport,
  OperationOptions,
  Recovery,
  RemoveOptions,
  RemoveReport,
} from './settings.js';

interface Running {
  readonly kind: OperationKind;
  readonly controller: AbortController;
  /** Absent until the journal holds the operation. */
  runner?: OperationRunner;
  readonly settled: Promise<unknown>;
}

/** How long `close` waits for an operation to be undone before it is left to the next process. */
const CLOSE_WAIT_MS = 10_000;

export class CutoverCoordinator {
  readonly #deps: CutoverDeps;
  readonly #subsets: readonly SubsetId[];
  readonly #connections: Connections;
  readonly #registration: Registration;
  readonly #proxyId: string;
  readonly #closing = new AbortController();
  readonly #status: StatusReader;
  readonly #debts: JournalDebts;
  readonly #keys: KeyKeeper;
  /** Of operations that were stopped dead. */
  readonly #abandoned: Connections[] = [];
  #running: Running | undefined;
  /** Every subset's route has been found once by this process. */
  #recovered = false;
  /** Those whose route has not. */
  #unknown: ReadonlySet<SubsetId> = new Set();
  #finalized = false;
  #removed = false;
  #last: OperationReport | undefined;
  #exclusive: Promise<unknown> = Promise.resolve();

  constructor(deps: CutoverDeps) {
    this.#deps = deps;
    this.#subsets = subsetIds(deps.subsets ?? []);
    this.#proxyId = deps.random(8);
    this.#connections = this.#newConnections();
    this.#status = new StatusReader(this.#connections, deps.log, deps.settings.connectTimeoutMs);
    this.#debts = new JournalDebts({
      connections: this.#connections,
      clock: deps.clock,
      log: deps.log,
      closing: this.#closing.signal,
      answerTimeoutMs: deps.settings.connectTimeoutMs,
    });
    this.#keys = new KeyKeeper({
      rules: deps.subsets ?? [],
      connections: this.#connections,
      clock: deps.clock,
      log: deps.log,
      settings: deps.settings,
      closing: this.#closing.signal,
    });
    this.#registration = new Registration({
      proxyId: this.#proxyId,
      connections: this.#connections,
      clock: deps.clock,
      log: deps.log,
      answerTimeoutMs: deps.settings.connectTimeoutMs,
      onReturn: () => this.#debts.pay(),
      onRegistered: () => deps.onRegistered?.(),
    });
  }

  /** As the parts of an operation on this subset know them. */
  #depsOf(subset: SubsetId): CutoverDeps {
    return { ...this.#deps, subset };
  }

  #newConnections(): Connections {
    const { source, destination, settings } = this.#deps;
    return new Connections({ source, destination }, settings.connectTimeoutMs);
  }

  /** One after another; a failure of one is not the next one's. */
  #exclusively<T>(act: () => Promise<T>): Promise<T> {
    const result = this.#exclusive.then(act);
    this.#exclusive = result.catch(() => undefined);
    return result;
  }

  // -------------------------------------------------------------------------------------------------------------
  // Start

  /**
   * Decides the route from the source's fence and, only where one stands, the journal; finishes or undoes what a
   * former process left. Call before serving, and whenever a client met the fence's SQLSTATE; while an operation runs
   * it waits for its end. Repeatable.
   * Throws `route-unknown` (retry it) where a fence stands and the journal can't be read or another live process
   * is in the middle of an operation, `journal-conflict` where the two sides contradict one another,
   * `source-unreachable`.
   */
  recover(signal: AbortSignal): Promise<Recovery> {
    return this.#exclusively(async () => {
      signal.throwIfAborted();
      const recovery = await recoverAll({
        deps: this.#deps,
        connections: this.#connections,
        proxyId: this.#proxyId,
        known: this.#subsets,
        recovered: this.#recovered,
        signal,
      });
      this.#recovered ||= recovery.missing === undefined;
      const unknown = (recovery.subsets ?? []).filter((each) => each.unknown === true);
      this.#unknown = new Set(unknown.map(({ subset }) => subset));
      this.#finalized = recovery.finalized;
      const told = recovery.subsets ?? [{ subset: this.#deps.subset, route: recovery.route }];
      await this.#keys.found(
        new Map(
          told
            .filter(({ subset }) => !this.#unknown.has(subset))
            .map(({ subset, route }) => [subset, route.side]),
        ),
      );
      return recovery;
    });
  }

  /**
   * Makes the journal's tables and registers this process as a live proxy, which it stays through losses of the
   * connection. Idempotent. Throws `destination-unreachable`, and `journal-conflict` where the destination was declared
   * lost before and has come back.
   */
  async ensureJournal(): Promise<void> {
    if (this.#removed) {
      throw new UnderstudyError('shadow-not-ready', 'the shadow was removed', {
        retryable: false,
        advice: 'Restart Understudy with an empty destination to begin anew.',
      });
    }
    const destination = await this.#connections.open('destination', 'journal');
    try {
      const foreign = await readUnknownLed(destination, this.#subsets);
      if (foreign.length > 0) throw reconfigured(foreign);
      for (const subset of this.#subsets) await this.#ensureRoute(destination, subset);
    } finally {
      await destination.end();
    }
    await this.#registration.register();
    await this.#debts.pay();
  }

  async #ensureRoute(destination: Session, subset: SubsetId): Promise<void> {
    const known = await readRoute(destination, subset);
    const epoch = known?.epoch ?? (await this.#sourceEpoch(subset));
    await createJournal(destination, subset, epoch);
    const route = await readRoute(destination, subset);
    const here = this.#deps.traffic.route(subset);
    if (route === null || route.epoch < here.epoch) {
      throw new UnderstudyError(
        'journal-conflict',
        `the destination’s journal is at epoch ${route?.epoch ?? 0}, the source is at ${here.epoch}: it was declared lost, or is an older copy`,
        { advice: 'Build the shadow anew in an empty database, and point destination.url at it.' },
      );
    }
  }

  async #sourceEpoch(subset: SubsetId): Promise<number> {
    const source = await this.#connections.open('source', 'journal');
    try {
      return (await readEpoch(source, subset))?.epoch ?? 0;
    } finally {
      await source.end();
    }
  }

  /**
   * Installs the barrier on all `tables` of both sides: lowered on the side that leads, raised on the other. After
   * `recover` and `ensureJournal`; on the destination before any row is copied. Idempotent; needs no quiet moment.
   * Throws `fence-timeout` where a table is locked for `installTimeoutMs`.
   */
  installBarriers(tables: readonly ShadowTable[]): Promise<void> {
    return this.#exclusively(async () => {
      await installOnBoth(this.#deps, this.#connections, this.#subsets, tables, this.#closing.signal);
      await this.#keys.install();
    });
  }

  // -------------------------------------------------------------------------------------------------------------
  // Operations

  /**
   * Source → destination. Throws `already-cut-over`, `busy`, and what makes it impossible to begin; whatever goes wrong
   * after that is the report's `outcome: 'aborted'` with its reason, everything being as before.
   */
  async cutover(options: OperationOptions): Promise<OperationReport> {
    if (!this.#isLed('source', options.subset))
      throw new UnderstudyError('already-cut-over', 'the destination leads already');
    return await this.#operate('cutover', options);
  }

  /** Destination → source. Throws `not-cut-over`, `busy`; else as {@link cutover}. */
  async rollback(options: OperationOptions): Promise<OperationReport> {
    if (!this.#isLed('destination', options.subset))
      throw new UnderstudyError('not-cut-over', 'the source leads: there is nothing to roll back');
    if (this.#finalized) {
      throw new UnderstudyError(
        'not-cut-over',
        'the cutover was finalized: nothing follows the destination any more',
      );
    }
    return await this.#operate('rollback', options);
  }

  /** Whether `side` leads the subset, or where none is named, any. Throws `request-invalid`. */
  #isLed(side: Side, asked: SubsetId | undefined): boolean {
    const named = asked === undefined ? this.#subsets : [subsetAsked(this.#subsets, asked)];
    return named.some((subset) => this.#route(subset).side === side);
  }

  /**
   * What the operation is about: the subset that was asked for first, with all that is not to be parted from it; or all that
   * `from` leads.
   */
  async #chosen(kind: OperationKind, from: Side, options: OperationOptions): Promise<Chosen> {
    const led = this.#subsets.filter((subset) => this.#route(subset).side === from);
    const { subset: asked } = options;
    if (asked === undefined || led.length < 2 || !led.includes(asked) || this.#deps.ties === undefined)
      return { subsets: asked === undefined ? led : [asked], announced: [] };
    return taken(asked, led, await abortable(this.#deps.ties(options.signal), options.signal), kind);
  }

  #route(subset: SubsetId): Route {
    return this.#deps.traffic.route(subset);
  }

  async #operate(kind: OperationKind, options: OperationOptions): Promise<OperationReport> {
    if (this.#running !== undefined) {
      throw new UnderstudyError('busy', `a ${this.#running.kind} is running`, {
        advice: 'Wait for it to end: `understudy status` shows it.',
      });
    }
    if (this.#unknown.size > 0) {
      throw new UnderstudyError(
        'route-unknown',
        `who leads ${[...this.#unknown].join(', ')} is not known yet`,
        {
          advice: 'Bring the server back that can’t be reached: `understudy status` shows it.',
        },
      );
    }
    const controller = new AbortController();
    const settled = this.#exclusively(() => this.#run(kind, options, controller));
    const running: Running = { kind, controller, settled: settled.catch(() => undefined) };
    this.#running = running;
    try {
      return await settled;
    } finally {
      this.#running = undefined;
    }
  }

  async #run(
    kind: OperationKind,
    options: OperationOptions,
    controller: AbortController,
  ): Promise<OperationReport> {
    await this.#keys.pause();
    try {
      await this.ensureJournal();
      return await this.#runPrepared(kind, options, controller);
    } finally {
      this.#keys.resume();
    }
  }

  async #runPrepared(
    kind: OperationKind,
    options: OperationOptions,
    controller: AbortController,
  ): Promise<OperationReport> {
    const connections = this.#newConnections();
    const cancel = (): void =>
      controller.abort(asCancelled(options.signal.reason, `the ${kind} was cancelled before its commit`));
    if (options.signal.aborted) cancel();
    options.signal.addEventListener('abort', cancel, { once: true });
    const budget: { timer?: NodeJS.Timeout } = {};
    let dead = false;
    try {
      const operation = await this.#begin(kind, options, controller.signal, connections);
      const runner = this.#newRunner(operation, options, controller, budget);
      if (this.#running !== undefined) this.#running.runner = runner;
      const report = await runner.run();
      if (report.outcome !== 'dry-run') this.#last = report;
      return report;
    } catch (error) {
      dead = error instanceof StoppedDead && !this.#closing.signal.aborted;
      throw error;
    } finally {
      options.signal.removeEventListener('abort', cancel);
      clearTimeout(budget.timer);
      // A dead operation's connections stay as they are, as a killed process's would until its sockets close.
      if (dead) this.#abandoned.push(connections);
      else await connections.end();
    }
  }

  async #begin(
    kind: OperationKind,
    options: OperationOptions,
    signal: AbortSignal,
    connections: Connections,
  ): Promise<Operation> {
    const { random } = this.#deps;
    const from: Side = kind === 'cutover' ? 'source' : 'destination';
    const { subsets, announced } = await this.#chosen(kind, from, { ...options, signal });
    const [id, attempt] = [`${kind}-${random(6)}`, random(16)];
    const members = subsets.map((subset, index): OperationMember => ({
      subset,
      key: { id: index === 0 ? id : `${id}-${subset}`, attempt, epoch: this.#route(subset).epoch },
    }));
    const [first] = members;
    if (first === undefined) throw new UnderstudyError('internal', `the ${from} leads no subset`);
    const { subset, key } = first;
    if (options.dryRun !== true) {
      const journal = await connections.open('destination', 'journal');
      try {
        await assertNoOther(journal, members);
        await beginOperation(journal, members, { kind, from, proxy: this.#proxyId });
      } finally {
        await journal.end();
      }
    }
    return {
      deps: this.#depsOf(subset),
      connections,
      kind,
      key,
      members,
      announced,
      proxyId: this.#proxyId,
      from,
      to: kind === 'cutover' ? 'destination' : 'source',
      direction: kind === 'cutover' ? 'forward' : 'reverse',
      markId: `${key.id}-${random(4)}`,
      dryRun: options.dryRun === true,
      signal,
      closing: this.#closing.signal,
      onFinding: (finding) => this.#running?.runner?.addFinding(finding),
      settleKeys: this.#keys.concerned
        ? () => this.#keys.moved(subsets, kind === 'cutover' ? 'destination' : 'source')
        : undefined,
      parts: {},
      found: {},
    };
  }

  #newRunner(
    operation: Operation,
    options: OperationOptions,
    controller: AbortController,
    budget: { timer?: NodeJS.Timeout },
  ): OperationRunner {
    const { holdBudgetMs } = this.#deps.settings;
    return new OperationRunner(operation, {
      onEvent: options.onEvent,
      confirm: options.confirm,
      onGate: (event) => {
        clearTimeout(budget.timer);
        if (event !== 'closing') return;
        const reason = new UnderstudyError('limit-reached', `the gate was closed for ${holdBudgetMs} ms`, {
          advice: 'Try again at a quieter moment, or raise cutover.holdBudgetMs.',
        });
        budget.timer = setTimeout(() => controller.abort(reason), holdBudgetMs);
      },
      onUnjournaledAbort: (reason) => {
        for (const { key } of operation.members) this.#debts.owe({ kind: 'abort', key, reason });
      },
      onUnjournaledEnd: (report) => {
        for (const { key } of operation.members) this.#debts.owe({ kind: 'end', key, report });
      },
    });
  }

  /** Asks the running operation to abort. False where none runs or it is past its point of no return. */
  abort(): boolean {
    const running = this.#running;
    if (running === undefined || running.runner?.undoable === false) return false;
    running.controller.abort(new UnderstudyError('cancelled', `the ${running.kind} was aborted on request`));
    return true;
  }

  // -------------------------------------------------------------------------------------------------------------
  // The end of it

  /**
   * Removes what Understudy left behind once the destination leads for good. Repeatable where it was interrupted.
   * Throws `not-cut-over`, `busy`, `fence-timeout`, `source-unreachable`, `destination-unreachable`.
   */
  async finalize(options: FinalizeOptions): Promise<FinalizeReport> {
    if (this.#running !== undefined) throw new UnderstudyError('busy', `a ${this.#running.kind} is running`);
    return await this.#exclusively(async () => {
      await this.#debts.pay();
      const report = await finalize(this.#deps, this.#connections, options, this.#keys).finally(() =>
        this.#keys.resume(),
      );
      this.#finalized = true;
      return report;
    });
  }

  /**
   * Takes Understudy off both servers while the source leads, or off the destination after `finalize`. From then on this process only passes traffic through; a
   * restart begins anew. Repeatable. Throws `already-cut-over`, `busy`, `other-proxy-alive`, `fence-timeout`,
   * `…-unreachable`.
   */
  async remove(options: RemoveOptions): Promise<RemoveReport> {
    if (this.#running !== undefined) throw new UnderstudyError('busy', `a ${this.#running.kind} is running`);
    return await this.#exclusively(async () => {
      if (options.destinationLost !== true) await this.#debts.pay();
      const report = await remove(this.#deps, this.#connections, this.#proxyId, options, this.#keys).finally(
        () => this.#keys.resume(),
      );
      this.#removed = true;
      this.#debts.forget();
      await this.#registration.close();
      return report;
    });
  }

  /**
   * The recorded human decision that the destination is gone for good: lifts the source's fence without the journal, at
   * an epoch that the lost one can't have reached; should it return, it is not trusted. Writes that were made to the
   * destination and not yet carried back are lost. Of one subset, or of all that the destination led. Returns the new
   * epoch, the highest of several. Throws `not-cut-over`, `busy`, `request-invalid` (also for one subset of several while
   * the destination answers: its journal would be trusted no more, and what it still leads couldn't be brought back).
   */
  async abandonDestination(note: string, signal: AbortSignal, asked?: SubsetId): Promise<number> {
    const subsets = asked === undefined ? this.#subsets : [subsetAsked(this.#subsets, asked)];
    if (this.#running !== undefined) throw new UnderstudyError('busy', `a ${this.#running.kind} is running`);
    return await this.#exclusively(async () => {
      if (asked !== undefined && this.#subsets.length > 1) await assertDestinationSilent(this.#connections);
      return await abandonSubsets(this.#deps, this.#connections, subsets, note, signal);
    });
  }

  // -------------------------------------------------------------------------------------------------------------
  // Looking

  /** Never throws for a side that can't be asked: what it would have told is `unknown`. */
  async status(): Promise<CutoverStatus> {
    const several = this.#subsets.length > 1;
    const keys = this.#keys.status();
    const read: { readonly subset: SubsetId; readonly route: Route; readonly sides: SidesStatus }[] = [];
    for (const subset of this.#subsets)
      read.push({ subset, route: this.#route(subset), sides: await this.#status.read(subset) });
    const route = leadsWhole(read);
    const led = read.some((each) => each.route.side === 'destination') ? 'destination' : 'source';
    const rollback = await this.#rollbackStatus(led);
    const sides = wholeOf(read.map((each) => each.sides));
    const running = this.#running?.runner;
    const foreignKeys = await keys;
    return {
      route,
      ...(several
        ? {
            subsets: read.map(({ subset, route: own, sides: { barriers, last } }) => ({
              subset,
              route: own,
              barriers,
              last,
              ...(this.#unknown.has(subset) ? { unknown: true as const } : {}),
            })),
          }
        : {}),
      finalized: this.#finalized,
      running: running === undefined ? null : runningStatus(running),
      last: sides.last ?? (this.#last === undefined ? null : recordOfReport(this.#last)),
      barriers: sides.barriers,
      rollback,
      journal: sides.journal,
      ...(foreignKeys === undefined ? {} : { foreignKeys }),
    };
  }

  async #rollbackStatus(leader: Side): Promise<CutoverStatus['rollback']> {
    if (leader === 'source') return { possible: false, lossless: false, reason: 'the source leads' };
    if (this.#finalized) return { possible: false, lossless: false, reason: 'the cutover was finalized' };
    return await readRollbackStatus(this.#deps.shadow);
  }

  // -------------------------------------------------------------------------------------------------------------
  // Stop

  /**
   * Asks a running operation to abort and waits for its end, for a bounded time; what is unfinished then (an outcome in
   * doubt, a fence that can't be lowered) is the next process's to settle. Ends all connections.
   */
  async close(): Promise<void> {
    this.abort();
    const running = this.#running;
    if (running !== undefined) {
      const waited = new AbortController();
      const timeout = this.#deps.clock.sleep(CLOSE_WAIT_MS, waited.signal).catch(() => undefined);
      await Promise.race([running.settled, timeout]);
      waited.abort(new Error('closed'));
    }
    this.#closing.abort(new UnderstudyError('cancelled', 'the process is ending'));
    await running?.settled;
    await this.#keys.close();
    await this.#registration.close();
    await this.#connections.end();
    for (const connections of this.#abandoned) connections.destroy();
  }

  /** Cuts all connections and stops all waiting at once, as the end of the process would. For fault tests. */
  destroy(): void {
    this.#closing.abort(new UnderstudyError('cancelled', 'the process was killed'));
    this.#registration.destroy();
    this.#connections.destroy();
    for (const connections of this.#abandoned) connections.destroy();
  }
}

function asCancelled(reason: unknown, message: string): UnderstudyError {
  return reason instanceof UnderstudyError
    ? reason
    : new UnderstudyError('cancelled', message, { cause: reason });
}
