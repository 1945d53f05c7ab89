import { expect, it } from 'vitest';
import { type EmbeddedServer, SUPERUSER, SUPERUSER_PASSWORD } from '../../src/app/demo/embedded-server.js';
import { ownServer } from '../support/servers.js';
import { connectControl } from '../../src/core/postgres.js';
import type { DatabaseEndpoint, Side } from '../../src/core/ports.js';
import { inspectPair } from '../../src/shadow/postgres/preflight.js';
import { FAST_SETTINGS } from '../support/global-setup.js';
import { CHECK, CUTOVER, findingOf } from './preflight-support.js';

/** Servers as a careless installation leaves them. */
const POOR_SETTINGS = {
  ...FAST_SETTINGS,
  wal_level: 'replica',
  max_wal_senders: '0',
  max_replication_slots: '0',
  max_prepared_transactions: '2',
  max_locks_per_transaction: '10',
  max_connections: '10',
  superuser_reserved_connections: '2',
  shared_buffers: '8MB',
};

function endpointOf(server: EmbeddedServer): DatabaseEndpoint {
  return {
    host: server.host,
    port: server.port,
    database: 'postgres',
    user: SUPERUSER,
    password: SUPERUSER_PASSWORD,
    tls: 'disable',
  };
}

async function open(side: Side, server: EmbeddedServer) {
  return connectControl(side, endpointOf(server), { purpose: 'test' });
}

it('names what two carelessly installed servers lack', async () => {
  const files = { DateStyle: 'German', max_slot_wal_keep_size: '1GB' };
  const servers = await Promise.all([
    ownServer({ version: 14, settings: { ...POOR_SETTINGS, ...files } }),
    ownServer({ version: 18, settings: POOR_SETTINGS }),
  ]);
  await using source = servers[0];
  await using destination = servers[1];
  const onSource = await open('source', source);
  const onDestination = await open('destination', destination);
  const tables = Array.from({ length: 45 }, (_, i) => `CREATE TABLE public.t${i} (id integer PRIMARY KEY)`);
  for (const table of tables) await onSource.query(table);
  await onSource.query(`BEGIN; INSERT INTO public.t0 VALUES (1); PREPARE TRANSACTION 'left behind'`);
  const findings = await inspectPair(onSource, onDestination, CUTOVER);
  const seen = new Set(findings.map(({ severity, side, check }) => `${severity} ${side} ${check}`));
  for (const side of ['source', 'destination']) {
    expect(seen).toContain(`blocker ${side} wal-level`);
    expect(seen).toContain(`blocker ${side} replication-slots`);
    expect(seen).toContain(`blocker ${side} wal-senders`);
  }
  expect(seen).toContain('blocker source prepared-transactions');
  expect(seen).toContain('warning source lock-table');
  expect(seen).toContain('info source slot-keep-size');
  expect(findingOf(findings, 'setting-differs', 'datestyle')?.advice).toContain(`DateStyle`.toLowerCase());
  expect(findingOf(findings, 'wal-level')?.advice).toContain(`ALTER SYSTEM SET wal_level = 'logical'`);
  const prepared = findingOf(await inspectPair(onSource, onDestination, CHECK), 'prepared-transactions');
  expect(prepared?.severity).toBe('warning');
  expect(prepared?.advice).toContain(`'left behind'`);
  // Blockers come first, so that the first finding is the first thing to do.
  const order = findings.map(({ severity }) => severity);
  expect(order.lastIndexOf('blocker')).toBeLessThan(order.indexOf('warning'));
  await onSource.query(`ROLLBACK PREPARED 'left behind'`);
  expect(
    findingOf(await inspectPair(onSource, onDestination, CUTOVER), 'prepared-transactions'),
  ).toBeUndefined();
  await onSource.end();
  await onDestination.end();
});
