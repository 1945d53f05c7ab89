/**
 * Several processes that serve clients behind one port, with one gate across them.
 *
 * This process accepts connections and hands each to the worker with the fewest; it is in charge of the route and of
 * the gate. A worker has a whole proxy: handshake, sessions, pools, a gate of its own.
 *
 * States of the gate: open → closing → closed → open. suspended (refusing) is kept by the workers.
 *
 * A cutover:
 * 1. prepare: every worker prepares its sessions.
 * 2. hold: every worker closes its gate. Resolves once all have acknowledged; the fence comes after that. One that
 *    fails, or does not answer within the hold's own budget, undoes the hold on all of them: nothing was committed.
 * 3. switchTo: every worker moves its sessions. One that fails or does not answer is killed, and only when the system
 *    has confirmed that it is gone does the switch go on: after the commit nothing may be read from the old side.
 * 4. release: all have switched or are gone; every worker opens its gate.
 *
 * Invariants:
 * - Whatever changes which side is served (setRoute, setUnavailable, switchTo, release) is acknowledged by a worker, or
 *   the worker is killed.
 * - A worker is given clients only while the gate is open and after it has been told the present route. So one that
 *   starts in the middle of a cutover has no sessions, and takes no part in it.
 * - A client's place (limits on clients in all, by user, by database) is counted here, for all workers together.
 *
 * Failures: a worker that dies takes its clients' connections with it; another is started with the present route after
 * a delay that grows. To an operation under way it is a worker without sessions. While none serves, connections wait,
 * within the bounds of the handshake. Without this process the workers end at once.
 */
import type net from 'node:net';
import { UnderstudyError, asUnderstudyError } from '../../core/errors.js';
import { WHOLE_DATABASE, type Side, type SubsetId } from '../../core/ports.js';
import type {
  HoldOptions,
  HoldReport,
  PrepareReport,
  Route,
  StallReport,
  SwitchReport,
} from '../../core/traffic-ports.js';
import { StateCell } from '../../core/state-machine.js';
import type { CaptureBatch } from '../../capture/relay.js';
import { ClientPlaces } from '../../proxy/login/client-places.js';
import { Listener } from '../../proxy/listener.js';
import type { ProxyControl, ProxyState, ProxyStatus, WorkerStatus } from '../../proxy/proxy-interface.js';
import { STARTING } from '../../proxy/refusals.js';
import { Router } from '../../proxy/router.js';
import type { ProxySettings, ReloadableSettings } from '../../proxy/settings.js';
import { stallReport } from '../../proxy/stall.js';
import type { SessionHints } from '../../shadow/postgres/preflight-sessions.js';
import type { ResolvedConfig } from '../config.js';
import { listenTls, proxySettings, type ProxyParts, type ProxyPartsDeps } from '../proxy-parts.js';
import type { RecorderStatus, SharedRecording } from '../recording/recorder.js';
import { EntranceHall } from './entrance-hall.js';
import { addCounts, mergeHold, mergePrepare, mergeStatus, mergeSwitch, NO_COUNTS } from './merge.js';
import { systemMonotonicMs, type Refusal, type WorkerEvent } from './messages.js';
import { HEARING_MS, Orders, START_TIMEOUT_MS } from './orders.js';
import { WorkerLink } from './worker-link.js';

export interface FleetDeps extends ProxyPartsDeps {
  readonly onCapture: ((batch: CaptureBatch) => void) | undefined;
  readonly recording: SharedRecording | undefined;
  /** A worker has written the last of what it recorded. */
  readonly onRecorded: (status: RecorderStatus) => void;
}

const STATUS_TIMEOUT_MS = 1000;
const RESTART_FIRST_MS = 200;
const RESTART_MOST_MS = 30_000;
/** One that lived that long starts again without the delay its forerunners earned. */
const HEALTHY_AFTER_MS = 60_000;
/** Sessions of one worker are numbered apart from those of all others, before and after. */
const SESSION_IDS = 1_000_000_000;

/** As `makeProxy`, in processes of their own. Throws `config-invalid`. */
export function makeFleet(deps: FleetDeps): ProxyParts {
  const fleet = new Fleet(deps);
  return {
    proxy: fleet,
    closeVerifiers: () => Promise.resolve(),
    setHints: (hints) => fleet.setHints(hints),
    reloadTls: (listen) => fleet.reloadTls(listen),
  };
}

