/** What passes between the process that is in charge and those that serve its clients. */
import type { CaptureBatch } from '../../capture/relay.js';
import type { Side } from '../../core/ports.js';
import type { HoldOptions, Route } from '../../core/traffic-ports.js';
import type { LogLevel } from '../../core/log.js';
import type { ReloadableSettings } from '../../proxy/settings.js';
import type { SessionHints } from '../../shadow/postgres/preflight-sessions.js';
import type { ResolvedConfig } from '../config.js';
import type { RecorderStatus, SharedRecording } from '../recording/recorder.js';

export interface Refusal {
  readonly sqlState: string;
  readonly message: string;
}

/** The worker's first call: everything it has to know. */
export interface InitArgument {
  readonly config: ResolvedConfig;
  readonly workers: number;
  readonly firstSessionId: number;
  readonly capture: boolean;
  /** Where traffic is recorded to; null where it is not. */
  readonly recording: SharedRecording | null;
  readonly hints: SessionHints | null;
  readonly route: Route | null;
  readonly unavailable: Refusal | null;
  readonly settings: Partial<ReloadableSettings>;
  /** The caller's monotonic clock less the system's, in milliseconds: both processes then tell the same time. */
  readonly clockOffsetMs: number;
}

/** Calls to a worker: method → its argument. */
export interface WorkerCalls {
  readonly init: InitArgument;
  readonly prepare: { readonly to: Side };
  readonly hold: { readonly to: Side; readonly options: Omit<HoldOptions, 'signal'> };
  readonly switchTo: Route;
  readonly release: null;
  readonly failHeld: Refusal;
  readonly discardWarm: null;
  readonly setRoute: Route;
  readonly setUnavailable: Refusal | null;
  readonly setTls: ResolvedConfig['listen'];
  readonly setHints: SessionHints;
  readonly reconfigure: Partial<ReloadableSettings>;
  /** By a client of another worker: what is known of them is forgotten, and read anew. */
  readonly catalogsChanged: null;
  readonly cancel: CancelRequest;
  readonly status: null;
  /** Does nothing: whoever answers is alive. */
  readonly ping: null;
  readonly stop: { readonly drainTimeoutMs: number };
}

export interface CancelRequest {
  readonly processId: number;
  readonly secret: Uint8Array;
}

/** Calls of a worker's. */
export const TAKE_PLACE = 'takePlace';

/** Comes with a socket. */
export const CONNECTION = { kind: 'connection' } as const;

/** What a worker tells unasked. */
export type WorkerEvent =
  | { readonly kind: 'place-freed'; readonly user: string; readonly database: string }
  /** A connection that was handed over has ended. */
  | { readonly kind: 'ended' }
  | ({ readonly kind: 'foreign-cancel' } & CancelRequest)
  | { readonly kind: 'fence-met' }
  | { readonly kind: 'catalogs-changed' }
  | { readonly kind: 'client-errors'; readonly counts: readonly (readonly [string, number])[] }
  | { readonly kind: 'stalls'; readonly waitsMs: readonly number[] }
  | { readonly kind: 'capture'; readonly batch: CaptureBatch }
  /** It has written the last of what it recorded. */
  | { readonly kind: 'recorded'; readonly status: RecorderStatus }
  | {
      readonly kind: 'log';
      readonly level: Exclude<LogLevel, 'silent'>;
      readonly fields: Readonly<Record<string, unknown>>;
      readonly message: string;
    };

/** The system's monotonic clock, in milliseconds: the same in every process of this machine. */
export function systemMonotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}
