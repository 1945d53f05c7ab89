/**
 * The composition root: makes every part, wires them through `core/ports.ts`, and ends them in order.
 *
 * Starting, in order:
 *   1. proxy and admin port: the proxy listens and answers 57P03 while it is not known which side leads;
 *   2. the route: the source's fence decides, the journal only where one stands. Failing is no reason to end;
 *   3. once the route is known: the shadow's thread, unless it is switched off or the migration is finalized.
 * `startUnderstudy` resolves after the first attempt at 2.
 *
 * What may fail without taking traffic with it: destination, shadow, capture, admin requests. What ends the start:
 * a port that is taken.
 */
import { randomBytes } from 'node:crypto';
import type { AdminControl, Readiness, StatusReport } from '../admin/control.js';
import { Metrics, type MetricsSource } from '../admin/metrics.js';
import { AdminServer } from '../admin/server.js';
import { systemClock, type Clock } from '../core/clock.js';
import { UnderstudyError, asUnderstudyError } from '../core/errors.js';
import { createLog, type Log } from '../core/log.js';
import { subsetIds } from '../core/subsets.js';
import { checkServerCertificates } from '../core/server-certificates.js';
import {
  WHOLE_DATABASE,
  type Direction,
  type OperationKind,
  type ShadowPhase,
  type ShadowTable,
  type SubsetId,
} from '../core/ports.js';
import type { Route } from '../core/traffic-ports.js';
import { CutoverCoordinator } from '../cutover/coordinator.js';
import type { CutoverStatus, StepPoint } from '../cutover/settings.js';
import { leadsWhole } from '../cutover/subsets.js';
import type { ProxyControl } from '../proxy/proxy-interface.js';
import { readFingerprint } from '../shadow/postgres/fingerprint.js';
import type { Autopilot } from './autopilot/autopilot.js';
import { makeAutopilot } from './autopilot/make-autopilot.js';
import { CaptureThread } from './capture-thread.js';
import { resolveConfig, type ResolvedConfig } from './config.js';
import { CopyLatency } from './copy-latency.js';
import { endpointText } from './config/endpoint.js';
import type { UnderstudyConfig } from './config/schema.js';
import { inspectForCutover, onBoth, sessionHints, subsetTies } from './control-side.js';
import { mirrorOf, type MirrorThread } from './mirror-thread.js';
import { Operations } from './operations.js';
import { makeProxy, reloadableSettings, type ProxyParts } from './proxy-parts.js';
import { ReachThread } from './reach-thread.js';
import { BordersKept } from './subset-borders.js';
import { Reachability } from './reachability.js';
import { takeOver, type ReloadReport } from './reload.js';
import type { Recorder } from './recording/recorder.js';
import { RouteKeeper } from './route-keeper.js';
import { ShadowThread } from './shadow-thread.js';
import { ThreadShadow } from './thread-shadow.js';
import { VERSION } from './version.js';
import { makeFleet } from './workers/fleet.js';

export interface UnderstudyHooks {
  readonly log?: Log;
  readonly clock?: Clock;
  /** Records what clients send; closed with the process. */
  readonly recorder?: Recorder;
  /** Called at every step of an operation; see {@link StepPoint}. For fault tests. */
  readonly observe?: (point: StepPoint, kind: OperationKind) => void | Promise<void>;
}

export interface Understudy extends AsyncDisposable {
  readonly version: string;
  /** The port applications connect to. */
  readonly port: number;
  readonly adminPort: number;
  readonly adminUrl: string;
  status(): Promise<StatusReport>;
  readonly operate: AdminControl['operate'];
  /**
   * Takes over what of another configuration can be taken over while clients are served, and says what can't.
   * The log's level is its owner's to change. Throws `config-invalid`, and nothing has changed then.
   */
  reload(config: ResolvedConfig): ReloadReport;
  /** Graceful: clients may finish what they are at, a running operation undoes itself or is carried to its end. */
  stop(): Promise<void>;
}

