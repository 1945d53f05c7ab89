/**
 * What a switch costs: the shop's clients at work, and pgbench beside them, while they are switched forward and back,
 * again and again. Each switch's steps, the stall the proxy measured and the latencies the clients saw; at the end
 * verify, the auditor and pgbench's own books. A failed statement, a lost or a duplicated write makes the bench fail.
 *
 * Most of the pace is pgbench's: the shop's clients are JavaScript and take of the machine what the servers need.
 */
import { parseArgs } from 'node:util';
import { fileURLToPath } from 'node:url';
import type { OperationReport, VerifyReport } from '../src/core/ports.js';
import type { StallReport } from '../src/core/traffic-ports.js';
import { formatMs, table } from '../src/app/cli/format.js';
import { audit } from '../src/app/demo/auditor.js';
import { EmbeddedServer, type ServerVersion } from '../src/app/demo/embedded-server.js';
import type { LoadOptions, SessionCheck, WindowFigures } from '../src/app/demo/load.js';
import { LoadThread } from '../src/app/demo/load-thread.js';
import { RunOwner } from '../src/app/demo/run-owner.js';
import { shopAuditPlan } from '../src/app/demo/shop-audit.js';
import { ROWS_AT_SCALE_1, prepareDestination, createShop, withClient } from '../src/app/demo/shop-data.js';
import { SHOP_DATABASE, SHOP_PASSWORD, SHOP_ROLE } from '../src/app/demo/shop-schema.js';
import { UnderstudyProcess } from '../src/app/demo/understudy-process.js';
import { describeMachine, machineLines } from './support/machine.js';
import { Output } from './support/output.js';
import {
  PgbenchLoad,
  auditPgbench,
  initialisePgbench,
  pgbenchProgram,
  type PgbenchLoadOptions,
} from './support/pgbench-load.js';
import { quantile, spreadOf, type Spread } from './support/statistics.js';

const PROGRAM = fileURLToPath(new URL('../../dist/app/main.js', import.meta.url));
const FOLLOW_TIMEOUT_MS = 120_000;

interface Settings {
  readonly switches: number;
  /** Of the shop's clients. */
  readonly paceTps: number;
  readonly clients: number;
  /** Of pgbench; 0 leaves it out. */
  readonly pgbenchTps: number;
  readonly pgbenchClients: number;
  readonly rows: number;
  /** Work between two switches. */
  readonly seconds: number;
}

interface Sample {
  readonly report: OperationReport;
  readonly window: WindowFigures;
  readonly sessions: SessionCheck;
}

function readSettings(): { settings: Settings; json: boolean } {
  const { values } = parseArgs({
    options: {
      switches: { type: 'string' },
      tps: { type: 'string' },
      clients: { type: 'string' },
      'pgbench-tps': { type: 'string' },
      'pgbench-clients': { type: 'string' },
      rows: { type: 'string' },
      seconds: { type: 'string' },
      quick: { type: 'boolean', default: false },
      json: { type: 'boolean', default: false },
    },
  });
  const { quick } = values;
  return {
    json: values.json,
    settings: {
      switches: Number(values.switches ?? (quick ? 4 : 20)),
      paceTps: Number(values.tps ?? 200),
      clients: Number(values.clients ?? 16),
      pgbenchTps: Number(values['pgbench-tps'] ?? 900),
      pgbenchClients: Number(values['pgbench-clients'] ?? 16),
      rows: Number(values.rows ?? (quick ? 30_000 : 200_000)),
      seconds: Number(values.seconds ?? (quick ? 1 : 3)),
    },
  };
}

class CutoverBench {
  readonly #settings: Settings;
  readonly #owner: RunOwner;
  readonly #output: Output;

  constructor(settings: Settings, owner: RunOwner, output: Output) {
    this.#settings = settings;
    this.#owner = owner;
    this.#output = output;
  }

