/** The Understudy under test: a process of its own, from `dist`, that can be killed, stopped at points and asked. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { StatusReport } from '../../src/admin/control.js';
import type { OperationKind, OperationReport } from '../../src/core/ports.js';
import type { StepPoint } from '../../src/cutover/settings.js';

const OUTPUT_CHARS = 30_000;

/** The checkout, from a source file as from what was built of it. */
function root(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, 'package.json'))) folder = dirname(folder);
  return folder;
}
const SCRIPTS = join(root(), 'bench', 'chaos');

export type OperationOutcome =
  | { readonly kind: 'report'; readonly report: OperationReport }
  | { readonly kind: 'refused'; readonly code: string; readonly message: string }
  /** The process ended meanwhile, or the answer was cut off. */
  | { readonly kind: 'lost' };

export class Subject {
  readonly #configFile: string;
  readonly #adminUrl: string;
  #child: ChildProcess | undefined;
  #output = '';
  readonly #onReached = new Map<StepPoint, () => void>();

  constructor(configFile: string, adminPort: number) {
    this.#configFile = configFile;
    this.#adminUrl = `http://127.0.0.1:${adminPort}`;
  }

  static async configure(folder: string, yaml: string, adminPort: number): Promise<Subject> {
    const file = join(folder, 'understudy.yaml');
    await writeFile(file, yaml, { mode: 0o600 });
    return new Subject(file, adminPort);
  }

  /** Resolves once its admin port answers. Rejects where the process ends before. */
  async start(): Promise<void> {
    const child = spawn(
      process.execPath,
      [
        '--import',
        join(SCRIPTS, 'shifted-clock.mjs'),
        join(SCRIPTS, 'understudy-child.mjs'),
        this.#configFile,
      ],
      { stdio: ['ignore', 'pipe', 'pipe', 'ipc'], detached: true },
    );
    this.#child = child;
    const keep = (chunk: Buffer): void => {
      this.#output = (this.#output + chunk.toString()).slice(-OUTPUT_CHARS);
    };
    child.stdout?.on('data', keep);
    child.stderr?.on('data', keep);
    child.on('error', () => undefined);
    child.on('message', (message: { readonly reached?: StepPoint }) => {
      if (message.reached !== undefined) this.#onReached.get(message.reached)?.();
    });
    for (;;) {
      if (!this.running) throw new Error(`understudy ended with ${child.exitCode ?? child.signalCode}`);
      const answer = await fetch(`${this.#adminUrl}/livez`).catch(() => undefined);
      if (answer?.ok === true) return;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  get running(): boolean {
    const child = this.#child;
    return child !== undefined && child.exitCode === null && child.signalCode === null;
  }

  /** Of its process; none while it is not running. */
  get pids(): readonly number[] {
    return this.running && this.#child?.pid !== undefined ? [this.#child.pid] : [];
  }

  /** How it ended, where it has. */
  get ending(): string {
    return String(this.#child?.exitCode ?? this.#child?.signalCode ?? 'running');
  }

  get output(): string {
    return this.#output;
  }

  /** From then on `onReached` is called at this point, where the operation waits for {@link go} if it is to `hold`. */
  arm(point: StepPoint, how: { readonly hold: boolean }, onReached: () => void): void {
    this.#onReached.set(point, onReached);
    this.#send({ arm: { point, ...how } });
  }

  go(point: StepPoint): void {
    this.#send({ go: point });
  }

  disarm(): void {
    this.#onReached.clear();
    this.#send({ disarm: true });
  }

  /** Sets the wall clock off by so much. */
  shiftClock(ms: number): void {
    this.#send({ shiftMs: ms });
  }

  #send(message: object): void {
    if (this.#child?.connected === true) this.#child.send(message, () => undefined);
  }

  async status(): Promise<StatusReport | null> {
    const signal = AbortSignal.timeout(8_000);
    const response = await fetch(`${this.#adminUrl}/api/status`, { signal }).catch(() => undefined);
    if (response?.ok !== true) return null;
    return (await response.json().catch(() => null)) as StatusReport | null;
  }

  async operate(operation: OperationKind, body: object = {}): Promise<OperationOutcome> {
    const result = await this.call(operation, body);
    if (result === null) return { kind: 'lost' };
    if (result.error !== undefined) return { kind: 'refused', ...result.error };
    return { kind: 'report', report: result.result as OperationReport };
  }

  /** The last line of an operation's answer; null where it was cut off. */
  async call(
    operation: string,
    body: object,
  ): Promise<{ result?: unknown; error?: { code: string; message: string } } | null> {
    try {
      const response = await fetch(`${this.#adminUrl}/api/${operation}`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify(body),
      });
      const last = (await response.text()).trim().split('\n').at(-1) ?? '';
      const line = JSON.parse(last) as { result?: unknown; error?: { code: string; message: string } };
      return 'result' in line || line.error !== undefined ? line : null;
    } catch {
      return null;
    }
  }

  async kill(): Promise<void> {
    this.#child?.kill('SIGKILL');
    await this.ended();
  }

  async ended(): Promise<void> {
    if (this.#child !== undefined && this.running) await once(this.#child, 'exit');
  }
}
