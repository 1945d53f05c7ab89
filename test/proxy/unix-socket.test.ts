/** Unix sockets on both sides of the proxy. */
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, existsSync, mkdtempSync, readdirSync, renameSync, rmSync, statSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { SUPERUSER, SUPERUSER_PASSWORD } from '../../src/app/demo/embedded-server.js';
import { connectControl } from '../../src/core/postgres.js';
import { openBackend, sendCancel } from '../../src/proxy/backend/backend.js';
import { FAST_SETTINGS } from '../support/global-setup.js';
import { databasePair, type DatabasePair, ownServer } from '../support/servers.js';
import { startProxy, type RunningProxy } from './proxy-support.js';

const PSQL = '/usr/bin/psql';
let pair: DatabasePair;
let folder: string;
beforeAll(async () => {
  pair = await databasePair();
  folder = mkdtempSync(join(tmpdir(), 'us-'));
});
afterAll(async () => {
  rmSync(folder, { recursive: true, force: true });
  await pair[Symbol.asyncDispose]();
});

const socketOf = (proxy: RunningProxy): string => join(folder, `.s.PGSQL.${proxy.port}`);

async function login(proxy: RunningProxy, password = SUPERUSER_PASSWORD): Promise<string> {
  const client = new pg.Client({
    host: folder,
    port: proxy.port,
    database: proxy.database,
    user: SUPERUSER,
    password,
  });
  client.on('error', () => undefined);
  try {
    await client.connect();
    return (await client.query<{ name: string }>('SELECT current_database() AS name')).rows[0]?.name ?? '';
  } catch (error) {
    return (error as pg.DatabaseError).code ?? String(error);
  } finally {
    await client.end().catch(() => undefined);
  }
}

describe('towards clients', () => {
  test('stands where PostgreSQL’s clients look for it, with its permissions, until the proxy stops', async () => {
    const proxy = await startProxy(pair, { socketDir: folder, socketMode: 0o700 });
    expect(statSync(socketOf(proxy)).mode & 0o777).toBe(0o700);
    expect(await login(proxy)).toBe(proxy.database);
    expect(await login(proxy, 'wrong')).toBe('28P01');
    await proxy[Symbol.asyncDispose]();
    expect(readdirSync(folder)).toEqual([]);
  });

  test.skipIf(!existsSync(PSQL))('serves psql, and is not encrypted (psql is needed)', async () => {
    await using proxy = await startProxy(pair, { socketDir: folder });
    const url = `host=${folder} port=${proxy.port} user=${SUPERUSER} dbname=${proxy.database} sslmode=prefer`;
    const { stdout } = await promisify(execFile)(PSQL, ['-XAtw', url, '-c', '\\conninfo'], {
      env: { ...process.env, PGPASSWORD: SUPERUSER_PASSWORD },
    });
    expect(stdout).toContain(`via socket in "${folder}"`);
    expect(stdout).not.toContain('SSL');
  });

  test('a client that asks for TLS on it is told that there is none', async () => {
    await using proxy = await startProxy(pair, { socketDir: folder });
    const socket = net.connect({ path: socketOf(proxy) });
    socket.write(Buffer.from('0000000804d2162f', 'hex'));
    expect(((await once(socket, 'data')) as [Buffer])[0].toString()).toBe('N');
    socket.destroy();
  });

  test('replaces a socket that a killed process left, and no other', async () => {
    const first = await startProxy(pair, { socketDir: folder });
    const { port } = first;
    const path = socketOf(first);
    await first[Symbol.asyncDispose]();
    // Renamed away, it is not removed with its server, as if that had been killed.
    const leftover = net.createServer().listen(`${path}.x`);
    await once(leftover, 'listening');
    renameSync(`${path}.x`, path);
    leftover.close();
    await once(leftover, 'close');
    const again = await startProxy(pair, { socketDir: folder, port });
    expect(await login(again)).toBe(again.database);
    await again[Symbol.asyncDispose]();
    expect(existsSync(path)).toBe(false);

    const living = net
      .createServer((socket) => socket.on('error', () => undefined).end('alive'))
      .listen(path);
    await once(living, 'listening');
    await expect(startProxy(pair, { socketDir: folder, port })).rejects.toMatchObject({
      code: 'port-in-use',
    });
    const probe = net.connect({ path });
    expect(((await once(probe, 'data')) as [Buffer])[0].toString()).toBe('alive');
    living.close();
    await once(living, 'close');
    // The port that was taken first is free again.
    await using last = await startProxy(pair, { socketDir: folder, port });
    expect(last.port).toBe(port);
  });

  test('a folder that is not there, or whose name is too long, is a configuration error', async () => {
    for (const socketDir of [join(folder, 'nowhere'), `${folder}/${'x'.repeat(100)}`]) {
      await expect(startProxy(pair, { socketDir })).rejects.toMatchObject({ code: 'config-invalid' });
    }
  });
});

test('servers are reached by the folder of their socket, in clients’ names and in our own', async () => {
  // Short, and open to the account the server runs as.
  const where = mkdtempSync(join(tmpdir(), 'us-'));
  chmodSync(where, 0o777);
  const server = await ownServer({
    version: 18,
    settings: { ...FAST_SETTINGS, unix_socket_directories: where, listen_addresses: '' },
    hba: ['local all all scram-sha-256'],
  });
  try {
    // There is nothing to verify on a socket: as in libpq, the mode says nothing there.
    const address = { host: where, port: server.port, tls: 'verify-full' } as const;
    const login = { database: 'postgres', user: SUPERUSER, password: SUPERUSER_PASSWORD };
    const control = await connectControl('source', { ...address, ...login }, { purpose: 'test' });
    const { rows } = await control.query('SELECT inet_client_addr() IS NULL AS local');
    expect(rows).toEqual([{ local: 't' }]);
    await control.end();
    const endpoint = { side: 'source', ...address } as const;
    const backend = await openBackend(
      endpoint,
      { user: SUPERUSER, database: 'postgres', parameters: new Map() },
      { kind: 'password', password: SUPERUSER_PASSWORD },
      { connectTimeoutMs: 10_000 },
    );
    await sendCancel(endpoint, backend.processId, backend.secretKey, 10_000);
    backend.socket.destroy();
    await expect(
      connectControl('source', { ...address, ...login, host: folder }, { purpose: 'test' }),
    ).rejects.toMatchObject({ code: 'source-unreachable' });
  } finally {
    await server[Symbol.asyncDispose]();
    rmSync(where, { recursive: true, force: true });
  }
});
