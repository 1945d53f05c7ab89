/**
 * Whether the machine gave a run the time that it takes: how long the threads of the harness and of the Understudy under test
 * were ready to run and did not, as Linux counts it (/proc/PID/task/TID/schedstat: run and waited, in ns).
 */
import { readFileSync, readdirSync } from 'node:fs';

const EVERY_MS = 500;
/** Of samples: five seconds. */
const WINDOW = 10;
/** A window in which less was run and waited for tells nothing. */
const WINDOW_NS_MIN = 500e6;

interface Times {
  readonly runNs: number;
  readonly waitedNs: number;
}

export class CpuWatch {
  readonly #pids: () => readonly number[];
  readonly #timer: NodeJS.Timeout;
  #threads = new Map<string, Times>();
  readonly #window: Times[] = [];
  /**
   * The greatest part, 0…1, of the time that they could have used in five seconds, and that went to others; null where
   * this can't be known here.
   */
  worstShare: number | null = null;

  constructor(pids: () => readonly number[]) {
    this.#pids = pids;
    this.#threads = this.#read();
    this.#timer = setInterval(() => this.#sample(), EVERY_MS).unref();
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  #sample(): void {
    const now = this.#read();
    let [runNs, waitedNs] = [0, 0];
    for (const [thread, times] of now) {
      const before = this.#threads.get(thread);
      runNs += times.runNs - (before?.runNs ?? 0);
      waitedNs += times.waitedNs - (before?.waitedNs ?? 0);
    }
    this.#threads = now;
    this.#window.push({ runNs, waitedNs });
    if (this.#window.length > WINDOW) this.#window.shift();
    const share = waitedShare(this.#window);
    if (share !== null) this.worstShare = Math.max(this.worstShare ?? 0, share);
  }

  #read(): Map<string, Times> {
    const threads = new Map<string, Times>();
    for (const pid of this.#pids()) {
      for (const thread of list(`/proc/${pid}/task`)) {
        const times = timesOf(`/proc/${pid}/task/${thread}/schedstat`);
        if (times !== null) threads.set(`${pid} ${thread}`, times);
      }
    }
    return threads;
  }
}

function waitedShare(window: readonly Times[]): number | null {
  const runNs = window.reduce((sum, each) => sum + each.runNs, 0);
  const waitedNs = window.reduce((sum, each) => sum + each.waitedNs, 0);
  return runNs + waitedNs < WINDOW_NS_MIN ? null : waitedNs / (runNs + waitedNs);
}

/** Empty where there is none: a process may end at any time. */
function list(folder: string): readonly string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

function timesOf(file: string): Times | null {
  try {
    const [runNs, waitedNs] = readFileSync(file, 'utf8').split(' ').map(Number);
    return runNs === undefined || waitedNs === undefined ? null : { runNs, waitedNs };
  } catch {
    return null;
  }
}
