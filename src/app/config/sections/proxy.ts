/** How clients are served, and within which bounds. */
import { z } from 'zod';
import { PROXY_DEFAULTS as PROXY } from '../../../proxy/settings.js';
import { POOL_DEFAULTS as POOL, POOL_MODES } from '../../../proxy/pool/pool-settings.js';
import { bytes, choice, choiceMap, count, milliseconds } from '../leaf.js';

export const proxySection = z.strictObject({
  workers: count(
    'Processes that serve clients, behind one port and one gate. 1: this process serves them itself (docs/workers.md).',
    1,
    { max: 64 },
  ),
  poolMode: choice(
    'How clients come by server connections: one each for as long as they stay; one from a pool for each transaction; or that, and harmless reads of many down shared ones (docs/pooling.md).',
    POOL_MODES,
    POOL.poolMode,
  ),
  poolModes: choiceMap(
    'The same for names under which clients ask for the migrated database (`listen.databases`), so that one name may be pooled and another not.',
    POOL_MODES,
    'shop=session',
  ),
  poolSizeMax: count(
    'Connections of a pool; there is one for each user and set of start-up parameters.',
    POOL.poolSizeMax,
    { max: 10_000 },
  ),
  poolReserve: count(
    'Further connections for clients that have waited for `proxy.poolReserveAfterMs`.',
    POOL.poolReserve,
    { min: 0, max: 10_000 },
  ),
  poolReserveAfterMs: milliseconds(
    'A client that waits that long may take from the reserve.',
    POOL.poolReserveAfterMs,
  ),
  poolConnectionsMax: count(
    'Server connections of all pools together, on each side; 0 is no bound.',
    POOL.poolConnectionsMax,
    { min: 0, max: 100_000 },
  ),
  poolConnectionsPerUserMax: count(
    'The same of each user’s pools; 0 is no bound.',
    POOL.poolConnectionsPerUserMax,
    { min: 0, max: 100_000 },
  ),
  poolWaitTimeoutMs: milliseconds(
    'A statement that finds no connection within it gets 53300.',
    POOL.poolWaitTimeoutMs,
  ),
  poolWaitingMax: count('Clients that may wait for a connection of one pool.', POOL.poolWaitingMax),
  poolIdleTimeoutMs: milliseconds(
    'A connection that nobody used for that long is closed.',
    POOL.poolIdleTimeoutMs,
  ),
  poolAgeMaxMs: milliseconds('A connection older than that is closed when it comes back.', POOL.poolAgeMaxMs),
  preparedStatementsMax: count(
    'Prepared statements kept on one connection; the least used makes room.',
    POOL.preparedStatementsMax,
  ),
  sharedConnections: count('Pipelined: shared connections of a pool.', POOL.sharedConnections, {
    max: 1000,
  }),
  sharedDepthMax: count('Pipelined: reads underway on one of them.', POOL.sharedDepthMax),
  sharedReadBoundMs: milliseconds(
    'Pipelined: a read that takes longer has those behind it sent again elsewhere, and has a connection to itself from then on.',
    POOL.sharedReadBoundMs,
  ),
  sharedAloneMs: milliseconds('Pipelined: for how long that lasts.', POOL.sharedAloneMs),
  sharedAnswerBytesMax: bytes(
    'Pipelined: an answer is kept whole up to there before any of it is passed on, so that its read can be run again.',
    POOL.sharedAnswerBytesMax,
  ),
  sharedUnreadBytesMax: bytes(
    'Pipelined: what a client may leave unread of an answer before its shared connection is kept to it.',
    POOL.sharedUnreadBytesMax,
  ),
  sharedCatalogIntervalMs: milliseconds(
    'Pipelined: how often the catalogs are looked at for what makes a read harmful.',
    POOL.sharedCatalogIntervalMs,
    { max: 3_600_000 },
  ),
});

export const limitsSection = z.strictObject({
  clientsMax: count('Client connections at a time; more get 53300.', PROXY.maxClients, { max: 100_000 }),
  clientsPerUserMax: count('Of these, of one user; 0 is no limit. More get 53300.', PROXY.maxClientsPerUser, {
    min: 0,
    max: 100_000,
  }),
  clientsPerDatabaseMax: count(
    'Of these, in one database; 0 is no limit. More get 53300.',
    PROXY.maxClientsPerDatabase,
    { min: 0, max: 100_000 },
  ),
  handshakesMax: count('Connections in their handshake at a time; more are closed.', PROXY.maxHandshakes, {
    max: 100_000,
  }),
  handshakeTimeoutMs: milliseconds('A client has to log in within it.', PROXY.handshakeTimeoutMs),
  connectTimeoutMs: milliseconds('Opening one server connection.', PROXY.connectTimeoutMs),
  clientIdleTimeoutMs: milliseconds(
    'A client outside a transaction that does nothing for that long is closed (57P05); 0 is never.',
    PROXY.clientIdleTimeoutMs,
    { min: 0, max: 31 * 86_400_000 },
  ),
  idleInTransactionTimeoutMs: milliseconds(
    'A client that leaves a transaction open for that long is closed (25P03); 0 is never.',
    PROXY.idleInTransactionTimeoutMs,
    { min: 0, max: 31 * 86_400_000 },
  ),
  queryTimeoutMs: milliseconds(
    'A statement that runs longer is cancelled (57014), its answer’s way to the client included; 0 is never.',
    PROXY.queryTimeoutMs,
    { min: 0, max: 31 * 86_400_000 },
  ),
  frameBytesMax: bytes(
    'Longest protocol message; a longer one closes its connection with an error.',
    PROXY.frameBytesMax,
    { min: 65_536, max: PROXY.frameBytesMax },
  ),
  heldBytesMax: bytes(
    'Kept for one session at the gate before its socket is no longer read.',
    PROXY.heldBytesMax,
  ),
  stateBytesMax: bytes(
    'What one session may hold (settings, prepared statements) to be carried over.',
    PROXY.stateBytesMax,
  ),
  warmConcurrency: count(
    'Connections opened on the new side at once before a switch.',
    PROXY.warmConcurrency,
    {
      max: 1000,
    },
  ),
  warmAttempts: count('Tries to open one connection on the new side.', PROXY.warmAttempts, { max: 100 }),
  prepareTimeoutMs: milliseconds(
    'How long the preparation waits for a session’s next quiet moment.',
    PROXY.prepareTimeoutMs,
  ),
  askTimeoutMs: milliseconds(
    'How long a session’s server may take to say what it holds.',
    PROXY.askTimeoutMs,
  ),
  staleSessionsMax: count(
    'Sessions that may be asked again or warmed behind the gate; more is a reason not to close it.',
    PROXY.staleSessionsMax,
    { min: 0, max: 100_000 },
  ),
  cancelTimeoutMs: milliseconds('A cancelled statement has to end within it.', PROXY.cancelTimeoutMs),
  switchTimeoutMs: milliseconds(
    'For a listening session’s last notifications, and for reopening a lost connection, at the switch.',
    PROXY.switchTimeoutMs,
  ),
  stopTimeoutMs: milliseconds(
    'At a graceful stop, statements and transactions may finish within it.',
    10_000,
    {
      min: 0,
    },
  ),
});
