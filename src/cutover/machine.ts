/**
 * The life of one operation, as a pure function of state and event.
 *
 *   idle → preflight → holding → fencing → catching-up → verifying → committed → switching → releasing → done
 *              │           │         │          │            │ └─ answer-lost ─► in-doubt ─ committed ─►┘
 *              └───────────┴─────────┴──────────┴────────────┴── fail ─► rolling-back ─ undone ─► aborted
 *                                                                            └ undo-failed ► failed ─┘
 *
 * Invariants:
 * - Only the states of {@link BEFORE_COMMIT} can be undone; from `committed` on there is only forward.
 * - `in-doubt` is left by what the journal says, never by time.
 * - `in-doubt`, `rolling-back` and `failed` live in memory alone: the first can't be written down by its nature, and
 *   the journal calls an operation `aborted` *before* anything of it is undone (so that its commit can't succeed any
 *   more), while the process calls it so only after everything is undone.
 */
import type { OperationState } from '../core/ports.js';
import { UnderstudyError } from '../core/errors.js';

export const OPERATION_INPUTS = [
  'begin',
  'checked',
  'rehearsed',
  'held',
  'fenced',
  'caught-up',
  'committed',
  'answer-lost',
  'opened',
  'switched',
  'released',
  'fail',
  'undone',
  'undo-failed',
] as const;
/**
 * What happens to an operation. rehearsed: a dry run ended after preflight. answer-lost: COMMIT was sent, and no
 * answer came. opened: the side that leads from now on takes writes. fail: something went wrong before the commit,
 * or the journal says that it did not happen.
 */
export type OperationInput = (typeof OPERATION_INPUTS)[number];

const TABLE: Readonly<Record<OperationState, Readonly<Partial<Record<OperationInput, OperationState>>>>> = {
  idle: { begin: 'preflight' },
  preflight: { checked: 'holding', rehearsed: 'idle', fail: 'rolling-back' },
  holding: { held: 'fencing', fail: 'rolling-back' },
  fencing: { fenced: 'catching-up', fail: 'rolling-back' },
  'catching-up': { 'caught-up': 'verifying', fail: 'rolling-back' },
  verifying: { committed: 'committed', 'answer-lost': 'in-doubt', fail: 'rolling-back' },
  'in-doubt': { committed: 'committed', fail: 'rolling-back' },
  committed: { opened: 'switching' },
  switching: { switched: 'releasing' },
  releasing: { released: 'done' },
  'rolling-back': { undone: 'aborted', 'undo-failed': 'failed' },
  failed: { undone: 'aborted' },
  done: {},
  aborted: {},
};

export const OPERATION_STATES = Object.keys(TABLE) as readonly OperationState[];

/** Journaled states in which an operation can still be undone, by its own process or by a successor. */
export const BEFORE_COMMIT: readonly OperationState[] = [
  'preflight',
  'holding',
  'fencing',
  'catching-up',
  'verifying',
];
/** Journaled states past the point of no return that still want finishing. */
export const AFTER_COMMIT: readonly OperationState[] = ['committed', 'switching', 'releasing'];
/** States in which an operation rests and the next may begin. */
export const FINAL: readonly OperationState[] = ['done', 'aborted'];

/** Whether `input` is legal in `state`. */
export function accepts(state: OperationState, input: OperationInput): boolean {
  return TABLE[state][input] !== undefined;
}

/** The state after `input`. Throws `internal` where `state` does not accept it. */
export function transition(state: OperationState, input: OperationInput): OperationState {
  const next = TABLE[state][input];
  if (next === undefined) {
    throw new UnderstudyError('internal', `operation: ${input} is illegal while ${state}`);
  }
  return next;
}
