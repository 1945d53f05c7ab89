/**
 * Tells the shadow how long the application's statements take, from the start until its first copy is over: see
 * shadow/throttle. Where no latency is to be kept, nothing is counted.
 */
import { LatencyProbe } from '../capture/latency-probe.js';
import type { CaptureBatch } from '../capture/relay.js';
import type { StatementTap } from '../core/capture-ports.js';
import type { Clock } from '../core/clock.js';
import type { LatencyWindow, ShadowPhase } from '../core/ports.js';
import type { ResolvedConfig } from './config.js';

const WINDOW_MS = 500;
/** Phases in which rows are copied, or are about to be. */
const TELLING: ReadonlySet<ShadowPhase> = new Set(['idle', 'connecting', 'building-schema', 'copying']);

export class CopyLatency {
  readonly #probe: LatencyProbe | undefined;
  readonly #relative: boolean;
  readonly #clock: Clock;
  readonly #tell: (window: LatencyWindow) => void;
  #stopping = new AbortController();
  #phase: ShadowPhase = 'idle';

  constructor({ shadow }: ResolvedConfig, clock: Clock, tell: (window: LatencyWindow) => void) {
    this.#probe = shadow.enabled && shadow.throttle.latencyP99Ms !== 'off' ? new LatencyProbe() : undefined;
    this.#relative = shadow.throttle.latencyP99Ms === 'auto';
    this.#clock = clock;
    this.#tell = tell;
  }

  /** Where nobody else looks at statements, they are looked at for a latency that was asked for by name alone. */
  tap(next: StatementTap | null): StatementTap | null {
    if (this.#probe === undefined || (next === null && this.#relative)) return next;
    return this.#probe.tap(next);
  }

  /** The same for what proxies of other processes have captured. */
  receiver(next: ((batch: CaptureBatch) => void) | undefined): typeof next {
    const probe = this.#probe;
    if (probe === undefined || (next === undefined && this.#relative)) return next;
    return (batch) => {
      if (TELLING.has(this.#phase)) probe.receive(batch);
      next?.(batch);
    };
  }

  onPhase(phase: ShadowPhase): void {
    this.#phase = phase;
  }

  start(): void {
    if (this.#probe === undefined) return;
    this.#stopping = new AbortController();
    void this.#run(this.#probe, this.#stopping.signal);
  }

  stop(): void {
    this.#stopping.abort();
  }

  async #run(probe: LatencyProbe, signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      await this.#clock.sleep(WINDOW_MS, signal).catch(() => undefined);
      const window = probe.take();
      if (TELLING.has(this.#phase)) this.#tell(window);
    }
  }
}
