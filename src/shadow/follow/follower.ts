/**
 * Follows a source without its log: reads what hints name, compares what they can't, in one loop.
 *
 * States: stopped → running ⇄ waiting (after a passing error) → failed | stopped. While running the follower
 *   leads      reads hints, writes rows, compares
 *   held       wrote everything for a cutover and writes nothing until it is known to be over
 *   follows    the destination leads, or a switch is under way: writes nothing, and looks again
 *
 * Invariants
 * - One connection reads and one writes, each read is written before the next is made, and the writing connection holds
 *   a lock that a successor waits for: no row is overwritten by an older one (`row-version.ts` checks it).
 * - Every transaction that writes has asked, in itself, whether the source leads.
 * - A hint's horizon moves only after its rows are committed. A suspicion is forgotten only when the comparison that
 *   settles it begins. What is lost with the process (suspicions, hints of `mirror`) is made good by comparing every
 *   table after each start, and each time the source leads again.
 *
 * Failing: as a lane. A retryable error ends the connections, and after a pause there are new ones; waiting calls go on
 * waiting. Any other error fails the follower and every waiting call.
 */
import type { Clock } from '../../core/clock.js';
import { asUnderstudyError, type UnderstudyError } from '../../core/errors.js';
import type { Log } from '../../core/log.js';
import type { ShadowMethodStatus, StreamStatus } from '../../core/ports.js';
import { lsn, type Position } from '../../core/position.js';
import { Backoff } from '../backoff.js';
import { notReady } from '../condition.js';
import type { Pace } from '../pace.js';
import type { ApplyTable, Key } from '../postgres/apply-table.js';
import { readAuthority } from './authority.js';
import type { CatchesUpExactly, ChangeSource, ExactReport } from './change-source.js';
import { ComparePlan } from './compare-plan.js';
import { openFollowSessions, closeFollowSessions, type FollowSessions } from './follow-sessions.js';
import type { FollowerSettings } from './follow-settings.js';
import type { ChangeHints, Hint } from './hints.js';
import { NotLeading, refreshKeys, replaceTable } from './key-refresh.js';
import { readHorizons, writeHorizons } from './records.js';
import { pruneVersions } from './row-version.js';
import { compareTable, type CompareStep } from './table-compare.js';
import { TableWatch } from './table-watch.js';

export interface FollowerContext {
  readonly log: Log;
  readonly clock: Clock;
  readonly random: () => number;
  readonly pace: Pace;
  readonly onTrouble: (error: UnderstudyError | undefined) => void;
  readonly onFailed: (error: UnderstudyError) => void;
  /** Whether the source's schema is another than the one that is followed; somebody then brings the follower to it. */
  readonly schemaMoved: (signal: AbortSignal) => Promise<boolean>;
  /** Keys that catching up exactly wrote: to be compared once more. */
  readonly onRefreshed: (table: ApplyTable, keys: readonly Key[]) => void;
}

interface Waiter<T> {
  readonly resolve: (value: T) => void;
  readonly reject: (error: unknown) => void;
}
interface ExactRequest extends Waiter<ExactReport> {
  /** Writes nothing more until the operation that asked is over. */
  readonly hold: boolean;
}

interface Comparing {
  readonly table: ApplyTable;
  readonly steps: AsyncGenerator<CompareStep, void, undefined>;
  spentMs: number;
}

/** Below full intensity, hints wait that long for others, or longer. */
const HINTED_WAIT_MS = 20;
const AUTHORITY_POLL_MS = 100;
const PRUNE_EVERY_MS = 300_000;
const VERSIONS_KEPT_SECONDS = 3600;

export class Follower implements ChangeSource, CatchesUpExactly {
  readonly #settings: FollowerSettings;
  readonly #hints: ChangeHints;
  readonly #tables: ReadonlyMap<string, ApplyTable>;
  readonly #context: FollowerContext;
  readonly #plan: ComparePlan;
  readonly #settling: Waiter<Position>[] = [];
  readonly #exact: ExactRequest[] = [];
  readonly #watch: TableWatch;
  #sessions: FollowSessions | undefined;
  #comparing: Comparing | undefined;
  #stopping = new AbortController();
  #running: Promise<void> | undefined;
  #failure: UnderstudyError | undefined;
  #leads = true;
  #held = false;
  #early = false;
  #wake: () => void = () => undefined;
  /** When the last round ended, and how long it took; the first is due at once. */
  #roundEndedMs = -Infinity;
  #roundMs = 0;
  /** There are hints that need not wait for a round's time. */
  #hinted = false;
  #pruneDueMs = 0;
  /** When the last round began whose hints are all written. */
  #caughtUpMs: number | null = null;
  #position = 0n;
  #rowsWritten = 0;
  #rounds = 0;
  #refreshed = 0;
  #lastComparedAt: string | null = null;

