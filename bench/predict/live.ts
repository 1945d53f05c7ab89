/**
 * Real migrations, small ones: what was predicted of each from those before it, and what was measured then. Two servers serve
 * all; each migration has its own shop, its own size, its own Understudy.
 *
 * What the first few teach is not judged. Nothing is known of a migration when it is predicted but its size and its pace.
 */
import { fileURLToPath } from 'node:url';
import type { DatabaseEndpoint, OperationReport, ShadowStatus } from '../../src/core/ports.js';
import { EmbeddedServer, type ServerVersion } from '../../src/app/demo/embedded-server.js';
import { LoadThread } from '../../src/app/demo/load-thread.js';
import type { RunOwner } from '../../src/app/demo/run-owner.js';
import { createShop, prepareDestination, ROWS_AT_SCALE_1, withClient } from '../../src/app/demo/shop-data.js';
import { SHOP_DATABASE, SHOP_PASSWORD, SHOP_ROLE } from '../../src/app/demo/shop-schema.js';
import { UnderstudyProcess } from '../../src/app/demo/understudy-process.js';
import { ratesOf, stallSettings } from '../../src/app/plan/measurements.js';
import { measuredSwitch } from '../../src/app/plan/past-switches.js';
import { keptSeries } from '../../src/app/plan/sources.js';
import { pastTimes, type PastCopy } from '../../src/predict/experience.js';
import { drainFactor, predictStall, TransactionDurations } from '../../src/predict/stall.js';
import { timeline } from '../../src/predict/timeline.js';
import { probeSpeed } from '../support/speed-probe.js';
import { quantile } from '../support/statistics.js';

const PROGRAM = fileURLToPath(new URL('../../../dist/app/main.js', import.meta.url));
const FOLLOW_TIMEOUT_MS = 120_000;
const NEAR_LAG_MS = 500;
const WORK_MS = 1_500;
const PACE_TPS = 150;
const WRITES_PER_TRANSACTION = 1.5;
const LEARNED_FIRST = 5;
const ROWS = [40_000, 110_000, 70_000, 160_000, 90_000, 55_000, 130_000] as const;

export const LIVE_FIGURES = ['copy', 'ready', 'stall'] as const;
export type LiveFigure = (typeof LIVE_FIGURES)[number];
export interface LiveSample {
  readonly figure: LiveFigure;
  readonly run: number;
  readonly rows: number;
  readonly predicted: { readonly value: number; readonly low: number; readonly high: number };
  readonly measured: number;
}
export interface LiveResult {
  readonly runs: number;
  /** Before and after each migration, what a fixed piece of work took, ms. */
  readonly probesMs: readonly number[];
  readonly judged: readonly LiveSample[];
  readonly figures: Readonly<
    Record<
      LiveFigure,
      {
        readonly samples: number;
        readonly medianError: number;
        readonly covered: number;
        /** By how much a migration differed from the last one of the very same size, in the median. */
        readonly repeatError: number;
      }
    >
  >;
}

interface Servers {
  readonly source: EmbeddedServer;
  readonly destination: EmbeddedServer;
}

export async function benchLive(
  runs: number,
  owner: RunOwner,
  say: (line: string) => void,
): Promise<LiveResult> {
  const server = (version: ServerVersion): Promise<EmbeddedServer> =>
    owner.acquire(
      `PostgreSQL ${version}`,
      (signal) => EmbeddedServer.create({ version, parent: owner.folder, ownGroup: true, signal }),
      (started) => started[Symbol.asyncDispose](),
    );
  const [source, destination] = await Promise.all([server(14), server(18)]);
  const past: PastCopy[] = [];
  const reports: OperationReport[] = [];
  const judged: LiveSample[] = [];
  const all: LiveSample[] = [];
  const probesMs: number[] = [];
  for (let run = 0; run < runs; run++) {
    const rows = ROWS[run % ROWS.length] ?? ROWS[0];
    probesMs.push(await probeSpeed());
    const samples = await new Migration({ source, destination }, owner, rows, past, reports, say).run(run);
    const probe = await probeSpeed();
    probesMs.push(probe);
    all.push(...samples);
    if (run >= LEARNED_FIRST) judged.push(...samples);
    const texts = samples.map(
      ({ figure, predicted, measured }) =>
        `${figure} ${predicted.value.toFixed(2)} (${predicted.low.toFixed(2)} – ${predicted.high.toFixed(2)}), was ${measured.toFixed(2)}`,
    );
    say(
      `${String(run + 1).padStart(3)} ${String(rows).padStart(7)} rows  ${texts.join('; ')}; probe ${probe.toFixed(0)} ms`,
    );
  }
  return { runs, probesMs, judged, figures: figuresOf(judged, all) };
}

