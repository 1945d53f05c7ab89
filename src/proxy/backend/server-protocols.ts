/**
 * Which minor version of protocol 3 a server speaks. A client that wants more than 3.0 is to be told what its server
 * would tell it, before anything is opened in its name; so the server is asked once, without logging in, and asked
 * again after a while, since it may have been replaced.
 *
 * Being wrong does no harm: versions differ in the length of cancel keys alone, and those clients get are the proxy's.
 */
import type { Clock } from '../../core/clock.js';
import { PROTOCOL_MINOR_MAX } from '../../wire/postgres/startup.js';
import { probeProtocolMinor, type BackendEndpoint, type BackendStartup } from './backend.js';

const REMEMBERED_MS = 60_000;

interface Known {
  readonly minor: Promise<number>;
  readonly untilMs: number;
}

export class ServerProtocols {
  readonly #known = new Map<BackendEndpoint, Known>();
  readonly #clock: Clock;
  readonly #timeoutMs: number;

  constructor(clock: Clock, timeoutMs: number) {
    this.#clock = clock;
    this.#timeoutMs = timeoutMs;
  }

  /** 0 where the server can't be asked. Never rejects. */
  minorOf(endpoint: BackendEndpoint, startup: Pick<BackendStartup, 'user' | 'database'>): Promise<number> {
    const known = this.#known.get(endpoint);
    if (known !== undefined && this.#clock.monotonicMs() < known.untilMs) return known.minor;
    const minor = probeProtocolMinor(endpoint, startup, PROTOCOL_MINOR_MAX, this.#timeoutMs).catch(() => {
      this.#known.delete(endpoint);
      return 0;
    });
    this.#known.set(endpoint, { minor, untilMs: this.#clock.monotonicMs() + REMEMBERED_MS });
    return minor;
  }
}
