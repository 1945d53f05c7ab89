/** Clients that a gate holds and moves as a body, beside the sessions it moves one by one. */
import type { Side } from '../core/ports.js';
import type { PrepareReport, SessionBlocker } from '../core/traffic-ports.js';
import type { SessionInfo } from './session/session-context.js';

export interface GateParty {
  /** Called whenever one of them may have come to rest, or has gone. */
  onProgress: () => void;
  readonly size: number;
  /** Whether any of them is not at rest. */
  readonly restless: boolean;
  /** How many have something open while the gate is. */
  readonly open: number;
  /** Those that are not at rest, for a report. */
  unrested(): readonly SessionInfo[];
  /** The gate closes: what is open ends, nothing new begins. */
  hold(): void;
  /** The gate opens. Returns how long each has waited that has, in milliseconds. */
  release(): number[];
  /** Answers what is held, and what comes, with this error until `release`. */
  failHeld(sqlState: string, message: string): void;
  /** Ends what is still open; clients get 40001. */
  rollBack(): Promise<void>;
  /** Resolves once none of them is about to become a session; waits within bounds. */
  settled(): Promise<void>;
  /** Opens what is needed on the new side. Throws only where `signal` fired. */
  prepare(to: Side, signal: AbortSignal): Promise<PrepareReport>;
  /** Behind the closed gate: what changed since. Returns what stands in the way. */
  refresh(to: Side, signal: AbortSignal): Promise<readonly SessionBlocker[]>;
  /** All are at rest: they are served by the new side from the release on. */
  switchTo(to: Side): { readonly moved: number; readonly closed: number };
  /** Subsets are about to be on different sides: opens what will be needed on that one. Never rejects. */
  prepareParting(to: Side, signal: AbortSignal): Promise<void>;
  /** Statements are given a side each from now on, or no more. Those at rest begin at once, the others once they are. */
  route(wanted: boolean): void;
  /** What they hold may have been changed by statements that were not known to do so. */
  statesUnsure(): void;
  /** A switch was given up. */
  discardWarm(serving: Side | undefined): void;
}
