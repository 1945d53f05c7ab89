/**
 * A lane: one direction's stream, kept alive. States: stopped → running ⇄ waiting → failed | stopped.
 *
 * A change that the other side refuses is named, and holds the lane up: it is tried again now and then, as what refuses it
 * may be taken away, until an operator decides to leave it out. Both are in `status`.
 *
 * A relation of the log that is not what it was known to be holds the lane up too, until the schemas agree: forward the
 * shadow's schema is brought on and the lane started anew; on the way back it is looked at again now and then.
 *
 * A session that ends on a retryable error is followed by another after a pause, for ever; any other error fails the
 * lane. Everything durable is in the progress row, so a new session begins exactly where the last commit was.
 *
 * Who leads, over any sequence of cutovers and rollbacks
 * - Of each subset apart, where subsets are configured. What follows holds for every one of them, with its own epochs
 *   and its own fence; a stream is authoritative for the tables of some and not of others (authority.ts).
 * - Each stream decides by its own origin's log alone: it is authoritative behind a `route` message that names its
 *   origin, and not behind one that names the other side; messages of an older epoch than the last are ignored. The
 *   forward stream begins authoritative, the reverse one not. The decision is stored with the position, so that a
 *   restart decides the same.
 * - No change is missed: a side accepts writes only after the transaction that holds its `route` message, in whose log
 *   order they come later; the stream that reads them is authoritative by then. The slots are never rewound or
 *   skipped, and both streams run from preparation to finalisation.
 * - No change is applied twice or echoed: what a stream applies is tagged as the transaction's first message, and the
 *   other stream drops tagged transactions whoever leads; progress commits with the changes.
 * - A side that has been fenced writes nothing untagged. After a cutover the source's stream stays authoritative without
 *   effect: its log learns of the route when the source leads again. After a rollback the destination's log is told in
 *   the transaction that commits it, behind the mark that was waited for: what is written past the guard from there on
 *   is not carried over. What was written past it before that, and is read after the source was reopened, is left out
 *   by the writer (flush-writer.ts).
 */
import type { Direction, StreamStatus, StuckChange } from '../core/ports.js';
import type { Position } from '../core/position.js';
import { asUnderstudyError, UnderstudyError } from '../core/errors.js';
import { subsetIds } from '../core/subsets.js';
import { Backoff } from './backoff.js';
import { LaneSession, type LaneSettings } from './lane-session.js';
import { LaneState } from './lane-state.js';
import { UNSENDABLE } from './postgres/replication-stream.js';
import { writeSkip } from './postgres/stream-records.js';
import { withSession } from './postgres/statement.js';
import { stuckChangeOf } from './stuck-change.js';
import type { Clock } from '../core/clock.js';
import type { Log } from '../core/log.js';
import type { Pace } from './pace.js';
import type { RecentKeys } from './recent-keys.js';

export interface LaneContext {
  readonly log: Log;
  readonly clock: Clock;
  readonly random: () => number;
  readonly recent: RecentKeys;
  readonly pace: Pace;
  readonly retryFirstMs: number;
  readonly retryMaxMs: number;
  /** A retryable error ended a session; undefined once a new one is connected. */
  readonly onTrouble: (error: UnderstudyError | undefined) => void;
  /** Its slot is lost, and the lane at rest. Returns whether somebody makes another and starts it again. */
  readonly onSlotLost?: ((error: UnderstudyError) => boolean) | undefined;
  /** The server can't send what comes next, as often as it was asked. The lane is at rest until it is told how it goes on. */
  readonly onUnsendable?: ((error: UnderstudyError, signal: AbortSignal) => Promise<PassedOver>) | undefined;
  /** The lane will not go on. */
  readonly onFailed: (error: UnderstudyError) => void;
}

/**
 * What becomes of a lane at a change that can't be sent: it goes on from another slot at once; it rests, and somebody starts
 * it again; or it keeps trying, as only a person can tell what it would lose.
 */
export type PassedOver = 'goes-on' | 'rests' | 'waits';

/** How often the same change may fail to be sent before the stream goes on behind it. */
const UNSENDABLE_MAX = 5;

export class Lane {
  readonly state: LaneState;
  readonly #settings: LaneSettings;
  readonly #context: LaneContext;
  #stopping = new AbortController();
  #running: Promise<void> | undefined;
  #unstick: () => void = () => undefined;
  /** How often in a row the server could not send what comes behind `state.unsentAt`. */
  #unsentTimes = 0;

  constructor(direction: Direction, settings: LaneSettings, context: LaneContext) {
    this.#settings = settings;
    this.#context = context;
    this.state = new LaneState(direction, {
      log: context.log.child({ lane: direction }),
      clock: context.clock,
      recent: context.recent,
      pace: context.pace,
      subsets: subsetIds(settings.subsets),
    });
  }

