import { readFile } from 'node:fs/promises';
import { expect, test } from 'vitest';
import { Metrics, type MetricsSource } from '../../src/admin/metrics.js';
import type { KindUse } from '../../src/core/capture-ports.js';
import type { PoolStatus } from '../../src/proxy/pool/pool-settings.js';
import type { ProxyStatus } from '../../src/proxy/proxy-interface.js';

const client: ProxyStatus['clients'][number] = {
  id: 1,
  database: 'a-database',
  passedThrough: false,
  user: 'a-user',
  applicationName: 'an-application',
  side: 'source',
  phase: 'serving',
  transactionStatus: 'I',
  busy: false,
  inTransactionMs: null,
  heldBytes: 0,
  backendLost: false,
  bytesFromClient: 0,
  bytesToClient: 0,
};

const pool: PoolStatus = {
  mode: 'transaction',
  side: 'source',
  database: 'a-database',
  user: 'a-user',
  clients: 5,
  active: 2,
  idle: 1,
  opening: 0,
  counted: 0,
  waiting: 3,
  shared: {
    connections: 0,
    depth: 0,
    statements: 0,
    sentAgain: 0,
    refused: 0,
    obstacle: null,
  },
};

const SOURCE: MetricsSource = {
  version: '1.2.3',
  ready: true,
  proxy: {
    state: 'listening',
    host: '127.0.0.1',
    port: 1,
    route: { side: 'source', epoch: 4 },
    unavailable: null,
    sessions: 2,
    bySide: { source: 2, destination: 0 },
    gates: { all: { state: 'closing', held: 1, waiting: 3, warm: 2 } },
    connections: { accepted: 10, refused: 2, handshaking: 1 },
    cancelRequests: 5,
    bytesFromClients: 1000,
    bytesToClients: 2000,
    clients: [client, { ...client, id: 2, phase: 'held', inTransactionMs: 3 }],
    passedThrough: 0,
    pools: [pool, { ...pool, user: 'another' }],
    pinned: { listening: 1, 'temporary-table': 2 },
    binaryTypes: { source: [], destination: [] },
  },
  capture: {
    offered: 7,
    dropped: 1,
    unrecorded: 1,
    unparsed: 0,
    transactions: { committed: 3, rolledBack: 1 },
    tables: [],
    kinds: [{ kind: 'select', statements: 6, errors: 1, rows: 60 } as KindUse],
    statements: [],
    refusedShapes: 0,
    parserTraps: 0,
    faults: 0,
    series: null,
  },
  shadow: {
    phase: 'following',
    tables: [],
    copy: { rows: 50, seconds: 1 },
    streams: [
      {
        direction: 'forward',
        connected: true,
        committed: null,
        lagBytes: 0,
        lagMs: 1500,
        transactionsApplied: 8,
        changesApplied: 9,
        authoritative: true,
      },
      {
        direction: 'reverse',
        connected: false,
        committed: null,
        lagBytes: null,
        lagMs: null,
        transactionsApplied: 0,
        changesApplied: 0,
        authoritative: false,
      },
    ],
    lastVerify: null,
    error: null,
  },
};

async function scrape(metrics: Metrics): Promise<ReadonlyMap<string, number>> {
  const lines = (await metrics.text()).split('\n').filter((line) => line !== '' && !line.startsWith('#'));
  return new Map(
    lines.map((line) => {
      const at = line.lastIndexOf(' ');
      return [line.slice(0, at), Number(line.slice(at + 1))];
    }),
  );
}

test('docs/metrics.md lists every metric with its type and meaning, and no other', async () => {
  const page = await readFile(new URL('../../docs/metrics.md', import.meta.url), 'utf8');
  const listed = [...page.matchAll(/^\| `(understudy_\w+)`\s*\| (\w+)\s*\| ([^|]*?)\s*\| (.*?)\s*\|$/gm)].map(
    ([, name, type, , help]) => ({ name, type, help }),
  );
  const described = await new Metrics(() => Promise.resolve(SOURCE)).describe();
  expect(listed).toEqual(described);
});

