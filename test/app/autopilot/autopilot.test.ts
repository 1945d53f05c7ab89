/** The loop in a whole process: it plans, is refused, tries again, switches, and leaves a rollback alone. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import pg from 'pg';
import { expect, test } from 'vitest';
import {
  Decisions,
  type DecisionRecord,
  type OperationSummary,
} from '../../../src/app/autopilot/decisions.js';
import { PostgresSeriesStore, SERIES_CONNECTION } from '../../../src/capture/series-store.js';
import type { DatabaseEndpoint } from '../../../src/core/ports.js';
import { connectControl } from '../../../src/core/postgres.js';
import { HOUR_MS } from '../../../src/predict/series.js';
import { databasePair, until, type DatabasePair } from '../../support/servers.js';
import { Stack } from '../../support/stack.js';
import { emptyBatch, interval, point } from '../plan/shop-series.js';

/** Waits for a decision, asking the destination itself: a status asked for again and again takes the core from the loop. */
async function decided(pair: DatabasePair, condition: string, count = 1): Promise<void> {
  await until(
    async () => {
      const found = await pair.onDestination
        .query<{
          n: string;
        }>(`SELECT pg_catalog.count(*) AS n FROM understudy.decision WHERE ${condition}`)
        .catch(() => ({ rows: [] }));
      return Number(found.rows[0]?.n ?? 0) >= count;
    },
    { timeoutMs: 120_000, what: `a decision: ${condition}` },
  );
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

/** A day and more without a rhythm: any hour is as good as another. */
async function watched(pair: DatabasePair, tables: readonly string[]): Promise<void> {
  const store = new PostgresSeriesStore(() =>
    connectControl('destination', pair.destination, SERIES_CONNECTION),
  );
  const thisHourMs = Math.floor(Date.now() / HOUR_MS) * HOUR_MS;
  const hours = Array.from({ length: 30 }, (_, back) => thisHourMs - (back + 1) * HOUR_MS);
  await store.append({
    ...emptyBatch('kept/0'),
    points: tables.flatMap((table) => hours.map((hour) => point(table, hour, 3600, 360))),
    intervals: hours.map((hour) => interval(hour, 3960)),
  });
  await store.close();
}

const MAIN = new URL('../../../dist/app/main.js', import.meta.url).pathname;

test('a process that may switch by itself does so in its window, not against preflight, and not after a rollback', async () => {
  await using pair = await databasePair();
  await pair.onSource.query(
    'CREATE TABLE public.t (id int PRIMARY KEY, n int); INSERT INTO public.t SELECT i, 0 FROM generate_series(1, 100) i',
  );
  await watched(pair, ['public.t']);

  await using stack = await Stack.start({
    ...pair,
    yaml: [
      'autopilot: { mode: on, checkIntervalMs: 200, observedHoursMin: 24, retryFirstMs: 300, retryMaxMs: 600, stallMaxMs: 60000, steerDownAfterMs: 1 }',
      // A poll that a busy machine delays is no staleness here.
      'shadow: { method: poll, pollIntervalMs: 100 }',
      'cutover: { lagMsMax: 4000 }',
    ].join('\n'),
    killAt: 'cutover before:fence',
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
  await decided(pair, `kind = 'cutover'`, 2);
  // The newest may be under way.
  expect((await log()).decisions.find(({ outcome }) => outcome === 'refused')).toMatchObject({
    kind: 'cutover',
    outcomeReason: expect.stringContaining('temp') as string,
  });
  expect((await stack.status()).route?.side).toBe('source');

  // Nothing is stale, no pattern is known, and half of the lag that a cutover allows is what a change may wait for.
  await decided(pair, `kind = 'tune' AND outcome = 'done'`);
  const { shadow, autopilot } = await stack.status();
  expect(shadow.steering).toMatchObject({ intensity: 0.54, flushIntervalMs: 1896 });
  expect(autopilot.tuning).toMatchObject({ intensity: 0.54, subset: 'public.t' });
  expect((await log()).decisions.find(({ kind }) => kind === 'tune')?.figures).toMatchObject({
    was: 1,
    m: 0,
    c: null,
  });

  // What the copy took is kept for the plans to come.
  await until(
    async () => {
      const kept = await pair.onDestination
        .query<{
          bytes: string;
          ready: string;
        }>(`SELECT bytes, ready_seconds >= copy_seconds AS ready FROM understudy.past_copy`)
        .catch(() => ({ rows: [] }));
      return kept.rows.length === 1 && kept.rows[0]?.ready === 't' && Number(kept.rows[0].bytes) > 0;
    },
    { what: 'the copy to be recorded' },
  );

  // The process dies over its switch, between hold and fence; the next one says what became of it, and switches.
  await pinned.end();
  await stack.exited();
  const [killed] = (await new Decisions(pair.destination).past()).attempts;
  expect(killed).toMatchObject({ outcome: null });
  await stack.run();
  await decided(pair, `outcome = 'done' AND kind = 'cutover'`);
  const tries = (await log()).decisions.filter(({ kind }) => kind === 'cutover');
  expect(tries.find(({ outcomeReason }) => outcomeReason?.includes('ended meanwhile'))).toMatchObject({
    outcome: 'aborted',
    operation: expect.any(String) as string,
  });
  expect(tries.filter(({ outcome }) => outcome === null)).toEqual([]);
  expect((await stack.status()).route?.side).toBe('destination');
  await decided(pair, `code = 'destination-leads'`);
  const { decisions, operations } = await log();
  const done = decisions.find(({ kind, outcome }) => kind === 'cutover' && outcome === 'done');
  expect(done).toMatchObject({ kind: 'cutover', code: 'window', mode: 'on' });
  expect(done?.figures['stallHighMs']).toBeGreaterThan(0);
  expect(done?.figures['exactMs']).toBeGreaterThan(0);
  expect(done?.figures['lagBytes']).toBeNull();
  expect(operations[0]).toMatchObject({ id: done?.operation, kind: 'cutover', state: 'done' });

  const captured = await promisify(execFile)(process.execPath, [MAIN, 'capture', '--config', stack.config]);
  expect(captured.stdout).toMatch(/statements since .* by the running process: 0 not counted/);

  await stack.operate('rollback');
  await decided(pair, `code = 'rolled-back'`);
  expect((await stack.status()).route?.side).toBe('source');
  // How eagerly the shadow follows goes on being decided.
  expect((await log()).decisions.find(({ kind }) => kind !== 'tune')).toMatchObject({
    kind: 'rest',
    code: 'rolled-back',
  });

  // A try of theirs that comes to nothing hides neither itself nor the rollback.
  const again = await connected(stack, pair.source);
  again.on('error', () => undefined);
  await again.query('CREATE TEMP TABLE held (id int)');
  expect(await stack.operate('cutover')).toMatchObject({ outcome: 'aborted' });
  expect((await new Decisions(pair.destination).past()).operations).toMatchObject([
    { kind: 'cutover', state: 'aborted' },
    { kind: 'rollback', state: 'done' },
  ]);
  await again.end();
}, 300_000);

test('by the proxy’s own writes too it switches by itself, after a process that died before its switch had begun', async () => {
  await using pair = await databasePair();
  await pair.onSource.query('CREATE TABLE public.t (id int PRIMARY KEY)');
  await watched(pair, ['public.t']);
  const decisions = new Decisions(pair.destination);
  const left = { kind: 'cutover', code: 'window', reason: 'of a process that died', figures: {} } as const;
  await decisions.record('on', left);

  await using stack = await Stack.start({
    ...pair,
    yaml: [
      'autopilot: { mode: on, checkIntervalMs: 200, observedHoursMin: 24, retryFirstMs: 300, retryMaxMs: 600, stallMaxMs: 60000, steer: false }',
      'shadow: { method: mirror }',
      'cutover: { lagMsMax: 4000 }',
    ].join('\n'),
  });
  const client = await connected(stack, pair.source);
  client.on('error', () => undefined);
  await client.query('INSERT INTO public.t SELECT generate_series(1, 3)');
  await decided(pair, `outcome = 'done' AND kind = 'cutover'`);
  expect((await stack.status()).route?.side).toBe('destination');
  expect((await client.query('SELECT count(*)::int AS n FROM public.t')).rows).toEqual([{ n: 3 }]);
  expect((await decisions.list(50)).decisions.at(-1)).toMatchObject({
    outcome: 'aborted',
    outcomeReason: expect.stringContaining('nothing was switched') as string,
  });
  await client.end();
}, 300_000);

test('configured subsets are switched by itself, one after the other, and what is taken back stops it', async () => {
  await using pair = await databasePair();
  await pair.onSource.query(
    'CREATE TABLE public.orders (id int PRIMARY KEY); CREATE TABLE public.stock (id int PRIMARY KEY)',
  );
  await watched(pair, ['public.orders', 'public.stock']);
  await using stack = await Stack.start({
    ...pair,
    yaml: [
      'subsets: { orders: { tables: [public.orders] } }',
      'cutover: { parting: accept }',
      'autopilot: { mode: on, checkIntervalMs: 200, observedHoursMin: 24, stallMaxMs: 60000, steer: false }',
    ].join('\n'),
  });
  await decided(pair, `code = 'destination-leads'`);
  const decisions = new Decisions(pair.destination);
  const switches = await decisions.list(50);
  const [second, first] = switches.decisions.filter(({ kind }) => kind === 'cutover');
  expect([first, second]).toMatchObject([
    { subset: 'orders', code: 'window', outcome: 'done', figures: { left: 2, judgedBy: 'orders' } },
    { subset: 'rest', code: 'window', outcome: 'done', figures: { left: 1, judgedBy: 'all' } },
  ]);
  expect(switches.operations.map(({ subset, id, state }) => [subset, id, state])).toEqual([
    ['rest', second?.operation, 'done'],
    ['orders', first?.operation, 'done'],
  ]);

  await stack.operate('rollback', { subset: 'orders' });
  await decided(pair, `code = 'rolled-back'`);
  const { cutover } = await stack.status();
  expect(cutover.subsets?.map(({ subset, route }) => [subset, route.side])).toEqual([
    ['orders', 'source'],
    ['rest', 'destination'],
  ]);
}, 300_000);