  async run(): Promise<Readonly<Record<string, unknown>> & { readonly ok: boolean }> {
    const { switches, seconds } = this.#settings;
    const [source, destination] = await Promise.all([this.#server(14), this.#server(18)]);
    const scale = this.#settings.rows / ROWS_AT_SCALE_1;
    await this.#owner.interruptible(createShop((database) => source.url(database), { scale }));
    await prepareDestination(
      (database) => source.url(database),
      (database) => destination.url(database),
    );
    const program = this.#settings.pgbenchTps > 0 ? pgbenchProgram() : null;
    if (program !== null) initialisePgbench(program, shopConnection(source.host, source.port));
    const understudy = await this.#understudy(source, destination);
    const load = await this.#load(understudy, scale);
    const pgbench = program === null ? null : await this.#pgbench(program, understudy);
    await this.#untilFollowing(understudy);
    await this.#verify(understudy);
    const samples: Sample[] = [];
    for (let index = 0; index < switches; index++) {
      await this.#owner.interruptible(new Promise((resolve) => setTimeout(resolve, seconds * 1000)));
      const sample = await this.#switch(understudy, load, index % 2 === 0 ? 'cutover' : 'rollback');
      samples.push(sample);
      this.#output.line(sampleLine(index, sample));
    }
    const updates = pgbench === null ? null : await pgbench.stop();
    const { snapshot, writes, latency } = await load.stop();
    const verify = await this.#verify(understudy);
    const leading = samples.length % 2 === 0 ? source : destination;
    const books =
      updates === null
        ? []
        : await withClient(leading.url(SHOP_DATABASE), (client) => auditPgbench(client, updates.updates));
    const shopUrl = (server: EmbeddedServer): string => server.url(SHOP_DATABASE, SHOP_ROLE, SHOP_PASSWORD);
    const report = await audit(
      shopAuditPlan([
        { name: 'PostgreSQL 14', url: shopUrl(source) },
        { name: 'PostgreSQL 18', url: shopUrl(destination) },
      ]),
      writes,
    );
    const done = samples.filter((sample) => sample.report.outcome === 'done');
    const sessionFaults = samples.flatMap((sample) => sample.sessions.faults);
    const ok =
      snapshot.failed === 0 &&
      report.clean &&
      verify.mismatches === 0 &&
      done.length === samples.length &&
      sessionFaults.length === 0 &&
      books.length === 0 &&
      snapshot.notifications.missing + snapshot.notifications.repeated === 0;
    const shopTps = snapshot.transactions / snapshot.seconds;
    const tps = shopTps + (updates?.tps ?? 0);
    this.#print(samples, tps);
    this.#output.line(
      updates === null
        ? 'pgbench is not on PATH, or was not wanted: the shop’s clients were alone'
        : `pgbench: ${updates.transactions} transactions, ${updates.updates} of them updates, ${updates.tps.toFixed(0)} a second${books.length === 0 ? '; its books balance' : ''}`,
    );
    this.#output.line(
      `statements ${snapshot.statements}, failed ${snapshot.failed}; audit: ${report.acknowledged} acknowledged, ` +
        `${report.lost} lost, ${report.duplicated} duplicated; verify: ${verify.mismatches} of ${verify.rows} rows differ`,
    );
    for (const fault of [...snapshot.failures, ...report.faults, ...sessionFaults, ...books])
      this.#output.line(`  ${fault}`);
    return {
      ok,
      tps,
      shopTps,
      pgbench: updates,
      stallMs: pooled(samples.map((sample) => sample.report.stall)),
      stallPerSwitchMs: perSwitch(samples),
      clientMaxMs: spreadOf(samples.map((sample) => sample.window.max)),
      switches: samples.map(
        ({ report: { kind, outcome, totalMs, steps, parts, stall, moved, closed }, window }) => ({
          kind,
          outcome,
          totalMs,
          steps,
          parts,
          stall,
          moved,
          closed,
          window,
        }),
      ),
      load: { ...snapshot, latency },
      audit: report,
      verify: { tables: verify.tables, rows: verify.rows, mismatches: verify.mismatches },
    };
  }

  #server(version: ServerVersion): Promise<EmbeddedServer> {
    return this.#owner.acquire(
      `PostgreSQL ${version}`,
      (signal) => EmbeddedServer.create({ version, parent: this.#owner.folder, ownGroup: true, signal }),
      (server) => server[Symbol.asyncDispose](),
    );
  }

