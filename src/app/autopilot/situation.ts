/** What the loop knows when it decides, within which limits, and what it may come to. */
import type { AutopilotMode, VerdictKind } from '../../core/autopilot-ports.js';
import type {
  OperationKind,
  OperationState,
  ShadowMethod,
  ShadowPhase,
  ShadowStatus,
  Side,
  StreamStatus,
  SubsetId,
} from '../../core/ports.js';
import type { PlanReport } from '../plan/plan-report.js';

export interface AutopilotLimits {
  readonly mode: AutopilotMode;
  /** A subset whose divergence reaches it is a reason to switch. */
  readonly divergenceMax: number;
  /** The upper end of the predicted stall. */
  readonly stallMsMax: number;
  /** Chance that the drain deadline aborts the switch. */
  readonly abortProbabilityMax: number;
  /** Hours that must have been watched before a window is believed. */
  readonly observedHoursMin: number;
  readonly retryFirstMs: number;
  readonly retryMaxMs: number;
  /** After so long a time on the destination the shadow is retired; 0: never by itself. */
  readonly retireAfterMs: number;
  readonly lagMsMax: number;
  readonly lagBytesMax: number;
  /** Share of a subset's transactions that may be on two sides after its switch, 0…1: they would fail. */
  readonly crossingMax: number;
  /** Whether a subset may be switched while others stay, `cutover.parting`. */
  readonly partingAccepted: boolean;
}

export interface Attempt {
  readonly atMs: number;
  /** undefined: of the whole database, or to retire. */
  readonly subset?: SubsetId | undefined;
  /** null: it is not known how it ended, as after a crash. */
  readonly outcome: 'done' | 'refused' | 'aborted' | null;
}

/** An operation in the journal. */
export interface LastOperation {
  readonly kind: OperationKind;
  readonly state: OperationState;
  /** ISO 8601; null: it has not ended. */
  readonly finishedAt: string | null;
}

/** A configured subset, or the rest of them. */
export interface Part {
  readonly subset: SubsetId;
  readonly side: Side;
  /** The newest, however it ended; null: nobody has tried. */
  readonly lastOperation: LastOperation | null;
  /** The newest that was done: a try that was refused or aborted changed nothing. null: it was never switched. */
  readonly lastDone: LastOperation | null;
}

/** The shadow at one moment, as far as a switch depends on it. null: not known. */
export interface ShadowAsSeen {
  readonly phase: ShadowPhase;
  readonly method: ShadowMethod;
  /** By `log`, of the stream; otherwise since the last round began of which all is written. */
  readonly lagMs: number | null;
  /** There is none but by `log`. */
  readonly lagBytes: number | null;
  /** How late its pace alone may make it: the pause between two rounds; 0 by `log`. */
  readonly roundMs: number;
  /** What comes over whole behind the fence would take: {@link StreamStatus.exactMs}. undefined: nothing does. */
  readonly exactMs: number | null | undefined;
}

export interface Situation {
  readonly nowMs: number;
  /** Of several subsets the source, while it leads any. undefined: not known. */
  readonly leader: Side | undefined;
  /** Empty where the whole database moves as one. */
  readonly parts: readonly Part[];
  readonly finalized: boolean;
  readonly operationRunning: boolean;
  readonly hourAllowed: boolean;
  readonly shadow: ShadowAsSeen;
  readonly plan: PlanReport | undefined;
  /** The loop's own tries, the newest first. */
  readonly attempts: readonly Attempt[];
  /** Of all subsets, the newest, however it ended; null: none. */
  readonly lastOperation: LastOperation | null;
  /** Of all subsets, the newest that was done. */
  readonly lastDone: LastOperation | null;
}

export type VerdictCode =
  | 'destination-leads'
  | 'rolled-back'
  | 'attention'
  | 'route-unknown'
  | 'busy'
  | 'no-plan'
  | 'not-ready'
  | 'lag'
  | 'too-little-seen'
  | 'backing-off'
  | 'next-window'
  | 'outside-hours'
  | 'crossing'
  | 'parting'
  | 'stall-too-long'
  | 'not-now'
  | 'window'
  | 'divergence'
  | 'proven';

export interface Verdict {
  readonly kind: VerdictKind;
  readonly code: VerdictCode;
  /** The one that it is about; undefined: the whole database, or no single one. */
  readonly subset?: SubsetId;
  /** Where one of several subsets is named: all that its operation switches. */
  readonly bundle?: readonly SubsetId[];
  readonly reason: string;
  /** What it was decided on. */
  readonly figures: Readonly<Record<string, number | string | null>>;
}

/** Why a verdict is what it is. */
export type Reason = readonly [VerdictCode, string];

export function shadowAsSeen({ phase, streams, steering }: ShadowStatus): ShadowAsSeen {
  const forward: StreamStatus | undefined = streams.find(({ direction }) => direction === 'forward');
  const method = forward?.method ?? 'log';
  return {
    phase,
    method,
    lagMs: forward?.lagMs ?? null,
    lagBytes: forward?.lagBytes ?? null,
    roundMs: method === 'log' ? 0 : (steering?.flushIntervalMs ?? 0),
    exactMs: forward?.exactMs,
  };
}