  constructor(
    settings: FollowerSettings,
    hints: ChangeHints,
    tables: readonly ApplyTable[],
    context: FollowerContext,
  ) {
    this.#settings = settings;
    this.#hints = hints;
    this.#tables = new Map(tables.map((table) => [table.name, table]));
    this.#watch = new TableWatch(this.#tables, hints);
    this.#context = context;
    this.#plan = new ComparePlan(tables, settings.compareIntervalMs, context.pace);
    hints.wake = () => {
      this.#hinted = true;
      this.#wake();
    };
  }

  start(): void {
    if (this.#running !== undefined) return;
    this.#stopping = new AbortController();
    this.#running = this.#run(this.#stopping.signal);
  }

  async stop(): Promise<void> {
    this.#stopping.abort();
    this.#wake();
    await this.#running;
    this.#running = undefined;
  }

  /** Looks again at what is due. */
  paceChanged(): void {
    this.#wake();
  }

  /** Resolves once a round that began after the call is written. The mark itself says nothing here. */
  waitForMark(_mark: string, signal: AbortSignal): Promise<Position> {
    return this.#ask<Position>(this.#settling, (waiter) => waiter, signal);
  }

  settleExactly(signal: AbortSignal): Promise<ExactReport> {
    return this.compareAll(true, signal);
  }

  /** As {@link settleExactly}; where `hold` is false it goes on following after that. */
  compareAll(hold: boolean, signal: AbortSignal): Promise<ExactReport> {
    return this.#ask<ExactReport>(this.#exact, (waiter) => ({ ...waiter, hold }), signal);
  }

  #ask<T, W extends Waiter<T> = Waiter<T>>(
    queue: W[],
    make: (waiter: Waiter<T>) => W,
    signal: AbortSignal,
  ): Promise<T> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    // Stopped for good, or until the schemas agree: nobody would answer.
    if (this.#running === undefined) return Promise.reject(notReady('shadow'));
    if (signal.aborted) return Promise.reject(signal.reason as Error);
    return new Promise<T>((resolve, reject) => {
      const settle = (): void => {
        signal.removeEventListener('abort', onAbort);
        const place = queue.indexOf(waiter);
        if (place !== -1) queue.splice(place, 1);
      };
      const waiter = make({
        resolve: (value) => {
          settle();
          resolve(value);
        },
        reject: (error) => {
          settle();
          reject(error);
        },
      });
      const onAbort = (): void => waiter.reject(signal.reason);
      signal.addEventListener('abort', onAbort, { once: true });
      queue.push(waiter);
      this.#early = true;
      this.#wake();
    });
  }

  status(): StreamStatus {
    const connected = this.#sessions !== undefined;
    const nowMs = this.#context.clock.monotonicMs();
    return {
      direction: 'forward',
      connected,
      committed: this.#caughtUpMs === null ? null : `${this.#hints.method} round ${this.#rounds}`,
      lagBytes: null,
      lagMs: connected && this.#caughtUpMs !== null ? Math.max(0, nowMs - this.#caughtUpMs) : null,
      transactionsApplied: this.#rounds,
      changesApplied: this.#rowsWritten,
      authoritative: this.#leads,
      method: this.#hints.method,
      exactMs: this.#plan.wholeMs,
    };
  }

  compared(): Pick<ShadowMethodStatus, 'tables' | 'compared'> {
    return {
      tables: this.#hints.notes(),
      compared: {
        tables: this.#plan.compared,
        waiting: this.#plan.waiting,
        lastAt: this.#lastComparedAt,
        refreshed: this.#refreshed,
        wholeMs: this.#plan.wholeMs,
      },
    };
  }

