/** Every key of the configuration, with its check, its default and its description. The reference is made from it. */
import { z } from 'zod';
import { CONFLICT_RULES } from '../../shadow/conflicts/rule.js';
import { SHADOW_DEFAULTS as SHADOW } from '../../shadow/settings.js';
import { CHANNEL_BINDINGS, SHADOW_METHODS, TLS_MODES, TLS_NEGOTIATIONS } from '../../core/ports.js';
import { CLIENT_AUTHENTICATIONS } from '../../proxy/client-authentication.js';
import { POOL_DEFAULTS as POOL, POOL_MODES } from '../../proxy/pool/pool-settings.js';
import { PROXY_DEFAULTS as PROXY } from '../../proxy/settings.js';
import { SERIES_STORE_DEFAULTS as SERIES } from '../../capture/series-store.js';
import { DEFAULT_CUTOVER_SETTINGS as CUTOVER } from '../../cutover/settings.js';
import { AUTOPILOT_MODES } from '../../core/autopilot-ports.js';
import {
  bytes,
  choice,
  choiceMap,
  count,
  factor,
  flag,
  fraction,
  leaves,
  milliseconds,
  millisecondsOr,
  nameMap,
  octal,
  optionalChoice,
  optionalFile,
  optionalText,
  port,
  requiredText,
  subsetMap,
  tableFormats,
  text,
  type LeafInfo,
} from './leaf.js';

const databaseSection = (side: 'source' | 'destination', what: string) =>
  z.strictObject({
    url: requiredText(`${what}, with the account Understudy itself uses.`, {
      expected: 'a URL such as postgres://user:password@host:5432/database',
      example: `postgres://understudy:\${${side.toUpperCase()}_PASSWORD}@${side}.example.com:5432/shop`,
      secret: true,
    }),
    password: optionalText(
      'The password, where it should not stand in the URL. Taken as it is, not decoded.',
      {
        expected: 'a text',
        secret: true,
        defaultText: 'as in the URL',
        example: `\${${side.toUpperCase()}_PASSWORD}`,
      },
    ),
    passwordFile: optionalFile('A file whose first line is the password.', `/run/secrets/${side}-password`),
    tls: optionalChoice(
      "As libpq's sslmode. Overrides `?sslmode=` in the URL.",
      TLS_MODES,
      '`disable` on loopback and unix sockets, else `verify-full`',
      'verify-full',
    ),
    tlsCa: optionalFile(
      "PEM file of the authority that signed the server's certificate.",
      '/etc/understudy/ca.pem',
    ),
    tlsCert: optionalFile(
      'PEM file of the certificate shown to a server that asks for one, with its chain.',
      '/etc/understudy/client.crt',
    ),
    tlsKey: optionalFile("PEM file of that certificate's private key.", '/etc/understudy/client.key'),
    tlsNegotiation: optionalChoice(
      "As libpq's sslnegotiation: `direct` begins with TLS at once, for servers from 17 on.",
      TLS_NEGOTIATIONS,
      '`postgres`',
      'postgres',
    ),
    channelBinding: optionalChoice(
      "As libpq's channel_binding: whether SCRAM proofs are bound to the TLS connection they travel on.",
      CHANNEL_BINDINGS,
      '`prefer`',
      'prefer',
    ),
  });

