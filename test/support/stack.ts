/**
 * Understudy as its user runs it: a process of its own, from `dist`, with a YAML file, driven over its admin port.
 * For tests that kill it, or that must not share an event loop with it.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { StatusReport } from '../../src/admin/control.js';
import { freePort } from '../../src/app/demo/embedded-server.js';
import type { DatabaseEndpoint, OperationReport } from '../../src/core/ports.js';
import type { CutoverStatus } from '../../src/cutover/settings.js';
import { until } from './servers.js';

const RUNNER = fileURLToPath(new URL('observed-run.mjs', import.meta.url));

export type Status = Omit<StatusReport, 'cutover'> & { readonly cutover: CutoverStatus };

export interface StackOptions {
  readonly source: DatabaseEndpoint;
  readonly destination: DatabaseEndpoint;
  /** More YAML, appended to the file. */
  readonly yaml?: string;
  /** Of `listen.databases`. */
  readonly databases?: string;
  /** The loop plans while it runs, in a second of CPU; off unless this or `yaml` asks for it. */
  readonly autopilot?: boolean;
  /** As {@link Stack.run} takes it. */
  readonly killAt?: string;
}

function urlOf(endpoint: DatabaseEndpoint): string {
  const credentials = `${encodeURIComponent(endpoint.user)}:${encodeURIComponent(endpoint.password ?? '')}`;
  return `postgres://${credentials}@${endpoint.host}:${endpoint.port}/${endpoint.database}`;
}

export class Stack implements AsyncDisposable {
  readonly port: number;
  readonly #adminPort: number;
  readonly #folder: string;
  readonly #config: string;
  readonly #database: string;
  #process: ChildProcess | undefined;
  #output = '';

  private constructor(port: number, adminPort: number, folder: string, database: string) {
    this.port = port;
    this.#adminPort = adminPort;
    this.#folder = folder;
    this.#config = join(folder, 'understudy.yaml');
    this.#database = database;
  }

  /** Writes the configuration and starts the process. Does not wait for more than its admin port. */
  static async start(options: StackOptions): Promise<Stack> {
    const folder = await mkdtemp(join(tmpdir(), 'understudy-stack-'));
    const stack = new Stack(await freePort(), await freePort(), folder, options.source.database);
    const databases =
      options.databases === undefined ? '' : `, databases: ${JSON.stringify(options.databases)}`;
    const yaml = [
      `listen: { host: 127.0.0.1, port: ${stack.port}${databases} }`,
      `admin: { host: 127.0.0.1, port: ${stack.#adminPort} }`,
      `source: { url: '${urlOf(options.source)}' }`,
      `destination: { url: '${urlOf(options.destination)}' }`,
      ...(options.autopilot === true || options.yaml?.includes('autopilot:') === true
        ? []
        : ['autopilot: { mode: off }']),
      options.yaml ?? '',
    ].join('\n');
    await writeFile(stack.#config, yaml);
    await stack.run(options.killAt);
    return stack;
  }

  /** Starts the process again after it ended. `killAt`: `cutover before:fence`. */
  async run(killAt?: string): Promise<void> {
    const child = spawn(process.execPath, [RUNNER, this.#config], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, ...(killAt === undefined ? {} : { KILL_AT: killAt }) },
    });
    this.#process = child;
    const keep = (chunk: Buffer): void => {
      this.#output = (this.#output + chunk.toString()).slice(-20_000);
    };
    child.stdout.on('data', keep);
    child.stderr.on('data', keep);
    await until(
      async () => {
        if (child.exitCode !== null)
          throw new Error(`understudy ended with ${child.exitCode}:\n${this.#output}`);
        return (await fetch(this.#admin('/livez')).catch(() => undefined))?.ok === true;
      },
      { everyMs: 50, what: 'the admin port' },
    );
  }

  /** Its configuration file. */
  get config(): string {
    return this.#config;
  }

  /** What the process printed last; for failure messages. */
  get output(): string {
    return this.#output;
  }

  #admin(path: string): string {
    return `http://127.0.0.1:${this.#adminPort}${path}`;
  }

  url(user: string, password: string): string {
    return `postgres://${user}:${password}@127.0.0.1:${this.port}/${this.#database}`;
  }

  async status(): Promise<Status> {
    const response = await fetch(this.#admin('/api/status'));
    return (await response.json()) as Status;
  }

  /** Waits until the shadow follows and both streams are connected. */
  async following(): Promise<void> {
    await until(
      async () => {
        const { shadow } = await this.status();
        if (shadow.phase === 'failed') throw new Error(`the shadow failed: ${JSON.stringify(shadow.error)}`);
        return shadow.phase === 'following' && shadow.streams.every((stream) => stream.connected);
      },
      { timeoutMs: 90_000, everyMs: 100, what: `the shadow to follow\n${this.#output}` },
    );
  }

  /** Runs an operation to its end. Rejects where the answer is an error, or where the process dies meanwhile. */
  async operate<T = OperationReport>(operation: string, body: object = {}): Promise<T> {
    const response = await fetch(this.#admin(`/api/${operation}`), {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body),
    });
    const lines = (await response.text()).trim().split('\n');
    const last = JSON.parse(lines.at(-1) ?? 'null') as {
      result?: T;
      error?: { code: string; message: string };
    };
    if (last.error !== undefined)
      throw Object.assign(new Error(last.error.message), { code: last.error.code });
    return last.result as T;
  }

  async kill(signal: 'SIGKILL' | 'SIGTERM' = 'SIGKILL'): Promise<void> {
    this.#process?.kill(signal);
    await this.exited();
  }

  /** Resolves once the process has ended, by whatever cause. */
  async exited(): Promise<void> {
    const child = this.#process;
    if (child === undefined) return;
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
    this.#process = undefined;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
    await rm(this.#folder, { recursive: true, force: true });
  }
}
