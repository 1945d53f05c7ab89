/**
 * One PostgreSQL 14 and one 18 for the whole run. A test takes databases of its own on them through
 * `test/support/servers.ts`; a test that must stop or kill a server starts one of its own.
 */
import { createHash, createHmac, pbkdf2Sync, randomBytes } from 'node:crypto';
import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestProject } from 'vitest/node';
import {
  EmbeddedServer,
  SUPERUSER,
  SUPERUSER_PASSWORD,
  type ServerVersion,
} from '../../src/app/demo/embedded-server.js';
import { connectControl } from '../../src/core/postgres.js';

/** Durability is not what these tests are about, and an fsync on a shared machine can take a second. */
export const FAST_SETTINGS = {
  fsync: 'off',
  full_page_writes: 'off',
  max_connections: '500',
  max_wal_senders: '60',
  max_replication_slots: '60',
  max_prepared_transactions: '10',
};

declare module 'vitest' {
  export interface ProvidedContext {
    port14: number;
    port18: number;
    /** Folders of what `initdb` made, by version. */
    clusters: Readonly<Record<ServerVersion, string>>;
  }
}

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const folder = await mkdtemp(join(tmpdir(), 'understudy-clusters-'));
  // The servers may run under another account.
  await chmod(folder, 0o755);
  const clusters = { 14: join(folder, '14'), 18: join(folder, '18') };
  const servers = await Promise.all([
    EmbeddedServer.create({ version: 14, settings: FAST_SETTINGS, cluster: clusters[14] }),
    EmbeddedServer.create({ version: 18, settings: FAST_SETTINGS, cluster: clusters[18] }),
  ]);
  await shareVerifier(servers);
  project.provide('clusters', clusters);
  project.provide('port14', servers[0].port);
  project.provide('port18', servers[1].port);
  return async () => {
    for (const server of servers) await server[Symbol.asyncDispose]();
    await rm(folder, { recursive: true, force: true });
  };
}

/**
 * One verifier for the superuser of both: with each its own salt, a login at the proxy opens only one of them. Of one
 * iteration: the customary 4096 would be a third of what it costs a client to connect.
 */
async function shareVerifier(servers: readonly EmbeddedServer[]): Promise<void> {
  const iterations = 1;
  const salt = randomBytes(16);
  const salted = pbkdf2Sync(SUPERUSER_PASSWORD, salt, iterations, 32, 'sha256');
  const key = (text: string): Buffer => createHmac('sha256', salted).update(text).digest();
  const storedKey = createHash('sha256').update(key('Client Key')).digest('base64');
  const verifier = `SCRAM-SHA-256$${iterations}:${salt.toString('base64')}$${storedKey}:${key('Server Key').toString('base64')}`;
  for (const server of servers) {
    const client = await connectControl(
      'source',
      {
        host: server.host,
        port: server.port,
        database: 'postgres',
        user: SUPERUSER,
        password: SUPERUSER_PASSWORD,
        tls: 'disable',
      },
      { purpose: 'test' },
    );
    await client.query(`ALTER ROLE ${SUPERUSER} PASSWORD '${verifier}'`);
    await client.end();
  }
}