  #understudy(source: EmbeddedServer, destination: EmbeddedServer): Promise<UnderstudyProcess> {
    return this.#owner.acquire(
      'Understudy',
      (signal) =>
        UnderstudyProcess.start({
          folder: this.#owner.folder,
          sourceUrl: source.url(SHOP_DATABASE),
          destinationUrl: destination.url(SHOP_DATABASE),
          config: { log: { level: 'warn' } },
          program: PROGRAM,
          signal,
        }),
      (started) => started.stop(),
    );
  }

  #load(understudy: UnderstudyProcess, scale: number): Promise<LoadThread> {
    const { clients, paceTps } = this.#settings;
    const postgresClients = Math.floor(clients / 2);
    const options: LoadOptions = {
      url: `postgres://${SHOP_ROLE}:${SHOP_PASSWORD}@127.0.0.1:${understudy.port}/${SHOP_DATABASE}`,
      scale,
      pgClients: clients - postgresClients,
      postgresClients,
      idleClients: 2,
      paceTps,
      seed: 1,
    };
    return this.#owner.acquire(
      'the load',
      () => LoadThread.start(options),
      (started) => started[Symbol.asyncDispose](),
    );
  }

  #pgbench(program: string, understudy: UnderstudyProcess): Promise<PgbenchLoad> {
    const { pgbenchClients: clients, pgbenchTps: paceTps } = this.#settings;
    const options = { ...shopConnection('127.0.0.1', understudy.port), clients, paceTps };
    return this.#owner.acquire(
      'pgbench',
      () => Promise.resolve(new PgbenchLoad(program, options)),
      (started) => started[Symbol.asyncDispose](),
    );
  }

  async #untilFollowing(understudy: UnderstudyProcess): Promise<void> {
    const deadline = performance.now() + FOLLOW_TIMEOUT_MS;
    for (;;) {
      const { shadow } = await understudy.admin.status();
      if (shadow.phase === 'failed') throw new Error(`shadow: ${shadow.error?.message ?? 'failed'}`);
      const forward = shadow.streams.find((stream) => stream.direction === 'forward');
      if (shadow.phase === 'following' && forward?.lagMs != null && forward.lagMs < 500) return;
      if (performance.now() > deadline) throw new Error(`the shadow does not follow: ${shadow.phase}`);
      await this.#owner.interruptible(new Promise((resolve) => setTimeout(resolve, 100)));
    }
  }

  async #verify(understudy: UnderstudyProcess): Promise<VerifyReport> {
    return (await understudy.admin.operate(
      'verify',
      {},
      () => undefined,
      this.#owner.signal,
    )) as VerifyReport;
  }

  async #switch(
    understudy: UnderstudyProcess,
    load: LoadThread,
    kind: 'cutover' | 'rollback',
  ): Promise<Sample> {
    await load.openWindow();
    const report = (await understudy.admin.operate(
      kind,
      {},
      () => undefined,
      this.#owner.signal,
    )) as OperationReport;
    const sessions = await load.checkSessions();
    const window = await load.closeWindow();
    return { report, window, sessions };
  }

  #print(samples: readonly Sample[], tps: number): void {
    const timings = samples.map(({ report }) => ({
      kind: report.kind,
      ms: new Map(
        Object.entries(report.steps).flatMap(([step, ms]) => [
          [step, ms] as const,
          ...Object.entries(report.parts).filter(([part]) => part.startsWith(`${step}.`)),
        ]),
      ),
    }));
    const steps = [...new Set(timings.flatMap(({ ms }) => [...ms.keys()]))];
    const rows = steps.flatMap((step) =>
      (['cutover', 'rollback'] as const).flatMap((kind) => {
        const values = timings
          .filter((timing) => timing.kind === kind)
          .map(({ ms }) => ms.get(step))
          .filter((ms) => ms !== undefined);
        if (values.length === 0) return [];
        const spread = spreadOf(values);
        return [[step, kind, formatMs(spread.median), formatMs(spread.min), formatMs(spread.max)]];
      }),
    );
    this.#output.line();
    for (const line of table(['step', 'switch', 'median>', 'min>', 'max>'], rows)) this.#output.line(line);
    const stall = pooled(samples.map(({ report }) => report.stall));
    const each = perSwitch(samples);
    const clientMax = samples.map(({ window }) => window.max).sort((a, b) => a - b);
    this.#output.line(
      `\n${samples.length} switches at ${tps.toFixed(0)} transactions/s; ${stall.held} sessions held: stall p50 ≤ ${formatMs(stall.p50)}, ` +
        `p99 ≤ ${formatMs(stall.p99)}, max ${formatMs(stall.max)}\n` +
        `a switch's own p50: median ${formatMs(each.p50.median)} (${formatMs(each.p50.min)} – ${formatMs(each.p50.max)}), ` +
        `its p99: median ${formatMs(each.p99.median)} (${formatMs(each.p99.min)} – ${formatMs(each.p99.max)})\n` +
        `slowest statement at a client around a switch: ` +
        `median ${formatMs(quantile(clientMax, 0.5))}, max ${formatMs(quantile(clientMax, 1))}`,
    );
  }
}