export const sections = {
  migration: z.strictObject({
    id: z
      .string({ error: 'expected lower-case letters, digits and _ only, at most 40' })
      .regex(/^[a-z0-9_]{1,40}$/, { error: 'expected lower-case letters, digits and _ only, at most 40' })
      .optional()
      .register(leaves, {
        expected: 'lower-case letters, digits and _ only, at most 40',
        description: 'Names the publication and slots: `understudy_<id>_fwd`, `understudy_<id>_rev`.',
        kind: 'string',
        defaultText: "from the source database's name",
        example: 'shop',
      }),
  }),
  listen: z.strictObject({
    host: text('Address the applications connect to.', '127.0.0.1', 'a host name or address'),
    port: port('Port the applications connect to; 0 takes a free one.', 6432),
    reusePort: flag(
      'Let another process listen on the same port, for a hand-over (docs/runbook.md). Needs Node 22.12, 23.1 or newer.',
      false,
    ),
    socketDir: optionalText('Folder for a unix socket, `.s.PGSQL.<port>`, beside the port.', {
      expected: 'the path of a folder',
      example: '/var/run/understudy',
      defaultText: 'none',
    }),
    socketMode: octal("The socket's permissions, as chmod takes them.", '0777'),
    databases: nameMap(
      'Databases clients may ask for beside the one that is migrated: `asked` or `asked=name on the server`, separated by commas, or a mapping; `*` lets every name through. They stay on the source.',
      '"reports, old=archive"',
    ),
    tls: z
      .strictObject({
        cert: requiredText('PEM file of the certificate shown to applications.', {
          expected: 'the path of a readable file',
          example: '/etc/understudy/tls.crt',
        }),
        key: requiredText("PEM file of the certificate's private key.", {
          expected: 'the path of a readable file',
          example: '/etc/understudy/tls.key',
        }),
        clientCa: optionalFile(
          'PEM file of the authority that signs client certificates; clients are then asked for one.',
          '/etc/understudy/client-ca.pem',
        ),
        mode: choice(
          "What TCP clients must do: nothing, use TLS, show a valid certificate too, or one whose common name is the user's.",
          ['allow', 'require', 'verify-ca', 'verify-full'],
          'allow',
        ),
        minVersion: choice('Oldest TLS version clients may use.', ['TLSv1.2', 'TLSv1.3'], 'TLSv1.2'),
      })
      .optional(),
  }),
  source: databaseSection('source', 'The database in use today'),
  destination: databaseSection('destination', 'The database that takes over'),
  admin: z.strictObject({
    host: text('Address of the admin port.', '127.0.0.1', 'a host name or address'),
    port: port('Port for health checks, status and operations; 0 takes a free one.', 6433),
    token: z
      .string({ error: 'expected a text of at least 16 characters' })
      .min(16, { error: 'expected a text of at least 16 characters' })
      .optional()
      .register(leaves, {
        expected: 'a text of at least 16 characters',
        description: 'Bearer token for everything under /api. Required where `admin.host` is not loopback.',
        kind: 'string',
        secret: true,
        defaultText: 'none',
        example: '${UNDERSTUDY_ADMIN_TOKEN}',
      }),
  }),
  auth: z.strictObject({
    method: choice(
      'How applications prove who they are: by stored verifiers; by a password in the clear over TLS, checked here (`cleartext`) or by the server alone (`pass-through`); by a client certificate; or, from this machine, not at all.',
      CLIENT_AUTHENTICATIONS,
      'verifier',
    ),
    usersFile: optionalFile(
      'Verifiers in the form `"user" "SCRAM-SHA-256$…"`, one a line, where pg_authid can’t be read.',
      '/etc/understudy/users.txt',
    ),
  }),
  capture: z.strictObject({
    enabled: flag('Count statements per table and kind.', true),
    ringBytes: bytes(
      'Room between the proxy and the capture thread; what does not fit is dropped and counted.',
      4_194_304,
      {
        min: 65_536,
        max: 1_073_741_824,
      },
    ),
    textBytesMax: bytes('A statement’s text is cut there before it is parsed.', 4096, {
      min: 128,
      max: 65_536,
    }),
    keys: flag(
      'Count which keys are used most. Keys are kept as keyed hashes; values are never stored or logged.',
      false,
    ),
    parameterBytesMax: bytes(
      'Bound parameters of a statement are looked at up to there, and only where `capture.keys` is true.',
      512,
      { min: 16, max: 65_536 },
    ),
    hotKeysMax: count('Keys counted per table and hour, where `capture.keys` is true.', 1_000, {
      max: 100_000,
    }),
    series: flag('Keep what was captured in the destination, in schema `understudy`.', true),
    flushIntervalMs: milliseconds('How often it is written there.', 60_000, { max: 3_600_000 }),
    catalogIntervalMs: milliseconds(
      'How often the catalogs are read, by which names in statements are resolved; after DDL at once.',
      300_000,
      { max: 86_400_000 },
    ),
    minutesKeptDays: count('Days for which figures per minute are kept.', SERIES.minutesKeptDays, {
      max: 36_500,
    }),
    fiveMinutesKeptDays: count(
      'Days for which figures per five minutes, and hot keys, are kept.',
      SERIES.fiveMinutesKeptDays,
      { max: 36_500 },
    ),
    hoursKeptDays: count(
      'Days for which figures per hour, and statements not seen again, are kept.',
      SERIES.hoursKeptDays,
      { max: 36_500 },
    ),
  }),
  shadow: z.strictObject({
    enabled: flag('Build and follow the shadow. False runs the proxy alone.', true),
    method: choice(
      'How changes are learned of: from the `log`, from the proxy’s own writes (`mirror`), by asking the tables (`poll`). `auto` takes the best that the source allows, see docs/shadow.md.',
      ['auto', ...SHADOW_METHODS],
      SHADOW.method,
    ),
    pollIntervalMs: milliseconds(
      'By `poll`: the pause between two polls of the source’s tables.',
      SHADOW.pollIntervalMs,
    ),
    mirrorRingBytes: bytes(
      'By `mirror`: memory between the proxy and the thread that reads its statements. When it is full, statements are dropped, and every table is compared.',
      16 * 1024 * 1024,
      { max: 1_073_741_824 },
    ),
    compareIntervalMs: milliseconds(
      'By `mirror` and `poll`: how often a table is compared although nothing is known against it.',
      SHADOW.compareIntervalMs,
    ),
    versionColumns: nameMap(
      'By `poll`: tables, and the timestamp column that says when each of their rows was written last. Other tables are asked by xmin.',
      'public.orders=updated_at',
    ),
    format: z
      .strictObject({
        schemas: nameMap(
          'Schemas whose tables are in another schema on the destination (docs/format.md).',
          'public=sales',
        ),
        compatibility: choice(
          'Whether a table under another name has a view under its old one, by which the application’s statements go on working.',
          ['views', 'none'],
          'views',
        ),
        tables: tableFormats(
          'What the destination has in another form than the source: by `schema.table`, its `name`, its `columns`’ names, their `types` and its `partitioning` there.',
          '{"public.orders": {"types": {"id": "bigint"}}}',
        ),
      })
      .optional(),
    copyRoles: flag('Create the source’s roles on the destination where they are missing.', SHADOW.copyRoles),
    chunkRows: count('Rows per chunk of the copy, at most.', SHADOW.chunkRows),
    chunkBytes: bytes('Bytes a chunk aims at; wide rows make chunks of fewer rows.', SHADOW.chunkBytes, {
      max: 1_073_741_824,
    }),
    copyConcurrency: count('Tables read side by side.', SHADOW.copyConcurrency, { max: 64 }),
    conflicts: z
      .strictObject({
        rule: choice(
          'Which row stands where somebody wrote to the destination past its guard. `module`: a function of yours says.',
          CONFLICT_RULES,
          SHADOW.conflicts.rule,
        ),
        module: optionalFile(
          'By `module`: a JavaScript module that exports `settle(conflict)`, see docs/shadow.md.',
          '/etc/understudy/conflicts.mjs',
        ),
      })
      .prefault({}),
    throttle: z
      .strictObject({
        latencyP99Ms: millisecondsOr(
          'The first copy is held back so that the application’s 99th percentile, as the proxy sees it, stays below that. `auto` is relative to what it is without a copy.',
          ['auto', 'off'],
          SHADOW.throttle.latencyP99Ms,
        ),
        latencyFactor: factor(
          'By `auto`: as a factor of what it is without a copy.',
          SHADOW.throttle.latencyFactor,
        ),
        latencyFloorMs: milliseconds(
          'By `auto`: a percentile below that is good in any case.',
          SHADOW.throttle.latencyFloorMs,
          { min: 0 },
        ),
        standbyLagMs: milliseconds(
          'The same for the lag of the source’s own standbys, where the account may see them; 0 is no bound.',
          SHADOW.throttle.standbyLagMs,
          { min: 0 },
        ),
        shadowLagMs: milliseconds(
          'The same for the lag of the shadow itself while it copies; 0 is no bound.',
          SHADOW.throttle.shadowLagMs,
          { min: 0 },
        ),
        activeMax: count(
          'The same for the number of client sessions that run a statement on the source; 0 is no bound.',
          SHADOW.throttle.activeMax,
          { min: 0, max: 100_000 },
        ),
      })
      .prefault({}),
    flushIntervalMs: milliseconds(
      'A change waits at most that long for others to be written with it.',
      SHADOW.flushIntervalMs,
      { max: 60_000 },
    ),
    flushChangesMax: count(
      'Changes written in one transaction, unless the source’s own is larger.',
      SHADOW.flushChangesMax,
    ),
    streamBytesMax: bytes(
      'Memory for changes received and not yet written, per stream; past it the log waits at the source.',
      SHADOW.streamBytesMax,
      { min: 1_048_576 },
    ),
    statusIntervalMs: milliseconds(
      'How often a server is told how far its log is done with.',
      SHADOW.statusIntervalMs,
      {
        max: 60_000,
      },
    ),
    headPollIntervalMs: milliseconds(
      'How often the head of the log is asked for, which lag is measured against.',
      SHADOW.headPollIntervalMs,
      { max: 60_000 },
    ),
    fingerprintIntervalMs: milliseconds(
      'How often both catalogs are compared with what the shadow was built from.',
      SHADOW.fingerprintIntervalMs,
    ),
    retryFirstMs: milliseconds(
      'Pause before the first new attempt after a passing error.',
      SHADOW.retryFirstMs,
    ),
    retryMaxMs: milliseconds('The longest such pause.', SHADOW.retryMaxMs),
    logBudgetBytes: bytes(
      'Log that a slot may keep on either server; past it the shadow is dropped, before the disk fills. 0: no bound.',
      SHADOW.logBudgetBytes,
      { min: 0 },
    ),
    logPollIntervalMs: milliseconds(
      'How often the log that the slots keep is measured.',
      SHADOW.logPollIntervalMs,
    ),
    recentKeysMax: count(
      'Keys remembered as changed since the last clean comparison.',
      SHADOW.recentKeysMax,
      { max: 10_000_000 },
    ),
    trimIntervalMs: milliseconds('How often some of them are compared and forgotten.', SHADOW.trimIntervalMs),
  }),
  cutover: z.strictObject({
    drainTimeoutMs: milliseconds(
      'Statements and transactions in flight may finish that long after the gate closed.',
      CUTOVER.drainTimeoutMs,
    ),
    onDrainTimeout: choice(
      'What happens to transactions open past it: `abort` the cutover, or `cancel` them (40001).',
      ['abort', 'cancel'],
      CUTOVER.onDrainTimeout,
    ),
    onPinned: choice(
      'What happens with a session that can’t be moved: `refuse` the cutover, or `close` the session (57P01).',
      ['refuse', 'close'],
      CUTOVER.onPinned,
    ),
    parting: choice(
      'May a subset be switched while others stay? `accept` says that you have read in docs/subsets.md what is not seen.',
      ['refuse', 'accept'],
      CUTOVER.parting,
    ),
    fenceTimeoutMs: milliseconds(
      'All attempts to raise or lower the fence together.',
      CUTOVER.fenceTimeoutMs,
    ),
    lockTimeoutMs: milliseconds(
      'One wait for one lock of the fence; always kept below the server’s deadlock_timeout.',
      CUTOVER.lockTimeoutMs,
    ),
    installTimeoutMs: milliseconds(
      'All attempts to install the fence’s triggers on one table, outside any hold.',
      CUTOVER.installTimeoutMs,
    ),
    markTimeoutMs: milliseconds('The shadow has that long to reach the fence’s mark.', CUTOVER.markTimeoutMs),
    holdBudgetMs: milliseconds(
      'The longest the gate may be closed before the commit; past it the operation aborts.',
      CUTOVER.holdBudgetMs,
    ),
    commitAnswerTimeoutMs: milliseconds(
      'A COMMIT of the route unanswered for that long counts as lost: the operation is in doubt.',
      CUTOVER.commitAnswerTimeoutMs,
    ),
    inDoubtTimeoutMs: milliseconds(
      'Held statements fail with 08007 when an operation in doubt isn’t settled by then.',
      CUTOVER.inDoubtTimeoutMs,
    ),
    connectTimeoutMs: milliseconds('Opening one of the coordinator’s connections.', CUTOVER.connectTimeoutMs),
    lagBytesMax: bytes('A cutover is refused while the shadow is further behind.', CUTOVER.lagBytesMax),
    lagMsMax: milliseconds('A cutover is refused while the shadow is further behind.', CUTOVER.lagMsMax),
    lagWaitMs: milliseconds(
      'Preflight waits that long for the lag to come below its limits.',
      CUTOVER.lagWaitMs,
      {
        min: 0,
      },
    ),
    verifiedWithinMs: milliseconds(
      'A clean verification older than that is done again in preflight.',
      CUTOVER.verifiedWithinMs,
      { max: 31 * 86_400_000 },
    ),
    sequenceMargin: count('Sequences go forward by at least that many values.', CUTOVER.sequenceMargin, {
      min: 0,
    }),
    prepareRoundsMax: count(
      'Rounds of asking and warming sessions before the gate closes.',
      CUTOVER.prepareRoundsMax,
      { max: 100 },
    ),
    staleShareMax: fraction(
      'The share of sessions that may still have to be asked again behind the gate.',
      CUTOVER.staleShareMax,
    ),
  }),
  autopilot: z.strictObject({
    mode: choice(
      'Whether the loop (docs/autopilot.md) plans and says when to switch (`suggest`), or switches by itself too (`on`).',
      AUTOPILOT_MODES,
      'suggest',
    ),
    checkIntervalMs: milliseconds('How often it looks at the situation.', 30_000, { max: 3_600_000 }),
    steer: flag(
      'Whether the plan sets how eager the shadow is, and what it copies first. An intensity set by hand is left alone.',
      true,
    ),
    steerDownAfterMs: milliseconds(
      'It is made less eager only after the reason for more has been gone for that long; more eager at once.',
      600_000,
    ),
    allowedHours: optionalText(
      'Hours in which it may switch or suggest to: days, times or both, separated by commas.',
      {
        expected: 'spans such as Mon-Fri 01:00-05:00, Sun',
        example: 'Mon-Fri 01:00-05:00, Sun',
        defaultText: 'all',
      },
    ),
    timezone: text(
      'The clock of these hours, and of people’s habits.',
      'UTC',
      'a name such as Europe/Dublin',
    ),
    stallMaxMs: milliseconds('No switch while the upper end of the predicted stall is above it.', 1_000),
    abortProbabilityMax: fraction(
      'No switch while the chance that open transactions outlast `cutover.drainTimeoutMs` is above it.',
      0.2,
    ),
    divergenceMax: fraction(
      'A subset that diverges by that much is a reason to switch in any allowed hour.',
      0.8,
    ),
    crossingMax: fraction(
      'Where `subsets` are configured: no switch of one by itself while a larger share of its transactions was seen to touch what would be on the other side, and would fail.',
      0.001,
    ),
    observedHoursMin: count('Hours of traffic that must have been watched before a window is believed.', 48, {
      max: 10_000,
    }),
    retryFirstMs: milliseconds(
      'Pause after a switch by itself that was refused or aborted; doubled each time.',
      900_000,
      {
        max: 31 * 86_400_000,
      },
    ),
    retryMaxMs: milliseconds('The longest such pause.', 86_400_000, { max: 31 * 86_400_000 }),
    retireAfterMs: milliseconds(
      'When the destination has led for so long, the shadow, which is the way back, is retired by itself (`on`), or that is suggested. 0: never.',
      0,
      { min: 0, max: 31 * 86_400_000 },
    ),
  }),
  proxy: z.strictObject({
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
    poolAgeMaxMs: milliseconds(
      'A connection older than that is closed when it comes back.',
      POOL.poolAgeMaxMs,
    ),
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
  }),
  limits: z.strictObject({
    clientsMax: count('Client connections at a time; more get 53300.', PROXY.maxClients, { max: 100_000 }),
    clientsPerUserMax: count(
      'Of these, of one user; 0 is no limit. More get 53300.',
      PROXY.maxClientsPerUser,
      {
        min: 0,
        max: 100_000,
      },
    ),
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
  }),
  subsets: subsetMap(
    'Parts of the database that are switched one at a time: a name, and its `tables` as `schema.table`. Tables named nowhere are the subset `rest`.',
    '{"orders": {"tables": ["public.orders", "public.line"]}}',
  ),
  log: z.strictObject({
    level: choice(
      'Least severe message that is logged.',
      ['debug', 'info', 'warn', 'error', 'silent'],
      'info',
    ),
  }),
} as const;

