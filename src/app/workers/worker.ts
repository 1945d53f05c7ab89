/**
 * A process that serves clients whose connections another process has accepted. It takes orders from there alone, and
 * ends as soon as nobody is there to give them: a proxy that can't be told to stop serving a side must not serve it.
 *
 * States: waiting for `init` → serving → stopped. Signals are the other process's to act on.
 */
import type net from 'node:net';
import { Socket } from 'node:net';
import { UnderstudyError } from '../../core/errors.js';
import { serveThreadCalls, ThreadCaller, type CallPort, type ThreadHandler } from '../../core/thread-call.js';
import { WHOLE_DATABASE } from '../../core/ports.js';
import type { Route } from '../../core/traffic-ports.js';
import { systemClock, type Clock } from '../../core/clock.js';
import type { Log } from '../../core/log.js';
import { TapRelay } from '../../capture/relay.js';
import type { Place } from '../../proxy/login/client-places.js';
import type { Door } from '../../proxy/proxy-interface.js';
import { makeProxy, type ProxyParts } from '../proxy-parts.js';
import { Recorder } from '../recording/recorder.js';
import type { Proxy } from '../../proxy/proxy-interface.js';
import {
  systemMonotonicMs,
  TAKE_PLACE,
  type InitArgument,
  type WorkerCalls,
  type WorkerEvent,
} from './messages.js';
import { shareOfReloadable } from './shares.js';

const ERRORS_EVERY_MS = 200;
/** Different SQLSTATEs counted between two reports. */
const ERROR_STATES_MAX = 1000;
const FENCE_EVERY_MS = 200;

const port: CallPort = {
  postMessage: (message) => {
    if (process.connected) process.send?.(message, undefined, undefined, () => undefined);
  },
  on: (event, listener) => process.on(event, listener),
};
const tell = (event: WorkerEvent): void => port.postMessage(event);

class RelayedLog implements Log {
  readonly #bound: Readonly<Record<string, unknown>>;

  constructor(bound: Readonly<Record<string, unknown>>) {
    this.#bound = bound;
  }

