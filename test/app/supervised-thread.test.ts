import type { Worker } from 'node:worker_threads';
import { expect, test } from 'vitest';
import { SupervisedThread } from '../../src/app/supervised-thread.js';
import { systemClock } from '../../src/core/clock.js';
import { silentLog } from '../../src/core/log.js';
import { until } from '../support/servers.js';

function entry(code: string): URL {
  return new URL(`data:text/javascript,${encodeURIComponent(code)}`);
}

function thread(code: string, begin: (worker: Worker) => Promise<void> = () => Promise.resolve()) {
  const events: string[] = [];
  const supervised = new SupervisedThread<Worker>({
    name: 'tested',
    entry: entry(code),
    attach: (worker) => {
      events.push('attached');
      return worker;
    },
    begin,
    detach: (_worker, error) => events.push(`detached ${error.code}`),
    log: silentLog,
    clock: systemClock,
    backoffMs: { first: 1, most: 5 },
  });
  return { supervised, events };
}

const ECHO = `
  import { parentPort } from 'node:worker_threads';
  parentPort.on('message', (what) => { if (what === 'die') throw new Error('as asked'); process.exit(3); });
`;

test.each(['die', 'exit'])('a thread that ends by %s is started again, its calls failed', async (how) => {
  const { supervised, events } = thread(ECHO);
  supervised.start();
  const first = supervised.current;
  expect(first).toBeDefined();
  first?.postMessage(how);
  await until(() => supervised.current !== undefined && supervised.current !== first);
  expect(events).toEqual(['attached', 'detached internal', 'attached']);
  expect(supervised.crashes).toBe(1);
  await supervised.stop();
  expect(supervised.current).toBeUndefined();
  expect(events).toHaveLength(3 + 1);
});

test('a thread that can’t begin is started again until it can', async () => {
  let attempts = 0;
  const { supervised } = thread(ECHO, () => {
    attempts++;
    return attempts < 3 ? Promise.reject(new Error('not yet')) : Promise.resolve();
  });
  supervised.start();
  await until(() => attempts === 3);
  expect(supervised.crashes).toBe(2);
  await supervised.stop();
});

test('nothing is started after stop, also while waiting to start again', async () => {
  const { supervised, events } = thread('process.exit(1)');
  supervised.start();
  await until(() => supervised.crashes > 1);
  await supervised.stop();
  const seen = events.length;
  supervised.start();
  expect(events.length).toBe(seen);
});
