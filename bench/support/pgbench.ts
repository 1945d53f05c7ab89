/** Runs PostgreSQL's own pgbench and reads its report. https://www.postgresql.org/docs/current/pgbench.html */
import { execFile, execFileSync } from 'node:child_process';
import { promisify } from 'node:util';
import { findProgram } from './program.js';

export const SCRIPTS = { select: ['-S'], tpcb: [] } as const;
export type Script = keyof typeof SCRIPTS;
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

export interface PgbenchRun {
  readonly tps: number;
  readonly latencyMs: number;
  readonly failed: number;
}

export class Pgbench {
  readonly #program: string;
  readonly version: string;

  /** Throws where pgbench is not on PATH. */
  constructor() {
    const program = findProgram('pgbench');
    if (program === undefined) {
      throw new Error(
        'pgbench is not on PATH. Install it: on Debian and Ubuntu `apt-get install postgresql-contrib` (package ' +
          'postgresql-contrib or postgresql-15), on Fedora `postgresql-contrib`, on macOS `brew install postgresql`.',
      );
    }
    this.#program = program;
    this.version = execFileSync(program, ['--version'], { encoding: 'utf8' }).trim();
  }

  async initialise(address: ServerAddress, account: Account, scale: number): Promise<void> {
    await this.#run(address, account, ['-i', '-q', '-s', String(scale)]);
  }

  /** Throws where pgbench reports an error: a failed transaction must not pass as a figure. */
  async measure(
    address: ServerAddress,
    account: Account,
    load: {
      readonly script: Script;
      readonly mode: Mode;
      readonly clients: number;
      readonly seconds: number;
    },
  ): Promise<PgbenchRun> {
    const report = await this.#run(address, account, [
      ...SCRIPTS[load.script],
      '--no-vacuum',
      '-M',
      load.mode,
      '-c',
      String(load.clients),
      '-j',
      String(Math.min(2, load.clients)),
      '-T',
      String(load.seconds),
    ]);
    return parseReport(report);
  }

  async #run(address: ServerAddress, account: Account, args: readonly string[]): Promise<string> {
    const { stdout } = await promisify(execFile)(
      this.#program,
      [...args, '-h', address.host, '-p', String(address.port), '-U', account.user, account.database],
      {
        env: { ...process.env, PGPASSWORD: account.password, PGSSLMODE: 'disable' },
        maxBuffer: 16 * 1024 * 1024,
      },
    );
    return stdout;
  }
}

/** Throws where a figure is missing. */
export function parseReport(report: string): PgbenchRun {
  return {
    tps: figure(report, /^tps = ([\d.]+)/m),
    latencyMs: figure(report, /^latency average = ([\d.]+) ms/m),
    failed: figure(report, /^number of failed transactions: (\d+)/m),
  };
}

function figure(report: string, pattern: RegExp): number {
  const match = pattern.exec(report);
  if (match === null) throw new Error(`pgbench's report has no ${pattern.source}:\n${report}`);
  return Number(match[1]);
}