function figuresOf(judged: readonly LiveSample[], all: readonly LiveSample[]): LiveResult['figures'] {
  const of = (figure: LiveFigure): LiveResult['figures'][LiveFigure] => {
    const own = judged.filter((sample) => sample.figure === figure);
    const errors = own
      .map(({ predicted, measured }) => Math.abs(predicted.value - measured) / measured)
      .sort((a, b) => a - b);
    const repeats = own
      .flatMap(({ run, rows, measured }) => {
        const before = all.findLast((one) => one.figure === figure && one.rows === rows && one.run < run);
        return before === undefined ? [] : [Math.abs(before.measured - measured) / measured];
      })
      .sort((a, b) => a - b);
    const within = own.filter(
      ({ predicted, measured }) => measured >= predicted.low && measured <= predicted.high,
    );
    return {
      samples: own.length,
      medianError: own.length === 0 ? Number.NaN : quantile(errors, 0.5),
      covered: own.length === 0 ? Number.NaN : within.length / own.length,
      repeatError: repeats.length === 0 ? Number.NaN : quantile(repeats, 0.5),
    };
  };
  return { copy: of('copy'), ready: of('ready'), stall: of('stall') };
}

class Migration {
  readonly #servers: Servers;
  readonly #owner: RunOwner;
  readonly #rows: number;
  readonly #past: PastCopy[];
  readonly #reports: OperationReport[];
  readonly #say: (line: string) => void;

  constructor(
    servers: Servers,
    owner: RunOwner,
    rows: number,
    past: PastCopy[],
    reports: OperationReport[],
    say: (line: string) => void,
  ) {
    this.#say = say;
    this.#servers = servers;
    this.#owner = owner;
    this.#rows = rows;
    this.#past = past;
    this.#reports = reports;
  }

