/**
 * One PostgreSQL 14 and one 18 for the whole run. A test takes databases of its own on them through
 * `test/support/servers.ts`; a test that must stop or kill a server starts one of its own.
 */
import type { TestProject } from 'vitest/node';
import { EmbeddedServer } from '../../src/app/demo/embedded-server.js';

/** Durability is not what these tests are about, and an fsync on a shared machine can take a second. */
export const FAST_SETTINGS = { fsync: 'off', max_wal_senders: '60', max_replication_slots: '60' };

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
  project.provide('port14', servers[0].port);
  project.provide('port18', servers[1].port);
  return async () => {
    for (const server of servers) await server[Symbol.asyncDispose]();
  };
}
