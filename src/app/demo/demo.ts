/**
 * The demo: a major-version upgrade of a busy shop, seen with one's own eyes.
 *
 *   1. A real PostgreSQL 14 (source) and 18 (destination) start, durable settings on.
 *   2. The shop is loaded into the source.
 *   3. Understudy starts, as a process of its own.
 *   4. Clients connect through it and go to work; they never connect again.
 *   5. The shadow is built and followed; it is verified.
 *   6. Cutover to 18, work, rollback to 14, work, cutover to 18, while the clients go on.
 *   7. Stop the clients, verify, audit over direct connections, report.
 *
 * Everything is owned by a {@link RunOwner}: whichever way this ends, no process and no folder stays behind.
 */
import { relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { OperationReport, ShadowStatus, VerifyReport } from '../../core/ports.js';
import { UnderstudyError } from '../../core/errors.js';
import type { Operation, OperationLine, OperationOptions } from '../../admin/control.js';
import { EXIT, exitCodeOf, type ExitCode } from '../cli/exit-codes.js';
import { bar, formatBytes, formatCount, formatMs, stallHistogram } from '../cli/format.js';
import { Terminal } from '../cli/terminal.js';
import { audit } from './auditor.js';
import { demoJson, type DemoJson, type SwitchOutcome } from './demo-outcome.js';
import { printReport } from './demo-report.js';
import { EmbeddedServer, type ServerVersion } from './embedded-server.js';
import type { LoadOptions } from './load.js';
import { LoadThread } from './load-thread.js';
import { RunOwner } from './run-owner.js';
import { shopAuditPlan } from './shop-audit.js';
import { ROWS_AT_SCALE_1, prepareDestination, createShop } from './shop-data.js';
import { SHOP_DATABASE, SHOP_PASSWORD, SHOP_ROLE } from './shop-schema.js';
import { UnderstudyProcess } from './understudy-process.js';

export interface DemoOptions {
  /** One JSON object as the last line of standard output; everything else goes to standard error. */
  readonly json: boolean;
  /** Leaves both servers and Understudy running until a signal, and says how to reach them. */
  readonly keep: boolean;
  /** How long the clients work on each side between two switches; {@link DEMO_DEFAULTS} where absent. */
  readonly seconds?: number | undefined;
  /** About that many rows in the shop. */
  readonly rows?: number | undefined;
  /** Client connections in all, at least 4: two of them idle, one listening. */
  readonly clients?: number | undefined;
  /** Seed of what the clients do. */
  readonly seed?: number | undefined;
  /** Transactions a second the clients aim at. */
  readonly paceTps?: number | undefined;
}

export const DEMO_DEFAULTS = {
  seconds: 3,
  rows: ROWS_AT_SCALE_1,
  clients: 21,
  seed: 1,
  paceTps: 650,
} as const;

const POLL_MS = 200;
/** A cutover waits for the shadow to be this close; Understudy has its own, stricter, say in preflight. */
const NEAR_LAG_MS = 500;
const SWITCH_ATTEMPTS = 3;

/** Runs the demo; resolves with the process's exit code: 0 only where nothing was lost, duplicated, failed or differs. */
export async function runDemo(options: DemoOptions): Promise<ExitCode> {
  const terminal = new Terminal({ json: options.json, verbose: false });
  const owner = new RunOwner('understudy-demo-', (signal) =>
    terminal.line(`\n${signal}: stopping everything, removing everything. Once more kills at once.`),
  );
  let json: DemoJson | undefined;
  let failure: unknown;
  try {
    const demo = new Demo(options, terminal, owner);
    json = await demo.run();
    if (options.keep) {
      terminal.result(json);
      await demo.keep();
    }
  } catch (error) {
    failure = error;
  }
  const interrupted =
    owner.signal.aborted && failure instanceof UnderstudyError && failure.code === 'cancelled';
  for (const trouble of await owner.close()) terminal.line(`left behind: ${trouble}`);
  if (json !== undefined && !options.keep) terminal.result(json);
  if (json !== undefined) return json.ok ? EXIT.ok : EXIT.refused;
  if (interrupted) return EXIT.interrupted;
  return exitCodeOf(terminal.error(failure).code);
}

interface Servers {
  readonly source: EmbeddedServer;
  readonly destination: EmbeddedServer;
}

class Demo {
  readonly #options: DemoOptions;
  readonly #terminal: Terminal;
  readonly #owner: RunOwner;
  readonly #startedAt = performance.now();
  #stageAt = performance.now();
  #running: Running | undefined;

  constructor(options: DemoOptions, terminal: Terminal, owner: RunOwner) {
    this.#options = options;
    this.#terminal = terminal;
    this.#owner = owner;
  }

  async run(): Promise<DemoJson> {
    const terminal = this.#terminal;
    terminal.line(
      terminal.paint('bold', 'Understudy: PostgreSQL 14 → 18 and back and again, while clients work'),
    );
    const servers = await this.#startServers();
    const rowsLoaded = await this.#loadShop(servers);
    const understudy = await this.#startUnderstudy(servers);
    this.#running = { ...servers, understudy };
    // From here on the end of Understudy ends the demo, whatever it is waiting for.
    const lifeline = understudy.unexpectedEnd();
    lifeline.catch(() => undefined);
    return this.#owner.interruptible(Promise.race([this.#work(servers, understudy, rowsLoaded), lifeline]));
  }

  async #work(servers: Servers, understudy: UnderstudyProcess, rowsLoaded: number): Promise<DemoJson> {
    const load = await this.#startLoad(understudy);
    const before = await load.checkSessions();
    const firstVersion = Object.keys(before.versions).join(' and ');
    const shadow = await this.#followShadow(understudy, load);
    await this.#verify(understudy, 'The shadow is verified against the source while it follows');
    const switches: SwitchOutcome[] = [];
    for (const kind of ['cutover', 'rollback', 'cutover'] as const) {
      switches.push(await this.#switch(understudy, load, kind));
      await this.#watch(understudy, load, this.#options.seconds ?? DEMO_DEFAULTS.seconds);
    }
    const result = await load.stop();
    const verify = await this.#verify(
      understudy,
      'The clients leave; the source is verified against the destination, which leads now',
    );
    const report = await audit(
      shopAuditPlan([
        { name: 'PostgreSQL 14', url: shopUrl(servers.source) },
        { name: 'PostgreSQL 18', url: shopUrl(servers.destination) },
      ]),
      result.writes,
    );
    const measured = {
      seconds: (performance.now() - this.#startedAt) / 1000,
      rowsLoaded,
      copy: shadow.copy,
      switches,
      load: result,
      audit: report,
      verify,
    };
    printReport(this.#terminal, measured, firstVersion);
    return demoJson(measured);
  }

  get #scale(): number {
    return (this.#options.rows ?? DEMO_DEFAULTS.rows) / ROWS_AT_SCALE_1;
  }

  #stage(title: string): void {
    this.#stageAt = performance.now();
    this.#terminal.line(`\n${this.#terminal.paint('bold', title)}`);
  }

  #done(text: string): void {
    const seconds = ((performance.now() - this.#stageAt) / 1000).toFixed(1);
    this.#terminal.line(
      `  ${this.#terminal.paint('green', '✓')} ${text} ${this.#terminal.paint('dim', `(${seconds} s)`)}`,
    );
  }

  async #startServers(): Promise<Servers> {
    this.#stage('Two real servers start, from npm packages, durable settings on');
    const start = (version: ServerVersion): Promise<EmbeddedServer> =>
      this.#owner.acquire(
        `PostgreSQL ${version}`,
        (signal) =>
          EmbeddedServer.create({
            version,
            parent: this.#owner.folder,
            ownGroup: true,
            signal,
            settings: SERVER_SETTINGS,
          }),
        (server) => server[Symbol.asyncDispose](),
      );
    const [source, destination] = await Promise.all([start(14), start(18)]);
    this.#done(
      `PostgreSQL 14 on port ${source.port} (source), PostgreSQL 18 on port ${destination.port} (destination)`,
    );
    return { source, destination };
  }

  async #loadShop({ source, destination }: Servers): Promise<number> {
    this.#stage('A shop is loaded into 14');
    const rows = await this.#owner.interruptible(
      createShop((database) => source.url(database), {
        scale: this.#scale,
        onProgress: ({ done, total }) => this.#terminal.transient(`  ${bar(done / total, 30)}`),
      }),
    );
    await this.#owner.interruptible(
      prepareDestination(
        (database) => source.url(database),
        (database) => destination.url(database),
      ),
    );
    this.#done(`${formatCount(rows)} rows`);
    return rows;
  }

  async #startUnderstudy({ source, destination }: Servers): Promise<UnderstudyProcess> {
    this.#stage('Understudy starts between the clients and the servers');
    const understudy = await this.#owner.acquire(
      'Understudy',
      (signal) =>
        UnderstudyProcess.start({
          folder: this.#owner.folder,
          sourceUrl: source.url(SHOP_DATABASE),
          destinationUrl: destination.url(SHOP_DATABASE),
          // Both servers and all clients share this machine's cores: a copy that waits for them would only take longer.
          args: ['--set', 'shadow.throttle.latencyP99Ms=off'],
          signal,
        }),
      (started) => started.stop(),
    );
    this.#done(
      `process ${understudy.pid ?? 0}: clients on port ${understudy.port}, admin on port ${understudy.adminPort}`,
    );
    return understudy;
  }

  async #startLoad(understudy: UnderstudyProcess): Promise<LoadThread> {
    const clients = shareClients(this.#options.clients ?? DEMO_DEFAULTS.clients);
    const connections = clients.pgClients + clients.postgresClients + clients.idleClients + 1;
    this.#stage(`${connections} clients connect through it and go to work`);
    const load = await this.#owner.acquire(
      'the load',
      () =>
        LoadThread.start({
          url: proxyUrl(understudy),
          scale: this.#scale,
          paceTps: this.#options.paceTps ?? DEMO_DEFAULTS.paceTps,
          seed: this.#options.seed ?? DEMO_DEFAULTS.seed,
          ...clients,
        }),
      (started) => started[Symbol.asyncDispose](),
    );
    this.#done(
      'drivers pg and postgres; simple, extended, prepared, pipelined, cursors, transactions, LISTEN',
    );
    return load;
  }

  /** Shows the copy and then the lag, until the shadow follows closely. */
  async #followShadow(understudy: UnderstudyProcess, load: LoadThread): Promise<ShadowStatus> {
    this.#stage('The shadow is built: schema, rows, indexes, and the stream of changes meanwhile');
    let phase = '';
    let trouble = '';
    for (;;) {
      const { shadow } = await understudy.admin.status();
      // Passing trouble is retried, and shown; what retrying can't mend ends the demo.
      if (shadow.phase === 'failed') {
        const { message = 'no reason given', advice } = shadow.error ?? {};
        throw new UnderstudyError('shadow-failed', message, advice === undefined ? {} : { advice });
      }
      if (shadow.error !== null && shadow.error.message !== trouble) {
        trouble = shadow.error.message;
        this.#terminal.line(`  tried again after: ${trouble}`);
      }
      const { transactions, failed } = await load.snapshot();
      const clients = `${formatCount(transactions)} transactions of clients, ${failed} failed`;
      if (shadow.phase !== phase) {
        phase = shadow.phase;
        if (!this.#terminal.interactive) this.#terminal.line(`  ${phase}`);
      }
      this.#terminal.transient(`  ${shadowLine(shadow)}   ${clients}`);
      if (isNear(shadow, 'forward')) {
        const rate = Math.round(shadow.copy.rows / Math.max(shadow.copy.seconds, 0.001));
        this.#done(
          `${formatCount(shadow.copy.rows)} rows copied in ${shadow.copy.seconds.toFixed(1)} s (${formatCount(rate)} a second); ${lagText(shadow)}`,
        );
        return shadow;
      }
      await this.#pause(POLL_MS);
    }
  }

  async #verify(understudy: UnderstudyProcess, title: string): Promise<VerifyReport> {
    this.#stage(title);
    const report = (await this.#operate(understudy, 'verify', {}, (line) => {
      if (!('event' in line) || line.event !== 'verify-progress') return;
      const { tablesDone, tablesTotal, rows, table } = line.progress;
      const share = tablesTotal === 0 ? 0 : tablesDone / tablesTotal;
      this.#terminal.transient(`  ${bar(share, 30)} ${formatCount(rows)} rows: ${table}`);
    })) as VerifyReport;
    const figures = `${formatCount(report.rows)} rows in ${report.tables} tables`;
    if (report.mismatches === 0) this.#done(`${figures} equal as of ${report.position}`);
    else this.#terminal.line(this.#terminal.paint('red', `  ${report.mismatches} of ${figures} differ`));
    return report;
  }

  async #switch(
    understudy: UnderstudyProcess,
    load: LoadThread,
    kind: 'cutover' | 'rollback',
  ): Promise<SwitchOutcome> {
    const to = kind === 'cutover' ? 'to 18' : 'back to 14';
    this.#stage(`${kind === 'cutover' ? 'Cutover' : 'Rollback'} ${to}, clients at work`);
    await load.openWindow();
    const report = await this.#attempt(understudy, kind);
    const sessions = await load.checkSessions();
    const window = await load.closeWindow();
    const steps = Object.entries(report.steps).map(([step, ms]) => `${step} ${formatMs(ms)}`);
    for (const line of wrap(steps, ' · ', 100)) this.#terminal.line(`  ${line}`);
    for (const line of stallHistogram(report.stall)) this.#terminal.line(`  ${line}`);
    const versions = Object.entries(sessions.versions).map(
      ([version, count]) => `${count} answer ${version}`,
    );
    this.#done(
      `${report.outcome}: ${report.moved} sessions moved, ${report.closed} closed; of ${sessions.sessions} asked ${versions.join(', ')}; ` +
        `settings kept by all but ${sessions.faults.length}; slowest statement at a client ${formatMs(window.max)}`,
    );
    if (report.outcome !== 'done') {
      throw new UnderstudyError(
        'internal',
        `${kind} ${report.outcome}: ${report.reason?.message ?? 'no reason given'}`,
      );
    }
    return { report, window, sessions };
  }

  /** A switch may be refused for a passing reason (a long transaction, some lag); that harms nobody, and is tried again. */
  async #attempt(understudy: UnderstudyProcess, kind: 'cutover' | 'rollback'): Promise<OperationReport> {
    for (let attempt = 1; ; attempt++) {
      const report = (await this.#operate(understudy, kind, {}, (line) => {
        if ('event' in line && line.event === 'step' && line.phase === 'start')
          this.#terminal.transient(`  … ${line.step}`);
      })) as OperationReport;
      if (report.outcome === 'done' || attempt === SWITCH_ATTEMPTS) return report;
      this.#terminal.line(
        `  undone, nothing changed (${report.reason?.code ?? ''}: ${report.reason?.message ?? ''}); once more`,
      );
      await this.#pause(1000);
    }
  }

  /** Lets the clients work and shows how the way back follows. */
  async #watch(understudy: UnderstudyProcess, load: LoadThread, seconds: number): Promise<void> {
    const until = performance.now() + seconds * 1000;
    const from = await load.snapshot();
    let line = '';
    for (;;) {
      const { shadow } = await understudy.admin.status();
      const now = await load.snapshot();
      const tps = Math.round(
        (now.transactions - from.transactions) / Math.max(now.seconds - from.seconds, 0.001),
      );
      line = `clients go on: ${tps} transactions a second, ${now.failed} failed; ${lagText(shadow)}`;
      this.#terminal.transient(`  ${line}`);
      if (performance.now() >= until) break;
      await this.#pause(POLL_MS);
    }
    this.#terminal.line(`  ${line}`);
  }

  #operate(
    understudy: UnderstudyProcess,
    operation: Operation,
    options: OperationOptions,
    onLine: (line: OperationLine) => void,
  ): Promise<unknown> {
    return understudy.admin.operate(operation, options, onLine, this.#owner.signal);
  }

  #pause(ms: number): Promise<void> {
    return this.#owner.interruptible(new Promise((resolve) => setTimeout(resolve, ms)));
  }

  /** Says how to reach what is running, and waits for a signal or for Understudy's end. */
  async keep(): Promise<void> {
    if (this.#running === undefined) return;
    const { source, destination, understudy } = this.#running;
    const { line, paint } = keepPrinter(this.#terminal);
    const program = relative(process.cwd(), fileURLToPath(new URL('../main.js', import.meta.url)));
    line(`\n${paint('bold', 'All of it goes on running. Try, in another terminal:')}`);
    line(`  psql '${proxyUrl(understudy)}' -c 'SHOW server_version'       # through Understudy`);
    line(`  psql '${shopUrl(source)}'       # straight to 14`);
    line(`  psql '${shopUrl(destination)}'       # straight to 18`);
    line(`\n  A write straight to 14 is refused, because 18 leads (SQLSTATE UFENC):`);
    line(`  psql '${shopUrl(source)}' -c "UPDATE shop.account SET balance = 0 WHERE id = 1"`);
    line(`\n  Go back and forth yourself:`);
    for (const verb of ['status', 'rollback', 'cutover', 'verify']) {
      line(`  node ${program} ${verb} --config ${understudy.configFile}`);
    }
    line(`\nIts log: ${understudy.logFile}\nCtrl-C ends and removes everything.`);
    await this.#owner.interruptible(understudy.unexpectedEnd()).catch((error: unknown) => {
      if (!this.#owner.signal.aborted) line(error instanceof Error ? error.message : String(error));
    });
  }
}