  async #run(signal: AbortSignal): Promise<void> {
    const { clock, random, log } = this.#context;
    const { retryFirstMs, retryMaxMs } = this.#settings;
    const backoff = new Backoff({ firstMs: retryFirstMs, maxMs: retryMaxMs, random });
    while (!signal.aborted) {
      try {
        await this.#connect(signal);
        this.#context.onTrouble(undefined);
        await this.#loop(signal, () => backoff.reset());
      } catch (thrown) {
        if (signal.aborted) break;
        const error = asUnderstudyError(thrown, 'internal', `following by ${this.#hints.method}`);
        if (!error.retryable) {
          // Another follower takes over once the schemas agree.
          if (!(await this.#context.schemaMoved(signal).catch(() => false))) this.#fail(error);
          break;
        }
        const pauseMs = backoff.next();
        log.warn({ code: error.code, reason: error.message, pauseMs }, 'following was interrupted');
        this.#context.onTrouble(error);
        await this.#disconnect();
        await clock.sleep(pauseMs, signal).catch(() => undefined);
      }
    }
    await this.#disconnect();
    this.#running = undefined;
    const ended = this.#failure ?? (signal.aborted ? signal.reason : notReady('shadow'));
    for (const waiter of [...this.#settling, ...this.#exact]) waiter.reject(ended);
  }

  #fail(error: UnderstudyError): void {
    this.#failure = error;
    this.#context.log.error({ code: error.code, reason: error.message }, 'following failed');
    this.#context.onFailed(error);
  }

  async #connect(signal: AbortSignal): Promise<void> {
    this.#sessions = await openFollowSessions(this.#settings, signal);
    this.#hints.load(await readHorizons(this.#sessions.write));
    this.#plan.suspectAll('not compared since the connection was made');
    this.#roundEndedMs = -Infinity;
  }

  async #disconnect(): Promise<void> {
    const sessions = this.#sessions;
    this.#sessions = undefined;
    this.#comparing = undefined;
    if (sessions !== undefined) await closeFollowSessions(sessions);
  }

  async #loop(signal: AbortSignal, healthy: () => void): Promise<void> {
    while (!signal.aborted) {
      if (!(await this.#mayWrite())) {
        await this.#pause(AUTHORITY_POLL_MS, signal);
        continue;
      }
      try {
        await this.#turn(signal);
        healthy();
      } catch (error) {
        if (!(error instanceof NotLeading)) throw error;
      }
    }
  }

