/**
 * The load: clients of two drivers that keep a steady pace, and everything a person would ask them afterwards.
 *
 * - Closed loop with pacing: each client starts a transaction at its period, and skips periods it could not keep.
 *   After a stall there is no burst that would hide it.
 * - Every error is a failed statement. None is retried, none is expected.
 * - A client that lost its connection is out for good, and is counted as failed.
 * - Session state is set once, when the client connects, and only ever read again ({@link Load.checkSessions}).
 *
 * States: running → stopping (each client finishes its transaction) → stopped.
 */
import { LatencyRecord, type LatencyFigures } from './latency.js';
import {
  openPgSession,
  openPostgresSession,
  type DriverName,
  type LoadSession,
  type SessionOptions,
} from './load-session.js';
import { pickTransaction, type ClientContext } from './load-transactions.js';
import { shopSize } from './shop-data.js';
import { SHOP_CHANNEL } from './shop-schema.js';
import { WriteLog, type WriteLogSnapshot } from './write-log.js';

export interface LoadOptions {
  /** Connection string of the shop through the proxy, as the shop's role. */
  readonly url: string;
  /** As given to `createShop`. */
  readonly scale: number;
  readonly pgClients: number;
  readonly postgresClients: number;
  /** Connected, with session state, and otherwise silent until asked. */
  readonly idleClients: number;
  /** Transactions a second of all clients together. */
  readonly paceTps: number;
  /** The same seed gives each client the same choices, though not the same order among clients. */
  readonly seed: number;
}

export interface LoadSnapshot {
  readonly seconds: number;
  readonly connections: number;
  readonly transactions: number;
  readonly statements: number;
  readonly failed: number;
  /** The first few failures, as SQLSTATE and message. */
  readonly failures: readonly string[];
  /** Transactions completed in each whole second since the start. */
  readonly perSecond: readonly number[];
  readonly notifications: {
    readonly sent: number;
    readonly received: number;
    readonly missing: number;
    readonly repeated: number;
  };
}

export interface WindowFigures extends LatencyFigures {
  /** The longest time in which not one statement of any client was answered. */
  readonly silenceMs: number;
}

export interface SessionCheck {
  readonly sessions: number;
  /** server_version → how many of the sessions it answered. */
  readonly versions: Readonly<Record<string, number>>;
  /** One line for each session whose state is not what it set. */
  readonly faults: readonly string[];
}

export interface LoadResult {
  readonly snapshot: LoadSnapshot;
  readonly latency: LatencyFigures;
  readonly writes: WriteLogSnapshot;
}

const FAILURES_LISTED = 10;
const NOTIFICATION_WAIT_MS = 3_000;
const TIME_ZONES = ['Asia/Tokyo', 'America/New_York', 'Europe/Berlin', 'Australia/Sydney'];

type State = 'running' | 'stopping' | 'stopped';

interface Client {
  readonly name: string;
  readonly index: number;
  readonly session: LoadSession;
  readonly settings: Readonly<Record<string, string>>;
  /** A check waiting for the client to be between two transactions. */
  check: ((outcome: { version: string; faults: string[] }) => void) | undefined;
  lost: boolean;
}

export class Load {
  readonly #options: LoadOptions;
  readonly #writes = new WriteLog();
  readonly #startedAt = performance.now();
  readonly #latency = new LatencyRecord();
  readonly #clients: Client[] = [];
  readonly #loops: Promise<void>[] = [];
  readonly #perSecond: number[] = [];
  readonly #failures: string[] = [];
  readonly #notified = { sent: 0, acknowledged: new Set<number>(), received: new Map<number, number>() };
  #listener: LoadSession | undefined;
  #window: { latency: LatencyRecord; silenceMs: number } | undefined;
  #lastAnswerAt = performance.now();
  #state: State = 'running';
  #transactions = 0;
  #statements = 0;
  #failed = 0;

  private constructor(options: LoadOptions) {
    this.#options = options;
  }

  /** Connects every client, then sets them all off. Rejects where one can't connect. */
  static async start(options: LoadOptions): Promise<Load> {
    const load = new Load(options);
    try {
      await load.#listen();
      const { pgClients, postgresClients, idleClients } = options;
      for (let index = 0; index < pgClients + postgresClients + idleClients; index++) {
        const driver = index < pgClients || index >= pgClients + postgresClients ? 'pg' : 'postgres';
        load.#clients.push(await load.#connect(index, driver));
      }
    } catch (error) {
      await load.#close();
      throw error;
    }
    const working = workingClients(options);
    for (const client of load.#clients) {
      load.#loops.push(client.index < working ? load.#work(client, working) : load.#idle(client));
    }
    return load;
  }