  async run(run: number): Promise<readonly LiveSample[]> {
    const { source, destination } = this.#servers;
    const scale = this.#rows / ROWS_AT_SCALE_1;
    await this.#owner.interruptible(createShop((database) => source.url(database), { scale }));
    await prepareDestination(
      (database) => source.url(database),
      (database) => destination.url(database),
    );
    const bytes = await this.#bytes();
    const line = this.#predictTimes(bytes);
    const startedAt = performance.now();
    const understudy = await UnderstudyProcess.start({
      folder: this.#owner.folder,
      sourceUrl: source.url(SHOP_DATABASE),
      destinationUrl: destination.url(SHOP_DATABASE),
      config: { log: { level: 'warn' }, capture: { flushIntervalMs: 500 } },
      program: PROGRAM,
      signal: this.#owner.signal,
    });
    try {
      const load = await LoadThread.start({
        url: `postgres://${SHOP_ROLE}:${SHOP_PASSWORD}@127.0.0.1:${understudy.port}/${SHOP_DATABASE}`,
        scale,
        pgClients: 4,
        postgresClients: 4,
        idleClients: 2,
        paceTps: PACE_TPS,
        seed: run + 1,
      });
      try {
        const shadow = await this.#following(understudy);
        const readySeconds = (performance.now() - startedAt) / 1000;
        await this.#operate(understudy, 'verify');
        const stall = await this.#switch(understudy);
        await this.#pause(WORK_MS);
        await this.#operate(understudy, 'rollback');
        await load.stop();
        const copySeconds = shadow.copy.seconds;
        this.#past.push({ bytes, copySeconds, readySeconds });
        return [
          { figure: 'copy', run, rows: this.#rows, predicted: line.copySeconds, measured: copySeconds },
          { figure: 'ready', run, rows: this.#rows, predicted: line.readySeconds, measured: readySeconds },
          { figure: 'stall', run, rows: this.#rows, ...stall },
        ];
      } finally {
        await load[Symbol.asyncDispose]();
      }
    } finally {
      await understudy.stop();
      await this.#clear();
    }
  }

  async #bytes(): Promise<number> {
    return withClient(this.#servers.source.url(SHOP_DATABASE), async (client) => {
      const { rows } = await client.query<{ bytes: string }>(
        `SELECT sum(pg_total_relation_size(oid)) AS bytes FROM pg_class WHERE relnamespace = 'shop'::regnamespace AND relkind = 'r'`,
      );
      return Number(rows[0]?.bytes ?? 0);
    });
  }

  #predictTimes(bytes: number): ReturnType<typeof timeline> {
    const writes = PACE_TPS * WRITES_PER_TRANSACTION;
    return timeline({
      bytes,
      ...ratesOf(undefined, undefined),
      ...pastTimes(this.#past, bytes),
      writes: [{ median: writes, low: writes / 2, high: writes * 2 }],
      stepSeconds: 3600,
      backlog: 0,
      limitSeconds: 24 * 3600,
    });
  }

  /** Predicted just before, from the switches of earlier migrations and the transactions seen since this one's start. */
  async #switch(understudy: UnderstudyProcess): Promise<Pick<LiveSample, 'predicted' | 'measured'>> {
    await this.#pause(WORK_MS);
    const { source, destination } = this.#servers;
    const endpoints = {
      source: endpointOf(source.url(SHOP_DATABASE)),
      destination: endpointOf(destination.url(SHOP_DATABASE)),
    };
    const { durations } = await keptSeries(endpoints, Date.now(), 1);
    const { shadow } = await understudy.admin.status();
    const lagMs = shadow.streams.find(({ direction }) => direction === 'forward')?.lagMs ?? 0;
    const seen = new TransactionDurations(
      durations.map(({ upToMicros, weight }) => ({ ms: upToMicros / 1000, weight })),
    );
    const settings = stallSettings(undefined, 5_000, measuredSwitch(this.#reports.toReversed()));
    const predicted = predictStall({
      ...settings,
      lagMs,
      durations: seen,
      drainFactor: drainFactor(settings.drainsMs ?? [], seen, PACE_TPS),
      transactionsPerSecond: PACE_TPS,
      // What was switched before took its own share of these.
      writesPerSecond: 0,
      verifyRows: 0,
      applyChangesPerSecond: ratesOf(undefined, undefined).applyChangesPerSecond.value,
    });
    const report = (await this.#operate(understudy, 'cutover')) as OperationReport;
    if (report.outcome !== 'done')
      throw new Error(`cutover ${report.outcome}: ${report.reason?.message ?? ''}`);
    this.#reports.push(report);
    this.#say(
      `    drain ${(predicted.terms['drainMs'] ?? 0).toFixed(0)} ms predicted, ${(report.parts['hold.drain'] ?? 0).toFixed(0)} ms measured; hold ${(report.steps['hold'] ?? 0).toFixed(0)}`,
    );
    return { predicted, measured: report.stall.max };
  }

  async #following(understudy: UnderstudyProcess): Promise<ShadowStatus> {
    const deadline = performance.now() + FOLLOW_TIMEOUT_MS;
    for (;;) {
      const { shadow } = await understudy.admin.status();
      if (shadow.phase === 'failed') throw new Error(`shadow: ${shadow.error?.message ?? 'failed'}`);
      const forward = shadow.streams.find((stream) => stream.direction === 'forward');
      if (shadow.phase === 'following' && forward?.lagMs != null && forward.lagMs < NEAR_LAG_MS)
        return shadow;
      if (performance.now() > deadline) throw new Error(`the shadow does not follow: ${shadow.phase}`);
      await this.#pause(50);
    }
  }

  #operate(understudy: UnderstudyProcess, operation: 'verify' | 'cutover' | 'rollback'): Promise<unknown> {
    return understudy.admin.operate(operation, {}, () => undefined, this.#owner.signal);
  }

  #pause(ms: number): Promise<unknown> {
    return this.#owner.interruptible(new Promise((resolve) => setTimeout(resolve, ms)));
  }

  /** The servers as they were, for the next migration. */
  async #clear(): Promise<void> {
    for (const server of [this.#servers.source, this.#servers.destination]) {
      await withClient(server.url('postgres'), async (client) => {
        await client.query('SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots');
        await client.query(`DROP DATABASE IF EXISTS ${SHOP_DATABASE} WITH (FORCE)`);
        await client.query(`DROP ROLE IF EXISTS ${SHOP_ROLE}`);
        await client.query('CHECKPOINT');
      });
    }
  }
}

function endpointOf(url: string): DatabaseEndpoint {
  const { hostname, port, username, password, pathname } = new URL(url);
  return {
    host: hostname,
    port: Number(port),
    user: decodeURIComponent(username),
    password: decodeURIComponent(password),
    database: pathname.slice(1),
    tls: 'disable',
  };
}
