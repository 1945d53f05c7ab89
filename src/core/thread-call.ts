/**
 * Calls between the main thread and a worker over a MessagePort, or between processes.
 *
 * A request carries an id; its answer, its progress events and its cancellation carry the same one. Errors travel
 * as {@link SerializedError}. When the port closes, every open call fails with the given error.
 */
import { UnderstudyError, asUnderstudyError, type SerializedError } from './errors.js';

type Wire =
  | { readonly kind: 'call'; readonly id: number; readonly method: string; readonly argument: unknown }
  | { readonly kind: 'cancel'; readonly id: number }
  | { readonly kind: 'progress'; readonly id: number; readonly value: unknown }
  | { readonly kind: 'result'; readonly id: number; readonly value: unknown }
  | { readonly kind: 'error'; readonly id: number; readonly error: SerializedError };

/** A MessagePort, a Worker, or what stands for another process. */
export interface CallPort {
  postMessage(message: unknown): void;
  on(event: 'message', listener: (message: unknown) => void): unknown;
}

interface OpenCall {
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: Error) => void;
  readonly onProgress: ((value: unknown) => void) | undefined;
}

export class ThreadCaller {
  readonly #port: CallPort;
  readonly #open = new Map<number, OpenCall>();
  #nextId = 1;
  #closedBy: Error | undefined;

  constructor(port: CallPort) {
    this.#port = port;
    port.on('message', (message) => this.#onMessage(message as Wire));
  }

  /** Resolves with what the other side's handler returned. The type is the caller's promise, as with any wire. */
  call<T>(
    method: string,
    argument: unknown,
    options: { signal?: AbortSignal; onProgress?: (value: unknown) => void } = {},
  ): Promise<T> {
    if (this.#closedBy !== undefined) return Promise.reject(this.#closedBy);
    const { signal } = options;
    if (signal?.aborted) return Promise.reject(signal.reason as Error);
    const id = this.#nextId++;
    return new Promise<T>((resolve, reject) => {
      const onAbort = (): void => this.#port.postMessage({ kind: 'cancel', id } satisfies Wire);
      const settle = (): void => {
        this.#open.delete(id);
        signal?.removeEventListener('abort', onAbort);
      };
      this.#open.set(id, {
        resolve: (value) => {
          settle();
          resolve(value as T);
        },
        reject: (error) => {
          settle();
          reject(error);
        },
        onProgress: options.onProgress,
      });
      signal?.addEventListener('abort', onAbort, { once: true });
      this.#port.postMessage({ kind: 'call', id, method, argument } satisfies Wire);
    });
  }

  /** Fails every open call, and every later one, with `error`. */
  close(error: Error): void {
    this.#closedBy = error;
    for (const call of this.#open.values()) call.reject(error);
  }

  #onMessage(message: Wire): void {
    const call = 'id' in message ? this.#open.get(message.id) : undefined;
    if (call === undefined) return;
    switch (message.kind) {
      case 'progress':
        call.onProgress?.(message.value);
        return;
      case 'result':
        call.resolve(message.value);
        return;
      case 'error':
        call.reject(UnderstudyError.fromJSON(message.error));
        return;
      default:
        return;
    }
  }
}

export type ThreadHandler = (
  argument: never,
  context: { readonly signal: AbortSignal; readonly progress: (value: unknown) => void },
) => unknown;

/** Serves calls on `port` until it closes. Unknown methods and thrown errors are answered, never fatal. */
export function serveThreadCalls(port: CallPort, handlers: Readonly<Record<string, ThreadHandler>>): void {
  const running = new Map<number, AbortController>();
  port.on('message', (received) => {
    const message = received as Wire;
    if (message.kind === 'cancel') {
      running.get(message.id)?.abort(new UnderstudyError('cancelled', 'the caller cancelled'));
      return;
    }
    if (message.kind !== 'call') return;
    const { id } = message;
    const controller = new AbortController();
    running.set(id, controller);
    const progress = (value: unknown): void =>
      port.postMessage({ kind: 'progress', id, value } satisfies Wire);
    const run = async (): Promise<unknown> => {
      const handler = handlers[message.method];
      if (handler === undefined)
        throw new UnderstudyError('internal', `no such thread method: ${message.method}`);
      return await handler(message.argument as never, { signal: controller.signal, progress });
    };
    run()
      .then((value) => port.postMessage({ kind: 'result', id, value } satisfies Wire))
      .catch((error: unknown) => {
        const wrapped = asUnderstudyError(error, 'internal', message.method);
        port.postMessage({ kind: 'error', id, error: wrapped.toJSON() } satisfies Wire);
      })
      .finally(() => running.delete(id));
  });
}
