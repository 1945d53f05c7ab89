/**
 * The way back of a shadow that is followed without the source's log: a lane by the destination's log, which writes to
 * the source. It needs the right to write there, which following did not; where there is none, there is no way back.
 */
import type { Clock } from '../../core/clock.js';
import { UnderstudyError } from '../../core/errors.js';
import type { Log } from '../../core/log.js';
import type { StreamStatus } from '../../core/ports.js';
import type { Position } from '../../core/position.js';
import { Lane } from '../lane.js';
import { LogBudget } from '../log-budget.js';
import { ensureIdentities } from '../postgres/identity.js';
import { ensureRecords, writeReversePrepared } from '../postgres/records.js';
import { ensurePublication, streamNames } from '../postgres/slot.js';
import { withSession, type Session } from '../postgres/statement.js';
import type { TableInfo } from '../postgres/table.js';
import { readTables } from '../postgres/tables.js';
import type { Pace } from '../pace.js';
import type { RecentKeys } from '../recent-keys.js';
import { ensureStream } from '../schema-stage.js';
import type { ShadowSettings } from '../settings.js';

export interface WayBackContext {
  readonly log: Log;
  readonly clock: Clock;
  readonly random: () => number;
  readonly recent: RecentKeys;
  readonly pace: Pace;
  readonly onTrouble: (error: UnderstudyError | undefined) => void;
  readonly onFailed: (error: UnderstudyError) => void;
}

const LAG_POLL_MS = 10;

export class WayBack {
  readonly #settings: ShadowSettings;
  readonly #context: WayBackContext;
  readonly #lane: Lane;
  readonly #budget: LogBudget;
  #started = false;
  #failure: UnderstudyError | undefined;
  #ending = new AbortController();
  #budgeting: Promise<void> | undefined;

  constructor(settings: ShadowSettings, context: WayBackContext) {
    this.#settings = settings;
    this.#context = context;
    const { source, destination, migrationId, logBudgetBytes, logPollIntervalMs } = settings;
    this.#lane = new Lane(
      'reverse',
      {
        ...settings,
        ...streamNames(migrationId, 'reverse'),
        originEndpoint: destination,
        targetEndpoint: source,
        renewable: false,
      },
      {
        ...context,
        retryFirstMs: settings.retryFirstMs,
        retryMaxMs: settings.retryMaxMs,
        onFailed: (error) => this.#fail(error),
      },
    );
    this.#budget = new LogBudget({
      endpoints: { source, destination },
      slots: {
        source: streamNames(migrationId, 'forward').slot,
        destination: streamNames(migrationId, 'reverse').slot,
      },
      budgetBytes: logBudgetBytes,
      pollIntervalMs: logPollIntervalMs,
      clock: context.clock,
      log: context.log,
      onSpent: async (spent) => {
        this.#fail(spent);
        await this.#lane.stop();
        await this.#budget.dropSlots(this.#ending.signal);
      },
    });
  }

  #fail(error: UnderstudyError): void {
    this.#failure ??= error;
    this.#context.onFailed(error);
  }

  get lane(): Lane {
    return this.#lane;
  }

  /** Its slot and records are there. Idempotent. */
  start(): void {
    if (this.#started) return;
    this.#started = true;
    this.#ending = new AbortController();
    this.#lane.start();
    this.#budgeting = this.#budget.watch(this.#ending.signal);
  }

  async stop(): Promise<void> {
    this.#ending.abort(new UnderstudyError('cancelled', 'the shadow was stopped'));
    await Promise.all([this.#lane.stop(), this.#budgeting]);
    this.#started = false;
  }

  /** null before it was prepared. */
  status(): StreamStatus | null {
    if (!this.#started) return null;
    return { ...this.#lane.status(), logBytes: this.#budget.retainedBytes('destination') };
  }

  /** Learns of new tables while nothing comes by it yet. Nothing where it was not prepared. */
  async grow(destination: Session, tables: readonly TableInfo[]): Promise<void> {
    if (!this.#started) return;
    const { publication } = streamNames(this.#settings.migrationId, 'reverse');
    await ensurePublication(destination, publication, tables);
    await this.#lane.stop();
    this.#lane.state.forgetTables();
    this.#lane.start();
  }

  waitForMark(mark: string, signal: AbortSignal): Promise<Position> {
    if (this.#started) return this.#lane.waitForMark(mark, signal);
    return Promise.reject(
      new UnderstudyError('shadow-not-ready', 'the reverse stream is not ready yet', {
        advice: 'Wait until `understudy status` shows the phase following.',
      }),
    );
  }

  /**
   * Makes slot and publication on the destination, and the records on the source; resolves once the lane's lag is known.
   * Throws what the servers refuse, `preflight-blocked` among it.
   */
  async prepare(signal: AbortSignal): Promise<void> {
    const { source, destination, migrationId } = this.#settings;
    const { clock } = this.#context;
    if (!this.#started) {
      await withSession('destination', destination, 'prepare', (there) =>
        withSession('source', source, 'prepare', async (here) => {
          await refusingNothing(() => ensureRecords(here));
          const tables = await readTables(there.client);
          await ensureIdentities(there, tables, { clock, signal });
          await ensureStream('reverse', migrationId, there, here, tables);
          await writeReversePrepared(there, migrationId);
        }),
      );
      this.start();
    }
    while (this.#lane.status().lagBytes === null) {
      if (this.#failure !== undefined) throw this.#failure;
      await clock.sleep(LAG_POLL_MS, signal);
    }
  }
}

async function refusingNothing(write: () => Promise<void>): Promise<void> {
  try {
    await write();
  } catch (error) {
    if (!(error instanceof UnderstudyError) || error.details['sqlState'] !== '42501') throw error;
    throw new UnderstudyError(
      'preflight-blocked',
      `there would be no way back: Understudy’s account may not write to the source (${error.message})`,
      {
        cause: error,
        advice:
          'Give it CREATE on the source’s database and the right to write its tables, or stay with the shadow.',
      },
    );
  }
}