  /** One piece of work, the most urgent, or a pause. */
  async #turn(signal: AbortSignal): Promise<void> {
    const { clock } = this.#context;
    const request = this.#exact[0];
    if (request !== undefined) {
      await this.#serveExact(request, signal);
      return;
    }
    const nowMs = clock.monotonicMs();
    if (this.#early || nowMs >= this.#roundDueMs()) {
      await this.#round(signal);
      return;
    }
    if (nowMs >= this.#pruneDueMs) {
      await pruneVersions(this.#connected().write, VERSIONS_KEPT_SECONDS);
      this.#pruneDueMs = nowMs + PRUNE_EVERY_MS;
    }
    if (await this.#compareStep(signal)) return;
    const untilMs = Math.min(this.#roundDueMs(), this.#plan.nextAtMs());
    await this.#pause(Math.max(1, untilMs - clock.monotonicMs()), signal);
  }

  #connected(): FollowSessions {
    if (this.#sessions === undefined) throw new NotLeading();
    return this.#sessions;
  }

  /** Ends early when there is something to do. */
  async #pause(ms: number, signal: AbortSignal): Promise<void> {
    if (this.#early && this.#leads && !this.#held) return;
    const woken = new AbortController();
    this.#wake = () => woken.abort();
    await this.#context.clock.sleep(ms, AbortSignal.any([signal, woken.signal])).catch(() => undefined);
    this.#wake = () => undefined;
  }

  async #mayWrite(): Promise<boolean> {
    const authority = await readAuthority(this.#connected().write, false);
    if (this.#held && !authority.operation) this.#held = false;
    const leads = authority.kind === 'leads';
    if (leads && !this.#leads) {
      this.#plan.suspectAll('the source leads again');
      this.#comparing = undefined;
    }
    this.#leads = authority.kind !== 'follows';
    return leads && !this.#held;
  }

  /** A round that takes long is made less often: it costs the source at most a share of the time. */
  #roundDueMs(): number {
    const { pace } = this.#context;
    const intervalMs = this.#hinted
      ? pace.intensity >= 1
        ? 0
        : pace.intervalMs(HINTED_WAIT_MS)
      : Math.max(pace.intervalMs(this.#hints.intervalMs), 2 * this.#roundMs);
    return this.#roundEndedMs + intervalMs;
  }

  async #round(signal: AbortSignal): Promise<void> {
    const { clock } = this.#context;
    const sessions = this.#connected();
    const startedMs = clock.monotonicMs();
    const waiting = [...this.#settling];
    this.#early = false;
    this.#hinted = false;
    await this.#watch.look(sessions.read, startedMs, (table, why) => this.#plan.suspect(table, why));
    const horizons: { readonly table: ApplyTable['info']; readonly horizon: string }[] = [];
    for await (const hint of this.#hints.round(sessions.read, { full: waiting.length > 0, signal })) {
      await this.#take(hint, startedMs);
      if (hint.horizon !== null) horizons.push({ table: hint.table.info, horizon: hint.horizon });
    }
    await writeHorizons(sessions.write, horizons);
    this.#position = await sessions.position();
    this.#caughtUpMs = startedMs;
    this.#rounds += 1;
    const endedMs = clock.monotonicMs();
    this.#roundEndedMs = endedMs;
    this.#roundMs = endedMs - startedMs;
    for (const waiter of waiting) waiter.resolve(lsn(this.#position));
  }

  async #take(hint: Hint, nowMs: number): Promise<void> {
    const { table, keys, compare } = hint;
    if (keys.length > 0 || compare !== null) this.#watch.hinted(table, nowMs);
    if (compare !== null) this.#plan.suspect(table, compare);
    if (keys.length > 0) await this.#refresh(table, keys);
    this.#hints.applied(hint);
  }

  /** Makes the destination hold what the source does under these keys. Throws {@link NotLeading}. */
  async #refresh(table: ApplyTable, keys: readonly Key[]): Promise<number> {
    const { read, write } = this.#connected();
    const sessions = { source: read, destination: write };
    const batch = batchRows(table, this.#settings.chunkBytes);
    let done = 0;
    for (let start = 0; start < keys.length; start += batch) {
      const part = keys.slice(start, start + batch);
      const outcome = await refreshKeys(sessions, table, part);
      switch (outcome.kind) {
        case 'done':
          this.#rowsWritten += outcome.upserted + outcome.deleted;
          done += outcome.keys.length;
          if (this.#exact.length > 0) this.#context.onRefreshed(table, outcome.keys);
          break;
        case 'unreadable':
          this.#plan.suspect(table, 'a key that could not be read');
          break;
        case 'entangled':
          done += await this.#replace(table);
          break;
        case 'not-leading':
          throw new NotLeading();
      }
    }
    return done;
  }

  async #replace(table: ApplyTable): Promise<number> {
    const { read, write } = this.#connected();
    this.#context.log.info({ table: table.name }, 'a table is replaced whole');
    const rows = await replaceTable({ source: read, destination: write }, table);
    if (rows === null) throw new NotLeading();
    this.#rowsWritten += rows;
    return rows;
  }

  /** One step of the comparison that is due; false where none is. */
  async #compareStep(signal: AbortSignal): Promise<boolean> {
    const { clock } = this.#context;
    if (this.#comparing === undefined) {
      const table = this.#plan.next(clock.monotonicMs());
      if (table === null) return false;
      this.#plan.began(table);
      const steps = compareTable(await this.#connected().comparing(), table, signal);
      this.#comparing = { table, steps, spentMs: 0 };
    }
    const { table, steps } = this.#comparing;
    const startedMs = clock.monotonicMs();
    const step = await steps.next();
    if (step.done !== true) await this.#mend(table, step.value);
    this.#comparing.spentMs += clock.monotonicMs() - startedMs;
    if (step.done === true) {
      this.#plan.ended(table, clock.monotonicMs(), this.#comparing.spentMs);
      this.#lastComparedAt = clock.now().toISOString();
      this.#comparing = undefined;
    }
    return true;
  }

  async #mend(table: ApplyTable, { suspects }: CompareStep): Promise<number> {
    if (suspects.length === 0) return 0;
    const count = table.key === null ? await this.#replace(table) : await this.#refresh(table, suspects);
    this.#refreshed += table.key === null ? suspects.length : count;
    return count;
  }

  async #serveExact(request: ExactRequest, signal: AbortSignal): Promise<void> {
    const { clock } = this.#context;
    const startedMs = clock.monotonicMs();
    this.#comparing = undefined;
    await this.#round(signal);
    let rows = 0;
    let refreshed = 0;
    for (const table of this.#tables.values()) {
      const beganMs = clock.monotonicMs();
      this.#plan.began(table);
      for await (const step of compareTable(await this.#connected().comparing(), table, signal)) {
        rows += step.rows;
        refreshed += await this.#mend(table, step);
        // Abandoned: nobody waits for it any more.
        if (!this.#exact.includes(request)) return;
      }
      this.#plan.ended(table, clock.monotonicMs(), clock.monotonicMs() - beganMs);
    }
    this.#lastComparedAt = clock.now().toISOString();
    this.#held = request.hold;
    request.resolve({
      rows,
      refreshed,
      ms: clock.monotonicMs() - startedMs,
      position: lsn(this.#position),
    });
  }
}

const BATCH_ROWS_MAX = 2000;

function batchRows({ info }: ApplyTable, bytesMax: number): number {
  const width = info.rowsEstimated > 0 ? Math.max(1, info.bytes / info.rowsEstimated) : 1000;
  return Math.max(1, Math.min(BATCH_ROWS_MAX, Math.floor(bytesMax / width)));
}