function shopConnection(host: string, port: number): Omit<PgbenchLoadOptions, 'clients' | 'paceTps'> {
  return { host, port, user: SHOP_ROLE, password: SHOP_PASSWORD, database: SHOP_DATABASE };
}

function sampleLine(index: number, { report, window, sessions }: Sample): string {
  const { stall } = report;
  return (
    `${String(index + 1).padStart(3)} ${report.kind.padEnd(9)} ${report.outcome} ${Object.keys(sessions.versions).join(',')} ` +
    `stall p50 ${formatMs(stall.p50)} p99 ${formatMs(stall.p99)} max ${formatMs(stall.max)} (${stall.held} held), ` +
    `client max ${formatMs(window.max)}, in all ${formatMs(report.totalMs)}${report.reason === undefined ? '' : ` ${report.reason.message}`}`
  );
}

/** The spread over the switches of each switch's own quantiles, which are exact. */
function perSwitch(samples: readonly Sample[]): { p50: Spread; p99: Spread } {
  const stalls = samples.map(({ report }) => report.stall);
  return { p50: spreadOf(stalls.map(({ p50 }) => p50)), p99: spreadOf(stalls.map(({ p99 }) => p99)) };
}

/** Quantiles over the held sessions of all switches: upper bounds of the merged histogram's buckets; the max is exact. */
function pooled(stalls: readonly StallReport[]): { held: number; p50: number; p99: number; max: number } {
  const counts = new Map<number, number>();
  for (const { histogram } of stalls) {
    for (const { upToMs, count } of histogram) counts.set(upToMs, (counts.get(upToMs) ?? 0) + count);
  }
  const held = [...counts.values()].reduce((sum, count) => sum + count, 0);
  const max = Math.max(0, ...stalls.map((stall) => stall.max));
  const at = (q: number): number => {
    let seen = 0;
    for (const [upToMs, count] of [...counts].sort(([a], [b]) => a - b)) {
      seen += count;
      if (seen >= q * held && seen > 0) return Math.min(upToMs, max);
    }
    return 0;
  };
  return { held, p50: at(0.5), p99: at(0.99), max };
}

async function main(): Promise<void> {
  const { settings, json } = readSettings();
  const output = new Output(json);
  const machine = describeMachine();
  const owner = new RunOwner('understudy-bench-', (signal) => output.line(`${signal}: stopping`));
  try {
    for (const line of machineLines(machine)) output.line(line);
    output.line(
      `settings    PostgreSQL 14 ↔ 18 (embedded, fsync on), ${settings.rows} rows, ${settings.clients} clients of the shop aiming at ` +
        `${settings.paceTps} transactions/s and ${settings.pgbenchClients} of pgbench at ${settings.pgbenchTps}, ${settings.seconds} s of work between switches; everything shares the machine\n`,
    );
    const result = await new CutoverBench(settings, owner, output).run();
    await output.result('cutover', { machine, settings, ...result });
    if (!result.ok) process.exitCode = 1;
  } finally {
    await owner.close();
  }
}

await main().catch((error: unknown) => {
  process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
});