export const configSchema = z.strictObject(sections);

type Sections = typeof sections;
/** What a person writes: only `source` and `destination` are required. */
export type UnderstudyConfig = {
  readonly [K in 'source' | 'destination']: z.input<Sections[K]>;
} & {
  readonly [K in Exclude<keyof Sections, 'source' | 'destination'>]?: z.input<Sections[K]> | undefined;
};
export type ParsedConfig = z.output<typeof configSchema>;

export interface ConfigKey extends LeafInfo {
  readonly path: readonly string[];
  readonly default: unknown;
  readonly required: boolean;
}

/** Every leaf, in the order of the schema. */
export function configKeys(): readonly ConfigKey[] {
  return collectKeys(configSchema, []);
}

function collectKeys(schema: z.ZodType, path: readonly string[]): readonly ConfigKey[] {
  const info = leaves.get(schema);
  if (info !== undefined) {
    const absent = schema.safeParse(undefined);
    return [{ ...info, path, default: absent.success ? absent.data : undefined, required: !absent.success }];
  }
  const wrapped = schema instanceof z.ZodOptional || schema instanceof z.ZodPrefault;
  const inner = wrapped ? (schema.unwrap() as z.ZodType) : schema;
  if (!(inner instanceof z.ZodObject)) return [];
  return Object.entries(inner.shape as Readonly<Record<string, z.ZodType>>).flatMap(([name, child]) =>
    collectKeys(child, [...path, name]),
  );
}

/** `UNDERSTUDY_CUTOVER_DRAIN_TIMEOUT_MS` for `cutover.drainTimeoutMs`. */
export function environmentName(path: readonly string[]): string {
  return `UNDERSTUDY_${path.map((part) => part.replace(/[A-Z]/g, '_$&').toUpperCase()).join('_')}`;
}
