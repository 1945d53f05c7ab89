/**
 * The two lanes of a shadow by `log`, and the slots they read from.
 *
 *   forward   source → destination: runs from the slot's creation on, across attempts
 *   reverse   destination → source: absent → begun (`prepareReverse`, recorded) → runs from then on, and from the start
 *             of each later process
 *
 * A lane keeps itself alive (lane.ts). One that can't read from its slot rests until an attempt has made another in its
 * place (lost-slot.ts); until then `slotLost` is true, and no attempt follows the one it ended without a pause.
 *
 * Slots, publications and progress rows are touched only while their lane is at rest.
 */
import type { Clock } from '../core/clock.js';
import { asUnderstudyError, UnderstudyError } from '../core/errors.js';
import type { Log } from '../core/log.js';
import type { Direction, Side } from '../core/ports.js';
import type { Position } from '../core/position.js';
import { notReady } from './condition.js';
import { Lane, type PassedOver } from './lane.js';
import { passOverReverse, readUnmended, renewStream } from './lost-slot.js';
import type { Pace } from './pace.js';
import { installDdlNotice, noNotice } from './postgres/ddl-notice.js';
import { ensureIdentities } from './postgres/identity.js';
import { writeReversePrepared } from './postgres/records.js';
import { ensurePublication, streamNames } from './postgres/slot.js';
import { endOnAbort, withSession, type Session } from './postgres/statement.js';
import type { TableInfo } from './postgres/table.js';
import { readTables } from './postgres/tables.js';
import type { RecentKeys } from './recent-keys.js';
import { recordDestinationPlan } from './schema-back.js';
import { ensureStream, type StageContext } from './schema-stage.js';
import type { ShadowSettings } from './settings.js';

export interface StreamsContext {
  readonly log: Log;
  readonly clock: Clock;
  /** 0 ≤ x < 1, for jitter. */
  readonly random: () => number;
  readonly recent: RecentKeys;
  readonly pace: Pace;
  /** A lane is interrupted; undefined once it is connected again. */
  readonly onTrouble: (direction: Direction, error: UnderstudyError | undefined) => void;
  /** A lane rests until the next attempt has given it another slot. The error is retryable. */
  readonly onSlotLost: (error: UnderstudyError) => void;
  /** A lane will not go on. */
  readonly onFailed: (error: UnderstudyError) => void;
}

const WAY_BACK_GRACE_MS = 1000;
const WAY_BACK_POLL_MS = 5;

export class Streams {
  readonly forward: Lane;
  readonly reverse: Lane;
  readonly #settings: ShadowSettings;
  readonly #context: StreamsContext;
  #reverseBegun = false;
  /** Lanes that could not read from their slot, and rest. */
  readonly #slotLost = new Set<Direction>();

  constructor(settings: ShadowSettings, context: StreamsContext) {
    this.#settings = settings;
    this.#context = context;
    this.forward = this.#lane('forward');
    this.reverse = this.#lane('reverse');
  }

