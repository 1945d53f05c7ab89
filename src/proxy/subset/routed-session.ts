/** What the routing of one client's statements needs of the client and of its connection. */
import type { Side } from '../../core/ports.js';
import type { Reply } from '../backend/reply-reader.js';
import type { ClientStream } from '../session/client-stream.js';
import type { HeldInput } from '../session/held-input.js';
import type { OwnKind, ResponseTracker } from '../session/response-tracker.js';
import type { RefusedStatement } from './reach.js';
import type { SideMoves } from './subset-moves.js';

export interface RoutedSession {
  readonly tracker: ResponseTracker;
  readonly held: HeldInput;
  readonly clientStream: ClientStream;
  readonly moves: SideMoves;
  readonly side: () => Side;
  readonly closed: () => boolean;
  /** Something new may be begun: the session is served, or has a transaction to end. */
  readonly mayBegin: () => boolean;
  /** The client sends nothing more. */
  readonly clientEnded: () => boolean;
  /** To the server, as the client's own. */
  readonly pass: (chunk: Buffer) => void;
  readonly toServer: (bytes: Buffer) => void;
  /** A simple query of the proxy's own, at a settled moment, also within a transaction. */
  readonly ask: (sql: string) => Promise<Reply>;
  readonly again: (messages: Buffer, kind: OwnKind) => Promise<Reply>;
  /** After `again`, which ends the client's unnamed statement. */
  readonly unnamedAgain: () => void;
  /** The next error is told in these words. */
  readonly refusing: (error: RefusedStatement) => void;
  readonly parameter: (name: string) => string | undefined;
  readonly terminate: (sqlState: string, message: string) => void;
  /** Something may have settled. */
  readonly settle: () => void;
}