interface Running extends Servers {
  readonly understudy: UnderstudyProcess;
}

const SERVER_SETTINGS = { fsync: 'on', synchronous_commit: 'on', log_min_messages: 'warning' };

/** Two idle ones and the listener; the rest works, over both drivers. */
function shareClients(total: number): Pick<LoadOptions, 'pgClients' | 'postgresClients' | 'idleClients'> {
  const working = Math.max(2, Math.round(total) - 3);
  const postgresClients = Math.max(1, Math.floor(working * 0.45));
  return { pgClients: working - postgresClients, postgresClients, idleClients: 2 };
}

function keepPrinter(terminal: Terminal): { line: (text: string) => void; paint: Terminal['paint'] } {
  return { line: (text) => terminal.line(text), paint: (style, text) => terminal.paint(style, text) };
}

function shopUrl(server: EmbeddedServer): string {
  return server.url(SHOP_DATABASE, SHOP_ROLE, SHOP_PASSWORD);
}

function proxyUrl(understudy: UnderstudyProcess): string {
  return `postgres://${SHOP_ROLE}:${SHOP_PASSWORD}@127.0.0.1:${understudy.port}/${SHOP_DATABASE}`;
}

function isNear(shadow: ShadowStatus, direction: 'forward' | 'reverse'): boolean {
  const stream = shadow.streams.find((candidate) => candidate.direction === direction);
  return shadow.phase === 'following' && stream?.lagMs != null && stream.lagMs < NEAR_LAG_MS;
}

function shadowLine(shadow: ShadowStatus): string {
  if (shadow.phase !== 'copying') return `${shadow.phase}; ${lagText(shadow)}`;
  const estimated = shadow.tables.reduce(
    (sum, table) => sum + Math.max(table.rowsEstimated, table.rowsCopied),
    0,
  );
  const copied = shadow.tables.reduce((sum, table) => sum + table.rowsCopied, 0);
  return `${bar(copied / Math.max(1, estimated), 30)} ${formatCount(copied)} rows`;
}

function lagText(shadow: ShadowStatus): string {
  const stream = shadow.streams.find((candidate) => candidate.authoritative) ?? shadow.streams[0];
  if (stream === undefined || stream.lagBytes === null || stream.lagMs === null) return 'lag not known yet';
  return `lag ${formatBytes(stream.lagBytes)}, ${formatMs(stream.lagMs)}`;
}

/** Joins `parts` into lines of at most `width` characters. */
function wrap(parts: readonly string[], separator: string, width: number): readonly string[] {
  const lines: string[] = [];
  for (const part of parts) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + separator.length + part.length <= width) {
      lines[lines.length - 1] = last + separator + part;
    } else lines.push(part);
  }
  return lines;
}