/**
 * Starts Understudy in this process. Takes what `loadConfig` returned, or the same as an object.
 * Throws `config-invalid`, `port-in-use`. Databases that can't be reached are no reason to fail.
 */
export async function startUnderstudy(
  config: ResolvedConfig | UnderstudyConfig,
  hooks: UnderstudyHooks = {},
): Promise<Understudy> {
  const resolved =
    'url' in config.source ? resolveConfig(config as UnderstudyConfig) : (config as ResolvedConfig);
  const composition = new Composition(resolved, hooks);
  try {
    await composition.start();
    return composition;
  } catch (error) {
    await composition.stop();
    throw error;
  }
}

const HINTS_EVERY_MS = 60_000;
/** Between one reading and the next, however often the catalogs change; and after one that failed. */
const HINTS_PAUSE_MS = 1000;
const FENCE_REFRESH_MS = 1000;
const JOIN_FIRST_MS = 500;
const JOIN_MOST_MS = 15_000;

class Composition implements Understudy, AdminControl {
  readonly version = VERSION;
  /** As it is in force: a reload replaces it. */
  #config: ResolvedConfig;
  readonly #log: Log;
  readonly #clock: Clock;
  readonly #startedAt: Date;
  readonly #startedMs: number;
  readonly #stopping = new AbortController();
  /** Aborted where the session hints are to be read anew. */
  #hintsOutdated = new AbortController();
  readonly #capture: CaptureThread | undefined;
  readonly #recorder: Recorder | undefined;
  readonly #mirror: MirrorThread | undefined;
  readonly #reach: ReachThread | undefined;
  readonly #borders: BordersKept | undefined;
  readonly #proxyParts: ProxyParts;
  readonly #proxy: ProxyControl;
  readonly #copyLatency: CopyLatency;
  readonly #shadowThread: ShadowThread;
  readonly #shadow: ThreadShadow;
  readonly #coordinator: CutoverCoordinator;
  readonly #route: RouteKeeper;
  readonly #operations: Operations;
  readonly #autopilot: Autopilot;
  readonly #admin: AdminServer;
  readonly #reachability: Reachability;
  readonly metrics: Metrics;
  #port = 0;
  #fenceMet: Promise<unknown> | undefined;
  #stopped: Promise<void> | undefined;

