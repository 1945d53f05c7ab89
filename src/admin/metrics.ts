/**
 * What Prometheus scrapes. docs/metrics.md lists every name; a test holds the two identical.
 *
 * - What the parts count themselves is read from their status at each scrape; nothing is counted twice, and a scrape
 *   is the only time it costs anything. Such counters begin at 0 again when what counts them is started again.
 * - Errors and stalls are told as they happen: they are rare.
 * - Labels have a bounded number of values: no user, database, table or statement is one.
 * - What is not known is absent, not 0.
 */
import { Counter, Gauge, Histogram, Registry, collectDefaultMetrics } from 'prom-client';
import type { CaptureSnapshot } from '../core/capture-ports.js';
import type { ShadowPhase, ShadowStatus, Side } from '../core/ports.js';
import type { GateState } from '../proxy/gate.js';
import type { PoolStatus } from '../proxy/pool/pool-settings.js';
import type { ProxyStatus } from '../proxy/proxy-interface.js';
import type { SessionPhase } from '../proxy/session/session-phases.js';

/** What a scrape reads. */
export interface MetricsSource {
  readonly version: string;
  readonly ready: boolean;
  readonly proxy: ProxyStatus;
  /** null: capture is switched off or its thread is starting. */
  readonly capture: CaptureSnapshot | null;
  readonly shadow: ShadowStatus;
}

const SIDES: readonly Side[] = ['source', 'destination'];
const SESSION_PHASES: readonly SessionPhase[] = ['serving', 'draining', 'held', 'answering'];
const GATE_STATES: readonly GateState[] = ['open', 'closing', 'closed', 'switching', 'suspended'];
const SHADOW_PHASES: readonly ShadowPhase[] = [
  'idle',
  'connecting',
  'building-schema',
  'copying',
  'indexing',
  'analyzing',
  'repairing',
  'following',
  'paused',
  'failed',
  'stopped',
];
const STALL_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];

/** Classes of SQLSTATEs; a function may raise any other. https://www.postgresql.org/docs/current/errcodes-appendix.html */
const ERROR_CLASSES = new Set(
  (
    '00 01 02 03 08 09 0A 0B 0F 0L 0P 0Z 10 20 21 22 23 24 25 26 27 28 2B 2D 2F 34 38 39 3B 3D 3F 40 42 44 ' +
    '53 54 55 57 58 72 F0 HV P0 XX UF UG'
  ).split(' '),
);

export class Metrics {
  readonly #registry = new Registry();
  readonly #errors: Counter<'class'>;
  readonly #stalls: Histogram;
  readonly #collect: readonly ((source: MetricsSource) => void)[];
  readonly #read: () => Promise<MetricsSource>;

  constructor(read: () => Promise<MetricsSource>) {
    this.#read = read;
    const registers = [this.#registry];
    collectDefaultMetrics({ register: this.#registry, eventLoopMonitoringPrecision: 20 });
    this.#errors = new Counter({
      name: 'understudy_client_errors_total',
      help: 'Errors of servers relayed to clients, by the class of their SQLSTATE; `other` where it is not one of PostgreSQL’s.',
      labelNames: ['class'],
      registers,
    });
    this.#stalls = new Histogram({
      name: 'understudy_stall_seconds',
      help: 'How long clients waited at a closed gate; one sample for each that had to.',
      buckets: STALL_SECONDS,
      registers,
    });
    const make = new SourcedMetrics(this.#registry);
    this.#collect = [
      ...processMetrics(make),
      ...proxyMetrics(make),
      ...poolMetrics(make),
      ...gateMetrics(make),
      ...captureMetrics(make),
      ...shadowMetrics(make),
    ];
  }

  get contentType(): string {
    return this.#registry.contentType;
  }

  /** Every name with its type, labels and meaning, those of the process itself (by prom-client) left out. */
  async describe(): Promise<
    readonly { readonly name: string; readonly type: string; readonly help: string }[]
  > {
    const metrics = await this.#registry.getMetricsAsJSON();
    return metrics
      .filter(({ name }) => name.startsWith('understudy_'))
      .map(({ name, type, help }) => ({ name, type: String(type), help }));
  }

  countError(sqlState: string): void {
    const errorClass = sqlState.slice(0, 2);
    this.#errors.inc({ class: ERROR_CLASSES.has(errorClass) ? errorClass : 'other' });
  }

  observeStalls(waitsMs: readonly number[]): void {
    for (const ms of waitsMs) this.#stalls.observe(ms / 1000);
  }

  /** One scrape, in Prometheus' text format. */
  async text(): Promise<string> {
    const source = await this.#read();
    for (const collect of this.#collect) collect(source);
    return await this.#registry.metrics();
  }
}

