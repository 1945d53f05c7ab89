/**
 * The shadow beside PostgreSQL's own logical replication, between the same two servers and in the same run: the first
 * copy, the catch-up on a backlog, the lag while an application writes, and what that application notices.
 *
 * Each engine is measured alone: the other is stopped meanwhile, its slot keeping the log. The built-in copy finds all
 * indexes made, as after a restored schema; Understudy's time includes making them.
 */
import { parseArgs } from 'node:util';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type pg from 'pg';
import { EmbeddedServer, type ServerVersion } from '../src/app/demo/embedded-server.js';
import { RunOwner } from '../src/app/demo/run-owner.js';
import { UnderstudyProcess } from '../src/app/demo/understudy-process.js';
import {
  Builtin,
  BUILTIN_DATABASE,
  checkpoint,
  DATABASE,
  makeShadowDatabase,
  makeSource,
  ROLE,
  serverCpuSeconds,
  until,
  withClient,
} from './shadow/database.js';
import {
  printCatchUp,
  printClients,
  printCopy,
  printLag,
  type CatchUpFigures,
  type CopyFigures,
  type Engine,
  type LagFigures,
  type OwnFigures,
  type ServerCpu,
} from './shadow/figures.js';
import { PacedLoad, type ClientFigures } from './shadow/load.js';
import { describeMachine, machineLines } from './support/machine.js';
import { Output } from './support/output.js';
import { pgbenchProgram } from './support/pgbench-load.js';
import { cpuSecondsOf, memoryOf, resetPeakMemory } from './support/process-usage.js';
import { quantile } from './support/statistics.js';

const PROGRAM = fileURLToPath(new URL('../../dist/app/main.js', import.meta.url));
/** Of clients that are measured: until what is cold on their way is warm. */
const WARM_UP_MS = 6000;
/** Between two looks at Understudy's status; so much a figure may be too long. */
const STATUS_PAUSE_MS = 100;
const SLICES = ['copy', 'catch-up', 'lag', 'client'] as const;
type Slice = (typeof SLICES)[number];

interface Settings {
  readonly slices: readonly string[];
  readonly engines: readonly string[];
  readonly scale: number;
  readonly transactions: number;
  readonly updatedRows: number;
  readonly tps: readonly number[];
  readonly seconds: number;
  readonly shadow: Readonly<Record<string, number>>;
}

function readSettings(): { settings: Settings; json: boolean } {
  const { values } = parseArgs({
    options: {
      slices: { type: 'string', default: SLICES.join(',') },
      engines: { type: 'string', default: 'built-in,understudy' },
      scale: { type: 'string' },
      transactions: { type: 'string' },
      'updated-rows': { type: 'string' },
      tps: { type: 'string', default: '500,2000' },
      seconds: { type: 'string' },
      /** Keys of the configuration's `shadow`, as `chunkRows=50000`. */
      set: { type: 'string', multiple: true, default: [] },
      quick: { type: 'boolean', default: false },
      json: { type: 'boolean', default: false },
    },
  });
  const { quick } = values;
  const pairs = values.set.map((pair) => pair.split('=', 2)).map(([key = '', value]) => [key, Number(value)]);
  return {
    json: values.json,
    settings: {
      slices: values.slices.split(','),
      engines: values.engines.split(','),
      scale: Number(values.scale ?? (quick ? 2 : 20)),
      transactions: Number(values.transactions ?? (quick ? 6000 : 60_000)),
      updatedRows: Number(values['updated-rows'] ?? (quick ? 50_000 : 500_000)),
      tps: values.tps.split(',').map(Number),
      seconds: Number(values.seconds ?? (quick ? 4 : 12)),
      shadow: Object.fromEntries(pairs) as Readonly<Record<string, number>>,
    },
  };
}

class ShadowBench {
  readonly #settings: Settings;
  readonly #owner: RunOwner;
  readonly #output: Output;
  readonly #pgbench: string;
  readonly #source: EmbeddedServer;
  readonly #destination: EmbeddedServer;
  readonly #builtin: Builtin;
  #nextMarker = 1;
  #understudy: UnderstudyProcess | undefined;

