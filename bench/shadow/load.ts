/** pgbench at a pace, in the background, with the time of each of its transactions. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { SUPERUSER_PASSWORD } from '../../src/app/demo/embedded-server.js';
import { quantile } from '../support/statistics.js';
import { DATABASE, ROLE } from './database.js';

export interface PacedOptions {
  readonly program: string;
  readonly folder: string;
  readonly port: number;
  /** 0: as fast as the clients can. */
  readonly tps: number;
  readonly clients: number;
  readonly seconds: number;
  /** Of each client, in place of the time. */
  readonly transactions?: number;
}

export interface ClientFigures {
  readonly transactions: number;
  readonly tps: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
}

interface Sample {
  readonly atMs: number;
  readonly latencyMs: number;
}

export class PacedLoad {
  readonly #child: ChildProcess;
  readonly #folder: string;
  readonly #exited: Promise<unknown>;
  #errors = '';

  private constructor(child: ChildProcess, folder: string) {
    this.#child = child;
    this.#folder = folder;
    this.#exited = once(child, 'close');
    child.stderr?.on(
      'data',
      (chunk: Buffer) => (this.#errors = (this.#errors + chunk.toString()).slice(-4000)),
    );
  }

  static async start(options: PacedOptions): Promise<PacedLoad> {
    const folder = await mkdtemp(join(options.folder, 'load-'));
    const pace = options.tps > 0 ? ['-R', String(options.tps)] : [];
    const args = [
      '-b',
      'tpcb-like',
      '-M',
      'prepared',
      '-n',
      '--log',
      '-c',
      String(options.clients),
      '-j',
      '1',
    ];
    const address = ['-h', '127.0.0.1', '-p', String(options.port), '-U', ROLE, DATABASE];
    const bound =
      options.transactions === undefined
        ? ['-T', String(options.seconds)]
        : ['-t', String(options.transactions)];
    const child = spawn(options.program, [...args, ...pace, ...bound, ...address], {
      cwd: folder,
      env: { ...process.env, PGPASSWORD: SUPERUSER_PASSWORD, PGSSLMODE: 'disable' },
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    return new PacedLoad(child, folder);
  }

  /** Ends it before its time. */
  end(): void {
    this.#child.kill('SIGALRM');
  }

  /** Of the transactions that ended between the two times, by the wall clock. Throws where one failed. */
  async figures(fromMs = 0, untilMs = Infinity): Promise<ClientFigures> {
    await this.#exited;
    if (this.#child.exitCode !== 0) throw new Error(`pgbench: ${this.#errors.slice(-1000)}`);
    const samples = (await this.#samples()).filter(({ atMs }) => atMs >= fromMs && atMs <= untilMs);
    await rm(this.#folder, { recursive: true, force: true });
    const latencies = Float64Array.from(samples, ({ latencyMs }) => latencyMs).sort();
    const times = samples.map(({ atMs }) => atMs);
    const seconds =
      (times.reduce((a, b) => Math.max(a, b), 0) - times.reduce((a, b) => Math.min(a, b), Infinity)) / 1000;
    return {
      transactions: samples.length,
      tps: samples.length / seconds,
      p50Ms: quantile(latencies, 0.5),
      p99Ms: quantile(latencies, 0.99),
    };
  }

  /** client, number, microseconds, script, epoch seconds, its microseconds: https://www.postgresql.org/docs/current/pgbench.html */
  async #samples(): Promise<readonly Sample[]> {
    const samples: Sample[] = [];
    for (const name of await readdir(this.#folder)) {
      const text = await readFile(join(this.#folder, name), 'utf8');
      for (const line of text.split('\n')) {
        const fields = line.split(' ');
        if (fields.length < 6) continue;
        samples.push({
          atMs: Number(fields[4]) * 1000 + Number(fields[5]) / 1000,
          latencyMs: Number(fields[2]) / 1000,
        });
      }
    }
    return samples;
  }
}
