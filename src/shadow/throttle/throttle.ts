/**
 * Holds the first copy back so that others don't feel it: the application by its 99th percentile, the source's standbys
 * and the shadow's own following by their lag, the source by how many are at work on it.
 *
 * Each bound gives an error, how far below it the measured value is as a share of the bound; the worst decides, through
 * one PID controller, which share of the time the copy may read. What can't be measured bounds nothing.
 *
 * What the application's percentile is without a copy, the baseline, is taken before the copy begins. Where too little
 * passed then, and now and then while the copy is held back, the copy waits for it:
 *   running ──baseline unknown, or old and in force──► settling ──what was read is written──► listening ──► running
 * `settling` and `listening` end after {@link LISTEN_MAX_MS} at the latest; where nothing passes they are not begun.
 *
 * Failing: a source that can't be asked for its load bounds nothing meanwhile; nothing here ends the copy.
 */
import type { Clock } from '../../core/clock.js';
import type { Log } from '../../core/log.js';
import type { DatabaseEndpoint, LatencyWindow, ThrottleStatus } from '../../core/ports.js';
import type { Pace } from '../pace.js';
import { closeSession, endOnAbort, openSession, type Session } from '../postgres/statement.js';
import { ApplicationLatency } from './latency.js';
import { pidStart, pidStep, type PidSettings, type PidState } from './pid.js';
import type { ThrottleSettings } from './settings.js';
import { readSourceLoad, type SourceLoad } from './source-load.js';
import { Standbys } from './standbys.js';

export interface ThrottleContext {
  readonly source: DatabaseEndpoint;
  readonly pace: Pace;
  readonly clock: Clock;
  readonly log: Log;
  /** How far the shadow is behind; null where unknown. */
  readonly shadowLagMs: () => number | null;
}

export const PID: PidSettings = {
  kp: 0.4,
  ki: 0.5,
  kd: 0.05,
  outputMin: 0.02,
  outputMax: 1,
  errorMin: -1.5,
  errorMax: 0.5,
};

const STEP_MS = 500;
const LOAD_EVERY_MS = 1000;
const SETTLE_MS = 500;
const LISTEN_MAX_MS = 2000;
/** A baseline is taken anew after that, while it is what holds the copy back. */
const BASELINE_AGE_MAX_MS = 60_000;
const BASELINE_RETRY_MS = 5000;

type Reason = NonNullable<ThrottleStatus['by']>;

export class Throttle {
  readonly #settings: ThrottleSettings;
  readonly #context: ThrottleContext;
  readonly #latency = new ApplicationLatency();
  #pid: PidState = pidStart(1);
  #running = false;
  #by: Reason | null = null;
  #baseline: { readonly p99Ms: number; readonly atMs: number } | null = null;
  #triedAtMs = -Infinity;
  #load: SourceLoad | null = null;
  readonly #standbys: Standbys;
  #standbyLagMs: number | null = null;
  #toldOf = 0;
  #session: Session | undefined;
  #askedAtMs = -Infinity;
  /** What was heard since then was heard without a copy. */
  #quietFromMs = -Infinity;

  constructor(settings: ThrottleSettings, context: ThrottleContext) {
    this.#settings = settings;
    this.#context = context;
    this.#standbys = new Standbys(settings.standbyLagMs);
  }

  /** What the proxy saw since the last window. */
  hear(window: LatencyWindow): void {
    this.#latency.hear(window, this.#context.clock.monotonicMs());
  }

  /** Runs the copy, and holds it back meanwhile. */
  async during(copy: () => Promise<void>): Promise<void> {
    const ended = new AbortController();
    const steering = this.#steer(ended.signal);
    try {
      await copy();
    } finally {
      ended.abort();
      await steering;
    }
  }