  #tell(level: 'debug' | 'info' | 'warn' | 'error', fields: object, message: string): void {
    tell({ kind: 'log', level, fields: { ...this.#bound, ...fields }, message });
  }

  debug(fields: object, message: string): void {
    this.#tell('debug', fields, message);
  }

  info(fields: object, message: string): void {
    this.#tell('info', fields, message);
  }

  warn(fields: object, message: string): void {
    this.#tell('warn', fields, message);
  }

  error(fields: object, message: string): void {
    this.#tell('error', fields, message);
  }

  child(fields: Readonly<Record<string, unknown>>): Log {
    return new RelayedLog({ ...this.#bound, ...fields });
  }
}

/** Sums up what is too frequent to be told one by one. */
class ErrorCounts {
  #counts = new Map<string, number>();

  constructor() {
    setInterval(() => this.flush(), ERRORS_EVERY_MS).unref();
  }

  count(sqlState: string): void {
    if (this.#counts.size >= ERROR_STATES_MAX) this.flush();
    this.#counts.set(sqlState, (this.#counts.get(sqlState) ?? 0) + 1);
  }

  flush(): void {
    if (this.#counts.size === 0) return;
    tell({ kind: 'client-errors', counts: [...this.#counts] });
    this.#counts = new Map();
  }
}

class Worker {
  readonly #init: InitArgument;
  readonly #parts: ProxyParts<Proxy>;
  readonly #errors = new ErrorCounts();
  readonly #relay: TapRelay | undefined;
  readonly #recorder: Recorder | undefined;
  readonly #clock: Clock;
  #route: Route | null;
  #waitsMs: readonly number[] = [];
  #fenceToldMs = -Infinity;

  /** Throws `config-invalid`. */
  static async create(init: InitArgument): Promise<Worker> {
    const offsetMs = systemMonotonicMs() - systemClock.monotonicMs() + init.clockOffsetMs;
    const clock: Clock = { ...systemClock, monotonicMs: () => performance.now() + offsetMs };
    const { recording } = init;
    if (recording === null) return new Worker(init, clock, undefined);
    const log = new RelayedLog({ worker: process.pid, part: 'recording' });
    try {
      return new Worker(
        init,
        clock,
        await Recorder.join(recording, { log, nowMs: () => clock.monotonicMs() }),
      );
    } catch (error) {
      // A recording that can't be gone on with costs the recording, never the traffic.
      log.error(
        { reason: error instanceof Error ? error.message : String(error) },
        'this process records nothing',
      );
      return new Worker(init, clock, undefined);
    }
  }

  private constructor(init: InitArgument, clock: Clock, recorder: Recorder | undefined) {
    this.#init = init;
    const { config } = init;
    this.#clock = clock;
    this.#recorder = recorder;
    this.#route = init.route;
    const { ringBytes, textBytesMax } = config.capture;
    if (init.capture) {
      this.#relay = new TapRelay({
        ringBytes: ringBytes / init.workers,
        textBytesMax,
        send: (batch, sent) => {
          const message: WorkerEvent = { kind: 'capture', batch };
          if (process.connected) process.send?.(message, undefined, undefined, sent);
        },
      });
    }
    const calls = new ThreadCaller(port);
    const captured = this.#relay?.tap ?? null;
    this.#parts = makeProxy({
      config,
      tap: recorder?.tap(captured) ?? captured,
      recorder,
      log: new RelayedLog({ worker: process.pid }),
      clock: this.#clock,
      leader: () => this.#route?.side,
      onFenceMet: () => this.#fenceMet(),
      onClientError: (sqlState) => this.#errors.count(sqlState),
      onStalls: (waitsMs) => {
        this.#waitsMs = waitsMs;
        tell({ kind: 'stalls', waitsMs });
      },
      workers: init.workers,
      fellowship: {
        door: (onConnection) => new HandedDoor(onConnection, config.listen),
        places: {
          take: (place) => calls.call(TAKE_PLACE, placeOf(place)),
          free: (place) => tell({ kind: 'place-freed', ...placeOf(place) }),
        },
        firstSessionId: init.firstSessionId,
        onCatalogsChanged: () => tell({ kind: 'catalogs-changed' }),
        onForeignCancel: (processId, secret) => tell({ kind: 'foreign-cancel', processId, secret }),
      },
    });
  }

  async start(): Promise<void> {
    const { hints, route, unavailable, settings, workers } = this.#init;
    const { proxy, setHints } = this.#parts;
    if (hints !== null) setHints(hints);
    proxy.reconfigure(shareOfReloadable(settings, workers));
    if (route !== null) proxy.setRoute(WHOLE_DATABASE, route);
    if (unavailable !== null) proxy.setUnavailable(WHOLE_DATABASE, unavailable);
    await proxy.start();
  }

  #fenceMet(): void {
    const nowMs = this.#clock.monotonicMs();
    if (nowMs - this.#fenceToldMs < FENCE_EVERY_MS) return;
    this.#fenceToldMs = nowMs;
    tell({ kind: 'fence-met' });
  }

  readonly calls: {
    readonly [M in Exclude<keyof WorkerCalls, 'init'>]: (
      argument: WorkerCalls[M],
      context: { readonly signal: AbortSignal },
    ) => unknown;
  } = {
    prepare: ({ to }, { signal }) => this.#parts.proxy.prepare(WHOLE_DATABASE, to, signal),
    hold: ({ to, options }, { signal }) => this.#parts.proxy.hold(WHOLE_DATABASE, to, { ...options, signal }),
    switchTo: async (route) => {
      const report = await this.#parts.proxy.switchTo(WHOLE_DATABASE, route);
      this.#route = route;
      return report;
    },
    release: () => {
      this.#waitsMs = [];
      this.#parts.proxy.release(WHOLE_DATABASE);
      return this.#waitsMs;
    },
    failHeld: ({ sqlState, message }) => this.#parts.proxy.failHeld(WHOLE_DATABASE, sqlState, message),
    discardWarm: () => this.#parts.proxy.discardWarm(WHOLE_DATABASE),
    setRoute: (route) => {
      this.#route = route;
      this.#parts.proxy.setRoute(WHOLE_DATABASE, route);
    },
    setUnavailable: (refusal) => this.#parts.proxy.setUnavailable(WHOLE_DATABASE, refusal),
    setTls: (listen) => this.#parts.reloadTls(listen),
    setHints: (hints) => this.#parts.setHints(hints),
    reconfigure: (settings) => this.#parts.proxy.reconfigure(shareOfReloadable(settings, this.#init.workers)),
    catalogsChanged: () => this.#parts.proxy.catalogsChanged(),
    cancel: ({ processId, secret }) => this.#parts.proxy.cancel(processId, Buffer.from(secret)),
    status: () => this.#parts.proxy.status(),
    ping: () => null,
    stop: async (options) => {
      await this.#parts.proxy.stop(options);
      await this.#parts.closeVerifiers();
      this.#errors.flush();
      this.#relay?.close();
      const recorded = await this.#recorder?.close();
      if (recorded !== undefined) tell({ kind: 'recorded', status: recorded });
    },
  };
}

function placeOf({ user, database }: Place): Place {
  return { user, database };
}

/** Connections come with messages. */
class HandedDoor implements Door {
  readonly address: Door['address'];
  readonly #onConnection: (socket: net.Socket) => void;
  readonly #open = new Set<net.Socket>();
  #onEnded: () => void = () => undefined;

  constructor(
    onConnection: (socket: net.Socket) => void,
    address: { readonly host: string; readonly port: number },
  ) {
    this.#onConnection = onConnection;
    this.address = address;
  }

  readonly #take = (_message: unknown, socket: unknown): void => {
    if (!(socket instanceof Socket)) return;
    this.#open.add(socket);
    socket.once('close', () => {
      this.#open.delete(socket);
      tell({ kind: 'ended' });
      if (this.#open.size === 0) this.#onEnded();
    });
    this.#onConnection(socket);
  };

  start(): Promise<void> {
    process.on('message', this.#take);
    return Promise.resolve();
  }

  async stop(): Promise<void> {
    // What is under way still comes in, and is told that it is too late.
    if (this.#open.size === 0) return;
    await new Promise<void>((resolve) => (this.#onEnded = resolve));
  }
}

let worker: Worker | undefined;

function started(): Worker {
  if (worker === undefined) throw new UnderstudyError('internal', 'a proxy worker was not told what to do');
  return worker;
}

const METHODS: readonly Exclude<keyof WorkerCalls, 'init'>[] = [
  'prepare',
  'hold',
  'switchTo',
  'release',
  'failHeld',
  'discardWarm',
  'setRoute',
  'setUnavailable',
  'setTls',
  'setHints',
  'reconfigure',
  'catalogsChanged',
  'cancel',
  'status',
  'ping',
  'stop',
];

const handlers: Record<string, ThreadHandler> = {
  init: async (argument: InitArgument) => {
    worker = await Worker.create(argument);
    await worker.start();
  },
};
for (const method of METHODS) {
  handlers[method] = (argument, context) => started().calls[method](argument, context);
}

// A terminal and a service manager tell all processes at once; what they are to do is said by the one in charge.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => undefined);
process.once('disconnect', () => process.exit(0));
serveThreadCalls(port, handlers);
