/**
 * pgbench at a steady pace in the background, on tables of its own in the database that is switched: a load that costs
 * the machine little, and that keeps its own books. Each of its updates leaves one row in `pgbench_history`, so that
 * afterwards the rows must be as many as the transactions it says were answered, and the balances their sums.
 */
import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import type pg from 'pg';
import { findProgram } from './program.js';

export interface PgbenchLoadOptions {
  readonly host: string;
  readonly port: number;
  readonly user: string;
  readonly password: string;
  readonly database: string;
  readonly clients: number;
  /** Transactions a second: three in ten update, the others select. */
  readonly paceTps: number;
}

export interface PgbenchLoadResult {
  readonly transactions: number;
  readonly updates: number;
  readonly tps: number;
  readonly latencyMs: number;
}

const SCALE = 2;
/** Far beyond any bench; it is ended by a signal. */
const SECONDS_MAX = 86_400;

type Connection = Omit<PgbenchLoadOptions, 'clients' | 'paceTps'>;

/** Null where pgbench is not on PATH. */
export function pgbenchProgram(): string | null {
  return findProgram('pgbench') ?? null;
}

/** Makes and fills the tables. */
export function initialisePgbench(program: string, connection: Connection): void {
  execFileSync(program, ['-i', '-q', '-s', String(SCALE), ...addressOf(connection)], {
    env: environment(connection),
    stdio: 'ignore',
  });
}

export class PgbenchLoad implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #exited: Promise<unknown>;
  #output = '';
  #errors = '';

  constructor(program: string, options: PgbenchLoadOptions) {
    const { clients, paceTps } = options;
    const load = ['-b', 'simple-update@3', '-b', 'select-only@7', '-M', 'prepared', '-n'];
    const pace = ['-c', String(clients), '-j', '1', '-R', String(paceTps), '-T', String(SECONDS_MAX)];
    this.#child = spawn(program, [...load, ...pace, ...addressOf(options)], {
      env: environment(options),
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.#child.stdout?.on('data', (chunk: Buffer) => (this.#output += chunk.toString()));
    this.#child.stderr?.on('data', (chunk: Buffer) => (this.#errors += chunk.toString()));
    this.#exited = once(this.#child, 'close');
  }

  /** Ends it as its own clock would, each client after its transaction. Throws where any transaction failed. */
  async stop(): Promise<PgbenchLoadResult> {
    this.#child.kill('SIGALRM');
    await this.#exited;
    const failed = Number(/number of failed transactions: (\d+)/.exec(this.#output)?.[1] ?? '0');
    if (this.#child.exitCode !== 0 || failed > 0 || this.#errors.includes('error')) {
      throw new Error(`pgbench failed (exit ${String(this.#child.exitCode)}): ${this.#errors.slice(-2000)}`);
    }
    return {
      transactions: this.#figure(/^number of transactions actually processed: (\d+)/m),
      updates: this.#figure(/^SQL script 1: [^]*?^ - (\d+) transactions/m),
      tps: this.#figure(/^tps = ([\d.]+)/m),
      latencyMs: this.#figure(/^latency average = ([\d.]+) ms/m),
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    this.#child.kill('SIGKILL');
    await this.#exited;
  }

  #figure(pattern: RegExp): number {
    const match = pattern.exec(this.#output);
    if (match === null) throw new Error(`pgbench’s report has no ${pattern.source}:\n${this.#output}`);
    return Number(match[1]);
  }
}

/** What is wrong with pgbench's books on the side that leads; empty where they balance. */
export async function auditPgbench(client: pg.Client, updates: number): Promise<readonly string[]> {
  const { rows } = await client.query<{ history: string; balances: string; changes: string }>(
    `SELECT (SELECT count(*) FROM pgbench_history) AS history,
            (SELECT sum(abalance) FROM pgbench_accounts) AS balances,
            (SELECT coalesce(sum(delta), 0) FROM pgbench_history) AS changes`,
  );
  const [row] = rows;
  const faults: string[] = [];
  if (Number(row?.history) !== updates)
    faults.push(`pgbench was answered ${updates} updates, the database holds ${row?.history ?? 'none'}`);
  if (row?.balances !== row?.changes)
    faults.push(`pgbench’s balances come to ${row?.balances}, its changes to ${row?.changes}`);
  return faults;
}

function addressOf({ host, port, user, database }: Connection): readonly string[] {
  return ['-h', host, '-p', String(port), '-U', user, database];
}

function environment({ password }: Connection): NodeJS.ProcessEnv {
  return { ...process.env, PGPASSWORD: password, PGSSLMODE: 'disable' };
}
