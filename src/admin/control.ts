/** What the admin port serves: implemented by the composition root, spoken by the CLI. */
import type { CaptureSnapshot } from '../core/capture-ports.js';
import type {
  Direction,
  OperationEvent,
  ShadowCommand,
  ShadowStatus,
  SubsetId,
  VerifyProgress,
} from '../core/ports.js';
import type { SubsetBorders } from '../core/subset-ports.js';
import type { Route } from '../core/traffic-ports.js';
import type { SerializedError } from '../core/errors.js';
import type { CutoverStatus } from '../cutover/settings.js';
import type { ProxyStatus } from '../proxy/proxy-interface.js';
import type { AutopilotStatus } from '../core/autopilot-ports.js';
import type { Metrics } from './metrics.js';

export const OPERATIONS = [
  'verify',
  'resume',
  'cutover',
  'rollback',
  'finalize',
  'remove',
  'abort',
  'shadow',
  'conflicts',
] as const;
export type Operation = (typeof OPERATIONS)[number];

/** Options of all operations. None is ignored: one that an operation does not take is refused. */
export interface OperationOptions {
  readonly dryRun?: boolean;
  /** cutover, rollback: which. verify: its tables alone. Where subsets are configured. */
  readonly subset?: SubsetId;
  /** verify: forward compares the destination with the source. Absent: by the present route. */
  readonly direction?: Direction;
  /** verify: those alone. shadow prioritise: those first. As `schema.table`. */
  readonly tables?: readonly string[];
  /** verify: mend what differs. */
  readonly repair?: boolean;
  /** verify: go on where one that was interrupted had come to. */
  readonly resume?: boolean;
  /** resume: tables, as `schema.table`, that are emptied on the destination and copied anew. */
  readonly recopy?: readonly string[];
  /** finalize: also take away the fence that keeps the source closed. */
  readonly removeFence?: boolean;
  /** finalize: the old server is gone; nothing is undone on it, and it must never be served again. */
  readonly sourceLost?: boolean;
  /**
   * rollback: the destination is gone for good; what was not yet carried back is lost. A recorded human decision.
   * remove: it is gone; nothing is undone on it.
   */
  readonly destinationLost?: boolean;
  /** Why, with `destinationLost` and `skip`; it is recorded. */
  readonly note?: string;
  /** shadow: what to do, and the value of an intensity; verify: the share of the time in which rows are compared. */
  readonly action?: ShadowCommand['action'];
  readonly value?: number;
  /** conflicts: at most so many, the newest first. */
  readonly limit?: number;
}

/** One line of the NDJSON stream. The last line is `result` or `error`. */
export type OperationLine =
  | OperationEvent
  | { readonly event: 'verify-progress'; readonly progress: VerifyProgress }
  | { readonly event: 'log'; readonly message: string }
  | { readonly result: unknown }
  | { readonly error: SerializedError };

export interface Readiness {
  readonly ready: boolean;
  /** Why not, for a person. */
  readonly reason?: string;
}

export interface StatusReport {
  readonly version: string;
  readonly pid: number;
  readonly startedAt: string;
  readonly uptimeSeconds: number;
  readonly migration: string;
  readonly ready: Readiness;
  /** null: not known. Where subsets are on different sides, one that the source leads: `cutover.subsets` has them all. */
  readonly route: Route | null;
  readonly source: string;
  readonly destination: string;
  readonly proxy: ProxyStatus;
  /** null: capture is switched off or its thread is starting. */
  readonly capture: CaptureSnapshot | null;
  readonly shadow: ShadowStatus;
  /** null: it could not be asked; `ready` says why. */
  readonly cutover: CutoverStatus | null;
  readonly autopilot: AutopilotStatus;
  /** What ties the configured subsets; null where it is not known yet, absent where there are none. */
  readonly borders?: SubsetBorders | null;
}

export interface AdminControl {
  /** Whether clients can be served: the route is known, its server reachable, and no stop under way. */
  readiness(): Promise<Readiness>;
  status(): Promise<StatusReport>;
  /** For Prometheus. */
  readonly metrics: Pick<Metrics, 'contentType' | 'text'>;
  /** Runs one operation; `emit` receives its progress in order. Throws `busy` while another one runs. */
  operate(
    operation: Operation,
    options: OperationOptions,
    emit: (line: OperationLine) => void,
    signal: AbortSignal,
  ): Promise<unknown>;
}
