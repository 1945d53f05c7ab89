import { MessageChannel, Worker } from 'node:worker_threads';
import { afterEach, describe, expect, test } from 'vitest';
import { UnderstudyError } from '../../src/core/errors.js';
import { ThreadCaller, serveThreadCalls, type ThreadHandler } from '../../src/core/thread-call.js';

const open: (() => void)[] = [];
afterEach(() => {
  for (const close of open.splice(0)) close();
});

function connected(handlers: Record<string, ThreadHandler>): ThreadCaller {
  const { port1, port2 } = new MessageChannel();
  open.push(() => port1.close());
  serveThreadCalls(port2, handlers);
  return new ThreadCaller(port1);
}

describe('calls between threads', () => {
  test('an answer comes back to the call that asked, whatever the order', async () => {
    const releases: (() => void)[] = [];
    const caller = connected({
      slow: async (value: number) => {
        await new Promise<void>((resolve) => releases.push(resolve));
        return value * 2;
      },
      quick: (value: number) => {
        for (const release of releases) release();
        return value + 1;
      },
    });
    const slow = caller.call<number>('slow', 21);
    expect(await caller.call<number>('quick', 1)).toBe(2);
    expect(await slow).toBe(42);
  });

  test('an error keeps its code, its advice and its details; any other thrown thing becomes internal', async () => {
    const caller = connected({
      refuse: () => {
        throw new UnderstudyError('mark-timeout', 'too late', {
          advice: 'Wait.',
          details: { lagBytes: 7 },
          retryable: false,
        });
      },
      crash: () => {
        throw new TypeError('oops');
      },
    });
    const error: unknown = await caller.call('refuse', null).catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(UnderstudyError);
    expect(error).toMatchObject({
      code: 'mark-timeout',
      message: 'too late',
      advice: 'Wait.',
      details: { lagBytes: 7 },
      retryable: false,
    });
    await expect(caller.call('crash', null)).rejects.toMatchObject({
      code: 'internal',
      message: 'crash: oops',
    });
    await expect(caller.call('nothing', null)).rejects.toMatchObject({ code: 'internal' });
  });

  test('progress arrives in order and before the answer', async () => {
    const caller = connected({
      count: (to: number, { progress }) => {
        for (let n = 1; n <= to; n += 1) progress(n);
        return 'counted';
      },
    });
    const seen: unknown[] = [];
    expect(await caller.call('count', 3, { onProgress: (value) => seen.push(value) })).toBe('counted');
    expect(seen).toEqual([1, 2, 3]);
  });

  test('cancelling reaches the handler’s signal; the call ends as the handler says', async () => {
    let started = (): void => undefined;
    const running = new Promise<void>((resolve) => (started = resolve));
    const caller = connected({
      wait: (_: null, { signal, progress }) =>
        new Promise((_resolve, reject) => {
          progress('started');
          signal.addEventListener('abort', () => reject(signal.reason as Error));
        }),
    });
    const controller = new AbortController();
    const call = caller.call('wait', null, {
      signal: controller.signal,
      onProgress: () => started(),
    });
    await running;
    controller.abort(new UnderstudyError('cancelled', 'enough'));
    await expect(call).rejects.toMatchObject({ code: 'cancelled' });
    await expect(caller.call('wait', null, { signal: controller.signal })).rejects.toMatchObject({
      message: 'enough',
    });
  });

  test('closing fails every open call and every later one', async () => {
    const caller = connected({ never: () => new Promise(() => undefined) });
    const calls = [caller.call('never', 1), caller.call('never', 2)];
    const gone = new UnderstudyError('internal', 'the thread ended');
    caller.close(gone);
    for (const call of [...calls, caller.call('never', 3)]) await expect(call).rejects.toBe(gone);
  });

  test('a real worker is called the same way', async () => {
    const worker = new Worker(
      `const { parentPort } = require('node:worker_threads');
       parentPort.on('message', (m) => parentPort.postMessage({ kind: 'result', id: m.id, value: [m.method, m.argument] }));`,
      { eval: true },
    );
    try {
      expect(await new ThreadCaller(worker).call('echo', { a: 1n })).toEqual(['echo', { a: 1n }]);
    } finally {
      await worker.terminate();
    }
  });
});
