/** Runs PostgreSQL's own pgbench and reads its report and its log. https://www.postgresql.org/docs/current/pgbench.html */
import { execFile, execFileSync } from 'node:child_process';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { findProgram } from './program.js';

export const MODES = ['simple', 'extended', 'prepared'] as const;
export type Mode = (typeof MODES)[number];

export interface ServerAddress {
  readonly name: string;
  readonly host: string;
  readonly port: number;
}

export interface Account {
  readonly user: string;
  readonly password: string;
  readonly database: string;
}

export interface Load {
  /** Which script: `-S`, nothing for the TPC-B-like one, or `-f FILE`. */
  readonly script: readonly string[];
  readonly mode: Mode;
  readonly clients: number;
  readonly seconds: number;
  /** A new connection for every transaction (`-C`). */
  readonly reconnect?: boolean;
  /** Share of transactions whose times are logged; all where absent. */
  readonly sampled?: number;
}

export interface PgbenchRun {
  readonly transactions: number;
  /** Without the time of the first connections; with it under `reconnect`. */
  readonly tps: number;
  readonly latencyMs: number;
  readonly failed: number;
  /** Milliseconds a connection took, with `reconnect` only. */
  readonly connectMs: number | null;
  /** Of each logged transaction, in milliseconds, ascending. */
  readonly latenciesMs: Float64Array;
}

/** So many clients at least have logged in within a second, each of them once at the proxy and once at the server. */
const CONNECTED_PER_SECOND = 50;
/** Where not one transaction came to pass in the time asked for, it is doubled up to this. */
const SECONDS_MAX = 16;

export class Pgbench {
  readonly #program: string;
  /** Where it may put its logs; made and removed by others. */
  readonly #folder: string;
  readonly version: string;

  /** Throws where pgbench is not found. */
  constructor(folder: string) {
    const program = findProgram('pgbench');
    if (program === undefined) {
      throw new Error(
        'pgbench is not on PATH. Install it: on Debian and Ubuntu `apt-get install postgresql-contrib` (package ' +
          'postgresql-contrib or postgresql-15), on Fedora `postgresql-contrib`, on macOS `brew install postgresql`.',
      );
    }
    this.#program = program;
    this.#folder = folder;
    this.version = execFileSync(program, ['--version'], { encoding: 'utf8' }).trim();
  }

  async initialise(address: ServerAddress, account: Account, scale: number): Promise<void> {
    await this.#run(address, account, ['-i', '-q', '-s', String(scale)], this.#folder);
  }

  /** Throws with the server's message where a transaction fails: it must not pass as a figure. */
  async measure(address: ServerAddress, account: Account, load: Load): Promise<PgbenchRun> {
    // pgbench counts the time its clients take to connect as part of the duration, though not of the figures.
    let seconds = load.seconds + Math.floor(load.clients / CONNECTED_PER_SECOND);
    for (;;) {
      const run = await this.#measure(address, account, { ...load, seconds });
      if (run.transactions > 0) return run;
      seconds *= 2;
      if (seconds > SECONDS_MAX) throw new Error(`${address.name}: no transaction within ${seconds / 2} s`);
    }
  }

  async #measure(address: ServerAddress, account: Account, load: Load): Promise<PgbenchRun> {
    const folder = await mkdtemp(join(this.#folder, 'pgbench-'));
    try {
      const sampled = load.sampled === undefined ? [] : ['--sampling-rate', String(load.sampled)];
      const report = await this.#run(
        address,
        account,
        [
          ...load.script,
          '--no-vacuum',
          '--log',
          ...sampled,
          ...(load.reconnect === true ? ['-C'] : []),
          '-M',
          load.mode,
          '-c',
          String(load.clients),
          '-j',
          String(Math.min(2, load.clients)),
          '-T',
          String(load.seconds),
        ],
        folder,
      );
      const run = { ...parseReport(report), latenciesMs: await readLog(folder) };
      if (run.failed > 0) throw new Error(`${address.name}: ${run.failed} transactions failed`);
      return run;
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  }

  async #run(
    address: ServerAddress,
    account: Account,
    args: readonly string[],
    folder: string,
  ): Promise<string> {
    try {
      const { stdout } = await promisify(execFile)(
        this.#program,
        [...args, '-h', address.host, '-p', String(address.port), '-U', account.user, account.database],
        {
          cwd: folder,
          env: { ...process.env, PGPASSWORD: account.password, PGSSLMODE: 'disable' },
          maxBuffer: 16 * 1024 * 1024,
        },
      );
      return stdout;
    } catch (error) {
      const said = (error as { readonly stderr?: string }).stderr
        ?.trim()
        .split('\n')
        .slice(0, 6)
        .join('\n  ');
      throw new Error(`${address.name}: pgbench ${args.join(' ')} failed:\n  ${said ?? String(error)}`, {
        cause: error,
      });
    }
  }
}

/** Throws where a figure is missing. */
export function parseReport(report: string): Omit<PgbenchRun, 'latenciesMs'> {
  const transactions = figure(report, /^number of transactions actually processed: (\d+)/m);
  const connect = /^average connection time = ([\d.]+) ms/m.exec(report);
  return {
    transactions,
    tps: transactions === 0 ? 0 : figure(report, /^tps = ([\d.]+)/m),
    latencyMs: transactions === 0 ? Number.NaN : figure(report, /^latency average = ([\d.]+) ms/m),
    failed: figure(report, /^number of failed transactions: (\d+)/m),
    connectMs: connect === null ? null : Number(connect[1]),
  };
}

function figure(report: string, pattern: RegExp): number {
  const match = pattern.exec(report);
  if (match === null) throw new Error(`pgbench's report has no ${pattern.source}:\n${report}`);
  return Number(match[1]);
}

/** One file a thread, one line a transaction; the third field is its time in microseconds. */
async function readLog(folder: string): Promise<Float64Array> {
  const times: number[] = [];
  for (const name of await readdir(folder)) {
    const text = await readFile(join(folder, name), 'utf8');
    for (const line of text.split('\n')) {
      const time = line.split(' ', 3)[2];
      if (time !== undefined) times.push(Number(time) / 1000);
    }
  }
  return Float64Array.from(times).sort();
}