  constructor(
    settings: Settings,
    owner: RunOwner,
    output: Output,
    pgbench: string,
    servers: readonly [EmbeddedServer, EmbeddedServer],
  ) {
    this.#settings = settings;
    this.#owner = owner;
    this.#output = output;
    this.#pgbench = pgbench;
    [this.#source, this.#destination] = servers;
    this.#builtin = new Builtin(pgbench, ...servers);
  }

  async run(): Promise<Readonly<Record<string, unknown>>> {
    await makeSource(this.#pgbench, this.#source, this.#settings.scale);
    await checkpoint(this.#source);
    const copy = await this.#each((engine) => this.#copy(engine));
    printCopy(this.#output, copy);
    const catchUp = this.#wants('catch-up') ? await this.#catchUps() : {};
    printCatchUp(this.#output, catchUp);
    const lag: Record<string, Partial<Record<Engine, LagFigures>>> = {};
    if (this.#wants('lag')) {
      for (const tps of this.#settings.tps) {
        lag[tps] = await this.#each((engine) => this.#follow(engine, tps));
      }
      printLag(this.#output, lag);
    }
    const client = this.#wants('client') ? await this.#clients() : {};
    printClients(this.#output, client);
    return { copy, catchUp, lag, client };
  }

  #wants(slice: Slice): boolean {
    return this.#settings.slices.includes(slice);
  }

  async #each<T>(measure: (engine: Engine) => Promise<T>): Promise<Partial<Record<Engine, T>>> {
    const figures: Partial<Record<Engine, T>> = {};
    for (const engine of ['built-in', 'understudy'] as const) {
      if (this.#settings.engines.includes(engine)) figures[engine] = await measure(engine);
    }
    return figures;
  }

  async #startUnderstudy(): Promise<UnderstudyProcess> {
    const started = await this.#owner.acquire(
      'Understudy',
      (signal) =>
        UnderstudyProcess.start({
          folder: this.#owner.folder,
          sourceUrl: this.#source.url(DATABASE),
          destinationUrl: this.#destination.url(DATABASE),
          config: { log: { level: 'warn' }, migration: { id: 'bench' }, shadow: this.#settings.shadow },
          program: PROGRAM,
          signal,
        }),
      (process) => process.stop(),
    );
    this.#understudy = started;
    return started;
  }

  async #stopUnderstudy(): Promise<void> {
    await this.#understudy?.stop();
    this.#understudy = undefined;
  }

  /**
   * Each look costs Understudy and both servers some milliseconds: at the pace at which the built-in copy is asked by one
   * cheap query, a quarter of what the copy itself takes.
   */
  async #phase(
    understudy: UnderstudyProcess,
    reached: (phase: string) => boolean,
    pauseMs = STATUS_PAUSE_MS,
  ): Promise<void> {
    await until(
      async () => {
        const { shadow } = await understudy.admin.status();
        if (shadow.phase === 'failed') throw new Error(`shadow: ${shadow.error?.message ?? 'failed'}`);
        this.#owner.signal.throwIfAborted();
        return reached(shadow.phase);
      },
      'the shadow',
      { pauseMs },
    );
  }

  /** What the servers have used, since `before` where it is given. */
  #serverCpu(before?: ServerCpu): ServerCpu {
    return {
      sourceCpuSeconds: (serverCpuSeconds(this.#source) ?? 0) - (before?.sourceCpuSeconds ?? 0),
      destinationCpuSeconds:
        (serverCpuSeconds(this.#destination) ?? 0) - (before?.destinationCpuSeconds ?? 0),
    };
  }

  #urlOf(engine: Engine): string {
    return this.#destination.url(engine === 'built-in' ? BUILTIN_DATABASE : DATABASE);
  }

  async #copy(engine: Engine): Promise<CopyFigures> {
    if (engine === 'built-in') await this.#builtin.prepare();
    else await makeShadowDatabase(this.#source, this.#destination);
    await checkpoint(this.#source, this.#destination);
    const startedAt = performance.now();
    const secondsSince = (from: number): number => (performance.now() - from) / 1000;
    const before = this.#serverCpu();
    let cpu: ServerCpu = { sourceCpuSeconds: 0, destinationCpuSeconds: 0 };
    let figures = { copySeconds: 0, seconds: 0 };
    let own: OwnFigures = { understudyCpuSeconds: null, understudyPeakBytes: null };
    if (engine === 'built-in') {
      await this.#builtin.copy();
      const seconds = secondsSince(startedAt);
      figures = { copySeconds: seconds, seconds };
      cpu = this.#serverCpu(before);
      await this.#builtin.synchronised();
      await this.#builtin.disable();
    } else {
      const understudy = await this.#startUnderstudy();
      // Finer, so that the figure is never too short.
      await this.#phase(
        understudy,
        (phase) => ['copying', 'indexing', 'analyzing', 'following'].includes(phase),
        10,
      );
      const copyingAt = performance.now();
      await this.#phase(understudy, (phase) => ['analyzing', 'following'].includes(phase));
      const seconds = secondsSince(copyingAt);
      figures = { seconds, copySeconds: (await understudy.admin.status()).shadow.copy.seconds };
      cpu = this.#serverCpu(before);
      own = ownFigures(understudy.pid);
      await this.#phase(understudy, (phase) => phase === 'following');
      await this.#stopUnderstudy();
    }
    const rows = await withClient(this.#urlOf(engine), async (client) => {
      const { rows } = await client.query<{ n: string }>('SELECT count(*) AS n FROM pgbench_accounts');
      return Number(rows[0]?.n);
    });
    return { rows, ...figures, ...cpu, ...own };
  }

  /** One backlog for both, made while neither reads the log. */
  async #catchUps(): Promise<Partial<Record<Engine, CatchUpFigures>>> {
    const { transactions, updatedRows } = this.#settings;
    const clients = 8;
    const load = await PacedLoad.start({
      ...this.#loadOptions(0),
      clients,
      transactions: Math.ceil(transactions / clients),
    });
    await load.figures();
    const marker = await withClient(this.#source.url(DATABASE), async (client) => {
      await client.query('UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid <= $1', [
        updatedRows,
      ]);
      return await this.#mark(client);
    });
    return await this.#each((engine) => this.#catchUp(engine, marker, transactions * 4 + updatedRows));
  }

  async #catchUp(engine: Engine, marker: number, changes: number): Promise<CatchUpFigures> {
    await checkpoint(this.#source, this.#destination);
    const before = this.#serverCpu();
    const slot = engine === 'built-in' ? 'bench' : 'understudy_bench_fwd';
    const started = this.#untilActive(slot);
    const pid = engine === 'built-in' ? undefined : (await this.#startUnderstudy()).pid;
    if (engine === 'built-in') await this.#builtin.enable();
    const startedAt = await started;
    await withClient(this.#urlOf(engine), (client) => this.#untilMarked(client, marker));
    const seconds = (performance.now() - startedAt) / 1000;
    const figures: CatchUpFigures = {
      changes,
      seconds,
      ...this.#serverCpu(before),
      ...ownFigures(pid),
    };
    if (engine === 'built-in') await this.#builtin.disable();
    else await this.#stopUnderstudy();
    return figures;
  }

  /** Resolves with the time at which a walsender serves the slot. */
  async #untilActive(slot: string): Promise<number> {
    return await withClient(this.#source.url('postgres'), async (client) => {
      await until(async () => {
        const { rowCount } = await client.query(
          'SELECT FROM pg_replication_slots WHERE slot_name = $1 AND active',
          [slot],
        );
        return rowCount === 1;
      }, `slot ${slot}`);
      return performance.now();
    });
  }

  async #mark(client: pg.Client): Promise<number> {
    const marker = this.#nextMarker++;
    await client.query('INSERT INTO bench_marker VALUES ($1)', [marker]);
    return marker;
  }

  async #untilMarked(client: pg.Client, marker: number): Promise<void> {
    await until(async () => {
      this.#owner.signal.throwIfAborted();
      const { rowCount } = await client.query('SELECT FROM bench_marker WHERE id = $1', [marker]);
      return rowCount === 1;
    }, `marker ${marker}`);
  }

