/**
 * One process that serves clients, as the process in charge sees it.
 *
 * States: starting → standing-by (it has been told everything, and has no clients) ⇄ serving → gone (final).
 *
 * Invariants: calls arrive in the order in which they were made; once it is gone every call fails, and nothing of it is
 * served any more: `gone` resolves only when the process has ended.
 */
import { fork, type ChildProcess } from 'node:child_process';
import type net from 'node:net';
import { UnderstudyError } from '../../core/errors.js';
import { StateCell } from '../../core/state-machine.js';
import { serveThreadCalls, ThreadCaller, type CallPort } from '../../core/thread-call.js';
import type { Place } from '../../proxy/login/client-places.js';
import type { ProxyStatus } from '../../proxy/proxy-interface.js';
import { CONNECTION, TAKE_PLACE, type WorkerCalls, type WorkerEvent } from './messages.js';

const ENTRY = new URL('./worker.js', import.meta.url);

export interface WorkerLinkDeps {
  readonly onEvent: (event: WorkerEvent, from: WorkerLink) => void;
  /** Returns why there is none, in PostgreSQL's words. */
  readonly takePlace: (place: Place, from: WorkerLink) => string | null;
}

type State = 'starting' | 'standing-by' | 'serving' | 'gone';

export class WorkerLink {
  readonly #child: ChildProcess;
  readonly #caller: ThreadCaller;
  readonly #state = new StateCell<State>(
    'worker',
    {
      starting: ['standing-by', 'gone'],
      'standing-by': ['serving', 'gone'],
      serving: ['gone'],
      gone: [],
    },
    'starting',
  );
  /** Resolves with what ended it. */
  readonly gone: Promise<string>;
  /** Places its clients have, to be given back when it ends. */
  readonly places: Place[] = [];
  #connections = 0;
  /** Handed over and not taken yet. */
  #underWay = 0;
  /** As it last told. */
  lastStatus: ProxyStatus | undefined;
  silent = false;

  constructor(deps: WorkerLinkDeps) {
    this.#child = fork(ENTRY, { serialization: 'advanced', stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
    const port = portOf(this.#child);
    this.#caller = new ThreadCaller(port);
    serveThreadCalls(port, { [TAKE_PLACE]: (place: Place) => deps.takePlace(place, this) });
    port.on('message', (message) => {
      const event = message as WorkerEvent;
      if (event.kind === 'ended') this.#connections -= 1;
      else if (!('id' in event)) deps.onEvent(event, this);
    });
    this.gone = new Promise((resolve) => {
      this.#child.once('error', (error) => this.#ended(error.message, resolve));
      this.#child.once('exit', (code, signal) => this.#ended(signal ?? `exit code ${String(code)}`, resolve));
    });
  }

  #ended(how: string, resolve: (how: string) => void): void {
    // `error` alone may mean that a message could not be sent; the process is ended then.
    if (this.#child.exitCode === null && this.#child.signalCode === null && this.#child.pid !== undefined) {
      this.#child.kill('SIGKILL');
      return;
    }
    if (this.#state.is('gone')) return;
    this.#state.move('gone');
    this.#caller.close(new UnderstudyError('worker-unresponsive', `a proxy worker ended: ${how}`));
    resolve(how);
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  get state(): State {
    return this.#state.current;
  }

  get alive(): boolean {
    return !this.#state.is('gone');
  }

  get serving(): boolean {
    return this.#state.is('serving');
  }

  /** Handed over and not ended. */
  get connections(): number {
    return this.#connections;
  }

  get underWay(): number {
    return this.#underWay;
  }

  standBy(): void {
    if (this.#state.is('starting')) this.#state.move('standing-by');
  }

  serve(): void {
    if (this.#state.is('standing-by')) this.#state.move('serving');
  }

  /** Throws what the worker threw; `worker-unresponsive` where it ended, or did not answer within `timeoutMs`. */
  async call<T, M extends keyof WorkerCalls = keyof WorkerCalls>(
    method: M,
    argument: WorkerCalls[M],
    timeoutMs: number,
    signal?: AbortSignal,
  ): Promise<T> {
    let timer: NodeJS.Timeout | undefined;
    const over = new AbortController();
    const late = new Promise<never>((_resolve, reject) => {
      timer = setTimeout(() => {
        reject(
          new UnderstudyError(
            'worker-unresponsive',
            `proxy worker ${this.pid} did not answer to ${method} within ${timeoutMs} ms`,
          ),
        );
        over.abort();
      }, timeoutMs);
    });
    const answer = this.#caller.call<T>(method, argument, {
      signal: signal === undefined ? over.signal : AbortSignal.any([signal, over.signal]),
    });
    // What comes after the time is up is nobody's concern.
    answer.catch(() => undefined);
    try {
      return await Promise.race([answer, late]);
    } finally {
      clearTimeout(timer);
    }
  }

  /** Gives it a client's connection, of which nothing has been read. */
  hand(socket: net.Socket): void {
    this.#connections += 1;
    this.#underWay += 1;
    this.#child.send(CONNECTION, socket, {}, (error) => {
      this.#underWay -= 1;
      if (error === null) return;
      this.#connections -= 1;
      socket.destroy();
    });
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }

  /** It has nothing left to do, and ends by itself. */
  dismiss(): void {
    if (this.#child.connected) this.#child.disconnect();
  }
}

function portOf(child: ChildProcess): CallPort {
  return {
    postMessage: (message) => {
      // A process that has just ended is noticed by its exit.
      if (child.connected) child.send(message as object, () => undefined);
    },
    on: (event, listener) => child.on(event, listener),
  };
}