  snapshot(): LoadSnapshot {
    const { sent, acknowledged, received } = this.#notified;
    let missing = 0;
    for (const n of acknowledged) if (!received.has(n)) missing += 1;
    let repeated = 0;
    for (const count of received.values()) repeated += count - 1;
    const seconds = (performance.now() - this.#startedAt) / 1000;
    return {
      seconds,
      connections: this.#clients.length + 1,
      transactions: this.#transactions,
      statements: this.#statements,
      failed: this.#failed,
      failures: [...this.#failures],
      perSecond: Array.from({ length: Math.floor(seconds) }, (_, second) => this.#perSecond[second] ?? 0),
      notifications: { sent, received: received.size, missing, repeated },
    };
  }

  /** From here until {@link closeWindow} latencies are also recorded apart: the time around a switch. */
  openWindow(): void {
    this.#window = { latency: new LatencyRecord(), silenceMs: 0 };
  }

  closeWindow(): WindowFigures {
    this.#noteSilence(performance.now());
    const window = this.#window ?? { latency: new LatencyRecord(), silenceMs: 0 };
    this.#window = undefined;
    return { ...window.latency.figures(), silenceMs: window.silenceMs };
  }

  /** Asks every session, between two of its transactions, for its server's version and its own settings. */
  async checkSessions(): Promise<SessionCheck> {
    const asked = this.#clients.filter((client) => !client.lost);
    const outcomes = await Promise.all(
      asked.map(
        (client) => new Promise<{ version: string; faults: string[] }>((resolve) => (client.check = resolve)),
      ),
    );
    const versions: Record<string, number> = {};
    for (const { version } of outcomes) versions[version] = (versions[version] ?? 0) + 1;
    const lost = this.#clients.filter((client) => client.lost).map(({ name }) => `${name}: connection lost`);
    return {
      sessions: this.#clients.length,
      versions,
      faults: [...outcomes.flatMap(({ faults }) => faults), ...lost],
    };
  }

  /** Lets each client finish, waits for notifications under way, closes the connections. */
  async stop(): Promise<LoadResult> {
    this.#state = 'stopping';
    await Promise.all(this.#loops);
    const deadline = performance.now() + NOTIFICATION_WAIT_MS;
    while (this.snapshot().notifications.missing > 0 && performance.now() < deadline) await pause(20);
    const snapshot = this.snapshot();
    this.#state = 'stopped';
    await this.#close();
    return { snapshot, latency: this.#latency.figures(), writes: this.#writes.snapshot() };
  }

  async #close(): Promise<void> {
    await this.#listener?.close();
    await Promise.all(this.#clients.map(({ session }) => session.close()));
  }

  async #listen(): Promise<void> {
    this.#listener = await openPgSession({
      url: this.#options.url,
      applicationName: 'shop listener',
      onLost: (reason) => this.#fail(`listener: ${reason}`),
      onNotification: (_channel, payload) => {
        const n = Number(payload);
        this.#notified.received.set(n, (this.#notified.received.get(n) ?? 0) + 1);
      },
    });
    await this.#listener.simple(`LISTEN ${SHOP_CHANNEL}`);
  }

  async #connect(index: number, driver: DriverName): Promise<Client> {
    const name = `shop client ${index} (${driver})`;
    const options: SessionOptions = {
      url: this.#options.url,
      applicationName: name,
      onLost: (reason) => {
        if (this.#state === 'stopped') return;
        client.lost = true;
        this.#fail(`${name}: ${reason}`);
      },
    };
    const session = this.#timed(
      driver === 'pg' ? await openPgSession(options) : await openPostgresSession(options),
    );
    const settings = {
      'app.tenant': `tenant-${index}`,
      TimeZone: TIME_ZONES[index % TIME_ZONES.length] ?? 'UTC',
      search_path: 'shop, public',
      application_name: name,
    };
    const client: Client = { name, index, session, settings, check: undefined, lost: false };
    await session.simple(
      `SET app.tenant = '${settings['app.tenant']}'; SET TIME ZONE '${settings.TimeZone}'; SET search_path = shop, public`,
    );
    return client;
  }

  async #work(client: Client, working: number): Promise<void> {
    const context = this.#context(client);
    const periodMs = (working / this.#options.paceTps) * 1000;
    let dueAt = performance.now() + context.random() * periodMs;
    while (this.#state === 'running' && !client.lost) {
      await pause(dueAt - performance.now());
      if (client.check !== undefined) await this.#answerCheck(client);
      dueAt = Math.max(dueAt + periodMs, performance.now());
      try {
        await pickTransaction(context.random)(context);
        this.#transactions += 1;
        const second = Math.floor((performance.now() - this.#startedAt) / 1000);
        this.#perSecond[second] = (this.#perSecond[second] ?? 0) + 1;
      } catch {
        // The failed statement was counted where it failed; here only the transaction it may have left is ended.
        await client.session.simple('ROLLBACK').catch(() => undefined);
      }
    }
    if (client.check !== undefined) await this.#answerCheck(client);
  }

  async #idle(client: Client): Promise<void> {
    while (this.#state === 'running') {
      await pause(20);
      if (client.check !== undefined) await this.#answerCheck(client);
    }
    if (client.check !== undefined) await this.#answerCheck(client);
  }

  async #answerCheck(client: Client): Promise<void> {
    const answer = client.check;
    client.check = undefined;
    const names = Object.keys(client.settings);
    const columns = names.map((name, index) => `current_setting('${name}', true) AS s${index}`).join(', ');
    const faults: string[] = [];
    let version = 'unknown';
    try {
      const [row] = await client.session.simple(
        `SELECT current_setting('server_version') AS version, ${columns}`,
      );
      version = String(row?.['version']).split(' ', 1)[0] ?? 'unknown';
      names.forEach((name, index) => {
        const found = String(row?.[`s${index}`]);
        const wanted = client.settings[name] ?? '';
        if (found !== wanted) faults.push(`${client.name}: ${name} is ${found}, was set to ${wanted}`);
      });
    } catch (error) {
      faults.push(`${client.name}: ${describe(error)}`);
    }
    answer?.({ version, faults });
  }

  #context(client: Client): ClientContext {
    const notified = this.#notified;
    return {
      client: client.index,
      session: client.session,
      size: shopSize(this.#options.scale),
      writes: this.#writes,
      random: seededRandom(this.#options.seed * 1000 + client.index),
      unpaid: [],
      cart: [],
      register: 0,
      notification: {
        next: () => ++notified.sent,
        acknowledged: (n) => notified.acknowledged.add(n),
      },
    };
  }

  /** Counts and times every statement that goes through `session`. */
  #timed(session: LoadSession): LoadSession {
    const time = async <T>(run: () => Promise<T>, statements = 1): Promise<T> => {
      const from = performance.now();
      this.#statements += statements;
      try {
        return await run();
      } catch (error) {
        this.#fail(describe(error));
        throw error;
      } finally {
        const now = performance.now();
        this.#latency.add(now - from);
        this.#window?.latency.add(now - from);
        this.#noteSilence(now);
      }
    };
    return {
      driver: session.driver,
      simple: (text) => time(() => session.simple(text)),
      extended: (text, values) => time(() => session.extended(text, values)),
      prepared: (name, text, values) => time(() => session.prepared(name, text, values)),
      pipeline: (statements) => time(() => session.pipeline(statements), statements.length),
      close: () => session.close(),
    };
  }

  #noteSilence(now: number): void {
    if (this.#window !== undefined) {
      this.#window.silenceMs = Math.max(this.#window.silenceMs, now - this.#lastAnswerAt);
    }
    this.#lastAnswerAt = now;
  }

  #fail(what: string): void {
    this.#failed += 1;
    if (this.#failures.length < FAILURES_LISTED) this.#failures.push(what);
  }
}

function workingClients(options: LoadOptions): number {
  return options.pgClients + options.postgresClients;
}

function describe(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const code = 'code' in error ? `${String(error.code)} ` : '';
  return `${code}${error.message}`;
}

function pause(ms: number): Promise<void> {
  return ms <= 0 ? Promise.resolve() : new Promise((resolve) => setTimeout(resolve, ms));
}

/** mulberry32: small, fast, and the same run after run. */
function seededRandom(seed: number): () => number {
  let state = seed * 0x9e3779b9;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}
