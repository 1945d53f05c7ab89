/** pgbench through every target: throughput, latency, CPU time. Rounds are interleaved over the targets. */
import type { RunOwner } from '../../src/app/demo/run-owner.js';
import type { Account, Load, Mode, Pgbench } from '../support/pgbench.js';
import { cpuSecondsOf, cpuSecondsOfFamily } from '../support/process-usage.js';
import { quantile, spreadOf, type Spread } from '../support/statistics.js';
import { SCRIPTS, type Script, type Settings } from './settings.js';
import type { Target } from './targets.js';

export interface Bench {
  readonly pgbench: Pgbench;
  readonly account: Account;
  readonly settings: Settings;
  readonly owner: RunOwner;
  readonly targets: readonly Target[];
  /** Of the PostgreSQL server. */
  readonly serverPid: number | null;
}

/** One target under one load; medians of the rounds. */
export interface LoadFigures {
  readonly target: string;
  readonly tps: Spread;
  readonly p50Ms: Spread;
  readonly p99Ms: Spread;
  /** Milliseconds a connection took, where every transaction had its own. */
  readonly connectMs: Spread | null;
  /** Seconds of the proxy's CPU time per 1,000 statements, all rounds together; null for the direct way. */
  readonly cpuSecondsPerThousand: number | null;
  /** The same of the server's. */
  readonly serverCpuSecondsPerThousand: number | null;
}

export interface Cell extends LoadFigures {
  readonly script: Script;
  readonly mode: Mode;
  readonly clients: number;
}

/** Every script in every query mode with every number of clients. `onGroup` gets the targets of one load together. */
export async function measureLoads(
  bench: Bench,
  onGroup: (cells: readonly Cell[]) => void,
): Promise<readonly Cell[]> {
  const { settings } = bench;
  const all: Cell[] = [];
  for (const script of settings.scripts) {
    const { args, statements } = SCRIPTS[script];
    for (const mode of settings.modes) {
      for (const clients of settings.clients) {
        const targets = bench.targets.filter((target) => isMeasured(target, mode, clients));
        // Enough for a 99th percentile; writing down every one of them would slow the clients.
        const sampled = script === 'select' && clients > 1 ? 0.2 : undefined;
        const load: Load = {
          script: args,
          mode,
          clients,
          seconds: settings.seconds,
          ...(sampled === undefined ? {} : { sampled }),
        };
        const figures = await measureLoad(bench, targets, load, statements);
        const cells = figures.map((measured) => ({ script, mode, clients, ...measured }));
        all.push(...cells);
        onGroup(cells);
      }
    }
  }
  return all;
}

const WARM_UP: Load = { script: SCRIPTS.select.args, mode: 'extended', clients: 8, seconds: 3 };

/** What a process does once, compiling its own code above all, is no part of what a statement costs. */
export async function warmUp({ targets, pgbench, account, owner }: Bench): Promise<void> {
  for (const { address } of targets) await owner.interruptible(pgbench.measure(address, account, WARM_UP));
}

/** What capture costs is known from fewer clients than that. */
const NO_CAPTURE_CLIENTS_MAX = 64;

function isMeasured({ name, without }: Target, mode: Mode, clients: number): boolean {
  if (without[mode] !== undefined) return false;
  return clients <= NO_CAPTURE_CLIENTS_MAX || !name.endsWith('-nocapture');
}

interface Samples {
  readonly tps: number[];
  readonly p50Ms: number[];
  readonly p99Ms: number[];
  readonly connectMs: number[];
  statements: number;
  cpuSeconds: number | null;
  serverCpuSeconds: number | null;
}

/** `settings.rounds` rounds of one load through each target in turn. Throws where one transaction fails. */
export async function measureLoad(
  bench: Bench,
  targets: readonly Target[],
  load: Load,
  statements: number,
): Promise<readonly LoadFigures[]> {
  const samples = targets.map((target): Samples => ({
    tps: [],
    p50Ms: [],
    p99Ms: [],
    connectMs: [],
    statements: 0,
    cpuSeconds: target.pid === null ? null : 0,
    serverCpuSeconds: bench.serverPid === null ? null : 0,
  }));
  for (let round = 0; round < bench.settings.rounds; round++) {
    for (const [index, target] of targets.entries()) {
      const into = samples[index];
      if (into !== undefined) await measureRound(bench, target, load, statements, into);
    }
  }
  return samples.map((of, index) => ({
    target: targets[index]?.name ?? '',
    tps: spreadOf(of.tps),
    p50Ms: spreadOf(of.p50Ms),
    p99Ms: spreadOf(of.p99Ms),
    connectMs: of.connectMs.length === 0 ? null : spreadOf(of.connectMs),
    cpuSecondsPerThousand: of.cpuSeconds === null ? null : (of.cpuSeconds / of.statements) * 1000,
    serverCpuSecondsPerThousand:
      of.serverCpuSeconds === null ? null : (of.serverCpuSeconds / of.statements) * 1000,
  }));
}

async function measureRound(
  { pgbench, account, owner, serverPid }: Bench,
  target: Target,
  load: Load,
  statements: number,
  into: Samples,
): Promise<void> {
  const before = target.pid === null ? null : cpuSecondsOf(target.pid);
  const serverBefore = serverPid === null ? null : cpuSecondsOfFamily(serverPid);
  const run = await owner.interruptible(pgbench.measure(target.address, account, load));
  const after = target.pid === null ? null : cpuSecondsOf(target.pid);
  const serverAfter = serverPid === null ? null : cpuSecondsOfFamily(serverPid);
  into.tps.push(run.tps);
  into.p50Ms.push(quantile(run.latenciesMs, 0.5));
  into.p99Ms.push(quantile(run.latenciesMs, 0.99));
  if (run.connectMs !== null) into.connectMs.push(run.connectMs);
  into.statements += run.transactions * statements;
  into.cpuSeconds = before === null || after === null ? null : (into.cpuSeconds ?? 0) + after - before;
  into.serverCpuSeconds =
    serverBefore === null || serverAfter === null
      ? null
      : (into.serverCpuSeconds ?? 0) + serverAfter - serverBefore;
}

/** `-C`: a new connection for each transaction, one client and eight. */
export async function measureConnects(
  bench: Bench,
): Promise<readonly (LoadFigures & { readonly clients: number })[]> {
  const all: (LoadFigures & { readonly clients: number })[] = [];
  for (const clients of [1, 8]) {
    const load: Load = {
      script: SCRIPTS.select.args,
      mode: 'simple',
      clients,
      seconds: bench.settings.seconds,
      reconnect: true,
    };
    for (const figures of await measureLoad(bench, bench.targets, load, 1)) all.push({ clients, ...figures });
  }
  return all;
}
