/**
 * Owns everything a run starts, so that it ends leaving no process and no folder behind, whenever it ends.
 *
 * States: open ──(flow ends, or a signal)──► closing ──► closed.
 *
 * - What is acquired is disposed of in reverse order; one failing disposal doesn't stop the others.
 * - SIGINT, SIGTERM and SIGHUP abort {@link RunOwner.signal}. The flow unwinds and closes the owner. What is just being
 *   created is waited for first: nothing may appear after the cleaning up.
 * - A second signal kills at once: every process that works in the run's folder, then the folder. One that follows
 *   within {@link ECHO_MS} is taken for the echo of the first: npm hands on a terminal's signal that has arrived already.
 * - An uncaught error is a signal, too, with that error as the reason.
 *
 * Children are started in process groups of their own (a terminal's Ctrl-C must reach this process alone, which then
 * ends them in order) and with a working directory inside the run's folder, by which stragglers are found.
 */
import { mkdtempSync, readdirSync, readlinkSync, rmSync, chmodSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { UnderstudyError } from '../../core/errors.js';
import { EXIT } from '../cli/exit-codes.js';

const ECHO_MS = 400;
const DISPOSE_TIMEOUT_MS = 15_000;
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

interface Owned {
  readonly what: string;
  readonly dispose: () => Promise<void>;
}

export class RunOwner {
  readonly folder: string;
  readonly #controller = new AbortController();
  readonly #owned: Owned[] = [];
  readonly #creating = new Set<Promise<unknown>>();
  readonly #onFirstSignal: (signal: string) => void;
  #state: 'open' | 'closing' | 'closed' = 'open';
  #signalledAt: number | undefined;

  /** Makes the run's folder and takes over the signals. `onFirstSignal` may tell the person that cleaning up began. */
  constructor(prefix: string, onFirstSignal: (signal: string) => void) {
    this.folder = mkdtempSync(join(tmpdir(), prefix));
    // The servers may run under another account, which has to pass through.
    chmodSync(this.folder, 0o711);
    this.#onFirstSignal = onFirstSignal;
    for (const signal of SIGNALS) process.on(signal, this.#onSignal);
    process.on('uncaughtException', this.#onUncaught);
  }

  /** Aborted by the first signal. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Creates something and disposes of it at the end; rejects with the signal's reason once aborted. */
  async acquire<T>(
    what: string,
    create: (signal: AbortSignal) => Promise<T>,
    dispose: (acquired: T) => Promise<void>,
  ): Promise<T> {
    this.signal.throwIfAborted();
    const creation = create(this.signal).then((acquired) => {
      this.#owned.push({ what, dispose: () => dispose(acquired) });
      return acquired;
    });
    this.#creating.add(creation);
    try {
      return await creation;
    } finally {
      this.#creating.delete(creation);
    }
  }

  /** Waits for `work`, or rejects as soon as the run is aborted; the work itself is then left to fail by itself. */
  async interruptible<T>(work: Promise<T>): Promise<T> {
    const { signal } = this;
    let onAbort: (() => void) | undefined;
    const aborted = new Promise<never>((_resolve, reject) => {
      onAbort = () => reject(signal.reason as Error);
      signal.addEventListener('abort', onAbort);
      if (signal.aborted) onAbort();
    });
    try {
      return await Promise.race([work, aborted]);
    } finally {
      if (onAbort !== undefined) signal.removeEventListener('abort', onAbort);
      work.catch(() => undefined);
    }
  }

  /** Disposes of everything. Returns what could not be disposed of in order. */
  async close(): Promise<readonly string[]> {
    if (this.#state !== 'open') return [];
    this.#state = 'closing';
    if (!this.signal.aborted) this.#controller.abort(new UnderstudyError('cancelled', 'the run has ended'));
    await Promise.allSettled(this.#creating);
    const troubles: string[] = [];
    for (const { what, dispose } of this.#owned.reverse()) {
      try {
        await withTimeout(dispose(), DISPOSE_TIMEOUT_MS);
      } catch (error) {
        troubles.push(`${what}: ${error instanceof Error ? error.message : String(error)}`);
      }
    }
    this.#killStragglers();
    await rm(this.folder, { recursive: true, force: true, maxRetries: 10 });
    for (const signal of SIGNALS) process.removeListener(signal, this.#onSignal);
    process.removeListener('uncaughtException', this.#onUncaught);
    this.#state = 'closed';
    return troubles;
  }

  readonly #onSignal = (signal: NodeJS.Signals): void => {
    const now = performance.now();
    if (this.#signalledAt === undefined) {
      this.#signalledAt = now;
      this.#onFirstSignal(signal);
      this.#controller.abort(new UnderstudyError('cancelled', `stopped by ${signal}`));
    } else if (now - this.#signalledAt > ECHO_MS) {
      this.#killStragglers();
      rmSync(this.folder, { recursive: true, force: true, maxRetries: 10, retryDelay: 20 });
      process.exit(EXIT.interrupted);
    }
  };

  readonly #onUncaught = (error: Error): void => {
    this.#controller.abort(error);
  };

  /** SIGKILL to every process whose working directory is inside the folder. Needs /proc; elsewhere finds nothing. */
  #killStragglers(): void {
    let entries: readonly string[] = [];
    try {
      entries = readdirSync('/proc').filter((entry) => /^\d+$/.test(entry) && Number(entry) !== process.pid);
    } catch {
      return;
    }
    for (const entry of entries) {
      try {
        const cwd = readlinkSync(`/proc/${entry}/cwd`);
        if (cwd === this.folder || cwd.startsWith(`${this.folder}/`)) process.kill(Number(entry), 'SIGKILL');
      } catch {
        // It ended meanwhile, or belongs to somebody else.
      }
    }
  }
}

async function withTimeout(work: Promise<void>, timeoutMs: number): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(
      () => reject(new UnderstudyError('internal', `not done within ${timeoutMs} ms`)),
      timeoutMs,
    );
  });
  try {
    await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}
