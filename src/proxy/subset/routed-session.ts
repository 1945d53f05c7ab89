/** What the routing of one client's statements needs of the client and of its connection. */
import type { Side } from '../../core/ports.js';
import type { NameScope } from '../../core/subset-ports.js';
import type { Reply } from '../backend/reply-reader.js';
import type { HeldInput } from '../session/held-input.js';
import type { OwnKind, ResponseTracker } from '../session/response-tracker.js';
import type { RefusedStatement } from './reach.js';

/** Why a session could not be moved, as its client is told. */
export interface NotMoved {
  readonly sqlState: string;
  readonly message: string;
}

/** How its client comes from side to side. */
export interface RoutedMoves {
  /** The last move was to a connection of which it is not known what names mean there. */
  toNew: boolean;
  /** The session must be quiet, and stay so. Resolves with null once it is on `to`. */
  to(to: Side): Promise<NotMoved | null>;
  /** Final. */
  end(): void;
}

/** What its client has sent so far. */
export interface RoutedStream {
  /** A frame of this type may not follow what is on its way before that is answered. */
  mustWait(type: number): boolean;
  /** Grows with each statement that may change what the session holds. */
  changes: number;
  /** Those of them that left every setting as it was. */
  readonly preparing: number;
  /** Payload of the unnamed statement's Parse, where one is alive. */
  readonly unnamedParse: Buffer | null;
  /** An unnamed statement is alive that can't be made again. */
  readonly unnamedIrreplaceable: boolean;
  /** A Query of the client's is answered by an error and never sent: it ends the unnamed statement all the same. */
  refusedQuery(): void;
  /** As `refusedQuery`, of an extended message. */
  refusedExtended(): void;
}

export interface RoutedSession {
  readonly tracker: ResponseTracker;
  readonly held: HeldInput;
  readonly clientStream: RoutedStream;
  readonly moves: RoutedMoves;
  readonly side: () => Side;
  readonly closed: () => boolean;
  /** Something new may be begun: the session is served, or has a transaction to end. */
  readonly mayBegin: () => boolean;
  /** The client sends nothing more. */
  readonly clientEnded: () => boolean;
  /** Something that was passed on has not been sent yet. */
  readonly unsent: () => boolean;
  /** To the server, as the client's own. */
  readonly pass: (chunk: Buffer) => void;
  readonly toServer: (bytes: Buffer) => void;
  /** Answers the statement at hand with this error where there is no connection; false: there is one. */
  readonly answerHere: (error: RefusedStatement) => boolean;
  /** What names mean on the present side; null where that can't be asked. At a settled moment, also within a transaction. */
  readonly scope: () => Promise<NameScope | null>;
  /** Of a statement that the client has prepared, where the client is known to have it. */
  readonly preparedText: (name: string) => string | undefined;
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
