/**
 * One PostgreSQL 14 and one 18 for the whole run. A test takes databases of its own on them through
 * `test/support/servers.ts`; a test that must stop or kill a server starts one of its own.
 */
import type { TestProject } from 'vitest/node';
import { EmbeddedServer, SUPERUSER, SUPERUSER_PASSWORD } from '../../src/app/demo/embedded-server.js';
import { connectControl } from '../../src/core/postgres.js';

/** Durability is not what these tests are about, and an fsync on a shared machine can take a second. */
export const FAST_SETTINGS = {
  fsync: 'off',
  max_connections: '500',
  max_wal_senders: '60',
  max_replication_slots: '60',
  max_prepared_transactions: '10',
};

declare module 'vitest' {
  export interface ProvidedContext {
    port14: number;
    port18: number;
  }
}

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const servers = await Promise.all([
    EmbeddedServer.create({ version: 14, settings: FAST_SETTINGS }),
    EmbeddedServer.create({ version: 18, settings: FAST_SETTINGS }),
  ]);
  await shareVerifier(servers[0], servers[1]);
  project.provide('port14', servers[0].port);
  project.provide('port18', servers[1].port);
  return async () => {
    for (const server of servers) await server[Symbol.asyncDispose]();
  };
}

/**
 * The superuser's verifier of one server, given to the other: with each its own salt, a login at the proxy opens only
 * one of them.
 */
async function shareVerifier(from: EmbeddedServer, to: EmbeddedServer): Promise<void> {
  const endpoint = (server: EmbeddedServer) =>
    ({
      host: server.host,
      port: server.port,
      database: 'postgres',
      user: SUPERUSER,
      password: SUPERUSER_PASSWORD,
      tls: 'disable',
    }) as const;
  const onFrom = await connectControl('source', endpoint(from), { purpose: 'test' });
  const onTo = await connectControl('destination', endpoint(to), { purpose: 'test' });
  const { rows } = await onFrom.query<{ rolpassword: string }>(
    'SELECT rolpassword FROM pg_authid WHERE rolname = $1',
    [SUPERUSER],
  );
  await onTo.query(`ALTER ROLE ${SUPERUSER} PASSWORD '${rows[0]?.rolpassword ?? ''}'`);
  await onFrom.end();
  await onTo.end();
}
