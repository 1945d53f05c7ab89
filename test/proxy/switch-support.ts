/** Two databases alike but for the OIDs of their types, and a proxy in front of them, for tests of a switch. */
import { afterAll, afterEach, beforeAll, beforeEach } from 'vitest';
import { WHOLE_DATABASE, type Side } from '../../src/core/ports.js';
import type { HoldOptions, PrepareReport, StallReport } from '../../src/core/traffic-ports.js';
import type { ProxySettings } from '../../src/proxy/settings.js';
import { databasePair, type DatabasePair } from '../support/servers.js';
import { RawClient, startProxy, type RunningProxy } from './proxy-support.js';

export const ALL = WHOLE_DATABASE;
const SCHEMA = `
  CREATE TYPE public.mood AS ENUM ('sad', 'fine');
  CREATE TABLE public.item (id int PRIMARY KEY, name text, mood public.mood);
  CREATE TABLE public.tenant_row (tenant text, value text);
  CREATE SCHEMA other;
  CREATE TABLE other.item (id int);
  CREATE FUNCTION public.enter_tenant(text) RETURNS void LANGUAGE sql AS
    $$ SELECT set_config('app.tenant', $1, false) $$`;

/** What a starved machine needs; see {@link prepareBesideOpen}. */
const PREPARE_TIMEOUT_MS = 60_000;

/** Both are the same for all tests of the file; the proxy is a new one for each. */
export let pair: DatabasePair;
export let running: RunningProxy;

/** Registers what makes and ends them. Call once in a test file. */
export function switchServers(settings: Partial<ProxySettings> = {}): void {
  beforeAll(async () => {
    pair = await databasePair();
    // So that types made below have other OIDs on the destination.
    await pair.onDestination.query('CREATE TYPE public.first AS ENUM (); DROP TYPE public.first');
    for (const client of [pair.onSource, pair.onDestination]) await client.query(SCHEMA);
  });

  beforeEach(async () => {
    for (const client of [pair.onSource, pair.onDestination]) {
      await client.query("TRUNCATE public.item; INSERT INTO public.item VALUES (1, 'one', 'fine')");
    }
    running = await startProxy(pair, {
      prepareTimeoutMs: PREPARE_TIMEOUT_MS,
      askTimeoutMs: 60_000,
      connectTimeoutMs: 60_000,
      ...settings,
    });
  });

  afterEach(async () => {
    await running[Symbol.asyncDispose]();
  });

  afterAll(async () => {
    await pair[Symbol.asyncDispose]();
  });
}

export const raw = (parameters: Record<string, string> = {}): Promise<RawClient> =>
  RawClient.connect(running.port, running.database, parameters);

export const never = new AbortController().signal;
export const options: HoldOptions = {
  drainTimeoutMs: 60_000,
  onDrainTimeout: 'abort',
  onPinned: 'refuse',
  signal: never,
};

export const prepare = (to: Side = 'destination'): Promise<PrepareReport> =>
  running.proxy.prepare(ALL, to, never);

/** With a transaction open, or a statement that runs on: preparing waits for it to the end of its time. */
export async function prepareBesideOpen(): Promise<PrepareReport> {
  running.proxy.reconfigure({ prepareTimeoutMs: 300 });
  const report = await prepare();
  running.proxy.reconfigure({ prepareTimeoutMs: PREPARE_TIMEOUT_MS });
  return report;
}

export async function closeGate(over: Partial<HoldOptions> = {}, to: Side = 'destination'): Promise<void> {
  await running.proxy.hold(ALL, to, { ...options, ...over });
}

export async function switchOver(to: Side = 'destination'): Promise<StallReport> {
  const { epoch } = running.proxy.route(ALL);
  await running.proxy.switchTo(ALL, { side: to, epoch: epoch + 1 });
  return running.proxy.release(ALL);
}

/** The whole of it at once. */
export async function move(to: Side = 'destination'): Promise<void> {
  await prepare(to);
  await closeGate({}, to);
  await switchOver(to);
}

export async function version(client: RawClient): Promise<string> {
  const [text] = await client.column("SELECT current_setting('server_version_num')::int / 10000");
  return text ?? '';
}

export const gate = (): string => running.proxy.status().gates[ALL]?.state ?? '';
