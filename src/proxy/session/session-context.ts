/** What sessions share, and what is told of them. */
import type net from 'node:net';
import type { Clock } from '../../core/clock.js';
import type { Log } from '../../core/log.js';
import type { StatementTap, TrafficRecorder } from '../../core/capture-ports.js';
import type { Side } from '../../core/ports.js';
import type { StatementText } from '../../wire/postgres/statement-text.js';
import type { Backend } from '../backend/backend.js';
import type { LeftConnections } from '../backend/left-connections.js';
import type { BinaryTypes } from './binary-types.js';
import type { ProxySettings } from '../settings.js';
import type { SessionPhase } from './session-phases.js';
import type { Pin } from './session-state.js';
import type { SessionOids } from './type-oids.js';
import type { Reply } from '../backend/reply-reader.js';
import type { SubsetRouting } from '../subset/subset-routing.js';

export interface SessionContext {
  readonly settings: ProxySettings;
  readonly tap: StatementTap | null;
  readonly recorder: TrafficRecorder | null;
  readonly text: StatementText;
  readonly binaryTypes: BinaryTypes;
  readonly clock: Clock;
  readonly log: Log;
  /** Whether a held statement that ends a prepared transaction may still go to the present side. */
  readonly mayPassHeld: () => boolean;
  /** For a session that began on one side and is to sit on another. */
  readonly oids: (began: Side, present: Side) => SessionOids | null;
  /** Null unless subsets are configured. */
  readonly routing: SubsetRouting | null;
  /** SQLSTATE of an error a client met. */
  readonly onError: (sqlState: string) => void;
  /** Sends a CancelRequest to a backend. Resolves once the server has taken it, or it has failed; never rejects. */
  readonly cancelBackend: (backend: Backend) => Promise<void>;
  /** What sessions leave when they move is given to it. */
  readonly left: LeftConnections;
}

/** What a client did before it became a session. */
export interface AdoptedClient {
  readonly prepared: readonly { readonly name: string; readonly text: Buffer; readonly flags: number }[];
  /** Payload of its unnamed statement's Parse. */
  readonly unnamed: Buffer | null;
  readonly settingNames: Iterable<string>;
  readonly pins: readonly Pin[];
  /** Of its bytes to come, the first so many are in the recording already. */
  readonly recordedBytes: number;
  /** Told of each connection that it moves to. */
  readonly onMoved: (side: Side, socket: net.Socket) => void;
}

export interface SessionInfo {
  readonly id: number;
  readonly user: string;
  readonly applicationName: string;
  readonly side: Side;
  readonly phase: SessionPhase;
  /** I, T or E, as of the last ReadyForQuery. */
  readonly transactionStatus: string;
  /** Something sent is not answered, or a pipeline or COPY is open. */
  readonly busy: boolean;
  /** Null outside a transaction. */
  readonly inTransactionMs: number | null;
  readonly heldBytes: number;
  /** The server connection is gone; the session waits at the gate for another. */
  readonly backendLost: boolean;
  readonly bytesFromClient: number;
  readonly bytesToClient: number;
}

export interface StateAnswer extends Reply {
  /** The session's count of changes when it was asked. */
  readonly changes: number;
}