type Labels = Readonly<Record<string, string>>;
type Sample = readonly [number, Labels?];
type Collector = (source: MetricsSource) => void;

/** Makes metrics whose samples are all read anew at each scrape. */
class SourcedMetrics {
  readonly #registers: Registry[];

  constructor(registry: Registry) {
    this.#registers = [registry];
  }

  gauge(
    name: string,
    help: string,
    labels: readonly string[],
    read: (of: MetricsSource) => readonly Sample[],
  ): Collector {
    const gauge = new Gauge({ name, help, labelNames: [...labels], registers: this.#registers });
    return (source) => {
      gauge.reset();
      // A reset leaves a 0 where there is no label to tell samples apart.
      if (labels.length === 0) gauge.remove();
      for (const [value, of] of read(source)) gauge.set(of ?? {}, value);
    };
  }

  /** The samples are totals. */
  counter(
    name: string,
    help: string,
    labels: readonly string[],
    read: (of: MetricsSource) => readonly Sample[],
  ): Collector {
    const counter = new Counter({ name, help, labelNames: [...labels], registers: this.#registers });
    return (source) => {
      counter.reset();
      // A reset leaves a 0 where there is no label to tell samples apart.
      if (labels.length === 0) counter.remove();
      for (const [total, of] of read(source)) counter.inc(of ?? {}, total);
    };
  }
}

function processMetrics(make: SourcedMetrics): readonly Collector[] {
  return [
    make.gauge('understudy_info', '1, with the version as its label.', ['version'], ({ version }) => [
      [1, { version }],
    ]),
    make.gauge('understudy_ready', '1 while clients can be served.', [], ({ ready }) => [[ready ? 1 : 0]]),
    make.gauge(
      'understudy_route_epoch',
      'Version of the route; absent while it is not known.',
      [],
      ({ proxy }) => (proxy.route === null ? [] : [[proxy.route.epoch]]),
    ),
    make.gauge('understudy_route_side', '1 for the side that serves.', ['side'], ({ proxy }) =>
      SIDES.map((side) => [proxy.route?.side === side ? 1 : 0, { side }]),
    ),
  ];
}

function proxyMetrics(make: SourcedMetrics): readonly Collector[] {
  return [
    make.gauge('understudy_sessions', 'Client sessions, by side and phase.', ['side', 'phase'], ({ proxy }) =>
      SIDES.flatMap((side) =>
        SESSION_PHASES.map((phase) => [
          proxy.clients.filter((client) => client.side === side && client.phase === phase).length,
          { side, phase },
        ]),
      ),
    ),
    make.gauge(
      'understudy_sessions_in_transaction',
      'Client sessions with a transaction open.',
      [],
      ({ proxy }) => [[proxy.clients.filter(({ inTransactionMs }) => inTransactionMs !== null).length]],
    ),
    make.gauge('understudy_sessions_busy', 'Client sessions that wait for an answer.', [], ({ proxy }) => [
      [proxy.clients.filter(({ busy }) => busy).length],
    ]),
    make.gauge('understudy_clients_handshaking', 'Connections that are logging in.', [], ({ proxy }) => [
      [proxy.connections.handshaking],
    ]),
    make.counter('understudy_clients_accepted_total', 'Clients that became a session.', [], ({ proxy }) => [
      [proxy.connections.accepted],
    ]),
    make.counter(
      'understudy_clients_refused_total',
      'Clients turned away after they had logged in, or for want of room.',
      [],
      ({ proxy }) => [[proxy.connections.refused]],
    ),
    make.counter('understudy_cancel_requests_total', 'Cancel requests of clients.', [], ({ proxy }) => [
      [proxy.cancelRequests],
    ]),
    make.counter(
      'understudy_bytes_from_clients_total',
      'Bytes read from clients with a session.',
      [],
      ({ proxy }) => [[proxy.bytesFromClients]],
    ),
    make.counter(
      'understudy_bytes_to_clients_total',
      'Bytes written to clients with a session.',
      [],
      ({ proxy }) => [[proxy.bytesToClients]],
    ),
  ];
}

/** Sums over all pools: their number is that of the users. */
function poolMetrics(make: SourcedMetrics): readonly Collector[] {
  const sum = (pick: (pool: PoolStatus) => number) => (source: MetricsSource) =>
    SIDES.map((side): Sample => {
      const pools = source.proxy.pools.filter((pool) => pool.side === side);
      return [pools.reduce((total, pool) => total + pick(pool), 0), { side }];
    });
  return [
    make.gauge(
      'understudy_pools',
      'Pools of server connections.',
      ['side'],
      sum(() => 1),
    ),
    make.gauge(
      'understudy_pool_clients',
      'Clients that share a pool.',
      ['side'],
      sum((pool) => pool.clients),
    ),
    make.gauge(
      'understudy_pool_clients_waiting',
      'Of these, those that wait for a connection.',
      ['side'],
      sum((pool) => pool.waiting),
    ),
    make.counter(
      'understudy_pool_clients_pinned_total',
      'Clients that began to keep a connection of a pool, by what they left in it.',
      ['reason'],
      ({ proxy }) => Object.entries(proxy.pinned).map(([reason, clients]): Sample => [clients, { reason }]),
    ),
    make.gauge(
      'understudy_pool_connections_active',
      'Connections of pools in use by a client.',
      ['side'],
      sum((pool) => pool.active),
    ),
    make.gauge(
      'understudy_pool_connections_idle',
      'Connections of pools at rest.',
      ['side'],
      sum((pool) => pool.idle),
    ),
    make.gauge(
      'understudy_pool_connections_opening',
      'Connections of pools being opened.',
      ['side'],
      sum((pool) => pool.opening),
    ),
    make.gauge(
      'understudy_pool_connections_counted',
      'Connections that count against proxy.poolConnectionsMax: all of these, shared ones, and those pinned clients keep.',
      ['side'],
      sum((pool) => pool.counted),
    ),
    make.gauge(
      'understudy_pool_connections_shared',
      'Connections down which reads of many clients are sent.',
      ['side'],
      sum((pool) => pool.shared.connections),
    ),
    make.gauge(
      'understudy_pool_reads_shared',
      'Reads underway on these.',
      ['side'],
      sum((pool) => pool.shared.depth),
    ),
  ];
}

function gateMetrics(make: SourcedMetrics): readonly Collector[] {
  const gates = (proxy: ProxyStatus) => Object.values(proxy.gates);
  const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);
  return [
    make.gauge('understudy_gate_state', '1 for the state the gate is in.', ['state'], ({ proxy }) =>
      GATE_STATES.map((state) => [gates(proxy).some((gate) => gate.state === state) ? 1 : 0, { state }]),
    ),
    make.gauge(
      'understudy_sessions_held',
      'Client sessions with a statement that waits at the gate.',
      [],
      ({ proxy }) => [[sum(gates(proxy).map(({ held }) => held))]],
    ),
    make.gauge(
      'understudy_sessions_warm',
      'Client sessions whose connection to the other side is ready.',
      [],
      ({ proxy }) => [[sum(gates(proxy).map(({ warm }) => warm))]],
    ),
    make.gauge('understudy_clients_waiting', 'New clients that wait at the gate.', [], ({ proxy }) => [
      [sum(gates(proxy).map(({ waiting }) => waiting))],
    ]),
  ];
}

function captureMetrics(make: SourcedMetrics): readonly Collector[] {
  const kinds = (pick: (kind: CaptureSnapshot['kinds'][number]) => number) => (source: MetricsSource) =>
    (source.capture?.kinds ?? []).map((kind): Sample => [pick(kind), { kind: kind.kind }]);
  const total =
    (pick: (capture: CaptureSnapshot) => number) =>
    (source: MetricsSource): readonly Sample[] =>
      source.capture === null ? [] : [[pick(source.capture)]];
  return [
    make.counter(
      'understudy_statements_total',
      'Statements, by kind, as captured.',
      ['kind'],
      kinds(({ statements }) => statements),
    ),
    make.counter(
      'understudy_statement_errors_total',
      'Statements that failed, by kind.',
      ['kind'],
      kinds(({ errors }) => errors),
    ),
    make.counter(
      'understudy_statement_rows_total',
      'Rows returned or changed, by kind.',
      ['kind'],
      kinds(({ rows }) => rows),
    ),
    make.counter(
      'understudy_transactions_total',
      'Transactions, by how they ended.',
      ['outcome'],
      ({ capture }) =>
        capture === null
          ? []
          : [
              [capture.transactions.committed, { outcome: 'committed' }],
              [capture.transactions.rolledBack, { outcome: 'rolled-back' }],
            ],
    ),
    make.counter(
      'understudy_capture_offered_total',
      'Statements offered to capture.',
      [],
      total(({ offered }) => offered),
    ),
    make.counter(
      'understudy_capture_dropped_total',
      'Of these, dropped because capture was behind, or unrecorded.',
      [],
      total(({ dropped }) => dropped),
    ),
    make.counter(
      'understudy_capture_unrecorded_total',
      'Of the dropped, parts of pipelines deeper than is followed.',
      [],
      total(({ unrecorded }) => unrecorded),
    ),
    make.counter(
      'understudy_capture_unparsed_total',
      'Of these, counted without being understood.',
      [],
      total(({ unparsed }) => unparsed),
    ),
  ];
}

function shadowMetrics(make: SourcedMetrics): readonly Collector[] {
  type Stream = ShadowStatus['streams'][number];
  const streams = (pick: (stream: Stream) => number | null) => (source: MetricsSource) =>
    source.shadow.streams.flatMap((stream): readonly Sample[] => {
      const value = pick(stream);
      return value === null ? [] : [[value, { direction: stream.direction }]];
    });
  return [
    make.gauge('understudy_shadow_phase', '1 for the phase the shadow is in.', ['phase'], ({ shadow }) =>
      SHADOW_PHASES.map((phase) => [shadow.phase === phase ? 1 : 0, { phase }]),
    ),
    make.gauge(
      'understudy_shadow_stream_connected',
      '1 while the stream is connected.',
      ['direction'],
      streams(({ connected }) => (connected ? 1 : 0)),
    ),
    make.gauge(
      'understudy_shadow_lag_bytes',
      'Log between the origin’s head and what the other side has committed; absent while unknown.',
      ['direction'],
      streams(({ lagBytes }) => lagBytes),
    ),
    make.gauge(
      'understudy_shadow_lag_seconds',
      'The same as time; absent while unknown.',
      ['direction'],
      streams(({ lagMs }) => (lagMs === null ? null : lagMs / 1000)),
    ),
    make.counter(
      'understudy_shadow_transactions_applied_total',
      'Transactions applied.',
      ['direction'],
      streams(({ transactionsApplied }) => transactionsApplied),
    ),
    make.counter(
      'understudy_shadow_changes_applied_total',
      'Row changes applied.',
      ['direction'],
      streams(({ changesApplied }) => changesApplied),
    ),
    make.counter(
      'understudy_shadow_rows_copied_total',
      'Rows copied while the shadow was built.',
      [],
      ({ shadow }) => [[shadow.copy.rows]],
    ),
    make.gauge(
      'understudy_shadow_intensity',
      'How eagerly the shadow is kept fresh, 0 to 1.',
      [],
      ({ shadow }) => (shadow.steering === undefined ? [] : [[shadow.steering.intensity]]),
    ),
    ...throttleMetrics(make),
  ];
}

/** Absent while nothing is copied. */
function throttleMetrics(make: SourcedMetrics): readonly Collector[] {
  type Throttled = NonNullable<NonNullable<ShadowStatus['steering']>['throttle']>;
  const of = (pick: (throttle: Throttled) => readonly Sample[]) => (source: MetricsSource) => {
    const throttle = source.shadow.steering?.throttle;
    return throttle == null ? [] : pick(throttle);
  };
  return [
    make.gauge(
      'understudy_shadow_copy_share',
      'Share of its time in which the copy may read, by the throttle; absent while nothing is copied.',
      [],
      of(({ share }) => [[share]]),
    ),
    make.gauge(
      'understudy_shadow_copy_latency_seconds',
      'The application’s 99th percentile, measured, to be kept, and without a copy; absent while unknown.',
      ['kind'],
      of(({ latencyP99Ms, latencyTargetMs, baselineP99Ms }) =>
        Object.entries({ measured: latencyP99Ms, target: latencyTargetMs, baseline: baselineP99Ms }).flatMap(
          ([kind, ms]): readonly Sample[] => (ms === null ? [] : [[ms / 1000, { kind }]]),
        ),
      ),
    ),
  ];
}
