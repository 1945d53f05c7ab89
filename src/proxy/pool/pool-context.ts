/** What pooled clients and pools share, and how they report. */
import type { Side } from '../../core/ports.js';
import type { Clock } from '../../core/clock.js';
import type { Log } from '../../core/log.js';
import type { StatementTap, TrafficRecorder } from '../../core/capture-ports.js';
import type { StatementText } from '../../wire/postgres/statement-text.js';
import type { Backend } from '../backend/backend.js';
import type { BinaryTypes } from '../session/binary-types.js';
import type { AcceptedClient } from '../login/client-handshake.js';
import type { ProxySettings } from '../settings.js';
import type { Decisions } from './decisions.js';
import type { Definitions } from './definitions.js';
import type { ParameterSets } from './parameter-sets.js';
import type { Pool } from './pool.js';
import type { PooledClient } from './pooled-client.js';
import type { SubsetRouting } from '../subset/subset-routing.js';
import type { PoolPin, PoolSettings } from './pool-settings.js';

/** A client has asked for what its session's sequences gave last, so connections forget that between clients. */
export interface SequenceMemory {
  asked: boolean;
}

export interface Leftover {
  readonly bytes: Buffer;
  /** So many of them are in the recording already, where there is one. */
  readonly recorded: number;
}

export interface PoolContext {
  readonly settings: ProxySettings;
  readonly bounds: PoolSettings;
  readonly tap: StatementTap | null;
  readonly recorder: TrafficRecorder | null;
  /** The pools' own: what the last text named is kept in it. */
  readonly text: StatementText;
  readonly binaryTypes: BinaryTypes;
  readonly clock: Clock;
  readonly log: Log;
  readonly decisions: Decisions;
  readonly definitions: Definitions;
  readonly parameterSets: ParameterSets;
  readonly sequences: SequenceMemory;
  readonly customSettings: () => readonly string[];
  /** Whether a held statement that ends a prepared transaction may still go to the present side. */
  readonly mayPassHeld: () => boolean;
  /** Null unless subsets are configured. */
  readonly routing: SubsetRouting | null;
  /** The pool of a client of another side's. Rejects as `poolFor`. */
  readonly beside: (client: AcceptedClient, side: Side) => Pool | Promise<Pool>;
  readonly onAtRest: (client: PooledClient) => void;
  readonly onClosed: (client: PooledClient) => void;
  /** The client keeps `backend` from now on; `leftover` is what it has sent and was not worked off. */
  readonly onPinned: (client: PooledClient, backend: Backend, pin: PoolPin, leftover: Leftover) => void;
  /** A client has changed the catalogs, or may have. */
  readonly onCatalogsChanged: () => void;
  /** SQLSTATE of an error a client met. */
  readonly onError: (sqlState: string) => void;
}