  /** null while nothing is copied. */
  status(): ThrottleStatus | null {
    if (!this.#running) return null;
    return {
      share: this.#pid.output,
      by: this.#by,
      latencyP99Ms: this.#latency.p99Ms(this.#context.clock.monotonicMs()),
      latencyTargetMs: this.#targetMs(),
      baselineP99Ms: this.#baseline?.p99Ms ?? null,
    };
  }

  async #steer(signal: AbortSignal): Promise<void> {
    const { clock, pace, log } = this.#context;
    this.#running = true;
    this.#pid = pidStart(1);
    this.#takeBaseline(this.#quietFromMs, true);
    try {
      let lastMs = clock.monotonicMs();
      while (!signal.aborted) {
        if (this.#wantsBaseline()) await this.#listen(signal);
        await this.#askLoad(signal);
        const nowMs = clock.monotonicMs();
        this.#step(Math.max(0.001, (nowMs - lastMs) / 1000));
        lastMs = nowMs;
        await clock.sleep(STEP_MS, signal);
      }
    } catch (error) {
      if (!signal.aborted) log.warn({ reason: String(error) }, 'the copy is not held back any more');
    } finally {
      pace.held = false;
      pace.throttle = 1;
      this.#quietFromMs = clock.monotonicMs() + SETTLE_MS;
      this.#running = false;
      this.#by = null;
      await closeSession(this.#session);
      this.#session = undefined;
    }
  }

  #step(seconds: number): void {
    const worst = this.#worst();
    this.#pid = pidStep(this.#pid, worst?.error ?? null, seconds, PID);
    this.#context.pace.throttle = this.#pid.output;
    this.#by = this.#pid.output < 1 ? (worst?.by ?? this.#by) : null;
  }

  #worst(): { readonly by: Reason; readonly error: number } | null {
    const { standbyLagMs, shadowLagMs, activeMax } = this.#settings;
    const latencyMs = this.#latency.p99Ms(this.#context.clock.monotonicMs());
    const measured: readonly (readonly [Reason, number | null, number])[] = [
      ['latency', latencyMs, this.#targetMs() ?? 0],
      ['active', this.#load?.active ?? null, activeMax],
      ['standby-lag', this.#standbyLagMs, standbyLagMs],
      ['shadow-lag', this.#context.shadowLagMs(), shadowLagMs],
    ];
    const errors = measured.flatMap(([by, value, bound]) =>
      value === null || bound <= 0 ? [] : [{ by, error: (bound - value) / bound }],
    );
    errors.sort((a, b) => a.error - b.error);
    return errors[0] ?? null;
  }

  /** null where none is, or it is not known yet. */
  #targetMs(): number | null {
    const { latencyP99Ms, latencyFactor, latencyFloorMs } = this.#settings;
    if (latencyP99Ms === 'off') return null;
    if (latencyP99Ms !== 'auto') return latencyP99Ms;
    const baseline = this.#baseline;
    return baseline === null ? null : Math.max(latencyFloorMs, baseline.p99Ms * latencyFactor);
  }

  #wantsBaseline(): boolean {
    if (this.#settings.latencyP99Ms !== 'auto') return false;
    const nowMs = this.#context.clock.monotonicMs();
    if (nowMs - this.#triedAtMs < BASELINE_RETRY_MS) return false;
    if (!this.#latency.busySince(nowMs - 3 * STEP_MS)) return false;
    if (this.#baseline === null) return true;
    return this.#by === 'latency' && nowMs - this.#baseline.atMs > BASELINE_AGE_MAX_MS;
  }

  /** Of what was heard since then, while nothing was copied. Returns whether more would add little. */
  #takeBaseline(fromMs: number, onlyEnough = false): boolean {
    const { p99Ms, enough } = this.#latency.since(fromMs);
    if (p99Ms !== null && (enough || !onlyEnough)) {
      this.#baseline = { p99Ms, atMs: this.#context.clock.monotonicMs() };
    }
    return enough;
  }

  /** The copy waits while the application is listened to alone. */
  async #listen(signal: AbortSignal): Promise<void> {
    const { clock, pace } = this.#context;
    pace.held = true;
    this.#by = 'baseline';
    try {
      await clock.sleep(SETTLE_MS, signal);
      const fromMs = clock.monotonicMs();
      while (clock.monotonicMs() - fromMs < LISTEN_MAX_MS) {
        await clock.sleep(STEP_MS, signal);
        if (this.#takeBaseline(fromMs)) break;
      }
    } finally {
      this.#triedAtMs = clock.monotonicMs();
      pace.held = false;
      this.#by = null;
    }
  }

  async #askLoad(signal: AbortSignal): Promise<void> {
    const { clock, source, log } = this.#context;
    const { activeMax, standbyLagMs } = this.#settings;
    const nowMs = clock.monotonicMs();
    if ((activeMax === 0 && standbyLagMs === 0) || nowMs - this.#askedAtMs < LOAD_EVERY_MS) return;
    this.#askedAtMs = nowMs;
    try {
      if (this.#session === undefined) {
        this.#session = await openSession('source', source, 'throttle');
        endOnAbort(this.#session, signal, 0);
      }
      this.#load = await readSourceLoad(this.#session);
      const atMinimum = this.#pid.output <= PID.outputMin;
      this.#standbyLagMs = this.#standbys.observe(this.#load.standbys, atMinimum, nowMs);
      this.#tellStandbys();
    } catch (error) {
      log.debug({ reason: String(error) }, 'the source could not be asked for its load');
      this.#load = null;
      this.#standbyLagMs = null;
      await closeSession(this.#session);
      this.#session = undefined;
    }
  }
  #tellStandbys(): void {
    const { passedOver } = this.#standbys;
    if (passedOver.length > this.#toldOf) {
      this.#context.log.warn(
        { standbys: passedOver },
        'standbys stay behind whatever the copy does, as with recovery_min_apply_delay: they don’t hold it back any more',
      );
    }
    this.#toldOf = passedOver.length;
  }
}
