/** Databases on the run's shared servers, and small things every integration test needs. */
import { randomBytes } from 'node:crypto';
import { inject } from 'vitest';
import type pg from 'pg';
import {
  EmbeddedServer,
  SUPERUSER,
  SUPERUSER_PASSWORD,
  type EmbeddedServerOptions,
} from '../../src/app/demo/embedded-server.js';
import type { DatabaseEndpoint, Side } from '../../src/core/ports.js';
import { connectControl, quoteIdent } from '../../src/core/postgres.js';

/** Endpoint of a database on the shared PostgreSQL 14 (source) or 18 (destination), as superuser. */
export function sharedEndpoint(side: Side, database: string): DatabaseEndpoint {
  return {
    host: '127.0.0.1',
    port: inject(side === 'source' ? 'port14' : 'port18'),
    database,
    user: SUPERUSER,
    password: SUPERUSER_PASSWORD,
    tls: 'disable',
  };
}

/** A server of the test's own; it begins as a copy of what `initdb` made for the shared one of its version. */
export function ownServer(options: EmbeddedServerOptions): Promise<EmbeddedServer> {
  return EmbeddedServer.create({ cluster: inject('clusters')[options.version], ...options });
}

export interface DatabasePair extends AsyncDisposable {
  readonly source: DatabaseEndpoint;
  readonly destination: DatabaseEndpoint;
  /** Open control connections, for the test's own queries. */
  readonly onSource: pg.Client;
  readonly onDestination: pg.Client;
}

/** A fresh empty database of the same name on each server; dropped, with its slots and sessions, on disposal. */
export async function databasePair(): Promise<DatabasePair> {
  const name = `t_${randomBytes(5).toString('hex')}`;
  await Promise.all([createDatabase('source', name), createDatabase('destination', name)]);
  const source = sharedEndpoint('source', name);
  const destination = sharedEndpoint('destination', name);
  const onSource = await connectControl('source', source, { purpose: 'test' });
  const onDestination = await connectControl('destination', destination, { purpose: 'test' });
  return {
    source,
    destination,
    onSource,
    onDestination,
    async [Symbol.asyncDispose]() {
      await onSource.end();
      await onDestination.end();
      for (const which of ['source', 'destination'] as const) await dropDatabase(which, name);
    },
  };
}

/** By a copy of the files: half the work of what the newer server does by itself. */
export function createDatabaseSql(side: Side, name: string): string {
  return `CREATE DATABASE ${quoteIdent(name)}${side === 'destination' ? ' STRATEGY file_copy' : ''}`;
}

async function createDatabase(which: Side, name: string): Promise<void> {
  const client = await connectControl(which, sharedEndpoint(which, 'postgres'), { purpose: 'test' });
  await client.query(createDatabaseSql(which, name));
  await client.end();
}

async function dropDatabase(which: Side, name: string): Promise<void> {
  const client = await connectControl(which, sharedEndpoint(which, 'postgres'), { purpose: 'test' });
  try {
    await until(async () => {
      // Each time: what was about to connect again may have done so.
      await client.query(
        'SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()',
        [name],
      );
      const slots = await client.query<{ slot_name: string; active: string }>(
        'SELECT slot_name, active FROM pg_replication_slots WHERE database = $1',
        [name],
      );
      for (const slot of slots.rows) {
        if (slot.active === 'f') await client.query('SELECT pg_drop_replication_slot($1)', [slot.slot_name]);
      }
      return slots.rows.length === 0;
    });
    await client.query(`DROP DATABASE ${quoteIdent(name)} WITH (FORCE)`);
  } finally {
    await client.end();
  }
}

/** A condition often asks a server: asked without pause it would take the core from what it waits for. */
const POLL_MAX_MS = 40;

/**
 * Polls a condition; throws with `what` after `timeoutMs`. For waiting on states, never for letting time pass. The
 * limit only ends a hang: it is far above what a starved machine needs.
 */
export async function until(
  condition: () => boolean | Promise<boolean>,
  {
    timeoutMs = 60_000,
    everyMs = POLL_MAX_MS,
    what = 'condition',
  }: { timeoutMs?: number; everyMs?: number; what?: string } = {},
): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  for (let waitMs = 2; !(await condition()); waitMs = Math.min(waitMs * 1.5, everyMs)) {
    if (performance.now() > deadline) throw new Error(`timed out after ${timeoutMs} ms waiting for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, waitMs));
  }
}

/**
 * Waits until `count` backends of the database that `client` is connected to run a statement with `text` in it. A
 * cancel request that comes earlier is lost: a server that has not read the statement yet has nothing to cancel.
 */
export async function untilActive(client: pg.Client, text: string, count = 1): Promise<void> {
  await until(
    async () => {
      const { rows } = await client.query(
        `SELECT FROM pg_catalog.pg_stat_activity WHERE datname = pg_catalog.current_database()
           AND pid <> pg_catalog.pg_backend_pid() AND state = 'active' AND strpos(query, $1) > 0`,
        [text],
      );
      return rows.length >= count;
    },
    { what: `${count} running ${text}` },
  );
}