class Fleet implements ProxyControl {
  readonly #deps: FleetDeps;
  #config: ResolvedConfig;
  readonly #settings: ProxySettings;
  #changed: Partial<ReloadableSettings> = {};
  readonly #links = new Set<WorkerLink>();
  readonly #orders: Orders;
  readonly #hall: EntranceHall;
  readonly #listener: Listener;
  readonly #router = new Router();
  readonly #places = new ClientPlaces();
  readonly #stopping = new AbortController();
  #hints: SessionHints | null = null;
  #unavailable: Refusal | null = null;
  #past = NO_COUNTS;
  #incarnations = 0;
  #crashes = 0;
  readonly #gate = new StateCell<'open' | 'closing' | 'closed'>(
    'gate of all workers',
    { open: ['closing'], closing: ['closed', 'open'], closed: ['open'] },
    'open',
  );
  readonly #state = new StateCell<ProxyState>(
    'proxy',
    { new: ['listening', 'stopped'], listening: ['stopping'], stopping: ['stopped'], stopped: [] },
    'new',
  );

  constructor(deps: FleetDeps) {
    this.#deps = deps;
    this.#config = deps.config;
    // Whatever is wrong with it is found here rather than in each of them.
    this.#settings = { ...proxySettings(deps.config) };
    this.#orders = new Orders(this.#links, deps);
    this.#hall = new EntranceHall({
      settings: this.#settings,
      links: () => this.#links,
    });
    this.#listener = new Listener((socket: net.Socket) => this.#hall.enter(socket), deps.log, {
      untouched: true,
    });
  }

  async start(): Promise<{ readonly host: string; readonly port: number }> {
    try {
      await Promise.all(Array.from({ length: this.#config.proxy.workers }, () => this.#spawn()));
      await this.#listener.start(this.#settings);
    } catch (error) {
      this.#stopping.abort();
      await this.#killAll();
      throw error;
    }
    this.#state.move('listening');
    return this.#listener.address ?? this.#settings;
  }

  /** Resolves once it can be given clients. */
  async #spawn(): Promise<void> {
    const { clock, log } = this.#deps;
    const bornMs = clock.monotonicMs();
    const link = new WorkerLink({
      onEvent: (event, from) => this.#onEvent(event, from),
      takePlace: (place, from) => {
        const full = this.#places.take(place, this.#settings);
        if (full === null) from.places.push(place);
        return full;
      },
    });
    this.#links.add(link);
    void link.gone.then((how) => this.#lost(link, how, clock.monotonicMs() - bornMs));
    await link.call(
      'init',
      {
        config: this.#config,
        workers: this.#config.proxy.workers,
        firstSessionId: this.#incarnations++ * SESSION_IDS + 1,
        capture: this.#deps.onCapture !== undefined,
        recording: this.#deps.recording ?? null,
        hints: this.#hints,
        route: this.#router.get(WHOLE_DATABASE) ?? null,
        unavailable: this.#unavailable,
        settings: this.#changed,
        clockOffsetMs: clock.monotonicMs() - systemMonotonicMs(),
      },
      START_TIMEOUT_MS,
    );
    link.standBy();
    log.debug({ worker: link.pid }, 'a proxy worker has started');
    if (this.#gate.is('open')) this.#admit(link);
  }

  /** What has changed while it was starting, or stood by, it hears before its first client comes. */
  #admit(link: WorkerLink): void {
    const route = this.#router.get(WHOLE_DATABASE);
    if (route !== undefined) void this.#orders.order(link, 'setRoute', route, START_TIMEOUT_MS);
    if (this.#unavailable !== null)
      void this.#orders.order(link, 'setUnavailable', this.#unavailable, START_TIMEOUT_MS);
    link.serve();
    this.#hall.served();
  }

  #lost(link: WorkerLink, how: string, livedMs: number): void {
    const { log, clock } = this.#deps;
    this.#links.delete(link);
    for (const place of link.places.splice(0)) this.#places.free(place);
    if (link.lastStatus !== undefined) this.#past = addCounts(this.#past, link.lastStatus);
    if (this.#stopping.signal.aborted) return;
    this.#crashes = livedMs > HEALTHY_AFTER_MS ? 1 : this.#crashes + 1;
    const delayMs = Math.min(RESTART_MOST_MS, RESTART_FIRST_MS * 2 ** Math.min(20, this.#crashes - 1));
    log.error(
      { worker: link.pid, how, clients: link.connections, restartInMs: delayMs },
      'a proxy worker ended unexpectedly; the connections of its clients are lost',
    );
    clock
      .sleep(delayMs, this.#stopping.signal)
      .then(() => this.#spawn())
      .catch((error: unknown) => {
        if (this.#stopping.signal.aborted) return;
        log.error({ error: String(error) }, 'a proxy worker did not start');
        for (const other of this.#links) if (other.state === 'starting') other.kill();
      });
  }

  #onEvent(event: WorkerEvent, from: WorkerLink): void {
    const { onFenceMet, onClientError, onStalls, onCapture } = this.#deps;
    switch (event.kind) {
      case 'place-freed':
        this.#placeFreed(event, from);
        return;
      case 'foreign-cancel':
        for (const link of this.#links) {
          if (link !== from) this.#orders.tell(link, 'cancel', event);
        }
        return;
      case 'catalogs-changed':
        for (const link of this.#links) {
          if (link !== from) this.#orders.tell(link, 'catalogsChanged', null);
        }
        this.#deps.onCatalogsChanged?.();
        return;
      case 'fence-met':
        onFenceMet();
        return;
      case 'client-errors':
        for (const [sqlState, count] of event.counts) {
          for (let one = 0; one < count; one++) onClientError(sqlState);
        }
        return;
      case 'stalls':
        onStalls(event.waitsMs);
        return;
      case 'capture':
        onCapture?.(event.batch);
        return;
      case 'recorded':
        this.#deps.onRecorded(event.status);
        return;
      case 'log':
        this.#deps.log[event.level](event.fields, event.message);
        return;
      case 'ended':
        return;
      default:
        return;
    }
  }

  #placeFreed(
    { user, database }: { readonly user: string; readonly database: string },
    from: WorkerLink,
  ): void {
    const at = from.places.findIndex((place) => place.user === user && place.database === database);
    const last = from.places.pop();
    if (at === -1 || last === undefined) return;
    if (at < from.places.length) from.places[at] = last;
    this.#places.free({ user, database });
  }

  async stop({ drainTimeoutMs }: { readonly drainTimeoutMs: number }): Promise<void> {
    if (this.#state.is('stopping', 'stopped')) return;
    if (this.#state.is('new')) {
      this.#state.move('stopped');
      return;
    }
    this.#state.move('stopping');
    this.#stopping.abort(new UnderstudyError('cancelled', 'the proxy is stopping'));
    const closed = this.#listener.stop();
    // Who was in the kernel's queue is told by a worker that it is too late.
    await this.#listener.shut();
    this.#hall.close();
    await Promise.all(
      [...this.#links].map(async (link) => {
        await link
          .call('stop', { drainTimeoutMs }, drainTimeoutMs + this.#settings.connectTimeoutMs + HEARING_MS)
          .catch((error: unknown) => {
            this.#deps.log.warn({ worker: link.pid, error: String(error) }, 'a proxy worker was cut off');
            link.kill();
          });
        await this.#statusOf(link);
        link.dismiss();
        const over = new AbortController();
        const timeUp = this.#deps.clock.sleep(HEARING_MS, over.signal).catch(() => undefined);
        await Promise.race([link.gone, timeUp]);
        over.abort();
        link.kill();
      }),
    );
    await this.#killAll();
    await closed;
    this.#state.move('stopped');
  }

  async #killAll(): Promise<void> {
    const links = [...this.#links];
    for (const link of links) link.kill();
    await Promise.all(links.map((link) => link.gone));
  }

  setHints(hints: SessionHints): void {
    this.#hints = hints;
    for (const link of this.#links) this.#orders.tell(link, 'setHints', hints);
  }

  reloadTls(listen: ResolvedConfig['listen']): void {
    listenTls(listen);
    this.#config = { ...this.#config, listen };
    for (const link of this.#links) this.#orders.tell(link, 'setTls', listen);
  }

  reconfigure(settings: Partial<ReloadableSettings>): void {
    this.#changed = { ...this.#changed, ...settings };
    Object.assign(this.#settings, settings);
    for (const link of this.#links) this.#orders.tell(link, 'reconfigure', settings);
  }

  route(subset: SubsetId): Route {
    return this.#router.route(subset);
  }

  setRoute(subset: SubsetId, route: Route): void {
    if (!this.#gate.is('open')) throw this.#busy();
    this.#router.set(subset, route);
    this.#orders.orderAll('setRoute', route);
  }

  setUnavailable(subset: SubsetId, refusal: Refusal | null): void {
    onlyWhole(subset);
    if (refusal !== null && !this.#gate.is('open')) throw this.#busy();
    this.#unavailable = refusal;
    this.#orders.orderAll('setUnavailable', refusal);
  }

  #busy(): UnderstudyError {
    return new UnderstudyError('busy', `the gate is ${this.#gate.current}`);
  }

  async prepare(subset: SubsetId, to: Side, signal: AbortSignal): Promise<PrepareReport> {
    onlyWhole(subset);
    if (!this.#gate.is('open')) throw this.#busy();
    const { prepareTimeoutMs, connectTimeoutMs } = this.#settings;
    // Sessions are asked few at a time, so that many of them take long.
    const timeoutMs = 10 * (prepareTimeoutMs + connectTimeoutMs) + HEARING_MS;
    return mergePrepare(
      await this.#orders.together<PrepareReport>((link, stop) =>
        link.call('prepare', { to }, timeoutMs, AbortSignal.any([signal, stop])),
      ),
    );
  }

  async hold(subset: SubsetId, to: Side, options: HoldOptions): Promise<HoldReport> {
    onlyWhole(subset);
    if (!this.#gate.is('open')) throw this.#busy();
    const { signal, ...rest } = options;
    const { askTimeoutMs, cancelTimeoutMs } = this.#settings;
    const timeoutMs = rest.drainTimeoutMs + 2 * cancelTimeoutMs + 2 * askTimeoutMs + HEARING_MS;
    this.#gate.move('closing');
    try {
      const reports = await this.#orders.together<HoldReport>((link, stop) =>
        link.call('hold', { to, options: rest }, timeoutMs, AbortSignal.any([signal, stop])),
      );
      signal.throwIfAborted();
      this.#gate.move('closed');
      return mergeHold(reports);
    } catch (error) {
      await this.#open();
      throw asUnderstudyError(error, 'internal', 'holding the sessions');
    }
  }

  async switchTo(subset: SubsetId, route: Route): Promise<SwitchReport> {
    if (!this.#gate.is('closed')) throw this.#busy();
    const { switchTimeoutMs } = this.#settings;
    const reports = await Promise.all(
      this.#orders.serving().map(async (link) => {
        const clients = link.places.length;
        const report = await this.#orders.order<SwitchReport>(
          link,
          'switchTo',
          route,
          3 * switchTimeoutMs + HEARING_MS,
        );
        return report ?? { moved: 0, closed: clients };
      }),
    );
    this.#router.set(subset, route);
    return mergeSwitch(reports);
  }

  async release(subset: SubsetId): Promise<StallReport> {
    onlyWhole(subset);
    return stallReport(this.#gate.is('closed') ? await this.#open() : []);
  }

  async #open(): Promise<number[]> {
    const { switchTimeoutMs } = this.#settings;
    const waits = await Promise.all(
      this.#orders
        .serving()
        .map((link) =>
          this.#orders.order<readonly number[]>(link, 'release', null, switchTimeoutMs + HEARING_MS),
        ),
    );
    this.#gate.move('open');
    for (const link of this.#links) if (link.state === 'standing-by') this.#admit(link);
    return waits.flatMap((some) => some ?? []);
  }

  failHeld(subset: SubsetId, sqlState: string, message: string): void {
    onlyWhole(subset);
    for (const link of this.#orders.serving()) this.#orders.tell(link, 'failHeld', { sqlState, message });
  }

  discardWarm(subset: SubsetId): void {
    onlyWhole(subset);
    for (const link of this.#orders.serving()) this.#orders.tell(link, 'discardWarm', null);
  }

  async status(): Promise<ProxyStatus> {
    const links = [...this.#links].filter((link) => link.state !== 'starting');
    await Promise.all(links.map((link) => this.#statusOf(link)));
    const workers: readonly WorkerStatus[] = [...this.#links].map((link) => ({
      pid: link.pid,
      state: link.silent ? 'silent' : workerState(link),
      connections: link.connections,
    }));
    const { host, port } = this.#listener.address ?? this.#settings;
    return mergeStatus(
      links.filter((link) => this.#links.has(link)).flatMap((link) => link.lastStatus ?? []),
      {
        state: this.#state.current,
        host,
        port,
        route: this.#router.get(WHOLE_DATABASE) ?? null,
        unavailable: this.#refusal?.message ?? null,
        gate: this.#gate.is('open') && this.#refusal !== null ? 'suspended' : this.#gate.current,
        waiting: this.#hall.waiting,
        past: { ...this.#past, refused: this.#past.refused + this.#hall.refused },
        workers,
      },
    );
  }

  get #refusal(): Refusal | null {
    return this.#router.get(WHOLE_DATABASE) === undefined
      ? (this.#unavailable ?? STARTING)
      : this.#unavailable;
  }

  async #statusOf(link: WorkerLink): Promise<void> {
    try {
      link.lastStatus = await link.call<ProxyStatus>('status', null, STATUS_TIMEOUT_MS);
      link.silent = false;
    } catch {
      link.silent = true;
    }
  }
}

function workerState(link: WorkerLink): Exclude<WorkerStatus['state'], 'silent'> {
  const { state } = link;
  return state === 'gone' ? 'standing-by' : state;
}

/** Several proxies and several subsets don't go together: the configuration refuses that. */
function onlyWhole(subset: SubsetId): void {
  if (subset !== WHOLE_DATABASE) throw new UnderstudyError('internal', `there is no subset ${subset}`);
}