  async #follow(engine: Engine, tps: number): Promise<LagFigures> {
    const pid = await this.#catchUpAgain(engine);
    await checkpoint(this.#source, this.#destination);
    if (pid !== undefined) resetPeakMemory(pid);
    const { seconds } = this.#settings;
    const load = await PacedLoad.start(this.#loadOptions(tps));
    await sleep(1000);
    const before = {
      source: serverCpuSeconds(this.#source),
      ours: pid === undefined ? null : cpuSecondsOf(pid),
    };
    const from = performance.now();
    const lags = await this.#lags(engine, from + (seconds - 2) * 1000);
    const elapsed = (performance.now() - from) / 1000;
    const sourceCpuShare = ((serverCpuSeconds(this.#source) ?? 0) - (before.source ?? 0)) / elapsed;
    const ours =
      pid === undefined || before.ours === null ? null : ((cpuSecondsOf(pid) ?? 0) - before.ours) / elapsed;
    const client = await load.figures();
    const figures: LagFigures = {
      samples: lags.length,
      p50Ms: quantile(lags, 0.5),
      p99Ms: quantile(lags, 0.99),
      maxMs: lags.at(-1) ?? Number.NaN,
      sourceCpuShare,
      client,
      understudyCpuShare: ours,
      understudyPeakBytes: pid === undefined ? null : (memoryOf(pid)?.peakBytes ?? null),
    };
    if (engine === 'built-in') await this.#builtin.disable();
    else await this.#stopUnderstudy();
    return figures;
  }

  async #catchUpAgain(engine: Engine): Promise<number | undefined> {
    let pid: number | undefined;
    if (engine === 'built-in') await this.#builtin.enable();
    else {
      const understudy = await this.#startUnderstudy();
      await this.#phase(understudy, (phase) => phase === 'following');
      ({ pid } = understudy);
    }
    const marker = await withClient(this.#source.url(DATABASE), (client) => this.#mark(client));
    await withClient(this.#urlOf(engine), (client) => this.#untilMarked(client, marker));
    return pid;
  }

  /**
   * From a row's commit on the source, as its client learns of it, to its being seen on the destination, which is asked
   * every 2 ms. Ascending.
   */
  async #lags(engine: Engine, untilMs: number): Promise<Float64Array> {
    const sent = new Map<number, number>();
    const lags: number[] = [];
    const marking = withClient(this.#source.url(DATABASE), async (client) => {
      while (performance.now() < untilMs) {
        const marker = await this.#mark(client);
        sent.set(marker, performance.now());
        await sleep(10);
      }
    });
    let seen = this.#nextMarker - 1;
    await withClient(this.#urlOf(engine), async (client) => {
      while (performance.now() < untilMs || seen < this.#nextMarker - 1) {
        this.#owner.signal.throwIfAborted();
        const { rows } = await client.query<{ id: string }>('SELECT max(id) AS id FROM bench_marker');
        const at = performance.now();
        const id = Number(rows[0]?.id ?? 0);
        for (; seen < id; seen++) lags.push(Math.max(0, at - (sent.get(seen + 1) ?? at)));
        await sleep(2);
      }
    });
    await marking;
    return Float64Array.from(lags).sort();
  }

  #loadOptions(tps: number): {
    program: string;
    folder: string;
    port: number;
    tps: number;
    clients: number;
    seconds: number;
  } {
    const { folder } = this.#owner;
    const { seconds } = this.#settings;
    return { program: this.#pgbench, folder, port: this.#source.port, tps, clients: 16, seconds };
  }

  /** An application at a pace: alone, beside each engine while it follows, and while it copies. */
  async #clients(): Promise<Readonly<Record<string, ClientFigures>>> {
    const tps = this.#settings.tps[0] ?? 500;
    const figures: Record<string, ClientFigures> = {};
    await checkpoint(this.#source, this.#destination);
    figures['no migration, direct'] = await this.#clientsAtWork({});
    for (const engine of ['built-in', 'understudy'] as const) {
      if (!this.#settings.engines.includes(engine)) continue;
      await this.#catchUpAgain(engine);
      const through = engine === 'built-in' ? {} : { port: this.#understudy?.port ?? 0 };
      const name = engine === 'built-in' ? 'built-in' : 'understudy, through its proxy';
      figures[`${name}: following`] = await this.#clientsAtWork(through);
      if (engine === 'built-in') await this.#builtin.disable();
      else await this.#stopUnderstudy();
      figures[`${name}: copying`] = await this.#clientsWhileCopying(engine, tps);
    }
    return figures;
  }

  /** Without the first seconds: logins, cold caches and code that is yet to be compiled are not what migrating costs. */
  async #clientsAtWork(through: { readonly port?: number }): Promise<ClientFigures> {
    const tps = this.#settings.tps[0] ?? 500;
    const options = { ...this.#loadOptions(tps), ...through };
    const load = await PacedLoad.start({ ...options, seconds: options.seconds + WARM_UP_MS / 1000 });
    await sleep(WARM_UP_MS);
    return await load.figures(Date.now());
  }

  async #clientsWhileCopying(engine: Engine, tps: number): Promise<ClientFigures> {
    const options = { ...this.#loadOptions(tps), seconds: 300 };
    if (engine === 'built-in') {
      await this.#builtin.prepare();
      const load = await PacedLoad.start(options);
      await sleep(WARM_UP_MS);
      const from = Date.now();
      await this.#builtin.copy();
      const to = Date.now();
      load.end();
      const figures = await load.figures(from, to);
      await this.#builtin.drop();
      return figures;
    }
    await makeShadowDatabase(this.#source, this.#destination);
    const understudy = await this.#startUnderstudy();
    // Refused until there is a shadow to pause.
    await until(
      () =>
        understudy.admin
          .operate('shadow', { action: 'pause' }, () => undefined)
          .then(() => true)
          .catch(() => false),
      'a shadow to pause',
    );
    const load = await PacedLoad.start({ ...options, port: understudy.port });
    await sleep(WARM_UP_MS);
    await this.#phase(understudy, (phase) => phase === 'copying');
    await understudy.admin.operate('shadow', { action: 'resume' }, () => undefined);
    const from = Date.now();
    await this.#phase(understudy, (phase) => phase === 'following');
    const to = Date.now();
    load.end();
    const figures = await load.figures(from, to);
    await this.#stopUnderstudy();
    return figures;
  }
}

function ownFigures(pid: number | undefined): OwnFigures {
  if (pid === undefined) return { understudyCpuSeconds: null, understudyPeakBytes: null };
  return { understudyCpuSeconds: cpuSecondsOf(pid), understudyPeakBytes: memoryOf(pid)?.peakBytes ?? null };
}

async function main(): Promise<void> {
  const { settings, json } = readSettings();
  const output = new Output(json);
  const machine = describeMachine();
  const program = pgbenchProgram();
  if (program === null) throw new Error('pgbench is not on PATH: on Debian it is in postgresql-contrib');
  const owner = new RunOwner('understudy-bench-', (signal) => output.line(`${signal}: stopping`));
  try {
    for (const line of machineLines(machine)) output.line(line);
    output.line(
      `settings    PostgreSQL 14 → 18 (embedded, fsync on), pgbench scale ${settings.scale}; role ${ROLE}; everything shares the machine`,
    );
    const server = (version: ServerVersion): Promise<EmbeddedServer> =>
      owner.acquire(
        `PostgreSQL ${version}`,
        (signal) =>
          EmbeddedServer.create({
            version,
            parent: owner.folder,
            ownGroup: true,
            signal,
            settings: { max_wal_size: '8GB', shared_buffers: '512MB' },
          }),
        (started) => started[Symbol.asyncDispose](),
      );
    const servers = [await server(14), await server(18)] as const;
    const bench = new ShadowBench(settings, owner, output, program, servers);
    const result = await owner.interruptible(bench.run());
    await output.result('shadow', { machine, settings, ...result });
  } finally {
    await owner.close();
  }
}

await main().catch((error: unknown) => {
  process.stderr.write(`${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`);
  process.exitCode = 1;
});