test('the labels docs/metrics.md names are those the samples have', async () => {
  const page = await readFile(new URL('../../docs/metrics.md', import.meta.url), 'utf8');
  const documented = new Map(
    [...page.matchAll(/^\| `(understudy_\w+)`\s*\| \w+\s*\| ([^|]*?)\s*\|/gm)].map(([, name, labels]) => [
      name,
      (labels ?? '').replaceAll('`', ''),
    ]),
  );
  const metrics = new Metrics(() => Promise.resolve(SOURCE));
  metrics.countError('23505');
  for (const sample of (await scrape(metrics)).keys()) {
    const [, name, labels] = /^(understudy_\w+?)(?:_bucket|_sum|_count)?(?:\{(.*)\})?$/.exec(sample) ?? [];
    if (name === undefined) continue;
    const names = [...(labels ?? '').matchAll(/(\w+)="/g)]
      .map(([, label]) => label)
      .filter((l) => l !== 'le');
    expect([name, names.join(', ')]).toEqual([name, documented.get(name)]);
  }
});

test('a scrape says what the parts have counted, once, however often it is asked', async () => {
  const metrics = new Metrics(() => Promise.resolve(SOURCE));
  await scrape(metrics);
  const samples = await scrape(metrics);
  expect(samples.get('understudy_sessions{side="source",phase="serving"}')).toBe(1);
  expect(samples.get('understudy_sessions{side="source",phase="held"}')).toBe(1);
  expect(samples.get('understudy_sessions_in_transaction')).toBe(1);
  expect(samples.get('understudy_clients_accepted_total')).toBe(10);
  expect(samples.get('understudy_bytes_to_clients_total')).toBe(2000);
  expect(samples.get('understudy_statements_total{kind="select"}')).toBe(6);
  expect(samples.get('understudy_gate_state{state="closing"}')).toBe(1);
  expect(samples.get('understudy_gate_state{state="open"}')).toBe(0);
  expect(samples.get('understudy_route_epoch')).toBe(4);
  expect(samples.get('understudy_pool_clients_waiting{side="source"}')).toBe(6);
  // Whatever the number of pools; it only grows.
  expect(samples.get('understudy_pool_clients_pinned_total{reason="listening"}')).toBe(1);
  expect(samples.get('understudy_pool_clients_pinned_total{reason="temporary-table"}')).toBe(2);
  expect(await metrics.text()).toContain('# TYPE understudy_pool_clients_pinned_total counter');
  expect(samples.get('understudy_shadow_lag_seconds{direction="forward"}')).toBe(1.5);
});

test('what is not known is absent, and what is known to be 0 is not', async () => {
  const { proxy } = SOURCE;
  const metrics = new Metrics(() =>
    Promise.resolve({ ...SOURCE, capture: null, proxy: { ...proxy, route: null } }),
  );
  const samples = await scrape(metrics);
  expect(samples.get('understudy_shadow_lag_bytes{direction="forward"}')).toBe(0);
  expect(samples.has('understudy_shadow_lag_bytes{direction="reverse"}')).toBe(false);
  expect(samples.has('understudy_route_epoch')).toBe(false);
  expect(samples.has('understudy_statements_total{kind="select"}')).toBe(false);
});

test('errors are counted by class, and those of a function’s own making all as one', async () => {
  const metrics = new Metrics(() => Promise.resolve(SOURCE));
  for (const sqlState of ['23505', '23503', 'UFENC', 'ZZ123', 'YY999', '}"{\n!'])
    metrics.countError(sqlState);
  const samples = await scrape(metrics);
  expect(samples.get('understudy_client_errors_total{class="23"}')).toBe(2);
  expect(samples.get('understudy_client_errors_total{class="UF"}')).toBe(1);
  expect(samples.get('understudy_client_errors_total{class="other"}')).toBe(3);
});

test('stalls add up over switches', async () => {
  const metrics = new Metrics(() => Promise.resolve(SOURCE));
  metrics.observeStalls([20, 80]);
  metrics.observeStalls([]);
  metrics.observeStalls([300]);
  const samples = await scrape(metrics);
  expect(samples.get('understudy_stall_seconds_bucket{le="0.1"}')).toBe(2);
  expect(samples.get('understudy_stall_seconds_count')).toBe(3);
  expect(samples.get('understudy_stall_seconds_sum')).toBeCloseTo(0.4);
});
