/** Understudy as a process of its own, as an application would meet it: configuration file, proxy port, admin port. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { open, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { stringify } from 'yaml';
import { UnderstudyError } from '../../core/errors.js';
import { AdminClient } from '../admin-client.js';
import type { UnderstudyConfig } from '../config/schema.js';
import { freePort } from './embedded-server.js';

export interface UnderstudyProcessOptions {
  /** Where configuration and log are written, and the process works. */
  readonly folder: string;
  readonly sourceUrl: string;
  readonly destinationUrl: string;
  readonly config?: Partial<UnderstudyConfig>;
  readonly signal?: AbortSignal;
  /** The program; the built one beside this file where absent. */
  readonly program?: string;
  /** Of `run`, beside the configuration. */
  readonly args?: readonly string[];
}

const READY_TIMEOUT_MS = 20_000;
const STOP_TIMEOUT_MS = 4_000;
const POLL_MS = 50;

export class UnderstudyProcess implements AsyncDisposable {
  readonly port: number;
  readonly adminPort: number;
  readonly admin: AdminClient;
  readonly configFile: string;
  readonly logFile: string;
  readonly #child: ChildProcess;
  #stopping = false;

  private constructor(
    child: ChildProcess,
    ports: readonly [number, number],
    configFile: string,
    logFile: string,
  ) {
    this.#child = child;
    [this.port, this.adminPort] = ports;
    this.admin = new AdminClient({ host: '127.0.0.1', port: this.adminPort });
    this.configFile = configFile;
    this.logFile = logFile;
  }

  /** Resolves once clients can connect. Rejects with the end of its log where it ends before. */
  static async start(options: UnderstudyProcessOptions): Promise<UnderstudyProcess> {
    const ports = [await freePort(), await freePort()] as const;
    const config: UnderstudyConfig = {
      source: { url: options.sourceUrl },
      destination: { url: options.destinationUrl },
      admin: { host: '127.0.0.1', port: ports[1] },
      ...options.config,
      listen: { host: '127.0.0.1', port: ports[0], ...options.config?.listen },
    };
    const configFile = join(options.folder, 'understudy.yaml');
    const logFile = join(options.folder, 'understudy.log');
    await writeFile(configFile, stringify(config), { mode: 0o600 });
    const log = await open(logFile, 'a');
    const program = options.program ?? fileURLToPath(new URL('../main.js', import.meta.url));
    options.signal?.throwIfAborted();
    const child = spawn(process.execPath, [program, 'run', '--config', configFile, ...(options.args ?? [])], {
      cwd: options.folder,
      stdio: ['ignore', log.fd, log.fd],
      // Its own group: a terminal's Ctrl-C reaches the owner alone, which ends it after the clients.
      detached: true,
    });
    await log.close();
    const started = new UnderstudyProcess(child, ports, configFile, logFile);
    try {
      await started.#untilReady(options.signal);
      return started;
    } catch (error) {
      await started.stop();
      throw error;
    }
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /** The last lines it logged. */
  async logTail(lines = 15): Promise<string> {
    const text = await readFile(this.logFile, 'utf8').catch(() => '');
    return text.trimEnd().split('\n').slice(-lines).join('\n');
  }

  /** Rejects if the process ends although nobody asked it to. Never resolves. */
  async unexpectedEnd(): Promise<never> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) await once(this.#child, 'exit');
    if (this.#stopping) return new Promise<never>(() => undefined);
    const code = this.#child.exitCode ?? this.#child.signalCode ?? 'unknown';
    throw new UnderstudyError('internal', `Understudy ended with ${code}:\n${await this.logTail()}`);
  }

  async #untilReady(signal: AbortSignal | undefined): Promise<void> {
    const deadline = performance.now() + READY_TIMEOUT_MS;
    for (;;) {
      signal?.throwIfAborted();
      if (this.#child.exitCode !== null || this.#child.signalCode !== null) await this.unexpectedEnd();
      const ready = await this.admin.status().then(
        (status) => status.ready.ready,
        () => false,
      );
      if (ready) return;
      if (performance.now() > deadline) {
        throw new UnderstudyError('internal', `Understudy was not ready in time:\n${await this.logTail()}`);
      }
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
  }

  /** SIGTERM, and SIGKILL where that takes too long. */
  async stop(): Promise<void> {
    this.#stopping = true;
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const exited = once(this.#child, 'exit');
    this.#child.kill('SIGTERM');
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), STOP_TIMEOUT_MS);
    await exited;
    clearTimeout(timer);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }
}