  #lane(direction: Direction): Lane {
    const settings = this.#settings;
    const { onTrouble, onFailed, ...context } = this.#context;
    const origin: Side = direction === 'forward' ? 'source' : 'destination';
    const target: Side = direction === 'forward' ? 'destination' : 'source';
    return new Lane(
      direction,
      {
        ...settings,
        ...streamNames(settings.migrationId, direction),
        originEndpoint: settings[origin],
        targetEndpoint: settings[target],
        renewable: true,
      },
      {
        ...context,
        retryFirstMs: settings.retryFirstMs,
        retryMaxMs: settings.retryMaxMs,
        onTrouble: (error) => onTrouble(direction, error),
        onSlotLost: (error) => this.#loseSlot(direction, error),
        onUnsendable: (error, signal) => this.#passOver(direction, error, signal),
        onFailed,
      },
    );
  }

  #loseSlot(direction: Direction, error: UnderstudyError): boolean {
    this.#slotLost.add(direction);
    this.#context.onSlotLost(
      new UnderstudyError(error.code, error.message, { retryable: true, cause: error }),
    );
    return true;
  }

  /**
   * A slot behind a change that can't be sent passes it over: on the way back while the source leads everything at once, as
   * nothing comes by it then; else by another attempt, which mends what is missed.
   */
  async #passOver(direction: Direction, error: UnderstudyError, signal: AbortSignal): Promise<PassedOver> {
    const { source, destination, migrationId, subsets } = this.#settings;
    const { clock, log } = this.#context;
    try {
      const passed =
        direction === 'reverse' &&
        (await withSession('source', source, 'pass over', (onSource) =>
          withSession('destination', destination, 'pass over', async (onDestination) => {
            for (const session of [onSource, onDestination]) endOnAbort(session, signal, 0);
            const sides = { source: onSource, destination: onDestination };
            return await passOverReverse({ ...sides, clock, log, migrationId, subsets });
          }),
        ));
      if (passed) return 'goes-on';
      this.#loseSlot(direction, error);
      return 'rests';
    } catch (thrown) {
      const { code, message } = asUnderstudyError(thrown, 'internal', 'passing a change over');
      log.warn({ code, reason: message, direction }, 'what can’t be sent could not be passed over');
      return 'waits';
    }
  }

  get slotLost(): boolean {
    return this.#slotLost.size > 0;
  }

  get reverseBegun(): boolean {
    return this.#reverseBegun;
  }

  of(direction: Direction): Lane {
    return direction === 'forward' ? this.forward : this.reverse;
  }

  /** The direction whose origin leads; with several subsets, that of the latest switch. */
  get leading(): Direction {
    return this.reverse.state.authority.epoch > this.forward.state.authority.epoch ? 'reverse' : 'forward';
  }

  /** Both end after the flush at hand. Idempotent. */
  async stop(): Promise<void> {
    await Promise.all([this.forward.stop(), this.reverse.stop()]);
  }

  /** Whoever waits for a lane is told why it will not go on. */
  fail(error: UnderstudyError): void {
    this.forward.state.fail(error);
    this.reverse.state.fail(error);
  }

  /** Something goes faster or slower than before. */
  wake(): void {
    this.forward.state.wake();
    this.reverse.state.wake();
  }

  /** Throws `shadow-not-ready` on the way back before it has begun. */
  async waitForMark(direction: Direction, markId: string, signal: AbortSignal): Promise<Position> {
    if (direction === 'reverse' && !this.#reverseBegun) throw notReady('reverse');
    return await this.of(direction).waitForMark(markId, signal);
  }

  /** Puts another slot in place of a lane's, if that is lost. Whether it was: then what is led there is to be mended. */
  async renew(direction: Direction, stage: StageContext, tables?: readonly TableInfo[]): Promise<boolean> {
    const lane = this.of(direction);
    const lost = this.#slotLost.has(direction);
    if (lost) await lane.stop();
    if (lane.running) return false;
    const { migrationId, subsets } = this.#settings;
    const published = tables === undefined ? {} : { tables };
    const renewed = await renewStream(direction, { ...stage, migrationId, subsets, ...published }, lost);
    if (renewed) lane.state.forgetHistory();
    this.#slotLost.delete(direction);
    return renewed;
  }

  /** What is on record to be mended, for its lane to know. Only while that is stopped. */
  async noteUnmended(direction: Direction, target: Session): Promise<void> {
    const { unmended } = this.of(direction).state;
    const names = await readUnmended(target);
    unmended.clear();
    for (const name of names) unmended.set(name, 0);
  }

  /** Makes the way back, unless it has begun, and lets it begin. Throws what either server does. */
  async prepareReverse(signal: AbortSignal): Promise<void> {
    if (this.#reverseBegun) return;
    const { settings, context } = { settings: this.#settings, context: this.#context };
    await withSession('destination', settings.destination, 'prepare', (destination) =>
      withSession('source', settings.source, 'prepare', async (source) => {
        const tables = await readTables(destination.client);
        await ensureIdentities(destination, tables, { clock: context.clock, signal });
        await ensureStream('reverse', settings.migrationId, destination, source, tables);
        if (!(await installDdlNotice(destination))) context.log.warn({}, noNotice('destination'));
        await recordDestinationPlan({ source, destination, settings });
        await writeReversePrepared(destination, settings.migrationId);
      }),
    );
    this.#beginReverse();
  }

  /** The way back, which an earlier process prepared or whose slot is lost, goes on. */
  async resumeReverse(stage: StageContext): Promise<void> {
    await this.renew('reverse', stage);
    if (this.reverse.running) return;
    await this.noteUnmended('reverse', stage.source);
    this.#beginReverse();
  }

  /**
   * Behind the fence of a cutover, before it is committed: whether the way back that was promised still runs. Waits a moment
   * for one that is connecting again. Throws `shadow-not-ready`.
   */
  async assertWayBack(signal: AbortSignal): Promise<void> {
    if (!this.#reverseBegun) return;
    const { clock } = this.#context;
    const deadlineMs = clock.monotonicMs() + WAY_BACK_GRACE_MS;
    while (this.reverse.status().lagBytes === null) {
      if (clock.monotonicMs() >= deadlineMs) throw notReady('reverse');
      await clock.sleep(WAY_BACK_POLL_MS, signal);
    }
  }

  #beginReverse(): void {
    this.#reverseBegun = true;
    this.reverse.start();
  }

  /** The way back learns of new `tables` of the destination, while nothing comes by it yet. */
  async growReverse(destination: Session, tables: readonly TableInfo[]): Promise<void> {
    if (!this.#reverseBegun) return;
    await ensurePublication(
      destination,
      streamNames(this.#settings.migrationId, 'reverse').publication,
      tables,
    );
    await this.reverse.stop();
    this.reverse.state.forgetTables();
    this.reverse.start();
  }
}