  /** Begins to follow. Idempotent. The progress row must exist. */
  start(): void {
    if (this.#running !== undefined) return;
    this.#stopping = new AbortController();
    this.#running = this.#run(this.#stopping.signal);
  }

  /** Between `start` and `stop`, also where it rests. */
  get running(): boolean {
    return this.#running !== undefined;
  }

  /** Ends after the flush at hand. Idempotent. */
  async stop(): Promise<void> {
    this.#stopping.abort();
    await this.#running;
    this.#running = undefined;
  }

  status(): StreamStatus {
    return this.state.status();
  }

  waitForMark(mark: string, signal: AbortSignal): Promise<Position> {
    return this.state.waitForMark(mark, signal);
  }

  /** Leaves out the change at which the lane is stuck, and goes on. Throws `request-invalid` where it is not. */
  async skip(note: string): Promise<StuckChange> {
    const { stuck, target, direction } = this.state;
    if (stuck === null) {
      throw new UnderstudyError('request-invalid', `the ${direction} lane is not stuck at a change`);
    }
    await withSession(target, this.#settings.targetEndpoint, 'skip', (session) =>
      writeSkip(session, stuck, note),
    );
    this.state.log.warn({ ...stuck, note }, 'a change is left out by decision of the operator');
    this.#unstick();
    return stuck;
  }

  /** Until it is skipped, or for a while: what refuses it may have been taken away. */
  async #waitUnstuck(stuck: StuckChange, error: UnderstudyError, signal: AbortSignal): Promise<void> {
    const first = this.state.stuck?.position !== stuck.position || this.state.stuck.ordinal !== stuck.ordinal;
    if (first) this.state.log.error({ code: error.code, ...stuck }, 'the lane is stuck at a change');
    this.state.stuck = stuck;
    this.#context.onTrouble(error);
    const waiting = new AbortController();
    this.#unstick = () => {
      this.state.stuck = null;
      waiting.abort();
    };
    await this.#context.clock
      .sleep(this.#context.retryMaxMs, AbortSignal.any([signal, waiting.signal]))
      .catch(() => undefined);
    this.#unstick = () => undefined;
  }

  /** The server has failed at the same place again and again. */
  #neverSent(error: UnderstudyError): boolean {
    if (error.details[UNSENDABLE] !== true) return false;
    this.#unsentTimes = this.#isUnsent ? this.#unsentTimes + 1 : 1;
    if (this.#unsentTimes === 1) this.state.unsentAt = this.state.committed ?? 0n;
    return this.#unsentTimes >= UNSENDABLE_MAX;
  }

  get #isUnsent(): boolean {
    const { unsentAt, committed } = this.state;
    return unsentAt !== null && (committed ?? 0n) <= unsentAt;
  }

  async #run(signal: AbortSignal): Promise<void> {
    const { clock, random, retryFirstMs, retryMaxMs } = this.#context;
    const backoff = new Backoff({ firstMs: retryFirstMs, maxMs: retryMaxMs, random });
    while (!signal.aborted) {
      const session = new LaneSession(this.state, this.#settings, () => {
        // What holds it up is met again only behind the connection.
        if (this.state.moved?.held === true || this.state.haltedAt !== null) return;
        // A connection says nothing yet of a change that could not be sent again and again.
        if (!this.#isUnsent) this.state.unsentAt = null;
        else if (this.#unsentTimes > 1) return;
        backoff.reset();
        this.#context.onTrouble(undefined);
      });
      try {
        await session.run(signal);
      } catch (thrown) {
        if (signal.aborted) return;
        const error = asUnderstudyError(thrown, 'internal', `the ${this.state.direction} lane`);
        const stuck = stuckChangeOf(error);
        if (stuck !== null) {
          await this.#waitUnstuck(stuck, error, signal);
          continue;
        }
        if (this.#neverSent(error)) {
          const then = await this.#context.onUnsendable?.(passedOver(error), signal);
          if (then === 'rests') return;
          if (then === 'goes-on') {
            this.state.unsentAt = null;
            continue;
          }
        }
        if (error.code === 'slot-lost' && this.#context.onSlotLost?.(error) === true) return;
        if (!error.retryable) {
          this.state.log.error({ code: error.code, reason: error.message }, 'the lane failed');
          this.state.fail(error);
          this.#context.onFailed(error);
          return;
        }
        const pauseMs = backoff.next();
        this.state.log.warn({ code: error.code, reason: error.message, pauseMs }, 'the lane was interrupted');
        this.#context.onTrouble(error);
        await clock.sleep(pauseMs, signal).catch(() => undefined);
      }
    }
  }
}

/** Nothing but a slot that begins behind the change can go on; what it then lacks is found by comparing. */
function passedOver(error: UnderstudyError): UnderstudyError {
  return new UnderstudyError('slot-lost', error.message, { cause: error });
}
