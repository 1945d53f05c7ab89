/** What a cutover needs of the proxy: the gate and the router. No logic here (ports.ts). */
import type { Side, SubsetId } from './ports.js';

export interface Route {
  readonly side: Side;
  readonly epoch: number;
}

export interface SubsetRoute {
  readonly subset: SubsetId;
  readonly route: Route;
}

export type BlockerReason =
  | 'temporary-table'
  | 'cursor-with-hold'
  | 'session-advisory-lock'
  /** Only while subsets are on different sides: the session would hear one of them. */
  | 'listening'
  | 'loaded-library'
  | 'unknown-setting'
  | 'replication'
  | 'in-transaction'
  | 'state-unreadable'
  | 'destination-refuses';

/** A client session that can't be moved as it stands. */
export interface SessionBlocker {
  readonly sessionId: number;
  readonly user: string;
  readonly applicationName: string;
  readonly reason: BlockerReason;
  /** Names what it is about (the setting, the cursor), never its value. */
  readonly detail: string;
}

export interface PrepareReport {
  readonly sessions: number;
  /** Sessions whose connection on the new side is open and holds the session's state. */
  readonly warm: number;
  /** Sessions whose state changed since they were asked; they are asked again behind the gate. */
  readonly stale: number;
  readonly blockers: readonly SessionBlocker[];
  /** Where other subsets stay, so that no session is moved: those that can't go to the other side as they are. */
  readonly bound?: readonly SessionBlocker[];
  /** OIDs, on the side that serves, of the database's own types that sessions have used in binary form. */
  readonly binaryTypes?: readonly number[];
}

export interface HoldOptions {
  /** Transactions and statements in flight may finish until then. */
  readonly drainTimeoutMs: number;
  /** abort: throw `drain-timeout`. cancel: roll the open transactions back (their clients get 40001). */
  readonly onDrainTimeout: 'abort' | 'cancel';
  /** refuse: throw `session-pinned`. close: such sessions are closed with 57P01 at the switch. */
  readonly onPinned: 'refuse' | 'close';
  readonly signal: AbortSignal;
}
export interface HoldReport {
  readonly drainMs: number;
  /** Time spent asking stale sessions and warming late ones behind the gate. */
  readonly refreshMs: number;
  readonly sessions: number;
}
export interface SwitchReport {
  readonly moved: number;
  readonly closed: number;
}
/** How long clients waited because of a hold; one sample per held session. Milliseconds. */
export interface StallReport {
  readonly held: number;
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
  /** Upper bounds in ms and the count of samples at or below each but above the one before. */
  readonly histogram: readonly { readonly upToMs: number; readonly count: number }[];
}

/**
 * What a cutover needs of the proxy. One operation at a time, in this order: prepare* → hold → (switchTo →)? release.
 * `along`: of the other subsets that the operation switches too.
 */
export interface TrafficControl {
  route(subset: SubsetId): Route;
  /** Asks every session what it holds and opens a warm connection on `to`. No effect a client could see. Repeatable. */
  prepare(
    subset: SubsetId,
    to: Side,
    signal: AbortSignal,
    along?: readonly SubsetId[],
  ): Promise<PrepareReport>;
  /**
   * Resolves in a moment at which little is open that `hold` would have to wait for, or once the time is up: `hold` is to
   * follow in the same turn. No effect a client could see. Absent where there is no one gate. Rejects where `signal` fires.
   */
  untilQuiet?(withinMs: number, signal: AbortSignal): Promise<void>;
  /** Closes the gate and resolves once no statement or transaction is in flight and every session is warm. On any
   *  error the gate is open again and clients carried on on the old side. */
  hold(subset: SubsetId, to: Side, options: HoldOptions, along?: readonly SubsetId[]): Promise<HoldReport>;
  /** Swaps every held session to its warm connection. Only after `hold`. Never fails: a session whose new connection
   *  died is closed with 57P01. */
  switchTo(subset: SubsetId, route: Route, along?: readonly SubsetRoute[]): Promise<SwitchReport>;
  /** Opens the gate; held statements run on the side of the present route. Idempotent. */
  release(subset: SubsetId): StallReport | Promise<StallReport>;
  /** Answers every held statement with this error, keeps the gate closed for new ones. For in-doubt. */
  failHeld(subset: SubsetId, sqlState: string, message: string): void;
  /** Drops the warm connections of an abandoned cutover. */
  discardWarm(subset: SubsetId): void;
}
