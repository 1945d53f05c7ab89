/** How clients of one database come by server connections, and the bounds of it. */
import type { BlockerReason } from '../../core/traffic-ports.js';

/**
 * session: a connection of its own for each client, for as long as it stays.
 * transaction: a connection for as long as a transaction lasts.
 * pipelined: as transaction, and reads that are proven harmless go down shared connections back to back.
 */
export const POOL_MODES = ['session', 'transaction', 'pipelined'] as const;
export type PoolMode = (typeof POOL_MODES)[number];

export interface PoolSettings {
  readonly poolMode: PoolMode;
  /** By the name a client asks for the database by, where it has a mode of its own. */
  readonly poolModes: Readonly<Record<string, PoolMode>>;
  /** Connections of clients' own at a time, for each user and set of start-up parameters. */
  readonly poolSizeMax: number;
  /** Further ones, for clients that have waited for {@link reserveAfterMs}. */
  readonly poolReserve: number;
  readonly poolReserveAfterMs: number;
  /** Server connections of all pools together, on each side; 0: no bound. */
  readonly poolConnectionsMax: number;
  /** The same of each user's pools. */
  readonly poolConnectionsPerUserMax: number;
  /** A client that waits for a connection longer gets 53300. */
  readonly poolWaitTimeoutMs: number;
  /** Clients that may wait for a connection at once; more get 53300. */
  readonly poolWaitingMax: number;
  /** A connection that nobody used for that long is closed. */
  readonly poolIdleTimeoutMs: number;
  /** A connection older than that is closed when it comes back. */
  readonly poolAgeMaxMs: number;
  /** Prepared statements kept on one connection. */
  readonly preparedStatementsMax: number;
  /** Shared connections of one pool. */
  readonly sharedConnections: number;
  /** Reads underway on one shared connection. */
  readonly sharedDepthMax: number;
  /** A shared read that takes longer has those behind it sent again elsewhere, and is not shared from then on. */
  readonly sharedReadBoundMs: number;
  /** For how long such a read is kept alone. */
  readonly sharedAloneMs: number;
  /** An answer of a shared read is kept whole up to there, so that the read can be run again elsewhere. */
  readonly sharedAnswerBytesMax: number;
  /** Unread answers of one client, before the shared connection is kept to it. */
  readonly sharedUnreadBytesMax: number;
  /** How often the catalogs are looked at for what makes a read harmful. */
  readonly sharedCatalogIntervalMs: number;
}

export const POOL_DEFAULTS = {
  poolMode: 'session',
  poolModes: {},
  poolSizeMax: 20,
  poolReserve: 0,
  poolReserveAfterMs: 1000,
  poolConnectionsMax: 0,
  poolConnectionsPerUserMax: 0,
  poolWaitTimeoutMs: 30_000,
  poolWaitingMax: 10_000,
  poolIdleTimeoutMs: 600_000,
  poolAgeMaxMs: 3_600_000,
  preparedStatementsMax: 200,
  sharedConnections: 2,
  sharedDepthMax: 256,
  sharedReadBoundMs: 50,
  sharedAloneMs: 60_000,
  sharedAnswerBytesMax: 65_536,
  sharedUnreadBytesMax: 1024 * 1024,
  sharedCatalogIntervalMs: 5000,
} as const satisfies PoolSettings;

/** Of clients that ask for a database by that name. */
export function poolModeOf(
  { poolMode, poolModes }: Pick<PoolSettings, 'poolMode' | 'poolModes'>,
  asked: string,
): PoolMode {
  return Object.hasOwn(poolModes, asked) ? (poolModes[asked] ?? poolMode) : poolMode;
}

/** All modes that some client may have. */
export function poolModesIn({ poolMode, poolModes }: PoolSettings): ReadonlySet<PoolMode> {
  return new Set([poolMode, ...Object.values(poolModes)]);
}

export type PinReason =
  | BlockerReason
  | 'listening'
  | 'prepared-by-sql'
  | 'sequence-values'
  | 'remote-connection'
  | 'statement-too-long';

/** Why a client keeps its connection from now on. */
export interface PoolPin {
  readonly reason: PinReason;
  /** Names what it is about, never its value. */
  readonly detail: string;
}

/** Of the reasons that keep a client on its connection, those that keep it on its side too and no question finds. */
export function blocksMove(reason: PinReason): reason is 'loaded-library' | 'unknown-setting' {
  return reason === 'loaded-library' || reason === 'unknown-setting';
}

export interface PoolStatus {
  readonly mode: PoolMode;
  readonly side: 'source' | 'destination';
  readonly database: string;
  readonly user: string;
  readonly clients: number;
  /** Connections in use by a client. */
  readonly active: number;
  readonly idle: number;
  readonly opening: number;
  /** What counts against the bound on all pools: those, shared ones, and those that clients keep. */
  readonly counted: number;
  /** Clients that wait for one. */
  readonly waiting: number;
  readonly shared: {
    readonly connections: number;
    /** Reads underway. */
    readonly depth: number;
    readonly statements: number;
    /** Sent a second time because a read in front of them took too long, or a connection was lost. */
    readonly sentAgain: number;
    /** Run alone after the read-only connection had refused them. */
    readonly refused: number;
    /** Why nothing is shared at present; null where reads are. */
    readonly obstacle: string | null;
  };
}