  constructor(config: ResolvedConfig, hooks: UnderstudyHooks) {
    this.#config = config;
    const log = hooks.log ?? createLog(config.log.level);
    const clock = hooks.clock ?? systemClock;
    this.#log = log;
    this.#clock = clock;
    this.#recorder = hooks.recorder;
    this.#startedAt = clock.now();
    this.#startedMs = clock.monotonicMs();
    const parts = { config, log, clock };
    this.#reachability = new Reachability(clock);
    this.metrics = new Metrics(() => this.#metricsSource());
    this.#capture = config.capture.enabled ? new CaptureThread(parts) : undefined;
    const { workers } = config.proxy;
    this.#mirror = mirrorOf(parts, (rows) => this.#shadowThread.touched(rows));
    const { subsets, source, destination } = config;
    if (subsets.length > 0) {
      const reach = new ReachThread({ log, clock, subsets, source, destination });
      this.#reach = reach;
      this.#borders = new BordersKept({
        rules: subsets,
        log,
        clock,
        read: () => reach.borders(),
        onBoth: (errand) => onBoth(config, 'ties', errand),
      });
    }
    const capture = this.#capture;
    const probe = new CopyLatency(config, clock, (window) => this.#shadowThread.latency(window));
    this.#copyLatency = probe;
    const captured = probe.tap(hooks.recorder?.tap(capture?.tap ?? null) ?? capture?.tap ?? null);
    this.#proxyParts = (workers > 1 ? makeFleet : makeProxy)({
      ...parts,
      tap: this.#mirror === undefined ? captured : this.#mirror.tap(captured, config.capture.keys),
      onCapture: probe.receiver(capture === undefined ? undefined : (batch) => capture.receive(batch)),
      recorder: hooks.recorder,
      reaches: this.#reach,
      recording: hooks.recorder?.shared,
      onRecorded: (status) => hooks.recorder?.add(status),
      leader: () => this.#route.side,
      onFenceMet: () => this.#onFenceMet(),
      onCatalogsChanged: () => this.#hintsOutdated.abort(),
      onClientError: (sqlState) => this.metrics.countError(sqlState),
      onStalls: (waitsMs) => this.metrics.observeStalls(waitsMs),
    });
    this.#proxy = this.#proxyParts.proxy;
    this.#shadowThread = new ShadowThread({
      ...parts,
      afterSchemaBuilt: (tables) => this.#afterSchemaBuilt(tables),
      onPhase: (phase) => this.#onPhase(phase),
    });
    this.#shadow = new ThreadShadow(this.#shadowThread, clock);
    this.#coordinator = new CutoverCoordinator({
      source: config.source,
      destination: config.destination,
      subset: WHOLE_DATABASE,
      subsets: config.subsets,
      routesSubsets: this.#reach !== undefined,
      onRegistered: () => void this.#route.confirm(),
      migrationId: config.migration.id,
      traffic: this.#proxy,
      shadow: this.#shadow,
      log: log.child({ part: 'cutover' }),
      clock,
      settings: config.cutover,
      random: (bytes) => randomBytes(bytes).toString('hex'),
      inspect: (signal) => {
        const { method, format } = config.shadow;
        const wanted = { migrationId: config.migration.id, method, format };
        return inspectForCutover(config, wanted, signal);
      },
      ties: (signal) => subsetTies(config, signal),
      readFingerprint,
      ...(hooks.observe === undefined ? {} : { observe: hooks.observe }),
    });
    this.#route = new RouteKeeper({
      recover: (signal) => this.#coordinator.recover(signal),
      setRoute: (subset, route, unserved) => this.#proxy.setRoute(subset, route, unserved),
      setUnavailable: (subset, refusal) => this.#proxy.setUnavailable(subset, refusal),
      log: log.child({ part: 'route' }),
      clock,
    });
    this.#operations = new Operations({
      coordinator: this.#coordinator,
      shadow: this.#shadow,
      subsets: subsetIds(config.subsets),
      direction: (subset) => this.#direction(subset),
      parted: () => this.#parted(),
      requireRoute: () => this.#requireRoute(),
      retireShadow: () => this.#shadowThread.stop(),
      retireCapture: async () => {
        // Both keep tables in the schema that is about to go.
        await Promise.all([this.#autopilot.stop(), this.#capture?.stopKeeping()]);
      },
      onSettled: () => this.#route.refresh(),
      log: log.child({ part: 'operations' }),
    });
    this.#autopilot = makeAutopilot({
      config,
      log: log.child({ part: 'autopilot' }),
      clock,
      shadow: this.#shadow,
      operations: this.#operations,
      route: () => ({
        leader: this.#route.recovery?.route.side,
        finalized: this.#route.recovery?.finalized ?? false,
        subsets: (this.#route.recovery?.subsets ?? []).map(({ subset, route: { side } }) => ({
          subset,
          side,
        })),
      }),
    });
    this.#admin = new AdminServer(config.admin, this, log.child({ part: 'admin' }));
  }

  get port(): number {
    return this.#port;
  }

  get adminPort(): number {
    return this.#admin.port;
  }

  get adminUrl(): string {
    const { host } = this.#config.admin;
    return `http://${host.includes(':') ? `[${host}]` : host}:${this.adminPort}`;
  }

  async start(): Promise<void> {
    this.#capture?.start();
    this.#mirror?.start();
    this.#reach?.start();
    ({ port: this.#port } = await this.#proxy.start());
    await this.#admin.start();
    void this.#whenRouted();
    await this.#route.start();
  }

  /** What waits for the route: the shadow, and the session hints. */
  async #whenRouted(): Promise<void> {
    const { finalized } = await this.#route.known();
    if (this.#stopping.signal.aborted) return;
    if (!finalized && this.#config.shadow.enabled) {
      this.#copyLatency.start();
      this.#shadowThread.start();
    }
    void this.#refreshHints();
    if (!finalized) void this.#joinJournal();
    if (!finalized && this.#config.shadow.enabled && this.#config.capture.series) this.#autopilot.start();
  }

  /**
   * Makes this process known to others as a live proxy, whether or not it shadows: a cutover by another process must
   * not happen behind its back. The destination may be down for long; nothing else waits for this.
   */
  async #joinJournal(): Promise<void> {
    for (
      let delayMs = JOIN_FIRST_MS;
      !this.#stopping.signal.aborted;
      delayMs = Math.min(JOIN_MOST_MS, delayMs * 2)
    ) {
      try {
        await this.#reachJournal();
        return;
      } catch (error) {
        const { code, message } = asUnderstudyError(error, 'internal', 'joining the journal');
        this.#log.debug({ code, error: message }, 'not registered as a live proxy yet');
      }
      await this.#clock.sleep(delayMs, this.#stopping.signal).catch(() => undefined);
    }
  }

  async #reachJournal(): Promise<void> {
    // A journal that couldn't be read at the start is readable now.
    if (this.#route.recovery?.action === 'unreachable') await this.#route.refresh();
    await this.#coordinator.ensureJournal();
  }

  /** The destination has its tables and not one row yet: its guard goes up before the first. */
  async #afterSchemaBuilt(tables: readonly ShadowTable[]): Promise<void> {
    await this.#reachJournal();
    await this.#coordinator.installBarriers(tables);
  }

  /** Another process may have switched. A client that keeps running into the fence asks once a second. */
  #onFenceMet(): void {
    if (this.#fenceMet !== undefined) return;
    this.#fenceMet = this.#route
      .refresh()
      .then(() => this.#clock.sleep(FENCE_REFRESH_MS, this.#stopping.signal))
      .catch(() => undefined)
      .finally(() => (this.#fenceMet = undefined));
  }

  #onPhase(phase: ShadowPhase): void {
    this.#copyLatency.onPhase(phase);
    if (phase !== 'following') return;
    this.#shadow.tables().then(
      (tables) => this.#capture?.setTables(tables),
      () => undefined,
    );
  }

  /** Names of settings that sessions may hold unseen come from the catalogs, which change. */
  async #refreshHints(): Promise<void> {
    const { signal } = this.#stopping;
    while (!signal.aborted) {
      const leader = this.#route.recovery?.route.side ?? 'source';
      this.#capture?.setLeader(leader);
      this.#hintsOutdated = new AbortController();
      try {
        this.#proxyParts.setHints(await sessionHints(this.#config, leader));
      } catch (error) {
        this.#log.debug(
          { error: asUnderstudyError(error, 'internal', 'session hints').message },
          'no session hints',
        );
        this.#hintsOutdated.abort();
      }
      await this.#clock.sleep(HINTS_PAUSE_MS, signal).catch(() => undefined);
      const outdated = AbortSignal.any([signal, this.#hintsOutdated.signal]);
      await this.#clock.sleep(HINTS_EVERY_MS - HINTS_PAUSE_MS, outdated).catch(() => undefined);
    }
  }

  #routeOfAll(): Route {
    const ids = subsetIds(this.#config.subsets);
    return leadsWhole(ids.map((subset) => ({ route: this.#proxy.route(subset) })));
  }

  #parted(): boolean {
    const [first, ...others] = this.#route.recovery?.subsets ?? [];
    return others.some((each) => each.route.side !== first?.route.side);
  }

  #direction(subset: SubsetId | undefined): Direction {
    const { subsets = [], route } = this.#route.recovery ?? {};
    const [first] = subsets;
    if (subset === undefined && this.#parted()) {
      throw new UnderstudyError('request-invalid', 'the sides lead different subsets: which one?', {
        advice: `Name one, as in --subset ${first?.subset ?? ''}.`,
      });
    }
    const { side } = subsets.find((each) => each.subset === subset)?.route ?? route ?? { side: 'source' };
    return side === 'destination' ? 'reverse' : 'forward';
  }

  #requireRoute(): void {
    if (this.#route.recovery !== undefined) return;
    throw (
      this.#route.problem ??
      new UnderstudyError('route-unknown', 'it is not known yet which side leads', {
        advice: 'Wait until `understudy status` shows a route.',
      })
    );
  }

  async readiness(): Promise<Readiness> {
    if (this.#stopping.signal.aborted) return { ready: false, reason: 'stopping' };
    if (this.#route.recovery === undefined)
      return { ready: false, reason: this.#route.problem?.message ?? 'starting' };
    const { side } = this.#proxy.route(WHOLE_DATABASE);
    if (!(await this.#reachability.isReachable(side, this.#config[side])))
      return { ready: false, reason: `the ${side} can’t be reached` };
    return { ready: true };
  }

  async status(): Promise<StatusReport> {
    const known = this.#route.recovery !== undefined;
    const [ready, proxy, capture, shadow, cutover, borders] = await Promise.all([
      this.readiness(),
      this.#proxy.status(),
      this.#capture?.snapshot() ?? null,
      this.#shadow.status(),
      this.#cutoverStatus(),
      this.#borders?.latest(),
    ]);
    return {
      version: VERSION,
      pid: process.pid,
      startedAt: this.#startedAt.toISOString(),
      uptimeSeconds: (this.#clock.monotonicMs() - this.#startedMs) / 1000,
      migration: this.#config.migration.id,
      ready,
      route: known ? this.#routeOfAll() : null,
      source: endpointText(this.#config.source),
      destination: endpointText(this.#config.destination),
      proxy,
      capture,
      shadow,
      cutover,
      autopilot: this.#autopilot.status(),
      ...(borders === undefined ? {} : { borders }),
    };
  }

  async #metricsSource(): Promise<MetricsSource> {
    const [{ ready }, proxy, capture, shadow] = await Promise.all([
      this.readiness(),
      this.#proxy.status(),
      this.#capture?.snapshot() ?? null,
      this.#shadow.status(),
    ]);
    return { version: VERSION, ready, proxy, capture, shadow };
  }

  async #cutoverStatus(): Promise<CutoverStatus | null> {
    try {
      return await this.#coordinator.status();
    } catch (error) {
      this.#log.debug({ error: asUnderstudyError(error, 'internal', 'status').message }, 'no cutover status');
      return null;
    }
  }

  readonly operate: AdminControl['operate'] = (operation, options, emit) =>
    this.#operations.operate(operation, options, emit);

  reload(wanted: ResolvedConfig): ReloadReport {
    const { config, report } = takeOver(this.#config, wanted);
    // What can fail comes first: a certificate and a key that don't belong together.
    for (const side of ['source', 'destination'] as const) checkServerCertificates(side, wanted[side]);
    this.#proxyParts.reloadTls(config.listen);
    this.#config = config;
    this.#proxy.reconfigure(reloadableSettings(config.limits));
    return report;
  }

  stop(): Promise<void> {
    this.#stopped ??= this.#stop();
    return this.#stopped;
  }

  async #stop(): Promise<void> {
    this.#stopping.abort(new UnderstudyError('cancelled', 'stopping'));
    this.#route.stop();
    const ended = this.#autopilot.stop();
    // Together: an operation that insists on a server that is gone ends only by the coordinator's closing.
    await Promise.all([this.#operations.close(), this.#coordinator.close()]);
    await ended;
    await this.#proxy.stop({ drainTimeoutMs: this.#config.limits.stopTimeoutMs });
    await this.#proxyParts.closeVerifiers();
    this.#copyLatency.stop();
    await this.#shadowThread.stop();
    await this.#mirror?.stop();
    await this.#reach?.stop();
    await this.#capture?.stop();
    await this.#recorder?.close();
    await this.#admin.stop();
    this.#log.info({}, 'stopped');
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }
}
