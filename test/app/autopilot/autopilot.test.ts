/** The loop in a whole process: it plans, is refused, tries again, switches, and leaves a rollback alone. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import pg from 'pg';
import { expect, test } from 'vitest';
import type { DecisionRecord, OperationSummary } from '../../../src/app/autopilot/decisions.js';
import { PostgresSeriesStore, SERIES_CONNECTION } from '../../../src/capture/series-store.js';
import type { DatabaseEndpoint } from '../../../src/core/ports.js';
import { connectControl } from '../../../src/core/postgres.js';
import { HOUR_MS } from '../../../src/predict/series.js';
import { databasePair, until } from '../../support/servers.js';
import { Stack, type Status } from '../../support/stack.js';
import { emptyBatch, interval, point } from '../plan/shop-series.js';

/** A status is a dozen questions to two servers: asked without pause, it takes the core from what it waits for. */
async function seldom(stack: Stack): Promise<Status> {
  await new Promise((resolve) => setTimeout(resolve, 150));
  return stack.status();
}

/** Once it is known which side leads. */
async function connected(stack: Stack, { user, password = '' }: DatabaseEndpoint): Promise<pg.Client> {
  let client: pg.Client | undefined;
  await until(
    async () => {
      client = new pg.Client({ connectionString: stack.url(user, password) });
      return await client.connect().then(
        () => true,
        () => false,
      );
    },
    { what: 'a client' },
  );
  if (client === undefined) throw new Error('no client');
  return client;
}

const MAIN = new URL('../../../dist/app/main.js', import.meta.url).pathname;

test('a process that may switch by itself does so in its window, not against preflight, and not after a rollback', async () => {
  await using pair = await databasePair();
  await pair.onSource.query(
    'CREATE TABLE public.t (id int PRIMARY KEY, n int); INSERT INTO public.t SELECT i, 0 FROM generate_series(1, 100) i',
  );
  // A day and more without a rhythm: any hour is as good as another.
  const store = new PostgresSeriesStore(() =>
    connectControl('destination', pair.destination, SERIES_CONNECTION),
  );
  const thisHourMs = Math.floor(Date.now() / HOUR_MS) * HOUR_MS;
  const hours = Array.from({ length: 30 }, (_, back) => thisHourMs - (back + 1) * HOUR_MS);
  await store.append({
    ...emptyBatch('kept/0'),
    points: hours.map((hour) => point('public.t', hour, 3600, 360)),
    intervals: hours.map((hour) => interval(hour, 3960)),
  });
  await store.close();

  await using stack = await Stack.start({
    ...pair,
    yaml: [
      'autopilot: { mode: on, checkIntervalMs: 200, observedHoursMin: 24, retryFirstMs: 300, retryMaxMs: 600, stallMaxMs: 60000 }',
    ].join('\n'),
  });
  // A session that can't be moved stands in the way from the beginning.
  const pinned = await connected(stack, pair.source);
  pinned.on('error', () => undefined);
  await pinned.query('CREATE TEMP TABLE held (id int)');
  const log = async (): Promise<{
    readonly decisions: readonly DecisionRecord[];
    readonly operations: readonly OperationSummary[];
  }> => {
    const { stdout } = await promisify(execFile)(process.execPath, [
      MAIN,
      'log',
      '--json',
      '--config',
      stack.config,
    ]);
    return JSON.parse(stdout.trim().split('\n').at(-1) ?? '') as Awaited<ReturnType<typeof log>>;
  };
  const tries = async (): Promise<number> =>
    Number((await seldom(stack)).autopilot.verdict?.figures['tries'] ?? 0);
  await until(async () => (await tries()) > 1, { timeoutMs: 120_000, what: 'two tries' });
  // The newest may be under way.
  expect((await log()).decisions.find(({ outcome }) => outcome === 'refused')).toMatchObject({
    kind: 'cutover',
    outcomeReason: expect.stringContaining('temp') as string,
  });
  expect((await stack.status()).route?.side).toBe('source');

  await pinned.end();
  await until(async () => (await seldom(stack)).route?.side === 'destination', {
    timeoutMs: 120_000,
    what: `the switch\n${stack.output}`,
  });
  await until(async () => (await seldom(stack)).autopilot.verdict?.code === 'destination-leads', {
    what: 'the loop to rest',
  });
  const { decisions, operations } = await log();
  const done = decisions.find(({ outcome }) => outcome === 'done');
  expect(done).toMatchObject({ kind: 'cutover', code: 'window', mode: 'on' });
  expect(done?.figures['stallHighMs']).toBeGreaterThan(0);
  expect(operations[0]).toMatchObject({ id: done?.operation, kind: 'cutover', state: 'done' });

  const captured = await promisify(execFile)(process.execPath, [MAIN, 'capture', '--config', stack.config]);
  expect(captured.stdout).toMatch(/statements since .* by the running process: 0 not counted/);

  await stack.operate('rollback');
  await until(async () => (await seldom(stack)).autopilot.verdict?.code === 'rolled-back', {
    what: 'the rollback to be noticed',
  });
  expect((await stack.status()).route?.side).toBe('source');
  expect((await log()).decisions[0]).toMatchObject({ kind: 'rest', code: 'rolled-back' });
}, 300_000);
